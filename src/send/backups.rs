//! Backups under way: who takes one here, and how far it is. They are no followers: nothing waits for them, they have no
//! slot, and nothing of them stays when they are gone.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;

use super::peers::text;
use crate::catalog::Catalog;
use crate::certificate::Fingerprint;
use crate::net::{Traffic, wall_clock};
use crate::position::Lsn;
use crate::record::Kind;
use crate::slots::Pin;
use crate::trust::Role;

/// Most backups that are served at once.
pub(super) const BACKUPS_MAX: usize = 8;

/// What a backup takes now.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum BackupState {
    /// It has just come.
    Connecting,
    /// Contents.
    Copying,
    /// The log that makes them whole.
    Log,
}

/// What is known of a backup under way. Positions are printed as `status` prints them.
#[derive(Clone, Debug, Serialize)]
pub struct BackupStatus {
    /// The name it gives itself.
    pub name: String,
    /// Where it connected from.
    pub address: String,
    /// What it takes now.
    pub state: BackupState,
    /// Files and bytes of content sent over this connection, and how many there were when it began.
    pub files: u64,
    /// See `files`.
    pub bytes: u64,
    /// See `files`.
    pub files_total: u64,
    /// See `files`.
    pub bytes_total: u64,
    /// Log is held from here on.
    #[serde(serialize_with = "text")]
    pub position: Lsn,
    /// When it connected, ns since 1970.
    pub connected: i64,
    /// When it was last heard, ns since 1970.
    pub heard: i64,
    /// Bytes sent to it over this connection.
    pub bytes_sent: u64,
    /// Whether its connection is encrypted.
    pub tls: bool,
    /// Its key, when the connection is encrypted.
    pub fingerprint: Option<Fingerprint>,
    /// What it is trusted as, when the connection is encrypted.
    pub roles: Vec<Role>,
}

#[derive(Debug)]
struct Entry {
    status: BackupStatus,
    traffic: Arc<Traffic>,
}

#[derive(Debug, Default)]
struct Inner {
    entries: BTreeMap<u64, Entry>,
    count: u64,
}

/// The backups under way.
#[derive(Debug, Default)]
pub struct Backups(Mutex<Inner>);

impl Backups {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All of them, in the order in which they came.
    #[must_use]
    pub fn list(&self) -> Vec<BackupStatus> {
        let inner = self.lock();
        let each = inner.entries.values().map(|e| BackupStatus {
            bytes_sent: e.traffic.bytes().1,
            heard: e.traffic.heard(),
            ..e.status.clone()
        });
        each.collect()
    }

    /// One comes.
    ///
    /// # Errors
    /// In words: there are as many as may be.
    pub(super) fn join(
        self: &Arc<Self>,
        name: &str,
        address: &str,
        traffic: &Arc<Traffic>,
        (tls, fingerprint, roles): (bool, Option<Fingerprint>, Vec<Role>),
    ) -> Result<Visit, String> {
        let mut inner = self.lock();
        if inner.entries.len() >= BACKUPS_MAX {
            return Err(format!("{BACKUPS_MAX} backups are under way, as many as allowed; try again later"));
        }
        inner.count += 1;
        let number = inner.count;
        let status = BackupStatus {
            name: name.to_owned(),
            address: address.to_owned(),
            state: BackupState::Connecting,
            files: 0,
            bytes: 0,
            files_total: 0,
            bytes_total: 0,
            position: Lsn::ZERO,
            connected: wall_clock(),
            heard: 0,
            bytes_sent: 0,
            tls,
            fingerprint,
            roles,
        };
        inner.entries.insert(number, Entry { status, traffic: Arc::clone(traffic) });
        Ok(Visit { backups: Arc::clone(self), number, pin: None })
    }
}

/// A backup's connection; its entry goes when this is dropped.
#[derive(Debug)]
pub(super) struct Visit {
    backups: Arc<Backups>,
    number: u64,
    pin: Option<Pin>,
}

impl Visit {
    pub(super) fn update(&self, edit: impl FnOnce(&mut BackupStatus)) {
        if let Some(entry) = self.backups.lock().entries.get_mut(&self.number) {
            edit(&mut entry.status);
        }
    }

    /// Log is held for it from `position` on.
    pub(super) fn hold(&mut self, pin: Pin, position: Lsn) {
        self.pin = Some(pin);
        self.update(|s| s.position = position);
    }

    /// It has the log up to here.
    pub(super) fn confirmed(&self, flush: Lsn) {
        if let Some(pin) = &self.pin {
            pin.confirmed(flush);
        }
        self.update(|s| s.position = s.position.max(flush));
    }

    /// It takes contents of the tree from now on.
    pub(super) fn copying(&self, catalog: &Catalog) {
        let files = catalog.inodes().filter(|i| i.kind == Kind::File);
        let (count, bytes) = files.fold((0, 0), |(n, b), i| (n + 1, b + i.size));
        self.update(|s| (s.state, s.files_total, s.bytes_total) = (BackupState::Copying, count, bytes));
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        self.backups.lock().entries.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_as_allowed_come_and_nothing_stays_of_them() {
        let backups = Arc::new(Backups::default());
        let join = || backups.join("b", "1:1", &Arc::default(), (false, None, Vec::new()));
        let mut visits: Vec<Visit> = (0..BACKUPS_MAX).map(|_| join().unwrap()).collect();
        let refused = join().unwrap_err();
        assert!(refused.starts_with("8 backups are under way"), "{refused}");
        visits[0].update(|s| s.state = BackupState::Log);
        visits[0].confirmed(Lsn(7));
        assert_eq!(backups.list()[0].position, Lsn(7));
        visits.truncate(2);
        assert_eq!(backups.list().len(), 2);
        visits.clear();
        assert!(backups.list().is_empty());
    }
}
