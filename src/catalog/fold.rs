//! The fold of one record into the catalog.

use crate::error::Result;
use crate::position::FileId;
use crate::record::{Attrs, BLOCK, EXCLUDES_MAX, Kind, NAME_MAX, Record, TARGET_MAX, XATTR_MAX};

use super::slab::{Extra, Node};
use super::{Catalog, Excludes, digest, misfit};

/// Largest size of a file: `loff_t` of Linux.
const SIZE_MAX: u64 = i64::MAX as u64;
/// Most bytes of the names of one inode's extended attributes: `XATTR_LIST_MAX` of Linux.
const XATTR_LIST_MAX: usize = 64 << 10;

pub(super) fn put_attrs(n: &mut Node, attrs: &Attrs) {
    // Checked against 0o7777 by everyone who comes here from outside.
    n.mode = u16::try_from(attrs.mode & 0o7777).unwrap_or_default();
    (n.uid, n.gid) = (attrs.uid, attrs.gid);
    (n.mtime_sec, n.mtime_nsec) = (attrs.mtime.sec, attrs.mtime.nsec);
}

fn check_attrs(id: FileId, attrs: &Attrs) -> Result<()> {
    if attrs.mode > 0o7777 || attrs.mtime.nsec >= 1_000_000_000 {
        return Err(misfit(format!("mode {:o} or time of file {id} is out of range", attrs.mode)));
    }
    Ok(())
}

fn end_of(id: FileId, offset: u64, len: u64) -> Result<u64> {
    offset
        .checked_add(len)
        .filter(|&end| end <= SIZE_MAX)
        .ok_or_else(|| misfit(format!("file {id} would reach beyond {SIZE_MAX} bytes")))
}

impl Catalog {
    /// Folds one record: names, attributes, sizes. Of the content only what needs no hashing: a file cut
    /// to nothing is known to be empty. A commit is up to the caller, who settles and compares.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`](crate::error::ErrorKind::Corrupt) for a record that does not fit the tree.
    pub fn fold(&mut self, record: &Record<'_>) -> Result<()> {
        self.settled = false;
        match *record {
            Record::Create { id, kind, ref attrs, rdev, target } => {
                self.create(id, kind, attrs, rdev, target)
            }
            Record::Write { id, offset, data } => self.write(id, offset, data.len() as u64),
            Record::Truncate { id, size } => self.truncate(id, size),
            Record::Punch { id, offset, len } => self.check_punch(id, offset, len),
            Record::Link { parent, name, id } => self.link(parent, name, id),
            Record::Unlink { parent, name } => self.unlink(parent, name),
            Record::Attr { id, ref attrs } => self.set_attrs(id, attrs),
            Record::Xattr { id, name, value } => self.set_xattr(id, name, value),
            Record::Excludes { version, patterns } => self.set_excludes(version, patterns),
            Record::Commit(_) | Record::RestorePoint { .. } | Record::Gap { .. } => Ok(()),
            Record::Abort => Err(misfit("an abort is no part of a tree")),
        }
    }

    fn create(&mut self, id: FileId, kind: Kind, attrs: &Attrs, rdev: u64, target: &[u8]) -> Result<()> {
        if id.0 < self.next_id {
            let next = self.next_id();
            return Err(misfit(format!("create of file {id}: ids are not used twice, the next is {next}")));
        }
        self.add(id, kind, attrs, rdev, target)
    }

    /// Adds an inode without a name.
    pub(super) fn add(
        &mut self,
        id: FileId,
        kind: Kind,
        attrs: &Attrs,
        rdev: u64,
        target: &[u8],
    ) -> Result<()> {
        check_attrs(id, attrs)?;
        let device = matches!(kind, Kind::CharDevice | Kind::BlockDevice);
        let link = kind == Kind::Symlink;
        if (rdev != 0 && !device)
            || link == target.is_empty()
            || target.len() > TARGET_MAX
            || target.contains(&0)
        {
            return Err(misfit(format!(
                "create of file {id} of kind {kind:?} with a device or target not its own"
            )));
        }
        let mut node = Node::empty();
        (node.id, node.kind) = (id.0, kind);
        put_attrs(&mut node, attrs);
        if rdev != 0 || link {
            node.extra = Some(Box::new(Extra { rdev, target: target.into(), xattrs: Vec::new() }));
        }
        self.insert_node(node)?;
        self.nameless.push(id);
        Ok(())
    }

    fn known(&self, id: FileId, what: &str) -> Result<u32> {
        self.slot(id).ok_or_else(|| misfit(format!("{what} of file {id}, which does not exist")))
    }

    fn file(&self, id: FileId, what: &str) -> Result<u32> {
        let slot = self.known(id, what)?;
        if self.nodes.at(slot).kind != Kind::File {
            return Err(misfit(format!("{what} of {id}, which is not a regular file")));
        }
        Ok(slot)
    }

    fn write(&mut self, id: FileId, offset: u64, len: u64) -> Result<()> {
        let slot = self.file(id, "write")?;
        let end = end_of(id, offset, len)?;
        let size = self.nodes.at(slot).size;
        if offset % BLOCK != 0 || len == 0 || (len % BLOCK != 0 && end < size) {
            return Err(misfit(format!(
                "write of {len} bytes at {offset} of file {id} is not of whole blocks"
            )));
        }
        if end > size {
            self.set_size(slot, end);
        }
        Ok(())
    }

    pub(super) fn truncate(&mut self, id: FileId, size: u64) -> Result<()> {
        let slot = self.file(id, "truncate")?;
        self.set_size(slot, end_of(id, size, 0)?);
        if size == 0 {
            self.set_content_of(slot, 0, true);
        }
        Ok(())
    }

    /// A punch changes only contents: it zeroes whole blocks, or up to the end of the file.
    fn check_punch(&self, id: FileId, offset: u64, len: u64) -> Result<()> {
        let slot = self.file(id, "punch")?;
        let end = end_of(id, offset, len)?;
        if offset % BLOCK != 0 || (end % BLOCK != 0 && end < self.nodes.at(slot).size) {
            return Err(misfit(format!(
                "punch of {len} bytes at {offset} of file {id} is not of whole blocks"
            )));
        }
        Ok(())
    }

    /// Changes a node and the term of the digest that goes with it; the extended attributes stay.
    fn change(&mut self, slot: u32, change: impl FnOnce(&mut Node)) {
        let system = self.system;
        let n = self.nodes.at_mut(slot);
        let before = digest::node_hash(system, n);
        change(n);
        let after = digest::node_hash(system, n);
        self.meta = self.meta.wrapping_sub(before).wrapping_add(after);
    }

    fn set_size(&mut self, slot: u32, size: u64) {
        if self.nodes.at(slot).size != size {
            self.change(slot, |n| n.size = size);
        }
    }

    pub(super) fn set_attrs(&mut self, id: FileId, attrs: &Attrs) -> Result<()> {
        let slot = self.known(id, "attributes")?;
        check_attrs(id, attrs)?;
        self.change(slot, |n| put_attrs(n, attrs));
        Ok(())
    }

    pub(super) fn set_xattr(&mut self, id: FileId, name: &[u8], value: Option<&[u8]>) -> Result<()> {
        let slot = self.known(id, "extended attribute")?;
        let sound = !name.is_empty() && name.len() <= NAME_MAX && !name.contains(&0);
        if !sound || value.is_some_and(|v| v.len() > XATTR_MAX) {
            return Err(misfit(format!(
                "extended attribute of file {id}: its name or value is out of range"
            )));
        }
        let system = self.system;
        let n = self.nodes.at_mut(slot);
        let extra = n.extra.get_or_insert_default();
        let mut meta = self.meta;
        let at = extra.xattrs.binary_search_by(|(have, _)| (**have).cmp(name));
        if let Ok(at) = at {
            meta = meta.wrapping_sub(digest::xattr_hash(system, n.id, name, &extra.xattrs[at].1));
        }
        match (at, value) {
            (Ok(at), Some(v)) => extra.xattrs[at].1 = v.into(),
            (Err(at), Some(v)) => {
                let listed: usize = extra.xattrs.iter().map(|(have, _)| have.len() + 1).sum();
                if listed + name.len() >= XATTR_LIST_MAX {
                    return Err(misfit(format!("file {id} would have too many extended attributes")));
                }
                extra.xattrs.reserve_exact(1);
                extra.xattrs.insert(at, (name.into(), v.into()));
            }
            (Ok(at), None) => {
                extra.xattrs.remove(at);
            }
            (Err(_), None) => {
                return Err(misfit(format!("file {id} has no extended attribute '{}'", name.escape_ascii())));
            }
        }
        if let Some(v) = value {
            meta = meta.wrapping_add(digest::xattr_hash(system, n.id, name, v));
        }
        if extra.xattrs.is_empty() && extra.rdev == 0 && extra.target.is_empty() {
            n.extra = None;
        }
        self.meta = meta;
        Ok(())
    }

    fn set_excludes(&mut self, version: u64, patterns: &[u8]) -> Result<()> {
        if version <= self.excludes.version || patterns.len() > EXCLUDES_MAX {
            let have = self.excludes.version;
            return Err(misfit(format!("exclude patterns of version {version} after version {have}")));
        }
        self.excludes = Excludes { version, patterns: patterns.into() };
        Ok(())
    }
}
