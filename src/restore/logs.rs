//! Where the log of a restore comes from, and its way into the state directory: segment by segment, each checked as a whole
//! before it counts.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::archive::{Address, Archive, names};
use crate::disk::AtomicFile;
use crate::error::{Error, ErrorKind, Result};
use crate::failpoint;
use crate::log::{self, Log, LogOptions};
use crate::position::{Lsn, SegmentNo, SystemId, TimelineId};
use crate::record::{PointName, Record, Records};
use crate::segment::{self, FILE_MAX, FRAME_LEN, Item, Parser, Step, flags};
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
        if s.contains("://") { s.parse().map(Self::Archive) } else { Ok(Self::Dir(PathBuf::from(s))) }
    }
}

impl Source {
    /// A directory may hold an archive.
    fn settled(&self) -> Result<Self> {
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

/// What log there is.
pub(super) struct Sources<'a> {
    set: &'a Set,
    system: SystemId,
    timeline: TimelineId,
    /// The best copies of each segment, sealed ones first.
    copies: BTreeMap<SegmentNo, Vec<(bool, Copy)>>,
    archives: Vec<Archive>,
}

impl<'a> Sources<'a> {
    /// The log of the set, and of other places.
    ///
    /// # Errors
    /// One can't be read, holds no log, or is of another system.
    pub(super) fn open(set: &'a Set, places: &[Source]) -> Result<Self> {
        let (system, timeline) = (set.manifest().system, set.manifest().timeline);
        let mut copies: BTreeMap<SegmentNo, Vec<(bool, Copy)>> = BTreeMap::new();
        let mut archives = Vec::new();
        for part in set.log() {
            let name = part.name.strip_prefix("log/").unwrap_or_default();
            if let Some((t, segment, partial)) = segment::parse_name(name.as_bytes())
                && t == timeline
            {
                copies.entry(segment).or_default().push((partial, Copy::Part(part.name.clone())));
            }
        }
        for place in places {
            let dir = match place.settled()? {
                Source::Dir(dir) => dir,
                Source::Archive(address) => {
                    let archive = Archive::open(&address)?;
                    archive.belongs_to(system)?;
                    archive.segments(timeline, set.start().segment(), &mut |name, size| {
                        let copy = Copy::Archived(archive.clone(), size);
                        copies.entry(name.segment).or_default().push((false, copy));
                        Ok(true)
                    })?;
                    archives.push(archive);
                    continue;
                }
            };
            let log = dir.join("log");
            let dir = if log.is_dir() { &log } else { &dir };
            let mut any = false;
            for entry in fs::read_dir(dir).map_err(|e| Error::io("list", dir, e))? {
                let path = entry.map_err(|e| Error::io("list", dir, e))?.path();
                let name = path.file_name().and_then(|n| segment::parse_name(n.as_bytes()));
                let Some((t, segment, partial)) = name else { continue };
                any = true;
                if t == timeline {
                    copies.entry(segment).or_default().push((partial, Copy::File(path)));
                }
            }
            if !any {
                let text = format!(
                    "there is no log in '{}'; name a state directory, a directory of segments, or an archive",
                    dir.display()
                );
                return Err(Error::new(ErrorKind::Missing, text));
            }
        }
        copies.values_mut().for_each(|c| c.sort_by_key(|(partial, _)| *partial));
        Ok(Self { set, system, timeline, copies, archives })
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

    /// Puts these segments into `dir`, some at a time.
    ///
    /// # Errors
    /// The first one that can't be had whole from anywhere.
    pub(super) fn fetch(&self, segments: &[SegmentNo], dir: &Path) -> Result<()> {
        std::thread::scope(|scope| {
            // A panic: an error, below.
            let tasks: Vec<_> =
                segments.iter().map(|&segment| scope.spawn(move || self.fetch_one(segment, dir))).collect();
            let mut result = Ok(());
            for task in tasks {
                let done =
                    task.join().unwrap_or_else(|_| Err(Error::new(ErrorKind::Io, "a thread has panicked")));
                result = result.and(done);
            }
            result
        })
    }

    fn fetch_one(&self, segment: SegmentNo, dir: &Path) -> Result<()> {
        if dir.join(segment::file_name(self.timeline, segment, false)).exists() {
            return Ok(());
        }
        let mut result = Err(Error::new(ErrorKind::Missing, format!("there is no segment {:X}", segment.0)));
        let copies = self.copies.get(&segment).map_or(&[][..], |c| c);
        for (_, copy) in copies.iter().filter(|(partial, _)| !partial) {
            result = self.read(copy, segment).and_then(|bytes| {
                pass(dir)?;
                log::repair::install(dir, self.system, self.timeline, segment, &bytes, false)
            });
            match &result {
                Ok(()) => return Ok(()),
                Err(e) if e.kind() == ErrorKind::DiskFull => break,
                Err(e) => tracing::warn!("a copy of segment {:X} is not good: {e}", segment.0),
            }
        }
        // Of those that are still written the one that goes furthest.
        let mut best: Option<(Lsn, Vec<u8>)> = None;
        for (_, copy) in copies.iter().filter(|(partial, _)| *partial) {
            match self.read(copy, segment) {
                Ok(bytes) => {
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

    /// A node that runs may have sealed and archived a segment since it was listed, and removed it.
    fn fetch_late(&self, segment: SegmentNo, dir: &Path) -> Option<Result<()>> {
        let found = |archive: &Archive| archive.get_segment(self.timeline, segment).ok().flatten();
        let bytes = self.archives.iter().find_map(found)?;
        let install = |()| log::repair::install(dir, self.system, self.timeline, segment, &bytes, false);
        Some(pass(dir).and_then(install))
    }

    /// Where the good part of a segment ends.
    fn end_of(&self, segment: SegmentNo, bytes: &[u8]) -> Lsn {
        let mut parser = Parser::new(self.system, self.timeline, segment);
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

    fn read(&self, copy: &Copy, segment: SegmentNo) -> Result<Vec<u8>> {
        let (file, path) = match copy {
            Copy::Archived(archive, _) => {
                return archive.get_segment(self.timeline, segment)?.ok_or_else(|| {
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
                    let sealed = path.with_file_name(segment::file_name(self.timeline, segment, false));
                    (File::open(&sealed).map_err(|e| Error::io("open", &sealed, e))?, sealed)
                }
                Err(e) => return Err(Error::io("open", path, e)),
            },
        };
        whole(&mut &file, &path)
    }

    fn put_open(&self, segment: SegmentNo, bytes: &[u8], dir: &Path) -> Result<()> {
        pass(dir)?;
        let name = segment::file_name(self.timeline, segment, true);
        let failed = |e| Error::io("write", dir.join(&name), e);
        let mut file = AtomicFile::create(dir, &name)?;
        file.write_all(bytes).map_err(failed)?;
        file.commit()
    }
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

/// The newest restore point of this name in the log of an archive from `from` on; the segments are gone through from the
/// newest one back, some at a time.
///
/// # Errors
/// The archive can't be read.
pub(super) fn point_in(
    archive: &Archive,
    timeline: TimelineId,
    from: SegmentNo,
    name: PointName,
) -> Result<Option<Lsn>> {
    let mut numbers = Vec::new();
    archive.segments(timeline, from, &mut |segment, _| {
        numbers.push(segment.segment);
        Ok(true)
    })?;
    numbers.dedup();
    for some in numbers.rchunks(AT_ONCE) {
        let look = |segment| match archive.get_segment(timeline, segment) {
            Ok(Some(bytes)) => points(archive.system(), timeline, segment, &bytes, name),
            Ok(None) => Ok(None),
            // Damaged: it may not be needed.
            Err(e) if e.kind() == ErrorKind::Corrupt => {
                tracing::warn!("a restore point may not be found: {e}");
                Ok(None)
            }
            Err(e) => Err(e),
        };
        let found: Vec<Result<Option<Lsn>>> = std::thread::scope(|scope| {
            // A panic: an error, below.
            let tasks: Vec<_> = some.iter().map(|&segment| scope.spawn(move || look(segment))).collect();
            let panicked = || Err(Error::new(ErrorKind::Io, "a thread has panicked"));
            tasks.into_iter().map(|t| t.join().unwrap_or_else(|_| panicked())).collect()
        });
        for found in found.into_iter().rev() {
            if let Some(lsn) = found? {
                return Ok(Some(lsn));
            }
        }
    }
    Ok(None)
}

/// The last restore point of this name in a segment.
fn points(
    system: SystemId,
    timeline: TimelineId,
    segment: SegmentNo,
    bytes: &[u8],
    name: PointName,
) -> Result<Option<Lsn>> {
    let mut parser = Parser::new(system, timeline, segment);
    let mut zstd = zstd::bulk::Decompressor::new().map_err(|e| Error::from(e).wrap("cannot decompress"))?;
    let (mut raw, mut found) = (Vec::new(), None);
    loop {
        let at = usize::try_from(parser.offset()).unwrap_or(usize::MAX);
        let header = match parser.next(bytes.get(at..).unwrap_or_default()) {
            Step::Item(Item::Frame(header)) => header,
            Step::Item(_) if !parser.done() => continue,
            _ => return Ok(found),
        };
        // A restore point is a change set of its own.
        if header.flags & flags::ENDS == 0 {
            continue;
        }
        let stored = bytes.get(at + FRAME_LEN..at + header.stored()).unwrap_or_default();
        raw.clear();
        raw.reserve_exact(header.raw_len as usize);
        if zstd.decompress_to_buffer(stored, &mut raw).ok() != Some(header.raw_len as usize) {
            return Ok(found);
        }
        for item in Records::new(&raw) {
            if let Ok((_, Record::RestorePoint { name: this, .. })) = item
                && this == name.as_bytes()
            {
                found = Some(header.end());
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
