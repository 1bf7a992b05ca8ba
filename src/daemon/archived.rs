//! A follower whose upstream has removed log that it needs takes that log from the archive, where there is one: the
//! segments are the same bytes, and the log checks each as if the upstream had sent it.

use std::sync::Arc;

use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

use super::resync::Cause;
use super::{Node, blocking};
use crate::archive::{Address, Archive};
use crate::config::Config;
use crate::error::{Error, ErrorKind, Result};
use crate::history::History;
use crate::log::{self, Log};
use crate::position::{Lsn, SegmentNo, SystemId, TimelineId};
use crate::segment::TRAILER_LEN;

/// Bytes handed to the log at once.
const PIECE: usize = 1 << 20;

/// Takes what the archive has after the end of `log`, which begins at `start` if it is empty. Whether that was anything,
/// so that another look at the upstream is worth it.
pub(super) async fn rejoin(
    node: &Arc<Node>,
    config: &Config,
    log: &Log,
    start: Lsn,
    (cause, upstream): (&Cause, Option<History>),
    cancel: &CancellationToken,
) -> bool {
    let (Ok(Some(address)), Some(control)) = (config.archive_address(), node.state.control()) else {
        return false;
    };
    if !cause.log_is_gone() {
        return false;
    }
    tracing::info!("the upstream has removed log that is needed here; it is looked for in '{address}'");
    let Ok(own) = node.state.history() else { return false };
    let (system, timeline) = (control.system, control.timeline);
    // Where the upstream has left this node's line, log past the branch is none.
    let way = upstream.filter(|h| own.leads_to(h)).unwrap_or(own);
    let mut taking = Taking { system, timeline, way, log: log.clone(), start, taken: 0 };
    let stop = cancel.clone();
    let task = blocking(move || {
        let result = taking.all(&address, &stop);
        Ok((taking.taken, result))
    });
    let done = tokio::select! {
        // What is under way is appended whole, or not at all.
        () = cancel.cancelled() => return true,
        done = task => done,
    };
    let (taken, result) = match done {
        Ok((taken, result)) => (taken, result),
        Err(e) => (0, Err(e)),
    };
    if let Err(e) = result {
        tracing::warn!(kind = e.kind().word(), "log can't be taken from the archive: {e}");
    }
    let end = log.tail().end;
    tracing::info!("{taken} segments of log taken from the archive; the log ends at {end} now");
    taken > 0
}

struct Taking {
    system: SystemId,
    timeline: TimelineId,
    way: History,
    log: Log,
    start: Lsn,
    taken: u64,
}

impl Taking {
    /// Segment after segment, until the archive has no more.
    fn all(&mut self, address: &Address, stop: &CancellationToken) -> Result<()> {
        let archive = Archive::open(address)?;
        archive.belongs_to(self.system)?;
        while !stop.is_cancelled() {
            let (segment, offset) = match self.log.resume_at()? {
                (SegmentNo(0), _) => (self.start.segment(), 0),
                at => at,
            };
            let Some((by, mut bytes)) = archive.segment_on_way(&self.way, segment)? else {
                break;
            };
            let timeline = by.timeline;
            if timeline != self.timeline {
                break;
            }
            self.check(segment, &bytes)?;
            // The trailer that the next line has made is put there by who goes over to it.
            let last = self.way.branch_off(timeline).filter(|b| b.last_segment() == segment);
            if by.ended_by.is_some() {
                bytes.truncate(bytes.len().saturating_sub(TRAILER_LEN));
            } else if let Some(branch) = last
                && !log::whole(&bytes, self.system, timeline, segment).is_ok_and(|(_, t)| t.end == branch.at)
            {
                break;
            }
            self.append(segment, offset, &bytes)?;
            self.taken += 1;
            if last.is_some() {
                break;
            }
        }
        // All of it is durable.
        self.log.resume_at().map(drop)
    }

    fn check(&self, segment: SegmentNo, bytes: &[u8]) -> Result<()> {
        let checked = log::whole(bytes, self.system, self.timeline, segment).map(drop);
        checked.map_err(|fault| {
            let text = format!("segment {:X} in the archive is not good: {fault}", segment.0);
            Error::new(ErrorKind::Corrupt, text)
        })
    }

    fn append(&self, segment: SegmentNo, offset: u64, bytes: &[u8]) -> Result<()> {
        let known = usize::try_from(offset).ok().and_then(|n| bytes.get(..n));
        let same = match known {
            Some([]) => true,
            Some(known) => self.log.prefix_hash(segment, offset)? == Some(Sha256::digest(known).into()),
            None => false,
        };
        if !same {
            let text = format!(
                "segment {:X} of this node's log does not begin like that of the archive: the two logs are not the same",
                segment.0
            );
            return Err(Error::new(ErrorKind::Diverged, text));
        }
        let mut at = offset;
        for piece in bytes.get(known.map_or(0, <[u8]>::len)..).unwrap_or_default().chunks(PIECE) {
            self.log.append_stored(segment, at, piece)?;
            at += piece.len() as u64;
        }
        Ok(())
    }
}
