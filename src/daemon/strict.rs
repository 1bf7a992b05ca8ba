//! Strict mode: with `sync_loss = "freeze"` the application is frozen while the quorum is missing. Also the lines of the
//! log that say when it went missing and came back.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::{Node, blocking, lock, sync};
use crate::config::{Span, SyncLoss};
use crate::error::{Error, ErrorKind, Result};
use crate::net::{Quiet, wall_clock};
use crate::quiesce::Holder;
use crate::state::Role;
use crate::status::SyncPart;
use crate::sync::InForce;

/// How long an operator lets the application run when nothing else is said.
const RELEASE: Duration = Duration::from_secs(3600);
/// Longest time that can be said.
const RELEASE_MAX: Duration = Duration::from_secs(7 * 24 * 3600);
/// Between looks whether what has to be frozen still is: somebody may have thawed or restarted it.
const MAKE_SURE: Duration = Duration::from_millis(500);

/// What strict mode does now.
#[derive(Default)]
pub(crate) struct Strict {
    inner: Mutex<Inner>,
    changed: Notify,
}

#[derive(Default)]
struct Inner {
    frozen_since: Option<i64>,
    error: Option<String>,
    /// Until when an operator lets it run.
    released: Option<(Instant, i64)>,
}

impl Strict {
    /// Something changed that it depends on.
    pub(super) fn look(&self) {
        self.changed.notify_one();
    }

    /// Until when it was released, if that is not over.
    fn released(&self) -> Option<(Instant, i64)> {
        let mut inner = lock(&self.inner);
        inner.released = inner.released.filter(|(until, _)| *until > Instant::now());
        inner.released
    }

    /// The keys of `status`.
    pub(super) fn fill(&self, part: &mut SyncPart) {
        part.override_until = self.released().map(|(_, at)| at);
        let inner = lock(&self.inner);
        part.frozen_since = inner.frozen_since;
        part.freeze_error.clone_from(&inner.error);
    }
}

/// Lets the application run for a while.
pub(super) fn release(node: &Arc<Node>, span: Option<Duration>) -> Result<Value> {
    let span = span.unwrap_or(RELEASE);
    if span.is_zero() || span > RELEASE_MAX {
        let text =
            format!("an application is released for 1ms to {}; give a time like 1h", Span(RELEASE_MAX));
        return Err(Error::new(ErrorKind::Usage, text));
    }
    if node.state.control().is_none_or(|c| c.role != Role::Leader) {
        return Err(Error::new(
            ErrorKind::Refused,
            "this node is a follower: it freezes nothing; ask the leader",
        ));
    }
    if node.config().sync_loss != SyncLoss::Freeze {
        let text = "sync_loss is not freeze: nothing is frozen for want of followers";
        return Err(Error::new(ErrorKind::Refused, text));
    }
    let at = wall_clock().saturating_add(i64::try_from(span.as_nanos()).unwrap_or(i64::MAX));
    lock(&node.strict.inner).released = Some((Instant::now() + span, at));
    tracing::warn!("an operator lets the application run for {} whatever followers are there", Span(span));
    node.strict.look();
    Ok(json!({"released": true, "for": Span(span).to_string(), "until": at}))
}

/// Ends a release.
pub(super) fn resume(node: &Arc<Node>) -> Result<Value> {
    let was = node.strict.released().is_some();
    lock(&node.strict.inner).released = None;
    if was {
        tracing::info!("an operator ended the release of the application");
        node.strict.look();
    }
    Ok(json!({"resumed": was}))
}

/// Whether the application has to stand still.
fn has_to_rest(loss: SyncLoss, force: &InForce, released: bool) -> bool {
    loss == SyncLoss::Freeze && !force.satisfied && !released
}

fn leads(node: &Node) -> bool {
    node.state.control().is_some_and(|c| c.role == Role::Leader)
}

/// Freezes and thaws until it is told to end, or the node stops; thawed it ends.
pub(super) async fn watch(node: Arc<Node>, end: CancellationToken) {
    if leads(&node)
        && let Err(e) = sync::enforce(node.port.peers(), &node.config())
    {
        // The configuration was checked: the start of the engines says the same.
        tracing::error!("{e}");
    }
    let mut force_of = node.port.peers().in_force();
    let mut said = true;
    while !end.is_cancelled() && !node.stop.is_cancelled() {
        let force = force_of.borrow_and_update().clone();
        // A role may change while the process runs: a follower freezes nothing.
        let leads = leads(&node);
        said = !leads || say(&force, said);
        let released = node.strict.released();
        let rest = leads && has_to_rest(node.config().sync_loss, &force, released.is_some());
        act(&node, rest).await;
        let over = released.map(|(until, _)| until);
        let failed = lock(&node.strict.inner).error.is_some();
        let look = if rest || failed { Some(Instant::now() + MAKE_SURE) } else { over };
        let timer = async {
            match look {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = force_of.changed() => if changed.is_err() { break },
            () = node.strict.changed.notified() => {}
            () = timer => {}
            () = end.cancelled() => break,
            () = node.stop.cancelled() => break,
        }
    }
    act(&node, false).await;
}

/// One line when the quorum went missing, one when it came back; not more than two in a second.
fn say(force: &InForce, said: bool) -> bool {
    static LINES: [Quiet; 2] = [Quiet::new(Duration::from_secs(1)), Quiet::new(Duration::from_secs(1))];
    let satisfied = force.satisfied;
    let policy = &force.rules.policy;
    if satisfied == said || policy.is_async() {
        return satisfied;
    }
    let Some(n) = LINES[usize::from(satisfied)].line() else { return satisfied };
    let level = force.rules.level.word();
    if satisfied {
        tracing::info!("the followers of {policy} are there again, at level {level}{n}");
    } else {
        tracing::warn!(
            "followers are missing: {} of {} count for {policy} at level {level}; nothing is confirmed until they are \
             there{n}",
            force.present,
            policy.count
        );
    }
    satisfied
}

/// Freezes or thaws, and notes what came of it. What fails is tried again at the next look.
async fn act(node: &Arc<Node>, rest: bool) {
    let (was, failed) = {
        let inner = lock(&node.strict.inner);
        (inner.frozen_since, inner.error.is_some())
    };
    if !rest && was.is_none() && !failed {
        return;
    }
    let (config, freezer) = (node.config(), Arc::clone(&node.freezer));
    let done = blocking(move || {
        if rest {
            freezer.aim(&config.freeze, config.max_freeze.0)?;
            freezer.seize(Holder::Quorum)
        } else {
            freezer.release(Holder::Quorum)
        }
    });
    let done = done.await;
    let mut inner = lock(&node.strict.inner);
    match (&done, rest) {
        (Ok(()), true) if was.is_none() => {
            inner.frozen_since = Some(wall_clock());
            tracing::warn!(
                "the application is frozen until the followers are there; `towline sync release` lets it run"
            );
        }
        (Ok(()), false) => {
            if was.is_some() {
                tracing::info!("the application is thawed");
            }
            inner.frozen_since = None;
        }
        (Err(e), _) if !failed => {
            let what = if rest { "frozen" } else { "thawed" };
            tracing::error!("the application can't be {what}, it is tried again: {e}");
        }
        _ => {}
    }
    inner.error = done.err().map(|e| e.to_string());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::Rules;

    #[test]
    fn only_a_missing_quorum_freezes_and_only_where_that_was_asked_for() {
        let force =
            |satisfied| InForce { rules: Rules::default(), satisfied, present: 0, missing_since: None };
        assert!(has_to_rest(SyncLoss::Freeze, &force(false), false));
        assert!(!has_to_rest(SyncLoss::Freeze, &force(true), false));
        assert!(!has_to_rest(SyncLoss::Freeze, &force(false), true));
        assert!(!has_to_rest(SyncLoss::Report, &force(false), false));
    }
}
