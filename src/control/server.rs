//! The daemon's side of the socket.

use std::collections::VecDeque;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::{Handler, LINE_MAX, Request};
use crate::error::{Error, ErrorKind, Result};
use crate::net::Quiet;

/// Most callers at once; a further one takes the place of the one that has been silent for longest, or waits.
pub(super) const CALLERS_MAX: usize = 32;
/// Most services at once: connections that have asked for a wait. They have places of their own, so that they keep nobody
/// from asking for the status. A further one takes the place of the one that has been silent for longest.
pub(super) const SERVICES_MAX: usize = 256;
/// Most that wait for such a place, in places of their own too. A further one is told at once that there is none.
pub(super) const QUEUE_MAX: usize = 256;
/// How long a further service waits for such a place.
const SERVICE_WAIT: Duration = Duration::from_secs(1);
/// Most requests of one connection that are not answered yet; no more are read then.
const PIPELINE: usize = 64;
/// Between looks whether the socket's file is still there. Each wakes a node that is otherwise idle.
const LOOK: Duration = Duration::from_secs(1);
/// A caller that stops within a request for this long is dropped. Between requests it may be silent for as long as nobody
/// else needs its place.
const IDLE: Duration = Duration::from_secs(2);
/// One that was silent for this long may lose its place to another.
const SAYS_NOTHING: Duration = Duration::from_millis(100);
/// Between looks whether a caller that waits for answers is still there.
const STILL_THERE: Duration = Duration::from_millis(50);

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
    let hall = Arc::new(Hall::new());
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
        let Some(place) = hall.callers.enter().await else { break };
        let (handler, cancel, hall) = (Arc::clone(&handler), cancel.child_token(), Arc::clone(&hall));
        let visit = Visit::new(number, cancel, hall, place);
        // A panic: this connection ends.
        tokio::spawn(visit.run(stream, handler));
    }
    Ok(())
}

/// Places of one kind of connection.
struct Room {
    places: Arc<Semaphore>,
    silent: Silent,
}

impl Room {
    fn new(most: usize) -> Self {
        Self { places: Arc::new(Semaphore::new(most)), silent: Silent::default() }
    }

    /// A place, if one is free.
    fn slip_in(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.places).try_acquire_owned().ok()
    }

    /// A place, perhaps that of the one that has been silent for longest.
    async fn enter(&self) -> Option<OwnedSemaphorePermit> {
        loop {
            if let Some(place) = self.slip_in() {
                return Some(place);
            }
            let pause = self.silent.drop_longest();
            match tokio::time::timeout(pause, Arc::clone(&self.places).acquire_owned()).await {
                Ok(place) => return place.ok(),
                Err(_) => continue,
            }
        }
    }
}

/// Who is connected.
struct Hall {
    callers: Room,
    services: Room,
    /// Those that are not a service yet.
    queue: Room,
}

/// Which of the rooms.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Seated {
    Caller,
    Queued,
    Service,
}

impl Hall {
    fn new() -> Self {
        Self {
            callers: Room::new(CALLERS_MAX),
            services: Room::new(SERVICES_MAX),
            queue: Room::new(QUEUE_MAX),
        }
    }

    fn room(&self, seated: Seated) -> &Room {
        match seated {
            Seated::Caller => &self.callers,
            Seated::Queued => &self.queue,
            Seated::Service => &self.services,
        }
    }
}

/// The callers whose request has not come yet, the one that waits for longest first.
#[derive(Default)]
struct Silent(Mutex<VecDeque<(u64, Instant, CancellationToken)>>);

impl Silent {
    fn lock(&self) -> MutexGuard<'_, VecDeque<(u64, Instant, CancellationToken)>> {
        lock(&self.0)
    }

    fn listens(&self, number: u64, cancel: &CancellationToken) {
        self.lock().push_back((number, Instant::now(), cancel.clone()));
    }

    fn speaks(&self, number: u64) {
        self.lock().retain(|(n, ..)| *n != number);
    }

    /// Drops the one that has been silent for longest, if that is long enough to be sure that it says nothing. How long
    /// to wait before another try.
    fn drop_longest(&self) -> Duration {
        let mut silent = self.lock();
        let Some((_, since, _)) = silent.front() else { return IDLE };
        let left = SAYS_NOTHING.saturating_sub(since.elapsed());
        if left.is_zero()
            && let Some((.., cancel)) = silent.pop_front()
        {
            cancel.cancel();
            return SAYS_NOTHING;
        }
        left
    }
}

type Pending = JoinHandle<Result<Value>>;

fn begin(answer: impl Future<Output = Result<Value>> + Send + 'static) -> Pending {
    // A panic: the answer says so.
    tokio::spawn(answer)
}

/// One connection.
struct Visit {
    number: u64,
    cancel: CancellationToken,
    hall: Arc<Hall>,
    /// Requests that are not answered yet.
    open: watch::Sender<usize>,
    place: Mutex<(OwnedSemaphorePermit, Seated)>,
    /// Ends its waits.
    waits: Mutex<CancellationToken>,
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Visit {
    fn new(number: u64, cancel: CancellationToken, hall: Arc<Hall>, place: OwnedSemaphorePermit) -> Self {
        hall.callers.silent.listens(number, &cancel);
        Self {
            number,
            hall,
            open: watch::Sender::new(0),
            place: Mutex::new((place, Seated::Caller)),
            waits: Mutex::new(cancel.child_token()),
            cancel,
        }
    }

    async fn run(self, stream: UnixStream, handler: Handler) {
        let (read, write) = stream.into_split();
        let lines = tokio::io::BufReader::new(read.take(LINE_MAX));
        let (pending, answers) = mpsc::channel(PIPELINE);
        let fd = write.as_ref().as_fd().try_clone_to_owned();
        let talk = async { tokio::try_join!(self.hear(lines, &handler, pending), self.say(write, answers)) };
        let result = tokio::select! {
            () = self.cancel.cancelled() => Ok(()),
            () = self.left(fd.ok()) => Ok(()),
            ended = talk => ended.map(drop),
        };
        if let Err(e) = result {
            tracing::debug!("control connection ended: {e}");
        }
        lock(&self.waits).cancel();
        self.room().silent.speaks(self.number);
    }

    fn room(&self) -> &Room {
        self.hall.room(lock(&self.place).1)
    }

    /// Returns when a caller that waits for answers has closed its connection. One that has only shut down its
    /// sending side is still there.
    async fn left(&self, fd: Option<OwnedFd>) {
        let Some(fd) = fd else { return std::future::pending().await };
        let mut open = self.open.subscribe();
        loop {
            if open.wait_for(|n| *n > 0).await.is_err() {
                return std::future::pending().await;
            }
            tokio::time::sleep(STILL_THERE).await;
            let mut fds = [PollFd::new(&fd, PollFlags::HUP)];
            let now = Timespec { tv_sec: 0, tv_nsec: 0 };
            let hung_up = PollFlags::HUP | PollFlags::ERR;
            if poll(&mut fds, Some(&now)).is_ok_and(|n| n > 0) && fds[0].revents().intersects(hung_up) {
                return;
            }
        }
    }

    /// Reads requests and has them answered, many at once if need be.
    async fn hear(
        &self,
        mut lines: tokio::io::BufReader<tokio::io::Take<OwnedReadHalf>>,
        handler: &Handler,
        pending: mpsc::Sender<Pending>,
    ) -> std::io::Result<()> {
        // What was there of a request at the last look.
        let (mut line, mut part) = (Vec::new(), 0);
        loop {
            lines.get_mut().set_limit(LINE_MAX);
            // What was read in part stays in `line`.
            let read = tokio::time::timeout(IDLE, lines.read_until(b'\n', &mut line)).await;
            let Ok(read) = read else {
                // Silence between requests is fine, while nobody needs the place; within one it is not.
                let before = std::mem::replace(&mut part, line.len());
                if before > 0 && before == part {
                    return Err(std::io::ErrorKind::TimedOut.into());
                }
                continue;
            };
            read?;
            if line.is_empty() {
                return Ok(());
            }
            if line.len() as u64 >= LINE_MAX && !line.ends_with(b"\n") {
                return Err(std::io::ErrorKind::InvalidData.into());
            }
            self.room().silent.speaks(self.number);
            self.open.send_modify(|n| *n += 1);
            let answer = self.answer(&line, handler).await;
            line.clear();
            part = 0;
            if pending.send(answer).await.is_err() {
                return Ok(());
            }
        }
    }

    /// Begins to answer one request.
    async fn answer(&self, line: &[u8], handler: &Handler) -> Pending {
        let told = |result| begin(std::future::ready(result));
        match serde_json::from_slice::<Request>(line) {
            Ok(Request::Cancel) => {
                let next = self.cancel.child_token();
                std::mem::replace(&mut *lock(&self.waits), next).cancel();
                told(Ok(json!({"cancelled": true})))
            }
            Ok(request @ Request::Wait(_)) => {
                let Some(()) = self.becomes_service().await else {
                    let text = format!(
                        "{SERVICES_MAX} connections wait for confirmations, as many as may; try again"
                    );
                    return told(Err(Error::new(ErrorKind::Unavailable, text)));
                };
                let token = lock(&self.waits).clone();
                begin(handler(request, token))
            }
            Ok(request) => begin(handler(request, self.cancel.clone())),
            Err(e) => told(Err(Error::new(
                ErrorKind::Usage,
                format!("request not understood: {e}; ask with the towline that runs"),
            ))),
        }
    }

    /// Leaves its place to other callers, at once: while it waits to be a service it keeps nobody from asking for the
    /// status. `None`: there is no place for a further service.
    async fn becomes_service(&self) -> Option<()> {
        let services = &self.hall.services;
        let now = lock(&self.place).1;
        let place = match now {
            Seated::Service => return Some(()),
            _ => services.slip_in(),
        };
        if let Some(place) = place {
            *lock(&self.place) = (place, Seated::Service);
            return Some(());
        }
        if now == Seated::Caller {
            let queue = &self.hall.queue;
            let Some(place) = queue.slip_in() else {
                // For the next one.
                queue.silent.drop_longest();
                return None;
            };
            *lock(&self.place) = (place, Seated::Queued);
        }
        let place = tokio::time::timeout(SERVICE_WAIT, services.enter()).await.ok().flatten()?;
        *lock(&self.place) = (place, Seated::Service);
        Some(())
    }

    /// Writes answers in the order of the requests.
    async fn say(
        &self,
        mut write: OwnedWriteHalf,
        mut answers: mpsc::Receiver<Pending>,
    ) -> std::io::Result<()> {
        while let Some(answer) = answers.recv().await {
            let failed =
                |e: tokio::task::JoinError| Error::new(ErrorKind::Io, format!("a worker failed: {e}"));
            let answer = answer.await.map_err(failed).flatten();
            let value = answer.unwrap_or_else(|e| json!({"error": e.to_string(), "kind": e.kind().word()}));
            let mut text = value.to_string();
            text.push('\n');
            write.write_all(text.as_bytes()).await?;
            self.open.send_modify(|n| *n -= 1);
            if *self.open.borrow() == 0 {
                self.room().silent.listens(self.number, &self.cancel);
            }
        }
        Ok(())
    }
}
