//! Followers of followers: what happens above them comes down to them, whatever they were told before.

use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::resync::{count, furnish, resynced, short};
use crate::support::bed::{Bed, copy_tree};
use crate::support::{Node, assert_equal_within, holds_for, until, within};

/// A leader and nodes below each other, all equal.
fn chain(bed: &Bed, names: &[&str]) -> (Node, Vec<Node>) {
    let leader = short(bed.leader("leader")).start();
    furnish(leader.data());
    let mut below: Vec<Node> = Vec::new();
    for name in names {
        let above = below.last().map_or(leader.spec.listen, |n| n.spec.listen);
        let node = short(bed.follower(name, above)).start();
        assert_equal_within(within(30), leader.data(), node.data());
        below.push(node);
    }
    (leader, below)
}

/// Waits until the node is refused by its upstream with this code.
fn refused(node: &Node, code: &str) {
    until(within(30), "its upstream says so", || {
        let status = node.status()?;
        if status.upstream_code() == code { Ok(()) } else { Err(status.0.to_string()) }
    });
}

fn stays(node: &Node, name: &str, seconds: u64) {
    holds_for(Duration::from_secs(seconds), "it keeps what it has", || {
        let status = node.status()?;
        let kept = node.data().join(name).exists() && count(&status, "lost_logs") == 0;
        if kept { Ok(()) } else { Err(status.0.to_string()) }
    });
}

fn write(dir: &Path, name: &str) {
    fs::write(dir.join(name), name).expect("write");
}

#[test]
fn all_that_follow_below_each_other_are_turned_back_with_their_leader() {
    let bed = Bed::new("cascade-back");
    let (mut leader, below) = chain(&bed, &["a", "b", "c"]);
    let (state, old) = (leader.spec.state.clone(), bed.path("old"));
    leader.stop();
    copy_tree(&state, &old);
    leader.restart();
    write(leader.data(), "only here");
    for node in &below {
        assert_equal_within(within(20), leader.data(), node.data());
    }
    leader.stop();
    fs::remove_dir_all(&state).expect("remove");
    copy_tree(&old, &state);
    fs::remove_file(leader.data().join("only here")).expect("remove");
    leader.restart();
    // Nothing is written: whoever waits until the leader has gone past what is lost waits for ever.
    for node in &below {
        let status = resynced(node, 1);
        assert_equal_within(within(20), leader.data(), node.data());
        assert_eq!(count(&status, "lost_logs"), 1, "{}", status.0);
    }
    write(leader.data(), "afterwards");
    for node in &below {
        assert_equal_within(within(20), leader.data(), node.data());
        node.assert_no_panic();
    }
}

#[test]
fn a_node_that_is_behind_turns_nobody_back() {
    let bed = Bed::new("cascade-behind");
    let (mut leader, mut below) = chain(&bed, &["a"]);
    let mut middle = below.remove(0);
    let mut last = short(bed.follower("last", leader.spec.listen)).start();
    assert_equal_within(within(30), leader.data(), last.data());
    middle.stop();
    write(leader.data(), "newer");
    assert_equal_within(within(20), leader.data(), last.data());
    last.stop();
    leader.stop();
    // The newest data there are are the last one's, and nobody knows what the leader has.
    middle.restart();
    last.spec.upstream = Some(middle.spec.listen);
    last.restart();
    refused(&last, "not-ready");
    stays(&last, "newer", 3);
    leader.restart();
    assert_equal_within(within(30), leader.data(), middle.data());
    until(within(30), "it goes on behind the other", || {
        let status = last.status()?;
        if status.upstream_state() == "streaming" { Ok(()) } else { Err(status.0.to_string()) }
    });
    stays(&last, "newer", 1);
    write(leader.data(), "on");
    assert_equal_within(within(20), leader.data(), last.data());
    assert!(!last.log().contains("is resynced"), "{}", last.log());
}

#[test]
fn what_is_below_a_node_that_lost_its_upstream_waits_and_goes_on_with_it() {
    let bed = Bed::new("cascade-lost");
    let (mut leader, below) = chain(&bed, &["middle", "end"]);
    let [middle, end] = &below[..] else { panic!() };
    leader.kill();
    until(within(30), "both say that they are cut off", || {
        let (m, e) = (middle.status()?, end.status()?);
        let said = m.health() == "cut-off" && e.health() == "cut-off";
        if said { Ok(()) } else { Err(format!("{}\n{}", m.0, e.0)) }
    });
    // The end hears the middle well: it waits, without an error, for what the middle has not got.
    holds_for(Duration::from_secs(3), "the end waits", || {
        let status = end.status()?;
        let waits = status.upstream_state() == "streaming"
            && status.error_kind().is_none()
            && status.lag_seconds().is_none();
        if waits { Ok(()) } else { Err(status.0.to_string()) }
    });
    write(leader.data(), "meanwhile");
    leader.restart();
    assert_equal_within(within(30), leader.data(), end.data());
    until(within(20), "both are well", || {
        let (m, e) = (middle.status()?, end.status()?);
        if m.health() == "ok" && e.health() == "ok" { Ok(()) } else { Err(format!("{}\n{}", m.0, e.0)) }
    });
    for node in [middle, end] {
        assert_eq!(count(&node.status().expect("status"), "completed"), 0, "nobody began anew");
        node.assert_no_panic();
    }
}
