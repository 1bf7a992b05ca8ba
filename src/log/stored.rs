//! Reading stored bytes, to send them on as they are.

use std::fs::File;
use std::path::{Path, PathBuf};

use super::Tail;
use super::reader::{Opened, missing, open_segment};
use crate::error::{Error, ErrorKind, Result};
use crate::position::{SegmentNo, TimelineId};
use crate::sys;

/// Durable bytes that come next: they begin at `offset` of the file of `segment` and go on to its durable end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ahead {
    /// The segment.
    pub segment: SegmentNo,
    /// The first of them.
    pub offset: u64,
    /// How many there are, at least one.
    pub len: u64,
}

/// Reads the stored bytes of segment files as far as they are durable.
#[derive(Debug)]
pub struct StoredReader {
    dir: PathBuf,
    timeline: TimelineId,
    segment: SegmentNo,
    offset: u64,
    file: Option<Open>,
}

#[derive(Debug)]
struct Open {
    file: File,
    path: PathBuf,
    /// Its length, once it is known to be sealed.
    sealed: Option<u64>,
}

impl StoredReader {
    /// Reads from byte `offset` of the file of `segment`, which is opened when it is needed.
    #[must_use]
    pub fn new(dir: &Path, timeline: TimelineId, segment: SegmentNo, offset: u64) -> Self {
        Self { dir: dir.to_owned(), timeline, segment, offset, file: None }
    }

    /// Segment and offset of the next byte.
    #[must_use]
    pub fn position(&self) -> (SegmentNo, u64) {
        (self.segment, self.offset)
    }

    /// What can be read next. `None`: the end is reached. It never crosses into another file; when one ends, the
    /// position moves to the next.
    ///
    /// # Errors
    /// `Missing` when the segment was removed, `Diverged` when the position is beyond `tail`.
    pub fn ahead(&mut self, tail: &Tail) -> Result<Option<Ahead>> {
        loop {
            if self.segment > tail.segment {
                let next = self.segment == tail.segment.next() && self.offset == 0;
                return if next { Ok(None) } else { Err(self.beyond(tail)) };
            }
            if self.segment == tail.segment && self.offset >= tail.offset {
                return if self.offset == tail.offset { Ok(None) } else { Err(self.beyond(tail)) };
            }
            // The file of an older segment is sealed: all of it is durable.
            let end = if self.segment == tail.segment { tail.offset } else { self.sealed_len()? };
            if self.offset > end {
                return Err(self.beyond(tail));
            }
            if self.offset < end {
                let len = end - self.offset;
                return Ok(Some(Ahead { segment: self.segment, offset: self.offset, len }));
            }
            (self.segment, self.offset, self.file) = (self.segment.next(), 0, None);
        }
    }

    /// Goes on by bytes that are [`ahead`](Self::ahead), read here or had otherwise.
    pub fn advance(&mut self, len: u64) {
        self.offset += len;
    }

    /// Reads `bytes` at the position, as many as are [`ahead`](Self::ahead) at most, and stays there. True: it can do so
    /// always.
    ///
    /// # Errors
    /// `Missing`, `Corrupt` when the file is shorter than it was, the operating system's.
    pub fn read(&mut self, bytes: &mut [u8]) -> Result<bool> {
        let offset = self.offset;
        let Open { file, path, .. } = &*self.open()?;
        let n = sys::read_at(file, bytes, offset).map_err(|e| Error::io("read", path, e))?;
        if n < bytes.len() {
            let message = format!(
                "log file '{}' is shorter than it was; fetch a good copy of it from another node",
                path.display()
            );
            return Err(Error::new(ErrorKind::Corrupt, message));
        }
        Ok(true)
    }

    /// Like [`read`](Self::read), if that can be done without waiting for a disk; false when not.
    ///
    /// # Errors
    /// `Missing`, the operating system's.
    pub fn read_cached(&mut self, bytes: &mut [u8]) -> Result<bool> {
        let offset = self.offset;
        Ok(sys::read_cached_at(&self.open()?.file, bytes, offset))
    }

    fn open(&mut self) -> Result<&mut Open> {
        if self.file.is_none() {
            let Some(Opened { file, path, .. }) = open_segment(&self.dir, self.timeline, self.segment)?
            else {
                return Err(missing(&self.dir, self.timeline, self.segment));
            };
            self.file = Some(Open { file, path, sealed: None });
        }
        let gone = || missing(&self.dir, self.timeline, self.segment);
        self.file.as_mut().ok_or_else(gone)
    }

    fn sealed_len(&mut self) -> Result<u64> {
        let open = self.open()?;
        if let Some(len) = open.sealed {
            return Ok(len);
        }
        let len = open.file.metadata().map_err(|e| Error::io("stat", &open.path, e))?.len();
        Ok(*open.sealed.insert(len))
    }

    fn beyond(&self, tail: &Tail) -> Error {
        let message = format!(
            "byte {} of segment {:X} is beyond the log, which ends at byte {} of segment {:X}",
            self.offset, self.segment.0, tail.offset, tail.segment.0
        );
        Error::new(ErrorKind::Diverged, message)
    }
}
