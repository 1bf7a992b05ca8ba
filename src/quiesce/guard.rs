//! The guard process: it thaws when this process dies (its pipe closes, even after SIGKILL), or when a pass holds the
//! application for longer than `max_freeze`.
//!
//! | word | meaning |
//! | --- | --- |
//! | `F` | a pass holds the application: thaw it when `max_freeze` is over |
//! | `T` | the pass is done |
//! | `S` | the application is held until a quorum is there, however long that takes |
//! | `R` | it is not, any more |

use std::fs;
use std::io::Write;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::target::Target;
use crate::error::{Context, Error, ErrorKind, Result};

/// A guard process as its parent holds it.
#[derive(Debug)]
pub(super) struct Guard {
    child: Child,
    pipe: Option<ChildStdin>,
    /// Longest hold of a pass, as it was told.
    pub(super) max: Duration,
}

impl Drop for Guard {
    fn drop(&mut self) {
        drop(self.pipe.take());
        let _ = self.child.wait();
    }
}

impl Guard {
    /// Starts one for what `spec` names.
    pub(super) fn start(spec: &str, max: Duration, marker: &Path) -> Result<Self> {
        let mut child = Command::new("/proc/self/exe")
            .arg("thaw-guard")
            .args([spec, &max.as_millis().to_string()])
            .arg(marker)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .context(|| "cannot start the thaw guard")?;
        let pipe = child.stdin.take();
        Ok(Self { child, pipe, max })
    }

    /// Whether somebody ended it.
    pub(super) fn is_gone(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(Some(_)))
    }

    /// Says a word to it.
    pub(super) fn tell(&mut self, what: u8) -> Result<()> {
        let pipe =
            self.pipe.as_mut().ok_or_else(|| Error::new(ErrorKind::Io, "the thaw guard has no pipe"))?;
        pipe.write_all(&[what]).context(|| "cannot tell the thaw guard")
    }
}

/// The body of the guard process: `thaw-guard SPEC MAX_MS MARKER`, told words on its standard input.
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
    let (mut until, mut strict) = (None::<Instant>, false);
    loop {
        let wait = until.map(|u| u.saturating_duration_since(Instant::now()));
        if !readable(&stdin, wait) {
            // The time is over: the application runs on, whatever the parent still does.
            if !strict {
                let _ = target.thaw();
            }
            until = None;
            continue;
        }
        // Unbuffered, so that poll sees all that is left.
        let mut words = [0_u8; 64];
        let n = rustix::io::read(&stdin, &mut words).unwrap_or(0);
        for word in &words[..n] {
            match word {
                b'F' => until = Some(Instant::now() + Duration::from_millis(max)),
                b'T' => until = None,
                b'S' => strict = true,
                b'R' => strict = false,
                _ => {}
            }
        }
        if n == 0 {
            if (strict || until.is_some()) && target.thaw().is_ok() {
                let _ = fs::remove_file(marker);
            }
            return ExitCode::SUCCESS;
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
