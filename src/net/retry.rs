//! The loop around connections to an upstream node: try, say why it ended, pause, try again.

use tokio::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

use super::{Upstream, UpstreamState};
use crate::error::{Error, Result};
use crate::session::Backoff;
use crate::wire::Code;

/// A connection that lasted this long was a good one, whatever ended it.
const GOOD: Duration = Duration::from_secs(10);

/// Why one connection ended before its work was done.
#[derive(Debug)]
pub enum End {
    /// This node's own files failed it; trying again at once would not help.
    Local(Error),
    /// The upstream said no.
    Refused(Code, String),
    /// The connection or the peer.
    Lost(Error),
}

impl<E: Into<Error>> From<E> for End {
    fn from(e: E) -> Self {
        Self::Lost(e.into())
    }
}

/// The result of a connection.
pub type Ended<T> = std::result::Result<T, End>;

/// Makes connections until one ends with its work done, with pauses between them. A growing
/// `progress` makes the pauses short again.
///
/// # Errors
/// What ended a connection by this node's own fault.
pub async fn keep_trying(
    address: &str,
    status: &Upstream,
    cancel: &CancellationToken,
    progress: impl Fn() -> u64,
    mut connection: impl AsyncFnMut() -> Ended<()>,
) -> Result<()> {
    let mut backoff = Backoff::new(fastrand::u64(..));
    let mut said = String::new();
    loop {
        let (began, before) = (Instant::now(), progress());
        let Err(end) = connection().await else { return Ok(()) };
        if progress() > before || began.elapsed() >= GOOD {
            backoff.reset();
            said.clear();
        }
        let reason = match end {
            End::Local(e) => return Err(e),
            End::Refused(code, reason) => {
                if !code.passes() {
                    backoff.slow();
                }
                let state = if code == Code::Resync { UpstreamState::Resync } else { UpstreamState::Refused };
                status.update(|s| (s.state, s.code) = (state, Some(code)));
                format!("refused: {}", reason.escape_debug())
            }
            End::Lost(e) => {
                status.update(|s| (s.state, s.code) = (UpstreamState::Connecting, None));
                e.to_string()
            }
        };
        status.update(|s| {
            s.error = Some(reason.clone());
            s.attempts += 1;
        });
        if reason != said {
            tracing::warn!("upstream {address}: {reason}; trying again");
            said = reason;
        }
        tokio::select! {
            () = cancel.cancelled() => return Ok(()),
            () = tokio::time::sleep(backoff.next().unwrap_or(Backoff::LAST)) => {}
        }
    }
}
