//! A leader that was left behind, or that another one leads apart from, leads all the same, because an operator says so: it
//! begins a new line at the end of its own, with a number above all that it has heard of, and it is the other one that was
//! left behind then. The old line is never served again.

use std::sync::Arc;

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::permit::{self, Asks};
use super::{Node, blocking, fenced, lines, lock, promote, recover, rivals, switchover};
use crate::checkpoint;
use crate::control::Promote;
use crate::error::{Error, ErrorKind, Result};
use crate::history::{Beginning, LineId, Reason};
use crate::log::{Log, LogOptions};
use crate::net::wall_clock;
use crate::position::Lsn;
use crate::state::Role;

/// The answer to an operator.
pub(super) async fn answer(node: Arc<Node>, ask: Promote) -> Result<Value> {
    let control = node.state.set_up()?;
    if control.role == Role::Follower {
        let text = "--force is for a leader that is fenced or in a split; this node is a follower: promote it without --force";
        return Err(Error::new(ErrorKind::Refused, text));
    }
    let (before, looking) = (control.timeline, Arc::clone(&node));
    let left = blocking(move || {
        let fenced = fenced::in_force(&looking.state).map_or(true, |f| f.is_some());
        // What can't be read stands for one.
        Ok(fenced || switchover::is_passed(&looking).unwrap_or(true))
    });
    if !left.await? && !node.rivals.is_split() {
        return promote::leads(&node, before, &ask, json!({})).await;
    }
    if ask.dry_run {
        let above = node.rivals.highest().max(before);
        return Ok(json!({
            "promoted": false,
            "dry_run": true,
            "force": true,
            "timeline": before.0,
            "above": above.0,
            "branch": control.applied.max(Lsn::FIRST).to_string(),
        }));
    }
    permit::ask(&node, Asks::Promote).await?;
    node.promotion.begin_force();
    lock(&node.turn).cancel();
    node.retry.notify_waiters();
    promote::awaited(&node, before, &ask, json!({"force": true, "timeline": before.0})).await
}

/// The turn in which the new line begins. Whatever it comes to, the next turn is that of the line on disk.
pub(super) async fn turn(node: &Arc<Node>, stop: &CancellationToken) -> Result<()> {
    node.phase("promoting");
    node.port.halt(node, "this node begins a new timeline; it is tried again").await;
    // The new number is to be above all that there are.
    tokio::select! {
        () = stop.cancelled() => return Ok(()),
        _ = rivals::round(node, rivals::FIRST_ROUND) => {}
    }
    let worker = Arc::clone(node);
    let done = blocking(move || begin(&worker)).await;
    if let Err(e) = &done {
        tracing::error!(kind = e.kind().word(), "this node does not begin a new timeline: {e}");
    }
    node.promotion.came_to(done);
    Ok(())
}

fn begin(node: &Node) -> Result<Value> {
    let control = node.state.set_up()?;
    lines::settle(&node.state)?;
    let log = Log::open_leader(LogOptions {
        dir: node.state.log(),
        system: control.system,
        timeline: control.timeline,
        segment_timeout: node.config().segment_timeout.0,
        level: node.config().compression,
    })?;
    let at = log.tail().end;
    log.close()?;
    let catalog = checkpoint::load_newest(&node.state.catalog(), control.system)?;
    let needs = catalog.map_or(Lsn::ZERO, |c| c.lsn()).max(control.applied);
    if at < needs {
        return Err(recover::log_lost(&node.state, at, needs));
    }
    if at <= Lsn::FIRST {
        let text = "this node has no log yet that a new timeline could begin behind; empty its state directory, and start it anew";
        return Err(Error::new(ErrorKind::Refused, text));
    }
    let begins = Beginning {
        at,
        line: LineId(fastrand::u64(1..)),
        when: wall_clock(),
        node: node.id,
        name: node.name(),
        reason: Reason::Force,
        known: at,
    };
    let noted = node.state.fenced().ok().flatten().map(|f| f.history.timeline());
    let taken = node.rivals.highest().max(noted.unwrap_or(control.timeline));
    let history = node.state.begin_line(begins, taken)?;
    node.state.unfence()?;
    tracing::warn!(
        "FORCED: this node leads on, on timeline {}, which begins at {at} of its timeline {}; whoever leads on a lower one is left \
         behind when it hears of that, and its log has to be thrown away",
        history.timeline(),
        control.timeline
    );
    Ok(
        json!({"forced": true, "reason": "force", "branch": at.to_string(), "above": taken.0, "dropped_bytes": 0, "lost_bytes": 0}),
    )
}
