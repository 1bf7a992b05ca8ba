//! What the engines have counted that ran in this process before the present ones: a repair, a reload or a failure begins
//! new ones, and no count in `status` or the metrics begins anew with them.

use std::collections::BTreeMap;
use std::time::Instant;

use serde_json::Value;

use crate::state::Role;
use crate::status::{Lag, Status};

/// What of the part `capture` is a count.
const CAPTURE: [&str; 10] = [
    "/cuts_exact",
    "/cuts_file",
    "/gaps",
    "/events",
    "/overflows",
    "/found_by_scan",
    "/freezes",
    "/freeze_failures",
    "/freeze_clones",
    "/freeze_read_bytes",
];
/// The same of the part `apply`.
const APPLY: [&str; 12] = [
    "/commits",
    "/records",
    "/batches",
    "/checkpoints",
    "/inexact_applied",
    "/local_edits_total",
    "/local_edits_repaired",
    "/scrub/files",
    "/scrub/bytes",
    "/scrub/passes",
    "/scrub/skipped",
    "/scrub/mismatches",
];
/// The files that were found damaged first; so many are named.
const DAMAGED: &str = "/scrub/damaged";
const DAMAGED_MAX: usize = 16;

/// The sums of them.
#[derive(Clone, Default, Debug)]
pub(crate) struct Tally {
    capture: BTreeMap<&'static str, u64>,
    apply: BTreeMap<&'static str, u64>,
    damaged: Vec<Value>,
    /// How far behind the directory was when the last engines ended that knew, and when that was.
    lag: Option<(Lag, Instant)>,
}

impl Tally {
    /// Engines have ended that showed this.
    pub(super) fn add(&mut self, capture: Option<&Value>, apply: Option<&Value>) {
        let count = |part: Option<&Value>, at| part.and_then(|p| p.pointer(at)?.as_u64()).unwrap_or(0);
        CAPTURE.iter().for_each(|at| *self.capture.entry(at).or_default() += count(capture, at));
        APPLY.iter().for_each(|at| *self.apply.entry(at).or_default() += count(apply, at));
        let damaged = apply.and_then(|p| p.pointer(DAMAGED)?.as_array()).into_iter().flatten();
        self.damaged.extend(damaged.cloned());
        self.damaged.truncate(DAMAGED_MAX);
    }

    /// Engines have ended when the directory was so far behind.
    pub(super) fn left(&mut self, lag: Option<Lag>, now: Instant) {
        self.lag = lag.map(|lag| (lag, now)).or(self.lag);
    }

    /// Adds them to what the present ones show. A follower that stands still is at least as far behind as it was: what was
    /// not shown then grows older, and what came since nobody here knows.
    pub(super) fn put(&self, status: &mut Status, now: Instant) {
        if let Some((lag, at)) =
            self.lag.filter(|_| status.lag.is_none() && status.role == Role::Follower.word())
        {
            let since = now.saturating_duration_since(at).as_secs_f64();
            let seconds = lag.seconds.filter(|age| *age > 0.0).map(|age| age + since);
            status.lag = Some(Lag { seconds, ..lag });
        }
        let raise = |part: &mut Value, sums: &BTreeMap<&'static str, u64>| {
            for (at, sum) in sums {
                if let Some(now) = part.pointer_mut(at) {
                    *now = now.as_u64().unwrap_or(0).saturating_add(*sum).into();
                }
            }
        };
        if let Some(part) = &mut status.capture {
            raise(part, &self.capture);
        }
        if let Some(part) = &mut status.apply {
            raise(part, &self.apply);
            if let Some(now) = part.pointer_mut(DAMAGED).and_then(Value::as_array_mut) {
                let all = self.damaged.iter().chain(now.iter()).take(DAMAGED_MAX).cloned().collect();
                *now = all;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;
    use crate::apply::ApplyStats;
    use crate::capture::CaptureStats;

    #[test]
    fn counts_go_on_and_states_are_the_present_ones() {
        let mut tally = Tally::default();
        let capture = |n| json!({"gaps": n, "gap_open": true, "hot_files": n});
        let apply = |n, file: &str| json!({"commits": n, "suspects": n, "scrub": {"mismatches": n, "damaged": [{"path": file}]}});
        tally.add(Some(&capture(2)), None);
        tally.add(None, Some(&apply(3, "a")));
        tally.add(Some(&capture(1)), Some(&apply(4, "b")));
        let mut status =
            Status { capture: Some(capture(5)), apply: Some(apply(6, "c")), ..Status::default() };
        tally.put(&mut status, Instant::now());
        let damaged = json!([{"path": "a"}, {"path": "b"}, {"path": "c"}]);
        assert_eq!(status.capture, Some(json!({"gaps": 8, "gap_open": true, "hot_files": 5})));
        let scrub = json!({"mismatches": 13, "damaged": damaged});
        assert_eq!(status.apply, Some(json!({"commits": 13, "suspects": 6, "scrub": scrub})));
        // Without engines nothing is shown.
        let mut none = Status::default();
        tally.put(&mut none, Instant::now());
        assert!(none.capture.is_none() && none.apply.is_none());
    }

    #[test]
    fn a_follower_that_stands_still_is_as_far_behind_as_it_was_and_longer() {
        let now = Instant::now();
        let later = now + Duration::from_secs(10);
        let shown = |lag: Option<Lag>, role, own: Option<Lag>| {
            let mut tally = Tally::default();
            tally.left(lag, now);
            // One that ended before it knew anything.
            tally.left(None, later);
            let mut status = Status { role, lag: own, ..Status::default() };
            tally.put(&mut status, later);
            status.lag.map(|l| (l.bytes, l.seconds))
        };
        let lag = |seconds| Some(Lag { bytes: 7, seconds });
        assert_eq!(shown(lag(Some(2.0)), "follower", None), Some((7, Some(12.0))));
        assert_eq!(shown(lag(Some(0.0)), "follower", None), Some((7, None)), "what came since is not known");
        assert_eq!(shown(lag(None), "follower", None), Some((7, None)));
        assert_eq!(shown(lag(Some(2.0)), "leader", None), None, "it was promoted");
        assert_eq!(shown(lag(Some(2.0)), "follower", lag(Some(1.0))), Some((7, Some(1.0))), "it runs again");
        assert_eq!(shown(None, "follower", None), None);
    }

    #[test]
    fn each_count_is_one_that_the_engines_show() {
        let capture = serde_json::to_value(CaptureStats::default()).unwrap();
        let apply = serde_json::to_value(ApplyStats::default()).unwrap();
        assert!(CAPTURE.iter().all(|at| capture.pointer(at).is_some_and(Value::is_u64)));
        assert!(APPLY.iter().all(|at| apply.pointer(at).is_some_and(Value::is_u64)));
        assert!(apply.pointer(DAMAGED).is_some_and(Value::is_array));
    }
}
