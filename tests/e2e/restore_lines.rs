//! Restores over timelines: along the way of a promotion, and as the leader of a new one.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use towline::archive::SegmentName;
use towline::archive::names::EndedName;
use towline::history::History;
use towline::manifest::Manifest;
use towline::position::SystemId;
use towline::segment::{HEADER_LEN, Header};

use super::restore::{Restore, names, note, settle};
use super::restore_chain::run;
use crate::support::archive::{archived_all, archiving};
use crate::support::backup::Backup;
use crate::support::bed::{copy_tree, soak};
use crate::support::load::{self, Load};
use crate::support::sets::{edit, flip, sha};
use crate::support::{Bed, Node, assert_equal, assert_equal_within, until, within};

/// A leader with an archive, a backup in it, and what it writes after that.
struct Archived {
    leader: Node,
    bed: Bed,
    url: PathBuf,
}

impl Archived {
    fn new(name: &str) -> Self {
        let bed = Bed::new(name);
        let archive = bed.path("archive");
        let leader = archiving(bed.leader("leader"), &archive).set("max_delete", "100").start();
        let url = PathBuf::from(format!("file://{}", archive.display()));
        load::burst(&leader.data().join("app"), 1, 60);
        settle(&leader);
        backup(&leader, &url, "old");
        load::burst(&leader.data().join("app"), 2, 60);
        Self { leader, bed, url }
    }

    fn restore(&self, target: &str, out: &str, words: &[&str]) -> Restore {
        Restore::new(&self.url, target, &self.bed.path(out)).args(words)
    }

    fn history(&self, timeline: u32) -> bool {
        self.bed.path(format!("archive/history/{timeline:08X}.history")).exists()
    }
}

fn backup(leader: &Node, url: &Path, label: &str) {
    let out = Backup::new(leader.spec.listen, url).args(["--label", label]).run();
    assert_eq!(out.status.code(), Some(0), "{}", String::from_utf8_lossy(&out.stderr));
}

/// All that there is so far is sealed a moment later, and archived.
fn archive_all(node: &Node) {
    settle(node);
    std::thread::sleep(Duration::from_millis(150));
    settle(node);
    archived_all(node);
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).expect("JSON")
}

/// Where a restore that makes a leader dies.
const LEADS: &[&str] = &[
    "promote::before_history",
    "promote::before_control",
    "promote::after_control",
    "restore::leads",
    "branch::seal",
    "branch::after_seal",
    "branch::aside",
    "restore::done",
    "restore::moved",
];

#[test]
fn a_restore_is_the_leader_of_a_new_timeline_and_the_old_one_is_left_behind() {
    let old = Archived::new("restore-leader");
    let good = note(&old.bed, &old.leader, "good");
    fs::remove_dir_all(old.leader.data().join("app")).expect("the accident");
    fs::write(old.leader.data().join("bad"), "bad").expect("write");
    archive_all(&old.leader);
    let spec = archiving(old.bed.leader("new"), &old.bed.path("archive")).set("max_delete", "100");
    let state = spec.state.to_str().expect("UTF-8").to_owned();
    let restore = |words: &[&str]| {
        let target =
            Restore::new(&old.url, "good", &spec.data).args(&["--as-leader", "--state", &state, "--json"]);
        target.args(words)
    };
    let plan = json(&restore(&["--dry-run"]).good());
    assert_eq!((&plan["new_timeline"], &plan["target_timeline"]), (&2.into(), &1.into()), "{plan}");
    let is_free = |dir: &Path| fs::read_dir(dir).map_or(0, Iterator::count) == 0;
    assert!(is_free(&spec.data) && is_free(&spec.state));
    // Wherever it dies the same command makes it a leader once.
    let points = if soak() { LEADS } else { &LEADS[fastrand::usize(..LEADS.len())..][..1] };
    for point in points {
        let _ = fs::remove_dir_all(&spec.data);
        let _ = fs::remove_dir_all(&spec.state);
        let killed = restore(&[]).env("TOWLINE_FAILPOINTS", &format!("{point}=kill")).run();
        // Where the line sealed its segment just there nothing is ended.
        assert!(!killed.status.success() || point.starts_with("branch::"), "{point} was never passed");
        if !killed.status.success() {
            assert_eq!(json(&restore(&[]).good())["new_timeline"], 2, "{point}");
        }
        assert_equal(&good.copy, &spec.data);
        assert!(!names(spec.state.parent().expect("parent")).iter().any(|n| n.contains("restoring")));
        assert!(!names(&spec.state).iter().any(|n| n == "fetched" || n == "lost" || n == "restore.json"));
    }
    let leader = spec.start();
    let told = String::from_utf8(leader.ask(&["history"]).stdout).expect("text");
    assert!(told.contains("restore") && told.contains(&good.lsn) && told.lines().count() == 3, "{told}");
    let follower = old.bed.follower("follower", leader.spec.listen);
    let mut follower = follower.set("leader", &format!("\"127.0.0.1:{}\"", leader.spec.listen));
    follower.leader_in_config = true;
    let mut follower = follower.start();
    fs::write(leader.data().join("new"), "new").expect("write");
    assert_equal_within(within(20), leader.data(), follower.data());
    assert!(!follower.data().join("bad").exists() && follower.data().join("app").exists());
    // Both archive to one place.
    fs::write(old.leader.data().join("left"), "left").expect("write");
    settle(&old.leader);
    archive_all(&leader);
    archived_all(&old.leader);
    assert!(old.history(2));
    old.restore("latest", "latest", &[]).good();
    assert_equal(leader.data(), &old.bed.path("latest"));
    // The old leader lives, but nobody who has seen the new timeline takes anything from it.
    follower.reload("leader", &format!("\"127.0.0.1:{}\"", old.leader.spec.listen)).expect("reload");
    until(within(20), "it is refused by name", || {
        let status = follower.status()?;
        let text = status.0.to_string();
        if status.upstream_code() == "wrong-timeline" && text.contains("an older one") {
            Ok(())
        } else {
            Err(text)
        }
    });
    // Another one from the same place takes the next number.
    let third = old.bed.path("third");
    let words = [
        "--target-timeline",
        "1",
        "--as-leader",
        "--dry-run",
        "--json",
        "--state",
        third.to_str().expect("UTF-8"),
    ];
    let plan = json(&old.restore("good", "out", &words).good());
    assert_eq!((&plan["new_timeline"], &plan["target_timeline"]), (&3.into(), &1.into()), "{plan}");
}

#[test]
fn a_restore_goes_over_a_promotion_to_the_timeline_that_is_asked_for() {
    let old = Archived::new("restore-lines");
    let spec = archiving(old.bed.follower("a", old.leader.spec.listen), &old.bed.path("archive"));
    let mut a = spec.set("max_delete", "100").start();
    assert_equal_within(within(20), old.leader.data(), a.data());
    fs::write(old.leader.data().join("streamed"), "streamed").expect("write");
    let before = note(&old.bed, &old.leader, "before");
    assert_equal_within(within(20), old.leader.data(), a.data());
    a.stop();
    let Archived { mut leader, bed, url } = old;
    fs::write(leader.data().join("left"), "left").expect("write");
    let left = note(&bed, &leader, "left");
    leader.kill();
    a.restart();
    let out = a.ask(&["promote", "--wait"]);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    load::burst(&a.data().join("app"), 3, 60);
    let after = note(&bed, &a, "after");
    backup(&a, &url, "new");
    fs::write(a.data().join("last"), "last").expect("write");
    archive_all(&a);
    let old = Archived { leader, bed, url };
    let log = old.leader.spec.state.to_str().expect("UTF-8").to_owned();
    let all: &[(&str, &[&str], &Path)] = &[
        ("latest", &["--backup", "old"], a.data()),
        (&before.time, &[], &before.copy),
        (&after.lsn, &["--target-timeline", "2"], &after.copy),
        ("latest", &["--target-timeline", "current", "--backup", "old", "--log", &log], &left.copy),
        ("latest", &[], a.data()),
        ("before", &["--target-timeline", "1"], &before.copy),
        (&before.lsn, &["--target-timeline", "current"], &before.copy),
        ("left", &["--target-timeline", "1", "--log", &log], &left.copy),
    ];
    for (n, (target, words, copy)) in all.iter().enumerate().take(if soak() { all.len() } else { 4 }) {
        let out = format!("out{n}");
        old.restore(target, &out, words).good();
        assert_equal(copy, &old.bed.path(&out));
    }
    let plan = json(&old.restore("after", "out", &["--dry-run", "--json"]).good());
    assert_eq!(
        (&plan["label"], &plan["timeline"], &plan["target_timeline"]),
        (&"old".into(), &1.into(), &2.into())
    );
    let e = old.restore("latest", "out", &["--target-timeline", "7"]).fails(1);
    assert!(
        e.contains("nothing is known of timeline 7") && e.contains("the newest that is known is 2"),
        "{e}"
    );
    let e = old.restore("latest", "out", &["--target-timeline", "1", "--backup", "new"]).fails(1);
    assert!(e.contains("'new'") && e.contains("of timeline 2") && e.contains("--target-timeline 2"), "{e}");
    // A follower that begins there goes on without a copy, and dies on its way once.
    let follower = old.bed.follower("b", a.spec.listen);
    let state = follower.state.to_str().expect("UTF-8").to_owned();
    let words = ["--backup", "old", "--as-follower", "--state", &state];
    let restore = || Restore::new(&old.url, "after", &follower.data).args(&words);
    let killed = restore().env("TOWLINE_FAILPOINTS", "restore::timeline=kill").run();
    assert!(!killed.status.success(), "restore::timeline was never passed");
    restore().good();
    let follower = follower.start();
    fs::write(a.data().join("more"), "more").expect("write");
    assert_equal_within(within(20), a.data(), follower.data());
    assert!(
        !follower.log().contains("first copy") && !follower.log().contains("resync"),
        "{}",
        follower.log()
    );
    the_end_of_a_line_is_read(&old.bed.path("archive"));
    // Without the end of the old timeline as the new leader archived it: of the old leader's log what counts is taken.
    settle(&a);
    let dir = old.bed.path("archive/log/00000001");
    for ended in names(&dir).into_iter().filter(|n| n.contains(".00000002-")) {
        fs::remove_file(dir.join(ended)).expect("remove");
    }
    old.restore(&after.lsn, "cut", &["--backup", "old", "--log", &log]).good();
    assert_equal(&after.copy, &old.bed.path("cut"));
}

/// By both commands that read a whole archive.
fn the_end_of_a_line_is_read(archive: &Path) {
    let verify = || {
        let own = run(
            &["archive", "verify", "--archive"]
                .map(OsStr::new)
                .into_iter()
                .chain([archive.as_os_str()])
                .collect::<Vec<_>>(),
            "",
        );
        let other = run(&["verify".as_ref(), archive.as_os_str()], "");
        assert_eq!(own.0, other.0, "{} {}", own.1, other.1);
        (own.0, [own.1, other.1])
    };
    let says = |code: i32, word: &str| {
        let (got, said) = verify();
        assert!(got == Some(code) && said.iter().all(|s| s.contains(word)), "{word}: {said:?}");
    };
    let dir = archive.join("log/00000001");
    let file = archive.join("history/00000002.history");
    let history = fs::read(&file).expect("read");
    let known = History::decode(&history).expect("a history");
    let ended = names(&dir).into_iter().find(|n| n.contains(".00000002-"));
    let (end, made) = match ended {
        Some(name) => (dir.join(name), false),
        // The line has sealed its last segment just there: as if the later timeline had done it.
        None => {
            let number = format!("{:016X}-", known.branches()[0].last_segment().0);
            let own = names(&dir).into_iter().find(|n| n.starts_with(&number)).expect("the last one");
            let end = dir.join(own.replacen('-', ".00000002-", 1));
            fs::copy(dir.join(own), &end).expect("copy");
            (end, true)
        }
    };
    says(0, ": good");
    fs::write(dir.join("odd"), "odd").expect("write");
    says(0, "stray 'log/00000001/odd': no object of an archive\nstrays are never removed");
    fs::remove_file(dir.join("odd")).expect("remove");
    flip(&end);
    says(1, "damaged as a later timeline ended it there");
    flip(&end);
    fs::write(&file, other_history(&known, known.system().0, 1).encode()).expect("write");
    says(1, "it does not end where that branched off");
    flip(&file);
    says(1, "history/00000002.history");
    fs::write(&file, history).expect("write");
    // The next line goes on from another end.
    let kept = fs::read(&end).expect("read");
    let mut header = Header::decode(&kept[..HEADER_LEN]).expect("a header");
    header.created_ns += 1;
    let mut bytes = [&header.encode()[..], &kept[HEADER_LEN..kept.len() - 32]].concat();
    bytes.extend(sha(&bytes).0);
    let of = SegmentName::of(header.timeline, header.segment, &bytes);
    let other = archive.join(EndedName { of, by: known.timeline() }.to_string());
    fs::remove_file(&end).expect("remove");
    fs::write(&other, bytes).expect("write");
    says(1, &format!("segment {:X} of timeline 2 ", header.segment.0 + 1));
    says(1, "not written after the segment before");
    fs::remove_file(&other).expect("remove");
    fs::write(&end, kept).expect("write");
    says(0, ": good");
    if made {
        fs::remove_file(&end).expect("remove");
    }
}

/// What `towline` says of one thing that was done to the part with the history of a copy of a set.
fn damaged(set: &Path, damage: impl FnOnce(&Path)) -> String {
    let hurt = set.with_file_name("hurt");
    copy_tree(set, &hurt);
    damage(&hurt);
    let (code, verified) = run(&["verify".as_ref(), hurt.as_os_str()], "");
    let (out, state) = (set.with_file_name("no"), set.with_file_name("no-state"));
    let words = ["--as-follower", "--state", state.to_str().expect("UTF-8")];
    let restored = Restore::new(&hurt, "latest", &out).args(&words).fails(1);
    assert!(!out.exists() && !state.exists(), "{restored}");
    fs::remove_dir_all(&hurt).expect("remove");
    format!("{code:?} {verified}\n{restored}")
}

const PART: &str = "00000002.history";

/// The history of another system, or of a branch that lies `at` bytes behind.
fn other_history(known: &History, system: u64, at: u64) -> History {
    let b = known.branches()[0].clone();
    let begins = towline::history::Beginning {
        at: towline::position::Lsn(b.at.0 + at),
        line: b.line,
        when: b.when,
        node: b.node,
        name: b.name,
        reason: b.reason,
        known: b.known,
    };
    History::first(SystemId(system)).child(begins, b.parent).expect("a branch")
}

fn foreign(set: &Path, system: u64, at: u64) {
    let known = History::decode(&fs::read(set.join(PART)).expect("read")).expect("a history");
    fs::write(set.join(PART), other_history(&known, system, at).encode()).expect("write");
    edit(set, |_| ());
}

/// Whatever is wrong with the part nothing is made of it.
fn what_is_wrong_with_it_is_named(bed: &Bed, tree: &Path, combined: &Path) {
    let said = damaged(tree, |set| flip(&set.join(PART)));
    assert!(said.contains(PART) && said.contains("checksum") && said.contains("another SHA-256"), "{said}");
    let said = damaged(combined, |set| fs::remove_file(set.join(PART)).expect("remove"));
    assert!(said.contains(PART) && said.contains("it is not there") && said.contains("is missing"), "{said}");
    let system = Manifest::parse(&fs::read(tree.join("manifest.json")).expect("read")).expect("sound").system;
    let said = damaged(combined, |set| foreign(set, system.0 ^ 1, 0));
    assert!(said.matches("and the backup is of timeline 2 of system").count() == 2, "{said}");
    let said = damaged(tree, |set| foreign(set, system.0, 1 << 40));
    assert!(said.matches("the backup ends before that").count() == 2, "{said}");
    // One that an older version made has none: it is read, and says what is missing for a node.
    edit(tree, |m| m.parts.retain(|p| p.name != PART));
    fs::remove_file(tree.join(PART)).expect("remove");
    let out = bed.path("old");
    Restore::new(tree, "latest", &out).good();
    let state = bed.path("old-state");
    let words = ["--as-follower", "--state", state.to_str().expect("UTF-8")];
    let e = Restore::new(tree, "latest", &bed.path("old2")).args(&words).fails(1);
    assert!(e.contains("the history of timeline 2 is not known"), "{e}");
}

/// On timeline 2, that nobody archives, begun a moment ago: backups of every form.
#[test]
fn a_backup_carries_the_history_of_its_timeline_and_is_a_node_by_itself() {
    let bed = Bed::new("backup-history");
    let mut first = bed.leader("first").start();
    load::burst(&first.data().join("app"), 1, 60);
    let mut leader = bed.follower("leader", first.spec.listen).start();
    assert_equal_within(within(20), first.data(), leader.data());
    first.kill();
    let out = leader.ask(&["promote", "--wait"]);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let take = |name: &str, words: &[&str]| {
        let out = bed.path(name);
        let made = Backup::new(leader.spec.listen, &out).args(["--label", name]).args(words).good();
        assert_eq!((made.timeline.0, made.history_part().map(|p| &*p.name)), (2, Some("00000002.history")));
        out
    };
    let tree = take("tree", &[]);
    let work = Load::start(&leader.data().join("load"), 4, Duration::from_millis(5));
    let (archive, tar) = (bed.path("archive"), bed.path("tar.tar"));
    let url = PathBuf::from(format!("file://{}", archive.display()));
    fs::create_dir(&archive).expect("mkdir");
    backup(&leader, &url, "full");
    let full = archive.join("backup/full");
    let last = take("last", &["--incremental", full.to_str().expect("UTF-8")]);
    let mut stream = Backup::new(leader.spec.listen, Path::new("-"));
    let stream = stream.run_into(fs::File::create(&tar).expect("create").into());
    assert!(stream.status.success(), "{}", String::from_utf8_lossy(&stream.stderr));
    work.finish();
    let combined = bed.path("combined");
    let words = ["combine", "--out"].map(OsStr::new);
    let said = run(&[words[0], words[1], combined.as_ref(), full.as_ref(), last.as_ref()], "");
    assert_eq!(said.0, Some(0), "{}", said.1);
    for set in [&tree, &full, &last, &tar, &combined] {
        let (code, said) = run(&["verify".as_ref(), set.as_os_str()], "");
        assert_eq!(code, Some(0), "{}: {said}", set.display());
    }
    // Followers without anything beside the set.
    let words = ["--base", full.to_str().expect("UTF-8")];
    let all: &[(&Path, &[&str])] =
        &[(&tree, &[]), (&combined, &[]), (&last, &words), (&tar, &[]), (&url, &[]), (&full, &[])];
    for (n, (from, words)) in all.iter().enumerate().take(if soak() { all.len() } else { 4 }) {
        let spec = bed.follower(&format!("f{n}"), leader.spec.listen);
        let state = spec.state.to_str().expect("UTF-8").to_owned();
        let restore = Restore::new(from, "latest", &spec.data).args(&["--as-follower", "--state", &state]);
        restore.args(words).good();
        let follower = spec.start();
        assert_equal_within(within(20), leader.data(), follower.data());
        assert!(!follower.log().contains("first copy") && !follower.log().contains("resync"));
    }
    // Of an archive that never had log the newest timeline is that of its backups.
    let plan = json(&Restore::new(&url, "latest", &bed.path("out")).args(&["--dry-run", "--json"]).good());
    assert_eq!((&plan["label"], &plan["target_timeline"]), (&"full".into(), &2.into()), "{plan}");
    // A leader of the next timeline.
    let third = bed.leader("third");
    let words = ["--as-leader", "--json", "--state", third.state.to_str().expect("UTF-8")];
    let plan = json(&Restore::new(&tar, "latest", &third.data).args(&words).good());
    assert_eq!(plan["new_timeline"], 3, "{plan}");
    let told = String::from_utf8(third.start().ask(&["history"]).stdout).expect("text");
    assert!(told.contains("promotion") && told.contains("restore"), "{told}");
    leader.stop();
    what_is_wrong_with_it_is_named(&bed, &tree, &combined);
}
