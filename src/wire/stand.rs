//! Where the two ends of a stream stand, as they tell each other: keepalives and acknowledgements.

use super::{ACK_APPLIES, ACK_HALTED, ACK_NEVER, Lineage};
use crate::position::Lsn;

/// Where a sender's log stands.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Keepalive {
    /// End of its durable log.
    pub end: Lsn,
    /// End of its last complete change set.
    pub commit: Lsn,
    /// End of its last change set with an exact cut.
    pub exact: Lsn,
    /// Time of `commit`, nanoseconds since 1970 by the leader's clock.
    pub commit_time: i64,
    /// Time of `exact`.
    pub exact_time: i64,
    /// The leader's clock now.
    pub now: i64,
    /// Where the log comes from; `None` for, and from, a node that does not know it.
    pub origin: Option<Origin>,
    /// What the sender asks for and tells, bits; `None` for, and from, a node that does not know it. Not without an
    /// origin.
    pub asks: Option<u8>,
}

/// What a sender knows of where its log comes from.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Origin {
    /// Nanoseconds without news of the leader, directly or through others; 0 while there are news.
    pub silent: u64,
    /// The nodes that the sender's log comes through, itself first.
    pub lineage: Lineage,
}

/// Where a receiver stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Ack {
    /// In its operating system.
    pub write: Lsn,
    /// Durable in its log.
    pub flush: Lsn,
    /// Visible in its directory.
    pub apply: Lsn,
    /// Time of the commit at `apply`.
    pub apply_time: i64,
    /// What counts, bits; `None` for, and from, a node that does not know them.
    pub flags: Option<u8>,
    /// How old a commit has to be before the receiver shows it, ns; `None` for, and from, a node that does not say it.
    /// Not without flags.
    pub delay: Option<u64>,
}

impl Ack {
    /// Whether the receiver's directory moves. One that can't say so says it by its positions.
    #[must_use]
    pub fn applies(&self) -> bool {
        self.flags.is_none_or(|f| f & ACK_APPLIES != 0)
    }

    /// Whether the receiver was set up never to count.
    #[must_use]
    pub fn never(&self) -> bool {
        self.flags.is_some_and(|f| f & ACK_NEVER != 0)
    }

    /// Whether the receiver's directory rests until somebody helps.
    #[must_use]
    pub fn halted(&self) -> bool {
        self.flags.is_some_and(|f| f & ACK_HALTED != 0)
    }
}
