//! Hashes of the blocks of files of more than one block: on disk, so that memory does not grow
//! with the bytes replicated.
//!
//! File `XX/<id>` (16 hexadecimal digits; `XX` are the last two) holds the hash of block `i` as a
//! little-endian u128 at `i * 16`. Blocks of zeros hash to 0, so holes stay holes and what lies beyond
//! the end of the file counts as 0.
//!
//! **What a crash may leave.** Recovery loads the newest checkpoint and folds the log after it, which sets
//! the hash of every block that a record changed. So a hash file may be newer than the checkpoint, but only
//! by changes whose records are durable. Changes are therefore held in memory, and written out when the
//! caller says that the log holds them ([`Blocks::flush`], before each checkpoint). Where too many
//! wait ([`HELD_MAX`]), files that the checkpoint does not know are written out early: a
//! crash makes orphans of them, which are removed at start. If that is not enough, other files are too, after
//! their ids were put down durably in `suspects`: after a crash their contents count as not known. So do those
//! of files whose hashes were forgotten. An id stays in `suspects`, with the number of the checkpoint that knows
//! better, as long as an older one is kept: a recovery may have to begin from that.
//!
//! | size | field of `suspects`, little-endian |
//! | --- | --- |
//! | 8, 8 | for each file its id, and the number of the checkpoint that knows better (`u64::MAX`: none yet) |
//! | 4 | CRC32C of everything before |
//!
//! A file that shrinks to one block keeps its hash file until two checkpoints later: a recovery that begins
//! before, from either of the two that are kept, takes the hash of the block that is left from there.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::codec::{DecodeError, Put, Reader, Seal};
use crate::disk::{self, Note};
use crate::error::{Error, ErrorKind, Result};
use crate::failpoint;
use crate::position::FileId;
use crate::sys;

/// Hash files held open at most.
pub const OPEN_MAX: usize = 64;
/// Hashes held in memory at most, about 5 MB; half of them are written out when there are more.
pub const HELD_MAX: usize = 128 << 10;
/// The limit in force: a low one in unit tests, so that they meet it.
const LIMIT: usize = if cfg!(test) { 5 } else { HELD_MAX };
/// Past so many changed files the whole file system is synced instead of each.
const SYNC_EACH_MAX: usize = 64;
/// Hashes read or written at once.
const RUN_MAX: usize = 4096;
/// Bytes of a hash.
const WIDTH: u64 = 16;
/// Most ids in `suspects`; each stands for a file of many changed blocks.
const SUSPECTS_MAX: usize = 1 << 20;
const SUSPECTS: Seal = Seal {
    name: "list of suspect files",
    magic: b"",
    version: None,
    most: SUSPECTS_MAX as u64 * 16 + 4,
    // Without hashes there is nothing to believe that should not be.
    remedy: "stop the node, remove the directory that holds this file, and start it: contents are read again",
};
/// In place of the number of a checkpoint: none knows of it.
const NOT_YET: u64 = u64::MAX;

/// What a checkpoint needs the hash file of a file for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// The hashes of its many blocks.
    Many,
    /// It has one block or none; only an older checkpoint may need the file.
    One,
    /// Nothing: it does not know the file, or not its content.
    Nothing,
}

/// What waits in memory for one file.
#[derive(Debug)]
struct Held {
    /// What the hash file says from this block on does not count.
    keep: u64,
    blocks: BTreeMap<u64, u128>,
}

impl Held {
    fn new() -> Self {
        Self { keep: u64::MAX, blocks: BTreeMap::new() }
    }
}

#[derive(Debug)]
struct Inner {
    dir: PathBuf,
    /// Where `suspects` are kept.
    note: Note,
    open: HashMap<u64, (File, u64)>,
    tick: u64,
    /// Files that have a hash file.
    on_disk: HashSet<u64>,
    held: HashMap<u64, Held>,
    held_blocks: usize,
    unsynced: HashSet<u64>,
    unsynced_dirs: BTreeSet<u8>,
    /// Ids from here on are not in any checkpoint.
    base_next: u64,
    /// Every change is in the durable log already: writing out early needs no note.
    logged: bool,
    /// Files not to be believed, and the number of the first checkpoint that knows so ([`NOT_YET`]: none does).
    suspects: BTreeMap<u64, u64>,
    /// Files that shrank to one block: since the last checkpoint, before the one under way or the
    /// newest, before the one that it followed.
    small: [HashSet<u64>; 3],
}

/// The block hashes of a node. Clones share them.
#[derive(Debug, Clone)]
pub struct Blocks {
    inner: Arc<Mutex<Inner>>,
}

impl Blocks {
    /// Opens the directory of hash files, making it if need be.
    ///
    /// # Errors
    /// When it cannot be read, or its note of suspect files is damaged.
    pub fn open(dir: &Path) -> Result<Self> {
        disk::create_subdir_durable(dir)?;
        let mut inner = Inner {
            dir: dir.to_owned(),
            note: Note::new(dir, "suspects", ["blocks::suspect", "blocks::after_suspect", "blocks::acquit"]),
            open: HashMap::new(),
            tick: 0,
            on_disk: HashSet::new(),
            held: HashMap::new(),
            held_blocks: 0,
            unsynced: HashSet::new(),
            unsynced_dirs: BTreeSet::new(),
            base_next: 0,
            logged: true,
            suspects: BTreeMap::new(),
            small: Default::default(),
        };
        inner.list()?;
        let decode = |bytes: &[u8]| SUSPECTS.decode(bytes).and_then(take_suspects);
        let suspects = disk::read_sealed(&inner.note.path(), &SUSPECTS, decode)?;
        inner.suspects = suspects.unwrap_or_default();
        Ok(Self { inner: Arc::new(Mutex::new(inner)) })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic elsewhere leaves hashes that the digest check finds out, if they are wrong at all.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The hashes of `n` blocks from `first` on.
    pub fn get(&self, id: FileId, first: u64, n: usize) -> Result<Vec<u128>> {
        let mut out = vec![0; n];
        self.lock().get(id.0, first, &mut out)?;
        Ok(out)
    }

    /// Sets the hashes of the blocks from `first` on.
    pub fn set(&self, id: FileId, first: u64, hashes: &[u128]) -> Result<()> {
        self.lock().set(id.0, first, hashes)
    }

    /// Makes every block from `n` on 0.
    pub fn set_len(&self, id: FileId, n: u64) {
        self.lock().set_len(id.0, n);
    }

    /// Makes blocks `from..to` 0.
    pub fn clear(&self, id: FileId, from: u64, to: u64) -> Result<()> {
        let mut inner = self.lock();
        let mut at = from;
        while let Some((start, end)) = inner.next_known(id.0, at, to)? {
            let n = usize::try_from(end - start).unwrap_or(RUN_MAX).min(RUN_MAX);
            inner.set(id.0, start, &vec![0; n])?;
            at = start + n as u64;
        }
        Ok(())
    }

    /// Forgets all hashes of a file.
    pub fn remove(&self, id: FileId) {
        self.lock().remove(id.0);
    }

    /// Puts the hashes of a whole file in the place of all it had.
    pub fn replace(&self, id: FileId, hashes: &[u128]) -> Result<()> {
        let mut inner = self.lock();
        inner.remove(id.0);
        inner.set(id.0, 0, hashes)
    }

    /// Forgets all hashes of a file though no record says so: after a crash its content counts as not known.
    pub fn doubt(&self, id: FileId) -> Result<()> {
        let mut inner = self.lock();
        if id.0 < inner.base_next && inner.suspects.insert(id.0, NOT_YET) != Some(NOT_YET) {
            inner.save_suspects()?;
        }
        inner.remove(id.0);
        Ok(())
    }

    /// Files whose hashes an earlier run wrote out before the log held them, or forgot: not to be believed.
    #[must_use]
    pub fn suspects(&self) -> Vec<FileId> {
        self.lock().suspects.keys().copied().map(FileId).collect()
    }

    /// Every file was compared since: nothing is suspect any more.
    pub fn acquit(&self) -> Result<()> {
        let mut inner = self.lock();
        if inner.suspects.is_empty() {
            return Ok(());
        }
        inner.suspects.clear();
        inner.save_suspects()
    }

    /// The file has one block or none now; its hash file goes when the next checkpoint is durable.
    pub fn shrunk(&self, id: FileId) {
        let mut inner = self.lock();
        inner.set_len(id.0, 1);
        if inner.on_disk.contains(&id.0) {
            inner.small[0].insert(id.0);
        }
    }

    /// The wrapping sum of the hashes of blocks `from..to`.
    pub fn sum(&self, id: FileId, from: u64, to: u64) -> Result<u128> {
        self.lock().sum(id.0, from, to)
    }

    /// Number of hashes that wait in memory.
    #[must_use]
    pub fn held(&self) -> usize {
        self.lock().held_blocks
    }

    /// Says that everything set is in the durable log when it is set, as on a follower, so that
    /// writing out early needs no note.
    pub fn set_logged(&self, logged: bool) {
        self.lock().logged = logged;
    }

    /// Writes out all that waits. The caller promises that the log durably holds every change made so
    /// far, up to the end of a change set.
    pub fn flush(&self) -> Result<()> {
        let mut inner = self.lock();
        let ids: Vec<u64> = inner.held.keys().copied().collect();
        ids.into_iter().try_for_each(|id| inner.write_out(id))
    }

    /// Makes what was written out durable.
    pub fn sync(&self) -> Result<()> {
        self.sync_above(SYNC_EACH_MAX)
    }

    /// The same with one sync of the whole file system: quicker where it was just synced anyway.
    pub fn sync_together(&self) -> Result<()> {
        self.sync_above(0)
    }

    fn sync_above(&self, most: usize) -> Result<()> {
        let (files, dirs, dir) = {
            let mut inner = self.lock();
            let files: Vec<u64> = std::mem::take(&mut inner.unsynced).into_iter().collect();
            (files, std::mem::take(&mut inner.unsynced_dirs), inner.dir.clone())
        };
        if files.is_empty() && dirs.is_empty() {
            return Ok(());
        }
        failpoint::pass("blocks::sync").map_err(|e| Error::io("sync", &dir, e))?;
        if files.len() + dirs.len() > most {
            let all = File::open(&dir).map_err(|e| Error::io("open", &dir, e))?;
            return rustix::fs::syncfs(&all).map_err(|e| Error::io("sync the file system of", &dir, e));
        }
        for id in files {
            let path = path_of(&dir, id);
            match File::open(&path) {
                Ok(file) => file.sync_data().map_err(|e| Error::io("sync", &path, e))?,
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(Error::io("open", &path, e)),
            }
        }
        for sub in dirs {
            disk::sync_dir(&dir.join(format!("{sub:02x}")))?;
        }
        disk::sync_dir(&dir)
    }

    /// Begins from the checkpoint `number`: files from `next` on are not in it, and until
    /// [`set_logged`](Self::set_logged) says otherwise changes may be ahead of the log. Hash files that the
    /// checkpoint has no use for are removed. Returns the files whose content is not to be believed.
    pub fn begin(&self, number: u64, next: FileId, need: impl Fn(FileId) -> Need) -> Result<Vec<FileId>> {
        let mut inner = self.lock();
        (inner.base_next, inner.logged) = (next.0, false);
        let mut doubtful = Vec::new();
        for (id, known) in &mut inner.suspects {
            if *known > number {
                // What is forgotten now is news to every checkpoint there is.
                *known = NOT_YET;
                doubtful.push(FileId(*id));
            }
        }
        let stored: Vec<u64> = inner.on_disk.iter().copied().collect();
        for id in stored {
            let doubted = inner.suspects.get(&id) == Some(&NOT_YET);
            match need(FileId(id)) {
                Need::Many if !doubted => {}
                Need::One if !doubted => {
                    inner.small[0].insert(id);
                }
                _ => inner.unlink(id)?,
            }
        }
        Ok(doubtful)
    }

    /// The checkpoint `number`, that knows ids below `next`, is about to be written; everything was flushed.
    pub fn checkpoint_begins(&self, number: u64, next: FileId) {
        let mut inner = self.lock();
        inner.base_next = next.0;
        inner.suspects.values_mut().filter(|known| **known == NOT_YET).for_each(|known| *known = number);
        let [now, newest, _] = &mut inner.small;
        newest.extend(now.drain());
    }

    /// That checkpoint is durable, and the oldest that is kept beside it is number `oldest`.
    pub fn checkpoint_done(&self, oldest: u64) -> Result<()> {
        let mut inner = self.lock();
        if !inner.suspects.is_empty() {
            inner.suspects.retain(|_, known| *known > oldest);
            inner.save_suspects()?;
        }
        let [_, newest, before] = &mut inner.small;
        for id in std::mem::replace(before, std::mem::take(newest)) {
            inner.unlink(id)?;
        }
        Ok(())
    }
}

fn path_of(dir: &Path, id: u64) -> PathBuf {
    dir.join(format!("{:02x}", id & 0xFF)).join(format!("{id:016x}"))
}

impl Inner {
    fn list(&mut self) -> Result<()> {
        for sub in 0..=0xFF_u8 {
            let dir = self.dir.join(format!("{sub:02x}"));
            let entries = match fs::read_dir(&dir) {
                Ok(entries) => entries,
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => return Err(Error::io("list", &dir, e)),
            };
            for entry in entries {
                let name = entry.map_err(|e| Error::io("list", &dir, e))?.file_name();
                let id =
                    name.to_str().filter(|n| n.len() == 16).and_then(|n| u64::from_str_radix(n, 16).ok());
                if let Some(id) = id.filter(|&id| path_of(&self.dir, id) == dir.join(&name)) {
                    self.on_disk.insert(id);
                }
            }
        }
        Ok(())
    }

    fn save_suspects(&self) -> Result<()> {
        if self.suspects.is_empty() {
            return self.note.remove();
        }
        self.note.write(&put_suspects(&self.suspects))
    }

    /// The open hash file; `create` makes one that is not there.
    fn file(&mut self, id: u64, create: bool) -> Result<Option<&File>> {
        self.tick += 1;
        if !self.open.contains_key(&id) {
            if !create && !self.on_disk.contains(&id) {
                return Ok(None);
            }
            if self.open.len() >= OPEN_MAX {
                let oldest = self.open.iter().min_by_key(|(_, (_, tick))| *tick).map(|(&id, _)| id);
                oldest.and_then(|id| self.open.remove(&id));
            }
            let path = path_of(&self.dir, id);
            let mut options = OpenOptions::new();
            options.read(true).write(true).mode(0o600).create(create);
            let mut opened = options.open(&path);
            if create && opened.as_ref().is_err_and(|e| e.kind() == io::ErrorKind::NotFound) {
                if let Some(dir) = path.parent() {
                    disk::create_subdir_durable(dir)?;
                }
                opened = options.open(&path);
            }
            let file = opened.map_err(|e| Error::io("open", &path, e))?;
            if self.on_disk.insert(id) {
                self.unsynced_dirs.insert(id.to_le_bytes()[0]);
            }
            self.open.insert(id, (file, 0));
        }
        let tick = self.tick;
        Ok(self.open.get_mut(&id).map(|(file, used)| {
            *used = tick;
            &*file
        }))
    }

    /// Reads from the hash file; what is not there is 0.
    fn read(&mut self, id: u64, first: u64, out: &mut [u128]) -> Result<()> {
        let path = path_of(&self.dir, id);
        let Some(file) = self.file(id, false)? else { return Ok(()) };
        let mut buffer = vec![0_u8; out.len().min(RUN_MAX) * 16];
        let mut at = first;
        for part in out.chunks_mut(RUN_MAX) {
            let bytes = &mut buffer[..part.len() * 16];
            let got = sys::read_at(file, bytes, at.saturating_mul(WIDTH))
                .map_err(|e| Error::io("read", &path, e))?;
            let (hashes, _) = bytes[..got].as_chunks::<16>();
            for (hash, bytes) in part.iter_mut().zip(hashes) {
                *hash = u128::from_le_bytes(*bytes);
            }
            at += part.len() as u64;
        }
        Ok(())
    }

    fn get(&mut self, id: u64, first: u64, out: &mut [u128]) -> Result<()> {
        let keep = self.held.get(&id).map_or(u64::MAX, |h| h.keep);
        let kept = usize::try_from(keep.saturating_sub(first)).unwrap_or(usize::MAX).min(out.len());
        if kept > 0 {
            self.read(id, first, &mut out[..kept])?;
        }
        if let Some(held) = self.held.get(&id) {
            let end = first.saturating_add(out.len() as u64);
            for (&index, &hash) in held.blocks.range(first..end) {
                if let Some(slot) = usize::try_from(index - first).ok().and_then(|i| out.get_mut(i)) {
                    *slot = hash;
                }
            }
        }
        Ok(())
    }

    fn set(&mut self, id: u64, first: u64, hashes: &[u128]) -> Result<()> {
        let held = self.held.entry(id).or_insert_with(Held::new);
        let before = held.blocks.len();
        for (index, &hash) in (first..).zip(hashes) {
            // Where the hash file does not count, 0 is what is there already.
            if hash == 0 && index >= held.keep {
                held.blocks.remove(&index);
            } else {
                held.blocks.insert(index, hash);
            }
        }
        self.held_blocks = self.held_blocks + held.blocks.len() - before;
        self.needed(id);
        if self.held_blocks > LIMIT { self.spill() } else { Ok(()) }
    }

    fn set_len(&mut self, id: u64, n: u64) {
        if !self.on_disk.contains(&id) && !self.held.contains_key(&id) {
            return;
        }
        let held = self.held.entry(id).or_insert_with(Held::new);
        let cut = held.blocks.split_off(&n);
        held.keep = held.keep.min(n);
        self.held_blocks -= cut.len();
    }

    fn remove(&mut self, id: u64) {
        self.set_len(id, 0);
        self.needed(id);
    }

    /// The hash file is in use again, or is about to go by itself.
    fn needed(&mut self, id: u64) {
        for small in &mut self.small {
            small.remove(&id);
        }
    }

    fn sum(&mut self, id: u64, from: u64, to: u64) -> Result<u128> {
        let mut sum = 0_u128;
        let mut buffer = vec![0_u128; RUN_MAX];
        let mut at = from;
        while let Some((start, end)) = self.next_known(id, at, to)? {
            let n = usize::try_from(end - start).unwrap_or(RUN_MAX).min(RUN_MAX);
            let part = &mut buffer[..n];
            part.fill(0);
            self.get(id, start, part)?;
            sum = part.iter().fold(sum, |s, &h| s.wrapping_add(h));
            at = start + n as u64;
        }
        Ok(sum)
    }

    /// The next run of blocks in `at..to` that may not be 0, so that a sum skips holes.
    fn next_known(&mut self, id: u64, at: u64, to: u64) -> Result<Option<(u64, u64)>> {
        if at >= to {
            return Ok(None);
        }
        let keep = self.held.get(&id).map_or(u64::MAX, |h| h.keep).min(to);
        let held = self.held.get(&id).and_then(|h| h.blocks.range(at..to).next()).map(|(&i, _)| (i, i + 1));
        let path = path_of(&self.dir, id);
        let mut stored = None;
        if at < keep
            && let Some(file) = self.file(id, false)?
        {
            let failed = |e: io::Error| Error::io("read", &path, e);
            let size = file.metadata().map_err(failed)?.len();
            let data = sys::next_data(file, at.saturating_mul(WIDTH), size).map_err(failed)?;
            stored = data.map(|(s, e)| (s / WIDTH, e.div_ceil(WIDTH).min(keep))).filter(|(s, e)| s < e);
        }
        Ok(match (held, stored) {
            (Some(h), Some(s)) if h.0 < s.0 => Some((h.0, h.1)),
            (_, Some(s)) => Some(s),
            (h, None) => h,
        })
    }

    /// Writes out the files that hold most, until half of the limit is free.
    fn spill(&mut self) -> Result<()> {
        let mut order: Vec<(usize, u64)> = self.held.iter().map(|(&id, h)| (h.blocks.len(), id)).collect();
        order.sort_unstable_by(|a, b| b.cmp(a));
        let (mut out, mut left) = (Vec::new(), self.held_blocks);
        for (n, id) in order {
            if left <= LIMIT / 2 {
                break;
            }
            left -= n;
            out.push(id);
        }
        let mut noted = false;
        for &id in out.iter().filter(|&&id| !self.logged && id < self.base_next) {
            noted |= self.suspects.insert(id, NOT_YET) != Some(NOT_YET);
        }
        if self.suspects.len() > SUSPECTS_MAX {
            return Err(Error::new(
                ErrorKind::Refused,
                format!(
                    "more than {SUSPECTS_MAX} large files changed since the last checkpoint; set a shorter \
                     checkpoint_interval or smaller checkpoint_bytes"
                ),
            ));
        }
        if noted {
            self.save_suspects()?;
        }
        out.into_iter().try_for_each(|id| self.write_out(id))
    }

    fn write_out(&mut self, id: u64) -> Result<()> {
        let Some(held) = self.held.remove(&id) else { return Ok(()) };
        self.held_blocks -= held.blocks.len();
        if held.blocks.is_empty() && (held.keep == 0 || !self.on_disk.contains(&id)) {
            return self.unlink(id);
        }
        let path = path_of(&self.dir, id);
        let Some(file) = self.file(id, true)? else { return Ok(()) };
        write_held(file, &held).map_err(|e| Error::io("write", &path, e))?;
        self.unsynced.insert(id);
        Ok(())
    }

    fn unlink(&mut self, id: u64) -> Result<()> {
        self.open.remove(&id);
        if !self.on_disk.remove(&id) {
            return Ok(());
        }
        self.unsynced.remove(&id);
        self.unsynced_dirs.insert(id.to_le_bytes()[0]);
        let path = path_of(&self.dir, id);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", &path, e)),
            _ => Ok(()),
        }
    }
}

fn put_suspects(suspects: &BTreeMap<u64, u64>) -> Vec<u8> {
    SUSPECTS.encode(|out| {
        for (&id, &known) in suspects {
            out.put_u64(id);
            out.put_u64(known);
        }
    })
}

fn take_suspects(mut r: Reader<'_>) -> std::result::Result<BTreeMap<u64, u64>, DecodeError> {
    let mut suspects = BTreeMap::new();
    while !r.rest().is_empty() {
        suspects.insert(r.u64("file id")?, r.u64("number of a checkpoint")?);
    }
    Ok(suspects)
}

fn write_held(file: &File, held: &Held) -> io::Result<()> {
    failpoint::pass("blocks::write")?;
    let kept = held.keep.saturating_mul(WIDTH);
    if file.metadata()?.len() > kept {
        file.set_len(kept)?;
    }
    let mut run: Vec<u8> = Vec::new();
    let (mut start, mut next) = (0, 0);
    for (&index, &hash) in &held.blocks {
        if index != next || run.len() >= RUN_MAX * 16 {
            sys::write_at(file, &run, start * WIDTH)?;
            run.clear();
            start = index;
        }
        run.extend_from_slice(&hash.to_le_bytes());
        next = index + 1;
    }
    sys::write_at(file, &run, start * WIDTH)
}

#[cfg(test)]
mod tests;
