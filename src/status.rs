//! What `towline status` shows. The JSON form is a contract: keys are only ever added.
//!
//! | key | meaning |
//! | --- | --- |
//! | `role`, `name`, `version`, `data` | who this is |
//! | `system`, `timeline` | what it replicates |
//! | `state` | `starting`, `filling`, `recovering`, `running`, `stopping`; `healing`: damaged log is fetched again; `stalled`: failed, tried again by itself; `corrupt`, `missing`, `diverged`, `refused`, `config`: failed, and needs help; `held`: a guard waits for `towline confirm` |
//! | `health` | `ok`; `starting`; `behind`; `paused`: stands still until `towline resume`; `cut-off`: a follower without its upstream, or whose upstream has had no news of the leader for too long; `retrying`: failed, may go away by itself; `help`: never goes on, or never catches up, without an operator |
//! | `error` | `null`, or what keeps the node from `running`: `kind`, `message`, `remedy`, `needs_help`, `since` and `next_retry` in ns since 1970 (`null`: it is not tried by time), `attempts` |
//! | `log` | `written`, `end`, `commit`, `exact`: positions; `segment`; `commit_time` in ns since 1970 |
//! | `capture` | leader only: cuts, gaps, holds, watches, what only a scan found |
//! | `apply` | follower only: `lsn`, `cut`, `state`, `paused`, local edits, skipped for lack of privilege |
//! | `upstream` | follower only: the node it follows, state of the connection, progress of a fill; `leader_silent`: seconds since that node had news of the leader, if it has none |
//! | `followers` | who is connected here: `name`, `state`, `sent`, `write`, `flush`, `apply` |
//! | `lag` | follower only: `bytes`, and `seconds`: age of the oldest commit not yet applied, `null` when all that is known are applied and there has been no news of the leader for longer than `peer_timeout`, directly or through the upstream |
//! | `guarantee` | one sentence: what holds right now |

use std::fmt::Write;

use serde::Serialize;
use serde_json::Value;

/// The whole answer.
#[derive(Clone, Debug, Default, Serialize)]
#[allow(missing_docs, reason = "the table of the module describes the keys")]
pub struct Status {
    pub role: &'static str,
    pub name: String,
    pub version: &'static str,
    pub data: String,
    pub system: String,
    pub timeline: u32,
    pub state: String,
    pub health: &'static str,
    pub error: Option<Failure>,
    pub log: Option<LogPart>,
    pub capture: Option<Value>,
    pub apply: Option<Value>,
    pub upstream: Option<Value>,
    pub followers: Vec<Value>,
    pub lag: Option<Lag>,
    pub guarantee: String,
}

/// What keeps the node from running.
#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs, reason = "the table of the module describes the keys")]
pub struct Failure {
    pub kind: &'static str,
    pub message: String,
    pub remedy: &'static str,
    pub needs_help: bool,
    pub since: i64,
    pub attempts: u64,
    pub next_retry: Option<i64>,
}

/// Positions of the node's own log.
#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs, reason = "the table of the module describes the keys")]
pub struct LogPart {
    pub written: String,
    pub end: String,
    pub commit: String,
    pub exact: String,
    pub segment: String,
    pub commit_time: i64,
}

/// How far behind a follower is.
#[derive(Clone, Copy, Debug, Serialize)]
#[allow(missing_docs, reason = "the table of the module describes the keys")]
pub struct Lag {
    pub bytes: u64,
    pub seconds: Option<f64>,
}

/// A follower whose oldest missing commit is older than this is behind.
const BEHIND_SECONDS: f64 = 1.0;

/// One word for a monitor: see the table of the module.
#[must_use]
pub fn health(s: &Status) -> &'static str {
    let upstream = s.upstream.as_ref().and_then(|u| u.get("state")).and_then(Value::as_str);
    match (&s.error, upstream) {
        (Some(e), _) if e.needs_help => "help",
        (Some(_), _) => "retrying",
        (None, Some("connecting" | "refused")) => "cut-off",
        _ if s.state != "running" => "starting",
        _ if s.upstream.as_ref().and_then(|u| u.get("leader_silent")).is_some_and(|v| !v.is_null()) => {
            "cut-off"
        }
        _ if s.apply.as_ref().and_then(|a| a.get("paused")).is_some_and(|p| p == true) => "paused",
        _ if s.lag.and_then(|l| l.seconds).is_some_and(|s| s >= BEHIND_SECONDS) => "behind",
        _ => "ok",
    }
}

/// How long ago, or how far ahead, a time is.
fn distance(ns: i64) -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let now = i64::try_from(now.as_nanos()).unwrap_or(i64::MAX);
    format!("{} s", now.abs_diff(ns) / 1_000_000_000)
}

/// The table for people.
#[must_use]
pub fn render(v: &Value) -> String {
    let text = |p: &str| match v.pointer(p) {
        None | Some(Value::Null) => "-".to_owned(),
        Some(Value::String(s)) => s.clone(),
        Some(other) => other.to_string(),
    };
    let mut out = String::new();
    let mut row = |k: &str, val: String| {
        let _ = writeln!(out, "{k:<12} {val}");
    };
    row("node", format!("{} ({}), towline {}", text("/name"), text("/role"), text("/version")));
    row("data", text("/data"));
    row("system", format!("{} timeline {}", text("/system"), text("/timeline")));
    row("state", text("/state"));
    row("health", text("/health"));
    if v.get("error").is_some_and(|e| !e.is_null()) {
        row("error", format!("{}: {}", text("/error/kind"), text("/error/message")));
        row("remedy", text("/error/remedy"));
        let number = |p: &str| v.pointer(p).and_then(Value::as_i64);
        let since = number("/error/since").map_or_else(String::new, |t| format!("for {}", distance(t)));
        let next = number("/error/next_retry").map_or_else(String::new, |t| {
            format!(", tried {} times, next in {}", text("/error/attempts"), distance(t))
        });
        row("since", since + &next);
    }
    row(
        "log",
        format!("commit {} exact {} end {}", text("/log/commit"), text("/log/exact"), text("/log/end")),
    );
    for part in ["capture", "apply", "upstream"] {
        if let Some(Value::Object(map)) = v.get(part) {
            row(part, flat(map));
        }
    }
    if v.get("lag").is_some_and(|l| !l.is_null()) {
        let age = v.pointer("/lag/seconds").and_then(Value::as_f64);
        let age = age.map_or_else(|| "age unknown".to_owned(), |s| format!("{s} s"));
        row("lag", format!("{} bytes, {age}", text("/lag/bytes")));
    }
    row("guarantee", text("/guarantee"));
    if let Some(Value::Array(followers)) =
        v.get("followers").filter(|f| f.as_array().is_some_and(|a| !a.is_empty()))
    {
        let _ = writeln!(
            out,
            "\n{:<20} {:<12} {:<14} {:<14} {:<14} {:<14}",
            "follower", "state", "sent", "write", "flush", "apply"
        );
        for f in followers {
            let cell = |k: &str| f.get(k).and_then(Value::as_str).unwrap_or("-").to_owned();
            let _ = writeln!(
                out,
                "{:<20} {:<12} {:<14} {:<14} {:<14} {:<14}",
                cell("name"),
                cell("state"),
                cell("sent"),
                cell("write"),
                cell("flush"),
                cell("apply")
            );
        }
    }
    out
}

/// `key value, key value`: nulls, zeros and empty lists say nothing and are left out.
fn flat(map: &serde_json::Map<String, Value>) -> String {
    let said = map.iter().filter(|(_, v)| match v {
        Value::Null | Value::Bool(false) => false,
        Value::Number(n) => n.as_f64() != Some(0.0),
        Value::String(s) => !s.is_empty(),
        Value::Array(a) => !a.is_empty(),
        Value::Object(o) => !o.is_empty(),
        Value::Bool(true) => true,
    });
    let parts: Vec<String> = said
        .map(|(k, v)| match v {
            Value::String(s) => format!("{k} {s}"),
            Value::Bool(true) => k.clone(),
            other => format!("{k} {other}"),
        })
        .collect();
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

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
        status.apply = Some(json!({"paused": true}));
        assert_eq!(health(&status), "paused");
        status.upstream = Some(json!({"state": "connecting"}));
        assert_eq!(health(&status), "cut-off", "the log does not come either");
        (status.upstream, status.apply, status.lag) = (None, None, None);
        assert_eq!(health(&status), "ok");
    }

    #[test]
    fn the_table_names_the_error_and_every_follower() {
        let v = json!({"name": "a", "role": "leader", "state": "stalled", "health": "retrying", "error": {"kind": "disk-full", "message": "no room", "remedy": "free space", "since": 0, "attempts": 3, "next_retry": 0},
            "capture": {"gaps": 2, "hold": null}, "lag": {"bytes": 5, "seconds": null}, "followers": [{"name": "b", "state": "streaming", "flush": "0/1"}]});
        let text = render(&v);
        assert!(
            [
                "disk-full: no room",
                "free space",
                "tried 3 times",
                "retrying",
                "streaming",
                "gaps 2",
                "5 bytes, age unknown"
            ]
            .iter()
            .all(|w| text.contains(w)),
            "{text}"
        );
        assert!(!text.contains("hold"), "{text}");
    }
}
