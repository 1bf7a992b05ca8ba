//! Recovery: from a checkpoint, and whatever state the directory is in, to the newest cut in the log.
//!
//! The directory is scanned for the inodes that the checkpoint knows. Every record since then is
//! folded, and performed on what is there, with no shortcut for what may have been applied already:
//! records are physical, so doing them again does no harm. What the log created since is created
//! anew, what the checkpoint knew is found wherever it stands (an inode that lives at the end never
//! lost its inode, because apply only removes what is gone at the end of a batch), and the rest goes.
//! The end of a first copy takes the same way: there the checkpoint is the snapshot of the leader.

use std::collections::HashSet;
use std::os::fd::OwnedFd;
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use rustix::fs::{self as rfs, AtFlags, OFlags};

use crate::catalog::{Catalog, block_hashes, blocks_of};
use crate::error::{Error, ErrorKind, Result};
use crate::fold::Fold;
use crate::position::{FileId, Lsn};
use crate::record::{BLOCK, Kind};
use crate::sys;

use super::ApplyState;
use super::attrs::timestamps;
use super::engine::Running;
use super::intake::{Batch, Span};
use super::labels::LABELS_CHANGED;
use super::notes::{Notes, is_unknown};
use super::plan::{STAGE, Slot};
use super::scan::{Difference, Found, scan};
use super::site::{Site, clock, diverged, seen};
use super::until::{Commit, StopAt, Until};
use super::work::Work;

/// Bytes read at once when a content is compared.
const READ: usize = 256 << 10;
/// Bytes compared at a rest before the log is looked at again.
const SLICE: u64 = 16 << 20;
/// Longest path handed to the kernel at once; the limit is 4096 with the NUL.
const PATH_PART: usize = 4000;

impl Running {
    /// Brings the directory to a cut. False: a stop was asked for before that was possible.
    pub(super) fn recover(&mut self, filled: Option<(Lsn, Lsn)>) -> Result<bool> {
        let started = Instant::now();
        let from = self.fold.read().lsn();
        let floor = filled.map_or(Lsn::ZERO, |(_, end)| end);
        let Some(batch) = self.what_to_redo(from, floor)? else { return Ok(false) };
        let shared = Arc::clone(&self.shared);
        let gate = shared.gate.write().unwrap_or_else(PoisonError::into_inner);
        let found = scan(&self.site, &self.fold.read())?;
        {
            let mut stats = self.site.stats();
            stats.scanned = found.scanned;
            stats.skipped_privilege.extend(found.skipped.iter().map(|(what, (n, _))| (what.word(), *n)));
            stats.redone = batch.bytes();
        }
        for (what, (n, id)) in &found.skipped {
            let path = self.fold.read().path(*id).unwrap_or_default();
            self.site.say(*what, *n, &path);
        }
        let mut kept = Vec::new();
        self.fold.begin_loose();
        let notes = if batch.spans.is_empty() { Notes::new() } else { self.fold_batch(&batch, &mut kept)? };
        self.fold.finish_loose().inspect_err(|e| self.shared.damaged(e, None))?;
        let changed = !batch.spans.is_empty() || filled.is_some();
        self.carry_out(Some(found), notes, &batch, &kept)?;
        drop(gate);
        let now: HashSet<FileId> = self.site.suspects.iter().copied().collect();
        self.site.later.retain(|(id, _)| !now.contains(id));
        // The checkpoint takes what made files doubtful out of the next recovery's reach.
        self.keep_doubts()?;
        self.settle_suspects()?;
        if changed {
            self.checkpoints.now(&self.fold, &self.site)?;
            self.site.purge(self.checkpoints.last())?;
        }
        self.keep_doubts()?;
        let (lsn, redone) = (self.fold.read().lsn(), batch.bytes());
        tracing::info!(%from, %lsn, redone, took = ?started.elapsed(), "the directory stands on a cut");
        self.publish();
        Ok(true)
    }

    /// Compares the whole directory with the catalog and undoes what somebody else did to it. False: contents
    /// are changed or gone, so nothing was done.
    pub(super) fn undo(&mut self) -> Result<bool> {
        let shared = Arc::clone(&self.shared);
        let gate = shared.gate.write().unwrap_or_else(PoisonError::into_inner);
        let found = {
            let catalog = self.fold.read();
            let found = scan(&self.site, &catalog)?;
            let file = |id| catalog.get(id).is_some_and(|i| i.kind == Kind::File);
            let gone = |id: &FileId| catalog.get(*id).is_some_and(|i| i.seen.is_some());
            if found.lost.iter().any(gone) || found.differences.iter().any(|d| d.data && file(d.id)) {
                return Ok(false);
            }
            found
        };
        self.carry_out(Some(found), Notes::new(), &Batch::default(), &[])?;
        drop(gate);
        self.settle_suspects()?;
        Ok(true)
    }

    /// A directory that is past the target, or may be, has no way back.
    fn within(&self, until: Until, last: Option<Commit>, certain: bool) -> Result<()> {
        let (Some(last), Some(stop)) = (last, until.stop) else { return Ok(()) };
        // Where that much is not certain a point that the log has may still be ahead.
        let behind = until.past(last) || (certain && self.is_behind(stop, last.end)?);
        if !behind {
            return Ok(());
        }
        let text = format!(
            "the directory {} {}, past the target {stop}: name a later target, take 'stop_at' away, or fill a node \
             anew from a copy that is older than the target",
            if certain { "stands at" } else { "may hold changes up to" },
            last.end
        );
        Err(Error::new(ErrorKind::Refused, text))
    }

    /// Whether a restore point lies behind the position `at`, as far as the log that is here tells.
    fn is_behind(&self, stop: StopAt, at: Lsn) -> Result<bool> {
        let StopAt::Point(name) = stop else { return Ok(false) };
        let oldest = self.log.oldest()?;
        let at = at.min(self.log.tail().end);
        if at <= oldest { Ok(false) } else { self.intake.source().has_point(oldest, at, name) }
    }

    /// The log from the checkpoint to the newest cut, which for a first copy may have to arrive yet.
    fn what_to_redo(&mut self, from: Lsn, floor: Lsn) -> Result<Option<Batch>> {
        self.set_state(ApplyState::Recovering);
        let until = self.shared.lock().until;
        self.intake.bound(until)?;
        loop {
            let (limit, certain) = self.reach.redo(from, self.log.tail().end);
            // What is not needed to make a first copy whole may have to wait.
            let batch = if floor > from && until.bounded() {
                self.intake.first(limit, floor)?
            } else {
                self.intake.all(limit, floor)?
            };
            if let Some(batch) = batch {
                self.within(until, batch.spans.last().map(Span::commit), certain)?;
                return Ok(Some(batch));
            }
            if from >= floor {
                let time = Some(self.fold.read().time());
                self.within(until, Some(Commit { end: from, time, exact: false, point: false }), certain)?;
                return Ok(Some(Batch::default()));
            }
            self.within(until, Some(Commit { end: floor, time: None, exact: false, point: false }), certain)?;
            if self.stopping() {
                return Ok(None);
            }
            self.set_state(ApplyState::Filling);
            self.wait_log()?;
        }
    }
}

/// Turns what the scan found into corrections of the notes, and reports what no interrupted apply explains.
pub(super) fn reconcile(work: &mut Work<'_>, catalog: &Catalog, mut found: Found) -> Result<()> {
    for &id in &found.lost {
        let Some(inode) = catalog.get(id) else { continue };
        let device = matches!(inode.kind, Kind::CharDevice | Kind::BlockDevice);
        if !(device && inode.seen.is_none()) {
            let path = catalog.path(id).unwrap_or_default();
            let there = work.site.root.open_beneath(&path, OFlags::PATH | OFlags::NOFOLLOW, 0).is_ok();
            let what = if there {
                "is another inode than was applied: it was replaced, or this directory was restored or copied"
            } else {
                "is missing from this directory"
            };
            return Err(diverged(&path, what));
        }
    }
    for (slot, id) in &found.strange {
        if found.unknown.get(id).is_some_and(|u| u.dir) {
            work.dir_at.insert(*id, slot.clone());
        }
    }
    let half = half_made(&found);
    for slot in &half {
        let dir = work.dir(catalog, slot.dir)?;
        rfs::unlinkat(&*dir, &*slot.name, AtFlags::empty())
            .map_err(|e| work.error(catalog, "remove", slot, e))?;
        found.strange.remove(slot).and_then(|id| found.unknown.remove(&id));
    }
    // A running program that was replaced since the checkpoint.
    let parked: HashSet<FileId> =
        found.displaced.iter().filter(|(slot, _)| slot.dir == STAGE).map(|(_, id)| *id).collect();
    let ours = |work: &Work<'_>, slot: &Slot| {
        work.notes.slots.contains_key(slot)
            || slot.dir == STAGE
            || is_unknown(slot.dir)
            || found.absent.get(slot).is_some_and(|id| parked.contains(id))
    };
    let mut moved: Vec<_> = found.displaced.iter().map(|(s, id)| (s, *id, "it was moved here")).collect();
    moved.extend(found.strange.iter().map(|(s, id)| (s, *id, "it was created here")));
    moved.sort();
    let excluded = catalog.excludes().matcher()?;
    let mut left: HashSet<&Slot> = HashSet::new();
    for &(slot, id, mut what) in &moved {
        if ours(work, slot) {
            continue;
        }
        let path = work.path(catalog, slot);
        if is_unknown(id) && excluded.matches(&path) {
            if catalog.contains(slot.dir) {
                left.insert(slot);
                continue;
            }
            what = "it is excluded, and the leader removed the directory that holds it";
        }
        work.site.edited(&path, what)?;
    }
    for slot in found.absent.keys() {
        work.notes.correct(slot.clone(), None);
    }
    for (slot, id, _) in moved {
        // What is unknown in an unknown directory goes with it; what is excluded is nobody's business here.
        if !(is_unknown(id) && is_unknown(slot.dir) || left.contains(slot)) {
            work.notes.correct(slot.clone(), Some(id));
        }
    }
    work.unknown = found.unknown;
    work.notes.locate_all();
    let touched: Vec<FileId> =
        work.notes.touched.iter().filter(|(_, t)| !t.is_new()).map(|(id, _)| *id).collect();
    work.restore.extend(touched);
    work.restore.insert(FileId::ROOT);
    for d in &found.differences {
        difference(work, catalog, d)?;
    }
    Ok(())
}

/// Files in the staging directory that no checkpoint knows. What they were to be is made anew, and may need
/// their room.
fn half_made(found: &Found) -> Vec<Slot> {
    let staged = |slot: &Slot| {
        let mut dir = slot.dir;
        while let Some(above) = found.unknown.get(&dir) {
            dir = above.parent;
        }
        dir == STAGE
    };
    let file = |id: &FileId| found.unknown.get(id).is_some_and(|u| !u.dir);
    found.strange.iter().filter(|(slot, id)| file(id) && staged(slot)).map(|(slot, _)| slot.clone()).collect()
}

fn difference(work: &mut Work<'_>, catalog: &Catalog, d: &Difference) -> Result<()> {
    let Some(inode) = catalog.get(d.id) else { return Ok(()) };
    let file = inode.kind == Kind::File;
    if d.heals {
        work.restore.insert(d.id);
        return Ok(());
    }
    let touched = work.notes.touched.contains_key(&d.id);
    if !touched && d.id != FileId::ROOT {
        let path = catalog.path(d.id).unwrap_or_default();
        if d.data && inode.kind != Kind::Dir {
            work.site.edited(&path, "its size or modification time changed")?;
        } else if d.attrs {
            work.site.edited(&path, "its mode or owner changed")?;
        } else if d.labels {
            work.site.edited(&path, LABELS_CHANGED)?;
        }
    }
    work.restore.insert(d.id);
    // Times cannot tell an interrupted apply, or a new hard link, from an edit: contents can.
    match (file, touched || !d.data) {
        (true, true) => work.site.later.push_back((d.id, 0)),
        (true, false) => work.site.suspects.push(d.id),
        _ => {}
    }
    Ok(())
}

/// Opens a file by its path in the catalog, in parts where it is longer than the kernel takes.
fn open_known(site: &Site, path: &[u8]) -> std::io::Result<OwnedFd> {
    let mut rest = path;
    let mut base: Option<OwnedFd> = None;
    while rest.len() > PATH_PART {
        let cut = rest[..PATH_PART].iter().rposition(|&b| b == b'/').unwrap_or(rest.len());
        let fd = sys::open_beneath(
            base.as_ref().map_or(site.root.fd(), std::os::fd::AsFd::as_fd),
            &rest[..cut],
            OFlags::PATH | OFlags::DIRECTORY,
            0,
        )?;
        base = Some(fd);
        rest = rest.get(cut + 1..).unwrap_or_default();
    }
    let base = base.as_ref().map_or(site.root.fd(), std::os::fd::AsFd::as_fd);
    sys::open_beneath(base, rest, OFlags::RDONLY | OFlags::NONBLOCK, 0)
}

/// Compares a file's content with the hashes of its blocks from block `first` on, at most about `limit` bytes.
/// Returns the block to go on with, if there is more.
pub(super) fn verify(fold: &Fold, site: &Site, id: FileId, first: u64, limit: u64) -> Result<Option<u64>> {
    let (path, size, system) = {
        let catalog = fold.read();
        match catalog.get(id) {
            Some(i) if i.kind == Kind::File && i.hashed => {
                (catalog.path(id).unwrap_or_default(), i.size, catalog.system())
            }
            _ => return Ok(None),
        }
    };
    let lost = |e: std::io::Error| site.error("compare the content of", &path, e);
    let changed =
        |block: u64| diverged(&path, &format!("has another content than was applied, in block {block}"));
    let fd = open_known(site, &path).map_err(lost)?;
    let mut buf = vec![0_u8; READ];
    let (mut at, count, mut read) = (first, blocks_of(size), 0);
    while at < count && read < limit {
        let from = at * BLOCK;
        // Up to the next data there must be zeros, whose hash is 0.
        let data = sys::next_data(&fd, from, size).map_err(lost)?.map_or(count, |(start, _)| start / BLOCK);
        while at < data.min(count) {
            let n = usize::try_from(data.min(count) - at).unwrap_or(READ).min(READ);
            if let Some(bad) = fold.hashes(id, at, n)?.iter().position(|&h| h != 0) {
                return Err(changed(at + bad as u64));
            }
            at += n as u64;
        }
        if at >= count {
            break;
        }
        let got = sys::read_at(&fd, &mut buf, at * BLOCK).map_err(lost)?;
        let want = usize::try_from(size - at * BLOCK).unwrap_or(READ).min(READ);
        if got < want {
            return Err(changed(at + got as u64 / BLOCK));
        }
        let known = fold.hashes(id, at, blocks_of(want as u64) as usize)?;
        let mut pairs = block_hashes(system, id, at, &buf[..want]).zip(&known);
        if let Some(bad) = pairs.position(|(here, want)| here != *want) {
            return Err(changed(at + bad as u64));
        }
        at += known.len() as u64;
        read += want as u64;
    }
    Ok((at < count).then_some(at))
}

impl Running {
    /// What the scrub found is in doubt from here on, over every restart, until it is as it was applied.
    pub(super) fn take_damaged(&mut self) -> Result<()> {
        let found = std::mem::take(&mut self.shared.lock().damaged);
        if found.is_empty() {
            return Ok(());
        }
        self.site.suspects.extend(found);
        self.keep_doubts()?;
        self.settle_suspects()?;
        self.keep_doubts()
    }

    fn keep_doubts(&mut self) -> Result<()> {
        self.site.doubts.keep(&self.site.suspects, &self.site.later)
    }

    /// The content of `id` could not be found good: the next start compares it before the directory counts as usable.
    fn doubted(&mut self, id: FileId, e: Error) -> Error {
        self.site.suspects.push(id);
        self.shared.damaged(&e, Some(id));
        match self.keep_doubts() {
            Ok(()) => e,
            Err(why) => e.wrap(&format!("what is in doubt is not remembered: {why}")),
        }
    }

    /// Compares what somebody changed with the known hashes before the batch counts as applied.
    pub(super) fn settle_suspects(&mut self) -> Result<()> {
        while let Some(id) = self.site.suspects.pop() {
            if let Err(e) = verify(&self.fold, &self.site, id, 0, u64::MAX) {
                return Err(self.doubted(id, e));
            }
        }
        Ok(())
    }

    /// Compares a part of what a crash made doubtful. True while there is more.
    pub(super) fn settle_later(&mut self) -> Result<bool> {
        if let Some((id, first)) = self.site.later.pop_front() {
            match verify(&self.fold, &self.site, id, first, SLICE) {
                Ok(Some(next)) => self.site.later.push_front((id, next)),
                Ok(None) if self.site.later.is_empty() => self.keep_doubts()?,
                Ok(None) => {}
                Err(e) => return Err(self.doubted(id, e)),
            }
        }
        let left = self.site.later.len() as u64;
        self.site.stats().suspects = left;
        Ok(left > 0)
    }
}

/// Gives the root the time it shall have, after the staging directory came or went, and looks at it again.
pub(super) fn refresh_root(fold: &Fold, site: &Site) -> Result<()> {
    let mtime = fold.read().get(FileId::ROOT).map(|i| i.attrs.mtime).unwrap_or_default();
    rfs::utimensat(site.root.fd(), c".", &timestamps(mtime), AtFlags::empty())
        .map_err(|e| site.error("set the time of", b"", e))?;
    let stat = sys::stat_at(site.root.fd(), b".").map_err(|e| site.error("stat", b"", e))?;
    let stat = stat.ok_or_else(|| Error::io("stat", site.root.path(), std::io::ErrorKind::NotFound))?;
    fold.write().set_seen(FileId::ROOT, Some(seen(&stat, clock())));
    Ok(())
}
