//! The first copy of an empty follower, over the connection it later takes log from.
//!
//! The leader sends its catalog as of a commit S. The follower makes the tree and asks for contents,
//! some batches of files at a time; the leader reads the live files by its catalog, without locks, while the
//! application writes. So contents are fuzzy; the log from S on makes them right:
//!
//! - what changes after S is in the log, and is replayed over the copy;
//! - what was read but never made it into the log (written, read, then written back between two
//!   passes of capture) shows as a block hash that is not the catalog's: such blocks are reported and
//!   sent in the log whatever they hold by then;
//! - at the end a barrier puts everything before it into the log: replayed to there (E), the copy is right.
//!
//! Files that vanish or change size meanwhile are no error: the log says so too.
//!
//! The follower writes under final names, sets attributes when a file is whole, and notes finished
//! files in a journal once they are durable, so that a copy that breaks off goes on where it was.

use std::sync::{Arc, PoisonError, RwLock};

use crate::blocks::Blocks;
use crate::catalog::{Catalog, Seen, blocks_of};
use crate::error::Result;
use crate::net::wall_clock;
use crate::position::{FileId, Lsn};
use crate::record::{Kind, Time};
use crate::sys::Root;

mod adaptive;
mod aside;
mod base;
mod compare;
mod equal;
mod journal;
mod lay;
mod local;
mod plan;
mod ranges;
mod read;
mod resync;
mod shape;
mod source;
mod sums;
mod take;
mod target;
mod tree;
mod write;

pub use aside::next as aside_next;
pub use lay::{Cloning, Layout, Shelf, lay};
pub use resync::{Order, Report, is_due as resyncs};
pub use source::{Serving, serve};
pub use sums::{Sum, Sums};
pub use take::{Batch, Opened, Taken, Taker, Wish, open};
pub use target::{FillContext, run};

/// A change time this young can hide another change: two ticks of the coarse clock of older kernels.
const RACY: i64 = 40_000_000;

fn racy(ctime: Time) -> bool {
    let at = ctime.sec.saturating_mul(1_000_000_000).saturating_add(i64::from(ctime.nsec));
    wall_clock().saturating_sub(at) < RACY
}

/// What a first copy is read from: a leader's capture, or a follower's apply.
pub trait CopySource: Send + Sync {
    /// The tree as of the last commit.
    fn catalog(&self) -> Arc<RwLock<Catalog>>;

    /// Shows the tree as of the last commit while no commit is under way, and the directory holds at
    /// least everything that the tree says.
    fn settled(&self, look: &mut dyn FnMut(&Catalog));

    /// The data directory.
    fn root(&self) -> Arc<Root>;

    /// Blocks until everything the directory held at the call is committed; the commit's LSN.
    fn barrier(&self) -> Result<Lsn>;

    /// The known hashes of `n` blocks of a file from block `first` on, zero past its end. `None`: the file is not
    /// hashed, or not there.
    fn hashes(&self, id: FileId, first: u64, n: u64) -> Option<Vec<u128>>;

    /// These blocks were read and sent as something that the catalog does not say: their content
    /// must be in the log before the next barrier ends.
    fn mismatch(&self, id: FileId, blocks: Vec<u64>);

    /// All blocks of a file that was not hashed, read while it stood still.
    fn learned(&self, id: FileId, seen: Seen, hashes: Vec<u128>);
}

/// Hashes by catalog and hash files. A commit that is under way may show in part: what was read for a
/// first copy then compares as different, or as what the log is about to say; both are right.
pub fn known_hashes(
    catalog: &RwLock<Catalog>,
    blocks: &Blocks,
    id: FileId,
    first: u64,
    n: u64,
) -> Option<Vec<u128>> {
    let n = usize::try_from(n).ok()?;
    let (size, content) = {
        let catalog = catalog.read().unwrap_or_else(PoisonError::into_inner);
        let inode = catalog.get(id).filter(|i| i.kind == Kind::File && i.hashed)?;
        (inode.size, inode.content)
    };
    if blocks_of(size) > 1 {
        return blocks.get(id, first, n).ok();
    }
    let mut hashes = vec![0; n];
    if let Some(block) = hashes.first_mut().filter(|_| first == 0) {
        *block = content;
    }
    Some(hashes)
}

#[cfg(test)]
mod tests;
