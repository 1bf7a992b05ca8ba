//! Capture: a data directory's changes become change sets in the log. It does not know that followers
//! exist.
//!
//! Events are hints where to look; the directory itself is the truth; what no event shows is polled and scanned.
//!
//! | file | what it owns |
//! | --- | --- |
//! | `hints` | the bounded set of paths that events, polls and scans name |
//! | `watch` | watches, and the mark that makes "everything up to now" a fact |
//! | `engine` | the loop: hints, requests, scans, guards, timers |
//! | `callers` | those who wait for a pass, and which one covers them |
//! | `upkeep` | the scan at start, checkpoints, what `status` shows |
//! | `pass` | rounds of looking, and whether a cut is exact |
//! | `examine` | what a name is now, against what is known of it |
//! | `content` | reading files, comparing block hashes |
//! | `clones` | clones of files, read when the application runs on, so that a freeze is short |
//! | `stage` | what a pass has found, laid over the catalog |
//! | `journal` | records on their way into the log, and the work of folding them at the commit |
//! | `commit` | differences to records, the mass-delete guard, the commit |
//! | `scan` | the first scan, rescans |
//! | `hot` | files whose changes cause no event |
//! | `holders` | who has files open for writing or mapped: a look through /proc |
//! | `roster` | the processes of this machine, listed cheaply again and again |
//! | `background` | reading what the first scan did not read; the scrub |
//! | `guard` | file systems, the identity of the root, excludes |

mod background;
mod callers;
mod clones;
mod commit;
mod content;
mod engine;
mod examine;
mod guard;
mod hints;
mod holders;
mod hot;
mod journal;
mod pass;
mod points;
mod resting;
mod roster;
mod scan;
mod stage;
#[cfg(test)]
mod tests;
mod upkeep;
mod watch;

use std::collections::VecDeque;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::Serialize;
use tokio::sync::oneshot;

use crate::blocks::Blocks;
use crate::catalog::{Catalog, Seen};
use crate::error::{Error, ErrorKind, Result};
use crate::fold::Fold;
use crate::log::Log;
use crate::position::{FileId, Lsn};
use crate::quiesce::Freezer;
use crate::record::{PointName, Time};
use crate::sys::pulse::Pulse;
use crate::sys::{Root, Stat, vital};
use hints::Hints;

/// How much longer than was asked for a restore point may take to be answered.
const POINT_GRACE: Duration = Duration::from_secs(30);
/// Most requests waiting for the engine.
const REQUESTS_MAX: usize = 1024;

/// What capture can be told.
#[derive(Clone, Debug)]
pub struct CaptureOptions {
    /// Between full stat scans.
    pub rescan_interval: Duration,
    /// How long a pass tries for an exact cut.
    pub max_cut_delay: Duration,
    /// A pass that deletes more than this share, in percent, is held.
    pub max_delete_percent: u8,
    /// The guard applies from this many entries.
    pub max_delete_min: u64,
    /// Glob patterns of relative paths that are not replicated.
    pub excludes: Vec<String>,
    /// Between polls of hot files.
    pub hot_interval: Duration,
    /// See [`crate::quiesce`].
    pub freeze: String,
    /// Who freezes; `None`: nobody else has to know.
    pub freezer: Option<Arc<Freezer>>,
    /// Longest freeze.
    pub max_freeze: Duration,
    /// Command before a cut that needs quiet.
    pub before_cut: Option<String>,
    /// Command after it.
    pub after_cut: Option<String>,
    /// Bytes a second of background hashing.
    pub scrub_rate: u64,
    /// Log between checkpoints.
    pub checkpoint_bytes: u64,
    /// Time between checkpoints.
    pub checkpoint_interval: Duration,
}

/// What capture did and sees; part of `towline status`.
#[derive(Clone, Debug, Default, Serialize)]
#[allow(missing_docs, reason = "the names say it; the README lists them")]
pub struct CaptureStats {
    pub cuts_exact: u64,
    pub cuts_file: u64,
    pub last_exact: String,
    pub last_exact_time: i64,
    pub gaps: u64,
    pub gap_open: bool,
    pub found_by_scan: u64,
    pub unstable: u64,
    pub events: u64,
    pub overflows: u64,
    pub watches: u64,
    pub unwatched: u64,
    pub hot_files: u64,
    pub hot_dropped: u64,
    pub hidden_processes: u64,
    pub unhashed_files: u64,
    pub other_file_systems: u64,
    pub files: u64,
    pub freezes: u64,
    pub freeze_failures: u64,
    /// How long the last freeze, and the longest since the start, lasted, in milliseconds, rounded up.
    pub freeze_last_ms: u64,
    pub freeze_longest_ms: u64,
    /// Files that were cloned during freezes, to be read after them.
    pub freeze_clones: u64,
    /// Bytes of content that were read during freezes.
    pub freeze_read_bytes: u64,
    pub unreadable: Option<String>,
    pub refused: Option<String>,
    pub hold: Option<String>,
    pub hold_since: i64,
    /// What is held is a mass delete, which `towline confirm` lets through.
    pub hold_deletes: bool,
}

/// Takes the answer to a barrier.
type Reply = Box<dyn FnOnce(Result<Lsn>) + Send>;

/// What is asked of the engine.
enum Request {
    Barrier(Reply),
    Point(points::Asked),
    Mismatch(FileId, Vec<u64>),
    Learned(FileId, Seen, Vec<u128>),
    Reload(Box<CaptureOptions>),
}

struct Shared {
    catalog: Arc<RwLock<Catalog>>,
    fold: Mutex<Fold>,
    blocks: Blocks,
    root: Arc<Root>,
    log: Log,
    hints: Arc<Hints>,
    requests: Mutex<VecDeque<Request>>,
    stats: Mutex<CaptureStats>,
    failure: Mutex<Option<Error>>,
    /// Why a guard holds, if one does.
    hold: Mutex<Option<String>>,
    confirmed: AtomicBool,
    stop: Arc<AtomicBool>,
    thread: Mutex<Option<std::thread::JoinHandle<()>>>,
    pulse: Pulse,
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic elsewhere does not make plain values wrong; the engine's own failure is reported by it.
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Nanoseconds since 1970.
fn wall_clock() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_nanos()).unwrap_or(i64::MAX)
}

/// The clock as file systems write it.
fn now() -> Time {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Time { sec: i64::try_from(now.as_secs()).unwrap_or(i64::MAX), nsec: now.subsec_nanos() }
}

/// Whether an inode changed so lately that with coarse timestamps another change could hide behind the same ones.
fn young(stat: &Stat) -> bool {
    stat.ctime.max(stat.attrs.mtime) >= watch::earlier(now(), watch::TICKS)
}

/// Starts capture.
#[derive(Debug)]
pub struct Capture;

/// A running capture.
#[derive(Clone)]
pub struct CaptureHandle {
    shared: Arc<Shared>,
}

impl Capture {
    /// Scans the directory, then follows it on threads of its own. Returns after the metadata scan: a first scan
    /// makes the base of the system, what a later one finds becomes a change set.
    ///
    /// # Errors
    /// When the directory is not the one replicated so far, can't be watched or scanned, or the log refuses.
    pub fn start(
        root: Arc<Root>,
        fold: Fold,
        log: Log,
        state: &Path,
        options: CaptureOptions,
    ) -> Result<CaptureHandle> {
        let hints = Arc::new(Hints::new(root.path()));
        let shared = Arc::new(Shared {
            catalog: Arc::clone(&fold.catalog),
            blocks: fold.blocks.clone(),
            fold: Mutex::new(fold),
            root,
            log,
            hints,
            requests: Mutex::new(VecDeque::new()),
            stats: Mutex::new(CaptureStats::default()),
            failure: Mutex::new(None),
            hold: Mutex::new(None),
            confirmed: AtomicBool::new(false),
            stop: Arc::default(),
            thread: Mutex::new(None),
            pulse: Pulse::default(),
        });
        let mut engine = engine::Engine::start(Arc::clone(&shared), state, options)?;
        let running = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("capture".to_owned())
            .spawn(vital::thread("capture", move || {
                running.pulse.adopt();
                if let Err(e) = engine.run() {
                    *lock(&running.failure) = Some(e);
                }
            }))
            .map_err(|e| Error::from(e).wrap("cannot start the thread of capture"))?;
        *lock(&shared.thread) = Some(thread);
        Ok(CaptureHandle { shared })
    }
}

impl CaptureHandle {
    fn ask(&self, request: Request) -> Result<()> {
        // What can wait, or be done without, leaves room for what cannot.
        let room = match request {
            Request::Learned(..) => REQUESTS_MAX / 4,
            Request::Mismatch(..) => REQUESTS_MAX / 2,
            Request::Barrier(_) | Request::Point(_) | Request::Reload(_) => REQUESTS_MAX,
        };
        let mut requests = lock(&self.shared.requests);
        if requests.len() >= room {
            return Err(Error::new(
                ErrorKind::Unavailable,
                "capture has too many requests waiting; try again",
            ));
        }
        requests.push_back(request);
        drop(requests);
        self.shared.hints.wake();
        Ok(())
    }

    /// Commits everything the directory holds at the call, durably; the LSN of the commit that covers it.
    ///
    /// # Errors
    /// [`ErrorKind::Held`] while a guard holds, [`ErrorKind::Unavailable`] when `timeout` passes.
    pub fn barrier(&self, timeout: Duration) -> Result<Lsn> {
        let stopped = || {
            self.failure().unwrap_or_else(|| {
                let text = "no capture pass ended in time; look at the capture part of status";
                Error::new(ErrorKind::Unavailable, text)
            })
        };
        if self.shared.stop.load(Ordering::SeqCst) {
            return Err(stopped());
        }
        let (tx, rx) = sync_channel(1);
        self.ask(Request::Barrier(Box::new(move |lsn| {
            // Who asked may have given up.
            let _ = tx.try_send(lsn);
        })))?;
        let lsn = rx.recv_timeout(timeout).map_err(|_| stopped())??;
        if self.shared.log.wait_durable(lsn, timeout)? {
            return Ok(lsn);
        }
        Err(Error::new(ErrorKind::Unavailable, "the log was not fsynced in time"))
    }

    /// Names an exact cut that covers everything the directory holds at the call; the LSN of its commit, which is durable.
    /// The error comes with whether it is certain that there is no such point.
    pub fn restore_point(
        &self,
        name: PointName,
        timeout: Duration,
    ) -> std::result::Result<Lsn, (Error, bool)> {
        let (tx, rx) = sync_channel(1);
        let deadline = Instant::now() + timeout;
        let reply: Reply = Box::new(move |lsn| {
            // Who asked may have given up.
            let _ = tx.try_send(lsn);
        });
        let unknown = |text: &str| {
            let e = self.failure().unwrap_or_else(|| Error::new(ErrorKind::Unavailable, text));
            (e.wrap(&format!("whether restore point '{name}' was made is not known")), false)
        };
        if self.shared.stop.load(Ordering::SeqCst) {
            return Err((Error::new(ErrorKind::Unavailable, "capture has stopped; see status"), true));
        }
        self.ask(Request::Point(points::Asked { name, deadline, reply })).map_err(|e| (e, true))?;
        // The engine is the one to say that time is over; it may be in the middle of a pass then.
        let lsn = match rx.recv_timeout(timeout + POINT_GRACE) {
            Ok(answer) => answer.map_err(|e| (e, true))?,
            Err(_) => {
                return Err(unknown("no capture pass ended in time; look at the capture part of status"));
            }
        };
        match self.shared.log.wait_durable(lsn, POINT_GRACE) {
            Ok(true) => Ok(lsn),
            Ok(false) => Err(unknown("the log was not fsynced in time")),
            Err(e) => Err((e, false)),
        }
    }

    /// The LSN of a commit that covers everything the directory holds at the call; it may not be durable yet. Those who
    /// ask during a pass share it while its mark is yet to be made, or the next one.
    ///
    /// # Errors
    /// [`ErrorKind::Held`] while a guard holds, [`ErrorKind::Unavailable`] when capture ends.
    pub async fn cover(&self) -> Result<Lsn> {
        let ended = || {
            let text = "capture has stopped; see status";
            self.failure().unwrap_or_else(|| Error::new(ErrorKind::Unavailable, text))
        };
        if self.shared.stop.load(Ordering::SeqCst) {
            return Err(ended());
        }
        let (tx, rx) = oneshot::channel();
        self.ask(Request::Barrier(Box::new(move |lsn| {
            let _ = tx.send(lsn);
        })))?;
        rx.await.unwrap_or_else(|_| Err(ended()))
    }

    /// These blocks go into the log with the next pass, changed or not. Blocks while the engine has too much to do.
    pub fn force(&self, id: FileId, blocks: Vec<u64>) {
        while self.ask(Request::Mismatch(id, blocks.clone())).is_err() {
            if self.failure().is_some() || self.shared.stop.load(Ordering::SeqCst) {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// A file that was not hashed was read while it had these stamps.
    pub fn learned(&self, id: FileId, seen: Seen, hashes: Vec<u128>) {
        // If it can't be noted, the background reads the file again.
        let _ = self.ask(Request::Learned(id, seen, hashes));
    }

    /// The tree as of the last commit.
    #[must_use]
    pub fn catalog(&self) -> Arc<RwLock<Catalog>> {
        Arc::clone(&self.shared.catalog)
    }

    /// The block hashes; while a commit is under way they may be ahead of the catalog.
    #[must_use]
    pub fn blocks(&self) -> Blocks {
        self.shared.blocks.clone()
    }

    /// The data directory.
    #[must_use]
    pub fn root(&self) -> Arc<Root> {
        Arc::clone(&self.shared.root)
    }

    /// Runs `f` while no commit is under way: catalog and block hashes are those of its LSN.
    pub fn settled<T>(&self, f: impl FnOnce(&Fold) -> T) -> T {
        f(&lock(&self.shared.fold))
    }

    /// Lets a held mass delete through.
    pub fn confirm(&self) {
        self.shared.confirmed.store(true, Ordering::SeqCst);
        self.shared.hints.wake();
    }

    /// What it did and sees.
    #[must_use]
    pub fn stats(&self) -> CaptureStats {
        let mut stats = lock(&self.shared.stats).clone();
        let catalog = self.shared.catalog.read().unwrap_or_else(PoisonError::into_inner);
        stats.files = catalog.len() as u64;
        stats.unhashed_files = catalog.unhashed();
        stats
    }

    /// Takes new options into force.
    pub fn reload(&self, options: CaptureOptions) {
        if let Err(e) = self.ask(Request::Reload(Box::new(options))) {
            tracing::warn!("options are not taken over: {e}");
        }
    }

    /// Why it stopped, if it did.
    #[must_use]
    pub fn failure(&self) -> Option<Error> {
        lock(&self.shared.failure).clone()
    }

    /// Signs of life of the engine so far; `None` once it has failed or was told to stop. Wakes it, so that one that
    /// has nothing to do gives another.
    #[must_use]
    pub fn probe(&self) -> Option<u64> {
        if self.shared.stop.load(Ordering::SeqCst) || self.failure().is_some() {
            return None;
        }
        self.shared.hints.wake();
        Some(self.shared.pulse.beats())
    }

    /// Makes a last pass and a checkpoint, and stops.
    pub fn stop(&self) -> Result<()> {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.hints.wake();
        {
            // Whoever comes second waits, too.
            let mut thread = lock(&self.shared.thread);
            if let Some(thread) = thread.take() {
                let _ = thread.join();
            }
        }
        self.failure().map_or(Ok(()), Err)
    }
}
