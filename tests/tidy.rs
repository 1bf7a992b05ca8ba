//! The shape of the source: floors, names, sizes, and words that must not be left behind.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

/// Modules from the ground up. A module may use lower floors, and on its own floor those before it.
const FLOORS: &[&[&str]] = &[
    &["position", "codec", "error", "failpoint", "moment"],
    &["certificate", "record", "segment", "history", "wire", "manifest", "pack"],
    &["catalog", "session", "quorum", "retention", "trust"],
    &["sys", "disk", "quiesce", "tls", "net"],
    &["log", "blocks", "fold", "checkpoint", "state", "lost", "slots", "archive", "set"],
    &["status", "capture", "apply", "archiver"],
    &["fill", "sync", "send", "receive", "backup", "restore", "verify", "combine"],
    &["config", "control", "http", "daemon"],
    &["cli"],
];
/// Names that say nothing.
const BANNED: &[&str] =
    &["utils", "util", "common", "helpers", "helper", "manager", "misc", "core", "shared"];
const FILE_LINES: usize = 700;
const FUNCTION_LINES: usize = 80;
/// The one module with calls that no safe function makes.
const UNSAFE: &str = "src/sys/raw.rs";

struct Source {
    path: PathBuf,
    /// Top-level module, e.g. `log` for src/log/writer.rs.
    module: String,
    text: String,
    /// As `text`, with comments, strings and character literals blanked out: same lines, same columns.
    code: String,
    /// Lines before the tests.
    production: usize,
}

fn sources(dir: &str) -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(dir);
    let mut out = Vec::new();
    for entry in walkdir::WalkDir::new(&root).sort_by_file_name() {
        let path = entry.expect("walk").into_path();
        if path.extension().is_none_or(|e| e != "rs") {
            continue;
        }
        let rel = path.strip_prefix(&root).expect("below").to_owned();
        let first = rel.components().next().expect("a name").as_os_str().to_str().expect("UTF-8");
        let module = first.trim_end_matches(".rs").to_owned();
        let text = fs::read_to_string(&path).expect("read");
        let code = blank(&text);
        // A file of tests only is no production code; a tests module ends a file.
        let tests = rel.file_stem().is_some_and(|s| s == "tests" || s.to_string_lossy().ends_with("_tests"));
        let production = if tests { 0 } else { production_lines(&code) };
        out.push(Source { path: Path::new(dir).join(rel), module, text, code, production });
    }
    out
}

/// Lines before `#[cfg(test)]` with a module behind it.
fn production_lines(code: &str) -> usize {
    let lines: Vec<&str> = code.lines().collect();
    (0..lines.len())
        .find(|&i| {
            let next = lines[i + 1..].iter().find(|l| !l.trim().is_empty() && !l.trim().starts_with("#["));
            lines[i].trim() == "#[cfg(test)]"
                && next.is_some_and(|l| l.trim_start().starts_with("mod "))
                && next.is_some_and(|l| l.contains('{'))
        })
        .unwrap_or(lines.len())
}

/// Blanks out comments, strings and character literals.
fn blank(text: &str) -> String {
    let b = text.as_bytes();
    let mut out = b.to_vec();
    let mut i = 0;
    while i < b.len() {
        let end = match b[i] {
            b'/' if b.get(i + 1) == Some(&b'/') => line_end(b, i),
            b'/' if b.get(i + 1) == Some(&b'*') => comment_end(b, i),
            b'r' if !word_before(b, i) && raw_hashes(b, i + 1).is_some() => raw_end(b, i + 1),
            b'"' => string_end(b, i),
            b'\'' => char_end(b, i),
            _ => i,
        };
        for byte in &mut out[i..end] {
            if *byte != b'\n' {
                *byte = b' ';
            }
        }
        i = end.max(i + 1);
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn word_before(b: &[u8], i: usize) -> bool {
    // `br"..."` is a raw string, too.
    let at = if i > 0 && b[i - 1] == b'b' { i - 1 } else { i };
    at > 0 && (b[at - 1].is_ascii_alphanumeric() || b[at - 1] == b'_')
}

fn line_end(b: &[u8], i: usize) -> usize {
    b[i..].iter().position(|&c| c == b'\n').map_or(b.len(), |n| i + n)
}

fn comment_end(b: &[u8], i: usize) -> usize {
    let (mut depth, mut at) = (0, i);
    while at + 1 < b.len() {
        match &b[at..at + 2] {
            b"/*" => depth += 1,
            b"*/" => depth -= 1,
            _ => {
                at += 1;
                continue;
            }
        }
        at += 2;
        if depth == 0 {
            return at;
        }
    }
    b.len()
}

fn raw_hashes(b: &[u8], i: usize) -> Option<usize> {
    let n = b[i..].iter().take_while(|&&c| c == b'#').count();
    (b.get(i + n) == Some(&b'"')).then_some(n)
}

fn raw_end(b: &[u8], i: usize) -> usize {
    let n = raw_hashes(b, i).unwrap_or(0);
    let close: Vec<u8> = std::iter::once(b'"').chain(std::iter::repeat_n(b'#', n)).collect();
    let from = i + n + 1;
    b[from..].windows(close.len()).position(|w| w == close).map_or(b.len(), |p| from + p + close.len())
}

fn string_end(b: &[u8], i: usize) -> usize {
    let mut at = i + 1;
    while at < b.len() && b[at] != b'"' {
        at += if b[at] == b'\\' { 2 } else { 1 };
    }
    (at + 1).min(b.len())
}

fn char_end(b: &[u8], i: usize) -> usize {
    if b.get(i + 1) == Some(&b'\\') {
        let from = i + 3;
        return b[from.min(b.len())..].iter().position(|&c| c == b'\'').map_or(b.len(), |n| from + n + 1);
    }
    // Anything else without a closing quote is a lifetime.
    if b.get(i + 2) == Some(&b'\'') { i + 3 } else { i + 1 }
}

fn floor(module: &str) -> Option<(usize, usize)> {
    FLOORS.iter().enumerate().find_map(|(f, row)| row.iter().position(|m| *m == module).map(|i| (f, i)))
}

/// Top-level modules that a piece of code names behind `crate::`.
fn edges(code: &str) -> BTreeSet<String> {
    let mut out = BTreeSet::new();
    for (at, _) in code.match_indices("crate::") {
        if at > 0 && code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '$') {
            continue;
        }
        let rest = &code[at + 7..];
        if let Some(group) = rest.strip_prefix('{') {
            let mut depth = 1;
            let mut word = String::new();
            let mut first = true;
            for c in group.chars() {
                match c {
                    '{' => depth += 1,
                    '}' => depth -= 1,
                    ',' if depth == 1 => first = true,
                    ':' => first = false,
                    c if (c.is_alphanumeric() || c == '_') && depth == 1 && first => {
                        word.push(c);
                        continue;
                    }
                    _ => {}
                }
                if !word.is_empty() {
                    out.insert(std::mem::take(&mut word));
                    first = c == ',';
                }
                if depth == 0 {
                    break;
                }
            }
        } else {
            out.insert(rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect());
        }
    }
    out.retain(|m| m.chars().next().is_some_and(char::is_lowercase));
    out
}

/// Functions with their first line (from 1) and their number of lines.
fn functions(code: &str) -> Vec<(String, usize, usize)> {
    let b = code.as_bytes();
    let mut out = Vec::new();
    for (at, _) in code.match_indices("fn ") {
        if at > 0 && (b[at - 1].is_ascii_alphanumeric() || b[at - 1] == b'_') {
            continue;
        }
        let name: String = code[at + 3..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        let Some(open) = code[at..].find(['{', ';']).map(|n| at + n) else { continue };
        if name.is_empty() || b[open] == b';' {
            continue;
        }
        let mut depth = 0;
        let close = b[open..].iter().position(|c| {
            depth += i32::from(*c == b'{') - i32::from(*c == b'}');
            depth == 0
        });
        let line = |i: usize| code[..i].matches('\n').count() + 1;
        let last = line(close.map_or(b.len() - 1, |n| open + n));
        out.push((name, line(at), last - line(at) + 1));
    }
    out
}

/// Collects every finding, so that one run shows all.
fn report(what: &str, findings: &str) {
    assert!(findings.is_empty(), "{what}:\n{findings}");
}

#[test]
fn every_module_uses_only_what_is_below_it() {
    let mut bad = String::new();
    let mut seen = 0;
    for s in sources("src") {
        if s.module == "lib" || s.module == "main" {
            continue;
        }
        let Some(mine) = floor(&s.module) else {
            let _ = writeln!(bad, "{}: module {} has no floor", s.path.display(), s.module);
            continue;
        };
        let code: String = s.code.lines().take(s.production).map(|l| format!("{l}\n")).collect();
        for used in edges(&code) {
            seen += 1;
            let fine = used == s.module || floor(&used).is_some_and(|f| f < mine);
            if !fine {
                let _ = writeln!(bad, "{}: {} must not use {used}", s.path.display(), s.module);
            }
        }
    }
    assert!(seen > 10, "the parser found no edges: it is broken");
    report("floors", &bad);
}

#[test]
fn every_floor_names_a_module_that_exists() {
    let modules: BTreeSet<String> = sources("src").into_iter().map(|s| s.module).collect();
    for name in FLOORS.iter().copied().flatten() {
        assert!(modules.contains(*name), "module {name} is gone");
    }
}

#[test]
fn names_say_what_a_module_is_about() {
    let mut bad = String::new();
    for s in sources("src") {
        for part in s.path.with_extension("").components() {
            let part = part.as_os_str().to_string_lossy().into_owned();
            if BANNED.contains(&part.as_str()) {
                let _ = writeln!(bad, "{}", s.path.display());
            }
        }
    }
    report("banned names", &bad);
}

#[test]
fn files_and_functions_are_short() {
    let mut bad = String::new();
    for s in sources("src").into_iter().chain(sources("tests")) {
        let lines = s.text.lines().count();
        if lines > FILE_LINES {
            let _ = writeln!(bad, "{}: {lines} lines", s.path.display());
        }
        for (name, line, length) in functions(&s.code) {
            if length > FUNCTION_LINES && line <= s.production {
                let _ = writeln!(bad, "{}:{line}: {name} has {length} lines", s.path.display());
            }
        }
    }
    report(&format!("more than {FILE_LINES} lines a file or {FUNCTION_LINES} a function"), &bad);
}

#[test]
fn sources_are_ascii_and_nothing_is_left_undone() {
    let mut bad = String::new();
    for s in sources("src").into_iter().chain(sources("tests")) {
        for (i, (line, code)) in s.text.lines().zip(s.code.lines()).enumerate() {
            let place = format!("{}:{}", s.path.display(), i + 1);
            if !line.is_ascii() {
                let _ = writeln!(bad, "{place}: not ASCII");
            }
            for word in ["todo!", "unimplemented!", "#[ignore", "dbg!"] {
                if code.contains(word) {
                    let _ = writeln!(bad, "{place}: {word}");
                }
            }
            let comment = line.trim_start().starts_with("//");
            for word in ["FIXME", "XXX", "TODO"] {
                if comment && line.contains(word) {
                    let _ = writeln!(bad, "{place}: {word}");
                }
            }
            if code.contains("unsafe ") && s.path.starts_with("src") && !s.path.ends_with(UNSAFE) {
                let _ = writeln!(bad, "{place}: unsafe");
            }
        }
    }
    report("left behind", &bad);
}

/// A thread or a task that panics is vital, so that the process ends, or a comment says who notices.
#[test]
fn nothing_that_runs_by_itself_is_lost_unseen() {
    let mut bad = String::new();
    for s in sources("src") {
        let (text, code): (Vec<_>, Vec<_>) = (s.text.lines().collect(), s.code.lines().collect());
        let tests = s.path.iter().any(|part| part == "tests");
        for (i, line) in code.iter().enumerate().take(if tests { 0 } else { s.production }) {
            let spawns = line.split("spawn(").skip(1).any(|rest| !rest.starts_with(')'));
            let around = i.saturating_sub(1)..(i + 3).min(code.len());
            let vital = code[around].iter().any(|l| l.contains("vital::"));
            let said = text[i.saturating_sub(3)..i].iter().any(|l| l.contains("// A panic: "));
            if spawns && !vital && !said {
                let _ = writeln!(bad, "{}:{}: what becomes of a panic there?", s.path.display(), i + 1);
            }
        }
    }
    report("threads and tasks", &bad);
}

/// What a channel shows is copied: whoever holds it while he waits for a lock keeps its writer out, and that one those who look
/// at it with the lock in hand.
#[test]
fn nobody_holds_a_channel_while_he_waits() {
    let mut bad = String::new();
    for s in sources("src") {
        for (i, line) in s.code.lines().enumerate() {
            for look in [".borrow()", ".borrow_and_update()"] {
                let Some((before, after)) = line.split_once(look) else { continue };
                let held = before.trim_start().starts_with("let ")
                    && !before.contains('*')
                    && after.starts_with(';');
                let lent = !before.ends_with("Arc::clone(&self.0")
                    && before
                        .rsplit_once('&')
                        .is_some_and(|(_, p)| p.chars().all(|c| c.is_alphanumeric() || "._".contains(c)));
                if held || lent {
                    let _ = writeln!(bad, "{}:{}: copy what the channel shows", s.path.display(), i + 1);
                }
            }
        }
    }
    report("channels", &bad);
}

#[test]
fn the_parser_sees_what_it_should() {
    let code = blank(
        "use crate::{log::{self, x}, error}; // crate::no\nlet s = \"crate::no {\"; crate::disk::f('{');",
    );
    let found: Vec<String> = edges(&code).into_iter().collect();
    assert_eq!(found, ["disk", "error", "log"]);
    let code = blank("fn a() {\n  let r = r#\"}\"#;\n  'x: loop {}\n}\nfn b();\n");
    assert_eq!(functions(&code), [("a".to_owned(), 1, 4)]);
    assert!(floor("disk") < floor("log") && floor("error") < floor("record") && floor("nothing").is_none());
}
