//! The log of a node: a directory of segment files, one writer, any number of readers.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::error::{Error, ErrorKind, Result};
use crate::position::{Lsn, SegmentNo, SystemId, TimelineId};

mod reader;

pub use reader::{Frame, FrameReader, StoredReader};

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
    /// End of the last durable frame.
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

/// A log that is open for writing. Clones share it.
#[derive(Clone)]
pub struct Log {
    shared: Arc<Shared>,
}

struct Shared {
    options: LogOptions,
    tail: watch::Sender<Tail>,
}

fn unready<T>() -> Result<T> {
    Err(Error::new(ErrorKind::Unavailable, "the log is not open"))
}

impl Log {
    /// Opens a leader's log: recovers its end, closes an open change set by an abort.
    pub fn open_leader(options: LogOptions) -> Result<Self> {
        Ok(Self { shared: Arc::new(Shared { options, tail: watch::Sender::new(Tail::default()) }) })
    }

    /// Opens a follower's log: recovers its end.
    pub fn open_follower(options: LogOptions) -> Result<Self> {
        Self::open_leader(options)
    }

    /// Leader: appends whole records of one change set, at most [`crate::segment::RAW_MAX`] bytes. The
    /// positions are final at once; the bytes are compressed and written by the log's thread. Blocks
    /// while the queue is full.
    pub fn append(&self, _raw: Vec<u8>, _flags: u16) -> Result<(Lsn, Lsn)> {
        unready()
    }

    /// Follower: appends stored bytes of a segment file as a leader sent them, cut anywhere.
    pub fn append_stored(&self, _segment: SegmentNo, _offset: u64, _bytes: &[u8]) -> Result<()> {
        unready()
    }

    /// Follower: forgets a frame received in part, waits until the rest is durable, and says where
    /// the next stored bytes must begin. `(SegmentNo(0), 0)`: the log is empty, any segment may begin it.
    pub fn resume_at(&self) -> Result<(SegmentNo, u64)> {
        unready()
    }

    /// Follows the durable end. Also woken by a failure: see [`Log::failure`].
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Tail> {
        self.shared.tail.subscribe()
    }

    /// The durable end now.
    #[must_use]
    pub fn tail(&self) -> Tail {
        *self.shared.tail.borrow()
    }

    /// End of what the operating system has, synced or not.
    #[must_use]
    pub fn written(&self) -> Lsn {
        self.tail().end
    }

    /// Blocks until everything before `lsn` is durable; false when `timeout` passes first.
    pub fn wait_durable(&self, _lsn: Lsn, _timeout: Duration) -> Result<bool> {
        unready()
    }

    /// The failure that stopped the log for good, if there was one. Reopen it.
    #[must_use]
    pub fn failure(&self) -> Option<Error> {
        None
    }

    /// Flushes what is queued and stops the writer, for every clone.
    pub fn close(self) -> Result<()> {
        Ok(())
    }

    /// The directory of the segment files.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.shared.options.dir
    }

    /// The oldest LSN that can be read; the end of an empty log.
    pub fn oldest(&self) -> Result<Lsn> {
        unready()
    }

    /// SHA-256 of the durable stored bytes `[0, offset)` of a segment's file; `None` when they are not here.
    pub fn prefix_hash(&self, _segment: SegmentNo, _offset: u64) -> Result<Option<[u8; 32]>> {
        unready()
    }

    /// Removes the sealed segments before `keep`, oldest first; returns how many.
    pub fn remove_before(&self, _keep: SegmentNo) -> Result<u64> {
        unready()
    }
}
