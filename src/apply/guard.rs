//! The guard over the data directory's place: what is not at its path any more is not written on.
//!
//! The root is held open, so that a directory which was renamed, removed, unmounted or replaced would be
//! written in for ever, and nobody would see it. So the path is looked at every second, and apply ends when
//! it leads elsewhere; the next start opens what is there by then.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::catalog::LocalId;
use crate::error::{Error, ErrorKind, Result};
use crate::sys::{self, Root, Stat};

use super::site::same_inode;

/// From one look to the next. Unit tests don't wait.
const EVERY: Duration = Duration::from_millis(if cfg!(test) { 5 } else { 1_000 });

/// When the path is looked at again, and what shall be there.
#[derive(Debug)]
pub(super) struct Guard {
    known: Stat,
    next: Instant,
}

/// The error about a data directory that is not there.
pub(crate) fn gone(path: &Path, e: &std::io::Error) -> Error {
    let text = format!("the data directory '{}' is gone ({e}): mount or move it back", path.display());
    Error::new(ErrorKind::Io, text)
}

impl Guard {
    pub(super) fn new(root: &Root) -> Result<Self> {
        let known = sys::stat_fd(root.fd()).map_err(|e| Error::io("stat", root.path(), e))?;
        Ok(Self { known, next: Instant::now() })
    }

    pub(super) fn due_in(&self) -> Duration {
        self.next.saturating_duration_since(Instant::now())
    }

    /// Fails when the path does not lead to the directory that is held open.
    pub(super) fn look(&mut self, root: &Root) -> Result<()> {
        if !self.due_in().is_zero() {
            return Ok(());
        }
        self.next = Instant::now() + EVERY;
        let shown = root.path().display();
        let there = Root::open(root.path()).and_then(|r| sys::stat_fd(r.fd()));
        let there = there.map_err(|e| gone(root.path(), &e))?;
        let here = LocalId { dev: there.local.dev, ..self.known.local };
        if !same_inode(&here, &there.local) {
            let text = format!(
                "'{shown}' is not the directory any more that this follower keeps ({}): mount or move the right one \
                 back, or empty the state directory and this one, to fill it anew",
                there.local.unlike(&self.known.local)
            );
            return Err(Error::new(ErrorKind::Refused, text));
        }
        if (there.local.dev, there.mount) != (self.known.local.dev, self.known.mount) {
            let text = format!("the file system of '{shown}' was mounted anew: it is opened again");
            return Err(Error::new(ErrorKind::Io, text));
        }
        Ok(())
    }
}
