//! A log at rest where a timeline branched off: what of the old line counts is sealed at the branch, what lies past it is put
//! aside. After that the directory holds one way, each segment number once.
//!
//! What is durable, in this order: the last segment under its new name; then what is past the branch goes, oldest last, so
//! that a log that was cut in half is not taken for whole. Each step is looked at anew by the next start.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use sha2::{Digest, Sha256};
use tracing::{info, warn};

use super::recover::{Form, Kept, read_all};
use crate::disk::{self, AtomicFile};
use crate::error::{Error, ErrorKind, Result};
use crate::failpoint;
use crate::history::{Branch, History};
use crate::position::{Lsn, SegmentNo, SystemId, TimelineId};
use crate::segment::{self, Item, Parser, Step, Trailer};

/// What ending lines did to a log.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Cut {
    /// Files that hold log past a branch; they are in the directory that was named for them.
    pub aside: u64,
    /// Where the log that was put aside ends; zero when none was.
    pub end: Lsn,
}

/// Makes the log in `dir` that of the way of `history`: ends the lines it came from where they were left. Log past a branch
/// goes to the directory that `lost` makes. Done again it changes nothing.
///
/// # Errors
/// `Diverged` when a line that was left is here but does not reach its branch, or has no frame that ends there.
pub fn end_lines(
    dir: &Path,
    history: &History,
    lost: impl FnOnce() -> Result<std::path::PathBuf>,
) -> Result<Cut> {
    let files = files(dir)?;
    for branch in history.branches() {
        end_line(dir, history.system(), branch, &files)?;
    }
    put_aside(dir, history, &files, Some(lost))
}

/// As [`end_lines`], for a log that is a copy: what is past a branch is removed.
///
/// # Errors
/// As there.
pub fn end_copied_lines(dir: &Path, history: &History) -> Result<()> {
    let files = files(dir)?;
    for branch in history.branches() {
        end_line(dir, history.system(), branch, &files)?;
    }
    put_aside(dir, history, &files, None::<fn() -> Result<std::path::PathBuf>>).map(drop)
}

/// Every segment file, by number; several files may have one.
fn files(dir: &Path) -> Result<BTreeMap<SegmentNo, Vec<Kept>>> {
    let mut found: BTreeMap<SegmentNo, Vec<Kept>> = BTreeMap::new();
    for entry in fs::read_dir(dir).map_err(|e| Error::io("list", dir, e))? {
        let entry = entry.map_err(|e| Error::io("list", dir, e))?;
        if let Some((segment, kept)) = Kept::of(entry.file_name().as_bytes()) {
            found.entry(segment).or_default().push(kept);
        }
    }
    Ok(found)
}

/// Seals the last segment of the line that `branch` ended, unless the line did so itself right there.
fn end_line(
    dir: &Path,
    system: SystemId,
    branch: &Branch,
    files: &BTreeMap<SegmentNo, Vec<Kept>>,
) -> Result<()> {
    let segment = branch.last_segment();
    let here = files.get(&segment).map_or(&[][..], Vec::as_slice);
    let of_line = |form: Form| here.contains(&Kept { timeline: branch.parent, form });
    if of_line(Form::Ended(branch.timeline)) {
        return Ok(());
    }
    // Sealed first: a partial beside it is what an interrupted seal left. What another branch has ended is as much of it.
    let other = |k: &Kept| k.timeline == branch.parent && matches!(k.form, Form::Ended(_));
    let ended = here.iter().find(|k| other(k)).map(|k| k.form);
    let Some(form) = [Form::Sealed, Form::Partial].into_iter().find(|f| of_line(*f)).or(ended) else {
        return unless_cut_short(dir, branch, files);
    };
    let name = Kept { timeline: branch.parent, form }.name(segment);
    let path = dir.join(&name);
    let bytes = read_all(&path)?;
    let mut parser = Parser::new(system, branch.parent, segment);
    let mut marks = None;
    while marks.is_none() {
        let at = usize::try_from(parser.offset()).unwrap_or(usize::MAX);
        match parser.next(bytes.get(at..).unwrap_or_default()) {
            Step::Item(Item::Frame(_)) if parser.lsn() == branch.at => marks = Some(at),
            Step::Item(Item::Trailer(_)) | Step::More(_) | Step::Zeros => break,
            Step::Item(_) if parser.lsn() <= branch.at => {}
            Step::Item(_) => break,
            Step::Bad(fault) => return Err(super::reader::damaged(&path, parser.offset(), &fault)),
        }
    }
    if marks.is_none() {
        return Err(not_reached(&path, branch, parser.lsn()));
    }
    let end = usize::try_from(parser.offset()).unwrap_or(usize::MAX);
    if form == Form::Sealed && matches!(parser.clone().next(&bytes[end..]), Step::Item(Item::Trailer(_))) {
        return Ok(());
    }
    let trailer = Trailer {
        end: parser.lsn(),
        records: parser.records(),
        commits: parser.commits(),
        marks: parser.marks(),
        sha: [0; 32],
    };
    let mut sealed = bytes[..end].to_vec();
    sealed.extend(trailer.encode_head(system, branch.parent, segment));
    let sha: [u8; 32] = Sha256::digest(&sealed).into();
    sealed.extend(sha);
    let name = segment::ended_name(branch.parent, segment, branch.timeline);
    let pass = |point| failpoint::pass(point).map_err(|e| Error::io("write", dir.join(&name), e));
    pass("branch::seal")?;
    let mut file = AtomicFile::create(dir, &name)?;
    file.write_all(&sealed).map_err(|e| Error::io("write", file.aside(), e))?;
    file.commit()?;
    pass("branch::after_seal")
}

/// A line whose last segment is not here may have been removed, or never have been here; but not while older log of it is.
fn unless_cut_short(dir: &Path, branch: &Branch, files: &BTreeMap<SegmentNo, Vec<Kept>>) -> Result<()> {
    let older = files.range(..branch.last_segment());
    let newest = older.rev().find(|(_, kept)| kept.iter().any(|k| k.timeline == branch.parent));
    let Some((segment, kept)) = newest else { return Ok(()) };
    // What the first start after the branch left is complete without it only if it reaches the branch.
    let name = kept.iter().max().map(|k| k.name(*segment)).unwrap_or_default();
    Err(not_reached(&dir.join(name), branch, segment.end()))
}

fn not_reached(path: &Path, branch: &Branch, end: Lsn) -> Error {
    let text = format!(
        "timeline {} branched off from {} at {}, but '{}' has no frame that ends there (it goes to {end}): the two logs are not \
         the same; `towline resync` makes this node equal to its upstream",
        branch.timeline,
        branch.parent,
        branch.at,
        path.display()
    );
    Error::new(ErrorKind::Diverged, text)
}

/// Takes away what is not on the way.
fn put_aside(
    dir: &Path,
    history: &History,
    files: &BTreeMap<SegmentNo, Vec<Kept>>,
    lost: Option<impl FnOnce() -> Result<std::path::PathBuf>>,
) -> Result<Cut> {
    let mut cut = Cut::default();
    let mut gone = Vec::new();
    for (segment, kept) in files.iter().rev() {
        for kept in kept.iter().filter(|k| !on_way(dir, history, *segment, **k)) {
            let path = dir.join(kept.name(*segment));
            let end = end_of(&path, history.system(), *segment, *kept);
            let past = history.end_of(kept.timeline).is_none_or(|at| end > at);
            cut.aside += u64::from(past);
            cut.end = if past { cut.end.max(end) } else { cut.end };
            gone.push((path, past));
        }
    }
    if gone.is_empty() {
        return Ok(cut);
    }
    let to = lost.filter(|_| cut.aside > 0).map(|make| make()).transpose()?;
    for (path, past) in gone {
        failpoint::pass("branch::aside").map_err(|e| Error::io("put aside", &path, e))?;
        match to.as_ref().filter(|_| past).zip(path.file_name()) {
            Some((to, name)) => {
                fs::rename(&path, to.join(name)).map_err(|e| Error::io("put aside", &path, e))?;
                disk::sync_dir(to)?;
                disk::sync_dir(dir)?;
            }
            // All that counts of it is in the sealed one, or it is a copy.
            None => disk::remove_durable(&path)?,
        }
    }
    if let Some(to) = to {
        warn!(
            "log past a branch, up to {}, is kept in '{}'; `towline log dump` reads it; remove it when nobody needs it",
            cut.end,
            to.display()
        );
    }
    info!(timeline = %history.timeline(), "the log is that of the timeline's way");
    Ok(cut)
}

/// Whether a file belongs to the way.
fn on_way(dir: &Path, history: &History, segment: SegmentNo, kept: Kept) -> bool {
    if history.timeline_of(segment) != kept.timeline || history.line_of(kept.timeline).is_none() {
        return false;
    }
    let Some(branch) = history.branches().iter().find(|b| b.parent == kept.timeline) else {
        return !matches!(kept.form, Form::Ended(_));
    };
    if segment != branch.last_segment() {
        return kept.form == Form::Sealed;
    }
    let ended = Kept { timeline: kept.timeline, form: Form::Ended(branch.timeline) };
    // Without it the line's own is sealed at the branch.
    kept == ended || (kept.form == Form::Sealed && !dir.join(ended.name(segment)).exists())
}

/// The log in `dir` that is past the newest branch of the way of `history`, and that [`end_lines`] will put aside: its timeline, and where
/// it ends.
///
/// # Errors
/// Why the directory can't be listed.
pub fn left_behind(dir: &Path, history: &History) -> Result<Option<(TimelineId, Lsn)>> {
    let Some(branch) = history.branches().last() else { return Ok(None) };
    let newest = files(dir)?.range(branch.last_segment()..).rev().find_map(|(segment, kept)| {
        let own =
            kept.iter().filter(|k| k.timeline == branch.parent && !matches!(k.form, Form::Ended(_))).max()?;
        Some(end_of(&dir.join(own.name(*segment)), history.system(), *segment, *own))
    });
    Ok(newest.filter(|end| *end > branch.at).map(|end| (branch.parent, end)))
}

/// Where the log of `timeline` in `dir` ends, as far as it can be read; zero when there is none. Nothing is changed: it is for looks
/// at a log that nobody has open.
///
/// # Errors
/// Why the directory can't be listed.
pub fn end_at_rest(dir: &Path, system: SystemId, timeline: TimelineId) -> Result<Lsn> {
    let newest = super::recover::list(dir, timeline)?.pop_last();
    Ok(newest
        .map_or(Lsn::ZERO, |(segment, kept)| end_of(&dir.join(kept.name(segment)), system, segment, kept)))
}

/// Where the log in a file ends, as far as it can be read.
fn end_of(path: &Path, system: SystemId, segment: SegmentNo, kept: Kept) -> Lsn {
    let Ok(bytes) = read_all(path) else { return segment.end() };
    let mut parser = Parser::new(system, kept.timeline, segment);
    loop {
        let at = usize::try_from(parser.offset()).unwrap_or(usize::MAX);
        match parser.next(bytes.get(at..).unwrap_or_default()) {
            Step::Item(Item::Header(_) | Item::Frame(_)) => {}
            _ => return parser.lsn(),
        }
    }
}
