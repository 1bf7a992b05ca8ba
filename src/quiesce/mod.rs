//! Quiesce: holding the application still for the milliseconds a cut takes, and never longer; or, where the operator asked
//! for that, until enough followers are there to confirm what it writes.
//!
//! | `freeze` | how |
//! | --- | --- |
//! | `cgroup:PATH` | the cgroup's freezer: `cgroup.freeze` (v2) or `freezer.state` (v1) |
//! | `unit:NAME` | the cgroup of that systemd unit |
//! | `pid:FILE` | SIGSTOP to the process named in the file and all its descendants; the last resort |
//!
//! Several may want it frozen, a pass, the quorum and a switchover: one [`Freezer`] knows them all, and thaws when none does. A frozen
//! application is thawed on every way out: by [`Held`] when it goes out of scope; by a guard
//! process when this one dies (its pipe closes, even after SIGKILL) or, of a pass, when `max_freeze` is over; and by
//! the next start, when a marker in the state directory says that a freeze was under way.

use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::error::{Context, Error, ErrorKind, Result};
use crate::failpoint;

mod freezer;
mod guard;
mod target;

pub use freezer::{Freezer, Holder};
pub use guard::thaw_guard_main;

/// Longest run of a `before_cut` or `after_cut` command.
const COMMAND_MAX: Duration = Duration::from_secs(30);
/// The same once a stop was asked for.
const COMMAND_STOPPING: Duration = Duration::from_secs(2);

/// Whether `freeze` names something that can be frozen on this host now.
///
/// # Errors
/// [`ErrorKind::Config`] when the target does not exist or towline itself is in it.
pub fn vet(freeze: &str) -> Result<()> {
    target::Target::parse(freeze).map(|_| ())
}

/// The configured way to hold the application still for a cut.
#[derive(Debug)]
pub struct Quiesce {
    freezer: Arc<Freezer>,
    max: Duration,
    before: Option<String>,
    after: Option<String>,
    last: Duration,
    /// A stop was asked for: commands are not waited for.
    stop: Arc<AtomicBool>,
}

impl Quiesce {
    /// Resolves the configuration.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] when the target does not exist or towline itself is in it.
    pub fn new(
        freezer: Arc<Freezer>,
        freeze: &str,
        max: Duration,
        before: Option<String>,
        after: Option<String>,
    ) -> Result<Self> {
        freezer.aim(freeze, max)?;
        Ok(Self { freezer, max, before, after, last: Duration::ZERO, stop: Arc::default() })
    }

    /// Once `stop` is set a command that runs is ended soon.
    #[must_use]
    pub fn ended_by(self, stop: Arc<AtomicBool>) -> Self {
        Self { stop, ..self }
    }

    /// Whether there is anything to hold the application with.
    #[must_use]
    pub fn configured(&self) -> bool {
        self.freezer.aimed() || self.before.is_some() || self.after.is_some()
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
        held.quiesce.freezer.hold()?;
        failpoint::pass("capture::frozen")?;
        Ok(held)
    }

    fn release(&mut self, since: Instant) -> Result<()> {
        let thawed = self.freezer.let_go();
        // No longer than that: the guard has thawed it.
        self.last = since.elapsed().min(self.max);
        let run = |c| run_command(c, &self.stop).map_err(|e| e.wrap("after_cut"));
        let after = self.after.as_deref().map_or(Ok(()), run);
        thawed.and(after)
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
        !self.left().is_zero() && self.quiesce.freezer.frozen()
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
    run_hook(command, &[], COMMAND_MAX, stop)
}

/// Runs a command with these variables, for `limit` at most; what it started goes with it then.
///
/// # Errors
/// It can't be run, failed, or took too long.
pub fn run_hook(command: &str, env: &[(&str, String)], limit: Duration, stop: &AtomicBool) -> Result<()> {
    let mut child = Command::new("/bin/sh")
        .args(["-c", command])
        .envs(env.iter().map(|(k, v)| (*k, v.as_str())))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        // What it starts in turn goes with it.
        .process_group(0)
        .spawn()
        .context(|| format!("cannot run '{command}'"))?;
    let mut end = (Instant::now() + limit, limit);
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
            let (s, ms) = (end.1.as_secs(), end.1.subsec_millis());
            let limit = if ms == 0 { format!("{s} s") } else { format!("{} ms", end.1.as_millis()) };
            let text = format!("'{command}' took more than {limit} and was ended");
            return Err(Error::new(ErrorKind::Unavailable, text));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
