//! Readers of a log.

use std::path::Path;

use super::{Tail, unready};
use crate::error::Result;
use crate::position::{Lsn, SegmentNo, SystemId, TimelineId};
use crate::segment::FrameHeader;

/// One frame, uncompressed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Frame {
    /// LSN of the first byte.
    pub start: Lsn,
    /// LSN after the last byte.
    pub end: Lsn,
    /// See [`crate::segment::flags`].
    pub flags: u16,
    /// The records.
    pub raw: Vec<u8>,
}

/// Reads frames in order.
#[derive(Debug)]
pub struct FrameReader {}

impl FrameReader {
    /// Reads from `from`, which must be where a frame begins or ends.
    pub fn open(_dir: &Path, _system: SystemId, _timeline: TimelineId, _from: Lsn) -> Result<Self> {
        unready()
    }

    /// The next frame before `limit` (the durable end); `None` when it is reached.
    pub fn next(&mut self, _limit: Lsn) -> Result<Option<Frame>> {
        unready()
    }

    /// The next frame's header; its payload is skipped, neither decompressed nor checked.
    pub fn next_header(&mut self, _limit: Lsn) -> Result<Option<FrameHeader>> {
        unready()
    }

    /// Where the next frame is looked for.
    #[must_use]
    pub fn position(&self) -> Lsn {
        Lsn::ZERO
    }
}

/// Reads the stored bytes of segment files as far as they are durable.
#[derive(Debug)]
pub struct StoredReader {}

impl StoredReader {
    /// Reads from byte `offset` of the file of `segment`.
    pub fn open(_dir: &Path, _timeline: TimelineId, _segment: SegmentNo, _offset: u64) -> Result<Self> {
        unready()
    }

    /// The next run of at most `max` durable bytes: segment, offset, bytes. `None`: the end is reached.
    /// A run never crosses into another file; the next call does, when the segment is sealed.
    pub fn read(&mut self, _tail: &Tail, _max: usize) -> Result<Option<(SegmentNo, u64, Vec<u8>)>> {
        unready()
    }
}
