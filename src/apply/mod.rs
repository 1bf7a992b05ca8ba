//! Apply: what the log says becomes what the directory holds.
//!
//! One thread waits for the durable end of the log and takes the complete change sets up to the
//! newest exact cut (or the newest commit, with [`ApplyCuts::File`]) in batches. A batch is
//! squashed: its records are folded into the catalog and what they touch is noted (`notes`); the
//! net change is the difference between the notes and the catalog afterwards. Then the directory follows:
//!
//! 1. new directories, nodes and symlinks are made in the staging directory (`content`);
//! 2. contents are written in log order, a block only the last time it is written; new files where
//!    they are staged, others in place, each with its attributes after its last write (`attrs`);
//! 3. names are given and taken, in an order that the planner finds (`plan`, `work`);
//! 4. directories get their attributes and times, and everything touched is observed again.
//!
//! Nothing is synced on the way. A checkpoint (`checkpoints`) syncs the file system and then persists the
//! catalog; after any stop but a clean one, `recover` redoes the log since the last checkpoint on
//! whatever state the directory is in, up to the newest cut in the log, which is never before
//! what was reported as applied: apply reads only fsynced log.
//!
//! The digest of every commit is compared before the directory is touched. Before something is
//! changed its stat is compared with what apply left there: a difference is a local edit. Edits of what is not
//! about to change are noticed by a slow walk (`patrol`), contents that went bad on the disk by a slow reader (`scrub`).
//!
//! Without privilege, owners of others and devices stay in the catalog and are skipped on disk, and so are some modes
//! (see [`crate::sys::mode_here`]). Each class is said once and shown in `status`; a later start with
//! privilege gives the owners.

mod attrs;
mod busy;
mod checkpoints;
mod content;
mod doubts;
mod engine;
mod guard;
mod handle;
mod intake;
mod labels;
mod notes;
mod patience;
mod patrol;
mod plan;
mod reach;
mod recover;
mod refusal;
mod scan;
mod scrub;
mod site;
#[cfg(test)]
mod tests;
mod until;
mod work;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

use crate::disk::Note;
use crate::net::Ancestry;
use crate::position::{Cut, Lsn, SystemId, TimelineId};

pub(crate) use content::punch;
pub use doubts::{acquit, damaged, doubtful};
pub(crate) use guard::gone;
pub use handle::{Apply, ApplyHandle};
pub use patience::Inexact;
pub use reach::holds_until;
pub use scrub::{Damage, ScrubStats};
pub(crate) use site::{remove_tree, same_inode};
pub use until::StopAt;

/// Which cuts the directory may rest on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum ApplyCuts {
    /// Exact ones only: always a state that the leader's directory had at one instant.
    #[default]
    Exact,
    /// Any commit: for applications whose files do not depend on each other.
    File,
}

/// What happens to changes that somebody made to a follower's directory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum LocalEdits {
    /// Apply stops and names the path before it would change what was edited; until then it is reported.
    #[default]
    Refuse,
    /// They are reported and undone where the log and the catalog suffice.
    Overwrite,
}

/// How apply works.
#[derive(Clone, Debug)]
pub struct ApplyOptions {
    /// Which cuts the directory may rest on.
    pub cuts: ApplyCuts,
    /// How long cuts of files may wait for an exact one; zero: for ever.
    pub max_inexact: Duration,
    /// How many bytes of log may wait for an exact cut; zero: any.
    pub max_inexact_bytes: u64,
    /// What happens after that.
    pub inexact: Inexact,
    /// What happens to local edits.
    pub local_edits: LocalEdits,
    /// A checkpoint after this many bytes of log.
    pub checkpoint_bytes: u64,
    /// A checkpoint after this time, when something changed.
    pub checkpoint_interval: Duration,
    /// Start paused: recover, then rest on that cut.
    pub paused: bool,
    /// A change set becomes visible when its commit is so old.
    pub delay: Duration,
    /// Where to stop, and stay.
    pub stop_at: Option<StopAt>,
    /// The leader's clock.
    pub clock: Ancestry,
    /// Bytes a second at most that are read to compare contents with their hashes.
    pub scrub_rate: u64,
    /// In this time all contents are compared once; zero: never.
    pub scrub_interval: Duration,
    /// Edits that are to be undone, and can't be from what is here, end apply: a comparison with the leader undoes them.
    pub repairs: bool,
}

impl Default for ApplyOptions {
    fn default() -> Self {
        Self {
            cuts: ApplyCuts::Exact,
            max_inexact: Duration::from_secs(300),
            max_inexact_bytes: 1 << 30,
            inexact: Inexact::Report,
            local_edits: LocalEdits::Refuse,
            checkpoint_bytes: 256 << 20,
            checkpoint_interval: Duration::from_secs(300),
            paused: false,
            delay: Duration::ZERO,
            stop_at: None,
            clock: Ancestry::default(),
            scrub_rate: 32 << 20,
            scrub_interval: Duration::from_secs(24 * 3600),
            repairs: false,
        }
    }
}

/// Where apply finds things.
#[derive(Clone, Debug)]
pub struct ApplyPaths {
    /// Checkpoints of the catalog.
    pub catalog: PathBuf,
    /// Block hashes.
    pub blocks: PathBuf,
    /// The system whose log is applied.
    pub system: SystemId,
    /// The timeline of the log.
    pub timeline: TimelineId,
}

impl ApplyPaths {
    /// Where a local edit that was refused is remembered: beside the others.
    pub(crate) fn refusal(&self) -> Note {
        Self::refusal_in(self.state())
    }

    fn refusal_in(state: &Path) -> Note {
        Note::new(state, "refused-edit", ["apply::refuse", "apply::after_refuse", "apply::forgive"])
    }

    /// Where the files are remembered whose content is in doubt.
    pub(crate) fn doubts(&self) -> Note {
        Self::doubts_in(self.state())
    }

    fn doubts_in(state: &Path) -> Note {
        Note::new(state, "doubtful-files", ["apply::doubt", "apply::after_doubt", "apply::acquit"])
    }

    /// Where it is remembered how far the directory is.
    pub(crate) fn reach(&self) -> Note {
        Self::reach_in(self.state())
    }

    fn reach_in(state: &Path) -> Note {
        Note::new(state, "reach", ["apply::bind", "apply::after_bind", "apply::unbind"])
    }

    fn state(&self) -> &Path {
        self.blocks.parent().unwrap_or(Path::new("."))
    }
}

/// Where the directory stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Applied {
    /// End of the last change set that is visible in the directory.
    pub lsn: Lsn,
    /// How good that cut is.
    pub cut: Cut,
    /// The leader's clock at its commit, nanoseconds since 1970.
    pub commit_time: i64,
    /// Change sets applied since the start.
    pub commits: u64,
    /// Whether the directory is usable: recovered, and a first copy replayed to its end.
    pub consistent: bool,
    /// Whether it goes on by itself: not paused, not stopped by a failure.
    pub moves: bool,
    /// Whether it rests until somebody helps: it has diverged, or others changed it.
    pub halted: bool,
    /// How old a commit has to be before it is visible.
    pub delay: Duration,
}

/// What apply is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ApplyState {
    /// Comparing the directory with the catalog and redoing the log since the checkpoint.
    #[default]
    Recovering,
    /// Waiting for the log that makes a first copy consistent.
    Filling,
    /// At rest on a cut, waiting for log.
    Idle,
    /// Changing the directory.
    Applying,
    /// At rest on a cut, on request.
    Paused,
    /// Stopped on request, at rest on a cut.
    Stopped,
    /// Stopped by a failure.
    Failed,
}

/// A change that somebody else made to the directory.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct LocalEdit {
    /// The path, relative to the data directory, escaped.
    pub path: String,
    /// What is different.
    pub what: String,
}

/// Numbers and states of apply.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ApplyStats {
    /// What it is doing.
    pub state: ApplyState,
    /// Whether a pause was asked for.
    pub paused: bool,
    /// Seconds that a change set waits after its commit before it becomes visible; 0: none.
    pub delay: f64,
    /// The target at which replay stops.
    pub stop_at: Option<String>,
    /// The cut on which it stopped, once it is reached.
    pub stopped: Option<String>,
    /// LSN of the newest durable checkpoint, as text: log before it is not needed by apply.
    pub checkpoint: String,
    /// The same as a number.
    #[serde(skip)]
    pub checkpoint_lsn: Lsn,
    /// Checkpoints written since the start.
    pub checkpoints: u64,
    /// Change sets applied since the start.
    pub commits: u64,
    /// Records folded since the start.
    pub records: u64,
    /// Why the directory stands still, when exact cuts stay away for longer than allowed.
    pub inexact: Option<String>,
    /// Cuts of files that were applied because exact ones stayed away.
    pub inexact_applied: u64,
    /// Batches since the start: several change sets waiting become one.
    pub batches: u64,
    /// Bytes of log redone at the start.
    pub redone: u64,
    /// Entries of the directory looked at by the scan at the start.
    pub scanned: u64,
    /// Files redone after a crash that are still to be compared with their hashes.
    pub suspects: u64,
    /// What is in the catalog only, mostly for want of privilege, by class: how many the scan at the start
    /// found, and those made since.
    pub skipped_privilege: BTreeMap<&'static str, u64>,
    /// Local edits seen since the start.
    pub local_edits_total: u64,
    /// Of these, modes and owners that were set right while something else of the file was changed.
    pub local_edits_repaired: u64,
    /// Local edits that the last complete round of the patrol met.
    pub local_edits_standing: u64,
    /// Complete rounds of the patrol, which compares the directory with the catalog all the time.
    pub patrols: u64,
    /// The first of the local edits.
    pub local_edits: Vec<LocalEdit>,
    /// The comparison of contents with their hashes.
    pub scrub: ScrubStats,
}
