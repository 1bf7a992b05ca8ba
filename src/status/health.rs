//! One word for a monitor.

use serde_json::Value;

use super::{Status, SyncPart};

/// A follower whose oldest missing commit is older than this is behind.
const BEHIND_SECONDS: f64 = 1.0;

/// Every word of [`health`].
pub const HEALTHS: [&str; 13] = [
    "ok", "starting", "behind", "delayed", "paused", "degraded", "frozen", "cut-off", "retrying", "help",
    "fenced", "split", "vetoed",
];

/// One word for a monitor: see the table of the module.
#[must_use]
pub fn health(s: &Status) -> &'static str {
    let upstream = s.upstream.as_ref().and_then(|u| u.get("state")).and_then(Value::as_str);
    match (&s.error, upstream) {
        _ if s.state == "fenced" => "fenced",
        _ if s.state == "vetoed" => "vetoed",
        (Some(e), _) if e.needs_help => "help",
        (Some(_), _) => "retrying",
        (None, Some("connecting" | "refused")) => "cut-off",
        _ if s.sync.as_ref().is_some_and(|sync| sync.frozen_since.is_some()) => "frozen",
        _ if s.state != "running" => "starting",
        _ if !s.rivals.is_empty() => "split",
        _ if s.sync.as_ref().is_some_and(unconfirmed) => "degraded",
        _ if s.upstream.as_ref().and_then(|u| u.get("leader_silent")).is_some_and(|v| !v.is_null()) => {
            "cut-off"
        }
        _ if s.apply.as_ref().and_then(|a| a.get("paused")).is_some_and(|p| p == true) => "paused",
        _ if s
            .lag
            .and_then(|l| l.seconds)
            .is_some_and(|age| age >= BEHIND_SECONDS && age < delay(s) + BEHIND_SECONDS) =>
        {
            "delayed"
        }
        _ if s.lag.and_then(|l| l.seconds).is_some_and(|s| s >= BEHIND_SECONDS) => "behind",
        _ => "ok",
    }
}

/// Fewer followers count than have to confirm, or the application runs although it should not.
fn unconfirmed(sync: &SyncPart) -> bool {
    sync.freeze_error.is_some() || !sync.policy.is_empty() && !sync.satisfied
}

/// How long a follower is told to wait before it shows what it has.
fn delay(s: &Status) -> f64 {
    s.apply.as_ref().and_then(|a| a.get("delay")).and_then(Value::as_f64).unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::Lag;
    use serde_json::json;

    #[test]
    fn a_missing_quorum_is_not_well_and_a_frozen_application_is_worse() {
        let mut status = Status { role: "leader", state: "running".to_owned(), ..Status::default() };
        let mut with = |state: &str, edit: fn(&mut SyncPart)| {
            let mut sync = SyncPart { policy: "a".to_owned(), satisfied: true, ..SyncPart::default() };
            edit(&mut sync);
            (status.sync, status.state) = (Some(sync), state.to_owned());
            health(&status)
        };
        assert_eq!(with("running", |_| {}), "ok");
        assert_eq!(with("running", |s| *s = SyncPart::default()), "ok", "nobody is asked for");
        assert_eq!(with("running", |s| s.satisfied = false), "degraded");
        assert_eq!(with("running", |s| s.freeze_error = Some("no such cgroup".to_owned())), "degraded");
        for state in ["running", "starting"] {
            assert_eq!(with(state, |s| (s.satisfied, s.frozen_since) = (false, Some(1))), "frozen");
        }
        assert_eq!(with("starting", |s| s.satisfied = false), "starting");
        assert!(HEALTHS.contains(&"frozen") && HEALTHS.contains(&"degraded"));
    }

    #[test]
    fn behind_is_what_catches_up_and_paused_what_does_not() {
        let mut status = Status {
            role: "follower",
            state: "running".to_owned(),
            lag: Some(Lag { bytes: 9, seconds: Some(2.0) }),
            apply: Some(json!({"paused": false})),
            ..Status::default()
        };
        assert_eq!(health(&status), "behind");
        assert!(HEALTHS.contains(&health(&status)));
        status.apply = Some(json!({"paused": false, "delay": 60.0}));
        assert_eq!(health(&status), "delayed");
        status.lag = Some(Lag { bytes: 9, seconds: Some(61.5) });
        assert_eq!(health(&status), "behind", "the delay alone does not explain that");
        status.apply = Some(json!({"paused": true}));
        assert_eq!(health(&status), "paused");
        status.upstream = Some(json!({"state": "connecting"}));
        assert_eq!(health(&status), "cut-off", "the log does not come either");
        (status.upstream, status.apply, status.lag) = (None, None, None);
        assert_eq!(health(&status), "ok");
    }
}
