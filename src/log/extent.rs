//! What of a log is on disk, and taking its oldest part away; whether it is open or not.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::reader::{Opened, open_segment};
use super::recover::{Form, Kept, list};
use crate::disk;
use crate::error::{Error, Result};
use crate::position::{Lsn, SegmentNo, TimelineId};
use crate::retention::Stored;
use crate::segment::{HEADER_LEN, Header};
use crate::sys;

/// The unit of a file's allocated size.
const SECTOR: u64 = 512;

/// The segment files on the way of `timeline` in `dir`, ascending, with what they take on disk.
///
/// # Errors
/// Why the directory can't be read.
pub fn stored(dir: &Path, timeline: TimelineId) -> Result<Vec<Stored>> {
    let mut out = Vec::new();
    for (segment, kept) in list(dir, timeline)? {
        let (path, sealed) = (dir.join(kept.name(segment)), kept.sealed());
        let bytes = match std::fs::metadata(&path) {
            Ok(meta) => meta.blocks().saturating_mul(SECTOR),
            // It was sealed or removed meanwhile.
            Err(e) if e.kind() == io::ErrorKind::NotFound => 0,
            Err(e) => return Err(Error::io("stat", &path, e)),
        };
        out.push(Stored { segment, bytes, sealed });
    }
    Ok(out)
}

/// Where the first frame begins of the newest segment that has one before `at`; `None`: that log is not there (any more).
///
/// # Errors
/// Why a file can't be read.
pub fn start_before(dir: &Path, timeline: TimelineId, at: Lsn) -> Result<Option<Lsn>> {
    let newest = Lsn(at.0.saturating_sub(1)).segment();
    // The last frame of a segment may reach into the next one.
    for segment in [newest, SegmentNo(newest.0.saturating_sub(1))] {
        let Some(Opened { file, path, .. }) = open_segment(dir, timeline, segment)? else { continue };
        let mut head = [0; HEADER_LEN];
        let n = sys::read_at(&file, &mut head, 0).map_err(|e| Error::io("read", &path, e))?;
        match Header::decode(head.get(..n).unwrap_or_default()) {
            Ok(header) if header.start < at => return Ok(Some(header.start)),
            // One that was begun and holds nothing yet, or is damaged: whoever needs it says so.
            _ => {}
        }
    }
    Ok(None)
}

/// Removes the sealed segments on the way of `timeline` in `dir` before `keep`, oldest first; returns how many. The newest
/// sealed segment stays: the next one is chained to it.
///
/// # Errors
/// Why one can't be removed; those before it are gone.
pub fn remove_before(dir: &Path, timeline: TimelineId, keep: SegmentNo) -> Result<u64> {
    let files = list(dir, timeline)?;
    let Some(newest) = files.iter().rev().find(|(_, kept)| kept.sealed()).map(|(s, _)| *s) else {
        return Ok(0);
    };
    let mut removed = 0;
    for (segment, kept) in files.range(..keep.min(newest)) {
        let path = dir.join(Kept { form: kept.form.max(Form::Sealed), ..*kept }.name(*segment));
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(Error::io("remove", &path, e)),
            other => removed += u64::from(other.is_ok()),
        }
    }
    if removed > 0 {
        disk::sync_dir(dir)?;
    }
    Ok(removed)
}

/// The names of the segment files on the way of `timeline` in `dir` from `first` on, ascending.
///
/// # Errors
/// Why the directory can't be listed.
pub fn names(dir: &Path, timeline: TimelineId, first: SegmentNo) -> Result<Vec<String>> {
    Ok(list(dir, timeline)?.range(first..).map(|(segment, kept)| kept.name(*segment)).collect())
}
