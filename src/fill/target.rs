//! The receiving side of a first copy.
//!
//! What is durable, in this order: the snapshot; the control file's "copying"; entries in the data directory;
//! finished files in the journal; the checkpoint of the whole; the control file's "filled". So every entry
//! in the directory is known by the snapshot, whenever a copy breaks off.

use std::collections::{HashMap, VecDeque};
use std::fs::{self, File};
use std::io::{BufReader, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::journal::{Finished, Journal};
use super::resync::{self, Order, Report};
use super::shape::Shape;
use super::sums::Sums;
use super::take::way_of;
use super::tree::{Skipped, Tree, foreign};
use super::write::{Done, Note, Work, Writer, keep_journal};
use crate::blocks::Blocks;
use crate::catalog::Catalog;
use crate::checkpoint;
use crate::disk::{self, AtomicFile};
use crate::error::{Error, ErrorKind, Result};
use crate::failpoint;
use crate::history::LineId;
use crate::net::{
    self, End, Ended, FillProgress, MessageReader, MessageWriter, Met, Retry, Sources, Target, Traffic,
    Upstream, UpstreamState,
};
use crate::position::{FileId, Lsn, SegmentNo, SystemId, TimelineId};
use crate::record::Kind;
use crate::state::{Control, FillState, StateDir};
use crate::sys::{self, Root};
use crate::wire::{
    Ack, BATCH_IDS, Code, Decision, Hello, Message, Purpose, RoleWanted, SHA256_EMPTY, Want, Welcome,
};

/// Threads that write contents.
pub(super) const WRITERS: usize = 2;
/// Messages received but not yet written, for each of them.
const MESSAGES: usize = 16;
/// Batches asked for but not yet written.
pub(super) const OUTSTANDING: usize = 3;
/// Content expected of one batch, unless a single file is larger.
pub(super) const BATCH_BYTES: u64 = 8 << 20;
/// Content expected of the first batch after a break; it doubles from batch to batch. A line that damages what passes
/// over it once in a while then still lets whole batches through.
pub(super) const BATCH_CAREFUL: u64 = 64 << 10;
/// Finished files on their way to the journal.
const NOTES: usize = 4096;
/// File name of the snapshot in the directory of the fill.
pub(super) const SNAPSHOT: &str = "snapshot";

/// What a first copy needs.
pub struct FillContext {
    /// What the copy is for.
    pub purpose: Purpose,
    /// The nodes to copy from, in turn.
    pub sources: Sources,
    /// This node's name.
    pub name: String,
    /// The data directory: empty, or holding an unfinished copy.
    pub root: Arc<Root>,
    /// The state directory, set up as a follower's.
    pub state: Arc<StateDir>,
    /// An upstream that sends nothing for this long is given up.
    pub peer_timeout: Duration,
    /// Where the state of all this is shown.
    pub status: Arc<Upstream>,
    /// How the directory is made equal if it is not empty, or a first copy is not what is wanted.
    pub order: Option<Order>,
    /// What came of that.
    pub report: Arc<Mutex<Report>>,
    /// Where the sums of what is written go, if somebody wants them. A copy that is taken up again has those of its last
    /// attempt only.
    pub sums: Option<Arc<Sums>>,
}

/// Copies until the control file says "filled" (or beyond), or it is cancelled.
///
/// # Errors
/// `Refused` when the data directory holds anything else, and this node's own disk errors. Everything
/// about the peer is tried again, with pauses, for ever.
pub async fn run(context: impl Into<Arc<FillContext>>, cancel: CancellationToken) -> Result<()> {
    let context: Arc<FillContext> = context.into();
    let files = || context.status.status().fill.map_or(0, |p| p.files);
    let mut retry = Retry::new(&context.sources, &context.status, &cancel);
    loop {
        let target = retry.begin(files());
        // Whatever works for an attempt holds a token: the next one, or the end, waits for all of them.
        let (token, mut ended) = mpsc::channel::<()>(1);
        let result = tokio::select! {
            () = cancel.cancelled() => Ok(()),
            result = attempt_either(&context, target, token) => result,
        };
        ended.recv().await;
        let Err(end) = result else { return Ok(()) };
        if !retry.pause(end, files()).await? {
            return Ok(());
        }
    }
}

/// An unfinished copy as it lies on disk.
pub(super) struct Begun {
    catalog: Catalog,
    done: HashMap<FileId, Finished>,
    journal: Journal,
}

/// Held by every thread of an attempt.
pub(super) type Token = mpsc::Sender<()>;

pub(super) async fn local<T: Send + 'static>(
    token: &Token,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Ended<T> {
    let token = token.clone();
    let working = move || {
        let _token = token;
        work()
    };
    let joined = tokio::task::spawn_blocking(working).await;
    let result = joined.unwrap_or_else(|e| Err(Error::new(ErrorKind::Io, e.to_string())));
    result.map_err(End::Local)
}

async fn attempt_either(context: &Arc<FillContext>, target: Target<'_>, token: Token) -> Ended<()> {
    let looking = Arc::clone(context);
    if local(&token, move || resync::is_due(&looking)).await? {
        return resync::attempt(context, target, token).await;
    }
    attempt(context, target, token).await
}

/// One connection, to the end of the copy.
async fn attempt(context: &Arc<FillContext>, target: Target<'_>, token: Token) -> Ended<()> {
    let standing = Arc::clone(context);
    let (mut hello, begun) = local(&token, move || stand(&standing)).await?;
    if matches!(hello.want, Want::Stream) {
        return Ok(());
    }
    hello.wants = target.wants;
    let traffic = context.status.traffic();
    let trust = context.status.trust();
    let met = net::meet(target.address, trust, context.peer_timeout, &traffic, hello).await?;
    let Met { mut reader, writer, welcome, mut bond } = met;
    context.status.welcomed(&welcome, target.wants)?;
    let begun = match (&welcome.decision, begun) {
        (Decision::Refuse { code, reason }, _) => return Err(End::Refused(*code, reason.clone())),
        (Decision::Resync { reason }, _) => return Err(End::Refused(Code::Resync, reason.clone())),
        (Decision::ResumeFill, Some(begun)) => begun,
        (Decision::Fill, begun) => {
            let clearing = Arc::clone(context);
            local(&token, move || clear(&clearing, begun)).await?;
            receive_snapshot(&mut reader, context, &welcome, &token).await?
        }
        _ => {
            let text = "the upstream decided on something that was not asked for";
            return Err(End::Lost(Error::new(ErrorKind::Corrupt, text)));
        }
    };
    let broke = context.status.status().attempts > 0;
    context.status.connected(&welcome.name, UpstreamState::Filling);
    let pace = if broke { BATCH_CAREFUL } else { BATCH_BYTES };
    context.status.showed(bond.fingerprint());
    tokio::select! {
        copied = copy((reader, writer), context, begun, &traffic, token, pace) => copied,
        end = Met::revoked(&mut bond, &welcome.name) => Err(end),
    }
}

/// The hello of a node that wants it all and says nothing of what it has.
pub(super) fn hello_of(context: &FillContext, control: &Control) -> Hello {
    let (timeline, line) = context.state.line().unwrap_or((control.timeline, LineId::default()));
    Hello {
        versions: context.purpose.versions(),
        system: SystemId::NONE,
        timeline,
        flush: Lsn::ZERO,
        segment: SegmentNo(0),
        offset: 0,
        prefix: SHA256_EMPTY,
        want: Want::Fill,
        name: context.name.clone(),
        node: context.status.node(),
        wants: RoleWanted::Any,
        purpose: context.purpose,
        line,
        history: None,
    }
}

/// Finds out what is there, and what to ask for. [`Want::Stream`]: the copy is complete already.
fn stand(context: &FillContext) -> Result<(Hello, Option<Begun>)> {
    let control = context.state.set_up()?;
    let mut hello = hello_of(context, &control);
    match control.fill {
        FillState::None => {
            // What is there already is looked at when the snapshot says what is excluded.
            Ok((hello, None))
        }
        FillState::Copying { start } => {
            (hello.system, hello.want) = (control.system, Want::ResumeFill(start));
            Ok((hello, Some(take_up(context, control.system, start)?)))
        }
        FillState::Resyncing { .. } | FillState::Filled { .. } | FillState::Done => {
            hello.want = Want::Stream;
            Ok((hello, None))
        }
    }
}

/// A copy that was begun, as it lies there.
pub(super) fn take_up(context: &FillContext, system: SystemId, start: Lsn) -> Result<Begun> {
    let path = context.state.fill().join(SNAPSHOT);
    let file = File::open(&path).map_err(|e| Error::io("open", &path, e))?;
    let mut catalog = checkpoint::decode(BufReader::new(file))?;
    catalog.forget_locals();
    let (journal, mut done) = Journal::open(&context.state.fill(), system, start)?;
    Tree { root: &context.root, catalog: &catalog }.take_over(&mut done)?;
    Ok(Begun { catalog, done, journal })
}

/// A directory that holds anything but what the leader excludes belongs to somebody else.
fn refuse_foreign(root: &Root, catalog: &Catalog) -> Result<()> {
    let excluded = catalog.excludes().matcher()?;
    let mut first = None;
    let fd = root.open_dir(b"").map_err(|e| Error::io("open directory", root.path(), e))?;
    sys::list_dir(&fd, |name, _, _| {
        if first.is_none() && !excluded.matches(name.to_bytes()) {
            first = Some(name.to_owned());
        }
    })
    .map_err(|e| Error::io("list", root.path(), e))?;
    first.map_or(Ok(()), |name| Err(foreign(&root.join(name.to_bytes()))))
}

/// Removes what is left of a copy that can't go on, so that a new one can begin.
fn clear(context: &FillContext, begun: Option<Begun>) -> Result<()> {
    if let Some(begun) = begun {
        tracing::warn!("the copy begun at {} can't go on and begins anew", begun.catalog.lsn());
        Tree { root: &context.root, catalog: &begun.catalog }.discard()?;
        context.state.change(|c| c.fill = FillState::None)?;
    }
    let blocks = context.state.blocks();
    match fs::remove_dir_all(&blocks) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", &blocks, e)),
        _ => disk::create_subdir_durable(&blocks),
    }
}

/// A snapshot that was received whole, but is not named yet.
pub(super) struct Received {
    file: AtomicFile,
    start: Lsn,
}

impl Received {
    /// What was written to `file` is a snapshot at `start`.
    pub(super) fn new(file: AtomicFile, start: Lsn) -> Self {
        Self { file, start }
    }

    /// Reads it.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] when it is not of the system and position that it should be of.
    pub(super) fn decode(&mut self, system: SystemId) -> Result<Catalog> {
        let name = self.file.aside().to_owned();
        let stored = File::open(&name).map_err(|e| Error::io("open", &name, e))?;
        self.file.flush().map_err(|e| Error::io("write", &name, e))?;
        let mut catalog = checkpoint::decode(BufReader::new(stored))?;
        catalog.forget_locals();
        if catalog.system() != system || catalog.lsn() != self.start {
            let text = "the snapshot is not of the system or position that the upstream said";
            return Err(Error::new(ErrorKind::Corrupt, text));
        }
        Ok(catalog)
    }

    /// Makes it durable under its name.
    pub(super) fn commit(self) -> Result<()> {
        self.file.commit()
    }
}

/// Takes the snapshot and makes it durable: from here on the copy can be resumed.
async fn receive_snapshot<R: AsyncRead + Unpin>(
    reader: &mut MessageReader<R>,
    context: &Arc<FillContext>,
    welcome: &Welcome,
    token: &Token,
) -> Ended<Begun> {
    let received = receive(reader, context).await?;
    let (context, system, timeline) = (Arc::clone(context), welcome.system, welcome.timeline);
    let history = way_of(welcome)?;
    local(token, move || {
        context.state.keep_history(&history)?;
        begin(&context, received, system, timeline)
    })
    .await
}

/// Makes a snapshot durable, and the beginning of the copy.
pub(super) fn begin(
    context: &FillContext,
    mut received: Received,
    system: SystemId,
    timeline: TimelineId,
) -> Result<Begun> {
    let catalog = received.decode(system)?;
    let start = received.start;
    refuse_foreign(&context.root, &catalog)?;
    received.commit()?;
    let dir = context.state.fill();
    Journal::create(&dir, system, start)?;
    failpoint::pass("fill::manifest").map_err(|e| Error::io("write", &dir, e))?;
    context.state.change(|c| {
        (c.system, c.timeline, c.fill) = (system, timeline, FillState::Copying { start });
    })?;
    let (journal, done) = Journal::open(&dir, system, start)?;
    Ok(Begun { catalog, done, journal })
}

/// Takes a snapshot.
pub(super) async fn receive<R: AsyncRead + Unpin>(
    reader: &mut MessageReader<R>,
    context: &FillContext,
) -> Ended<Received> {
    let mut file = AtomicFile::create(&context.state.fill(), SNAPSHOT).map_err(End::Local)?;
    let (mut hash, mut len) = (Sha256::new(), 0_u64);
    let damaged = |why: &str| End::Lost(Error::new(ErrorKind::Corrupt, format!("the snapshot {why}")));
    let start = loop {
        match reader.next().await? {
            Some(Message::SnapshotData { offset, bytes }) => {
                if offset != len {
                    return Err(damaged("has a gap"));
                }
                hash.update(&bytes[..]);
                len += bytes.len() as u64;
                let path = file.aside().to_owned();
                file.write_all(&bytes).map_err(|e| End::Local(Error::io("write", path, e)))?;
            }
            Some(Message::SnapshotEnd { lsn, len: all, sha256 }) => {
                if all != len || hash.finalize()[..] != sha256 {
                    return Err(damaged("does not match its SHA-256"));
                }
                break lsn;
            }
            Some(Message::Keepalive(k)) => context.status.keepalive(&k)?,
            Some(Message::Goodbye { code, reason }) => return Err(End::Refused(code, reason)),
            Some(other) => return Err(End::Lost(net::unexpected(&other))),
            None => return Err(End::Lost(lost())),
        }
    };
    Ok(Received { file, start })
}

pub(super) fn lost() -> Error {
    Error::new(ErrorKind::Unavailable, "the upstream closed the connection during the first copy")
}

/// Asks for contents, writes them, and completes the copy.
async fn copy<R, W>(
    (mut reader, mut writer): (MessageReader<R>, MessageWriter<W>),
    context: &Arc<FillContext>,
    begun: Begun,
    traffic: &Traffic,
    token: Token,
    pace: u64,
) -> Ended<()>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let making = Arc::clone(context);
    let (job, wanted) = local(&token, move || prepare(&making, begun)).await?;
    let (job, _) = job.start(context, token.clone());
    let hearing = hear(&mut reader, &context.status, job.lanes.clone());
    let (end, catalog) = tokio::try_join!(hearing, ask(&mut writer, context, traffic, job, (wanted, pace)))?;
    let closing = Arc::clone(context);
    local(&token, move || close(&closing, &catalog, end)).await
}

/// Everything that is known before the first content comes.
pub(super) struct Job {
    pub(super) work: Arc<Work>,
    pub(super) dirs: Vec<FileId>,
    pub(super) done: HashMap<FileId, Finished>,
    pub(super) journal: Journal,
    pub(super) total: FillProgress,
}

/// The threads under way.
pub(super) struct Running {
    pub(super) work: Arc<Work>,
    dirs: Vec<FileId>,
    done: HashMap<FileId, Finished>,
    total: FillProgress,
    pub(super) lanes: Vec<mpsc::Sender<Message>>,
    pub(super) batches: mpsc::Receiver<Done>,
    journal: tokio::task::JoinHandle<Result<Vec<Finished>>>,
    token: Token,
}

/// Makes the directories and lists the files to ask for.
pub(super) fn prepare(context: &FillContext, begun: Begun) -> Result<(Job, VecDeque<FileId>)> {
    let Begun { catalog, done, journal } = begun;
    let tree = Tree { root: &context.root, catalog: &catalog };
    let dirs = tree.dirs();
    tree.make_dirs(&dirs)?;
    let wanted = tree.wanted(&dirs, &done);
    let size = |id: &FileId| catalog.get(*id).map_or(0, |i| i.size);
    let files = catalog.inodes().filter(|i| i.kind == Kind::File && i.size > 0);
    let (files_total, bytes_total) = files.fold((0, 0), |(n, b), i| (n + 1, b + i.size));
    let bytes = done.keys().map(size).sum();
    let total = FillProgress { files: done.len() as u64, files_total, bytes, bytes_total };
    let blocks = Blocks::open(&context.state.blocks())?;
    // What an earlier attempt knew of files that it did not finish.
    wanted.iter().for_each(|&id| blocks.remove(id));
    let work = Work {
        root: Arc::clone(&context.root),
        catalog: Arc::new(catalog),
        blocks,
        files: AtomicU64::new(total.files),
        bytes: AtomicU64::new(total.bytes),
        skipped: Mutex::default(),
        changing: Mutex::default(),
        resync: None,
        donor: None,
        sums: context.sums.clone(),
    };
    let lsn = work.catalog.lsn();
    tracing::info!(
        "first copy from {lsn}: {} of {files_total} files, {bytes_total} bytes in all",
        wanted.len()
    );
    Ok((Job { work: Arc::new(work), dirs, done, journal, total }, wanted.into()))
}

impl Job {
    /// Starts the threads; what is finished elsewhere is noted through the second value.
    pub(super) fn start(
        self,
        context: &FillContext,
        token: Token,
    ) -> (Running, std::sync::mpsc::SyncSender<Note>) {
        let Self { work, dirs, done, journal, total } = self;
        context.status.update(|s| s.fill = Some(total));
        let (notes, noted) = std::sync::mpsc::sync_channel(NOTES);
        let (said, batches) = mpsc::channel(OUTSTANDING + WRITERS);
        let lanes = (0..WRITERS).map(|_| {
            let (lane, queue) = mpsc::channel(MESSAGES);
            let (work, notes, said, token) = (Arc::clone(&work), notes.clone(), said.clone(), token.clone());
            tokio::task::spawn_blocking(move || {
                let _token = token;
                Writer::run(work, notes, queue, &said);
            });
            lane
        });
        let lanes = lanes.collect();
        let (keeping, guard) = (Arc::clone(&work), token.clone());
        let journal = tokio::task::spawn_blocking(move || {
            let _token = guard;
            keep_journal(&keeping, &noted, journal)
        });
        (Running { work, dirs, done, total, lanes, batches, journal, token }, notes)
    }
}

/// Takes contents and hands them to the threads, until the sender says where the copy ends.
pub(super) async fn hear<R: AsyncRead + Unpin>(
    reader: &mut MessageReader<R>,
    status: &Upstream,
    lanes: Vec<mpsc::Sender<Message>>,
) -> Ended<Lsn> {
    let mut lanes = Some(lanes);
    loop {
        let message = match reader.next().await? {
            Some(message) => message,
            None => return Err(End::Lost(lost())),
        };
        let batch = match &message {
            Message::FillData { batch, .. } | Message::BatchEnd { batch } => *batch as usize,
            Message::Keepalive(k) => {
                status.keepalive(k)?;
                continue;
            }
            Message::FillEnd { end } => return Ok(*end),
            Message::Goodbye { code, reason } => return Err(End::Refused(*code, reason.clone())),
            other => return Err(End::Lost(net::unexpected(other))),
        };
        if let Some(open) = &lanes {
            if open[batch % open.len()].send(message).await.is_err() {
                // A thread has failed; it said so on its own way, which ends this loop.
                lanes = None;
            }
        }
    }
}

/// Asks for all that is wanted, at first so many bytes at once, then completes the tree. Shows signs of life all
/// the while.
async fn ask<W: AsyncWrite + Unpin>(
    writer: &mut MessageWriter<W>,
    context: &Arc<FillContext>,
    traffic: &Traffic,
    mut job: Running,
    (mut wanted, mut pace): (VecDeque<FileId>, u64),
) -> Ended<Catalog> {
    let half = context.peer_timeout / 2;
    let (mut next, mut outstanding) = (0_u32, 0_usize);
    let mut hunger = Hunger::new(traffic);
    let mut due = Instant::now() + half;
    loop {
        while outstanding < OUTSTANDING && !wanted.is_empty() {
            let ids = batch(&job.work.catalog, &mut wanted, pace);
            pace = (pace * 2).min(BATCH_BYTES);
            let starved = hunger.since_last(traffic);
            writer.send(&Message::FillRequest { batch: next, starved, ids }).await?;
            next = next.wrapping_add(1);
            outstanding += 1;
        }
        context.status.update(|s| s.fill = Some(job.progress()));
        if outstanding == 0 {
            break;
        }
        tokio::select! {
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
    writer.send(&Message::FillDone).await?;
    alive(writer, half, finish(job)).await
}

/// Awaits `work` and shows signs of life meanwhile.
pub(super) async fn alive<W: AsyncWrite + Unpin, T>(
    writer: &mut MessageWriter<W>,
    half: Duration,
    work: impl Future<Output = Ended<T>>,
) -> Ended<T> {
    let mut work = std::pin::pin!(work);
    loop {
        tokio::select! {
            finished = &mut work => return finished,
            () = tokio::time::sleep(half) => {
                // The sender may have said all it has to say and be gone; whether it has, the other loop knows.
                let _ = writer.send(&Message::Ack(Ack::default())).await;
            }
        }
    }
}

/// Whether the line is the narrow place, as seen from here: the sender can't tell a slow line from a slow disk.
pub(super) struct Hunger {
    at: Instant,
    waited: Duration,
}

impl Hunger {
    pub(super) fn new(traffic: &Traffic) -> Self {
        Self { at: Instant::now(), waited: traffic.waited() }
    }

    /// Percent of the time since the last call that was spent waiting for bytes.
    pub(super) fn since_last(&mut self, traffic: &Traffic) -> u8 {
        let (now, waited) = (Instant::now(), traffic.waited());
        let share = (waited - self.waited).as_secs_f64() / (now - self.at).as_secs_f64().max(1e-6);
        (self.at, self.waited) = (now, waited);
        (share.clamp(0.0, 1.0) * 100.0) as u8
    }
}

/// The next files to ask for together, `limit` bytes of content unless a single file is larger.
pub(super) fn batch(catalog: &Catalog, wanted: &mut VecDeque<FileId>, limit: u64) -> Vec<FileId> {
    let (mut ids, mut bytes) = (Vec::new(), 0_u64);
    while ids.len() < BATCH_IDS && bytes < limit {
        let Some(id) = wanted.pop_front() else { break };
        bytes += catalog.get(id).map_or(0, |i| i.size);
        ids.push(id);
    }
    ids
}

impl Running {
    pub(super) fn progress(&self) -> FillProgress {
        let files = self.work.files.load(Ordering::Relaxed);
        FillProgress { files, bytes: self.work.bytes.load(Ordering::Relaxed), ..self.total }
    }

    /// Why the journal's thread has ended early.
    pub(super) async fn journal_error(self) -> End {
        let Self { journal, lanes, batches, .. } = self;
        drop((lanes, batches));
        match journal.await {
            Ok(Err(e)) => End::Local(e),
            _ => End::Lost(Error::new(ErrorKind::Io, "a thread of the copy has ended without a word")),
        }
    }
}

/// All contents are written: ends the threads, makes the rest of the tree, fills in the catalog.
pub(super) async fn finish(job: Running) -> Ended<Catalog> {
    let Running { work, dirs, done, lanes, batches, journal, token, .. } = job;
    for lane in lanes {
        // The thread ends by this; one that has ended already needs no word.
        let _ = lane.send(Message::FillDone).await;
    }
    drop(batches);
    let noted = journal.await.unwrap_or_else(|e| Err(Error::new(ErrorKind::Io, e.to_string())));
    let noted = noted.map_err(End::Local)?;
    local(&token, move || {
        let mut skipped = *work.skipped.lock().unwrap_or_else(PoisonError::into_inner);
        let rest = match &work.resync {
            None => Tree { root: &work.root, catalog: &work.catalog }.make_rest(&dirs, &mut skipped)?,
            Some(resync) => {
                let changing = work.changing.lock().unwrap_or_else(PoisonError::into_inner);
                let whole = done.values().chain(&noted).chain(changing.iter()).map(|f| f.id).collect();
                let shape = Shape { root: &work.root, catalog: &work.catalog };
                shape.finish(&resync.base, &whole, &mut skipped)?
            }
        };
        if skipped != Skipped::default() {
            tracing::warn!(
                "without privilege: {} owners, {} devices and {} extended attributes are kept in the catalog only",
                skipped.owners,
                skipped.devices,
                skipped.xattrs
            );
        }
        let disk = work.root.open_dir(b"").map_err(|e| Error::io("open", work.root.path(), e))?;
        work.blocks.flush()?;
        rustix::fs::syncfs(&disk).map_err(|e| Error::io("sync", work.root.path(), e))?;
        work.blocks.sync_together()?;
        let changing = std::mem::take(&mut *work.changing.lock().unwrap_or_else(PoisonError::into_inner));
        let work = Arc::into_inner(work).ok_or_else(|| Error::new(ErrorKind::Io, "a thread of the copy goes on"))?;
        let mut catalog = Arc::unwrap_or_clone(work.catalog);
        let empty: Vec<FileId> =
            catalog.inodes().filter(|i| i.kind == Kind::File && i.size == 0).map(|i| i.id).collect();
        empty.into_iter().for_each(|id| catalog.set_content(id, 0, true));
        for file in done.into_values().chain(noted).chain(changing) {
            catalog.set_content(file.id, file.content, true);
            catalog.set_seen(file.id, Some(file.seen));
        }
        rest.into_iter().for_each(|(id, seen)| catalog.set_seen(id, Some(seen)));
        let point = if work.resync.is_some() { "resync::done" } else { "fill::done" };
        failpoint::pass(point).map_err(|e| Error::io("complete", work.root.path(), e))?;
        if work.resync.is_some() {
            work.blocks.acquit()?;
        }
        Ok(catalog)
    })
    .await
}

/// Makes the copy count.
pub(super) fn close(context: &FillContext, catalog: &Catalog, end: Lsn) -> Result<()> {
    let start = catalog.lsn();
    checkpoint::prepare_catalog(&context.state.catalog(), catalog)?.finish()?;
    let dir = context.state.fill();
    failpoint::pass("fill::end").map_err(|e| Error::io("complete", &dir, e))?;
    context.state.change(|c| c.fill = FillState::Filled { start, end })?;
    empty(&dir)?;
    tracing::info!(
        "first copy complete: {} inodes; usable once replayed from {start} to {end}",
        catalog.len()
    );
    Ok(())
}

/// Removes what a copy no longer needs.
pub(super) fn empty(dir: &std::path::Path) -> Result<()> {
    for entry in fs::read_dir(dir).map_err(|e| Error::io("list", dir, e))? {
        let path = entry.map_err(|e| Error::io("list", dir, e))?.path();
        fs::remove_file(&path).map_err(|e| Error::io("remove", &path, e))?;
    }
    Ok(())
}
