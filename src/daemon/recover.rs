//! A leader's catalog after a stop: the newest checkpoint and the log after it.

use crate::catalog::Catalog;
use crate::checkpoint;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::fold::Fold;
use crate::log::{FrameReader, Log};
use crate::position::{Lsn, SystemId, TimelineId};
use crate::record::{Attrs, Record, Records};
use crate::segment::flags;
use crate::state::StateDir;

/// Rebuilds the leader's catalog up to the last commit of its log.
///
/// Without a checkpoint and without log the catalog is new and empty: the start scan makes the base.
///
/// # Errors
/// [`ErrorKind::Missing`] when the checkpoint or the end of the log is not there any more: file ids or positions
/// that followers have seen would be given out a second time.
pub(crate) fn leader_fold(
    state: &StateDir,
    system: SystemId,
    timeline: TimelineId,
    log: &Log,
) -> Result<Fold> {
    let reached = state.control().map_or(Lsn::ZERO, |c| c.applied);
    let end = log.tail().end;
    if end < reached {
        return Err(log_lost(state, end, reached));
    }
    let (catalog, fresh) = match checkpoint::load_newest(&state.catalog(), system)? {
        Some(catalog) if catalog.lsn() > end.max(Lsn::FIRST) => {
            return Err(log_lost(state, end, catalog.lsn()));
        }
        Some(catalog) => (catalog, false),
        None if end > Lsn::FIRST || reached > Lsn::FIRST => {
            let text = format!(
                "there is no checkpoint in '{}', but the log goes on to {end}: which file is which is known only there; \
                 put the state directory back from a backup, or begin a new system with an empty one and fill the \
                 followers again",
                state.catalog().display()
            );
            return Err(Error::new(ErrorKind::Missing, text));
        }
        None => {
            let mut catalog = Catalog::new(system, Attrs::default());
            catalog.set_position(Lsn::FIRST, crate::position::Cut::Exact, 0);
            (catalog, true)
        }
    };
    let from = catalog.lsn();
    let to = log.tail().commit;
    let mut fold = Fold::new(catalog, &state.blocks())?;
    if fresh || to <= from {
        return Ok(fold);
    }
    tracing::info!("replaying own log from {from} to {to} into the catalog");
    fold.begin_loose();
    replay(log, system, timeline, from, to, &mut fold)?;
    fold.finish_loose().context(
        || "the catalog does not match the log; put the state directory back from a backup, or begin a new system with an empty one",
    )?;
    Ok(fold)
}

fn log_lost(state: &StateDir, end: Lsn, reached: Lsn) -> Error {
    let text = format!(
        "the log in '{}' ends at {end}, but it had reached {reached}: segments are missing; put them back (a follower has \
         the same files), or begin a new system with an empty state directory and fill the followers again",
        state.log().display()
    );
    Error::new(ErrorKind::Missing, text)
}

/// Folds every complete change set of `(from, to]`; aborted ones are passed over.
fn replay(
    log: &Log,
    system: SystemId,
    timeline: TimelineId,
    from: Lsn,
    to: Lsn,
    fold: &mut Fold,
) -> Result<()> {
    let mut ahead = FrameReader::open(log.dir(), system, timeline, from)?;
    let mut reader = FrameReader::open(log.dir(), system, timeline, from)?;
    // Headers tell how a change set ends, so its records are read only once it is known to count.
    while let Some(header) = ahead.next_header(to)? {
        if header.flags & flags::ENDS == 0 {
            continue;
        }
        let (end, aborted) = (header.end(), header.flags & flags::ABORT != 0);
        loop {
            let frame = if aborted { skip(&mut reader, to)? } else { fold_frame(&mut reader, to, fold)? };
            if frame.is_none_or(|at| at >= end) {
                break;
            }
        }
    }
    Ok(())
}

fn skip(reader: &mut FrameReader, to: Lsn) -> Result<Option<Lsn>> {
    Ok(reader.next_header(to)?.map(|h| h.end()))
}

fn fold_frame(reader: &mut FrameReader, to: Lsn, fold: &mut Fold) -> Result<Option<Lsn>> {
    let Some(frame) = reader.next(to)? else { return Ok(None) };
    for item in Records::new(&frame.raw) {
        let (_, record) = item?;
        fold.record(&record)?;
        if let Record::Commit(c) = record {
            let mut catalog = fold.catalog.write().unwrap_or_else(std::sync::PoisonError::into_inner);
            catalog.set_position(frame.end, c.cut, c.time);
        }
    }
    Ok(Some(frame.end))
}
