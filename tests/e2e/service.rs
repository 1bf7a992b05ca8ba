//! What the service manager is told, and what it is not told any more when an engine hangs. The test is the manager:
//! it owns the socket.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::support::bed::Bed;
use crate::support::node::{Node, Spec};
use crate::support::{until, within};

/// The manager's end of the socket.
struct Manager {
    socket: UnixDatagram,
    /// Everything that came so far, one line of a datagram each, with when it came.
    heard: Vec<(Instant, String)>,
}

impl Manager {
    fn new(bed: &Bed) -> Self {
        let socket = UnixDatagram::bind(bed.path("notify")).expect("bind");
        socket.set_nonblocking(true).expect("nonblocking");
        Self { socket, heard: Vec::new() }
    }

    /// A node that knows the socket, with a watchdog of two seconds.
    fn watch(&self, bed: &Bed, spec: Spec) -> Spec {
        spec.env("NOTIFY_SOCKET", bed.path("notify").to_str().expect("path")).env("WATCHDOG_USEC", "2000000")
    }

    fn listen(&mut self) {
        let mut buf = [0_u8; 4096];
        while let Ok(n) = self.socket.recv(&mut buf) {
            let text = String::from_utf8(buf[..n].to_vec()).expect("UTF-8");
            let now = Instant::now();
            self.heard.extend(text.lines().map(|l| (now, l.to_owned())));
        }
    }

    /// Waits until `wanted` accepts a line that came at or after `from`; returns where it is.
    fn wait(&mut self, what: &str, from: usize, wanted: impl Fn(&str) -> bool) -> usize {
        until(within(30), what, || {
            self.listen();
            let at = self.heard.iter().skip(from).position(|(_, l)| wanted(l));
            at.map(|n| from + n).ok_or_else(|| format!("{:?}", self.lines(from)))
        })
    }

    fn lines(&self, from: usize) -> Vec<&str> {
        self.heard[from.min(self.heard.len())..].iter().map(|(_, l)| l.as_str()).collect()
    }

    /// How many signs of life came from `from` on.
    fn pings(&mut self, from: usize) -> usize {
        self.listen();
        self.lines(from).iter().filter(|l| **l == "WATCHDOG=1").count()
    }

    /// Waits until no sign of life has come for longer than the watchdog's time, while the node is still there.
    fn falls_silent(&mut self, node: &mut Node) {
        until(within(30), "the watchdog is not answered any more", || {
            self.listen();
            assert!(node.ended().is_none(), "{}", node.log());
            let last = self.heard.iter().rev().find(|(_, l)| l == "WATCHDOG=1").expect("one came before").0;
            let silent = last.elapsed();
            if silent > Duration::from_millis(2500) { Ok(()) } else { Err(format!("{silent:?}")) }
        });
    }
}

#[test]
fn a_leader_tells_that_it_is_ready_reloads_lives_and_stops() {
    let bed = Bed::new("notify");
    let mut manager = Manager::new(&bed);
    let seen = bed.path("seen");
    let hook = format!("\"env > {}\"", seen.display());
    let spec =
        manager.watch(&bed, bed.leader("leader")).set("before_cut", &hook).set("max_cut_delay", "\"1ms\"");
    let mut leader = spec.start();
    let ready = manager.wait("ready", 0, |l| l == "READY=1");
    manager.wait("the status", 0, |l| l.starts_with("STATUS=leader, ok"));
    // Three signs of life in turn, each within the time.
    until(within(30), "signs of life", || {
        let n = manager.pings(ready);
        if n >= 3 { Ok(()) } else { Err(format!("{n}")) }
    });
    // A reload by signal, and one by command.
    for by_signal in [true, false] {
        let from = manager.heard.len();
        if by_signal {
            leader.signal(nix::sys::signal::Signal::SIGHUP);
        } else {
            leader.reload("scrub_rate", "\"1M\"").expect("reload");
        }
        let at = manager.wait("reloading", from, |l| l == "RELOADING=1");
        let stamp = manager.wait("the time", at, |l| l.starts_with("MONOTONIC_USEC="));
        assert_eq!(stamp, at + 1, "in one datagram: {:?}", manager.lines(at));
        let usec: u128 = manager.heard[stamp].1["MONOTONIC_USEC=".len()..].parse().expect("a number");
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        let now = u128::try_from(now.tv_sec).expect("positive") * 1_000_000;
        assert!(usec > 0 && usec < now + 2_000_000 && usec + 60_000_000 > now, "{usec} is not about {now}");
        manager.wait("ready again", stamp, |l| l == "READY=1");
    }
    // A mistake is said, and the node is ready as before.
    let from = manager.heard.len();
    leader.reload("scrub_rate", "\"much\"").expect_err("refused");
    let at = manager.wait("ready again", from, |l| l == "READY=1");
    manager.wait("why not", at, |l| l.starts_with("STATUS=not reloaded: "));
    // A command that the node starts can't speak for it.
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // A directory that is never still needs the hook for an exact cut.
        for n in 0..3 {
            let (busy, done) = (leader.data().join(format!("busy{n}")), &done);
            scope.spawn(move || {
                while !done.load(Ordering::SeqCst) {
                    fs::write(&busy, vec![n; 100_000]).expect("write");
                }
            });
        }
        let ran = std::panic::catch_unwind(|| {
            until(within(20), "the hook ran", || {
                let text = fs::read_to_string(&seen).map_err(|e| e.to_string())?;
                if text.contains("PATH=") { Ok(()) } else { Err(text) }
            });
        });
        done.store(true, Ordering::SeqCst);
        assert!(ran.is_ok());
    });
    let text = fs::read_to_string(&seen).expect("read");
    assert!(!text.contains("NOTIFY_SOCKET") && !text.contains("WATCHDOG_"), "{text}");
    let from = manager.heard.len();
    leader.signal(nix::sys::signal::Signal::SIGTERM);
    manager.wait("stopping", from, |l| l == "STOPPING=1");
    assert!(leader.wait_end(within(30)).success());
}

#[test]
fn a_follower_is_ready_before_it_has_a_copy_and_tells_its_lag() {
    let bed = Bed::new("notify-follower");
    let mut manager = Manager::new(&bed);
    let leader = bed.leader("leader");
    let follower = manager.watch(&bed, bed.follower("follower", leader.listen));
    // Its leader is away: that is a state of a follower, and no reason to keep the boot waiting.
    let follower = follower.spawn();
    let ready = manager.wait("ready", 0, |l| l == "READY=1");
    manager.wait("cut off", 0, |l| l.starts_with("STATUS=follower, cut-off"));
    let leader = leader.start();
    fs::write(leader.data().join("a"), "x").expect("write");
    manager.wait("its lag", ready, |l| l.starts_with("STATUS=follower, ok, up to date"));
    assert!(manager.pings(ready) > 0);
    drop((follower, leader));
}

#[test]
fn an_engine_that_hangs_leaves_the_watchdog_unanswered() {
    // In turn the engine of a leader, its log, and the engine of a follower; whatever else of the node runs on.
    for (point, of_follower) in
        [("capture::before_commit", false), ("log::sync", false), ("apply::before_batch", true)]
    {
        let bed = Bed::new("watchdog");
        let mut manager = Manager::new(&bed);
        let (mut leader, mut follower) = (bed.leader("leader").armed(), None);
        if !of_follower {
            leader = manager.watch(&bed, leader);
        }
        let mut leader = leader.start();
        if of_follower {
            let spec = manager.watch(&bed, bed.follower("follower", leader.spec.listen)).armed();
            follower = Some(spec.start());
        }
        fs::write(leader.data().join("a"), "1").expect("write");
        let ready = manager.wait("ready", 0, |l| l == "READY=1");
        until(within(30), "signs of life", || {
            if manager.pings(ready) >= 2 { Ok(()) } else { Err(format!("{:?}", manager.lines(0))) }
        });
        let hangs = follower.as_mut().unwrap_or(&mut leader);
        hangs.arm(&format!("{point}=sleep:600000"));
        fs::write(leader.data().join("a"), "2").expect("write");
        manager.falls_silent(follower.as_mut().unwrap_or(&mut leader));
    }
}
