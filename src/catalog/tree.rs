//! Names: the entries of directories, how they change, and how they settle.

use std::collections::HashMap;

use crate::error::Result;
use crate::position::FileId;
use crate::record::{Kind, valid_name};

use super::digest::entry_hash;
use super::slab::{Entry, NONE};
use super::{Catalog, misfit, name_hash};

fn shown(name: &[u8]) -> String {
    format!("'{}'", name.escape_ascii())
}

impl Catalog {
    fn entry_of(&self, parent: u32, name: &[u8]) -> Option<u32> {
        self.by_name
            .find(name_hash(self.name_seed, parent, name), |&e| {
                let e = self.entries.at(e);
                e.parent == parent && *e.name == *name
            })
            .copied()
    }

    /// What `name` in `parent` is.
    #[must_use]
    pub fn lookup(&self, parent: FileId, name: &[u8]) -> Option<FileId> {
        let entry = self.entry_of(self.slot(parent)?, name)?;
        Some(FileId(self.nodes.at(self.entries.at(entry).node).id))
    }

    /// The entries of a directory, in no particular order.
    pub fn children(&self, dir: FileId) -> impl Iterator<Item = (&[u8], FileId)> {
        let mut at = self.node(dir).map_or(NONE, |n| n.children);
        std::iter::from_fn(move || {
            let e = (at != NONE).then(|| self.entries.at(at))?;
            at = e.next_child;
            Some((&*e.name, FileId(self.nodes.at(e.node).id)))
        })
    }

    /// Number of entries of a directory.
    #[must_use]
    pub fn child_count(&self, dir: FileId) -> usize {
        self.node(dir).map_or(0, |n| n.child_count as usize)
    }

    /// The names of an inode, in no particular order.
    pub fn names(&self, id: FileId) -> impl Iterator<Item = (FileId, &[u8])> {
        let mut at = self.node(id).map_or(NONE, |n| n.names);
        std::iter::from_fn(move || {
            let e = (at != NONE).then(|| self.entries.at(at))?;
            at = e.next_name;
            Some((FileId(self.nodes.at(e.parent).id), &*e.name))
        })
    }

    /// Number of names of an inode.
    #[must_use]
    pub fn nlink(&self, id: FileId) -> usize {
        self.node(id).map_or(0, |n| n.nlink as usize)
    }

    /// A path of the inode relative to the root, which itself is the empty path. `None`: there
    /// is no such inode, or within a change set none that is reached from the root.
    #[must_use]
    pub fn path(&self, id: FileId) -> Option<Vec<u8>> {
        let mut slot = self.slot(id)?;
        let mut parts: Vec<&[u8]> = Vec::new();
        while slot != self.root {
            // Before a change set settles there may be a cycle; no path is longer than all inodes.
            if parts.len() > self.len() {
                return None;
            }
            let first = self.nodes.at(slot).names;
            if first == NONE {
                return None;
            }
            let e = self.entries.at(first);
            parts.push(&e.name);
            slot = e.parent;
        }
        parts.reverse();
        Some(parts.join(&b'/'))
    }

    /// The inode at a path relative to the root. Empty parts count for nothing, `.` and `..` are no names.
    #[must_use]
    pub fn resolve(&self, path: &[u8]) -> Option<FileId> {
        let mut slot = self.root;
        for part in path.split(|&b| b == b'/').filter(|p| !p.is_empty()) {
            slot = self.entries.at(self.entry_of(slot, part)?).node;
        }
        Some(FileId(self.nodes.at(slot).id))
    }

    /// Gives inode `id` the name; whatever had it before loses it. A directory leaves its old name.
    pub(crate) fn link(&mut self, parent: FileId, name: &[u8], id: FileId) -> Result<()> {
        let dir = self.directory(parent, "link")?;
        let Some(node) = self.slot(id) else {
            return Err(misfit(format!("link of {} to file {id}, which does not exist", shown(name))));
        };
        if !valid_name(name) {
            return Err(misfit(format!("link of file {id} to {}, which is not a name", shown(name))));
        }
        if id == FileId::ROOT || parent == id {
            return Err(misfit(format!("link of directory {id} as {} into {parent}", shown(name))));
        }
        if let Some(old) = self.entry_of(dir, name) {
            if self.entries.at(old).node == node {
                return Ok(());
            }
            self.detach(old);
        }
        if self.nodes.at(node).kind == Kind::Dir {
            let left = self.nodes.at(node).names;
            if left != NONE {
                let e = self.entries.at(left);
                let key = (self.nodes.at(e.parent).id, e.name.clone());
                self.vacated.insert(key);
                self.detach(left);
            }
            self.moved.push(id);
        }
        self.attach(dir, name, node)
    }

    /// Takes a name away.
    pub(super) fn unlink(&mut self, parent: FileId, name: &[u8]) -> Result<()> {
        let dir = self.directory(parent, "unlink")?;
        if let Some(entry) = self.entry_of(dir, name) {
            self.detach(entry);
            return Ok(());
        }
        // The order of records within a change set is free: a directory that moved has left already.
        if self.vacated.remove(&(parent.0, name.into())) {
            return Ok(());
        }
        Err(misfit(format!("unlink of {} in directory {parent}, which has no such name", shown(name))))
    }

    fn directory(&self, id: FileId, what: &str) -> Result<u32> {
        match self.slot(id) {
            Some(s) if self.nodes.at(s).kind == Kind::Dir => Ok(s),
            Some(_) => Err(misfit(format!("{what} in file {id}, which is not a directory"))),
            None => Err(misfit(format!("{what} in directory {id}, which does not exist"))),
        }
    }

    fn attach(&mut self, dir: u32, name: &[u8], node: u32) -> Result<()> {
        let (next_child, next_name) = (self.nodes.at(dir).children, self.nodes.at(node).names);
        if self.nodes.at(dir).child_count == u32::MAX || self.nodes.at(node).nlink == u32::MAX {
            return Err(misfit(format!("link {}: too many names", shown(name))));
        }
        let entry = Entry {
            name: name.into(),
            parent: dir,
            node,
            next_child,
            prev_child: NONE,
            next_name,
            prev_name: NONE,
        };
        let at = self.entries.insert(entry)?;
        if next_child != NONE {
            self.entries.at_mut(next_child).prev_child = at;
        }
        if next_name != NONE {
            self.entries.at_mut(next_name).prev_name = at;
        }
        let n = self.nodes.at_mut(dir);
        n.children = at;
        n.child_count += 1;
        let n = self.nodes.at_mut(node);
        n.names = at;
        n.nlink += 1;
        let (entries, seed) = (&self.entries, self.name_seed);
        self.by_name.insert_unique(name_hash(seed, dir, name), at, |&e| {
            let e = entries.at(e);
            name_hash(seed, e.parent, &e.name)
        });
        self.meta = self.meta.wrapping_add(self.entry_term(at));
        Ok(())
    }

    fn entry_term(&self, at: u32) -> u128 {
        let e = self.entries.at(at);
        entry_hash(self.system, self.nodes.at(e.parent).id, self.nodes.at(e.node).id, &e.name)
    }

    /// Takes an entry out of its directory and its inode.
    fn detach(&mut self, at: u32) {
        self.meta = self.meta.wrapping_sub(self.entry_term(at));
        let e = self.entries.at(at);
        let hash = name_hash(self.name_seed, e.parent, &e.name);
        if let Ok(found) = self.by_name.find_entry(hash, |&o| o == at) {
            found.remove();
        }
        let (dir, node) = (e.parent, e.node);
        let (next_child, prev_child) = (e.next_child, e.prev_child);
        let (next_name, prev_name) = (e.next_name, e.prev_name);
        if next_child != NONE {
            self.entries.at_mut(next_child).prev_child = prev_child;
        }
        if prev_child != NONE {
            self.entries.at_mut(prev_child).next_child = next_child;
        }
        if next_name != NONE {
            self.entries.at_mut(next_name).prev_name = prev_name;
        }
        if prev_name != NONE {
            self.entries.at_mut(prev_name).next_name = next_name;
        }
        let n = self.nodes.at_mut(dir);
        n.child_count -= 1;
        if n.children == at {
            n.children = next_child;
        }
        let n = self.nodes.at_mut(node);
        n.nlink -= 1;
        if n.names == at {
            n.names = next_name;
        }
        if n.nlink == 0 {
            self.nameless.push(FileId(n.id));
        }
        self.entries.remove(at, Entry::empty());
    }

    /// Ends a change set: what has no name is gone, and so is what was reached only through it.
    /// Returns the ids that went.
    ///
    /// # Errors
    /// When directories would hold each other in a circle.
    pub fn settle(&mut self) -> Result<Vec<FileId>> {
        self.check_cycles()?;
        self.vacated.clear();
        let mut dropped = Vec::new();
        let mut pending = std::mem::take(&mut self.nameless);
        while let Some(id) = pending.pop() {
            let Some(slot) = self.slot(id) else { continue };
            if self.nodes.at(slot).nlink != 0 || id == FileId::ROOT {
                continue;
            }
            while self.nodes.at(slot).children != NONE {
                self.detach(self.nodes.at(slot).children);
                pending.append(&mut self.nameless);
            }
            dropped.push(self.remove_node(slot));
        }
        Ok(dropped)
    }

    /// Every directory that got a name must hang below the root, or below one that is about to go.
    fn check_cycles(&mut self) -> Result<()> {
        // Slot -> number of the walk that passed it. A walk that meets itself is a circle.
        let mut passed: HashMap<u32, usize> = HashMap::new();
        for (walk, id) in std::mem::take(&mut self.moved).into_iter().enumerate() {
            let Some(mut slot) = self.slot(id) else { continue };
            while slot != self.root {
                match passed.insert(slot, walk) {
                    Some(earlier) if earlier == walk => {
                        return Err(misfit(format!("directory {id} would hold itself")));
                    }
                    Some(_) => break,
                    None => {}
                }
                let first = self.nodes.at(slot).names;
                if first == NONE {
                    break;
                }
                slot = self.entries.at(first).parent;
            }
        }
        Ok(())
    }
}
