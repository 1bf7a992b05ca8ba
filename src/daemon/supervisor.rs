//! What the service manager is told, by the protocol of sd_notify(3): datagrams to the socket that `NOTIFY_SOCKET`
//! names. Without that variable nothing here does anything.
//!
//! | message | when |
//! | --- | --- |
//! | `READY=1` | a leader: capture follows the directory; a follower: its first copy has begun, or its engines are up. Either: the node stands still for a reason that `status` says; it stays up then, and so it has started |
//! | `EXTEND_TIMEOUT_USEC` | before that, while the first scan or the recovery moves |
//! | `RELOADING=1`, `MONOTONIC_USEC`, then `READY=1` | around each reading of the configuration, by signal or by command |
//! | `STATUS` | role, health and lag, when that changes, at most once a second |
//! | `WATCHDOG=1` | twice or more in `WATCHDOG_USEC`, but only while the engines show signs of life: see [`alive`] |
//! | `STOPPING=1` | when a stop was asked for |
//!
//! A follower doesn't wait for its leader, nor for the end of a first copy: what depends on its data asks
//! `towline check`.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use sd_notify::NotifyState;
use serde_json::Value;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::{Node, lock};
use crate::error::{Error, Result};
use crate::position::Lsn;
use crate::sys::{pulse, raw};

/// Between looks at the status, when nothing else makes one.
const LOOK: Duration = Duration::from_secs(5);
/// Least time between two status lines.
const STATUS_LEAST: Duration = Duration::from_secs(1);
/// How long the status may take. What takes longer hangs.
const STATUS_MAX: Duration = Duration::from_secs(2);
/// How much longer the start may take when it moves.
const EXTENSION: Duration = Duration::from_secs(60);
/// A message is tried again for this long while the manager's queue is full.
const TRY: Duration = Duration::from_secs(5);
/// Most characters of a status line.
const LINE_MAX: usize = 240;

/// The service manager, if there is one.
pub(super) struct Supervisor {
    to: Option<(UnixDatagram, SocketAddr)>,
    watchdog: Option<Duration>,
    ready: AtomicBool,
    changed: Notify,
    /// Another status line than that of the node was sent, and is to be replaced.
    stale: AtomicBool,
    /// A stop was told.
    stopping: AtomicBool,
}

impl Supervisor {
    /// Takes what the manager has set out of the environment, so that commands which the node starts don't answer in
    /// its place.
    pub(super) fn from_environment() -> Self {
        let [socket, usec, pid] = ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"].map(raw::take_variable);
        let number = |text: Option<std::ffi::OsString>| text?.to_str()?.parse::<u64>().ok();
        let mine = pid.is_none_or(|pid| pid.to_str() == Some(&std::process::id().to_string()));
        let watchdog = number(usec).filter(|us| *us > 0 && mine).map(Duration::from_micros);
        let to = socket.and_then(|name| match open(&name) {
            Ok(to) => Some(to),
            Err(e) => {
                tracing::warn!("the service manager can't be told anything: NOTIFY_SOCKET is {name:?}: {e}");
                None
            }
        });
        Self {
            to,
            watchdog,
            ready: AtomicBool::new(false),
            changed: Notify::new(),
            stale: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
        }
    }

    /// The node does something else now.
    pub(super) fn changed(&self) {
        self.changed.notify_one();
    }

    /// The configuration is about to be read again.
    pub(super) async fn reloading(&self) {
        if self.ready.load(Ordering::SeqCst)
            && let Ok(now) = NotifyState::monotonic_usec_now()
        {
            self.tell(&[NotifyState::Reloading, now]).await;
        }
    }

    /// It was read, or found wrong.
    pub(super) async fn reloaded(&self, failure: Option<&Error>) {
        if self.ready.load(Ordering::SeqCst) {
            if failure.is_none() {
                self.stale.store(true, Ordering::SeqCst);
                self.changed();
            }
            let line = failure.map(|e| clipped(&format!("not reloaded: {e}")));
            let mut states = vec![NotifyState::Ready];
            states.extend(line.as_deref().map(NotifyState::Status));
            self.tell(&states).await;
        }
    }

    /// A stop was asked for. Said once, and before the process ends, however soon that is.
    pub(super) async fn stopping(&self) {
        if !self.stopping.swap(true, Ordering::SeqCst) {
            self.tell(&[NotifyState::Stopping, NotifyState::Status("stopping after flushing")]).await;
        }
    }

    /// The process ends by this error.
    pub(super) async fn failed(&self, e: &Error) {
        self.tell(&[NotifyState::Status(&clipped(&e.to_string()))]).await;
    }

    /// Sends one datagram. The manager may be busy: it is waited for, but never for long.
    async fn tell(&self, states: &[NotifyState<'_>]) {
        let Some((socket, to)) = &self.to else { return };
        let text: String = states.iter().map(|s| format!("{s}\n")).collect();
        let begin = Instant::now();
        loop {
            match socket.send_to_addr(text.as_bytes(), to) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock && begin.elapsed() < TRY => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                Err(e) => return tracing::debug!("the service manager does not listen: {e}"),
                Ok(_) => return,
            }
        }
    }
}

/// A name that begins with `@` is one in the abstract namespace.
fn open(name: &OsStr) -> io::Result<(UnixDatagram, SocketAddr)> {
    let to = match name.as_bytes() {
        [b'@', rest @ ..] => SocketAddr::from_abstract_name(rest)?,
        [b'/', ..] => SocketAddr::from_pathname(name)?,
        _ => return Err(io::Error::new(io::ErrorKind::InvalidInput, "not the path of a socket")),
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    Ok((socket, to))
}

/// What is known of the node at one instant.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Look {
    /// As in `status`.
    state: &'static str,
    /// Signs of life of the engines that should give some.
    engines: Vec<u64>,
    /// The same of all other threads.
    others: u64,
}

/// Whether the node was seen to live between two looks. Each engine was woken by the first look, so that it must
/// have turned its loop since, or be at work and have had calls come back. At a start other threads do the work. Waits
/// for peers and for operators are bounded or said, and no matter of a watchdog.
fn alive(before: &Look, now: &Look) -> bool {
    if now.engines.len() == before.engines.len() && !now.engines.is_empty() {
        return now.engines.iter().zip(&before.engines).all(|(n, b)| n != b);
    }
    now.state != "starting" || before.state != "starting" || now.others != before.others
}

/// Whether a start is over: see the table of the module.
fn started(state: &str, trouble: bool) -> bool {
    trouble
        || matches!(
            state,
            "running"
                | "filling"
                | "resyncing"
                | "recovering"
                | "healing"
                | "promoting"
                | "fenced"
                | "vetoed"
                | "rewinding"
        )
}

/// Tells the service manager how the node is until it is told to stop.
pub(super) async fn run(node: Arc<Node>) {
    let me = &node.supervisor;
    if me.to.is_none() {
        return;
    }
    let mut task =
        Task { node: &node, line: String::new(), said: None, look: take_look(&node), silent: 0, asked: None };
    let between = me.watchdog.map_or(LOOK, |w| w / 4);
    let (mut judge_at, mut say_at) = (Instant::now() + between, Instant::now());
    loop {
        let changed = tokio::select! {
            () = node.stop.cancelled() => {
                me.stopping().await;
                return;
            }
            () = tokio::time::sleep_until(judge_at.min(say_at).into()) => false,
            () = me.changed.notified() => true,
        };
        task.started().await;
        if Instant::now() >= judge_at {
            task.judge().await;
            judge_at = Instant::now() + between;
        }
        if changed || Instant::now() >= say_at {
            say_at = Instant::now() + if task.status().await { LOOK } else { STATUS_LEAST };
        }
    }
}

struct Task<'a> {
    node: &'a Arc<Node>,
    line: String,
    /// When the last status line was sent.
    said: Option<Instant>,
    look: Look,
    /// Looks without a sign of life.
    silent: u32,
    /// A question for the status that was not answered in time: no other one is asked before it ends.
    asked: Option<JoinHandle<Result<Value>>>,
}

impl Task<'_> {
    async fn started(&self) {
        let me = &self.node.supervisor;
        let (state, trouble) = phase(self.node);
        if started(state, trouble) && !me.ready.swap(true, Ordering::SeqCst) {
            me.tell(&[NotifyState::Ready]).await;
        }
    }

    /// Answers the watchdog, or asks for more time to start, if the node lives.
    async fn judge(&mut self) {
        let me = &self.node.supervisor;
        let look = take_look(self.node);
        let lives = alive(&self.look, &look) && self.answers().await.is_some();
        self.look = look;
        if !lives {
            self.silent = self.silent.saturating_add(1);
            // Twice is half of the watchdog's time: slow disks take less.
            if self.silent == 2 && me.watchdog.is_some() {
                tracing::error!(
                    "an engine gives no sign of life: the service manager's watchdog will end this process"
                );
            }
            return;
        }
        self.silent = 0;
        if me.watchdog.is_some() {
            me.tell(&[NotifyState::Watchdog]).await;
        }
        if !me.ready.load(Ordering::SeqCst) {
            let more = u32::try_from(EXTENSION.as_micros()).unwrap_or(u32::MAX);
            me.tell(&[NotifyState::ExtendTimeoutUsec(more)]).await;
        }
    }

    /// The status line; `None` if the node doesn't say how it is, because something hangs.
    async fn answers(&mut self) -> Option<String> {
        let node = Arc::clone(self.node);
        // A panic: that is no answer.
        let ask = || tokio::spawn(super::show::shown(node));
        let asked = self.asked.get_or_insert_with(ask);
        let answer = tokio::time::timeout(STATUS_MAX, asked).await.ok()?;
        self.asked = None;
        let answer = answer.ok()?;
        Some(clipped(&answer.as_ref().map_or_else(ToString::to_string, line)))
    }

    /// Sends the status line if it is another one. False: it is too soon for that, or something hangs.
    async fn status(&mut self) -> bool {
        if self.said.is_some_and(|t| t.elapsed() < STATUS_LEAST) {
            return false;
        }
        let Some(line) = self.answers().await else { return false };
        if self.node.supervisor.stale.swap(false, Ordering::SeqCst) || line != self.line {
            self.node.supervisor.tell(&[NotifyState::Status(&line)]).await;
            (self.line, self.said) = (line, Some(Instant::now()));
        }
        true
    }
}

fn phase(node: &Node) -> (&'static str, bool) {
    let phase = lock(&node.phase);
    (phase.word(), phase.error().is_some())
}

fn take_look(node: &Node) -> Look {
    let engines = node.engine().map(|e| e.probe()).unwrap_or_default();
    Look { state: phase(node).0, engines, others: pulse::others() }
}

/// One line, and not a long one.
fn clipped(text: &str) -> String {
    let mut line: String =
        text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(LINE_MAX).collect();
    if text.chars().count() > LINE_MAX {
        line += "...";
    }
    line
}

/// The status in one line: role, health, lag.
fn line(status: &Value) -> String {
    let text = |p: &str| status.pointer(p).and_then(Value::as_str).unwrap_or_default();
    let (role, health, state) = (text("/role"), text("/health"), text("/state"));
    if let Some(message) = status.pointer("/error/message").and_then(Value::as_str) {
        return format!("{role}, {health}: {message}");
    }
    let mut line = format!("{role}, {health}");
    if state != "running" && state != health {
        line += &format!(", {state}");
    }
    if let Some(lag) = status.get("lag").filter(|l| l.is_object()) {
        let bytes = lag.get("bytes").and_then(Value::as_u64).unwrap_or_default();
        line += &match lag.get("seconds").and_then(Value::as_f64) {
            None => format!(", {} behind at least", amount(bytes)),
            Some(_) if bytes == 0 => ", up to date".to_owned(),
            Some(seconds) => format!(", {seconds:.0} s and {} behind", amount(bytes)),
        };
    }
    let position = |v: Option<&Value>| v?.as_str()?.parse::<Lsn>().ok();
    let end = position(status.pointer("/log/end"));
    let followers = status.get("followers").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    if role == "leader" || !followers.is_empty() {
        let s = if followers.len() == 1 { "" } else { "s" };
        line += &format!(", {} follower{s}", followers.len());
        let behind = followers.iter().filter_map(|f| Some(end?.since(position(f.get("apply"))?)));
        if let Some(most) = behind.max().filter(|b| *b > 0) {
            line += &format!(", the farthest {} behind", amount(most));
        }
    }
    line
}

/// Bytes with one decimal at most.
fn amount(bytes: u64) -> String {
    let (mut value, mut unit) = (bytes, "B");
    for next in ["KiB", "MiB", "GiB", "TiB"] {
        if value < 10_240 {
            break;
        }
        (value, unit) = (value / 1024, next);
    }
    format!("{value} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn look(state: &'static str, engines: &[u64], others: u64) -> Look {
        Look { state, engines: engines.to_vec(), others }
    }

    #[test]
    fn every_engine_must_answer_and_at_a_start_something_must_move() {
        let running = look("running", &[5, 9], 1);
        assert!(alive(&running, &look("running", &[6, 10], 1)));
        assert!(!alive(&running, &look("running", &[6, 9], 2)), "one of two hangs");
        assert!(alive(&running, &look("running", &[6], 1)), "one has ended, which is said elsewhere");
        assert!(alive(&running, &look("stalled", &[], 1)), "a node that stands still and says so lives");
        let starting = look("starting", &[], 7);
        assert!(!alive(&starting, &starting));
        assert!(alive(&starting, &look("starting", &[], 8)) && alive(&starting, &running));
        assert!(
            alive(&look("filling", &[], 7), &look("filling", &[], 7)),
            "a leader that is away is no hang"
        );
    }

    #[test]
    fn a_start_is_over_when_the_node_serves_or_says_why_not() {
        assert!(!started("starting", false));
        assert!(started("running", false) && started("filling", false) && started("starting", true));
    }

    #[test]
    fn the_line_says_role_health_and_lag() {
        let follower = |bytes: u64, seconds: Option<f64>| {
            let health = if bytes > 0 { "behind" } else { "ok" };
            line(
                &json!({"role": "follower", "health": health, "state": "running", "lag": {"bytes": bytes, "seconds": seconds}}),
            )
        };
        assert_eq!(follower(0, Some(0.1)), "follower, ok, up to date");
        assert_eq!(follower(3 << 20, Some(4.4)), "follower, behind, 4 s and 3072 KiB behind");
        assert_eq!(follower(300 << 20, None), "follower, behind, 300 MiB behind at least");
        let leader = json!({"role": "leader", "health": "ok", "state": "running", "log": {"end": "0/2000"}, "followers": [{"apply": "0/2000"}, {"apply": "0/1000"}]});
        assert_eq!(line(&leader), "leader, ok, 2 followers, the farthest 4096 B behind");
        let failed = json!({"role": "leader", "health": "retrying", "error": {"message": "no\nroom"}});
        assert_eq!(clipped(&line(&failed)), "leader, retrying: no room");
        assert_eq!(clipped(&"x".repeat(500)).len(), LINE_MAX + 3);
    }

    #[test]
    fn names_of_sockets_are_paths_or_abstract() {
        assert!(open(OsStr::new("/run/x")).is_ok() && open(OsStr::new("@x")).is_ok());
        assert!(open(OsStr::new("vsock:2:1")).is_err());
    }
}
