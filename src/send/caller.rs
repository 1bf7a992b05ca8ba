//! Who is at the other end of a connection that was let in: a follower, or a backup.

use tokio_util::sync::CancellationToken;

use super::backups::{BackupState, Visit};
use super::peers::{PeerState, Peers, Session};
use crate::catalog::Catalog;
use crate::position::Lsn;
use crate::slots::Hold;
use crate::wire::{Ack, Below};

/// A connection's entry among followers or backups.
#[derive(Debug)]
pub(super) enum Caller {
    Follower(Session),
    Backup(Visit),
}

impl Caller {
    pub(super) fn word(&self) -> &'static str {
        match self {
            Self::Follower(_) => "follower",
            Self::Backup(_) => "backup",
        }
    }

    /// Whether it is told of the slots here: a backup has nothing to do with them.
    pub(super) fn knows_slots(&self) -> bool {
        matches!(self, Self::Follower(_))
    }

    /// Cancelled when another connection takes its place.
    pub(super) fn replaced(&self) -> CancellationToken {
        match self {
            Self::Follower(s) => s.cancel.clone(),
            Self::Backup(_) => CancellationToken::new(),
        }
    }

    /// It takes contents of the tree from now on.
    pub(super) fn copying(&self, catalog: impl FnOnce(&dyn Fn(&Catalog))) {
        match self {
            Self::Follower(s) => s.state(PeerState::Filling),
            Self::Backup(v) => catalog(&|c| v.copying(c)),
        }
    }

    /// It has the tree, and asks for contents.
    pub(super) fn begun(&self) {
        if let Self::Follower(s) = self {
            s.hold.iter().for_each(Hold::stays);
        }
    }

    pub(super) fn copied(&self, files: u64, bytes: u64) {
        match self {
            Self::Follower(s) => s.update(|s| {
                s.filled_files += files;
                s.filled_bytes += bytes;
            }),
            Self::Backup(v) => v.update(|s| {
                s.files += files;
                s.bytes += bytes;
            }),
        }
    }

    /// It takes log that was there before.
    pub(super) fn catching_up(&self) {
        match self {
            Self::Follower(s) => s.state(PeerState::Catchup),
            Self::Backup(v) => v.update(|s| s.state = BackupState::Log),
        }
    }

    /// Log up to here was handed to TCP; whether that is all there is.
    pub(super) fn sent(&self, lsn: Lsn, all: bool) {
        if let Self::Follower(s) = self {
            s.update(|s| {
                s.sent = s.sent.max(lsn);
                if all {
                    s.state = PeerState::Streaming;
                }
            });
        }
    }

    pub(super) fn ack(&self, ack: &Ack) {
        match self {
            Self::Follower(s) => s.ack(ack),
            Self::Backup(v) => v.confirmed(ack.flush),
        }
    }

    /// It told who follows it.
    pub(super) fn told(&self, below: Vec<Below>) {
        if let Self::Follower(s) = self {
            s.told(below);
        }
    }

    /// The bits of a keepalive that say what its confirmations count for.
    pub(super) fn standing(&self, peers: &Peers) -> u8 {
        match self {
            Self::Follower(s) => peers.standing(s.name()),
            Self::Backup(_) => 0,
        }
    }

    pub(super) fn left(&self, reason: String) {
        if let Self::Follower(s) = self {
            s.update(|s| s.reason = Some(reason));
        }
    }
}
