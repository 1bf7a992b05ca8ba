//! `towline lost-writes`.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde_json::json;

use super::args::LostWrites;
use super::{json_line, load, print};
use crate::config;
use crate::error::{Error, ErrorKind, Result};
use crate::lost::{self, Exported, Listed};
use crate::state::StateDir;
use crate::status::bytes;

pub(super) fn run(command: &LostWrites) -> Result<ExitCode> {
    match command {
        LostWrites::List { state, config, json } => {
            let of_config = load(config.as_deref())?.state;
            let dir = state.clone().or(of_config).ok_or_else(no_state)?;
            if !dir.is_dir() {
                let text =
                    format!("'{}' is no directory; name the state directory of the node", dir.display());
                return Err(Error::new(ErrorKind::Missing, text));
            }
            let all = lost::list(&dir.join("lost"))?;
            print(&if *json { json_line(&json!({ "bundles": all }))? } else { words(&all) })
        }
        LostWrites::Export { bundle, state, config, out, over, json } => {
            let state = match config {
                Some(file) => Some(load(Some(file))?.state.ok_or_else(no_state)?),
                None => state.clone(),
            };
            let dir = match (bundle.parse::<u64>(), &state) {
                (Ok(number), Some(state)) => state.join("lost").join(number.to_string()),
                (Ok(_), None) if !PathBuf::from(bundle).is_dir() => {
                    let text = "a number is one of a state directory: add --state DIR or --config FILE, or name the bundle's directory";
                    return Err(Error::new(ErrorKind::Usage, text));
                }
                _ => PathBuf::from(bundle),
            };
            apart(&dir, out)?;
            let exported = lost::export(&dir, out, over.as_deref())?;
            let value =
                serde_json::to_value(&exported).map_err(|e| Error::new(ErrorKind::Io, e.to_string()))?;
            print(&if *json { json_line(&value)? } else { told(&exported) })
        }
    }
}

/// What is laid out in the data directory of the node would be a local edit of it, or be replicated.
fn apart(bundle: &Path, out: &Path) -> Result<()> {
    let bundle = std::path::absolute(bundle).map_err(|e| Error::io("find", bundle, e))?;
    let Some(state) = bundle.parent().and_then(Path::parent) else { return Ok(()) };
    // A bundle may lie anywhere else, too.
    let Ok(Some(control)) = StateDir::peek(state) else { return Ok(()) };
    for (dir, what) in [(control.data_path.as_path(), "data"), (state, "state")] {
        if config::is_within(out, dir) {
            let text = format!(
                "'{}' lies in the {what} directory of the node, '{}'; name a directory elsewhere",
                out.display(),
                dir.display()
            );
            return Err(Error::new(ErrorKind::Refused, text));
        }
    }
    Ok(())
}

fn no_state() -> Error {
    Error::new(
        ErrorKind::Usage,
        "the configuration names no state directory; add the key 'state', or use --state DIR",
    )
}

fn words(all: &[Listed]) -> String {
    if all.is_empty() {
        return "nothing was left behind\n".to_owned();
    }
    let mut text = String::new();
    for l in all {
        // Writing to a text can't fail.
        let _ = match &l.bundle {
            Some(b) => writeln!(
                text,
                "{}  {}  timeline {} from {} to {}, left for {} of '{}': {} created, {} changed, {} renamed, {} deleted, {} with other \
                 attributes; {} of log in {}",
                l.number,
                b.time,
                b.timeline,
                b.branch,
                b.end,
                b.to_timeline,
                b.leader,
                b.changes.created,
                b.changes.changed,
                b.changes.renamed,
                b.changes.deleted,
                b.changes.attributes,
                bytes(l.log_bytes),
                l.path.display()
            ),
            None => writeln!(
                text,
                "{}  {} of log in {}{}",
                l.number,
                bytes(l.log_bytes),
                l.path.display(),
                l.problem.as_ref().map(|p| format!(": {p}")).unwrap_or_default()
            ),
        };
    }
    text
}

fn told(exported: &Exported) -> String {
    let partial = exported.changes.iter().filter(|l| l.change.whole == Some(false)).count();
    let whole = exported.changes.iter().filter(|l| l.change.whole == Some(true)).count();
    format!(
        "{whole} files whole and {partial} in part, {} of content, in '{}'; list.txt beside it says what they are, and what else \
         was changed\n",
        bytes(exported.bytes),
        exported.files.display()
    )
}
