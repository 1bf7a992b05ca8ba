//! Watches: one per directory, placed by us through `notify`, and the dirty set they fill.
//!
//! An event is a hint: "look at this path again". The handler moves hints into a bounded set and does
//! nothing else. The directory itself is the truth.
//!
//! `notify` keys its watches by path. When a watched directory is renamed or removed it drops, after the read
//! that told it so, every watch at and below that path; a watch that was placed there anew in the
//! meantime goes with it. The rename or creation that made such a new directory is still in the queue then
//! or in the same read, so the rule that every hint of a new name re-places the watches of that
//! subtree and lists it (see `examine`) restores them.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use notify::event::{AccessKind, AccessMode, CreateKind, EventKind, ModifyKind, RenameMode};
use notify::{RecommendedWatcher, RecursiveMode, Watcher};

use crate::error::{Error, ErrorKind, Result};
use crate::record::GapReason;

/// Most hints kept; beyond that a whole rescan is cheaper, and memory stays bounded.
const HINTS_MAX: usize = 200_000;
/// How long events may take through kernel and `notify` before the watch counts as broken.
const BARRIER_MAX: Duration = Duration::from_secs(30);

/// The name was created, removed or renamed.
pub(super) const NAME: u8 = 1;
/// The content may have changed.
pub(super) const DATA: u8 = 2;
/// The attributes may have changed.
pub(super) const ATTR: u8 = 4;
/// If it is a directory: place watches in the whole subtree and list it.
pub(super) const TREE: u8 = 8;
/// It is half of a rename: the other half is on its way.
pub(super) const FROM: u8 = 16;

/// Paths relative to the data directory, and what was said of them.
pub(super) type Hints = HashMap<Vec<u8>, u8>;

#[derive(Debug, Default)]
struct Inner {
    hints: Hints,
    gap: Option<GapReason>,
    marks: [u64; 2],
    events: u64,
    last_from: Option<Instant>,
    broken: Option<String>,
    poked: bool,
}

/// The dirty set, shared by the handler and the engine.
#[derive(Debug, Default)]
pub(super) struct Dirty {
    inner: Mutex<Inner>,
    changed: Condvar,
}

impl Dirty {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a hint.
    pub(super) fn add(&self, path: Vec<u8>, flags: u8) {
        let mut inner = self.lock();
        inner.put(path, flags);
        drop(inner);
        self.changed.notify_all();
    }

    /// Wakes the engine without a hint: a request is waiting.
    pub(super) fn poke(&self) {
        self.lock().poked = true;
        self.changed.notify_all();
    }

    /// Takes all hints, and why a whole rescan is needed, if it is.
    pub(super) fn take(&self) -> (Hints, Option<GapReason>) {
        let mut inner = self.lock();
        (std::mem::take(&mut inner.hints), inner.gap.take())
    }

    /// Waits for a hint, a gap or a poke; false when the time passed without any.
    pub(super) fn wait(&self, time: Duration) -> bool {
        let deadline = Instant::now() + time;
        let mut inner = self.lock();
        loop {
            if std::mem::take(&mut inner.poked) || !inner.hints.is_empty() || inner.gap.is_some() {
                return true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            inner = self.changed.wait_timeout(inner, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// When the last half of a rename came.
    pub(super) fn last_from(&self) -> Option<Instant> {
        self.lock().last_from
    }

    pub(super) fn events(&self) -> u64 {
        self.lock().events
    }
}

impl Inner {
    fn put(&mut self, path: Vec<u8>, flags: u8) {
        if self.gap.is_some() && self.hints.is_empty() {
            return;
        }
        *self.hints.entry(path).or_default() |= flags;
        if self.hints.len() > HINTS_MAX {
            self.hints = Hints::new();
            self.gap.get_or_insert(GapReason::Overflow);
        }
    }
}

/// What an event says about a name; `None`: nothing, as for the opens our own reads cause.
fn meaning(kind: EventKind) -> Option<u8> {
    match kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => Some(DATA),
        EventKind::Access(_) => None,
        EventKind::Create(CreateKind::Folder) => Some(NAME | TREE),
        EventKind::Create(_) => Some(NAME | DATA | TREE),
        EventKind::Remove(_) => Some(NAME),
        EventKind::Modify(ModifyKind::Name(RenameMode::From)) => Some(NAME | FROM),
        EventKind::Modify(ModifyKind::Name(_)) => Some(NAME | TREE),
        EventKind::Modify(ModifyKind::Data(_)) => Some(DATA),
        EventKind::Modify(ModifyKind::Metadata(_)) => Some(ATTR),
        _ => Some(NAME | DATA | ATTR),
    }
}

/// The watches of a data directory.
pub(super) struct Watch {
    watcher: RecommendedWatcher,
    dirty: Arc<Dirty>,
    root: PathBuf,
    marks: [File; 2],
    turn: usize,
    /// Directories that could not be watched because the limit is reached.
    pub(super) unwatched: u64,
    pub(super) watched: u64,
}

impl Watch {
    /// Starts watching nothing but the barrier directory below `state`.
    pub(super) fn new(root: &Path, state: &Path, dirty: Arc<Dirty>) -> Result<Self> {
        let barrier = state.join("barrier");
        crate::disk::create_dir_durable(&barrier)?;
        let mark = |n: usize| {
            let path = barrier.join(if n == 0 { "0" } else { "1" });
            OpenOptions::new()
                .create(true)
                .truncate(false)
                .write(true)
                .open(&path)
                .map_err(|e| Error::io("open", &path, e))
        };
        let marks = [mark(0)?, mark(1)?];
        let (shared, base, barrier_dir) = (Arc::clone(&dirty), root.to_owned(), barrier.clone());
        let watcher = RecommendedWatcher::new(
            move |event| handle(&shared, &base, &barrier_dir, event),
            notify::Config::default().with_follow_symlinks(false),
        )
        .map_err(|e| watch_error(&barrier, &e))?;
        let mut watch =
            Self { watcher, dirty, root: root.to_owned(), marks, turn: 0, unwatched: 0, watched: 0 };
        watch.watcher.watch(&barrier, RecursiveMode::NonRecursive).map_err(|e| watch_error(&barrier, &e))?;
        Ok(watch)
    }

    /// Places (again) the watch of the directory `rel`. False: it is not there any more.
    pub(super) fn place(&mut self, rel: &[u8]) -> Result<bool> {
        let path = self.absolute(rel);
        match self.watcher.watch(&path, RecursiveMode::NonRecursive) {
            Ok(()) => {
                self.watched += 1;
                Ok(true)
            }
            Err(e) => match e.kind {
                notify::ErrorKind::PathNotFound => Ok(false),
                notify::ErrorKind::MaxFilesWatch => {
                    self.unwatched += 1;
                    Ok(true)
                }
                notify::ErrorKind::Io(ref io)
                    if matches!(
                        io.kind(),
                        std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory
                    ) =>
                {
                    Ok(false)
                }
                _ => Err(watch_error(&path, &e)),
            },
        }
    }

    fn absolute(&self, rel: &[u8]) -> PathBuf {
        if rel.is_empty() { self.root.clone() } else { self.root.join(std::ffi::OsStr::from_bytes(rel)) }
    }

    /// Returns when every event that the kernel queued before the call is in the dirty set: the queue is first
    /// in, first out, so the event of a mark written now comes after them.
    pub(super) fn drain(&mut self) -> Result<()> {
        self.turn ^= 1;
        let turn = self.turn;
        let before = self.dirty.lock().marks[turn];
        self.marks[turn].write_all_at(b"x", 0).map_err(|e| Error::io("write", "barrier", e))?;
        let deadline = Instant::now() + BARRIER_MAX;
        let mut inner = self.dirty.lock();
        while inner.marks[turn] == before {
            if let Some(text) = inner.broken.take() {
                return Err(Error::new(ErrorKind::Io, text));
            }
            // An overflow may have swallowed the mark: everything is looked at again then anyway.
            if inner.gap.is_some() {
                return Ok(());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let text = "no file event came back in 30 s: the state directory's file system does not report \
                            changes; put it on a local one";
                return Err(Error::new(ErrorKind::Unavailable, text));
            }
            inner = self.dirty.changed.wait_timeout(inner, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(())
    }
}

fn watch_error(path: &Path, e: &notify::Error) -> Error {
    Error::new(ErrorKind::Io, format!("cannot watch '{}': {e}", path.display()))
}

fn handle(dirty: &Dirty, root: &Path, barrier: &Path, event: notify::Result<notify::Event>) {
    let mut inner = dirty.lock();
    match event {
        Ok(event) => {
            inner.events += 1;
            if event.need_rescan() {
                inner.hints = Hints::new();
                inner.gap = Some(GapReason::Overflow);
            }
            let Some(flags) = meaning(event.kind) else { return };
            for path in &event.paths {
                if let Ok(rel) = path.strip_prefix(root) {
                    if flags & FROM != 0 {
                        inner.last_from = Some(Instant::now());
                    }
                    let rel = rel.as_os_str().as_bytes();
                    inner.put(rel.to_vec(), flags);
                } else if path.parent() == Some(barrier) {
                    let turn = usize::from(path.file_name().is_some_and(|n| n == "1"));
                    inner.marks[turn] += 1;
                }
            }
        }
        Err(e) => match e.kind {
            notify::ErrorKind::MaxFilesWatch => inner.gap = Some(GapReason::WatchLimit),
            _ => inner.broken = Some(format!("reading file events fails: {e}")),
        },
    }
    drop(inner);
    dirty.changed.notify_all();
}
