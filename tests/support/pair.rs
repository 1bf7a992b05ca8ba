//! A leader and a follower of it.

use std::path::Path;
use std::time::Duration;

use super::node::{Node, Spec};
use super::{Bed, assert_equal_within, until, within};

/// A leader and a follower, running. Dropped before their directory.
pub(crate) struct Pair {
    pub(crate) leader: Node,
    pub(crate) follower: Node,
    pub(crate) bed: Bed,
}

impl Pair {
    /// Both on empty directories, the follower filled.
    pub(crate) fn start(name: &str) -> Self {
        Self::with(Bed::new(name), |s| s, |s| s)
    }

    /// As [`Self::start`], with changes to how they are started. What already lies in the bed is used.
    pub(crate) fn with(
        bed: Bed,
        leader: impl FnOnce(Spec) -> Spec,
        follower: impl FnOnce(Spec) -> Spec,
    ) -> Self {
        let leader = leader(bed.leader("leader")).start();
        let follower = follower(bed.follower("follower", leader.spec.listen)).start();
        let pair = Self { leader, follower, bed };
        pair.equal(60);
        until(within(20), "the follower's directory is usable", || {
            let status = pair.follower.status()?;
            if status.0["apply"]["consistent"] == true { Ok(()) } else { Err(status.0.to_string()) }
        });
        pair
    }

    /// The leader's data directory.
    pub(crate) fn data(&self) -> &Path {
        self.leader.data()
    }

    /// Waits until the two trees are equal.
    pub(crate) fn equal(&self, seconds: u64) {
        self.equal_in(within(seconds));
    }

    /// Waits until the two trees are equal.
    pub(crate) fn equal_in(&self, limit: Duration) {
        assert_equal_within(limit, self.leader.data(), self.follower.data());
    }

    /// At the end of a test: quiet, equal, healthy, nobody panicked, positions agree, and both stop cleanly.
    pub(crate) fn finish(mut self) {
        self.equal(30);
        until(within(20), "the follower has applied all", || {
            let (l, f) = (self.leader.status()?, self.follower.status()?);
            for s in [&l, &f] {
                if let Some(kind) = s.error_kind() {
                    return Err(format!("error {kind} in {}", s.0));
                }
            }
            if l.exact() == f.applied() {
                Ok(())
            } else {
                Err(format!("{} against {}", l.exact(), f.applied()))
            }
        });
        self.follower.stop();
        self.leader.stop();
        self.leader.assert_no_panic();
        self.follower.assert_no_panic();
        super::assert_equal(self.leader.data(), self.follower.data());
    }
}
