//! What a pass has found so far: records in order, and the tree as it will be, laid over the
//! catalog. Nothing of it is in the catalog before the commit.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::catalog::{Catalog, LocalId, Seen};
use crate::position::FileId;
use crate::record::{Attrs, Kind, Record};

/// A record that waits for the commit. Data was already encoded; only its hashes are kept.
#[derive(Debug)]
pub(super) enum Staged {
    /// An encoded record, at this range of the buffer.
    Meta(usize, usize),
    /// A write of `len` bytes whose blocks have these hashes.
    Write { id: FileId, offset: u64, len: usize, hashes: Vec<u128> },
    /// The content of this new file is not read yet (first scan only).
    Unhashed(FileId),
}

/// An inode as it will be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Node {
    pub(super) kind: Kind,
    pub(super) attrs: Attrs,
    pub(super) size: u64,
    pub(super) seen: Option<Seen>,
    pub(super) hashed: bool,
}

/// The overlay of a pass.
#[derive(Debug, Default)]
pub(super) struct Stage {
    pub(super) records: Vec<Staged>,
    pub(super) buffer: Vec<u8>,
    pub(super) nodes: HashMap<FileId, Node>,
    created: HashSet<FileId>,
    slots: BTreeMap<(FileId, Vec<u8>), Option<FileId>>,
    locals: HashMap<(u64, u64), FileId>,
    hashes: HashMap<FileId, BTreeMap<u64, u128>>,
    next_id: u64,
    /// Names removed, for the guard.
    pub(super) unlinked: u64,
}

impl Stage {
    /// An empty overlay.
    pub(super) fn new(catalog: &Catalog) -> Self {
        Self { next_id: catalog.next_id().0, ..Self::default() }
    }

    /// A new file id.
    pub(super) fn allocate(&mut self) -> FileId {
        let id = FileId(self.next_id);
        self.next_id += 1;
        id
    }

    /// Keeps an encoded record for the commit.
    pub(super) fn keep(&mut self, record: &Record<'_>) {
        let from = self.buffer.len();
        record.encode(&mut self.buffer);
        self.records.push(Staged::Meta(from, self.buffer.len()));
    }

    /// A created inode.
    pub(super) fn create(&mut self, id: FileId, node: Node) {
        self.created.insert(id);
        if let Some(seen) = node.seen {
            self.locals.insert((seen.local.dev, seen.local.ino), id);
        }
        self.nodes.insert(id, node);
    }

    /// Whether this pass made it.
    pub(super) fn is_new(&self, id: FileId) -> bool {
        self.created.contains(&id)
    }

    /// The inode as it will be.
    pub(super) fn node(&self, catalog: &Catalog, id: FileId) -> Option<Node> {
        self.nodes.get(&id).copied().or_else(|| {
            catalog.get(id).map(|n| Node {
                kind: n.kind,
                attrs: n.attrs,
                size: n.size,
                seen: n.seen,
                hashed: n.hashed,
            })
        })
    }

    /// Notes an inode's new state.
    pub(super) fn set_node(&mut self, id: FileId, node: Node) {
        if let Some(seen) = node.seen {
            self.locals.insert((seen.local.dev, seen.local.ino), id);
        }
        self.nodes.insert(id, node);
    }

    /// What `name` in `parent` will be.
    pub(super) fn lookup(&self, catalog: &Catalog, parent: FileId, name: &[u8]) -> Option<FileId> {
        match self.slots.get(&(parent, name.to_vec())) {
            Some(slot) => *slot,
            None => catalog.lookup(parent, name),
        }
    }

    /// Sets what `name` in `parent` will be.
    pub(super) fn set_slot(&mut self, parent: FileId, name: &[u8], id: Option<FileId>) {
        self.slots.insert((parent, name.to_vec()), id);
    }

    /// The file that is this local inode, by what this pass or the catalog has seen.
    pub(super) fn by_local(&self, catalog: &Catalog, local: LocalId) -> Option<FileId> {
        let id = match self.locals.get(&(local.dev, local.ino)) {
            Some(id) => *id,
            None => catalog.by_local(local.dev, local.ino)?,
        };
        let seen = self.node(catalog, id)?.seen?;
        (seen.local == local).then_some(id)
    }

    /// Every name of `parent` as it will be.
    pub(super) fn children(&self, catalog: &Catalog, parent: FileId) -> Vec<(Vec<u8>, FileId)> {
        let mut out: BTreeMap<Vec<u8>, FileId> =
            catalog.children(parent).map(|(n, id)| (n.to_vec(), id)).collect();
        for ((_, name), id) in self.slots.range((parent, Vec::new())..).take_while(|((p, _), _)| *p == parent)
        {
            match id {
                Some(id) => out.insert(name.clone(), *id),
                None => out.remove(name),
            };
        }
        out.into_iter().collect()
    }

    /// Names of `id` that this pass has set.
    pub(super) fn slots(&self) -> impl Iterator<Item = (&(FileId, Vec<u8>), &Option<FileId>)> {
        self.slots.iter()
    }

    /// The staged hash of a block, if this pass has written the block.
    pub(super) fn hash(&self, id: FileId, block: u64) -> Option<u128> {
        self.hashes.get(&id)?.get(&block).copied()
    }

    /// Notes what a block will be; only files that are looked at twice in one pass need it.
    pub(super) fn set_hash(&mut self, id: FileId, block: u64, hash: u128) {
        self.hashes.entry(id).or_default().insert(block, hash);
    }

    /// Whether there is nothing to commit.
    pub(super) fn is_empty(&self, catalog: &Catalog) -> bool {
        self.records.is_empty() && self.slots.iter().all(|((p, n), id)| catalog.lookup(*p, n) == *id)
    }
}
