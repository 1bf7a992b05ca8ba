//! Bounded little-endian cursors over byte slices: every decoder of towline reads through
//! [`Reader`], so no length that came from disk or network is trusted before it is checked.

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
}
