//! The scan at the start: what is in the directory, compared with the catalog of the checkpoint.
//!
//! Only differences are kept, so an unchanged directory costs a stat per entry and no memory. Directories are
//! shared between threads.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use rustix::fs::OFlags;

use crate::catalog::Catalog;
use crate::error::{Error, Result};
use crate::position::FileId;
use crate::record::Kind;
use crate::sys::pulse::{self, Pulse};
use crate::sys::{self, STAGE_DIR, Stat};

use super::notes::{UNKNOWN, is_unknown};
use super::plan::{STAGE, Slot};
use super::site::{Site, Skip, same_inode};
use super::work::Unknown;

/// Threads of a scan: more share the locks of the kernel's name cache.
const THREADS: usize = 2;

/// How a known inode differs from what was last seen of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Difference {
    pub(crate) id: FileId,
    /// Size or modification time; else only the change time.
    pub(crate) data: bool,
    /// Mode, owner or group.
    pub(crate) attrs: bool,
    /// Extended attributes or ACLs.
    pub(crate) labels: bool,
    /// Nobody changed it since: an earlier start lacked the privilege that this one has.
    pub(crate) heals: bool,
}

/// What the directory holds beside, and instead of, what the catalog says.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// Known inodes at other slots than the catalog's.
    pub(crate) displaced: HashMap<Slot, FileId>,
    /// What no catalog knows; the ids are made up.
    pub(crate) strange: HashMap<Slot, FileId>,
    pub(crate) unknown: HashMap<FileId, Unknown>,
    /// Slots of the catalog that do not hold what it says.
    pub(crate) absent: HashMap<Slot, FileId>,
    /// Known inodes that are nowhere.
    pub(crate) lost: HashSet<FileId>,
    pub(crate) differences: Vec<Difference>,
    pub(crate) scanned: u64,
    /// What is in the catalog only: how many, and one of them.
    pub(crate) skipped: BTreeMap<Skip, (u64, FileId)>,
}

impl Found {
    fn add(&mut self, other: Self) {
        self.displaced.extend(other.displaced);
        self.strange.extend(other.strange);
        self.unknown.extend(other.unknown);
        self.absent.extend(other.absent);
        self.differences.extend(other.differences);
        self.scanned += other.scanned;
        for (what, (n, id)) in other.skipped {
            self.skipped.entry(what).or_insert((0, id)).0 += n;
        }
    }
}

/// A directory to be listed: what it is, where, and the directory that holds it, open.
type Below = (FileId, Slot, Arc<OwnedFd>);

/// What the threads share.
#[derive(Default)]
struct Todo {
    pending: Vec<Below>,
    /// Directories that a thread is at.
    busy: usize,
    visited: HashSet<FileId>,
    failure: Option<Error>,
}

struct Scanner<'a> {
    site: &'a Site,
    catalog: &'a Catalog,
    /// Numbers for what no catalog knows.
    strangers: &'a AtomicU64,
    found: Found,
    below: Vec<Below>,
    device: u64,
    mount: u64,
}

/// Scans everything below the root, the staging directory included.
pub(crate) fn scan(site: &Site, catalog: &Catalog) -> Result<Found> {
    let top = site.root.open_dir(b"").map_err(|e| site.error("open", b"", e))?;
    let stat = sys::stat_fd(&top).map_err(|e| site.error("stat", b"", e))?;
    let (strangers, more) = (AtomicU64::new(0), Condvar::new());
    let scanner = || Scanner {
        site,
        catalog,
        strangers: &strangers,
        found: Found::default(),
        below: Vec::new(),
        device: stat.local.dev,
        mount: stat.mount,
    };
    let mut first = scanner();
    first.compare(FileId::ROOT, &stat, &top, b"");
    first.list(FileId::ROOT, &Arc::new(top))?;
    let stage = site.root.open_dir(STAGE_DIR).map_err(|e| site.error("open", STAGE_DIR, e))?;
    first.list(STAGE, &Arc::new(stage))?;
    let todo = Mutex::new(Todo { visited: HashSet::from([FileId::ROOT, STAGE]), ..Todo::default() });
    first.share(&todo);
    let mut found = first.found;
    let pulse = pulse::mine();
    std::thread::scope(|scope| {
        let work = || {
            pulse.iter().for_each(Pulse::adopt);
            let mut scanner = scanner();
            scanner.work(&todo, &more);
            scanner.found
        };
        // A panic: it is passed on below.
        let others: Vec<_> = (1..THREADS).map(|_| scope.spawn(work)).collect();
        found.add(work());
        for other in others {
            match other.join() {
                Ok(more) => found.add(more),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
    });
    let todo = todo.into_inner().unwrap_or_else(PoisonError::into_inner);
    if let Some(e) = todo.failure {
        return Err(e);
    }
    absentees(catalog, &mut found, todo.visited);
    Ok(found)
}

impl Scanner<'_> {
    /// Puts the directories found into the list, those that nobody was at.
    fn share(&mut self, todo: &Mutex<Todo>) {
        let mut todo = todo.lock().unwrap_or_else(PoisonError::into_inner);
        for below in self.below.drain(..) {
            if todo.visited.insert(below.0) {
                todo.pending.push(below);
            }
        }
    }

    /// Takes directories until there are no more.
    fn work(&mut self, todo: &Mutex<Todo>, more: &Condvar) {
        let mut guard = todo.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if guard.failure.is_some() || guard.pending.is_empty() && guard.busy == 0 {
                more.notify_all();
                return;
            }
            let Some(below) = guard.pending.pop() else {
                guard = more.wait(guard).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            guard.busy += 1;
            drop(guard);
            let result = self.directory(below);
            self.share(todo);
            guard = todo.lock().unwrap_or_else(PoisonError::into_inner);
            guard.busy -= 1;
            if let Err(e) = result {
                guard.failure.get_or_insert(e);
            }
            more.notify_all();
        }
    }

    fn directory(&mut self, (id, slot, parent): Below) -> Result<()> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NONBLOCK;
        let fd = match sys::open_beneath(parent.as_fd(), &slot.name, flags, 0) {
            Ok(fd) => fd,
            // Others may keep what is theirs to themselves; if it is in the way, that shows later.
            Err(e) if is_unknown(id) && e.kind() == std::io::ErrorKind::PermissionDenied => return Ok(()),
            Err(e) => return Err(self.site.error("open", &self.shown(slot.dir, &slot.name), e)),
        };
        drop(parent);
        self.list(id, &Arc::new(fd))
    }

    fn list(&mut self, dir: FileId, fd: &Arc<OwnedFd>) -> Result<()> {
        let mut names = Vec::new();
        sys::list_dir(&**fd, |name, _, _| names.push(name.to_owned()))
            .map_err(|e| self.site.error("list", &self.shown(dir, b""), e))?;
        let mut matched = 0;
        for name in names {
            let bytes = name.to_bytes();
            if dir == FileId::ROOT && bytes == STAGE_DIR {
                continue;
            }
            let stat = sys::stat_at_c(&**fd, &name)
                .map_err(|e| self.site.error("stat", &self.shown(dir, bytes), e))?;
            let Some(stat) = stat else { continue };
            self.found.scanned += 1;
            if stat.local.dev != self.device || stat.mount != self.mount {
                tracing::warn!(path = %self.shown(dir, bytes).escape_ascii(), "another file system is mounted here: left alone");
                continue;
            }
            let id = match self.known(&stat) {
                Some(id) if self.catalog.lookup(dir, bytes) == Some(id) => {
                    matched += 1;
                    self.compare(id, &stat, fd, bytes);
                    id
                }
                Some(id) => {
                    self.found.displaced.insert(Slot::new(dir, bytes), id);
                    self.compare(id, &stat, fd, bytes);
                    id
                }
                None => self.strange(dir, bytes, &stat),
            };
            if stat.kind == Kind::Dir {
                self.below.push((id, Slot::new(dir, bytes), Arc::clone(fd)));
            }
        }
        if matched < self.catalog.child_count(dir) {
            for (name, id) in self.catalog.children(dir) {
                if self.catalog.get(id).is_some_and(|i| i.rdev != 0 && i.seen.is_none()) {
                    self.found.skipped.entry(Skip::Device).or_insert((0, id)).0 += 1;
                }
                let stat = sys::stat_at(&**fd, name).map_err(|e| self.site.error("stat", name, e))?;
                if stat.and_then(|s| self.known(&s)) != Some(id) {
                    self.found.absent.insert(Slot::new(dir, name), id);
                }
            }
        }
        Ok(())
    }

    fn shown(&self, dir: FileId, name: &[u8]) -> Vec<u8> {
        let mut path = self.catalog.path(dir).unwrap_or_else(|| dir.to_string().into_bytes());
        if !path.is_empty() && !name.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name);
        path
    }

    fn known(&self, stat: &Stat) -> Option<FileId> {
        let id = self.catalog.by_local(stat.local.dev, stat.local.ino)?;
        let inode = self.catalog.get(id)?;
        let same = inode.kind == stat.kind && inode.seen.is_some_and(|s| same_inode(&s.local, &stat.local));
        same.then_some(id)
    }

    fn strange(&mut self, dir: FileId, name: &[u8], stat: &Stat) -> FileId {
        let id = FileId(UNKNOWN + self.strangers.fetch_add(1, Ordering::Relaxed));
        self.found.strange.insert(Slot::new(dir, name), id);
        self.found
            .unknown
            .insert(id, Unknown { local: stat.local, dir: stat.kind == Kind::Dir, parent: dir });
        id
    }

    fn compare(&mut self, id: FileId, stat: &Stat, dir: &OwnedFd, name: &[u8]) {
        let Some(inode) = self.catalog.get(id) else { return };
        let Some(seen) = inode.seen else { return };
        let data =
            stat.attrs.mtime != inode.attrs.mtime || inode.kind == Kind::File && stat.size != inode.size;
        let (have, want) = (&stat.attrs, &inode.attrs);
        let mode = sys::mode_here(inode.kind, want, have, self.site.me.0);
        let (owner, mode_kept) = ((have.uid, have.gid) == (want.uid, want.gid), mode == want.mode);
        let link = inode.kind == Kind::Symlink;
        let privileged = self.site.me.0 == 0;
        let labels = |n: &[u8]| n.starts_with(b"trusted.") || n == b"security.capability";
        let labelled = !privileged && inode.xattrs.iter().any(|(n, _)| labels(n));
        let skipped = [
            (!owner).then_some(Skip::Owner),
            (!mode_kept && !link).then_some(Skip::Mode),
            labelled.then_some(Skip::Xattr),
        ];
        for what in skipped.into_iter().flatten() {
            self.found.skipped.entry(what).or_insert((0, id)).0 += 1;
        }
        let attrs = !link && have.mode != mode || privileged && !owner;
        if seen.ctime != stat.ctime || data {
            let labels = self.site.labels.changed(dir, name, &inode);
            self.found.differences.push(Difference { id, data, attrs, labels, heals: false });
        } else if privileged && !owner {
            self.found.differences.push(Difference { id, data, attrs, labels: false, heals: true });
        }
    }
}

/// Below a directory that was not found nothing was looked at; an inode that is at none of its
/// slots, and was not found elsewhere, is lost.
fn absentees(catalog: &Catalog, found: &mut Found, mut visited: HashSet<FileId>) {
    let mut dirs: Vec<FileId> = found.absent.values().copied().collect();
    while let Some(dir) = dirs.pop() {
        if !visited.insert(dir) {
            continue;
        }
        for (name, id) in catalog.children(dir) {
            found.absent.insert(Slot::new(dir, name), id);
            dirs.push(id);
        }
    }
    let elsewhere: HashSet<FileId> = found.displaced.values().copied().collect();
    for id in found.absent.values() {
        let mut names = catalog.names(*id);
        if !elsewhere.contains(id)
            && names.all(|(dir, name)| found.absent.contains_key(&Slot::new(dir, name)))
        {
            found.lost.insert(*id);
        }
    }
}
