//! Old log goes: whenever a segment was sealed, a slot has left one behind, or some time has passed.
//!
//! What may go is decided by [`retention`](crate::retention), done by [`slots`](crate::slots), and told here.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{Node, blocking};
use crate::error::{Error, Result};
use crate::log::Log;
use crate::net::Quiet;
use crate::position::Lsn;
use crate::retention::{Limits, State};
use crate::slots::{Cleaned, Ground};
use crate::sys::vital;
use crate::{checkpoint, sys};

/// Longest time between two clean-ups: limits of time and of the disk move without any event.
const EVERY: Duration = Duration::from_secs(10);
/// Shortest time between two: under load segments are sealed and confirmed many times a second.
const PAUSE: Duration = Duration::from_millis(500);

/// The clean-ups of a generation. They end when this is dropped.
pub(super) struct Cleaning {
    cancel: CancellationToken,
    task: Option<JoinHandle<()>>,
}

impl Cleaning {
    /// Waits until the one under way is over.
    pub(super) async fn stop(mut self) {
        self.cancel.cancel();
        if let Some(task) = self.task.take() {
            let _ = task.await;
        }
    }
}

impl Drop for Cleaning {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

/// Cleans up behind `log` from now on.
pub(super) fn start(node: &Arc<Node>, log: &Log) -> Cleaning {
    let cancel = CancellationToken::new();
    let task = tokio::spawn(vital::task(
        "the clean-up of old log",
        run(Arc::clone(node), log.clone(), cancel.clone()),
    ));
    Cleaning { cancel, task: Some(task) }
}

async fn run(node: Arc<Node>, log: Log, cancel: CancellationToken) {
    let mut tail = log.subscribe();
    let quiet = Quiet::new(Duration::from_secs(60));
    let mut short = false;
    loop {
        let segment = tail.borrow_and_update().segment;
        match pass(&node, log.tail().end, false).await {
            Ok(cleaned) => short = say(&cleaned, short),
            Err(e) => {
                if let Some(n) = quiet.line() {
                    tracing::warn!("old log is not removed: {e}; it is tried again{n}");
                }
            }
        }
        let sealed = async {
            if tail.wait_for(|t| t.segment > segment).await.is_err() {
                // The log was closed.
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = cancel.cancelled() => break,
            () = sealed => {}
            () = node.slots.moved() => {}
            () = tokio::time::sleep(EVERY) => continue,
        }
        tokio::select! {
            () = cancel.cancelled() => break,
            () = tokio::time::sleep(PAUSE) => {}
        }
    }
    let slots = Arc::clone(&node.slots);
    if let Err(e) = blocking(move || slots.flush()).await {
        tracing::warn!("the newest positions of followers are not written: {e}; an older one holds more log");
    }
}

/// The disk is full: gives up what may be given up. Whether there is more room now.
pub(super) async fn make_room(node: &Arc<Node>) -> bool {
    match pass(node, Lsn::ZERO, true).await {
        Ok(cleaned) => {
            say(&cleaned, true);
            cleaned.removed > 0
        }
        Err(e) => {
            tracing::warn!("no room can be made by removing old log: {e}");
            false
        }
    }
}

async fn pass(node: &Arc<Node>, end: Lsn, full: bool) -> Result<Cleaned> {
    let node = Arc::clone(node);
    blocking(move || node.slots.clean_up(&ground(&node, end, full)?)).await
}

/// What there is to decide by, with the log's end where that is known.
pub(super) fn ground(node: &Node, end: Lsn, full: bool) -> Result<Ground> {
    let (control, config) = (node.state.set_up()?, node.config());
    let path = node.state.path();
    let (free, total) = sys::room(path).map_err(|e| Error::io("stat file system of", path, e))?;
    let limits = Limits {
        max_slot_keep: config.max_slot_keep.into(),
        max_slot_disk: config.max_slot_disk.of(total),
        keep_segments: config.keep_segments.into(),
        min_free_disk: config.min_free_disk.of(total),
        slot_idle_timeout: i64::try_from(config.slot_idle_timeout.0.as_nanos()).unwrap_or(i64::MAX),
        max_archive_keep: config.max_archive_keep.of(total),
    };
    Ok(Ground {
        log: node.state.log(),
        timeline: control.timeline,
        end,
        own: checkpoint::oldest(&node.state.catalog())?,
        unarchived: node.archiving.board.unarchived(),
        free,
        full,
        limits,
    })
}

/// Logs what an operator may want to know; returns whether the disk is short of room.
fn say(cleaned: &Cleaned, short: bool) -> bool {
    for (name, state, reason) in &cleaned.changed {
        let why = reason.words();
        if *state == State::Lost {
            tracing::warn!(
                "slot '{name}' is lost: {why}; its follower is made equal anew when it comes back, and `towline slot drop \
                 {name}` takes the slot away if it never does"
            );
        } else {
            tracing::warn!(
                "slot '{name}' is unreserved: {why}; it is lost unless its follower comes back first"
            );
        }
    }
    if cleaned.removed > 0 {
        let Cleaned { removed, bytes, .. } = cleaned;
        tracing::debug!("{removed} old segments removed, {bytes} bytes");
    }
    if cleaned.short > 0 && !short {
        tracing::warn!(
            "the disk of the state directory lacks {} bytes of min_free_disk, and no log is left that only slots hold: \
             free space there",
            cleaned.short
        );
    }
    cleaned.short > 0
}
