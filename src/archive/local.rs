//! An archive that is a directory. Objects are written aside, in `tmp/` of the same directory, made durable, and then
//! given their names, so that what has a name is whole whatever happens.

use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::store::{Each, Entry, Put, Store, Upload};
use crate::disk::{self, SyncFile};
use crate::error::{Error, ErrorKind, Result};
use crate::{failpoint, sys};

/// Where objects are written until they have a name.
const TMP: &str = "tmp";
/// What a killed writer left there goes after this time.
const LEFT_AFTER: Duration = Duration::from_secs(24 * 3600);
/// Most objects of one directory.
const DIR_MAX: usize = 4 << 20;
/// Deepest directory.
const DEPTH_MAX: usize = 8;

/// A directory of objects.
#[derive(Debug)]
pub(super) struct Dir {
    root: PathBuf,
}

impl Dir {
    /// The directory must be there: one that is not may be yet to be mounted.
    pub(super) fn open(root: &Path) -> Result<Self> {
        match fs::metadata(root) {
            Ok(meta) if meta.is_dir() => Ok(Self { root: root.to_owned() }),
            Ok(_) => {
                let text = format!("the archive '{}' is not a directory", root.display());
                Err(Error::new(ErrorKind::Config, text))
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let text = format!(
                    "the directory of the archive '{}' does not exist; mount its file system, or make it if this is a new \
                     archive",
                    root.display()
                );
                Err(Error::new(ErrorKind::Unavailable, text))
            }
            Err(e) => Err(Error::io("open the archive", root, e)),
        }
    }

    /// What is not there may be so because nothing is.
    fn here(&self) -> Result<()> {
        Self::open(&self.root).map(drop)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    fn aside(&self) -> Result<Aside> {
        let dir = self.root.join(TMP);
        if dir.is_dir() {
            remove_left(&dir);
        } else {
            disk::create_subdir_durable(&dir)?;
        }
        let path = dir.join(format!("{:016x}", fastrand::u64(..)));
        Ok(Aside { file: SyncFile::create(&path)?, path, len: 0 })
    }

    fn write(&self, bytes: &[u8]) -> Result<Aside> {
        let mut aside = self.aside()?;
        aside.append(bytes)?;
        aside.file.sync_data()?;
        let pass = failpoint::pass("archive::aside");
        pass.map_err(|e| Error::io("write", &aside.path, e))?;
        Ok(aside)
    }

    fn room_for(&self, name: &str) -> Result<PathBuf> {
        let path = self.path(name);
        if let Some(dir) = path.parent() {
            disk::create_dir_durable(dir)?;
        }
        Ok(path)
    }

    /// Lists one directory, and those in it.
    fn walk(&self, dir: &str, after: &str, depth: usize, each: &mut Each<'_>) -> Result<bool> {
        for (name, is_dir) in self.children(dir)? {
            let whole = if dir.is_empty() { name } else { format!("{dir}/{name}") };
            if is_dir {
                let below = format!("{whole}/");
                // Nothing in it comes after.
                if after > below.as_str() && !after.starts_with(&below) {
                    continue;
                }
                if depth < DEPTH_MAX && !self.walk(&whole, after, depth + 1, each)? {
                    return Ok(false);
                }
                continue;
            }
            if whole.as_str() <= after {
                continue;
            }
            let path = self.path(&whole);
            let meta = match fs::symlink_metadata(&path) {
                Ok(meta) => meta,
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => return Err(Error::io("look at", &path, e)),
            };
            if !each(Entry { name: whole, size: meta.len(), modified: meta.mtime() })? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Names in a directory in the order of the whole names of objects, and whether each is a directory.
    fn children(&self, dir: &str) -> Result<Vec<(String, bool)>> {
        let path = self.path(dir);
        let entries = match fs::read_dir(&path) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return self.here().map(|()| Vec::new()),
            Err(e) => return Err(Error::io("list", &path, e)),
        };
        let mut found = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|e| Error::io("list", &path, e))?;
            let kind = entry.file_type().map_err(|e| Error::io("list", &path, e))?;
            let name = entry.file_name();
            // What nothing here could have named is nobody's object.
            let Some(name) =
                std::str::from_utf8(name.as_bytes()).ok().filter(|n| super::names::valid_part(n))
            else {
                continue;
            };
            if dir.is_empty() && name == TMP || !kind.is_dir() && !kind.is_file() {
                continue;
            }
            if found.len() == DIR_MAX {
                let text = format!("'{}' holds more than {DIR_MAX} objects", path.display());
                return Err(Error::new(ErrorKind::Refused, text));
            }
            found.push((name.to_owned(), kind.is_dir()));
        }
        found.sort_by_cached_key(|(name, is_dir)| format!("{name}{}", if *is_dir { "/" } else { "" }));
        Ok(found)
    }
}

/// What killed writers left; that it can't be removed is no reason to stop.
fn remove_left(dir: &Path) {
    let old = |meta: fs::Metadata| {
        let age = meta.modified().ok().and_then(|m| SystemTime::now().duration_since(m).ok());
        age.is_some_and(|a| a > LEFT_AFTER)
    };
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.metadata().is_ok_and(old) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// A file without a name yet. Dropped, it is gone.
struct Aside {
    file: SyncFile,
    path: PathBuf,
    len: u64,
}

impl Aside {
    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_at(bytes, self.len)?;
        self.len += bytes.len() as u64;
        Ok(())
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        // Under its name it is another matter.
        let _ = fs::remove_file(&self.path);
    }
}

struct LocalUpload {
    aside: Aside,
    target: PathBuf,
}

impl Upload for LocalUpload {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.aside.append(bytes)
    }

    fn finish(mut self: Box<Self>) -> Result<()> {
        self.aside.file.sync_data()?;
        if disk::name_new(&self.aside.path, &self.target)? {
            return Ok(());
        }
        let text = format!("'{}' is there already; it is left as it is", self.target.display());
        Err(Error::new(ErrorKind::Refused, text))
    }
}

impl Store for Dir {
    fn create(&self, name: &str, bytes: &[u8]) -> Result<Put> {
        let path = self.path(name);
        if path.exists() {
            return Ok(Put::There);
        }
        let aside = self.write(bytes)?;
        let path = self.room_for(name)?;
        Ok(if disk::name_new(&aside.path, &path)? { Put::Made } else { Put::There })
    }

    fn replace(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let aside = self.write(bytes)?;
        disk::rename_durable(&aside.path, &self.room_for(name)?)
    }

    fn upload(&self, name: &str) -> Result<Box<dyn Upload>> {
        Ok(Box::new(LocalUpload { target: self.room_for(name)?, aside: self.aside()? }))
    }

    fn read(&self, name: &str, range: Range<u64>) -> Result<Option<Vec<u8>>> {
        let path = self.path(name);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return self.here().map(|()| None),
            Err(e) => return Err(Error::io("open", &path, e)),
        };
        let len = file.metadata().map_err(|e| Error::io("stat", &path, e))?.len();
        let wanted = range.end.min(len).saturating_sub(range.start);
        let mut bytes = vec![0; usize::try_from(wanted).unwrap_or(usize::MAX)];
        let n = sys::read_at(&file, &mut bytes, range.start).map_err(|e| Error::io("read", &path, e))?;
        bytes.truncate(n);
        Ok(Some(bytes))
    }

    fn size(&self, name: &str) -> Result<Option<u64>> {
        let path = self.path(name);
        match fs::metadata(&path) {
            Ok(meta) => Ok(Some(meta.len())),
            Err(e) if e.kind() == io::ErrorKind::NotFound => self.here().map(|()| None),
            Err(e) => Err(Error::io("look at", &path, e)),
        }
    }

    fn list(&self, dir: &str, after: &str, each: &mut Each<'_>) -> Result<()> {
        self.walk(dir, after, 0, each).map(|_| ())
    }

    fn delete(&self, name: &str) -> Result<()> {
        let path = self.path(name);
        disk::remove_durable(&path)?;
        // A directory that is empty now goes, too; one that is not stays.
        let mut dir = path.parent();
        while let Some(empty) = dir.filter(|d| *d != self.root && fs::remove_dir(d).is_ok()) {
            dir = empty.parent();
        }
        Ok(())
    }
}
