//! The control socket: a Unix socket in the state directory (mode 0600) that answers
//! newline-delimited JSON. One request is one object with a `command`; one line comes back for each, in the order of
//! the requests: an object with either the answer's fields or `error` and `kind`.
//!
//! Requests may be sent before the answers to earlier ones came. A caller that closes its connection is done with: what
//! it waited for is given up. One that only shuts down its sending side still gets its answers.

use std::future::Future;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream as StdStream;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::config::Span;
use crate::error::{Error, ErrorKind, Result};
use crate::quorum::Level;

mod server;

pub use server::serve;

/// Most bytes of one request or answer.
pub(crate) const LINE_MAX: u64 = 4 << 20;

/// How long a wait lasts at most when nothing else is said.
pub const WAIT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long an exact cut is tried for when nothing else is said.
pub const POINT_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a promotion is waited for when nothing else is said.
pub const PROMOTE_WAIT: Duration = Duration::from_secs(60);
/// How long a switchover may take up to its point of no return when nothing else is said.
pub const SWITCHOVER_WAIT: Duration = Duration::from_secs(30);
/// Longest time that can be asked for.
pub const WAIT_MAX: Duration = Duration::from_secs(24 * 3600);

/// What can be asked of a running node.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(tag = "command", rename_all = "lowercase", deny_unknown_fields)]
pub enum Request {
    /// Everything `towline status` shows.
    Status,
    /// Bring the directory to rest on a cut and keep it there.
    Pause,
    /// Go on after a pause.
    Resume,
    /// Read the configuration file again.
    Reload,
    /// Read keys, certificates and peers again, and nothing else.
    Trust,
    /// Let a held mass delete, or a held resync, through.
    Confirm,
    /// Make the directory equal to the upstream's now.
    Resync,
    /// Make this follower the leader.
    Promote(Promote),
    /// Make this node, which another one has left behind, a follower of that one.
    Rewind(Rewind),
    /// Hand over to a follower, and follow it.
    Switchover(Switchover),
    /// Commit everything the directory holds now and say the LSN.
    Barrier,
    /// Name an exact cut that covers everything the directory holds now.
    #[serde(rename = "restore-point")]
    RestorePoint {
        /// The name.
        name: String,
        /// How long an exact cut is tried for; else [`POINT_TIMEOUT`].
        #[serde(default)]
        timeout: Option<Span>,
    },
    /// Commit everything the directory holds now, and wait until followers have confirmed it.
    Wait(Wait),
    /// End the waits of this connection now; each is answered by what is certain then.
    Cancel,
    /// Let the application run although the quorum is missing, for this time.
    #[serde(rename = "sync-release")]
    SyncRelease {
        /// How long; else an hour.
        #[serde(default, rename = "for")]
        span: Option<Span>,
    },
    /// End what an operator released.
    #[serde(rename = "sync-resume")]
    SyncResume,
    /// Look at the slots, or change them by hand.
    Slot(SlotRequest),
    /// Stop after flushing.
    Stop,
}

/// What is waited for, and how long. All of it may be left out.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
#[serde(default, deny_unknown_fields)]
pub struct Wait {
    /// What followers have to have done; else what the configuration says. On a follower: what it has to have done
    /// itself, else `apply`.
    pub level: Option<Level>,
    /// How long; else [`WAIT_TIMEOUT`].
    pub timeout: Option<Span>,
    /// Who has to confirm, in the grammar of `synchronous_followers`; else the policy of the configuration, and where that
    /// is empty all that are attached.
    #[serde(rename = "for")]
    pub policy: Option<String>,
    /// A position to wait for instead of what the directory holds.
    pub lsn: Option<String>,
}

/// How a node is rewound. All of it may be left out.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
#[serde(default, deny_unknown_fields)]
pub struct Rewind {
    /// `host:port` of the node that leads, or several with commas between; else as the configuration says.
    pub leader: Option<String>,
    /// Only say what would be done.
    pub dry_run: bool,
    /// A mass delete that the guard would hold goes into the log that is left behind.
    pub confirm: bool,
    /// How long it is waited for; else [`WAIT_MAX`].
    pub timeout: Option<Span>,
}

/// How a follower is promoted. All of it may be left out.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
#[serde(default, deny_unknown_fields)]
pub struct Promote {
    /// Which cut its directory is to stand on; else as it applies cuts.
    pub to: Option<PromoteTo>,
    /// Only say what would be done.
    pub dry_run: bool,
    /// Answer when it serves as the leader.
    pub wait: bool,
    /// A leader that is fenced or in a split begins a new timeline.
    pub force: bool,
    /// How long that is waited for; else [`PROMOTE_WAIT`].
    pub timeout: Option<Span>,
}

/// To whom a leader hands over, and how.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Switchover {
    /// The name of the follower that is to lead.
    pub to: String,
    /// What is not passed after this time is put back; else [`SWITCHOVER_WAIT`].
    #[serde(default)]
    pub timeout: Option<Span>,
    /// Only say whether anything stands against it.
    #[serde(default)]
    pub dry_run: bool,
    /// The operator has stopped the application.
    #[serde(default)]
    pub stopped: bool,
}

/// The cut that a promoted node stands on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum PromoteTo {
    /// The last exact cut of its log: a state that the directory had.
    Exact,
    /// The last complete change set: the newest data, though files may be of different instants.
    Newest,
}

/// What can be asked about slots.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(tag = "action", rename_all = "lowercase", deny_unknown_fields)]
#[allow(missing_docs, reason = "the names say it")]
pub enum SlotRequest {
    /// All of them.
    List {},
    /// One, or that there is none of this name.
    Show { name: String },
    /// Make one; `reserve`: it holds log from now on.
    Create { name: String, reserve: bool },
    /// Take one away.
    Drop { name: String },
    /// Move one forward.
    Advance { name: String, lsn: String },
}

/// An answer in the making.
pub type Answer = Pin<Box<dyn Future<Output = Result<Value>> + Send>>;
/// What answers requests. The token ends those that wait.
pub type Handler = Arc<dyn Fn(Request, CancellationToken) -> Answer + Send + Sync>;

/// Connects to the node whose socket is at `path`.
///
/// # Errors
/// [`ErrorKind::Unavailable`] when no daemon answers there; [`ErrorKind::Io`] when this user may not ask.
pub fn connect(path: &Path) -> Result<StdStream> {
    let at = path.display();
    StdStream::connect(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::PermissionDenied => Error::new(
            ErrorKind::Io,
            format!("permission denied at '{at}': only root and the user of the daemon may ask it; run this as one of them"),
        ),
        _ => Error::new(
            ErrorKind::Unavailable,
            format!("no daemon answers at '{at}': {e}; is the daemon running on this state directory?"),
        ),
    })
}

/// Asks the node whose socket is at `path`; blocks for at most `timeout`.
///
/// # Errors
/// As [`connect`]; [`ErrorKind::Unavailable`] when the daemon gives no answer; else what the daemon said.
pub fn call(path: &Path, request: &Request, timeout: Duration) -> Result<Value> {
    let down = |what: &str, e: std::io::Error| {
        let at = path.display();
        let text = if e.kind() == std::io::ErrorKind::WouldBlock {
            format!(
                "the daemon at '{at}' gave no answer in {} s; is it stopped or very busy?",
                timeout.as_secs()
            )
        } else {
            format!("{what} at '{at}': {e}; is the daemon running on this state directory?")
        };
        Error::new(ErrorKind::Unavailable, text)
    };
    let mut stream = connect(path)?;
    stream.set_read_timeout(Some(timeout)).map_err(|e| down("cannot ask the daemon", e))?;
    let mut text = serde_json::to_string(request).map_err(|e| Error::new(ErrorKind::Usage, e.to_string()))?;
    text.push('\n');
    stream.write_all(text.as_bytes()).map_err(|e| down("cannot ask the daemon", e))?;
    let mut line = String::new();
    BufReader::new(stream.take(LINE_MAX))
        .read_line(&mut line)
        .map_err(|e| down("the daemon gave no answer", e))?;
    if line.is_empty() {
        return Err(down("the daemon closed the connection", std::io::ErrorKind::UnexpectedEof.into()));
    }
    judge(&line)
}

/// Whether a daemon answers at the socket `path`.
#[must_use]
pub fn answers(path: &Path) -> bool {
    connect(path).is_ok()
}

/// What an answer says: its fields, or the error of the daemon.
pub fn judge(line: &str) -> Result<Value> {
    let value: Value = serde_json::from_str(line)
        .map_err(|e| Error::new(ErrorKind::Unavailable, format!("the daemon's answer is not JSON: {e}")))?;
    match value.get("error").filter(|_| value.get("kind").is_some()) {
        Some(error) => {
            let kind = value.get("kind").and_then(Value::as_str).unwrap_or_default();
            Err(Error::new(kind_of(kind), error.as_str().unwrap_or_default()))
        }
        None => Ok(value),
    }
}

fn kind_of(word: &str) -> ErrorKind {
    ErrorKind::ALL.into_iter().find(|k| k.word() == word).unwrap_or(ErrorKind::Io)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use serde_json::json;

    use super::*;

    #[test]
    fn requests_are_read_as_they_are_written() {
        let advance = SlotRequest::Advance { name: "f".to_owned(), lsn: "0/2000000".to_owned() };
        for (request, text) in [
            (Request::Status, r#"{"command":"status"}"#),
            (Request::Slot(SlotRequest::List {}), r#"{"command":"slot","action":"list"}"#),
            (Request::Slot(advance), r#"{"command":"slot","action":"advance","name":"f","lsn":"0/2000000"}"#),
        ] {
            assert_eq!(serde_json::to_string(&request).unwrap(), text);
            assert_eq!(serde_json::from_str::<Request>(text).unwrap(), request);
        }
        assert!(serde_json::from_str::<Request>(r#"{"command":"slot","action":"list","x":1}"#).is_err());
    }

    /// More connections wait than may: none of them keeps anybody from asking for the status.
    #[test]
    fn waits_beyond_the_limit_do_not_hold_up_the_status() {
        use rustix::process::{Resource, getrlimit, setrlimit};

        let crowd = server::SERVICES_MAX + server::QUEUE_MAX + 16 * server::CALLERS_MAX;
        let mut limit = getrlimit(Resource::Nofile);
        limit.current = limit.maximum;
        setrlimit(Resource::Nofile, limit).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let rt = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let cancel = CancellationToken::new();
        let handler: Handler = Arc::new(|request, ends| {
            Box::pin(async move {
                if request != Request::Status {
                    ends.cancelled().await;
                }
                Ok(json!({"state": "running"}))
            })
        });
        let (p, c) = (path.clone(), cancel.clone());
        let server = rt.spawn(async move { serve(&p, handler, c).await });
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        while StdStream::connect(&path).is_err() {
            assert!(std::time::Instant::now() < deadline);
            std::thread::yield_now();
        }
        let ask = |_| {
            let mut stream = StdStream::connect(&path).unwrap();
            stream.write_all(b"{\"command\":\"wait\"}\n").unwrap();
            stream
        };
        let mut waiting: Vec<_> = (0..crowd).map(ask).collect();
        // One after the other they would hold all places for longer than this.
        assert_eq!(call(&path, &Request::Status, Duration::from_secs(10)).unwrap()["state"], "running");
        // Who was turned away was told so; the first still wait.
        let mut line = String::new();
        BufReader::new(waiting.pop().unwrap()).read_line(&mut line).unwrap();
        assert!(line.contains("as many as may"), "{line}");
        waiting[0].set_nonblocking(true).unwrap();
        let silent = waiting[0].read(&mut [0]).unwrap_err();
        assert_eq!(silent.kind(), std::io::ErrorKind::WouldBlock);
        cancel.cancel();
        rt.block_on(server).unwrap().unwrap();
    }

    #[test]
    fn a_request_gets_one_line_and_garbage_gets_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let rt = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let cancel = CancellationToken::new();
        let handler: Handler = Arc::new(|r, _| {
            Box::pin(async move {
                if r == Request::Status {
                    Ok(json!({"state": "running"}))
                } else {
                    Err(Error::new(ErrorKind::Held, "no"))
                }
            })
        });
        let (p, c) = (path.clone(), cancel.clone());
        let server = rt.spawn(async move { serve(&p, handler, c).await });
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        // Its name is there a moment before it listens.
        while StdStream::connect(&path).is_err() {
            assert!(std::time::Instant::now() < deadline);
            std::thread::yield_now();
        }
        let t = Duration::from_secs(5);
        assert_eq!(call(&path, &Request::Status, t).unwrap()["state"], "running");
        assert_eq!(call(&path, &Request::Pause, t).unwrap_err().kind(), ErrorKind::Held);
        let mut raw = StdStream::connect(&path).unwrap();
        raw.write_all(b"{\"command\":\"explode\"}\n").unwrap();
        let mut line = String::new();
        BufReader::new(raw).read_line(&mut line).unwrap();
        assert!(line.contains("not understood"), "{line}");
        // Whoever removed it, or put something else there: it is bound again.
        for round in 0..2 {
            std::fs::remove_file(&path).unwrap();
            if round == 1 {
                std::fs::write(&path, "x").unwrap();
            }
            let deadline = std::time::Instant::now() + Duration::from_secs(10);
            while call(&path, &Request::Status, t).is_err() {
                assert!(std::time::Instant::now() < deadline, "round {round}");
                std::thread::sleep(Duration::from_millis(10));
            }
            assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        }
        // Not in a directory that only took the place of its own.
        let (own, aside) = (path.parent().unwrap().to_owned(), dir.path().with_extension("aside"));
        std::fs::rename(&own, &aside).unwrap();
        std::fs::create_dir(&own).unwrap();
        std::fs::write(&path, "another's").unwrap();
        std::fs::remove_file(aside.join("s")).unwrap();
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        while call(&aside.join("s"), &Request::Status, t).is_err() {
            assert!(std::time::Instant::now() < deadline);
            std::thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(std::fs::read(&path).unwrap(), b"another's");
        std::fs::remove_dir_all(&own).unwrap();
        std::fs::rename(&aside, &own).unwrap();
        // Who holds connections open without a word holds nobody up.
        let idle: Vec<_> =
            (0..10 * server::CALLERS_MAX).map(|_| StdStream::connect(&path).unwrap()).collect();
        assert_eq!(call(&path, &Request::Status, Duration::from_secs(10)).unwrap()["state"], "running");
        assert!((&idle[0]).read(&mut [0]).is_ok_and(|n| n == 0), "the one silent for longest was dropped");
        cancel.cancel();
        rt.block_on(server).unwrap().unwrap();
    }
}
