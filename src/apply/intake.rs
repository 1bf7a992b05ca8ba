//! What of the log can be applied: complete change sets that were not aborted, up to a cut.

use std::collections::VecDeque;
use std::path::PathBuf;

use crate::error::{Error, ErrorKind, Result};
use crate::log::{Frame, FrameReader};
use crate::position::{Lsn, SystemId, TimelineId};
use crate::segment::flags;

use super::ApplyCuts;

/// A batch takes more change sets while it has less raw log than this: 64 MiB.
pub(crate) const BATCH_BYTES: u64 = 64 << 20;
/// A batch of at most this much raw log is kept in memory between its passes: 8 MiB.
pub(crate) const KEEP_BYTES: u64 = 8 << 20;

/// One complete change set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) start: Lsn,
    pub(crate) end: Lsn,
    pub(crate) exact: bool,
    pub(crate) aborted: bool,
}

/// Where the log is.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    pub(crate) dir: PathBuf,
    pub(crate) system: SystemId,
    pub(crate) timeline: TimelineId,
}

impl Source {
    pub(crate) fn open(&self, from: Lsn) -> Result<FrameReader> {
        FrameReader::open(&self.dir, self.system, self.timeline, from)
    }
}

/// Looks ahead of apply for change sets that are complete.
pub(crate) struct Intake {
    source: Source,
    ahead: FrameReader,
    /// Stands where the last batch ended. A new reader has to pass over its segment from the start, which on a
    /// quiet tree would be most of the work.
    behind: Option<FrameReader>,
    /// Start of the change set that is not complete yet.
    open: Option<Lsn>,
    spans: VecDeque<Span>,
    cuts: ApplyCuts,
    /// How many of `spans` end on a cut to rest on.
    rests: usize,
}

/// A run of complete change sets that ends on a cut the directory may rest on.
#[derive(Clone, Debug, Default)]
pub(crate) struct Batch {
    pub(crate) spans: Vec<Span>,
}

impl Batch {
    pub(crate) fn start(&self) -> Lsn {
        self.spans.first().map_or(Lsn::ZERO, |s| s.start)
    }

    pub(crate) fn end(&self) -> Lsn {
        self.spans.last().map_or(Lsn::ZERO, |s| s.end)
    }

    /// Bytes of raw log.
    pub(crate) fn bytes(&self) -> u64 {
        self.end().since(self.start())
    }
}

impl Intake {
    pub(crate) fn open(source: Source, from: Lsn, cuts: ApplyCuts) -> Result<Self> {
        let ahead = source.open(from)?;
        Ok(Self { source, ahead, behind: None, open: None, spans: VecDeque::new(), cuts, rests: 0 })
    }

    pub(crate) fn source(&self) -> &Source {
        &self.source
    }

    /// The next batch within the durable log before `limit`; `None` when no cut is reached yet.
    pub(crate) fn next(&mut self, limit: Lsn) -> Result<Option<Batch>> {
        while !(self.rests > 0 && self.waiting() >= BATCH_BYTES) && self.look(limit)? {}
        Ok(self.ready().map(|n| self.take(n)))
    }

    /// Everything up to the newest cut before `limit`, however much, when that is at or after `floor`.
    pub(crate) fn all(&mut self, limit: Lsn, floor: Lsn) -> Result<Option<Batch>> {
        while self.look(limit)? {}
        let newest = self.spans.iter().rposition(|s| self.rest_on(s)).map(|i| i + 1);
        Ok(newest.filter(|&n| self.spans[n - 1].end >= floor).map(|n| self.take(n)))
    }

    /// Bytes of the complete change sets that wait for a cut to rest on; `None` when there are none.
    pub(crate) fn stuck(&self) -> Option<u64> {
        let some = self.rests == 0 && self.spans.iter().any(|s| !s.aborted);
        some.then(|| self.waiting())
    }

    /// Everything up to the newest change set that is complete, whatever its cut.
    pub(crate) fn newest(&mut self) -> Option<Batch> {
        let newest = self.spans.iter().rposition(|s| !s.aborted)?;
        Some(self.take(newest + 1))
    }

    /// The frames of a batch, for the first time; given back with [`done`](Self::done).
    pub(crate) fn frames<'a>(&mut self, batch: &'a Batch) -> Result<Frames<'a>> {
        let reader = match self.behind.take().filter(|r| r.position() == batch.start()) {
            Some(reader) => reader,
            None => self.source.open(batch.start())?,
        };
        Ok(Frames { reader, spans: &batch.spans, at: 0 })
    }

    /// All frames of a batch were read.
    pub(crate) fn done(&mut self, frames: Frames<'_>) {
        self.behind = Some(frames.reader);
    }

    /// From here on these cuts are good to rest on.
    pub(crate) fn allow(&mut self, cuts: ApplyCuts) {
        self.cuts = cuts;
        self.rests = self.spans.iter().filter(|s| self.rest_on(s)).count();
    }

    fn take(&mut self, count: usize) -> Batch {
        let spans: Vec<Span> = self.spans.drain(..count).collect();
        self.rests -= spans.iter().filter(|s| self.rest_on(s)).count();
        Batch { spans }
    }

    fn waiting(&self) -> u64 {
        match (self.spans.front(), self.spans.back()) {
            (Some(first), Some(last)) => last.end.since(first.start),
            _ => 0,
        }
    }

    fn rest_on(&self, span: &Span) -> bool {
        !span.aborted && (span.exact || self.cuts == ApplyCuts::File)
    }

    /// How many change sets to take: up to the last cut within the size of a batch, else to the first one.
    fn ready(&self) -> Option<usize> {
        let first = self.spans.front()?.start;
        let mut best = None;
        for (i, span) in self.spans.iter().enumerate() {
            if best.is_some() && span.end.since(first) > BATCH_BYTES {
                break;
            }
            if self.rest_on(span) {
                best = Some(i + 1);
            }
        }
        best
    }

    /// Takes one frame's header; false at the durable end.
    fn look(&mut self, limit: Lsn) -> Result<bool> {
        let Some(header) = self.ahead.next_header(limit)? else { return Ok(false) };
        let starts = header.flags & flags::STARTS != 0;
        match self.open {
            None if starts => self.open = Some(header.start),
            Some(_) if !starts => {}
            _ => {
                return Err(Error::new(
                    ErrorKind::Corrupt,
                    format!(
                        "the frame at {} does not follow: a change set starts in another one; run 'towline log \
                         verify' here and on the upstream",
                        header.start
                    ),
                ));
            }
        }
        if header.flags & flags::ENDS != 0
            && let Some(start) = self.open.take()
        {
            let span = Span {
                start,
                end: header.end(),
                exact: header.flags & flags::EXACT != 0,
                aborted: header.flags & flags::ABORT != 0,
            };
            self.rests += usize::from(self.rest_on(&span));
            self.spans.push_back(span);
        }
        Ok(true)
    }
}

/// Reads the frames of a batch's change sets, the aborted ones left out.
pub(crate) struct Frames<'a> {
    reader: FrameReader,
    spans: &'a [Span],
    at: usize,
}

impl<'a> Frames<'a> {
    pub(crate) fn open(source: &Source, batch: &'a Batch) -> Result<Self> {
        Ok(Self { reader: source.open(batch.start())?, spans: &batch.spans, at: 0 })
    }

    /// The next frame, and whether it is the last one of its change set.
    pub(crate) fn next(&mut self) -> Result<Option<(Frame, Option<Span>)>> {
        while let Some(span) = self.spans.get(self.at) {
            let end = span.end;
            if span.aborted {
                match self.reader.next_header(end)? {
                    Some(header) if header.end() < end => {}
                    _ => self.at += 1,
                }
                continue;
            }
            let Some(frame) = self.reader.next(end)? else {
                return Err(Error::new(
                    ErrorKind::Missing,
                    format!(
                        "the log ends before {end}, which was complete a moment ago: somebody removed segments; put \
                         them back from another node"
                    ),
                ));
            };
            if frame.end < end {
                return Ok(Some((frame, None)));
            }
            self.at += 1;
            return Ok(Some((frame, Some(*span))));
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;
    use std::time::Duration;

    use super::*;
    use crate::log::{Log, LogOptions};
    use crate::position::Cut;
    use crate::record::{Commit, Record};

    #[test]
    fn a_batch_is_read_from_where_the_last_one_ended() {
        let dir = tempfile::tempdir().unwrap();
        let source = Source { dir: dir.path().to_owned(), system: SystemId(1), timeline: TimelineId(1) };
        let log = Log::open_leader(LogOptions {
            dir: source.dir.clone(),
            system: source.system,
            timeline: source.timeline,
            segment_timeout: Duration::from_secs(3600),
            level: 1,
        })
        .unwrap();
        let commit = |time| {
            let mut raw = Vec::new();
            let commit = Commit { cut: Cut::Exact, partial: false, time, meta: 0, content: 0, inodes: 1 };
            Record::Commit(commit).encode(&mut raw);
            let (_, end) = log.append(raw, flags::STARTS | flags::ENDS | flags::EXACT).unwrap();
            assert!(log.wait_durable(end, Duration::from_secs(60)).unwrap());
        };
        let mut intake = Intake::open(source.clone(), Lsn::FIRST, ApplyCuts::Exact).unwrap();
        let read = |intake: &mut Intake| {
            let batch = intake.next(log.tail().end).unwrap().unwrap();
            let mut frames = intake.frames(&batch).unwrap();
            let mut count = 0;
            while frames.next().unwrap().is_some() {
                count += 1;
            }
            intake.done(frames);
            count
        };
        commit(1);
        commit(2);
        assert_eq!(read(&mut intake), 2);
        commit(3);
        // Whoever reads the segment from its start stumbles.
        let file = std::fs::read_dir(dir.path()).unwrap().next().unwrap().unwrap().path();
        std::fs::OpenOptions::new().write(true).open(file).unwrap().write_all_at(&[0xff; 16], 0).unwrap();
        assert!(source.open(Lsn::FIRST).unwrap().next(log.tail().end).is_err());
        assert_eq!(read(&mut intake), 1);
    }
}
