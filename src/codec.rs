//! Bounded little-endian cursors over byte slices: every decoder of towline reads through
//! [`Reader`], so no length that came from disk or network is trusted before it is checked.
//! [`Seal`] is the frame around a small file that is written whole.

/// Why bytes could not be decoded. `what` names the field.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The input ended inside the field.
    #[error("input ends inside {0}")]
    Short(&'static str),
    /// A length or number is beyond its documented limit.
    #[error("{what} is {value}, more than the limit of {limit}")]
    TooLarge {
        /// The field.
        what: &'static str,
        /// What it said.
        value: u64,
        /// What it may be at most.
        limit: u64,
    },
    /// A value that the format does not know or allow.
    #[error("{what} has the invalid value {value}")]
    Invalid {
        /// The field.
        what: &'static str,
        /// What it said.
        value: u64,
    },
    /// Bytes are left after the last field.
    #[error("{0} bytes are left over")]
    Trailing(usize),
    /// The first bytes are not the magic of the format: it is something else.
    #[error("its first bytes are not those of a {0}")]
    Magic(&'static str),
    /// A format that this program does not know.
    #[error("its format is version {found}, this program knows {known}")]
    Version {
        /// What it said.
        found: u32,
        /// The newest one known.
        known: u32,
    },
    /// The bytes are not those that were written.
    #[error("its checksum is {stored:08x}, that of its bytes {computed:08x}")]
    Checksum {
        /// What it said.
        stored: u32,
        /// What its bytes have.
        computed: u32,
    },
}

/// The frame of a kind of small file that is written whole, and what there is to say about one that can't be used.
///
/// | size | field |
/// | --- | --- |
/// | .. | magic |
/// | 4 or 0 | format version, little-endian, in formats that have one |
/// | .. | body |
/// | 4 | CRC32C of everything before, little-endian |
///
/// The checksum stays in its place in every version, so that a flipped bit is not taken for a newer format.
#[derive(Debug, Clone, Copy)]
pub struct Seal {
    /// What such a file is called in messages.
    pub name: &'static str,
    /// Its first bytes; they may be none.
    pub magic: &'static [u8],
    /// The format's version, where the format has one beside its magic.
    pub version: Option<u32>,
    /// Most bytes of such a file.
    pub most: u64,
    /// What the operator does about one that is damaged.
    pub remedy: &'static str,
}

impl Seal {
    /// Puts the frame around what `body` appends.
    pub fn encode(&self, body: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        let mut out = self.magic.to_vec();
        if let Some(version) = self.version {
            out.put_u32(version);
        }
        body(&mut out);
        out.put_u32(crc32c::crc32c(&out));
        out
    }

    /// Checks the frame. What is returned reads the body.
    ///
    /// # Errors
    /// In this order: too short, another magic, a wrong checksum, another version.
    pub fn decode<'a>(&self, bytes: &'a [u8]) -> Result<Reader<'a>, DecodeError> {
        let (found, body) = self.decode_old(bytes)?;
        match self.version {
            Some(known) if found != known => Err(DecodeError::Version { found, known }),
            _ => Ok(body),
        }
    }

    /// The same for a format of which older versions are read too: the version, and what reads the body.
    ///
    /// # Errors
    /// Those of [`decode`](Self::decode).
    pub fn decode_old<'a>(&self, bytes: &'a [u8]) -> Result<(u32, Reader<'a>), DecodeError> {
        let magic = bytes.get(..self.magic.len()).ok_or(DecodeError::Short("magic"))?;
        if magic != self.magic {
            return Err(DecodeError::Magic(self.name));
        }
        let (sealed, stored) = bytes.split_last_chunk::<4>().ok_or(DecodeError::Short("checksum"))?;
        let body = sealed.get(self.magic.len()..).ok_or(DecodeError::Short("checksum"))?;
        let (stored, computed) = (u32::from_le_bytes(*stored), crc32c::crc32c(sealed));
        if stored != computed {
            return Err(DecodeError::Checksum { stored, computed });
        }
        let mut body = Reader::new(body);
        let Some(known) = self.version else { return Ok((0, body)) };
        let found = body.u32("version")?;
        if found == 0 || found > known {
            return Err(DecodeError::Version { found, known });
        }
        Ok((found, body))
    }
}

/// A cursor that takes fields off the front of a slice.
#[derive(Debug, Clone, Copy)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

macro_rules! reader_int {
    ($name:ident, $type:ty) => {
        /// Takes one little-endian integer.
        pub fn $name(&mut self, what: &'static str) -> Result<$type, DecodeError> {
            let (head, rest) = self.rest.split_first_chunk().ok_or(DecodeError::Short(what))?;
            self.rest = rest;
            Ok(<$type>::from_le_bytes(*head))
        }
    };
}

impl<'a> Reader<'a> {
    /// Reads from the start of `bytes`.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    reader_int!(u8, u8);
    reader_int!(u16, u16);
    reader_int!(u32, u32);
    reader_int!(u64, u64);
    reader_int!(i64, i64);
    reader_int!(u128, u128);

    /// Takes `len` raw bytes.
    pub fn bytes(&mut self, len: usize, what: &'static str) -> Result<&'a [u8], DecodeError> {
        let (head, rest) = self.rest.split_at_checked(len).ok_or(DecodeError::Short(what))?;
        self.rest = rest;
        Ok(head)
    }

    /// Takes an array of fixed size.
    pub fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], DecodeError> {
        let (head, rest) = self.rest.split_first_chunk().ok_or(DecodeError::Short(what))?;
        self.rest = rest;
        Ok(*head)
    }

    /// Takes a `u32` length of at most `limit`, then that many bytes.
    pub fn blob(&mut self, limit: usize, what: &'static str) -> Result<&'a [u8], DecodeError> {
        let len = self.u32(what)? as usize;
        if len > limit {
            return Err(DecodeError::TooLarge { what, value: len as u64, limit: limit as u64 });
        }
        self.bytes(len, what)
    }

    /// What has not been taken yet.
    #[must_use]
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// Succeeds when everything was taken.
    pub fn finish(self) -> Result<(), DecodeError> {
        if self.rest.is_empty() { Ok(()) } else { Err(DecodeError::Trailing(self.rest.len())) }
    }
}

/// Appends little-endian fields to a byte vector.
pub trait Put {
    /// One byte.
    fn put_u8(&mut self, v: u8);
    /// Two bytes.
    fn put_u16(&mut self, v: u16);
    /// Four bytes.
    fn put_u32(&mut self, v: u32);
    /// Eight bytes.
    fn put_u64(&mut self, v: u64);
    /// Eight bytes, signed.
    fn put_i64(&mut self, v: i64);
    /// Sixteen bytes.
    fn put_u128(&mut self, v: u128);
    /// A `u32` length and the bytes. The caller keeps the length below the field's limit.
    fn put_blob(&mut self, v: &[u8]);
}

impl Put for Vec<u8> {
    fn put_u8(&mut self, v: u8) {
        self.push(v);
    }
    fn put_u16(&mut self, v: u16) {
        self.extend_from_slice(&v.to_le_bytes());
    }
    fn put_u32(&mut self, v: u32) {
        self.extend_from_slice(&v.to_le_bytes());
    }
    fn put_u64(&mut self, v: u64) {
        self.extend_from_slice(&v.to_le_bytes());
    }
    fn put_i64(&mut self, v: i64) {
        self.extend_from_slice(&v.to_le_bytes());
    }
    fn put_u128(&mut self, v: u128) {
        self.extend_from_slice(&v.to_le_bytes());
    }
    fn put_blob(&mut self, v: &[u8]) {
        self.put_u32(u32::try_from(v.len()).expect("a field of 4 GiB was never allowed in"));
        self.extend_from_slice(v);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_is_checked_before_it_is_used() {
        let mut bytes = Vec::new();
        bytes.put_u32(u32::MAX);
        let err = Reader::new(&bytes).blob(10, "name").unwrap_err();
        assert_eq!(err, DecodeError::TooLarge { what: "name", value: u64::from(u32::MAX), limit: 10 });
        let mut bytes = Vec::new();
        bytes.put_blob(b"abc");
        assert_eq!(Reader::new(&bytes).blob(3, "name"), Ok(&b"abc"[..]));
        bytes.pop();
        assert_eq!(Reader::new(&bytes).blob(3, "name"), Err(DecodeError::Short("name")));
    }

    const SEAL: Seal = Seal { name: "note", magic: b"MAGIC", version: Some(3), most: 100, remedy: "burn it" };

    #[test]
    fn a_seal_is_its_magic_its_version_and_the_sum_of_all() {
        let bytes = SEAL.encode(|out| out.put_u16(0x0201));
        assert_eq!(bytes, b"MAGIC\x03\0\0\0\x01\x02\x51\x4f\x44\x41");
        assert_eq!(SEAL.decode(&bytes).unwrap().rest(), [1, 2]);
        let bare = Seal { magic: b"", version: None, ..SEAL };
        assert_eq!(bare.encode(|_| ()), [0; 4]);
        assert!(bare.decode(&[0; 4]).unwrap().rest().is_empty());
    }

    #[test]
    fn what_is_wrong_with_a_seal_is_told_apart() {
        let bytes = SEAL.encode(|out| out.put_u16(7));
        let refused = |bytes: &[u8]| SEAL.decode(bytes).unwrap_err();
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 0x10;
            match refused(&bad) {
                DecodeError::Magic("note") => assert!(at < 5, "byte {at}"),
                DecodeError::Checksum { .. } => assert!(at >= 5, "byte {at}"),
                other => panic!("byte {at}: {other}"),
            }
            let cut = refused(&bytes[..at]);
            assert!(
                matches!(cut, DecodeError::Short(_) | DecodeError::Checksum { .. }),
                "cut at {at}: {cut}"
            );
        }
        assert_eq!(refused(b"MAG"), DecodeError::Short("magic"));
        assert_eq!(refused(b"MAGIC\0\0\0"), DecodeError::Short("checksum"));
        let newer = Seal { version: Some(4), ..SEAL }.encode(|out| out.put_blob(b"anything"));
        assert_eq!(refused(&newer), DecodeError::Version { found: 4, known: 3 });
        let bare = Seal { version: None, ..SEAL }.encode(|_| ());
        assert_eq!(refused(&bare), DecodeError::Short("version"));
    }
}
