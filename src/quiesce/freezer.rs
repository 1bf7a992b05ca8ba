//! The one that freezes and thaws, for everybody who wants the application still.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::guard::Guard;
use super::target::Target;
use crate::error::{Error, ErrorKind, Result};

/// Between two looks at whether the freeze has taken hold.
const LOOK: Duration = Duration::from_micros(200);
/// How long a freeze for the quorum may take to take hold before that is an error; it is tried again.
const SEIZE_MAX: Duration = Duration::from_secs(1);

/// Who keeps the application still for longer than a pass.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Holder {
    /// Until the quorum is there.
    Quorum,
    /// Until another node leads, or this one leads on.
    Switchover,
}

/// What is frozen, and who wants it to be.
#[derive(Debug)]
pub struct Freezer {
    marker: PathBuf,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    spec: String,
    target: Target,
    max: Duration,
    guard: Option<Guard>,
    /// A pass wants it still.
    pass: bool,
    /// It has to be still until each of them lets it go.
    held: [bool; 2],
}

impl Freezer {
    /// Thaws what an earlier process may have left frozen. Nothing is aimed at yet.
    #[must_use]
    pub fn new(state: &Path) -> Self {
        let marker = state.join("frozen");
        if let Ok(left) = fs::read_to_string(&marker) {
            tracing::warn!("the last process died while the application was frozen ({left}): thawing it");
            // What is not there any more needs no thaw.
            let thawed = Target::parse(left.trim()).map_or(Ok(()), |old| old.thaw());
            let removed =
                thawed.and_then(|()| fs::remove_file(&marker).map_err(|e| Error::io("remove", &marker, e)));
            if let Err(e) = removed {
                tracing::error!(
                    "the application may still be frozen: {e}; thaw it, and remove '{}'",
                    marker.display()
                );
            }
        }
        let inner = Inner {
            spec: String::new(),
            target: Target::Nothing,
            max: Duration::ZERO,
            guard: None,
            pass: false,
            held: [false; 2],
        };
        Self { marker, inner: Mutex::new(inner) }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Aims at what `freeze` names; `max` is the longest hold of a pass. What was aimed at before is thawed.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] when the target does not exist or towline itself is in it.
    pub fn aim(&self, freeze: &str, max: Duration) -> Result<()> {
        let mut inner = self.lock();
        inner.max = max;
        if inner.spec == freeze {
            return Ok(());
        }
        let target = Target::parse(freeze)?;
        if inner.pass || inner.is_held() {
            inner.thaw(&self.marker, b'R')?;
            (inner.pass, inner.held) = (false, [false; 2]);
        }
        (inner.spec, inner.target, inner.guard) = (freeze.to_owned(), target, None);
        Ok(())
    }

    /// Whether there is anything to freeze.
    #[must_use]
    pub fn aimed(&self) -> bool {
        self.lock().target != Target::Nothing
    }

    /// Whether the application stands still.
    #[must_use]
    pub fn frozen(&self) -> bool {
        let target = self.lock().target.clone();
        target.frozen().unwrap_or(false)
    }

    /// A pass wants it still, for the time that was given at most; [`let_go`](Self::let_go) has to follow, also after
    /// an error.
    pub(super) fn hold(&self) -> Result<()> {
        let (target, max, spec) = {
            let mut inner = self.lock();
            if inner.target == Target::Nothing {
                return Ok(());
            }
            inner.pass = true;
            inner.freeze(&self.marker, b'F')?;
            (inner.target.clone(), inner.max, inner.spec.clone())
        };
        if takes_hold(&target, max)? {
            return Ok(());
        }
        let text = format!(
            "the application did not freeze within {} ms; raise max_freeze or look at '{spec}'",
            max.as_millis()
        );
        Err(Error::new(ErrorKind::Unavailable, text))
    }

    /// The pass is done.
    pub(super) fn let_go(&self) -> Result<()> {
        let mut inner = self.lock();
        let held = std::mem::take(&mut inner.pass);
        if !held || inner.is_held() {
            return inner.tell(b'T');
        }
        inner.thaw(&self.marker, b'T')
    }

    /// Keeps the application still until [`release`](Self::release); may be called again to make sure of it.
    ///
    /// # Errors
    /// When it can't be held, or not at once. It is not let go by that.
    pub fn seize(&self, holder: Holder) -> Result<()> {
        let (target, spec) = {
            let mut inner = self.lock();
            if inner.target == Target::Nothing {
                return Err(Error::new(ErrorKind::Config, "nothing says what is to be frozen; set freeze"));
            }
            inner.held[holder as usize] = true;
            inner.freeze(&self.marker, b'S')?;
            (inner.target.clone(), inner.spec.clone())
        };
        if takes_hold(&target, SEIZE_MAX)? || target.is_held()? {
            return Ok(());
        }
        let text =
            format!("the application did not freeze within {} s; look at '{spec}'", SEIZE_MAX.as_secs());
        Err(Error::new(ErrorKind::Unavailable, text))
    }

    /// This one wants it still no longer. It runs on when nobody does.
    ///
    /// # Errors
    /// When it can't be thawed; call again.
    pub fn release(&self, holder: Holder) -> Result<()> {
        let mut inner = self.lock();
        let mut rest = inner.held;
        if !std::mem::take(&mut rest[holder as usize]) {
            return Ok(());
        }
        if rest == [false; 2] {
            if inner.pass {
                inner.tell(b'R')?;
            } else {
                inner.thaw(&self.marker, b'R')?;
            }
        }
        inner.held = rest;
        Ok(())
    }
}

impl Drop for Freezer {
    fn drop(&mut self) {
        for holder in [Holder::Quorum, Holder::Switchover] {
            if let Err(e) = self.release(holder) {
                tracing::error!("the application is not thawed by this process ({e}); the guard does it");
            }
        }
    }
}

/// Waits until everything stands still; false when `most` passes first.
fn takes_hold(target: &Target, most: Duration) -> Result<bool> {
    let deadline = Instant::now() + most;
    while !target.frozen()? {
        if Instant::now() >= deadline {
            return Ok(false);
        }
        std::thread::sleep(LOOK);
    }
    Ok(true)
}

impl Inner {
    /// Whether somebody keeps it still for longer than a pass.
    fn is_held(&self) -> bool {
        self.held != [false; 2]
    }

    /// The marker and the guard come before the freeze.
    fn freeze(&mut self, marker: &Path, word: u8) -> Result<()> {
        fs::write(marker, &self.spec).map_err(|e| Error::io("write", marker, e))?;
        self.guard(marker)?.tell(word)?;
        self.target.freeze()
    }

    fn thaw(&mut self, marker: &Path, word: u8) -> Result<()> {
        self.target.thaw()?;
        if self.target != Target::Nothing {
            let _ = self.tell(word);
            let _ = fs::remove_file(marker);
        }
        Ok(())
    }

    fn tell(&mut self, word: u8) -> Result<()> {
        // One that is gone has thawed what it had to.
        self.guard.as_mut().map_or(Ok(()), |g| g.tell(word))
    }

    /// The guard process, started at the first freeze and again if somebody killed it.
    fn guard(&mut self, marker: &Path) -> Result<&mut Guard> {
        let (max, strict) = (self.max, self.is_held());
        if self.guard.as_mut().is_some_and(|g| g.is_gone() || (g.max != max && !strict)) {
            self.guard = None;
        }
        if self.guard.is_none() {
            let mut guard = Guard::start(&self.spec, max, marker)?;
            if strict {
                guard.tell(b'S')?;
            }
            self.guard = Some(guard);
        }
        self.guard.as_mut().ok_or_else(|| Error::new(ErrorKind::Io, "the thaw guard did not start"))
    }
}

#[cfg(test)]
mod tests {
    use super::super::target::family;
    use super::*;
    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;
    use std::process::Command;

    /// Without the guard process, which the test's own program can't be.
    fn seizes(freezer: &Freezer, on: bool) {
        let mut inner = freezer.lock();
        inner.held[0] = on;
        if on { inner.target.freeze().unwrap() } else { inner.target.thaw().unwrap() }
    }

    #[test]
    fn a_pass_that_ends_does_not_thaw_what_the_quorum_holds() {
        let dir = tempfile::tempdir().unwrap();
        let pid = dir.path().join("pid");
        let mut child = Command::new("/bin/sh").args(["-c", "while :; do :; done"]).spawn().unwrap();
        fs::write(&pid, child.id().to_string()).unwrap();
        let freezer = Freezer::new(dir.path());
        freezer.aim(&format!("pid:{}", pid.display()), Duration::from_secs(1)).unwrap();
        let still = |want: bool| {
            let deadline = Instant::now() + Duration::from_secs(20);
            while freezer.frozen() != want {
                assert!(Instant::now() < deadline, "frozen: {}", !want);
                std::thread::sleep(LOOK);
            }
        };
        seizes(&freezer, true);
        freezer.lock().pass = true;
        still(true);
        freezer.let_go().unwrap();
        still(true);
        // And the other way round: what a pass holds is not thawed by the quorum.
        freezer.lock().pass = true;
        freezer.release(Holder::Quorum).unwrap();
        still(true);
        freezer.let_go().unwrap();
        still(false);
        // Nor does one of two that hold it let it go for the other.
        seizes(&freezer, true);
        freezer.lock().held[Holder::Switchover as usize] = true;
        freezer.release(Holder::Quorum).unwrap();
        freezer.release(Holder::Quorum).unwrap();
        still(true);
        freezer.release(Holder::Switchover).unwrap();
        still(false);
        for pid in family(&pid).unwrap() {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        let _ = child.wait();
    }
}
