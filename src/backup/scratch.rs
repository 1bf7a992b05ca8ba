//! Where a stream, and a backup that goes to an archive, keeps what it needs meanwhile: a directory of its own among temporary
//! files, which goes with it.
//!
//! Of one that was killed it stays. Who makes the next one removes it: the kernel's lock says that its process is gone, and
//! [`MARK`] that it is one of these. Anything else of such a name is left alone.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::disk::{self, DirLock};
use crate::error::{Error, ErrorKind, Result};

/// How the names begin.
const PREFIX: &str = "towline-backup-";
/// In it once it is locked.
const MARK: &str = ".towline-scratch";
/// In it what the backup makes.
const WORK: &str = "work";
/// Names that are tried: another backup may take one that is not locked yet for left behind.
const TRIES: u32 = 16;

/// The directory, locked.
#[derive(Debug)]
pub(super) struct Scratch {
    // Gone before the lock is.
    dir: tempfile::TempDir,
    _lock: DirLock,
}

impl Scratch {
    /// Makes one in `parent`, where those of others that are gone are removed.
    ///
    /// # Errors
    /// Why none can be made.
    pub(super) fn begin(parent: &Path) -> Result<Self> {
        clear(parent);
        let failed = |e| Error::io("make a directory in", parent, e);
        for _ in 0..TRIES {
            let dir = tempfile::Builder::new().prefix(PREFIX).tempdir_in(parent).map_err(failed)?;
            let lock = match disk::lock_dir(dir.path()) {
                Ok(lock) => lock,
                Err(e) if e.kind() == ErrorKind::Locked || !dir.path().exists() => continue,
                Err(e) => return Err(e),
            };
            // What was locked may not have its name any more.
            let there = fs::symlink_metadata(dir.path()).ok().map(|m| (m.dev(), m.ino()));
            if there != Some(lock.identity()?) {
                continue;
            }
            let mark = dir.path().join(MARK);
            fs::write(&mark, "").map_err(|e| Error::io("write", &mark, e))?;
            return Ok(Self { dir, _lock: lock });
        }
        let text = format!("no directory can be made in '{}': each is gone at once", parent.display());
        Err(Error::new(ErrorKind::Io, text))
    }

    /// Where the backup makes a directory for its work.
    pub(super) fn work(&self) -> PathBuf {
        self.dir.path().join(WORK)
    }
}

/// Removes what backups left whose processes are gone. What can't be removed is in nobody's way.
fn clear(parent: &Path) {
    let uid = rustix::process::geteuid().as_raw();
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let named = entry.file_name().to_str().is_some_and(|n| n.starts_with(PREFIX));
        let path = entry.path();
        // Nothing is followed, and nothing of another user is taken for one of these.
        let ours = |p: &Path| fs::symlink_metadata(p).ok().filter(|m| m.uid() == uid);
        if !named
            || !ours(&path).is_some_and(|m| m.is_dir())
            || !ours(&path.join(MARK)).is_some_and(|m| m.is_file())
        {
            continue;
        }
        let Ok(lock) = disk::lock_dir(&path) else { continue };
        match remove(&path) {
            Ok(()) => tracing::info!("'{}', which a backup that was killed left, is removed", path.display()),
            Err(e) => tracing::warn!("'{}', which a backup left, can't be removed: {e}", path.display()),
        }
        drop(lock);
    }
}

/// The mark last but one: what is left of it is found again.
fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path.join(WORK)) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    fs::remove_file(path.join(disk::LOCK))?;
    fs::remove_file(path.join(MARK))?;
    fs::remove_dir(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_use_or_is_something_else_stays() {
        let parent = tempfile::tempdir().unwrap();
        let path = |name: &str| parent.path().join(name);
        let used = Scratch::begin(parent.path()).unwrap();
        fs::create_dir_all(used.work().join("log")).unwrap();
        // Left by one that was killed: everything but its lock.
        let left = path("towline-backup-killed");
        fs::create_dir_all(left.join("work/log")).unwrap();
        for name in [MARK, disk::LOCK, "work/log/x"] {
            fs::write(left.join(name), "").unwrap();
        }
        // Without the mark it is somebody's own, and so is what has another name or lies behind a symlink.
        for own in ["towline-backup-monday", "towline-backup", "other"] {
            fs::create_dir_all(path(own).join("work")).unwrap();
        }
        fs::write(path("other").join(MARK), "").unwrap();
        std::os::unix::fs::symlink(path("other"), path("towline-backup-link")).unwrap();
        // What else is in it stays with it.
        let more = path("towline-backup-more");
        fs::create_dir(&more).unwrap();
        for name in [MARK, disk::LOCK, "mine"] {
            fs::write(more.join(name), "").unwrap();
        }
        let second = Scratch::begin(parent.path()).unwrap();
        assert!(!left.exists() && used.work().join("log").is_dir() && more.join("mine").exists());
        for own in ["towline-backup-monday/work", "towline-backup", "other/work", "towline-backup-link"] {
            assert!(path(own).symlink_metadata().is_ok(), "{own}");
        }
        let (first, last) = (used.dir.path().to_owned(), second.dir.path().to_owned());
        drop((used, second));
        assert!(!first.exists() && !last.exists());
    }
}
