//! Switchover: the leader hands over to a follower that is named, and becomes its follower.
//!
//! ```text
//!  leader                                                          the one that is to lead
//!  checks  ---- could it? ---------------------------------------> is it filled, near, not paused, may it lead?
//!  note: begun
//!  on_demote, or freeze
//!  last pass, capture rests ==== log ============================> applied to its end
//!          ---- ready? ------------------------------------------> does it stand exactly there?
//!  note: passed   ..................................... the point of no return
//!  the port is closed to followers
//!          ---- lead --------------------------------------------> promotes itself at that very position
//!          <--- leads -------------------------------------------- captures and serves; on_promote
//!  becomes its follower in place, the note is removed
//! ```
//!
//! Up to the note that it is passed everything is put back when anything fails: capture and serving go on, the application is
//! thawed, or started by `on_promote`. After a kill the next start does so, told by the note. With the note this node
//! never leads on: it asks the other until that leads, whatever dies meanwhile; only an operator's `promote --force` ends
//! that, on a new line. The order of the steps and what follows from each failure is `session::handover`.

mod call;
mod checks;
mod conduct;
mod heir;
mod turn;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::{Node, blocking, is_follower, lock, promote};
use crate::control::{SWITCHOVER_WAIT, Switchover as Ask};
use crate::error::{Error, ErrorKind, Result};
use crate::net::wall_clock;
use crate::position::NodeId;
use crate::quiesce::Holder;
use crate::session::handover::{Leg, Stopper};
use crate::state::{Handover, Stage};

pub(super) use conduct::conduct;
pub(super) use heir::desk;
pub(super) use turn::{is_passed, leads_no_more, turn};

/// After the time that was given the answer is waited for this much longer, once nothing can be taken back.
const AFTER: Duration = Duration::from_secs(30);

/// What an operator wants, after the checks.
#[derive(Clone, Debug)]
struct Order {
    name: String,
    address: String,
    heir: NodeId,
    stopper: Stopper,
    /// What is not passed by then is put back.
    deadline: Instant,
}

/// A switchover that is under way, as `status` shows it.
#[derive(Clone, Debug)]
struct Under {
    to: String,
    address: String,
    leg: Leg,
    since: i64,
}

/// The switchover of a leader: the one that is under way, and how the last one went.
#[derive(Default)]
pub(crate) struct Switchover {
    order: Mutex<Option<Order>>,
    wanted: Notify,
    under: Mutex<Option<Under>>,
    /// It came to this; taken by who waits for it.
    outcome: Mutex<Option<Result<Value>>>,
    changed: Notify,
    /// Why the one that is being put back failed.
    undone: Mutex<Option<Error>>,
    /// The last one of this process that came to its end.
    last: Mutex<Option<Value>>,
    /// Commands that stop and start the application run one at a time.
    hooks: Arc<Mutex<()>>,
    /// Starts the application again.
    back: Mutex<Option<tokio::task::JoinHandle<()>>>,
    counts: Mutex<(u64, u64)>,
}

impl Switchover {
    fn begins(&self, to: &str) -> Result<()> {
        let mut under = lock(&self.under);
        if let Some(under) = under.as_ref() {
            let text = format!("a switchover to '{}' is under way already: see `towline status`", under.to);
            return Err(Error::new(ErrorKind::Refused, text));
        }
        let (to, address) = (to.to_owned(), String::new());
        *under = Some(Under { to, address, leg: Leg::Checks, since: wall_clock() });
        Ok(())
    }

    fn at(&self, leg: Leg) {
        if let Some(under) = lock(&self.under).as_mut() {
            under.leg = leg;
        }
    }

    /// It has come to its end.
    fn ends(&self, outcome: Result<Value>) {
        match &outcome {
            Ok(value) => {
                lock(&self.counts).0 += 1;
                *lock(&self.last) = Some(value.clone());
            }
            Err(e) => {
                lock(&self.counts).1 += 1;
                tracing::error!(kind = e.kind().word(), "{e}");
            }
        }
        *lock(&self.outcome) = Some(outcome);
        lock(&self.under).take();
        self.changed.notify_waiters();
    }

    /// What `status` shows; `None`: there was none.
    pub(super) fn part(&self) -> Option<Value> {
        let (under, last) = (lock(&self.under).clone(), lock(&self.last).clone());
        let (done, undone) = *lock(&self.counts);
        if under.is_none() && last.is_none() && undone == 0 {
            return None;
        }
        let under =
            under.map(|u| json!({"to": u.to, "address": u.address, "step": u.leg.word(), "since": u.since}));
        Some(json!({"under_way": under, "last": last, "completed": done, "undone": undone}))
    }
}

/// The answer to an operator.
pub(super) async fn answer(node: Arc<Node>, ask: Ask) -> Result<Value> {
    if is_follower(&node) {
        let text = "this node is a follower: a switchover is asked of the leader";
        return Err(Error::new(ErrorKind::Refused, text));
    }
    let limit = ask.timeout.map_or(SWITCHOVER_WAIT, |t| t.0);
    let deadline = Instant::now() + limit;
    node.switchover.begins(&ask.to)?;
    let looked = checks::look(&node, &ask, deadline).await;
    let told = match &looked {
        Ok((order, told)) if !ask.dry_run => {
            if let Some(under) = lock(&node.switchover.under).as_mut() {
                under.address.clone_from(&order.address);
            }
            lock(&node.switchover.outcome).take();
            *lock(&node.switchover.order) = Some(order.clone());
            node.switchover.wanted.notify_one();
            told
        }
        _ => {
            lock(&node.switchover.under).take();
            return looked.map(|(_, told)| told);
        }
    };
    let waited = tokio::time::timeout_at(deadline + AFTER, outcome(&node));
    let late = |_| {
        let text = format!(
            "the switchover to {} is not complete after {} s, and goes on: see `towline status`",
            told["to"],
            (limit + AFTER).as_secs()
        );
        Error::new(ErrorKind::Unavailable, text)
    };
    waited.await.map_err(late)?
}

/// What the switchover that is under way comes to.
async fn outcome(node: &Node) -> Result<Value> {
    loop {
        let changed = node.switchover.changed.notified();
        if let Some(outcome) = lock(&node.switchover.outcome).take() {
            return outcome;
        }
        tokio::select! {
            () = changed => {}
            () = tokio::time::sleep(Duration::from_millis(20)) => {}
            () = node.stop.cancelled() => return Err(Error::new(ErrorKind::Unavailable, "the node stops")),
        }
    }
}

/// The engines of a leader have come to rest, or are about to. A switchover that is not passed is broken off by that.
pub(super) async fn ends(node: &Arc<Node>) {
    let passed = matches!(node.state.handover(), Ok(Some(n)) if n.stage == Stage::Passed);
    let broken = lock(&node.switchover.under).clone().filter(|u| u.leg >= Leg::Stopping && !passed);
    if let Some(under) = broken {
        let text = format!(
            "the switchover to '{}' was undone: this node stopped, or failed, meanwhile; see `towline status`",
            under.to
        );
        let e = Error::new(ErrorKind::Cancelled, text);
        lock(&node.switchover.undone).get_or_insert(e);
    }
    put_back(node).await;
}

/// A leader runs: what was put back is over, and what was passed was taken back by force.
pub(super) fn runs(node: &Node) {
    let undone = lock(&node.switchover.undone).take();
    let passed = lock(&node.switchover.under).clone().filter(|u| u.leg == Leg::Leading);
    let forced = passed.map(|under| {
        let text = format!(
            "the switchover to '{}' was taken back: an operator made this node the leader of a new timeline",
            under.to
        );
        Error::new(ErrorKind::Cancelled, text)
    });
    if let Some(e) = undone.or(forced) {
        thaw(node);
        node.switchover.ends(Err(e));
    }
}

/// The engines of a leader have stopped, or are about to run: an application that was stopped for a switchover which is not
/// passed is thawed, or started again.
pub(super) async fn put_back(node: &Arc<Node>) {
    let reader = Arc::clone(node);
    let note = match blocking(move || reader.state.handover()).await {
        Ok(Some(note)) if note.stage == Stage::Begun => note,
        Ok(_) => return,
        // A leader does not start with a note that can't be read: that is said there.
        Err(_) => return,
    };
    match note.stopper {
        Stopper::Freeze => {
            thaw(node);
            return forget(node);
        }
        Stopper::Operator => return forget(node),
        Stopper::Hook => {}
    }
    if node.permit.shown().is_some() || !matches!(node.state.fenced(), Ok(None)) {
        // Another leads, or this node may not: the application stays stopped.
        return forget(node);
    }
    let mut back = lock(&node.switchover.back);
    if back.as_ref().is_some_and(|b| !b.is_finished()) {
        return;
    }
    let node = Arc::clone(node);
    // A panic: the note is there still, and the next start does it.
    *back = Some(tokio::task::spawn_blocking(move || start_again(&node, &note)));
}

/// Runs `on_promote` so that the application is started again.
fn start_again(node: &Arc<Node>, note: &Handover) {
    let hooks = Arc::clone(&node.switchover.hooks);
    let _turn = lock(&hooks);
    match promote::command(node, "", "switchover-undone") {
        Ok(Some(command)) => {
            tracing::info!("the application is started again: on_promote: '{command}' is done")
        }
        Ok(None) => tracing::error!(
            "the switchover to '{}' was undone, and on_demote has stopped the application; there is no on_promote to start it: \
             start it by hand",
            note.name
        ),
        Err(e) => {
            tracing::error!("on_promote: {e}; start the application by hand: the switchover was undone")
        }
    }
    forget(node);
}

fn forget(node: &Node) {
    if let Err(e) = node.state.forget_handover() {
        tracing::warn!(
            "that a switchover was undone can't be noted, so that the next start starts the application again: {e}"
        );
    }
}

fn thaw(node: &Node) {
    if let Err(e) = node.freezer.release(Holder::Switchover) {
        tracing::error!("the application can't be thawed, thaw it by hand: {e}");
    }
}

/// Waits until the application is started again, where that is under way.
pub(super) async fn back(node: &Node) {
    let back = lock(&node.switchover.back).take();
    if let Some(back) = back {
        let _ = back.await;
    }
}
