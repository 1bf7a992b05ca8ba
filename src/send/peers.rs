//! Who is connected: one entry per follower's name, kept after it left, shown by `status`. Whatever changes the
//! confirmations of a follower is told to the board of those that wait for them.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry as Slot;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::tree::{self, LagStatus, NodeBelow};
use crate::certificate::Fingerprint;
use crate::error::{Error, ErrorKind};
use crate::log::{Gaps, Tail};
use crate::net::{Traffic, wall_clock};
use crate::position::{Lsn, NodeId};
use crate::quorum::{self, Candidate, Level, Positions, SyncState};
use crate::session::Commits;
use crate::slots::{Absent, Hold};
use crate::sync::{Board, Confirmed, InForce, Rules, Wait};
use crate::trust::Role;
use crate::wire::{Ack, Below, TELLS_COUNTS, TELLS_STATE_SHIFT};

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
    /// Its directory has diverged, or was changed by others, and rests until somebody helps there.
    pub halted: bool,
    /// Why it left, or was sent away.
    pub reason: Option<String>,
    /// Whether its connection is encrypted.
    pub tls: bool,
    /// Its key, when the connection is encrypted.
    pub fingerprint: Option<Fingerprint>,
    /// What it is trusted as, when the connection is encrypted.
    pub roles: Vec<Role>,
    /// As in pg_stat_replication.
    pub sync_state: SyncState,
    /// Its place in the list of synchronous followers, from 1; 0: it is not there.
    pub sync_priority: usize,
    /// Its confirmations count now, at the level in force.
    pub sync_counts: bool,
    /// Seconds that a commit waits there before it is shown, once it said so.
    pub delay: Option<f64>,
    /// How far it is behind, once it said where it stands.
    pub lag: Option<LagStatus>,
    /// Who follows it, as it told.
    pub followers: Vec<NodeBelow>,
}

pub(super) fn text<S: serde::Serializer>(lsn: &Lsn, s: S) -> Result<S::Ok, S::Error> {
    s.collect_str(lsn)
}

#[derive(Debug)]
struct Peer {
    status: FollowerStatus,
    node: NodeId,
    connection: u64,
    cancel: CancellationToken,
    traffic: Arc<Traffic>,
    /// Its directory moves.
    applies: bool,
    /// It was set up never to count.
    never: bool,
    /// It was close enough, and has not fallen too far behind since.
    near: bool,
    /// Who follows it, and when it said so.
    below: (Vec<Below>, i64),
}

impl Peer {
    /// One that is not connected.
    fn new(name: &str, traffic: Arc<Traffic>) -> Self {
        let status = FollowerStatus {
            name: name.to_owned(),
            address: String::new(),
            state: PeerState::Away,
            sent: Lsn::ZERO,
            write: Lsn::ZERO,
            flush: Lsn::ZERO,
            apply: Lsn::ZERO,
            apply_time: 0,
            connected: 0,
            heard: 0,
            bytes_received: 0,
            bytes_sent: 0,
            filled_files: 0,
            filled_bytes: 0,
            halted: false,
            reason: None,
            tls: false,
            fingerprint: None,
            roles: Vec::new(),
            sync_state: SyncState::Async,
            sync_priority: 0,
            sync_counts: false,
            delay: None,
            lag: None,
            followers: Vec::new(),
        };
        Self {
            status,
            node: NodeId::NONE,
            connection: 0,
            cancel: CancellationToken::new(),
            traffic,
            applies: false,
            never: false,
            near: false,
            below: Default::default(),
        }
    }

    fn positions(&self) -> Positions {
        Positions { write: self.status.write, flush: self.status.flush, apply: self.status.apply }
    }

    fn candidate(&self) -> Candidate<'_> {
        let state = self.status.state;
        Candidate {
            name: &self.status.name,
            attached: matches!(state, PeerState::Catchup | PeerState::Streaming),
            streaming: state == PeerState::Streaming,
            near: self.near,
            eligible: !self.never,
            applies: self.applies,
            at: self.positions(),
        }
    }

    /// What its confirmations depend on.
    fn stand(&self) -> (PeerState, Positions, bool, bool) {
        (self.status.state, self.positions(), self.applies, self.never)
    }

    /// A newcomer counts once it is close; one that counts goes on while it is not too far behind.
    fn judge(&mut self, rules: &Rules, end: Lsn) {
        if self.status.state != PeerState::Streaming {
            self.near = false;
            return;
        }
        let name = &self.status.name;
        let (behind, limit) = (end.since(self.positions().at(rules.level)), rules.max_lag);
        if self.near && limit > 0 && behind > limit {
            self.near = false;
            tracing::warn!(
                "follower '{name}' is {behind} bytes behind at level {}, more than sync_max_lag: it does not count until \
                 it has caught up",
                rules.level.word()
            );
        } else if !self.near {
            let close = end.since(self.status.flush) <= rules.near;
            self.near = close && (limit == 0 || behind <= limit.min(rules.near));
        }
    }
}

#[derive(Debug, Default)]
struct Inner {
    peers: BTreeMap<String, Peer>,
    connections: u64,
    board: Board,
    /// The end of the log that is served.
    tail: Option<watch::Receiver<Tail>>,
    commits: Commits,
    /// Durable end of the log.
    end: Lsn,
    /// What of the positions before it has no log.
    gaps: Gaps,
}

impl Inner {
    /// Bytes of log behind a position.
    fn behind(&self, at: Lsn) -> u64 {
        self.gaps.between(at, self.end)
    }

    /// Those that are connected, in the order in which they came.
    fn candidates(peers: &BTreeMap<String, Peer>) -> Vec<Candidate<'_>> {
        let mut here: Vec<&Peer> = peers.values().filter(|p| p.status.state != PeerState::Away).collect();
        here.sort_unstable_by_key(|p| p.connection);
        here.into_iter().map(Peer::candidate).collect()
    }

    /// Something changed that confirmations depend on.
    fn look(&mut self) {
        if self.board.idle() {
            return;
        }
        self.review();
    }

    fn review(&mut self) {
        let end = self.tail.as_ref().map_or(Lsn::ZERO, |t| t.borrow().end);
        let rules = self.board.rules().clone();
        self.peers.values_mut().for_each(|p| p.judge(&rules, end));
        self.board.look(&Self::candidates(&self.peers));
    }
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
        let mut list: Vec<FollowerStatus> = each.collect();
        let (rules, candidates) = (inner.board.rules(), Inner::candidates(&inner.peers));
        let decision = quorum::decide(&rules.policy, rules.level, &candidates);
        for (candidate, (state, rank)) in candidates.iter().zip(decision.members) {
            if let Some(status) = list.iter_mut().find(|s| s.name == candidate.name) {
                (status.sync_state, status.sync_priority) = (state, rank);
                status.sync_counts = rank > 0 && candidate.counts(rules.level);
            }
        }
        list
    }

    /// The id of the follower of this name, if one is known.
    #[must_use]
    pub fn node_of(&self, name: &str) -> Option<NodeId> {
        self.lock().peers.get(name).map(|p| p.node)
    }

    /// The log that is served from now on.
    pub(super) fn serve(&self, tail: watch::Receiver<Tail>, gaps: Gaps) {
        let mut inner = self.lock();
        (inner.tail, inner.gaps) = (Some(tail), gaps);
    }

    /// Followers that were here before this process began, by their slots: they are away until they come.
    pub fn remember(&self, absent: impl IntoIterator<Item = Absent>) {
        let mut inner = self.lock();
        for Absent { name, position, since } in absent {
            let mut peer = Peer::new(&name, Arc::new(Traffic::until(since)));
            peer.status.flush = position;
            inner.peers.entry(name).or_insert(peer);
        }
        forget(&mut inner);
    }

    /// Takes new rules of synchronous replication into force, for those that wait too.
    pub fn set_rules(&self, rules: Rules) {
        let mut inner = self.lock();
        inner.board.set_rules(rules);
        inner.review();
    }

    /// Follows whether the followers are there that have to confirm.
    #[must_use]
    pub fn in_force(&self) -> watch::Receiver<InForce> {
        self.lock().board.in_force()
    }

    /// How far the policy in force has confirmed, at each level; `None` where the quorum is missing.
    #[must_use]
    pub fn confirmed(&self) -> [Option<Lsn>; 3] {
        let inner = self.lock();
        let (policy, candidates) = (&inner.board.rules().policy, Inner::candidates(&inner.peers));
        Level::ALL.map(|level| quorum::decide(policy, level, &candidates).confirmed)
    }

    /// Why a policy can't be confirmed by the followers that are known, here or away; `None`: it can.
    #[must_use]
    pub fn obstacle(&self, policy: &quorum::Policy) -> Option<String> {
        let inner = self.lock();
        let known: Vec<(&str, bool)> =
            inner.peers.iter().map(|(name, p)| (name.as_str(), !p.never)).collect();
        quorum::obstacle(policy, &known)
    }

    /// How many wait for confirmations.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.lock().board.waiting()
    }

    /// Begins to wait for a confirmation.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] when too many wait.
    pub fn wait_for(self: &Arc<Self>, wait: Wait) -> crate::error::Result<Ticket> {
        let mut inner = self.lock();
        let (number, answer) = inner.board.put(wait)?;
        inner.review();
        drop(inner);
        Ok(Ticket { peers: Arc::clone(self), number, answer })
    }

    /// Whether the confirmations of `name` count now, and its place as in pg_stat_replication: the bits of a keepalive.
    pub(super) fn standing(&self, name: &str) -> u8 {
        let inner = self.lock();
        let (rules, candidates) = (inner.board.rules(), Inner::candidates(&inner.peers));
        if rules.policy.is_async() {
            return 0;
        }
        let decision = quorum::decide(&rules.policy, rules.level, &candidates);
        let mut each = candidates.iter().zip(decision.members);
        let Some((candidate, (state, rank))) = each.find(|(c, _)| c.name == name) else { return 0 };
        let place = match state {
            SyncState::Async => 0,
            SyncState::Potential => 1,
            SyncState::Sync => 2,
            SyncState::Quorum => 3,
        };
        let counts = rank > 0 && candidate.counts(rules.level);
        place << TELLS_STATE_SHIFT | if counts { TELLS_COUNTS } else { 0 }
    }

    /// Follows whether log that is only written is to be acknowledged.
    pub(super) fn hasty(&self) -> watch::Receiver<bool> {
        self.lock().board.hasty()
    }

    /// Takes note of how far the log was published: that far.
    pub fn hear(&self, tail: &mut watch::Receiver<Tail>) -> Tail {
        // A copy: who holds the channel while he waits for the registry stops the log's writer, and with it who has the registry.
        let now = *tail.borrow_and_update();
        let mut inner = self.lock();
        inner.end = now.end;
        inner.commits.saw(now.commit, now.commit_time);
        now
    }

    /// Time of the oldest commit behind `lsn`, ns since 1970 by the leader's clock; `None` when there is none.
    #[must_use]
    pub fn oldest_after(&self, lsn: Lsn) -> Option<i64> {
        self.lock().commits.oldest_after(lsn)
    }

    /// As [`Self::list`], with how far each is behind when the leader's clock shows `now`.
    #[must_use]
    pub fn survey(&self, now: i64) -> Vec<FollowerStatus> {
        let mut list = self.list();
        let inner = self.lock();
        for status in &mut list {
            // Before its first ack nothing is known of where it stands.
            status.lag = (status.apply > Lsn::ZERO).then(|| {
                let age = inner.commits.age(status.apply, now);
                let positions = [status.sent, status.write, status.flush, status.apply];
                LagStatus::new(positions.map(|p| inner.behind(p)), Some(age))
            });
            if let Some(peer) = inner.peers.get(&status.name) {
                status.followers = tree::nested(&peer.below.0, peer.below.1);
            }
        }
        list
    }

    /// Every follower and who follows it, to be told to the node that this one follows.
    #[must_use]
    pub fn below(&self, now: i64) -> Vec<Below> {
        let list = self.survey(now);
        let inner = self.lock();
        let none = Vec::new();
        let told = |name: &str| inner.peers.get(name).map_or(&none, |p| &p.below.0);
        tree::flat(list.iter().map(|status| (status, told(&status.name).as_slice())), wall_clock())
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
        let mut peer = Peer::new(name, Arc::clone(traffic));
        (peer.node, peer.connection, peer.cancel) = (node, connection, cancel.clone());
        (peer.status.state, peer.status.connected) = (PeerState::Connecting, wall_clock());
        address.clone_into(&mut peer.status.address);
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
        inner.look();
        Ok(Session { peers: Arc::clone(self), name: name.to_owned(), connection, cancel, hold: None })
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
    /// What the follower needs of the log.
    pub(super) hold: Option<Hold>,
}

impl Session {
    pub(super) fn update(&self, edit: impl FnOnce(&mut FollowerStatus)) {
        let mut inner = self.peers.lock();
        if let Some(p) = inner.peers.get_mut(&self.name).filter(|p| p.connection == self.connection) {
            let before = p.stand();
            edit(&mut p.status);
            if p.stand() != before {
                inner.look();
            }
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn state(&self, state: PeerState) {
        self.update(|s| s.state = state);
    }

    /// The follower told who follows it.
    pub(super) fn told(&self, below: Vec<Below>) {
        if let Some(hold) = &self.hold {
            hold.below(&below);
        }
        let mut inner = self.peers.lock();
        if let Some(p) = inner.peers.get_mut(&self.name).filter(|p| p.connection == self.connection) {
            p.below = (below, wall_clock());
        }
    }

    pub(super) fn ack(&self, ack: &Ack) {
        if let Some(hold) = &self.hold {
            hold.confirmed(ack.flush);
        }
        let mut inner = self.peers.lock();
        let Some(p) = inner.peers.get_mut(&self.name).filter(|p| p.connection == self.connection) else {
            return;
        };
        let before = p.stand();
        let s = &mut p.status;
        (s.write, s.flush, s.apply) = (ack.write, ack.flush, ack.apply);
        (s.apply_time, s.halted) = (ack.apply_time, ack.halted());
        s.delay = ack.delay.map(|ns| std::time::Duration::from_nanos(ns).as_secs_f64());
        let named = !before.3 && ack.never();
        (p.applies, p.never) = (ack.applies(), ack.never());
        if p.stand() == before {
            return;
        }
        inner.look();
        if named && inner.board.rules().policy.names.iter().any(|n| n.eq_ignore_ascii_case(&self.name)) {
            tracing::warn!(
                "follower '{0}' is named in synchronous_followers but says sync_candidate = false: it does not count; take \
                 it out of the list or its word back",
                self.name
            );
        }
    }
}

/// A caller's place on the board; it is given up when this is dropped.
#[derive(Debug)]
pub struct Ticket {
    peers: Arc<Peers>,
    number: u64,
    answer: oneshot::Receiver<Confirmed>,
}

impl Ticket {
    /// Waits, for ever if need be.
    ///
    /// # Errors
    /// [`ErrorKind::Cancelled`] when nobody can answer any more.
    pub async fn confirmed(&mut self) -> crate::error::Result<Confirmed> {
        let gone = |_| Error::new(ErrorKind::Cancelled, "nobody hears followers any more");
        (&mut self.answer).await.map_err(gone)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.peers.lock().board.drop_ticket(self.number);
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.state(PeerState::Away);
        // What is behind it is not known any more.
        self.told(Vec::new());
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
    fn lag_is_the_age_of_the_oldest_commit_that_is_missing_and_nothing_at_idle() {
        let (peers, second) = (Arc::new(Peers::default()), 1_000_000_000);
        let s = join(&peers, "a", "1");
        let lag = |now: i64| peers.survey(now * second)[0].lag.map(|l| (l.bytes, l.seconds));
        let commit = |lsn: u64, time: i64| {
            let (lsn, commit_time) = (Lsn(lsn), time * second);
            peers.hear(&mut watch::channel(Tail { end: lsn, commit: lsn, commit_time, ..Tail::default() }).1);
        };
        commit(100, 10);
        assert_eq!(lag(11), None, "it has not said where it stands");
        s.ack(&Ack { apply: Lsn(100), ..Ack::default() });
        assert_eq!(lag(10_000), Some((0, Some(0.0))), "idle for hours");
        // Paused, or away: the age grows, of the first commit that it does not show.
        commit(150, 10_000);
        commit(190, 10_050);
        assert_eq!(lag(10_060), Some((90, Some(60.0))));
        s.ack(&Ack { apply: Lsn(150), ..Ack::default() });
        assert_eq!(lag(10_060), Some((40, Some(10.0))));
        drop(s);
        assert_eq!(lag(10_070), Some((40, Some(20.0))));
        assert_eq!(peers.oldest_after(Lsn(190)), None);
    }

    #[test]
    fn who_follows_a_follower_is_shown_below_it_and_told_upward() {
        let (leader, middle) = (Arc::new(Peers::default()), Arc::new(Peers::default()));
        let (near, far) = (join(&leader, "near", "1"), join(&middle, "far", "2"));
        far.state(PeerState::Streaming);
        let deep = Below { name: "deep".to_owned(), state: "away".to_owned(), ..Below::default() };
        far.told(vec![deep]);
        middle.hear(
            &mut watch::channel(Tail { end: Lsn(50), commit: Lsn(50), commit_time: 7, ..Tail::default() }).1,
        );
        far.ack(&Ack { flush: Lsn(50), apply: Lsn(40), ..Ack::default() });
        near.told(middle.below(10));
        let list = leader.survey(0);
        let [below] = &list[0].followers[..] else { panic!("{list:?}") };
        assert_eq!((below.name.as_str(), below.state.as_str(), below.flush), ("far", "streaming", Lsn(50)));
        assert_eq!(below.lag.map(|l| (l.bytes, l.seconds)), Some((10, Some(3e-9))));
        assert!(below.followers[0].name == "deep" && below.followers[0].lag.is_none());
        assert_eq!(leader.below(0).iter().map(|b| b.depth).collect::<Vec<_>>(), [0, 1, 2]);
        drop(near);
        assert!(leader.survey(0)[0].followers.is_empty(), "nothing is known of them now");
    }
}
