//! A base backup: as a directory, its files read on several threads; as a tar, in its order.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use rustix::fs::OFlags;

use super::findings::{Class, Findings};
use super::member::{self, Known, Packed, Role, Said, Seen};
use super::presence::{self, Expected};
use super::{Order, Outcome, chain};
use crate::catalog::{Catalog, blocks_of};
use crate::error::{Error, ErrorKind, Result};
use crate::log::inspect;
use crate::manifest::{self, Form, Manifest};
use crate::position::{Cut, FileId};
use crate::record::Kind;
use crate::set::{self, Member, Source, What};
use crate::sys::Root;

/// Most threads that read.
const THREADS_MAX: usize = 8;

/// Names and sizes of a set, and the sums of its files.
type Sums = HashMap<Vec<u8>, Seen>;

/// Checks a backup that is a directory.
pub(super) fn dir(path: &Path, order: &Order, findings: Findings) -> Result<Outcome> {
    let mut outcome = Outcome::new("backup");
    let root = Root::open(path).map_err(|e| Error::io("open", path, e))?;
    let bytes = match Source::Dir(path.to_owned()).manifest() {
        Ok(bytes) => bytes,
        Err(e) => {
            findings.add(Class::Manifest, manifest::NAME.as_bytes(), e.to_string());
            return Ok(outcome.close(findings));
        }
    };
    let Some(manifest) = manifest(&bytes, &findings) else { return Ok(outcome.close(findings)) };
    drop(bytes);
    outcome.of(&manifest);
    let members = set::walk(&root, &mut |name, e| {
        findings.add(Class::Unreadable, name, format!("it can't be read: {e}"));
    });
    let expected = presence::expected(&manifest);
    let sound = presence::files(&manifest, &expected, &members, &findings);
    outcome.files = members.iter().filter(|m| matches!(m.what, What::File(_))).count() as u64;
    if order.content && !findings.stopped() {
        let reading = Reading { root: &root, manifest: &manifest, expected: &expected, findings: &findings };
        let sums = reading.all(sound);
        outcome.bytes = sums.values().map(|s| s.len).sum();
        judge(&manifest, &expected, &members, sums, order, &findings);
        if order.replay && findings.none() {
            super::replay::check(path, &manifest, order, &findings, &mut outcome)?;
        }
    }
    Ok(outcome.close(findings))
}

/// Checks a backup that is a tar.
pub(super) fn tar(source: &Source, order: &Order, findings: Findings) -> Result<Outcome> {
    let mut outcome = Outcome::new("backup");
    let (mut members, mut sums, mut found) = (Vec::new(), Sums::new(), None);
    let mut buf = Vec::new();
    let read = source.members(&mut |m, content| {
        outcome.files += u64::from(matches!(m.what, What::File(_)));
        match &m.what {
            What::File(_) if m.name == manifest::NAME.as_bytes() => {
                found = Some(set::read_manifest(content)?);
            }
            What::File(size) if order.content && !findings.ignored(&m.name) => {
                let seen = member::read(&m.name, Role::of(&m.name), *size, content, &mut buf);
                let seen = seen.map_err(|e| Error::new(ErrorKind::Corrupt, e.to_string()))?;
                outcome.bytes += seen.len;
                sums.insert(m.name.clone(), seen);
            }
            What::Also(first) => {
                if let Some(seen) = sums.get(first) {
                    let seen = Seen { len: seen.len, sha: seen.sha, said: Said::Nothing };
                    sums.insert(m.name.clone(), seen);
                }
            }
            _ => {}
        }
        members.push(m);
        Ok(())
    });
    if let Err(e) = read {
        if members.is_empty() {
            // Nothing of a tar at all: named by mistake.
            return Err(e.with_kind(ErrorKind::Usage));
        }
        findings.add(Class::Unreadable, b"", e.to_string());
    }
    let Some(bytes) = found else {
        let text = "it is not there: this is no finished backup";
        findings.add(Class::Manifest, manifest::NAME.as_bytes(), text);
        return Ok(outcome.close(findings));
    };
    let Some(manifest) = manifest(&bytes, &findings) else { return Ok(outcome.close(findings)) };
    outcome.of(&manifest);
    let expected = presence::expected(&manifest);
    let sound = presence::files(&manifest, &expected, &members, &findings);
    if order.content && !findings.stopped() {
        sums.retain(|name, _| {
            sound.binary_search_by(|m| m.name.cmp(name)).is_ok() || expected.contains_key(name)
        });
        for member in &sound {
            compare(&member.name, &expected, &sums, &findings);
        }
        judge(&manifest, &expected, &members, sums, order, &findings);
    }
    Ok(outcome.close(findings))
}

/// The manifest, if anything can be made of it.
fn manifest(bytes: &[u8], findings: &Findings) -> Option<Manifest> {
    let name = manifest::NAME.as_bytes();
    let seal = manifest::seal(bytes).map(drop);
    let read = Manifest::parse_unsealed(bytes);
    if let Err(e) = &seal {
        findings.add(Class::Manifest, name, e.to_string());
    }
    match read {
        Ok(manifest) => Some(manifest),
        Err(e) => {
            if seal != Err(e.clone()) {
                findings.add(Class::Manifest, name, e.to_string());
            }
            None
        }
    }
}

/// Compares the sum of one file.
fn compare(name: &[u8], expected: &HashMap<Vec<u8>, Expected>, sums: &Sums, findings: &Findings) {
    let Some((want, seen)) = expected.get(name).zip(sums.get(name)) else { return };
    if seen.len != want.size {
        let text = format!("it has {} bytes, in the manifest {}", seen.len, want.size);
        findings.add(Class::Size, name, text);
    } else if seen.sha != want.sha {
        let text = format!("its SHA-256 is {}, in the manifest {}", seen.sha, want.sha);
        findings.add(Class::Content, name, text);
    }
}

/// The files of a directory, read on several threads.
struct Reading<'a> {
    root: &'a Root,
    manifest: &'a Manifest,
    expected: &'a HashMap<Vec<u8>, Expected>,
    findings: &'a Findings,
}

impl Reading<'_> {
    fn all(&self, mut members: Vec<&Member>) -> Sums {
        members.retain(|m| !self.findings.ignored(&m.name));
        // The largest first, so that no thread has one to itself at the end.
        let size = |m: &Member| if let What::File(size) = m.what { size } else { 0 };
        members.sort_by_key(|m| std::cmp::Reverse(size(m)));
        let (next, sums) = (AtomicUsize::new(0), Mutex::new(Sums::new()));
        let work = || {
            let mut buf = Vec::new();
            while let Some(member) = members.get(next.fetch_add(1, Ordering::Relaxed)) {
                if self.findings.stopped() {
                    return;
                }
                match self.one(&member.name, size(member), &mut buf) {
                    Ok(seen) => {
                        let mut sums = sums.lock().unwrap_or_else(PoisonError::into_inner);
                        sums.insert(member.name.clone(), seen);
                        compare(&member.name, self.expected, &sums, self.findings);
                    }
                    Err(e) => {
                        self.findings.add(Class::Unreadable, &member.name, format!("it can't be read: {e}"));
                    }
                }
            }
        };
        let threads = std::thread::available_parallelism().map_or(2, usize::from).min(THREADS_MAX);
        std::thread::scope(|scope| {
            for _ in 1..threads {
                // A panic: the scope ends with it, and so does the command. Nothing is called good.
                scope.spawn(work);
            }
            work();
        });
        sums.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    fn one(&self, name: &[u8], size: u64, buf: &mut Vec<u8>) -> io::Result<Seen> {
        let file = self.root.open_beneath(name, OFlags::RDONLY | OFlags::NONBLOCK, 0)?;
        let role = match self.expected.get(name).and_then(|e| e.id) {
            Some(id) => Role::Data(Some((self.manifest.system, id))),
            None => Role::of(name),
        };
        member::read(name, role, size, &mut fs::File::from(file), buf)
    }
}

/// What the files say, about themselves and each other.
fn judge(
    manifest: &Manifest,
    expected: &HashMap<Vec<u8>, Expected>,
    members: &[Member],
    sums: Sums,
    order: &Order,
    findings: &Findings,
) {
    let (mut catalog, mut known, mut packs, mut log) = (None, None, Vec::new(), Vec::new());
    let mut contents: HashMap<FileId, (Vec<u8>, u128)> = HashMap::new();
    for (name, seen) in sums {
        match seen.said {
            Said::Catalog(Ok(read)) => catalog = Some(read),
            Said::Blocks(Ok(read)) => known = Some(read),
            Said::Pack(Ok(read)) => packs.push((name, read)),
            Said::Segment(report) => log.push((name, *report)),
            Said::Catalog(Err(e)) => findings.add(Class::Catalog, &name, e),
            Said::Blocks(Err(e)) => findings.add(Class::Blocks, &name, format!("it is damaged: {e}")),
            Said::History(read) => {
                if let Err(why) = read.and_then(|h| manifest.fits(&h)) {
                    findings.add(Class::History, &name, why);
                }
            }
            Said::Pack(Err(e)) => findings.add(Class::Pack, &name, format!("it is damaged: {e}")),
            Said::Content(sum) => {
                if let Some(id) = expected.get(&name).and_then(|e| e.id) {
                    let first = contents.entry(id).or_insert_with(|| (name.clone(), sum));
                    // Of several names always the same is told.
                    if name < first.0 {
                        *first = (name, sum);
                    }
                }
            }
            Said::Nothing => {}
        }
    }
    if let Some(catalog) = &catalog {
        position(manifest, catalog, findings);
        presence::tree(manifest, expected, members, catalog, findings);
        if manifest.form == Form::Tree {
            whole(catalog, &contents, known.as_ref(), findings);
        }
        packed(manifest, catalog, &packs, findings);
    }
    let deaf = findings.ignored(manifest::LOG.as_bytes());
    if order.log && !deaf && manifest.form != Form::Tree {
        chain::ranges(manifest, log, findings);
    }
}

fn position(manifest: &Manifest, catalog: &Catalog, findings: &Findings) {
    let name = manifest::CATALOG.as_bytes();
    if catalog.system() != manifest.system {
        let text = format!("it is of system {}, the backup of {}", catalog.system(), manifest.system);
        findings.add(Class::Catalog, name, text);
    }
    let want = if manifest.form == Form::Tree { manifest.end } else { manifest.start };
    if catalog.lsn() != want {
        findings.add(Class::Catalog, name, format!("it is the tree as of {}, not of {want}", catalog.lsn()));
    }
    if manifest.form == Form::Tree && manifest.exact && catalog.cut() != Cut::Exact {
        findings.add(Class::Catalog, name, "it is no exact cut, as the manifest says");
    }
}

/// Form tree: contents and block hashes are those of the catalog.
fn whole(
    catalog: &Catalog,
    contents: &HashMap<FileId, (Vec<u8>, u128)>,
    known: Option<&Known>,
    findings: &Findings,
) {
    let name = manifest::BLOCKS.as_bytes();
    for inode in catalog.inodes().filter(|i| i.kind == Kind::File && i.size > 0) {
        if let Some((name, sum)) = contents.get(&inode.id)
            && inode.hashed
            && *sum != inode.content
        {
            findings.add(Class::Catalog, name, "its content is not that of the catalog, by the block hashes");
        }
        let Some(known) = known else { continue };
        match known.get(&inode.id) {
            None => findings.add(Class::Blocks, name, format!("it has no hashes of file {}", inode.id)),
            Some((count, sum)) => {
                let right = u64::from(*count) == blocks_of(inode.size) && *sum == inode.content;
                if inode.hashed && !right {
                    findings.add(
                        Class::Blocks,
                        name,
                        format!("its hashes of file {} are not the catalog's", inode.id),
                    );
                }
            }
        }
    }
    for id in known.into_iter().flat_map(Known::keys) {
        if catalog.get(*id).is_none_or(|i| i.kind != Kind::File) {
            findings.add(
                Class::Blocks,
                name,
                format!("it has hashes of file {id}, which the catalog does not know"),
            );
        }
    }
}

/// Form packs: the contents are those of files of the catalog, and all of them are there.
fn packed(manifest: &Manifest, catalog: &Catalog, packs: &[(Vec<u8>, Packed)], findings: &Findings) {
    let mut ends: HashMap<FileId, u32> = HashMap::new();
    for (name, pack) in packs {
        if pack.system != manifest.system {
            let text = format!("it is of system {}, the backup of {}", pack.system, manifest.system);
            findings.add(Class::Pack, name, text);
        }
        for (id, count) in &pack.ends {
            *ends.entry(*id).or_default() += count;
            if catalog.get(*id).is_none_or(|i| i.kind != Kind::File) {
                findings.add(
                    Class::Pack,
                    name,
                    format!("it holds file {id}, which the catalog does not know"),
                );
            }
        }
    }
    let all = manifest.parts.iter().filter(|p| p.name.starts_with("pack-")).count() == packs.len();
    if manifest.form != Form::Packs || manifest.base.is_some() || !all {
        return;
    }
    for inode in catalog.inodes().filter(|i| i.kind == Kind::File && i.size > 0) {
        if ends.get(&inode.id).is_none_or(|n| *n == 0) {
            let path = catalog.path(inode.id).unwrap_or_default();
            let text = format!("the packs do not hold all of '{}' (file {})", set::shown(&path), inode.id);
            findings.add(Class::Pack, b"", text);
        }
    }
}

/// For [`super::state`].
pub(super) type Segments = Vec<(Vec<u8>, inspect::Report)>;
