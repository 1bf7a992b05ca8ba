//! Death while slots are written and old log is removed: no slot claims log that is gone, unless it says so.

use crate::kills::dies_at;
use crate::support::bed::Bed;
use crate::support::slot::{brisk, needs, next_segment, oldest, slot, slot_of, slot_until};
use crate::support::{Node, Pair, until, within};

const POINTS: [&str; 4] =
    ["slots::write", "slots::after_write", "slots::before_remove", "slots::after_remove"];

/// What holds at every start, whatever happened before.
fn claims_are_true(node: &Node) {
    let slots = until(within(20), "slots are shown", || {
        let status = node.status()?;
        let slots = status.0["slots"].as_array().cloned().unwrap_or_default();
        if slots.is_empty() { Err(status.0.to_string()) } else { Ok(slots) }
    });
    for slot in slots {
        let (lost, needed) = (slot["state"] == "lost", needs(&slot["position"]));
        if !lost {
            assert!(oldest(node) <= needed, "the oldest segment is {}: {slot}", oldest(node));
            continue;
        }
        // It is said before it is done.
        until(within(20), "the log of a lost slot goes", || {
            let first = oldest(node);
            if first > needed { Ok(()) } else { Err(format!("the oldest segment is {first}: {slot}")) }
        });
    }
}

#[test]
fn a_slot_moved_by_hand_has_its_segments_after_a_death_at_each_step() {
    let bed = Bed::new("kill-slot");
    let mut leader = brisk(bed.leader("leader")).set("max_slot_keep", "1000").armed().start();
    until(within(20), "the leader runs and makes the slot", || {
        let made = slot(&leader, &["create", "s", "--reserve"]);
        if made.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&made.stderr).into_owned()) }
    });
    for point in POINTS {
        for _ in 0..4 {
            next_segment(&leader);
        }
        let to = leader.status().expect("status").end();
        let before = slot_of(&leader, "s").expect("slot")["position"].clone();
        leader.arm(&format!("{point}=kill"));
        // Whether the command is answered before the death is left to chance.
        let _ = slot(&leader, &["advance", "s", &to]);
        assert!(dies_at(&mut leader, point, within(20)), "never reached: {point}");
        leader.arm("");
        leader.restart();
        let after = slot_of(&leader, "s").expect("slot");
        assert!(after["position"] == before || after["position"] == to.as_str(), "{point}: {after}");
        assert_ne!(after["state"], "lost", "{point}: {after}");
        claims_are_true(&leader);
        let at = slot_of(&leader, "s").expect("slot")["position"].clone();
        // What the node itself needs goes on with what is written.
        (0..2).for_each(|_| next_segment(&leader));
        until(within(20), "what is behind it goes", || {
            let first = oldest(&leader);
            if first == needs(&at) { Ok(()) } else { Err(format!("{first}, {at}")) }
        });
    }
    leader.assert_no_panic();
}

#[test]
fn a_slot_that_is_given_up_says_so_after_a_death_at_each_step() {
    for point in POINTS {
        let mut pair =
            Pair::with(Bed::new("kill-lost"), |s| brisk(s).set("max_slot_keep", "2").armed(), |s| s);
        std::fs::write(pair.data().join("a"), "1").expect("write");
        pair.equal(20);
        pair.follower.stop();
        slot_until(&pair.leader, "follower", "is away", |s| s["active"] == false);
        // Past its cap, and said so: the next segment is its last.
        for _ in 0..10 {
            next_segment(&pair.leader);
            std::thread::sleep(std::time::Duration::from_millis(700));
            if slot_of(&pair.leader, "follower").expect("slot")["state"] == "unreserved" {
                break;
            }
        }
        slot_until(&pair.leader, "follower", "is unreserved", |s| s["state"] == "unreserved");
        pair.leader.arm(&format!("{point}=kill"));
        let start = std::time::Instant::now();
        let mut n = 0;
        while pair.leader.ended().is_none() {
            assert!(start.elapsed() < within(20), "never reached: {point}");
            n += 1;
            std::fs::write(pair.data().join("tick"), format!("last {n}")).expect("write");
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        pair.leader.arm("");
        pair.leader.restart();
        claims_are_true(&pair.leader);
        pair.leader.assert_no_panic();
    }
}
