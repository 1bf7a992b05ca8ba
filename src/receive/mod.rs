//! Following a node: connect, prove a common past, take log, say how far it got. For ever, with pauses
//! after failures.
//!
//! Received bytes go to [`Log::append_stored`], which checks every frame before it writes; damaged
//! bytes end the connection and are asked for again. Three loops share a connection: one hears, one
//! appends (a thread, since the log blocks while the disk does), one acknowledges. A small piece on a quiet line is
//! written by the loop that heard it. This module does not
//! know what applies the log, only how far it is.

pub mod fetch;
mod scout;

pub use scout::{Look, Seen};

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::error::{Context, Error, ErrorKind, Result};
use crate::failpoint;
use crate::history::{Branch, History};
use crate::log::{Log, Tail};
use crate::net::{
    self, End, Ended, MessageReader, MessageWriter, Met, Retry, Sources, Target, Upstream, UpstreamState,
};
use crate::position::{Lsn, SegmentNo};
use crate::session::{self, Course};
use crate::slots::Slots;
use crate::wire::{
    ACK_APPLIES, ACK_HALTED, ACK_NEVER, ASKS_WRITE, Ack, Below, Body, Code, Decision, Hello, Message,
    Purpose, SHA256_EMPTY, VERSION_DELAY, VERSION_SLOTS, Want, Welcome,
};

/// Pieces of log (at most 1 MiB each) received but not yet handed to the log.
const PIECES: usize = 4;

/// How far a directory is: what the acknowledgements need to know of apply.
pub trait Progress: Copy + Send + Sync + 'static {
    /// Everything before this is visible.
    fn lsn(&self) -> Lsn;
    /// Time of the commit there, nanoseconds since 1970.
    fn time(&self) -> i64;
    /// How old a commit has to be before it is visible.
    fn delay(&self) -> Duration;
    /// Whether it goes on by itself. One that rests never confirms a change for a caller that waits for apply.
    fn moves(&self) -> bool;
    /// Whether it rests until somebody helps.
    fn halted(&self) -> bool {
        false
    }
}

/// What receiving works with.
pub struct ReceiveContext<P> {
    /// What the log is for.
    pub purpose: Purpose,
    /// The nodes to follow, in turn.
    pub sources: Sources,
    /// This node's name.
    pub name: String,
    /// The way of its log: the system it holds, its timeline, and those before it.
    pub history: History,
    /// Where log goes to.
    pub log: Log,
    /// Where an empty log begins: the commit of the snapshot the directory was filled from.
    pub start: Lsn,
    /// How far the directory is.
    pub applied: watch::Receiver<P>,
    /// This node never counts for synchronous replication.
    pub never_counts: bool,
    /// An upstream that sends nothing for this long is given up.
    pub peer_timeout: Duration,
    /// Where the state of all this is shown.
    pub status: Arc<Upstream>,
    /// Who follows this node, and whom they serve: the upstream is told.
    pub below: Arc<dyn Fn() -> Vec<Below> + Send + Sync>,
    /// Where the slots of the upstream are mirrored.
    pub slots: Arc<Slots>,
}

/// Follows until cancelled, or until the line that the log is on ends: then this is the way that goes on from there, and all
/// log up to the branch is durable, or past it.
///
/// # Errors
/// The own log's failure. Everything about the peer is tried again, with pauses, for ever.
pub async fn run<P: Progress>(
    context: ReceiveContext<P>,
    cancel: CancellationToken,
) -> Result<Option<History>> {
    let mut retry = Retry::new(&context.sources, &context.status, &cancel);
    loop {
        let target = retry.begin(context.log.tail().end.0);
        let end = match connection(&context, target, &cancel).await {
            Ok(next) => return Ok(next),
            Err(end) => end,
        };
        if !retry.pause(end, context.log.tail().end.0).await? {
            return Ok(None);
        }
    }
}

/// One connection, from its first byte to its end. `Ok`: it was cancelled, or this is the way to go on.
async fn connection<P: Progress>(
    context: &ReceiveContext<P>,
    target: Target<'_>,
    cancel: &CancellationToken,
) -> Ended<Option<History>> {
    let (met, branch) = tokio::select! {
        () = cancel.cancelled() => return Ok(None),
        opened = open(context, target) => match opened? {
            Opened::Follows(met, branch) => (met, branch),
            Opened::GoesOver(next) => return Ok(Some(next)),
        },
    };
    let Met { reader, writer, welcome, mut bond } = *met;
    let revoked = Met::revoked(&mut bond, &welcome.name);
    let end = branch.as_ref().map(|(b, _)| b.at);
    let leaves = async {
        tokio::select! {
            end = revoked => end,
            end = scout::scout(context, target.address) => end,
        }
    };
    let done = take((reader, writer), leaves, context, (welcome.version, end), cancel).await?;
    Ok(branch.map(|(_, next)| next).filter(|_| done && !cancel.is_cancelled()))
}

/// What a connection turned out to be good for.
enum Opened {
    /// Log comes; of a line that ends, up to this branch, from where that way goes on.
    Follows(Box<Met>, Option<(Branch, History)>),
    /// The line has ended already.
    GoesOver(History),
}

/// How the upstream's line and the own one go together; `None`: as ever.
fn course<P: Progress>(
    context: &ReceiveContext<P>,
    flush: Lsn,
    welcome: &Welcome,
) -> Ended<Option<(Course, History)>> {
    let own = &context.history;
    if welcome.system != own.system() || welcome.version == 0 {
        return Ok(None);
    }
    let Some(theirs) = &welcome.history else {
        let same = welcome.timeline == own.timeline();
        let reason = format!(
            "the upstream is on timeline {}, this node on {}, and the upstream's program is too old to say where they branched off; \
             update it",
            welcome.timeline,
            own.timeline()
        );
        return if same { Ok(None) } else { Err(End::Refused(Code::WrongTimeline, reason)) };
    };
    let newest = context.status.status().newest.filter(|h| own.leads_to(h));
    if let Some(newest) = newest.filter(|h| h.timeline() > welcome.timeline) {
        let reason = format!(
            "the upstream is on timeline {}, and another of the nodes to follow is on {}, a newer one",
            welcome.timeline,
            newest.timeline()
        );
        return Err(End::Refused(Code::WrongTimeline, reason));
    }
    let applied = context.applied.borrow().lsn();
    let course =
        session::course(own, flush, applied, theirs).map_err(|(code, why)| End::Refused(code, why))?;
    let branch = match &course {
        Course::Along => return Ok(None),
        Course::Over(branch) | Course::Back(branch) => branch,
    };
    if context.purpose == Purpose::Backup {
        let text = "the node that the backup is taken from was promoted, or follows another line, meanwhile: take the backup again";
        return Err(End::Local(Error::new(ErrorKind::Refused, text)));
    }
    let next = theirs.upto(branch.timeline).unwrap_or_else(|| theirs.clone());
    Ok(Some((course, next)))
}

/// Connects and agrees on where log comes from, and on a version.
async fn open<P: Progress>(context: &ReceiveContext<P>, target: Target<'_>) -> Ended<Opened> {
    let (hello, from) = hello(context, target).await?;
    let (flush, traffic) = (hello.flush, context.status.traffic());
    let trust = context.status.trust();
    let met = net::meet(target.address, trust, context.peer_timeout, &traffic, hello).await?;
    let welcome = &met.welcome;
    context.status.welcomed(welcome, target.wants)?;
    let refused =
        matches!(&welcome.decision, Decision::Refuse { code, .. } if !matches!(code, Code::Diverged));
    let course = if refused { None } else { course(context, flush, welcome)? };
    let branch = match course {
        Some((Course::Over(branch), next)) if flush < branch.at => Some((branch, next)),
        Some((_, next)) => return Ok(Opened::GoesOver(next)),
        None => None,
    };
    match welcome.decision.clone() {
        Decision::StreamFrom { segment, offset } if (segment, offset) == from => {}
        Decision::StreamFrom { segment, offset } => {
            let text = format!("the upstream would send from {segment:?} byte {offset}, not what was asked");
            return Err(End::Lost(Error::new(ErrorKind::Corrupt, text)));
        }
        Decision::Refuse { code, reason } => return Err(End::Refused(code, reason)),
        Decision::Resync { reason } => return Err(End::Refused(Code::Resync, reason)),
        Decision::Handover => {
            let text = "the upstream speaks of a handover that nobody asked it about";
            return Err(End::Lost(Error::new(ErrorKind::Corrupt, text)));
        }
        Decision::Fill | Decision::ResumeFill => {
            let reason = "the upstream would send a first copy, but this node holds data".to_owned();
            return Err(End::Refused(Code::Resync, reason));
        }
    }
    tracing::info!("streaming from '{}' at {} from {flush} on", welcome.name, target.address);
    context.status.connected(&welcome.name, UpstreamState::Streaming);
    context.status.showed(met.bond.fingerprint());
    Ok(Opened::Follows(Box::new(met), branch))
}

/// The loops of a connection that streams. True: the log has reached `end`, where its line ends.
async fn take<R, W, P>(
    (mut reader, mut writer): (MessageReader<R>, MessageWriter<W>),
    leaves: impl Future<Output = End>,
    context: &ReceiveContext<P>,
    (version, end): (u16, Option<Lsn>),
    cancel: &CancellationToken,
) -> Ended<bool>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
    P: Progress,
{
    let (pieces, queue) = mpsc::channel(PIECES);
    let (log, under_way) = (context.log.clone(), Arc::new(AtomicUsize::new(0)));
    let pieces = Pieces { queue: pieces, under_way: Arc::clone(&under_way), refused: OnceLock::new() };
    let mut appending = tokio::task::spawn_blocking(move || append(&log, queue, &under_way));
    let mut appended = None;
    let asks = watch::Sender::new(0);
    let asked = asks.subscribe();
    let result = tokio::select! {
        () = cancel.cancelled() => Ok(()),
        joined = &mut appending => {
            appended = Some(joined);
            Ok(())
        }
        heard = hear(&mut reader, context, &pieces, &asks) => heard,
        end = leaves => Err(end),
        () = reaches(&context.log, end) => Ok(()),
        acked = acknowledge(&mut writer, context, version, asked) => acked,
    };
    // What was received whole is still appended; the next hello then speaks of all of it.
    let Pieces { queue, refused, .. } = pieces;
    drop(queue);
    let joined = match appended {
        Some(joined) => joined,
        None => appending.await,
    };
    let appended = joined.map_err(|e| Error::new(ErrorKind::Io, e.to_string()))?;
    if let Some(e) = context.log.failure() {
        return Err(End::Local(e));
    }
    if let Some(e) = appended.err().or(refused.into_inner()) {
        writer.goodbye(Code::Protocol, &e.to_string()).await;
        return Err(End::Lost(e.wrap("received log was not taken")));
    }
    match &result {
        Ok(()) => writer.goodbye(Code::Shutdown, "the node stops").await,
        Err(End::Refused(code, reason)) => writer.goodbye(*code, reason).await,
        Err(_) => {}
    }
    result.map(|()| end.is_some_and(|end| context.log.tail().end >= end))
}

/// Waits until everything before `end` is durable; for ever if there is no end.
async fn reaches(log: &Log, end: Option<Lsn>) {
    let Some(end) = end else { return std::future::pending().await };
    let mut tail = log.subscribe();
    if tail.wait_for(|t| t.end >= end).await.is_err() {
        std::future::pending().await
    }
}

/// Received log on its way to the thread that appends it.
struct Pieces {
    queue: mpsc::Sender<(SegmentNo, u64, Body)>,
    /// Pieces that the thread has yet to append.
    under_way: Arc<AtomicUsize>,
    /// Why a piece was not taken here.
    refused: OnceLock<Error>,
}

impl Pieces {
    /// Takes a piece, by this task if it is small and nothing is before it. False: no more is taken, and who would have
    /// says why.
    async fn put(&self, log: &Log, (segment, offset, bytes): (SegmentNo, u64, Body)) -> bool {
        if self.under_way.load(Ordering::Acquire) == 0 {
            let here = log.append_stored_here(segment, offset, &bytes).and_then(|taken| {
                let passed = if taken { failpoint::pass("receive::after_write") } else { Ok(()) };
                passed.map(|()| taken).map_err(Error::from)
            });
            match here {
                Ok(true) => return true,
                Ok(false) => {}
                Err(e) => {
                    let _ = self.refused.set(e);
                    return false;
                }
            }
        }
        self.under_way.fetch_add(1, Ordering::AcqRel);
        self.queue.send((segment, offset, bytes)).await.is_ok()
    }
}

/// Hands received log to the log, in order. Ends with the queue or the first error.
fn append(
    log: &Log,
    mut queue: mpsc::Receiver<(SegmentNo, u64, Body)>,
    under_way: &AtomicUsize,
) -> Result<()> {
    while let Some((segment, offset, bytes)) = queue.blocking_recv() {
        log.append_stored(segment, offset, &bytes)?;
        failpoint::pass("receive::after_write")?;
        under_way.fetch_sub(1, Ordering::AcqRel);
    }
    Ok(())
}

async fn hear<R: AsyncRead + Unpin, P>(
    reader: &mut MessageReader<R>,
    context: &ReceiveContext<P>,
    pieces: &Pieces,
    asks: &watch::Sender<u8>,
) -> Ended<()> {
    loop {
        match reader.next().await? {
            Some(Message::Log { segment, offset, bytes }) => {
                context.status.heard();
                if !pieces.put(&context.log, (segment, offset, bytes)).await {
                    return Ok(());
                }
            }
            Some(Message::Keepalive(k)) => {
                asks.send_if_modified(|a| std::mem::replace(a, k.asks.unwrap_or(0)) != *a);
                context.status.keepalive(&k)?;
            }
            Some(Message::Slots(slots)) => {
                let upstream = context.status.status().name.unwrap_or_default();
                // An empty log ends nowhere yet.
                let end = context.log.tail().end.max(context.start);
                context.slots.mirror(&context.name, (&upstream, end), &slots);
            }
            Some(Message::Goodbye { code, reason }) => return Err(End::Refused(code, reason)),
            Some(other) => return Err(End::Lost(net::unexpected(&other))),
            None => {
                let text = "the upstream closed the connection";
                return Err(End::Lost(Error::new(ErrorKind::Unavailable, text)));
            }
        }
    }
}

/// Says where this node stands whenever that changes, and at least every half timeout. What is written but not yet
/// durable is told at once only where the upstream has asked for it.
async fn acknowledge<W, P>(
    writer: &mut MessageWriter<W>,
    context: &ReceiveContext<P>,
    version: u16,
    mut asked: watch::Receiver<u8>,
) -> Ended<()>
where
    W: AsyncWrite + Unpin,
    P: Progress,
{
    let mut tail_of = context.log.subscribe();
    let mut applied_of = context.applied.clone();
    let mut written_of = context.log.subscribe_written();
    let half = context.peer_timeout / 2;
    let mut last: Option<(Ack, Instant)> = None;
    let mut report = Report::default();
    loop {
        let tail = *tail_of.borrow_and_update();
        if let Some(e) = context.log.failure() {
            return Err(End::Local(e));
        }
        let write_too = *asked.borrow_and_update() & ASKS_WRITE != 0;
        let (apply, apply_time, bits, delay) = {
            let applied = *applied_of.borrow_and_update();
            let bits = if applied.moves() { ACK_APPLIES } else { 0 }
                | if applied.halted() { ACK_HALTED } else { 0 }
                | if context.never_counts { ACK_NEVER } else { 0 };
            (applied.lsn(), applied.time(), bits, applied.delay())
        };
        context.status.positions(tail.end, (tail.commit, tail.commit_time), apply);
        let flush = tail.end.max(context.start);
        let write = (*written_of.borrow_and_update()).max(flush);
        let flags = (version >= VERSION_SLOTS).then_some(bits);
        let delay = u64::try_from(delay.as_nanos()).unwrap_or(u64::MAX);
        let delay = (version >= VERSION_DELAY).then_some(delay);
        let ack = Ack { write, flush, apply, apply_time, flags, delay };
        if last.is_none_or(|(sent, at)| sent != ack || at.elapsed() >= half) {
            writer.send(&Message::Ack(ack)).await?;
            last = Some((ack, Instant::now()));
        }
        report.send(writer, context, half).await?;
        let due = last.map_or_else(Instant::now, |(_, at)| at + half).min(report.due(half));
        tokio::select! {
            changed = tail_of.changed() => changed.map_err(|_| closed("log"))?,
            changed = applied_of.changed() => changed.map_err(|_| closed("directory"))?,
            changed = written_of.changed(), if write_too => changed.map_err(|_| closed("log"))?,
            changed = asked.changed() => changed.map_err(|_| closed("connection"))?,
            () = tokio::time::sleep_until(due) => {}
        }
    }
}

/// What the upstream was told of those that follow this node.
#[derive(Default)]
struct Report {
    at: Option<Instant>,
    /// Somebody was named.
    named: bool,
}

impl Report {
    fn due(&self, half: Duration) -> Instant {
        self.at.map_or_else(Instant::now, |at| at + half)
    }

    /// Tells of them at the pace of keepalives, if there are any, and once when there are none any more.
    async fn send<W, P>(
        &mut self,
        writer: &mut MessageWriter<W>,
        context: &ReceiveContext<P>,
        half: Duration,
    ) -> Ended<()>
    where
        W: AsyncWrite + Unpin,
    {
        if self.due(half) > Instant::now() {
            return Ok(());
        }
        self.at = Some(Instant::now());
        if context.status.protocol() < VERSION_SLOTS {
            return Ok(());
        }
        let below = (context.below)();
        if !below.is_empty() || self.named {
            self.named = !below.is_empty();
            writer.send(&Message::Below(below)).await?;
        }
        Ok(())
    }
}

fn closed(what: &str) -> End {
    End::Local(Error::new(ErrorKind::Cancelled, format!("the {what} was closed")))
}

/// What to say, and from where log is to come.
async fn hello<P: Progress>(
    context: &ReceiveContext<P>,
    target: Target<'_>,
) -> Ended<(Hello, (SegmentNo, u64))> {
    let (log, start) = (context.log.clone(), context.start);
    let stand = tokio::task::spawn_blocking(move || stand(&log, start)).await;
    let stand = stand.map_err(|e| Error::new(ErrorKind::Io, e.to_string()))?;
    let (flush, from, prefix) = stand.map_err(End::Local)?;
    let hello = Hello {
        versions: context.purpose.versions(),
        system: context.history.system(),
        timeline: context.history.timeline(),
        flush,
        segment: from.0,
        offset: from.1,
        prefix,
        want: Want::Stream,
        name: context.name.clone(),
        node: context.status.node(),
        wants: target.wants,
        purpose: context.purpose,
        line: context.history.line(),
        history: Hello::way(&context.history),
    };
    Ok((hello, from))
}

/// The end of the own log, where it continues, and the hash that proves it.
fn stand(log: &Log, start: Lsn) -> Result<(Lsn, (SegmentNo, u64), [u8; 32])> {
    let at = log.resume_at().context(|| "cannot go on with the log")?;
    let Tail { end, .. } = log.tail();
    if at == (SegmentNo(0), 0) {
        return Ok((start, (start.segment(), 0), SHA256_EMPTY));
    }
    let previous = SegmentNo(at.0.0.saturating_sub(1));
    let previous = log.sealed_len(previous)?;
    let (segment, offset) = session::resume_point(at, previous);
    if offset == 0 {
        return Ok((end.max(start), (segment, 0), SHA256_EMPTY));
    }
    let missing = || {
        let text = format!("segment {} of this node's own log is not there; fill the node anew", segment.0);
        Error::new(ErrorKind::Missing, text)
    };
    let prefix = log.prefix_hash(segment, offset)?.ok_or_else(missing)?;
    Ok((end, (segment, offset), prefix))
}

#[cfg(test)]
mod tests;
