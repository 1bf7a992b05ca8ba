//! What a follower knows of the node it follows: state of the connection, the leader's positions, lag.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;

use super::{LeaderClock, wall_clock};
use crate::position::Lsn;
use crate::session::Lag;
use crate::wire::{Code, Keepalive};

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
    /// Where it is looked for.
    pub address: String,
    /// Its name, once it said so.
    pub name: Option<String>,
    /// State of the connection.
    pub state: UpstreamState,
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
    /// The first copy.
    pub fill: Option<FillProgress>,
}

fn text<S: serde::Serializer>(lsn: &Lsn, s: S) -> Result<S::Ok, S::Error> {
    s.collect_str(lsn)
}

/// The shared cell that holds the status; engines write it, `status` reads it.
#[derive(Debug, Default)]
pub struct Upstream {
    inner: Mutex<(UpstreamStatus, Lag)>,
    clock: LeaderClock,
}

impl Upstream {
    /// Nothing known yet.
    #[must_use]
    pub fn new(address: &str) -> Self {
        let status = UpstreamStatus { address: address.to_owned(), ..UpstreamStatus::default() };
        Self { inner: Mutex::new((status, Lag::default())), clock: LeaderClock::default() }
    }

    fn lock(&self) -> MutexGuard<'_, (UpstreamStatus, Lag)> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known now.
    #[must_use]
    pub fn status(&self) -> UpstreamStatus {
        self.lock().0.clone()
    }

    /// The leader's clock as learned here; to be passed on to those that follow this node.
    #[must_use]
    pub fn clock(&self) -> LeaderClock {
        self.clock.clone()
    }

    /// Bytes and seconds that the directory is behind the leader. Without any word for longer than `patience`
    /// nobody knows of newer commits: seconds are `None`, unless there are older ones that are not applied.
    #[must_use]
    pub fn lag(&self, patience: Duration) -> (u64, Option<f64>) {
        let now = self.clock.now();
        let inner = self.lock();
        let silence = wall_clock().saturating_sub(inner.0.heard);
        let silence = Duration::from_nanos(u64::try_from(silence).unwrap_or(0));
        let seconds = inner.1.seconds(now);
        (inner.1.bytes(), (seconds > 0.0 || silence <= patience).then_some(seconds))
    }

    /// Something came from the upstream.
    pub fn heard(&self) {
        self.lock().0.heard = wall_clock();
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
    pub fn keepalive(&self, k: &Keepalive) {
        self.clock.learn(k.now);
        let (status, lag) = &mut *self.lock();
        (status.end, status.commit, status.exact) = (k.end, k.commit, k.exact);
        status.heard = wall_clock();
        lag.saw_end(k.end);
        lag.saw_commit(k.commit, k.commit_time);
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

    #[test]
    fn lag_uses_the_leaders_clock_only() {
        let up = Upstream::new("x");
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
        up.keepalive(&k);
        up.positions(Lsn(80), (Lsn(0), 0), Lsn(40));
        let (minute, any) = (Duration::from_secs(60), Duration::MAX);
        let (bytes, seconds) = up.lag(minute);
        let seconds = seconds.expect("known");
        assert_eq!(bytes, 60);
        assert!((2.0..3.0).contains(&seconds), "{seconds}");
        up.positions(Lsn(100), (Lsn(90), k.commit_time), Lsn(100));
        assert_eq!(up.lag(minute), (0, Some(0.0)));
        // Nobody knows what the leader did since; what it did before, and is not applied, has an age all the same.
        up.update(|s| s.heard -= 61_000_000_000);
        assert_eq!((up.lag(minute), up.lag(any)), ((0, None), (0, Some(0.0))));
        up.positions(Lsn(120), (Lsn(110), now), Lsn(100));
        assert!(up.lag(minute).1.is_some_and(|s| s > 0.0));
        up.positions(Lsn(120), (Lsn(110), now), Lsn(120));
        assert_eq!(up.lag(minute).1, None);
        up.heard();
        assert_eq!(up.lag(minute).1, Some(0.0));
        assert_eq!(Upstream::new("x").lag(minute).1, None, "never heard");
        assert_eq!(up.status().end, Lsn(120));
    }
}
