//! What has to be done to the names in a directory so that they are those of a tree. Pure: the tree and what is
//! there go in, actions come out.
//!
//! Every inode that is there and can be one of the tree's is *claimed* for it: by what the node knew of it before,
//! or because it is where the tree has one of its kind. Then
//!
//! 1. children before parents, what nobody claims is removed, and what is claimed but stands elsewhere is parked in
//!    the staging directory under its id; so every name that is left is right within its directory;
//! 2. parents before children, directories are made, or taken from the staging directory;
//! 3. everything else is made, taken from there, or linked.
//!
//! A plan that was carried out in part is no plan any more: the directory is looked at again, and what is parked is
//! known by its name.

use std::collections::HashMap;

use crate::catalog::Catalog;
use crate::position::FileId;
use crate::record::Kind;

/// The node of the root directory.
pub(super) const ROOT: usize = 0;
/// The node of the staging directory.
pub(super) const STAGE: usize = 1;

/// One inode that is there.
#[derive(Clone, Debug)]
pub(super) struct LocalNode {
    pub(super) kind: Kind,
    /// Which file it is, if the node knew it before.
    pub(super) known: Option<FileId>,
    pub(super) rdev: u64,
    /// Of a symlink.
    pub(super) target: Box<[u8]>,
    /// Number of names seen.
    pub(super) names: u32,
    /// It has names that were not seen here.
    pub(super) shared: bool,
    /// A directory that holds something that is left alone.
    pub(super) pinned: bool,
}

/// One name that is there.
#[derive(Clone, Debug)]
pub(super) struct LocalEntry {
    pub(super) parent: usize,
    pub(super) name: Box<[u8]>,
    pub(super) node: usize,
}

/// What is there: of entries, those of parents stand before those of their children.
#[derive(Clone, Debug, Default)]
pub(super) struct Local {
    pub(super) nodes: Vec<LocalNode>,
    pub(super) entries: Vec<LocalEntry>,
}

/// Where a name of the tree is: directory and name.
pub(super) type Place = (FileId, Box<[u8]>);

/// One step.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Action {
    /// Give the file at `path`, whose inode others share, an inode of its own.
    Unshare { path: Vec<u8> },
    /// Move what is at `path` aside, as `id`.
    Park { path: Vec<u8>, id: FileId },
    /// Take the name at `path` away.
    Remove { path: Vec<u8>, dir: bool },
    /// Make the directory `id` where the tree has it.
    MakeDir { id: FileId, at: Place },
    /// Move what was put aside as `id` to its place.
    Unpark { id: FileId, at: Place },
    /// Make an empty inode of `id`.
    Make { id: FileId, at: Place },
    /// Give `id`, which is at `from`, another name.
    Link { id: FileId, from: Place, at: Place },
}

/// The whole plan.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// In this order.
    pub(super) actions: Vec<Action>,
    /// Which node is which file.
    pub(super) claims: HashMap<FileId, usize>,
    /// Names that go, and whose inodes nobody wants.
    pub(super) removed: u64,
    /// Names that were there, those in the staging directory not counted.
    pub(super) names: u64,
    /// Directories that would be removed but hold something that is left alone.
    pub(super) entangled: Vec<Vec<u8>>,
}

/// The name of a parked inode.
pub(super) fn parked_name(id: FileId) -> String {
    format!("{:016x}", id.0)
}

/// What a name in the staging directory was parked as.
pub(super) fn parked_id(name: &[u8]) -> Option<FileId> {
    let text = std::str::from_utf8(name).ok().filter(|t| t.len() == 16)?;
    u64::from_str_radix(text, 16).ok().map(FileId).filter(|id| parked_name(*id) == text)
}

/// Path of a place beneath the root.
pub(super) fn path_of(catalog: &Catalog, (dir, name): (FileId, &[u8])) -> Vec<u8> {
    let mut path = catalog.path(dir).unwrap_or_default();
    if !path.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(name);
    path
}

struct Planner<'a> {
    catalog: &'a Catalog,
    local: &'a Local,
    owner: Vec<Option<FileId>>,
    plan: Plan,
    /// A name of the tree under which each inode that is no directory stands.
    present: HashMap<FileId, Place>,
    parked: HashMap<FileId, usize>,
    stage: &'a [u8],
}

/// What makes the names of `local` those of `catalog`. `stage` is the name of the staging directory.
pub(super) fn plan(catalog: &Catalog, local: &Local, stage: &[u8]) -> Plan {
    let mut planner = Planner {
        catalog,
        local,
        owner: vec![None; local.nodes.len()],
        plan: Plan::default(),
        present: HashMap::new(),
        parked: HashMap::new(),
        stage,
    };
    planner.claim();
    planner.clear();
    planner.directories();
    planner.others();
    planner.plan
}

impl Planner<'_> {
    fn fits(&self, node: usize, id: FileId) -> bool {
        let n = &self.local.nodes[node];
        let free = self.owner[node].is_none() && !self.plan.claims.contains_key(&id);
        // What others share is copied, which only one name can be given to.
        let own = !n.shared || n.known.is_some() || n.names == 1;
        free && own
            && self.catalog.get(id).is_some_and(|i| {
                let target = i.target.unwrap_or_default();
                i.kind == n.kind && i.rdev == n.rdev && (n.kind != Kind::Symlink || *target == *n.target)
            })
    }

    fn take(&mut self, node: usize, id: FileId) {
        self.owner[node] = Some(id);
        self.plan.claims.insert(id, node);
    }

    fn claim(&mut self) {
        self.take(ROOT, FileId::ROOT);
        for (i, node) in self.local.nodes.iter().enumerate().skip(STAGE + 1) {
            if let Some(id) = node.known.filter(|&id| self.fits(i, id)) {
                self.take(i, id);
            }
        }
        for entry in &self.local.entries {
            let Some(dir) = self.owner[entry.parent] else { continue };
            if let Some(id) = self.catalog.lookup(dir, &entry.name).filter(|&id| self.fits(entry.node, id)) {
                self.take(entry.node, id);
            }
        }
    }

    /// The path at which an entry is found before anything is done.
    fn path(&self, above: &HashMap<usize, usize>, entry: &LocalEntry) -> Vec<u8> {
        let (mut names, mut dir) = (vec![&*entry.name], entry.parent);
        while dir != ROOT && dir != STAGE {
            let Some(&e) = above.get(&dir) else { break };
            names.push(&self.local.entries[e].name);
            dir = self.local.entries[e].parent;
        }
        if dir == STAGE {
            names.push(self.stage);
        }
        names.reverse();
        names.join(&b'/')
    }

    /// Step 1.
    fn clear(&mut self) {
        let local = self.local;
        let mut above = HashMap::new();
        for (e, entry) in local.entries.iter().enumerate() {
            if local.nodes[entry.node].kind == Kind::Dir {
                above.insert(entry.node, e);
            }
            let place = self.owner[entry.parent].map(|dir| (dir, entry.name.clone()));
            if let (Some(place), Some(id)) = (place, self.owner[entry.node])
                && self.catalog.lookup(place.0, &place.1) == Some(id)
            {
                self.present.entry(id).or_insert(place);
            }
            if entry.parent == STAGE
                && let Some(id) = self.owner[entry.node].filter(|&id| parked_id(&entry.name) == Some(id))
            {
                self.parked.insert(id, e);
            }
        }
        for (e, entry) in local.entries.iter().enumerate().rev() {
            self.plan.names += u64::from(entry.parent != STAGE);
            self.settle(e, entry, &above);
        }
    }

    fn settle(&mut self, e: usize, entry: &LocalEntry, above: &HashMap<usize, usize>) {
        let node = &self.local.nodes[entry.node];
        let (dir, id) = (node.kind == Kind::Dir, self.owner[entry.node]);
        let right = self.owner[entry.parent]
            .is_some_and(|p| id.is_some() && self.catalog.lookup(p, &entry.name) == id);
        let path = || self.path(above, entry);
        if right || id.is_some_and(|id| self.parked.get(&id) == Some(&e)) {
            if right && node.shared && node.known.is_none() && node.kind == Kind::File {
                let path = path();
                self.plan.actions.push(Action::Unshare { path });
            }
            return;
        }
        let path = path();
        match id {
            Some(id) if !self.present.contains_key(&id) && !self.parked.contains_key(&id) => {
                self.parked.insert(id, e);
                self.plan.actions.push(Action::Park { path, id });
            }
            other => {
                self.plan.removed += u64::from(other.is_none() && entry.parent != STAGE);
                if dir && node.pinned {
                    self.plan.entangled.push(path.clone());
                }
                self.plan.actions.push(Action::Remove { path, dir });
            }
        }
    }

    /// Step 2.
    fn directories(&mut self) {
        let mut dirs = vec![FileId::ROOT];
        let mut next = 0;
        while let Some(&dir) = dirs.get(next) {
            next += 1;
            for (name, id) in self.catalog.children(dir) {
                if self.catalog.get(id).is_none_or(|i| i.kind != Kind::Dir) {
                    continue;
                }
                dirs.push(id);
                let at = (dir, name.into());
                if self.present.get(&id) == Some(&at) {
                    continue;
                }
                let parked = self.parked.contains_key(&id);
                self.plan.actions.push(if parked {
                    Action::Unpark { id, at }
                } else {
                    Action::MakeDir { id, at }
                });
            }
        }
    }

    /// Step 3.
    fn others(&mut self) {
        let local = self.local;
        let mut there = std::collections::HashSet::new();
        for entry in &local.entries {
            if let (Some(dir), Some(id)) = (self.owner[entry.parent], self.owner[entry.node])
                && self.catalog.lookup(dir, &entry.name) == Some(id)
            {
                there.insert((dir, &*entry.name));
            }
        }
        let ids: Vec<FileId> = self.catalog.ids().collect();
        for id in ids {
            if self.catalog.get(id).is_none_or(|i| i.kind == Kind::Dir) {
                continue;
            }
            let mut names: Vec<_> = self.catalog.names(id).collect();
            names.sort_unstable();
            for (dir, name) in names {
                if there.contains(&(dir, name)) {
                    continue;
                }
                let at: Place = (dir, name.into());
                let action = match self.present.get(&id) {
                    Some(from) => Action::Link { id, from: from.clone(), at },
                    None => {
                        self.present.insert(id, at.clone());
                        if self.parked.contains_key(&id) {
                            Action::Unpark { id, at }
                        } else {
                            Action::Make { id, at }
                        }
                    }
                };
                self.plan.actions.push(action);
            }
        }
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
