//! The incremental parser: the one place that decides whether stored bytes are good. Readers,
//! recovery, receive and the offline commands all use it.

use super::{
    FILE_MAX, FRAME_LEN, FRAME_MAGIC, FrameHeader, HEADER_LEN, HEADER_MAGIC, Header, Marks, TRAILER_LEN,
    TRAILER_MAGIC, Trailer, flags,
};
use crate::codec::DecodeError;
use crate::position::{Lsn, SegmentNo, SystemId, TimelineId};

/// What is wrong with stored bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// No structure of a segment begins here.
    #[error("no header, frame or trailer begins here")]
    Magic,
    /// A field is invalid.
    #[error(transparent)]
    Field(#[from] DecodeError),
    /// The header's checksum is wrong.
    #[error("the header's checksum is wrong")]
    HeaderCrc,
    /// A frame's checksum is wrong.
    #[error("the frame's checksum is wrong")]
    FrameCrc,
    /// The trailer's checksum is wrong.
    #[error("the trailer's checksum is wrong")]
    TrailerCrc,
    /// A later format.
    #[error("format version {0} is not known; use a newer towline")]
    Version(u16),
    /// A segment of another system.
    #[error("it belongs to system {0}")]
    System(SystemId),
    /// A segment of another timeline.
    #[error("it belongs to timeline {0}")]
    Timeline(TimelineId),
    /// Another segment than its name says.
    #[error("it is segment {:X}", .0.0)]
    Segment(SegmentNo),
    /// A frame or trailer does not continue what stands before it.
    #[error("it continues at {found}, but the log before it ends at {expected}")]
    Position {
        /// Where the log before it ends.
        expected: Lsn,
        /// What it says.
        found: Lsn,
    },
    /// A frame reaches beyond the end of the segment, or the file beyond its limit.
    #[error("it does not fit into its segment")]
    Beyond,
    /// A change set begins inside another, or goes on without having begun.
    #[error("the frames of two change sets are mixed up")]
    Sets,
    /// The counts or commits in a header or trailer are not those of the frames.
    #[error("the {0} are not those of the frames before it")]
    Summary(&'static str),
    /// The bytes of the file are not those that were sealed.
    #[error("the segment's SHA-256 is wrong")]
    Sha,
    /// The previous segment is not the one this was written after.
    #[error("the segment before it is not the one it was written after")]
    Chain,
    /// The payload can't be decompressed to what the header says.
    #[error("the payload can't be decompressed")]
    Payload,
    /// A sealed segment ends without a trailer.
    #[error("the file ends without a trailer")]
    NoTrailer,
    /// Bytes come after the trailer.
    #[error("bytes follow the trailer")]
    AfterTrailer,
}

impl Fault {
    /// Whether the bytes are in order but of another log or format: never a torn write.
    #[must_use]
    pub fn foreign(&self) -> bool {
        matches!(self, Self::Version(_) | Self::System(_) | Self::Timeline(_) | Self::Segment(_))
    }
}

/// A structure of a segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Item {
    /// The header.
    Header(Header),
    /// A frame; its payload is the rest of the item's bytes after [`FRAME_LEN`].
    Frame(FrameHeader),
    /// The trailer. Its SHA-256 is for the caller to compare, who has seen all bytes.
    Trailer(Trailer),
}

impl Item {
    /// Stored bytes.
    #[must_use]
    pub fn stored(&self) -> usize {
        match self {
            Self::Header(_) => HEADER_LEN,
            Self::Frame(f) => f.stored(),
            Self::Trailer(_) => TRAILER_LEN,
        }
    }
}

/// What a look at the bytes gave.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// A good item, taken: the parser stands after it.
    Item(Item),
    /// So many bytes (from the parser's offset) are needed to see more; never more than one frame.
    More(usize),
    /// Four zero bytes: where content ends in a file that is being written.
    Zeros,
    /// The bytes are bad. The parser stands before them.
    Bad(Fault),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    Header,
    Frames,
    Done,
}

/// Reads one segment's file from its start, item by item, from bytes handed to it.
#[derive(Clone, Debug)]
pub struct Parser {
    system: SystemId,
    timeline: TimelineId,
    segment: SegmentNo,
    phase: Phase,
    offset: u64,
    lsn: Lsn,
    marks: Marks,
    records: u64,
    commits: u64,
}

impl Parser {
    /// A parser at the start of the file of `segment`.
    #[must_use]
    pub fn new(system: SystemId, timeline: TimelineId, segment: SegmentNo) -> Self {
        Self {
            system,
            timeline,
            segment,
            phase: Phase::Header,
            offset: 0,
            lsn: segment.start(),
            marks: Marks::default(),
            records: 0,
            commits: 0,
        }
    }

    /// A parser that goes on at file offset and LSN `at`, where a frame or the trailer begins.
    /// `counts` are the records and commits before.
    #[must_use]
    pub fn resume(
        (system, timeline, segment): (SystemId, TimelineId, SegmentNo),
        at: (u64, Lsn),
        marks: Marks,
        counts: (u64, u64),
    ) -> Self {
        let (offset, lsn) = at;
        let (records, commits) = counts;
        Self { system, timeline, segment, phase: Phase::Frames, offset, lsn, marks, records, commits }
    }

    /// The segment.
    #[must_use]
    pub fn segment(&self) -> SegmentNo {
        self.segment
    }

    /// File offset of the next item.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// LSN of the next frame.
    #[must_use]
    pub fn lsn(&self) -> Lsn {
        self.lsn
    }

    /// The marks after the last item.
    #[must_use]
    pub fn marks(&self) -> Marks {
        self.marks
    }

    /// Records so far.
    #[must_use]
    pub fn records(&self) -> u64 {
        self.records
    }

    /// Commits so far.
    #[must_use]
    pub fn commits(&self) -> u64 {
        self.commits
    }

    /// Whether the trailer was read.
    #[must_use]
    pub fn done(&self) -> bool {
        self.phase == Phase::Done
    }

    /// Looks at `bytes`, which begin at [`offset`](Self::offset), and takes one item with all checks.
    pub fn next(&mut self, bytes: &[u8]) -> Step {
        self.step(bytes, true)
    }

    /// Like [`next`](Self::next), but passes over a frame's payload without seeing it: `bytes` need
    /// only hold its header, and its checksum is not verified.
    pub fn skip(&mut self, bytes: &[u8]) -> Step {
        self.step(bytes, false)
    }

    fn step(&mut self, bytes: &[u8], payload: bool) -> Step {
        let Some(magic) = bytes.first_chunk::<4>() else { return Step::More(4) };
        let magic = u32::from_le_bytes(*magic);
        if magic == 0 {
            return Step::Zeros;
        }
        let (need, result) = match (self.phase, magic) {
            (Phase::Header, HEADER_MAGIC) if bytes.len() < HEADER_LEN => return Step::More(HEADER_LEN),
            (Phase::Header, HEADER_MAGIC) => (HEADER_LEN, self.header(bytes)),
            (Phase::Frames, FRAME_MAGIC) if bytes.len() < FRAME_LEN => return Step::More(FRAME_LEN),
            (Phase::Frames, FRAME_MAGIC) => match FrameHeader::decode(bytes) {
                Err(fault) => return Step::Bad(fault),
                Ok(f) if payload && bytes.len() < f.stored() => return Step::More(f.stored()),
                Ok(f) => (f.stored(), self.frame(f, bytes, payload)),
            },
            (Phase::Frames, TRAILER_MAGIC) if bytes.len() < TRAILER_LEN => return Step::More(TRAILER_LEN),
            (Phase::Frames, TRAILER_MAGIC) => (TRAILER_LEN, self.trailer(bytes)),
            (Phase::Done, _) => return Step::Bad(Fault::AfterTrailer),
            _ => return Step::Bad(Fault::Magic),
        };
        match result {
            Err(fault) => Step::Bad(fault),
            Ok(item) => {
                self.offset += need as u64;
                Step::Item(item)
            }
        }
    }

    fn header(&mut self, bytes: &[u8]) -> Result<Item, Fault> {
        let h = Header::decode(bytes)?;
        if h.system != self.system {
            return Err(Fault::System(h.system));
        }
        if h.timeline != self.timeline {
            return Err(Fault::Timeline(h.timeline));
        }
        if h.segment != self.segment {
            return Err(Fault::Segment(h.segment));
        }
        self.lsn = h.start;
        self.marks = h.marks;
        self.phase = Phase::Frames;
        Ok(Item::Header(h))
    }

    fn frame(&mut self, f: FrameHeader, bytes: &[u8], payload: bool) -> Result<Item, Fault> {
        if payload && !f.intact(self.system, self.timeline, bytes) {
            return Err(Fault::FrameCrc);
        }
        if f.start != self.lsn {
            return Err(Fault::Position { expected: self.lsn, found: f.start });
        }
        let stored = self.offset + (f.stored() + TRAILER_LEN) as u64;
        if f.end() > self.segment.end() || stored > FILE_MAX {
            return Err(Fault::Beyond);
        }
        if (f.flags & flags::STARTS != 0) == self.marks.open {
            return Err(Fault::Sets);
        }
        self.lsn = f.end();
        self.marks.advance(&f);
        self.records += u64::from(f.records);
        self.commits += u64::from(f.commits());
        Ok(Item::Frame(f))
    }

    fn trailer(&mut self, bytes: &[u8]) -> Result<Item, Fault> {
        let t = Trailer::decode(bytes, self.system, self.timeline, self.segment)?;
        if t.end != self.lsn {
            return Err(Fault::Position { expected: self.lsn, found: t.end });
        }
        if t.marks != self.marks {
            return Err(Fault::Summary("last commits in the trailer"));
        }
        if t.records != self.records || t.commits != self.commits {
            return Err(Fault::Summary("counts in the trailer"));
        }
        self.phase = Phase::Done;
        Ok(Item::Trailer(t))
    }
}

/// Looks in `rest`, the bytes of a file from the bad offset `bad` on, for an intact frame which says
/// that the file was durable beyond `bad` when that frame was written. Then the bytes at `bad` were
/// damaged later; without one they may never have reached the disk. Returns the witness's offset.
/// Only meaningful for a file that its leader wrote: elsewhere other syncs were made.
#[must_use]
pub fn durable_after(
    rest: &[u8],
    system: SystemId,
    timeline: TimelineId,
    segment: SegmentNo,
    bad: u64,
) -> Option<u64> {
    let magic = FRAME_MAGIC.to_le_bytes();
    let mut at = 0;
    while let Some(found) = rest.get(at..)?.windows(4).position(|w| w == magic) {
        at += found;
        let frame = &rest[at..];
        if let Ok(f) = FrameHeader::decode(frame)
            && u64::from(f.synced) > bad
            && f.start.segment() == segment
            && f.intact(system, timeline, frame)
        {
            return Some(bad + at as u64);
        }
        at += 1;
    }
    None
}
