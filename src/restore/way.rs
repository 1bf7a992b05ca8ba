//! Which timeline a restore follows, and the way to it: what is known of timelines where the backup and the log come from.

use std::fmt;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::str::FromStr;

use super::logs::Source;
use crate::archive::Archive;
use crate::disk;
use crate::error::{Error, ErrorKind, Result};
use crate::history::{self, Branch, History};
use crate::log::SealedBy;
use crate::position::{Lsn, SegmentNo, SystemId, TimelineId};
use crate::state::{self, StateDir};

/// Which timeline is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Line {
    /// The newest that is known.
    #[default]
    Latest,
    /// That of the backup.
    Current,
    /// The one of this number.
    Number(TimelineId),
}

impl FromStr for Line {
    type Err = String;

    fn from_str(s: &str) -> std::result::Result<Self, String> {
        match (s, s.parse::<u32>()) {
            ("latest", _) => Ok(Self::Latest),
            ("current", _) => Ok(Self::Current),
            (_, Ok(n)) if n > 0 => Ok(Self::Number(TimelineId(n))),
            _ => Err(format!(
                "'{s}' is no timeline: give its number, which is at least 1, or latest, or current (that of the backup)"
            )),
        }
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Latest => f.write_str("latest"),
            Self::Current => f.write_str("current"),
            Self::Number(timeline) => timeline.fmt(f),
        }
    }
}

/// The way that is followed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Way {
    timeline: TimelineId,
    /// Not known: then only what is on that timeline itself counts.
    history: Option<History>,
}

impl Way {
    fn of(history: History) -> Self {
        Self { timeline: history.timeline(), history: Some(history) }
    }

    /// The timeline that it leads to.
    pub(super) fn timeline(&self) -> TimelineId {
        self.timeline
    }

    /// The history up to the line that `timeline` is on it.
    ///
    /// # Errors
    /// It is not known.
    pub(super) fn history(&self, timeline: TimelineId) -> Result<History> {
        self.history.as_ref().and_then(|h| h.upto(timeline)).ok_or_else(|| {
            let text = format!(
                "the history of timeline {timeline} is not known: name the archive, or the state directory of a node that is on \
                 it, with --log"
            );
            Error::new(ErrorKind::Missing, text)
        })
    }

    /// See [`History::timeline_of`].
    pub(super) fn timeline_of(&self, segment: SegmentNo) -> TimelineId {
        self.history.as_ref().map_or(self.timeline, |h| h.timeline_of(segment))
    }

    /// See [`History::timeline_at`].
    pub(super) fn timeline_at(&self, lsn: Lsn) -> TimelineId {
        self.history.as_ref().map_or(self.timeline, |h| h.timeline_at(lsn))
    }

    /// The branch that ends the line of this segment within it.
    pub(super) fn branch_in(&self, segment: SegmentNo) -> Option<&Branch> {
        let branch = self.history.as_ref()?.branch_off(self.timeline_of(segment));
        branch.filter(|b| b.last_segment() == segment)
    }

    /// The timeline as of which log up to this segment is read: what a branch has ended has the name that the line behind
    /// it gave it.
    pub(super) fn reads(&self, segment: SegmentNo) -> TimelineId {
        self.branch_in(segment).map_or_else(|| self.timeline_of(segment), |branch| branch.timeline)
    }

    /// What a whole segment of the way is called: ended where a branch is in it.
    pub(super) fn ended(&self, segment: SegmentNo) -> Option<SealedBy> {
        self.branch_in(segment).map(|b| SealedBy { timeline: b.parent, ended_by: Some(b.timeline) })
    }

    /// Whether what is whole at `end` of `timeline` is on it; otherwise why not.
    pub(super) fn holds(&self, timeline: TimelineId, end: Lsn) -> std::result::Result<(), String> {
        let on_way = match &self.history {
            None => timeline == self.timeline,
            Some(history) => history.line_of(timeline).is_some(),
        };
        let left = self.history.as_ref().and_then(|h| h.branch_off(timeline));
        match left {
            _ if !on_way => Err(format!(
                "it is of timeline {timeline}, which does not lead to timeline {}",
                self.timeline
            )),
            Some(branch) if end > branch.at => Err(format!(
                "it is whole at {end} of timeline {timeline}, and timeline {} branched off before, at {}",
                branch.timeline, branch.at
            )),
            _ => Ok(()),
        }
    }

    /// The timelines that it goes over from `from` on, ascending.
    pub(super) fn timelines(&self, from: SegmentNo) -> Vec<TimelineId> {
        let first = self.timeline_of(from);
        let branches = self.history.as_ref().map_or(&[][..], History::branches);
        let later = branches.iter().map(|b| b.timeline).filter(|t| *t > first);
        std::iter::once(first).chain(later).collect()
    }
}

/// What is known of timelines.
#[derive(Debug)]
pub(super) struct Known {
    archives: Vec<Archive>,
    histories: Vec<History>,
    /// The highest number that is in use.
    highest: TimelineId,
}

impl Known {
    /// From the archives and state directories of `places`.
    ///
    /// # Errors
    /// One can't be read.
    pub(super) fn of(places: &[Source]) -> Result<Self> {
        let mut known = Self { archives: Vec::new(), histories: Vec::new(), highest: TimelineId::FIRST };
        for place in places {
            match place.settled()? {
                Source::Archive(address) => {
                    let archive = Archive::open(&address)?;
                    let newest = archive.newest_history()?;
                    known.highest = known.highest.max(newest.timeline());
                    known.histories.push(newest);
                    known.archives.push(archive);
                }
                Source::Dir(dir) => known.look_into(&dir)?,
            }
        }
        Ok(known)
    }

    /// Of a state directory, that runs or not, what its control file says counts.
    fn look_into(&mut self, dir: &Path) -> Result<()> {
        if let Some(control) = StateDir::peek(dir)? {
            self.histories.push(state::history(dir, &control)?);
            self.highest = self.highest.max(control.timeline);
            return Ok(());
        }
        for entry in fs::read_dir(dir).map_err(|e| Error::io("list", dir, e))? {
            let path = entry.map_err(|e| Error::io("list", dir, e))?.path();
            if path.file_name().and_then(|n| history::parse_name(n.as_bytes())).is_some()
                && let Some(found) = disk::read_sealed(&path, &history::SEAL, History::decode)?
            {
                self.highest = self.highest.max(found.timeline());
                self.histories.push(found);
            }
        }
        Ok(())
    }

    /// Takes what a backup tells.
    pub(super) fn learn(&mut self, history: History) {
        self.highest = self.highest.max(history.timeline());
        self.histories.push(history);
    }

    /// Whether the line that has this number is known.
    ///
    /// # Errors
    /// Why an archive can't be asked.
    pub(super) fn knows(&self, system: SystemId, timeline: TimelineId) -> Result<bool> {
        let ours = |h: &&History| h.system() == system;
        if self.histories.iter().filter(ours).any(|h| h.line_of(timeline).is_some()) {
            return Ok(true);
        }
        for archive in self.archives.iter().filter(|a| a.system() == system) {
            if archive.history(timeline)?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The highest number of a timeline that is known to be in use.
    pub(super) fn highest(&self) -> TimelineId {
        self.highest
    }

    /// The way to what was asked for; `base`: where the backup is.
    ///
    /// # Errors
    /// That timeline is not known, or two lines have its number.
    pub(super) fn way(&self, asked: Line, system: SystemId, base: TimelineId) -> Result<Way> {
        let ours = || self.histories.iter().filter(|h| h.system() == system);
        let newest = ours().map(History::timeline).max().unwrap_or(TimelineId::FIRST);
        let timeline = match asked {
            Line::Latest => newest.max(base),
            Line::Current => base,
            Line::Number(timeline) => timeline,
        };
        let mut found: Option<History> = (timeline == TimelineId::FIRST).then(|| History::first(system));
        let archived = self.archives.iter().filter(|a| a.system() == system);
        let archived = archived.map(|a| a.history(timeline)).collect::<Result<Vec<_>>>()?;
        for history in ours().filter_map(|h| h.upto(timeline)).chain(archived.into_iter().flatten()) {
            if found.as_ref().is_some_and(|f| f.line() != history.line()) {
                let text = format!(
                    "two lines have the number {timeline} in what was given: name only the log of the one that is meant"
                );
                return Err(Error::new(ErrorKind::Diverged, text));
            }
            // The one that knows more of the beginning.
            if found.as_ref().is_none_or(|f| f.branches().len() < history.branches().len()) {
                found = Some(history);
            }
        }
        match found {
            Some(history) => Ok(Way::of(history)),
            None if timeline == base => Ok(Way { timeline, history: None }),
            None => {
                let text = format!(
                    "nothing is known of timeline {timeline}; the newest that is known is {}: name the archive, or the state \
                     directory of a node that is on it, with --log",
                    newest.max(base)
                );
                Err(Error::new(ErrorKind::Missing, text))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::Beginning;

    const SYSTEM: SystemId = SystemId(7);

    fn child(of: &History, segment: u64, line: u64, taken: u32) -> History {
        let begins = Beginning::sample(Lsn(SegmentNo(segment).start().0 + 9), line);
        of.child(begins, TimelineId(taken)).unwrap()
    }

    fn known(histories: &[&History]) -> Known {
        let highest = histories.iter().map(|h| h.timeline()).max().unwrap_or(TimelineId::FIRST);
        Known { archives: Vec::new(), histories: histories.iter().map(|h| (*h).clone()).collect(), highest }
    }

    #[test]
    fn timelines_are_read_and_shown() {
        for text in ["latest", "current", "1", "4294967295"] {
            assert_eq!(text.parse::<Line>().unwrap().to_string(), text);
        }
        for bad in ["", "0", "-1", "newest", "4294967296", "0x2"] {
            assert!(bad.parse::<Line>().unwrap_err().contains(&format!("'{bad}'")), "{bad}");
        }
    }

    #[test]
    fn the_way_is_that_of_the_newest_of_the_backup_or_of_a_number() {
        let first = History::first(SYSTEM);
        let second = child(&first, 5, 2, 1);
        // Begun at an older place of the first timeline: the second is not on its way.
        let third = child(&first, 4, 3, 2);
        let all = known(&[&second, &third]);
        let to = |line, base| all.way(line, SYSTEM, TimelineId(base)).map(|w| w.timeline().0);
        assert_eq!((to(Line::Latest, 1).unwrap(), to(Line::Current, 1).unwrap()), (3, 1));
        assert_eq!((to(Line::Current, 2).unwrap(), to(Line::Number(TimelineId(2)), 1).unwrap()), (2, 2));
        assert!(
            to(Line::Number(TimelineId(4)), 1).unwrap_err().to_string().contains("newest that is known is 3")
        );
        let way = all.way(Line::Latest, SYSTEM, TimelineId::FIRST).unwrap();
        assert!(way.holds(TimelineId(2), Lsn(1)).unwrap_err().contains("does not lead to timeline 3"));
        let branch = Lsn(SegmentNo(4).start().0 + 9);
        assert_eq!(way.holds(TimelineId(1), branch), Ok(()));
        assert!(way.holds(TimelineId(1), Lsn(branch.0 + 1)).unwrap_err().contains("branched off before"));
        assert_eq!((way.timeline_of(SegmentNo(4)).0, way.timeline_of(SegmentNo(5)).0), (1, 3));
        assert_eq!(way.timelines(SegmentNo(1)), [TimelineId(1), TimelineId(3)]);
        assert_eq!(way.timelines(SegmentNo(9)), [TimelineId(3)]);
        // What is of another system counts for nothing, and two lines of one number are no way.
        let other = known(&[&child(&History::first(SystemId(8)), 5, 2, 1)]);
        assert_eq!(other.way(Line::Latest, SYSTEM, TimelineId::FIRST).unwrap().timeline(), TimelineId::FIRST);
        let apart = known(&[&second, &child(&first, 6, 9, 1)]);
        let e = apart.way(Line::Latest, SYSTEM, TimelineId::FIRST).unwrap_err();
        assert!(
            e.kind() == ErrorKind::Diverged && e.to_string().contains("two lines have the number 2"),
            "{e}"
        );
    }

    #[test]
    fn without_a_history_only_the_timeline_of_the_backup_can_be_followed() {
        let none = known(&[]);
        let way = none.way(Line::Latest, SYSTEM, TimelineId(2)).unwrap();
        assert_eq!((way.timeline(), way.timeline_of(SegmentNo(1))), (TimelineId(2), TimelineId(2)));
        assert!(way.history(TimelineId(2)).unwrap_err().to_string().contains("--log"));
        assert!(way.holds(TimelineId(2), Lsn(u64::MAX)).is_ok() && way.holds(TimelineId(1), Lsn(1)).is_err());
        assert!(none.way(Line::Number(TimelineId(2)), SYSTEM, TimelineId(1)).is_err());
    }
}
