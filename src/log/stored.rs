//! Reading stored bytes, to send them on as they are.

use std::fs::File;
use std::path::{Path, PathBuf};

use super::Tail;
use super::reader::{missing, open_segment};
use crate::error::{Error, ErrorKind, Result};
use crate::position::{SegmentNo, TimelineId};
use crate::sys;

/// Reads the stored bytes of segment files as far as they are durable.
#[derive(Debug)]
pub struct StoredReader {
    dir: PathBuf,
    timeline: TimelineId,
    segment: SegmentNo,
    offset: u64,
    file: Option<(File, PathBuf)>,
}

impl StoredReader {
    /// Reads from byte `offset` of the file of `segment`, which is opened when it is needed.
    pub fn open(dir: &Path, timeline: TimelineId, segment: SegmentNo, offset: u64) -> Result<Self> {
        Ok(Self { dir: dir.to_owned(), timeline, segment, offset, file: None })
    }

    /// Segment and offset of the next byte.
    #[must_use]
    pub fn position(&self) -> (SegmentNo, u64) {
        (self.segment, self.offset)
    }

    /// The next run of at most `max` durable bytes: segment, offset, bytes. `None`: the end is
    /// reached. A run never crosses into another file; the next call does, once the segment is sealed.
    ///
    /// # Errors
    /// `Missing` when the segment was removed, `Diverged` when the position is beyond `tail`.
    pub fn read(&mut self, tail: &Tail, max: usize) -> Result<Option<(SegmentNo, u64, Vec<u8>)>> {
        loop {
            if self.segment > tail.segment {
                let next = self.segment == tail.segment.next() && self.offset == 0;
                return if next { Ok(None) } else { Err(self.beyond(tail)) };
            }
            if self.segment == tail.segment && self.offset >= tail.offset {
                return if self.offset == tail.offset { Ok(None) } else { Err(self.beyond(tail)) };
            }
            let (file, path) = match &self.file {
                Some(open) => open,
                None => match open_segment(&self.dir, self.timeline, self.segment)? {
                    Some(open) => &*self.file.insert(open),
                    None => return Err(missing(&self.dir, self.timeline, self.segment)),
                },
            };
            // The file of an older segment is sealed: all of it is durable.
            let len = if self.segment == tail.segment {
                tail.offset
            } else {
                file.metadata().map_err(|e| Error::io("stat", path, e))?.len()
            };
            if self.offset > len {
                return Err(self.beyond(tail));
            }
            if self.offset == len {
                (self.segment, self.offset, self.file) = (self.segment.next(), 0, None);
                continue;
            }
            let want = usize::try_from(len - self.offset).unwrap_or(max).min(max);
            let mut bytes = vec![0; want];
            let n = sys::read_at(file, &mut bytes, self.offset).map_err(|e| Error::io("read", path, e))?;
            if n < want {
                let message = format!(
                    "log file '{}' is shorter than it was; fetch a good copy of it from another node",
                    path.display()
                );
                return Err(Error::new(ErrorKind::Corrupt, message));
            }
            let at = self.offset;
            self.offset += n as u64;
            return Ok(Some((self.segment, at, bytes)));
        }
    }

    fn beyond(&self, tail: &Tail) -> Error {
        let message = format!(
            "byte {} of segment {:X} is beyond the log, which ends at byte {} of segment {:X}",
            self.offset, self.segment.0, tail.offset, tail.segment.0
        );
        Error::new(ErrorKind::Diverged, message)
    }
}
