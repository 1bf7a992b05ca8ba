//! The answer for people.

use std::fmt::Write;

use serde_json::Value;

/// How long ago, or how far ahead, a time is.
fn distance(ns: i64) -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let now = i64::try_from(now.as_nanos()).unwrap_or(i64::MAX);
    format!("{} s", now.abs_diff(ns) / 1_000_000_000)
}

/// One line about synchronous replication.
fn synchronous(v: &Value) -> String {
    let text = |p: &str| v.pointer(p).and_then(Value::as_str).unwrap_or("-").to_owned();
    let number = |p: &str| v.pointer(p).and_then(Value::as_i64);
    let mut out = format!("{} at level {}, ", text("/sync/policy"), text("/sync/level"));
    let (present, required) = (number("/sync/present"), number("/sync/required"));
    let _ = match number("/sync/missing_since") {
        None => write!(out, "satisfied, confirmed up to {}", text(&format!("/sync/{}", text("/sync/level")))),
        Some(since) => write!(
            out,
            "MISSING for {}: {} of {} followers count",
            distance(since),
            present.unwrap_or(0),
            required.unwrap_or(0)
        ),
    };
    if let Some(since) = number("/sync/frozen_since") {
        let _ = write!(
            out,
            "; the application is FROZEN for {}: `towline sync release` thaws it",
            distance(since)
        );
    }
    if let Some(until) = number("/sync/override_until") {
        let _ = write!(out, "; released by an operator for {} more", distance(until));
    }
    if let Some(error) = v.pointer("/sync/freeze_error").and_then(Value::as_str) {
        let _ = write!(out, "; the application can't be frozen: {error}");
    }
    if let Some(waiters) = number("/sync/waiters").filter(|n| *n > 0) {
        let _ = write!(out, "; {waiters} callers wait");
    }
    out
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
    if v.pointer("/sync/policy").and_then(Value::as_str).is_some_and(|p| !p.is_empty()) {
        row("sync", synchronous(v));
    }
    row("guarantee", text("/guarantee"));
    if let Some(Value::Array(followers)) =
        v.get("followers").filter(|f| f.as_array().is_some_and(|a| !a.is_empty()))
    {
        let _ = writeln!(
            out,
            "\n{:<20} {:<12} {:<14} {:<14} {:<14} {:<14} {:<9}",
            "follower", "state", "sent", "write", "flush", "apply", "sync"
        );
        for f in followers {
            let cell = |k: &str| f.get(k).and_then(Value::as_str).unwrap_or("-").to_owned();
            let _ = writeln!(
                out,
                "{:<20} {:<12} {:<14} {:<14} {:<14} {:<14} {:<9}",
                cell("name"),
                cell("state"),
                cell("sent"),
                cell("write"),
                cell("flush"),
                cell("apply"),
                cell("sync_state")
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
