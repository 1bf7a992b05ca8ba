//! What a batch touches: noted while its records are folded, before each takes effect.
//!
//! The net change of the batch is the difference between these notes and the catalog afterwards.
//! They grow with the number of things touched, not with the bytes written.

use std::collections::HashMap;

use crate::catalog::{Catalog, Seen};
use crate::position::FileId;
use crate::record::{Attrs, BLOCK, Kind, Record, Time};

use super::plan::{Change, STAGE, Slot, World};

/// Most blocks whose last write is remembered, to leave out the earlier ones: 4 GiB of data.
const INDEX_MAX: usize = 1 << 18;

/// What an inode was before the batch.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Before {
    pub(crate) seen: Option<Seen>,
    pub(crate) size: u64,
    pub(crate) attrs: Attrs,
}

/// One inode that the batch touches: itself, or a name of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Touch {
    pub(crate) kind: Kind,
    /// `None`: created by the batch.
    pub(crate) before: Option<Before>,
    /// Mode, owner or time were set.
    pub(crate) attrs: bool,
    /// Extended attributes were set or removed.
    pub(crate) xattrs: bool,
    /// Records that change the content.
    pub(crate) contents: u32,
}

impl Touch {
    pub(crate) fn is_new(&self) -> bool {
        self.before.is_none()
    }
}

/// The notes of one batch.
#[derive(Debug, Default)]
pub(crate) struct Notes {
    /// Who was at each slot that a record named.
    pub(crate) slots: HashMap<Slot, Option<FileId>>,
    /// One of those slots for each inode that was at any.
    had: HashMap<FileId, Slot>,
    pub(crate) touched: HashMap<FileId, Touch>,
    /// Directories that went with one above them: where they stood, what they were.
    gone: HashMap<FileId, (Slot, Option<Seen>)>,
    /// Files that went with a directory above them: inode number to change time.
    pub(crate) gone_files: HashMap<u64, Time>,
    /// Inodes that have no name yet, or lost one, in the open change set.
    nameless: Vec<FileId>,
    /// Block to the number of its last write in the batch. `None`: too many.
    index: Option<HashMap<(FileId, u64), u32>>,
    writes: u32,
    pub(crate) records: u64,
    pub(crate) commits: u64,
}

impl Notes {
    pub(crate) fn new() -> Self {
        Self { index: Some(HashMap::new()), ..Self::default() }
    }

    /// Notes what `record` is about to change in `catalog`.
    pub(crate) fn note(&mut self, catalog: &Catalog, record: &Record<'_>) {
        self.records += 1;
        match *record {
            Record::Create { id, kind, .. } => {
                let touch = Touch { kind, before: None, attrs: true, xattrs: true, contents: 0 };
                self.touched.insert(id, touch);
                // It may never get a name, and take down what was moved into it.
                self.nameless.push(id);
            }
            Record::Write { id, offset, data } => {
                self.content(catalog, id);
                self.written(id, offset, data.len() as u64);
            }
            Record::Truncate { id, .. } | Record::Punch { id, .. } => self.content(catalog, id),
            Record::Attr { id, .. } => {
                if let Some(t) = self.meet(catalog, id) {
                    t.attrs = true;
                }
            }
            Record::Xattr { id, .. } => {
                if let Some(t) = self.meet(catalog, id) {
                    t.xattrs = true;
                }
            }
            Record::Link { parent, name, id } => self.link(catalog, parent, name, id),
            Record::Unlink { parent, name } => {
                let left = self.slot(catalog, parent, name);
                self.nameless.extend(left);
            }
            Record::Commit(_) => {
                self.commits += 1;
                self.settle(catalog);
            }
            Record::Abort | Record::RestorePoint { .. } | Record::Gap { .. } | Record::Excludes { .. } => {}
        }
    }

    fn meet(&mut self, catalog: &Catalog, id: FileId) -> Option<&mut Touch> {
        use std::collections::hash_map::Entry;
        match self.touched.entry(id) {
            Entry::Occupied(e) => Some(e.into_mut()),
            Entry::Vacant(e) => {
                let inode = catalog.get(id)?;
                let before = Before { seen: inode.seen, size: inode.size, attrs: inode.attrs };
                Some(e.insert(Touch {
                    kind: inode.kind,
                    before: Some(before),
                    attrs: false,
                    xattrs: false,
                    contents: 0,
                }))
            }
        }
    }

    fn content(&mut self, catalog: &Catalog, id: FileId) {
        if let Some(t) = self.meet(catalog, id) {
            t.contents = t.contents.saturating_add(1);
        }
    }

    fn written(&mut self, id: FileId, offset: u64, len: u64) {
        self.writes = self.writes.wrapping_add(1);
        let Some(index) = &mut self.index else { return };
        for block in offset / BLOCK..(offset + len).div_ceil(BLOCK) {
            index.insert((id, block), self.writes);
        }
        if index.len() > INDEX_MAX {
            self.index = None;
        }
    }

    /// Whether write number `n` (from 1, in log order) is the last one of that block.
    pub(crate) fn is_last(&self, n: u32, id: FileId, block: u64) -> bool {
        self.index.as_ref().is_none_or(|i| i.get(&(id, block)).is_none_or(|&last| last == n))
    }

    /// Notes who is at a slot, the first time it is named.
    fn slot(&mut self, catalog: &Catalog, dir: FileId, name: &[u8]) -> Option<FileId> {
        let now = catalog.lookup(dir, name);
        let slot = Slot::new(dir, name);
        if !self.slots.contains_key(&slot) {
            if let Some(id) = now {
                self.meet(catalog, id);
                self.had.entry(id).or_insert_with(|| slot.clone());
            }
            self.slots.insert(slot, now);
        }
        self.meet(catalog, dir);
        now
    }

    fn link(&mut self, catalog: &Catalog, parent: FileId, name: &[u8], id: FileId) {
        // Where it is now: a directory leaves that place, and a file may be taken from there.
        if let Some((dir, old)) = catalog.names(id).next()
            && (dir, old) != (parent, name)
        {
            let old = old.to_vec();
            self.slot(catalog, dir, &old);
        }
        let replaced = self.slot(catalog, parent, name).filter(|&old| old != id);
        self.nameless.extend(replaced);
    }

    /// Before names settle: what goes with a directory without a name is noted while it can be seen.
    fn settle(&mut self, catalog: &Catalog) {
        let mut dirs: Vec<FileId> = std::mem::take(&mut self.nameless);
        dirs.retain(|&id| catalog.nlink(id) == 0 && catalog.get(id).is_some_and(|i| i.kind == Kind::Dir));
        while let Some(dir) = dirs.pop() {
            for (name, id) in catalog.children(dir) {
                let Some(inode) = catalog.get(id) else { continue };
                if inode.kind == Kind::Dir {
                    self.gone.entry(id).or_insert_with(|| (Slot::new(dir, name), inode.seen));
                    dirs.push(id);
                } else if let Some(seen) = inode.seen {
                    self.gone_files.insert(seen.local.ino, seen.ctime);
                }
            }
        }
    }

    /// After a scan: who really was at a slot.
    pub(crate) fn correct(&mut self, slot: Slot, have: Option<FileId>) {
        self.slots.insert(slot, have);
    }

    /// After corrections: finds for each inode a slot it is at.
    pub(crate) fn locate_all(&mut self) {
        self.had.clear();
        for (slot, id) in &self.slots {
            if let Some(id) = id {
                self.had.entry(*id).or_insert_with(|| slot.clone());
            }
        }
    }

    /// What `id` was before the batch, as far as the batch had to ask.
    pub(crate) fn before(&self, id: FileId) -> Option<Before> {
        match self.touched.get(&id) {
            Some(t) => t.before,
            None => self.gone.get(&id).map(|(_, seen)| Before { seen: *seen, ..Before::default() }),
        }
    }

    /// Whether `id` is, or was, a directory.
    pub(crate) fn is_dir(&self, catalog: &Catalog, id: FileId) -> bool {
        match self.touched.get(&id) {
            Some(t) => t.kind == Kind::Dir,
            None => self.gone.contains_key(&id) || catalog.get(id).is_some_and(|i| i.kind == Kind::Dir),
        }
    }

    /// Where `id` stood before the batch.
    pub(crate) fn stood(&self, catalog: &Catalog, id: FileId) -> Option<Slot> {
        if let Some(slot) = self.had.get(&id) {
            return Some(slot.clone());
        }
        if let Some((slot, _)) = self.gone.get(&id) {
            return Some(slot.clone());
        }
        let mut names = catalog.names(id).map(|(dir, name)| Slot::new(dir, name));
        names.find(|s| !self.slots.contains_key(s))
    }

    /// The slots whose occupant changes. `present` tells what can be there at all: a device node
    /// that could not be made is nowhere.
    pub(crate) fn changes(&self, catalog: &Catalog, present: impl Fn(FileId) -> bool) -> Vec<Change> {
        let mut out = Vec::new();
        for (slot, have) in &self.slots {
            let have = have.filter(|&id| present(id));
            let want = catalog.lookup(slot.dir, &slot.name).filter(|&id| present(id));
            // What is left in a directory that goes, goes with it; what lives on may be taken from there.
            let dead = !catalog.contains(slot.dir) && slot.dir != STAGE && !is_unknown(slot.dir);
            if have == want || dead && !have.is_some_and(|id| catalog.contains(id)) {
                continue;
            }
            out.push(Change { slot: slot.clone(), have, want });
        }
        out.sort_by(|a, b| a.slot.cmp(&b.slot));
        out
    }
}

/// The first of the ids that a scan gives to what no catalog knows.
pub(crate) const UNKNOWN: u64 = 1 << 63;

/// Whether `id` is one that a scan gave to something unknown.
pub(crate) fn is_unknown(id: FileId) -> bool {
    id.0 >= UNKNOWN
}

/// The world of the planner: notes and catalog together.
pub(crate) struct Noted<'a> {
    pub(crate) notes: &'a Notes,
    pub(crate) catalog: &'a Catalog,
    /// What is unknown: whether it is a directory, and the directory that holds it.
    pub(crate) unknown: &'a HashMap<FileId, (bool, FileId)>,
}

impl World for Noted<'_> {
    fn is_dir(&self, id: FileId) -> bool {
        if let Some((dir, _)) = self.unknown.get(&id) {
            return *dir;
        }
        self.notes.is_dir(self.catalog, id)
    }

    fn parent(&self, dir: FileId) -> Option<FileId> {
        // One that is gone stands where it stood; that its slot needs no step of its own changes nothing.
        if !self.catalog.contains(dir)
            && let Some(slot) = self.notes.stood(self.catalog, dir)
        {
            return Some(slot.dir);
        }
        if let Some((_, parent)) = self.unknown.get(&dir) {
            return Some(*parent);
        }
        self.catalog.names(dir).next().map(|(parent, _)| parent)
    }

    fn unchanged_name(&self, id: FileId) -> Option<Slot> {
        let mut names = self.catalog.names(id).map(|(dir, name)| Slot::new(dir, name));
        names.find(|s| self.notes.slots.get(s).is_none_or(|have| *have == Some(id)))
    }
}
