//! What the suites know of an archive in a directory, and of a node that archives.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;
use sha2::{Digest, Sha256};

use super::node::{Node, Spec, towline};
use super::slot::brisk;
use super::{until, within};

/// A leader with short segments that archives to `dir`, which is made.
pub(crate) fn archiving(spec: Spec, dir: &Path) -> Spec {
    fs::create_dir_all(dir).expect("mkdir");
    brisk(spec).set("archive", &url(dir))
}

/// `dir` as a value of the configuration.
pub(crate) fn url(dir: &Path) -> String {
    format!("\"file://{}\"", dir.display())
}

/// The part `archive` of the status.
pub(crate) fn part(node: &Node) -> Result<Value, String> {
    Ok(node.status()?.0["archive"].clone())
}

/// Waits until archiving is as wanted.
pub(crate) fn archive_until(node: &Node, what: &str, is: impl Fn(&Value) -> bool) -> Value {
    until(within(60), &format!("archiving of {} {what}", node.spec.name), || {
        let part = part(node)?;
        if is(&part) { Ok(part) } else { Err(part.to_string()) }
    })
}

/// Waits until everything that was ever sealed is archived.
pub(crate) fn archived_all(node: &Node) -> Value {
    archive_until(node, "has archived all", |a| a["state"] == "idle" && a["waiting"] == 0)
}

/// The segments of timeline 1 in the archive: number, and the file, each checked against its name.
pub(crate) fn kept(dir: &Path) -> BTreeMap<u64, Vec<u8>> {
    let mut out = BTreeMap::new();
    for entry in fs::read_dir(dir.join("log/00000001")).into_iter().flatten() {
        let path = entry.expect("entry").path();
        let name = path.file_name().and_then(|n| n.to_str()).expect("name").to_owned();
        let bytes = fs::read(&path).expect("read");
        let sha: String = Sha256::digest(&bytes).iter().take(16).map(|b| format!("{b:02x}")).collect();
        let number = u64::from_str_radix(&name[..16], 16).expect("a number");
        assert_eq!(name, format!("{number:016X}-{:08X}-{sha}.zst", bytes.len()));
        assert!(out.insert(number, bytes).is_none(), "two of {number}");
    }
    out
}

/// Waits until the archive has every segment from the first to the newest, those of the log as they are there. What is
/// written may be sealed, and so archived, a moment later.
pub(crate) fn assert_whole(node: &Node, dir: &Path) {
    until(within(30), "the archive is whole", || {
        let kept = kept(dir);
        let numbers: Vec<u64> = kept.keys().copied().collect();
        let last = *numbers.last().ok_or("no segments")?;
        assert_eq!(numbers, (1..=last).collect::<Vec<_>>(), "a hole");
        for path in node.segments() {
            let name = path.file_name().and_then(|n| n.to_str()).expect("name");
            if name.len() == 24
                && let Ok(bytes) = fs::read(&path)
            {
                let number = u64::from_str_radix(&name[8..], 16).expect("a number");
                let there = kept.get(&number).ok_or_else(|| format!("segment {number} is not there"))?;
                assert!(*there == bytes, "segment {number} is not the same");
            }
        }
        Ok(())
    });
}

/// Runs `towline archive` with these words.
pub(crate) fn archive(words: &[&str]) -> Output {
    let mut command = Command::new("timeout");
    command.args(["-k", "1", "120", &towline(), "archive"]).args(words).output().expect("run towline")
}
