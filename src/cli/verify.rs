//! `towline verify`: prints what is wrong, and says by its exit code whether anything is.
//!
//! | code | meaning |
//! | --- | --- |
//! | 0 | all of it is as it was written |
//! | 1 | there are problems |
//! | 64 | wrong usage, or there is nothing that could be checked |

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::ExitCode;

use super::args::Verify;
use super::{archive, json_line, print};
use crate::error::{Error, ErrorKind, Result};
use crate::status::bytes;
use crate::verify::{self, Order, Outcome};

/// Exit code for wrong usage: EX_USAGE of sysexits.h.
pub(super) const USAGE: u8 = 64;

/// Runs the command.
pub(super) fn run(args: &Verify) -> Result<ExitCode> {
    let order = Order {
        path: args.path.clone(),
        ignore: args.ignore.clone(),
        content: !args.no_content,
        log: !args.no_log,
        exit_on_error: args.exit_on_error,
        replay: args.replay,
        scratch: args.scratch.clone(),
    };
    let outcome = match verify::run(&order) {
        Ok(outcome) => outcome,
        Err(e) => {
            let _ = writeln!(std::io::stderr().lock(), "towline: {e}");
            return Ok(ExitCode::from(USAGE));
        }
    };
    let text = if args.json { json_line(&value(&outcome)?)? } else { words(&outcome, args) };
    print(&text)?;
    Ok(if outcome.count == 0 { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

fn value(outcome: &Outcome) -> Result<serde_json::Value> {
    serde_json::to_value(outcome).map_err(|e| Error::new(ErrorKind::Io, e.to_string()))
}

fn words(outcome: &Outcome, args: &Verify) -> String {
    let mut text = String::new();
    for p in &outcome.problems {
        let _ = match p.path.as_str() {
            "" => writeln!(text, "{}", p.text),
            path => writeln!(text, "{path}: {}", p.text),
        };
    }
    let listed = outcome.problems.len() as u64;
    if outcome.count > listed {
        let _ = writeln!(text, "and {} more", outcome.count - listed);
    }
    text += &archive::strays(&outcome.strays);
    if args.quiet {
        return text;
    }
    if !outcome.strays.is_empty() {
        text += archive::STRAYS;
    }
    let what = match (&outcome.label, outcome.form, &outcome.end) {
        (Some(label), Some(form), Some(end)) => {
            format!("{} '{label}' (form {form}, as of {end})", outcome.kind)
        }
        _ => format!(
            "{} '{}'",
            if outcome.kind == "state" { "state directory" } else { outcome.kind },
            args.path.display()
        ),
    };
    let verdict = match outcome.count {
        0 => "good".to_owned(),
        1 => "1 problem".to_owned(),
        n => format!("{n} problems"),
    };
    let read = if args.no_content {
        ", contents not read".to_owned()
    } else {
        format!(", {} read", bytes(outcome.bytes))
    };
    let _ = writeln!(text, "{what}: {} files{read}: {verdict}", outcome.files);
    text
}
