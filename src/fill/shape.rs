//! Carries out a plan on the disk, and gives everything its attributes at the end. Every access is by a name in an open
//! directory beneath the root; no symlink is followed.

use std::collections::{HashMap, HashSet};
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::fs::{self as rfs, AtFlags, Mode, OFlags};
use rustix::io::Errno;

use super::base::Base;
use super::local::Scanned;
use super::plan::{Action, Place, Plan, parked_name, path_of};
use super::tree::{Skipped, create, dress, make, seen_of, strip};
use crate::apply::remove_tree;
use crate::catalog::{Catalog, Inode, Seen};
use crate::error::{Error, ErrorKind, Result};
use crate::failpoint;
use crate::position::FileId;
use crate::record::Kind;
use crate::sys::{self, Root, STAGE_DIR, Stat};

/// The directory and the tree it is to hold.
#[derive(Clone, Copy)]
pub(super) struct Shape<'a> {
    pub(super) root: &'a Root,
    pub(super) catalog: &'a Catalog,
}

/// The directory last used: neighbours stand together in a plan.
#[derive(Default)]
struct Last(Option<(Vec<u8>, OwnedFd)>);

fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|b| *b == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b"", path),
    }
}

impl Shape<'_> {
    fn error(&self, verb: &str, path: &[u8], e: impl Into<std::io::Error>) -> Error {
        Error::io(verb, self.root.join(path), e)
    }

    fn dir<'l>(&self, last: &'l mut Last, path: &[u8]) -> Result<&'l OwnedFd> {
        if last.0.as_ref().is_none_or(|(p, _)| p != path) {
            let fd = self.root.open_dir_path(path).map_err(|e| self.error("open directory", path, e))?;
            last.0 = Some((path.to_vec(), fd));
        }
        match &last.0 {
            Some((_, fd)) => Ok(fd),
            None => Err(Error::new(ErrorKind::Io, "a directory is not open")),
        }
    }

    /// Makes the names those of the tree.
    pub(super) fn carry_out(&self, plan: &Plan, scanned: &Scanned, skipped: &mut Skipped) -> Result<()> {
        self.open_up(plan, scanned)?;
        let stage = match rfs::mkdirat(self.root.fd(), STAGE_DIR, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => self.root.open_dir_path(STAGE_DIR),
            Err(e) => Err(e.into()),
        };
        let stage = stage.map_err(|e| self.error("open", STAGE_DIR, e))?;
        let mut last = Last::default();
        for action in &plan.actions {
            failpoint::pass("resync::names").map_err(|e| self.error("change names in", b"", e))?;
            self.step(action, &stage, &mut last, skipped)?;
        }
        rfs::unlinkat(self.root.fd(), STAGE_DIR, AtFlags::REMOVEDIR)
            .map_err(|e| self.error("remove", STAGE_DIR, e))
    }

    /// Directories of its own that are closed to an unprivileged node are opened.
    fn open_up(&self, plan: &Plan, scanned: &Scanned) -> Result<()> {
        let me = rustix::process::geteuid();
        if me.is_root() {
            return Ok(());
        }
        // Parents stand first. What is in a closed one could not be listed: there is nothing to be done below.
        let mut paths: HashMap<usize, Vec<u8>> = HashMap::from([(0, Vec::new()), (1, STAGE_DIR.to_vec())]);
        for entry in &scanned.local.entries {
            let Some(stat) = scanned.stats[entry.node].filter(|s| s.kind == Kind::Dir) else { continue };
            let Some(above) = paths.get(&entry.parent) else { continue };
            let path =
                if above.is_empty() { entry.name.to_vec() } else { [above, &entry.name[..]].join(&b'/') };
            if stat.attrs.mode & 0o700 != 0o700 && stat.attrs.uid == me.as_raw() {
                let fd = self.root.open_dir_path(&path).map_err(|e| self.error("open", &path, e))?;
                let mode = Mode::from_raw_mode(stat.attrs.mode | 0o700);
                rfs::chmod(format!("/proc/self/fd/{}", fd.as_raw_fd()), mode)
                    .map_err(|e| self.error("open up", &path, e))?;
            }
            paths.insert(entry.node, path);
        }
        tracing::debug!("{} steps", plan.actions.len());
        Ok(())
    }

    fn step(&self, action: &Action, stage: &OwnedFd, last: &mut Last, skipped: &mut Skipped) -> Result<()> {
        match action {
            Action::Unshare { path } => self.unshare(path, stage, last),
            Action::Park { path, id } => {
                let (up, name) = split(path);
                let dir = self.dir(last, up)?;
                rfs::renameat(dir, name, stage, parked_name(*id))
                    .map_err(|e| self.error("move aside", path, e))?;
                last.0 = None;
                Ok(())
            }
            Action::Remove { path, dir } => self.remove(path, *dir, last),
            Action::MakeDir { at, .. } => {
                let path = self.path(at);
                let dir = self.dir(last, split(&path).0)?;
                rfs::mkdirat(dir, &*at.1, Mode::RWXU).map_err(|e| self.in_the_way("make directory", &path, e))
            }
            Action::Unpark { id, at } => {
                let path = self.path(at);
                let dir = self.dir(last, split(&path).0)?;
                rfs::renameat_with(stage, parked_name(*id), dir, &*at.1, rfs::RenameFlags::NOREPLACE)
                    .or_else(|e| match e {
                        Errno::INVAL | Errno::NOSYS => rfs::renameat(stage, parked_name(*id), dir, &*at.1),
                        e => Err(e),
                    })
                    .map_err(|e| self.in_the_way("move", &path, e))
            }
            Action::Make { id, at } => {
                let Some(inode) = self.catalog.get(*id) else { return Ok(()) };
                let path = self.path(at);
                let dir = self.dir(last, split(&path).0)?;
                let made = match inode.kind {
                    Kind::File => create(dir, &at.1, &inode).map(drop),
                    _ => make(dir, &at.1, &inode, skipped).map(drop),
                };
                made.map_err(|e| match Errno::from_io_error(&e) {
                    Some(errno) => self.in_the_way("make", &path, errno),
                    None => self.error("make", &path, e),
                })
            }
            Action::Link { id, from, at } => {
                let (source, path) = (self.path(from), self.path(at));
                let base = self.root.open_dir_path(split(&source).0);
                let base = base.map_err(|e| self.error("open", split(&source).0, e))?;
                let dir = self.dir(last, split(&path).0)?;
                match rfs::linkat(&base, &*from.1, dir, &*at.1, AtFlags::empty()) {
                    // A device that could not be made has no second name either.
                    Err(Errno::NOENT) if self.catalog.get(*id).is_some_and(|i| i.rdev != 0) => Ok(()),
                    other => other.map_err(|e| self.in_the_way("link", &path, e)),
                }
            }
        }
    }

    fn path(&self, (dir, name): &Place) -> Vec<u8> {
        path_of(self.catalog, (*dir, name))
    }

    fn in_the_way(&self, verb: &str, path: &[u8], e: Errno) -> Error {
        if e != Errno::EXIST {
            return self.error(verb, path, e);
        }
        let text = format!(
            "'{}' is in the way of what the leader has there: it is a mount, or was made just now; unmount or remove it",
            self.root.join(path).display()
        );
        Error::new(ErrorKind::Refused, text)
    }

    fn remove(&self, path: &[u8], is_dir: bool, last: &mut Last) -> Result<()> {
        let (up, name) = split(path);
        let dir = self.dir(last, up)?;
        let flags = if is_dir { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        let done = match rfs::unlinkat(dir, name, flags) {
            // What is excluded goes with the directory that the leader removed.
            Err(Errno::NOTEMPTY | Errno::EXIST) if is_dir => remove_tree(dir, name, &mut |_, _| Ok(())),
            Err(Errno::NOENT) => Ok(()),
            other => other.map_err(|e| self.error("remove", path, e)),
        };
        if is_dir {
            last.0 = None;
        }
        done
    }

    /// Writes to an inode that others have names of would show there, too.
    fn unshare(&self, path: &[u8], stage: &OwnedFd, last: &mut Last) -> Result<()> {
        const COPY: &[u8] = b"copy";
        let failed = |e: std::io::Error| self.error("copy", path, e);
        let from = self.root.open_beneath(path, OFlags::RDONLY | OFlags::NONBLOCK, 0).map_err(failed)?;
        let _ = rfs::unlinkat(stage, COPY, AtFlags::empty());
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let to = rfs::openat(stage, COPY, flags, Mode::from_raw_mode(0o600)).map_err(|e| failed(e.into()))?;
        let (mut from, mut to) = (std::fs::File::from(from), std::fs::File::from(to));
        if rfs::ioctl_ficlone(&to, &from).is_err() {
            std::io::copy(&mut from, &mut to).map_err(failed)?;
        }
        let (up, name) = split(path);
        let dir = self.dir(last, up)?;
        rfs::renameat(stage, COPY, dir, name).map_err(|e| failed(e.into()))
    }

    /// Gives directories, and what has no content, the attributes that they lack, and looks at everything: what each
    /// inode is then. `whole` says what each file was when it was finished.
    ///
    /// # Errors
    /// [`ErrorKind::Diverged`] when somebody else changed the directory meanwhile.
    pub(super) fn finish(
        &self,
        base: &Base,
        whole: &HashSet<FileId>,
        skipped: &mut Skipped,
    ) -> Result<Vec<(FileId, Seen)>> {
        let mut seen = Vec::with_capacity(self.catalog.len());
        let mut dirs = vec![FileId::ROOT];
        let mut next = 0;
        while let Some(&dir) = dirs.get(next) {
            next += 1;
            let path = self.catalog.path(dir).unwrap_or_default();
            let fd = self.root.open_dir_path(&path).map_err(|e| self.error("open directory", &path, e))?;
            for (name, id) in self.catalog.children(dir) {
                let Some(inode) = self.catalog.get(id) else { continue };
                if inode.kind == Kind::Dir {
                    dirs.push(id);
                    continue;
                }
                if self.catalog.names(id).min() != Some((dir, name)) {
                    continue;
                }
                let shown = || path_of(self.catalog, (dir, name));
                let stat = sys::stat_at(&fd, name).map_err(|e| self.error("stat", &shown(), e))?;
                let Some(stat) = stat else {
                    if inode.rdev != 0 {
                        continue;
                    }
                    return Err(meddled(&shown()));
                };
                let file = inode.kind == Kind::File;
                let as_finished = stat.size == inode.size && stat.attrs.mtime == inode.attrs.mtime;
                if stat.kind != inode.kind || file && !(as_finished && whole.contains(&id)) {
                    return Err(meddled(&shown()));
                }
                let stat = match file || base.is_dressed(&inode, &stat) {
                    true => stat,
                    false => self
                        .node(&fd, name, &inode, skipped)
                        .map_err(|e| self.error("finish", &shown(), e))?,
                };
                seen.push((id, seen_of(&stat)));
            }
        }
        // Children first: a directory may close itself to its own user, and its mtime must stay.
        for &dir in dirs.iter().rev() {
            let Some(inode) = self.catalog.get(dir) else { continue };
            let path = self.catalog.path(dir).unwrap_or_default();
            let stat = self.directory(&path, &inode, skipped);
            seen.push((dir, seen_of(&stat.map_err(|e| self.error("set attributes of", &path, e))?)));
        }
        Ok(seen)
    }

    fn node(
        &self,
        dir: &OwnedFd,
        name: &[u8],
        inode: &Inode<'_>,
        skipped: &mut Skipped,
    ) -> std::io::Result<Stat> {
        let fd = rfs::openat(dir, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
        strip(dir, name, inode)?;
        dress(&fd, dir, name, inode, skipped)
    }

    fn directory(&self, path: &[u8], inode: &Inode<'_>, skipped: &mut Skipped) -> std::io::Result<Stat> {
        let fd = self.root.open_dir(path)?;
        let stat = sys::stat_fd(&fd)?;
        let me = rustix::process::geteuid().as_raw();
        let (is, want) = (&stat.attrs, &inode.attrs);
        let mode = is.mode == sys::mode_here(Kind::Dir, want, is, me);
        let owner = me != 0 || (is.uid, is.gid) == (want.uid, want.gid);
        if labelled(&fd, inode)? && is.mtime == want.mtime && mode && owner {
            return Ok(stat);
        }
        strip(&fd, b"", inode)?;
        dress(&fd, &fd, b"", inode, skipped)
    }
}

fn meddled(path: &[u8]) -> Error {
    let text = format!(
        "'{}' was changed by somebody else while the directory was made equal; it is compared again",
        path.escape_ascii()
    );
    Error::new(ErrorKind::Unavailable, text)
}

/// Whether a directory has the extended attributes of the tree, and no others.
fn labelled(fd: &OwnedFd, inode: &Inode<'_>) -> std::io::Result<bool> {
    let has = sys::xattrs_at(fd, b"")?;
    let wanted = |name: &[u8], value: &[u8]| inode.xattrs.iter().any(|(n, v)| **n == *name && **v == *value);
    Ok(has.len() == inode.xattrs.len() && has.iter().all(|(n, v)| wanted(n, v)))
}
