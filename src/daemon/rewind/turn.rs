//! The rewind of a node whose daemon runs: what an operator is answered, and the turn in which a leader steps down. The directory is
//! made equal by the turns of a follower that come after it.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};

use super::super::{Node, blocking, follower, lock};
use super::steps::{self, Goal, Task};
use crate::control::{Rewind, WAIT_MAX};
use crate::error::{Error, ErrorKind, Result};
use crate::fill::Order;
use crate::receive::Look;
use crate::session::{Rival, rival};
use crate::state::{FillState, Rewinding, Role};
use crate::wire::RoleWanted;

/// Between looks whether it is done.
const LOOK: Duration = Duration::from_millis(100);

/// What a node knows of its rewind beside the note.
#[derive(Default)]
pub(crate) struct Rewinds {
    /// Somebody waits for it.
    asked: Mutex<bool>,
    /// It came to this; taken by who waits for it.
    outcome: Mutex<Option<Result<Value>>>,
}

/// The answer to an operator.
pub(in crate::daemon) async fn answer(node: Arc<Node>, ask: Rewind) -> Result<Value> {
    let config = node.config();
    let sources = follower::upstreams(&config).map_err(|e| {
        e.wrap("this node follows those of the key 'leader' when it is rewound; add it, and run `towline reload`")
    })?;
    let wanted = ask.leader.as_deref().map_or(sources.addresses, addresses);
    let (goal, task, told) = look(&node, &wanted).await?;
    if ask.dry_run || task == Task::Nothing {
        return Ok(with(told, &[("rewound", json!(false)), ("dry_run", json!(ask.dry_run))]));
    }
    (*lock(&node.rewinds.asked), *lock(&node.rewinds.outcome)) = (true, None);
    start(&node, goal, ask.confirm).await?;
    let limit = ask.timeout.map_or(WAIT_MAX, |t| t.0);
    let late = |_| {
        let text = format!(
            "the rewind is not complete after {} s; it goes on: see `towline status`",
            limit.as_secs()
        );
        Error::new(ErrorKind::Unavailable, text)
    };
    let done = tokio::time::timeout(limit, outcome(&node)).await.map_err(late);
    *lock(&node.rewinds.asked) = false;
    let done = done??;
    let more = done.as_object().map(|m| m.iter().map(|(k, v)| (k.as_str(), v.clone())).collect::<Vec<_>>());
    Ok(with(told, &more.unwrap_or_default()))
}

/// The addresses of a list as it is typed.
#[must_use]
pub fn addresses(text: &str) -> Vec<String> {
    text.split(',').map(str::trim).filter(|a| !a.is_empty()).map(str::to_owned).collect()
}

pub(super) fn with(mut value: Value, more: &[(&str, Value)]) -> Value {
    if let Some(map) = value.as_object_mut() {
        map.extend(more.iter().map(|(k, v)| ((*k).to_owned(), v.clone())));
    }
    value
}

/// Who leads, and what follows from that.
async fn look(node: &Arc<Node>, addresses: &[String]) -> Result<(Goal, Task, Value)> {
    let (state, name, id) = (Arc::clone(&node.state), node.name(), node.id);
    let control = state.set_up()?;
    let under_way = state.rewinding()?;
    let history = under_way.as_ref().map_or_else(|| state.history(), |n| Ok(n.own.clone()))?;
    let (path, of) = (state.path().to_owned(), control.clone());
    let (end, _) = blocking(move || steps::stand(&path, &of)).await?;
    let look = Look {
        history: &history,
        flush: end,
        name: &name,
        node: id,
        wants: RoleWanted::Any,
        trust: &node.trust,
        peer_timeout: node.config().peer_timeout.0,
    };
    let goal = steps::ask(look, addresses).await?;
    if under_way.is_some() && control.role == Role::Follower {
        let told = json!({"way": "rewind", "leader": goal.name, "address": goal.address});
        return Ok((goal, Task::Rewind, told));
    }
    let of = goal.clone();
    let (task, told) = blocking(move || steps::preview(state.path(), &control, id, &of)).await?;
    Ok((goal, task, told))
}

/// Notes it, and ends the turn that is under way.
async fn start(node: &Arc<Node>, goal: Goal, confirmed: bool) -> Result<()> {
    let state = Arc::clone(&node.state);
    blocking(move || steps::begin(&state, &goal, confirmed)).await?;
    lock(&node.turn).cancel();
    node.retry.notify_waiters();
    Ok(())
}

/// What the rewind that is under way comes to.
async fn outcome(node: &Node) -> Result<Value> {
    loop {
        if let Some(outcome) = lock(&node.rewinds.outcome).take() {
            return outcome;
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            () = node.stop.cancelled() => {
                return Err(Error::new(ErrorKind::Unavailable, "the node stops; its next start goes on with the rewind"));
            }
        }
    }
}

fn ended(node: &Node, outcome: Result<Value>) {
    *lock(&node.rewinds.outcome) = Some(outcome);
}

/// `towline confirm` while a guard keeps what the directory lost out of the log that is left behind.
pub(in crate::daemon) async fn confirm(node: &Arc<Node>) -> Result<Value> {
    let held = lock(&node.phase).error().is_some_and(|e| e.kind() == ErrorKind::Held);
    if let Some(note) = node.state.rewinding()?.filter(|_| held) {
        let state = Arc::clone(&node.state);
        blocking(move || state.begin_rewind(&Rewinding { confirmed: true, ..note })).await?;
        node.retry.notify_waiters();
    }
    Ok(json!({ "confirmed": held }))
}

/// A fenced leader rewinds by itself, if that is configured and one that leads a newer line answers. True: it begins.
pub(in crate::daemon) async fn auto(node: &Arc<Node>) -> bool {
    if !node.config().auto_rewind || !matches!(node.state.fenced(), Ok(Some(_))) {
        return false;
    }
    let begun = async {
        let sources = follower::upstreams(&node.config())?;
        let (goal, task, _) = look(node, &sources.addresses).await?;
        let (own, of) = (node.state.history()?, Arc::clone(node));
        if task != Task::StepDown || rival(&own, &goal.history) != Some(Rival::Newer) {
            return Ok(false);
        }
        tracing::warn!("'{}' leads on timeline {}: this node is rewound", goal.name, goal.history.timeline());
        blocking(move || steps::begin(&of.state, &goal, false)).await.map(|()| true)
    };
    begun.await.unwrap_or_else(|e: Error| {
        tracing::debug!("this node can't be rewound by itself yet: {e}");
        false
    })
}

/// One turn of a leader that steps down; the next one is a follower's. `None`: it does not.
pub(in crate::daemon) async fn turn(node: &Arc<Node>) -> Option<Result<()>> {
    match node.state.rewinding() {
        // Whoever has it lead all the same, before anything was moved, means that.
        Ok(Some(_)) if node.promotion.is_forced() || node.force.load(Ordering::SeqCst) => {
            node.state.end_rewind().err().map(Err)
        }
        Ok(Some(note)) => Some(step_down(node, note).await),
        Ok(None) => None,
        Err(e) => Some(Err(e)),
    }
}

async fn step_down(node: &Arc<Node>, note: Rewinding) -> Result<()> {
    node.phase("rewinding");
    node.port.open(&node.config(), crate::net::Ancestry::default(), None).await?;
    node.port
        .turn_away(node, "this node is being rewound to the line of another leader; it is tried again")
        .await;
    let (work, of_note, config) = (Arc::clone(node), note.clone(), node.config());
    let stepped = tokio::select! {
        // What is under way is looked at anew by the next start.
        () = node.stop.cancelled() => return Ok(()),
        stepped = blocking(move || steps::step_down(&work.state, &work.data, &config, &note)) => stepped,
    };
    match stepped {
        Ok(true) => {
            in_place(node, &of_note);
            Ok(())
        }
        Ok(false) => Ok(()),
        Err(e) if *lock(&node.rewinds.asked) => {
            tracing::error!(kind = e.kind().word(), "this node is not rewound: {e}");
            node.state.end_rewind()?;
            ended(node, Err(e));
            Ok(())
        }
        Err(e) => Err(e),
    }
}

/// It follows, and that is all.
fn in_place(node: &Node, note: &Rewinding) {
    tracing::warn!(
        "this node follows '{}' from here on; nothing of its directory had to be moved",
        note.name
    );
    ended(node, Ok(json!({"rewound": true, "way": "in-place", "bundle": null})));
}

/// What a follower that is being rewound has to do with its directory before anything else.
pub(in crate::daemon) fn order(node: &Node, fill: FillState) -> Result<Option<Order>> {
    let Some(note) = node.state.rewinding()? else { return Ok(None) };
    if let FillState::Filled { .. } = fill {
        finished(node)?;
        return Ok(None);
    }
    if steps::in_place(&node.state, &note)? {
        in_place(node, &note);
        return Ok(None);
    }
    Ok(Some(steps::order()))
}

/// The directory of a follower was made equal: a rewind is over by that.
pub(in crate::daemon) fn finished(node: &Node) -> Result<()> {
    let Some(note) = node.state.rewinding()? else { return Ok(()) };
    let told = steps::result(&node.state, &note, &lock(&node.resyncs.report).clone())?;
    node.slots.leave_behind()?;
    node.state.end_rewind()?;
    tracing::warn!("rewound to timeline {} of '{}'", note.next.timeline(), note.name);
    ended(node, Ok(told));
    Ok(())
}
