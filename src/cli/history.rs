//! `towline history`: where the timelines of a node branched off.

use std::fmt::Write as _;
use std::process::ExitCode;

use serde_json::{Value, json};

use super::args;
use super::{json_line, load, print};
use crate::error::{Error, ErrorKind, Result};
use crate::history::{Branch, History};
use crate::moment::Moment;
use crate::state::{self, StateDir};

pub(super) fn run(args: &args::History) -> Result<ExitCode> {
    let config = load(args.config.as_deref())?;
    let none = || {
        let text = "the configuration names no state directory; add the key 'state', or use --state DIR";
        Error::new(ErrorKind::Usage, text)
    };
    let dir = args.state.clone().or(config.state).ok_or_else(none)?;
    let control = StateDir::peek(&dir)?.ok_or_else(|| {
        let text = format!(
            "'{}' is no state directory of a node: it has no control file; name the one that its daemon runs with",
            dir.display()
        );
        Error::new(ErrorKind::Missing, text)
    })?;
    let history = state::history(&dir, &control)?;
    let text = if args.json { json_line(&value(&history))? } else { words(&history) };
    print(&text)
}

/// Nothing that is not known is made up: it is null.
fn value(history: &History) -> Value {
    let branch = |b: &Branch| {
        json!({
            "timeline": b.timeline.0,
            "parent": b.parent.0,
            "branch": b.at.to_string(),
            "line": b.line.to_string(),
            "time": Moment(b.when).to_string(),
            "node": b.node.to_string(),
            "name": b.name,
            "reason": b.reason,
            "known_end": b.lost().map(|_| b.known.to_string()),
            "lost_bytes": b.lost(),
        })
    };
    json!({
        "system": history.system().to_string(),
        "timeline": history.timeline().0,
        "line": history.line().to_string(),
        "branches": history.branches().iter().map(branch).collect::<Vec<_>>(),
    })
}

fn words(history: &History) -> String {
    let mut text = format!("timeline {} of system {}\n", history.timeline(), history.system());
    if history.branches().is_empty() {
        text += "it never branched\n";
        return text;
    }
    let mut rows =
        vec![["TIMELINE", "FROM", "BRANCH", "TIME", "BY", "WHY", "LEFT BEHIND"].map(str::to_owned)];
    rows.extend(history.branches().iter().map(|b| {
        [
            b.timeline.to_string(),
            b.parent.to_string(),
            b.at.to_string(),
            Moment(b.when).to_string(),
            b.name.clone(),
            b.reason.word().to_owned(),
            b.lost().map_or_else(|| "unknown".to_owned(), |n| format!("{n} bytes")),
        ]
    }));
    let width = |i: usize| rows.iter().map(|r| r[i].chars().count()).max().unwrap_or(0);
    let widths: [usize; 7] = std::array::from_fn(width);
    for row in &rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            // Writing to a text can't fail.
            let _ = write!(line, "{cell:width$}  ");
        }
        text += line.trim_end();
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{Beginning, LineId, Reason};
    use crate::position::{Lsn, NodeId, SystemId, TimelineId};

    #[test]
    fn what_is_not_known_is_not_made_up() {
        let begins = |at, known| Beginning {
            at: Lsn(at),
            line: LineId(0xA),
            when: 1_700_000_000_000_000_000,
            node: NodeId(5),
            name: "f1".to_owned(),
            reason: Reason::Promotion,
            known: Lsn(known),
        };
        let first = History::first(SystemId(7));
        assert_eq!(words(&first), "timeline 1 of system 0000000000000007\nit never branched\n");
        let two = first.child(begins(0x1_0000_0010, 0), TimelineId::FIRST).unwrap();
        let three = two.child(begins(0x1_0000_0020, 0x1_0000_0025), TimelineId::FIRST).unwrap();
        let text = words(&three);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "timeline 3 of system 0000000000000007");
        assert_eq!(lines[2], "2         1     1/00000010  2023-11-14T22:13:20Z  f1  promotion  unknown");
        assert_eq!(lines[3], "3         2     1/00000020  2023-11-14T22:13:20Z  f1  promotion  5 bytes");
        let json = value(&three);
        assert!(json["branches"][0]["lost_bytes"].is_null() && json["branches"][0]["known_end"].is_null());
        assert_eq!(json["branches"][1]["lost_bytes"], 5);
        assert_eq!(json["branches"][1]["reason"], "promotion");
    }
}
