//! kill -9 at every failpoint on either side.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use crate::places::{Place, of_any_work, of_work, places};
use crate::support::bed::{Bed, nap, soak_or};
use crate::support::node::towline;
use crate::support::{Load, Node, Pair, Spec, assert_equal_within, load, until, within};

/// Every durable step happens within seconds.
fn busy(spec: Spec) -> Spec {
    spec.armed()
        .set("segment_timeout", "\"300ms\"")
        .set("checkpoint_interval", "\"500ms\"")
        .set("checkpoint_bytes", "\"256k\"")
        .set("rescan_interval", "\"2s\"")
}

/// Arms a failpoint in a running node and waits a moment for its death.
pub(crate) fn dies_at(node: &mut Node, point: &str, limit: Duration) -> bool {
    node.arm(&format!("{point}=kill"));
    let start = Instant::now();
    while start.elapsed() < limit {
        if let Some(status) = node.ended() {
            assert!(Node::was_killed(status), "{} at {point}: {status}\n{}", node.spec.name, node.log());
            return true;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    node.arm("");
    false
}

/// Files that are only appended to, one numbered line at a time: a change applied twice would show.
fn append_line(dir: &std::path::Path, n: u64) {
    use std::io::Write;
    let mut file = fs::File::options().create(true).append(true).open(dir.join("lines")).expect("open");
    writeln!(file, "line {n}").expect("write");
}

fn lines_are_numbered(dir: &std::path::Path) {
    let text = fs::read_to_string(dir.join("lines")).expect("read");
    for (i, line) in text.lines().enumerate() {
        assert_eq!(line, format!("line {i}"), "applied twice, or lost");
    }
}

fn kill_everywhere(on_leader: bool) -> BTreeMap<&'static str, u32> {
    let mut pair = Pair::with(Bed::new(if on_leader { "kill-leader" } else { "kill-follower" }), busy, busy);
    let load = Load::start(&pair.data().join("app"), fastrand::u64(..), Duration::from_millis(2));
    let mut reached = BTreeMap::new();
    let mut lines = 0;
    for _ in 0..soak_or(8, 1) {
        for point in of_any_work() {
            append_line(pair.data(), lines);
            lines += 1;
            nap(1, 60);
            let node = if on_leader { &mut pair.leader } else { &mut pair.follower };
            // What this side must reach gets its time; the rest may be the other side's.
            let must = of_work(on_leader).contains(&point);
            if !dies_at(node, point, if must { within(20) } else { Duration::from_millis(500) }) {
                continue;
            }
            *reached.entry(point).or_insert(0) += 1;
            node.arm("");
            node.restart();
            // Every few kills the application rests and all must be equal; else only the next death comes.
            if lines % 6 == 0 {
                converges(&pair, &load);
            }
        }
    }
    let ops = load.finish();
    assert!(ops > 500, "only {ops} operations");
    pair.equal(60);
    lines_are_numbered(pair.follower.data());
    println!(
        "killed {} at {} places: {reached:?}",
        if on_leader { "leader" } else { "follower" },
        reached.len()
    );
    pair.finish();
    reached
}

/// The newest exact position that the leader has now is applied in time, whatever goes on.
fn converges(pair: &Pair, load: &Load) {
    let before = load.ops();
    let goal = until(within(30), "the leader cuts", || {
        let status = pair.leader.status()?;
        if status.exact().is_empty() { Err(status.0.to_string()) } else { Ok(status.exact()) }
    });
    let goal = crate::support::node::lsn(&goal);
    until(within(30), "the follower gets there", || {
        let status = pair.follower.status()?;
        let applied = status.applied();
        if !applied.is_empty() && crate::support::node::lsn(&applied) >= goal {
            Ok(())
        } else {
            Err(status.0.to_string())
        }
    });
    until(within(30), "the application goes on", || {
        if load.ops() > before { Ok(()) } else { Err("it stands".into()) }
    });
}

/// Kills wherever this side passes, and says where it never came.
fn dies_everywhere(on_leader: bool) {
    let reached = kill_everywhere(on_leader);
    let left: Vec<&str> = of_work(on_leader).into_iter().filter(|p| !reached.contains_key(p)).collect();
    assert!(
        left.is_empty(),
        "never reached on a {}: {left:?}",
        if on_leader { "leader" } else { "follower" }
    );
}

#[test]
fn the_leader_dies_at_every_place() {
    dies_everywhere(true);
}

#[test]
fn the_follower_dies_at_every_place() {
    dies_everywhere(false);
}

/// A leader dies with much of a large change set in its durable log, and nothing that ends it.
#[test]
fn a_change_set_that_a_death_left_open_ends_in_an_abort() {
    let mut pair = Pair::with(Bed::new("open-set"), Spec::armed, |spec| spec);
    for point in ["capture::after_examine", "capture::before_commit"] {
        let noise: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..)).take(24 << 20).collect();
        let aside = pair.bed.path("aside");
        fs::write(&aside, noise).expect("write");
        pair.leader.arm(&format!("{point}=kill"));
        // It is there as a whole, so that one pass takes it.
        fs::rename(aside, pair.data().join(point)).expect("rename");
        let status = pair.leader.wait_end(within(60));
        assert!(Node::was_killed(status), "{point}: {status}");
        pair.leader.arm("");
        pair.leader.restart();
        pair.equal(60);
        fs::write(pair.data().join("after"), point).expect("write");
        pair.equal(20);
    }
    let out = std::process::Command::new(towline())
        .args(["log", "dump"])
        .arg(pair.leader.spec.state.join("log"))
        .output()
        .expect("log dump");
    let text = String::from_utf8_lossy(&out.stdout);
    assert_eq!(text.lines().filter(|l| l.ends_with(" abort")).count(), 2, "{:.2000}", text);
    pair.finish();
}

#[test]
fn either_side_dies_at_every_place_of_a_fill() {
    let bed = Bed::new("kill-fill");
    let spec = busy(bed.leader("leader"));
    load::burst(&spec.data.join("old"), 5, 1500);
    let mut leader = spec.start();
    let load = Load::start(&leader.data().join("app"), 6, Duration::from_millis(2));
    let mut reached = BTreeMap::new();
    let points = places(|p| p == Place::Fill);
    for (i, point) in points.iter().enumerate() {
        for on_leader in [false, true] {
            let spec = busy(bed.follower(&format!("f{i}{on_leader}"), leader.spec.listen));
            if on_leader {
                leader.arm(&format!("{point}=kill"));
            }
            let mut follower = spec.spawn();
            if !on_leader {
                follower.arm(&format!("{point}=kill"));
            }
            let victim = if on_leader { &mut leader } else { &mut follower };
            let start = Instant::now();
            while start.elapsed() < within(5) && victim.ended().is_none() {
                std::thread::sleep(Duration::from_millis(5));
            }
            let died = victim.ended().is_some();
            victim.arm("");
            if died {
                *reached.entry(*point).or_insert(0) += 1;
                victim.restart();
            }
            until(within(60), "the fill ends", || {
                let status = follower.status()?;
                if status.applied().is_empty() || status.error_kind().is_some() {
                    Err(status.0.to_string())
                } else {
                    Ok(())
                }
            });
            // It must be a whole copy: the old part does not change.
            assert_equal_within(within(30), &leader.data().join("old"), &follower.data().join("old"));
        }
    }
    assert!(load.finish() > 300);
    println!("died during a fill: {reached:?}");
    for point in &points {
        assert!(reached.contains_key(point), "never reached: {point}");
    }
    let last = bed.follower("last", leader.spec.listen).start();
    assert_equal_within(within(60), leader.data(), last.data());
    leader.assert_no_panic();
}

#[test]
fn both_die_at_random() {
    let mut pair = Pair::with(Bed::new("kill-random"), busy, busy);
    let load = Load::start(&pair.data().join("app"), fastrand::u64(..), Duration::from_millis(1));
    let rounds = soak_or(300, 20);
    for i in 0..rounds {
        append_line(pair.data(), i);
        nap(5, 500);
        match fastrand::u32(..5) {
            0 | 1 => {
                pair.leader.kill();
                nap(0, 50);
                pair.leader.restart();
            }
            2 | 3 => {
                pair.follower.kill();
                nap(0, 50);
                pair.follower.restart();
            }
            _ => {
                pair.leader.kill();
                pair.follower.kill();
                pair.follower = pair.follower.spec.spawn();
                pair.leader.restart();
                until(within(30), "the follower answers", || pair.follower.status().map(|_| ()));
            }
        }
        if i % 5 == 4 {
            converges(&pair, &load);
        }
    }
    println!("{rounds} random kills over {} operations", load.ops());
    load.finish();
    pair.equal(60);
    lines_are_numbered(pair.follower.data());
    pair.finish();
}
