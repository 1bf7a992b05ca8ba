//! Contents: stat, read, stat; compare block hashes; stage only what differs.

use std::os::fd::OwnedFd;

use rustix::fs::OFlags;

use super::pass::{Pass, gone};
use super::stage::{Node, Staged};
use super::watch;
use crate::catalog::{Seen, block_hashes, blocks_of};
use crate::error::{Error, Result};
use crate::position::FileId;
use crate::record::{BLOCK, Record, WRITE_MAX};
use crate::sys::{self, Stat};

/// Up to this size a file is read again whenever its ctime moved; a larger one only when its data may have changed.
const SMALL: u64 = 1 << 20;

/// A file being compared.
struct Reading<'a> {
    id: FileId,
    fd: &'a OwnedFd,
    /// Size at the first stat: what is read.
    size: u64,
    /// Size the follower has at this point of the record stream.
    follower_size: u64,
    /// Blocks below this have hashes that can be compared; the others are zero or unknown there.
    known: u64,
    /// This block is shipped whatever its hash (a cut tail).
    tail: Option<u64>,
}

impl Pass<'_> {
    /// Stages what changed of a file's content.
    #[allow(clippy::too_many_arguments, reason = "one call site; they are the parts of one observation")]
    pub(super) fn content(
        &mut self,
        dir: &OwnedFd,
        name: &[u8],
        path: &[u8],
        id: FileId,
        stat: &Stat,
        flag: u8,
        fresh: bool,
    ) -> Result<()> {
        let Some(node) = ({
            let catalog = self.read();
            self.stage.node(&catalog, id)
        }) else {
            return Ok(());
        };
        if stat.nlink as usize > self.names_known(id) || flag & watch::DATA != 0 {
            self.notes.hot.push(path.to_vec());
        }
        let forced = self.forced.contains_key(&id);
        if !fresh && !forced && !self.suspicious && self.clean(&node, stat, flag) {
            self.stage.set_node(id, Node { seen: Some(seen_now(stat)), ..node });
            return Ok(());
        }
        if self.base {
            return self.base_content(id, stat, node);
        }
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOATIME;
        let fd = match sys::open_beneath(std::os::fd::AsFd::as_fd(dir), name, flags, 0).or_else(|e| {
            // NOATIME is for owners only.
            if e.raw_os_error() == Some(nix::errno::Errno::EPERM as i32) {
                sys::open_beneath(std::os::fd::AsFd::as_fd(dir), name, OFlags::RDONLY | OFlags::NONBLOCK, 0)
            } else {
                Err(e)
            }
        }) {
            Ok(fd) => fd,
            Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => {
                self.notes.unreadable = Some(String::from_utf8_lossy(path).into_owned());
                return Ok(());
            }
            Err(e) => {
                return gone(e)
                    .map(|_: Option<()>| ())
                    .map_err(|e| Error::io("open", self.root.join(path), e));
            }
        };
        let before = sys::stat_fd(&fd).map_err(|e| Error::io("stat", self.root.join(path), e))?;
        if before.local != stat.local {
            self.unstable.insert(path.to_vec());
            return Ok(());
        }
        let size = self.compare(&fd, id, &before, node)?;
        let after = sys::stat_fd(&fd).map_err(|e| Error::io("stat", self.root.join(path), e))?;
        let stable =
            (after.size, after.attrs.mtime, after.ctime) == (before.size, before.attrs.mtime, before.ctime);
        if !stable {
            self.unstable.insert(path.to_vec());
        }
        if before.attrs != stat.attrs {
            self.keep(&Record::Attr { id, attrs: before.attrs })?;
        }
        let seen = Seen { racy: !stable || racy(&before), ..seen_now(&before) };
        self.stage.set_node(
            id,
            Node { size, attrs: before.attrs, seen: Some(seen), hashed: true, kind: node.kind },
        );
        Ok(())
    }

    fn names_known(&self, id: FileId) -> usize {
        let catalog = self.read();
        let known = catalog.names(id).count();
        drop(catalog);
        known.max(1)
    }

    /// Whether the stamps prove that the content is what the catalog says.
    fn clean(&self, node: &Node, stat: &Stat, flag: u8) -> bool {
        let Some(seen) = node.seen else { return false };
        let same = seen.local == stat.local && node.size == stat.size && node.attrs.mtime == stat.attrs.mtime;
        if !same || seen.racy {
            return false;
        }
        // With an equal ctime nothing was written; a moved one may be a rename or chmod, or a write with the mtime
        // set back: that one comes with a data hint, or is found by the scrub.
        seen.ctime == stat.ctime || (flag & watch::DATA == 0 && stat.size > SMALL && flag != 0)
    }

    /// First scan: the size is enough, the content is hashed later.
    fn base_content(&mut self, id: FileId, stat: &Stat, node: Node) -> Result<()> {
        if stat.size > 0 {
            self.stage.keep(&Record::Truncate { id, size: stat.size });
            self.stage.records.push(Staged::Unhashed(id));
        }
        let seen = Some(seen_now(stat));
        self.stage.set_node(id, Node { size: stat.size, seen, hashed: stat.size == 0, ..node });
        Ok(())
    }

    /// Reads a file as long as `stat` says and stages the blocks that differ. Returns the size staged.
    fn compare(&mut self, fd: &OwnedFd, id: FileId, stat: &Stat, node: Node) -> Result<u64> {
        let (mut follower_size, mut known, mut tail) = (node.size, blocks_of(node.size), None);
        let size = stat.size;
        if !node.hashed {
            // What the follower holds is not known here: it starts again from nothing.
            self.keep(&Record::Truncate { id, size: 0 })?;
            (follower_size, known) = (0, 0);
        } else if size < node.size {
            self.keep(&Record::Truncate { id, size })?;
            follower_size = size;
            known = blocks_of(size);
            tail = (size % BLOCK != 0).then_some(size / BLOCK);
        }
        let mut reading = Reading { id, fd, size, follower_size, known, tail };
        let mut at = 0;
        while let Some((start, end)) =
            sys::next_data(fd, at, size).map_err(|e| Error::io("read", self.root.path(), e))?
        {
            let start = (start / BLOCK * BLOCK).max(at);
            self.zero_range(&mut reading, at, start)?;
            let end = end.next_multiple_of(BLOCK).min(size.next_multiple_of(BLOCK));
            self.data_range(&mut reading, start, end)?;
            at = end;
        }
        self.zero_range(&mut reading, at, size.next_multiple_of(BLOCK))?;
        if reading.follower_size != size {
            self.keep(&Record::Truncate { id, size })?;
        }
        self.forced.remove(&id);
        Ok(size)
    }

    /// Blocks `[from, to)` are a hole here: punch those that are not zero there.
    fn zero_range(&mut self, r: &mut Reading<'_>, from: u64, to: u64) -> Result<()> {
        let (mut first, end) = (from / BLOCK, (to / BLOCK).min(r.known));
        let forced: Vec<u64> =
            self.forced.get(&r.id).map(|b| b.iter().copied().collect()).unwrap_or_default();
        while first < end {
            let count = (end - first).min(4096);
            let known = self.known(r.id, first, count)?;
            for (i, hash) in known.iter().enumerate() {
                let block = first + i as u64;
                if *hash != 0 || forced.contains(&block) || r.tail == Some(block) {
                    self.punch(r.id, block)?;
                }
            }
            first += count;
        }
        Ok(())
    }

    fn punch(&mut self, id: FileId, block: u64) -> Result<()> {
        self.keep(&Record::Punch { id, offset: block * BLOCK, len: BLOCK })?;
        self.stage.set_hash(id, block, 0);
        self.notes.changes += 1;
        Ok(())
    }

    /// The hashes of blocks as this pass would leave them.
    fn known(&self, id: FileId, first: u64, count: u64) -> Result<Vec<u128>> {
        let n = usize::try_from(count).unwrap_or(usize::MAX);
        let mut known = if self.stage.is_new(id) {
            vec![0; n]
        } else {
            let fold = self.fold.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            fold.hashes(id, first, n)?
        };
        for (i, hash) in known.iter_mut().enumerate() {
            if let Some(staged) = self.stage.hash(id, first + i as u64) {
                *hash = staged;
            }
        }
        Ok(known)
    }

    /// Reads `[from, to)` in pieces and stages runs of differing blocks.
    fn data_range(&mut self, r: &mut Reading<'_>, from: u64, to: u64) -> Result<()> {
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.resize(WRITE_MAX, 0);
        let mut at = from;
        let mut result = Ok(());
        while at < to && result.is_ok() {
            let want = usize::try_from((to - at).min(WRITE_MAX as u64)).unwrap_or(WRITE_MAX);
            let got = match sys::read_at(r.fd, &mut buffer[..want], at) {
                Ok(n) => n,
                Err(e) => {
                    result = Err(Error::io("read", self.root.path(), e));
                    break;
                }
            };
            // A file that shrank meanwhile is looked at again; what is missing counts as zeros.
            buffer[got..want].fill(0);
            result = self.piece(r, at, &buffer[..want]);
            at += want as u64;
        }
        self.buffer = buffer;
        result
    }

    fn piece(&mut self, r: &mut Reading<'_>, at: u64, data: &[u8]) -> Result<()> {
        let first = at / BLOCK;
        let data = &data[..data.len().min(usize::try_from(r.size - at).unwrap_or(usize::MAX))];
        let system = self.read().system();
        let hashes: Vec<u128> = block_hashes(system, r.id, first, data).collect();
        let known = if first < r.known || self.stage.hash(r.id, first).is_some() {
            self.known(r.id, first, hashes.len() as u64)?
        } else {
            vec![0; hashes.len()]
        };
        let differs = |pass: &Self, i: usize| {
            let block = first + i as u64;
            let forced = pass.forced.get(&r.id).is_some_and(|b| b.contains(&block));
            hashes[i] != known[i] || forced || r.tail == Some(block)
        };
        let mut i = 0;
        while i < hashes.len() {
            if !differs(self, i) {
                i += 1;
                continue;
            }
            if hashes[i] == 0 {
                if first + (i as u64) < r.known || known[i] != 0 {
                    self.punch(r.id, first + i as u64)?;
                }
                i += 1;
                continue;
            }
            let begin = i;
            while i < hashes.len() && hashes[i] != 0 && differs(self, i) {
                i += 1;
            }
            let block = usize::try_from(BLOCK).unwrap_or(usize::MAX);
            let bytes = &data[begin * block..(i * block).min(data.len())];
            let offset = (first + begin as u64) * BLOCK;
            for (n, hash) in hashes[begin..i].iter().enumerate() {
                self.stage.set_hash(r.id, first + (begin + n) as u64, *hash);
            }
            self.keep_write(r.id, offset, bytes, hashes[begin..i].to_vec())?;
            r.follower_size = r.follower_size.max(offset + bytes.len() as u64);
            self.notes.changes += 1;
        }
        Ok(())
    }
}

/// The stamps of a stat.
pub(super) fn seen_now(stat: &Stat) -> Seen {
    Seen { local: stat.local, ctime: stat.ctime, racy: false }
}

/// Whether a change could hide behind these stamps: they are younger than two clock ticks of 10 ms.
fn racy(stat: &Stat) -> bool {
    let now = crate::net::wall_clock();
    let ns = |t: crate::record::Time| t.sec.saturating_mul(1_000_000_000).saturating_add(i64::from(t.nsec));
    let youngest = ns(stat.attrs.mtime).max(ns(stat.ctime));
    now.saturating_sub(youngest) < 20_000_000
}
