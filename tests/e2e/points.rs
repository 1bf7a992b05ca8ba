//! Restore points: made on a leader, found by a follower's `stop_at`.

use std::fs;

use serde_json::Value;

use super::restore::runs;
use crate::support::{Bed, Node, assert_equal_within, until, within};

fn point(node: &Node, name: &str) -> String {
    let out = node.ask(&["restore-point", name, "--json"]);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let answer: Value = serde_json::from_slice(&out.stdout).expect("JSON");
    assert_eq!(answer["name"], name);
    answer["lsn"].as_str().expect("a position").to_owned()
}

fn refusal(node: &Node, name: &str) -> (Option<i32>, String) {
    let out = node.ask(&["restore-point", name]);
    (out.status.code(), String::from_utf8_lossy(&out.stderr).into_owned())
}

fn stopped(follower: &Node) -> String {
    until(within(30), "it rests on the target", || {
        let status = follower.status()?;
        let at = status.0.pointer("/apply/stopped").and_then(Value::as_str).map(str::to_owned);
        if status.health() == "paused" { at.ok_or(status.0.to_string()) } else { Err(status.0.to_string()) }
    })
}

#[test]
fn a_follower_stops_at_a_restore_point_and_stays_there_over_a_restart() {
    let bed = Bed::new("points");
    let leader = bed.leader("leader").start();
    let mut follower = bed.follower("follower", leader.spec.listen).start();
    fs::write(leader.data().join("a"), "one").expect("write");
    assert_equal_within(within(20), leader.data(), follower.data());
    follower.stop();
    fs::write(leader.data().join("a"), "two").expect("write");
    let before = point(&leader, "before-upgrade");
    fs::write(leader.data().join("a"), "three").expect("write");
    let after = point(&leader, "after-upgrade");
    follower.spec = follower.spec.clone().set("stop_at", "\"before-upgrade\"");
    follower.restart();
    assert_eq!(stopped(&follower), before);
    assert_eq!(fs::read_to_string(follower.data().join("a")).expect("read"), "two");
    for kill in [false, true] {
        if kill {
            follower.kill()
        } else {
            follower.stop()
        }
        follower.restart();
        assert_eq!(stopped(&follower), before, "killed: {kill}");
        assert_eq!(fs::read_to_string(follower.data().join("a")).expect("read"), "two");
    }
    follower.stop();
    follower.spec = follower.spec.clone().set("stop_at", "\"after-upgrade\"");
    follower.restart();
    assert_eq!(stopped(&follower), after);
    assert_equal_within(within(1), leader.data(), follower.data());
    // There is no way back to one that it has passed.
    follower.stop();
    follower.spec = follower.spec.clone().set("stop_at", "\"before-upgrade\"");
    follower.restart();
    until(within(20), "the name is refused", || {
        let status = follower.status()?;
        let error = status.0["error"].to_string();
        if error.contains("past the target before-upgrade") { Ok(()) } else { Err(status.0.to_string()) }
    });
    assert_eq!(fs::read_to_string(follower.data().join("a")).expect("read"), "three");
}

#[test]
fn a_name_is_used_once_and_only_a_leader_gives_it() {
    let bed = Bed::new("point-names");
    let mut leader = bed.leader("leader").start();
    let follower = bed.follower("follower", leader.spec.listen).start();
    let at = point(&leader, "v1");
    let (code, text) = refusal(&leader, "v1");
    assert!(code == Some(10) && text.contains("'v1'") && text.contains(&at), "{text}");
    for bad in ["", "1st", "a/b", "latest", &"x".repeat(64)] {
        let (code, text) = refusal(&leader, bad);
        assert!(code == Some(64) && text.contains("can't name a restore point"), "{bad}: {text}");
    }
    let (code, text) = refusal(&follower, "v2");
    assert!(code == Some(10) && text.contains("follower"), "{text}");
    leader.kill();
    leader.restart();
    runs(&leader);
    let (code, text) = refusal(&leader, "v1");
    assert!(code == Some(10) && text.contains(&at), "{text}");
    point(&leader, "v2");
    let lines: String = leader
        .segments()
        .iter()
        .map(|s| {
            let out = std::process::Command::new(crate::support::node::towline())
                .args(["log", "dump"])
                .arg(s)
                .output()
                .expect("dump");
            String::from_utf8_lossy(&out.stdout).into_owned()
        })
        .collect();
    assert_eq!(lines.matches("restore-point \"v1\"").count(), 1, "{lines}");
    assert_eq!(lines.matches("restore-point \"v2\"").count(), 1, "{lines}");
}

#[test]
fn a_promoted_leader_does_not_give_a_name_that_is_on_its_way() {
    let bed = Bed::new("point-promoted");
    let mut first = bed.leader("first").start();
    let mut leader = bed.follower("leader", first.spec.listen).start();
    let at = point(&first, "v1");
    fs::write(first.data().join("a"), "one").expect("write");
    assert_equal_within(within(20), first.data(), leader.data());
    // What only the old leader has is not on the way.
    leader.stop();
    point(&first, "left");
    first.kill();
    leader.restart();
    let out = leader.ask(&["promote", "--wait"]);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    for again in [false, true] {
        if again {
            leader.spec.upstream = None;
            leader.kill();
            leader.restart();
            runs(&leader);
        }
        let (code, text) = refusal(&leader, "v1");
        assert!(code == Some(10) && text.contains("'v1'") && text.contains(&at), "{text}");
        point(&leader, if again { "v2" } else { "left" });
    }
}
