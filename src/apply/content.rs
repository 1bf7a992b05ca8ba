//! The second pass over a batch: contents. New files are written where they are staged, others in place.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{self as rfs, FallocateFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::catalog::Catalog;
use crate::error::Result;
use crate::position::FileId;
use crate::record::{BLOCK, Kind, Record};
use crate::sys;

use super::plan::Slot;
use super::site::Skip;
use super::work::Work;

/// Most files held open for writing.
const FILES_MAX: usize = 64;
/// Zeros written at a time where a file system cannot punch holes.
const ZEROS: usize = 256 << 10;

/// Files open for writing, and how far their records have come.
#[derive(Default)]
pub(crate) struct Contents {
    open: HashMap<FileId, (OwnedFd, u64)>,
    /// Content records seen so far, per file that has any.
    done: HashMap<FileId, u32>,
    clock: u64,
    /// Number of the write record, in log order.
    writes: u32,
}

impl Work<'_> {
    /// Makes everything new that holds no content: directories from the top, then nodes and symlinks.
    pub(crate) fn make(&mut self, catalog: &Catalog) -> Result<()> {
        let mut new: Vec<(FileId, Kind)> = self
            .made
            .keys()
            .filter_map(|id| Some((*id, catalog.get(*id)?.kind)))
            .filter(|(id, kind)| *kind != Kind::File || self.notes.touched[id].contents == 0)
            .collect();
        // A directory may be held by one with a higher id.
        new.sort_by_key(|(id, kind)| (*kind != Kind::Dir, *id));
        let mut made = std::collections::HashSet::new();
        for (id, kind) in new {
            if kind == Kind::Dir {
                let mut chain = vec![id];
                while let Some(dir) = chain.last().map(|d| self.made[d].dir)
                    && self.made.contains_key(&dir)
                    && !made.contains(&dir)
                {
                    chain.push(dir);
                }
                while let Some(dir) = chain.pop() {
                    if made.insert(dir) {
                        self.make_one(catalog, dir, kind)?;
                    }
                }
            } else {
                self.make_one(catalog, id, kind)?;
            }
        }
        Ok(())
    }

    fn make_one(&mut self, catalog: &Catalog, id: FileId, kind: Kind) -> Result<()> {
        let slot = self.made[&id].clone();
        let Some(inode) = catalog.get(id) else { return Ok(()) };
        self.site.point("apply::stage").map_err(|e| self.error(catalog, "create", &slot, e))?;
        let dir = self.dir(catalog, slot.dir)?;
        let node = |kind| rfs::mknodat(&*dir, &*slot.name, kind, Mode::from_raw_mode(0o600), inode.rdev);
        let result = match kind {
            Kind::File => {
                let fd = self.create(catalog, &slot)?;
                return self.finish_file(catalog, id, &fd);
            }
            Kind::Dir => rfs::mkdirat(&*dir, &*slot.name, Mode::from_raw_mode(0o700)),
            Kind::Symlink => rfs::symlinkat(inode.target.unwrap_or_default(), &*dir, &*slot.name),
            Kind::Fifo => node(FileType::Fifo),
            Kind::Socket => node(FileType::Socket),
            Kind::CharDevice => node(FileType::CharacterDevice),
            Kind::BlockDevice => node(FileType::BlockDevice),
        };
        match result {
            Ok(()) if kind == Kind::Dir => Ok(()),
            Ok(()) => self.attributes(catalog, id, &slot),
            Err(Errno::PERM) if matches!(kind, Kind::CharDevice | Kind::BlockDevice) => {
                let path = catalog.path(id).unwrap_or_default();
                self.site.skip(Skip::Device, &path, true);
                self.absent.insert(id);
                Ok(())
            }
            Err(e) => Err(self.error(catalog, "create", &slot, e)),
        }
    }

    pub(super) fn create(&mut self, catalog: &Catalog, slot: &Slot) -> Result<OwnedFd> {
        let dir = self.dir(catalog, slot.dir)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
        sys::open_beneath(dir.as_fd(), &slot.name, flags, 0o600)
            .map_err(|e| self.error(catalog, "create", slot, e))
    }

    /// One record of the second pass.
    pub(crate) fn content(
        &mut self,
        catalog: &Catalog,
        files: &mut Contents,
        record: &Record<'_>,
    ) -> Result<()> {
        let id = match *record {
            Record::Write { id, offset, data } => {
                files.writes = files.writes.wrapping_add(1);
                if catalog.contains(id) {
                    self.write(catalog, files, id, offset, data)?;
                }
                id
            }
            Record::Truncate { id, size } => {
                if catalog.contains(id) {
                    let fd = self.open_file(catalog, files, id)?;
                    rfs::ftruncate(fd, size)
                        .map_err(|e| self.content_error(catalog, "truncate", id, e.into()))?;
                }
                id
            }
            Record::Punch { id, offset, len } => {
                if let Some(inode) = catalog.get(id) {
                    let size = inode.size;
                    let fd = self.open_file(catalog, files, id)?;
                    punch(fd, offset, len, size)
                        .map_err(|e| self.content_error(catalog, "punch a hole into", id, e))?;
                }
                id
            }
            _ => return Ok(()),
        };
        self.counted(catalog, files, id)
    }

    /// After its last content record a file gets its attributes, while it is still open.
    fn counted(&mut self, catalog: &Catalog, files: &mut Contents, id: FileId) -> Result<()> {
        let total = self.notes.touched.get(&id).map_or(0, |t| t.contents);
        let done = if total == 1 {
            1
        } else {
            let done = files.done.entry(id).or_default();
            *done += 1;
            *done
        };
        if done >= total {
            files.done.remove(&id);
            if let Some((fd, _)) = files.open.remove(&id) {
                self.finish_file(catalog, id, &fd)?;
                self.swap_busy(catalog, id)?;
            }
        }
        Ok(())
    }

    fn write(
        &mut self,
        catalog: &Catalog,
        files: &mut Contents,
        id: FileId,
        offset: u64,
        data: &[u8],
    ) -> Result<()> {
        self.site.point("apply::write").map_err(|e| self.content_error(catalog, "write", id, e))?;
        let (first, n) = (offset / BLOCK, files.writes);
        let blocks = (data.len() as u64).div_ceil(BLOCK);
        let mut at = 0;
        while at < blocks {
            if !self.notes.is_last(n, id, first + at) {
                at += 1;
                continue;
            }
            let from = at;
            while at < blocks && self.notes.is_last(n, id, first + at) {
                at += 1;
            }
            let (a, b) = ((from * BLOCK) as usize, ((at * BLOCK) as usize).min(data.len()));
            let fd = self.open_file(catalog, files, id)?;
            sys::write_at(fd, &data[a..b], offset + a as u64)
                .map_err(|e| self.content_error(catalog, "write", id, e))?;
        }
        // Even when every block is written again later, the file must come to exist.
        if self.made.contains_key(&id) {
            self.open_file(catalog, files, id)?;
        }
        Ok(())
    }

    fn content_error(
        &self,
        catalog: &Catalog,
        verb: &str,
        id: FileId,
        e: std::io::Error,
    ) -> crate::error::Error {
        self.site.error(verb, &catalog.path(id).unwrap_or_default(), e)
    }

    /// The file, open for writing. At the first change in the batch it is created, or compared with its
    /// last known state.
    fn open_file<'f>(
        &mut self,
        catalog: &Catalog,
        files: &'f mut Contents,
        id: FileId,
    ) -> Result<&'f OwnedFd> {
        files.clock += 1;
        let clock = files.clock;
        if !files.open.contains_key(&id) {
            if files.open.len() >= FILES_MAX
                && let Some(oldest) = files.open.iter().min_by_key(|(_, (_, used))| *used).map(|(id, _)| *id)
            {
                files.open.remove(&oldest);
            }
            let slot = self.file_at(catalog, id).ok_or_else(|| {
                super::site::diverged(&catalog.path(id).unwrap_or_default(), "is not in this directory")
            })?;
            let fd = if self.made.contains_key(&id) && self.created.insert(id) {
                self.site.point("apply::stage").map_err(|e| self.error(catalog, "create", &slot, e))?;
                self.create(catalog, &slot)?
            } else {
                self.reopen(catalog, id, &slot)?
            };
            files.open.insert(id, (fd, clock));
        }
        match files.open.get_mut(&id) {
            Some((fd, used)) => {
                *used = clock;
                Ok(fd)
            }
            None => Err(super::site::diverged(b"", "is not open")),
        }
    }

    fn reopen(&mut self, catalog: &Catalog, id: FileId, slot: &Slot) -> Result<OwnedFd> {
        let copied = self.copies.get(&id).cloned();
        let slot = copied.as_ref().unwrap_or(slot);
        let dir = self.dir(catalog, slot.dir)?;
        let open = || sys::open_beneath(dir.as_fd(), &slot.name, OFlags::WRONLY | OFlags::NONBLOCK, 0);
        let fd = match open() {
            // Not root, and the file is read-only: its mode comes back with the attributes.
            Err(e) if e.raw_os_error() == Some(Errno::ACCESS.raw_os_error()) => {
                self.check(catalog, id, slot)?;
                self.restore.insert(id);
                rfs::chmodat(&*dir, &*slot.name, Mode::from_raw_mode(0o600), rfs::AtFlags::SYMLINK_NOFOLLOW)
                    .or_else(|_| super::attrs::chmod_inode(&dir, &slot.name, 0o600))
                    .map_err(|e| self.error(catalog, "open", slot, e))?;
                open()
            }
            Err(e)
                if [Errno::NOENT, Errno::LOOP, Errno::ISDIR, Errno::NXIO]
                    .iter()
                    .any(|n| e.raw_os_error() == Some(n.raw_os_error())) =>
            {
                // Not there, or not a file any more: said with the rest of the story.
                self.check(catalog, id, slot)?;
                Err(e)
            }
            Err(e) if e.raw_os_error() == Some(Errno::TXTBSY.raw_os_error()) => {
                self.check(catalog, id, slot)?;
                return self.copy_busy(catalog, id, slot);
            }
            other => other,
        };
        let fd = fd.map_err(|e| self.error(catalog, "open", slot, e))?;
        if !self.made.contains_key(&id) && copied.is_none() {
            let stat = sys::stat_fd(&fd).map_err(|e| self.error(catalog, "stat", slot, e))?;
            self.compare(catalog, id, slot, &stat)?;
        }
        Ok(fd)
    }
}

/// Makes a range read as zeros without changing the size.
pub(crate) fn punch(fd: &OwnedFd, offset: u64, len: u64, size: u64) -> std::io::Result<()> {
    if len == 0 {
        return Ok(());
    }
    match rfs::fallocate(fd, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, len) {
        Ok(()) => Ok(()),
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => {
            let zeros = vec![0_u8; ZEROS];
            let end = offset.saturating_add(len).min(size);
            let mut at = offset;
            while at < end {
                let n = usize::try_from(end - at).unwrap_or(ZEROS).min(ZEROS);
                sys::write_at(fd, &zeros[..n], at)?;
                at += n as u64;
            }
            Ok(())
        }
        Err(e) => Err(e.into()),
    }
}
