//! Folding what a log says after a checkpoint.

use std::path::Path;

use super::Fold;
use crate::error::{Error, ErrorKind, Result};
use crate::log::FrameReader;
use crate::position::{Lsn, SystemId, TimelineId};
use crate::record::{Record, Records};
use crate::segment::flags;

/// Log of one timeline on disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "they say what they are")]
pub struct Stored<'a> {
    pub dir: &'a Path,
    pub system: SystemId,
    pub timeline: TimelineId,
}

impl Fold {
    /// Folds every change set that is complete at `to`, from the position of the catalog on; aborted ones are passed over.
    /// The fold is loose until the caller says otherwise.
    ///
    /// # Errors
    /// The log can't be read, or its records do not fit.
    pub fn replay(&mut self, log: Stored<'_>, to: Lsn) -> Result<()> {
        let from = self.read().lsn();
        let open = || FrameReader::open(log.dir, log.system, log.timeline, from);
        let (mut ahead, mut reader) = (open()?, open()?);
        self.begin_loose();
        // Headers tell how a change set ends, so its records are read only once it is known to count.
        while let Some(header) = ahead.next_header(to)? {
            if header.flags & flags::ENDS == 0 {
                continue;
            }
            let (end, aborted) = (header.end(), header.flags & flags::ABORT != 0);
            let mut at = Lsn::ZERO;
            while at < end {
                let next = match aborted {
                    true => reader.next_header(to)?.map(|h| h.end()),
                    false => self.frame(&mut reader, to)?,
                };
                at = next.ok_or_else(|| {
                    let text = format!("the log in '{}' breaks off before {end}", log.dir.display());
                    Error::new(ErrorKind::Corrupt, text)
                })?;
            }
        }
        Ok(())
    }

    fn frame(&mut self, reader: &mut FrameReader, to: Lsn) -> Result<Option<Lsn>> {
        let Some(frame) = reader.next(to)? else { return Ok(None) };
        for item in Records::new(&frame.raw) {
            let (_, record) = item?;
            self.record(&record)?;
            if let Record::Commit(c) = record {
                self.write().set_position(frame.end, c.cut, c.time);
            }
        }
        Ok(Some(frame.end))
    }
}
