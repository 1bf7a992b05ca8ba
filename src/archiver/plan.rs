//! What is to be archived next, from what the log and the archive hold. Pure.

use std::collections::BTreeSet;

use crate::position::SegmentNo;
use crate::retention::Stored;

/// What there is to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Step {
    /// Sealed segments that the archive lacks, ascending.
    pub(super) waiting: Vec<Stored>,
    /// Segments, first and last, that neither has, and that no later look will find.
    pub(super) gap: Option<(SegmentNo, SegmentNo)>,
    /// Up to here everything is dealt with.
    pub(super) reached: Option<SegmentNo>,
}

/// `stored` is what the log holds, ascending; `have` what of it the archive has; up to `reached` everything was dealt with.
pub(super) fn step(stored: &[Stored], have: &BTreeSet<SegmentNo>, reached: Option<SegmentNo>) -> Step {
    let before = stored.first().map(|s| SegmentNo(s.segment.0.saturating_sub(1)));
    let gap = before.zip(reached).filter(|(before, reached)| before > reached).map(|(b, r)| (r.next(), b));
    let mut reached = gap.map_or(reached, |(_, last)| Some(last));
    for s in stored.iter().take_while(|s| s.sealed && have.contains(&s.segment)) {
        reached = reached.max(Some(s.segment));
    }
    let waiting = stored.iter().filter(|s| s.sealed && !have.contains(&s.segment)).copied().collect();
    Step { waiting, gap, reached }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(from: u64, to: u64) -> Vec<Stored> {
        (from..=to).map(|n| Stored { segment: SegmentNo(n), bytes: 1, sealed: n < to }).collect()
    }

    #[test]
    fn what_is_sealed_and_not_there_waits_and_what_nobody_has_is_a_gap() {
        let at = |stored: &[Stored], have: &[u64], reached: Option<u64>| {
            let have = have.iter().map(|n| SegmentNo(*n)).collect();
            let step = step(stored, &have, reached.map(SegmentNo));
            let waiting: Vec<u64> = step.waiting.iter().map(|s| s.segment.0).collect();
            (waiting, step.gap.map(|(a, b)| (a.0, b.0)), step.reached.map(|r| r.0))
        };
        assert_eq!(at(&log(1, 4), &[], None), (vec![1, 2, 3], None, None));
        assert_eq!(at(&log(1, 4), &[1, 2, 3], None), (vec![], None, Some(3)));
        // A hole that can be filled is filled.
        assert_eq!(at(&log(1, 4), &[1, 3], None), (vec![2], None, Some(1)));
        assert_eq!(at(&log(5, 7), &[], Some(4)), (vec![5, 6], None, Some(4)));
        assert_eq!(at(&log(5, 7), &[], Some(2)), (vec![5, 6], Some((3, 4)), Some(4)));
        assert_eq!(at(&log(5, 7), &[5], Some(2)), (vec![6], Some((3, 4)), Some(5)));
        assert_eq!(at(&log(5, 5), &[], Some(3)), (vec![], Some((4, 4)), Some(4)));
        // An archive begins somewhere.
        assert_eq!(at(&log(5, 7), &[], None), (vec![5, 6], None, None));
        assert_eq!(at(&[], &[], Some(3)), (vec![], None, Some(3)));
    }
}
