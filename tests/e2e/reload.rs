//! Reading the configuration again.

use std::fs;

use crate::support::bed::Bed;
use crate::support::{Pair, assert_equal_within, until, within};

#[test]
fn a_follower_takes_its_options_over_at_once_and_says_what_needs_a_restart() {
    let mut pair = Pair::start("reload");
    let pid = pair.follower.pid();
    // It refuses an edit, until it is told to overwrite.
    fs::write(pair.data().join("a"), "leader").expect("write");
    pair.equal(5);
    fs::write(pair.follower.data().join("a"), "edited here").expect("write");
    fs::write(pair.data().join("a"), "leader again").expect("write");
    until(within(15), "refused", || {
        let status = pair.follower.status()?;
        if status.state() == "refused" { Ok(()) } else { Err(status.0.to_string()) }
    });
    let answer = pair.follower.reload("local_edits", "\"overwrite\"").expect("reload");
    assert_eq!(answer["changed"], serde_json::json!(["local_edits"]), "{answer}");
    pair.equal(20);
    let answer = pair.follower.reload("compression", "3").expect("reload");
    assert_eq!(answer["idle"], serde_json::json!(["compression"]), "{answer}");
    let answer = pair.leader.reload("compression", "3").expect("reload");
    assert_eq!(answer["restart"], serde_json::json!(["compression"]), "{answer}");
    let answer = pair.leader.reload("scrub_rate", "\"1M\"").expect("reload");
    assert_eq!(answer["changed"], serde_json::json!(["scrub_rate"]), "{answer}");
    // What the command line says stays in force: the address of the leader is given there.
    pair.follower.reload("apply_cuts", "\"file\"").expect("reload");
    fs::write(pair.data().join("b"), "more").expect("write");
    pair.equal(20);
    // A mistake changes nothing.
    let error = pair.follower.reload("apply_cuts", "\"sometimes\"").expect_err("refused");
    assert!(error.contains("exit status: 3") && error.contains("line"), "{error}");
    pair.follower.reload("apply_cuts", "\"exact\"").expect("reload");
    pair.equal(20);
    assert_eq!(pair.follower.pid(), pid);
    pair.finish();
}

#[test]
fn a_follower_is_pointed_at_another_node_of_its_system() {
    let bed = Bed::new("repoint");
    let leader = bed.leader("leader").start();
    let middle = bed.follower("middle", leader.spec.listen).start();
    let mut last = bed.follower("last", leader.spec.listen);
    last.leader_in_config = true;
    let mut last = last.set("leader", &format!("\"127.0.0.1:{}\"", leader.spec.listen)).start();
    fs::write(leader.data().join("a"), "1").expect("write");
    assert_equal_within(within(20), leader.data(), last.data());
    last.reload("leader", &format!("\"127.0.0.1:{}\"", middle.spec.listen)).expect("reload");
    until(within(20), "it follows the other node", || {
        let status = middle.status()?;
        let names: Vec<String> = status.followers().into_iter().map(|f| f.0).collect();
        if names == ["last"] { Ok(()) } else { Err(status.0.to_string()) }
    });
    fs::write(leader.data().join("a"), "2").expect("write");
    assert_equal_within(within(20), leader.data(), last.data());
}

#[test]
fn a_confirmation_of_nothing_is_no_free_pass() {
    let pair = Pair::with(Bed::new("confirm"), |s| s.set("max_delete_floor", "20"), |s| s);
    for n in 0..50 {
        fs::write(pair.data().join(format!("f{n}")), "x").expect("write");
    }
    pair.equal(15);
    let out = pair.leader.ask(&["confirm"]);
    assert_eq!(String::from_utf8_lossy(&out.stdout).trim(), "nothing is held");
    for n in 0..50 {
        fs::remove_file(pair.data().join(format!("f{n}"))).expect("remove");
    }
    until(within(15), "the delete is held", || {
        let status = pair.leader.status()?;
        let (text, remedy) = status.error_text();
        let dated = status.0.pointer("/error/since").and_then(serde_json::Value::as_u64) > Some(0);
        let said = status.hold().is_some() && !text.is_empty() && remedy.contains("towline confirm");
        if said && dated && status.state() == "held" && status.health() == "help" {
            Ok(())
        } else {
            Err(status.0.to_string())
        }
    });
    let out = pair.leader.ask(&["confirm"]);
    assert_eq!(String::from_utf8_lossy(&out.stdout).trim(), "the held change goes through");
    pair.equal(20);
    pair.finish();
}
