//! Limits of the host and of the data: small queues, few watches, bursts, large files, vanished roots.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::support::bed::{Bed, Sysctl, c_program, copy_tree, host_lock, is_root, run, soak_or};
use crate::support::{Load, Pair, Spec, assert_equal, assert_equal_within, holds_for, load, until, within};

/// Most resident memory, in kB, whatever the size of the data.
const MEMORY_KB: u64 = 400 << 10;

fn run_ok(words: &[&str]) -> bool {
    Command::new(words[0]).args(&words[1..]).status().is_ok_and(|s| s.success())
}

#[test]
fn an_event_queue_of_sixteen() {
    if !is_root() {
        println!("skipped: needs root to set the size of the event queue");
        return;
    }
    let bed = Bed::new("queue");
    let leader = {
        let _alone = host_lock(true);
        let _small = Sysctl::set("/proc/sys/fs/inotify/max_queued_events", 16);
        let node = bed.leader("leader").spawn_unlocked();
        // Before it runs it may not have opened its queue yet.
        until(within(20), "the leader runs", || {
            let status = node.status()?;
            if status.state() == "running" { Ok(()) } else { Err(status.0.to_string()) }
        });
        node
    };
    let follower = bed.follower("follower", leader.spec.listen).start();
    let pair = Pair { leader, follower, bed };
    pair.equal(20);
    let dir = pair.data().join("n");
    fs::create_dir(&dir).expect("mkdir");
    assert!(run(&c_program("names", &[]), &["nested", dir.to_str().expect("path"), "500"]));
    assert!(run(&c_program("names", &[]), &["replace", dir.to_str().expect("path"), "2000"]));
    load::burst(&pair.data().join("app"), 5, 1500);
    pair.equal(60);
    let status = pair.leader.status().expect("status");
    assert!(status.gaps() > 0, "an overflow is said: {}", status.0);
    // The loss of events must not starve what follows. Scans wait up to ten seconds for one another.
    fs::write(pair.data().join("after"), "x").expect("write");
    pair.equal(40);
    pair.finish();
}

#[test]
fn fewer_watches_than_directories() {
    let few = "echo 40 > /proc/sys/user/max_inotify_watches && exec \"$@\"";
    let prefix = ["unshare", "--user", "--map-root-user", "sh", "-c", few, "sh"];
    if !run_ok(&[&prefix[..], &["true"]].concat()) {
        println!("skipped: this host has no user namespaces");
        return;
    }
    let bed = Bed::new("watches");
    let mut spec = bed.leader("leader").set("rescan_interval", "\"2s\"");
    spec.prefix = prefix.iter().map(|&w| w.to_owned()).collect();
    for i in 0..200 {
        let dir = spec.data.join(format!("d{i}/e"));
        fs::create_dir_all(&dir).expect("mkdir");
        fs::write(dir.join("f"), format!("{i}")).expect("write");
    }
    let leader = spec.start();
    let follower = bed.follower("follower", leader.spec.listen).start();
    let pair = Pair { leader, follower, bed };
    pair.equal(30);
    let status = pair.leader.status().expect("status").0.to_string();
    assert!(status.contains("watch"), "the limit is said: {status}");
    for i in 0..200 {
        fs::write(pair.data().join(format!("d{i}/e/f")), format!("changed {i}")).expect("write");
        if i % 10 == 0 {
            fs::create_dir(pair.data().join(format!("d{i}/new"))).expect("mkdir");
            fs::write(pair.data().join(format!("d{i}/new/f")), "new").expect("write");
        }
    }
    pair.equal(30);
    pair.finish();
}

#[test]
fn a_hundred_thousand_files_in_one_burst_and_one_directory() {
    let pair = Pair::start("burst");
    let dir = pair.data().join("many");
    fs::create_dir(&dir).expect("mkdir");
    let count = 100_000;
    assert!(run(&c_program("names", &[]), &["burst", dir.to_str().expect("path"), &count.to_string()]));
    let start = std::time::Instant::now();
    let there = pair.follower.data().join("many");
    until(within(240), "all files", || {
        let n = fs::read_dir(&there).map(Iterator::count).unwrap_or(0);
        if n == count { Ok(()) } else { Err(format!("{n} of {count}")) }
    });
    println!("{count} files: on the follower {:?} after the burst", start.elapsed());
    pair.equal(60);
    fs::remove_file(dir.join("500")).expect("rm");
    fs::rename(dir.join("501"), dir.join("renamed")).expect("rename");
    fs::write(dir.join("502"), "changed").expect("write");
    pair.equal(30);
    for node in [&pair.leader, &pair.follower] {
        let peak = node.memory_kb("VmHWM");
        println!("{}: peak {peak} kB", node.spec.name);
        assert!(peak < MEMORY_KB, "{peak} kB in {}", node.spec.name);
    }
    pair.finish();
}

#[test]
fn one_large_file_streams_through_bounded_memory() {
    use std::io::Write;
    let pair = Pair::start("large");
    let size: u64 = soak_or(4 << 30, 512 << 20);
    let mut file = fs::File::create(pair.data().join("large")).expect("create");
    let mut rng = fastrand::Rng::with_seed(9);
    let mut piece = vec![0_u8; 1 << 20];
    for _ in 0..size >> 20 {
        rng.fill(&mut piece);
        file.write_all(&piece).expect("write");
    }
    drop(file);
    pair.equal(soak_or(600, 120));
    for node in [&pair.leader, &pair.follower] {
        let peak = node.memory_kb("VmHWM");
        println!("{}: peak {peak} kB for a file of {} MiB", node.spec.name, size >> 20);
        assert!(peak < MEMORY_KB, "{peak} kB in {}", node.spec.name);
    }
    pair.finish();
}

fn held(pair: &Pair, on: bool) {
    until(within(20), if on { "the delete is held" } else { "nothing is held" }, || {
        let status = pair.leader.status()?;
        if status.hold().is_some() == on { Ok(()) } else { Err(status.0.to_string()) }
    });
}

#[test]
fn a_delete_of_everything_is_held_until_confirmed() {
    let pair = Pair::start("guard");
    for i in 0..40 {
        let dir = pair.data().join(format!("d{i}"));
        fs::create_dir(&dir).expect("mkdir");
        (0..50).for_each(|n| fs::write(dir.join(format!("{n}")), format!("{i} {n}")).expect("write"));
    }
    pair.equal(30);
    copy_tree(pair.data(), &pair.bed.path("before"));
    for i in 0..40 {
        fs::rename(pair.data().join(format!("d{i}")), pair.bed.path(format!("away{i}"))).expect("mv");
    }
    held(&pair, true);
    // Some directories may have gone before the guard saw how many there are; half must be there.
    let left = || {
        fs::read_dir(pair.follower.data())
            .map(|d| d.flatten().filter(|e| e.path().join("1").exists()).count())
    };
    let at_hold = left().expect("list");
    assert!(at_hold >= 20, "only {at_hold} of 40 directories are left while the guard holds");
    holds_for(within(2), "the follower keeps its files", || match left() {
        Ok(n) if n >= 20 => Ok(()),
        other => Err(format!("{other:?}")),
    });
    pair.leader.confirm();
    held(&pair, false);
    pair.equal(20);
    assert_eq!(left().expect("list"), 0);
    fs::write(pair.data().join("after"), "goes on").expect("write");
    pair.equal(5);
    pair.finish();
}

/// A delete that came in several passes leaves fewer entries than the guard counts from; it stays held all the same.
#[test]
fn a_held_delete_stays_held_over_a_restart() {
    let mut pair = Pair::with(
        Bed::new("hold-restart"),
        |s| s.set("max_delete_floor", "1000").set("hot_interval", "\"50ms\""),
        |s| s,
    );
    (0..1500).for_each(|n| fs::write(pair.data().join(format!("{n}")), format!("{n}")).expect("write"));
    pair.equal(30);
    let gone = |range: std::ops::Range<u32>| {
        range.for_each(|n| fs::remove_file(pair.data().join(format!("{n}"))).expect("rm"));
    };
    // Fewer than the limit in one pass, then the rest.
    gone(0..700);
    pair.equal(20);
    gone(700..1500);
    held(&pair, true);
    let left = fs::read_dir(pair.follower.data()).expect("list").count();
    assert!(left > 400, "{left} left");
    for _ in 0..2 {
        pair.leader.kill();
        pair.leader.restart();
        held(&pair, true);
        holds_for(within(2), "it stays held", || {
            let now = fs::read_dir(pair.follower.data()).map_err(|e| e.to_string())?.count();
            if now >= left { Ok(()) } else { Err(format!("{now} of {left} left")) }
        });
    }
    pair.leader.confirm();
    held(&pair, false);
    pair.equal(20);
    pair.finish();
}

#[test]
fn a_held_delete_that_is_undone_needs_no_operator() {
    let pair = Pair::start("undone");
    let dir = pair.data().join("all");
    fs::create_dir(&dir).expect("mkdir");
    (0..3000).for_each(|n| fs::write(dir.join(format!("{n}")), format!("{n}")).expect("write"));
    pair.equal(30);
    fs::rename(&dir, pair.bed.path("away")).expect("mv");
    held(&pair, true);
    fs::rename(pair.bed.path("away"), &dir).expect("mv back");
    held(&pair, false);
    fs::write(dir.join("1"), "changed").expect("write");
    pair.equal(10);
    pair.finish();
}

fn stands_still(pair: &Pair, before: &Path) {
    until(within(20), "the leader says that its root is gone", || {
        let Ok(status) = pair.leader.status() else { return Err("no status".into()) };
        if status.error_kind().is_some() || status.hold().is_some() {
            Ok(())
        } else {
            Err(status.0.to_string())
        }
    });
    std::thread::sleep(within(2));
    assert_equal(before, pair.follower.data());
}

#[test]
fn a_replaced_root_is_not_a_mass_delete() {
    let pair = Pair::start("replaced");
    load::burst(&pair.data().join("app"), 1, 200);
    pair.equal(15);
    copy_tree(pair.data(), &pair.bed.path("before"));
    let real = pair.bed.path("real");
    fs::rename(pair.data(), &real).expect("mv");
    fs::create_dir(pair.data()).expect("mkdir");
    stands_still(&pair, &pair.bed.path("before"));
    let out = pair.leader.ask(&["confirm"]);
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.code() == Some(10) && said.contains("only a mass delete"), "{said}");
    fs::write(pair.data().join("impostor"), "x").expect("write");
    stands_still(&pair, &pair.bed.path("before"));
    fs::remove_dir_all(pair.data()).expect("rm");
    fs::rename(&real, pair.data()).expect("mv back");
    fs::write(pair.data().join("back"), "x").expect("write");
    pair.equal(40);
    pair.finish();
}

#[test]
fn an_unmounted_root_is_not_a_mass_delete() {
    let bed = Bed::new("unmounted");
    let spec: Spec = bed.leader("leader");
    let real = bed.path("real");
    fs::create_dir(&real).expect("mkdir");
    let (from, to) = (real.to_str().expect("path").to_owned(), spec.data.to_str().expect("path").to_owned());
    if !is_root() || !run_ok(&["mount", "--bind", &from, &to]) {
        println!("skipped: nothing can be mounted on this host");
        return;
    }
    struct Mount(String);
    impl Drop for Mount {
        fn drop(&mut self) {
            let _ = Command::new("umount").args(["-l", &self.0]).stderr(std::process::Stdio::null()).status();
        }
    }
    let mount = Mount(to.clone());
    let leader = spec.start();
    let follower = bed.follower("follower", leader.spec.listen).start();
    let mut pair = Pair { leader, follower, bed };
    load::burst(&pair.data().join("app"), 1, 200);
    pair.equal(15);
    copy_tree(&real, &pair.bed.path("before"));
    assert!(run_ok(&["umount", "-l", &to]));
    stands_still(&pair, &pair.bed.path("before"));
    // A restart on the bare mount point must not take it for the data.
    pair.leader.kill();
    pair.leader = pair.leader.spec.spawn();
    std::thread::sleep(within(2));
    assert_equal(&pair.bed.path("before"), pair.follower.data());
    if pair.leader.ended().is_none() {
        stands_still(&pair, &pair.bed.path("before"));
        pair.leader.kill();
    }
    assert!(run_ok(&["mount", "--bind", &from, &to]));
    pair.leader.restart();
    fs::write(pair.data().join("back"), "x").expect("write");
    pair.equal(40);
    pair.follower.stop();
    pair.leader.stop();
    drop(mount);
}

#[test]
fn a_path_longer_than_the_kernel_takes_is_said_and_harms_nothing() {
    let pair = Pair::start("longpath");
    let make = "d=$(printf '%0250d' 0); cd \"$1\"; for i in $(seq 20); do mkdir $d && cd -P $d || exit 1; done; echo x > f";
    if !run_ok(&["bash", "-c", make, "bash", pair.data().to_str().expect("path")]) {
        println!("the shell can't make it here");
    }
    fs::write(pair.data().join("plain"), "goes on").expect("write");
    until(within(10), "the rest goes on", || {
        fs::read(pair.follower.data().join("plain")).map(|_| ()).map_err(|e| e.to_string())
    });
    // Either it travels, or it is said.
    until(within(20), "equal, or said", || {
        let Some(diff) = crate::support::differences(pair.data(), pair.follower.data()) else {
            return Ok(());
        };
        let status = pair.leader.status()?.0.to_string();
        if status.contains("long") || status.contains("skipped") {
            Ok(())
        } else {
            Err(format!("{diff} {status}"))
        }
    });
    pair.leader.assert_no_panic();
    assert!(run_ok(&["rm", "-rf", pair.data().join("0".repeat(250)).to_str().expect("path")]));
    fs::write(pair.data().join("plain"), "and on").expect("write");
    pair.equal(20);
    pair.finish();
}

#[test]
fn a_restart_after_changes_while_down_equals_a_live_run() {
    let mut pair = Pair::start("down");
    load::burst(&pair.data().join("app"), 3, 500);
    pair.equal(20);
    for round in 0..3_u64 {
        pair.leader.kill();
        load::burst(&pair.data().join("app"), 10 + round, 150);
        // Same size, times set back: only the change time tells.
        let file = pair.data().join("sly");
        if round == 0 {
            fs::write(&file, "0000").expect("write");
        }
        let time = fs::metadata(&file).expect("stat").modified().expect("mtime");
        fs::write(&file, format!("{round:04}")).expect("write");
        fs::File::options().write(true).open(&file).expect("open").set_modified(time).expect("utimes");
        pair.leader.restart();
        pair.equal(20);
        assert_eq!(
            fs::read(pair.follower.data().join("sly")).expect("read"),
            format!("{round:04}").as_bytes()
        );
    }
    let load = Load::start(&pair.data().join("app"), 77, Duration::from_millis(1));
    std::thread::sleep(within(1));
    assert!(load.finish() > 50);
    pair.finish();
}

#[test]
fn a_follower_that_was_away_for_long_catches_up_from_sealed_segments() {
    let bed = Bed::new("catchup");
    let leader = bed.leader("leader").start();
    let mut follower = bed.follower("follower", leader.spec.listen).start();
    fs::write(leader.data().join("first"), "x").expect("write");
    assert_equal_within(within(15), leader.data(), follower.data());
    follower.kill();
    let mut noise = vec![0_u8; 1 << 20];
    for i in 0..48 {
        fastrand::Rng::with_seed(i).fill(&mut noise);
        fs::write(leader.data().join(format!("n{i}")), &noise).expect("write");
    }
    until(within(60), "sealed segments", || {
        let sealed = leader.segments().iter().filter(|s| s.extension().is_none()).count();
        if sealed >= 2 { Ok(()) } else { Err(format!("{sealed} sealed")) }
    });
    follower.restart();
    assert_equal_within(within(60), leader.data(), follower.data());
}

/// A leader without privilege leaves out what it can't read, says so, and goes on with exact cuts.
#[test]
fn what_a_leader_may_not_read_is_left_out_and_said() {
    if !is_root() {
        println!("skipped: needs root to make files of another owner");
        return;
    }
    let bed = Bed::new("barred");
    let mut spec = bed.leader("leader");
    let home = spec.data.parent().expect("home").to_owned();
    let copy = bed.path("towline");
    fs::copy(crate::support::node::towline(), &copy).expect("copy the program where anybody can run it");
    let own = |path: &Path| std::os::unix::fs::lchown(path, Some(65_534), Some(65_534)).expect("chown");
    let closed = |path: &Path, mode: u32| {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("chmod");
    };
    let data = spec.data.clone();
    fs::create_dir(data.join("lost+found")).expect("mkdir");
    fs::write(data.join("lost+found/inside"), "x").expect("write");
    fs::write(data.join("secret"), "not yours").expect("write");
    fs::write(data.join("open"), "yours").expect("write");
    closed(&data.join("lost+found"), 0o700);
    closed(&data.join("secret"), 0o600);
    [&home, &data].into_iter().for_each(|p| own(p));
    let exec = format!("shift; exec '{}' \"$@\"", copy.display());
    spec.prefix = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "sh", "-c", &exec, "sh"]
        .map(str::to_owned)
        .to_vec();
    let leader = spec.start();
    let follower = bed.follower("follower", leader.spec.listen).start();
    let there = follower.data().to_owned();
    let shows = |name: &str, text: &str| {
        let path = there.join(name);
        until(within(20), name, || match fs::read_to_string(&path) {
            Ok(t) if t == text => Ok(()),
            other => Err(format!("{other:?}")),
        });
    };
    shows("open", "yours");
    fs::write(data.join("later"), "after the start").expect("write");
    shows("later", "after the start");
    fs::write(data.join("late secret"), "not yours").expect("write");
    closed(&data.join("late secret"), 0o600);
    fs::write(data.join("last"), "still going").expect("write");
    shows("last", "still going");
    assert!(!there.join("secret").exists(), "a name without its content would be a lie");
    assert!(!there.join("lost+found").exists());
    let status = leader.status().expect("status").0.to_string();
    assert!(status.contains("Permission denied"), "it is said: {status}");
    closed(&data.join("secret"), 0o644);
    closed(&data.join("lost+found"), 0o755);
    shows("secret", "not yours");
    shows("lost+found/inside", "x");
}
