//! Guards, gaps, excludes, and what happens over restarts.

use std::fs;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use super::bed::Bed;
use crate::error::ErrorKind;
use crate::position::Cut;
use crate::record::GapReason;

fn until(what: &str, mut is: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(10);
    while !is() {
        assert!(Instant::now() < end, "{what} did not come");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_mass_delete_is_held_until_it_is_confirmed() {
    let mut bed = Bed::idle();
    bed.options.max_delete_min = 100;
    bed.start();
    for d in 0..10 {
        fs::create_dir(bed.path(&format!("d{d}"))).unwrap();
        for n in 0..20 {
            fs::write(bed.path(&format!("d{d}/{n}")), b"x").unwrap();
        }
    }
    bed.check();
    for d in 0..8 {
        fs::remove_dir_all(bed.path(&format!("d{d}"))).unwrap();
    }
    // A part may have been committed before the share was reached; the whole never is.
    until("the hold", || bed.capture().stats().hold.is_some());
    let error = bed.capture().barrier(Duration::from_secs(5)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Held);
    bed.capture().confirm();
    until("the release", || bed.capture().stats().hold.is_none());
    bed.check();
    // One word is for one delete: the next is held again.
    std::thread::sleep(super::super::commit::CONFIRMED);
    for n in 0..200 {
        fs::write(bed.path(&format!("again{n}")), b"x").unwrap();
    }
    bed.check();
    for n in 0..200 {
        fs::remove_file(bed.path(&format!("again{n}"))).unwrap();
    }
    until("the second hold", || bed.capture().stats().hold.is_some());
}

#[test]
fn a_root_that_goes_away_is_no_delete() {
    let mut bed = Bed::new();
    fs::create_dir(bed.path("d")).unwrap();
    fs::write(bed.path("d/f"), b"stays").unwrap();
    bed.check();
    let aside = bed.dir.path().join("aside");
    fs::rename(bed.dir.path().join("data"), &aside).unwrap();
    until("the hold", || bed.capture().stats().hold.is_some());
    fs::create_dir(bed.dir.path().join("data")).unwrap();
    std::thread::sleep(Duration::from_millis(700));
    assert_eq!(bed.capture().barrier(Duration::from_secs(5)).unwrap_err().kind(), ErrorKind::Held);
    fs::remove_dir(bed.dir.path().join("data")).unwrap();
    fs::write(aside.join("d/while-away"), b"found later").unwrap();
    fs::rename(&aside, bed.dir.path().join("data")).unwrap();
    until("the release", || bed.capture().stats().hold.is_none());
    bed.check();
    assert!(bed.mirror.gaps.contains(&(false, GapReason::Unmount)));
    assert_eq!(bed.mirror.gaps.last(), Some(&(true, GapReason::Unmount)));
    fs::write(bed.path("d/after"), b"watched again").unwrap();
    bed.check();
}

#[test]
fn lost_events_are_made_good_by_a_scan() {
    let mut bed = Bed::new();
    for n in 0..50 {
        fs::create_dir_all(bed.path(&format!("d{n}/e"))).unwrap();
        fs::write(bed.path(&format!("d{n}/e/f")), b"1").unwrap();
    }
    bed.check();
    let hints = std::sync::Arc::clone(&bed.capture().shared.hints);
    for n in 0..50 {
        fs::write(bed.path(&format!("d{n}/e/f")), b"22").unwrap();
        fs::create_dir(bed.path(&format!("d{n}/new"))).unwrap();
        if n % 10 == 0 {
            // What the kernel says when its queue is full, with what it dropped.
            hints.take();
            hints.gap(GapReason::Overflow);
        }
    }
    bed.check();
    until("the end of the gap", || !bed.capture().stats().gap_open);
    bed.check();
    assert_eq!(bed.mirror.gaps.first(), Some(&(false, GapReason::Overflow)));
    assert_eq!(bed.mirror.gaps.last(), Some(&(true, GapReason::Overflow)));
}

#[test]
fn excluded_names_never_enter_and_leave_when_they_become_so() {
    let mut bed = Bed::idle();
    bed.options.excludes = vec!["*.tmp".into(), "cache".into()];
    fs::write(bed.path("base.tmp"), b"no").unwrap();
    bed.start();
    fs::create_dir(bed.path("cache")).unwrap();
    fs::write(bed.path("cache/x"), b"no").unwrap();
    fs::write(bed.path("y.tmp"), b"no").unwrap();
    fs::write(bed.path("z.keep"), b"yes").unwrap();
    bed.barrier();
    bed.follow();
    let has = |bed: &Bed, path: &str| bed.mirror.fold.read().resolve(path.as_bytes()).is_some();
    assert!(has(&bed, "z.keep") && !has(&bed, "cache") && !has(&bed, "y.tmp") && !has(&bed, "base.tmp"));
    assert_eq!(&*bed.mirror.fold.read().excludes().patterns, b"*.tmp\ncache");
    let mut options = bed.options.clone();
    options.excludes = vec!["*.keep".into()];
    bed.capture().reload(options);
    bed.barrier();
    bed.follow();
    assert!(!has(&bed, "z.keep") && has(&bed, "cache/x") && has(&bed, "y.tmp") && has(&bed, "base.tmp"));
    assert_eq!(bed.mirror.fold.read().excludes().version, 2);
    fs::write(bed.path("cache/x"), b"watched now").unwrap();
    bed.barrier();
    bed.follow();
    let catalog = bed.mirror.fold.read();
    assert_eq!(catalog.get(catalog.resolve(b"cache/x").unwrap()).unwrap().size, 11);
}

fn some_changes(bed: &Bed, n: u64) {
    fs::create_dir_all(bed.path(&format!("dir{n}/sub"))).unwrap();
    fs::write(bed.path(&format!("dir{n}/sub/f")), vec![n as u8; 60_000]).unwrap();
    fs::write(bed.path("shared"), format!("{n}")).unwrap();
    let file = fs::OpenOptions::new().write(true).create(true).truncate(false).open(bed.path("big")).unwrap();
    file.write_all_at(&[n as u8; 100], n * 20_000).unwrap();
    if n > 1 {
        let _ = fs::rename(bed.path(&format!("dir{}", n - 1)), bed.path(&format!("old{n}")));
        let _ = fs::hard_link(bed.path("shared"), bed.path(&format!("hard{n}")));
    }
}

#[test]
fn changes_made_while_nobody_watched_are_found() {
    let mut bed = Bed::new();
    some_changes(&bed, 1);
    bed.check();
    bed.stop();
    some_changes(&bed, 2);
    fs::remove_dir_all(bed.path("old2")).unwrap();
    bed.start();
    bed.check();
    assert!(bed.mirror.gaps.contains(&(false, GapReason::Down)));
    // What is gone without an event might turn up under another name; then the cut is sharpened.
    let end = Instant::now() + Duration::from_secs(20);
    while bed.mirror.cuts.last() != Some(&Cut::Exact) {
        assert!(Instant::now() < end, "no exact cut follows");
        std::thread::sleep(Duration::from_millis(20));
        bed.check();
    }
    let records = bed.mirror.records;
    bed.stop();
    bed.start();
    bed.check();
    assert_eq!(bed.mirror.records, records, "an unchanged tree makes no records");
}

#[test]
fn files_made_since_the_checkpoint_are_known_again_after_a_crash() {
    let mut bed = Bed::new();
    for n in 1..6 {
        some_changes(&bed, n);
        bed.check();
        if n % 2 == 0 {
            some_changes(&bed, n + 100);
        }
        bed.crash();
        if n % 3 == 0 {
            some_changes(&bed, n + 200);
        }
        bed.start();
        let next = bed.mirror.fold.read().next_id();
        bed.check();
        if n == 1 {
            // Nothing was made anew: every file was taken for what it is.
            assert_eq!(bed.mirror.fold.read().next_id(), next);
        }
    }
    bed.stop();
}

#[test]
fn another_directory_is_refused() {
    let mut bed = Bed::new();
    fs::write(bed.path("f"), b"x").unwrap();
    bed.check();
    bed.stop();
    fs::rename(bed.dir.path().join("data"), bed.dir.path().join("aside")).unwrap();
    fs::create_dir(bed.dir.path().join("data")).unwrap();
    let catalog = crate::checkpoint::load_newest(&bed.state().join("catalog"), super::bed::SYSTEM);
    let fold = crate::fold::Fold::new(catalog.unwrap().unwrap(), &bed.state().join("blocks")).unwrap();
    let log = crate::log::Log::open_leader(crate::log::LogOptions {
        dir: bed.state().join("log"),
        system: super::bed::SYSTEM,
        timeline: crate::position::TimelineId::FIRST,
        segment_timeout: Duration::from_secs(600),
        level: 1,
    });
    let root = std::sync::Arc::new(crate::sys::Root::open(&bed.path("")).unwrap());
    let started = crate::capture::Capture::start(root, fold, log.unwrap(), &bed.state(), bed.options.clone());
    assert_eq!(started.err().map(|e| e.kind()), Some(ErrorKind::Refused));
}
