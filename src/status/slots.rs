//! The table of slots, for `towline status` and `towline slot`.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::Value;

use super::View;
use super::render::{or_dash, table};
use super::words::{bytes, plain, span};

/// The list `slots` of a document as a table; empty when there are none.
#[must_use]
pub fn render_slots(v: &Value) -> String {
    let head = ["SLOT", "KIND", "ORIGIN", "STATE", "REASON", "POSITION", "AWAY", "HOLDS", "LEFT"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now = View(v).time("/now").unwrap_or_else(|| i64::try_from(now.as_nanos()).unwrap_or(i64::MAX));
    rows.extend(View(v).list("/slots").map(|slot| row(slot, now)));
    if rows.len() > 1 { table(&rows, 2) } else { String::new() }
}

fn row(slot: View<'_>, now: i64) -> Vec<String> {
    let cell = |key: &str| plain(or_dash(slot.text(key)));
    let mut row: Vec<String> =
        ["/name", "/kind", "/origin", "/state", "/reason", "/position"].into_iter().map(cell).collect();
    let away = slot.time("/inactive_since").map(|then| {
        let ns = u64::try_from(now.saturating_sub(then)).unwrap_or(0);
        span(std::time::Duration::from_nanos(ns).as_secs_f64())
    });
    row.push(away.unwrap_or_else(|| "-".to_owned()));
    row.push(bytes(slot.count("/retained_bytes")));
    let left = slot.at("/bytes_left").and_then(|n| n.0.as_i64());
    row.push(left.map_or_else(
        || "-".to_owned(),
        |n| format!("{}{}", if n < 0 { "-" } else { "" }, bytes(n.unsigned_abs())),
    ));
    row
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_slot_has_a_line_with_what_it_holds_and_may_hold() {
        let v = json!({"now": 130_000_000_000_i64, "slots": [
            {"name": "a", "kind": "follower", "origin": "own", "state": "extended", "reason": null, "position": "0/00000001",
             "retained_bytes": 4096, "bytes_left": 1 << 20, "active": true, "inactive_since": null},
            {"name": "b", "kind": "manual", "origin": "mirrored", "state": null, "reason": null, "position": null,
             "retained_bytes": 0, "bytes_left": -2048, "active": false, "inactive_since": 5},
            {"name": "c", "kind": "copy", "origin": "own", "state": "lost", "reason": "slot_keep", "position": "0/00000002",
             "retained_bytes": 0, "bytes_left": null, "active": false, "inactive_since": 5}]});
        let text = render_slots(&v);
        let lines: Vec<Vec<&str>> = text.lines().map(|l| l.split_whitespace().collect()).collect();
        assert_eq!(lines[1].join(" "), "a follower own extended - 0/00000001 - 4.0 KiB 1.0 MiB");
        assert_eq!(lines[2].join(" "), "b manual mirrored - - - 2m 9s 0 B -2.0 KiB");
        assert_eq!(lines[3].join(" "), "c copy own lost slot_keep 0/00000002 2m 9s 0 B -");
        assert_eq!(render_slots(&json!({"slots": []})), "");
    }
}
