//! Finding what is damaged in a log at rest, and putting good copies of sealed segments in place.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;

use super::inspect::{Ending, Report, examine, misfit};
use super::{SealedBy, recover};
use crate::disk::AtomicFile;
use crate::error::{Error, ErrorKind, Result};
use crate::position::{SegmentNo, SystemId, TimelineId};
use crate::segment::{HEADER_LEN, Header};

/// The segments from `from` to the newest one that are damaged, missing, or don't belong together, in
/// order. The newest one counts only if it is sealed: an open end is cut where it stops being good.
pub fn damaged(
    dir: &Path,
    system: SystemId,
    timeline: TimelineId,
    from: SegmentNo,
) -> Result<Vec<SegmentNo>> {
    let files = recover::list(dir, timeline)?;
    let Some((&newest, _)) = files.last_key_value() else { return Ok(Vec::new()) };
    let mut bad = BTreeSet::new();
    let mut before: Option<(SegmentNo, Report)> = None;
    let mut at = from;
    while at <= newest {
        match files.get(&at) {
            Some(kept) if !kept.sealed() && at == newest => {}
            Some(kept) if kept.sealed() => {
                let report = examine(&dir.join(kept.name(at)), |_| Ok(()))?;
                let whole = report.ending == Ending::Sealed && report.system == system.to_string();
                if !whole {
                    bad.insert(at);
                } else if let Some((segment, before)) = &before
                    && misfit(before, &report).is_some()
                {
                    bad.extend([*segment, at]);
                }
                before = whole.then_some((at, report));
            }
            _ => {
                bad.insert(at);
                before = None;
            }
        }
        at = at.next();
    }
    Ok(bad.into_iter().collect())
}

/// Checks `bytes` as the whole sealed segment and puts them in the place of what is there. `next_is_good`:
/// they must be what the segment after them continues.
///
/// # Errors
/// `Corrupt` when they are damaged or another segment, `Diverged` when they don't fit between their
/// neighbours. Then nothing is changed.
pub fn install(
    dir: &Path,
    system: SystemId,
    by: SealedBy,
    segment: SegmentNo,
    bytes: &[u8],
    next_is_good: bool,
) -> Result<()> {
    let timeline = by.timeline;
    let form = by.ended_by.map_or(recover::Form::Sealed, recover::Form::Ended);
    let name = recover::Kept { timeline, form }.name(segment);
    let mut file = AtomicFile::create(dir, &name)?;
    file.write_all(bytes).map_err(|e| Error::io("write", dir.join(&name), e))?;
    file.flush().map_err(|e| Error::io("write", dir.join(&name), e))?;
    let report = examine(file.aside(), |_| Ok(()))?;
    let same = report.system == system.to_string()
        && (report.timeline, report.segment) == (timeline.0, segment.0)
        && report.ending == Ending::Sealed;
    if !same {
        let why = report.problem.unwrap_or_else(|| "it is another segment".to_owned());
        let text = format!(
            "the copy of segment {:X} from the upstream is not good: {why}; run 'towline log verify' there",
            segment.0
        );
        return Err(Error::new(ErrorKind::Corrupt, text));
    }
    let odd = |other: SegmentNo| {
        let text = format!(
            "the upstream's segment {:X} does not fit to segment {:X} here: the two logs are not the same; stop this \
             node and empty its data and state directories: it is filled anew",
            segment.0, other.0
        );
        Error::new(ErrorKind::Diverged, text)
    };
    if let Some(previous) = segment.0.checked_sub(1).map(SegmentNo) {
        let files = recover::list(dir, timeline)?;
        if let Some(kept) = files.get(&previous).filter(|kept| kept.sealed()) {
            let before = examine(&dir.join(kept.name(previous)), |_| Ok(()))?;
            if before.ending == Ending::Sealed && misfit(&before, &report).is_some() {
                return Err(odd(previous));
            }
        }
    }
    if next_is_good
        && let Some(next) = header(dir, timeline, segment.next())?
        && report.sealed_as() != Some((next.prev_sha, next.marks))
    {
        return Err(odd(segment.next()));
    }
    file.commit()
}

/// The header of a segment's file, when there is one that can be read.
fn header(dir: &Path, timeline: TimelineId, segment: SegmentNo) -> Result<Option<Header>> {
    let Some(open) = super::reader::open_segment(dir, timeline, segment)? else { return Ok(None) };
    let (file, path) = (open.file, open.path);
    let mut head = vec![0; HEADER_LEN];
    let n = crate::sys::read_at(&file, &mut head, 0).map_err(|e| Error::io("read", &path, e))?;
    Ok(Header::decode(&head[..n]).ok())
}
