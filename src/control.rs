//! The control socket: a Unix socket in the state directory (mode 0600) that answers
//! newline-delimited JSON. One request is one object with a `command`; one line comes back,
//! an object with either the answer's fields or `error` and `kind`.

use std::collections::VecDeque;
use std::fs::File;
use std::future::Future;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream as StdStream;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::error::{Error, ErrorKind, Result};
use crate::net::Quiet;

/// Most bytes of one request or answer.
const LINE_MAX: u64 = 4 << 20;
/// Most callers at once; a further one takes the place of the one that has been silent for longest, or waits.
const CALLERS_MAX: usize = 32;
/// Between looks whether the socket's file is still there. Each wakes a node that is otherwise idle.
const LOOK: Duration = Duration::from_secs(1);
/// A caller that says nothing for this long is dropped.
const IDLE: Duration = Duration::from_secs(2);

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
    /// Let a held mass delete through.
    Confirm,
    /// Commit everything the directory holds now and say the LSN.
    Barrier,
    /// Look at the slots, or change them by hand.
    Slot(SlotRequest),
    /// Stop after flushing.
    Stop,
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
/// What answers requests.
pub type Handler = Arc<dyn Fn(Request) -> Answer + Send + Sync>;

/// The socket in the state directory. The directory is held open: whatever is moved into its place, and whoever
/// works there, is left alone.
struct Socket {
    dir: File,
    name: PathBuf,
    path: PathBuf,
    listener: UnixListener,
    /// Device and inode of its file.
    identity: (u64, u64),
}

impl Socket {
    /// Binds the socket. A file left there is replaced: the lock of the directory is held, so no process lives
    /// that it could belong to.
    fn bind(path: &Path) -> Result<Self> {
        let (parent, name) = path
            .parent()
            .zip(path.file_name())
            .ok_or_else(|| Error::new(ErrorKind::Usage, format!("'{}' can't be a socket", path.display())))?;
        let dir = File::open(parent).map_err(|e| Error::io("open", parent, e))?;
        let (listener, identity) = listen(path, path)?;
        Ok(Self { dir, name: name.into(), path: path.to_owned(), listener, identity })
    }

    /// Binds it again if its file is not there any more, or is another one.
    fn keep(&mut self) -> Result<()> {
        let at = PathBuf::from(format!("/proc/self/fd/{}", self.dir.as_raw_fd())).join(&self.name);
        if identity(&at).is_ok_and(|now| now == self.identity) {
            return Ok(());
        }
        let held = self.dir.metadata().map_err(|e| Error::io("stat the directory of", &self.path, e))?;
        if held.nlink() == 0 {
            // The directory itself was removed; the node says so elsewhere.
            return Ok(());
        }
        (self.listener, self.identity) = listen(&at, &self.path)?;
        tracing::warn!("control socket '{}' was removed; it is there again", self.path.display());
        Ok(())
    }
}

/// Device and inode of what is at `path`.
fn identity(path: &Path) -> std::io::Result<(u64, u64)> {
    std::fs::symlink_metadata(path).map(|m| (m.dev(), m.ino()))
}

/// Listens `at` a path; errors name it as `shown`.
fn listen(at: &Path, shown: &Path) -> Result<(UnixListener, (u64, u64))> {
    match std::fs::remove_file(at) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            return Err(Error::io("remove old socket", shown, e));
        }
        _ => {}
    }
    let listener = UnixListener::bind(at).map_err(|e| Error::io("listen on", shown, e))?;
    std::fs::set_permissions(at, std::fs::Permissions::from_mode(0o600))
        .map_err(|e| Error::io("restrict", shown, e))?;
    let identity = identity(at).map_err(|e| Error::io("stat", shown, e))?;
    Ok((listener, identity))
}

/// Serves the socket at `path` until cancelled. A socket file left by a dead process is replaced; the
/// lock of the state directory has already shown that no other process lives. One that is removed is bound again.
pub async fn serve(path: &Path, handler: Handler, cancel: CancellationToken) -> Result<()> {
    let mut socket = Socket::bind(path)?;
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let quiet = Quiet::new(Duration::from_secs(60));
    let places = Arc::new(Semaphore::new(CALLERS_MAX));
    let silent = Arc::new(Silent::default());
    for number in 0.. {
        let stream = tokio::select! {
            () = cancel.cancelled() => break,
            _ = look.tick() => {
                if let Err(e) = socket.keep()
                    && let Some(n) = quiet.line()
                {
                    tracing::warn!("the control socket is not there and can't be bound again: {e}{n}");
                }
                continue;
            }
            accepted = socket.listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(e) => {
                    tracing::warn!("cannot accept on the control socket: {e}");
                    tokio::time::sleep(Duration::from_millis(200)).await;
                    continue;
                }
            },
        };
        if places.available_permits() == 0 {
            silent.drop_longest();
        }
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { break };
        let (handler, cancel, silent) = (Arc::clone(&handler), cancel.child_token(), Arc::clone(&silent));
        silent.listens(number, &cancel);
        tokio::spawn(async move {
            let _place = place;
            tokio::select! {
                () = cancel.cancelled() => {}
                result = converse(stream, handler, &silent, number, &cancel) => if let Err(e) = result {
                    tracing::debug!("control connection ended: {e}");
                }
            }
            silent.speaks(number);
        });
    }
    Ok(())
}

/// The callers whose request has not come yet, the one that waits for longest first.
#[derive(Default)]
struct Silent(Mutex<VecDeque<(u64, CancellationToken)>>);

impl Silent {
    fn lock(&self) -> MutexGuard<'_, VecDeque<(u64, CancellationToken)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn listens(&self, number: u64, cancel: &CancellationToken) {
        self.lock().push_back((number, cancel.clone()));
    }

    fn speaks(&self, number: u64) {
        self.lock().retain(|(n, _)| *n != number);
    }

    fn drop_longest(&self) {
        if let Some((_, cancel)) = self.lock().pop_front() {
            cancel.cancel();
        }
    }
}

async fn converse(
    stream: UnixStream,
    handler: Handler,
    silent: &Silent,
    number: u64,
    cancel: &CancellationToken,
) -> std::io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut lines = tokio::io::BufReader::new(read.take(LINE_MAX));
    loop {
        let mut line = String::new();
        lines.get_mut().set_limit(LINE_MAX);
        let n = tokio::time::timeout(IDLE, lines.read_line(&mut line)).await??;
        silent.speaks(number);
        if n == 0 {
            return Ok(());
        }
        let answer = match serde_json::from_str::<Request>(&line) {
            Ok(request) => handler(request).await,
            Err(e) => Err(Error::new(
                ErrorKind::Usage,
                format!("request not understood: {e}; ask with the towline that runs"),
            )),
        };
        let value = answer.unwrap_or_else(|e| json!({"error": e.to_string(), "kind": e.kind().word()}));
        let mut text = value.to_string();
        text.push('\n');
        write.write_all(text.as_bytes()).await?;
        silent.listens(number, cancel);
    }
}

/// Asks the node whose socket is at `path`; blocks for at most `timeout`.
///
/// # Errors
/// [`ErrorKind::Unavailable`] when no daemon answers there; else what the daemon said.
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
    let mut stream = StdStream::connect(path).map_err(|e| down("no daemon answers", e))?;
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
    let value: Value = serde_json::from_str(&line)
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
    use ErrorKind as K;
    let all = [
        K::Usage,
        K::Config,
        K::Io,
        K::DiskFull,
        K::Corrupt,
        K::Missing,
        K::Diverged,
        K::Unavailable,
        K::Refused,
        K::Locked,
        K::Held,
        K::Cancelled,
    ];
    all.into_iter().find(|k| k.word() == word).unwrap_or(K::Io)
}

#[cfg(test)]
mod tests {
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

    #[test]
    fn a_request_gets_one_line_and_garbage_gets_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let rt = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let cancel = CancellationToken::new();
        let handler: Handler = Arc::new(|r| {
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
        while !path.exists() {
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
        let idle: Vec<_> = (0..10 * CALLERS_MAX).map(|_| StdStream::connect(&path).unwrap()).collect();
        assert_eq!(call(&path, &Request::Status, Duration::from_secs(10)).unwrap()["state"], "running");
        assert!((&idle[0]).read(&mut [0]).is_ok_and(|n| n == 0), "the one silent for longest was dropped");
        cancel.cancel();
        rt.block_on(server).unwrap().unwrap();
    }
}
