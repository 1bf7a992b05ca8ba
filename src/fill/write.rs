//! Writing contents of a first copy: some threads that make, write, hash and finish files, and one that
//! makes them durable and notes them in the journal.

use std::collections::{HashMap, VecDeque};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::{self as rfs, OFlags};
use tokio::sync::mpsc;

use super::compare::{Resync, complete, open_own};
use super::journal::{Finished, Journal};
use super::sums::{Sum, Sums, Tally};
use super::tree::{Skipped, Tree, create, dress, seen_of};
use crate::apply::punch;
use crate::blocks::Blocks;
use crate::catalog::{Catalog, block_hashes, blocks_of};
use crate::error::{Error, ErrorKind, Result};
use crate::failpoint;
use crate::position::FileId;
use crate::record::{BLOCK, Kind};
use crate::sys::Root;
use crate::wire::{Encoding, Item, Items, Message, Outcome};

/// Files that one thread holds open at once; a sender finishes one before it begins the next.
const OPEN: usize = 16;
/// Parent directories that one thread holds open.
const PARENTS: usize = 8;
/// Content written between two notes in the journal, and the time between them: little at first, so that
/// even one who breaks off again and again gets on.
const NOTE_BYTES: u64 = 512 << 20;
const NOTE_FIRST: Duration = Duration::from_millis(250);
const NOTE_EVERY: Duration = Duration::from_secs(2);

/// What the threads of a copy share.
pub(super) struct Work {
    pub(super) root: Arc<Root>,
    pub(super) catalog: Arc<Catalog>,
    pub(super) blocks: Blocks,
    /// Files finished and bytes written, earlier attempts included.
    pub(super) files: AtomicU64,
    pub(super) bytes: AtomicU64,
    pub(super) skipped: Mutex<Skipped>,
    /// Files that are whole but not in the journal, and never to be there: the sender saw them change.
    pub(super) changing: Mutex<Vec<Finished>>,
    /// The directory was not empty: files are made equal in place.
    pub(super) resync: Option<Resync>,
    /// Where a file may be cloned from before its content comes.
    pub(super) donor: Option<Donor>,
    /// Contents are summed as they are written.
    pub(super) sums: Option<Arc<Sums>>,
}

/// The file that holds just the content of another one, if there is any.
pub(super) type Lend = Box<dyn Fn(FileId) -> Result<Option<std::fs::File>> + Send + Sync>;

/// What files are cloned from (FICLONE).
pub(super) struct Donor {
    pub(super) lend: Lend,
    /// It has to be cloned; otherwise what can't be is written.
    pub(super) always: bool,
    /// A file could not be cloned: no other one is tried.
    pub(super) cannot: std::sync::atomic::AtomicBool,
}

impl Donor {
    /// Whether the new file has the content now.
    fn give(&self, id: FileId, size: u64, to: &OwnedFd) -> Result<bool> {
        if self.cannot.load(Ordering::Relaxed) {
            return Ok(false);
        }
        let Some(from) = (self.lend)(id)? else { return Ok(false) };
        // What it holds past the end would stay.
        if from.metadata().map_or(true, |m| m.len() > size) {
            return Ok(false);
        }
        match rfs::ioctl_ficlone(to, &from) {
            Ok(()) => Ok(true),
            Err(e) if self.always => {
                let text = format!(
                    "a file of the backup can't be cloned to where it is restored ({}): give --copy-mode copy",
                    std::io::Error::from(e)
                );
                Err(Error::new(ErrorKind::Refused, text))
            }
            Err(_) => {
                self.cannot.store(true, Ordering::Relaxed);
                Ok(false)
            }
        }
    }
}

impl Work {
    pub(super) fn error(&self, verb: &str, id: FileId, e: std::io::Error) -> Error {
        Error::io(verb, self.root.join(&self.catalog.path(id).unwrap_or_default()), e)
    }
}

/// A finished file on its way to the journal.
pub(super) type Note = Finished;

/// What the threads tell the connection: a batch is done.
pub(super) type Done = Result<u32>;

struct Open {
    fd: OwnedFd,
    parent: Rc<OwnedFd>,
    name: Box<[u8]>,
    /// Where the next content may begin.
    next: u64,
    /// The length that writing has given it.
    len: u64,
    sum: u128,
    /// It shares its blocks with what it is read from.
    cloned: bool,
    tally: Option<Tally>,
}

/// One writing thread.
pub(super) struct Writer {
    work: Arc<Work>,
    notes: std::sync::mpsc::SyncSender<Note>,
    open: HashMap<FileId, Open>,
    parents: VecDeque<(FileId, Rc<OwnedFd>)>,
    skipped: Skipped,
    raw: Vec<u8>,
    zstd: Option<zstd::bulk::Decompressor<'static>>,
}

impl Writer {
    /// Writes what comes through `queue` until it ends, something fails, or any other message comes.
    pub(super) fn run(
        work: Arc<Work>,
        notes: std::sync::mpsc::SyncSender<Note>,
        mut queue: mpsc::Receiver<Message>,
        done: &mpsc::Sender<Done>,
    ) {
        let mut writer = Self {
            work,
            notes,
            open: HashMap::new(),
            parents: VecDeque::new(),
            skipped: Skipped::default(),
            raw: Vec::new(),
            zstd: None,
        };
        while let Some(message) = queue.blocking_recv() {
            let result = match message {
                Message::FillData { encoding, raw_len, bytes, .. } => {
                    writer.message(encoding, raw_len as usize, &bytes).map(|()| None)
                }
                Message::BatchEnd { batch } => writer.batch_end().map(|()| Some(batch)),
                _ => break,
            };
            let Some(said) = result.transpose() else { continue };
            let failed = said.is_err();
            if done.blocking_send(said).is_err() || failed {
                break;
            }
        }
        writer.work.skipped.lock().unwrap_or_else(PoisonError::into_inner).add(writer.skipped);
    }

    fn message(&mut self, encoding: Encoding, raw_len: usize, bytes: &[u8]) -> Result<()> {
        if encoding == Encoding::Raw {
            return self.items(bytes);
        }
        let raw = std::mem::take(&mut self.raw);
        if self.zstd.is_none() {
            let made = zstd::bulk::Decompressor::new();
            self.zstd = Some(made.map_err(|e| Error::from(e).wrap("cannot decompress"))?);
        }
        let raw = decompress(self.zstd.as_mut(), raw, raw_len, bytes)?;
        let result = self.items(&raw);
        self.raw = raw;
        result
    }

    fn items(&mut self, bytes: &[u8]) -> Result<()> {
        for item in Items::new(bytes) {
            match item? {
                Item::Data { id, offset, bytes } => self.data(id, offset, bytes)?,
                Item::End { id, outcome, .. } => self.end(id, outcome)?,
                Item::Hole { id, offset, len } => self.hole(id, offset, len)?,
            }
        }
        Ok(())
    }

    fn batch_end(&mut self) -> Result<()> {
        if let Some(id) = self.open.keys().next() {
            return Err(Error::new(ErrorKind::Corrupt, format!("the sender did not end file {id}")));
        }
        Ok(())
    }

    fn error(&self, verb: &str, id: FileId, e: impl Into<std::io::Error>) -> Error {
        self.work.error(verb, id, e.into())
    }

    fn parent(&mut self, id: FileId) -> Result<Rc<OwnedFd>> {
        if let Some((_, fd)) = self.parents.iter().find(|(p, _)| *p == id) {
            return Ok(Rc::clone(fd));
        }
        let fd = Rc::new(Tree { root: &self.work.root, catalog: &self.work.catalog }.dir(id)?);
        if self.parents.len() >= PARENTS {
            self.parents.pop_front();
        }
        self.parents.push_back((id, Rc::clone(&fd)));
        Ok(fd)
    }

    fn opened(&mut self, id: FileId) -> Result<Open> {
        if let Some(open) = self.open.remove(&id) {
            return Ok(open);
        }
        let work = Arc::clone(&self.work);
        let tree = Tree { root: &work.root, catalog: &work.catalog };
        let inode = work.catalog.get(id).filter(|i| i.kind == Kind::File);
        let unasked =
            || Error::new(ErrorKind::Corrupt, format!("the sender sent file {id}, which was not asked for"));
        let (inode, (parent, name)) = inode.zip(tree.first_name(id)).ok_or_else(unasked)?;
        if self.open.len() >= OPEN {
            return Err(Error::new(ErrorKind::Corrupt, "the sender began too many files at once"));
        }
        let parent = self.parent(parent)?;
        let mut cloned = false;
        let fd = match &work.resync {
            None => {
                let fd = create(&parent, name, &inode).map_err(|e| self.error("make", id, e))?;
                if let Some(donor) = &work.donor {
                    cloned = donor.give(id, inode.size, &fd)?;
                }
                fd
            }
            Some(resync) => {
                let fd = open_own(&parent, name, OFlags::WRONLY).map_err(|e| self.error("open", id, e))?;
                if resync.touch(id, 0)? && resync.whole {
                    rfs::ftruncate(&fd, 0).map_err(|e| self.error("empty", id, e))?;
                    work.blocks.remove(id);
                    resync.set_sum(id, 0);
                }
                fd
            }
        };
        Ok(Open {
            fd,
            parent,
            name: name.into(),
            next: 0,
            len: 0,
            sum: 0,
            cloned,
            tally: work.sums.as_ref().map(|_| Tally::default()),
        })
    }

    fn data(&mut self, id: FileId, offset: u64, bytes: &[u8]) -> Result<()> {
        let mut open = self.opened(id)?;
        if offset < open.next {
            let text = format!("the sender sent content of file {id} out of order");
            return Err(Error::new(ErrorKind::Corrupt, text));
        }
        open.next = (offset + bytes.len() as u64).next_multiple_of(BLOCK);
        let size = self.work.catalog.get(id).map_or(0, |i| i.size);
        // What the file grew by since the snapshot is in the log.
        let room = usize::try_from(size.saturating_sub(offset)).unwrap_or(usize::MAX);
        let bytes = &bytes[..bytes.len().min(room)];
        if !bytes.is_empty() {
            if !open.cloned {
                crate::sys::write_at(&open.fd, bytes, offset).map_err(|e| self.error("write", id, e))?;
            }
            let (system, first) = (self.work.catalog.system(), offset / BLOCK);
            let hashes: Vec<u128> = block_hashes(system, id, first, bytes).collect();
            open.sum = hashes.iter().fold(open.sum, |sum, h| sum.wrapping_add(*h));
            if blocks_of(size) > 1 {
                self.work.blocks.set(id, first, &hashes)?;
            }
            if let Some(resync) = &self.work.resync {
                resync.touch(id, bytes.len() as u64)?;
                resync.set_sum(id, hashes.first().copied().unwrap_or_default());
                resync.tally.moved.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            }
            if let Some(tally) = &mut open.tally {
                tally.add(offset, bytes);
            }
            open.len = offset + bytes.len() as u64;
            self.work.bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        }
        self.open.insert(id, open);
        Ok(())
    }

    /// There the file holds zeros now.
    fn hole(&mut self, id: FileId, offset: u64, len: u64) -> Result<()> {
        let work = Arc::clone(&self.work);
        let Some(resync) = &work.resync else {
            return Err(Error::new(ErrorKind::Corrupt, "the sender sent a hole that was not asked for"));
        };
        let open = self.opened(id)?;
        let size = work.catalog.get(id).map_or(0, |i| i.size);
        let len = len.min(size.saturating_sub(offset));
        if len > 0 {
            punch(&open.fd, offset, len, size).map_err(|e| self.error("make a hole in", id, e))?;
            resync.touch(id, len)?;
            resync.tally.punched.fetch_add(len, Ordering::Relaxed);
            if blocks_of(size) > 1 {
                work.blocks.clear(id, offset / BLOCK, blocks_of(offset + len))?;
            } else {
                resync.set_sum(id, 0);
            }
        }
        self.open.insert(id, open);
        Ok(())
    }

    /// A range of a file has ended; with the last one the file is whole.
    fn range_end(&mut self, id: FileId, outcome: Outcome) -> Result<()> {
        let work = Arc::clone(&self.work);
        let (Some(resync), Some(inode)) = (&work.resync, work.catalog.get(id)) else { return Ok(()) };
        // What an older sender has nothing of is empty here, too.
        let open = if resync.whole { Some(self.opened(id)?) } else { self.open.remove(&id) };
        drop(open);
        let Some(file) = resync.ended(id, outcome)? else { return Ok(()) };
        let count = blocks_of(inode.size);
        let sum = if count > 1 { work.blocks.sum(id, 0, count)? } else { file.sum() };
        let finished = complete(&work, resync, &inode, (sum, file.is_changing()), &mut self.skipped)?;
        let stopped = |_| Error::new(ErrorKind::Cancelled, "the journal has stopped");
        finished.map_or(Ok(()), |f| self.notes.send(f).map_err(stopped))
    }

    fn end(&mut self, id: FileId, outcome: Outcome) -> Result<()> {
        if self.work.resync.is_some() {
            return self.range_end(id, outcome);
        }
        let open = self.opened(id)?;
        let work = Arc::clone(&self.work);
        let Some(inode) = work.catalog.get(id) else { return Ok(()) };
        // The end may be a hole, or gone at the sender; the log says what became of it.
        if open.len != inode.size {
            rfs::ftruncate(&open.fd, inode.size).map_err(|e| self.error("set the size of", id, e))?;
        }
        let stat = dress(&open.fd, &open.parent, &open.name, &inode, &mut self.skipped);
        let stat = stat.map_err(|e| self.error("set attributes of", id, e))?;
        failpoint::pass("fill::file").map_err(|e| self.error("finish", id, e))?;
        let finished = Finished { id, content: open.sum, seen: seen_of(&stat) };
        if let Some((sums, tally)) = work.sums.as_ref().zip(open.tally) {
            sums.note(id, Sum { size: inode.size, content: open.sum, sha256: tally.finish(inode.size) });
        }
        if outcome == Outcome::Whole {
            let stopped = |_| Error::new(ErrorKind::Cancelled, "the journal has stopped");
            self.notes.send(finished).map_err(stopped)?;
        } else {
            work.changing.lock().unwrap_or_else(PoisonError::into_inner).push(finished);
        }
        work.files.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

/// Decompresses into a buffer that is used again.
fn decompress(
    zstd: Option<&mut zstd::bulk::Decompressor<'static>>,
    mut raw: Vec<u8>,
    raw_len: usize,
    bytes: &[u8],
) -> Result<Vec<u8>> {
    raw.resize(raw_len, 0);
    let damaged =
        |what: &str| Error::new(ErrorKind::Corrupt, format!("compressed content is damaged: {what}"));
    let zstd = zstd.ok_or_else(|| damaged("nothing to decompress with"))?;
    let n = zstd.decompress_to_buffer(bytes, &mut raw[..]).map_err(|e| damaged(&e.to_string()))?;
    if n == raw_len { Ok(raw) } else { Err(damaged("its length is wrong")) }
}

/// Makes finished files durable, then notes them. Returns all of this attempt when the writers have ended.
pub(super) fn keep_journal(
    work: &Work,
    notes: &std::sync::mpsc::Receiver<Note>,
    mut journal: Journal,
) -> Result<Vec<Finished>> {
    // Opened before the first write: an error of writing back is reported to those who were there.
    let disk = work.root.open_dir(b"").map_err(|e| Error::io("open", work.root.path(), e))?;
    let (mut all, mut noted) = (Vec::new(), 0);
    let (mut ended, mut every) = (false, NOTE_FIRST);
    while !ended {
        let (since, bytes) = (Instant::now(), work.bytes.load(Ordering::Relaxed));
        loop {
            match notes.recv_timeout(every.saturating_sub(since.elapsed())) {
                Ok(file) => all.push(file),
                Err(std::sync::mpsc::RecvTimeoutError::Timeout) => break,
                Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => {
                    ended = true;
                    break;
                }
            }
            if work.bytes.load(Ordering::Relaxed).saturating_sub(bytes) >= NOTE_BYTES {
                break;
            }
        }
        if all.len() == noted {
            continue;
        }
        work.blocks.flush()?;
        rfs::syncfs(&disk).map_err(|e| Error::io("sync", work.root.path(), e))?;
        work.blocks.sync_together()?;
        journal.add(&all[noted..])?;
        noted = all.len();
        every = (every * 2).min(NOTE_EVERY);
    }
    Ok(all)
}
