//! What capture keeps in order beside its passes: the scan at start, the identity of the root, checkpoints,
//! and what `status` shows.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};
use std::time::{Duration, Instant};

use super::engine::{Engine, read};
use super::scan::Scanner;
use super::{Shared, guard, lock, wall_clock};
use crate::catalog::Catalog;
use crate::checkpoint;
use crate::error::{Error, ErrorKind, Result};
use crate::position::{Cut, FileId, Lsn};
use crate::record::GapReason;
use crate::sys::{self, Root, Stat};

/// Longest wait for the log to be durable before a checkpoint.
const DURABLE_MAX: Duration = Duration::from_secs(30);

/// What was seen that `status` shows.
#[derive(Debug, Default)]
pub(super) struct Notes {
    pub(super) found_by_scan: u64,
    pub(super) unstable: u64,
    pub(super) freezes: u64,
    pub(super) freeze_failures: u64,
    /// The last freeze, and the longest.
    frozen: (Duration, Duration),
    pub(super) freeze_clones: u64,
    pub(super) freeze_read_bytes: u64,
    pub(super) gaps: u64,
    pub(super) cuts: (u64, u64),
    pub(super) last_exact: (Lsn, i64),
    boundaries: BTreeSet<Vec<u8>>,
    /// What can't be looked at now, and why.
    unreadable: BTreeMap<PathBuf, String>,
    /// Of which the log has told.
    told: BTreeSet<PathBuf>,
    refused: Option<String>,
}

/// Most mount points below the root that are remembered by name.
const BOUNDARIES_MAX: usize = 1000;
/// Most paths that can't be read that are remembered.
const UNREADABLE_MAX: usize = 1000;

impl Notes {
    pub(super) fn skip(&mut self, path: &Path, verb: &str, e: &std::io::Error) {
        let text = format!("cannot {verb} '{}': {e}", path.display());
        if self.told.len() < UNREADABLE_MAX && self.told.insert(path.to_owned()) {
            tracing::warn!("{text}; it is not replicated as it is now");
        }
        if self.unreadable.len() < UNREADABLE_MAX {
            self.unreadable.insert(path.to_owned(), text);
        }
    }

    /// A freeze is over.
    pub(super) fn froze(&mut self, time: Duration) {
        self.frozen = (time, self.frozen.1.max(time));
    }

    /// A path is about to be looked at again.
    pub(super) fn looked(&mut self, path: impl FnOnce() -> PathBuf) {
        if !self.unreadable.is_empty() {
            self.unreadable.remove(&path());
        }
    }

    fn unreadable(&self) -> Option<String> {
        let first = self.unreadable.values().next()?;
        let more = self.unreadable.len() - 1;
        Some(if more == 0 { first.clone() } else { format!("{first}; and {more} more") })
    }

    pub(super) fn boundary(&mut self, rel: &[u8]) {
        if self.boundaries.len() < BOUNDARIES_MAX && self.boundaries.insert(rel.to_vec()) {
            tracing::warn!(
                "'{}' is on another file system and is not replicated; run another leader for it",
                rel.escape_ascii()
            );
        }
    }

    pub(super) fn refused(&mut self, path: &Path) {
        let text =
            format!("'{}' folds the case of names, which is not supported; exclude it", path.display());
        if self.refused.as_ref() != Some(&text) {
            tracing::error!("{text}");
            self.refused = Some(text);
        }
    }
}

impl Engine {
    /// Begins to write a checkpoint; a thread of its own ends it.
    pub(super) fn save_checkpoint(&mut self) -> Result<()> {
        self.finish_checkpoint(true)?;
        let lsn = self.read().lsn();
        // The catalog must never be ahead of the log that it was folded from.
        if lsn > Lsn::FIRST && !self.shared.log.wait_durable(lsn, DURABLE_MAX)? {
            let text = "the log is not durable 30 s after a commit; look at its disk";
            return Err(Error::new(ErrorKind::Io, text));
        }
        let prepared = checkpoint::prepare(&self.state.join("catalog"), &lock(&self.shared.fold))?;
        self.watch.prune(|inode| self.read().by_local(self.home.local.dev, inode).is_some());
        self.checkpoint = (lsn, Instant::now(), self.checkpoint.2);
        let work = || {
            let result = prepared.finish();
            // What the passes since the last one have freed.
            sys::raw::give_back_memory();
            result
        };
        // A panic: whoever joins it says so.
        let thread = std::thread::Builder::new().name("checkpoint".to_owned()).spawn(work);
        self.finishing =
            Some(thread.map_err(|e| Error::from(e).wrap("cannot start the thread that writes checkpoints"))?);
        Ok(())
    }

    /// Takes the end of a checkpoint; `wait`: of one that is still being written too.
    pub(super) fn finish_checkpoint(&mut self, wait: bool) -> Result<()> {
        let Some(thread) = self.finishing.take_if(|t| wait || t.is_finished()) else { return Ok(()) };
        match thread.join() {
            Ok(result) => {
                result?;
                self.checkpoint.2 = newest_size(&self.state.join("catalog"));
                Ok(())
            }
            Err(_) => Err(Error::new(ErrorKind::Io, "the thread that writes checkpoints has panicked")),
        }
    }

    /// Shows in `status` what is so now.
    pub(super) fn publish(&self) {
        let (events, overflows) = self.hints.counts();
        let mut stats = lock(&self.shared.stats);
        let notes = &self.notes;
        (stats.cuts_exact, stats.cuts_file) = notes.cuts;
        stats.last_exact = notes.last_exact.0.to_string();
        stats.last_exact_time = notes.last_exact.1;
        stats.gaps = notes.gaps;
        stats.gap_open = self.gap.is_some();
        (stats.events, stats.overflows) = (events, overflows);
        stats.found_by_scan = notes.found_by_scan;
        stats.unstable = notes.unstable;
        stats.unwatched = self.watch.missing_count() as u64;
        stats.watches = self.watch.count().saturating_sub(stats.unwatched);
        stats.hot_files = self.hot.len() as u64;
        stats.hot_dropped = self.hot.dropped;
        stats.hidden_processes = self.hot.hidden;
        stats.other_file_systems = notes.boundaries.len() as u64;
        (stats.freezes, stats.freeze_failures) = (notes.freezes, notes.freeze_failures);
        (stats.freeze_last_ms, stats.freeze_longest_ms) = (millis(notes.frozen.0), millis(notes.frozen.1));
        (stats.freeze_clones, stats.freeze_read_bytes) = (notes.freeze_clones, notes.freeze_read_bytes);
        stats.unreadable = notes.unreadable();
        stats.refused.clone_from(&notes.refused);
        let hold = lock(&self.shared.hold).clone();
        stats.hold_since = match (&hold, stats.hold_since) {
            (None, _) => 0,
            (Some(_), 0) => wall_clock(),
            (Some(_), since) => since,
        };
        stats.hold_deletes =
            hold.is_some() && self.held_high.is_some() && self.gap != Some(GapReason::Unmount);
        stats.hold = hold;
    }
}

/// Milliseconds, rounded up.
fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_micros().div_ceil(1000)).unwrap_or(u64::MAX)
}

/// Without a base the tree becomes it (true); with one, what differs becomes hints.
pub(super) fn first_scan(shared: &Shared, scanner: &Scanner, state: &Path) -> Result<bool> {
    let began = Instant::now();
    let catalogs = state.join("catalog");
    let new = {
        let catalog = read(&shared.catalog);
        let root = catalog.get(FileId::ROOT).and_then(|n| n.seen);
        catalog.len() <= 1 && catalog.lsn() <= Lsn::FIRST && root.is_none()
    };
    let base = new
        && shared.log.tail().commit <= Lsn::FIRST
        && checkpoint::load_newest(&catalogs, read(&shared.catalog).system())?.is_none();
    if base {
        let fold = lock(&shared.fold);
        let mut catalog = fold.write();
        scanner.base(&mut catalog)?;
        // Not an instant's state: the first pass makes it one.
        catalog.set_position(Lsn::FIRST, Cut::File, wall_clock());
        drop(catalog);
        checkpoint::save(&catalogs, &fold)?;
    } else {
        scanner.all();
    }
    let entries = read(&shared.catalog).len();
    tracing::info!("scanned {entries} entries in {} ms", began.elapsed().as_millis());
    Ok(base)
}

/// The catalog's root must be this directory. A device that is numbered anew since is noted.
pub(super) fn check_identity(catalog: &RwLock<Catalog>, root: &Root, home: &Stat) -> Result<()> {
    let known = read(catalog).get(FileId::ROOT).and_then(|n| n.seen);
    let Some(known) = known.map(|s| s.local).filter(|known| *known != home.local) else { return Ok(()) };
    if !guard::same_directory(&known, &home.local) {
        let text = format!(
            "'{}' is not the directory that this node replicates ({}): mount the right one, \
             or begin anew with an empty state directory",
            root.path().display(),
            home.local.unlike(&known)
        );
        return Err(Error::new(ErrorKind::Refused, text));
    }
    let mut catalog = catalog.write().unwrap_or_else(PoisonError::into_inner);
    catalog.renumber_device(known.dev, home.local.dev);
    Ok(())
}

/// Size of the newest checkpoint.
fn newest_size(dir: &Path) -> u64 {
    let files = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let newest = files.max_by_key(std::fs::DirEntry::file_name);
    newest.and_then(|f| f.metadata().ok()).map_or(0, |m| m.len())
}
