//! A leader that was left behind: another line goes on from its own, so it neither captures nor serves any more.
//!
//! ```text
//!  leading --hears of a newer line--> note --> nobody is served --> on_demote --> capture ends --> fenced
//!     ^                                                                                             |
//!     |                        started again, whatever it died of: the note says so                 |
//!     +------------------ promote --force: a new line, above all that are known <-------------------+
//! ```
//!
//! The note counts as long as the line in it is newer than the node's own. What the application wrote meanwhile stays
//! where it is. The node goes on asking the others, so that it can say who leads.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::rivals::{self, Told};
use super::{Node, blocking, rewind};
use crate::error::{Error, ErrorKind, Result};
use crate::failpoint;
use crate::history::History;
use crate::moment::Moment;
use crate::net::{self, HANDSHAKE, wall_clock};
use crate::position::Lsn;
use crate::quiesce;
use crate::session::{self, Rival};
use crate::state::{Fence, StateDir};
use crate::status::Failure;
use crate::wire::Code;

/// Longest run of the command `on_demote`.
const HOOK_MAX: Duration = Duration::from_secs(60);
/// A disk that takes longer for the note does not keep this node from refusing service.
const NOTE_MAX: Duration = Duration::from_secs(1);
/// What to do about a fence.
const REMEDY: &str = "`towline rewind` makes this node a follower of the one that leads, and keeps what only it has; if this one is to lead after all, stop the other's application and \
                      `towline promote --force` here: it begins a new timeline";

/// The same while nothing has stopped the application here.
const REMEDY_RUNNING: &str = "see first that its application is stopped: on_demote is not configured, runs still, or failed; then `towline rewind` makes this node a follower of the \
                      one that leads, and keeps what only it has; if this one is to lead after all, stop the other's application and `towline promote --force` here: it begins a new timeline";

/// By what the node is fenced, if it is. A note of a line that is newer no more is removed.
///
/// # Errors
/// The note is damaged, or can't be read or removed.
pub(super) fn in_force(state: &StateDir) -> Result<Option<Fence>> {
    let Some(fence) = state.fenced()? else { return Ok(None) };
    let own = state.history()?;
    if session::rival(&own, &fence.history) == Some(Rival::Newer) {
        return Ok(Some(fence));
    }
    tracing::info!(
        "this node's timeline {} is no older than {}, by which it was fenced: it is fenced no more",
        own.timeline(),
        fence.history.timeline()
    );
    state.unfence()?;
    Ok(None)
}

/// Where the own line ended on the way to the newer one, as far as that is known.
fn branch(own: &History, newer: &History) -> Option<Lsn> {
    own.common(newer).map(|(_, at)| at).filter(|at| *at != Lsn(u64::MAX))
}

/// Who leads, and since when, in words.
fn words(own: &History, fence: &Fence) -> String {
    let timeline = fence.history.timeline();
    let by = fence.history.branches().last().map(|b| {
        format!(", begun by '{}' by a {} at {}", net::one_line(&b.name), b.reason.word(), Moment(b.when))
    });
    let end = branch(own, &fence.history).map(|at| format!(", which ended at {at}")).unwrap_or_default();
    let at = fence.address.as_ref().map(|a| format!(" at {}", net::one_line(a))).unwrap_or_default();
    format!(
        "this node does not lead any more: timeline {timeline}{} goes on in the place of its timeline {}{end}; heard from '{}'{at}",
        by.unwrap_or_default(),
        own.timeline(),
        net::one_line(&fence.name)
    )
}

/// This node was left behind: the note, then nobody is served any more, then the application is stopped.
///
/// # Errors
/// The note can't be written; nobody is served all the same.
pub(super) async fn begin(node: &Arc<Node>, told: Told) -> Result<()> {
    let own = node.state.history()?;
    let address = told.leader();
    let fence =
        Fence { since: wall_clock(), demoted: false, name: told.name, address, history: told.history };
    let said = words(&own, &fence);
    tracing::error!("FENCED: {said}");
    let (keeper, note) = (Arc::clone(node), fence.clone());
    let mut noting = pin!(blocking(move || keeper.state.fence(&note)));
    let noted = tokio::select! {
        noted = &mut noting => Some(noted),
        () = tokio::time::sleep(NOTE_MAX) => None,
    };
    node.port.bar(node, Code::WrongTimeline, &said).await;
    match noted {
        Some(noted) => noted?,
        None => noting.await?,
    }
    node.rivals.fenced(Some(fence.clone()));
    node.phase("fenced");
    demote(node, &own, fence).await.map(drop)
}

/// Has the application stopped, if that was not done yet, and notes that it was. A command that fails is run again by the
/// next start of the process.
async fn demote(node: &Arc<Node>, own: &History, fence: Fence) -> Result<Fence> {
    if fence.demoted || node.config().on_demote.is_none() || !node.rivals.tries() {
        return Ok(fence);
    }
    let leader = fence.history.branches().last().map(|b| b.name.clone()).filter(|n| session::valid_name(n));
    let env = vec![
        ("TOWLINE_TIMELINE", fence.history.timeline().to_string()),
        ("TOWLINE_BRANCH", branch(own, &fence.history).map(|at| at.to_string()).unwrap_or_default()),
        ("TOWLINE_NEW_LEADER", fence.address.clone().or(leader).unwrap_or_default()),
    ];
    pass(node, "fence::before_demote").await?;
    if !run(node, "fenced", env).await {
        return Ok(fence);
    }
    pass(node, "fence::after_demote").await?;
    let done = Fence { demoted: true, ..fence };
    let (keeper, note) = (Arc::clone(node), done.clone());
    blocking(move || keeper.state.fence(&note)).await?;
    node.rivals.fenced(Some(done.clone()));
    Ok(done)
}

async fn pass(node: &Arc<Node>, point: &'static str) -> Result<()> {
    let state = Arc::clone(&node.state);
    blocking(move || failpoint::pass(point).map_err(|e| Error::io("change", state.path(), e))).await
}

/// Runs `on_demote` for this reason. Whether it went well; that it failed is said, and changes nothing.
pub(super) async fn run(
    node: &Arc<Node>,
    reason: &'static str,
    mut env: Vec<(&'static str, String)>,
) -> bool {
    let Some(command) = node.config().on_demote else { return true };
    env.extend([("TOWLINE_NAME", node.name()), ("TOWLINE_REASON", reason.to_owned())]);
    let ends = Arc::new(AtomicBool::new(false));
    let watched = Arc::clone(&ends);
    let mut done =
        pin!(blocking(move || quiesce::run_hook(&command, &env, HOOK_MAX, &watched).map(|()| command)));
    let done = tokio::select! {
        done = &mut done => done,
        () = node.stop.cancelled() => {
            ends.store(true, Ordering::SeqCst);
            done.await
        }
    };
    match done {
        Ok(command) => tracing::info!("on_demote: '{command}' is done"),
        Err(e) => {
            tracing::error!(
                "on_demote: {e}; the application may still write here, and nobody gets what it writes"
            );
            return false;
        }
    }
    true
}

/// One turn of a leader that is fenced: until it is told to end.
///
/// # Errors
/// The state directory is gone, or the note can't be written.
pub(super) async fn turn(node: &Arc<Node>, mut fence: Fence, stop: &CancellationToken) -> Result<()> {
    let own = node.state.history()?;
    node.phase("fenced");
    node.rivals.fenced(Some(fence.clone()));
    let said = words(&own, &fence);
    tracing::warn!("fenced since {}: {said}", Moment(fence.since));
    node.port.bar(node, Code::WrongTimeline, &said).await;
    pass(node, "fence::turn").await?;
    fence = demote(node, &own, fence).await?;
    loop {
        let patience = node.config().peer_timeout.0;
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            _ = rivals::round(node, patience.min(HANDSHAKE)) => {}
        }
        node.state.check()?;
        if rewind::auto(node).await {
            return Ok(());
        }
        let told = node.rivals.known_newer();
        if let Some(told) = told.filter(|t| t.is_news(&fence.history, fence.address.as_deref())) {
            let address = told.leader();
            fence = Fence { name: told.name, address, history: told.history, ..fence };
            tracing::warn!("fenced: {}", words(&own, &fence));
            let (keeper, note) = (Arc::clone(node), fence.clone());
            blocking(move || keeper.state.fence(&note)).await?;
            node.rivals.fenced(Some(fence.clone()));
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = node.rivals.changed() => {}
            () = tokio::time::sleep(patience) => {}
        }
    }
}

/// The keys of `status` about the fence, and its trouble.
pub(super) fn shown(own: &History, fence: &Fence) -> (Value, Failure) {
    let last = fence.history.branches().last();
    let part = json!({
        "since": fence.since,
        "timeline": fence.history.timeline().0,
        "branch": branch(own, &fence.history).map(|at| at.to_string()),
        "by": last.map(|b| b.name.clone()),
        "heard_from": fence.name,
        "address": fence.address,
        "demoted": fence.demoted,
    });
    let failure = Failure {
        kind: ErrorKind::Refused.word(),
        message: words(own, fence),
        remedy: if fence.demoted { REMEDY } else { REMEDY_RUNNING },
        needs_help: true,
        since: fence.since,
        attempts: 1,
        next_retry: None,
    };
    (part, failure)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::Beginning;
    use crate::position::{SystemId, TimelineId};

    #[test]
    fn an_application_that_was_not_stopped_is_spoken_of_first() {
        let own = History::first(SystemId(7));
        let history = own.child(Beginning::sample(Lsn(2000), 9), TimelineId::FIRST).unwrap();
        let mut fence = Fence { since: 1, demoted: false, name: "b".to_owned(), address: None, history };
        assert!(shown(&own, &fence).1.remedy.starts_with("see first that its application is stopped"));
        fence.demoted = true;
        let remedy = shown(&own, &fence).1.remedy;
        assert!(remedy.starts_with("`towline rewind`") && !remedy.contains("on_demote"), "{remedy}");
    }
}
