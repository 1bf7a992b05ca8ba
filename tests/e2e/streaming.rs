//! Which node is followed, when what comes from there becomes visible, and where that ends.

use std::fs;

use crate::support::bed::{Bed, free_port};
use crate::support::{Node, Spec, assert_equal_within, until, within};

/// A follower whose upstreams and name can be changed by reload.
fn movable(bed: &Bed, name: &str, upstreams: &[u16]) -> Spec {
    let mut spec = bed.follower(name, upstreams[0]);
    (spec.leader_in_config, spec.name_in_config) = (true, true);
    spec.set("leader", &list(upstreams)).set("name", &format!("\"{name}\""))
}

/// A list of addresses, as TOML.
fn list(ports: &[u16]) -> String {
    let all: Vec<String> = ports.iter().map(|p| format!("\"127.0.0.1:{p}\"")).collect();
    format!("[{}]", all.join(", "))
}

fn follows(node: &Node, other: &Node) {
    until(within(30), "it streams from there", || {
        let status = node.status()?;
        let at = status.upstream_address();
        if status.upstream_state() == "streaming" && at == format!("127.0.0.1:{}", other.spec.listen) {
            Ok(())
        } else {
            Err(status.0.to_string())
        }
    });
}

#[test]
fn of_several_upstreams_one_of_the_wanted_role_is_followed_and_the_next_when_it_goes_away() {
    let bed = Bed::new("upstreams");
    let leader = bed.leader("leader").start();
    let mut middle = bed.follower("middle", leader.spec.listen).start();
    let ports = [free_port(), leader.spec.listen, middle.spec.listen];
    let mut last = movable(&bed, "last", &ports).set("upstream_role", "\"prefer-follower\"").start();
    follows(&last, &middle);
    fs::write(leader.data().join("a"), "1").expect("write");
    assert_equal_within(within(20), leader.data(), last.data());
    middle.kill();
    follows(&last, &leader);
    fs::write(leader.data().join("a"), "2").expect("write");
    assert_equal_within(within(20), leader.data(), last.data());
    // It stays where it is while that is there; asked for followers only, it goes.
    middle.restart();
    last.reload("upstream_role", "\"follower\"").expect("reload");
    follows(&last, &middle);
    last.reload("upstream_role", "\"leader\"").expect("reload");
    follows(&last, &leader);
    fs::write(leader.data().join("a"), "3").expect("write");
    assert_equal_within(within(20), leader.data(), last.data());
}

#[test]
fn none_of_the_wanted_role_is_a_failure_of_its_own_and_names_each() {
    let bed = Bed::new("wanted-role");
    let leader = bed.leader("leader").start();
    let middle = bed.follower("middle", leader.spec.listen).start();
    let mut last = movable(&bed, "last", &[middle.spec.listen]).set("upstream_role", "\"leader\"").start();
    until(within(20), "it says so", || {
        let status = last.status()?;
        let (text, remedy) = status.error_text();
        let said = text.contains("no leader to follow") && remedy.contains("upstream_role");
        if status.upstream_code() == "upstream-role" && status.health() == "help" && said {
            Ok(())
        } else {
            Err(status.0.to_string())
        }
    });
    // Nobody there takes it for a follower.
    assert!(middle.status().expect("status").followers().is_empty());
    // The same list may be everybody's: its own address is passed over.
    let all = [last.spec.listen, middle.spec.listen, leader.spec.listen];
    last.reload("leader", &list(&all)).expect("reload");
    follows(&last, &leader);
    fs::write(leader.data().join("a"), "1").expect("write");
    assert_equal_within(within(20), leader.data(), last.data());
    // A follower whose only upstreams follow it says that, and not what role they have.
    let error = last.reload("leader", &list(&[middle.spec.listen, middle.spec.listen])).expect_err("refused");
    assert!(error.contains("twice"), "{error}");
}

#[test]
fn a_follower_is_renamed_by_reload() {
    let bed = Bed::new("rename");
    let leader = bed.leader("leader").start();
    let mut follower = movable(&bed, "before", &[leader.spec.listen]).start();
    let pid = follower.pid();
    let connected = |name: &str| {
        until(within(20), "the leader knows it under that name", || {
            let followers = leader.status()?.followers();
            let here: Vec<&str> =
                followers.iter().filter(|f| f.1 == "streaming").map(|f| f.0.as_str()).collect();
            if here == [name] { Ok(()) } else { Err(format!("{followers:?}")) }
        });
    };
    connected("before");
    let answer = follower.reload("name", "\"after\"").expect("reload");
    assert_eq!(answer["changed"], serde_json::json!(["name"]), "{answer}");
    connected("after");
    assert_eq!(follower.status().expect("status").0["name"], "after");
    assert_eq!(follower.pid(), pid);
    fs::write(leader.data().join("a"), "1").expect("write");
    assert_equal_within(within(20), leader.data(), follower.data());
    let error = follower.reload("name", "\"no such name\"").expect_err("refused");
    assert!(error.contains("letters"), "{error}");
}
