//! Looking at segment files offline: what `towline log verify` and `stat` print, and what `dump` reads.

use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use serde::Serialize;
use sha2::{Digest, Sha256};
use zstd::bulk::Decompressor;

use super::recover::{Kept, read_all};
use crate::error::{Error, ErrorKind, Result};
use crate::position::Lsn;
use crate::segment::{
    self, FRAME_LEN, Fault, FrameHeader, HEADER_LEN, Header, Item, Marks, Parser, Step, TRAILER_LEN, Trailer,
    flags,
};

/// How a segment's file ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Ending {
    /// With its trailer.
    Sealed,
    /// It is being written; all there is, is good.
    Open,
    /// It is being written, and the last write is incomplete. The next start cuts it off.
    Torn,
    /// It is damaged.
    Corrupt,
}

/// What is known of one file after reading all of it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[allow(missing_docs, reason = "the names say it")]
pub struct Report {
    pub file: PathBuf,
    pub system: String,
    pub timeline: u32,
    pub segment: u64,
    /// LSN of the first frame.
    pub start: String,
    /// LSN after the last good frame.
    pub end: String,
    pub frames: u64,
    pub records: u64,
    pub commits: u64,
    pub exact: u64,
    pub aborts: u64,
    /// Uncompressed bytes of the frames.
    pub raw_bytes: u64,
    /// Bytes of the file that are good.
    pub stored_bytes: u64,
    pub ending: Ending,
    /// Where and why the good part ends, when it is torn or corrupt.
    pub problem: Option<String>,
    #[serde(skip)]
    header: Option<Header>,
    #[serde(skip)]
    trailer: Option<Trailer>,
}

impl Report {
    /// LSN of the first frame and behind the last good one, when there is any.
    #[must_use]
    pub fn span(&self) -> Option<(Lsn, Lsn)> {
        Some((self.start.parse().ok()?, self.end.parse().ok()?))
    }

    /// Whether it has a trailer that is right: nothing of this segment follows.
    #[must_use]
    pub fn is_sealed(&self) -> bool {
        self.trailer.is_some()
    }

    /// Compares it with the segment before it. What is wrong then is noted in it.
    pub fn follows(&mut self, before: &Self) {
        // Whether a sound segment continues one that is damaged to its end can't be told.
        let blind = before.ending == Ending::Corrupt
            && before.trailer.is_none()
            && before.segment + 1 == self.segment;
        if self.problem.is_none()
            && !blind
            && let Some(problem) = misfit(before, self)
        {
            self.ending = Ending::Corrupt;
            self.problem = Some(problem);
        }
    }

    /// What a segment after this one has to carry on.
    pub(super) fn sealed_as(&self) -> Option<([u8; 32], Marks)> {
        self.trailer.as_ref().map(|t| (t.sha, t.marks))
    }
}

/// The segment files that `paths` mean: files as they are, of directories all segments in order (of
/// a state directory those of its log).
pub fn files(paths: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut out = Vec::new();
    for path in paths {
        let sealed = sealed_since(path);
        let path = sealed.as_ref().unwrap_or(path);
        let meta = fs::metadata(path).map_err(|e| Error::io("open", path, e))?;
        if !meta.is_dir() {
            regular(path, &meta)?;
            out.push(path.clone());
            continue;
        }
        let log = path.join("log");
        let dir = if log.is_dir() { &log } else { path };
        let mut found = Vec::new();
        for entry in fs::read_dir(dir).map_err(|e| Error::io("list", dir, e))? {
            let entry = entry.map_err(|e| Error::io("list", dir, e))?.path();
            if entry.file_name().is_some_and(|n| Kept::of(n.as_bytes()).is_some()) {
                // A running node may have given it another name meanwhile; reading it says so.
                if let Ok(meta) = fs::metadata(&entry) {
                    regular(&entry, &meta)?;
                }
                found.push(entry);
            }
        }
        if found.is_empty() {
            let text = format!(
                "there are no segments in '{}'; name segment files, a log directory or a state directory",
                dir.display()
            );
            return Err(Error::new(ErrorKind::Missing, text));
        }
        found.sort();
        out.append(&mut found);
    }
    Ok(out)
}

/// What is no file, like a pipe, might never end.
fn regular(path: &Path, meta: &fs::Metadata) -> Result<()> {
    if meta.is_file() {
        return Ok(());
    }
    let text = format!("'{}' is neither a regular file nor a directory", path.display());
    Err(Error::new(ErrorKind::Usage, text))
}

/// One thing met while reading a file.
pub(super) enum Seen<'a> {
    Header(&'a Header),
    Frame(&'a FrameHeader, &'a [u8]),
    Trailer(&'a Trailer),
}

struct Examination<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    report: Report,
    parser: Parser,
    zstd: Decompressor<'static>,
}

/// What a `.partial` of a running node became when it was sealed since somebody listed it.
fn sealed_since(path: &Path) -> Option<PathBuf> {
    let sealed = path.with_extension("");
    let gone = path.extension().is_some_and(|x| x == "partial") && !path.exists();
    (gone && sealed.exists()).then_some(sealed)
}

fn read_or_sealed(path: &Path) -> Result<(PathBuf, Vec<u8>)> {
    match (read_all(path), sealed_since(path)) {
        (Err(_), Some(sealed)) => read_all(&sealed).map(|bytes| (sealed, bytes)),
        (read, _) => read.map(|bytes| (path.to_owned(), bytes)),
    }
}

/// Reads and checks all of one file: structure, checksums, records, SHA-256.
pub(super) fn examine(path: &Path, each: impl FnMut(Seen<'_>) -> Result<()>) -> Result<Report> {
    let (path, bytes) = &read_or_sealed(path)?;
    examine_bytes(path, bytes, each)
}

/// Checks all of one segment's file: structure, checksums, records, SHA-256.
///
/// # Errors
/// It can't be read; what is wrong with it is in the report.
pub fn look(path: &Path) -> Result<Report> {
    examine(path, |_| Ok(()))
}

/// The same for bytes that stand for the file `path`.
///
/// # Errors
/// Decompression can't be set up.
pub fn look_at(path: &Path, bytes: &[u8]) -> Result<Report> {
    examine_bytes(path, bytes, |_| Ok(()))
}

fn examine_bytes(path: &Path, bytes: &[u8], mut each: impl FnMut(Seen<'_>) -> Result<()>) -> Result<Report> {
    let name = path.file_name().and_then(|n| Kept::of(n.as_bytes()));
    let name = name.map(|(segment, kept)| (kept.timeline, segment, !kept.sealed()));
    let head = bytes.get(..HEADER_LEN).unwrap_or(bytes);
    let zstd = Decompressor::new().map_err(Error::from)?;
    let mut report = Report {
        file: path.to_owned(),
        system: String::new(),
        timeline: name.map_or(0, |n| n.0.0),
        segment: name.map_or(0, |n| n.1.0),
        start: String::new(),
        end: String::new(),
        frames: 0,
        records: 0,
        commits: 0,
        exact: 0,
        aborts: 0,
        raw_bytes: 0,
        stored_bytes: 0,
        ending: Ending::Corrupt,
        problem: None,
        header: None,
        trailer: None,
    };
    let header = match Header::decode(head) {
        Ok(header) => header,
        Err(fault) => {
            let open = name.is_some_and(|n| n.2) && head.iter().all(|&b| b == 0);
            report.ending = if open { Ending::Open } else { Ending::Corrupt };
            report.problem = (!open).then(|| format!("byte 0: {fault}"));
            return Ok(report);
        }
    };
    let (timeline, number) = name.map_or((header.timeline, header.segment), |n| (n.0, n.1));
    report.system = header.system.to_string();
    report.start = header.start.to_string();
    let parser = Parser::new(header.system, timeline, number);
    let mut run = Examination { path, bytes, report, parser, zstd };
    let fault = run.read(&mut each)?;
    let partial = name.is_some_and(|n| n.2);
    Ok(run.finish(header, partial, fault))
}

impl Examination<'_> {
    fn at(&self) -> usize {
        usize::try_from(self.parser.offset()).unwrap_or(usize::MAX)
    }

    /// Reads items to the end; returns what is wrong there.
    fn read(&mut self, each: &mut impl FnMut(Seen<'_>) -> Result<()>) -> Result<Option<Fault>> {
        loop {
            let at = self.at();
            let rest = self.bytes.get(at..).unwrap_or(&[]);
            let before = self.parser.clone();
            match self.parser.next(rest) {
                Step::Item(Item::Header(h)) => {
                    self.report.header = Some(h);
                    each(Seen::Header(&h))?;
                }
                Step::Item(Item::Frame(f)) => match self.frame(&f, &rest[FRAME_LEN..f.stored()]) {
                    Ok(raw) => each(Seen::Frame(&f, &raw))?,
                    Err(fault) => {
                        self.parser = before;
                        return Ok(Some(fault));
                    }
                },
                Step::Item(Item::Trailer(t)) => {
                    let sha: [u8; 32] = Sha256::digest(&self.bytes[..at + TRAILER_LEN - t.sha.len()]).into();
                    if sha != t.sha {
                        self.parser = before;
                        return Ok(Some(Fault::Sha));
                    }
                    each(Seen::Trailer(&t))?;
                    self.report.trailer = Some(t);
                }
                Step::Zeros | Step::More(_) if rest.iter().all(|&b| b == 0) => return Ok(None),
                Step::Zeros => return Ok(Some(Fault::Magic)),
                Step::More(_) => return Ok(Some(Fault::NoTrailer)),
                Step::Bad(fault) => return Ok(Some(fault)),
            }
        }
    }

    /// Decompresses a frame and checks its records against its header.
    fn frame(&mut self, f: &FrameHeader, payload: &[u8]) -> std::result::Result<Vec<u8>, Fault> {
        let raw = self.zstd.decompress(payload, f.raw_len as usize).map_err(|_| Fault::Payload)?;
        if raw.len() != f.raw_len as usize {
            return Err(Fault::Payload);
        }
        let said = super::summarize(&raw, f.flags).map_err(|_| Fault::Summary("records in the frame"))?;
        if said.records != f.records || said.time != f.time {
            return Err(Fault::Summary("records in the frame"));
        }
        let r = &mut self.report;
        r.frames += 1;
        r.raw_bytes += u64::from(f.raw_len);
        r.exact += u64::from(f.flags & flags::EXACT != 0);
        r.aborts += u64::from(f.flags & flags::ABORT != 0);
        Ok(raw)
    }

    fn finish(self, header: Header, partial: bool, fault: Option<Fault>) -> Report {
        let mut report = self.report;
        let at = self.parser.offset();
        (report.timeline, report.segment) = (header.timeline.0, header.segment.0);
        report.end = self.parser.lsn().to_string();
        report.records = self.parser.records();
        report.commits = self.parser.commits();
        report.stored_bytes = at;
        let rest = usize::try_from(at).ok().and_then(|at| self.bytes.get(at..)).unwrap_or(&[]);
        let padded = self.parser.done() && !partial && !rest.is_empty();
        let fault = if padded { Some(Fault::AfterTrailer) } else { fault };
        report.ending = match fault {
            None if self.parser.done() => Ending::Sealed,
            None if partial => Ending::Open,
            None => Ending::Corrupt,
            Some(_) if !partial => Ending::Corrupt,
            Some(f) if f.foreign() => Ending::Corrupt,
            Some(_) => {
                let (system, timeline) = (header.system, header.timeline);
                match segment::durable_after(rest, system, timeline, header.segment, at) {
                    Some(_) => Ending::Corrupt,
                    None => Ending::Torn,
                }
            }
        };
        if matches!(report.ending, Ending::Torn | Ending::Corrupt) {
            let fault = fault.unwrap_or(Fault::NoTrailer);
            report.problem = Some(format!("byte {at}: {fault}"));
            tracing::debug!(file = %self.path.display(), offset = at, %fault, "a segment does not end well");
        }
        report
    }
}

/// Why `next`, the next file that was named, does not follow `before` in one log; `None`: it does,
/// or they are of different logs.
pub(super) fn misfit(before: &Report, next: &Report) -> Option<String> {
    let after = before.timeline <= next.timeline && before.segment < next.segment;
    // Of two timelines only those are known to belong together that follow each other.
    if before.system != next.system
        || !after
        || (before.timeline != next.timeline && before.segment + 1 < next.segment)
    {
        return None;
    }
    if before.segment + 1 < next.segment {
        return Some(format!(
            "segments {:X} to {:X} are missing before it",
            before.segment + 1,
            next.segment - 1
        ));
    }
    let Some((t, h)) = before.trailer.as_ref().zip(next.header.as_ref()) else {
        return Some("the segment before it was never sealed".to_owned());
    };
    let chained = h.prev_sha == t.sha && h.marks == t.marks;
    (!chained).then(|| format!("byte 0: {}", Fault::Chain))
}

pub(super) fn line(out: &mut dyn Write, text: &str) -> Result<()> {
    writeln!(out, "{text}").map_err(|e| Error::from(e).wrap("cannot write the output"))
}

fn json(out: &mut dyn Write, report: &Report) -> Result<()> {
    let text = serde_json::to_string(report).map_err(|e| Error::new(ErrorKind::Io, e.to_string()))?;
    line(out, &text)
}

/// Checks files completely and prints one line for each (with `as_json` one JSON object).
///
/// # Errors
/// `Corrupt` after all lines when a file is damaged, a segment between two is missing, or two do not
/// belong together. A torn end is reported but legal in the newest segment.
pub fn verify(paths: &[PathBuf], as_json: bool, out: &mut dyn Write) -> Result<()> {
    let (mut bad, mut before): (u64, Option<Report>) = (0, None);
    for path in paths {
        let mut report = examine(path, |_| Ok(()))?;
        if let Some(before) = &before {
            report.follows(before);
        }
        bad += u64::from(report.ending == Ending::Corrupt);
        if as_json {
            json(out, &report)?;
        } else {
            let word = match report.ending {
                Ending::Sealed => "ok",
                Ending::Open => "ok, open",
                Ending::Torn => "ok, torn end",
                Ending::Corrupt => "CORRUPT",
            };
            let why = report.problem.as_deref().map_or(String::new(), |p| format!(" ({p})"));
            let r = &report;
            let span = if r.start.is_empty() {
                String::new()
            } else {
                format!(", {} to {}, {} records", r.start, r.end, r.records)
            };
            let text = format!("{}: {word}{why}{span}", r.file.display());
            line(out, &text)?;
        }
        before = Some(report);
    }
    verdict(bad, paths.len())
}

fn verdict(bad: u64, all: usize) -> Result<()> {
    if bad == 0 {
        return Ok(());
    }
    let message = format!("{bad} of {all} segments damaged; fetch good copies from another node");
    Err(Error::new(ErrorKind::Corrupt, message))
}

/// Prints the figures of each file: a table, or with `as_json` one JSON object a line.
///
/// # Errors
/// `Corrupt` after all lines when a file is damaged.
pub fn stat(paths: &[PathBuf], as_json: bool, out: &mut dyn Write) -> Result<()> {
    if !as_json {
        let head = ["segment", "start", "end", "frames", "records", "commits", "exact", "raw", "stored"];
        let [a, b, c, d, e, f, g, h, i] = head;
        line(out, &format!("{a:24} {b:>17} {c:>17} {d:>8} {e:>8} {f:>8} {g:>8} {h:>10} {i:>10}  end"))?;
    }
    let mut bad = 0;
    for path in paths {
        let r = examine(path, |_| Ok(()))?;
        bad += u64::from(r.ending == Ending::Corrupt);
        if as_json {
            json(out, &r)?;
            continue;
        }
        let name = format!("{:08X}{:016X}", r.timeline, r.segment);
        let ending = format!("{:?}", r.ending).to_lowercase();
        line(
            out,
            &format!(
                "{name:24} {:>17} {:>17} {:>8} {:>8} {:>8} {:>8} {:>10} {:>10}  {ending}",
                r.start, r.end, r.frames, r.records, r.commits, r.exact, r.raw_bytes, r.stored_bytes
            ),
        )?;
    }
    verdict(bad, paths.len())
}
