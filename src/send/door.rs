//! The door: accepting connections, and turning them away with a reason while nothing can be served.

use std::borrow::Borrow;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::error::{Error, ErrorKind, Result};
use crate::history::History;
use crate::net::{
    self, Ancestry, HANDSHAKE, MessageReader, MessageWriter, Quiet, ReadSide, TLS_DENIED, Traffic, WriteSide,
};
use crate::session;
use crate::tls::Trust;
use crate::trust::{Ask, Refusal};
use crate::wire::{
    Code, Decision, Hello, Message, Purpose, RoleWanted, VERSION_LINES, VERSION_ORIGIN, Want, Welcome,
};

/// Connections that have not said hello yet, or are being refused; each costs less than 300 KiB.
const LOBBY: usize = 64;
/// Those from one address: who opens many keeps out none but himself.
const PER_ADDRESS: usize = 32;
/// Longest wait for connections to end when serving stops.
const ENDING: Duration = Duration::from_secs(3);
/// After a failed accept: most often there are no descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Why the engines behind a served log stand still, while they do: the log that is there is sent, first copies
/// have to wait. Clones share it; the default stands for engines that run.
#[derive(Clone, Debug, Default)]
pub struct Halt(Arc<watch::Sender<Option<String>>>);

impl Halt {
    /// They stand still for this reason, or run again.
    pub fn set(&self, reason: Option<String>) {
        self.0.send_replace(reason);
    }

    /// Why they stand still, if they do.
    #[must_use]
    pub fn reason(&self) -> Option<String> {
        self.0.subscribe().borrow().clone()
    }

    /// Waits until they stand still.
    pub(super) async fn halted(&self) -> String {
        let mut reason = self.0.subscribe();
        let halted = reason.wait_for(Option::is_some).await;
        // The sender lives as long as `self`.
        halted.ok().and_then(|r| r.clone()).unwrap_or_default()
    }
}

/// What is done with a hello.
type Hears = dyn Fn(&Hello) + Send + Sync;

/// What hears of everybody who may be here and says which way its log has.
#[derive(Clone, Default)]
pub struct Ear(Option<Arc<Hears>>);

impl Ear {
    /// It does this with each hello.
    pub fn new(hears: impl Fn(&Hello) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(hears)))
    }

    /// A hello came of a peer that was found to be who it says. A backup says nothing of lines.
    pub(super) fn hear(&self, hello: &Hello) {
        if let Some(hears) = self.0.as_ref().filter(|_| hello.purpose == Purpose::Follow) {
            hears(hello);
        }
    }
}

impl fmt::Debug for Ear {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ear")
    }
}

/// Who answers while nothing can be served.
#[derive(Clone, Debug)]
pub struct Card {
    /// The way of its log.
    pub history: Arc<History>,
    /// Its name.
    pub name: String,
    /// Where its log comes from.
    pub ancestry: Ancestry,
    /// A peer that sends nothing for this long is given up.
    pub peer_timeout: Duration,
    /// By which terms peers are known.
    pub trust: Trust,
    /// What hears of them.
    pub ear: Ear,
}

/// One line per ten seconds about connections that never got as far as a name.
static STRANGERS: Quiet = Quiet::new(Duration::from_secs(10));
static REFUSED: Refusals = Refusals::new();

/// One line per ten seconds about those that were refused; none that somebody should look at is left out for one that
/// belongs to every start.
struct Refusals {
    usual: Quiet,
    others: Quiet,
}

impl Refusals {
    const fn new() -> Self {
        let period = Duration::from_secs(10);
        Self { usual: Quiet::new(period), others: Quiet::new(period) }
    }

    /// Whether to write a line now, and how it ends; and whether it is a warning.
    fn line(&self, code: Code) -> Option<(String, bool)> {
        let usual = code.is_usual();
        let quiet = if usual { &self.usual } else { &self.others };
        quiet.line().map(|n| (n, !usual))
    }
}

/// A connection ended before it came to anything.
pub(super) fn stranger(address: &str, e: &Error) {
    if let Some(n) = STRANGERS.line() {
        tracing::warn!("{address}: connection closed: {}{n}", net::one_line(&e.to_string()));
    }
}

/// A follower was refused.
pub(super) fn refused(hello: &Hello, address: &str, decision: &Decision) {
    let (code, reason) = match decision {
        Decision::Refuse { code, reason } => (*code, reason),
        Decision::Resync { reason } => (Code::Resync, reason),
        Decision::StreamFrom { .. } | Decision::Fill | Decision::ResumeFill | Decision::Handover => return,
    };
    let Some((n, warns)) = REFUSED.line(code) else { return };
    let line = format!(
        "follower '{}' at {address} was refused: {}{n}",
        hello.name.escape_debug(),
        net::one_line(reason)
    );
    if warns {
        tracing::warn!("{line}");
    } else {
        tracing::info!("{line}");
    }
}

/// The handshake or the hello did not come in time.
pub(super) fn late() -> Error {
    Error::new(ErrorKind::Unavailable, "no hello within the time allowed")
}

/// Too many came at once; this one said nothing for longest.
pub(super) fn crowded() -> Error {
    Error::new(ErrorKind::Unavailable, "too many connections that say nothing; the oldest of them is closed")
}

/// What a hello asks for.
pub(super) fn ask(hello: &Hello) -> Ask {
    if hello.purpose == Purpose::Backup {
        return Ask::Backup;
    }
    match hello.want {
        Want::Stream | Want::Judgement => Ask::Stream,
        Want::Fill | Want::ResumeFill(_) => Ask::Fill,
        Want::Handover => Ask::Lead,
    }
}

/// Takes the hello. A peer that speaks TLS to a plain port is told so, in its language.
pub(super) async fn hello(
    reader: &mut MessageReader<ReadSide>,
    writer: &mut MessageWriter<WriteSide>,
) -> Result<Hello> {
    let hello = reader.hello().await;
    if hello.as_ref().is_err_and(|e| e.kind() == ErrorKind::Refused) {
        // It may be gone already.
        let _ = writer.send_encoded(&TLS_DENIED).await;
    }
    hello
}

/// Answers every hello with a refusal until cancelled.
pub async fn decline(
    listener: impl Borrow<TcpListener>,
    card: Card,
    refusal: (Code, String),
    cancel: CancellationToken,
) {
    let shared = Arc::new((card, refusal));
    reception(listener.borrow(), 0, &cancel, move |stream, address, seat| {
        let shared = Arc::clone(&shared);
        async move {
            let (card, refusal) = &*shared;
            let answered = tokio::select! {
                () = seat.token.cancelled() => Err(crowded()),
                answered = tokio::time::timeout(HANDSHAKE, turn_away(stream, card, refusal)) => {
                    answered.unwrap_or_else(|_| Err(late()))
                }
            };
            if let Err(e) = answered {
                tracing::debug!("{address}: connection closed: {}", net::one_line(&e.to_string()));
            }
        }
    })
    .await;
}

async fn turn_away(stream: TcpStream, card: &Card, (code, reason): &(Code, String)) -> Result<()> {
    let traffic = Arc::new(Traffic::default());
    let ((mut reader, mut writer), bond) =
        net::answer(stream, &card.trust, card.peer_timeout, &traffic).await?;
    let hello = hello(&mut reader, &mut writer).await?;
    let decision = match bond.judge(Some(&hello.name), ask(&hello)) {
        Ok(_) => {
            card.ear.hear(&hello);
            // Who asks for a leader is told that there is none here.
            let left = *code == Code::WrongTimeline && hello.wants == RoleWanted::Leader;
            Decision::Refuse { code: if left { Code::UpstreamRole } else { *code }, reason: reason.clone() }
        }
        Err(Refusal { code, reason }) => Decision::Refuse { code, reason },
    };
    writer.send(&Message::Welcome(card.welcome(&hello, decision))).await
}

impl Card {
    /// The answer to a hello, in the version that both speak.
    pub(super) fn welcome(&self, hello: &Hello, decision: Decision) -> Welcome {
        let version = session::common_version(hello.versions).unwrap_or(0);
        let lineage = (version >= VERSION_ORIGIN).then(|| self.ancestry.origin(self.peer_timeout).lineage);
        let (system, timeline) = (self.history.system(), self.history.timeline());
        let history = (version >= VERSION_LINES).then(|| History::clone(&self.history));
        let name = self.name.clone();
        let decision = match decision {
            Decision::Refuse { code, reason } => Decision::Refuse { code: code.known_to(version), reason },
            other => other,
        };
        Welcome { version, system, timeline, name, decision, lineage, history }
    }
}

/// The seats of those that have not said hello yet.
#[derive(Debug, Default)]
struct Lobby(Mutex<Seats>);

#[derive(Debug, Default)]
struct Seats {
    number: u64,
    /// The one seated for longest first.
    taken: Vec<(u64, IpAddr, CancellationToken)>,
}

/// One of them; it is free again when this is dropped.
#[derive(Debug)]
pub(super) struct Seat {
    lobby: Arc<Lobby>,
    number: u64,
    token: CancellationToken,
}

impl Lobby {
    fn seats(&self) -> MutexGuard<'_, Seats> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives a seat to one that comes from `address`. If there are too many from there it takes that of the one that has
    /// it for longest; if there are too many in all, that of one from where most are.
    fn sit(self: &Arc<Self>, address: IpAddr) -> Seat {
        let mut seats = self.seats();
        let from = |seats: &Seats, a: IpAddr| seats.taken.iter().filter(|(_, b, _)| a == *b).count();
        let crowd = if from(&seats, address) >= PER_ADDRESS {
            Some(address)
        } else if seats.taken.len() >= LOBBY {
            seats.taken.iter().rev().map(|(_, a, _)| *a).max_by_key(|a| from(&seats, *a))
        } else {
            None
        };
        if let Some(at) = crowd.and_then(|c| seats.taken.iter().position(|(_, a, _)| *a == c)) {
            seats.taken.remove(at).2.cancel();
        }
        seats.number += 1;
        let (number, token) = (seats.number, CancellationToken::new());
        seats.taken.push((number, address, token.clone()));
        Seat { lobby: Arc::clone(self), number, token }
    }
}

impl Seat {
    /// Cancelled when somebody else has the seat.
    pub(super) fn taken_away(&self) -> CancellationToken {
        self.token.clone()
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.lobby.seats().taken.retain(|(number, ..)| *number != self.number);
    }
}

/// Accepts connections until cancelled, and waits a while for them to end. `followers`: how many of them may stay.
pub(super) async fn reception<F>(
    listener: &TcpListener,
    followers: usize,
    cancel: &CancellationToken,
    attend: impl Fn(TcpStream, SocketAddr, Seat) -> F,
) where
    F: Future<Output = ()> + Send + 'static,
{
    let lobby = Arc::new(Lobby::default());
    let mut tasks = JoinSet::new();
    let quiet = Quiet::new(Duration::from_secs(10));
    loop {
        // Whose seat was taken away ends at once, but not sooner than he is run.
        let full = tasks.len() >= followers + 2 * LOBBY;
        let accepted = tokio::select! {
            () = cancel.cancelled() => break,
            Some(_) = tasks.join_next() => continue,
            accepted = listener.accept(), if !full => accepted,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(e) => {
                if let Some(n) = quiet.line() {
                    tracing::warn!("cannot accept a connection: {e}{n}");
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let seat = lobby.sit(address.ip().to_canonical());
        // A panic: this connection ends.
        tasks.spawn(attend(stream, address, seat));
    }
    // Those that listen to the same token say goodbye; the others are dropped with the set.
    let _ = tokio::time::timeout(ENDING, async { while tasks.join_next().await.is_some() {} }).await;
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn a_refusal_that_belongs_to_every_start_is_no_warning_and_hides_none() {
        let refusals = Refusals::new();
        let said = [Code::NotReady, Code::NotReady, Code::Diverged, Code::Busy].map(|c| refusals.line(c));
        let [first, second] = [false, true].map(|warns| Some((String::new(), warns)));
        assert_eq!(said, [first, None, second, None]);
    }

    fn at(n: u8) -> IpAddr {
        Ipv4Addr::new(10, 0, 0, n).into()
    }

    #[test]
    fn one_stranger_takes_the_seats_of_none_but_himself() {
        let lobby = Arc::new(Lobby::default());
        let good: Vec<Seat> = (0..10).map(|_| lobby.sit(at(1))).collect();
        let mut crowd: Vec<Seat> = (0..1000).map(|_| lobby.sit(at(2))).collect();
        assert!(good.iter().all(|s| !s.token.is_cancelled()));
        assert_eq!(crowd.iter().filter(|s| !s.token.is_cancelled()).count(), PER_ADDRESS);
        assert!(crowd[968..].iter().all(|s| !s.token.is_cancelled()), "the newest stay");
        // The lobby is full: of those that come now none takes a seat from where fewer are.
        let others: Vec<Seat> = (0..26).map(|_| lobby.sit(at(3))).collect();
        assert_eq!(lobby.seats().taken.len(), LOBBY);
        assert!(good.iter().chain(&others).all(|s| !s.token.is_cancelled()));
        crowd.clear();
        drop(good);
        assert_eq!(lobby.seats().taken.len(), others.len());
    }

    #[test]
    fn a_lobby_full_of_single_visitors_still_takes_the_next() {
        let lobby = Arc::new(Lobby::default());
        let seats: Vec<Seat> = (0..=u8::MAX).map(|n| lobby.sit(at(n))).collect();
        assert_eq!(lobby.seats().taken.len(), LOBBY);
        assert!(!seats[255].token.is_cancelled() && seats[0].token.is_cancelled());
    }
}
