//! What a restore is made from: a backup by its path or from a pipe, or an archive, of which the backup is chosen.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use super::choose::{self, Before, Candidate, choose};
use super::logs::{Source, point_in};
use super::points::Seen;
use super::target::Target;
use super::way::{Known, Line, Way};
use crate::archive::inventory::{Inventory, What};
use crate::archive::{Address, Archive, names};
use crate::error::{Error, ErrorKind, Result};
use crate::manifest;
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
        if let Some(why) = half_an_address(s).filter(|_| !s.contains("://")) {
            return Err(why);
        }
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
    /// Restore points that were seen while the one was looked for in the archive.
    pub(super) points: Seen,
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
    /// The timeline that is asked for.
    pub(super) line: Line,
    /// Where a tar is written down, and where parts are fetched to.
    pub(super) spool: &'a Path,
    pub(super) fetched: &'a Path,
}

/// Opens it. What backups of an archive tell of timelines is added to what is `known`.
///
/// # Errors
/// What is missing, damaged, or does not fit.
pub(super) fn open(wanted: &Wanted<'_>, known: &mut Known) -> Result<Opened> {
    match wanted.from {
        Origin::Archive(address) => archived(address, wanted, known),
        Origin::Path(path) if path.join(names::IDENTITY).is_file() => {
            let dir = std::path::absolute(path).map_err(|e| Error::io("find", path, e))?;
            archived(&Address::Dir(dir), wanted, known)
        }
        Origin::Path(path) => {
            if let Some(label) = wanted.backup {
                let text =
                    format!("--backup {label} chooses from an archive, and '{}' is none", path.display());
                return Err(Error::new(ErrorKind::Usage, text));
            }
            let source = set::Source::at(path)?;
            if let set::Source::Dir(dir) = &source
                && !dir.join(manifest::NAME).exists()
            {
                return Err(neither(dir));
            }
            let top = Set::open(&source, wanted.spool)?;
            let chain = chained(top, wanted.bases)?;
            let (passed, others, points) = (Vec::new(), Vec::new(), Seen::default());
            Ok(Opened { chain, passed, others, points, log: None })
        }
    }
}

/// Most names of a directory that are looked at for an archive.
const LOOKED_AT: usize = 1000;

/// What a directory is not, and what may have been meant.
fn neither(dir: &Path) -> Error {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten().take(LOOKED_AT);
    let meant = entries
        .map(|e| e.path())
        .find(|p| p.join(names::IDENTITY).is_file() || p.join(manifest::NAME).is_file());
    let meant = meant.map_or_else(
        || "name an archive like file:///backup/towline, or the directory or tar of a backup".to_owned(),
        |p| format!("there is one in '{}'", p.display()),
    );
    let text = format!(
        "'{}' is neither an archive nor a complete backup: {} is missing, and {} is missing, which is written last of all; {meant}",
        dir.display(),
        names::IDENTITY,
        manifest::NAME
    );
    Error::new(ErrorKind::Missing, text)
}

/// An address with one slash only, which would be taken for a path.
pub(super) fn half_an_address(s: &str) -> Option<String> {
    let (scheme, rest) = s.split_once(':')?;
    let known = matches!(scheme, "file" | "s3");
    (known && rest.starts_with('/')).then(|| {
        let rest = rest.trim_start_matches('/');
        let slashes = if scheme == "file" { "///" } else { "//" };
        format!("'{s}' is no address of an archive: write {scheme}:{slashes}{rest}, or ./{s} if it is the name of a directory")
    })
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

fn archived(address: &Address, wanted: &Wanted<'_>, known: &mut Known) -> Result<Opened> {
    if !wanted.bases.is_empty() {
        let text =
            "--base names what a backup outside of an archive stands on; an archive is looked through for it";
        return Err(Error::new(ErrorKind::Usage, text));
    }
    let archive = Archive::open(address)?;
    let inventory = Inventory::of_backups(&archive)?;
    let wholes = || inventory.backups.iter().filter_map(|b| b.manifest());
    learn((address, &archive), &inventory, wanted.fetched, known)?;
    let ways = ways((wanted, known), &archive, &mut wholes())?;
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
    let mut points = Seen::default();
    let before = match wanted.target {
        Target::Latest | Target::First => Before::Any,
        Target::Lsn(lsn) => Before::Lsn(lsn),
        Target::Time(time) => Before::Time(time),
        Target::Point(_) if wanted.backup.is_some() => Before::Any,
        Target::Point(name) => {
            let oldest = wholes().map(|m| m.end).min();
            points.from = oldest;
            let mut found = None;
            for way in ways.iter().filter(|_| oldest.is_some()) {
                let from = oldest.unwrap_or_default().segment();
                found = point_in(&archive, way, from, name, &mut points)?;
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
    let log = Some(Source::Archive(address.clone()));
    Ok(Opened { chain, passed: choice.passed, others, points, log })
}

/// Takes from backups the histories of timelines that the archive itself has none of: no log may ever have gone there.
fn learn(
    (address, archive): (&Address, &Archive),
    inventory: &Inventory,
    fetched: &Path,
    known: &mut Known,
) -> Result<()> {
    for backup in &inventory.backups {
        let What::Whole(m, sha256) = &backup.what else { continue };
        if m.history_part().is_none() || known.knows(m.system, m.timeline)? {
            continue;
        }
        let set = Set::archived(address, archive, ((**m).clone(), *sha256), fetched)?;
        match set.history() {
            Ok(history) => history.into_iter().for_each(|history| known.learn(history)),
            // Another one may do.
            Err(e) if matches!(e.kind(), ErrorKind::Corrupt | ErrorKind::Missing) => tracing::warn!("{e}"),
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// The ways that are looked along: with `current` those of every backup, the newest timeline first.
fn ways(
    (wanted, known): (&Wanted<'_>, &Known),
    archive: &Archive,
    backups: &mut dyn Iterator<Item = &manifest::Manifest>,
) -> Result<Vec<Way>> {
    let way = |base| known.way(wanted.line, archive.system(), base);
    if wanted.line != Line::Current {
        return Ok(vec![way(TimelineId::FIRST)?]);
    }
    let timelines: std::collections::BTreeSet<TimelineId> = backups.map(|m| m.timeline).collect();
    timelines.into_iter().rev().map(way).collect()
}

fn gone(label: &str) -> Error {
    Error::new(ErrorKind::Missing, format!("the backup '{label}' is gone from the archive meanwhile"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_archive_and_no_backup_is_told_what_was_expected() {
        for (written, meant) in [("file:/x/y", "file:///x/y"), ("s3:/b/p", "s3://b/p")] {
            for e in [written.parse::<Origin>().unwrap_err(), written.parse::<Source>().unwrap_err()] {
                assert!(e.contains(meant) && e.contains(written), "{e}");
            }
        }
        assert!(matches!("./file:/x".parse(), Ok(Origin::Path(_))));
        let dir = tempfile::tempdir().unwrap();
        let e = neither(dir.path()).to_string();
        assert!(e.contains("neither an archive nor") && e.contains("file:///backup"), "{e}");
        let archive = dir.path().join("arch");
        std::fs::create_dir(&archive).unwrap();
        std::fs::write(archive.join(names::IDENTITY), "{}").unwrap();
        assert!(neither(dir.path()).to_string().contains(&format!("one in '{}'", archive.display())));
        let manifest = archive.join(manifest::NAME);
        std::fs::write(&manifest, "{}").unwrap();
        let e = set::Source::at(&manifest).unwrap_err().to_string();
        assert!(e.contains(&format!("name the directory that holds it, '{}'", archive.display())), "{e}");
    }
}
