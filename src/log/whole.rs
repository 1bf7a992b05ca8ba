//! A sealed segment as a whole: what is archived, and what comes back from there.

use std::io;
use std::path::Path;
use std::time::SystemTime;

use sha2::{Digest, Sha256};

use super::reader::damaged;
use super::recover::read_all;
use crate::error::{Error, Result};
use crate::position::{SegmentNo, SystemId, TimelineId};
use crate::segment::{Fault, HEADER_LEN, Header, TRAILER_LEN, Trailer, file_name};

/// A sealed segment's file in `dir`, every byte checked against its trailer; `None`: it is not there.
///
/// # Errors
/// `Corrupt` when it is not what was sealed.
pub fn sealed(
    dir: &Path,
    system: SystemId,
    timeline: TimelineId,
    segment: SegmentNo,
) -> Result<Option<Vec<u8>>> {
    let path = dir.join(file_name(timeline, segment, false));
    match std::fs::symlink_metadata(&path) {
        Ok(_) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io("look at", &path, e)),
    }
    let bytes = read_all(&path)?;
    match whole(&bytes, system, timeline, segment) {
        Ok(_) => Ok(Some(bytes)),
        Err(fault) => Err(damaged(&path, 0, &fault)),
    }
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

/// When a sealed segment's file was last written to; `None`: it is not there.
#[must_use]
pub fn sealed_at(dir: &Path, timeline: TimelineId, segment: SegmentNo) -> Option<SystemTime> {
    std::fs::metadata(dir.join(file_name(timeline, segment, false))).ok()?.modified().ok()
}
