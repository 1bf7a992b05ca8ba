//! The note of a leader that was left behind: the file `fenced` in the state directory. While it is there, and the line in it
//! is newer than the node's own, the node neither captures nor serves, whatever it dies of and however it is started.
//!
//! Little-endian:
//!
//! | size | field |
//! | --- | --- |
//! | 8 | magic `TWLNFENC` |
//! | 4 | format version, 1 |
//! | 8 | when it was written first, ns since 1970 |
//! | 1 | whether `on_demote` is done: 0 no, 1 yes |
//! | 4+n | name of the node that told of the newer line, at most [`NAME_MAX`] bytes |
//! | 4+n | address at which the node that leads answers, at most [`ADDRESS_MAX`] bytes; empty: not known |
//! | 4+n | bytes of the [`crate::history`] of the newer line |
//! | 4 | CRC32C of everything before |

use super::StateDir;
use crate::codec::{DecodeError, Put, Seal};
use crate::disk;
use crate::error::{Error, Result};
use crate::failpoint;
use crate::history::{HISTORY_BYTES, History};

/// File name of the note.
const FENCED: &str = "fenced";
/// Most bytes of a name.
const NAME_MAX: usize = 64;
/// Most bytes of an address: a host name and a port.
const ADDRESS_MAX: usize = 300;
const SEAL: Seal = Seal {
    name: "note of a fence",
    magic: b"TWLNFENC",
    version: Some(1),
    most: (64 + NAME_MAX + ADDRESS_MAX + HISTORY_BYTES) as u64,
    remedy: "this node was the leader and another one was promoted: `towline rewind` makes it a follower of that one, and keeps what \
             only it has; `towline promote --force` has it lead again on a new timeline, when the other's application is stopped",
};

/// Why a leader does not lead any more.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fence {
    /// Since when, ns since 1970.
    pub since: i64,
    /// Whether `on_demote` has run to its end.
    pub demoted: bool,
    /// Who told of the newer line.
    pub name: String,
    /// Where the node that leads answers, if that is known.
    pub address: Option<String>,
    /// The way of the newer line.
    pub history: History,
}

/// The longest beginning of `text` with at most `most` bytes.
pub(super) fn cut(text: &str, most: usize) -> &str {
    let mut end = text.len().min(most);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

impl Fence {
    /// The bytes of the note.
    fn encode(&self) -> Vec<u8> {
        SEAL.encode(|out| {
            out.put_i64(self.since);
            out.put_u8(u8::from(self.demoted));
            out.put_blob(cut(&self.name, NAME_MAX).as_bytes());
            out.put_blob(cut(self.address.as_deref().unwrap_or_default(), ADDRESS_MAX).as_bytes());
            out.put_blob(&self.history.encode());
        })
    }

    fn decode(bytes: &[u8]) -> std::result::Result<Self, DecodeError> {
        let text = |bytes: &[u8]| {
            let invalid = DecodeError::Invalid { what: "text of a fence", value: bytes.len() as u64 };
            std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| invalid)
        };
        let mut r = SEAL.decode(bytes)?;
        let since = r.i64("time of the fence")?;
        let demoted = match r.u8("on_demote")? {
            0 => false,
            1 => true,
            v => return Err(DecodeError::Invalid { what: "on_demote", value: u64::from(v) }),
        };
        let name = text(r.blob(NAME_MAX, "name")?)?;
        let address = text(r.blob(ADDRESS_MAX, "address")?)?;
        let history = History::decode(r.blob(HISTORY_BYTES, "history")?)?;
        r.finish()?;
        Ok(Self { since, demoted, name, address: (!address.is_empty()).then_some(address), history })
    }
}

impl StateDir {
    /// Writes the note durably; one that is there is replaced.
    ///
    /// # Errors
    /// Why it can't be written.
    pub fn fence(&self, fence: &Fence) -> Result<()> {
        let pass = |point| failpoint::pass(point).map_err(|e| Error::io("change", self.path(), e));
        pass("fence::before_note")?;
        disk::write_atomic(self.path(), FENCED, &fence.encode())?;
        pass("fence::after_note")
    }

    /// The note, if there is one.
    ///
    /// # Errors
    /// It is damaged or can't be read.
    pub fn fenced(&self) -> Result<Option<Fence>> {
        disk::read_sealed(&self.path().join(FENCED), &SEAL, Fence::decode)
    }

    /// Removes the note, if there is one.
    ///
    /// # Errors
    /// Why it can't be removed.
    pub fn unfence(&self) -> Result<()> {
        failpoint::pass("fence::before_remove").map_err(|e| Error::io("change", self.path(), e))?;
        disk::remove_durable(&self.path().join(FENCED))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;
    use crate::history::Beginning;
    use crate::position::{Lsn, SystemId, TimelineId};

    fn sample() -> Fence {
        let begins = Beginning::sample(Lsn(99), 3);
        let history = History::first(SystemId(7)).child(begins, TimelineId::FIRST).unwrap();
        let address = Some("b.example:7070".to_owned());
        Fence { since: 5, demoted: false, name: "b".to_owned(), address, history }
    }

    #[test]
    fn the_note_is_as_its_table_says_and_every_damage_is_named() {
        let note = sample();
        let bytes = note.encode();
        let head = b"TWLNFENC\x01\0\0\0\x05\0\0\0\0\0\0\0\0\x01\0\0\0b\x0e\0\0\0b.example:7070";
        assert_eq!(&bytes[..head.len()], head);
        assert_eq!(&bytes[head.len() + 4..bytes.len() - 4], note.history.encode());
        let bare = Fence { demoted: true, address: None, ..note.clone() };
        assert_eq!(Fence::decode(&bare.encode()), Ok(bare));
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 0x10;
            assert!(Fence::decode(&bad).is_err() && Fence::decode(&bytes[..at]).is_err(), "byte {at}");
        }
        let long = Fence { name: "\u{e9}".repeat(99), address: Some("x".repeat(999)), ..note };
        let back = Fence::decode(&long.encode()).unwrap();
        assert_eq!((back.name.len(), back.address.map(|a| a.len())), (64, Some(300)));
    }

    #[test]
    fn a_note_stays_until_it_is_removed_and_a_damaged_one_says_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open_or_create(dir.path()).unwrap();
        assert_eq!(state.fenced().unwrap(), None);
        state.unfence().unwrap();
        state.fence(&sample()).unwrap();
        assert_eq!(state.fenced().unwrap(), Some(sample()));
        let later = Fence { demoted: true, ..sample() };
        state.fence(&later).unwrap();
        drop(state);
        let state = StateDir::open_or_create(dir.path()).unwrap();
        assert_eq!(state.fenced().unwrap(), Some(later));
        std::fs::write(dir.path().join(FENCED), b"TWLNFENC").unwrap();
        let e = state.fenced().unwrap_err();
        assert!(e.kind() == ErrorKind::Corrupt && e.to_string().contains("promote --force"), "{e}");
        state.unfence().unwrap();
        assert_eq!(state.fenced().unwrap(), None);
    }
}
