//! Sealed segments go to the archive, oldest first, one after the other, for as long as a node leads.
//!
//! What is archived is learned from the archive itself at each start: nothing here remembers it, so a crash loses no
//! knowledge, and what another leader archived counts. Until it is learned, all log counts as not archived. The log is
//! held back by [`Board::unarchived`], within the limits of [`crate::retention`]; what was removed before it was archived is
//! a *gap*, and stays one.
//!
//! ```text
//!  opening --> archiving <--> idle
//!     \            |
//!      \--------> failing: tried again, with pauses; `needs_help` when that alone does not mend it
//! ```
//!
//! Beside the log, `archive` in the state directory notes which archive the node has used. An archive that was there and
//! is empty now, like a file system that is not mounted, is not begun anew.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::archive::{Address, Archive, Store};
use crate::error::{Error, ErrorKind, Result};
use crate::history::History;
use crate::log::{self, Tail};
use crate::position::{SegmentNo, SystemId, TimelineId};
use crate::retention::Stored;
use crate::session::Backoff;

mod board;
mod memory;
mod plan;
mod succession;

pub use board::{Board, Gap, Report};
use plan::Step;
use succession::Succession;

/// Longest time between two looks at the log, whatever happens.
const EVERY: Duration = Duration::from_secs(60);

/// Connects to the store at an address.
pub type Connect = Arc<dyn Fn(&Address) -> Result<Arc<dyn Store>> + Send + Sync>;

/// What is archived, and where to.
#[derive(Clone)]
pub struct Context {
    /// The archive.
    pub address: Address,
    /// The directory of the segments.
    pub log: PathBuf,
    /// The state directory.
    pub state: PathBuf,
    /// Whose log it is.
    pub system: SystemId,
    /// Its timeline.
    pub timeline: TimelineId,
    /// Where that and those before it branched off: goes to the archive before any segment.
    pub history: History,
    /// How to get to the archive.
    pub connect: Connect,
}

impl std::fmt::Debug for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context").field("address", &self.address).finish_non_exhaustive()
    }
}

/// Archives until cancelled. `nudge` ends a pause after a failure.
pub async fn run(
    context: Context,
    board: Arc<Board>,
    mut tail: watch::Receiver<Tail>,
    nudge: Arc<Notify>,
    cancel: CancellationToken,
) {
    board.begin(&context.address.to_string());
    let mut worker = Worker {
        context,
        archive: None,
        have: BTreeSet::new(),
        reached: None,
        succession: Succession::default(),
    };
    let mut pauses = Backoff::new(fastrand::u64(..));
    while !cancel.is_cancelled() {
        let seen = *tail.borrow_and_update();
        let noting = Arc::clone(&board);
        let step = tokio::task::spawn_blocking(move || {
            let result = worker.step(&noting);
            (worker, result)
        });
        let (back, result) = tokio::select! {
            // A store that does not answer is left alone; what it does yet is done whole or not at all.
            () = cancel.cancelled() => return,
            joined = step => match joined {
                Ok(done) => done,
                Err(e) => {
                    board.fail(&Error::new(ErrorKind::Io, format!("the archiver has panicked: {e}")), Duration::ZERO);
                    return;
                }
            },
        };
        worker = back;
        match result {
            Ok(true) => pauses.reset(),
            Ok(false) => {
                pauses.reset();
                tokio::select! {
                    () = cancel.cancelled() => return,
                    () = sealed(&mut tail, seen) => {}
                    () = nudge.notified() => {}
                    () = tokio::time::sleep(EVERY) => {}
                }
            }
            Err(e) => {
                let pause = pauses.next().unwrap_or(Backoff::LAST);
                board.fail(&e, pause);
                tokio::select! {
                    () = cancel.cancelled() => return,
                    () = nudge.notified() => {}
                    () = tokio::time::sleep(pause) => {}
                }
            }
        }
    }
}

/// Waits until a segment was sealed: then a newer one begins, or the file of the newest grows though the log does not.
async fn sealed(tail: &mut watch::Receiver<Tail>, mut seen: Tail) {
    while tail.changed().await.is_ok() {
        let now = *tail.borrow_and_update();
        if now.segment != seen.segment || now.end == seen.end && now.offset != seen.offset {
            return;
        }
        seen = now;
    }
    std::future::pending().await
}

struct Worker {
    context: Context,
    /// Open, and learned from.
    archive: Option<Archive>,
    /// Segments of the log that the archive has, or never gets.
    have: BTreeSet<SegmentNo>,
    /// Up to here everything is dealt with: archived, or known to be a gap.
    reached: Option<SegmentNo>,
    /// Whether another node's line has taken over.
    succession: Succession,
}

impl Worker {
    /// Archives the oldest segment that waits. False: none does.
    fn step(&mut self, board: &Board) -> Result<bool> {
        let done = self.try_step(board);
        if done.is_err() {
            // What failed may be another one when it is back.
            self.archive = None;
        }
        done
    }

    fn try_step(&mut self, board: &Board) -> Result<bool> {
        let stored = log::stored(&self.context.log, self.context.timeline)?;
        if let Some(oldest) = stored.first() {
            self.have = self.have.split_off(&oldest.segment);
        }
        let archive = match self.archive.clone() {
            Some(archive) => archive,
            None => {
                self.note_waiting(board, &plan::step(&stored, &self.have, None).waiting);
                self.learn(&stored, board)?
            }
        };
        let Step { waiting, gap, reached } = plan::step(&stored, &self.have, self.reached);
        self.reached = reached;
        self.note_waiting(board, &waiting);
        if let Some(gap) = gap {
            board.gap(self.context.timeline, gap);
        }
        let Some(next) = waiting.first().map(|s| s.segment) else {
            let open =
                stored.last().map_or(SegmentNo(0), |s| if s.sealed { s.segment.next() } else { s.segment });
            board.idle(open);
            return Ok(false);
        };
        board.working(next);
        self.succession.allows(&archive, &self.context.history, next)?;
        let Context { log, system, timeline, .. } = &self.context;
        match log::sealed(log, *system, *timeline, next) {
            Ok(Some((by, bytes))) => {
                archive.is_there()?;
                let kept = match by.ended_by {
                    None => archive.put_segment(by.timeline, next, &bytes)?,
                    Some(ended) => archive.put_ended(by.timeline, next, ended, &bytes)?,
                };
                self.have.insert(next);
                board.archived(by.timeline, next, bytes.len() as u64, kept);
            }
            // It was removed since the directory was listed: the next look finds a gap.
            Ok(None) => {}
            Err(e) if e.kind() == ErrorKind::Corrupt => {
                // One bad file does not keep the good ones behind it out.
                board.damaged(*timeline, next, &e);
                self.have.insert(next);
            }
            Err(e) => return Err(e),
        }
        Ok(true)
    }

    fn note_waiting(&self, board: &Board, waiting: &[Stored]) {
        let since =
            waiting.first().and_then(|s| log::sealed_at(&self.context.log, self.context.timeline, s.segment));
        board.waiting(waiting, since);
    }

    /// Opens the archive, and finds out which of the log it has.
    fn learn(&mut self, stored: &[Stored], board: &Board) -> Result<Archive> {
        let Context { address, state, system, history, connect, .. } = &self.context;
        let store = connect(address)?;
        let archive = memory::open(state, store, &address.to_string(), *system)?;
        archive.put_history(history)?;
        let oldest = stored.first().map_or(SegmentNo(0), |s| s.segment);
        let before = SegmentNo(oldest.0.saturating_sub(1));
        let (mut have, mut prior) = (BTreeSet::new(), None);
        on_way(&archive, history, before, |segment| {
            have.insert(segment);
            true
        })?;
        if have.remove(&before) {
            prior = Some(before);
        } else {
            // Seldom, and long: where did it end before the log begins?
            on_way(&archive, history, SegmentNo(0), |segment| {
                if segment < oldest {
                    prior = Some(segment);
                }
                segment < oldest
            })?;
        }
        (self.have, self.reached) = (have, prior);
        board.learned();
        self.archive = Some(archive.clone());
        Ok(archive)
    }
}

#[cfg(test)]
mod tests;

/// The segments of the way that the archive has from `from` on, each timeline's ascending, until `each` says false. One
/// that is not as large as it should be is put there once more.
fn on_way(
    archive: &Archive,
    history: &History,
    from: SegmentNo,
    mut each: impl FnMut(SegmentNo) -> bool,
) -> Result<()> {
    let branches = history.branches();
    let oldest = branches.first().map_or(history.timeline(), |b| b.parent);
    let lines = [oldest].into_iter().chain(branches.iter().map(|b| b.timeline));
    for timeline in lines.filter(|t| *t >= history.timeline_of(from)) {
        let branch = branches.iter().find(|b| b.parent == timeline);
        let last = branch.map_or(SegmentNo(u64::MAX), |b| b.last_segment());
        let mut more = true;
        archive.segments(timeline, from, &mut |name, size| {
            let counts = name.segment < last || branch.is_none();
            more = !(counts && size == name.size) || each(name.segment);
            Ok(more && counts)
        })?;
        let ended = branch.filter(|_| more && last >= from);
        if let Some(branch) = ended
            && archive.has_end_of(branch)?
        {
            more = each(last);
        }
        if !more {
            break;
        }
    }
    Ok(())
}
