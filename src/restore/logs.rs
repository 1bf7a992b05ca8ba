//! Where the log of a restore comes from, and its way into the state directory: segment by segment, each checked as a whole
//! before it counts.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::points::Seen;
use super::way::Way;
use crate::archive::{Address, Archive, names};
use crate::disk::AtomicFile;
use crate::error::{Error, ErrorKind, Result};
use crate::failpoint;
use crate::log::{self, Log, LogOptions, SealedBy};
use crate::position::{Lsn, SegmentNo, SystemId, TimelineId};
use crate::record::{PointName, Record, Records};
use crate::segment::{self, FILE_MAX, FRAME_LEN, Item, Parser, Step, TRAILER_LEN, flags};
use crate::set::Set;

/// A log that is not written to.
const NEVER: std::time::Duration = std::time::Duration::from_secs(1 << 30);
/// Segments fetched at once.
pub(super) const AT_ONCE: usize = 4;

/// Where log is, as it is typed: a directory, or the address of an archive.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Source {
    /// A state directory, or one that holds segments.
    Dir(PathBuf),
    /// An archive.
    Archive(Address),
}

impl FromStr for Source {
    type Err = String;

    fn from_str(s: &str) -> std::result::Result<Self, String> {
        if let Some(why) = super::origin::half_an_address(s).filter(|_| !s.contains("://")) {
            return Err(why);
        }
        if s.contains("://") { s.parse().map(Self::Archive) } else { Ok(Self::Dir(PathBuf::from(s))) }
    }
}

impl Source {
    /// A directory may hold an archive.
    pub(super) fn settled(&self) -> Result<Self> {
        match self {
            Self::Dir(dir) if dir.join(names::IDENTITY).is_file() => {
                let dir = std::path::absolute(dir).map_err(|e| Error::io("find", dir, e))?;
                Ok(Self::Archive(Address::Dir(dir)))
            }
            other => Ok(other.clone()),
        }
    }
}

/// One segment somewhere.
#[derive(Clone, Debug)]
enum Copy {
    File(PathBuf),
    /// A part of the set, by name.
    Part(String),
    /// An archive has it, this many bytes.
    Archived(Archive, u64),
}

/// In which form; the better one first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Form {
    /// Ended by the branch of the way that is in it.
    Ended,
    /// Sealed by its own line; it may go on beyond a branch.
    Sealed,
    /// Still being written.
    Open,
    /// Ended by a timeline that the way does not go over: of the line itself more may have been written.
    Left(TimelineId),
}

impl Form {
    fn is_whole(self) -> bool {
        self <= Self::Sealed
    }
}

/// What log there is.
pub(super) struct Sources<'a> {
    set: &'a Set,
    system: SystemId,
    way: &'a Way,
    /// The copies of each segment, the best ones first.
    copies: BTreeMap<SegmentNo, Vec<(Form, Copy)>>,
    archives: Vec<Archive>,
}

impl<'a> Sources<'a> {
    /// The log of the set, and of other places, as far as it is on the way.
    ///
    /// # Errors
    /// One can't be read, holds no log, or is of another system.
    pub(super) fn open(set: &'a Set, way: &'a Way, places: &[Source]) -> Result<Self> {
        let (system, copies) = (set.manifest().system, BTreeMap::new());
        let mut found = Self { set, system, way, copies, archives: Vec::new() };
        for part in set.log() {
            let name = part.name.strip_prefix("log/").unwrap_or_default();
            if let Some(name) = parse(name.as_bytes()) {
                found.add(name, Copy::Part(part.name.clone()));
            }
        }
        for place in places {
            match place.settled()? {
                Source::Dir(dir) => found.list(&dir)?,
                Source::Archive(address) => {
                    let archive = Archive::open(&address)?;
                    archive.belongs_to(system)?;
                    let from = Lsn(set.start().0.saturating_sub(1)).segment();
                    for timeline in way.timelines(from) {
                        archive.line(timeline, from, &mut |name, by, size| {
                            let written = by.map_or(Written::Sealed, Written::Ended);
                            let copy = Copy::Archived(archive.clone(), size);
                            found.add((timeline, name.segment, written), copy);
                            Ok(true)
                        })?;
                    }
                    found.archives.push(archive);
                }
            }
        }
        found.copies.values_mut().for_each(|c| c.sort_by_key(|(form, _)| *form));
        Ok(found)
    }

    fn list(&mut self, dir: &Path) -> Result<()> {
        let log = dir.join("log");
        let dir = if log.is_dir() { &log } else { dir };
        let mut any = false;
        for entry in fs::read_dir(dir).map_err(|e| Error::io("list", dir, e))? {
            let path = entry.map_err(|e| Error::io("list", dir, e))?.path();
            let Some(name) = path.file_name().and_then(|n| parse(n.as_bytes())) else { continue };
            any = true;
            self.add(name, Copy::File(path));
        }
        if any {
            return Ok(());
        }
        let text = format!(
            "there is no log in '{}'; name a state directory, a directory of segments, or an archive",
            dir.display()
        );
        Err(Error::new(ErrorKind::Missing, text))
    }

    /// Takes a copy, if it is of the line that the segment is of on the way.
    fn add(&mut self, (timeline, segment, written): (TimelineId, SegmentNo, Written), copy: Copy) {
        if timeline != self.way.timeline_of(segment) {
            return;
        }
        let ours = self.way.branch_in(segment).map(|b| b.timeline);
        let form = match written {
            Written::Sealed => Form::Sealed,
            Written::Open => Form::Open,
            Written::Ended(by) if Some(by) == ours => Form::Ended,
            Written::Ended(by) => Form::Left(by),
        };
        self.copies.entry(segment).or_default().push((form, copy));
    }

    /// The segments from `from` on, without a hole.
    pub(super) fn run(&self, from: SegmentNo) -> Vec<SegmentNo> {
        let mut out = Vec::new();
        let mut at = from;
        while self.copies.contains_key(&at) {
            out.push(at);
            at = at.next();
        }
        out
    }

    /// The first segment behind a hole.
    pub(super) fn beyond(&self, hole: SegmentNo) -> Option<SegmentNo> {
        self.copies.range(hole..).next().map(|(s, _)| *s)
    }

    /// Bytes of these segments as they are stored.
    pub(super) fn bytes(&self, segments: &[SegmentNo]) -> u64 {
        let size = |copy: &Copy| match copy {
            Copy::File(path) => fs::metadata(path).map_or(0, |m| m.len()),
            Copy::Archived(_, size) => *size,
            Copy::Part(name) => self.set.log().find(|p| p.name == *name).map_or(0, |p| p.size),
        };
        segments.iter().filter_map(|s| self.copies.get(s)?.first()).map(|(_, copy)| size(copy)).sum()
    }

    /// Puts these segments into `dir`, all at a time. How many there are whole, and why not all; behind the first that is
    /// not nothing is left there, so that the log has no hole.
    pub(super) fn fetch(&self, segments: &[SegmentNo], dir: &Path) -> (usize, Result<()>) {
        let results: Vec<Result<()>> = std::thread::scope(|scope| {
            // A panic: an error, below.
            let tasks: Vec<_> =
                segments.iter().map(|&segment| scope.spawn(move || self.fetch_one(segment, dir))).collect();
            let panicked = || Err(Error::new(ErrorKind::Io, "a thread has panicked"));
            tasks.into_iter().map(|t| t.join().unwrap_or_else(|_| panicked())).collect()
        });
        let Some(whole) = results.iter().position(Result::is_err) else { return (segments.len(), Ok(())) };
        let why = results.into_iter().nth(whole).unwrap_or(Ok(()));
        let removed = segments.get(whole).map_or(Ok(()), |first| remove_from(*first, dir));
        (whole, removed.and(why))
    }

    /// How many of these are fetched next: none behind a branch before that was settled.
    pub(super) fn next(&self, segments: &[SegmentNo]) -> usize {
        let some = segments.iter().take(AT_ONCE);
        some.clone().position(|s| self.way.branch_in(*s).is_some()).map_or(some.count(), |n| n + 1)
    }

    /// Ends the lines that were left in what was fetched, up to the segment `last`.
    ///
    /// # Errors
    /// The log there does not reach a branch.
    pub(super) fn settle(&self, last: SegmentNo, dir: &Path) -> Result<()> {
        match self.way.branch_in(last) {
            None => Ok(()),
            Some(branch) => log::end_copied_lines(dir, &self.way.history(branch.timeline)?),
        }
    }

    fn fetch_one(&self, segment: SegmentNo, dir: &Path) -> Result<()> {
        let timeline = self.way.timeline_of(segment);
        let ended = self.way.ended(segment);
        let there = ended.and_then(|by| Some(segment::ended_name(timeline, segment, by.ended_by?)));
        let sealed = segment::file_name(timeline, segment, false);
        if there.into_iter().chain([sealed]).any(|name| dir.join(name).exists()) {
            return Ok(());
        }
        let mut result = Err(Error::new(ErrorKind::Missing, format!("there is no segment {:X}", segment.0)));
        let copies = self.copies.get(&segment).map_or(&[][..], |c| c);
        for (form, copy) in copies.iter().filter(|(form, _)| form.is_whole()) {
            let by = ended.filter(|_| *form == Form::Ended);
            result = self.read(copy, segment, *form).and_then(|bytes| self.install(segment, by, &bytes, dir));
            match &result {
                Ok(()) => return Ok(()),
                Err(e) if e.kind() == ErrorKind::DiskFull => break,
                Err(e) => tracing::warn!("a copy of segment {:X} is not good: {e}", segment.0),
            }
        }
        // Of those that are still written the one that goes furthest.
        let mut best: Option<(Lsn, Vec<u8>)> = None;
        for (form, copy) in copies.iter().filter(|(form, _)| !form.is_whole()) {
            match self.read(copy, segment, *form) {
                Ok(mut bytes) => {
                    if let Form::Left(_) = form {
                        bytes.truncate(bytes.len().saturating_sub(TRAILER_LEN));
                    }
                    let end = self.end_of(segment, &bytes);
                    if best.as_ref().is_none_or(|(known, _)| end > *known) {
                        best = Some((end, bytes));
                    }
                }
                Err(e) => result = Err(e),
            }
        }
        match best {
            Some((_, bytes)) => self.put_open(segment, &bytes, dir),
            None => self.fetch_late(segment, dir).unwrap_or(result),
        }
    }

    fn install(&self, segment: SegmentNo, by: Option<SealedBy>, bytes: &[u8], dir: &Path) -> Result<()> {
        pass(dir)?;
        let own = SealedBy { timeline: self.way.timeline_of(segment), ended_by: None };
        log::repair::install(dir, self.system, by.unwrap_or(own), segment, bytes, false)
    }

    /// A node that runs may have sealed and archived a segment since it was listed, and removed it.
    fn fetch_late(&self, segment: SegmentNo, dir: &Path) -> Option<Result<()>> {
        let timeline = self.way.timeline_of(segment);
        let found = |archive: &Archive| archive.get_segment(timeline, segment).ok().flatten();
        let bytes = self.archives.iter().find_map(found)?;
        Some(self.install(segment, None, &bytes, dir))
    }

    /// Where the good part of a segment ends.
    fn end_of(&self, segment: SegmentNo, bytes: &[u8]) -> Lsn {
        let mut parser = Parser::new(self.system, self.way.timeline_of(segment), segment);
        loop {
            let at = usize::try_from(parser.offset()).unwrap_or(usize::MAX);
            let before = parser.lsn();
            match parser.next(bytes.get(at..).unwrap_or_default()) {
                Step::Item(_) if !parser.done() => {}
                Step::Item(_) => return parser.lsn(),
                _ => return before,
            }
        }
    }

    fn read(&self, copy: &Copy, segment: SegmentNo, form: Form) -> Result<Vec<u8>> {
        let timeline = self.way.timeline_of(segment);
        let (file, path) = match copy {
            Copy::Archived(archive, _) => {
                let by = match form {
                    Form::Ended => self.way.branch_in(segment).map(|b| b.timeline),
                    Form::Left(by) => Some(by),
                    Form::Sealed | Form::Open => None,
                };
                let found = match by {
                    Some(by) => archive.get_ended(timeline, segment, by),
                    None => archive.get_segment(timeline, segment),
                };
                return found?.ok_or_else(|| {
                    let text =
                        format!("segment {:X} is gone from the archive '{}'", segment.0, archive.address());
                    Error::new(ErrorKind::Missing, text)
                });
            }
            Copy::Part(name) => {
                let kept = self.set.part(name)?;
                return whole(&mut kept.reader(), Path::new(name));
            }
            Copy::File(path) => match File::open(path) {
                Ok(file) => (file, path.clone()),
                // It was sealed since it was listed.
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                    let sealed = path.with_file_name(segment::file_name(timeline, segment, false));
                    (File::open(&sealed).map_err(|e| Error::io("open", &sealed, e))?, sealed)
                }
                Err(e) => return Err(Error::io("open", path, e)),
            },
        };
        whole(&mut &file, &path)
    }

    fn put_open(&self, segment: SegmentNo, bytes: &[u8], dir: &Path) -> Result<()> {
        pass(dir)?;
        let name = segment::file_name(self.way.timeline_of(segment), segment, true);
        let failed = |e| Error::io("write", dir.join(&name), e);
        let mut file = AtomicFile::create(dir, &name)?;
        file.write_all(bytes).map_err(failed)?;
        file.commit()
    }
}

/// How a segment was written, by its name.
enum Written {
    Sealed,
    Open,
    Ended(TimelineId),
}

/// What the name of a segment's file says.
fn parse(name: &[u8]) -> Option<(TimelineId, SegmentNo, Written)> {
    if let Some((timeline, segment, by)) = segment::parse_ended(name) {
        return Some((timeline, segment, Written::Ended(by)));
    }
    let (timeline, segment, open) = segment::parse_name(name)?;
    Some((timeline, segment, if open { Written::Open } else { Written::Sealed }))
}

/// Removes what was fetched from this segment on.
fn remove_from(first: SegmentNo, dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir).map_err(|e| Error::io("list", dir, e))? {
        let path = entry.map_err(|e| Error::io("list", dir, e))?.path();
        let segment = path.file_name().and_then(|n| parse(n.as_bytes())).map(|(_, segment, _)| segment);
        if segment.is_some_and(|s| s >= first) {
            fs::remove_file(&path).map_err(|e| Error::io("remove", &path, e))?;
        }
    }
    Ok(())
}

/// All of a segment's file.
fn whole(input: &mut dyn Read, path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    input.take(FILE_MAX + 1).read_to_end(&mut bytes).map_err(|e| Error::io("read", path, e))?;
    if bytes.len() as u64 > FILE_MAX {
        let text = format!("'{}' is larger than a segment can be", path.display());
        return Err(Error::new(ErrorKind::Corrupt, text));
    }
    Ok(bytes)
}

/// The newest restore point of this name in the log of an archive on this way, from `from` on; the segments are gone through
/// from the newest one back, some at a time.
///
/// # Errors
/// The archive can't be read.
pub(super) fn point_in(
    archive: &Archive,
    way: &Way,
    from: SegmentNo,
    name: PointName,
    seen: &mut Seen,
) -> Result<Option<Lsn>> {
    let mut numbers = Vec::new();
    for timeline in way.timelines(from) {
        archive.line(timeline, from, &mut |found, by, _| {
            let segment = found.segment;
            let ours = by.is_none() || way.branch_in(segment).map(|b| b.timeline) == by;
            if way.timeline_of(segment) == timeline && ours {
                numbers.push((segment, timeline, by));
            }
            Ok(true)
        })?;
    }
    numbers.dedup();
    for some in numbers.rchunks(AT_ONCE) {
        let look = |(segment, timeline, by): (SegmentNo, TimelineId, Option<TimelineId>)| {
            let found = match by {
                Some(by) => archive.get_ended(timeline, segment, by),
                None => archive.get_segment(timeline, segment),
            };
            match found {
                Ok(Some(bytes)) => points(archive.system(), timeline, segment, &bytes, name),
                Ok(None) => Ok(Points::default()),
                // Damaged: it may not be needed.
                Err(e) if e.kind() == ErrorKind::Corrupt => {
                    tracing::warn!("a restore point may not be found: {e}");
                    Ok(Points::default())
                }
                Err(e) => Err(e),
            }
        };
        let found: Vec<Result<Points>> = std::thread::scope(|scope| {
            // A panic: an error, below.
            let tasks: Vec<_> = some.iter().map(|&one| scope.spawn(move || look(one))).collect();
            let panicked = || Err(Error::new(ErrorKind::Io, "a thread has panicked"));
            tasks.into_iter().map(|t| t.join().unwrap_or_else(|_| panicked())).collect()
        });
        for ((_, timeline, _), found) in some.iter().zip(found).rev() {
            let (found, names) = found?;
            names.names().for_each(|n| seen.see(n));
            // Past a branch it is not on the way.
            if let Some(lsn) = found.filter(|lsn| way.holds(*timeline, *lsn).is_ok()) {
                return Ok(Some(lsn));
            }
        }
    }
    Ok(None)
}

/// The last restore point of the name that is looked for, and all of them.
type Points = (Option<Lsn>, Seen);

/// The restore points in a segment.
fn points(
    system: SystemId,
    timeline: TimelineId,
    segment: SegmentNo,
    bytes: &[u8],
    name: PointName,
) -> Result<Points> {
    let mut parser = Parser::new(system, timeline, segment);
    let mut zstd = zstd::bulk::Decompressor::new().map_err(|e| Error::from(e).wrap("cannot decompress"))?;
    let (mut raw, mut found, mut seen) = (Vec::new(), None, Seen::default());
    loop {
        let at = usize::try_from(parser.offset()).unwrap_or(usize::MAX);
        let header = match parser.next(bytes.get(at..).unwrap_or_default()) {
            Step::Item(Item::Frame(header)) => header,
            Step::Item(_) if !parser.done() => continue,
            _ => return Ok((found, seen)),
        };
        // A restore point is a change set of its own.
        if header.flags & flags::ENDS == 0 {
            continue;
        }
        let stored = bytes.get(at + FRAME_LEN..at + header.stored()).unwrap_or_default();
        raw.clear();
        raw.reserve_exact(header.raw_len as usize);
        if zstd.decompress_to_buffer(stored, &mut raw).ok() != Some(header.raw_len as usize) {
            return Ok((found, seen));
        }
        for item in Records::new(&raw) {
            if let Ok((_, Record::RestorePoint { name: this, .. })) = item {
                seen.see(this);
                if this == name.as_bytes() {
                    found = Some(header.end());
                }
            }
        }
    }
}

fn pass(dir: &Path) -> Result<()> {
    failpoint::pass("restore::segment").map_err(|e| Error::io("write", dir, e))
}

/// Opens a log that was fetched.
pub(super) fn open(dir: &Path, system: SystemId, timeline: TimelineId) -> Result<Log> {
    Log::open_follower(LogOptions { dir: dir.to_owned(), system, timeline, segment_timeout: NEVER, level: 1 })
}

/// Where a log that was fetched ends.
pub(super) fn end(dir: &Path, system: SystemId, timeline: TimelineId) -> Result<Lsn> {
    let log = open(dir, system, timeline)?;
    let end = log.tail().end;
    log.close()?;
    Ok(end)
}
