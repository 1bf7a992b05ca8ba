//! Where a node's log comes from, as far as the node knows, and as it tells those that follow it: the clock that
//! stamps commits, how long there has been no news of the leader, and the nodes in between.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::{End, Ended, wall_clock};
use crate::position::NodeId;
use crate::wire::{Code, LINEAGE_MAX, Lineage, Origin};

/// What is known of the origin of the log. Clones share it. The default is a leader without an id.
#[derive(Clone, Debug, Default)]
pub struct Ancestry {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    node: NodeId,
    follows: bool,
    /// The leader's clock less this node's, ns.
    offset: AtomicI64,
    /// When the upstream was last heard, ns since 1970.
    heard: AtomicI64,
    /// For how long the upstream had no news of the leader when it last said so, ns.
    silent: AtomicU64,
    /// The nodes that the upstream's log comes through, the upstream first.
    above: Mutex<Lineage>,
}

impl Ancestry {
    /// A leader: the log begins here.
    #[must_use]
    pub fn leader(node: NodeId) -> Self {
        Self { inner: Arc::new(Inner { node, ..Inner::default() }) }
    }

    /// A follower that has heard nothing yet.
    #[must_use]
    pub fn follower(node: NodeId) -> Self {
        let heard = AtomicI64::new(wall_clock());
        Self { inner: Arc::new(Inner { node, follows: true, heard, ..Inner::default() }) }
    }

    fn above(&self) -> MutexGuard<'_, Lineage> {
        self.inner.above.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// This node.
    #[must_use]
    pub fn node(&self) -> NodeId {
        self.inner.node
    }

    /// Whether the log comes from another node.
    #[must_use]
    pub fn follows(&self) -> bool {
        self.inner.follows
    }

    /// Whether the node that the log comes from is this one.
    #[must_use]
    pub fn is_from(&self, node: NodeId) -> bool {
        self.above().place(node) == Some(0)
    }

    /// The leader's clock shows `now`.
    pub fn learn(&self, now: i64) {
        self.inner.offset.store(now.saturating_sub(wall_clock()), Ordering::Relaxed);
    }

    /// What the leader's clock shows, nanoseconds since 1970.
    #[must_use]
    pub fn now(&self) -> i64 {
        wall_clock().saturating_add(self.inner.offset.load(Ordering::Relaxed))
    }

    /// Something came from the upstream.
    pub fn heard(&self) {
        self.inner.heard.store(wall_clock(), Ordering::Relaxed);
    }

    /// The upstream has had no news of the leader for so long (ns); 0: it has.
    pub fn told(&self, silent: u64) {
        self.inner.silent.store(silent, Ordering::Relaxed);
        self.heard();
    }

    /// How long there has been no news of the leader: nothing from the upstream for longer than `patience`, or
    /// none behind it. Zero while there are.
    #[must_use]
    pub fn silence(&self, patience: Duration) -> Duration {
        if !self.inner.follows {
            return Duration::ZERO;
        }
        let own = wall_clock().saturating_sub(self.inner.heard.load(Ordering::Relaxed));
        let own = Duration::from_nanos(u64::try_from(own).unwrap_or(0));
        match self.inner.silent.load(Ordering::Relaxed) {
            0 if own <= patience => Duration::ZERO,
            above => own.saturating_add(Duration::from_nanos(above)),
        }
    }

    /// Whether the upstream is there, but has no news of the leader.
    #[must_use]
    pub fn is_cut_off_above(&self) -> bool {
        self.inner.silent.load(Ordering::Relaxed) > 0
    }

    /// The upstream's log comes through these nodes.
    ///
    /// # Errors
    /// This node is one of them, or they are as many as there may be.
    pub fn descends(&self, lineage: &Lineage) -> Ended<()> {
        let place = lineage.place(self.inner.node);
        self.above().clone_from(lineage);
        let reason = match place {
            Some(0) => "this node follows itself: what answers there is this node".to_owned(),
            Some(n) => format!(
                "this node follows itself: the upstream's log comes from this node, over {n} node{}",
                if n == 1 { "" } else { "s" }
            ),
            None if lineage.is_full() => {
                format!("the upstream's log comes over {LINEAGE_MAX} nodes already, as many as there may be")
            }
            None => return Ok(()),
        };
        Err(End::Refused(Code::Circle, reason))
    }

    /// Nobody answers there, so nothing is known of what is behind.
    pub fn lost(&self) {
        *self.above() = Lineage::default();
    }

    /// What to tell a follower of this node.
    #[must_use]
    pub fn origin(&self, patience: Duration) -> Origin {
        let silent = u64::try_from(self.silence(patience).as_nanos()).unwrap_or(u64::MAX);
        Origin { silent, lineage: Lineage::of(self.inner.node, &self.above()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lineage(of: &Ancestry) -> Lineage {
        of.origin(Duration::MAX).lineage
    }

    #[test]
    fn a_followers_idea_of_the_leaders_clock_follows_keepalives() {
        let ancestry = Ancestry::default();
        assert!((ancestry.now() - wall_clock()).abs() < 1_000_000_000);
        ancestry.learn(wall_clock() - 3_600_000_000_000);
        assert!((ancestry.now() - wall_clock() + 3_600_000_000_000).abs() < 1_000_000_000);
    }

    #[test]
    fn silence_of_the_leader_is_passed_down_and_so_is_its_end() {
        let (leader, middle, end) =
            (Ancestry::leader(NodeId(1)), Ancestry::follower(NodeId(2)), Ancestry::follower(NodeId(3)));
        let (second, minute) = (Duration::from_secs(1), Duration::from_secs(60));
        assert_eq!(leader.origin(Duration::ZERO).silent, 0);
        assert_eq!(middle.origin(second).silent, 0, "it has just begun");
        middle.inner.heard.fetch_sub(5_000_000_000, Ordering::Relaxed);
        let told = middle.origin(second).silent;
        assert!((5_000_000_000..6_000_000_000).contains(&told), "{told}");
        end.told(told);
        // However patient the end is: it hears its upstream, which is no news of the leader.
        assert!(end.is_cut_off_above() && end.silence(minute) >= Duration::from_secs(5));
        end.heard();
        assert!(!end.silence(minute).is_zero());
        middle.told(leader.origin(second).silent);
        end.told(middle.origin(second).silent);
        assert!(!end.is_cut_off_above() && end.silence(second).is_zero());
    }

    #[test]
    fn a_circle_is_found_by_each_node_in_it_and_gone_with_what_made_it() {
        let [a, b, c] = [1, 2, 3].map(|n| Ancestry::follower(NodeId(n)));
        let circle = |r: Ended<()>| match r {
            Err(End::Refused(Code::Circle, reason)) => reason,
            other => panic!("{other:?}"),
        };
        assert!(circle(a.descends(&lineage(&a))).contains("answers there"));
        a.lost();
        b.descends(&lineage(&a)).unwrap();
        c.descends(&lineage(&b)).unwrap();
        assert!(circle(a.descends(&lineage(&c))).contains("over 2 nodes"));
        circle(b.descends(&lineage(&a)));
        circle(c.descends(&lineage(&b)));
        // One is turned to a leader.
        b.descends(&lineage(&Ancestry::leader(NodeId(9)))).unwrap();
        c.descends(&lineage(&b)).unwrap();
        a.descends(&lineage(&c)).unwrap();
        let mut above = lineage(&a);
        for n in 100..100 + LINEAGE_MAX as u64 {
            above = Lineage::of(NodeId(n), &above);
        }
        assert!(circle(a.descends(&above)).contains("as many as there may be"));
    }
}
