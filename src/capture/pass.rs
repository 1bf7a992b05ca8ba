//! One pass: from a dirty set to one change set (design: the exact cut).
//!
//! ```text
//!  drain -> D ; examine D ; drain -> D' ; D' touches D?  no: commit, cut exact
//!                  ^                          | yes
//!                  +------ D := D + D' -------+   until the patience ends: commit, cut file
//! ```

use std::collections::HashSet;
use std::os::fd::OwnedFd;
use std::sync::{Arc, RwLock, RwLockReadGuard};

use globset::GlobSet;

use super::stage::{Node, Stage, Staged};
use super::watch::{self, Hints, Watch};
use crate::catalog::{Catalog, LocalId, Seen};
use crate::error::{Error, Result};
use crate::fold::Fold;
use crate::log::Log;
use crate::position::FileId;
use crate::record::{Kind, Record};
use crate::segment::{RAW_MAX, flags};
use crate::sys::{self, Root, Stat};

/// Uncompressed bytes at which a frame of an unfinished change set goes to the log.
const FRAME_AT: usize = RAW_MAX - (300 << 10);

/// Everything a pass works with.
pub(super) struct Pass<'a> {
    pub(super) root: &'a Root,
    pub(super) catalog: Arc<RwLock<Catalog>>,
    pub(super) fold: &'a std::sync::Mutex<Fold>,
    pub(super) log: &'a Log,
    pub(super) watch: &'a mut Watch,
    pub(super) excludes: &'a GlobSet,
    /// First scan: the tree becomes the base, nothing is logged and no content read.
    pub(super) base: bool,
    /// Contents are compared even where the stamps are equal.
    pub(super) suspicious: bool,
    pub(super) stage: Stage,
    /// Encoded records that are not in the log yet.
    pub(super) raw: Vec<u8>,
    pub(super) started: bool,
    pub(super) device: u64,
    /// Inodes examined, to tell whether a later hint concerns one of them.
    pub(super) examined: HashSet<(u64, u64)>,
    /// Directories whose own attributes were staged.
    pub(super) dirs: HashSet<Vec<u8>>,
    /// Files that changed while they were read.
    pub(super) unstable: HashSet<Vec<u8>>,
    pub(super) buffer: Vec<u8>,
    pub(super) forced: std::collections::HashMap<FileId, HashSet<u64>>,
    pub(super) notes: Notes,
}

/// What a pass saw that `status` shows.
#[derive(Debug, Default, Clone)]
pub(super) struct Notes {
    pub(super) other_file_systems: u64,
    pub(super) unreadable: Option<String>,
    pub(super) changes: u64,
    /// Files written to lately or with names outside, to be polled.
    pub(super) hot: Vec<Vec<u8>>,
}

/// `dir` and `name` of a relative path; `None` for the root.
pub(super) fn split(path: &[u8]) -> Option<(&[u8], &[u8])> {
    if path.is_empty() {
        return None;
    }
    Some(match path.iter().rposition(|&b| b == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (&path[..0], path),
    })
}

pub(super) fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    if dir.is_empty() { name.to_vec() } else { [dir, b"/", name].concat() }
}

impl Pass<'_> {
    pub(super) fn read(&self) -> RwLockReadGuard<'_, Catalog> {
        self.catalog.read().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Stages a record: encoded for the log now, folded into the catalog at the commit.
    pub(super) fn keep(&mut self, record: &Record<'_>) -> Result<()> {
        self.stage.keep(record);
        if let Some(Staged::Meta(from, to)) = self.stage.records.last() {
            let (from, to) = (*from, *to);
            let encoded = self.stage.buffer[from..to].to_vec();
            self.room(encoded.len())?;
            self.raw.extend_from_slice(&encoded);
        }
        Ok(())
    }

    /// Stages a write with the hashes of its blocks.
    pub(super) fn keep_write(
        &mut self,
        id: FileId,
        offset: u64,
        data: &[u8],
        hashes: Vec<u128>,
    ) -> Result<()> {
        self.room(data.len() + 64)?;
        Record::Write { id, offset, data }.encode(&mut self.raw);
        self.stage.records.push(Staged::Write { id, offset, len: data.len(), hashes });
        Ok(())
    }

    /// Sends what is encoded so far as a frame when `more` bytes would not fit beside it.
    pub(super) fn room(&mut self, more: usize) -> Result<()> {
        if self.base {
            self.raw.clear();
            return Ok(());
        }
        if self.raw.len() + more > FRAME_AT && !self.raw.is_empty() {
            let flag = if self.started { 0 } else { flags::STARTS };
            self.started = true;
            let raw = std::mem::take(&mut self.raw);
            self.log.append(raw, flag)?;
        }
        Ok(())
    }

    /// Examines every hint, parents first.
    pub(super) fn examine(&mut self, hints: &Hints) -> Result<()> {
        let mut paths: Vec<(&Vec<u8>, u8)> = hints.iter().map(|(p, f)| (p, *f)).collect();
        paths.sort();
        let mut touched: HashSet<Vec<u8>> = HashSet::new();
        for (path, flag) in paths {
            match split(path) {
                None => {
                    if flag & watch::TREE != 0 {
                        self.tree(b"", FileId::ROOT)?;
                    }
                    touched.insert(Vec::new());
                }
                Some((dir, name)) => {
                    if let Some((fd, id)) = self.open_dir(dir)? {
                        self.name(&fd, id, dir, name, flag)?;
                        if flag & (watch::NAME | watch::TREE) != 0 {
                            touched.insert(dir.to_vec());
                        }
                    }
                }
            }
        }
        for dir in touched {
            self.dir_attrs(&dir)?;
        }
        Ok(())
    }

    /// Opens a directory by its present path and tells which one it is. A directory that this node does not know yet is
    /// staged on the way. `None`: it is gone, or not replicated.
    pub(super) fn open_dir(&mut self, dir: &[u8]) -> Result<Option<(OwnedFd, FileId)>> {
        let fd = match self.root.open_dir(dir) {
            Ok(fd) => fd,
            Err(e) => return gone(e).map_err(|e| Error::io("open directory", self.root.join(dir), e)),
        };
        let stat = sys::stat_fd(&fd).map_err(|e| Error::io("stat", self.root.join(dir), e))?;
        if dir.is_empty() {
            return Ok(Some((fd, FileId::ROOT)));
        }
        let known = {
            let catalog = self.read();
            self.stage.by_local(&catalog, stat.local)
        };
        if let Some(id) = known {
            return Ok(Some((fd, id)));
        }
        let Some((parent, name)) = split(dir) else { return Ok(None) };
        if let Some((parent_fd, parent_id)) = self.open_dir(parent)? {
            self.name(&parent_fd, parent_id, parent, name, watch::NAME | watch::TREE)?;
            self.dir_attrs(parent)?;
        }
        let catalog = self.read();
        let id = self.stage.by_local(&catalog, stat.local);
        drop(catalog);
        Ok(id.map(|id| (fd, id)))
    }

    /// Places the watches of a directory's subtree, lists it, and examines every entry.
    pub(super) fn tree(&mut self, dir: &[u8], id: FileId) -> Result<()> {
        let mut pending = vec![(dir.to_vec(), id)];
        while let Some((dir, id)) = pending.pop() {
            // Watch first, list second: what appears in between is listed, what comes later is reported.
            if !self.watch.place(&dir)? {
                continue;
            }
            let fd = match self.root.open_dir(&dir) {
                Ok(fd) => fd,
                Err(e) => match gone(e) {
                    Ok(None::<()>) => continue,
                    Ok(Some(())) => continue,
                    Err(e) => return Err(Error::io("open directory", self.root.join(&dir), e)),
                },
            };
            let mut names = Vec::new();
            match sys::list_dir(&fd, |name, _, _| names.push(name.to_bytes().to_vec())) {
                Ok(()) => {}
                // Removed since it was opened: its parent's hint says so.
                Err(e) => match gone::<()>(e) {
                    Ok(_) => continue,
                    Err(e) => return Err(Error::io("list", self.root.join(&dir), e)),
                },
            }
            let listed: HashSet<&[u8]> = names.iter().map(Vec::as_slice).collect();
            let known = {
                let catalog = self.read();
                self.stage.children(&catalog, id)
            };
            for (name, _) in known.iter().filter(|(n, _)| !listed.contains(n.as_slice())) {
                self.name(&fd, id, &dir, name, watch::NAME)?;
            }
            for name in &names {
                if let Some(child) = self.name(&fd, id, &dir, name, watch::NAME)? {
                    pending.push((join(&dir, name), child));
                }
            }
            self.dir_attrs(&dir)?;
        }
        Ok(())
    }

    /// Examines one name. Returns the id when it is a directory.
    pub(super) fn name(
        &mut self,
        fd: &OwnedFd,
        parent: FileId,
        dir: &[u8],
        name: &[u8],
        flag: u8,
    ) -> Result<Option<FileId>> {
        let path = join(dir, name);
        let old = {
            let catalog = self.read();
            self.stage.lookup(&catalog, parent, name)
        };
        let stat = sys::stat_at(fd, name).map_err(|e| Error::io("stat", self.root.join(&path), e))?;
        let stat = stat.filter(|_| !self.excluded(&path)).filter(|s| {
            let here = s.local.dev == self.device;
            if !here {
                self.notes.other_file_systems += 1;
            }
            here
        });
        let Some(stat) = stat else {
            if old.is_some() {
                self.unlink(parent, name);
            }
            return Ok(None);
        };
        self.examined.insert((stat.local.dev, stat.local.ino));
        if stat.kind == Kind::Symlink && sys::read_link_at(fd, name).is_err() {
            // It was replaced between the stat and now.
            self.unstable.insert(path);
            return Ok(None);
        }
        let id = self.identify(&stat, old);
        let fresh = id.is_none();
        let id = match id {
            Some(id) => id,
            None => self.create(fd, name, &stat)?,
        };
        if old != Some(id) {
            self.link(parent, name, id, stat.kind);
        }
        if !fresh {
            self.attributes(fd, name, id, &stat)?;
        }
        match stat.kind {
            Kind::File => self.content(fd, name, &path, id, &stat, flag, fresh)?,
            Kind::Dir => {
                if fresh || flag & watch::TREE != 0 {
                    if flag & watch::TREE != 0 {
                        self.tree(&path, id)?;
                    }
                    return Ok(Some(id));
                }
                return Ok(Some(id));
            }
            _ => {}
        }
        Ok(None)
    }

    fn excluded(&self, path: &[u8]) -> bool {
        use std::os::unix::ffi::OsStrExt;
        path == sys::STAGE_DIR
            || (!self.excludes.is_empty() && self.excludes.is_match(std::ffi::OsStr::from_bytes(path)))
    }

    /// Which file an inode is: by its local identity; or, where none is known (after a crash), by its name.
    fn identify(&self, stat: &Stat, old: Option<FileId>) -> Option<FileId> {
        let catalog = self.read();
        if let Some(id) = self.stage.by_local(&catalog, stat.local) {
            return self.stage.node(&catalog, id).filter(|n| n.kind == stat.kind).map(|_| id);
        }
        let old = old?;
        let node = self.stage.node(&catalog, old)?;
        let same = node.seen.is_none() && node.kind == stat.kind;
        let plain = matches!(stat.kind, Kind::File | Kind::Dir | Kind::Fifo | Kind::Socket);
        (same && plain).then_some(old)
    }

    fn create(&mut self, fd: &OwnedFd, name: &[u8], stat: &Stat) -> Result<FileId> {
        let id = self.stage.allocate();
        let target = if stat.kind == Kind::Symlink {
            sys::read_link_at(fd, name).map_err(|e| Error::io("read link", self.root.path(), e))?
        } else {
            Vec::new()
        };
        self.keep(&Record::Create {
            id,
            kind: stat.kind,
            attrs: stat.attrs,
            rdev: stat.rdev,
            target: &target,
        })?;
        let seen = Some(Seen { local: stat.local, ctime: stat.ctime, racy: false });
        self.stage.create(id, Node { kind: stat.kind, attrs: stat.attrs, size: 0, seen, hashed: true });
        self.xattrs(fd, name, id, true)?;
        self.notes.changes += 1;
        Ok(id)
    }

    fn link(&mut self, parent: FileId, name: &[u8], id: FileId, kind: Kind) {
        if kind == Kind::Dir {
            // A directory has one name: the old one is left by this.
            let catalog = Arc::clone(&self.catalog);
            let catalog = catalog.read().unwrap_or_else(std::sync::PoisonError::into_inner);
            let old: Vec<(FileId, Vec<u8>)> = catalog.names(id).map(|(p, n)| (p, n.to_vec())).collect();
            let staged: Vec<(FileId, Vec<u8>)> =
                self.stage.slots().filter(|(_, s)| **s == Some(id)).map(|(k, _)| k.clone()).collect();
            for (p, n) in old.into_iter().chain(staged) {
                if self.stage.lookup(&catalog, p, &n) == Some(id) {
                    self.stage.set_slot(p, &n, None);
                }
            }
        }
        self.stage.set_slot(parent, name, Some(id));
        self.notes.changes += 1;
    }

    fn unlink(&mut self, parent: FileId, name: &[u8]) {
        self.stage.set_slot(parent, name, None);
        self.stage.unlinked += 1;
        self.notes.changes += 1;
    }

    /// Stages changed attributes and extended attributes of a known inode.
    fn attributes(&mut self, fd: &OwnedFd, name: &[u8], id: FileId, stat: &Stat) -> Result<()> {
        let Some(node) = ({
            let catalog = self.read();
            self.stage.node(&catalog, id)
        }) else {
            return Ok(());
        };
        let touched = node.seen.is_none_or(|s| s.ctime != stat.ctime || s.local != stat.local);
        if node.attrs != stat.attrs {
            self.keep(&Record::Attr { id, attrs: stat.attrs })?;
            self.notes.changes += 1;
        }
        if touched {
            self.xattrs(fd, name, id, false)?;
        }
        // A file's stamps are noted once its content was looked at too.
        let seen = match (stat.kind, node.seen) {
            (Kind::File, Some(s)) if s.local == stat.local => Some(s),
            (Kind::File, _) => Some(Seen { local: stat.local, ctime: Default::default(), racy: true }),
            _ => Some(Seen { local: stat.local, ctime: stat.ctime, racy: false }),
        };
        self.stage.set_node(id, Node { attrs: stat.attrs, seen, ..node });
        Ok(())
    }

    fn xattrs(&mut self, fd: &OwnedFd, name: &[u8], id: FileId, fresh: bool) -> Result<()> {
        let now = match sys::xattrs_at(fd, name) {
            Ok(now) => now,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(Error::io("read extended attributes of", self.root.path(), e)),
        };
        let staged = if fresh { Some(Vec::new()) } else { self.stage_xattrs(id) };
        let before: Vec<(Vec<u8>, Vec<u8>)> = match staged {
            Some(staged) => staged,
            None => {
                let catalog = self.read();
                let inode = catalog.get(id);
                inode.map_or_else(Vec::new, |n| {
                    n.xattrs.iter().map(|(k, v)| (k.to_vec(), v.to_vec())).collect()
                })
            }
        };
        for (k, _) in before.iter().filter(|(k, _)| !now.iter().any(|(n, _)| n == k)) {
            self.keep(&Record::Xattr { id, name: k, value: None })?;
        }
        for (k, v) in now.iter().filter(|kv| !before.contains(kv)) {
            self.keep(&Record::Xattr { id, name: k, value: Some(v) })?;
        }
        Ok(())
    }

    /// The extended attributes as staged by this pass: the catalog's with the staged records over them.
    fn stage_xattrs(&self, id: FileId) -> Option<Vec<(Vec<u8>, Vec<u8>)>> {
        if !self.stage.is_new(id) && !self.stage.nodes.contains_key(&id) {
            return None;
        }
        let mut map: std::collections::BTreeMap<Vec<u8>, Vec<u8>> = {
            let catalog = self.read();
            catalog.get(id).map_or_else(Default::default, |n| {
                n.xattrs.iter().map(|(k, v)| (k.to_vec(), v.to_vec())).collect()
            })
        };
        for staged in &self.stage.records {
            let Staged::Meta(from, to) = staged else { continue };
            if let Ok((Record::Xattr { id: of, name, value }, _)) =
                Record::decode(&self.stage.buffer[*from..*to])
            {
                if of == id {
                    match value {
                        Some(v) => map.insert(name.to_vec(), v.to_vec()),
                        None => map.remove(name),
                    };
                }
            }
        }
        Some(map.into_iter().collect())
    }

    /// Stages a directory's own attributes, its mtime above all.
    fn dir_attrs(&mut self, dir: &[u8]) -> Result<()> {
        let Some((fd, id)) = self.open_dir(dir)? else { return Ok(()) };
        let stat = sys::stat_fd(&fd).map_err(|e| Error::io("stat", self.root.join(dir), e))?;
        self.examined.insert((stat.local.dev, stat.local.ino));
        self.dirs.insert(dir.to_vec());
        self.attributes(&fd, b"", id, &stat)
    }

    /// Whether any of `later` touches what this pass has examined.
    pub(super) fn touches(&self, done: &Hints, later: &Hints) -> bool {
        later.iter().any(|(path, flag)| {
            let named = flag & (watch::NAME | watch::TREE | watch::ATTR) != 0;
            let (dir, _) = split(path).unwrap_or((b"", b""));
            done.contains_key(path)
                || self.unstable.contains(path)
                || (named && self.dirs.contains(dir))
                || (named
                    && self.dirs.iter().any(|d| d.starts_with(path) && d.get(path.len()) == Some(&b'/')))
                || self.is_examined(path)
        })
    }

    fn is_examined(&self, path: &[u8]) -> bool {
        let Some((dir, name)) = split(path) else { return self.dirs.contains(&b""[..]) };
        let stat = self.root.open_dir_path(dir).ok().and_then(|fd| sys::stat_at(&fd, name).ok().flatten());
        stat.is_some_and(|s| self.examined.contains(&(s.local.dev, s.local.ino)))
    }
}

/// `Ok(None)` when the error only says that something is not there (any more), or is not a directory now.
pub(super) fn gone<T>(e: std::io::Error) -> std::io::Result<Option<T>> {
    use nix::errno::Errno;
    match e.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP | Errno::EXDEV) => Ok(None),
        _ => Err(e),
    }
}

/// The identity of the data directory behind the held descriptor.
pub(super) fn identity(root: &Root) -> Result<LocalId> {
    sys::stat_fd(root.fd()).map(|s| s.local).map_err(|e| Error::io("stat", root.path(), e))
}
