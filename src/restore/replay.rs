//! The log over the base: a follower's engine, up to the goal.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{logs, stop_at};
use crate::apply::{self, Applied, Apply, ApplyHandle, ApplyOptions, ApplyPaths};
use crate::error::{Error, ErrorKind, Result};
use crate::failpoint;
use crate::log::Log;
use crate::position::Lsn;
use crate::state::{FillState, StateDir};
use crate::sys::Root;

/// Replays to `goal`; the directory stands there, durably, when this is done.
pub(super) async fn run(
    root: &Arc<Root>,
    state: &Arc<StateDir>,
    goal: Lsn,
    cancel: &CancellationToken,
) -> Result<()> {
    if let FillState::Filled { start, end } = state.set_up()?.fill {
        if start < end {
            // To the first cut on which the base is whole, and not a step further before that is noted.
            let applied = step(root, state, (goal, Some((start, end))), cancel).await?;
            failpoint::pass("restore::whole").map_err(|e| Error::io("write", state.path(), e))?;
            tracing::debug!("the base is whole at {}", applied.lsn);
        } else {
            apply::holds_until(state.path(), start)?;
        }
        state.change(|c| c.fill = FillState::Done)?;
    }
    let applied = step(root, state, (goal, None), cancel).await?;
    if applied.lsn != goal {
        let text = format!("the directory came to rest at {}, not at {goal}", applied.lsn);
        return Err(Error::new(ErrorKind::Diverged, text));
    }
    Ok(())
}

/// One run of the engine: to the first cut at which a copy is whole, or to the goal.
async fn step(
    root: &Arc<Root>,
    state: &Arc<StateDir>,
    (goal, filled): (Lsn, Option<(Lsn, Lsn)>),
    cancel: &CancellationToken,
) -> Result<Applied> {
    let control = state.set_up()?;
    let (dir, beginning) = (state.log(), Arc::clone(root));
    let paths = ApplyPaths {
        catalog: state.catalog(),
        blocks: state.blocks(),
        system: control.system,
        timeline: control.timeline,
    };
    let begin = move || {
        let log = logs::open(&dir, paths.system, paths.timeline)?;
        let options = options(goal, filled.is_some());
        let apply = Apply::start(beginning, paths, log.clone(), filled, options)?;
        let at = apply.applied().borrow().lsn;
        let short = if filled.is_none() { lacks(at, log.tail().end, goal) } else { None };
        let Some(short) = short else { return Ok((apply, log)) };
        end(&apply, log)?;
        Err(short)
    };
    let (apply, log) = blocking(begin).await?;
    let moved = async {
        consistent(&apply).await?;
        if filled.is_none() {
            until(&apply, apply.reached(), |r| *r).await?;
        }
        Ok(())
    };
    let moved = tokio::select! {
        moved = moved => moved,
        () = cancel.cancelled() => {
            Err(Error::new(ErrorKind::Cancelled, "stopped on request; the same command goes on"))
        }
    };
    let stopped = blocking(move || end(&apply, log)).await;
    moved.and(stopped)
}

/// Nobody adds to this log: a goal behind its end would be waited for for ever.
fn lacks(at: Lsn, end: Lsn, goal: Lsn) -> Option<Error> {
    let text = || {
        format!(
            "the directory stands at {at}, and the log that was fetched for it ends at {end}, before the target {goal}; remove \
             what this restore has left, and give the log with --log"
        )
    };
    (at.max(end) < goal).then(|| Error::new(ErrorKind::Missing, text()))
}

fn end(apply: &ApplyHandle, log: Log) -> Result<Applied> {
    let applied = apply.stop();
    log.close()?;
    applied
}

async fn consistent(apply: &ApplyHandle) -> Result<()> {
    until(apply, apply.applied(), |a| a.consistent).await
}

async fn until<T>(apply: &ApplyHandle, mut seen: watch::Receiver<T>, is: impl Fn(&T) -> bool) -> Result<()> {
    let mut ended = apply.ended();
    let closed =
        || apply.failure().unwrap_or_else(|| Error::new(ErrorKind::Io, "replay ended without a word"));
    tokio::select! {
        biased;
        there = seen.wait_for(|t| is(t)) => there.map(drop).map_err(|_| closed()),
        _ = ended.wait_for(|e| *e) => Err(closed()),
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|e| Error::new(ErrorKind::Io, format!("a worker failed: {e}")))?
}

fn options(goal: Lsn, paused: bool) -> ApplyOptions {
    ApplyOptions {
        stop_at: Some(stop_at(goal)),
        paused,
        max_inexact: Duration::ZERO,
        max_inexact_bytes: 0,
        scrub_interval: Duration::ZERO,
        ..ApplyOptions::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_goal_that_the_log_does_not_reach_is_not_waited_for() {
        for (at, end, goal, reached) in [(5, 9, 9, true), (9, 0, 9, true), (5, 8, 9, false), (0, 0, 1, false)]
        {
            assert_eq!(lacks(Lsn(at), Lsn(end), Lsn(goal)).is_none(), reached, "{at} {end} {goal}");
        }
    }
}
