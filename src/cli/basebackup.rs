//! `towline basebackup`: takes a backup, shows how far it is, and says how it ended.
//!
//! | code | meaning |
//! | --- | --- |
//! | 0 | the backup is complete, and an exact cut |
//! | 1 | there is no backup |
//! | 3 | the backup is complete, but no exact cut came in time: files may be of different instants |
//! | 64 | wrong usage |
//!
//! An interrupt (SIGINT, SIGTERM) ends it with 1 and removes what was made, unless that is to be kept. A second one ends at
//! once.

use std::fs::File;
use std::io::{IsTerminal, Write};
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::args::BaseBackup;
use super::{json_line, load, print};
use crate::apply::StopAt;
use crate::backup::{self, Access, Compression, Made, Order, Origin, Phase, Progress, Target, View};
use crate::config::Config;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::manifest;
use crate::net::wall_clock;
use crate::session::valid_name;
use crate::state::StateDir;
use crate::status::bytes;
use crate::tls::{self, Trust};

/// Exit code of a backup that is not an exact cut.
const INEXACT: u8 = 3;
/// Exit code for wrong usage: EX_USAGE of sysexits.h.
pub(super) const USAGE: u8 = 64;
/// Says that the backup goes to standard output.
const STREAM: &str = "-";
/// How often a bar is drawn, and a line written.
const DRAW: Duration = Duration::from_millis(200);
const LINE: Duration = Duration::from_secs(5);

/// Runs the command.
pub(super) fn run(args: &BaseBackup) -> Result<ExitCode> {
    let form = form(args);
    let made = form.and_then(|form| Ok((order(args)?, form))).and_then(|(o, f)| take(o, f, args.progress));
    match made {
        Ok(made) => {
            let text = if args.json { json_line(&value(&made))? } else { words(&made) };
            if args.out.as_os_str() == STREAM {
                // What goes to standard output is the backup.
                let _ = std::io::stderr().lock().write_all(text.as_bytes());
            } else {
                print(&text)?;
            }
            Ok(if made.exact { ExitCode::SUCCESS } else { ExitCode::from(INEXACT) })
        }
        Err(e) => {
            let _ = writeln!(std::io::stderr().lock(), "towline: {e}");
            let usage = matches!(e.kind(), ErrorKind::Usage | ErrorKind::Config);
            Ok(ExitCode::from(if usage { USAGE } else { 1 }))
        }
    }
}

/// A backup in a directory or an archive.
fn stored(args: &BaseBackup) -> Result<Form> {
    let wrong = |text: &str| Err(Error::new(ErrorKind::Usage, text));
    if args.compress != Compression::None {
        return wrong("--compress is for a stream (--out -) only: a directory holds the files as they are");
    }
    let target = match args.out.to_str().filter(|t| t.contains("://")) {
        Some(text) => {
            let address = text.parse().map_err(|e| Error::new(ErrorKind::Usage, format!("--out {e}")))?;
            Target::Archive(address)
        }
        None if args.scratch.is_some() => return wrong("--scratch is for a stream or an archive only"),
        None if args.incremental.is_none() => return Ok(Form::Tree),
        None => Target::Dir(args.out.clone()),
    };
    if args.resume || args.keep_partial {
        return wrong("packs can't be gone on with: leave --resume and --keep-partial out");
    }
    let base = args.incremental.as_deref().map(Origin::parse).transpose();
    let base = base.map_err(|e| Error::new(ErrorKind::Usage, format!("--incremental {e}")))?;
    Ok(Form::Packs(target, base))
}

/// What the backup is made as.
enum Form {
    Tree,
    Tar(Compression),
    Packs(Target, Option<Origin>),
}

fn form(args: &BaseBackup) -> Result<Form> {
    let wrong = |text: &str| Err(Error::new(ErrorKind::Usage, text));
    if args.out.as_os_str() != STREAM {
        return stored(args);
    }
    if args.incremental.is_some() {
        return wrong(
            "an incremental backup is made of packs: name a directory or an archive in the place of -",
        );
    }
    if args.resume || args.keep_partial {
        return wrong(
            "a stream can't be gone on with: leave --resume and --keep-partial out, or name a directory",
        );
    }
    if std::io::stdout().is_terminal() {
        return wrong("standard output is a terminal: send the stream to a file or a program");
    }
    Ok(Form::Tar(args.compress))
}

fn order(args: &BaseBackup) -> Result<Order> {
    let mut config = load(args.config.as_deref())?;
    args.tls.over(&mut config);
    if args.state.is_some() {
        config.state.clone_from(&args.state);
    }
    if args.name.is_some() {
        config.name.clone_from(&args.name);
    }
    let label = match &args.label {
        Some(label) => label.clone(),
        None => label_of_now(),
    };
    manifest::check_label(&label).map_err(|rule| Error::new(ErrorKind::Usage, format!("--label {rule}")))?;
    let name = name(&config)?;
    Ok(Order {
        access: Access {
            address: args.leader.clone(),
            trust: trust(&config, &name)?,
            name,
            peer_timeout: args.peer_timeout.0,
            patience: args.retry_timeout.0,
            max_rate: args.max_rate.0,
        },
        out: args.out.clone(),
        label,
        exact_timeout: args.exact_timeout.0,
        keep_partial: args.keep_partial,
        resume: args.resume,
        scratch: args.scratch.clone(),
    })
}

/// The time as a label, to the second.
fn label_of_now() -> String {
    let now = wall_clock();
    let text = StopAt::Time(now - now.rem_euclid(1_000_000_000)).to_string();
    text.chars().filter(char::is_ascii_alphanumeric).collect()
}

/// The name that this side has.
fn name(config: &Config) -> Result<String> {
    let known = match &config.state {
        Some(dir) => StateDir::peek(dir)?.map(|c| c.name),
        None => None,
    };
    let name = match (&config.name, known) {
        (None, Some(known)) => known,
        _ => config.node_name()?,
    };
    if valid_name(&name) {
        return Ok(name);
    }
    let text = format!(
        "the name '{}' is not allowed; use 1 to 64 letters, digits, '-', '_' and '.', the first a letter or digit",
        name.escape_debug()
    );
    Err(Error::new(ErrorKind::Usage, text))
}

fn trust(config: &Config, name: &str) -> Result<Trust> {
    let settings = match &config.state {
        Some(dir) => config.tls_settings(dir, name),
        None => tls::Settings { state: None, ..config.tls_settings("".as_ref(), name) },
    };
    Trust::load(settings)
}

fn take(order: Order, form: Form, shown: bool) -> Result<Made> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context(|| "cannot start the runtime")?;
    let progress = Progress::default();
    let show = shown.then(|| Show::start(progress.clone()));
    let made = runtime.block_on(async {
        let cancel = CancellationToken::new();
        let (mut int, mut term) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        let stopping = cancel.clone();
        // A panic: a second signal is not heard.
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    _ = int.recv() => {}
                    _ = term.recv() => {}
                }
                if stopping.is_cancelled() {
                    std::process::exit(1);
                }
                stopping.cancel();
            }
        });
        match form {
            Form::Tree => backup::tree(order, progress, cancel).await,
            Form::Tar(compression) => {
                let out = std::io::stdout().as_fd().try_clone_to_owned()?;
                backup::tar(order, compression, File::from(out), progress, cancel).await
            }
            Form::Packs(target, base) => backup::packs(order, target, base, progress, cancel).await,
        }
    });
    drop(show);
    runtime.shutdown_timeout(Duration::from_secs(5));
    made
}

fn words(made: &Made) -> String {
    let cut =
        if made.exact { "an exact cut" } else { "NOT an exact cut: files may be of different instants" };
    let (files, size) = (made.files, bytes(made.bytes));
    let packs = match made.packs {
        Some((n, packed)) => format!(", in {n} packs of {}", bytes(packed)),
        None => String::new(),
    };
    format!(
        "backup {}: {files} files, {size}{packs}, from {} to {}, {cut}\n",
        made.label, made.start, made.end
    )
}

fn value(made: &Made) -> serde_json::Value {
    json!({
        "label": made.label,
        "start": made.start.to_string(),
        "end": made.end.to_string(),
        "exact": made.exact,
        "files": made.files,
        "bytes": made.bytes,
        "packs": made.packs.map(|(n, _)| n),
        "packed_bytes": made.packs.map(|(_, bytes)| bytes),
    })
}

/// Shows the progress until it is dropped.
struct Show {
    end: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Show {
    fn start(progress: Progress) -> Self {
        let (end, ended) = channel::<()>();
        // A panic: no more progress is shown.
        let thread = std::thread::spawn(move || {
            let bar = std::io::stderr().is_terminal();
            let mut said = Said::default();
            loop {
                let last = !matches!(ended.recv_timeout(DRAW), Err(RecvTimeoutError::Timeout));
                said.look(&progress.view(), bar, last);
                if last {
                    break;
                }
            }
        });
        Self { end: Some(end), thread: Some(thread) }
    }
}

impl Drop for Show {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            // It only writes to standard error.
            let _ = thread.join();
        }
    }
}

/// What was shown last.
#[derive(Default)]
struct Said {
    phase: Option<Phase>,
    since: Duration,
    total: bool,
}

impl Said {
    fn look(&mut self, view: &View, bar: bool, last: bool) {
        let mut text = String::new();
        // A quick one may be over before anybody looks.
        if let Some((files, size)) = view.estimate.filter(|_| !self.total) {
            self.total = true;
            text = format!("total (estimated): {files} files, {}\n", bytes(size));
        }
        let news = self.phase != Some(view.phase) || last;
        self.since += DRAW;
        if bar {
            text = format!("\r\x1b[K{text}{}{}", drawn(view), if last { "\n" } else { "" });
        } else if news || self.since >= LINE {
            text = format!("{text}{}\n", line(view));
            self.since = Duration::ZERO;
        }
        self.phase = Some(view.phase);
        let mut err = std::io::stderr().lock();
        // Nobody may look.
        let _ = err.write_all(text.as_bytes()).and_then(|()| err.flush());
    }
}

fn percent(view: &View) -> Option<u64> {
    (view.bytes_total > 0).then(|| view.bytes.min(view.bytes_total).saturating_mul(100) / view.bytes_total)
}

fn line(view: &View) -> String {
    let word = view.phase.word();
    match percent(view) {
        Some(percent) => format!(
            "{word}: {}/{} files, {}/{} ({percent} %)",
            view.files,
            view.files_total,
            bytes(view.bytes),
            bytes(view.bytes_total)
        ),
        None => word.to_owned(),
    }
}

fn drawn(view: &View) -> String {
    let Some(percent) = percent(view) else { return line(view) };
    let full = usize::try_from(percent / 4).unwrap_or(0);
    format!("[{}{}] {}", "#".repeat(full), "-".repeat(25 - full.min(25)), line(view))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_a_line_and_a_bar() {
        let estimate = Some((3, 200));
        let view =
            View { phase: Phase::Copying, files: 1, files_total: 3, bytes: 50, bytes_total: 200, estimate };
        assert_eq!(line(&view), "copying: 1/3 files, 50 B/200 B (25 %)");
        assert_eq!(drawn(&view), format!("[######{}] {}", "-".repeat(19), line(&view)));
        let over = View { bytes: 900, ..view };
        assert!(drawn(&over).starts_with(&format!("[{}]", "#".repeat(25))), "{}", drawn(&over));
        assert_eq!(drawn(&View { phase: Phase::Log, ..View::default() }), "taking the log");
    }

    #[test]
    fn what_was_made_is_said_with_what_it_is_of_and_what_it_takes() {
        let at = crate::position::Lsn(7);
        let (label, size) = ("sunday".to_owned(), 2048);
        let made = Made { label, start: at, end: at, exact: true, files: 61, bytes: size, packs: None };
        assert!(
            words(&made).starts_with("backup sunday: 61 files, 2.0 KiB, from 0/00000007"),
            "{}",
            words(&made)
        );
        let made = Made { packs: Some((1, 512)), ..made };
        assert!(words(&made).contains("61 files, 2.0 KiB, in 1 packs of 512 B, from"), "{}", words(&made));
        assert_eq!(
            (value(&made)["packs"].as_u64(), value(&made)["packed_bytes"].as_u64()),
            (Some(1), Some(512))
        );
    }

    #[test]
    fn the_label_of_now_is_a_label() {
        assert_eq!(manifest::check_label(&label_of_now()), Ok(()));
        assert!(label_of_now().len() == 16, "{}", label_of_now());
    }
}
