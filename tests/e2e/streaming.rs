//! Which node is followed, when what comes from there becomes visible, and where that ends.

use std::fs::{self, File};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::support::bed::{Bed, c_program, free_port};
use crate::support::node::{STAGE, Status, lsn};
use crate::support::{Node, Pair, Spec, assert_equal_within, holds_for, load, until, within};

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
    // One that is being filled serves nobody, and the leader would be as good as any.
    fs::write(leader.data().join("a"), "0").expect("write");
    assert_equal_within(within(20), leader.data(), middle.data());
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
    // The slot goes by the name: the new one is in use, the old one is left to whoever bore that name.
    until(within(20), "there is a slot of that name in use", || {
        let status = leader.status()?.0;
        let slots = status["slots"].as_array().cloned().unwrap_or_default();
        let used: Vec<&str> =
            slots.iter().filter(|s| s["active"] == true).filter_map(|s| s["name"].as_str()).collect();
        if used == ["after"] { Ok(()) } else { Err(status["slots"].to_string()) }
    });
    assert_eq!(follower.pid(), pid);
    fs::write(leader.data().join("a"), "1").expect("write");
    assert_equal_within(within(20), leader.data(), follower.data());
    let error = follower.reload("name", "\"no such name\"").expect_err("refused");
    assert!(error.contains("letters"), "{error}");
}

fn holds(node: &Node, name: &str) -> String {
    fs::read_to_string(node.data().join(name)).unwrap_or_default()
}

/// Waits until the follower's log has the leader's newest cut; its status.
fn received(leader: &Node, follower: &Node) -> Status {
    until(within(20), "the log is there", || {
        let (l, f) = (leader.status()?, follower.status()?);
        if l.exact() == f.exact() { Ok(f) } else { Err(format!("{} and {}", l.0, f.0)) }
    })
}

fn settled(leader: &Node, name: &str, text: &str) -> String {
    let before = leader.status().expect("status").exact();
    fs::write(leader.data().join(name), text).expect("write");
    until(within(10), "it is committed", || {
        let status = leader.status()?;
        if status.exact() == before { Err(status.0.to_string()) } else { Ok(()) }
    });
    // Writing takes two steps, truncation and write: both are in by then.
    std::thread::sleep(Duration::from_millis(500));
    leader.status().expect("status").exact()
}

#[test]
fn a_delayed_follower_takes_log_at_once_and_shows_it_later() {
    let bed = Bed::new("delay");
    let leader = bed.leader("leader").start();
    let mut follower = bed.follower("follower", leader.spec.listen).start();
    fs::write(leader.data().join("a"), "0").expect("write");
    assert_equal_within(within(20), leader.data(), follower.data());
    follower.reload("apply_delay", "\"4s\"").expect("reload");
    let begun = Instant::now();
    fs::write(leader.data().join("a"), "1").expect("write");
    until(within(20), "it is received, and held back", || {
        let status = follower.status()?;
        let held = lsn(&status.exact()) > lsn(&status.applied());
        if held && status.health() == "delayed" { Ok(()) } else { Err(status.0.to_string()) }
    });
    assert_eq!(holds(&follower, "a"), "0");
    until(within(20), "it is shown", || {
        if holds(&follower, "a") == "1" { Ok(()) } else { Err("not yet".into()) }
    });
    assert!(begun.elapsed() >= Duration::from_secs(4), "{:?}", begun.elapsed());
    // A long delay ends with a reload at once; pause, resume and stop do not wait for it.
    follower.reload("apply_delay", "\"1h\"").expect("reload");
    fs::write(leader.data().join("a"), "22").expect("write");
    received(&leader, &follower);
    // What it holds back on purpose is no lag for a check of the leader.
    let check =
        |limit: &str| leader.ask(&["check", "--min-free-disk", "off", "--max-lag", limit]).status.code();
    until(within(20), "the leader sees it late", || {
        let status = leader.status()?.0;
        let row = &status["followers"][0];
        let late = row["delay"] == 3600.0 && row["lag"]["seconds"].as_f64() > Some(1.0);
        if late { Ok(()) } else { Err(row.to_string()) }
    });
    assert_eq!(check("500ms,1s"), Some(0));
    follower.pause();
    follower.resume();
    follower.stop();
    follower.restart();
    received(&leader, &follower);
    assert_eq!(holds(&follower, "a"), "1");
    let pid = follower.pid();
    follower.reload("apply_delay", "\"0s\"").expect("reload");
    assert_equal_within(within(20), leader.data(), follower.data());
    assert_eq!(follower.pid(), pid);
    until(within(20), "nothing is late", || {
        let status = follower.status()?;
        if status.health() == "ok" { Ok(()) } else { Err(status.0.to_string()) }
    });
}

#[test]
fn replay_stops_at_a_target_and_goes_on_or_ends_there() {
    let bed = Bed::new("target");
    let leader = bed.leader("leader").start();
    let mut follower = bed.follower("follower", leader.spec.listen).start();
    fs::write(leader.data().join("a"), "one").expect("write");
    assert_equal_within(within(20), leader.data(), follower.data());
    follower.pause();
    let target = settled(&leader, "a", "two");
    settled(&leader, "a", "three");
    received(&leader, &follower);
    // A pause holds over a restart what the target asks for.
    follower.kill();
    follower.spec = follower.spec.clone().set("stop_at", &format!("\"{target}\""));
    follower.restart();
    let stopped = until(within(20), "it rests on the target", || {
        let status = follower.status()?;
        let at = status.0.pointer("/apply/stopped").and_then(serde_json::Value::as_str).map(str::to_owned);
        if status.health() == "paused" { at.ok_or(status.0.to_string()) } else { Err(status.0.to_string()) }
    });
    assert_eq!((stopped.as_str(), holds(&follower, "a").as_str()), (target.as_str(), "two"));
    follower.resume();
    assert_equal_within(within(20), leader.data(), follower.data());
    follower.pause();
    let target = settled(&leader, "a", "four");
    settled(&leader, "a", "five");
    received(&leader, &follower);
    follower.stop();
    follower.spec =
        follower.spec.clone().set("stop_at", &format!("\"{target}\"")).set("stop_action", "\"exit\"");
    let mut ending = follower.spec.spawn();
    assert_eq!(ending.wait_end(within(30)).code(), Some(0));
    assert_eq!(holds(&ending, "a"), "four");
    // What is past can't be had back, and is not pretended.
    let past = follower.spec.clone().set("stop_at", &format!("\"{stopped}\""));
    let refused = past.start();
    until(within(20), "it is refused", || {
        let status = refused.status()?;
        let text = status.error_text().0;
        if status.state() == "refused" && text.contains("past the target") {
            Ok(())
        } else {
            Err(status.0.to_string())
        }
    });
    assert_eq!(holds(&refused, "a"), "four");
    drop(refused);
    // The log ends before the target: it goes on, and says what it waits for.
    let waiting = follower.spec.clone().set("stop_at", "\"FFFF/0\"").start();
    assert_equal_within(within(20), leader.data(), waiting.data());
    let status = waiting.status().expect("status").0;
    assert!(status.pointer("/apply/stopped").is_some_and(serde_json::Value::is_null), "{status}");
    assert_eq!(status.pointer("/apply/stop_at").and_then(serde_json::Value::as_str), Some("FFFF/00000000"));
}

#[test]
fn a_target_that_was_passed_on_purpose_is_passed_over_restarts_too() {
    let bed = Bed::new("target-passed");
    let leader = bed.leader("leader").start();
    let mut follower = bed.follower("follower", leader.spec.listen).start();
    fs::write(leader.data().join("a"), "one").expect("write");
    assert_equal_within(within(20), leader.data(), follower.data());
    follower.pause();
    settled(&leader, "a", "two");
    let now = Command::new("date").args(["-u", "+%FT%T.%NZ"]).output().expect("date");
    let target = String::from_utf8(now.stdout).expect("text").trim().to_owned();
    settled(&leader, "a", "three");
    received(&leader, &follower);
    follower.stop();
    follower.spec = follower.spec.clone().set("stop_at", &format!("\"{target}\""));
    follower.restart();
    until(within(20), "it rests on the target", || {
        let status = follower.status()?;
        let stopped = status.0.pointer("/apply/stopped").is_some_and(|s| !s.is_null());
        if stopped { Ok(()) } else { Err(status.0.to_string()) }
    });
    assert_eq!(holds(&follower, "a"), "two");
    follower.resume();
    assert_equal_within(within(20), leader.data(), follower.data());
    for (n, end) in [Node::stop as fn(&mut Node), Node::kill].into_iter().enumerate() {
        end(&mut follower);
        fs::write(leader.data().join("a"), n.to_string()).expect("write");
        follower.restart();
        assert_equal_within(within(20), leader.data(), follower.data());
        assert_eq!(follower.status().expect("status").error_kind(), None);
    }
    // Once it was taken away it is what it says when it comes again.
    follower.reload("stop_at", "\"FFFF/0\"").expect("reload");
    fs::write(leader.data().join("a"), "four").expect("write");
    assert_equal_within(within(20), leader.data(), follower.data());
    follower.reload("stop_at", &format!("\"{target}\"")).expect("reload");
    until(within(20), "it is refused", || {
        let status = follower.status()?;
        if status.state() == "refused" { Ok(()) } else { Err(status.0.to_string()) }
    });
}

#[test]
fn a_copy_of_a_follower_is_good_while_the_leader_is_down_and_the_follower_may_go_too() {
    let bed = Bed::new("copy-of-copy");
    let mut leader = bed.leader("leader").start();
    load::burst(&leader.data().join("app"), 1, 200);
    let mut middle = bed.follower("middle", leader.spec.listen).start();
    assert_equal_within(within(20), leader.data(), middle.data());
    leader.stop();
    let mut last = movable(&bed, "last", &[middle.spec.listen]).start();
    assert_equal_within(within(30), leader.data(), last.data());
    leader.restart();
    fs::write(leader.data().join("a"), "1").expect("write");
    assert_equal_within(within(30), leader.data(), last.data());
    // Pointed elsewhere by a reload it does not need the old upstream any more.
    last.reload("leader", &list(&[leader.spec.listen])).expect("reload");
    follows(&last, &leader);
    middle.stop();
    fs::write(leader.data().join("a"), "22").expect("write");
    assert_equal_within(within(20), leader.data(), last.data());
}

#[test]
fn an_idle_follower_is_not_behind_and_changes_nothing_itself() {
    let pair = Pair::start("idle");
    fs::write(pair.data().join("a"), "1").expect("write");
    pair.equal(10);
    until(within(10), "it is up to date", || {
        let status = pair.follower.status()?;
        if status.lag_seconds() == Some(0.0) { Ok(()) } else { Err(status.0.to_string()) }
    });
    // Longer than the silence after which a peer is given up.
    holds_for(within(4), "no lag", || {
        let status = pair.follower.status()?;
        let bytes = status.0.pointer("/lag/bytes").and_then(serde_json::Value::as_u64);
        let good = status.health() == "ok" && status.lag_seconds() == Some(0.0) && bytes == Some(0);
        if good { Ok(()) } else { Err(status.0.to_string()) }
    });
    // What only a leader does is refused with a code of its own.
    let out = pair.follower.ask(&["wait"]);
    assert_eq!(out.status.code(), Some(10), "{}", String::from_utf8_lossy(&out.stderr));
    pair.finish();
}

#[test]
fn directories_come_move_and_go_around_sudden_deaths() {
    let bed = Bed::new("dirs");
    let mut leader = bed.leader("leader").start();
    let mut follower = bed.follower("follower", leader.spec.listen).start();
    let dir = leader.data().to_owned();
    fs::write(dir.join("same"), "as").expect("write");
    assert_equal_within(within(30), &dir, follower.data());
    for round in 0..4 {
        let at = |p: &str| dir.join(p);
        for n in 0..20 {
            fs::create_dir_all(at(&format!("tree/{n}/deep"))).expect("mkdir");
            fs::write(at(&format!("tree/{n}/deep/f")), format!("{round} {n}")).expect("write");
        }
        fs::write(at("same"), vec![b'x'; 100_000]).expect("write");
        std::thread::sleep(Duration::from_millis(fastrand::u64(0..300)));
        fs::rename(at("tree"), at("moved")).expect("rename");
        fs::create_dir(at("tree")).expect("mkdir");
        fs::rename(at("moved/3"), at("tree/3")).expect("rename");
        // One name: emptied, gone, and another file.
        File::options().write(true).truncate(true).open(at("same")).expect("truncate");
        fs::remove_file(at("same")).expect("rm");
        fs::write(at("same"), format!("new {round}")).expect("write");
        if round % 2 == 0 {
            follower.kill();
        }
        fs::remove_dir_all(at("moved")).expect("rm");
        fs::remove_dir_all(at("tree")).expect("rm");
        match round % 2 {
            0 => {
                // What a death leaves in the staging directory goes with the next start.
                let stage = follower.data().join(STAGE);
                fs::create_dir_all(&stage).expect("mkdir");
                fs::write(stage.join("left"), "over").expect("write");
                follower.restart();
            }
            _ => {
                leader.kill();
                leader.restart();
            }
        }
        assert_equal_within(within(30), &dir, follower.data());
        until(within(20), "nothing is left over", || {
            if follower.data().join(STAGE).join("left").exists() { Err("it is".into()) } else { Ok(()) }
        });
    }
    // A restart is no promotion.
    assert_eq!(leader.status().expect("status").0["timeline"], 1);
    leader.assert_no_panic();
    follower.assert_no_panic();
}

#[test]
fn a_stop_does_not_wait_for_a_hook_that_hangs() {
    let bed = Bed::new("hook");
    let seen = bed.path("seen");
    let hook = format!("\"touch {}; sleep 600\"", seen.display());
    let mut leader = bed.leader("leader").set("before_cut", &hook).set("max_cut_delay", "\"1ms\"").start();
    // One that never rests: no pass can be exact without the hook.
    let app = leader.data().join("app");
    fs::create_dir(&app).expect("mkdir");
    let mut writer = Command::new(c_program("order", &[])).arg(&app).arg("0").spawn().expect("start");
    until(within(30), "the hook runs", || if seen.exists() { Ok(()) } else { Err("not yet".into()) });
    let begun = Instant::now();
    leader.stop();
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    let _ = writer.kill();
    let _ = writer.wait();
}
