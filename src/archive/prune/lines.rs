//! From where on the log of each timeline is kept. Pure.
//!
//! A kept backup needs log of its own timeline from its start on, and all log of a timeline that branched off behind its
//! end, however many branches lie between: from it every moment of those can be restored. Of a timeline that no kept backup
//! leads to nothing can be restored; it goes when it is older than all that they are of, and when it is a side line: one that the
//! newest history does not go over. What that one goes over stays.

use std::collections::BTreeMap;

use super::super::inventory::Inventory;
use crate::history::{History, Standing};
use crate::manifest::Manifest;
use crate::position::{Lsn, SegmentNo, TimelineId};
use crate::retention::first_needed;

/// A line beside the way of the newest history that no kept backup leads to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Side {
    /// Its number.
    pub timeline: TimelineId,
    /// Where it branched off.
    pub parent: TimelineId,
    /// See `parent`.
    pub at: Lsn,
    /// The newest timeline, which does not go over it.
    pub newest: TimelineId,
}

/// What is known of timelines, and what is kept.
pub(super) struct Lines<'a> {
    histories: BTreeMap<TimelineId, History>,
    /// `None`: it is there, and can't be read.
    newest: Option<History>,
    /// Backups from which every later moment can be restored.
    window: &'a [&'a Manifest],
}

/// Where the log that a backup needs begins.
fn begins(m: &Manifest) -> (TimelineId, Lsn) {
    m.log.first().map_or((m.timeline, m.start), |r| (r.timeline, r.start.min(m.start)))
}

impl<'a> Lines<'a> {
    pub(super) fn of(inventory: &Inventory, window: &'a [&'a Manifest]) -> Self {
        let mut histories: BTreeMap<TimelineId, History> = BTreeMap::new();
        // All backups that are kept are of the system of the archive.
        histories.extend(window.first().map(|m| (TimelineId::FIRST, History::first(m.system))));
        let read = inventory.histories.iter().filter_map(|(t, h)| Some((*t, h.as_ref().ok()?.clone())));
        histories.extend(read);
        let newest = inventory.histories.keys().last().copied().unwrap_or(TimelineId::FIRST);
        Self { newest: histories.get(&newest).cloned(), histories, window }
    }

    /// The oldest timeline that a kept backup begins on.
    pub(super) fn oldest(&self) -> Option<TimelineId> {
        self.window.iter().map(|m| begins(m).0).min()
    }

    /// The first segment of this timeline that is kept; `None`: no kept backup leads to it.
    pub(super) fn first_kept(&self, timeline: TimelineId) -> Option<SegmentNo> {
        self.window.iter().filter_map(|m| self.needs(m, timeline)).min()
    }

    fn needs(&self, m: &Manifest, timeline: TimelineId) -> Option<SegmentNo> {
        let (first, start) = begins(m);
        let all = Some(SegmentNo(0));
        if first == timeline {
            return Some(first_needed(start));
        }
        if first > timeline {
            return None;
        }
        // Of one whose history is not known it can't be told.
        let Some(history) = self.histories.get(&timeline).filter(|_| m.timeline < timeline) else {
            return all;
        };
        let line = self.histories.get(&m.timeline).map(History::line);
        let same = history.line_of(m.timeline).filter(|l| line.is_none_or(|known| known == *l));
        let before = history.end_of(m.timeline).is_some_and(|end| m.end <= end);
        all.filter(|_| same.is_some() && before)
    }

    /// Whether nothing that is kept needs this line, nor the way of the newest history.
    pub(super) fn side(&self, timeline: TimelineId) -> Option<Side> {
        let (history, newest) = (self.histories.get(&timeline)?, self.newest.as_ref()?);
        let branch = history.branches().last()?;
        let apart = newest.judge(timeline, history.line(), branch.at) == Standing::Apart;
        let (parent, at, newest) = (branch.parent, branch.at, newest.timeline());
        (apart && self.first_kept(timeline).is_none()).then_some(Side { timeline, parent, at, newest })
    }
}
