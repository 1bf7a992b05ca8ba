//! A follower that can't go on from its log is made equal to its leader again, and only what differs is moved: a log
//! that is gone, a log that went its own way, a directory that was seeded, and contents that are not what was applied.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::support::bed::{Bed, copy_tree};
use crate::support::node::{Node, Spec, Status};
use crate::support::slot::{brisk, slot_until};
use crate::support::{Load, Pair, assert_equal, assert_equal_within, differences, holds_for, until, within};

const BLOCK: u64 = 16 << 10;

pub(crate) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut rng = fastrand::Rng::with_seed(seed);
    (0..len).map(|_| rng.u8(..)).collect()
}

/// A number of the part of status about resyncs.
pub(crate) fn count(status: &Status, key: &str) -> u64 {
    status.0.pointer(&format!("/resync/{key}")).and_then(Value::as_u64).unwrap_or_default()
}

/// Waits until so many resyncs were completed and the node runs.
pub(crate) fn resynced(node: &Node, times: u64) -> Status {
    until(within(60), "it is resynced", || {
        let status = node.status()?;
        let whole = count(&status, "completed") >= times && status.state() == "running";
        if whole && status.error_kind().is_none() { Ok(status) } else { Err(status.0.to_string()) }
    })
}

/// Takes all log away from a leader that was stopped, but its newest segments.
fn forget_log(leader: &Node) {
    let segments = leader.segments();
    for old in &segments[..segments.len().saturating_sub(2)] {
        fs::remove_file(old).expect("remove");
    }
    assert!(segments.len() > 2, "{segments:?}");
}

/// Changes that each get a segment of their own.
fn move_on(leader: &Node, to: &Path, times: usize) {
    for n in 0..times {
        let sealed = || {
            let names = leader.segments();
            names.iter().filter(|p| p.extension().is_none_or(|e| e != "partial")).count()
        };
        let before = sealed();
        fs::write(to.join(format!("step{n}")), noise(n as u64, 1000)).expect("write");
        until(
            within(20),
            "another segment",
            || if sealed() > before { Ok(()) } else { Err("not yet".into()) },
        );
    }
}

pub(crate) fn short(spec: Spec) -> Spec {
    spec.set("segment_timeout", "\"200ms\"")
}

/// A tree of some size: one large file, many small ones, and names of all kinds.
pub(crate) fn furnish(dir: &Path) {
    fs::create_dir_all(dir.join("many/of/them")).expect("mkdir");
    fs::write(dir.join("large"), noise(1, 24 << 20)).expect("write");
    for n in 0..200 {
        fs::write(dir.join(format!("many/of/them/{n}")), noise(n, 3000)).expect("write");
    }
    std::os::unix::fs::symlink("large", dir.join("link")).expect("symlink");
    fs::hard_link(dir.join("many/of/them/7"), dir.join("seven")).expect("link");
}

/// Changes `blocks` blocks of the large file and some names.
fn change(dir: &Path, seed: u64, blocks: u64) {
    let file = fs::File::options().write(true).open(dir.join("large")).expect("open");
    for n in 0..blocks {
        file.write_all_at(&noise(seed + n, 500), (n * 37 % 1500) * BLOCK).expect("write");
    }
    fs::rename(dir.join("many/of"), dir.join("elsewhere")).expect("rename");
    fs::remove_file(dir.join("seven")).expect("remove");
    fs::write(dir.join("new"), noise(seed, 5000)).expect("write");
}

#[test]
fn a_follower_whose_log_is_gone_at_the_leader_is_resynced_by_itself() {
    let mut pair = Pair::with(Bed::new("resync-gone"), short, short);
    furnish(pair.data());
    pair.equal(30);
    pair.follower.stop();
    change(pair.data(), 5, 15);
    move_on(&pair.leader, &pair.data().join("elsewhere"), 4);
    pair.leader.stop();
    forget_log(&pair.leader);
    pair.leader.restart();
    pair.follower.restart();
    let status = resynced(&pair.follower, 1);
    pair.equal(20);
    // The blocks that differ, what is new, the hashes of one large file, and the list of names.
    let (wire, content) = (count(&status, "wire_bytes"), count(&status, "received_bytes"));
    let differs = 15 * BLOCK + 5000 + 4 * 1000;
    let hashes = (24 << 20) / BLOCK * 16;
    assert!(content <= differs + 4 * BLOCK, "{content} bytes of content moved for {differs}");
    assert!(wire < 2 * (differs + hashes) + 60_000, "{wire} bytes went over the line");
    println!("{wire} bytes for {differs} that differ of 25 MB");
    assert_eq!(count(&status, "read_bytes"), 0, "what was applied is known without being read");
    assert_eq!(count(&status, "lost_logs"), 0, "the old log was only old");
    fs::write(pair.data().join("afterwards"), "x").expect("write");
    pair.equal(20);
    pair.finish();
}

/// The leader's state comes back from a copy that is older than what the follower has, and so do its data.
fn turn_back(pair: &mut Pair) {
    let state = pair.leader.spec.state.clone();
    pair.leader.stop();
    let old = pair.bed.path("old");
    copy_tree(&state, &old);
    pair.leader.restart();
    fs::write(pair.data().join("only here"), "2").expect("write");
    pair.equal(15);
    pair.leader.stop();
    fs::remove_dir_all(&state).expect("remove");
    copy_tree(&old, &state);
    fs::remove_file(pair.data().join("only here")).expect("remove");
    pair.leader.restart();
}

#[test]
fn a_log_that_went_its_own_way_is_put_aside_and_the_directory_follows_again() {
    let mut pair = Pair::start("resync-apart");
    furnish(pair.data());
    pair.equal(20);
    turn_back(&mut pair);
    let status = resynced(&pair.follower, 1);
    pair.equal(20);
    assert!(!pair.follower.data().join("only here").exists());
    assert_eq!(count(&status, "lost_logs"), 1);
    let lost = pair.follower.spec.state.join("lost/1");
    assert!(fs::read_dir(&lost).expect("list").count() > 0 && count(&status, "lost_bytes") > 0);
    assert!(pair.follower.log().contains("lost/1"), "{}", pair.follower.log());
    pair.finish();
}

#[test]
fn one_who_is_to_ask_waits_for_the_word() {
    let mut pair = Pair::with(Bed::new("resync-ask"), |s| s, |s| s.set("resync", "\"ask\""));
    fs::write(pair.data().join("a"), "1").expect("write");
    pair.equal(20);
    turn_back(&mut pair);
    until(within(30), "it says what to do", || {
        let status = pair.follower.status()?;
        if status.error_text().1.contains("towline resync") { Ok(()) } else { Err(status.0.to_string()) }
    });
    assert!(pair.follower.data().join("only here").exists(), "nothing was touched");
    assert!(!pair.leader.ask(&["resync"]).status.success(), "a leader is what others are made equal to");
    let said = pair.follower.ask(&["resync"]);
    assert!(said.status.success(), "{said:?}");
    resynced(&pair.follower, 1);
    pair.equal(20);
    assert!(pair.follower.spec.state.join("lost/1").exists());
    // Also where nothing is wrong.
    assert!(pair.follower.ask(&["resync"]).status.success());
    let status = resynced(&pair.follower, 2);
    assert_eq!((count(&status, "received_bytes"), count(&status, "removed")), (0, 0), "{}", status.0);
    pair.finish();
}

#[test]
fn a_seeded_directory_is_refused_untouched_and_adopted_on_request() {
    let bed = Bed::new("adopt");
    let leader = bed.leader("leader").start();
    furnish(leader.data());
    let spec = bed.follower("follower", leader.spec.listen);
    let seed = bed.path("seed");
    copy_tree(leader.data(), &seed);
    change(&seed, 9, 10);
    fs::write(seed.join("many/foreign"), "f").expect("write");
    fs::remove_dir(&spec.data).expect("rmdir");
    copy_tree(&seed, &spec.data);
    let (status, log) = spec.refused(within(20));
    assert!(!status.success() && log.contains("--adopt"), "{status}: {log}");
    assert_equal(&seed, &spec.data);
    fs::remove_dir_all(&spec.state).expect("remove the state");
    let follower = spec.clone().set("adopt", "true").start();
    let told = resynced(&follower, 1);
    assert_equal_within(within(20), leader.data(), follower.data());
    // 200 small files are under other names, and the blocks of the large one.
    let content = count(&told, "received_bytes");
    assert!(content < 10 * BLOCK + 200 * 3100 + 3 * BLOCK, "{content} bytes moved: {}", told.0);
    fs::write(leader.data().join("on"), "x").expect("write");
    assert_equal_within(within(20), leader.data(), follower.data());
    follower.assert_no_panic();
}

#[test]
fn a_foreign_system_is_refused_whatever_is_asked_for() {
    let bed = Bed::new("resync-foreign");
    let (one, two) = (bed.leader("one").start(), bed.leader("two").start());
    fs::write(one.data().join("one"), "1").expect("write");
    let mut follower = bed.follower("follower", one.spec.listen).start();
    assert_equal_within(within(20), one.data(), follower.data());
    follower.stop();
    follower.spec.upstream = Some(two.spec.listen);
    follower.spec = follower.spec.clone().set("adopt", "true");
    follower.restart();
    assert!(follower.ask(&["resync"]).status.success());
    until(within(30), "it is refused", || {
        let status = follower.status()?;
        if status.upstream_code() == "wrong-system" { Ok(()) } else { Err(status.0.to_string()) }
    });
    holds_for(Duration::from_secs(1), "it stays as it is", || {
        differences(one.data(), follower.data()).map_or(Ok(()), Err)
    });
}

/// Changes a byte behind everybody's back: sizes and modification times stay.
fn rot(path: &Path, at: u64) {
    let file = fs::File::options().read(true).write(true).open(path).expect("open");
    let time = file.metadata().and_then(|m| m.modified()).expect("mtime");
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("read");
    file.write_all_at(&[!byte[0]], at).expect("write");
    file.set_modified(time).expect("set mtime");
    file.sync_all().expect("sync");
}

#[test]
fn rot_on_a_followers_disk_is_found_named_and_repaired_by_its_blocks() {
    let mut pair = Pair::start("resync-rot");
    furnish(pair.data());
    pair.equal(20);
    pair.follower.stop();
    rot(&pair.follower.data().join("large"), 700 * BLOCK + 5);
    pair.follower.restart();
    let status = resynced(&pair.follower, 1);
    pair.equal(20);
    assert_eq!(count(&status, "repaired_files"), 1, "{}", status.0);
    assert_eq!(count(&status, "repaired_bytes"), BLOCK, "{}", status.0);
    assert!(status.0.pointer("/resync/repaired/0").is_some_and(|p| p == "large"), "{}", status.0);
    assert!(pair.follower.log().contains("'large' was not what was applied: repaired"));
    // The log went on: nobody downstream has to begin anew.
    assert_eq!(count(&status, "lost_logs"), 0);
    pair.finish();
}

#[test]
fn edits_that_are_to_be_overwritten_are_whatever_they_are() {
    let pair = Pair::with(Bed::new("resync-edits"), |s| s, |s| s.set("local_edits", "\"overwrite\""));
    furnish(pair.data());
    pair.equal(20);
    fs::write(pair.follower.data().join("many/of/them/3"), "mine").expect("write");
    fs::remove_file(pair.follower.data().join("many/of/them/4")).expect("remove");
    fs::write(pair.follower.data().join("mine"), "mine").expect("write");
    resynced(&pair.follower, 1);
    pair.equal(30);
    pair.finish();
}

#[test]
fn an_edit_that_is_refused_goes_when_an_operator_says_so() {
    let pair = Pair::start("resync-refused");
    furnish(pair.data());
    pair.equal(20);
    fs::write(pair.follower.data().join("many/of/them/3"), "mine").expect("write");
    fs::write(pair.data().join("many/of/them/3"), "theirs").expect("write");
    until(within(20), "it is refused", || {
        let status = pair.follower.status()?;
        let said = status.state() == "refused" && status.error_text().0.contains("towline resync");
        if said { Ok(()) } else { Err(status.0.to_string()) }
    });
    assert_eq!(fs::read(pair.follower.data().join("many/of/them/3")).expect("read"), b"mine");
    assert!(pair.follower.ask(&["resync"]).status.success());
    resynced(&pair.follower, 1);
    pair.equal(20);
    pair.finish();
}

#[test]
fn what_would_remove_most_of_a_directory_is_held_for_a_word() {
    let bed = Bed::new("resync-guard");
    let leader = bed.leader("leader").start();
    fs::write(leader.data().join("one"), "1").expect("write");
    let spec =
        bed.follower("follower", leader.spec.listen).set("adopt", "true").set("max_delete_floor", "20");
    for n in 0..30 {
        fs::write(spec.data.join(n.to_string()), "x").expect("write");
    }
    let follower = spec.start();
    until(within(30), "it is held", || {
        let status = follower.status()?;
        let held = status.state() == "held" && status.error_text().0.contains("30 of the 30 names");
        if held { Ok(()) } else { Err(status.0.to_string()) }
    });
    assert_eq!(fs::read_dir(follower.data()).expect("list").count(), 30, "nothing was touched");
    follower.confirm();
    resynced(&follower, 1);
    assert_equal_within(within(20), leader.data(), follower.data());
}

/// The leader's disk stays bounded, and what that costs the follower is a resync.
#[test]
fn a_slot_that_is_lost_under_load_costs_a_resync() {
    let mut pair = Pair::with(Bed::new("resync-slot"), |s| brisk(s).set("max_slot_keep", "4"), brisk);
    furnish(pair.data());
    pair.equal(30);
    pair.follower.stop();
    let load = Load::start(&pair.data().join("app"), 11, Duration::from_millis(5));
    let before: Vec<_> = pair
        .leader
        .segments()
        .iter()
        .filter_map(|p| Some(p.with_extension("").file_name()?.to_owned()))
        .collect();
    slot_until(&pair.leader, "follower", "is lost", |s| s["state"] == "lost");
    until(within(30), "what it held is gone", || {
        let here = pair.leader.segments();
        let names = here.iter().filter_map(|p| Some(p.with_extension("").file_name()?.to_owned()));
        if names.into_iter().any(|n| before.contains(&n)) { Err(format!("{here:?}")) } else { Ok(()) }
    });
    assert!(pair.leader.segments().len() <= 10, "{:?}", pair.leader.segments());
    pair.follower.restart();
    let status = resynced(&pair.follower, 1);
    assert_eq!(count(&status, "lost_logs"), 0);
    slot_until(&pair.leader, "follower", "is held again", |s| {
        s["state"] == "reserved" || s["state"] == "extended"
    });
    load.finish();
    pair.equal(30);
    assert!(count(&status, "received_bytes") < 12 << 20, "most of it was there: {}", status.0);
    pair.finish();
}

#[test]
fn what_follows_a_resynced_node_is_turned_away_meanwhile_and_resynced_behind_it() {
    let mut pair = Pair::with(Bed::new("resync-chain"), short, short);
    furnish(pair.data());
    pair.equal(30);
    let mut last = short(pair.bed.follower("last", pair.follower.spec.listen)).start();
    assert_equal_within(within(30), pair.data(), last.data());
    pair.follower.stop();
    change(pair.data(), 5, 5);
    move_on(&pair.leader, pair.data(), 4);
    pair.leader.stop();
    forget_log(&pair.leader);
    pair.leader.restart();
    pair.follower.restart();
    resynced(&pair.follower, 1);
    resynced(&last, 1);
    assert_equal_within(within(30), pair.data(), last.data());
    last.stop();
    pair.finish();
}

#[test]
fn a_leader_that_is_written_and_killed_meanwhile_loses_nothing() {
    let mut pair = Pair::with(Bed::new("resync-busy"), short, |s| short(s).armed());
    furnish(pair.data());
    let load = Load::start(&pair.data().join("app"), 3, Duration::from_millis(3));
    until(within(20), "some work", || if load.ops() > 100 { Ok(()) } else { Err("none".into()) });
    // Each file takes its time, so that there is a meanwhile.
    pair.follower.arm("resync::file=sleep:20");
    for seed in 0..40 {
        fs::write(pair.follower.data().join(format!("many/of/them/{seed}")), "edited").unwrap_or_default();
    }
    assert!(pair.follower.ask(&["resync"]).status.success());
    until(within(20), "it is under way", || {
        let status = pair.follower.status()?;
        if status.state() == "resyncing" { Ok(()) } else { Err(status.0.to_string()) }
    });
    pair.leader.kill();
    pair.leader.restart();
    pair.follower.arm("");
    resynced(&pair.follower, 1);
    load.finish();
    pair.equal(60);
    pair.finish();
}

#[test]
fn an_edit_that_is_refused_outlives_a_lost_log() {
    let mut pair = Pair::with(Bed::new("resync-edit"), short, short);
    fs::write(pair.data().join("mine"), "the leader's").expect("write");
    pair.equal(20);
    pair.follower.stop();
    fs::write(pair.follower.data().join("mine"), "an edit that nobody else has").expect("write");
    move_on(&pair.leader, pair.data(), 4);
    pair.leader.stop();
    forget_log(&pair.leader);
    pair.leader.restart();
    pair.follower.restart();
    let named = |status: &Status| status.state() == "refused" && status.0.to_string().contains("mine");
    until(within(20), "it stands still and names the file", || {
        let status = pair.follower.status()?;
        if named(&status) { Ok(()) } else { Err(status.0.to_string()) }
    });
    holds_for(Duration::from_secs(4), "the edit stays, and what is said of it", || {
        let status = pair.follower.status()?;
        let text = fs::read_to_string(pair.follower.data().join("mine")).map_err(|e| e.to_string())?;
        if named(&status) && text.starts_with("an edit") { Ok(()) } else { Err(status.0.to_string()) }
    });
    // Until an operator says otherwise.
    assert!(pair.follower.ask(&["resync"]).status.success());
    resynced(&pair.follower, 1);
    pair.equal(20);
    pair.finish();
}

#[test]
fn attributes_of_directories_are_the_leaders_after_a_copy_and_after_a_resync() {
    let acl = |words: &[&str], path: &Path| {
        let done = std::process::Command::new("setfacl").args(words).arg(path).status().expect("setfacl");
        assert!(done.success(), "setfacl {words:?}");
    };
    let bed = Bed::new("resync-acl");
    let leader = bed.leader("leader").start();
    fs::create_dir_all(leader.data().join("dir/below")).expect("mkdir");
    fs::write(leader.data().join("dir/secret"), "0640").expect("write");
    fs::write(leader.data().join("large"), noise(3, 3 << 20)).expect("write");
    let spec = bed.follower("follower", leader.spec.listen);
    // What is made in such a directory begins with an ACL that the leader's has not.
    fs::create_dir_all(&spec.data).expect("mkdir");
    acl(&["-d", "-m", "u:65534:rwx"], &spec.data);
    let follower = spec.start();
    assert_equal_within(within(30), leader.data(), follower.data());
    // The times of directories don't show this.
    acl(&["-m", "u:1234:rwx", "-d", "-m", "u:1234:rwx"], &follower.data().join("dir"));
    assert!(follower.ask(&["resync"]).status.success());
    resynced(&follower, 1);
    assert_equal_within(within(20), leader.data(), follower.data());
}
