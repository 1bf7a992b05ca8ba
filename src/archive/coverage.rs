//! What log an archive holds, from the names and sizes of its objects: ranges, and what is wrong between and in them. Pure.

use std::fmt;

use serde::{Serialize, Serializer};

use super::names::{EndedName, SegmentName};
use crate::history::{Branch, History};
use crate::position::{SegmentNo, TimelineId};

/// Most problems that are named.
const PROBLEMS_MAX: usize = 10_000;

/// Segments of one timeline without a hole, of which there is a good copy each.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Span {
    /// Its timeline.
    pub timeline: TimelineId,
    /// The first segment.
    pub first: SegmentNo,
    /// The last one.
    pub last: SegmentNo,
    /// Bytes of the objects.
    pub bytes: u64,
}

/// What may be wrong with a range of segments.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    /// They are not there.
    Gap,
    /// Their objects are empty.
    Empty,
    /// Their objects are not as large as their names say.
    WrongSize,
    /// There are two different ones with one number.
    Duplicate,
    /// They are not what their names say, or no sealed segments.
    Damaged,
    /// The first is not what the one before it was followed by.
    Chain,
    /// Of the last one of a line, the object of a later timeline that ended it there is not what its name says.
    EndDamaged,
    /// That object does not end where the later timeline branched off.
    Branch,
}

impl Fault {
    /// In words, after the range.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Self::Gap => "missing: log goes on after them",
            Self::Empty => "empty objects",
            Self::WrongSize => "objects of another size than their names say",
            Self::Duplicate => "two different segments with one number",
            Self::Damaged => "damaged",
            Self::Chain => "not written after the segment before",
            Self::EndDamaged => "damaged as a later timeline ended it there",
            Self::Branch => "as a later timeline ended it there it does not end where that branched off",
        }
    }
}

/// One thing that is wrong, with its range.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Problem {
    /// What.
    pub fault: Fault,
    /// Where; its `bytes` are none.
    pub span: Span,
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (first, last) = (self.first, self.last);
        let name = if first == last {
            format!("segment {:X}", first.0)
        } else {
            format!("segments {:X} to {:X}", first.0, last.0)
        };
        write!(f, "{name} of timeline {} ({} to {})", self.timeline, first.start(), last.end())
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeStruct;
        let mut out = s.serialize_struct("Span", 7)?;
        out.serialize_field("timeline", &self.timeline.0)?;
        out.serialize_field("first", &format!("{:016X}", self.first.0))?;
        out.serialize_field("last", &format!("{:016X}", self.last.0))?;
        out.serialize_field("from", &self.first.start().to_string())?;
        out.serialize_field("to", &self.last.end().to_string())?;
        out.serialize_field("segments", &(self.last.0 - self.first.0 + 1))?;
        out.serialize_field("bytes", &self.bytes)?;
        out.end()
    }
}

/// What there is.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Coverage {
    /// Ranges, ascending by timeline and segment.
    pub spans: Vec<Span>,
    /// What is wrong, in the order of the segments.
    pub problems: Vec<Problem>,
    /// Problems that are too many to be named.
    pub more: u64,
    /// Last segments of lines, each with the timeline that ended it there, of which there is a good copy.
    pub ended: Vec<(TimelineId, SegmentNo, TimelineId)>,
    open: Option<(SegmentName, Copies)>,
    /// The newest segment of which there is something.
    newest: Option<(TimelineId, SegmentNo)>,
}

/// The objects of one segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Copies {
    good: u32,
    bytes: u64,
    empty: bool,
    odd: bool,
}

impl Coverage {
    /// Takes the next object; they come ascending by name.
    pub fn add(&mut self, name: SegmentName, size: u64) {
        let same = self.open.filter(|(n, _)| (n.timeline, n.segment) == (name.timeline, name.segment));
        if same.is_none() {
            self.close();
        }
        let mut copies = same.map_or(Copies::default(), |(_, c)| c);
        if size == name.size && size > 0 {
            copies.good += 1;
            copies.bytes += size;
        } else {
            copies.empty |= size == 0;
            copies.odd |= size > 0;
        }
        self.open = Some((name, copies));
    }

    /// Takes an object that holds the last segment of a line; these may come at any time.
    pub fn add_ended(&mut self, name: EndedName, size: u64) {
        let (one, by) = (name.of, name.by);
        if size == one.size && size > 0 {
            self.ended.push((one.timeline, one.segment, by));
            return;
        }
        let fault = if size == 0 { Fault::Empty } else { Fault::WrongSize };
        let span = Span { timeline: one.timeline, first: one.segment, last: one.segment, bytes: 0 };
        self.report(fault, span);
    }

    /// The last segment that log goes to without a hole on the way of `history` from the segment `from` on; `None`: not even
    /// that one is there. A line counts up to its branch only; whether its own last segment ends just there, where no other
    /// line has ended it, is not seen by its name, and it is taken to.
    #[must_use]
    pub fn reaches(&self, history: &History, from: SegmentNo) -> Option<SegmentNo> {
        let mut reached = None;
        let mut at = from;
        loop {
            let timeline = history.timeline_of(at);
            let branch = history.branch_off(timeline);
            let last = branch.map_or(SegmentNo(u64::MAX), Branch::last_segment);
            let ended =
                branch.is_some_and(|b| at == last && self.ended.contains(&(timeline, at, b.timeline)));
            let to = match self.span_of(timeline, at) {
                _ if ended => at,
                // What the line sealed itself goes up to the last segment, which may be there under the other name only.
                Some(span) => span.last.min(last),
                None => return reached,
            };
            reached = Some(to);
            if to.0 == u64::MAX {
                return reached;
            }
            at = to.next();
        }
    }

    /// After the last object.
    #[must_use]
    pub fn finish(mut self) -> Self {
        self.close();
        self
    }

    fn close(&mut self) {
        let Some((name, copies)) = self.open.take() else { return };
        let one = Span { timeline: name.timeline, first: name.segment, last: name.segment, bytes: 0 };
        let before = self.newest.replace((name.timeline, name.segment)).filter(|(t, _)| *t == name.timeline);
        if let Some((_, before)) = before.filter(|(_, n)| n.next() < name.segment) {
            let last = SegmentNo(name.segment.0 - 1);
            self.report(Fault::Gap, Span { first: before.next(), last, ..one });
        }
        for (fault, is) in [
            (Fault::Empty, copies.empty),
            (Fault::WrongSize, copies.odd),
            (Fault::Duplicate, copies.good > 1),
        ] {
            if is {
                self.report(fault, one);
            }
        }
        if copies.good == 0 {
            return;
        }
        match self.spans.last_mut() {
            Some(s) if s.timeline == one.timeline && s.last.next() == one.first => {
                s.last = one.last;
                s.bytes = s.bytes.saturating_add(copies.bytes);
            }
            _ => self.spans.push(Span { bytes: copies.bytes, ..one }),
        }
    }

    /// Notes a problem; those that go on from the one before are one.
    pub fn report(&mut self, fault: Fault, span: Span) {
        let span = Span { bytes: 0, ..span };
        let last = self.problems.iter_mut().rev().take(4).find(|p| {
            p.fault == fault && p.span.timeline == span.timeline && p.span.last.next() == span.first
        });
        if let Some(p) = last.filter(|_| fault != Fault::Chain) {
            p.span.last = span.last;
        } else if self.problems.len() < PROBLEMS_MAX {
            self.problems.push(Problem { fault, span });
        } else {
            self.more += 1;
        }
    }

    /// The range that this segment is in.
    #[must_use]
    pub fn span_of(&self, timeline: TimelineId, segment: SegmentNo) -> Option<&Span> {
        self.spans.iter().find(|s| s.timeline == timeline && s.first <= segment && segment <= s.last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Said = (Vec<(u64, u64)>, Vec<(Fault, u64, u64)>);

    fn of(objects: &[(u32, u64, u64, u64)]) -> Said {
        let mut c = Coverage::default();
        for &(timeline, segment, sha, size) in objects {
            let mut name = SegmentName {
                timeline: TimelineId(timeline),
                segment: SegmentNo(segment),
                size: 9,
                sha: [0; 16],
            };
            name.sha[0] = u8::try_from(sha).unwrap();
            c.add(name, size);
        }
        let c = c.finish();
        (
            c.spans.iter().map(|s| (s.first.0, s.last.0)).collect(),
            c.problems.iter().map(|p| (p.fault, p.span.first.0, p.span.last.0)).collect(),
        )
    }

    #[test]
    fn ranges_gaps_duplicates_and_sizes_are_found_with_their_range() {
        use Fault::{Duplicate, Empty, Gap, WrongSize};
        let good = |n| (1, n, 0, 9);
        assert_eq!(of(&[]), (vec![], vec![]));
        assert_eq!(of(&[good(3), good(4), good(5)]), (vec![(3, 5)], vec![]));
        assert_eq!(of(&[good(3), good(7), good(8)]), (vec![(3, 3), (7, 8)], vec![(Gap, 4, 6)]));
        assert_eq!(
            of(&[good(3), (1, 4, 0, 0), (1, 5, 0, 0), good(6)]),
            (vec![(3, 3), (6, 6)], vec![(Empty, 4, 5)])
        );
        assert_eq!(
            of(&[good(3), (1, 4, 0, 8), (1, 6, 0, 10)]),
            (vec![(3, 3)], vec![(WrongSize, 4, 4), (Gap, 5, 5), (WrongSize, 6, 6)])
        );
        // One good copy is enough, and the bad one is said.
        assert_eq!(
            of(&[good(3), (1, 4, 0, 5), (1, 4, 1, 9), good(5)]),
            (vec![(3, 5)], vec![(WrongSize, 4, 4)])
        );
        assert_eq!(of(&[good(3), good(4), (1, 4, 1, 9), good(5)]), (vec![(3, 5)], vec![(Duplicate, 4, 4)]));
        // Where a timeline begins is no gap.
        assert_eq!(of(&[good(3), (2, 9, 0, 9), (2, 10, 0, 9)]), (vec![(3, 3), (9, 10)], vec![]));
    }

    #[test]
    fn the_way_of_a_history_goes_over_its_branches_and_no_further_than_there_is_log() {
        use crate::history::Beginning;
        use crate::position::{Lsn, SystemId};
        let begins = Beginning::sample(Lsn(SegmentNo(5).start().0 + 9), 1);
        let first = History::first(SystemId(7));
        let second = first.child(begins, TimelineId::FIRST).unwrap();
        let name = |timeline, segment| SegmentName {
            timeline: TimelineId(timeline),
            segment: SegmentNo(segment),
            size: 9,
            sha: [0; 16],
        };
        let of = |segments: &[(u32, u64)], ended: Option<u64>| {
            let mut c = Coverage::default();
            segments.iter().for_each(|(t, n)| c.add(name(*t, *n), 9));
            if let Some(size) = ended {
                c.add_ended(EndedName { of: name(1, 5), by: TimelineId(2) }, size);
            }
            c.finish()
        };
        let reach = |c: &Coverage, h: &History, from| c.reaches(h, SegmentNo(from)).map(|s| s.0);
        // The old line went on to 8; on the new way it counts up to the end of 5 only.
        let all = of(&[(1, 3), (1, 4), (1, 5), (1, 6), (1, 7), (1, 8), (2, 6), (2, 7)], Some(9));
        assert_eq!(
            (reach(&all, &first, 3), reach(&all, &second, 3), reach(&all, &second, 6)),
            (Some(8), Some(7), Some(7))
        );
        assert_eq!((reach(&all, &second, 2), reach(&all, &second, 8)), (None, None));
        let ended = of(&[(1, 3), (1, 4), (2, 6)], Some(9));
        assert_eq!(
            (reach(&ended, &first, 3), reach(&ended, &second, 3), reach(&ended, &second, 5)),
            (Some(4), Some(6), Some(6))
        );
        let hole = of(&[(1, 3), (1, 4), (2, 6)], None);
        assert_eq!(reach(&hole, &second, 3), Some(4));
        let short = of(&[(1, 3), (1, 4), (2, 6)], Some(5));
        assert_eq!((reach(&short, &second, 3), short.problems.len()), (Some(4), 1));
    }

    #[test]
    fn a_range_is_said_with_its_positions() {
        let s = Span { timeline: TimelineId(1), first: SegmentNo(3), last: SegmentNo(0x1F), bytes: 5 };
        assert_eq!(s.to_string(), "segments 3 to 1F of timeline 1 (0/03000000 to 0/20000000)");
        let json = serde_json::to_value(s).unwrap();
        assert_eq!((json["first"].as_str(), json["segments"].as_u64()), (Some("0000000000000003"), Some(29)));
    }
}
