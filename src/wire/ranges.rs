//! Requests for ranges of files of which the receiver holds something: with the hashes of the blocks that are
//! there, so that only those that differ are sent.

use super::{Message, take_starved};
use crate::codec::{DecodeError, Put, Reader};
use crate::position::FileId;
use crate::record::BLOCK;

/// Most blocks of one range: 64 MiB of content, 64 KiB of hashes.
pub const RANGE_BLOCKS: usize = 4096;
/// Most ranges of one request.
pub const RANGES_MAX: usize = 512;
/// Most bytes of the ranges of one request: two of the largest.
pub const RANGES_BYTES: usize = 2 * (RANGE_HEAD + 16 * RANGE_BLOCKS);
/// Bytes of a range before its hashes.
const RANGE_HEAD: usize = 21;

/// A range of a file that the receiver wants made equal.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Range {
    /// Which file.
    pub id: FileId,
    /// Its first block.
    pub first: u64,
    /// Number of blocks.
    pub blocks: u32,
    /// Hashes of the blocks as the receiver has them; `None`: it has zeros.
    pub hashes: Option<Vec<u128>>,
}

impl Range {
    /// Bytes it takes in a request.
    #[must_use]
    pub fn stored_len(&self) -> usize {
        RANGE_HEAD + 16 * self.hashes.as_ref().map_or(0, Vec::len)
    }

    /// The hash of its block `i`, counted from its first, as the receiver has it.
    #[must_use]
    pub fn hash(&self, i: usize) -> u128 {
        self.hashes.as_ref().and_then(|h| h.get(i)).copied().unwrap_or_default()
    }

    fn put(&self, out: &mut Vec<u8>) {
        out.put_u64(self.id.0);
        out.put_u64(self.first);
        out.put_u32(self.blocks);
        out.put_u8(u8::from(self.hashes.is_some()));
        self.hashes.iter().flatten().for_each(|h| out.put_u128(*h));
    }

    fn take(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let (id, first) = (FileId(r.u64("file id")?), r.u64("first block")?);
        let (blocks, known) = (r.u32("count of blocks")?, r.u8("whether hashes follow")?);
        if blocks == 0 || blocks as usize > RANGE_BLOCKS {
            let (value, limit) = (u64::from(blocks), RANGE_BLOCKS as u64);
            return Err(DecodeError::TooLarge { what: "count of blocks", value, limit });
        }
        if first > i64::MAX as u64 / BLOCK {
            return Err(DecodeError::Invalid { what: "first block", value: first });
        }
        let hashes = match known {
            0 => None,
            1 => Some((0..blocks).map(|_| r.u128("hash")).collect::<Result<_, _>>()?),
            v => return Err(DecodeError::Invalid { what: "whether hashes follow", value: u64::from(v) }),
        };
        Ok(Self { id, first, blocks, hashes })
    }
}

pub(super) fn put_ranges(out: &mut Vec<u8>, batch: u32, starved: u8, ranges: &[Range]) {
    out.put_u32(batch);
    out.put_u8(starved);
    out.put_u32(u32::try_from(ranges.len()).unwrap_or(u32::MAX));
    ranges.iter().for_each(|r| r.put(out));
}

pub(super) fn take_ranges(r: &mut Reader<'_>) -> Result<Message, DecodeError> {
    let (batch, starved, count) = (r.u32("batch")?, take_starved(r)?, r.u32("count of ranges")? as usize);
    if count > RANGES_MAX {
        let (value, limit) = (count as u64, RANGES_MAX as u64);
        return Err(DecodeError::TooLarge { what: "count of ranges", value, limit });
    }
    let ranges = (0..count).map(|_| Range::take(r)).collect::<Result<_, _>>()?;
    Ok(Message::RangeRequest { batch, starved, ranges })
}
