//! What answers at the port of this node, over all generations: followers take the log that is durable even
//! while the engines stand still, and where nothing can be served they are told why.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use serde_json::Value;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::source::Source;
use super::{Node, lock, switchover};
use crate::config::{self, Config};
use crate::error::{Error, ErrorKind, Result};
use crate::history::History;
use crate::log::Log;
use crate::net::{Ancestry, Upstream};
use crate::send::{self, BackupStatus, Backups, Card, Halt, Peers, ServeContext};
use crate::sys::vital;
use crate::wire::{Below, Code};

/// The port of a node; it is opened once.
#[derive(Default)]
pub(crate) struct Port {
    peers: Arc<Peers>,
    backups: Arc<Backups>,
    open: Mutex<Option<Arc<TcpListener>>>,
    /// What answers there now.
    clerk: Mutex<Option<Clerk>>,
    /// Where the log of the newest generation comes from.
    ancestry: Mutex<Ancestry>,
    /// The node that it comes from.
    upstream: Mutex<Option<Arc<Upstream>>>,
}

struct Clerk {
    task: JoinHandle<()>,
    cancel: CancellationToken,
    /// `None`: everybody is turned away.
    desk: Option<Desk>,
}

/// What a generation of engines is served by.
#[derive(Clone)]
pub(crate) struct Desk {
    source: Arc<Source>,
    halt: Halt,
}

impl Desk {
    /// The engines run: first copies are read from `source`.
    pub(crate) fn supply(&self, source: impl crate::fill::CopySource + 'static) {
        self.source.supply(Arc::new(source));
        self.halt.set(None);
    }

    /// The engines end: only log is sent from here on.
    fn withdraw(&self, reason: &str) {
        self.halt.set(Some(reason.to_owned()));
        self.source.withdraw();
    }
}

impl Port {
    /// Every follower known, with how far behind it is.
    pub(crate) fn followers(&self) -> Vec<Value> {
        let list = self.peers.survey(self.leaders_clock());
        list.iter().map(|p| serde_json::to_value(p).unwrap_or_default()).collect()
    }

    /// Every backup under way.
    pub(crate) fn backups(&self) -> Vec<BackupStatus> {
        self.backups.list()
    }

    /// The same and those behind them, as the upstream is told.
    pub(crate) fn below(&self) -> Vec<Below> {
        self.peers.below(self.leaders_clock())
    }

    /// What the clock that stamps commits shows, ns since 1970.
    pub(crate) fn leaders_clock(&self) -> i64 {
        lock(&self.ancestry).now()
    }

    /// The same, to wait for them.
    pub(crate) fn peers(&self) -> &Arc<Peers> {
        &self.peers
    }

    /// Opens the port that the configuration names, if it names one. `ancestry` is the new generation's, and so is the
    /// `upstream` of a follower.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] when it can't be had.
    pub(crate) async fn open(
        &self,
        config: &Config,
        ancestry: Ancestry,
        upstream: Option<Arc<Upstream>>,
    ) -> Result<()> {
        (*lock(&self.ancestry), *lock(&self.upstream)) = (ancestry, upstream);
        let Some(listen) = &config.listen else { return Ok(()) };
        if lock(&self.open).is_none() {
            let addr = config::address(listen)?;
            let bound = TcpListener::bind(addr).await.map_err(|e| {
                Error::from(e).with_kind(ErrorKind::Config).wrap(&format!("cannot listen on {addr}"))
            })?;
            if let Ok(at) = bound.local_addr() {
                tracing::info!("followers are served on {at}");
            }
            *lock(&self.open) = Some(Arc::new(bound));
        }
        Ok(())
    }

    /// The address that was opened, with the port that was taken.
    pub(crate) fn address(&self) -> Option<SocketAddr> {
        lock(&self.open).as_ref().and_then(|listener| listener.local_addr().ok())
    }

    /// Whether log is sent.
    pub(crate) fn serves(&self) -> bool {
        lock(&self.clerk).as_ref().is_some_and(|c| c.desk.is_some())
    }

    /// Ends what answers there now.
    async fn clear(&self) {
        let clerk = lock(&self.clerk).take();
        if let Some(clerk) = clerk {
            if let Some(desk) = &clerk.desk {
                desk.halt.set(Some("another log takes its place".to_owned()));
            }
            clerk.cancel.cancel();
            let _ = clerk.task.await;
        }
    }

    /// Sends `log` from now on. First copies wait until the desk is supplied. `None`: there is no port.
    pub(crate) async fn serve(
        &self,
        node: &Arc<Node>,
        log: &Log,
        history: History,
        source: Source,
    ) -> Option<Desk> {
        let listener = lock(&self.open).clone()?;
        self.clear().await;
        let config = node.config();
        let desk = Desk { source: Arc::new(source), halt: Halt::default() };
        desk.halt.set(Some("this node is starting".to_owned()));
        let context = ServeContext {
            log: log.clone(),
            source: Arc::clone(&desk.source) as _,
            history: Arc::new(history),
            name: node.name(),
            peer_timeout: config.peer_timeout.0,
            max_followers: config.max_followers,
            peers: Arc::clone(&self.peers),
            backups: Arc::clone(&self.backups),
            ancestry: lock(&self.ancestry).clone(),
            upstream: lock(&self.upstream).clone(),
            halt: desk.halt.clone(),
            slots: Arc::clone(&node.slots),
            trust: node.trust.clone(),
            ear: node.rivals.ear(),
            recent: Arc::default(),
            heir: switchover::desk(node),
        };
        let cancel = CancellationToken::new();
        let task = tokio::spawn(vital::task("the port", send::serve(listener, context, cancel.clone())));
        *lock(&self.clerk) = Some(Clerk { task, cancel, desk: Some(desk.clone()) });
        Some(desk)
    }

    /// The engines ended by this error. A log that was served is served on, as far as it is durable, unless
    /// it is the log itself that is not what it was.
    pub(crate) async fn fail(&self, node: &Node, error: &Error) {
        let doubtful = matches!(error.kind(), ErrorKind::Missing | ErrorKind::Corrupt | ErrorKind::Diverged);
        if doubtful {
            self.clear().await;
        }
        self.halt(node, &error.to_string()).await;
    }

    /// Log is not sent any more either: it is about to be another one.
    pub(crate) async fn turn_away(&self, node: &Node, reason: &str) {
        self.clear().await;
        self.halt(node, reason).await;
    }

    /// The engines stand still for this reason.
    pub(crate) async fn halt(&self, node: &Node, reason: &str) {
        if let Some(desk) = lock(&self.clerk).as_ref().and_then(|c| c.desk.as_ref()) {
            return desk.withdraw(reason);
        }
        self.bar(node, Code::NotReady, reason).await;
    }

    /// Nobody is served any more: everybody is refused with this code, for this reason.
    pub(crate) async fn bar(&self, node: &Node, code: Code, reason: &str) {
        let Some(listener) = lock(&self.open).clone() else { return };
        self.clear().await;
        let Some(control) = node.state.control() else { return };
        // Whoever is turned away need not know more.
        let history = node.state.history().unwrap_or_else(|_| History::first(control.system));
        let card = Card {
            history: Arc::new(history),
            name: node.name(),
            ancestry: lock(&self.ancestry).clone(),
            peer_timeout: node.config().peer_timeout.0,
            trust: node.trust.clone(),
            ear: node.rivals.ear(),
        };
        let cancel = CancellationToken::new();
        let task = tokio::spawn(vital::task(
            "the port",
            send::decline(listener, card, (code, reason.to_owned()), cancel.clone()),
        ));
        *lock(&self.clerk) = Some(Clerk { task, cancel, desk: None });
    }

    /// Says goodbye to all, and closes the port.
    pub(crate) async fn close(&self) {
        let clerk = lock(&self.clerk).take();
        if let Some(clerk) = clerk {
            if let Some(desk) = &clerk.desk {
                desk.halt.set(None);
            }
            clerk.cancel.cancel();
            let _ = clerk.task.await;
        }
        *lock(&self.open) = None;
    }
}
