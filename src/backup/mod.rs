//! Base backups: a first copy that is kept. This side takes one from a leader or a follower, with the modules by which a
//! follower gets its own: [`fill`](crate::fill), [`receive`](crate::receive), [`apply`](crate::apply).
//!
//! ```text
//!    connect as a backup ---> contents by the catalog as of start ---> log up to an exact cut at or after the barrier
//!                                                                          |
//!                                        form tree: replayed into data/ <--+--> forms tar and packs: kept beside them
//! ```
//!
//! To the node that is read this is no follower: it has no slot, counts for nobody, and is gone when its connection is. What a
//! backup consists of stands in [`manifest`](crate::manifest). The manifest is written last, by rename, after
//! everything it names is durable: whenever the making breaks off, by an error, a signal or a power cut, there is none.
//!
//! Until then all that is not part of the backup is in one hidden directory, [`WORK`], a follower's state directory.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::catalog::Catalog;
use crate::manifest::Manifest;
use crate::net::{Sources, Upstream};
use crate::position::{Lsn, NodeId};
use crate::record::Kind;
use crate::tls::Trust;

mod base;
mod hashes;
mod packs;
mod place;
mod progress;
mod replay;
mod scratch;
mod shelf;
mod source;
mod stream;
mod summed;
mod sums;
mod tar;
mod tarball;
mod tree;

pub use base::Origin;
pub use hashes::{HashReader, HashWriter};
pub use packs::{Target, take as packs};
pub use place::WORK;
pub use progress::{Phase, Progress, View};
pub use stream::Compression;
pub use tar::take as tar;
pub use tree::take as tree;

/// How to reach the node that is read, and as whom.
#[derive(Clone, Debug)]
pub struct Access {
    /// `host:port`.
    pub address: String,
    /// The name by which this side is trusted there.
    pub name: String,
    /// Keys and certificates.
    pub trust: Trust,
    /// A node that sends nothing for this long is given up.
    pub peer_timeout: Duration,
    /// After so long without a connection the backup fails.
    pub patience: Duration,
    /// Most bytes a second that are taken from the node; 0: any.
    pub max_rate: u64,
}

impl Access {
    fn sources(&self) -> Sources {
        Sources::one(&self.address)
    }

    fn upstream(&self) -> Arc<Upstream> {
        let node = NodeId(fastrand::u64(1..));
        let upstream = Upstream::new(&self.sources(), node).trusting(self.trust.clone());
        Arc::new(upstream.limited(self.max_rate))
    }
}

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Order {
    /// From where.
    pub access: Access,
    /// The directory that becomes the backup.
    pub out: PathBuf,
    /// Its name.
    pub label: String,
    /// How long an exact cut is waited for once everything else is there.
    pub exact_timeout: Duration,
    /// What was made stays when it fails.
    pub keep_partial: bool,
    /// What is there is gone on with.
    pub resume: bool,
    /// Where a stream keeps the log until it is its turn; `None`: where temporary files are.
    pub scratch: Option<PathBuf>,
}

/// A backup that was made.
#[derive(Clone, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "as in the manifest")]
pub struct Made {
    pub label: String,
    pub start: Lsn,
    pub end: Lsn,
    pub exact: bool,
    /// Regular files, and the bytes they hold.
    pub files: u64,
    pub bytes: u64,
    /// Of form packs: how many packs, and their bytes. Of an incremental backup they hold what has changed.
    pub packs: Option<(u64, u64)>,
}

impl Made {
    fn of(manifest: &Manifest) -> Self {
        Self {
            label: manifest.label.clone(),
            start: manifest.start,
            end: manifest.end,
            exact: manifest.exact,
            files: manifest.files.len() as u64,
            bytes: manifest.files.iter().map(|f| f.size).sum(),
            packs: None,
        }
    }

    /// Of form packs, whose manifest names no files: what it is of stands in the catalog.
    fn packed(manifest: &Manifest, catalog: &Catalog) -> Self {
        let files = catalog.inodes().filter(|i| i.kind == Kind::File);
        let (files, bytes) = files.fold((0, 0_u64), |(n, sum), i| (n + 1, sum.saturating_add(i.size)));
        let packs = manifest.parts.iter().filter(|p| p.name.starts_with("pack-"));
        let packs = packs.fold((0, 0_u64), |(n, sum), p| (n + 1, sum.saturating_add(p.size)));
        Self { files, bytes, packs: Some(packs), ..Self::of(manifest) }
    }
}
