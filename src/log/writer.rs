//! The writer: compress, write, sync, publish.
//!
//! It takes what has queued up, writes it with one call, and syncs once when a change set ended in
//! it (group commit), or when a long change set has grown by [`SYNC_BYTES`]. A small change set on a
//! quiet log costs one write and one fdatasync of space written before.
//!
//! A thread of its own does so, unless somebody waits: waking a thread costs as much as a third of the
//! sync, so who has a caller waiting for his append takes the writer's place for it, if that is free
//! ([`Log::write_here`](super::Log::write_here)). There is one [`Writer`]; who holds it takes from the queue, so the order
//! is that of the queue whoever writes.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use tracing::error;
use zstd::bulk::Compressor;

use super::file::SegmentFile;
use super::intake::Run;
use super::queue::{Job, now_ns};
use super::recover::{Recovered, tail_at};
use super::{SYNC_BYTES, Shared, Tail, lock};
use crate::error::{Error, ErrorKind, Result};
use crate::position::{Lsn, SegmentNo};
use crate::segment::{FRAME_LEN, FrameHeader, Header, Marks, TRAILER_LEN, stored_bound};
use crate::sys::pulse;

/// Uncompressed bytes that are taken from the queue at once.
const BATCH: usize = 1 << 20;

pub(super) struct Writer {
    shared: Arc<Shared>,
    file: Option<SegmentFile>,
    /// What the next segment is chained to.
    prev_sha: [u8; 32],
    marks: Marks,
    /// The end of the newest segment while there is no open one.
    tail: Tail,
    zstd: Compressor<'static>,
    /// Encoded frames that are not written yet: the first `filled` bytes.
    buf: Vec<u8>,
    filled: usize,
    /// LSN and marks after them.
    end: Lsn,
    /// A change set has ended since the last sync.
    ended: bool,
    /// Room for what is taken from the queue.
    jobs: Vec<Job>,
}

impl std::fmt::Debug for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer").field("end", &self.end).finish_non_exhaustive()
    }
}

/// The thread of the writer: all turns that nobody else takes.
pub(super) fn run(shared: &Shared, desk: &Mutex<Writer>) {
    shared.pulse.adopt();
    while wait(shared) {
        if lock(desk).turn(true).is_err() {
            return;
        }
    }
    // A part of a change set that was written before the close was asked for is not synced yet.
    if !lock(&shared.queue).has_failed() {
        let mut writer = lock(desk);
        let result = writer.sync_rest();
        writer.note(&result);
    }
}

/// Waits for work; false when there is none any more: the log is closed or has failed.
fn wait(shared: &Shared) -> bool {
    let mut queue = lock(&shared.queue);
    loop {
        pulse::beat();
        let deadline = queue.sleep_until();
        if queue.has_failed() {
            return false;
        }
        if queue.has_work() {
            return true;
        }
        if queue.closing {
            return false;
        }
        queue = match deadline {
            None => shared.work.wait(queue).unwrap_or_else(PoisonError::into_inner),
            Some(d) => {
                let left = d.saturating_duration_since(Instant::now());
                shared.work.wait_timeout(queue, left).unwrap_or_else(PoisonError::into_inner).0
            }
        };
    }
}

impl Writer {
    pub(super) fn new(shared: Arc<Shared>, found: Recovered) -> Result<Self> {
        let zstd = Compressor::new(shared.options.level)
            .map_err(|e| Error::from(e).wrap("cannot set up compression"))?;
        Ok(Self {
            shared,
            file: found.current,
            prev_sha: found.prev_sha,
            marks: found.marks,
            tail: found.tail,
            zstd,
            buf: Vec::new(),
            filled: 0,
            end: found.tail.end,
            ended: false,
            jobs: Vec::new(),
        })
    }

    /// Writes what has queued up, about [`BATCH`] bytes at most. Without `sync` the sync that is due is left to the thread.
    pub(super) fn turn(&mut self, sync: bool) -> Result<()> {
        let mut jobs = std::mem::take(&mut self.jobs);
        lock(&self.shared.queue).take(BATCH, &mut jobs);
        self.shared.room.notify_all();
        let result = self.batch(&mut jobs, sync);
        jobs.clear();
        self.jobs = jobs;
        self.note(&result);
        let due = self.sync_is_due();
        lock(&self.shared.queue).done(due);
        self.shared.room.notify_all();
        result
    }

    /// Whether the writer can go on with the file it has: no other is begun.
    pub(super) fn is_amid_a_file(&self) -> bool {
        self.file.is_some()
    }

    /// A failure is final.
    fn note(&self, result: &Result<()>) {
        if let Err(e) = result {
            error!(error = %e, "the log can't be written; it is closed until it is opened again");
            self.shared.fail(e);
        }
    }

    fn sync_rest(&mut self) -> Result<()> {
        if self.unsynced() > 0 { self.sync() } else { Ok(()) }
    }

    fn unsynced(&self) -> u64 {
        self.file.as_ref().map_or(0, |f| f.len() - f.synced())
    }

    fn sync_is_due(&self) -> bool {
        let idle = || {
            let queue = lock(&self.shared.queue);
            queue.closing || (!self.shared.leader && queue.is_empty())
        };
        let unsynced = self.unsynced();
        unsynced > 0 && (self.ended || unsynced >= SYNC_BYTES || idle())
    }

    fn batch(&mut self, jobs: &mut Vec<Job>, sync: bool) -> Result<()> {
        for job in jobs.drain(..) {
            pulse::beat();
            match job {
                Job::Frame { header, raw } => self.frame(header, &raw)?,
                Job::Seal => self.seal()?,
                Job::Stored(run) => self.stored(run)?,
            }
        }
        self.write()?;
        if sync && self.sync_is_due() { self.sync() } else { Ok(()) }
    }

    /// Compresses one frame into the buffer.
    fn frame(&mut self, header: FrameHeader, raw: &[u8]) -> Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            None => self.begin(header.start.segment())?,
        };
        let synced = u32::try_from(file.synced()).unwrap_or(u32::MAX);
        let at = self.filled;
        let most = at + FRAME_LEN + stored_bound(raw.len());
        if self.buf.len() < most {
            self.buf.resize(most, 0);
        }
        let room = &mut self.buf[at + FRAME_LEN..most];
        let n = self
            .zstd
            .compress_to_buffer(raw, room)
            .map_err(|e| Error::new(ErrorKind::Io, format!("cannot compress a frame: {e}")))?;
        let o = &self.shared.options;
        let frame = &mut self.buf[at..at + FRAME_LEN + n];
        let header = FrameHeader { synced, ..header }.seal(o.system, o.timeline, frame);
        self.filled += FRAME_LEN + n;
        self.end = header.end();
        self.marks.advance(&header);
        if let Some(file) = &mut self.file {
            file.records += u64::from(header.records);
            file.commits += u64::from(header.commits());
        }
        self.ended |= !self.marks.open;
        if self.filled >= BATCH {
            self.write()?;
        }
        Ok(())
    }

    /// Creates the file of a segment; its header goes into the buffer.
    fn begin(&mut self, segment: SegmentNo) -> Result<&mut SegmentFile> {
        let o = &self.shared.options;
        let header = Header {
            system: o.system,
            timeline: o.timeline,
            segment,
            start: segment.start(),
            marks: self.marks,
            prev_sha: self.prev_sha,
            created_ns: now_ns(),
        }
        .encode();
        if self.buf.len() < header.len() {
            self.buf.resize(header.len(), 0);
        }
        self.buf[..header.len()].copy_from_slice(&header);
        self.filled = header.len();
        let file = SegmentFile::create(&o.dir, o.timeline, segment, self.marks)?;
        Ok(self.file.insert(file))
    }

    /// Hands the buffer to the operating system.
    fn write(&mut self) -> Result<()> {
        if self.filled == 0 {
            return Ok(());
        }
        if let Some(file) = &mut self.file {
            file.append(&self.buf[..self.filled])?;
            (file.end, file.marks) = (self.end, self.marks);
        }
        self.filled = 0;
        self.shared.written.send_replace(self.end);
        Ok(())
    }

    fn sync(&mut self) -> Result<()> {
        let Some(file) = &mut self.file else { return Ok(()) };
        file.sync()?;
        self.ended = false;
        self.tail = tail_at(file.segment(), file.synced(), file.end, &file.marks);
        self.shared.publish(self.tail);
        Ok(())
    }

    fn seal(&mut self) -> Result<()> {
        self.write()?;
        let Some(file) = self.file.take() else { return Ok(()) };
        let (segment, end, marks) = (file.segment(), file.end, file.marks);
        let sealed = file.seal(self.shared.options.system)?;
        self.sealed(segment, end, &marks, sealed);
        Ok(())
    }

    fn sealed(&mut self, segment: SegmentNo, end: Lsn, marks: &Marks, (sha, len): ([u8; 32], u64)) {
        self.prev_sha = sha;
        self.ended = false;
        self.tail = tail_at(segment, len, end, marks);
        self.shared.gaps.saw(end, segment.next().start());
        self.shared.publish(self.tail);
    }

    /// Writes what a follower received.
    fn stored(&mut self, run: Run) -> Result<()> {
        let o = &self.shared.options;
        let mut file = match self.file.take() {
            Some(file) => file,
            None => SegmentFile::create(&o.dir, o.timeline, run.segment, self.marks)?,
        };
        if (file.segment(), file.len()) != (run.segment, run.offset) {
            let message = "received bytes and the open log file are at different places; open the log again";
            return Err(Error::new(ErrorKind::Io, message));
        }
        let body = run.bytes.len() - if run.trailer.is_some() { TRAILER_LEN } else { 0 };
        if body > 0 {
            file.append(&run.bytes[..body])?;
        }
        (file.end, file.marks) = (run.end, run.marks);
        (file.records, file.commits) = (run.records, run.commits);
        (self.end, self.marks) = (run.end, run.marks);
        self.ended |= run.ends;
        self.shared.written.send_replace(run.end);
        match run.trailer {
            None => self.file = Some(file),
            Some(sha) => {
                let sealed = file.seal_stored(&run.bytes[body..], sha)?;
                self.sealed(run.segment, run.end, &run.marks, sealed);
            }
        }
        Ok(())
    }
}
