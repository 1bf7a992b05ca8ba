//! The data directory as apply changes it: directories held open, the staging directory, and the
//! list of what was found to be somebody else's doing.

use std::collections::{HashMap, HashSet, VecDeque};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use rustix::fs::{self as rfs, AtFlags, Mode, OFlags};
use rustix::io::Errno;

use crate::catalog::{Catalog, LocalId, Seen};
use crate::error::{Error, ErrorKind, Result};
use crate::fold::Fold;
use crate::position::{FileId, Lsn};
use crate::record::{Kind, Time};
use crate::sys::{self, Root, STAGE_DIR, Stat};

use super::doubts::Doubts;
use super::labels::Labels;
use super::plan::STAGE;
use super::refusal::{Refusal, refused};
use super::{ApplyStats, LocalEdit, LocalEdits};

/// Most directories held open.
const DIRS_MAX: usize = 256;
/// Most local edits kept for `status`.
const EDITS_MAX: usize = 100;

/// What may be in the catalog only, not on disk.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub(crate) enum Skip {
    Owner,
    Device,
    Mode,
    Time,
    Xattr,
    UnsupportedXattr,
}

impl Skip {
    /// As `status` names it.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Owner => "owner",
            Self::Device => "device",
            Self::Mode => "mode",
            Self::Time => "time",
            Self::Xattr => "xattr",
            Self::UnsupportedXattr => "unsupported_xattr",
        }
    }

    fn text(self) -> &'static str {
        match self {
            Self::Owner => "an owner cannot be set without privilege: kept in the catalog, skipped on disk",
            Self::Device => "a device cannot be made without privilege: kept in the catalog, skipped on disk",
            Self::Mode => {
                "a mode is not set as it is: without privilege this node keeps access to its own directories and \
                 files, and setuid bits go with an owner only; kept in the catalog"
            }
            Self::Time => {
                "the time of somebody else's file cannot be set without privilege: kept in the catalog"
            }
            Self::Xattr => {
                "an extended attribute cannot be set without privilege: kept in the catalog, skipped on disk"
            }
            Self::UnsupportedXattr => {
                "this file system has no such extended attributes: kept in the catalog, skipped on disk"
            }
        }
    }
}

/// What outlives a batch.
pub(crate) struct Site {
    pub(crate) root: Arc<Root>,
    pub(crate) catalog: Arc<RwLock<Catalog>>,
    pub(crate) stats: Arc<Mutex<ApplyStats>>,
    pub(crate) local_edits: LocalEdits,
    refusal: Refusal,
    pub(crate) dirs: Dirs,
    /// What names made up in the staging directory begin with: not used there before.
    pub(crate) epoch: String,
    pub(crate) made: u64,
    /// Owner and group that a file gets when this process creates it.
    pub(crate) me: (u32, u32),
    /// Which extended attributes can be given here.
    pub(crate) labels: Labels,
    /// Classes of things that were skipped for want of privilege and have been logged.
    pub(crate) said: HashSet<Skip>,
    /// Both of the following, on disk.
    pub(crate) doubts: Doubts,
    /// Files that somebody changed: compared with the known hashes before the batch counts.
    pub(crate) suspects: Vec<FileId>,
    /// Files that a crash may have left half-written, and how many blocks were compared since.
    pub(crate) later: VecDeque<(FileId, u64)>,
    /// Names in the staging directory of inodes that were replaced, and the position since when they are.
    pub(crate) parked: Vec<(Vec<u8>, Lsn)>,
}

/// Directories held open, as `O_PATH` descriptors.
#[derive(Default)]
pub(crate) struct Dirs {
    open: HashMap<FileId, (Arc<OwnedFd>, u64)>,
    clock: u64,
}

impl Dirs {
    pub(crate) fn get(&mut self, id: FileId) -> Option<Arc<OwnedFd>> {
        self.clock += 1;
        let clock = self.clock;
        self.open.get_mut(&id).map(|(fd, used)| {
            *used = clock;
            Arc::clone(fd)
        })
    }

    pub(crate) fn put(&mut self, id: FileId, fd: OwnedFd) -> Arc<OwnedFd> {
        if self.open.len() >= DIRS_MAX {
            let mut used: Vec<u64> = self.open.values().map(|(_, u)| *u).collect();
            let middle = used.len() / 2;
            let (_, median, _) = used.select_nth_unstable(middle);
            let median = *median;
            self.open.retain(|id, (_, used)| *used > median || *id == STAGE || *id == FileId::ROOT);
        }
        let fd = Arc::new(fd);
        self.clock += 1;
        self.open.insert(id, (Arc::clone(&fd), self.clock));
        fd
    }

    pub(crate) fn forget(&mut self, id: FileId) {
        self.open.remove(&id);
    }

    /// After a batch: what is held open says nothing about where it stands by then.
    pub(crate) fn clear(&mut self) {
        self.open.retain(|id, _| *id == STAGE || *id == FileId::ROOT);
    }
}

impl Site {
    pub(crate) fn open(
        root: Arc<Root>,
        catalog: Arc<RwLock<Catalog>>,
        stats: Arc<Mutex<ApplyStats>>,
        local_edits: LocalEdits,
        refusal: Refusal,
        doubts: Doubts,
    ) -> Result<Self> {
        match local_edits {
            LocalEdits::Refuse => refusal.check(&root)?,
            LocalEdits::Overwrite => refusal.clear()?,
        }
        let (suspects, later) = doubts.load()?;
        let mut site = Self {
            root,
            catalog,
            stats,
            local_edits,
            refusal,
            dirs: Dirs::default(),
            epoch: String::new(),
            made: 0,
            me: (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw()),
            labels: Labels::default(),
            said: HashSet::new(),
            suspects,
            later,
            doubts,
            parked: Vec::new(),
        };
        let top = site.root.open_dir_path(b"").map_err(|e| site.error("open", b"", e))?;
        site.dirs.put(FileId::ROOT, top);
        site.open_stage()?;
        Ok(site)
    }

    /// Makes or adopts the staging directory; nobody else may enter it, and nothing is inherited from it.
    fn open_stage(&mut self) -> Result<()> {
        let made = || match rfs::mkdirat(self.root.fd(), STAGE_DIR, Mode::from_raw_mode(0o700)) {
            Ok(()) | Err(Errno::EXIST) => Ok(()),
            Err(e) => Err(self.error("create", STAGE_DIR, e)),
        };
        made()?;
        let there = sys::stat_at(self.root.fd(), STAGE_DIR).map_err(|e| self.error("stat", STAGE_DIR, e))?;
        if there.is_some_and(|s| s.kind != Kind::Dir) {
            // The name is towline's own: what somebody else put there goes, and nothing is followed.
            tracing::warn!("'{}' is no directory: made anew", self.root.join(STAGE_DIR).display());
            rfs::unlinkat(self.root.fd(), STAGE_DIR, AtFlags::empty())
                .map_err(|e| self.error("remove", STAGE_DIR, e))?;
            made()?;
        }
        let fd = self.root.open_dir(STAGE_DIR).map_err(|e| self.error("open", STAGE_DIR, e))?;
        for acl in ["system.posix_acl_default", "system.posix_acl_access"] {
            match rfs::fremovexattr(&fd, acl) {
                Ok(()) | Err(Errno::NODATA | Errno::NOTSUP) => {}
                Err(e) => return Err(self.error("clear the ACL of", STAGE_DIR, e)),
            }
        }
        rfs::fchmod(&fd, Mode::from_raw_mode(0o700)).map_err(|e| self.error("restrict", STAGE_DIR, e))?;
        let stat = sys::stat_fd(&fd).map_err(|e| self.error("stat", STAGE_DIR, e))?;
        // On a file system that hands the directory's group down, files come out with this one.
        self.me.1 = stat.attrs.gid;
        let mut newest = 0_u64;
        sys::list_dir(&fd, |name, _, _| {
            let head = name.to_bytes().split(|&b| b == b'.').next().unwrap_or_default();
            let n = std::str::from_utf8(head).ok().and_then(|s| u64::from_str_radix(s, 16).ok());
            newest = newest.max(n.unwrap_or_default());
        })
        .map_err(|e| self.error("list", STAGE_DIR, e))?;
        self.epoch = format!("{:x}.", newest.wrapping_add(1));
        self.labels = Labels::of(&fd);
        self.dirs.put(STAGE, fd);
        Ok(())
    }

    /// A clean stop leaves no staging directory behind.
    pub(crate) fn remove_stage(&mut self) {
        self.dirs.forget(STAGE);
        let _ = rfs::unlinkat(self.root.fd(), STAGE_DIR, AtFlags::REMOVEDIR);
    }

    /// Passes a failpoint.
    pub(crate) fn point(&self, name: &'static str) -> std::io::Result<()> {
        #[cfg(test)]
        super::tests::burn(self.root.path())?;
        crate::failpoint::pass(name)
    }

    /// A name in the staging directory that nobody has used.
    pub(crate) fn stage_name(&mut self, id: FileId) -> Vec<u8> {
        self.made += 1;
        format!("{}n{:x}.{}", self.epoch, self.made, id.0).into_bytes()
    }

    /// An operating-system error about a path beneath the root.
    pub(crate) fn error(&self, verb: &str, path: &[u8], e: impl Into<std::io::Error>) -> Error {
        Error::io(verb, self.root.join(path), e)
    }

    pub(crate) fn stats(&self) -> std::sync::MutexGuard<'_, ApplyStats> {
        self.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a thing could not be done, and counts it when it is `new`; the log says so once for each class.
    pub(crate) fn skip(&mut self, what: Skip, path: &[u8], new: bool) {
        {
            let mut stats = self.stats();
            let count = stats.skipped_privilege.entry(what.word()).or_default();
            *count += u64::from(new || *count == 0);
        }
        if self.said.insert(what) {
            tracing::warn!(path = %path.escape_ascii(), "{}", what.text());
        }
    }

    /// Says what the scan found to be in the catalog only.
    pub(crate) fn say(&mut self, what: Skip, count: u64, path: &[u8]) {
        if self.said.insert(what) {
            tracing::warn!(path = %path.escape_ascii(), count, "{}", what.text());
        }
    }

    /// Reports what somebody else did to the directory. Returns the path as it is shown.
    pub(crate) fn report(&self, path: &[u8], what: &str) -> String {
        let shown = path.escape_ascii().to_string();
        tracing::warn!(path = %shown, "local edit: {what}");
        let mut stats = self.stats();
        stats.local_edits_total += 1;
        if stats.local_edits.len() < EDITS_MAX {
            stats.local_edits.push(LocalEdit { path: shown.clone(), what: what.to_owned() });
        }
        shown
    }

    /// Reports what somebody else did and is undone on the way, whatever is configured.
    pub(crate) fn repaired(&mut self, path: &[u8], what: &str) {
        self.report(path, what);
        self.stats().local_edits_repaired += 1;
    }

    /// Reports what somebody else did to the directory. With [`LocalEdits::Refuse`] that is the end.
    pub(crate) fn edited(&mut self, path: &[u8], what: &str) -> Result<()> {
        let shown = self.report(path, what);
        match self.local_edits {
            LocalEdits::Overwrite => Ok(()),
            LocalEdits::Refuse => {
                if let Err(e) = self.refusal.note(&self.root, path, what) {
                    tracing::warn!("a refused change is not remembered over a restart: {e}");
                }
                Err(refused(&shown, what))
            }
        }
    }
}

/// The catalog's root must be this directory: a bare mount point is not to be filled or judged. A device that is
/// numbered anew since the last start is noted.
pub(crate) fn check_identity(fold: &Fold, root: &Root) -> Result<()> {
    let failed = |e| Error::io("stat", root.path(), e);
    let here = sys::stat_fd(root.fd()).map_err(failed)?.local;
    let known = fold.read().get(FileId::ROOT).and_then(|n| n.seen).map(|s| s.local);
    let Some(known) = known.filter(|k| !same_inode(k, &here)) else { return Ok(()) };
    if !same_inode(&LocalId { dev: here.dev, ..known }, &here) {
        let text = format!(
            "'{}' is not the directory that this follower keeps ({}): mount the right one, or \
             empty the state directory and this one, to fill it anew",
            root.path().display(),
            here.unlike(&known)
        );
        return Err(Error::new(ErrorKind::Refused, text));
    }
    fold.write().renumber_device(known.dev, here.dev);
    Ok(())
}

/// What cannot be made equal again from what is here.
pub(crate) fn diverged(path: &[u8], what: &str) -> Error {
    Error::new(
        ErrorKind::Diverged,
        format!(
            "'{}' {what}, and the log at hand does not hold its whole content: this directory has \
             diverged from its leader; `towline resync` makes it equal again",
            path.escape_ascii()
        ),
    )
}

/// Whether the inode at hand is the one that was seen. Birth times are compared where both are known.
pub(crate) fn same_inode(a: &LocalId, b: &LocalId) -> bool {
    let none = Time::default();
    a.dev == b.dev && a.ino == b.ino && (a.btime == b.btime || a.btime == none || b.btime == none)
}

/// What `stat` shows, as the catalog keeps it.
pub(crate) fn seen(stat: &Stat, now: Time) -> Seen {
    /// Two ticks of the coarsest clock that stamps files: a later change could carry the same time.
    const TICKS_NS: i64 = 20_000_000;
    let age = (now.sec - stat.ctime.sec)
        .saturating_mul(1_000_000_000)
        .saturating_add(i64::from(now.nsec) - i64::from(stat.ctime.nsec));
    Seen { local: stat.local, ctime: stat.ctime, racy: age < TICKS_NS }
}

/// The clock that stamps files.
pub(crate) fn clock() -> Time {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::RealtimeCoarse);
    Time { sec: t.tv_sec, nsec: u32::try_from(t.tv_nsec).unwrap_or_default() }
}

/// A directory that is being emptied.
struct Level {
    fd: OwnedFd,
    name: Vec<u8>,
    path: Vec<u8>,
    /// Directories in it that are not gone yet.
    below: Vec<Vec<u8>>,
}

/// Removes everything below the directory `name` in `dir`, and it. Each entry is shown to `check` first, with its
/// path from `dir`.
pub(crate) fn remove_tree(
    dir: &OwnedFd,
    name: &[u8],
    check: &mut dyn FnMut(&Stat, &[u8]) -> Result<()>,
) -> Result<()> {
    let mut levels = vec![empty_level(dir, name, name.to_vec(), check)?];
    while let Some(level) = levels.last_mut() {
        if let Some(next) = level.below.pop() {
            let path = [&level.path, &next[..]].join(&b'/');
            let next = empty_level(&level.fd, &next, path, check)?;
            levels.push(next);
        } else if let Some(done) = levels.pop() {
            let above = levels.last().map_or(dir, |l| &l.fd);
            rfs::unlinkat(above, &*done.name, AtFlags::REMOVEDIR)
                .map_err(|e| lost("remove", &done.name, e.into()))?;
        }
    }
    Ok(())
}

fn lost(verb: &str, name: &[u8], e: std::io::Error) -> Error {
    Error::io(verb, std::path::Path::new(&*String::from_utf8_lossy(name)), e)
}

/// Removes the files in a directory and lists the directories in it.
fn empty_level(
    dir: &OwnedFd,
    name: &[u8],
    path: Vec<u8>,
    check: &mut dyn FnMut(&Stat, &[u8]) -> Result<()>,
) -> Result<Level> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NONBLOCK;
    let fd = sys::open_beneath(dir.as_fd(), name, flags, 0).map_err(|e| lost("open", name, e))?;
    let mut entries = Vec::new();
    sys::list_dir(&fd, |entry, _, _| entries.push(entry.to_owned())).map_err(|e| lost("list", name, e))?;
    let mut below = Vec::new();
    for entry in entries {
        let bytes = entry.to_bytes();
        let Some(stat) = sys::stat_at_c(&fd, &entry).map_err(|e| lost("stat", bytes, e))? else { continue };
        check(&stat, &[&path, bytes].join(&b'/'))?;
        if stat.kind == Kind::Dir {
            below.push(bytes.to_vec());
        } else {
            rfs::unlinkat(&fd, &*entry, AtFlags::empty()).map_err(|e| lost("remove", bytes, e.into()))?;
        }
    }
    Ok(Level { fd, name: name.to_vec(), path, below })
}
