//! Watches: one per directory, placed by us, and the mark that tells when all earlier events have come.
//!
//! `notify` keys watches by path. When a watched directory leaves its path, it drops the watches of
//! that path and of all paths below, which may hit fresh ones placed there meanwhile. So whoever handles an
//! event that a directory came to a path *or left it* watches whatever is there again, with its whole subtree;
//! in an exchange of two directories the departure from a name is reported after the arrival at it.
//!
//! A directory that moves with one above it keeps its watch under two paths, if it is watched anew before the
//! event of the move was read. What later leaves the old path would take that watch away. So a directory is
//! never watched at a path before the watch that was placed at another is given up.

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use notify::{Config, RecommendedWatcher, RecursiveMode, Watcher};
use xxhash_rust::xxh3::xxh3_64;

use super::examine::vanished;
use super::hints::Hints;
use crate::disk;
use crate::error::{Error, ErrorKind, Result};
use crate::record::{GapReason, Time};
use crate::sys::{self, Root, vital};

/// Longest wait for a mark to come through; then the watcher counts as broken.
const MARK_WAIT: Duration = Duration::from_secs(5);
/// After this time a mark counts as dropped and is made again.
const MARK_LOST: Duration = Duration::from_millis(200);
/// What timestamps may lag behind on kernels with coarse ones: two ticks of 100 Hz.
pub(super) const TICKS: Duration = Duration::from_millis(20);

/// How placing a watch ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Placed {
    /// It is there.
    Yes,
    /// The directory is not at that path any more.
    Gone,
    /// It can't be watched: the directory is polled instead.
    No,
}

/// The watches of a tree.
pub(super) struct Watch {
    watcher: Mutex<RecommendedWatcher>,
    root: Arc<Root>,
    hints: Arc<Hints>,
    /// Directories that could not be watched.
    missing: Mutex<BTreeSet<Box<[u8]>>>,
    places: Mutex<Places>,
}

/// Where watches were placed: all that the watcher may have, and perhaps some that it has dropped.
#[derive(Default)]
struct Places {
    /// Inode numbers by the hashes of paths.
    at: HashMap<u64, u64>,
    /// The paths where they were placed last.
    paths: HashMap<u64, Box<[u8]>>,
}

impl Places {
    /// Another path under which the watcher may know the directory.
    fn elsewhere(&self, inode: u64, rel: &[u8]) -> Option<&[u8]> {
        let path = self.paths.get(&inode).filter(|path| ***path != *rel)?;
        (self.at.get(&xxh3_64(path)) == Some(&inode)).then_some(path)
    }

    fn put(&mut self, inode: u64, rel: &[u8]) {
        if let Some(old) = self.elsewhere(inode, rel).map(xxh3_64) {
            self.at.remove(&old);
        }
        self.at.insert(xxh3_64(rel), inode);
        if self.paths.get(&inode).is_none_or(|path| **path != *rel) {
            self.paths.insert(inode, rel.into());
        }
    }

    fn forget(&mut self, rel: &[u8]) {
        let Some(inode) = self.at.remove(&xxh3_64(rel)) else { return };
        if self.paths.get(&inode).is_some_and(|path| **path == *rel) {
            self.paths.remove(&inode);
        }
    }

    /// Keeps only the inodes of which this is true.
    fn retain(&mut self, lives: impl Fn(u64) -> bool) {
        self.at.retain(|_, inode| lives(*inode));
        self.paths.retain(|inode, _| lives(*inode));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Watch {
    /// A watcher without watches.
    pub(super) fn new(root: Arc<Root>, hints: Arc<Hints>) -> Result<Self> {
        let handler = {
            let hints = Arc::clone(&hints);
            move |event: notify::Result<notify::Event>| vital::thread("the watcher", || hints.handle(event))()
        };
        let config = Config::default().with_follow_symlinks(false);
        let watcher = RecommendedWatcher::new(handler, config).map_err(|e| {
            let text =
                format!("cannot watch '{}': {e}; raise fs.inotify.max_user_instances", root.path().display());
            Error::new(ErrorKind::Unavailable, text)
        })?;
        Ok(Self {
            watcher: Mutex::new(watcher),
            root,
            hints,
            missing: Mutex::default(),
            places: Mutex::default(),
        })
    }

    /// Watches the directory `rel`, again if it was watched before.
    pub(super) fn place(&self, rel: &[u8]) -> Placed {
        let path = self.root.join(rel);
        let Err(e) = self.watch(rel, &path) else {
            let mut missing = lock(&self.missing);
            if !missing.is_empty() {
                missing.remove(rel);
            }
            return Placed::Yes;
        };
        let gone = match &e.kind {
            notify::ErrorKind::PathNotFound => true,
            notify::ErrorKind::Io(e) => vanished(e),
            _ => false,
        };
        if gone {
            return Placed::Gone;
        }
        // What may not be read is left out, and that is said where it is read.
        let barred =
            matches!(&e.kind, notify::ErrorKind::Io(e) if e.kind() == io::ErrorKind::PermissionDenied);
        if barred {
            return Placed::No;
        }
        let mut missing = lock(&self.missing);
        if missing.is_empty() {
            tracing::warn!(
                "directories are polled from '{}' on, because it can't be watched: {e}; raise fs.inotify.max_user_watches",
                path.display()
            );
            self.hints.gap(GapReason::WatchLimit);
        }
        missing.insert(rel.into());
        Placed::No
    }

    fn watch(&self, rel: &[u8], path: &Path) -> notify::Result<()> {
        // Another directory may come to the path in between; the event that says so has it watched again.
        let inode = fs::symlink_metadata(path).map(|meta| meta.ino());
        let mut watcher = lock(&self.watcher);
        let mut places = lock(&self.places);
        if let Some(other) = inode.as_ref().ok().and_then(|&inode| places.elsewhere(inode, rel)) {
            // It is gone already unless an event has yet to be read.
            let _ = watcher.unwatch(&self.root.join(other));
        }
        watcher.watch(path, RecursiveMode::NonRecursive)?;
        if let Ok(inode) = inode {
            places.put(inode, rel);
        }
        Ok(())
    }

    /// Forgets where directories were placed that are not in the tree any more; `lives` tells by inode number.
    pub(super) fn prune(&self, lives: impl Fn(u64) -> bool) {
        lock(&self.places).retain(lives);
    }

    /// The directories that could not be watched.
    pub(super) fn missing(&self) -> Vec<Box<[u8]>> {
        lock(&self.missing).iter().cloned().collect()
    }

    /// How many those are.
    pub(super) fn missing_count(&self) -> usize {
        lock(&self.missing).len()
    }

    /// A directory is not in the tree any more.
    pub(super) fn forget(&self, rel: &[u8]) {
        lock(&self.missing).remove(rel);
        lock(&self.places).forget(rel);
    }

    /// About how many directories are watched.
    pub(super) fn count(&self) -> u64 {
        lock(&self.places).at.len() as u64
    }

    fn place_marks(&self, dir: &Path) -> Result<()> {
        lock(&self.watcher).watch(dir, RecursiveMode::NonRecursive).map_err(|e| {
            let text = format!(
                "cannot watch '{}': {e}; raise fs.inotify.max_user_watches or max_user_instances",
                dir.display()
            );
            Error::new(ErrorKind::Unavailable, text)
        })
    }
}

/// An instant that all events before it have been taken for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mark {
    /// What changes after the instant has a change time of this or later.
    pub(super) time: Time,
    which: usize,
    count: u64,
}

impl Mark {
    /// Before the first one.
    pub(super) const NONE: Self = Self { time: Time { sec: 0, nsec: 0 }, which: 0, count: 0 };
}

/// Two files whose writes pass through the same queue as all other events.
pub(super) struct Marks {
    hints: Arc<Hints>,
    dir: PathBuf,
    files: [File; 2],
    next: usize,
    generation: u64,
    /// Where timestamps are fine-grained (no two changes seen apart have the same): a file without a name that tells
    /// the time.
    clock: Option<File>,
}

impl Marks {
    /// Creates the files in the state directory and watches them.
    pub(super) fn new(state: &Path, hints: Arc<Hints>, watch: &Watch, fine: bool) -> Result<Self> {
        let dir = state.join("mark");
        disk::create_subdir_durable(&dir)?;
        for entry in fs::read_dir(&dir).map_err(|e| Error::io("list", &dir, e))?.flatten() {
            let _ = fs::remove_file(entry.path());
        }
        watch.place_marks(&dir)?;
        let files = Self::create(&dir, 0, &hints)?;
        let clock = if fine { Some(tempfile::tempfile_in(state)) } else { None };
        let clock = clock.transpose().map_err(|e| Error::io("create a file in", state, e))?;
        Ok(Self { hints, dir, files, next: 0, generation: 0, clock })
    }

    fn create(dir: &Path, generation: u64, hints: &Hints) -> Result<[File; 2]> {
        let paths = ["a", "b"].map(|n| dir.join(format!("{generation}{n}")));
        let open = |path: &PathBuf| {
            let mut options = OpenOptions::new();
            options.write(true).create(true).truncate(true).mode(0o600);
            options.open(path).map_err(|e| Error::io("create", path, e))
        };
        let files = [open(&paths[0])?, open(&paths[1])?];
        hints.set_marks(paths);
        Ok(files)
    }

    /// Marks this instant. What is known at the mark is known after [`wait`](Self::wait).
    pub(super) fn make(&mut self) -> Result<Mark> {
        // Two writes that are neighbours in the queue would be one event: hence two files, in turn.
        let which = self.next;
        self.next = 1 - which;
        let count = self.hints.mark(which) + 1;
        let failed = |e| Error::from(e).wrap("cannot mark the event queue");
        let stamp = |file: &File| sys::stat_fd(file).map(|stat| stat.ctime).map_err(failed);
        let write = |file: &File| sys::write_at(file, b"m", 0).map_err(failed);
        let file = &self.files[which];
        let Some(clock) = &self.clock else {
            write(file)?;
            return Ok(Mark { time: earlier(stamp(file)?, TICKS), which, count });
        };
        // A timestamp that was looked at is followed by a fine-grained one, unless a newer one was given out meanwhile:
        // that one is taken then, and is no later than the change it was made for. The second write comes after all such.
        // (`inode_set_ctime_current` of fs/inode.c)
        stamp(clock)?;
        write(clock)?;
        stamp(clock)?;
        write(clock)?;
        let time = stamp(clock)?;
        // What comes between the two has a later stamp, and an event that is waited for.
        write(file)?;
        Ok(Mark { time, which, count })
    }

    /// Waits until every event of before the mark is in the set of hints. False: the mark was lost, because the
    /// queue is full, or comes late; make another.
    pub(super) fn wait(&mut self, mark: &Mark) -> Result<bool> {
        if self.hints.wait_mark(mark.which, mark.count, Instant::now() + MARK_LOST) {
            return Ok(true);
        }
        // New files, so that a mark that comes late counts for nothing.
        let old = ["a", "b"].map(|n| self.dir.join(format!("{}{n}", self.generation)));
        self.generation += 1;
        self.files = Self::create(&self.dir, self.generation, &self.hints)?;
        for path in old {
            let _ = fs::remove_file(path);
        }
        Ok(false)
    }

    /// Makes a mark and waits for it.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] when the watcher does not answer.
    pub(super) fn drain(&mut self) -> Result<Mark> {
        let deadline = Instant::now() + MARK_WAIT;
        loop {
            let mark = self.make()?;
            if self.wait(&mark)? {
                return Ok(mark);
            }
            if Instant::now() >= deadline {
                let text = "the watcher does not answer; it is started anew";
                return Err(Error::new(ErrorKind::Unavailable, text));
            }
        }
    }
}

/// `t` less `by`.
pub(super) fn earlier(t: Time, by: Duration) -> Time {
    let nanos = i64::from(t.nsec) - i64::from(by.subsec_nanos());
    let sec = t.sec.saturating_sub(i64::try_from(by.as_secs()).unwrap_or(i64::MAX));
    let (sec, nanos) = if nanos < 0 { (sec.saturating_sub(1), nanos + 1_000_000_000) } else { (sec, nanos) };
    Time { sec, nsec: u32::try_from(nanos).unwrap_or_default() }
}

/// Length of the kernel's event queue: `fs.inotify.max_queued_events`; 16,384 by default, and taken when it can't be read.
pub(super) fn queue_length() -> u32 {
    let text = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events");
    text.ok().and_then(|t| t.trim().parse().ok()).unwrap_or(16_384)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Waits until a hint of `path` comes; false: none did.
    fn heard(hints: &Hints, path: &[u8]) -> bool {
        let deadline = Instant::now() + Duration::from_secs(10);
        while Instant::now() < deadline {
            if hints.take().paths.contains_key(path) {
                return true;
            }
            hints.wait(Instant::now() + Duration::from_millis(20), false);
        }
        false
    }

    /// A directory that is watched at its new path, when what left the old one was not told of yet.
    #[test]
    fn what_leaves_an_old_path_does_not_take_the_watch_of_what_moved_away() {
        let dir = tempfile::tempdir().unwrap();
        let root = Arc::new(Root::open(dir.path()).unwrap());
        let hints = Arc::new(Hints::new(dir.path()));
        let watch = Watch::new(root, Arc::clone(&hints)).unwrap();
        let at = |rel: &str| dir.path().join(rel);
        fs::create_dir_all(at("p/y")).unwrap();
        assert_eq!(watch.place(b"p/y"), Placed::Yes);
        // Nobody watches the parent: no event tells of the move.
        fs::rename(at("p"), at("q")).unwrap();
        assert_eq!(watch.place(b"q/y"), Placed::Yes);
        fs::create_dir_all(at("p/y")).unwrap();
        assert_eq!(watch.place(b"p"), Placed::Yes);
        fs::remove_dir(at("p/y")).unwrap();
        assert!(heard(&hints, b"p/y"));
        // Another round of the watcher, so that what the event led to is done.
        assert_eq!(watch.place(b""), Placed::Yes);
        fs::write(at("q/y/new"), "").unwrap();
        assert!(heard(&hints, b"q/y/new"), "the watch is gone");
    }

    #[test]
    fn places_are_forgotten_with_their_directories() {
        let mut places = Places::default();
        places.put(1, b"a");
        places.put(2, b"a/b");
        assert_eq!(places.elsewhere(1, b"c"), Some(&b"a"[..]));
        assert_eq!(places.elsewhere(1, b"a"), None);
        // Another directory came to the path: the watch there is not that of the first any more.
        places.put(3, b"a");
        assert_eq!(places.elsewhere(1, b"c"), None);
        places.put(2, b"c/b");
        assert_eq!(places.elsewhere(2, b"x"), Some(&b"c/b"[..]));
        places.forget(b"c/b");
        assert_eq!(places.elsewhere(2, b"x"), None);
        places.retain(|inode| inode == 3);
        assert_eq!((places.at.len(), places.paths.len()), (1, 1));
    }
}
