//! Promotion: the leader is lost, a follower takes its place, and the others follow it.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::support::bed::{Bed, copy_tree, list, soak};
use crate::support::{Node, Spec, assert_equal_within, until, within};

fn write(dir: &Path, name: &str) {
    fs::write(dir.join(name), name.repeat(500)).expect("write");
}

/// A follower that asks these ports in turn.
fn of_several(bed: &Bed, name: &str, ports: &[u16]) -> Spec {
    let mut spec = bed.follower(name, ports[0]).set("leader", &list(ports));
    spec.leader_in_config = true;
    spec
}

fn timeline(node: &Node) -> Result<u64, String> {
    Ok(node.status()?.0["timeline"].as_u64().unwrap_or(0))
}

fn on(node: &Node, want: u64) {
    until(within(20), "it is on that timeline", || {
        let at = timeline(node)?;
        if at == want { Ok(()) } else { Err(format!("on {at}: {}", node.status()?.0)) }
    });
}

/// Files of the state directory that promotions make.
fn histories(state: &Path) -> Vec<(String, Vec<u8>)> {
    let mut found: Vec<_> = [state.to_owned(), state.join("log")]
        .iter()
        .flat_map(|dir| fs::read_dir(dir).expect("list"))
        .map(|e| e.expect("entry").path())
        .filter(|p| {
            let name = p.file_name().and_then(|n| n.to_str()).unwrap_or_default();
            name.ends_with(".history")
                || name.rsplit_once('.').is_some_and(|(a, b)| a.len() == 24 && b.len() == 8)
        })
        .map(|p| (p.file_name().unwrap().to_string_lossy().into_owned(), fs::read(p).expect("read")))
        .collect();
    found.sort();
    found
}

#[test]
fn a_follower_leads_when_the_leader_is_lost_and_the_others_follow_it_without_a_copy() {
    let bed = Bed::new("promote");
    let mut leader = bed.leader("leader").start();
    fs::create_dir(leader.data().join("d")).expect("mkdir");
    (0..50).for_each(|n| write(leader.data(), &format!("d/{n}")));
    let mut a = of_several(&bed, "a", &[leader.spec.listen]);
    a = a.set("on_promote", &format!("\"echo $TOWLINE_TIMELINE >> {}\"", bed.path("hook").display()));
    let b = of_several(&bed, "b", &[leader.spec.listen, a.listen]);
    let c = of_several(&bed, "c", &[b.listen]);
    let (mut a, mut b) = (a.start(), b.start());
    let mut c = c.start();
    write(leader.data(), "old");
    for node in [&a, &b, &c] {
        assert_equal_within(within(20), leader.data(), node.data());
    }
    leader.kill();
    let dry = a.promote(&["--dry-run"]);
    assert_eq!((&dry["promoted"], &dry["timeline"]), (&Value::Bool(false), &Value::from(1)), "{dry}");
    assert!(histories(&a.spec.state).is_empty() && timeline(&a) == Ok(1));
    let done = a.promote(&["--wait"]);
    assert_eq!(
        (&done["promoted"], &done["timeline"], &done["role"]),
        (&true.into(), &2.into(), &"leader".into()),
        "{done}"
    );
    assert_eq!(done["before"]["lsn"], done["after"]["lsn"], "it had nothing left to replay: {done}");
    let again = a.promote(&["--wait"]);
    assert_eq!((&again["promoted"], &again["timeline"]), (&false.into(), &2.into()), "{again}");
    // One that is new needs no log of the old timeline, though nothing was written since.
    let new = bed.follower("new", a.spec.listen).start();
    assert_equal_within(within(20), a.data(), new.data());
    drop(new);
    write(a.data(), "new");
    fs::remove_file(a.data().join("d/7")).expect("remove");
    for node in [&b, &c] {
        assert_equal_within(within(20), a.data(), node.data());
        on(node, 2);
        assert_eq!(histories(&node.spec.state), histories(&a.spec.state), "the same bytes everywhere");
        assert_eq!(node.status().expect("status").0["resync"]["completed"], 0, "without a copy");
    }
    until(within(10), "the command is run", || {
        fs::read_to_string(bed.path("hook")).map_err(|e| e.to_string())
    });
    assert_eq!(fs::read_to_string(bed.path("hook")).expect("read"), "2\n", "once");
    let text = String::from_utf8(a.ask(&["history"]).stdout).expect("text");
    assert!(text.contains("promotion") && text.lines().count() == 3, "{text}");
    // The old leader comes back: nobody takes anything from it.
    leader.restart();
    write(leader.data(), "left behind");
    b.reload("leader", &list(&[leader.spec.listen])).expect("reload");
    until(within(20), "it is refused by name", || {
        let status = b.status()?;
        let text = status.0.to_string();
        if status.upstream_code() == "wrong-timeline"
            && (text.contains("an older one") || text.contains("does not lead any more"))
        {
            Ok(())
        } else {
            Err(text)
        }
    });
    b.reload("leader", &list(&[leader.spec.listen, a.spec.listen])).expect("reload");
    write(a.data(), "newer");
    for node in [&b, &c] {
        assert_equal_within(within(20), a.data(), node.data());
        assert!(!node.data().join("left behind").exists());
    }
    // And once more, while the one that leads is alive: the newest timeline wins.
    c.reload("leader", &list(&[a.spec.listen, b.spec.listen])).expect("reload");
    assert_eq!(b.promote(&["--wait"])["timeline"], 3);
    b.stop();
    b.restart();
    write(b.data(), "newest");
    assert_equal_within(within(20), b.data(), c.data());
    on(&c, 3);
    assert!(b.log().contains("going on as leader"), "a role on disk wins");
    for node in [&mut a, &mut b, &mut c] {
        node.assert_no_panic();
    }
}

#[test]
fn a_log_past_the_branch_is_put_aside_where_the_directory_is_not() {
    let bed = Bed::new("promote-back");
    let mut leader = bed.leader("leader").start();
    write(leader.data(), "one");
    let spec = of_several(&bed, "a", &[leader.spec.listen]);
    let ports = [leader.spec.listen, spec.listen];
    let (mut a, mut b) = (spec.start(), of_several(&bed, "b", &ports).armed().start());
    for node in [&a, &b] {
        assert_equal_within(within(20), leader.data(), node.data());
    }
    a.stop();
    b.pause();
    write(leader.data(), "never seen by the new leader");
    let end = leader.wait_confirmed(&["--level", "flush", "--for", "b"]);
    assert_eq!(end.0, 0, "{}", end.1);
    leader.kill();
    a.restart();
    a.promote(&["--wait"]);
    b.arm("branch::aside=kill");
    assert!(Node::was_killed(b.wait_end(within(20))));
    b.arm("");
    b.restart();
    write(a.data(), "two");
    assert_equal_within(within(20), a.data(), b.data());
    on(&b, 2);
    let status = b.status().expect("status").0;
    assert_eq!(
        (&status["resync"]["completed"], &status["resync"]["lost_logs"]),
        (&0.into(), &1.into()),
        "{status}"
    );
    assert!(!b.data().join("never seen by the new leader").exists());
}

/// Where the one that is promoted dies, and whether it leads then.
const PROMOTED: &[(&str, bool)] = &[
    ("promote::before_history=kill", false),
    ("promote::note=kill", false),
    ("promote::after_note=kill", false),
    ("promote::before_control=kill", false),
    ("promote::after_control=kill", true),
    ("branch::seal=kill", true),
    ("branch::after_seal=kill", true),
    ("lines::first_commit=kill", true),
    // It serves already; its command was run.
    (FORGET, true),
];
const FORGET: &str = "promote::forget=kill";
/// Where one that follows dies.
const FOLLOWING: &[&str] =
    &["lines::before_history=kill", "lines::before_control=kill", "lines::after_control=kill"];

#[test]
fn a_promotion_is_one_or_none_wherever_it_dies() {
    let bed = Bed::new("promote-crash");
    let mut leader = bed.leader("leader").start();
    write(leader.data(), "one");
    let spec = of_several(&bed, "a", &[leader.spec.listen]).armed();
    let hook = bed.path("hook");
    let spec =
        spec.set("on_promote", &format!("\"echo $TOWLINE_TIMELINE $TOWLINE_REASON >> {}\"", hook.display()));
    let other = of_several(&bed, "b", &[leader.spec.listen, spec.listen]).armed();
    let (mut a, mut b) = (spec.start(), other.start());
    for node in [&a, &b] {
        assert_equal_within(within(20), leader.data(), node.data());
    }
    leader.kill();
    a.stop();
    b.stop();
    let kept = |node: &Node, name: &str| bed.path(format!("kept-{}-{name}", node.spec.name));
    for node in [&a, &b] {
        copy_tree(&node.spec.state, &kept(node, "state"));
    }
    let points = if soak() { PROMOTED } else { &PROMOTED[fastrand::usize(..PROMOTED.len())..][..1] };
    for (n, (point, leads)) in points.iter().enumerate() {
        for node in [&a, &b] {
            fs::remove_dir_all(&node.spec.state).expect("remove");
            copy_tree(&kept(node, "state"), &node.spec.state);
        }
        a.arm("");
        a.restart();
        a.arm(point);
        let out = a.ask(&["promote", "--wait"]);
        assert!(!out.status.success() || *point == FORGET, "{point}");
        assert!(Node::was_killed(a.wait_end(within(20))), "{point}");
        a.arm("");
        a.restart();
        let role = a.status().expect("status").0["role"].clone();
        assert_eq!(role == "leader", *leads, "{point}");
        let stale = histories(&a.spec.state).iter().any(|(name, _)| name.ends_with("history"));
        assert_eq!(stale, *leads, "{point}: nothing is left of one that did not happen");
        a.promote(&["--wait"]);
        until(within(10), "the command is run by whoever leads at last", || {
            fs::read_to_string(&hook).map_err(|e| e.to_string())
        });
        let ran = fs::read_to_string(&hook).expect("read");
        assert!(ran.lines().all(|l| l == "2 promotion") && ran.lines().count() <= 2, "{point}: {ran}");
        until(within(10), "and that it ran is noted", || {
            if a.spec.state.join("promoted").exists() { Err("not yet".into()) } else { Ok(()) }
        });
        fs::remove_file(&hook).expect("remove");
        let name = format!("after {n}");
        write(a.data(), &name);
        let follows =
            FOLLOWING[if soak() { n % FOLLOWING.len() } else { fastrand::usize(..FOLLOWING.len()) }];
        b.arm(follows);
        b = b.spec.clone().spawn();
        assert!(Node::was_killed(b.wait_end(within(20))), "{follows}");
        b.arm("");
        b.restart();
        assert_equal_within(within(20), a.data(), b.data());
        assert_eq!(timeline(&b), Ok(2), "{point}");
        a.stop();
        b.stop();
        fs::remove_file(a.data().join(&name)).expect("remove");
        fs::remove_file(b.data().join(&name)).expect("remove");
    }
}
