//! The log of a node: a directory of segment files, one writer thread, any number of readers.
//!
//! A leader appends records; positions are given out at once, the writer thread compresses, writes
//! and syncs what has queued up (group commit), and publishes the durable end as a [`Tail`]. A
//! follower appends the stored bytes it receives; they are checked frame by frame before they are
//! written, so its files are the leader's, byte for byte. Readers ([`FrameReader`],
//! [`StoredReader`]) open the files on their own and never read beyond a durable end.
//!
//! The first failed write or sync is final for the open log: [`Log::failure`] holds it, every call
//! fails with it, and only opening the log again, which reads what is really there, goes on.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use tokio::sync::watch;

use crate::codec::DecodeError;
use crate::error::{Error, ErrorKind, Result};
use crate::history::Branch;
use crate::position::{Cut, Lsn, SegmentNo, SystemId, TimelineId};
use crate::record::{Record, Records};
use crate::segment::{FRAME_LEN, FrameHeader, HEADER_LEN, RAW_MAX, TRAILER_LEN, flags, stored_bound};
use crate::sys::pulse::Pulse;
use crate::sys::{self, vital};

mod branch;
pub mod dump;
mod extent;
mod file;
mod gaps;
pub mod inspect;
mod intake;
mod queue;
mod reader;
mod recover;
pub mod repair;
mod shelf;
mod stored;
mod whole;
mod writer;

use intake::Intake;
use queue::{Job, Queue};
use writer::Writer;

pub use branch::{Cut as LineCut, end_at_rest, end_copied_lines, end_lines, left_behind};
pub use extent::{names, remove_before, start_before, stored};
pub use gaps::Gaps;
pub use reader::{Frame, FrameReader};
pub use stored::{Ahead, StoredReader};
pub use whole::{SealedBy, sealed, sealed_at, whole};

/// Most bytes that wait for the writer thread: 16 MiB.
pub const QUEUE_BYTES: usize = 16 << 20;
/// Most stored bytes that are written by whoever has them: copying more takes longer than waking a thread.
const PIECE_HERE: usize = 64 << 10;
/// A long change set is synced each time so many bytes were written: 8 MiB.
pub const SYNC_BYTES: u64 = 8 << 20;

/// How a log is opened.
#[derive(Clone, Debug)]
pub struct LogOptions {
    /// The directory of the segment files.
    pub dir: PathBuf,
    /// The system the log belongs to.
    pub system: SystemId,
    /// The timeline it is on.
    pub timeline: TimelineId,
    /// A leader seals a segment that is not empty after this time.
    pub segment_timeout: Duration,
    /// zstd level of new frames.
    pub level: i32,
}

/// The durable end of a log.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Tail {
    /// End of the last durable frame; zero in a follower's empty log.
    pub end: Lsn,
    /// End of the last durable committed change set, zero when there is none.
    pub commit: Lsn,
    /// The same of those that are exact cuts.
    pub exact: Lsn,
    /// The newest segment.
    pub segment: SegmentNo,
    /// Durable stored length of its file.
    pub offset: u64,
    /// Time of `commit`, nanoseconds since 1970.
    pub commit_time: i64,
    /// Time of `exact`.
    pub exact_time: i64,
}

/// A log that is open for writing. Clones share it; the last one dropped flushes and stops it.
#[derive(Clone, Debug)]
pub struct Log {
    shared: Arc<Shared>,
    writer: Arc<WriterHandle>,
}

#[derive(Debug)]
struct Progress {
    tail: Tail,
    failed: Option<Error>,
}

/// What appenders, the writer thread and waiters share.
#[derive(Debug)]
struct Shared {
    options: LogOptions,
    leader: bool,
    queue: Mutex<Queue>,
    /// There is work for the writer.
    work: Condvar,
    /// The queue has room, or is at rest.
    room: Condvar,
    intake: Mutex<Intake>,
    progress: Mutex<Progress>,
    /// `progress` moved.
    moved: Condvar,
    published: watch::Sender<Tail>,
    written: watch::Sender<Lsn>,
    pulse: Pulse,
    gaps: Gaps,
}

/// Data behind a poisoned lock is as good as before: each critical section leaves it whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn new(options: LogOptions, found: &recover::Recovered, leader: bool) -> Self {
        let tail = found.tail;
        Self {
            leader,
            queue: Mutex::new(Queue::new(&options, found, leader)),
            work: Condvar::new(),
            room: Condvar::new(),
            intake: Mutex::new(Intake::new(&options, found)),
            progress: Mutex::new(Progress { tail, failed: None }),
            moved: Condvar::new(),
            published: watch::Sender::new(tail),
            written: watch::Sender::new(tail.end),
            pulse: Pulse::default(),
            gaps: recover::gaps(&options),
            options,
        }
    }

    fn fail(&self, error: &Error) {
        let mut queue = lock(&self.queue);
        queue.fail(error);
        drop(queue);
        lock(&self.progress).failed.get_or_insert_with(|| error.clone());
        self.room.notify_all();
        self.work.notify_all();
        self.moved.notify_all();
        self.published.send_modify(|_| {});
    }

    fn publish(&self, tail: Tail) {
        lock(&self.progress).tail = tail;
        self.moved.notify_all();
        self.published.send_replace(tail);
    }
}

#[derive(Debug)]
struct WriterHandle {
    shared: Arc<Shared>,
    /// None: the log can't be written.
    desk: Option<Arc<Mutex<Writer>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl WriterHandle {
    fn stop(&self) {
        lock(&self.shared.queue).closing = true;
        self.shared.work.notify_all();
        self.shared.room.notify_all();
        if let Some(thread) = lock(&self.thread).take()
            && thread.join().is_err()
        {
            self.shared.fail(&Error::new(ErrorKind::Io, "the thread that writes the log has panicked"));
        }
    }
}

impl Drop for WriterHandle {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Hashes a range of a file; false when the file ends before.
fn hash_range(file: &File, path: &Path, range: std::ops::Range<u64>, sha: &mut Sha256) -> Result<bool> {
    let mut buf = vec![0; HASH_CHUNK];
    let mut at = range.start;
    while at < range.end {
        let want = usize::try_from(range.end - at).unwrap_or(HASH_CHUNK).min(HASH_CHUNK);
        let n = sys::read_at(file, &mut buf[..want], at).map_err(|e| Error::io("read", path, e))?;
        if n < want {
            return Ok(false);
        }
        sha.update(&buf[..n]);
        at += n as u64;
    }
    Ok(true)
}

/// What the records of a frame say about it.
#[derive(Clone, Copy, Default)]
struct Summary {
    records: u32,
    time: i64,
}

/// Checks that `raw` is whole records and that `flags` says of them what they are.
fn summarize(raw: &[u8], flags: u16) -> Result<Summary> {
    let mut summary = Summary::default();
    let mut ending = None;
    for record in Records::new(raw) {
        let (_, record) = record?;
        if ending.is_some() {
            return Err(DecodeError::Invalid { what: "record after a commit", value: 0 }.into());
        }
        summary.records += 1;
        ending = match record {
            Record::Commit(c) => {
                summary.time = c.time;
                Some(flags::ENDS | if c.cut == Cut::Exact { flags::EXACT } else { 0 })
            }
            Record::Abort => Some(flags::ENDS | flags::ABORT),
            _ => None,
        };
    }
    if summary.records == 0 || flags & !flags::STARTS != ending.unwrap_or(0) {
        return Err(DecodeError::Invalid { what: "frame flags", value: flags.into() }.into());
    }
    Ok(summary)
}

impl Log {
    /// Opens a leader's log: recovers its end, closes an open change set by an abort.
    pub fn open_leader(options: LogOptions) -> Result<Self> {
        let log = Self::open(options, true)?;
        if lock(&log.shared.queue).open {
            let mut raw = Vec::new();
            Record::Abort.encode(&mut raw);
            let (_, end) = log.append(raw, flags::ENDS | flags::ABORT)?;
            log.wait_durable(end, Duration::from_secs(60))?;
        }
        Ok(log)
    }

    /// Opens a follower's log: recovers its end. An empty one may begin with any segment.
    pub fn open_follower(options: LogOptions) -> Result<Self> {
        Self::open(options, false)
    }

    fn open(options: LogOptions, leader: bool) -> Result<Self> {
        let found = recover::recover(&options, leader)?;
        let shared = Arc::new(Shared::new(options, &found, leader));
        let desk = Arc::new(Mutex::new(Writer::new(Arc::clone(&shared), found)?));
        let (works, at) = (Arc::clone(&shared), Arc::clone(&desk));
        let thread = std::thread::Builder::new()
            .name("log-writer".to_owned())
            .spawn(vital::thread("the thread that writes the log", move || writer::run(&works, &at)))
            .map_err(|e| Error::from(e).wrap("cannot start the thread that writes the log"))?;
        let thread = Mutex::new(Some(thread));
        let writer = WriterHandle { shared: Arc::clone(&shared), desk: Some(desk), thread };
        Ok(Self { shared, writer: Arc::new(writer) })
    }

    /// A log that can't be opened for writing, as it lies there; it has failed by `why` from the beginning.
    /// It may end before what readers have seen of it: only what is certainly durable counts.
    ///
    /// # Errors
    /// `Corrupt` or the operating system's, when it can't be read either.
    pub fn open_failed(options: LogOptions, why: &Error) -> Result<Self> {
        let found = shelf::find(&options)?;
        let shared = Arc::new(Shared::new(options, &found, true));
        shared.fail(why);
        let writer = WriterHandle { shared: Arc::clone(&shared), desk: None, thread: Mutex::new(None) };
        Ok(Self { shared, writer: Arc::new(writer) })
    }

    /// Leader: appends whole records of one change set, at most [`RAW_MAX`] bytes. The positions are
    /// final at once; the bytes are compressed and written by the log's thread. Blocks while the
    /// queue is full.
    pub fn append(&self, raw: Vec<u8>, flags: u16) -> Result<(Lsn, Lsn)> {
        let placed = self.enqueue(raw, flags)?;
        self.shared.work.notify_one();
        Ok(placed)
    }

    /// As [`append`](Self::append), but the log's thread is not woken: [`write_here`](Self::write_here) or
    /// [`wake`](Self::wake) has to follow.
    pub fn enqueue(&self, raw: Vec<u8>, flags: u16) -> Result<(Lsn, Lsn)> {
        let summary = summarize(&raw, flags)?;
        if raw.len() > RAW_MAX || !self.shared.leader {
            return Err(Error::new(ErrorKind::Usage, "only a leader appends records, at most 1 MiB at once"));
        }
        let mut queue = self.wait_room(raw.len())?;
        if (flags & flags::STARTS != 0) == queue.open {
            return Err(Error::new(ErrorKind::Usage, "change sets may not be mixed in the log"));
        }
        let stored = (FRAME_LEN + stored_bound(raw.len())) as u64;
        let start = queue.place(raw.len() as u64, stored, self.shared.options.segment_timeout);
        let end = queue.next;
        queue.open = flags & flags::ENDS == 0;
        let header = FrameHeader {
            start,
            raw_len: u32::try_from(raw.len()).unwrap_or(u32::MAX),
            stored_len: 0,
            flags,
            records: summary.records,
            time: summary.time,
            synced: 0,
            crc: 0,
        };
        queue.push(Job::Frame { header, raw });
        Ok((start, end))
    }

    /// Leader: seals the segment that is written if it holds anything, and waits until that is done.
    ///
    /// # Errors
    /// The log has failed, is closed, or does not get there within `limit`.
    pub fn seal(&self, limit: Duration) -> Result<()> {
        {
            let mut queue = lock(&self.shared.queue);
            queue.check()?;
            if self.shared.leader {
                queue.end_segment();
            }
        }
        self.write_here();
        let deadline = Instant::now() + limit;
        loop {
            {
                let queue = lock(&self.shared.queue);
                queue.check()?;
                if queue.at_rest() {
                    return Ok(());
                }
            }
            if Instant::now() >= deadline {
                return Err(Error::new(ErrorKind::Unavailable, "the segment is not sealed in time"));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Has the log's thread write what has queued up.
    pub fn wake(&self) {
        self.shared.work.notify_one();
    }

    /// Writes and syncs what has queued up in the calling thread, unless the log's thread is at work already: that
    /// spares two changes of threads to a caller that waits. A failure is the log's.
    pub fn write_here(&self) {
        if let Some(mut writer) = self.free_desk() {
            // It is the log's failure, and found there.
            let _ = writer.turn(true);
        }
        if lock(&self.shared.queue).has_work() {
            self.shared.work.notify_one();
        }
    }

    /// The writer, if nobody writes.
    fn free_desk(&self) -> Option<MutexGuard<'_, Writer>> {
        match self.writer.desk.as_ref()?.try_lock() {
            Ok(writer) => Some(writer),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    fn wait_room(&self, bytes: usize) -> Result<MutexGuard<'_, Queue>> {
        let mut queue = lock(&self.shared.queue);
        loop {
            queue.check()?;
            if queue.has_room(bytes) {
                return Ok(queue);
            }
            queue = self.shared.room.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Follower: appends stored bytes of a segment's file as the leader sent them, cut anywhere.
    /// `offset` is their place in the file; it must continue what came before. Whole frames are
    /// checked and queued (this blocks while the queue is full), the rest waits for the next call.
    ///
    /// # Errors
    /// `Corrupt` when bytes are damaged or don't continue the log; the good ones before them are kept.
    /// Go on with [`resume_at`](Self::resume_at).
    pub fn append_stored(&self, segment: SegmentNo, offset: u64, bytes: &[u8]) -> Result<()> {
        if self.shared.leader {
            return Err(Error::new(ErrorKind::Usage, "a leader's log takes records, not stored bytes"));
        }
        let mut intake = lock(&self.shared.intake);
        let (run, verdict) = intake.take(segment, offset, bytes)?;
        if let Some(run) = run {
            let mut queue = self.wait_room(run.bytes.len())?;
            queue.push(Job::Stored(run));
            drop(queue);
            self.shared.work.notify_one();
        } else {
            lock(&self.shared.queue).check()?;
        }
        verdict
    }

    /// Follower: as [`append_stored`](Self::append_stored), without blocking for the disk or for others: a small piece
    /// within a segment is given to the operating system at once, and its sync left to the log's thread. False: that
    /// can't be done now, and nothing was taken.
    pub fn append_stored_here(&self, segment: SegmentNo, offset: u64, bytes: &[u8]) -> Result<bool> {
        if self.shared.leader || bytes.len() > PIECE_HERE {
            return Ok(false);
        }
        let Ok(mut intake) = self.shared.intake.try_lock() else { return Ok(false) };
        let Some(mut writer) = self.free_desk() else { return Ok(false) };
        if !lock(&self.shared.queue).at_rest() {
            return Ok(false);
        }
        let (run, verdict) = intake.take(segment, offset, bytes)?;
        let Some(run) = run else {
            lock(&self.shared.queue).check()?;
            return verdict.map(|()| true);
        };
        let here = run.trailer.is_none() && writer.is_amid_a_file();
        {
            let mut queue = lock(&self.shared.queue);
            queue.check()?;
            queue.push(Job::Stored(run));
        }
        if here {
            writer.turn(false)?;
        }
        drop(writer);
        self.shared.work.notify_one();
        verdict.map(|()| true)
    }

    /// Follower: forgets a frame received in part, waits until the rest is durable, and says where
    /// the next stored bytes must begin. `(SegmentNo(0), 0)`: the log is empty, any segment may begin it.
    pub fn resume_at(&self) -> Result<(SegmentNo, u64)> {
        let mut intake = lock(&self.shared.intake);
        let mut queue = lock(&self.shared.queue);
        while !queue.at_rest() {
            queue.check()?;
            queue = self.shared.room.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        queue.check()?;
        Ok(intake.restart())
    }

    /// Follows the durable end. Also woken by a failure: see [`Log::failure`].
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Tail> {
        self.shared.published.subscribe()
    }

    /// The durable end now.
    #[must_use]
    pub fn tail(&self) -> Tail {
        lock(&self.shared.progress).tail
    }

    /// End of what the operating system has, synced or not.
    #[must_use]
    pub fn written(&self) -> Lsn {
        *self.shared.written.borrow()
    }

    /// Follows [`written`](Self::written).
    #[must_use]
    pub fn subscribe_written(&self) -> watch::Receiver<Lsn> {
        self.shared.written.subscribe()
    }

    /// Blocks until everything before `lsn` is durable; false when `timeout` passes first.
    pub fn wait_durable(&self, lsn: Lsn, timeout: Duration) -> Result<bool> {
        let deadline = Instant::now().checked_add(timeout);
        let mut progress = lock(&self.shared.progress);
        loop {
            if progress.tail.end >= lsn {
                return Ok(true);
            }
            if let Some(error) = &progress.failed {
                return Err(error.clone());
            }
            let left = deadline.map_or(timeout, |d| d.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                return Ok(false);
            }
            let waited = self.shared.moved.wait_timeout(progress, left);
            progress = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Which segments ended before they were full.
    #[must_use]
    pub fn gaps(&self) -> Gaps {
        self.shared.gaps.clone()
    }

    /// The failure that stopped the log for good, if there was one. Open it again.
    #[must_use]
    pub fn failure(&self) -> Option<Error> {
        lock(&self.shared.progress).failed.clone()
    }

    /// Signs of life of the writer so far; `None` once it has failed or was told to stop. Wakes it, so that one that
    /// has nothing to do gives another.
    #[must_use]
    pub fn probe(&self) -> Option<u64> {
        if lock(&self.shared.queue).closing || self.failure().is_some() {
            return None;
        }
        self.shared.work.notify_one();
        Some(self.shared.pulse.beats())
    }

    /// Flushes what is queued and stops the writer, for every clone.
    pub fn close(self) -> Result<()> {
        self.writer.stop();
        self.failure().map_or(Ok(()), Err)
    }

    /// The directory of the segment files.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.shared.options.dir
    }

    /// The oldest LSN that can be read up to the end; the end itself when there are no files.
    pub fn oldest(&self) -> Result<Lsn> {
        let mut oldest: Option<SegmentNo> = None;
        for segment in recover::list(self.dir(), self.shared.options.timeline)?.into_keys().rev() {
            if oldest.is_some_and(|o| segment.next() != o) {
                break;
            }
            oldest = Some(segment);
        }
        Ok(oldest.map_or(self.tail().end, SegmentNo::start))
    }

    /// SHA-256 of the durable stored bytes `[0, offset)` of a segment's file; `None` when they are not here.
    /// A sealed file is read to its end, so that no damaged one is taken for a proof.
    ///
    /// # Errors
    /// `Corrupt` when a sealed file is not what was sealed.
    pub fn prefix_hash(&self, segment: SegmentNo, offset: u64) -> Result<Option<[u8; 32]>> {
        let tail = self.tail();
        if segment > tail.segment || (segment == tail.segment && offset > tail.offset) {
            return Ok(None);
        }
        let options = &self.shared.options;
        let Some(open) = reader::open_segment(self.dir(), options.timeline, segment)? else {
            return Ok(if offset == 0 && segment == tail.segment {
                Some(Sha256::digest([]).into())
            } else {
                None
            });
        };
        let mut sha = Sha256::new();
        if !hash_range(&open.file, &open.path, 0..offset, &mut sha)? {
            return Ok(None);
        }
        let prefix = sha.finalize().into();
        if open.kept.sealed() {
            recover::check_sealed(options, segment, open.kept)?;
        }
        Ok(Some(prefix))
    }

    /// Where the log of a line ends that `branch` ended: stored bytes up to there, without a trailer that another line has
    /// made.
    ///
    /// # Errors
    /// [`ErrorKind::Missing`] when that segment is not here.
    pub fn end_before(&self, branch: &Branch) -> Result<Tail> {
        let (timeline, segment) = (self.shared.options.timeline, branch.last_segment());
        let missing = || reader::missing(self.dir(), branch.parent, segment);
        let open = reader::open_segment(self.dir(), timeline, segment)?.ok_or_else(missing)?;
        let len = open.file.metadata().map_err(|e| Error::io("stat", &open.path, e))?.len();
        let ended = matches!(open.kept.form, recover::Form::Ended(_));
        let trailer = if ended { TRAILER_LEN as u64 } else { 0 };
        Ok(Tail { end: branch.at, segment, offset: len.saturating_sub(trailer), ..Tail::default() })
    }

    /// Bytes of the file of a sealed segment; `None`: it is not here, or not sealed.
    ///
    /// # Errors
    /// Why the directory can't be read.
    pub fn sealed_len(&self, segment: SegmentNo) -> Result<Option<u64>> {
        whole::sealed_len(self.dir(), self.shared.options.timeline, segment)
    }

    /// See [`remove_before`].
    pub fn remove_before(&self, keep: SegmentNo) -> Result<u64> {
        remove_before(self.dir(), self.shared.options.timeline, keep)
    }
}

const HASH_CHUNK: usize = 256 << 10;

/// Stored length of a segment's file before its first frame.
const EMPTY: u64 = HEADER_LEN as u64;

#[cfg(test)]
mod tests;
