//! Serving followers: accept, hello, decision, then log from disk as far as it is durable, or a first
//! copy. It works from a log and a [`CopySource`] only, so a follower can serve others as a leader does.
//!
//! Each connection is two loops: one sends, one hears. A follower that does not read holds up only
//! its own sender, which keeps one piece of log in memory. What was read for one is kept a little while for the
//! others: see `pieces`.

use std::borrow::Borrow;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::certificate::Fingerprint;
use crate::error::{Error, ErrorKind, Result};
use crate::fill::{self, CopySource};
use crate::history::History;
use crate::log::{Log, Tail};
use crate::net::{
    self, Ancestry, Bond, HANDSHAKE, MessageReader, MessageWriter, ReadSide, Traffic, Upstream, WriteSide,
};
use crate::position::{Lsn, SegmentNo};
use crate::session::{self, Here, Proof};
use crate::slots::Slots;
use crate::tls::Trust;
use crate::trust::{Refusal, Role};
use crate::wire::{
    ASKS_WRITE, Code, Decision, Hello, Keepalive, Message, Purpose, SHA256_EMPTY, VERSION_ORIGIN,
    VERSION_SLOTS, Want,
};

mod backups;
mod caller;
mod claim;
mod door;
mod heir;
mod judgement;
mod peers;
#[cfg(test)]
mod peers_tests;
mod pieces;
mod tree;

use backups::BACKUPS_MAX;
pub use backups::{BackupState, BackupStatus, Backups};
use caller::Caller;
use claim::Held;
use door::Seat;
pub use door::{Card, Ear, Halt, decline};
#[cfg(test)]
pub(crate) use heir::nobody;
pub use heir::{HeirAnswer, HeirDesk};
pub use peers::{FollowerStatus, PeerState, Peers, Ticket};
use pieces::Pieces;
pub use pieces::Recent;
pub use tree::{LagStatus, NodeBelow};

/// What serving works from.
#[derive(Clone)]
pub struct ServeContext {
    /// The log that is sent.
    pub log: Log,
    /// Where first copies are read from.
    pub source: Arc<dyn CopySource>,
    /// The way of the log: the system that is served, its timeline, and those before it.
    pub history: Arc<History>,
    /// This node's name.
    pub name: String,
    /// A follower that sends nothing for this long is given up.
    pub peer_timeout: Duration,
    /// Most followers served at once.
    pub max_followers: usize,
    /// Who is connected.
    pub peers: Arc<Peers>,
    /// Backups under way.
    pub backups: Arc<Backups>,
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
    /// What hears of those who come.
    pub ear: Ear,
    /// What was read of `log` last, for all followers.
    pub recent: Arc<Recent>,
    /// What answers a leader that would hand over to this node.
    pub heir: HeirDesk,
}

impl ServeContext {
    fn card(&self) -> Card {
        Card {
            history: Arc::clone(&self.history),
            name: self.name.clone(),
            ancestry: self.ancestry.clone(),
            peer_timeout: self.peer_timeout,
            trust: self.trust.clone(),
            ear: self.ear.clone(),
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
    context.peers.serve(context.log.subscribe(), context.log.gaps());
    let context = Arc::new(context);
    let places = Arc::new(Semaphore::new(context.max_followers));
    let token = cancel.clone();
    let most = context.max_followers + BACKUPS_MAX;
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
    let Guest { hello, decision, caller, mut bond, place: _place } = guest;
    let (asks, replaced) = (door::ask(&hello), caller.replaced());
    let result = tokio::select! {
        () = cancel.cancelled() => {
            let (code, reason) = context.ending();
            Err(Leave::Said(code, reason.to_owned()))
        }
        () = replaced.cancelled() => {
            Err(Leave::Said(Code::Replaced, "another connection of the same node came".to_owned()))
        }
        refusal = bond.revoked(&hello.name, asks) => Err(Leave::Said(refusal.code, refusal.reason)),
        result = link.follow(context, &caller, &hello, &decision) => result,
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
    tracing::info!("{} '{name}' at {address} left: {}", caller.word(), net::one_line(&reason));
    caller.left(reason);
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

/// A follower or a backup that was let in.
struct Guest {
    hello: Hello,
    decision: Decision,
    caller: Caller,
    bond: Bond,
    /// A backup needs none of a follower's.
    place: Option<Place>,
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
    let (mut caller, mut place, mut seat) = (None, None, Some(seat));
    let judged = bond.judge(Some(&hello.name), door::ask(&hello));
    if judged.is_ok() {
        context.ear.hear(&hello);
    }
    let decision = match judged {
        Err(Refusal { code, reason }) => Decision::Refuse { code, reason },
        Ok(_) if matches!(hello.want, Want::Judgement | Want::Handover) => decision(context, &hello).await?,
        Ok(roles) => {
            let backup = hello.purpose == Purpose::Backup;
            place = if backup { None } else { Arc::clone(places).try_acquire_owned().ok() };
            if backup || place.is_some() {
                // From here on it counts as a follower, or a backup.
                drop(seat.take());
                let decided;
                (caller, decided) = admit(context, &hello, (address, &traffic), bond.shown(roles)).await?;
                decided
            } else {
                let reason = format!("{} followers are connected, as many as allowed", context.max_followers);
                Decision::Refuse { code: Code::Busy, reason }
            }
        }
    };
    let welcome = context.card().welcome(&hello, decision.clone());
    writer.send(&Message::Welcome(welcome)).await?;
    if hello.want != Want::Judgement {
        door::refused(&hello, address, &decision);
    }
    if let (Decision::Handover, Some(seat)) = (&decision, seat) {
        let (desk, address) = (Arc::clone(&context.heir), address.to_owned());
        // It outlasts the log that is served now: the node may become a leader meanwhile.
        // A panic: this connection ends.
        tokio::spawn(heir::attend((reader, writer), hello, address, desk, seat));
        return Ok(None);
    }
    let guest = caller.map(|caller| Guest { hello, decision, caller, bond, place });
    Ok(guest.map(|guest| (Link { reader, writer }, guest)))
}

/// Decides, and holds the log that is promised. Without a caller: it is refused.
async fn admit(
    context: &Arc<ServeContext>,
    hello: &Hello,
    (address, traffic): (&str, &Arc<Traffic>),
    shown: (bool, Option<Fingerprint>, Vec<Role>),
) -> Result<(Option<Caller>, Decision)> {
    let decision = decision(context, hello).await?;
    if matches!(decision, Decision::Refuse { .. } | Decision::Resync { .. }) {
        return Ok((None, decision));
    }
    let caller = match hello.purpose {
        Purpose::Follow => context.peers.join(&hello.name, hello.node, address, traffic).map(|joined| {
            joined.update(|s| (s.tls, s.fingerprint, s.roles) = shown);
            Caller::Follower(joined)
        }),
        Purpose::Backup => {
            let visit = context.backups.join(&hello.name, address, traffic, shown).map(Caller::Backup);
            match visit {
                Err(reason) => return Ok((None, Decision::Refuse { code: Code::Busy, reason })),
                visit => visit,
            }
        }
    };
    match caller {
        Ok(caller) => held(context, hello, caller, decision).await,
        Err(reason) => Ok((None, Decision::Refuse { code: Code::Name, reason })),
    }
}

impl<R, W> Link<R, W>
where
    R: AsyncRead + Unpin + Send,
    W: AsyncWrite + Unpin + Send,
{
    async fn follow(
        &mut self,
        context: &Arc<ServeContext>,
        caller: &Caller,
        hello: &Hello,
        decision: &Decision,
    ) -> std::result::Result<(), Leave> {
        let version = session::common_version(hello.versions).unwrap_or_default();
        let Decision::StreamFrom { segment, offset } = decision else {
            let source = Arc::clone(&context.source);
            caller.copying(|look| look(&source.catalog().read().unwrap_or_else(PoisonError::into_inner)));
            let progress = |files, bytes| caller.copied(files, bytes);
            let serving = fill::Serving {
                source: Arc::clone(&context.source),
                log: context.log.clone(),
                keepalive: context.peer_timeout / 2,
                resume: *decision == Decision::ResumeFill,
            };
            let asked = || caller.begun();
            let alive = || Message::Keepalive(keepalive(context, &context.log.tail(), version, 0));
            return tokio::select! {
                reason = context.halt.halted() => Err(Leave::Said(Code::NotReady, waits(&reason))),
                filled = fill::serve(&mut self.reader, &mut self.writer, serving, &alive, &asked, &progress) => {
                    filled.map_err(Leave::Failed)
                }
            };
        };
        caller.catching_up();
        let until = until(context, hello, (*segment, *offset)).await?;
        let Self { reader, writer } = self;
        tokio::select! {
            heard = hear(reader, caller) => heard.map_err(Leave::Failed),
            sent = stream(writer, context, caller, ((*segment, *offset), until), version) => sent,
        }
    }
}

/// Holds the log that was promised. Without a caller: it can't be held, or is gone, and what is decided instead.
async fn held(
    context: &Arc<ServeContext>,
    hello: &Hello,
    mut caller: Caller,
    mut decided: Decision,
) -> Result<(Option<Caller>, Decision)> {
    let kept = match claim::claim(context, hello, &decided).await? {
        Ok((hold, kept)) => {
            match (&mut caller, hold) {
                (Caller::Follower(session), Held::Slot(hold)) => session.hold = Some(hold),
                (Caller::Backup(visit), Held::Pin(pin, position)) => visit.hold(pin, position),
                // What holds follows from the purpose, as the caller does.
                _ => {}
            }
            kept
        }
        Err(refusal) => return Ok((None, refusal)),
    };
    if !kept {
        decided = decision(context, hello).await?;
    }
    let stays = !matches!(decided, Decision::Refuse { .. } | Decision::Resync { .. });
    Ok((stays.then_some(caller), decided))
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
            history: History::clone(&context.history),
            end: tail.end.max(Lsn::FIRST),
            oldest: if tail.end == Lsn::ZERO { Lsn::FIRST } else { oldest },
            follows: context.ancestry.follows(),
        };
        let early = || {
            let reason = "this node's directory does not stand on its own timeline yet; it is tried again";
            Decision::Refuse { code: Code::NotReady, reason: reason.to_owned() }
        };
        match proof(&context.log, &hello, &here) {
            Ok(proof) => Ok(match (session::decide(&hello, &here, proof), context.halt.reason()) {
                (Decision::Fill, None) if before_the_line(&context) => early(),
                (Decision::Fill | Decision::ResumeFill, Some(reason)) => {
                    Decision::Refuse { code: Code::NotReady, reason: waits(&reason) }
                }
                // It may have taken log from here that this node can't vouch for while it stands still; and a log that is made
                // that of the next line has its last segment under another name already.
                (Decision::Refuse { code: Code::Diverged, .. }, Some(reason))
                    if hello.flush > here.end || proof == Proof::Short =>
                {
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

/// Whether the tree is still that of the timeline before: a copy of it would need log that the receiver does not take.
fn before_the_line(context: &ServeContext) -> bool {
    let Some(branch) = context.history.branches().last() else { return false };
    let catalog = context.source.catalog();
    let lsn = catalog.read().unwrap_or_else(PoisonError::into_inner).lsn();
    lsn <= branch.at
}

/// What a follower without data is told while the engines stand still.
fn waits(reason: &str) -> String {
    format!("log is sent, but a first copy has to wait: {reason}")
}

fn proof(log: &Log, hello: &Hello, here: &Here) -> Result<Proof> {
    // Nothing is claimed about foreign systems, and their positions mean nothing here.
    let history = &here.history;
    let ours = hello.system == history.system() && history.line_of(hello.timeline) == Some(hello.line);
    if !ours {
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
async fn hear<R: AsyncRead + Unpin>(reader: &mut MessageReader<R>, caller: &Caller) -> Result<()> {
    loop {
        match reader.next().await? {
            Some(Message::Ack(ack)) => caller.ack(&ack),
            Some(Message::Below(nodes)) => caller.told(nodes),
            Some(Message::Goodbye { reason, .. }) => {
                tracing::debug!("goodbye: {}", net::one_line(&reason));
                return Ok(());
            }
            Some(other) => return Err(net::unexpected(&other)),
            None => return Ok(()),
        }
    }
}

/// Where log ends for a follower whose line ended on the way of this node's: it takes the next line from there by itself.
async fn until(
    context: &Arc<ServeContext>,
    hello: &Hello,
    (segment, offset): (SegmentNo, u64),
) -> Result<Option<Tail>> {
    let Some(branch) = context.history.branch_off(hello.timeline).cloned() else { return Ok(None) };
    let log = context.log.clone();
    let end = tokio::task::spawn_blocking(move || log.end_before(&branch)).await;
    let end = end.map_err(|e| Error::new(ErrorKind::Io, e.to_string()))??;
    // One that sealed the segment itself has the trailer, too.
    let most = if end.segment == segment { end.offset.max(offset) } else { end.offset };
    Ok(Some(Tail { offset: most, ..end }))
}

/// Sends durable log from a stored byte of a segment on, for ever. `version`: what both speak.
async fn stream<W: AsyncWrite + Unpin>(
    writer: &mut MessageWriter<W>,
    context: &ServeContext,
    caller: &Caller,
    ((segment, offset), until): ((SegmentNo, u64), Option<Tail>),
    version: u16,
) -> std::result::Result<(), Leave> {
    let mut slots = (version >= VERSION_SLOTS && caller.knows_slots()).then_some(None);
    let mut tail_of = context.log.subscribe();
    let half = context.peer_timeout / 2;
    let mut pieces = Pieces::new(context, segment, offset);
    let mut hasty_of = context.peers.hasty();
    let mut force_of = context.peers.in_force();
    let mut last = None::<Instant>;
    loop {
        let tail = loop {
            let tail = *tail_of.borrow_and_update();
            // Before the log, so that it is acknowledged as it is wanted.
            let new_wish = hasty_of.has_changed().unwrap_or(false) | force_of.has_changed().unwrap_or(false);
            if last.is_none_or(|t| t.elapsed() >= half) || new_wish {
                let hasty = if *hasty_of.borrow_and_update() { ASKS_WRITE } else { 0 };
                force_of.mark_unchanged();
                let asks = hasty | caller.standing(&context.peers);
                writer.send(&Message::Keepalive(keepalive(context, &tail, version, asks))).await?;
                if let Some(last) = &mut slots {
                    tell_slots(writer, context, last).await?;
                }
                last = Some(Instant::now());
            }
            let Some(piece) = pieces.next(until.as_ref().unwrap_or(&tail)).await? else { break tail };
            writer.send_encoded(&piece.message).await?;
            caller.sent(piece.segment.start(), false);
        };
        caller.sent(until.map_or(tail.end, |u| u.end), true);
        let due = last.map_or_else(Instant::now, |t| t + half);
        tokio::select! {
            changed = tail_of.changed() => {
                if changed.is_err() {
                    return Err(Leave::Said(Code::Shutdown, "the log was closed".to_owned()));
                }
            }
            Ok(()) = hasty_of.changed() => hasty_of.mark_changed(),
            Ok(()) = force_of.changed() => force_of.mark_changed(),
            // Nothing came for as long as that: nobody will want what was read last.
            () = tokio::time::sleep_until(due) => context.recent.clear(),
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
