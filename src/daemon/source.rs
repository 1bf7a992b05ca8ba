//! What a first copy is read from: a leader's capture, or a follower's apply.

use std::sync::{Arc, RwLock};
use std::time::Duration;

use crate::apply::ApplyHandle;
use crate::capture::CaptureHandle;
use crate::catalog::{Catalog, Seen};
use crate::error::Result;
use crate::fill::{CopySource, known_hashes};
use crate::position::{FileId, Lsn};
use crate::sys::Root;

/// How long the pass at the end of a first copy may take.
const BARRIER_MAX: Duration = Duration::from_secs(600);

/// A leader's directory: blocks that were read differently are forced into the log.
pub(crate) struct LeaderSource(pub(crate) CaptureHandle);

/// A follower's directory: only apply changes it, so every change is a record of the log already.
pub(crate) struct FollowerSource(pub(crate) ApplyHandle);

impl CopySource for LeaderSource {
    fn catalog(&self) -> Arc<RwLock<Catalog>> {
        self.0.catalog()
    }
    fn settled(&self, look: &mut dyn FnMut(&Catalog)) {
        self.0.settled(|fold| look(&fold.read()));
    }
    fn root(&self) -> Arc<Root> {
        self.0.root()
    }
    fn barrier(&self) -> Result<Lsn> {
        self.0.barrier(BARRIER_MAX)
    }
    fn hashes(&self, id: FileId, first: u64, n: u64) -> Option<Vec<u128>> {
        known_hashes(&self.0.catalog(), &self.0.blocks(), id, first, n)
    }
    fn mismatch(&self, id: FileId, blocks: Vec<u64>) {
        self.0.force(id, blocks);
    }
    fn learned(&self, id: FileId, seen: Seen, hashes: Vec<u128>) {
        self.0.learned(id, seen, hashes);
    }
}

impl CopySource for FollowerSource {
    fn catalog(&self) -> Arc<RwLock<Catalog>> {
        self.0.catalog()
    }
    fn settled(&self, look: &mut dyn FnMut(&Catalog)) {
        self.0.at_rest(|catalog| look(catalog));
    }
    fn root(&self) -> Arc<Root> {
        self.0.root()
    }
    fn barrier(&self) -> Result<Lsn> {
        self.0.barrier()
    }
    fn hashes(&self, _: FileId, _: u64, _: u64) -> Option<Vec<u128>> {
        None
    }
    fn mismatch(&self, _: FileId, _: Vec<u64>) {}
    fn learned(&self, _: FileId, _: Seen, _: Vec<u128>) {}
}
