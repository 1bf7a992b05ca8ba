//! What goes wrong on a node that was running: the process stays up and says what it is, since when, what to
//! do about it, and when it tries again; "behind" is another word than "will never catch up without help".

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::bed::Bed;
use crate::support::node::{Node, lsn};
use crate::support::{Pair, Spec, assert_equal, assert_equal_within, holds_for, load, until, within};

/// Segments of their own for every moment, and no checkpoint that makes them unneeded.
fn small_segments(spec: Spec) -> Spec {
    spec.set("segment_timeout", "\"500ms\"").set("checkpoint_interval", "\"1h\"")
}

fn sealed(node: &Node) -> Vec<PathBuf> {
    node.segments().into_iter().filter(|s| s.extension().is_none()).collect()
}

/// Writes on the leader until both logs hold `more` sealed segments more than now.
fn grow(pair: &Pair, more: usize) {
    let want = sealed(&pair.leader).len() + more;
    until(within(40), "more sealed segments", || {
        load::burst(&pair.data().join("app"), 2, 20);
        std::thread::sleep(std::time::Duration::from_millis(100));
        let have = sealed(&pair.leader).len().min(sealed(&pair.follower).len());
        if have >= want { Ok(()) } else { Err(format!("{have} of {want}")) }
    });
}

fn damage(file: &Path) {
    let mut bytes = fs::read(file).expect("read");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    fs::write(file, bytes).expect("write");
}

/// Waits for a state, and checks everything that `status` must say with it, in both forms.
fn stands_still(node: &mut Node, state: &str, kind: &str, word: &str) {
    until(within(30), &format!("{} says {state}", node.spec.name), || {
        if let Some(status) = node.ended() {
            panic!("{} ended: {status}\n{}", node.spec.name, node.log());
        }
        let status = node.status()?;
        let (text, remedy) = status.error_text();
        let said = status.state() == state && status.error_kind().as_deref() == Some(kind);
        let health = if state == "stalled" { "retrying" } else { "help" };
        if said && text.contains(word) && !remedy.is_empty() && status.is_dated() && status.health() == health
        {
            Ok(())
        } else {
            Err(status.0.to_string())
        }
    });
    let table = String::from_utf8_lossy(&node.ask(&["status"]).stdout).into_owned();
    for row in ["state", "health", "error", "remedy", "since"] {
        assert!(table.lines().any(|l| l.starts_with(row)), "no {row} in:\n{table}");
    }
}

#[test]
fn a_leader_with_a_damaged_log_stays_up_and_goes_on_with_a_good_copy() {
    let mut pair = Pair::with(Bed::new("bad-leader"), small_segments, small_segments);
    grow(&pair, 2);
    pair.leader.kill();
    let file = sealed(&pair.leader).pop().expect("a segment");
    let name = file.file_name().expect("name").to_str().expect("text").to_owned();
    let copy = pair.follower.spec.state.join("log").join(&name);
    damage(&file);
    pair.leader = pair.leader.spec.spawn();
    stands_still(&mut pair.leader, "corrupt", "corrupt", &name);
    // The application goes on meanwhile, and the follower waits.
    fs::write(pair.data().join("meanwhile"), "x").expect("write");
    until(within(15), "the follower is cut off", || {
        let status = pair.follower.status()?;
        if status.health() == "cut-off" && status.error_kind().is_none() {
            Ok(())
        } else {
            Err(status.0.to_string())
        }
    });
    // The same bytes are on the follower: what the remedy says.
    fs::copy(copy, &file).expect("copy");
    pair.leader.reload("max_delete", "60").expect("reload");
    pair.equal(30);
    pair.finish();
}

#[test]
fn a_leader_without_a_part_of_its_log_stays_up() {
    let mut pair = Pair::with(Bed::new("gone-leader"), small_segments, small_segments);
    grow(&pair, 3);
    // After a crash a segment that is needed is missing; after a clean stop, which writes a checkpoint, the end.
    for crash in [true, false] {
        pair.equal(15);
        if crash {
            pair.leader.kill();
        } else {
            pair.leader.stop();
        }
        let files = pair.leader.segments();
        let gone = if crash { &files[1..2] } else { &files[files.len() - 2..] };
        let aside = |file: &Path| pair.bed.path(file.file_name().expect("name"));
        for file in gone {
            fs::rename(file, aside(file)).expect("rename");
        }
        pair.leader = pair.leader.spec.spawn();
        stands_still(
            &mut pair.leader,
            "missing",
            "missing",
            if crash { "000002" } else { "segments are missing" },
        );
        for file in gone {
            fs::rename(aside(file), file).expect("rename");
        }
        pair.leader.reload("max_delete", if crash { "60" } else { "61" }).expect("reload");
        fs::write(pair.data().join("more"), crash.to_string()).expect("write");
        pair.equal(30);
    }
    pair.finish();
}

#[test]
fn a_follower_heals_its_log_from_its_leader() {
    let mut pair = Pair::with(Bed::new("heal"), small_segments, small_segments);
    grow(&pair, 4);
    pair.equal(15);
    pair.follower.kill();
    let files = sealed(&pair.follower);
    let [.., missing, damaged, _, last] = &files[..] else { panic!("{} segments", files.len()) };
    fs::remove_file(missing).expect("remove");
    damage(damaged);
    // The trailer of the newest one: even the end of the log can't be told from it.
    let mut bytes = fs::read(last).expect("read");
    let end = bytes.len() - 40;
    bytes[end] ^= 1;
    fs::write(last, bytes).expect("write");
    pair.follower = pair.follower.spec.start();
    load::burst(&pair.data().join("app"), 5, 50);
    pair.equal(30);
    for file in [missing, damaged, last] {
        let theirs = pair.leader.spec.state.join("log").join(file.file_name().expect("name"));
        assert!(fs::read(file).expect("read") == fs::read(theirs).expect("read"), "{}", file.display());
    }
    assert!(pair.follower.log().contains("fetched again"), "{}", pair.follower.log());
    pair.finish();
}

#[test]
fn a_follower_with_a_damaged_log_and_no_leader_says_so_and_heals_later() {
    let mut pair = Pair::with(Bed::new("bad-follower"), small_segments, small_segments);
    grow(&pair, 3);
    pair.follower.kill();
    pair.leader.stop();
    let files = sealed(&pair.follower);
    let file = &files[files.len() - 2];
    let name = file.file_name().expect("name").to_str().expect("text").to_owned();
    let before = fs::read(file).expect("read");
    damage(file);
    let bad = fs::read(file).expect("read");
    pair.follower = pair.follower.spec.start();
    stands_still(&mut pair.follower, "corrupt", "corrupt", &name);
    assert!(fs::read(file).expect("read") == bad, "nothing is thrown away before a good copy is at hand");
    pair.leader.restart();
    until(within(60), "the good copy", || {
        if fs::read(file).expect("read") == before { Ok(()) } else { Err("the damaged one".into()) }
    });
    pair.equal(60);
    pair.finish();
}

#[test]
fn a_follower_that_lost_a_file_has_diverged_and_says_so() {
    let mut pair = Pair::start("diverged");
    fs::write(pair.data().join("a"), "1").expect("write");
    pair.equal(5);
    pair.follower.stop();
    fs::remove_file(pair.follower.data().join("a")).expect("remove");
    pair.follower = pair.follower.spec.start();
    stands_still(&mut pair.follower, "diverged", "diverged", "'a'");
    let status = pair.follower.status().expect("status");
    holds_for(within(2), "it stays so", || {
        let now = pair.follower.status()?;
        let same = now.0.pointer("/error/since") == status.0.pointer("/error/since");
        if same && now.health() == "help" { Ok(()) } else { Err(now.0.to_string()) }
    });
}

#[test]
fn a_follower_of_another_system_waits_for_help_and_knows_its_own_leader_again() {
    let bed = Bed::new("other-system");
    let one = bed.leader("one").start();
    let two = bed.leader("two").start();
    fs::write(one.data().join("one"), "1").expect("write");
    let mut follower = bed.follower("follower", one.spec.listen).start();
    assert_equal_within(within(15), one.data(), follower.data());
    follower.stop();
    follower.spec.upstream = Some(two.spec.listen);
    follower = follower.spec.start();
    stands_still(&mut follower, "refused", "refused", "system");
    assert_equal(one.data(), follower.data());
    follower.stop();
    follower.spec.upstream = Some(one.spec.listen);
    follower.restart();
    fs::write(one.data().join("one"), "more").expect("write");
    assert_equal_within(within(15), one.data(), follower.data());
    until(within(10), "nothing is wrong any more", || {
        let status = follower.status()?;
        if status.health() == "ok" && status.error_kind().is_none() {
            Ok(())
        } else {
            Err(status.0.to_string())
        }
    });
}

#[test]
fn a_follower_ahead_of_its_leader_never_catches_up_and_says_so() {
    let mut pair = Pair::with(Bed::new("ahead"), |s| s, |s| s.set("resync", "\"ask\""));
    fs::write(pair.data().join("a"), "1").expect("write");
    pair.equal(5);
    pair.leader.stop();
    // The leader's two directories come back from a copy that is older than what the follower has.
    let old = pair.bed.path("old");
    let home = pair.leader.spec.state.parent().expect("home").to_owned();
    let copy = |from: &Path, to: &Path| {
        let done = Command::new("cp").args(["-a", "-T"]).arg(from).arg(to).status().expect("cp");
        assert!(done.success());
    };
    copy(&home.join("state"), &old);
    pair.leader.restart();
    fs::write(pair.data().join("b"), "2").expect("write");
    pair.equal(15);
    pair.leader.stop();
    fs::remove_dir_all(home.join("state")).expect("remove");
    copy(&old, &home.join("state"));
    fs::remove_file(pair.data().join("b")).expect("remove");
    pair.leader.restart();
    stands_still(&mut pair.follower, "diverged", "diverged", "ahead");
    assert!(pair.follower.data().join("b").exists(), "and nothing was changed");
}

#[test]
fn paused_and_cut_off_are_no_errors() {
    let mut pair = Pair::start("paused");
    let says = |node: &Node, word: &str| {
        until(within(15), &format!("it says {word}"), || {
            let status = node.status()?;
            let fine = status.health() == word && status.error_kind().is_none();
            if fine { Ok(()) } else { Err(status.0.to_string()) }
        });
    };
    says(&pair.follower, "ok");
    pair.follower.pause();
    fs::write(pair.data().join("a"), "1").expect("write");
    says(&pair.follower, "paused");
    pair.follower.resume();
    says(&pair.follower, "ok");
    pair.leader.stop();
    says(&pair.follower, "cut-off");
    pair.leader.restart();
    says(&pair.follower, "ok");
    says(&pair.leader, "ok");
    pair.finish();
}

#[test]
fn a_failing_disk_is_retried_with_pauses_and_dated() {
    let mut pair = Pair::with(Bed::new("stalled"), |s| s, Spec::armed);
    pair.follower.arm("apply::write=eio");
    fs::write(pair.data().join("a"), "1").expect("write");
    stands_still(&mut pair.follower, "stalled", "io", "");
    until(within(20), "it was tried again", || {
        let status = pair.follower.status()?;
        let attempts = status.0.pointer("/error/attempts").and_then(serde_json::Value::as_u64);
        if attempts >= Some(3) { Ok(()) } else { Err(status.0.to_string()) }
    });
    pair.follower.arm("");
    pair.equal(30);
    pair.finish();
}

/// A pair whose follower refuses an edit of its file 'a', and the path of that.
fn refuses_an_edit(name: &str) -> (Pair, PathBuf) {
    let mut pair = Pair::with(Bed::new(name), |s| s, |s| s.set("local_edits", "\"refuse\""));
    fs::write(pair.data().join("a"), "leader").expect("write");
    pair.equal(5);
    let theirs = pair.follower.data().join("a");
    fs::write(&theirs, "edited here").expect("write");
    fs::write(pair.data().join("a"), "leader again").expect("write");
    stands_still(&mut pair.follower, "refused", "refused", "'a'");
    (pair, theirs)
}

/// Undoes the edit; all is well again.
fn undoes_the_edit(mut pair: Pair, theirs: &Path) {
    fs::write(theirs, "leader").expect("write");
    pair.follower.reload("peer_timeout", "\"3s\"").expect("reload");
    pair.equal(20);
    pair.finish();
}

#[test]
fn a_refused_local_edit_stays_refused_over_restarts_until_it_is_undone() {
    let (mut pair, theirs) = refuses_an_edit("refused-edit");
    for _ in 0..2 {
        pair.follower.kill();
        pair.follower = pair.follower.spec.start();
        stands_still(&mut pair.follower, "refused", "refused", "'a'");
        assert_eq!(fs::read(&theirs).expect("read"), b"edited here", "untouched");
    }
    undoes_the_edit(pair, &theirs);
}

#[test]
fn a_follower_that_refuses_an_edit_takes_log_all_the_same() {
    let (mut pair, theirs) = refuses_an_edit("takes-log");
    // Nobody gets a first copy from there.
    let mut far = pair.bed.follower("far", pair.follower.spec.listen).start();
    until(within(20), "its first copy waits", || {
        let text = far.status()?.0.to_string();
        if text.contains("a first copy has to wait") { Ok(()) } else { Err(text) }
    });
    for n in 0..3 {
        let before = lsn(&pair.leader.status().expect("status").end());
        fs::write(pair.data().join("more"), vec![n + 1; 1 << 20]).expect("write");
        until(within(20), "the follower has it in its log", || {
            let (leader, follower) = (pair.leader.status()?, pair.follower.status()?);
            let there = lsn(&leader.end()) >= before + (1 << 20) && follower.end() == leader.end();
            if there && follower.health() == "help" { Ok(()) } else { Err(follower.0.to_string()) }
        });
        // Over a try that does not help either.
        pair.follower.reload("peer_timeout", &format!("\"{}s\"", 4 + n)).expect("reload");
        stands_still(&mut pair.follower, "refused", "refused", "'a'");
        assert_eq!(fs::read_dir(far.data()).expect("list").count(), 0);
    }
    undoes_the_edit(pair, &theirs);
    far.stop();
}

#[test]
fn mistakes_of_the_command_end_it_with_their_exit_code() {
    let bed = Bed::new("mistakes");
    let leader = bed.leader("leader").start();
    let code = |words: &[&str]| {
        let out = Command::new(crate::support::node::towline()).args(words).output().expect("run");
        (out.status.code(), String::from_utf8_lossy(&out.stderr).into_owned())
    };
    let (data, state) = (bed.path("d"), bed.path("s"));
    let (data, state) = (data.to_str().expect("text"), state.to_str().expect("text"));
    let port = format!("127.0.0.1:{}", leader.spec.listen);
    fs::create_dir(data).expect("mkdir");
    fs::write(Path::new(data).join("foreign"), "x").expect("write");
    let table: [(&[&str], i32, &str); 7] = [
        (&["follower", "--data", data], 64, "--state"),
        (&["follower", "--data", data, "--state", state], 64, "--leader"),
        (&["archive", "list", "--archive", "ftp://x"], 64, "its scheme is not known"),
        (&["follower", "--data", data, "--state", state, "--leader", &port, "--tls-cert", "c"], 3, "tls_key"),
        (&["leader", "--data", data, "--state", state, "--tls-ca", data], 3, "regular file"),
        (&["follower", "--data", data, "--state", state, "--leader", &port], 10, "foreign"),
        (&["leader", "--data", data, "--state", leader.spec.state.to_str().expect("text")], 11, "another"),
    ];
    for (words, want, word) in table {
        let (code, text) = code(words);
        assert!(code == Some(want) && text.contains(word), "{words:?}: {code:?}: {text}");
        let errors = text.lines().filter(|l| l.starts_with("towline: ")).count();
        assert_eq!(errors, 1, "{words:?}: one clear error: {text}");
    }
}

#[test]
fn another_directory_in_the_place_of_the_data_is_refused_until_the_right_one_is_back() {
    let mut pair = Pair::start("replaced");
    load::burst(&pair.data().join("app"), 1, 50);
    pair.equal(10);
    for leader in [true, false] {
        let node = if leader { &mut pair.leader } else { &mut pair.follower };
        node.stop();
        let (data, aside) = (node.data().to_owned(), pair.bed.path("aside"));
        fs::rename(&data, &aside).expect("rename");
        // Nothing there: it may yet be mounted.
        *node = node.spec.start();
        stands_still(node, "stalled", "io", "data");
        assert!(!data.exists(), "nothing is made in its place");
        node.stop();
        fs::create_dir(&data).expect("mkdir");
        *node = node.spec.start();
        stands_still(node, "refused", "refused", "is not the directory");
        assert_eq!(fs::read_dir(&data).expect("list").count(), 0, "untouched");
        fs::remove_dir(&data).expect("rmdir");
        fs::rename(&aside, &data).expect("rename");
        node.reload("peer_timeout", if leader { "\"3s\"" } else { "\"4s\"" }).expect("reload");
        fs::write(pair.data().join("more"), leader.to_string()).expect("write");
        pair.equal(30);
    }
    pair.finish();
}

#[test]
fn a_follower_whose_file_system_is_numbered_anew_goes_on() {
    let bed = Bed::new("renumbered");
    let run = |words: &[&str]| {
        let out = Command::new(words[0]).args(&words[1..]).output().ok().filter(|o| o.status.success());
        out.map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned())
    };
    let leader = bed.leader("leader").start();
    let spec = bed.follower("follower", leader.spec.listen);
    let (image, other) = (bed.path("image"), bed.path("other"));
    for file in [&image, &other] {
        fs::File::create(file).expect("create").set_len(32 << 20).expect("size");
    }
    let text = |p: &Path| p.to_str().expect("text").to_owned();
    let (image, other, data) = (text(&image), text(&other), text(&spec.data));
    let made = run(&["mkfs.ext4", "-q", "-F", "-I", "256", &image])
        .and_then(|_| run(&["losetup", "-f", "--show", &image]));
    let mounted = made.clone().and_then(|device| run(&["mount", &device, &data]));
    let (Some(first), Some(_)) = (made, mounted) else {
        println!("skipped: no file system can be made and mounted on this host");
        return;
    };
    struct Undo(Vec<[String; 3]>);
    impl Drop for Undo {
        fn drop(&mut self) {
            for words in self.0.iter().rev() {
                let _ =
                    Command::new(&words[0]).args(&words[1..]).stderr(std::process::Stdio::null()).status();
            }
        }
    }
    let mut undo = Undo(vec![
        ["losetup".into(), "-d".into(), first.clone()],
        ["umount".into(), "-l".into(), data.clone()],
    ]);
    fs::remove_dir(spec.data.join("lost+found")).expect("empty");
    let mut follower = spec.start();
    load::burst(&leader.data().join("app"), 1, 100);
    assert_equal_within(within(20), leader.data(), follower.data());
    follower.kill();
    load::burst(&leader.data().join("app"), 2, 50);
    let device = |path: &Path| std::os::unix::fs::MetadataExt::dev(&fs::metadata(path).expect("stat"));
    let before = device(follower.data());
    assert!(run(&["umount", &data]).is_some() && run(&["losetup", "-d", &first]).is_some());
    // Another file takes the first device, so that the image gets another one.
    assert!(run(&["losetup", &first, &other]).is_some());
    let second = run(&["losetup", "-f", "--show", &image]).expect("losetup");
    undo.0.push(["losetup".into(), "-d".into(), second.clone()]);
    undo.0.push(["umount".into(), "-l".into(), data.clone()]);
    assert!(run(&["mount", &second, &data]).is_some());
    assert_ne!(device(follower.data()), before, "the device has another number");
    follower.restart();
    assert_equal_within(within(20), leader.data(), follower.data());
    follower.stop();
    drop(follower);
}

/// A node that has lost an engine does not say that it runs: it ends, for its supervisor to start it anew.
#[test]
fn an_engine_that_panics_ends_the_process_and_the_next_start_goes_on() {
    let mut pair = Pair::with(Bed::new("panics"), Spec::armed, Spec::armed);
    fs::write(pair.data().join("first"), "1").expect("write");
    pair.equal(20);
    for (leads, place, what) in [
        (true, "capture::before_commit", "capture"),
        (true, "log::append", "the thread that writes the log"),
        (false, "apply::before_batch", "apply"),
    ] {
        let data = pair.data().to_owned();
        let node = if leads { &mut pair.leader } else { &mut pair.follower };
        node.arm(&format!("{place}=panic"));
        fs::write(data.join(place), what).expect("write");
        let status = node.wait_end(within(30));
        let log = node.log();
        assert_eq!(status.code(), Some(4), "{place}: {status}\n{log}");
        assert!(log.contains(&format!("{what} has panicked")), "{place}:\n{log}");
        node.arm("");
        node.restart();
        pair.equal(30);
    }
    pair.follower.stop();
    pair.leader.stop();
}
