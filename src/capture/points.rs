//! Restore points: names for exact cuts, each in a change set of its own behind the cut.

use std::time::{Duration, Instant};

use super::engine::Engine;
use super::{Reply, wall_clock};
use crate::error::{Error, ErrorKind, Result};
use crate::position::{Cut, Lsn};
use crate::record::{PointName, Record};

/// Between two tries for an exact cut.
const TRY_EVERY: Duration = Duration::from_millis(100);

/// A restore point that waits for its cut.
pub(super) struct Asked {
    pub(super) name: PointName,
    pub(super) deadline: Instant,
    pub(super) reply: Reply,
}

/// Those that wait.
#[derive(Default)]
pub(super) struct Points {
    asked: Vec<Asked>,
    /// The turn under way was asked for by them.
    trying: bool,
    /// The last pass ended on an exact cut.
    pub(super) exact: bool,
    next: Option<Instant>,
}

impl Points {
    pub(super) fn push(&mut self, asked: Asked) {
        self.asked.push(asked);
        self.next = None;
    }

    /// When something has to be done for them next.
    pub(super) fn next(&self) -> Option<Instant> {
        if self.asked.is_empty() { None } else { Some(self.next.unwrap_or_else(Instant::now)) }
    }

    /// Whether a pass has to be made for them now; those whose time is over are answered.
    pub(super) fn due(&mut self) -> bool {
        let now = Instant::now();
        for over in self.asked.extract_if(.., |a| a.deadline <= now) {
            let text = format!(
                "restore point '{}' is not made: no exact cut in time; configure freeze, or wait for a quieter moment",
                over.name
            );
            (over.reply)(Err(Error::new(ErrorKind::Unavailable, text)));
        }
        if self.asked.is_empty() || self.next.is_some_and(|next| next > now) {
            return false;
        }
        self.next = Some(now + TRY_EVERY);
        self.trying = true;
        true
    }

    /// None of them can be made now.
    pub(super) fn fail(&mut self, e: &Error) {
        for asked in self.asked.drain(..) {
            (asked.reply)(Err(e.clone()));
        }
        self.trying = false;
    }
}

impl Engine {
    pub(super) fn try_points(&mut self) {
        if self.points.due() {
            // They need what a barrier needs; its answer is nobody's.
            self.waiting.push(Box::new(drop));
        }
    }

    /// After a pass that was made for them, and ended on an exact cut: the tree at this name is that of the cut.
    pub(super) fn write_points(&mut self) -> Result<()> {
        if !std::mem::take(&mut self.points.trying) || !self.points.exact || self.points.asked.is_empty() {
            return Ok(());
        }
        let asked = std::mem::take(&mut self.points.asked);
        let mut written = Vec::with_capacity(asked.len());
        for asked in asked {
            written.push((self.write_point(asked.name)?, asked));
        }
        for (lsn, asked) in written {
            tracing::info!(%lsn, "restore point '{}'", asked.name);
            (asked.reply)(Ok(lsn));
        }
        self.publish();
        Ok(())
    }

    fn write_point(&mut self, name: PointName) -> Result<Lsn> {
        let time = wall_clock();
        self.pass.reset();
        self.pass.journal.push(&Record::RestorePoint { time, name: name.as_bytes() })?;
        let end = self.seal(Cut::Exact, time)?;
        self.notes.cuts.0 += 1;
        self.notes.last_exact = (end, time);
        Ok(end)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::sync_channel;

    use super::*;

    #[test]
    fn one_whose_time_is_over_is_answered_and_the_others_are_tried_for_from_time_to_time() {
        let mut points = Points::default();
        assert!(!points.due() && points.next().is_none());
        let (tx, rx) = sync_channel(9);
        for (name, left) in [("late", 0), ("later", 3600)] {
            let tx = tx.clone();
            points.push(Asked {
                name: name.parse().unwrap(),
                deadline: Instant::now() + Duration::from_secs(left),
                reply: Box::new(move |lsn| tx.send(lsn).unwrap()),
            });
        }
        assert!(points.due() && points.asked.len() == 1);
        let e = rx.try_recv().unwrap().unwrap_err();
        assert!(e.kind() == ErrorKind::Unavailable && e.to_string().contains("'late' is not made"), "{e}");
        points.next = Some(Instant::now() + Duration::from_secs(60));
        assert!(!points.due(), "not at once again");
        points.fail(&Error::new(ErrorKind::Held, "held"));
        assert_eq!(rx.try_recv().unwrap().unwrap_err().kind(), ErrorKind::Held);
        assert!(points.next().is_none());
    }
}
