//! `towline switchover`.

use std::process::ExitCode;
use std::time::Duration;

use serde_json::Value;

use super::args::{Ask, Switchover};
use super::show;
use crate::control::{self, Request};
use crate::error::Result;

/// The daemon says when the time is over, which begins to matter no more once nothing can be taken back: its answer is
/// waited for this much longer.
const GRACE: Duration = Duration::from_secs(40);

pub(super) fn run(args: Switchover) -> Result<ExitCode> {
    let Switchover { to, dry_run, stopped, at, json, timeout } = args;
    let request = control::Switchover { to, timeout: Some(timeout), dry_run, stopped };
    let mut ask = Ask { at, json, timeout };
    ask.timeout.0 += GRACE;
    show(&ask, &Request::Switchover(request), words)
}

fn words(v: &Value) -> String {
    let text = |key: &str| match v.get(key) {
        Some(Value::String(s)) => s.clone(),
        Some(n) if !n.is_null() => n.to_string(),
        _ => "unknown".to_owned(),
    };
    if v.get("dry_run").is_some() {
        let stops = match v.get("stops").and_then(Value::as_str) {
            Some("operator") => "the application is said to be stopped".to_owned(),
            Some(how) => format!("the application would be stopped by {how}"),
            None => String::new(),
        };
        return format!(
            "nothing stands against a switchover to '{}' at {}: it is {} bytes behind; {stops}\n",
            text("to"),
            text("address"),
            text("behind_bytes")
        );
    }
    let seconds = v.get("writes_stopped_seconds").and_then(Value::as_f64).unwrap_or_default();
    format!(
        "'{}' at {} leads timeline {} from {} on, and this node follows it\nwrites were stopped for {seconds:.3} s\n",
        text("to"),
        text("address"),
        text("timeline"),
        text("at")
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_answer_in_words_says_who_leads_and_how_long_nothing_was_written() {
        let done = json!({"switched": true, "to": "b", "address": "h:1", "timeline": 2, "at": "0/1000063",
            "writes_stopped_seconds": 0.1234});
        let text = words(&done);
        assert!(
            text.contains("'b' at h:1 leads timeline 2 from 0/1000063 on") && text.contains("0.123 s"),
            "{text}"
        );
        let dry =
            json!({"dry_run": true, "to": "b", "address": "h:1", "behind_bytes": 7, "stops": "on_demote"});
        assert!(words(&dry).contains("7 bytes behind; the application would be stopped by on_demote"));
    }
}
