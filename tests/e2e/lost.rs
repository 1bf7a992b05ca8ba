//! The state directory, or a part of it, goes away beneath a running node: it says so, makes nothing in its place,
//! gives no position out twice, and goes on once the directory is back. And what is refused before anything is made.

use std::fs;
use std::path::Path;
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::bed::Bed;
use crate::support::node::{Node, towline};
use crate::support::{Pair, until, within};

fn says(node: &Node, words: &str) {
    until(within(20), words, || if node.log().contains(words) { Ok(()) } else { Err(node.log()) });
}

fn missing(node: &Node, words: &str) {
    until(within(20), &format!("{} misses its files", node.spec.name), || {
        let status = node.status()?;
        let (text, remedy) = status.error_text();
        if status.state() == "missing" && text.contains(words) && remedy.contains("back") {
            Ok(())
        } else {
            Err(status.0.to_string())
        }
    });
}

#[test]
fn a_log_that_goes_away_beneath_a_node_is_missed_and_taken_up_again() {
    let mut pair = Pair::start("lost-log");
    for leader in [true, false] {
        fs::write(pair.data().join("before"), leader.to_string()).expect("write");
        pair.equal(20);
        let node = if leader { &mut pair.leader } else { &mut pair.follower };
        let (log, aside) = (node.spec.state.join("log"), pair.bed.path("aside"));
        fs::rename(&log, &aside).expect("rename");
        missing(node, "log' is gone");
        fs::write(pair.leader.data().join("meanwhile"), leader.to_string()).expect("write");
        let node = if leader { &mut pair.leader } else { &mut pair.follower };
        assert!(!log.exists(), "nothing is made in its place");
        // Nor is it by a start.
        node.kill();
        *node = node.spec.spawn();
        missing(node, "log' is gone");
        assert!(!log.exists(), "nothing is made in its place");
        fs::rename(&aside, &log).expect("rename");
        node.reload("max_delete", if leader { "60" } else { "61" }).expect("reload");
        pair.equal(30);
    }
    // Who the node is stays known even without its control file.
    let control = pair.leader.spec.state.join("control");
    let was = fs::read(&control).expect("control");
    fs::remove_file(&control).expect("remove");
    until(within(10), "it is written again", || {
        fs::read(&control)
            .map_err(|e| e.to_string())
            .and_then(|is| if is == was { Ok(()) } else { Err("another one".to_owned()) })
    });
    pair.finish();
}

#[test]
fn a_state_directory_that_goes_away_is_no_reason_to_begin_a_new_system() {
    let pair = Pair::start("lost-state");
    fs::write(pair.data().join("before"), "x").expect("write");
    pair.equal(20);
    let (state, aside) = (pair.leader.spec.state.clone(), pair.bed.path("aside"));
    fs::rename(&state, &aside).expect("rename");
    says(&pair.leader, "state' is gone");
    // As after an unmount: there is an empty directory of that name.
    fs::create_dir(&state).expect("mkdir");
    fs::write(pair.data().join("meanwhile"), "x").expect("write");
    says(&pair.leader, "is not the one that this node was started with");
    assert_eq!(fs::read_dir(&state).expect("list").count(), 0, "nothing was made there");
    fs::remove_dir(&state).expect("rmdir");
    fs::rename(&aside, &state).expect("rename");
    pair.equal(60);
    pair.finish();
}

#[test]
fn a_start_that_can_not_succeed_makes_nothing() {
    let bed = Bed::new("nothing");
    let data = bed.path("data");
    fs::create_dir(&data).expect("mkdir");
    std::os::unix::fs::symlink(&data, bed.path("link")).expect("symlink");
    let (state, inside) = (bed.path("state"), bed.path("link/state"));
    let cases: [(&str, &Path, &Path, &[&str]); 6] = [
        ("leader", &data, &state, &["--listen", "127.0.0.1"]),
        ("leader", &data, &state, &["--listen", ":99999"]),
        ("leader", &bed.path("none"), &state, &[]),
        ("leader", &data, &inside, &[]),
        ("follower", &inside, &data, &["--leader", "127.0.0.1:7000"]),
        ("follower", &data, &state, &[]),
    ];
    for (role, data, state, more) in cases {
        let said = Command::new(towline())
            .arg(role)
            .args(["--data".as_ref(), data.as_os_str(), "--state".as_ref(), state.as_os_str()])
            .args(more)
            .output()
            .expect("run");
        let text = String::from_utf8_lossy(&said.stderr).into_owned();
        assert!(matches!(said.status.code(), Some(3 | 64)), "{role} {more:?}: {} {text}", said.status);
    }
    assert!(!state.exists() && fs::read_dir(&data).expect("list").count() == 0);
}

#[test]
fn one_wish_to_stop_that_comes_twice_is_one() {
    let mut pair = Pair::start("twice");
    fs::write(pair.data().join("x"), "x").expect("write");
    pair.equal(20);
    for node in [&mut pair.leader, &mut pair.follower] {
        node.freeze(true);
        let pid = Pid::from_raw(i32::try_from(node.pid()).expect("pid"));
        // Two signals of different kinds don't become one on their way.
        for signal in [Signal::SIGTERM, Signal::SIGINT] {
            kill(pid, signal).expect("kill");
        }
        node.freeze(false);
        let status = node.wait_end(within(20));
        assert!(status.success(), "{status}: {}", node.log());
    }
}
