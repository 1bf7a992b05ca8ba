//! Starting, stopping, filling, cascading, and the commands.

use std::fs;
use std::time::Duration;

use crate::support::bed::Bed;
use crate::support::node::{STAGE, lsn};
use crate::support::{Load, Pair, assert_equal, assert_equal_within, load, until, within};

#[test]
fn a_write_on_the_leader_is_on_the_follower() {
    let pair = Pair::start("write");
    fs::write(pair.data().join("a"), "one").expect("write");
    pair.equal(3);
    assert_eq!(fs::read(pair.follower.data().join("a")).expect("read"), b"one");
    fs::write(pair.data().join("a"), "two").expect("write");
    fs::create_dir(pair.data().join("d")).expect("mkdir");
    fs::rename(pair.data().join("a"), pair.data().join("d/b")).expect("rename");
    pair.equal(3);
    assert_eq!(fs::read(pair.follower.data().join("d/b")).expect("read"), b"two");
    fs::remove_dir_all(pair.data().join("d")).expect("rm");
    pair.equal(3);
    assert!(!pair.follower.data().join("d").exists());
    pair.finish();
}

#[test]
fn a_random_application_is_followed_and_the_log_verifies() {
    let pair = Pair::start("random");
    let load = Load::start(&pair.data().join("app"), fastrand::u64(..), Duration::from_millis(1));
    std::thread::sleep(within(5));
    let ops = load.finish();
    assert!(ops > 300, "only {ops} operations");
    pair.equal(20);
    let segments = pair.leader.segments();
    assert!(!segments.is_empty());
    for segment in &segments {
        let out = crate::support::node::log_verify(segment);
        assert!(out.status.success(), "{}: {}", segment.display(), String::from_utf8_lossy(&out.stderr));
    }
    // Sealed segments are the same bytes on both nodes.
    let sealed: Vec<_> = segments.iter().filter(|s| s.extension().is_none()).collect();
    until(within(15), "a sealed segment", || {
        if pair.leader.segments().iter().any(|s| s.extension().is_none()) {
            Ok(())
        } else {
            Err("none".into())
        }
    });
    for segment in sealed {
        let other = pair.follower.spec.state.join("log").join(segment.file_name().expect("name"));
        assert!(fs::read(segment).expect("read") == fs::read(&other).expect("read"), "{}", other.display());
    }
    pair.finish();
}

#[test]
fn a_follower_is_filled_from_a_directory_in_use_and_a_late_one_too() {
    let bed = Bed::new("fill");
    let spec = bed.leader("leader");
    load::burst(&spec.data.join("old"), 7, 3000);
    fs::write(spec.data.join("big"), vec![7_u8; 20 << 20]).expect("write");
    let leader = spec.start();
    let load = Load::start(&leader.data().join("app"), 8, Duration::from_millis(1));
    let first = bed.follower("first", leader.spec.listen).start();
    std::thread::sleep(within(3));
    let second = bed.follower("second", leader.spec.listen).start();
    std::thread::sleep(within(3));
    assert!(load.finish() > 200);
    assert_equal_within(within(30), leader.data(), first.data());
    assert_equal_within(within(30), leader.data(), second.data());
    let mut known: Vec<String> =
        leader.status().expect("status").followers().into_iter().map(|f| f.0).collect();
    known.sort();
    assert_eq!(known, ["first", "second"]);
}

#[test]
fn a_follower_serves_its_log_onward() {
    let bed = Bed::new("cascade");
    let leader = bed.leader("leader").start();
    load::burst(&leader.data().join("app"), 1, 500);
    let mut middle = bed.follower("middle", leader.spec.listen).start();
    let last = bed.follower("last", middle.spec.listen).start();
    load::burst(&leader.data().join("app"), 2, 500);
    assert_equal_within(within(30), leader.data(), last.data());
    middle.stop();
    load::burst(&leader.data().join("app"), 3, 200);
    middle.restart();
    load::burst(&leader.data().join("app"), 4, 200);
    assert_equal_within(within(30), leader.data(), last.data());
    assert_equal_within(within(30), leader.data(), middle.data());
}

#[test]
fn pause_rests_on_a_cut_and_resume_goes_on() {
    let pair = Pair::start("pause");
    fs::write(pair.data().join("a"), "1").expect("write");
    pair.equal(3);
    let rest = pair.follower.pause();
    assert_eq!(rest.cut, "exact");
    assert!(pair.follower.status().expect("status").paused());
    fs::write(pair.data().join("a"), "22").expect("write");
    until(within(5), "the follower holds the log of what it does not apply", || {
        let end = lsn(&pair.follower.status()?.end());
        if end > lsn(&rest.lsn) { Ok(()) } else { Err(format!("its log ends at {end:x}")) }
    });
    assert_eq!(fs::read(pair.follower.data().join("a")).expect("read"), b"1");
    assert_eq!(pair.follower.pause(), rest, "a second pause is no move");
    pair.follower.resume();
    pair.equal(3);
    pair.finish();
}

#[test]
fn a_stop_and_a_start_lose_nothing() {
    let mut pair = Pair::start("restart");
    load::burst(&pair.data().join("app"), 1, 300);
    pair.follower.stop();
    load::burst(&pair.data().join("app"), 2, 300);
    pair.follower.restart();
    pair.equal(15);
    pair.leader.stop();
    // What happens while the leader is down is found by its start scan.
    load::burst(&pair.data().join("app"), 3, 300);
    fs::rename(pair.data().join("app"), pair.data().join("app2")).expect("rename");
    pair.leader.restart();
    pair.equal(20);
    pair.finish();
}

#[test]
fn a_directory_with_foreign_files_is_refused_untouched() {
    let bed = Bed::new("foreign");
    let leader = bed.leader("leader").start();
    fs::write(leader.data().join("theirs"), "x").expect("write");
    let spec = bed.follower("follower", leader.spec.listen);
    fs::create_dir(spec.data.join("d")).expect("mkdir");
    fs::write(spec.data.join("d/mine"), "precious").expect("write");
    crate::support::bed::copy_tree(&spec.data, &bed.path("before"));
    let mut node = spec.spawn();
    until(within(15), "refused", || {
        if node.ended().is_some() {
            return Ok(());
        }
        let status = node.status()?;
        if status.error_kind().as_deref() == Some("refused") { Ok(()) } else { Err(status.0.to_string()) }
    });
    if let Some(status) = node.ended() {
        assert!(!status.success());
    }
    drop(node);
    assert_equal(&bed.path("before"), &spec.data);
}

#[test]
fn a_second_process_on_a_state_directory_is_refused_and_a_stale_lock_is_no_obstacle() {
    let bed = Bed::new("lock");
    let mut leader = bed.leader("leader").start();
    let mut other = leader.spec.clone();
    other.listen = crate::support::bed::free_port();
    let (status, log) = other.refused(within(15));
    assert_eq!(status.code(), Some(11), "{log}");
    assert!(log.contains(&leader.pid().to_string()), "the message names the holder: {log}");
    leader.status().expect("the first one goes on");
    leader.kill();
    leader.restart();
    leader.stop();
}

#[test]
fn the_state_directory_may_not_lie_in_the_data_directory() {
    let bed = Bed::new("apart");
    let mut spec = bed.leader("leader");
    spec.state = spec.data.join("state");
    let (status, log) = spec.refused(within(15));
    assert_eq!(status.code(), Some(3), "{log}");
    assert_eq!(fs::read_dir(&spec.data).expect("list").count(), 0, "nothing was made there");
}

#[test]
fn a_local_edit_on_a_follower_is_seen_and_not_silently_kept() {
    let pair = Pair::with(Bed::new("edit"), |s| s, |s| s.set("local_edits", "\"refuse\""));
    fs::write(pair.data().join("a"), "leader").expect("write");
    pair.equal(5);
    fs::write(pair.follower.data().join("a"), "edited here").expect("write");
    fs::write(pair.data().join("a"), "leader again").expect("write");
    until(within(15), "the edit is in the status", || {
        let text = pair.follower.status()?.0.to_string();
        if text.contains("\"a\"") || text.contains("'a'") || text.contains("/a") { Ok(()) } else { Err(text) }
    });
    assert_eq!(
        fs::read(pair.follower.data().join("a")).expect("read"),
        b"edited here",
        "refuse means untouched"
    );
}

#[test]
fn a_local_edit_is_repaired_when_told_so() {
    let pair = Pair::with(Bed::new("overwrite"), |s| s, |s| s.set("local_edits", "\"overwrite\""));
    fs::write(pair.data().join("a"), "leader").expect("write");
    pair.equal(5);
    fs::write(pair.follower.data().join("a"), "edited here, and longer").expect("write");
    fs::write(pair.data().join("a"), "leader again").expect("write");
    pair.equal(15);
    pair.finish();
}

#[test]
fn the_staging_directory_is_private_and_never_shipped_onward() {
    let bed = Bed::new("stage");
    let leader = bed.leader("leader").start();
    load::burst(&leader.data().join("app"), 1, 200);
    let middle = bed.follower("middle", leader.spec.listen).start();
    let last = bed.follower("last", middle.spec.listen).start();
    assert_equal_within(within(20), leader.data(), last.data());
    assert!(!leader.data().join(STAGE).exists());
    for node in [&middle, &last] {
        if let Ok(meta) = fs::metadata(node.data().join(STAGE)) {
            use std::os::unix::fs::MetadataExt;
            assert_eq!(meta.mode() & 0o7777, 0o700);
            assert_eq!(fs::read_dir(node.data().join(STAGE)).expect("list").count(), 0, "empty at rest");
        }
    }
}

#[test]
fn excluded_paths_never_travel() {
    let bed = Bed::new("exclude");
    let pair = Pair::with(bed, |s| s.set("exclude", "[\"*.tmp\", \"cache\", \"cache/**\"]"), |s| s);
    fs::create_dir_all(pair.data().join("cache/x")).expect("mkdir");
    fs::write(pair.data().join("cache/x/y"), "no").expect("write");
    fs::write(pair.data().join("a.tmp"), "no").expect("write");
    fs::write(pair.data().join("b"), "yes").expect("write");
    until(within(5), "the included file", || {
        fs::read(pair.follower.data().join("b")).map(|_| ()).map_err(|e| e.to_string())
    });
    fs::write(pair.data().join("c"), "yes").expect("write");
    until(within(5), "the second included file", || {
        fs::read(pair.follower.data().join("c")).map(|_| ()).map_err(|e| e.to_string())
    });
    assert!(!pair.follower.data().join("cache").exists());
    assert!(!pair.follower.data().join("a.tmp").exists());
}

#[test]
fn a_port_that_was_taken_is_named() {
    let bed = Bed::new("any-port");
    let mut spec = bed.leader("leader");
    spec.listen = 0;
    let leader = spec.start();
    let mut port = 0;
    until(within(20), "status names the port", || {
        let status = leader.status()?.0;
        let address = status["listen"].as_str().unwrap_or_default();
        port = address.strip_prefix("127.0.0.1:").and_then(|p| p.parse().ok()).unwrap_or(0);
        if port == 0 { Err(status.to_string()) } else { Ok(()) }
    });
    let line = format!("followers are served on 127.0.0.1:{port}");
    assert!(leader.log().contains(&line), "{line}");
    fs::write(leader.data().join("a"), "1").expect("write");
    let follower = bed.follower("follower", port).start();
    assert_equal_within(within(20), leader.data(), follower.data());
}
