//! Every kind of object and change, applied while following and from a start.

use std::time::Duration;

use crate::apply::{ApplyCuts, ApplyState, Inexact};
use crate::position::{Cut, FileId, Lsn};
use crate::record::{BLOCK, Kind, Record};

use super::bench::{Bench, attrs};

const ROOT: FileId = FileId::ROOT;

#[test]
fn files_directories_and_changes_in_place_follow() {
    let mut b = Bench::new();
    let handle = b.start().unwrap();
    let dir = b.dir(ROOT, "d");
    let big: Vec<u8> = (0..5 * BLOCK + 77).map(|i| (i % 251) as u8 + 1).collect();
    let f = b.file(dir, "big", &big);
    b.file(ROOT, "empty", b"");
    let end = b.commit(Cut::Exact);
    assert_eq!(b.wait(&handle, end).lsn, end);
    b.compare();
    b.block(f, 2, 9);
    b.block(f, 2, 10);
    b.record(Record::Punch { id: f, offset: BLOCK, len: BLOCK });
    b.touch(f);
    b.commit(Cut::Exact);
    b.record(Record::Truncate { id: f, size: 3 * BLOCK + 5 });
    b.block(f, 3, 1);
    let end = b.commit(Cut::Exact);
    b.wait(&handle, end);
    b.compare();
    // Replaced by rename, moved into a new directory, swapped, removed with everything below.
    let new = b.file(ROOT, "empty", b"not empty any more");
    let sub = b.dir(dir, "sub");
    b.link(sub, "moved", f);
    b.unlink(dir, "big");
    b.link(sub, "second name", new);
    let end = b.commit(Cut::Exact);
    b.wait(&handle, end);
    b.compare();
    b.link(ROOT, "up", sub);
    b.unlink(ROOT, "d");
    let end = b.commit(Cut::Exact);
    b.wait(&handle, end);
    b.compare();
    handle.stop().unwrap();
    assert!(!b.data().join(".towline-stage").exists());
    b.compare();
    // Nothing to do at the next start, and nothing is taken for a local edit.
    let handle = b.start().unwrap();
    b.wait(&handle, end);
    assert_eq!(handle.stats().local_edits_total, 0);
    assert_eq!(handle.stats().redone, 0);
    handle.stop().unwrap();
    b.compare();
}

#[test]
fn every_kind_of_object_is_made_with_its_attributes() {
    let mut b = Bench::new();
    let handle = b.start().unwrap();
    for (i, (kind, mode)) in [
        (Kind::Fifo, 0o640),
        (Kind::Socket, 0o755),
        (Kind::Symlink, 0o777),
        (Kind::Dir, 0o3775),
        (Kind::File, 0o4711),
    ]
    .into_iter()
    .enumerate()
    {
        let target: &[u8] = if kind == Kind::Symlink { b"../../nowhere/at all" } else { b"" };
        let id = b.create(kind, mode, target);
        if kind == Kind::File {
            b.content(id, b"#!/bin/true\n");
            b.record(Record::Xattr { id, name: b"user.note", value: Some(b"kept") });
        }
        b.link(ROOT, &format!("o{i}"), id);
    }
    // A name that is no text, a deep tree whose path is longer than the kernel takes at once.
    let id = b.create(Kind::File, 0o600, b"");
    b.record(Record::Link { parent: ROOT, name: b"\xff\n\x01", id });
    let mut at = ROOT;
    for _ in 0..30 {
        at = b.dir(at, &"n".repeat(255));
    }
    b.file(at, "deep", b"down here");
    let end = b.commit(Cut::Exact);
    b.wait(&handle, end);
    let dirs = b.data().join("n".repeat(255));
    assert!(dirs.exists());
    // The deep part is beyond what the comparison can walk by path; it goes, and the rest is compared.
    b.unlink(ROOT, &"n".repeat(255));
    let end = b.commit(Cut::Exact);
    b.wait(&handle, end);
    b.compare();
    // setuid survives a change in place, and of owner where that is allowed.
    let id = b.fold.read().lookup(ROOT, b"o4").unwrap();
    b.block(id, 0, b'x');
    b.record(Record::Xattr { id, name: b"user.note", value: None });
    b.record(Record::Xattr { id, name: b"user.other", value: Some(&[7; 100]) });
    if rustix::process::geteuid().is_root() {
        let mut a = attrs(0o6755, 5000);
        (a.uid, a.gid) = (1234, 4321);
        b.record(Record::Attr { id, attrs: a });
    }
    let end = b.commit(Cut::Exact);
    b.wait(&handle, end);
    b.compare();
    handle.stop().unwrap();
}

#[test]
fn sparse_files_stay_sparse() {
    use std::os::unix::fs::MetadataExt;
    let mut b = Bench::new();
    let id = b.create(Kind::File, 0o644, b"");
    b.record(Record::Truncate { id, size: 100 << 30 });
    b.record(Record::Write { id, offset: 50 << 30, data: &[1; BLOCK as usize] });
    b.link(ROOT, "sparse", id);
    let end = b.commit(Cut::Exact);
    let handle = b.start().unwrap();
    b.wait(&handle, end);
    let meta = std::fs::metadata(b.data().join("sparse")).unwrap();
    assert_eq!(meta.size(), 100 << 30);
    assert!(meta.blocks() * 512 < 1 << 20);
    handle.stop().unwrap();
}

#[test]
fn apply_rests_on_exact_cuts_only_unless_told_otherwise() {
    let mut b = Bench::new();
    let handle = b.start().unwrap();
    b.file(ROOT, "a", b"1");
    let exact = b.commit(Cut::Exact);
    b.wait(&handle, exact);
    b.file(ROOT, "b", b"2");
    b.commit(Cut::File);
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(handle.pause().unwrap().lsn, exact);
    assert!(!b.data().join("b").exists());
    b.file(ROOT, "c", b"3");
    let next = b.commit(Cut::Exact);
    b.file(ROOT, "d", b"4");
    let last = b.commit(Cut::File);
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(handle.stats().state, ApplyState::Paused);
    assert_eq!(handle.applied().borrow().lsn, exact);
    handle.resume();
    assert_eq!(b.wait(&handle, next).lsn, next);
    assert!(!b.data().join("d").exists());
    handle.stop().unwrap();
    b.options.cuts = ApplyCuts::File;
    let handle = b.start().unwrap();
    assert_eq!(b.wait(&handle, last).cut, Cut::File);
    assert!(b.data().join("d").exists());
    handle.stop().unwrap();
    // It stood there; a later start that allows exact cuts only does not go back.
    b.options.cuts = ApplyCuts::Exact;
    let handle = b.start().unwrap();
    assert_eq!(b.wait(&handle, last).lsn, last);
    handle.stop().unwrap();
}

#[test]
fn when_exact_cuts_stay_away_a_file_cut_is_applied_if_told_so() {
    let mut b = Bench::new();
    b.options.max_inexact = Duration::from_millis(100);
    let handle = b.start().unwrap();
    b.file(ROOT, "a", b"1");
    let exact = b.commit(Cut::Exact);
    b.wait(&handle, exact);
    b.file(ROOT, "b", b"2");
    let file = b.commit(Cut::File);
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while handle.stats().inexact.is_none() && std::time::Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(handle.stats().inexact.is_some_and(|t| t.contains("freeze")), "it is said");
    assert_eq!(handle.applied().borrow().lsn, exact, "to report is not to apply");
    handle.stop().unwrap();
    b.options.inexact = Inexact::Apply;
    let handle = b.start().unwrap();
    assert_eq!(b.wait(&handle, file).cut, Cut::File);
    assert_eq!(handle.stats().inexact_applied, 1);
    b.file(ROOT, "c", b"3");
    let next = b.commit(Cut::Exact);
    b.wait(&handle, next);
    assert_eq!(handle.stats().inexact, None);
    b.file(ROOT, "d", b"4");
    let last = b.commit(Cut::File);
    b.wait(&handle, last);
    handle.stop().unwrap();
    // It rested there; whoever reports only does not go back.
    b.options.inexact = Inexact::Report;
    let handle = b.start().unwrap();
    assert_eq!(b.wait(&handle, last).lsn, last);
    handle.stop().unwrap();
}

#[test]
fn aborted_change_sets_leave_no_trace() {
    let mut b = Bench::new();
    b.file(ROOT, "a", b"1");
    b.commit(Cut::Exact);
    let id = b.next_id();
    let data = vec![3; BLOCK as usize];
    b.abort(&[
        Record::Create { id, kind: Kind::File, attrs: attrs(0o644, 9), rdev: 0, target: b"" },
        Record::Write { id, offset: 0, data: &data },
        Record::Link { parent: ROOT, name: b"ghost", id },
    ]);
    b.file(ROOT, "b", b"2");
    b.commit(Cut::Exact);
    b.replay();
    assert!(!b.data().join("ghost").exists());
}

#[test]
fn a_digest_that_does_not_match_stops_before_the_directory_is_touched() {
    let mut b = Bench::new();
    let handle = b.start().unwrap();
    b.file(ROOT, "a", b"1");
    let end = b.commit(Cut::Exact);
    b.wait(&handle, end);
    // The leader's tree is another one than the records make.
    let id = b.create(Kind::File, 0o644, b"");
    b.link(ROOT, "b", id);
    b.fold.write().set_content(id, 5, true);
    b.commit(Cut::Exact);
    let mut ended = handle.ended();
    for _ in 0..2000 {
        if *ended.borrow_and_update() {
            break;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let failure = handle.failure().unwrap();
    assert_eq!(failure.kind(), crate::error::ErrorKind::Diverged, "{failure}");
    assert!(!b.data().join("b").exists());
    assert_eq!(handle.pause().unwrap_err().kind(), crate::error::ErrorKind::Diverged);
}

#[test]
fn a_first_copy_is_not_usable_before_its_end() {
    let mut b = Bench::new();
    b.file(ROOT, "a", b"1");
    let middle = b.commit(Cut::Exact);
    let handle = b.start_filled(Some((Lsn::FIRST, Lsn(middle.0 + 1)))).unwrap();
    std::thread::sleep(Duration::from_millis(50));
    assert!(!handle.applied().borrow().consistent);
    assert_eq!(handle.stats().state, ApplyState::Filling);
    b.file(ROOT, "b", b"2");
    let end = b.commit(Cut::Exact);
    b.wait(&handle, end);
    b.compare();
    handle.stop().unwrap();
}

#[test]
fn a_batch_larger_than_memory_keeps_is_read_twice() {
    let mut b = Bench::new();
    let mut noise = 1_u64;
    let mut data = vec![0_u8; 12 << 20];
    for byte in &mut data {
        noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        *byte = (noise >> 33) as u8;
    }
    let f = b.file(ROOT, "big", &data);
    b.commit(Cut::Exact);
    for i in 0..20 {
        b.block(f, i * 7, 3);
        b.commit(Cut::File);
    }
    b.commit(Cut::Exact);
    b.replay();
}

#[test]
fn what_a_directory_without_a_name_takes_with_it_is_found_on_disk() {
    let mut b = Bench::new();
    let handle = b.start().unwrap();
    let d = b.dir(ROOT, "d");
    let e = b.dir(d, "e");
    let k = b.file(e, "k", b"lives on");
    let end = b.commit(Cut::Exact);
    b.wait(&handle, end);
    // mkdir new, mv d new, mv new/d/e/k ., rm -r new: the new directory was never seen under a name.
    let new = b.create(Kind::Dir, 0o755, b"");
    b.link(new, "d", d);
    b.link(ROOT, "k", k);
    b.unlink(e, "k");
    b.touch(ROOT);
    let end = b.commit(Cut::Exact);
    b.wait(&handle, end);
    b.compare();
    handle.stop().unwrap();
}

#[test]
fn a_directory_moves_below_one_that_stood_in_it_under_others_that_go() {
    let mut b = Bench::new();
    let handle = b.start().unwrap();
    let d = b.dir(ROOT, "d");
    let outer = b.dir(d, "outer");
    let inner = b.dir(outer, "inner");
    let p = b.dir(inner, "p");
    b.file(p, "f", b"x");
    let end = b.commit(Cut::Exact);
    b.wait(&handle, end);
    // mv d/outer/inner/p ., rm -r d/outer (from below), mv d p.
    b.link(ROOT, "p", p);
    b.unlink(outer, "inner");
    b.unlink(d, "outer");
    b.link(p, "d", d);
    b.touch(ROOT);
    let end = b.commit(Cut::Exact);
    b.wait(&handle, end);
    b.compare();
    handle.stop().unwrap();
}

#[test]
fn a_program_that_runs_is_replaced_and_goes_on_running() {
    let mut b = Bench::new();
    let program = std::fs::read("/bin/sleep").unwrap();
    let d = b.dir(ROOT, "d");
    let f = b.create(Kind::File, 0o755, b"");
    b.content(f, &program);
    b.link(ROOT, "program", f);
    b.link(d, "other", f);
    b.commit(Cut::Exact);
    b.replay();
    let handle = b.start().unwrap();
    b.wait(&handle, b.last);
    let mut child = std::process::Command::new(b.data().join("program")).arg("600").spawn().unwrap();
    let blocks = program.len() as u64 / BLOCK;
    b.block(f, 0, 7);
    b.block(f, blocks - 1, 7);
    b.link(ROOT, "third", f);
    let end = b.commit(Cut::Exact);
    b.wait(&handle, end);
    // Again, and a crash with no checkpoint since the first time.
    b.block(f, 1, 8);
    let end = b.commit(Cut::Exact);
    b.wait(&handle, end);
    super::light(&b.data(), Some(0));
    b.block(f, 1, 9);
    b.commit(Cut::Exact);
    while handle.failure().is_none() {
        std::thread::sleep(Duration::from_millis(1));
    }
    drop(handle);
    super::light(&b.data(), None);
    let handle = b.start().unwrap();
    b.wait(&handle, b.last);
    b.compare();
    assert!(child.try_wait().unwrap().is_none(), "it runs on");
    handle.stop().unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    b.replay();
}

#[test]
fn half_made_files_go_before_their_room_is_needed() {
    let mut b = Bench::new();
    let d = b.dir(ROOT, "d");
    b.file(d, "f", &vec![5; 3 * BLOCK as usize]);
    b.commit(Cut::Exact);
    // What a failed attempt leaves: files of an unknown name, in the staging directory and in directories there.
    let stage = b.data().join(".towline-stage");
    std::fs::create_dir_all(stage.join("1.n9.3/below")).unwrap();
    for name in ["1.n1.2", "1.n9.3/half", "1.n9.3/below/half"] {
        std::fs::write(stage.join(name), b"half").unwrap();
    }
    // The engine fails where it would write the first byte: by then they must be gone.
    super::light(&b.data(), Some(0));
    let handle = b.start().unwrap();
    while handle.failure().is_none() {
        std::thread::sleep(Duration::from_millis(1));
    }
    for name in ["1.n1.2", "1.n9.3/half", "1.n9.3/below/half"] {
        assert!(!stage.join(name).exists(), "{name}");
    }
    drop(handle);
    super::light(&b.data(), None);
    b.replay();
}
