//! Archiving: what a leader seals is in the archive, once, whole, whatever happens to either.

use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::support::archive::{archive_until, archived_all, archiving, assert_whole, kept, part, url};
use crate::support::bed::Bed;
use crate::support::slot::{next_segment, oldest};
use crate::support::{Node, holds_for, until, within};

fn segments(node: &Node, n: usize) {
    for _ in 0..n {
        next_segment(node);
    }
}

#[test]
fn what_is_sealed_is_archived_the_idle_tail_included() {
    let bed = Bed::new("archive");
    let store = bed.path("store");
    let leader = archiving(bed.leader("leader"), &store).start();
    segments(&leader, 5);
    archived_all(&leader);
    fs::write(leader.data().join("last"), "the last change").expect("write");
    // Nothing more is written: the tail is sealed by time, and archived.
    until(within(30), "the last change is in the archive", || {
        let newest = leader.segments().pop().ok_or("no log")?;
        let sealed = newest.extension().is_none();
        let number = u64::from_str_radix(&newest.file_name().unwrap().to_string_lossy()[8..24], 16).unwrap();
        if sealed && kept(&store).contains_key(&number) { Ok(()) } else { Err(format!("{newest:?}")) }
    });
    let now = archived_all(&leader);
    assert!(now["archived"].as_u64() >= Some(6) && now["failed"] == 0 && now["gaps"] == 0, "{now}");
    assert!(now["last_time"].as_i64() > Some(0) && now["waiting_since"].is_null(), "{now}");
    assert_whole(&leader, &store);
    let check = leader.ask(&["check"]);
    let line = String::from_utf8_lossy(&check.stdout).into_owned();
    assert!(check.status.success() && line.contains("archive_age=0.0s"), "{line}");
    let text = String::from_utf8_lossy(&leader.ask(&["status"]).stdout).into_owned();
    assert!(text.contains("idle, file://"), "{text}");
    leader.assert_no_panic();
}

#[test]
fn while_the_archive_is_away_log_is_kept_and_said_to_be_and_then_it_catches_up() {
    let bed = Bed::new("archive-away");
    let (store, away) = (bed.path("store"), bed.path("away"));
    let mut leader = archiving(bed.leader("leader"), &store).start();
    segments(&leader, 3);
    archived_all(&leader);
    let first = oldest(&leader);
    fs::rename(&store, &away).expect("rename");
    segments(&leader, 6);
    let failing =
        archive_until(&leader, "fails", |a| a["state"] == "failing" && a["waiting"].as_u64() >= Some(5));
    assert!(failing["error"].as_str().unwrap().contains("does not exist"), "{failing}");
    assert_eq!(failing["needs_help"], false, "{failing}");
    let pending = u64::from_str_radix(failing["oldest_waiting"].as_str().unwrap(), 16).unwrap();
    assert!(pending > first, "{failing}");
    assert!(!store.exists(), "it is not made in the place of one that is not mounted");
    // Nor is the directory below a mount point taken for the archive.
    fs::create_dir(&store).expect("mkdir");
    archive_until(&leader, "is refused", |a| a["error"].as_str().is_some_and(|e| e.contains("is empty")));
    assert_eq!(fs::read_dir(&store).expect("list").count(), 0);
    fs::remove_dir(&store).expect("rmdir");
    let check = leader.ask(&["check", "--max-archive-age", "1ms,2ms"]);
    let line = String::from_utf8_lossy(&check.stdout).into_owned();
    assert_eq!(check.status.code(), Some(2), "{line}");
    assert!(line.contains("wait for the archive") && line.contains("the archive '"), "{line}");
    // A crash keeps it pending.
    leader.kill();
    leader.restart();
    segments(&leader, 2);
    archive_until(&leader, "fails still", |a| a["state"] == "failing");
    holds_for(Duration::from_secs(2), "nothing that is not archived goes", || {
        let now = oldest(&leader);
        if now <= pending { Ok(()) } else { Err(format!("{now} is the oldest, {pending} is not archived")) }
    });
    fs::rename(&away, &store).expect("rename");
    let now = archived_all(&leader);
    assert!(now["gaps"] == 0 && now["error"].is_null() && now["failing_since"].is_null(), "{now}");
    assert_whole(&leader, &store);
    until(within(30), "the clean-up goes on", || {
        let now = oldest(&leader);
        if now > pending { Ok(()) } else { Err(now.to_string()) }
    });
    let log = leader.log();
    assert_eq!(log.matches("works again after").count(), 1, "{log}");
    leader.assert_no_panic();
}

#[test]
fn killed_at_any_step_it_leaves_no_hole_and_nothing_half_written() {
    let bed = Bed::new("archive-kill");
    let store = bed.path("store");
    let mut leader = archiving(bed.leader("leader").armed(), &store).start();
    segments(&leader, 2);
    for point in ["archive::before_put=kill", "archive::aside=kill", "archive::after_put=kill"] {
        archived_all(&leader);
        leader.arm(point);
        // Whatever is written may be the last that it does.
        fs::write(leader.data().join("tick"), point).expect("write");
        let status = leader.wait_end(within(30));
        assert!(Node::was_killed(status), "{point}: {status}");
        kept(&store);
        leader.arm("");
        leader.restart();
        segments(&leader, 1);
    }
    let end = archived_all(&leader);
    assert_eq!((&end["gaps"], &end["failed"]), (&0.into(), &0.into()), "{end}");
    assert_whole(&leader, &store);
    leader.assert_no_panic();
}

#[test]
fn what_a_store_fails_with_is_tried_again_until_it_is_there() {
    let bed = Bed::new("archive-fault");
    let store = bed.path("store");
    let leader = archiving(bed.leader("leader").armed(), &store).start();
    segments(&leader, 1);
    for (point, word) in [
        ("archive::aside=enospc", "No space"),
        ("archive::before_put=eio", "error"),
        ("archive::after_put=eio", "error"),
    ] {
        archived_all(&leader);
        leader.arm(point);
        segments(&leader, 2);
        let failing = archive_until(&leader, "fails", |a| a["attempts"].as_u64() >= Some(2));
        assert!(failing["error"].as_str().unwrap().contains(word), "{point}: {failing}");
        leader.arm("");
    }
    let end = archived_all(&leader);
    assert_eq!(end["gaps"], 0, "{end}");
    assert_whole(&leader, &store);
}

#[test]
fn beyond_max_archive_keep_the_oldest_goes_and_is_a_gap_that_is_said() {
    let bed = Bed::new("archive-gap");
    let (store, away) = (bed.path("store"), bed.path("away"));
    let leader = archiving(bed.leader("leader"), &store).set("max_archive_keep", "\"16k\"").start();
    segments(&leader, 3);
    archived_all(&leader);
    let last = *kept(&store).keys().last().expect("segments");
    fs::rename(&store, &away).expect("rename");
    until(within(60), "log goes that is not archived", || {
        next_segment(&leader);
        let now = oldest(&leader);
        if now > last + 2 { Ok(()) } else { Err(now.to_string()) }
    });
    fs::rename(&away, &store).expect("rename");
    let gap = archive_until(&leader, "has a gap", |a| a["gaps"].as_u64() > Some(0) && a["waiting"] == 0);
    let first = u64::from_str_radix(gap["gap"][0]["first"].as_str().unwrap(), 16).unwrap();
    assert!(first > last, "{gap}");
    let check = leader.ask(&["check"]);
    let line = String::from_utf8_lossy(&check.stdout).into_owned();
    assert_eq!(check.status.code(), Some(1), "{line}");
    assert!(line.contains("the archive has") && line.contains("base backup"), "{line}");
    assert!(leader.log().contains("the archive has a gap: segments"), "{}", leader.log());
}

#[test]
fn an_archive_of_another_system_or_version_is_refused_by_name() {
    let bed = Bed::new("archive-foreign");
    let store = bed.path("store");
    let mut other = archiving(bed.leader("other"), &store).start();
    segments(&other, 1);
    archived_all(&other);
    other.stop();
    let before = kept(&store).len();
    let mut leader = archiving(bed.leader("leader"), &store).start();
    segments(&leader, 2);
    let refused = archive_until(&leader, "is refused", |a| a["needs_help"] == true);
    let error = refused["error"].as_str().unwrap();
    let own = leader.status().expect("status").0["system"].as_str().unwrap().to_owned();
    assert!(error.contains("is that of system") && error.contains(&own), "{error}");
    assert_eq!(kept(&store).len(), before);
    // A later layout.
    let identity = store.join("system.json");
    let text = fs::read_to_string(&identity).expect("read");
    fs::write(&identity, text.replace("\"towline_archive\":1", "\"towline_archive\":9")).expect("write");
    archive_until(&leader, "is refused", |a| a["error"].as_str().is_some_and(|e| e.contains("layout 9")));
    // Another place for it, without a restart.
    let own = bed.path("own");
    fs::create_dir(&own).expect("mkdir");
    leader.reload("archive", &url(&own)).expect("reload");
    let now = archived_all(&leader);
    assert!(now["address"].as_str().unwrap().ends_with("/own") && now["error"].is_null(), "{now}");
    assert!(Path::new(&own.join("system.json")).exists());
    assert!(!kept(&own).is_empty());
    assert!(part(&leader).expect("part")["gaps"] == 0);
}
