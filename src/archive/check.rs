//! Reads every object of an archive and says what is wrong: segments against their names, their own checksums and the
//! chain of hashes, which goes over branches, too; the ends of lines against the branches; parts of backups against the manifest.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;

use sha2::{Digest, Sha256};

use super::coverage::{Fault, Span};
use super::inventory::{Backup, Inventory, What};
use super::names::EndedName;
use super::{Archive, SegmentName, names};
use crate::error::{Error, ErrorKind, Result};
use crate::log;
use crate::manifest::Part;
use crate::position::TimelineId;
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
        let histories = self.inventory.bad_histories().next().is_none();
        log.problems.is_empty() && log.more == 0 && self.backups.is_empty() && histories
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

/// A good segment, to which the next has to be chained.
#[derive(Clone, Copy)]
struct Link {
    name: SegmentName,
    trailer: Trailer,
}

impl Link {
    /// Whether the segment with this header, the next one by its number, was written after this one.
    fn leads_to(&self, header: &Header) -> bool {
        (header.prev_sha, header.marks) == (self.trailer.sha, self.trailer.marks)
    }
}

/// The log as far as it was read.
#[derive(Default)]
struct Chain {
    /// The last good segments, the newest first: a line may have sealed its last one itself, too.
    last: [Option<Link>; 2],
    /// The ends of lines, by the timelines that ended them.
    ends: BTreeMap<TimelineId, Link>,
}

impl Chain {
    /// Takes a good segment; what is wrong with its place.
    fn take(&mut self, link: Link, by: Option<TimelineId>, header: &Header, found: &Found) -> Option<Fault> {
        let SegmentName { timeline, segment, .. } = link.name;
        let of_line = self.last.iter().flatten().filter(|l| l.name.timeline == timeline);
        // A node that had no log of the line before did not know its end.
        let ended = self.ends.get(&timeline).filter(|_| header.prev_sha != [0; 32]);
        let before = of_line.chain(ended).filter(|l| l.name.segment.next() == segment);
        let leads: Vec<bool> = before.map(|l| l.leads_to(header)).collect();
        let broken = (!leads.is_empty() && !leads.contains(&true)).then_some(Fault::Chain);
        let Some(by) = by else {
            self.last = [Some(link), self.last[0]];
            return broken;
        };
        self.ends.insert(by, link);
        let history = found.inventory.histories.get(&by).and_then(|h| h.as_ref().ok());
        let branch = history.and_then(|h| h.branches().last());
        let other = branch.is_some_and(|b| b.parent != timeline || b.at != link.trailer.end);
        broken.or(other.then_some(Fault::Branch))
    }
}

fn segments(archive: &Archive, found: &mut Found) -> Result<()> {
    let mut names: Vec<(SegmentName, Option<TimelineId>)> = Vec::new();
    let mut last = String::new();
    let mut chain = Chain::default();
    loop {
        // A page of names at a time: reading takes long, and a listing does not wait.
        names.clear();
        let after = std::mem::take(&mut last);
        archive.list(names::LOG, &after, &mut |entry| {
            last.clone_from(&entry.name);
            let own = SegmentName::parse(&entry.name).map(|name| (name, None));
            let name = own.or_else(|| EndedName::parse(&entry.name).map(|e| (e.of, Some(e.by))));
            names.extend(name.filter(|(n, _)| n.size == entry.size && n.size > 0));
            Ok(names.len() < 1000)
        })?;
        if names.is_empty() {
            return Ok(());
        }
        for (name, by) in &names {
            let span = Span { timeline: name.timeline, first: name.segment, last: name.segment, bytes: 0 };
            let object = by.map_or_else(|| name.to_string(), |by| EndedName { of: *name, by }.to_string());
            let Some(bytes) = archive.get(&object, name.size)? else { continue };
            found.objects += 1;
            found.bytes += name.size;
            let whole = log::whole(&bytes, archive.system(), name.timeline, name.segment);
            let fault = match whole.ok().filter(|_| name.is_of(&bytes)) {
                None => Some(if by.is_some() { Fault::EndDamaged } else { Fault::Damaged }),
                Some((header, trailer)) => chain.take(Link { name: *name, trailer }, *by, &header, found),
            };
            fault.into_iter().for_each(|fault| found.inventory.coverage.report(fault, span));
        }
    }
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
