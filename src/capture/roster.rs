//! The processes of this machine, with files of /proc kept open by which a second look at them is cheap: a look that
//! somebody waits for is made at every process, at every call.

use std::collections::HashMap;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;

use nix::sys::resource::{Resource, getrlimit};
use rustix::fs::{AtFlags, Mode, OFlags, RawDir};
use rustix::io::Errno;

/// Files kept open may take one part in this many of those that this process may open.
const LIMIT_SHARE: u64 = 8;
/// Most processes whose files are kept open, two for each.
const KEPT_MAX: usize = 1024;
/// Room for names of /proc at one time.
const NAMES_ROOM: usize = 16 << 10;
/// `PF_KTHREAD` of include/linux/sched.h, in field 9 of /proc/PID/stat. It never goes away.
const KERNEL_THREAD: u64 = 0x0020_0000;

/// What tells cheaply whether a process may hold something new.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Measure {
    /// Pages of its address space.
    pages: u64,
    /// Descriptors it has; 0 where the kernel does not say (before Linux 6.2).
    fds: u64,
}

impl Measure {
    /// Whether it says anything. A thread of the kernel has neither memory nor descriptors.
    pub(super) fn is_known(self) -> bool {
        self.fds > 0 || self.pages == 0
    }
}

/// What is kept of one process.
enum Kept {
    /// A thread of the kernel: it holds nothing of anybody.
    Kernel,
    /// Its `statm` and its `fd`.
    Open { statm: OwnedFd, fds: OwnedFd },
    /// There was no place for its files.
    Named,
}

/// The processes as they were listed last.
#[derive(Default)]
pub(super) struct Roster {
    /// By number; the inode of its directory in /proc is another one when the number is given to another process.
    kept: HashMap<u32, (u64, Kept)>,
    open: usize,
    room: usize,
    /// Nothing is kept open: there is no next look.
    once: bool,
}

impl Roster {
    /// One for a single look.
    pub(super) fn once() -> Self {
        Self { once: true, ..Self::default() }
    }

    /// Lists all processes but this one, with a measure of each.
    pub(super) fn list(&mut self) -> Vec<(u32, Measure)> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let Ok(proc) = rustix::fs::open("/proc", flags, Mode::empty()) else { return Vec::new() };
        if self.room == 0 && !self.once {
            let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(soft, _)| soft / LIMIT_SHARE / 2);
            self.room = usize::try_from(limit).unwrap_or(KEPT_MAX).clamp(1, KEPT_MAX);
        }
        let own = std::process::id();
        let mut before = std::mem::take(&mut self.kept);
        let mut list = Vec::with_capacity(before.len() + 16);
        let mut names = [MaybeUninit::uninit(); NAMES_ROOM];
        let mut entries = RawDir::new(&proc, &mut names);
        while let Some(Ok(entry)) = entries.next() {
            let pid = entry.file_name().to_str().ok().and_then(|name| name.parse::<u32>().ok());
            let Some(pid) = pid.filter(|&pid| pid != own) else { continue };
            let old = match before.remove(&pid) {
                Some((inode, kept)) if inode == entry.ino() => Some(kept),
                Some((_, kept)) => {
                    self.closed(&kept);
                    None
                }
                None => None,
            };
            if let Some((kept, measure)) = self.measure(&proc, pid, old) {
                self.kept.insert(pid, (entry.ino(), kept));
                list.push((pid, measure));
            }
        }
        // Those that are gone.
        for (_, kept) in before.values() {
            self.closed(kept);
        }
        list
    }

    fn closed(&mut self, kept: &Kept) {
        self.open -= usize::from(matches!(kept, Kept::Open { .. }));
    }

    /// `None`: it is gone.
    fn measure(&mut self, proc: &OwnedFd, pid: u32, kept: Option<Kept>) -> Option<(Kept, Measure)> {
        if matches!(kept, Some(Kept::Kernel)) || kept.is_none() && is_kernel_thread(proc, pid) {
            return Some((Kept::Kernel, Measure::default()));
        }
        if let Some(Kept::Open { statm, fds }) = kept {
            if let (Ok(pages), Ok(count)) = (pages(&statm), rustix::fs::fstat(&fds)) {
                let measure = Measure { pages, fds: u64::try_from(count.st_size).unwrap_or(0) };
                return Some((Kept::Open { statm, fds }, measure));
            }
            self.open -= 1;
        }
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let statm = rustix::fs::openat(proc, format!("{pid}/statm"), flags, Mode::empty()).ok()?;
        let pages = pages(&statm).ok()?;
        let path = format!("{pid}/fd");
        let kept = if self.open < self.room {
            rustix::fs::openat(proc, &path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).ok()
        } else {
            None
        };
        // Where nobody may look, there is no count.
        let count = match &kept {
            Some(fds) => rustix::fs::fstat(fds),
            None => rustix::fs::statat(proc, &path, AtFlags::empty()),
        };
        let measure = Measure { pages, fds: count.map_or(0, |m| u64::try_from(m.st_size).unwrap_or(0)) };
        let kept = kept.map_or(Kept::Named, |fds| Kept::Open { statm, fds });
        self.open += usize::from(matches!(kept, Kept::Open { .. }));
        Some((kept, measure))
    }
}

/// The first number of `statm`.
fn pages(statm: &OwnedFd) -> Result<u64, Errno> {
    let mut text = [0_u8; 128];
    let len = rustix::io::pread(statm, &mut text, 0)?;
    let first = text[..len].split(|b| !b.is_ascii_digit()).next().unwrap_or_default();
    Ok(std::str::from_utf8(first).ok().and_then(|n| n.parse().ok()).unwrap_or(0))
}

fn is_kernel_thread(proc: &OwnedFd, pid: u32) -> bool {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let Ok(stat) = rustix::fs::openat(proc, format!("{pid}/stat"), flags, Mode::empty()) else {
        return false;
    };
    let mut text = [0_u8; 512];
    let Ok(len) = rustix::io::pread(&stat, &mut text, 0) else { return false };
    // The name, in parentheses, may hold anything.
    let Some(end) = text[..len].iter().rposition(|&b| b == b')') else { return false };
    let field = text[end + 1..len].split(|&b| b == b' ').filter(|f| !f.is_empty()).nth(6);
    let flags = field.and_then(|f| std::str::from_utf8(f).ok()).and_then(|f| f.parse::<u64>().ok());
    flags.is_some_and(|flags| flags & KERNEL_THREAD != 0)
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    fn of(list: &[(u32, Measure)], pid: u32) -> Option<Measure> {
        list.iter().find(|(p, _)| *p == pid).map(|(_, measure)| *measure)
    }

    #[test]
    fn processes_come_and_go_and_a_measure_tells_of_a_new_descriptor() {
        let mut roster = Roster::default();
        let first = roster.list();
        assert!(of(&first, std::process::id()).is_none(), "this process is not of interest");
        let dir = tempfile::tempdir().unwrap();
        let (go, new) = (dir.path().join("go"), dir.path().join("new"));
        let script = format!(
            "until [ -e {go} ]; do sleep 0.02; done; exec 7>{new}; sleep 60 & echo $!; wait",
            go = go.display(),
            new = new.display()
        );
        let mut child = Command::new("sh").args(["-c", &script]).stdout(Stdio::piped()).spawn().unwrap();
        let pid = child.id();
        let before = of(&roster.list(), pid).expect("it is listed");
        assert!(matches!(roster.kept.get(&pid), Some((_, Kept::Open { .. }))), "its files are kept open");
        std::fs::write(&go, "").unwrap();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
        while !new.exists() && std::time::Instant::now() < deadline {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        let after = of(&roster.list(), pid).expect("it is listed");
        assert!(before.is_known() && after.fds == before.fds + 1, "{before:?} {after:?}");
        let mut line = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(child.stdout.take().unwrap()), &mut line)
            .unwrap();
        let sleeper = line.trim().parse::<i32>().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        let list = roster.list();
        assert!(of(&list, pid).is_none(), "it is gone");
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(sleeper), nix::sys::signal::Signal::SIGKILL)
            .unwrap();
        let counted = roster.kept.values().filter(|(_, k)| matches!(k, Kept::Open { .. })).count();
        assert_eq!(roster.open, counted);
    }

    #[test]
    fn without_room_it_measures_the_same() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let mut roster = Roster { room: 1, ..Roster::default() };
        roster.list();
        assert_eq!(roster.open, 1);
        let mut roomy = Roster::default();
        let (with, without) = (of(&roomy.list(), child.id()), of(&roster.list(), child.id()));
        assert!(with.is_some() && with == without, "{with:?} {without:?}");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn threads_of_the_kernel_are_told_from_processes() {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let proc = rustix::fs::open("/proc", flags, Mode::empty()).unwrap();
        assert!(!is_kernel_thread(&proc, std::process::id()));
        // In a container there may be none.
        if std::fs::read_to_string("/proc/2/comm").is_ok_and(|name| name.trim() == "kthreadd") {
            assert!(is_kernel_thread(&proc, 2));
        }
    }
}
