//! Garbage in segments, in messages and on the port: a named error, no panic, no large allocation.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::time::Duration;

use crate::support::bed::{Bed, free_port, soak_or};
use crate::support::node::{Node, log_verify};
use crate::support::proxy::Way;
use crate::support::{Pair, Proxy, assert_equal_within, load, until, within};

/// Most resident memory, in kB, under any garbage.
const MEMORY_KB: u64 = 300 << 10;

/// A small sealed segment.
fn sealed(bed: &Bed) -> Vec<u8> {
    let mut leader = bed.leader("leader").set("segment_timeout", "\"500ms\"").start();
    load::burst(&leader.data().join("app"), 3, 40);
    let segment = until(within(20), "a sealed segment", || {
        leader.segments().into_iter().find(|s| s.extension().is_none()).ok_or_else(|| "none".into())
    });
    leader.stop();
    let name = segment.file_name().expect("name").to_owned();
    let bytes = fs::read(&segment).expect("read");
    fs::write(bed.path(name), &bytes).expect("write");
    bytes
}

/// Verifies a damaged segment; returns the exit code.
fn verify(dir: &Path, bytes: &[u8]) -> i32 {
    let path = dir.join("000000010000000000000001");
    fs::write(&path, bytes).expect("write");
    let out = log_verify(&path);
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    let code = out.status.code().unwrap_or_else(|| panic!("a signal: {text}"));
    assert!(!text.contains("panicked") && code != 101, "a panic: {text}");
    assert!(code == 0 || !text.trim().is_empty() || !out.stdout.is_empty(), "failed without a word");
    code
}

#[test]
fn every_damaged_byte_of_a_segment_is_found() {
    let bed = Bed::new("segment");
    let good = sealed(&bed);
    assert_eq!(verify(&bed.path(""), &good), 0, "the whole one is good");
    let headers = 400.min(good.len());
    let tail = good.len().saturating_sub(160);
    let some = (headers..tail).filter(|_| fastrand::usize(..good.len()) < soak_or(3000, 100));
    let places: Vec<usize> = (0..headers).chain(some).chain(tail..good.len()).collect();
    for at in places {
        let mut bad = good.clone();
        bad[at] ^= 1 << fastrand::u8(..8);
        assert_ne!(verify(&bed.path(""), &bad), 0, "a flip at {at} of {} went unnoticed", good.len());
        if at % 4 == 0 {
            bad[at..(at + 4).min(good.len())].fill(0xff);
            if bad == good {
                continue;
            }
            assert_ne!(verify(&bed.path(""), &bad), 0, "0xff at {at} went unnoticed");
        }
    }
}

#[test]
fn every_truncation_of_a_segment_is_told_from_a_whole_one() {
    let bed = Bed::new("truncated");
    let good = sealed(&bed);
    let step = (good.len() / soak_or(5000, 250)).max(1);
    let ends = (0..good.len()).step_by(step).chain(good.len().saturating_sub(60)..good.len()).chain(0..120);
    for end in ends {
        let code = verify(&bed.path(""), &good[..end]);
        assert_ne!(code, 0, "a sealed segment cut at {end} of {} passes", good.len());
    }
    let mut long = good.clone();
    long.extend_from_slice(b"behind the trailer");
    assert_ne!(verify(&bed.path(""), &long), 0, "bytes behind the trailer pass");
    assert_ne!(verify(&bed.path(""), &[]), 0);
    let noise: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..)).take(100_000).collect();
    assert_ne!(verify(&bed.path(""), &noise), 0);
    assert_ne!(verify(&bed.path(""), &vec![0; 100_000]), 0);
}

#[test]
fn a_follower_with_a_damaged_log_heals() {
    let mut pair = Pair::with(
        Bed::new("damaged"),
        |s| s.set("segment_timeout", "\"500ms\""),
        |s| s.set("segment_timeout", "\"500ms\""),
    );
    load::burst(&pair.data().join("app"), 1, 100);
    pair.equal(15);
    pair.follower.pause();
    // What is not applied fills segments of its own.
    let count = |pair: &Pair| pair.follower.segments().iter().filter(|s| s.extension().is_none()).count();
    let before = count(&pair);
    until(within(20), "sealed segments that are not applied", || {
        load::burst(&pair.data().join("app"), 2, 20);
        let now = count(&pair);
        if now >= before + 2 { Ok(()) } else { Err(format!("{now}")) }
    });
    pair.follower.kill();
    // The newest sealed segment holds what is not yet applied.
    let sealed: Vec<_> = pair.follower.segments().into_iter().filter(|s| s.extension().is_none()).collect();
    let segment = sealed.last().expect("a sealed segment");
    let mut bytes = fs::read(segment).expect("read");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    fs::write(segment, bytes).expect("write");
    pair.follower = pair.follower.spec.spawn();
    pair.equal(30);
    let name = segment.file_name().expect("name");
    let theirs = fs::read(pair.leader.spec.state.join("log").join(name)).expect("read");
    assert!(fs::read(segment).expect("read") == theirs, "the good copy is in its place");
    pair.follower.assert_no_panic();
}

/// Sends bytes to a node, reads what comes for a moment, and returns it.
fn poke(port: u16, bytes: &[u8]) -> Vec<u8> {
    let Ok(mut s) = TcpStream::connect(("127.0.0.1", port)) else { return Vec::new() };
    let _ = s.write_all(bytes);
    let _ = s.set_read_timeout(Some(Duration::from_millis(20)));
    let mut got = vec![0; 4096];
    let n = s.read(&mut got).unwrap_or(0);
    got.truncate(n);
    got
}

fn healthy(node: &mut Node) {
    assert!(node.ended().is_none(), "{} died", node.spec.name);
    node.assert_no_panic();
    node.status().expect("it answers");
    let peak = node.memory_kb("VmHWM");
    assert!(peak < MEMORY_KB, "{} used {peak} kB", node.spec.name);
}

#[test]
fn random_bytes_to_the_port_harm_nobody() {
    let mut pair = Pair::start("noise");
    for i in 0..soak_or(2000, 200) {
        let length = if i % 3 == 0 { fastrand::usize(..20) } else { fastrand::usize(..5000) };
        let mut noise: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..)).take(length).collect();
        if i % 5 == 0 {
            // Huge lengths, in either byte order.
            noise.iter_mut().take(16).for_each(|b| *b = 0xff);
        }
        poke(pair.leader.spec.listen, &noise);
    }
    // Connections that say nothing are given up, and don't keep others out.
    let silent: Vec<_> =
        (0..20).filter_map(|_| TcpStream::connect(("127.0.0.1", pair.leader.spec.listen)).ok()).collect();
    load::burst(&pair.data().join("app"), 1, 50);
    pair.equal(10);
    std::thread::sleep(within(5));
    for mut s in silent {
        s.set_read_timeout(Some(within(5))).expect("timeout");
        let end = s.read(&mut [0; 64]);
        assert!(
            !matches!(&end, Err(e) if e.kind() == std::io::ErrorKind::WouldBlock),
            "a silent peer is kept: {end:?}"
        );
    }
    healthy(&mut pair.leader);
    pair.finish();
}

#[test]
fn a_damaged_hello_is_refused() {
    let bed = Bed::new("hello");
    let mut leader = bed.leader("leader").start();
    load::burst(&leader.data().join("app"), 1, 50);
    let proxy = Proxy::to(leader.spec.listen);
    let follower = bed.follower("follower", proxy.port()).start();
    assert_equal_within(within(15), leader.data(), follower.data());
    drop(follower);
    let said = proxy.recorded(Way::Up);
    assert!(said.len() > 20, "a recorded hello of {} bytes", said.len());
    let hello = &said[..said.len().min(300)];
    assert!(!poke(leader.spec.listen, hello).is_empty(), "the recorded hello itself is answered");
    for at in 0..hello.len() {
        for change in [1_u8 << fastrand::u8(..8), 0xff] {
            let mut bad = hello.to_vec();
            bad[at] ^= change;
            poke(leader.spec.listen, &bad);
        }
        poke(leader.spec.listen, &hello[..at]);
    }
    healthy(&mut leader);
    let again = bed.follower("again", leader.spec.listen).start();
    assert_equal_within(within(15), leader.data(), again.data());
}

/// A false leader: answers each connection with the next of `answers`.
fn false_leader(port: u16, answers: Vec<Vec<u8>>) -> std::thread::JoinHandle<usize> {
    let listener = TcpListener::bind(("127.0.0.1", port)).expect("bind");
    listener.set_nonblocking(true).expect("nonblocking");
    std::thread::spawn(move || {
        let end = std::time::Instant::now() + within(soak_or(300, 40));
        let mut given = 0;
        while given < answers.len() && std::time::Instant::now() < end {
            let Ok((mut s, _)) = listener.accept() else {
                std::thread::sleep(Duration::from_millis(5));
                continue;
            };
            let _ = s.set_nonblocking(false);
            let _ = s.set_read_timeout(Some(Duration::from_millis(200)));
            let _ = s.read(&mut [0; 4096]);
            let _ = s.write_all(&answers[given]);
            let _ = s.set_read_timeout(Some(Duration::from_millis(30)));
            let _ = s.read(&mut [0; 4096]);
            given += 1;
        }
        given
    })
}

#[test]
fn a_damaged_answer_harms_no_follower() {
    let bed = Bed::new("answer");
    let leader = bed.leader("leader").start();
    load::burst(&leader.data().join("app"), 1, 30);
    let proxy = Proxy::to(leader.spec.listen);
    let first = bed.follower("first", proxy.port()).start();
    assert_equal_within(within(15), leader.data(), first.data());
    drop(first);
    let said = proxy.recorded(Way::Down);
    assert!(said.len() > 200, "a recorded answer of {} bytes", said.len());
    let mut answers = Vec::new();
    for i in 0..soak_or(600, 40) {
        let mut bad = said[..said.len().min(20_000)].to_vec();
        let at =
            if i % 2 == 0 { fastrand::usize(..120.min(bad.len())) } else { fastrand::usize(..bad.len()) };
        match i % 4 {
            0 | 1 => bad[at] ^= 1 << fastrand::u8(..8),
            2 => bad[at..(at + 8).min(said.len().min(20_000))].fill(0xff),
            _ => bad.truncate(at),
        }
        answers.push(bad);
    }
    let port = free_port();
    let liar = false_leader(port, answers);
    let mut victim = bed.follower("victim", port).start();
    let given = liar.join().expect("false leader");
    assert!(given >= 5, "the follower came back only {given} times");
    println!("{given} damaged answers given");
    healthy(&mut victim);
    // Nothing was believed: with the true leader it becomes what it should be, or says why not.
    victim.stop();
    victim.spec.upstream = Some(leader.spec.listen);
    victim.restart();
    assert_equal_within(within(30), leader.data(), victim.data());
}

type Harm = fn(&Path);

/// What the state directory lost while the leader was down is said, and nothing is given out a second time.
#[test]
fn a_leader_that_lost_part_of_its_state_says_so_and_gives_nothing_out_twice() {
    let lose: [(&str, &str, Harm); 4] = [
        ("catalog", "checkpoint", |state| empty(&state.join("catalog"))),
        ("log", "segments are missing", |state| empty(&state.join("log"))),
        ("end", "segments are missing", |state| {
            let last = segments(state).pop().expect("a segment");
            fs::remove_file(last).expect("rm");
        }),
        ("rot", "SHA-256", |state| {
            let last = segments(state).pop().expect("a segment");
            let mut bytes = fs::read(&last).expect("read");
            let middle = bytes.len() / 2;
            bytes[middle] ^= 4;
            fs::write(&last, bytes).expect("write");
        }),
    ];
    for (name, word, harm) in lose {
        let mut pair =
            Pair::with(Bed::new(&format!("lost-{name}")), |s| s.set("segment_timeout", "\"200ms\""), |s| s);
        for round in 0..3 {
            load::burst(&pair.data().join("app"), round, 100);
            pair.equal(20);
            until(within(20), "the segment is sealed", || {
                let open = segments(&pair.leader.spec.state).iter().any(|p| p.extension().is_some());
                if open { Err("a segment is open".into()) } else { Ok(()) }
            });
        }
        pair.leader.stop();
        harm(&pair.leader.spec.state);
        fs::write(pair.data().join("later"), "written while it was down").expect("write");
        let leader = pair.leader.spec.spawn();
        until(within(20), "the loss is in the status", || {
            let text = leader.status()?.0.to_string();
            if text.contains(word) { Ok(()) } else { Err(text) }
        });
        assert!(!pair.follower.data().join("later").exists(), "{name}: nothing is served from there");
        assert!(pair.follower.status().is_ok(), "{name}: the follower is unharmed");
    }
}

fn empty(dir: &Path) {
    for entry in fs::read_dir(dir).expect("list").flatten() {
        fs::remove_file(entry.path()).expect("rm");
    }
}

fn segments(state: &Path) -> Vec<std::path::PathBuf> {
    let mut all: Vec<_> =
        fs::read_dir(state.join("log")).expect("list").flatten().map(|e| e.path()).collect();
    all.sort();
    all
}

/// Block hashes are towline's own: when their files are damaged, contents are read again and nobody diverges.
#[test]
fn damaged_block_hashes_cost_a_second_reading_and_no_more() {
    for (who, harm) in
        [("leader", 0), ("leader", 1), ("leader", 2), ("follower", 0), ("follower", 1), ("follower", 2)]
    {
        let mut pair = Pair::start(&format!("hashes-{who}-{harm}"));
        let file = pair.data().join("large");
        fs::write(&file, vec![7; 1 << 20]).expect("write");
        pair.equal(20);
        let node = if who == "leader" { &mut pair.leader } else { &mut pair.follower };
        node.stop();
        let mut harmed = 0;
        for sub in fs::read_dir(node.spec.state.join("blocks")).expect("list").flatten() {
            for entry in fs::read_dir(sub.path()).into_iter().flatten().flatten() {
                let mut bytes = fs::read(entry.path()).expect("read");
                match harm {
                    0 => fs::remove_file(entry.path()).expect("rm"),
                    1 => fs::write(entry.path(), &bytes[..bytes.len() / 2]).expect("cut"),
                    _ => {
                        bytes[33] ^= 1;
                        fs::write(entry.path(), bytes).expect("flip");
                    }
                }
                harmed += 1;
            }
        }
        assert!(harmed > 0, "a file of many blocks has a file of hashes");
        node.restart();
        let page = fs::File::options().write(true).open(&file).expect("open");
        std::os::unix::fs::FileExt::write_all_at(&page, &[9; 8192], 40_000).expect("write");
        drop(page);
        pair.equal(20);
        fs::write(pair.data().join("after"), "goes on").expect("write");
        pair.equal(10);
        pair.finish();
    }
}
