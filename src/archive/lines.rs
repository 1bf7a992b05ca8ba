//! Timelines in an archive: their histories, and the segments that a branch ended.

use super::names::{self, EndedName, SegmentName};
use super::{Archive, COPIES_MAX, Kept, Put, check};
use crate::error::{Error, ErrorKind, Result};
use crate::history::{self, Branch, HISTORY_BYTES, History};
use crate::log::{self, SealedBy};
use crate::position::{SegmentNo, TimelineId};

impl Archive {
    /// Puts the history of a timeline there. That of the first one is not stored: it never branched.
    ///
    /// # Errors
    /// `Refused` when the archive has another line of that number: two nodes were promoted apart from each other.
    pub fn put_history(&self, history: &History) -> Result<Put> {
        self.belongs_to(history.system())?;
        if history.timeline() == TimelineId::FIRST {
            return Ok(Put::There);
        }
        let name = names::history(history.timeline());
        self.put(&name, &history.encode()).map_err(|e| match e.kind() {
            ErrorKind::Refused => e.wrap(&format!(
                "two nodes were promoted to timeline {} apart from each other; stop one of them and make it follow the other",
                history.timeline()
            )),
            _ => e,
        })
    }

    /// The history of a timeline; `None`: it is not there.
    ///
    /// # Errors
    /// `Corrupt` when it is damaged or another one's.
    pub fn history(&self, timeline: TimelineId) -> Result<Option<History>> {
        if timeline == TimelineId::FIRST {
            return Ok(Some(History::first(self.system())));
        }
        let name = names::history(timeline);
        let Some(bytes) = self.get(&name, HISTORY_BYTES as u64)? else { return Ok(None) };
        let wrong = |why: String| {
            let text = format!(
                "'{name}' in the archive '{}' is not good: {why}; {}",
                self.address(),
                history::SEAL.remedy
            );
            Error::new(ErrorKind::Corrupt, text)
        };
        let history = History::decode(&bytes).map_err(|e| wrong(e.to_string()))?;
        if (history.system(), history.timeline()) == (self.system(), timeline) {
            return Ok(Some(history));
        }
        Err(wrong(format!("it is that of timeline {} of system {}", history.timeline(), history.system())))
    }

    /// The timelines that the archive has a history of, ascending; the first one has none.
    ///
    /// # Errors
    /// Why the archive can't be asked.
    pub fn timelines(&self) -> Result<Vec<TimelineId>> {
        let mut found = Vec::new();
        self.list(names::HISTORY, "", &mut |entry| {
            let file = entry.name.strip_prefix(names::HISTORY).and_then(|n| n.strip_prefix('/'));
            found.extend(file.and_then(|n| history::parse_name(n.as_bytes())));
            Ok(true)
        })?;
        Ok(found)
    }

    /// The history of the newest timeline of the archive.
    ///
    /// # Errors
    /// As [`history`](Self::history).
    pub fn newest_history(&self) -> Result<History> {
        let newest = self.timelines()?.last().copied().unwrap_or(TimelineId::FIRST);
        self.history(newest)?.ok_or_else(|| {
            let text = format!(
                "the history of timeline {newest} went away from the archive '{}' meanwhile",
                self.address()
            );
            Error::new(ErrorKind::Unavailable, text)
        })
    }

    /// Puts the last segment of a line there that timeline `by` ended. Whether the bytes are one is the caller's business.
    ///
    /// # Errors
    /// Why the archive can't take it.
    pub fn put_ended(
        &self,
        timeline: TimelineId,
        segment: SegmentNo,
        by: TimelineId,
        bytes: &[u8],
    ) -> Result<Kept> {
        let name = EndedName { of: SegmentName::of(timeline, segment, bytes), by }.to_string();
        check(&name)?;
        let kept = match self.store.create(&name, bytes)? {
            Put::Made => Kept::Made,
            Put::There if self.get(&name, bytes.len() as u64)?.as_deref() == Some(bytes) => Kept::There,
            Put::There => {
                self.store.replace(&name, bytes)?;
                Kept::Mended
            }
        };
        self.confirm(&name, bytes.len())?;
        Ok(kept)
    }

    /// The last segment of a line that timeline `by` ended, checked against its name; `None`: it is not there.
    ///
    /// # Errors
    /// `Corrupt` when no copy is what its name says, or when two good ones differ.
    pub fn get_ended(
        &self,
        timeline: TimelineId,
        segment: SegmentNo,
        by: TimelineId,
    ) -> Result<Option<Vec<u8>>> {
        let number = names::ended(timeline, segment, by);
        let mut copies = Vec::new();
        self.list(&names::log_dir(timeline), number.trim_end_matches('-'), &mut |entry| {
            if !entry.name.starts_with(&number) {
                return Ok(false);
            }
            copies.extend(EndedName::parse(&entry.name));
            Ok(copies.len() < COPIES_MAX)
        })?;
        let (mut good, any) = (Vec::new(), !copies.is_empty());
        for name in copies {
            let bytes = self.get(&name.to_string(), name.of.size).ok().flatten();
            good.extend(bytes.filter(|b| name.of.is_of(b)));
        }
        match (good.len(), any) {
            (1, _) | (0, false) => Ok(good.pop()),
            (n, _) => {
                let why = if n == 0 { "is damaged" } else { "is there with different bytes" };
                let text = format!(
                    "the end of timeline {timeline}, segment {:X}, in the archive '{}' {why}",
                    segment.0,
                    self.address()
                );
                Err(Error::new(ErrorKind::Corrupt, text))
            }
        }
    }

    /// Whether the archive has the last segment of the line that `branch` ended, whoever sealed it.
    ///
    /// # Errors
    /// As [`get_segment`](Self::get_segment).
    pub fn has_end_of(&self, branch: &Branch) -> Result<bool> {
        let (timeline, segment) = (branch.parent, branch.last_segment());
        if self.get_ended(timeline, segment, branch.timeline)?.is_some() {
            return Ok(true);
        }
        let Some(bytes) = self.get_segment(timeline, segment)? else { return Ok(false) };
        // The line may have gone on beyond the branch.
        Ok(log::whole(&bytes, self.system(), timeline, segment).is_ok_and(|(_, t)| t.end == branch.at))
    }

    /// What there is of the log of a timeline from the segment `from` on: of each object the segment, the later timeline that
    /// ended the line in it, and its size.
    ///
    /// # Errors
    /// Why the archive can't be asked, or what `each` fails with.
    pub fn line(
        &self,
        timeline: TimelineId,
        from: SegmentNo,
        each: &mut dyn FnMut(SegmentName, Option<TimelineId>, u64) -> Result<bool>,
    ) -> Result<()> {
        let start = names::number(timeline, from);
        self.list(&names::log_dir(timeline), start.trim_end_matches('-'), &mut |entry| {
            if let Some(name) = SegmentName::parse(&entry.name) {
                return each(name, None, entry.size);
            }
            EndedName::parse(&entry.name).map_or(Ok(true), |name| each(name.of, Some(name.by), entry.size))
        })
    }

    /// A segment on the way of `history`, as far as it counts there, and which line has sealed it. `None`: it is not there.
    ///
    /// # Errors
    /// As [`get_segment`](Self::get_segment).
    pub fn segment_on_way(
        &self,
        history: &History,
        segment: SegmentNo,
    ) -> Result<Option<(SealedBy, Vec<u8>)>> {
        let timeline = history.timeline_of(segment);
        let branch = history.branch_off(timeline).filter(|b| b.last_segment() == segment);
        if let Some(by) = branch.map(|b| b.timeline)
            && let Some(bytes) = self.get_ended(timeline, segment, by)?
        {
            return Ok(Some((SealedBy { timeline, ended_by: Some(by) }, bytes)));
        }
        let found = self.get_segment(timeline, segment)?;
        Ok(found.map(|bytes| (SealedBy { timeline, ended_by: None }, bytes)))
    }
}
