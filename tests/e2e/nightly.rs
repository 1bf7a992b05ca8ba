//! The script that takes base backups by night: what stays, what goes, and what it says to cron.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use super::full::{Small, noise};
use crate::support::Bed;
use crate::support::backup::checked;
use crate::support::node::towline;

pub(super) fn night(program: &Path, dir: &Path) -> Command {
    let mut command = Command::new("sh");
    command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/basebackup.sh")).arg(dir);
    command.env("TOWLINE", program).env("KEEP", "2").env_remove("TOWLINE_LOG");
    command
}

fn said(out: &Output) -> String {
    String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr)
}

/// A program in the place of towline, that ends with these codes.
fn program(bed: &Bed, backup: i32, verify: i32) -> PathBuf {
    let path = bed.path("program");
    let text = format!(
        "#!/bin/sh\necho \"$*\" >>'{}'\n[ $1 = verify ] && {{ echo 'not good'; exit {verify}; }}\n\
         [ \"$2 $3 $4\" = '--leader db1:1 --out' ] && [ \"$8 $9\" = '--max-rate 1M' ] || exit 64\n\
         mkdir \"$5\" && echo $7 >\"$5/manifest.json\"\necho 'a word of towline'\nexit {backup}\n",
        bed.path("asked").display()
    );
    fs::write(&path, text).expect("write");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("chmod");
    path
}

/// A directory with three old backups, and what else may be there.
fn home(bed: &Bed, name: &str) -> PathBuf {
    let dir = bed.path(name);
    for old in ["20240101T000000Z", "20240102T000000Z", "20240103T000000Z"] {
        fs::create_dir_all(dir.join(old)).expect("mkdir");
        fs::write(dir.join(old).join("manifest.json"), old).expect("write");
    }
    for other in ["notes", "20230101T000000Z.bad", "20230102T000000Z"] {
        fs::create_dir_all(dir.join(other)).expect("mkdir");
    }
    fs::create_dir_all(dir.join("20230103T000000Z.part/data")).expect("mkdir");
    dir
}

/// What lies there, but the lock.
fn entries(dir: &Path) -> Vec<String> {
    let names = fs::read_dir(dir).expect("list").map(|e| e.expect("entry").file_name());
    let mut names: Vec<String> = names.map(|n| n.to_string_lossy().into_owned()).collect();
    names.retain(|n| !n.starts_with('.'));
    names.sort();
    names
}

const OTHERS: [&str; 3] = ["20230101T000000Z.bad", "20230102T000000Z", "notes"];
const OLD: [&str; 3] = ["20240101T000000Z", "20240102T000000Z", "20240103T000000Z"];

/// The name that a run gave, besides these.
fn new(dir: &Path, kept: &[&str]) -> String {
    let mut names = entries(dir);
    names.retain(|n| !OTHERS.contains(&n.as_str()) && !kept.contains(&n.as_str()));
    assert!(names.len() == 1, "{names:?} besides {kept:?}");
    assert!(OTHERS.iter().chain(kept).all(|n| dir.join(n).exists()), "{:?}", entries(dir));
    names.remove(0)
}

#[test]
fn the_newest_backups_stay_and_cron_hears_of_trouble_only() {
    let bed = Bed::new("nightly");
    let words = ["db1:1", "--max-rate", "1M"];
    let run = |dir: &Path, (backup, verify): (i32, i32)| {
        night(&program(&bed, backup, verify), dir).args(words).output().expect("run")
    };
    let dir = home(&bed, "good");
    let out = run(&dir, (0, 0));
    assert!(out.status.success() && said(&out).is_empty(), "{}", said(&out));
    let label = new(&dir, &OLD[2..]);
    assert_eq!(fs::read_to_string(dir.join(&label).join("manifest.json")).expect("read").trim(), label);
    let asked = fs::read_to_string(bed.path("asked")).expect("read");
    assert!(
        asked.contains(&format!("verify {}/{label}.part", dir.display())),
        "verified before it counts: {asked}"
    );
    for (codes, code, kept, word) in [
        ((3, 0), 3, &OLD[2..], "no exact cut"),
        ((1, 0), 1, &OLD[..], "a word of towline"),
        ((64, 0), 2, &OLD[..], "options are wrong"),
        ((0, 1), 4, &OLD[..], "is damaged"),
    ] {
        let dir = home(&bed, &format!("code{code}"));
        let out = run(&dir, codes);
        assert_eq!(out.status.code(), Some(code), "{}", said(&out));
        assert!(said(&out).contains(word), "{}", said(&out));
        let name = new(&dir, kept);
        let suffix = match code {
            4 => "Z.bad",
            3 => "Z",
            // This program does not clean up.
            _ => "Z.part",
        };
        assert!(name.ends_with(suffix), "{code}: {name}");
        if code == 1 {
            // What is left of it goes with the next one.
            assert!(run(&dir, (0, 0)).status.success());
            assert!(new(&dir, &OLD[2..]).ends_with('Z'));
        }
    }
}

#[test]
fn wrong_usage_another_run_and_what_can_not_be_removed_have_codes_of_their_own() {
    let bed = Bed::new("nightly-codes");
    let good = program(&bed, 0, 0);
    for words in [&[][..], &["db1:1"][..1], &["--leader", "x"]] {
        let mut command = night(&good, Path::new(if words.len() == 1 { "-x" } else { "" }));
        let out = command.args(words).output().expect("run");
        assert_eq!(out.status.code(), Some(2), "{words:?}: {}", said(&out));
    }
    let dir = home(&bed, "dir");
    for keep in ["0", "x", "-1"] {
        let out = night(&good, &dir).arg("db1:1").env("KEEP", keep).output().expect("run");
        assert!(out.status.code() == Some(2) && said(&out).contains(&format!("'{keep}'")), "{}", said(&out));
    }
    let before = entries(&dir);
    let lock = fs::File::create(dir.join(".lock")).expect("create");
    let held = nix::fcntl::Flock::lock(lock, nix::fcntl::FlockArg::LockExclusiveNonblock);
    let out = night(&good, &dir).args(["db1:1", "--max-rate", "1M"]).output().expect("run");
    assert!(out.status.code() == Some(6) && said(&out).contains("another run"), "{}", said(&out));
    assert_eq!(entries(&dir), before, "nothing is touched");
    drop(held.map_err(|(_, e)| e).expect("the lock"));
    // A file system on which nothing can be removed.
    let bin = bed.path("bin");
    fs::create_dir(&bin).expect("mkdir");
    fs::write(bin.join("rm"), "#!/bin/sh\nexit 1\n").expect("write");
    fs::set_permissions(bin.join("rm"), fs::Permissions::from_mode(0o755)).expect("chmod");
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap_or_default());
    let out = night(&good, &dir).args(["db1:1", "--max-rate", "1M"]).env("PATH", path).output().expect("run");
    assert!(out.status.code() == Some(5) && said(&out).contains("can't be removed"), "{}", said(&out));
    let out = night(&good, &bed.path("program/x")).args(["db1:1"]).output().expect("run");
    assert!(out.status.code() == Some(1) && said(&out).contains("can't be made"), "{}", said(&out));
}

/// A program in the place of towline, for an archive.
fn for_archive(bed: &Bed, [backup, verify, prune]: [i32; 3]) -> PathBuf {
    let path = bed.path("program");
    let text = format!(
        "#!/bin/sh\necho \"$*\" >>'{}'\necho 'a word of towline'\n\
         case $1-$2 in\nbasebackup-*) exit {backup} ;;\narchive-verify) exit {verify} ;;\narchive-prune) exit {prune} ;;\nesac\nexit 99\n",
        bed.path("asked").display()
    );
    fs::write(&path, text).expect("write");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("chmod");
    path
}

#[test]
fn nights_into_an_archive_end_with_the_same_codes_and_make_nothing_here() {
    let bed = Bed::new("nightly-archive");
    let (cwd, tmp) = (bed.path("cwd"), bed.path("tmp"));
    fs::create_dir(&cwd).expect("mkdir");
    fs::create_dir(&tmp).expect("mkdir");
    let run = |program: &Path, url: &str, days: &str| {
        let mut command = night(program, Path::new(url));
        command.arg("db1:1").args(["--max-rate", "1M"]).current_dir(&cwd).env("TMPDIR", &tmp);
        let out = command.env("KEEP_DAYS", days).output().expect("run");
        assert!(entries(&cwd).is_empty(), "{:?}", entries(&cwd));
        let asked = fs::read_to_string(bed.path("asked")).unwrap_or_default();
        let _ = fs::remove_file(bed.path("asked"));
        (out.status.code(), said(&out), asked.lines().map(str::to_owned).collect::<Vec<_>>())
    };
    let (code, text, asked) = run(&for_archive(&bed, [0; 3]), "s3://bucket/x", "30");
    assert!(code == Some(0) && text.is_empty(), "{text}");
    let label = asked[0].split("--label ").nth(1).and_then(|l| l.split(' ').next()).expect("a label");
    assert!(label.len() == 16 && label.ends_with('Z'), "{label}");
    assert_eq!(
        asked,
        [
            format!("basebackup --leader db1:1 --out s3://bucket/x --label {label} --max-rate 1M"),
            format!("archive verify --archive s3://bucket/x --backup {label}"),
            "archive prune --archive s3://bucket/x --yes --keep-days 30 --keep-full 2".to_owned(),
        ]
    );
    for (codes, code, steps, word) in [
        ([3, 0, 0], 3, 3, "no exact cut"),
        ([1, 0, 0], 1, 1, "a word of towline"),
        ([64, 0, 0], 2, 1, "options are wrong"),
        ([0, 1, 0], 4, 2, "is damaged"),
        ([0, 0, 9], 5, 3, "can't be removed"),
    ] {
        let (got, text, asked) = run(&for_archive(&bed, codes), "s3://bucket/x", "");
        assert!(
            got == Some(code) && text.contains(word) && asked.len() == steps,
            "{codes:?}: {got:?} {text}"
        );
    }
    let (code, text, _) = run(&for_archive(&bed, [0; 3]), "s3://bucket/x", "0");
    assert!(code == Some(2) && text.contains("KEEP_DAYS is '0'"), "{text}");
    // The program itself: a new backup, and the third before it goes.
    let spec = bed.leader("leader");
    fs::write(spec.data.join("file"), noise(100_000)).expect("write");
    let leader = spec.start();
    let from = format!("127.0.0.1:{}", leader.spec.listen);
    let archive = bed.path("archive");
    fs::create_dir(&archive).expect("mkdir");
    let url = format!("file://{}", archive.display());
    for (i, label) in ["old", "older"].into_iter().enumerate() {
        fs::write(leader.data().join("file"), vec![i as u8; 100_000]).expect("write");
        let words = ["basebackup", "--leader", &from, "--out", &url, "--label", label];
        let out = Command::new(towline()).args(words).output().expect("run");
        assert!(
            out.status.success() && said(&out).contains(" 1 files, 97.7 KiB, in 1 packs of"),
            "{}",
            said(&out)
        );
    }
    fs::write(leader.data().join("file"), noise(100_000)).expect("write");
    let mut command = night(Path::new(&towline()), Path::new(&url));
    let out = command.arg(&from).current_dir(&cwd).env("TMPDIR", &tmp).output().expect("run");
    assert!(out.status.success() && said(&out).is_empty(), "{}", said(&out));
    let left = entries(&archive.join("backup"));
    assert!(left.len() == 2 && left[1] == "older" && left[0].ends_with('Z'), "{left:?}");
    assert!(entries(&cwd).is_empty());
}

#[test]
fn a_night_with_the_program_itself_and_one_on_a_full_disk() {
    let bed = Bed::new("nightly-real");
    let spec = bed.leader("leader");
    fs::write(spec.data.join("file"), noise(100_000)).expect("write");
    let leader = spec.start();
    let from = format!("127.0.0.1:{}", leader.spec.listen);
    let real = PathBuf::from(towline());
    let dir = home(&bed, "dir");
    let out = night(&real, &dir).arg(&from).output().expect("run");
    assert!(out.status.success() && said(&out).is_empty(), "{}", said(&out));
    let label = new(&dir, &OLD[2..]);
    assert_eq!(checked(&dir.join(&label)).label, label);
    let Some(_disk) = Small::mount(&bed.path("small"), "4M") else {
        println!("skipped: nothing can be mounted on this host");
        return;
    };
    fs::write(leader.data().join("big"), noise(8 << 20)).expect("write");
    leader.wait_confirmed(&["--timeout", "5s"]);
    let small = home(&bed, "small/dir");
    let out = night(&real, &small).arg(&from).output().expect("run");
    assert_eq!(out.status.code(), Some(1), "{}", said(&out));
    assert!(said(&out).contains("No space left") && said(&out).contains("no backup of"), "{}", said(&out));
    let mut left: Vec<&str> = OTHERS.iter().chain(&OLD).copied().collect();
    left.sort_unstable();
    assert_eq!(entries(&small), left, "nothing of it stays, and no older one went");
}
