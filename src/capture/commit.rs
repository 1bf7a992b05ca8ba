//! The end of a pass: what differs becomes records, the records are folded into the catalog, and the commit
//! that carries its digest ends the change set.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::engine::{Engine, read};
use super::pass::Ended;
use super::{lock, wall_clock};
use crate::catalog::{Catalog, Seen};
use crate::disk::Note;
use crate::error::{Error, ErrorKind, Result};
use crate::failpoint;
use crate::position::{Cut, FileId, Lsn};
use crate::record::{GapReason, Record};

/// What a change set makes good.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Repair {
    /// Nothing special.
    None,
    /// What happened while nobody watched: if it changed anything, the set says so.
    Down,
    /// It begins a gap: from here on the history is approximate.
    Begins(GapReason),
    /// It ends a gap.
    Ends(GapReason),
}

/// A delete is one delete when it happens within this time.
const TIDE: Duration = Duration::from_secs(60);
/// A delete that was confirmed is over when nothing was deleted for this long.
pub(super) const CONFIRMED: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 5 });

/// In the state directory while a mass delete is held: how many names there were, in decimal digits.
fn hold(state: &Path) -> Note {
    Note::new(state, "hold", ["capture::hold", "capture::after_hold", "capture::release"])
}

/// How many names there were when a mass delete was held before a restart.
///
/// # Errors
/// When the note is there but can't be read.
pub(super) fn held_before(state: &Path) -> Result<Option<u64>> {
    let path = hold(state).path();
    match std::fs::read(&path) {
        Ok(bytes) => match std::str::from_utf8(&bytes).ok().and_then(|text| text.trim().parse().ok()) {
            Some(high) => Ok(Some(high)),
            None => {
                let text = format!(
                    "'{}' is damaged; see that the data directory is complete, then remove the file",
                    path.display()
                );
                Err(Error::new(ErrorKind::Corrupt, text))
            }
        },
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io("read", &path, e)),
    }
}

impl Engine {
    /// Puts the create records of a new file, and of those before it, into the journal.
    pub(super) fn ensure_created(&mut self, id: FileId) -> Result<()> {
        while let Some(&first) = self.pass.stage.unsent.first() {
            if first > id {
                break;
            }
            self.pass.stage.unsent.pop_first();
            let Some(staged) = self.pass.stage.inodes.get_mut(&first) else { continue };
            staged.sent = Some(staged.attrs);
            let record = Record::Create {
                id: first,
                kind: staged.kind,
                attrs: staged.attrs,
                rdev: staged.rdev,
                target: &staged.target,
            };
            self.pass.journal.push(&record)?;
        }
        Ok(())
    }

    /// Commits what the pass found, if it is anything.
    pub(super) fn commit(&mut self, cut: Cut, repair: Repair) -> Result<Ended> {
        if let Some(text) = self.mass_delete()? {
            return Ok(Ended::Held(text));
        }
        self.finish_records()?;
        let changed = !self.pass.journal.is_empty();
        // A follower waits for an exact cut: if the last was none, this says that now it is one.
        let sharpens = cut == Cut::Exact && read(&self.catalog).cut() == Cut::File;
        let gap = match repair {
            Repair::None => false,
            Repair::Down => changed,
            Repair::Begins(_) | Repair::Ends(_) => true,
        };
        if !changed && !sharpens && !gap {
            self.note_seen();
            return Ok(Ended::Nothing(cut));
        }
        let time = wall_clock();
        self.gap_records(repair, gap, time)?;
        failpoint::pass("capture::before_commit")?;
        let end = self.seal(cut, time)?;
        failpoint::pass("capture::after_commit")?;
        self.notes.found_by_scan += self.pass.found_by_scan();
        for id in std::mem::take(&mut self.pass.forced_done) {
            self.forced.remove(&id);
        }
        Ok(Ended::Committed(end, cut))
    }

    fn gap_records(&mut self, repair: Repair, gap: bool, time: i64) -> Result<()> {
        let journal = &mut self.pass.journal;
        match repair {
            Repair::Down if gap => {
                journal.push(&Record::Gap { end: false, reason: GapReason::Down, time })?;
                journal.push(&Record::Gap { end: true, reason: GapReason::Down, time })
            }
            Repair::Begins(reason) => journal.push(&Record::Gap { end: false, reason, time }),
            Repair::Ends(reason) => journal.push(&Record::Gap { end: true, reason, time }),
            Repair::None | Repair::Down => Ok(()),
        }
    }

    /// Folds, seals and appends. Whoever holds the fold's lock sees the tree before or after, never between.
    pub(super) fn seal(&mut self, cut: Cut, time: i64) -> Result<Lsn> {
        let mut fold = lock(&self.shared.fold);
        self.pass.journal.fold(&mut fold)?;
        let commit = fold.seal(cut, time)?;
        let end = self.pass.journal.commit(&Record::Commit(commit), cut == Cut::Exact)?;
        let mut catalog = fold.write();
        for (id, staged) in &self.pass.stage.inodes {
            catalog.set_seen(*id, Some(staged.seen));
        }
        catalog.set_position(end, cut, time);
        drop(catalog);
        drop(fold);
        if self.waiting.is_empty() {
            self.shared.log.wake();
        } else {
            // Nothing that this thread could do meanwhile is of use to those who wait.
            self.shared.log.write_here();
        }
        Ok(end)
    }

    /// Only stamps moved: that is no change of the tree.
    fn note_seen(&mut self) {
        let seen: Vec<(FileId, Seen)> =
            self.pass.stage.inodes.iter().map(|(id, staged)| (*id, staged.seen)).collect();
        if !seen.is_empty() {
            let fold = lock(&self.shared.fold);
            let mut catalog = fold.write();
            for (id, seen) in seen {
                catalog.set_seen(id, Some(seen));
            }
        }
    }

    /// Turns names and attributes that differ from the catalog into records.
    fn finish_records(&mut self) -> Result<()> {
        self.drop_unreached();
        if let Some(&last) = self.pass.stage.unsent.last() {
            self.ensure_created(last)?;
        }
        let catalog = std::sync::Arc::clone(&self.catalog);
        let catalog = read(&catalog);
        let (stage, journal) = (&self.pass.stage, &mut self.pass.journal);
        for (dir, names) in &stage.names {
            // A new directory that was dropped again was never created.
            if !catalog.contains(*dir) && stage.inodes.get(dir).is_none_or(|s| s.sent.is_none()) {
                continue;
            }
            for (name, named) in names {
                match (catalog.lookup(*dir, name), named.id) {
                    (old, new) if old == new => {}
                    (Some(_), None) => journal.push(&Record::Unlink { parent: *dir, name })?,
                    (_, Some(id)) if stage.inodes.get(&id).is_some_and(|s| s.new && s.sent.is_none()) => {}
                    (_, Some(id)) => journal.push(&Record::Link { parent: *dir, name, id })?,
                    (None, None) => {}
                }
            }
        }
        for (id, staged) in &stage.inodes {
            if staged.new && staged.sent.is_none() {
                continue;
            }
            let known = catalog.get(*id);
            let attrs = staged.sent.or(known.map(|n| n.attrs));
            if attrs.is_some_and(|a| a != staged.attrs) {
                journal.push(&Record::Attr { id: *id, attrs: staged.attrs })?;
            }
            if let Some(xattrs) = &staged.xattrs {
                let before = known.map_or(&[][..], |n| n.xattrs);
                for (name, _) in before.iter().filter(|(b, _)| !xattrs.iter().any(|(n, _)| **n == **b)) {
                    journal.push(&Record::Xattr { id: *id, name, value: None })?;
                }
                for (name, value) in xattrs {
                    if !before.iter().any(|(b, v)| **b == **name && **v == **value) {
                        journal.push(&Record::Xattr { id: *id, name, value: Some(value) })?;
                    }
                }
            }
        }
        if catalog.excludes().patterns != self.excluder.text {
            let version = catalog.excludes().version + 1;
            journal.push(&Record::Excludes { version, patterns: &self.excluder.text })?;
        }
        Ok(())
    }

    /// New things that are gone again, and were not sent, need no records at all.
    fn drop_unreached(&mut self) {
        let catalog = read(&self.catalog);
        let stage = &self.pass.stage;
        let gone: Vec<FileId> =
            stage.unsent.iter().copied().filter(|id| !stage.reached(&catalog, *id)).collect();
        drop(catalog);
        for id in gone {
            self.pass.stage.unsent.remove(&id);
        }
    }

    /// Whether the pass would delete more than may be deleted without a word: then the text that says so.
    ///
    /// A large delete comes in many passes, so what counts is also how far the number of names fell within
    /// [`TIDE`].
    /// What is held stays held, over restarts too, until the names are back or it is confirmed.
    fn mass_delete(&mut self) -> Result<Option<String>> {
        let text = self.too_many_go();
        match (&text, self.held_high) {
            (Some(_), None) => {
                let high = self.tide.1;
                hold(&self.state).write(high.to_string().as_bytes())?;
                self.held_high = Some(high);
            }
            (None, Some(_)) => {
                hold(&self.state).remove()?;
                self.held_high = None;
            }
            _ => {}
        }
        Ok(text)
    }

    fn too_many_go(&mut self) -> Option<String> {
        let catalog = read(&self.catalog);
        let total = catalog.name_count() as u64;
        if let Some(high) = self.held_high {
            self.tide = (Instant::now(), high.max(total));
        } else if self.tide.0.elapsed() > TIDE || self.tide.1 < total {
            self.tide = (Instant::now(), total);
        }
        let high = self.tide.1;
        let share = u64::from(self.options.max_delete_percent);
        let limit = high.saturating_mul(share) / 100;
        let free = Instant::now() < self.confirmed_until;
        if high < self.options.max_delete_min.max(1) || self.pass.stage.names.is_empty() {
            return None;
        }
        let gone = self.deletions(&catalog, limit);
        if free {
            if gone > 0 {
                drop(catalog);
                self.confirmed_until = Instant::now() + CONFIRMED;
            }
            return None;
        }
        if gone == 0 || (gone <= limit && total.saturating_sub(gone) + self.arrivals() + limit >= high) {
            return None;
        }
        drop(catalog);
        if self.shared.confirmed.swap(false, Ordering::SeqCst) {
            self.tide = (Instant::now(), 0);
            self.confirmed_until = Instant::now() + CONFIRMED;
            return None;
        }
        Some(format!(
            "more than {limit} of {high} entries would be deleted, which is over max_delete = {share} %; \
             nothing is replicated until they are back or 'towline confirm' is given"
        ))
    }

    /// Number of new inodes.
    fn arrivals(&self) -> u64 {
        self.pass.stage.inodes.values().filter(|s| s.new).count() as u64
    }

    /// How many names would go with inodes that lose their last one, counted up to a little over `limit`.
    fn deletions(&self, catalog: &Catalog, limit: u64) -> u64 {
        let stage = &self.pass.stage;
        let mut gone = 0;
        let mut pending: Vec<FileId> = Vec::new();
        for (dir, names) in &stage.names {
            for (name, named) in names {
                let Some(old) = catalog.lookup(*dir, name).filter(|old| named.id != Some(*old)) else {
                    continue;
                };
                if !stage.reached(catalog, old) {
                    gone += 1;
                    pending.extend((catalog.child_count(old) > 0).then_some(old));
                }
            }
        }
        while let Some(dir) = pending.pop() {
            for (name, child) in catalog.children(dir) {
                // What was taken out of the directory has another name now.
                let moved = stage.names.get(&dir).is_some_and(|names| names.contains_key(name));
                if !moved && !stage.inodes.get(&child).is_some_and(|_| stage.reached(catalog, child)) {
                    gone += 1;
                    pending.extend((catalog.child_count(child) > 0).then_some(child));
                }
            }
            if gone > limit {
                break;
            }
        }
        gone
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_note_of_a_held_delete_stays_what_it_is_and_a_damaged_one_is_named() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(held_before(dir.path()).unwrap(), None);
        for (bytes, high) in [("1500", 1500), ("7\n", 7)] {
            std::fs::write(dir.path().join("hold"), bytes).unwrap();
            assert_eq!(held_before(dir.path()).unwrap(), Some(high));
        }
        for damaged in [&b""[..], b"many", b"-1", b"\xff\xfe", b"99999999999999999999"] {
            std::fs::write(dir.path().join("hold"), damaged).unwrap();
            let e = held_before(dir.path()).unwrap_err();
            assert!(e.kind() == ErrorKind::Corrupt && e.to_string().contains("remove the file"), "{e}");
        }
    }
}
