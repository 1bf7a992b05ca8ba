//! Names that are not replicated: junk on either side, patterns that change, restarts.

use std::fs;
use std::path::Path;

use crate::support::bed::Bed;
use crate::support::node::Node;
use crate::support::{Pair, load, until, within};

/// Waits until the follower has applied everything the leader committed.
fn settled(pair: &Pair) {
    // The barrier of a fresh file: what came before it is committed when it is there.
    let mark = format!("mark{}", fastrand::u32(..));
    fs::write(pair.data().join(&mark), &mark).expect("write");
    until(within(20), "the follower has it all", || {
        let there = pair.follower.data().join(&mark).exists();
        if there { Ok(()) } else { Err(format!("no {mark}: {}", pair.follower.status()?.0)) }
    });
}

fn write(node: &Node, path: &str, text: &str) {
    let path = node.data().join(path);
    fs::create_dir_all(path.parent().expect("parent")).expect("mkdir");
    fs::write(path, text).expect("write");
}

fn is(dir: &Path, path: &str, text: &str) {
    assert_eq!(fs::read_to_string(dir.join(path)).unwrap_or_default(), text, "{path} in {}", dir.display());
}

/// Nothing of the follower's own junk was touched, and nothing is wrong.
fn unharmed(pair: &Pair, junk: &[&str]) {
    for path in junk {
        is(pair.follower.data(), path, "mine");
    }
    let status = pair.follower.status().expect("status");
    assert!(status.error_kind().is_none() && status.health() == "ok", "{}", status.0);
    let edits = status.0.pointer("/apply/local_edits_total").and_then(serde_json::Value::as_u64);
    assert_eq!(edits, Some(0), "{}", status.0);
}

#[test]
fn excluded_junk_on_both_sides_survives_restarts_and_changed_patterns() {
    let bed = Bed::new("excludes");
    let mut pair = Pair::with(bed, |s| s.set("exclude", "[\"*.tmp\", \"/cache\"]"), |s| s);
    write(&pair.leader, "a.tmp", "theirs");
    write(&pair.leader, "cache/x/y", "theirs");
    write(&pair.leader, "d/keep", "yes");
    write(&pair.leader, "d/z.log", "yes");
    settled(&pair);
    let junk = ["b.tmp", "d/c.tmp", "cache/x/other"];
    for path in junk {
        write(&pair.follower, path, "mine");
    }
    // The follower's own start scans its directory; a crash makes it redo log on it.
    for crash in [false, true, false] {
        if crash {
            pair.follower.kill();
        } else {
            pair.follower.stop();
        }
        load::burst(&pair.data().join("d/app"), 1, 30);
        pair.follower.restart();
        settled(&pair);
        unharmed(&pair, &junk);
        assert!(
            !pair.follower.data().join("a.tmp").exists() && !pair.follower.data().join("cache/x/y").exists()
        );
    }
    // The directory of an excluded file moves, and takes it along.
    fs::rename(pair.data().join("d"), pair.data().join("e")).expect("rename");
    settled(&pair);
    let junk = ["b.tmp", "e/c.tmp", "cache/x/other"];
    unharmed(&pair, &junk);
    // A pattern is added while all run: what it names leaves the followers, not the leader.
    let answer = pair.leader.reload("exclude", "[\"*.tmp\", \"/cache\", \"*.log\"]").expect("reload");
    assert_eq!(answer["changed"], serde_json::json!(["exclude"]), "{answer}");
    until(within(20), "the log files are dropped", || {
        if pair.follower.data().join("e/z.log").exists() { Err("still there".into()) } else { Ok(()) }
    });
    is(pair.data(), "e/z.log", "yes");
    write(&pair.leader, "new.log", "theirs");
    write(&pair.follower, "e/own.log", "mine");
    settled(&pair);
    let junk = ["b.tmp", "e/c.tmp", "cache/x/other", "e/own.log"];
    pair.follower.kill();
    pair.leader.stop();
    pair.leader.restart();
    pair.follower.restart();
    settled(&pair);
    unharmed(&pair, &junk);
    assert!(!pair.follower.data().join("new.log").exists());
    is(pair.follower.data(), "e/keep", "yes");
    // A pattern is taken away: what it named comes.
    pair.leader.reload("exclude", "[\"*.tmp\", \"/cache\"]").expect("reload");
    until(within(20), "the log files come", || {
        fs::read_to_string(pair.follower.data().join("new.log")).map(drop).map_err(|e| e.to_string())
    });
    settled(&pair);
    pair.follower.stop();
    pair.leader.stop();
    pair.follower.assert_no_panic();
}

#[test]
fn a_new_follower_may_hold_what_is_excluded_and_nothing_else() {
    let bed = Bed::new("exclude-fill");
    let leader = bed.leader("leader").set("exclude", "[\"lost+found\", \"*.tmp\"]").start();
    write(&leader, "a", "yes");
    until(within(15), "the patterns are in the log", || {
        let log = std::process::Command::new(crate::support::node::towline())
            .args(["log", "dump", "--json"])
            .arg(&leader.spec.state)
            .output()
            .expect("dump");
        let text = String::from_utf8_lossy(&log.stdout).into_owned();
        if text.contains("\"type\":\"excludes\"") && text.contains("lost+found") { Ok(()) } else { Err(text) }
    });
    let spec = bed.follower("follower", leader.spec.listen);
    fs::create_dir_all(spec.data.join("lost+found/deep")).expect("mkdir");
    fs::write(spec.data.join("x.tmp"), "mine").expect("write");
    let mut follower = spec.start();
    until(within(20), "the copy", || {
        fs::read_to_string(follower.data().join("a")).map(drop).map_err(|e| e.to_string())
    });
    until(within(20), "it runs", || {
        let status = follower.status()?;
        if status.health() == "ok" { Ok(()) } else { Err(status.0.to_string()) }
    });
    is(follower.data(), "x.tmp", "mine");
    follower.stop();
    follower.restart();
    write(&leader, "b", "yes");
    until(within(20), "it goes on", || {
        fs::read_to_string(follower.data().join("b")).map(drop).map_err(|e| e.to_string())
    });
    assert!(follower.data().join("lost+found/deep").is_dir());
}

#[test]
fn excluded_junk_in_a_directory_that_the_leader_removes_is_not_deleted_silently() {
    let mut pair = Pair::with(Bed::new("exclude-gone"), |s| s.set("exclude", "[\"*.tmp\"]"), |s| s);
    write(&pair.leader, "d/a", "yes");
    settled(&pair);
    write(&pair.follower, "d/mine.tmp", "mine");
    fs::remove_dir_all(pair.data().join("d")).expect("remove");
    let refused = |pair: &mut Pair| {
        until(within(20), "it is refused", || {
            let status = pair.follower.status()?;
            let said = status.error_text().0.contains("mine.tmp");
            if status.state() == "refused" && said {
                Ok(status.error_text().0)
            } else {
                Err(status.0.to_string())
            }
        })
    };
    refused(&mut pair);
    pair.follower.kill();
    pair.follower = pair.follower.spec.start();
    let text = refused(&mut pair);
    // The message says where it is; taken away, all goes on.
    let path = text.split('\'').nth(1).expect("a path").to_owned();
    let junk = pair.follower.data().join(path);
    is(
        pair.follower.data(),
        junk.strip_prefix(pair.follower.data()).expect("below").to_str().expect("text"),
        "mine",
    );
    fs::rename(&junk, pair.bed.path("kept")).expect("move away");
    pair.follower.reload("peer_timeout", "\"3s\"").expect("reload");
    pair.equal(20);
    pair.finish();
}
