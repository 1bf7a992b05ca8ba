//! The manifest of a base backup: what it is, and every file of it with size and SHA-256. Pure: text to value and back.
//!
//! A backup is a directory, or the same names below one prefix of an archive or in one tar stream. [`NAME`] is made last:
//! where there is none, there is no backup. It is JSON, one object, its keys in this order:
//!
//! | key | value |
//! | --- | --- |
//! | `towline_backup` | version of the format, 1 |
//! | `form` | `tree` ([`DATA`] holds the files as of `end`), `tar` ([`BASE`] holds them as they were read, log leads to `end`) or `packs` ([`crate::pack`], the same) |
//! | `label` | name of the backup: 1 to [`LABEL_MAX`] letters, digits and `. _ - +`, the first a letter or a digit |
//! | `system` | system id, as `towline id` prints it |
//! | `timeline` | that of `end` |
//! | `start`, `end` | LSNs: files were read from `start` on; replayed up to `end` they are a tree that was |
//! | `start_time`, `end_time` | times of those commits by the leader's clock, RFC 3339 |
//! | `exact` | whether `end` is an exact cut |
//! | `created`, `program` | when the backup was finished, and by which version of the program |
//! | `base` | `null`, or of an incremental backup what it stands on: `{"label", "end", "manifest_sha256"}` |
//! | `log` | `[{"timeline", "start", "end"}]`: log in the backup, without a hole, `start` to `end` at least; none of a tree |
//! | `parts` | `[{"name", "size", "sha256"}]`: every other file except those below `data` and `base` |
//! | `files` | `[{"path", "id", "size", "mtime", "sha256"}]`: regular files below `data` or `base` as they are stored; none of packs |
//! | `manifest_sha256` | SHA-256 of every byte before the line of this key |
//!
//! Each element of an array is a line, and so is the last key, which ends with `}` and a line feed. A path is relative; one
//! that is not UTF-8 is `"path_hex"` instead. `mtime` is a text: seconds since 1970, a dot, nine digits. SHA-256 are lower
//! case hexadecimal. Names of parts are [`CATALOG`], [`BLOCKS`], of a timeline above the first the file of its
//! [`history`], `log/` with the name of a segment (`.partial` where it was not sealed), and `pack-00001` and so on without a
//! hole. Sets made by older versions have no history.
//!
//! Reading bounds every length, refuses whatever is not written here, and names line and rule.

use std::collections::HashMap;
use std::fmt;
use std::io::{self, Write};

use sha2::{Digest as _, Sha256};

use crate::error::{self, ErrorKind};
use crate::history;
use crate::position::{FileId, Lsn, SystemId, TimelineId};
use crate::record::{NAME_MAX, Time};
use crate::segment;

pub mod chain;
mod read;

pub use read::seal;

/// Name of the manifest.
pub const NAME: &str = "manifest.json";
/// Name of the checkpoint of the tree.
pub const CATALOG: &str = "catalog";
/// Name of the file of block hashes.
pub const BLOCKS: &str = "blocks";
/// Directory of the segments.
pub const LOG: &str = "log";
/// Directory of the files of form tree.
pub const DATA: &str = "data";
/// Directory of the files of form tar.
pub const BASE: &str = "base";
/// The format.
pub const VERSION: u32 = 1;
/// Most bytes of a manifest: some 20 million files.
pub const BYTES_MAX: u64 = 4 << 30;
/// Most bytes of a label.
pub const LABEL_MAX: usize = 64;
/// Most bytes of a path.
pub const PATH_MAX: usize = 64 << 10;
/// Most parts: more than 200 TB of packs and log.
pub const PARTS_MAX: usize = 1 << 20;
/// Most ranges of log.
pub const RANGES_MAX: usize = 1 << 16;

/// A SHA-256.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Sha(pub [u8; 32]);

impl fmt::Display for Sha {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for Sha {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// How a backup holds the data.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Form {
    /// Files below [`DATA`], replayed to the end.
    Tree,
    /// Files below [`BASE`] as they were read, to be replayed.
    Tar,
    /// Packs, to be laid out and replayed.
    Packs,
}

impl Form {
    /// Every form.
    pub const ALL: [Self; 3] = [Self::Tree, Self::Tar, Self::Packs];

    /// As the manifest writes it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Tree => "tree",
            Self::Tar => "tar",
            Self::Packs => "packs",
        }
    }

    /// The directory below which its files are, of a form that has one.
    #[must_use]
    pub fn dir(self) -> Option<&'static str> {
        match self {
            Self::Tree => Some(DATA),
            Self::Tar => Some(BASE),
            Self::Packs => None,
        }
    }
}

/// What an incremental backup stands on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Base {
    /// Its label.
    pub label: String,
    /// Its end: where the changes begin.
    pub end: Lsn,
    /// What the last line of its manifest says.
    pub manifest_sha256: Sha,
}

/// A range of log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "they say what they are")]
pub struct Range {
    pub timeline: TimelineId,
    pub start: Lsn,
    pub end: Lsn,
}

/// A file of the backup that holds none of the data as it is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Part {
    /// Relative to the backup.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// Of its bytes.
    pub sha256: Sha,
}

/// A regular file below `data` or `base`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct File {
    /// Relative to that directory.
    pub path: Vec<u8>,
    /// Its id in the catalog; names of one file share it.
    pub id: FileId,
    /// Bytes stored.
    pub size: u64,
    /// Its modification time as stored.
    pub mtime: Time,
    /// Of the bytes stored.
    pub sha256: Sha,
}

/// What a backup is, as the table of the module describes it.
#[derive(Clone, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "the fields are described in the table of the module")]
pub struct Manifest {
    pub form: Form,
    pub label: String,
    pub system: SystemId,
    pub timeline: TimelineId,
    pub start: Lsn,
    pub end: Lsn,
    /// Nanoseconds since 1970.
    pub start_time: i64,
    /// Nanoseconds since 1970.
    pub end_time: i64,
    pub exact: bool,
    /// Nanoseconds since 1970.
    pub created: i64,
    pub program: String,
    pub base: Option<Base>,
    pub log: Vec<Range>,
    pub parts: Vec<Part>,
    pub files: Vec<File>,
}

/// Why a text is no manifest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A line breaks a rule.
    #[error("line {line}: {rule}")]
    Line {
        /// From 1.
        line: usize,
        /// What is wrong there.
        rule: String,
    },
    /// It is of a format that this program does not know.
    #[error("line 1: its format is version {found}, this program knows {VERSION}")]
    Version {
        /// What it says.
        found: u64,
    },
    /// The bytes are not those that were written.
    #[error(
        "line {line}: manifest_sha256 is {stored}, that of the lines before is {computed}: it was changed after it was written"
    )]
    Checksum {
        /// The last one.
        line: usize,
        /// What it says.
        stored: Sha,
        /// What its bytes have.
        computed: Sha,
    },
}

impl From<Error> for error::Error {
    fn from(e: Error) -> Self {
        match e {
            Error::Version { .. } => {
                Self::new(ErrorKind::Refused, format!("{e}; run the newer program that wrote it"))
            }
            _ => Self::new(ErrorKind::Corrupt, e.to_string()),
        }
    }
}

/// Name of the pack with this number, from 1.
#[must_use]
pub fn pack_name(number: u64) -> String {
    format!("pack-{number:05}")
}

/// What is wrong with a label, if anything is.
///
/// # Errors
/// The rule that it breaks.
pub fn check_label(label: &str) -> Result<(), String> {
    let fine = |b: u8| b.is_ascii_alphanumeric() || b"._-+".contains(&b);
    let first = label.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
    if first && label.len() <= LABEL_MAX && label.bytes().all(fine) {
        return Ok(());
    }
    Err(format!(
        "{label:?} is no label: 1 to {LABEL_MAX} letters, digits and any of . _ - +, the first a letter or a digit"
    ))
}

/// What is wrong with the path of a file, if anything is.
fn check_path(path: &[u8]) -> Result<(), String> {
    let shown = || path.get(..path.len().min(200)).unwrap_or_default().escape_ascii();
    if path.len() > PATH_MAX {
        return Err(format!("path '{}'... has {} bytes, more than {PATH_MAX}", shown(), path.len()));
    }
    for name in path.split(|b| *b == b'/') {
        let rule = match name {
            b"" if path.first() == Some(&b'/') => "is not relative",
            b"" => "has an empty name",
            b"." | b".." => "has a name '.' or '..'",
            _ if name.contains(&0) => "has a NUL",
            _ if name.len() > NAME_MAX => "has a name of more than 255 bytes",
            _ => continue,
        };
        return Err(format!("path '{}' {rule}", shown()));
    }
    Ok(())
}

fn check_size(size: u64) -> Result<(), String> {
    let limit = i64::MAX as u64;
    if size <= limit { Ok(()) } else { Err(format!("size {size} is more than a file has")) }
}

/// The rules between fields, in the order of the fields.
#[derive(Debug)]
struct Rules {
    form: Form,
    timeline: TimelineId,
    /// Names below `data` or `base`: true of a directory.
    names: HashMap<Vec<u8>, bool>,
    contents: HashMap<FileId, (u64, Sha)>,
    parts: HashMap<String, ()>,
    packs: u64,
    log: Vec<Range>,
}

impl Rules {
    fn new(form: Form, timeline: TimelineId) -> Self {
        let (names, contents, parts, log) = Default::default();
        Self { form, timeline, names, contents, parts, packs: 0, log }
    }

    fn span(start: Lsn, end: Lsn) -> Result<(), String> {
        if start <= end { Ok(()) } else { Err(format!("end {end} is before start {start}")) }
    }

    fn base(&self, base: Option<&Base>, end: Lsn) -> Result<(), String> {
        let Some(base) = base else { return Ok(()) };
        check_label(&base.label)?;
        if self.form != Form::Packs {
            let form = self.form.word();
            return Err(format!(
                "base: a backup of form {form} stands on none; an incremental one is of form packs"
            ));
        }
        if base.end > end {
            return Err(format!("base: its end {} is behind the end {end} of this backup", base.end));
        }
        Ok(())
    }

    fn log(&mut self, ranges: &[Range], start: Lsn, end: Lsn) -> Result<(), String> {
        let timeline = self.timeline;
        if self.form == Form::Tree {
            let none = ranges.is_empty();
            return if none { Ok(()) } else { Err("log: a backup of form tree has none".to_owned()) };
        }
        for r in ranges {
            if r.start >= r.end || r.timeline.0 == 0 {
                return Err(format!("log: {} to {} on timeline {} is no range", r.start, r.end, r.timeline));
            }
        }
        for pair in ranges.windows(2) {
            let [a, b] = pair else { continue };
            if a.end != b.start || a.timeline >= b.timeline {
                return Err(format!(
                    "log: {} on timeline {} is not followed by {} on timeline {}",
                    a.end, a.timeline, b.start, b.timeline
                ));
            }
        }
        match (ranges.first(), ranges.last()) {
            (Some(first), Some(last)) if first.start <= start && last.end >= end => {
                if last.timeline != timeline {
                    return Err(format!(
                        "log: it ends on timeline {}, the backup on {timeline}",
                        last.timeline
                    ));
                }
            }
            (None, None) if start == end => {}
            _ => return Err(format!("log: it does not lead from {start} to {end}")),
        }
        ranges.clone_into(&mut self.log);
        Ok(())
    }

    fn part(&mut self, part: &Part) -> Result<(), String> {
        let name = &part.name;
        check_size(part.size)?;
        let known = match name.as_str() {
            CATALOG | BLOCKS => true,
            _ if let Some(of) = history::parse_name(name.as_bytes()) => {
                if of != self.timeline || of == TimelineId::FIRST {
                    let timeline = self.timeline;
                    return Err(format!("{name:?} is no history of a backup on timeline {timeline}"));
                }
                true
            }
            _ if name.starts_with("pack-") => {
                self.packs += 1;
                let want = pack_name(self.packs);
                if self.form == Form::Packs && *name != want {
                    return Err(format!("{name:?} stands where {want} is next"));
                }
                self.form == Form::Packs
            }
            _ => {
                let segment = name.strip_prefix("log/").and_then(|n| segment::parse_name(n.as_bytes()));
                let held = |(t, s, _): (TimelineId, crate::position::SegmentNo, bool)| {
                    self.log.iter().any(|r| r.timeline == t && s.start() < r.end && r.start < s.end())
                };
                match segment {
                    Some(segment) if self.form != Form::Tree && !held(segment) => {
                        return Err(format!("{name:?} holds nothing of the ranges of log"));
                    }
                    Some(_) => self.form != Form::Tree,
                    None => false,
                }
            }
        };
        if !known {
            return Err(format!("{name:?} is no part of a backup of form {}", self.form.word()));
        }
        if self.parts.len() >= PARTS_MAX {
            return Err(format!("there are more than {PARTS_MAX}"));
        }
        match self.parts.insert(name.clone(), ()) {
            None => Ok(()),
            Some(()) => Err(format!("{name:?} is there twice")),
        }
    }

    /// After the last part.
    fn parts_end(&self) -> Result<(), String> {
        match [CATALOG, BLOCKS].into_iter().find(|n| !self.parts.contains_key(*n)) {
            Some(name) => Err(format!("parts: there is no {name:?}")),
            None => Ok(()),
        }
    }

    fn file(&mut self, file: &File) -> Result<(), String> {
        if self.form == Form::Packs {
            return Err("a backup of form packs has none".to_owned());
        }
        check_path(&file.path)?;
        check_size(file.size)?;
        let shown = || file.path.escape_ascii();
        if file.id.0 <= FileId::ROOT.0 {
            return Err(format!("'{}' has the id {}, which no file has", shown(), file.id.0));
        }
        let slashes = (0..file.path.len()).filter(|i| file.path.get(*i) == Some(&b'/'));
        for dir in slashes.filter_map(|i| file.path.get(..i)) {
            match self.names.get(dir) {
                Some(true) => {}
                Some(false) => return Err(format!("'{}' is below a file", shown())),
                None => drop(self.names.insert(dir.to_vec(), true)),
            }
        }
        match self.names.insert(file.path.clone(), false) {
            None => {}
            Some(false) => return Err(format!("'{}' is there twice", shown())),
            Some(true) => return Err(format!("'{}' is a directory of another file", shown())),
        }
        let content = (file.size, file.sha256);
        if *self.contents.entry(file.id).or_insert(content) != content {
            return Err(format!("'{}' is another name of file {}, with other content", shown(), file.id));
        }
        Ok(())
    }
}

/// Passes on what is written, and hashes it.
struct Hashed<W> {
    out: W,
    sum: Sha256,
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.out.write(bytes)?;
        self.sum.update(bytes.get(..n).unwrap_or_default());
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

impl Manifest {
    /// Reads a manifest.
    ///
    /// # Errors
    /// In this order: it is of another version, its checksum is wrong, a line breaks a rule.
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        seal(bytes)?;
        read::parse(bytes)
    }

    /// Reads one whose checksum may be wrong: for whoever wants to know what else is.
    ///
    /// # Errors
    /// It is of another version, or a line breaks a rule.
    pub fn parse_unsealed(bytes: &[u8]) -> Result<Self, Error> {
        read::version(bytes)?;
        read::parse(bytes)
    }

    /// The part that holds the history of its timeline; `None`: it has none.
    #[must_use]
    pub fn history_part(&self) -> Option<&Part> {
        self.parts.iter().find(|p| history::parse_name(p.name.as_bytes()).is_some())
    }

    /// Why this is not the history that belongs to the backup, if it is not.
    ///
    /// # Errors
    /// In words.
    pub fn fits(&self, history: &history::History) -> Result<(), String> {
        if (history.system(), history.timeline()) != (self.system, self.timeline) {
            return Err(format!(
                "it is the history of timeline {} of system {}, and the backup is of timeline {} of system {}",
                history.timeline(),
                history.system(),
                self.timeline,
                self.system
            ));
        }
        match history.branches().last().filter(|b| b.at > self.end) {
            None => Ok(()),
            Some(b) => Err(format!(
                "by it timeline {} began at {}, and the backup ends before that, at {}",
                b.timeline, b.at, self.end
            )),
        }
    }

    /// Every rule that reading checks.
    ///
    /// # Errors
    /// The first rule that is broken.
    pub fn check(&self) -> Result<(), String> {
        check_label(&self.label)?;
        read::check_program(&self.program)?;
        if self.system == SystemId::NONE || self.timeline.0 == 0 {
            return Err("a backup has a system and a timeline".to_owned());
        }
        Rules::span(self.start, self.end)?;
        let mut rules = Rules::new(self.form, self.timeline);
        rules.base(self.base.as_ref(), self.end)?;
        rules.log(&self.log, self.start, self.end)?;
        self.parts.iter().try_for_each(|p| rules.part(p)).map_err(|e| format!("parts: {e}"))?;
        rules.parts_end()?;
        self.files.iter().try_for_each(|f| rules.file(f)).map_err(|e| format!("files: {e}"))
    }

    /// Writes it, and returns what its last line says.
    ///
    /// # Errors
    /// Those of `out`; and `InvalidInput` for one that could not be read again.
    pub fn write(&self, out: &mut impl Write) -> io::Result<Sha> {
        self.check().map_err(|rule| io::Error::new(io::ErrorKind::InvalidInput, rule))?;
        let mut out = Hashed { out, sum: Sha256::new() };
        self.write_lines(&mut out)?;
        let sum = Sha(out.sum.finalize().into());
        writeln!(out.out, "\"manifest_sha256\": \"{sum}\"}}")?;
        Ok(sum)
    }

    fn write_lines(&self, out: &mut impl Write) -> io::Result<()> {
        use crate::moment::Moment;
        writeln!(out, "{{ \"towline_backup\": {VERSION},")?;
        writeln!(out, "\"form\": \"{}\",", self.form.word())?;
        writeln!(out, "\"label\": {},", quoted(&self.label))?;
        writeln!(out, "\"system\": \"{}\",", self.system)?;
        writeln!(out, "\"timeline\": {},", self.timeline)?;
        writeln!(out, "\"start\": \"{}\",", self.start)?;
        writeln!(out, "\"end\": \"{}\",", self.end)?;
        writeln!(out, "\"start_time\": \"{}\",", Moment(self.start_time))?;
        writeln!(out, "\"end_time\": \"{}\",", Moment(self.end_time))?;
        writeln!(out, "\"exact\": {},", self.exact)?;
        writeln!(out, "\"created\": \"{}\",", Moment(self.created))?;
        writeln!(out, "\"program\": {},", quoted(&self.program))?;
        match &self.base {
            None => writeln!(out, "\"base\": null,")?,
            Some(b) => writeln!(
                out,
                "\"base\": {{\"label\": {}, \"end\": \"{}\", \"manifest_sha256\": \"{}\"}},",
                quoted(&b.label),
                b.end,
                b.manifest_sha256
            )?,
        }
        array(out, "log", &self.log, |out, r| {
            let Range { timeline, start, end } = r;
            write!(out, "{{\"timeline\": {timeline}, \"start\": \"{start}\", \"end\": \"{end}\"}}")
        })?;
        array(out, "parts", &self.parts, |out, p| {
            let Part { name, size, sha256 } = p;
            write!(out, "{{\"name\": {}, \"size\": {size}, \"sha256\": \"{sha256}\"}}", quoted(name))
        })?;
        array(out, "files", &self.files, |out, f| {
            match std::str::from_utf8(&f.path) {
                Ok(path) => write!(out, "{{\"path\": {}", quoted(path))?,
                Err(_) => {
                    out.write_all(b"{\"path_hex\": \"")?;
                    f.path.iter().try_for_each(|b| write!(out, "{b:02x}"))?;
                    out.write_all(b"\"")?;
                }
            }
            write!(
                out,
                ", \"id\": {}, \"size\": {}, \"mtime\": \"{}.{:09}\", \"sha256\": \"{}\"}}",
                f.id.0, f.size, f.mtime.sec, f.mtime.nsec, f.sha256
            )
        })
    }
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// An array, an element a line.
fn array<T, W: Write>(
    out: &mut W,
    key: &str,
    items: &[T],
    mut one: impl FnMut(&mut W, &T) -> io::Result<()>,
) -> io::Result<()> {
    write!(out, "\"{key}\": [")?;
    for (i, item) in items.iter().enumerate() {
        out.write_all(if i == 0 { b"\n" } else { b",\n" })?;
        one(out, item)?;
    }
    out.write_all(if items.is_empty() { b"],\n" } else { b"\n],\n" })
}

#[cfg(test)]
mod tests;
