//! Who holds files of the tree open for writing, or has them mapped so: a look through /proc.

use std::collections::HashMap;
use std::ffi::CStr;
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::engine::read;
use super::hot::HOT_MAX;
use super::roster::{Measure, Roster};
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
    /// Process by process.
    pub(super) processes: Processes,
}

impl Found {
    fn add(&mut self, process: &Process) {
        self.hidden += u64::from(process.hidden);
        for &(id, direct) in &process.open {
            if self.open.len() < HOT_MAX {
                *self.open.entry(id).or_default() |= direct;
            } else {
                self.dropped += 1;
            }
        }
        for &(id, number) in &process.mapped {
            if self.mapped.len() < HOT_MAX {
                self.mapped.insert(id, number);
            } else {
                self.dropped += 1;
            }
        }
    }
}

/// What was found of one process.
#[derive(Clone, Debug, Default)]
pub(super) struct Process {
    measure: Measure,
    open: Vec<(FileId, bool)>,
    /// One of these is open for reading too, and may be mapped.
    mappable: bool,
    mapped: Vec<(FileId, u64)>,
    hidden: bool,
}

/// What was found of all of them, by number.
pub(super) type Processes = HashMap<u32, Process>;

impl Look {
    /// Looks at every process but this one.
    pub(super) fn look(&self) -> Found {
        self.look_since(&Processes::new(), &mut Roster::once())
    }

    /// The same, but of a process that has as much memory and as many descriptors as `before` nothing new is expected
    /// that it could not map: what it swapped for something of the same size meanwhile is found by the next look at
    /// everything. One that has files of the tree open which it could map is asked for its mappings each time.
    pub(super) fn look_since(&self, before: &Processes, roster: &mut Roster) -> Found {
        let began = Instant::now();
        let mut found = Found::default();
        let mut budget = FDS_MAX;
        let mut maps = Vec::with_capacity(MAPS_ROOM);
        for (pid, measure) in roster.list() {
            let rests = |p: &&Process| p.measure == measure && measure.is_known();
            let process = match before.get(&pid).filter(rests) {
                Some(process) if process.mapped.is_empty() && !process.mappable => process.clone(),
                Some(process) => {
                    let mut process = Process { mapped: Vec::new(), ..process.clone() };
                    self.maps(&of(pid), &mut maps, &mut process);
                    process
                }
                None => self.process(&of(pid), measure, &mut budget, &mut maps),
            };
            found.add(&process);
            found.processes.insert(pid, process);
        }
        found.took = began.elapsed();
        found
    }

    fn process(&self, path: &Path, measure: Measure, budget: &mut usize, maps: &mut Vec<u8>) -> Process {
        let mut process = Process { measure, ..Process::default() };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match rustix::fs::open(path.join("fd"), flags, Mode::empty()) {
            Ok(dir) => self.open_files(path, &dir, budget, &mut process),
            Err(Errno::ACCESS | Errno::PERM) => process.hidden = true,
            Err(_) => {}
        }
        self.maps(path, maps, &mut process);
        process
    }

    fn maps(&self, path: &Path, maps: &mut Vec<u8>, process: &mut Process) {
        maps.clear();
        if File::open(path.join("maps")).and_then(|mut f| f.read_to_end(maps)).is_ok() {
            self.mapped_files(maps, process);
        }
    }

    fn known(&self, inode: u64) -> Option<FileId> {
        read(&self.catalog).by_local(self.device, inode)
    }

    /// Looks at the descriptors that a process lists in `dir`; names are looked up there, not from the root on.
    fn open_files(&self, process: &Path, dir: &OwnedFd, budget: &mut usize, found: &mut Process) {
        let Ok(names) = rustix::fs::Dir::read_from(dir) else { return };
        for name in names.flatten() {
            let name = name.file_name();
            if !name.to_bytes().iter().all(u8::is_ascii_digit) {
                continue;
            }
            *budget = budget.saturating_sub(1);
            if *budget > 0 {
                self.open_file(process, dir, name, found);
            }
        }
    }

    fn open_file(&self, process: &Path, dir: &OwnedFd, name: &CStr, found: &mut Process) {
        // The link's own mode says how the file is open.
        let link = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).map_or(0, |m| m.st_mode);
        if link & 0o200 == 0 {
            return;
        }
        let Ok(meta) = rustix::fs::statat(dir, name, AtFlags::empty()) else { return };
        let file = FileType::from_raw_mode(meta.st_mode) == FileType::RegularFile;
        if !file || meta.st_dev != self.device {
            return;
        }
        let Some(id) = self.known(meta.st_ino) else { return };
        let number = std::ffi::OsStr::from_bytes(name.to_bytes());
        let info = fs::read_to_string(process.join("fdinfo").join(number)).unwrap_or_default();
        let flags = info.lines().find_map(|l| l.strip_prefix("flags:")).map(str::trim);
        let flags = flags.and_then(|f| u32::from_str_radix(f, 8).ok()).unwrap_or(0);
        let direct = flags & DIRECT[direct_index()] != 0;
        found.open.push((id, direct));
        found.mappable |= link & 0o400 != 0;
    }

    /// Lines of `maps`: range, permissions, offset, device, inode, path.
    fn mapped_files(&self, maps: &[u8], found: &mut Process) {
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
                found.mapped.push((id, number));
            }
        }
    }
}

/// The directory of a process.
fn of(pid: u32) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}"))
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
