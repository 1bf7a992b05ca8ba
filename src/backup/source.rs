//! The node that is read, as seen by work that it may fail.

use std::pin::pin;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::Access;
use crate::error::{Error, ErrorKind, Result};
use crate::net::{Upstream, wall_clock};

/// How often it is looked whether the node is there.
const LOOK: Duration = Duration::from_millis(50);

/// Does `work`, which ends early when `cancel` is cancelled, until it ends, the node says no, or has been away for too long.
pub(super) async fn while_there<T>(
    access: &Access,
    upstream: &Upstream,
    cancel: &CancellationToken,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    let mut work = pin!(work);
    tokio::select! {
        done = &mut work => done,
        e = forsaken(access, upstream) => {
            // What it still has open ends with it.
            cancel.cancel();
            let _ = work.await;
            Err(e)
        }
    }
}

/// Waits until the node has said no, or has not been reached for too long.
async fn forsaken(access: &Access, upstream: &Upstream) -> Error {
    loop {
        tokio::time::sleep(LOOK).await;
        let status = upstream.status();
        let Some(why) = status.error.filter(|_| status.since > 0) else { continue };
        let away = Duration::from_nanos(wall_clock().saturating_sub(status.since).unsigned_abs());
        let at = &access.address;
        match status.code {
            Some(code) if !code.passes() => {
                return Error::new(ErrorKind::Refused, format!("the node at {at}: {why}"));
            }
            _ if away >= access.patience => {
                let text = format!("the node at {at} could not be reached for {} s: {why}", away.as_secs());
                return Error::new(ErrorKind::Unavailable, text);
            }
            _ => {}
        }
    }
}

/// The error of a backup that was stopped on request.
pub(super) fn stopped() -> Error {
    Error::new(ErrorKind::Cancelled, "stopped before the backup was complete")
}

/// Work for a thread.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let joined = tokio::task::spawn_blocking(work).await;
    joined.map_err(|e| Error::new(ErrorKind::Io, e.to_string()))?
}
