//! What each page says of a status document: pure. The role and the state decide, as a load balancer needs it.
//!
//! | page | 200 | 503 |
//! | --- | --- | --- |
//! | `/leader` | the node is the leader and watches its directory, a guard's hold included | it is a follower; its engines do not run |
//! | `/follower` | the node is a follower whose directory is usable, paused or cut off as it may be | it is the leader; no usable directory; it needs help, or something failed |
//! | `/follower?lag=L` | and it shows everything older than the span L, or all but L bytes | it is further behind, or how far is not known |
//! | `/sync` | the node is a follower whose confirmations count now | any other |
//! | `/healthy` | nothing is wrong; on its way or paused counts as right | `help`, `retrying`, `cut-off`, `frozen`, `degraded`, `fenced`, `vetoed`, `split` |
//! | `/ready` | as `/leader` on a leader and `/follower` on a follower | |
//!
//! A leader whose application is frozen for want of a quorum stays `/leader` and `/ready`: no other node may be written
//! to, and its writers go on when the quorum is back. `/healthy` tells that something is wrong.
//!
//! So that a load balancer does not see a node come and go while it hovers about a limit, one that was too far behind
//! counts as in step again only at half of that limit.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use serde_json::{Value, json};

use crate::config::{Size, Span};
use crate::status::{View, bytes, span, split};

/// The pages there are.
pub(super) const PAGES: [&str; 6] = ["/metrics", "/leader", "/follower", "/sync", "/healthy", "/ready"];
/// Most limits whose last answer is remembered.
const LIMITS: usize = 64;

/// A limit of the lag.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum LagLimit {
    /// Of its age.
    Age(Span),
    /// Of its bytes.
    Bytes(Size),
}

impl LagLimit {
    /// From a query: nothing, or `lag=SPAN` or `lag=SIZE`.
    pub(super) fn of_query(query: Option<&str>) -> Result<Option<Self>, String> {
        let bad = || "the query is lag=SPAN or lag=SIZE, like lag=10s or lag=16M".to_owned();
        let Some(query) = query.filter(|q| !q.is_empty()) else { return Ok(None) };
        let value = query.strip_prefix("lag=").ok_or_else(bad)?;
        let age = value.parse().map(Self::Age).ok();
        age.or_else(|| value.parse().map(Self::Bytes).ok()).map(Some).ok_or_else(bad)
    }
}

/// Which limits a node was last found beyond.
#[derive(Debug, Default)]
pub(super) struct Steps(Mutex<BTreeMap<LagLimit, bool>>);

impl Steps {
    /// Whether `lag` is within `limit`: its half, when it was beyond it before.
    fn within(&self, limit: LagLimit, lag: f64, most: f64) -> bool {
        let mut beyond = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let was = beyond.get(&limit).copied().unwrap_or(false);
        let within = lag <= if was { most / 2.0 } else { most };
        if beyond.len() >= LIMITS && !beyond.contains_key(&limit) {
            beyond.clear();
        }
        beyond.insert(limit, !within);
        within
    }
}

/// Whether a page says yes, and why.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Answer {
    pub(super) yes: bool,
    pub(super) reason: String,
}

fn yes(reason: impl Into<String>) -> Answer {
    Answer { yes: true, reason: reason.into() }
}

fn no(reason: impl Into<String>) -> Answer {
    Answer { yes: false, reason: reason.into() }
}

/// What `page` says. `None`: there is no such page.
pub(super) fn answer(page: &str, limit: Option<LagLimit>, v: View<'_>, steps: &Steps) -> Option<Answer> {
    Some(match page {
        "/leader" => leader(v),
        "/follower" => follower(v, limit, steps),
        "/sync" => sync(v),
        "/healthy" => healthy(v),
        "/ready" if v.text("/role") == "leader" => leader(v),
        "/ready" => follower(v, None, steps),
        _ => return None,
    })
}

/// The state, and what is wrong.
fn trouble(v: View<'_>) -> String {
    let message = v.text("/error/message");
    let state = v.text("/state");
    if message.is_empty() { format!("the node is {state}") } else { format!("{state}: {message}") }
}

fn leader(v: View<'_>) -> Answer {
    if v.text("/role") != "leader" {
        return no("this node is a follower");
    }
    match v.text("/state") {
        "running" if v.text("/health") == "frozen" => {
            yes(format!("this node is the leader; {}", unconfirmed(v)))
        }
        "running" => yes("this node is the leader"),
        // A mass delete waits for a word; whatever else is held means that the directory itself is not there.
        "held" if v.flag("/capture/hold_deletes") => {
            yes("this node is the leader; a guard holds what it would replicate")
        }
        _ => no(trouble(v)),
    }
}

fn follower(v: View<'_>, limit: Option<LagLimit>, steps: &Steps) -> Answer {
    if v.text("/role") != "follower" {
        return no("this node is the leader");
    }
    let health = v.text("/health");
    if v.has("/error") || matches!(health, "help" | "retrying" | "starting") {
        return no(trouble(v));
    }
    if !v.flag("/apply/consistent") {
        return no("the directory is not usable yet");
    }
    let Some(limit) = limit else { return yes(format!("this node is a follower; {health}")) };
    if health == "cut-off" {
        return no("cut off from the leader: how far behind is not known");
    }
    let (lag, most, text) = match limit {
        LagLimit::Age(most) => {
            let age = v.number("/lag/seconds");
            (
                age,
                most.0.as_secs_f64(),
                format!("{} behind", age.map_or_else(|| "an unknown time".to_owned(), span)),
            )
        }
        LagLimit::Bytes(most) => {
            #[allow(clippy::cast_precision_loss, reason = "a limit for people")]
            let most = most.0 as f64;
            (v.number("/lag/bytes"), most, format!("{} behind", bytes(v.count("/lag/bytes"))))
        }
    };
    match lag {
        Some(lag) if steps.within(limit, lag, most) => yes(text),
        _ => no(text),
    }
}

fn sync(v: View<'_>) -> Answer {
    if v.text("/role") != "follower" {
        return no("this node is the leader");
    }
    if v.has("/error") || matches!(v.text("/health"), "cut-off" | "starting") {
        return no(trouble(v));
    }
    match (v.text("/upstream/sync_state"), v.flag("/upstream/sync_counts")) {
        (state, true) => yes(format!("confirmations of this node count: {state}")),
        ("", false) => no("the upstream has not said that this node's confirmations count"),
        (state, false) => no(format!("confirmations of this node do not count: {state}")),
    }
}

/// What a leader that waits for followers wants.
fn unconfirmed(v: View<'_>) -> String {
    let count = format!("{} of {} followers count", v.count("/sync/present"), v.count("/sync/required"));
    match v.text("/sync/freeze_error") {
        _ if v.has("/sync/frozen_since") => {
            format!(
                "the application is frozen: {count}; start the others, or let it run with `towline sync release`"
            )
        }
        "" => format!("{count}; start the others"),
        error => format!("the application can't be frozen: {error}; {count}"),
    }
}

fn healthy(v: View<'_>) -> Answer {
    match v.text("/health") {
        "help" | "retrying" => no(trouble(v)),
        "cut-off" => no("cut off from the leader"),
        "frozen" | "degraded" => no(unconfirmed(v)),
        "fenced" | "vetoed" => no(trouble(v)),
        "split" => no(split(v).unwrap_or_default()),
        "" => no("the node says nothing of its health"),
        health => yes(health),
    }
}

/// The body of a page.
pub(super) fn body(answer: &Answer, v: View<'_>) -> Value {
    let part = |path: &str| v.0.pointer(path).cloned().unwrap_or_default();
    json!({
        "ok": answer.yes,
        "reason": answer.reason,
        "role": part("/role"),
        "name": part("/name"),
        "node": part("/node"),
        "state": part("/state"),
        "health": part("/health"),
        "timeline": part("/timeline"),
        "lag": part("/lag"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn says(page: &str, v: &Value) -> bool {
        answer(page, None, View(v), &Steps::default()).expect("a page").yes
    }

    fn node(role: &str, state: &str, health: &str) -> Value {
        let error = if matches!(health, "help" | "retrying" | "fenced" | "vetoed") {
            json!({"message": "m"})
        } else {
            Value::Null
        };
        json!({"role": role, "state": state, "health": health, "error": error, "apply": {"consistent": health != "starting"},
            "lag": {"bytes": 0, "seconds": 0.0}, "upstream": {"sync_state": "quorum", "sync_counts": true}})
    }

    #[test]
    fn every_role_in_every_health_is_answered_for_what_it_is() {
        // Pages that say yes, for a leader and for a follower.
        let table = [
            ("running", "ok", "/leader /healthy /ready", "/follower /sync /healthy /ready"),
            ("running", "behind", "", "/follower /sync /healthy /ready"),
            ("running", "paused", "", "/follower /sync /healthy /ready"),
            ("running", "cut-off", "", "/follower /ready"),
            ("running", "frozen", "/leader /ready", ""),
            ("running", "degraded", "/leader /ready", ""),
            ("starting", "starting", "/healthy", "/healthy"),
            ("filling", "starting", "/healthy", "/healthy"),
            ("stalled", "retrying", "", ""),
            ("diverged", "help", "", ""),
            ("refused", "help", "", ""),
            ("held", "help", "", ""),
            ("fenced", "fenced", "", ""),
            ("vetoed", "vetoed", "", ""),
            ("running", "split", "/leader /ready", ""),
        ];
        for (state, health, leader, follower) in table {
            for (role, want) in [("leader", leader), ("follower", follower)] {
                let other = if role == "leader" {
                    "behind paused cut-off"
                } else {
                    "frozen degraded fenced vetoed split"
                };
                if want.is_empty() && other.split(' ').any(|h| h == health) {
                    continue;
                }
                let v = node(role, state, health);
                let said: Vec<&str> = PAGES[1..].iter().copied().filter(|p| says(p, &v)).collect();
                assert_eq!(said.join(" "), want, "{role} {state} {health}");
            }
        }
    }

    #[test]
    fn a_frozen_application_is_said_with_what_lets_it_run() {
        let mut v = node("leader", "running", "frozen");
        v["sync"] = json!({"present": 0, "required": 1, "frozen_since": 5});
        for page in ["/healthy", "/leader"] {
            let reason = answer(page, None, View(&v), &Steps::default()).expect("a page").reason;
            for words in ["the application is frozen: 0 of 1 followers count", "`towline sync release`"] {
                assert!(reason.contains(words), "{page}: {reason}");
            }
        }
    }

    #[test]
    fn a_leader_whose_directory_is_gone_is_none_and_one_that_holds_a_mass_delete_is() {
        let mut v = node("leader", "held", "help");
        assert!(!says("/leader", &v) && !says("/ready", &v));
        v["capture"] = json!({"hold_deletes": true});
        assert!(says("/leader", &v) && says("/ready", &v) && !says("/healthy", &v));
    }

    #[test]
    fn a_lag_is_judged_by_its_limit_with_a_way_back() {
        let steps = Steps::default();
        let mut v = node("follower", "running", "ok");
        let limit = |q: &str| LagLimit::of_query(Some(q)).unwrap();
        let mut at = |seconds: f64, query: &str| {
            v["lag"] = json!({"seconds": seconds, "bytes": 1000});
            answer("/follower", limit(query), View(&v), &steps).unwrap().yes
        };
        assert!(at(10.0, "lag=10s") && !at(10.1, "lag=10s"));
        assert!(!at(9.0, "lag=10s"), "it was too far behind");
        assert!(at(9.0, "lag=11s"), "for this limit it was not");
        assert!(at(5.0, "lag=10s") && at(9.0, "lag=10s"));
        assert!(at(0.0, "lag=1000") && !at(0.0, "lag=999") && at(0.0, "lag=1k"));
        v["lag"] = json!({"seconds": null, "bytes": 0});
        assert!(!answer("/follower", limit("lag=1h"), View(&v), &steps).unwrap().yes, "it is not known");
        for bad in ["lag=", "lag=x", "lag=1s&lag=2s", "lags=1s", "x"] {
            assert!(LagLimit::of_query(Some(bad)).is_err(), "{bad}");
        }
        assert_eq!(LagLimit::of_query(None), Ok(None));
        for n in 0..1000 {
            answer("/follower", limit(&format!("lag={n}")), View(&v), &steps);
        }
        assert!(steps.0.lock().unwrap().len() <= LIMITS);
    }
}
