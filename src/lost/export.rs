//! Laying out what a bundle holds: every file that was created or changed after the branch, as the log tells it.
//!
//! The tree is made below `files` in a new directory, the list of what is there is `list.txt` beside it. A file of which the log
//! has only stretches is as long as it was, with holes elsewhere, which another directory may fill. Nothing is ever made outside
//! of the new directory: names come from a checked tree, and no link is followed.

use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{self as rfs, AtFlags, FallocateFlags, Mode, OFlags, Timespec, Timestamps};
use rustix::io::Errno;
use serde::Serialize;

use super::changes::{self, Change, What, paths};
use super::walk::{self, Shelf, Tree, Walk};
use super::{Bundle, TREE, read};
use crate::catalog::{Catalog, Inode};
use crate::checkpoint;
use crate::disk;
use crate::error::{Error, ErrorKind, Result};
use crate::position::{FileId, Lsn};
use crate::record::{Kind, Record};
use crate::sys::{self, Root};

/// Most files held open at once.
const OPEN_MAX: usize = 128;
/// Bytes copied at once.
const COPY: usize = 256 << 10;
const FILES: &str = "files";
const LIST: &str = "list.txt";

/// A thing that was looked at.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Laid {
    /// What happened to it.
    #[serde(flatten)]
    pub change: Change,
    /// What is below `files`: `whole`, `extents`, `filled` (the rest is from another directory), `directory`, `symlink`; or why
    /// there is nothing.
    pub laid: String,
}

/// What was laid out.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Exported {
    /// The bundle.
    pub bundle: Bundle,
    /// The directory of the files.
    pub files: PathBuf,
    /// Everything in the bundle, in the order of the paths.
    pub changes: Vec<Laid>,
    /// Bytes of content that the log had.
    pub bytes: u64,
}

/// Lays out the bundle in the directory `bundle` below `out`, which is new or empty. What the log has only stretches of gets the rest
/// from the file of its path in `over`.
///
/// # Errors
/// `out` holds something, the bundle can't be read, or its tree is not known.
pub fn export(bundle: &Path, out: &Path, over: Option<&Path>) -> Result<Exported> {
    let told = read(bundle)?.ok_or_else(|| {
        let text = format!(
            "'{}' is no bundle: it has no bundle.json; `towline log dump` reads the log that may be in it",
            bundle.display()
        );
        Error::new(ErrorKind::Missing, text)
    })?;
    let (system, timeline, base, end) = told.span().ok_or_else(|| {
        Error::new(ErrorKind::Corrupt, format!("'{}': its positions are no positions", bundle.display()))
    })?;
    let shelf = Shelf { dir: bundle, system, timeline };
    let tree = tree_of(bundle, &told)?;
    let over = over.map(|dir| Root::open(dir).map_err(|e| Error::io("open", dir, e))).transpose()?;
    let walked = walk::walk(shelf, (base, end), tree)?;
    let Some(after) = &walked.after else { return Err(no_tree(bundle)) };
    let files = fresh(out)?;
    let root = Root::open(&files).map_err(|e| Error::io("open", &files, e))?;
    let mut layout = Layout {
        root: &root,
        after,
        over: over.as_ref(),
        open: HashMap::new(),
        laid: HashMap::new(),
        bytes: 0,
    };
    let list = changes::changes(&walked);
    layout.make(&walked, &list)?;
    layout.contents(shelf, (base, end))?;
    layout.dress(&list)?;
    let changes: Vec<Laid> = list
        .into_iter()
        .map(|change| {
            let laid = layout.laid.get(&change.id).filter(|_| !change.what.contains(&What::Deleted));
            Laid { laid: laid.cloned().unwrap_or_else(|| "-".to_owned()), change }
        })
        .collect();
    let exported = Exported { bundle: told, bytes: layout.bytes, changes, files: files.clone() };
    disk::write_atomic(out, LIST, text(&exported).as_bytes())?;
    let dir = root.open_dir(b"").map_err(|e| Error::io("open", &files, e))?;
    rfs::syncfs(&dir).map_err(|e| Error::io("sync", &files, e))?;
    Ok(exported)
}

fn no_tree(bundle: &Path) -> Error {
    let text = format!(
        "what the files in '{}' were called is not known; `towline log dump` shows what the log has by their numbers",
        bundle.display()
    );
    Error::new(ErrorKind::Missing, text)
}

fn tree_of(bundle: &Path, told: &Bundle) -> Result<Tree> {
    match told.tree.as_str() {
        "before" => Ok(Tree::Before(checkpoint::load(&bundle.join(TREE))?)),
        "within" => Ok(Tree::Within(checkpoint::load(&bundle.join(TREE))?)),
        _ => Err(no_tree(bundle)),
    }
}

/// Makes the directory of the files in `out`, which is new or empty.
fn fresh(out: &Path) -> Result<PathBuf> {
    if std::fs::read_dir(out).is_ok_and(|mut entries| entries.next().is_some()) {
        let text = format!("'{}' holds something already; name a new or an empty directory", out.display());
        return Err(Error::new(ErrorKind::Refused, text));
    }
    disk::create_dir_durable(out)?;
    let files = out.join(FILES);
    disk::create_subdir_durable(&files)?;
    Ok(files)
}

struct Layout<'a> {
    root: &'a Root,
    after: &'a Catalog,
    over: Option<&'a Root>,
    /// Files that are written now.
    open: HashMap<FileId, File>,
    /// What became of each.
    laid: HashMap<FileId, String>,
    bytes: u64,
}

/// The directory of a path, and the name in it.
fn parts(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|&b| b == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b"", path),
    }
}

impl Layout<'_> {
    fn error(&self, verb: &'static str, path: &[u8], e: impl Into<std::io::Error>) -> Error {
        Error::io(verb, self.root.join(path), e.into())
    }

    /// The directory `rel`, made with those above it.
    fn dir(&self, rel: &[u8]) -> Result<OwnedFd> {
        let mut at = self.root.open_dir_path(b"").map_err(|e| self.error("open", b"", e))?;
        for name in rel.split(|&b| b == b'/').filter(|n| !n.is_empty()) {
            match rfs::mkdirat(&at, name, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(e) => return Err(self.error("make directory", rel, e)),
            }
            at = sys::open_beneath(at.as_fd(), name, OFlags::PATH | OFlags::DIRECTORY, 0)
                .map_err(|e| self.error("open", rel, e))?;
        }
        Ok(at)
    }

    /// Makes everything that shall be there, files without what the log has.
    fn make(&mut self, walked: &Walk, list: &[Change]) -> Result<()> {
        for change in list {
            let wanted = change.what.iter().any(|w| matches!(w, What::Created | What::Changed));
            let Some(inode) = self.after.get(change.id).filter(|_| wanted) else { continue };
            let names = paths(self.after, change.id);
            let Some(path) = names.first() else { continue };
            let laid = match inode.kind {
                Kind::Dir => {
                    self.dir(path)?;
                    "directory".to_owned()
                }
                Kind::Symlink => {
                    let (dir, name) = parts(path);
                    rfs::symlinkat(inode.target.unwrap_or_default(), self.dir(dir)?, name)
                        .map_err(|e| self.error("make symlink", path, e))?;
                    "symlink".to_owned()
                }
                Kind::File => {
                    let known =
                        walked.touched.get(&change.id).map(|t| t.known(inode.size)).unwrap_or_default();
                    let laid = self.file(path, &inode, change.whole != Some(false), &known)?;
                    self.links(path, &names)?;
                    laid
                }
                other => format!("not laid out: it is a {}", format!("{other:?}").to_lowercase()),
            };
            self.laid.insert(change.id, laid);
        }
        Ok(())
    }

    /// Makes a file of its size; what the log does not have comes from another directory, if there is one.
    fn file(&self, path: &[u8], inode: &Inode<'_>, whole: bool, known: &[(u64, u64)]) -> Result<String> {
        let (dir, name) = parts(path);
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY;
        let fd = sys::open_beneath(self.dir(dir)?.as_fd(), name, flags, 0o600)
            .map_err(|e| self.error("create", path, e))?;
        rfs::ftruncate(&fd, inode.size).map_err(|e| self.error("extend", path, e))?;
        if whole {
            return Ok("whole".to_owned());
        }
        let told = changes::extents(known);
        let Some(over) = self.over else { return Ok(told) };
        let flags = OFlags::RDONLY | OFlags::NONBLOCK;
        let Ok(base) = over.open_beneath(path, flags, 0) else {
            return Ok(format!("{told}; '{}' is not there to fill the rest", over.join(path).display()));
        };
        let mut at = 0;
        for &(from, to) in known.iter().chain(&[(inode.size, inode.size)]) {
            self.copy((&base, &fd), (at, from), path)?;
            at = to;
        }
        Ok(format!("filled; {told} are the log's"))
    }

    fn copy(&self, (from, to): (&OwnedFd, &OwnedFd), (mut at, end): (u64, u64), path: &[u8]) -> Result<()> {
        let mut buf = vec![0; COPY];
        while at < end {
            let want = usize::try_from(end - at).unwrap_or(COPY).min(COPY);
            let got = sys::read_at(from, &mut buf[..want], at).map_err(|e| self.error("fill", path, e))?;
            if got == 0 {
                break;
            }
            sys::write_at(to, &buf[..got], at).map_err(|e| self.error("write", path, e))?;
            at += got as u64;
        }
        Ok(())
    }

    /// Gives a file its other names.
    fn links(&self, path: &[u8], names: &[Vec<u8>]) -> Result<()> {
        let (dir, name) = parts(path);
        let from = self.dir(dir)?;
        for other in names.iter().skip(1) {
            let (dir, link) = parts(other);
            rfs::linkat(&from, name, self.dir(dir)?, link, AtFlags::empty())
                .map_err(|e| self.error("link", other, e))?;
        }
        Ok(())
    }

    /// Writes what the log has, in its order.
    fn contents(&mut self, shelf: Shelf<'_>, span: (Lsn, Lsn)) -> Result<()> {
        let wanted: HashSet<FileId> = {
            let file = |id: &&FileId| self.after.get(**id).is_some_and(|i| i.kind == Kind::File);
            self.laid.keys().filter(file).copied().collect()
        };
        walk::change_sets(shelf, span, |record, _| {
            let id = match *record {
                Record::Write { id, .. } | Record::Truncate { id, .. } | Record::Punch { id, .. } => id,
                _ => return Ok(()),
            };
            if !wanted.contains(&id) {
                return Ok(());
            }
            let size = self.after.get(id).map_or(0, |i| i.size);
            let path = paths(self.after, id).into_iter().next().unwrap_or_default();
            self.write(id, &path, size, record)
        })?;
        self.open.clear();
        Ok(())
    }

    /// One record's content. The file has its last size all the while: what lies past it is of no use.
    fn write(&mut self, id: FileId, path: &[u8], size: u64, record: &Record<'_>) -> Result<()> {
        if !self.open.contains_key(&id) {
            if self.open.len() >= OPEN_MAX {
                self.open.clear();
            }
            let fd = self.root.open_beneath(path, OFlags::WRONLY, 0);
            self.open.insert(id, File::from(fd.map_err(|e| self.error("open", path, e))?));
        }
        let Some(file) = self.open.get(&id) else { return Ok(()) };
        let failed = |e: std::io::Error| Error::io("write", self.root.join(path), e);
        match *record {
            Record::Write { offset, data, .. } => {
                let room = usize::try_from(size.saturating_sub(offset)).unwrap_or(usize::MAX);
                let data = &data[..data.len().min(room)];
                sys::write_at(file, data, offset).map_err(failed)?;
                self.bytes += data.len() as u64;
            }
            Record::Punch { offset, len, .. } => {
                zero(file, offset, (offset + len).min(size)).map_err(failed)?
            }
            Record::Truncate { size: to, .. } => zero(file, to, size).map_err(failed)?,
            _ => {}
        }
        Ok(())
    }

    /// Modes and times, when everything is there; the deepest first, so that directories keep theirs.
    fn dress(&self, list: &[Change]) -> Result<()> {
        for change in list.iter().rev().filter(|c| self.laid.contains_key(&c.id)) {
            let Some(inode) = self.after.get(change.id) else { continue };
            let Some(path) = paths(self.after, change.id).into_iter().next() else { continue };
            let flags = match inode.kind {
                Kind::File => OFlags::RDONLY,
                Kind::Dir => OFlags::RDONLY | OFlags::DIRECTORY,
                _ => continue,
            };
            let fd = self.root.open_beneath(&path, flags, 0).map_err(|e| self.error("open", &path, e))?;
            if sys::is_root() {
                let owner = (rfs::Uid::from_raw(inode.attrs.uid), rfs::Gid::from_raw(inode.attrs.gid));
                rfs::fchown(&fd, Some(owner.0), Some(owner.1))
                    .map_err(|e| self.error("give away", &path, e))?;
            }
            let mode = Mode::from_raw_mode(inode.attrs.mode & 0o777);
            rfs::fchmod(&fd, mode).map_err(|e| self.error("set the mode of", &path, e))?;
            let time = inode.attrs.mtime;
            let time = Timespec { tv_sec: time.sec, tv_nsec: time.nsec.into() };
            rfs::futimens(&fd, &Timestamps { last_access: time, last_modification: time })
                .map_err(|e| self.error("set the time of", &path, e))?;
        }
        Ok(())
    }
}

/// Makes a stretch zero, where there is something.
fn zero(file: &File, from: u64, to: u64) -> std::io::Result<()> {
    if from >= to {
        return Ok(());
    }
    match rfs::fallocate(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, from, to - from) {
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => {
            let (zeros, mut at) = (vec![0_u8; COPY], from);
            while at < to {
                let n = usize::try_from(to - at).unwrap_or(COPY).min(COPY);
                sys::write_at(file, &zeros[..n], at)?;
                at += n as u64;
            }
            Ok(())
        }
        other => Ok(other?),
    }
}

fn text(exported: &Exported) -> String {
    let mut text = "# laid out\twhat\tpath\n".to_owned();
    for laid in &exported.changes {
        let what: Vec<String> = laid.change.what.iter().map(|w| format!("{w:?}").to_lowercase()).collect();
        // Writing to a text can't fail.
        let _ = writeln!(text, "{}\t{}\t{}", laid.laid, what.join("+"), laid.change.path);
    }
    text
}
