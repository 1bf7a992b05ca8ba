//! The catalog: the tree as of a position, as a fold over records. Pure and in memory.
//!
//! Inodes are named by [`FileId`], names are entries (parent id, name) -> id, and the root is id 1,
//! a directory without a name. Contents are not here, only their sums: the hashes of blocks
//! are kept by [`crate::blocks`], which [`crate::fold`] joins with this.
//!
//! What always holds after a change set has settled:
//!
//! - every inode but the root has at least one name; a directory has exactly one;
//! - every inode is reached from the root, so there is no cycle of directories;
//! - one local inode (device, number) is at most one file;
//! - the digest is the sum over what is there (see [`Digest`]; the terms are listed in `digest.rs`).
//!
//! Records come from disk and network, so [`Catalog::fold`] refuses those that do not fit. After a
//! refusal the catalog is in the middle of a change set and is good for nothing but to be dropped.
//!
//! A file takes about 220 bytes, its name and all indices included.

mod digest;
mod excludes;
mod fold;
mod frozen;
mod slab;
#[cfg(test)]
mod tests;
mod tree;

use std::collections::HashSet;

use hashbrown::HashTable;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::error::{Error, ErrorKind, Result};
use crate::position::{Cut, FileId, Lsn, SystemId};
use crate::record::{Attrs, Kind, Time};

pub use digest::{Digest, block_hash, block_hashes, blocks_of};
pub use excludes::{Excludes, Matcher};
pub use frozen::Frozen;
pub use slab::Xattr;
use slab::{Entry, HASHED, NONE, Node, RACY, SEEN, Slab};

/// Which local inode a file is: enough to tell it again after a crash, whatever its name.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, PartialOrd, Ord)]
pub struct LocalId {
    /// Device.
    pub dev: u64,
    /// Inode number.
    pub ino: u64,
    /// Birth time; zero where the file system has none.
    pub btime: Time,
}

impl LocalId {
    /// What tells this one from the other, in words.
    #[must_use]
    pub fn unlike(&self, other: &Self) -> String {
        if self.ino != other.ino {
            return format!("inode {} instead of {}", self.ino, other.ino);
        }
        let what = if self.btime == other.btime { "device" } else { "birth time" };
        format!("inode {} as before, but with another {what}: it was restored, copied or made anew", self.ino)
    }
}

/// What this node last observed of an inode.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Seen {
    /// Which local inode it is.
    pub local: LocalId,
    /// Its change time then.
    pub ctime: Time,
    /// It was observed so soon after a change that another change could hide behind the same times.
    pub racy: bool,
}

/// One inode as the catalog has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inode<'a> {
    /// Its replicated identity.
    pub id: FileId,
    /// Type.
    pub kind: Kind,
    /// Mode, owner, group, mtime.
    pub attrs: Attrs,
    /// Bytes of a regular file, else 0.
    pub size: u64,
    /// Device number of a device node, else 0.
    pub rdev: u64,
    /// Target of a symlink.
    pub target: Option<&'a [u8]>,
    /// Extended attributes, sorted by name.
    pub xattrs: &'a [Xattr],
    /// Wrapping sum of the block hashes; of a file of one block, its hash.
    pub content: u128,
    /// Whether `content` is known. Always true but for regular files not read yet.
    pub hashed: bool,
    /// Number of names.
    pub nlink: u32,
    /// The local inode, when this node knows it.
    pub seen: Option<Seen>,
}

/// The tree as of a position.
#[derive(Debug, Clone)]
pub struct Catalog {
    system: SystemId,
    lsn: Lsn,
    cut: Cut,
    time: i64,
    /// Nothing was folded since [`Catalog::set_position`].
    settled: bool,
    next_id: u64,
    /// Number of the checkpoint it was read from; 0: none.
    stored_as: u64,
    excludes: Excludes,
    nodes: Slab<Node>,
    entries: Slab<Entry>,
    by_id: HashTable<u32>,
    by_local: HashTable<u32>,
    by_name: HashTable<u32>,
    /// Keeps chosen names from colliding in `by_name`.
    name_seed: u64,
    devices: Vec<u64>,
    root: u32,
    meta: u128,
    content: u128,
    unhashed: u64,
    /// Inodes that lost their last name, or have none yet, in this change set.
    nameless: Vec<FileId>,
    /// Directories that got a name in this change set.
    moved: Vec<FileId>,
    /// Names that directories left by getting another one in this change set.
    vacated: HashSet<(u64, Box<[u8]>)>,
}

fn id_hash(id: u64) -> u64 {
    xxh3_64_with_seed(&id.to_le_bytes(), 0)
}

fn local_hash(dev: u16, ino: u64) -> u64 {
    xxh3_64_with_seed(&ino.to_le_bytes(), u64::from(dev))
}

fn name_hash(seed: u64, parent: u32, name: &[u8]) -> u64 {
    xxh3_64_with_seed(name, seed ^ u64::from(parent).wrapping_mul(0x9E37_79B9_7F4A_7C15))
}

/// The error of a record, or a stored inode, that does not fit.
fn misfit(what: impl AsRef<str>) -> Error {
    let what = what.as_ref();
    Error::new(
        ErrorKind::Corrupt,
        format!(
            "{what}; such a record cannot follow on this tree: fetch the log again, or fill the node anew"
        ),
    )
}

impl Catalog {
    /// A tree of a root directory only, at [`Lsn::FIRST`].
    #[must_use]
    pub fn new(system: SystemId, root_attrs: Attrs) -> Self {
        let mut catalog = Self {
            system,
            lsn: Lsn::FIRST,
            cut: Cut::Exact,
            time: 0,
            settled: true,
            next_id: FileId::ROOT.0,
            stored_as: 0,
            excludes: Excludes::default(),
            nodes: Slab::new(),
            entries: Slab::new(),
            by_id: HashTable::new(),
            by_local: HashTable::new(),
            by_name: HashTable::new(),
            name_seed: std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), system.0),
            devices: Vec::new(),
            root: 0,
            meta: 0,
            content: 0,
            unhashed: 0,
            nameless: Vec::new(),
            moved: Vec::new(),
            vacated: HashSet::new(),
        };
        let mut root = Node::empty();
        root.id = FileId::ROOT.0;
        root.kind = Kind::Dir;
        fold::put_attrs(&mut root, &root_attrs);
        if let Ok(slot) = catalog.insert_node(root) {
            catalog.root = slot;
        }
        catalog
    }

    /// The system whose tree this is.
    #[must_use]
    pub fn system(&self) -> SystemId {
        self.system
    }

    /// The end of the last commit folded.
    #[must_use]
    pub fn lsn(&self) -> Lsn {
        self.lsn
    }

    /// How good the cut at [`lsn`](Self::lsn) is.
    #[must_use]
    pub fn cut(&self) -> Cut {
        self.cut
    }

    /// The leader's clock at [`lsn`](Self::lsn), nanoseconds since 1970.
    #[must_use]
    pub fn time(&self) -> i64 {
        self.time
    }

    /// Notes where the last commit folded ends, how good it is and when it was.
    pub fn set_position(&mut self, lsn: Lsn, cut: Cut, time: i64) {
        (self.lsn, self.cut, self.time) = (lsn, cut, time);
        self.settled = self.nameless.is_empty() && self.moved.is_empty();
    }

    /// Number of the checkpoint that this catalog was read from, 0 when it was not.
    #[must_use]
    pub fn stored_as(&self) -> u64 {
        self.stored_as
    }

    /// Notes the number of the checkpoint that this catalog was read from.
    pub(crate) fn set_stored_as(&mut self, number: u64) {
        self.stored_as = number;
    }

    /// Whether this is the tree at [`lsn`](Self::lsn): false from the first record of a change set
    /// until its position is set.
    #[must_use]
    pub fn settled(&self) -> bool {
        self.settled
    }

    /// The id the next created file gets.
    #[must_use]
    pub fn next_id(&self) -> FileId {
        FileId(self.next_id)
    }

    /// The patterns in force.
    #[must_use]
    pub fn excludes(&self) -> &Excludes {
        &self.excludes
    }

    /// Number of inodes, the root included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Never: there is always a root.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    /// Number of names.
    #[must_use]
    pub fn name_count(&self) -> usize {
        self.by_name.len()
    }

    /// Number of regular files whose content is not known.
    #[must_use]
    pub fn unhashed(&self) -> u64 {
        self.unhashed
    }

    /// The digest, kept up to date by every change.
    #[must_use]
    pub fn digest(&self) -> Digest {
        Digest { meta: self.meta, content: self.content }
    }

    fn slot(&self, id: FileId) -> Option<u32> {
        self.by_id.find(id_hash(id.0), |&s| self.nodes.at(s).id == id.0).copied()
    }

    fn node(&self, id: FileId) -> Option<&Node> {
        self.slot(id).map(|s| self.nodes.at(s))
    }

    /// The inode `id`.
    #[must_use]
    pub fn get(&self, id: FileId) -> Option<Inode<'_>> {
        self.node(id).map(|n| frozen::view(&self.devices, n))
    }

    /// Whether there is an inode `id`.
    #[must_use]
    pub fn contains(&self, id: FileId) -> bool {
        self.slot(id).is_some()
    }

    /// Every inode, in no particular order.
    pub fn inodes(&self) -> impl Iterator<Item = Inode<'_>> {
        frozen::inodes(&self.nodes, &self.devices)
    }

    /// The id of every inode, in no particular order.
    pub fn ids(&self) -> impl Iterator<Item = FileId> + '_ {
        (0..self.nodes.bound()).map(|i| self.nodes.at(i).id).filter(|&id| id != 0).map(FileId)
    }

    /// Notes which local inode a file is; another file that was noted as the same one is that no more.
    pub fn set_seen(&mut self, id: FileId, seen: Option<Seen>) {
        let Some(slot) = self.slot(id) else { return };
        let Some(seen) = seen else { return self.forget_local(slot) };
        let Some(dev) = self.device(seen.local.dev) else { return self.forget_local(slot) };
        if let Some(other) = self.local_slot(dev, seen.local.ino) {
            if other != slot {
                self.forget_local(other);
            }
        }
        let n = self.nodes.at(slot);
        if n.flags & SEEN == 0 || (n.dev, n.ino) != (dev, seen.local.ino) {
            self.forget_local(slot);
            let nodes = &self.nodes;
            self.by_local.insert_unique(local_hash(dev, seen.local.ino), slot, |&s| {
                let n = nodes.at(s);
                if s == slot { local_hash(dev, seen.local.ino) } else { local_hash(n.dev, n.ino) }
            });
        }
        let n = self.nodes.at_mut(slot);
        n.flags = n.flags & !RACY | SEEN | if seen.racy { RACY } else { 0 };
        (n.dev, n.ino) = (dev, seen.local.ino);
        (n.btime_sec, n.btime_nsec) = (seen.local.btime.sec, seen.local.btime.nsec);
        (n.ctime_sec, n.ctime_nsec) = (seen.ctime.sec, seen.ctime.nsec);
    }

    /// The device of the root is numbered anew, by a mount or a boot: everything seen on it is there still.
    pub fn renumber_device(&mut self, from: u64, to: u64) {
        let all: Vec<(FileId, Seen)> = self.inodes().filter_map(|n| Some((n.id, n.seen?))).collect();
        for (id, mut seen) in all.into_iter().filter(|(_, seen)| seen.local.dev == from) {
            seen.local.dev = to;
            self.set_seen(id, Some(seen));
        }
    }

    fn forget_local(&mut self, slot: u32) {
        let n = self.nodes.at_mut(slot);
        if n.flags & SEEN == 0 {
            return;
        }
        n.flags &= !(SEEN | RACY);
        let hash = local_hash(n.dev, n.ino);
        if let Ok(found) = self.by_local.find_entry(hash, |&s| s == slot) {
            found.remove();
        }
    }

    /// Forgets every local inode: the catalog of another node says nothing about this one's.
    pub fn forget_locals(&mut self) {
        for slot in 0..self.nodes.bound() {
            self.forget_local(slot);
        }
    }

    /// The number of a device in the list of those seen. There are more than 65,535 only in theory.
    fn device(&mut self, dev: u64) -> Option<u16> {
        let at = self.devices.iter().position(|&d| d == dev).unwrap_or_else(|| {
            self.devices.push(dev);
            self.devices.len() - 1
        });
        u16::try_from(at).ok()
    }

    fn local_slot(&self, dev: u16, ino: u64) -> Option<u32> {
        self.by_local
            .find(local_hash(dev, ino), |&s| {
                let n = self.nodes.at(s);
                n.dev == dev && n.ino == ino
            })
            .copied()
    }

    /// The file that is the local inode `ino` of `dev`.
    #[must_use]
    pub fn by_local(&self, dev: u64, ino: u64) -> Option<FileId> {
        let dev = u16::try_from(self.devices.iter().position(|&d| d == dev)?).ok()?;
        self.local_slot(dev, ino).map(|s| FileId(self.nodes.at(s).id))
    }

    /// Notes the content of a regular file: the sum of its block hashes, or (not `hashed`) that it
    /// is not known.
    pub fn set_content(&mut self, id: FileId, sum: u128, hashed: bool) {
        if let Some(slot) = self.slot(id) {
            self.set_content_of(slot, sum, hashed);
        }
    }

    fn set_content_of(&mut self, slot: u32, sum: u128, hashed: bool) {
        let n = self.nodes.at_mut(slot);
        if n.kind != Kind::File {
            return;
        }
        let sum = if hashed { sum } else { 0 };
        self.content = self.content.wrapping_sub(n.sum()).wrapping_add(sum);
        self.unhashed = self.unhashed + u64::from(!hashed) - u64::from(!n.hashed());
        n.set_sum(sum);
        n.flags = n.flags & !HASHED | if hashed { HASHED } else { 0 };
    }

    /// Puts a node without names into the slab, the index and the sums.
    fn insert_node(&mut self, node: Node) -> Result<u32> {
        let id = node.id;
        let next = id.checked_add(1).ok_or_else(|| misfit("file id 18446744073709551615 is out of range"))?;
        self.meta = self.meta.wrapping_add(self.node_terms(&node));
        self.content = self.content.wrapping_add(node.sum());
        self.unhashed += u64::from(!node.hashed());
        let slot = self.nodes.insert(node)?;
        let nodes = &self.nodes;
        self.by_id.insert_unique(id_hash(id), slot, |&s| id_hash(nodes.at(s).id));
        self.next_id = self.next_id.max(next);
        Ok(slot)
    }

    /// Takes a node without names and children out of everything.
    fn remove_node(&mut self, slot: u32) -> FileId {
        self.forget_local(slot);
        let n = self.nodes.at(slot);
        let (id, sum, hashed, terms) = (n.id, n.sum(), n.hashed(), self.node_terms(n));
        self.meta = self.meta.wrapping_sub(terms);
        self.content = self.content.wrapping_sub(sum);
        self.unhashed -= u64::from(!hashed);
        if let Ok(found) = self.by_id.find_entry(id_hash(id), |&s| s == slot) {
            found.remove();
        }
        self.nodes.remove(slot, Node::empty());
        FileId(id)
    }

    /// Puts back an inode that was stored. The root is there already and gets its attributes. Names follow
    /// by [`link`](Self::link) and [`settle`](Self::settle).
    pub(crate) fn restore(&mut self, inode: &Inode<'_>) -> Result<()> {
        let Inode { id, kind, ref attrs, rdev, .. } = *inode;
        if id == FileId::ROOT {
            if kind != Kind::Dir {
                return Err(misfit("the root is not a directory"));
            }
            self.set_attrs(id, attrs)?;
        } else {
            if id.0 == 0 || self.contains(id) {
                return Err(misfit(format!("file {id} is stored twice")));
            }
            self.add(id, kind, attrs, rdev, inode.target.unwrap_or_default())?;
        }
        for (name, value) in inode.xattrs {
            self.set_xattr(id, name, Some(value))?;
        }
        if kind == Kind::File {
            self.truncate(id, inode.size)?;
            self.set_content(id, inode.content, inode.hashed);
        }
        if let Some(local) = inode.seen.map(|s| s.local)
            && self.by_local(local.dev, local.ino).is_some()
        {
            return Err(misfit(format!("file {id} is stored as a local inode that another file is")));
        }
        self.set_seen(id, inode.seen);
        Ok(())
    }

    /// Puts back what is no part of the tree.
    pub(crate) fn restore_rest(&mut self, next_id: FileId, excludes: Excludes) -> Result<()> {
        if next_id.0 < self.next_id {
            return Err(misfit(format!("the next file id is stored as {next_id}, which is used")));
        }
        (self.next_id, self.excludes) = (next_id.0, excludes);
        Ok(())
    }

    /// Everything an inode adds to the metadata digest, names aside.
    fn node_terms(&self, n: &Node) -> u128 {
        let mut sum = digest::node_hash(self.system, n);
        if let Some(extra) = &n.extra {
            sum = sum.wrapping_add(digest::target_hash(self.system, n.id, &extra.target));
            for (name, value) in &extra.xattrs {
                sum = sum.wrapping_add(digest::xattr_hash(self.system, n.id, name, value));
            }
        }
        sum
    }

    /// The digest computed anew from all that is there: what [`digest`](Self::digest) must be.
    #[must_use]
    pub fn recomputed_digest(&self) -> Digest {
        let mut sum = Digest::default();
        for slot in 0..self.nodes.bound() {
            let n = self.nodes.at(slot);
            if n.id == 0 {
                continue;
            }
            sum.meta = sum.meta.wrapping_add(self.node_terms(n));
            sum.content = sum.content.wrapping_add(n.sum());
            let mut at = n.names;
            while at != NONE {
                let e = self.entries.at(at);
                let parent = self.nodes.at(e.parent).id;
                sum.meta = sum.meta.wrapping_add(digest::entry_hash(self.system, parent, n.id, &e.name));
                at = e.next_name;
            }
        }
        sum
    }
}
