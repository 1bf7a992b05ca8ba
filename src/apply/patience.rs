//! How long apply waits for an exact cut while cuts of files stand in the log, and what follows.
//!
//! An application that never rests, without a freeze, yields cuts of files only. The newest data is then
//! safe in the follower's log, but its directory stands still. That may last as long as the operator says;
//! what is over it is said, and with [`Inexact::Apply`] a cut of files is applied.

use std::time::{Duration, Instant};

/// What happens when exact cuts stay away for too long.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Inexact {
    /// It is said, and apply goes on waiting.
    #[default]
    Report,
    /// It is said, and the newest cut of files is applied.
    Apply,
}

/// The limits, and since when they count.
#[derive(Debug)]
pub(crate) struct Patience {
    time: Duration,
    bytes: u64,
    since: Option<Instant>,
}

/// What is to be done about a log that has cuts of files only.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Verdict {
    /// An exact cut is there, or nothing waits.
    Content,
    /// The limits are kept for this much longer at least.
    Waits(Duration),
    /// For so long cuts of files have been waiting.
    Over(Duration),
}

impl Patience {
    /// A limit of zero is none.
    pub(crate) fn new(time: Duration, bytes: u64) -> Self {
        Self { time, bytes, since: None }
    }

    /// `waiting`: bytes of complete change sets without an exact cut, `None` when there are none.
    pub(crate) fn look(&mut self, waiting: Option<u64>, now: Instant) -> Verdict {
        let Some(bytes) = waiting else {
            self.since = None;
            return Verdict::Content;
        };
        let age = now.saturating_duration_since(*self.since.get_or_insert(now));
        let over_time = !self.time.is_zero() && age >= self.time;
        let over_bytes = self.bytes > 0 && bytes >= self.bytes;
        if over_time || over_bytes {
            return Verdict::Over(age);
        }
        Verdict::Waits(if self.time.is_zero() { Duration::MAX } else { self.time - age })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_counts_from_the_first_cut_that_waits_and_anew_after_an_exact_one() {
        let (mut p, t) = (Patience::new(Duration::from_secs(10), 0), Instant::now());
        let at = |s| t + Duration::from_secs(s);
        assert_eq!(p.look(None, at(0)), Verdict::Content);
        assert_eq!(p.look(Some(1), at(100)), Verdict::Waits(Duration::from_secs(10)));
        assert_eq!(p.look(Some(1 << 40), at(109)), Verdict::Waits(Duration::from_secs(1)));
        assert_eq!(p.look(Some(2), at(110)), Verdict::Over(Duration::from_secs(10)));
        assert_eq!(p.look(None, at(111)), Verdict::Content);
        assert_eq!(p.look(Some(1), at(112)), Verdict::Waits(Duration::from_secs(10)));
    }

    #[test]
    fn bytes_count_alone_and_zero_is_no_limit() {
        let (mut p, t) = (Patience::new(Duration::ZERO, 100), Instant::now());
        assert_eq!(p.look(Some(99), t), Verdict::Waits(Duration::MAX));
        assert_eq!(p.look(Some(100), t + Duration::from_secs(1)), Verdict::Over(Duration::from_secs(1)));
        let mut none = Patience::new(Duration::ZERO, 0);
        assert_eq!(none.look(Some(u64::MAX), t), Verdict::Waits(Duration::MAX));
    }
}
