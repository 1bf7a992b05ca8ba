//! Followers that are not there, as far as their slots tell.

use super::{Kind, Origin, Slots, lock};
use crate::position::Lsn;

/// A follower that has a slot of this node's own and is not connected.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Absent {
    /// Its name.
    pub name: String,
    /// What it has confirmed.
    pub position: Lsn,
    /// Since when it is away, nanoseconds since 1970.
    pub since: i64,
}

impl Slots {
    /// Every follower that was ever here and is not now. A slot that was made by hand waits for one that never was.
    #[must_use]
    pub fn absent(&self) -> Vec<Absent> {
        let inner = lock(&self.inner);
        let away = inner
            .slots
            .iter()
            .filter(|(_, s)| s.origin == Origin::Own && s.kind != Kind::Manual && s.connection.is_none());
        let each = away.map(|(name, s)| Absent {
            name: name.clone(),
            position: s.position,
            since: s.inactive_since,
        });
        each.collect()
    }
}
