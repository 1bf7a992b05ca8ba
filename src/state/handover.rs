//! The note of a switchover: that the application was stopped for one, so that a start starts it again; and, from a point
//! on, that this node hands over, so that it never leads on after it.
//!
//! | size | field |
//! | --- | --- |
//! | 8 | magic `TWLNHAND` |
//! | 4 | format version, 1 |
//! | 1 | how far it is: 1 begun, 2 passed |
//! | 1 | what stopped the application: 1 `on_demote`, 2 a freeze, 3 the operator |
//! | 4 | timeline that is handed over |
//! | 8 | its line id |
//! | 8 | LSN where its log ends, 0 before that is known |
//! | 8 | id of the node that is to lead |
//! | 8 | when the application was stopped, ns since 1970 |
//! | 4+n | name of that node, at most [`NAME_MAX`] bytes |
//! | 4+n | its address, at most [`ADDRESS_MAX`] bytes |
//! | 4 | CRC32C of everything before |

use super::StateDir;
use crate::codec::{DecodeError, Put, Reader, Seal};
use crate::disk;
use crate::error::Result;
use crate::history::{LineId, NAME_MAX};
use crate::position::{Lsn, NodeId, TimelineId};
use crate::session::handover::Stopper;

/// Name of the file.
const FILE: &str = "handover";
/// Most bytes of an address.
const ADDRESS_MAX: usize = 512;
const SEAL: Seal = Seal {
    name: "note of a switchover",
    magic: b"TWLNHAND",
    version: Some(1),
    most: 1024,
    remedy: "see with `towline status` which node leads: if another does, or may, remove the note and make this node follow it; if \
             none can, remove the note, and `towline promote --force` here",
};

/// How far a switchover is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stage {
    /// The application is being stopped, or is: whatever fails, it is started again, and this node leads on.
    Begun,
    /// This node never leads on this line again.
    Passed,
}

/// A switchover from this node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Handover {
    /// How far it is.
    pub stage: Stage,
    /// What stopped the application.
    pub stopper: Stopper,
    /// The timeline that is handed over.
    pub timeline: TimelineId,
    /// Which line of that number.
    pub line: LineId,
    /// Where its log ends; zero before that is known.
    pub at: Lsn,
    /// Who is to lead.
    pub heir: NodeId,
    /// When the application was stopped, ns since 1970.
    pub since: i64,
    /// The name of who is to lead.
    pub name: String,
    /// Its address.
    pub address: String,
}

impl Handover {
    /// The bytes of the file.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        SEAL.encode(|out| {
            out.put_u8(match self.stage {
                Stage::Begun => 1,
                Stage::Passed => 2,
            });
            out.put_u8(self.stopper as u8);
            out.put_u32(self.timeline.0);
            out.put_u64(self.line.0);
            out.put_u64(self.at.0);
            out.put_u64(self.heir.0);
            out.put_i64(self.since);
            out.put_blob(self.name.as_bytes());
            out.put_blob(self.address.as_bytes());
        })
    }

    /// Reads the bytes of a file.
    ///
    /// # Errors
    /// Names the field that breaks the table of the module.
    pub fn decode(bytes: &[u8]) -> std::result::Result<Self, DecodeError> {
        let mut r = SEAL.decode(bytes)?;
        let stage = match r.u8("stage")? {
            1 => Stage::Begun,
            2 => Stage::Passed,
            v => return Err(DecodeError::Invalid { what: "stage", value: u64::from(v) }),
        };
        let stopper = r.u8("what stopped the application")?;
        let known = Stopper::ALL.into_iter().find(|s| *s as u8 == stopper);
        let odd = DecodeError::Invalid { what: "what stopped the application", value: u64::from(stopper) };
        let note = Self {
            stage,
            stopper: known.ok_or(odd)?,
            timeline: TimelineId(r.u32("timeline")?),
            line: LineId(r.u64("line id")?),
            at: Lsn(r.u64("end of the log")?),
            heir: NodeId(r.u64("node id")?),
            since: r.i64("time")?,
            name: text(&mut r, NAME_MAX, "name")?,
            address: text(&mut r, ADDRESS_MAX, "address")?,
        };
        r.finish()?;
        Ok(note)
    }
}

fn text(r: &mut Reader<'_>, most: usize, what: &'static str) -> std::result::Result<String, DecodeError> {
    let bytes = r.blob(most, what)?;
    let odd = |_| DecodeError::Invalid { what, value: bytes.len() as u64 };
    std::str::from_utf8(bytes).map(str::to_owned).map_err(odd)
}

impl StateDir {
    /// Notes a switchover durably, in place of what was noted before.
    ///
    /// # Errors
    /// Why it can't be written; what is there then is one of the two.
    pub fn note_handover(&self, note: &Handover) -> Result<()> {
        disk::write_atomic(self.path(), FILE, &note.encode())
    }

    /// The switchover that is noted.
    ///
    /// # Errors
    /// The note is damaged, or can't be read.
    pub fn handover(&self) -> Result<Option<Handover>> {
        disk::read_sealed(&self.path().join(FILE), &SEAL, Handover::decode)
    }

    /// Nothing is noted any more.
    ///
    /// # Errors
    /// Why the note can't be removed.
    pub fn forget_handover(&self) -> Result<()> {
        disk::remove_durable(&self.path().join(FILE))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    fn sample() -> Handover {
        Handover {
            stage: Stage::Passed,
            stopper: Stopper::Freeze,
            timeline: TimelineId(3),
            line: LineId(0x0A0B),
            at: Lsn(0x0102_0304),
            heir: NodeId(9),
            since: -1,
            name: "b".to_owned(),
            address: "h:1".to_owned(),
        }
    }

    #[test]
    fn the_bytes_are_those_of_the_table_and_every_damage_is_named() {
        let bytes = sample().encode();
        let body = [
            &b"TWLNHAND\x01\0\0\0\x02\x02\x03\0\0\0\x0B\x0A\0\0\0\0\0\0\x04\x03\x02\x01\0\0\0\0"[..],
            &[9, 0, 0, 0, 0, 0, 0, 0],
            &[0xFF; 8],
            b"\x01\0\0\0b\x03\0\0\0h:1",
        ]
        .concat();
        assert_eq!(bytes[..bytes.len() - 4], body);
        for stopper in Stopper::ALL {
            for stage in [Stage::Begun, Stage::Passed] {
                let note = Handover { stage, stopper, ..sample() };
                assert_eq!(Handover::decode(&note.encode()), Ok(note));
            }
        }
        for i in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[i] ^= 0x10;
            assert!(Handover::decode(&bad).is_err(), "byte {i}");
            assert!(Handover::decode(&bytes[..i]).is_err(), "cut at {i}");
        }
    }

    #[test]
    fn a_note_is_replaced_and_forgotten_and_a_damaged_one_is_no_note_of_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open_or_create(dir.path()).unwrap();
        assert_eq!(state.handover().unwrap(), None);
        state.forget_handover().unwrap();
        state.note_handover(&Handover { stage: Stage::Begun, ..sample() }).unwrap();
        state.note_handover(&sample()).unwrap();
        assert_eq!(state.handover().unwrap(), Some(sample()));
        state.forget_handover().unwrap();
        assert_eq!(state.handover().unwrap(), None);
        std::fs::write(dir.path().join(FILE), "TWLNHAND").unwrap();
        let e = state.handover().unwrap_err();
        assert!(e.kind() == ErrorKind::Corrupt && e.to_string().contains("promote --force"), "{e}");
    }
}
