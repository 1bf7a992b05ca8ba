//! What a restore is made from: a backup by its path or from a pipe, or an archive, of which the backup is chosen.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use super::choose::{self, Before, Candidate, choose};
use super::logs::{Source, point_in};
use super::target::Target;
use super::way::{Known, Line, Way};
use crate::archive::inventory::{Inventory, What};
use crate::archive::{Address, Archive, names};
use crate::error::{Error, ErrorKind, Result};
use crate::manifest::chain::{self, Found};
use crate::position::{Lsn, TimelineId};
use crate::set::{self, Set};

/// What a restore is made from, as it is typed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Origin {
    /// A directory with a backup, a tar, or the directory of an archive; `-` is a tar on standard input.
    Path(PathBuf),
    /// An archive.
    Archive(Address),
}

impl FromStr for Origin {
    type Err = String;

    fn from_str(s: &str) -> std::result::Result<Self, String> {
        if s.contains("://") { s.parse().map(Self::Archive) } else { Ok(Self::Path(PathBuf::from(s))) }
    }
}

impl Origin {
    /// The archive that it is, as a place of log.
    pub(super) fn archive(&self) -> Option<Source> {
        match self {
            Self::Archive(address) => Some(Source::Archive(address.clone())),
            Self::Path(path) => path.join(names::IDENTITY).is_file().then(|| Source::Dir(path.clone())),
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => path.display().fmt(f),
            Self::Archive(address) => address.fmt(f),
        }
    }
}

/// Backups, the one that is asked for first, then those it stands on.
pub(super) struct Opened {
    pub(super) chain: Vec<Arc<Set>>,
    /// Newer backups that were passed over, and why.
    pub(super) passed: Vec<String>,
    /// Labels of other backups of the archive that would do, the newest first; a few.
    pub(super) others: Vec<String>,
    /// The archive that has the log, too.
    pub(super) log: Option<Source>,
}

/// What is to be opened.
pub(super) struct Wanted<'a> {
    pub(super) from: &'a Origin,
    /// The label of a backup of the archive.
    pub(super) backup: Option<&'a str>,
    /// Backups that it stands on.
    pub(super) bases: &'a [PathBuf],
    pub(super) target: Target,
    /// The timeline that is asked for, and what is known of timelines.
    pub(super) line: Line,
    pub(super) known: &'a Known,
    /// Where a tar is written down, and where parts are fetched to.
    pub(super) spool: &'a Path,
    pub(super) fetched: &'a Path,
}

/// Opens it.
///
/// # Errors
/// What is missing, damaged, or does not fit.
pub(super) fn open(wanted: &Wanted<'_>) -> Result<Opened> {
    match wanted.from {
        Origin::Archive(address) => archived(address, wanted),
        Origin::Path(path) if path.join(names::IDENTITY).is_file() => {
            let dir = std::path::absolute(path).map_err(|e| Error::io("find", path, e))?;
            archived(&Address::Dir(dir), wanted)
        }
        Origin::Path(path) => {
            if let Some(label) = wanted.backup {
                let text =
                    format!("--backup {label} chooses from an archive, and '{}' is none", path.display());
                return Err(Error::new(ErrorKind::Usage, text));
            }
            let top = Set::open(&set::Source::at(path)?, wanted.spool)?;
            let chain = chained(top, wanted.bases)?;
            Ok(Opened { chain, passed: Vec::new(), others: Vec::new(), log: None })
        }
    }
}

/// The chain of a backup, out of those that were named; a directory beside it counts as named.
///
/// # Errors
/// The link that is missing or wrong.
pub fn chained(top: Set, bases: &[PathBuf]) -> Result<Vec<Arc<Set>>> {
    let mut given = Vec::with_capacity(bases.len());
    for path in bases {
        match set::Source::at(path)? {
            set::Source::Stdin => {
                return Err(Error::new(
                    ErrorKind::Usage,
                    "what a backup stands on can't come through a pipe",
                ));
            }
            // Only a plain tar can be read at any place; another one is refused by its own words.
            source => given.push(Set::open_plain(&source)?),
        }
    }
    let labels = chain::resolve(top.manifest(), |label| {
        given
            .iter()
            .find(|s| s.manifest().label == label)
            .map_or(Found::Missing, |s| Found::Whole(s.manifest(), s.sha256()))
    });
    let labels: Vec<String> =
        labels.map(|c| c.iter().map(|(m, _)| m.label.clone()).collect()).map_err(|e| {
            Error::new(ErrorKind::Refused, format!("'{}': {e}; name it with --base", top.shown()))
        })?;
    let mut out = vec![Arc::new(top)];
    for label in labels {
        let at = given.iter().position(|s| s.manifest().label == label);
        out.extend(at.map(|at| Arc::new(given.swap_remove(at))));
    }
    Ok(out)
}

fn archived(address: &Address, wanted: &Wanted<'_>) -> Result<Opened> {
    if !wanted.bases.is_empty() {
        let text =
            "--base names what a backup outside of an archive stands on; an archive is looked through for it";
        return Err(Error::new(ErrorKind::Usage, text));
    }
    let archive = Archive::open(address)?;
    let inventory = Inventory::of_backups(&archive)?;
    let wholes = || inventory.backups.iter().filter_map(|b| b.manifest());
    let ways = ways(wanted, &archive, &mut wholes())?;
    let mut candidates = Vec::new();
    for backup in &inventory.backups {
        let What::Whole(m, _) = &backup.what else { continue };
        let usable = chain::resolve(m, |label| inventory.found(label)).map(drop);
        let on_way = match (&ways[..], wanted.line) {
            ([way], Line::Latest | Line::Number(_)) => way
                .holds(m.timeline, m.end)
                .map_err(|why| format!("{why}; --target-timeline {} follows it", m.timeline)),
            _ => Ok(()),
        };
        let usable = usable.and(on_way);
        candidates.push(Candidate { label: m.label.clone(), end: m.end, end_time: m.end_time, usable });
    }
    let before = match wanted.target {
        Target::Latest | Target::First => Before::Any,
        Target::Lsn(lsn) => Before::Lsn(lsn),
        Target::Time(time) => Before::Time(time),
        Target::Point(_) if wanted.backup.is_some() => Before::Any,
        Target::Point(name) => {
            let oldest = wholes().map(|m| m.end).min();
            let mut found = None;
            for way in ways.iter().filter(|_| oldest.is_some()) {
                let from = oldest.unwrap_or_default().segment();
                found = point_in(&archive, way, from, name)?;
                if found.is_some() {
                    break;
                }
            }
            // It may be in other log that was given.
            // A backup that ended just there has its log from behind the point on.
            found.map_or(Before::Any, |lsn| Before::Lsn(Lsn(lsn.0.saturating_sub(1))))
        }
    };
    let shown = (wanted.target.to_string(), address.to_string());
    if let Some(label) = wanted.backup
        && let Some(backup) = inventory.backup(label)
        && let What::Damaged(_) | What::Unfinished = backup.what
    {
        let Found::Unusable(why) = inventory.found(label) else { return Err(gone(label)) };
        let text = format!("the backup '{label}' of the archive '{address}' can't be used: {why}");
        return Err(Error::new(ErrorKind::Refused, text));
    }
    let choice = choose(&candidates, before, wanted.backup, (&shown.0, &shown.1))?;
    let label = candidates.get(choice.index).map(|c| c.label.as_str()).unwrap_or_default();
    let Some(What::Whole(top, sha256)) = inventory.backup(label).map(|b| &b.what) else {
        return Err(gone(label));
    };
    let below =
        chain::resolve(top, |label| inventory.found(label)).map_err(|e| Error::new(ErrorKind::Refused, e))?;
    let mut chain = Vec::new();
    for (m, sha256) in std::iter::once((&**top, *sha256)).chain(below) {
        chain.push(Arc::new(Set::archived(address, &archive, (m.clone(), sha256), wanted.fetched)?));
    }
    let others = choose::others(&candidates, before, label);
    Ok(Opened { chain, passed: choice.passed, others, log: Some(Source::Archive(address.clone())) })
}

/// The ways that are looked along: with `current` those of every backup, the newest timeline first.
fn ways(
    wanted: &Wanted<'_>,
    archive: &Archive,
    backups: &mut dyn Iterator<Item = &crate::manifest::Manifest>,
) -> Result<Vec<Way>> {
    let way = |base| wanted.known.way(wanted.line, archive.system(), base);
    if wanted.line != Line::Current {
        return Ok(vec![way(TimelineId::FIRST)?]);
    }
    let timelines: std::collections::BTreeSet<TimelineId> = backups.map(|m| m.timeline).collect();
    timelines.into_iter().rev().map(way).collect()
}

fn gone(label: &str) -> Error {
    Error::new(ErrorKind::Missing, format!("the backup '{label}' is gone from the archive meanwhile"))
}
