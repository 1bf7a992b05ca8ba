//! The file `slots` in the state directory, replaced as a whole:
//!
//! | size | field |
//! | --- | --- |
//! | 8 | magic `TWLNSLOT` |
//! | 4 | format version, 1 |
//! | 4 | number of slots, at most [`SLOTS_MAX`] |
//! | .. | slots, each of the fields below, ascending by name |
//! | 4 | CRC32C of everything before |
//!
//! | size | field of a slot |
//! | --- | --- |
//! | 4+n | name, 1 to 64 bytes |
//! | 1 | kind: 1 follower, 2 copy, 3 manual |
//! | 1 | origin: 1 own, 2 mirrored |
//! | 8 | position, 0 for one that reserves nothing |
//! | 1 | why it is lost: 0 it is not, 1 slot_keep, 2 disk, 3 idle, 4 removed |
//! | 8 | since when its follower is away, ns since 1970; 0: it was connected |

use std::collections::BTreeMap;
use std::path::Path;

use super::{Kind, Origin, Slot};
use crate::codec::{DecodeError, Put, Reader, Seal};
use crate::disk;
use crate::error::{Error, Result};
use crate::failpoint;
use crate::position::Lsn;
use crate::retention::Reason;
use crate::session::valid_name;
use crate::wire::{NAME_MAX, SLOTS_MAX};

/// Its name in the state directory.
pub(super) const NAME: &str = "slots";
pub(super) const SEAL: Seal = Seal {
    name: "slot file",
    magic: b"TWLNSLOT",
    version: Some(1),
    most: 64 << 10,
    remedy: "remove it and start again: the slot of each follower is made anew when it connects, but until then no log \
             is held for it",
};

pub(super) fn encode(slots: &BTreeMap<String, Slot>) -> Vec<u8> {
    SEAL.encode(|out| {
        out.put_u32(u32::try_from(slots.len()).unwrap_or(u32::MAX));
        for (name, slot) in slots {
            out.put_blob(name.as_bytes());
            out.put_u8(slot.kind as u8);
            out.put_u8(slot.origin as u8);
            out.put_u64(slot.position.0);
            out.put_u8(slot.given_up.map_or(0, |r| r as u8));
            out.put_i64(if slot.is_active() { 0 } else { slot.inactive_since });
        }
    })
}

/// Reads the bytes of a file; whoever was connected has been away since `now`.
pub(super) fn decode(bytes: &[u8], now: i64) -> std::result::Result<BTreeMap<String, Slot>, DecodeError> {
    let mut r = SEAL.decode(bytes)?;
    let count = r.u32("number of slots")?;
    if count as usize > SLOTS_MAX {
        let (value, limit) = (u64::from(count), SLOTS_MAX as u64);
        return Err(DecodeError::TooLarge { what: "number of slots", value, limit });
    }
    let mut slots = BTreeMap::new();
    for _ in 0..count {
        let (name, slot) = take(&mut r, now)?;
        slots.insert(name, slot);
    }
    r.finish()?;
    if slots.len() != count as usize {
        return Err(DecodeError::Invalid { what: "number of slots", value: u64::from(count) });
    }
    Ok(slots)
}

fn take(r: &mut Reader<'_>, now: i64) -> std::result::Result<(String, Slot), DecodeError> {
    let invalid = |what, v: u8| DecodeError::Invalid { what, value: u64::from(v) };
    let name = r.blob(NAME_MAX, "name of a slot")?;
    let name = std::str::from_utf8(name).ok().filter(|n| valid_name(n));
    let name = name.ok_or(invalid("name of a slot", 0))?.to_owned();
    let kind = r.u8("kind of a slot")?;
    let kind = Kind::ALL.into_iter().find(|k| *k as u8 == kind).ok_or(invalid("kind of a slot", kind))?;
    let origin = match r.u8("origin of a slot")? {
        1 => Origin::Own,
        2 => Origin::Mirrored,
        v => return Err(invalid("origin of a slot", v)),
    };
    let position = Lsn(r.u64("position of a slot")?);
    let given_up = match r.u8("reason of a slot")? {
        0 => None,
        v => Some(Reason::ALL.into_iter().find(|x| *x as u8 == v).ok_or(invalid("reason of a slot", v))?),
    };
    let since = r.i64("time of a slot")?;
    let mut slot = Slot::new(kind, origin, position, if since == 0 { now } else { since.min(now) });
    slot.given_up = given_up;
    Ok((name, slot))
}

/// Reads the file in `dir`; none at all is no slots.
pub(super) fn load(dir: &Path, now: i64) -> Result<BTreeMap<String, Slot>> {
    Ok(disk::read_sealed(&dir.join(NAME), &SEAL, |bytes| decode(bytes, now))?.unwrap_or_default())
}

/// Writes it durably.
pub(super) fn save(dir: &Path, bytes: &[u8]) -> Result<()> {
    let pass = |point| failpoint::pass(point).map_err(|e| Error::io("write", dir.join(NAME), e));
    pass("slots::write")?;
    disk::write_atomic(dir, NAME, bytes)?;
    pass("slots::after_write")
}
