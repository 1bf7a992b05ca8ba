//! What an archive holds: log by range, backups with what their manifests say, pins.

use std::collections::{BTreeMap, BTreeSet};

use super::coverage::Coverage;
use super::making::{self, Making};
use super::names::EndedName;
use super::{Archive, SegmentName, names};
use crate::error::{Error, ErrorKind, Result};
use crate::history::History;
use crate::manifest::chain::{self, Found};
use crate::manifest::{Manifest, Sha, seal};
use crate::position::TimelineId;

/// Most bytes of a manifest that is read: one of packs lists parts only.
const MANIFEST_MAX: u64 = 256 << 20;
/// Most backups.
const BACKUPS_MAX: usize = 100_000;
/// Most names of objects that nothing is known of.
const STRAYS_MAX: usize = 100;

/// A backup set, or what is there of one.
#[derive(Clone, Debug)]
pub struct Backup {
    /// Its label.
    pub label: String,
    /// Objects, and their bytes.
    pub objects: u64,
    /// See `objects`.
    pub bytes: u64,
    /// When the newest of them was made, seconds since 1970.
    pub modified: i64,
    /// Whether it is pinned.
    pub pinned: bool,
    /// What it is.
    pub what: What,
}

/// What a backup is.
#[derive(Clone, Debug)]
pub enum What {
    /// A whole one.
    Whole(Box<Manifest>, Sha),
    /// One without a manifest: it is being made, or never was finished.
    Unfinished,
    /// One whose manifest can't be used, and why.
    Damaged(String),
}

impl Backup {
    /// Its manifest, if it is whole.
    #[must_use]
    pub fn manifest(&self) -> Option<&Manifest> {
        match &self.what {
            What::Whole(m, _) => Some(m),
            _ => None,
        }
    }
}

/// All of it.
#[derive(Clone, Debug, Default)]
pub struct Inventory {
    /// The log.
    pub coverage: Coverage,
    /// The backups, by label.
    pub backups: Vec<Backup>,
    /// Those that are being made, or whose making was broken off.
    pub making: Vec<Making>,
    /// The histories that are there; what is wrong with one.
    pub histories: BTreeMap<TimelineId, std::result::Result<History, String>>,
    /// Objects that are none of an archive's, the first of them.
    pub strays: Vec<String>,
}

impl Inventory {
    /// Looks at everything, by names and sizes; of backups the manifests are read.
    ///
    /// # Errors
    /// Why the archive can't be asked.
    pub fn take(archive: &Archive) -> Result<Self> {
        let mut found = Self::default();
        archive.list(names::LOG, "", &mut |entry| {
            match SegmentName::parse(&entry.name) {
                Some(name) => found.coverage.add(name, entry.size),
                None if EndedName::parse(&entry.name).is_some_and(|e| {
                    found.coverage.add_ended(e, entry.size);
                    true
                }) => {}
                None if found.strays.len() < STRAYS_MAX => found.strays.push(entry.name),
                None => {}
            }
            Ok(true)
        })?;
        found.coverage = std::mem::take(&mut found.coverage).finish();
        for timeline in archive.timelines()? {
            let read = match archive.history(timeline) {
                Ok(history) => history.map(Ok),
                Err(e) if e.kind() == ErrorKind::Corrupt => Some(Err(e.to_string())),
                Err(e) => return Err(e),
            };
            found.histories.extend(read.map(|read| (timeline, read)));
        }
        // Before the backups: one that is complete by then is no surprise.
        found.making = making::all(archive)?;
        found.backups = backups(archive, &pins(archive)?, &mut found.strays)?;
        for making in &mut found.making {
            let objects = found.backups.iter().find(|b| b.label == making.label);
            making.modified = making.modified.max(objects.map_or(0, |b| b.modified));
        }
        Ok(found)
    }

    /// Looks at the backups only.
    ///
    /// # Errors
    /// Why the archive can't be asked.
    pub fn of_backups(archive: &Archive) -> Result<Self> {
        let mut found = Self::default();
        found.backups = backups(archive, &pins(archive)?, &mut found.strays)?;
        Ok(found)
    }

    /// What is wrong with histories.
    pub fn bad_histories(&self) -> impl Iterator<Item = (TimelineId, &str)> {
        self.histories.iter().filter_map(|(t, read)| Some((*t, read.as_ref().err()?.as_str())))
    }

    /// The backup of this label.
    #[must_use]
    pub fn backup(&self, label: &str) -> Option<&Backup> {
        self.backups.iter().find(|b| b.label == label)
    }
}

impl Inventory {
    /// What there is of this label, for a backup that stands on it.
    #[must_use]
    pub fn found(&self, label: &str) -> Found<'_> {
        match self.backup(label).map(|b| &b.what) {
            Some(What::Whole(m, sha256)) => Found::Whole(m, *sha256),
            Some(What::Damaged(why)) => Found::Unusable(why.clone()),
            Some(What::Unfinished) => Found::Unusable("it was never finished, or is being made".to_owned()),
            None => Found::Missing,
        }
    }
}

impl Inventory {
    /// Why this backup can't be restored, if what it stands on is not there, however far down.
    #[must_use]
    pub fn broken(&self, backup: &Manifest) -> Option<String> {
        let mut at = backup;
        // A chain that leads round is as long as there are backups.
        for _ in 0..=self.backups.len() {
            let base = at.base.as_ref()?;
            if let Err(why) = chain::link(at, &self.found(&base.label)) {
                return Some(why);
            }
            at = self.backup(&base.label).and_then(Backup::manifest)?;
        }
        Some(format!("'{}' stands on itself", backup.label))
    }
}

fn pins(archive: &Archive) -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    archive.list(names::PIN, "", &mut |entry| {
        if let Some(label) = entry.name.strip_prefix(names::PIN).and_then(|n| n.strip_prefix('/')) {
            found.insert(label.to_owned());
        }
        Ok(found.len() < BACKUPS_MAX)
    })?;
    Ok(found)
}

fn backups(archive: &Archive, pinned: &BTreeSet<String>, strays: &mut Vec<String>) -> Result<Vec<Backup>> {
    let mut found: BTreeMap<String, (Backup, bool)> = BTreeMap::new();
    archive.list(names::BACKUP, "", &mut |entry| {
        let rest = entry.name.strip_prefix(names::BACKUP).and_then(|n| n.strip_prefix('/'));
        let Some((label, part)) = rest.and_then(|r| r.split_once('/')) else {
            if strays.len() < STRAYS_MAX {
                strays.push(entry.name);
            }
            return Ok(true);
        };
        let fresh = || {
            let (what, pinned) = (What::Unfinished, pinned.contains(label));
            (Backup { label: label.to_owned(), objects: 0, bytes: 0, modified: 0, pinned, what }, false)
        };
        let (backup, has_manifest) = found.entry(label.to_owned()).or_insert_with(fresh);
        backup.objects += 1;
        backup.bytes = backup.bytes.saturating_add(entry.size);
        backup.modified = backup.modified.max(entry.modified);
        *has_manifest |= part == names::MANIFEST;
        if found.len() > BACKUPS_MAX {
            let text = format!("the archive '{}' holds more than {BACKUPS_MAX} backups", archive.address());
            return Err(Error::new(ErrorKind::Refused, text));
        }
        Ok(true)
    })?;
    let mut out = Vec::with_capacity(found.len());
    for (label, (mut backup, has_manifest)) in found {
        if has_manifest {
            backup.what = what(archive, &label)?;
        }
        out.push(backup);
    }
    Ok(out)
}

fn what(archive: &Archive, label: &str) -> Result<What> {
    let name = format!("{}/{}", names::backup_dir(label), names::MANIFEST);
    let bytes = match archive.get(&name, MANIFEST_MAX) {
        Ok(Some(bytes)) => bytes,
        // It was removed since it was listed.
        Ok(None) => return Ok(What::Unfinished),
        Err(e) if e.kind() == ErrorKind::Corrupt => return Ok(What::Damaged(e.to_string())),
        Err(e) => return Err(e),
    };
    let read = seal(&bytes).and_then(|sha| Manifest::parse(&bytes).map(|m| (m, sha)));
    Ok(match read {
        Ok((m, _)) if m.label != label => {
            What::Damaged(format!("its manifest is of the backup '{}'", m.label))
        }
        Ok((m, _)) if m.system != archive.system() => {
            What::Damaged(format!("it is a backup of system {}", m.system))
        }
        Ok((m, sha)) => What::Whole(Box::new(m), sha),
        Err(e) => What::Damaged(format!("its manifest can't be used: {e}")),
    })
}
