//! The end of a pass: names become records, the change set is folded into the catalog and committed to the log.

use std::sync::MutexGuard;

use super::pass::Pass;
use super::stage::Staged;
use crate::catalog::{Catalog, Seen};
use crate::error::Result;
use crate::failpoint;
use crate::fold::Fold;
use crate::position::{Cut, FileId, Lsn};
use crate::record::{GapReason, Record, WRITE_MAX};
use crate::segment::flags;

/// Stands for data whose hashes are known: only its length counts.
static NO_DATA: [u8; WRITE_MAX] = [0; WRITE_MAX];

impl Pass<'_> {
    /// Turns the changed names into records: what goes first, then what comes.
    pub(super) fn settle_names(&mut self) -> Result<()> {
        let changed: Vec<(FileId, Vec<u8>, Option<FileId>)> = {
            let catalog = self.read();
            let slots = self.stage.slots().filter(|((p, n), id)| catalog.lookup(*p, n) != **id);
            slots.map(|((p, n), id)| (*p, n.clone(), *id)).collect()
        };
        for (parent, name, _) in changed.iter().filter(|c| c.2.is_none()) {
            self.keep(&Record::Unlink { parent: *parent, name })?;
        }
        for (parent, name, id) in &changed {
            if let Some(id) = id {
                self.keep(&Record::Link { parent: *parent, name, id: *id })?;
            }
        }
        Ok(())
    }

    /// How many inodes would lose their last name, subtrees included.
    pub(super) fn deletions(&self) -> u64 {
        let catalog = self.read();
        let mut count = 0;
        for ((parent, name), id) in self.stage.slots() {
            let Some(old) = catalog.lookup(*parent, name) else { continue };
            if *id != Some(old) && !self.kept(&catalog, old) {
                count += subtree(&catalog, old);
            }
        }
        count
    }

    fn kept(&self, catalog: &Catalog, id: FileId) -> bool {
        self.stage.slots().any(|(_, s)| *s == Some(id))
            || catalog.names(id).any(|(p, n)| self.stage.lookup(catalog, p, n) == Some(id))
    }

    /// Folds and commits. Readers that hold the fold's lock see the tree before or after, never between.
    pub(super) fn commit(&mut self, cut: Cut, time: i64) -> Result<Lsn> {
        failpoint::pass("capture::before_commit")?;
        let mutex = self.fold;
        let mut fold = mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        self.fold_staged(&mut fold)?;
        let commit = fold.seal(cut, time)?;
        let end = if self.base {
            Lsn::FIRST
        } else {
            let mut tail = Vec::new();
            Record::Commit(commit).encode(&mut tail);
            self.room(tail.len())?;
            self.raw.extend_from_slice(&tail);
            let mut flag = flags::ENDS | if cut == Cut::Exact { flags::EXACT } else { 0 };
            if !self.started {
                flag |= flags::STARTS;
            }
            self.log.append(std::mem::take(&mut self.raw), flag)?.1
        };
        let mut catalog = fold.write();
        for (id, node) in &self.stage.nodes {
            catalog.set_seen(*id, node.seen);
        }
        catalog.set_position(end, cut, time);
        drop(catalog);
        drop(fold);
        failpoint::pass("capture::after_commit")?;
        Ok(end)
    }

    fn fold_staged(&mut self, fold: &mut MutexGuard<'_, Fold>) -> Result<()> {
        for staged in &self.stage.records {
            match staged {
                Staged::Meta(from, to) => {
                    let (record, _) = Record::decode(&self.stage.buffer[*from..*to])?;
                    fold.record(&record)?;
                }
                Staged::Write { id, offset, len, hashes } => {
                    let record = Record::Write { id: *id, offset: *offset, data: &NO_DATA[..*len] };
                    fold.record_hashed(&record, Some(hashes))?;
                }
                Staged::Unhashed(id) => fold.forget_hashes(*id)?,
            }
        }
        Ok(())
    }

    /// Notes stamps that are newer than the catalog's where nothing else changed: no commit for that.
    pub(super) fn refresh_seen(&self) {
        let mut catalog = self.catalog.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        for (id, node) in &self.stage.nodes {
            let now: Option<Seen> = catalog.get(*id).and_then(|n| n.seen);
            if now != node.seen {
                catalog.set_seen(*id, node.seen);
            }
        }
    }

    /// Ends a change set that must not count, if a part of it went to the log already.
    pub(super) fn abort(&mut self) -> Result<()> {
        if self.started {
            let mut raw = Vec::new();
            Record::Abort.encode(&mut raw);
            self.log.append(raw, flags::ENDS | flags::ABORT)?;
        }
        Ok(())
    }

    /// Marks in the change set that the history before it is approximate.
    pub(super) fn gap(&mut self, end: bool, reason: GapReason, time: i64) -> Result<()> {
        if self.base { Ok(()) } else { self.keep(&Record::Gap { end, reason, time }) }
    }
}

fn subtree(catalog: &Catalog, id: FileId) -> u64 {
    let (mut count, mut pending) = (0, vec![id]);
    while let Some(id) = pending.pop() {
        count += 1;
        pending.extend(catalog.children(id).map(|(_, child)| child));
    }
    count
}
