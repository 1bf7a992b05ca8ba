//! Who follows whom: names given twice, nodes whose old connection is half dead, circles, and chains whose
//! leader is gone.

use std::fs;

use crate::support::bed::Bed;
use crate::support::node::Node;
use crate::support::{Proxy, Spec, assert_equal_within, holds_for, load, until, within};

/// Waits until the node says that its upstream refuses it for this reason, that it needs help, and what to do.
fn is_refused(node: &Node, code: &str, word: &str, remedy: &str) {
    until(within(30), &format!("{} is refused: {code}", node.spec.name), || {
        let status = node.status()?;
        let (text, todo) = status.error_text();
        let said = status.upstream_code() == code && text.contains(word) && todo.contains(remedy);
        if said && status.health() == "help" && status.state() == "refused" && status.is_dated() {
            Ok(())
        } else {
            Err(status.0.to_string())
        }
    });
}

fn is_well(node: &Node) {
    until(within(30), &format!("{} is well", node.spec.name), || {
        let status = node.status()?;
        if status.health() == "ok" && status.error_kind().is_none() {
            Ok(())
        } else {
            Err(status.0.to_string())
        }
    });
}

fn address(port: u16) -> String {
    format!("\"127.0.0.1:{port}\"")
}

/// A follower whose upstream can be changed by a reload.
fn movable(bed: &Bed, name: &str, upstream: u16) -> Spec {
    let mut spec = bed.follower(name, upstream).set("leader", &address(upstream));
    spec.leader_in_config = true;
    spec
}

#[test]
fn a_second_follower_under_a_name_is_refused_until_the_first_is_gone() {
    let bed = Bed::new("twice");
    let leader = bed.leader("leader").start();
    load::burst(&leader.data().join("app"), 1, 50);
    let mut first = bed.follower("first", leader.spec.listen).start();
    assert_equal_within(within(15), leader.data(), first.data());
    let mut spec = bed.follower("second", leader.spec.listen);
    spec.name = "first".to_owned();
    let second = spec.start();
    is_refused(&second, "name", "a follower named 'first' is attached from 127.0.0.1:", "another name");
    // The first one is left in peace, and gets what is written.
    let connected = || leader.status().expect("status").0.pointer("/followers/0/connected").cloned();
    let since = connected();
    holds_for(within(3), "the first stays connected", || {
        if first.status()?.upstream_state() == "streaming" { Ok(()) } else { Err("it is not".into()) }
    });
    load::burst(&leader.data().join("app"), 2, 50);
    assert_equal_within(within(15), leader.data(), first.data());
    assert_eq!(connected(), since, "it was never replaced");
    first.stop();
    // The name is free: the other gets in by itself, as a node of its own.
    assert_equal_within(within(30), leader.data(), second.data());
    is_well(&second);
    drop(bed);
}

#[test]
fn a_node_whose_old_connection_is_half_dead_gets_in_at_once() {
    let bed = Bed::new("half-dead");
    // So patient that the old connection outlives the test.
    let leader = bed.leader("leader").set("peer_timeout", "\"120s\"").start();
    load::burst(&leader.data().join("app"), 1, 50);
    let proxy = Proxy::to(leader.spec.listen);
    let mut follower = bed.follower("follower", proxy.port()).set("peer_timeout", "\"120s\"").start();
    let live = || leader.status().expect("status").followers().iter().any(|(_, s)| s == "streaming");
    // The first copy has made the trees equal already.
    until(within(15), "it streams", || if live() { Ok(()) } else { Err("it does not".into()) });
    assert_equal_within(within(15), leader.data(), follower.data());
    proxy.stall(true);
    follower.kill();
    assert!(live(), "to the leader it is still there");
    load::burst(&leader.data().join("app"), 2, 50);
    follower.spec.upstream = Some(leader.spec.listen);
    follower.restart();
    assert_equal_within(within(15), leader.data(), follower.data());
    is_well(&follower);
}

#[test]
fn followers_in_a_circle_say_so_and_go_on_once_one_follows_the_leader() {
    let bed = Bed::new("circle");
    let leader = bed.leader("leader").start();
    load::burst(&leader.data().join("app"), 1, 50);
    let mut a = movable(&bed, "a", leader.spec.listen).start();
    assert_equal_within(within(15), leader.data(), a.data());
    let b = bed.follower("b", a.spec.listen).start();
    assert_equal_within(within(15), leader.data(), b.data());
    a.reload("leader", &address(b.spec.listen)).expect("reload");
    for node in [&a, &b] {
        is_refused(node, "circle", "this node follows itself", "point one node of the circle at the leader");
    }
    a.reload("leader", &address(leader.spec.listen)).expect("reload");
    load::burst(&leader.data().join("app"), 2, 50);
    for node in [&a, &b] {
        assert_equal_within(within(30), leader.data(), node.data());
        is_well(node);
    }
}

#[test]
fn empty_followers_in_a_circle_say_so_too() {
    let bed = Bed::new("empty-circle");
    let leader = bed.leader("leader").start();
    load::burst(&leader.data().join("app"), 1, 50);
    let (mut a, mut b) = (movable(&bed, "a", 1), movable(&bed, "b", 1));
    a = a.clone().set("leader", &address(b.listen));
    b = b.set("leader", &address(a.listen));
    let (mut a, b) = (a.start(), b.start());
    for node in [&a, &b] {
        is_refused(node, "circle", "this node follows itself", "point one node of the circle at the leader");
    }
    a.reload("leader", &address(leader.spec.listen)).expect("reload");
    for node in [&a, &b] {
        assert_equal_within(within(40), leader.data(), node.data());
        is_well(node);
    }
}

#[test]
fn a_node_that_follows_itself_is_told() {
    let bed = Bed::new("itself");
    let mut spec = bed.follower("direct", 1);
    spec.upstream = Some(spec.listen);
    let (status, text) = spec.refused(within(20));
    assert!(status.code() == Some(3) && text.contains("would follow itself"), "{status}: {text}");
    // Over a detour only the answer tells.
    let leader = bed.leader("leader").start();
    let mut node = movable(&bed, "detour", leader.spec.listen).start();
    assert_equal_within(within(15), leader.data(), node.data());
    let proxy = Proxy::to(node.spec.listen);
    node.reload("leader", &address(proxy.port())).expect("reload");
    is_refused(&node, "circle", "what answers there is this node", "point one node");
    node.reload("leader", &address(node.spec.listen)).expect("reload");
    until(within(15), "the detour is not needed to be told", || {
        let status = node.status()?;
        if status.error_kind().as_deref() == Some("config") { Ok(()) } else { Err(status.0.to_string()) }
    });
    node.reload("leader", &address(leader.spec.listen)).expect("reload");
    is_well(&node);
}

#[test]
fn the_end_of_a_chain_does_not_know_its_lag_while_the_leader_is_gone() {
    let bed = Bed::new("silent");
    let mut leader = bed.leader("leader").start();
    let middle = bed.follower("middle", leader.spec.listen).start();
    let end = bed.follower("end", middle.spec.listen).start();
    load::burst(&leader.data().join("app"), 1, 50);
    assert_equal_within(within(15), leader.data(), end.data());
    for node in [&middle, &end] {
        is_well(node);
        assert_eq!(node.status().expect("status").lag_seconds(), Some(0.0));
    }
    leader.kill();
    until(within(20), "nobody knows of the leader", || {
        for node in [&middle, &end] {
            let status = node.status()?;
            if status.lag_seconds().is_some() || status.health() != "cut-off" {
                return Err(status.0.to_string());
            }
        }
        Ok(())
    });
    let status = end.status().expect("status");
    assert_eq!(status.upstream_state(), "streaming", "its own upstream is there");
    assert!(
        status.0.pointer("/upstream/leader_silent").is_some_and(serde_json::Value::is_f64),
        "{}",
        status.0
    );
    leader.restart();
    for node in [&middle, &end] {
        is_well(node);
        until(within(20), "the lag is known again", || {
            let status = node.status()?;
            if status.lag_seconds() == Some(0.0) { Ok(()) } else { Err(status.0.to_string()) }
        });
    }
}

#[test]
fn a_control_socket_that_is_removed_is_there_again() {
    let bed = Bed::new("socket");
    let mut leader = bed.leader("leader").start();
    fs::remove_file(leader.spec.state.join("control.sock")).expect("rm");
    assert!(leader.status().is_err(), "nobody can ask it");
    until(within(10), "it answers again", || leader.status().map(|_| ()));
    leader.stop();
}
