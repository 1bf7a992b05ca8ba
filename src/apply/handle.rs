//! What the rest of the program holds of apply.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::{Notify, watch};

use crate::catalog::Catalog;
use crate::error::{Error, ErrorKind, Result};
use crate::log::Log;
use crate::position::{FileId, Lsn};
use crate::sys::pulse::Pulse;
use crate::sys::{Root, vital};
use crate::{checkpoint, fold};

use super::engine::Engine;
use super::scrub::Desk;
use super::until::Until;
use super::{Applied, ApplyOptions, ApplyPaths, ApplyState, ApplyStats};

/// What was asked of the engine, and where it is.
#[derive(Debug, Default)]
pub(super) struct Control {
    pub(super) pause: bool,
    pub(super) stop: bool,
    /// How much of the log may be applied.
    pub(super) until: Until,
    /// The directory stands on a cut and will until the next wake-up.
    pub(super) resting: bool,
    /// Times it came to rest.
    pub(super) rests: u64,
    pub(super) ended: bool,
    pub(super) failure: Option<Error>,
    /// Files whose content the scrub found to be another than was applied.
    pub(super) damaged: Vec<FileId>,
    /// It failed because of what the directory holds, or what is known of it, through no edit that must stay: files that
    /// are known to be damaged.
    pub(super) damage: Option<Vec<FileId>>,
}

/// Shared by the engine's thread and the handles.
pub(super) struct Shared {
    pub(super) control: Mutex<Control>,
    pub(super) changed: Condvar,
    pub(super) wake: Notify,
    pub(super) applied: watch::Sender<Applied>,
    pub(super) ended: watch::Sender<bool>,
    /// The target was reached.
    pub(super) reached: watch::Sender<bool>,
    pub(super) stats: Arc<Mutex<ApplyStats>>,
    pub(super) catalog: Arc<RwLock<Catalog>>,
    pub(super) root: Arc<Root>,
    /// Held for writing from the fold of a batch until the directory has followed.
    pub(super) gate: RwLock<()>,
    pub(super) pulse: Pulse,
    /// What the scrub is told.
    pub(super) scrub: Arc<Desk>,
}

impl Shared {
    pub(super) fn lock(&self) -> MutexGuard<'_, Control> {
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn stats(&self) -> MutexGuard<'_, ApplyStats> {
        self.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn catalog(&self) -> RwLockReadGuard<'_, Catalog> {
        self.catalog.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// While this is held, no batch changes the catalog or the directory.
    pub(super) fn gate(&self) -> RwLockReadGuard<'_, ()> {
        self.gate.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// What `e` is about is repaired by a comparison with the leader.
    pub(super) fn damaged(&self, e: &Error, file: Option<FileId>) {
        if e.kind() == ErrorKind::Diverged {
            self.lock().damage.get_or_insert_default().extend(file);
        }
    }

    /// The directory stands on a cut; says whether it shall go on.
    pub(super) fn rest(&self) {
        let mut control = self.lock();
        control.resting = true;
        control.rests += 1;
        drop(control);
        self.changed.notify_all();
    }
}

/// The engine that applies the log to a directory.
pub struct Apply;

/// A running engine. Clones share it.
#[derive(Clone)]
pub struct ApplyHandle {
    shared: Arc<Shared>,
    thread: Arc<Mutex<Option<JoinHandle<()>>>>,
}

impl std::fmt::Debug for ApplyHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ApplyHandle").field("applied", &*self.shared.applied.borrow()).finish_non_exhaustive()
    }
}

impl Apply {
    /// Loads the newest checkpoint and starts the thread: it recovers the directory, then follows the log.
    ///
    /// `filled` are start and end of a first copy that is complete but not yet replayed: the
    /// directory is not usable before its end.
    ///
    /// # Errors
    /// [`ErrorKind::Missing`] when there is no checkpoint to start from: the node must be filled.
    pub fn start(
        root: Arc<Root>,
        paths: ApplyPaths,
        log: Log,
        filled: Option<(Lsn, Lsn)>,
        options: ApplyOptions,
    ) -> Result<ApplyHandle> {
        let Some(catalog) = checkpoint::load_newest(&paths.catalog, paths.system)? else {
            return Err(Error::new(
                ErrorKind::Missing,
                format!(
                    "there is no checkpoint in '{}': put it back, or empty the data and state directories, and the \
                     follower is filled anew",
                    paths.catalog.display()
                ),
            ));
        };
        let checkpoint = catalog.lsn();
        let (applied, cut, time) = (catalog.lsn(), catalog.cut(), catalog.time());
        let fold = fold::Fold::new(catalog, &paths.blocks)?;
        fold.blocks.set_logged(true);
        let stats = ApplyStats {
            paused: options.paused,
            delay: options.delay.as_secs_f64(),
            stop_at: options.stop_at.map(|s| s.to_string()),
            checkpoint: checkpoint.to_string(),
            checkpoint_lsn: checkpoint,
            ..ApplyStats::default()
        };
        let until = Until { delay: options.delay, stop: options.stop_at };
        let shared = Arc::new(Shared {
            control: Mutex::new(Control { pause: options.paused, until, ..Control::default() }),
            changed: Condvar::new(),
            wake: Notify::new(),
            applied: watch::Sender::new(Applied {
                lsn: applied,
                cut,
                commit_time: time,
                commits: 0,
                consistent: false,
                moves: false,
                halted: false,
                delay: options.delay,
            }),
            ended: watch::Sender::new(false),
            reached: watch::Sender::new(false),
            stats: Arc::new(Mutex::new(stats)),
            catalog: Arc::clone(&fold.catalog),
            root: Arc::clone(&root),
            gate: RwLock::new(()),
            scrub: Arc::default(),
            pulse: Pulse::default(),
        });
        shared.scrub.pace(options.scrub_rate, options.scrub_interval);
        let engine = Engine::new(root, paths, log, fold, filled, options, Arc::clone(&shared));
        let thread = std::thread::Builder::new()
            .name("apply".to_owned())
            .spawn(vital::thread("apply", move || engine.run()))
            .map_err(|e| Error::from(e).wrap("cannot start the thread that applies the log"))?;
        Ok(ApplyHandle { shared, thread: Arc::new(Mutex::new(Some(thread))) })
    }
}

impl ApplyHandle {
    /// Follows where the directory stands.
    #[must_use]
    pub fn applied(&self) -> watch::Receiver<Applied> {
        self.shared.applied.subscribe()
    }

    /// Becomes true when the engine has ended, stopped or failed.
    #[must_use]
    pub fn ended(&self) -> watch::Receiver<bool> {
        self.shared.ended.subscribe()
    }

    /// Asks for a rest and blocks until the directory stands on a cut; says which. It stays there.
    ///
    /// # Errors
    /// The failure of the engine, when there was one.
    pub fn pause(&self) -> Result<Applied> {
        self.shared.lock().pause = true;
        self.shared.applied.send_modify(|applied| applied.moves = false);
        self.set_paused(true);
        self.shared.wake.notify_one();
        self.wait(|c| c.resting)?;
        Ok(*self.shared.applied.borrow())
    }

    /// Becomes true when the directory rests on the target at which it was to stop.
    #[must_use]
    pub fn reached(&self) -> watch::Receiver<bool> {
        self.shared.reached.subscribe()
    }

    /// From now on change sets become visible so long after their commits.
    pub fn set_delay(&self, delay: Duration) {
        self.shared.lock().until.delay = delay;
        self.shared.stats.lock().unwrap_or_else(PoisonError::into_inner).delay = delay.as_secs_f64();
        self.shared.applied.send_modify(|applied| applied.delay = delay);
        self.shared.wake.notify_one();
    }

    /// From now on contents are compared at this pace: see [`ApplyOptions`].
    pub fn set_scrub(&self, rate: u64, interval: Duration) {
        self.shared.scrub.pace(rate, interval);
    }

    /// Goes on after a pause, and past a target that was reached.
    pub fn resume(&self) {
        let mut control = self.shared.lock();
        control.pause = false;
        if *self.shared.reached.borrow() {
            control.until.stop = None;
            let mut stats = self.shared.stats.lock().unwrap_or_else(PoisonError::into_inner);
            (stats.stop_at, stats.stopped) = (None, None);
        }
        drop(control);
        self.shared
            .applied
            .send_modify(|applied| applied.moves = applied.consistent && self.failure().is_none());
        self.set_paused(false);
        self.shared.wake.notify_one();
    }

    fn set_paused(&self, paused: bool) {
        self.shared.stats.lock().unwrap_or_else(PoisonError::into_inner).paused = paused;
    }

    /// Whether a pause was asked for.
    #[must_use]
    pub fn paused(&self) -> bool {
        self.shared.lock().pause
    }

    /// Blocks until everything that is in the directory at the call is covered by the position returned.
    pub fn barrier(&self) -> Result<Lsn> {
        let before = self.shared.lock().rests;
        self.wait(|c| c.resting || c.rests > before)?;
        Ok(self.shared.applied.borrow().lsn)
    }

    fn wait(&self, done: impl Fn(&Control) -> bool) -> Result<()> {
        let mut control = self.shared.lock();
        loop {
            if let Some(failure) = &control.failure {
                return Err(failure.clone());
            }
            if done(&control) || control.ended {
                return Ok(());
            }
            control = self.shared.changed.wait(control).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The catalog. While a batch is applied it is ahead of the directory: see [`at_rest`](Self::at_rest).
    #[must_use]
    pub fn catalog(&self) -> Arc<RwLock<Catalog>> {
        Arc::clone(&self.shared.catalog)
    }

    /// Looks at the catalog while directory and catalog agree, which is after recovery at the earliest;
    /// the next batch waits meanwhile.
    pub fn at_rest<T>(&self, look: impl FnOnce(&Catalog) -> T) -> T {
        // Of an engine that failed before, only its end is to come, and nobody builds on what is seen here.
        let _ = self.wait(|c| c.rests > 0);
        let _gate = self.shared.gate.read().unwrap_or_else(PoisonError::into_inner);
        let catalog = self.shared.catalog.read().unwrap_or_else(PoisonError::into_inner);
        look(&catalog)
    }

    /// The data directory.
    #[must_use]
    pub fn root(&self) -> Arc<Root> {
        Arc::clone(&self.shared.root)
    }

    /// Numbers and states.
    #[must_use]
    pub fn stats(&self) -> ApplyStats {
        self.shared.stats.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Why the engine stopped, when it failed.
    #[must_use]
    pub fn failure(&self) -> Option<Error> {
        self.shared.lock().failure.clone()
    }

    /// Signs of life of the engine so far; `None` once it has ended or was told to stop. Wakes it, so that one that
    /// has nothing to do gives another.
    #[must_use]
    pub fn probe(&self) -> Option<u64> {
        let control = self.shared.lock();
        if control.stop || control.ended || control.failure.is_some() {
            return None;
        }
        drop(control);
        self.shared.wake.notify_one();
        Some(self.shared.pulse.beats())
    }

    /// The files found damaged when the failure is one that a comparison with the leader repairs.
    #[must_use]
    pub fn damage(&self) -> Option<Vec<FileId>> {
        self.shared.lock().damage.clone()
    }

    /// Stops on a cut, with a checkpoint that makes the next start a comparison only.
    ///
    /// # Errors
    /// The failure of the engine, or of the checkpoint.
    pub fn stop(&self) -> Result<Applied> {
        self.end();
        match self.failure() {
            Some(e) => Err(e),
            None => Ok(*self.shared.applied.borrow()),
        }
    }

    fn end(&self) {
        self.shared.lock().stop = true;
        self.shared.wake.notify_one();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            let mut control = self.shared.lock();
            control.failure.get_or_insert_with(|| {
                Error::new(ErrorKind::Io, "the thread that applies the log has panicked")
            });
            control.ended = true;
            drop(control);
            self.shared.stats.lock().unwrap_or_else(PoisonError::into_inner).state = ApplyState::Failed;
            self.shared.ended.send_replace(true);
            self.shared.changed.notify_all();
        }
    }
}
