//! Contents: a file is read between two looks at its stamps, compared block by block with the hashes that are
//! known, and what differs becomes records.
//!
//! The read begins with SEEK_DATA. On ext4, xfs, btrfs and tmpfs that call, or the read itself, waits for a
//! buffered write that is under way, which stamped the inode before it began to copy. So where the
//! stamps before and after the read are equal, no write was seen in part.

use std::ops::Range;
use std::os::fd::OwnedFd;

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::engine::Engine;
use super::examine::{At, Known, local, vanished};
use super::hints::flag;
use super::pass::HOPELESS;
use crate::catalog::{block_hashes, blocks_of};
use crate::error::Result;
use crate::position::FileId;
use crate::record::{BLOCK, Record, WRITE_MAX};
use crate::sys::{self, Stat};

/// A file larger than this whose stamps say that only its attributes changed is not read, unless a hint says so.
const SMALL: u64 = 1 << 20;
/// Of a file that is written all the time this much is read in a pass, so that what was read is soon in the log.
const SLICE: u64 = 128 << 20;
/// Known hashes fetched at once.
const WINDOW: u64 = 4096;
/// Bytes of a block, for slices.
const BLOCK_LEN: usize = 16 << 10;

/// One reading of a file.
struct Reading<'a> {
    fd: &'a OwnedFd,
    id: FileId,
    /// What the file's size is taken to be.
    size: u64,
    /// Size as the records so far leave it.
    done: u64,
    /// All blocks without a staged hash count as zero.
    whole: bool,
    /// This block follows a truncate and is written whatever its hash.
    tail: Option<u64>,
    window: (u64, Vec<u128>),
    /// The file ended early.
    short: bool,
    /// What is compared: all, or a slice.
    range: Range<u64>,
}

impl Engine {
    /// Opens a file of the tree for reading.
    fn open_file(&mut self, at: At<'_>) -> Result<Option<OwnedFd>> {
        self.pace()?;
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
        let opened = match sys::open_beneath(at.fd, at.name, flags | OFlags::NOATIME, 0) {
            Err(e) if e.raw_os_error() == Some(Errno::PERM.raw_os_error()) => {
                sys::open_beneath(at.fd, at.name, flags, 0)
            }
            other => other,
        };
        match opened {
            Ok(fd) => Ok(Some(fd)),
            Err(e) if vanished(&e) => {
                self.pass.again.insert(at.rel.into());
                Ok(None)
            }
            Err(e) => self.skip(at.rel, "open", e).map(|()| None),
        }
    }

    /// Looks at a regular file whose stamps moved, or of which a hint says that its content did.
    pub(super) fn file(
        &mut self,
        at: At<'_>,
        id: FileId,
        stat: &Stat,
        flags: u16,
        known: &Known,
    ) -> Result<()> {
        let attributes_only = known.hashed
            && !known.new
            && known.seen.is_some_and(|s| s.local == stat.local && !s.racy)
            && (known.stat_size, known.attrs.mtime) == (stat.size, stat.attrs.mtime)
            && flags & (flag::CONTENT | flag::CLOSED) == 0
            && stat.size > SMALL
            && !self.forced.contains_key(&id);
        let lost = self.pass.stage.inodes.get(&id).is_some_and(|s| s.hashes.lost);
        if lost {
            // Too much of it changed to be compared twice in one pass.
            self.pass.keep_dirty(at.rel);
            return Ok(());
        }
        let Some(fd) = self.open_file(at)? else { return Ok(()) };
        if self.hot.is_mapped(stat.local.ino) {
            // Cleans the pages, so that a later store moves the stamps again.
            let _ = rustix::fs::fdatasync(&fd);
        }
        let before = match sys::stat_fd(&fd) {
            Ok(s) => s,
            Err(e) => return self.skip(at.rel, "stat", e),
        };
        if before.local != stat.local || before.kind != stat.kind {
            self.pass.again.insert(at.rel.into());
            return Ok(());
        }
        let Some(xattrs) = self.xattrs(at)? else { return Ok(()) };
        // From here on the stage must have an entry: it takes sizes and hashes.
        if !self.pass.stage.inodes.contains_key(&id) {
            self.put(at, id, &before, false, None);
        }
        let mut size = before.size;
        let slice = self.slice(at.rel, id, &before, known);
        let whole = slice.is_none();
        if attributes_only {
            self.hot.scrub_soon(id);
        } else if let Some(cloned) = self.clone_content(at, id, &fd, &before) {
            size = cloned;
        } else {
            self.pass.clones.remove(&id);
            match self.compare(&fd, id, &before, known, slice.unwrap_or(0..u64::MAX))? {
                Ok(read) => size = read,
                Err(e) => return self.unread(at, e),
            }
        }
        let after = match sys::stat_fd(&fd) {
            Ok(s) => s,
            Err(e) => return self.skip(at.rel, "stat", e),
        };
        let stable = whole
            && size == before.size
            && (after.size, after.ctime, after.attrs) == (before.size, before.ctime, before.attrs);
        let shown = Stat { size, ..before };
        self.put(at, id, &shown, stable, Some(xattrs));
        if flags & (flag::CONTENT | flag::CLOSED | flag::SCAN | flag::AGAIN) != 0 {
            self.hot.add_written(at.rel);
        }
        Ok(())
    }

    /// The part of a file to read in this pass when it is large and written all the time. Once it rests, it is read
    /// as a whole.
    fn slice(&mut self, rel: &[u8], id: FileId, stat: &Stat, known: &Known) -> Option<Range<u64>> {
        let restless = self.unstable.get(rel).is_some_and(|&n| n >= HOPELESS)
            && !self.pass.still
            && self.pass.stage.round == 1
            && known.hashed
            && stat.size >= known.size
            && stat.size > 2 * SLICE
            && !self.forced.contains_key(&id);
        if !restless {
            self.slices.remove(&id);
            return None;
        }
        let (from, ctime) = self.slices.get(&id).copied().unwrap_or_default();
        if ctime == stat.ctime {
            self.slices.remove(&id);
            return None;
        }
        let from = if from < stat.size { from } else { 0 };
        self.slices.insert(id, (from + SLICE, stat.ctime));
        Some(from..from + SLICE)
    }

    /// A read failed. The file keeps what it had and is tried again later.
    fn unread(&mut self, at: At<'_>, e: std::io::Error) -> Result<()> {
        if local(&e) && !vanished(&e) {
            self.pass.keep_dirty(at.rel);
        }
        self.skip(at.rel, "read", e)
    }

    /// Reads a file as long as `stat` says and records what differs. Returns the size taken.
    pub(super) fn compare(
        &mut self,
        fd: &OwnedFd,
        id: FileId,
        stat: &Stat,
        known: &Known,
        range: Range<u64>,
    ) -> Result<std::io::Result<u64>> {
        let began = std::time::Instant::now();
        let hashed = known.hashed && {
            let staged = self.pass.stage.inodes.get(&id).is_some_and(|s| s.whole || s.new);
            staged || super::lock(&self.shared.fold).trust(id)?
        };
        let mut whole = known.new || self.pass.stage.inodes.get(&id).is_some_and(|s| s.whole);
        let mut done = known.size;
        if !hashed && done > 0 {
            // Nobody knows the hashes of what is there: it begins anew from nothing.
            self.record(id, &Record::Truncate { id, size: 0 })?;
            (whole, done) = (true, 0);
        }
        let mut r = Reading {
            fd,
            id,
            size: stat.size,
            done,
            whole,
            tail: None,
            window: (0, Vec::new()),
            short: false,
            range,
        };
        if let Some(staged) = self.pass.stage.inodes.get_mut(&id) {
            staged.whole |= whole;
        }
        if r.size < r.done {
            self.cut(&mut r)?;
            r.tail = (r.size % BLOCK != 0).then_some(r.size / BLOCK);
        }
        let result = self.ranges(&mut r);
        let result = result?;
        if result.is_ok() && r.done != r.size {
            self.record(id, &Record::Truncate { id, size: r.size })?;
            r.done = r.size;
        }
        if let Some(staged) = self.pass.stage.inodes.get_mut(&id) {
            staged.size = r.done;
        }
        self.pass.reading += began.elapsed();
        if result.is_ok() && !r.short {
            self.pass.forced_done.insert(id);
        }
        Ok(result.map(|()| r.size))
    }

    /// Cuts the file, as the records leave it, to the size that is taken.
    fn cut(&mut self, r: &mut Reading<'_>) -> Result<()> {
        self.record(r.id, &Record::Truncate { id: r.id, size: r.size })?;
        r.done = r.size;
        if let Some(staged) = self.pass.stage.inodes.get_mut(&r.id) {
            let blocks = blocks_of(r.size);
            staged.low = staged.low.min(blocks);
            staged.hashes.truncate(blocks);
        }
        Ok(())
    }

    /// Data is read, holes are not.
    fn ranges(&mut self, r: &mut Reading<'_>) -> Result<std::io::Result<()>> {
        let (mut at, to) = (r.range.start, r.range.end.min(r.size));
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.resize(WRITE_MAX, 0);
        let result = loop {
            let range = match sys::next_data(r.fd, at, r.size) {
                Ok(range) => range,
                Err(e) => break Ok(Err(e)),
            };
            let Some((start, end)) = range.filter(|(start, _)| *start < to) else {
                break self.hole(r, at / BLOCK, blocks_of(to)).map(Ok);
            };
            let start = (start / BLOCK * BLOCK).max(at);
            let end = end.next_multiple_of(BLOCK).min(to);
            if let Err(e) = self.hole(r, at / BLOCK, start / BLOCK) {
                break Err(e);
            }
            match self.data(r, &mut buffer, start, end) {
                Ok(Ok(())) if r.short => break Ok(Ok(())),
                Ok(Ok(())) => at = end,
                other => break other,
            }
            if at >= to {
                break Ok(Ok(()));
            }
        };
        self.buffer = buffer;
        result
    }

    /// Blocks `first..end` hold nothing: those that should are punched.
    fn hole(&mut self, r: &mut Reading<'_>, first: u64, end: u64) -> Result<()> {
        let known = blocks_of(r.done);
        if r.whole
            && self.pass.stage.inodes.get(&r.id).is_none_or(|s| s.hashes.empty_in(first, end))
            && r.tail.is_none_or(|t| t < first || t >= end)
            && !self.forced.contains_key(&r.id)
        {
            return Ok(());
        }
        let end = end.min(known);
        let mut at = first;
        while at < end {
            let to = end.min(at + WINDOW);
            self.hole_window(r, at, to)?;
            at = to;
        }
        Ok(())
    }

    fn hole_window(&mut self, r: &mut Reading<'_>, first: u64, end: u64) -> Result<()> {
        // Mostly a hole was a hole before: then one look at the known hashes is enough.
        let plain = self.pass.stage.inodes.get(&r.id).is_none_or(|s| s.hashes.empty_in(first, end));
        if plain && r.tail.is_none() && !self.forced.contains_key(&r.id) {
            self.known_hash(r, first)?;
            let (from, hashes) = &r.window;
            let covered = *from == first && hashes.len() as u64 >= end - first;
            if covered && hashes.iter().all(|&h| h == 0) {
                return Ok(());
            }
        }
        let mut run: Option<u64> = None;
        for block in first..end {
            let there =
                self.known_hash(r, block)? != 0 || r.tail == Some(block) || self.forced_block(r.id, block);
            match (there, run) {
                (true, None) => run = Some(block),
                (false, Some(from)) => {
                    self.punch(r, from, block)?;
                    run = None;
                }
                _ => {}
            }
        }
        run.map_or(Ok(()), |from| self.punch(r, from, end))
    }

    fn punch(&mut self, r: &mut Reading<'_>, first: u64, end: u64) -> Result<()> {
        if r.tail.is_some_and(|t| (first..end).contains(&t)) {
            // The rule of records wants the last block as a write, be it of zeros.
            let last = end - 1;
            let len = usize::try_from(r.size - last * BLOCK).unwrap_or(BLOCK_LEN).min(BLOCK_LEN);
            self.write(r, last, &[0; BLOCK_LEN][..len], &[0])?;
            r.tail = None;
            return if first < last { self.punch(r, first, last) } else { Ok(()) };
        }
        let (offset, len) = (first * BLOCK, (end - first) * BLOCK);
        self.record(r.id, &Record::Punch { id: r.id, offset, len })?;
        if let Some(staged) = self.pass.stage.inodes.get_mut(&r.id) {
            (first..end).for_each(|block| staged.hashes.set(block, 0));
        }
        Ok(())
    }

    /// Reads `from..to` and records the blocks that differ.
    fn data(
        &mut self,
        r: &mut Reading<'_>,
        buffer: &mut [u8],
        from: u64,
        to: u64,
    ) -> Result<std::io::Result<()>> {
        let mut at = from;
        while at < to {
            let want = usize::try_from(to - at).unwrap_or(usize::MAX).min(buffer.len());
            let got = match sys::read_at(r.fd, &mut buffer[..want], at) {
                Ok(got) => got,
                Err(e) => return Ok(Err(e)),
            };
            if self.pass.still {
                self.notes.freeze_read_bytes += got as u64;
            }
            // A file that ends early changes under our eyes: its whole blocks are taken, the pass looks at the rest again.
            let taken = if got < want { got / BLOCK_LEN * BLOCK_LEN } else { got };
            self.piece(r, at, &buffer[..taken])?;
            at += taken as u64;
            if taken < want {
                r.short = true;
                r.size = at;
                if r.done > at {
                    self.cut(r)?;
                }
                return Ok(Ok(()));
            }
        }
        Ok(Ok(()))
    }

    /// Compares the blocks of `data`, which begins at `at`.
    fn piece(&mut self, r: &mut Reading<'_>, at: u64, data: &[u8]) -> Result<()> {
        let first = at / BLOCK;
        let hashes: Vec<u128> = block_hashes(self.system, r.id, first, data).collect();
        let mut i = 0;
        while i < hashes.len() {
            let block = first + i as u64;
            if !self.differs(r, block, hashes[i])? {
                i += 1;
                continue;
            }
            let begin = i;
            let zero = hashes[i] == 0;
            i += 1;
            while i < hashes.len()
                && (hashes[i] == 0) == zero
                && self.differs(r, first + i as u64, hashes[i])?
            {
                i += 1;
            }
            let end = first + i as u64;
            if zero {
                // Blocks of zeros past the end of what is known are left out.
                let known = blocks_of(r.done);
                if block < known {
                    self.punch(r, block, end.min(known))?;
                }
            } else {
                let bytes = &data[begin * BLOCK_LEN..(i * BLOCK_LEN).min(data.len())];
                self.write(r, block, bytes, &hashes[begin..i])?;
            }
        }
        Ok(())
    }

    fn differs(&mut self, r: &mut Reading<'_>, block: u64, hash: u128) -> Result<bool> {
        Ok(r.tail == Some(block) || self.known_hash(r, block)? != hash || self.forced_block(r.id, block))
    }

    fn forced_block(&self, id: FileId, block: u64) -> bool {
        !self.forced.is_empty() && self.forced.get(&id).is_some_and(|blocks| blocks.contains(&block))
    }

    fn write(&mut self, r: &mut Reading<'_>, block: u64, data: &[u8], hashes: &[u128]) -> Result<()> {
        let offset = block * BLOCK;
        self.ensure_created(r.id)?;
        self.pass.journal.push_write(r.id, offset, data, hashes)?;
        r.done = r.done.max(offset + data.len() as u64);
        if let Some(staged) = self.pass.stage.inodes.get_mut(&r.id) {
            for (hash, block) in hashes.iter().zip(block..) {
                staged.hashes.set(block, *hash);
            }
        }
        if r.tail.is_some_and(|t| (block..block + hashes.len() as u64).contains(&t)) {
            r.tail = None;
        }
        Ok(())
    }

    /// Puts a record about a file's content into the journal, after the record that creates the file.
    fn record(&mut self, id: FileId, record: &Record<'_>) -> Result<()> {
        self.ensure_created(id)?;
        self.pass.journal.push(record)
    }

    /// The hash of a block as the records so far leave it.
    fn known_hash(&mut self, r: &mut Reading<'_>, block: u64) -> Result<u128> {
        let staged = self.pass.stage.inodes.get(&r.id);
        if let Some(hash) = staged.and_then(|s| s.hashes.get(block)) {
            return Ok(hash);
        }
        if r.whole || block >= blocks_of(r.done) || staged.is_some_and(|s| block >= s.low) {
            return Ok(0);
        }
        let (first, hashes) = &r.window;
        let within = |first: u64, hashes: &[u128]| {
            usize::try_from(block.checked_sub(first)?).ok().and_then(|i| hashes.get(i).copied())
        };
        if let Some(hash) = within(*first, hashes) {
            return Ok(hash);
        }
        let count = (blocks_of(r.done) - block).min(WINDOW);
        let n = usize::try_from(count).unwrap_or(1);
        let hashes = super::lock(&self.shared.fold).hashes(r.id, block, n)?;
        let hash = hashes.first().copied().unwrap_or_default();
        r.window = (block, hashes);
        Ok(hash)
    }
}

/// Opens what is at a path below the root for reading in the background.
pub(super) fn open_path(root: &sys::Root, rel: &[u8]) -> std::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
    match root.open_beneath(rel, flags | OFlags::NOATIME, 0) {
        Err(e) if e.raw_os_error() == Some(Errno::PERM.raw_os_error()) => root.open_beneath(rel, flags, 0),
        other => other,
    }
}
