//! A leader's catalog after a stop: the newest checkpoint and the log after it.

use crate::catalog::Catalog;
use crate::checkpoint;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::fold::{Fold, Stored};
use crate::log::Log;
use crate::position::{Lsn, SystemId, TimelineId};
use crate::record::Attrs;
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
    fold.replay(Stored { dir: log.dir(), system, timeline }, to)?;
    fold.finish_loose_or_forget().context(
        || "the catalog does not match the log; put the state directory back from a backup, or begin a new system with an empty one",
    )?;
    Ok(fold)
}

pub(super) fn log_lost(state: &StateDir, end: Lsn, reached: Lsn) -> Error {
    let text = format!(
        "the log in '{}' ends at {end}, but it had reached {reached}: segments are missing; put them back (a follower has \
         the same files), or begin a new system with an empty state directory and fill the followers again",
        state.log().display()
    );
    Error::new(ErrorKind::Missing, text)
}
