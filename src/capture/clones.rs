//! Clones: they make a freeze short. Where the file system can, a large file is not read while the application is
//! held still but cloned (FICLONE) into a file without a name; the clone is read when the application runs on.
//!
//! The clones lie in the state directory. In the data directory the application could see them: a file without a
//! name moves no stamp of its directory there, but whoever watches that is told of its writes. So both directories
//! have to be on one file system; whether that clones is found out by cloning a file, and where it does not, files
//! are read while the application stands still.
//!
//! FICLONE writes the dirty pages of the file first, stores through mappings included. To have few of them left, the
//! files that the last pass saw change are written back before the freeze.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Instant;

use nix::sys::resource::{Resource, getrlimit};
use rustix::fs::{IFlags, Mode, OFlags};
use rustix::io::Errno;

use super::content::open_path;
use super::engine::Engine;
use super::examine::{At, split};
use super::hints::Paths;
use crate::error::Result;
use crate::failpoint;
use crate::position::FileId;
use crate::record::Kind;
use crate::sys::{self, Stat};

/// Smaller files are read. Measured on xfs and btrfs on a virtual machine's disk: a clone takes 20 us whatever its size,
/// with a dirty page 40 to 90 us, with a dirty MiB 500 to 2500 us; to read a MiB of cached pages takes 20 to 30 us, and
/// then it has to be hashed and recorded.
const CLONE_MIN: u64 = 1 << 20;
/// Most clones at a time: each is a descriptor, and one part in [`LIMIT_SHARE`] of all that the process may have.
const CLONES_MAX: u64 = 256;
const LIMIT_SHARE: u64 = 4;
/// So many files in a row that can't be cloned, and none that could: the file system does not clone.
const MISSES_MAX: u32 = 8;

/// Whether the file system clones.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Can {
    /// Not known; so many files could not be cloned.
    Untried(u32),
    Yes,
    No,
}

impl Can {
    /// What a failed attempt makes of it. EISDIR is how a file without a name is refused by old file systems.
    fn after(self, e: &io::Error) -> Self {
        let never = [Errno::OPNOTSUPP, Errno::NOTTY, Errno::XDEV, Errno::ISDIR];
        let code = e.raw_os_error();
        match self {
            // Once one file was cloned, another that can't be says nothing about the file system.
            Self::Yes => Self::Yes,
            Self::Untried(_) if never.iter().any(|n| Some(n.raw_os_error()) == code) => Self::No,
            Self::Untried(n) if code == Some(Errno::INVAL.raw_os_error()) && n + 1 >= MISSES_MAX => Self::No,
            Self::Untried(n) if code == Some(Errno::INVAL.raw_os_error()) => Self::Untried(n + 1),
            other => other,
        }
    }
}

/// The maker of clones.
#[derive(Debug)]
pub(super) struct Clones {
    dir: PathBuf,
    can: Can,
    /// Most at a time.
    max: usize,
    /// Files are cloned in the hold that is coming or under way.
    on: bool,
    /// The last hold ended too early, with clones: the next one does without.
    spent: bool,
}

/// A file as it was while the application stood still.
#[derive(Debug)]
pub(super) struct Cloned {
    fd: OwnedFd,
    stat: Stat,
    rel: Box<[u8]>,
}

/// The clones of a hold.
pub(super) type ClonedFiles = BTreeMap<FileId, Cloned>;

impl Clones {
    /// Clones will lie in the state directory.
    pub(super) fn new(state: &Path) -> Self {
        let files = getrlimit(Resource::RLIMIT_NOFILE).map_or(CLONES_MAX, |(soft, _)| soft / LIMIT_SHARE);
        let max = usize::try_from(files.min(CLONES_MAX)).unwrap_or(0);
        Self { dir: state.to_owned(), can: Can::Untried(0), max, on: false, spent: false }
    }

    /// A hold is coming. False: its files are read.
    fn begin(&mut self) -> bool {
        self.on = self.can != Can::No && !std::mem::take(&mut self.spent);
        self.on
    }

    /// The hold is over; `lost`: before all was done.
    pub(super) fn end(&mut self, lost: bool) {
        // Writing dirty pages may take longer than reading them: then that is tried in turn.
        self.spent = lost && self.on && self.can == Can::Yes;
        self.on = false;
    }

    /// Clones a file; `None`: it has to be read.
    fn take(&mut self, from: &OwnedFd) -> Option<OwnedFd> {
        match clone_file(&self.dir, from) {
            Ok(clone) => {
                self.can = Can::Yes;
                Some(clone)
            }
            Err(e) => {
                self.can = self.can.after(&e);
                if self.can == Can::No {
                    tracing::info!(
                        "files can't be cloned into '{}' ({e}): they are read while the application is held still",
                        self.dir.display()
                    );
                    self.on = false;
                }
                None
            }
        }
    }
}

/// A clone of all of `from` in a file in `dir` that has no name.
fn clone_file(dir: &Path, from: &OwnedFd) -> io::Result<OwnedFd> {
    failpoint::pass("capture::clone")?;
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::EXCL | OFlags::CLOEXEC;
    let to = rustix::fs::open(dir, flags, Mode::RUSR | Mode::WUSR)?;
    match rustix::fs::ioctl_ficlone(&to, from) {
        Ok(()) => return Ok(to),
        // On btrfs both files have to copy on write, or none.
        Err(Errno::INVAL) if match_flags(&to, from)? => {}
        Err(e) => return Err(e.into()),
    }
    rustix::fs::ioctl_ficlone(&to, from)?;
    Ok(to)
}

/// Has `to` copy on write just when `from` does. False: it did already.
fn match_flags(to: &OwnedFd, from: &OwnedFd) -> io::Result<bool> {
    let (want, have) = (rustix::fs::ioctl_getflags(from)?, rustix::fs::ioctl_getflags(to)?);
    if (want ^ have) & IFlags::NOCOW == IFlags::empty() {
        return Ok(false);
    }
    rustix::fs::ioctl_setflags(to, have ^ IFlags::NOCOW)?;
    Ok(true)
}

impl Engine {
    /// Before a hold: has the large files that are to be looked at written back, so that cloning them is quick. The
    /// first one shows whether the file system clones at all.
    pub(super) fn write_back(&mut self, todo: &Paths, more: &Paths) -> Result<()> {
        if !self.clones.begin() {
            return Ok(());
        }
        let until = Instant::now() + self.options.max_cut_delay;
        for rel in todo.keys().chain(more.keys()) {
            if !self.clones.on || Instant::now() >= until {
                break;
            }
            let (parent, name) = split(rel);
            let stat = self.root.open_dir_path(parent).and_then(|dir| sys::stat_at(dir, name));
            if !stat.is_ok_and(|s| s.is_some_and(|s| s.kind == Kind::File && s.size >= CLONE_MIN)) {
                continue;
            }
            self.pace()?;
            let Ok(fd) = open_path(&self.root, rel) else { continue };
            if self.clones.can != Can::Yes && self.clones.take(&fd).is_none() {
                continue;
            }
            // What can't be written now is not written while the clone is made either: that fails then.
            let _ = rustix::fs::fdatasync(&fd);
        }
        Ok(())
    }

    /// While the application is held: clones an open file whose content has to be looked at, and returns the size of
    /// the clone. `None`: it has to be read now.
    pub(super) fn clone_content(&mut self, at: At<'_>, id: FileId, fd: &OwnedFd, stat: &Stat) -> Option<u64> {
        let room = self.pass.clones.len() < self.clones.max || self.pass.clones.contains_key(&id);
        if !self.pass.still || !self.clones.on || stat.size < CLONE_MIN || !room {
            return None;
        }
        let clone = self.clones.take(fd)?;
        let size = sys::stat_fd(clone.as_fd()).ok()?.size;
        let stat = Stat { size, ..*stat };
        self.pass.clones.insert(id, Cloned { fd: clone, stat, rel: at.rel.into() });
        Some(size)
    }

    /// When the application runs on: reads the clones, and records what differs.
    pub(super) fn read_clones(&mut self) -> Result<()> {
        let clones = std::mem::take(&mut self.pass.clones);
        self.notes.freeze_clones += clones.len() as u64;
        for (id, clone) in clones {
            let reached = self.pass.stage.reached(&self.read(), id);
            let Some(known) = self.known(id).filter(|_| reached) else { continue };
            let error = match self.compare(&clone.fd, id, &clone.stat, &known, 0..u64::MAX)? {
                Ok(size) if size == clone.stat.size => continue,
                Ok(_) => io::Error::from(io::ErrorKind::UnexpectedEof),
                Err(e) => e,
            };
            // What is in the log of it is not what its stamps say: it is looked at again.
            if let Some(staged) = self.pass.stage.inodes.get_mut(&id) {
                staged.seen.racy = true;
            }
            self.pass.keep_dirty(&clone.rel);
            self.skip(&clone.rel, "read a clone of", error)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn after(can: Can, code: Errno) -> Can {
        can.after(&io::Error::from_raw_os_error(code.raw_os_error()))
    }

    #[test]
    fn only_an_answer_about_the_file_system_ends_the_attempts() {
        for never in [Errno::OPNOTSUPP, Errno::NOTTY, Errno::XDEV] {
            assert_eq!(after(Can::Untried(0), never), Can::No, "{never}");
            assert_eq!(after(Can::Yes, never), Can::Yes, "{never}");
        }
        for passing in [Errno::NOSPC, Errno::DQUOT, Errno::MFILE, Errno::NFILE, Errno::TXTBSY] {
            assert_eq!(after(Can::Untried(3), passing), Can::Untried(3), "{passing}");
        }
        let mut can = Can::Untried(0);
        for _ in 0..MISSES_MAX {
            assert_ne!(can, Can::No);
            can = after(can, Errno::INVAL);
        }
        assert_eq!(can, Can::No);
    }

    #[test]
    fn a_hold_that_clones_used_up_is_followed_by_one_without() {
        let mut clones = Clones { can: Can::Yes, ..Clones::new(Path::new("/nowhere")) };
        assert!(clones.begin());
        clones.end(true);
        assert!(!clones.begin(), "it clones again");
        clones.end(true);
        assert!(clones.begin(), "it clones no more");
        clones.end(false);
        assert!(clones.begin());
    }

    #[test]
    fn a_clone_has_no_name_or_there_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let (data, state) = (dir.path().join("f"), dir.path().join("state"));
        fs::create_dir(&state).unwrap();
        fs::write(&data, b"content").unwrap();
        let from = OwnedFd::from(fs::File::open(&data).unwrap());
        let mut clones = Clones::new(&state);
        assert!(clones.begin());
        match clones.take(&from) {
            Some(clone) => assert_eq!(sys::stat_fd(&clone).unwrap().nlink, 0),
            None => assert!(clones.can == Can::No && !clones.begin(), "{clones:?}"),
        }
        assert_eq!(fs::read_dir(&state).unwrap().count(), 0);
    }
}
