//! What a follower knows of the node it follows: state of the connection, the leader's positions, lag.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;

use super::{Ancestry, End, Ended, Sources, Traffic, wall_clock};
use crate::certificate::Fingerprint;
use crate::history::History;
use crate::position::{Lsn, NodeId};
use crate::quorum::SyncState;
use crate::session::{Lag, UpstreamRole};
use crate::tls::Trust;
use crate::wire::{
    Code, Decision, Keepalive, RoleWanted, TELLS_COUNTS, TELLS_STATE_SHIFT, VERSION_SLOTS, Welcome,
};

/// State of the connection to the upstream node.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum UpstreamState {
    /// There is none; it is tried again with pauses.
    #[default]
    Connecting,
    /// The first copy is under way.
    Filling,
    /// Log comes in.
    Streaming,
    /// The upstream says no: see `code` and `error`. It is asked again now and then.
    Refused,
    /// The upstream no longer has the log this node needs: it will never catch up without a new fill.
    Resync,
}

/// Progress of a first copy.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct FillProgress {
    /// Regular files whose content is here.
    pub files: u64,
    /// Regular files of the snapshot.
    pub files_total: u64,
    /// Bytes of content that are here.
    pub bytes: u64,
    /// Sum of the sizes in the snapshot.
    pub bytes_total: u64,
}

/// The part of `status` about the upstream node. Positions are printed as `status` prints them.
#[derive(Clone, Debug, Default, Serialize)]
pub struct UpstreamStatus {
    /// Where it is looked for: of several addresses the one in use, or the next to be tried.
    pub address: String,
    /// All addresses, in the order of their turns.
    pub addresses: Vec<String>,
    /// What it is asked to be.
    pub wanted_role: UpstreamRole,
    /// Its name, once it said so.
    pub name: Option<String>,
    /// State of the connection.
    pub state: UpstreamState,
    /// The protocol version spoken with it; 0 before it answered.
    pub protocol: u16,
    /// The refusal, when there was one.
    pub code: Option<Code>,
    /// What ended the last attempt.
    pub error: Option<String>,
    /// Attempts to connect since the last that went well.
    pub attempts: u64,
    /// When the first of those failed, ns since 1970; 0 while all is well.
    pub since: i64,
    /// When the next one is made, ns since 1970; 0 while all is well.
    pub next_retry: i64,
    /// End of its durable log.
    #[serde(serialize_with = "text")]
    pub end: Lsn,
    /// Its last commit.
    #[serde(serialize_with = "text")]
    pub commit: Lsn,
    /// Its last exact cut.
    #[serde(serialize_with = "text")]
    pub exact: Lsn,
    /// When it was last heard, ns since 1970.
    pub heard: i64,
    /// Seconds since the upstream itself had news of the leader, when that is too long ago.
    pub leader_silent: Option<f64>,
    /// Whether this node's confirmations count, as the upstream last said over a connection that stands.
    pub sync_counts: bool,
    /// Its place as in pg_stat_replication, likewise.
    pub sync_state: Option<SyncState>,
    /// The first copy.
    pub fill: Option<FillProgress>,
    /// The way of its log, as far as it said so.
    #[serde(skip)]
    pub history: Option<History>,
    /// The way of another node to follow, that goes on from this node's line.
    #[serde(skip)]
    pub newest: Option<History>,
    /// Whether the connection is encrypted.
    pub tls: bool,
    /// Its key, when the connection is encrypted.
    pub fingerprint: Option<Fingerprint>,
}

fn text<S: serde::Serializer>(lsn: &Lsn, s: S) -> Result<S::Ok, S::Error> {
    s.collect_str(lsn)
}

/// The shared cell that holds the status; engines write it, `status` reads it.
#[derive(Debug)]
pub struct Upstream {
    inner: Mutex<(UpstreamStatus, Lag)>,
    ancestry: Ancestry,
    trust: Trust,
    rate: u64,
}

impl Default for Upstream {
    fn default() -> Self {
        Self::new(&Sources::one(""), NodeId::NONE)
    }
}

impl Upstream {
    /// Nothing known yet of any of the nodes that `node` may follow.
    #[must_use]
    pub fn new(sources: &Sources, node: NodeId) -> Self {
        let status = UpstreamStatus {
            address: sources.addresses.first().cloned().unwrap_or_default(),
            addresses: sources.addresses.clone(),
            wanted_role: sources.role,
            ..UpstreamStatus::default()
        };
        let inner = Mutex::new((status, Lag::default()));
        Self { inner, ancestry: Ancestry::follower(node), trust: Trust::default(), rate: 0 }
    }

    /// The same, whose nodes have to be trusted.
    #[must_use]
    pub fn trusting(self, trust: Trust) -> Self {
        Self { trust, ..self }
    }

    /// The same, from which at most so many bytes a second are taken; 0: any.
    #[must_use]
    pub fn limited(self, rate: u64) -> Self {
        Self { rate, ..self }
    }

    /// Counts what passes over a new connection.
    #[must_use]
    pub fn traffic(&self) -> Arc<Traffic> {
        Arc::new(Traffic::limited(self.rate))
    }

    /// By which terms an upstream is trusted.
    #[must_use]
    pub fn trust(&self) -> &Trust {
        &self.trust
    }

    fn lock(&self) -> MutexGuard<'_, (UpstreamStatus, Lag)> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known now.
    #[must_use]
    pub fn status(&self) -> UpstreamStatus {
        let mut status = self.lock().0.clone();
        if self.ancestry.is_cut_off_above() {
            status.leader_silent = Some(self.ancestry.silence(Duration::ZERO).as_secs_f64());
        }
        status
    }

    /// What is known of where the log comes from; to be passed on to those that follow this node.
    #[must_use]
    pub fn ancestry(&self) -> Ancestry {
        self.ancestry.clone()
    }

    /// The protocol version spoken with the upstream; 0 before it answered.
    #[must_use]
    pub fn protocol(&self) -> u16 {
        self.lock().0.protocol
    }

    /// The node that follows.
    #[must_use]
    pub fn node(&self) -> NodeId {
        self.ancestry.node()
    }

    /// Bytes and seconds that the directory is behind the leader. Without any news of it for longer than `patience`,
    /// directly or through other nodes, nobody knows of newer commits: seconds are `None`, unless there are older ones that are not applied.
    #[must_use]
    pub fn lag(&self, patience: Duration) -> (u64, Option<f64>) {
        let now = self.ancestry.now();
        let silent = !self.ancestry.silence(patience).is_zero();
        let inner = self.lock();
        let seconds = inner.1.seconds(now);
        (inner.1.bytes(), (seconds > 0.0 || !silent && inner.0.heard > 0).then_some(seconds))
    }

    /// Something came from the upstream.
    pub fn heard(&self) {
        self.ancestry.heard();
        self.lock().0.heard = wall_clock();
    }

    /// The upstream showed this key, or none over plain TCP.
    pub fn showed(&self, key: Option<Fingerprint>) {
        self.update(|s| (s.tls, s.fingerprint) = (key.is_some(), key));
    }

    /// The upstream answered a hello that asked for a node of the role that it `wants`.
    ///
    /// # Errors
    /// This node's log would come from itself, or whether the upstream is what was asked for is not known.
    pub fn welcomed(&self, welcome: &Welcome, wants: RoleWanted) -> Ended<()> {
        self.update(|s| {
            s.protocol = welcome.version;
            s.history.clone_from(&welcome.history);
        });
        let refused = matches!(welcome.decision, Decision::Refuse { .. });
        if wants != RoleWanted::Any && welcome.version < VERSION_SLOTS && !refused {
            let reason = "the upstream is too old to say whether it is the leader; update it".to_owned();
            return Err(End::Refused(Code::UpstreamRole, reason));
        }
        welcome.lineage.as_ref().map_or(Ok(()), |lineage| self.ancestry.descends(lineage))
    }

    /// The connection broke, or there is none.
    pub(super) fn lost(&self) {
        self.ancestry.lost();
        self.update(|s| (s.sync_counts, s.sync_state) = (false, None));
    }

    /// A connection went well: nothing of what failed before counts any more.
    pub fn connected(&self, name: &str, state: UpstreamState) {
        self.update(|s| {
            s.name = Some(name.to_owned());
            s.state = state;
            (s.code, s.error, s.attempts, s.since, s.next_retry) = (None, None, 0, 0, 0);
        });
    }

    /// Changes the status.
    pub fn update(&self, edit: impl FnOnce(&mut UpstreamStatus)) {
        edit(&mut self.lock().0);
    }

    /// A keepalive came.
    ///
    /// # Errors
    /// As [`Self::welcomed`].
    pub fn keepalive(&self, k: &Keepalive) -> Ended<()> {
        self.ancestry.learn(k.now);
        self.ancestry.told(k.origin.as_ref().map_or(0, |o| o.silent));
        let (status, lag) = &mut *self.lock();
        (status.end, status.commit, status.exact) = (k.end, k.commit, k.exact);
        status.heard = wall_clock();
        lag.saw_end(k.end);
        lag.saw_commit(k.commit, k.commit_time);
        let told = k.asks.unwrap_or(0);
        status.sync_counts = told & TELLS_COUNTS != 0;
        status.sync_state = k.asks.map(|_| match told >> TELLS_STATE_SHIFT & 3 {
            0 => SyncState::Async,
            1 => SyncState::Potential,
            2 => SyncState::Sync,
            _ => SyncState::Quorum,
        });
        k.origin.as_ref().map_or(Ok(()), |o| self.ancestry.descends(&o.lineage))
    }

    /// The own log holds a commit, and the directory shows everything up to `applied`.
    pub fn positions(&self, end: Lsn, (commit, time): (Lsn, i64), applied: Lsn) {
        let (status, lag) = &mut *self.lock();
        status.end = status.end.max(end);
        status.commit = status.commit.max(commit);
        lag.saw_end(end);
        lag.saw_commit(commit, time);
        lag.applied(applied);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Origin;

    #[test]
    fn lag_uses_the_leaders_clock_only() {
        let up = Upstream::new(&Sources::one("x"), NodeId(1));
        let hour = 3_600_000_000_000;
        // The leader's clock is an hour slow, its last commit two seconds old.
        let now = wall_clock() - hour;
        let k = Keepalive {
            end: Lsn(100),
            commit: Lsn(90),
            commit_time: now - 2_000_000_000,
            now,
            ..Keepalive::default()
        };
        up.keepalive(&k).unwrap();
        up.positions(Lsn(80), (Lsn(0), 0), Lsn(40));
        let (minute, any) = (Duration::from_secs(60), Duration::MAX);
        let (bytes, seconds) = up.lag(minute);
        let seconds = seconds.expect("known");
        assert_eq!(bytes, 60);
        assert!((2.0..3.0).contains(&seconds), "{seconds}");
        up.positions(Lsn(100), (Lsn(90), k.commit_time), Lsn(100));
        assert_eq!(up.lag(minute), (0, Some(0.0)));
        // Nobody knows what the leader did since; what it did before, and is not applied, has an age all the same.
        let none = Duration::ZERO;
        assert_eq!((up.lag(none), up.lag(any)), ((0, None), (0, Some(0.0))));
        up.positions(Lsn(120), (Lsn(110), now), Lsn(100));
        assert!(up.lag(none).1.is_some_and(|s| s > 0.0));
        up.positions(Lsn(120), (Lsn(110), now), Lsn(120));
        assert_eq!((up.lag(none).1, up.lag(minute).1), (None, Some(0.0)));
        assert_eq!(up.status().end, Lsn(120));
        // Nor does an upstream that is there, but has lost the leader.
        let mut k = Keepalive { origin: Some(Origin { silent: 5_000_000_000, ..Origin::default() }), ..k };
        up.keepalive(&k).unwrap();
        up.heard();
        assert_eq!(up.lag(any).1, None);
        assert!(up.status().leader_silent.is_some_and(|s| s >= 5.0));
        k.origin = Some(Origin::default());
        up.keepalive(&k).unwrap();
        assert_eq!((up.lag(minute).1, up.status().leader_silent), (Some(0.0), None));
        assert_eq!(Upstream::new(&Sources::one("x"), NodeId(1)).lag(minute).1, None, "never heard");
    }
}
