//! Items of fill data: pieces of files and ends of files, many to a message.

use super::CHUNK_MAX;
use crate::codec::{DecodeError, Put, Reader};
use crate::position::FileId;
use crate::record::BLOCK;

/// How the reading of a file ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Outcome {
    /// All that was read is what the sender's catalog says, or is in the sender's log.
    Whole = 0,
    /// Some of it will be sent again in the log of this sender's run: not to be relied on after a break.
    Changing = 1,
    /// The file is gone.
    Gone = 2,
}

/// One item of fill data.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "the fields are described in the table of the module")]
pub enum Item<'a> {
    Data { id: FileId, offset: u64, bytes: &'a [u8] },
    End { id: FileId, outcome: Outcome, size: u64 },
    Hole { id: FileId, offset: u64, len: u64 },
}

/// Bytes of a data item before its content.
pub const ITEM_HEAD: usize = 21;

/// Writes the fields of a data item that stand before its content.
pub fn put_item_head(out: &mut Vec<u8>, id: FileId, offset: u64, len: u32) {
    out.put_u8(1);
    out.put_u64(id.0);
    out.put_u64(offset);
    out.put_u32(len);
}

/// Writes an end item.
pub fn put_item_end(out: &mut Vec<u8>, id: FileId, outcome: Outcome, size: u64) {
    out.put_u8(2);
    out.put_u64(id.0);
    out.put_u8(outcome as u8);
    out.put_u64(size);
}

/// Writes a hole item: there the file holds zeros.
pub fn put_item_hole(out: &mut Vec<u8>, id: FileId, offset: u64, len: u64) {
    out.put_u8(3);
    out.put_u64(id.0);
    out.put_u64(offset);
    out.put_u64(len);
}

/// Walks the items of fill data; ends after the first error.
#[derive(Debug, Clone)]
pub struct Items<'a> {
    r: Reader<'a>,
}

impl<'a> Items<'a> {
    /// Starts at the first item.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { r: Reader::new(bytes) }
    }

    fn take(&mut self) -> Result<Item<'a>, DecodeError> {
        let r = &mut self.r;
        let (tag, id) = (r.u8("item")?, FileId(r.u64("file id")?));
        match tag {
            1 => {
                let offset = r.u64("offset")?;
                let bytes = r.blob(CHUNK_MAX, "content")?;
                let end = offset.checked_add(bytes.len() as u64);
                if offset % BLOCK != 0 || end.is_none_or(|e| e > i64::MAX as u64) {
                    return Err(DecodeError::Invalid { what: "offset of content", value: offset });
                }
                Ok(Item::Data { id, offset, bytes })
            }
            2 => {
                let outcome = match r.u8("outcome")? {
                    0 => Outcome::Whole,
                    1 => Outcome::Changing,
                    2 => Outcome::Gone,
                    v => return Err(DecodeError::Invalid { what: "outcome", value: u64::from(v) }),
                };
                Ok(Item::End { id, outcome, size: r.u64("size")? })
            }
            3 => {
                let (offset, len) = (r.u64("offset")?, r.u64("length of a hole")?);
                let end = offset.checked_add(len);
                if offset % BLOCK != 0 || len % BLOCK != 0 || end.is_none_or(|e| e > i64::MAX as u64) {
                    return Err(DecodeError::Invalid { what: "offset of a hole", value: offset });
                }
                Ok(Item::Hole { id, offset, len })
            }
            v => Err(DecodeError::Invalid { what: "item", value: u64::from(v) }),
        }
    }
}

impl<'a> Iterator for Items<'a> {
    type Item = Result<Item<'a>, DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.r.rest().is_empty() {
            return None;
        }
        let item = self.take();
        if item.is_err() {
            self.r = Reader::new(&[]);
        }
        Some(item)
    }
}
