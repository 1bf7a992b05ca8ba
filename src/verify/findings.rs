//! What was found to be wrong.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use serde::Serialize;

use crate::set::shown;

/// Problems that are listed; more are only counted.
pub const LISTED_MAX: usize = 100_000;

/// What kind of problem it is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// The manifest itself.
    Manifest,
    /// Something named in the manifest or the catalog is not there.
    Missing,
    /// Something is there that neither of them names.
    Extra,
    /// It is not the kind of thing it should be: no regular file, another target of a symlink.
    Kind,
    /// It has another size.
    Size,
    /// Its bytes are others.
    Content,
    /// It can't be read.
    Unreadable,
    /// The catalog is damaged, or contradicts the rest.
    Catalog,
    /// The block hashes are damaged, or contradict the rest.
    Blocks,
    /// The history of the timeline is damaged, or another one's.
    History,
    /// The log is damaged, has a hole, or does not reach from start to end.
    Log,
    /// A pack is damaged, or contradicts the catalog.
    Pack,
    /// What was replayed is not what the log says.
    Replay,
    /// A backup in an archive.
    Backup,
    /// A state directory: its control file, or what belongs together in it.
    State,
}

/// One thing that is wrong.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Problem {
    /// Relative to what is verified; empty: the whole of it.
    pub path: String,
    /// Its kind.
    pub problem: Class,
    /// What is wrong, in words.
    pub text: String,
}

/// Gathers problems from all threads.
#[derive(Debug)]
pub(super) struct Findings {
    ignore: Vec<Vec<u8>>,
    first_only: bool,
    problems: Mutex<Vec<Problem>>,
    count: AtomicU64,
    stop: AtomicBool,
}

impl Findings {
    pub(super) fn new(ignore: Vec<Vec<u8>>, first_only: bool) -> Self {
        let (problems, count, stop) = Default::default();
        Self { ignore, first_only, problems, count, stop }
    }

    /// Whether the operator wants to hear nothing of it.
    pub(super) fn ignored(&self, path: &[u8]) -> bool {
        self.ignore.iter().any(|i| {
            path.strip_prefix(&i[..]).is_some_and(|rest| rest.is_empty() || rest.first() == Some(&b'/'))
        })
    }

    pub(super) fn add(&self, problem: Class, path: &[u8], text: impl Into<String>) {
        if self.ignored(path) || self.stopped() {
            return;
        }
        let mut problems = self.problems.lock().unwrap_or_else(PoisonError::into_inner);
        self.count.fetch_add(1, Ordering::Relaxed);
        if problems.len() < LISTED_MAX {
            problems.push(Problem { path: shown(path), problem, text: text.into() });
        }
        if self.first_only {
            self.stop.store(true, Ordering::Relaxed);
        }
    }

    /// Whether it is over after the first problem.
    pub(super) fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Whether there is none yet.
    pub(super) fn none(&self) -> bool {
        self.count.load(Ordering::Relaxed) == 0
    }

    /// All of them, in order, and how many there are.
    pub(super) fn finish(self) -> (Vec<Problem>, u64) {
        let mut problems = self.problems.into_inner().unwrap_or_else(PoisonError::into_inner);
        problems.sort_by(|a, b| (a.problem, &a.path).cmp(&(b.problem, &b.path)));
        (problems, self.count.into_inner())
    }
}
