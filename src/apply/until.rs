//! How much of the log may become visible: a delay behind the leader, and a target to stop at.
//!
//! As with PostgreSQL's `recovery_min_apply_delay` a change set waits until its commit is so old, by the leader's
//! clock; log is received and flushed meanwhile. As with its recovery targets, replay ends before the first change
//! set that is past the target.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::moment::Moment;
use crate::position::Lsn;
use crate::record::PointName;

/// Where replay stops.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StopAt {
    /// On the last cut at or before this position.
    Lsn(Lsn),
    /// On the last cut whose commit is not later than this, nanoseconds since 1970 by the leader's clock.
    Time(i64),
    /// On the first exact cut.
    Exact,
    /// On the cut of this restore point.
    Point(PointName),
}

impl fmt::Display for StopAt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lsn(lsn) => write!(f, "{lsn}"),
            Self::Time(ns) => Moment(*ns).fmt(f),
            Self::Exact => f.write_str("exact"),
            Self::Point(name) => name.fmt(f),
        }
    }
}

impl FromStr for StopAt {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        if s == "exact" {
            return Ok(Self::Exact);
        }
        if s.contains('/') {
            return s.parse().map(Self::Lsn).map_err(|e| format!("'{s}' is no position: {e}"));
        }
        if let Ok(name) = s.parse() {
            return Ok(Self::Point(name));
        }
        let wrong = || {
            format!(
                "'{}' is no target; write a position like 0/16B3748, a time with its zone like \
                 2026-11-25T17:30:00Z or 2026-11-25 18:30:00+01:00, exact, or the name of a restore point",
                s.escape_debug()
            )
        };
        s.parse().map(|Moment(ns)| Self::Time(ns)).map_err(|_| wrong())
    }
}

/// What may be applied at present.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Until {
    pub(crate) delay: Duration,
    pub(crate) stop: Option<StopAt>,
}

/// What a change set says about itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Commit {
    pub(crate) end: Lsn,
    /// When it was committed; `None`: it was aborted, or nobody asked.
    pub(crate) time: Option<i64>,
    pub(crate) exact: bool,
    /// It is the restore point that is looked for.
    pub(crate) point: bool,
}

impl Until {
    /// Whether there is log that must not be applied yet.
    pub(crate) fn bounded(&self) -> bool {
        self.stop.is_some() || !self.delay.is_zero()
    }

    /// Whether more has to be known of commits than the headers of their frames say: times, or the restore point.
    pub(crate) fn inside(&self) -> bool {
        !self.delay.is_zero() || matches!(self.stop, Some(StopAt::Time(_) | StopAt::Point(_)))
    }

    /// The restore point that is looked for.
    pub(crate) fn point(&self) -> Option<PointName> {
        match self.stop {
            Some(StopAt::Point(name)) => Some(name),
            _ => None,
        }
    }

    /// Whether a change set is past the target.
    pub(crate) fn past(&self, c: Commit) -> bool {
        match self.stop {
            Some(StopAt::Lsn(target)) => c.end > target,
            Some(StopAt::Time(target)) => c.time.is_some_and(|t| t > target),
            Some(StopAt::Exact | StopAt::Point(_)) | None => false,
        }
    }

    /// Whether replay ends on this cut whatever follows.
    pub(crate) fn ends_on(&self, c: Commit) -> bool {
        match self.stop {
            Some(StopAt::Lsn(target)) => c.end == target,
            Some(StopAt::Exact) => c.exact,
            Some(StopAt::Point(_)) => c.point,
            Some(StopAt::Time(_)) | None => false,
        }
    }

    /// When a commit of this time may become visible, by the leader's clock.
    pub(crate) fn due(&self, time: Option<i64>) -> i64 {
        let delay = i64::try_from(self.delay.as_nanos()).unwrap_or(i64::MAX);
        if delay == 0 { i64::MIN } else { time.map_or(i64::MIN, |t| t.saturating_add(delay)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_read_and_shown() {
        for (text, want, shown) in [
            ("exact", StopAt::Exact, "exact"),
            ("v16.2", StopAt::Point("v16.2".parse().unwrap()), "v16.2"),
            ("0/16B3748", StopAt::Lsn(Lsn(0x16B_3748)), "0/016B3748"),
            ("1970-01-01T00:00:00Z", StopAt::Time(0), "1970-01-01T00:00:00Z"),
            ("2000-02-29 23:59:59.25Z", StopAt::Time(951_868_799_250_000_000), "2000-02-29T23:59:59.25Z"),
            ("2026-11-25T18:30:00+01:00", StopAt::Time(1_795_627_800_000_000_000), "2026-11-25T17:30:00Z"),
            ("1969-12-31T23:59:59Z", StopAt::Time(-1_000_000_000), "1969-12-31T23:59:59Z"),
        ] {
            let got: StopAt = text.parse().unwrap();
            assert_eq!((got, got.to_string().as_str()), (want, shown), "{text}");
        }
        for bad in ["", "now", "2026-11-25", "17:30:00", "2026-11-25T17:30:00", "x/y", "Exact", "9999999999"]
        {
            let e = bad.parse::<StopAt>().unwrap_err();
            assert!(e.contains(&format!("'{bad}'")), "{e}");
        }
    }

    #[test]
    fn what_is_past_and_what_ends_it() {
        let commit = |end, time, exact| Commit { end: Lsn(end), time: Some(time), exact, point: false };
        let until = |stop| Until { delay: Duration::ZERO, stop };
        let lsn = until(Some(StopAt::Lsn(Lsn(10))));
        assert!(!lsn.past(commit(10, 0, false)) && lsn.past(commit(11, 0, true)));
        assert!(lsn.ends_on(commit(10, 0, false)) && !lsn.ends_on(commit(9, 0, true)));
        let time = until(Some(StopAt::Time(10)));
        assert!(!time.past(commit(1, 10, true)) && time.past(commit(1, 11, true)));
        assert!(
            !time.past(Commit { end: Lsn(1), time: None, exact: false, point: false }),
            "an abort has no time"
        );
        let exact = until(Some(StopAt::Exact));
        assert!(!exact.past(commit(1, 1, true)) && exact.ends_on(commit(1, 1, true)));
        assert!(!exact.ends_on(commit(1, 1, false)));
        let delayed = Until { delay: Duration::from_nanos(5), stop: None };
        assert_eq!(
            (delayed.due(Some(7)), delayed.due(None), until(None).due(Some(7))),
            (12, i64::MIN, i64::MIN)
        );
        assert!(delayed.bounded() && delayed.inside() && !until(None).bounded() && !lsn.inside());
        let point = until(Some("before".parse().unwrap()));
        let found = Commit { point: true, ..commit(1, 1, true) };
        assert!(point.inside() && point.ends_on(found) && !point.ends_on(commit(1, 1, true)));
        assert!(!point.past(found) && !point.past(commit(99, 99, true)), "it may come yet");
    }
}
