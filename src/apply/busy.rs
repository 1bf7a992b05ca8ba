//! Programs that run: the kernel lets nobody write to them, so a changed copy takes their place.
//!
//! The copy is made in the staging directory when the first record changes the content, and gets every name of
//! the old inode when its content is complete. The old inode stays in the staging directory until a checkpoint
//! knows of the new one: a recovery that begins before would look for it.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, OFlags, linkat, renameat};

use crate::catalog::Catalog;
use crate::error::{Error, Result};
use crate::position::{FileId, Lsn};
use crate::sys;

use super::plan::{STAGE, Slot};
use super::site::{Site, diverged};
use super::work::Work;

/// Bytes copied at once.
const COPY: usize = 256 << 10;

fn copy(from: &OwnedFd, to: &OwnedFd) -> std::io::Result<()> {
    let size = sys::stat_fd(from)?.size;
    let mut buffer = vec![0_u8; COPY];
    let mut at = 0;
    while let Some((start, end)) = sys::next_data(from, at, size)? {
        at = start;
        while at < end {
            let want = usize::try_from(end - at).unwrap_or(COPY).min(COPY);
            let n = sys::read_at(from, &mut buffer[..want], at)?;
            if n == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            sys::write_at(to, &buffer[..n], at)?;
            at += n as u64;
        }
    }
    Ok(rustix::fs::ftruncate(to, size)?)
}

impl Work<'_> {
    /// A copy of the program at `slot`, open for writing.
    pub(super) fn copy_busy(&mut self, catalog: &Catalog, id: FileId, slot: &Slot) -> Result<OwnedFd> {
        let failed = |w: &Self, e: std::io::Error| w.error(catalog, "copy the running program", slot, e);
        self.site.point("apply::stage").map_err(|e| failed(self, e))?;
        let dir = self.dir(catalog, slot.dir)?;
        let from = sys::open_beneath(dir.as_fd(), &slot.name, OFlags::RDONLY | OFlags::NONBLOCK, 0)
            .map_err(|e| failed(self, e))?;
        let aside = Slot::new(STAGE, &self.site.stage_name(id));
        let to = self.create(catalog, &aside)?;
        copy(&from, &to).map_err(|e| failed(self, e))?;
        self.copies.insert(id, aside);
        // The copy has none of its attributes yet.
        self.restore.insert(id);
        Ok(to)
    }

    /// The copy of `id`, if there is one, is complete: it takes every name of the old inode.
    pub(super) fn swap_busy(&mut self, catalog: &Catalog, id: FileId) -> Result<()> {
        let Some(aside) = self.copies.remove(&id) else { return Ok(()) };
        let stage = self.dir(catalog, STAGE)?;
        let mut slots = self.standing(catalog, id);
        let Some(first) = slots.pop() else {
            return Err(diverged(&catalog.path(id).unwrap_or_default(), "has no name"));
        };
        let failed = |w: &Self, e: std::io::Error| w.error(catalog, "replace the running program", &first, e);
        self.site.point("apply::rename").map_err(|e| failed(self, e))?;
        let dir = self.dir(catalog, first.dir)?;
        let old = self.site.stage_name(id);
        linkat(&*dir, &*first.name, &*stage, &*old, AtFlags::empty())
            .and_then(|()| renameat(&*stage, &*aside.name, &*dir, &*first.name))
            .map_err(|e| failed(self, e.into()))?;
        self.site.parked.push((old, catalog.lsn()));
        self.swapped.insert(id);
        self.stir(id, &[first.dir]);
        for slot in slots {
            let (to, link) = (self.dir(catalog, slot.dir)?, self.site.stage_name(id));
            linkat(&*dir, &*first.name, &*stage, &*link, AtFlags::empty())
                .and_then(|()| renameat(&*stage, &*link, &*to, &*slot.name))
                .map_err(|e| self.error(catalog, "replace the running program", &slot, e))?;
            self.stir(id, &[slot.dir]);
        }
        Ok(())
    }

    /// Every slot where `id`, which is no directory, stands before names change.
    fn standing(&self, catalog: &Catalog, id: FileId) -> Vec<Slot> {
        let stays = |slot: &Slot| self.notes.slots.get(slot).is_none_or(|have| *have == Some(id));
        let mut out: Vec<Slot> =
            catalog.names(id).map(|(dir, name)| Slot::new(dir, name)).filter(stays).collect();
        let had = self.notes.slots.iter().filter(|(_, have)| **have == Some(id));
        out.extend(had.map(|(slot, _)| slot.clone()));
        out.sort();
        out.dedup();
        out
    }
}

impl Site {
    /// Removes the inodes that were replaced up to `checkpoint`, which is durable.
    pub(super) fn purge(&mut self, checkpoint: Lsn) -> Result<()> {
        let Some(stage) = self.dirs.get(STAGE).filter(|_| !self.parked.is_empty()) else { return Ok(()) };
        let (gone, kept) =
            std::mem::take(&mut self.parked).into_iter().partition(|(_, at)| *at <= checkpoint);
        self.parked = kept;
        let gone: Vec<(Vec<u8>, Lsn)> = gone;
        for (name, _) in gone {
            rustix::fs::unlinkat(&*stage, &*name, AtFlags::empty())
                .map_err(|e| Error::io("remove the replaced", self.root.join(&name), e))?;
        }
        Ok(())
    }
}
