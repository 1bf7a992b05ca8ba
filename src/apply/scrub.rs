//! The scrub of a follower: contents are read from the disk and compared with the hashes of their blocks, slowly and
//! again and again, so that what a disk lost, or somebody changed without a trace in the stamps, does not wait until
//! it is needed.
//!
//! A pass takes about `scrub_interval`, at `scrub_rate` at most, and never more than a twentieth of one core: a small
//! tree costs a read now and then, a large one is read evenly. Reading goes past the page cache where the file system
//! lets it, so that it is the disk that is looked at, and nothing that readers need is pushed out.
//!
//! A file is compared while it is as the catalog has seen it, but for its change time. What differs is looked at once
//! more while no batch is under way, so that nothing that apply writes meanwhile can look like damage. What is found is
//! named, and given to the engine, which writes it down as a doubt and fails as diverged: nothing is applied on top of it
//! until it is made good. A file of another size or modification time is a local edit, which is for the patrol.
//!
//! How far a pass is is kept in the state directory, little-endian:
//!
//! | offset | size | field |
//! | --- | --- | --- |
//! | 0 | 8 | magic `TWLSCRU1`; its last byte is the version |
//! | 8 | 8 | when this pass began, ns since 1970 |
//! | 16 | 8 | file id it has come to |
//! | 24 | 8 | when the last whole pass ended, ns since 1970; 0: there was none |
//! | 32 | 4 | CRC32C of everything before |

use std::num::NonZeroU64;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::fs::{Advice, OFlags};
use serde::Serialize;

use crate::blocks::Blocks;
use crate::catalog::{Inode, block_hashes, blocks_of};
use crate::codec::{Put, Seal};
use crate::disk;
use crate::error::{Error, Result};
use crate::net::wall_clock;
use crate::position::{FileId, SystemId};
use crate::record::{BLOCK, Kind};
use crate::sys::{self, Stat, vital};

use super::handle::Shared;
use super::site::same_inode;

/// Read at once.
const READ: usize = 256 << 10;
/// What reading past the page cache wants of addresses, offsets and lengths.
const ALIGN: usize = 4096;
/// What a file costs at least, however small, in bytes of the rate.
const FILE_COST: u64 = 4096;
/// For each second of work so many are slept.
const SHARE: u32 = if cfg!(test) { 0 } else { 19 };
/// Pauses shorter than this are saved up.
const PAUSE_MIN: Duration = Duration::from_millis(if cfg!(test) { 1 } else { 250 });
/// Ids passed over at once while the next file is looked for.
const STEP: u64 = 100_000;
/// How often the place of the pass is written down.
const NOTED: Duration = Duration::from_secs(1800);
/// A file that apply writes is tried so often in a pass.
const TRIES: u32 = 3;
/// Between reading and comparing. Unit tests leave room for a batch.
const GAP: Duration = Duration::from_millis(if cfg!(test) { 1 } else { 0 });
/// Most damaged blocks of a file that are named, and most files.
const NAMED_MAX: usize = 64;
const NAME: &str = "scrub";
const SEAL: Seal = Seal {
    name: "place of the scrub",
    magic: b"TWLSCRU1",
    version: None,
    most: 36,
    remedy: "it is passed over: the scrub begins anew",
};

/// Contents that are not what was applied.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Damage {
    /// The path, relative to the data directory, escaped.
    pub path: String,
    /// How many blocks of 16 KiB differ.
    pub count: u64,
    /// The numbers of the first of them.
    pub blocks: Vec<u64>,
}

/// What the scrub did since the start.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ScrubStats {
    /// Files compared.
    pub files: u64,
    /// Bytes read.
    pub bytes: u64,
    /// Whole passes.
    pub passes: u64,
    /// When the present pass began, ns since 1970; `null`: none is under way.
    pub began: Option<i64>,
    /// When the last whole pass ended, ns since 1970; `null`: there was none.
    pub last_full: Option<i64>,
    /// Files passed over because somebody edited them or they changed too often.
    pub skipped: u64,
    /// Files whose content is not what was applied.
    pub mismatches: u64,
    /// The first of them.
    pub damaged: Vec<Damage>,
}

/// What the thread is told.
#[derive(Debug, Default)]
struct Orders {
    stop: bool,
    rate: u64,
    interval: Duration,
    /// How often rate or interval were another.
    given: u64,
}

/// The side of the scrub that others hold.
#[derive(Debug, Default)]
pub(super) struct Desk {
    orders: Mutex<Orders>,
    changed: Condvar,
}

impl Desk {
    fn lock(&self) -> MutexGuard<'_, Orders> {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on at most `rate` bytes a second, and a pass in each `interval`; zero: none.
    pub(super) fn pace(&self, rate: u64, interval: Duration) {
        let mut orders = self.lock();
        if (orders.rate, orders.interval) == (rate.max(1), interval) {
            return;
        }
        (orders.rate, orders.interval) = (rate.max(1), interval);
        orders.given += 1;
        drop(orders);
        self.changed.notify_all();
    }

    /// Sleeps; false: it is to stop. Other orders end a sleep early.
    fn sleep(&self, time: Duration) -> bool {
        let orders = self.lock();
        if orders.stop {
            return false;
        }
        let (orders, _) = self.changed.wait_timeout(orders, time).unwrap_or_else(PoisonError::into_inner);
        !orders.stop
    }
}

/// The running thread; it ends when this is dropped.
pub(super) struct Scrub {
    desk: Arc<Desk>,
    thread: Option<JoinHandle<()>>,
}

impl Scrub {
    /// Starts it. The directory stands on a cut.
    pub(super) fn start(shared: &Arc<Shared>, blocks: Blocks, state: PathBuf) -> Result<Self> {
        let desk = Arc::clone(&shared.scrub);
        desk.lock().stop = false;
        let mut worker = Worker {
            shared: Arc::clone(shared),
            blocks,
            state,
            place: Place::default(),
            noted: Instant::now(),
            buffer: vec![0; READ + ALIGN],
            debt: Duration::ZERO,
            rate: 1,
        };
        let thread = std::thread::Builder::new()
            .name("scrub".to_owned())
            .spawn(vital::thread("the scrub", move || worker.run()))
            .map_err(|e| Error::from(e).wrap("cannot start the thread that compares contents"))?;
        Ok(Self { desk, thread: Some(thread) })
    }
}

impl Drop for Scrub {
    fn drop(&mut self) {
        self.desk.lock().stop = true;
        self.desk.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Where a pass is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Place {
    began: i64,
    cursor: FileId,
    last_full: i64,
}

impl Place {
    fn encode(self) -> Vec<u8> {
        SEAL.encode(|out| {
            out.put_i64(self.began);
            out.put_u64(self.cursor.0);
            out.put_i64(self.last_full);
        })
    }

    fn read(state: &std::path::Path) -> Option<Self> {
        let take = |bytes: &[u8]| {
            let mut r = SEAL.decode(bytes)?;
            let place =
                Self { began: r.i64("begin")?, cursor: FileId(r.u64("file id")?), last_full: r.i64("end")? };
            r.finish().map(|()| place)
        };
        disk::read_sealed(&state.join(NAME), &SEAL, take).ok().flatten()
    }
}

/// Bytes a second with which a pass over `work` bytes takes most of `interval`, at most `rate`.
fn pace(work: u64, interval: Duration, rate: u64) -> u64 {
    let time = interval.as_secs_f64() * 0.8;
    if time <= 0.0 {
        return rate.max(1);
    }
    // A float past the range becomes the largest number.
    ((work as f64 / time).ceil() as u64).clamp(1, rate.max(1))
}

struct Worker {
    shared: Arc<Shared>,
    blocks: Blocks,
    state: PathBuf,
    place: Place,
    noted: Instant,
    buffer: Vec<u8>,
    debt: Duration,
    /// Of the present pass.
    rate: u64,
}

/// A file as the catalog has it.
struct Known {
    id: FileId,
    path: Vec<u8>,
    inode: Facts,
    system: SystemId,
}

/// What must stay as it is while a file is compared.
#[derive(Clone, Copy, PartialEq, Debug)]
struct Facts {
    seen: crate::catalog::Seen,
    size: u64,
    content: u128,
    mtime: crate::record::Time,
}

fn facts(inode: &Inode<'_>) -> Option<Facts> {
    let whole = inode.kind == Kind::File && inode.hashed && inode.size > 0;
    let seen = inode.seen.filter(|_| whole)?;
    Some(Facts { seen, size: inode.size, content: inode.content, mtime: inode.attrs.mtime })
}

/// How a look at a file ended.
enum Look {
    Good,
    Bad(Vec<u64>),
    /// It changed meanwhile.
    Moved,
    /// It is somebody's edit, or can't be read.
    Passed,
    Stop,
}

impl Worker {
    fn run(&mut self) {
        // Whatever else wants the processor goes first.
        let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), 19);
        if let Some(place) = Place::read(&self.state) {
            self.place = place;
        }
        if self.place.last_full > 0 {
            self.shared.stats().scrub.last_full = Some(self.place.last_full);
        }
        while self.due() {
            self.pass();
        }
        self.keep();
    }

    /// Waits until a pass is to begin, or to go on; false: it is to stop.
    fn due(&mut self) -> bool {
        loop {
            let (interval, stop) = {
                let orders = self.shared.scrub.lock();
                (orders.interval, orders.stop)
            };
            if stop {
                return false;
            }
            let age = wall_clock().saturating_sub(self.place.began);
            let age = Duration::from_nanos(u64::try_from(age).unwrap_or(0));
            let under_way = self.place.cursor > FileId(0);
            let wait = match (interval.is_zero(), under_way) {
                (true, _) => Duration::from_secs(3600),
                (false, true) => return true,
                (false, false) if age >= interval => return true,
                // A clock that was set back makes no pass wait longer than that.
                (false, false) => (interval - age).min(interval),
            };
            self.shared.scrub.sleep(wait);
        }
    }

    /// The place of the pass, durable. One that is lost costs a part of a pass.
    fn keep(&mut self) {
        self.noted = Instant::now();
        if let Err(e) = disk::write_atomic(&self.state, NAME, &self.place.encode()) {
            tracing::debug!("the place of the scrub is not kept: {e}");
        }
    }

    /// One pass, from the cursor on.
    fn pass(&mut self) {
        if self.place.cursor == FileId(0) {
            self.place.began = wall_clock();
        }
        self.shared.stats().scrub.began = Some(self.place.began);
        let (mut interval, mut work) = (Duration::ZERO, 0);
        loop {
            let (limit, every, stop) = {
                let orders = self.shared.scrub.lock();
                (orders.rate, orders.interval, orders.stop)
            };
            if stop || every.is_zero() {
                return;
            }
            if work == 0 || every != interval {
                interval = every;
                work = self
                    .shared
                    .catalog()
                    .inodes()
                    .filter_map(|i| facts(&i))
                    .map(|f| f.size.max(FILE_COST))
                    .sum();
            }
            self.rate = pace(work, interval, limit);
            let Some(id) = self.next() else { break };
            if !self.file(id) {
                return;
            }
            self.place.cursor = id;
            if self.noted.elapsed() >= NOTED {
                self.keep();
            }
        }
        self.place.cursor = FileId(0);
        self.place.last_full = wall_clock();
        let mut stats = self.shared.stats();
        stats.scrub.passes += 1;
        (stats.scrub.began, stats.scrub.last_full) = (None, Some(self.place.last_full));
        drop(stats);
        self.keep();
    }

    /// The next file of the pass.
    fn next(&self) -> Option<FileId> {
        let mut at = self.place.cursor.0 + 1;
        loop {
            let catalog = self.shared.catalog();
            let end = catalog.next_id().0;
            let to = end.min(at.saturating_add(STEP));
            let found = (at..to).map(FileId).find(|id| catalog.get(*id).is_some_and(|i| facts(&i).is_some()));
            if found.is_some() || to >= end {
                return found;
            }
            at = to;
        }
    }

    /// Compares one file, and says what is wrong with it. False: stop.
    fn file(&mut self, id: FileId) -> bool {
        for _ in 0..TRIES {
            let Some(known) = self.known(id) else { return true };
            let look = self.look(&known);
            match look {
                Look::Stop => return false,
                Look::Good => {
                    self.shared.stats().scrub.files += 1;
                    return true;
                }
                Look::Bad(blocks) => {
                    self.shared.stats().scrub.files += 1;
                    self.report(&known, blocks);
                    return true;
                }
                Look::Passed => break,
                Look::Moved => {}
            }
        }
        self.shared.stats().scrub.skipped += 1;
        true
    }

    fn known(&self, id: FileId) -> Option<Known> {
        let _gate = self.shared.gate();
        let catalog = self.shared.catalog();
        let inode = facts(&catalog.get(id)?)?;
        Some(Known { id, path: catalog.path(id)?, inode, system: catalog.system() })
    }

    /// Whether the catalog has the file as before. To be asked under the gate.
    fn stands(&self, known: &Known) -> bool {
        self.shared.catalog().get(known.id).and_then(|i| facts(&i)) == Some(known.inode)
    }

    /// Opens the file past the page cache, where that can be.
    fn open(&self, known: &Known) -> Option<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK;
        let open = |flags| self.shared.root.open_beneath(&known.path, flags, 0);
        let fd = open(flags | OFlags::DIRECT).or_else(|_| open(flags)).ok()?;
        unedited(&sys::stat_fd(&fd).ok()?, &known.inode).then_some(fd)
    }

    fn look(&mut self, known: &Known) -> Look {
        let began = Instant::now();
        let Some(fd) = self.open(known) else { return Look::Passed };
        self.owe(began.elapsed(), FILE_COST);
        let mut bad = Vec::new();
        let (mut at, size) = (0, known.inode.size);
        while at < size {
            let began = Instant::now();
            let piece = (size - at).min(READ as u64);
            match self.piece(known, &fd, at, piece) {
                Ok(None) => return Look::Moved,
                // What the disk does not give back is damaged as well.
                Err(e) if e.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()) => {
                    bad.extend(at / BLOCK..blocks_of(at + piece));
                }
                Err(_) => return Look::Passed,
                Ok(Some(blocks)) => bad.extend(blocks),
            }
            at += piece;
            self.shared.stats().scrub.bytes += piece;
            self.owe(began.elapsed(), if size > FILE_COST { piece } else { 0 });
            if !self.pay() {
                return Look::Stop;
            }
        }
        match bad.is_empty() {
            true => Look::Good,
            false => self.judge(known, bad),
        }
    }

    /// The blocks of a piece that differ for certain; `None`: the file changed meanwhile.
    fn piece(&mut self, known: &Known, fd: &OwnedFd, at: u64, len: u64) -> std::io::Result<Option<Vec<u64>>> {
        let first = at / BLOCK;
        let here = self.read(known, fd, at, len)?;
        if !GAP.is_zero() {
            std::thread::sleep(GAP);
        }
        {
            let _gate = self.shared.gate();
            if !self.stands(known) {
                return Ok(None);
            }
            if self.hashes(known, first, here.len()) == Some(here) {
                return Ok(Some(Vec::new()));
            }
        }
        // Once more, while nothing is written. What is cached must not hide it from those who look next.
        let shared = Arc::clone(&self.shared);
        let _gate = shared.gate();
        let _ = rustix::fs::fadvise(fd, at, NonZeroU64::new(len), Advice::DontNeed);
        if !self.stands(known) || !unedited(&sys::stat_fd(fd)?, &known.inode) {
            return Ok(None);
        }
        let here = self.read(known, fd, at, len)?;
        let Some(want) = self.hashes(known, first, here.len()) else { return Ok(None) };
        let differs = here.iter().zip(&want).enumerate().filter(|(_, (a, b))| a != b);
        Ok(Some(differs.map(|(n, _)| first + n as u64).collect()))
    }

    /// The hashes of what is on the disk.
    fn read(&mut self, known: &Known, fd: &OwnedFd, at: u64, len: u64) -> std::io::Result<Vec<u128>> {
        let want = usize::try_from(len).unwrap_or(READ).min(READ);
        let skip = self.buffer.as_ptr().align_offset(ALIGN).min(ALIGN);
        let aligned = want.next_multiple_of(ALIGN);
        let Some(buffer) = self.buffer.get_mut(skip..skip + aligned) else { return Ok(Vec::new()) };
        let got = read_some(fd, buffer, at, want)?.min(want);
        // What is missing counts as zeros: it differs, unless it is a hole.
        if let Some(rest) = buffer.get_mut(got..want) {
            rest.fill(0);
        }
        let data = buffer.get(..want).unwrap_or_default();
        Ok(block_hashes(known.system, known.id, at / BLOCK, data).collect())
    }

    /// The hashes that the content shall have.
    fn hashes(&self, known: &Known, first: u64, n: usize) -> Option<Vec<u128>> {
        if blocks_of(known.inode.size) > 1 {
            return self.blocks.get(known.id, first, n).ok();
        }
        Some(vec![known.inode.content])
    }

    /// Whether it is the content that is wrong, and not the file that holds its hashes.
    fn judge(&mut self, known: &Known, bad: Vec<u64>) -> Look {
        let count = blocks_of(known.inode.size);
        if count <= 1 {
            return Look::Bad(bad);
        }
        let sum = {
            let _gate = self.shared.gate();
            if !self.stands(known) {
                return Look::Moved;
            }
            self.blocks.sum(known.id, 0, count).ok()
        };
        if sum == Some(known.inode.content) {
            return Look::Bad(bad);
        }
        let Some(fd) = self.open(known) else { return Look::Moved };
        let mut hashes = Vec::new();
        for at in (0..known.inode.size).step_by(READ) {
            let Ok(here) = self.read(known, &fd, at, known.inode.size - at) else { return Look::Passed };
            hashes.extend(here);
            if self.shared.scrub.lock().stop {
                return Look::Stop;
            }
        }
        let same = hashes.iter().copied().fold(0_u128, u128::wrapping_add) == known.inode.content;
        let _gate = self.shared.gate();
        if !self.stands(known) {
            return Look::Moved;
        }
        if same && self.blocks.replace(known.id, &hashes).is_ok() {
            tracing::warn!(
                "the block hashes of '{}' were damaged, its content is not: taken anew",
                known.path.escape_ascii()
            );
            return Look::Good;
        }
        Look::Bad(bad)
    }

    /// Names what was found, and gives it to the engine.
    fn report(&self, known: &Known, blocks: Vec<u64>) {
        let path = known.path.escape_ascii().to_string();
        let count = blocks.len() as u64;
        let blocks: Vec<u64> = blocks.into_iter().take(NAMED_MAX).collect();
        tracing::error!(
            path,
            "{count} blocks of a file are not what was applied, though its size and time are (the first: {}): damaged on the \
             disk, or changed by somebody",
            blocks.first().copied().unwrap_or_default()
        );
        {
            let mut stats = self.shared.stats();
            stats.scrub.mismatches += 1;
            if stats.scrub.damaged.len() < NAMED_MAX {
                stats.scrub.damaged.push(Damage { path, count, blocks });
            }
        }
        self.shared.lock().damaged.push(known.id);
        self.shared.wake.notify_one();
    }

    /// Notes what something cost.
    fn owe(&mut self, took: Duration, bytes: u64) {
        let by_rate = Duration::from_secs_f64(bytes as f64 / self.rate as f64);
        self.debt += by_rate.max(took * SHARE).saturating_sub(took);
    }

    /// Sleeps for what was noted; false: stop.
    fn pay(&mut self) -> bool {
        if self.debt < PAUSE_MIN {
            return !self.shared.scrub.lock().stop;
        }
        let until = Instant::now() + std::mem::take(&mut self.debt);
        let given = self.shared.scrub.lock().given;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return true;
            }
            if !self.shared.scrub.sleep(left) {
                return false;
            }
            // Another pace: what was to be slept for the old one is void.
            if self.shared.scrub.lock().given != given {
                return true;
            }
        }
    }
}

/// Whether the inode is the one that apply wrote, and nobody wrote to it in the open since.
fn unedited(stat: &Stat, inode: &Facts) -> bool {
    same_inode(&stat.local, &inode.seen.local) && stat.size == inode.size && stat.attrs.mtime == inode.mtime
}

/// Reads `want` bytes, or as much as there is. A file system that does not read past its cache here after all is read
/// through it.
fn read_some(fd: &OwnedFd, buffer: &mut [u8], at: u64, want: usize) -> std::io::Result<usize> {
    let mut done = 0;
    while done < want && done % ALIGN == 0 {
        let Some(rest) = buffer.get_mut(done..) else { break };
        match rustix::io::pread(fd, rest, at + done as u64) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::INVAL) => {
                rustix::fs::fcntl_setfl(fd, rustix::fs::fcntl_getfl(fd)? - OFlags::DIRECT)?;
                return sys::read_at(fd.as_fd(), buffer, at);
            }
            Err(e) => return Err(e.into()),
        }
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pass_is_spread_over_its_interval_and_never_faster_than_allowed() {
        let day = Duration::from_secs(86_400);
        assert_eq!(pace(86_400 * 8, day, 1 << 30), 10);
        assert_eq!(pace(1 << 50, day, 1000), 1000);
        assert_eq!(pace(5, day, 1000), 1);
        assert_eq!(pace(5, Duration::ZERO, 0), 1);
    }

    #[test]
    fn the_place_of_a_pass_is_kept_and_garbage_is_none() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Place::read(dir.path()), None);
        let place = Place { began: 5, cursor: FileId(7), last_full: 3 };
        disk::write_atomic(dir.path(), NAME, &place.encode()).unwrap();
        assert_eq!(Place::read(dir.path()), Some(place));
        let bytes = std::fs::read(dir.path().join(NAME)).unwrap();
        for cut in 0..bytes.len() {
            std::fs::write(dir.path().join(NAME), &bytes[..cut]).unwrap();
            assert_eq!(Place::read(dir.path()), None);
        }
    }
}
