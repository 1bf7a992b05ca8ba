//! Point in time: a backup and the log after it become the directory as it was at a position, a time, a restore point.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use towline::moment::Moment;

use super::full::{Small, noise};
use crate::support::backup::Backup;
use crate::support::bed::{copy_tree, soak_or};
use crate::support::node::{lsn, towline};
use crate::support::slot::next_segment;
use crate::support::tree::python;
use crate::support::{Bed, Load, Node, assert_equal, assert_equal_within, load, until, within};

/// A state that the leader's directory had, and what names it.
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) lsn: String,
    /// After its commit and before the next change.
    pub(super) time: String,
    pub(super) copy: PathBuf,
}

/// A leader, a backup of it, and states before and after the backup.
struct History {
    bed: Bed,
    leader: Node,
    backup: PathBuf,
    before: Entry,
    after: Vec<Entry>,
}

/// Before the leader runs no point can be named.
pub(super) fn runs(leader: &Node) {
    until(within(20), "the leader runs", || match leader.status()?.state() {
        state if state == "running" => Ok(()),
        state => Err(state),
    });
}

pub(super) fn note(bed: &Bed, leader: &Node, name: &str) -> Entry {
    runs(leader);
    let out = leader.ask(&["restore-point", name, "--json"]);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let answer: Value = serde_json::from_slice(&out.stdout).expect("JSON");
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("time");
    let time = Moment(i64::try_from(now.as_nanos()).expect("time")).to_string();
    let copy = bed.path(format!("journal-{name}"));
    copy_tree(leader.data(), &copy);
    Entry { name: name.to_owned(), lsn: answer["lsn"].as_str().expect("LSN").to_owned(), time, copy }
}

/// Everything the leader's directory holds is in its log.
pub(super) fn settle(leader: &Node) {
    runs(leader);
    let out = leader.ask(&["restore-point", &format!("settled-{}", fastrand::u64(..))]);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
}

impl History {
    fn new(name: &str, steps: usize) -> Self {
        let bed = Bed::new(name);
        let leader = bed.leader("leader").set("keep_segments", "1000").set("max_delete", "100").start();
        let work = |seed| load::burst(&leader.data().join("app"), seed, 120);
        work(1);
        let before = note(&bed, &leader, "before");
        work(2);
        settle(&leader);
        let backup = bed.path("backup");
        Backup::new(leader.spec.listen, &backup).args(["--label", "base"]).good();
        let mut after = Vec::new();
        for i in 0..steps {
            work(3 + i as u64);
            after.push(note(&bed, &leader, &format!("p{i}")));
        }
        work(1000);
        settle(&leader);
        Self { bed, leader, backup, before, after }
    }

    fn restore(&self, target: &str, out: &Path) -> Restore {
        Restore::new(&self.backup, target, out).log(&self.leader.spec.state)
    }
}

/// `towline restore` as a process.
pub(super) struct Restore(Command);

impl Restore {
    pub(super) fn new(from: &Path, target: &str, out: &Path) -> Self {
        let mut command = Command::new("timeout");
        command.args(["-k", "1", "120", &towline(), "restore", "--target", target, "--from"]).arg(from);
        command.arg("--out").arg(out).env_remove("TOWLINE_LOG");
        Self(command)
    }

    pub(super) fn log(mut self, dir: &Path) -> Self {
        self.0.arg("--log").arg(dir);
        self
    }

    pub(super) fn args(mut self, words: &[&str]) -> Self {
        self.0.args(words);
        self
    }

    pub(super) fn env(mut self, key: &str, value: &str) -> Self {
        self.0.env(key, value);
        self
    }

    pub(super) fn stdin(mut self, from: fs::File) -> Self {
        self.0.stdin(from);
        self
    }

    pub(super) fn run(&mut self) -> Output {
        self.0.output().expect("run towline restore")
    }

    pub(super) fn good(&mut self) -> String {
        let out = self.run();
        assert_eq!(out.status.code(), Some(0), "{}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8_lossy(&out.stdout).into_owned()
    }

    pub(super) fn fails(&mut self, code: i32) -> String {
        let out = self.run();
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!(out.status.code(), Some(code), "{said}{}", String::from_utf8_lossy(&out.stdout));
        said
    }
}

/// Does something to a set.
type Harm<'a> = &'a dyn Fn(&Path);

/// What lies in a directory, by name.
pub(super) fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).expect("list");
    let mut names: Vec<String> =
        entries.map(|e| e.expect("entry").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn every_kind_of_target_gives_the_state_it_names() {
    let history = History::new("restore", soak_or(30, 6));
    let home = history.bed.path("restored");
    fs::create_dir(&home).expect("mkdir");
    for (i, entry) in history.after.iter().enumerate() {
        let target = [&entry.name, &entry.lsn, &entry.time][fastrand::usize(0..3)];
        let out = home.join(format!("{i}"));
        let said = history.restore(target, &out).good();
        assert!(said.contains(&entry.lsn), "{target}: {said}");
        assert_equal(&entry.copy, &out);
    }
    history.restore("latest", &home.join("latest")).good();
    assert_equal(history.leader.data(), &home.join("latest"));
    Restore::new(&history.backup, "exact", &home.join("first")).good();
    assert_equal(&history.backup.join("data"), &home.join("first"));
    let mut want: Vec<String> = (0..history.after.len()).map(|i| i.to_string()).collect();
    want.extend(["first".to_owned(), "latest".to_owned()]);
    want.sort();
    assert_eq!(names(&home), want, "nothing is left beside them");
}

/// One SHA-256 over all of a tree, by a program that shares no code with this one.
fn digest(dir: &Path) -> String {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/treecheck.py");
    let out = Command::new(python()).args([script, "--digest"]).arg(dir).output().expect("treecheck.py");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).trim().to_owned()
}

/// Long, and in a soak only: a journal of times, positions, names and digests, while an application writes without a pause
/// beside what the journal is about.
#[test]
fn a_journal_kept_while_the_application_writes_is_reproduced() {
    let points = soak_or(30, 0);
    if points == 0 {
        println!("skipped: TOWLINE_SOAK is not set");
        return;
    }
    let bed = Bed::new("journal");
    let leader = bed.leader("leader").set("keep_segments", "1000").set("max_delete", "100").start();
    let other = Load::start(&leader.data().join("other"), 5, std::time::Duration::from_millis(1));
    let app = leader.data().join("app");
    load::burst(&app, 1, 120);
    settle(&leader);
    let backup = bed.path("backup");
    Backup::new(leader.spec.listen, &backup).args(["--label", "base"]).good();
    let mut journal = Vec::new();
    for i in 0..3 * points {
        load::burst(&app, 10 + i as u64, fastrand::usize(5..80));
        if i % 3 > 0 {
            // States between the points that nobody noted.
            continue;
        }
        let name = format!("j{i}");
        let out = leader.ask(&["restore-point", &name, "--json"]);
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        let answer: Value = serde_json::from_slice(&out.stdout).expect("JSON");
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("time");
        let time = Moment(i64::try_from(now.as_nanos()).expect("time")).to_string();
        journal.push(([name, answer["lsn"].as_str().expect("LSN").to_owned(), time], digest(&app)));
    }
    let written = other.finish();
    settle(&leader);
    let mut kinds = [0; 3];
    for (i, (targets, want)) in journal.iter().enumerate() {
        let kind = (i + fastrand::usize(0..2)) % 3;
        kinds[kind] += 1;
        let out = bed.path(format!("out{i}"));
        Restore::new(&backup, &targets[kind], &out).log(&leader.spec.state).good();
        assert_eq!(digest(&out.join("app")), *want, "{}", targets[kind]);
        fs::remove_dir_all(&out).expect("rm");
    }
    println!("{points} points reproduced: {kinds:?} names, positions, times; {written} steps beside them");
}

#[test]
fn a_dry_run_says_what_it_would_do_and_does_nothing() {
    let history = History::new("restore-dry", 2);
    let (entry, out) = (&history.after[0], history.bed.path("out"));
    let plan = history.restore(&entry.name, &out).args(&["--dry-run", "--json"]).good();
    let plan: Value = serde_json::from_str(&plan).expect("JSON");
    assert_eq!((plan["lsn"].as_str(), plan["label"].as_str()), (Some(&*entry.lsn), Some("base")), "{plan}");
    let files = walkdir::WalkDir::new(history.backup.join("data")).into_iter().flatten();
    let bytes: u64 =
        files.filter_map(|e| e.metadata().ok()).filter(fs::Metadata::is_file).map(|m| m.len()).sum();
    assert!(plan["bytes"].as_u64() <= Some(bytes) && plan["files"].as_u64() > Some(0), "{plan}");
    assert!(plan["log_bytes"].as_u64() > Some(0) && plan["free_bytes"].as_u64() > Some(0), "{plan}");
    assert!(names(&history.bed.path("")).iter().all(|n| !n.starts_with("out")));
    let text = history.restore(&entry.name, &out).args(&["--dry-run"]).good();
    assert!(text.contains("ends on") && text.contains(&entry.lsn), "{text}");
    assert!(history.restore("FFFF/0", &out).args(&["--dry-run"]).fails(1).contains("log ends at"));
}

#[test]
fn what_can_not_be_restored_is_refused_by_name() {
    let history = History::new("restore-refused", 2);
    let (bed, out) = (&history.bed, history.bed.path("out"));
    let restore = |target: &str| history.restore(target, &out);
    for (target, said) in [
        ("FFFF/0", ["log ends at 0/", "target FFFF/"]),
        ("2199-01-01T00:00:00Z", ["nothing was written between", "--target latest if that is what"]),
        ("po", ["no restore point 'po' in the log from 0/", " it has 'p0', 'p1', "]),
    ] {
        let e = restore(target).fails(1);
        assert!(said.iter().all(|s| e.contains(s)), "{target}: {e}");
    }
    let old = &history.before;
    for target in [&old.lsn, &old.time] {
        let e = restore(target).fails(1);
        assert!(e.contains("newer than the target"), "{target}: {e}");
    }
    let e = Restore::new(&history.backup, &history.after[0].lsn, &out).fails(1);
    assert!(e.contains("log ends at"), "a tree holds no log: {e}");
    for target in ["2026-11-25", "", "yesterday"] {
        assert!(restore(target).fails(64).contains("is no target"), "{target}");
    }
    restore("latest").args(&["--target", "exact"]).fails(64);
    fs::create_dir(&out).expect("mkdir");
    fs::write(out.join("mine"), "x").expect("write");
    assert!(restore("latest").fails(1).contains("is not an empty directory"));
    assert_eq!(
        (names(&out), fs::read(out.join("mine")).ok()),
        (vec!["mine".to_owned()], Some(b"x".to_vec()))
    );
    fs::remove_dir_all(&out).expect("remove");
    // A hole in the log.
    let log = bed.path("log");
    copy_tree(&history.leader.spec.state.join("log"), &log);
    let first = names(&log).remove(0);
    fs::remove_file(log.join(first)).expect("remove");
    fs::write(log.join("00000001000000000000FFFF"), "x").expect("write");
    let dry = |words: &[&str]| {
        Restore::new(&history.backup, "latest", &out).log(&log).args(&["--dry-run"]).args(words)
    };
    let e = dry(&[]).fails(1);
    assert!(e.contains("are missing") && e.contains("--allow-gap"), "{e}");
    let e = dry(&["--allow-gap"]).good();
    assert!(e.contains("log       none") && e.contains("later ones are lost"), "{e}");
    let plan: Value = serde_json::from_str(&dry(&["--allow-gap", "--json"]).good()).expect("JSON");
    assert_eq!(plan["missing"][1], "00000001000000000000FFFE", "{plan}");
    let e = Restore::new(&history.backup, &history.after[1].name, &out).log(&log).fails(1);
    assert!(e.contains("no restore point 'p1'") && e.contains("are missing"), "{e}");
    let none = Restore::new(&history.backup, "latest", &out).log(&history.backup.join("data")).fails(1);
    assert!(none.contains("there is no log in"), "{none}");
    assert!(!out.exists());
}

#[test]
fn only_the_segments_that_are_needed_have_to_be_whole() {
    let bed = Bed::new("restore-needed");
    let leader =
        bed.leader("leader").set("segment_timeout", "\"100ms\"").set("keep_segments", "1000").start();
    fs::write(leader.data().join("file"), "1").expect("write");
    settle(&leader);
    let backup = bed.path("backup");
    Backup::new(leader.spec.listen, &backup).good();
    next_segment(&leader);
    let wanted = note(&bed, &leader, "wanted");
    next_segment(&leader);
    let bad = (lsn(&note(&bed, &leader, "bad").lsn) - 1) >> 24;
    next_segment(&leader);
    settle(&leader);
    let log = bed.path("log");
    copy_tree(&leader.spec.state.join("log"), &log);
    let path = log.join(format!("00000001{bad:016X}"));
    let mut bytes = fs::read(&path).expect("read");
    let half = bytes.len() / 2;
    bytes[half] ^= 0x40;
    fs::write(&path, &bytes).expect("write");
    let restore = |target: &str, out: &Path| Restore::new(&backup, target, out).log(&log);
    for target in [&wanted.name, &wanted.lsn] {
        let out = bed.path(format!("to-{}", target.replace('/', "-")));
        restore(target, &out).good();
        assert_equal(&wanted.copy, &out);
    }
    let e = restore("latest", &bed.path("out")).fails(1);
    assert!(
        e.contains(&format!("segment {bad:X} is needed for the target latest")) && e.contains("--log"),
        "{e}"
    );
    restore("latest", &bed.path("out")).log(&leader.spec.state).good();
    assert_equal(leader.data(), &bed.path("out"));
}

#[test]
fn a_damaged_set_is_refused_before_it_counts() {
    let history = History::new("restore-damaged", 1);
    let (bed, out) = (&history.bed, history.bed.path("out"));
    let victim = {
        let data = history.backup.join("data");
        let files = walkdir::WalkDir::new(&data).into_iter().flatten();
        let mut full = files.filter(|e| e.metadata().is_ok_and(|m| m.is_file() && m.len() > 0));
        let file = full.next().expect("a file").into_path();
        file.strip_prefix(&history.backup).expect("below").to_owned()
    };
    let flip = |path: &Path| {
        let bytes = fs::read(path).expect("read");
        let at = bytes.len() / 2;
        let file = fs::OpenOptions::new().write(true).open(path).expect("open");
        file.write_all_at(&[bytes[at] ^ 0x40], at as u64).expect("write");
    };
    let outside = bed.path("outside");
    fs::create_dir(&outside).expect("mkdir");
    let harms: [(&str, &str, Harm<'_>); 6] = [
        ("no manifest", "manifest.json is missing", &|set| {
            fs::remove_file(set.join("manifest.json")).expect("rm")
        }),
        ("manifest", "manifest", &|set| flip(&set.join("manifest.json"))),
        ("catalog", "another SHA-256", &|set| flip(&set.join("catalog"))),
        ("content", "is not what its catalog says", &|set| flip(&set.join(&victim))),
        ("a file that is gone", "lacks", &|set| fs::remove_file(set.join(&victim)).expect("rm")),
        ("a symlink", "data", &|set| {
            let path = set.join(&victim);
            fs::rename(&path, outside.join("f")).expect("mv");
            symlink(outside.join("f"), &path).expect("symlink");
        }),
    ];
    for (what, said, harm) in harms {
        let set = bed.path("harmed");
        copy_tree(&history.backup, &set);
        harm(&set);
        let e = Restore::new(&set, "latest", &out).log(&history.leader.spec.state).fails(1);
        assert!(e.contains(said), "{what}: {e}");
        assert!(!out.exists(), "{what}");
        fs::remove_dir_all(&set).expect("rm");
        for left in ["out.restoring", "out.restoring.state"] {
            let _ = fs::remove_dir_all(bed.path(left));
        }
    }
    history.restore("latest", &out).good();
    assert_equal(history.leader.data(), &out);
}

/// A set as a stream carries it: files as they were read while they were written, and the log that makes them whole.
fn fuzzy(bed: &Bed) -> (Node, PathBuf) {
    use towline::manifest::{Form, Manifest, Part, Range, Sha};
    use towline::{checkpoint, position};
    let mut leader = bed.leader("leader").set("keep_segments", "1000").start();
    let file = |i: usize| leader.data().join(format!("f{i}"));
    (0..20).for_each(|i| fs::write(file(i), vec![b'a'; 200_000]).expect("write"));
    leader.stop();
    leader.restart();
    until(within(20), "the leader runs", || {
        let status = leader.status()?;
        if status.state() == "running" { Ok(()) } else { Err(status.state()) }
    });
    let system = position::SystemId(
        u64::from_str_radix(leader.status().expect("status").0["system"].as_str().expect("id"), 16)
            .expect("hex"),
    );
    let newest = fs::read_dir(leader.spec.state.join("catalog")).expect("list").flatten().map(|e| e.path());
    let catalogs: BTreeMap<u64, PathBuf> =
        newest.filter_map(|p| Some((checkpoint::load(&p).ok()?.lsn().0, p))).collect();
    let (_, newest) = catalogs.last_key_value().expect("a checkpoint");
    let set = bed.path("fuzzy");
    fs::create_dir_all(set.join("base")).expect("mkdir");
    fs::create_dir_all(set.join("log")).expect("mkdir");
    fs::copy(newest, set.join("catalog")).expect("copy");
    fs::write(set.join("blocks"), "").expect("write");
    for i in 0..20 {
        // One half of it is read before, the other half after it was written.
        let path = leader.data().join(format!("f{i}"));
        let mut held = fs::read(&path).expect("read");
        fs::write(&path, vec![b'b'; 150_000 + i * 10_000]).expect("write");
        let now = fs::read(&path).expect("read");
        let half = held.len().min(now.len()) / 2;
        held[half..now.len().min(200_000)].copy_from_slice(&now[half..now.len().min(200_000)]);
        fs::write(set.join(format!("base/f{i}")), held).expect("write");
    }
    fs::write(leader.data().join("new"), "new").expect("write");
    fs::remove_file(leader.data().join("f7")).expect("rm");
    fs::remove_file(set.join("base/f7")).expect("rm");
    let end = note(bed, &leader, "end");
    let part = |name: &str| {
        let bytes = fs::read(set.join(name)).expect("read");
        let sha256 = Sha(<sha2::Sha256 as sha2::Digest>::digest(&bytes).into());
        Part { name: name.to_owned(), size: bytes.len() as u64, sha256 }
    };
    let mut parts = vec![part("catalog"), part("blocks")];
    for segment in leader.segments() {
        let name = segment.file_name().expect("name").to_string_lossy().into_owned();
        fs::copy(&segment, set.join("log").join(&name)).expect("copy");
        parts.push(part(&format!("log/{name}")));
    }
    let catalog = checkpoint::load(&set.join("catalog")).expect("catalog");
    let (start, to) = (catalog.lsn(), position::Lsn(lsn(&end.lsn)));
    let timeline = position::TimelineId::FIRST;
    let manifest = Manifest {
        form: Form::Tar,
        label: "fuzzy".to_owned(),
        system,
        timeline,
        start,
        end: to,
        start_time: catalog.time(),
        end_time: catalog.time() + 1,
        exact: true,
        created: 1,
        program: "test".to_owned(),
        base: None,
        log: vec![Range { timeline, start, end: to }],
        parts,
        files: Vec::new(),
    };
    manifest.write(&mut fs::File::create(set.join("manifest.json")).expect("create")).expect("write");
    (leader, set)
}

#[test]
fn files_as_they_were_read_are_made_whole_by_the_log() {
    let bed = Bed::new("restore-fuzzy");
    let (leader, set) = fuzzy(&bed);
    Restore::new(&set, "exact", &bed.path("first")).good();
    assert_equal(&bed.path("journal-end"), &bed.path("first"));
    load::burst(&leader.data().join("app"), 9, 100);
    let later = note(&bed, &leader, "later");
    fs::write(leader.data().join("new"), "newer").expect("write");
    settle(&leader);
    Restore::new(&set, "later", &bed.path("later")).log(&leader.spec.state).good();
    assert_equal(&later.copy, &bed.path("later"));
    Restore::new(&set, "end", &bed.path("by-name")).good();
    assert_equal(&bed.path("journal-end"), &bed.path("by-name"));
}

#[test]
fn a_restore_that_is_killed_anywhere_goes_on() {
    let bed = Bed::new("restore-killed");
    let (leader, set) = fuzzy(&bed);
    load::burst(&leader.data().join("app"), 9, 200);
    let later = note(&bed, &leader, "later");
    let points = towline::failpoint::ALL.iter().filter(|p| {
        let module = p.split("::").next().unwrap_or_default();
        // The set is a directory: nothing is fetched or written down.
        !["restore::spool", "restore::fetch"].contains(p)
            && matches!(module, "restore" | "fill" | "disk" | "apply" | "catalog" | "blocks" | "log")
    });
    let mut reached = Vec::new();
    for point in points {
        for times in soak_or(&[1, 2, 5][..], &[1][..]) {
            let out = bed.path("out");
            let restore = || Restore::new(&set, "later", &out).log(&leader.spec.state);
            let killed = restore().env("TOWLINE_FAILPOINTS", &format!("{point}=kill@{times}")).run();
            if !killed.status.success() {
                reached.push(*point);
                restore().good();
            }
            assert_equal(&later.copy, &out);
            assert!(
                !bed.path("out.restoring").exists() && !bed.path("out.restoring.state").exists(),
                "{point}"
            );
            fs::remove_dir_all(&out).expect("rm");
        }
    }
    for point in [
        "restore::segment",
        "restore::whole",
        "restore::done",
        "restore::moved",
        "fill::file",
        "apply::after_batch",
    ] {
        assert!(reached.contains(&point), "{point} was never passed: {reached:?}");
    }
}

#[test]
fn a_directory_that_is_there_is_made_equal_and_only_what_differs_is_moved() {
    let bed = Bed::new("restore-delta");
    let (leader, set) = fuzzy(&bed);
    let large = leader.data().join("large");
    fs::write(&large, noise(16 << 20)).expect("write");
    load::burst(&leader.data().join("app"), 9, 100);
    let later = note(&bed, &leader, "later");
    let tree = bed.path("tree");
    Backup::new(leader.spec.listen, &tree).good();
    let out = bed.path("out");
    copy_tree(&later.copy, &out);
    let outside = bed.path("outside");
    fs::create_dir(&outside).expect("mkdir");
    fs::write(outside.join("file"), "mine").expect("write");
    // Edited, removed, added, and a directory that now leads elsewhere.
    let file = fs::OpenOptions::new().write(true).open(out.join("large")).expect("open");
    file.write_all_at(b"another", 5 << 20).expect("write");
    fs::remove_file(out.join("f3")).expect("rm");
    fs::write(out.join("added"), "x").expect("write");
    fs::rename(out.join("app"), bed.path("aside")).expect("mv");
    symlink(&outside, out.join("app")).expect("symlink");
    assert!(Restore::new(&tree, "exact", &out).fails(1).contains("--delta"));
    let inode = |path: &Path| std::os::unix::fs::MetadataExt::ino(&fs::metadata(path).expect("stat"));
    let before = inode(&out.join("large"));
    let mut restore = Restore::new(&tree, "exact", &out).args(&["--delta", "--log-level", "info"]);
    let said = restore.run();
    let said = String::from_utf8_lossy(&said.stderr).into_owned();
    assert_equal(leader.data(), &out);
    assert_eq!(
        (inode(&out.join("large")), fs::read(outside.join("file")).ok()),
        (before, Some(b"mine".to_vec()))
    );
    let moved = said.split("files differed, ").nth(1).and_then(|s| s.split(' ').next()).expect("a number");
    let moved: u64 = moved.parse().expect("a number");
    assert!((1..4 << 20).contains(&moved), "{moved} bytes for a few blocks and some small files: {said}");
    // Killed half way it is not there under its name, and the same command goes on.
    let points =
        ["resync::begin", "resync::names", "resync::file", "resync::done", "resync::end", "restore::done"];
    for point in points {
        fs::write(out.join("f4"), format!("not what it was: {point}")).expect("write");
        fs::write(out.join("junk"), "x").expect("write");
        let restore = || Restore::new(&set, "later", &out).log(&leader.spec.state).args(&["--delta"]);
        let killed = restore().env("TOWLINE_FAILPOINTS", &format!("{point}=kill")).run();
        assert!(!killed.status.success(), "{point} was never passed");
        assert!(!out.exists() && bed.path("out.restoring").exists(), "{point}");
        restore().good();
        assert_equal(&later.copy, &out);
        assert!(!bed.path("out.restoring").exists() && !bed.path("out.restoring.state").exists(), "{point}");
    }
}

#[test]
fn what_is_read_kept_or_in_use_is_never_written_over_and_a_broken_delta_says_what_it_is() {
    let history = History::new("restore-guards", 2);
    let (bed, leader) = (&history.bed, &history.leader);
    let delta = |out: &Path| history.restore("p0", out).args(&["--delta"]);
    let (data, state) = (leader.data().to_owned(), leader.spec.state.clone());
    let copy = bed.path("state");
    copy_tree(&state, &copy);
    let link = bed.path("link");
    symlink(&history.backup, &link).expect("symlink");
    for (out, why) in [
        (&data, "is in use by process"),
        (&state.join("log"), "which --log reads from"),
        (&history.backup.join("data"), "which --from reads from"),
        (&link, "which --from reads from"),
        (&copy, "is the state directory of a node"),
    ] {
        let before = names(out);
        let e = delta(out).fails(1);
        assert!(e.contains(why), "{}: {e}", out.display());
        assert!(delta(out).args(&["--dry-run"]).fails(1).contains(why));
        assert_eq!(names(out), before, "{e}");
    }
    let e = history.restore("p0", &history.backup.join("new")).fails(1);
    assert!(e.contains("which --from reads from"), "without --delta, too: {e}");
    // A symlink is said to be one, with or without.
    let out = bed.path("out");
    copy_tree(&history.after[1].copy, &out);
    let link = bed.path("to-out");
    symlink(&out, &link).expect("symlink");
    for e in [delta(&link).fails(1), history.restore("p0", &link).fails(1)] {
        assert!(e.contains("is a symlink to") && !e.contains("--delta"), "{e}");
    }
    // What goes is said before it does.
    fs::create_dir(out.join("mine")).expect("mkdir");
    fs::write(out.join("mine/only"), "x").expect("write");
    let plan = delta(&out).args(&["--dry-run", "--json"]).good();
    let plan: Value = serde_json::from_str(&plan).expect("JSON");
    let first = plan["goes_first"].as_array().expect("names");
    assert!(plan["goes"].as_u64() >= Some(2) && !first.is_empty() && first.len() <= 5, "{plan}");
    // Killed before anything was touched it is in nobody's way.
    let killed = delta(&out).env("TOWLINE_FAILPOINTS", "restore::segment=kill").run();
    assert!(!killed.status.success() && out.join("mine/only").exists());
    let killed =
        history.restore("p1", &out).args(&["--delta"]).env("TOWLINE_FAILPOINTS", "resync::begin=kill").run();
    assert!(!killed.status.success(), "another target is taken");
    let e = delta(&out).fails(1);
    assert!(
        e.contains("--delta") && e.contains("must not be removed") && e.contains("rename it back"),
        "{e}"
    );
    assert!(bed.path("out.restoring/mine/only").exists());
    let said = history.restore("p1", &out).args(&["--delta"]).good();
    assert!(!said.contains("gone from it"), "only what was looked at before: {said}");
    assert_equal(&history.after[1].copy, &out);
}

#[test]
fn a_restore_goes_on_as_a_follower() {
    let history = History::new("restore-follower", 2);
    let spec = history.bed.follower("follower", history.leader.spec.listen);
    let state = spec.state.to_str().expect("UTF-8").to_owned();
    let words = ["--as-follower", "--state", &state];
    history.restore(&history.after[0].name, &spec.data).args(&words).good();
    assert_equal(&history.after[0].copy, &spec.data);
    assert!(names(spec.data.parent().expect("parent")).iter().all(|n| !n.contains("restoring")));
    let follower = spec.start();
    fs::write(history.leader.data().join("more"), "more").expect("write");
    assert_equal_within(within(30), history.leader.data(), follower.data());
    assert!(!follower.log().contains("first copy"), "{}", follower.log());
    assert!(!follower.log().contains("resync"), "{}", follower.log());
}

#[test]
fn a_full_disk_holds_a_restore_up_and_nothing_is_lost() {
    let history = History::new("restore-full", 1);
    fs::write(history.leader.data().join("large"), noise(24 << 20)).expect("write");
    settle(&history.leader);
    let home = history.bed.path("small");
    let Some(disk) = Small::mount(&home, "40m") else {
        println!("skipped: nothing can be mounted on this host");
        return;
    };
    let out = home.join("out");
    let e = history.restore("latest", &out).fails(1);
    assert!(e.contains("No space left on device"), "{e}");
    assert!(!out.exists());
    disk.resize("200m");
    history.restore("latest", &out).good();
    assert_equal(history.leader.data(), &out);
}

#[test]
fn the_log_comes_from_an_archive() {
    let bed = Bed::new("restore-archive");
    let archive = bed.path("archive");
    fs::create_dir(&archive).expect("mkdir");
    let address = format!("file://{}", archive.display());
    let spec =
        bed.leader("leader").set("archive", &format!("\"{address}\"")).set("segment_timeout", "\"1s\"");
    let leader = spec.set("max_delete", "100").start();
    let backup = bed.path("backup");
    Backup::new(leader.spec.listen, &backup).good();
    let mut entries = Vec::new();
    for i in 0..4_u64 {
        load::burst(&leader.data().join("app"), i, 100);
        entries.push(note(&bed, &leader, &format!("p{i}")));
    }
    settle(&leader);
    for (i, entry) in entries.iter().enumerate() {
        let (out, log) = (
            bed.path(format!("out{i}")),
            if i % 2 == 0 { address.as_str() } else { archive.to_str().expect("UTF-8") },
        );
        until(within(60), "the archive has it", || {
            let out = Restore::new(&backup, &entry.name, &out).log(Path::new(log)).run();
            if out.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&out.stderr).into_owned()) }
        });
        assert_equal(&entry.copy, &out);
    }
    let other = bed.path("other");
    fs::create_dir(&other).expect("mkdir");
    fs::write(other.join("system.json"), r#"{"towline_archive":1,"system":"00000000000000aa","id":"1"}"#)
        .expect("write");
    let e = Restore::new(&backup, "latest", &bed.path("out")).log(&other).fails(1);
    assert!(e.contains("is that of system 00000000000000aa"), "{e}");
}
