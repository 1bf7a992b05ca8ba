//! Records: what happened to files, and how a record is written in the stream.
//!
//! A record is a header of 8 bytes and a body; integers are little-endian.
//!
//! | offset | size | field |
//! | --- | --- | --- |
//! | 0 | 1 | kind |
//! | 1 | 3 | reserved, zero |
//! | 4 | 4 | length of the body, at most [`BODY_MAX`] |
//! | 8 | n | body |
//!
//! | kind | name | body |
//! | --- | --- | --- |
//! | 1 | create | id u64, type u8, mode u32, uid u32, gid u32, mtime (i64 s, u32 ns), rdev u64, symlink target blob |
//! | 2 | write | id u64, offset u64, data to the end of the body |
//! | 3 | truncate | id u64, size u64 |
//! | 4 | punch | id u64, offset u64, length u64 |
//! | 5 | link | parent u64, id u64, name to the end of the body |
//! | 6 | unlink | parent u64, name to the end of the body |
//! | 7 | attributes | id u64, mode u32, uid u32, gid u32, mtime (i64 s, u32 ns) |
//! | 8 | xattr | id u64, set u8 (0 remove, 1 set), name blob, value blob |
//! | 9 | commit | cut u8 (0 exact, 1 file), flags u8 (bit 0: content digest is partial), time i64 ns since 1970, metadata digest u128, content digest u128, inodes u64 |
//! | 10 | abort | nothing |
//! | 11 | restore point | time i64 ns, name to the end of the body; the change set holds nothing else and is an exact cut |
//! | 12 | gap | phase u8 (0 begins, 1 ends), reason u8, time i64 ns |
//! | 13 | excludes | version u64, newline-separated patterns to the end of the body |
//!
//! Rules that every reader may rely on:
//!
//! - A change set is the records up to and including a commit or an abort. Names settle at the
//!   commit: links and unlinks within a change set may come in any order that leaves each
//!   (parent, name) with its last value, and an inode without a name at the commit is gone.
//! - File ids grow and are never reused. A create precedes every other record of its id.
//! - A write starts on a [`BLOCK`] boundary and holds whole blocks, but for the file's last one. It
//!   extends the size where it reaches further. Blocks that are all zero are not written but
//!   left as holes (punch, or truncate to a larger size).
//! - After a truncate to a smaller size that is not on a block boundary, the new last block follows as a write.

use crate::codec::{DecodeError, Put, Reader};
use crate::position::{Cut, FileId};

mod point;

pub use point::{POINT_NAME_MAX, PointName};

/// The unit of change detection within a file: 16 KiB.
pub const BLOCK: u64 = 16 << 10;
/// Bytes of a record header.
pub const HEADER: usize = 8;
/// Most bytes of data one write record carries: 256 KiB, 16 blocks.
pub const WRITE_MAX: usize = 256 << 10;
/// Most bytes of a name: `NAME_MAX` of Linux.
pub const NAME_MAX: usize = 255;
/// Most bytes of a symlink's target: `PATH_MAX` less its NUL.
pub const TARGET_MAX: usize = 4095;
/// Most bytes of an extended attribute's value: `XATTR_SIZE_MAX` of Linux.
pub const XATTR_MAX: usize = 64 << 10;
/// Most bytes of a list of exclude patterns.
pub const EXCLUDES_MAX: usize = 128 << 10;
/// Most bytes of a record's body.
pub const BODY_MAX: usize = WRITE_MAX + 16;

/// What an inode is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
#[allow(missing_docs, reason = "the names are POSIX's own")]
pub enum Kind {
    File = 1,
    Dir = 2,
    Symlink = 3,
    Fifo = 4,
    Socket = 5,
    CharDevice = 6,
    BlockDevice = 7,
}

impl Kind {
    /// The kind that is stored as `v`.
    pub fn from_u8(v: u8) -> Result<Self, DecodeError> {
        Ok(match v {
            1 => Self::File,
            2 => Self::Dir,
            3 => Self::Symlink,
            4 => Self::Fifo,
            5 => Self::Socket,
            6 => Self::CharDevice,
            7 => Self::BlockDevice,
            _ => return Err(DecodeError::Invalid { what: "inode type", value: u64::from(v) }),
        })
    }
}

/// A time of the file system: seconds since 1970 and nanoseconds below 10^9.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Time {
    /// Whole seconds, negative before 1970.
    pub sec: i64,
    /// Nanoseconds, 0 to 999,999,999.
    pub nsec: u32,
}

/// The replicated attributes of an inode.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Attrs {
    /// Permission bits with setuid, setgid and sticky: `0o7777` at most.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time.
    pub mtime: Time,
}

/// Why the history between two commits is approximate.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum GapReason {
    /// The kernel dropped events: its queue was full.
    Overflow = 1,
    /// Fewer directories could be watched than there are.
    WatchLimit = 2,
    /// A file system was unmounted or the root replaced.
    Unmount = 3,
    /// The leader was not running.
    Down = 4,
    /// A scan found a change that no event had announced.
    Scan = 5,
}

/// One record. Borrowed from the buffer it was decoded from, or from where it is staged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "the fields are described in the table of the module")]
pub enum Record<'a> {
    Create { id: FileId, kind: Kind, attrs: Attrs, rdev: u64, target: &'a [u8] },
    Write { id: FileId, offset: u64, data: &'a [u8] },
    Truncate { id: FileId, size: u64 },
    Punch { id: FileId, offset: u64, len: u64 },
    Link { parent: FileId, name: &'a [u8], id: FileId },
    Unlink { parent: FileId, name: &'a [u8] },
    Attr { id: FileId, attrs: Attrs },
    Xattr { id: FileId, name: &'a [u8], value: Option<&'a [u8]> },
    Commit(Commit),
    Abort,
    RestorePoint { time: i64, name: &'a [u8] },
    Gap { end: bool, reason: GapReason, time: i64 },
    Excludes { version: u64, patterns: &'a [u8] },
}

/// The end of a change set that counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Commit {
    /// How good the cut is.
    pub cut: Cut,
    /// Whether some file's content is not hashed yet, so that only `meta` may be compared.
    pub partial: bool,
    /// Leader's clock, nanoseconds since 1970.
    pub time: i64,
    /// Sum over names and attributes, see [`crate::catalog`].
    pub meta: u128,
    /// Sum over the blocks of every file.
    pub content: u128,
    /// Number of inodes after the commit.
    pub inodes: u64,
}

fn put_attrs(out: &mut Vec<u8>, a: &Attrs) {
    out.put_u32(a.mode);
    out.put_u32(a.uid);
    out.put_u32(a.gid);
    out.put_i64(a.mtime.sec);
    out.put_u32(a.mtime.nsec);
}

fn take_attrs(r: &mut Reader<'_>) -> Result<Attrs, DecodeError> {
    let attrs = Attrs {
        mode: r.u32("mode")?,
        uid: r.u32("uid")?,
        gid: r.u32("gid")?,
        mtime: Time { sec: r.i64("mtime")?, nsec: r.u32("mtime")? },
    };
    if attrs.mode > 0o7777 {
        return Err(DecodeError::Invalid { what: "mode", value: u64::from(attrs.mode) });
    }
    if attrs.mtime.nsec >= 1_000_000_000 {
        return Err(DecodeError::Invalid { what: "mtime", value: u64::from(attrs.mtime.nsec) });
    }
    Ok(attrs)
}

/// Whether `name` may be a directory entry: 1 to 255 bytes, no slash, no NUL, not `.` or `..`.
#[must_use]
pub fn valid_name(name: &[u8]) -> bool {
    !name.is_empty()
        && name.len() <= NAME_MAX
        && name != b"."
        && name != b".."
        && !name.iter().any(|&b| b == b'/' || b == 0)
}

fn check_name(name: &[u8]) -> Result<&[u8], DecodeError> {
    if valid_name(name) {
        Ok(name)
    } else {
        Err(DecodeError::Invalid { what: "name (by its length)", value: name.len() as u64 })
    }
}

fn check_id(id: u64) -> Result<FileId, DecodeError> {
    if id == 0 { Err(DecodeError::Invalid { what: "file id", value: 0 }) } else { Ok(FileId(id)) }
}

impl<'a> Record<'a> {
    /// Appends the encoded record to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&[self.kind_byte(), 0, 0, 0, 0, 0, 0, 0]);
        self.encode_body(out);
        let len = u32::try_from(out.len() - start - HEADER).expect("a record body is far below 4 GiB");
        out[start + 4..start + HEADER].copy_from_slice(&len.to_le_bytes());
    }

    fn encode_body(&self, out: &mut Vec<u8>) {
        match *self {
            Record::Create { id, kind, ref attrs, rdev, target } => {
                out.put_u64(id.0);
                out.put_u8(kind as u8);
                put_attrs(out, attrs);
                out.put_u64(rdev);
                out.put_blob(target);
            }
            Record::Write { id, offset, data } => {
                out.put_u64(id.0);
                out.put_u64(offset);
                out.extend_from_slice(data);
            }
            Record::Truncate { id, size } => {
                out.put_u64(id.0);
                out.put_u64(size);
            }
            Record::Punch { id, offset, len } => {
                out.put_u64(id.0);
                out.put_u64(offset);
                out.put_u64(len);
            }
            Record::Link { parent, name, id } => {
                out.put_u64(parent.0);
                out.put_u64(id.0);
                out.extend_from_slice(name);
            }
            Record::Unlink { parent, name } => {
                out.put_u64(parent.0);
                out.extend_from_slice(name);
            }
            Record::Attr { id, ref attrs } => {
                out.put_u64(id.0);
                put_attrs(out, attrs);
            }
            Record::Xattr { id, name, value } => {
                out.put_u64(id.0);
                out.put_u8(u8::from(value.is_some()));
                out.put_blob(name);
                out.put_blob(value.unwrap_or_default());
            }
            Record::Commit(ref c) => {
                out.put_u8(match c.cut {
                    Cut::Exact => 0,
                    Cut::File => 1,
                });
                out.put_u8(u8::from(c.partial));
                out.put_i64(c.time);
                out.put_u128(c.meta);
                out.put_u128(c.content);
                out.put_u64(c.inodes);
            }
            Record::Abort => {}
            Record::RestorePoint { time, name } => {
                out.put_i64(time);
                out.extend_from_slice(name);
            }
            Record::Gap { end, reason, time } => {
                out.put_u8(u8::from(end));
                out.put_u8(reason as u8);
                out.put_i64(time);
            }
            Record::Excludes { version, patterns } => {
                out.put_u64(version);
                out.extend_from_slice(patterns);
            }
        }
    }

    fn kind_byte(&self) -> u8 {
        match self {
            Record::Create { .. } => 1,
            Record::Write { .. } => 2,
            Record::Truncate { .. } => 3,
            Record::Punch { .. } => 4,
            Record::Link { .. } => 5,
            Record::Unlink { .. } => 6,
            Record::Attr { .. } => 7,
            Record::Xattr { .. } => 8,
            Record::Commit(_) => 9,
            Record::Abort => 10,
            Record::RestorePoint { .. } => 11,
            Record::Gap { .. } => 12,
            Record::Excludes { .. } => 13,
        }
    }

    /// Takes one record off the front of `input`: the record and the number of bytes it took.
    ///
    /// # Errors
    /// Names the field that broke a rule of the table; nothing is allocated.
    pub fn decode(input: &'a [u8]) -> Result<(Self, usize), DecodeError> {
        let mut r = Reader::new(input);
        let kind = r.u8("record kind")?;
        let reserved: [u8; 3] = r.array("record header")?;
        if reserved != [0; 3] {
            return Err(DecodeError::Invalid {
                what: "reserved record bytes",
                value: u64::from(reserved[0]),
            });
        }
        let body = r.blob(BODY_MAX, "record length")?;
        Ok((Self::decode_body(kind, body)?, HEADER + body.len()))
    }

    fn decode_body(kind: u8, body: &'a [u8]) -> Result<Self, DecodeError> {
        let mut r = Reader::new(body);
        let record = match kind {
            1 => take_create(&mut r)?,
            2 => {
                let (id, offset) = (check_id(r.u64("file id")?)?, r.u64("offset")?);
                let data = take_rest(&mut r, WRITE_MAX, "write data")?;
                if offset % BLOCK != 0
                    || offset.checked_add(data.len() as u64).is_none_or(|e| e > i64::MAX as u64)
                {
                    return Err(DecodeError::Invalid { what: "write offset", value: offset });
                }
                Record::Write { id, offset, data }
            }
            3 => Record::Truncate { id: check_id(r.u64("file id")?)?, size: take_size(&mut r)? },
            4 => {
                let (id, offset, len) = (check_id(r.u64("file id")?)?, r.u64("offset")?, r.u64("length")?);
                if offset % BLOCK != 0 || offset.checked_add(len).is_none_or(|e| e > i64::MAX as u64) {
                    return Err(DecodeError::Invalid { what: "punch offset", value: offset });
                }
                Record::Punch { id, offset, len }
            }
            5 => {
                let (parent, id) = (check_id(r.u64("parent id")?)?, check_id(r.u64("file id")?)?);
                Record::Link { parent, id, name: check_name(take_rest(&mut r, NAME_MAX, "name")?)? }
            }
            6 => {
                let parent = check_id(r.u64("parent id")?)?;
                Record::Unlink { parent, name: check_name(take_rest(&mut r, NAME_MAX, "name")?)? }
            }
            7 => Record::Attr { id: check_id(r.u64("file id")?)?, attrs: take_attrs(&mut r)? },
            8 => {
                let id = check_id(r.u64("file id")?)?;
                let set = take_bool(&mut r, "xattr operation")?;
                let name = r.blob(NAME_MAX, "xattr name")?;
                let value = r.blob(XATTR_MAX, "xattr value")?;
                if name.is_empty() || name.contains(&0) || (!set && !value.is_empty()) {
                    return Err(DecodeError::Invalid { what: "xattr name", value: name.len() as u64 });
                }
                Record::Xattr { id, name, value: set.then_some(value) }
            }
            9 => Record::Commit(Commit {
                cut: if take_bool(&mut r, "cut")? { Cut::File } else { Cut::Exact },
                partial: take_bool(&mut r, "commit flags")?,
                time: r.i64("commit time")?,
                meta: r.u128("metadata digest")?,
                content: r.u128("content digest")?,
                inodes: r.u64("inodes")?,
            }),
            10 => Record::Abort,
            11 => Record::RestorePoint {
                time: r.i64("time")?,
                name: take_rest(&mut r, NAME_MAX, "restore point")?,
            },
            12 => Record::Gap {
                end: take_bool(&mut r, "gap phase")?,
                reason: match r.u8("gap reason")? {
                    1 => GapReason::Overflow,
                    2 => GapReason::WatchLimit,
                    3 => GapReason::Unmount,
                    4 => GapReason::Down,
                    5 => GapReason::Scan,
                    v => return Err(DecodeError::Invalid { what: "gap reason", value: u64::from(v) }),
                },
                time: r.i64("time")?,
            },
            13 => Record::Excludes {
                version: r.u64("version")?,
                patterns: take_rest(&mut r, EXCLUDES_MAX, "patterns")?,
            },
            _ => return Err(DecodeError::Invalid { what: "record kind", value: u64::from(kind) }),
        };
        r.finish()?;
        Ok(record)
    }
}

fn take_create<'a>(r: &mut Reader<'a>) -> Result<Record<'a>, DecodeError> {
    let id = check_id(r.u64("file id")?)?;
    let kind = Kind::from_u8(r.u8("inode type")?)?;
    let attrs = take_attrs(r)?;
    let rdev = r.u64("rdev")?;
    Ok(Record::Create { id, kind, attrs, rdev, target: r.blob(TARGET_MAX, "symlink target")? })
}

fn take_rest<'a>(r: &mut Reader<'a>, limit: usize, what: &'static str) -> Result<&'a [u8], DecodeError> {
    let len = r.rest().len();
    if len > limit {
        return Err(DecodeError::TooLarge { what, value: len as u64, limit: limit as u64 });
    }
    r.bytes(len, what)
}

fn take_bool(r: &mut Reader<'_>, what: &'static str) -> Result<bool, DecodeError> {
    match r.u8(what)? {
        0 => Ok(false),
        1 => Ok(true),
        v => Err(DecodeError::Invalid { what, value: u64::from(v) }),
    }
}

fn take_size(r: &mut Reader<'_>) -> Result<u64, DecodeError> {
    let size = r.u64("size")?;
    if size > i64::MAX as u64 {
        return Err(DecodeError::Invalid { what: "size", value: size });
    }
    Ok(size)
}

/// Walks the records of a frame's uncompressed bytes.
#[derive(Debug, Clone)]
pub struct Records<'a> {
    rest: &'a [u8],
    taken: usize,
}

impl<'a> Records<'a> {
    /// Starts at the first record of `bytes`.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes, taken: 0 }
    }
}

impl<'a> Iterator for Records<'a> {
    /// The record's offset in the bytes, and the record.
    type Item = Result<(usize, Record<'a>), DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        match Record::decode(self.rest) {
            Ok((record, len)) => {
                let at = self.taken;
                self.rest = &self.rest[len..];
                self.taken += len;
                Some(Ok((at, record)))
            }
            Err(e) => {
                self.rest = &[];
                Some(Err(e))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample<'a>(data: &'a [u8], n: u64) -> Vec<Record<'a>> {
        let attrs = Attrs { mode: 0o4755, uid: 1, gid: 2, mtime: Time { sec: -3, nsec: 999_999_999 } };
        let id = FileId(n.max(1));
        vec![
            Record::Create { id, kind: Kind::Symlink, attrs, rdev: 7, target: data },
            Record::Write { id, offset: BLOCK * 3, data },
            Record::Truncate { id, size: n >> 1 },
            Record::Punch { id, offset: BLOCK, len: BLOCK },
            Record::Link { parent: id, name: b"\xff\n", id },
            Record::Unlink { parent: id, name: b"x" },
            Record::Attr { id, attrs },
            Record::Xattr { id, name: b"user.x", value: Some(data) },
            Record::Xattr { id, name: b"user.x", value: None },
            Record::Commit(Commit {
                cut: Cut::File,
                partial: true,
                time: -1,
                meta: 5,
                content: u128::MAX,
                inodes: n,
            }),
            Record::Abort,
            Record::RestorePoint { time: 4, name: b"before upgrade" },
            Record::Gap { end: true, reason: GapReason::Scan, time: 9 },
            Record::Excludes { version: 2, patterns: b"*.tmp\n" },
        ]
    }

    proptest! {
        #[test]
        fn every_record_survives_the_round_trip(data in proptest::collection::vec(any::<u8>(), 0..4000), n in any::<u64>()) {
            let records = sample(&data, n);
            let mut bytes = Vec::new();
            for r in &records {
                r.encode(&mut bytes);
            }
            let back: Result<Vec<_>, _> = Records::new(&bytes).map(|r| r.map(|(_, r)| r)).collect();
            prop_assert_eq!(back.unwrap(), records);
        }

        #[test]
        fn garbage_and_cut_records_are_refused_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), cut in 0usize..4000) {
            for r in Records::new(&bytes) {
                if r.is_err() { break; }
            }
            let mut whole = Vec::new();
            sample(b"data", 9)[cut % 14].encode(&mut whole);
            let cut = cut % whole.len();
            prop_assert!(Record::decode(&whole[..cut]).is_err());
        }
    }

    #[test]
    fn names_that_leave_their_directory_are_refused() {
        for bad in [&b""[..], b".", b"..", b"a/b", b"a\0", &[b'x'; 256]] {
            assert!(!valid_name(bad));
        }
        assert!(valid_name(&[b'x'; 255]));
        assert!(valid_name(b"..."));
    }
}
