//! The names of the objects of an archive.

use std::fmt::Write as _;

use crate::position::{SegmentNo, TimelineId};
use crate::segment::FILE_MAX;

/// Most bytes of a part of a name.
pub(super) const PART_MAX: usize = 255;
/// Most bytes of a name below the archive's own prefix.
const NAME_MAX: usize = 700;

/// The identity of the archive.
pub const IDENTITY: &str = "system.json";
/// Where log lies.
pub const LOG: &str = "log";
/// Where timeline history files lie.
pub const HISTORY: &str = "history";
/// Where backup sets lie.
pub const BACKUP: &str = "backup";
/// Where it stands which backups are pinned.
pub const PIN: &str = "pin";
/// Where it stands which backups are being made.
pub const MAKING: &str = "making";
/// What makes a directory of objects a backup set.
pub const MANIFEST: &str = "manifest.json";

/// Whether `part` may stand between two slashes of a name.
#[must_use]
pub fn valid_part(part: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'+');
    !part.is_empty() && part.len() <= PART_MAX && part.bytes().all(allowed) && !matches!(part, "." | "..")
}

/// Whether `name` may name an object.
#[must_use]
pub fn valid(name: &str) -> bool {
    name.len() <= NAME_MAX && name.split('/').all(valid_part)
}

/// What the name of a sealed segment says.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SegmentName {
    /// Of the log.
    pub timeline: TimelineId,
    /// Which one.
    pub segment: SegmentNo,
    /// Bytes of the file.
    pub size: u64,
    /// The first 16 bytes of the SHA-256 of the file.
    pub sha: [u8; 16],
}

impl SegmentName {
    /// The name of these bytes.
    #[must_use]
    pub fn of(timeline: TimelineId, segment: SegmentNo, bytes: &[u8]) -> Self {
        Self { timeline, segment, size: bytes.len() as u64, sha: short_sha(bytes) }
    }

    /// Whether `bytes` are what the name says.
    #[must_use]
    pub fn is_of(&self, bytes: &[u8]) -> bool {
        self.size == bytes.len() as u64 && self.sha == short_sha(bytes)
    }

    /// What [`Display`](std::fmt::Display) printed; `None` for any other name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        let (dir, file) = name.strip_prefix(LOG)?.strip_prefix('/')?.split_once('/')?;
        let mut parts = file.strip_suffix(".zst")?.split('-');
        let (number, size, sha) = (parts.next()?, parts.next()?, parts.next()?);
        if parts.next().is_some() || sha.len() != 32 || !sha.bytes().all(is_lower_hex) {
            return None;
        }
        let mut bytes = [0; 16];
        for (i, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(sha.get(2 * i..2 * i + 2)?, 16).ok()?;
        }
        let size = upper(size, 8)?;
        let timeline = TimelineId(u32::try_from(upper(dir, 8)?).ok()?);
        (size <= FILE_MAX).then_some(Self {
            timeline,
            segment: SegmentNo(upper(number, 16)?),
            size,
            sha: bytes,
        })
    }
}

impl std::fmt::Display for SegmentName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}{:08X}-", number(self.timeline, self.segment), self.size)?;
        self.sha.iter().try_for_each(|b| write!(f, "{b:02x}"))?;
        f.write_str(".zst")
    }
}

/// What the name of the last segment of a line says that a later timeline ended.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct EndedName {
    /// The segment.
    pub of: SegmentName,
    /// The timeline that branched off in it.
    pub by: TimelineId,
}

impl EndedName {
    /// What [`Display`](std::fmt::Display) printed; `None` for any other name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        let (head, tail) = name.split_once('.')?;
        let (by, rest) = tail.split_once('-')?;
        let of = SegmentName::parse(&format!("{head}-{rest}"))?;
        let by = TimelineId(u32::try_from(upper(by, 8)?).ok()?);
        (by > of.timeline).then_some(Self { of, by })
    }
}

impl std::fmt::Display for EndedName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = self.of.to_string();
        let number = number(self.of.timeline, self.of.segment);
        let rest = name.strip_prefix(&number).unwrap_or_default();
        write!(f, "{}{rest}", ended(self.of.timeline, self.of.segment, self.by))
    }
}

fn is_lower_hex(b: u8) -> bool {
    b.is_ascii_digit() || (b'a'..=b'f').contains(&b)
}

fn upper(text: &str, digits: usize) -> Option<u64> {
    let sound =
        text.len() == digits && text.bytes().all(|b| b.is_ascii_digit() || (b'A'..=b'F').contains(&b));
    if sound { u64::from_str_radix(text, 16).ok() } else { None }
}

fn short_sha(bytes: &[u8]) -> [u8; 16] {
    use sha2::{Digest, Sha256};
    let full: [u8; 32] = Sha256::digest(bytes).into();
    let mut short = [0; 16];
    short.copy_from_slice(&full[..16]);
    short
}

/// Where the log of a timeline lies.
#[must_use]
pub fn log_dir(timeline: TimelineId) -> String {
    format!("{LOG}/{:08X}", timeline.0)
}

/// What the name of every copy of this segment begins with.
#[must_use]
pub fn number(timeline: TimelineId, segment: SegmentNo) -> String {
    let mut name = log_dir(timeline);
    // Writing to a text can't fail.
    let _ = write!(name, "/{:016X}-", segment.0);
    name
}

/// What the name of every copy of this segment begins with, where timeline `by` ended it.
#[must_use]
pub fn ended(timeline: TimelineId, segment: SegmentNo, by: TimelineId) -> String {
    let number = number(timeline, segment);
    format!("{}.{:08X}-", number.trim_end_matches('-'), by.0)
}

/// The object that holds the history of `timeline`.
#[must_use]
pub fn history(timeline: TimelineId) -> String {
    format!("{HISTORY}/{}", crate::history::file_name(timeline))
}

/// Where the backup set `label` lies.
#[must_use]
pub fn backup_dir(label: &str) -> String {
    format!("{BACKUP}/{label}")
}

/// The note that the backup `label` is being made.
#[must_use]
pub fn making(label: &str) -> String {
    format!("{MAKING}/{label}")
}

/// The object that pins the backup `label`.
#[must_use]
pub fn pin(label: &str) -> String {
    format!("{PIN}/{label}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_is_named_by_number_size_and_content() {
        let name = SegmentName::of(TimelineId(1), SegmentNo(0x2A), b"abc");
        let text = name.to_string();
        assert_eq!(text, "log/00000001/000000000000002A-00000003-ba7816bf8f01cfea414140de5dae2223.zst");
        assert_eq!(SegmentName::parse(&text), Some(name));
        assert!(text.starts_with(&number(TimelineId(1), SegmentNo(0x2A))) && valid(&text));
        assert!(name.is_of(b"abc") && !name.is_of(b"abd") && !name.is_of(b"abcd"));
        for bad in [
            "log/00000001/000000000000002A-00000003-ba7816bf8f01cfea414140de5dae2223",
            "log/00000001/000000000000002A-00000003-BA7816BF8F01CFEA414140DE5DAE2223.zst",
            "log/00000001/000000000000002a-00000003-ba7816bf8f01cfea414140de5dae2223.zst",
            "log/1/000000000000002A-00000003-ba7816bf8f01cfea414140de5dae2223.zst",
            "log/00000001/000000000000002A-F0000003-ba7816bf8f01cfea414140de5dae2223.zst",
            "log/00000001/000000000000002A-00000003-ba7816bf8f01cfea414140de5dae2223-1.zst",
            "backup/x/manifest.json",
        ] {
            assert_eq!(SegmentName::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn an_ended_segment_is_named_by_the_timeline_too_and_no_segment_is_taken_for_one() {
        let of = SegmentName::of(TimelineId(1), SegmentNo(0x2A), b"abc");
        let text = EndedName { of, by: TimelineId(2) }.to_string();
        assert_eq!(
            text,
            "log/00000001/000000000000002A.00000002-00000003-ba7816bf8f01cfea414140de5dae2223.zst"
        );
        assert_eq!(EndedName::parse(&text), Some(EndedName { of, by: TimelineId(2) }));
        assert!(valid(&text) && text.starts_with(&ended(TimelineId(1), SegmentNo(0x2A), TimelineId(2))));
        assert_eq!((SegmentName::parse(&text), EndedName::parse(&of.to_string())), (None, None));
        assert_eq!(EndedName::parse(&text.replace(".00000002", ".00000001")), None, "it does not end itself");
        assert!(history(TimelineId(2)) == "history/00000002.history" && valid(&history(TimelineId(2))));
    }

    #[test]
    fn names_stay_within_the_archive() {
        assert!(valid("backup/nightly-1/pack-00001"));
        for bad in ["", "/a", "a/", "a//b", "../a", "a/./b", "a b", "a\nb", "\u{e9}", &"x".repeat(256)] {
            assert!(!valid(bad), "{bad}");
        }
    }
}
