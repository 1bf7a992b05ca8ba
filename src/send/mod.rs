//! Serving followers: accept, hello, decision, then log from disk as far as it is durable, or a first
//! copy. It works from a log and a [`CopySource`] only, so a follower can serve others as a leader does.
//!
//! Each connection is two loops: one sends, one hears. A follower that does not read holds up only
//! its own sender, which keeps one piece of log in memory.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::error::{Context, Error, ErrorKind, Result};
use crate::fill::{self, CopySource};
use crate::log::{Log, StoredReader, Tail};
use crate::net::{self, HANDSHAKE, LeaderClock, MessageReader, MessageWriter, Quiet, Traffic};
use crate::position::{Lsn, SegmentNo, SystemId, TimelineId};
use crate::session::{self, Here, Proof};
use crate::wire::{Code, Decision, Hello, Keepalive, Message, SHA256_EMPTY, Welcome};

mod peers;

use peers::Session;
pub use peers::{FollowerStatus, PeerState, Peers};

/// Connections in hello or being refused, beyond those of followers.
const LOBBY: usize = 16;
/// Stored bytes read and sent at once: little is lost when a line breaks, and both ends work side by side.
const PIECE: usize = 256 << 10;
/// Reads of at most this much, from what was just written, are made without leaving the task.
const SMALL_READ: u64 = 256 << 10;
/// Longest wait for connections to end when serving stops.
const ENDING: Duration = Duration::from_secs(3);

/// What serving works from.
#[derive(Clone)]
pub struct ServeContext {
    /// The log that is sent.
    pub log: Log,
    /// Where first copies are read from.
    pub source: Arc<dyn CopySource>,
    /// The system that is served.
    pub system: SystemId,
    /// Its timeline.
    pub timeline: TimelineId,
    /// This node's name.
    pub name: String,
    /// A follower that sends nothing for this long is given up.
    pub peer_timeout: Duration,
    /// Most followers served at once.
    pub max_followers: usize,
    /// Who is connected.
    pub peers: Arc<Peers>,
    /// The clock that stamps commits: a leader's default, or what a follower learns.
    pub clock: LeaderClock,
}

/// Serves until cancelled.
///
/// # Errors
/// The log's failure: nothing can be served from a log that is not known to be durable.
pub async fn serve(listener: TcpListener, context: ServeContext, cancel: CancellationToken) -> Result<()> {
    let context = Arc::new(context);
    let places = Arc::new(Semaphore::new(context.max_followers));
    let lobby = Arc::new(Semaphore::new(context.max_followers + LOBBY));
    let mut tasks = JoinSet::new();
    let quiet = Quiet::new(Duration::from_secs(10));
    let mut tail = context.log.subscribe();
    loop {
        let accepted = tokio::select! {
            () = cancel.cancelled() => break,
            changed = tail.changed() => {
                if changed.is_err() { break; }
                if let Some(e) = context.log.failure() { return Err(e); }
                continue;
            }
            Some(_) = tasks.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(e) => {
                if let Some(n) = quiet.line() {
                    tracing::warn!("cannot accept a connection: {e}{n}");
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Ok(guest) = Arc::clone(&lobby).try_acquire_owned() else {
            if let Some(n) = quiet.line() {
                tracing::warn!("{address} was turned away: too many connections{n}");
            }
            continue;
        };
        let (context, cancel, places) = (Arc::clone(&context), cancel.clone(), Arc::clone(&places));
        tasks.spawn(async move {
            let _guest = guest;
            let traffic = Arc::new(Traffic::default());
            match net::over_tcp(stream, context.peer_timeout, &traffic) {
                Ok(halves) => {
                    attend(halves, &address.to_string(), &traffic, &places, &context, &cancel).await
                }
                Err(e) => tracing::debug!("{address}: {e}"),
            }
        });
    }
    // Each task says goodbye and ends by the same token.
    let _ = tokio::time::timeout(ENDING, async { while tasks.join_next().await.is_some() {} }).await;
    Ok(())
}

/// One line per ten seconds about connections that never got as far as a name.
static STRANGERS: Quiet = Quiet::new(Duration::from_secs(10));

/// Serves one connection to its end and logs how it ended.
pub async fn attend<R, W>(
    (reader, writer): (MessageReader<R>, MessageWriter<W>),
    address: &str,
    traffic: &Arc<Traffic>,
    places: &Arc<Semaphore>,
    context: &Arc<ServeContext>,
    cancel: &CancellationToken,
) where
    R: AsyncRead + Unpin + Send,
    W: AsyncWrite + Unpin + Send,
{
    let mut link = Link { reader, writer };
    let greeted = tokio::select! {
        () = cancel.cancelled() => return link.writer.goodbye(Code::Shutdown, "the node stops").await,
        greeted = tokio::time::timeout(HANDSHAKE, link.greet(context, places)) => greeted,
    };
    let late = || Error::new(ErrorKind::Unavailable, "no hello within the time allowed");
    let (hello, decision, place) = match greeted.unwrap_or_else(|_| Err(late())) {
        Ok(greeted) => greeted,
        Err(e) => {
            if let Some(n) = STRANGERS.line() {
                let reason = e.to_string();
                tracing::warn!("{address}: connection closed: {}{n}", net::one_line(&reason));
            }
            return;
        }
    };
    let Some(_place) = place else { return };
    let session = context.peers.join(&hello.name, address, traffic);
    let result = tokio::select! {
        () = cancel.cancelled() => Err(Leave::Said(Code::Shutdown, "the node stops".to_owned())),
        () = session.cancel.cancelled() => {
            Err(Leave::Said(Code::Replaced, "another connection of the same name came".to_owned()))
        }
        result = link.follow(context, &session, &decision) => result,
    };
    let name = &hello.name;
    let reason = match result {
        Ok(()) => "it closed the connection".to_owned(),
        Err(Leave::Said(code, reason)) => {
            link.writer.goodbye(code, &reason).await;
            reason
        }
        Err(Leave::Failed(e)) => {
            link.writer.goodbye(leave_code(&e), &e.to_string()).await;
            e.to_string()
        }
    };
    tracing::info!("follower '{name}' at {address} left: {}", net::one_line(&reason));
    session.update(|s| s.reason = Some(reason));
}

fn leave_code(e: &Error) -> Code {
    match e.kind() {
        ErrorKind::Corrupt => Code::Protocol,
        ErrorKind::Missing => Code::Resync,
        _ => Code::Failed,
    }
}

/// Why a connection ends from this side.
enum Leave {
    /// On purpose.
    Said(Code, String),
    /// By an error.
    Failed(Error),
}

impl<E: Into<Error>> From<E> for Leave {
    fn from(e: E) -> Self {
        Self::Failed(e.into())
    }
}

type Place = tokio::sync::OwnedSemaphorePermit;

struct Link<R, W> {
    reader: MessageReader<R>,
    writer: MessageWriter<W>,
}

impl<R, W> Link<R, W>
where
    R: AsyncRead + Unpin + Send,
    W: AsyncWrite + Unpin + Send,
{
    /// Hello and welcome. No place: the follower was refused.
    async fn greet(
        &mut self,
        context: &Arc<ServeContext>,
        places: &Arc<Semaphore>,
    ) -> Result<(Hello, Decision, Option<Place>)> {
        let hello = match self.reader.next().await? {
            Some(Message::Hello(hello)) => hello,
            Some(other) => return Err(net::unexpected(&other)),
            None => return Err(Error::new(ErrorKind::Unavailable, "the peer left without a hello")),
        };
        let place = Arc::clone(places).try_acquire_owned().ok();
        let decision = if place.is_some() {
            decision(context, &hello).await?
        } else {
            let reason = format!("{} followers are connected, as many as allowed", context.max_followers);
            Decision::Refuse { code: Code::Busy, reason }
        };
        let refused = match &decision {
            Decision::Refuse { reason, .. } | Decision::Resync { reason } => Some(reason.clone()),
            _ => None,
        };
        let welcome = Welcome {
            version: session::common_version(hello.versions).unwrap_or(0),
            system: context.system,
            timeline: context.timeline,
            name: context.name.clone(),
            decision: decision.clone(),
        };
        self.writer.send(&Message::Welcome(welcome)).await?;
        if let Some(reason) = refused {
            if let Some(n) = STRANGERS.line() {
                let name = hello.name.escape_debug();
                tracing::warn!("follower '{name}' was refused: {reason}{n}");
            }
            return Ok((hello, decision, None));
        }
        Ok((hello, decision, place))
    }

    async fn follow(
        &mut self,
        context: &Arc<ServeContext>,
        session: &Session,
        decision: &Decision,
    ) -> std::result::Result<(), Leave> {
        let Decision::StreamFrom { segment, offset } = decision else {
            session.state(PeerState::Filling);
            let progress = |files, bytes| {
                session.update(|s| {
                    s.filled_files += files;
                    s.filled_bytes += bytes;
                });
            };
            let serving = fill::Serving {
                source: Arc::clone(&context.source),
                log: context.log.clone(),
                keepalive: context.peer_timeout / 2,
                resume: *decision == Decision::ResumeFill,
            };
            let alive = || Message::Keepalive(keepalive(context, &context.log.tail()));
            fill::serve(&mut self.reader, &mut self.writer, serving, &alive, &progress).await?;
            return Ok(());
        };
        session.state(PeerState::Catchup);
        let Self { reader, writer } = self;
        tokio::select! {
            heard = hear(reader, session) => heard.map_err(Leave::Failed),
            sent = stream(writer, context, session, *segment, *offset) => sent,
        }
    }
}

async fn decision(context: &Arc<ServeContext>, hello: &Hello) -> Result<Decision> {
    let (context, hello) = (Arc::clone(context), hello.clone());
    let judge = tokio::task::spawn_blocking(move || {
        let tail = context.log.tail();
        let oldest = context.log.oldest()?;
        let here = Here {
            system: context.system,
            timeline: context.timeline,
            end: tail.end.max(Lsn::FIRST),
            oldest: if tail.end == Lsn::ZERO { Lsn::FIRST } else { oldest },
        };
        match proof(&context.log, &hello, &here) {
            Ok(proof) => Ok(session::decide(&hello, &here, proof)),
            // A damaged log of ours says nothing about the follower's.
            Err(e) if e.kind() == ErrorKind::Corrupt => {
                tracing::error!("a follower can't be served: {e}");
                let reason = format!("this node's own log is damaged: {e}");
                Ok(Decision::Refuse { code: Code::Failed, reason })
            }
            Err(e) => Err(e),
        }
    });
    judge.await.map_err(|e| Error::new(ErrorKind::Io, e.to_string()))?
}

fn proof(log: &Log, hello: &Hello, here: &Here) -> Result<Proof> {
    // Nothing is claimed about foreign systems, and their positions mean nothing here.
    if hello.system != here.system || hello.timeline != here.timeline {
        return Ok(Proof::Short);
    }
    if hello.segment < here.oldest.segment() {
        return Ok(Proof::Gone);
    }
    if hello.offset == 0 {
        let known = hello.segment <= here.end.segment().next();
        return Ok(if known { Proof::Hash(SHA256_EMPTY) } else { Proof::Short });
    }
    Ok(log.prefix_hash(hello.segment, hello.offset)?.map_or(Proof::Short, Proof::Hash))
}

fn keepalive(context: &ServeContext, tail: &Tail) -> Keepalive {
    Keepalive {
        end: tail.end,
        commit: tail.commit,
        exact: tail.exact,
        commit_time: tail.commit_time,
        exact_time: tail.exact_time,
        now: context.clock.now(),
    }
}

/// Takes acknowledgements until the follower leaves.
async fn hear<R: AsyncRead + Unpin>(reader: &mut MessageReader<R>, session: &Session) -> Result<()> {
    loop {
        match reader.next().await? {
            Some(Message::Ack(ack)) => session.ack(&ack),
            Some(Message::Goodbye { reason, .. }) => {
                tracing::debug!("goodbye: {}", net::one_line(&reason));
                return Ok(());
            }
            Some(other) => return Err(net::unexpected(&other)),
            None => return Ok(()),
        }
    }
}

/// Sends durable log from `offset` of `segment` on, for ever.
async fn stream<W: AsyncWrite + Unpin>(
    writer: &mut MessageWriter<W>,
    context: &ServeContext,
    session: &Session,
    segment: SegmentNo,
    offset: u64,
) -> std::result::Result<(), Leave> {
    let mut tail_of = context.log.subscribe();
    let half = context.peer_timeout / 2;
    let mut pieces = Pieces { reader: None, segment, offset };
    let mut last = None::<Instant>;
    loop {
        let tail = *tail_of.borrow_and_update();
        if let Some(e) = context.log.failure() {
            return Err(Leave::Said(Code::NotReady, format!("the sender's log failed: {e}")));
        }
        loop {
            if last.is_none_or(|t| t.elapsed() >= half) {
                writer.send(&Message::Keepalive(keepalive(context, &tail))).await?;
                last = Some(Instant::now());
            }
            let Some((segment, offset, bytes)) = pieces.next(context, &tail).await? else { break };
            writer.send(&Message::Log { segment, offset, bytes: bytes.into() }).await?;
            session.update(|s| s.sent = s.sent.max(segment.start()));
        }
        session.update(|s| {
            s.sent = s.sent.max(tail.end);
            s.state = PeerState::Streaming;
        });
        let due = last.map_or_else(Instant::now, |t| t + half);
        tokio::select! {
            changed = tail_of.changed() => {
                if changed.is_err() {
                    return Err(Leave::Said(Code::Shutdown, "the log was closed".to_owned()));
                }
            }
            () = tokio::time::sleep_until(due) => {}
        }
    }
}

/// The stored bytes of the log, piece by piece.
struct Pieces {
    reader: Option<StoredReader>,
    segment: SegmentNo,
    offset: u64,
}

impl Pieces {
    async fn next(
        &mut self,
        context: &ServeContext,
        tail: &Tail,
    ) -> Result<Option<(SegmentNo, u64, Vec<u8>)>> {
        let mut reader = match self.reader.take() {
            Some(reader) => reader,
            // The segment where the follower begins may be yet to be written.
            None if tail.segment < self.segment || tail.end == Lsn::ZERO => return Ok(None),
            None => StoredReader::open(context.log.dir(), context.timeline, self.segment, self.offset)?,
        };
        let tail = *tail;
        let near = self.segment == tail.segment && tail.offset.saturating_sub(self.offset) <= SMALL_READ;
        let (reader, piece) = if near {
            // Just written: it is in the page cache, and a change of threads would cost more than the read.
            let piece = reader.read(&tail, PIECE);
            (reader, piece)
        } else {
            let read = move || {
                let piece = reader.read(&tail, PIECE);
                (reader, piece)
            };
            let joined = tokio::task::spawn_blocking(read).await;
            joined.map_err(|e| Error::new(ErrorKind::Io, e.to_string())).context(|| "cannot read the log")?
        };
        let piece = piece?;
        if let Some((segment, offset, bytes)) = &piece {
            self.segment = *segment;
            self.offset = offset + bytes.len() as u64;
        }
        self.reader = Some(reader);
        Ok(piece)
    }
}
