//! Checkpoints: the file system synced, then the catalog persisted. Recovery begins at the newest one.
//!
//! The catalog is written aside while apply rests; syncing and naming it happen behind it in a
//! thread of their own, while apply goes on. That is sound because recovery takes a directory, and
//! block hashes, that are ahead of the checkpoint.

use std::fs::File;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::{Duration, Instant};

use crate::error::{Error, ErrorKind, Result};
use crate::fold::Fold;
use crate::position::{Cut, Lsn};
use crate::sys::{self, Root};
use crate::{checkpoint, disk, failpoint};

use super::site::Site;
use super::{ApplyCuts, ApplyOptions, ApplyPaths};

/// Says that the directory may rest on a cut that is not exact, also when a later start allows exact ones only.
const FILE_CUTS: &str = "file-cuts";

/// When the last checkpoint was, and the one under way.
pub(super) struct Checkpoints {
    dir: PathBuf,
    /// Opened at the start: an error of writing back since then is reported to it.
    data: File,
    bytes: u64,
    interval: Duration,
    cuts: ApplyCuts,
    last: Lsn,
    at: Instant,
    running: Option<(Lsn, Receiver<Result<()>>)>,
}

impl Checkpoints {
    pub(super) fn new(paths: &ApplyPaths, root: &Root, options: &ApplyOptions, last: Lsn) -> Result<Self> {
        let data = root.open_dir(b"").map_err(|e| Error::io("open", root.path(), e))?;
        if options.cuts == ApplyCuts::File {
            disk::write_atomic(&paths.catalog, FILE_CUTS, b"")?;
        }
        Ok(Self {
            dir: paths.catalog.clone(),
            data: File::from(data),
            bytes: options.checkpoint_bytes,
            interval: options.checkpoint_interval,
            cuts: options.cuts,
            last,
            at: Instant::now(),
            running: None,
        })
    }

    /// From here on the directory may rest on a cut of files; recovery has to know before it does.
    pub(super) fn allow_file_cuts(&self) -> Result<()> {
        let path = self.dir.join(FILE_CUTS);
        if path.exists() { Ok(()) } else { disk::write_atomic(&self.dir, FILE_CUTS, b"").map(drop) }
    }

    /// The cuts that recovery may end on: those that the last run could have ended on.
    pub(super) fn cuts_before(paths: &ApplyPaths, options: &ApplyOptions) -> ApplyCuts {
        if paths.catalog.join(FILE_CUTS).exists() { ApplyCuts::File } else { options.cuts }
    }

    /// The position of the newest one that is durable.
    pub(super) fn last(&self) -> Lsn {
        self.last
    }

    /// How long until the next one is due, when nothing more is applied.
    pub(super) fn due_in(&self, fold: &Fold) -> Duration {
        if self.running.is_some() {
            return Duration::from_millis(100);
        }
        if fold.read().lsn() == self.last {
            return Duration::MAX;
        }
        self.interval.saturating_sub(self.at.elapsed())
    }

    /// Begins a checkpoint when one is due, and takes note of one that ended. Called at rest on a cut.
    pub(super) fn maybe(&mut self, fold: &Fold, site: &Site) -> Result<()> {
        if let Some((lsn, done)) = &self.running {
            let lsn = *lsn;
            match done.try_recv() {
                Ok(result) => {
                    self.running = None;
                    self.ended(result, lsn, fold, site)?;
                }
                Err(TryRecvError::Empty) => return Ok(()),
                Err(TryRecvError::Disconnected) => return Err(gone()),
            }
        }
        let lsn = fold.read().lsn();
        let due = lsn.since(self.last) >= self.bytes || self.at.elapsed() >= self.interval;
        // What is doubtful since a crash stays within the reach of the next recovery until it was compared.
        if lsn == self.last || !due || !site.later.is_empty() {
            return Ok(());
        }
        self.begin(fold)
    }

    fn begin(&mut self, fold: &Fold) -> Result<()> {
        failpoint::pass("apply::before_checkpoint")?;
        let prepared = checkpoint::prepare(&self.dir, fold)?;
        let lsn = prepared.lsn();
        let data = self.data.try_clone().map_err(|e| Error::io("open", &self.dir, e))?;
        let (tell, done) = std::sync::mpsc::sync_channel(1);
        let work = move || {
            let result = rustix::fs::syncfs(&data)
                .map_err(|e| {
                    Error::from(std::io::Error::from(e)).wrap("cannot sync the data directory's file system")
                })
                .and_then(|()| prepared.finish().map(drop));
            // What the batches since the last one have freed.
            sys::raw::give_back_memory();
            let _ = tell.send(result);
        };
        // A panic: nobody tells any more, which is an error for who asks.
        std::thread::Builder::new()
            .name("checkpoint".to_owned())
            .spawn(work)
            .map_err(|e| Error::from(e).wrap("cannot start the thread that writes a checkpoint"))?;
        self.running = Some((lsn, done));
        self.at = Instant::now();
        Ok(())
    }

    fn ended(&mut self, result: Result<()>, lsn: Lsn, fold: &Fold, site: &Site) -> Result<()> {
        result.map_err(|e| e.wrap("cannot write a checkpoint"))?;
        self.last = lsn;
        let mut stats = site.stats();
        stats.checkpoint = lsn.to_string();
        stats.checkpoint_lsn = lsn;
        stats.checkpoints += 1;
        drop(stats);
        if self.cuts == ApplyCuts::Exact && fold.read().cut() == Cut::Exact && fold.read().lsn() == lsn {
            disk::remove_durable(&self.dir.join(FILE_CUTS))?;
        }
        Ok(())
    }

    /// Writes a checkpoint of this rest and waits for it.
    pub(super) fn now(&mut self, fold: &Fold, site: &Site) -> Result<()> {
        self.drain(fold, site)?;
        self.begin(fold)?;
        self.drain(fold, site)
    }

    fn drain(&mut self, fold: &Fold, site: &Site) -> Result<()> {
        match self.running.take() {
            Some((lsn, done)) => {
                let result = done.recv().map_err(|_| gone())?;
                self.ended(result, lsn, fold, site)
            }
            None => Ok(()),
        }
    }
}

fn gone() -> Error {
    Error::new(ErrorKind::Io, "the thread that writes a checkpoint has panicked")
}
