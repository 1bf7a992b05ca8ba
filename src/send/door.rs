//! The door: accepting connections, and turning them away with a reason while nothing can be served.

use std::borrow::Borrow;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::error::{Error, ErrorKind, Result};
use crate::net::{self, Ancestry, HANDSHAKE, Quiet, Traffic};
use crate::position::{SystemId, TimelineId};
use crate::session;
use crate::wire::{Code, Decision, Hello, Message, VERSION_ORIGIN, Welcome};

/// Connections in hello or being refused, beyond those of followers.
pub(super) const LOBBY: usize = 16;
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

/// Who answers while nothing can be served.
#[derive(Clone, Debug)]
pub struct Card {
    /// The system the node holds.
    pub system: SystemId,
    /// Its timeline.
    pub timeline: TimelineId,
    /// Its name.
    pub name: String,
    /// Where its log comes from.
    pub ancestry: Ancestry,
    /// A peer that sends nothing for this long is given up.
    pub peer_timeout: Duration,
}

/// Answers every hello with a refusal that time may cure, for `reason`, until cancelled.
pub async fn decline(
    listener: impl Borrow<TcpListener>,
    card: Card,
    reason: String,
    cancel: CancellationToken,
) {
    let shared = Arc::new((card, reason));
    reception(listener.borrow(), LOBBY, &cancel, move |stream, address| {
        let shared = Arc::clone(&shared);
        async move {
            let (card, reason) = &*shared;
            let answered = tokio::time::timeout(HANDSHAKE, turn_away(stream, card, reason)).await;
            if let Ok(Err(e)) = answered {
                tracing::debug!("{address}: connection closed: {}", net::one_line(&e.to_string()));
            }
        }
    })
    .await;
}

async fn turn_away(stream: TcpStream, card: &Card, reason: &str) -> Result<()> {
    let (mut reader, mut writer) = net::over_tcp(stream, card.peer_timeout, &Arc::new(Traffic::default()))?;
    let hello = match reader.next().await? {
        Some(Message::Hello(hello)) => hello,
        Some(other) => return Err(net::unexpected(&other)),
        None => return Err(Error::new(ErrorKind::Unavailable, "the peer left without a hello")),
    };
    let decision = Decision::Refuse { code: Code::NotReady, reason: reason.to_owned() };
    writer.send(&Message::Welcome(card.welcome(&hello, decision))).await
}

impl Card {
    /// The answer to a hello, in the version that both speak.
    pub(super) fn welcome(&self, hello: &Hello, decision: Decision) -> Welcome {
        let version = session::common_version(hello.versions).unwrap_or(0);
        let lineage = (version >= VERSION_ORIGIN).then(|| self.ancestry.origin(self.peer_timeout).lineage);
        let (system, timeline, name) = (self.system, self.timeline, self.name.clone());
        Welcome { version, system, timeline, name, decision, lineage }
    }
}

/// Accepts connections until cancelled, at most `limit` at once, and waits a while for them to end.
pub(super) async fn reception<F>(
    listener: &TcpListener,
    limit: usize,
    cancel: &CancellationToken,
    attend: impl Fn(TcpStream, SocketAddr) -> F,
) where
    F: Future<Output = ()> + Send + 'static,
{
    let lobby = Arc::new(Semaphore::new(limit));
    let mut tasks = JoinSet::new();
    let quiet = Quiet::new(Duration::from_secs(10));
    loop {
        let accepted = tokio::select! {
            () = cancel.cancelled() => break,
            Some(_) = tasks.join_next() => continue,
            accepted = listener.accept() => accepted,
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
        let Ok(guest) = Arc::clone(&lobby).try_acquire_owned() else {
            if let Some(n) = quiet.line() {
                tracing::warn!("{address} was turned away: too many connections{n}");
            }
            continue;
        };
        let attending = attend(stream, address);
        tasks.spawn(async move {
            let _guest = guest;
            attending.await;
        });
    }
    // Those that listen to the same token say goodbye; the others are dropped with the set.
    let _ = tokio::time::timeout(ENDING, async { while tasks.join_next().await.is_some() {} }).await;
}
