//! The stage: what a pass has found so far, laid over the catalog. Examining a thing twice leaves
//! it as the second look saw it; what becomes of it is decided at the commit.

use std::collections::{BTreeSet, HashMap};

use crate::catalog::{Catalog, Seen};
use crate::position::FileId;
use crate::record::{Attrs, Kind, Time};
use crate::sys::Stat;

/// Most staged block hashes of one file; a file that changed more is looked at only once in a pass.
pub(super) const HASHES_MAX: usize = 1 << 20;

/// Extended attributes: names and values.
pub(super) type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;
/// A name: its directory and the name in it.
pub(super) type Slot = (FileId, Box<[u8]>);

/// Whether what was seen of a thing is how it was at the mark before it was looked at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Proof {
    /// Nothing changed between the mark and the look.
    Proven,
    /// It changed after the mark, as far as its timestamps say, or they are too coarse.
    Late,
    /// It changed while it was read.
    Unstable,
}

impl Proof {
    /// What a look in round `now` that finds the same stamps as one in round `then` makes of it. A round begins
    /// with a mark: only in a later one does a mark lie between the two looks, so that at that mark it was as it is.
    pub(super) fn seen_again(self, then: u32, now: u32) -> Self {
        match self {
            Self::Late if then < now => Self::Proven,
            other => other,
        }
    }
}

/// The hashes of blocks that changed, in runs.
#[derive(Debug, Default)]
pub(super) struct Hashes {
    runs: Vec<(u64, Vec<u128>)>,
    count: usize,
    /// There were too many to keep.
    pub(super) lost: bool,
}

impl Hashes {
    fn run_at(&self, block: u64) -> Result<usize, usize> {
        self.runs.binary_search_by(|(first, hashes)| {
            if block < *first {
                std::cmp::Ordering::Greater
            } else if block - first >= hashes.len() as u64 {
                std::cmp::Ordering::Less
            } else {
                std::cmp::Ordering::Equal
            }
        })
    }

    /// The staged hash of a block.
    pub(super) fn get(&self, block: u64) -> Option<u128> {
        let at = self.run_at(block).ok()?;
        let (first, hashes) = self.runs.get(at)?;
        hashes.get(usize::try_from(block - first).ok()?).copied()
    }

    /// Stages the hash of a block.
    pub(super) fn set(&mut self, block: u64, hash: u128) {
        match self.run_at(block) {
            Ok(at) => {
                let (first, hashes) = &mut self.runs[at];
                let slot = usize::try_from(block - *first).ok().and_then(|i| hashes.get_mut(i));
                if let Some(slot) = slot {
                    *slot = hash;
                }
            }
            Err(_) if self.count >= HASHES_MAX => self.lost = true,
            Err(at) => {
                self.count += 1;
                if let Some(before) = at.checked_sub(1)
                    && self.runs[before].0 + self.runs[before].1.len() as u64 == block
                {
                    self.runs[before].1.push(hash);
                } else {
                    self.runs.insert(at, (block, vec![hash]));
                }
            }
        }
    }

    /// Forgets the blocks from `count` on.
    pub(super) fn truncate(&mut self, count: u64) {
        while let Some((first, hashes)) = self.runs.last_mut() {
            if *first >= count {
                self.count -= hashes.len();
                self.runs.pop();
            } else {
                let keep = usize::try_from(count - *first).unwrap_or(usize::MAX);
                self.count -= hashes.len().saturating_sub(keep);
                hashes.truncate(keep);
                break;
            }
        }
    }

    /// Whether nothing is staged in blocks `from..to`.
    pub(super) fn empty_in(&self, from: u64, to: u64) -> bool {
        match self.run_at(from) {
            Ok(_) => false,
            Err(at) => self.runs.get(at).is_none_or(|(first, _)| *first >= to),
        }
    }
}

/// One inode as a pass found it.
#[derive(Debug)]
pub(super) struct Staged {
    /// Type.
    pub(super) kind: Kind,
    /// Not in the catalog yet.
    pub(super) new: bool,
    /// Its create record, with these attributes, is in the journal.
    pub(super) sent: Option<Attrs>,
    /// Attributes.
    pub(super) attrs: Attrs,
    /// Device number.
    pub(super) rdev: u64,
    /// Target of a symlink.
    pub(super) target: Vec<u8>,
    /// Extended attributes, sorted; `None`: as the catalog has them.
    pub(super) xattrs: Option<Xattrs>,
    /// What was observed of the local inode.
    pub(super) seen: Seen,
    /// Size of a regular file as the journal leaves it.
    pub(super) size: u64,
    /// The file's size when it was looked at.
    pub(super) stat_size: u64,
    /// Hashes of blocks that changed.
    pub(super) hashes: Hashes,
    /// Blocks that are not in `hashes` are zero.
    pub(super) whole: bool,
    /// Blocks from this one on that are not in `hashes` are zero: the file was cut to there in this pass.
    pub(super) low: u64,
    /// A path it was examined by.
    pub(super) path: Box<[u8]>,
    /// The round it was last examined in.
    pub(super) round: u32,
    /// How good the look was.
    pub(super) proof: Proof,
}

/// A name as a pass found it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Named {
    /// What has the name; `None`: nothing any more.
    pub(super) id: Option<FileId>,
    /// The round it was last examined in.
    pub(super) round: u32,
}

/// What a pass found.
#[derive(Debug, Default)]
pub(super) struct Stage {
    /// Names that were examined and differ, or differed, from the catalog, by directory.
    pub(super) names: HashMap<FileId, HashMap<Box<[u8]>, Named>>,
    /// Inodes that were examined and differ.
    pub(super) inodes: HashMap<FileId, Staged>,
    /// New inodes without a create record yet.
    pub(super) unsent: BTreeSet<FileId>,
    locals: HashMap<(u64, u64), FileId>,
    added: HashMap<FileId, Vec<Slot>>,
    /// The round under way.
    pub(super) round: u32,
}

impl Stage {
    /// What `name` in `dir` is.
    pub(super) fn lookup(&self, catalog: &Catalog, dir: FileId, name: &[u8]) -> Option<FileId> {
        match self.names.get(&dir).and_then(|names| names.get(name)) {
            Some(named) => named.id,
            None => catalog.lookup(dir, name),
        }
    }

    /// The directory at `rel`, or how far the path could be followed: the last directory known and
    /// the length of the path up to and with the first name that is not.
    pub(super) fn resolve(&self, catalog: &Catalog, rel: &[u8]) -> Result<FileId, (FileId, usize)> {
        let mut dir = FileId::ROOT;
        let mut at = 0;
        if rel.is_empty() {
            return Ok(dir);
        }
        for part in rel.split(|&b| b == b'/') {
            let end = at + part.len();
            match self.lookup(catalog, dir, part) {
                Some(id) if self.kind(catalog, id) == Some(Kind::Dir) => dir = id,
                _ => return Err((dir, end)),
            }
            at = end + 1;
        }
        Ok(dir)
    }

    /// The type of an inode.
    pub(super) fn kind(&self, catalog: &Catalog, id: FileId) -> Option<Kind> {
        match self.inodes.get(&id) {
            Some(staged) => Some(staged.kind),
            None => catalog.get(id).map(|n| n.kind),
        }
    }

    /// What was last observed of an inode.
    pub(super) fn seen(&self, catalog: &Catalog, id: FileId) -> Option<Seen> {
        match self.inodes.get(&id) {
            Some(staged) => Some(staged.seen),
            None => catalog.get(id).and_then(|n| n.seen),
        }
    }

    /// The inode that is the local one of `stat`: same device, number, birth time and type.
    pub(super) fn by_local(&self, catalog: &Catalog, stat: &Stat) -> Option<FileId> {
        let key = (stat.local.dev, stat.local.ino);
        let id = self.locals.get(&key).copied().or_else(|| catalog.by_local(key.0, key.1))?;
        let seen = self.seen(catalog, id)?;
        (seen.local == stat.local && self.kind(catalog, id) == Some(stat.kind)).then_some(id)
    }

    /// Notes which inode a local one is.
    pub(super) fn set_local(&mut self, stat: &Stat, id: FileId) {
        self.locals.insert((stat.local.dev, stat.local.ino), id);
    }

    /// The names of an inode.
    pub(super) fn names_of(&self, catalog: &Catalog, id: FileId) -> Vec<Slot> {
        let mut out: Vec<Slot> = catalog
            .names(id)
            .filter(|(dir, name)| !self.names.get(dir).is_some_and(|names| names.contains_key(*name)))
            .map(|(dir, name)| (dir, name.into()))
            .collect();
        for (dir, name) in self.added.get(&id).into_iter().flatten() {
            if self.names.get(dir).and_then(|names| names.get(name)).is_some_and(|n| n.id == Some(id))
                && !out.iter().any(|(d, n)| d == dir && n == name)
            {
                out.push((*dir, name.clone()));
            }
        }
        out
    }

    /// A path of an inode that is reached from the root.
    pub(super) fn path(&self, catalog: &Catalog, id: FileId) -> Option<Vec<u8>> {
        let mut parts: Vec<Box<[u8]>> = Vec::new();
        let mut at = id;
        while at != FileId::ROOT {
            if parts.len() > DEPTH_MAX {
                return None;
            }
            let (dir, name) = self.names_of(catalog, at).into_iter().next()?;
            parts.push(name);
            at = dir;
        }
        parts.reverse();
        Some(parts.join(&b'/'))
    }

    /// Whether the directory `dir` is `above` or lies below it.
    pub(super) fn within(&self, catalog: &Catalog, dir: FileId, above: FileId) -> bool {
        let mut at = Some(dir);
        for _ in 0..=DEPTH_MAX {
            match at {
                Some(id) if id == above => return true,
                Some(id) if id != FileId::ROOT => {
                    at = self.names_of(catalog, id).into_iter().next().map(|(dir, _)| dir);
                }
                _ => return false,
            }
        }
        true
    }

    /// Whether an inode has a name that is reached from the root.
    pub(super) fn reached(&self, catalog: &Catalog, id: FileId) -> bool {
        id == FileId::ROOT
            || self.names_of(catalog, id).into_iter().any(|(dir, _)| self.path(catalog, dir).is_some())
    }

    /// The entries of a directory.
    pub(super) fn children(&self, catalog: &Catalog, dir: FileId) -> Vec<(Box<[u8]>, FileId)> {
        let staged = self.names.get(&dir);
        let mut out: Vec<(Box<[u8]>, FileId)> = catalog
            .children(dir)
            .filter(|(name, _)| !staged.is_some_and(|names| names.contains_key(*name)))
            .map(|(name, id)| (name.into(), id))
            .collect();
        for (name, named) in staged.into_iter().flatten() {
            out.extend(named.id.map(|id| (name.clone(), id)));
        }
        out
    }

    /// `name` in `dir` was found to be `id`. A directory leaves the name it had.
    pub(super) fn link(&mut self, catalog: &Catalog, dir: FileId, name: &[u8], id: FileId, kind: Kind) {
        if kind == Kind::Dir {
            for (old_dir, old) in self.names_of(catalog, id) {
                if old_dir != dir || *old != *name {
                    self.put(old_dir, &old, None);
                }
            }
        }
        self.put(dir, name, Some(id));
        self.added.entry(id).or_default().push((dir, name.into()));
    }

    /// `name` in `dir` was found to be gone.
    pub(super) fn unlink(&mut self, dir: FileId, name: &[u8]) {
        self.put(dir, name, None);
    }

    fn put(&mut self, dir: FileId, name: &[u8], id: Option<FileId>) {
        let named = Named { id, round: self.round };
        self.names.entry(dir).or_default().insert(name.into(), named);
    }

    /// A name was looked at again and is as it was.
    pub(super) fn confirm_name(&mut self, dir: FileId, name: &[u8]) {
        let round = self.round;
        if let Some(named) = self.names.get_mut(&dir).and_then(|names| names.get_mut(name)) {
            named.round = round;
        }
    }
}

/// Deepest path that is followed upwards.
const DEPTH_MAX: usize = 4096;

/// How good a look is that ended with change time `ctime`, when the mark before it was made at `mark`.
pub(super) fn proof(stable: bool, ctime: Time, mark: Time) -> Proof {
    match stable {
        false => Proof::Unstable,
        true if ctime < mark => Proof::Proven,
        true => Proof::Late,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_below_a_directory_is_told_whatever_was_staged() {
        use crate::record::Record;
        let mut catalog = Catalog::new(crate::position::SystemId(1), Attrs::default());
        let mut made = |parent: FileId, name: &[u8]| {
            let (id, target, attrs) = (catalog.next_id(), &b""[..], Attrs::default());
            catalog.fold(&Record::Create { id, kind: Kind::Dir, attrs, rdev: 0, target }).unwrap();
            catalog.fold(&Record::Link { parent, name, id }).unwrap();
            id
        };
        let (a, other) = (made(FileId::ROOT, b"a"), made(FileId::ROOT, b"other"));
        let b = made(a, b"b");
        let mut stage = Stage::default();
        assert!(stage.within(&catalog, b, a) && stage.within(&catalog, a, a));
        assert!(stage.within(&catalog, b, FileId::ROOT));
        assert!(!stage.within(&catalog, a, b) && !stage.within(&catalog, b, other));
        stage.link(&catalog, other, b"c", b, Kind::Dir);
        assert!(stage.within(&catalog, b, other) && !stage.within(&catalog, b, a));
    }

    #[test]
    fn only_a_mark_between_two_equal_looks_proves() {
        assert_eq!(Proof::Late.seen_again(1, 2), Proof::Proven);
        assert_eq!(Proof::Late.seen_again(2, 2), Proof::Late, "both looks are later than the mark");
        assert_eq!(Proof::Unstable.seen_again(1, 2), Proof::Unstable);
        assert_eq!(Proof::Proven.seen_again(2, 2), Proof::Proven);
    }

    #[test]
    fn staged_hashes_are_runs() {
        let mut h = Hashes::default();
        for b in [5, 6, 7, 1, 9, 8, 0] {
            h.set(b, u128::from(b) + 100);
        }
        h.set(6, 1);
        let all: Vec<_> = (0..11).map(|b| h.get(b)).collect();
        let want = [
            Some(100),
            Some(101),
            None,
            None,
            None,
            Some(105),
            Some(1),
            Some(107),
            Some(108),
            Some(109),
            None,
        ];
        assert_eq!(all, want);
        assert!(h.empty_in(2, 5) && !h.empty_in(2, 6) && h.empty_in(10, 90) && !h.empty_in(7, 8));
        h.truncate(6);
        assert_eq!((h.get(5), h.get(6), h.get(9)), (Some(105), None, None));
        assert_eq!(h.count, 3);
        h.truncate(0);
        assert_eq!(h.count, 0);
    }
}
