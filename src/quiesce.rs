//! Quiesce: holding the application still for the milliseconds a cut takes, and never longer.
//!
//! | `freeze` | how |
//! | --- | --- |
//! | `cgroup:PATH` | the cgroup's freezer: `cgroup.freeze` (v2) or `freezer.state` (v1) |
//! | `unit:NAME` | the cgroup of that systemd unit |
//! | `pid:FILE` | SIGSTOP to the process named in the file and all its descendants; the last resort |
//!
//! A frozen application is thawed on every way out: by [`Held`] when it goes out of scope; by a guard
//! process when this one dies (its pipe closes, even after SIGKILL) or `max_freeze` passes; and by
//! the next start, when a marker in the state directory says that a freeze was under way.

use std::fs;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal, kill, killpg};
use nix::unistd::Pid;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::error::{Context, Error, ErrorKind, Result};
use crate::failpoint;

/// Where a v2 hierarchy and the v1 freezer are mounted.
const CGROUP_ROOTS: [&str; 3] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified", "/sys/fs/cgroup/freezer"];
/// Between two looks at whether the freeze has taken hold.
const LOOK: Duration = Duration::from_micros(200);
/// Longest run of a `before_cut` or `after_cut` command.
const COMMAND_MAX: Duration = Duration::from_secs(30);
/// The same once a stop was asked for.
const COMMAND_STOPPING: Duration = Duration::from_secs(2);
/// Most processes stopped by signal.
const PIDS_MAX: usize = 10_000;

/// What is frozen.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Target {
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
    fn parse(text: &str) -> Result<Self> {
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
    fn freeze(&self) -> Result<()> {
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

    fn frozen(&self) -> Result<bool> {
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

    fn thaw(&self) -> Result<()> {
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
fn family(file: &Path) -> Result<Vec<i32>> {
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

/// The configured way to hold the application still.
#[derive(Debug)]
pub struct Quiesce {
    spec: String,
    target: Target,
    max: Duration,
    before: Option<String>,
    after: Option<String>,
    marker: PathBuf,
    guard: Option<Guard>,
    last: Duration,
    /// A stop was asked for: commands are not waited for.
    stop: Arc<AtomicBool>,
}

/// The guard process; it thaws when its pipe closes or the time is over.
#[derive(Debug)]
struct Guard {
    child: Child,
    pipe: Option<ChildStdin>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        drop(self.pipe.take());
        let _ = self.child.wait();
    }
}

impl Quiesce {
    /// Resolves the configuration and thaws what an earlier process may have left frozen.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] when the target does not exist or towline itself is in it.
    pub fn new(
        freeze: &str,
        max: Duration,
        before: Option<String>,
        after: Option<String>,
        state: &Path,
    ) -> Result<Self> {
        let target = Target::parse(freeze)?;
        let marker = state.join("frozen");
        if let Ok(left) = fs::read_to_string(&marker) {
            tracing::warn!("the last process died while the application was frozen ({left}): thawing it");
            if let Ok(old) = Target::parse(left.trim()) {
                old.thaw()?;
            }
            fs::remove_file(&marker).map_err(|e| Error::io("remove", &marker, e))?;
        }
        Ok(Self {
            spec: freeze.to_owned(),
            target,
            max,
            before,
            after,
            marker,
            guard: None,
            last: Duration::ZERO,
            stop: Arc::default(),
        })
    }

    /// Once `stop` is set a command that runs is ended soon.
    #[must_use]
    pub fn ended_by(self, stop: Arc<AtomicBool>) -> Self {
        Self { stop, ..self }
    }

    /// Whether there is anything to hold the application with.
    #[must_use]
    pub fn configured(&self) -> bool {
        self.target != Target::Nothing || self.before.is_some() || self.after.is_some()
    }

    /// How long the application was held still the last time.
    #[must_use]
    pub fn last(&self) -> Duration {
        self.last
    }

    /// Holds the application still until the result is dropped, for `max_freeze` at most.
    ///
    /// # Errors
    /// When the application can't be held; it runs on then.
    pub fn hold(&mut self) -> Result<Held<'_>> {
        if let Some(command) = &self.before {
            run_command(command, &self.stop).map_err(|e| e.wrap("before_cut"))?;
        }
        let held = Held { since: Instant::now(), quiesce: self };
        // From here on `held` undoes everything when it goes out of scope.
        held.quiesce.freeze()?;
        failpoint::pass("capture::frozen")?;
        Ok(held)
    }

    fn freeze(&mut self) -> Result<()> {
        if self.target == Target::Nothing {
            return Ok(());
        }
        fs::write(&self.marker, &self.spec).map_err(|e| Error::io("write", &self.marker, e))?;
        self.guard()?.tell(b'F')?;
        self.target.freeze()?;
        let deadline = Instant::now() + self.max;
        while !self.target.frozen()? {
            if Instant::now() >= deadline {
                let text = format!(
                    "the application did not freeze within {} ms; raise max_freeze or look at '{}'",
                    self.max.as_millis(),
                    self.spec
                );
                return Err(Error::new(ErrorKind::Unavailable, text));
            }
            std::thread::sleep(LOOK);
        }
        Ok(())
    }

    /// The guard process, started at the first freeze and again if somebody killed it.
    fn guard(&mut self) -> Result<&mut Guard> {
        if self.guard.as_mut().is_some_and(|g| matches!(g.child.try_wait(), Ok(Some(_)))) {
            self.guard = None;
        }
        if self.guard.is_none() {
            let mut child = Command::new("/proc/self/exe")
                .arg("thaw-guard")
                .args([&self.spec, &self.max.as_millis().to_string()])
                .arg(&self.marker)
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .spawn()
                .context(|| "cannot start the thaw guard")?;
            let pipe = child.stdin.take();
            self.guard = Some(Guard { child, pipe });
        }
        self.guard.as_mut().ok_or_else(|| Error::new(ErrorKind::Io, "the thaw guard did not start"))
    }

    fn release(&mut self, since: Instant) -> Result<()> {
        let thawed = self.target.thaw();
        // No longer than that: the guard has thawed it.
        self.last = since.elapsed().min(self.max);
        if thawed.is_ok() && self.target != Target::Nothing {
            if let Some(guard) = &mut self.guard {
                let _ = guard.tell(b'T');
            }
            let _ = fs::remove_file(&self.marker);
        }
        let run = |c| run_command(c, &self.stop).map_err(|e| e.wrap("after_cut"));
        let after = self.after.as_deref().map_or(Ok(()), run);
        thawed.and(after)
    }
}

impl Guard {
    fn tell(&mut self, what: u8) -> Result<()> {
        let pipe =
            self.pipe.as_mut().ok_or_else(|| Error::new(ErrorKind::Io, "the thaw guard has no pipe"))?;
        pipe.write_all(&[what]).context(|| "cannot tell the thaw guard")
    }
}

/// The application is still while this lives.
#[derive(Debug)]
pub struct Held<'a> {
    since: Instant,
    quiesce: &'a mut Quiesce,
}

impl Held<'_> {
    /// Time left before the guard thaws.
    #[must_use]
    pub fn left(&self) -> Duration {
        self.quiesce.max.saturating_sub(self.since.elapsed())
    }

    /// Whether the application was still for the whole time up to now.
    pub fn intact(&self) -> bool {
        !self.left().is_zero() && self.quiesce.target.frozen().unwrap_or(false)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if let Err(e) = self.quiesce.release(self.since) {
            tracing::error!("the application is not thawed by this process ({e}); the guard does it");
        }
    }
}

/// Runs a hook with the shell, for [`COMMAND_MAX`] at most.
fn run_command(command: &str, stop: &AtomicBool) -> Result<()> {
    let mut child = Command::new("/bin/sh")
        .args(["-c", command])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        // What it starts in turn goes with it.
        .process_group(0)
        .spawn()
        .context(|| format!("cannot run '{command}'"))?;
    let mut end = (Instant::now() + COMMAND_MAX, COMMAND_MAX);
    loop {
        if let Some(status) = child.try_wait().context(|| format!("cannot wait for '{command}'"))? {
            if status.success() {
                return Ok(());
            }
            return Err(Error::new(ErrorKind::Unavailable, format!("'{command}' failed ({status})")));
        }
        if end.1 > COMMAND_STOPPING && stop.load(Ordering::SeqCst) {
            end = (end.0.min(Instant::now() + COMMAND_STOPPING), COMMAND_STOPPING);
        }
        if Instant::now() > end.0 {
            if let Ok(group) = i32::try_from(child.id()) {
                let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
            }
            let _ = child.kill();
            let _ = child.wait();
            let text = format!("'{command}' took more than {} s and was ended", end.1.as_secs());
            return Err(Error::new(ErrorKind::Unavailable, text));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The body of the guard process: `thaw-guard SPEC MAX_MS MARKER`, told `F` (frozen) and `T` (thawed) on
/// its standard input.
#[must_use]
pub fn thaw_guard_main(args: &[String]) -> ExitCode {
    let [spec, max, marker] = args else { return ExitCode::from(ErrorKind::Usage.exit_code()) };
    let (Ok(target), Ok(max)) = (Target::parse(spec), max.parse::<u64>()) else {
        return ExitCode::from(ErrorKind::Usage.exit_code());
    };
    // It must outlive a polite end of its parent's group: the parent closes the pipe when it is done.
    let mut set = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        set.add(signal);
    }
    let _ = set.thread_block();
    let stdin = std::io::stdin();
    let mut until: Option<Instant> = None;
    loop {
        let wait = until.map(|u| u.saturating_duration_since(Instant::now()));
        if !readable(&stdin, wait) {
            // The time is over: the application runs on, whatever the parent still does.
            let _ = target.thaw();
            until = None;
            continue;
        }
        // Unbuffered, so that poll sees all that is left; of several words the last one counts.
        let mut words = [0_u8; 64];
        match rustix::io::read(&stdin, &mut words) {
            Ok(n) if n > 0 && words[n - 1] == b'F' => {
                until = Some(Instant::now() + Duration::from_millis(max))
            }
            Ok(n) if n > 0 => until = None,
            _ => {
                if until.is_some() && target.thaw().is_ok() {
                    let _ = fs::remove_file(marker);
                }
                return ExitCode::SUCCESS;
            }
        }
    }
}

/// Waits for input, `None`: for ever. False: the time passed.
fn readable(fd: &impl AsFd, wait: Option<Duration>) -> bool {
    let timeout = wait.and_then(|w| Timespec::try_from(w).ok());
    let mut fds = [PollFd::new(fd, PollFlags::IN)];
    match poll(&mut fds, timeout.as_ref()) {
        Ok(n) => n > 0,
        Err(_) => wait.is_none(),
    }
}

#[cfg(test)]
mod tests {
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

    #[test]
    fn a_failing_hook_is_an_error_that_names_it() {
        let go_on = AtomicBool::new(false);
        let e = run_command("exit 3", &go_on).unwrap_err().to_string();
        assert!(e.contains("exit 3"), "{e}");
        run_command("true", &go_on).unwrap();
        go_on.store(true, Ordering::SeqCst);
        run_command("true", &go_on).unwrap();
        let begun = Instant::now();
        let e = run_command("sleep 600", &go_on).unwrap_err().to_string();
        assert!(e.contains("2 s") && begun.elapsed() < Duration::from_secs(20), "{e}");
    }
}
