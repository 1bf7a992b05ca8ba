//! The rewind of a node that is stopped: the command opens its state directory and does the whole of it. What it leaves is a follower
//! that only needs a start.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::super::follower;
use super::steps::{self, Goal, Task};
use super::turn::with;
use crate::config::{self, Config};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::fill::{self, FillContext, Report};
use crate::net::{FillProgress, Sources, Upstream};
use crate::receive::Look;
use crate::session::UpstreamRole;
use crate::slots::Slots;
use crate::state::{self, Control, FillState, Role, StateDir};
use crate::sys::Root;
use crate::tls::Trust;
use crate::wire::{Purpose, RoleWanted};

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Oneshot {
    /// The configuration of the node, as far as it is known.
    pub config: Config,
    /// Its state directory.
    pub state: PathBuf,
    /// Its data directory, if it is not the one that the state directory names.
    pub data: Option<PathBuf>,
    /// Those that may lead, `host:port`.
    pub leaders: Vec<String>,
    /// Only say what would be done.
    pub dry_run: bool,
    /// A mass delete that the guard would hold goes into the log that is left behind.
    pub confirm: bool,
}

/// Is told how far the comparison is.
pub(super) type Tell<'a> = &'a (dyn Fn(FillProgress) + Sync);

/// Rewinds the node of a state directory that no daemon works with. What was done.
///
/// # Errors
/// It can't be rewound, which changes nothing; or it broke off, and the same command goes on.
pub fn rewind(order: &Oneshot, tell: Tell<'_>, cancel: &CancellationToken) -> Result<Value> {
    let control = StateDir::peek(&order.state)?.ok_or_else(|| {
        let text =
            format!("'{}' is no state directory of a node: it has no control file", order.state.display());
        Error::new(ErrorKind::Missing, text)
    })?;
    let data = order.data.clone().unwrap_or_else(|| control.data_path.clone());
    config::check_apart(&data, &order.state)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context(|| "cannot start the runtime")?;
    let result = if order.dry_run {
        let trust = Trust::load(order.config.tls_settings(&order.state, &control.name))?;
        let goal = runtime.block_on(ask(order, &order.state, &control, &trust))?;
        let (_, told) = steps::preview(&order.state, &control, control.node, &goal)?;
        Ok(with(told, &[("rewound", json!(false)), ("dry_run", json!(true))]))
    } else {
        runtime.block_on(carry_out(order, &data, tell, cancel))
    };
    runtime.shutdown_timeout(std::time::Duration::from_secs(5));
    result
}

/// Who leads.
async fn ask(order: &Oneshot, path: &Path, control: &Control, trust: &Trust) -> Result<Goal> {
    let (end, _) = steps::stand(path, control)?;
    let look = Look {
        history: &state::history(path, control)?,
        flush: end,
        name: &control.name,
        node: control.node,
        wants: RoleWanted::Any,
        trust,
        peer_timeout: order.config.peer_timeout.0,
    };
    let named = match order.leaders.as_slice() {
        [] => follower::upstreams(&order.config)?.addresses,
        named => named.to_vec(),
    };
    steps::ask(look, &named).await
}

async fn carry_out(
    order: &Oneshot,
    data: &Path,
    tell: Tell<'_>,
    cancel: &CancellationToken,
) -> Result<Value> {
    let state = Arc::new(StateDir::open_or_create(&order.state)?);
    let control = state.set_up()?;
    let trust = Trust::load(order.config.tls_settings(state.path(), &control.name))?;
    let goal = ask(order, state.path(), &control, &trust).await?;
    let before = state.rewinding()?;
    let resumed = before.is_some() && control.role == Role::Follower;
    let told = if resumed {
        json!({"way": "rewind", "leader": goal.name, "address": goal.address})
    } else {
        let (task, told) = steps::preview(state.path(), &control, control.node, &goal)?;
        if task == Task::Nothing {
            return Ok(with(told, &[("rewound", json!(false)), ("dry_run", json!(false))]));
        }
        told
    };
    steps::begin(&state, &goal, order.confirm)?;
    let note =
        state.rewinding()?.ok_or_else(|| Error::new(ErrorKind::Missing, "the note of the rewind is gone"))?;
    let (work, from, config, of) = (Arc::clone(&state), data.to_owned(), order.config.clone(), note.clone());
    let stepping = move || steps::step_down(&work, &from, &config, &of);
    let stepped = tokio::task::spawn_blocking(stepping).await;
    let stepped = stepped.unwrap_or_else(|e| Err(Error::new(ErrorKind::Io, format!("a worker failed: {e}"))));
    match stepped {
        Ok(true) => {
            return Ok(with(
                told,
                &[("rewound", json!(true)), ("way", json!("in-place")), ("bundle", Value::Null)],
            ));
        }
        Ok(false) => {}
        Err(e) => {
            // It is what it was, unless another one has begun it.
            if before.is_none() && state.set_up()?.role == Role::Leader {
                state.end_rewind()?;
            }
            return Err(e);
        }
    }
    let report = equalise(order, (&state, data), &goal, trust, (tell, cancel)).await?;
    let done = steps::result(&state, &note, &report)?;
    Slots::open(state.path())?.leave_behind()?;
    state.end_rewind()?;
    let more: Vec<(&str, Value)> =
        done.as_object().into_iter().flatten().map(|(k, v)| (k.as_str(), v.clone())).collect();
    Ok(with(told, &more))
}

/// Makes the directory equal to that of the node that is gone to.
async fn equalise(
    order: &Oneshot,
    (state, data): (&Arc<StateDir>, &Path),
    goal: &Goal,
    trust: Trust,
    (tell, cancel): (Tell<'_>, &CancellationToken),
) -> Result<Report> {
    let control = state.set_up()?;
    let report = Arc::new(Mutex::new(Report::default()));
    if matches!(control.fill, FillState::Filled { .. }) {
        return Ok(Report::default());
    }
    let sources = Sources { addresses: vec![goal.address.clone()], role: UpstreamRole::Any };
    let status = Arc::new(Upstream::new(&sources, state.node()?).trusting(trust));
    let root = Root::open(data).map_err(|e| Error::io("open data directory", data, e))?;
    let context = FillContext {
        purpose: Purpose::Follow,
        sources,
        name: control.name.clone(),
        root: Arc::new(root),
        state: Arc::clone(state),
        peer_timeout: order.config.peer_timeout.0,
        status: Arc::clone(&status),
        order: matches!(control.fill, FillState::Done).then(steps::order),
        report: Arc::clone(&report),
        sums: None,
    };
    let telling = async {
        loop {
            tokio::time::sleep(std::time::Duration::from_millis(500)).await;
            if let Some(progress) = status.status().fill {
                tell(progress);
            }
        }
    };
    tokio::select! {
        filled = fill::run(context, cancel.child_token()) => filled?,
        never = telling => match never {},
    }
    if !matches!(state.set_up()?.fill, FillState::Filled { .. }) {
        let text = "stopped on request: the directory is not usable; the same command, or a start of the node, goes on";
        return Err(Error::new(ErrorKind::Cancelled, text));
    }
    Ok(report.lock().unwrap_or_else(PoisonError::into_inner).clone())
}
