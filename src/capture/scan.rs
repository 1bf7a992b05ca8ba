//! Scans: the first one makes the base of a system; later ones compare the tree with the catalog by its
//! stamps and leave hints for what differs. A scan never decides anything: a pass does.

use std::collections::HashSet;
use std::ffi::CString;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, RwLock};
use std::time::{Duration, Instant};

use super::engine::read;
use super::examine::{join, vanished};
use super::guard::{self, Excluder, Fs};
use super::hints::{Hints, flag};
use super::lock;
use super::watch::{Placed, Watch};
use crate::catalog::{Catalog, Seen};
use crate::error::{Error, ErrorKind, Result};
use crate::position::FileId;
use crate::record::{Kind, Record};
use crate::sys::pulse::{self, Pulse};
use crate::sys::{self, Root, Stat};

/// Threads of a scan that others wait for.
const THREADS: usize = 2;
/// A scan that nobody waits for works one part in this many of the time.
const IDLE_SHARE: u32 = 4;

/// What a scan works with.
#[derive(Clone)]
pub(super) struct Scanner {
    pub(super) root: Arc<Root>,
    pub(super) catalog: Arc<RwLock<Catalog>>,
    pub(super) watch: Arc<Watch>,
    pub(super) hints: Arc<Hints>,
    pub(super) excluder: Excluder,
    pub(super) home: Stat,
    pub(super) fs: Fs,
    pub(super) stop: Arc<AtomicBool>,
}

type Todo = (Vec<(Vec<u8>, FileId)>, usize);

impl Scanner {
    fn same_file_system(&self, stat: &Stat) -> bool {
        let mount = stat.mount == self.home.mount || stat.mount == 0 || self.home.mount == 0;
        stat.local.dev == self.home.local.dev && mount
    }

    /// Compares everything, with several threads.
    pub(super) fn all(&self) {
        self.hints.add(b"", flag::SCAN);
        let todo: Mutex<Todo> = Mutex::new((vec![(Vec::new(), FileId::ROOT)], 0));
        let more = Condvar::new();
        let pulse = pulse::mine();
        std::thread::scope(|scope| {
            for _ in 0..THREADS {
                // A panic: the scope passes it on.
                scope.spawn(|| {
                    pulse.iter().for_each(Pulse::adopt);
                    self.work(&todo, &more);
                });
            }
        });
    }

    fn work(&self, todo: &Mutex<Todo>, more: &Condvar) {
        let mut guard = lock(todo);
        loop {
            if let Some((rel, id)) = guard.0.pop() {
                guard.1 += 1;
                drop(guard);
                let below = self.directory(&rel, id);
                guard = lock(todo);
                guard.0.extend(below);
                guard.1 -= 1;
                more.notify_all();
            } else if guard.1 == 0 || self.stop.load(Ordering::Relaxed) {
                more.notify_all();
                return;
            } else {
                guard = more.wait(guard).unwrap_or_else(std::sync::PoisonError::into_inner);
            }
        }
    }

    /// Compares everything below `from`, leaving most of the time to others. `deep`: subdirectories too.
    pub(super) fn slowly(&self, from: Vec<(Vec<u8>, FileId)>, deep: bool) {
        let mut todo = from;
        let mut began = Instant::now();
        while let Some((rel, id)) = todo.pop() {
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            let below = self.directory(&rel, id);
            if deep {
                todo.extend(below);
            }
            let took = began.elapsed();
            if took > Duration::from_millis(2) {
                std::thread::sleep((took * IDLE_SHARE).min(Duration::from_millis(100)));
                began = Instant::now();
            }
        }
    }

    /// Watches and compares one directory; returns the directories below that are known.
    pub(super) fn directory(&self, rel: &[u8], id: FileId) -> Vec<(Vec<u8>, FileId)> {
        let again = || {
            self.hints.add(rel, flag::SCAN);
            Vec::new()
        };
        if self.watch.place(rel) == Placed::Gone {
            return again();
        }
        let Ok(fd) = self.root.open_dir(rel) else { return again() };
        let Ok(own) = sys::stat_fd(&fd) else { return again() };
        if !rel.is_empty() && !self.same_file_system(&own) {
            return Vec::new();
        }
        let mut names: Vec<CString> = Vec::new();
        if sys::list_dir(&fd, |name, _, _| names.push(name.to_owned())).is_err() {
            return again();
        }
        let stats: Vec<Option<Stat>> =
            names.iter().map(|name| sys::stat_at_c(&fd, name).ok().flatten()).collect();
        let catalog = read(&self.catalog);
        if !clean(&catalog, id, &own) {
            self.hints.add(rel, flag::SCAN);
        }
        if !rel.is_empty() && catalog.get(id).and_then(|n| n.seen).is_some_and(|s| s.local != own.local) {
            return Vec::new();
        }
        let (mut below, mut found) = (Vec::new(), 0);
        for (name, stat) in names.iter().zip(&stats) {
            let name = name.to_bytes();
            let path = join(rel, name);
            let known = catalog.lookup(id, name);
            if self.excluder.excludes(&path) {
                continue;
            }
            let Some(stat) = stat else { continue };
            found += usize::from(known.is_some());
            match known {
                _ if !self.same_file_system(stat) => {}
                Some(child) if clean(&catalog, child, stat) => {
                    if stat.kind == Kind::Dir {
                        below.push((path, child));
                    }
                }
                _ => {
                    self.hints.add(&path, flag::SCAN);
                    // One that is known by its name is scanned by its name as well.
                    let child = known.filter(|_| stat.kind == Kind::Dir);
                    let dir = |c: &FileId| catalog.get(*c).is_some_and(|n| n.kind == Kind::Dir);
                    below.extend(child.filter(dir).map(|child| (path, child)));
                }
            }
        }
        if found < catalog.child_count(id) {
            let listed: HashSet<&[u8]> =
                names.iter().zip(&stats).filter(|(_, s)| s.is_some()).map(|(n, _)| n.to_bytes()).collect();
            for (name, _) in catalog.children(id) {
                let path = join(rel, name);
                if !listed.contains(name) || self.excluder.excludes(&path) {
                    self.hints.add(&path, flag::SCAN);
                }
            }
        }
        below
    }

    /// The first scan: the tree becomes the catalog, contents to be read later.
    pub(super) fn base(&self, catalog: &mut Catalog) -> Result<()> {
        let mut todo = vec![(Vec::new(), FileId::ROOT)];
        while let Some((rel, id)) = todo.pop() {
            if let Err(e) = self.base_directory(catalog, &rel, id, &mut todo) {
                // What went meanwhile is for the first pass to see; what can't be read, for the operator.
                tracing::warn!("first scan: {e}");
                if rel.is_empty() {
                    return Err(e);
                }
                self.hints.add(&rel, flag::SCAN);
            }
        }
        catalog.settle()?;
        Ok(())
    }

    fn base_directory(
        &self,
        catalog: &mut Catalog,
        rel: &[u8],
        id: FileId,
        todo: &mut Vec<(Vec<u8>, FileId)>,
    ) -> Result<()> {
        self.watch.place(rel);
        let path = || self.root.join(rel);
        let fd = self.root.open_dir(rel).map_err(|e| Error::io("open directory", path(), e))?;
        if self.fs.folds && guard::casefold(&fd) {
            let text = format!(
                "directory '{}' folds the case of names, which followers can't keep; exclude it",
                path().display()
            );
            return Err(Error::new(ErrorKind::Refused, text));
        }
        let stat = sys::stat_fd(&fd).map_err(|e| Error::io("stat", path(), e))?;
        if rel.is_empty() {
            catalog.fold(&Record::Attr { id, attrs: stat.attrs })?;
            self.base_xattrs(catalog, &fd, b"", id)?;
            catalog.set_seen(id, Some(self.seen(&stat)));
        } else if let Some(seen) = catalog.get(id).and_then(|n| n.seen)
            && (seen.local, seen.ctime) != (stat.local, stat.ctime)
        {
            // What its parent's listing showed is older than the watch: nothing else tells of it.
            self.hints.add(rel, flag::SCAN);
            if seen.local != stat.local {
                return Ok(());
            }
        }
        let mut names: Vec<CString> = Vec::new();
        sys::list_dir(&fd, |name, _, _| names.push(name.to_owned()))
            .map_err(|e| Error::io("list", path(), e))?;
        for name in names {
            let below = join(rel, name.to_bytes());
            if self.excluder.excludes(&below) {
                continue;
            }
            match self.base_name(catalog, &fd, &name, id) {
                Ok(Some(child)) => todo.push((below, child)),
                Ok(None) => {}
                // Gone or replaced between list and look.
                Err(e) if vanished(&e) => self.hints.add(&below, flag::SCAN),
                // Left out; the first pass says so.
                Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => {
                    self.hints.add(&below, flag::SCAN);
                }
                Err(e) => return Err(Error::io("scan", self.root.join(&below), e)),
            }
        }
        Ok(())
    }

    fn seen(&self, stat: &Stat) -> Seen {
        // Whoever looks next has to look closely: the scan took no marks.
        Seen { local: stat.local, ctime: stat.ctime, racy: !self.fs.fine && super::young(stat) }
    }

    /// Takes one name into the base. Returns the id of a directory.
    fn base_name(
        &self,
        catalog: &mut Catalog,
        fd: &std::os::fd::OwnedFd,
        name: &std::ffi::CStr,
        parent: FileId,
    ) -> std::io::Result<Option<FileId>> {
        let Some(stat) = sys::stat_at_c(fd, name)? else { return Ok(None) };
        if !self.same_file_system(&stat) {
            return Ok(None);
        }
        let bytes = name.to_bytes();
        if !sys::may_read(fd, bytes, stat.kind) {
            return Err(std::io::ErrorKind::PermissionDenied.into());
        }
        let misfit = |e: Error| std::io::Error::other(e.to_string());
        let mut same = catalog.by_local(stat.local.dev, stat.local.ino);
        if let Some(id) = same
            && catalog.get(id).and_then(|n| n.seen).is_none_or(|s| s.local != stat.local)
        {
            // The file of that inode number is gone since it was listed; the number is another's now.
            if let Some(path) = catalog.path(id) {
                self.hints.add(&path, flag::SCAN);
            }
            catalog.set_seen(id, None);
            same = None;
        }
        if let Some(id) = same {
            // Another name of a file that is there already. A directory has moved while we looked.
            let file = stat.kind != Kind::Dir && catalog.get(id).is_some_and(|n| n.kind == stat.kind);
            if file {
                catalog.fold(&Record::Link { parent, name: bytes, id }).map_err(misfit)?;
            } else {
                return Err(std::io::Error::from_raw_os_error(2));
            }
            return Ok(None);
        }
        let target = if stat.kind == Kind::Symlink { sys::read_link_at(fd, bytes)? } else { Vec::new() };
        let id = catalog.next_id();
        let (kind, attrs, rdev) = (stat.kind, stat.attrs, stat.rdev);
        catalog.fold(&Record::Create { id, kind, attrs, rdev, target: &target }).map_err(misfit)?;
        catalog.fold(&Record::Link { parent, name: bytes, id }).map_err(misfit)?;
        if kind == Kind::File && stat.size > 0 {
            catalog.fold(&Record::Truncate { id, size: stat.size }).map_err(misfit)?;
            catalog.set_content(id, 0, false);
        }
        self.base_xattrs(catalog, fd, bytes, id).map_err(misfit)?;
        catalog.set_seen(id, Some(self.seen(&stat)));
        Ok((kind == Kind::Dir).then_some(id))
    }

    fn base_xattrs(
        &self,
        catalog: &mut Catalog,
        fd: &std::os::fd::OwnedFd,
        name: &[u8],
        id: FileId,
    ) -> Result<()> {
        for (name, value) in sys::xattrs_at(fd, name)? {
            catalog.fold(&Record::Xattr { id, name: &name, value: Some(&value) })?;
        }
        Ok(())
    }
}

/// Whether the stamps say that nothing changed.
fn clean(catalog: &Catalog, id: FileId, stat: &Stat) -> bool {
    catalog.get(id).is_some_and(|n| {
        n.kind == stat.kind
            && n.attrs == stat.attrs
            && (n.kind != Kind::File || n.size == stat.size)
            && n.seen.is_some_and(|s| s.local == stat.local && s.ctime == stat.ctime && !s.racy)
    })
}
