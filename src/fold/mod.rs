//! The full fold: catalog and block hashes together, record by record.
//!
//! A file's content is the wrapping sum of the hashes of its blocks. Of a file of one block that is the
//! hash itself, so only longer files have their hashes in [`Blocks`]; the fold moves
//! them there and back as files grow and shrink. At each commit the digest that the record carries must be
//! the one of the catalog: P4, nothing silently different.
//!
//! After a stop the hash files may already hold what the log is about to say again (see
//! [`crate::blocks`]). [`Fold::begin_loose`] folds without keeping the sums of such files, and
//! [`Fold::finish_loose`] computes them from the hashes and compares the digest then.

use std::collections::HashSet;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::blocks::{Blocks, Need};
use crate::catalog::{Catalog, Digest, block_hashes, blocks_of};
use crate::error::{Error, ErrorKind, Result};
use crate::position::{Cut, FileId};
use crate::record::{BLOCK, Commit, Kind, Record};

mod replay;

pub use replay::Stored;

/// A catalog with its block hashes, as of the last record folded.
#[derive(Debug)]
pub struct Fold {
    /// The catalog; others may read it, only the fold's owner changes it.
    pub catalog: Arc<RwLock<Catalog>>,
    /// The hashes of files of more than one block.
    pub blocks: Blocks,
    /// While loose: the files whose sums are not kept.
    loose: Option<HashSet<FileId>>,
    /// Files not hashed whose hashes are being set piece by piece, and did not change meanwhile.
    learning: HashSet<FileId>,
    last: Option<Commit>,
    /// Files whose hash files were seen to be whole since the start.
    whole: HashSet<FileId>,
    /// Files whose hash files were not.
    damaged: u64,
}

/// Most files remembered as seen whole.
const WHOLE_MAX: usize = 100_000;

/// What a record needs to know of a file before it changes it.
#[derive(Clone, Copy)]
struct Before {
    blocks: u64,
    content: u128,
    hashed: bool,
}

fn diverged(what: &str, have: impl std::fmt::Display, said: impl std::fmt::Display) -> Error {
    let text = format!(
        "{what} after the change set is {have}, the commit says {said}: the node does not hold what its \
         upstream holds; fill it anew"
    );
    Error::new(ErrorKind::Diverged, text)
}

impl Fold {
    /// Joins a catalog with the hash files in `blocks`. Hash files of files that the catalog does not know, or has no
    /// use for, are removed; files whose hashes a crash made doubtful count as not hashed.
    pub fn new(catalog: Catalog, blocks: &Path) -> Result<Self> {
        let blocks = Blocks::open(blocks)?;
        let need = |id| match catalog.get(id) {
            Some(n) if n.kind == Kind::File && n.hashed => {
                if n.size > BLOCK {
                    Need::Many
                } else {
                    Need::One
                }
            }
            _ => Need::Nothing,
        };
        let suspects = blocks.begin(catalog.stored_as(), catalog.next_id(), need)?;
        let mut catalog = catalog;
        for id in suspects {
            if catalog.get(id).is_some_and(|n| n.kind == Kind::File && n.size > 0) {
                tracing::info!("the content of file {id} is read again after the crash");
                catalog.set_content(id, 0, false);
            }
        }
        Ok(Self {
            catalog: Arc::new(RwLock::new(catalog)),
            blocks,
            loose: None,
            learning: HashSet::new(),
            last: None,
            whole: HashSet::new(),
            damaged: 0,
        })
    }

    /// Whether the hash file of a file of many blocks is what it was when its sum was taken. It is looked at once,
    /// before its first use; a damaged one is forgotten, and the content of the file counts as not known.
    ///
    /// # Errors
    /// When it can't be read, or the note about it can't be written.
    pub fn trust(&mut self, id: FileId) -> Result<bool> {
        let before = self.before(id);
        Ok(before.hashed && self.sound(id, before)?)
    }

    fn sound(&mut self, id: FileId, before: Before) -> Result<bool> {
        if before.blocks <= 1 || self.loose.is_some() || self.whole.contains(&id) {
            return Ok(true);
        }
        if self.blocks.sum(id, 0, before.blocks)? == before.content {
            if self.whole.len() >= WHOLE_MAX {
                self.whole.clear();
            }
            self.whole.insert(id);
            return Ok(true);
        }
        tracing::warn!("the block hashes of file {id} are damaged; its content is read again");
        self.damaged += 1;
        self.blocks.doubt(id)?;
        self.write().set_content(id, 0, false);
        Ok(false)
    }

    /// How many hash files were found damaged since the start.
    #[must_use]
    pub fn damaged(&self) -> u64 {
        self.damaged
    }

    /// The catalog, for reading.
    pub fn read(&self) -> RwLockReadGuard<'_, Catalog> {
        self.catalog.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The catalog, for noting positions and local inodes. Tree and contents change by records only.
    pub fn write(&self) -> RwLockWriteGuard<'_, Catalog> {
        self.catalog.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Folds one record. A commit settles names and is compared with the catalog's digest.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] for a record that does not fit, [`ErrorKind::Diverged`] for a commit whose digest is
    /// another. After an error the fold is good for nothing but to be dropped.
    pub fn record(&mut self, record: &Record<'_>) -> Result<()> {
        self.record_hashed(record, None)
    }

    /// Folds one record; the hashes of a write's blocks are computed unless they are given.
    pub fn record_hashed(&mut self, record: &Record<'_>, hashes: Option<&[u128]>) -> Result<()> {
        match *record {
            Record::Write { id, offset, data } => {
                let before = self.before(id);
                self.write().fold(record)?;
                if !before.hashed {
                    self.learning.remove(&id);
                    return Ok(());
                }
                let (system, first) = (self.read().system(), offset / BLOCK);
                match hashes {
                    Some(h) if h.len() as u64 == blocks_of(data.len() as u64) => {
                        self.put(id, first, h, before)
                    }
                    Some(h) => {
                        let text = format!("{} hashes were given for {} bytes", h.len(), data.len());
                        Err(Error::new(ErrorKind::Corrupt, text))
                    }
                    None => {
                        let computed: Vec<u128> = block_hashes(system, id, first, data).collect();
                        self.put(id, first, &computed, before)
                    }
                }
            }
            Record::Truncate { id, size } => {
                let before = self.before(id);
                self.write().fold(record)?;
                self.truncated(id, size, before)
            }
            Record::Punch { id, offset, len } => {
                self.write().fold(record)?;
                self.punched(id, offset, len)
            }
            Record::Commit(ref commit) => self.commit(commit),
            _ => self.write().fold(record),
        }
    }

    fn before(&self, id: FileId) -> Before {
        let catalog = self.read();
        let inode = catalog.get(id);
        Before {
            blocks: inode.map_or(0, |n| blocks_of(n.size)),
            content: inode.map_or(0, |n| n.content),
            hashed: inode.is_some_and(|n| n.hashed),
        }
    }

    /// Sets hashes of a hashed file whose size the catalog has already changed.
    fn put(&mut self, id: FileId, first: u64, hashes: &[u128], before: Before) -> Result<()> {
        let count = self.before(id).blocks;
        if count <= 1 {
            let content = if first == 0 { hashes.first().copied() } else { None };
            self.write().set_content(id, content.unwrap_or(before.content), true);
            return Ok(());
        }
        if !self.sound(id, before)? {
            return Ok(());
        }
        self.spread(id, before, count)?;
        if self.is_loose(id) {
            return self.blocks.set(id, first, hashes);
        }
        let old = self.blocks.get(id, first, hashes.len())?;
        let sum = old.iter().fold(before.content, |s, &h| s.wrapping_sub(h));
        let sum = hashes.iter().fold(sum, |s, &h| s.wrapping_add(h));
        self.blocks.set(id, first, hashes)?;
        self.write().set_content(id, sum, true);
        Ok(())
    }

    /// A file that grew past its first block gets its hashes in the hash file.
    fn spread(&mut self, id: FileId, before: Before, count: u64) -> Result<()> {
        if before.blocks <= 1 && count > 1 {
            self.blocks.replace(id, &[before.content])?;
        }
        Ok(())
    }

    /// Whether the sum of a file of many blocks is left to [`finish_loose`](Self::finish_loose).
    fn is_loose(&mut self, id: FileId) -> bool {
        self.loose.as_mut().map(|touched| touched.insert(id)).is_some()
    }

    fn truncated(&mut self, id: FileId, size: u64, before: Before) -> Result<()> {
        let count = blocks_of(size);
        self.learning.remove(&id);
        if count == 0 {
            self.blocks.remove(id);
            return Ok(());
        }
        if !before.hashed {
            return Ok(());
        }
        if count >= before.blocks {
            return self.spread(id, before, count);
        }
        if !self.sound(id, before)? {
            return Ok(());
        }
        if count == 1 {
            let content = self.blocks.get(id, 0, 1)?.first().copied().unwrap_or_default();
            self.blocks.shrunk(id);
            self.write().set_content(id, content, true);
            return Ok(());
        }
        if !self.is_loose(id) {
            let gone = self.blocks.sum(id, count, before.blocks)?;
            self.write().set_content(id, before.content.wrapping_sub(gone), true);
        }
        self.blocks.set_len(id, count);
        Ok(())
    }

    fn punched(&mut self, id: FileId, offset: u64, len: u64) -> Result<()> {
        let before = self.before(id);
        let (first, end) = (offset / BLOCK, blocks_of(offset + len).min(before.blocks));
        self.learning.remove(&id);
        if !before.hashed || first >= end {
            return Ok(());
        }
        if before.blocks == 1 {
            self.write().set_content(id, 0, true);
            return Ok(());
        }
        if !self.sound(id, before)? {
            return Ok(());
        }
        if !self.is_loose(id) {
            let gone = self.blocks.sum(id, first, end)?;
            self.write().set_content(id, before.content.wrapping_sub(gone), true);
        }
        self.blocks.clear(id, first, end)
    }

    /// Notes hashes of blocks that no record changes: in place of wrong ones of a hashed file, or of one that is
    /// not hashed, in pieces from block 0 on, which [`finish_hashes`](Self::finish_hashes) ends.
    pub fn set_hashes(&mut self, id: FileId, first: u64, hashes: &[u128]) -> Result<()> {
        let before = self.before(id);
        let room = usize::try_from(before.blocks.saturating_sub(first)).unwrap_or(usize::MAX);
        let hashes = &hashes[..hashes.len().min(room)];
        if before.hashed {
            return if hashes.is_empty() { Ok(()) } else { self.put(id, first, hashes, before) };
        }
        if first == 0 {
            self.blocks.remove(id);
            self.learning.insert(id);
        }
        if self.learning.contains(&id) { self.blocks.set(id, first, hashes) } else { Ok(()) }
    }

    /// The file that was not hashed is now, by the hashes set before. False: a record changed it
    /// meanwhile, so the hashes are of no use.
    pub fn finish_hashes(&mut self, id: FileId) -> Result<bool> {
        let before = self.before(id);
        if before.hashed || !self.learning.remove(&id) {
            return Ok(before.hashed);
        }
        let sum = self.blocks.sum(id, 0, before.blocks)?;
        if before.blocks <= 1 {
            self.blocks.remove(id);
        }
        self.write().set_content(id, sum, true);
        Ok(true)
    }

    /// Notes all hashes of a file that was not hashed. Hashes past the end count for nothing, missing ones are 0.
    pub fn learn(&mut self, id: FileId, hashes: &[u128]) -> Result<()> {
        if self.before(id).hashed {
            return self.set_hashes(id, 0, hashes);
        }
        self.set_hashes(id, 0, hashes)?;
        self.finish_hashes(id).map(drop)
    }

    /// The content of a file is not known any more: its next change ships the whole file.
    pub fn forget_hashes(&mut self, id: FileId) -> Result<()> {
        self.learning.remove(&id);
        if self.before(id).hashed {
            self.blocks.doubt(id)?;
            self.write().set_content(id, 0, false);
        }
        Ok(())
    }

    /// The known hashes of `n` blocks of a file from `first` on; blocks past its end are 0.
    pub fn hashes(&self, id: FileId, first: u64, n: usize) -> Result<Vec<u128>> {
        let before = self.before(id);
        if before.hashed && before.blocks > 1 {
            let known = usize::try_from(before.blocks.saturating_sub(first)).unwrap_or(usize::MAX).min(n);
            let mut out = self.blocks.get(id, first, known)?;
            out.resize(n, 0);
            return Ok(out);
        }
        let mut out = vec![0; n];
        if let (0, Some(slot)) = (first, out.first_mut()) {
            *slot = before.content;
        }
        Ok(out)
    }

    /// Ends a change set: names settle, and the hashes of what is gone go too. Returns the ids that went.
    pub fn settle(&mut self) -> Result<Vec<FileId>> {
        let dropped = self.write().settle()?;
        for &id in &dropped {
            self.blocks.remove(id);
            self.learning.remove(&id);
            self.whole.remove(&id);
            if let Some(touched) = &mut self.loose {
                touched.remove(&id);
            }
        }
        Ok(dropped)
    }

    /// Settles the change set and makes the commit record that ends it.
    pub fn seal(&mut self, cut: Cut, time: i64) -> Result<Commit> {
        self.settle()?;
        let catalog = self.read();
        let Digest { meta, content } = catalog.digest();
        Ok(Commit { cut, partial: catalog.unhashed() > 0, time, meta, content, inodes: catalog.len() as u64 })
    }

    fn commit(&mut self, commit: &Commit) -> Result<()> {
        self.settle()?;
        self.last = Some(*commit);
        self.compare(commit, self.loose.is_none())
    }

    fn compare(&self, commit: &Commit, content: bool) -> Result<()> {
        let catalog = self.read();
        let have = catalog.digest();
        if catalog.len() as u64 != commit.inodes {
            return Err(diverged("the number of inodes", catalog.len(), commit.inodes));
        }
        if have.meta != commit.meta {
            let (have, said) = (format!("{:032x}", have.meta), format!("{:032x}", commit.meta));
            return Err(diverged("the digest of names and attributes", have, said));
        }
        // What is not hashed on either side is in neither sum, but it need not be the same files.
        let whole = !commit.partial && catalog.unhashed() == 0;
        if content && whole && have.content != commit.content {
            let (have, said) = (format!("{:032x}", have.content), format!("{:032x}", commit.content));
            return Err(diverged("the digest of contents", have, said));
        }
        Ok(())
    }

    /// From here on the sums of files of many blocks are not kept, because their hash files may be ahead.
    pub fn begin_loose(&mut self) {
        self.loose.get_or_insert_default();
    }

    /// Computes the sums that were not kept, compares with the last commit, and is strict again.
    ///
    /// # Errors
    /// [`ErrorKind::Diverged`] when the digest is not the last commit's.
    pub fn finish_loose(&mut self) -> Result<()> {
        for id in self.loose.take().unwrap_or_default() {
            let file = self.before(id);
            if file.hashed && file.blocks > 1 {
                let sum = self.blocks.sum(id, 0, file.blocks)?;
                self.write().set_content(id, sum, true);
            }
        }
        self.last.map_or(Ok(()), |commit| self.compare(&commit, true))
    }

    /// [`finish_loose`](Self::finish_loose) for a leader: hashes that don't add up are forgotten, because what
    /// they are of is at hand to be read again.
    ///
    /// # Errors
    /// [`ErrorKind::Diverged`] when names or attributes are not those of the last commit.
    pub fn finish_loose_or_forget(&mut self) -> Result<()> {
        let touched = self.loose.clone().unwrap_or_default();
        match self.finish_loose() {
            Err(e) if e.kind() == ErrorKind::Diverged => {
                tracing::warn!("block hashes are damaged; {} files are read again: {e}", touched.len());
                self.damaged += touched.len() as u64;
                touched.into_iter().try_for_each(|id| self.forget_hashes(id))?;
                self.last.map_or(Ok(()), |commit| self.compare(&commit, true))
            }
            other => other,
        }
    }
}

#[cfg(test)]
mod tests;
