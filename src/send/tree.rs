//! The cascade: who follows a follower, as a flat list on its way up and as a tree for `status`.

use serde::Serialize;

use super::peers::{FollowerStatus, text};
use crate::position::Lsn;
use crate::wire::{BELOW_MAX, Below, LINEAGE_MAX};

/// How far a node is behind the one it follows.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct LagStatus {
    /// Bytes of log that are not handed to TCP yet.
    pub sent_bytes: u64,
    /// Bytes of log that are not in its operating system yet.
    pub write_bytes: u64,
    /// Bytes of log that are not durable there yet.
    pub flush_bytes: u64,
    /// Bytes of log that are not visible in its directory yet.
    pub bytes: u64,
    /// Age of the oldest commit that is not visible there, by the leader's clock; 0 when there is none, `None`
    /// when it is not known.
    pub seconds: Option<f64>,
}

impl LagStatus {
    /// From the bytes behind the positions sent, write, flush and apply, and nanoseconds.
    pub(super) fn new(behind: [u64; 4], age: Option<u64>) -> Self {
        let [sent_bytes, write_bytes, flush_bytes, bytes] = behind;
        let seconds = age.map(|ns| std::time::Duration::from_nanos(ns).as_secs_f64());
        Self { sent_bytes, write_bytes, flush_bytes, bytes, seconds }
    }
}

/// A node further down. Positions are printed as `status` prints them.
#[derive(Clone, Debug, Serialize)]
pub struct NodeBelow {
    /// Its name.
    pub name: String,
    /// What its connection is about.
    pub state: String,
    /// Log handed to TCP.
    #[serde(serialize_with = "text")]
    pub sent: Lsn,
    /// Log in its operating system.
    #[serde(serialize_with = "text")]
    pub write: Lsn,
    /// Log durable there.
    #[serde(serialize_with = "text")]
    pub flush: Lsn,
    /// Log visible in its directory.
    #[serde(serialize_with = "text")]
    pub apply: Lsn,
    /// When it was last heard, ns since 1970.
    pub heard: i64,
    /// How far it is behind the node that it follows, as that one told.
    pub lag: Option<LagStatus>,
    /// Who follows it.
    pub followers: Vec<Self>,
}

impl NodeBelow {
    /// Whether it, or one that follows it, has this name.
    #[must_use]
    pub fn names(&self, name: &str) -> bool {
        self.name == name || self.followers.iter().any(|b| b.names(name))
    }
}

/// The tree of a list that a follower told at `told` (ns since 1970).
pub(super) fn nested(list: &[Below], told: i64) -> Vec<NodeBelow> {
    let mut rest = list;
    level(&mut rest, 0, told)
}

fn level(rest: &mut &[Below], depth: u8, told: i64) -> Vec<NodeBelow> {
    let mut out = Vec::new();
    while let Some((first, behind)) = rest.split_first().filter(|(f, _)| f.depth >= depth) {
        *rest = behind;
        out.push(NodeBelow {
            name: first.name.clone(),
            state: first.state.clone(),
            sent: first.sent,
            write: first.write,
            flush: first.flush,
            apply: first.apply,
            heard: told.saturating_sub(i64::try_from(first.silent).unwrap_or(i64::MAX)),
            lag: (first.apply > Lsn::ZERO).then(|| {
                let end = first.apply.checked_add(first.lag_bytes).unwrap_or(first.apply);
                let behind = [first.sent, first.write, first.flush, first.apply].map(|p| end.since(p));
                LagStatus::new(behind, first.lag)
            }),
            followers: level(rest, depth.saturating_add(1), told),
        });
    }
    out
}

/// The list of followers and of those below each, cut off at [`BELOW_MAX`] nodes and [`LINEAGE_MAX`] levels.
pub(super) fn flat<'a>(
    followers: impl Iterator<Item = (&'a FollowerStatus, &'a [Below])>,
    now: i64,
) -> Vec<Below> {
    let mut out = Vec::new();
    for (status, below) in followers {
        out.push(Below {
            depth: 0,
            state: serde_json::to_value(status.state)
                .ok()
                .and_then(|v| v.as_str().map(str::to_owned))
                .unwrap_or_default(),
            name: status.name.clone(),
            sent: status.sent,
            write: status.write,
            flush: status.flush,
            apply: status.apply,
            lag_bytes: status.lag.map_or(0, |l| l.bytes),
            lag: status
                .lag
                .and_then(|l| l.seconds)
                .map(|s| std::time::Duration::from_secs_f64(s).as_nanos())
                .and_then(|n| u64::try_from(n).ok()),
            silent: u64::try_from(now.saturating_sub(status.heard)).unwrap_or(0),
        });
        let deeper = below.iter().filter(|b| usize::from(b.depth) < LINEAGE_MAX);
        out.extend(deeper.map(|b| Below { depth: b.depth + 1, ..b.clone() }));
    }
    out.truncate(BELOW_MAX);
    out
}
