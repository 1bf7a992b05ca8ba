//! Names, kinds and sizes: what there should be, and what there is.

use std::collections::{HashMap, HashSet};

use super::findings::{Class, Findings};

use crate::catalog::{Catalog, Inode};
use crate::manifest::{self, Form, Manifest, Sha};
use crate::position::FileId;
use crate::record::Kind;
use crate::set::{Member, What, shown};

/// A file that the manifest names.
#[derive(Clone, Copy, Debug)]
pub(super) struct Expected {
    pub(super) size: u64,
    pub(super) sha: Sha,
    /// The file of the catalog, of contents.
    pub(super) id: Option<FileId>,
}

/// All files that the manifest names, by their names in the set.
pub(super) fn expected(manifest: &Manifest) -> HashMap<Vec<u8>, Expected> {
    let parts = manifest
        .parts
        .iter()
        .map(|p| (p.name.clone().into_bytes(), Expected { size: p.size, sha: p.sha256, id: None }));
    let dir = manifest.form.dir().unwrap_or_default();
    let files = manifest.files.iter().map(|f| {
        let name = [dir.as_bytes(), b"/", &f.path].concat();
        (name, Expected { size: f.size, sha: f.sha256, id: Some(f.id) })
    });
    parts.chain(files).collect()
}

fn word(what: &What) -> &'static str {
    match what {
        What::File(_) | What::Also(_) => "a regular file",
        What::Dir => "a directory",
        What::Symlink(_) => "a symlink",
        What::Other(Kind::Fifo) => "a FIFO",
        What::Other(Kind::Socket) => "a socket",
        What::Other(_) => "a device",
    }
}

fn kind_of(what: &What) -> Kind {
    match what {
        What::File(_) | What::Also(_) => Kind::File,
        What::Dir => Kind::Dir,
        What::Symlink(_) => Kind::Symlink,
        What::Other(kind) => *kind,
    }
}

/// Compares the names with the manifest. Returns those that are what they should be, as far as sizes tell.
pub(super) fn files<'m>(
    manifest: &Manifest,
    expected: &HashMap<Vec<u8>, Expected>,
    members: &'m [Member],
    findings: &Findings,
) -> Vec<&'m Member> {
    let (mut sound, mut there) = (Vec::new(), HashSet::new());
    let dir = manifest.form.dir();
    for member in members {
        if findings.stopped() {
            return sound;
        }
        let name = &member.name[..];
        if name == manifest::NAME.as_bytes() {
            continue;
        }
        let Some(want) = expected.get(name) else {
            let inside = dir.is_some_and(|d| within(name, d.as_bytes()));
            // What else there is below the directory of contents is the catalog's business.
            let known = match member.what {
                What::Dir => inside || name == b"log" || dir.is_some_and(|d| d.as_bytes() == name),
                What::File(_) | What::Also(_) => false,
                _ => inside,
            };
            if !known {
                let what = word(&member.what);
                findings.add(Class::Extra, name, format!("{what} that the manifest does not name"));
            }
            continue;
        };
        there.insert(name);
        match member.what {
            What::File(size) if size != want.size => {
                let text = format!("it has {size} bytes, in the manifest {}", want.size);
                findings.add(Class::Size, name, text);
            }
            What::File(_) | What::Also(_) => sound.push(member),
            _ => findings.add(Class::Kind, name, format!("it is {}, no regular file", word(&member.what))),
        }
    }
    for name in expected.keys().filter(|n| !there.contains(&n[..])) {
        findings.add(Class::Missing, name, "the manifest names it, and it is not there");
    }
    sound
}

fn within(name: &[u8], dir: &[u8]) -> bool {
    name.strip_prefix(dir).is_some_and(|rest| rest.first() == Some(&b'/'))
}

/// The names of an inode below the root of its tree.
pub(super) fn paths<'c>(catalog: &'c Catalog, inode: &Inode<'_>) -> impl Iterator<Item = Vec<u8>> + 'c {
    catalog.names(inode.id).filter_map(|(dir, name)| {
        let mut path = catalog.path(dir)?;
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name);
        Some(path)
    })
}

/// Compares the tree of the catalog with the manifest and with what is there.
pub(super) fn tree(
    manifest: &Manifest,
    expected: &HashMap<Vec<u8>, Expected>,
    members: &[Member],
    catalog: &Catalog,
    findings: &Findings,
) {
    let Some(dir) = manifest.form.dir() else { return };
    let named = |path: &[u8]| [dir.as_bytes(), b"/", path].concat();
    let there: HashMap<&[u8], &What> = members.iter().map(|m| (&m.name[..], &m.what)).collect();
    let (mut other, mut files) = (HashSet::new(), 0);
    for inode in catalog.inodes() {
        for path in paths(catalog, &inode) {
            let name = named(&path);
            if inode.kind != Kind::File {
                node(manifest.form, &inode, &name, there.get(&name[..]).copied(), findings);
                other.insert(name);
                continue;
            }
            files += 1;
            if manifest.form != Form::Tree {
                continue;
            }
            match expected.get(&name) {
                None => findings.add(Class::Catalog, &name, "it is in the catalog and not in the manifest"),
                Some(e) if e.id != Some(inode.id) => {
                    let id = e.id.unwrap_or_default();
                    let text = format!("it is file {} in the catalog and {id} in the manifest", inode.id);
                    findings.add(Class::Catalog, &name, text);
                }
                Some(e) if e.size != inode.size => {
                    let text =
                        format!("it has {} bytes in the catalog, in the manifest {}", inode.size, e.size);
                    findings.add(Class::Catalog, &name, text);
                }
                Some(_) => {}
            }
        }
    }
    if manifest.form == Form::Tree && files != manifest.files.len() {
        for file in manifest.files.iter().filter(|f| catalog.resolve(&f.path) != Some(f.id)) {
            findings.add(Class::Catalog, &named(&file.path), "it is in the manifest and not in the catalog");
        }
    }
    for member in members.iter().filter(|m| within(&m.name, dir.as_bytes())) {
        if kind_of(&member.what) != Kind::File
            && !other.contains(&member.name)
            && !expected.contains_key(&member.name)
        {
            let text = format!("{} that the catalog does not name", word(&member.what));
            findings.add(Class::Extra, &member.name, text);
        }
    }
}

/// Something that is no regular file.
fn node(form: Form, inode: &Inode<'_>, name: &[u8], there: Option<&What>, findings: &Findings) {
    let kind = match inode.kind {
        Kind::Dir => "a directory",
        Kind::Symlink => "a symlink",
        Kind::Fifo => "a FIFO",
        Kind::Socket => "a socket",
        _ => "a device",
    };
    match there {
        // A tar leaves out what the catalog holds completely; devices are made by root only.
        None if form != Form::Tree || !matches!(inode.kind, Kind::Dir | Kind::Symlink | Kind::Fifo) => {}
        None => {
            findings.add(Class::Missing, name, format!("{kind} that the catalog names, and it is not there"))
        }
        Some(What::Symlink(target)) if inode.kind == Kind::Symlink => {
            let want = inode.target.unwrap_or_default();
            if target != want {
                let text = format!("it points to '{}', in the catalog to '{}'", shown(target), shown(want));
                findings.add(Class::Kind, name, text);
            }
        }
        Some(what) if kind_of(what) != inode.kind => {
            findings.add(Class::Kind, name, format!("it is {}, in the catalog {kind}", word(what)));
        }
        Some(_) => {}
    }
}
