//! The loop of capture: waits for hints, requests and times, guards, and runs passes.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::background::{Background, Found, Order};
use super::clones::Clones;
use super::commit::{Repair, held_before};
use super::guard::{self, Excluder, Fs, RootState};
use super::hints::{Batch, Hints, flag};
use super::holders::Look;
use super::hot::Hot;
use super::journal::Journal;
use super::pass::{Ended, Pass, merge};
use super::points::Points;
use super::resting::Resting;
use super::scan::Scanner;
use super::upkeep::{Notes, check_identity, first_scan};
use super::watch::{self, Marks, Watch};
use super::{CaptureOptions, Reply, Request, Shared, lock, wall_clock};
use crate::catalog::{Catalog, Seen};
use crate::error::{Error, ErrorKind, Result};
use crate::position::{Cut, FileId, Lsn, SystemId};
use crate::quiesce::{Freezer, Quiesce};
use crate::record::{GapReason, Time};
use crate::sys::{self, Root, Stat, pulse, vital};

/// A guard that holds looks again at this pace.
const HOLD_LOOK: Duration = Duration::from_millis(500);
/// A file that was unstable rests at least this long.
const REST_MIN: Duration = Duration::from_millis(5);
/// A scan for a gap takes one part in this many of the time at most.
const SCAN_SHARE: u32 = 4;
/// Longest wait between two such scans.
const SCAN_WAIT_MAX: Duration = Duration::from_secs(10);
/// After a cut of files an exact one is tried for in this time, then in twice that, up to the maximum.
const SHARPEN_MIN: Duration = Duration::from_millis(20);
const SHARPEN_MAX: Duration = Duration::from_secs(1);
/// What we open may fill one part in this many of the event queue before it is seen to be empty.
const OPEN_SHARE: u32 = 32;
/// `PATH_MAX` of Linux, its NUL included.
const PATH_MAX: usize = 4096;

/// The catalog, for reading.
pub(super) fn read(catalog: &RwLock<Catalog>) -> RwLockReadGuard<'_, Catalog> {
    catalog.read().unwrap_or_else(PoisonError::into_inner)
}

/// Capture at work.
pub(super) struct Engine {
    pub(super) shared: Arc<Shared>,
    pub(super) catalog: Arc<RwLock<Catalog>>,
    pub(super) root: Arc<Root>,
    pub(super) system: SystemId,
    pub(super) options: CaptureOptions,
    pub(super) excluder: Excluder,
    /// The root as it was at the start.
    pub(super) home: Stat,
    pub(super) fs: Fs,
    pub(super) hints: Arc<Hints>,
    pub(super) watch: Arc<Watch>,
    pub(super) marks: Marks,
    pub(super) quiesce: Option<Quiesce>,
    pub(super) next_hold: Instant,
    pub(super) clones: Clones,
    pub(super) pass: Pass,
    pub(super) hot: Hot,
    pub(super) look: Look,
    pub(super) notes: Notes,
    pub(super) buffer: Vec<u8>,
    /// Blocks that go into the log changed or not.
    pub(super) forced: HashMap<FileId, BTreeSet<u64>>,
    /// In how many passes in a row files were unstable.
    pub(super) unstable: HashMap<Box<[u8]>, u32>,
    /// Where the next slice of a file that is written all the time begins, and its change time before.
    pub(super) slices: HashMap<FileId, (u64, Time)>,
    /// Passes in a row that ended without an exact cut.
    pub(super) failures: u32,
    pub(super) resting: Resting,
    rested: Batch,
    pub(super) state: PathBuf,
    /// Longest path below the root that the kernel takes.
    pub(super) path_max: usize,
    background: Background,
    pub(super) waiting: Vec<Reply>,
    /// How many of these came while the pass was under way.
    pub(super) joined: usize,
    pub(super) points: Points,
    /// The gap that is open.
    pub(super) gap: Option<GapReason>,
    /// Nothing was committed since the start; true within: because nobody watched before.
    first: Option<bool>,
    /// When the guard against mass deletes began to count, and the most names there were since.
    pub(super) tide: (Instant, u64),
    /// Files left by halves of renames: since when such cuts are no exact ones, and until when this one is not.
    pub(super) torn: Option<(Instant, Instant)>,
    /// A mass delete is held: how many names there were.
    pub(super) held_high: Option<u64>,
    /// Until when a confirmed delete may go on.
    pub(super) confirmed_until: Instant,
    /// Something may have been missed: everything has to be scanned, not before `scan_due`.
    pub(super) scan_wanted: bool,
    scan_due: Instant,
    /// The last cut is one of files: when to try for an exact one although nothing moved, and the wait after that.
    sharpen: (Instant, Duration),
    /// Files and directories opened since the last [`Engine::pace`], and how many may be.
    opened: (u32, u32),
    rescan: Option<JoinHandle<()>>,
    /// When directories that can't be watched are listed again.
    missing_due: Instant,
    next_hot: Instant,
    next_rescan: Instant,
    next_look: Instant,
    pub(super) checkpoint: (Lsn, Instant, u64),
    pub(super) finishing: Option<JoinHandle<Result<Lsn>>>,
}

impl Engine {
    /// Checks the directory and scans it: without a base the scan makes it, with one it leaves hints.
    pub(super) fn start(shared: Arc<Shared>, state: &Path, options: CaptureOptions) -> Result<Self> {
        let root = Arc::clone(&shared.root);
        let catalog = Arc::clone(&shared.catalog);
        let failed = |e| Error::io("stat", root.path(), e);
        let home = sys::stat_fd(root.fd()).map_err(failed)?;
        let fs = guard::file_system(&root, false)?;
        check_identity(&catalog, &root, &home)?;
        tracing::debug!("'{}' is on {}, fine timestamps: {}", root.path().display(), fs.name, fs.fine);
        let quiesce = quiesce_of(&options, state, &shared.stop)?;
        let hints = Arc::clone(&shared.hints);
        let watch = Arc::new(Watch::new(Arc::clone(&root), Arc::clone(&hints))?);
        let marks = Marks::new(state, Arc::clone(&hints), &watch, fs.fine)?;
        let scanner = Scanner {
            root: Arc::clone(&root),
            catalog: Arc::clone(&catalog),
            watch: Arc::clone(&watch),
            hints: Arc::clone(&hints),
            excluder: Excluder::new(&options.excludes)?,
            home,
            fs,
            stop: Arc::clone(&shared.stop),
        };
        let base = first_scan(&shared, &scanner, state)?;
        let (system, next_id) = {
            let catalog = read(&catalog);
            (catalog.system(), catalog.next_id())
        };
        let background = Background::start(scanner.clone(), system, options.scrub_rate)?;
        let (now, lsn) = (Instant::now(), read(&catalog).lsn());
        Ok(Self {
            system,
            excluder: scanner.excluder,
            home,
            fs,
            watch,
            marks,
            quiesce: Some(quiesce),
            next_hold: now,
            clones: Clones::new(state),
            pass: Pass::new(Journal::new(shared.log.clone(), state), next_id),
            hot: Hot::default(),
            look: Look { root: Arc::clone(&root), device: home.local.dev, catalog: Arc::clone(&catalog) },
            notes: Notes::default(),
            buffer: Vec::new(),
            forced: HashMap::new(),
            unstable: HashMap::new(),
            slices: HashMap::new(),
            failures: 0,
            resting: Resting::default(),
            rested: Batch::default(),
            state: state.to_owned(),
            path_max: PATH_MAX.saturating_sub(root.path().as_os_str().len() + 2),
            background,
            waiting: Vec::new(),
            joined: 0,
            points: Points::default(),
            gap: None,
            first: Some(!base),
            torn: None,
            tide: (now, 0),
            held_high: held_before(state)?,
            confirmed_until: now,
            scan_wanted: false,
            scan_due: now,
            sharpen: (now, SHARPEN_MIN),
            opened: (0, watch::queue_length() / OPEN_SHARE + 1),
            rescan: None,
            missing_due: now,
            next_hot: now,
            next_rescan: now + jittered(options.rescan_interval),
            next_look: now,
            checkpoint: (lsn, now, 0),
            finishing: None,
            options,
            hints,
            root,
            catalog,
            shared,
        })
    }

    /// The catalog, for reading.
    pub(super) fn read(&self) -> RwLockReadGuard<'_, Catalog> {
        read(&self.catalog)
    }

    /// Runs until it is told to stop; the last pass and a checkpoint are made then.
    pub(super) fn run(&mut self) -> Result<()> {
        let result = self.work();
        self.shared.stop.store(true, Ordering::SeqCst);
        self.background.join();
        let answer = result
            .as_ref()
            .map_or_else(Error::clone, |()| Error::new(ErrorKind::Unavailable, "capture has stopped"));
        self.answer(&Err(answer));
        // Whoever asked last is told by the end of its channel.
        lock(&self.shared.requests).clear();
        for join in [self.rescan.take()].into_iter().flatten() {
            let _ = join.join();
        }
        let finished = self.finish_checkpoint(true);
        self.publish();
        result.and(finished)
    }

    fn work(&mut self) -> Result<()> {
        loop {
            pulse::beat();
            let stopping = self.shared.stop.load(Ordering::SeqCst);
            if let Some(e) = self.shared.log.failure() {
                return Err(e);
            }
            self.requests()?;
            self.found()?;
            self.timers(stopping)?;
            self.turn(stopping)?;
            if stopping {
                if let Some((_, until)) = self.torn {
                    // Followers want to rest on the last state, which an exact cut alone can give them.
                    std::thread::sleep(until.saturating_duration_since(Instant::now()));
                    self.turn(true)?;
                }
                return self.save_checkpoint().and_then(|()| self.finish_checkpoint(true).map(drop));
            }
            let deadline = self.deadline();
            let held = lock(&self.shared.hold).is_some();
            self.hints.wait(deadline, held);
        }
    }

    fn deadline(&self) -> Instant {
        let mut deadline =
            self.next_hot.min(self.next_rescan).min(self.points.next().unwrap_or(self.next_hot));
        if let Some(first) = self.resting.first() {
            deadline = deadline.min(first);
        }
        if self.scan_wanted {
            deadline = deadline.min(self.scan_due);
        }
        if self.blunt() {
            deadline = deadline.min(self.sharpen.0);
        }
        if lock(&self.shared.hold).is_some() {
            deadline = deadline.min(self.next_look);
        }
        deadline
    }

    /// Whether the last cut is one of files while nothing is known that would make the next one no better.
    fn blunt(&self) -> bool {
        self.resting.is_empty() && !self.scan_wanted && self.read().cut() == Cut::File
    }

    /// Our own reads make events. Lets the watcher take those before they fill the queue.
    pub(super) fn pace(&mut self) -> Result<()> {
        self.opened.0 += 1;
        if self.opened.0 >= self.opened.1 {
            self.opened.0 = 0;
            let mark = self.marks.make()?;
            self.marks.wait(&mark)?;
        }
        Ok(())
    }

    /// A pass, if there is anything to do and no guard holds.
    fn turn(&mut self, stopping: bool) -> Result<()> {
        if self.held(stopping)? {
            return Ok(());
        }
        let batch = self.hints.take();
        self.set_aside(batch);
        let asked = !self.waiting.is_empty() || stopping || self.first.is_some();
        if asked {
            self.wake_rested();
            if !self.waiting.is_empty() {
                // Beside the pass: what it finds that is new takes another one.
                self.hot.begin(&self.look);
            }
            self.hot.poll(&self.look, &self.hints, stopping);
        }
        self.begin_gap()?;
        if self.scan_wanted && !stopping && (asked || Instant::now() >= self.scan_due) {
            self.scan();
        }
        let ends = self.gap.is_some() && !self.scan_wanted && self.watch.missing_count() == 0;
        let missing = self.watch.missing_count() > 0 && (asked || Instant::now() >= self.missing_due);
        let sharpens = self.blunt() && Instant::now() >= self.sharpen.0;
        if self.rested.paths.is_empty() && !ends && !asked && !missing && !sharpens {
            return Ok(());
        }
        self.pass.with_missing = missing;
        let began = Instant::now();
        let batch = std::mem::take(&mut self.rested);
        let repair = match self.gap {
            Some(reason) if ends => Repair::Ends(reason),
            None if self.first == Some(true) => Repair::Down,
            _ => Repair::None,
        };
        self.force_hints();
        let ended = self.pass(batch, repair)?;
        if missing {
            // Listing what can't be watched may take one part in ten of the time.
            self.missing_due = Instant::now() + self.options.hot_interval.max(began.elapsed() * 10);
        }
        let mut answer = self.after_pass(ended, repair, began)?;
        if answer.is_ok() && !self.waiting.is_empty() && self.hot.finish(&self.look, &self.hints) {
            let batch = self.hints.take();
            self.set_aside(batch);
            let batch = std::mem::take(&mut self.rested);
            let ended = self.pass(batch, Repair::None)?;
            answer = self.after_pass(ended, Repair::None, began)?;
        }
        self.answer_those_covered(&answer, missing);
        self.write_points()
    }

    /// Takes note of how a pass ended; what those are told that asked for it.
    fn after_pass(&mut self, ended: Ended, repair: Repair, began: Instant) -> Result<Result<Lsn>> {
        let cut = match &ended {
            Ended::Committed(_, cut) | Ended::Nothing(cut) => Some(*cut),
            Ended::Held(_) => None,
        };
        self.points.exact = cut == Some(Cut::Exact);
        if self.points.exact {
            self.failures = 0;
            self.unstable.clear();
            self.sharpen.1 = SHARPEN_MIN;
        } else if cut.is_some() && self.resting.is_empty() {
            self.failures = self.failures.saturating_add(1);
        }
        if cut == Some(Cut::File) {
            self.sharpen.0 = Instant::now() + self.sharpen.1;
            self.sharpen.1 = (self.sharpen.1 * 2).min(SHARPEN_MAX);
        }
        let answer = match ended {
            Ended::Committed(lsn, cut) => {
                match cut {
                    Cut::Exact => {
                        self.notes.cuts.0 += 1;
                        self.notes.last_exact = (lsn, wall_clock());
                    }
                    Cut::File => self.notes.cuts.1 += 1,
                }
                // Events that were lost meanwhile leave it open.
                if matches!(repair, Repair::Ends(_)) && !self.scan_wanted {
                    self.gap = None;
                }
                self.first = None;
                tracing::debug!("committed up to {lsn}, {cut} cut, in {} us", began.elapsed().as_micros());
                Ok(lsn)
            }
            Ended::Nothing(_) => {
                self.first = None;
                Ok(self.read().lsn())
            }
            Ended::Held(text) => {
                self.next_look = Instant::now() + HOLD_LOOK;
                self.hold(Some(text.clone()));
                Err(Error::new(ErrorKind::Held, text))
            }
        };
        if answer.is_ok() {
            self.hold(None);
        }
        self.pass.reset();
        self.publish();
        self.order_scrubs();
        Ok(answer)
    }

    /// Hands over what is to be compared soon, as much as is taken.
    fn order_scrubs(&mut self) {
        while let Some(id) = self.hot.scrub.pop_front() {
            if !self.background.order(Order::Scrub(id)) {
                self.hot.scrub.push_front(id);
                return;
            }
        }
    }

    pub(super) fn answer(&mut self, answer: &Result<Lsn>) {
        for caller in self.waiting.drain(..) {
            caller(answer.clone());
        }
        if let Err(e) = answer {
            self.points.fail(e);
        }
    }

    fn hold(&self, text: Option<String>) {
        let mut hold = lock(&self.shared.hold);
        match (&*hold, &text) {
            (None, Some(text)) => tracing::error!("held: {text}"),
            (Some(_), None) => tracing::info!("no longer held"),
            _ => {}
        }
        *hold = text;
    }

    /// Whether a guard holds capture now.
    fn held(&mut self, stopping: bool) -> Result<bool> {
        let text = match guard::root_state(&self.root, &self.home) {
            RootState::There => {
                let was_away = self.gap == Some(GapReason::Unmount) && lock(&self.shared.hold).is_some();
                if was_away {
                    self.hold(None);
                }
                // A mass delete is looked at again in a while, or at once when it is confirmed.
                let waits = lock(&self.shared.hold).is_some()
                    && !self.shared.confirmed.load(Ordering::SeqCst)
                    && Instant::now() < self.next_look;
                if !waits {
                    return Ok(false);
                }
                lock(&self.shared.hold).clone().unwrap_or_default()
            }
            RootState::Remounted => {
                return Err(Error::new(
                    ErrorKind::Unavailable,
                    "the data directory was mounted anew; capture is started again on it",
                ));
            }
            RootState::Away(text) => {
                self.next_look = Instant::now() + HOLD_LOOK;
                self.hold(Some(text.clone()));
                self.scan_wanted = true;
                if self.gap.is_none() {
                    self.begin(GapReason::Unmount)?;
                }
                text
            }
        };
        let error = Error::new(ErrorKind::Held, text);
        if stopping {
            return Ok(true);
        }
        self.answer(&Err(error));
        self.publish();
        Ok(true)
    }

    /// Files that rest are left out of the batch; what is left is kept for the pass.
    fn set_aside(&mut self, batch: Batch) {
        if let Some(reason) = batch.gap {
            self.hints.gap(reason);
        }
        let mut paths = batch.paths;
        self.resting.leave(&mut paths, Instant::now());
        merge(&mut self.rested.paths, paths);
    }

    fn wake_rested(&mut self) {
        for (path, flags) in self.resting.wake() {
            self.hints.add(&path, flags);
        }
    }

    /// A file that is always being written is left alone for a part of the time that reading took.
    pub(super) fn rest(&mut self, rel: &[u8]) {
        let time = (self.pass.reading * 3 / 7).max(REST_MIN);
        self.resting.put(rel, Instant::now(), time);
    }

    /// Events were lost: says so in the log, and has everything scanned.
    fn begin_gap(&mut self) -> Result<()> {
        let batch = self.hints.take();
        let Some(reason) = batch.gap else {
            self.set_aside(batch);
            return Ok(());
        };
        self.set_aside(Batch { paths: batch.paths, gap: None });
        if self.gap.is_none() {
            self.begin(reason)?;
        }
        // A gap on a gap is the same gap, but the scan has to be made again.
        self.scan_wanted = true;
        Ok(())
    }

    fn begin(&mut self, reason: GapReason) -> Result<()> {
        tracing::warn!("a gap begins ({reason:?}): the history is approximate until everything was scanned");
        self.notes.gaps += 1;
        self.gap = Some(reason);
        self.pass.reset();
        self.commit(Cut::File, Repair::Begins(reason))?;
        self.pass.reset();
        Ok(())
    }

    fn scanner(&self) -> Scanner {
        Scanner {
            root: Arc::clone(&self.root),
            catalog: Arc::clone(&self.catalog),
            watch: Arc::clone(&self.watch),
            hints: Arc::clone(&self.hints),
            excluder: self.excluder.clone(),
            home: self.home,
            fs: self.fs,
            stop: Arc::clone(&self.shared.stop),
        }
    }

    fn scan(&mut self) {
        let began = Instant::now();
        // What is asked for here is done to its end, even when capture is about to stop.
        Scanner { stop: Arc::default(), ..self.scanner() }.all();
        let took = began.elapsed();
        self.scan_wanted = false;
        self.scan_due = Instant::now() + (took * SCAN_SHARE).min(SCAN_WAIT_MAX);
        tracing::info!("everything was scanned in {} ms", took.as_millis());
    }

    fn timers(&mut self, stopping: bool) -> Result<()> {
        let now = Instant::now();
        if now >= self.next_hot && !stopping {
            self.next_hot = now + self.options.hot_interval;
            self.hot.poll(&self.look, &self.hints, false);
            self.order_scrubs();
            self.publish();
        }
        if self.rescan.as_ref().is_some_and(JoinHandle::is_finished) {
            self.rescan = None;
        }
        if now >= self.next_rescan && self.rescan.is_none() && !stopping {
            self.next_rescan = now + jittered(self.options.rescan_interval);
            let scanner = self.scanner();
            let scan = move || scanner.slowly(vec![(Vec::new(), FileId::ROOT)], true);
            let thread = std::thread::Builder::new().name("capture-scan".to_owned());
            self.rescan = thread.spawn(vital::thread("a scan", scan)).ok();
        }
        self.finish_checkpoint(false)?;
        let (at, when, size) = self.checkpoint;
        let lsn = self.read().lsn();
        let grown = lsn.since(at) >= self.options.checkpoint_bytes.max(size);
        let due = lsn > at && (grown || when.elapsed() >= self.options.checkpoint_interval);
        if due && self.finishing.is_none() {
            self.save_checkpoint()?;
        }
        Ok(())
    }

    fn requests(&mut self) -> Result<()> {
        let requests = std::mem::take(&mut *lock(&self.shared.requests));
        for request in requests {
            match request {
                Request::Barrier(reply) => self.waiting.push(reply),
                Request::Point(asked) => self.points.push(asked),
                Request::Mismatch(id, blocks) => self.forced.entry(id).or_default().extend(blocks),
                Request::Learned(id, seen, hashes) => {
                    if self.unhashed_as(id, &seen) {
                        let mut fold = lock(&self.shared.fold);
                        match hashes[..] {
                            [sum] => fold.write().set_content(id, sum, true),
                            _ => fold.learn(id, &hashes)?,
                        }
                    }
                }
                Request::Reload(options) => self.reload(*options),
            }
        }
        self.try_points();
        Ok(())
    }

    /// Whether a file is not hashed, and as it was seen.
    fn unhashed_as(&self, id: FileId, seen: &Seen) -> bool {
        let same = |s: Seen| s.local == seen.local && s.ctime == seen.ctime && !s.racy;
        self.read().get(id).is_some_and(|n| !n.hashed && n.seen.is_some_and(same))
    }

    /// What the background thread found.
    fn found(&mut self) -> Result<()> {
        while let Ok(found) = self.background.found.try_recv() {
            match found {
                Found::Piece { id, seen, first, hashes } => {
                    if self.unhashed_as(id, &seen) {
                        lock(&self.shared.fold).set_hashes(id, first, &hashes)?;
                    }
                }
                Found::Whole { id, seen } => {
                    if self.unhashed_as(id, &seen) {
                        lock(&self.shared.fold).finish_hashes(id)?;
                    }
                }
                Found::Small { id, seen, sum } => {
                    if self.unhashed_as(id, &seen) {
                        lock(&self.shared.fold).write().set_content(id, sum, true);
                    }
                }
                Found::Differs { id } => {
                    let path = self.read().path(id);
                    if let Some(path) = path {
                        tracing::warn!(
                            "the content of '{}' changed without a trace in its stamps",
                            path.escape_ascii()
                        );
                        self.notes.found_by_scan += 1;
                        self.hints.add(&path, flag::MODIFIED);
                    }
                }
            }
        }
        Ok(())
    }

    /// Files with blocks that have to go into the log are looked at whatever their stamps say.
    fn force_hints(&mut self) {
        if self.forced.is_empty() {
            return;
        }
        let catalog = read(&self.catalog);
        self.forced.retain(|id, _| catalog.contains(*id));
        for path in self.forced.keys().filter_map(|id| catalog.path(*id)) {
            self.hints.add(&path, flag::MODIFIED);
        }
    }

    fn reload(&mut self, options: CaptureOptions) {
        let excluder = Excluder::new(&options.excludes);
        let same = options.freeze == self.options.freeze
            && options.max_freeze == self.options.max_freeze
            && options.before_cut == self.options.before_cut
            && options.after_cut == self.options.after_cut;
        let quiesce = if same {
            Ok(self.quiesce.take())
        } else {
            quiesce_of(&options, &self.state, &self.shared.stop).map(Some)
        };
        match (excluder, quiesce) {
            (Ok(excluder), Ok(quiesce)) => {
                let changed = excluder.text != self.excluder.text;
                (self.excluder, self.quiesce) = (excluder, quiesce);
                self.background.order(Order::Rate(options.scrub_rate));
                self.options = options;
                self.next_rescan = Instant::now() + jittered(self.options.rescan_interval);
                if changed {
                    // What is excluded or included anew is found by a scan.
                    self.scan();
                }
            }
            (Err(e), _) | (_, Err(e)) => tracing::error!("options are not taken over: {e}"),
        }
    }
}

/// The configured way to hold the application still.
fn quiesce_of(options: &CaptureOptions, state: &Path, stop: &Arc<AtomicBool>) -> Result<Quiesce> {
    let (before, after) = (options.before_cut.clone(), options.after_cut.clone());
    let freezer = options.freezer.clone().unwrap_or_else(|| Arc::new(Freezer::new(state)));
    let quiesce = Quiesce::new(freezer, &options.freeze, options.max_freeze, before, after)?;
    Ok(quiesce.ended_by(Arc::clone(stop)))
}

/// Up to a tenth more or less, so that many nodes don't scan at once.
fn jittered(time: Duration) -> Duration {
    time.mul_f64(0.9 + 0.2 * fastrand::f64())
}
