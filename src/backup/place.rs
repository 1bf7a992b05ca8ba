//! The directory that becomes a backup: empty at first, and gone again, or empty, when the backup fails.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::disk;
use crate::error::{Error, ErrorKind, Result};
use crate::manifest;

/// Name of the hidden directory that holds what is not part of the backup, until it is complete.
pub const WORK: &str = ".towline-backup";
/// Name of the note in it.
const NOTE: &str = "backup.json";

/// The directory.
#[derive(Debug)]
pub(super) struct Place {
    dir: PathBuf,
    /// It was not there before.
    made: bool,
}

/// What a backup that goes on has to know of its beginning.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Begun {
    pub(super) label: String,
    /// Start of the copy and the time of that commit, once the copy is there.
    pub(super) start: Option<(u64, i64)>,
}

fn refused(text: String) -> Error {
    Error::new(ErrorKind::Refused, text)
}

impl Place {
    /// A new backup in `dir`, which is made if it is not there.
    ///
    /// # Errors
    /// [`ErrorKind::Refused`] when it holds anything; it is not touched then.
    pub(super) fn begin(dir: &Path, begun: &Begun) -> Result<Self> {
        let made = match fs::read_dir(dir) {
            Ok(mut entries) => {
                let first = entries.next().transpose().map_err(|e| Error::io("list", dir, e))?;
                if let Some(first) = first {
                    if first.file_name() != WORK || entries.next().is_some() || !is_bare(&first.path())? {
                        return Err(not_empty(dir));
                    }
                    // One that was killed before it noted what it is: nothing was made.
                    fs::remove_dir_all(first.path()).map_err(|e| Error::io("remove", first.path(), e))?;
                }
                false
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                disk::create_dir_durable(dir)?;
                true
            }
            Err(e) => return Err(Error::io("list", dir, e)),
        };
        let place = Self { dir: dir.to_owned(), made };
        let begins = disk::create_subdir_durable(&place.work()).and_then(|()| place.note(begun));
        if let Err(e) = begins {
            place.discard();
            return Err(e);
        }
        Ok(place)
    }

    /// An unfinished backup that is gone on with.
    ///
    /// # Errors
    /// [`ErrorKind::Refused`] when there is none.
    pub(super) fn resume(dir: &Path) -> Result<(Self, Begun)> {
        let place = Self { dir: dir.to_owned(), made: false };
        if dir.join(manifest::NAME).exists() {
            return Err(refused(format!("'{}' holds a complete backup: nothing to resume", dir.display())));
        }
        let path = place.work().join(NOTE);
        let text = match fs::read(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let text = format!(
                    "'{}' holds no unfinished backup to resume; leave --resume out to begin one",
                    dir.display()
                );
                return Err(refused(text));
            }
            read => read.map_err(|e| Error::io("read", &path, e))?,
        };
        let damaged = |e| {
            let text = format!("'{}' is damaged ({e}): empty the directory and begin anew", path.display());
            Error::new(ErrorKind::Corrupt, text)
        };
        Ok((place, serde_json::from_slice(&text).map_err(damaged)?))
    }

    /// Notes what one that goes on has to know.
    pub(super) fn note(&self, begun: &Begun) -> Result<()> {
        let text = serde_json::to_vec(begun).map_err(|e| Error::new(ErrorKind::Io, e.to_string()))?;
        disk::write_atomic(&self.work(), NOTE, &text)
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(super) fn work(&self) -> PathBuf {
        self.dir.join(WORK)
    }

    /// Takes away what is not part of the backup.
    pub(super) fn clear_work(&self) -> Result<()> {
        let work = self.work();
        fs::remove_dir_all(&work).map_err(|e| Error::io("remove", &work, e))?;
        disk::sync_dir(&self.dir)
    }

    /// The backup failed: everything that it made goes.
    pub(super) fn discard(&self) {
        if let Err(e) =
            empty(&self.dir).and_then(|()| if self.made { fs::remove_dir(&self.dir) } else { Ok(()) })
        {
            tracing::warn!("what was made in '{}' can't be removed: {e}", self.dir.display());
        }
    }
}

/// Whether the hidden directory has nothing in it but its note, not yet named.
fn is_bare(work: &Path) -> Result<bool> {
    let failed = |e| Error::io("list", work, e);
    for entry in fs::read_dir(work).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name();
        if name == NOTE || !name.to_string_lossy().starts_with(NOTE) {
            return Ok(false);
        }
    }
    Ok(true)
}

fn not_empty(dir: &Path) -> Error {
    let dir = dir.display();
    let what = if Path::new(&format!("{dir}/{}", manifest::NAME)).exists() {
        "holds a backup already: name another directory"
    } else if Path::new(&format!("{dir}/{WORK}")).exists() {
        "holds an unfinished backup: --resume goes on with it"
    } else {
        "is not empty: name a new or an empty directory"
    };
    refused(format!("'{dir}' {what}"))
}

fn empty(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_dir(&entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Directories that their copy gave modes by which their owner may not empty them are no obstacle.
fn remove_dir(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {}
        other => return other,
    }
    let mut closed = vec![path.to_owned()];
    while let Some(dir) = closed.pop() {
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o700))?;
        for entry in fs::read_dir(&dir)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                closed.push(entry.path());
            }
        }
    }
    fs::remove_dir_all(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begun() -> Begun {
        Begun { label: "l".to_owned(), start: None }
    }

    #[test]
    fn what_was_not_empty_is_not_touched_and_what_was_made_goes() {
        let dir = tempfile::tempdir().unwrap();
        let (full, new, old) = (dir.path().join("full"), dir.path().join("a/new"), dir.path().join("old"));
        fs::create_dir(&full).unwrap();
        fs::write(full.join("x"), "x").unwrap();
        let e = Place::begin(&full, &begun()).unwrap_err();
        assert!(e.kind() == ErrorKind::Refused && e.to_string().contains("is not empty"), "{e}");
        assert_eq!(fs::read_dir(&full).unwrap().count(), 1);
        fs::create_dir(&old).unwrap();
        for (path, stays) in [(&new, false), (&old, true)] {
            let place = Place::begin(path, &begun()).unwrap();
            let e = Place::begin(path, &begun()).unwrap_err();
            assert!(e.to_string().contains("--resume"), "{e}");
            fs::create_dir_all(path.join("data/closed")).unwrap();
            fs::write(path.join("data/closed/f"), "x").unwrap();
            fs::set_permissions(path.join("data/closed"), fs::Permissions::from_mode(0o0)).unwrap();
            place.discard();
            assert_eq!(path.exists(), stays);
        }
        assert_eq!(fs::read_dir(&old).unwrap().count(), 0);
    }

    #[test]
    fn one_that_was_killed_before_its_note_is_begun_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("b");
        fs::create_dir_all(path.join(WORK)).unwrap();
        assert!(Place::resume(&path).unwrap_err().to_string().contains("leave --resume out"));
        let place = Place::begin(&path, &begun()).unwrap();
        assert_eq!(Place::resume(&path).unwrap().1, begun());
        // What has a note, or anything beside it, stays.
        assert!(Place::begin(&path, &begun()).unwrap_err().to_string().contains("--resume"));
        fs::remove_file(place.work().join(NOTE)).unwrap();
        fs::write(place.work().join("log"), "x").unwrap();
        assert!(Place::begin(&path, &begun()).is_err());
        fs::remove_file(place.work().join("log")).unwrap();
        fs::write(path.join("mine"), "x").unwrap();
        assert!(Place::begin(&path, &begun()).is_err() && path.join(WORK).is_dir());
    }

    #[test]
    fn only_what_is_unfinished_is_resumed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("b");
        let resume = || Place::resume(&path).unwrap_err().to_string();
        assert!(resume().contains("no unfinished backup"));
        let place = Place::begin(&path, &begun()).unwrap();
        let later = Begun { start: Some((7, 9)), ..begun() };
        place.note(&later).unwrap();
        assert_eq!(Place::resume(&path).unwrap().1, later);
        fs::write(place.work().join(NOTE), "{").unwrap();
        assert!(resume().contains("damaged"));
        fs::write(path.join(manifest::NAME), "{").unwrap();
        assert!(resume().contains("complete"));
    }
}
