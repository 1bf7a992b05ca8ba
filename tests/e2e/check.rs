//! `towline check` in every state a node can be brought into, and `towline status --watch`.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::bed::{Bed, is_root, program_in};
use crate::support::node::{Node, towline};
use crate::support::{Pair, Spec, until, within};

/// Limits that no disk of a test host is beyond.
const ANY_DISK: [&str; 2] = ["--min-free-disk", "off"];

fn check(state: &Path, words: &[&str]) -> Output {
    let mut command = Command::new("timeout");
    command.args(["-k", "1", "30", &towline(), "check", "--state"]).arg(state);
    if !words.contains(&ANY_DISK[0]) {
        command.args(ANY_DISK);
    }
    command.args(words).output().expect("run towline")
}

fn line(out: &Output) -> String {
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert_eq!(text.lines().count(), 1, "one line: {text} {}", String::from_utf8_lossy(&out.stderr));
    text.trim_end().to_owned()
}

/// Waits for an exit code and words in the line.
fn says(node: &Node, words: &[&str], code: i32, want: &[&str]) {
    until(within(20), &format!("check of {} says {code} {want:?}", node.spec.name), || {
        let out = check(&node.spec.state, words);
        let line = line(&out);
        let found = out.status.code() == Some(code) && want.iter().all(|w| line.contains(w));
        if found { Ok(()) } else { Err(format!("{}: {line}", out.status)) }
    });
}

#[test]
fn check_of_a_pair_over_its_day() {
    let mut pair = Pair::start("check");
    says(
        &pair.leader,
        &[],
        0,
        &["TOWLINE OK - leader ", "1 of 1 followers attached", " lag=0.0s;30;60", "help=0"],
    );
    says(
        &pair.follower,
        &[],
        0,
        &["TOWLINE OK - follower 'follower' running, 0 B and 0.0 s behind", "exact_age=0.0s"],
    );
    says(&pair.leader, &["--min-followers", "2,1"], 1, &["WARNING", "only 1 of 1", "followers=1;2:;1:"]);
    says(
        &pair.leader,
        &["--max-backup-age", "1h"],
        2,
        &["CRITICAL", "NO BASE BACKUP is known", "backup_age=U"],
    );
    says(&pair.leader, &["--sync-state"], 2, &["no synchronous followers are asked for"]);
    says(&pair.leader, &["--min-free-disk", "1k"], 0, &["OK"]);
    says(
        &pair.leader,
        &["--min-free-disk", "100000T"],
        2,
        &["free on the file system of the state directory"],
    );
    // Paused: first said, then too far behind, on both sides.
    pair.follower.pause();
    fs::write(pair.data().join("a"), vec![7; 50_000]).expect("write");
    let tight = ["--max-lag", "100ms,200ms", "--max-lag-bytes", "1k,10k"];
    says(&pair.follower, &["--max-lag", "off"], 1, &["WARNING", "paused until `towline resume`"]);
    says(&pair.follower, &["--accept", "paused", "--max-lag", "off"], 0, &["OK"]);
    says(&pair.follower, &tight, 2, &["CRITICAL", "s behind", "KiB behind", "help=0"]);
    says(&pair.leader, &tight, 2, &["CRITICAL", "follower 'follower' is"]);
    pair.follower.resume();
    says(&pair.follower, &tight, 0, &["OK"]);
    // Cut off: as bad as the silence is long.
    pair.leader.kill();
    says(&pair.follower, &["--max-lag", "1h"], 1, &["WARNING", "CUT OFF from '127.0.0.1:"]);
    says(&pair.follower, &["--max-lag", "1s"], 2, &["CRITICAL", "CUT OFF from '127.0.0.1:", " for "]);
    says(
        &pair.leader,
        &[],
        3,
        &["TOWLINE UNKNOWN", "is not running", pair.leader.spec.state.to_str().expect("text")],
    );
    pair.leader.restart();
    says(&pair.follower, &[], 0, &["OK"]);
    // A daemon that is there and does not answer.
    pair.leader.freeze(true);
    let start = Instant::now();
    says(&pair.leader, &["--timeout", "1s"], 3, &["TOWLINE UNKNOWN", "no answer within 1s"]);
    assert!(start.elapsed() < within(15), "it waited for {:?}", start.elapsed());
    pair.leader.freeze(false);
    says(&pair.leader, &[], 0, &["OK"]);
    pair.finish();
}

#[test]
fn what_needs_help_is_critical_and_has_a_word_of_its_own() {
    // What can be put right by itself would be.
    let ask = |s: Spec| s.set("resync", "\"ask\"");
    let mut pair = Pair::with(Bed::new("check-help"), |s| s, ask);
    let help = |node: &Node, kind: &str| says(node, &[], 2, &["CRITICAL - NEEDS HELP", kind, "help=1;;0"]);
    // A refused edit; then a file that is gone.
    fs::write(pair.data().join("a"), "1").expect("write");
    pair.equal(10);
    let theirs = pair.follower.data().join("a");
    fs::write(&theirs, "mine").expect("write");
    fs::write(pair.data().join("a"), "2").expect("write");
    help(&pair.follower, "refused: 'a'");
    fs::write(&theirs, "1").expect("write");
    pair.follower.reload("peer_timeout", "\"3s\"").expect("reload");
    pair.equal(20);
    pair.follower.stop();
    fs::remove_file(&theirs).expect("remove");
    pair.follower.restart();
    help(&pair.follower, "diverged:");
    help(&pair.follower, "towline resync");
    // A mass delete that a guard holds.
    for n in 0..30 {
        fs::write(pair.data().join(format!("f{n}")), "x").expect("write");
    }
    pair.leader.reload("max_delete_floor", "10").expect("reload");
    until(within(15), "the leader has them", || {
        let files = pair.leader.status()?.0["capture"]["files"].as_u64();
        if files > Some(30) { Ok(()) } else { Err(format!("{files:?}")) }
    });
    for n in 0..30 {
        fs::remove_file(pair.data().join(format!("f{n}"))).expect("remove");
    }
    help(&pair.leader, "towline confirm");
    pair.leader.confirm();
    // The leader names the follower that waits for help, and nothing else.
    says(&pair.leader, &[], 1, &["WARNING - these followers take log", "changed by others: follower;"]);
    says(&pair.leader, &["--accept", "follower-help"], 0, &["OK"]);
    // A follower of another system, once nothing else is wrong with it.
    assert!(pair.follower.ask(&["resync"]).status.success());
    pair.equal(20);
    says(&pair.follower, &[], 0, &["OK"]);
    let other = pair.bed.leader("other").start();
    pair.follower.kill();
    pair.follower.spec.upstream = Some(other.spec.listen);
    pair.follower.restart();
    help(&pair.follower, "system");
}

#[test]
fn a_full_disk_and_a_first_copy_under_way_are_said() {
    let bed = Bed::new("check-disk");
    let leader = bed.leader("leader").start();
    for n in 0..40 {
        fs::write(leader.data().join(format!("f{n}")), "x").expect("write");
    }
    let spec = bed.follower("follower", leader.spec.listen).armed().env("TOWLINE_FAILPOINTS", "");
    let follower = spec.spawn();
    follower.arm("fill::file=sleep:300");
    says(&follower, &[], 1, &["WARNING", "not usable yet: filling", "lag=U"]);
    follower.arm("");
    says(&follower, &[], 0, &["OK"]);
    follower.arm("apply::write=enospc");
    fs::write(leader.data().join("more"), "1").expect("write");
    says(&follower, &[], 2, &["CRITICAL - FAILED, tried again by itself: disk-full"]);
    follower.arm("");
    says(&follower, &[], 0, &["OK"]);
}

#[test]
fn without_a_daemon_the_reason_is_said_and_nothing_is_known() {
    let bed = Bed::new("check-down");
    let mut node = bed.leader("leader").start();
    node.stop();
    let unknown = |state: &Path, words: &[&str], want: &str| {
        let out = check(state, words);
        let line = line(&out);
        assert!(
            out.status.code() == Some(3) && line.starts_with("TOWLINE UNKNOWN - ") && out.stderr.is_empty(),
            "{out:?}"
        );
        assert!(line.contains(want), "{want}: {line}");
    };
    unknown(&node.spec.state, &[], "is not running");
    unknown(&bed.path("nowhere"), &[], "no such state directory");
    unknown(node.data(), &[], "is no state directory of towline");
    unknown(&node.spec.state, &["--max-lag", "soon"], "invalid value 'soon'");
    unknown(&node.spec.state, &["--no-such-flag"], "--no-such-flag");
    unknown(&node.spec.state, &["--log-level", "garbage"], "log level 'garbage' is none; write error,");
    unknown(&node.spec.state, &["--max-lag", "60s,30s"], "the smaller one first");
    unknown(&node.spec.state, &["--min-followers", "1,2"], "the larger one first");
    unknown(&node.spec.state, &["--min-free-disk", "5%,2G"], "can't be compared");
    for words in [&["--json"][..], &["--json", "--max-lag", "1"], &["--json", "--log-level", "x"]] {
        let json = check(&node.spec.state, words);
        let value: Value = serde_json::from_slice(&json.stdout).expect("JSON");
        let code = json.status.code();
        assert!(value["code"] == 3 && value["severity"] == "unknown" && code == Some(3), "{value}");
    }
    // By the configuration of the daemon.
    let file = bed.path("app.toml");
    let config = |text: &str| {
        fs::write(&file, text).expect("write");
        let words = ["check", "--min-free-disk", "off", "--config", file.to_str().expect("text")];
        let out = Command::new(towline()).args(words).output().expect("run");
        (out.status.code(), line(&out))
    };
    let good = format!("state = \"{}\"\n", node.spec.state.display());
    for (text, want) in [
        (good.as_str(), "is not running"),
        ("stat = 1\n", "did you mean 'state'"),
        ("", "no state directory"),
    ] {
        let (code, line) = config(text);
        assert!(code == Some(3) && line.contains(want), "{line}");
    }
    node.restart();
    says(&node, &[], 0, &["OK"]);
    assert_eq!(config(&good).0, Some(0));
    let json = check(&node.spec.state, &["--json"]);
    let value: Value = serde_json::from_slice(&json.stdout).expect("JSON");
    assert!(
        value["code"] == 0 && value["health"] == "ok" && value["figures"][0]["label"] == "help",
        "{value}"
    );
    if is_root() {
        let program = program_in(&bed);
        let nobody = |command: &str| {
            let mut setpriv = Command::new("setpriv");
            setpriv.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]).arg(&program);
            setpriv.args([command, "--state"]).arg(&node.spec.state).output().expect("run")
        };
        let out = nobody("check");
        let line = line(&out);
        assert!(out.status.code() == Some(3) && line.contains("no permission"), "{}: {line}", out.status);
        // Other commands don't take it for a daemon that is down.
        for (command, code) in [("status", 4), ("pause", 4), ("wait", 2)] {
            let out = nobody(command);
            let said = String::from_utf8_lossy(&out.stdout) + String::from_utf8_lossy(&out.stderr);
            assert!(out.status.code() == Some(code), "{command}: {}: {said}", out.status);
            assert!(
                said.contains("permission denied at") && said.contains("run this as one of them"),
                "{said}"
            );
        }
    }
}

#[test]
fn a_watch_shows_pages_with_rates_and_leaves_the_terminal_as_it_was() {
    let pair = Pair::start("watch");
    let state = pair.leader.spec.state.to_str().expect("text");
    for signal in ["SIGINT", "SIGTERM"] {
        let out = Bed::python("watch.py", &[signal, &towline(), state]);
        assert_eq!(out.trim(), "restored");
    }
    // No terminal: blocks, and lines of JSON; ended by a signal, and by a reader that went away.
    let start = |words: &[&str]| {
        let mut command = Command::new(towline());
        command.args(["status", "--watch", "100ms", "--state", state]).args(words);
        command.stdout(Stdio::piped()).spawn().expect("start")
    };
    let mut watch = start(&[]);
    let lines = BufReader::new(watch.stdout.take().expect("stdout")).lines().map_while(Result::ok);
    let blocks: Vec<String> = lines.filter(|l| l.starts_with("--- ") || l.contains("/s")).take(4).collect();
    assert!(blocks.iter().filter(|l| l.starts_with("--- ")).count() >= 2, "{blocks:?}");
    until(within(10), "it ends with its reader", || match watch.try_wait().map_err(|e| e.to_string())? {
        Some(status) if status.success() => Ok(()),
        other => Err(format!("{other:?}")),
    });
    let mut watch = start(&["--json"]);
    let lines = BufReader::new(watch.stdout.take().expect("stdout")).lines().map_while(Result::ok);
    for text in lines.take(2) {
        let value: Value = serde_json::from_str(&text).expect("a line of JSON");
        assert_eq!(value["role"], "leader");
    }
    std::thread::sleep(Duration::from_millis(10));
    let _ = watch.wait();
    pair.finish();
}
