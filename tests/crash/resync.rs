//! kill -9 at every place of a resync: it goes on or begins anew by itself, and half of it is never shown or served.

use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::kills::dies_at;
use crate::places::{Place, places};
use crate::support::bed::Bed;
use crate::support::{Load, Node, Pair, assert_equal_within, differences, until, within};

/// Places that others pass, too, and that are on the way of a resync.
const OTHERS: [&str; 5] = [
    "disk::before_rename",
    "disk::after_rename",
    "catalog::checkpoint",
    "catalog::after_checkpoint",
    "blocks::write",
];

fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut rng = fastrand::Rng::with_seed(seed);
    (0..len).map(|_| rng.u8(..)).collect()
}

fn furnish(dir: &Path) {
    fs::create_dir_all(dir.join("a/b")).expect("mkdir");
    fs::create_dir_all(dir.join("c")).expect("mkdir");
    for n in 0..40 {
        fs::write(dir.join(format!("a/b/{n}")), noise(n, 50_000)).expect("write");
        fs::write(dir.join(format!("c/{n}")), noise(n, 700)).expect("write");
    }
    fs::write(dir.join("large"), noise(7, 3 << 20)).expect("write");
}

/// Somebody works in the follower's directory while it is down.
fn disturb(dir: &Path, seed: u64) {
    use std::os::unix::fs::FileExt;
    let large = fs::File::options().write(true).open(dir.join("large")).expect("open");
    large.write_all_at(&noise(seed, 40_000), 1 << 20).expect("write");
    for n in 0..10 {
        fs::write(dir.join(format!("a/b/{n}")), noise(seed + n, 60_000)).expect("write");
        fs::remove_file(dir.join(format!("c/{n}"))).expect("remove");
        fs::write(dir.join(format!("c/new{n}")), "n").expect("write");
    }
    fs::rename(dir.join("a/b"), dir.join("b")).expect("rename");
    fs::rename(dir.join("c"), dir.join("b/c")).expect("rename");
}

/// Waits until the node runs again. Whenever it says so, its old part is that of the leader.
fn comes_back(pair: &Pair, last: &Node, point: &str) {
    until(within(60), &format!("it runs again after {point}"), || {
        let status = pair.follower.status()?;
        if status.state() != "running" {
            let half = ["ok", "behind", "paused"].contains(&status.health().as_str());
            assert!(!half, "{point}: {} is called {}", status.state(), status.health());
            return Err(status.0.to_string());
        }
        // What was edited and is not noticed yet is told apart by what was noticed.
        let same = differences(&pair.data().join("old"), &pair.follower.data().join("old"));
        same.map_or(Ok(()), Err)
    });
    let behind = differences(&pair.data().join("old"), &last.data().join("old"));
    assert!(behind.is_none(), "{point}: half of it was served: {behind:?}");
}

#[test]
fn every_place_of_a_resync_is_met_and_survived() {
    let overwrite = |s: crate::support::Spec| s.armed().set("local_edits", "\"overwrite\"");
    let mut pair = Pair::with(Bed::new("meet-resync"), |s| s, overwrite);
    furnish(&pair.data().join("old"));
    pair.equal(30);
    let last = pair.bed.follower("last", pair.follower.spec.listen).start();
    assert_equal_within(within(30), pair.data(), last.data());
    let load = Load::start(&pair.data().join("app"), 8, Duration::from_millis(5));
    let points = places(|p| p == Place::Resync).into_iter().chain(OTHERS);
    for (round, point) in (0_u64..).zip(points) {
        pair.follower.stop();
        disturb(&pair.follower.data().join("old"), round * 100);
        pair.follower.arm(&format!("{point}=kill"));
        pair.follower = pair.follower.spec.spawn();
        let status = pair.follower.wait_end(within(30));
        assert!(Node::was_killed(status), "{point}: {status}\n{}", pair.follower.log());
        // And once more on the way back.
        pair.follower.arm(&format!("{point}=kill@2"));
        pair.follower = pair.follower.spec.spawn();
        if dies_at(&mut pair.follower, point, Duration::from_millis(1500)) {
            pair.follower.arm("");
            pair.follower.restart();
        }
        comes_back(&pair, &last, point);
    }
    load.finish();
    pair.equal(60);
    assert_equal_within(within(60), pair.data(), last.data());
    pair.finish();
}
