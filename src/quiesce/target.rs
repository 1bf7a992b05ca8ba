//! What is frozen, and how.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::error::{Error, ErrorKind, Result};

/// Where a v2 hierarchy and the v1 freezer are mounted.
const CGROUP_ROOTS: [&str; 3] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified", "/sys/fs/cgroup/freezer"];
/// Most processes stopped by signal.
const PIDS_MAX: usize = 10_000;

/// What is frozen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Target {
    Nothing,
    CgroupV2(PathBuf),
    CgroupV1(PathBuf),
    Pid(PathBuf),
}

fn refuse(text: String) -> Error {
    Error::new(ErrorKind::Config, text)
}

impl Target {
    /// Finds out what `freeze` means on this host.
    pub(super) fn parse(text: &str) -> Result<Self> {
        if text.is_empty() {
            return Ok(Self::Nothing);
        }
        let (how, what) = text.split_once(':').unwrap_or((text, ""));
        match how {
            "pid" if !what.is_empty() => Ok(Self::Pid(PathBuf::from(what))),
            "cgroup" if !what.is_empty() => Self::cgroup(Path::new(what)),
            "unit" if !what.is_empty() => {
                let cgroup = unit_cgroup(what)?;
                for root in CGROUP_ROOTS {
                    let path = Path::new(root).join(cgroup.trim_start_matches('/'));
                    if let Ok(target) = Self::cgroup(&path) {
                        return Ok(target);
                    }
                }
                Err(refuse(format!("unit '{what}' has no cgroup with a freezer; is it running?")))
            }
            _ => Err(refuse(format!("freeze is '{text}'; write cgroup:PATH, unit:NAME or pid:FILE"))),
        }
    }

    fn cgroup(path: &Path) -> Result<Self> {
        let target = if path.join("cgroup.freeze").exists() {
            Self::CgroupV2(path.to_owned())
        } else if path.join("freezer.state").exists() {
            Self::CgroupV1(path.to_owned())
        } else {
            let text = format!(
                "'{}' is no cgroup with a freezer; name one below {}",
                path.display(),
                CGROUP_ROOTS[0]
            );
            return Err(refuse(text));
        };
        let own = std::process::id().to_string();
        let procs = fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
        if procs.lines().any(|l| l == own) {
            let text = format!(
                "towline itself runs in cgroup '{}' and would freeze with it; run it in its own",
                path.display()
            );
            return Err(refuse(text));
        }
        Ok(target)
    }

    /// Asks for the freeze; it has taken hold when [`frozen`](Self::frozen) says so.
    pub(super) fn freeze(&self) -> Result<()> {
        match self {
            Self::Nothing => Ok(()),
            Self::CgroupV2(dir) => write_knob(&dir.join("cgroup.freeze"), "1"),
            Self::CgroupV1(dir) => write_knob(&dir.join("freezer.state"), "FROZEN"),
            Self::Pid(file) => {
                // A process may fork while its siblings are being stopped: look again until nothing is new.
                let mut stopped = Vec::new();
                loop {
                    let family = family(file)?;
                    let fresh: Vec<_> = family.into_iter().filter(|p| !stopped.contains(p)).collect();
                    if fresh.is_empty() || stopped.len() > PIDS_MAX {
                        return Ok(());
                    }
                    for pid in fresh {
                        let _ = kill(Pid::from_raw(pid), Signal::SIGSTOP);
                        stopped.push(pid);
                    }
                }
            }
        }
    }

    pub(super) fn frozen(&self) -> Result<bool> {
        match self {
            Self::Nothing => Ok(true),
            Self::CgroupV2(dir) => {
                let path = dir.join("cgroup.events");
                let text = fs::read_to_string(&path).map_err(|e| Error::io("read", &path, e))?;
                Ok(text.lines().any(|l| l == "frozen 1"))
            }
            Self::CgroupV1(dir) => {
                let path = dir.join("freezer.state");
                let text = fs::read_to_string(&path).map_err(|e| Error::io("read", &path, e))?;
                Ok(text.trim() == "FROZEN")
            }
            Self::Pid(file) => {
                Ok(family(file)?.into_iter().all(|p| matches!(stat_of(p), None | Some((_, 'T' | 't' | 'Z')))))
            }
        }
    }

    /// Whether nothing of it comes to run any more, though a call to the kernel may still be under way: one that
    /// waits for a stopped child to begin another program never stops itself.
    pub(super) fn is_held(&self) -> Result<bool> {
        match self {
            Self::Pid(file) => {
                let rests = |p| matches!(stat_of(p), None | Some((_, 'T' | 't' | 'Z' | 'D')));
                Ok(family(file)?.into_iter().all(rests))
            }
            _ => self.frozen(),
        }
    }

    pub(super) fn thaw(&self) -> Result<()> {
        match self {
            Self::Nothing => Ok(()),
            Self::CgroupV2(dir) => write_knob(&dir.join("cgroup.freeze"), "0"),
            Self::CgroupV1(dir) => write_knob(&dir.join("freezer.state"), "THAWED"),
            Self::Pid(file) => {
                for pid in family(file)? {
                    let _ = kill(Pid::from_raw(pid), Signal::SIGCONT);
                }
                Ok(())
            }
        }
    }
}

fn write_knob(path: &Path, value: &str) -> Result<()> {
    fs::write(path, value).map_err(|e| Error::io("write", path, e))
}

/// Asks systemd for the cgroup of a unit.
fn unit_cgroup(unit: &str) -> Result<String> {
    let output = Command::new("systemctl")
        .args(["show", "--property=ControlGroup", "--value", "--", unit])
        .stdin(Stdio::null())
        .output()
        .map_err(|e| refuse(format!("unit '{unit}': systemctl can't be asked ({e}); use cgroup:PATH")))?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if text.is_empty() {
        Err(refuse(format!("unit '{unit}' has no cgroup; is it running?")))
    } else {
        Ok(text)
    }
}

/// The process named in the file, and its descendants.
pub(super) fn family(file: &Path) -> Result<Vec<i32>> {
    let text = fs::read_to_string(file).map_err(|e| Error::io("read pid file", file, e))?;
    let first: i32 = text
        .lines()
        .next()
        .and_then(|l| l.trim().parse().ok())
        .filter(|&p| p > 1 && p != std::process::id().cast_signed())
        .ok_or_else(|| {
            refuse(format!("pid file '{}' does not begin with the pid of an application", file.display()))
        })?;
    let mut parents = Vec::new();
    let entries = fs::read_dir("/proc").map_err(|e| Error::io("list", "/proc", e))?;
    for entry in entries.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<i32>().ok()) else { continue };
        if let Some((parent, _)) = stat_of(pid) {
            parents.push((pid, parent));
        }
    }
    let mut out = vec![first];
    let mut at = 0;
    while at < out.len() && out.len() < PIDS_MAX {
        let parent = out[at];
        out.extend(parents.iter().filter(|&&(_, p)| p == parent).map(|&(pid, _)| pid));
        at += 1;
    }
    Ok(out)
}

/// Parent and state of a process, from `/proc/PID/stat` (fields after the last parenthesis).
fn stat_of(pid: i32) -> Option<(i32, char)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = text.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((fields.next()?.parse().ok()?, state))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn a_stopped_family_stands_still_and_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let (out, pid) = (dir.path().join("out"), dir.path().join("pid"));
        let script = format!("while :; do echo x >> {}; done & wait", out.display());
        let mut child = Command::new("/bin/sh").args(["-c", &script]).spawn().unwrap();
        fs::write(&pid, child.id().to_string()).unwrap();
        let target = Target::parse(&format!("pid:{}", pid.display())).unwrap();
        let size = || fs::metadata(&out).map(|m| m.len()).unwrap_or(0);
        let deadline = Instant::now() + Duration::from_secs(20);
        while size() == 0 {
            assert!(Instant::now() < deadline);
        }
        target.freeze().unwrap();
        while !target.frozen().unwrap() {
            assert!(Instant::now() < deadline);
        }
        let before = size();
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(size(), before, "it wrote while it was stopped");
        target.thaw().unwrap();
        while size() == before {
            assert!(Instant::now() < deadline, "it did not go on");
        }
        for pid in family(&pid).unwrap().into_iter().rev() {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        let _ = child.wait();
    }

    #[test]
    fn what_can_not_be_frozen_is_refused_with_the_remedy() {
        for bad in ["yes", "cgroup:", "cgroup:/nowhere", "pid:"] {
            assert_eq!(Target::parse(bad).unwrap_err().kind(), ErrorKind::Config, "{bad}");
        }
        assert_eq!(Target::parse("").unwrap(), Target::Nothing);
    }
}
