//! What `towline status`, `towline check` and the pages over HTTP show of this node: one value, put together here.

use std::sync::Arc;

use serde_json::Value;

use super::port::Port;
use super::{Engine, Node, blocking, fenced, lock, slot, sync};
use crate::error::{Error, ErrorKind, Result};
use crate::log::Log;
use crate::net::wall_clock;
use crate::state::Role;
use crate::status::{CutsPart, DiskPart, LogPart, Room, Status, health};
use crate::sys;

/// The status of the node as JSON. It asks file systems how full they are, which may take its time on a thread of
/// its own.
pub(super) async fn shown(node: Arc<Node>) -> Result<Value> {
    blocking(move || {
        let status = status(&node)?;
        serde_json::to_value(status).map_err(|e| Error::new(ErrorKind::Io, e.to_string()))
    })
    .await
}

fn status(node: &Arc<Node>) -> Result<Status> {
    let (word, error) = {
        let phase = lock(&node.phase);
        let role = node.state.control().map_or(Role::Follower, |c| c.role);
        (phase.word(), phase.failure(role))
    };
    let control = node.state.set_up()?;
    let mut status = Status {
        role: control.role.word(),
        name: node.name(),
        version: env!("CARGO_PKG_VERSION"),
        data: node.data.display().to_string(),
        listen: node.port.address().map(|at| at.to_string()),
        system: control.system.to_string(),
        timeline: control.timeline.0,
        node: node.id.to_string(),
        started: node.started,
        now: wall_clock(),
        state: word.to_owned(),
        error,
        followers: node.port.followers(),
        backups: node.port.backups().iter().map(|b| serde_json::to_value(b).unwrap_or_default()).collect(),
        tls: serde_json::to_value(node.trust.terms().status()).ok(),
        // A log that can't be looked at is what `error` is about.
        slots: slot::list(node).unwrap_or_default(),
        archive: node.archiving.board.report().and_then(|r| serde_json::to_value(r).ok()),
        disk: DiskPart { state: room(node.state.path()), data: room(&node.data) },
        ..Status::default()
    };
    let (engine, tally) = node.engine_and_tally();
    match engine {
        Some(Engine::Leader(l)) => l.fill_status(&node.port, &mut status),
        Some(Engine::Follower(f)) => f.fill_status(&node.port, &mut status),
        None => "nothing is replicated until the node is running".clone_into(&mut status.guarantee),
    }
    tally.put(&mut status, std::time::Instant::now());
    if control.role == Role::Leader {
        if let Some(fence) = node.rivals.fence() {
            let (part, failure) = fenced::shown(&node.state.history()?, &fence);
            status.fence = Some(part);
            "nothing is captured and nobody is served: another node leads".clone_into(&mut status.guarantee);
            // One that is on its way to follow says so, and what keeps it from that.
            if word == "fenced" || word != "rewinding" && status.error.is_none() {
                status.error = Some(failure);
                "fenced".clone_into(&mut status.state);
            }
        }
        if let Some(failure) = node.permit.shown().filter(|_| status.fence.is_none()) {
            status.error = Some(failure);
            "vetoed".clone_into(&mut status.state);
            "nothing is captured and nobody is served: this node may not lead"
                .clone_into(&mut status.guarantee);
        }
        status.rivals = node.rivals.apart();
        let mut part = sync::part(node.port.peers(), &node.config());
        node.waits.fill(&mut part);
        node.strict.fill(&mut part);
        status.guarantee += &sync::guarantee(&part);
        status.sync = Some(part);
    }
    status.switchover = node.switchover.part();
    status.resync = (control.role == Role::Follower).then(|| node.resyncs.part(node));
    status.health = health(&status);
    Ok(status)
}

/// The positions of a log for `status`.
pub(super) fn log_part(log: &Log) -> LogPart {
    let tail = log.tail();
    LogPart {
        written: log.written().to_string(),
        end: tail.end.to_string(),
        commit: tail.commit.to_string(),
        exact: tail.exact.to_string(),
        segment: format!("{:016X}", tail.segment.0),
        commit_time: tail.commit_time,
    }
}

/// How good the newest cuts of a log are; `None` when it has no commit.
pub(super) fn cuts_part(log: &Log, port: &Port) -> Option<CutsPart> {
    let tail = log.tail();
    if tail.commit == crate::position::Lsn::ZERO {
        return None;
    }
    let waits = tail.commit > tail.exact;
    // Since when a commit waits for an exact cut, by the clock that stamped it.
    let since = port.peers().oldest_after(tail.exact).unwrap_or(tail.commit_time);
    let age = u64::try_from(port.leaders_clock().saturating_sub(since)).unwrap_or(0);
    Some(CutsPart {
        newest: if waits { "file" } else { "exact" },
        exact_time: tail.exact_time,
        exact_age: if waits { std::time::Duration::from_nanos(age).as_secs_f64() } else { 0.0 },
        waiting_bytes: tail.commit.since(tail.exact),
    })
}

fn room(path: &std::path::Path) -> Option<Room> {
    let (free_bytes, size_bytes) = sys::room(path).ok()?;
    #[allow(clippy::cast_precision_loss, reason = "a share to be read by people")]
    let free_percent = if size_bytes == 0 { 0.0 } else { free_bytes as f64 * 100.0 / size_bytes as f64 };
    Some(Room { free_bytes, size_bytes, free_percent: (free_percent * 10.0).round() / 10.0 })
}
