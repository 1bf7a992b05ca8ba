//! Timelines of a running node: the log that is on its way, going over to the next line where its own ended, and the first
//! commit of a line.

use std::sync::Arc;

use super::{Node, blocking};
use crate::disk;
use crate::error::{Error, ErrorKind, Result};
use crate::failpoint;
use crate::fill;
use crate::fold::Fold;
use crate::history::History;
use crate::log::{self, Log};
use crate::lost::{self, Story, Survey};
use crate::moment::Moment;
use crate::position::{Cut, Lsn, NodeId};
use crate::record::Record;
use crate::segment::flags;
use crate::state::{Control, StateDir};

/// Makes the log of the state directory that of the node's way, before it is opened. That way.
///
/// # Errors
/// The history is not there, or the log does not reach a branch of it.
pub(super) fn settle(state: &StateDir) -> Result<History> {
    state.drop_unfinished_histories()?;
    let history = state.history()?;
    let left = left_behind(state, &history).unwrap_or_else(|e| {
        tracing::warn!("what the log past the branch changed can't be listed: {e}");
        None
    });
    let mut aside = None;
    log::end_lines(&state.log(), &history, || {
        let to = fill::aside_next(state)?;
        disk::create_subdir_durable(&to)?;
        aside = Some(to.clone());
        Ok(to)
    })?;
    if let (Some(dir), Some((own, end, survey))) = (aside, left) {
        let control = state.set_up()?;
        let story = story(&control, (&own, &history), end, state.node()?);
        // The log itself is kept.
        if let Err(e) = lost::describe(&dir, &story, &survey) {
            tracing::warn!("what was put into '{}' is not described: {e}", dir.display());
        }
    }
    Ok(history)
}

/// What is told of log past the newest branch.
fn story<'a>(
    control: &'a Control,
    (own, to): (&'a History, &'a History),
    end: Lsn,
    node: NodeId,
) -> Story<'a> {
    let branch = to.branches().last();
    Story {
        node,
        name: &control.name,
        own,
        to,
        branch: branch.map_or(end, |b| b.at),
        end,
        leader: branch.map_or("", |b| b.name.as_str()),
        when: crate::net::wall_clock(),
    }
}

/// What the log past the newest branch changed that is about to be put aside: its way, its end, and the changes.
fn left_behind(state: &StateDir, history: &History) -> Result<Option<(History, Lsn, Survey)>> {
    let Some((timeline, end)) = log::left_behind(&state.log(), history)? else { return Ok(None) };
    let Some(own) = history.upto(timeline) else { return Ok(None) };
    let control = state.set_up()?;
    let survey =
        lost::survey(&story(&control, (&own, history), end, state.node()?), &state.log(), &state.catalog())?;
    Ok(Some((own, end, survey)))
}

/// The node goes on on the line that `next` leads to. Its directory stands at `applied`, and nothing runs.
///
/// # Errors
/// Why that can't be made durable.
pub(super) async fn go_over(node: &Arc<Node>, next: History, applied: Lsn) -> Result<()> {
    let Some(branch) = next.branches().last().cloned() else { return Ok(()) };
    if applied > branch.at {
        // It moved on meanwhile: the next look at the upstream says what that means.
        return Ok(());
    }
    tracing::info!(
        "timeline {} ended at {} by a {} of '{}' at {}; this node goes on on timeline {}",
        branch.parent,
        branch.at,
        branch.reason.word(),
        branch.name,
        Moment(branch.when),
        branch.timeline
    );
    let state = Arc::clone(&node.state);
    blocking(move || {
        let pass = |point| failpoint::pass(point).map_err(|e| Error::io("change", state.path(), e));
        pass("lines::before_history")?;
        state.keep_history(&next)?;
        pass("lines::before_control")?;
        state.change(|c| c.timeline = branch.timeline)?;
        pass("lines::after_control")
    })
    .await
}

/// Begins the line that `history` leads to with a commit of the tree as it is, if nothing was committed on it yet: whoever is
/// filled from here needs no log of the lines before.
///
/// # Errors
/// The log's.
pub(super) fn begin(history: &History, log: &Log, fold: &mut Fold) -> Result<()> {
    let Some(branch) = history.branches().last() else { return Ok(()) };
    if log.tail().commit > branch.at {
        return Ok(());
    }
    let cut = fold.read().cut();
    let now = crate::net::wall_clock();
    // A clock that is behind the old leader's does not make commits go back.
    let time = now.max(fold.read().time());
    let commit = fold.seal(cut, time)?;
    let mut raw = Vec::new();
    Record::Commit(commit).encode(&mut raw);
    let exact = if cut == Cut::Exact { flags::EXACT } else { 0 };
    failpoint::pass("lines::first_commit")?;
    let (_, end) = log.append(raw, flags::STARTS | flags::ENDS | exact)?;
    if !log.wait_durable(end, std::time::Duration::from_secs(60))? {
        return Err(Error::new(ErrorKind::Io, "the first commit of the timeline was not fsynced in time"));
    }
    fold.write().set_position(end, cut, time);
    Ok(())
}
