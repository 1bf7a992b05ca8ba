//! What `towline log dump` prints: every structure and record of segment files, for people or as JSON.
//!
//! As JSON it is one object a line. `item` says what it is: `header`, `frame`, `record` or `trailer`, and at the end
//! of a file that is not sealed `open` or `torn`. Bytes that need not be text (names, targets, patterns, values)
//! are printed as escaped ASCII; positions as `status` prints them; times as nanoseconds since 1970.

use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::inspect::{Ending, Seen, examine, line};
use crate::error::{Error, ErrorKind, Result};
use crate::position::{Cut, Lsn};
use crate::record::{Attrs, Record, Records, Time};
use crate::segment::{FrameHeader, Header, Trailer, flags};

/// Prints every structure and record of the files; with `as_json` one JSON object a line.
///
/// # Errors
/// `Corrupt` at the first damage, after what is good before it.
pub fn dump(paths: &[PathBuf], as_json: bool, out: &mut dyn Write) -> Result<()> {
    for path in paths {
        if !as_json {
            line(out, &format!("file {}", path.display()))?;
        }
        let report = examine(path, |seen| if as_json { json_of(path, seen, out) } else { words(seen, out) })?;
        match (report.ending, report.problem) {
            (Ending::Corrupt, Some(problem)) => {
                return Err(Error::new(ErrorKind::Corrupt, format!("'{}', {problem}", path.display())));
            }
            (_, Some(problem)) if as_json => object(out, path, json!({"item": "torn", "problem": problem}))?,
            (_, Some(problem)) => line(out, &format!("torn {problem}"))?,
            (Ending::Open, None) if as_json => object(out, path, json!({"item": "open"}))?,
            (Ending::Open, None) => line(out, "open")?,
            _ => {}
        }
    }
    Ok(())
}

fn object(out: &mut dyn Write, path: &Path, mut value: Value) -> Result<()> {
    if let Some(map) = value.as_object_mut() {
        map.insert("file".to_owned(), json!(path.file_name().map(|n| n.to_string_lossy())));
    }
    line(out, &value.to_string())
}

fn json_of(path: &Path, seen: Seen<'_>, out: &mut dyn Write) -> Result<()> {
    match seen {
        Seen::Header(h) => object(out, path, header_json(h)),
        Seen::Frame(f, raw) => {
            object(out, path, frame_json(f))?;
            for record in Records::new(raw) {
                let (at, record) = record?;
                let mut value = record_json(&record);
                if let Some(map) = value.as_object_mut() {
                    map.insert("item".to_owned(), json!("record"));
                    map.insert("lsn".to_owned(), json!(Lsn(f.start.0 + at as u64).to_string()));
                }
                object(out, path, value)?;
            }
            Ok(())
        }
        Seen::Trailer(t) => object(out, path, trailer_json(t)),
    }
}

fn words(seen: Seen<'_>, out: &mut dyn Write) -> Result<()> {
    match seen {
        Seen::Header(h) => line(out, &header_text(h)),
        Seen::Frame(f, raw) => {
            line(out, &frame_text(f))?;
            for record in Records::new(raw) {
                let (at, record) = record?;
                line(out, &format!("  {} {}", Lsn(f.start.0 + at as u64), text(&record)))?;
            }
            Ok(())
        }
        Seen::Trailer(t) => line(
            out,
            &format!(
                "trailer end={} records={} commits={} sha256={}",
                t.end,
                t.records,
                t.commits,
                hex(&t.sha)
            ),
        ),
    }
}

fn header_json(h: &Header) -> Value {
    json!({
        "item": "header", "system": h.system.to_string(), "timeline": h.timeline.0, "segment": h.segment.0,
        "start": h.start.to_string(), "created": h.created_ns, "open": h.marks.open,
        "commit": h.marks.commit.to_string(), "exact": h.marks.exact.to_string(), "previous": hex(&h.prev_sha),
    })
}

fn frame_json(f: &FrameHeader) -> Value {
    json!({
        "item": "frame", "lsn": f.start.to_string(), "end": f.end().to_string(), "raw": f.raw_len,
        "stored": f.stored_len, "records": f.records, "flags": flag_names(f),
    })
}

fn trailer_json(t: &Trailer) -> Value {
    json!({
        "item": "trailer", "end": t.end.to_string(), "records": t.records, "commits": t.commits,
        "sha256": hex(&t.sha),
    })
}

fn nanoseconds(t: Time) -> Value {
    // Beyond 64 bits only for years that no file system knows.
    json!(t.sec.saturating_mul(1_000_000_000).saturating_add(i64::from(t.nsec)))
}

fn attrs_json(a: &Attrs) -> Value {
    let mode = format!("{:o}", a.mode);
    json!({"mode": mode, "uid": a.uid, "gid": a.gid, "mtime": nanoseconds(a.mtime)})
}

fn record_json(record: &Record<'_>) -> Value {
    let bytes = |b: &[u8]| b.escape_ascii().to_string();
    match record {
        Record::Create { id, kind, attrs, rdev, target } => json!({
            "type": "create", "id": id.0, "kind": format!("{kind:?}").to_lowercase(), "attrs": attrs_json(attrs),
            "rdev": rdev, "target": bytes(target),
        }),
        Record::Write { id, offset, data } => {
            json!({"type": "write", "id": id.0, "offset": offset, "len": data.len()})
        }
        Record::Truncate { id, size } => json!({"type": "truncate", "id": id.0, "size": size}),
        Record::Punch { id, offset, len } => {
            json!({"type": "punch", "id": id.0, "offset": offset, "len": len})
        }
        Record::Link { parent, name, id } => {
            json!({"type": "link", "parent": parent.0, "name": bytes(name), "id": id.0})
        }
        Record::Unlink { parent, name } => json!({"type": "unlink", "parent": parent.0, "name": bytes(name)}),
        Record::Attr { id, attrs } => json!({"type": "attributes", "id": id.0, "attrs": attrs_json(attrs)}),
        Record::Xattr { id, name, value } => {
            json!({"type": "xattr", "id": id.0, "name": bytes(name), "value": value.map(bytes)})
        }
        Record::Commit(c) => json!({
            "type": "commit", "cut": if c.cut == Cut::Exact { "exact" } else { "file" }, "partial": c.partial,
            "time": c.time, "meta": format!("{:032x}", c.meta), "content": format!("{:032x}", c.content),
            "inodes": c.inodes,
        }),
        Record::Abort => json!({"type": "abort"}),
        Record::RestorePoint { time, name } => {
            json!({"type": "restore-point", "time": time, "name": bytes(name)})
        }
        Record::Gap { end, reason, time } => {
            let reason = format!("{reason:?}").to_lowercase();
            json!({"type": "gap", "end": end, "reason": reason, "time": time})
        }
        Record::Excludes { version, patterns } => {
            json!({"type": "excludes", "version": version, "patterns": bytes(patterns)})
        }
    }
}

fn flag_names(f: &FrameHeader) -> Vec<&'static str> {
    let names =
        [(flags::STARTS, "starts"), (flags::ENDS, "ends"), (flags::EXACT, "exact"), (flags::ABORT, "abort")];
    names.iter().filter(|(bit, _)| f.flags & bit != 0).map(|(_, name)| *name).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Seconds and nanoseconds since 1970.
fn time(ns: i64) -> String {
    format!("{}.{:09}", ns.div_euclid(1_000_000_000), ns.rem_euclid(1_000_000_000))
}

fn header_text(h: &Header) -> String {
    format!(
        "header system={} timeline={} segment={:X} start={} created={} open={} commit={} exact={} previous={}",
        h.system,
        h.timeline,
        h.segment.0,
        h.start,
        time(h.created_ns),
        h.marks.open,
        h.marks.commit,
        h.marks.exact,
        hex(&h.prev_sha)
    )
}

fn frame_text(f: &FrameHeader) -> String {
    format!(
        "frame {} raw={} stored={} records={} flags={}",
        f.start,
        f.raw_len,
        f.stored_len,
        f.records,
        flag_names(f).join(",")
    )
}

fn attrs_text(a: &Attrs) -> String {
    format!("mode={:o} uid={} gid={} mtime={}.{:09}", a.mode, a.uid, a.gid, a.mtime.sec, a.mtime.nsec)
}

fn text(record: &Record<'_>) -> String {
    match record {
        Record::Create { id, kind, attrs, rdev, target } => {
            let target = target.escape_ascii();
            format!("create {id} {kind:?} {} rdev={rdev} target=\"{target}\"", attrs_text(attrs))
        }
        Record::Write { id, offset, data } => format!("write {id} offset={offset} len={}", data.len()),
        Record::Truncate { id, size } => format!("truncate {id} size={size}"),
        Record::Punch { id, offset, len } => format!("punch {id} offset={offset} len={len}"),
        Record::Link { parent, name, id } => format!("link {parent} \"{}\" {id}", name.escape_ascii()),
        Record::Unlink { parent, name } => format!("unlink {parent} \"{}\"", name.escape_ascii()),
        Record::Attr { id, attrs } => format!("attributes {id} {}", attrs_text(attrs)),
        Record::Xattr { id, name, value } => {
            let value = value.map_or("removed".to_owned(), |v| format!("len={}", v.len()));
            format!("xattr {id} \"{}\" {value}", name.escape_ascii())
        }
        Record::Commit(c) => format!(
            "commit cut={} partial={} time={} meta={:032x} content={:032x} inodes={}",
            c.cut,
            c.partial,
            time(c.time),
            c.meta,
            c.content,
            c.inodes
        ),
        Record::Abort => "abort".to_owned(),
        Record::RestorePoint { time: t, name } => {
            format!("restore-point \"{}\" time={}", name.escape_ascii(), time(*t))
        }
        Record::Gap { end, reason, time: t } => {
            format!("gap {} reason={reason:?} time={}", if *end { "ends" } else { "begins" }, time(*t))
        }
        Record::Excludes { version, patterns } => {
            format!("excludes version={version} \"{}\"", patterns.escape_ascii())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The golden segment holds one record of every kind.
    #[test]
    fn the_golden_segment_is_dumped_line_by_line() {
        let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/v1/");
        let segment = PathBuf::from(dir).join("00000003000000000000002A");
        for (as_json, golden) in [(true, "dump.json"), (false, "dump.txt")] {
            let mut out = Vec::new();
            dump(std::slice::from_ref(&segment), as_json, &mut out).unwrap();
            let text = String::from_utf8(out).unwrap().replace(dir, "");
            let path = PathBuf::from(dir).join(golden);
            if std::env::var_os("TOWLINE_WRITE_GOLDEN").is_some() {
                std::fs::write(&path, &text).unwrap();
            }
            assert_eq!(text, std::fs::read_to_string(&path).unwrap(), "{golden}");
            if as_json {
                let lines: Vec<Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
                let records = lines.iter().filter(|v| v["item"] == "record");
                let mut kinds: Vec<&str> = records.map(|v| v["type"].as_str().unwrap()).collect();
                kinds.sort_unstable();
                kinds.dedup();
                assert_eq!(kinds.len(), 13, "{kinds:?}");
                assert!(lines.iter().any(|v| v["name"] == "a \\xff\\n"), "bytes are escaped");
            }
        }
    }
}
