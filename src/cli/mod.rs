//! The command line: one function per command, output as text or JSON, errors to exit codes.

mod archive;
pub mod args;
mod basebackup;
mod check;
mod combine;
mod demo;
mod generate;
mod history;
mod logging;
mod lost;
mod promote;
mod restore;
mod rewind;
mod slot;
mod switchover;
mod trust;
mod verify;
mod wait;
mod watch;

use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use serde_json::Value;

use crate::config::Config;
use crate::control::{self, Request};
use crate::daemon;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::log::{dump, inspect};
use crate::state;
use crate::status;
use args::{Ask, At, Cli, Command, ConfigCommand, LogCommand, RestorePoint, SyncCommand};

/// Parses the command line, runs the command, prints its error, returns the exit code.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => return mistyped(&e),
    };
    // A command that works for a while says how it went; its log is for those who ask.
    let quiet = matches!(
        cli.command,
        Command::BaseBackup(_) | Command::Restore(_) | Command::Combine(_) | Command::Rewind(_)
    )
    .then_some("warn");
    if let Err(e) = logging::start(cli.log_level.as_deref().or(quiet), cli.log_json) {
        return unusable(&cli.command, &e);
    }
    run(cli.command).unwrap_or_else(|e| failed(&e))
}

/// Says an error; its class is the exit code.
fn failed(e: &Error) -> ExitCode {
    let _ = writeln!(std::io::stderr().lock(), "towline: {e}");
    ExitCode::from(e.kind().exit_code())
}

/// The command can't begin. For those that call plugins that tells nothing of the node: `check` then has the exit
/// code of what is unknown; `wait` one that says nothing about data.
fn unusable(command: &Command, e: &Error) -> ExitCode {
    match command {
        Command::Check(args) => check::fail(&e.to_string(), args.json),
        Command::Wait(_) | Command::Restore(_) | Command::Combine(_) => {
            failed(e);
            ExitCode::from(wait::USAGE)
        }
        Command::BaseBackup(_) => {
            failed(e);
            ExitCode::from(basebackup::USAGE)
        }
        Command::Verify(_) => {
            failed(e);
            ExitCode::from(verify::USAGE)
        }
        _ => failed(e),
    }
}

/// The command line is not understood, or asks for help. As with [`unusable`].
fn mistyped(e: &clap::Error) -> ExitCode {
    let words = || std::env::args_os().skip(1);
    let command = command_word(words());
    if e.use_stderr() && command.as_deref() == Some("check") {
        return check::fail(&in_short(&e.to_string()), words().any(|w| w == "--json"));
    }
    let _ = e.print();
    if e.use_stderr() { ExitCode::from(ErrorKind::Usage.exit_code()) } else { ExitCode::SUCCESS }
}

/// What is wrong with a command line, and the tip, on one line.
fn in_short(text: &str) -> String {
    let text = text.trim_start().trim_start_matches("error: ");
    let before = text.lines().take_while(|l| !l.starts_with("Usage:") && !l.starts_with("For more"));
    let parts: Vec<&str> = before.map(str::trim).filter(|l| !l.is_empty()).collect();
    parts.join(" ")
}

/// The command, as far as it can be seen in words that are not understood.
fn command_word(words: impl Iterator<Item = OsString>) -> Option<String> {
    let mut value = false;
    for word in words {
        match word.to_str() {
            _ if value => value = false,
            Some("--log-level") => value = true,
            Some(w) if w.starts_with('-') => {}
            other => return other.map(str::to_owned),
        }
    }
    None
}

fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Leader(args::Leader { node, force }) => {
            let file = node.config.clone();
            let how = Start { role: Some(state::Role::Leader), paused: false, force };
            start(file, how, daemon::Flags::new(move |c| node.over(c)))
        }
        Command::Follower(follower) => {
            let (file, paused) = (follower.node.config.clone(), follower.paused);
            let how = Start { role: Some(state::Role::Follower), paused, force: false };
            start(file, how, daemon::Flags::new(move |c| follower.over(c)))
        }
        Command::Run(run) => {
            let how = Start { role: None, paused: false, force: run.force };
            start(Some(run.config), how, daemon::Flags::new(|c| c))
        }
        Command::Status(args) => match args.watch {
            Some(every) => watch::run(&args, every.0),
            None => show(&args.ask, &Request::Status, status::render),
        },
        Command::Check(args) => check::run(&args),
        Command::Pause(ask) => show(&ask, &Request::Pause, |v| rests("paused", v)),
        Command::Resume(ask) => show(&ask, &Request::Resume, |v| rests("resumed", v)),
        Command::Wait(args) => wait::run(&args),
        Command::Reload(ask) => show(&ask, &Request::Reload, reloaded),
        Command::Id(args) => trust::id(&args),
        Command::Trust(args) => trust::trust(&args),
        Command::Confirm(ask) => {
            let words = |v: &Value| match v.get("confirmed").and_then(Value::as_bool) {
                Some(true) => "the held change goes through\n".to_owned(),
                _ => "nothing is held\n".to_owned(),
            };
            show(&ask, &Request::Confirm, words)
        }
        Command::Slot(command) => slot::run(command),
        Command::Archive(command) => archive::run(&command),
        Command::Sync(SyncCommand::Release { ask, span }) => {
            show(&ask, &Request::SyncRelease { span }, |v| {
                format!(
                    "the application runs without its followers for {}\n",
                    v["for"].as_str().unwrap_or("-")
                )
            })
        }
        Command::Sync(SyncCommand::Resume(ask)) => {
            show(&ask, &Request::SyncResume, |v| match v["resumed"].as_bool() {
                Some(true) => "it is frozen again while followers are missing\n".to_owned(),
                _ => "nothing was released\n".to_owned(),
            })
        }
        Command::RestorePoint(args) => restore_point(args),
        Command::Restore(args) => restore::run(&args),
        Command::Combine(args) => combine::run(&args),
        Command::Resync(ask) => show(&ask, &Request::Resync, |v| {
            let word = v.get("resync").and_then(Value::as_str).unwrap_or("-");
            format!("resync {word}; `towline status` shows how far it is\n")
        }),
        Command::Promote(args) => promote::run(args),
        Command::Rewind(args) => rewind::run(&args),
        Command::LostWrites(command) => lost::run(&command),
        Command::Switchover(args) => switchover::run(args),
        Command::BaseBackup(args) => basebackup::run(&args),
        Command::Verify(args) => verify::run(&args),
        Command::History(args) => history::run(&args),
        Command::Log(log) => inspect_log(&log),
        Command::Config(ConfigCommand::Check { file }) => {
            let refused = |e: Error| e.wrap(&format!("configuration '{}'", file.display()));
            Config::load(&file).and_then(|config| daemon::vet(&config).map_err(refused))?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Config(ConfigCommand::Show { file, json }) => show_config(file.as_deref(), json),
        Command::Demo(args) => demo::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Generate(what) => generate::run(&what).map(|()| ExitCode::SUCCESS),
        Command::ThawGuard { args } => Ok(crate::quiesce::thaw_guard_main(&args)),
    }
}

/// How much longer than an exact cut is tried for its answer is waited for.
const POINT_GRACE: Duration = Duration::from_secs(61);

/// The daemon says when the time is over; a moment longer its answer is waited for.
fn restore_point(args: RestorePoint) -> Result<ExitCode> {
    let RestorePoint { name, mut ask } = args;
    let request = Request::RestorePoint { name, timeout: Some(ask.timeout) };
    ask.timeout.0 += POINT_GRACE;
    show(&ask, &request, |v| {
        let text = |k: &str| v.get(k).and_then(Value::as_str).unwrap_or("-").to_owned();
        format!("restore point '{}' at {}\n", text("name"), text("lsn"))
    })
}

/// How a node is run.
struct Start {
    /// Without a role that of the configuration counts: who has a leader follows it.
    role: Option<state::Role>,
    paused: bool,
    force: bool,
}

/// Runs a node.
fn start(file: Option<PathBuf>, how: Start, flags: daemon::Flags) -> Result<ExitCode> {
    let flags = flags.on_reload(logging::follow);
    let config = flags.over(load(file.as_deref())?);
    logging::follow(&config);
    let by_config = if config.leader.is_some() { state::Role::Follower } else { state::Role::Leader };
    let Start { role, paused, force } = how;
    daemon::run(daemon::Start { config, wanted: role.unwrap_or(by_config), paused, force, file, flags })
}

fn load(file: Option<&Path>) -> Result<Config> {
    file.map_or_else(|| Ok(Config::default()), Config::load)
}

/// The socket that a command names, or that of the state directory it names, or of the one its file names.
fn socket(at: &At) -> Result<PathBuf> {
    let state = match (&at.socket, &at.state, &at.config) {
        (Some(path), ..) => return Ok(path.clone()),
        (None, Some(dir), _) => Some(dir.clone()),
        (None, None, Some(file)) => Config::load(file)?.state,
        (None, None, None) => None,
    };
    let none = || Error::new(ErrorKind::Usage, "the configuration names no state directory; use --state DIR");
    Ok(state.ok_or_else(none)?.join(state::SOCKET))
}

/// Asks the daemon and prints the answer, as JSON or in words.
fn show(ask: &Ask, request: &Request, words: impl Fn(&Value) -> String) -> Result<ExitCode> {
    let answer = control::call(&socket(&ask.at)?, request, ask.timeout.0)?;
    let text = if ask.json { json_line(&answer)? } else { words(&answer) };
    print(&text)
}

fn json_line(value: &Value) -> Result<String> {
    let mut text =
        serde_json::to_string_pretty(value).map_err(|e| Error::new(ErrorKind::Io, e.to_string()))?;
    text.push('\n');
    Ok(text)
}

fn reloaded(v: &Value) -> String {
    let keys = |k: &str| {
        let list = v.get(k).and_then(Value::as_array).into_iter().flatten();
        list.filter_map(Value::as_str).collect::<Vec<_>>().join(", ")
    };
    if v.get("reloaded").and_then(Value::as_bool) == Some(false) {
        let text = "keys, certificates and peers read again; there is no configuration file: other flags need a restart\n";
        let retried = v.get("retried").and_then(Value::as_bool) == Some(true);
        return text.to_owned() + if retried { "what failed is tried again\n" } else { "" };
    }
    let mut text = "configuration read again\n".to_owned();
    for (key, what) in [
        ("changed", "in force now"),
        ("restart", "in force only after a restart of the daemon"),
        ("idle", "without meaning in this role"),
    ] {
        let keys = keys(key);
        if !keys.is_empty() {
            text += &format!("{what}: {keys}\n");
        }
    }
    text
}

fn rests(word: &str, v: &Value) -> String {
    let text = |k: &str| v.get(k).and_then(Value::as_str).unwrap_or("-").to_owned();
    format!("{word} at {} ({} cut)\n", text("lsn"), text("cut"))
}

/// Writes to standard output; a reader that went away is no failure.
fn print(text: &str) -> Result<ExitCode> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(e).context(|| "cannot write to standard output")
        }
        _ => Ok(ExitCode::SUCCESS),
    }
}

fn inspect_log(command: &LogCommand) -> Result<ExitCode> {
    let mut stdout = std::io::BufWriter::new(std::io::stdout().lock());
    let result = match command {
        LogCommand::Dump(s) => dump::dump(&inspect::files(&s.segments)?, s.json, &mut stdout),
        LogCommand::Verify(s) => inspect::verify(&inspect::files(&s.segments)?, s.json, &mut stdout),
        LogCommand::Stat(s) => inspect::stat(&inspect::files(&s.segments)?, s.json, &mut stdout),
    };
    let flushed = stdout.flush();
    match result {
        Err(e) if e.os() == Some(nix::errno::Errno::EPIPE as i32) => Ok(ExitCode::SUCCESS),
        Err(e) => Err(e),
        Ok(()) => match flushed {
            Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
                Err(e).context(|| "cannot write to standard output")
            }
            _ => Ok(ExitCode::SUCCESS),
        },
    }
}

fn show_config(file: Option<&Path>, json: bool) -> Result<ExitCode> {
    let config = load(file)?;
    let text = if json {
        let value =
            serde_json::to_value(&config).map_err(|e| Error::new(ErrorKind::Config, e.to_string()))?;
        json_line(&value)?
    } else {
        toml::to_string(&config).map_err(|e| Error::new(ErrorKind::Config, e.to_string()))?
    };
    print(&text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_command_line_is_said_in_short_with_its_tip() {
        let short = |words: &str| {
            let words = std::iter::once("towline").chain(words.split_whitespace());
            in_short(&Cli::try_parse_from(words).unwrap_err().to_string())
        };
        let missing = short("check");
        assert!(
            missing.starts_with("the following required arguments were not provided: --state"),
            "{missing}"
        );
        let unknown = short("check --stat /x");
        assert!(unknown.contains("tip: a similar argument exists: '--state'"), "{unknown}");
        let value = short("check --state /x --accept nothing");
        assert!(
            value.contains("possible values: ") && value.contains(" gap,") && !value.contains("Usage"),
            "{value}"
        );
        for swapped in ["--max-lag 60s,30s", "--min-free-disk 2%,5%", "--min-certificate-days 7,30"] {
            let swapped = short(&format!("check --state /x {swapped}"));
            assert!(swapped.contains("would never come before the critical"), "{swapped}");
        }
    }

    #[test]
    fn the_command_is_seen_among_words_that_are_not_understood() {
        let seen = |words: &str| command_word(words.split_whitespace().map(OsString::from));
        for words in ["check", "--nonsense check", "--log-level x check --state", "--log-level=x check wait"]
        {
            assert_eq!(seen(words).as_deref(), Some("check"), "{words}");
        }
        assert_eq!(seen("--log-level check"), None);
    }
}
