//! Archiving: what a leader seals is in the archive, once, whole, whatever happens to either.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::support::archive::{
    archive, archive_until, archived_all, archiving, assert_whole, kept, part, url,
};
use crate::support::bed::Bed;
use crate::support::node::log_verify;
use crate::support::slot::{brisk, needs, next_segment, oldest, slot_of, slot_until};
use crate::support::{Node, Pair, Spec, holds_for, until, within};

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
    // Nobody confirms it, but it says where the change is.
    let (_, answer) = leader.wait_confirmed(&["--timeout", "1s"]);
    let last = needs(&answer["lsn"]);
    // Nothing more is written: the tail is sealed by time, and archived.
    until(within(30), "the last change is in the archive", || {
        if kept(&store).contains_key(&last) { Ok(()) } else { Err(format!("segment {last} is not there")) }
    });
    let now = archived_all(&leader);
    assert!(now["archived"].as_u64() >= Some(5) && now["failed"] == 0 && now["gaps"] == 0, "{now}");
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
fn a_clean_stop_leaves_nothing_out_of_the_archive_and_says_so_when_it_has_to() {
    let bed = Bed::new("archive-stop");
    let (store, away) = (bed.path("store"), bed.path("away"));
    let spec = archiving(bed.leader("leader"), &store).set("segment_timeout", "\"1h\"");
    let mut leader = spec.start();
    let follower = bed.follower("follower", leader.spec.listen).start();
    let write = |leader: &Node, name: &str| {
        fs::write(leader.data().join(name), name).expect("write");
        let (_, answer) = leader.wait_confirmed(&["--timeout", "10s"]);
        needs(&answer["lsn"])
    };
    let last = write(&leader, "first");
    leader.stop();
    assert!(kept(&store).contains_key(&last), "the segment that was written");
    assert!(!leader.log().contains("stopped before all log"), "{}", leader.log());
    leader.restart();
    assert_eq!(write(&leader, "second"), last + 1, "and the follower goes on behind it");
    until(within(30), "the follower has the second", || {
        let there = fs::read(follower.data().join("second")).map_err(|e| e.to_string())?;
        if there == b"second" { Ok(()) } else { Err(format!("{there:?}")) }
    });
    assert_whole(&leader, &store);
    let listed = archive(&["list", "--archive", store.to_str().expect("text")]);
    assert!(listed.status.success(), "a plain directory: {}", String::from_utf8_lossy(&listed.stderr));
    fs::rename(&store, &away).expect("rename");
    leader.stop();
    let log = leader.log();
    assert!(log.contains(&format!("segments {0:X} to {0:X} may be missing", last + 1)), "{log}");
    fs::rename(&away, &store).expect("rename");
    leader.restart();
    archived_all(&leader);
    assert!(kept(&store).contains_key(&(last + 1)));
    leader.assert_no_panic();
    follower.assert_no_panic();
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
        ("archive::after_put=eio", ""),
    ] {
        let before = archived_all(&leader)["failed"].as_u64().unwrap();
        leader.arm(point);
        segments(&leader, 2);
        let failed = archive_until(&leader, "fails", |a| a["failed"].as_u64() >= Some(before + 2));
        // What was put there before the failure is found there, and is no failure any more.
        let error = failed["error"].as_str().unwrap_or_default();
        assert!(error.contains(word) && (word.is_empty() || !error.is_empty()), "{point}: {failed}");
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

/// What `towline archive` prints as JSON.
fn listed(words: &[&str]) -> (Option<i32>, serde_json::Value) {
    let out = archive(words);
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    (out.status.code(), serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text} {out:?}")))
}

#[test]
fn gaps_duplicates_and_sizes_are_reported_with_their_range() {
    let bed = Bed::new("archive-verify");
    let store = bed.path("store");
    let mut leader = archiving(bed.leader("leader"), &store).start();
    segments(&leader, 12);
    archived_all(&leader);
    leader.stop();
    let url = format!("file://{}", store.display());
    let (code, good) = listed(&["verify", "--json", "--archive", &url]);
    assert_eq!((code, &good["good"]), (Some(0), &true.into()), "{good}");
    assert_eq!(good["log"][0]["first"], "0000000000000001", "{good}");
    let config = leader.spec.config_path();
    let text = String::from_utf8_lossy(&archive(&["list", "--config", config.to_str().unwrap()]).stdout)
        .into_owned();
    assert!(text.contains("no backups") && text.contains("log segments 1 to "), "{text}");
    let object = |n: u64| {
        let all = fs::read_dir(store.join("log/00000001")).expect("list").map(|e| e.expect("entry").path());
        let begins = format!("{n:016X}-");
        all.into_iter()
            .find(|p| p.file_name().unwrap().to_string_lossy().starts_with(&begins))
            .expect("a segment")
    };
    for n in [2, 3] {
        fs::remove_file(object(n)).expect("remove");
    }
    fs::write(object(5), "").expect("write");
    let cut = fs::read(object(7)).expect("read");
    fs::write(object(7), &cut[..cut.len() - 1]).expect("write");
    let mut flipped = fs::read(object(9)).expect("read");
    flipped[150] ^= 1;
    fs::write(object(9), flipped).expect("write");
    let other = object(11).to_string_lossy().replace(".zst", "").rsplit_once('-').unwrap().0.to_owned();
    let size = fs::metadata(object(11)).expect("stat").len();
    fs::write(format!("{other}-{}.zst", "0".repeat(32)), vec![7; usize::try_from(size).unwrap()])
        .expect("write");
    let (code, found) = listed(&["verify", "--json", "--archive", &url]);
    assert_eq!((code, &found["good"]), (Some(1), &false.into()));
    let said: Vec<String> = found["problems"]
        .as_array()
        .unwrap()
        .iter()
        .map(|p| {
            let hex = |k: &str| u64::from_str_radix(p["range"][k].as_str().unwrap(), 16).unwrap();
            format!("{} {}-{}", p["problem"].as_str().unwrap(), hex("first"), hex("last"))
        })
        .collect();
    for want in ["gap 2-3", "empty 5-5", "wrong-size 7-7", "duplicate 11-11", "damaged 9-9", "damaged 11-11"]
    {
        assert!(said.contains(&want.to_owned()), "{want}: {said:?}");
    }
    assert_eq!(said.len(), 6, "{said:?}");
    let text = String::from_utf8_lossy(&archive(&["list", "--archive", &url]).stdout).into_owned();
    assert!(text.contains("gap segments 2 to 3 of timeline 1 (0/02000000 to 0/04000000)"), "{text}");
    // The leader puts there again what it still has, and says what it can't.
    leader.restart();
    archived_all(&leader);
}

#[test]
fn commands_on_an_archive_that_is_none_say_so() {
    let bed = Bed::new("archive-none");
    let url = format!("file://{}", bed.path("nothing").display());
    for (words, code, said) in [
        (vec!["list", "--archive", url.as_str()], 9, "does not exist"),
        (vec!["list", "--archive", "nfs://x"], 64, "s3://BUCKET/PREFIX"),
        (vec!["list"], 64, "--archive"),
        (vec!["prune", "--archive", url.as_str()], 64, "--keep-full"),
        (vec!["prune", "--keep-full", "0", "--archive", url.as_str()], 64, "0 is not in 1.."),
        (vec!["pin", "a/b", "--archive", url.as_str()], 64, "is no label"),
    ] {
        let out = archive(&words);
        let err = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(out.status.code() == Some(code) && err.contains(said), "{words:?}: {:?} {err}", out.status);
    }
    fs::create_dir(bed.path("nothing")).expect("mkdir");
    let out = archive(&["verify", "--archive", &url]);
    assert_eq!(out.status.code(), Some(7), "{out:?}");
}

/// A pair whose follower is away while its leader, which archives to `store`, goes on until the slot is lost.
fn left_behind(name: &str, archives: bool) -> (Pair, PathBuf) {
    let bed = Bed::new(name);
    let store = bed.path("store");
    let lead = |s: Spec| archiving(s, &store).set("max_slot_keep", "1");
    let follow = |s: Spec| if archives { archiving(s, &store) } else { brisk(s) };
    let mut pair = Pair::with(bed, lead, follow);
    fs::write(pair.data().join("a"), "1").expect("write");
    pair.equal(20);
    pair.follower.stop();
    until(within(90), "the slot is lost, and its log gone", || {
        next_segment(&pair.leader);
        let slot = slot_of(&pair.leader, "follower")?;
        let gone = slot["state"] == "lost" && oldest(&pair.leader) > needs(&slot["position"]) + 1;
        if gone { Ok(()) } else { Err(slot.to_string()) }
    });
    archived_all(&pair.leader);
    (pair, store)
}

#[test]
fn a_follower_whose_log_is_gone_takes_it_from_the_archive_and_its_slot_is_good_again() {
    let (mut pair, _store) = left_behind("archive-rejoin", true);
    pair.follower.restart();
    pair.equal(60);
    slot_until(&pair.leader, "follower", "is good again", |s| s["active"] == true && s["state"] != "lost");
    let status = pair.follower.status().expect("status");
    assert_eq!(status.0["resync"]["completed"], 0, "{}", status.0["resync"]);
    assert!(status.0["archive"].is_null(), "it archives nothing itself: {}", status.0["archive"]);
    let log = pair.follower.log();
    assert!(log.contains("segments of log taken from the archive") && !log.contains("is resynced"), "{log}");
    // What it took is what the leader wrote: cut anywhere, its log is a chain.
    pair.follower.stop();
    for segment in pair.follower.segments() {
        let out = log_verify(&segment);
        assert!(out.status.success(), "{out:?}");
    }
    pair.follower.restart();
    pair.finish();
}

#[test]
fn what_the_archive_lacks_or_has_damaged_makes_it_equal_by_a_resync() {
    for hole in [true, false] {
        let (mut pair, store) = left_behind("archive-hole", true);
        let newest = oldest(&pair.follower);
        for entry in fs::read_dir(store.join("log/00000001")).expect("list") {
            let path = entry.expect("entry").path();
            let number = u64::from_str_radix(&path.file_name().unwrap().to_string_lossy()[..16], 16).unwrap();
            if number > newest + 2 {
                if hole {
                    fs::remove_file(path).expect("remove");
                } else {
                    let mut bytes = fs::read(&path).expect("read");
                    bytes[130] ^= 1;
                    fs::write(&path, bytes).expect("write");
                }
            }
        }
        pair.follower.restart();
        pair.equal(90);
        until(within(30), "it is resynced", || {
            let status = pair.follower.status()?;
            if status.0["resync"]["completed"] == 1 { Ok(()) } else { Err(status.0["resync"].to_string()) }
        });
    }
}
