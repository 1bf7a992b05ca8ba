//! What keeps a node from running: since when, how often it was tried again, and when it is next.

use std::time::{Duration, Instant};

use crate::error::{Error, ErrorKind};
use crate::net::wall_clock;
use crate::state::Role;
use crate::status::Failure;

/// Pauses before another try of what may go away by itself: the first, the longest.
const SOON: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));
/// The same for what an operator has to put right: it is tried again, so that nobody must restart the node.
const SELDOM: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(60));
/// A failure of the same kind so soon after the node ran again is the same trouble.
const RELAPSE: Duration = Duration::from_secs(60);

/// What the node is doing, and what keeps it from running.
#[derive(Debug)]
pub(super) struct Phase {
    word: &'static str,
    ran: bool,
    trouble: Option<Trouble>,
}

/// A failure that stands until the node runs again.
#[derive(Clone, Debug)]
struct Trouble {
    error: Error,
    since: i64,
    attempts: u32,
    next: i64,
    /// When the node ran again.
    over: Option<Instant>,
}

/// The word of `status` for a node that stands still because of an error.
fn word(kind: ErrorKind) -> &'static str {
    if needs_help(kind) { kind.word() } else { "stalled" }
}

/// Whether a failure of this kind lasts until somebody does something about it.
pub(super) fn needs_help(kind: ErrorKind) -> bool {
    !kind.retries() && kind != ErrorKind::Cancelled
}

/// What to do about a failure, in one sentence.
pub(super) fn remedy(kind: ErrorKind, role: Role) -> &'static str {
    use ErrorKind as K;
    match (kind, role) {
        (K::Io | K::Cancelled, _) => "look at the named path and its disk; the node goes on by itself",
        (K::DiskFull, _) => "free space on the named file system; the node goes on by itself",
        (K::Unavailable, _) => "see that the named node runs and can be reached; the node goes on by itself",
        (K::Corrupt | K::Missing, Role::Leader) => {
            "put the named files back: a follower's state directory has the same log files, by name and by byte; the \
             node goes on by itself"
        }
        (K::Corrupt | K::Missing, Role::Follower) => {
            "put back what was taken away; damaged log is fetched again once the upstream answers; if this stays, stop \
             the node, empty its data and state directories, and start it: it is filled anew"
        }
        (K::Diverged, Role::Follower) => {
            "`towline resync` makes the directory equal to its upstream's again; only what differs is moved"
        }
        (K::Diverged, Role::Leader) => {
            "put the state directory back from a backup, or begin a new system with an empty one and fill the \
             followers again"
        }
        (K::Refused, Role::Follower) => {
            "undo what the message names, or point the node at its own leader; `towline reload` tries again at once"
        }
        (K::Refused, Role::Leader) => {
            "put right what the message names; `towline reload` tries again at once"
        }
        (K::Held, _) => "see that the deletion is meant, then `towline confirm`; or bring the files back",
        (K::Usage | K::Config | K::Locked, _) => {
            "correct what the message names; `towline reload` tries again at once"
        }
    }
}

impl Phase {
    pub(super) fn new() -> Self {
        Self { word: "starting", ran: false, trouble: None }
    }

    pub(super) fn word(&self) -> &'static str {
        self.word
    }

    /// Whether the node ever ran in this process.
    pub(super) fn has_run(&self) -> bool {
        self.ran
    }

    /// The node is doing something else now. What failed before is over once it runs.
    pub(super) fn enter(&mut self, word: &'static str) {
        self.word = word;
        self.ran |= word == "running";
        if word == "running"
            && let Some(trouble) = &mut self.trouble
        {
            trouble.over.get_or_insert_with(Instant::now);
        }
    }

    /// Something failed; returns the pause before the next try.
    pub(super) fn fail(&mut self, error: Error) -> Duration {
        let kind = error.kind();
        self.word = word(kind);
        let same = |t: &Trouble| t.error.kind() == kind && t.over.is_none_or(|o| o.elapsed() < RELAPSE);
        let before = self.trouble.take().filter(same);
        let (first, longest) = if needs_help(kind) { SELDOM } else { SOON };
        let tries = before.as_ref().map_or(0, |t| t.attempts);
        let pause = first.saturating_mul(1 << tries.min(16)).min(longest);
        self.trouble = Some(Trouble {
            since: before.map_or_else(wall_clock, |t| t.since),
            attempts: tries.saturating_add(1),
            next: wall_clock().saturating_add(i64::try_from(pause.as_nanos()).unwrap_or(i64::MAX)),
            over: None,
            error,
        });
        pause
    }

    /// What stands against running.
    pub(super) fn error(&self) -> Option<&Error> {
        self.trouble.as_ref().filter(|t| t.over.is_none()).map(|t| &t.error)
    }

    /// The same for `status`.
    pub(super) fn failure(&self, role: Role) -> Option<Failure> {
        let trouble = self.trouble.as_ref().filter(|t| t.over.is_none())?;
        let kind = trouble.error.kind();
        Some(Failure {
            kind: kind.word(),
            message: trouble.error.to_string(),
            remedy: remedy(kind, role),
            needs_help: needs_help(kind),
            since: trouble.since,
            attempts: u64::from(trouble.attempts),
            next_retry: Some(trouble.next),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(kind: ErrorKind) -> Error {
        Error::new(kind, "x")
    }

    #[test]
    fn pauses_grow_to_a_bound_and_trouble_lasts_until_the_node_runs() {
        let mut phase = Phase::new();
        assert!(phase.error().is_none());
        let mut last = Duration::ZERO;
        for n in 0..40 {
            let pause = phase.fail(error(ErrorKind::Io));
            assert!(pause >= last && pause <= SOON.1, "{n}: {pause:?}");
            assert_eq!(phase.word(), "stalled");
            last = pause;
            phase.enter("starting");
            assert!(phase.error().is_some(), "a retry has not helped yet");
        }
        assert_eq!(last, SOON.1);
        let shown = phase.failure(Role::Leader).unwrap();
        assert!(shown.attempts == 40 && !shown.needs_help && shown.next_retry > Some(shown.since));
        phase.enter("running");
        assert!(phase.error().is_none() && phase.failure(Role::Leader).is_none());
        // Back within a moment: the same trouble; another kind: a new one.
        phase.fail(error(ErrorKind::Io));
        assert_eq!(phase.failure(Role::Leader).unwrap().attempts, 41);
        assert_eq!(phase.fail(error(ErrorKind::Corrupt)), SELDOM.0);
        let shown = phase.failure(Role::Follower).unwrap();
        assert!(shown.attempts == 1 && shown.needs_help && phase.word() == "corrupt");
    }
}
