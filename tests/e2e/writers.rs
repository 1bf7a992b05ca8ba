//! Ways to write: after quiet, trees are equal within three seconds.

use std::fs;
use std::time::{Duration, Instant};

use crate::support::bed::{c_program, run, soak_or};
use crate::support::node::lsn;
use crate::support::{Pair, within};

const MODES: &[&str] =
    &["buffered", "odirect", "libaio", "io_uring", "mmap", "holes", "truncate", "append", "copy"];

#[test]
fn every_way_to_write_is_seen_within_three_seconds_of_quiet() {
    // The product's own polling interval, not the quick one of the other tests.
    let pair = Pair::with(
        crate::support::Bed::new("writers"),
        |s| s.set("hot_interval", "\"1s\""),
        |s| s.set("hot_interval", "\"1s\""),
    );
    let program = c_program("writers", &["-laio", "-luring"]);
    for mode in MODES {
        let file = pair.data().join(mode);
        let path = file.to_str().expect("path");
        for (round, hold) in [(1, "0"), (2, "0"), (3, "30")] {
            let before = fs::read(&file).unwrap_or_default();
            if !run(&program, &[mode, path, &round.to_string(), hold]) {
                break;
            }
            assert!(fs::read(&file).expect("read") != before, "{mode} changed nothing");
            let quiet = Instant::now();
            pair.equal_in(Duration::from_secs(3));
            println!("{mode} round {round}: equal {:?} after quiet", quiet.elapsed());
        }
    }
    pair.finish();
}

#[test]
fn writers_that_keep_the_file_open_are_seen() {
    let pair = Pair::start("open");
    let program = c_program("writers", &["-laio", "-luring"]);
    for mode in ["libaio", "mmap", "odirect", "io_uring", "buffered"] {
        let file = pair.data().join(format!("{mode}.open"));
        // It holds the file (mmap: the mapping, with stores into dirty pages) for 8 s after its last write.
        let held = std::process::Command::new(&program).args([mode]).arg(&file).args(["4", "8000"]).spawn();
        let mut held = held.expect("start");
        std::thread::sleep(Duration::from_millis(1500));
        let ended = held.try_wait().expect("wait");
        if ended.is_some_and(|s| s.code() == Some(77)) {
            println!("skipped on this host: {mode}");
            continue;
        }
        pair.equal_in(Duration::from_secs(4));
        assert!(fs::metadata(&file).expect("stat").len() > 0);
        let _ = held.kill();
        let _ = held.wait();
        pair.equal_in(Duration::from_secs(3));
    }
    pair.finish();
}

/// Changes that make no event, again and again, in a file that stays open.
fn stores(mode: &str) {
    use std::io::{BufRead, BufReader, Write};
    use std::process::Stdio;
    let pair = Pair::start(mode);
    let file = pair.data().join("kept-open");
    let mut command = std::process::Command::new(c_program("writers", &["-laio", "-luring"]));
    command.arg(mode).arg(&file).arg("6").stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().expect("start");
    let mut asked = child.stdin.take().expect("stdin");
    let mut answers = BufReader::new(child.stdout.take().expect("stdout")).lines();
    let mut before = Vec::new();
    for _ in 0..6 {
        let written = writeln!(asked, "again");
        let Some(answer) = answers.next() else {
            assert_eq!(child.wait().expect("wait").code(), Some(77), "the writer ended");
            println!("skipped on this host: {mode}");
            return;
        };
        written.expect("ask");
        assert_eq!(answer.expect("text"), "stored");
        let now = fs::read(&file).expect("read");
        assert!(now != before, "nothing was stored");
        before = now;
        pair.equal_in(Duration::from_secs(4));
    }
    // Just before it is closed.
    writeln!(asked, "again").expect("ask");
    drop(asked);
    assert!(child.wait().expect("wait").success());
    pair.equal_in(Duration::from_secs(4));
    pair.finish();
}

#[test]
fn stores_into_dirty_pages_are_seen() {
    stores("stores");
}

#[test]
fn stores_through_a_mapping_that_is_soon_gone_are_seen() {
    let pair = Pair::start("brief");
    let program = c_program("writers", &["-laio", "-luring"]);
    for n in 0..soak_or(400, 40) {
        let file = pair.data().join(format!("brief{n}"));
        assert!(run(&program, &["brief", file.to_str().expect("path"), &n.to_string(), "0"]));
    }
    pair.equal(15);
    pair.finish();
}

#[test]
fn writes_by_libaio_into_an_open_file_are_seen() {
    stores("aiostores");
}

#[test]
fn changed_pages_ship_and_no_more() {
    use std::os::unix::fs::FileExt;
    let pair = Pair::start("pages");
    let path = pair.data().join("db");
    let page: Vec<u8> = (0..8192).map(|_| fastrand::u8(..)).collect();
    let file = fs::File::options().create(true).truncate(true).write(true).open(&path).expect("open");
    for i in 0..8192_u64 {
        file.write_all_at(&page, i * 8192).expect("write");
    }
    pair.equal(60);
    let log = || lsn(&pair.leader.status().expect("status").end());
    let before = log();
    file.write_all_at(b"changed", 4097 * 8192).expect("write");
    pair.equal(5);
    let shipped = log() - before;
    assert!(shipped > 0 && shipped <= 64 << 10, "{shipped} bytes of log for one page");
    // Touched and rewritten with the same bytes: attributes travel, content does not.
    let before = log();
    for i in 0..8192_u64 {
        if i != 4097 {
            file.write_all_at(&page, i * 8192).expect("write");
        }
    }
    pair.equal(10);
    let shipped = log() - before;
    assert!(shipped > 0 && shipped <= 64 << 10, "{shipped} bytes of log for no change");
    pair.finish();
}

#[test]
fn a_name_outside_of_the_tree_writes_too() {
    let pair = Pair::start("outside-link");
    let inside = pair.data().join("f");
    let outside = pair.bed.path("g");
    fs::write(&inside, "one").expect("write");
    fs::hard_link(&inside, &outside).expect("link");
    pair.equal(5);
    fs::write(&outside, "changed by a name that no watch sees").expect("write");
    pair.equal(3);
    assert_eq!(fs::read(pair.follower.data().join("f")).expect("read"), fs::read(&outside).expect("read"));
    // An append with the times set back: only the change time tells.
    let times = fs::metadata(&outside).expect("stat").modified().expect("mtime");
    fs::write(&outside, "CHANGED BY A NAME THAT NO WATCH SEES").expect("write");
    fs::File::options().write(true).open(&outside).expect("open").set_modified(times).expect("utimes");
    pair.equal(3);
    pair.finish();
}

#[test]
fn many_processes_write_at_once() {
    let pair = Pair::start("many");
    let program = c_program("writers", &["-laio", "-luring"]);
    let mut children = Vec::new();
    for (i, mode) in MODES.iter().cycle().take(24).enumerate() {
        let file = pair.data().join(format!("{mode}-{}", i % 12));
        let child = std::process::Command::new(&program).arg(mode).arg(file).arg(i.to_string()).spawn();
        children.push(child.expect("start"));
    }
    for mut child in children {
        let status = child.wait().expect("wait");
        assert!(status.success() || status.code() == Some(77), "{status}");
    }
    pair.equal(10);
    std::thread::sleep(within(1));
    pair.finish();
}
