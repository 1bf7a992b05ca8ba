//! Making a directory that holds something equal to the upstream's: a first copy of which most is there already.
//!
//! The upstream sends its tree as for a first copy. What the directory holds is compared with it: names by a plan
//! (`plan`), contents by what is known of them (`base`) or by reading them (`compare`). Only blocks that differ are asked
//! for, by the hashes of those that are here. As after a first copy the log from the snapshot on makes the rest right.
//!
//! What is durable, in this order: the snapshot; the journal with everything that is equal already; the control file's
//! "resyncing"; what becomes of the log; then the first change of the directory; finished files in the journal; the
//! checkpoint of the whole; the control file's "filled". From "resyncing" on the directory is not usable, whatever
//! happens: an interrupted resync is looked at anew, believes its journal and compares the rest again. Before that
//! nothing was touched, and nothing happens to the node if the upstream, or a guard, keeps it from going on.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::BufReader;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::aside;
use super::base::Base;
use super::compare::{Holds, Outlets, Resync, Tally, compare, sort};
use super::journal::{Finished, Journal};
use super::local::{Scanned, scan};
use super::plan::{Plan, plan};
use super::shape::Shape;
use super::take::way_of;
use super::target::{
    self, BATCH_BYTES, BATCH_CAREFUL, FillContext, Hunger, Job, OUTSTANDING, Received, Running, SNAPSHOT,
    Token, alive, finish, hear, hello_of, local, receive,
};
use super::tree::Skipped;
use super::write::Work;
use crate::catalog::Catalog;
use crate::disk;
use crate::error::{Error, ErrorKind, Result};
use crate::history::History;
use crate::net::{
    self, End, Ended, FillProgress, MessageReader, MessageWriter, Met, Target, Traffic, UpstreamState,
};
use crate::position::{FileId, Lsn, SystemId, TimelineId};
use crate::record::{BLOCK, Kind};
use crate::state::{Control, FillState, LogFate, StateDir};
use crate::sys::{self, Root, STAGE_DIR};
use crate::wire::{
    Ack, BATCH_IDS, Code, Decision, Hello, Message, RANGES_BYTES, RANGES_MAX, Range, VERSION_SLOTS, Want,
    Welcome,
};
use crate::{apply, checkpoint, failpoint};

/// Threads that read and hash.
const READERS: usize = 2;
/// Ranges found to be asked for, but not asked for yet: at most 8 MiB of hashes.
const FOUND: usize = 256;
/// Of content whose hashes are sent so much is expected to differ.
const DIFFERS: u64 = 16;

/// How a directory is to be made equal.
#[derive(Clone, Debug)]
pub struct Order {
    /// What becomes of the log.
    pub log: LogFate,
    /// More names than this share of all, in percent, from so many on, go only when an operator says so.
    pub guard: Option<(u8, u64)>,
    /// What is excluded goes with the directory that the leader removed; else the resync is refused.
    pub tangled: bool,
    /// The directory is not this node's yet: it is taken over as it is.
    pub adopt: bool,
    /// Files found damaged, to be named when they are repaired, as those are that were edited since they were applied.
    pub damaged: Vec<FileId>,
}

/// What a resync has done.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// Resyncs completed since the start of the process.
    pub completed: u64,
    /// Names that were removed by the last one.
    pub removed: u64,
    /// Files of which something was here and something differed.
    pub differing: u64,
    /// Bytes of content received.
    pub received_bytes: u64,
    /// Bytes made zero.
    pub zeroed_bytes: u64,
    /// Bytes read here to be compared.
    pub read_bytes: u64,
    /// Bytes that went over the connection in both directions.
    pub wire_bytes: u64,
    /// Milliseconds from its beginning to its last byte.
    pub took_ms: u64,
    /// Files found damaged or edited that were repaired, since the start of the process.
    pub repaired_files: u64,
    /// Bytes of them that were replaced.
    pub repaired_bytes: u64,
    /// Their names, the newest last.
    pub repaired: Vec<String>,
}

/// Most names kept in a report.
const NAMES: usize = 16;

/// Whether the directory is to be made equal, rather than filled.
/// # Errors
/// When the directory can't be looked at.
pub fn is_due(context: &FillContext) -> Result<bool> {
    let control = context.state.set_up()?;
    Ok(match control.fill {
        FillState::Resyncing { .. } => true,
        FillState::Copying { .. } => false,
        FillState::None => context.order.as_ref().is_some_and(|o| o.adopt) && holds_something(&context.root)?,
        FillState::Filled { .. } | FillState::Done => context.order.is_some(),
    })
}

fn holds_something(root: &Root) -> Result<bool> {
    let mut any = false;
    let fd = root.open_dir(b"").map_err(|e| Error::io("open directory", root.path(), e))?;
    sys::list_dir(&fd, |name, _, _| any |= name.to_bytes() != STAGE_DIR)
        .map_err(|e| Error::io("list", root.path(), e))?;
    Ok(any)
}

/// A resync that has begun, with all that is known.
pub(super) struct Begun {
    catalog: Catalog,
    base: Base,
    scanned: Scanned,
    plan: Plan,
    todo: Vec<(FileId, Holds)>,
    kept: Vec<Finished>,
    journal: Journal,
    log: LogFate,
}

/// What is left of one that was broken off.
pub(super) struct Left {
    catalog: Catalog,
    journal: Journal,
    done: HashMap<FileId, Finished>,
}

/// One connection, to the end of the resync.
pub(super) async fn attempt(context: &Arc<FillContext>, target: Target<'_>, token: Token) -> Ended<()> {
    let standing = Arc::clone(context);
    let (mut hello, left) = local(&token, move || stand(&standing)).await?;
    if matches!(hello.want, Want::Stream) {
        return Ok(());
    }
    let system = hello.system;
    hello.wants = target.wants;
    let traffic = Arc::new(Traffic::default());
    let trust = context.status.trust();
    let met = net::meet(target.address, trust, context.peer_timeout, &traffic, hello).await?;
    let Met { reader, writer, welcome, mut bond } = met;
    context.status.welcomed(&welcome, target.wants)?;
    context.status.showed(bond.fingerprint());
    if system != SystemId::NONE && welcome.system != system {
        let reason = format!("the upstream serves system {}, this node holds {system}", welcome.system);
        return Err(End::Refused(Code::WrongSystem, reason));
    }
    let name = welcome.name.clone();
    let talk = Talk { context, welcome, address: target.address, traffic: &traffic, token };
    tokio::select! {
        done = talk.carry_on(reader, writer, left) => done,
        end = Met::revoked(&mut bond, &name) => Err(end),
    }
}

/// A connection that may be used.
struct Talk<'a> {
    context: &'a Arc<FillContext>,
    welcome: Welcome,
    address: &'a str,
    traffic: &'a Traffic,
    token: Token,
}

impl Talk<'_> {
    /// What is to be done, when the upstream agrees.
    async fn agree<R, W>(
        &self,
        reader: &mut MessageReader<R>,
        writer: &mut MessageWriter<W>,
        left: Option<Left>,
    ) -> Ended<Begun>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        let (here, half) = (Arc::clone(self.context), self.context.peer_timeout / 2);
        match (&self.welcome.decision, left) {
            (Decision::Refuse { code: Code::Diverged, reason }, Some(_)) => {
                // The upstream is not what it was; its tree is asked for anew.
                local(&self.token, move || forget(&here.state)).await?;
                Err(End::Refused(Code::Failed, reason.clone()))
            }
            (Decision::Refuse { code, reason }, _) => Err(End::Refused(*code, reason.clone())),
            (Decision::Resync { reason }, _) => Err(End::Refused(Code::Resync, reason.clone())),
            (Decision::ResumeFill, Some(left)) => {
                alive(writer, half, local(&self.token, move || go_on(&here, left))).await
            }
            (Decision::Fill, _) => {
                let received = receive(reader, self.context).await?;
                let (of, timeline) = (self.welcome.system, self.welcome.timeline);
                let from = self.address.to_owned();
                let history = way_of(&self.welcome)?;
                let work = move || begin(&here, received, (of, timeline, Some(&history)), &from);
                alive(writer, half, local(&self.token, work)).await
            }
            _ => {
                let text = "the upstream decided on something that was not asked for";
                Err(End::Lost(Error::new(ErrorKind::Corrupt, text)))
            }
        }
    }

    /// From the welcome to the end.
    async fn carry_on<R, W>(
        self,
        mut reader: MessageReader<R>,
        mut writer: MessageWriter<W>,
        left: Option<Left>,
    ) -> Ended<()>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        let began = Instant::now();
        let begun = self.agree(&mut reader, &mut writer, left).await?;
        let Self { context, welcome, traffic, token, .. } = self;
        let broke = context.status.status().attempts > 0;
        context.status.connected(&welcome.name, UpstreamState::Filling);
        let pace = if broke { BATCH_CAREFUL } else { BATCH_BYTES };
        let (here, whole, removed) =
            (Arc::clone(context), welcome.version < VERSION_SLOTS, begun.plan.removed);
        let shaping = local(&token, move || shape(&here, begun, whole, pace));
        let (job, todo) = alive(&mut writer, context.peer_timeout / 2, shaping).await?;
        let tally = job.work.resync.as_ref().map(|r| Arc::clone(&r.tally)).unwrap_or_default();
        let (job, ranges) = start(job, todo, context, &token);
        let hearing = hear(&mut reader, &context.status, job.lanes.clone());
        let asking = ask(&mut writer, context, traffic, job, ranges);
        let (end, catalog) = tokio::try_join!(hearing, asking)?;
        {
            let mut report = context.report.lock().unwrap_or_else(PoisonError::into_inner);
            let (sent, got) = traffic.bytes();
            (report.wire_bytes, report.removed) = (sent + got, removed);
            report.took_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
            report.add(&catalog, &tally);
        }
        let closing = Arc::clone(context);
        local(&token, move || close(&closing, &catalog, end)).await
    }
}

/// Finds out what to ask for. [`Want::Stream`]: it is complete already.
fn stand(context: &FillContext) -> Result<(Hello, Option<Left>)> {
    let control = context.state.set_up()?;
    let mut hello = hello_of(context, &control);
    hello.system = control.system;
    let left = match control.fill {
        FillState::Resyncing { start, .. } => left(&context.state, &control, start),
        FillState::Filled { .. } | FillState::Done if context.order.is_none() => {
            hello.want = Want::Stream;
            None
        }
        _ => None,
    };
    if let Some(left) = &left {
        hello.want = Want::ResumeFill(left.catalog.lsn());
    }
    Ok((hello, left))
}

/// What was broken off, if all of it is there. Whatever is not is asked for anew.
pub(super) fn left(state: &StateDir, control: &Control, start: Lsn) -> Option<Left> {
    let load = || {
        let path = state.fill().join(SNAPSHOT);
        let file = File::open(&path).map_err(|e| Error::io("open", &path, e))?;
        let mut catalog = checkpoint::decode(BufReader::new(file))?;
        catalog.forget_locals();
        if catalog.lsn() != start {
            return Err(Error::new(ErrorKind::Missing, "the snapshot of the resync is another one"));
        }
        let (journal, done) = Journal::open(&state.fill(), control.system, start)?;
        Ok(Left { catalog, journal, done })
    };
    load().inspect_err(|e| tracing::warn!("the resync begins anew: {e}")).ok()
}

fn forget(state: &StateDir) -> Result<()> {
    state.change(|c| {
        if let FillState::Resyncing { start, .. } = &mut c.fill {
            *start = Lsn::ZERO;
        }
    })
}

/// Compares what is here with the tree. Nothing is touched.
fn look(context: &FillContext, catalog: &Catalog, base: &Base) -> Result<(Scanned, Plan)> {
    let excluded = catalog.excludes().matcher()?;
    let scanned = scan(&context.root, &excluded, &|stat| base.known(stat))?;
    let plan = plan(catalog, &scanned.local, STAGE_DIR);
    Ok((scanned, plan))
}

pub(super) fn go_on(context: &FillContext, left: Left) -> Result<Begun> {
    let Left { catalog, journal, done } = left;
    let mut base = Base::of_names(&context.state, &context.root)?;
    base.done = done;
    let (scanned, plan) = look(context, &catalog, &base)?;
    let (todo, kept) = sort(&catalog, &base, &plan, &scanned.stats)?;
    let log = match context.state.set_up()?.fill {
        FillState::Resyncing { log, .. } => log,
        _ => LogFate::Kept,
    };
    Ok(Begun { catalog, base, scanned, plan, todo, kept, journal, log })
}

/// Takes the snapshot, decides, and makes the beginning durable.
pub(super) fn begin(
    context: &FillContext,
    mut received: Received,
    (system, timeline, history): (SystemId, TimelineId, Option<&History>),
    from: &str,
) -> Result<Begun> {
    let catalog = received.decode(system)?;
    let control = context.state.set_up()?;
    let begun_before = match control.fill {
        FillState::Resyncing { log, .. } => Some(log),
        _ => None,
    };
    let base = match begun_before {
        None => Base::load(&context.state, &context.root)?,
        Some(_) => Base::of_names(&context.state, &context.root)?,
    };
    let (scanned, plan) = look(context, &catalog, &base)?;
    let order = context.order.as_ref().filter(|_| begun_before.is_none());
    if let Some(order) = order {
        admit(context, order, &plan, from)?;
    }
    let (todo, kept) = sort(&catalog, &base, &plan, &scanned.stats)?;
    let mut log = begun_before.or(order.map(|o| o.log)).unwrap_or(LogFate::Kept);
    if let Some(history) = history {
        if begun_before.is_none() && log == LogFate::Aside {
            // From here on it is in the bundle.
            aside::keep(&context.state, history, (&context.name, context.status.node()), from)?;
            log = LogFate::Removed;
        }
        context.state.keep_history(history)?;
    }
    let (dir, start) = (context.state.fill(), catalog.lsn());
    received.commit()?;
    Journal::create(&dir, system, start)?;
    let (mut journal, _) = Journal::open(&dir, system, start)?;
    journal.add(&kept)?;
    failpoint::pass("resync::begin").map_err(|e| Error::io("write", &dir, e))?;
    context.state.change(|c| {
        (c.system, c.timeline) = (system, timeline);
        c.fill = FillState::Resyncing { start, log };
    })?;
    tracing::warn!(
        "resync from {start}: of {} names here {} go; {} of {} files are equal by what is known of them; until it is done this \
         directory is not usable",
        plan.names,
        plan.removed,
        kept.len(),
        kept.len() + todo.len()
    );
    Ok(Begun { catalog, base, scanned, plan, todo, kept, journal, log })
}

/// Whether the plan may be carried out.
///
/// # Errors
/// [`ErrorKind::Held`] when it would remove too much, [`ErrorKind::Refused`] when it would remove what is excluded.
fn admit(context: &FillContext, order: &Order, plan: &Plan, from: &str) -> Result<()> {
    let shown = context.root.path().display();
    if let Some((percent, floor)) = order.guard
        && plan.names >= floor
        && plan.removed.saturating_mul(100) > plan.names.saturating_mul(u64::from(percent))
    {
        let text = format!(
            "making '{shown}' equal to {from} would remove {} of the {} names in it, more than {percent} %: is that the right \
             directory, and does the leader hold what it should? `towline confirm` on this node lets it go through; \
             nothing was touched",
            plan.removed, plan.names
        );
        return Err(Error::new(ErrorKind::Held, text));
    }
    if let Some(path) = plan.entangled.first().filter(|_| !order.tangled) {
        let text = format!(
            "'{}' is not in the leader's tree, but holds something that is excluded or mounted there: move that away, or \
             set local_edits = \"overwrite\" to let what is excluded go; nothing was touched",
            context.root.join(path).display()
        );
        return Err(Error::new(ErrorKind::Refused, text));
    }
    if order.adopt {
        tracing::warn!(
            "'{shown}' is adopted: of {} names {} are not the leader's and go",
            plan.names,
            plan.removed
        );
    }
    Ok(())
}

/// Disposes of the log, makes the names right, and gets everything ready for contents.
pub(super) fn shape(
    context: &FillContext,
    begun: Begun,
    whole: bool,
    pace: u64,
) -> Result<(Job, Vec<(FileId, Holds)>)> {
    let Begun { catalog, base, scanned, plan, todo, kept, journal, log } = begun;
    dispose(&context.state, log)?;
    let mut skipped = Skipped::default();
    Shape { root: &context.root, catalog: &catalog }.carry_out(&plan, &scanned, &mut skipped)?;
    let size = |id: FileId| catalog.get(id).map_or(0, |i| i.size);
    let files = catalog.inodes().filter(|i| i.kind == Kind::File && i.size > 0);
    let (files_total, bytes_total) = files.fold((0, 0), |(n, b), i| (n + 1, b + i.size));
    let here: Vec<u64> = kept.iter().map(|f| size(f.id)).filter(|s| *s > 0).collect();
    let total = FillProgress { files: here.len() as u64, files_total, bytes: here.iter().sum(), bytes_total };
    let blocks = base.blocks.clone();
    let damaged = context.order.iter().flat_map(|o| o.damaged.iter().copied());
    let doubted = apply::doubtful(context.state.path()).unwrap_or_default();
    // What was edited meanwhile nobody had noted: it is to be named all the same.
    let edited =
        todo.iter().map(|(id, _)| *id).filter(|id| catalog.get(*id).is_some_and(|want| base.had(&want)));
    let tally = Tally { damaged: damaged.chain(doubted).chain(edited).collect(), ..Tally::default() };
    let work = Work {
        root: Arc::clone(&context.root),
        catalog: Arc::new(catalog),
        blocks,
        files: AtomicU64::new(total.files),
        bytes: AtomicU64::new(total.bytes),
        skipped: Mutex::new(skipped),
        changing: Mutex::default(),
        resync: Some(Resync::new(base, whole, pace, Arc::new(tally))),
        sums: None,
        donor: None,
    };
    let done = kept.into_iter().map(|f| (f.id, f)).collect();
    Ok((Job { work: Arc::new(work), dirs: Vec::new(), done, journal, total }, todo))
}

/// Does with the log what was decided, once.
fn dispose(state: &StateDir, log: LogFate) -> Result<()> {
    let dir = state.log();
    failpoint::pass("resync::log").map_err(|e| Error::io("dispose of", &dir, e))?;
    let list = || -> Result<Vec<std::path::PathBuf>> {
        let failed = |e| Error::io("list", &dir, e);
        fs::read_dir(&dir).map_err(failed)?.map(|e| e.map(|e| e.path()).map_err(failed)).collect()
    };
    match log {
        LogFate::Kept => return Ok(()),
        LogFate::Removed => {
            for path in list()? {
                disk::remove_durable(&path)?;
            }
        }
        LogFate::Aside if !list()?.is_empty() => aside::move_all(state)?,
        LogFate::Aside => {}
    }
    state.change(|c| {
        if let FillState::Resyncing { log, .. } = &mut c.fill {
            *log = LogFate::Kept;
        }
    })?;
    state.settle()
}

/// Starts the threads that write, keep the journal, and compare.
pub(super) fn start(
    job: Job,
    todo: Vec<(FileId, Holds)>,
    context: &FillContext,
    token: &Token,
) -> (Running, mpsc::Receiver<Result<Range>>) {
    let (running, notes) = job.start(context, token.clone());
    let (ranges, found) = mpsc::channel(FOUND);
    let out = Outlets { notes, ranges };
    let (todo, next) = (Arc::new(todo), Arc::new(AtomicUsize::new(0)));
    for _ in 0..READERS {
        let (work, todo, next) = (Arc::clone(&running.work), Arc::clone(&todo), Arc::clone(&next));
        let (out, token) = (out.clone(), token.clone());
        tokio::task::spawn_blocking(move || {
            let _token = token;
            compare(&work, &todo, &next, &out);
        });
    }
    (running, found)
}

/// Collects ranges into requests.
#[derive(Default)]
struct Gathered {
    ranges: Vec<Range>,
    stored: usize,
    content: u64,
}

impl Gathered {
    /// Adds a range; what does not fit any more comes back.
    fn add(&mut self, range: Range, limit: u64) -> Option<Range> {
        let blocks = u64::from(range.blocks);
        let expected = match &range.hashes {
            Some(_) => (blocks / DIFFERS).max(blocks.min(4)) * BLOCK,
            None => blocks * BLOCK,
        };
        let full = self.ranges.len() >= RANGES_MAX.min(BATCH_IDS)
            || self.stored + range.stored_len() > RANGES_BYTES
            || self.content + expected > limit;
        if full && !self.ranges.is_empty() {
            return Some(range);
        }
        self.stored += range.stored_len();
        self.content += expected;
        self.ranges.push(range);
        None
    }

    fn request(self, batch: u32, starved: u8, whole: bool) -> Message {
        if whole {
            return Message::FillRequest { batch, starved, ids: self.ranges.iter().map(|r| r.id).collect() };
        }
        Message::RangeRequest { batch, starved, ranges: self.ranges }
    }
}

/// Asks for what the comparing threads find, until there is no more. Shows signs of life all the while.
async fn ask<W: AsyncWrite + Unpin>(
    writer: &mut MessageWriter<W>,
    context: &Arc<FillContext>,
    traffic: &Traffic,
    mut job: Running,
    mut ranges: mpsc::Receiver<Result<Range>>,
) -> Ended<Catalog> {
    let half = context.peer_timeout / 2;
    let (mut next, mut outstanding, mut open) = (0_u32, 0_usize, true);
    let (mut waiting, mut hunger) = (None::<Range>, Hunger::new(traffic));
    let mut due = Instant::now() + half;
    let whole = job.work.resync.as_ref().is_some_and(|r| r.whole);
    loop {
        context.status.update(|s| s.fill = Some(job.progress()));
        if outstanding < OUTSTANDING
            && let Some(first) = waiting.take()
        {
            let pace = job.work.resync.as_ref().map_or(BATCH_BYTES, |r| r.pace.load(Ordering::Relaxed));
            let mut gathered = Gathered::default();
            waiting = gathered.add(first, pace);
            while waiting.is_none()
                && let Ok(more) = ranges.try_recv()
            {
                waiting = gathered.add(more.map_err(End::Local)?, pace);
            }
            if let Some(resync) = &job.work.resync {
                resync.pace.store((pace * 2).min(BATCH_BYTES), Ordering::Relaxed);
            }
            writer.send(&gathered.request(next, hunger.since_last(traffic), whole)).await?;
            next = next.wrapping_add(1);
            outstanding += 1;
            continue;
        }
        if !open && waiting.is_none() && outstanding == 0 {
            break;
        }
        tokio::select! {
            range = ranges.recv(), if open && waiting.is_none() => match range {
                Some(Ok(range)) => waiting = Some(range),
                Some(Err(e)) if e.kind() == ErrorKind::Cancelled => return Err(job.journal_error().await),
                Some(Err(e)) => return Err(End::Local(e)),
                None => open = false,
            },
            done = job.batches.recv() => match done {
                Some(Ok(_)) => outstanding = outstanding.saturating_sub(1),
                Some(Err(e)) if e.kind() == ErrorKind::Corrupt => return Err(End::Lost(e)),
                Some(Err(e)) if e.kind() == ErrorKind::Cancelled => return Err(job.journal_error().await),
                Some(Err(e)) => return Err(End::Local(e)),
                None => return Err(job.journal_error().await),
            },
            () = tokio::time::sleep_until(due) => {
                writer.send(&Message::Ack(Ack::default())).await?;
                due = Instant::now() + half;
            }
        }
    }
    drop(ranges);
    writer.send(&Message::FillDone).await?;
    alive(writer, half, finish(job)).await
}

impl Report {
    /// Takes over what was counted.
    fn add(&mut self, catalog: &Catalog, tally: &Tally) {
        let count = |n: &AtomicU64| n.load(Ordering::Relaxed);
        (self.received_bytes, self.zeroed_bytes) = (count(&tally.moved), count(&tally.punched));
        (self.read_bytes, self.differing) = (count(&tally.read), count(&tally.differing));
        for (id, bytes) in tally.repaired.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            let path = catalog.path(id).unwrap_or_default().escape_ascii().to_string();
            tracing::warn!("'{path}' was not what was applied: repaired, {bytes} bytes of it");
            self.repaired_files += 1;
            self.repaired_bytes += bytes;
            self.repaired.push(path);
        }
        let old = self.repaired.len().saturating_sub(NAMES);
        self.repaired.drain(..old);
    }
}

/// Notes in the report what was moved.
pub(super) fn count(context: &FillContext, catalog: &Catalog, tally: &Tally) {
    context.report.lock().unwrap_or_else(PoisonError::into_inner).add(catalog, tally);
}

/// Makes it count.
pub(super) fn close(context: &FillContext, catalog: &Catalog, end: Lsn) -> Result<()> {
    let start = catalog.lsn();
    checkpoint::prepare_catalog(&context.state.catalog(), catalog)?.finish()?;
    checkpoint::keep_newest(&context.state.catalog())?;
    apply::acquit(context.state.path())?;
    let dir = context.state.fill();
    failpoint::pass("resync::end").map_err(|e| Error::io("complete", &dir, e))?;
    context.state.change(|c| c.fill = FillState::Filled { start, end })?;
    target::empty(&dir)?;
    let mut report = context.report.lock().unwrap_or_else(PoisonError::into_inner);
    report.completed += 1;
    tracing::info!(
        "resync complete: {} inodes; {} files differed, {} bytes of them were received, {} made zero, {} read here; {} bytes \
         went over the line in {} ms; usable once replayed from {start} to {end}",
        catalog.len(),
        report.differing,
        report.received_bytes,
        report.zeroed_bytes,
        report.read_bytes,
        report.wire_bytes,
        report.took_ms
    );
    Ok(())
}
