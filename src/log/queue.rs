//! What waits for the writer thread, and where the next frame goes.

use std::collections::VecDeque;
use std::time::{Duration, Instant, SystemTime};

use super::intake::Run;
use super::recover::Recovered;
use super::{EMPTY, LogOptions, QUEUE_BYTES};
use crate::error::{Error, ErrorKind, Result};
use crate::position::{Lsn, SegmentNo};
use crate::segment::{FILE_MAX, FrameHeader, TRAILER_LEN};

/// Work for the writer thread.
#[derive(Debug)]
pub(super) enum Job {
    /// Leader: a frame whose positions are given out.
    Frame { header: FrameHeader, raw: Vec<u8> },
    /// Leader: the segment ends here.
    Seal,
    /// Follower: checked stored bytes.
    Stored(Run),
}

impl Job {
    fn bytes(&self) -> usize {
        match self {
            Self::Frame { raw, .. } => raw.len(),
            Self::Seal => 0,
            Self::Stored(run) => run.bytes.len(),
        }
    }
}

/// The queue, and a leader's end of the log as it will be when the queue is written.
#[derive(Debug)]
pub(super) struct Queue {
    jobs: VecDeque<Job>,
    bytes: usize,
    /// The writer has taken jobs and is not done with them.
    writing: bool,
    /// What was written has yet to be synced, by the writer's thread.
    sync_due: bool,
    /// No more is taken in.
    pub(super) closing: bool,
    failed: Option<Error>,
    /// LSN of the next frame.
    pub(super) next: Lsn,
    /// Whether a change set is open there.
    pub(super) open: bool,
    segment: SegmentNo,
    /// Whether the segment has a frame.
    started: bool,
    /// Most bytes its file will have.
    bound: u64,
    /// When it is sealed at the latest.
    deadline: Option<Instant>,
}

impl Queue {
    pub(super) fn new(options: &LogOptions, found: &Recovered, leader: bool) -> Self {
        let started = found.current.is_some();
        let segment = match (started, found.tail.offset) {
            (false, 0) => found.tail.segment,
            (false, _) => found.tail.segment.next(),
            (true, _) => found.tail.segment,
        };
        // Only a leader ends segments; a follower's end where the leader's did.
        let deadline = (started && leader).then(|| {
            let age = now_ns().saturating_sub(found.created_ns);
            let age = Duration::from_nanos(u64::try_from(age).unwrap_or(0));
            Instant::now() + options.segment_timeout.saturating_sub(age)
        });
        Self {
            jobs: VecDeque::new(),
            bytes: 0,
            writing: false,
            sync_due: false,
            closing: false,
            failed: None,
            next: if started { found.tail.end } else { segment.start() },
            open: found.marks.open,
            segment,
            started,
            bound: if started { found.tail.offset } else { EMPTY },
            deadline,
        }
    }

    /// Fails when nothing more may be appended.
    pub(super) fn check(&self) -> Result<()> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        if self.closing {
            return Err(Error::new(ErrorKind::Cancelled, "the log is closed"));
        }
        Ok(())
    }

    pub(super) fn fail(&mut self, error: &Error) {
        self.failed.get_or_insert_with(|| error.clone());
        self.jobs.clear();
        self.bytes = 0;
        (self.writing, self.sync_due) = (false, false);
    }

    /// Whether nothing is written any more.
    pub(super) fn has_failed(&self) -> bool {
        self.failed.is_some()
    }

    pub(super) fn has_room(&self, bytes: usize) -> bool {
        self.bytes == 0 || self.bytes + bytes <= QUEUE_BYTES
    }

    /// Whether all that was queued is written and synced.
    pub(super) fn at_rest(&self) -> bool {
        self.jobs.is_empty() && !self.writing && !self.sync_due
    }

    /// Whether the writer has anything to do.
    pub(super) fn has_work(&self) -> bool {
        !self.jobs.is_empty() || self.sync_due
    }

    pub(super) fn is_empty(&self) -> bool {
        self.jobs.is_empty()
    }

    pub(super) fn push(&mut self, job: Job) {
        self.bytes += job.bytes();
        self.jobs.push_back(job);
    }

    /// Gives out the LSN of a frame of `len` bytes, at most `stored` in the file. Goes on to the next
    /// segment when this one is full or old.
    pub(super) fn place(&mut self, len: u64, stored: u64, timeout: Duration) -> Lsn {
        let full =
            self.next.0 + len > self.segment.end().0 || self.bound + stored + TRAILER_LEN as u64 > FILE_MAX;
        if self.started && (full || self.deadline.is_some_and(|d| d <= Instant::now())) {
            self.roll();
        }
        if !self.started {
            self.started = true;
            self.deadline = Instant::now().checked_add(timeout);
        }
        let start = self.next;
        self.next = Lsn(start.0 + len);
        self.bound += stored;
        start
    }

    /// Ends the segment if it holds anything and no change set is open in it.
    pub(super) fn end_segment(&mut self) {
        if self.started && !self.open {
            self.roll();
        }
    }

    fn roll(&mut self) {
        self.push(Job::Seal);
        self.segment = self.segment.next();
        self.next = self.segment.start();
        self.started = false;
        self.bound = EMPTY;
        self.deadline = None;
    }

    /// Until when the writer may sleep when there is nothing to do; a segment whose time has come is
    /// told to end, so then there is.
    pub(super) fn sleep_until(&mut self) -> Option<Instant> {
        if let Some(deadline) = self.deadline
            && self.started
            && deadline <= Instant::now()
        {
            self.roll();
        }
        self.deadline
    }

    /// Takes the oldest jobs, up to about `max` bytes.
    pub(super) fn take(&mut self, max: usize, into: &mut Vec<Job>) {
        let mut bytes = 0;
        while bytes < max
            && let Some(job) = self.jobs.pop_front()
        {
            bytes += job.bytes();
            into.push(job);
        }
        self.bytes -= bytes;
        self.writing = true;
        self.sync_due = false;
    }

    /// The writer is done with what it took. `sync_due`: it has left the sync to its thread.
    pub(super) fn done(&mut self, sync_due: bool) {
        self.writing = false;
        self.sync_due = sync_due && self.failed.is_none();
    }
}

/// The leader's clock, nanoseconds since 1970.
pub(super) fn now_ns() -> i64 {
    match SystemTime::now().duration_since(SystemTime::UNIX_EPOCH) {
        Ok(d) => i64::try_from(d.as_nanos()).unwrap_or(i64::MAX),
        Err(_) => 0,
    }
}
