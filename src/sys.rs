//! Thin, safe wrappers over the Linux calls that the engines need: stat with birth time, opens
//! that stay beneath the data directory and never follow a symlink, listings, extended attributes,
//! holes. No policy lives here.

use std::ffi::{CStr, CString, OsStr};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{self as rfs, AtFlags, FileType, Mode, OFlags, RawDir, ResolveFlags, StatxFlags};

use crate::catalog::LocalId;
use crate::record::{Attrs, Kind, Time};

pub mod pulse;
pub mod raw;
pub mod vital;

/// A directory of this name at the root of a data directory is a follower's own: new content is
/// staged there (mode 0700, same file system). It is never captured and never shipped.
pub const STAGE_DIR: &[u8] = b".towline-stage";

/// Whether this process may do as it likes with files.
#[must_use]
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Whether this process may read a file, or list and enter a directory. Other kinds need no reading.
#[must_use]
pub fn may_read(dir: impl AsFd, name: &[u8], kind: Kind) -> bool {
    let access = match kind {
        _ if is_root() => return true,
        Kind::File => rfs::Access::READ_OK,
        Kind::Dir => rfs::Access::READ_OK | rfs::Access::EXEC_OK,
        _ => return true,
    };
    rfs::accessat(dir, name, access, AtFlags::EACCESS | AtFlags::SYMLINK_NOFOLLOW).is_ok()
}

/// Bytes that may still be written to the file system of `path` without privilege, and the sum of these and the used
/// ones: what `df` takes its percentage from.
pub fn room(path: &Path) -> io::Result<(u64, u64)> {
    let s = rfs::statvfs(path)?;
    let usable = s.f_blocks.saturating_sub(s.f_bfree).saturating_add(s.f_bavail);
    Ok((s.f_bavail.saturating_mul(s.f_frsize), usable.saturating_mul(s.f_frsize)))
}

/// What statx says of one inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// Type.
    pub kind: Kind,
    /// Mode, owner, group, mtime.
    pub attrs: Attrs,
    /// Bytes; meaningful for regular files and symlinks only.
    pub size: u64,
    /// Device number of a device node, as `makedev` packs it.
    pub rdev: u64,
    /// Number of names.
    pub nlink: u32,
    /// Device, inode, birth time.
    pub local: LocalId,
    /// Change time: it can't be set by users.
    pub ctime: Time,
    /// Mount the inode was seen through, 0 where the kernel does not say.
    pub mount: u64,
    /// Allocated bytes.
    pub allocated: u64,
}

fn time(t: rfs::StatxTimestamp) -> Time {
    Time { sec: t.tv_sec, nsec: t.tv_nsec }
}

fn to_stat(x: &rfs::Statx) -> io::Result<Stat> {
    let kind = match FileType::from_raw_mode(x.stx_mode.into()) {
        FileType::RegularFile => Kind::File,
        FileType::Directory => Kind::Dir,
        FileType::Symlink => Kind::Symlink,
        FileType::Fifo => Kind::Fifo,
        FileType::Socket => Kind::Socket,
        FileType::CharacterDevice => Kind::CharDevice,
        FileType::BlockDevice => Kind::BlockDevice,
        FileType::Unknown => return Err(io::Error::other("unknown file type")),
    };
    let device = matches!(kind, Kind::CharDevice | Kind::BlockDevice);
    Ok(Stat {
        kind,
        attrs: Attrs {
            mode: u32::from(x.stx_mode) & 0o7777,
            uid: x.stx_uid,
            gid: x.stx_gid,
            mtime: time(x.stx_mtime),
        },
        size: x.stx_size,
        rdev: if device { rfs::makedev(x.stx_rdev_major, x.stx_rdev_minor) } else { 0 },
        nlink: x.stx_nlink,
        local: LocalId {
            dev: rfs::makedev(x.stx_dev_major, x.stx_dev_minor),
            ino: x.stx_ino,
            btime: time(x.stx_btime),
        },
        ctime: time(x.stx_ctime),
        mount: x.stx_mnt_id,
        allocated: x.stx_blocks.saturating_mul(512),
    })
}

fn mask() -> StatxFlags {
    StatxFlags::BASIC_STATS | StatxFlags::BTIME | StatxFlags::MNT_ID
}

/// Stats `name` in `dir` without following a symlink. `None`: there is no such name.
pub fn stat_at(dir: impl AsFd, name: &[u8]) -> io::Result<Option<Stat>> {
    pulse::beat();
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    match rfs::statx(dir, name, flags, mask()) {
        Ok(x) => to_stat(&x).map(Some),
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// Like [`stat_at`], for a name that is already NUL-terminated (the hot path of scans).
pub fn stat_at_c(dir: impl AsFd, name: &CStr) -> io::Result<Option<Stat>> {
    pulse::beat();
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    match rfs::statx(dir, name, flags, mask()) {
        Ok(x) => to_stat(&x).map(Some),
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// Stats an open file.
pub fn stat_fd(fd: impl AsFd) -> io::Result<Stat> {
    to_stat(&rfs::statx(fd, c"", AtFlags::EMPTY_PATH, mask())?)
}

/// The mode that an inode of the tree gets on this node, where user `me` runs it and the inode belongs to what
/// `have` says.
///
/// Bits that act in the name of the owner or the group are left out where that owner or group could not be
/// set: nothing shall run as this node's user for it. Without privilege the node keeps access to its
/// directories, and may read its files: it could not keep them equal otherwise.
#[must_use]
pub fn mode_here(kind: Kind, want: &Attrs, have: &Attrs, me: u32) -> u32 {
    let mut mode = want.mode;
    if kind != Kind::Dir && want.uid != have.uid {
        mode &= !0o4000;
    }
    if kind != Kind::Dir && want.gid != have.gid {
        mode &= !0o2000;
    }
    match kind {
        Kind::Dir if me != 0 => mode | 0o700,
        Kind::File if me != 0 => mode | 0o400,
        _ => mode,
    }
}

/// The data directory, held open: every access below goes through this descriptor.
#[derive(Debug)]
pub struct Root {
    fd: OwnedFd,
    path: PathBuf,
}

impl Root {
    /// Opens the directory at `path`; symlinks on the way to it are followed, as the operator wrote them.
    pub fn open(path: &Path) -> io::Result<Self> {
        let path = std::path::absolute(path)?;
        let fd = rfs::open(&path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Self { fd, path })
    }

    /// The absolute path it was opened by.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The held descriptor (`O_PATH`).
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Opens `rel` (empty: the root itself) beneath the root; no component may be a symlink.
    pub fn open_beneath(&self, rel: &[u8], flags: OFlags, mode: u32) -> io::Result<OwnedFd> {
        open_beneath(self.fd.as_fd(), rel, flags, mode)
    }

    /// A directory beneath the root, readable, for listing and as a base of `*at` calls.
    pub fn open_dir(&self, rel: &[u8]) -> io::Result<OwnedFd> {
        self.open_beneath(rel, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NONBLOCK, 0)
    }

    /// A directory beneath the root as an `O_PATH` descriptor: cheap, only a base of `*at` calls.
    pub fn open_dir_path(&self, rel: &[u8]) -> io::Result<OwnedFd> {
        self.open_beneath(rel, OFlags::PATH | OFlags::DIRECTORY, 0)
    }

    /// `rel` as a path for messages and for calls that only take paths (watches).
    #[must_use]
    pub fn join(&self, rel: &[u8]) -> PathBuf {
        if rel.is_empty() { self.path.clone() } else { self.path.join(OsStr::from_bytes(rel)) }
    }
}

/// Longest path handed to the kernel at once; its limit is 4096 with the NUL. Longer ones are walked in parts.
const PATH_PART: usize = 4000;

/// Opens `rel` beneath `base` with openat2: RESOLVE_BENEATH and RESOLVE_NO_SYMLINKS.
pub fn open_beneath(base: BorrowedFd<'_>, rel: &[u8], flags: OFlags, mode: u32) -> io::Result<OwnedFd> {
    pulse::beat();
    if rel.len() > PATH_PART {
        let cut = rel[..PATH_PART].iter().rposition(|&b| b == b'/').ok_or(rustix::io::Errno::NAMETOOLONG)?;
        let part = open_beneath(base, &rel[..cut], OFlags::PATH | OFlags::DIRECTORY, 0)?;
        return open_beneath(part.as_fd(), &rel[cut + 1..], flags, mode);
    }
    let rel = if rel.is_empty() { &b"."[..] } else { rel };
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let mode = if flags.intersects(OFlags::CREATE | OFlags::TMPFILE) {
        Mode::from_raw_mode(mode)
    } else {
        Mode::empty()
    };
    loop {
        // EAGAIN: a concurrent rename kept the kernel from proving "beneath"; it asks us to try again.
        match rfs::openat2(base, rel, flags, mode, resolve) {
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
            other => return Ok(other?),
        }
    }
}

/// One entry of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Name bytes with the NUL, ready for `*at` calls.
    pub name: CString,
    /// Whether the listing says it is a directory (`None`: the file system does not say).
    pub is_dir: Option<bool>,
    /// Inode number as the listing has it.
    pub ino: u64,
}

/// Lists a directory opened for reading, `.` and `..` left out, from its beginning.
///
/// `each` is called per entry; the listing is read in pieces of 32 KiB, so memory does not grow with it.
pub fn list_dir(dir: impl AsFd, mut each: impl FnMut(&CStr, Option<bool>, u64)) -> io::Result<()> {
    rfs::seek(&dir, rfs::SeekFrom::Start(0))?;
    let mut buffer = Vec::with_capacity(32 << 10);
    let mut iter = RawDir::new(dir, buffer.spare_capacity_mut());
    while let Some(entry) = iter.next() {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let is_dir = match entry.file_type() {
            FileType::Unknown => None,
            t => Some(t == FileType::Directory),
        };
        each(name, is_dir, entry.ino());
    }
    Ok(())
}

/// Reads the next piece of a listing, at most 8 KiB of names, `.` and `..` left out. False: it has ended.
pub fn list_more(dir: impl AsFd, mut each: impl FnMut(&CStr)) -> io::Result<bool> {
    let mut buffer = Vec::with_capacity(8 << 10);
    let mut iter = RawDir::new(dir, buffer.spare_capacity_mut());
    let mut more = false;
    while let Some(entry) = iter.next() {
        let entry = entry?;
        more = true;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            each(name);
        }
        if iter.is_buffer_empty() {
            break;
        }
    }
    Ok(more)
}

/// `/proc/self/fd/N/name`: a path for the `l*xattr` calls, which have no `*at` form before Linux 6.13.
/// The last component is not followed by them, and the descriptor pins the directory.
fn proc_path(dir: BorrowedFd<'_>, name: &[u8]) -> Vec<u8> {
    let mut path = format!("/proc/self/fd/{}", dir.as_raw_fd()).into_bytes();
    if !name.is_empty() {
        path.push(b'/');
        path.extend_from_slice(name);
    }
    path
}

/// Whether an extended attribute is part of the replicated tree: user, trusted, POSIX ACLs and file
/// capabilities. Labels of a host's security module are its own.
#[must_use]
pub fn replicated_xattr(name: &[u8]) -> bool {
    name.starts_with(b"user.")
        || name.starts_with(b"trusted.")
        || name == b"system.posix_acl_access"
        || name == b"system.posix_acl_default"
        || name == b"security.capability"
}

/// The replicated extended attributes of `name` in `dir` (an empty name: of `dir` itself), sorted by name.
pub fn xattrs_at(dir: impl AsFd, name: &[u8]) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let path = proc_path(dir.as_fd(), name);
    // Through /proc/self/fd/N alone the link itself must be followed to reach the directory.
    let list = |buf: &mut [u8]| {
        if name.is_empty() { rfs::listxattr(&path[..], buf) } else { rfs::llistxattr(&path[..], buf) }
    };
    let get = |attr: &CStr, buf: &mut [u8]| {
        if name.is_empty() {
            rfs::getxattr(&path[..], attr, buf)
        } else {
            rfs::lgetxattr(&path[..], attr, buf)
        }
    };
    let mut names = [0_u8; 1024];
    let grown;
    let names: &[u8] = match list(&mut names) {
        Ok(0) | Err(rustix::io::Errno::NOTSUP) => return Ok(Vec::new()),
        Ok(n) => &names[..n],
        Err(rustix::io::Errno::RANGE) => {
            let mut big = vec![0_u8; 64 << 10];
            let n = list(&mut big)?;
            big.truncate(n);
            grown = big;
            &grown
        }
        Err(e) => return Err(e.into()),
    };
    let mut out = Vec::new();
    for attr in names.split_inclusive(|&b| b == 0) {
        let Ok(attr) = CStr::from_bytes_with_nul(attr) else { continue };
        if !replicated_xattr(attr.to_bytes()) {
            continue;
        }
        let mut value = vec![0_u8; 64 << 10];
        match get(attr, &mut value) {
            Ok(n) => {
                value.truncate(n);
                value.shrink_to_fit();
                out.push((attr.to_bytes().to_vec(), value));
            }
            // Gone between the list and the read, or not ours to read: as if it were not there.
            Err(rustix::io::Errno::NODATA | rustix::io::Errno::PERM | rustix::io::Errno::ACCESS) => {}
            Err(e) => return Err(e.into()),
        }
    }
    out.sort();
    Ok(out)
}

/// Sets (or with `None` removes) one extended attribute of `name` in `dir`; an empty name means `dir` itself.
pub fn set_xattr_at(dir: impl AsFd, name: &[u8], attr: &[u8], value: Option<&[u8]>) -> io::Result<()> {
    let path = proc_path(dir.as_fd(), name);
    let flags = rfs::XattrFlags::empty();
    let result = match (value, name.is_empty()) {
        (Some(v), true) => rfs::setxattr(&path[..], attr, v, flags),
        (Some(v), false) => rfs::lsetxattr(&path[..], attr, v, flags),
        (None, true) => rfs::removexattr(&path[..], attr),
        (None, false) => rfs::lremovexattr(&path[..], attr),
    };
    match result {
        Err(rustix::io::Errno::NODATA) if value.is_none() => Ok(()),
        other => Ok(other?),
    }
}

/// The target of the symlink `name` in `dir`.
pub fn read_link_at(dir: impl AsFd, name: &[u8]) -> io::Result<Vec<u8>> {
    Ok(rfs::readlinkat(dir, name, Vec::new())?.into_bytes())
}

/// The next range of data at or after `from`: `(start, end)`. `None`: only a hole is left.
/// Where the file system can't tell, everything up to `size` is data.
pub fn next_data(fd: impl AsFd, from: u64, size: u64) -> io::Result<Option<(u64, u64)>> {
    if from >= size {
        return Ok(None);
    }
    let start = match rfs::seek(&fd, rfs::SeekFrom::Data(from)) {
        Ok(s) => s,
        Err(rustix::io::Errno::NXIO) => return Ok(None),
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOTSUP) => return Ok(Some((from, size))),
        Err(e) => return Err(e.into()),
    };
    let end = match rfs::seek(&fd, rfs::SeekFrom::Hole(start)) {
        Ok(e) => e,
        Err(rustix::io::Errno::NXIO) => return Ok(None),
        Err(e) => return Err(e.into()),
    };
    Ok((start < size).then_some((start, end.min(size))))
}

/// Reads until `buf` is full or the file ends; returns the bytes read.
pub fn read_at(fd: impl AsFd, buf: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut done = 0;
    while done < buf.len() {
        match rustix::io::pread(&fd, &mut buf[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(n) => {
                pulse::beat();
                done += n;
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(done)
}

/// Like [`read_at`] of a full `buf`, but only if memory holds it all, so that the caller does not wait for a disk.
/// False: it has to be read in the ordinary way.
pub fn read_cached_at(fd: impl AsFd, buf: &mut [u8], offset: u64) -> bool {
    let into = &mut [io::IoSliceMut::new(buf)];
    let wanted = into[0].len();
    rustix::io::preadv2(fd, into, offset, rustix::io::ReadWriteFlags::NOWAIT) == Ok(wanted)
}

/// Writes all of `buf` at `offset`.
pub fn write_at(fd: impl AsFd, mut buf: &[u8], mut offset: u64) -> io::Result<()> {
    while !buf.is_empty() {
        match rustix::io::pwrite(&fd, buf, offset) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => {
                pulse::beat();
                buf = &buf[n..];
                offset += n as u64;
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}
