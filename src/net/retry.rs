//! The loop around connections to an upstream node: try, say why it ended, pause, try again.

use tokio::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

use super::{Upstream, UpstreamState, one_line, wall_clock};
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

/// The pauses between connections, and what is said about them.
#[derive(Debug)]
pub struct Retry<'a> {
    address: &'a str,
    status: &'a Upstream,
    cancel: &'a CancellationToken,
    backoff: Backoff,
    said: String,
    began: Instant,
    before: u64,
}

impl<'a> Retry<'a> {
    /// Pauses between connections to `address`, shown in `status`, ended by `cancel`.
    #[must_use]
    pub fn new(address: &'a str, status: &'a Upstream, cancel: &'a CancellationToken) -> Self {
        let backoff = Backoff::new(fastrand::u64(..));
        Self { address, status, cancel, backoff, said: String::new(), began: Instant::now(), before: 0 }
    }

    /// A connection is about to be made; `progress` is what was achieved so far.
    pub fn begin(&mut self, progress: u64) {
        // What the connection before achieved may have become durable only after its end.
        if progress > self.before {
            self.backoff.reset();
        }
        (self.began, self.before) = (Instant::now(), progress);
    }

    /// A connection ended. Pauses, a short while if there was progress; true: try again, false: it was cancelled.
    ///
    /// # Errors
    /// What ended the connection by this node's own fault.
    pub async fn pause(&mut self, end: End, progress: u64) -> Result<bool> {
        if progress > self.before || self.began.elapsed() >= GOOD {
            self.backoff.reset();
            self.said.clear();
        }
        let reason = match end {
            End::Local(e) => return Err(e),
            End::Refused(code, reason) => {
                if !code.passes() {
                    self.backoff.slow();
                }
                let state = if code == Code::Resync { UpstreamState::Resync } else { UpstreamState::Refused };
                self.status.update(|s| (s.state, s.code) = (state, Some(code)));
                format!("refused: {}", one_line(&reason))
            }
            End::Lost(e) => {
                self.status.lost();
                self.status.update(|s| (s.state, s.code) = (UpstreamState::Connecting, None));
                e.to_string()
            }
        };
        let pause = self.backoff.next().unwrap_or(Backoff::LAST);
        let now = wall_clock();
        self.status.update(|s| {
            s.error = Some(reason.clone());
            s.attempts += 1;
            s.since = if s.since == 0 { now } else { s.since };
            s.next_retry = now.saturating_add(i64::try_from(pause.as_nanos()).unwrap_or(i64::MAX));
        });
        if reason != self.said {
            tracing::warn!("upstream {}: {reason}; trying again", self.address);
            self.said = reason;
        }
        tokio::select! {
            () = self.cancel.cancelled() => Ok(false),
            () = tokio::time::sleep(pause) => Ok(true),
        }
    }
}
