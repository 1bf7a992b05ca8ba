//! Restore: a backup and the log after it become the directory as it was at a target.
//!
//! A restore is a follower without a leader. The base is laid out as a first copy is ([`crate::fill::lay`]), log is put into a
//! follower's state directory, and [`crate::apply`] replays it up to the cut that [`target`] finds; so the digest of every
//! commit on the way is compared, and whatever breaks off goes on where it was.
//!
//! | where | what |
//! | --- | --- |
//! | `OUT.restoring` | the directory while it is being made; it becomes `OUT` when it is whole |
//! | | with `delta` it is `OUT` itself, under that name until it is whole |
//! | `OUT.restoring.tar` | a backup that comes through a pipe, or compressed; it goes |
//! | `OUT.restoring.state`, or `STATE.restoring` | its state directory; it goes, or becomes `STATE` of a follower |
//!
//! The backup is a directory, a tar, or one of an archive, which [`choose`] finds; of an incremental one [`gather`] takes each
//! block from the newest member of its chain that has it. What is fetched of a bucket lies in the state directory meanwhile.
//!
//! A restore follows one [`way`] over the timelines that the log has; with [`lead`] it begins a new one.
//!
//! In the state directory the note `restore.json` says which restore it is: the same command goes on with it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::apply::StopAt;
use crate::disk;
use crate::error::{Error, ErrorKind, Result};
pub use crate::fill::Cloning;
use crate::fill::{self, Layout};
use crate::log::FrameReader;
use crate::net::FillProgress;
use crate::position::{Cut as Quality, Lsn, SegmentNo, SystemId, TimelineId};
use crate::record::{PointName, Record, Records};
use crate::segment::flags;
use crate::set::{Set, gather};
use crate::sys::Root;

mod choose;
mod extra;
pub mod guard;
mod lead;
mod logs;
mod origin;
mod place;
mod points;
mod replay;
mod shelf;
pub mod target;
mod way;

pub use logs::Source;
use logs::Sources;
pub use origin::{Origin, chained};
use place::Place;
use points::Seen;
use target::{Commit, Search};
pub use target::{Cut, Goal, Target};
pub use way::Line;
use way::{Known, Way};

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Order {
    /// The backup, or the archive that holds it.
    pub from: Origin,
    /// The label of a backup of the archive, instead of the newest one that fits.
    pub backup: Option<String>,
    /// Backups that an incremental one stands on, outside of an archive.
    pub bases: Vec<PathBuf>,
    /// Where there is log.
    pub logs: Vec<Source>,
    /// To which state.
    pub target: Target,
    /// The directory that is made.
    pub out: PathBuf,
    /// The timeline that is followed.
    pub line: Line,
    /// Where the state directory is left.
    pub state: Option<PathBuf>,
    /// The node that goes on with it.
    pub node: Option<Node>,
    /// `out` may hold something: it is made equal, and only what differs is moved.
    pub delta: bool,
    /// Whether files are cloned.
    pub cloning: Cloning,
    /// A target within a gap of the history will do.
    pub allow_gap: bool,
}

/// What goes on from there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Node {
    /// A follower.
    Follower,
    /// The leader of a new timeline, which a node of this name begins.
    Leader(String),
}

impl Order {
    /// The name of the leader to be.
    fn leader(&self) -> Option<&str> {
        match &self.node {
            Some(Node::Leader(name)) => Some(name),
            _ => None,
        }
    }
}

/// What a restore is about to do.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[allow(missing_docs, reason = "the names say it; the manual page lists them")]
pub struct Plan {
    pub label: String,
    /// What it stands on, the next one first.
    pub chain: Vec<String>,
    /// Newer backups of the archive that were passed over, and why.
    pub passed: Vec<String>,
    pub form: &'static str,
    pub system: String,
    /// That of the backup.
    pub timeline: u32,
    /// The one that is followed.
    pub target_timeline: u32,
    /// The one that begins there, with a leader.
    pub new_timeline: Option<u32>,
    /// Where the base is whole.
    pub base: String,
    pub base_time: String,
    pub target: String,
    /// The cut on which the restore ends.
    pub lsn: String,
    pub time: String,
    /// The history around the target is approximate.
    pub gap: bool,
    /// First and last segment of a hole in the log, before which the restore ends.
    pub missing: Option<(String, String)>,
    /// First and last segment of the log that is replayed.
    pub log: Option<(String, String)>,
    pub log_bytes: u64,
    pub files: u64,
    /// Bytes of the files of the base.
    pub bytes: u64,
    /// Bytes of the packs that they are read from.
    pub pack_bytes: u64,
    pub free_bytes: u64,
    /// Of a directory that is made equal: names that the backup does not have, which go, and the first few.
    pub goes: Option<u64>,
    pub goes_first: Vec<String>,
    pub out: PathBuf,
}

/// What is told of its progress.
pub type Tell = Arc<dyn Fn(FillProgress) + Send + Sync>;

struct Restore {
    order: Order,
    /// The backup, and those it stands on.
    chain: Vec<Arc<Set>>,
    set: Arc<Set>,
    passed: Vec<String>,
    /// Labels of other backups that would do, the newest first.
    others: Vec<String>,
    /// Restore points that were seen in the archive.
    points: Seen,
    logs: Vec<Source>,
    way: Way,
    /// The highest number of a timeline that is in use.
    taken: TimelineId,
}

/// Where the target is, and the log that leads there.
struct Found {
    goal: Goal,
    segments: Vec<SegmentNo>,
    /// First and last segment of a hole behind it.
    missing: Option<(SegmentNo, SegmentNo)>,
}

/// A hole in words.
fn lacks((first, last): (SegmentNo, SegmentNo)) -> String {
    format!("segments {:X} to {:X} are missing between the log that was given", first.0, last.0)
}

/// Finds out what a restore would do. The log is read into a temporary directory.
///
/// # Errors
/// Whatever would refuse the restore.
pub fn plan(order: &Order) -> Result<Plan> {
    Place::look(order)?;
    let dir = tempfile::tempdir().map_err(|e| Error::from(e).wrap("cannot make a temporary directory"))?;
    let restore = Restore::new(order, &dir.path().join("set.tar"), &dir.path().join("fetched"))?;
    let sources = Sources::open(&restore.set, &restore.way, &restore.logs)?;
    let log = dir.path().join("log");
    std::fs::create_dir(&log).map_err(|e| Error::io("make", &log, e))?;
    let found = restore.find(&sources, &log)?;
    restore.plan(&sources, &found)
}

/// Restores.
///
/// # Errors
/// The backup, the log or the target is not what it has to be; disk errors. What was made stays, and the same
/// command goes on with it.
pub fn run(order: &Order, tell: &Tell, cancel: &CancellationToken) -> Result<Plan> {
    Place::look(order)?;
    let (spool, fetched) = place::aside(order)?;
    let restore = Restore::new(order, &spool, &fetched);
    let opened = restore.and_then(|restore| {
        let place = Place::open(order, restore.set.manifest(), restore.way.timeline())?;
        Ok((place, restore))
    });
    let (place, restore) = opened.inspect_err(|_| place::forget(&spool))?;
    let sources = Sources::open(&restore.set, &restore.way, &restore.logs)?;
    let found = place.log().and_then(|dir| restore.find(&sources, &dir)).and_then(|found| {
        let plan = restore.plan(&sources, &found).map_err(|e| restore.other(e))?;
        Ok((found.goal, plan, found.segments))
    });
    let (goal, mut plan, segments) = match found {
        // Another order would help, so nothing of this one is kept.
        Err(e) if matches!(e.kind(), ErrorKind::Missing | ErrorKind::Refused | ErrorKind::Corrupt) => {
            place.discard();
            return Err(e);
        }
        found => found?,
    };
    if place.leads() {
        lead::end(place.state())?;
        plan.new_timeline = Some(place.state().set_up()?.timeline.0);
        place.finish()?;
        return Ok(plan);
    }
    if place.is_whole() {
        place.finish()?;
        return Ok(plan);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|e| Error::from(e).wrap("cannot start"))?;
    // What is damaged is found before anything is made, so that another backup can be taken.
    let shelf = match is_laid(&place).and_then(|laid| {
        (!laid).then(|| shelf::open(&restore.chain, &fetched).map_err(|e| restore.other(e))).transpose()
    }) {
        Err(e) if e.kind() == ErrorKind::Corrupt => {
            place.discard();
            return Err(e);
        }
        shelf => shelf?,
    };
    place.enter()?;
    let made = restore.make(&place, &runtime, shelf, (goal.cut.lsn, segments.last()), tell, cancel);
    made.map_err(|e| place.broken(e))?;
    if order.leader().is_some() {
        lead::begin(place.state(), &restore.way, goal.cut.lsn, restore.taken)?;
    }
    place.finish()?;
    Ok(plan)
}

impl Restore {
    /// A tar is written down as `spool`, parts are fetched into `fetched`.
    fn new(order: &Order, spool: &Path, fetched: &Path) -> Result<Self> {
        // One that broke off goes on with the backup that it began with, whatever is newer by now.
        let (begun, timeline) = place::begun_with(order)?;
        let mut places = order.logs.clone();
        places.extend(order.from.archive());
        let mut known = Known::of(&places)?;
        let line = timeline.map_or(order.line, Line::Number);
        let wanted = origin::Wanted {
            from: &order.from,
            backup: order.backup.as_deref().or(begun.as_deref()),
            bases: &order.bases,
            target: order.target,
            line,
            spool,
            fetched,
        };
        let opened = origin::open(&wanted, &mut known)?;
        let origin::Opened { chain, passed, others, points, log } = opened;
        let none = || Error::new(ErrorKind::Missing, "there is no backup");
        let set = Arc::clone(chain.first().ok_or_else(none)?);
        set.history()?.into_iter().for_each(|history| known.learn(history));
        let logs = order.logs.iter().cloned().chain(log).collect();
        let m = set.manifest();
        let way = known.way(line, m.system, m.timeline)?;
        way.holds(m.timeline, m.end).map_err(|why| {
            let text = format!(
                "the backup '{}' can't be used: {why}; --target-timeline current follows it",
                m.label
            );
            Error::new(ErrorKind::Refused, text)
        })?;
        let taken = known.highest().max(m.timeline).max(way.timeline());
        Ok(Self { order: order.clone(), chain, set, passed, others, points, logs, way, taken })
    }

    /// A backup that is damaged: which ones could be taken instead.
    fn other(&self, e: Error) -> Error {
        if e.kind() != ErrorKind::Corrupt || self.others.is_empty() {
            return e;
        }
        let others: Vec<String> = self.others.iter().map(|label| format!("--backup {label}")).collect();
        Error::new(e.kind(), format!("{e}: the archive also has {}", others.join(", ")))
    }

    /// Fetches log until the target is found in it.
    fn find(&self, sources: &Sources<'_>, dir: &Path) -> Result<Found> {
        let manifest = self.set.manifest();
        let base = Cut { lsn: manifest.end, time: manifest.end_time };
        let mut search = Search::new(self.order.target, base, manifest.exact)?;
        let leads = self.order.leader().is_some();
        // A leader goes on from the last frame before it begins.
        let start = Lsn(self.set.start().0.saturating_sub(u64::from(leads)));
        let segments = sources.run(start.segment());
        let (from, seen) = (self.set.start(), self.points.clone());
        let mut reading = Reading { dir, from, point: point(self.order.target), seen };
        let (mut rest, mut used, mut end) = (&segments[..], Vec::new(), Lsn::ZERO);
        while !rest.is_empty() {
            // The log of the backup itself is needed in any case.
            let have = used.last().map_or(self.set.start(), |s: &SegmentNo| s.end());
            if search.is_over() && have >= manifest.end && !(leads && used.is_empty()) {
                break;
            }
            let (some, more) = rest.split_at(sources.next(rest));
            rest = more;
            let (whole, fetched) = sources.fetch(some, dir);
            let (good, bad) = some.split_at(whole.min(some.len()));
            used.extend_from_slice(good);
            if let Some(last) = good.last() {
                sources.settle(*last, dir)?;
                let at = (manifest.system, self.way.reads(*last));
                end = logs::end(dir, at.0, at.1)?;
                reading.read(at, end, &mut search)?;
            }
            if let (Err(e), Some(segment)) = (fetched, bad.first()) {
                // One that is damaged may lie behind all that is needed.
                if search.is_over() && end >= manifest.end && !used.is_empty() {
                    break;
                }
                return Err(self.needed(&e, *segment, end.max(manifest.end)));
            }
        }
        if self.set.start() < manifest.end && end < manifest.end {
            let text = format!(
                "log ends at {end}, before the backup itself is whole at {}: give the log behind it with --log",
                manifest.end
            );
            return Err(Error::new(ErrorKind::Missing, text));
        }
        let hole = used.last().map_or(self.set.start().segment(), |s| s.next());
        let beyond = sources.beyond(hole).filter(|_| !search.is_over() && used.len() == segments.len());
        let missing = beyond.map(|next| (hole, SegmentNo(next.0.saturating_sub(1))));
        let goal = search.finish(&reading.seen).map_err(|e| match missing {
            Some(missing) => Error::new(e.kind(), format!("{e}; {}", lacks(missing))),
            None => e,
        })?;
        if let Some(e) = lead::refusal(&self.order, &self.way, goal.cut.lsn, end, used.last()) {
            return Err(e);
        }
        // A target that was reached is before the hole; the newest state is not.
        let missing = missing.filter(|_| self.order.target == Target::Latest);
        self.allows(&goal, missing)?;
        Ok(Found { goal, segments: used, missing })
    }

    /// A restore that ends before a hole, or within a gap of the history, is one that was asked for as such.
    fn allows(&self, goal: &Goal, missing: Option<(SegmentNo, SegmentNo)>) -> Result<()> {
        match (missing, goal.refusal(self.order.target)) {
            (Some(missing), _) if !self.order.allow_gap => {
                let text = format!(
                    "the log has a hole before the newest state: {}; give the log that has them with --log, or give \
                     --allow-gap to have the last exact cut before the hole, {}",
                    lacks(missing),
                    goal.cut
                );
                return Err(Error::new(ErrorKind::Missing, text));
            }
            (Some(missing), _) => tracing::warn!("the restore ends on {}: {}", goal.cut, lacks(missing)),
            (None, Some(e)) if !self.order.allow_gap => return Err(e),
            (None, Some(_)) => {
                tracing::warn!("the target is within a gap of the history: the restore ends on {}", goal.cut);
            }
            (None, None) => {}
        }
        Ok(())
    }

    /// A segment that can't be had whole is needed; before it there is a state up to `end`.
    fn needed(&self, e: &Error, segment: SegmentNo, end: Lsn) -> Error {
        if !matches!(e.kind(), ErrorKind::Corrupt | ErrorKind::Missing) {
            return e.clone();
        }
        let text = format!(
            "{e}; segment {:X} is needed for the target {}: name a node or an archive that has a good copy of it with --log, or \
             a target up to {end}, where what is good ends",
            segment.0, self.order.target
        );
        Error::new(e.kind(), text)
    }

    fn plan(&self, sources: &Sources<'_>, found: &Found) -> Result<Plan> {
        let (goal, segments) = (found.goal, &found.segments[..]);
        let manifest = self.set.manifest();
        let catalog = gather::catalog(&self.set)?;
        let files = catalog.inodes().filter(|i| i.kind == crate::record::Kind::File);
        let (files, bytes) = files.fold((0, 0_u64), |(n, b), i| (n + 1, b.saturating_add(i.size)));
        let standing = place::standing(&self.order)?;
        let extra = standing.map(|dir| extra::find(&dir, &catalog)).transpose()?;
        let moment = |time| crate::moment::Moment(time).to_string();
        let name = |s: &SegmentNo| crate::segment::file_name(self.way.timeline_of(*s), *s, false);
        Ok(Plan {
            label: manifest.label.clone(),
            chain: self.chain.iter().skip(1).map(|s| s.manifest().label.clone()).collect(),
            passed: self.passed.clone(),
            form: manifest.form.word(),
            system: manifest.system.to_string(),
            timeline: manifest.timeline.0,
            target_timeline: self.way.timeline().0,
            new_timeline: self.order.leader().is_some().then(|| self.taken.0.saturating_add(1)),
            base: manifest.end.to_string(),
            base_time: moment(manifest.end_time),
            target: self.order.target.to_string(),
            lsn: goal.cut.lsn.to_string(),
            time: moment(goal.cut.time),
            gap: goal.gap.is_some(),
            missing: found.missing.as_ref().map(|(a, b)| (name(a), name(b))),
            log: segments.first().zip(segments.last()).map(|(a, b)| (name(a), name(b))),
            log_bytes: sources.bytes(segments),
            files,
            bytes,
            pack_bytes: self.chain.iter().flat_map(|s| s.packs()).map(|p| p.size).sum(),
            free_bytes: disk::free_bytes(place::existing(&self.order.out))?,
            goes: extra.as_ref().map(|e| e.count),
            goes_first: extra.map(|e| e.first).unwrap_or_default(),
            out: self.order.out.clone(),
        })
    }

    /// Lays out the base, unless that was done, and replays to the goal.
    fn make(
        &self,
        place: &Place,
        runtime: &tokio::runtime::Runtime,
        shelf: Option<Arc<dyn fill::Shelf>>,
        (goal, last): (Lsn, Option<&SegmentNo>),
        tell: &Tell,
        cancel: &CancellationToken,
    ) -> Result<()> {
        let root = Arc::new(Root::open(place.work()).map_err(|e| Error::io("open", place.work(), e))?);
        if let Some(shelf) = shelf {
            let laid = runtime.block_on(self.lay(place, &root, shelf, tell, cancel));
            laid.map_err(|e| self.other(e))?;
        }
        lead::follow(place.state(), &self.way, last.copied())?;
        runtime.block_on(replay::run(&root, place.state(), goal, cancel))
    }

    async fn lay(
        &self,
        place: &Place,
        root: &Arc<Root>,
        shelf: Arc<dyn fill::Shelf>,
        tell: &Tell,
        cancel: &CancellationToken,
    ) -> Result<()> {
        let manifest = self.set.manifest();
        let tell = Arc::clone(tell);
        let layout = Layout {
            root: Arc::clone(root),
            state: Arc::clone(place.state()),
            shelf,
            system: manifest.system,
            timeline: manifest.timeline,
            start: self.set.start(),
            end: manifest.end,
            equalize: place.is_delta(),
            cloning: self.order.cloning,
            progress: Box::new(move |p| tell(p)),
        };
        fill::lay(Arc::new(layout), cancel.clone()).await
    }
}

/// Whether the base is laid out already.
fn is_laid(place: &Place) -> Result<bool> {
    let fill = place.state().set_up()?.fill;
    Ok(matches!(fill, crate::state::FillState::Filled { .. } | crate::state::FillState::Done))
}

fn point(target: Target) -> Option<PointName> {
    match target {
        Target::Point(name) => Some(name),
        _ => None,
    }
}

/// Goes through the commits of a log that grows.
struct Reading<'a> {
    dir: &'a Path,
    /// What is before was read.
    from: Lsn,
    point: Option<PointName>,
    /// Restore points on the way.
    seen: Seen,
}

impl Reading<'_> {
    /// Up to `end` of the log, which goes to that timeline.
    fn read(&mut self, at: (SystemId, TimelineId), end: Lsn, search: &mut Search) -> Result<()> {
        let (system, timeline) = at;
        if search.is_over() {
            return Ok(());
        }
        let mut reader = FrameReader::open(self.dir, system, timeline, self.from)?;
        while let Some(frame) = reader.next(end)? {
            self.from = frame.end;
            if frame.flags & flags::ENDS == 0 || frame.flags & flags::ABORT != 0 {
                continue;
            }
            let exact = frame.flags & flags::EXACT != 0;
            let at = Cut { lsn: frame.end, time: 0 };
            let mut commit = Commit { at, exact, point: false, gap_begins: false, gap_ends: false };
            for record in Records::new(&frame.raw) {
                match record?.1 {
                    Record::Commit(c) => {
                        (commit.at.time, commit.exact) = (c.time, c.cut == Quality::Exact);
                    }
                    Record::Gap { end: true, .. } => commit.gap_ends = true,
                    Record::Gap { end: false, .. } => commit.gap_begins = true,
                    Record::RestorePoint { name, .. } => {
                        commit.point |= self.point.is_some_and(|p| p.as_bytes() == name);
                        if self.point.is_some() {
                            self.seen.see(name);
                        }
                    }
                    _ => {}
                }
            }
            search.commit(commit)?;
            if search.is_over() {
                return Ok(());
            }
        }
        search.is_whole_to(end);
        Ok(())
    }
}

/// The target of the engine.
fn stop_at(goal: Lsn) -> StopAt {
    StopAt::Lsn(goal)
}
