//! What somebody else does to a follower's directory.

use std::time::Duration;

use crate::apply::LocalEdits;
use crate::error::ErrorKind;
use crate::position::{Cut, FileId};
use crate::record::BLOCK;
use crate::sys;

use super::bench::Bench;

const ROOT: FileId = FileId::ROOT;

fn failure(handle: &crate::apply::ApplyHandle) -> crate::error::Error {
    for _ in 0..5000 {
        if let Some(e) = handle.failure() {
            return e;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("apply did not fail: {:?}", handle.stats());
}

/// Sets an extended attribute, or takes it away, as somebody does who uses `setfattr`.
fn label(path: &std::path::Path, name: &str, value: Option<&str>) {
    let dir = std::fs::File::open(path).unwrap();
    sys::set_xattr_at(&dir, b"", name.as_bytes(), value.map(str::as_bytes)).unwrap();
}

/// Gives user 1234 access to what will be made in a directory, which shows in its ACL alone.
fn allow(path: &std::path::Path) {
    let done =
        std::process::Command::new("setfacl").args(["-d", "-m", "u:1234:rwx"]).arg(path).status().unwrap();
    assert!(done.success());
}

fn setup() -> (Bench, FileId) {
    let mut b = Bench::new();
    let f = b.file(ROOT, "f", &vec![5; 3 * BLOCK as usize]);
    let d = b.dir(ROOT, "d");
    b.file(d, "g", b"g");
    b.commit(Cut::Exact);
    b.replay();
    (b, f)
}

#[test]
fn an_edit_while_following_is_refused_by_name() {
    let (mut b, f) = setup();
    let handle = b.start().unwrap();
    b.wait(&handle, b.last);
    std::fs::write(b.data().join("f"), b"mine").unwrap();
    b.block(f, 1, 7);
    b.commit(Cut::Exact);
    let e = failure(&handle);
    assert_eq!(e.kind(), ErrorKind::Refused, "{e}");
    assert!(e.to_string().contains("'f'"), "{e}");
    // The patrol may have told it before.
    assert!((1..=2).contains(&handle.stats().local_edits_total));
}

#[test]
fn an_edit_is_overwritten_when_the_log_holds_the_whole_file() {
    let (mut b, f) = setup();
    b.options.local_edits = LocalEdits::Overwrite;
    let handle = b.start().unwrap();
    b.wait(&handle, b.last);
    std::fs::write(b.data().join("f"), b"mine").unwrap();
    b.content(f, &vec![6; 3 * BLOCK as usize]);
    let end = b.commit(Cut::Exact);
    b.wait(&handle, end);
    b.compare();
    // The patrol may have told it before.
    assert!((1..=2).contains(&handle.stats().local_edits_total));
    // When it does not, the directory has diverged, and that is said.
    std::fs::write(b.data().join("f"), b"mine again").unwrap();
    b.block(f, 1, 7);
    b.commit(Cut::Exact);
    let e = failure(&handle);
    assert_eq!(e.kind(), ErrorKind::Diverged, "{e}");
}

#[test]
fn edits_are_found_at_the_start() {
    type Edit = fn(&std::path::Path);
    let cases: [(&str, Edit, ErrorKind); 7] = [
        ("f", |p| std::fs::write(p.join("f"), b"x").unwrap(), ErrorKind::Refused),
        ("new", |p| std::fs::write(p.join("new"), b"x").unwrap(), ErrorKind::Refused),
        ("d/g", |p| std::fs::remove_file(p.join("d/g")).unwrap(), ErrorKind::Diverged),
        ("moved", |p| std::fs::rename(p.join("d"), p.join("moved")).unwrap(), ErrorKind::Refused),
        (
            "f",
            |p| {
                std::fs::set_permissions(p.join("f"), std::os::unix::fs::PermissionsExt::from_mode(0o600))
                    .unwrap()
            },
            ErrorKind::Refused,
        ),
        ("f", |p| label(&p.join("f"), "user.mine", Some("1")), ErrorKind::Refused),
        ("d", |p| label(&p.join("d"), "user.mine", Some("1")), ErrorKind::Refused),
    ];
    for (path, edit, kind) in cases {
        let (b, _) = setup();
        edit(&b.data());
        let handle = b.start().unwrap();
        let e = failure(&handle);
        assert_eq!(e.kind(), kind, "{path}: {e}");
        assert!(e.to_string().contains(&format!("'{path}'")), "{e}");
    }
}

#[test]
fn what_can_be_undone_is_undone_on_request() {
    let (mut b, _) = setup();
    b.options.local_edits = LocalEdits::Overwrite;
    let p = b.data();
    std::fs::write(p.join("new"), b"x").unwrap();
    std::fs::create_dir(p.join("newdir")).unwrap();
    std::fs::rename(p.join("d"), p.join("newdir/moved")).unwrap();
    std::fs::set_permissions(p.join("f"), std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let handle = b.start().unwrap();
    b.wait(&handle, b.last);
    b.compare();
    assert!(handle.stats().local_edits_total >= 3, "{:?}", handle.stats());
    handle.stop().unwrap();
    b.replay();
}

#[test]
fn a_new_name_taken_by_somebody_else_is_not_lost_silently() {
    let (mut b, _) = setup();
    let handle = b.start().unwrap();
    b.wait(&handle, b.last);
    std::fs::write(b.data().join("theirs"), b"x").unwrap();
    b.file(ROOT, "theirs", b"ours");
    b.commit(Cut::Exact);
    assert_eq!(failure(&handle).kind(), ErrorKind::Refused);
    assert_eq!(std::fs::read(b.data().join("theirs")).unwrap(), b"x");
}

#[test]
fn a_hard_link_from_outside_is_no_edit() {
    let (mut b, f) = setup();
    let handle = b.start().unwrap();
    b.wait(&handle, b.last);
    std::fs::hard_link(b.data().join("f"), b.tmp.path().join("snapshot")).unwrap();
    b.touch(f);
    let end = b.commit(Cut::Exact);
    b.wait(&handle, end);
    assert_eq!(handle.stats().local_edits_total, 0);
    handle.stop().unwrap();
}

#[test]
fn a_symlink_in_place_of_a_directory_leads_nowhere() {
    let (mut b, _) = setup();
    let outside = b.tmp.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    let handle = b.start().unwrap();
    b.wait(&handle, b.last);
    std::fs::rename(b.data().join("d"), b.tmp.path().join("gone")).unwrap();
    std::os::unix::fs::symlink(&outside, b.data().join("d")).unwrap();
    let d = b.fold.read().lookup(ROOT, b"d").unwrap();
    b.file(d, "escaped", b"x");
    b.commit(Cut::Exact);
    assert_eq!(failure(&handle).kind(), ErrorKind::Refused);
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
}

fn until(handle: &crate::apply::ApplyHandle, what: &str, done: impl Fn(&crate::apply::ApplyStats) -> bool) {
    for _ in 0..20_000 {
        assert!(handle.failure().is_none(), "{what}: {:?}", handle.failure());
        if done(&handle.stats()) {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("{what}: {:?}", handle.stats());
}

fn chmod(path: &std::path::Path, mode: u32) {
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
}

#[test]
fn edits_of_what_the_log_does_not_touch_are_noticed_while_following() {
    let (mut b, _) = setup();
    for n in 0..300 {
        b.file(ROOT, &format!("many{n}"), b"m");
    }
    for name in ["labelled", "unlabelled"] {
        let id = b.file(ROOT, name, b"l");
        b.label(id, "user.ours", "1");
    }
    b.commit(Cut::Exact);
    let handle = b.start().unwrap();
    b.wait(&handle, b.last);
    until(&handle, "two rounds", |s| s.patrols >= 2);
    assert_eq!(handle.stats().local_edits_total, 0, "{:?}", handle.stats());
    let p = b.data();
    std::fs::write(p.join("d/new"), b"x").unwrap();
    std::fs::write(p.join("f"), b"x").unwrap();
    std::fs::remove_file(p.join("many7")).unwrap();
    chmod(&p.join("many8"), 0o600);
    label(&p.join("many10"), "user.mine", Some("1"));
    label(&p.join("labelled"), "user.ours", Some("2"));
    label(&p.join("unlabelled"), "user.ours", None);
    allow(&p.join("d"));
    std::fs::rename(p.join("d/g"), p.join("d/h")).unwrap();
    std::fs::hard_link(p.join("many9"), b.tmp.path().join("snapshot")).unwrap();
    until(&handle, "all are noticed", |s| s.local_edits_standing == 10);
    let rounds = handle.stats().patrols;
    until(&handle, "more rounds", |s| s.patrols > rounds + 3);
    let stats = handle.stats();
    let mut paths: Vec<&str> = stats.local_edits.iter().map(|e| &*e.path).collect();
    paths.sort_unstable();
    assert_eq!(
        paths,
        ["d", "d/g", "d/h", "d/new", "f", "labelled", "many10", "many7", "many8", "unlabelled"],
        "each is told once"
    );
    // What is not concerned goes on.
    b.file(ROOT, "other", b"o");
    let end = b.commit(Cut::Exact);
    b.wait(&handle, end);
    // And it is told that it was undone.
    std::fs::remove_file(p.join("d/new")).unwrap();
    std::fs::rename(p.join("d/h"), p.join("d/g")).unwrap();
    chmod(&p.join("many8"), 0o644);
    label(&p.join("unlabelled"), "user.ours", Some("1"));
    until(&handle, "five are left", |s| s.local_edits_standing == 5);
    assert_eq!(handle.stats().local_edits_total, 10);
    handle.stop().unwrap();
}

#[test]
fn edits_of_what_the_log_does_not_touch_are_undone_on_request() {
    let (mut b, _) = setup();
    b.options.local_edits = LocalEdits::Overwrite;
    let handle = b.start().unwrap();
    b.wait(&handle, b.last);
    let p = b.data();
    std::fs::write(p.join("d/new"), b"x").unwrap();
    std::fs::rename(p.join("d/g"), p.join("d/h")).unwrap();
    chmod(&p.join("f"), 0o600);
    allow(&p.join("d"));
    label(&p.join("d/h"), "user.mine", Some("1"));
    until(&handle, "they are seen", |s| s.local_edits_total >= 1);
    until(&handle, "they are undone", |_| {
        p.join("d/g").exists() && !p.join("d/h").exists() && !p.join("d/new").exists()
    });
    handle.pause().unwrap();
    b.compare();
    handle.resume();
    b.file(ROOT, "other", b"o");
    let end = b.commit(Cut::Exact);
    b.wait(&handle, end);
    handle.stop().unwrap();
    b.replay();
}

#[test]
fn attributes_that_are_set_right_on_the_way_are_counted() {
    type Edit = fn(&std::path::Path);
    let edits: [Edit; 2] = [|p| chmod(p, 0o600), |p| label(p, "user.mine", Some("1"))];
    for edit in edits {
        let (mut b, f) = setup();
        let handle = b.start().unwrap();
        b.wait(&handle, b.last);
        // At rest on request nobody is on patrol.
        handle.pause().unwrap();
        edit(&b.data().join("f"));
        b.block(f, 1, 7);
        let end = b.commit(Cut::Exact);
        handle.resume();
        b.wait(&handle, end);
        b.compare();
        let stats = handle.stats();
        assert_eq!(stats.local_edits_repaired, 1, "{stats:?}");
        assert!(
            (1..=2).contains(&stats.local_edits_total),
            "a patrol on its way may have told it too: {stats:?}"
        );
        assert_eq!(stats.local_edits[0].path, "f");
        handle.stop().unwrap();
    }
}

#[test]
fn attributes_that_the_leader_sets_are_no_edit() {
    let (mut b, f) = setup();
    let handle = b.start().unwrap();
    b.wait(&handle, b.last);
    for value in ["1", "2", "3"] {
        std::fs::hard_link(b.data().join("f"), b.tmp.path().join(value)).unwrap();
        b.label(f, "user.ours", value);
        b.touch(f);
        let end = b.commit(Cut::Exact);
        b.wait(&handle, end);
        std::fs::remove_file(b.tmp.path().join(value)).unwrap();
    }
    until(&handle, "a round", |s| s.patrols >= 2);
    assert_eq!(handle.stats().local_edits_total, 0, "{:?}", handle.stats());
    b.compare();
    handle.stop().unwrap();
}

/// Changes bytes of a file and nothing that a stat shows but its change time.
fn change_behind(path: &std::path::Path) {
    use std::os::unix::fs::FileExt;
    let times = std::fs::metadata(path).unwrap().modified().unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(b"LOCAL", 0).unwrap();
    file.set_modified(times).unwrap();
}

#[test]
fn a_content_that_was_found_different_is_never_taken_for_good() {
    let (mut b, f) = setup();
    let handle = b.start().unwrap();
    b.wait(&handle, b.last);
    change_behind(&b.data().join("f"));
    b.block(f, 2, 7);
    b.commit(Cut::Exact);
    assert_eq!(failure(&handle).kind(), ErrorKind::Diverged);
    drop(handle);
    let policies = [LocalEdits::Refuse, LocalEdits::Refuse, LocalEdits::Overwrite, LocalEdits::Refuse];
    for (n, local_edits) in policies.into_iter().enumerate() {
        b.options.local_edits = local_edits;
        let handle = b.start().unwrap();
        let e = failure(&handle);
        assert!(e.kind() == ErrorKind::Diverged && e.to_string().contains("'f'"), "{e}");
        // Meanwhile the leader goes on, and not only there.
        b.block(f, 1, 9);
        b.file(ROOT, &format!("other{n}"), b"o");
        b.commit(Cut::Exact);
    }
    // What the log gives back is good again, and no doubt is left.
    b.content(f, &vec![6; 3 * BLOCK as usize]);
    b.commit(Cut::Exact);
    b.replay();
    assert!(!b.tmp.path().join("doubtful-files").exists());
}

#[test]
fn a_directory_that_is_not_at_its_path_is_not_written_on() {
    let (mut b, _) = setup();
    let (path, aside) = (b.data(), b.tmp.path().join("aside"));
    type Swap = fn(&std::path::Path);
    let swaps: [(ErrorKind, &str, Swap); 3] = [
        (ErrorKind::Io, "is gone", |_| ()),
        (ErrorKind::Io, "is gone", |p| std::fs::write(p, "x").unwrap()),
        (ErrorKind::Refused, "is not the directory any more", |p| std::fs::create_dir(p).unwrap()),
    ];
    for (n, (kind, word, swap)) in swaps.into_iter().enumerate() {
        let handle = b.start().unwrap();
        b.wait(&handle, b.last);
        std::fs::rename(&path, &aside).unwrap();
        swap(&path);
        // At rest it is noticed as well.
        let e = failure(&handle);
        assert!(e.kind() == kind && e.to_string().contains(word), "{e}");
        drop(handle);
        let _ = std::fs::remove_file(&path).or_else(|_| std::fs::remove_dir(&path));
        std::fs::rename(&aside, &path).unwrap();
        b.file(ROOT, &format!("after{n}"), b"o");
        b.commit(Cut::Exact);
    }
    b.replay();
}

#[test]
fn the_staging_directory_is_made_anew_in_place_of_anything_else() {
    let (mut b, _) = setup();
    let (stage, victim) = (b.data().join(".towline-stage"), b.tmp.path().join("victim"));
    std::fs::create_dir(&victim).unwrap();
    std::fs::write(victim.join("v"), "v").unwrap();
    for n in 0..3 {
        match n {
            0 => std::fs::write(&stage, "x").unwrap(),
            1 => std::os::unix::fs::symlink(&victim, &stage).unwrap(),
            _ => std::os::unix::fs::symlink("nowhere", &stage).unwrap(),
        }
        b.file(ROOT, &format!("new{n}"), b"o");
        b.commit(Cut::Exact);
        b.replay();
    }
    assert_eq!(std::fs::read_dir(&victim).unwrap().count(), 1);
}

#[test]
fn a_restored_directory_is_called_that() {
    let (b, _) = setup();
    let g = b.data().join("d/g");
    std::fs::rename(&g, b.tmp.path().join("kept")).unwrap();
    std::fs::copy(b.tmp.path().join("kept"), &g).unwrap();
    let handle = b.start().unwrap();
    let e = failure(&handle);
    assert!(e.to_string().contains("'d/g' is another inode") && e.to_string().contains("restored"), "{e}");
}

/// Changes bytes and puts the modification time back, as a disk that goes bad, or a careful hand, would.
fn rot(path: &std::path::Path, at: u64, bytes: &[u8]) {
    use std::os::unix::fs::FileExt;
    let time = std::fs::metadata(path).unwrap().modified().unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(bytes, at).unwrap();
    file.set_modified(time).unwrap();
}

#[test]
fn content_that_goes_bad_is_found_named_and_not_forgotten() {
    let (mut b, _) = setup();
    b.options.scrub_interval = Duration::from_millis(20);
    let handle = b.start().unwrap();
    b.wait(&handle, b.last);
    let passes = |n| {
        for _ in 0..5000 {
            if handle.stats().scrub.passes >= n {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        panic!("no passes: {:?}", handle.stats());
    };
    passes(2);
    assert_eq!(handle.stats().scrub.mismatches, 0);
    rot(&b.data().join("f"), 2 * BLOCK + 9, b"x");
    let e = failure(&handle);
    assert!(e.kind() == ErrorKind::Diverged && e.to_string().contains("'f'"), "{e}");
    assert!(e.to_string().contains("in block 2"), "{e}");
    let scrub = handle.stats().scrub;
    assert_eq!(
        (scrub.mismatches, scrub.damaged[0].path.as_str(), &*scrub.damaged[0].blocks),
        (1, "f", &[2][..])
    );
    drop(handle);
    // The scrub is off, and it is remembered all the same until it is as it was.
    b.options.scrub_interval = Duration::ZERO;
    let e = failure(&b.start().unwrap());
    assert_eq!(e.kind(), ErrorKind::Diverged, "{e}");
    rot(&b.data().join("f"), 2 * BLOCK + 9, &[5]);
    let handle = b.start().unwrap();
    b.wait(&handle, b.last);
    assert!(handle.failure().is_none());
}

#[test]
fn what_apply_writes_meanwhile_is_no_damage() {
    let (mut b, f) = setup();
    b.options.scrub_interval = Duration::from_micros(1);
    let handle = b.start().unwrap();
    b.wait(&handle, b.last);
    let late = std::time::Instant::now() + Duration::from_secs(30);
    let mut n = 0;
    while handle.stats().scrub.files < 50 {
        assert!(std::time::Instant::now() < late, "{:?}", handle.stats());
        n += 1;
        b.block(f, n % 3, (n % 200) as u8);
        let end = b.commit(Cut::Exact);
        if n % 7 == 0 {
            b.wait(&handle, end);
        }
    }
    b.wait(&handle, b.last);
    let stats = handle.stats();
    assert!(handle.failure().is_none() && stats.scrub.mismatches == 0, "{:?} {stats:?}", handle.failure());
    b.compare();
}
