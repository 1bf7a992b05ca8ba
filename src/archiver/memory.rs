//! Which archive this node has used: a small note in the state directory, so that an archive that lost everything, or a
//! file system that is not mounted, is not taken for a new one.

use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::archive::{Archive, Store};
use crate::disk;
use crate::error::{Error, ErrorKind, Result};
use crate::position::SystemId;

/// File name in the state directory.
const NAME: &str = "archive";
/// Most bytes of it.
const MOST: u64 = 8 << 10;

#[derive(Serialize, Deserialize)]
struct Memory {
    address: String,
    id: String,
}

/// Opens the archive of `system`; makes it only if this node has not used the one at `address` before.
pub(super) fn open(state: &Path, store: Arc<dyn Store>, address: &str, system: SystemId) -> Result<Archive> {
    let known = load(state)?.filter(|m| m.address == address);
    let Some(known) = known else {
        let archive = Archive::open_or_create_in(store, address, system)?;
        let memory = Memory { address: address.to_owned(), id: archive.id().to_owned() };
        let text = serde_json::to_vec(&memory).map_err(|e| Error::new(ErrorKind::Io, e.to_string()))?;
        disk::write_atomic(state, NAME, &text)?;
        return Ok(archive);
    };
    let note = state.join(NAME).display().to_string();
    let remedy = format!(
        "mount its file system, or put it back; if it is to begin anew, remove '{note}' and reload: log that was archived \
         before is not put there again"
    );
    let archive = Archive::open_in(store, address).map_err(|e| match e.kind() {
        ErrorKind::Missing => {
            let text = format!(
                "the archive '{address}' is empty, but this node has archived to it before: {remedy}"
            );
            Error::new(ErrorKind::Refused, text)
        }
        _ => e,
    })?;
    archive.belongs_to(system)?;
    if archive.id() != known.id {
        let text = format!(
            "the archive '{address}' is another one ({}) than this node has archived to before ({}): {remedy}",
            archive.id(),
            known.id
        );
        return Err(Error::new(ErrorKind::Refused, text));
    }
    Ok(archive)
}

/// A note that can't be understood is as good as none: it guards against accidents, and says nothing of the log.
fn load(state: &Path) -> Result<Option<Memory>> {
    let path = state.join(NAME);
    let failed = |e| Error::io("read", &path, e);
    match std::fs::metadata(&path) {
        Ok(meta) if meta.len() <= MOST => {}
        Ok(_) => return Ok(None),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(failed(e)),
    }
    Ok(serde_json::from_slice(&std::fs::read(&path).map_err(failed)?).ok())
}
