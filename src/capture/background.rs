//! What runs behind the passes at a bounded rate: reading the contents that the first scan did not read,
//! and comparing contents with their hashes (the scrub). It changes nothing; the engine takes
//! what it finds, if the file is still what it was.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

use super::content::open_path;
use super::engine::read;
use super::scan::Scanner;
use crate::catalog::{Seen, block_hashes, blocks_of};
use crate::error::{Error, Result};
use crate::position::{FileId, SystemId};
use crate::record::{BLOCK, Kind};
use crate::sys::{self, Stat, vital};

/// Read at one time.
const PIECE: usize = 1 << 20;
/// The scrub reads at one part in this many of the rate, and has at most one part in [`SCRUB_TIME`] of a core.
const SCRUB_SHARE: u64 = 32;
const SCRUB_TIME: u32 = 4000;
/// What it spends beyond that it waits, for the disk or for its turn; at most one part in so many of the time.
const SCRUB_WAIT: u32 = 100;
/// What was ordered is compared at the whole rate, and in one part in so many of the time.
const SOON_TIME: u32 = 19;
/// Most orders that wait; the scrub finds what is beyond.
const SOON_MAX: usize = 10_000;
/// Pauses shorter than this are saved up.
const PAUSE_MIN: Duration = Duration::from_millis(10);
/// Findings that wait for the engine.
const FOUND_MAX: usize = 64;
/// Before looking for work again when there was none.
const NAP: Duration = Duration::from_millis(500);
/// After a whole scrub.
const SCRUB_REST: Duration = Duration::from_secs(600);

/// What was found.
pub(super) enum Found {
    /// Hashes of a file that is not hashed, from block `first` on.
    Piece { id: FileId, seen: Seen, first: u64, hashes: Vec<u128> },
    /// That file was read to its end, and stood still.
    Whole { id: FileId, seen: Seen },
    /// A file of one block that is not hashed has this hash.
    Small { id: FileId, seen: Seen, sum: u128 },
    /// The content of a file is not what its hashes say, though its stamps say so.
    Differs { id: FileId },
}

/// Orders to the background thread.
pub(super) enum Order {
    /// Compare the content of this file soon.
    Scrub(FileId),
    /// Read at this rate from now on.
    Rate(u64),
}

/// The thread.
pub(super) struct Background {
    pub(super) found: Receiver<Found>,
    orders: Option<SyncSender<Order>>,
    thread: Option<JoinHandle<()>>,
}

impl Background {
    /// Starts it.
    pub(super) fn start(scanner: Scanner, system: SystemId, rate: u64) -> Result<Self> {
        let (tx, found) = sync_channel(FOUND_MAX);
        let (orders, rx) = sync_channel(FOUND_MAX);
        let soon = VecDeque::new();
        let mut worker = Worker {
            scanner,
            system,
            rate: rate.max(1),
            found: tx,
            orders: rx,
            buffer: vec![0; PIECE],
            soon,
            in_order: false,
            cursor: FileId(0),
            debt: Duration::ZERO,
            scrub_at: Instant::now(),
        };
        let thread = std::thread::Builder::new()
            .name("capture-reader".to_owned())
            .spawn(vital::thread("the thread that reads contents", move || worker.run()))
            .map_err(|e| Error::from(e).wrap("cannot start the thread that reads contents"))?;
        Ok(Self { found, orders: Some(orders), thread: Some(thread) })
    }

    /// Gives an order; false when too many wait.
    pub(super) fn order(&self, order: Order) -> bool {
        self.orders.as_ref().is_some_and(|o| !matches!(o.try_send(order), Err(TrySendError::Full(_))))
    }

    /// Waits for the thread; it was told to stop.
    pub(super) fn join(&mut self) {
        self.orders = None;
        // A full channel must not hold it.
        while self.found.try_recv().is_ok() {}
        if let Some(thread) = self.thread.take() {
            while !thread.is_finished() {
                while self.found.try_recv().is_ok() {}
                std::thread::sleep(Duration::from_millis(1));
            }
            let _ = thread.join();
        }
    }
}

/// Time that went by on a thread, and how much of it the thread worked.
#[derive(Clone, Copy, Debug)]
struct Spent {
    whole: Duration,
    worked: Duration,
}

impl Spent {
    /// Up to now since this instant, of both clocks.
    fn since((began, worked): (Instant, Duration)) -> Self {
        Self { whole: began.elapsed(), worked: thread_time().saturating_sub(worked) }
    }

    /// How long to rest for it. A machine that has other things to do may let the thread stand for long: that is not
    /// its work, and if it were multiplied like that the scrub would never come to an end.
    fn pause(self, bytes: u64, rate: u64, share: u32) -> Duration {
        let by_rate = Duration::from_secs_f64(bytes as f64 / rate as f64);
        let by_share = (self.worked * share).max(self.whole * share.min(SCRUB_WAIT));
        by_rate.max(by_share).saturating_sub(self.whole)
    }
}

/// Both clocks of this thread.
fn clocks() -> (Instant, Duration) {
    (Instant::now(), thread_time())
}

/// How long this thread has worked.
fn thread_time() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap_or_default()
}

struct Worker {
    scanner: Scanner,
    system: SystemId,
    rate: u64,
    found: SyncSender<Found>,
    orders: Receiver<Order>,
    buffer: Vec<u8>,
    soon: VecDeque<FileId>,
    /// What was ordered is being compared.
    in_order: bool,
    /// Where the scrub is.
    cursor: FileId,
    /// How long to sleep for what was read.
    debt: Duration,
    scrub_at: Instant,
}

impl Worker {
    fn stopping(&self) -> bool {
        self.scanner.stop.load(Ordering::Relaxed)
    }

    fn run(&mut self) {
        while !self.stopping() {
            while let Ok(order) = self.orders.try_recv() {
                self.take(order);
            }
            if read(&self.scanner.catalog).unhashed() > 0 {
                if !self.hash_all() {
                    self.nap(NAP);
                }
            } else if !self.soon.is_empty() {
                self.scrub_soon();
            } else if Instant::now() >= self.scrub_at {
                self.scrub_next();
            } else {
                self.nap(NAP);
            }
        }
    }

    /// Sleeps; an order is taken at once, and the end of capture ends it.
    fn nap(&mut self, time: Duration) {
        let end = Instant::now() + time;
        while !self.stopping() {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            match self.orders.recv_timeout(left) {
                Ok(order) => self.take(order),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn take(&mut self, order: Order) {
        match order {
            Order::Scrub(id) if self.soon.len() < SOON_MAX => self.soon.push_back(id),
            Order::Scrub(_) => {}
            Order::Rate(rate) => self.rate = rate.max(1),
        }
    }

    /// Reads every file that is not hashed. False: none could be.
    fn hash_all(&mut self) -> bool {
        let mut ids: Vec<FileId> =
            read(&self.scanner.catalog).inodes().filter(|n| !n.hashed).map(|n| n.id).collect();
        ids.sort_unstable();
        let mut some = false;
        for id in ids {
            if self.stopping() {
                return true;
            }
            some |= self.hash(id).is_some();
        }
        some
    }

    /// Notes that something took a while: `share` times as long as it worked is slept, and as the rate says.
    fn owe(&mut self, took: Spent, bytes: u64, rate: u64, share: u32) {
        self.debt += took.pause(bytes, rate, share);
    }

    /// Sleeps for the pauses that were saved up.
    fn pay(&mut self) {
        if self.debt >= PAUSE_MIN {
            let debt = std::mem::take(&mut self.debt);
            self.nap(debt);
        }
    }

    /// Opens a file that is as the catalog has seen it.
    fn open(&self, id: FileId) -> Option<(std::os::fd::OwnedFd, Stat, Seen)> {
        let (path, seen, size) = {
            let catalog = read(&self.scanner.catalog);
            let inode = catalog.get(id).filter(|n| n.kind == Kind::File)?;
            (catalog.path(id)?, inode.seen?, inode.size)
        };
        let fd = open_path(&self.scanner.root, &path).ok()?;
        let stat = sys::stat_fd(&fd).ok()?;
        let same = stat.local == seen.local && stat.ctime == seen.ctime && stat.size == size && !seen.racy;
        same.then_some((fd, stat, seen))
    }

    /// Reads a file in pieces; false when it changed meanwhile or can't be read.
    fn read_all(
        &mut self,
        fd: &std::os::fd::OwnedFd,
        stat: &Stat,
        (rate, share): (u64, u32),
        mut each: impl FnMut(&mut Self, u64, &[u8]) -> Option<()>,
    ) -> Option<()> {
        let mut at = 0;
        // Waits for a write that is under way, see `content`.
        sys::next_data(fd, 0, stat.size).ok()?;
        while at < stat.size {
            if self.stopping() {
                return None;
            }
            let began = clocks();
            let mut buffer = std::mem::take(&mut self.buffer);
            let got = sys::read_at(fd, &mut buffer, at);
            let result = match got {
                Ok(got) if got > 0 => {
                    let got = got.min(usize::try_from(stat.size - at).unwrap_or(usize::MAX));
                    each(self, at / BLOCK, &buffer[..got]).map(|()| got as u64)
                }
                _ => None,
            };
            self.buffer = buffer;
            let got = result?;
            at += got;
            self.owe(Spent::since(began), got, rate, share);
            self.pay();
            // A large file takes long; what was ordered does not wait for its end.
            self.scrub_soon();
        }
        let after = sys::stat_fd(fd).ok()?;
        (after.size == stat.size && after.ctime == stat.ctime && after.attrs == stat.attrs).then_some(())
    }

    fn hash(&mut self, id: FileId) -> Option<()> {
        let (fd, stat, seen) = self.open(id)?;
        if read(&self.scanner.catalog).get(id).is_none_or(|n| n.hashed) {
            return None;
        }
        let (system, pace) = (self.system, (self.rate, 0));
        if stat.size <= BLOCK {
            return self.hash_small(id, &fd, &stat, seen);
        }
        self.read_all(&fd, &stat, pace, |worker, first, data| {
            let hashes = block_hashes(system, id, first, data).collect();
            worker.found.send(Found::Piece { id, seen, first, hashes }).ok()?;
            worker.scanner.hints.wake();
            Some(())
        })?;
        self.found.send(Found::Whole { id, seen }).ok()?;
        self.scanner.hints.wake();
        Some(())
    }

    /// A file of one block is its own sum.
    fn hash_small(&mut self, id: FileId, fd: &std::os::fd::OwnedFd, stat: &Stat, seen: Seen) -> Option<()> {
        let (system, pace) = (self.system, (self.rate, 0));
        let mut sum = 0_u128;
        self.read_all(fd, stat, pace, |_, first, data| {
            sum = block_hashes(system, id, first, data).fold(sum, u128::wrapping_add);
            Some(())
        })?;
        self.found.send(Found::Small { id, seen, sum }).ok()?;
        self.scanner.hints.wake();
        Some(())
    }

    /// Compares the next file.
    fn scrub_next(&mut self) {
        let next = {
            let catalog = read(&self.scanner.catalog);
            let end = catalog.next_id();
            let mut at = self.cursor.0 + 1;
            let mut looked = 0;
            while at < end.0 && looked < 100_000 {
                if catalog.get(FileId(at)).is_some_and(|n| n.kind == Kind::File && n.size > 0) {
                    break;
                }
                at += 1;
                looked += 1;
            }
            (at < end.0).then_some(FileId(at))
        };
        match next {
            Some(id) => {
                self.cursor = id;
                self.scrub(id, ((self.rate / SCRUB_SHARE).max(1), SCRUB_TIME));
            }
            None => {
                self.cursor = FileId(0);
                self.scrub_at = Instant::now() + SCRUB_REST;
            }
        }
    }

    /// Compares what was ordered.
    fn scrub_soon(&mut self) {
        if self.in_order {
            return;
        }
        self.in_order = true;
        while let Some(id) = self.soon.pop_front().filter(|_| !self.stopping()) {
            self.scrub(id, (self.rate, SOON_TIME));
        }
        self.in_order = false;
    }

    /// Compares the content of one file with the sum of its hashes.
    fn scrub(&mut self, id: FileId, (rate, share): (u64, u32)) {
        let system = self.system;
        let began = clocks();
        let opened = self.open(id);
        self.owe(Spent::since(began), 0, rate, share);
        let Some((fd, stat, seen)) = opened else { return self.pay() };
        // Stores into pages that are dirty already move no stamps: those that come after the read have to.
        sys::raw::start_writing(&fd);
        let mut sum = 0_u128;
        let whole = self.read_all(&fd, &stat, (rate, share), |_, first, data| {
            sum = block_hashes(system, id, first, data).fold(sum, u128::wrapping_add);
            Some(())
        });
        if whole.is_none() {
            return;
        }
        let differs = read(&self.scanner.catalog).get(id).is_some_and(|n| {
            n.hashed && n.seen == Some(seen) && blocks_of(n.size) == blocks_of(stat.size) && n.content != sum
        });
        if differs && self.found.send(Found::Differs { id }).is_ok() {
            self.scanner.hints.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_stood_rests_for_what_it_worked() {
        let ms = Duration::from_millis;
        let spent = |whole, worked| Spent { whole: ms(whole), worked: ms(worked) };
        // On a busy machine the thread stood most of the time.
        assert_eq!(spent(20, 1).pause(0, 1, SCRUB_TIME), ms(4000 - 20));
        // A slow disk has its rest too.
        assert_eq!(spent(1000, 1).pause(0, 1, SCRUB_TIME), ms(100_000 - 1000));
        assert_eq!(spent(1000, 10).pause(0, 1, SOON_TIME), ms(19_000 - 1000));
        // The rate counts when it is slower, and a share of none is no rest.
        assert_eq!(spent(2, 1).pause(1 << 20, 1 << 10, SCRUB_TIME), ms(1_024_000 - 2));
        assert_eq!(spent(2, 1).pause(0, 1, 0), Duration::ZERO);
        let began = clocks();
        std::thread::sleep(ms(30));
        let slept = Spent::since(began);
        assert!(slept.whole >= ms(30) && slept.worked < slept.whole, "{slept:?}");
    }
}
