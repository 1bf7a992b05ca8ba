//! Switchover: the leader hands over to a follower on purpose, under an application that writes, and back; and whatever stands
//! against it, or fails on the way, leaves everything as it was.

use std::fs;
use std::path::PathBuf;

use serde_json::Value;

use crate::support::bed::{Bed, copy_tree, py};
use crate::support::node::STAGE;
use crate::support::tree::python;
use crate::support::{Node, Proxy, Spec, assert_equal_within, until, within};
use crate::trust::key_of;

/// Nodes that have one list of all of them, and an application that moves with the leader.
pub(crate) struct Trio {
    // Ended before their directories go.
    pub(crate) nodes: Vec<Node>,
    pub(crate) bed: Bed,
}

impl Trio {
    /// `a` leads; `edit` changes what each is started with.
    pub(crate) fn new(name: &str, edit: impl Fn(&Self, Spec) -> Spec) -> Self {
        Self::with(name, false, edit)
    }

    /// The same; `tls`: they know each other by their keys.
    fn with(name: &str, tls: bool, edit: impl Fn(&Self, Spec) -> Spec) -> Self {
        let mut trio = Self { bed: Bed::new(name), nodes: Vec::new() };
        fs::write(trio.bed.path("witness"), "").expect("write");
        let a = trio.bed.leader("a");
        let others = ["b", "c"].map(|n| trio.bed.follower(n, a.listen));
        let all: Vec<String> =
            [&a, &others[0], &others[1]].iter().map(|s| format!("\"127.0.0.1:{}\"", s.listen)).collect();
        let specs: Vec<Spec> = [a].into_iter().chain(others).collect();
        for spec in specs.iter().filter(|_| tls) {
            let key = key_of(spec);
            for other in specs.iter().filter(|o| o.name != spec.name) {
                let known = other.ask(&["trust", &spec.name, &key]);
                assert!(known.status.success(), "{}", String::from_utf8_lossy(&known.stderr));
            }
        }
        for spec in specs {
            let spec = if tls { spec.set("tls", "\"on\"") } else { spec };
            let name = format!("{:?}", spec.name);
            let mut spec = spec.set("leader", &format!("[{}]", all.join(", "))).set("name", &name);
            spec.name_in_config = true;
            spec.leader_in_config = true;
            let spec = edit(&trio, spec);
            trio.nodes.push(spec.start());
        }
        trio
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.bed.path(name).display().to_string()
    }

    /// The command that starts the application on the directory of `spec`.
    fn starter(&self, spec: &Spec) -> String {
        format!(
            "rm -f {stop}; setsid {python} {program} run {db} {witness} {stop} {pid} > /dev/null 2>&1 & echo start $TOWLINE_REASON >> {calls}",
            stop = self.path("stop"),
            python = python(),
            program = py("ledger.py"),
            db = spec.data.join("ledger.db").display(),
            witness = self.path("witness"),
            pid = self.path("pid"),
            calls = self.path("calls"),
        )
    }

    /// The one that stops it.
    fn stopper(&self) -> String {
        format!(
            "touch {}; while [ -e {} ]; do sleep 0.01; done; echo stop $TOWLINE_REASON >> {}",
            self.path("stop"),
            self.path("pid"),
            self.path("calls")
        )
    }

    /// The hooks that move the application.
    pub(crate) fn hooked(&self, spec: Spec) -> Spec {
        let (start, stop) = (self.starter(&spec), self.stopper());
        spec.set("on_promote", &format!("{start:?}")).set("on_demote", &format!("{stop:?}"))
    }

    fn start_application(&self) {
        self.shell(&self.starter(&self.nodes[0].spec));
        self.writes_on();
    }

    fn stop_application(&self) {
        self.shell(&self.stopper());
    }

    fn shell(&self, command: &str) {
        let done = std::process::Command::new("/bin/sh").args(["-c", command]).status().expect("sh");
        assert!(done.success(), "{command}");
    }

    fn witness(&self) -> usize {
        fs::read_to_string(self.bed.path("witness")).expect("read").lines().count()
    }

    /// The application commits.
    fn writes_on(&self) {
        let before = self.witness();
        until(within(20), "the application writes", || {
            let now = self.witness();
            if now > before + 20 { Ok(()) } else { Err(format!("{now} entries after {before}")) }
        });
    }

    pub(crate) fn calls(&self) -> String {
        fs::read_to_string(self.bed.path("calls")).unwrap_or_default()
    }

    /// The others follow, one of them perhaps the other.
    pub(crate) fn streams(&self, leader: usize) {
        for (_, node) in self.nodes.iter().enumerate().filter(|(n, _)| *n != leader) {
            until(within(30), "the others stream", || {
                let status = node.status()?;
                let fine = status.upstream_state() == "streaming" && status.state() == "running";
                if fine { Ok(()) } else { Err(status.0.to_string()) }
            });
        }
    }

    /// It streams from the leader, and not from another follower, and is near.
    pub(crate) fn direct(&self, leader: usize, follower: usize) {
        let name = &self.nodes[follower].spec.name;
        until(within(30), "it follows the leader itself", || {
            let status = self.nodes[leader].status()?;
            let near = |f: &Value| f["lag"]["bytes"].as_u64().is_some_and(|n| n < 1 << 20);
            let list = status.0["followers"].as_array().cloned().unwrap_or_default();
            let there = list.iter().any(|f| f["name"] == **name && f["state"] == "streaming" && near(f));
            if there { Ok(()) } else { Err(status.0.to_string()) }
        });
    }

    pub(crate) fn switchover(&self, from: usize, words: &[&str]) -> Value {
        let mut all = vec!["switchover", "--json"];
        all.extend(words);
        let out = self.nodes[from].ask(&all);
        assert!(out.status.success(), "{all:?}: {}", String::from_utf8_lossy(&out.stderr));
        serde_json::from_slice(&out.stdout).expect("JSON")
    }

    /// It is refused, or undone, with this exit code; the words of the error.
    fn fails(&self, from: usize, code: i32, words: &[&str]) -> String {
        let mut all = vec!["switchover"];
        all.extend(words);
        let out = self.nodes[from].ask(&all);
        let text = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!(out.status.code(), Some(code), "{all:?}: {text}");
        text
    }

    /// The first node leads as before, and nothing of a switchover is left.
    fn as_before(&self) {
        on(&self.nodes[0], "leader", 1);
        until(within(20), "nothing is under way, and nothing noted", || {
            let under = self.nodes[0].status()?.0["switchover"]["under_way"].clone();
            if under.is_null() && !self.note().exists() { Ok(()) } else { Err(under.to_string()) }
        });
        let name = format!("still {}", fastrand::u32(..));
        fs::write(self.nodes[0].data().join(&name), &name).expect("write");
        until(within(20), "it is captured and served", || {
            fs::read(self.nodes[2].data().join(&name)).map(drop).map_err(|e| e.to_string())
        });
    }

    fn note(&self) -> PathBuf {
        self.nodes[0].spec.state.join("handover")
    }

    /// The ledger of a node: its last number.
    fn ledger(&self, node: usize) -> u64 {
        let copy = self.bed.path("copy");
        let _ = fs::remove_dir_all(&copy);
        copy_tree(self.nodes[node].data(), &copy);
        let _ = fs::remove_dir_all(copy.join(STAGE));
        let db: PathBuf = copy.join("ledger.db");
        Bed::python("ledger.py", &["check", db.to_str().expect("path"), &self.path("witness")])
            .trim()
            .parse()
            .expect("number")
    }

    /// Without the application: all three hold the same, and every entry that was committed.
    fn equal(&self, leader: usize) {
        self.streams(leader);
        for (n, node) in self.nodes.iter().enumerate() {
            if n != leader {
                assert_equal_within(within(20), self.nodes[leader].data(), node.data());
            }
            assert!(self.ledger(n) > 0);
            node.assert_no_panic();
        }
    }
}

pub(crate) fn on(node: &Node, role: &str, timeline: u64) {
    until(within(20), "it has that role and timeline", || {
        let status = node.status()?.0;
        let fine = status["role"] == role && status["timeline"] == timeline && status["state"] == "running";
        if fine { Ok(()) } else { Err(status.to_string()) }
    });
}

#[test]
fn the_leader_hands_over_and_takes_over_again_under_an_application_that_writes() {
    let trio = Trio::new("switchover", |t, spec| t.hooked(spec));
    trio.streams(0);
    trio.start_application();
    let dry = trio.switchover(0, &["--to", "b", "--dry-run"]);
    assert_eq!((&dry["dry_run"], &dry["stops"]), (&true.into(), &"on_demote".into()), "{dry}");
    for (from, to, timeline) in [(0, 1, 2), (1, 0, 3)] {
        let name = trio.nodes[to].spec.name.clone();
        trio.direct(from, to);
        let done = trio.switchover(from, &["--to", &name]);
        println!("writes were stopped for {} s", done["writes_stopped_seconds"]);
        assert_eq!((&done["switched"], &done["timeline"]), (&true.into(), &timeline.into()), "{done}");
        assert!(done["writes_stopped_seconds"].as_f64().is_some_and(|s| s > 0.0 && s < 20.0), "{done}");
        on(&trio.nodes[to], "leader", timeline);
        trio.writes_on();
        for n in 0..3 {
            if n != to {
                on(&trio.nodes[n], "follower", timeline);
                let status = trio.nodes[n].status().expect("status").0;
                assert_eq!(status["resync"]["completed"], 0, "without a copy: {status}");
            }
        }
        trio.streams(to);
        let shown = trio.nodes[from].status().expect("status").0["switchover"].clone();
        assert_eq!(
            (&shown["completed"], &shown["last"]["to"]),
            (&1.into(), &name.as_str().into()),
            "{shown}"
        );
        let history = String::from_utf8(trio.nodes[to].ask(&["history"]).stdout).expect("text");
        assert_eq!(history.matches("switchover").count() as u64, timeline - 1, "{history}");
    }
    assert_eq!(
        trio.calls().lines().skip(1).collect::<Vec<_>>(),
        ["stop switchover", "start switchover"].repeat(2)
    );
    trio.stop_application();
    trio.equal(0);
}

#[test]
fn whatever_stands_against_a_switchover_is_said_by_name_and_changes_nothing() {
    let mut trio = Trio::new("switchover-refused", |_, spec| spec.set("upstream_role", "\"leader\""));
    trio.streams(0);
    for n in [1, 2] {
        trio.direct(0, n);
    }
    let refused = |trio: &Trio, words: &[&str], want: &str| {
        let text = trio.fails(0, 10, words);
        assert!(text.contains(want), "{words:?}: {text}");
    };
    refused(&trio, &["--to", "b"], "--stopped");
    let stopped = ["--stopped", "--to"];
    let to = |name: &'static str| [stopped[0], stopped[1], name];
    refused(&trio, &to("x"), "there are: b, c");
    refused(&trio, &to("a"), "itself");
    assert!(trio.fails(1, 10, &to("a")).contains("asked of the leader"));
    let rest = trio.nodes[1].pause();
    assert_eq!(rest.cut, "exact");
    refused(&trio, &to("b"), "paused");
    trio.nodes[0].reload("sync_near", "\"1\"").expect("reload");
    fs::write(trio.nodes[0].data().join("more"), "more").expect("write");
    until(within(20), "it is behind", || {
        let text = trio.fails(0, 10, &to("b"));
        if text.contains("is behind") { Ok(()) } else { Err(text) }
    });
    trio.nodes[1].resume();
    trio.nodes[0].reload("sync_near", "\"16M\"").expect("reload");
    trio.nodes[1].reload("apply_delay", "\"1h\"").expect("reload");
    until(within(20), "it is delayed", || {
        let text = trio.fails(0, 10, &to("b"));
        if text.contains("is delayed") { Ok(()) } else { Err(text) }
    });
    trio.nodes[1].reload("apply_delay", "\"0s\"").expect("reload");
    let veto = trio.path("veto");
    fs::write(&veto, "").expect("write");
    trio.nodes[1].reload("may_lead", &format!("\"! [ -e {veto} ]\"")).expect("reload");
    refused(&trio, &to("b"), "may_lead does not let this node lead (switchover)");
    fs::remove_file(&veto).expect("remove");
    assert_eq!(trio.switchover(0, &["--to", "b", "--stopped", "--dry-run"])["dry_run"], true);
    // Nobody could be followed afterwards.
    let known = format!("[\"127.0.0.1:{}\"]", trio.nodes[2].spec.listen);
    trio.nodes[0].reload("leader", &known).expect("reload");
    refused(&trio, &to("b"), "at any address of the key 'leader'");
    let own = format!("[\"127.0.0.1:{}\"]", trio.nodes[0].spec.listen);
    trio.nodes[0].reload("leader", &own).expect("reload");
    refused(&trio, &to("b"), "names no other node");
    trio.nodes[0].reload("leader", &known).expect("reload");
    // One that takes its first copy, and one that needs help.
    fs::write(trio.nodes[0].data().join("large"), fastrand_bytes(4 << 20)).expect("write");
    let slow = Proxy::to(trio.nodes[0].spec.listen);
    slow.throttle(200_000);
    let d = trio.bed.follower("d", slow.port()).start();
    until(within(30), "it is being filled", || {
        let text = trio.fails(0, 10, &to("d"));
        if text.contains("first copy") { Ok(()) } else { Err(text) }
    });
    drop(d);
    until(within(20), "it is away", || {
        let text = trio.fails(0, 10, &to("d"));
        if text.contains("not connected") { Ok(()) } else { Err(text) }
    });
    assert_equal_within(within(20), trio.nodes[0].data(), trio.nodes[1].data());
    fs::write(trio.nodes[1].data().join("more"), "edited here").expect("write");
    fs::write(trio.nodes[0].data().join("more"), "and there").expect("write");
    until(within(20), "it has halted", || {
        let text = trio.fails(0, 10, &to("b"));
        if text.contains("has halted") { Ok(()) } else { Err(text) }
    });
    trio.as_before();
    assert_eq!(trio.nodes[0].status().expect("status").0["switchover"], Value::Null);
}

fn fastrand_bytes(len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    fastrand::fill(&mut bytes);
    bytes
}

#[test]
fn what_fails_before_the_point_of_no_return_is_put_back_and_the_application_runs_again() {
    let mut trio =
        Trio::new("switchover-undone", |t, spec| t.hooked(spec).set("upstream_role", "\"leader\"").armed());
    let proxy = Proxy::to(trio.nodes[1].spec.listen);
    trio.nodes[0].reload("leader", &format!("[\"127.0.0.1:{}\"]", proxy.port())).expect("reload");
    trio.streams(0);
    trio.direct(0, 1);
    trio.start_application();
    let undone = |trio: &Trio, code: i32, words: &[&str], want: &str| {
        let mut all = vec!["--to", "b"];
        all.extend(words);
        let text = trio.fails(0, code, &all);
        assert!(text.contains(want) && text.contains("undone"), "{text}");
        trio.writes_on();
        trio.as_before();
        assert!(trio.calls().ends_with("start switchover-undone\n"), "{}", trio.calls());
    };
    // The other dies when it has said that it is ready.
    trio.nodes[0].arm("switchover::ready=sleep:1500");
    std::thread::scope(|s| {
        let asked = s.spawn(|| undone(&trio, 9, &[], "noting: the connection of 'b' was lost"));
        until(within(20), "it is ready", || step(&trio.nodes[0], "asking"));
        // It was asked before the place where the leader rests.
        std::thread::sleep(std::time::Duration::from_millis(300));
        let pid = nix::unistd::Pid::from_raw(i32::try_from(trio.nodes[1].pid()).expect("pid"));
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).expect("kill");
        asked.join().expect("undone");
    });
    trio.nodes[1].wait_end(within(10));
    trio.nodes[1].restart();
    trio.direct(0, 1);
    // The network is cut while it applies.
    trio.nodes[0].arm("switchover::rested=sleep:500");
    std::thread::scope(|s| {
        let asked = s.spawn(|| undone(&trio, 9, &[], "asking: "));
        until(within(20), "capture rests", || step(&trio.nodes[0], "resting"));
        proxy.refuse(true);
        asked.join().expect("undone");
    });
    proxy.calm();
    trio.nodes[0].arm("");
    // It stands still.
    trio.direct(0, 1);
    trio.nodes[0].arm("switchover::begun=sleep:500");
    let begun = std::time::Instant::now();
    std::thread::scope(|s| {
        let asked = s.spawn(|| undone(&trio, 9, &["--timeout", "2s"], "time that was given"));
        until(within(20), "the application stops", || step(&trio.nodes[0], "stopping"));
        let second = trio.fails(0, 10, &["--to", "c"]);
        assert!(second.contains("under way"), "{second}");
        let pid = nix::unistd::Pid::from_raw(i32::try_from(trio.nodes[1].pid()).expect("pid"));
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGSTOP).expect("stop");
        let _ = asked.join().map_err(|e| std::panic::resume_unwind(e));
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGCONT).expect("go on");
    });
    assert!(begun.elapsed() < within(20));
    trio.nodes[0].arm("");
    trio.direct(0, 1);
    without_the_command(trio);
}

/// The command that stops the application fails, or does not come to its end; and then it goes well.
fn without_the_command(mut trio: Trio) {
    let stop = trio.stopper();
    let then = |what: &str| format!("{:?}", format!("{stop}; {what}"));
    trio.nodes[0].reload("on_demote", &then("exit 3")).expect("reload");
    let text = trio.fails(0, 9, &["--to", "b"]);
    assert!(text.contains("stopping: on_demote: ") && text.contains("exit 3"), "{text}");
    trio.writes_on();
    trio.as_before();
    trio.nodes[0].reload("on_demote", &then("sleep 100")).expect("reload");
    let text = trio.fails(0, 9, &["--to", "b", "--timeout", "500ms"]);
    assert!(text.contains("stopping: "), "{text}");
    trio.writes_on();
    trio.as_before();
    let shown = trio.nodes[0].status().expect("status").0["switchover"].clone();
    assert_eq!((&shown["completed"], &shown["undone"]), (&0.into(), &5.into()), "{shown}");
    trio.nodes[0].reload("on_demote", &format!("{stop:?}")).expect("reload");
    trio.shell(&stop);
    let done = trio.switchover(0, &["--to", "b", "--stopped"]);
    assert_eq!(done["timeline"], 2, "{done}");
    trio.writes_on();
    trio.stop_application();
    trio.equal(1);
}

fn step(node: &Node, want: &str) -> Result<(), String> {
    let at = node.status()?.0["switchover"]["under_way"]["step"].clone();
    if at == want { Ok(()) } else { Err(at.to_string()) }
}

#[test]
fn an_application_that_is_only_frozen_is_handed_over_at_an_instant_or_thawed() {
    let mut trio = Trio::with("switchover-frozen", true, |t, spec| {
        let moves = format!("kill -9 $(cat {}); {}", t.path("pid"), t.starter(&spec));
        spec.set("on_promote", &format!("{moves:?}")).set("upstream_role", "\"leader\"").armed()
    });
    trio.streams(0);
    trio.direct(0, 1);
    trio.start_application();
    let freeze = format!("\"pid:{}\"", trio.path("pid"));
    trio.nodes[0].reload("freeze", &freeze).expect("reload");
    trio.nodes[0].arm("switchover::rested=eio");
    let text = trio.fails(0, 4, &["--to", "b"]);
    assert!(text.contains("undone"), "{text}");
    trio.writes_on();
    trio.as_before();
    trio.nodes[0].arm("");
    trio.direct(0, 1);
    let done = trio.switchover(0, &["--to", "b"]);
    println!("writes were stopped for {} s", done["writes_stopped_seconds"]);
    on(&trio.nodes[1], "leader", 2);
    on(&trio.nodes[0], "follower", 2);
    trio.writes_on();
    trio.stop_application();
    trio.equal(1);
    let status = trio.nodes[0].status().expect("status").0;
    assert_eq!(
        (&status["resync"]["completed"], &status["upstream"]["tls"]),
        (&0.into(), &true.into()),
        "{status}"
    );
}

#[test]
fn what_was_handed_over_to_a_node_that_is_lost_is_taken_back_by_force_on_a_new_line() {
    let mut trio = Trio::new("switchover-forced", |t, spec| {
        let hook = format!("\"echo start $TOWLINE_REASON >> {}\"", t.path("calls"));
        spec.set("on_promote", &hook).set("upstream_role", "\"leader\"").armed()
    });
    trio.streams(0);
    trio.direct(0, 1);
    fs::write(trio.nodes[0].data().join("one"), "one").expect("write");
    trio.nodes[1].arm("promote::before_control=kill");
    let spec = trio.nodes[0].spec.clone();
    std::thread::scope(|s| {
        let asked = s.spawn(|| spec.ask(&["switchover", "--to", "b", "--stopped"]));
        assert!(Node::was_killed(trio.nodes[1].wait_end(within(20))));
        until(within(20), "it says what to do", || {
            let status = trio.nodes[0].status()?;
            let (text, _) = status.error_text();
            let fine = status.state() == "handing-over" && text.contains("promote --force");
            if fine { Ok(()) } else { Err(status.0.to_string()) }
        });
        // Started again it still does not lead.
        trio.nodes[0].stop();
        assert!(!asked.join().expect("asked").status.success());
    });
    trio.nodes[0].restart();
    until(within(20), "it hands over still", || {
        let status = trio.nodes[0].status()?;
        if status.state() == "handing-over" { Ok(()) } else { Err(status.0.to_string()) }
    });
    fs::write(trio.nodes[0].data().join("two"), "two").expect("write");
    let out = trio.nodes[0].ask(&["promote", "--force", "--wait"]);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    on(&trio.nodes[0], "leader", 2);
    assert!(!trio.note().exists());
    assert_eq!(trio.calls(), "start force\n");
    trio.nodes[1].arm("");
    trio.nodes[1].restart();
    for n in [1, 2] {
        assert_equal_within(within(20), trio.nodes[0].data(), trio.nodes[n].data());
        on(&trio.nodes[n], "follower", 2);
    }
    let shown = trio.nodes[0].status().expect("status").0["switchover"].clone();
    assert!(shown["under_way"].is_null(), "{shown}");
}
