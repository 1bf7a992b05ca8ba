//! Writing the files of a combined backup.

use std::collections::HashMap;
use std::fs;
use std::io::{self, Read, Write as _};
use std::str::FromStr;

use rustix::fs::{self as rfs, AtFlags, Mode, OFlags};
use rustix::io::Errno;
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use super::Sums;
use crate::catalog::{Inode, block_hashes};
use crate::disk::{self, AtomicFile};
use crate::error::{Error, ErrorKind, Result};
use crate::failpoint;
use crate::manifest::{BASE, File, Part, Sha};
use crate::position::FileId;
use crate::record::{BLOCK, Kind, Time};
use crate::set::gather::{FileContent, Gathered};
use crate::set::{Content, Kept, Set};
use crate::sys::{self, Root};

/// Bytes read at once: whole blocks.
const PIECE: usize = 16 * BLOCK as usize;

/// How a file comes into the combined backup that one member holds as a whole.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CopyMode {
    /// Its bytes are written.
    Copy,
    /// It shares the blocks (FICLONE) until one of them changes.
    Clone,
    /// It is the same file (a hard link): a change of one changes the other.
    Link,
}

impl FromStr for CopyMode {
    type Err = String;

    fn from_str(s: &str) -> std::result::Result<Self, String> {
        match s {
            "copy" => Ok(Self::Copy),
            "clone" => Ok(Self::Clone),
            "link" => Ok(Self::Link),
            _ => Err(format!("'{}' is no way to copy: copy, clone or link", s.escape_debug())),
        }
    }
}

impl std::fmt::Display for CopyMode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Copy => "copy",
            Self::Clone => "clone",
            Self::Link => "link",
        })
    }
}

/// What all threads write from.
pub(super) struct Writer<'a> {
    pub(super) root: &'a Root,
    pub(super) all: &'a Gathered,
    pub(super) sums: &'a Sums,
    pub(super) known: &'a HashMap<FileId, Sha>,
    pub(super) mode: CopyMode,
}

/// The name of a path of the tree in the set.
fn within(path: &[u8]) -> Vec<u8> {
    if path.is_empty() { BASE.into() } else { [BASE.as_bytes(), b"/", path].concat() }
}

impl Writer<'_> {
    fn failed(&self, verb: &str, name: &[u8], e: impl Into<io::Error>) -> Error {
        Error::io(verb, self.root.join(name), e.into())
    }

    /// Directories and symlinks; of devices and pipes the catalog holds all there is.
    pub(super) fn tree(&self) -> Result<()> {
        let catalog = self.all.catalog();
        let mut todo = vec![(FileId::ROOT, Vec::new())];
        while let Some((dir, path)) = todo.pop() {
            let name = within(&path);
            let made = rfs::mkdirat(self.root.fd(), &*name, Mode::from_raw_mode(0o700));
            made.map_err(|e| self.failed("make", &name, e))?;
            for (child, id) in catalog.children(dir) {
                let below = if path.is_empty() { child.to_vec() } else { [&path[..], b"/", child].concat() };
                match catalog.get(id) {
                    Some(i) if i.kind == Kind::Dir => todo.push((id, below)),
                    Some(i) if i.kind == Kind::Symlink => {
                        let name = within(&below);
                        let made = rfs::symlinkat(i.target.unwrap_or_default(), self.root.fd(), &*name);
                        made.map_err(|e| self.failed("make", &name, e))?;
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// One file, under all its names.
    pub(super) fn file(&self, id: FileId, buf: &mut Vec<u8>) -> Result<Vec<File>> {
        let catalog = self.all.catalog();
        let (Some(inode), Some(mut content)) = (catalog.get(id), self.all.content(id)?) else {
            return Ok(Vec::new());
        };
        let mut paths: Vec<Vec<u8>> = catalog
            .names(id)
            .filter_map(|(dir, name)| {
                let dir = catalog.path(dir)?;
                Some(if dir.is_empty() { name.to_vec() } else { [&dir[..], b"/", name].concat() })
            })
            .collect();
        paths.sort();
        let Some(first) = paths.first() else { return Ok(Vec::new()) };
        let name = within(first);
        failpoint::pass("combine::file").map_err(|e| self.failed("make", &name, e))?;
        let (sha256, mtime) = self.write(&inode, &mut content, &name, buf)?;
        for other in paths.iter().skip(1) {
            let other = within(other);
            let linked = rfs::linkat(self.root.fd(), &*name, self.root.fd(), &*other, AtFlags::empty());
            linked.map_err(|e| self.failed("link", &other, e))?;
        }
        Ok(paths.into_iter().map(|path| File { path, id, size: inode.size, mtime, sha256 }).collect())
    }

    fn write(
        &self,
        inode: &Inode<'_>,
        content: &mut FileContent<'_>,
        name: &[u8],
        buf: &mut Vec<u8>,
    ) -> Result<(Sha, Time)> {
        let whole = content.untouched().is_some_and(|k| k.at == 0) && self.mode != CopyMode::Copy;
        if whole && let Some(kept) = content.untouched() {
            let out = self.bring(kept, name)?;
            let sha = self.check(inode, content, name, None, buf)?;
            let mtime = match out {
                Some(out) => self.dress(&out, inode, name)?,
                None => {
                    sys::stat_fd(&content.untouched().ok_or_else(|| self.lost(name))?.file)
                        .map_err(|e| self.failed("look at", name, e))?
                        .attrs
                        .mtime
                }
            };
            return Ok((sha, mtime));
        }
        let out = self.create(name)?;
        let sha = self.check(inode, content, name, Some(&out), buf)?;
        rfs::ftruncate(&out, inode.size).map_err(|e| self.failed("set the size of", name, e))?;
        Ok((sha, self.dress(&out, inode, name)?))
    }

    fn lost(&self, name: &[u8]) -> Error {
        self.failed("read", name, io::Error::other("it is not where it was"))
    }

    fn create(&self, name: &[u8]) -> Result<fs::File> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
        self.root
            .open_beneath(name, flags, 0o600)
            .map(fs::File::from)
            .map_err(|e| self.failed("make", name, e))
    }

    fn dress(&self, out: &fs::File, inode: &Inode<'_>, name: &[u8]) -> Result<Time> {
        let mtime = inode.attrs.mtime;
        let time = rfs::Timespec { tv_sec: mtime.sec, tv_nsec: mtime.nsec.into() };
        let times = rfs::Timestamps { last_access: time, last_modification: time };
        rfs::futimens(out, &times).map_err(|e| self.failed("set the time of", name, e))?;
        Ok(mtime)
    }

    /// Brings a file as a whole; the new one, unless it is the old one under another name.
    fn bring(&self, kept: &Kept, name: &[u8]) -> Result<Option<fs::File>> {
        let cannot = |what: &str, e: Errno| {
            let text = format!(
                "'{}' can't be {what} from there ({}): give --copy-mode copy",
                self.root.join(name).display(),
                io::Error::from(e)
            );
            Error::new(ErrorKind::Refused, text)
        };
        if self.mode == CopyMode::Link {
            // By its descriptor: the name may lead elsewhere by now.
            let link = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&kept.file));
            let linked = rfs::linkat(rfs::CWD, link.as_str(), self.root.fd(), name, AtFlags::SYMLINK_FOLLOW);
            return linked.map(|()| None).map_err(|e| cannot("linked", e));
        }
        let out = self.create(name)?;
        rfs::ioctl_ficlone(&out, &kept.file).map_err(|e| cannot("cloned", e))?;
        Ok(Some(out))
    }

    /// Reads the content, and writes it if it is not there yet; it has to be what the newest member says.
    fn check(
        &self,
        inode: &Inode<'_>,
        content: &mut FileContent<'_>,
        name: &[u8],
        out: Option<&fs::File>,
        buf: &mut Vec<u8>,
    ) -> Result<Sha> {
        buf.resize(PIECE, 0);
        let system = self.all.catalog().system();
        let (mut sha, mut sum, mut at) = (Sha256::new(), 0_u128, 0);
        while at < inode.size {
            let want = usize::try_from(inode.size - at).map_or(PIECE, |n| n.min(PIECE));
            let piece = buf.get_mut(..want).unwrap_or_default();
            let n = content.read_at(piece, at).map_err(|e| self.failed("gather", name, e))?;
            if n < want {
                return Err(self.lost(name));
            }
            sha.update(&*piece);
            let size = BLOCK as usize;
            for (i, hash) in block_hashes(system, inode.id, at / BLOCK, piece).enumerate() {
                sum = sum.wrapping_add(hash);
                // Zeros stay holes.
                if let Some(out) = out.filter(|_| hash != 0) {
                    let block = piece.get(i * size..((i + 1) * size).min(want)).unwrap_or_default();
                    let written = sys::write_at(out, block, at + (i * size) as u64);
                    written.map_err(|e| self.failed("write", name, e))?;
                }
            }
            at += n as u64;
        }
        let sha = Sha(sha.finalize().into());
        let said = self.sums.get(&inode.id).copied().unwrap_or_default();
        let other = content.untouched().is_some() && self.known.get(&inode.id).is_some_and(|s| *s != sha);
        if said == sum && !other {
            return Ok(sha);
        }
        let path = name.strip_prefix(b"base/").unwrap_or(name).escape_ascii().to_string();
        let text = format!(
            "a member of the chain is damaged: the content of '{path}' is not what its hashes say; verify them"
        );
        Err(Error::new(ErrorKind::Corrupt, text))
    }

    /// A part of the newest member.
    pub(super) fn part(&self, newest: &Set, part: &Part) -> Result<()> {
        let kept = newest.part(&part.name)?;
        let (dir, file) = part.name.rsplit_once('/').unwrap_or(("", &part.name));
        let dir = self.root.path().join(dir);
        disk::create_subdir_durable(&dir)?;
        if kept.at == 0 && self.mode != CopyMode::Copy {
            return self.bring(&kept, part.name.as_bytes()).map(drop);
        }
        let mut out = AtomicFile::create(&dir, file)?;
        let (mut input, mut buf) = (kept.reader(), vec![0; PIECE]);
        loop {
            let n = input.read(&mut buf).map_err(|e| self.failed("read", part.name.as_bytes(), e))?;
            if n == 0 {
                return out.commit();
            }
            let written = out.write_all(buf.get(..n).unwrap_or_default());
            written.map_err(|e| self.failed("write", part.name.as_bytes(), e))?;
        }
    }
}
