//! `towline generate`: manual pages and shell completions, written from the definitions they describe.
//!
//! | page | made from |
//! | --- | --- |
//! | towline(1) and one a command | the command line's definition, the classes of errors, [`pages`] |
//! | towline.toml(5) | the comments and defaults of the configuration's keys |
//! | towline-log(5) | the byte tables of [`crate::segment`] and [`crate::record`] |

mod format;
mod keys;
mod pages;
mod roff;
mod source;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use clap::{Command, CommandFactory};
use clap_complete::Shell;

use super::args::{Cli, Generate};
use crate::error::{Error, Result};

/// Files by name.
type Files = BTreeMap<String, String>;

/// Writes the pages or the completions into a directory.
///
/// # Errors
/// When the directory can't be written.
pub(super) fn run(what: &Generate) -> Result<()> {
    match what {
        Generate::Man { dir } => write(dir, &man(), &[".1", ".5"]),
        Generate::Completions { dir } => {
            write(dir, &completions(), &["towline.bash", "_towline", "towline.fish"])
        }
    }
}

/// Writes what differs, and takes away pages that are none any more.
fn write(dir: &Path, files: &Files, ends: &[&str]) -> Result<()> {
    fs::create_dir_all(dir).map_err(|e| Error::io("create", dir, e))?;
    for (name, text) in files {
        let path = dir.join(name);
        if fs::read_to_string(&path).is_ok_and(|old| old == *text) {
            continue;
        }
        fs::write(&path, text).map_err(|e| Error::io("write", &path, e))?;
    }
    for entry in fs::read_dir(dir).map_err(|e| Error::io("list", dir, e))?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let ours = name.contains("towline") && ends.iter().any(|e| name.ends_with(e));
        if ours && !files.contains_key(&name) {
            fs::remove_file(entry.path()).map_err(|e| Error::io("remove", entry.path(), e))?;
        }
    }
    Ok(())
}

/// Every manual page.
fn man() -> Files {
    let mut files = pages::all(&Cli::command());
    files.insert("towline.toml.5".to_owned(), keys::page());
    files.insert("towline-log.5".to_owned(), format::page());
    files
}

/// The command line without what is hidden and without `help`, which `--help` says as well.
fn shown() -> Command {
    let whole = Cli::command();
    Command::new("towline")
        .args(whole.get_arguments().cloned())
        .subcommands(whole.get_subcommands().filter(|s| !s.is_hide_set()).cloned())
        .version(env!("CARGO_PKG_VERSION"))
        .disable_help_subcommand(true)
}

/// Every completion.
fn completions() -> Files {
    [(Shell::Bash, "towline.bash"), (Shell::Zsh, "_towline"), (Shell::Fish, "towline.fish")]
        .into_iter()
        .map(|(shell, name)| {
            let mut out = Vec::new();
            clap_complete::generate(shell, &mut shown(), "towline", &mut out);
            let text = String::from_utf8_lossy(&out).into_owned();
            let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
            (name.to_owned(), lines.join("\n") + "\n")
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_and_completions_are_those_of_this_program() {
        for (dir, files) in [("man", man()), ("scripts/completions", completions())] {
            let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join(dir);
            let kept: Vec<String> = fs::read_dir(&dir)
                .unwrap()
                .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
                .collect();
            for (name, text) in &files {
                let old = fs::read_to_string(dir.join(name)).unwrap_or_default();
                assert!(old == *text, "'{}' is stale: run scripts/generate.sh", dir.join(name).display());
            }
            for name in kept {
                assert!(files.contains_key(&name), "'{name}' is made from nothing: run scripts/generate.sh");
            }
        }
    }

    #[test]
    fn what_is_generated_is_ascii_and_every_flag_is_in_its_page() {
        let files = man();
        for (name, text) in files.iter().chain(&completions()) {
            assert!(text.is_ascii(), "{name}");
            assert!(!text.contains("thaw-guard"), "{name} shows what is hidden");
        }
        fn look(command: &Command, files: &Files, seen: &mut usize) {
            let name = command.get_display_name().unwrap_or(command.get_name()).to_owned();
            let text = &files[&format!("{name}.1")];
            for argument in command.get_arguments().filter(|a| !a.is_hide_set()) {
                if let Some(long) = argument.get_long() {
                    let flag = format!("--{long}").replace('-', "\\-");
                    assert!(text.contains(&flag), "{name} has no {flag}");
                    *seen += 1;
                }
            }
            for sub in command.get_subcommands().filter(|s| !s.is_hide_set()) {
                look(sub, files, seen);
            }
        }
        let (mut command, mut seen) = (Cli::command().disable_help_subcommand(true), 0);
        command.build();
        look(&command, &files, &mut seen);
        assert!(seen > 60, "{seen} flags");
    }

    #[test]
    fn a_page_that_is_none_any_more_is_taken_away_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["towline-gone.1", "other.1", "towline.txt"] {
            fs::write(dir.path().join(name), "x").unwrap();
        }
        run(&Generate::Man { dir: dir.path().to_owned() }).unwrap();
        assert!(!dir.path().join("towline-gone.1").exists());
        assert!(dir.path().join("other.1").exists() && dir.path().join("towline.txt").exists());
        assert!(dir.path().join("towline.toml.5").exists());
    }
}
