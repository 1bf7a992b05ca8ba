//! The journal of a pass: its records on their way into the log, and, since the catalog is changed only at the
//! commit, what is needed to fold them then: the records, with hashes in place of data.

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use crate::codec::{Put, Reader};
use crate::error::{Error, Result};
use crate::fold::Fold;
use crate::log::Log;
use crate::position::{FileId, Lsn};
use crate::record::{HEADER, Record, WRITE_MAX};
use crate::segment::{RAW_MAX, flags};

/// Bytes of folding work kept in memory; more goes to a file.
const FOLDS_MAX: usize = 16 << 20;
/// Longest item of folding work: a record without data, or the hashes of one write.
const FOLD_MAX: usize = 256 << 10;
/// Kind byte of a write with hashes in place of data.
const HASHED_WRITE: u8 = 0xF0;

/// Folding work that waits for the commit.
#[derive(Debug, Default)]
struct Folds {
    memory: Vec<u8>,
    spill: Option<File>,
}

/// The records of one change set that is being made.
#[derive(Debug)]
pub(super) struct Journal {
    log: Log,
    dir: PathBuf,
    raw: Vec<u8>,
    folds: Folds,
    /// Frames of the change set are in the log.
    open: bool,
    records: u64,
    /// Bytes of file data.
    pub(super) data: u64,
}

impl Journal {
    /// An empty journal; `dir` takes the file that very large change sets need.
    pub(super) fn new(log: Log, dir: &Path) -> Self {
        let folds = Folds::default();
        Self { log, dir: dir.to_owned(), raw: Vec::new(), folds, open: false, records: 0, data: 0 }
    }

    /// Whether there is nothing in it.
    pub(super) fn is_empty(&self) -> bool {
        self.records == 0
    }

    /// Adds a record. Full frames go into the log at once.
    pub(super) fn push(&mut self, record: &Record<'_>) -> Result<()> {
        self.encode(record)?;
        let start = self.folds.begin();
        record.encode(&mut self.folds.memory);
        self.folds.end(start, &self.dir)
    }

    /// Adds a write whose block hashes are known.
    pub(super) fn push_write(&mut self, id: FileId, offset: u64, data: &[u8], hashes: &[u128]) -> Result<()> {
        self.encode(&Record::Write { id, offset, data })?;
        self.data += data.len() as u64;
        let start = self.folds.begin();
        let out = &mut self.folds.memory;
        out.put_u8(HASHED_WRITE);
        out.put_u64(id.0);
        out.put_u64(offset);
        out.put_u64(data.len() as u64);
        for &hash in hashes {
            out.put_u128(hash);
        }
        self.folds.end(start, &self.dir)
    }

    fn encode(&mut self, record: &Record<'_>) -> Result<()> {
        let before = self.raw.len();
        record.encode(&mut self.raw);
        self.records += 1;
        if self.raw.len() <= RAW_MAX - COMMIT_ROOM {
            return Ok(());
        }
        let last = self.raw.split_off(before);
        self.send()?;
        self.raw = last;
        Ok(())
    }

    /// Sends what is buffered as a frame.
    fn send(&mut self) -> Result<()> {
        if self.raw.is_empty() {
            return Ok(());
        }
        let raw = std::mem::take(&mut self.raw);
        let flags = if self.open { 0 } else { flags::STARTS };
        self.log.append(raw, flags)?;
        self.open = true;
        Ok(())
    }

    /// Folds all records.
    pub(super) fn fold(&mut self, fold: &mut Fold) -> Result<()> {
        let folds = std::mem::take(&mut self.folds);
        let result = folds.replay(|item| fold_item(fold, item));
        // The buffer is used again; one that once was large is not kept.
        self.folds.memory = folds.memory;
        self.folds.memory.clear();
        self.folds.memory.shrink_to(FOLD_MAX);
        result
    }

    /// Ends the change set by a commit record; returns where it ends. The log has to be told to write it:
    /// [`Log::write_here`] or [`Log::wake`].
    pub(super) fn commit(&mut self, commit: &Record<'_>, exact: bool) -> Result<Lsn> {
        commit.encode(&mut self.raw);
        let flags =
            flags::ENDS | if exact { flags::EXACT } else { 0 } | if self.open { 0 } else { flags::STARTS };
        let raw = std::mem::take(&mut self.raw);
        let (_, end) = self.log.enqueue(raw, flags)?;
        (self.open, self.records, self.data) = (false, 0, 0);
        Ok(end)
    }

    /// Drops the change set; one that is in the log in part ends by an abort.
    pub(super) fn abort(&mut self) -> Result<()> {
        self.raw.clear();
        self.folds = Folds::default();
        (self.records, self.data) = (0, 0);
        if std::mem::take(&mut self.open) {
            Record::Abort.encode(&mut self.raw);
            self.log.append(std::mem::take(&mut self.raw), flags::ENDS | flags::ABORT)?;
        }
        Ok(())
    }
}

/// Room that stays free in a frame for the commit record.
const COMMIT_ROOM: usize = 256;

impl Folds {
    /// Begins an item: its length follows when it is known.
    fn begin(&mut self) -> usize {
        self.memory.put_u32(0);
        self.memory.len()
    }

    fn end(&mut self, start: usize, dir: &Path) -> Result<()> {
        let len = u32::try_from(self.memory.len() - start).unwrap_or(u32::MAX);
        self.memory[start - 4..start].copy_from_slice(&len.to_le_bytes());
        if self.memory.len() < FOLDS_MAX {
            return Ok(());
        }
        let failed = |e| Error::io("write a temporary file in", dir, e);
        if self.spill.is_none() {
            self.spill = Some(tempfile::tempfile_in(dir).map_err(failed)?);
        }
        if let Some(file) = &mut self.spill {
            file.write_all(&self.memory).map_err(failed)?;
        }
        self.memory.clear();
        Ok(())
    }

    fn replay(&self, mut each: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        if let Some(mut file) = self.spill.as_ref() {
            file.seek(SeekFrom::Start(0))?;
            let mut input = BufReader::with_capacity(1 << 20, file);
            let mut item = Vec::new();
            let mut len = [0; 4];
            loop {
                match input.read_exact(&mut len) {
                    Ok(()) => {}
                    Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => break,
                    Err(e) => return Err(e.into()),
                }
                item.resize((u32::from_le_bytes(len) as usize).min(FOLD_MAX), 0);
                input.read_exact(&mut item)?;
                each(&item)?;
            }
        }
        let mut r = Reader::new(&self.memory);
        while !r.rest().is_empty() {
            each(r.blob(FOLD_MAX, "folding work")?)?;
        }
        Ok(())
    }
}

/// In place of data that was sent already: only its length counts when hashes are given.
static ZEROS: [u8; WRITE_MAX] = [0; WRITE_MAX];

fn fold_item(fold: &mut Fold, item: &[u8]) -> Result<()> {
    if item.first() != Some(&HASHED_WRITE) {
        let (record, _) = Record::decode(item)?;
        return fold.record(&record);
    }
    let mut r = Reader::new(&item[1..]);
    let (id, offset) = (FileId(r.u64("file id")?), r.u64("offset")?);
    let len = usize::try_from(r.u64("length")?).unwrap_or(usize::MAX).min(WRITE_MAX);
    let mut hashes = Vec::with_capacity(r.rest().len() / 16);
    while !r.rest().is_empty() {
        hashes.push(r.u128("hash")?);
    }
    fold.record_hashed(&Record::Write { id, offset, data: &ZEROS[..len] }, Some(&hashes))
}

const _: () = assert!(WRITE_MAX + HEADER + 64 < RAW_MAX - COMMIT_ROOM);
