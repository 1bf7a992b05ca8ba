//! Finding out what of each file differs: files are read and hashed, or their known hashes taken, and whatever is not
//! what the tree says is asked for, range by range. Equal files get their attributes and are done.

use std::collections::{HashMap, HashSet};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{self as rfs, Mode, OFlags};
use rustix::io::Errno;
use tokio::sync::mpsc;

use super::base::Base;
use super::journal::Finished;
use super::tree::strip;
use super::tree::{Skipped, Tree, dress, seen_of};
use super::write::{Note, Work};
use crate::catalog::{Catalog, Inode, block_hashes, blocks_of};
use crate::error::{Error, ErrorKind, Result};
use crate::failpoint;
use crate::position::FileId;
use crate::record::{BLOCK, Kind};
use crate::sys;
use crate::wire::{Outcome, Range};

/// Bytes read at once.
const PIECE: usize = 256 << 10;
/// Most blocks of one range whose hashes are sent: 32 MiB of content.
const RANGE_KNOWN: u64 = 2048;
/// Most blocks of one range of which nothing is here: 8 MiB of content.
const RANGE_NEW: u64 = 512;
/// Fewest blocks of a range, however careful.
const RANGE_LEAST: u64 = 4;

/// What is known of the content of a file before it is compared.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Holds {
    /// What the tree says: only attributes are missing.
    Equal(u128),
    /// Something else, whose sum and hashes are known.
    Known(u128),
    /// Something.
    Anything,
    /// Nothing.
    Nothing,
}

/// A file of which ranges are on their way.
#[derive(Debug)]
pub(super) struct Pending {
    /// Ranges that have not ended.
    left: usize,
    /// Some of it will come in the log only.
    changing: bool,
    /// Nothing was written yet.
    untouched: bool,
    /// The sum of a file of one block.
    sum: u128,
    /// Bytes written.
    moved: u64,
}

impl Pending {
    /// The hash of its only block.
    pub(super) fn sum(&self) -> u128 {
        self.sum
    }

    /// Whether some of it will come in the log only.
    pub(super) fn is_changing(&self) -> bool {
        self.changing
    }
}

/// What the threads of a resync share beyond those of a first copy.
pub(super) struct Resync {
    pub(super) base: Base,
    pub(super) pending: Mutex<HashMap<FileId, Pending>>,
    /// The sender is older: it sends whole files, and leaves out what is zero.
    pub(super) whole: bool,
    /// Content asked for at once; grows from range to range after a break.
    pub(super) pace: AtomicU64,
    pub(super) tally: Arc<Tally>,
}

/// What a resync moved and did.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// Content received, in bytes.
    pub(super) moved: AtomicU64,
    /// Bytes that were made zero.
    pub(super) punched: AtomicU64,
    /// Bytes read and hashed here.
    pub(super) read: AtomicU64,
    /// Files of which something differed.
    pub(super) differing: AtomicU64,
    /// Those to be named if something of them differs.
    pub(super) damaged: HashSet<FileId>,
    /// Of these, the ones that did, with the bytes that were replaced.
    pub(super) repaired: Mutex<Vec<(FileId, u64)>>,
}

impl Resync {
    pub(super) fn new(base: Base, whole: bool, pace: u64, tally: Arc<Tally>) -> Self {
        Self { base, pending: Mutex::default(), whole, pace: AtomicU64::new(pace), tally }
    }

    pub(super) fn pending(&self) -> MutexGuard<'_, HashMap<FileId, Pending>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Content of `id` is about to be written. True the first time.
    pub(super) fn touch(&self, id: FileId, bytes: u64) -> Result<bool> {
        let mut pending = self.pending();
        let file = pending.get_mut(&id).ok_or_else(|| unasked(id))?;
        file.moved += bytes;
        Ok(std::mem::take(&mut file.untouched))
    }

    /// The one block of `id` has this hash now.
    pub(super) fn set_sum(&self, id: FileId, sum: u128) {
        if let Some(file) = self.pending().get_mut(&id) {
            file.sum = sum;
        }
    }

    /// A range of `id` has ended. The whole file, once all have.
    pub(super) fn ended(&self, id: FileId, outcome: Outcome) -> Result<Option<Pending>> {
        let mut pending = self.pending();
        let file = pending.get_mut(&id).ok_or_else(|| unasked(id))?;
        file.changing |= outcome != Outcome::Whole;
        file.left = file.left.saturating_sub(1);
        if file.left > 0 {
            return Ok(None);
        }
        let file = pending.remove(&id);
        drop(pending);
        if let Some(moved) = file.as_ref().map(|f| f.moved).filter(|m| *m > 0) {
            self.tally.differing.fetch_add(1, Ordering::Relaxed);
            if self.tally.damaged.contains(&id) {
                self.tally.repaired.lock().unwrap_or_else(PoisonError::into_inner).push((id, moved));
            }
        }
        Ok(file)
    }
}

fn unasked(id: FileId) -> Error {
    Error::new(ErrorKind::Corrupt, format!("the sender sent file {id}, which was not asked for"))
}

/// Opens a file of the tree. One that is closed to its own user is opened up; its mode is set at the end.
pub(super) fn open_own(dir: &OwnedFd, name: &[u8], flags: OFlags) -> std::io::Result<OwnedFd> {
    let flags = flags | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    match rfs::openat(dir, name, flags, Mode::empty()) {
        Err(Errno::ACCESS) => {
            let node =
                rfs::openat(dir, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
            rfs::chmod(format!("/proc/self/fd/{}", node.as_raw_fd()), Mode::from_raw_mode(0o600))?;
            Ok(rfs::openat(dir, name, flags, Mode::empty())?)
        }
        other => Ok(other?),
    }
}

/// Gives a file of which all content is here its size and attributes, and notes that it is whole.
pub(super) fn complete(
    work: &Work,
    resync: &Resync,
    inode: &Inode<'_>,
    (content, changing): (u128, bool),
    skipped: &mut Skipped,
) -> Result<Option<Finished>> {
    let id = inode.id;
    let tree = Tree { root: &work.root, catalog: &work.catalog };
    let Some((parent, name)) = tree.first_name(id) else { return Ok(None) };
    let dir = tree.dir(parent)?;
    let failed = |verb: &str, e| work.error(verb, id, e);
    let fd = open_own(&dir, name, OFlags::RDONLY).map_err(|e| failed("open", e))?;
    let mut stat = sys::stat_fd(&fd).map_err(|e| failed("stat", e))?;
    if stat.size != inode.size {
        let fd = open_own(&dir, name, OFlags::WRONLY).map_err(|e| failed("open", e))?;
        rfs::ftruncate(&fd, inode.size).map_err(|e| failed("set the size of", e.into()))?;
        stat = sys::stat_fd(&fd).map_err(|e| failed("stat", e))?;
    }
    if !resync.base.is_dressed(inode, &stat) {
        strip(&dir, name, inode).map_err(|e| failed("set attributes of", e))?;
        stat = dress(&fd, &dir, name, inode, skipped).map_err(|e| failed("set attributes of", e))?;
    }
    failpoint::pass("resync::file").map_err(|e| failed("finish", e))?;
    let finished = Finished { id, content, seen: seen_of(&stat) };
    work.files.fetch_add(u64::from(inode.size > 0), Ordering::Relaxed);
    if changing {
        work.changing.lock().unwrap_or_else(PoisonError::into_inner).push(finished);
        return Ok(None);
    }
    Ok(Some(finished))
}

/// Where the work of the comparing threads goes.
#[derive(Clone)]
pub(super) struct Outlets {
    pub(super) notes: std::sync::mpsc::SyncSender<Note>,
    pub(super) ranges: mpsc::Sender<Result<Range>>,
}

/// One comparing thread: takes files from the list until there are no more.
pub(super) fn compare(work: &Arc<Work>, todo: &[(FileId, Holds)], next: &AtomicUsize, out: &Outlets) {
    let Some(resync) = &work.resync else { return };
    let mut comparing = Comparing { work, resync, out, skipped: Skipped::default(), buf: vec![0; PIECE] };
    while let Some(&(id, holds)) = todo.get(next.fetch_add(1, Ordering::Relaxed)) {
        match comparing.file(id, holds) {
            Ok(()) => {}
            Err(e) => {
                // Nobody listens when the connection is gone; then the error does not matter either.
                let _ = out.ranges.blocking_send(Err(e));
                break;
            }
        }
    }
    work.skipped.lock().unwrap_or_else(PoisonError::into_inner).add(comparing.skipped);
}

struct Comparing<'a> {
    work: &'a Work,
    resync: &'a Resync,
    out: &'a Outlets,
    skipped: Skipped,
    buf: Vec<u8>,
}

impl Comparing<'_> {
    fn file(&mut self, id: FileId, holds: Holds) -> Result<()> {
        let work = self.work;
        let Some(inode) = work.catalog.get(id).filter(|i| i.kind == Kind::File) else { return Ok(()) };
        let count = blocks_of(inode.size);
        let (sum, known) = match holds {
            Holds::Equal(sum) => return self.done(&inode, sum),
            Holds::Known(sum) => (sum, true),
            Holds::Anything => (self.read(&inode)?, true),
            Holds::Nothing => {
                work.blocks.remove(id);
                (0, false)
            }
        };
        if inode.size == 0 || inode.hashed && sum == inode.content {
            return self.done(&inode, sum);
        }
        let most = if known { RANGE_KNOWN } else { RANGE_NEW };
        let pace = self.resync.pace.load(Ordering::Relaxed) / BLOCK;
        let step = if self.resync.whole { count } else { most.min(pace).max(RANGE_LEAST) };
        let left = usize::try_from(count.div_ceil(step)).unwrap_or(usize::MAX);
        let file = Pending { left, changing: false, untouched: true, sum, moved: 0 };
        self.resync.pending().insert(id, file);
        let mut first = 0;
        while first < count {
            let blocks = step.min(count - first);
            let hashes = match (known && !self.resync.whole, count) {
                (false, _) => None,
                (true, 1) => Some(vec![sum]),
                (true, _) => Some(work.blocks.get(id, first, usize::try_from(blocks).unwrap_or(0))?),
            };
            let blocks_here = u32::try_from(blocks).unwrap_or(u32::MAX);
            let range = Range { id, first, blocks: blocks_here, hashes };
            let gone = |_| Error::new(ErrorKind::Cancelled, "the connection is gone");
            self.out.ranges.blocking_send(Ok(range)).map_err(gone)?;
            first += blocks;
        }
        Ok(())
    }

    fn done(&mut self, inode: &Inode<'_>, sum: u128) -> Result<()> {
        let finished = complete(self.work, self.resync, inode, (sum, false), &mut self.skipped)?;
        self.work.bytes.fetch_add(inode.size, Ordering::Relaxed);
        let stopped = |_| Error::new(ErrorKind::Cancelled, "the journal has stopped");
        finished.map_or(Ok(()), |f| self.out.notes.send(f).map_err(stopped))
    }

    /// Reads and hashes what is there, of the length that the file will have. The sum of its blocks' hashes.
    fn read(&mut self, inode: &Inode<'_>) -> Result<u128> {
        let (work, id) = (self.work, inode.id);
        let tree = Tree { root: &work.root, catalog: &work.catalog };
        let Some((parent, name)) = tree.first_name(id) else { return Ok(0) };
        let dir = tree.dir(parent)?;
        let failed = |verb: &str, e| work.error(verb, id, e);
        let fd = open_own(&dir, name, OFlags::RDONLY).map_err(|e| failed("open", e))?;
        let size = sys::stat_fd(&fd).map_err(|e| failed("stat", e))?.size;
        if size > inode.size {
            let fd = open_own(&dir, name, OFlags::WRONLY).map_err(|e| failed("open", e))?;
            rfs::ftruncate(&fd, inode.size).map_err(|e| failed("set the size of", e.into()))?;
        }
        let (size, many) = (size.min(inode.size), blocks_of(inode.size) > 1);
        work.blocks.remove(id);
        let (mut sum, mut at) = (0_u128, 0_u64);
        while let Some((start, end)) = sys::next_data(&fd, at, size).map_err(|e| failed("read", e))? {
            at = (start / BLOCK * BLOCK).max(at);
            let end = end.next_multiple_of(BLOCK).min(size);
            while at < end {
                let want = usize::try_from(end - at).map_or(PIECE, |n| n.min(PIECE));
                let n = sys::read_at(&fd, &mut self.buf[..want], at).map_err(|e| failed("read", e))?;
                let first = at / BLOCK;
                let hashes: Vec<u128> =
                    block_hashes(work.catalog.system(), id, first, &self.buf[..n]).collect();
                sum = hashes.iter().fold(sum, |s, h| s.wrapping_add(*h));
                if many && hashes.iter().any(|h| *h != 0) {
                    work.blocks.set(id, first, &hashes)?;
                }
                self.resync.tally.read.fetch_add(n as u64, Ordering::Relaxed);
                at += n as u64;
                if n < want {
                    return Ok(sum);
                }
            }
            at = at.next_multiple_of(BLOCK);
        }
        Ok(sum)
    }
}

/// Files to be looked at, and files that are whole.
pub(super) type Sorted = (Vec<(FileId, Holds)>, Vec<Finished>);

/// What each regular file of the tree holds here, and those of which nothing must be touched.
pub(super) fn sort(
    catalog: &Catalog,
    base: &Base,
    plan: &super::plan::Plan,
    stats: &[Option<sys::Stat>],
) -> Result<Sorted> {
    let made_apart: HashSet<&[u8]> = plan
        .actions
        .iter()
        .filter_map(|a| match a {
            super::plan::Action::Unshare { path } => Some(&path[..]),
            _ => None,
        })
        .collect();
    let (mut todo, mut kept) = (Vec::new(), Vec::new());
    for inode in catalog.inodes().filter(|i| i.kind == Kind::File) {
        let stat = plan.claims.get(&inode.id).and_then(|&n| stats.get(n).copied().flatten());
        let Some(stat) = stat else {
            todo.push((inode.id, Holds::Nothing));
            continue;
        };
        if let Some(done) = base.done.get(&inode.id) {
            let same = done.seen.local == stat.local
                && stat.size == inode.size
                && stat.attrs.mtime == inode.attrs.mtime;
            if same {
                kept.push(*done);
                continue;
            }
        }
        let apart = !made_apart.is_empty()
            && catalog.path(inode.id).is_some_and(|path| made_apart.contains(&path[..]));
        let content = if apart { None } else { base.content(inode.id, &stat)? };
        let holds = match content {
            // The last block is another one when the end is.
            Some(sum) if inode.hashed && sum == inode.content && stat.size == inode.size => Holds::Equal(sum),
            Some(sum) if stat.size <= inode.size && blocks_of(stat.size) > 1 => Holds::Known(sum),
            _ if stat.size == 0 => Holds::Nothing,
            _ => Holds::Anything,
        };
        if let (Holds::Equal(content), true) = (holds, base.is_dressed(&inode, &stat)) {
            kept.push(Finished { id: inode.id, content, seen: seen_of(&stat) });
        } else {
            todo.push((inode.id, holds));
        }
    }
    Ok((todo, kept))
}
