//! Reads every object of an archive and says what is wrong: segments against their names, their own checksums and the
//! chain of hashes; parts of backups against the manifest.

use std::collections::BTreeSet;
use std::io::Read;

use sha2::{Digest, Sha256};

use super::coverage::{Fault, Span};
use super::inventory::{Backup, Inventory, What};
use super::{Archive, SegmentName, names};
use crate::error::{Error, ErrorKind, Result};
use crate::log;
use crate::manifest::Part;
use crate::segment::{Header, Trailer};

/// Bytes hashed at once.
const CHUNK: usize = 1 << 20;
/// Most problems of backups that are named.
const PROBLEMS_MAX: usize = 10_000;

/// What was found.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// The inventory; problems of log are in its coverage.
    pub inventory: Inventory,
    /// What is wrong with backups: label, and what.
    pub backups: Vec<(String, String)>,
    /// Objects read, and their bytes.
    pub objects: u64,
    /// See `objects`.
    pub bytes: u64,
}

impl Found {
    /// Whether nothing is wrong.
    #[must_use]
    pub fn is_good(&self) -> bool {
        let log = &self.inventory.coverage;
        log.problems.is_empty() && log.more == 0 && self.backups.is_empty()
    }

    fn bad(&mut self, label: &str, what: String) {
        if self.backups.len() < PROBLEMS_MAX {
            self.backups.push((label.to_owned(), what));
        }
    }
}

/// Reads everything.
///
/// # Errors
/// Why the archive can't be asked. What is wrong with its objects is no error.
pub fn verify(archive: &Archive) -> Result<Found> {
    let mut found = Found { inventory: Inventory::take(archive)?, ..Found::default() };
    segments(archive, &mut found)?;
    for backup in found.inventory.backups.clone() {
        self::backup(archive, &backup, &mut found)?;
    }
    Ok(found)
}

/// Reads one backup, and nothing else.
///
/// # Errors
/// `Missing`: there is nothing of that label. Why the archive can't be asked. What is wrong with it is no error.
pub fn verify_backup(archive: &Archive, label: &str) -> Result<Found> {
    let mut found = Found { inventory: Inventory::of_backups(archive)?, ..Found::default() };
    let Some(one) = found.inventory.backup(label).cloned() else {
        let text = format!(
            "there is no backup '{label}' in the archive '{}'; `towline archive list` shows all",
            archive.address()
        );
        return Err(Error::new(ErrorKind::Missing, text));
    };
    if matches!(one.what, What::Unfinished) {
        found.bad(label, "it has no manifest: it was never finished, or is being made".to_owned());
    }
    backup(archive, &one, &mut found)?;
    Ok(found)
}

/// The last good segment, to which the next has to be chained.
struct Link {
    name: SegmentName,
    trailer: Trailer,
}

fn segments(archive: &Archive, found: &mut Found) -> Result<()> {
    let mut names = Vec::new();
    let mut last = String::new();
    let mut link: Option<Link> = None;
    loop {
        // A page of names at a time: reading takes long, and a listing does not wait.
        names.clear();
        let after = std::mem::take(&mut last);
        archive.list(names::LOG, &after, &mut |entry| {
            last.clone_from(&entry.name);
            if let Some(name) = SegmentName::parse(&entry.name).filter(|n| n.size == entry.size && n.size > 0)
            {
                names.push(name);
            }
            Ok(names.len() < 1000)
        })?;
        if names.is_empty() {
            return Ok(());
        }
        for name in &names {
            let span = Span { timeline: name.timeline, first: name.segment, last: name.segment, bytes: 0 };
            let Some(bytes) = archive.get(&name.to_string(), name.size)? else { continue };
            found.objects += 1;
            found.bytes += name.size;
            let whole = log::whole(&bytes, archive.system(), name.timeline, name.segment);
            match whole.ok().filter(|_| name.is_of(&bytes)) {
                None => found.inventory.coverage.report(Fault::Damaged, span),
                Some((header, trailer)) => {
                    if link.as_ref().is_some_and(|l| breaks(l, name, &header)) {
                        found.inventory.coverage.report(Fault::Chain, span);
                    }
                    link = Some(Link { name: *name, trailer });
                }
            }
        }
    }
}

fn breaks(before: &Link, name: &SegmentName, header: &Header) -> bool {
    let follows = before.name.timeline == name.timeline && before.name.segment.next() == name.segment;
    follows && (header.prev_sha != before.trailer.sha || header.marks != before.trailer.marks)
}

fn backup(archive: &Archive, backup: &Backup, found: &mut Found) -> Result<()> {
    let m = match &backup.what {
        What::Whole(m, _) => m,
        What::Damaged(why) => {
            found.bad(&backup.label, why.clone());
            return Ok(());
        }
        // It may be being made.
        What::Unfinished => return Ok(()),
    };
    let dir = names::backup_dir(&backup.label);
    let known: BTreeSet<&str> = m.parts.iter().map(|p| p.name.as_str()).collect();
    let mut extra = Vec::new();
    archive.list(&dir, "", &mut |entry| {
        let part = entry.name.strip_prefix(&dir).and_then(|n| n.strip_prefix('/')).unwrap_or_default();
        if part != names::MANIFEST && !known.contains(part) {
            extra.push(part.to_owned());
        }
        Ok(extra.len() < 100)
    })?;
    for part in extra {
        found.bad(&backup.label, format!("'{part}' is not in its manifest"));
    }
    if let Some(problem) = found.inventory.broken(m) {
        found.bad(&backup.label, problem);
    }
    for part in &m.parts {
        if let Some(problem) = check_part(archive, &dir, part, found)? {
            found.bad(&backup.label, problem);
        }
    }
    Ok(())
}

fn check_part(archive: &Archive, dir: &str, part: &Part, found: &mut Found) -> Result<Option<String>> {
    let name = &part.name;
    let Some(mut reader) = archive.reader(&format!("{dir}/{name}"))? else {
        return Ok(Some(format!("'{name}' is missing")));
    };
    found.objects += 1;
    if reader.size() != part.size {
        return Ok(Some(format!("'{name}' has {} bytes, its manifest says {}", reader.size(), part.size)));
    }
    let (mut sha, mut buf) = (Sha256::new(), vec![0; CHUNK]);
    loop {
        match reader.read(&mut buf) {
            Ok(0) => break,
            Ok(n) => {
                sha.update(&buf[..n]);
                found.bytes += n as u64;
            }
            Err(e) => return Err(Error::from(e).wrap(&format!("cannot read '{dir}/{name}' in the archive"))),
        }
    }
    let is: [u8; 32] = sha.finalize().into();
    Ok((is != part.sha256.0).then(|| format!("the SHA-256 of '{name}' is not what its manifest says")))
}
