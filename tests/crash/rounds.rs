//! Rounds of everything at once: a random application, kills at random and at named places, failing disks, cut
//! and hostile networks, pauses, stops; at the end of each round the trees must be equal.
//! `TOWLINE_SOAK_MINUTES` says how long.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::places::of_any_work;
use crate::support::bed::{Bed, nap};
use crate::support::{Load, Node, Proxy, Spec, assert_equal_within, until, within};

pub(crate) fn minutes() -> Duration {
    let text = std::env::var("TOWLINE_SOAK_MINUTES").unwrap_or_default();
    let minutes: f64 = text.parse().unwrap_or(0.4);
    Duration::from_secs_f64(minutes * 60.0)
}

fn busy(spec: Spec) -> Spec {
    spec.armed()
        .set("segment_timeout", "\"1s\"")
        .set("checkpoint_interval", "\"1s\"")
        .set("checkpoint_bytes", "\"1M\"")
        .set("rescan_interval", "\"5s\"")
}

/// Lets a node die, or its disk fail for a while, at a random place.
fn trouble(node: &mut Node, action: &str) {
    // What an application alone does not lead to has tests of its own.
    let points = of_any_work();
    let point = points[fastrand::usize(..points.len())];
    node.arm(&format!("{point}={action}"));
    nap(50, 700);
    node.arm("");
    // One that passed the place just before has a moment to die; on a machine that is busy the end of the round finds it.
    nap(20, 30);
    revive(node, &format!("{point}={action}"));
}

/// Starts a node anew that died at its place.
fn revive(node: &mut Node, what: &str) {
    if let Some(status) = node.ended() {
        assert!(Node::was_killed(status), "{} at {what}: {status}\n{}", node.spec.name, node.log());
        node.restart();
    }
}

/// Stops it; one that was told to die at a place which only a stop comes to dies there.
fn halt(node: &mut Node) {
    node.signal(nix::sys::signal::Signal::SIGTERM);
    let status = node.wait_end(within(20));
    assert!(
        status.success() || Node::was_killed(status),
        "{} at a stop: {status}\n{}",
        node.spec.name,
        node.log()
    );
}

fn mischief(leader: &mut Node, followers: &mut [Node], proxy: &Proxy) -> &'static str {
    let i = fastrand::usize(..followers.len());
    let follower = &mut followers[i];
    match fastrand::u32(..16) {
        0 => {
            leader.kill();
            leader.restart();
            "leader killed"
        }
        1 => {
            halt(leader);
            nap(0, 300);
            leader.restart();
            "leader stopped"
        }
        2 | 3 => {
            follower.kill();
            follower.restart();
            "follower killed"
        }
        4 => {
            halt(follower);
            nap(0, 300);
            follower.restart();
            "follower stopped"
        }
        5 | 6 => {
            proxy.cut();
            "network cut"
        }
        7 => {
            proxy.stall(true);
            nap(100, 3000);
            proxy.stall(false);
            "network stalled"
        }
        8 => {
            proxy.flip(50_000);
            nap(100, 800);
            proxy.flip(0);
            "bits flipped"
        }
        9 => {
            proxy.truncate(fastrand::u64(1..200_000));
            nap(100, 800);
            proxy.truncate(0);
            "connections truncated"
        }
        10 => {
            trouble(leader, "kill");
            "leader died at a named place"
        }
        11 => {
            trouble(follower, "kill");
            "follower died at a named place"
        }
        12 => {
            trouble(leader, ["eio", "enospc"][fastrand::usize(..2)]);
            "leader's disk failed"
        }
        13 => {
            trouble(follower, ["eio", "enospc"][fastrand::usize(..2)]);
            "follower's disk failed"
        }
        14 => {
            // A node between two states may say no; then it goes on.
            if follower.try_pause().is_ok() {
                nap(0, 300);
                follower.resume();
            }
            "paused"
        }
        _ => {
            follower.freeze(true);
            nap(100, 2500);
            follower.freeze(false);
            "frozen"
        }
    }
}

#[test]
fn soak_rounds() {
    let end = Instant::now() + minutes();
    let bed = Bed::new("soak");
    let mut leader = busy(bed.leader("leader")).start();
    let proxy = Proxy::to(leader.spec.listen);
    let near = busy(bed.follower("near", proxy.port())).start();
    let far = busy(bed.follower("far", near.spec.listen)).start();
    let mut followers = [near, far];
    let (mut round, mut total, mut counts) = (0, 0, BTreeMap::new());
    while round == 0 || Instant::now() < end {
        round += 1;
        let seed = fastrand::u64(..);
        println!("round {round}, seed {seed}");
        let load =
            Load::start(&leader.data().join("app"), seed, Duration::from_micros(fastrand::u64(200..3000)));
        let until_then = Instant::now() + Duration::from_secs(fastrand::u64(4..20)).min(minutes());
        let mut done: Vec<&str> = Vec::new();
        let began = Instant::now();
        while Instant::now() < until_then {
            nap(20, 800);
            done.push(mischief(&mut leader, &mut followers, &proxy));
        }
        let ops = load.finish();
        proxy.calm();
        println!("  {ops} operations; {}", done.join(", "));
        total += ops;
        done.iter().for_each(|what| *counts.entry(*what).or_insert(0_u32) += 1);
        nap(200, 300);
        let [near, far] = &mut followers;
        [&mut leader, near, far].into_iter().for_each(|node| revive(node, "the end of the round"));
        for follower in &followers {
            assert_equal_within(within(60), leader.data(), follower.data());
        }
        until(within(30), "all is well", || {
            for node in [&leader, &followers[0], &followers[1]] {
                let status = node.status()?;
                if status.error_kind().is_some() {
                    return Err(status.0.to_string());
                }
            }
            Ok(())
        });
        println!("  equal and well {:.1} s after its beginning", began.elapsed().as_secs_f64());
    }
    for segment in leader.segments() {
        let out = crate::support::node::log_verify(&segment);
        assert!(out.status.success(), "{}: {}", segment.display(), String::from_utf8_lossy(&out.stderr));
    }
    println!("{round} rounds clean: {total} operations, {counts:?}");
    for node in [&leader, &followers[0], &followers[1]] {
        node.assert_no_panic();
    }
}
