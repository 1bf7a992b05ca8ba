//! Where each block of a file comes from, when several members of a chain have something of it. Pure.
//!
//! Members are looked at from the newest to the oldest: what is known already is newer, and stays. Within the log of one member
//! it is the other way round: what comes later is newer, and takes the place of what was there.

use crate::record::BLOCK;

/// Where the content of some blocks is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Origin {
    /// They are zeros.
    Zeros,
    /// Bytes `pos` to `pos + len` of the items of a frame; behind them are zeros.
    Frame { frame: u32, pos: u32, len: u32 },
    /// The same bytes of the file that the oldest member keeps.
    File,
}

impl Origin {
    /// The same without its first blocks, and with so many at most.
    fn part(self, skip: u64, count: u64) -> Self {
        let Self::Frame { frame, pos, len } = self else { return self };
        let bytes = |blocks: u64| u32::try_from(blocks.saturating_mul(BLOCK)).unwrap_or(u32::MAX);
        let skip = bytes(skip).min(len);
        Self::Frame { frame, pos: pos + skip, len: (len - skip).min(bytes(count)) }
    }
}

/// Blocks of one origin, one behind the other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Run {
    pub(super) first: u64,
    pub(super) count: u64,
    pub(super) origin: Origin,
}

impl Run {
    pub(super) fn end(&self) -> u64 {
        self.first.saturating_add(self.count)
    }

    /// What of it lies in `from..to`.
    fn clip(&self, from: u64, to: u64) -> Option<Self> {
        let (first, end) = (self.first.max(from), self.end().min(to));
        let count = end.checked_sub(first).filter(|n| *n > 0)?;
        Some(Self { first, count, origin: self.origin.part(first - self.first, count) })
    }
}

/// What is known of a file: runs in their order, and that nothing older counts from block `limit` on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Layers {
    runs: Vec<Run>,
    limit: u64,
}

impl Layers {
    /// Nothing is known of a file of so many blocks.
    pub(super) fn new(limit: u64) -> Self {
        Self { runs: Vec::new(), limit }
    }

    pub(super) fn runs(&self) -> &[Run] {
        &self.runs
    }

    pub(super) fn limit(&self) -> u64 {
        self.limit
    }

    /// Of what is older only so many blocks count.
    pub(super) fn bound(&mut self, blocks: u64) {
        self.limit = self.limit.min(blocks);
    }

    /// Adds what is older: only where nothing is known, and below the limit.
    pub(super) fn under(&mut self, run: Run) {
        let Some(run) = run.clip(0, self.limit) else { return };
        if self.runs.last().is_none_or(|last| last.end() <= run.first) {
            self.runs.push(run);
            return;
        }
        let (mut from, mut gaps) = (run.first, Vec::new());
        let at = self.runs.partition_point(|r| r.end() <= run.first);
        for known in self.runs.iter().skip(at) {
            if from >= run.end() {
                break;
            }
            gaps.extend(run.clip(from, known.first));
            from = from.max(known.end());
        }
        gaps.extend(run.clip(from, run.end()));
        self.insert(gaps);
    }

    /// Adds what is newer: it takes the place of what is there.
    pub(super) fn over(&mut self, run: Run) {
        if run.count == 0 {
            return;
        }
        if self.runs.last().is_some_and(|last| last.end() > run.first) {
            let from = self.runs.partition_point(|r| r.end() <= run.first);
            let to = self.runs.partition_point(|r| r.first < run.end());
            let mut rest = Vec::new();
            for known in self.runs.get(from..to).unwrap_or_default() {
                rest.extend(known.clip(0, run.first));
                rest.extend(known.clip(run.end(), u64::MAX));
            }
            self.runs.splice(from..to.max(from), rest);
        }
        self.insert(vec![run]);
    }

    /// The file is cut to so many blocks, then or later.
    pub(super) fn cut(&mut self, blocks: u64) {
        let kept: Vec<Run> = self.runs.iter().filter_map(|r| r.clip(0, blocks)).collect();
        self.runs = kept;
        self.bound(blocks);
    }

    /// Adds runs that overlap with none.
    fn insert(&mut self, runs: Vec<Run>) {
        for run in runs {
            let at = self.runs.partition_point(|r| r.first < run.first);
            self.runs.insert(at, run);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run(first: u64, count: u64, origin: Origin) -> Run {
        Run { first, count, origin }
    }

    fn frame(frame: u32, blocks: u64) -> Origin {
        Origin::Frame { frame, pos: 0, len: u32::try_from(blocks * BLOCK).unwrap() }
    }

    #[test]
    fn what_is_newer_stays_and_what_is_older_fills_the_gaps() {
        let mut l = Layers::new(10);
        l.under(run(2, 2, frame(1, 2)));
        l.under(run(6, 1, Origin::Zeros));
        l.under(run(0, 20, Origin::File));
        let want = [
            run(0, 2, Origin::File),
            run(2, 2, frame(1, 2)),
            run(4, 2, Origin::File),
            run(6, 1, Origin::Zeros),
            run(7, 3, Origin::File),
        ];
        assert_eq!(l.runs(), want);
    }

    #[test]
    fn what_was_cut_off_between_two_members_comes_back_from_neither() {
        let mut l = Layers::new(10);
        l.under(run(0, 1, frame(1, 1)));
        l.bound(2);
        l.under(run(0, 10, Origin::File));
        assert_eq!(l.runs(), [run(0, 1, frame(1, 1)), run(1, 1, Origin::File)]);
    }

    #[test]
    fn a_run_that_is_clipped_tells_the_rest_of_its_bytes() {
        let short = Origin::Frame { frame: 3, pos: 100, len: 2 * BLOCK as u32 + 5 };
        let mut l = Layers::new(u64::MAX);
        l.over(run(4, 3, short));
        l.over(run(5, 1, Origin::Zeros));
        let tail = Origin::Frame { frame: 3, pos: 100 + 2 * BLOCK as u32, len: 5 };
        let head = Origin::Frame { frame: 3, pos: 100, len: BLOCK as u32 };
        assert_eq!(l.runs(), [run(4, 1, head), run(5, 1, Origin::Zeros), run(6, 1, tail)]);
    }

    #[derive(Clone, Copy, Debug)]
    enum Op {
        Under(u64, u64),
        Over(u64, u64),
        Cut(u64),
        Bound(u64),
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            (0..20_u64, 0..8_u64).prop_map(|(a, n)| Op::Under(a, n)),
            (0..20_u64, 0..8_u64).prop_map(|(a, n)| Op::Over(a, n)),
            (0..24_u64).prop_map(Op::Cut),
            (0..24_u64).prop_map(Op::Bound),
        ]
    }

    proptest! {
        #[test]
        fn runs_say_what_a_table_of_blocks_says(ops in proptest::collection::vec(op(), 0..30)) {
            let (mut l, mut table, mut limit) = (Layers::new(24), vec![None; 32], 24);
            for (i, op) in ops.iter().enumerate() {
                let n = u32::try_from(i).unwrap();
                let source = |first: u64, b: u64| (n, (b - first) * BLOCK);
                match *op {
                    Op::Under(first, count) => {
                        l.under(run(first, count, frame(n, count)));
                        for b in first..(first + count).min(limit) {
                            table[b as usize].get_or_insert(source(first, b));
                        }
                    }
                    Op::Over(first, count) => {
                        l.over(run(first, count, frame(n, count)));
                        for b in first..first + count {
                            table[b as usize] = Some(source(first, b));
                        }
                    }
                    Op::Cut(n) => {
                        l.cut(n);
                        limit = limit.min(n);
                        table.iter_mut().skip(n as usize).for_each(|t| *t = None);
                    }
                    Op::Bound(n) => {
                        l.bound(n);
                        limit = limit.min(n);
                    }
                }
            }
            prop_assert_eq!(l.limit(), limit);
            prop_assert!(l.runs().windows(2).all(|w| w[0].end() <= w[1].first));
            let mut said = vec![None; 32];
            for r in l.runs() {
                let Origin::Frame { frame, pos, len } = r.origin else { panic!() };
                prop_assert_eq!(u64::from(len), r.count * BLOCK);
                for b in r.first..r.end() {
                    said[b as usize] = Some((frame, u64::from(pos) + (b - r.first) * BLOCK));
                }
            }
            prop_assert_eq!(said, table);
        }
    }
}
