//! How far the directory has been changed at most, remembered in the state directory.
//!
//! After a crash recovery has to redo the log up to the last cut that the directory may have been on its way to.
//! That is the newest one in the log, unless this note says less: with a delay, a stop target or a pause most of the log
//! must stay out of the directory, over a crash too. It is written before a batch goes past what it says, and at
//! every clean stop; a node that applies whatever comes takes it away once, before its first batch.
//!
//! The file, little-endian:
//!
//! | offset | size | field |
//! | --- | --- | --- |
//! | 0 | 8 | magic `TWLREAC1`; its last byte is the version |
//! | 8 | 8 | LSN; the directory holds nothing of what comes after |
//! | 16 | 4 | CRC32C of everything before |

use std::path::Path;

use super::ApplyPaths;
use crate::codec::{Put, Seal};
use crate::disk::{self, Note};
use crate::error::{ErrorKind, Result};
use crate::position::Lsn;

const SEAL: Seal = Seal {
    name: "note of how far the directory is",
    magic: b"TWLREAC1",
    version: None,
    most: 20,
    remedy: "it is passed over: all log that is here is applied at this start",
};

/// The bound, and where it is remembered.
#[derive(Debug)]
pub(super) struct Reach {
    note: Note,
    known: Option<Lsn>,
}

impl Reach {
    /// What the last run left. A first copy (`filled`) knows no bound.
    pub(super) fn open(note: Note, filled: bool) -> Result<Self> {
        if filled {
            note.remove()?;
            return Ok(Self { note, known: None });
        }
        let read = |bytes: &[u8]| {
            let mut body = SEAL.decode(bytes)?;
            let lsn = Lsn(body.u64("LSN")?);
            body.finish().map(|()| lsn)
        };
        let known = match disk::read_sealed(&note.path(), &SEAL, read) {
            Err(e) if e.kind() == ErrorKind::Corrupt => {
                tracing::warn!("{e}");
                None
            }
            other => other?,
        };
        Ok(Self { note, known })
    }

    /// How far the log has to be redone that ends at `end`, from a checkpoint at `from`; whether that is certain to
    /// be all that the directory holds.
    pub(super) fn redo(&self, from: Lsn, end: Lsn) -> (Lsn, bool) {
        // A checkpoint past the bound: somebody else went on from there, who did not know of it.
        match self.known.filter(|k| *k >= from) {
            Some(known) => (known.min(end), true),
            None => (end, false),
        }
    }

    /// The directory will hold nothing past `lsn`.
    pub(super) fn bind(&mut self, lsn: Lsn) -> Result<()> {
        if self.known.is_none_or(|k| lsn > k) {
            self.note.write(&SEAL.encode(|out| out.put_u64(lsn.0)))?;
            self.known = Some(lsn);
        }
        Ok(())
    }

    /// The same at rest on `lsn`, whatever was allowed before.
    pub(super) fn rests(&mut self, lsn: Lsn) -> Result<()> {
        if self.known != Some(lsn) {
            self.known = None;
        }
        self.bind(lsn)
    }

    /// The directory may hold whatever the log holds.
    pub(super) fn free(&mut self) -> Result<()> {
        if self.known.is_some() {
            self.note.remove()?;
            self.known = None;
        }
        Ok(())
    }
}

/// Notes, before apply is started for the first time, that the directory holds nothing past `lsn`.
///
/// # Errors
/// Why it can't be noted.
pub fn holds_until(state: &Path, lsn: Lsn) -> Result<()> {
    Reach { note: ApplyPaths::reach_in(state), known: None }.bind(lsn)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_holds_until_it_is_taken_away() {
        let dir = tempfile::tempdir().unwrap();
        let open = |filled| Reach::open(ApplyPaths::reach_in(dir.path()), filled).unwrap();
        let mut reach = open(false);
        assert_eq!(reach.redo(Lsn(5), Lsn(90)), (Lsn(90), false), "nothing is known");
        reach.bind(Lsn(50)).unwrap();
        reach.bind(Lsn(40)).unwrap();
        let mut reach = open(false);
        assert_eq!(reach.redo(Lsn(5), Lsn(90)), (Lsn(50), true));
        assert_eq!(reach.redo(Lsn(5), Lsn(45)), (Lsn(45), true));
        assert_eq!(reach.redo(Lsn(51), Lsn(90)), (Lsn(90), false), "it is of an older life");
        reach.rests(Lsn(40)).unwrap();
        assert_eq!(open(false).redo(Lsn(5), Lsn(90)), (Lsn(40), true));
        reach.free().unwrap();
        assert_eq!(open(false).redo(Lsn(5), Lsn(90)), (Lsn(90), false));
        reach.bind(Lsn(50)).unwrap();
        // Damage says nothing, and a new copy has nothing to do with what was.
        let path = reach.note.path();
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(bytes, b"TWLREAC1\x32\0\0\0\0\0\0\0\x5e\xf5\xb7\xb6", "{}", bytes.escape_ascii());
        std::fs::write(&path, &bytes[..19]).unwrap();
        assert_eq!(open(false).redo(Lsn(5), Lsn(90)), (Lsn(90), false));
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(open(true).redo(Lsn(5), Lsn(90)), (Lsn(90), false));
        assert!(!path.exists());
    }
}
