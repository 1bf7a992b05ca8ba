//! `towline check`: one line and an exit code for cron, Nagios and their kin. It asks the daemon and changes nothing;
//! when nobody answers it says why.

use std::fs;
use std::io::ErrorKind as IoKind;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;
use std::sync::mpsc;
use std::time::Duration;

use serde_json::{Value, json};

use super::args::Check;
use crate::control::{self, Request};
use crate::error::Result;
use crate::state::StateDir;
use crate::status::{Verdict, View, plain, verdict};

/// Exit code when nothing is known of the node.
const UNKNOWN: u8 = 3;

pub(super) fn run(args: &Check) -> Result<ExitCode> {
    let judged = ask(args).and_then(|status| verdict(View(&status), &args.limits()).map(|v| (v, status)));
    let (text, code) = match &judged {
        Ok((verdict, status)) => (shown(verdict, status, args.json), verdict.severity as u8),
        Err(why) => (unknown(why, args.json), UNKNOWN),
    };
    super::print(&text)?;
    Ok(ExitCode::from(code))
}

/// The end of a check that could not even ask.
pub(super) fn fail(why: &str, json: bool) -> ExitCode {
    let _ = super::print(&unknown(why, json));
    ExitCode::from(UNKNOWN)
}

/// The answer when nothing is known.
fn unknown(why: &str, json: bool) -> String {
    if json {
        return format!(
            "{}\n",
            json!({"severity": "unknown", "code": UNKNOWN, "summary": why, "problems": [], "figures": []})
        );
    }
    format!("TOWLINE UNKNOWN - {}\n", plain(why).replace('|', "/"))
}

fn shown(verdict: &Verdict, status: &Value, json: bool) -> String {
    if !json {
        return verdict.line() + "\n";
    }
    let mut value = serde_json::to_value(verdict).unwrap_or_default();
    if let Some(map) = value.as_object_mut() {
        map.insert("code".to_owned(), json!(verdict.severity as u8));
        map.insert("health".to_owned(), status["health"].clone());
    }
    format!("{value}\n")
}

/// The status of the daemon, or why there is none. It never takes longer than was allowed, whatever the daemon, the
/// socket and the file system do.
fn ask(args: &Check) -> std::result::Result<Value, String> {
    let (at, timeout) = (args.at.clone(), args.timeout.0);
    let (tx, rx) = mpsc::channel();
    // A panic: the command ends all the same.
    std::thread::spawn(move || {
        let answer = super::socket(&at).map_err(|e| e.to_string()).and_then(|socket| {
            // A socket that was named may be anywhere; else it tells the state directory.
            let state = if at.socket.is_none() { socket.parent() } else { None };
            answer(state, &socket, timeout)
        });
        let _ = tx.send(answer);
    });
    rx.recv_timeout(timeout).unwrap_or_else(|_| {
        Err(format!("no answer within {}; is the daemon stopped, or its disk stuck?", args.timeout))
    })
}

fn answer(state: Option<&Path>, socket: &Path, timeout: Duration) -> std::result::Result<Value, String> {
    match UnixStream::connect(socket) {
        Ok(_) => control::call(socket, &Request::Status, timeout).map_err(|e| e.to_string()),
        Err(e) => Err(unreachable(state, socket, &e)),
    }
}

/// Why nobody answers.
fn unreachable(state: Option<&Path>, socket: &Path, e: &std::io::Error) -> String {
    let at = state.unwrap_or(socket).display();
    let denied = || format!("no permission to ask the daemon at '{at}'; run as its user");
    if e.kind() == IoKind::PermissionDenied {
        return denied();
    }
    let Some(dir) = state else {
        return match e.kind() {
            IoKind::NotFound => format!("no socket '{at}': the daemon is not running, or keeps it elsewhere"),
            IoKind::ConnectionRefused => format!("the daemon of socket '{at}' is not running"),
            _ => format!("socket '{at}' can't be asked: {e}"),
        };
    };
    match fs::metadata(dir) {
        Err(m) if m.kind() == IoKind::NotFound => format!("no such state directory '{at}'"),
        Err(m) if m.kind() == IoKind::PermissionDenied => denied(),
        Err(m) => format!("state directory '{at}' can't be looked at: {m}"),
        Ok(m) if !m.is_dir() => format!("'{at}' is no directory"),
        Ok(_) if !StateDir::is_set_up(dir) => format!("'{at}' is no state directory of towline"),
        Ok(_) if matches!(e.kind(), IoKind::NotFound | IoKind::ConnectionRefused) => {
            format!("the daemon of state directory '{at}' is not running")
        }
        Ok(_) => format!("the daemon of state directory '{at}' can't be asked: {e}"),
    }
}
