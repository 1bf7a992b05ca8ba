//! Writes and fsyncs that fail, by injection: a typed state, an unharmed application, and recovery by
//! itself when the cause is gone.

use std::time::Duration;

use crate::support::bed::{Bed, soak};
use crate::support::{Load, Pair, Spec, until, within};

fn quick(spec: Spec) -> Spec {
    spec.armed()
        .set("checkpoint_interval", "\"500ms\"")
        .set("checkpoint_bytes", "\"256k\"")
        .set("segment_timeout", "\"1s\"")
}

/// Places where the disk of the node can fail, by the side on which they must be reached.
const LEADER: &[&str] =
    &["log::append", "log::sync", "log::new_segment", "disk::write_aside", "blocks::write"];
const FOLLOWER: &[&str] = &[
    "log::append",
    "log::sync",
    "apply::stage",
    "apply::write",
    "apply::rename",
    "apply::attributes",
    "catalog::checkpoint",
    "disk::write_aside",
    "blocks::write",
];

fn fails_and_recovers(on_leader: bool, fault: &str, kind: &str) {
    let pair = Pair::with(Bed::new(&format!("fault-{fault}-{on_leader}")), quick, quick);
    let load = Load::start(&pair.data().join("app"), fastrand::u64(..), Duration::from_millis(2));
    let points = if on_leader { LEADER } else { FOLLOWER };
    for point in points {
        let node = if on_leader { &pair.leader } else { &pair.follower };
        node.arm(&format!("{point}={fault}"));
        until(within(15), &format!("{point}={fault} is in the status of the {}", node.spec.name), || {
            let status = node.status()?;
            match status.error_kind() {
                Some(k) if k == kind && status.state() != "running" => Ok(()),
                _ => Err(status.0.to_string()),
            }
        });
        let before = load.ops();
        until(within(30), "the application goes on", || {
            if load.ops() > before + 50 { Ok(()) } else { Err("it stands".into()) }
        });
        // It stays up and answers while the cause lasts.
        if soak() {
            std::thread::sleep(within(5));
        }
        node.status().expect("it answers");
        node.arm("");
        until(within(30), &format!("recovery from {point}={fault}"), || {
            let status = node.status()?;
            match status.error_kind() {
                None if status.state() == "running" => Ok(()),
                _ => Err(status.0.to_string()),
            }
        });
        let goal = crate::support::node::lsn(&pair.leader.status().expect("status").exact());
        until(within(30), "the follower goes on", || {
            let status = pair.follower.status()?;
            let applied = status.applied();
            if !applied.is_empty() && crate::support::node::lsn(&applied) > goal {
                Ok(())
            } else {
                Err(status.0.to_string())
            }
        });
    }
    assert!(load.finish() > 500);
    pair.equal(60);
    pair.finish();
}

#[test]
fn a_full_disk_on_the_leader() {
    fails_and_recovers(true, "enospc", "disk-full");
}

#[test]
fn a_full_disk_on_the_follower() {
    fails_and_recovers(false, "enospc", "disk-full");
}

#[test]
fn a_failing_disk_on_the_leader() {
    fails_and_recovers(true, "eio", "io");
}

#[test]
fn a_failing_disk_on_the_follower() {
    fails_and_recovers(false, "eio", "io");
}
