//! The target of `stop_at` that an operator has let this node go past, remembered in the state directory: a start under the
//! same configuration goes on, where it would otherwise refuse a directory that is past its target.
//!
//! The file, little-endian:
//!
//! | offset | size | field |
//! | --- | --- | --- |
//! | 0 | 8 | magic `TWLPAST1`; its last byte is the version |
//! | 8 | blob | the target, as `status` shows it |
//! | .. | 4 | CRC32C of everything before |
//!
//! A blob is a u32 length and bytes. The note goes when another target, or none, is configured.

use std::path::Path;

use crate::apply::StopAt;
use crate::codec::{Put, Seal};
use crate::disk::{self, Note};
use crate::error::{ErrorKind, Result};

const SEAL: Seal = Seal {
    name: "note of a target that was passed",
    magic: b"TWLPAST1",
    version: None,
    most: 80,
    remedy: "it is passed over: take 'stop_at' away if the node is to go on past it",
};
/// Most bytes of a target; the seal has 16 more at most.
const TEXT_MAX: usize = 64;

/// Where it is remembered.
#[derive(Debug)]
pub(crate) struct Passed(Note);

impl Passed {
    /// Of the node of this state directory.
    pub(super) fn new(state: &Path) -> Self {
        Self(Note::new(state, "passed-target", ["target::pass", "target::after_pass", "target::forget"]))
    }

    /// The node goes past this target.
    pub(super) fn note(&self, target: StopAt) -> Result<()> {
        self.0.write(&SEAL.encode(|out| out.put_blob(target.to_string().as_bytes())))
    }

    /// Where replay stops when the configuration says `target`.
    pub(super) fn ahead(&self, target: Option<StopAt>) -> Result<Option<StopAt>> {
        let read = |bytes: &[u8]| {
            let mut body = SEAL.decode(bytes)?;
            let text = body.blob(TEXT_MAX, "target")?.to_vec();
            body.finish().map(|()| text)
        };
        let known = match disk::read_sealed(&self.0.path(), &SEAL, read) {
            Err(e) if e.kind() == ErrorKind::Corrupt => {
                tracing::warn!("{e}");
                Some(Vec::new())
            }
            other => other?,
        };
        let Some(known) = known else { return Ok(target) };
        if target.is_some_and(|t| t.to_string().as_bytes() == known) {
            return Ok(None);
        }
        self.0.remove()?;
        Ok(target)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::position::Lsn;

    #[test]
    fn a_target_that_was_passed_is_passed_until_there_is_another() {
        let dir = tempfile::tempdir().unwrap();
        let (passed, path) = (Passed::new(dir.path()), dir.path().join("passed-target"));
        let (here, there) = (Some(StopAt::Time(5)), Some(StopAt::Lsn(Lsn(7))));
        assert_eq!(passed.ahead(here).unwrap(), here);
        passed.note(StopAt::Time(5)).unwrap();
        assert_eq!((passed.ahead(here).unwrap(), passed.ahead(here).unwrap()), (None, None));
        let bytes = std::fs::read(&path).unwrap();
        assert!(bytes.starts_with(b"TWLPAST1\x1e\0\0\x001970-01-01T00:00:00.000000005Z"), "{bytes:?}");
        assert_eq!(passed.ahead(there).unwrap(), there);
        assert!(!path.exists() && passed.ahead(here).unwrap() == here, "what is configured anew is meant");
        passed.note(StopAt::Exact).unwrap();
        assert_eq!(passed.ahead(None).unwrap(), None);
        assert!(!path.exists());
        std::fs::write(&path, &bytes[..20]).unwrap();
        assert_eq!(passed.ahead(here).unwrap(), here, "damage says nothing");
        assert!(!path.exists());
    }
}
