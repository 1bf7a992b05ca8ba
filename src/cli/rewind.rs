//! `towline rewind`: asks the daemon, or does it where none runs.

use std::fmt::Write as _;
use std::io::IsTerminal;
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::args::Rewind;
use super::restore::{interrupts, progress};
use super::{json_line, load, print};
use crate::config;
use crate::control::{self, Request};
use crate::daemon::{self, Oneshot};
use crate::error::{Error, ErrorKind, Result};
use crate::state;

/// The daemon says when the time is over; a moment longer its answer is waited for.
const GRACE: Duration = Duration::from_secs(5);
/// Between two lines of progress.
const TELL_EVERY: Duration = Duration::from_secs(1);
/// Between looks whether it is done.
const LOOK: Duration = Duration::from_millis(50);

pub(super) fn run(args: &Rewind) -> Result<ExitCode> {
    let of_node = load(args.config.as_deref())?;
    let none = || {
        Error::new(
            ErrorKind::Usage,
            "the configuration names no state directory; add the key 'state', or use --state DIR",
        )
    };
    let state = args.state.clone().or_else(|| of_node.state.clone()).ok_or_else(none)?;
    let leaders = args.leader.as_deref().map(daemon::addresses).unwrap_or_default();
    for address in &leaders {
        config::check_address("--leader", address, 1)
            .map_err(|e| Error::new(ErrorKind::Usage, e.to_string()))?;
    }
    let socket = state.join(state::SOCKET);
    let runs = control::answers(&socket);
    let answer = if runs {
        if args.data.is_some() {
            let text = "the daemon runs, and knows its data directory; --data is for a node that is stopped";
            return Err(Error::new(ErrorKind::Usage, text));
        }
        let (leader, dry_run, confirm) = (args.leader.clone(), args.dry_run, args.confirm);
        let ask = control::Rewind { leader, dry_run, confirm, timeout: Some(args.timeout) };
        let request = Request::Rewind(ask);
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            // A panic: the scope passes it on when the answer is there.
            scope.spawn(|| show_progress(&socket, &done));
            let answer = control::call(&socket, &request, args.timeout.0 + GRACE);
            done.store(true, Ordering::SeqCst);
            answer
        })?
    } else {
        let order = Oneshot {
            data: args.data.clone().or_else(|| of_node.data.clone()),
            leaders,
            dry_run: args.dry_run,
            confirm: args.confirm,
            config: of_node,
            state,
        };
        let cancel = CancellationToken::new();
        interrupts(cancel.clone())?;
        let tell = progress();
        daemon::rewind(&order, &move |p| tell(p), &cancel)?
    };
    print(&if args.json { json_line(&answer)? } else { words(&answer, runs) })
}

/// Says on a terminal how far a daemon is.
fn show_progress(socket: &Path, done: &AtomicBool) {
    let shown = std::io::stderr().is_terminal();
    let (mut last, mut said) = (Instant::now(), String::new());
    while !done.load(Ordering::SeqCst) {
        std::thread::sleep(LOOK);
        if !shown || last.elapsed() < TELL_EVERY {
            continue;
        }
        last = Instant::now();
        let Ok(status) = control::call(socket, &Request::Status, TELL_EVERY * 5) else { continue };
        let fill = &status["upstream"]["fill"];
        let mut text = status["state"].as_str().unwrap_or_default().to_owned();
        if fill.is_object() {
            let _ = write!(text, ": {} of {} bytes", fill["bytes"], fill["bytes_total"]);
        }
        if text != said {
            let _ = std::io::Write::write_all(&mut std::io::stderr().lock(), format!("{text}\n").as_bytes());
            said = text;
        }
    }
}

/// `runs`: its daemon does.
fn words(v: &Value, runs: bool) -> String {
    let text = |key: &str| match &v[key] {
        Value::String(s) => s.clone(),
        Value::Null => "unknown".to_owned(),
        other => other.to_string(),
    };
    let is = |key: &str| v[key].as_bool() == Some(true);
    let to = format!("'{}' ({})", text("leader"), text("address"));
    let mut out = String::new();
    // Writing to a text can't fail.
    let _ = match (v["way"].as_str().unwrap_or_default(), is("dry_run")) {
        ("nothing", _) if v["role"] == "leader" => writeln!(
            out,
            "nothing to do: this node leads timeline {} itself, and {to} is on the same; rewind those that were left behind",
            text("to_timeline")
        ),
        ("nothing", _) => writeln!(
            out,
            "nothing to do: this node is on the way of {to}, timeline {}; {}",
            text("to_timeline"),
            if runs { "it goes on as a follower by itself" } else { "a start of it as a follower goes on" }
        ),
        (way, true) => writeln!(
            out,
            "would go to timeline {} of {to}: its log ends at {}, the branch is at {}, {} bytes are past it; {}",
            text("to_timeline"),
            text("end"),
            text("branch"),
            text("left_behind_bytes"),
            if way == "in-place" {
                "in place, if the directory holds nothing that was not logged"
            } else {
                "what is past it is put into a bundle, and the directory made equal"
            }
        ),
        ("in-place", _) => {
            writeln!(out, "this node follows {to}: nothing was left behind, and nothing had to be moved")
        }
        _ => writeln!(
            out,
            "rewound to {to}; {} bytes of content were received; {}",
            text("received_bytes"),
            if runs { "the node follows it from here on" } else { "start the node, it follows" }
        ),
    };
    if let Some(changes) = v["changes"].as_object() {
        let parts: Vec<String> =
            changes.iter().filter(|(_, n)| n.as_u64() != Some(0)).map(|(k, n)| format!("{n} {k}")).collect();
        let _ = writeln!(
            out,
            "left behind: {}",
            if parts.is_empty() { "nothing".to_owned() } else { parts.join(", ") }
        );
    }
    if let Some(bundle) = v["bundle"].as_str() {
        let _ =
            writeln!(out, "kept in {bundle}: `towline lost-writes export {bundle} --out DIR` lays it out");
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_to_be_done_next_is_said_as_it_is() {
        let nothing = |role: &str| json!({"way": "nothing", "role": role, "leader": "b", "address": "b:1", "to_timeline": 2});
        assert!(words(&nothing("leader"), true).contains("leads timeline 2 itself"));
        assert!(words(&nothing("follower"), false).contains("a start of it as a follower goes on"));
        assert!(!words(&nothing("follower"), true).contains("start"));
        let done = json!({"way": "rewind", "leader": "b", "address": "b:1", "received_bytes": 7});
        assert!(words(&done, false).contains("start the node"));
        assert!(!words(&done, true).contains("start the node"));
    }
}
