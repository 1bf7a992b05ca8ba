//! The history of a timeline: where each line of log branched off from the one before, when, by whom and why. Pure: bytes
//! in, values out, and what follows from them.
//!
//! A *line* is the log of one timeline. Each promotion ends the line it stands on at a *branch* and begins the next one.
//! What stands on a line and, before each branch, on the line it came from, is on the *way* of its history; everything
//! else belongs to a line that was left. On one way a segment number is of one line only: a new line begins with the
//! segment after the one that the branch lies in.
//!
//! Two promotions that know nothing of each other may take the same number. So each line also has a random id, and a
//! history is compared by that.
//!
//! File, `NNNNNNNN.history` in the state directory and `history/NNNNNNNN.history` in an archive, hexadecimal, one for each
//! timeline from 2 on. It is written once, never changed, and holds the whole chain. Little-endian:
//!
//! | size | field |
//! | --- | --- |
//! | 8 | magic `TWLNHIST` |
//! | 4 | format version, 1 |
//! | 8 | system id |
//! | 4 | number of branches, 1 to [`BRANCHES_MAX`]; of a longer chain the oldest are left out |
//! | .. | branches, each of the fields below, ascending; the last one began this timeline |
//! | 4 | CRC32C of everything before |
//!
//! | size | field of a branch |
//! | --- | --- |
//! | 4 | timeline that begins |
//! | 4 | timeline that ends: that of the branch before |
//! | 8 | LSN where it ends: its log counts up to here |
//! | 8 | line id, random, not 0 |
//! | 8 | when, ns since 1970 |
//! | 8 | id of the node that did it, 0 when it is not known |
//! | 1 | why: 1 promotion, 2 restore, 3 switchover, 4 force |
//! | 8 | how far that node knew the ended line to go, 0 when it did not know |
//! | 4+n | name of the node, at most [`NAME_MAX`] bytes |

use std::fmt;

use crate::codec::{DecodeError, Put, Reader, Seal};
use crate::position::{Lsn, NodeId, SegmentNo, SystemId, TimelineId};

/// Most branches that a history holds; of a longer chain the oldest are forgotten.
pub const BRANCHES_MAX: usize = 256;
/// Most bytes of a node's name in it.
pub const NAME_MAX: usize = 64;
/// Most bytes of a history.
pub const HISTORY_BYTES: usize = 28 + BRANCHES_MAX * (53 + NAME_MAX);
/// What comes after the number in the name of a file.
const SUFFIX: &str = ".history";

/// The frame of a history file.
pub const SEAL: Seal = Seal {
    name: "timeline history",
    magic: b"TWLNHIST",
    version: Some(1),
    most: HISTORY_BYTES as u64,
    remedy: "copy the file of that name from another node or from the archive: it is the same everywhere",
};

/// The random identity of a line; that of the first one, which has no branch, is 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct LineId(pub u64);

impl LineId {
    /// The line of timeline 1.
    pub const FIRST: Self = Self(0);
}

impl fmt::Display for LineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Why a line began.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u8)]
pub enum Reason {
    /// A follower was promoted.
    Promotion = 1,
    /// A backup was restored to be a leader.
    Restore = 2,
    /// The leader handed over to a follower.
    Switchover = 3,
    /// An operator had a leader that was left behind lead all the same. Its number is above every one that it knew of:
    /// the lines with lower numbers that branched off beside it are left behind in their turn.
    Force = 4,
}

impl Reason {
    /// In a word.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Promotion => "promotion",
            Self::Restore => "restore",
            Self::Switchover => "switchover",
            Self::Force => "force",
        }
    }
}

/// Where one line ended and the next began.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Branch {
    /// The timeline that begins.
    pub timeline: TimelineId,
    /// The timeline that ends.
    pub parent: TimelineId,
    /// Up to here the log of the parent counts.
    pub at: Lsn,
    /// Which line of that number it is.
    pub line: LineId,
    /// When, ns since 1970 by the clock of the node that did it.
    pub when: i64,
    /// Who did it.
    pub node: NodeId,
    /// Its name then.
    pub name: String,
    /// Why.
    pub reason: Reason,
    /// How far that node knew the parent to go; zero: it did not know.
    pub known: Lsn,
}

impl Branch {
    /// Bytes of the parent's log that are known to be left behind; `None`: that is not known.
    #[must_use]
    pub fn lost(&self) -> Option<u64> {
        (self.known != Lsn::ZERO).then(|| self.known.since(self.at))
    }

    /// The first segment of the new line: the one after that which the last frame before the branch is in.
    #[must_use]
    pub fn first_segment(&self) -> SegmentNo {
        last_segment(self.at).next()
    }

    /// The last segment of the parent on this way.
    #[must_use]
    pub fn last_segment(&self) -> SegmentNo {
        last_segment(self.at)
    }
}

/// The segment of the last frame before `at`.
fn last_segment(at: Lsn) -> SegmentNo {
    Lsn(at.0.saturating_sub(1)).segment()
}

/// What a new line is begun with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Beginning {
    /// Where the present line ends.
    pub at: Lsn,
    /// See [`Branch::line`].
    pub line: LineId,
    /// See [`Branch::when`].
    pub when: i64,
    /// See [`Branch::node`].
    pub node: NodeId,
    /// See [`Branch::name`].
    pub name: String,
    /// See [`Branch::reason`].
    pub reason: Reason,
    /// See [`Branch::known`].
    pub known: Lsn,
}

#[cfg(test)]
impl Beginning {
    /// A promotion, for tests.
    pub(crate) fn sample(at: Lsn, line: u64) -> Self {
        Self {
            at,
            line: LineId(line),
            when: 1,
            node: NodeId(1),
            name: "f".to_owned(),
            reason: Reason::Promotion,
            known: Lsn::ZERO,
        }
    }
}

/// Where a position of a line stands to a history.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Standing {
    /// It is the history's own line.
    Same,
    /// It is on the way: that line ends at this branch, which the position does not pass.
    Before(Lsn),
    /// That line is on the way, but the position is past its branch, which is here.
    Past(Lsn),
    /// It is a line with a higher number, which the history knows nothing of.
    Newer,
    /// It is a line that is not on the way: another one of a number that is, or of one that was passed over.
    Apart,
    /// Of so old a line that it was forgotten.
    Forgotten,
}

/// The way that a node stands on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct History {
    system: SystemId,
    /// Ascending, without a hole.
    branches: Vec<Branch>,
}

impl History {
    /// The history of a system that never branched.
    #[must_use]
    pub fn first(system: SystemId) -> Self {
        Self { system, branches: Vec::new() }
    }

    /// The system.
    #[must_use]
    pub fn system(&self) -> SystemId {
        self.system
    }

    /// The timeline that it leads to.
    #[must_use]
    pub fn timeline(&self) -> TimelineId {
        self.branches.last().map_or(TimelineId::FIRST, |b| b.timeline)
    }

    /// Which line of that number.
    #[must_use]
    pub fn line(&self) -> LineId {
        self.branches.last().map_or(LineId::FIRST, |b| b.line)
    }

    /// The branches that are known, ascending.
    #[must_use]
    pub fn branches(&self) -> &[Branch] {
        &self.branches
    }

    /// The history of a line that begins where this one ends; its number is the lowest above this one and above `taken`,
    /// the highest that is known to be in use.
    ///
    /// # Errors
    /// `Invalid` when the branch lies before the one that this line began at, or no number is left.
    pub fn child(&self, begins: Beginning, taken: TimelineId) -> Result<Self, DecodeError> {
        let parent = self.timeline();
        let highest = parent.max(taken).0;
        let none = DecodeError::Invalid { what: "timeline", value: u64::from(highest) };
        let timeline = TimelineId(highest.checked_add(1).ok_or(none)?);
        let Beginning { at, line, when, node, name, reason, known } = begins;
        let mut branches = self.branches.clone();
        branches.push(Branch { timeline, parent, at, line, when, node, name, reason, known });
        let extra = branches.len().saturating_sub(BRANCHES_MAX);
        branches.drain(..extra);
        let child = Self { system: self.system, branches };
        child.check()?;
        Ok(child)
    }

    /// This way without its oldest branches, if there are more than `most`; not none at all.
    #[must_use]
    pub fn newest(&self, most: usize) -> Self {
        let from = self.branches.len().saturating_sub(most.max(1));
        Self { system: self.system, branches: self.branches[from..].to_vec() }
    }

    /// This way up to the line that `timeline` is on it; `None` when it is not on it.
    #[must_use]
    pub fn upto(&self, timeline: TimelineId) -> Option<Self> {
        self.line_of(timeline)?;
        let branches = self.branches.iter().filter(|b| b.timeline <= timeline).cloned().collect();
        Some(Self { system: self.system, branches })
    }

    /// The branch where the line that `timeline` is on this way ends.
    #[must_use]
    pub fn branch_off(&self, timeline: TimelineId) -> Option<&Branch> {
        self.branches.iter().find(|b| b.parent == timeline)
    }

    /// Where the line that `timeline` is on this way ends; `None` when it does not end, or is not on the way.
    #[must_use]
    pub fn end_of(&self, timeline: TimelineId) -> Option<Lsn> {
        self.branch_off(timeline).map(|b| b.at)
    }

    /// The line that `timeline` is on this way; `None` when it is not on it, or forgotten.
    #[must_use]
    pub fn line_of(&self, timeline: TimelineId) -> Option<LineId> {
        if timeline == TimelineId::FIRST {
            let whole = self.branches.first().is_none_or(|b| b.parent == TimelineId::FIRST);
            return whole.then_some(LineId::FIRST);
        }
        self.branches.iter().find(|b| b.timeline == timeline).map(|b| b.line)
    }

    /// Where `lsn` of a line stands to this way.
    #[must_use]
    pub fn judge(&self, timeline: TimelineId, line: LineId, lsn: Lsn) -> Standing {
        if timeline > self.timeline() {
            return Standing::Newer;
        }
        match self.line_of(timeline) {
            Some(known) if known != line => Standing::Apart,
            Some(_) => match self.end_of(timeline) {
                None => Standing::Same,
                Some(end) if lsn <= end => Standing::Before(end),
                Some(end) => Standing::Past(end),
            },
            // The parent of the oldest branch that is known is known by its number only.
            None if self.branches.first().is_some_and(|b| timeline <= b.parent) => Standing::Forgotten,
            None => Standing::Apart,
        }
    }

    /// The timeline that the byte before `lsn` is of, as far as it is known.
    #[must_use]
    pub fn timeline_at(&self, lsn: Lsn) -> TimelineId {
        let next = self.branches.iter().find(|b| lsn <= b.at);
        next.map_or_else(|| self.timeline(), |b| b.parent)
    }

    /// The timeline that a segment of this way is of.
    #[must_use]
    pub fn timeline_of(&self, segment: SegmentNo) -> TimelineId {
        let next = self.branches.iter().find(|b| segment < b.first_segment());
        next.map_or_else(|| self.timeline(), |b| b.parent)
    }

    /// The last line that both are on, and the position up to which they are the same; [`Lsn`] of all ones where neither
    /// ends. `None`: they have nothing in common that is known.
    #[must_use]
    pub fn common(&self, other: &Self) -> Option<(TimelineId, Lsn)> {
        if self.system != other.system {
            return None;
        }
        let mut lines = self.branches.iter().rev().map(|b| b.timeline).chain([TimelineId::FIRST]);
        let shared = lines.find(|t| {
            let line = self.line_of(*t);
            line.is_some() && line == other.line_of(*t)
        })?;
        let ends = [self.end_of(shared), other.end_of(shared)];
        Some((shared, ends.into_iter().flatten().min().unwrap_or(Lsn(u64::MAX))))
    }

    /// Whether `other` goes on from this way: everything that stands on this line up to the branch is on the other's way.
    #[must_use]
    pub fn leads_to(&self, other: &Self) -> bool {
        self.system == other.system
            && self.timeline() < other.timeline()
            && other.line_of(self.timeline()) == Some(self.line())
    }

    /// The bytes of the file.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        SEAL.encode(|out| {
            out.put_u64(self.system.0);
            out.put_u32(u32::try_from(self.branches.len()).unwrap_or(u32::MAX));
            for b in &self.branches {
                out.put_u32(b.timeline.0);
                out.put_u32(b.parent.0);
                out.put_u64(b.at.0);
                out.put_u64(b.line.0);
                out.put_i64(b.when);
                out.put_u64(b.node.0);
                out.put_u8(b.reason as u8);
                out.put_u64(b.known.0);
                out.put_blob(b.name.as_bytes());
            }
        })
    }

    /// Reads the bytes of a file.
    ///
    /// # Errors
    /// Names the field that breaks the table of the module.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut r = SEAL.decode(bytes)?;
        let system = SystemId(r.u64("system id")?);
        let count = r.u32("number of branches")?;
        if count as usize > BRANCHES_MAX {
            let (value, limit) = (u64::from(count), BRANCHES_MAX as u64);
            return Err(DecodeError::TooLarge { what: "number of branches", value, limit });
        }
        let branches = (0..count).map(|_| take(&mut r)).collect::<Result<_, _>>()?;
        r.finish()?;
        let history = Self { system, branches };
        history.check()?;
        Ok(history)
    }

    /// Whether it is one chain.
    fn check(&self) -> Result<(), DecodeError> {
        let wrong = |what, value| Err(DecodeError::Invalid { what, value });
        let mut before: Option<&Branch> = None;
        for b in &self.branches {
            if b.parent.0 == 0 || b.parent >= b.timeline {
                return wrong("timeline that ends", u64::from(b.parent.0));
            }
            if before.is_some_and(|p| p.timeline != b.parent) {
                return wrong("timeline that ends", u64::from(b.parent.0));
            }
            if b.at == Lsn::ZERO || before.is_some_and(|p| b.at < p.at) {
                return wrong("LSN of a branch", b.at.0);
            }
            if b.line == LineId::FIRST {
                return wrong("line id", 0);
            }
            if b.name.len() > NAME_MAX {
                return wrong("length of a name", b.name.len() as u64);
            }
            before = Some(b);
        }
        Ok(())
    }
}

fn take(r: &mut Reader<'_>) -> Result<Branch, DecodeError> {
    let (timeline, parent) = (TimelineId(r.u32("timeline")?), TimelineId(r.u32("timeline that ends")?));
    let (at, line) = (Lsn(r.u64("LSN of a branch")?), LineId(r.u64("line id")?));
    let (when, node) = (r.i64("time of a branch")?, NodeId(r.u64("node id")?));
    let reason = match r.u8("reason of a branch")? {
        1 => Reason::Promotion,
        2 => Reason::Restore,
        3 => Reason::Switchover,
        4 => Reason::Force,
        v => return Err(DecodeError::Invalid { what: "reason of a branch", value: u64::from(v) }),
    };
    let known = Lsn(r.u64("known end of a line")?);
    let name = r.blob(NAME_MAX, "name of a node")?;
    let odd = |e: std::str::Utf8Error| {
        let byte = name.get(e.valid_up_to()).copied().unwrap_or_default();
        DecodeError::Invalid { what: "a byte of a name", value: u64::from(byte) }
    };
    let name = std::str::from_utf8(name).map_err(odd)?.to_owned();
    Ok(Branch { timeline, parent, at, line, when, node, name, reason, known })
}

/// The name of the file that holds the history of `timeline`.
#[must_use]
pub fn file_name(timeline: TimelineId) -> String {
    format!("{:08X}{SUFFIX}", timeline.0)
}

/// What [`file_name`] was given; `None` for any other name.
#[must_use]
pub fn parse_name(name: &[u8]) -> Option<TimelineId> {
    let hex = name.strip_suffix(SUFFIX.as_bytes())?;
    let sound = hex.len() == 8 && hex.iter().all(|b| b.is_ascii_digit() || (b'A'..=b'F').contains(b));
    let text = std::str::from_utf8(hex).ok().filter(|_| sound)?;
    u32::from_str_radix(text, 16).ok().map(TimelineId)
}

#[cfg(test)]
mod tests;
