//! Promotion: a follower becomes the leader of a new timeline, in the process that it is.
//!
//! ```text
//!  following --ask--> the turn ends --> replaying to the cut --> history --> control file --> leading
//!                          \                  |                               (the promotion)
//!                           \--- anything fails: it follows on as before
//! ```
//!
//! Replay goes on alone, without an upstream, delay or target, to the last cut that is wanted of the log that is here. The
//! control file is what makes the node a leader: before it is written nothing has happened, after it the node leads, whatever
//! it dies of. A history that no control file followed is removed by the next start. The log is ended at the branch by the
//! leader's first turn, which looks at that at each start.
//!
//! | wanted | where the directory stands | what of the old line is left behind |
//! | --- | --- | --- |
//! | newest | on the last complete change set | the beginning of a change set: the new line begins with its abort |
//! | exact | on the last exact cut | change sets after it, too: they are put aside in `lost/` |

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::permit::{self, Asks};
use super::{Engine, Node, blocking, bounded_stop, force, lock};
use crate::apply::{Applied, Apply, ApplyCuts, ApplyHandle, ApplyOptions, Inexact, StopAt};
use crate::config::{Config, Cuts};
use crate::control::{PROMOTE_WAIT, Promote, PromoteTo};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::history::{Beginning, LineId, Reason};
use crate::log::{Log, Tail};
use crate::net::{Ancestry, wall_clock};
use crate::position::{Cut, Lsn, TimelineId};
use crate::quiesce;
use crate::state::{FillState, Role, StateDir};
use crate::sys::Root;

/// Longest run of the command `on_promote`.
const HOOK_MAX: Duration = Duration::from_secs(60);
/// Between looks whether the node leads.
const LOOK: Duration = Duration::from_millis(20);

/// What an operator wants.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Order {
    to: PromoteTo,
    /// How far the node has heard the old leader's log to go; zero: it has not heard of it since it started.
    known: Lsn,
    /// The leader hands over: the old line ends here, and nowhere else.
    handed: Option<Lsn>,
}

/// The promotion that is wanted, and how the last one went.
#[derive(Default)]
pub(crate) struct Promotion {
    order: Mutex<Option<Order>>,
    /// It came to this; taken by who waits for it.
    outcome: Mutex<Option<Result<Value>>>,
    changed: Notify,
    /// The command is yet to be run.
    hook: Mutex<Option<Value>>,
    /// A leader is to begin a new line.
    force: AtomicBool,
    /// The command runs.
    runs: AtomicBool,
}

impl Promotion {
    /// What an earlier process has left to do: the command of a promotion that it did not run to its end.
    pub(super) fn of(state: &StateDir) -> Self {
        let due = state.promoted().unwrap_or_else(|e| {
            tracing::warn!("whether on_promote is yet to be run is not known: {e}");
            None
        });
        let due = due.map(|b| json!({"branch": b.at.to_string(), "reason": b.reason.word(), "late": true}));
        Self { hook: Mutex::new(due), ..Self::default() }
    }

    /// Whether the next turn of the follower is a promotion.
    pub(super) fn is_wanted(&self) -> bool {
        lock(&self.order).is_some()
    }

    /// The next turn of the leader begins a new line.
    pub(super) fn begin_force(&self) {
        lock(&self.outcome).take();
        self.force.store(true, Ordering::SeqCst);
    }

    /// A leader handed over to this node, which does not serve yet: it need not ask whether another one leads.
    pub(super) fn took_over(&self) -> bool {
        lock(&self.hook)
            .as_ref()
            .is_some_and(|done| done["reason"] == Reason::Switchover.word() && done.get("late").is_none())
    }

    /// A leader that stood aside leads on: what was stopped is to be started.
    pub(super) fn allowed(&self) {
        *lock(&self.hook) = Some(json!({"reason": "allowed"}));
    }

    /// Whether the next turn of the leader begins a new line.
    pub(super) fn wants_force(&self) -> bool {
        self.force.load(Ordering::SeqCst)
    }

    /// Whether this turn of the leader begins a new line; asked once.
    pub(super) fn is_forced(&self) -> bool {
        self.force.swap(false, Ordering::SeqCst)
    }

    /// What was wanted came to this. After a success the command is run once the node serves.
    pub(super) fn came_to(&self, done: Result<Value>) {
        if let Ok(value) = &done {
            *lock(&self.hook) = Some(value.clone());
        }
        *lock(&self.outcome) = Some(done);
        self.changed.notify_waiters();
    }
}

/// What a promotion would do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Plan {
    /// Where the directory is to stand.
    stand: Lsn,
    exact: bool,
    /// Where the old line ends.
    branch: Lsn,
    /// Bytes of log that are here and do not count any more.
    dropped: u64,
}

/// Where a promotion of a node goes whose log ends at `tail` and whose directory stands at `at`. Pure.
///
/// # Errors
/// There is nothing to lead from, or the directory is past the cut that is wanted.
fn plan(to: PromoteTo, tail: &Tail, (at, cut): (Lsn, Cut)) -> Result<Plan> {
    let refused = |text: String| Err(Error::new(ErrorKind::Refused, text));
    if tail.end == Lsn::ZERO || tail.commit == Lsn::ZERO {
        return refused(
            "this node has no log yet; wait until `towline status` shows that it streams".to_owned(),
        );
    }
    let newest = tail.commit.max(at);
    let stand = match to {
        PromoteTo::Newest => newest,
        PromoteTo::Exact if tail.exact >= at => tail.exact,
        PromoteTo::Exact if cut == Cut::Exact => at,
        PromoteTo::Exact => {
            return refused(format!(
                "the directory stands at {at}, on a cut of files, and the log has no exact cut after it; promote with --to newest, \
                 or wait for an exact cut"
            ));
        }
    };
    // The beginning of a change set is no change; its abort is the first record of the new line.
    let branch = if stand == newest { tail.end.max(stand) } else { stand };
    Ok(Plan { stand, exact: stand == tail.exact, branch, dropped: tail.end.since(stand) })
}

fn wanted(to: Option<PromoteTo>, config: &Config) -> PromoteTo {
    to.unwrap_or(match config.apply_cuts {
        Cuts::Exact => PromoteTo::Exact,
        Cuts::File => PromoteTo::Newest,
    })
}

/// The answer to an operator.
pub(super) async fn answer(node: Arc<Node>, ask: Promote) -> Result<Value> {
    if ask.force {
        return force::answer(node, ask).await;
    }
    let limit = ask.timeout.map_or(PROMOTE_WAIT, |t| t.0);
    let deadline = tokio::time::Instant::now() + limit;
    let before = node.state.set_up()?.timeline;
    let looked = loop {
        match look(&node, &ask) {
            // It is about to run.
            Err(e)
                if ask.wait
                    && e.kind() == ErrorKind::Unavailable
                    && tokio::time::Instant::now() < deadline =>
            {
                tokio::time::sleep(LOOK).await;
            }
            looked => break looked?,
        }
    };
    let Some((order, told)) = looked else { return leads(&node, before, &ask, json!({})).await };
    if ask.dry_run {
        let refused = permit::ask(&node, Asks::Promote).await.err().map(|e| e.to_string());
        let more =
            [("promoted", json!(false)), ("dry_run", json!(true)), ("would_be_refused", json!(refused))];
        return Ok(with(told, &more));
    }
    permit::ask(&node, Asks::Promote).await?;
    begin(&node, order)?;
    awaited(&node, before, &ask, told).await
}

/// The answer when it was begun: at once, with what was `told` before, or when the node leads.
pub(super) async fn awaited(
    node: &Arc<Node>,
    before: TimelineId,
    ask: &Promote,
    told: Value,
) -> Result<Value> {
    if !ask.wait {
        return Ok(with(told, &[("promoted", json!(false)), ("promotion", json!("begins"))]));
    }
    let limit = ask.timeout.map_or(PROMOTE_WAIT, |t| t.0);
    let done = tokio::time::timeout(limit, outcome(node)).await.map_err(|_| {
        let text = format!(
            "the promotion is not complete after {} s; it goes on: see `towline status`",
            limit.as_secs()
        );
        Error::new(ErrorKind::Unavailable, text)
    })??;
    leads(node, before, ask, done).await
}

/// The next turn is the promotion.
///
/// # Errors
/// One is under way.
fn begin(node: &Node, order: Order) -> Result<()> {
    {
        let mut wanted = lock(&node.promotion.order);
        if wanted.is_some() {
            return Err(Error::new(ErrorKind::Refused, "a promotion of this node is under way already"));
        }
        lock(&node.promotion.outcome).take();
        *wanted = Some(order);
    }
    lock(&node.turn).cancel();
    node.retry.notify_waiters();
    Ok(())
}

/// The leader hands over to this follower, whose log and directory stand `at` the end of the leader's.
///
/// # Errors
/// They do not, or a promotion is under way.
pub(super) fn succeed(node: &Node, at: Lsn) -> Result<()> {
    begin(node, Order { to: PromoteTo::Exact, known: at, handed: Some(at) })
}

/// Whether this follower is about to lead.
pub(super) fn under_way(node: &Node) -> bool {
    node.promotion.is_wanted() || lock(&node.phase).word() == "promoting"
}

/// Whether the command `on_promote` is done with, or there is none.
pub(super) fn settled(node: &Node) -> bool {
    lock(&node.promotion.hook).is_none() && !node.promotion.runs.load(Ordering::SeqCst)
}

/// What a promotion would do; `None`: the node leads already.
fn look(node: &Arc<Node>, ask: &Promote) -> Result<Option<(Order, Value)>> {
    let control = node.state.set_up()?;
    if control.role == Role::Leader {
        if node.rivals.fence().is_some() {
            let text = "this node is fenced, because another line goes on from its own (see `towline status`): if it is to lead all \
                        the same, stop the application of the other one, and promote it with --force";
            return Err(Error::new(ErrorKind::Refused, text));
        }
        return Ok(None);
    }
    if control.fill != FillState::Done {
        let text = "this node's first copy, or its resync, is not complete: its directory is no state of the leader's; promote another";
        return Err(Error::new(ErrorKind::Refused, text));
    }
    let Some(Engine::Follower(follower)) = node.engine() else { return Err(super::not_running(node)) };
    let Some((log, apply)) = follower.stand() else { return Err(super::not_running(node)) };
    if let Some(e) = apply.failure().or_else(|| log.failure()) {
        let why = format!("this node can't be promoted as it is: {e}");
        return Err(Error::new(ErrorKind::Refused, why));
    }
    let at = *apply.applied().borrow();
    if !at.consistent {
        let text = "the directory does not stand on a cut yet; try again when status says running";
        return Err(Error::new(ErrorKind::Unavailable, text));
    }
    let to = wanted(ask.to, &node.config());
    let plan = plan(to, &log.tail(), (at.lsn, at.cut))?;
    let heard = follower.known_end();
    let known = if heard == Lsn::ZERO { heard } else { heard.max(log.tail().end) };
    let told = json!({
        "timeline": control.timeline.0,
        "to": to,
        "now": {"lsn": at.lsn.to_string(), "cut": at.cut.to_string()},
        "then": {"lsn": plan.stand.to_string(), "cut": if plan.exact { "exact" } else { "file" }},
        "branch": plan.branch.to_string(),
        "dropped_bytes": plan.dropped,
        "leader_known_to": (known != Lsn::ZERO).then(|| known.to_string()),
        "missing_bytes": (known != Lsn::ZERO).then(|| known.since(plan.stand)),
    });
    Ok(Some((Order { to, known, handed: None }, told)))
}

fn with(mut value: Value, more: &[(&str, Value)]) -> Value {
    if let Some(map) = value.as_object_mut() {
        map.extend(more.iter().map(|(k, v)| ((*k).to_owned(), v.clone())));
    }
    value
}

/// What the promotion that is under way comes to.
async fn outcome(node: &Node) -> Result<Value> {
    loop {
        let changed = node.promotion.changed.notified();
        if let Some(outcome) = lock(&node.promotion.outcome).take() {
            return outcome;
        }
        tokio::select! {
            () = changed => {}
            () = tokio::time::sleep(LOOK) => {}
            () = node.stop.cancelled() => return Err(Error::new(ErrorKind::Unavailable, "the node stops")),
        }
    }
}

/// The node leads; whoever waits is told when it serves.
pub(super) async fn leads(node: &Arc<Node>, before: TimelineId, ask: &Promote, done: Value) -> Result<Value> {
    let limit = ask.timeout.map_or(PROMOTE_WAIT, |t| t.0);
    let serves = async {
        while ask.wait && !matches!(node.engine(), Some(Engine::Leader(_))) {
            tokio::time::sleep(LOOK).await;
        }
    };
    tokio::time::timeout(limit, serves).await.map_err(|_| {
        let text = "the node is the leader, but does not serve yet: see `towline status`";
        Error::new(ErrorKind::Unavailable, text)
    })?;
    let now = node.state.set_up()?.timeline;
    let promoted = now != before;
    Ok(with(done, &[("promoted", json!(promoted)), ("role", json!("leader")), ("timeline", json!(now.0))]))
}

/// One turn of a follower that is to be promoted. Whatever it comes to, the next turn is one of the role on disk.
pub(super) async fn turn(node: &Arc<Node>, stop: &CancellationToken) -> Result<()> {
    let Some(order) = lock(&node.promotion.order).take() else { return Ok(()) };
    node.phase("promoting");
    node.port.halt(node, "this node is being promoted; it is tried again").await;
    let done = carry_out(node, order, stop).await;
    if let Err(e) = &done {
        tracing::error!(kind = e.kind().word(), "this node is not promoted, and follows on: {e}");
    }
    node.promotion.came_to(done);
    Ok(())
}

async fn carry_out(node: &Arc<Node>, order: Order, stop: &CancellationToken) -> Result<Value> {
    let starter = Arc::clone(node);
    let (log, apply, plan) = blocking(move || start(&starter, order)).await?;
    let before = *apply.applied().borrow();
    let there = tokio::select! {
        there = reaches(&apply, plan.stand) => there,
        () = stop.cancelled() => Err(Error::new(ErrorKind::Cancelled, "the node stops")),
    };
    let stopping = apply.clone();
    let rests = blocking(move || stopping.stop()).await;
    let end = log.tail().end;
    bounded_stop("close the log", move || log.close()).await;
    there?;
    let rests = rests.context(|| "replay did not come to rest")?;
    if rests.lsn != plan.stand {
        let text = format!("replay came to rest at {}, not at {}; try again", rests.lsn, plan.stand);
        return Err(Error::new(ErrorKind::Unavailable, text));
    }
    let node = Arc::clone(node);
    let known = if order.known == Lsn::ZERO { order.known } else { order.known.max(end) };
    blocking(move || lead(&node, (order, known), &plan, (before, rests))).await
}

/// Waits until the directory stands there.
async fn reaches(apply: &ApplyHandle, stand: Lsn) -> Result<()> {
    let mut applied = apply.applied();
    let mut ended = apply.ended();
    loop {
        {
            let at = *applied.borrow_and_update();
            if at.consistent && at.lsn >= stand {
                return Ok(());
            }
        }
        if let Some(e) = apply.failure() {
            return Err(e);
        }
        tokio::select! {
            changed = applied.changed() => if changed.is_err() {
                return Err(Error::new(ErrorKind::Unavailable, "replay ended"));
            },
            _ = ended.changed() => {}
        }
    }
}

/// Opens the log as it lies there, and replays it alone.
fn start(node: &Node, order: Order) -> Result<(Log, ApplyHandle, Plan)> {
    let (config, control) = (node.config(), node.state.set_up()?);
    let (log, paths) = super::follower::stores(node, &config, &control)?;
    let catalog = crate::checkpoint::load_newest(&node.state.catalog(), control.system)?;
    let at = catalog.map_or((Lsn::ZERO, Cut::Exact), |c| (c.lsn(), c.cut()));
    let plan = plan(order.to, &log.tail(), at)?;
    if let Some(at) = order.handed.filter(|at| (plan.stand, plan.branch) != (*at, *at)) {
        let text = format!("the old line is handed over at {at}, and would end at {}", plan.branch);
        return Err(Error::new(ErrorKind::Refused, text));
    }
    let options = ApplyOptions {
        cuts: if plan.exact { ApplyCuts::Exact } else { ApplyCuts::File },
        inexact: Inexact::Report,
        paused: false,
        delay: Duration::ZERO,
        stop_at: Some(StopAt::Lsn(plan.stand)),
        clock: Ancestry::default(),
        ..super::follower::options(&config)
    };
    let root = Arc::new(Root::open(&node.data).map_err(|e| crate::apply::gone(&node.data, &e))?);
    let apply = Apply::start(root, paths, log.clone(), None, options)?;
    Ok((log, apply, plan))
}

/// The history, then the role. From the control file on the node is a leader.
fn lead(
    node: &Node,
    (order, known): (Order, Lsn),
    plan: &Plan,
    (before, rests): (Applied, Applied),
) -> Result<Value> {
    let reason = if order.handed.is_some() { Reason::Switchover } else { Reason::Promotion };
    let begins = Beginning {
        at: plan.branch,
        line: LineId(fastrand::u64(1..)),
        when: wall_clock(),
        node: node.id,
        name: node.name(),
        reason,
        known,
    };
    let history = node.state.begin_line(begins, TimelineId::FIRST)?;
    let branch = history.branches().last();
    tracing::info!(
        lsn = %rests.lsn, cut = %rests.cut, branch = %plan.branch,
        "promoted: this node is the leader of timeline {}", history.timeline()
    );
    let stands = |a: Applied| json!({"lsn": a.lsn.to_string(), "cut": a.cut.to_string()});
    Ok(json!({
        "before": stands(before),
        "after": stands(rests),
        "branch": plan.branch.to_string(),
        "reason": reason.word(),
        "dropped_bytes": plan.dropped,
        "lost_bytes": branch.and_then(crate::history::Branch::lost),
    }))
}

/// The leader serves: the command of the configuration is run, if this process was promoted. That it fails changes nothing.
pub(super) fn hook(node: &Arc<Node>) {
    node.promotion.runs.store(true, Ordering::SeqCst);
    let Some(done) = lock(&node.promotion.hook).take() else {
        return node.promotion.runs.store(false, Ordering::SeqCst);
    };
    let node = Arc::clone(node);
    tokio::task::spawn_blocking(move || {
        let text = |k: &str| done.get(k).and_then(Value::as_str).unwrap_or_default();
        match command(&node, text("branch"), text("reason")) {
            Ok(Some(command)) => tracing::info!("on_promote: '{command}' is done"),
            Ok(None) => {}
            Err(e) => tracing::error!("on_promote: {e}; this node leads all the same"),
        }
        if let Err(e) = node.state.forget_promotion() {
            tracing::warn!("that on_promote was run can't be noted: the next start runs it again: {e}");
        }
        node.promotion.runs.store(false, Ordering::SeqCst);
    });
}

/// Runs the command `on_promote` to its end; which one that was. Blocks.
///
/// # Errors
/// It failed, or took too long.
pub(super) fn command(node: &Node, branch: &str, reason: &str) -> Result<Option<String>> {
    let Some(command) = node.config().on_promote else { return Ok(None) };
    let timeline = node.state.control().map_or(0, |c| c.timeline.0);
    let env = [
        ("TOWLINE_NAME", node.name()),
        ("TOWLINE_TIMELINE", timeline.to_string()),
        ("TOWLINE_BRANCH", branch.to_owned()),
        ("TOWLINE_REASON", reason.to_owned()),
    ];
    quiesce::run_hook(&command, &env, HOOK_MAX, &AtomicBool::new(false))?;
    Ok(Some(command))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tail(end: u64, commit: u64, exact: u64) -> Tail {
        Tail { end: Lsn(end), commit: Lsn(commit), exact: Lsn(exact), ..Tail::default() }
    }

    #[test]
    fn where_a_promotion_goes_as_a_table() {
        use PromoteTo::{Exact, Newest};
        let go = |to, t: Tail, at, cut| {
            plan(to, &t, (Lsn(at), cut)).map(|p| (p.stand.0, p.branch.0, p.dropped, p.exact))
        };
        // All exact, nothing open.
        assert_eq!(go(Exact, tail(90, 90, 90), 50, Cut::Exact).unwrap(), (90, 90, 0, true));
        assert_eq!(go(Newest, tail(90, 90, 90), 50, Cut::Exact).unwrap(), (90, 90, 0, true));
        // The beginning of a change set stays in the log, and is aborted by the new line.
        assert_eq!(go(Exact, tail(95, 90, 90), 90, Cut::Exact).unwrap(), (90, 95, 5, true));
        // Cuts of files after the last exact one.
        assert_eq!(go(Exact, tail(95, 90, 70), 60, Cut::Exact).unwrap(), (70, 70, 25, true));
        assert_eq!(go(Newest, tail(95, 90, 70), 60, Cut::Exact).unwrap(), (90, 95, 5, false));
        // The directory went past the last exact cut already.
        assert!(go(Exact, tail(95, 90, 70), 80, Cut::File).unwrap_err().to_string().contains("--to newest"));
        assert_eq!(go(Newest, tail(95, 90, 70), 80, Cut::File).unwrap(), (90, 95, 5, false));
        assert!(go(Newest, tail(0, 0, 0), 80, Cut::Exact).unwrap_err().to_string().contains("no log yet"));
    }

    #[test]
    fn without_a_word_the_cuts_that_are_applied_are_meant() {
        let file = Config { apply_cuts: Cuts::File, ..Config::default() };
        assert_eq!(wanted(None, &Config::default()), PromoteTo::Exact);
        assert_eq!(wanted(None, &file), PromoteTo::Newest);
        assert_eq!(wanted(Some(PromoteTo::Exact), &file), PromoteTo::Exact);
    }
}
