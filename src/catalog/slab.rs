//! Where the catalog keeps its inodes and names: pages of fixed size, so that growth never
//! copies or over-allocates, and indices of 32 bits instead of pointers. Pages are shared with those who
//! look at an earlier state, and copied when they change meanwhile.

use std::sync::Arc;

use crate::error::{Error, ErrorKind, Result};
use crate::record::Kind;

/// No entry.
pub(super) const NONE: u32 = u32::MAX;
/// Entries of one page.
const PAGE: usize = 512;

/// A growing array with a free list; entries never move.
#[derive(Debug, Clone)]
pub(super) struct Slab<T> {
    pages: Vec<Arc<Vec<T>>>,
    free: Vec<u32>,
    len: u32,
}

impl<T: Clone> Slab<T> {
    pub(super) fn new() -> Self {
        Self { pages: Vec::new(), free: Vec::new(), len: 0 }
    }

    pub(super) fn at(&self, i: u32) -> &T {
        &self.pages[i as usize / PAGE][i as usize % PAGE]
    }

    pub(super) fn at_mut(&mut self, i: u32) -> &mut T {
        &mut Arc::make_mut(&mut self.pages[i as usize / PAGE])[i as usize % PAGE]
    }

    /// The same entries, to be looked at while this one goes on: it takes time and memory for each page, not
    /// for each entry. Entries given back may not be used again in it.
    pub(super) fn share(&self) -> Self {
        Self { pages: self.pages.clone(), free: Vec::new(), len: self.len }
    }

    pub(super) fn insert(&mut self, value: T) -> Result<u32> {
        if let Some(i) = self.free.pop() {
            *self.at_mut(i) = value;
            return Ok(i);
        }
        if self.len == NONE {
            return Err(Error::new(
                ErrorKind::Refused,
                "the catalog holds 4,294,967,295 entries, which is its limit; replicate a smaller directory",
            ));
        }
        let i = self.len;
        if i as usize / PAGE == self.pages.len() {
            self.pages.push(Arc::new(Vec::with_capacity(PAGE)));
        }
        let page = Arc::make_mut(&mut self.pages[i as usize / PAGE]);
        // A copy of a shared page has no room left.
        page.reserve_exact(PAGE - page.len());
        page.push(value);
        self.len += 1;
        Ok(i)
    }

    /// Gives an entry back; `empty` takes its place until it is used again.
    pub(super) fn remove(&mut self, i: u32, empty: T) {
        *self.at_mut(i) = empty;
        self.free.push(i);
    }

    /// One past the highest index ever used.
    pub(super) fn bound(&self) -> u32 {
        self.len
    }

    #[cfg(test)]
    pub(super) fn in_use(&self) -> usize {
        self.len as usize - self.free.len()
    }
}

/// An extended attribute: name and value.
pub type Xattr = (Box<[u8]>, Box<[u8]>);

/// What few inodes have.
#[derive(Debug, Clone, Default)]
pub(super) struct Extra {
    pub(super) rdev: u64,
    pub(super) target: Box<[u8]>,
    /// Sorted by name.
    pub(super) xattrs: Vec<Xattr>,
}

/// The content of a file is known.
pub(super) const HASHED: u8 = 1;
/// The node was seen on this machine: `dev`, `ino`, `btime` and `ctime` count.
pub(super) const SEEN: u8 = 2;
/// It was seen so soon after its change that it must be looked at again.
pub(super) const RACY: u8 = 4;

/// One inode. Times are split and the sum is in two halves so that nothing is lost to padding.
#[derive(Debug, Clone)]
pub(super) struct Node {
    /// 0: a free slot.
    pub(super) id: u64,
    pub(super) size: u64,
    pub(super) content: [u64; 2],
    pub(super) ino: u64,
    pub(super) mtime_sec: i64,
    pub(super) ctime_sec: i64,
    pub(super) btime_sec: i64,
    pub(super) extra: Option<Box<Extra>>,
    pub(super) mtime_nsec: u32,
    pub(super) ctime_nsec: u32,
    pub(super) btime_nsec: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// First of the entries that name it.
    pub(super) names: u32,
    /// Number of entries that name it.
    pub(super) nlink: u32,
    /// First of its own entries, of a directory.
    pub(super) children: u32,
    pub(super) child_count: u32,
    pub(super) dev: u16,
    pub(super) mode: u16,
    pub(super) kind: Kind,
    pub(super) flags: u8,
}

impl Node {
    pub(super) fn empty() -> Self {
        Self {
            id: 0,
            size: 0,
            content: [0; 2],
            ino: 0,
            mtime_sec: 0,
            ctime_sec: 0,
            btime_sec: 0,
            extra: None,
            mtime_nsec: 0,
            ctime_nsec: 0,
            btime_nsec: 0,
            uid: 0,
            gid: 0,
            names: NONE,
            nlink: 0,
            children: NONE,
            child_count: 0,
            dev: 0,
            mode: 0,
            kind: Kind::File,
            flags: HASHED,
        }
    }

    pub(super) fn sum(&self) -> u128 {
        u128::from(self.content[1]) << 64 | u128::from(self.content[0])
    }

    pub(super) fn set_sum(&mut self, sum: u128) {
        let bytes = sum.to_le_bytes();
        let (lo, hi) = bytes.split_at(8);
        let half = |b: &[u8]| b.iter().rev().fold(0_u64, |n, &b| n << 8 | u64::from(b));
        self.content = [half(lo), half(hi)];
    }

    pub(super) fn hashed(&self) -> bool {
        self.flags & HASHED != 0
    }
}

/// One name of an inode. It sits in two rings' worth of lists: its directory's and its inode's.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) name: Box<[u8]>,
    /// Slot of the directory.
    pub(super) parent: u32,
    /// Slot of the inode.
    pub(super) node: u32,
    pub(super) next_child: u32,
    pub(super) prev_child: u32,
    pub(super) next_name: u32,
    pub(super) prev_name: u32,
}

impl Entry {
    pub(super) fn empty() -> Self {
        Self {
            name: Box::default(),
            parent: NONE,
            node: NONE,
            next_child: NONE,
            prev_child: NONE,
            next_name: NONE,
            prev_name: NONE,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_inode_and_a_name_stay_small() {
        assert!(size_of::<Node>() <= 120, "{}", size_of::<Node>());
        assert!(size_of::<Entry>() <= 40, "{}", size_of::<Entry>());
    }

    #[test]
    fn slots_are_used_again() {
        let mut slab = Slab::new();
        let ids: Vec<u32> = (0..2000).map(|i| slab.insert(i).unwrap()).collect();
        slab.remove(ids[7], 0);
        assert_eq!(slab.insert(99).unwrap(), ids[7]);
        assert_eq!((*slab.at(ids[7]), *slab.at(ids[1999]), slab.in_use()), (99, 1999, 2000));
    }

    #[test]
    fn what_is_shared_stays_as_it_was() {
        let mut slab = Slab::new();
        let ids: Vec<u32> = (0..PAGE * 2 + 9).map(|i| slab.insert(i).unwrap()).collect();
        let shared = slab.share();
        *slab.at_mut(ids[3]) = 77;
        slab.insert(88).unwrap();
        assert_eq!((*shared.at(ids[3]), shared.bound() as usize), (3, PAGE * 2 + 9));
        assert_eq!((*slab.at(3), *slab.at(slab.bound() - 1)), (77, 88));
        let apart = |i: usize| !Arc::ptr_eq(&slab.pages[i], &shared.pages[i]);
        assert_eq!([apart(0), apart(1), apart(2)], [true, false, true], "only what changed was copied");
        assert_eq!(slab.pages[2].capacity(), PAGE);
    }
}
