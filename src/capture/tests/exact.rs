//! Cuts: what an exact one shows was really there.

use std::fs;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::bed::Bed;
use crate::position::Cut;

fn number(bytes: Option<Vec<u8>>) -> u64 {
    bytes.and_then(|b| String::from_utf8(b).ok()).and_then(|t| t.trim().parse().ok()).unwrap_or(0)
}

/// A process writes n to file a, then to file b: no exact cut shows b ahead of a.
fn ordered(write: impl Fn(&Bed, &str, u64) + Sync, pause: Duration) {
    let mut bed = Bed::idle();
    write(&bed, "a", 0);
    write(&bed, "b", 0);
    bed.start();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (bed, stop, write) = (&bed, &stop, &write);
        scope.spawn(move || {
            for n in 1.. {
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                write(bed, "a", n);
                write(bed, "b", n);
                std::thread::sleep(pause);
            }
        });
        let end = Instant::now() + Duration::from_secs(4);
        while Instant::now() < end {
            std::thread::sleep(Duration::from_millis(50));
            assert!(bed.capture().failure().is_none());
        }
        stop.store(true, Ordering::SeqCst);
    });
    let seen = Arc::new(Mutex::new((0, 0, 0)));
    let counts = Arc::clone(&seen);
    let mut began = false;
    bed.mirror.on_commit = Some(Box::new(move |m| {
        let (a, b) = (number(m.read("a")), number(m.read("b")));
        let mut counts = counts.lock().unwrap();
        // A cut between the making of the two is exact as well.
        began |= m.exists("a") && m.exists("b");
        if m.cut == Cut::Exact && began {
            assert!(m.exists("a") && m.exists("b"), "a name was lost");
            assert!(b <= a && a <= b + 1, "b is {b} while a is {a}");
            counts.0 += 1;
            counts.2 = a;
        } else {
            counts.1 += 1;
        }
    }));
    bed.check();
    let (exact, file, last) = *seen.lock().unwrap();
    assert!(exact > 10, "{exact} exact cuts, {file} of files, up to {last}");
}

#[test]
fn writes_in_place_keep_their_order() {
    let write = |bed: &Bed, name: &str, n: u64| {
        let mut options = fs::OpenOptions::new();
        let file = options.write(true).create(true).truncate(false).open(bed.path(name)).unwrap();
        file.write_all_at(format!("{n:>20}").as_bytes(), 0).unwrap();
    };
    ordered(write, Duration::from_micros(300));
}

#[test]
fn replaced_files_keep_their_order() {
    let write = |bed: &Bed, name: &str, n: u64| {
        let aside = bed.path(&format!("{name}.tmp"));
        fs::write(&aside, format!("{n}")).unwrap();
        fs::rename(&aside, bed.path(name)).unwrap();
    };
    ordered(write, Duration::from_millis(2));
}

#[test]
fn a_file_that_moves_between_directories_is_never_gone() {
    let mut bed = Bed::new();
    fs::create_dir(bed.path("p")).unwrap();
    fs::create_dir(bed.path("q")).unwrap();
    fs::write(bed.path("p/f"), b"content").unwrap();
    bed.barrier();
    for n in 0..400 {
        let (from, to) = if n % 2 == 0 { ("p/f", "q/f") } else { ("q/f", "p/f") };
        fs::rename(bed.path(from), bed.path(to)).unwrap();
        std::thread::sleep(Duration::from_micros(fastrand::u64(0..2000)));
    }
    // A cut between the making of the directories and of the file is exact as well.
    let mut made = false;
    bed.mirror.on_commit = Some(Box::new(move |m| {
        made |= m.exists("p/f");
        if m.cut == Cut::Exact && made {
            assert_eq!(u8::from(m.exists("p/f")) + u8::from(m.exists("q/f")), 1);
        }
    }));
    let before = bed.mirror.bytes;
    bed.check();
    assert!(bed.mirror.bytes <= before + 7, "a rename shipped data");
}

#[test]
fn a_file_written_all_the_time_still_ships() {
    let mut bed = Bed::new();
    let data = vec![1; 16 << 20];
    fs::write(bed.path("f"), &data).unwrap();
    bed.barrier();
    bed.follow();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (bed, stop) = (&bed, &stop);
        scope.spawn(move || {
            let file = fs::OpenOptions::new().write(true).open(bed.path("f")).unwrap();
            while !stop.load(Ordering::SeqCst) {
                let at = fastrand::u64(0..2000) * 8192;
                file.write_all_at(&[fastrand::u8(..); 8192], at).unwrap();
                std::thread::sleep(Duration::from_micros(200));
            }
        });
        std::thread::sleep(Duration::from_secs(5));
        stop.store(true, Ordering::SeqCst);
    });
    let commits = bed.mirror.cuts.len();
    bed.check();
    let commits = bed.mirror.cuts.len() - commits;
    assert!(commits >= 5, "{commits} commits in 5 s");
    assert_eq!(bed.mirror.cuts.last(), Some(&Cut::Exact));
}

#[test]
fn a_quiet_change_is_one_small_exact_commit() {
    let mut bed = Bed::new();
    fs::write(bed.path("first"), b"x").unwrap();
    bed.check();
    let (records, cuts) = (bed.mirror.records, bed.mirror.cuts.len());
    fs::write(bed.path("small"), b"content").unwrap();
    std::thread::sleep(Duration::from_millis(300));
    bed.check();
    assert!(bed.mirror.cuts[cuts..].iter().all(|c| *c == Cut::Exact), "{:?}", &bed.mirror.cuts[cuts..]);
    assert!(bed.mirror.records - records <= 14, "{} records", bed.mirror.records - records);
}
