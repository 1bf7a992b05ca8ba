//! Positions that no log has: a segment that is sealed before it is full ends there, and the next one begins at its own
//! first position. What is outstanding between two positions is what was written between them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use super::lock;
use crate::position::Lsn;

/// Segments that ended before they were full, by their ends, with the beginning of the next. Of very many the oldest are
/// forgotten: what is outstanding behind those is told too great. Clones share what is known.
#[derive(Clone, Debug, Default)]
pub struct Gaps(Arc<Mutex<BTreeMap<Lsn, Lsn>>>);

impl Gaps {
    /// Most that are remembered.
    pub const MAX: usize = 1024;

    /// A segment ended at `end`; the next one begins at `next`.
    pub fn saw(&self, end: Lsn, next: Lsn) {
        let mut gaps = lock(&self.0);
        if end < next {
            gaps.insert(end, next);
        }
        while gaps.len() > Self::MAX {
            gaps.pop_first();
        }
    }

    /// Bytes of log from `from` to `to`; 0 when that is not behind it.
    #[must_use]
    pub fn between(&self, from: Lsn, to: Lsn) -> u64 {
        if to <= from {
            return 0;
        }
        let gaps = lock(&self.0);
        let first = gaps.range(..=from).next_back().map_or(from, |(end, _)| *end);
        let none: u64 =
            gaps.range(first..to).map(|(end, next)| (*next).min(to).since((*end).max(from))).sum();
        to.since(from).saturating_sub(none)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_never_written_is_not_outstanding() {
        let gaps = Gaps::default();
        assert_eq!(gaps.between(Lsn(5), Lsn(9)), 4);
        // Written: 0 to 10, 100 to 130, 200 on.
        gaps.saw(Lsn(10), Lsn(100));
        gaps.saw(Lsn(130), Lsn(200));
        gaps.saw(Lsn(300), Lsn(300));
        for (from, to, bytes) in [
            (0, 10, 10),
            (0, 100, 10),
            (0, 101, 11),
            (10, 101, 1),
            (50, 101, 1),
            (10, 60, 0),
            (50, 60, 0),
            (5, 250, 5 + 30 + 50),
            (100, 130, 30),
            (130, 205, 5),
            (250, 400, 150),
            (9, 3, 0),
        ] {
            assert_eq!(gaps.between(Lsn(from), Lsn(to)), bytes, "{from} to {to}");
        }
        for n in 10..3000 {
            gaps.saw(Lsn(n * 100 + 1), Lsn(n * 100 + 100));
        }
        assert_eq!(lock(&gaps.0).len(), Gaps::MAX);
        assert_eq!(gaps.between(Lsn(299_850), Lsn(299_902)), 1, "the newest are known");
    }
}
