//! Decisions of the two ends of a connection, as pure functions and values: whether a receiver may
//! follow and from where, when to try again, and how far behind it is. No I/O, no clock, no async.
//!
//! ```text
//!  receiver                                    sender
//!     | -------- hello ------------------------> |   who am I, where do I stand, what do I want
//!     | <------- welcome: decision ------------- |   decide()
//!     |                                          |
//!     |  StreamFrom:  <--- log, keepalive ------ |   for ever
//!     |               ---- ack ----------------> |
//!     |                                          |
//!     |  Fill:        <--- snapshot data, end -- |
//!     |  ResumeFill:  ---- fill request -------> |   some batches outstanding
//!     |               <--- fill data, batch end- |
//!     |               ---- fill done ----------> |
//!     |               <--- fill end ------------ |   then it connects again and streams
//! ```

use std::collections::VecDeque;
use std::time::Duration;

use crate::history::History;
use crate::position::{Lsn, SegmentNo, SystemId};
use crate::wire::{Code, Decision, Hello, NAME_MAX, RoleWanted, VERSION_MAX, VERSION_MIN, Want};

mod upstreams;

pub use upstreams::{Answer, Turns, UPSTREAMS_MAX, UpstreamRole, verdict};

mod commits;

pub use commits::Commits;

pub mod handover;
mod lines;

pub use lines::{Course, course};

mod rivals;

pub use rivals::{Rival, rival};

/// What a sender knows of itself when a receiver says hello.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Here {
    /// The way of its log: its system, its timeline, and those before it.
    pub history: History,
    /// End of its durable log.
    pub end: Lsn,
    /// First position of the oldest log it still has.
    pub oldest: Lsn,
    /// Whether its own log comes from another node.
    pub follows: bool,
}

/// What the sender's own log has where the receiver's ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Proof {
    /// SHA-256 of as many stored bytes of the same segment.
    Hash([u8; 32]),
    /// The segment is shorter here, or not written yet.
    Short,
    /// The segment was removed.
    Gone,
}

/// Whether `name` may name a node: 1 to 64 of letters, digits, `-`, `_`, `.`, the first a letter or digit.
#[must_use]
pub fn valid_name(name: &str) -> bool {
    let first = name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    first && name.len() <= NAME_MAX && name.bytes().all(allowed)
}

/// The version that both ends speak, if there is one.
#[must_use]
pub fn common_version(theirs: (u16, u16)) -> Option<u16> {
    let highest = theirs.1.min(VERSION_MAX);
    (highest >= theirs.0.max(VERSION_MIN)).then_some(highest)
}

/// Whether the receiver that said `hello` may follow the node that stands `here`, and from where.
/// `proof` says what the sender's own log holds at the receiver's position.
#[must_use]
pub fn decide(hello: &Hello, here: &Here, proof: Proof) -> Decision {
    if let Err((code, reason)) = acquainted(hello, here) {
        return Decision::Refuse { code, reason };
    }
    match hello.want {
        Want::Fill => Decision::Fill,
        Want::ResumeFill(snapshot)
            if hello.system == here.history.system() && hello.timeline == here.history.timeline() =>
        {
            resume_fill(snapshot, here)
        }
        Want::ResumeFill(_) => Decision::Fill,
        Want::Judgement => stream(hello, here, proof),
        Want::Handover => Decision::Handover,
        // A receiver without a system has nothing to continue: whatever it asks for, it gets it all.
        Want::Stream if hello.system == SystemId::NONE => Decision::Fill,
        Want::Stream => stream(hello, here, proof),
    }
}

fn acquainted(hello: &Hello, here: &Here) -> Result<(), (Code, String)> {
    if common_version(hello.versions).is_none() {
        let (low, high) = hello.versions;
        let reason = format!(
            "the follower speaks protocol versions {low} to {high}, this node {VERSION_MIN} to {VERSION_MAX}; update the older of the two"
        );
        return Err((Code::Version, reason));
    }
    if !valid_name(&hello.name) {
        let reason = format!(
            "the name '{}' is not allowed; use 1 to {NAME_MAX} letters, digits, '-', '_' and '.', the first a letter or digit",
            hello.name.escape_debug()
        );
        return Err((Code::Name, reason));
    }
    match hello.wants {
        RoleWanted::Leader if here.follows => {
            return Err((
                Code::UpstreamRole,
                "this node is a follower, and a leader is asked for".to_owned(),
            ));
        }
        RoleWanted::Follower if !here.follows => {
            return Err((
                Code::UpstreamRole,
                "this node is the leader, and a follower is asked for".to_owned(),
            ));
        }
        _ => {}
    }
    if hello.system == SystemId::NONE {
        return Ok(());
    }
    let system = here.history.system();
    if hello.system != system {
        let reason = format!(
            "the follower holds system {}, this node serves system {system}; point it at its own leader, or empty its two directories",
            hello.system
        );
        return Err((Code::WrongSystem, reason));
    }
    lines::judge(hello, here)
}

/// A copy goes on from its snapshot as long as all log since then is here; else it starts anew.
fn resume_fill(snapshot: Lsn, here: &Here) -> Decision {
    if snapshot > here.end {
        // A follower that is behind says nothing about a copy from another.
        let code = if here.follows { Code::NotReady } else { Code::Diverged };
        let reason = format!(
            "the follower's copy began at {snapshot}, past this node's log, which ends at {}; empty the follower's two directories",
            here.end
        );
        return Decision::Refuse { code, reason };
    }
    if snapshot >= here.oldest { Decision::ResumeFill } else { Decision::Fill }
}

fn stream(hello: &Hello, here: &Here, proof: Proof) -> Decision {
    let diverged = |why: &str| {
        let reason = format!(
            "the follower's log ends at {}, this node's at {}: {why}; the follower must be rewound or resynced",
            hello.flush, here.end
        );
        Decision::Refuse { code: Code::Diverged, reason }
    };
    if hello.flush > here.end {
        // Only a leader's end is the end: another follower may be behind, and a log that is newer is not thrown away
        // for that.
        if here.follows {
            let reason = format!(
                "the follower's log ends at {}, and this node, which follows itself, has no more than up to {} yet; if the leader \
                 is lost, promote the follower, which is further, and not this node; `towline resync` would throw away what \
                 the follower has more",
                hello.flush, here.end
            );
            return Decision::Refuse { code: Code::NotReady, reason };
        }
        return diverged("the follower is ahead");
    }
    match proof {
        Proof::Hash(hash) if hash == hello.prefix => {
            Decision::StreamFrom { segment: hello.segment, offset: hello.offset }
        }
        Proof::Hash(_) => diverged("the logs differ before that"),
        Proof::Short => diverged("the follower's last segment is longer"),
        Proof::Gone => Decision::Resync {
            reason: format!(
                "the follower needs log from {} on, and the oldest here begins at {}; it must be resynced",
                hello.flush, here.oldest
            ),
        },
    }
}

/// Where a receiver with a log says it stands: the segment that proves a common history is the last one with bytes.
#[must_use]
pub fn resume_point(tail: (SegmentNo, u64), previous: Option<u64>) -> (SegmentNo, u64) {
    match (tail, previous) {
        ((segment, 0), Some(len)) if segment.0 > 0 && len > 0 => (SegmentNo(segment.0 - 1), len),
        _ => tail,
    }
}

/// Pauses between attempts to connect: exponential with full jitter above a half, 100 ms to 10 s.
#[derive(Clone, Debug)]
pub struct Backoff {
    next: Duration,
    rng: fastrand::Rng,
}

impl Backoff {
    /// The first pause is at most this.
    pub const FIRST: Duration = Duration::from_millis(100);
    /// No pause is longer.
    pub const LAST: Duration = Duration::from_secs(10);

    /// A fresh row of pauses; the seed decides the jitter.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { next: Self::FIRST, rng: fastrand::Rng::with_seed(seed) }
    }

    /// To be called after a success.
    pub fn reset(&mut self) {
        self.next = Self::FIRST;
    }

    /// Goes at once to the longest pause: the peer's answer will not change soon.
    pub fn slow(&mut self) {
        self.next = Self::LAST;
    }
}

impl Iterator for Backoff {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let whole = self.next;
        self.next = (whole * 2).min(Self::LAST);
        Some(whole.mul_f64(0.5 + self.rng.f64() / 2.0))
    }
}

/// How far a receiver's directory is behind its leader, in bytes and in seconds.
///
/// Seconds are the age of the oldest known commit that is not applied, by the leader's clock alone:
/// the leader's time comes with each keepalive, and only durations are measured here.
#[derive(Clone, Debug, Default)]
pub struct Lag {
    end: Lsn,
    applied: Lsn,
    commits: VecDeque<(Lsn, i64)>,
}

impl Lag {
    /// Most commits remembered; when there are more, every second one is forgotten.
    pub const COMMITS: usize = 256;

    /// The leader's durable log reaches `end`.
    pub fn saw_end(&mut self, end: Lsn) {
        self.end = self.end.max(end);
    }

    /// The leader committed up to `lsn` at `time` (nanoseconds since 1970 by its clock).
    pub fn saw_commit(&mut self, lsn: Lsn, time: i64) {
        self.saw_end(lsn);
        if lsn <= self.applied || self.commits.back().is_some_and(|(last, _)| *last >= lsn) {
            return;
        }
        if self.commits.len() >= Self::COMMITS {
            let mut keep = false;
            self.commits.retain(|_| {
                keep = !keep;
                keep
            });
        }
        self.commits.push_back((lsn, time));
    }

    /// The directory shows everything up to `lsn`.
    pub fn applied(&mut self, lsn: Lsn) {
        self.applied = self.applied.max(lsn);
        while self.commits.front().is_some_and(|(first, _)| *first <= self.applied) {
            self.commits.pop_front();
        }
    }

    /// Everything is forgotten: the leader changed.
    pub fn restart(&mut self) {
        *self = Self { applied: self.applied, ..Self::default() };
    }

    /// Bytes of log between the leader's end and what is applied.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.end.since(self.applied)
    }

    /// Seconds behind when the leader's clock shows `now`; 0 when every known commit is applied.
    #[must_use]
    pub fn seconds(&self, now: i64) -> f64 {
        let Some((_, time)) = self.commits.front() else { return 0.0 };
        Duration::from_nanos(u64::try_from(now.saturating_sub(*time)).unwrap_or(0)).as_secs_f64()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::position::{NodeId, TimelineId};
    use crate::wire::Purpose;

    pub(super) const HASH: [u8; 32] = [3; 32];

    pub(super) fn here() -> Here {
        Here { history: lines::tests::second(), end: Lsn(5000), oldest: Lsn(1000), follows: true }
    }

    #[test]
    fn only_a_leader_says_that_a_follower_is_ahead_for_good() {
        let ahead = Hello { flush: Lsn(5001), ..hello() };
        let future = Hello { want: Want::ResumeFill(Lsn(5001)), ..hello() };
        for (follows, said) in [(true, "NotReady"), (false, "Diverged")] {
            let here = Here { follows, ..here() };
            assert_eq!(word(&decide(&ahead, &here, Proof::Short)), said);
            assert_eq!(word(&decide(&future, &here, Proof::Hash(HASH))), said);
        }
        let other = Proof::Hash([4; 32]);
        assert_eq!(word(&decide(&hello(), &here(), other)), "Diverged", "a difference is one anywhere");
    }

    pub(super) fn hello() -> Hello {
        Hello {
            versions: (1, 7),
            system: SystemId(7),
            timeline: TimelineId(2),
            flush: Lsn(4000),
            segment: SegmentNo(3),
            offset: 77,
            prefix: HASH,
            want: Want::Stream,
            name: "f1".to_owned(),
            node: NodeId(9),
            wants: RoleWanted::Any,
            purpose: Purpose::Follow,
            line: lines::tests::LINE,
            history: None,
        }
    }

    pub(super) fn word(d: &Decision) -> String {
        match d {
            Decision::StreamFrom { segment, offset } => format!("stream {} {offset}", segment.0),
            Decision::Fill => "fill".to_owned(),
            Decision::ResumeFill => "resume".to_owned(),
            Decision::Handover => "handover".to_owned(),
            Decision::Resync { .. } => "resync".to_owned(),
            Decision::Refuse { code, .. } => format!("{code:?}"),
        }
    }

    #[test]
    fn the_resume_decision_as_a_table() {
        let same = Proof::Hash(HASH);
        let none = SystemId::NONE;
        let base = hello;
        let table: Vec<(&str, Hello, Proof, &str)> = vec![
            ("a prefix", base(), same, "stream 3 77"),
            ("at the very end", Hello { flush: Lsn(5000), ..base() }, same, "stream 3 77"),
            ("one byte ahead", Hello { flush: Lsn(5001), ..base() }, same, "NotReady"),
            (
                "ahead, and its segment unknown",
                Hello { flush: Lsn(9000), ..base() },
                Proof::Short,
                "NotReady",
            ),
            ("other bytes", base(), Proof::Hash([4; 32]), "Diverged"),
            ("longer segment", base(), Proof::Short, "Diverged"),
            ("segment gone", base(), Proof::Gone, "resync"),
            ("other system", Hello { system: SystemId(8), ..base() }, same, "WrongSystem"),
            (
                "other system, wants all",
                Hello { system: SystemId(8), want: Want::Fill, ..base() },
                same,
                "WrongSystem",
            ),
            ("newer timeline", Hello { timeline: TimelineId(3), ..base() }, same, "WrongTimeline"),
            ("empty", Hello { system: none, want: Want::Fill, ..base() }, Proof::Gone, "fill"),
            ("empty, wants log", Hello { system: none, ..base() }, Proof::Gone, "fill"),
            ("wants all again", Hello { want: Want::Fill, ..base() }, same, "fill"),
            ("half filled", Hello { want: Want::ResumeFill(Lsn(3000)), ..base() }, Proof::Gone, "resume"),
            (
                "half filled, no system",
                Hello { system: none, want: Want::ResumeFill(Lsn(3000)), ..base() },
                same,
                "fill",
            ),
            ("half filled, its log gone", Hello { want: Want::ResumeFill(Lsn(999)), ..base() }, same, "fill"),
            (
                "half filled from the future",
                Hello { want: Want::ResumeFill(Lsn(5001)), ..base() },
                same,
                "NotReady",
            ),
            (
                "half filled, other timeline",
                Hello { want: Want::ResumeFill(Lsn(3000)), timeline: TimelineId(9), ..base() },
                same,
                "WrongTimeline",
            ),
            ("too new", Hello { versions: (8, 9), ..base() }, same, "Version"),
            ("too old", Hello { versions: (0, 0), ..base() }, same, "Version"),
            ("inverted", Hello { versions: (3, 0), ..base() }, same, "Version"),
            ("newer, but speaks ours", Hello { versions: (1, 9), ..base() }, same, "stream 3 77"),
            ("only asks, a prefix", Hello { want: Want::Judgement, ..base() }, same, "stream 3 77"),
            ("only asks, other bytes", Hello { want: Want::Judgement, ..base() }, Proof::Short, "Diverged"),
            ("a follower is fine", Hello { wants: RoleWanted::Follower, ..base() }, same, "stream 3 77"),
            ("only the leader", Hello { wants: RoleWanted::Leader, ..base() }, same, "UpstreamRole"),
            ("no name", Hello { name: String::new(), ..base() }, same, "Name"),
            ("a path as name", Hello { name: "../x".to_owned(), ..base() }, same, "Name"),
        ];
        for (what, hello, proof, want) in table {
            assert_eq!(word(&decide(&hello, &here(), proof)), want, "{what}");
        }
    }

    #[test]
    fn a_divergence_names_both_positions() {
        let Decision::Refuse { reason, .. } = decide(&hello(), &here(), Proof::Hash([0; 32])) else {
            panic!()
        };
        assert!(reason.contains("0/00000FA0") && reason.contains("0/00001388"), "{reason}");
    }

    #[test]
    fn names_that_could_confuse_are_refused() {
        for good in ["a", "follower-1", "a.b_c", "9", &"x".repeat(64)] {
            assert!(valid_name(good), "{good}");
        }
        for bad in ["", "-a", ".", "a b", "a/b", "a\n", "\u{e9}", &"x".repeat(65)] {
            assert!(!valid_name(bad), "{bad}");
        }
    }

    #[test]
    fn an_empty_new_segment_is_proved_by_the_one_before() {
        assert_eq!(resume_point((SegmentNo(4), 10), Some(99)), (SegmentNo(4), 10));
        assert_eq!(resume_point((SegmentNo(4), 0), Some(99)), (SegmentNo(3), 99));
        assert_eq!(resume_point((SegmentNo(4), 0), None), (SegmentNo(4), 0));
    }

    #[test]
    fn pauses_double_with_jitter_up_to_ten_seconds_and_start_again_after_a_success() {
        let mut b = Backoff::new(1);
        let mut whole = Backoff::FIRST;
        for pause in b.by_ref().take(20) {
            assert!(pause >= whole / 2 && pause <= whole, "{pause:?} of {whole:?}");
            whole = (whole * 2).min(Backoff::LAST);
        }
        b.reset();
        assert!(b.next().unwrap() <= Backoff::FIRST);
        b.slow();
        assert!(b.next().unwrap() >= Backoff::LAST / 2);
        assert_ne!(Backoff::new(1).next(), Backoff::new(2).next());
    }

    #[test]
    fn lag_is_the_age_of_the_oldest_commit_not_applied() {
        let s = 1_000_000_000;
        let mut lag = Lag::default();
        assert_eq!((lag.bytes(), lag.seconds(99 * s)), (0, 0.0));
        lag.saw_commit(Lsn(100), 10 * s);
        lag.saw_commit(Lsn(200), 20 * s);
        lag.saw_end(Lsn(250));
        assert_eq!((lag.bytes(), lag.seconds(21 * s)), (250, 11.0));
        lag.applied(Lsn(100));
        assert_eq!((lag.bytes(), lag.seconds(21 * s)), (150, 1.0));
        lag.applied(Lsn(200));
        // Half a change set is bytes to go, but no commit to wait for.
        assert_eq!((lag.bytes(), lag.seconds(1000 * s)), (50, 0.0));
        lag.saw_commit(Lsn(150), 5 * s);
        assert_eq!(lag.seconds(1000 * s), 0.0, "an old keepalive changes nothing");
        lag.saw_commit(Lsn(300), 30 * s);
        assert_eq!(lag.seconds(29 * s), 0.0, "a clock that went back gives no negative age");
    }

    #[test]
    fn lag_forgets_commits_but_never_the_oldest() {
        let mut lag = Lag::default();
        for i in 1..10_000 {
            lag.saw_commit(Lsn(i), i64::try_from(i).unwrap() * 1_000_000_000);
        }
        assert!(lag.commits.len() <= Lag::COMMITS);
        assert_eq!(lag.seconds(10_000_000_000_000), 9999.0);
    }
}
