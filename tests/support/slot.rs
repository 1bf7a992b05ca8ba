//! What the suites know of slots: the list in the status, and `towline slot`.

use std::fs;
use std::process::{Command, Output};

use serde_json::Value;

use super::node::{Node, Spec, lsn, towline};
use super::{until, within};

/// Segments are short, and what the node itself needs of them too.
pub(crate) fn brisk(spec: Spec) -> Spec {
    spec.set("segment_timeout", "\"100ms\"")
        .set("checkpoint_interval", "\"200ms\"")
        .set("checkpoint_bytes", "\"1k\"")
        .set("keep_segments", "0")
}

/// Runs `towline slot` with these words on a node.
pub(crate) fn slot(node: &Node, words: &[&str]) -> Output {
    let mut command = Command::new("timeout");
    command.args(["-k", "1", "60", &towline(), "slot"]).args(words).arg("--state").arg(&node.spec.state);
    command.output().expect("run towline")
}

/// The slot of this name in the status of a node, or what is there instead.
pub(crate) fn slot_of(node: &Node, name: &str) -> Result<Value, String> {
    let status = node.status()?;
    let slots = status.0["slots"].as_array().cloned().unwrap_or_default();
    slots.into_iter().find(|s| s["name"] == name).ok_or_else(|| format!("no slot '{name}' in {}", status.0))
}

/// Waits until a slot is as wanted.
pub(crate) fn slot_until(node: &Node, name: &str, what: &str, is: impl Fn(&Value) -> bool) -> Value {
    until(within(30), &format!("the slot of {name} on {} {what}", node.spec.name), || {
        let slot = slot_of(node, name)?;
        if is(&slot) { Ok(slot) } else { Err(slot.to_string()) }
    })
}

/// Writes a little and waits until the log of `leader` has gone on to another segment for it.
pub(crate) fn next_segment(leader: &Node) {
    let segment = |node: &Node| match node.status()?.0["log"]["segment"].clone() {
        Value::Null => Err("it has no log yet".to_owned()),
        n => Ok(n),
    };
    let before = until(within(30), "the log is open", || segment(leader));
    let mut n = 0;
    until(within(30), "the next segment begins", || {
        n += 1;
        fs::write(leader.data().join("tick"), format!("{before} {n}")).expect("write");
        if segment(leader)? == before { Err("not yet".into()) } else { Ok(()) }
    });
}

/// Number of the oldest segment on disk.
pub(crate) fn oldest(node: &Node) -> u64 {
    let first = node.segments().into_iter().next().expect("a segment");
    let name = first.file_name().and_then(|n| n.to_str()).expect("name").to_owned();
    u64::from_str_radix(&name[8..24], 16).expect("a segment's number")
}

/// The segment that a position needs: the one with the byte before.
pub(crate) fn needs(position: &Value) -> u64 {
    ((lsn(position.as_str().expect("a position")) - 1) >> 24).max(1)
}
