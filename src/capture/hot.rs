//! Files whose changes cause no event: stores through a mapping, libaio writes, writes through a name
//! outside of the tree. They are compared by their stamps in an interval.
//!
//! A store through a mapping moves the stamps only when it dirties a clean page. So a mapped file is cleaned
//! (fdatasync through a descriptor of our own) before it is looked at; what is stored later shows again.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use super::examine::split;
use super::hints::{Hints, flag};
use super::watch::earlier;
use crate::catalog::Catalog;
use crate::position::FileId;
use crate::record::Kind;
use crate::sys::{self, Root, Stat};

/// A file that showed no change for this long is polled no more, unless it is open for writing.
const COOL: Duration = Duration::from_secs(60);
/// Most files polled of each kind; the full scan finds what is beyond.
const HOT_MAX: usize = 10_000;
/// Most descriptors looked at in one look through /proc.
const FDS_MAX: usize = 100_000;
/// Looking through /proc may take one part in this many of the time, while the tree changes and while it rests.
const PROC_SHARE: u32 = 500;
const PROC_SHARE_QUIET: u32 = 4000;
/// Between looks through /proc.
const PROC_MIN: Duration = Duration::from_secs(1);
const PROC_MAX: Duration = Duration::from_secs(60);
/// After this time a direct write that was under way when the file was read is over.
const DIRECT_DONE: Duration = Duration::from_secs(3);
/// `O_DIRECT` in the flags that fdinfo shows, on all architectures that differ from the rest included.
const DIRECT: [u32; 3] = [0o40000, 0o200_000, 0o400_000];

/// The hot list.
#[derive(Debug, Default)]
pub(super) struct Hot {
    written: HashMap<Box<[u8]>, Instant>,
    /// Names of files that have more links than names.
    linked: HashSet<Box<[u8]>>,
    /// To be looked at once more when their stamps can't hide a change.
    racy: HashSet<Box<[u8]>>,
    /// Files that some process holds open for writing; true: for direct writes.
    open: HashMap<FileId, bool>,
    mapped: HashMap<FileId, u64>,
    inodes: HashSet<u64>,
    /// Files whose content should be compared soon.
    pub(super) scrub: Vec<FileId>,
    next_proc: Option<Instant>,
    /// Processes whose open files may not be seen.
    pub(super) hidden: u64,
    /// Files that found no place on the list.
    pub(super) dropped: u64,
}

impl Hot {
    /// A file was written.
    pub(super) fn add_written(&mut self, rel: &[u8]) {
        if let Some(at) = self.written.get_mut(rel) {
            *at = Instant::now();
        } else if self.written.len() < HOT_MAX {
            self.written.insert(rel.into(), Instant::now());
        } else {
            self.dropped += 1;
        }
    }

    /// A file has names outside of the tree.
    pub(super) fn add_linked(&mut self, rel: &[u8]) {
        if self.linked.len() >= HOT_MAX {
            self.dropped += 1;
        } else if self.linked.insert(rel.into()) && self.linked.len() == 1 {
            tracing::warn!(
                "'{}' and perhaps other files have names outside of the data directory; writes through \
                 those make no events and are found by polling",
                rel.escape_ascii()
            );
        }
    }

    /// A file was looked at too soon after a change.
    pub(super) fn add_racy(&mut self, rel: &[u8]) {
        if self.racy.len() < HOT_MAX {
            self.racy.insert(rel.into());
        } else {
            self.dropped += 1;
        }
    }

    /// The content of a file is compared soon.
    pub(super) fn scrub_soon(&mut self, id: FileId) {
        if self.scrub.len() < HOT_MAX {
            self.scrub.push(id);
        }
    }

    /// Whether the inode is mapped writable by some process.
    pub(super) fn is_mapped(&self, ino: u64) -> bool {
        self.inodes.contains(&ino)
    }

    /// Number of files polled.
    pub(super) fn len(&self) -> usize {
        self.written.len() + self.linked.len() + self.open.len() + self.mapped.len()
    }

    /// Compares the stamps of every file on the list; what differs becomes a hint.
    pub(super) fn poll(&mut self, root: &Root, home: &Stat, catalog: &Catalog, hints: &Hints, now_too: bool) {
        let now = Instant::now();
        // A tree that just began to change is looked at as one that changes.
        if !self.written.is_empty() && self.next_proc.is_some_and(|t| t > now + PROC_MIN * 3) {
            self.next_proc = None;
        }
        if now_too || self.next_proc.is_none_or(|t| now >= t) {
            self.look_through_proc(root, home, catalog, hints);
            let share = if self.written.is_empty() { PROC_SHARE_QUIET } else { PROC_SHARE };
            self.next_proc = Some(Instant::now() + (now.elapsed() * share).clamp(PROC_MIN, PROC_MAX));
        }
        for path in self.racy.drain() {
            hints.add(&path, flag::SCAN);
        }
        let mut paths: BTreeMap<Vec<u8>, bool> = BTreeMap::new();
        paths.extend(self.written.keys().chain(&self.linked).map(|path| (path.to_vec(), false)));
        let held = self.open.iter().map(|(id, direct)| (*id, *direct));
        let mapped = self.mapped.keys().map(|id| (*id, false));
        for (id, direct) in held.chain(mapped) {
            if let Some(path) = catalog.path(id) {
                *paths.entry(path).or_default() |= direct;
            }
        }
        let mut dir: Option<(Vec<u8>, OwnedFd)> = None;
        for (path, direct) in paths {
            let (parent, name) = split(&path);
            if dir.as_ref().is_none_or(|(rel, _)| rel != parent) {
                dir = root.open_dir_path(parent).ok().map(|fd| (parent.to_vec(), fd));
            }
            let stat = dir.as_ref().and_then(|(_, fd)| sys::stat_at(fd, name).ok().flatten());
            let Some(stat) = stat.filter(|s| s.kind == Kind::File) else {
                self.written.remove(&path[..]);
                self.linked.remove(&path[..]);
                continue;
            };
            self.compare(&path, &stat, direct, catalog, hints);
        }
    }

    fn compare(&mut self, path: &[u8], stat: &Stat, direct: bool, catalog: &Catalog, hints: &Hints) {
        let known = catalog.by_local(stat.local.dev, stat.local.ino).and_then(|id| catalog.get(id));
        let changed = known.is_none_or(|n| {
            n.size != stat.size || n.attrs != stat.attrs || n.seen.is_none_or(|s| s.ctime != stat.ctime)
        });
        if known.is_none_or(|n| stat.nlink <= n.nlink) {
            self.linked.remove(path);
        }
        if direct && stat.ctime > earlier(super::now(), DIRECT_DONE) {
            // The stamps moved when the write began; the data may have come later than we looked.
            hints.add(path, flag::MODIFIED);
        }
        if changed {
            hints.add(path, flag::SCAN);
            self.add_written(path);
        } else if self.written.get(path).is_some_and(|since| since.elapsed() > COOL) {
            self.written.remove(path);
        }
    }

    /// Files of the tree that some process holds open for writing, or has mapped shared and writable.
    fn look_through_proc(&mut self, root: &Root, home: &Stat, catalog: &Catalog, hints: &Hints) {
        (self.hidden, self.open) = (0, HashMap::new());
        let before = std::mem::take(&mut self.mapped);
        let own = std::process::id().to_string();
        let mut budget = FDS_MAX;
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let name = entry.file_name();
            if !name.as_bytes().iter().all(u8::is_ascii_digit) || name.as_bytes() == own.as_bytes() {
                continue;
            }
            let process = entry.path();
            match fs::read_dir(process.join("fd")) {
                Ok(fds) => {
                    for fd in fds.flatten() {
                        budget = budget.saturating_sub(1);
                        if budget > 0 {
                            self.open_file(home, catalog, &process, &fd.path());
                        }
                    }
                }
                Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => self.hidden += 1,
                Err(_) => {}
            }
            if let Ok(maps) = fs::read(process.join("maps")) {
                self.mapped_files(root, home, catalog, &maps);
            }
        }
        self.inodes = self.mapped.values().copied().collect();
        // A file just mapped may have been looked at without cleaning it; one not mapped any more may have had last stores.
        let changed = self.mapped.keys().filter(|id| !before.contains_key(id));
        for id in changed.chain(before.keys().filter(|id| !self.mapped.contains_key(id))) {
            if let Some(path) = catalog.path(*id) {
                hints.add(&path, flag::MODIFIED);
            }
        }
    }

    fn open_file(&mut self, home: &Stat, catalog: &Catalog, process: &Path, fd: &Path) {
        // The link's own mode says how the file is open.
        if !fs::symlink_metadata(fd).is_ok_and(|m| m.mode() & 0o200 != 0) {
            return;
        }
        let Ok(meta) = fs::metadata(fd) else { return };
        if !meta.is_file() || meta.dev() != home.local.dev {
            return;
        }
        let Some(id) = catalog.by_local(meta.dev(), meta.ino()) else { return };
        let Some(number) = fd.file_name() else { return };
        let info = fs::read_to_string(process.join("fdinfo").join(number)).unwrap_or_default();
        let flags = info.lines().find_map(|l| l.strip_prefix("flags:")).map(str::trim);
        let flags = flags.and_then(|f| u32::from_str_radix(f, 8).ok()).unwrap_or(0);
        let direct = flags & DIRECT[direct_index()] != 0;
        if self.open.len() < HOT_MAX {
            *self.open.entry(id).or_default() |= direct;
        } else {
            self.dropped += 1;
        }
    }

    /// Lines of `maps`: range, permissions, offset, device, inode, path.
    fn mapped_files(&mut self, root: &Root, home: &Stat, catalog: &Catalog, maps: &[u8]) {
        let base = root.path().as_os_str().as_bytes();
        for line in maps.split(|&b| b == b'\n') {
            let mut fields = line.splitn(6, |&b| b == b' ');
            let permissions = fields.nth(1).unwrap_or_default();
            if permissions.get(1) != Some(&b'w') || permissions.get(3) != Some(&b's') {
                continue;
            }
            let (device, inode) = (fields.nth(1), fields.next());
            let path = fields.next().unwrap_or_default().trim_ascii_start();
            // Some file systems show another device number here than stat does; then the path has to do.
            let ours = device.and_then(parse_device) == Some(home.local.dev);
            let below = path.strip_prefix(base).and_then(|rest| rest.strip_prefix(b"/"));
            let number = inode.and_then(|n| std::str::from_utf8(n).ok()).and_then(|n| n.parse::<u64>().ok());
            let Some(number) = number.filter(|_| ours || below.is_some()) else { continue };
            if let Some(id) = catalog.by_local(home.local.dev, number) {
                if self.mapped.len() < HOT_MAX {
                    self.mapped.insert(id, number);
                } else {
                    self.dropped += 1;
                }
            }
        }
    }
}

/// `MAJOR:MINOR` in hexadecimal digits.
fn parse_device(text: &[u8]) -> Option<u64> {
    let (major, minor) = std::str::from_utf8(text).ok()?.split_once(':')?;
    let parse = |s| u32::from_str_radix(s, 16).ok();
    Some(rustix::fs::makedev(parse(major)?, parse(minor)?))
}

/// Which value `O_DIRECT` has here.
fn direct_index() -> usize {
    if cfg!(any(target_arch = "arm", target_arch = "aarch64")) {
        1
    } else if cfg!(any(target_arch = "powerpc", target_arch = "powerpc64")) {
        2
    } else {
        0
    }
}
