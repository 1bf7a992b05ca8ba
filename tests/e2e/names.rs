//! Name traffic: replaces, exchanges, moves, nests, and names that change their kind.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::time::Duration;

use rustix::fs::{CWD, RenameFlags, renameat_with};

use crate::support::bed::{c_program, run, soak_or};
use crate::support::node::lsn;
use crate::support::{Pair, until, within};

fn names(words: &[&str]) -> bool {
    run(&c_program("names", &[]), words)
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8 path")
}

fn sub(pair: &Pair, name: &str) -> std::path::PathBuf {
    let dir = pair.data().join(name);
    fs::create_dir_all(&dir).expect("mkdir");
    dir
}

#[test]
fn nested_directories_made_in_a_tight_loop_lose_nothing() {
    let pair = Pair::start("nested");
    let dir = sub(&pair, "n");
    let count = 3000;
    assert!(names(&["nested", text(&dir), &count.to_string()]));
    let found = || {
        let all = walkdir::WalkDir::new(pair.follower.data().join("n")).into_iter().flatten();
        all.filter(|e| e.file_name() == "file").count()
    };
    until(within(60), "all files", || match found() {
        n if n == count => Ok(()),
        n => Err(format!("{n} of {count}")),
    });
    pair.equal(20);
    let status = pair.leader.status().expect("status");
    println!("nested: {} found by scan only, {} gaps", status.found_by_scan(), status.gaps());
    pair.finish();
}

#[test]
fn replaces_renames_and_exchanges() {
    let pair = Pair::start("replace");
    let dir = sub(&pair, "r");
    assert!(names(&["replace", text(&dir), "2000"]));
    pair.equal(10);
    // An odd number of exchanges, so that the end differs from the beginning; of files, of directories, of both.
    let (a, b) = (dir.join("a"), dir.join("b"));
    fs::write(&a, "a").expect("write");
    fs::write(&b, "bb").expect("write");
    pair.equal(5);
    assert!(names(&["exchange", text(&a), text(&b), "1"]));
    pair.equal(5);
    assert_eq!(fs::read(pair.follower.data().join("r/a")).expect("read"), b"bb");
    assert!(names(&["exchange", text(&a), text(&b), "301"]));
    pair.equal(5);
    let (c, d) = (dir.join("c"), dir.join("d"));
    for (dir, n) in [(&c, 3), (&d, 5)] {
        fs::create_dir(dir).expect("mkdir");
        for i in 0..n {
            fs::write(dir.join(format!("{n}{i}")), format!("{n}")).expect("write");
        }
    }
    pair.equal(5);
    assert!(names(&["exchange", text(&c), text(&d), "1"]));
    fs::write(c.join("after"), "in the right one").expect("write");
    pair.equal(5);
    assert!(pair.follower.data().join("r/c/54").exists());
    assert!(names(&["exchange", text(&a), text(&d), "1"]));
    pair.equal(5);
    assert!(
        names(&["exchange", text(&a), text(&dir.join("c/after")), "1"]),
        "a directory into its neighbour"
    );
    pair.equal(5);
    pair.finish();
}

#[test]
fn a_file_made_without_a_name_and_linked_in() {
    let pair = Pair::start("tmpfile");
    let dir = sub(&pair, "t");
    assert!(names(&["tmpfile", text(&dir), "200"]));
    pair.equal(10);
    assert_eq!(fs::read_dir(pair.follower.data().join("t")).expect("list").count(), 200);
    pair.finish();
}

#[test]
fn a_renamed_tree_ships_no_data() {
    let pair = Pair::start("tree");
    let dir = sub(&pair, "big");
    // 1 GiB in any case; how much of it is data and not holes is another matter.
    let (total, data): (u64, usize) = (1 << 30, soak_or(64 << 20, 4 << 20));
    let mut at = dir.clone();
    for i in 0..16_u8 {
        at.push(format!("level{i}"));
        fs::create_dir(&at).expect("mkdir");
        let mut rng = fastrand::Rng::with_seed(i.into());
        let noise: Vec<u8> = std::iter::repeat_with(|| rng.u8(..)).take(data).collect();
        fs::write(at.join("data"), noise).expect("write");
        fs::File::options()
            .write(true)
            .open(at.join("data"))
            .expect("open")
            .set_len(total / 16)
            .expect("grow");
    }
    pair.equal(120);
    let before = lsn(&pair.leader.status().expect("status").end());
    fs::rename(&dir, pair.data().join("moved")).expect("rename");
    fs::rename(pair.data().join("moved/level0"), pair.data().join("out")).expect("rename");
    fs::hard_link(pair.data().join("out/data"), pair.data().join("linked")).expect("link");
    pair.equal(10);
    let shipped = lsn(&pair.leader.status().expect("status").end()) - before;
    assert!(shipped > 0 && shipped < 64 << 10, "{shipped} bytes of log");
    println!("renaming {total} bytes twice and linking wrote {shipped} bytes of log");
    pair.finish();
}

#[test]
fn trees_move_in_and_out() {
    let pair = Pair::start("inout");
    let outside = pair.bed.path("outside");
    for round in 0..4 {
        for i in 0..5 {
            let dir = outside.join(format!("tree/d{i}/e"));
            fs::create_dir_all(&dir).expect("mkdir");
            fs::write(dir.join("f"), format!("{round} {i}")).expect("write");
        }
        fs::rename(outside.join("tree"), pair.data().join("tree")).expect("move in");
        fs::write(pair.data().join("tree/d1/e/late"), "written at once").expect("write");
        if round % 2 == 0 {
            pair.equal(10);
        }
        fs::rename(pair.data().join("tree/d2"), outside.join("back")).expect("move out");
        fs::rename(pair.data().join("tree"), pair.data().join("again")).expect("rename");
        fs::rename(pair.data().join("again"), outside.join("gone")).expect("move out");
        pair.equal(10);
        assert!(!pair.follower.data().join("again").exists());
        // What left is no longer watched.
        fs::write(outside.join("gone/d1/e/after"), "not ours").expect("write");
        fs::remove_dir_all(&outside).expect("rm");
    }
    pair.finish();
}

#[test]
fn names_that_change_their_kind() {
    let pair = Pair::start("kinds");
    let at = pair.data().join("x");
    let other = pair.data().join("other");
    fs::create_dir(&other).expect("mkdir");
    fs::write(other.join("inside"), "must stay").expect("write");
    for round in 0..30 {
        let settle = || {
            if round % 3 == 0 {
                pair.equal(5);
            } else {
                std::thread::sleep(Duration::from_millis(fastrand::u64(..8)));
            }
        };
        fs::write(&at, format!("file {round}")).expect("write");
        settle();
        fs::remove_file(&at).expect("rm");
        fs::create_dir(&at).expect("mkdir");
        fs::write(at.join("inside"), format!("in directory {round}")).expect("write");
        settle();
        fs::remove_dir_all(&at).expect("rm -r");
        symlink("other", &at).expect("symlink");
        settle();
        fs::remove_file(&at).expect("rm");
        fs::write(&at, format!("under the same name {round}")).expect("write");
        fs::remove_file(&at).expect("rm");
        if round % 2 == 0 {
            rustix::fs::mkfifoat(CWD, &at, rustix::fs::Mode::RUSR).expect("mkfifo");
            settle();
            fs::remove_file(&at).expect("rm");
        }
    }
    fs::write(&at, "last").expect("write");
    pair.equal(5);
    assert_eq!(fs::read(pair.follower.data().join("other/inside")).expect("read"), b"must stay");
    pair.finish();
}

#[test]
fn a_deep_tree_is_renamed_while_it_is_written() {
    let pair = Pair::start("moving");
    let mut deep = sub(&pair, "a");
    for i in 0..20 {
        deep.push(format!("l{i}"));
        fs::create_dir(&deep).expect("mkdir");
    }
    let rest = deep.strip_prefix(pair.data().join("a")).expect("below").to_owned();
    pair.equal(5);
    let mut now = pair.data().join("a");
    for i in 0..200 {
        fs::write(now.join(&rest).join(format!("f{}", i % 50)), format!("{i}")).expect("write");
        if i % 5 == 0 {
            let next = pair.data().join(format!("a{i}"));
            fs::rename(&now, &next).expect("rename");
            now = next;
            fs::create_dir(now.join(&rest).join(format!("new{i}"))).expect("mkdir");
            fs::write(now.join(&rest).join(format!("new{i}/f")), "in the new one").expect("write");
        }
    }
    pair.equal(10);
    pair.finish();
}

/// Operations on few names below `dir`, of which most fail, since others do the same at the same time.
fn fight(dir: &Path, seed: u64, operations: usize) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let name = |rng: &mut fastrand::Rng| {
        let depth = rng.usize(1..4);
        dir.join((0..depth).map(|_| ["a", "b", "c", "d"][rng.usize(0..4)]).collect::<Vec<_>>().join("/"))
    };
    for n in 0..operations {
        let (a, b) = (name(&mut rng), name(&mut rng));
        match rng.u8(0..11) {
            0 | 1 => drop(fs::write(a, format!("{seed} {n}"))),
            2 => drop(fs::create_dir_all(a)),
            3 => drop(fs::rename(a, b)),
            4 => drop(renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE)),
            5 => drop(fs::hard_link(a, b)),
            6 => drop(fs::remove_file(a)),
            7 => drop(fs::remove_dir_all(a)),
            8 => drop(symlink("target", a)),
            9 => drop(fs::OpenOptions::new().append(true).open(a).and_then(|mut f| f.write_all(b"more"))),
            _ => drop(fs::metadata(&a).and_then(|m| {
                fs::set_permissions(&a, fs::Permissions::from_mode((m.mode() ^ 0o011) | 0o700))
            })),
        }
    }
}

#[test]
fn names_that_several_processes_fight_over() {
    let pair = Pair::start("fight");
    let dir = sub(&pair, "f");
    for round in 0..soak_or(1000, 20) {
        let seed = fastrand::u64(..1 << 40);
        std::thread::scope(|scope| {
            for thread in 0..3 {
                let dir = &dir;
                scope.spawn(move || fight(dir, seed + thread, 1000));
            }
        });
        println!("round {round}, seed {seed}");
        pair.equal(10);
    }
    let status = pair.leader.status().expect("status");
    println!("fight: {} found by scan only, {} gaps", status.found_by_scan(), status.gaps());
    pair.finish();
}
