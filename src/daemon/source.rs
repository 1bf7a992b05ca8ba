//! What a first copy is read from: a leader's capture, or a follower's apply.

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use crate::apply::ApplyHandle;
use crate::capture::CaptureHandle;
use crate::catalog::{Catalog, Seen};
use crate::error::{Error, ErrorKind, Result};
use crate::fill::{CopySource, known_hashes};
use crate::position::{FileId, Lsn, SystemId};
use crate::record::Attrs;
use crate::sys::Root;

/// How long the pass at the end of a first copy may take.
const BARRIER_MAX: Duration = Duration::from_secs(600);

/// A source that is there only while the engines run. What is asked of it at other times gets nothing.
pub(crate) struct Source {
    root: Arc<Root>,
    now: RwLock<Option<Arc<dyn CopySource>>>,
}

impl Source {
    /// Not there yet; `root` is the data directory.
    pub(crate) fn new(root: Arc<Root>) -> Self {
        Self { root, now: RwLock::new(None) }
    }

    pub(crate) fn supply(&self, source: Arc<dyn CopySource>) {
        *self.now.write().unwrap_or_else(PoisonError::into_inner) = Some(source);
    }

    /// Lets go of the engines and of all that they hold in memory.
    pub(crate) fn withdraw(&self) {
        *self.now.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn now(&self) -> Option<Arc<dyn CopySource>> {
        let now: RwLockReadGuard<'_, _> = self.now.read().unwrap_or_else(PoisonError::into_inner);
        now.clone()
    }
}

impl CopySource for Source {
    fn catalog(&self) -> Arc<RwLock<Catalog>> {
        let none = || Arc::new(RwLock::new(Catalog::new(SystemId::NONE, Attrs::default())));
        self.now().map_or_else(none, |s| s.catalog())
    }
    fn settled(&self, look: &mut dyn FnMut(&Catalog)) {
        if let Some(source) = self.now() {
            source.settled(look);
        }
    }
    fn root(&self) -> Arc<Root> {
        Arc::clone(&self.root)
    }
    fn barrier(&self) -> Result<Lsn> {
        let none = || Err(Error::new(ErrorKind::Unavailable, "the engines of this node stand still"));
        self.now().map_or_else(none, |s| s.barrier())
    }
    fn hashes(&self, id: FileId, first: u64, n: u64) -> Option<Vec<u128>> {
        self.now()?.hashes(id, first, n)
    }
    fn mismatch(&self, id: FileId, blocks: Vec<u64>) {
        if let Some(source) = self.now() {
            source.mismatch(id, blocks);
        }
    }
    fn learned(&self, id: FileId, seen: Seen, hashes: Vec<u128>) {
        if let Some(source) = self.now() {
            source.learned(id, seen, hashes);
        }
    }
}

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
