//! A network that cuts, stalls, delays, throttles, flips bytes and truncates.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread::JoinHandle;
use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::support::bed::{Bed, nap, soak_or};
use crate::support::{Load, Node, Proxy, assert_equal_within, load, until, within};

/// A leader, a proxy, and a follower behind it.
struct Far {
    leader: Node,
    follower: Node,
    proxy: Proxy,
    bed: Bed,
}

impl Far {
    fn start(name: &str) -> Self {
        let bed = Bed::new(name);
        let leader = bed.leader("leader").start();
        let proxy = Proxy::to(leader.spec.listen);
        let follower = bed.follower("follower", proxy.port()).start();
        let far = Self { leader, follower, proxy, bed };
        far.equal(30);
        far
    }

    fn equal(&self, seconds: u64) {
        assert_equal_within(within(seconds), self.leader.data(), self.follower.data());
    }

    fn finish(mut self) {
        self.proxy.calm();
        self.equal(60);
        until(within(20), "no error is left", || {
            for node in [&self.leader, &self.follower] {
                let status = node.status()?;
                if status.error_kind().is_some() {
                    return Err(status.0.to_string());
                }
            }
            Ok(())
        });
        self.follower.stop();
        self.leader.stop();
        self.leader.assert_no_panic();
        self.follower.assert_no_panic();
        drop(self.bed);
    }
}

/// Writes files that say what they should hold, replaced by rename.
fn stamped(dir: &Path, name: u32) {
    let body: Vec<u8> =
        std::iter::repeat_with(|| fastrand::u8(..)).take(fastrand::usize(100..20_000)).collect();
    let mut text = Sha256::digest(&body).to_vec();
    text.extend_from_slice(&body);
    fs::write(dir.join("aside"), text).expect("write");
    fs::rename(dir.join("aside"), dir.join(format!("s{name}"))).expect("rename");
}

fn stamp_holds(path: &Path) -> bool {
    // Held open, so that the content is of one file.
    let Ok(text) = fs::read(path) else { return true };
    text.len() > 32 && Sha256::digest(&text[32..])[..] == text[..32]
}

/// Reads all stamped files of a directory again and again.
struct Watcher {
    stop: Arc<AtomicBool>,
    read: Arc<AtomicU64>,
    thread: JoinHandle<Option<String>>,
}

impl Watcher {
    fn start(dir: &Path) -> Self {
        let (stop, read) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stop2, read2, dir) = (stop.clone(), read.clone(), dir.to_owned());
        let thread = std::thread::spawn(move || {
            while !stop2.load(SeqCst) {
                for e in fs::read_dir(&dir).into_iter().flatten().flatten() {
                    if e.file_name().to_string_lossy().starts_with('s') {
                        if !stamp_holds(&e.path()) {
                            return Some(e.path().display().to_string());
                        }
                        read2.fetch_add(1, SeqCst);
                    }
                }
                nap(5, 10);
            }
            None
        });
        Self { stop, read, thread }
    }

    fn finish(self) {
        self.stop.store(true, SeqCst);
        assert_eq!(self.thread.join().expect("watcher"), None, "a damaged file was applied");
        assert!(self.read.load(SeqCst) > 100, "the watcher saw hardly a file");
    }
}

#[test]
fn connections_cut_at_random() {
    let far = Far::start("cut");
    let load = Load::start(&far.leader.data().join("app"), fastrand::u64(..), Duration::from_millis(1));
    for _ in 0..soak_or(200, 12) {
        nap(20, 400);
        far.proxy.cut();
    }
    assert!(load.finish() > 500);
    assert!(far.proxy.accepted() >= 6, "it did not reconnect: {}", far.proxy.accepted());
    far.finish();
}

#[test]
fn a_stalled_connection_is_noticed_on_both_sides() {
    let far = Far::start("stall");
    for _ in 0..soak_or(10, 2) {
        let connections = far.proxy.accepted();
        far.proxy.stall(true);
        fs::write(far.leader.data().join("during"), format!("{connections}")).expect("write");
        // peer_timeout is 2 s: both give the connection up, the follower tries anew.
        until(within(8), "the follower tries a new connection", || {
            if far.proxy.accepted() > connections {
                Ok(())
            } else {
                Err(far.follower.status()?.0.to_string())
            }
        });
        until(within(8), "the leader gives the follower up", || {
            let status = far.leader.status()?;
            let live = status.followers().iter().any(|(_, state)| state == "streaming");
            if live { Err(status.0.to_string()) } else { Ok(()) }
        });
        far.proxy.stall(false);
        far.equal(15);
    }
    far.finish();
}

#[test]
fn a_frozen_peer_is_dropped_and_resumes() {
    let mut far = Far::start("frozen");
    far.follower.freeze(true);
    load::burst(&far.leader.data().join("app"), 1, 200);
    until(within(8), "the leader gives the follower up", || {
        let status = far.leader.status()?;
        let live = status.followers().iter().any(|(_, state)| state == "streaming");
        if live { Err(status.0.to_string()) } else { Ok(()) }
    });
    far.follower.freeze(false);
    far.equal(20);
    far.leader.freeze(true);
    until(within(8), "the follower gives the leader up", || {
        let status = far.follower.status()?;
        if status.upstream_state() == "streaming" { Err(status.0.to_string()) } else { Ok(()) }
    });
    far.leader.freeze(false);
    load::burst(&far.leader.data().join("app"), 2, 100);
    far.equal(20);
    far.finish();
}

#[test]
fn a_slow_network_is_followed() {
    let far = Far::start("slow");
    far.proxy.delay(40);
    load::burst(&far.leader.data().join("app"), 1, 100);
    far.equal(20);
    far.proxy.delay(0);
    far.proxy.throttle(400 << 10);
    let noise: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..)).take(2 << 20).collect();
    fs::write(far.leader.data().join("noise"), noise).expect("write");
    // Slower than the peer timeout, yet bytes flow: nobody may give up.
    let connections = far.proxy.accepted();
    far.equal(40);
    assert_eq!(far.proxy.accepted(), connections, "a slow connection was given up");
    far.finish();
}

#[test]
fn flipped_bytes_are_never_applied() {
    let far = Far::start("flip");
    let dir = far.leader.data().join("stamped");
    fs::create_dir(&dir).expect("mkdir");
    (0..20).for_each(|i| stamped(&dir, i));
    far.equal(10);
    let watcher = Watcher::start(&far.follower.data().join("stamped"));
    let wanted = soak_or(400, 25);
    far.proxy.flip(30_000);
    until(within(soak_or(600, 60)), "enough flips", || {
        stamped(&dir, fastrand::u32(..40));
        if far.proxy.flips() >= wanted { Ok(()) } else { Err(far.proxy.flips().to_string()) }
    });
    let connections = far.proxy.accepted();
    assert!(connections > 1, "damage went unnoticed: {} flips on one connection", far.proxy.flips());
    println!("{} bits flipped, {connections} connections", far.proxy.flips());
    far.proxy.calm();
    far.equal(30);
    watcher.finish();
    far.finish();
}

#[test]
fn a_fill_survives_cuts_flips_and_truncation() {
    let bed = Bed::new("fill-network");
    let spec = bed.leader("leader");
    let dir = spec.data.join("stamped");
    fs::create_dir_all(&dir).expect("mkdir");
    (0..400).for_each(|i| stamped(&dir, i));
    let leader = spec.start();
    let proxy = Proxy::to(leader.spec.listen);
    // A connection that ends after so many bytes can't fill at once: the copy must resume.
    proxy.truncate(600_000);
    let follower = bed.follower("follower", proxy.port()).start();
    let seen = |what: &str, done: &dyn Fn() -> bool| {
        until(within(90), what, || {
            let (_, down) = proxy.bytes();
            let now = format!("{} truncated, {} flips, {down} bytes", proxy.truncated(), proxy.flips());
            if done() { Ok(()) } else { Err(now) }
        });
    };
    // One after the other: a connection that is damaged soon never comes to be truncated.
    seen("a truncated connection", &|| proxy.truncated() >= 1);
    proxy.flip(400_000);
    seen("flipped bytes", &|| proxy.flips() >= 2);
    // With about 4 MB to copy, resuming needs little more than that; starting over each time never ends.
    assert_equal_within(within(90), leader.data(), follower.data());
    let (_, down) = proxy.bytes();
    println!("fill of 4 MB: {} truncations, {} flips, {down} bytes", proxy.truncated(), proxy.flips());
    // A directory that is being filled promises nothing; a filled one holds no flipped bit.
    for e in fs::read_dir(follower.data().join("stamped")).expect("list").flatten() {
        assert!(stamp_holds(&e.path()), "{}", e.path().display());
    }
    proxy.calm();
    Far { leader, follower, proxy, bed }.finish();
}

#[test]
fn a_first_copy_gets_on_though_every_connection_is_damaged_soon() {
    let bed = Bed::new("fill-flips");
    let spec = bed.leader("leader");
    let dir = spec.data.join("stamped");
    fs::create_dir_all(&dir).expect("mkdir");
    (0..300).for_each(|i| stamped(&dir, i));
    let leader = spec.start();
    let proxy = Proxy::to(leader.spec.listen);
    // Less than one message of a large batch comes over unharmed.
    proxy.flip(200_000);
    let follower = bed.follower("follower", proxy.port()).start();
    until(within(90), "the copy is whole", || {
        let status = follower.status()?;
        let now = || format!("{} flips, {} connections: {}", proxy.flips(), proxy.accepted(), status.0);
        if status.state() == "running" { Ok(()) } else { Err(now()) }
    });
    assert!(proxy.flips() >= 5, "hardly damaged: {}", proxy.flips());
    println!("{} flips, {} connections", proxy.flips(), proxy.accepted());
    for e in fs::read_dir(follower.data().join("stamped")).expect("list").flatten() {
        assert!(stamp_holds(&e.path()), "{}", e.path().display());
    }
    Far { leader, follower, proxy, bed }.finish();
}

#[test]
fn connections_truncated_at_every_length() {
    let far = Far::start("truncate");
    let mut after = 1_u64;
    while after < 60_000 {
        let before = far.proxy.truncated();
        far.proxy.truncate(after);
        far.proxy.cut();
        until(within(10), "a truncated connection", || {
            stamped(far.leader.data(), 1);
            if far.proxy.truncated() > before { Ok(()) } else { Err(format!("after {after} bytes")) }
        });
        after = after * 2 + fastrand::u64(..after + 10);
    }
    far.finish();
}

#[test]
fn a_leader_that_is_away_comes_back() {
    let mut far = Far::start("away");
    far.leader.kill();
    load::burst(&far.leader.data().join("app"), 1, 200);
    std::thread::sleep(within(3));
    let state = far.follower.status().expect("the follower answers without its leader").upstream_state();
    assert_ne!(state, "streaming");
    far.leader.restart();
    far.equal(20);
    far.proxy.refuse(true);
    far.proxy.cut();
    load::burst(&far.leader.data().join("app"), 2, 200);
    std::thread::sleep(within(2));
    far.proxy.refuse(false);
    far.equal(20);
    far.finish();
}
