//! The steps of a rewind, for a node whose engines do not run.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::super::demote::{Way, demote, way};
use super::super::{leader, lines, recover};
use crate::capture::{Capture, CaptureHandle};
use crate::checkpoint;
use crate::config::Config;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::failpoint;
use crate::fill::{Order, Report};
use crate::history::History;
use crate::log::{self, Log, LogOptions};
use crate::lost::{self, Story};
use crate::moment::Moment;
use crate::net::wall_clock;
use crate::position::{Lsn, NodeId};
use crate::quiesce::Freezer;
use crate::receive::{Look, Seen};
use crate::session::{Rival, rival};
use crate::state::{self, Control, FillState, LogFate, Rewinding, Role, StateDir};
use crate::sys::Root;
use crate::wire::{Code, Decision};

/// How long each node that may lead is waited for.
const ASK: Duration = Duration::from_secs(10);
/// How long a pass over the directory may take to be committed.
const PASS_MAX: Duration = Duration::from_secs(24 * 3600);
/// How long an exact cut is tried for: the application should not run.
const EXACT: Duration = Duration::from_secs(2);

/// The node that is gone to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Goal {
    pub(super) address: String,
    pub(super) name: String,
    pub(super) history: History,
}

/// Asks all of these which line they are on, and takes the newest.
///
/// # Errors
/// Nobody answers, or whoever does is on an older line, or of another system.
pub(super) async fn ask(look: Look<'_>, addresses: &[String]) -> Result<Goal> {
    let (mut goals, mut why): (Vec<Goal>, Option<Error>) = (Vec::new(), None);
    for address in addresses {
        match answer(look, address).await {
            Ok(goal) => goals.push(goal),
            Err(e) => {
                why = Some(why.map_or_else(|| e.clone(), |w| Error::new(w.kind(), format!("{w}; {e}"))))
            }
        }
    }
    let none =
        || Error::new(ErrorKind::Usage, "no leader is given; use --leader HOST:PORT or the key 'leader'");
    match newest(goals)? {
        Some(goal) if !matches!(rival(look.history, &goal.history), Some(Rival::Same | Rival::Older)) => {
            Ok(goal)
        }
        // Of several, one that could not be asked may be the one that leads.
        Some(goal) => match why {
            Some(e) if rival(look.history, &goal.history) == Some(Rival::Older) => Err(e),
            _ => Ok(goal),
        },
        None => Err(why.unwrap_or_else(none).wrap("nothing was changed")),
    }
}

/// The one on the newest line. Pure.
///
/// # Errors
/// Another one leads apart from it: which of them counts is for the operator to say.
fn newest(goals: Vec<Goal>) -> Result<Option<Goal>> {
    let mut best: Option<&Goal> = None;
    for goal in &goals {
        if best.is_none_or(|b| rival(&b.history, &goal.history) == Some(Rival::Newer)) {
            best = Some(goal);
        }
    }
    let Some(best) = best else { return Ok(None) };
    if let Some(other) = goals.iter().find(|g| rival(&best.history, &g.history) == Some(Rival::Apart)) {
        let text = format!(
            "nothing was changed: {} is on timeline {} and {} on timeline {} apart from it, since two nodes were promoted apart from \
             each other; stop the application of one of them, and `towline promote --force` on the one that is to lead; or name \
             the one to go to with --leader",
            best.address,
            best.history.timeline(),
            other.address,
            other.history.timeline()
        );
        return Err(Error::new(ErrorKind::Refused, text));
    }
    Ok(Some(best.clone()))
}

async fn answer(look: Look<'_>, address: &str) -> Result<Goal> {
    let seen = look.at(address, ASK).await;
    let silent =
        || Error::new(ErrorKind::Unavailable, format!("{address} does not answer, or may not be followed"));
    let Seen { name, history, decision } = seen.ok_or_else(silent)?;
    let says = match &decision {
        // It is asked what it makes of a log that is left behind, and says so.
        Decision::Refuse { code: Code::Diverged | Code::Resync | Code::WrongTimeline, .. } => None,
        Decision::Refuse { code, reason } if !code.passes() => Some(reason.clone()),
        _ => None,
    };
    if let Some(reason) = says {
        return Err(Error::new(
            ErrorKind::Refused,
            format!("{address} refuses: {}", crate::net::one_line(&reason)),
        ));
    }
    let old = || {
        Error::new(ErrorKind::Refused, format!("the program at {address} is too old to rewind to; update it"))
    };
    Ok(Goal { address: address.to_owned(), name, history: history.ok_or_else(old)? })
}

/// What is to be done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Task {
    /// The node is on that way already, or gets there by itself.
    Nothing,
    /// A leader steps down; whether in place is seen when all is in its log.
    StepDown,
    /// A follower whose log, and directory, went past the branch.
    Rewind,
}

/// What a node at rest has to do, whose log ends at `end` and whose directory stands at `applied`. Pure.
///
/// # Errors
/// It can't be rewound as it is, or not to there.
pub(super) fn task(
    control: &Control,
    own: &History,
    (end, applied): (Lsn, Lsn),
    next: &History,
) -> Result<Task> {
    let way = way(own, end, next)?;
    if control.role == Role::Leader {
        let same = rival(own, next) == Some(Rival::Same);
        return Ok(if same { Task::Nothing } else { Task::StepDown });
    }
    match control.fill {
        FillState::None | FillState::Copying { .. } => {
            let text = "this node takes its first copy: there is nothing to be rewound; start it";
            return Err(Error::new(ErrorKind::Refused, text));
        }
        // It is being made equal to its upstream as it is.
        FillState::Resyncing { .. } => return Ok(Task::Nothing),
        FillState::Filled { .. } | FillState::Done => {}
    }
    match way {
        Way::InPlace => Ok(Task::Nothing),
        // It gives the log up by itself that its directory has not got.
        Way::Rewind(Some(at)) if applied <= at && own.leads_to(next) => Ok(Task::Nothing),
        Way::Rewind(_) => Ok(Task::Rewind),
    }
}

/// Where the log of the state directory `path` ends, and where its newest checkpoint is, without changing anything.
pub(super) fn stand(path: &Path, control: &Control) -> Result<(Lsn, Lsn)> {
    let end = log::end_at_rest(&path.join("log"), control.system, control.timeline)?;
    let catalog = lost::newest_until(&path.join("catalog"), control.system, Lsn(u64::MAX))?;
    Ok((end, catalog.map_or(Lsn::ZERO, |c| c.lsn())))
}

/// What a rewind of the node of the state directory `path` would do, as far as its log tells.
///
/// # Errors
/// It can't be read, or can't be rewound.
pub(super) fn preview(path: &Path, control: &Control, node: NodeId, goal: &Goal) -> Result<(Task, Value)> {
    let own = state::history(path, control)?;
    let (end, applied) = stand(path, control)?;
    let task = task(control, &own, (end, applied), &goal.history)?;
    let way = way(&own, end, &goal.history)?;
    let branch = own.common(&goal.history).map(|(_, at)| at).filter(|at| *at != Lsn(u64::MAX));
    let mut told = json!({
        "role": control.role.word(),
        "timeline": own.timeline().0,
        "to_timeline": goal.history.timeline().0,
        "leader": goal.name,
        "address": goal.address,
        "branch": branch.map(|at| at.to_string()),
        "end": end.to_string(),
        "left_behind_bytes": branch.map(|at| end.since(at)),
        "way": match (task, way) {
            (Task::Nothing, _) => "nothing",
            (_, Way::InPlace) => "in-place",
            (_, Way::Rewind(_)) => "rewind",
        },
    });
    if let (Task::StepDown | Task::Rewind, Way::Rewind(Some(at)), Some(map)) =
        (task, way, told.as_object_mut())
    {
        let story = Story {
            node,
            name: &control.name,
            own: &own,
            to: &goal.history,
            branch: at.min(end),
            end,
            leader: &goal.address,
            when: wall_clock(),
        };
        let survey = lost::survey(&story, &path.join("log"), &path.join("catalog"));
        map.insert("changes".to_owned(), survey.map_or(Value::Null, |s| json!(s.counts())));
    }
    Ok((task, told))
}

/// Begins, unless one is under way already that goes to the same place.
pub(super) fn begin(state: &StateDir, goal: &Goal, confirmed: bool) -> Result<()> {
    let before = state.rewinding()?;
    let own = before.as_ref().map_or_else(|| state.history(), |b| Ok(b.own.clone()))?;
    state.begin_rewind(&Rewinding {
        since: before.map_or_else(wall_clock, |b| b.since),
        confirmed,
        name: goal.name.clone(),
        address: goal.address.clone(),
        own,
        next: goal.history.clone(),
    })
}

/// A leader's part: what its directory holds goes into its log, and it becomes a follower. True: in place, and that is all.
///
/// # Errors
/// Its directory is not what it should be, or a guard holds; it is the leader that it was then. Or it can't be made durable.
pub(super) fn step_down(state: &StateDir, data: &Path, config: &Config, note: &Rewinding) -> Result<bool> {
    if state.set_up()?.role == Role::Leader {
        let end = log_the_rest(state, data, config, note.confirmed)
            .context(|| "what the directory holds can't be put into the log; nothing else was changed")?;
        pass(state, "rewind::logged")?;
        if in_place(state, note)? {
            return Ok(true);
        }
        pass(state, "rewind::before_control")?;
        let applied = checkpoint::load_newest(&state.catalog(), note.own.system())?.map_or(end, |c| c.lsn());
        state.change(|c| {
            (c.role, c.fill, c.clean, c.applied) = (Role::Follower, FillState::Done, false, applied)
        })?;
    }
    pass(state, "rewind::after_control")?;
    state.unfence()?;
    in_place(state, note)
}

/// Whether the node is a follower that needs no more than that; the rewind is over then.
pub(super) fn in_place(state: &StateDir, note: &Rewinding) -> Result<bool> {
    let whole = state.set_up()?.fill == FillState::Done;
    if !whole || demote(state, &note.next)? != Way::InPlace {
        return Ok(false);
    }
    state.end_rewind()?;
    Ok(true)
}

fn pass(state: &StateDir, point: &'static str) -> Result<()> {
    failpoint::pass(point).map_err(|e| Error::io("change", state.path(), e))
}

/// How the directory is made the new leader's.
pub(super) fn order() -> Order {
    Order { log: LogFate::Aside, guard: None, tangled: true, adopt: false, damaged: Vec::new() }
}

/// Logs what the directory holds and the log does not, on the old line, with nothing served. Where the log ends then.
fn log_the_rest(state: &StateDir, data: &Path, config: &Config, confirmed: bool) -> Result<Lsn> {
    let root = Arc::new(Root::open(data).map_err(|e| Error::io("open data directory", data, e))?);
    lines::settle(state)?;
    let control = state.set_up()?;
    let log = Log::open_leader(LogOptions {
        dir: state.log(),
        system: control.system,
        timeline: control.timeline,
        segment_timeout: config.segment_timeout.0,
        level: config.compression,
    })?;
    let fold = recover::leader_fold(state, control.system, control.timeline, &log)?;
    // What is excluded is what was: without a configuration file nothing else is known of it.
    let patterns = String::from_utf8_lossy(&fold.read().excludes().patterns).into_owned();
    let mut options = leader::options(config, &Arc::new(Freezer::new(state.path())));
    options.excludes = patterns.lines().map(str::to_owned).collect();
    (options.freeze, options.freezer) = (String::new(), None);
    (options.before_cut, options.after_cut) = (None, None);
    options.max_cut_delay = EXACT;
    let capture = Capture::start(root, fold, log.clone(), state.path(), options)?;
    let passed = pass_over(&capture, confirmed).and_then(|_| all_is_seen(&capture, confirmed));
    // What a guard holds stays out of the log.
    let stopped = capture.stop();
    let end = log.tail().end;
    log.close()?;
    passed.and(stopped)?;
    state.change(|c| c.applied = c.applied.max(end))?;
    Ok(end)
}

fn pass_over(capture: &CaptureHandle, confirmed: bool) -> Result<Lsn> {
    match capture.barrier(PASS_MAX) {
        Err(e) if e.kind() == ErrorKind::Held && confirmed && capture.stats().hold_deletes => {
            capture.confirm();
            capture.barrier(PASS_MAX)
        }
        Err(e) if e.kind() == ErrorKind::Held && capture.stats().hold_deletes => {
            Err(e.wrap("if that is as it should be, run `towline rewind --confirm`"))
        }
        other => other,
    }
}

/// What could not be looked at is in no log, and would be gone afterwards.
fn all_is_seen(capture: &CaptureHandle, confirmed: bool) -> Result<()> {
    let stats = capture.stats();
    match stats.unreadable.or(stats.refused).filter(|_| !confirmed) {
        Some(unseen) => {
            let text = format!(
                "{unseen}: it is in no log, and would be gone after the rewind; move it out of the data directory, or, if nobody \
                 needs it, run `towline rewind --confirm`"
            );
            Err(Error::new(ErrorKind::Held, text))
        }
        None => Ok(()),
    }
}

/// What is said when it is over.
pub(super) fn result(state: &StateDir, note: &Rewinding, report: &Report) -> Result<Value> {
    let (timeline, line) = (note.own.timeline().0, note.own.line().to_string());
    let since = Moment(note.since).to_string();
    let ours = |l: &lost::Listed| {
        l.bundle.as_ref().is_some_and(|b| (b.timeline, &b.line) == (timeline, &line) && b.time >= since)
    };
    let bundle = lost::list(&state.lost())?.into_iter().rfind(ours);
    Ok(json!({
        "rewound": true,
        "way": "rewind",
        "bundle": bundle.as_ref().map(|b| b.path.display().to_string()),
        "changes": bundle.as_ref().and_then(|b| b.bundle.as_ref()).map(|b| b.changes),
        "received_bytes": report.received_bytes,
        "read_bytes": report.read_bytes,
        "wire_bytes": report.wire_bytes,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::Beginning;
    use crate::position::{SystemId, TimelineId};

    #[test]
    fn of_several_the_newest_line_is_gone_to_and_of_two_apart_none_unless_it_is_named() {
        let child = |of: &History, at: u64, line: u64| {
            of.child(Beginning::sample(Lsn(at), line), TimelineId::FIRST).unwrap()
        };
        let goal = |address: &str, history: &History| Goal {
            address: address.to_owned(),
            name: "n".to_owned(),
            history: history.clone(),
        };
        let one = History::first(SystemId(7));
        let (two, apart) = (child(&one, 2000, 0xA), child(&one, 1800, 0xB));
        let three = child(&two, 3000, 0xC);
        let at = |goals: Vec<Goal>| newest(goals).map(|g| g.map(|g| g.address));
        let old_new = vec![goal("b:1", &two), goal("c:1", &three), goal("a:1", &one), goal("d:1", &three)];
        assert_eq!(at(old_new).unwrap().as_deref(), Some("c:1"));
        assert_eq!(at(vec![]).unwrap(), None);
        assert_eq!(at(vec![goal("b:1", &apart)]).unwrap().as_deref(), Some("b:1"));
        let e = at(vec![goal("a:1", &one), goal("b:1", &two), goal("c:1", &apart)]).unwrap_err();
        assert!(e.kind() == ErrorKind::Refused, "{e}");
        assert!(
            e.to_string().contains("b:1")
                && e.to_string().contains("c:1")
                && e.to_string().contains("--leader"),
            "{e}"
        );
    }
}
