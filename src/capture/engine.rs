//! The loop of capture: waits for hints, requests and times, and runs passes.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

use globset::{Glob, GlobSet, GlobSetBuilder};

use super::hashing::Hashing;
use super::hot::Hot;
use super::pass::{Notes, Pass, identity};
use super::stage::Stage;
use super::watch::{self, Hints, Watch};
use super::{CaptureOptions, Request, Shared, lock};
use crate::catalog::LocalId;
use crate::checkpoint;
use crate::error::{Error, ErrorKind, Result};
use crate::failpoint;
use crate::position::{Cut, FileId, Lsn};
use crate::quiesce::Quiesce;
use crate::record::GapReason;
use crate::sys;

/// The other half of a rename is waited for this long before a lost name counts as a delete.
const PAIRING: Duration = Duration::from_millis(10);
/// A held guard looks again at this pace.
const HOLD_LOOK: Duration = Duration::from_millis(500);
/// Rounds of a pass at most, whatever the clock says.
const ROUNDS_MAX: usize = 50;

pub(super) struct Engine {
    shared: Arc<Shared>,
    options: CaptureOptions,
    excludes: GlobSet,
    state: PathBuf,
    watch: Watch,
    hot: Hot,
    hashing: Hashing,
    quiesce: Quiesce,
    identity: LocalId,
    buffer: Vec<u8>,
    forced: HashMap<FileId, HashSet<u64>>,
    waiting: Vec<SyncSender<Result<Lsn>>>,
    /// Passes in a row that ended with a file cut: a busy directory is given less time each.
    busy: u32,
    next_hot: Instant,
    next_rescan: Instant,
    checkpoint_at: (Lsn, Instant),
    checkpoint_size: u64,
}

/// How a pass ended.
enum Ended {
    Committed(Lsn, Cut),
    Nothing,
    /// A guard holds: these hints are looked at again.
    Held(String),
}

fn globs(patterns: &[String]) -> Result<GlobSet> {
    let mut builder = GlobSetBuilder::new();
    for pattern in patterns {
        // Like a path in .gitignore, a pattern stands for the entry and everything below it.
        for text in [pattern.clone(), format!("{}/**", pattern.trim_end_matches('/'))] {
            let glob = Glob::new(&text)
                .map_err(|e| Error::new(ErrorKind::Config, format!("exclude pattern '{pattern}': {e}")))?;
            builder.add(glob);
        }
    }
    builder.build().map_err(|e| Error::new(ErrorKind::Config, format!("exclude patterns: {e}")))
}

impl Engine {
    pub(super) fn new(shared: Arc<Shared>, state: &Path, options: CaptureOptions) -> Result<Self> {
        let watch = Watch::new(shared.root.path(), state, Arc::clone(&shared.dirty))?;
        let now = Instant::now();
        Ok(Self {
            excludes: globs(&options.excludes)?,
            watch,
            hot: Hot::default(),
            hashing: Hashing::new(options.scrub_rate),
            quiesce: Quiesce::new(
                &options.freeze,
                options.max_freeze,
                options.before_cut.clone(),
                options.after_cut.clone(),
                state,
            )?,
            identity: identity(&shared.root)?,
            state: state.to_owned(),
            buffer: Vec::new(),
            forced: HashMap::new(),
            waiting: Vec::new(),
            busy: 0,
            next_hot: now,
            next_rescan: now + jittered(options.rescan_interval),
            checkpoint_at: (Lsn::ZERO, now),
            checkpoint_size: 0,
            options,
            shared,
        })
    }

    /// The scan at start. Without a base it makes the base; with one it finds what changed meanwhile.
    pub(super) fn first_scan(&mut self) -> Result<()> {
        self.check_file_system()?;
        let empty = {
            let catalog = self.shared.catalog.read().unwrap_or_else(std::sync::PoisonError::into_inner);
            catalog.len() <= 1 && catalog.lsn() <= Lsn::FIRST && self.shared.log.tail().commit <= Lsn::FIRST
        };
        let has_base = checkpoint::load_newest(&self.state.join("catalog"), self.system())?.is_some();
        let base = empty && !has_base;
        let began = Instant::now();
        let mut all = Hints::new();
        all.insert(Vec::new(), watch::TREE | watch::NAME);
        self.run_pass(all, (!base).then_some(GapReason::Down), base)?;
        let files = self.shared.catalog.read().unwrap_or_else(std::sync::PoisonError::into_inner).len();
        tracing::info!("scanned {files} entries in {} ms", began.elapsed().as_millis());
        if base {
            self.checkpoint()?;
        }
        Ok(())
    }

    fn system(&self) -> crate::position::SystemId {
        self.shared.catalog.read().unwrap_or_else(std::sync::PoisonError::into_inner).system()
    }

    /// File systems whose changes cause no events here are refused.
    fn check_file_system(&self) -> Result<()> {
        let stat = rustix::fs::fstatfs(self.shared.root.fd())
            .map_err(|e| Error::io("stat the file system of", self.shared.root.path(), e))?;
        let remote = match stat.f_type as u32 {
            0x6969 => "NFS",
            0xFF53_4D42 | 0xFE53_4D42 | 0x517B => "SMB",
            0x0102_1997 => "9p",
            0x6573_5546 => "FUSE",
            0x00C3_6400 => "Ceph",
            _ => return Ok(()),
        };
        let text = format!(
            "data directory '{}' lies on {remote}, where changes made elsewhere cause no events; run the leader on the \
             host that owns the file system",
            self.shared.root.path().display()
        );
        Err(Error::new(ErrorKind::Config, text))
    }

    pub(super) fn run(&mut self) -> Result<()> {
        let mut held: Option<Hints> = None;
        loop {
            let stopping = self.shared.stop.load(Ordering::SeqCst);
            if !stopping {
                let time = if held.is_some() { HOLD_LOOK } else { self.time_to_next() };
                self.shared.dirty.wait(time);
            }
            self.requests()?;
            if self.shared.log.failure().is_some() {
                return self.shared.log.failure().map_or(Ok(()), Err);
            }
            self.background()?;
            let (mut hints, gap) = self.shared.dirty.take();
            hints.extend(held.take().unwrap_or_default());
            self.force_hints(&mut hints);
            if gap.is_some() {
                hints.insert(Vec::new(), watch::TREE | watch::NAME);
            }
            if !hints.is_empty() || !self.waiting.is_empty() {
                held = self.pass_and_answer(hints, gap)?;
            }
            if stopping {
                return self.checkpoint();
            }
            self.maybe_checkpoint()?;
        }
    }

    fn pass_and_answer(&mut self, hints: Hints, gap: Option<GapReason>) -> Result<Option<Hints>> {
        let began = Instant::now();
        let waiting = std::mem::take(&mut self.waiting);
        let again = hints.clone();
        let ended = match self.root_is_there() {
            Ok(()) => self.run_pass(hints, gap, false)?,
            Err(text) => Ended::Held(text),
        };
        let (answer, held) = match ended {
            Ended::Committed(lsn, cut) => {
                self.busy = if cut == Cut::Exact { 0 } else { self.busy + 1 };
                (Ok(lsn), None)
            }
            Ended::Nothing => {
                self.busy = 0;
                let catalog = self.shared.catalog.read().unwrap_or_else(std::sync::PoisonError::into_inner);
                (Ok(catalog.lsn()), None)
            }
            Ended::Held(text) => {
                let mut stats = lock(&self.shared.stats);
                if stats.hold.as_ref() != Some(&text) {
                    tracing::error!("held: {text}");
                    stats.hold = Some(text.clone());
                }
                (Err(Error::new(ErrorKind::Held, text)), Some(again))
            }
        };
        if held.is_none() && lock(&self.shared.stats).hold.take().is_some() {
            tracing::info!("no longer held");
        }
        for caller in waiting {
            let _ = caller.try_send(answer.clone());
        }
        // A pass that had to read much leaves the processor to others for a part of the time.
        let took = began.elapsed();
        if took > Duration::from_millis(50) {
            std::thread::sleep((took * 2 / 5).min(Duration::from_secs(1)));
        }
        Ok(held)
    }

    /// The directory that the path names now is the one this node was started on.
    fn root_is_there(&self) -> std::result::Result<(), String> {
        let path = self.shared.root.path();
        let now = sys::Root::open(path).ok().and_then(|r| identity(&r).ok());
        if now == Some(self.identity) {
            return Ok(());
        }
        let what = if now.is_some() { "was replaced by another directory" } else { "is gone" };
        Err(format!(
            "data directory '{}' {what}; nothing is replicated until it is back (mount it, or restart towline if the change is meant)",
            path.display()
        ))
    }

    fn requests(&mut self) -> Result<()> {
        let requests = std::mem::take(&mut *lock(&self.shared.requests));
        for request in requests {
            match request {
                Request::Barrier(reply) => self.waiting.push(reply),
                Request::Mismatch(id, blocks) => self.forced.entry(id).or_default().extend(blocks),
                Request::Learned(id, seen, hashes) => self.learn(id, seen, &hashes)?,
                Request::Reload(options) => self.reload(*options),
            }
        }
        Ok(())
    }

    fn reload(&mut self, options: CaptureOptions) {
        let quiesce = Quiesce::new(
            &options.freeze,
            options.max_freeze,
            options.before_cut.clone(),
            options.after_cut.clone(),
            &self.state,
        );
        match (globs(&options.excludes), quiesce) {
            (Ok(excludes), Ok(quiesce)) => {
                (self.excludes, self.quiesce) = (excludes, quiesce);
                self.options = options;
                // What is excluded or included anew is found by a scan.
                self.shared.dirty.add(Vec::new(), watch::TREE | watch::NAME);
            }
            (Err(e), _) | (_, Err(e)) => tracing::error!("options are not taken over: {e}"),
        }
    }

    fn learn(&mut self, id: FileId, seen: crate::catalog::Seen, hashes: &[u128]) -> Result<()> {
        let mut fold = lock(&self.shared.fold);
        let matches = {
            let catalog = fold.read();
            let known = |n: crate::catalog::Inode<'_>| {
                !n.hashed && n.seen.is_some_and(|s| s.local == seen.local && s.ctime == seen.ctime)
            };
            catalog.get(id).is_some_and(known)
        };
        if matches { fold.learn(id, hashes) } else { Ok(()) }
    }

    /// Files with blocks that a first copy read differently are examined whatever their stamps say.
    fn force_hints(&mut self, hints: &mut Hints) {
        let catalog = self.shared.catalog.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        self.forced.retain(|id, _| catalog.contains(*id));
        for path in self.forced.keys().filter_map(|id| catalog.path(*id)) {
            *hints.entry(path).or_default() |= watch::DATA;
        }
    }

    fn time_to_next(&self) -> Duration {
        let now = Instant::now();
        let mut next = self.next_hot.min(self.next_rescan).saturating_duration_since(now);
        let catalog = self.shared.catalog.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(due) = self.hashing.due(&catalog) {
            next = next.min(due);
        }
        next.min(Duration::from_secs(60))
    }

    /// Polls, scans and hashes whose time has come.
    fn background(&mut self) -> Result<()> {
        let now = Instant::now();
        if now >= self.next_hot {
            self.next_hot = now + self.options.hot_interval;
            let shared = Arc::clone(&self.shared);
            self.hot.poll(&shared.root, &shared.catalog, &shared.dirty);
            let mut stats = lock(&shared.stats);
            (stats.hot_files, stats.hidden_processes) = (self.hot.len() as u64, self.hot.hidden);
        }
        if now >= self.next_rescan {
            self.next_rescan = now + jittered(self.options.rescan_interval);
            let mut all = Hints::new();
            all.insert(Vec::new(), watch::TREE | watch::NAME);
            let cuts = |stats: &super::CaptureStats| stats.cuts_exact + stats.cuts_file;
            let before = cuts(&lock(&self.shared.stats));
            self.run_pass(all, None, false)?;
            let mut stats = lock(&self.shared.stats);
            if cuts(&stats) > before {
                stats.found_by_scan += 1;
            }
        }
        let learned = {
            let catalog = self.shared.catalog.read().unwrap_or_else(std::sync::PoisonError::into_inner);
            match self.hashing.due(&catalog) {
                Some(due) if due.is_zero() => {
                    self.hashing.slice(&self.shared.root, &catalog, &mut self.buffer)
                }
                _ => None,
            }
        };
        if let Some(l) = learned {
            self.learn(l.id, l.seen, &l.hashes)?;
        }
        Ok(())
    }

    /// One pass, see [`super::pass`].
    fn run_pass(&mut self, hints: Hints, gap: Option<GapReason>, base: bool) -> Result<Ended> {
        let shared = Arc::clone(&self.shared);
        let stage = Stage::new(&shared.catalog.read().unwrap_or_else(std::sync::PoisonError::into_inner));
        let mut pass = Pass {
            root: &shared.root,
            catalog: Arc::clone(&shared.catalog),
            fold: &shared.fold,
            log: &shared.log,
            watch: &mut self.watch,
            excludes: &self.excludes,
            base,
            suspicious: gap.is_some_and(|g| g != GapReason::Down),
            stage,
            raw: Vec::new(),
            started: false,
            device: self.identity.dev,
            examined: HashSet::new(),
            dirs: HashSet::new(),
            unstable: HashSet::new(),
            buffer: std::mem::take(&mut self.buffer),
            forced: std::mem::take(&mut self.forced),
            notes: Notes::default(),
        };
        let patience = if base || self.busy > 1 { Duration::ZERO } else { self.options.max_cut_delay };
        let cut = rounds(&mut pass, &shared, hints, patience, &mut self.quiesce)?;
        failpoint::pass("capture::after_examine")?;
        self.buffer = std::mem::take(&mut pass.buffer);
        self.forced = std::mem::take(&mut pass.forced);
        let ended = finish(&mut pass, &shared, &self.options, gap, cut, base)?;
        for path in pass.notes.hot.drain(..).chain(pass.unstable.drain()) {
            self.hot.add(path);
        }
        let mut stats = lock(&shared.stats);
        stats.watches = pass.watch.watched;
        stats.unwatched = pass.watch.unwatched;
        stats.other_file_systems = pass.notes.other_file_systems;
        stats.unreadable = pass.notes.unreadable.take().or(stats.unreadable.take());
        stats.gaps += u64::from(gap.is_some_and(|g| g != GapReason::Down));
        if let Ended::Committed(lsn, cut) = ended {
            match cut {
                Cut::Exact => {
                    stats.cuts_exact += 1;
                    stats.last_exact = lsn.to_string();
                    stats.last_exact_time = crate::net::wall_clock();
                }
                Cut::File => stats.cuts_file += 1,
            }
        }
        Ok(ended)
    }

    fn maybe_checkpoint(&mut self) -> Result<()> {
        let lsn = self.shared.catalog.read().unwrap_or_else(std::sync::PoisonError::into_inner).lsn();
        let (at, when) = self.checkpoint_at;
        let grown = lsn.since(at) >= self.options.checkpoint_bytes.max(self.checkpoint_size);
        if lsn > at && (grown || when.elapsed() >= self.options.checkpoint_interval) {
            self.checkpoint()?;
        }
        Ok(())
    }

    fn checkpoint(&mut self) -> Result<()> {
        let fold = lock(&self.shared.fold);
        let lsn = fold.read().lsn();
        // The catalog must never be ahead of the log that it was folded from.
        if lsn > Lsn::FIRST && !self.shared.log.wait_durable(lsn, Duration::from_secs(30))? {
            return Err(Error::new(
                ErrorKind::Io,
                "the log is not durable 30 s after a commit; look at its disk",
            ));
        }
        checkpoint::save(&self.state.join("catalog"), &fold)?;
        self.checkpoint_at = (lsn, Instant::now());
        Ok(())
    }
}

/// Steps 1 to 4: examines until nothing that was examined changed meanwhile, or the patience ends.
fn rounds(
    pass: &mut Pass<'_>,
    shared: &Shared,
    hints: Hints,
    patience: Duration,
    quiesce: &mut Quiesce,
) -> Result<Cut> {
    let began = Instant::now();
    let mut done = Hints::new();
    let mut todo = hints;
    pass.watch.drain()?;
    merge(&mut todo, shared.dirty.take());
    let mut held = None;
    for round in 0..ROUNDS_MAX {
        pass.unstable.clear();
        pass.examine(&todo)?;
        merge_into(&mut done, &todo);
        pass.watch.drain()?;
        wait_for_pairs(pass, shared)?;
        let (later, gap) = shared.dirty.take();
        let unstable = !pass.unstable.is_empty();
        if gap.is_some() {
            shared.dirty.add(Vec::new(), watch::TREE | watch::NAME);
        } else if !unstable && !pass.touches(&done, &later) {
            give_back(shared, later);
            let intact = held.as_ref().is_none_or(crate::quiesce::Held::intact);
            return Ok(if intact { Cut::Exact } else { Cut::File });
        }
        let out_of_time = began.elapsed() >= patience && (round > 0 || patience.is_zero());
        if held.is_some() || (out_of_time && !quiesce.configured()) || round + 1 == ROUNDS_MAX {
            give_back(shared, later);
            pass.unstable.iter().for_each(|p| shared.dirty.add(p.clone(), watch::DATA));
            return Ok(Cut::File);
        }
        todo = later;
        for path in std::mem::take(&mut pass.unstable) {
            *todo.entry(path).or_default() |= watch::DATA;
        }
        if quiesce.configured() && held.is_none() && !pass.base {
            held = hold(quiesce, shared);
            pass.watch.drain()?;
            merge(&mut todo, shared.dirty.take());
            if held.is_none() {
                give_back(shared, todo);
                return Ok(Cut::File);
            }
            break_hold_rounds(pass, shared, &mut done, std::mem::take(&mut todo))?;
            let intact = held.as_ref().is_some_and(crate::quiesce::Held::intact);
            let (left, _) = shared.dirty.take();
            let still = pass.unstable.is_empty() && !pass.touches(&done, &left);
            give_back(shared, left);
            return Ok(if intact && still { Cut::Exact } else { Cut::File });
        }
    }
    Ok(Cut::File)
}

/// While the application is held: one more look, and a drain that must bring nothing new.
fn break_hold_rounds(pass: &mut Pass<'_>, shared: &Shared, done: &mut Hints, todo: Hints) -> Result<()> {
    let _ = shared;
    pass.examine(&todo)?;
    merge_into(done, &todo);
    pass.watch.drain()
}

fn hold<'a>(quiesce: &'a mut Quiesce, shared: &Shared) -> Option<crate::quiesce::Held<'a>> {
    match quiesce.hold() {
        Ok(held) => {
            lock(&shared.stats).freezes += 1;
            Some(held)
        }
        Err(e) => {
            let mut stats = lock(&shared.stats);
            stats.freeze_failures += 1;
            if stats.freeze_failures == 1 {
                tracing::error!("the application can't be held still for a cut: {e}");
            }
            None
        }
    }
}

fn merge(into: &mut Hints, (hints, gap): (Hints, Option<GapReason>)) {
    merge_into(into, &hints);
    if gap.is_some() {
        into.insert(Vec::new(), watch::TREE | watch::NAME);
    }
}

fn merge_into(into: &mut Hints, hints: &Hints) {
    for (path, flags) in hints {
        *into.entry(path.clone()).or_default() |= flags;
    }
}

fn give_back(shared: &Shared, hints: Hints) {
    for (path, flags) in hints {
        shared.dirty.add(path, flags);
    }
}

/// A name that is gone may be half of a rename whose other half is on its way: wait for it.
fn wait_for_pairs(pass: &mut Pass<'_>, shared: &Shared) -> Result<()> {
    let recent = shared.dirty.last_from().is_some_and(|t| t.elapsed() < PAIRING);
    if recent && pass.stage.unlinked > 0 && pass.deletions() > 0 {
        std::thread::sleep(PAIRING);
        pass.watch.drain()?;
    }
    Ok(())
}

/// Guards, names to records, commit.
fn finish(
    pass: &mut Pass<'_>,
    shared: &Shared,
    options: &CaptureOptions,
    gap: Option<GapReason>,
    cut: Cut,
    base: bool,
) -> Result<Ended> {
    let empty = {
        let catalog = pass.read();
        pass.stage.is_empty(&catalog)
    };
    if empty && gap.is_none_or(|g| g == GapReason::Down) && !base {
        pass.refresh_seen();
        return Ok(Ended::Nothing);
    }
    if let Some(text) = mass_delete(pass, shared, options) {
        pass.abort()?;
        return Ok(Ended::Held(text));
    }
    let now = crate::net::wall_clock();
    if let Some(reason) = gap {
        pass.gap(false, reason, now)?;
    }
    pass.settle_names()?;
    if let Some(reason) = gap {
        pass.gap(true, reason, now)?;
    }
    Ok(Ended::Committed(pass.commit(cut, now)?, cut))
}

fn mass_delete(pass: &Pass<'_>, shared: &Shared, options: &CaptureOptions) -> Option<String> {
    let total = pass.read().len() as u64;
    if pass.stage.unlinked == 0 || total < options.max_delete_min {
        return None;
    }
    let gone = pass.deletions();
    if gone * 100 <= total * u64::from(options.max_delete_percent)
        || shared.confirmed.swap(false, Ordering::SeqCst)
    {
        return None;
    }
    Some(format!(
        "{gone} of {total} entries would be deleted, more than max_delete = {}; nothing is replicated until it is \
         undone or confirmed with 'towline confirm'",
        options.max_delete_percent
    ))
}

/// Up to a tenth more or less, so that many nodes don't scan at once.
fn jittered(time: Duration) -> Duration {
    time.mul_f64(0.9 + 0.2 * fastrand::f64())
}
