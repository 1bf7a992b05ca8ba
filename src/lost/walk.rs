//! What log that was left behind changed: its complete change sets, folded over the tree that they begin from.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crate::catalog::Catalog;
use crate::checkpoint;
use crate::error::{Error, ErrorKind, Result};
use crate::log::{self, FrameReader};
use crate::position::{FileId, Lsn, SystemId, TimelineId};
use crate::record::{Record, Records};
use crate::segment::flags;

/// Log on disk, and the line that it is read on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shelf<'a> {
    pub(super) dir: &'a Path,
    pub(super) system: SystemId,
    pub(super) timeline: TimelineId,
}

/// Stretches of a file, ascending, none touching the next.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Extents(BTreeMap<u64, u64>);

impl Extents {
    fn add(&mut self, from: u64, to: u64) {
        if from >= to {
            return;
        }
        let (mut start, mut end) = (from, to);
        while let Some((&s, &e)) = self.0.range(..=end).next_back() {
            if e < start {
                break;
            }
            self.0.remove(&s);
            (start, end) = (start.min(s), end.max(e));
        }
        self.0.insert(start, end);
    }

    fn cut(&mut self, size: u64) {
        while let Some((&s, &e)) = self.0.last_key_value().filter(|(_, e)| **e > size) {
            self.0.remove(&s);
            if s < size {
                self.0.insert(s, e.min(size));
            }
        }
    }

    /// They, below `size`.
    pub(super) fn below(&self, size: u64) -> Vec<(u64, u64)> {
        self.0.iter().filter(|(s, _)| **s < size).map(|(s, e)| (*s, (*e).min(size))).collect()
    }
}

/// What became of one inode.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Touch {
    /// It did not exist before.
    pub(super) created: bool,
    /// Content was written, cut off or made zero.
    pub(super) content: bool,
    /// Mode, owner, time or extended attributes.
    pub(super) attrs: bool,
    /// What the log says of its content.
    extents: Extents,
    /// From here on the log says all of its content: it was not longer once.
    floor: u64,
}

impl Touch {
    fn new(size: Option<u64>) -> Self {
        let (created, floor) = (false, size.unwrap_or(u64::MAX));
        Self { created, content: false, attrs: false, extents: Extents::default(), floor }
    }

    /// The stretches of a file of this size that the log tells the content of.
    pub(super) fn known(&self, size: u64) -> Vec<(u64, u64)> {
        let mut all = self.extents.clone();
        all.add(if self.created { 0 } else { self.floor.min(size) }, size);
        all.below(size)
    }

    /// Whether that is all of it.
    pub(super) fn is_whole(&self, size: u64) -> bool {
        size == 0 || self.known(size) == [(0, size)]
    }

    fn note(&mut self, record: &Record<'_>) {
        match *record {
            Record::Create { .. } => (self.created, self.floor) = (true, 0),
            Record::Write { offset, data, .. } => {
                self.content = true;
                self.extents.add(offset, offset + data.len() as u64);
            }
            Record::Punch { offset, len, .. } => {
                self.content = true;
                self.extents.add(offset, offset + len);
            }
            Record::Truncate { size, .. } => {
                self.content = true;
                self.extents.cut(size);
                self.floor = self.floor.min(size);
            }
            Record::Attr { .. } | Record::Xattr { .. } => self.attrs = true,
            _ => {}
        }
    }
}

/// The tree that a walk begins from.
pub(super) enum Tree {
    /// As it was where the log begins that is left behind.
    Before(Catalog),
    /// As it was at a position within it, or at its end; what was there before is not known.
    Within(Catalog),
    /// None is known.
    None,
}

/// What a stretch of log changed.
pub(super) struct Walk {
    /// The tree before, if it is known.
    pub(super) before: Option<Catalog>,
    /// The tree after it, if one is known.
    pub(super) after: Option<Catalog>,
    pub(super) touched: BTreeMap<FileId, Touch>,
    /// Files that got or lost names, as far as that is known.
    pub(super) named: BTreeSet<FileId>,
    /// Names that went, for a walk that does not know the tree before.
    pub(super) unlinked: BTreeSet<(FileId, Vec<u8>)>,
}

/// Calls `each` for every record of the change sets that are complete between `from` and `to`, aborted ones left out; with
/// each commit comes its end. Where the last of them ended, committed or not.
pub(super) fn change_sets(
    shelf: Shelf<'_>,
    (from, to): (Lsn, Lsn),
    mut each: impl FnMut(&Record<'_>, Lsn) -> Result<()>,
) -> Result<Lsn> {
    let open = || FrameReader::open(shelf.dir, shelf.system, shelf.timeline, from);
    let (mut ahead, mut reader) = (open()?, open()?);
    let mut last = from;
    // Headers tell how a change set ends, so its records are read only once it is known to count.
    while let Some(header) = ahead.next_header(to)? {
        if header.flags & flags::ENDS == 0 {
            continue;
        }
        let (end, aborted) = (header.end(), header.flags & flags::ABORT != 0);
        let short = || Error::new(ErrorKind::Corrupt, format!("the log breaks off before {end}"));
        let mut at = Lsn::ZERO;
        while at < end {
            if aborted {
                at = reader.next_header(to)?.ok_or_else(short)?.end();
                continue;
            }
            let frame = reader.next(to)?.ok_or_else(short)?;
            at = frame.end;
            for item in Records::new(&frame.raw) {
                each(&item?.1, frame.end)?;
            }
        }
        last = end;
    }
    Ok(last)
}

/// Folds names, sizes and attributes; contents are not this one's business.
fn fold(catalog: &mut Catalog, record: &Record<'_>, end: Lsn) -> Result<()> {
    if let Record::Commit(c) = record {
        catalog.settle()?;
        catalog.set_position(end, c.cut, c.time);
        return Ok(());
    }
    catalog.fold(record)
}

/// The tree as of the last change set that is complete at `branch`, from the checkpoints in `catalogs`; with where that, or an
/// aborted one after it, ends: there the log begins that was left behind. Else the newest tree that there is.
///
/// # Errors
/// The log can't be read.
pub(super) fn begin(shelf: Shelf<'_>, catalogs: &Path, branch: Lsn) -> Result<(Lsn, Tree)> {
    if let Some(mut catalog) = newest_until(catalogs, shelf.system, branch)? {
        let from = catalog.lsn();
        match change_sets(shelf, (from, branch), |record, end| fold(&mut catalog, record, end)) {
            Ok(base) => return Ok((base, Tree::Before(catalog))),
            Err(e) => tracing::debug!("the tree at {branch} is not known: {e}"),
        }
    }
    let tree = newest_until(catalogs, shelf.system, Lsn(u64::MAX))?;
    Ok((last_end(shelf, branch)?, tree.map_or(Tree::None, Tree::Within)))
}

/// The newest sound checkpoint of `system` in `dir` at or before `lsn`, to be looked at: nothing is moved away.
///
/// # Errors
/// Why the directory can't be listed.
pub fn newest_until(dir: &Path, system: SystemId, lsn: Lsn) -> Result<Option<Catalog>> {
    let sound = |path: std::path::PathBuf| checkpoint::load(&path).ok().filter(|c| c.system() == system);
    Ok(checkpoint::files(dir)?.into_iter().filter_map(sound).find(|c| c.lsn() <= lsn))
}

/// Where the last change set before `branch` ends, or the log that is here begins.
fn last_end(shelf: Shelf<'_>, branch: Lsn) -> Result<Lsn> {
    let mut start = branch;
    while let Some(before) = log::start_before(shelf.dir, shelf.timeline, start)? {
        start = before;
        let mut reader = FrameReader::open(shelf.dir, shelf.system, shelf.timeline, start)?;
        let mut last = None;
        while let Some(header) = reader.next_header(branch)? {
            if header.flags & flags::ENDS != 0 && header.end() <= branch {
                last = Some(header.end());
            }
        }
        if let Some(last) = last {
            return Ok(last);
        }
    }
    Ok(start)
}

/// Walks from `base` to `end`, two positions between change sets.
///
/// # Errors
/// The log can't be read, or does not fit the tree.
pub(super) fn walk(shelf: Shelf<'_>, (base, end): (Lsn, Lsn), tree: Tree) -> Result<Walk> {
    let (before, mut after, known) = match tree {
        Tree::Before(c) => (Some(c.clone()), Some(c), base),
        Tree::Within(c) => {
            let known = c.lsn();
            (None, Some(c), known)
        }
        Tree::None => (None, None, Lsn(u64::MAX)),
    };
    let (mut touched, mut named, mut unlinked) = (BTreeMap::new(), BTreeSet::new(), BTreeSet::new());
    change_sets(shelf, (base, end), |record, at| {
        match *record {
            Record::Create { id, .. }
            | Record::Write { id, .. }
            | Record::Truncate { id, .. }
            | Record::Punch { id, .. }
            | Record::Attr { id, .. }
            | Record::Xattr { id, .. } => {
                let size = || before.as_ref().and_then(|c: &Catalog| c.get(id)).map(|i| i.size);
                touched.entry(id).or_insert_with(|| Touch::new(size())).note(record);
            }
            Record::Link { id, .. } => {
                named.insert(id);
            }
            Record::Unlink { parent, name } => match before.as_ref().and_then(|c| c.lookup(parent, name)) {
                Some(id) => {
                    named.insert(id);
                }
                None => {
                    unlinked.insert((parent, name.to_vec()));
                }
            },
            _ => {}
        }
        match &mut after {
            Some(after) if at > known => fold(after, record, at),
            _ => Ok(()),
        }
    })?;
    Ok(Walk { before, after, touched, named, unlinked })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stretches_join_and_are_cut() {
        let mut e = Extents::default();
        for (from, to) in [(10, 20), (30, 40), (20, 25), (50, 60), (24, 31), (5, 5)] {
            e.add(from, to);
        }
        assert_eq!(e.below(100), [(10, 40), (50, 60)]);
        e.add(0, 100);
        assert_eq!(e.below(70), [(0, 70)]);
        e.cut(30);
        assert_eq!(e.below(100), [(0, 30)]);
    }

    #[test]
    fn a_file_is_whole_when_the_log_says_every_byte() {
        let write = |t: &mut Touch, offset, len: usize| {
            t.note(&Record::Write { id: FileId(9), offset, data: &vec![1; len] });
        };
        let mut old = Touch::new(Some(100_000));
        write(&mut old, 16384, 16384);
        assert_eq!((old.known(100_000), old.is_whole(100_000)), (vec![(16384, 32768)], false));
        write(&mut old, 98304, 3000);
        assert_eq!(old.known(101_304), [(16384, 32768), (98304, 101_304)], "what it grew by is known");
        old.note(&Record::Truncate { id: FileId(9), size: 32768 });
        old.note(&Record::Truncate { id: FileId(9), size: 50_000 });
        assert_eq!(old.known(50_000), [(16384, 50_000)], "and so is a hole in the place of what was cut off");
        write(&mut old, 0, 16384);
        assert!(old.is_whole(50_000));
        let mut new = Touch::new(None);
        new.note(&Record::Punch { id: FileId(9), offset: 0, len: 10 });
        assert!(!new.is_whole(20), "nobody knows what it was");
        let attrs = crate::record::Attrs::default();
        new.note(&Record::Create {
            id: FileId(9),
            kind: crate::record::Kind::File,
            attrs,
            rdev: 0,
            target: b"",
        });
        assert!(new.is_whole(20));
    }
}
