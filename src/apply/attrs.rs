//! Attributes: owner, extended attributes and ACLs, mode, times, in the order in which none undoes another.
//!
//! A change of owner clears setuid bits and file capabilities, an ACL changes the group bits of
//! the mode, and everything that is written or renamed changes times. So contents come first, then
//! owner, extended attributes, mode, time; and directories after everything in them.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{self as rfs, AtFlags, Gid, Mode, OFlags, Timespec, Timestamps, Uid};
use rustix::io::Errno;

use crate::catalog::{Catalog, Inode, Seen};
use crate::error::{Error, Result};
use crate::position::FileId;
use crate::record::{Attrs, Kind, Time};
use crate::sys::{self, Stat};

use super::plan::{STAGE, Slot};
use super::site::{Skip, clock, diverged, seen};
use super::work::Work;

/// How an inode is reached.
#[derive(Clone, Copy)]
enum Target<'a> {
    /// A file, open for writing.
    File(&'a OwnedFd),
    /// A directory, open as `O_PATH`.
    Dir(&'a OwnedFd),
    /// A name in a directory; a symlink is not followed.
    Name(&'a OwnedFd, &'a [u8]),
}

pub(super) fn timestamps(mtime: Time) -> Timestamps {
    let omit = Timespec { tv_sec: 0, tv_nsec: rfs::UTIME_OMIT };
    let nsec = mtime.nsec.into();
    Timestamps { last_access: omit, last_modification: Timespec { tv_sec: mtime.sec, tv_nsec: nsec } }
}

/// chmod of an inode through a descriptor that may be `O_PATH`.
fn chmod_fd(fd: &OwnedFd, mode: u32) -> rustix::io::Result<()> {
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    rfs::chmodat(rfs::CWD, path, Mode::from_raw_mode(mode), AtFlags::empty())
}

/// chmod of `name` in `dir`; a symlink is not followed.
pub(super) fn chmod_inode(dir: &OwnedFd, name: &[u8], mode: u32) -> rustix::io::Result<()> {
    let fd = match sys::open_beneath(dir.as_fd(), name, OFlags::PATH, 0) {
        Ok(fd) => fd,
        Err(e) => return Err(Errno::from_io_error(&e).unwrap_or(Errno::IO)),
    };
    chmod_fd(&fd, mode)
}

impl Target<'_> {
    fn stat(&self) -> std::io::Result<Stat> {
        match self {
            Self::File(fd) | Self::Dir(fd) => sys::stat_fd(fd),
            Self::Name(dir, name) => sys::stat_at(dir, name)?.ok_or_else(|| Errno::NOENT.into()),
        }
    }

    fn chown(&self, uid: Option<u32>, gid: Option<u32>) -> rustix::io::Result<()> {
        let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
        match self {
            Self::File(fd) | Self::Dir(fd) => rfs::chownat(fd, c"", uid, gid, AtFlags::EMPTY_PATH),
            Self::Name(dir, name) => rfs::chownat(dir, *name, uid, gid, AtFlags::SYMLINK_NOFOLLOW),
        }
    }

    fn chmod(&self, mode: u32) -> rustix::io::Result<()> {
        match self {
            Self::File(fd) => rfs::fchmod(fd, Mode::from_raw_mode(mode)),
            Self::Dir(fd) => chmod_fd(fd, mode),
            Self::Name(dir, name) => chmod_inode(dir, name, mode),
        }
    }

    fn set_mtime(&self, mtime: Time) -> rustix::io::Result<()> {
        let times = timestamps(mtime);
        match self {
            Self::File(fd) | Self::Dir(fd) => rfs::utimensat(fd, c"", &times, AtFlags::EMPTY_PATH),
            Self::Name(dir, name) => rfs::utimensat(dir, *name, &times, AtFlags::SYMLINK_NOFOLLOW),
        }
    }

    fn xattrs(&self) -> std::io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
        match self {
            Self::File(fd) | Self::Dir(fd) => sys::xattrs_at(fd, b""),
            Self::Name(dir, name) => sys::xattrs_at(dir, name),
        }
    }

    fn set_xattr(&self, attr: &[u8], value: Option<&[u8]>) -> std::io::Result<()> {
        match self {
            Self::File(fd) | Self::Dir(fd) => sys::set_xattr_at(fd, b"", attr, value),
            Self::Name(dir, name) => sys::set_xattr_at(dir, name, attr, value),
        }
    }
}

fn is(e: &std::io::Error, errno: Errno) -> bool {
    e.raw_os_error() == Some(errno.raw_os_error())
}

impl Work<'_> {
    /// Attributes of something that is no directory, by name.
    pub(crate) fn attributes(&mut self, catalog: &Catalog, id: FileId, slot: &Slot) -> Result<()> {
        let dir = self.dir(catalog, slot.dir)?;
        self.set(catalog, id, Target::Name(&dir, &slot.name))
    }

    /// Attributes of a file that is open, after its content.
    pub(crate) fn finish_file(&mut self, catalog: &Catalog, id: FileId, fd: &OwnedFd) -> Result<()> {
        self.set(catalog, id, Target::File(fd))
    }

    fn set(&mut self, catalog: &Catalog, id: FileId, target: Target<'_>) -> Result<()> {
        let Some(inode) = catalog.get(id) else { return Ok(()) };
        let path = catalog.path(id).unwrap_or_default();
        let lost =
            |e: std::io::Error| Error::io("set attributes of", String::from_utf8_lossy(&path).as_ref(), e);
        self.site.point("apply::attributes").map_err(lost)?;
        let stat = target.stat().map_err(lost)?;
        if let Target::File(fd) = target
            && stat.size != inode.size
        {
            rfs::ftruncate(fd, inode.size).map_err(|e| lost(e.into()))?;
        }
        self.stir(id, &[]);
        let new = self.is_new(id);
        let have = self.set_owner(&inode, &stat, target, &path).map_err(lost)?;
        let chowned = (have.uid, have.gid) != (stat.attrs.uid, stat.attrs.gid);
        let labelled = self.set_xattrs(&inode, &stat, target, &path).map_err(lost)?;
        let mode = sys::mode_here(inode.kind, &inode.attrs, &have, self.site.me.0);
        if inode.kind != Kind::Symlink && mode != inode.attrs.mode {
            self.site.skip(Skip::Mode, &path, new);
        }
        if inode.kind != Kind::Symlink && (chowned || labelled || stat.attrs.mode != mode) {
            match target.chmod(mode) {
                Err(Errno::PERM) if self.site.me.0 != 0 => self.site.skip(Skip::Mode, &path, new),
                other => other.map_err(|e| lost(e.into()))?,
            }
        }
        match target.set_mtime(inode.attrs.mtime) {
            Err(Errno::PERM) if self.site.me.0 != 0 => {
                self.site.skip(Skip::Time, &path, new);
                Ok(())
            }
            other => other.map_err(|e| lost(e.into())),
        }
    }

    fn is_new(&self, id: FileId) -> bool {
        self.notes.touched.get(&id).is_some_and(super::notes::Touch::is_new)
    }

    /// Gives the inode its owner, as far as that is allowed. Returns the attributes it had, with the owner it has.
    fn set_owner(
        &mut self,
        inode: &Inode<'_>,
        stat: &Stat,
        target: Target<'_>,
        path: &[u8],
    ) -> std::io::Result<Attrs> {
        let (want, mut have, new) = (inode.attrs, stat.attrs, self.is_new(inode.id));
        if (want.uid, want.gid) == (have.uid, have.gid) {
            return Ok(have);
        }
        match target.chown(Some(want.uid), Some(want.gid)) {
            Ok(()) => (have.uid, have.gid) = (want.uid, want.gid),
            Err(Errno::PERM) => {
                self.site.skip(Skip::Owner, path, new);
                // A group this process is in may be given.
                if want.gid != have.gid && target.chown(None, Some(want.gid)).is_ok() {
                    have.gid = want.gid;
                }
            }
            Err(e) => return Err(e.into()),
        }
        Ok(have)
    }

    fn set_xattrs(
        &mut self,
        inode: &Inode<'_>,
        stat: &Stat,
        target: Target<'_>,
        path: &[u8],
    ) -> std::io::Result<bool> {
        let touch = self.notes.touched.get(&inode.id).copied();
        let (new, touched) = touch.map_or((false, false), |t| (t.is_new(), t.xattrs));
        let written = touch.is_some_and(|t| t.contents > 0);
        if !(touched || self.restore.contains(&inode.id) || written) || new && inode.xattrs.is_empty() {
            return Ok(false);
        }
        let mut changed = false;
        // They want to be written as contents do; the mode comes back afterwards.
        if self.site.me.0 != 0 && inode.kind == Kind::File && stat.attrs.mode & 0o200 == 0 {
            match target.chmod(stat.attrs.mode | 0o600) {
                Ok(()) => changed = true,
                Err(Errno::PERM) => {}
                Err(e) => return Err(e.into()),
            }
        }
        if touched && !new || self.restore.contains(&inode.id) {
            for (name, _) in target.xattrs()? {
                if !inode.xattrs.iter().any(|(n, _)| **n == *name) {
                    changed |= self.set_xattr(target, &name, None, path, new)?;
                }
            }
        }
        for (name, value) in inode.xattrs {
            // A write or a change of owner takes a file's capabilities away.
            if touched || self.restore.contains(&inode.id) || **name == *b"security.capability" {
                changed |= self.set_xattr(target, name, Some(value), path, new)?;
            }
        }
        Ok(changed)
    }

    fn set_xattr(
        &mut self,
        target: Target<'_>,
        name: &[u8],
        value: Option<&[u8]>,
        path: &[u8],
        new: bool,
    ) -> std::io::Result<bool> {
        match target.set_xattr(name, value) {
            Ok(()) => Ok(true),
            Err(e) if is(&e, Errno::PERM) || is(&e, Errno::ACCESS) => {
                self.site.skip(Skip::Xattr, path, new);
                Ok(false)
            }
            Err(e) if is(&e, Errno::NOTSUP) => {
                self.site.skip(Skip::UnsupportedXattr, path, new);
                Ok(false)
            }
            Err(e) => Err(e),
        }
    }

    /// Attributes of what exists and has no content record: files open for writing are done already.
    pub(crate) fn loose_attributes(&mut self, catalog: &Catalog) -> Result<()> {
        let set = self.notes.touched.iter().filter(|(_, t)| t.attrs || t.xattrs).map(|(id, _)| id);
        let mut ids: Vec<FileId> = set.chain(&self.restore).copied().collect();
        ids.sort();
        ids.dedup();
        for id in ids {
            let Some(inode) = catalog.get(id) else { continue };
            let done = self.notes.touched.get(&id).is_some_and(|t| t.is_new() || t.contents > 0);
            let device = matches!(inode.kind, Kind::CharDevice | Kind::BlockDevice);
            if done || inode.kind == Kind::Dir || device && inode.seen.is_none() {
                continue;
            }
            let Some(slot) = self.file_at(catalog, id) else { continue };
            self.check(catalog, id, &slot)?;
            self.attributes(catalog, id, &slot)?;
        }
        Ok(())
    }

    /// Directories last: what happened in them changed their times.
    pub(crate) fn directories(&mut self, catalog: &Catalog) -> Result<()> {
        let set = self.notes.touched.iter().filter(|(_, t)| t.attrs || t.xattrs).map(|(id, _)| id);
        let mut ids: Vec<FileId> = set.chain(&self.dirty).chain(&self.restore).copied().collect();
        ids.retain(|id| catalog.get(*id).is_some_and(|i| i.kind == Kind::Dir));
        ids.sort();
        ids.dedup();
        for id in ids {
            let fd = self.dir(catalog, id)?;
            self.set(catalog, id, Target::Dir(&fd))?;
            self.stirred.insert(id);
        }
        Ok(())
    }

    /// What everything this batch changed looks like now.
    pub(crate) fn observe(&mut self, catalog: &Catalog) -> Result<Vec<(FileId, Seen)>> {
        let now = clock();
        let mut ids: Vec<FileId> =
            self.stirred.iter().chain(&self.restore).chain(self.notes.touched.keys()).copied().collect();
        ids.sort();
        ids.dedup();
        let mut out = Vec::with_capacity(ids.len());
        for id in ids {
            let Some(inode) = catalog.get(id) else { continue };
            if self.absent.contains(&id) {
                continue;
            }
            let stat = if inode.kind == Kind::Dir {
                let fd = self.dir(catalog, id)?;
                sys::stat_fd(&fd).ok()
            } else {
                let Some((dir, name)) = catalog.names(id).next() else { continue };
                let fd: Arc<OwnedFd> = self.dir(catalog, dir)?;
                sys::stat_at(&*fd, name).map_err(|e| self.site.error("stat", name, e))?
            };
            let device = matches!(inode.kind, Kind::CharDevice | Kind::BlockDevice);
            match stat {
                Some(stat)
                    if stat.kind == inode.kind && (inode.kind != Kind::File || stat.size == inode.size) =>
                {
                    out.push((id, seen(&stat, now)));
                }
                None if device => {}
                _ => return Err(diverged(&catalog.path(id).unwrap_or_default(), "is not what was applied")),
            }
        }
        debug_assert!(self.site.dirs.get(STAGE).is_some());
        Ok(out)
    }
}
