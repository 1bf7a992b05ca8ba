//! The format of a segment file (types first).

use crate::position::{Lsn, SegmentNo, SystemId, TimelineId};

/// Most uncompressed bytes of a frame: 1 MiB.
pub const RAW_MAX: usize = 1 << 20;
/// Most stored bytes of a frame's payload: zstd's bound for [`RAW_MAX`].
pub const STORED_MAX: usize = RAW_MAX + (RAW_MAX >> 8);

/// Bits of [`FrameHeader::flags`].
pub mod flags {
    /// The frame's first record is the first of its change set.
    pub const STARTS: u16 = 1;
    /// The frame's last record ends its change set: a commit, or with [`ABORT`] an abort.
    pub const ENDS: u16 = 2;
    /// The commit is an exact cut.
    pub const EXACT: u16 = 4;
    /// The change set is aborted: nothing of it counts.
    pub const ABORT: u16 = 8;
}

/// Where the last complete change sets ended, carried from segment to segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Marks {
    /// End of the last committed change set, zero when there was none.
    pub commit: Lsn,
    /// Its time, nanoseconds since 1970.
    pub commit_time: i64,
    /// End of the last change set with an exact cut, zero when there was none.
    pub exact: Lsn,
    /// Its time.
    pub exact_time: i64,
    /// Whether a change set is open here.
    pub open: bool,
}

/// The first thing in a segment file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// The system the log belongs to.
    pub system: SystemId,
    /// Its timeline.
    pub timeline: TimelineId,
    /// The segment's number.
    pub segment: SegmentNo,
    /// LSN of the first frame.
    pub start: Lsn,
    /// What the log before this segment left.
    pub marks: Marks,
    /// SHA-256 in the trailer of the segment before, zero for the first of a log.
    pub prev_sha: [u8; 32],
    /// When the leader began the segment, nanoseconds since 1970.
    pub created_ns: i64,
}

/// What stands before each payload.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FrameHeader {
    /// LSN of the first byte.
    pub start: Lsn,
    /// Uncompressed bytes.
    pub raw_len: u32,
    /// Stored bytes of the payload.
    pub stored_len: u32,
    /// See [`flags`].
    pub flags: u16,
    /// Time of the commit at its end, nanoseconds since 1970, zero without one.
    pub time: i64,
    /// How much of this file was durable on the leader when the frame was written.
    pub synced: u32,
    /// CRC32C over system id, timeline, the fields above and the payload.
    pub crc: u32,
}

impl FrameHeader {
    /// LSN after the frame.
    #[must_use]
    pub fn end(&self) -> Lsn {
        Lsn(self.start.0.saturating_add(u64::from(self.raw_len)))
    }
}

/// The last thing in a sealed segment file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Trailer {
    /// End of the last frame.
    pub end: Lsn,
    /// Records in this segment.
    pub records: u64,
    /// Commits in this segment.
    pub commits: u64,
    /// What this segment leaves to the next one.
    pub marks: Marks,
    /// SHA-256 over every byte of the file before this field.
    pub sha: [u8; 32],
}

/// The name of a segment's file.
#[must_use]
pub fn file_name(timeline: TimelineId, segment: SegmentNo, partial: bool) -> String {
    format!("{:08X}{:016X}{}", timeline.0, segment.0, if partial { ".partial" } else { "" })
}

/// What [`file_name`] was given, or `None` for any other name.
#[must_use]
pub fn parse_name(name: &[u8]) -> Option<(TimelineId, SegmentNo, bool)> {
    let (hex, partial) = match name.strip_suffix(b".partial") {
        Some(hex) => (hex, true),
        None => (name, false),
    };
    if hex.len() != 24 || !hex.iter().all(|b| b.is_ascii_digit() || (b'A'..=b'F').contains(b)) {
        return None;
    }
    let hex = std::str::from_utf8(hex).ok()?;
    let timeline = u32::from_str_radix(hex.get(..8)?, 16).ok()?;
    let segment = u64::from_str_radix(hex.get(8..)?, 16).ok()?;
    Some((TimelineId(timeline), SegmentNo(segment), partial))
}
