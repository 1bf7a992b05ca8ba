//! The thread: recover, then batch after batch, resting on cuts.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::error::{Error, ErrorKind, Result};
use crate::failpoint;
use crate::fold::Fold;
use crate::log::{Frame, Log, Tail};
use crate::net::Ancestry;
use crate::position::{Cut, Lsn};
use crate::record::{Record, Records};
use crate::sys::{Root, pulse};

use super::checkpoints::Checkpoints;
use super::content::Contents;
use super::doubts::Doubts;
use super::guard::Guard;
use super::handle::Shared;
use super::intake::{Batch, Frames, Intake, KEEP_BYTES, Source};
use super::notes::Notes;
use super::patience::{Inexact, Patience, Verdict};
use super::patrol::Patrol;
use super::reach::Reach;
use super::recover::reconcile;
use super::refusal::Refusal;
use super::scan::Found;
use super::scrub::Scrub;
use super::site::Site;
use super::until::{Commit, Until};
use super::work::Work;
use super::{Applied, ApplyOptions, ApplyPaths, ApplyState, LocalEdits};

/// How much of what a delay releases next is noted at once, in nanoseconds: 1 s.
const NOTED_AHEAD: i64 = 1_000_000_000;
/// Shortest and longest wait for the end of a delay before the leader's clock is looked at again.
const DELAY_LEAST: Duration = Duration::from_millis(1);
const DELAY_MOST: Duration = Duration::from_secs(10);

/// The engine of one start.
pub(super) struct Engine {
    pub(super) root: Arc<Root>,
    pub(super) paths: ApplyPaths,
    pub(super) log: Log,
    pub(super) fold: Fold,
    pub(super) filled: Option<(Lsn, Lsn)>,
    pub(super) options: ApplyOptions,
    pub(super) shared: Arc<Shared>,
}

/// What exists once the directory was opened.
pub(super) struct Running {
    pub(super) fold: Fold,
    pub(super) site: Site,
    pub(super) intake: Intake,
    pub(super) checkpoints: Checkpoints,
    patience: (Patience, Inexact),
    pub(super) reach: Reach,
    clock: Ancestry,
    pub(super) shared: Arc<Shared>,
    pub(super) log: Log,
    pub(super) patrol: Patrol,
    /// What can't be put right from what is here ends apply, for the leader to give it.
    pub(super) repairs: bool,
    guard: Guard,
    tail: watch::Receiver<Tail>,
    runtime: tokio::runtime::Runtime,
}

/// Why waiting ended.
enum Woken {
    Log,
    Asked,
    Time,
}

impl Engine {
    pub(super) fn new(
        root: Arc<Root>,
        paths: ApplyPaths,
        log: Log,
        fold: Fold,
        filled: Option<(Lsn, Lsn)>,
        options: ApplyOptions,
        shared: Arc<Shared>,
    ) -> Self {
        Self { root, paths, log, fold, filled, options, shared }
    }

    /// The body of the thread.
    pub(super) fn run(self) {
        let (shared, edits) = (Arc::clone(&self.shared), self.options.local_edits);
        shared.pulse.adopt();
        let result = self.work();
        let mut control = shared.lock();
        let diverged = result.as_ref().is_err_and(|e| e.kind() == ErrorKind::Diverged);
        if diverged && edits == LocalEdits::Overwrite {
            control.damage.get_or_insert_default();
        }
        let state = match &result {
            Ok(()) => ApplyState::Stopped,
            Err(e) => {
                tracing::error!(kind = e.kind().word(), "apply stopped: {e}");
                control.failure = Some(e.clone());
                ApplyState::Failed
            }
        };
        control.resting = result.is_ok();
        control.ended = true;
        drop(control);
        let needs_help = |e: &Error| matches!(e.kind(), ErrorKind::Diverged | ErrorKind::Refused);
        let halted = result.as_ref().is_err_and(needs_help);
        shared.applied.send_modify(|applied| (applied.moves, applied.halted) = (false, halted));
        shared.stats.lock().unwrap_or_else(PoisonError::into_inner).state = state;
        shared.ended.send_replace(true);
        shared.changed.notify_all();
    }

    fn work(self) -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .map_err(|e| Error::from(e).wrap("cannot wait for the log"))?;
        let from = self.fold.read().lsn();
        let source = Source {
            dir: self.log.dir().to_owned(),
            system: self.paths.system,
            timeline: self.paths.timeline,
        };
        let cuts = Checkpoints::cuts_before(&self.paths, &self.options);
        let intake = Intake::open(source, from, cuts)?;
        super::site::check_identity(&self.fold, &self.root)?;
        let site = Site::open(
            Arc::clone(&self.root),
            Arc::clone(&self.fold.catalog),
            Arc::clone(&self.shared.stats),
            self.options.local_edits,
            Refusal::new(self.paths.refusal()),
            Doubts::new(self.paths.doubts()),
        )?;
        let checkpoints = Checkpoints::new(&self.paths, &self.root, &self.options, from)?;
        let mut running = Running {
            fold: self.fold,
            site,
            intake,
            checkpoints,
            patience: (
                Patience::new(self.options.max_inexact, self.options.max_inexact_bytes),
                self.options.inexact,
            ),
            reach: Reach::open(self.paths.reach(), self.filled.is_some())?,
            clock: self.options.clock.clone(),
            shared: self.shared,
            patrol: Patrol::new(),
            repairs: self.options.repairs,
            guard: Guard::new(&self.root)?,
            tail: self.log.subscribe(),
            log: self.log,
            runtime,
        };
        if running.recover(self.filled)? {
            running.intake.allow(self.options.cuts);
            let state = self.paths.state().to_owned();
            let scrub = Scrub::start(&running.shared, running.fold.blocks.clone(), state)?;
            running.follow()?;
            drop(scrub);
            running.finish()?;
        }
        Ok(())
    }
}

impl Running {
    pub(super) fn set_state(&self, state: ApplyState) {
        self.site.stats().state = state;
    }

    pub(super) fn stopping(&self) -> bool {
        self.shared.lock().stop
    }

    fn follow(&mut self) -> Result<()> {
        loop {
            let (stop, pause, until) = {
                let mut control = self.shared.lock();
                // Who pauses from here on has to wait for the next rest: a batch may begin.
                control.resting &= control.pause;
                (control.stop, control.pause, control.until)
            };
            if stop {
                return Ok(());
            }
            pulse::beat();
            self.guard.look(&self.site.root)?;
            self.take_damaged()?;
            self.bound(until, pause)?;
            let pause = pause || self.target(until)?;
            if !pause && let Some(batch) = self.next_batch()? {
                self.reaches(until, &batch)?;
                self.set_state(ApplyState::Applying);
                self.batch(&batch)?;
                self.settle_suspects()?;
                self.publish();
                self.shared.rest();
                self.settle_later()?;
                self.checkpoint()?;
                self.patrol()?;
                continue;
            }
            self.shared.rest();
            let pause = pause || self.target(until)?;
            self.set_state(if pause { ApplyState::Paused } else { ApplyState::Idle });
            let wait = self.checkpoints.due_in(&self.fold).min(Duration::from_secs(3600));
            let wait = if pause { wait } else { wait.min(self.patience_left()).min(self.delay_left()) };
            let wait = if pause { wait } else { wait.min(self.patrol.due_in()) };
            let wait = wait.min(self.guard.due_in());
            let wait = if self.site.later.is_empty() { wait } else { Duration::ZERO };
            match self.wait(wait)? {
                Woken::Log | Woken::Asked => {}
                Woken::Time => {
                    self.settle_later()?;
                    self.checkpoint()?;
                    if !pause {
                        self.patrol()?;
                    }
                }
            }
        }
    }

    /// The next batch. When exact cuts stay away for too long that is said, and may be one that ends on a cut of files.
    fn next_batch(&mut self) -> Result<Option<Batch>> {
        let limit = self.tail.borrow_and_update().end;
        let batch = self.intake.next(limit)?;
        let waiting = if batch.is_some() { None } else { self.intake.stuck() };
        let verdict = self.patience.0.look(waiting, Instant::now());
        let said = self.site.stats().inexact.is_some();
        match verdict {
            Verdict::Content if said => {
                tracing::info!("the directory moves on");
                self.site.stats().inexact = None;
            }
            Verdict::Over(age) => {
                let text = format!(
                    "no exact cut for {} s; configure freeze on the leader, or apply_cuts = \"file\" here",
                    age.as_secs()
                );
                // A delay, or a target, holds cuts of files back too.
                let newest = if self.patience.1 == Inexact::Apply { self.intake.newest() } else { None };
                let applies = newest.is_some();
                if !said {
                    tracing::warn!("{}{text}", if applies { "a cut of files is applied: " } else { "" });
                }
                self.site.stats().inexact = Some(text);
                if applies {
                    self.checkpoints.allow_file_cuts()?;
                    self.site.stats().inexact_applied += 1;
                    self.patience.0.look(None, Instant::now());
                    return Ok(newest);
                }
            }
            Verdict::Content | Verdict::Waits(_) => {}
        }
        Ok(batch)
    }

    /// Takes in how much may be applied, and notes durably how far the directory is where not all may.
    fn bound(&mut self, until: Until, pause: bool) -> Result<()> {
        self.intake.bound(until)?;
        self.intake.clock(self.clock.now());
        let here = self.fold.read().lsn();
        match (pause, until.bounded()) {
            (true, _) => self.reach.rests(here),
            (false, true) => self.reach.bind(here),
            (false, false) => Ok(()),
        }
    }

    /// A batch is about to change the directory.
    fn reaches(&mut self, until: Until, batch: &Batch) -> Result<()> {
        if !until.bounded() {
            return self.reach.free();
        }
        // One note for what becomes due within a moment.
        let soon = self.intake.horizon(self.clock.now().saturating_add(NOTED_AHEAD));
        self.reach.bind(soon.map_or(batch.end(), |l| l.max(batch.end())))
    }

    /// How long a delay holds the next cut back.
    fn delay_left(&self) -> Duration {
        if self.shared.lock().until.delay.is_zero() {
            return Duration::MAX;
        }
        match self.intake.due() {
            Some(due) if due != i64::MIN => {
                let left = due.saturating_sub(self.clock.now());
                // What is known of the leader's clock may change meanwhile.
                Duration::from_nanos(u64::try_from(left).unwrap_or(0)).clamp(DELAY_LEAST, DELAY_MOST)
            }
            _ => Duration::MAX,
        }
    }

    /// Whether the directory rests on the target; then it stays there until it is resumed.
    fn target(&mut self, until: Until) -> Result<bool> {
        let Some(stop) = until.stop else { return Ok(false) };
        let (lsn, cut, time) = {
            let catalog = self.fold.read();
            (catalog.lsn(), catalog.cut(), catalog.time())
        };
        let point = self.intake.on_point(lsn)?;
        let here = Commit { end: lsn, time: Some(time), exact: cut == Cut::Exact, point };
        if !self.intake.reached(here) {
            return Ok(false);
        }
        self.reach.rests(lsn)?;
        {
            let mut control = self.shared.lock();
            // A resume came first.
            if control.until.stop.is_none() {
                return Ok(false);
            }
            control.pause = true;
        }
        tracing::info!(%lsn, %cut, target = %stop, "the target is reached: the directory stays here until it is resumed");
        let mut stats = self.site.stats();
        stats.paused = true;
        stats.stopped = Some(format!("{lsn}"));
        drop(stats);
        self.shared.applied.send_modify(|applied| applied.moves = false);
        self.shared.reached.send_replace(true);
        Ok(true)
    }

    /// How long until more patience would be too much.
    fn patience_left(&mut self) -> Duration {
        match self.patience.0.look(self.intake.stuck(), Instant::now()) {
            Verdict::Waits(left) => left,
            Verdict::Over(_) | Verdict::Content => Duration::MAX,
        }
    }

    /// Waits for log, a request, or time to pass.
    pub(super) fn wait_log(&mut self) -> Result<()> {
        self.wait(Duration::from_secs(3600)).map(drop)
    }

    fn wait(&mut self, timeout: Duration) -> Result<Woken> {
        let (tail, shared) = (&mut self.tail, &self.shared);
        let woken = self.runtime.block_on(async {
            tokio::select! {
                changed = tail.changed() => if changed.is_ok() { Woken::Log } else {
                    // The log is gone: only a stop can follow.
                    shared.wake.notified().await;
                    Woken::Asked
                },
                () = shared.wake.notified() => Woken::Asked,
                () = tokio::time::sleep(timeout) => Woken::Time,
            }
        });
        pulse::beat();
        match self.log.failure() {
            Some(e) => Err(e.wrap("the log failed")),
            None => Ok(woken),
        }
    }

    /// Says where the directory stands.
    pub(super) fn publish(&self) {
        let catalog = self.fold.read();
        let commits = self.site.stats().commits;
        let stand = Applied {
            lsn: catalog.lsn(),
            cut: catalog.cut(),
            commit_time: catalog.time(),
            commits,
            consistent: true,
            moves: true,
            halted: false,
            delay: Duration::ZERO,
        };
        // Within the change, so that a pause that comes meanwhile is not overlooked.
        self.shared.applied.send_modify(|applied| {
            let (moves, delay) = (!self.shared.lock().pause, applied.delay);
            *applied = Applied { moves, delay, ..stand };
        });
    }

    /// Folds and performs one batch.
    fn batch(&mut self, batch: &Batch) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        let _gate = shared.gate.write().unwrap_or_else(PoisonError::into_inner);
        failpoint::pass("apply::before_batch")?;
        let mut kept = Vec::new();
        let notes = self.fold_batch(batch, &mut kept)?;
        failpoint::pass("apply::after_fold")?;
        self.carry_out(None, notes, batch, &kept)?;
        failpoint::pass("apply::after_batch")?;
        Ok(())
    }

    /// Pass 2: makes the directory what the catalog says, from what the log changes and, after a scan, from what was
    /// found there; notes how it looks then.
    pub(super) fn carry_out(
        &mut self,
        found: Option<Found>,
        notes: Notes,
        batch: &Batch,
        kept: &[Frame],
    ) -> Result<()> {
        let catalog = Arc::clone(&self.site.catalog);
        let observed = {
            let catalog = catalog.read().unwrap_or_else(PoisonError::into_inner);
            let mut work = Work::new(&mut self.site, notes, found.is_some());
            if let Some(found) = found {
                reconcile(&mut work, &catalog, found)?;
            }
            work.assign(&catalog);
            perform(&mut work, &catalog, self.intake.source(), batch, kept)?;
            work.observe(&catalog)?
        };
        let mut catalog = catalog.write().unwrap_or_else(PoisonError::into_inner);
        for (id, seen) in observed {
            catalog.set_seen(id, Some(seen));
        }
        drop(catalog);
        self.site.dirs.clear();
        Ok(())
    }

    /// Pass 1: the catalog after the batch, verified, and notes of what it touches. The directory is not touched.
    pub(super) fn fold_batch(&mut self, batch: &Batch, kept: &mut Vec<Frame>) -> Result<Notes> {
        let keep = batch.bytes() <= KEEP_BYTES;
        let mut notes = Notes::new();
        let mut frames = self.intake.frames(batch)?;
        while let Some((frame, _)) = frames.next()? {
            for record in Records::new(&frame.raw) {
                let (_, record) = record?;
                notes.note(&self.fold.read(), &record);
                self.fold.record(&record).map_err(|e| {
                    self.shared.damaged(&e, None);
                    e.wrap(&format!("change set before {}", frame.end))
                })?;
                if let Record::Commit(commit) = record {
                    self.fold.write().set_position(frame.end, commit.cut, commit.time);
                }
            }
            if keep {
                kept.push(frame);
            }
        }
        self.intake.done(frames);
        let mut stats = self.site.stats();
        stats.records += notes.records;
        stats.commits += notes.commits;
        stats.batches += 1;
        drop(stats);
        Ok(notes)
    }

    fn checkpoint(&mut self) -> Result<()> {
        self.checkpoints.maybe(&self.fold, &self.site)?;
        self.site.purge(self.checkpoints.last())
    }

    /// A clean stop: on a cut, everything synced, a checkpoint written.
    fn finish(mut self) -> Result<()> {
        let started = Instant::now();
        if !self.site.parked.is_empty() && self.site.later.is_empty() {
            self.checkpoints.now(&self.fold, &self.site)?;
            self.site.purge(self.checkpoints.last())?;
        }
        self.site.remove_stage();
        super::recover::refresh_root(&self.fold, &self.site)?;
        // What is still doubtful stays within the reach of the next recovery.
        if self.site.later.is_empty() {
            self.checkpoints.now(&self.fold, &self.site)?;
        }
        let lsn = self.fold.read().lsn();
        self.reach.rests(lsn)?;
        tracing::info!(%lsn, took = ?started.elapsed(), "apply stopped cleanly");
        Ok(())
    }
}

/// The directory follows the catalog.
fn perform(
    work: &mut Work<'_>,
    catalog: &crate::catalog::Catalog,
    source: &Source,
    batch: &Batch,
    kept: &[Frame],
) -> Result<()> {
    work.stand(catalog);
    work.make(catalog)?;
    let mut files = Contents::default();
    if kept.is_empty() && !batch.spans.is_empty() {
        let mut frames = Frames::open(source, batch)?;
        while let Some((frame, _)) = frames.next()? {
            contents(work, catalog, &mut files, &frame.raw)?;
        }
    } else {
        for frame in kept {
            contents(work, catalog, &mut files, &frame.raw)?;
        }
    }
    drop(files);
    work.loose_attributes(catalog)?;
    work.names(catalog)?;
    work.directories(catalog)
}

fn contents(
    work: &mut Work<'_>,
    catalog: &crate::catalog::Catalog,
    files: &mut Contents,
    raw: &[u8],
) -> Result<()> {
    for record in Records::new(raw) {
        let (_, record) = record.map_err(|e| Error::from(e).with_kind(ErrorKind::Corrupt))?;
        work.content(catalog, files, &record)?;
    }
    Ok(())
}
