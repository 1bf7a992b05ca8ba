//! The catalog as it was at one moment, for those who take their time with it.

use crate::error::{Error, ErrorKind, Result};
use crate::position::{Cut, FileId, Lsn, SystemId};
use crate::record::{Attrs, Kind, Time};

use super::slab::{Entry, NONE, Node, RACY, SEEN, Slab};
use super::{Catalog, Digest, Excludes, Inode, LocalId, Seen};

/// The tree as of one commit. Making one takes a few microseconds for 10,000 files, holding one costs the
/// catalog a copy of each page of inodes or names that it changes meanwhile.
#[derive(Debug, Clone)]
#[allow(missing_docs, reason = "what they are is said at the catalog's accessors of the same names")]
pub struct Frozen {
    pub system: SystemId,
    pub lsn: Lsn,
    pub cut: Cut,
    pub time: i64,
    pub next_id: FileId,
    pub excludes: Excludes,
    pub digest: Digest,
    pub len: u64,
    pub name_count: u64,
    nodes: Slab<Node>,
    entries: Slab<Entry>,
    devices: Vec<u64>,
}

pub(super) fn view<'a>(devices: &[u64], n: &'a Node) -> Inode<'a> {
    let extra = n.extra.as_deref();
    let seen = (n.flags & SEEN != 0).then(|| Seen {
        local: LocalId {
            dev: devices.get(usize::from(n.dev)).copied().unwrap_or_default(),
            ino: n.ino,
            btime: Time { sec: n.btime_sec, nsec: n.btime_nsec },
        },
        ctime: Time { sec: n.ctime_sec, nsec: n.ctime_nsec },
        racy: n.flags & RACY != 0,
    });
    Inode {
        id: FileId(n.id),
        kind: n.kind,
        attrs: Attrs {
            mode: u32::from(n.mode),
            uid: n.uid,
            gid: n.gid,
            mtime: Time { sec: n.mtime_sec, nsec: n.mtime_nsec },
        },
        size: n.size,
        rdev: extra.map_or(0, |e| e.rdev),
        target: extra.filter(|_| n.kind == Kind::Symlink).map(|e| &*e.target),
        xattrs: extra.map_or(&[], |e| &e.xattrs[..]),
        content: n.sum(),
        hashed: n.hashed(),
        nlink: n.nlink,
        seen,
    }
}

pub(super) fn inodes<'a>(nodes: &'a Slab<Node>, devices: &'a [u64]) -> impl Iterator<Item = Inode<'a>> {
    (0..nodes.bound()).map(|i| nodes.at(i)).filter(|n| n.id != 0).map(|n| view(devices, n))
}

pub(super) fn entries<'a>(
    nodes: &'a Slab<Node>,
    entries: &'a Slab<Entry>,
) -> impl Iterator<Item = (FileId, &'a [u8], FileId)> {
    let id = |slot| FileId(nodes.at(slot).id);
    let used = (0..entries.bound()).map(|i| entries.at(i)).filter(|e| e.node != NONE);
    used.map(move |e| (id(e.parent), &*e.name, id(e.node)))
}

impl Catalog {
    /// The tree as it is now, to be looked at without holding a lock on this.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] in the middle of a change set: that is no tree.
    pub fn freeze(&self) -> Result<Frozen> {
        if !self.settled() {
            let text = "a catalog in the middle of a change set can't be stored; try again after its commit";
            return Err(Error::new(ErrorKind::Unavailable, text));
        }
        Ok(Frozen {
            system: self.system,
            lsn: self.lsn,
            cut: self.cut,
            time: self.time,
            next_id: self.next_id(),
            excludes: self.excludes.clone(),
            digest: self.digest(),
            len: self.len() as u64,
            name_count: self.name_count() as u64,
            nodes: self.nodes.share(),
            entries: self.entries.share(),
            devices: self.devices.clone(),
        })
    }
}

impl Frozen {
    /// Every inode, in no particular order.
    pub fn inodes(&self) -> impl Iterator<Item = Inode<'_>> {
        inodes(&self.nodes, &self.devices)
    }

    /// Every entry: directory, name, inode.
    pub fn entries(&self) -> impl Iterator<Item = (FileId, &[u8], FileId)> {
        entries(&self.nodes, &self.entries)
    }
}
