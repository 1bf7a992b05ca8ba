//! The loop around connections to upstream nodes: try, say why it ended, pause, try again or the next one.

use tokio::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

use super::{Upstream, UpstreamState, one_line, wall_clock};
use crate::error::{Error, ErrorKind, Result};
use crate::session::{Answer, Backoff, Turns, UpstreamRole, verdict};
use crate::wire::{Code, RoleWanted};

/// A connection that lasted this long was a good one, whatever ended it.
const GOOD: Duration = Duration::from_secs(10);
/// What belongs to every start and stop is worth a look when it lasts this long.
const LONG: Duration = Duration::from_secs(60);

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

impl End {
    /// The same as an error.
    #[must_use]
    pub fn into_error(self) -> Error {
        match self {
            Self::Local(e) | Self::Lost(e) => e,
            Self::Refused(_, reason) => Error::new(ErrorKind::Refused, one_line(&reason)),
        }
    }
}

/// The result of a connection.
pub type Ended<T> = std::result::Result<T, End>;

/// The nodes to follow, and which of them.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Sources {
    /// `host:port` of each; the first is tried first. At least one.
    pub addresses: Vec<String>,
    /// What they are asked to be.
    pub role: UpstreamRole,
}

impl Sources {
    /// One node, whatever it is.
    #[must_use]
    pub fn one(address: &str) -> Self {
        Self { addresses: vec![address.to_owned()], role: UpstreamRole::Any }
    }
}

/// What an attempt connects to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Target<'a> {
    /// `host:port`.
    pub address: &'a str,
    /// What is asked of it.
    pub wants: RoleWanted,
}

/// Whose turn it is, the pauses between connections, and what is said about them.
#[derive(Debug)]
pub struct Retry<'a> {
    sources: &'a Sources,
    turns: Turns,
    /// How the last attempt with each ended, since the last good connection.
    answers: Vec<Option<Answer>>,
    status: &'a Upstream,
    cancel: &'a CancellationToken,
    backoff: Backoff,
    said: String,
    /// Whether that was a warning.
    warned: bool,
    /// When what is usual is so no longer.
    patience: Option<Instant>,
    began: Instant,
    before: u64,
}

impl<'a> Retry<'a> {
    /// Connections to `sources`, shown in `status`, ended by `cancel`.
    #[must_use]
    pub fn new(sources: &'a Sources, status: &'a Upstream, cancel: &'a CancellationToken) -> Self {
        Self {
            sources,
            turns: Turns::new(sources.role, sources.addresses.len()),
            answers: vec![None; sources.addresses.len()],
            status,
            cancel,
            backoff: Backoff::new(fastrand::u64(..)),
            said: String::new(),
            warned: false,
            patience: None,
            began: Instant::now(),
            before: 0,
        }
    }

    /// A connection is about to be made, to what is returned; `progress` is what was achieved so far.
    pub fn begin(&mut self, progress: u64) -> Target<'a> {
        // What the connection before achieved may have become durable only after its end.
        if progress > self.before {
            self.backoff.reset();
        }
        (self.began, self.before) = (Instant::now(), progress);
        let address = self.sources.addresses.get(self.turns.at()).map_or("", String::as_str);
        self.status.update(|s| address.clone_into(&mut s.address));
        Target { address, wants: self.turns.wants() }
    }

    /// A connection ended. Pauses, a short while if there was progress, not at all while others are to be asked;
    /// true: try again, false: it was cancelled.
    ///
    /// # Errors
    /// What ended the connection by this node's own fault.
    pub async fn pause(&mut self, end: End, progress: u64) -> Result<bool> {
        let mut changes = self.status.trust().subscribe();
        let good = progress > self.before || self.began.elapsed() >= GOOD;
        if good {
            self.backoff.reset();
            self.said.clear();
            self.patience = None;
            self.answers.fill(None);
        }
        let answer = match end {
            End::Local(e) => return Err(e),
            End::Refused(code, reason) => {
                Answer { code: Some(code), reason: format!("refused: {}", one_line(&reason)) }
            }
            End::Lost(e) => Answer { code: None, reason: e.to_string() },
        };
        let usual = answer.code.is_some_and(Code::is_usual);
        // Of one that is left for another nothing is passed on.
        if answer.code.is_none() || self.answers.len() > 1 {
            self.status.lost();
        }
        if let Some(last) = self.answers.get_mut(self.turns.at()) {
            *last = Some(answer);
        }
        let last = self.turns.at();
        let pauses = self.turns.ended(good);
        let reason = self.reason();
        let code = verdict(&self.answers);
        if code.is_some_and(|c| !c.passes()) {
            self.backoff.slow();
        }
        let pause = match pauses {
            true => self.backoff.next().unwrap_or(Backoff::LAST),
            false => Duration::ZERO,
        };
        let now = wall_clock();
        self.status.update(|s| {
            (s.state, s.code) = match code {
                None => (UpstreamState::Connecting, None),
                Some(Code::Resync) => (UpstreamState::Resync, code),
                Some(_) => (UpstreamState::Refused, code),
            };
            s.error = Some(reason.clone());
            s.attempts += 1;
            s.since = if s.since == 0 { now } else { s.since };
            s.next_retry = now.saturating_add(i64::try_from(pause.as_nanos()).unwrap_or(i64::MAX));
        });
        self.say(last, reason, usual, pauses);
        tokio::select! {
            () = self.cancel.cancelled() => Ok(false),
            () = tokio::time::sleep(pause) => Ok(true),
            // Whom it did not trust a moment ago it may trust now.
            Ok(()) = changes.changed() => Ok(true),
        }
    }

    /// One line when the reason is another than before, and a warning when what is usual lasts.
    fn say(&mut self, last: usize, reason: String, usual: bool, pauses: bool) {
        let lasts = *self.patience.get_or_insert(self.began + LONG) <= Instant::now();
        let warns = !usual || lasts;
        if reason == self.said && (self.warned || !warns) {
            return;
        }
        let at = self.sources.addresses.get(last).map_or("", String::as_str);
        let line = format!("upstream {at}: {reason}; trying {}", if pauses { "again" } else { "the next" });
        if warns {
            tracing::warn!("{line}");
        } else {
            tracing::info!("{line}");
        }
        (self.said, self.warned) = (reason, warns);
    }

    /// Why there is no connection: of several upstreams what each said.
    fn reason(&self) -> String {
        let each = self.sources.addresses.iter().zip(&self.answers);
        let said: Vec<_> = each.filter_map(|(at, a)| a.as_ref().map(|a| (at, &a.reason))).collect();
        match said.as_slice() {
            [(_, reason)] if self.answers.len() == 1 => (*reason).clone(),
            _ => said.iter().map(|(at, reason)| format!("{at}: {reason}")).collect::<Vec<_>>().join("; "),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::position::NodeId;

    #[tokio::test]
    async fn an_upstream_that_starts_is_worth_a_warning_only_when_that_lasts() {
        let (sources, cancel) = (Sources::one("a:1"), CancellationToken::new());
        let status = Upstream::new(&sources, NodeId(1));
        let mut retry = Retry::new(&sources, &status, &cancel);
        for lasts in [false, false, true, true] {
            retry.begin(0);
            if lasts {
                retry.patience = Some(Instant::now());
            }
            assert!(retry.pause(End::Refused(Code::NotReady, "it starts".to_owned()), 0).await.unwrap());
            assert_eq!((retry.said.as_str(), retry.warned), ("refused: it starts", lasts));
        }
        // A good connection, and it stops: nothing lasts any more. That it is gone is news.
        retry.begin(7);
        assert!(retry.pause(End::Refused(Code::Shutdown, "it stops".to_owned()), 9).await.unwrap());
        assert_eq!((retry.said.as_str(), retry.warned), ("refused: it stops", false));
        retry.begin(9);
        let gone = Error::new(ErrorKind::Unavailable, "gone");
        assert!(retry.pause(End::Lost(gone), 9).await.unwrap());
        assert_eq!((retry.said.as_str(), retry.warned), ("gone", true));
    }

    #[tokio::test]
    async fn several_upstreams_are_asked_in_turn_and_each_is_quoted() {
        let sources =
            Sources { addresses: vec!["a:1".to_owned(), "b:2".to_owned()], role: UpstreamRole::Leader };
        let (status, cancel) = (Upstream::new(&sources, NodeId(1)), CancellationToken::new());
        let mut retry = Retry::new(&sources, &status, &cancel);
        let refused = |why: &str| End::Refused(Code::UpstreamRole, why.to_owned());
        assert_eq!(retry.begin(0), Target { address: "a:1", wants: RoleWanted::Leader });
        assert!(retry.pause(refused("a follower"), 0).await.unwrap());
        let seen = status.status();
        assert_eq!((seen.state, seen.code), (UpstreamState::Connecting, None), "there is another");
        assert_eq!(retry.begin(0).address, "b:2");
        assert_eq!(status.status().address, "b:2");
        cancel.cancel();
        assert!(!retry.pause(refused("one too"), 0).await.unwrap());
        let seen = status.status();
        assert_eq!((seen.state, seen.code), (UpstreamState::Refused, Some(Code::UpstreamRole)));
        let text = seen.error.unwrap();
        assert_eq!(text, "a:1: refused: a follower; b:2: refused: one too");
        // A good connection makes the others' answers old news.
        assert_eq!(retry.begin(0).address, "a:1");
        let lost = Error::new(ErrorKind::Unavailable, "gone");
        assert!(!retry.pause(End::Lost(lost), 7).await.unwrap());
        assert_eq!(status.status().error.unwrap(), "a:1: gone");
        assert_eq!(retry.begin(7).address, "b:2");
    }
}
