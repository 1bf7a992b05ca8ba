//! Packs: the contents of files as they were sent, in a backup. Pure: over anything that reads or writes bytes.
//!
//! Integers are little-endian.
//!
//! | offset | size | field |
//! | --- | --- | --- |
//! | 0 | 8 | magic `TWLNPACK` |
//! | 8 | 4 | format version, 1 |
//! | 12 | 8 | system id |
//! | 20 | ... | frames |
//!
//! Frame, [`FRAME_LEN`] bytes and the stored bytes:
//!
//! | offset | size | field |
//! | --- | --- | --- |
//! | 0 | 1 | encoding: 0 the items as they are, 1 as one zstd frame |
//! | 1 | 4 | bytes of the items, 1 to [`ITEMS_MAX`] |
//! | 5 | 4 | bytes stored, 1 to [`STORED_MAX`]; with encoding 0 the number before |
//! | 9 | 4 | CRC32C of system id, the 9 bytes before, and the stored bytes |
//! | 13 | n | stored bytes |
//!
//! The items are those of one fill-data message, see [`crate::wire::Items`]. A pack ends behind any frame: that it is
//! whole is known from its size in the manifest. Items of a file may be in several packs, in any order of
//! offsets; each file has its end exactly once.

use std::io::{self, Read, Write};

use crate::codec::{DecodeError, Put, Reader as Cursor};
use crate::error::{self, ErrorKind};
use crate::position::SystemId;
use crate::segment::stored_bound;
use crate::wire::{Encoding, ITEMS_MAX};

/// First bytes of every pack.
pub const MAGIC: [u8; 8] = *b"TWLNPACK";
/// The format.
pub const VERSION: u32 = 1;
/// Bytes before the first frame.
pub const HEADER_LEN: usize = 20;
/// Bytes of a frame before what it stores.
pub const FRAME_LEN: usize = 13;
/// Most stored bytes of a frame: what zstd needs at most for [`ITEMS_MAX`].
pub const STORED_MAX: usize = stored_bound(ITEMS_MAX);

/// Why a pack can't be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What it is read from failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Its bytes are not those of a pack.
    #[error("at byte {at}: {why}")]
    Damaged {
        /// Where the header or the frame begins.
        at: u64,
        /// What is wrong there.
        why: DecodeError,
    },
    /// The frame holds something that does not decompress to what it says.
    #[error("at byte {at}: it does not decompress to {raw_len} bytes: {why}")]
    Compressed {
        /// Where the frame begins.
        at: u64,
        /// How many there should be.
        raw_len: u32,
        /// What zstd said.
        why: String,
    },
    /// It is of another system.
    #[error("it holds contents of system {found}, not of {expected}")]
    Foreign {
        /// What it says.
        found: SystemId,
        /// What it should be.
        expected: SystemId,
    },
}

impl From<Error> for error::Error {
    fn from(e: Error) -> Self {
        match e {
            Error::Io(e) => e.into(),
            Error::Damaged { at, why } => Self::from(why).wrap(&format!("at byte {at}")),
            Error::Compressed { .. } => Self::new(ErrorKind::Corrupt, e.to_string()),
            Error::Foreign { .. } => Self::new(ErrorKind::Refused, e.to_string()),
        }
    }
}

/// One frame, its checksum found right.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Frame {
    /// Where it begins in its pack.
    pub at: u64,
    /// How the items are stored.
    pub encoding: Encoding,
    /// Bytes of the items.
    pub raw_len: u32,
    /// The stored bytes.
    pub stored: Vec<u8>,
}

/// Writes a pack.
#[derive(Debug)]
pub struct Writer<W> {
    out: W,
    seed: u32,
    len: u64,
}

fn seed(system: SystemId) -> u32 {
    crc32c::crc32c(&system.0.to_le_bytes())
}

impl<W: Write> Writer<W> {
    /// Begins a pack.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn new(mut out: W, system: SystemId) -> io::Result<Self> {
        let mut head = MAGIC.to_vec();
        head.put_u32(VERSION);
        head.put_u64(system.0);
        out.write_all(&head)?;
        Ok(Self { out, seed: seed(system), len: head.len() as u64 })
    }

    /// Adds a frame: the stored form of the items of one fill-data message.
    ///
    /// # Errors
    /// Those of `out`; and `InvalidInput` for lengths that no reader would take.
    pub fn frame(&mut self, encoding: Encoding, raw_len: u32, stored: &[u8]) -> io::Result<()> {
        check_lengths(encoding, raw_len, stored.len())
            .map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e.to_string()))?;
        let mut head = Vec::with_capacity(FRAME_LEN);
        head.put_u8(encoding as u8);
        head.put_u32(raw_len);
        head.put_u32(u32::try_from(stored.len()).unwrap_or(u32::MAX));
        let crc = crc32c::crc32c_append(crc32c::crc32c_append(self.seed, &head), stored);
        head.put_u32(crc);
        self.out.write_all(&head)?;
        self.out.write_all(stored)?;
        self.len += (FRAME_LEN + stored.len()) as u64;
        Ok(())
    }

    /// Bytes written.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there is no frame yet.
    pub fn is_empty(&self) -> bool {
        self.len == HEADER_LEN as u64
    }

    /// Gives back what it was written to.
    pub fn into_inner(self) -> W {
        self.out
    }
}

fn check_lengths(encoding: Encoding, raw_len: u32, stored: usize) -> Result<(), DecodeError> {
    let bound = |what, value: usize, limit: usize| match value {
        0 => Err(DecodeError::Invalid { what, value: 0 }),
        v if v > limit => Err(DecodeError::TooLarge { what, value: v as u64, limit: limit as u64 }),
        _ => Ok(()),
    };
    bound("length of items", raw_len as usize, ITEMS_MAX)?;
    bound("stored length", stored, STORED_MAX)?;
    if encoding == Encoding::Raw && raw_len as usize != stored {
        return Err(DecodeError::Invalid { what: "stored length", value: stored as u64 });
    }
    Ok(())
}

/// Reads a pack, frame by frame.
#[derive(Debug)]
pub struct Reader<R> {
    input: R,
    system: SystemId,
    at: u64,
}

impl<R: Read> Reader<R> {
    /// Reads the header.
    ///
    /// # Errors
    /// It is no pack, one of a newer format, or the input fails.
    pub fn new(mut input: R) -> Result<Self, Error> {
        let damaged = |why| Error::Damaged { at: 0, why };
        let mut head = Vec::with_capacity(HEADER_LEN);
        input.by_ref().take(HEADER_LEN as u64).read_to_end(&mut head)?;
        let mut r = Cursor::new(&head);
        if r.array("magic").map_err(damaged)? != MAGIC {
            return Err(damaged(DecodeError::Magic("pack")));
        }
        let found = r.u32("version").map_err(damaged)?;
        if found != VERSION {
            return Err(damaged(DecodeError::Version { found, known: VERSION }));
        }
        let system = SystemId(r.u64("system id").map_err(damaged)?);
        Ok(Self { input, system, at: HEADER_LEN as u64 })
    }

    /// The same, for a pack that has to be of `system`.
    ///
    /// # Errors
    /// Those of [`new`](Self::new), and that of a foreign pack.
    pub fn of(input: R, system: SystemId) -> Result<Self, Error> {
        let it = Self::new(input)?;
        if it.system == system {
            return Ok(it);
        }
        Err(Error::Foreign { found: it.system, expected: system })
    }

    /// For an input that begins with a frame of a pack of `system`, whose header was read.
    pub fn within(input: R, system: SystemId) -> Self {
        Self { input, system, at: 0 }
    }

    /// Whose contents these are.
    pub fn system(&self) -> SystemId {
        self.system
    }

    /// Bytes read so far.
    pub fn position(&self) -> u64 {
        self.at
    }

    /// The next frame, its checksum compared; `None` at the end.
    ///
    /// # Errors
    /// The frame is cut or damaged, or the input fails.
    #[allow(clippy::should_implement_trait, reason = "an iterator would go on after an error")]
    pub fn next(&mut self) -> Result<Option<Frame>, Error> {
        let at = self.at;
        let damaged = |why| Error::Damaged { at, why };
        let mut head = Vec::with_capacity(FRAME_LEN);
        self.input.by_ref().take(FRAME_LEN as u64).read_to_end(&mut head)?;
        if head.is_empty() {
            return Ok(None);
        }
        let mut r = Cursor::new(&head);
        let encoding = match r.u8("encoding").map_err(damaged)? {
            0 => Encoding::Raw,
            1 => Encoding::Zstd,
            v => return Err(damaged(DecodeError::Invalid { what: "encoding", value: u64::from(v) })),
        };
        let raw_len = r.u32("length of items").map_err(damaged)?;
        let len = r.u32("stored length").map_err(damaged)? as usize;
        let crc = r.u32("checksum").map_err(damaged)?;
        check_lengths(encoding, raw_len, len).map_err(damaged)?;
        let mut stored = Vec::with_capacity(len);
        self.input.by_ref().take(len as u64).read_to_end(&mut stored)?;
        if stored.len() != len {
            return Err(damaged(DecodeError::Short("frame")));
        }
        let fields = head.get(..FRAME_LEN - 4).unwrap_or_default();
        let computed = crc32c::crc32c_append(crc32c::crc32c_append(seed(self.system), fields), &stored);
        if computed != crc {
            return Err(damaged(DecodeError::Checksum { stored: crc, computed }));
        }
        self.at += (FRAME_LEN + len) as u64;
        Ok(Some(Frame { at, encoding, raw_len, stored }))
    }
}

/// Takes the items out of frames. One to a thread.
#[derive(Default)]
pub struct Unpacker {
    zstd: Option<zstd::bulk::Decompressor<'static>>,
    raw: Vec<u8>,
}

impl std::fmt::Debug for Unpacker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Unpacker").field("room", &self.raw.len()).finish_non_exhaustive()
    }
}

impl Unpacker {
    /// The items of a frame as bytes, for [`crate::wire::Items`].
    ///
    /// # Errors
    /// They do not decompress to what the frame says.
    pub fn items<'a>(&'a mut self, frame: &'a Frame) -> Result<&'a [u8], Error> {
        if frame.encoding == Encoding::Raw {
            return Ok(&frame.stored);
        }
        let bad = |why: String| Error::Compressed { at: frame.at, raw_len: frame.raw_len, why };
        let zstd = match &mut self.zstd {
            Some(zstd) => zstd,
            none => none.insert(zstd::bulk::Decompressor::new()?),
        };
        let len = frame.raw_len as usize;
        // The largest frame there may be, once: a length from a file never asks for more.
        if self.raw.len() < len {
            self.raw.resize(len.min(ITEMS_MAX), 0);
        }
        let room =
            self.raw.get_mut(..len).ok_or_else(|| bad("that is more than a frame holds".to_owned()))?;
        let n = zstd.decompress_to_buffer(&frame.stored, room).map_err(|e| bad(e.to_string()))?;
        if n != len {
            return Err(bad(format!("it has {n}")));
        }
        Ok(self.raw.get(..len).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests;
