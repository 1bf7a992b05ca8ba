//! Who has to confirm a change before it counts as replicated, and how far that has come. Pure: candidates in,
//! decisions out.
//!
//! | state | who |
//! | --- | --- |
//! | sync | `FIRST n`: one of the `n` that come first in the list and count now |
//! | quorum | `ANY n`: any that is in the list and counts now |
//! | potential | in the list, but not needed now, or not counting: not streaming yet, too far behind, at rest |
//! | async | not in the list |
//!
//! A candidate *counts* at a level when it streams, was close enough once, and, for `apply`, its directory moves.
//! `FIRST n` is confirmed up to the position that all of the chosen `n` have reached, `ANY n` up to the one that any `n`
//! have. With fewer than `n` that count nothing is confirmed, and the quorum is missing.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::position::Lsn;

mod grammar;
#[cfg(test)]
mod tests;

pub use grammar::PolicyError;

/// What a follower has to have done with a change to confirm it.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize, clap::ValueEnum,
)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Its operating system has it: survives the death of the follower's process.
    Write,
    /// It is durable in its log.
    #[default]
    Flush,
    /// It is visible in its directory.
    Apply,
}

impl Level {
    /// Every level, the weakest first.
    pub const ALL: [Self; 3] = [Self::Write, Self::Flush, Self::Apply];

    /// As in the configuration.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Write => "write",
            Self::Flush => "flush",
            Self::Apply => "apply",
        }
    }
}

/// How the followers of a list are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Method {
    /// The first of the list that count.
    #[default]
    First,
    /// Any of the list.
    Any,
}

/// A value of `synchronous_followers`. Without names replication is asynchronous.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Policy {
    /// How they are counted.
    pub method: Method,
    /// How many have to confirm.
    pub count: usize,
    /// Who may, the first one first; `*` is everybody.
    pub names: Vec<String>,
}

impl std::str::FromStr for Policy {
    type Err = PolicyError;

    fn from_str(text: &str) -> Result<Self, PolicyError> {
        grammar::parse(text)
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_async() {
            return Ok(());
        }
        let names: Vec<String> = self.names.iter().map(|n| grammar::quoted(n)).collect();
        let word = if self.method == Method::Any { "ANY" } else { "FIRST" };
        write!(f, "{word} {} ({})", self.count, names.join(", "))
    }
}

impl Policy {
    /// Nobody has to confirm anything.
    #[must_use]
    pub fn is_async(&self) -> bool {
        self.names.is_empty()
    }

    /// The place of a follower in the list, from 1; 0: it is not there. `*` gives its own place to all that are not named
    /// before it.
    #[must_use]
    pub fn rank(&self, name: &str) -> usize {
        let matches = |listed: &String| listed == "*" || listed.eq_ignore_ascii_case(name);
        self.names.iter().position(matches).map_or(0, |i| i + 1)
    }

    /// Whether more followers are asked for than the list can ever have.
    #[must_use]
    pub fn impossible(&self) -> bool {
        let mut names: Vec<String> = self.names.iter().map(|n| n.to_ascii_lowercase()).collect();
        names.sort_unstable();
        names.dedup();
        !names.iter().any(|n| n == "*") && names.len() < self.count
    }
}

/// How far a follower is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Positions {
    /// In its operating system.
    pub write: Lsn,
    /// Durable in its log.
    pub flush: Lsn,
    /// Visible in its directory.
    pub apply: Lsn,
}

impl Positions {
    /// That of a level.
    #[must_use]
    pub fn at(&self, level: Level) -> Lsn {
        match level {
            Level::Write => self.write,
            Level::Flush => self.flush,
            Level::Apply => self.apply,
        }
    }
}

/// What is known of one follower.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Candidate<'a> {
    /// Its name.
    pub name: &'a str,
    /// It is connected and takes log, old or new.
    pub attached: bool,
    /// It takes log as it becomes durable.
    pub streaming: bool,
    /// It was close enough to begin to count.
    pub near: bool,
    /// It may count at all: it was not set up as one that never does.
    pub eligible: bool,
    /// Its directory moves: it is not paused, stopped or refused.
    pub applies: bool,
    /// How far it is.
    pub at: Positions,
}

impl Candidate<'_> {
    /// Whether its confirmations count at a level.
    #[must_use]
    pub fn counts(&self, level: Level) -> bool {
        self.attached
            && self.streaming
            && self.near
            && self.eligible
            && (level != Level::Apply || self.applies)
    }
}

/// As `sync_state` of pg_stat_replication.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SyncState {
    /// It is not in the list.
    #[default]
    Async,
    /// It is in the list, but another one is needed before it, or it does not count.
    Potential,
    /// It has to confirm.
    Sync,
    /// It is one of those of which enough have to confirm.
    Quorum,
}

impl SyncState {
    /// As `status` shows it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Async => "async",
            Self::Potential => "potential",
            Self::Sync => "sync",
            Self::Quorum => "quorum",
        }
    }
}

/// What a policy says of the candidates at one level.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Decision {
    /// State and place in the list of each candidate, in their order.
    pub members: Vec<(SyncState, usize)>,
    /// Everything before this is confirmed; `None`: the quorum is missing.
    pub confirmed: Option<Lsn>,
    /// How many count now.
    pub present: usize,
}

impl Decision {
    /// Whether enough followers are there.
    #[must_use]
    pub fn satisfied(&self) -> bool {
        self.confirmed.is_some()
    }
}

/// Applies a policy to the candidates, those that came first before the others: of equals `FIRST` takes these.
/// An asynchronous policy confirms everything.
#[must_use]
pub fn decide(policy: &Policy, level: Level, candidates: &[Candidate<'_>]) -> Decision {
    // One that never counts is in no list, whatever the list says.
    let rank = |c: &Candidate<'_>| if c.eligible { policy.rank(c.name) } else { 0 };
    let mut listed: Vec<(usize, usize)> = candidates
        .iter()
        .enumerate()
        .filter(|(_, c)| c.counts(level))
        .map(|(i, c)| (rank(c), i))
        .filter(|(rank, _)| *rank > 0)
        .collect();
    listed.sort_unstable();
    let present = listed.len();
    if policy.method == Method::First {
        listed.truncate(policy.count);
    }
    let chosen = if policy.method == Method::First { SyncState::Sync } else { SyncState::Quorum };
    let members = candidates
        .iter()
        .enumerate()
        .map(|(i, c)| match rank(c) {
            0 => (SyncState::Async, 0),
            rank if listed.contains(&(rank, i)) => (chosen, rank),
            rank => (SyncState::Potential, rank),
        })
        .collect();
    let mut reached: Vec<Lsn> = listed.iter().map(|(_, i)| candidates[*i].at.at(level)).collect();
    reached.sort_unstable();
    let confirmed = match (policy.is_async(), policy.count) {
        (true, _) => Some(Lsn(u64::MAX)),
        // The n-th from above: all of the chosen n, or any n, are there.
        (false, n) => reached.len().checked_sub(n).and_then(|at| reached.get(at)).copied(),
    };
    Decision { members, confirmed, present }
}

/// The same where no policy is given: every follower that is attached has to confirm, whether it counts or not.
/// `None`: nobody is attached.
#[must_use]
pub fn decide_all(level: Level, candidates: &[Candidate<'_>]) -> Option<Lsn> {
    let attached = candidates.iter().filter(|c| c.attached && c.eligible);
    // One whose directory rests has not confirmed what it may never apply.
    let reached =
        attached.map(|c| if level == Level::Apply && !c.applies { Lsn::ZERO } else { c.at.at(level) });
    reached.min()
}

/// Who has confirmed a position: of those that count, or of all that are attached.
#[must_use]
pub fn confirmers(
    policy: Option<&Policy>,
    level: Level,
    lsn: Lsn,
    candidates: &[Candidate<'_>],
) -> Vec<String> {
    let able = |c: &&Candidate<'_>| match policy {
        Some(policy) => c.counts(level) && policy.rank(c.name) > 0,
        None => c.attached && c.eligible && (level != Level::Apply || c.applies),
    };
    let there = candidates.iter().filter(able).filter(|c| c.at.at(level) >= lsn);
    there.map(|c| c.name.to_owned()).collect()
}

/// Why the followers that are known, and whether each may ever count, could not confirm by this policy if all were
/// there, in words; `None`: they could.
#[must_use]
pub fn obstacle(policy: &Policy, known: &[(&str, bool)]) -> Option<String> {
    let able = known.iter().filter(|(name, eligible)| *eligible && policy.rank(name) > 0).count();
    if policy.is_async() || able >= policy.count {
        return None;
    }
    let mut why = Vec::new();
    for name in policy.names.iter().filter(|n| *n != "*") {
        match known.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)) {
            None => why.push(format!("no follower named '{name}' was ever here")),
            Some((_, false)) => {
                why.push(format!(
                    "follower '{name}' was set up never to count (its sync_candidate is false)"
                ));
            }
            Some(_) => {}
        }
    }
    if why.is_empty() {
        why.push(format!("{able} followers are known that may count"));
    }
    let (need, all) = (policy.count, why.join("; "));
    Some(format!(
        "{need} have to confirm, and that can't be as it stands: {all}; `towline status` shows who is there"
    ))
}
