//! Reading behind the first scan: contents that are not hashed yet are read at a bounded rate, a slice
//! at a time between passes, so that a small change never waits for it.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use crate::catalog::{Catalog, Seen, block_hashes};
use crate::position::FileId;
use crate::record::BLOCK;
use crate::sys::{self, Root, Stat};

/// Read at one time.
const SLICE: usize = 1 << 20;

/// A file whose content was read completely while its stamps stood still.
pub(super) struct Learned {
    pub(super) id: FileId,
    pub(super) seen: Seen,
    pub(super) hashes: Vec<u128>,
}

struct Reading {
    id: FileId,
    fd: OwnedFd,
    stat: Stat,
    at: u64,
    hashes: Vec<u128>,
}

/// The background reader.
pub(super) struct Hashing {
    rate: u64,
    queue: Vec<FileId>,
    reading: Option<Reading>,
    next: Instant,
}

impl Hashing {
    pub(super) fn new(rate: u64) -> Self {
        Self { rate: rate.max(1), queue: Vec::new(), reading: None, next: Instant::now() }
    }

    /// When the next slice may be read; `None`: there is nothing to read.
    pub(super) fn due(&self, catalog: &Catalog) -> Option<Duration> {
        (catalog.unhashed() > 0).then(|| self.next.saturating_duration_since(Instant::now()))
    }

    /// Reads one slice. A file that changes or vanishes meanwhile is left to the passes or the next round.
    pub(super) fn slice(&mut self, root: &Root, catalog: &Catalog, buffer: &mut Vec<u8>) -> Option<Learned> {
        if self.reading.is_none() {
            self.open_next(root, catalog);
        }
        let mut reading = self.reading.take()?;
        buffer.resize(SLICE, 0);
        let got = sys::read_at(&reading.fd, buffer, reading.at).ok()?;
        let data = &buffer[..got];
        reading.hashes.extend(block_hashes(catalog.system(), reading.id, reading.at / BLOCK, data));
        reading.at += got as u64;
        let pause = Duration::from_secs_f64(got as f64 / self.rate as f64);
        self.next = Instant::now() + pause;
        if got == SLICE && reading.at < reading.stat.size {
            self.reading = Some(reading);
            return None;
        }
        let after = sys::stat_fd(&reading.fd).ok()?;
        let still = (after.size, after.attrs.mtime, after.ctime)
            == (reading.stat.size, reading.stat.attrs.mtime, reading.stat.ctime);
        let whole = reading.at == reading.stat.size;
        (still && whole).then(|| Learned {
            id: reading.id,
            seen: super::content::seen_now(&after),
            hashes: reading.hashes,
        })
    }

    fn open_next(&mut self, root: &Root, catalog: &Catalog) {
        if self.queue.is_empty() {
            self.queue = catalog.inodes().filter(|n| !n.hashed).map(|n| n.id).collect();
            self.queue.sort_unstable_by(|a, b| b.cmp(a));
        }
        while let Some(id) = self.queue.pop() {
            let Some(inode) = catalog.get(id).filter(|n| !n.hashed) else { continue };
            let Some(path) = catalog.path(id) else { continue };
            let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::NONBLOCK;
            let Ok(fd) = root.open_beneath(&path, flags, 0) else { continue };
            let Ok(stat) = sys::stat_fd(&fd) else { continue };
            if inode.seen.is_some_and(|s| s.local == stat.local && s.ctime == stat.ctime)
                && inode.size == stat.size
            {
                self.reading = Some(Reading { id, fd, stat, at: 0, hashes: Vec::new() });
                return;
            }
        }
        // Everything left is changing or out of reach: look again later.
        self.next = Instant::now() + Duration::from_secs(1);
    }
}
