//! `towline promote`.

use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use serde_json::Value;

use super::args::Promote;
use super::show;
use crate::control::{self, Request};
use crate::error::Result;

/// The daemon says when the time is over; a moment longer its answer is waited for.
const GRACE: Duration = Duration::from_secs(5);

pub(super) fn run(args: Promote) -> Result<ExitCode> {
    let Promote { to, dry_run, wait, force, mut ask } = args;
    let request = control::Promote { to, dry_run, wait, force, timeout: Some(ask.timeout) };
    ask.timeout.0 += GRACE;
    show(&ask, &Request::Promote(request), words)
}

fn words(v: &Value) -> String {
    let text = |path: &str| match v.pointer(path) {
        Some(Value::String(s)) => s.clone(),
        Some(n) if !n.is_null() => n.to_string(),
        _ => "unknown".to_owned(),
    };
    let cut = |at: &str| format!("{} ({} cut)", text(&format!("/{at}/lsn")), text(&format!("/{at}/cut")));
    if v.get("role").is_some() {
        let timeline = text("/timeline");
        if v.get("forced").is_some() {
            return format!(
                "forced: this node leads on, on timeline {timeline}; its own timeline before that ends at {}, and those up to {} are left \
                 behind\n",
                text("/branch"),
                text("/above")
            );
        }
        if v.get("after").is_none() {
            return format!("this node is the leader already, of timeline {timeline}\n");
        }
        let mut out = format!("promoted: this node is the leader of timeline {timeline}\n");
        // Writing to a text can't fail.
        let _ = writeln!(out, "the directory stood at {}, and stands at {} now", cut("before"), cut("after"));
        let _ = writeln!(
            out,
            "the old timeline ends at {}; {} bytes of its log that were here do not count; bytes beyond it that its leader was known to have: {}",
            text("/branch"),
            text("/dropped_bytes"),
            text("/lost_bytes")
        );
        return out;
    }
    let begins = v.get("promotion").is_some();
    if v.get("force").is_some() {
        return match begins {
            true => "a new timeline begins; `towline status` shows when this node leads\n".to_owned(),
            false => format!(
                "would lead on, on a new timeline above {}, from the end of its log on, which is at or after {}\n",
                text("/above"),
                text("/branch")
            ),
        };
    }
    format!(
        "{}: from {} to {}; the old timeline ends at {}\n{} bytes of its log that are here would not count; its leader was heard at \
         {}, bytes after that cut: {}\n{}",
        if begins { "the promotion begins" } else { "would be promoted" },
        cut("now"),
        cut("then"),
        text("/branch"),
        text("/dropped_bytes"),
        text("/leader_known_to"),
        text("/missing_bytes"),
        match v.get("would_be_refused").and_then(Value::as_str) {
            _ if begins => "`towline status` shows when it leads\n".to_owned(),
            Some(why) => format!("it would be refused: {why}\n"),
            None => String::new(),
        }
    )
}
