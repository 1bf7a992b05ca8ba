//! Examining: what a name is now, compared with what the catalog, and the pass so far, say of it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;

use super::engine::{Engine, read};
use super::guard;
use super::hints::{Paths, flag};
use super::stage::{Hashes, Proof, Staged, Xattrs, proof};
use super::watch::Placed;
use crate::catalog::Seen;
use crate::error::{Error, Result};
use crate::position::FileId;
use crate::record::{Attrs, Kind};
use crate::sys::{self, Stat};

/// A directory that names are looked at in.
pub(super) struct Dir {
    pub(super) fd: OwnedFd,
    pub(super) id: FileId,
    pub(super) rel: Vec<u8>,
}

/// An inode to look at: a name in a directory, or (an empty name) the directory itself.
#[derive(Clone, Copy)]
pub(super) struct At<'a> {
    pub(super) fd: BorrowedFd<'a>,
    pub(super) name: &'a [u8],
    /// The path below the root.
    pub(super) rel: &'a [u8],
}

/// What was known of an inode before a look.
pub(super) struct Known {
    pub(super) attrs: Attrs,
    /// Size as the records leave it.
    pub(super) size: u64,
    /// Size when it was looked at.
    pub(super) stat_size: u64,
    pub(super) seen: Option<Seen>,
    pub(super) hashed: bool,
    pub(super) new: bool,
}

/// The parent's path and the name of a path that is not empty.
pub(super) fn split(rel: &[u8]) -> (&[u8], &[u8]) {
    match rel.iter().rposition(|&b| b == b'/') {
        Some(at) => (&rel[..at], &rel[at + 1..]),
        None => (&[], rel),
    }
}

/// `dir` and `name` as one path.
pub(super) fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    if dir.is_empty() { name.to_vec() } else { [dir, b"/", name].concat() }
}

/// Errors that mean: what was there a moment ago is not there any more.
pub(super) fn vanished(e: &io::Error) -> bool {
    let gone = [Errno::NOENT, Errno::NOTDIR, Errno::LOOP, Errno::XDEV, Errno::STALE, Errno::NXIO];
    e.raw_os_error().is_some_and(|n| gone.iter().any(|g| g.raw_os_error() == n))
}

/// Errors that concern one file only; capture goes on without it.
pub(super) fn local(e: &io::Error) -> bool {
    let out = [Errno::MFILE, Errno::NFILE, Errno::NOMEM];
    !e.raw_os_error().is_some_and(|n| out.iter().any(|g| g.raw_os_error() == n))
}

impl Engine {
    /// A new round: looks at every path, parents first, and then at the directories whose names changed.
    pub(super) fn round(&mut self, todo: &Paths) -> Result<()> {
        self.pass.begin_round();
        self.walk_missing();
        self.look(todo)
    }

    /// Looks at more paths in the same round.
    pub(super) fn look(&mut self, todo: &Paths) -> Result<()> {
        let mut keys: Vec<(&[u8], u16)> = todo.iter().map(|(path, flags)| (&**path, *flags)).collect();
        keys.sort_unstable();
        let mut open: Option<Dir> = None;
        for (key, flags) in keys {
            if key.is_empty() {
                self.pass.touched.insert(FileId::ROOT);
                if flags & flag::ARRIVED != 0 {
                    self.pass.walks.push((Vec::new(), FileId::ROOT, true));
                }
            } else {
                let (parent, name) = split(key);
                if open.as_ref().is_none_or(|dir| dir.rel != parent) {
                    open = self.open(parent)?;
                }
                if let Some(dir) = &open {
                    self.name(dir, name, flags)?;
                }
            }
            self.walk_all()?;
        }
        while let Some(id) = self.pass.others.pop_first() {
            let names = self.pass.stage.names_of(&self.read(), id);
            for (dir, name) in names {
                self.other_name(dir, &name)?;
                self.walk_all()?;
            }
        }
        for id in std::mem::take(&mut self.pass.touched) {
            self.directory(id)?;
        }
        Ok(())
    }

    /// Opens a directory by the names that are known. One that is not known yet is looked at on the way.
    fn open(&mut self, rel: &[u8]) -> Result<Option<Dir>> {
        let found = self.pass.stage.resolve(&self.read(), rel);
        match found {
            Ok(id) => self.open_known(rel, id),
            Err((above, end)) => {
                let missing = &rel[..end];
                if self.excluder.excludes(missing) || !self.pass.probed.insert(missing.into()) {
                    return Ok(None);
                }
                let (parent, name) = split(missing);
                let Some(dir) = self.open_known(parent, above)? else { return Ok(None) };
                self.name(&dir, name, flag::CREATED)?;
                self.walk_all()?;
                let found = self.pass.stage.resolve(&self.read(), rel);
                found.map_or(Ok(None), |id| self.open_known(rel, id))
            }
        }
    }

    /// Opens the directory `id` at the path where it should be. If another one is there, or none, its
    /// name is looked at again.
    pub(super) fn open_known(&mut self, rel: &[u8], id: FileId) -> Result<Option<Dir>> {
        let opened = self.root.open_dir_path(rel).and_then(|fd| sys::stat_fd(&fd).map(|stat| (fd, stat)));
        match opened {
            Ok((fd, stat)) => {
                // One of which no inode is known may be another: then it has to be watched and listed first.
                let known = self.pass.stage.seen(&self.read(), id);
                if rel.is_empty() || known.is_some_and(|seen| seen.local == stat.local) {
                    return Ok(Some(Dir { fd, id, rel: rel.to_vec() }));
                }
            }
            Err(e) if vanished(&e) => {}
            Err(e) => return self.skip(rel, "open", e).map(|()| None),
        }
        self.pass.again.insert(rel.into());
        Ok(None)
    }

    /// A file that can't be looked at is left as it was, and counted.
    pub(super) fn skip(&mut self, rel: &[u8], verb: &str, e: io::Error) -> Result<()> {
        let path = self.root.join(rel);
        if !local(&e) {
            return Err(Error::io(verb, path, e));
        }
        self.notes.skip(&path, verb, &e);
        Ok(())
    }

    /// Looks at one name of a directory.
    pub(super) fn name(&mut self, dir: &Dir, name: &[u8], flags: u16) -> Result<()> {
        let rel = join(&dir.rel, name);
        if flags & (flag::ARRIVED | flag::LEFT) != 0 {
            // Even a name that came and went has moved the directory's mtime.
            self.pass.touched.insert(dir.id);
        }
        self.notes.looked(|| self.root.join(&rel));
        let was = self.pass.stage.lookup(&self.read(), dir.id, name);
        if rel.len() > self.path_max {
            let too_long = io::Error::from_raw_os_error(Errno::NAMETOOLONG.raw_os_error());
            return self.skip(&rel, "reach", too_long);
        }
        if self.excluder.excludes(&rel) {
            if was.is_some() {
                self.pass.stage.unlink(dir.id, name);
                self.pass.touched.insert(dir.id);
            }
            return Ok(());
        }
        let stat = match sys::stat_at(&dir.fd, name) {
            Ok(stat) => stat,
            Err(e) => return self.skip(&rel, "stat", e),
        };
        let Some(stat) = stat else {
            self.gone(dir.id, name, &rel, was);
            return Ok(());
        };
        if !self.same_file_system(&stat) {
            // What is mounted here hides what is replicated; that stays as it was.
            self.notes.boundary(&rel);
            return Ok(());
        }
        let known = self.pass.stage.by_local(&self.read(), &stat).is_some();
        if !known && !sys::may_read(&dir.fd, name, stat.kind) {
            // Left out whole: a name without its content would be a lie.
            self.gone(dir.id, name, &rel, was);
            return self.skip(&rel, "read", io::Error::from_raw_os_error(Errno::ACCESS.raw_os_error()));
        }
        let Some((id, adopted)) = self.identify(dir, name, &rel, &stat, was)? else { return Ok(()) };
        let arrived = was != Some(id);
        if arrived && stat.kind == Kind::Dir && self.pass.stage.within(&self.read(), dir.id, id) {
            // It is below one that was seen below it before: that one has moved, and the event of it is on its way.
            self.pass.again.insert(rel.into());
            return Ok(());
        }
        if arrived {
            let catalog = read(&self.catalog);
            self.pass.stage.link(&catalog, dir.id, name, id, stat.kind);
            drop(catalog);
            self.pass.touched.insert(dir.id);
            self.left_behind(was);
        } else {
            self.pass.stage.confirm_name(dir.id, name);
        }
        if stat.kind == Kind::Dir {
            // Where a directory left, the watcher has dropped the watches of its path. That of another one may be
            // among them: in an exchange of two the arrival at a name is reported before the departure from it.
            if arrived || adopted || flags & (flag::ARRIVED | flag::LEFT) != 0 {
                self.pass.walks.push((rel.clone(), id, true));
            } else if flags & flag::ATTRIB != 0 && !sys::is_root() {
                // It may just have become readable.
                self.pass.walks.push((rel.clone(), id, false));
            }
        } else if arrived || flags & !flag::MODIFIED != 0 {
            self.count_names(&rel, id, &stat);
        }
        self.inode(At { fd: dir.fd.as_fd(), name, rel: &rel }, id, &stat, flags)
    }

    fn gone(&mut self, dir: FileId, name: &[u8], rel: &[u8], was: Option<FileId>) {
        if was.is_none() {
            self.pass.stage.confirm_name(dir, name);
            return;
        }
        self.pass.stage.unlink(dir, name);
        self.pass.touched.insert(dir);
        self.left_behind(was);
        self.watch.forget(rel);
        self.pass.left.insert(rel.into());
        self.pass.went.insert(rel.into());
    }

    /// Whether the inode lies on the file system of the root, seen through the same mount.
    fn same_file_system(&self, stat: &Stat) -> bool {
        let mount = stat.mount == self.home.mount || stat.mount == 0 || self.home.mount == 0;
        stat.local.dev == self.home.local.dev && mount
    }

    /// Which file an inode is. One that no catalog entry is becomes new, unless the file of that name has no
    /// known inode on this node and is of its kind (true): its number was given to another since, or this node
    /// never knew it.
    fn identify(
        &mut self,
        dir: &Dir,
        name: &[u8],
        rel: &[u8],
        stat: &Stat,
        was: Option<FileId>,
    ) -> Result<Option<(FileId, bool)>> {
        let target = |engine: &mut Self| match sys::read_link_at(&dir.fd, name) {
            Ok(target) => Ok(Some(target)),
            Err(e) if vanished(&e) => {
                engine.pass.again.insert(rel.into());
                Ok(None)
            }
            Err(e) => engine.skip(rel, "read link", e).map(|()| None),
        };
        if let Some(id) = self.pass.stage.by_local(&self.read(), stat) {
            return Ok(Some((id, false)));
        }
        let link = stat.kind == Kind::Symlink;
        let Some(target) = (if link { target(self)? } else { Some(Vec::new()) }) else { return Ok(None) };
        let adopted = {
            let catalog = self.read();
            let fits = |id: &FileId| {
                !self.pass.stage.inodes.contains_key(id)
                    && catalog.get(*id).is_some_and(|n| {
                        n.seen.is_none()
                            && n.kind == stat.kind
                            && n.rdev == stat.rdev
                            && n.target.unwrap_or_default() == target
                    })
            };
            was.filter(fits)
        };
        let id = adopted.unwrap_or_else(|| self.pass.allocate());
        self.pass.stage.set_local(stat, id);
        if adopted.is_none() {
            let staged = Staged { new: true, target, ..self.staged(rel, stat) };
            self.pass.stage.inodes.insert(id, staged);
            self.pass.stage.unsent.insert(id);
        }
        Ok(Some((id, adopted.is_some())))
    }

    /// A fresh entry of the stage; it says nothing yet that a look would call equal.
    pub(super) fn staged(&self, rel: &[u8], stat: &Stat) -> Staged {
        Staged {
            kind: stat.kind,
            new: false,
            sent: None,
            attrs: stat.attrs,
            rdev: stat.rdev,
            target: Vec::new(),
            xattrs: None,
            seen: Seen { local: stat.local, ctime: stat.ctime, racy: true },
            size: 0,
            stat_size: 0,
            hashes: Hashes::default(),
            whole: false,
            low: u64::MAX,
            path: rel.into(),
            round: 0,
            proof: Proof::Late,
        }
    }

    /// Fewer links than names known: a name is gone of which no event has come yet. More: the file has
    /// names outside, through which it may be written without an event.
    fn count_names(&mut self, rel: &[u8], id: FileId, stat: &Stat) {
        let names = self.pass.stage.names_of(&self.read(), id).len();
        let links = stat.nlink as usize;
        if links < names {
            self.pass.others.insert(id);
        } else if links > names {
            self.hot.add_linked(rel);
        }
    }

    /// A file has lost a name. Who had opened it by that name may have written it, or may write it yet, and the
    /// events of that are those of the name: its other names are looked at, and polled for a while.
    fn left_behind(&mut self, was: Option<FileId>) {
        let Some(id) = was else { return };
        if self.pass.stage.kind(&self.read(), id) == Some(Kind::File) {
            self.pass.others.insert(id);
        }
    }

    /// Looks at a name of an inode that should be gone by its number of links.
    fn other_name(&mut self, dir: FileId, name: &[u8]) -> Result<()> {
        let Some(rel) = self.pass.stage.path(&self.read(), dir) else { return Ok(()) };
        if !self.pass.probed.insert(join(&rel, name).into()) {
            return Ok(());
        }
        let Some(dir) = self.open_known(&rel, dir)? else { return Ok(()) };
        self.name(&dir, name, flag::AGAIN)
    }

    /// What is known of an inode.
    pub(super) fn known(&self, id: FileId) -> Option<Known> {
        if let Some(s) = self.pass.stage.inodes.get(&id) {
            return Some(Known {
                attrs: s.attrs,
                size: s.size,
                stat_size: s.stat_size,
                seen: Some(s.seen),
                hashed: s.whole || s.new || self.read().get(id).is_some_and(|n| n.hashed),
                new: s.new,
            });
        }
        let catalog = self.read();
        catalog.get(id).map(|n| Known {
            attrs: n.attrs,
            size: n.size,
            stat_size: n.size,
            seen: n.seen,
            hashed: n.hashed,
            new: false,
        })
    }

    /// Looks at an inode, and at its content if the stamps call for it.
    pub(super) fn inode(&mut self, at: At<'_>, id: FileId, stat: &Stat, flags: u16) -> Result<()> {
        let Some(known) = self.known(id) else { return Ok(()) };
        let same = known.attrs == stat.attrs
            && (stat.kind != Kind::File || known.stat_size == stat.size)
            && known.seen.is_some_and(|s| s.local == stat.local && s.ctime == stat.ctime && !s.racy);
        let content =
            stat.kind == Kind::File && (flags & flag::MODIFIED != 0 || self.forced.contains_key(&id));
        if same && !content {
            let round = self.pass.stage.round;
            if let Some(staged) = self.pass.stage.inodes.get_mut(&id) {
                staged.proof = staged.proof.seen_again(staged.round, round);
                staged.round = round;
            }
            return Ok(());
        }
        if self.pass.looked.get(&id) == Some(&stat.ctime) {
            return Ok(());
        }
        if flags & !flag::SCAN == 0 {
            self.pass.scanned.insert(at.rel.into());
        }
        if stat.kind == Kind::File {
            return self.file(at, id, stat, flags, &known);
        }
        let Some(xattrs) = self.xattrs(at)? else { return Ok(()) };
        let after =
            if at.name.is_empty() { sys::stat_fd(at.fd).map(Some) } else { sys::stat_at(at.fd, at.name) };
        let stable = after.is_ok_and(|s| s.is_some_and(|s| s.ctime == stat.ctime));
        self.put(at, id, stat, stable, Some(xattrs));
        Ok(())
    }

    /// The extended attributes; `None` when the thing is gone.
    pub(super) fn xattrs(&mut self, at: At<'_>) -> Result<Option<Xattrs>> {
        match sys::xattrs_at(at.fd, at.name) {
            Ok(list) => Ok(Some(list)),
            Err(e) if vanished(&e) => {
                self.pass.again.insert(at.rel.into());
                Ok(None)
            }
            Err(e) => self.skip(at.rel, "read extended attributes of", e).map(|()| Some(Vec::new())),
        }
    }

    /// Stages what a look found.
    pub(super) fn put(&mut self, at: At<'_>, id: FileId, stat: &Stat, stable: bool, xattrs: Option<Xattrs>) {
        let racy = self.racy(stat);
        let mark = self.pass.mark.time;
        let round = self.pass.stage.round;
        if !self.pass.stage.inodes.contains_key(&id) {
            let fresh = self.staged(at.rel, stat);
            let size = self.known(id).map_or(0, |k| k.size);
            self.pass.stage.inodes.insert(id, Staged { size, ..fresh });
            self.pass.stage.set_local(stat, id);
        }
        let Some(staged) = self.pass.stage.inodes.get_mut(&id) else { return };
        staged.attrs = stat.attrs;
        staged.stat_size = stat.size;
        staged.seen = Seen { local: stat.local, ctime: stat.ctime, racy: racy || !stable };
        staged.path = at.rel.into();
        staged.xattrs = xattrs.or(staged.xattrs.take());
        staged.round = round;
        staged.proof = proof(stable, stat.ctime, mark);
        self.pass.looked.insert(id, stat.ctime);
        if racy {
            self.hot.add_racy(at.rel);
        }
    }

    /// Whether another change could hide behind the same stamps: only where they are coarse.
    fn racy(&self, stat: &Stat) -> bool {
        !self.fs.fine
            && stat.ctime.max(stat.attrs.mtime) >= super::watch::earlier(super::now(), super::watch::TICKS)
    }

    /// Looks at a directory's own attributes, after its names.
    fn directory(&mut self, id: FileId) -> Result<()> {
        let Some(rel) = self.pass.stage.path(&self.read(), id) else { return Ok(()) };
        let Some(dir) = self.open_known(&rel, id)? else { return Ok(()) };
        let stat = match sys::stat_fd(&dir.fd) {
            Ok(stat) => stat,
            Err(e) => return self.skip(&rel, "stat", e),
        };
        self.pass.dirs.insert(id, stat.ctime);
        self.inode(At { fd: dir.fd.as_fd(), name: b"", rel: &rel }, id, &stat, flag::ATTRIB)
    }

    /// Directories that could not be watched are listed in every round, if the pass is to know about them.
    fn walk_missing(&mut self) {
        if !self.pass.with_missing {
            return;
        }
        for rel in self.watch.missing() {
            let found = self.pass.stage.resolve(&self.read(), &rel);
            match found {
                Ok(id) => self.pass.walks.push((rel.into(), id, false)),
                Err(_) => self.watch.forget(&rel),
            }
        }
    }

    /// Watches and lists the directories that arrived, and all below them.
    pub(super) fn walk_all(&mut self) -> Result<()> {
        while let Some((rel, id, deep)) = self.pass.walks.pop() {
            self.walk(&rel, id, deep)?;
        }
        Ok(())
    }

    /// Watch first, list second: what appears in between is listed, what comes later makes an event.
    fn walk(&mut self, rel: &[u8], id: FileId, deep: bool) -> Result<()> {
        self.pace()?;
        if self.watch.place(rel) == Placed::Gone {
            self.pass.again.insert(rel.into());
            return Ok(());
        }
        let fd = match self.root.open_dir(rel) {
            Ok(fd) => fd,
            Err(e) if vanished(&e) => {
                self.pass.again.insert(rel.into());
                return Ok(());
            }
            Err(e) => return self.skip(rel, "open directory", e),
        };
        let stat = match sys::stat_fd(&fd) {
            Ok(stat) => stat,
            Err(e) => return self.skip(rel, "stat", e),
        };
        let known = self.pass.stage.seen(&self.read(), id);
        if !rel.is_empty() && known.is_some_and(|seen| seen.local != stat.local) {
            self.pass.again.insert(rel.into());
            return Ok(());
        }
        if self.fs.folds && guard::casefold(&fd) {
            self.notes.refused(&self.root.join(rel));
            return Ok(());
        }
        let mut names: Vec<Vec<u8>> = Vec::new();
        match sys::list_dir(&fd, |name, _, _| names.push(name.to_bytes().to_vec())) {
            Ok(()) => {}
            Err(e) if vanished(&e) => {
                self.pass.again.insert(rel.into());
                return Ok(());
            }
            Err(e) => return self.skip(rel, "list", e),
        }
        names.sort_unstable();
        let dir = Dir { fd, id, rel: rel.to_vec() };
        let known = self.pass.stage.children(&self.read(), id);
        for (name, child) in known {
            if names.binary_search_by(|n| (**n).cmp(&name)).is_err() {
                self.name(&dir, &name, flag::AGAIN)?;
            } else if deep && self.pass.stage.kind(&self.read(), child) == Some(Kind::Dir) {
                // Known directories below are watched and listed again too.
                self.pass.walks.push((join(rel, &name), child, true));
            }
        }
        for name in &names {
            self.name(&dir, name, flag::AGAIN)?;
        }
        self.pass.touched.insert(id);
        Ok(())
    }
}
