//! Base backups in form tree: what they hold, what is refused, and what stays when one fails.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;

use super::full::{Small, noise};
use crate::support::backup::{Backup, WORK, checked, forgotten};
use crate::support::bed::free_port;
use crate::support::node::lsn;
use crate::support::{Bed, Load, Node, Pair, Proxy, assert_equal, load, until, within};

/// A leader with something of everything.
fn leader(bed: &Bed) -> Node {
    let spec = bed.leader("leader");
    let data = spec.data.clone();
    load::burst(&data.join("load"), 5, 400);
    let name = |bytes: &[u8]| data.join(OsStr::from_bytes(bytes));
    fs::write(name(b"not \xff UTF-8"), "x").expect("write");
    fs::write(name(b"a=b,c d\n"), "y").expect("write");
    let deep = data.join("d".repeat(120)).join("e".repeat(255));
    fs::create_dir_all(&deep).expect("mkdir");
    fs::write(deep.join("f".repeat(250)), noise(300_000)).expect("write");
    for (path, mode) in [("closed", 0o700), ("open", 0o750)] {
        let dir = data.join(path);
        fs::create_dir(&dir).expect("mkdir");
        fs::write(dir.join("file"), path).expect("write");
        fs::set_permissions(dir.join("file"), fs::Permissions::from_mode(mode & 0o666)).expect("chmod");
        fs::set_permissions(&dir, fs::Permissions::from_mode(mode)).expect("chmod");
    }
    spec.start()
}

fn entries(dir: &Path) -> usize {
    fs::read_dir(dir).map_or(0, Iterator::count)
}

/// Small files that are not empty, in the data of a backup under way.
fn files(out: &Path) -> impl Iterator<Item = PathBuf> {
    let all = walkdir::WalkDir::new(out.join("data")).into_iter().flatten();
    let fits =
        |e: &walkdir::DirEntry| e.metadata().is_ok_and(|m| m.is_file() && (1..1 << 20).contains(&m.len()));
    all.filter(fits).map(walkdir::DirEntry::into_path)
}

/// Waits for a backup to be seen on the node, in this state.
fn seen(node: &Node, state: &str) -> Value {
    until(within(30), &format!("a backup that is {state}"), || {
        let status = node.status()?.0;
        let found = status["backups"].as_array().into_iter().flatten().find(|b| b["state"] == state);
        found.cloned().ok_or_else(|| status["backups"].to_string())
    })
}

#[test]
fn a_tree_is_the_directory_and_an_idle_node_gives_it_at_once() {
    let bed = Bed::new("tree");
    let leader = leader(&bed);
    let out = bed.path("new/backup");
    until(within(30), "the leader is at rest", || {
        let cuts = leader.status()?.0["capture"]["unhashed_files"].as_u64();
        if cuts == Some(0) { Ok(()) } else { Err(format!("{cuts:?} unhashed")) }
    });
    let began = Instant::now();
    let manifest = Backup::new(leader.spec.listen, &out).args(["--label", "first"]).good();
    assert!(began.elapsed() < within(20), "{:?} for an idle directory", began.elapsed());
    assert!(manifest.exact && manifest.label == "first" && manifest.base.is_none());
    assert_eq!(fs::metadata(&out).expect("stat").permissions().mode() & 0o777, 0o700);
    assert_equal(leader.data(), &out.join("data"));
    let status = leader.status().expect("status");
    assert_eq!(status.0["system"].as_str(), Some(&*manifest.system.to_string()));
    assert_eq!(manifest.end.0, lsn(&status.exact()));
    assert_eq!((status.followers().len(), status.0["slots"].as_array().map(Vec::len)), (0, Some(0)));
    forgotten(&leader);
    // And nothing but a new or an empty directory is taken.
    let before = checked(&out);
    let said = Backup::new(leader.spec.listen, &out).fails(1);
    assert!(said.contains("holds a backup already"), "{said}");
    assert_eq!(before, checked(&out));
}

#[test]
fn what_is_refused_is_refused_by_name_and_nothing_is_touched() {
    let bed = Bed::new("backup-refused");
    let (full, new, file) = (bed.path("full"), bed.path("new"), bed.path("file"));
    fs::create_dir(&full).expect("mkdir");
    fs::write(full.join("kept"), "x").expect("write");
    fs::write(&file, "x").expect("write");
    let (port, none) = (free_port(), ["--retry-timeout", "0s"]);
    for (out, words, code, word) in [
        (&full, &none[..], 1, "is not empty"),
        (&full, &["--resume"], 1, "no unfinished backup"),
        (&file, &none, 1, "cannot list"),
        (&new, &["--resume"], 1, "no unfinished backup"),
        (&new, &none, 1, "could not be reached"),
        (&new, &["--label", "../x"], 64, "is no label"),
        (&new, &["--max-rate", "x"], 64, "--max-rate"),
        (&new, &["--nonsense"], 64, "--nonsense"),
        (&new, &["--state", "/nowhere/x", "--name", "a b"], 64, "a b"),
    ] {
        let said = Backup::new(port, out).args(words).fails(code);
        assert!(said.contains(word), "{words:?}: {said}");
    }
    assert!(!new.exists() && entries(&full) == 1);
}

#[test]
fn a_backup_is_seen_counts_for_nobody_and_holds_log_while_it_lives() {
    let bed = Bed::new("backup-seen");
    let spec = bed.leader("leader");
    fs::write(spec.data.join("big"), noise(6 << 20)).expect("write");
    let leader = spec.set("keep_segments", "0").set("segment_timeout", "\"500ms\"").start();
    let out = bed.path("backup");
    let mut running = Backup::new(leader.spec.listen, &out)
        .args(["--max-rate", "256k", "--name", "nightly", "--progress"])
        .start();
    let first = seen(&leader, "copying");
    assert_eq!((&first["name"], &first["files_total"]), (&"nightly".into(), &1.into()), "{first}");
    assert_eq!(first["bytes_total"], 6 << 20);
    let status = leader.status().expect("status");
    assert_eq!((status.followers().len(), status.0["slots"].as_array().map(Vec::len)), (0, Some(0)));
    let (code, answer) = leader.wait_confirmed(&["--timeout", "2s", "--for", "ANY 1 (nightly)"]);
    assert_eq!(code, 1, "a backup confirms nothing: {answer}");
    let hint = answer["hint"].as_str().unwrap_or_default();
    assert!(hint.contains("no follower named 'nightly' was ever here"), "{answer}");
    let oldest = leader.segments()[0].clone();
    let grown = |n: usize| {
        until(within(30), "more segments", || {
            fs::write(leader.data().join("small"), fastrand::u64(..).to_string()).expect("write");
            let count = fs::read_dir(leader.spec.state.join("log")).map_or(0, Iterator::count);
            if count >= n { Ok(()) } else { Err(format!("{count} segments")) }
        });
    };
    grown(4);
    assert!(oldest.with_extension("").exists() || oldest.exists(), "what the backup needs is held");
    running.signal(Signal::SIGKILL);
    running.wait();
    assert!(!out.join("manifest.json").exists());
    forgotten(&leader);
    let name = oldest.file_stem().expect("a name").to_owned();
    until(within(60), "what it held is removed", || {
        fs::write(leader.data().join("small"), fastrand::u64(..).to_string()).expect("write");
        let there = leader.segments().iter().any(|p| p.file_stem() == Some(&*name));
        if there { Err("the oldest segment is still there".to_owned()) } else { Ok(()) }
    });
}

#[test]
fn one_that_fails_removes_what_it_made_and_one_that_is_kept_goes_on() {
    let bed = Bed::new("backup-fails");
    let leader = leader(&bed);
    fs::write(leader.data().join("big"), noise(8 << 20)).expect("write");
    let proxy = Proxy::to(leader.spec.listen);
    let (gone, kept) = (bed.path("gone"), bed.path("kept"));
    let begin = |out: &Path, words: &[&str]| {
        let mut command =
            Backup::new(proxy.port(), out).args(["--retry-timeout", "300ms", "--max-rate", "1M"]).args(words);
        let mut running = command.start();
        seen(&leader, "copying");
        until(within(30), "files in the copy", || {
            let found = files(out).count();
            if found > 3 { Ok(()) } else { Err(format!("{found} files")) }
        });
        proxy.refuse(true);
        proxy.cut();
        assert_eq!(running.wait().code(), Some(1));
        proxy.calm();
        forgotten(&leader);
    };
    begin(&gone, &[]);
    assert!(!gone.exists(), "nothing is left of it");
    fs::create_dir(&gone).expect("mkdir");
    begin(&gone, &[]);
    assert!(gone.exists() && entries(&gone) == 0, "what was there before stays, empty");
    begin(&kept, &["--keep-partial"]);
    assert!(kept.join(WORK).exists() && !kept.join("manifest.json").exists());
    let said = Backup::new(proxy.port(), &kept).fails(1);
    assert!(said.contains("--resume"), "{said}");
    // What is there is checked again: a file that was changed meanwhile is copied once more.
    fs::write(files(&kept).next().expect("a file"), "somebody was here").expect("write");
    Backup::new(proxy.port(), &kept).args(["--resume"]).good();
    assert_equal(leader.data(), &kept.join("data"));
}

#[test]
fn no_more_comes_than_the_rate_allows() {
    let bed = Bed::new("backup-rate");
    let spec = bed.leader("leader");
    fs::write(spec.data.join("big"), noise(4 << 20)).expect("write");
    let leader = spec.start();
    let began = Instant::now();
    Backup::new(leader.spec.listen, &bed.path("out")).args(["--max-rate", "2M"]).good();
    // A second's worth may have been saved up.
    assert!(began.elapsed() >= Duration::from_secs(1), "{:?} for 4 MiB at 2 MiB/s", began.elapsed());
}

#[test]
fn signals_clean_up() {
    let bed = Bed::new("backup-signals");
    let spec = bed.leader("leader");
    fs::write(spec.data.join("big"), noise(6 << 20)).expect("write");
    let leader = spec.start();
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let out = bed.path(signal.as_str());
        let mut running = Backup::new(leader.spec.listen, &out).args(["--max-rate", "256k"]).start();
        seen(&leader, "copying");
        running.signal(signal);
        assert_eq!(running.wait().code(), Some(1), "{signal}");
        assert!(!out.exists(), "{signal}");
        forgotten(&leader);
    }
}

#[test]
fn the_administrator_of_the_node_ends_a_backup_by_stopping_it() {
    let bed = Bed::new("backup-stopped");
    let spec = bed.leader("leader");
    fs::write(spec.data.join("big"), noise(6 << 20)).expect("write");
    let mut leader = spec.start();
    let out = bed.path("out");
    let mut command =
        Backup::new(leader.spec.listen, &out).args(["--max-rate", "256k", "--retry-timeout", "500ms"]);
    let mut running = command.start();
    seen(&leader, "copying");
    leader.stop();
    assert_eq!(running.wait().code(), Some(1));
    assert!(!out.exists());
    leader.restart();
    forgotten(&leader);
    Backup::new(leader.spec.listen, &out).good();
}

#[test]
fn two_at_once_and_one_from_a_follower_are_good() {
    let pair = Pair::start("backup-two");
    let work = Load::start(&pair.data().join("load"), 3, Duration::from_millis(3));
    let outs = [pair.bed.path("a"), pair.bed.path("b"), pair.bed.path("c")];
    let ports = [pair.leader.spec.listen, pair.leader.spec.listen, pair.follower.spec.listen];
    let mut commands: Vec<Backup> = ports.iter().zip(&outs).map(|(p, o)| Backup::new(*p, o)).collect();
    let mut running: Vec<_> = commands.iter_mut().map(Backup::start).collect();
    running.iter_mut().for_each(|r| assert_eq!(r.wait().code(), Some(0)));
    work.finish();
    let ends: Vec<_> = outs.iter().map(|out| checked(out)).collect();
    assert!(ends.iter().all(|m| m.exact && m.end >= m.start));
    forgotten(&pair.leader);
    forgotten(&pair.follower);
    // Nothing changes any more: one from either is the directory.
    pair.equal(30);
    for (node, name) in [(&pair.leader, "d"), (&pair.follower, "e")] {
        let out = pair.bed.path(name);
        Backup::new(node.spec.listen, &out).good();
        assert_equal(pair.data(), &out.join("data"));
    }
    pair.finish();
}

#[test]
fn a_full_disk_fails_it_and_leaves_nothing() {
    let bed = Bed::new("backup-full");
    let spec = bed.leader("leader");
    fs::write(spec.data.join("big"), noise(8 << 20)).expect("write");
    let leader = spec.start();
    let Some(_disk) = Small::mount(&bed.path("small"), "4M") else {
        println!("skipped: nothing can be mounted on this host");
        return;
    };
    let out = bed.path("small/out");
    let said = Backup::new(leader.spec.listen, &out).fails(1);
    assert!(said.contains("No space left"), "{said}");
    assert!(!out.exists());
    forgotten(&leader);
}

/// What a leader that is never at rest has: file cuts only, until it may rest.
#[test]
fn without_an_exact_cut_in_time_the_backup_says_so() {
    let bed = Bed::new("backup-inexact");
    let spec = bed.leader("leader").set("max_cut_delay", "\"20ms\"").set("hot_interval", "\"20ms\"");
    let data = spec.data.clone();
    let leader = spec.start();
    // Many writers that never rest: whatever a pass looks at has changed when it looks again.
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let writers: Vec<_> = (0..3)
        .map(|n| {
            let (stop, path) = (stop.clone(), data.join(format!("w{n}")));
            std::thread::spawn(move || {
                let file = fs::File::create(path).expect("create");
                let mut at = 0;
                while !stop.load(std::sync::atomic::Ordering::SeqCst) {
                    std::os::unix::fs::FileExt::write_all_at(&file, &noise(3000), at % 200_000)
                        .expect("write");
                    at += 1000;
                }
            })
        })
        .collect();
    until(within(30), "file cuts", || {
        let (exact, file) = leader.status()?.cuts();
        if file > 2 { Ok(()) } else { Err(format!("{exact} exact, {file} file")) }
    });
    let mut ended_so = 0;
    for i in 0..60 {
        let out = bed.path(format!("out{i}"));
        let run = Backup::new(leader.spec.listen, &out).args(["--exact-timeout", "0s", "--json"]).run();
        let manifest = checked(&out);
        let said: Value = serde_json::from_slice(&run.stdout).expect("JSON");
        assert_eq!(said["exact"], manifest.exact, "{said}");
        assert_eq!(run.status.code(), Some(if manifest.exact { 0 } else { 3 }));
        ended_so += usize::from(!manifest.exact);
        if ended_so > 0 {
            break;
        }
    }
    stop.store(true, std::sync::atomic::Ordering::SeqCst);
    writers.into_iter().for_each(|w| w.join().expect("a writer"));
    assert!(ended_so > 0, "no backup met a cut of files");
}

/// A follower that stands on a cut of files gives a copy that needs no log; an exact cut is waited for all the same.
#[test]
fn a_copy_that_stands_on_a_cut_of_files_waits_for_an_exact_one() {
    let pair = Pair::with(
        Bed::new("backup-waits"),
        |l| l.set("max_cut_delay", "\"20ms\"").set("hot_interval", "\"20ms\""),
        |f| f.set("apply_cuts", "\"file\""),
    );
    let stop = std::sync::atomic::AtomicBool::new(false);
    let (node, data) = (&pair.follower, pair.data());
    std::thread::scope(|scope| {
        for n in 0..3 {
            let (stop, path) = (&stop, data.join(format!("w{n}")));
            scope.spawn(move || {
                let file = fs::File::create(path).expect("create");
                while !stop.load(std::sync::atomic::Ordering::SeqCst) {
                    let at = fastrand::u64(..200_000);
                    std::os::unix::fs::FileExt::write_all_at(&file, &noise(3000), at).expect("write");
                }
            });
        }
        let rested = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            until(within(60), "a rest on a cut of files", || {
                let rest = node.try_pause()?;
                if rest.cut == "file" {
                    return Ok(());
                }
                node.resume();
                Err(format!("the cut is {}", rest.cut))
            });
        }));
        stop.store(true, std::sync::atomic::Ordering::SeqCst);
        rested.unwrap_or_else(|e| std::panic::resume_unwind(e));
    });
    // What is written last has come to the follower's log, at least.
    assert_eq!(pair.leader.wait_confirmed(&["--level", "flush"]).0, 0);
    let (tree, tar) = (pair.bed.path("tree"), pair.bed.path("out.tar"));
    let port = node.spec.listen;
    let short = Backup::new(port, &pair.bed.path("short")).args(["--exact-timeout", "0s"]).run();
    let made = Backup::new(port, &tree).good();
    assert!(made.exact);
    let streamed = Backup::new(port, Path::new("-")).run_into(fs::File::create(tar).expect("create").into());
    assert_eq!(streamed.status.code(), Some(0));
    assert!(matches!(short.status.code(), Some(0 | 3)));
    node.resume();
    pair.equal(30);
    assert_equal(pair.data(), &tree.join("data"));
}

fn towline_ok(words: &[&OsStr]) -> Vec<u8> {
    let out = std::process::Command::new(crate::support::node::towline()).args(words).output().expect("run");
    assert!(out.status.success(), "{words:?}: {}", String::from_utf8_lossy(&out.stderr));
    out.stdout
}

fn key(state: &Path) -> String {
    let id = towline_ok(&["id".as_ref(), "--json".as_ref(), "--state".as_ref(), state.as_ref()]);
    let id: Value = serde_json::from_slice(&id).expect("JSON");
    id["fingerprint"].as_str().expect("a fingerprint").to_owned()
}

fn trusts(state: &Path, name: &str, key: &str, role: &str) {
    let words: [&OsStr; 7] = [
        "trust".as_ref(),
        name.as_ref(),
        key.as_ref(),
        "--state".as_ref(),
        state.as_ref(),
        "--role".as_ref(),
        role.as_ref(),
    ];
    towline_ok(&words);
}

#[test]
fn the_role_of_a_backup_suffices_for_one_and_for_nothing_else() {
    let bed = Bed::new("backup-role");
    let spec = bed.leader("leader").set("name", "\"alpha\"");
    fs::write(spec.data.join("file"), noise(100_000)).expect("write");
    // The same key, as a backup and as a follower of the name.
    let follower = bed.follower("vault", spec.listen);
    let (alpha, vault) = (key(&spec.state), key(&follower.state));
    trusts(&spec.state, "vault", &vault, "backup");
    trusts(&follower.state, "alpha", &alpha, "leader");
    let leader = spec.start();
    let out = bed.path("out");
    let words = |out: &Path| {
        Backup::new(leader.spec.listen, out)
            .args(["--name", "vault", "--state"])
            .args([&follower.state])
            .args(["--tls", "on"])
    };
    words(&out).good();
    assert_equal(leader.data(), &out.join("data"));
    // As a follower it gets neither a copy nor log.
    let refused = follower.start();
    until(within(30), "it is refused as a follower", || {
        let status = refused.status()?;
        let code = status.upstream_code();
        if code == "not-allowed" { Ok(()) } else { Err(status.0["upstream"].to_string()) }
    });
    assert!(entries(refused.data()) == 0 && leader.status().expect("status").followers().is_empty());
    drop(refused);
    // And without the role no backup.
    trusts(&leader.spec.state, "vault", &vault, "monitor");
    let said = words(&bed.path("out2")).fails(1);
    assert!(said.contains("--role backup"), "{said}");
    assert!(!bed.path("out2").exists());
    // Plain TCP gets nothing at all.
    let plain = Backup::new(leader.spec.listen, &bed.path("out3")).args(["--tls", "off"]).fails(1);
    assert!(plain.contains("TLS"), "{plain}");
}
