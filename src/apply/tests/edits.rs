//! What somebody else does to a follower's directory.

use std::time::Duration;

use crate::apply::LocalEdits;
use crate::error::ErrorKind;
use crate::position::{Cut, FileId};
use crate::record::BLOCK;

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
    assert_eq!(handle.stats().local_edits_total, 1);
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
    assert_eq!(handle.stats().local_edits_total, 1);
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
    let cases: [(&str, Edit, ErrorKind); 5] = [
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
