//! An old leader that comes back, two leaders that know nothing of each other, and an operator who decides.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::support::bed::{Bed, list};
use crate::support::node::towline;
use crate::support::{Node, Proxy, Spec, assert_equal_within, until, within};

fn write(dir: &Path, name: &str) {
    fs::write(dir.join(name), name.repeat(500)).expect("write");
}

/// The same node, which knows these.
fn knows(mut spec: Spec, ports: &[u16]) -> Spec {
    spec.leader_in_config = spec.upstream.is_some();
    spec.set("leader", &list(ports))
}

/// A leader of that name, and a note of each run of its `on_demote`.
fn leader(bed: &Bed, name: &str) -> (Spec, PathBuf) {
    let file = bed.path(format!("{name}-demoted"));
    let hook = format!(
        "\"echo $TOWLINE_NAME $TOWLINE_REASON $TOWLINE_TIMELINE $TOWLINE_NEW_LEADER >> {}\"",
        file.display()
    );
    (bed.leader(name).set("name", &format!("\"{name}\"")).set("on_demote", &hook), file)
}

fn status(node: &Node) -> Value {
    node.status().expect("status").0
}

/// Waits until the node is in this state and health.
fn is(node: &Node, state: &str, health: &str) -> Value {
    until(within(20), &format!("{} is {state} and {health}", node.spec.name), || {
        let status = node.status()?;
        let there = status.state() == state && (health.is_empty() || status.health() == health);
        if there { Ok(status.0) } else { Err(status.0.to_string()) }
    })
}

/// `towline check` calls it critical, by these words.
fn critical(node: &Node, words: &str) {
    let out = node.ask(&["check", "--min-free-disk", "off"]);
    let line = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(out.status.code() == Some(2) && line.contains(words), "{}: {line}", out.status);
}

fn fenced(node: &Node) -> Value {
    let status = is(node, "fenced", "fenced");
    critical(node, "FENCED");
    status
}

fn log_of(node: &Node) -> Vec<(PathBuf, Vec<u8>)> {
    node.segments().into_iter().map(|p| (p.clone(), fs::read(p).expect("read"))).collect()
}

#[test]
fn an_old_leader_that_is_started_again_never_opens_for_business_until_it_is_forced() {
    let bed = Bed::new("fence-start");
    let (spec, demoted) = leader(&bed, "a");
    let other = bed.follower("b", spec.listen);
    let ports = [spec.listen, other.listen];
    let (mut a, b) = (knows(spec, &ports).start(), knows(other, &ports).start());
    write(a.data(), "one");
    assert_equal_within(within(20), a.data(), b.data());
    a.kill();
    assert_eq!(b.promote(&["--wait"])["timeline"], 2);
    let before = log_of(&a);
    write(a.data(), "left behind");
    // Whoever follows it alone gets nothing of it.
    let alone = bed.follower("alone", a.spec.listen);
    for _ in 0..2 {
        a.restart();
        let shown = fenced(&a);
        assert_eq!(
            (&shown["fence"]["timeline"], &shown["fence"]["by"], &shown["role"]),
            (&2.into(), &"b".into(), &"leader".into()),
            "{shown}"
        );
        until(within(10), "it says where the new leader is", || {
            let shown = status(&a);
            let at = shown["fence"]["address"].as_str().unwrap_or_default();
            if at.ends_with(&format!(":{}", b.spec.listen)) { Ok(()) } else { Err(shown.to_string()) }
        });
        until(within(10), "on_demote is done", || {
            if status(&a)["fence"]["demoted"] == true { Ok(()) } else { Err("not yet".to_owned()) }
        });
        let follower = alone.start();
        until(within(10), "it is refused", || {
            let status = follower.status()?;
            if status.upstream_code() == "wrong-timeline" { Ok(()) } else { Err(status.0.to_string()) }
        });
        assert_eq!(fs::read_dir(follower.data()).expect("list").count(), 0, "nothing was taken from it");
        drop(follower);
        assert_eq!(log_of(&a), before, "its directory is not captured");
        a.kill();
    }
    let text = fs::read_to_string(&demoted).expect("read");
    assert_eq!(text.lines().count(), 1, "once: {text}");
    assert!(text.starts_with("a fenced 2 "), "{text}");
    // It takes the lead back: now it is the other that was left behind.
    a.restart();
    fenced(&a);
    let refused = a.ask(&["promote", "--wait"]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(10) && said.contains("--force"), "{}: {said}", refused.status);
    let leads = b.ask(&["promote", "--force"]);
    assert!(leads.status.success(), "one that leads undisturbed leads already");
    let dry = a.ask(&["promote", "--force", "--dry-run", "--json"]);
    let dry: Value = serde_json::from_slice(&dry.stdout).expect("JSON");
    assert_eq!((&dry["above"], &status(&a)["timeline"]), (&2.into(), &1.into()), "{dry}");
    let done = a.promote(&["--wait", "--force"]);
    assert_eq!((&done["timeline"], &done["forced"]), (&3.into(), &true.into()), "{done}");
    is(&a, "running", "");
    assert_eq!(fenced(&b)["fence"]["timeline"], 3);
    let text = String::from_utf8(a.ask(&["history"]).stdout).expect("text");
    assert!(text.contains("force") && text.lines().count() == 3, "{text}");
    let new = bed.follower("new", a.spec.listen).start();
    assert_equal_within(within(20), a.data(), new.data());
    assert!(new.data().join("left behind").exists() && !a.spec.state.join("fenced").exists());
    for node in [&mut a, &mut { b }] {
        node.stop();
        node.assert_no_panic();
    }
}

#[test]
fn an_old_leader_without_any_list_is_told_by_whoever_comes() {
    for follower_tells in [false, true] {
        let bed = Bed::new("fence-told");
        let (spec, demoted) = leader(&bed, "a");
        let other = bed.follower("b", spec.listen);
        let ports = [spec.listen, other.listen];
        // The new leader knows the old one, or one that follows it does.
        let known: &[u16] = if follower_tells { &ports[..1] } else { &ports };
        let mut a = spec.start();
        let mut b = knows(other, known).start();
        let c = knows(bed.follower("c", b.spec.listen), &ports[1..]).start();
        write(a.data(), "one");
        assert_equal_within(within(20), a.data(), c.data());
        // It was merely away.
        a.freeze(true);
        if follower_tells {
            b.reload("leader", &list(&[1])).expect("reload");
        }
        b.promote(&["--wait"]);
        write(b.data(), "two");
        assert_equal_within(within(20), b.data(), c.data());
        a.freeze(false);
        let mut c = c;
        if follower_tells {
            std::thread::sleep(std::time::Duration::from_millis(100));
            assert_eq!(status(&a)["state"], "running", "nobody has told it yet");
            c.reload("leader", &list(&[ports[1], ports[0]])).expect("reload");
        }
        assert_eq!(fenced(&a)["fence"]["timeline"], 2);
        until(within(10), "on_demote is run", || fs::read_to_string(&demoted).map_err(|e| e.to_string()));
        write(a.data(), "left behind");
        write(b.data(), "three");
        assert_equal_within(within(20), b.data(), c.data());
        a.kill();
        a.restart();
        fenced(&a);
        assert!(!c.data().join("left behind").exists());
        a.assert_no_panic();
    }
}

#[test]
fn a_leader_that_is_cut_off_leads_on_and_is_fenced_when_it_hears_of_the_new_one() {
    let bed = Bed::new("fence-cut");
    let (spec, _) = leader(&bed, "a");
    let other = bed.follower("b", spec.listen);
    let (to_a, to_b) = (Proxy::to(spec.listen), Proxy::to(other.listen));
    let both = |on: bool| [&to_a, &to_b].iter().for_each(|p| p.refuse(on));
    both(true);
    // Nobody answers when it starts: it leads.
    let a = knows(spec, &[to_b.port()]).start();
    is(&a, "running", "");
    until(within(10), "it says so", || match a.log().matches("nodes of the list answers").count() {
        1 => Ok(()),
        n => Err(format!("{n} times")),
    });
    both(false);
    let b = knows(other, &[to_a.port()]).start();
    write(a.data(), "one");
    assert_equal_within(within(20), a.data(), b.data());
    both(true);
    [&to_a, &to_b].iter().for_each(|p| p.cut());
    b.promote(&["--wait"]);
    write(a.data(), "of the old");
    write(b.data(), "of the new");
    assert_eq!(
        (status(&a)["state"].clone(), status(&b)["state"].clone()),
        ("running".into(), "running".into())
    );
    let begun = std::time::Instant::now();
    to_b.refuse(false);
    fenced(&a);
    assert!(begun.elapsed() < within(6), "within the timeout: {:?}", begun.elapsed());
    is(&b, "running", "ok");
    assert!(!b.data().join("of the old").exists());
    [&a, &b].iter().for_each(|n| n.assert_no_panic());
}

#[test]
fn two_that_were_promoted_apart_say_so_and_lead_on_until_somebody_decides() {
    let bed = Bed::new("fence-split");
    let mut a = bed.leader("a").start();
    let (b, c) = (bed.follower("b", a.spec.listen), bed.follower("c", a.spec.listen));
    let ports = [a.spec.listen, b.listen, c.listen];
    let (mut b, mut c) = (knows(b, &ports).start(), knows(c, &ports).start());
    write(a.data(), "one");
    for node in [&b, &c] {
        assert_equal_within(within(20), a.data(), node.data());
    }
    a.kill();
    c.stop();
    b.promote(&["--wait"]);
    write(b.data(), "of b");
    b.stop();
    c.restart();
    c.promote(&["--wait"]);
    write(c.data(), "of c");
    b.restart();
    for node in [&b, &c] {
        let shown = is(node, "running", "split");
        assert_eq!(shown["rivals"].as_array().map(Vec::len), Some(1), "{shown}");
        critical(node, "SPLIT");
    }
    write(b.data(), "more of b");
    let (status_b, status_c) = (status(&b), status(&c));
    assert_ne!(status_b["rivals"][0]["line"], status_c["rivals"][0]["line"]);
    // It is gone with the other, and back with it.
    b.stop();
    is(&c, "running", "ok");
    assert!(c.log().contains("the split is over"), "{}", c.log());
    b.restart();
    is(&c, "running", "split");
    assert_eq!(c.log().matches("SPLIT: ").count(), 2, "once each time:\n{}", c.log());
    let has = |node: &Node, name: &str| node.data().join(name).exists();
    assert!(has(&b, "more of b") && has(&c, "of c") && !has(&b, "of c") && !has(&c, "of b"));
    // An operator decides.
    assert_eq!(c.promote(&["--wait", "--force"])["timeline"], 3);
    assert_eq!(fenced(&b)["fence"]["timeline"], 3);
    is(&c, "running", "ok");
    // And by the command line, against what the others say.
    b.stop();
    let out =
        Command::new("timeout").args(["-k", "1", "20", &towline(), "run", "--help"]).output().expect("run");
    assert!(String::from_utf8_lossy(&out.stdout).contains("--force"));
    b = b.spec.clone().forced().start();
    is(&b, "running", "");
    assert_eq!(status(&b)["timeline"], 4);
    assert_eq!(fenced(&c)["fence"]["timeline"], 4);
    [&b, &c].iter().for_each(|n| n.assert_no_panic());
}

fn command(words: &[&str]) -> String {
    let out = Command::new(towline()).args(words).output().expect("run towline");
    assert!(out.status.success(), "{words:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).expect("text")
}

fn trusts(spec: &Spec, other: &Spec) {
    let at = |spec: &Spec| spec.state.to_str().expect("path").to_owned();
    let id: Value = serde_json::from_str(&command(&["id", "--json", "--state", &at(other)])).expect("JSON");
    let key = id["fingerprint"].as_str().expect("a fingerprint");
    command(&["trust", &other.name, key, "--state", &at(spec)]);
}

#[test]
fn a_newer_line_that_a_stranger_tells_of_is_no_reason_to_stop() {
    let bed = Bed::new("fence-forged");
    let tls = |spec: Spec| spec.set("tls", "\"on\"");
    let a = tls(leader(&bed, "a").0);
    let to_a = Proxy::to(a.listen);
    let (b, x) = (tls(bed.follower("b", a.listen)), tls(bed.follower("x", a.listen)));
    for other in [&b, &x] {
        trusts(&a, other);
        trusts(other, &a);
    }
    let a = a.start();
    let (mut b, x) = (b.start(), knows(x, &[to_a.port()]).start());
    write(a.data(), "one");
    for node in [&b, &x] {
        assert_equal_within(within(20), a.data(), node.data());
    }
    // One that is trusted no more promotes itself, and comes again and again.
    command(&["trust", "x", "--remove", "--state", a.spec.state.to_str().expect("path")]);
    x.promote(&["--wait"]);
    let before = to_a.accepted();
    until(within(20), "it came again", || {
        let times = to_a.accepted() - before;
        if times > 2 { Ok(()) } else { Err(format!("{times} times")) }
    });
    is(&a, "running", "");
    assert!(!a.log().contains("FENCED"));
    // One that is trusted is believed.
    b.promote(&["--wait"]);
    fenced(&a);
    b.stop();
}

/// A node that leads only while the script says so.
fn asks(bed: &Bed, spec: Spec) -> (Spec, PathBuf) {
    let script = bed.path(format!("{}-may", spec.name));
    let spec = spec
        .set("may_lead", &format!("\"sh {}\"", script.display()))
        .set("may_lead_interval", "\"300ms\"")
        .set("may_lead_grace", "\"900ms\"");
    (spec, script)
}

#[test]
fn a_leader_leads_only_while_it_may() {
    let bed = Bed::new("may-lead");
    let (a, hook) = leader(&bed, "a");
    let (a, may_a) =
        asks(&bed, a.set("on_promote", &format!("\"echo $TOWLINE_REASON >> {}\"", bed.path("up").display())));
    let (b, may_b) = asks(&bed, bed.follower("b", a.listen));
    let says = |script: &Path, what: &str| fs::write(script, what).expect("write");
    says(&may_a, "exit 1");
    says(&may_b, "exit 1");
    // It does not open for business before it may.
    let a = a.spawn();
    is(&a, "vetoed", "vetoed");
    critical(&a, "VETOED");
    let b = b.start();
    until(within(10), "nothing is served", || {
        let status = b.status()?;
        if status.upstream_code() == "not-ready" { Ok(()) } else { Err(status.0.to_string()) }
    });
    let log = bed.path("asked");
    says(&may_a, &format!("echo $TOWLINE_NAME $TOWLINE_TIMELINE $TOWLINE_ASKS >> {}", log.display()));
    is(&a, "running", "ok");
    write(a.data(), "one");
    assert_equal_within(within(20), a.data(), b.data());
    until(within(10), "it is asked on", || {
        let text = fs::read_to_string(&log).map_err(|e| e.to_string())?;
        if text.contains("a 1 start\n") && text.contains("a 1 lead\n") { Ok(()) } else { Err(text) }
    });
    is(&b, "running", "");
    // Nor is one promoted that may not lead, or that nobody gives an answer.
    for answer in ["exit 1", "sleep 600"] {
        says(&may_b, answer);
        let out = b.ask(&["promote", "--wait"]);
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        let dry = String::from_utf8(b.ask(&["promote", "--dry-run"]).stdout).expect("text");
        assert!(dry.contains("it would be refused: may_lead"), "{dry}");
        assert!(out.status.code() == Some(10) && said.contains("may_lead"), "{}: {said}", out.status);
    }
    is(&b, "running", "");
    // The permission ends while it leads, by a no or by silence, and comes back.
    for (round, answer) in ["exit 7", "sleep 600"].iter().enumerate() {
        says(&may_a, answer);
        is(&a, "vetoed", "vetoed");
        let name = format!("meanwhile {round}");
        write(a.data(), &name);
        let text = fs::read_to_string(&hook).expect("read");
        assert_eq!(text.matches("a vetoed 1").count(), round + 2, "{text}");
        assert!(!b.data().join(&name).exists());
        says(&may_a, "exit 0");
        let shown = is(&a, "running", "ok");
        assert_eq!(shown["timeline"], 1);
        assert_equal_within(within(20), a.data(), b.data());
    }
    until(within(10), "the application is started again", || {
        let text = fs::read_to_string(bed.path("up")).map_err(|e| e.to_string())?;
        if text == "allowed\nallowed\nallowed\n" { Ok(()) } else { Err(text) }
    });
    // While it stands aside another one may lead.
    says(&may_a, "exit 1");
    is(&a, "vetoed", "");
    says(&may_b, "exit 0");
    b.promote(&["--wait"]);
    assert_eq!(fenced(&a)["fence"]["timeline"], 2);
    [&a, &b].iter().for_each(|n| n.assert_no_panic());
}
