//! What a restore leaves in the state directory of timelines: the one its log goes to, or a new one that it leads.

use std::sync::Arc;

use super::Order;
use super::way::Way;
use crate::error::{Error, ErrorKind, Result};
use crate::failpoint;
use crate::history::{Beginning, LineId, Reason};
use crate::log;
use crate::net::wall_clock;
use crate::position::{Lsn, SegmentNo, TimelineId};
use crate::state::StateDir;

fn pass(point: &'static str, state: &StateDir) -> Result<()> {
    failpoint::pass(point).map_err(|e| Error::io("change", state.path(), e))
}

/// Why what was asked for can't be a node; `end` and `last` are the end of the log that was fetched.
pub(super) fn refusal(
    order: &Order,
    way: &Way,
    goal: Lsn,
    end: Lsn,
    last: Option<&SegmentNo>,
) -> Option<Error> {
    order.node.as_ref()?;
    let timeline = last.map_or_else(|| way.timeline_at(goal), |s| way.reads(*s));
    if let Err(e) = way.history(timeline) {
        return Some(e);
    }
    if order.leader().is_some() && end < goal {
        let text = format!(
            "a leader goes on from the log at {goal}, and there is none: give it with --log; or restore without --as-leader, and \
             start `towline leader` with a new state directory: that begins a new system, whose followers are filled anew"
        );
        return Some(Error::new(ErrorKind::Missing, text));
    }
    None
}

/// The log that was fetched goes up to the segment `last`, if there is any: it is read along the way to its timeline.
///
/// # Errors
/// Why that can't be made durable.
pub(super) fn follow(state: &Arc<StateDir>, way: &Way, last: Option<SegmentNo>) -> Result<()> {
    let now = state.set_up()?.timeline;
    // Where no log was needed it is that of the backup.
    let timeline = last.map_or(now, |s| way.reads(s));
    keep(state, way, timeline)?;
    if now == timeline {
        return Ok(());
    }
    pass("restore::timeline", state)?;
    state.change(|c| c.timeline = timeline)
}

/// One that is not known is missed by nobody: a node was refused.
fn keep(state: &StateDir, way: &Way, timeline: TimelineId) -> Result<()> {
    way.history(timeline).map_or(Ok(()), |history| state.keep_history(&history))
}

/// Begins a new timeline at `goal`, on which the directory stands. From the control file on it is a leader's.
///
/// # Errors
/// Why that can't be made durable.
pub(super) fn begin(state: &Arc<StateDir>, way: &Way, goal: Lsn, taken: TimelineId) -> Result<()> {
    // Of log that was fetched beyond the goal nothing counts.
    let from = way.timeline_at(goal);
    keep(state, way, from)?;
    let node = state.node()?;
    state.change(|c| c.timeline = from)?;
    let begins = Beginning {
        at: goal,
        line: LineId(fastrand::u64(1..)),
        when: wall_clock(),
        node,
        name: state.set_up()?.name,
        reason: Reason::Restore,
        known: Lsn::ZERO,
    };
    let history = state.begin_line(begins, taken)?;
    tracing::debug!("timeline {} begins at {goal}", history.timeline());
    pass("restore::leads", state)?;
    end(state)
}

/// Ends the log where the new timeline begins.
///
/// # Errors
/// It does not reach that.
pub(super) fn end(state: &Arc<StateDir>) -> Result<()> {
    log::end_copied_lines(&state.log(), &state.history()?)
}
