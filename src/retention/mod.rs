//! Which log may go: a decision about segments, slots and the disk, and what to say of each slot. Pure.
//!
//! Three things keep log. What the node itself needs, and the newest segments (`keep_segments`), stay whatever
//! happens. Older log stays only because slots hold it, and only within limits:
//!
//! | limit | whom it concerns | what happens beyond it |
//! | --- | --- | --- |
//! | `max_slot_keep` | slots of followers that are away | *unreserved*; *lost* at the clean-up after one more segment |
//! | `max_slot_disk` | all that slots hold together | the oldest slot is given up, then the next |
//! | `min_free_disk` | all that slots hold together | the same, until so much is free again |
//! | `slot_idle_timeout` | slots of followers that are away | *lost* |
//! | `max_archive_keep` | log that only the archive still lacks | the oldest of it goes, and is a gap of the archive |
//! | `min_free_disk` | that log, too | the same, where it is older than what slots hold |
//!
//! A follower that takes its first copy, or is made equal again, and is connected is not subject to any of them:
//! its log is needed until it is done. The states are PostgreSQL's `wal_status`:
//!
//! | state | meaning |
//! | --- | --- |
//! | reserved | all that the follower needs would be kept without the slot, too |
//! | extended | there is log that only slots hold |
//! | unreserved | the slot is past its limit: its log goes at the next clean-up, unless the follower comes first |
//! | lost | log that the follower needs is gone, or free to go |

use serde::Serialize;

use crate::position::{Lsn, SEGMENT_SIZE, SegmentNo};

/// What limits there are. Sizes are in bytes, resolved for the file system of the state directory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Segments past its position that the slot of an absent follower may hold.
    pub max_slot_keep: u64,
    /// Bytes on disk that slots may hold together, beyond what is kept anyway.
    pub max_slot_disk: u64,
    /// Newest segments that are always kept, before the one that is written.
    pub keep_segments: u64,
    /// With less free disk than this, log that only slots hold is given up; 0: never.
    pub min_free_disk: u64,
    /// A slot whose follower is away for this long (ns) is lost; 0: never.
    pub slot_idle_timeout: i64,
    /// Bytes on disk that may be held only because the archive has not confirmed them.
    pub max_archive_keep: u64,
}

/// Why a slot is lost, or about to be.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum Reason {
    /// It held more than `max_slot_keep`.
    SlotKeep = 1,
    /// `max_slot_disk` or `min_free_disk`.
    Disk = 2,
    /// `slot_idle_timeout`.
    Idle = 3,
    /// The log it needs is not here: taken away by somebody else, or never was here.
    Removed = 4,
}

impl Reason {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::SlotKeep, Self::Disk, Self::Idle, Self::Removed];

    /// In words, after "because".
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Self::SlotKeep => "it holds more segments than max_slot_keep allows",
            Self::Disk => "the disk has no room for what slots hold (max_slot_disk, min_free_disk)",
            Self::Idle => "its follower was away for longer than slot_idle_timeout",
            Self::Removed => "the log it needs is not on this node",
        }
    }
}

/// PostgreSQL's `wal_status`; see the table of the module.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "the table of the module says what they mean")]
pub enum State {
    Reserved,
    Extended,
    Unreserved,
    Lost,
}

/// A slot, as far as it matters here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Holder {
    /// Log from here on is needed; [`Lsn::ZERO`]: the slot reserves nothing yet.
    pub position: Lsn,
    /// Its follower is connected.
    pub attached: bool,
    /// A first copy or a resync is under way, which needs all log from its snapshot on.
    pub copying: bool,
    /// Since when its follower is away, ns since 1970.
    pub inactive_since: i64,
    /// Why it was given up before.
    pub given_up: Option<Reason>,
    /// The newest segment when it was first found past `max_slot_keep`.
    pub warned: Option<SegmentNo>,
}

/// A segment's file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stored {
    /// Which segment.
    pub segment: SegmentNo,
    /// Bytes it takes on disk.
    pub bytes: u64,
    /// Whether it is sealed.
    pub sealed: bool,
}

/// What there is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Picture {
    /// The slots, in any order.
    pub slots: Vec<Holder>,
    /// The files, ascending by segment.
    pub log: Vec<Stored>,
    /// End of the log.
    pub end: Lsn,
    /// The node itself needs log from here on.
    pub own: Lsn,
    /// The archive has confirmed every segment before this one; `None`: nothing is archived here.
    pub unarchived: Option<SegmentNo>,
    /// Bytes that may still be written to the disk.
    pub free: u64,
    /// A write has just failed for want of room.
    pub full: bool,
    /// Nanoseconds since 1970.
    pub now: i64,
}

/// What to say of a slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Verdict {
    /// `None`: it reserves nothing yet.
    pub state: Option<State>,
    /// Why it is lost or unreserved.
    pub reason: Option<Reason>,
    /// Bytes on disk that would go without slots, from its position on.
    pub held: u64,
    /// Bytes of log that can be written before `max_slot_keep` is reached; below zero, it is exceeded. `None`: no
    /// number of segments ends it, as long as it stays as it is, or the node itself holds what is past the limit.
    pub left: Option<i64>,
}

/// What is to be done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Plan {
    /// Every segment before this one may go.
    pub keep: SegmentNo,
    /// Bytes of those files.
    pub frees: u64,
    /// One for each slot, in the order they were given.
    pub verdicts: Vec<Verdict>,
    /// Bytes on disk that only slots hold, after this plan.
    pub held: u64,
    /// Bytes on disk that only the archive holds, after this plan.
    pub for_archive: u64,
    /// Still missing from `min_free_disk`, after this plan.
    pub short: u64,
}

/// The first segment that is needed from `position` on: the one with the byte before, by which a follower proves that its log
/// is the same. There is none before the beginning of all log.
#[must_use]
pub fn first_needed(position: Lsn) -> SegmentNo {
    Lsn(position.0.saturating_sub(1)).max(Lsn::FIRST).segment()
}

/// Decides.
#[must_use]
pub fn plan(limits: &Limits, picture: &Picture) -> Plan {
    let ground = Ground::new(limits, picture);
    let mut held: Vec<Option<Reason>> = picture.slots.iter().map(|s| ground.expired(s)).collect();
    let mut warned = vec![false; picture.slots.len()];
    for (i, slot) in picture.slots.iter().enumerate() {
        if held[i].is_none() && ground.past_cap(slot) {
            match slot.warned {
                Some(at) if at < ground.newest => held[i] = Some(Reason::SlotKeep),
                _ => warned[i] = true,
            }
        }
    }
    let (short, archive) = ground.spare_the_disk(&mut held);
    let slots = ground.keep(&held);
    let keep = slots.min(archive);
    let verdict = |i: usize| ground.verdict(&picture.slots[i], held[i], warned[i], keep);
    Plan {
        keep,
        frees: ground.bytes(SegmentNo(0), keep),
        verdicts: (0..picture.slots.len()).map(verdict).collect(),
        held: ground.bytes(slots, ground.kept_anyway),
        for_archive: ground.bytes(keep, slots),
        short,
    }
}

/// What follows from the picture alone.
struct Ground<'a> {
    limits: &'a Limits,
    picture: &'a Picture,
    /// The segment that is written, or was last.
    newest: SegmentNo,
    /// The oldest segment from which on there is no gap.
    oldest: SegmentNo,
    /// From here on log is kept without any slot.
    kept_anyway: SegmentNo,
}

impl<'a> Ground<'a> {
    fn new(limits: &'a Limits, picture: &'a Picture) -> Self {
        let newest = picture.log.last().map_or(picture.end.segment(), |s| s.segment);
        let mut oldest = newest;
        for stored in picture.log.iter().rev() {
            if stored.segment != oldest && stored.segment.next() != oldest {
                break;
            }
            oldest = stored.segment;
        }
        // The next one is chained to it.
        let sealed = picture.log.iter().rev().find(|s| s.sealed).map_or(oldest, |s| s.segment);
        let copies = picture.slots.iter().filter(|s| s.attached && s.copying && s.position != Lsn::ZERO);
        let fixed = SegmentNo(newest.0.saturating_sub(limits.keep_segments));
        let least = copies.map(|s| first_needed(s.position)).min();
        let kept_anyway = [Some(first_needed(picture.own)), Some(fixed), Some(sealed), least];
        let kept_anyway = kept_anyway.into_iter().flatten().min().unwrap_or(oldest);
        Self { limits, picture, newest, oldest, kept_anyway }
    }

    /// Bytes of the files in `[from, to)`.
    fn bytes(&self, from: SegmentNo, to: SegmentNo) -> u64 {
        let within = self.picture.log.iter().filter(|s| s.segment >= from && s.segment < to);
        within.fold(0, |sum, s| sum.saturating_add(s.bytes))
    }

    /// Why a slot can't hold anything, whatever the limits of space are.
    fn expired(&self, slot: &Holder) -> Option<Reason> {
        if slot.position == Lsn::ZERO {
            return None;
        }
        if first_needed(slot.position) < self.oldest {
            return Some(slot.given_up.unwrap_or(Reason::Removed));
        }
        let limit = self.limits.slot_idle_timeout;
        let idle = limit > 0 && self.picture.now.saturating_sub(slot.inactive_since) >= limit;
        (!slot.attached && (idle || slot.given_up == Some(Reason::Idle))).then_some(Reason::Idle)
    }

    /// Whether it holds log on its own, as far as it is not given up.
    fn holds(&self, slot: &Holder) -> bool {
        slot.position != Lsn::ZERO && first_needed(slot.position) < self.kept_anyway
    }

    fn past_cap(&self, slot: &Holder) -> bool {
        let distance = self.newest.0.saturating_sub(first_needed(slot.position).0);
        self.holds(slot) && !slot.attached && distance > self.limits.max_slot_keep
    }

    /// The first segment that stays.
    fn keep(&self, given_up: &[Option<Reason>]) -> SegmentNo {
        let holding = self.picture.slots.iter().zip(given_up).filter(|(s, g)| g.is_none() && self.holds(s));
        holding.map(|(s, _)| first_needed(s.position)).min().unwrap_or(self.kept_anyway).min(self.kept_anyway)
    }

    /// The first segment that stays for the archive, where slots hold log from `slots` on.
    fn for_archive(&self, slots: SegmentNo) -> SegmentNo {
        let Some(first) = self.picture.unarchived else { return slots };
        let mut first = first.max(self.oldest);
        while first < slots && self.bytes(first, slots) > self.limits.max_archive_keep {
            first = first.next();
        }
        first.min(slots)
    }

    /// Gives up what slots hold and what the archive lacks, the oldest first, until it fits. Returns what is still
    /// missing, and the first segment that stays for the archive.
    fn spare_the_disk(&self, given_up: &mut [Option<Reason>]) -> (u64, SegmentNo) {
        let least = self.limits.min_free_disk;
        // Two segments: one to go on with, one to be sealed.
        let wanted = if self.picture.full && least > 0 { least.max(2 * SEGMENT_SIZE) } else { least };
        let mut archive = SegmentNo(0);
        loop {
            let slots = self.keep(given_up);
            archive = archive.max(self.for_archive(slots));
            let keep = slots.min(archive);
            let free = self.picture.free.saturating_add(self.bytes(SegmentNo(0), keep));
            let held = self.bytes(slots, self.kept_anyway);
            let short = wanted.saturating_sub(free);
            let crowded = held > self.limits.max_slot_disk;
            if keep >= self.kept_anyway || short == 0 && !crowded {
                return (short, archive);
            }
            // Slots that hold nothing before the archive's part would free nothing.
            if archive < slots && !crowded {
                archive = archive.next();
                continue;
            }
            if held == 0 {
                return (short, archive);
            }
            for (slot, given_up) in self.picture.slots.iter().zip(given_up.iter_mut()) {
                if given_up.is_none() && self.holds(slot) && first_needed(slot.position) == slots {
                    *given_up = Some(Reason::Disk);
                }
            }
        }
    }

    fn verdict(&self, slot: &Holder, given_up: Option<Reason>, warned: bool, keep: SegmentNo) -> Verdict {
        if slot.position == Lsn::ZERO {
            return Verdict { state: None, reason: None, held: 0, left: None };
        }
        let need = first_needed(slot.position);
        let lost = given_up.filter(|r| need < keep || matches!(r, Reason::Idle | Reason::Removed));
        if lost.is_some() || need < self.oldest {
            return Verdict { state: Some(State::Lost), reason: lost.or(given_up), held: 0, left: None };
        }
        let past = if warned { Some(Reason::SlotKeep) } else { given_up };
        let state = match past {
            Some(_) => State::Unreserved,
            None if self.holds(slot) => State::Extended,
            None => State::Reserved,
        };
        Verdict {
            state: Some(state),
            reason: past,
            held: self.bytes(need, self.kept_anyway),
            left: (!slot.attached).then(|| self.left(need)).filter(|left| *left >= 0 || self.holds(slot)),
        }
    }

    fn left(&self, need: SegmentNo) -> i64 {
        let most = self.limits.max_slot_keep.max(self.limits.keep_segments);
        let last = SegmentNo(need.0.saturating_add(most)).end();
        i64::try_from(last.0).unwrap_or(i64::MAX).saturating_sub_unsigned(self.picture.end.0)
    }
}

#[cfg(test)]
mod tests;
