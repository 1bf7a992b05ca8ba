//! Whether this node's line still is the one that goes on: the archive may know of a promotion that this node has not
//! heard of, as after a leader was lost and comes back by itself. What such a node writes from there on is on no way
//! that a restore should take.

use std::collections::BTreeSet;

use crate::archive::Archive;
use crate::error::{Error, ErrorKind, Result};
use crate::history::{Branch, History, Reason};
use crate::position::{SegmentNo, TimelineId};

/// The lines in the archive that were looked at, and the promotion that ended this one.
#[derive(Debug, Default)]
pub(super) struct Succession {
    seen: BTreeSet<TimelineId>,
    ended: Option<Branch>,
}

impl Succession {
    /// Looks for lines that are new in the archive.
    ///
    /// # Errors
    /// `Refused` when `next` lies behind the place where another node's promotion ended this line; else why the archive
    /// can't be asked. A line that a restore began ends nothing: both go on.
    pub(super) fn allows(&mut self, archive: &Archive, own: &History, next: SegmentNo) -> Result<()> {
        for timeline in archive.timelines()? {
            if timeline <= own.timeline() || self.seen.contains(&timeline) {
                continue;
            }
            if let Some(history) = archive.history(timeline)? {
                self.take(own, &history);
            }
            self.seen.insert(timeline);
        }
        let Some(branch) = self.ended.as_ref().filter(|branch| next >= branch.last_segment()) else {
            return Ok(());
        };
        let Branch { timeline, name, at, .. } = branch;
        let text = format!(
            "'{name}' was promoted to timeline {timeline} at {at}, as the history in the archive '{}' says, and this node's \
             timeline {} ended there: log from there on does not go to that archive. Stop this node and make it a follower \
             of the node that leads now; if this one is to go on all the same, give it another archive",
            archive.address(),
            own.timeline()
        );
        Err(Error::new(ErrorKind::Refused, text))
    }

    /// Takes note of a line; the earliest end of the own one counts.
    fn take(&mut self, own: &History, other: &History) {
        let branch = if own.leads_to(other) { other.branch_off(own.timeline()) } else { None };
        let Some(branch) = branch.filter(|branch| branch.reason != Reason::Restore) else { return };
        if self.ended.as_ref().is_none_or(|known| branch.at < known.at) {
            self.ended = Some(branch.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::Beginning;
    use crate::position::{Lsn, SystemId};

    fn begins(at: u64, line: u64, reason: Reason) -> Beginning {
        Beginning { reason, ..Beginning::sample(Lsn(at), line) }
    }

    #[test]
    fn a_promotion_ends_the_line_that_it_left_and_nothing_else_does() {
        let first = History::first(SystemId(1));
        let child = |of: &History, at, line, reason, taken| {
            of.child(begins(at, line, reason), TimelineId(taken)).unwrap()
        };
        let promoted = child(&first, 0x0500_0000, 2, Reason::Promotion, 1);
        let restored = child(&first, 0x0300_0000, 3, Reason::Restore, 2);
        let again = child(&promoted, 0x0700_0000, 4, Reason::Promotion, 3);
        let ended = |own: &History, others: &[&History]| {
            let mut succession = Succession::default();
            others.iter().for_each(|other| succession.take(own, other));
            succession.ended.map(|b| (b.timeline.0, b.at.0))
        };
        assert_eq!(ended(&first, &[]), None);
        let forced = child(&first, 0x0600_0000, 9, Reason::Force, 5);
        assert_eq!(ended(&first, &[&forced]), Some((6, 0x0600_0000)));
        assert_eq!(ended(&first, &[&restored]), None, "a restore beside it is no successor");
        assert_eq!(ended(&first, &[&restored, &promoted]), Some((2, 0x0500_0000)));
        assert_eq!(ended(&first, &[&again]), Some((2, 0x0500_0000)), "whatever came after");
        assert_eq!(ended(&promoted, &[&again, &restored]), Some((4, 0x0700_0000)));
        assert_eq!(ended(&restored, &[&promoted, &again]), None, "it is on another way");
    }
}
