//! Reading frames: from the log's files, as far as a durable end that the caller names.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use zstd::bulk::Decompressor;

use super::recover::{Form, Kept, list};
use crate::error::{Error, ErrorKind, Result};
use crate::position::{Lsn, SegmentNo, SystemId, TimelineId};
use crate::segment::{self, FRAME_LEN, Fault, FrameHeader, Item, Parser, STORED_MAX, Step};
use crate::sys;

/// Most bytes that are read ahead.
const AHEAD: usize = 256 << 10;
/// Fewest bytes that are read at once.
const READ_MIN: usize = 4 << 10;

/// One frame, uncompressed. Its records: [`crate::record::Records::new`]`(&frame.raw)`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
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

/// An error for damaged bytes in a log file.
pub(super) fn damaged(path: &Path, offset: u64, why: &Fault) -> Error {
    let message = format!(
        "log file '{}' is damaged at byte {offset}: {why}; fetch a good copy of it from another node",
        path.display()
    );
    Error::new(ErrorKind::Corrupt, message)
}

/// A segment's file that was opened.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) file: File,
    pub(super) path: PathBuf,
    pub(super) kept: Kept,
}

/// Opens the file of a segment on the way of `timeline`, sealed or not; `None` when it is not there.
pub(super) fn open_segment(dir: &Path, timeline: TimelineId, segment: SegmentNo) -> Result<Option<Opened>> {
    let try_open = |kept: Kept| {
        let path = dir.join(kept.name(segment));
        match File::open(&path) {
            Ok(file) => Ok(Some(Opened { file, path, kept })),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::io("open", &path, e)),
        }
    };
    // Sealing renames it between two looks: so sealed, partial, and sealed again.
    for form in [Form::Sealed, Form::Partial, Form::Sealed] {
        if let Some(opened) = try_open(Kept { timeline, form })? {
            return Ok(Some(opened));
        }
    }
    // One from before a branch: nobody gives it another name any more.
    match timeline {
        TimelineId::FIRST => Ok(None),
        _ => list(dir, timeline)?.get(&segment).map_or(Ok(None), |kept| try_open(*kept)),
    }
}

/// An error for a segment that is not there.
pub(super) fn missing(dir: &Path, timeline: TimelineId, segment: SegmentNo) -> Error {
    let name = segment::file_name(timeline, segment, false);
    let message = format!(
        "log segment {name} is not in '{}' (any more); who needs it must be filled again",
        dir.display()
    );
    Error::new(ErrorKind::Missing, message)
}

/// A place in one segment's file, with what was read ahead there.
#[derive(Debug)]
struct Cursor {
    file: File,
    path: PathBuf,
    parser: Parser,
    buf: Vec<u8>,
    /// File offset of `buf`.
    base: u64,
    /// The durable end when `buf` was read. What lies behind may have been half written then, which shows in a frame
    /// by its checksum alone.
    sure: Lsn,
}

impl Cursor {
    /// Bytes read ahead at the parser's place.
    fn held(&self) -> &[u8] {
        let skip = self.parser.offset().checked_sub(self.base).and_then(|n| usize::try_from(n).ok());
        skip.and_then(|n| self.buf.get(n..)).unwrap_or(&[])
    }

    /// Reads at the parser's place anew: at least `need` bytes where the file has them.
    fn load(&mut self, need: usize, wish: usize, limit: Lsn) -> Result<()> {
        self.sure = limit;
        let want = need.max(wish.clamp(READ_MIN, AHEAD)).min(FRAME_LEN + STORED_MAX + READ_MIN);
        self.buf.resize(want, 0);
        self.base = self.parser.offset();
        let n = sys::read_at(&self.file, &mut self.buf, self.base);
        let n = n.map_err(|e| Error::io("read", &self.path, e))?;
        self.buf.truncate(n);
        Ok(())
    }

    /// The next item, which must be there, and where its bytes begin in `buf`. What was read ahead
    /// may be older than what was written since; a bad look is followed by a fresh one. `limit` is the durable end.
    fn step(&mut self, payload: bool, wish: usize, limit: Lsn) -> Result<(Item, usize)> {
        let mut fresh = false;
        let mut need = 0;
        loop {
            let at = self.parser.offset();
            let mut parser = self.parser.clone();
            let held = self.held();
            let step = if payload { parser.next(held) } else { parser.skip(held) };
            let fault = match step {
                Step::Item(Item::Frame(f)) if !payload && !fresh && f.end() > self.sure => Fault::NoTrailer,
                Step::Item(item) => {
                    self.parser = parser;
                    return Ok((item, usize::try_from(at.saturating_sub(self.base)).unwrap_or(0)));
                }
                Step::More(n) => {
                    let known = std::mem::replace(&mut need, n);
                    if n > known {
                        fresh = false;
                    }
                    Fault::NoTrailer
                }
                Step::Zeros => Fault::Magic,
                Step::Bad(fault) => fault,
            };
            if fresh {
                return Err(damaged(&self.path, at, &fault));
            }
            self.load(need, wish, limit)?;
            fresh = true;
        }
    }
}

/// Reads frames in order, from any position where one begins.
pub struct FrameReader {
    dir: PathBuf,
    system: SystemId,
    timeline: TimelineId,
    lsn: Lsn,
    cursor: Option<Cursor>,
    zstd: Decompressor<'static>,
}

impl std::fmt::Debug for FrameReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FrameReader").field("dir", &self.dir).field("lsn", &self.lsn).finish_non_exhaustive()
    }
}

impl FrameReader {
    /// Reads from `from`, which must be where a frame begins or ends. Files are opened when needed.
    pub fn open(dir: &Path, system: SystemId, timeline: TimelineId, from: Lsn) -> Result<Self> {
        let zstd = Decompressor::new().map_err(|e| Error::from(e).wrap("cannot set up decompression"))?;
        Ok(Self { dir: dir.to_owned(), system, timeline, lsn: from, cursor: None, zstd })
    }

    /// Where the next frame is looked for.
    #[must_use]
    pub fn position(&self) -> Lsn {
        self.lsn
    }

    /// The next frame before `limit` (a durable end); `None` when that is reached.
    ///
    /// # Errors
    /// `Corrupt` when it is damaged, `Missing` when its segment is not there.
    pub fn next(&mut self, limit: Lsn) -> Result<Option<Frame>> {
        let mut frame = Frame::default();
        Ok(self.next_into(limit, &mut frame)?.then_some(frame))
    }

    /// Like [`next`](Self::next) into a frame whose buffer is used again; false when `limit` is reached.
    pub fn next_into(&mut self, limit: Lsn, frame: &mut Frame) -> Result<bool> {
        let Some((header, at)) = self.advance(limit, true)? else { return Ok(false) };
        let Some(cursor) = &self.cursor else { return Ok(false) };
        let payload = cursor.buf.get(at + FRAME_LEN..at + header.stored()).unwrap_or(&[]);
        frame.raw.clear();
        frame.raw.reserve_exact(header.raw_len as usize);
        let n = self.zstd.decompress_to_buffer(payload, &mut frame.raw);
        if n.ok() != Some(header.raw_len as usize) {
            let offset = cursor.parser.offset() - header.stored() as u64;
            return Err(damaged(&cursor.path, offset, &Fault::Payload));
        }
        (frame.start, frame.end, frame.flags) = (header.start, header.end(), header.flags);
        Ok(true)
    }

    /// The next frame's header before `limit`; its payload is passed over, neither decompressed nor checked.
    pub fn next_header(&mut self, limit: Lsn) -> Result<Option<FrameHeader>> {
        Ok(self.advance(limit, false)?.map(|(header, _)| header))
    }

    fn advance(&mut self, limit: Lsn, payload: bool) -> Result<Option<(FrameHeader, usize)>> {
        sys::pulse::beat();
        loop {
            if self.lsn >= limit {
                return Ok(None);
            }
            let ahead = usize::try_from(limit.since(self.lsn)).unwrap_or(AHEAD);
            if self.cursor.is_none() {
                self.cursor = self.seek(limit)?;
            }
            let Some(cursor) = &mut self.cursor else { continue };
            match cursor.step(payload, if payload { ahead.min(AHEAD) + FRAME_LEN } else { 0 }, limit)? {
                (Item::Frame(header), at) => {
                    self.lsn = header.end();
                    return Ok(Some((header, at)));
                }
                (Item::Header(_), _) => {}
                (Item::Trailer(_), _) => {
                    self.lsn = self.lsn.max(cursor.parser.segment().next().start());
                    self.cursor = None;
                }
            }
        }
    }

    /// Opens the segment of the position and goes there, header by header. `None`: the segment ends
    /// before the position, which moved to the next one.
    fn seek(&mut self, limit: Lsn) -> Result<Option<Cursor>> {
        let segment = self.lsn.segment();
        let Some(Opened { file, path, kept }) = open_segment(&self.dir, self.timeline, segment)? else {
            return Err(missing(&self.dir, self.timeline, segment));
        };
        let parser = Parser::new(self.system, kept.timeline, segment);
        let mut cursor = Cursor { file, path, parser, buf: Vec::new(), base: 0, sure: Lsn::ZERO };
        let mut started = false;
        while !started || cursor.parser.lsn() < self.lsn {
            match cursor.step(false, AHEAD, limit)?.0 {
                Item::Header(_) => started = true,
                Item::Frame(_) => {}
                Item::Trailer(_) => {
                    self.lsn = segment.next().start();
                    return Ok(None);
                }
            }
        }
        if cursor.parser.lsn() != self.lsn {
            let message = format!(
                "position {} is inside a frame of '{}'; a reader begins where a frame begins",
                self.lsn,
                cursor.path.display()
            );
            return Err(Error::new(ErrorKind::Corrupt, message));
        }
        Ok(Some(cursor))
    }
}
