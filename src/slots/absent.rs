//! Followers that are not there, as far as their slots tell.

use super::{Kind, Origin, Slots, lock};
use crate::error::Result;
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
    /// The log that those who are away were to have has been left behind: their slots go, durably, and those that were made by
    /// hand stay. Where they are now they have others.
    ///
    /// # Errors
    /// Why it can't be written; it is asked for again.
    pub fn leave_behind(&self) -> Result<()> {
        {
            let mut inner = lock(&self.inner);
            let before = inner.slots.len();
            inner.slots.retain(|_, s| s.kind == Kind::Manual || s.connection.is_some());
            if inner.slots.len() == before {
                return Ok(());
            }
            inner.touch();
        }
        self.flush()
    }

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
