//! A running node: wires log, engines and links together, listens to signals and to the control
//! socket, and starts the engines anew when storage failed and may work again.
//!
//! Everything between the start of the engines and their end is a *generation*. A failed write or
//! fsync ends it: nothing that memory holds after such a failure is trusted. The next one begins from what
//! the disk records, after a pause that grows to a bound.
//!
//! ```text
//!  starting --> (filling) --> recovering --> running --TERM, stop--> stopping --> exit
//!     ^                           |             |
//!     |                           +---failure---+--> stalled: may go away by itself
//!     |                                         \--> corrupt, missing, diverged, refused: needs help
//!     +----- pause, reload, or damaged log fetched again -----/
//! ```
//!
//! A leader that another one has left behind steps down in a turn of its own (`rewinding`): see `rewind`.
//!
//! A follower that is promoted ends its turn, and takes one to come to rest as the leader (`promoting`); the next turn is a
//! leader's: see `promote`. A leader that hears of a line that goes on from its own ends its turn, and all that follow are
//! `fenced`; one that may not lead stands aside, `vetoed`: see the modules `fenced` and `permit`. One that hands over takes a turn
//! (`handing-over`) until the other leads: see `switchover`.
//!
//! The port is served over all of them: between two, and while nothing runs, followers still get the log that is
//! durable. Only a node that must not lead (fenced, vetoed, handed over, half rewound) turns everybody away with the reason.
//!
//! A wrong command, a wrong configuration, a state directory that another process holds, and, before there
//! ever was a copy, a data directory that belongs to somebody else end the process at its start. Whatever
//! else goes wrong keeps it up, so that `towline status` can say what it is.

mod archived;
mod archiving;
mod cleanup;
mod demote;
mod fenced;
mod follower;
mod force;
mod heal;
mod leader;
mod lines;
mod options;
mod pages;
mod permit;
mod points;
mod port;
mod promote;
mod recover;
mod resync;
mod rewind;
mod rivals;
mod show;
mod slot;
mod source;
mod strict;
mod supervisor;
mod switchover;
mod sync;
mod tally;
mod target;
mod trouble;
mod vet;
mod wait;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::config::{self, Config};
use crate::control::{self, Answer, Request};
use crate::disk;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::net;
use crate::position::{NodeId, SystemId};
use crate::slots::Slots;
use crate::state::{Control, FillState, Role, StateDir};
use crate::sys::vital;
use crate::tls::Trust;

pub use options::{Flags, Reach, reach};
pub use rewind::{Oneshot, addresses, rewind};
use supervisor::Supervisor;
use trouble::Phase;
pub use vet::vet;

/// How long a stop may take before the process ends without the final checkpoint.
const STOP_MAX: Duration = Duration::from_secs(60);
/// Signals to stop that come within this time are one.
const SAME_WISH: Duration = Duration::from_secs(1);
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
    /// A leader leads, also if it was left behind: on a new line then.
    pub force: bool,
    /// The configuration file, to read again on reload.
    pub file: Option<PathBuf>,
    /// What the command line puts over the file.
    pub flags: Flags,
}

/// What the process knows about itself, shared by the control socket and the generations.
pub(crate) struct Node {
    pub(crate) config: Mutex<Config>,
    pub(crate) state: Arc<StateDir>,
    pub(crate) id: NodeId,
    pub(crate) port: port::Port,
    /// What followers still need of the log.
    pub(crate) slots: Arc<Slots>,
    pub(crate) trust: Trust,
    pages: pages::Pages,
    pub(crate) resyncs: resync::Resyncs,
    pub(crate) promotion: promote::Promotion,
    pub(crate) rivals: Arc<rivals::Rivals>,
    permit: permit::Permit,
    pub(crate) rewinds: rewind::Rewinds,
    switchover: switchover::Switchover,
    archiving: archiving::Archiving,
    pub(crate) data: PathBuf,
    pub(crate) paused: std::sync::atomic::AtomicBool,
    /// The first turn leads, whatever the others say.
    force: std::sync::atomic::AtomicBool,
    /// When the process began, ns since 1970.
    started: i64,
    /// A target was reached, and the node told to go on.
    pub(crate) passed: target::Passed,
    file: Option<PathBuf>,
    flags: Flags,
    /// The state directory was made by this process.
    fresh: bool,
    phase: Mutex<Phase>,
    /// The engines, and what those before them have counted.
    engine: Mutex<(Option<Engine>, tally::Tally)>,
    /// Ends the present generation; the next one begins at once.
    turn: Mutex<CancellationToken>,
    /// Ends a pause between two generations.
    retry: tokio::sync::Notify,
    stop: CancellationToken,
    supervisor: Supervisor,
    waits: wait::Waits,
    /// Whoever wants the application still asks this one.
    pub(crate) freezer: Arc<crate::quiesce::Freezer>,
    strict: strict::Strict,
}

/// The engines of the present generation.
#[derive(Clone)]
pub(crate) enum Engine {
    Leader(leader::Leader),
    Follower(follower::Follower),
}

impl Engine {
    /// Signs of life of the threads that should give some.
    fn probe(&self) -> Vec<u64> {
        match self {
            Self::Leader(l) => l.probe(),
            Self::Follower(f) => f.probe(),
        }
    }
}

pub(crate) fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic elsewhere does not make plain values wrong.
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Node {
    pub(crate) fn phase(&self, word: &'static str) {
        lock(&self.phase).enter(word);
        self.supervisor.changed();
    }

    /// Says what keeps the node from running, and waits until it is worth another try.
    pub(crate) async fn stand_still(&self, e: Error) {
        tracing::error!(kind = e.kind().word(), "{e}");
        let pause = lock(&self.phase).fail(e);
        self.supervisor.changed();
        tokio::select! {
            () = self.stop.cancelled() => {}
            () = self.retry.notified() => {}
            // The log may be served on meanwhile: not once another line goes on from it.
            () = self.rivals.changed() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }

    pub(crate) fn config(&self) -> Config {
        lock(&self.config).clone()
    }

    pub(crate) fn set_engine(&self, engine: Option<Engine>) {
        let (now, tally) = &mut *lock(&self.engine);
        match std::mem::replace(now, engine) {
            Some(Engine::Leader(old)) => tally.add(Some(&old.counts()), None),
            Some(Engine::Follower(old)) => {
                tally.add(None, old.counts().as_ref());
                tally.left(old.lag(), Instant::now());
            }
            None => {}
        }
    }

    /// The name in force. Without a usable one in the configuration it is what the control file says.
    pub(crate) fn name(&self) -> String {
        let configured = lock(&self.config).node_name();
        configured.unwrap_or_else(|_| self.state.control().map(|c| c.name).unwrap_or_default())
    }

    fn engine(&self) -> Option<Engine> {
        lock(&self.engine).0.clone()
    }

    /// The engines, and what those before them have counted, as of one moment.
    fn engine_and_tally(&self) -> (Option<Engine>, tally::Tally) {
        lock(&self.engine).clone()
    }
}

/// Runs a node until it is told to stop.
///
/// # Errors
/// What makes a start impossible; everything else is shown in `status` and tried again.
pub fn run(start: Start) -> Result<ExitCode> {
    let supervisor = Supervisor::from_environment();
    let node = Arc::new(open(start, supervisor)?);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context(|| "cannot start the runtime")?;
    vital::end_process_on_panic();
    let result = runtime.block_on(vital::task("the node", live(Arc::clone(&node))));
    runtime.shutdown_timeout(Duration::from_secs(5));
    result.map(|()| ExitCode::SUCCESS)
}

/// Checks the directories, takes the lock, settles the role.
fn open(start: Start, supervisor: Supervisor) -> Result<Node> {
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
    let name = config.node_name()?;
    vet::start(&config, start.wanted, &data, &state)?;
    let state = Arc::new(StateDir::open_or_create(&state)?);
    let trust = Trust::load(config.tls_settings(state.path(), &name))?;
    let fresh = state.control().is_none();
    if fresh {
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
    if role == Role::Follower && state.control().is_none_or(|c| c.fill == FillState::None) {
        disk::create_dir_durable(&data)?;
    }
    // Now both are there, and what their names lead to is certain.
    config::check_apart(&data, state.path())?;
    let id = state.node()?;
    let slots = Arc::new(Slots::open(state.path())?);
    let port = port::Port::default();
    port.peers().remember(slots.absent());
    let passed = target::Passed::new(state.path());
    let freezer = Arc::new(crate::quiesce::Freezer::new(state.path()));
    let promotion = promote::Promotion::of(&state);
    Ok(Node {
        config: Mutex::new(config),
        state,
        id,
        port,
        slots,
        trust,
        pages: pages::Pages::default(),
        resyncs: resync::Resyncs::default(),
        promotion,
        rivals: Arc::default(),
        permit: permit::Permit::default(),
        rewinds: rewind::Rewinds::default(),
        switchover: switchover::Switchover::default(),
        archiving: archiving::Archiving::default(),
        data,
        paused: std::sync::atomic::AtomicBool::new(start.paused),
        force: std::sync::atomic::AtomicBool::new(start.force),
        started: net::wall_clock(),
        passed,
        file: start.file,
        flags: start.flags,
        fresh,
        phase: Mutex::new(Phase::new()),
        engine: Mutex::default(),
        turn: Mutex::new(CancellationToken::new()),
        retry: tokio::sync::Notify::new(),
        stop: CancellationToken::new(),
        supervisor,
        waits: wait::Waits::default(),
        freezer,
        strict: strict::Strict::default(),
    })
}

async fn live(node: Arc<Node>) -> Result<()> {
    let signals = tokio::spawn(vital::task("the task that hears signals", watch_signals(Arc::clone(&node))));
    let telling =
        tokio::spawn(vital::task("the task that answers the supervisor", supervisor::run(Arc::clone(&node))));
    let socket_cancel = CancellationToken::new();
    let socket = {
        let (path, cancel, node) = (node.state.socket(), socket_cancel.clone(), Arc::clone(&node));
        let handler: control::Handler =
            Arc::new(move |request, cancel| answer(Arc::clone(&node), request, cancel));
        tokio::spawn(vital::task("the control socket", async move {
            control::serve(&path, handler, cancel).await
        }))
    };
    let unattended = CancellationToken::new();
    let strict =
        tokio::spawn(vital::task("strict mode", strict::watch(Arc::clone(&node), unattended.clone())));
    let result = match node.pages.set(&node, node.config().http.as_deref()).await {
        Ok(()) => generations(&node).await,
        Err(e) => Err(e),
    };
    unattended.cancel();
    let _ = strict.await;
    if let Err(e) = &result {
        node.supervisor.failed(e).await;
    } else {
        // Whoever tells it meanwhile may not have come to it.
        node.supervisor.stopping().await;
    }
    switchover::back(&node).await;
    node.port.close().await;
    let _ = node.pages.set(&node, None).await;
    socket_cancel.cancel();
    let _ = socket.await;
    signals.abort();
    telling.abort();
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
    let mut first = None;
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
        // A terminal, a shell and a supervisor may each pass the same wish on.
        if first.get_or_insert_with(Instant::now).elapsed() < SAME_WISH && node.stop.is_cancelled() {
            continue;
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
    let mut first = true;
    while !node.stop.is_cancelled() {
        node.phase("starting");
        let turn = node.stop.child_token();
        *lock(&node.turn) = turn.clone();
        let role = node.state.control().map_or(Role::Follower, |c| c.role);
        if role == Role::Follower {
            node.rivals.follow();
        }
        let settled = node.state.settle().and_then(|()| switchover::leads_no_more(node));
        let result = match (settled, role) {
            (Err(e), _) => Err(e),
            (Ok(true), _) => switchover::turn(node, &turn).await,
            (Ok(false), Role::Leader) => match rewind::turn(node).await {
                Some(done) => done,
                None => leader::turn(node, &turn).await,
            },
            (Ok(false), Role::Follower) if node.promotion.is_wanted() => promote::turn(node, &turn).await,
            (Ok(false), Role::Follower) => follower::generation(node, &turn).await,
        };
        node.set_engine(None);
        let start = std::mem::take(&mut first);
        // Without an error it was told to end: to stop, or to go on with other options.
        let Err(e) = result else {
            if !node.stop.is_cancelled() {
                node.port.halt(node, "this node is starting").await;
            }
            continue;
        };
        // Whatever failed for want of the state directory, that is the reason.
        let e = node.state.check().err().unwrap_or(e);
        if start && ends_process(node, e.kind()) {
            return Err(e);
        }
        node.port.fail(node, &e).await;
        if e.kind() == ErrorKind::DiskFull && cleanup::make_room(node).await {
            continue;
        }
        let e = match heal(node, role, e).await {
            Ok(()) => continue,
            Err(e) => e,
        };
        node.stand_still(e).await;
    }
    node.phase("stopping");
    Ok(())
}

/// Whether a failure of the first generation is one of the command rather than of the node.
fn ends_process(node: &Node, kind: ErrorKind) -> bool {
    match (kind, node.state.control()) {
        (ErrorKind::Usage | ErrorKind::Config | ErrorKind::Locked, _) => true,
        (ErrorKind::Refused, Some(c)) if c.role == Role::Follower => c.fill == FillState::None,
        (ErrorKind::Refused, _) => node.fresh && !lock(&node.phase).has_run(),
        _ => false,
    }
}

/// Makes a follower's log whole if that is what the failure came from. `Err`: what is still wrong.
async fn heal(node: &Arc<Node>, role: Role, e: Error) -> Result<()> {
    let from_log = matches!(e.kind(), ErrorKind::Corrupt | ErrorKind::Missing);
    if role != Role::Follower || !from_log || node.state.check().is_err() {
        return Err(e);
    }
    tracing::warn!("{e}; looking for what of the log is not good");
    node.phase("healing");
    let healed = tokio::select! {
        () = node.stop.cancelled() => return Err(e),
        healed = heal::log_of(node) => healed,
    };
    match healed {
        Ok(0) => Err(e),
        Ok(_) => Ok(()),
        Err(why) => {
            let kind = e.kind();
            Err(Error::new(kind, format!("{e}; {why}")))
        }
    }
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

fn answer(node: Arc<Node>, request: Request, cancel: CancellationToken) -> Answer {
    Box::pin(async move {
        match request {
            Request::Status => show::shown(node).await,
            Request::Reload => reload(&node).await,
            Request::Trust => trust(&node).await,
            Request::Wait(ask) => wait::answer(&node, &ask, cancel).await,
            // Only those that it is said to know what to end.
            Request::Cancel => Ok(json!({"cancelled": false})),
            Request::SyncRelease { span } => strict::release(&node, span.map(|s| s.0)),
            Request::SyncResume => strict::resume(&node),
            Request::Stop => {
                node.stop.cancel();
                Ok(json!({"stopping": true}))
            }
            Request::Pause | Request::Resume => follower_request(&node, request).await,
            Request::Slot(request) => slot::answer(node, request).await,
            Request::Resync => resync::asked(&node),
            Request::Promote(ask) => promote::answer(node, ask).await,
            Request::Rewind(ask) => rewind::answer(node, ask).await,
            Request::Switchover(ask) => switchover::answer(node, ask).await,
            Request::Confirm if is_follower(&node) => Ok(resync::confirm(&node)),
            Request::Confirm if matches!(node.state.rewinding(), Ok(Some(_))) => rewind::confirm(&node).await,
            Request::Confirm | Request::Barrier | Request::RestorePoint { .. } => {
                leader_request(&node, request).await
            }
        }
    })
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|e| Error::new(ErrorKind::Io, format!("a worker failed: {e}")))?
}

fn is_follower(node: &Node) -> bool {
    node.state.control().is_some_and(|c| c.role == Role::Follower)
}

async fn follower_request(node: &Arc<Node>, request: Request) -> Result<Value> {
    let pause = request == Request::Pause;
    match node.engine() {
        Some(Engine::Follower(f)) => {
            node.paused.store(pause, std::sync::atomic::Ordering::SeqCst);
            let (keeper, target) = (Arc::clone(node), node.config().stop_target()?);
            blocking(move || {
                if !pause && f.is_stopped() {
                    // Before it goes on: a start finds it past the target, and is to know why.
                    target.map_or(Ok(()), |t| keeper.passed.note(t))?;
                }
                f.pause(pause)
            })
            .await
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
    let phase = lock(&node.phase);
    let why = phase.error().map(|e| format!(": {e}")).unwrap_or_default();
    Error::new(
        ErrorKind::Unavailable,
        format!("the node is {}{why}; try again when status says running", phase.word()),
    )
}

/// Reads the configuration again. The service manager is told, whoever asked for it.
async fn reload(node: &Arc<Node>) -> Result<Value> {
    node.supervisor.reloading().await;
    let result = read_again(node).await;
    node.supervisor.reloaded(result.as_ref().err()).await;
    result
}

async fn read_again(node: &Arc<Node>) -> Result<Value> {
    let Some(file) = node.file.clone() else {
        // Keys and peers are files of their own, and what waits for an operator can be tried again.
        trust(node).await?;
        node.archiving.reload();
        let retried = lock(&node.phase).error().is_some();
        node.retry.notify_waiters();
        return Ok(json!({"reloaded": false, "retried": retried}));
    };
    let fresh = node.flags.over(Config::load(&file)?);
    fresh.check()?;
    fresh.node_name()?;
    let old = node.config();
    let role = node.state.control().map_or(Role::Follower, |c| c.role);
    let change = options::Change::between(&old, &fresh, role);
    let config = change.keep_fixed(&old, fresh);
    let name = config.node_name()?;
    let (keeper, settings) = (node.trust.clone(), config.tls_settings(node.state.path(), &name));
    blocking(move || keeper.reload(settings)).await?;
    node.pages.set(node, config.http.as_deref()).await?;
    *lock(&node.config) = config.clone();
    node.flags.reloaded(&config);
    match node.engine() {
        Some(Engine::Leader(l)) => {
            sync::enforce(node.port.peers(), &config)?;
            l.reload(&config, &node.freezer);
        }
        Some(Engine::Follower(_)) if change.needs_turn() => {
            lock(&node.turn).cancel();
        }
        Some(Engine::Follower(f)) => f.reload(&config),
        _ => {}
    }
    node.archiving.reload();
    node.strict.look();
    // Whatever waits for an operator is tried again now.
    node.retry.notify_waiters();
    tracing::info!("configuration read again from '{}': {change}", file.display());
    Ok(change.answer())
}

/// Reads keys, certificates and peers again; says whom the node trusts now.
async fn trust(node: &Arc<Node>) -> Result<Value> {
    let keeper = node.trust.clone();
    blocking(move || keeper.refresh()).await?;
    let terms = node.trust.terms();
    let names: Vec<&str> = terms.peers().iter().map(|p| p.name.as_str()).collect();
    tracing::info!("keys, certificates and peers read again: {} peers", names.len());
    Ok(json!({"peers": names}))
}

/// Waits until a watched failure appears, the state directory is gone, or the stop is asked for.
pub(crate) async fn until_failure(
    node: &Node,
    stop: &CancellationToken,
    mut check: impl FnMut() -> Option<Error>,
) -> Option<Error> {
    let mut tick = tokio::time::interval(FAILURE_LOOK);
    loop {
        tokio::select! {
            () = stop.cancelled() => return None,
            _ = tick.tick() => if let Some(e) = check().or_else(|| node.state.check().err()) { return Some(e) },
        }
    }
}
