//! When the newest commits were made: what turns a position into an age.

use std::collections::VecDeque;

use crate::position::Lsn;

/// The newest commits of a log with the leader's time of each. When they become too many some are
/// forgotten, the more the older they are, so that an age stays right to a few percent.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Commits {
    /// Sorted by position.
    known: VecDeque<(Lsn, i64)>,
}

impl Commits {
    /// Most commits remembered.
    pub const MAX: usize = 1024;
    /// An age may be too great by this part of it.
    const SHARE: i64 = 32;

    /// The log committed up to `lsn` at `time` (ns since 1970 by the leader's clock). An earlier position than
    /// the last one is another log's: what was known is forgotten.
    pub fn saw(&mut self, lsn: Lsn, time: i64) {
        match self.known.back() {
            _ if lsn == Lsn::ZERO => return,
            Some((last, _)) if *last == lsn => return,
            Some((last, _)) if *last > lsn => self.known.clear(),
            _ => {}
        }
        if self.known.len() >= Self::MAX {
            self.thin();
        }
        self.known.push_back((lsn, time));
    }

    /// Makes commits one that are near to each other for their age.
    fn thin(&mut self) {
        let newest = self.known.back().map_or(0, |(_, time)| *time);
        let mut share = Self::SHARE;
        while self.known.len() > Self::MAX / 4 * 3 {
            let mut last = None::<(Lsn, i64)>;
            let mut kept = VecDeque::with_capacity(Self::MAX);
            for (lsn, time) in self.known.drain(..) {
                match &mut last {
                    // What becomes one takes the older time: an age may be too great, never too small.
                    Some((end, first))
                        if share == 0
                            || time.saturating_sub(*first) <= newest.saturating_sub(time) / share =>
                    {
                        *end = lsn;
                        *first = (*first).min(time);
                        if share == 0 {
                            kept.extend(last.take());
                        }
                    }
                    _ => kept.extend(last.replace((lsn, time))),
                }
            }
            kept.extend(last);
            self.known = kept;
            share /= 2;
        }
    }

    /// The time of the oldest commit behind `lsn`; `None` when there is none.
    #[must_use]
    pub fn oldest_after(&self, lsn: Lsn) -> Option<i64> {
        let at = self.known.partition_point(|(known, _)| *known <= lsn);
        self.known.get(at).map(|(_, time)| *time)
    }

    /// Nanoseconds that who stands at `lsn` is behind, when the leader's clock shows `now`; 0 when all is there.
    #[must_use]
    pub fn age(&self, lsn: Lsn, now: i64) -> u64 {
        self.oldest_after(lsn).map_or(0, |time| u64::try_from(now.saturating_sub(time)).unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_age_is_that_of_the_oldest_commit_that_is_missing() {
        let mut commits = Commits::default();
        assert_eq!(commits.age(Lsn(0), 100), 0, "nothing is known to be missing");
        commits.saw(Lsn(0), 1);
        for (lsn, time) in [(10, 100), (20, 200), (20, 999), (30, 300)] {
            commits.saw(Lsn(lsn), time);
        }
        let table = [(0, 900), (9, 900), (10, 800), (15, 800), (20, 700), (29, 700), (30, 0), (99, 0)];
        for (at, age) in table {
            assert_eq!(commits.age(Lsn(at), 1000), age, "at {at}");
        }
        assert_eq!(commits.age(Lsn(0), 50), 0, "a clock that was set back");
        // Another log begins before: nothing of the old one counts.
        commits.saw(Lsn(5), 990);
        assert_eq!((commits.age(Lsn(0), 1000), commits.age(Lsn(7), 1000)), (10, 0));
    }

    #[test]
    fn the_memory_is_bounded_and_an_age_is_never_too_small() {
        let mut commits = Commits::default();
        let end = 100_000_u64;
        for n in 1..=end {
            commits.saw(Lsn(n), i64::try_from(n).unwrap());
            assert!(commits.known.len() <= Commits::MAX);
        }
        for at in [0, 1, 17, 5_000, 50_000, 99_000, 99_999] {
            let (age, exact) = (commits.age(Lsn(at), i64::try_from(end).unwrap()), end - at - 1);
            assert!(age >= exact && age <= exact + exact / 16 + 1, "at {at}: {age} for {exact}");
        }
        assert_eq!(commits.age(Lsn(end), i64::MAX), 0);
        // Nor do times that stand still or go back keep it from being bounded.
        for n in 1..5_000 {
            commits.saw(Lsn(end + n), i64::try_from(end - n).unwrap());
            assert!(commits.known.len() <= Commits::MAX);
        }
    }
}
