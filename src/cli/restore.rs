//! `towline restore`: prints what it is about to do, or did.
//!
//! | code | meaning |
//! | --- | --- |
//! | 0 | the directory is there |
//! | 1 | it is not; the same command goes on with what was made |
//! | 64 | wrong usage |

use std::fmt::Write as _;
use std::io::IsTerminal;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};
use tokio_util::sync::CancellationToken;

use super::args::Restore;
use super::{json_line, print, wait};
use crate::error::{Error, ErrorKind, Result};
use crate::net::FillProgress;
use crate::restore::{self, Node, Order, Plan, Tell};

/// Between two lines of progress.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// Runs the command.
pub(super) fn run(args: &Restore) -> Result<ExitCode> {
    let result = work(args);
    if let Err(e) = &result {
        let _ =
            std::io::Write::write_all(&mut std::io::stderr().lock(), format!("towline: {e}\n").as_bytes());
    }
    result.or_else(|e| match e.kind() {
        ErrorKind::Usage => Ok(ExitCode::from(wait::USAGE)),
        _ => Ok(ExitCode::from(1)),
    })
}

fn work(args: &Restore) -> Result<ExitCode> {
    let name = || crate::config::Config::default().node_name();
    let node = match args.as_leader {
        true => Some(Node::Leader(name()?)),
        false => args.as_follower.then_some(Node::Follower),
    };
    let order = Order {
        from: args.from.clone(),
        backup: args.backup.clone(),
        bases: args.base.clone(),
        logs: args.log.clone(),
        target: args.target,
        out: args.out.clone(),
        line: args.target_timeline,
        state: args.state.clone(),
        node,
        delta: args.delta,
        cloning: args.copy_mode,
        allow_gap: args.allow_gap,
    };
    if let Some(state) = &order.state {
        crate::config::check_apart(&order.out, state)?;
    }
    let plan = if args.dry_run {
        restore::plan(&order)?
    } else {
        let cancel = CancellationToken::new();
        interrupts(cancel.clone())?;
        restore::run(&order, &progress(), &cancel)?
    };
    let value = || serde_json::to_value(&plan).map_err(|e| Error::new(ErrorKind::Io, e.to_string()));
    print(&if args.json { json_line(&value()?)? } else { words(&plan, args) })
}

/// The first interrupt stops, with everything kept; a second one ends at once.
pub(super) fn interrupts(cancel: CancellationToken) -> Result<()> {
    let mut set = SigSet::empty();
    set.add(Signal::SIGINT);
    set.add(Signal::SIGTERM);
    set.thread_block().map_err(|e| Error::new(ErrorKind::Io, format!("cannot take interrupts: {e}")))?;
    let waiting = move || {
        if set.wait().is_ok() {
            cancel.cancel();
            if set.wait().is_ok() {
                std::process::exit(1);
            }
        }
    };
    // A panic: there is nothing in it that could; interrupts would be ignored, SIGKILL would not.
    std::thread::Builder::new()
        .name("interrupts".to_owned())
        .spawn(waiting)
        .map(drop)
        .map_err(|e| Error::from(e).wrap("cannot take interrupts"))
}

/// Says on a terminal how far it is.
pub(super) fn progress() -> Tell {
    let shown = std::io::stderr().is_terminal();
    let (last, bytes) = (std::sync::Mutex::new(Instant::now()), AtomicU64::new(0));
    Arc::new(move |p: FillProgress| {
        let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
        if shown && last.elapsed() >= TELL_EVERY && bytes.swap(p.bytes, Ordering::Relaxed) != p.bytes {
            *last = Instant::now();
            let text =
                format!("{} of {} files, {} of {} bytes\n", p.files, p.files_total, p.bytes, p.bytes_total);
            let _ = std::io::Write::write_all(&mut std::io::stderr().lock(), text.as_bytes());
        }
    })
}

/// What a directory that is made equal loses.
fn gone(count: u64, first: &[String]) -> String {
    let more = if count > first.len() as u64 { ", .." } else { "" };
    match first {
        [] => "no name: the backup has all of them".to_owned(),
        first => format!("{count} names that the backup does not have: {}{more}", first.join(", ")),
    }
}

fn words(plan: &Plan, args: &Restore) -> String {
    let mut text = String::new();
    let out = plan.out.display();
    if args.dry_run {
        let log = match &plan.log {
            Some((first, last)) => format!("{first} to {last}, {} bytes", plan.log_bytes),
            None => "none".to_owned(),
        };
        let _ = writeln!(
            text,
            "backup    {} ({}), whole at {} ({})",
            plan.label, plan.form, plan.base, plan.base_time
        );
        for passed in &plan.passed {
            let _ = writeln!(text, "passed    {passed}");
        }
        if !plan.chain.is_empty() {
            let _ = writeln!(text, "stands on {}", plan.chain.join(", "));
        }
        let _ =
            writeln!(text, "files     {}, {} bytes; {} are free", plan.files, plan.bytes, plan.free_bytes);
        if plan.pack_bytes > 0 {
            let _ = writeln!(text, "packs     {} bytes", plan.pack_bytes);
        }
        let _ = writeln!(text, "log       {log}");
        let _ = writeln!(text, "target    {}", plan.target);
        if plan.timeline != plan.target_timeline {
            let _ = writeln!(text, "timeline  {} to {}", plan.timeline, plan.target_timeline);
        }
        let _ = writeln!(text, "ends on   {} ({})", plan.lsn, plan.time);
        if let Some(timeline) = plan.new_timeline {
            let _ = writeln!(text, "begins    timeline {timeline}, as its leader");
        }
        let _ = writeln!(text, "into      {out}");
        if let Some(goes) = plan.goes {
            let _ = writeln!(text, "goes      {}", gone(goes, &plan.goes_first));
        }
    } else {
        for passed in &plan.passed {
            let _ = writeln!(text, "a newer backup was passed over: {passed}");
        }
        let _ = writeln!(text, "'{out}' is as it was at {} ({})", plan.lsn, plan.time);
        if let Some((timeline, state)) = plan.new_timeline.zip(args.state.as_ref()) {
            let state = state.display();
            let _ = writeln!(
                text,
                "timeline {timeline} begins there: start `towline leader --data {out} --state {state}`"
            );
        }
        if let Some(goes) = plan.goes {
            let _ = writeln!(text, "gone from it: {}", gone(goes, &plan.goes_first));
        }
    }
    if let Some((first, last)) = &plan.missing {
        let _ = writeln!(
            text,
            "the log has a hole, {first} to {last}: this is the last exact cut before it, and later ones are lost"
        );
    }
    if plan.gap {
        text += "the target is within a gap of the history: this is the last exact cut before it\n";
    }
    text
}
