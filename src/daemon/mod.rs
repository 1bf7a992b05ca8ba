//! A running node: wires log, engines and links together, listens to signals and to the control
//! socket, and starts the engines anew when storage failed and may work again.
//!
//! Everything between the start of the engines and their end is a *generation*. A failed write or
//! fsync ends it: nothing that memory holds after such a failure is trusted. The next one begins from what
//! the disk records, after a pause that grows to [`BACKOFF_MAX`].
//!
//! ```text
//!  starting --> (filling) --> running --failure--> stalled --pause--> starting
//!                                |                    \--not retried--> waits for the operator
//!                                \--TERM, stop--> stopping --> exit
//! ```

mod follower;
mod leader;
mod recover;
mod source;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::config::{self, Config};
use crate::control::{self, Answer, Request};
use crate::disk;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::position::SystemId;
use crate::state::{Control, Role, StateDir};
use crate::status::{Failure, Lag, LogPart, Status};

/// First pause after a failed generation.
const BACKOFF_FIRST: Duration = Duration::from_millis(200);
/// Longest pause between generations.
const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// How long a stop may take before the process ends without the final checkpoint.
const STOP_MAX: Duration = Duration::from_secs(60);
/// Between looks for a failure of an engine. Each look wakes threads of a node that is otherwise idle.
const FAILURE_LOOK: Duration = Duration::from_millis(500);

/// What a node is started with.
#[derive(Debug)]
pub struct Start {
    /// The resolved configuration.
    pub config: Config,
    /// The role a new state directory gets. A role on disk wins.
    pub wanted: Role,
    /// A follower rests on a cut after recovery until it is resumed.
    pub paused: bool,
    /// The configuration file, to read again on reload.
    pub file: Option<PathBuf>,
}

/// What the process knows about itself, shared by the control socket and the generations.
pub(crate) struct Node {
    pub(crate) config: Mutex<Config>,
    pub(crate) state: Arc<StateDir>,
    pub(crate) name: String,
    pub(crate) data: PathBuf,
    pub(crate) paused: std::sync::atomic::AtomicBool,
    file: Option<PathBuf>,
    phase: Mutex<Phase>,
    engine: Mutex<Option<Engine>>,
    stop: CancellationToken,
}

/// What the node is doing, and what keeps it from running.
#[derive(Clone, Debug)]
pub(crate) struct Phase {
    word: &'static str,
    error: Option<Error>,
}

/// The engines of the present generation.
#[derive(Clone)]
pub(crate) enum Engine {
    Leader(leader::Leader),
    Follower(follower::Follower),
}

pub(crate) fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic elsewhere does not make plain values wrong.
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Node {
    pub(crate) fn phase(&self, word: &'static str, error: Option<Error>) {
        *lock(&self.phase) = Phase { word, error };
    }

    pub(crate) fn config(&self) -> Config {
        lock(&self.config).clone()
    }

    pub(crate) fn set_engine(&self, engine: Option<Engine>) {
        *lock(&self.engine) = engine;
    }

    fn engine(&self) -> Option<Engine> {
        lock(&self.engine).clone()
    }
}

/// Runs a node until it is told to stop.
///
/// # Errors
/// What makes a start impossible; later failures are shown in `status` and retried.
pub fn run(start: Start) -> Result<ExitCode> {
    let node = Arc::new(open(start)?);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context(|| "cannot start the runtime")?;
    let result = runtime.block_on(live(Arc::clone(&node)));
    runtime.shutdown_timeout(Duration::from_secs(5));
    result.map(|()| ExitCode::SUCCESS)
}

/// Checks the directories, takes the lock, settles the role.
fn open(start: Start) -> Result<Node> {
    let config = start.config;
    config.check()?;
    let need = |dir: &Option<PathBuf>, key: &str| {
        dir.clone().ok_or_else(|| {
            Error::new(
                ErrorKind::Usage,
                format!("no {key} directory is given; use --{key} DIR or the key '{key}'"),
            )
        })
    };
    let (data, state) = (need(&config.data, "data")?, need(&config.state, "state")?);
    config::check_apart(&data, &state)?;
    let name = config.node_name()?;
    let state = Arc::new(StateDir::open_or_create(&state)?);
    if state.control().is_none() {
        let system = match start.wanted {
            Role::Leader => SystemId(fastrand::u64(1..)),
            Role::Follower => SystemId::NONE,
        };
        state.persist(Control::new(system, start.wanted, &name, &data))?;
    }
    let role = state.control().map_or(start.wanted, |c| c.role);
    if role != start.wanted {
        tracing::warn!(
            "started as {}, but this state directory is a {}'s: going on as {}",
            start.wanted.word(),
            role.word(),
            role.word()
        );
    }
    if role == Role::Leader && !data.is_dir() {
        let text = format!(
            "data directory '{}' is not a directory; a leader replicates one that exists",
            data.display()
        );
        return Err(Error::new(ErrorKind::Config, text));
    }
    if role == Role::Follower {
        disk::create_dir_durable(&data)?;
    }
    Ok(Node {
        config: Mutex::new(config),
        state,
        name,
        data,
        paused: std::sync::atomic::AtomicBool::new(start.paused),
        file: start.file,
        phase: Mutex::new(Phase { word: "starting", error: None }),
        engine: Mutex::new(None),
        stop: CancellationToken::new(),
    })
}

async fn live(node: Arc<Node>) -> Result<()> {
    let signals = tokio::spawn(watch_signals(Arc::clone(&node)));
    let socket_cancel = CancellationToken::new();
    let socket = {
        let (path, cancel, node) = (node.state.socket(), socket_cancel.clone(), Arc::clone(&node));
        let handler: control::Handler = Arc::new(move |request| answer(Arc::clone(&node), request));
        tokio::spawn(async move { control::serve(&path, handler, cancel).await })
    };
    let result = generations(&node).await;
    socket_cancel.cancel();
    let _ = socket.await;
    signals.abort();
    result
}

/// TERM and INT stop after flushing, a second one at once; HUP reads the configuration again.
async fn watch_signals(node: Arc<Node>) {
    let (Ok(mut term), Ok(mut int), Ok(mut hup)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()), signal(SignalKind::hangup()))
    else {
        tracing::error!("cannot listen to signals; stop this node through its control socket");
        return;
    };
    loop {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
            _ = hup.recv() => {
                if let Err(e) = reload(&node).await {
                    tracing::error!("configuration is not read again: {e}");
                }
                continue;
            }
        }
        if node.stop.is_cancelled() {
            tracing::warn!("second signal: stopping at once; the next start recovers");
            let me = nix::unistd::Pid::this();
            let _ = nix::sys::signal::kill(me, nix::sys::signal::Signal::SIGKILL);
        }
        tracing::info!("stopping after flushing");
        node.stop.cancel();
    }
}

async fn generations(node: &Arc<Node>) -> Result<()> {
    let mut pause = BACKOFF_FIRST;
    let mut first = true;
    while !node.stop.is_cancelled() {
        node.phase("starting", None);
        let began = tokio::time::Instant::now();
        let role = node.state.control().map_or(Role::Follower, |c| c.role);
        let result = match role {
            Role::Leader => leader::generation(node, &node.stop).await,
            Role::Follower => follower::generation(node, &node.stop).await,
        };
        node.set_engine(None);
        let Err(e) = result else { break };
        if first && began.elapsed() < Duration::from_secs(30) && !e.kind().retries() {
            return Err(e);
        }
        first = false;
        let word = if e.kind() == ErrorKind::Diverged { "diverged" } else { "stalled" };
        tracing::error!("{word}: {e}");
        node.phase(word, Some(e.clone()));
        if began.elapsed() > BACKOFF_MAX {
            pause = BACKOFF_FIRST;
        }
        let wait = if e.kind().retries() { pause } else { BACKOFF_MAX * 6 };
        tokio::select! {
            () = node.stop.cancelled() => break,
            () = tokio::time::sleep(wait) => {}
        }
        pause = (pause * 2).min(BACKOFF_MAX);
    }
    node.phase("stopping", None);
    Ok(())
}

/// Runs blocking work of a stop, but never waits longer than [`STOP_MAX`].
pub(crate) async fn bounded_stop(what: &'static str, work: impl FnOnce() -> Result<()> + Send + 'static) {
    match tokio::time::timeout(STOP_MAX, tokio::task::spawn_blocking(work)).await {
        Ok(Ok(Ok(()))) => {}
        Ok(Ok(Err(e))) => tracing::warn!("{what}: {e}; the next start recovers"),
        Ok(Err(e)) => tracing::error!("{what}: {e}"),
        Err(_) => tracing::warn!("{what} takes more than {} s; the next start recovers", STOP_MAX.as_secs()),
    }
}

fn answer(node: Arc<Node>, request: Request) -> Answer {
    Box::pin(async move {
        match request {
            Request::Status => status(&node),
            Request::Reload => reload(&node).await.map(|()| json!({"reloaded": true})),
            Request::Stop => {
                node.stop.cancel();
                Ok(json!({"stopping": true}))
            }
            Request::Pause | Request::Resume => follower_request(&node, request).await,
            Request::Confirm | Request::Barrier => leader_request(&node, request).await,
        }
    })
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|e| Error::new(ErrorKind::Io, format!("a worker failed: {e}")))?
}

async fn follower_request(node: &Arc<Node>, request: Request) -> Result<Value> {
    let pause = request == Request::Pause;
    match node.engine() {
        Some(Engine::Follower(f)) => {
            node.paused.store(pause, std::sync::atomic::Ordering::SeqCst);
            blocking(move || f.pause(pause)).await
        }
        Some(Engine::Leader(_)) => {
            let text = "this node is the leader: its directory belongs to the application; pause a follower";
            Err(Error::new(ErrorKind::Refused, text))
        }
        None => Err(not_running(node)),
    }
}

async fn leader_request(node: &Arc<Node>, request: Request) -> Result<Value> {
    match node.engine() {
        Some(Engine::Leader(l)) => blocking(move || l.request(&request)).await,
        Some(Engine::Follower(_)) => {
            Err(Error::new(ErrorKind::Refused, "this node is a follower; ask the leader".to_owned()))
        }
        None => Err(not_running(node)),
    }
}

fn not_running(node: &Node) -> Error {
    let phase = lock(&node.phase).clone();
    let why = phase.error.map(|e| format!(": {e}")).unwrap_or_default();
    Error::new(
        ErrorKind::Unavailable,
        format!("the node is {}{why}; try again when status says running", phase.word),
    )
}

async fn reload(node: &Arc<Node>) -> Result<()> {
    let Some(file) = node.file.clone() else {
        return Err(Error::new(
            ErrorKind::Config,
            "the daemon was started without a configuration file; restart it with other flags",
        ));
    };
    let fresh = Config::load(&file)?;
    let old = node.config();
    // Where the directories are and who this is can't change under a running node.
    let config = Config { data: old.data, state: old.state, name: old.name, listen: old.listen, ..fresh };
    *lock(&node.config) = config.clone();
    match node.engine() {
        Some(Engine::Leader(l)) => l.reload(&config),
        Some(Engine::Follower(f)) => f.reload(&config),
        None => {}
    }
    tracing::info!("configuration read again from '{}'", file.display());
    Ok(())
}

fn status(node: &Arc<Node>) -> Result<Value> {
    let phase = lock(&node.phase).clone();
    let control =
        node.state.control().ok_or_else(|| Error::new(ErrorKind::Missing, "the node was not set up"))?;
    let mut status = Status {
        role: control.role.word(),
        name: node.name.clone(),
        version: env!("CARGO_PKG_VERSION"),
        data: node.data.display().to_string(),
        system: control.system.to_string(),
        timeline: control.timeline.0,
        state: phase.word.to_owned(),
        error: phase.error.map(|e| Failure { kind: e.kind().word(), message: e.to_string() }),
        log: None,
        capture: None,
        apply: None,
        upstream: None,
        followers: Vec::new(),
        lag: None,
        guarantee: String::new(),
    };
    match node.engine() {
        Some(Engine::Leader(l)) => l.fill_status(&mut status),
        Some(Engine::Follower(f)) => f.fill_status(&mut status),
        None => "nothing is replicated until the node is running".clone_into(&mut status.guarantee),
    }
    serde_json::to_value(status).map_err(|e| Error::new(ErrorKind::Io, e.to_string()))
}

/// The positions of a log for `status`.
pub(crate) fn log_part(log: &crate::log::Log) -> LogPart {
    let tail = log.tail();
    LogPart {
        written: log.written().to_string(),
        end: tail.end.to_string(),
        commit: tail.commit.to_string(),
        exact: tail.exact.to_string(),
        segment: format!("{:016X}", tail.segment.0),
        commit_time: tail.commit_time,
    }
}

/// Lag in bytes and seconds as `status` shows it.
pub(crate) fn lag(bytes: u64, seconds: f64) -> Lag {
    Lag { bytes, seconds }
}

/// Waits until a watched failure appears or the stop is asked for.
pub(crate) async fn until_failure(
    stop: &CancellationToken,
    mut check: impl FnMut() -> Option<Error>,
) -> Option<Error> {
    let mut tick = tokio::time::interval(FAILURE_LOOK);
    loop {
        tokio::select! {
            () = stop.cancelled() => return None,
            _ = tick.tick() => if let Some(e) = check() { return Some(e) },
        }
    }
}
