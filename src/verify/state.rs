//! A state directory: control file, log, checkpoints, and whether they belong together. Nothing is locked: a node may run.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::backup::Segments;
use super::findings::{Class, Findings};
use super::{Order, Outcome, chain};
use crate::catalog::{Catalog, blocks_of};
use crate::checkpoint;
use crate::error::{ErrorKind, Result};
use crate::log::inspect::{self, Ending};
use crate::position::{FileId, Lsn};
use crate::record::Kind;
use crate::segment;
use crate::state::{Control, StateDir};

/// Checks the directory.
pub(super) fn check(order: &Order, findings: Findings) -> Result<Outcome> {
    let (dir, mut outcome) = (&order.path, Outcome::new("state"));
    let control = match StateDir::peek(dir) {
        Ok(control) => control,
        Err(e) => {
            findings.add(Class::State, b"control", e.to_string());
            None
        }
    };
    let segments = if order.log && order.content { log(dir, &findings, &mut outcome) } else { Vec::new() };
    for (name, report) in &segments {
        if let Some(control) = &control
            && !report.system.is_empty()
            && report.system != control.system.to_string()
        {
            let text = format!("it is of system {}, the node of {}", report.system, control.system);
            findings.add(Class::Log, name, text);
        }
    }
    let catalogs = if order.content { catalogs(dir, &findings, &mut outcome) } else { Vec::new() };
    if let Some(control) = &control {
        belong(dir, control, &segments, &catalogs, &findings);
    }
    Ok(outcome.close(findings))
}

fn list(dir: &Path, findings: &Findings, wanted: impl Fn(&[u8]) -> bool) -> Vec<PathBuf> {
    let sub = dir.file_name().map(OsStrExt::as_bytes).unwrap_or_default().to_vec();
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) => {
            let class = if e.kind() == io::ErrorKind::NotFound { Class::Missing } else { Class::Unreadable };
            findings.add(class, &sub, format!("it can't be listed: {e}"));
            return Vec::new();
        }
    };
    let mut found: Vec<_> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.file_name().is_some_and(|n| wanted(n.as_bytes())))
        .collect();
    found.sort();
    found
}

fn is_segment(name: &[u8]) -> bool {
    segment::parse_name(name).is_some() || segment::parse_ended(name).is_some()
}

/// The name of a file below the state directory.
fn relative(dir: &Path, path: &Path) -> Vec<u8> {
    path.strip_prefix(dir).unwrap_or(path).as_os_str().as_bytes().to_vec()
}

fn log(dir: &Path, findings: &Findings, outcome: &mut Outcome) -> Segments {
    let mut found = Segments::new();
    for path in list(&dir.join("log"), findings, is_segment) {
        if findings.stopped() {
            break;
        }
        let name = relative(dir, &path);
        if findings.ignored(&name) {
            continue;
        }
        match inspect::look(&path) {
            Ok(report) => {
                outcome.files += 1;
                outcome.bytes += report.stored_bytes;
                found.push((name, report));
            }
            // A running node removes old log.
            Err(_) if !path.exists() => {}
            Err(e) => findings.add(Class::Unreadable, &name, e.to_string()),
        }
    }
    chain::segments(&mut found, findings);
    if let Some((_, rest)) = found.split_last() {
        for (name, _) in rest.iter().filter(|(_, r)| r.ending == Ending::Torn) {
            findings.add(Class::Log, name, "its end is torn, and it is not the newest segment");
        }
    }
    found
}

fn catalogs(dir: &Path, findings: &Findings, outcome: &mut Outcome) -> Vec<(Vec<u8>, Catalog)> {
    let mut found = Vec::new();
    for path in list(&dir.join("catalog"), findings, |n| n.ends_with(b".catalog")) {
        let name = relative(dir, &path);
        if findings.stopped() || findings.ignored(&name) {
            continue;
        }
        match checkpoint::load(&path) {
            Ok(catalog) => {
                outcome.files += 1;
                outcome.bytes += fs::metadata(&path).map_or(0, |m| m.len());
                found.push((name, catalog));
            }
            Err(_) if !path.exists() => {}
            Err(e) if e.kind() == ErrorKind::Io => findings.add(Class::Unreadable, &name, e.to_string()),
            Err(e) => findings.add(Class::Catalog, &name, e.to_string()),
        }
    }
    found
}

/// Whether one is the other's.
fn belong(
    dir: &Path,
    control: &Control,
    segments: &Segments,
    catalogs: &[(Vec<u8>, Catalog)],
    findings: &Findings,
) {
    for (name, catalog) in catalogs.iter().filter(|(_, c)| c.system() != control.system) {
        let text = format!("it is of system {}, the node of {}", catalog.system(), control.system);
        findings.add(Class::Catalog, name, text);
    }
    let Some((name, newest)) = catalogs.last() else { return };
    let spans: Vec<(Lsn, Lsn)> = segments.iter().filter_map(|(_, r)| r.span()).collect();
    let Some((first, last)) = spans.first().zip(spans.last()) else {
        if !findings.ignored(b"log") {
            findings.add(Class::Log, b"log", "there is no segment in it");
        }
        return;
    };
    let (from, to) = (first.0, last.1);
    // Log that is older than the newest checkpoint may be gone, what follows it may not.
    if newest.lsn() < from {
        let text = format!("it is the tree as of {}, and the log begins at {from} only", newest.lsn());
        findings.add(Class::State, name, text);
    }
    if newest.lsn() > to {
        let text = format!("it is the tree as of {}, and the log ends at {to} before that", newest.lsn());
        findings.add(Class::State, name, text);
    }
    if newest.lsn() == to && !findings.stopped() {
        hashes(dir, newest, findings, || still(dir, to));
    }
}

/// Whether the log still ends there: nothing was changed meanwhile.
fn still(dir: &Path, end: Lsn) -> bool {
    let quiet = Findings::new(Vec::new(), true);
    let newest = list(&dir.join("log"), &quiet, is_segment).pop();
    let report = newest.and_then(|path| inspect::look(&path).ok());
    report.and_then(|r| r.span()).is_none_or(|(_, to)| to == end)
}

/// Compares the hash files with the catalog, where the log holds nothing newer.
fn hashes(dir: &Path, catalog: &Catalog, findings: &Findings, still: impl Fn() -> bool) {
    let many = catalog.inodes().filter(|i| i.kind == Kind::File && i.hashed && blocks_of(i.size) > 1);
    let suspects = fs::read(dir.join("blocks/suspects")).unwrap_or_default();
    let suspect = |id: FileId| {
        let ids = suspects.chunks_exact(16).filter_map(|c| c.first_chunk::<8>());
        ids.map(|b| u64::from_le_bytes(*b)).any(|s| s == id.0)
    };
    for inode in many {
        let name = format!("blocks/{:02x}/{:016x}", inode.id.0 & 0xff, inode.id.0);
        let count = blocks_of(inode.size);
        let right = match sum(&dir.join(&name), count) {
            Ok(sum) => sum == inode.content,
            Err(e) if e.kind() == io::ErrorKind::NotFound => false,
            Err(e) => {
                findings.add(Class::Unreadable, name.as_bytes(), format!("it can't be read: {e}"));
                continue;
            }
        };
        if !right && !suspect(inode.id) {
            if !still() {
                return;
            }
            let path = catalog.path(inode.id).unwrap_or_default();
            let text = format!("its hashes are not those of '{}' in the catalog", crate::set::shown(&path));
            findings.add(Class::Blocks, name.as_bytes(), text);
        }
    }
}

fn sum(path: &Path, count: u64) -> io::Result<u128> {
    use std::io::Read as _;
    let mut file = io::BufReader::new(fs::File::open(path)?.take(count.saturating_mul(16)));
    let (mut sum, mut hash) = (0_u128, [0; 16]);
    loop {
        match file.read_exact(&mut hash) {
            Ok(()) => sum = sum.wrapping_add(u128::from_le_bytes(hash)),
            // Blocks behind the end of the file are zeros.
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(sum),
            Err(e) => return Err(e),
        }
    }
}
