//! A pass: from a set of hints to one change set.
//!
//! ```text
//!  mark 1, D -> round 1: examine D -> mark 2, D' -> is everything examined as it was at mark 1?
//!                    ^                               yes: commit, the cut is exact; D' is for the next pass
//!                    +----- D := D' + what is not ------ no, until the patience ends: commit, the cut is of files
//! ```
//!
//! Why a cut is exact. All that happened before mark k is either in the catalog, or had its event before
//! the mark and was examined. What was examined in round k is as it was at mark k when its change time is older
//! than the mark's; or when an earlier round saw the same stamps, because a mark lies between; a
//! name, when its directory's change time is older, or no event came for it up to mark k+1. What was examined in
//! an earlier round and had no event since is as it was then. An operation that is under way
//! while we look stamps the inode first and makes its event last, so that a name that is gone without an event, and stamps
//! that are younger than the mark without one, call for another look.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::{Duration, Instant};

use super::clones::ClonedFiles;
use super::engine::{Engine, read};
use super::hints::{Batch, HALF_AGE, HALF_SURE, Paths, flag};
use super::journal::Journal;
use super::stage::{Proof, Stage};
use super::watch::Mark;
use crate::catalog::Catalog;
use crate::error::Result;
use crate::failpoint;
use crate::position::{Cut, FileId, Lsn};
use crate::quiesce::Held;
use crate::record::Time;

use super::commit::Repair;

/// Rounds of a pass, whatever the clock says.
const ROUNDS_MAX: u32 = 200;
/// A pause before a look that waits for an event on its way.
const ON_ITS_WAY: Duration = Duration::from_micros(300);
/// Passes in a row in which a file has to be unstable to be given no more patience.
pub(super) const HOPELESS: u32 = 2;
/// Longest time in a row that halves of renames put exact cuts off.
const TORN_MAX: Duration = Duration::from_secs(2);
/// The same where the other half came, and the file is not there.
const MOVES_MAX: Duration = Duration::from_secs(10);
/// Least patience when cuts keep failing.
const PATIENCE_MIN: Duration = Duration::from_millis(20);

/// A pass under way.
pub(super) struct Pass {
    pub(super) stage: Stage,
    pub(super) journal: Journal,
    pub(super) mark: Mark,
    /// The application is held still.
    pub(super) still: bool,
    /// Files to be read when it runs on.
    pub(super) clones: ClonedFiles,
    /// What was known, while it was still, of the files that this pass takes away.
    loss: Option<Loss>,
    next_id: u64,
    /// All hints so far.
    hints: Paths,
    /// Directories to be watched and listed; true: with all that is below.
    pub(super) walks: Vec<(Vec<u8>, FileId, bool)>,
    /// Directories that are not watched are part of this pass.
    pub(super) with_missing: bool,
    /// Inodes of which all names are to be looked at.
    pub(super) others: BTreeSet<FileId>,
    /// Directories whose names changed in this round.
    pub(super) touched: BTreeSet<FileId>,
    /// Change times of directories, looked at after their names.
    pub(super) dirs: HashMap<FileId, Time>,
    /// Paths to look at in the next round.
    pub(super) again: BTreeSet<Box<[u8]>>,
    /// Names found gone in this round.
    pub(super) left: BTreeSet<Box<[u8]>>,
    /// Names found gone in any round.
    pub(super) went: BTreeSet<Box<[u8]>>,
    /// Names looked at on the way in this round.
    pub(super) probed: HashSet<Box<[u8]>>,
    /// Inodes looked at in this round, with their change time.
    pub(super) looked: HashMap<FileId, Time>,
    /// Paths that stay dirty after this pass.
    dirty: BTreeSet<Box<[u8]>>,
    /// Files whose forced blocks are in the journal.
    pub(super) forced_done: BTreeSet<FileId>,
    /// Paths that differed when a scan or a poll named them, before any event did.
    pub(super) scanned: BTreeSet<Box<[u8]>>,
    /// Time spent reading contents.
    pub(super) reading: Duration,
    /// Since when events are waited for that explain names that are gone.
    waiting: Option<Instant>,
}

impl Pass {
    /// A pass that has found nothing yet.
    pub(super) fn new(journal: Journal, next_id: FileId) -> Self {
        Self {
            stage: Stage::default(),
            journal,
            mark: Mark::NONE,
            still: false,
            clones: ClonedFiles::new(),
            loss: None,
            next_id: next_id.0,
            hints: Paths::new(),
            walks: Vec::new(),
            with_missing: false,
            others: BTreeSet::new(),
            touched: BTreeSet::new(),
            dirs: HashMap::new(),
            again: BTreeSet::new(),
            left: BTreeSet::new(),
            went: BTreeSet::new(),
            probed: HashSet::new(),
            looked: HashMap::new(),
            dirty: BTreeSet::new(),
            forced_done: BTreeSet::new(),
            scanned: BTreeSet::new(),
            reading: Duration::ZERO,
            waiting: None,
        }
    }

    /// Makes it ready for the next pass.
    pub(super) fn reset(&mut self) {
        self.stage = Stage::default();
        self.hints = Paths::new();
        self.dirty.clear();
        self.forced_done.clear();
        self.scanned.clear();
        (self.reading, self.waiting) = (Duration::ZERO, None);
        (self.clones, self.loss) = (ClonedFiles::new(), None);
        self.walks.clear();
        self.with_missing = false;
        self.others.clear();
        self.touched.clear();
        self.again.clear();
        self.went.clear();
    }

    /// A new file id. Those of a pass that is dropped are not used again.
    pub(super) fn allocate(&mut self) -> FileId {
        let id = FileId(self.next_id);
        self.next_id += 1;
        id
    }

    pub(super) fn begin_round(&mut self) {
        self.stage.round += 1;
        self.probed.clear();
        self.looked.clear();
        self.left.clear();
        self.dirs.clear();
    }

    /// How many differences only a scan or a poll showed.
    pub(super) fn found_by_scan(&self) -> u64 {
        untold(&self.scanned, &self.hints)
    }

    /// The path is looked at again in the next pass, and the cut is not exact.
    pub(super) fn keep_dirty(&mut self, rel: &[u8]) {
        self.dirty.insert(rel.into());
    }
}

/// How a pass ended.
#[derive(Debug)]
pub(super) enum Ended {
    /// A change set was committed, up to here.
    Committed(Lsn, Cut),
    /// There was nothing to commit; the cut says how sure that is.
    Nothing(Cut),
    /// A guard holds; the text says which.
    Held(String),
}

/// What is known of a file that is at no name that was looked at.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Loss {
    /// It was removed, or left the tree.
    Sure,
    /// It may still turn up.
    Perhaps,
    /// It got another name in the tree, and is not there any more.
    Moves,
}

/// What a verdict on a round says.
enum Verdict {
    Exact,
    /// These have to be looked at again. `event`: an event is on its way.
    Again {
        todo: Paths,
        event: bool,
    },
}

impl Engine {
    /// One pass over `batch` and all that comes meanwhile. `repair`: what the pass makes good.
    pub(super) fn pass(&mut self, batch: Batch, repair: Repair) -> Result<Ended> {
        let began = Instant::now();
        let skipped = !self.resting.is_empty();
        let (cut, fresh) = match self.rounds(batch.paths, began) {
            Ok(result) => result,
            Err(e) => {
                // The directory may just have been taken away; the guards say more about that.
                self.pass.journal.abort()?;
                return Err(e);
            }
        };
        let blind = self.watch.missing_count() > 0 && !(self.pass.with_missing && self.fs.fine);
        let torn = self.torn();
        let loose = torn || skipped || !self.pass.dirty.is_empty() || blind || self.scan_wanted;
        let cut = if loose { Cut::File } else { cut };
        // Events were lost while we looked: a gap that was to end here goes on.
        self.scan_wanted |= fresh.gap.is_some();
        let repair = match repair {
            Repair::Ends(_) if self.scan_wanted => Repair::None,
            other => other,
        };
        failpoint::pass("capture::after_examine")?;
        let ended = self.commit(cut, repair)?;
        if let Ended::Held(_) = ended {
            // Everything is looked at again while it holds.
            self.pass.journal.abort()?;
            let hints = std::mem::take(&mut self.pass.hints);
            let paths = hints.into_iter().map(|(path, flags)| (path, flags | flag::AGAIN)).collect();
            self.hints.put_back(Batch { paths, gap: None });
        }
        self.hints.put_back(fresh);
        for path in std::mem::take(&mut self.pass.dirty) {
            self.rest(&path);
            self.hints.add(&path, flag::MODIFIED);
        }
        Ok(ended)
    }

    /// Rounds until the cut is exact or the patience ends. Returns what came too late for this pass.
    fn rounds(&mut self, paths: Paths, began: Instant) -> Result<(Cut, Batch)> {
        let patience = (self.options.max_cut_delay / 2_u32.pow(self.failures.min(5))).max(PATIENCE_MIN);
        let mut todo = paths;
        loop {
            self.join_callers();
            // The mark is on its way while we look; what came before it and is not in `todo` is looked at after.
            let mark = self.marks.make()?;
            self.pass.mark = mark;
            self.remember(&todo);
            self.round(&todo)?;
            let marked = self.marks.wait(&mark)?;
            let mut fresh = self.hints.take();
            self.resting.leave(&mut fresh.paths, Instant::now());
            self.remember(&fresh.paths);
            self.look(&fresh.paths)?;
            if marked && fresh.gap.is_none() && self.proven() {
                return Ok((Cut::Exact, Batch::default()));
            }
            let recent = self.events_since(&mut fresh)?;
            let verdict = if marked { self.verdict(&recent) } else { Verdict::Again { todo, event: false } };
            let Verdict::Again { todo: left, event } = verdict else {
                return Ok((if fresh.gap.is_none() { Cut::Exact } else { Cut::File }, fresh));
            };
            let over = began.elapsed() >= patience || self.pass.stage.round >= ROUNDS_MAX;
            if fresh.gap.is_some() || over || self.hopeless(&left) {
                if fresh.gap.is_none() && self.may_hold() {
                    return self.held_round(left, fresh);
                }
                self.note_unstable(left);
                return Ok((Cut::File, fresh));
            }
            if event {
                std::thread::sleep(ON_ITS_WAY);
            }
            todo = left;
            merge(&mut todo, fresh.paths);
        }
    }

    /// Where stamps don't prove all, events have to: all of those up to now. `fresh` had the events that came
    /// during the round and were looked at; it takes those that were not. Returns both.
    fn events_since(&mut self, fresh: &mut Batch) -> Result<Paths> {
        let mut recent = std::mem::take(&mut fresh.paths);
        if self.pass.left.is_empty() && !self.unproven_names() && self.fs.fine {
            return Ok(recent);
        }
        self.marks.drain()?;
        let more = self.hints.take();
        fresh.gap = fresh.gap.or(more.gap);
        fresh.paths = more.paths;
        self.resting.leave(&mut fresh.paths, Instant::now());
        merge(&mut recent, fresh.paths.clone());
        Ok(recent)
    }

    /// Whether names were examined in directories that changed after the mark.
    fn unproven_names(&self) -> bool {
        let pass = &self.pass;
        let round = pass.stage.round;
        pass.stage.names.iter().any(|(dir, names)| {
            pass.dirs.get(dir).is_none_or(|&ctime| ctime >= pass.mark.time)
                && names.values().any(|named| named.round == round)
        })
    }

    /// The last round, while the application is held still; large files are cloned in it, and read after.
    fn held_round(&mut self, left: Paths, fresh: Batch) -> Result<(Cut, Batch)> {
        let mut quiesce = std::mem::take(&mut self.quiesce);
        let result = self.round_in_hold(quiesce.as_mut(), left, fresh);
        self.quiesce = quiesce;
        result
    }

    fn round_in_hold(
        &mut self,
        quiesce: Option<&mut crate::quiesce::Quiesce>,
        left: Paths,
        fresh: Batch,
    ) -> Result<(Cut, Batch)> {
        let Some(quiesce) = quiesce else { return Ok((Cut::File, fresh)) };
        self.write_back(&left, &fresh.paths)?;
        let result = self.look_in_hold(quiesce, left, fresh);
        self.notes.froze(quiesce.last());
        let result = result?;
        failpoint::pass("capture::thawed")?;
        self.read_clones()?;
        Ok(result)
    }

    /// Looks while the application is held, and lets it go.
    fn look_in_hold(
        &mut self,
        quiesce: &mut crate::quiesce::Quiesce,
        left: Paths,
        fresh: Batch,
    ) -> Result<(Cut, Batch)> {
        let began = Instant::now();
        let held = match quiesce.hold() {
            Ok(held) => held,
            Err(e) => {
                self.clones.end(false);
                self.notes.freeze_failures += 1;
                if self.notes.freeze_failures == 1 {
                    tracing::error!("the application can't be held still for a cut: {e}");
                }
                self.note_unstable(left);
                return Ok((Cut::File, fresh));
            }
        };
        self.notes.freezes += 1;
        self.pass.still = true;
        let result = self.still_rounds(&held, left, fresh);
        self.pass.still = false;
        // Renames that come later say nothing of the instant of this cut.
        self.pass.loss = Some(self.worst_loss());
        self.clones.end(held.left().is_zero());
        drop(held);
        // The application has its time back before it is held again.
        self.next_hold = Instant::now() + self.options.max_cut_delay.max(began.elapsed() * 4);
        result
    }

    fn still_rounds(&mut self, held: &Held<'_>, left: Paths, fresh: Batch) -> Result<(Cut, Batch)> {
        let mut todo = left;
        merge(&mut todo, fresh.paths);
        let mut gap = fresh.gap;
        loop {
            self.pass.mark = self.marks.drain()?;
            let more = self.hints.take();
            merge(&mut todo, more.paths);
            gap = gap.or(more.gap);
            self.remember(&todo);
            self.round(&todo)?;
            self.marks.drain()?;
            let fresh = self.hints.take();
            let fresh = Batch { gap: gap.or(fresh.gap), paths: fresh.paths };
            let still = held.intact() && fresh.gap.is_none();
            match self.verdict(&fresh.paths) {
                Verdict::Exact if still => return Ok((Cut::Exact, fresh)),
                Verdict::Again { todo: left, .. } if still => {
                    todo = left;
                    merge(&mut todo, fresh.paths);
                }
                Verdict::Exact => return Ok((Cut::File, fresh)),
                Verdict::Again { todo: left, .. } => {
                    self.note_unstable(left);
                    return Ok((Cut::File, fresh));
                }
            }
        }
    }

    fn may_hold(&self) -> bool {
        self.quiesce.as_ref().is_some_and(crate::quiesce::Quiesce::configured)
            && Instant::now() >= self.next_hold
    }

    fn remember(&mut self, paths: &Paths) {
        for (path, flags) in paths {
            match self.pass.hints.get_mut(path) {
                Some(have) => *have |= flags,
                None => {
                    self.pass.hints.insert(path.clone(), *flags);
                }
            }
        }
    }

    /// Whether the stamps alone prove that all that was examined is as it was at the mark, so that no event has to
    /// be waited for.
    fn proven(&self) -> bool {
        let pass = &self.pass;
        let round = pass.stage.round;
        pass.left.is_empty()
            && pass.again.is_empty()
            && !pass.with_missing
            && pass.stage.inodes.values().all(|s| s.round != round || s.proof == Proof::Proven)
            && !self.unproven_names()
    }

    /// Whether all that was examined is as it was at the mark before.
    fn verdict(&mut self, fresh: &Paths) -> Verdict {
        let round = self.pass.stage.round;
        let mut todo: Paths =
            std::mem::take(&mut self.pass.again).into_iter().map(|path| (path, flag::AGAIN)).collect();
        for staged in self.pass.stage.inodes.values().filter(|s| s.round == round) {
            let flags = match staged.proof {
                Proof::Proven => continue,
                // With coarse stamps all that is young looks late; there only an event counts.
                Proof::Late if !self.fs.fine && !fresh.contains_key(&staged.path) => continue,
                Proof::Late => flag::AGAIN,
                Proof::Unstable => flag::MODIFIED,
            };
            *todo.entry(staged.path.clone()).or_default() |= flags;
        }
        self.unsure_names(fresh, &mut todo);
        self.unsure_missing(&mut todo);
        let event = self.unexplained(fresh, &mut todo);
        if todo.is_empty() { Verdict::Exact } else { Verdict::Again { todo, event } }
    }

    /// Names in directories that changed after the mark, if an event came for them.
    fn unsure_names(&self, fresh: &Paths, todo: &mut Paths) {
        if fresh.is_empty() {
            return;
        }
        let catalog = read(&self.catalog);
        for (dir, names) in &self.pass.stage.names {
            if self.pass.dirs.get(dir).is_some_and(|&ctime| ctime < self.pass.mark.time) {
                continue;
            }
            let round = self.pass.stage.round;
            if !names.values().any(|named| named.round == round) {
                continue;
            }
            let Some(rel) = self.pass.stage.path(&catalog, *dir) else { continue };
            for (name, _) in names.iter().filter(|(_, named)| named.round == round) {
                let path = super::examine::join(&rel, name);
                if let Some(flags) = fresh.get(&*path).filter(|&f| f & (flag::ARRIVED | flag::LEFT) != 0) {
                    *todo.entry(path.into()).or_default() |= flags;
                }
            }
        }
    }

    /// Directories without a watch that changed after the mark: no event says of which names.
    fn unsure_missing(&self, todo: &mut Paths) {
        if !self.pass.with_missing {
            return;
        }
        let catalog = read(&self.catalog);
        for rel in self.watch.missing() {
            if let Ok(id) = self.pass.stage.resolve(&catalog, &rel)
                && self.pass.dirs.get(&id).is_none_or(|&ctime| ctime >= self.pass.mark.time)
            {
                todo.insert(rel, flag::AGAIN);
            }
        }
    }

    /// Names that are gone while no event said so, or whose other half has not come: true when there are some.
    fn unexplained(&mut self, fresh: &Paths, todo: &mut Paths) -> bool {
        if self.pass.left.is_empty() || self.pass.waiting.is_some_and(|t| t.elapsed() > HALF_AGE) {
            return false;
        }
        let catalog = read(&self.catalog);
        let arrivals = fresh.values().any(|flags| flags & flag::TO != 0);
        let mut found = false;
        for path in &self.pass.left {
            let flags = self.pass.hints.get(path).copied().unwrap_or(0);
            let explained = flags & flag::LEFT != 0 || fresh.get(path).is_some_and(|f| f & flag::LEFT != 0);
            let half = flags & flag::FROM != 0 && (arrivals || self.hints.half_gone(path));
            if explained && !half {
                continue;
            }
            let (parent, name) = super::examine::split(path);
            let dir = self.pass.stage.resolve(&catalog, parent);
            let was = dir.ok().and_then(|dir| catalog.lookup(dir, name));
            if was.is_some_and(|id| !self.pass.stage.reached(&catalog, id)) {
                todo.insert(path.clone(), flag::AGAIN);
                found = true;
            }
        }
        if found {
            self.pass.waiting.get_or_insert_with(Instant::now);
        }
        found
    }

    /// Whether a file that this pass takes away, or one shortly before did, may have another name in the tree of
    /// which no event has come yet. Files that go all the time don't put exact cuts off for longer than
    /// [`TORN_MAX`], or [`MOVES_MAX`] where they are known to move about in the tree.
    fn torn(&mut self) -> bool {
        let now = Instant::now();
        let loss = self.pass.loss.unwrap_or_else(|| self.worst_loss());
        if loss != Loss::Sure {
            let since = self.torn.map_or(now, |(since, _)| since);
            self.torn = Some((since, now + HALF_SURE));
        }
        let longest = if loss == Loss::Moves { MOVES_MAX } else { TORN_MAX };
        let open = self.torn.is_some_and(|(since, until)| now < until && now - since < longest);
        if !open {
            self.torn = None;
        }
        open
    }

    /// A file went to the name `to` and is not there now.
    fn loss_at(&self, catalog: &Catalog, to: &[u8]) -> Loss {
        let (parent, name) = super::examine::split(to);
        let dir = self.pass.stage.resolve(catalog, parent).ok();
        let replaced = dir.is_some_and(|dir| self.pass.stage.lookup(catalog, dir, name).is_some());
        let flags = self.pass.hints.get(to).copied().unwrap_or(0);
        match flags & (flag::REMOVED | flag::FROM) {
            0 if replaced => Loss::Sure,
            flag::REMOVED => Loss::Sure,
            _ => Loss::Moves,
        }
    }

    /// What is known of the files that this pass takes away.
    fn worst_loss(&self) -> Loss {
        let catalog = read(&self.catalog);
        let stage = &self.pass.stage;
        let gone = |path: &[u8]| {
            let (parent, name) = super::examine::split(path);
            let dir = stage.resolve(&catalog, parent).ok();
            let was = dir.and_then(|dir| catalog.lookup(dir, name));
            was.is_some_and(|id| !stage.reached(&catalog, id))
        };
        let losses = self.pass.went.iter().map(|path| {
            let flags = self.pass.hints.get(path).copied().unwrap_or(0);
            if flags & (flag::REMOVED | flag::FROM) == flag::REMOVED || !gone(path) {
                return Loss::Sure;
            }
            match (self.hints.half_age(path), self.hints.went_to(path)) {
                (Some(age), _) if age >= HALF_SURE => Loss::Sure,
                (None, Some(to)) if flags & flag::FROM != 0 => self.loss_at(&catalog, &to),
                _ => Loss::Perhaps,
            }
        });
        losses.max().unwrap_or(Loss::Sure)
    }

    /// Whether nothing is left but files that were never at rest in the passes before.
    fn hopeless(&self, left: &Paths) -> bool {
        !left.is_empty()
            && left.iter().all(|(path, flags)| {
                flags & flag::MODIFIED != 0 && self.unstable.get(path).is_some_and(|&n| n >= HOPELESS)
            })
    }

    /// What is left when the patience ends is for the next pass.
    fn note_unstable(&mut self, left: Paths) {
        let before = std::mem::take(&mut self.unstable);
        for (path, flags) in left {
            if flags & flag::MODIFIED != 0 {
                self.notes.unstable += 1;
                self.unstable.insert(path.clone(), before.get(&path).map_or(1, |n| n.saturating_add(1)));
            }
            if flags & flag::MODIFIED != 0 {
                self.pass.dirty.insert(path);
            } else {
                self.hints.add(&path, flags);
            }
        }
    }
}

pub(super) fn merge(into: &mut Paths, from: Paths) {
    if into.is_empty() {
        *into = from;
        return;
    }
    for (path, flags) in from {
        *into.entry(path).or_default() |= flags;
    }
}

/// How many of the paths no event told of. An event that was on its way while a poll saw its file is among the hints by
/// the end of the pass: it came before the mark.
fn untold(scanned: &BTreeSet<Box<[u8]>>, hints: &Paths) -> u64 {
    let told = |path: &[u8]| hints.get(path).is_some_and(|f| f & !(flag::SCAN | flag::AGAIN) != 0);
    scanned.iter().filter(|path| !told(path)).count() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_poll_saw_before_its_event_came_is_not_found_by_scan() {
        let scanned = ["early", "silent", "below"].map(|p| Box::from(p.as_bytes())).into();
        let mut hints: Paths = [("early", flag::SCAN), ("silent", flag::SCAN | flag::AGAIN)]
            .map(|(path, flags)| (Box::from(path.as_bytes()), flags))
            .into();
        assert_eq!(untold(&scanned, &hints), 3);
        merge(&mut hints, [(Box::from(&b"early"[..]), flag::MODIFIED)].into());
        assert_eq!(untold(&scanned, &hints), 2);
    }
}
