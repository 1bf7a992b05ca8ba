//! Order: a process writes counter n to A, then to B. A directory that rests on an exact cut never
//! shows B ahead of A, whatever stopped it.

use std::fs;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread::JoinHandle;

use nix::sys::signal::{Signal, kill};

use crate::support::bed::{c_program, nap, soak_or};
use crate::support::{Bed, Node, Pair, Spec, until, within};

/// The writer; killed on drop.
struct Writer(Child, Option<(Arc<AtomicBool>, JoinHandle<()>)>);

impl Writer {
    fn start(dir: &Path, pause_us: &str) -> Self {
        fs::create_dir_all(dir).expect("mkdir");
        let child = Command::new(c_program("order", &[])).arg(dir).arg(pause_us).spawn().expect("start");
        Self(child, None)
    }

    /// Writes without a rest for a while, then stands for a while, and so on: file cuts and exact ones in turn.
    fn start_in_turns(dir: &Path) -> Self {
        let mut writer = Self::start(dir, "0");
        let pid = nix::unistd::Pid::from_raw(writer.0.id().cast_signed());
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let turns = std::thread::spawn(move || {
            while !stopped.load(SeqCst) {
                nap(100, 400);
                let _ = kill(pid, Signal::SIGSTOP);
                nap(10, 150);
                let _ = kill(pid, Signal::SIGCONT);
            }
        });
        writer.1 = Some((stop, turns));
        writer
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if let Some((stop, turns)) = self.1.take() {
            stop.store(true, SeqCst);
            let _ = turns.join();
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Size of the large file of `order.c`.
const LARGE: usize = 256 << 10;

/// The counters of a directory, absent files as 0.
struct Counters {
    pairs: Vec<(u64, u64)>,
}

impl Counters {
    fn read(dir: &Path) -> Result<Self, String> {
        let number = |name: &str| -> Result<u64, String> {
            let Ok(text) = fs::read(dir.join(name)) else { return Ok(0) };
            let bytes = if name == "la" {
                // One large write is no instant: its last bytes are what the next write waited for.
                if text.len() < LARGE { &text[..0] } else { &text[LARGE - 32..][..20] }
            } else {
                &text[..text.len().min(20)]
            };
            let word = String::from_utf8_lossy(bytes);
            if bytes.is_empty() {
                Ok(0)
            } else {
                word.trim().parse().map_err(|e| format!("{name}: '{word}': {e}"))
            }
        };
        let mut pairs = Vec::new();
        for (a, b) in [("ia", "ib"), ("ra", "sub/rb"), ("la", "lb"), ("ib", "ra"), ("sub/rb", "ia")] {
            pairs.push((number(a)?, number(b)?));
        }
        // The last pair runs over the loop's end: the next round's `ia` may be one ahead, never behind.
        let (rb, ia) = pairs[4];
        pairs[4] = (ia, rb);
        Ok(Self { pairs })
    }

    /// What no directory of the leader ever held.
    fn violation(&self) -> Option<String> {
        let bad =
            self.pairs.iter().enumerate().find(|(i, (a, b))| b > a || (*i != 2 && a - b > 1) || a - b > 8);
        bad.map(|_| format!("{:?}", self.pairs))
    }

    fn newest(&self) -> u64 {
        self.pairs[0].0
    }
}

/// Looks at a resting follower; the second value is what is wrong.
fn look(follower: &Node) -> (u64, Option<String>) {
    match Counters::read(&follower.data().join("order")) {
        Ok(c) => (c.newest(), c.violation()),
        Err(odd) => (0, Some(odd)),
    }
}

/// A pass gives up on an exact cut soon: file cuts abound.
fn impatient(spec: Spec) -> Spec {
    spec.set("max_cut_delay", "\"50ms\"")
}

fn wait_progress(follower: &Node, past: u64) {
    until(within(30), "the follower moves on", || {
        match Counters::read(&follower.data().join("order")) {
            Ok(c) if c.newest() > past => Ok(()),
            Ok(c) => Err(format!("{} of {past}", c.newest())),
            // In motion a reader may see a file half-way.
            Err(e) => Err(e),
        }
    });
}

fn print_cuts(what: &str, leader: &Node) {
    let (exact, file) = leader.status().expect("status").cuts();
    let share = exact as f64 / (exact + file).max(1) as f64 * 100.0;
    println!("{what}: {exact} exact cuts, {file} file cuts, {share:.1} % exact");
}

#[test]
fn a_paused_follower_never_shows_the_later_write_without_the_earlier() {
    let pair = Pair::start("order-pause");
    let writer = Writer::start(&pair.data().join("order"), "3000");
    let mut seen = Vec::new();
    wait_progress(&pair.follower, 0);
    for _ in 0..soak_or(300, 30) {
        nap(1, 150);
        let rest = pair.follower.pause();
        assert_eq!(rest.cut, "exact");
        let (newest, wrong) = look(&pair.follower);
        assert_eq!(wrong, None, "at {rest:?}");
        // At rest means at rest.
        nap(1, 20);
        assert_eq!(look(&pair.follower), (newest, None));
        seen.push(newest);
        pair.follower.resume();
    }
    print_cuts("a write each 0.5 ms in bursts", &pair.leader);
    let distinct: std::collections::BTreeSet<_> = seen.iter().collect();
    assert!(distinct.len() > seen.len() / 3, "the follower hardly moved: {seen:?}");
    assert!(seen.is_sorted(), "it went backwards: {seen:?}");
    drop(writer);
    pair.finish();
}

#[test]
fn a_follower_killed_at_random_rests_on_a_cut_when_it_is_back() {
    let mut pair = Pair::with(Bed::new("order-kill"), impatient, |s| s.set("checkpoint_interval", "\"1s\""));
    let writer = Writer::start_in_turns(&pair.data().join("order"));
    let mut seen = Vec::new();
    wait_progress(&pair.follower, 0);
    for _ in 0..soak_or(200, 12) {
        nap(1, 400);
        pair.follower.kill();
        pair.follower.spec.paused = true;
        pair.follower.restart();
        until(within(30), "it rests", || {
            let status = pair.follower.status()?;
            if status.paused() { Ok(()) } else { Err(status.0.to_string()) }
        });
        let rest = pair.follower.pause();
        assert_eq!(rest.cut, "exact");
        let (newest, wrong) = look(&pair.follower);
        assert_eq!(wrong, None, "after a kill, at {rest:?}");
        seen.push(newest);
        pair.follower.resume();
        wait_progress(&pair.follower, newest);
    }
    print_cuts("a writer that rests now and then", &pair.leader);
    assert!(seen.is_sorted(), "it went backwards: {seen:?}");
    pair.follower.spec.paused = false;
    drop(writer);
    pair.finish();
}

#[test]
fn file_cuts_are_compared_with_exact_ones() {
    let pair = Pair::with(Bed::new("order-file"), |s| s, |s| s.set("apply_cuts", "\"file\""));
    let writer = Writer::start(&pair.data().join("order"), "0");
    wait_progress(&pair.follower, 0);
    let mut wrong = 0;
    let rounds = soak_or(100, 12);
    for _ in 0..rounds {
        nap(20, 150);
        pair.follower.pause();
        wrong += u32::from(look(&pair.follower).1.is_some());
        pair.follower.resume();
    }
    print_cuts("a writer that never rests", &pair.leader);
    println!("apply_cuts = \"file\": {wrong} of {rounds} rests out of order (allowed there)");
    drop(writer);
    pair.finish();
}

#[test]
fn a_follower_rests_on_exact_cuts_only_where_file_cuts_abound() {
    let pair = Pair::with(Bed::new("order-both"), impatient, |s| s);
    let writer = Writer::start_in_turns(&pair.data().join("order"));
    wait_progress(&pair.follower, 0);
    let before = pair.leader.status().expect("status").cuts();
    let (mut last, mut passed_over) = (0, 0);
    for i in 0..soak_or(200, 60) {
        // Best when the newest cut of the leader is none that it may rest on.
        for _ in 0..20 {
            let status = pair.leader.status().expect("status");
            if status.exact() != status.end() {
                break;
            }
            nap(5, 20);
        }
        let rest = pair.follower.pause();
        let (newest, wrong) = look(&pair.follower);
        assert_eq!((rest.cut.as_str(), wrong), ("exact", None), "at {rest:?}");
        assert!(newest >= last, "it went backwards: {last} {newest}");
        last = newest;
        pair.follower.resume();
        passed_over = pair.leader.status().expect("status").cuts().1 - before.1;
        if passed_over >= 20 && i >= soak_or(100, 20) {
            break;
        }
    }
    print_cuts("a writer that rests now and then", &pair.leader);
    println!("{passed_over} file cuts were passed over");
    wait_progress(&pair.follower, last);
    drop(writer);
    pair.finish();
}

#[test]
fn a_writer_that_never_rests_gets_exact_cuts_by_a_freeze() {
    let bed = Bed::new("order-freeze");
    let pid = bed.path("pid");
    fs::write(&pid, "").expect("write");
    let freeze = format!("\"pid:{}\"", pid.display());
    let spec = bed.leader("leader");
    let writer = Writer::start(&spec.data.join("order"), "0");
    fs::write(&pid, writer.0.id().to_string()).expect("write");
    let pair = {
        let leader = spec.set("freeze", &freeze).set("max_cut_delay", "\"100ms\"").start();
        let follower = bed.follower("follower", leader.spec.listen).start();
        Pair { leader, follower, bed }
    };
    wait_progress(&pair.follower, 0);
    let mut last = 0;
    for _ in 0..soak_or(300, 60) {
        wait_progress(&pair.follower, last);
        let rest = pair.follower.pause();
        let (newest, wrong) = look(&pair.follower);
        assert_eq!((rest.cut.as_str(), wrong), ("exact", None));
        last = newest;
        pair.follower.resume();
    }
    print_cuts("a writer that never rests, with a freeze", &pair.leader);
    drop(writer);
    pair.finish();
}

#[test]
fn a_frozen_application_is_thawed_when_the_daemon_is_killed() {
    let bed = Bed::new("thaw");
    let pid = bed.path("pid");
    let spec = bed.leader("leader").armed();
    let writer = Writer::start(&spec.data.join("order"), "0");
    // Others, so that no cut is exact by luck, however the processors are shared out.
    let _others = ["a", "b", "c"].map(|name| Writer::start(&spec.data.join(name), "0"));
    fs::write(&pid, writer.0.id().to_string()).expect("write");
    let freeze = format!("\"pid:{}\"", pid.display());
    let spec = spec.set("freeze", &freeze).set("max_cut_delay", "\"50ms\"").set("max_freeze", "\"400ms\"");
    let mut leader = spec.start();
    let counter = || fs::read_to_string(leader_counter(&spec.data)).unwrap_or_default();
    let before = counter();
    leader.arm("capture::frozen=kill");
    let status = leader.wait_end(within(30));
    assert!(Node::was_killed(status), "{status}");
    until(within(5), "the application runs on", || {
        let state = fs::read_to_string(format!("/proc/{}/stat", writer.0.id())).map_err(|e| e.to_string())?;
        let word = state.rsplit(')').next().unwrap_or_default().trim().chars().next();
        if word == Some('T') { Err("stopped".into()) } else { Ok(()) }
    });
    let after = counter();
    assert!(after > before, "it wrote nothing: {before} {after}");
    until(within(5), "the application writes on", || if counter() > after { Ok(()) } else { Err(counter()) });
}

fn leader_counter(data: &Path) -> std::path::PathBuf {
    data.join("order/ia")
}
