//! `towline wait`: asks, prints how it ended, and says the same by its exit code.
//!
//! | code | meaning |
//! | --- | --- |
//! | 0 | replicated; on a follower: reached |
//! | 1 | local only: durable in the leader's log, not confirmed in time or cancelled; on a follower: not reached |
//! | 2 | unknown: nothing of the above is certain |
//! | 10 | refused: the node is a follower and no position was given |
//! | 64 | wrong usage, as with the other commands |
//!
//! An interrupt (SIGINT, SIGTERM) cancels: the daemon answers with what is certain then. A second one ends at once, with 2.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};
use serde_json::{Value, json};

use super::args::WaitArgs;
use super::{json_line, print};
use crate::control::{self, LINE_MAX, Request, WAIT_TIMEOUT};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::status::plain;

/// Exit code for wrong usage: EX_USAGE of sysexits.h.
pub(super) const USAGE: u8 = 64;
/// Exit code of an unknown outcome.
const UNKNOWN: u8 = 2;
/// How much longer than the wait itself its answer may take.
const GRACE: Duration = Duration::from_secs(5);

/// Runs the command.
pub(super) fn run(args: &WaitArgs) -> Result<ExitCode> {
    let ask = control::Wait {
        level: args.level,
        timeout: args.timeout,
        policy: args.policy.clone(),
        lsn: args.lsn.clone(),
    };
    let limit = args.timeout.map_or(WAIT_TIMEOUT, |t| t.0) + GRACE;
    let socket = super::socket(&args.at);
    let answer = match socket.and_then(|socket| call(&socket, ask, limit)) {
        Ok(answer) => answer,
        Err(e) if e.kind() == ErrorKind::Refused => return Err(e),
        Err(e) if matches!(e.kind(), ErrorKind::Usage | ErrorKind::Config) => {
            eprint(&format!("towline: {e}\n"));
            return Ok(ExitCode::from(USAGE));
        }
        Err(e) => json!({"result": "unknown", "reason": e.to_string()}),
    };
    print(&if args.json { json_line(&answer)? } else { words(&answer) })?;
    if let Some(hint) = answer.get("hint").and_then(Value::as_str) {
        eprint(&format!("towline: hint: {}\n", plain(hint)));
    }
    Ok(match answer.get("result").and_then(Value::as_str) {
        Some("replicated" | "reached") => ExitCode::SUCCESS,
        Some("local-only" | "not-reached") => ExitCode::from(1),
        _ => ExitCode::from(UNKNOWN),
    })
}

fn eprint(text: &str) {
    let _ = std::io::stderr().lock().write_all(text.as_bytes());
}

/// One line for people.
fn words(answer: &Value) -> String {
    let text = |k: &str| answer.get(k).and_then(Value::as_str).unwrap_or("-");
    let number = |k: &str| answer.get(k).and_then(Value::as_f64).unwrap_or(0.0);
    let by: Vec<&str> = answer
        .get("confirmed_by")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    match text("result") {
        "replicated" => format!(
            "replicated {} ({} by {}), captured in {:.1} ms, confirmed in {:.1} ms\n",
            text("lsn"),
            text("level"),
            by.join(", "),
            number("capture_ms"),
            number("confirm_ms")
        ),
        "local-only" => format!(
            "local only {}: {}; captured in {:.1} ms\n",
            text("lsn"),
            text("reason"),
            number("capture_ms")
        ),
        "reached" => {
            format!("reached {} ({}) in {:.1} ms\n", text("lsn"), text("level"), number("elapsed_ms"))
        }
        "not-reached" => format!("not reached {} ({}): {}\n", text("lsn"), text("level"), text("reason")),
        _ => format!("unknown: {}\n", text("reason")),
    }
}

/// Asks the daemon; interrupts of this process cancel the wait.
fn call(socket: &Path, ask: control::Wait, limit: Duration) -> Result<Value> {
    let mut interrupts = SigSet::empty();
    interrupts.add(Signal::SIGINT);
    interrupts.add(Signal::SIGTERM);
    // Before there is another thread, so that none takes them.
    interrupts.thread_block().map_err(std::io::Error::from).context(|| "cannot listen to signals")?;
    let unavailable = |text: String| Error::new(ErrorKind::Unavailable, text);
    let stream = control::connect(socket)?;
    let lost = "the daemon was lost before it answered";
    let gone = |e: std::io::Error| unavailable(format!("{lost}: {e}"));
    stream.set_read_timeout(Some(limit)).map_err(gone)?;
    let mut canceller = stream.try_clone().map_err(gone)?;
    // A panic: the command ends all the same.
    std::thread::spawn(move || {
        if interrupts.wait().is_ok() {
            let _ = canceller.write_all(b"{\"command\":\"cancel\"}\n");
        }
        if interrupts.wait().is_ok() {
            eprint("unknown: interrupted twice\n");
            std::process::exit(i32::from(UNKNOWN));
        }
    });
    let mut text = serde_json::to_string(&Request::Wait(ask))
        .map_err(|e| Error::new(ErrorKind::Usage, e.to_string()))?;
    text.push('\n');
    (&stream).write_all(text.as_bytes()).map_err(gone)?;
    let mut line = String::new();
    BufReader::new(stream.take(LINE_MAX)).read_line(&mut line).map_err(gone)?;
    if !line.ends_with('\n') {
        return Err(unavailable(lost.to_owned()));
    }
    control::judge(&line)
}
