//! The patrol: a slow walk over the directory that notices what somebody else did to it, so that a local edit
//! shows up in `status` within minutes, not when the leader's next change of that file meets it.
//!
//! At rest a few entries are compared with the catalog, again and again: 250 a second at most, which is
//! about 0.1 % of a core; 100,000 entries take seven minutes. Small trees rest 5 s between two rounds.
//! Seen are names that are not the leader's, names that are gone or are something else, sizes, times, modes,
//! owners, extended attributes and ACLs. With [`LocalEdits::Refuse`] they are reported, and apply goes on until it would have to change what was
//! edited. With [`LocalEdits::Overwrite`] the whole directory is compared as at a start and the edits are undone,
//! unless contents are among them: those only the leader can give back, which ends apply if that is allowed to happen.

use std::collections::{BTreeSet, VecDeque};
use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use crate::catalog::{Catalog, Inode};
use crate::error::Result;
use crate::position::FileId;
use crate::record::{Attrs, Kind};
use crate::sys::{self, STAGE_DIR, Stat};

use super::LocalEdits;
use super::engine::Running;
use super::labels::LABELS_CHANGED;
use super::site::{Site, diverged, same_inode};

/// Entries compared at once.
const SLICE: usize = 100;
/// From one slice to the next, at least. Unit tests don't wait.
const EVERY: Duration = Duration::from_millis(if cfg!(test) { 2 } else { 400 });
/// From the beginning of a round to the next, at least.
const ROUND: Duration = Duration::from_millis(if cfg!(test) { 10 } else { 5_000 });
/// The same after a round that found what had to be undone.
const ROUND_UNDONE: Duration = Duration::from_millis(if cfg!(test) { 10 } else { 60_000 });
/// Most edits remembered, so that each is told once.
const TOLD_MAX: usize = 1000;

/// A directory on the way.
struct Listing {
    dir: FileId,
    fd: OwnedFd,
    names: VecDeque<CString>,
    /// Names found that are the leader's.
    matched: usize,
    /// Batches applied when it began: a count is good only if there were none meanwhile.
    batches: u64,
}

/// Where the walk is.
pub(super) struct Patrol {
    pending: Vec<FileId>,
    at: Option<Listing>,
    /// When the next slice is due.
    next: Instant,
    began: Instant,
    /// Paths of edits told in the round before, and found in this one.
    told: BTreeSet<Vec<u8>>,
    found: BTreeSet<Vec<u8>>,
    /// A batch came between: what is missing was not looked for everywhere.
    unsure: bool,
}

/// One thing that is not as the catalog says.
struct Edit {
    path: Vec<u8>,
    what: &'static str,
}

impl Patrol {
    pub(super) fn new() -> Self {
        let now = Instant::now();
        Self {
            pending: vec![FileId::ROOT],
            at: None,
            next: now + EVERY,
            began: now,
            told: BTreeSet::new(),
            found: BTreeSet::new(),
            unsure: false,
        }
    }

    pub(super) fn due_in(&self) -> Duration {
        self.next.saturating_duration_since(Instant::now())
    }

    fn again(&mut self, pause: Duration) {
        (self.pending, self.at) = (vec![FileId::ROOT], None);
        self.next = (self.began + pause).max(Instant::now() + EVERY);
        self.began = self.next;
    }

    /// Compares the next entries. True: the round has ended.
    fn slice(&mut self, site: &Site, catalog: &Catalog, batches: u64, edits: &mut Vec<Edit>) -> bool {
        let mut left = SLICE;
        while left > 0 {
            left -= 1;
            let Some(listing) = &mut self.at else {
                let Some(dir) = self.pending.pop() else { return true };
                self.at = open(site, catalog, dir, batches);
                continue;
            };
            if let Some(name) = listing.names.pop_front() {
                if let Some(below) = listing.compare(site, catalog, &name, edits) {
                    self.pending.push(below);
                }
                continue;
            }
            let names = &mut listing.names;
            let more = sys::list_more(&listing.fd, |name| names.push_back(name.to_owned()));
            if !more.unwrap_or(false) {
                self.unsure |= listing.batches != batches;
                if listing.batches == batches && listing.matched < catalog.child_count(listing.dir) {
                    listing.missing(catalog, edits);
                }
                self.at = None;
            }
        }
        false
    }
}

/// A directory that can't be opened is for its parent to show, and for apply to meet.
fn open(site: &Site, catalog: &Catalog, dir: FileId, batches: u64) -> Option<Listing> {
    let path = catalog.path(dir)?;
    let fd = site.root.open_dir(&path).ok()?;
    Some(Listing { dir, fd, names: VecDeque::new(), matched: 0, batches })
}

fn path_of(catalog: &Catalog, dir: FileId, name: &[u8]) -> Vec<u8> {
    let mut path = catalog.path(dir).unwrap_or_default();
    if !path.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(name);
    path
}

impl Listing {
    /// Compares one name. Returns the directory that it is, if it is one of the leader's.
    fn compare(
        &mut self,
        site: &Site,
        catalog: &Catalog,
        name: &CString,
        edits: &mut Vec<Edit>,
    ) -> Option<FileId> {
        let bytes = name.to_bytes();
        if self.dir == FileId::ROOT && bytes == STAGE_DIR {
            return None;
        }
        // Listed before a batch, it may be gone by now.
        let stat = sys::stat_at_c(&self.fd, name).ok().flatten()?;
        let mut edit = |what| edits.push(Edit { path: path_of(catalog, self.dir, bytes), what });
        let Some(id) = catalog.lookup(self.dir, bytes) else {
            // What is excluded is nobody's business here.
            let path = path_of(catalog, self.dir, bytes);
            if !catalog.excludes().matcher().is_ok_and(|m| m.matches(&path)) {
                edit("it was created here");
            }
            return None;
        };
        self.matched += 1;
        let inode = catalog.get(id)?;
        let Some(seen) = inode.seen else {
            edit("it was created here");
            return None;
        };
        if stat.local.dev != seen.local.dev {
            return None;
        }
        if inode.kind != stat.kind || !same_inode(&seen.local, &stat.local) {
            edit("it was replaced by something else");
            return None;
        }
        if seen.ctime != stat.ctime
            && let Some(what) = changed(site, &inode, &stat, &self.fd, bytes)
        {
            edit(what);
        }
        (inode.kind == Kind::Dir).then_some(id)
    }

    /// Fewer names are here than the leader has.
    fn missing(&self, catalog: &Catalog, edits: &mut Vec<Edit>) {
        for (name, id) in catalog.children(self.dir) {
            // The inode number of what was removed may be another file's by now: only a device can be kept back.
            let kept_back = catalog.get(id).is_none_or(|i| i.seen.is_none() && i.rdev != 0);
            if !kept_back && matches!(sys::stat_at(&self.fd, name), Ok(None)) {
                edits.push(Edit { path: path_of(catalog, self.dir, name), what: "it was removed" });
            }
        }
    }
}

/// What of an inode is not what apply left there. A change time alone, as of a new hard link, is no edit.
fn changed(site: &Site, inode: &Inode<'_>, stat: &Stat, dir: &OwnedFd, name: &[u8]) -> Option<&'static str> {
    let mtime = stat.attrs.mtime != inode.attrs.mtime;
    if inode.kind == Kind::File && (stat.size != inode.size || mtime) {
        return Some("its size or modification time changed");
    }
    if mode_or_owner(site, stat, &inode.attrs) {
        return Some("its mode or owner changed");
    }
    site.labels.changed(dir, name, inode).then_some(LABELS_CHANGED)
}

/// Whether mode or owner are not what apply gives an inode of these attributes.
pub(super) fn mode_or_owner(site: &Site, stat: &Stat, want: &Attrs) -> bool {
    let have = &stat.attrs;
    let owner = site.me.0 == 0 && (have.uid, have.gid) != (want.uid, want.gid);
    let mode = stat.kind != Kind::Symlink && have.mode != sys::mode_here(stat.kind, want, have, site.me.0);
    owner || mode
}

impl Running {
    /// Compares a few entries when that is due. Called at rest on a cut.
    pub(super) fn patrol(&mut self) -> Result<()> {
        // What a crash made doubtful is compared first.
        if !self.patrol.due_in().is_zero() || !self.site.later.is_empty() {
            return Ok(());
        }
        self.patrol.next = Instant::now() + EVERY;
        let batches = self.site.stats().batches;
        let mut edits = Vec::new();
        let ended = {
            let catalog = self.site.catalog.read().unwrap_or_else(PoisonError::into_inner);
            self.patrol.slice(&self.site, &catalog, batches, &mut edits)
        };
        let patrol = &self.patrol;
        let new: Vec<bool> =
            edits.iter().map(|e| !patrol.told.contains(&e.path) && !patrol.found.contains(&e.path)).collect();
        if self.site.local_edits == LocalEdits::Overwrite && new.contains(&true) {
            // Not at rest meanwhile.
            self.shared.lock().resting = false;
            let undone = self.undo()?;
            self.shared.rest();
            if undone {
                self.patrol.again(ROUND_UNDONE);
                return Ok(());
            }
            if self.repairs
                && let Some((edit, _)) = edits.iter().zip(new).find(|(_, new)| *new)
            {
                self.site.report(&edit.path, edit.what);
                return Err(diverged(&edit.path, "or something else here was changed or removed"));
            }
        }
        for edit in edits {
            let patrol = &mut self.patrol;
            let new = !patrol.told.contains(&edit.path) && !patrol.found.contains(&edit.path);
            if patrol.found.len() < TOLD_MAX {
                patrol.found.insert(edit.path.clone());
                if new {
                    self.site.report(&edit.path, edit.what);
                }
            }
        }
        if ended {
            let patrol = &mut self.patrol;
            let found = std::mem::take(&mut patrol.found);
            if std::mem::take(&mut patrol.unsure) {
                patrol.told.extend(found);
            } else {
                patrol.told = found;
            }
            self.patrol.again(ROUND);
            let mut stats = self.site.stats();
            stats.patrols += 1;
            stats.local_edits_standing = self.patrol.told.len() as u64;
        }
        Ok(())
    }
}
