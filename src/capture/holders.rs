//! Who holds files of the tree open for writing, or has them mapped so: a look through /proc.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use super::engine::read;
use super::hot::HOT_MAX;
use crate::catalog::Catalog;
use crate::position::FileId;
use crate::sys::Root;

/// Most descriptors looked at in one look.
const FDS_MAX: usize = 100_000;
/// Room for the first lines of a process's mappings; the kernel gives a page at a time.
const MAPS_ROOM: usize = 64 << 10;
/// `O_DIRECT` in the flags that fdinfo shows, on all architectures that differ from the rest included.
const DIRECT: [u32; 3] = [0o40000, 0o200_000, 0o400_000];

/// What a look needs to know. The catalog is locked for one inode at a time.
#[derive(Clone)]
pub(super) struct Look {
    pub(super) root: Arc<Root>,
    /// The device that the tree is on.
    pub(super) device: u64,
    pub(super) catalog: Arc<RwLock<Catalog>>,
}

/// What a look found.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Files open for writing; true: for direct writes.
    pub(super) open: HashMap<FileId, bool>,
    /// Files mapped shared and writable, with their inode numbers.
    pub(super) mapped: HashMap<FileId, u64>,
    /// Processes whose open files may not be seen.
    pub(super) hidden: u64,
    /// Files that found no place.
    pub(super) dropped: u64,
    /// The time it took.
    pub(super) took: Duration,
}

impl Look {
    /// Looks at every process but this one.
    pub(super) fn look(&self) -> Found {
        let began = Instant::now();
        let mut found = Found::default();
        let own = std::process::id().to_string();
        let mut budget = FDS_MAX;
        let mut maps = Vec::with_capacity(MAPS_ROOM);
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
                            self.open_file(&process, &fd.path(), &mut found);
                        }
                    }
                }
                Err(e) if e.kind() == ErrorKind::PermissionDenied => found.hidden += 1,
                Err(_) => {}
            }
            maps.clear();
            if File::open(process.join("maps")).and_then(|mut f| f.read_to_end(&mut maps)).is_ok() {
                self.mapped_files(&maps, &mut found);
            }
        }
        found.took = began.elapsed();
        found
    }

    fn known(&self, inode: u64) -> Option<FileId> {
        read(&self.catalog).by_local(self.device, inode)
    }

    fn open_file(&self, process: &Path, fd: &Path, found: &mut Found) {
        // The link's own mode says how the file is open.
        if !fs::symlink_metadata(fd).is_ok_and(|m| m.mode() & 0o200 != 0) {
            return;
        }
        let Ok(meta) = fs::metadata(fd) else { return };
        if !meta.is_file() || meta.dev() != self.device {
            return;
        }
        let Some(id) = self.known(meta.ino()) else { return };
        let Some(number) = fd.file_name() else { return };
        let info = fs::read_to_string(process.join("fdinfo").join(number)).unwrap_or_default();
        let flags = info.lines().find_map(|l| l.strip_prefix("flags:")).map(str::trim);
        let flags = flags.and_then(|f| u32::from_str_radix(f, 8).ok()).unwrap_or(0);
        let direct = flags & DIRECT[direct_index()] != 0;
        if found.open.len() < HOT_MAX {
            *found.open.entry(id).or_default() |= direct;
        } else {
            found.dropped += 1;
        }
    }

    /// Lines of `maps`: range, permissions, offset, device, inode, path.
    fn mapped_files(&self, maps: &[u8], found: &mut Found) {
        let base = self.root.path().as_os_str().as_bytes();
        for line in maps.split(|&b| b == b'\n') {
            let mut fields = line.splitn(6, |&b| b == b' ');
            let permissions = fields.nth(1).unwrap_or_default();
            if permissions.get(1) != Some(&b'w') || permissions.get(3) != Some(&b's') {
                continue;
            }
            let (device, inode) = (fields.nth(1), fields.next());
            let path = fields.next().unwrap_or_default().trim_ascii_start();
            // Some file systems show another device number here than stat does; then the path has to do.
            let ours = device.and_then(parse_device) == Some(self.device);
            let below = path.strip_prefix(base).and_then(|rest| rest.strip_prefix(b"/"));
            let number = inode.and_then(|n| std::str::from_utf8(n).ok()).and_then(|n| n.parse::<u64>().ok());
            let Some(number) = number.filter(|_| ours || below.is_some()) else { continue };
            if let Some(id) = self.known(number) {
                if found.mapped.len() < HOT_MAX {
                    found.mapped.insert(id, number);
                } else {
                    found.dropped += 1;
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
