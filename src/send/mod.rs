//! Serving followers: accept, hello, decision, then log from disk as far as it is durable, or a first
//! copy. It works from a log and a [`CopySource`] only, so a follower can serve others as a leader does.
//!
//! Each connection is two loops: one sends, one hears. A follower that does not read holds up only
//! its own sender, which keeps one piece of log in memory.

use std::borrow::Borrow;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::error::{Context, Error, ErrorKind, Result};
use crate::fill::{self, CopySource};
use crate::log::{Log, StoredReader, Tail};
use crate::net::{
    self, Ancestry, Bond, HANDSHAKE, MessageReader, MessageWriter, ReadSide, Traffic, Upstream, WriteSide,
};
use crate::position::{Lsn, SegmentNo, SystemId, TimelineId};
use crate::session::{self, Here, Proof};
use crate::slots::Slots;
use crate::tls::Trust;
use crate::trust::Refusal;
use crate::wire::{
    ASKS_WRITE, Code, Decision, Hello, Keepalive, Message, SHA256_EMPTY, VERSION_ORIGIN, VERSION_SLOTS, Want,
};

mod claim;
mod door;
mod judgement;
mod peers;
#[cfg(test)]
mod peers_tests;
mod tree;

use door::Seat;
pub use door::{Card, Halt, decline};
use peers::Session;
pub use peers::{FollowerStatus, PeerState, Peers, Ticket};
pub use tree::{LagStatus, NodeBelow};

/// Stored bytes read and sent at once: little is lost when a line breaks, and both ends work side by side.
const PIECE: usize = 256 << 10;
/// Reads of at most this much, from what was just written, are made without leaving the task.
const SMALL_READ: u64 = 256 << 10;

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
    /// Where the log comes from: a leader, or what a follower learns of it.
    pub ancestry: Ancestry,
    /// The node that this one follows, if it follows one.
    pub upstream: Option<Arc<Upstream>>,
    /// Whether first copies have to wait.
    pub halt: Halt,
    /// What followers need of the log.
    pub slots: Arc<Slots>,
    /// By which terms followers are let in.
    pub trust: Trust,
}

impl ServeContext {
    fn card(&self) -> Card {
        Card {
            system: self.system,
            timeline: self.timeline,
            name: self.name.clone(),
            ancestry: self.ancestry.clone(),
            peer_timeout: self.peer_timeout,
            trust: self.trust.clone(),
        }
    }

    /// Why all connections end.
    fn ending(&self) -> (Code, &'static str) {
        match self.halt.reason() {
            Some(_) => (Code::NotReady, "the log is opened anew; connect again"),
            None => (Code::Shutdown, "the node stops"),
        }
    }
}

/// Serves until cancelled. A log that can't be written any more is served as far as it is durable.
pub async fn serve(listener: impl Borrow<TcpListener>, context: ServeContext, cancel: CancellationToken) {
    context.peers.serve(context.log.subscribe());
    let context = Arc::new(context);
    let places = Arc::new(Semaphore::new(context.max_followers));
    let token = cancel.clone();
    let most = context.max_followers;
    door::reception(listener.borrow(), most, &cancel, move |stream, address, seat| {
        let (context, cancel, places) = (Arc::clone(&context), token.clone(), Arc::clone(&places));
        async move { attend(stream, &address.to_string(), seat, &places, &context, &cancel).await }
    })
    .await;
}

/// Serves one connection to its end and logs how it ended.
async fn attend(
    stream: TcpStream,
    address: &str,
    seat: Seat,
    places: &Arc<Semaphore>,
    context: &Arc<ServeContext>,
    cancel: &CancellationToken,
) {
    let unseated = seat.taken_away();
    let greeting = tokio::time::timeout(HANDSHAKE, greet(stream, context, places, address, seat));
    let greeted = tokio::select! {
        // Nothing was agreed yet: the peer tries again.
        () = cancel.cancelled() => return,
        () = unseated.cancelled() => Err(door::crowded()),
        greeted = greeting => greeted.unwrap_or_else(|_| Err(door::late())),
    };
    let (mut link, guest) = match greeted {
        Ok(Some(greeted)) => greeted,
        Ok(None) => return,
        Err(e) => return door::stranger(address, &e),
    };
    let Guest { hello, decision, session, mut bond, place: _place } = guest;
    let asks = door::ask(&hello);
    let result = tokio::select! {
        () = cancel.cancelled() => {
            let (code, reason) = context.ending();
            Err(Leave::Said(code, reason.to_owned()))
        }
        () = session.cancel.cancelled() => {
            Err(Leave::Said(Code::Replaced, "another connection of the same node came".to_owned()))
        }
        refusal = bond.revoked(&hello.name, asks) => Err(Leave::Said(refusal.code, refusal.reason)),
        result = link.follow(context, &session, &hello, &decision) => result,
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

/// A follower that was let in.
struct Guest {
    hello: Hello,
    decision: Decision,
    session: Session,
    bond: Bond,
    place: Place,
}

struct Link<R, W> {
    reader: MessageReader<R>,
    writer: MessageWriter<W>,
}

type Greeted = (Link<ReadSide, WriteSide>, Guest);

/// Handshake, hello and welcome. `None`: the follower was refused.
async fn greet(
    stream: TcpStream,
    context: &Arc<ServeContext>,
    places: &Arc<Semaphore>,
    address: &str,
    seat: Seat,
) -> Result<Option<Greeted>> {
    let traffic = Arc::new(Traffic::default());
    let ((mut reader, mut writer), bond) =
        net::answer(stream, &context.trust, context.peer_timeout, &traffic).await?;
    let hello = door::hello(&mut reader, &mut writer).await?;
    let mut session = None;
    let mut place = None;
    let decision = match bond.judge(Some(&hello.name), door::ask(&hello)) {
        Err(Refusal { code, reason }) => Decision::Refuse { code, reason },
        Ok(roles) => {
            let only_asks = hello.want == Want::Judgement;
            place = if only_asks { None } else { Arc::clone(places).try_acquire_owned().ok() };
            let mut decision = if only_asks {
                decision(context, &hello).await?
            } else if place.is_some() {
                // From here on it counts as a follower.
                drop(seat);
                decision(context, &hello).await?
            } else {
                let reason = format!("{} followers are connected, as many as allowed", context.max_followers);
                Decision::Refuse { code: Code::Busy, reason }
            };
            if !only_asks && !matches!(decision, Decision::Refuse { .. } | Decision::Resync { .. }) {
                match context.peers.join(&hello.name, hello.node, address, &traffic) {
                    Ok(joined) => {
                        joined.update(|s| (s.tls, s.fingerprint, s.roles) = bond.shown(roles));
                        (session, decision) = held(context, &hello, joined, decision).await?;
                    }
                    Err(reason) => decision = Decision::Refuse { code: Code::Name, reason },
                }
            }
            decision
        }
    };
    let welcome = context.card().welcome(&hello, decision.clone());
    writer.send(&Message::Welcome(welcome)).await?;
    if hello.want != Want::Judgement {
        door::refused(&hello, address, &decision);
    }
    let guest = session.zip(place);
    let guest = guest.map(|(session, place)| Guest { hello, decision, session, bond, place });
    Ok(guest.map(|guest| (Link { reader, writer }, guest)))
}

impl<R, W> Link<R, W>
where
    R: AsyncRead + Unpin + Send,
    W: AsyncWrite + Unpin + Send,
{
    async fn follow(
        &mut self,
        context: &Arc<ServeContext>,
        session: &Session,
        hello: &Hello,
        decision: &Decision,
    ) -> std::result::Result<(), Leave> {
        let version = session::common_version(hello.versions).unwrap_or_default();
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
            let alive = || Message::Keepalive(keepalive(context, &context.log.tail(), version, 0));
            return tokio::select! {
                reason = context.halt.halted() => Err(Leave::Said(Code::NotReady, waits(&reason))),
                filled = fill::serve(&mut self.reader, &mut self.writer, serving, &alive, &progress) => {
                    filled.map_err(Leave::Failed)
                }
            };
        };
        session.state(PeerState::Catchup);
        let Self { reader, writer } = self;
        tokio::select! {
            heard = hear(reader, session) => heard.map_err(Leave::Failed),
            sent = stream(writer, context, session, (*segment, *offset), version) => sent,
        }
    }
}

/// Holds the log that was promised. Without a session: it can't be held, or is gone, and what is decided instead.
async fn held(
    context: &Arc<ServeContext>,
    hello: &Hello,
    mut session: Session,
    mut decided: Decision,
) -> Result<(Option<Session>, Decision)> {
    let kept = match claim::claim(context, hello, &decided).await? {
        Ok((hold, kept)) => {
            session.hold = Some(hold);
            kept
        }
        Err(refusal) => return Ok((None, refusal)),
    };
    if !kept {
        decided = decision(context, hello).await?;
    }
    let stays = !matches!(decided, Decision::Refuse { .. } | Decision::Resync { .. });
    Ok((stays.then_some(session), decided))
}

async fn decision(context: &Arc<ServeContext>, hello: &Hello) -> Result<Decision> {
    let here = judge(context, hello).await?;
    let ahead = matches!(here, Decision::Refuse { code: Code::NotReady, .. })
        && matches!(hello.want, Want::Stream | Want::Judgement)
        && hello.flush > context.log.tail().end;
    Ok(if ahead { judgement::ask(context, hello, here).await } else { here })
}

/// What this node decides by itself.
async fn judge(context: &Arc<ServeContext>, hello: &Hello) -> Result<Decision> {
    let (context, hello) = (Arc::clone(context), hello.clone());
    let judge = tokio::task::spawn_blocking(move || {
        let tail = context.log.tail();
        let oldest = context.log.oldest()?;
        let here = Here {
            system: context.system,
            timeline: context.timeline,
            end: tail.end.max(Lsn::FIRST),
            oldest: if tail.end == Lsn::ZERO { Lsn::FIRST } else { oldest },
            follows: context.ancestry.follows(),
        };
        match proof(&context.log, &hello, &here) {
            Ok(proof) => Ok(match (session::decide(&hello, &here, proof), context.halt.reason()) {
                (Decision::Fill | Decision::ResumeFill, Some(reason)) => {
                    Decision::Refuse { code: Code::NotReady, reason: waits(&reason) }
                }
                // It may have taken log from here that this node can't vouch for while it stands still.
                (Decision::Refuse { code: Code::Diverged, .. }, Some(reason)) if hello.flush > here.end => {
                    let reason = format!("the follower is ahead of what is certain here: {reason}");
                    Decision::Refuse { code: Code::NotReady, reason }
                }
                (decision, _) => decision,
            }),
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

/// What a follower without data is told while the engines stand still.
fn waits(reason: &str) -> String {
    format!("log is sent, but a first copy has to wait: {reason}")
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

/// `version`: what the follower understands; `hasty`: it is to acknowledge what it has only written.
fn keepalive(context: &ServeContext, tail: &Tail, version: u16, asks: u8) -> Keepalive {
    Keepalive {
        end: tail.end,
        commit: tail.commit,
        exact: tail.exact,
        commit_time: tail.commit_time,
        exact_time: tail.exact_time,
        now: context.ancestry.now(),
        origin: (version >= VERSION_ORIGIN).then(|| context.ancestry.origin(context.peer_timeout)),
        asks: (version >= VERSION_SLOTS).then_some(asks),
    }
}

/// Takes acknowledgements until the follower leaves.
async fn hear<R: AsyncRead + Unpin>(reader: &mut MessageReader<R>, session: &Session) -> Result<()> {
    loop {
        match reader.next().await? {
            Some(Message::Ack(ack)) => session.ack(&ack),
            Some(Message::Below(nodes)) => session.told(nodes),
            Some(Message::Goodbye { reason, .. }) => {
                tracing::debug!("goodbye: {}", net::one_line(&reason));
                return Ok(());
            }
            Some(other) => return Err(net::unexpected(&other)),
            None => return Ok(()),
        }
    }
}

/// Sends durable log from a stored byte of a segment on, for ever. `version`: what both speak.
async fn stream<W: AsyncWrite + Unpin>(
    writer: &mut MessageWriter<W>,
    context: &ServeContext,
    session: &Session,
    (segment, offset): (SegmentNo, u64),
    version: u16,
) -> std::result::Result<(), Leave> {
    let mut slots = (version >= VERSION_SLOTS).then_some(None);
    let mut tail_of = context.log.subscribe();
    let half = context.peer_timeout / 2;
    let mut pieces = Pieces { reader: None, segment, offset };
    let mut hasty_of = context.peers.hasty();
    let mut force_of = context.peers.in_force();
    let mut last = None::<Instant>;
    loop {
        let tail = *tail_of.borrow_and_update();
        loop {
            // Before the log, so that it is acknowledged as it is wanted.
            let new_wish = hasty_of.has_changed().unwrap_or(false) | force_of.has_changed().unwrap_or(false);
            if last.is_none_or(|t| t.elapsed() >= half) || new_wish {
                let hasty = if *hasty_of.borrow_and_update() { ASKS_WRITE } else { 0 };
                force_of.mark_unchanged();
                let asks = hasty | context.peers.standing(session.name());
                writer.send(&Message::Keepalive(keepalive(context, &tail, version, asks))).await?;
                if let Some(last) = &mut slots {
                    tell_slots(writer, context, last).await?;
                }
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
            Ok(()) = hasty_of.changed() => hasty_of.mark_changed(),
            Ok(()) = force_of.changed() => force_of.mark_changed(),
            () = tokio::time::sleep_until(due) => {}
        }
    }
}

/// Says which slots there are, if that is not what was said `last`.
async fn tell_slots<W: AsyncWrite + Unpin>(
    writer: &mut MessageWriter<W>,
    context: &ServeContext,
    last: &mut Option<u64>,
) -> Result<()> {
    let (version, slots) = context.slots.told();
    if *last != Some(version) {
        writer.send(&Message::Slots(slots)).await?;
        *last = Some(version);
    }
    Ok(())
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
