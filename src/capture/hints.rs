//! Hints: what events say may have changed, as a bounded set of paths. An event is never
//! believed, it only says where to look.
//!
//! The handler runs on the watcher's thread and does nothing but put paths into the set. The engine takes
//! the whole set at once. Past [`HINTS_MAX`] paths the set is given up for a rescan.

use std::collections::HashMap;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use notify::event::{AccessKind, AccessMode, ModifyKind, RenameMode};
use notify::{Event, EventKind};

use crate::record::GapReason;

/// Most paths in the set; beyond it everything is scanned.
pub(super) const HINTS_MAX: usize = 200_000;
/// Most halves of renames that wait for the other half.
const HALVES_MAX: usize = 4096;
/// A half of a rename that is older counts as whole: the other name is outside of the tree.
pub(super) const HALF_AGE: Duration = Duration::from_millis(10);
/// The kernel moves the name first and reports the two halves after; whoever renames may lose the processor in
/// between. So long is waited for the other half before a cut without it is called exact.
pub(super) const HALF_SURE: Duration = Duration::from_millis(250);

/// Pairs are remembered for at least this long.
const PAIR_AGE: Duration = Duration::from_secs(10);

/// What a hint says of its path.
pub(super) mod flag {
    /// Content was written.
    pub(in crate::capture) const MODIFIED: u16 = 1;
    /// A file that was open for writing was closed.
    pub(in crate::capture) const CLOSED: u16 = 2;
    /// Attributes, extended attributes or the number of links changed.
    pub(in crate::capture) const ATTRIB: u16 = 4;
    /// The name appeared.
    pub(in crate::capture) const CREATED: u16 = 8;
    /// The name went.
    pub(in crate::capture) const REMOVED: u16 = 16;
    /// The name went by a rename.
    pub(in crate::capture) const FROM: u16 = 32;
    /// The name appeared by a rename.
    pub(in crate::capture) const TO: u16 = 64;
    /// A scan found a difference, or wants another look.
    pub(in crate::capture) const SCAN: u16 = 128;
    /// The engine itself wants another look.
    pub(in crate::capture) const AGAIN: u16 = 256;
    /// A new or moved directory: its whole subtree is watched and listed again.
    pub(in crate::capture) const ARRIVED: u16 = CREATED | TO;
    /// Evidence that a name is gone.
    pub(in crate::capture) const LEFT: u16 = REMOVED | FROM;
    /// The content has to be read even if the stamps say nothing.
    pub(in crate::capture) const CONTENT: u16 = MODIFIED | CREATED;
}

/// Paths relative to the root, with the flags of all their hints.
pub(super) type Paths = HashMap<Box<[u8]>, u16>;

/// What was in the set.
#[derive(Debug, Default)]
pub(super) struct Batch {
    /// The paths.
    pub(super) paths: Paths,
    /// Events were lost: everything has to be looked at.
    pub(super) gap: Option<GapReason>,
}

/// A path, and when it was heard of.
type Aged = (Box<[u8]>, Instant);

#[derive(Debug, Default)]
struct Inner {
    batch: Batch,
    halves: HashMap<usize, Aged>,
    /// Where names went by renames of which both halves came.
    pairs: HashMap<Box<[u8]>, Aged>,
    /// Files whose writes mark the queue, and how often that was seen.
    marks: [(PathBuf, u64); 2],
    woken: bool,
    events: u64,
    overflows: u64,
}

/// The set of hints.
#[derive(Debug)]
pub(super) struct Hints {
    root: Vec<u8>,
    inner: Mutex<Inner>,
    moved: Condvar,
}

impl Hints {
    /// An empty set for the tree at `root`.
    pub(super) fn new(root: &Path) -> Self {
        let mut root = root.as_os_str().as_bytes().to_vec();
        while root.last() == Some(&b'/') {
            root.pop();
        }
        Self { root, inner: Mutex::default(), moved: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The part of an event's path below the root.
    fn relative<'a>(&self, path: &'a Path) -> Option<&'a [u8]> {
        let rest = path.as_os_str().as_bytes().strip_prefix(&self.root[..])?;
        if rest.is_empty() { Some(rest) } else { rest.strip_prefix(b"/") }
    }

    /// Takes one event from the watcher.
    pub(super) fn handle(&self, event: notify::Result<Event>) {
        match event {
            Ok(event) => {
                // Our own reads: about half of all events.
                if let EventKind::Access(kind) = event.kind
                    && kind != AccessKind::Close(AccessMode::Write)
                {
                    return;
                }
                if event.need_rescan() {
                    let mut inner = self.lock();
                    inner.overflows += 1;
                    inner.batch.gap.get_or_insert(GapReason::Overflow);
                    drop(inner);
                    self.moved.notify_all();
                } else {
                    self.take_event(&event);
                }
            }
            Err(e) => {
                tracing::warn!("the watcher reports an error, everything is scanned: {e}");
                let mut inner = self.lock();
                inner.batch.gap.get_or_insert(match e.kind {
                    notify::ErrorKind::MaxFilesWatch => GapReason::WatchLimit,
                    _ => GapReason::Overflow,
                });
                drop(inner);
                self.moved.notify_all();
            }
        }
    }

    fn take_event(&self, event: &Event) {
        let flags = match event.kind {
            EventKind::Access(_) => flag::CLOSED,
            EventKind::Create(_) => flag::CREATED,
            EventKind::Remove(_) => flag::REMOVED,
            EventKind::Modify(ModifyKind::Name(RenameMode::From)) => flag::FROM,
            EventKind::Modify(ModifyKind::Name(RenameMode::To)) => flag::TO,
            // Both halves were reported already.
            EventKind::Modify(ModifyKind::Name(_)) => return,
            EventKind::Modify(ModifyKind::Metadata(_)) => flag::ATTRIB,
            EventKind::Modify(_) => flag::MODIFIED,
            EventKind::Any | EventKind::Other => return,
        };
        let Some(path) = event.paths.first() else { return };
        let Some(rel) = self.relative(path) else {
            if flags == flag::MODIFIED
                && let Some(mark) = self.lock().marks.iter_mut().find(|m| m.0 == *path)
            {
                mark.1 += 1;
                self.moved.notify_all();
            }
            return;
        };
        let mut inner = self.lock();
        inner.events += 1;
        if let Some(cookie) = event.tracker() {
            if flags == flag::TO {
                if let Some((from, _)) = inner.halves.remove(&cookie) {
                    if inner.pairs.len() >= HALVES_MAX {
                        inner.pairs.retain(|_, (_, at)| at.elapsed() < PAIR_AGE);
                    }
                    if inner.pairs.len() < HALVES_MAX {
                        inner.pairs.insert(from, (rel.into(), Instant::now()));
                    }
                }
            } else if flags == flag::FROM {
                if inner.halves.len() >= HALVES_MAX {
                    inner.halves.retain(|_, (_, at)| at.elapsed() < HALF_SURE);
                }
                if inner.halves.len() < HALVES_MAX {
                    inner.halves.insert(cookie, (rel.into(), Instant::now()));
                }
            }
        }
        if inner.add(rel, flags) {
            drop(inner);
            self.moved.notify_all();
        }
    }

    /// Adds a hint that does not come from an event.
    pub(super) fn add(&self, rel: &[u8], flags: u16) {
        if self.lock().add(rel, flags) {
            self.moved.notify_all();
        }
    }

    /// Puts paths back that are for the next pass.
    pub(super) fn put_back(&self, batch: Batch) {
        let mut inner = self.lock();
        if let Some(gap) = batch.gap {
            inner.batch.gap.get_or_insert(gap);
        }
        if inner.batch.paths.is_empty() {
            inner.batch.paths = batch.paths;
            return;
        }
        for (path, flags) in batch.paths {
            inner.add(&path, flags);
        }
    }

    /// Says that events were lost.
    pub(super) fn gap(&self, reason: GapReason) {
        self.lock().batch.gap.get_or_insert(reason);
        self.moved.notify_all();
    }

    /// Takes all hints.
    pub(super) fn take(&self) -> Batch {
        std::mem::take(&mut self.lock().batch)
    }

    /// Ends a [`wait`](Self::wait) without a hint.
    pub(super) fn wake(&self) {
        self.lock().woken = true;
        self.moved.notify_all();
    }

    /// Waits for a wake-up or the time, and unless `held` for a hint.
    pub(super) fn wait(&self, deadline: Instant, held: bool) {
        let mut inner = self.lock();
        loop {
            let hinted = !inner.batch.paths.is_empty() || inner.batch.gap.is_some();
            if inner.woken || (hinted && !held) {
                inner.woken = false;
                return;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            inner = self.moved.wait_timeout(inner, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Sets the files whose writes mark the queue.
    pub(super) fn set_marks(&self, marks: [PathBuf; 2]) {
        self.lock().marks = marks.map(|m| (m, 0));
    }

    /// How often the write of a marker was seen.
    pub(super) fn mark(&self, which: usize) -> u64 {
        self.lock().marks[which].1
    }

    /// Waits until the write number `count` of a marker was seen; false when the time passes first.
    pub(super) fn wait_mark(&self, which: usize, count: u64, deadline: Instant) -> bool {
        let mut inner = self.lock();
        while inner.marks[which].1 < count {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            inner = self.moved.wait_timeout(inner, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// Whether `rel` left by a rename whose other half may still come.
    pub(super) fn half_gone(&self, rel: &[u8]) -> bool {
        let inner = self.lock();
        inner.halves.values().any(|(path, at)| **path == *rel && at.elapsed() < HALF_AGE)
    }

    /// Where `rel` went by the newest rename of it of which both halves came.
    pub(super) fn went_to(&self, rel: &[u8]) -> Option<Box<[u8]>> {
        self.lock().pairs.get(rel).map(|(to, _)| to.clone())
    }

    /// How long the newest half of a rename that `rel` left by has waited for the other one; `None`: no half waits.
    pub(super) fn half_age(&self, rel: &[u8]) -> Option<Duration> {
        let inner = self.lock();
        inner.halves.values().filter(|(path, _)| **path == *rel).map(|(_, at)| at.elapsed()).min()
    }

    /// Events taken, and how often the kernel dropped some.
    pub(super) fn counts(&self) -> (u64, u64) {
        let inner = self.lock();
        (inner.events, inner.overflows)
    }
}

impl Inner {
    /// Adds a hint; true when the engine should hear of it.
    fn add(&mut self, rel: &[u8], flags: u16) -> bool {
        if let Some(have) = self.batch.paths.get_mut(rel) {
            *have |= flags;
            return false;
        }
        if self.batch.paths.len() >= HINTS_MAX {
            self.overflows += 1;
            self.batch.paths.clear();
            self.batch.gap.get_or_insert(GapReason::Overflow);
            return true;
        }
        self.batch.paths.insert(rel.into(), flags);
        self.batch.paths.len() == 1
    }
}
