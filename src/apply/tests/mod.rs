//! Apply on real directories, fed by a real log whose records are made by hand.

mod bench;
mod crash;
mod edits;
mod objects;

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// Steps left until the engine of a data directory "crashes": the step fails and nothing is cleaned up.
static FUSES: Mutex<Option<HashMap<PathBuf, u64>>> = Mutex::new(None);

/// Lights the fuse of a directory: its engine fails at the `steps`-th failpoint it passes. `None` puts it out.
fn light(root: &Path, steps: Option<u64>) {
    let mut fuses = FUSES.lock().unwrap_or_else(PoisonError::into_inner);
    let fuses = fuses.get_or_insert_default();
    match steps {
        Some(n) => fuses.insert(root.to_owned(), n),
        None => fuses.remove(root),
    };
}

/// Called at each step.
pub(super) fn burn(root: &Path) -> io::Result<()> {
    let mut fuses = FUSES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(left) = fuses.as_mut().and_then(|f| f.get_mut(root)) {
        if *left == 0 {
            return Err(io::Error::other("crashed"));
        }
        *left -= 1;
    }
    Ok(())
}
