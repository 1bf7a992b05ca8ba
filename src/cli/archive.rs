//! `towline archive`.

use std::fmt::Write as _;
use std::io::{BufRead, IsTerminal, Write as _};
use std::path::Path;
use std::process::ExitCode;

use serde_json::{Value, json};

use super::args::{Archive as Commands, Labelled, Prune, VerifyArchive as Verify, Which};
use super::{json_line, print};
use crate::archive::check::{self, Found};
use crate::archive::inventory::{Backup, Inventory, What};
use crate::archive::prune::{self, Plan, Rule};
use crate::archive::{Address, Archive, names};
use crate::config::Config;
use crate::error::{Error, ErrorKind, Result};
use crate::manifest;
use crate::moment::Moment;
use crate::net::wall_clock;
use crate::status::bytes;

/// What is said of objects that are none of an archive's.
pub(super) const STRAYS: &str =
    "strays are never removed, and while they are there `archive prune` removes no log\n";
/// Exit code when something is wrong with an archive.
const PROBLEMS: u8 = 1;

pub(super) fn run(command: &Commands) -> Result<ExitCode> {
    match command {
        Commands::List(which) => list(which),
        Commands::Verify(which) => verify(which),
        Commands::Prune(args) => prune(args),
        Commands::Pin(args) => pin(args, true),
        Commands::Unpin(args) => pin(args, false),
    }
}

fn open(which: &Which) -> Result<Archive> {
    let address = match (&which.archive, &which.config) {
        (Some(text), _) => address(text)?,
        (None, Some(file)) => Config::load(file)?.archive_address()?.ok_or_else(|| {
            let text = format!("configuration '{}' names no archive; set the key 'archive'", file.display());
            Error::new(ErrorKind::Config, text)
        })?,
        (None, None) => {
            return Err(Error::new(ErrorKind::Usage, "name the archive by --archive or --config"));
        }
    };
    Archive::open(&address)
}

/// An address, or a directory by its path.
fn address(text: &str) -> Result<Address> {
    if text.contains("://") || !Path::new(text).is_dir() {
        return text.parse().map_err(|e| Error::new(ErrorKind::Usage, e));
    }
    let path = Path::new(text).canonicalize().map_err(|e| Error::io("find", Path::new(text), e))?;
    Ok(Address::Dir(path))
}

fn list(which: &Which) -> Result<ExitCode> {
    let archive = open(which)?;
    let inventory = Inventory::take(&archive)?;
    if which.json {
        return print(&json_line(&document(&archive, &inventory))?);
    }
    let mut out = format!("archive {} of system {}\n", archive.address(), archive.system());
    for b in &inventory.backups {
        let _ = writeln!(out, "backup {}", line(b, &inventory));
    }
    if inventory.backups.is_empty() {
        out += "no backups\n";
    }
    for s in &inventory.coverage.spans {
        let _ = writeln!(out, "log {s}, {}", bytes(s.bytes));
    }
    out += &log_problems(&inventory);
    print(&out)
}

/// Up to where a backup can be replayed with the log of the archive: the end of the last segment that follows it.
fn reach(b: &Backup, inventory: &Inventory) -> Option<String> {
    let m = b.manifest()?;
    let span = inventory.coverage.span_of(m.timeline, m.end.segment());
    Some(span.map_or(m.end, |s| s.last.end()).to_string())
}

fn line(b: &Backup, inventory: &Inventory) -> String {
    let pinned = if b.pinned { ", pinned" } else { "" };
    let size = bytes(b.bytes);
    match &b.what {
        What::Whole(m, _) => {
            let on = m.base.as_ref().map_or_else(|| "full".to_owned(), |base| format!("on '{}'", base.label));
            let reach = reach(b, inventory).unwrap_or_default();
            let broken = inventory.broken(m).map_or_else(String::new, |why| format!(", BROKEN: {why}"));
            let exact = if m.exact { "" } else { ", not an exact cut" };
            format!(
                "{}: {on}, {}, {} to {}, log on to {reach}, {size}{exact}{pinned}{broken}",
                b.label,
                Moment(m.end_time),
                m.start,
                m.end
            )
        }
        What::Unfinished => format!("{}: NO MANIFEST: unfinished, or being made; {size}{pinned}", b.label),
        What::Damaged(why) => format!("{}: DAMAGED: {why}; {size}{pinned}", b.label),
    }
}

fn log_problems(inventory: &Inventory) -> String {
    let mut out = String::new();
    for p in &inventory.coverage.problems {
        let word = serde_json::to_value(p.fault).unwrap_or_default();
        let _ = writeln!(out, "{} {}: {}", word.as_str().unwrap_or_default(), p.span, p.fault.words());
    }
    if inventory.coverage.more > 0 {
        let _ = writeln!(out, "... and {} more", inventory.coverage.more);
    }
    for (_, why) in inventory.bad_histories() {
        let _ = writeln!(out, "history {why}");
    }
    out + &strays(&inventory.strays)
}

/// Objects that are none of an archive's.
pub(super) fn strays(names: &[String]) -> String {
    names.iter().map(|n| format!("stray '{n}': no object of an archive\n")).collect()
}

fn document(archive: &Archive, inventory: &Inventory) -> Value {
    let backup = |b: &Backup| {
        let m = b.manifest();
        let (state, why) = match &b.what {
            What::Whole(m, _) => {
                let broken = inventory.broken(m);
                (if broken.is_some() { "broken" } else { "whole" }, broken)
            }
            What::Unfinished => ("unfinished", None),
            What::Damaged(why) => ("damaged", Some(why.clone())),
        };
        json!({
            "label": b.label, "state": state, "problem": why, "pinned": b.pinned, "objects": b.objects, "bytes": b.bytes,
            "form": m.map(|m| m.form.word()), "base": m.and_then(|m| m.base.as_ref()).map(|b| &b.label),
            "timeline": m.map(|m| m.timeline.0), "start": m.map(|m| m.start.to_string()),
            "end": m.map(|m| m.end.to_string()), "end_time": m.map(|m| Moment(m.end_time).to_string()),
            "exact": m.map(|m| m.exact), "log_to": reach(b, inventory),
        })
    };
    let log = &inventory.coverage;
    let problems: Vec<Value> =
        log.problems.iter().map(|p| json!({"problem": p.fault, "range": p.span})).collect();
    json!({
        "archive": archive.address(), "system": archive.system().to_string(), "id": archive.id(),
        "backups": inventory.backups.iter().map(backup).collect::<Vec<_>>(),
        "log": log.spans, "problems": problems, "more_problems": log.more, "strays": inventory.strays,
        "history_problems": inventory.bad_histories().map(|(t, why)| json!({"timeline": t.0, "problem": why})).collect::<Vec<_>>(),
    })
}

fn verify(args: &Verify) -> Result<ExitCode> {
    let which = &args.which;
    let archive = open(which)?;
    let found = match &args.backup {
        Some(label) => check::verify_backup(&archive, label)?,
        None => check::verify(&archive)?,
    };
    let Found { inventory, backups, objects, bytes: read, .. } = &found;
    if which.json {
        let mut value = document(&archive, inventory);
        if let Some(map) = value.as_object_mut() {
            let each = backups.iter().map(|(label, what)| json!({"label": label, "problem": what}));
            map.insert("backup_problems".to_owned(), each.collect());
            map.insert("good".to_owned(), json!(found.is_good()));
            map.insert("objects".to_owned(), json!(objects));
            map.insert("bytes".to_owned(), json!(read));
        }
        print(&json_line(&value)?)?;
    } else {
        let mut out = log_problems(inventory);
        for (label, what) in backups {
            let _ = writeln!(out, "backup {label}: {what}");
        }
        let verdict = if found.is_good() { "good" } else { "NOT GOOD" };
        if !inventory.strays.is_empty() {
            out += STRAYS;
        }
        let _ = writeln!(out, "{}: {verdict}, {objects} objects read, {}", archive.address(), bytes(*read));
        print(&out)?;
    }
    Ok(if found.is_good() { ExitCode::SUCCESS } else { ExitCode::from(PROBLEMS) })
}

fn prune(args: &Prune) -> Result<ExitCode> {
    let archive = open(&args.which)?;
    let inventory = Inventory::take(&archive)?;
    let rule = Rule { keep_full: args.keep_full, keep_days: args.keep_days };
    let plan = prune::plan(&inventory, rule, wall_clock());
    let log = prune::log_to_remove(&archive, &plan)?;
    let text = if args.which.json { json_line(&plan_document(&plan, log))? } else { plan_text(&plan, log) };
    print(&text)?;
    let nothing = log.0 == 0 && plan.histories.is_empty() && plan.backups.iter().all(|f| f.keep);
    if args.dry_run || nothing {
        return Ok(ExitCode::SUCCESS);
    }
    if !args.yes && !agreed()? {
        return Err(Error::new(ErrorKind::Cancelled, "nothing is removed"));
    }
    prune::carry_out(&archive, &plan)?;
    if args.which.json { Ok(ExitCode::SUCCESS) } else { print("done\n") }
}

fn agreed() -> Result<bool> {
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        let text = "removing needs a yes, and there is no terminal to ask at; add --yes, or --dry-run to see the plan only";
        return Err(Error::new(ErrorKind::Usage, text));
    }
    let mut stderr = std::io::stderr().lock();
    let _ = write!(stderr, "Remove this? [y/N] ");
    let _ = stderr.flush();
    let mut answer = String::new();
    stdin.lock().read_line(&mut answer).map_err(Error::from)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

fn plan_text(plan: &Plan, (segments, log_bytes): (u64, u64)) -> String {
    let mut out = String::new();
    for f in &plan.backups {
        let word = if f.keep { "keep" } else { "remove" };
        let _ =
            writeln!(out, "{word} backup {}: {}, {} objects, {}", f.label, f.why, f.objects, bytes(f.bytes));
    }
    if let Some(why) = &plan.log_stays {
        let _ = writeln!(out, "keep log: {why}");
    }
    let side = |t| plan.sides.iter().any(|s| s.timeline == t);
    for (timeline, before) in plan.log.iter().filter(|(t, _)| !side(*t)) {
        let _ = writeln!(
            out,
            "keep log of timeline {timeline} from {} (segment {:X}) on",
            before.start(),
            before.0
        );
    }
    for prune::Side { timeline, parent, at, newest } in &plan.sides {
        let _ = writeln!(
            out,
            "remove log of timeline {timeline}: it branched off from {parent} at {at}, the newest timeline {newest} does not go \
             over it, and no backup that is kept leads to it"
        );
    }
    for timeline in &plan.histories {
        let _ = writeln!(out, "remove history of timeline {timeline}: none of its log is kept");
    }
    let _ = writeln!(out, "remove log: {segments} segments, {}", bytes(log_bytes));
    out
}

fn plan_document(plan: &Plan, (segments, log_bytes): (u64, u64)) -> Value {
    let fate = |f: &prune::Fate| json!({"label": f.label, "keep": f.keep, "why": f.why, "objects": f.objects, "bytes": f.bytes});
    let from = |(t, s): &(crate::position::TimelineId, crate::position::SegmentNo)| json!({"timeline": t.0, "from": s.start().to_string(), "segment": format!("{:016X}", s.0)});
    json!({
        "backups": plan.backups.iter().map(fate).collect::<Vec<_>>(), "log": plan.log.iter().map(from).collect::<Vec<_>>(),
        "side_lines": plan.sides.iter().map(|s| s.timeline.0).collect::<Vec<_>>(),
        "histories": plan.histories.iter().map(|t| t.0).collect::<Vec<_>>(), "log_stays": plan.log_stays, "remove_segments": segments, "remove_log_bytes": log_bytes,
    })
}

fn pin(args: &Labelled, on: bool) -> Result<ExitCode> {
    let Labelled { label, which } = args;
    manifest::check_label(label).map_err(|e| Error::new(ErrorKind::Usage, e))?;
    let archive = open(which)?;
    let name = names::pin(label);
    if on {
        let manifest = format!("{}/{}", names::backup_dir(label), names::MANIFEST);
        if archive.reader(&manifest)?.is_none() {
            let text = format!(
                "there is no backup '{label}' in the archive '{}'; `towline archive list` shows all",
                archive.address()
            );
            return Err(Error::new(ErrorKind::Missing, text));
        }
        archive.put(&name, b"pinned\n")?;
    } else {
        archive.delete(&name)?;
    }
    let text = if which.json {
        json_line(&json!({"label": label, "pinned": on}))?
    } else {
        format!("backup '{label}' is {}\n", if on { "pinned" } else { "not pinned" })
    };
    print(&text)
}
