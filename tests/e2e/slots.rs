//! Slots and retention: what a follower that is away costs, and what becomes of it.

use std::fs;
use std::time::Duration;

use serde_json::{Value, json};

use super::full::{Small, noise};
use crate::support::bed::Bed;
use crate::support::slot::{brisk, needs, next_segment, oldest, slot, slot_of, slot_until};
use crate::support::{Load, Node, Pair, Spec, assert_equal_within, until, within};

/// A pair whose follower was stopped, in step.
fn follower_away(name: &str, cap: &str) -> Pair {
    let mut pair = Pair::with(
        Bed::new(name),
        |s| brisk(s).set("max_slot_keep", cap),
        |s| brisk(s).set("max_slot_keep", cap),
    );
    fs::write(pair.data().join("a"), "1").expect("write");
    pair.equal(20);
    pair.follower.stop();
    slot_until(&pair.leader, "follower", "is away", |s| s["active"] == false && s["state"] == "reserved");
    pair
}

/// Its follower streams again, or is on its way by a resync.
fn comes_back(pair: &mut Pair) {
    pair.follower.restart();
    let (leader, follower) = (&pair.leader, &pair.follower);
    until(within(30), "the follower is equal again, or says why it can't be", || {
        let (here, there) = (slot_of(leader, "follower")?, follower.status()?);
        let valid = here["state"] != "lost" && here["active"] == true;
        if valid || there.upstream_code() == "resync" { Ok(()) } else { Err(format!("{here} {}", there.0)) }
    });
}

#[test]
fn a_follower_that_is_away_costs_its_cap_and_no_more() {
    let mut pair = follower_away("slot-cap", "4");
    let mut seen = Vec::new();
    for _ in 0..8 {
        next_segment(&pair.leader);
        // No faster than old log is looked at, so that each state is seen.
        std::thread::sleep(Duration::from_millis(600));
        let now = slot_of(&pair.leader, "follower").expect("slot");
        assert!(pair.leader.segments().len() <= 8, "{:?}", pair.leader.segments());
        let word = now["state"].as_str().expect("a state").to_owned();
        if word == "extended" {
            assert!(
                now["retained_bytes"].as_u64() > Some(0) && now["bytes_left"].as_i64() > Some(0),
                "{now}"
            );
        }
        if word == "unreserved" {
            assert!(now["bytes_left"].as_i64() < Some(0) && now["reason"] == "slot_keep", "{now}");
        }
        if seen.last() != Some(&word) {
            seen.push(word);
        }
    }
    let lost = slot_until(&pair.leader, "follower", "is lost", |s| s["state"] == "lost");
    assert_eq!((&lost["reason"], &lost["retained_bytes"]), (&json!("slot_keep"), &json!(0)));
    assert!(
        seen.starts_with(&["reserved".to_owned()]) || seen.starts_with(&["extended".to_owned()]),
        "{seen:?}"
    );
    assert!(seen.contains(&"extended".to_owned()), "{seen:?}");
    until(within(10), "what it held is gone", || {
        let n = pair.leader.segments().len();
        if n <= 4 { Ok(()) } else { Err(format!("{n} segments")) }
    });
    let status = pair.leader.status().expect("status");
    assert_eq!((status.error_kind(), status.state().as_str()), (None, "running"), "the leader goes on");
    // It is remembered over a restart, and both ends say it.
    pair.leader.stop();
    pair.leader.restart();
    assert_eq!(slot_of(&pair.leader, "follower").expect("slot")["state"], "lost");
    comes_back(&mut pair);
}

/// Bytes of the log directory, and the most that were seen there.
fn log_bytes(node: &Node) -> u64 {
    let sizes = node.segments().into_iter().filter_map(|p| fs::metadata(p).ok()).map(|m| m.len());
    sizes.sum()
}

#[test]
fn under_load_the_disks_of_all_stay_within_four_segments_and_what_is_under_way() {
    let quick = |s: Spec| s.set("checkpoint_bytes", "\"1M\"").set("checkpoint_interval", "\"200ms\"");
    let capped = |s: Spec| quick(s).set("max_slot_keep", "4").set("keep_segments", "1");
    let mut pair = Pair::with(Bed::new("slot-load"), capped, capped);
    let here = capped(pair.bed.follower("here", pair.leader.spec.listen)).start();
    fs::write(pair.data().join("a"), "1").expect("write");
    assert_equal_within(within(20), pair.data(), here.data());
    pair.follower.stop();
    let load = Load::start(&pair.data().join("app"), fastrand::u64(..), Duration::from_millis(5));
    // Full segments that do not compress, until it is lost; a slow host captures only some of what is written.
    let (mut data, mut most, mut n) = (noise(8 << 20), 0, 0_u8);
    until(within(90), "the slot is lost", || {
        n = n.wrapping_add(1);
        data.iter_mut().step_by(64).for_each(|b| *b ^= n);
        fs::write(pair.data().join(format!("big{}", n % 3)), &data).expect("write");
        most = most.max(log_bytes(&pair.leader)).max(log_bytes(&here));
        let slot = slot_of(&pair.leader, "follower")?;
        let lost = slot["state"] == "lost" && slot["reason"] == "slot_keep";
        if lost { Ok(()) } else { Err(slot.to_string()) }
    });
    assert!(load.finish() > 50, "the application went on");
    assert_equal_within(within(60), pair.data(), here.data());
    // Four that are held, one that is written, and those of one look after the other.
    assert!(most < 14 * (16 << 20), "{} MiB", most >> 20);
    for node in [&pair.leader, &here] {
        until(within(20), "old log is gone", || {
            let now = log_bytes(node) >> 20;
            if now < 6 * 16 { Ok(()) } else { Err(format!("{now} MiB on {}", node.spec.name)) }
        });
        assert_eq!(node.status().expect("status").error_kind(), None);
    }
    comes_back(&mut pair);
}

#[test]
fn an_unreserved_follower_that_comes_before_the_next_segment_catches_up() {
    let mut pair = follower_away("slot-unreserved", "2");
    for _ in 0..10 {
        next_segment(&pair.leader);
        // A clean-up has seen it.
        std::thread::sleep(Duration::from_millis(700));
        if slot_of(&pair.leader, "follower").expect("slot")["state"] == "unreserved" {
            break;
        }
    }
    slot_until(&pair.leader, "follower", "is unreserved", |s| s["state"] == "unreserved");
    pair.follower.restart();
    slot_until(&pair.leader, "follower", "is good", |s| s["active"] == true && s["state"] != "unreserved");
    pair.finish();
}

#[test]
fn a_slot_is_lost_by_time_and_by_the_disk_and_says_so() {
    for (key, value, reason) in [
        ("slot_idle_timeout", "\"500ms\"", "idle"),
        ("max_slot_disk", "\"1k\"", "disk"),
        ("min_free_disk", "\"100%\"", "disk"),
    ] {
        let mut pair = follower_away(&format!("slot-{reason}"), "64");
        pair.leader.reload(key, value).expect("reload");
        next_segment(&pair.leader);
        next_segment(&pair.leader);
        let lost = slot_until(&pair.leader, "follower", "is lost", |s| s["state"] == "lost");
        assert_eq!(lost["reason"], reason, "{key}: {lost}");
        pair.leader.reload(key, if key == "slot_idle_timeout" { "\"0s\"" } else { "\"0\"" }).expect("reload");
        if reason == "idle" {
            comes_back(&mut pair);
        }
    }
}

fn said(out: &std::process::Output) -> (Option<i32>, String) {
    let text = [&out.stdout[..], &out.stderr[..]].concat();
    (out.status.code(), String::from_utf8_lossy(&text).trim().to_owned())
}

fn shown(node: &Node, name: &str) -> Value {
    let out = slot(node, &["show", name, "--json"]);
    if out.status.code() == Some(7) {
        return Value::Null;
    }
    assert_eq!(out.status.code(), Some(0));
    serde_json::from_slice::<Value>(&out.stdout).expect("JSON")["slot"].clone()
}

#[test]
fn slots_are_shown_and_changed_by_hand() {
    let mut pair = Pair::with(Bed::new("slot-hand"), |s| brisk(s).set("max_slot_keep", "1000"), brisk);
    let leader = &pair.leader;
    let (code, text) = said(&slot(leader, &["show", "nobody"]));
    assert!(code == Some(7) && text.contains("no slot 'nobody'; `towline slot list`"), "{text}");
    assert_eq!(shown(leader, "nobody"), Value::Null);
    let known = slot_until(leader, "follower", "is one that streams", |s| s["kind"] == "follower");
    assert_eq!(shown(leader, "follower")["name"], "follower");
    assert!(known["position"].is_string() && known["active"] == true, "{known}");
    assert_eq!(slot(leader, &["create", "later"]).status.code(), Some(0));
    assert_eq!(slot(leader, &["create", "now", "--reserve"]).status.code(), Some(0));
    let (code, text) = said(&slot(leader, &["create", "now"]));
    assert!(code == Some(10) && text.contains("exists already"), "{text}");
    let (code, text) = said(&slot(leader, &["create", "a/b"]));
    assert!(code == Some(64) && text.contains("not allowed"), "{text}");
    let (code, text) = said(&slot(leader, &["drop", "follower"]));
    assert!(code == Some(10) && text.contains("in use"), "{text}");
    let (code, text) = said(&slot(leader, &["drop", "nobody"]));
    assert!(code == Some(7) && text.contains("slot list"), "{text}");
    let (later, now) = (shown(leader, "later"), shown(leader, "now"));
    assert!(later["position"].is_null() && later["state"].is_null() && later["kind"] == "manual", "{later}");
    let start = needs(&now["position"]);
    for _ in 0..5 {
        next_segment(leader);
    }
    slot_until(leader, "now", "holds", |s| s["state"] == "extended");
    assert_eq!(oldest(leader), start);
    let list = String::from_utf8_lossy(&slot(leader, &["list"]).stdout).into_owned();
    assert!(list.lines().count() == 4 && list.contains("extended"), "{list}");
    // Moved by hand; it stays there over a restart, and what is behind it is gone.
    let to = format!("0/{:X}000000", start + 3);
    assert_eq!(slot(leader, &["advance", "now", &to]).status.code(), Some(0));
    let (code, text) = said(&slot(leader, &["advance", "now", "0/1000000"]));
    assert!(code == Some(10) && text.contains("forward only"), "{text}");
    let (code, text) = said(&slot(leader, &["advance", "now", "F/1000000"]));
    assert!(code == Some(10) && text.contains("the log ends"), "{text}");
    let gone = |node: &Node| {
        until(within(15), "segments behind it are gone", || {
            let first = oldest(node);
            if first == start + 2 { Ok(()) } else { Err(format!("{first}, from {start}")) }
        });
    };
    gone(leader);
    pair.leader.stop();
    pair.leader.restart();
    let again = shown(&pair.leader, "now");
    assert_eq!(
        u64::from_str_radix(&again["position"].as_str().expect("position")[2..], 16),
        Ok((start + 3) << 24)
    );
    gone(&pair.leader);
    assert_eq!(slot(&pair.leader, &["drop", "now"]).status.code(), Some(0));
    assert_eq!(shown(&pair.leader, "now"), Value::Null);
    until(within(15), "what it held is gone", || {
        let first = oldest(&pair.leader);
        if first > start + 2 { Ok(()) } else { Err(first.to_string()) }
    });
    pair.finish();
}

#[test]
fn every_node_knows_the_slots_of_those_above_and_holds_log_for_them() {
    let bed = Bed::new("slot-mirror");
    let keep = |s| brisk(s).set("max_slot_keep", "1000");
    let leader = keep(bed.leader("leader")).start();
    let mut away = keep(bed.follower("away", leader.spec.listen)).start();
    let middle = keep(bed.follower("middle", leader.spec.listen)).start();
    let end = keep(bed.follower("end", middle.spec.listen)).start();
    fs::write(leader.data().join("a"), "1").expect("write");
    for node in [&away, &middle, &end] {
        assert_equal_within(within(30), leader.data(), node.data());
    }
    slot_until(&middle, "away", "is mirrored", |s| s["origin"] == "mirrored" && s["active"] == true);
    slot_until(&end, "away", "came through the middle", |s| s["origin"] == "mirrored");
    let first = slot_until(&middle, "end", "is its own", |s| s["origin"] == "own");
    assert!(slot_of(&middle, "middle").is_err() && slot_of(&end, "end").is_err());
    away.stop();
    let at = slot_until(&middle, "away", "is away", |s| s["active"] == false)["position"].clone();
    for _ in 0..6 {
        next_segment(&leader);
    }
    slot_until(&middle, "end", "goes on", |s| needs(&s["position"]) > needs(&first["position"]) + 3);
    // All hold log from there on, though each of them has applied all; none holds more than that.
    for node in [&leader, &middle, &end] {
        slot_until(node, "away", "is held", |s| s["state"] == "extended" && s["position"] == at);
        until(within(20), "older log is gone", || {
            let first = oldest(node);
            if first == needs(&at) { Ok(()) } else { Err(format!("{first}, {} is needed", needs(&at))) }
        });
    }
    let text = String::from_utf8_lossy(&slot(&middle, &["drop", "away"]).stderr).into_owned();
    assert!(text.contains("the upstream's"), "{text}");
    assert_eq!(slot(&leader, &["drop", "away"]).status.code(), Some(0));
    for node in [&middle, &end] {
        until(within(20), "dropped there, gone here, and so is what it held", || {
            let gone = slot_of(node, "away").is_err() && oldest(node) > needs(&at);
            if gone { Ok(()) } else { Err(node.status()?.0["slots"].to_string()) }
        });
    }
    assert_eq!(slot_of(&middle, "end").expect("its own stays")["origin"], "own");
}

#[test]
fn what_is_always_kept_wins_over_the_cap_on_leader_and_follower() {
    let keeps = |s| brisk(s).set("max_slot_keep", "0").set("keep_segments", "5");
    let mut pair = Pair::with(Bed::new("slot-keep"), keeps, keeps);
    fs::write(pair.data().join("a"), "1").expect("write");
    pair.equal(20);
    for _ in 0..12 {
        next_segment(&pair.leader);
    }
    for node in [&pair.leader, &pair.follower] {
        until(within(20), "old log is gone, the newest is there", || {
            let n = node.segments().len();
            if (5..=8).contains(&n) { Ok(()) } else { Err(format!("{} has {n} segments", node.spec.name)) }
        });
    }
    // With a cap of none: it misses three segments, and all that is kept suffices.
    pair.follower.stop();
    for _ in 0..3 {
        next_segment(&pair.leader);
    }
    assert_eq!(slot_of(&pair.leader, "follower").expect("slot")["state"], "reserved");
    pair.follower.restart();
    pair.finish();
}

#[test]
fn a_full_disk_takes_what_only_slots_hold_before_it_stops_the_leader() {
    let bed = Bed::new("slot-full");
    let spec = bed.leader("leader").set("checkpoint_bytes", "\"1M\"").set("checkpoint_interval", "\"200ms\"");
    let spec = spec.set("max_slot_disk", "\"100%\"").set("keep_segments", "1");
    let Some(disk) = Small::mount(&spec.state, "120m") else {
        println!("skipped: nothing can be mounted on this host");
        return;
    };
    let leader = spec.start();
    let mut away = bed.follower("away", leader.spec.listen).start();
    fs::write(leader.data().join("a"), "1").expect("write");
    assert_equal_within(within(30), leader.data(), away.data());
    away.stop();
    let outside = bed.path("big");
    for n in 0..10_u8 {
        let mut data = noise(16 << 20);
        data.iter_mut().step_by(64).for_each(|b| *b ^= n + 1);
        fs::write(&outside, data).expect("write");
        let before = leader.status().expect("status").exact();
        fs::rename(&outside, leader.data().join("big")).expect("rename");
        until(within(60), "it is in the log", || {
            let status = leader.status()?;
            if status.exact() == before { Err(status.0.to_string()) } else { Ok(()) }
        });
    }
    let lost = slot_until(&leader, "away", "is given up", |s| s["state"] == "lost");
    assert_eq!(lost["reason"], "disk");
    until(within(30), "the leader goes on", || {
        let status = leader.status()?;
        if status.state() == "running" && status.error_kind().is_none() {
            Ok(())
        } else {
            Err(status.0.to_string())
        }
    });
    leader.assert_no_panic();
    drop(leader);
    drop(disk);
}

#[test]
fn a_first_start_that_is_refused_leaves_no_slot() {
    let bed = Bed::new("slot-refused");
    let leader = bed.leader("leader").start();
    fs::write(leader.data().join("a"), "1").expect("write");
    let spec = bed.follower("follower", leader.spec.listen);
    fs::write(spec.data.join("foreign"), "f").expect("write");
    let (status, log) = spec.refused(within(20));
    assert!(!status.success() && log.contains("foreign"), "{status}: {log}");
    until(within(10), "the leader keeps nothing for it", || match slot_of(&leader, "follower") {
        Ok(slot) => Err(slot.to_string()),
        Err(_) => Ok(()),
    });
    until(within(10), "nor is it in the file that the next start reads", || {
        let file = fs::read(leader.spec.state.join("slots")).map_err(|e| e.to_string())?;
        if file.windows(8).any(|w| w == b"follower") { Err("it is".into()) } else { Ok(()) }
    });
    fs::remove_file(spec.data.join("foreign")).expect("remove");
    let follower = spec.start();
    assert_equal_within(within(20), leader.data(), follower.data());
    slot_until(&leader, "follower", "is made when it begins", |s| s["active"] == true);
}
