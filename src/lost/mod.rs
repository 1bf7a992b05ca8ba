//! Changes that were left behind: when another node leads on a line that this node's log went past, the log after the branch is
//! kept in a *bundle*, with what it changed, so that nobody loses a write without being told.
//!
//! A bundle is a directory `lost/N` of the state directory, N counting up:
//!
//! | name | content |
//! | --- | --- |
//! | segments | the log from the segment on that the branch lies in, as it was stored: `towline log dump` reads it |
//! | `tree.catalog` | a checkpoint: the tree that the log begins from, or the nearest one that was known |
//! | `paths.txt` | what was changed, one line for each |
//! | `bundle.json` | where it comes from: see [`Bundle`]; it is written last, so a directory without it is half of one, or of an older program |
//!
//! Contents are laid out by [`export`].

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::checkpoint;
use crate::disk::{self, AtomicFile};
use crate::error::{Error, ErrorKind, Result};
use crate::failpoint;
use crate::history::History;
use crate::moment::Moment;
use crate::position::{Lsn, NodeId, SystemId, TimelineId};

mod changes;
mod export;
mod walk;

pub use changes::{Change, Counts, What};
pub use export::{Exported, Laid, export};
pub use walk::newest_until;
use walk::{Shelf, Tree};

/// File names in a bundle.
const BUNDLE: &str = "bundle.json";
const PATHS: &str = "paths.txt";
const TREE: &str = "tree.catalog";
/// Most bytes of `bundle.json`.
const BUNDLE_MAX: u64 = 64 << 10;
/// The version of the format.
const FORMAT: u32 = 1;

/// What `bundle.json` says. Positions and ids are as `status` prints them.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Bundle {
    /// Version of the format.
    pub format: u32,
    /// The system.
    pub system: String,
    /// The node that left it behind.
    pub node: String,
    /// Its name.
    pub name: String,
    /// The line that was left.
    pub timeline: u32,
    /// Its line id.
    pub line: String,
    /// The line that the node went to.
    pub to_timeline: u32,
    /// Its line id.
    pub to_line: String,
    /// The last position that both lines have.
    pub branch: String,
    /// The log is read from here on: the change set that the branch lies in begins here.
    pub base: String,
    /// Where the log ends.
    pub end: String,
    /// When this was put together.
    pub time: String,
    /// The node that leads, as it is named or reached.
    pub leader: String,
    /// Which tree is there: `before`, `within` or `none`.
    pub tree: String,
    /// How many changes there are.
    pub changes: Counts,
}

/// What is known of log that is left behind.
#[derive(Clone, Copy, Debug)]
pub struct Story<'a> {
    /// The node.
    pub node: NodeId,
    /// Its name.
    pub name: &'a str,
    /// The way that it was on.
    pub own: &'a History,
    /// The way that it goes to.
    pub to: &'a History,
    /// The last position that both have.
    pub branch: Lsn,
    /// Where its log ends.
    pub end: Lsn,
    /// The node that leads, as it is named or reached.
    pub leader: &'a str,
    /// When, ns since 1970.
    pub when: i64,
}

impl Story<'_> {
    fn shelf<'b>(&self, dir: &'b Path) -> Shelf<'b> {
        Shelf { dir, system: self.own.system(), timeline: self.own.timeline() }
    }
}

/// What the log after the branch changed, before anything is done about it.
pub struct Survey {
    base: Lsn,
    tree: Option<(crate::catalog::Catalog, &'static str)>,
    changes: Vec<Change>,
}

impl Survey {
    /// The first segment that is needed.
    #[must_use]
    pub fn first_segment(&self) -> crate::position::SegmentNo {
        Lsn(self.base.0.saturating_sub(1)).segment()
    }

    /// What was changed.
    #[must_use]
    pub fn changes(&self) -> &[Change] {
        &self.changes
    }

    /// How many of each.
    #[must_use]
    pub fn counts(&self) -> Counts {
        Counts::of(&self.changes)
    }
}

/// Reads the log in `log` after the branch. The checkpoints in `catalogs` say what the files are called.
///
/// # Errors
/// The log can't be read.
pub fn survey(story: &Story<'_>, log: &Path, catalogs: &Path) -> Result<Survey> {
    let shelf = story.shelf(log);
    let (base, tree) = walk::begin(shelf, catalogs, story.branch)?;
    let kept = match &tree {
        Tree::Before(c) => Some((c.clone(), "before")),
        Tree::Within(c) => Some((c.clone(), "within")),
        Tree::None => None,
    };
    let walked = walk::walk(shelf, (base, story.end), tree)?;
    Ok(Survey { base, tree: kept, changes: changes::changes(&walked) })
}

/// Writes beside the segments in `dir` what is known of them; `bundle.json` is last. Done again it is written anew.
///
/// # Errors
/// Why it can't be written.
pub fn describe(dir: &Path, story: &Story<'_>, survey: &Survey) -> Result<Bundle> {
    if let Some((tree, _)) = &survey.tree {
        let mut file = AtomicFile::create(dir, TREE)?;
        checkpoint::encode_snapshot(&tree.freeze()?, &mut file)?;
        file.commit()?;
    }
    let pass = |point| failpoint::pass(point).map_err(|e| Error::io("write", dir, e));
    pass("lost::tree")?;
    disk::write_atomic(dir, PATHS, changes::text(&survey.changes).as_bytes())?;
    let bundle = Bundle {
        format: FORMAT,
        system: story.own.system().to_string(),
        node: story.node.to_string(),
        name: story.name.to_owned(),
        timeline: story.own.timeline().0,
        line: story.own.line().to_string(),
        to_timeline: story.to.timeline().0,
        to_line: story.to.line().to_string(),
        branch: story.branch.to_string(),
        base: survey.base.to_string(),
        end: story.end.to_string(),
        time: Moment(story.when).to_string(),
        leader: story.leader.to_owned(),
        tree: survey.tree.as_ref().map_or("none", |(_, word)| *word).to_owned(),
        changes: survey.counts(),
    };
    let text = serde_json::to_string_pretty(&bundle).map_err(|e| Error::new(ErrorKind::Io, e.to_string()))?;
    pass("lost::paths")?;
    disk::write_atomic(dir, BUNDLE, format!("{text}\n").as_bytes())?;
    pass("lost::bundle")?;
    Ok(bundle)
}

/// What is in a directory of log that was put aside.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Listed {
    /// Its number.
    pub number: u64,
    /// Where it is.
    pub path: PathBuf,
    /// Bytes of its segments.
    pub log_bytes: u64,
    /// What it says of itself; none of an older program's, or when it can't be read.
    pub bundle: Option<Bundle>,
    /// Why that can't be read.
    pub problem: Option<String>,
}

/// Everything in `lost`, the directory of a state directory, in the order of the numbers.
///
/// # Errors
/// Why it can't be listed.
pub fn list(lost: &Path) -> Result<Vec<Listed>> {
    let entries = match fs::read_dir(lost) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(|e| Error::io("list", lost, e))?,
    };
    let mut out = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|e| Error::io("list", lost, e))?;
        let Some(number) = entry.file_name().to_str().and_then(|n| n.parse().ok()) else { continue };
        let path = entry.path();
        let (bundle, problem) = match read(&path) {
            Ok(bundle) => (bundle, None),
            Err(e) => (None, Some(e.to_string())),
        };
        out.push(Listed { number, log_bytes: log_bytes(&path), path, bundle, problem });
    }
    out.sort_by_key(|l| l.number);
    Ok(out)
}

fn log_bytes(dir: &Path) -> u64 {
    let files = fs::read_dir(dir).into_iter().flatten().flatten();
    let segments =
        files.filter(|f| f.file_name().to_str().is_some_and(|n| n.len() >= 24 && is_hex(&n[..24])));
    segments.filter_map(|f| f.metadata().ok()).map(|m| m.len()).sum()
}

fn is_hex(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// What a bundle says of itself; `None`: it says nothing.
///
/// # Errors
/// [`ErrorKind::Corrupt`] when it is not to be understood, [`ErrorKind::Refused`] when a newer program wrote it.
pub fn read(dir: &Path) -> Result<Option<Bundle>> {
    let path = dir.join(BUNDLE);
    let file = match File::open(&path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(|e| Error::io("open", &path, e))?,
    };
    let mut text = Vec::new();
    file.take(BUNDLE_MAX).read_to_end(&mut text).map_err(|e| Error::io("read", &path, e))?;
    let corrupt = |why: &dyn std::fmt::Display| {
        let text = format!("'{}' is no description of lost writes: {why}", path.display());
        Error::new(ErrorKind::Corrupt, text)
    };
    let bundle: Bundle = serde_json::from_slice(&text).map_err(|e| corrupt(&e))?;
    if bundle.format > FORMAT {
        let text =
            format!("'{}' has format {}; run the newer program that wrote it", path.display(), bundle.format);
        return Err(Error::new(ErrorKind::Refused, text));
    }
    Ok(Some(bundle))
}

impl Bundle {
    /// Where its log is read from, and to.
    fn span(&self) -> Option<(SystemId, TimelineId, Lsn, Lsn)> {
        let system = u64::from_str_radix(&self.system, 16).ok()?;
        Some((SystemId(system), TimelineId(self.timeline), self.base.parse().ok()?, self.end.parse().ok()?))
    }
}

/// Makes `to`, or makes it anew, with the segments of `log` from `first` on under their names: links where the file system has them,
/// copies otherwise. The files are on disk when this is done.
///
/// # Errors
/// Why that can't be made.
pub fn gather(log: &Path, first: crate::position::SegmentNo, timeline: TimelineId, to: &Path) -> Result<()> {
    if let Err(e) = fs::remove_dir_all(to)
        && e.kind() != io::ErrorKind::NotFound
    {
        return Err(Error::io("remove", to, e));
    }
    disk::create_subdir_durable(to)?;
    for name in crate::log::names(log, timeline, first)? {
        failpoint::pass("lost::gather").map_err(|e| Error::io("write", to, e))?;
        let (from, at) = (log.join(&name), to.join(&name));
        if fs::hard_link(&from, &at).is_err() {
            let mut source = File::open(&from).map_err(|e| Error::io("open", &from, e))?;
            let mut copy = AtomicFile::create(to, &name)?;
            io::copy(&mut source, &mut copy).map_err(|e| Error::io("write", &at, e))?;
            copy.flush().map_err(|e| Error::io("write", &at, e))?;
            copy.commit()?;
        }
    }
    disk::sync_dir(to)
}

/// The bundle in `lost` that tells of the same log as `other`.
///
/// # Errors
/// Why `lost` can't be listed.
pub fn find(lost: &Path, other: &Bundle) -> Result<Option<PathBuf>> {
    let same = |b: &Bundle| {
        let key = |b: &Bundle| (b.node.clone(), b.line.clone(), b.timeline, b.base.clone(), b.end.clone());
        key(b) == key(other)
    };
    Ok(list(lost)?.into_iter().find(|l| l.bundle.as_ref().is_some_and(same)).map(|l| l.path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::Beginning;

    const JSON: &str = r#"{
  "format": 1,
  "system": "0000000000000007",
  "node": "0000000000000005",
  "name": "old",
  "timeline": 1,
  "line": "0000000000000000",
  "to_timeline": 2,
  "to_line": "0000000000000003",
  "branch": "0/00000063",
  "base": "0/00000060",
  "end": "0/000000C8",
  "time": "1970-01-01T00:00:01Z",
  "leader": "b:7070",
  "tree": "none",
  "changes": {
    "created": 0,
    "changed": 0,
    "renamed": 0,
    "attributes": 0,
    "deleted": 0
  }
}
"#;

    #[test]
    fn a_bundle_is_what_its_description_says_and_half_of_one_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let own = History::first(SystemId(7));
        let to = own.child(Beginning::sample(Lsn(99), 3), TimelineId::FIRST).unwrap();
        let story = Story {
            node: NodeId(5),
            name: "old",
            own: &own,
            to: &to,
            branch: Lsn(99),
            end: Lsn(200),
            leader: "b:7070",
            when: 1_000_000_000,
        };
        let (one, two) = (dir.path().join("1"), dir.path().join("2"));
        for path in [&one, &two, &dir.path().join("making")] {
            fs::create_dir(path).unwrap();
        }
        fs::write(two.join("000000010000000000000001"), [0; 70]).unwrap();
        let survey = Survey { base: Lsn(96), tree: None, changes: Vec::new() };
        let bundle = describe(&one, &story, &survey).unwrap();
        assert_eq!(fs::read_to_string(one.join(BUNDLE)).unwrap(), JSON);
        assert_eq!(read(&one).unwrap(), Some(bundle.clone()));
        assert_eq!(bundle.span(), Some((SystemId(7), TimelineId(1), Lsn(96), Lsn(200))));
        let all = list(dir.path()).unwrap();
        let told = |l: &Listed| (l.number, l.bundle.is_some(), l.log_bytes, l.problem.is_some());
        assert_eq!(all.iter().map(told).collect::<Vec<_>>(), [(1, true, 0, false), (2, false, 70, false)]);
        assert_eq!(find(dir.path(), &bundle).unwrap(), Some(one.clone()));
        let other = Bundle { end: "0/000000C9".to_owned(), ..bundle };
        assert_eq!(find(dir.path(), &other).unwrap(), None);
        let refused = |dir: &Path| export(dir, &dir.join("out"), None).unwrap_err().to_string();
        assert!(refused(&two).contains("no bundle.json") && refused(&one).contains("is not known"));
        fs::write(two.join(BUNDLE), JSON.replace("\"format\": 1", "\"format\": 9")).unwrap();
        assert_eq!(read(&two).unwrap_err().kind(), ErrorKind::Refused);
        fs::write(two.join(BUNDLE), &JSON[..70]).unwrap();
        assert_eq!(read(&two).unwrap_err().kind(), ErrorKind::Corrupt);
        assert!(list(dir.path()).unwrap()[1].problem.is_some());
    }
}
