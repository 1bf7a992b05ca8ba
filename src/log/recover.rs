//! What a log is after any stop: the newest segment is read to its end, and what stands there is
//! decided once, here.
//!
//! The good part of a `.partial` file is copied aside, synced and renamed into place: the kernel
//! may show bytes whose sync has failed, and only bytes written again can be trusted to be on disk.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use tracing::{info, warn};

use super::file::SegmentFile;
use super::{Gaps, LogOptions, Tail};
use crate::disk;
use crate::error::{Error, ErrorKind, Result};
use crate::position::{Lsn, SegmentNo, TimelineId};
use crate::segment::{self, FILE_MAX, Fault, Header, Item, Marks, Parser, Step, TRAILER_LEN, Trailer};
use crate::sys;

/// What a segment's file is called. The greater of two of one number counts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Kept {
    /// Its timeline.
    pub(super) timeline: TimelineId,
    pub(super) form: Form,
}

/// Whether a segment is sealed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Form {
    /// Not yet.
    Partial,
    /// By the line itself.
    Sealed,
    /// Where the timeline within branched off.
    Ended(TimelineId),
}

impl Kept {
    /// What the name of a segment's file says.
    pub(super) fn of(name: &[u8]) -> Option<(SegmentNo, Self)> {
        if let Some((timeline, segment, partial)) = segment::parse_name(name) {
            let form = if partial { Form::Partial } else { Form::Sealed };
            return Some((segment, Self { timeline, form }));
        }
        let (timeline, segment, by) = segment::parse_ended(name)?;
        Some((segment, Self { timeline, form: Form::Ended(by) }))
    }

    pub(super) fn sealed(self) -> bool {
        self.form != Form::Partial
    }

    pub(super) fn name(self, segment: SegmentNo) -> String {
        match self.form {
            Form::Ended(by) => segment::ended_name(self.timeline, segment, by),
            form => segment::file_name(self.timeline, segment, form == Form::Partial),
        }
    }
}

/// The end of a log as recovery found it.
#[derive(Debug)]
pub(super) struct Recovered {
    /// The open end, if there is one.
    pub(super) current: Option<SegmentFile>,
    /// Creation time in its header.
    pub(super) created_ns: i64,
    /// SHA-256 of the newest sealed segment, zero when there is none.
    pub(super) prev_sha: [u8; 32],
    /// The durable end.
    pub(super) tail: Tail,
    /// The marks there.
    pub(super) marks: Marks,
}

/// The segment files in `dir` that are on the way of `timeline`: of it, and before each branch of the timeline that was left
/// there. No number is of two timelines.
pub(super) fn list(dir: &Path, timeline: TimelineId) -> Result<BTreeMap<SegmentNo, Kept>> {
    let mut found: BTreeMap<SegmentNo, Kept> = BTreeMap::new();
    for entry in fs::read_dir(dir).map_err(|e| Error::io("list", dir, e))? {
        let entry = entry.map_err(|e| Error::io("list", dir, e))?;
        if let Some((segment, kept)) = Kept::of(entry.file_name().as_bytes())
            && kept.timeline <= timeline
        {
            let best = found.entry(segment).or_insert(kept);
            *best = (*best).max(kept);
        }
    }
    Ok(found)
}

pub(super) fn path_of(o: &LogOptions, segment: SegmentNo, partial: bool) -> PathBuf {
    o.dir.join(segment::file_name(o.timeline, segment, partial))
}

fn corrupt(path: &Path, offset: u64, why: &Fault) -> Error {
    super::reader::damaged(path, offset, why)
}

/// Reads the directory and makes its end one that can be appended to.
pub(super) fn recover(o: &LogOptions, leader: bool) -> Result<Recovered> {
    disk::create_subdir_durable(&o.dir)?;
    remove_leftovers(o)?;
    let files = list(&o.dir, o.timeline)?;
    let sealed = files.iter().rev().find(|(_, kept)| kept.sealed()).map(|(s, kept)| (*s, *kept));
    let open = files.iter().rev().find(|(_, kept)| !kept.sealed()).map(|(s, kept)| (*s, *kept));
    if let Some((segment, kept)) = open {
        let alone = files.values().filter(|kept| !kept.sealed()).count() == 1;
        if kept.timeline != o.timeline {
            return Err(not_ended(&o.dir.join(kept.name(segment)), o.timeline));
        }
        if !alone || sealed.is_some_and(|(s, _)| s > segment) {
            let message = format!(
                "'{}' was never sealed, but a later segment is there; fetch a good copy of it from another node",
                path_of(o, segment, true).display()
            );
            return Err(Error::new(ErrorKind::Corrupt, message));
        }
    }
    let base = match sealed {
        // What a leader goes on from is what its followers are measured by.
        Some((segment, kept)) if leader => Some(check_sealed(o, segment, kept)?),
        Some((segment, kept)) => Some(read_sealed(o, segment, kept)?),
        None => None,
    };
    if let Some((segment, _)) = open {
        let before = base.as_ref().filter(|b| b.segment.next() == segment);
        if let Some(found) = recover_partial(o, segment, before, leader)? {
            return Ok(found);
        }
    }
    let (marks, prev_sha, tail) = match base {
        Some(b) => {
            let (tail, marks) = end_of(&b);
            (marks, b.trailer.sha, tail)
        }
        None if leader => {
            let tail = Tail { end: Lsn::FIRST, segment: Lsn::FIRST.segment(), ..Tail::default() };
            (Marks::default(), [0; 32], tail)
        }
        None => (Marks::default(), [0; 32], Tail::default()),
    };
    Ok(Recovered { current: None, created_ns: 0, prev_sha, tail, marks })
}

/// Where the newest sealed segments end. One that can't be read is some other look's matter.
pub(super) fn gaps(o: &LogOptions) -> Gaps {
    let gaps = Gaps::default();
    let files = list(&o.dir, o.timeline).unwrap_or_default();
    for (&segment, &kept) in files.iter().rev().filter(|(_, kept)| kept.sealed()).take(Gaps::MAX) {
        if let Ok(sealed) = read_sealed(o, segment, kept) {
            gaps.saw(sealed.trailer.end, segment.next().start());
        }
    }
    gaps
}

pub(super) fn tail_at(segment: SegmentNo, offset: u64, end: Lsn, marks: &Marks) -> Tail {
    Tail {
        end,
        commit: marks.commit,
        exact: marks.exact,
        segment,
        offset,
        commit_time: marks.commit_time,
        exact_time: marks.exact_time,
    }
}

/// The durable end of a log whose newest segment is sealed.
pub(super) fn end_of(sealed: &Sealed) -> (Tail, Marks) {
    let marks = sealed.trailer.marks;
    (tail_at(sealed.segment, sealed.len, sealed.trailer.end, &marks), marks)
}

fn not_ended(path: &Path, timeline: TimelineId) -> Error {
    let message = format!(
        "'{}' was not ended where timeline {timeline} branched off; start the node again, and if that stays put the log back \
         from another node",
        path.display()
    );
    Error::new(ErrorKind::Corrupt, message)
}

/// Removes copies that were never renamed, and a `.partial` beside its sealed self.
fn remove_leftovers(o: &LogOptions) -> Result<()> {
    let mut gone = false;
    for entry in fs::read_dir(&o.dir).map_err(|e| Error::io("list", &o.dir, e))? {
        let path = entry.map_err(|e| Error::io("list", &o.dir, e))?.path();
        let Some(name) = path.file_name().map(OsStrExt::as_bytes) else { continue };
        let aside = name.strip_suffix(disk::ASIDE.as_bytes()).is_some_and(|n| Kept::of(n).is_some());
        let double = matches!(segment::parse_name(name), Some((t, s, true))
            if t == o.timeline && path_of(o, s, false).exists());
        if aside || double {
            info!(file = %path.display(), "removing what an interrupted start or seal left");
            fs::remove_file(&path).map_err(|e| Error::io("remove", &path, e))?;
            gone = true;
        }
    }
    if gone { disk::sync_dir(&o.dir) } else { Ok(()) }
}

pub(super) struct Sealed {
    segment: SegmentNo,
    len: u64,
    pub(super) trailer: Trailer,
}

/// Header and trailer of a sealed segment; what lies between is checked when it is read.
pub(super) fn read_sealed(o: &LogOptions, segment: SegmentNo, kept: Kept) -> Result<Sealed> {
    let path = o.dir.join(kept.name(segment));
    let file = fs::File::open(&path).map_err(|e| Error::io("open", &path, e))?;
    let len = file.metadata().map_err(|e| Error::io("stat", &path, e))?.len();
    let mut head = vec![0; segment::HEADER_LEN];
    let n = sys::read_at(&file, &mut head, 0).map_err(|e| Error::io("read", &path, e))?;
    match Parser::new(o.system, kept.timeline, segment).next(&head[..n]) {
        Step::Item(Item::Header(_)) => {}
        Step::Bad(fault) => return Err(corrupt(&path, 0, &fault)),
        _ => return Err(corrupt(&path, 0, &Fault::Magic)),
    }
    let at = len.saturating_sub(TRAILER_LEN as u64);
    let mut tail = vec![0; TRAILER_LEN];
    let n = sys::read_at(&file, &mut tail, at).map_err(|e| Error::io("read", &path, e))?;
    let trailer =
        Trailer::decode(&tail[..n], o.system, kept.timeline, segment).map_err(|fault| match fault {
            Fault::Magic => corrupt(&path, at, &Fault::NoTrailer),
            other => corrupt(&path, at, &other),
        })?;
    Ok(Sealed { segment, len, trailer })
}

/// [`read_sealed`], and every byte of the file against the trailer's SHA-256.
pub(super) fn check_sealed(o: &LogOptions, segment: SegmentNo, kept: Kept) -> Result<Sealed> {
    let sealed = read_sealed(o, segment, kept)?;
    let path = o.dir.join(kept.name(segment));
    let file = fs::File::open(&path).map_err(|e| Error::io("open", &path, e))?;
    let hashed = sealed.len.saturating_sub(sealed.trailer.sha.len() as u64);
    let mut sha = Sha256::new();
    let whole = super::hash_range(&file, &path, 0..hashed, &mut sha)?;
    if !whole || <[u8; 32]>::from(sha.finalize()) != sealed.trailer.sha {
        return Err(corrupt(&path, 0, &Fault::Sha));
    }
    Ok(sealed)
}

pub(super) fn read_all(path: &Path) -> Result<Vec<u8>> {
    let file = fs::File::open(path).map_err(|e| Error::io("open", path, e))?;
    let len = file.metadata().map_err(|e| Error::io("stat", path, e))?.len();
    if len > FILE_MAX {
        return Err(corrupt(path, FILE_MAX, &Fault::Beyond));
    }
    let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
    let n = sys::read_at(&file, &mut bytes, 0).map_err(|e| Error::io("read", path, e))?;
    bytes.truncate(n);
    Ok(bytes)
}

fn sha(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

/// What a `.partial` file holds.
struct Partial {
    header: Option<Header>,
    parser: Parser,
    trailer: Option<Trailer>,
}

fn scan(o: &LogOptions, path: &Path, segment: SegmentNo, bytes: &[u8], leader: bool) -> Result<Partial> {
    let mut parser = Parser::new(o.system, o.timeline, segment);
    let (mut header, mut trailer) = (None, None);
    let fault = loop {
        let at = usize::try_from(parser.offset()).unwrap_or(usize::MAX);
        let before = parser.clone();
        match parser.next(bytes.get(at..).unwrap_or(&[])) {
            Step::Item(Item::Header(h)) => header = Some(h),
            Step::Item(Item::Frame(_)) => {}
            Step::Item(Item::Trailer(t)) if sha(&bytes[..at + TRAILER_LEN - t.sha.len()]) == t.sha => {
                trailer = Some(t);
                break None;
            }
            // Every frame is good: it is the trailer that was not written to its end.
            Step::Item(Item::Trailer(_)) => {
                parser = before;
                break Some(Fault::Sha);
            }
            Step::Zeros | Step::More(_) if bytes[at..].iter().all(|&b| b == 0) => break None,
            Step::Zeros => break Some(Fault::Magic),
            Step::More(_) => break Some(Fault::NoTrailer),
            Step::Bad(fault) if fault.foreign() => return Err(corrupt(path, parser.offset(), &fault)),
            Step::Bad(fault) => break Some(fault),
        }
    };
    let at = parser.offset();
    if let Some(fault) = fault {
        let rest = &bytes[usize::try_from(at).unwrap_or(0)..];
        if leader && segment::durable_after(rest, o.system, o.timeline, segment, at).is_some() {
            return Err(corrupt(path, at, &fault));
        }
        let lost = rest.iter().rposition(|&b| b != 0).map_or(0, |i| i + 1);
        warn!(file = %path.display(), offset = at, bytes = lost, why = %fault,
            "the last write did not complete before the stop; its bytes are cut off");
    }
    Ok(Partial { header, parser, trailer })
}

/// `None`: the file held not even a header, and is gone.
fn recover_partial(
    o: &LogOptions,
    segment: SegmentNo,
    base: Option<&Sealed>,
    leader: bool,
) -> Result<Option<Recovered>> {
    let path = path_of(o, segment, true);
    let bytes = read_all(&path)?;
    let found = scan(o, &path, segment, &bytes, leader)?;
    let Some(header) = found.header else {
        disk::remove_durable(&path)?;
        return Ok(None);
    };
    if let Some(base) = base
        && (header.prev_sha != base.trailer.sha || header.marks != base.trailer.marks)
    {
        return Err(corrupt(&path, 0, &Fault::Chain));
    }
    let good = found.parser.offset() - if found.trailer.is_some() { TRAILER_LEN as u64 } else { 0 };
    let good = usize::try_from(good).unwrap_or(0);
    let aside = o.dir.join(format!("{}{}", segment::file_name(o.timeline, segment, true), disk::ASIDE));
    let mut file = SegmentFile::create_at(&o.dir, &aside, o.timeline, segment, header.marks)?;
    file.append(&bytes[..good])?;
    file.end = found.parser.lsn();
    file.marks = found.parser.marks();
    file.records = found.parser.records();
    file.commits = found.parser.commits();
    file.adopt()?;
    let (end, marks) = (file.end, file.marks);
    let (current, prev_sha, len) = match found.trailer {
        Some(t) => {
            let (sha, len) = file.seal_stored(&bytes[good..good + TRAILER_LEN], t.sha)?;
            (None, sha, len)
        }
        None => {
            let len = file.len();
            (Some(file), header.prev_sha, len)
        }
    };
    let tail = tail_at(segment, len, end, &marks);
    Ok(Some(Recovered { current, created_ns: header.created_ns, prev_sha, tail, marks }))
}
