//! Durable file primitives: what a power cut may not take away goes through here.
//!
//! A file is durable after fsync of the file, a name after fsync of its directory. A failed fsync
//! is final for the open file: the kernel may have dropped the dirty pages and marked them clean,
//! so [`SyncFile`] latches the failure and refuses everything after it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use crate::codec::{DecodeError, Seal};
use crate::error::{Error, ErrorKind, Result};
use crate::{failpoint, sys};

/// What is appended to the name of a file that is being written aside.
pub const ASIDE: &str = ".new";
/// Name of the lock file in a state directory.
pub const LOCK: &str = "lock";

/// Makes the names in `dir` durable.
pub fn sync_dir(dir: &Path) -> Result<()> {
    File::open(dir).and_then(|d| d.sync_all()).map_err(|e| Error::io("sync directory", dir, e))
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    }
}

/// Creates the directory `path` (mode 0700), and its parents, durably. One that exists is fine.
pub fn create_dir_durable(path: &Path) -> Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let up = parent(path);
    if !up.is_dir() {
        create_dir_durable(up)?;
    }
    create_subdir_durable(path)
}

/// The same in a directory that is there: if it went away, nothing is made in its place.
pub fn create_subdir_durable(path: &Path) -> Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
            return Err(Error::io("create directory", path, e));
        }
        _ => {}
    }
    sync_dir(parent(path))
}

/// Removes the file `path` and makes that durable. One that is not there is fine.
pub fn remove_durable(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Ok(()) => sync_dir(parent(path)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(Error::io("remove", path, e)),
    }
}

/// Renames durably within one directory; an existing target is replaced.
pub fn rename_durable(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).map_err(|e| Error::io("rename", from, e))?;
    sync_dir(parent(to))
}

/// Gives the file `from`, which is durable, the new name `to` on the same file system, durably. False: there is something
/// of that name, which stays, and so does `from`.
pub fn name_new(from: &Path, to: &Path) -> Result<bool> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Ok(()) => {}
        Err(Errno::EXIST) => return Ok(false),
        // Not every file system knows that; a second name is never made over another either.
        Err(Errno::INVAL | Errno::NOSYS) => match fs::hard_link(from, to) {
            Ok(()) => fs::remove_file(from).map_err(|e| Error::io("remove", from, e))?,
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => return Ok(false),
            Err(e) => return Err(Error::io("name", to, e)),
        },
        Err(e) => return Err(Error::io("name", to, e)),
    }
    sync_dir(parent(to))?;
    Ok(true)
}

/// Replaces `dir/name` by `bytes`: after a crash there is the old content or the new, never a mix.
pub fn write_atomic(dir: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    let mut file = AtomicFile::create(dir, name)?;
    file.write_all(bytes).map_err(|e| Error::io("write", file.aside(), e))?;
    file.commit()
}

/// The same for a file that a command may write in the place of the daemon: it belongs to the owner of `dir`, whoever
/// wrote it.
pub fn write_owned(dir: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    let mut file = AtomicFile::create(dir, name)?;
    if let Some(open) = &file.file {
        give_to_owner(open, dir).map_err(|e| Error::io("give away", file.aside(), e))?;
    }
    file.write_all(bytes).map_err(|e| Error::io("write", file.aside(), e))?;
    file.commit()
}

/// What root writes into somebody else's directory is that one's.
fn give_to_owner(file: &File, dir: &Path) -> io::Result<()> {
    let (of, is) = (fs::metadata(dir)?, file.metadata()?);
    if (of.uid(), of.gid()) == (is.uid(), is.gid()) || is.uid() != 0 {
        return Ok(());
    }
    std::os::unix::fs::fchown(file, Some(of.uid()), Some(of.gid()))
}

/// Reads a sealed file; `decode` checks the seal too. `None`: it is not there.
///
/// # Errors
/// What is wrong with it and what to do, by [`Error::unusable`]; or why it can't be read.
pub fn read_sealed<T>(
    path: &Path,
    seal: &Seal,
    decode: impl FnOnce(&[u8]) -> std::result::Result<T, DecodeError>,
) -> Result<Option<T>> {
    let failed = |e| Error::io("read", path, e);
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(failed(e)),
    };
    let size = file.metadata().map_err(failed)?.len();
    let mut bytes = Vec::new();
    let got = if size > seal.most {
        Err(DecodeError::TooLarge { what: "its size", value: size, limit: seal.most })
    } else {
        file.take(seal.most).read_to_end(&mut bytes).map_err(failed)?;
        decode(&bytes)
    };
    got.map(Some).map_err(|why| Error::unusable(seal, path, why))
}

/// A small file in a state directory whose being there says something. It comes and goes durably.
#[derive(Debug, Clone)]
pub struct Note {
    dir: PathBuf,
    name: &'static str,
    points: [&'static str; 3],
}

impl Note {
    /// The note `dir/name`. The failpoints are passed before it is written, once it is durable, and before it goes.
    #[must_use]
    pub fn new(dir: &Path, name: &'static str, points: [&'static str; 3]) -> Self {
        Self { dir: dir.to_owned(), name, points }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.dir.join(self.name)
    }

    fn pass(&self, point: usize, verb: &str) -> Result<()> {
        failpoint::pass(self.points[point]).map_err(|e| Error::io(verb, self.path(), e))
    }

    /// Puts `bytes` there durably, in the place of what it said before.
    pub fn write(&self, bytes: &[u8]) -> Result<()> {
        self.pass(0, "write")?;
        write_atomic(&self.dir, self.name, bytes)?;
        self.pass(1, "write")
    }

    /// Takes it away durably. One that is not there is fine.
    pub fn remove(&self) -> Result<()> {
        let path = self.path();
        if fs::symlink_metadata(&path).is_err_and(|e| e.kind() == io::ErrorKind::NotFound) {
            return Ok(());
        }
        self.pass(2, "remove")?;
        remove_durable(&path)
    }
}

/// A file written aside; [`commit`](Self::commit) makes it durable under its name, dropping removes it.
#[derive(Debug)]
pub struct AtomicFile {
    file: Option<File>,
    aside: PathBuf,
    path: PathBuf,
}

impl AtomicFile {
    /// Begins to write the next content of `dir/name` aside, mode 0600.
    pub fn create(dir: &Path, name: &str) -> Result<Self> {
        let (path, aside) = (dir.join(name), dir.join(format!("{name}{ASIDE}")));
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&aside)
            .map_err(|e| Error::io("create", &aside, e))?;
        Ok(Self { file: Some(file), aside, path })
    }

    /// The path it is written at until the commit.
    #[must_use]
    pub fn aside(&self) -> &Path {
        &self.aside
    }

    /// Makes the content durable and gives it its name.
    pub fn commit(mut self) -> Result<()> {
        let synced = match self.file.take() {
            Some(file) => failpoint::pass("disk::write_aside").and_then(|()| file.sync_all()),
            None => Ok(()),
        };
        let renamed = synced.map_err(|e| Error::io("sync", &self.aside, e)).and_then(|()| {
            failpoint::pass("disk::before_rename").map_err(|e| Error::io("rename", &self.aside, e))?;
            rename_durable(&self.aside, &self.path)
        });
        if renamed.is_err() {
            let _ = fs::remove_file(&self.aside);
        }
        renamed?;
        failpoint::pass("disk::after_rename").map_err(|e| Error::io("rename", &self.path, e))
    }
}

impl Write for AtomicFile {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.file.as_mut().map_or_else(|| Err(io::ErrorKind::NotConnected.into()), |f| f.write(buf))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        if self.file.take().is_some() {
            let _ = fs::remove_file(&self.aside);
        }
    }
}

/// The exclusive hold on a state directory; it ends with the process, however that ends.
#[derive(Debug)]
pub struct DirLock {
    _file: File,
    dir: File,
}

impl DirLock {
    /// Device and inode of the directory that is held, wherever its name points to by now.
    pub fn identity(&self) -> Result<(u64, u64)> {
        let meta =
            self.dir.metadata().map_err(|e| Error::from(e).wrap("cannot look at the state directory"))?;
        Ok((meta.dev(), meta.ino()))
    }
}

/// Takes the lock of the state directory `state`. The lock is the kernel's (flock), on the directory itself,
/// which nobody deletes by mistake, and on a file in it. The file may lie there from before and says
/// nothing but who held it last.
pub fn lock_dir(state: &Path) -> Result<DirLock> {
    let path = state.join(LOCK);
    let dir = File::open(state).map_err(|e| Error::io("open", state, e))?;
    let whole = rustix::fs::flock(&dir, rustix::fs::FlockOperation::NonBlockingLockExclusive);
    if let Err(e) = whole {
        let file = OpenOptions::new().read(true).custom_flags(lock_flags()).open(&path).ok();
        return Err(not_locked(state, state, file.as_ref(), e));
    }
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(lock_flags())
        .open(&path)
        .map_err(|e| Error::io("open", &path, e))?;
    rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive)
        .map_err(|e| not_locked(state, &path, Some(&file), e))?;
    let pid = format!("{}\n", std::process::id());
    file.set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| file.write_all(pid.as_bytes()))
        .map_err(|e| Error::io("write", &path, e))?;
    Ok(DirLock { _file: file, dir })
}

/// A lock file that is a symbolic link is not followed: its target would be written over. Nor is a pipe waited for.
fn lock_flags() -> i32 {
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    i32::try_from(flags.bits()).unwrap_or(0)
}

fn not_locked(state: &Path, path: &Path, file: Option<&File>, e: Errno) -> Error {
    if e != Errno::WOULDBLOCK {
        return Error::io("lock", path, e);
    }
    let mut text = String::new();
    if let Some(file) = file {
        let _ = file.take(32).read_to_string(&mut text);
    }
    let holder = match text.trim().parse::<u32>() {
        Ok(pid) => format!("process {pid}"),
        Err(_) => "another process".to_owned(),
    };
    let message = format!(
        "the state directory '{}' is in use by {holder}; stop it first, or name another directory",
        state.display()
    );
    Error::new(ErrorKind::Locked, message)
}

/// A hold on a small file of a state directory, for commands and the daemon to change files in turn.
#[derive(Debug)]
pub struct Turn {
    _file: File,
}

/// Waits for the hold on `dir/name`, at most `limit`. The file is made if it is not there, and stays.
///
/// # Errors
/// [`ErrorKind::Locked`] when another process has it for all that time.
pub fn take_turn(dir: &Path, name: &str, limit: std::time::Duration) -> Result<Turn> {
    let path = dir.join(name);
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600).custom_flags(lock_flags());
    let file = options.open(&path).map_err(|e| Error::io("open", &path, e))?;
    give_to_owner(&file, dir).map_err(|e| Error::io("give away", &path, e))?;
    let end = std::time::Instant::now() + limit;
    loop {
        match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(Turn { _file: file }),
            Err(Errno::WOULDBLOCK) if std::time::Instant::now() < end => {
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
            Err(Errno::WOULDBLOCK) => {
                let text = format!("'{}' is held by another command; try again", path.display());
                return Err(Error::new(ErrorKind::Locked, text));
            }
            Err(e) => return Err(Error::io("lock", &path, e)),
        }
    }
}

/// Where `path` leads, links and `..` followed, as far as there is something; the rest as it would be made.
#[must_use]
pub fn settled(path: &Path) -> PathBuf {
    let mut real = PathBuf::new();
    let whole = std::env::current_dir().unwrap_or_default().join(path);
    for part in whole.components() {
        match part {
            std::path::Component::CurDir => {}
            std::path::Component::ParentDir => {
                real.pop();
            }
            other => {
                real.push(other);
                if let Ok(there) = real.canonicalize() {
                    real = there;
                }
            }
        }
    }
    real
}

/// Bytes that this process may still write to the file system of `path`.
pub fn free_bytes(path: &Path) -> Result<u64> {
    let s = rustix::fs::statvfs(path).map_err(|e| Error::io("stat file system of", path, e))?;
    Ok(s.f_bavail.saturating_mul(s.f_frsize))
}

/// A file whose first failed write or sync is final: every later call fails with the same error.
#[derive(Debug)]
pub struct SyncFile {
    file: File,
    path: PathBuf,
    failed: Option<Error>,
}

impl SyncFile {
    /// Creates the file (mode 0600), empty if it was there.
    pub fn create(path: &Path) -> Result<Self> {
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).open(path);
        file.map(|f| Self::new(f, path)).map_err(|e| Error::io("create", path, e))
    }

    /// Wraps an open file.
    #[must_use]
    pub fn new(file: File, path: &Path) -> Self {
        Self { file, path: path.to_owned(), failed: None }
    }

    /// Where it was opened.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Says that the file has another name now.
    pub fn renamed(&mut self, path: &Path) {
        path.clone_into(&mut self.path);
    }

    /// The file itself, for reading.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    fn latch(&mut self, verb: &str, result: io::Result<()>) -> Result<()> {
        match result {
            Ok(()) => Ok(()),
            Err(e) => {
                let error = Error::io(verb, &self.path, e);
                self.failed = Some(error.clone());
                Err(error)
            }
        }
    }

    fn check(&self) -> Result<()> {
        self.failed.clone().map_or(Ok(()), Err)
    }

    /// Writes all of `bytes` at `offset`.
    pub fn write_at(&mut self, bytes: &[u8], offset: u64) -> Result<()> {
        self.check()?;
        let result = sys::write_at(&self.file, bytes, offset);
        self.latch("write", result)
    }

    /// Makes the content durable, and of the metadata what is needed to read it back.
    pub fn sync_data(&mut self) -> Result<()> {
        self.check()?;
        let result = self.file.sync_data();
        sys::pulse::beat();
        self.latch("sync", result)
    }

    /// Cuts or extends the file to `len` bytes.
    pub fn set_len(&mut self, len: u64) -> Result<()> {
        self.check()?;
        let result = self.file.set_len(len);
        self.latch("truncate", result)
    }

    /// Reserves disk space up to `end`, so that the size need not change with each write. A file
    /// system that can't is fine.
    pub fn allocate(&mut self, from: u64, end: u64) -> Result<()> {
        self.check()?;
        let len = end.saturating_sub(from);
        if len == 0 {
            return Ok(());
        }
        let result = loop {
            match rustix::fs::fallocate(&self.file, FallocateFlags::empty(), from, len) {
                Err(Errno::INTR) => {}
                Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => break Ok(()),
                Err(e) => break Err(e.into()),
            }
        };
        self.latch("allocate space for", result)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        write_atomic(dir.path(), "control", b"one").unwrap();
        let mut next = AtomicFile::create(dir.path(), "control").unwrap();
        next.write_all(b"two").unwrap();
        assert_eq!(fs::read(dir.path().join("control")).unwrap(), b"one");
        drop(next);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        write_atomic(dir.path(), "control", b"three").unwrap();
        assert_eq!(fs::read(dir.path().join("control")).unwrap(), b"three");
        remove_durable(&dir.path().join("control")).unwrap();
        remove_durable(&dir.path().join("control")).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_held_lock_names_its_holder_and_a_stale_file_is_no_obstacle() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(LOCK), "4194304999\n").unwrap();
        let held = lock_dir(dir.path()).unwrap();
        let e = lock_dir(dir.path()).unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Locked);
        assert!(e.to_string().contains(&format!("process {};", std::process::id())), "{e}");
        // Without the file nobody else gets in either, and its next holder is not written through a link.
        fs::remove_file(dir.path().join(LOCK)).unwrap();
        assert_eq!(lock_dir(dir.path()).unwrap_err().kind(), ErrorKind::Locked);
        drop(held);
        fs::write(dir.path().join("theirs"), "precious").unwrap();
        std::os::unix::fs::symlink("theirs", dir.path().join(LOCK)).unwrap();
        assert!(lock_dir(dir.path()).is_err());
        assert_eq!(fs::read(dir.path().join("theirs")).unwrap(), b"precious");
        fs::remove_file(dir.path().join(LOCK)).unwrap();
        lock_dir(dir.path()).unwrap();
    }

    #[test]
    fn a_new_name_is_never_given_over_another_file() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        fs::write(&a, "1").unwrap();
        assert!(name_new(&a, &b).unwrap() && !a.exists());
        fs::write(&a, "2").unwrap();
        assert!(!name_new(&a, &b).unwrap());
        assert_eq!((fs::read(&a).unwrap(), fs::read(&b).unwrap()), (b"2".to_vec(), b"1".to_vec()));
    }

    #[test]
    fn the_first_failure_of_a_file_is_its_last() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        fs::write(&path, b"x").unwrap();
        let mut file = SyncFile::new(File::open(&path).unwrap(), &path);
        let first = file.write_at(b"y", 0).unwrap_err();
        let then = file.sync_data().unwrap_err();
        assert_eq!(then.to_string(), first.to_string());
        assert!(file.set_len(0).is_err() && file.allocate(0, 9).is_err());
        assert_eq!(fs::read(&path).unwrap(), b"x");
    }

    #[test]
    fn directories_are_made_with_their_parents_and_for_the_owner_only() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("a/b/c");
        create_dir_durable(&deep).unwrap();
        create_dir_durable(&deep).unwrap();
        assert_eq!(fs::metadata(&deep).unwrap().permissions().mode() & 0o777, 0o700);
        assert!(free_bytes(&deep).unwrap() > 0);
    }
}
