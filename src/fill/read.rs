//! Reading contents for a first copy: files by the catalog's paths, in blocks that are compared with
//! what the catalog says of them, packed into messages.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

use rustix::fs::OFlags;
use tokio::sync::mpsc;

use super::CopySource;
use super::adaptive::Adaptive;
use super::source::{Request, Wanted};
use crate::catalog::{Catalog, LocalId, Seen, block_hashes, blocks_of};
use crate::error::{Error, ErrorKind, Result};
use crate::position::{FileId, SystemId};
use crate::record::{BLOCK, Kind};
use crate::sys::{self, Root, Stat};
use crate::wire::{self, Encoding, ITEM_HEAD, Message, Outcome};

/// Bytes read at once: small enough to stay in a core's cache until they are hashed and sent.
pub(super) const PIECE: usize = 256 << 10;
/// A message is sent when its items reach this.
const FULL: usize = 256 << 10;
/// When to look for a file: one that is not where the catalog says may have a new name that the
/// catalog is about to learn of.
const AGAIN: [Again; 6] = [
    Again::Now,
    Again::After(Duration::from_millis(2)),
    Again::After(Duration::from_millis(20)),
    Again::AfterBarrier,
    Again::AfterBarrier,
    Again::AfterBarrier,
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Again {
    Now,
    After(Duration),
    AfterBarrier,
}

/// Files of more blocks (64 GiB) are not learned on the way: their hashes would take too much memory.
pub(super) const LEARN_MAX: u64 = 4 << 20;
/// Blocks of a hole compared at once.
const HOLE_STEP: u64 = 4096;

/// One message ready to be sent.
pub(super) struct Packet {
    pub(super) message: Vec<u8>,
    /// Files that end in it.
    pub(super) files: u64,
    /// Content in it.
    pub(super) bytes: u64,
}

/// The decision about compression that the threads of a connection share.
pub(super) struct Shared {
    began: Instant,
    adaptive: Mutex<Adaptive>,
}

impl Default for Shared {
    fn default() -> Self {
        Self { began: Instant::now(), adaptive: Mutex::new(Adaptive::new(Duration::ZERO)) }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Adaptive> {
        self.adaptive.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads the batches of one lane, in the order they are asked for.
pub(super) fn read_batches(
    source: &Arc<dyn CopySource>,
    mut requests: mpsc::Receiver<Request>,
    out: &mpsc::Sender<Result<Packet>>,
    shared: Arc<Shared>,
) -> Result<()> {
    let catalog = source.catalog();
    let system = read_lock(&catalog).system();
    let compressor = zstd::bulk::Compressor::new(1).map_err(|e| Error::from(e).wrap("cannot compress"))?;
    let mut packer = Packer { out, shared, compressor, batch: 0, items: Vec::new(), files: 0, bytes: 0 };
    let reading = |plan| Reading { source: &**source, root: source.root(), system, plan };
    while let Some(Request { batch, starved, what }) = requests.blocking_recv() {
        packer.batch = batch;
        packer.shared.lock().starved(starved);
        let plans = |ids: &mut dyn Iterator<Item = FileId>| -> Vec<Plan> {
            let catalog = read_lock(&catalog);
            ids.map(|id| Plan::of(&catalog, id)).collect()
        };
        match what {
            Wanted::Files(ids) => {
                for plan in plans(&mut ids.iter().copied()) {
                    reading(plan).run(&catalog, &mut packer)?;
                }
            }
            Wanted::Ranges(ranges) => {
                for (plan, range) in plans(&mut ranges.iter().map(|r| r.id)).into_iter().zip(&ranges) {
                    reading(plan).run_range(&catalog, &mut packer, range)?;
                }
            }
        }
        packer.flush()?;
        packer.send(Packet { message: Message::BatchEnd { batch }.encode(), files: 0, bytes: 0 })?;
    }
    Ok(())
}

fn read_lock(catalog: &RwLock<Catalog>) -> RwLockReadGuard<'_, Catalog> {
    catalog.read().unwrap_or_else(PoisonError::into_inner)
}

/// What the catalog says of one file at one moment.
pub(super) struct Plan {
    pub(super) id: FileId,
    path: Option<Vec<u8>>,
    local: Option<LocalId>,
    pub(super) size: u64,
    pub(super) hashed: bool,
    content: u128,
}

impl Plan {
    fn of(catalog: &Catalog, id: FileId) -> Self {
        let inode = catalog.get(id).filter(|i| i.kind == Kind::File);
        Self {
            id,
            path: inode.and_then(|_| catalog.path(id)),
            local: inode.and_then(|i| i.seen).map(|s| s.local),
            size: inode.map_or(0, |i| i.size),
            hashed: inode.is_some_and(|i| i.hashed),
            content: inode.map_or(0, |i| i.content),
        }
    }
}

pub(super) struct Reading<'a> {
    pub(super) source: &'a dyn CopySource,
    root: Arc<Root>,
    pub(super) system: SystemId,
    pub(super) plan: Plan,
}

/// What came of reading one file.
#[derive(Default)]
pub(super) struct Findings {
    /// Blocks that are not what the catalog says.
    pub(super) differ: Vec<u64>,
    /// All hashes, when the file is not hashed yet and is small enough to be learned.
    pub(super) hashes: Option<Vec<u128>>,
}

impl Reading<'_> {
    fn run(mut self, catalog: &RwLock<Catalog>, packer: &mut Packer<'_>) -> Result<()> {
        let id = self.plan.id;
        let Some((file, before)) = self.find(catalog)? else {
            // If it still lives under a name that capture has yet to see, its content must go through the log.
            let blocks = blocks_of(self.plan.size);
            if blocks > 0 {
                self.source.mismatch(id, (0..blocks).collect());
            }
            return packer.end(id, Outcome::Gone, 0);
        };
        let mut findings = Findings::default();
        let learn = !self.plan.hashed && blocks_of(before.size) <= LEARN_MAX;
        findings.hashes = learn.then(|| vec![0; usize::try_from(blocks_of(before.size)).unwrap_or(0)]);
        self.read(&file, &before, packer, &mut findings)?;
        self.conclude(&file, &before, packer, findings)
    }

    /// Says how the reading of a file, or of a range of it, ended.
    pub(super) fn conclude(
        &self,
        file: &OwnedFd,
        before: &Stat,
        packer: &mut Packer<'_>,
        findings: Findings,
    ) -> Result<()> {
        let id = self.plan.id;
        let after = sys::stat_fd(file).map_err(|e| self.error("stat", e))?;
        let still = (before.local, before.size, before.attrs.mtime, before.ctime)
            == (after.local, after.size, after.attrs.mtime, after.ctime);
        let mut outcome = if still { Outcome::Whole } else { Outcome::Changing };
        if !findings.differ.is_empty() {
            outcome = Outcome::Changing;
            self.source.mismatch(id, findings.differ);
        } else if let Some(hashes) = findings.hashes.filter(|_| still) {
            let seen = Seen { local: after.local, ctime: after.ctime, racy: super::racy(after.ctime) };
            self.source.learned(id, seen, hashes);
        }
        packer.end(id, outcome, after.size)
    }

    /// Opens the file by its name in the catalog, and by its newer name if it has moved.
    pub(super) fn find(&mut self, catalog: &RwLock<Catalog>) -> Result<Option<(OwnedFd, Stat)>> {
        for pause in AGAIN {
            match pause {
                Again::Now => {}
                Again::After(pause) => std::thread::sleep(pause),
                // Then the catalog has every name that the directory had at the call.
                Again::AfterBarrier => drop(self.source.barrier()?),
            }
            if pause != Again::Now {
                self.plan = Plan::of(&read_lock(catalog), self.plan.id);
            }
            let Some(path) = &self.plan.path else { return Ok(None) };
            let Some(file) = self.open(path)? else { continue };
            let stat = sys::stat_fd(&file).map_err(|e| self.error("stat", e))?;
            let same = self.plan.local.is_none_or(|l| l == stat.local);
            if stat.kind == Kind::File && same {
                return Ok(Some((file, stat)));
            }
        }
        Ok(None)
    }

    fn open(&self, path: &[u8]) -> Result<Option<OwnedFd>> {
        // Reading must not show in the application's files, so no access times where that is allowed to ask.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
        for flags in [flags | OFlags::NOATIME, flags] {
            match self.root.open_beneath(path, flags, 0) {
                Ok(file) => return Ok(Some(file)),
                Err(e) => match rustix::io::Errno::from_io_error(&e) {
                    Some(rustix::io::Errno::PERM) => {}
                    Some(
                        rustix::io::Errno::NOENT
                        | rustix::io::Errno::NOTDIR
                        | rustix::io::Errno::LOOP
                        | rustix::io::Errno::NXIO
                        | rustix::io::Errno::ACCESS,
                    ) => return Ok(None),
                    _ => return Err(Error::io("open", self.root.join(path), e)),
                },
            }
        }
        Ok(None)
    }

    pub(super) fn error(&self, verb: &str, e: std::io::Error) -> Error {
        Error::io(verb, self.root.join(self.plan.path.as_deref().unwrap_or_default()), e)
    }

    /// Reads and packs all that is not a hole.
    fn read(&self, file: &OwnedFd, stat: &Stat, packer: &mut Packer<'_>, f: &mut Findings) -> Result<()> {
        let mut at = 0;
        while let Some((start, end)) =
            sys::next_data(file, at, stat.size).map_err(|e| self.error("look for data in", e))?
        {
            let start = (start / BLOCK * BLOCK).max(at);
            self.hole(at, start, f);
            at = start;
            // Whole blocks but for the file's last one: holes end anywhere.
            let end = end.next_multiple_of(BLOCK).min(stat.size);
            while at < end {
                let want = usize::try_from(end - at).map_or(PIECE, |n| n.min(PIECE));
                let n = self.piece(file, at, want, packer, f)?;
                at += n as u64;
                if n < want {
                    // The file became shorter.
                    self.hole(at.next_multiple_of(BLOCK), self.plan.size, f);
                    return Ok(());
                }
            }
            at = at.next_multiple_of(BLOCK);
        }
        self.hole(at, self.plan.size, f);
        Ok(())
    }

    /// Reads one piece; blocks of zeros are left out, as the receiver has holes there.
    fn piece(
        &self,
        file: &OwnedFd,
        at: u64,
        want: usize,
        packer: &mut Packer<'_>,
        f: &mut Findings,
    ) -> Result<usize> {
        let id = self.plan.id;
        let body = packer.room(id, at, want)?;
        let data = packer.items.len();
        let n = read_into(file, &mut packer.items, want, at).map_err(|e| self.error("read", e))?;
        let first = at / BLOCK;
        let hashes: Vec<u128> = block_hashes(self.system, id, first, &packer.items[data..]).collect();
        self.compare(first, &hashes, f);
        if hashes.contains(&0) {
            let bytes = packer.items.split_off(data);
            packer.items.truncate(body);
            packer.runs(id, at, &bytes, &hashes)?;
        } else {
            packer.seal(body, n);
        }
        Ok(n)
    }

    fn hole(&self, from: u64, to: u64, f: &mut Findings) {
        let (mut first, end) = (from / BLOCK, blocks_of(to.min(self.plan.size)));
        while self.plan.hashed && first < end {
            let n = (end - first).min(HOLE_STEP);
            self.compare(first, &vec![0; usize::try_from(n).unwrap_or(0)], f);
            first += n;
        }
    }

    pub(super) fn compare(&self, first: u64, hashes: &[u128], f: &mut Findings) {
        if let Some(all) = &mut f.hashes {
            let from = usize::try_from(first).unwrap_or(usize::MAX);
            for (to, hash) in all.iter_mut().skip(from).zip(hashes) {
                *to = *hash;
            }
            return;
        }
        // Not hashed: a change to it ships the whole file anyway.
        let Some(known) = self.known(first, hashes.len()) else { return };
        let pairs = known.into_iter().chain(std::iter::repeat(0)).zip(hashes).zip(first..);
        f.differ.extend(pairs.filter(|((k, h), _)| k != *h).map(|(_, block)| block));
    }
}

impl Reading<'_> {
    /// What the catalog says of blocks, if it knows.
    pub(super) fn known(&self, first: u64, n: usize) -> Option<Vec<u128>> {
        if self.plan.hashed && blocks_of(self.plan.size) <= 1 && first == 0 && n == 1 {
            return Some(vec![self.plan.content]);
        }
        self.source.hashes(self.plan.id, first, n as u64)
    }
}

/// Appends up to `want` bytes of the file to `to`.
fn read_into(file: impl AsFd, to: &mut Vec<u8>, want: usize, at: u64) -> std::io::Result<usize> {
    let len = to.len();
    to.resize(len + want, 0);
    let n = sys::read_at(file, &mut to[len..], at)?;
    to.truncate(len + n);
    Ok(n)
}

/// Packs items into messages.
pub(super) struct Packer<'a> {
    out: &'a mpsc::Sender<Result<Packet>>,
    shared: Arc<Shared>,
    compressor: zstd::bulk::Compressor<'static>,
    batch: u32,
    /// The message under construction: header, fields, items.
    items: Vec<u8>,
    files: u64,
    bytes: u64,
}

/// Bytes of a message before its items.
const BEFORE: usize = wire::HEADER + 9;

impl Packer<'_> {
    fn begin(&mut self, more: usize) -> Result<()> {
        if self.items.len() >= BEFORE + FULL || self.items.len() + more > BEFORE + wire::ITEMS_MAX {
            self.flush()?;
        }
        if self.items.is_empty() {
            self.items = wire::begin(wire::Kind::FillData, 9 + FULL + PIECE);
            wire::put_fill_data(&mut self.items, self.batch, Encoding::Raw, 0);
        }
        Ok(())
    }

    /// Makes room for a data item whose content follows; where the item begins.
    fn room(&mut self, id: FileId, offset: u64, len: usize) -> Result<usize> {
        self.begin(ITEM_HEAD + len)?;
        let body = self.items.len();
        wire::put_item_head(&mut self.items, id, offset, 0);
        Ok(body)
    }

    /// Ends the item that begins at `body` and has `len` bytes of content.
    fn seal(&mut self, body: usize, len: usize) {
        if len == 0 {
            return self.items.truncate(body);
        }
        let at = body + ITEM_HEAD - 4;
        let stored = u32::try_from(len).unwrap_or(0).to_le_bytes();
        self.items[at..at + 4].copy_from_slice(&stored);
        self.bytes += len as u64;
    }

    /// Packs the runs of blocks that are not zero.
    fn runs(&mut self, id: FileId, at: u64, bytes: &[u8], hashes: &[u128]) -> Result<()> {
        let block = usize::try_from(BLOCK).unwrap_or(usize::MAX);
        let mut first = 0;
        for run in hashes.chunk_by(|a, b| (*a == 0) == (*b == 0)) {
            let (from, to) = (first * block, ((first + run.len()) * block).min(bytes.len()));
            if run[0] != 0 {
                let body = self.room(id, at + from as u64, to - from)?;
                self.items.extend_from_slice(&bytes[from..to]);
                self.seal(body, to - from);
            }
            first += run.len();
        }
        Ok(())
    }

    /// Packs content.
    pub(super) fn data(&mut self, id: FileId, at: u64, bytes: &[u8]) -> Result<()> {
        let body = self.room(id, at, bytes.len())?;
        self.items.extend_from_slice(bytes);
        self.seal(body, bytes.len());
        Ok(())
    }

    /// Packs a hole.
    pub(super) fn hole(&mut self, id: FileId, at: u64, len: u64) -> Result<()> {
        self.begin(ITEM_HEAD + 4)?;
        wire::put_item_hole(&mut self.items, id, at, len);
        Ok(())
    }

    pub(super) fn end(&mut self, id: FileId, outcome: Outcome, size: u64) -> Result<()> {
        self.begin(18)?;
        wire::put_item_end(&mut self.items, id, outcome, size);
        self.files += 1;
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        if self.items.is_empty() {
            return Ok(());
        }
        let mut message = std::mem::take(&mut self.items);
        let raw_len = message.len() - BEFORE;
        let raw = u32::try_from(raw_len).unwrap_or(u32::MAX);
        message[BEFORE - 4..BEFORE].copy_from_slice(&raw.to_le_bytes());
        if self.shared.lock().compress() {
            let squeezed = self.compressor.compress(&message[BEFORE..]);
            // One that does not shrink goes as it is.
            if let Ok(squeezed) =
                squeezed.map_err(drop).and_then(|s| if s.len() < raw_len { Ok(s) } else { Err(()) })
            {
                message = wire::begin(wire::Kind::FillData, 9 + squeezed.len());
                wire::put_fill_data(&mut message, self.batch, Encoding::Zstd, raw);
                message.extend_from_slice(&squeezed);
            }
        }
        let stored = message.len() - BEFORE;
        let packet = Packet {
            message: wire::finish(message),
            files: std::mem::take(&mut self.files),
            bytes: std::mem::take(&mut self.bytes),
        };
        let began = Instant::now();
        self.send(packet)?;
        let (stalled, now) = (began.elapsed(), self.shared.began.elapsed());
        self.shared.lock().sent(raw_len, stored, stalled, now);
        Ok(())
    }

    fn send(&self, packet: Packet) -> Result<()> {
        let gone = |_| Error::new(ErrorKind::Cancelled, "the connection is gone");
        self.out.blocking_send(Ok(packet)).map_err(gone)
    }
}
