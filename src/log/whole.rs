//! A sealed segment as a whole: what is archived, and what comes back from there.

use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use sha2::{Digest, Sha256};

use super::reader::damaged;
use super::recover::{Form, list, read_all};
use crate::error::{Error, Result};
use crate::position::{SegmentNo, SystemId, TimelineId};
use crate::segment::{Fault, HEADER_LEN, Header, TRAILER_LEN, Trailer, file_name};

/// Which line sealed a segment, or which one ended it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SealedBy {
    /// The timeline of the segment.
    pub timeline: TimelineId,
    /// The timeline that branched off in it, if it was not sealed by its own.
    pub ended_by: Option<TimelineId>,
}

/// A sealed segment's file on the way of `timeline` in `dir`, every byte checked against its trailer; `None`: it is not
/// there.
///
/// # Errors
/// `Corrupt` when it is not what was sealed.
pub fn sealed(
    dir: &Path,
    system: SystemId,
    timeline: TimelineId,
    segment: SegmentNo,
) -> Result<Option<(SealedBy, Vec<u8>)>> {
    let Some((path, by)) = find(dir, timeline, segment)? else { return Ok(None) };
    let bytes = match read_all(&path) {
        Err(e) if e.os() == Some(nix::errno::Errno::ENOENT as i32) => return Ok(None),
        read => read?,
    };
    match whole(&bytes, system, by.timeline, segment) {
        Ok(_) => Ok(Some((by, bytes))),
        Err(fault) => Err(damaged(&path, 0, &fault)),
    }
}

/// The file of a sealed segment.
fn find(dir: &Path, timeline: TimelineId, segment: SegmentNo) -> Result<Option<(PathBuf, SealedBy)>> {
    let own = dir.join(file_name(timeline, segment, false));
    match std::fs::symlink_metadata(&own) {
        Ok(_) => return Ok(Some((own, SealedBy { timeline, ended_by: None }))),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(Error::io("look at", &own, e)),
    }
    if timeline == TimelineId::FIRST {
        return Ok(None);
    }
    let kept = list(dir, timeline)?.get(&segment).copied().filter(|kept| kept.sealed());
    Ok(kept.map(|kept| {
        let ended_by = if let Form::Ended(by) = kept.form { Some(by) } else { None };
        (dir.join(kept.name(segment)), SealedBy { timeline: kept.timeline, ended_by })
    }))
}

/// Checks that `bytes` are that sealed segment: its header, its trailer, and the SHA-256 in it.
///
/// # Errors
/// What they are not.
pub fn whole(
    bytes: &[u8],
    system: SystemId,
    timeline: TimelineId,
    segment: SegmentNo,
) -> std::result::Result<(Header, Trailer), Fault> {
    let header = Header::decode(bytes.get(..HEADER_LEN).ok_or(Fault::Magic)?)?;
    if header.system != system {
        return Err(Fault::System(header.system));
    }
    if header.timeline != timeline {
        return Err(Fault::Timeline(header.timeline));
    }
    if header.segment != segment {
        return Err(Fault::Segment(header.segment));
    }
    let at = bytes.len().checked_sub(TRAILER_LEN).filter(|at| *at >= HEADER_LEN).ok_or(Fault::NoTrailer)?;
    let trailer = Trailer::decode(&bytes[at..], system, timeline, segment).map_err(|fault| match fault {
        Fault::Magic => Fault::NoTrailer,
        other => other,
    })?;
    let hashed = bytes.len() - trailer.sha.len();
    if <[u8; 32]>::from(Sha256::digest(&bytes[..hashed])) != trailer.sha {
        return Err(Fault::Sha);
    }
    Ok((header, trailer))
}

/// When a sealed segment's file on the way of `timeline` was last written to; `None`: it is not there.
#[must_use]
pub fn sealed_at(dir: &Path, timeline: TimelineId, segment: SegmentNo) -> Option<SystemTime> {
    let (path, _) = find(dir, timeline, segment).ok().flatten()?;
    std::fs::metadata(path).ok()?.modified().ok()
}

/// Bytes of a sealed segment's file on the way of `timeline`; `None`: it is not there.
pub(super) fn sealed_len(dir: &Path, timeline: TimelineId, segment: SegmentNo) -> Result<Option<u64>> {
    let Some((path, _)) = find(dir, timeline, segment)? else { return Ok(None) };
    Ok(std::fs::metadata(path).ok().map(|m| m.len()))
}
