//! Restore points that were seen while one was looked for, for the words when it is not there. Pure.

use std::collections::BTreeSet;

use crate::error::distance;
use crate::position::Lsn;
use crate::record::PointName;

/// Most names that are kept.
const KEPT: usize = 10_000;
/// Most names that are told.
const TOLD: usize = 5;

/// The names, and since where they were looked for.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    names: BTreeSet<PointName>,
    /// The log was looked through from here on.
    pub(super) from: Option<Lsn>,
}

impl Seen {
    /// One more, as it stands in the record.
    pub(super) fn see(&mut self, name: &[u8]) {
        let name = std::str::from_utf8(name).ok().and_then(|n| n.parse().ok());
        if let Some(name) = name.filter(|_| self.names.len() < KEPT) {
            self.names.insert(name);
        }
    }

    /// All of them.
    pub(super) fn names(&self) -> impl Iterator<Item = &[u8]> {
        self.names.iter().map(PointName::as_bytes)
    }

    /// What there is instead of `wanted`, the nearest first.
    pub(super) fn instead_of(&self, wanted: PointName) -> String {
        let given = wanted.to_string();
        let mut all: Vec<(usize, String)> =
            self.names.iter().map(|n| n.to_string()).map(|n| (distance(&given, &n), n)).collect();
        all.sort();
        let told: Vec<String> = all.iter().take(TOLD).map(|(_, n)| format!("'{n}'")).collect();
        let told = told.join(", ");
        match all.len() {
            0 => "it has none at all".to_owned(),
            n if n <= TOLD => format!("it has {told}"),
            n => format!("of its {n} the nearest by name are {told}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_names_come_first_and_are_few() {
        let mut seen = Seen::default();
        let wanted = "before-upgrad".parse().unwrap();
        assert_eq!(seen.instead_of(wanted), "it has none at all");
        for name in ["nightly", "before-upgrade", "after-upgrade"] {
            seen.see(name.as_bytes());
        }
        assert_eq!(seen.instead_of(wanted), "it has 'before-upgrade', 'after-upgrade', 'nightly'");
        (0..20).for_each(|i| seen.see(format!("n{i}").as_bytes()));
        seen.see(b"\xff");
        let said = seen.instead_of(wanted);
        assert!(said.starts_with("of its 23 the nearest by name are 'before-upgrade',"), "{said}");
        assert_eq!(said.matches(", ").count(), TOLD - 1, "{said}");
    }
}
