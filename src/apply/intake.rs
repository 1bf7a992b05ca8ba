//! What of the log can be applied: complete change sets that were not aborted, up to a cut.

use std::collections::VecDeque;
use std::path::PathBuf;

use crate::error::{Error, ErrorKind, Result};
use crate::log::{self, Frame, FrameReader};
use crate::position::{Lsn, SystemId, TimelineId};
use crate::record::{PointName, Record, Records};
use crate::segment::{FrameHeader, flags};

use super::ApplyCuts;
use super::until::{self, Until};

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
    /// When it was committed, if that had to be known.
    pub(crate) time: Option<i64>,
    /// It is the restore point that is looked for.
    pub(crate) point: bool,
}

impl Span {
    pub(crate) fn commit(&self) -> until::Commit {
        until::Commit {
            end: self.end,
            time: self.time,
            exact: self.exact && !self.aborted,
            point: self.point,
        }
    }
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

    /// Whether the restore point `name` ends in the log from `from` on before `at`.
    pub(crate) fn has_point(&self, from: Lsn, at: Lsn, name: PointName) -> Result<bool> {
        let mut reader = self.open(from)?;
        while let Some(frame) = reader.next(at)? {
            if Said::of(&frame, Some(name))?.point {
                return Ok(frame.end < at);
            }
        }
        Ok(false)
    }

    /// The frame that ends at `at`, if the log still has it.
    fn last_before(&self, at: Lsn) -> Result<Option<Frame>> {
        let Some(start) = log::start_before(&self.dir, self.timeline, at)? else { return Ok(None) };
        let mut reader = self.open(start)?;
        let mut begin = start;
        while let Some(header) = reader.next_header(at)? {
            if header.end() >= at {
                let frame = self.open(begin)?.next(at)?;
                return Ok(frame.filter(|f| f.end == at));
            }
            begin = header.end();
        }
        Ok(None)
    }
}

/// What a frame says of the change set that it ends.
#[derive(Default)]
struct Said {
    time: Option<i64>,
    /// It is the restore point of the name that was asked for.
    point: bool,
}

impl Said {
    fn of(frame: &Frame, point: Option<PointName>) -> Result<Self> {
        let mut said = Self::default();
        if frame.flags & flags::ENDS == 0 {
            return Ok(said);
        }
        for record in Records::new(&frame.raw) {
            let (_, record) = record.map_err(|e| Error::from(e).with_kind(ErrorKind::Corrupt))?;
            match record {
                Record::Commit(commit) => said.time = Some(commit.time),
                Record::RestorePoint { name, .. } => {
                    said.point |= point.is_some_and(|p| p.as_bytes() == name)
                }
                _ => {}
            }
        }
        Ok(said)
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
    /// How much may be applied, and the leader's clock when that was last asked.
    until: Until,
    now: i64,
    /// How many of `spans` end on a cut to rest on.
    rests: usize,
    /// A position, and whether the restore point that is looked for ends there.
    point: Option<(Lsn, bool)>,
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
        Ok(Self {
            source,
            ahead,
            behind: None,
            open: None,
            spans: VecDeque::new(),
            cuts,
            until: Until::default(),
            now: i64::MAX,
            rests: 0,
            point: None,
        })
    }

    pub(crate) fn source(&self) -> &Source {
        &self.source
    }

    /// From here on so much may be applied. What was looked at already is looked at again where times are needed.
    pub(crate) fn bound(&mut self, until: Until) -> Result<()> {
        let other = until.point() != self.until.point();
        if until.inside() && (other || !self.until.inside()) {
            let from = self.spans.front().map(|s| s.start).or(self.open);
            if let Some(from) = from {
                self.ahead = self.source.open(from)?;
                (self.open, self.rests) = (None, 0);
                self.spans.clear();
            }
            self.point = None;
        }
        self.until = until;
        Ok(())
    }

    /// What the leader's clock shows, which decides what a delay holds back.
    pub(crate) fn clock(&mut self, now: i64) {
        self.now = now;
    }

    /// How many change sets in front may be applied at `now`.
    fn allowed(&self, now: i64) -> usize {
        let held = |s: &Span| self.until.past(s.commit()) || self.until.due(s.time) > now;
        let count = self.spans.iter().position(held).unwrap_or(self.spans.len());
        let ends =
            self.spans.iter().take(count).position(|s| self.rest_on(s) && self.until.ends_on(s.commit()));
        ends.map_or(count, |i| i + 1)
    }

    /// Where the directory will be at most at `now`, when it goes on.
    pub(crate) fn horizon(&self, now: i64) -> Option<Lsn> {
        self.allowed(now).checked_sub(1).and_then(|i| self.spans.get(i)).map(|s| s.end)
    }

    /// When the next cut to rest on may be applied, by the leader's clock; `None`: there is none, or none but past the
    /// target.
    pub(crate) fn due(&self) -> Option<i64> {
        let mut due = i64::MIN;
        for span in &self.spans {
            if self.until.past(span.commit()) {
                return None;
            }
            due = due.max(self.until.due(span.time));
            if self.rest_on(span) {
                return Some(due);
            }
        }
        None
    }

    /// Whether no cut is left between the directory, which is on one at `at`, and the target, whatever is to come.
    pub(crate) fn reached(&self, at: until::Commit) -> bool {
        if self.until.ends_on(at) {
            return true;
        }
        let beyond = match self.until.stop {
            Some(super::StopAt::Lsn(target)) => self.ahead.position() > target,
            Some(super::StopAt::Time(_)) => self.spans.iter().any(|s| self.until.past(s.commit())),
            Some(super::StopAt::Exact | super::StopAt::Point(_)) | None => false,
        };
        beyond && self.due().is_none()
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

    /// Everything up to the first cut before `limit` at or after `floor`.
    pub(crate) fn first(&mut self, limit: Lsn, floor: Lsn) -> Result<Option<Batch>> {
        loop {
            if let Some(i) = self.spans.iter().position(|s| s.end >= floor && self.rest_on(s)) {
                return Ok(Some(self.take(i + 1)));
            }
            if !self.look(limit)? {
                return Ok(None);
            }
        }
    }

    /// Bytes of the complete change sets that wait for a cut to rest on; `None` when there are none.
    pub(crate) fn stuck(&self) -> Option<u64> {
        let some = self.rests == 0 && self.spans.iter().any(|s| !s.aborted);
        some.then(|| self.waiting())
    }

    /// Everything up to the newest change set that is complete, whatever its cut.
    pub(crate) fn newest(&mut self) -> Option<Batch> {
        let allowed = self.spans.iter().take(self.allowed(self.now));
        let newest = allowed.enumerate().rfind(|(_, s)| !s.aborted)?.0;
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
        self.point = spans.last().map(|s| (s.end, s.point));
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
        let allowed = if self.until.bounded() { self.allowed(self.now) } else { self.spans.len() };
        for (i, span) in self.spans.iter().take(allowed).enumerate() {
            if best.is_some() && span.end.since(first) > BATCH_BYTES {
                break;
            }
            if self.rest_on(span) {
                best = Some(i + 1);
            }
        }
        best
    }

    /// The next frame, without its records, and what they say where that matters.
    fn peek(&mut self, limit: Lsn) -> Result<Option<(Frame, Said)>> {
        if !self.until.inside() {
            let header = self.ahead.next_header(limit)?;
            let bare =
                |h: FrameHeader| Frame { start: h.start, end: h.end(), flags: h.flags, raw: Vec::new() };
            return Ok(header.map(|h| (bare(h), Said::default())));
        }
        let Some(frame) = self.ahead.next(limit)? else { return Ok(None) };
        let said = Said::of(&frame, self.until.point())?;
        Ok(Some((Frame { raw: Vec::new(), ..frame }, said)))
    }

    /// Whether the restore point that is looked for ends at `at`, where the directory is. After a start that is found in
    /// the log before.
    pub(crate) fn on_point(&mut self, at: Lsn) -> Result<bool> {
        let Some(name) = self.until.point() else { return Ok(false) };
        if let Some((known, is)) = self.point
            && known == at
        {
            return Ok(is);
        }
        let is = match self.source.last_before(at)? {
            Some(frame) => Said::of(&frame, Some(name))?.point,
            None => false,
        };
        self.point = Some((at, is));
        Ok(is)
    }

    /// Takes one frame's header; false at the durable end.
    fn look(&mut self, limit: Lsn) -> Result<bool> {
        let Some((header, said)) = self.peek(limit)? else { return Ok(false) };
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
                end: header.end,
                exact: header.flags & flags::EXACT != 0,
                aborted: header.flags & flags::ABORT != 0,
                time: said.time,
                point: said.point,
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

    /// A log of commits at these times; every one that `exact` names is an exact cut.
    fn log_of(dir: &std::path::Path, commits: &[(i64, bool)]) -> (Log, Source, Vec<Lsn>) {
        let source = Source { dir: dir.to_owned(), system: SystemId(1), timeline: TimelineId(1) };
        let log = Log::open_leader(LogOptions {
            dir: source.dir.clone(),
            system: source.system,
            timeline: source.timeline,
            segment_timeout: Duration::from_secs(3600),
            level: 1,
        })
        .unwrap();
        let mut ends = Vec::new();
        for &(time, exact) in commits {
            let cut = if exact { Cut::Exact } else { Cut::File };
            let mut raw = Vec::new();
            let commit = Commit { cut, partial: false, time, meta: 0, content: 0, inodes: 1 };
            Record::Commit(commit).encode(&mut raw);
            let exact = if exact { flags::EXACT } else { 0 };
            let (_, end) = log.append(raw, flags::STARTS | flags::ENDS | exact).unwrap();
            assert!(log.wait_durable(end, Duration::from_secs(60)).unwrap());
            ends.push(end);
        }
        (log, source, ends)
    }

    #[test]
    fn a_delay_holds_back_what_is_younger_and_everything_behind_it() {
        let dir = tempfile::tempdir().unwrap();
        // The clock of the leader went back once.
        let (log, source, ends) = log_of(dir.path(), &[(10, true), (30, false), (20, true), (40, true)]);
        let mut intake = Intake::open(source, Lsn::FIRST, ApplyCuts::Exact).unwrap();
        let end = log.tail().end;
        let last = |intake: &mut Intake, now| {
            intake.clock(now);
            intake.next(end).unwrap().map(|b| b.end())
        };
        // Looked at before the delay was known.
        assert!(intake.look(end).unwrap() && intake.look(end).unwrap());
        intake.bound(Until { delay: Duration::from_nanos(5), stop: None }).unwrap();
        assert_eq!((last(&mut intake, 14), intake.due()), (None, Some(15)));
        assert_eq!(
            (intake.horizon(14), intake.horizon(15), intake.horizon(34)),
            (None, Some(ends[0]), Some(ends[0]))
        );
        assert_eq!(last(&mut intake, 20), Some(ends[0]));
        assert_eq!((last(&mut intake, 34), intake.due()), (None, Some(35)));
        assert_eq!(last(&mut intake, 35), Some(ends[2]));
        assert_eq!(last(&mut intake, 44), None);
        intake.bound(Until::default()).unwrap();
        assert_eq!(last(&mut intake, 0), Some(ends[3]));
    }

    #[test]
    fn a_target_ends_replay_on_the_last_cut_before_it() {
        let commits = [(10, true), (20, false), (30, true), (40, true)];
        let dir = tempfile::tempdir().unwrap();
        let (log, source, ends) = log_of(dir.path(), &commits);
        let end = log.tail().end;
        let stops = |stop, cuts| {
            let mut intake = Intake::open(source.clone(), Lsn::FIRST, cuts).unwrap();
            intake.bound(Until { delay: Duration::ZERO, stop: Some(stop) }).unwrap();
            let mut at = until::Commit { end: Lsn::FIRST, time: Some(0), exact: false, point: false };
            while !intake.reached(at)
                && let Some(batch) = intake.next(end).unwrap()
            {
                at = batch.spans.last().unwrap().commit();
            }
            (ends.iter().position(|e| *e == at.end), intake.reached(at))
        };
        use super::super::StopAt;
        let before = |n: usize| StopAt::Lsn(Lsn(ends[n].0 - 1));
        assert_eq!(stops(StopAt::Lsn(ends[2]), ApplyCuts::Exact), (Some(2), true));
        assert_eq!(stops(before(2), ApplyCuts::Exact), (Some(0), true));
        assert_eq!(stops(before(2), ApplyCuts::File), (Some(1), true));
        assert_eq!(stops(before(0), ApplyCuts::Exact), (None, true));
        assert_eq!(stops(StopAt::Time(30), ApplyCuts::Exact), (Some(2), true));
        assert_eq!(stops(StopAt::Time(29), ApplyCuts::Exact), (Some(0), true));
        assert_eq!(stops(StopAt::Exact, ApplyCuts::File), (Some(0), true));
        // The log ends before the target: more may come.
        assert_eq!(stops(StopAt::Lsn(Lsn(end.0 + 1)), ApplyCuts::Exact), (Some(3), false));
        assert_eq!(stops(StopAt::Time(40), ApplyCuts::Exact), (Some(3), false));
    }

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
