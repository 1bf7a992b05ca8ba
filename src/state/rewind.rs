//! The note of a rewind that is under way: the file `rewind` in the state directory. From its beginning on the node neither leads
//! nor serves; what it left behind is looked for in its log until the directory is the new leader's.
//!
//! Little-endian:
//!
//! | size | field |
//! | --- | --- |
//! | 8 | magic `TWLNRWND` |
//! | 4 | format version, 1 |
//! | 8 | when it began, ns since 1970 |
//! | 1 | whether a mass delete goes through: 0 no, 1 yes |
//! | 4+n | name of the node that it goes to, at most [`NAME_MAX`] bytes |
//! | 4+n | address of that node, at most [`ADDRESS_MAX`] bytes |
//! | 4+n | bytes of the [`crate::history`] that is left |
//! | 4+n | bytes of the history that it goes to |
//! | 4 | CRC32C of everything before |

use super::StateDir;
use super::fence::cut;
use crate::codec::{DecodeError, Put, Reader, Seal};
use crate::disk::{self, Note};
use crate::error::Result;
use crate::history::{HISTORY_BYTES, History, LineId};
use crate::position::TimelineId;

/// Most bytes of a name.
const NAME_MAX: usize = 64;
/// Most bytes of an address: a host name and a port.
const ADDRESS_MAX: usize = 300;
const SEAL: Seal = Seal {
    name: "note of a rewind",
    magic: b"TWLNRWND",
    version: Some(1),
    most: (64 + NAME_MAX + ADDRESS_MAX + 2 * HISTORY_BYTES) as u64,
    remedy: "remove it and run `towline rewind` again",
};

/// A rewind that is under way.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rewinding {
    /// Since when, ns since 1970.
    pub since: i64,
    /// A mass delete that a guard would hold goes into the log all the same.
    pub confirmed: bool,
    /// The node that it goes to.
    pub name: String,
    /// Where that answered.
    pub address: String,
    /// The way that is left.
    pub own: History,
    /// The way that it goes to.
    pub next: History,
}

impl Rewinding {
    fn encode(&self) -> Vec<u8> {
        SEAL.encode(|out| {
            out.put_i64(self.since);
            out.put_u8(u8::from(self.confirmed));
            out.put_blob(cut(&self.name, NAME_MAX).as_bytes());
            out.put_blob(cut(&self.address, ADDRESS_MAX).as_bytes());
            out.put_blob(&self.own.encode());
            out.put_blob(&self.next.encode());
        })
    }

    fn decode(bytes: &[u8]) -> std::result::Result<Self, DecodeError> {
        let text = |r: &mut Reader<'_>, most, what| {
            let bytes = r.blob(most, what)?;
            let odd = DecodeError::Invalid { what, value: bytes.len() as u64 };
            std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| odd)
        };
        let mut r = SEAL.decode(bytes)?;
        let since = r.i64("time")?;
        let confirmed = match r.u8("confirmation")? {
            0 => false,
            1 => true,
            v => return Err(DecodeError::Invalid { what: "confirmation", value: u64::from(v) }),
        };
        let (name, address) = (text(&mut r, NAME_MAX, "name")?, text(&mut r, ADDRESS_MAX, "address")?);
        let own = History::decode(r.blob(HISTORY_BYTES, "history")?)?;
        let next = History::decode(r.blob(HISTORY_BYTES, "history")?)?;
        r.finish()?;
        Ok(Self { since, confirmed, name, address, own, next })
    }
}

impl StateDir {
    fn rewind_note(&self) -> Note {
        Note::new(self.path(), "rewind", ["rewind::note", "rewind::after_note", "rewind::done"])
    }

    /// Writes the note durably; one that is there is replaced.
    ///
    /// # Errors
    /// Why it can't be written.
    pub fn begin_rewind(&self, note: &Rewinding) -> Result<()> {
        self.rewind_note().write(&note.encode())
    }

    /// The note, if there is one.
    ///
    /// # Errors
    /// It is damaged or can't be read.
    pub fn rewinding(&self) -> Result<Option<Rewinding>> {
        disk::read_sealed(&self.rewind_note().path(), &SEAL, Rewinding::decode)
    }

    /// The line that this node presents itself with: its own, or, while it is rewound and gives up what is past it, the last one that
    /// it has in common with where it goes. `None`: there is no history to be read, so it is no line that anybody knows.
    #[must_use]
    pub fn line(&self) -> Option<(TimelineId, LineId)> {
        let rewinds = self.rewinding().ok().flatten();
        let common = rewinds
            .and_then(|r| r.own.common(&r.next).map(|(t, _)| (t, r.own.line_of(t).unwrap_or_default())));
        common.or_else(|| self.history().ok().map(|h| (h.timeline(), h.line())))
    }

    /// Removes the note, if there is one.
    ///
    /// # Errors
    /// Why it can't be removed.
    pub fn end_rewind(&self) -> Result<()> {
        self.rewind_note().remove()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;
    use crate::history::Beginning;
    use crate::position::{Lsn, SystemId};

    #[test]
    fn the_note_is_as_its_table_says_and_every_damage_is_named() {
        let own = History::first(SystemId(7));
        let next = own.child(Beginning::sample(Lsn(99), 3), TimelineId::FIRST).unwrap();
        let (name, address) = ("b".to_owned(), "b.example:7070".to_owned());
        let note = Rewinding { since: 5, confirmed: true, name, address, own, next };
        let bytes = note.encode();
        let head = b"TWLNRWND\x01\0\0\0\x05\0\0\0\0\0\0\0\x01\x01\0\0\0b\x0e\0\0\0b.example:7070";
        assert_eq!(&bytes[..head.len()], head);
        let rest = &bytes[head.len()..bytes.len() - 4];
        let own = note.own.encode();
        assert_eq!(&rest[4..4 + own.len()], own);
        assert_eq!(&rest[8 + own.len()..], note.next.encode());
        assert_eq!(Rewinding::decode(&bytes), Ok(note.clone()));
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 0x10;
            assert!(
                Rewinding::decode(&bad).is_err() && Rewinding::decode(&bytes[..at]).is_err(),
                "byte {at}"
            );
        }
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open_or_create(dir.path()).unwrap();
        assert_eq!(state.rewinding().unwrap(), None);
        let long = Rewinding { name: "\u{e9}".repeat(99), address: "x".repeat(999), ..note };
        state.begin_rewind(&long).unwrap();
        let back = state.rewinding().unwrap().unwrap();
        assert_eq!((back.name.len(), back.address.len()), (64, 300));
        state.end_rewind().unwrap();
        assert_eq!(state.rewinding().unwrap(), None);
        std::fs::write(dir.path().join("rewind"), b"TWLNRWND").unwrap();
        assert_eq!(state.rewinding().unwrap_err().kind(), ErrorKind::Corrupt);
    }
}
