//! Checking what is kept, without changing it: base backups, state directories and archives. All that is wrong is found in
//! one run and named.
//!
//! Of a backup ([`crate::manifest`] says what it consists of) in this order: the manifest itself; names, those that are missing
//! and those that are there without being named; kinds and sizes; SHA-256 of all bytes, on several threads; what the
//! catalog, the block hashes, the segments and the packs say about themselves, and about each other; whether the log
//! leads from start to end without a hole. A tar is read once, in its order, so that it may come from a pipe.
//!
//! Of a state directory: the control file, all log, all checkpoints, and whether they belong together. A node may run in it
//! meanwhile.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::error::{Error, ErrorKind, Result};
use crate::manifest::Form;
use crate::set::{self, Source};
use crate::state::StateDir;

mod archive;
mod backup;
mod chain;
mod findings;
mod member;
mod presence;
mod replay;
mod state;

pub use findings::{Class, LISTED_MAX, Problem};

use findings::Findings;

/// What to check, and how.
#[derive(Clone, Debug)]
pub struct Order {
    /// A backup, as a directory or a tar, `-` for a tar on standard input; a state directory; or an archive, as its address
    /// or its directory.
    pub path: PathBuf,
    /// Paths relative to it of which nothing is to be heard.
    pub ignore: Vec<PathBuf>,
    /// Read contents; otherwise only names, kinds and sizes are compared.
    pub content: bool,
    /// Look at the log, too.
    pub log: bool,
    /// End after the first problem.
    pub exit_on_error: bool,
    /// Restore the backup, when nothing is wrong with it so far, and compare what is there then.
    pub replay: bool,
    /// Where; the directory of temporary files otherwise.
    pub scratch: Option<PathBuf>,
}

/// What was found.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Outcome {
    /// What was checked: `backup`, `state` or `archive`.
    pub kind: &'static str,
    /// Label of the backup.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// Its form.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub form: Option<&'static str>,
    /// Its end: what it is a backup of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end: Option<String>,
    /// Files that were looked at.
    pub files: u64,
    /// Bytes that were read.
    pub bytes: u64,
    /// How many problems there are; no more than [`LISTED_MAX`] are listed.
    pub count: u64,
    /// The problems.
    pub problems: Vec<Problem>,
    /// Of an archive: objects that are none of its own, the first of them. They are no problem.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub strays: Vec<String>,
}

impl Outcome {
    fn new(kind: &'static str) -> Self {
        let (problems, strays) = Default::default();
        Self { kind, label: None, form: None, end: None, files: 0, bytes: 0, count: 0, problems, strays }
    }

    fn close(mut self, findings: Findings) -> Self {
        (self.problems, self.count) = findings.finish();
        self
    }

    fn of(&mut self, manifest: &crate::manifest::Manifest) {
        self.label = Some(manifest.label.clone());
        self.form = Some(Form::word(manifest.form));
        self.end = Some(manifest.end.to_string());
    }
}

/// Checks.
///
/// # Errors
/// There is nothing that could be checked. Everything else is a problem in the outcome.
pub fn run(order: &Order) -> Result<Outcome> {
    let mut ignore: Vec<_> = order.ignore.iter().map(|p| set::below(p)).collect();
    if !order.log {
        ignore.push(crate::manifest::LOG.as_bytes().to_vec());
    }
    let findings = Findings::new(ignore, order.exit_on_error);
    if is_state(&order.path) {
        only_backups(order)?;
        return state::check(order, findings);
    }
    if let Some(address) = archive::address(&order.path)? {
        only_backups(order)?;
        return archive::check(&address, order, findings);
    }
    match Source::at(&order.path)? {
        Source::Dir(dir) => {
            backup_like(&dir)?;
            backup::dir(&dir, order, findings)
        }
        tar if order.replay => {
            let text = format!("--replay: unpack the tar '{}' first and name the directory", tar.shown());
            Err(Error::new(ErrorKind::Usage, text))
        }
        tar => backup::tar(&tar, order, findings),
    }
}

fn only_backups(order: &Order) -> Result<()> {
    if !order.replay {
        return Ok(());
    }
    let text = format!("--replay restores a backup, and '{}' is none", order.path.display());
    Err(Error::new(ErrorKind::Usage, text))
}

fn is_state(path: &Path) -> bool {
    StateDir::is_set_up(path)
}

/// A directory that holds nothing of a backup was named by mistake: that is no damage.
fn backup_like(dir: &Path) -> Result<()> {
    use crate::manifest::{BLOCKS, CATALOG, NAME};
    if [NAME, CATALOG, BLOCKS, crate::backup::WORK].iter().any(|n| dir.join(n).symlink_metadata().is_ok()) {
        return Ok(());
    }
    let text = format!(
        "'{}' is no backup, no state directory and no archive: there is no {NAME}, no control file and no system.json in it",
        dir.display()
    );
    Err(Error::new(ErrorKind::Usage, text))
}
