//! The tree of a first copy on the follower's disk: directories and everything without content,
//! attributes, what of it an earlier attempt has left. Every access is by a name in an open directory
//! beneath the root; no symlink is followed.

use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{self as rfs, AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT, Uid};
use rustix::io::Errno;

use super::journal::Finished;
use crate::catalog::{Catalog, Inode, Seen};
use crate::error::{Error, ErrorKind, Result};
use crate::position::FileId;
use crate::record::Kind;
use crate::sys::{self, Root, Stat};

/// The ACL that what is made in a directory begins with (acl(5)).
const DEFAULT_ACL: &[u8] = b"system.posix_acl_default";

/// Called with parent id, parent directory, name and id of an entry.
type Visit<'a> = &'a mut dyn FnMut(FileId, BorrowedFd<'_>, &[u8], FileId) -> Result<()>;

/// What could not be set for lack of privilege, said once at the end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Skipped {
    pub(super) owners: u64,
    pub(super) devices: u64,
    pub(super) xattrs: u64,
}

impl Skipped {
    pub(super) fn add(&mut self, other: Self) {
        self.owners += other.owners;
        self.devices += other.devices;
        self.xattrs += other.xattrs;
    }
}

/// The tree under construction.
#[derive(Clone, Copy)]
pub(super) struct Tree<'a> {
    pub(super) root: &'a Root,
    pub(super) catalog: &'a Catalog,
}

impl<'a> Tree<'a> {
    fn path(&self, id: FileId) -> PathBuf {
        self.root.join(&self.catalog.path(id).unwrap_or_default())
    }

    fn error(&self, verb: &str, dir: FileId, name: &[u8], e: impl Into<std::io::Error>) -> Error {
        use std::os::unix::ffi::OsStrExt;
        Error::io(verb, self.path(dir).join(std::ffi::OsStr::from_bytes(name)), e)
    }

    /// A directory of the tree as a base for names in it.
    pub(super) fn dir(&self, id: FileId) -> Result<OwnedFd> {
        let path = self.catalog.path(id).unwrap_or_default();
        self.root.open_dir_path(&path).map_err(|e| Error::io("open directory", self.root.join(&path), e))
    }

    /// The name under which a file is made; its other names are linked to it at the end.
    pub(super) fn first_name(&self, id: FileId) -> Option<(FileId, &'a [u8])> {
        self.catalog.names(id).min()
    }

    /// Every directory, parents first.
    pub(super) fn dirs(&self) -> Vec<FileId> {
        let mut dirs = vec![FileId::ROOT];
        let mut next = 0;
        while let Some(&dir) = dirs.get(next) {
            let children = self.catalog.children(dir).map(|(_, id)| id);
            dirs.extend(children.filter(|&id| self.catalog.get(id).is_some_and(|i| i.kind == Kind::Dir)));
            next += 1;
        }
        dirs
    }

    /// Makes the directories that are not there yet. They stay closed to others until the end.
    pub(super) fn make_dirs(&self, dirs: &[FileId]) -> Result<()> {
        for &dir in dirs {
            let fd = self.dir(dir)?;
            self.bare(dir, &fd).map_err(|e| Error::io("take attributes from", self.path(dir), e))?;
            for (name, id) in self.catalog.children(dir) {
                if self.catalog.get(id).is_none_or(|i| i.kind != Kind::Dir) {
                    continue;
                }
                match rfs::mkdirat(&fd, name, Mode::RWXU) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(e) => return Err(self.error("make directory", dir, name, e)),
                }
            }
        }
        Ok(())
    }

    /// What is made in a directory inherits its default ACL: it has none until its own is set, at the end. What the root
    /// has inherited itself goes as well.
    fn bare(&self, dir: FileId, fd: &OwnedFd) -> std::io::Result<()> {
        if dir == FileId::ROOT
            && let Some(root) = self.catalog.get(dir)
        {
            strip(fd, b"", &root)?;
        }
        match sys::set_xattr_at(fd, b"", DEFAULT_ACL, None) {
            Err(e) if matches!(Errno::from_io_error(&e), Some(Errno::PERM | Errno::OPNOTSUPP)) => Ok(()),
            other => other,
        }
    }

    /// Regular files with content that are not `done`, directory by directory.
    pub(super) fn wanted(&self, dirs: &[FileId], done: &HashMap<FileId, Finished>) -> Vec<FileId> {
        let files = dirs.iter().flat_map(|&dir| {
            self.catalog.children(dir).filter(move |&(name, id)| self.first_name(id) == Some((dir, name)))
        });
        let with_content = |id: &FileId| {
            let inode = self.catalog.get(*id);
            inode.is_some_and(|i| i.kind == Kind::File && i.size > 0) && !done.contains_key(id)
        };
        files.map(|(_, id)| id).filter(with_content).collect()
    }

    /// Looks at what an earlier attempt has left: forgets of `done` what is not as noted, and removes
    /// what is not done. Nothing is removed if there is anything that the attempt can't have made.
    ///
    /// # Errors
    /// [`ErrorKind::Refused`], naming the first foreign entry.
    pub(super) fn take_over(&self, done: &mut HashMap<FileId, Finished>) -> Result<()> {
        let mut remove: Vec<(FileId, Box<[u8]>)> = Vec::new();
        let mut kept = HashSet::new();
        self.inspect(&mut |dir, fd, name, id| {
            let stat = sys::stat_at(fd, name).map_err(|e| self.error("stat", dir, name, e))?;
            let (Some(stat), Some(inode)) = (stat, self.catalog.get(id)) else { return Ok(()) };
            if stat.kind != inode.kind {
                return Err(self.foreign(dir, name));
            }
            let noted = done.get(&id).is_some_and(|f| {
                f.seen.local == stat.local && stat.size == inode.size && stat.attrs.mtime == inode.attrs.mtime
            });
            if inode.kind == Kind::File && noted && self.first_name(id) == Some((dir, name)) {
                kept.insert(id);
            } else if inode.kind != Kind::Dir {
                remove.push((dir, name.into()));
            }
            Ok(())
        })?;
        done.retain(|id, _| kept.contains(id));
        for (dir, name) in remove {
            let fd = self.dir(dir)?;
            rfs::unlinkat(&fd, &*name, AtFlags::empty()).map_err(|e| self.error("remove", dir, &name, e))?;
        }
        Ok(())
    }

    /// Removes everything that an earlier attempt has made, and nothing if there is anything else.
    pub(super) fn discard(&self) -> Result<()> {
        let mut dirs = vec![FileId::ROOT];
        let mut files: Vec<(FileId, Box<[u8]>)> = Vec::new();
        self.inspect(&mut |dir, fd, name, id| {
            let stat = sys::stat_at(fd, name).map_err(|e| self.error("stat", dir, name, e))?;
            match (stat.map(|s| s.kind), self.catalog.get(id).map(|i| i.kind)) {
                (Some(Kind::Dir), Some(Kind::Dir)) => dirs.push(id),
                (Some(there), Some(made)) if there == made => files.push((dir, name.into())),
                (None, _) => {}
                _ => return Err(self.foreign(dir, name)),
            }
            Ok(())
        })?;
        for (dir, name) in files {
            let fd = self.dir(dir)?;
            rfs::unlinkat(&fd, &*name, AtFlags::empty()).map_err(|e| self.error("remove", dir, &name, e))?;
        }
        for id in dirs.into_iter().skip(1).rev() {
            let Some((parent, name)) = self.catalog.names(id).next() else { continue };
            let fd = self.dir(parent)?;
            rfs::unlinkat(&fd, name, AtFlags::REMOVEDIR)
                .map_err(|e| self.error("remove", parent, name, e))?;
        }
        Ok(())
    }

    fn foreign(&self, dir: FileId, name: &[u8]) -> Error {
        use std::os::unix::ffi::OsStrExt;
        let path = self.path(dir).join(std::ffi::OsStr::from_bytes(name));
        foreign(&path)
    }

    /// Calls `each` for every entry on disk, parents first; one that the catalog does not know is refused,
    /// unless it is excluded.
    fn inspect(&self, each: Visit<'_>) -> Result<()> {
        let excluded = self.catalog.excludes().matcher()?;
        let mut dirs = vec![FileId::ROOT];
        let mut next = 0;
        while let Some(&dir) = dirs.get(next) {
            next += 1;
            let path = self.catalog.path(dir).unwrap_or_default();
            self.open_up(dir)?;
            let fd = match self.root.open_dir(&path) {
                Ok(fd) => fd,
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
                Err(e) => return Err(Error::io("list", self.root.join(&path), e)),
            };
            let mut names: Vec<Box<[u8]>> = Vec::new();
            sys::list_dir(&fd, |name, _, _| names.push(name.to_bytes().into()))
                .map_err(|e| Error::io("list", self.root.join(&path), e))?;
            for name in names {
                let Some(id) = self.catalog.lookup(dir, &name) else {
                    let below = [&path[..], &name].join(&b'/');
                    if excluded.matches(below.strip_prefix(b"/").unwrap_or(&below)) {
                        continue;
                    }
                    return Err(self.foreign(dir, &name));
                };
                each(dir, fd.as_fd(), &name, id)?;
                if self.catalog.get(id).is_some_and(|i| i.kind == Kind::Dir) {
                    dirs.push(id);
                }
            }
        }
        Ok(())
    }

    /// An earlier attempt may have closed the directory to its own user already.
    fn open_up(&self, dir: FileId) -> Result<()> {
        if dir == FileId::ROOT || rustix::process::geteuid().is_root() {
            return Ok(());
        }
        let path = self.catalog.path(dir).unwrap_or_default();
        match self.root.open_beneath(&path, OFlags::PATH | OFlags::DIRECTORY, 0) {
            Ok(fd) => chmod(&fd, 0o700).map_err(|e| Error::io("open up", self.root.join(&path), e)),
            Err(_) => Ok(()),
        }
    }

    /// Makes everything that has no content, and the further names of files. What each inode then is.
    pub(super) fn make_rest(&self, dirs: &[FileId], skipped: &mut Skipped) -> Result<Vec<(FileId, Seen)>> {
        let mut seen = Vec::new();
        self.make_nodes(dirs, skipped, &mut seen)?;
        self.link_names(dirs, &mut seen)?;
        // Children first: a directory may close itself to its own user, and its mtime must stay.
        for &dir in dirs.iter().rev() {
            let Some(inode) = self.catalog.get(dir) else { continue };
            let path = self.catalog.path(dir).unwrap_or_default();
            let failed = |verb, e| Error::io(verb, self.root.join(&path), e);
            let fd = self.root.open_dir(&path).map_err(|e| failed("open directory", e))?;
            let stat = dress(&fd, &fd, b"", &inode, skipped).map_err(|e| failed("set attributes of", e))?;
            seen.push((dir, seen_of(&stat)));
        }
        Ok(seen)
    }

    fn make_nodes(
        &self,
        dirs: &[FileId],
        skipped: &mut Skipped,
        seen: &mut Vec<(FileId, Seen)>,
    ) -> Result<()> {
        for &dir in dirs {
            let mut base = None;
            for (name, id) in self.catalog.children(dir) {
                let Some(inode) = self.catalog.get(id) else { continue };
                let content = inode.kind == Kind::File && inode.size > 0;
                if inode.kind == Kind::Dir || content || self.first_name(id) != Some((dir, name)) {
                    continue;
                }
                let fd = match base.take() {
                    Some(fd) => fd,
                    None => self.dir(dir)?,
                };
                let stat = make(&fd, name, &inode, skipped).map_err(|e| self.error("make", dir, name, e))?;
                seen.extend(stat.map(|stat| (id, seen_of(&stat))));
                base = Some(fd);
            }
        }
        Ok(())
    }

    fn link_names(&self, dirs: &[FileId], seen: &mut Vec<(FileId, Seen)>) -> Result<()> {
        for &dir in dirs {
            for (name, id) in self.catalog.children(dir) {
                let Some(inode) = self.catalog.get(id).filter(|i| i.nlink > 1 && i.kind != Kind::Dir) else {
                    continue;
                };
                let Some((from, first)) = self.first_name(id).filter(|&f| f != (dir, name)) else { continue };
                let (from_fd, to) = (self.dir(from)?, self.dir(dir)?);
                match rfs::linkat(&from_fd, first, &to, name, AtFlags::empty()) {
                    Ok(()) => {}
                    // A device that could not be made has no second name either.
                    Err(Errno::NOENT) if inode.rdev != 0 => continue,
                    Err(e) => return Err(self.error("link", dir, name, e)),
                }
                let stat = sys::stat_at(&to, name).map_err(|e| self.error("stat", dir, name, e))?;
                seen.extend(stat.map(|stat| (id, seen_of(&stat))));
            }
        }
        Ok(())
    }
}

/// The refusal to touch a directory that holds something else.
pub(super) fn foreign(path: &std::path::Path) -> Error {
    let text = format!(
        "'{}' was not made by this copy; a follower takes an empty data directory: move what is in it away, or start it with \
         --adopt to make what is there equal to the leader's",
        path.display().to_string().escape_debug()
    );
    Error::new(ErrorKind::Refused, text)
}

/// What the inode is on this node.
pub(super) fn seen_of(stat: &Stat) -> Seen {
    Seen { local: stat.local, ctime: stat.ctime, racy: super::racy(stat.ctime) }
}

/// Makes an inode without content. `None`: a device that only a privileged process can make.
pub(super) fn make(
    dir: &OwnedFd,
    name: &[u8],
    inode: &Inode<'_>,
    skipped: &mut Skipped,
) -> std::io::Result<Option<Stat>> {
    let mode = Mode::from_raw_mode(inode.attrs.mode & 0o700);
    let device = |kind| rfs::mknodat(dir, name, kind, mode, inode.rdev);
    let made = match inode.kind {
        Kind::Dir => return Ok(None),
        Kind::File => {
            let file = create(dir, name, inode)?;
            return dress(&file, dir, name, inode, skipped).map(Some);
        }
        Kind::Symlink => rfs::symlinkat(inode.target.unwrap_or_default(), dir, name),
        Kind::Fifo => device(FileType::Fifo),
        Kind::Socket => device(FileType::Socket),
        Kind::CharDevice => device(FileType::CharacterDevice),
        Kind::BlockDevice => device(FileType::BlockDevice),
    };
    match made {
        Err(Errno::PERM) if matches!(inode.kind, Kind::CharDevice | Kind::BlockDevice) => {
            skipped.devices += 1;
            return Ok(None);
        }
        other => other?,
    }
    let node = sys::open_beneath(dir.as_fd(), name, OFlags::PATH, 0);
    let node = match node {
        Ok(node) => node,
        // An O_PATH descriptor of a symlink itself can't be had together with "no symlinks": it is made without.
        Err(_) => rfs::openat(dir, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?,
    };
    dress(&node, dir, name, inode, skipped).map(Some)
}

/// Creates a regular file under a name that must be free.
pub(super) fn create(dir: &OwnedFd, name: &[u8], inode: &Inode<'_>) -> std::io::Result<OwnedFd> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    // Until it has its owner, nobody else looks in.
    let me = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let mode = if (inode.attrs.uid, inode.attrs.gid) == me { 0o777 } else { 0o700 };
    // Extended attributes want to be written as contents do.
    let extra = if inode.xattrs.is_empty() { 0 } else { 0o600 };
    Ok(rfs::openat(dir, name, flags, Mode::from_raw_mode(inode.attrs.mode & mode | extra))?)
}

/// Removes the extended attributes that the tree does not have.
pub(super) fn strip(dir: &OwnedFd, name: &[u8], inode: &Inode<'_>) -> std::io::Result<()> {
    for (attr, _) in sys::xattrs_at(dir, name)? {
        if !inode.xattrs.iter().any(|(n, _)| **n == *attr) {
            match sys::set_xattr_at(dir, name, &attr, None) {
                // What only privilege can give, only privilege can take away.
                Err(e) if Errno::from_io_error(&e) == Some(Errno::PERM) => {}
                other => other?,
            }
        }
    }
    Ok(())
}

/// Gives `fd`, which is `name` in `dir` (empty: `dir` itself), the attributes of `inode`. What it then is.
pub(super) fn dress(
    fd: &OwnedFd,
    dir: &OwnedFd,
    name: &[u8],
    inode: &Inode<'_>,
    skipped: &mut Skipped,
) -> std::io::Result<Stat> {
    let want = &inode.attrs;
    let omit = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
    let mtime = Timespec { tv_sec: want.mtime.sec, tv_nsec: i64::from(want.mtime.nsec) };
    let times = Timestamps { last_access: omit, last_modification: mtime };
    if inode.kind == Kind::File || inode.kind == Kind::Dir {
        rfs::futimens(fd, &times)?;
    } else {
        rfs::utimensat(dir, name, &times, AtFlags::SYMLINK_NOFOLLOW)?;
    }
    // Nothing below touches the mtime; most files need nothing below.
    let is = sys::stat_fd(fd)?;
    let owned = (is.attrs.uid, is.attrs.gid) == (want.uid, want.gid);
    let me = rustix::process::geteuid().as_raw();
    let mode = sys::mode_here(inode.kind, want, &is.attrs, me);
    if owned && inode.xattrs.is_empty() && (is.attrs.mode == mode || inode.kind == Kind::Symlink) {
        return Ok(is);
    }
    let mut have = is.attrs;
    if !owned {
        let (uid, gid) = (Uid::from_raw(want.uid), Gid::from_raw(want.gid));
        match rfs::chownat(fd, c"", Some(uid), Some(gid), AtFlags::EMPTY_PATH) {
            Err(Errno::PERM) => skipped.owners += 1,
            other => {
                other?;
                (have.uid, have.gid) = (want.uid, want.gid);
            }
        }
    }
    for (attr, value) in inode.xattrs {
        match sys::set_xattr_at(dir, name, attr, Some(value)) {
            Err(e) if Errno::from_io_error(&e) == Some(Errno::PERM) => skipped.xattrs += 1,
            other => other?,
        }
    }
    // Last, since a change of owner takes setuid bits away.
    if inode.kind != Kind::Symlink {
        chmod(fd, sys::mode_here(inode.kind, want, &have, me))?;
    }
    sys::stat_fd(fd)
}

/// Sets the mode of what an open descriptor is, also of one that is only a path.
fn chmod(fd: &OwnedFd, mode: u32) -> std::io::Result<()> {
    let mode = Mode::from_raw_mode(mode);
    match rfs::fchmod(fd, mode) {
        Err(Errno::BADF) => Ok(rfs::chmod(format!("/proc/self/fd/{}", fd.as_raw_fd()), mode)?),
        other => Ok(other?),
    }
}
