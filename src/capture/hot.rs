//! Files whose changes cause no event: stores through a mapping, libaio writes, writes through a name
//! outside of the tree. They are compared by their stamps in an interval.

use std::collections::HashMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

use super::pass::split;
use super::watch::{self, Dirty};
use crate::catalog::Catalog;
use crate::sys::{self, Root};

/// A file that showed no change for this long is polled no more, unless it is open for writing.
const COOL: Duration = Duration::from_secs(30);
/// Most files polled; the full scan finds what is beyond.
const HOT_MAX: usize = 10_000;
/// Looking through /proc may take one part in this many of the time.
const PROC_SHARE: u32 = 500;

/// The hot list.
#[derive(Debug, Default)]
pub(super) struct Hot {
    files: HashMap<Vec<u8>, Instant>,
    mapped: HashMap<Vec<u8>, Instant>,
    next_proc: Option<Instant>,
    /// Processes whose open files may not be seen.
    pub(super) hidden: u64,
}

impl Hot {
    /// Puts a file on the list, or keeps it there.
    pub(super) fn add(&mut self, path: Vec<u8>) {
        if self.files.len() < HOT_MAX {
            self.files.insert(path, Instant::now());
        }
    }

    pub(super) fn len(&self) -> usize {
        self.files.len()
    }

    /// Compares the stamps of every file on the list; what differs becomes a hint.
    pub(super) fn poll(&mut self, root: &Root, catalog: &std::sync::RwLock<Catalog>, dirty: &Dirty) {
        let now = Instant::now();
        if self.next_proc.is_none_or(|t| now >= t) {
            self.look_through_proc(root);
            let took = now.elapsed();
            self.next_proc = Some(Instant::now() + (took * PROC_SHARE).max(Duration::from_secs(1)));
        }
        let mut cold = Vec::new();
        for (path, since) in &mut self.files {
            let Some((dir, name)) = split(path) else { continue };
            if self.mapped.contains_key(path) {
                // Cleans the pages, so that the next store through the mapping moves the mtime.
                if let Ok(fd) = root.open_beneath(path, rustix::fs::OFlags::RDONLY, 0) {
                    let _ = rustix::fs::fdatasync(&fd);
                }
            }
            let stat = root.open_dir_path(dir).ok().and_then(|fd| sys::stat_at(&fd, name).ok().flatten());
            let Some(stat) = stat else {
                cold.push(path.clone());
                continue;
            };
            let catalog = catalog.read().unwrap_or_else(std::sync::PoisonError::into_inner);
            let known = catalog.by_local(stat.local.dev, stat.local.ino).and_then(|id| catalog.get(id));
            let changed = known.is_none_or(|n| {
                n.size != stat.size
                    || n.attrs.mtime != stat.attrs.mtime
                    || n.seen.is_none_or(|s| s.racy || s.ctime != stat.ctime)
            });
            let outside = known.is_some_and(|n| stat.nlink > n.nlink);
            drop(catalog);
            if changed {
                dirty.add(path.clone(), watch::DATA | watch::ATTR);
                *since = now;
            } else if !outside && since.elapsed() > COOL {
                cold.push(path.clone());
            }
        }
        for path in cold {
            self.files.remove(&path);
        }
        self.mapped.retain(|_, t| t.elapsed() < COOL * 2);
    }

    /// Files of the tree that some process holds open for writing, or has mapped shared and writable.
    fn look_through_proc(&mut self, root: &Root) {
        self.hidden = 0;
        let Ok(entries) = fs::read_dir("/proc") else { return };
        let own = std::process::id().to_string();
        for entry in entries.flatten() {
            let name = entry.file_name();
            if !name.as_bytes().iter().all(u8::is_ascii_digit) || name.as_bytes() == own.as_bytes() {
                continue;
            }
            let process = entry.path();
            match fs::read_dir(process.join("fd")) {
                Ok(fds) => fds.flatten().for_each(|fd| self.open_file(root, &process, &fd.path())),
                Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => self.hidden += 1,
                Err(_) => {}
            }
            if let Ok(maps) = fs::read(process.join("maps")) {
                self.mapped_files(root, &maps);
            }
        }
    }

    fn open_file(&mut self, root: &Root, process: &Path, fd: &Path) {
        let Ok(target) = fs::read_link(fd) else { return };
        let Ok(rel) = target.strip_prefix(root.path()) else { return };
        let Some(number) = fd.file_name() else { return };
        let info = fs::read_to_string(process.join("fdinfo").join(number)).unwrap_or_default();
        let flags = info.lines().find_map(|l| l.strip_prefix("flags:")).map(str::trim);
        let writable = flags.and_then(|f| u32::from_str_radix(f, 8).ok()).is_some_and(|f| f & 0o3 != 0);
        if writable && target.is_file() {
            self.add(rel.as_os_str().as_bytes().to_vec());
        }
    }

    /// Lines of `maps`: range, permissions, offset, device, inode, path.
    fn mapped_files(&mut self, root: &Root, maps: &[u8]) {
        let base = root.path().as_os_str().as_bytes();
        for line in maps.split(|&b| b == b'\n') {
            let mut fields = line.splitn(6, |&b| b == b' ');
            let permissions = fields.nth(1).unwrap_or_default();
            if permissions.get(1) != Some(&b'w') || permissions.get(3) != Some(&b's') {
                continue;
            }
            let path = fields.nth(3).unwrap_or_default().trim_ascii_start();
            if let Some(rel) = path.strip_prefix(base).and_then(|r| r.strip_prefix(b"/")) {
                self.mapped.insert(rel.to_vec(), Instant::now());
                self.add(rel.to_vec());
            }
        }
    }
}
