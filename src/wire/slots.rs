//! What a sender says of the slots it knows.

use super::NAME_MAX;
use super::hello::text;
use crate::codec::{DecodeError, Put, Reader};
use crate::position::Lsn;

/// Most slots of a node, and of a message about them.
pub const SLOTS_MAX: usize = 256;
/// Most bytes of a slot in a message.
const SLOT_BYTES: usize = 4 + NAME_MAX + 8 + 1;
/// Most bytes of the message.
pub(super) const SLOTS_BYTES: usize = 2 + SLOTS_MAX * SLOT_BYTES;

/// A slot as the sender knows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SlotAt {
    /// Name of the follower.
    pub name: String,
    /// Log from here on is needed; zero: it reserves nothing yet.
    pub position: Lsn,
    /// The follower is connected.
    pub active: bool,
}

pub(super) fn put_slots(slots: &[SlotAt], out: &mut Vec<u8>) {
    let slots = &slots[..slots.len().min(SLOTS_MAX)];
    out.put_u16(u16::try_from(slots.len()).unwrap_or(0));
    for slot in slots {
        out.put_blob(super::clip(&slot.name, NAME_MAX));
        out.put_u64(slot.position.0);
        out.put_u8(u8::from(slot.active));
    }
}

pub(super) fn take_slots(r: &mut Reader<'_>) -> Result<Vec<SlotAt>, DecodeError> {
    let count = usize::from(r.u16("count of slots")?);
    if count > SLOTS_MAX {
        let (value, limit) = (count as u64, SLOTS_MAX as u64);
        return Err(DecodeError::TooLarge { what: "count of slots", value, limit });
    }
    let slot = |_| {
        let name = text(r.blob(NAME_MAX, "name of a slot")?, "name of a slot")?;
        let position = Lsn(r.u64("position of a slot")?);
        match r.u8("flags of a slot")? {
            flags @ 0..=1 => Ok(SlotAt { name, position, active: flags == 1 }),
            v => Err(DecodeError::Invalid { what: "flags of a slot", value: u64::from(v) }),
        }
    };
    (0..count).map(slot).collect()
}
