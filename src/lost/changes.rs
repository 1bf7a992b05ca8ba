//! The changes of a walk, one line for each thing that somebody may miss.

use std::fmt::Write as _;

use serde::Serialize;

use super::walk::{Touch, Walk};
use crate::catalog::{Catalog, Inode};
use crate::moment::Moment;
use crate::position::FileId;
use crate::record::{Attrs, Kind};

/// What happened to a file.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum What {
    /// It is new.
    Created,
    /// It has another content.
    Changed,
    /// It has another name, or one more, or one less.
    Renamed,
    /// Its mode, owner, time or extended attributes, and nothing else.
    Attributes,
    /// It is gone.
    Deleted,
}

impl What {
    fn word(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Changed => "changed",
            Self::Renamed => "renamed",
            Self::Attributes => "attributes",
            Self::Deleted => "deleted",
        }
    }
}

/// One thing that is different at the end of the log that was left behind. Names are escaped ASCII.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Change {
    /// Its path at the end; of what is gone, the last that is known.
    pub path: String,
    /// Its further names at the end.
    pub links: Vec<String>,
    /// Its path before, if that is another one and known.
    pub was: Option<String>,
    /// What happened, at least one.
    pub what: Vec<What>,
    /// `file`, `dir`, `symlink`, and so on; empty when that is not known.
    pub kind: String,
    /// Bytes of a file at the end.
    pub size: Option<u64>,
    /// Bytes of it before, if that is known.
    pub old_size: Option<u64>,
    /// When it was last written to, as the file system said.
    pub mtime: Option<String>,
    /// Whether the log has all of its content; only of a file that was created or changed.
    pub whole: Option<bool>,
    /// The stretches that the log has, `[from, to)`; only where it has not all.
    pub extents: Vec<(u64, u64)>,
    #[serde(skip)]
    pub(super) id: FileId,
}

/// How many there are of each.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, serde::Deserialize)]
#[serde(default)]
pub struct Counts {
    /// New files, directories and so on.
    pub created: u64,
    /// Files with another content.
    pub changed: u64,
    /// Names that are others.
    pub renamed: u64,
    /// Attributes alone.
    pub attributes: u64,
    /// What is gone.
    pub deleted: u64,
}

impl Counts {
    pub(super) fn of(changes: &[Change]) -> Self {
        let mut counts = Self::default();
        for what in changes.iter().flat_map(|c| &c.what) {
            match what {
                What::Created => counts.created += 1,
                What::Changed => counts.changed += 1,
                What::Renamed => counts.renamed += 1,
                What::Attributes => counts.attributes += 1,
                What::Deleted => counts.deleted += 1,
            }
        }
        counts
    }

    /// All of them.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.created + self.changed + self.renamed + self.attributes + self.deleted
    }
}

fn shown(path: &[u8]) -> String {
    path.escape_ascii().to_string()
}

/// Every path of an inode, ascending.
pub(super) fn paths(catalog: &Catalog, id: FileId) -> Vec<Vec<u8>> {
    let mut all: Vec<Vec<u8>> = catalog
        .names(id)
        .filter_map(|(parent, name)| {
            let mut path = catalog.path(parent)?;
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(name);
            Some(path)
        })
        .collect();
    all.sort();
    all
}

/// The changes, in the order of their paths.
pub(super) fn changes(walk: &Walk) -> Vec<Change> {
    let mut out = Vec::new();
    let Walk { before, after, touched, named, unlinked } = walk;
    if let Some(after) = after {
        let ids = touched.keys().chain(named.iter().filter(|id| !touched.contains_key(id)));
        let named = |id| named.contains(id);
        out.extend(ids.filter_map(|id| there(before.as_ref(), after, (*id, named(id)), touched.get(id))));
    } else {
        // Nothing is known but numbers.
        out.extend(touched.iter().filter(|(_, t)| t.content || t.created).map(|(id, t)| Change {
            what: vec![if t.created { What::Created } else { What::Changed }],
            ..blank(*id, format!("(file {id})"))
        }));
    }
    match (before, after) {
        (Some(before), Some(after)) => {
            let gone = before.ids().filter(|id| !after.contains(*id));
            out.extend(gone.filter_map(|id| {
                let (inode, path) = (before.get(id)?, paths(before, id));
                let path = shown(path.first()?);
                Some(Change { old_size: size(&inode), ..of(&inode, path, vec![What::Deleted]) })
            }));
        }
        (None, Some(after)) => {
            let gone = unlinked.iter().filter(|(parent, name)| after.lookup(*parent, name).is_none());
            out.extend(gone.map(|(parent, name)| {
                let dir = after.path(*parent).map_or_else(|| format!("(directory {parent})"), |p| shown(&p));
                let slash = if dir.is_empty() { "" } else { "/" };
                let path = format!("{dir}{slash}{}", shown(name));
                Change { what: vec![What::Deleted], ..blank(FileId(0), path) }
            }));
        }
        _ => {}
    }
    out.sort_by(|a, b| (&a.path, a.id).cmp(&(&b.path, b.id)));
    out
}

fn blank(id: FileId, path: String) -> Change {
    Change {
        path,
        links: Vec::new(),
        was: None,
        what: Vec::new(),
        kind: String::new(),
        size: None,
        old_size: None,
        mtime: None,
        whole: None,
        extents: Vec::new(),
        id,
    }
}

fn size(inode: &Inode<'_>) -> Option<u64> {
    (inode.kind == Kind::File).then_some(inode.size)
}

fn of(inode: &Inode<'_>, path: String, what: Vec<What>) -> Change {
    let time = inode.attrs.mtime;
    let ns = time.sec.saturating_mul(1_000_000_000).saturating_add(i64::from(time.nsec));
    let kind = format!("{:?}", inode.kind).to_lowercase();
    Change { kind, mtime: Some(Moment(ns).to_string()), what, ..blank(inode.id, path) }
}

/// What is there at the end, and is not what it was. `named`: it got or lost a name.
fn there(
    before: Option<&Catalog>,
    after: &Catalog,
    (id, named): (FileId, bool),
    touch: Option<&Touch>,
) -> Option<Change> {
    let (inode, now) = (after.get(id)?, paths(after, id));
    let old = before.and_then(|c| c.get(id));
    let was = before.map(|c| paths(c, id)).unwrap_or_default();
    let created = old.is_none() && (before.is_some() || touch.is_some_and(|t| t.created));
    let content = inode.kind == Kind::File && touch.is_some_and(|t| t.content);
    let mut what = Vec::new();
    if created {
        what.push(What::Created);
    } else if content {
        what.push(What::Changed);
    }
    // Where it was is not known without the tree before.
    if !created && before.map_or(named, |_| was != now) {
        what.push(What::Renamed);
    }
    if what.is_empty() && touch.is_some_and(|t| t.attrs) && dressed_anew(old.as_ref(), &inode) {
        what.push(What::Attributes);
    }
    if what.is_empty() {
        return None;
    }
    let path = now.first().map_or_else(|| "(no name)".to_owned(), |p| shown(p));
    let links = now.iter().skip(1).map(|p| shown(p)).collect();
    let was = was.first().map(|p| shown(p)).filter(|p| what.contains(&What::Renamed) && *p != path);
    let told = touch.filter(|_| inode.kind == Kind::File && (created || content));
    let whole = told.map(|t| created || t.is_whole(inode.size));
    let extents = told.filter(|_| whole == Some(false)).map(|t| t.known(inode.size)).unwrap_or_default();
    let old_size = old.as_ref().and_then(size);
    Some(Change { links, was, size: size(&inode), old_size, whole, extents, ..of(&inode, path, what) })
}

/// Whether attributes are others. The time of a directory changes with every name in it.
fn dressed_anew(old: Option<&Inode<'_>>, new: &Inode<'_>) -> bool {
    let Some(old) = old else { return new.kind != Kind::Dir };
    let dir = new.kind == Kind::Dir;
    let but_time = |a: Attrs| (a.mode, a.uid, a.gid);
    but_time(old.attrs) != but_time(new.attrs)
        || old.xattrs != new.xattrs
        || (!dir && old.attrs.mtime != new.attrs.mtime)
}

/// The list for people: a line for each change.
pub(super) fn text(changes: &[Change]) -> String {
    let mut text = "# what\tkind\tsize\tmodified\tpath\n".to_owned();
    for c in changes {
        let what: Vec<&str> = c.what.iter().map(|w| w.word()).collect();
        let or_dash = |s: Option<String>| s.unwrap_or_else(|| "-".to_owned());
        let (size, mtime) = (or_dash(c.size.or(c.old_size).map(|n| n.to_string())), or_dash(c.mtime.clone()));
        let kind = if c.kind.is_empty() { "-" } else { &c.kind };
        // Writing to a text can't fail.
        let _ = write!(text, "{}\t{kind}\t{size}\t{mtime}\t{}", what.join("+"), c.path);
        if let Some(was) = &c.was {
            let _ = write!(text, "\tfrom {was}");
        }
        for link in &c.links {
            let _ = write!(text, "\talso {link}");
        }
        if c.whole == Some(false) {
            let _ = write!(text, "\t{}", extents(&c.extents));
        }
        text.push('\n');
    }
    text
}

/// The stretches of a file in words; of very many only the first.
pub(super) fn extents(extents: &[(u64, u64)]) -> String {
    const SHOWN: usize = 8;
    let parts: Vec<String> = extents.iter().take(SHOWN).map(|(from, to)| format!("{from}-{to}")).collect();
    let more =
        if extents.len() > SHOWN { format!(" and {} more", extents.len() - SHOWN) } else { String::new() };
    format!("extents {}{more}", parts.join(" "))
}
