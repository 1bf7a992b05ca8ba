//! `towline combine`: prints what it is about to make, or made.
//!
//! | code | meaning |
//! | --- | --- |
//! | 0 | the backup is there |
//! | 1 | it is not, and nothing of it |
//! | 64 | wrong usage |

use std::fmt::Write as _;
use std::process::ExitCode;

use super::args::Combine;
use super::{json_line, print, wait};
use crate::combine::{self, CopyMode, Order, Plan};
use crate::error::{Error, ErrorKind, Result};

/// Runs the command.
pub(super) fn run(args: &Combine) -> Result<ExitCode> {
    work(args).or_else(|e| {
        let text = format!("towline: {e}\n");
        let _ = std::io::Write::write_all(&mut std::io::stderr().lock(), text.as_bytes());
        let usage = e.kind() == ErrorKind::Usage;
        Ok(ExitCode::from(if usage { wait::USAGE } else { 1 }))
    })
}

fn work(args: &Combine) -> Result<ExitCode> {
    let order = Order {
        members: args.members.clone(),
        out: args.out.clone(),
        label: args.label.clone(),
        mode: args.copy_mode,
    };
    let plan = if args.dry_run { combine::plan(&order)? } else { combine::run(&order)? };
    let value = || serde_json::to_value(&plan).map_err(|e| Error::new(ErrorKind::Io, e.to_string()));
    print(&if args.json { json_line(&value()?)? } else { words(&plan, args.dry_run) })
}

fn words(plan: &Plan, dry: bool) -> String {
    let (out, mut text) = (plan.out.display(), String::new());
    if dry {
        let _ = writeln!(text, "members   {}", plan.members.join(", "));
        let _ = writeln!(text, "backup    {}, {} to {}", plan.label, plan.start, plan.end);
        let _ =
            writeln!(text, "files     {}, {} bytes; {} are free", plan.files, plan.bytes, plan.free_bytes);
        let _ = writeln!(text, "into      {out}, by {}", plan.copy_mode);
    } else {
        let _ = writeln!(text, "'{out}' is the full backup '{}', whole at {}", plan.label, plan.end);
    }
    if plan.copy_mode == CopyMode::Link {
        text += "what a member held as a whole is one file with it: change neither, and start no application on one\n";
    }
    text
}
