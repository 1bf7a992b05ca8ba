//! The format of a segment file: bytes with positions and checksums. What the bytes mean is
//! [`crate::record`]'s business.
//!
//! A segment is a valid `.zst` file. Its own structures are zstd *skippable frames*, which
//! decompressors pass over; each payload is an ordinary zstd frame. So `zstd -dc SEGMENT` prints the
//! records. Integers are little-endian; `zero` fields must be zero.
//!
//! Header, [`HEADER_LEN`] bytes:
//!
//! | offset | size | field |
//! | --- | --- | --- |
//! | 0 | 4 | magic `0x184D2A50` |
//! | 4 | 4 | bytes that follow, 120 |
//! | 8 | 8 | `towline\n` |
//! | 16 | 2 | format version, 1 |
//! | 18 | 2 | bit 0: a change set is open at the start |
//! | 20 | 4 | timeline |
//! | 24 | 8 | system id |
//! | 32 | 8 | segment number |
//! | 40 | 8 | LSN of the first frame |
//! | 48 | 8 | creation time, ns since 1970 |
//! | 56 | 8 | end of the last commit before, or 0 |
//! | 64 | 8 | its time |
//! | 72 | 8 | end of the last exact commit before, or 0 |
//! | 80 | 8 | its time |
//! | 88 | 32 | SHA-256 of the segment before (the one in its trailer), or zeros |
//! | 120 | 4 | zero |
//! | 124 | 4 | CRC32C of the bytes before |
//!
//! Frame, [`FRAME_LEN`] bytes and the payload:
//!
//! | offset | size | field |
//! | --- | --- | --- |
//! | 0 | 4 | magic `0x184D2A51` |
//! | 4 | 4 | bytes that follow up to the payload, 40 |
//! | 8 | 8 | LSN of the first byte |
//! | 16 | 4 | uncompressed length, 1 to [`RAW_MAX`] |
//! | 20 | 4 | stored length of the payload, 1 to [`STORED_MAX`] |
//! | 24 | 2 | [`flags`] |
//! | 26 | 2 | zero |
//! | 28 | 4 | records in the frame |
//! | 32 | 8 | time of the commit at its end, ns since 1970, or 0 |
//! | 40 | 4 | bytes of this file that were durable on the leader when the frame was written |
//! | 44 | 4 | CRC32C of system id, timeline, the bytes before, and the payload |
//!
//! Trailer, [`TRAILER_LEN`] bytes, only in a sealed segment:
//!
//! | offset | size | field |
//! | --- | --- | --- |
//! | 0 | 4 | magic `0x184D2A52` |
//! | 4 | 4 | bytes that follow, 96 |
//! | 8 | 8 | LSN after the last frame |
//! | 16 | 8 | records in the segment |
//! | 24 | 8 | commits in the segment |
//! | 32 | 32 | last commit and last exact commit, as in the header |
//! | 64 | 2 | bit 0: a change set is open at the end |
//! | 66 | 2 | zero |
//! | 68 | 4 | CRC32C of system id, timeline, segment number and the bytes before |
//! | 72 | 32 | SHA-256 of every byte of the file before this field |
//!
//! A file that is being written may be longer than its content: the rest is zeros.
//!
//! Where a timeline branches off ([`crate::history`]) the first segment of the new one is that after the segment which
//! the branch lies in, and carries on the hash chain of the one that ended: its last segment is sealed at the branch, under
//! [`a name of its own`](ended_name). It may leave a change set open; the new line then begins with an abort.

use crate::codec::{DecodeError, Put, Reader};
use crate::position::{Lsn, SEGMENT_SIZE, SegmentNo, SystemId, TimelineId};

mod parser;

pub use parser::{Fault, Item, Parser, Step, durable_after};

/// Most uncompressed bytes of a frame: 1 MiB.
pub const RAW_MAX: usize = 1 << 20;
/// Most stored bytes of a frame's payload: what zstd needs at most for [`RAW_MAX`].
pub const STORED_MAX: usize = stored_bound(RAW_MAX);
/// Most bytes of a segment's file: 32 MiB. Reached only by a segment of very small frames.
pub const FILE_MAX: u64 = 2 * SEGMENT_SIZE;
/// Bytes of a header.
pub const HEADER_LEN: usize = 128;
/// Bytes of a frame's header.
pub const FRAME_LEN: usize = 48;
/// Bytes of a trailer.
pub const TRAILER_LEN: usize = 104;

const VERSION: u16 = 1;
const SIGNATURE: [u8; 8] = *b"towline\n";
const HEADER_MAGIC: u32 = 0x184D_2A50;
const FRAME_MAGIC: u32 = 0x184D_2A51;
const TRAILER_MAGIC: u32 = 0x184D_2A52;
const OPEN: u16 = 1;

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

    /// Whether this combination may occur.
    #[must_use]
    pub fn valid(flags: u16) -> bool {
        let ends = flags & ENDS != 0;
        flags & !15 == 0 && (ends || flags & (EXACT | ABORT) == 0) && flags & (EXACT | ABORT) != EXACT | ABORT
    }
}

/// Most bytes that zstd makes of `raw` bytes.
#[must_use]
pub const fn stored_bound(raw: usize) -> usize {
    let small = if raw < 128 << 10 { ((128 << 10) - raw) >> 11 } else { 0 };
    raw + (raw >> 8) + small
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

impl Marks {
    /// The marks after a frame.
    pub fn advance(&mut self, frame: &FrameHeader) {
        self.open = frame.flags & flags::ENDS == 0;
        if !frame.commits() {
            return;
        }
        (self.commit, self.commit_time) = (frame.end(), frame.time);
        if frame.flags & flags::EXACT != 0 {
            (self.exact, self.exact_time) = (frame.end(), frame.time);
        }
    }

    fn encode(&self, out: &mut Vec<u8>) {
        out.put_u64(self.commit.0);
        out.put_i64(self.commit_time);
        out.put_u64(self.exact.0);
        out.put_i64(self.exact_time);
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            commit: Lsn(r.u64("last commit")?),
            commit_time: r.i64("last commit time")?,
            exact: Lsn(r.u64("last exact commit")?),
            exact_time: r.i64("last exact commit time")?,
            open: false,
        })
    }
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

fn put_skippable(out: &mut Vec<u8>, magic: u32, total: usize) {
    out.put_u32(magic);
    out.put_u32(u32::try_from(total - 8).expect("the structures of a segment are small"));
}

fn zero(value: u64, what: &'static str) -> Result<(), DecodeError> {
    if value == 0 { Ok(()) } else { Err(DecodeError::Invalid { what, value }) }
}

fn take_open(r: &mut Reader<'_>) -> Result<bool, DecodeError> {
    match r.u16("segment flags")? {
        0 => Ok(false),
        OPEN => Ok(true),
        v => Err(DecodeError::Invalid { what: "segment flags", value: u64::from(v) }),
    }
}

impl Header {
    /// The bytes of the table above.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER_LEN);
        put_skippable(&mut out, HEADER_MAGIC, HEADER_LEN);
        out.extend_from_slice(&SIGNATURE);
        out.put_u16(VERSION);
        out.put_u16(if self.marks.open { OPEN } else { 0 });
        out.put_u32(self.timeline.0);
        out.put_u64(self.system.0);
        out.put_u64(self.segment.0);
        out.put_u64(self.start.0);
        out.put_i64(self.created_ns);
        self.marks.encode(&mut out);
        out.extend_from_slice(&self.prev_sha);
        out.put_u32(0);
        out.put_u32(crc32c::crc32c(&out));
        out
    }

    /// Reads [`HEADER_LEN`] bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, Fault> {
        let mut r = Reader::new(bytes);
        if r.u32("header magic")? != HEADER_MAGIC || r.u32("header length")? as usize != HEADER_LEN - 8 {
            return Err(Fault::Magic);
        }
        if r.array::<8>("signature")? != SIGNATURE {
            return Err(Fault::Magic);
        }
        let version = r.u16("format version")?;
        let body = bytes.get(..HEADER_LEN - 4).ok_or(DecodeError::Short("header"))?;
        let crc = Reader::new(&bytes[body.len()..]).u32("header checksum")?;
        if crc != crc32c::crc32c(body) {
            return Err(Fault::HeaderCrc);
        }
        if version != VERSION {
            return Err(Fault::Version(version));
        }
        let open = take_open(&mut r)?;
        let timeline = TimelineId(r.u32("timeline")?);
        let system = SystemId(r.u64("system id")?);
        let segment = SegmentNo(r.u64("segment number")?);
        let start = Lsn(r.u64("start LSN")?);
        let created_ns = r.i64("creation time")?;
        let marks = Marks { open, ..Marks::decode(&mut r)? };
        let prev_sha = r.array("previous SHA-256")?;
        zero(r.u32("header")?.into(), "reserved header bytes")?;
        if segment.0 == 0 || segment.0 >= u64::MAX / SEGMENT_SIZE || start.segment() != segment {
            return Err(DecodeError::Invalid { what: "start LSN", value: start.0 }.into());
        }
        Ok(Self { system, timeline, segment, start, marks, prev_sha, created_ns })
    }
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
    /// Records in the payload.
    pub records: u32,
    /// Time of the commit at its end, nanoseconds since 1970, zero without one.
    pub time: i64,
    /// How much of this file was durable on the leader when the frame was written.
    pub synced: u32,
    /// CRC32C over system id, timeline, the fields above and the payload; set by [`seal`](Self::seal).
    pub crc: u32,
}

/// What the checksums of one log are seeded with, so that bytes of another one don't pass.
fn seed(system: SystemId, timeline: TimelineId) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&system.0.to_le_bytes()), &timeline.0.to_le_bytes())
}

impl FrameHeader {
    /// LSN after the frame.
    #[must_use]
    pub fn end(&self) -> Lsn {
        Lsn(self.start.0.saturating_add(u64::from(self.raw_len)))
    }

    /// Whether it ends in a commit.
    #[must_use]
    pub fn commits(&self) -> bool {
        self.flags & (flags::ENDS | flags::ABORT) == flags::ENDS
    }

    /// Bytes of header and payload in the file.
    #[must_use]
    pub fn stored(&self) -> usize {
        FRAME_LEN + self.stored_len as usize
    }

    /// Completes a frame in place: `frame` is [`FRAME_LEN`] bytes to be filled, then the payload,
    /// whose length becomes `stored_len`.
    pub fn seal(mut self, system: SystemId, timeline: TimelineId, frame: &mut [u8]) -> Self {
        self.stored_len =
            u32::try_from(frame.len() - FRAME_LEN).expect("a payload is at most 1 MiB and a bit");
        let mut out = Vec::with_capacity(FRAME_LEN);
        put_skippable(&mut out, FRAME_MAGIC, FRAME_LEN);
        out.put_u64(self.start.0);
        out.put_u32(self.raw_len);
        out.put_u32(self.stored_len);
        out.put_u16(self.flags);
        out.put_u16(0);
        out.put_u32(self.records);
        out.put_i64(self.time);
        out.put_u32(self.synced);
        self.crc =
            crc32c::crc32c_append(crc32c::crc32c_append(seed(system, timeline), &out), &frame[FRAME_LEN..]);
        out.put_u32(self.crc);
        frame[..FRAME_LEN].copy_from_slice(&out);
        self
    }

    /// Reads the header of a frame; the checksum is not looked at.
    pub fn decode(bytes: &[u8]) -> Result<Self, Fault> {
        let mut r = Reader::new(bytes);
        if r.u32("frame magic")? != FRAME_MAGIC || r.u32("frame length")? as usize != FRAME_LEN - 8 {
            return Err(Fault::Magic);
        }
        let start = Lsn(r.u64("frame LSN")?);
        let raw_len = take_len(&mut r, RAW_MAX, "uncompressed length")?;
        let stored_len = take_len(&mut r, STORED_MAX, "stored length")?;
        let flags = r.u16("frame flags")?;
        if !flags::valid(flags) {
            return Err(DecodeError::Invalid { what: "frame flags", value: flags.into() }.into());
        }
        zero(r.u16("frame header")?.into(), "reserved frame bytes")?;
        let records = r.u32("frame records")?;
        let time = r.i64("frame time")?;
        let synced = r.u32("synced length")?;
        let crc = r.u32("frame checksum")?;
        Ok(Self { start, raw_len, stored_len, flags, records, time, synced, crc })
    }

    /// Whether the checksum is right; `frame` is header and payload.
    #[must_use]
    pub fn intact(&self, system: SystemId, timeline: TimelineId, frame: &[u8]) -> bool {
        let (Some(head), Some(payload)) = (frame.get(..FRAME_LEN - 4), frame.get(FRAME_LEN..self.stored()))
        else {
            return false;
        };
        self.crc == crc32c::crc32c_append(crc32c::crc32c_append(seed(system, timeline), head), payload)
    }
}

fn take_len(r: &mut Reader<'_>, limit: usize, what: &'static str) -> Result<u32, DecodeError> {
    match r.u32(what)? {
        0 => Err(DecodeError::Invalid { what, value: 0 }),
        v if v as usize > limit => Err(DecodeError::TooLarge { what, value: v.into(), limit: limit as u64 }),
        v => Ok(v),
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

impl Trailer {
    /// The bytes before the SHA-256, which covers them too.
    #[must_use]
    pub fn encode_head(&self, system: SystemId, timeline: TimelineId, segment: SegmentNo) -> Vec<u8> {
        let mut out = Vec::with_capacity(TRAILER_LEN);
        put_skippable(&mut out, TRAILER_MAGIC, TRAILER_LEN);
        out.put_u64(self.end.0);
        out.put_u64(self.records);
        out.put_u64(self.commits);
        self.marks.encode(&mut out);
        out.put_u16(if self.marks.open { OPEN } else { 0 });
        out.put_u16(0);
        let crc = crc32c::crc32c_append(seed(system, timeline), &segment.0.to_le_bytes());
        out.put_u32(crc32c::crc32c_append(crc, &out));
        out
    }

    /// Reads [`TRAILER_LEN`] bytes; the SHA-256 is taken as it is.
    pub fn decode(
        bytes: &[u8],
        system: SystemId,
        timeline: TimelineId,
        segment: SegmentNo,
    ) -> Result<Self, Fault> {
        let mut r = Reader::new(bytes);
        if r.u32("trailer magic")? != TRAILER_MAGIC || r.u32("trailer length")? as usize != TRAILER_LEN - 8 {
            return Err(Fault::Magic);
        }
        let end = Lsn(r.u64("end LSN")?);
        let records = r.u64("records")?;
        let commits = r.u64("commits")?;
        let marks = Marks::decode(&mut r)?;
        let open = take_open(&mut r)?;
        zero(r.u16("trailer")?.into(), "reserved trailer bytes")?;
        let found = r.u32("trailer checksum")?;
        let sha = r.array("SHA-256")?;
        let crc = crc32c::crc32c_append(seed(system, timeline), &segment.0.to_le_bytes());
        if found != crc32c::crc32c_append(crc, &bytes[..TRAILER_LEN - 36]) {
            return Err(Fault::TrailerCrc);
        }
        Ok(Self { end, records, commits, marks: Marks { open, ..marks }, sha })
    }
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

/// The name of the last segment of a line that a later timeline, `by`, ended: `TTTTTTTTNNNNNNNNNNNNNNNN.BBBBBBBB`. It is
/// sealed, holds what counts up to the branch, and is never what the line itself called a segment that it sealed.
#[must_use]
pub fn ended_name(timeline: TimelineId, segment: SegmentNo, by: TimelineId) -> String {
    format!("{}.{:08X}", file_name(timeline, segment, false), by.0)
}

/// What [`ended_name`] was given, or `None` for any other name.
#[must_use]
pub fn parse_ended(name: &[u8]) -> Option<(TimelineId, SegmentNo, TimelineId)> {
    let (own, by) = name.split_at_checked(24)?;
    let by = by.strip_prefix(b".")?;
    let (timeline, segment, _) = parse_name(own)?;
    let upper = by.len() == 8 && by.iter().all(|b| b.is_ascii_digit() || (b'A'..=b'F').contains(b));
    let by = std::str::from_utf8(by).ok().filter(|_| upper)?;
    let by = TimelineId(u32::from_str_radix(by, 16).ok()?);
    (by > timeline).then_some((timeline, segment, by))
}

#[cfg(test)]
mod tests;
