//! Positions and identities: the words every other module speaks in.
//!
//! Nothing here does I/O. A bare `u64` never crosses a module boundary where one of these
//! types is meant.

use std::fmt;
use std::str::FromStr;

/// Bytes of LSN space one segment covers, 16 MiB (PostgreSQL's default `wal_segment_size`).
pub const SEGMENT_SIZE: u64 = 16 << 20;

/// A byte position in the uncompressed record stream. It only grows, across timelines too.
///
/// Printed as PostgreSQL prints it: two hexadecimal halves, `16/B374D848`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lsn(pub u64);

impl Lsn {
    /// Before any log: no record has this position.
    pub const ZERO: Self = Self(0);
    /// Where the log of a new system begins: segment 1, so that zero can mean "none".
    pub const FIRST: Self = Self(SEGMENT_SIZE);

    /// This position moved forward, or `None` on overflow.
    #[must_use]
    pub fn checked_add(self, bytes: u64) -> Option<Self> {
        self.0.checked_add(bytes).map(Self)
    }

    /// Bytes from `earlier` to `self`, 0 when `earlier` is not earlier.
    #[must_use]
    pub fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// The segment that holds the byte at this position.
    #[must_use]
    pub fn segment(self) -> SegmentNo {
        SegmentNo(self.0 / SEGMENT_SIZE)
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:08X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

impl fmt::Debug for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a text is not a position.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not {1}")]
pub struct ParseError(String, &'static str);

impl FromStr for Lsn {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let bad = || ParseError(text.to_owned(), "an LSN; write two hexadecimal halves, like 0/1000000");
        let (hi, lo) = text.split_once('/').ok_or_else(bad)?;
        let half = |s: &str| {
            if s.is_empty() || s.len() > 8 || !s.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(bad());
            }
            u64::from_str_radix(s, 16).map_err(|_| bad())
        };
        Ok(Self(half(hi)? << 32 | half(lo)?))
    }
}

/// The number of a segment: its start LSN divided by [`SEGMENT_SIZE`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct SegmentNo(pub u64);

impl SegmentNo {
    /// First LSN of the segment.
    #[must_use]
    pub fn start(self) -> Lsn {
        Lsn(self.0.saturating_mul(SEGMENT_SIZE))
    }

    /// First LSN after the segment.
    #[must_use]
    pub fn end(self) -> Lsn {
        Lsn(self.0.saturating_add(1).saturating_mul(SEGMENT_SIZE))
    }

    /// The segment after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

/// A 32-bit epoch; each promotion starts the next one. The first is 1.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct TimelineId(pub u32);

impl TimelineId {
    /// The timeline of a new system.
    pub const FIRST: Self = Self(1);
}

impl fmt::Display for TimelineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// The random identity of a replicated directory, made once at init. Zero means "none yet".
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct SystemId(pub u64);

impl SystemId {
    /// No system: what an empty follower says.
    pub const NONE: Self = Self(0);
}

impl fmt::Display for SystemId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// The identity of a node, made once with its state directory; a name can be given twice. Zero: not known, as
/// of nodes of older versions.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct NodeId(pub u64);

impl NodeId {
    /// Nobody is known to be this.
    pub const NONE: Self = Self(0);
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// The replicated identity of a file: assigned by the leader, never reused. The root is 1.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct FileId(pub u64);

impl FileId {
    /// The data directory itself.
    pub const ROOT: Self = Self(1);
}

impl fmt::Display for FileId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.0)
    }
}

impl fmt::Debug for FileId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// How good the cut at a commit is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Cut {
    /// The tree is exactly what the directory held at one instant.
    Exact,
    /// Each file was read stably or marked to be read again; files may be of different instants.
    File,
}

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Exact => "exact",
            Self::File => "file",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lsn_prints_and_parses_like_postgresql() {
        let lsn = Lsn(0x16_B374_D848);
        assert_eq!(lsn.to_string(), "16/B374D848");
        assert_eq!("16/b374d848".parse(), Ok(lsn));
        assert_eq!(Lsn(5).to_string(), "0/00000005");
        for bad in ["", "1", "/", "1/", "/1", "1/123456789", "x/1", "1/-1", "1/ 1", "+1/1"] {
            assert!(bad.parse::<Lsn>().is_err(), "{bad}");
        }
    }

    #[test]
    fn segments_partition_lsn_space() {
        assert_eq!(Lsn::FIRST.segment(), SegmentNo(1));
        assert_eq!(SegmentNo(1).start(), Lsn::FIRST);
        assert_eq!(SegmentNo(1).end(), SegmentNo(2).start());
        assert_eq!(Lsn(SEGMENT_SIZE * 2 - 1).segment(), SegmentNo(1));
    }
}
