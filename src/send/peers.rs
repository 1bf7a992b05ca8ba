//! Who is connected: one entry per follower's name, kept after it left, shown by `status`.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry as Slot;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::net::{Traffic, wall_clock};
use crate::position::{Lsn, NodeId};
use crate::wire::Ack;

/// Most names remembered; of those that are away, the one longest away is forgotten first.
const NAMES: usize = 256;

/// What a connection is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum PeerState {
    /// Hello and welcome.
    Connecting,
    /// It takes the first copy.
    Filling,
    /// It takes log written before it came.
    Catchup,
    /// It takes log as it becomes durable.
    Streaming,
    /// It is not connected.
    Away,
}

/// What is known of one follower. Positions are printed as `status` prints them.
#[derive(Clone, Debug, Serialize)]
pub struct FollowerStatus {
    /// Its name.
    pub name: String,
    /// Where it connected from.
    pub address: String,
    /// What its connection is about.
    pub state: PeerState,
    /// Log handed to TCP.
    #[serde(serialize_with = "text")]
    pub sent: Lsn,
    /// Log in its operating system.
    #[serde(serialize_with = "text")]
    pub write: Lsn,
    /// Log durable there.
    #[serde(serialize_with = "text")]
    pub flush: Lsn,
    /// Log visible in its directory.
    #[serde(serialize_with = "text")]
    pub apply: Lsn,
    /// Time of the commit at `apply`, ns since 1970.
    pub apply_time: i64,
    /// When it connected, ns since 1970.
    pub connected: i64,
    /// When it was last heard, ns since 1970.
    pub heard: i64,
    /// Bytes received from it over this connection.
    pub bytes_received: u64,
    /// Bytes sent to it over this connection.
    pub bytes_sent: u64,
    /// Files and bytes of content sent by a fill over this connection.
    pub filled_files: u64,
    /// See `filled_files`.
    pub filled_bytes: u64,
    /// Why it left, or was sent away.
    pub reason: Option<String>,
}

fn text<S: serde::Serializer>(lsn: &Lsn, s: S) -> Result<S::Ok, S::Error> {
    s.collect_str(lsn)
}

#[derive(Debug)]
struct Peer {
    status: FollowerStatus,
    node: NodeId,
    connection: u64,
    cancel: CancellationToken,
    traffic: Arc<Traffic>,
}

#[derive(Debug, Default)]
struct Inner {
    peers: BTreeMap<String, Peer>,
    connections: u64,
}

/// The registry of followers.
#[derive(Debug, Default)]
pub struct Peers {
    inner: Mutex<Inner>,
}

impl Peers {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every follower known, by name.
    #[must_use]
    pub fn list(&self) -> Vec<FollowerStatus> {
        let inner = self.lock();
        let each = inner.peers.values().map(|p| {
            let mut status = p.status.clone();
            (status.bytes_received, status.bytes_sent) = p.traffic.bytes();
            status.heard = p.traffic.heard();
            status
        });
        each.collect()
    }

    /// Whether every follower that is connected and takes log has `lsn` durably.
    #[must_use]
    pub fn all_flushed(&self, lsn: Lsn) -> bool {
        let takes_log = |s: PeerState| matches!(s, PeerState::Catchup | PeerState::Streaming);
        self.lock().peers.values().all(|p| !takes_log(p.status.state) || p.status.flush >= lsn)
    }

    /// Registers a connection of `name`. One of the same node that is still there, perhaps half dead, is
    /// cancelled. Nodes of older versions can't be told apart: one of them always counts as the same.
    ///
    /// # Errors
    /// In words: another node of that name is connected. It counts as connected until its silence is too long.
    pub(super) fn join(
        self: &Arc<Self>,
        name: &str,
        node: NodeId,
        address: &str,
        traffic: &Arc<Traffic>,
    ) -> Result<Session, String> {
        let mut inner = self.lock();
        let other = |p: &&Peer| p.node != node && p.node != NodeId::NONE && node != NodeId::NONE;
        let here = inner.peers.get(name).filter(|p| p.status.state != PeerState::Away);
        if let Some(peer) = here.filter(other) {
            return Err(format!(
                "a follower named '{name}' is attached from {}; give this one another name",
                peer.status.address
            ));
        }
        inner.connections += 1;
        let connection = inner.connections;
        let cancel = CancellationToken::new();
        let status = FollowerStatus {
            name: name.to_owned(),
            address: address.to_owned(),
            state: PeerState::Connecting,
            sent: Lsn::ZERO,
            write: Lsn::ZERO,
            flush: Lsn::ZERO,
            apply: Lsn::ZERO,
            apply_time: 0,
            connected: wall_clock(),
            heard: 0,
            bytes_received: 0,
            bytes_sent: 0,
            filled_files: 0,
            filled_bytes: 0,
            reason: None,
        };
        let peer = Peer { status, node, connection, cancel: cancel.clone(), traffic: Arc::clone(traffic) };
        match inner.peers.entry(name.to_owned()) {
            Slot::Vacant(slot) => {
                slot.insert(peer);
            }
            Slot::Occupied(mut slot) => {
                let old = slot.insert(peer);
                if old.status.state != PeerState::Away {
                    tracing::warn!(
                        "follower '{name}' connected again from {address}: its connection from {} is replaced",
                        old.status.address
                    );
                    old.cancel.cancel();
                }
            }
        }
        forget(&mut inner);
        Ok(Session { peers: Arc::clone(self), name: name.to_owned(), connection, cancel })
    }
}

fn forget(inner: &mut Inner) {
    while inner.peers.len() > NAMES {
        let away = inner.peers.iter().filter(|(_, p)| p.status.state == PeerState::Away);
        let Some(name) = away.min_by_key(|(_, p)| p.traffic.heard()).map(|(n, _)| n.clone()) else { return };
        inner.peers.remove(&name);
    }
}

/// A connection's hold on its entry. The entry is "away" when it is dropped.
#[derive(Debug)]
pub(super) struct Session {
    peers: Arc<Peers>,
    name: String,
    connection: u64,
    /// Cancelled when a newer connection of the same node comes.
    pub(super) cancel: CancellationToken,
}

impl Session {
    pub(super) fn update(&self, edit: impl FnOnce(&mut FollowerStatus)) {
        let mut inner = self.peers.lock();
        if let Some(p) = inner.peers.get_mut(&self.name).filter(|p| p.connection == self.connection) {
            edit(&mut p.status);
        }
    }

    pub(super) fn state(&self, state: PeerState) {
        self.update(|s| s.state = state);
    }

    pub(super) fn ack(&self, ack: &Ack) {
        self.update(|s| {
            s.write = ack.write;
            s.flush = ack.flush;
            s.apply = ack.apply;
            s.apply_time = ack.apply_time;
        });
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.state(PeerState::Away);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn join(peers: &Arc<Peers>, name: &str, address: &str) -> Session {
        peers.join(name, NodeId(1), address, &Arc::default()).unwrap()
    }

    #[test]
    fn a_node_that_comes_again_replaces_its_old_connection() {
        let peers = Arc::new(Peers::default());
        let first = join(&peers, "a", "1");
        let other = join(&peers, "b", "2");
        first.state(PeerState::Streaming);
        let second = join(&peers, "a", "3");
        assert!(first.cancel.is_cancelled() && !second.cancel.is_cancelled() && !other.cancel.is_cancelled());
        first.ack(&Ack { flush: Lsn(9), ..Ack::default() });
        drop(first);
        let list = peers.list();
        assert_eq!(list.len(), 2);
        assert_eq!((list[0].address.as_str(), list[0].state), ("3", PeerState::Connecting));
        assert_eq!(list[0].flush, Lsn::ZERO, "the old connection no longer speaks for the name");
        drop(second);
        assert_eq!(peers.list()[0].state, PeerState::Away);
    }

    #[test]
    fn another_node_of_the_same_name_waits_until_the_first_is_gone() {
        let peers = Arc::new(Peers::default());
        let traffic = Arc::default();
        let first = peers.join("a", NodeId(1), "1:1", &traffic).unwrap();
        let refused = peers.join("a", NodeId(2), "2:2", &traffic).unwrap_err();
        assert_eq!(refused, "a follower named 'a' is attached from 1:1; give this one another name");
        assert!(!first.cancel.is_cancelled() && peers.list()[0].address == "1:1");
        let again = peers.join("a", NodeId(1), "1:2", &traffic).unwrap();
        assert!(first.cancel.is_cancelled());
        drop(first);
        assert!(peers.join("a", NodeId(2), "2:2", &traffic).is_err(), "the newer connection holds the name");
        drop(again);
        let second = peers.join("a", NodeId(2), "2:2", &traffic).unwrap();
        assert!(peers.join("a", NodeId(1), "1:1", &traffic).is_err());
        // One that can't say who it is was never locked out, and is not now.
        peers.join("a", NodeId::NONE, "3:3", &traffic).unwrap();
        assert!(second.cancel.is_cancelled());
    }

    #[test]
    fn a_drain_waits_for_those_that_take_log() {
        let peers = Arc::new(Peers::default());
        let s = join(&peers, "a", "1");
        assert!(peers.all_flushed(Lsn(5)));
        s.state(PeerState::Catchup);
        assert!(!peers.all_flushed(Lsn(5)));
        s.ack(&Ack { flush: Lsn(5), ..Ack::default() });
        assert!(peers.all_flushed(Lsn(5)));
    }

    #[test]
    fn names_are_forgotten_only_when_away() {
        let peers = Arc::new(Peers::default());
        let kept: Vec<_> = (0..10).map(|i| join(&peers, &format!("live{i}"), "")).collect();
        for i in 0..2 * NAMES {
            drop(join(&peers, &format!("x{i}"), ""));
        }
        let list = peers.list();
        assert!(list.len() <= NAMES);
        assert_eq!(list.iter().filter(|p| p.state != PeerState::Away).count(), kept.len());
    }

    #[test]
    fn positions_are_printed_as_status_prints_them() {
        let peers = Arc::new(Peers::default());
        let s = join(&peers, "a", "1");
        s.ack(&Ack { flush: Lsn(0x1_0000_0002), ..Ack::default() });
        let json = serde_json::to_value(&peers.list()[0]).unwrap();
        assert_eq!(json["flush"], "1/00000002");
        assert_eq!(json["state"], "connecting");
    }
}
