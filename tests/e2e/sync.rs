//! Synchronous replication: who counts, and what `towline wait` says.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::node::{lsn, towline};
use crate::support::{Bed, Node, Pair, Proxy, until, within};

/// A leader with these settings, and followers of it.
fn group(bed: &Bed, settings: &[(&str, &str)], names: &[&str]) -> (Node, Vec<Node>) {
    let mut spec = bed.leader("leader");
    for (key, value) in settings {
        spec = spec.set(key, value);
    }
    let leader = spec.start();
    let followers: Vec<Node> = names.iter().map(|n| bed.follower(n, leader.spec.listen).start()).collect();
    streaming(&leader, names);
    (leader, followers)
}

/// Waits until exactly these followers stream.
fn streaming(leader: &Node, names: &[&str]) {
    until(within(30), &format!("{names:?} stream"), || {
        let status = leader.status()?;
        let list = status.followers();
        let here: Vec<&str> = list.iter().filter(|f| f.1 == "streaming").map(|f| f.0.as_str()).collect();
        let gone = list.iter().filter(|f| f.1 != "streaming").all(|f| f.1 == "away");
        if here == names && gone { Ok(()) } else { Err(format!("{list:?}")) }
    });
}

/// Waits for these states.
fn states(leader: &Node, want: &[(&str, &str, u64)]) {
    until(within(15), &format!("{want:?}"), || {
        let got = leader.status()?.sync_states();
        let same = got.iter().map(|(n, s, p)| (n.as_str(), s.as_str(), *p)).eq(want.iter().copied());
        if same { Ok(()) } else { Err(format!("{got:?}")) }
    });
}

fn touch(node: &Node, name: &str) {
    fs::write(node.data().join(name), name).expect("write");
}

/// A wait in the background.
fn begin(node: &Node, words: &[&str]) -> Child {
    let mut command = Command::new(towline());
    command.args(["wait", "--json", "--state"]).arg(&node.spec.state).args(words);
    command.stdout(Stdio::piped()).spawn().expect("start towline wait")
}

/// How it ended.
fn end(child: Child) -> (i32, Value) {
    let out = child.wait_with_output().expect("wait");
    (out.status.code().unwrap_or(-1), serde_json::from_slice(&out.stdout).unwrap_or_default())
}

fn waiters(node: &Node, count: u64) {
    until(within(10), &format!("{count} callers wait"), || {
        let now = node.status()?.sync("waiters");
        if now == json!(count) { Ok(()) } else { Err(now.to_string()) }
    });
}

#[test]
fn order_gives_priority_the_next_takes_over_and_reload_acts_on_those_that_wait() {
    let bed = Bed::new("sync-states");
    let (mut leader, mut followers) = group(&bed, &[("synchronous_followers", "\"a, b\"")], &["a", "b", "c"]);
    states(&leader, &[("a", "sync", 1), ("b", "potential", 2), ("c", "async", 0)]);
    touch(&leader, "one");
    assert!(leader.replicated(&[]).0.contains(&"a".to_owned()));
    // The sync one stops: the next is sync at once, and nobody is blocked for long.
    followers[0].stop();
    states(&leader, &[("b", "sync", 2), ("c", "async", 0)]);
    touch(&leader, "two");
    assert_eq!(leader.replicated(&[]).0, ["b"]);
    followers[0].restart();
    states(&leader, &[("a", "sync", 1), ("b", "potential", 2), ("c", "async", 0)]);
    // A list of somebody who is not there: callers wait; a change of the list is for them too.
    leader.reload("synchronous_followers", "\"x\"").expect("reload");
    assert_eq!(leader.status().expect("status").sync("satisfied"), json!(false));
    let caller = begin(&leader, &["--timeout", "60s"]);
    waiters(&leader, 1);
    leader.reload("synchronous_followers", "\"ANY 2 (a, b, c)\"").expect("reload");
    let (code, answer) = end(caller);
    assert!(code == 0 && answer["policy"] == "ANY 2 (a, b, c)", "{code} {answer}");
    states(&leader, &[("a", "quorum", 1), ("b", "quorum", 2), ("c", "quorum", 3)]);
    // Two of three away: blocked, until fewer are asked for.
    followers[0].stop();
    followers[1].stop();
    let (code, answer) = leader.wait_confirmed(&["--timeout", "2s"]);
    assert!(code == 1 && answer["result"] == "local-only", "{code} {answer}");
    let caller = begin(&leader, &["--timeout", "60s"]);
    waiters(&leader, 1);
    leader.reload("synchronous_followers", "\"\"").expect("reload");
    let (code, answer) = end(caller);
    assert!(code == 0 && answer["confirmed_by"] == json!(["c"]), "{code} {answer}");
    leader.assert_no_panic();
}

#[test]
fn every_result_means_exactly_what_it_says() {
    let bed = Bed::new("sync-results");
    let (mut leader, mut followers) = group(&bed, &[], &["a"]);
    // Current succeeds, beyond it the time is over; without a position, or with a policy, a follower says no.
    touch(&leader, "one");
    let (by, at) = leader.replicated(&["--level", "apply"]);
    assert_eq!(by, ["a"]);
    assert_eq!(fs::read(followers[0].data().join("one")).expect("applied"), b"one");
    let (code, answer) = followers[0].wait_confirmed(&["--lsn", &at]);
    assert!(code == 0 && answer["result"] == "reached", "{answer}");
    let next = lsn(&at) + 1;
    let next = format!("{:X}/{:08X}", next >> 32, next & 0xffff_ffff);
    let (code, answer) = followers[0].wait_confirmed(&["--lsn", &next, "--timeout", "200ms"]);
    assert!(code == 1 && answer["result"] == "not-reached", "{answer}");
    assert_eq!(followers[0].wait_confirmed(&[]).0, 10);
    assert_eq!(followers[0].wait_confirmed(&["--lsn", &at, "--for", "a"]).0, 64);
    // The same of the leader's own log, which nobody can confirm beyond its end.
    assert_eq!(leader.wait_confirmed(&["--lsn", &at]).0, 0);
    let (code, answer) = leader.wait_confirmed(&["--lsn", &next, "--timeout", "200ms"]);
    assert!(code == 2 && answer["result"] == "unknown", "{answer}");
    // Wrong usage is none of the three.
    for words in [
        &["--for", "ANY (a)"][..],
        &["--for", ""],
        &["--level", "fsync"],
        &["--lsn", "7"],
        &["--timeout", "0s"],
        &["--log-level", "garbage"],
        &["--nonsense"],
    ] {
        assert_eq!(leader.wait_confirmed(words).0, 64, "{words:?}");
    }
    // A follower that hears nothing: local only, in time. An interrupt cancels; nothing is left behind.
    followers[0].freeze(true);
    touch(&leader, "two");
    let (code, answer) = leader.wait_confirmed(&["--timeout", "2s"]);
    assert!(code == 1 && answer["result"] == "local-only" && answer["lsn"].is_string(), "{answer}");
    let caller = begin(&leader, &["--for", "a", "--timeout", "60s"]);
    waiters(&leader, 1);
    let pid = nix::unistd::Pid::from_raw(i32::try_from(caller.id()).expect("pid"));
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).expect("kill");
    let (code, answer) = end(caller);
    assert!(code == 1 && answer["reason"] == "cancelled", "{code} {answer}");
    let mut caller = begin(&leader, &["--for", "a", "--timeout", "60s"]);
    waiters(&leader, 1);
    caller.kill().expect("kill");
    end(caller);
    waiters(&leader, 0);
    // The daemon dies: nothing is known.
    let caller = begin(&leader, &["--for", "a", "--timeout", "60s"]);
    waiters(&leader, 1);
    leader.kill();
    let (code, answer) = end(caller);
    assert!(code == 2 && answer["result"] == "unknown", "{code} {answer}");
    assert_eq!(leader.wait_confirmed(&[]).0, 2);
    followers[0].freeze(false);
    followers[0].stop();
    // Nobody attached: local only, at once.
    leader.restart();
    let began = Instant::now();
    let (code, answer) = leader.wait_confirmed(&["--timeout", "60s"]);
    assert!(code == 1 && answer["reason"] == "no follower is attached", "{answer}");
    assert!(began.elapsed() < within(30));
    leader.assert_no_panic();
}

#[test]
fn a_follower_at_rest_never_counts_for_apply_and_acks_do_not_wait_for_a_clock() {
    let bed = Bed::new("sync-apply");
    let settings = [
        ("synchronous_followers", "\"FIRST 1 (a, b)\""),
        ("synchronous_level", "\"apply\""),
        ("peer_timeout", "\"120s\""),
    ];
    let (leader, followers) = group(&bed, &settings, &["a", "b"]);
    states(&leader, &[("a", "sync", 1), ("b", "potential", 2)]);
    for n in 0..5 {
        touch(&leader, &format!("f{n}"));
        let (by, _) = leader.replicated(&["--timeout", "20s"]);
        assert!(by.contains(&"a".to_owned()));
        assert!(followers[0].data().join(format!("f{n}")).exists());
    }
    // Paused: the next takes its place, for flush it goes on counting.
    followers[0].pause();
    states(&leader, &[("a", "potential", 1), ("b", "sync", 2)]);
    touch(&leader, "paused");
    assert_eq!(leader.replicated(&[]).0, ["b"]);
    assert!(!followers[0].data().join("paused").exists());
    let only_a = ["--for", "a", "--timeout", "2s"];
    assert_eq!(leader.wait_confirmed(&only_a).0, 1);
    leader.replicated(&["--for", "a", "--level", "flush"]);
    leader.replicated(&["--for", "a", "--level", "write"]);
    followers[1].pause();
    let status = leader.status().expect("status");
    until(within(10), "nobody counts", || {
        let satisfied = leader.status()?.sync("satisfied");
        if satisfied == json!(false) { Ok(()) } else { Err(status.0.to_string()) }
    });
    let caller = begin(&leader, &["--timeout", "60s"]);
    waiters(&leader, 1);
    followers[0].resume();
    let (code, answer) = end(caller);
    assert!(code == 0 && answer["confirmed_by"] == json!(["a"]), "{code} {answer}");
    // A pause ends with the process; one that was set up never to count is asynchronous, whatever the list says.
    states(&leader, &[("a", "sync", 1), ("b", "potential", 2)]);
}

#[test]
fn one_that_never_counts_is_async_and_the_contradiction_is_said() {
    let bed = Bed::new("sync-never");
    let leader = bed.leader("leader").set("synchronous_followers", "\"FIRST 1 (a, *)\"").start();
    let _a = bed.follower("a", leader.spec.listen).set("sync_candidate", "false").start();
    streaming(&leader, &["a"]);
    states(&leader, &[("a", "async", 0)]);
    assert_eq!(leader.wait_confirmed(&["--timeout", "2s"]).0, 1);
    assert!(leader.log().contains("sync_candidate = false"), "{}", leader.log());
    let _b = bed.follower("b", leader.spec.listen).start();
    states(&leader, &[("a", "async", 0), ("b", "sync", 2)]);
    assert_eq!(leader.replicated(&[]).0, ["b"]);
}

#[test]
fn a_line_that_is_cut_is_given_up_and_the_next_confirms() {
    let bed = Bed::new("sync-cut");
    let leader = bed.leader("leader").set("synchronous_followers", "\"FIRST 1 (a, b)\"").start();
    let proxy = Proxy::to(leader.spec.listen);
    let _a = bed.follower("a", proxy.port()).start();
    let _b = bed.follower("b", leader.spec.listen).start();
    streaming(&leader, &["a", "b"]);
    proxy.stall(true);
    touch(&leader, "cut");
    // The silence is noticed after peer_timeout; then the other one is sync.
    assert_eq!(leader.replicated(&["--timeout", "30s"]).0, ["b"]);
    states(&leader, &[("b", "sync", 2)]);
    proxy.stall(false);
    states(&leader, &[("a", "sync", 1), ("b", "potential", 2)]);
    leader.replicated(&["--for", "ANY 2 (a, b)", "--level", "apply"]);
}

/// Asks over a connection of its own.
struct Caller(UnixStream, BufReader<UnixStream>);

impl Caller {
    fn new(node: &Node) -> Self {
        let stream = UnixStream::connect(node.socket()).expect("connect");
        stream.set_read_timeout(Some(within(60))).expect("timeout");
        Self(stream.try_clone().expect("dup"), BufReader::new(stream))
    }

    fn send(&mut self, request: &Value) {
        self.0.write_all(format!("{request}\n").as_bytes()).expect("send");
    }

    fn answer(&mut self) -> Value {
        let mut line = String::new();
        self.1.read_line(&mut line).expect("answer");
        serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: '{line}'"))
    }
}

#[test]
fn many_services_wait_on_connections_of_their_own_and_status_answers() {
    let bed = Bed::new("sync-many");
    let (mut leader, _followers) = group(&bed, &[("synchronous_followers", "\"x\"")], &["a"]);
    let wait = json!({"command": "wait", "timeout": "120s"});
    let mut callers: Vec<Caller> = Vec::new();
    for _ in 0..120 {
        let mut caller = Caller::new(&leader);
        caller.send(&wait);
        callers.push(caller);
    }
    waiters(&leader, 120);
    // More requests on one connection: each gets its answer, in order.
    let mut busy = Caller::new(&leader);
    for n in 1..=10 {
        busy.send(&json!({"command": "wait", "timeout": format!("{}ms", 4000 + n * 100), "for": "nobody"}));
    }
    busy.send(&json!({"command": "status"}));
    waiters(&leader, 130);
    for _ in 0..10 {
        assert_eq!(busy.answer()["result"], "local-only");
    }
    assert_eq!(busy.answer()["role"], "leader");
    // One that connects early may be silent at first.
    let mut early = Caller::new(&leader);
    // A cancel ends those of its connection only.
    busy.send(&wait);
    busy.send(&json!({"command": "cancel"}));
    let answer = busy.answer();
    assert!(answer["reason"].as_str().is_some_and(|r| r.contains("cancelled")), "{answer}");
    assert_eq!(busy.answer()["cancelled"], true);
    // It may be silent for longer than others, and goes on.
    std::thread::sleep(Duration::from_millis(2500));
    busy.send(&json!({"command": "wait", "for": "a"}));
    assert_eq!(busy.answer()["result"], "replicated");
    early.send(&json!({"command": "wait", "for": "a"}));
    assert_eq!(early.answer()["result"], "replicated");
    // Half of them go away; the rest are answered when the list names one that is there. They share passes.
    callers.truncate(60);
    waiters(&leader, 60);
    let before = leader.status().expect("status").cuts().0;
    leader.reload("synchronous_followers", "\"a\"").expect("reload");
    for caller in &mut callers {
        let answer = caller.answer();
        assert_eq!(answer["result"], "replicated", "{answer}");
    }
    touch(&leader, "burst");
    for caller in &mut callers {
        caller.send(&wait);
    }
    for caller in &mut callers {
        assert_eq!(caller.answer()["result"], "replicated");
    }
    let cuts = leader.status().expect("status").cuts().0 - before;
    assert!(cuts < 30, "{cuts} cuts for one change");
    waiters(&leader, 0);
    let counted = leader.status().expect("status").sync("replicated");
    assert!(counted.as_u64() >= Some(120), "{counted}");
    // One that only shuts down its sending side still gets its answer.
    let mut half = Caller::new(&leader);
    half.send(&wait);
    half.0.shutdown(std::net::Shutdown::Write).expect("shutdown");
    assert_eq!(half.answer()["result"], "replicated");
}

#[test]
fn every_write_acknowledged_is_there_after_a_clean_stop_of_everybody() {
    let pair = Pair::start("sync-pair");
    streaming(&pair.leader, &["follower"]);
    for n in 0..20 {
        touch(&pair.leader, &format!("n{n}"));
        let level = ["write", "flush", "apply"][n % 3];
        pair.leader.replicated(&["--level", level]);
    }
    pair.finish();
}

/// The first block of this kind in the section of the README about waiting.
fn example(kind: &str) -> String {
    let readme = fs::read_to_string(format!("{}/README.md", env!("CARGO_MANIFEST_DIR"))).expect("README.md");
    let section =
        readme.split("\n## ").find(|s| s.starts_with("Waiting for followers")).expect("the section");
    let block = section.split("```").find(|b| b.starts_with(&format!("{kind}\n"))).expect("a block");
    block[kind.len()..].to_owned()
}

#[test]
fn the_examples_of_the_readme_do_what_they_say() {
    let bed = Bed::new("sync-readme");
    let file = bed.path("example.toml");
    fs::write(&file, example("toml")).expect("write");
    let checked = Command::new(towline()).args(["config", "check"]).arg(&file).status().expect("run");
    assert!(checked.success());
    let (leader, mut followers) = group(&bed, &[], &["a"]);
    let bin = bed.path("bin");
    fs::create_dir(&bin).expect("mkdir");
    std::os::unix::fs::symlink(towline(), bin.join("towline")).expect("symlink");
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap_or_default());
    let script = || {
        let mut sh = Command::new("sh");
        sh.arg("-c").arg(example("sh")).env("PATH", &path);
        sh.env("DATA", leader.data()).env("STATE", &leader.spec.state);
        String::from_utf8_lossy(&sh.output().expect("run sh").stdout).into_owned()
    };
    let driver =
        "import sys\nt = Towline(sys.argv[1])\nprint([commit(t, sys.argv[2], str(n)) for n in range(3)])\n";
    let python = || {
        let mut python = Command::new("python3");
        python.arg("-c").arg(example("python") + driver).arg(&leader.spec.state).arg(leader.data());
        let out = python.output().expect("run python3");
        String::from_utf8_lossy(&out.stdout).trim().to_owned() + &String::from_utf8_lossy(&out.stderr)
    };
    assert!(script().contains("safe on a follower"), "{}", script());
    assert_eq!(python(), "[True, True, True]");
    let orders = fs::read_to_string(followers[0].data().join("orders")).expect("applied");
    assert_eq!(orders.lines().last(), Some("2"), "{orders}");
    followers[0].stop();
    assert!(script().contains("only here, or unknown: exit code 1"), "{}", script());
    assert_eq!(python(), "[False, False, False]");
}
