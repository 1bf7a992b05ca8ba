//! The answer for people: one screen, what is wrong first, then the numbers, then a table of the cascade.

use std::fmt::Write;

use serde_json::Value;

use super::notices::{notices, split, waiting};
use super::words::{bytes, plain, span};
use super::{Rates, View, render_slots};

/// Columns of the first part.
const LABEL: usize = 10;

/// The page for people.
#[must_use]
pub fn render(v: &Value) -> String {
    render_with(v, None, None)
}

/// The same with bytes a second since the last look, for a screen of so many columns.
#[must_use]
pub fn render_with(v: &Value, rates: Option<&Rates>, columns: Option<usize>) -> String {
    let v = View(v);
    let mut page = Page::default();
    who(v, &mut page);
    trouble(v, &mut page);
    rivals(v, &mut page);
    log(v, rates, &mut page);
    match v.text("/role") {
        "leader" => capture(v, &mut page),
        _ => follower(v, &mut page),
    }
    synchronous(v, &mut page);
    archive(v, &mut page);
    disk(v, &mut page);
    tls(v, &mut page);
    for notice in notices(v) {
        page.row("notice", format!("{}: {}", notice.word, notice.text));
    }
    page.row("guarantee", v.text("/guarantee"));
    cascade(v, rates, columns, &mut page);
    backups(v, &mut page);
    let slots = render_slots(v.0);
    if !slots.is_empty() {
        page.0.push('\n');
        page.0 += &slots;
    }
    page.0
}

fn archive(v: View<'_>, page: &mut Page) {
    if !v.has("/archive") {
        return;
    }
    let mut text = format!("{}, {}", v.text("/archive/state"), v.text("/archive/address"));
    let last = v.text("/archive/last");
    if !last.is_empty() {
        let _ = write!(text, ", last {last}");
    }
    let waiting = v.count("/archive/waiting");
    if waiting > 0 {
        let _ = write!(text, ", {waiting} segments wait ({})", bytes(v.count("/archive/waiting_bytes")));
        if let Some(age) = since(v, "/archive/waiting_since") {
            let _ = write!(text, " for {age}");
        }
    }
    page.row("archive", text);
}

fn tls(v: View<'_>, page: &mut Page) {
    if !v.has("/tls") {
        return;
    }
    let holds = match v.number("/tls/days_left") {
        Some(days) if days < 0.0 => ", its certificate is EXPIRED".to_owned(),
        Some(days) => format!(", its certificate holds {days} days"),
        None => String::new(),
    };
    let key = or_dash(v.text("/tls/fingerprint"));
    page.row("tls", format!("{}, {} peers, key {key}{holds}", v.text("/tls/mode"), v.count("/tls/peers")));
}

#[derive(Default)]
struct Page(String);

impl Page {
    fn row(&mut self, label: &str, text: impl AsRef<str>) {
        let _ = writeln!(self.0, "{label:<LABEL$} {}", plain(text.as_ref()).trim_end());
    }
}

pub(super) fn or_dash(text: &str) -> &str {
    if text.is_empty() { "-" } else { text }
}

/// Time since `path`, by the clock of the node.
fn since(v: View<'_>, path: &str) -> Option<String> {
    let (then, now) = (v.time(path)?, v.time("/now")?);
    Some(seconds_between(then, now))
}

fn seconds_between(then: i64, now: i64) -> String {
    span(std::time::Duration::from_nanos(now.abs_diff(then)).as_secs_f64())
}

fn who(v: View<'_>, page: &mut Page) {
    let up = since(v, "/started").map(|s| format!(", up {s}")).unwrap_or_default();
    page.row(
        "node",
        format!("{} ({}), towline {}{up}", v.text("/name"), v.text("/role"), v.text("/version")),
    );
    page.row("data", v.text("/data"));
    if v.has("/listen") {
        page.row("listen", v.text("/listen"));
    }
    page.row("system", format!("{} timeline {}", v.text("/system"), v.count("/timeline")));
    page.row("state", v.text("/state"));
    page.row("health", v.text("/health"));
    switchover(v, page);
}

fn switchover(v: View<'_>, page: &mut Page) {
    if v.has("/switchover/under_way") {
        let of = |key: &str| v.text(&format!("/switchover/under_way/{key}"));
        let since = since(v, "/switchover/under_way/since").map(|s| format!(", for {s}")).unwrap_or_default();
        page.row(
            "switchover",
            format!("to '{}' at {}: {}{since}", of("to"), or_dash(of("address")), of("step")),
        );
    } else if v.has("/switchover/last") {
        let of = |key: &str| v.text(&format!("/switchover/last/{key}"));
        let stopped = v.number("/switchover/last/writes_stopped_seconds").unwrap_or_default();
        page.row(
            "switchover",
            format!(
                "handed over to '{}' at {}; writes were stopped for {}",
                of("to"),
                of("at"),
                span(stopped)
            ),
        );
    }
}

fn trouble(v: View<'_>, page: &mut Page) {
    if !v.has("/error") {
        return;
    }
    page.row("error", format!("{}: {}", v.text("/error/kind"), v.text("/error/message")));
    page.row("remedy", v.text("/error/remedy"));
    let since = since(v, "/error/since").map(|s| format!("for {s}")).unwrap_or_default();
    let next = v.time("/error/next_retry").zip(v.time("/now")).map(|(next, now)| {
        let pause = seconds_between(next.max(now), now);
        format!(", tried {} times, next in {pause}", v.count("/error/attempts"))
    });
    page.row("since", since + &next.unwrap_or_default());
}

fn rivals(v: View<'_>, page: &mut Page) {
    if let Some(text) = split(v) {
        page.row("rivals", text);
    }
}

fn log(v: View<'_>, rates: Option<&Rates>, page: &mut Page) {
    if !v.has("/log") {
        return;
    }
    let rate = rates.and_then(|r| r.log).map(|r| format!(", {}/s", bytes(r))).unwrap_or_default();
    page.row(
        "log",
        format!(
            "end {}  commit {}  exact {}{rate}",
            v.text("/log/end"),
            v.text("/log/commit"),
            v.text("/log/exact")
        ),
    );
    let newest = v.time("/log/commit_time").zip(v.time("/now"));
    let newest = newest.map(|(then, now)| format!("newest commit {} ago", seconds_between(then, now)));
    let cuts = match (v.has("/cuts"), waiting(v)) {
        (false, _) => "none yet".to_owned(),
        (true, None) => format!("exact; {}", newest.unwrap_or_default()),
        (true, Some(waiting)) => format!("file: {waiting}; {}", newest.unwrap_or_default()),
    };
    page.row("cuts", cuts);
}

/// `count what`, for what there is.
fn counted(v: View<'_>, keys: &[(&str, &str)]) -> String {
    let said = keys.iter().map(|(path, what)| (v.count(path), what)).filter(|(n, _)| *n > 0);
    said.map(|(n, what)| format!(", {what} {n}")).collect()
}

fn capture(v: View<'_>, page: &mut Page) {
    if !v.has("/capture") {
        return;
    }
    let mut text = format!(
        "files {}, exact cuts {}, file cuts {}",
        v.count("/capture/files"),
        v.count("/capture/cuts_exact"),
        v.count("/capture/cuts_file")
    );
    text += &counted(
        v,
        &[
            ("/capture/gaps", "gaps"),
            ("/capture/found_by_scan", "found by scans"),
            ("/capture/hot_files", "polled files"),
            ("/capture/unhashed_files", "files not hashed yet"),
            ("/capture/other_file_systems", "mounts left out"),
        ],
    );
    page.row("capture", text);
    let freezes = v.count("/capture/freezes");
    if freezes > 0 {
        let (last, longest) = (v.count("/capture/freeze_last_ms"), v.count("/capture/freeze_longest_ms"));
        let failed = counted(v, &[("/capture/freeze_failures", "failed")]);
        page.row("freezes", format!("{freezes}, last {last} ms, longest {longest} ms{failed}"));
    }
    let hold = v.text("/capture/hold");
    if !hold.is_empty() {
        page.row("hold", hold);
    }
}

fn follower(v: View<'_>, page: &mut Page) {
    upstream(v, page);
    resync(v, page);
    if v.has("/apply") {
        let paused = if v.flag("/apply/paused") { ", paused" } else { "" };
        let rest = counted(
            v,
            &[
                ("/apply/commits", "commits"),
                ("/apply/local_edits_total", "local edits"),
                ("/apply/inexact_applied", "file cuts taken"),
                ("/apply/suspects", "files to compare"),
            ],
        );
        let (lsn, cut, state) = (v.text("/apply/lsn"), v.text("/apply/cut"), v.text("/apply/state"));
        page.row("apply", format!("{lsn} ({cut} cut), {state}{paused}{rest}"));
    }
    if v.has("/lag") {
        let age = v.number("/lag/seconds").map_or_else(|| "age unknown".to_owned(), span);
        page.row("lag", format!("{}, {age}", bytes(v.count("/lag/bytes"))));
    }
}

fn resync(v: View<'_>, page: &mut Page) {
    if !v.has("/resync") {
        return;
    }
    if v.has("/resync/cause") {
        page.row("resync", v.text("/resync/cause"));
    }
    if v.count("/resync/completed") > 0 {
        page.row(
            "resynced",
            format!(
                "{} times; the last moved {} in {}, removed {} names; {} files repaired",
                v.count("/resync/completed"),
                bytes(v.count("/resync/received_bytes")),
                span(std::time::Duration::from_millis(v.count("/resync/took_ms")).as_secs_f64()),
                v.count("/resync/removed"),
                v.count("/resync/repaired_files")
            ),
        );
    }
    if v.count("/resync/lost_logs") > 0 {
        page.row(
            "lost",
            format!(
                "{} logs that the upstream has not are kept in lost/, {}; remove them when nobody needs them",
                v.count("/resync/lost_logs"),
                bytes(v.count("/resync/lost_bytes"))
            ),
        );
    }
}

fn upstream(v: View<'_>, page: &mut Page) {
    if !v.has("/upstream") {
        return;
    }
    let name = v.text("/upstream/name");
    let name = if name.is_empty() { String::new() } else { format!("{name} at ") };
    let heard = since(v, "/upstream/heard").map(|s| format!(", heard {s} ago")).unwrap_or_default();
    let silent = v.number("/upstream/leader_silent");
    let silent =
        silent.map(|s| format!(", which has had no news of the leader for {}", span(s))).unwrap_or_default();
    page.row(
        "upstream",
        format!("{name}{}, {}{heard}{silent}", v.text("/upstream/address"), v.text("/upstream/state")),
    );
    let error = v.text("/upstream/error");
    if !error.is_empty() && !v.has("/error") {
        page.row("", error);
    }
    if v.has("/upstream/fill") && v.text("/upstream/state") == "filling" {
        page.row(
            "fill",
            format!(
                "{} of {} files, {} of {}",
                v.count("/upstream/fill/files"),
                v.count("/upstream/fill/files_total"),
                bytes(v.count("/upstream/fill/bytes")),
                bytes(v.count("/upstream/fill/bytes_total"))
            ),
        );
    }
}

fn synchronous(v: View<'_>, page: &mut Page) {
    let policy = v.text("/sync/policy");
    if policy.is_empty() {
        return;
    }
    let level = v.text("/sync/level");
    let mut text = format!("{policy} at level {level}, ");
    let _ = match since(v, "/sync/missing_since") {
        None => write!(text, "satisfied, confirmed up to {}", or_dash(v.text(&format!("/sync/{level}")))),
        Some(since) => {
            let (present, required) = (v.count("/sync/present"), v.count("/sync/required"));
            write!(text, "MISSING for {since}: {present} of {required} followers count")
        }
    };
    if let Some(since) = since(v, "/sync/frozen_since") {
        let _ = write!(text, "; the application is FROZEN for {since}: `towline sync release` thaws it");
    }
    if let Some(until) = since(v, "/sync/override_until") {
        let _ = write!(text, "; released by an operator for {until} more");
    }
    let error = v.text("/sync/freeze_error");
    if !error.is_empty() {
        let _ = write!(text, "; the application can't be frozen: {error}");
    }
    let waiters = v.count("/sync/waiters");
    if waiters > 0 {
        let _ = write!(text, "; {waiters} callers wait");
    }
    page.row("sync", text);
}

fn disk(v: View<'_>, page: &mut Page) {
    let room = |which: &str| {
        let at = v.at(&format!("/disk/{which}"))?;
        let percent = at.number("/free_percent").unwrap_or_default();
        Some(format!("{which} {} free ({percent:.1} %)", bytes(at.count("/free_bytes"))))
    };
    let rooms: Vec<String> = ["state", "data"].into_iter().filter_map(room).collect();
    if !rooms.is_empty() {
        page.row("disk", rooms.join(", "));
    }
}

/// The followers, and below each those that follow it.
fn cascade(v: View<'_>, rates: Option<&Rates>, columns: Option<usize>, page: &mut Page) {
    let head = ["FOLLOWER", "STATE", "SYNC", "SENT", "WRITE", "FLUSH", "APPLY", "LAG", "AGE"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    if rates.is_some() {
        rows[0].push("RATE".to_owned());
    }
    for follower in v.list("/followers") {
        branch(follower, v.time("/now").unwrap_or_default(), "", rates, &mut rows);
    }
    if rows.len() > 1 {
        page.0.push('\n');
        page.0 += &narrow(rows, columns.unwrap_or(usize::MAX));
    }
}

/// The table of the cascade with the columns that a screen has room for. How far a follower is behind tells more than
/// where it stands.
fn narrow(mut rows: Vec<Vec<String>>, columns: usize) -> String {
    let (mut text, mut right) = (table(&rows, 2), RIGHT);
    for name in ["SENT", "WRITE", "FLUSH", "SYNC", "APPLY"] {
        if text.lines().all(|line| line.chars().count() <= columns) {
            break;
        }
        if let Some(at) = rows.first().and_then(|head| head.iter().position(|h| h == name)) {
            rows.iter_mut().for_each(|row| drop(row.remove(at)));
            right -= 1;
            text = aligned(&rows, 2, right);
        }
    }
    text
}

/// The backups under way.
fn backups(v: View<'_>, page: &mut Page) {
    let head = ["BACKUP", "FROM", "STATE", "FILES", "OF", "LOG", "AGE", "BYTES", "OF"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for b in v.list("/backups") {
        let cell = |key: &str| plain(or_dash(b.text(key)));
        let total = |key: &str| if b.count(key) > 0 { b.count(key).to_string() } else { "-".to_owned() };
        let age = b.time("/connected").zip(v.time("/now")).map(|(then, now)| seconds_between(then, now));
        rows.push(vec![
            cell("/name"),
            cell("/address"),
            cell("/state"),
            b.count("/files").to_string(),
            total("/files_total"),
            cell("/position"),
            age.unwrap_or_else(|| "-".to_owned()),
            bytes(b.count("/bytes")),
            if b.count("/bytes_total") > 0 { bytes(b.count("/bytes_total")) } else { "-".to_owned() },
        ]);
    }
    if rows.len() > 1 {
        page.0.push('\n');
        page.0 += &table(&rows, 2);
    }
}

fn branch(f: View<'_>, now: i64, indent: &str, rates: Option<&Rates>, rows: &mut Vec<Vec<String>>) {
    let cell = |key: &str| plain(or_dash(f.text(key)));
    let away = f.time("/heard").filter(|heard| f.text("/state") == "away" && *heard > 0);
    let state = away.map_or_else(|| cell("/state"), |heard| format!("away {}", seconds_between(heard, now)));
    let mut row = vec![format!("{indent}{}", cell("/name")), state, cell("/sync_state")];
    // Nothing is known of a position before the first ack; zero is none.
    row.extend(["/sent", "/write", "/flush", "/apply"].map(|k| match f.lsn(k) {
        None | Some(0) => "-".to_owned(),
        Some(_) => cell(k),
    }));
    let known = f.has("/lag");
    row.push(if known { bytes(f.count("/lag/bytes")) } else { "-".to_owned() });
    row.push(f.number("/lag/seconds").map_or_else(|| "-".to_owned(), span));
    if let Some(rates) = rates {
        // Only the connections of this node are counted here.
        let rate = if indent.is_empty() { rates.followers.get(f.text("/name")) } else { None };
        row.push(rate.map_or_else(|| "-".to_owned(), |r| format!("{}/s", bytes(*r))));
    }
    rows.push(row);
    let deeper = if indent.is_empty() { "`- ".to_owned() } else { format!("   {indent}") };
    for below in f.list("/followers") {
        branch(below, now, &deeper, rates, rows);
    }
}

/// Columns that stand to the left.
const RIGHT: usize = 7;

/// Rows in columns as wide as their widest cell, those after the seventh to the right.
pub(super) fn table(rows: &[Vec<String>], gap: usize) -> String {
    aligned(rows, gap, RIGHT)
}

fn aligned(rows: &[Vec<String>], gap: usize, right: usize) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |c: usize| rows.iter().filter_map(|r| r.get(c)).map(|s| s.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut out = String::new();
    for row in rows {
        let mut line = String::new();
        for (c, cell) in row.iter().enumerate() {
            let width = widths[c];
            if c >= right {
                let _ = write!(line, "{cell:>width$}");
            } else {
                let _ = write!(line, "{cell:<width$}");
            }
            line.push_str(&" ".repeat(gap));
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_page_names_the_error_and_every_follower() {
        let v = json!({"name": "a", "role": "leader", "state": "stalled", "health": "retrying", "now": 9_000_000_000_i64,
            "error": {"kind": "disk-full", "message": "no room", "remedy": "free space", "since": 1, "attempts": 3, "next_retry": 10_000_000_000_i64},
            "capture": {"gaps": 2, "hold": null, "gap_open": true},
            "disk": {"state": {"free_bytes": 2048, "free_percent": 7.5}, "data": null},
            "followers": [
                {"name": "b", "state": "streaming", "flush": "0/00000001", "apply": "0/00000000", "lag": null, "followers": [
                    {"name": "c", "state": "away", "heard": 2_000_000_000_i64, "flush": "0/00000001", "lag": {"bytes": 4096, "seconds": 3.0},
                     "followers": [{"name": "d", "state": "catchup"}]}]},
                {"name": "e\u{1b}[2J", "state": "filling"}]});
        let text = render(&v);
        for words in [
            "disk-full: no room",
            "free space",
            "for 9.0 s, tried 3 times, next in 1.0 s",
            "retrying",
            "gaps 2",
            "notice     gap:",
            "state 2.0 KiB free (7.5 %)",
            "\nb         streaming   -     -     -      0/00000001  -",
            "`- c      away 7.0 s",
            "4.0 KiB  3.0 s",
            "   `- d   catchup",
        ] {
            assert!(text.contains(words), "{words:?} in\n{text}");
        }
        assert!(!text.contains("hold") && !text.contains('\u{1b}'), "{text}");
    }

    #[test]
    fn a_narrow_screen_shows_how_far_behind_before_it_shows_where() {
        let v = json!({"role": "leader", "now": 0, "followers": [
            {"name": "replica-a", "state": "streaming", "sync_state": "async", "sent": "16/B374D848", "write": "16/B374D848",
             "flush": "16/B374D848", "apply": "16/B374D848", "lag": {"bytes": 4096, "seconds": 3.0}},
            {"name": "b", "state": "filling"}]});
        let head = |columns| {
            let text = render_with(&v, Some(&Rates::default()), columns);
            let table: Vec<&str> = text.lines().skip_while(|l| !l.starts_with("FOLLOWER")).collect();
            assert!(table.iter().all(|l| l.chars().count() <= columns.unwrap_or(usize::MAX)), "{text}");
            table[0].split_whitespace().collect::<Vec<_>>().join(" ")
        };
        assert_eq!(head(None), "FOLLOWER STATE SYNC SENT WRITE FLUSH APPLY LAG AGE RATE");
        assert_eq!(head(Some(200)), head(None));
        assert_eq!(head(Some(80)), "FOLLOWER STATE SYNC FLUSH APPLY LAG AGE RATE");
        assert_eq!(head(Some(50)), "FOLLOWER STATE LAG AGE RATE");
    }

    #[test]
    fn a_quorum_that_is_missing_is_said_with_what_it_does() {
        let mut v = json!({"role": "leader", "now": 5_000_000_000_i64, "sync": {"policy": "ANY 1 (b, c)", "level": "flush",
            "flush": "0/00000009", "present": 0, "required": 1, "missing_since": null, "waiters": 2}});
        assert!(
            render(&v)
                .contains("ANY 1 (b, c) at level flush, satisfied, confirmed up to 0/00000009; 2 callers")
        );
        v["sync"]["missing_since"] = json!(1_000_000_000_i64);
        v["sync"]["frozen_since"] = json!(2_000_000_000_i64);
        let text = render(&v);
        assert!(text.contains("MISSING for 4.0 s: 0 of 1") && text.contains("FROZEN for 3.0 s"), "{text}");
    }

    #[test]
    fn an_expired_certificate_is_said_to_be_so() {
        let page = |days: i64| render(&json!({"role": "leader", "tls": {"mode": "on", "days_left": days}}));
        assert!(page(-1).contains("its certificate is EXPIRED") && page(3).contains("holds 3 days"));
    }

    #[test]
    fn a_lag_that_is_not_known_is_said_to_be_so() {
        let v = json!({"role": "follower", "lag": {"bytes": 5, "seconds": null}});
        assert!(render(&v).contains("5 B, age unknown"));
    }
}
