//! Reading ranges of files of which the follower holds something: what it has already is not sent, and where the
//! catalog knows the blocks it is not even read.
//!
//! Blocks that the catalog says to be what the follower has are passed over: that is the content as of a commit
//! after the snapshot, and what changed since is in the log. Everything else is read, compared with the catalog as for a whole
//! file, and sent if the follower has something else. What lies behind the end of the file counts as zeros.

use std::os::fd::OwnedFd;
use std::sync::RwLock;

use super::read::{Findings, LEARN_MAX, PIECE, Packer, Reading};
use crate::catalog::{Catalog, block_hashes, blocks_of};
use crate::error::Result;
use crate::record::BLOCK;
use crate::sys::{self, Stat};
use crate::wire::{Outcome, Range};

/// Most blocks read at once.
const RUN: u64 = PIECE as u64 / BLOCK;

impl Reading<'_> {
    /// Sends what differs in a range.
    pub(super) fn run_range(
        mut self,
        catalog: &RwLock<Catalog>,
        packer: &mut Packer<'_>,
        range: &Range,
    ) -> Result<()> {
        let end = range.first + u64::from(range.blocks);
        let Some((file, before)) = self.find(catalog)? else {
            // If it still lives under a name that capture has yet to see, its content must go through the log.
            let blocks: Vec<u64> = (range.first..end.min(blocks_of(self.plan.size))).collect();
            if !blocks.is_empty() {
                self.source.mismatch(self.plan.id, blocks);
            }
            return packer.end(self.plan.id, Outcome::Gone, 0);
        };
        let count = blocks_of(before.size);
        let whole = range.first == 0 && end >= count && count <= LEARN_MAX;
        let mut findings = Findings::default();
        if !self.plan.hashed && whole {
            findings.hashes = Some(vec![0; usize::try_from(count).unwrap_or(0)]);
        }
        self.differing(&file, &before, packer, range, &mut findings)?;
        self.conclude(&file, &before, packer, findings)
    }

    /// Walks the blocks of the range, runs of those that must be looked at together.
    fn differing(
        &self,
        file: &OwnedFd,
        stat: &Stat,
        packer: &mut Packer<'_>,
        range: &Range,
        f: &mut Findings,
    ) -> Result<()> {
        let n = range.blocks as usize;
        let known = if self.plan.hashed { self.known(range.first, n) } else { None };
        let same = |i: usize| known.as_ref().and_then(|k| k.get(i)).is_some_and(|k| *k == range.hash(i));
        let mut i = 0;
        while i < n {
            let from = i;
            if same(i) {
                i += 1;
                continue;
            }
            while i < n && !same(i) && (i - from) < RUN as usize {
                i += 1;
            }
            self.run_of(file, stat, packer, range, (from, i), f)?;
        }
        Ok(())
    }

    /// Reads blocks `from..to` of the range and sends those that differ.
    fn run_of(
        &self,
        file: &OwnedFd,
        stat: &Stat,
        packer: &mut Packer<'_>,
        range: &Range,
        (from, to): (usize, usize),
        f: &mut Findings,
    ) -> Result<()> {
        let (first, n) = (range.first + from as u64, to - from);
        let (at, end) = (first * BLOCK, (first + n as u64) * BLOCK);
        let data = sys::next_data(file, at, stat.size).map_err(|e| self.error("look for data in", e))?;
        let mut bytes = Vec::new();
        if data.is_some_and(|(start, _)| start < end) {
            bytes = vec![0; usize::try_from(end.min(stat.size.max(at)) - at).unwrap_or(0)];
            let got = sys::read_at(file, &mut bytes, at).map_err(|e| self.error("read", e))?;
            bytes.truncate(got);
        }
        let mut hashes: Vec<u128> = block_hashes(self.system, range.id, first, &bytes).collect();
        hashes.resize(n, 0);
        // Behind the end there is nothing that the catalog could say otherwise.
        let inside = usize::try_from(blocks_of(self.plan.size).saturating_sub(first)).unwrap_or(n).min(n);
        self.compare(first, &hashes[..inside], f);
        let what = |i: usize| match hashes[i] {
            h if h == range.hash(from + i) => Send::Nothing,
            0 => Send::Hole,
            _ => Send::Data,
        };
        let (mut i, block) = (0, usize::try_from(BLOCK).unwrap_or(usize::MAX));
        while i < n {
            let (start, kind) = (i, what(i));
            while i < n && what(i) == kind {
                i += 1;
            }
            let offset = at + (start * block) as u64;
            match kind {
                Send::Nothing => {}
                Send::Hole => packer.hole(range.id, offset, ((i - start) * block) as u64)?,
                Send::Data => {
                    packer.data(range.id, offset, &bytes[start * block..(i * block).min(bytes.len())])?
                }
            }
        }
        Ok(())
    }
}

/// What becomes of a block.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Send {
    Nothing,
    Hole,
    Data,
}
