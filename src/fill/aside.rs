//! Log that is not the upstream's, before it goes: what it changed is kept in a bundle, see [`crate::lost`].

use std::fs;
use std::path::{Path, PathBuf};

use crate::disk;
use crate::error::{Context, Error, Result};
use crate::failpoint;
use crate::history::History;
use crate::log::{self, Log, LogOptions};
use crate::lost::{self, Story};
use crate::net::wall_clock;
use crate::position::{Lsn, NodeId, SegmentNo};
use crate::state::StateDir;

/// Logs that are put aside; an older one goes for a further one.
const MAX: usize = 8;
/// A bundle that is being made.
const MAKING: &str = "making";

/// The numbers of the logs that were put aside, ascending.
fn numbers(state: &StateDir) -> Vec<u64> {
    let entries = fs::read_dir(state.lost()).into_iter().flatten().flatten();
    let mut numbers: Vec<u64> = entries.filter_map(|e| e.file_name().to_str()?.parse().ok()).collect();
    numbers.sort_unstable();
    numbers
}

/// Where the next log that is put aside goes to; an older one goes for it if there are too many.
///
/// # Errors
/// Why that one can't be removed.
pub fn next(state: &StateDir) -> Result<PathBuf> {
    let lost = state.lost();
    disk::create_subdir_durable(&lost)?;
    let numbers = numbers(state);
    if let Some(last) = numbers.last().map(|n| lost.join(n.to_string()))
        && fs::read_dir(&last).is_ok_and(|mut entries| entries.next().is_none())
    {
        // It was made for a log that a crash kept here.
        return Ok(last);
    }
    for old in numbers.iter().take((numbers.len() + 1).saturating_sub(MAX)) {
        let path = lost.join(old.to_string());
        tracing::warn!("'{}' is removed: no more than {MAX} logs are kept there", path.display());
        fs::remove_dir_all(&path).map_err(|e| Error::io("remove", &path, e))?;
    }
    Ok(lost.join(numbers.last().map_or(1, |n| n + 1).to_string()))
}

/// Puts the whole log aside, as it is.
pub(super) fn move_all(state: &StateDir) -> Result<()> {
    let to = next(state)?;
    disk::rename_durable(&state.log(), &to)?;
    disk::sync_dir(state.path())?;
    disk::create_subdir_durable(&state.log())?;
    told(&to);
    Ok(())
}

fn told(to: &Path) {
    tracing::warn!(
        "the log of this node holds what the upstream has not: it is kept in '{}'; `towline lost-writes` and `towline log dump` read \
         it; remove it when nobody needs it",
        to.display()
    );
}

/// Keeps what this node's log has and the way `to` has not; the log itself stays where it is. `leader` is how the node that leads
/// is reached. Done again it makes no second bundle. The bundle, if there is anything to be kept.
///
/// # Errors
/// Why it can't be kept.
pub(super) fn keep(
    state: &StateDir,
    to: &History,
    (name, node): (&str, NodeId),
    leader: &str,
) -> Result<Option<PathBuf>> {
    let control = state.set_up()?;
    // A history of the same number may have taken the place of its own.
    let own = state.rewinding()?.map_or_else(|| state.history(), |r| Ok(r.own))?;
    let (system, timeline) = (control.system, control.timeline);
    let open = Log::open_follower(LogOptions {
        dir: state.log(),
        system,
        timeline,
        segment_timeout: std::time::Duration::from_secs(60),
        level: 1,
    });
    let Ok(end) = open.and_then(|log| {
        let end = log.tail().end;
        log.close().map(|()| end)
    }) else {
        // Whatever can't be read is kept as it is.
        return bundle(state, SegmentNo(0), None).map(Some);
    };
    if end == Lsn::ZERO {
        return Ok(None);
    }
    // Logs of one line that are not the same: where they part is not known.
    let same = (own.timeline(), own.line()) == (to.timeline(), to.line());
    let common = own.common(to).map(|(_, at)| at).filter(|_| !same);
    let branch = common.map_or_else(|| oldest(state, end), |at| Ok(at.min(end)))?;
    let story = Story { node, name, own: &own, to, branch, end, leader, when: wall_clock() };
    match lost::survey(&story, &state.log(), &state.catalog()) {
        Ok(survey) if survey.counts().total() == 0 && !same => Ok(None),
        Ok(survey) => bundle(state, survey.first_segment(), Some((&story, &survey))).map(Some),
        Err(e) => {
            tracing::warn!("what the log changed that is put aside can't be listed: {e}");
            bundle(state, SegmentNo(0), None).map(Some)
        }
    }
}

/// Where the oldest log begins that is here.
fn oldest(state: &StateDir, end: Lsn) -> Result<Lsn> {
    let timeline = state.set_up()?.timeline;
    let mut at = end;
    while let Some(before) = log::start_before(&state.log(), timeline, at)? {
        at = before;
    }
    Ok(at)
}

/// Makes the bundle, whole or not at all.
fn bundle(
    state: &StateDir,
    first: SegmentNo,
    told_of: Option<(&Story<'_>, &lost::Survey)>,
) -> Result<PathBuf> {
    let lost = state.lost();
    disk::create_subdir_durable(&lost)?;
    let making = lost.join(MAKING);
    let timeline = state.set_up()?.timeline;
    lost::gather(&state.log(), first, timeline, &making).context(|| "the log can't be put aside")?;
    let mut told_as = None;
    if let Some((story, survey)) = told_of {
        told_as = Some(lost::describe(&making, story, survey)?);
    }
    let to = match told_as.and_then(|b| lost::find(&lost, &b).transpose()).transpose()? {
        // It was made before a crash.
        Some(before) => {
            fs::remove_dir_all(&before).map_err(|e| Error::io("remove", &before, e))?;
            before
        }
        None => next(state)?,
    };
    failpoint::pass("lost::keep").map_err(|e| Error::io("put aside", &to, e))?;
    disk::rename_durable(&making, &to)?;
    told(&to);
    Ok(to)
}
