//! Archiving while this node leads: begun with a generation, begun anew when the configuration names another archive.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{Node, bounded_stop};
use crate::archive::{self, Address};
use crate::archiver::{self, Board, Context};
use crate::log::Log;
use crate::sys::vital;

/// What outlives a generation.
#[derive(Default)]
pub(crate) struct Archiving {
    pub(super) board: Arc<Board>,
    /// Ends a pause after a failure.
    nudge: Arc<Notify>,
    /// The configuration may name another archive.
    changed: Notify,
}

impl Archiving {
    /// The configuration was read again.
    pub(super) fn reload(&self) {
        self.changed.notify_one();
    }
}

/// Archiving of a generation. It ends when this is dropped.
pub(super) struct Running {
    cancel: CancellationToken,
    task: Option<JoinHandle<()>>,
}

/// How long a stop waits for the archive. Well within the time that the unit of systemd gives.
const LAST_MAX: Duration = Duration::from_secs(20);

impl Running {
    /// At a clean stop: what is in the segment that is written goes to the archive, too. A store that fails, or takes too
    /// long, does not keep the node up; what it lacks goes there after the next start.
    pub(super) async fn finish(&self, node: &Node, log: &Log) {
        let Archiving { board, nudge, .. } = &node.archiving;
        if board.report().is_none() {
            return;
        }
        let sealing = log.clone();
        bounded_stop("seal the log for the archive", move || sealing.seal(LAST_MAX)).await;
        nudge.notify_one();
        let (segment, began) = (log.tail().segment, Instant::now());
        loop {
            let (Some(unarchived), Some(report)) = (board.unarchived(), board.report()) else { return };
            if unarchived > segment {
                return;
            }
            if report.error.is_some() || began.elapsed() >= LAST_MAX {
                let why = report.error.unwrap_or_else(|| format!("not within {} s", LAST_MAX.as_secs()));
                tracing::warn!(
                    "stopped before all log is in the archive '{}': segments {:X} to {:X} may be missing there ({why}); they go \
                     there after the next start",
                    report.address,
                    unarchived.0,
                    segment.0
                );
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub(super) async fn stop(mut self) {
        self.cancel.cancel();
        if let Some(task) = self.task.take() {
            let _ = task.await;
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

/// Archives what `log` seals from now on. Once this returns, no log goes that the archive may lack.
pub(super) fn start(node: &Arc<Node>, log: &Log) -> Running {
    match address(node) {
        Some(address) => node.archiving.board.hold(&address.to_string()),
        None => node.archiving.board.clear(),
    }
    let cancel = CancellationToken::new();
    let task = tokio::spawn(vital::task("the archiver", run(Arc::clone(node), log.clone(), cancel.clone())));
    Running { cancel, task: Some(task) }
}

fn address(node: &Node) -> Option<Address> {
    // It was checked when it was read.
    node.config().archive_address().ok().flatten()
}

async fn run(node: Arc<Node>, log: Log, cancel: CancellationToken) {
    let archiving = &node.archiving;
    while !cancel.is_cancelled() {
        let now = address(&node);
        let turn = cancel.child_token();
        let mut engine = std::pin::pin!(archive(&node, &log, now.clone(), turn.clone()));
        loop {
            tokio::select! {
                () = &mut engine => return,
                () = archiving.changed.notified() => {}
            }
            if address(&node) != now {
                break;
            }
            // The same again: what it waits for may be there now.
            archiving.nudge.notify_one();
        }
        turn.cancel();
        engine.await;
    }
}

async fn archive(node: &Arc<Node>, log: &Log, address: Option<Address>, cancel: CancellationToken) {
    let board = Arc::clone(&node.archiving.board);
    let (Some(address), Ok(control), Ok(history)) = (address, node.state.set_up(), node.state.history())
    else {
        board.clear();
        return cancel.cancelled().await;
    };
    let context = Context {
        address,
        log: node.state.log(),
        state: node.state.path().to_owned(),
        system: control.system,
        timeline: control.timeline,
        history,
        connect: Arc::new(archive::connect),
    };
    archiver::run(context, board, log.subscribe(), Arc::clone(&node.archiving.nudge), cancel).await;
}
