//! Contents: what is shipped of them, and that all of it is.

use std::fs;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use super::bed::Bed;

const BLOCK: u64 = 16 << 10;

#[test]
fn a_write_in_place_ships_the_blocks_it_changed() {
    let mut bed = Bed::new();
    let data: Vec<u8> = (0..8 << 20).map(|_| fastrand::u8(..)).collect();
    fs::write(bed.path("f"), &data).unwrap();
    bed.check();
    let before = bed.mirror.bytes;
    assert!(before >= data.len() as u64);
    let file = fs::OpenOptions::new().write(true).open(bed.path("f")).unwrap();
    file.write_all_at(b"changed", 5 * BLOCK + 3).unwrap();
    file.write_all_at(b"changed", 100 * BLOCK - 3).unwrap();
    bed.check();
    assert_eq!(bed.mirror.bytes - before, 3 * BLOCK);
    // The same bytes again: nothing to ship.
    let before = bed.mirror.bytes;
    file.write_all_at(b"changed", 5 * BLOCK + 3).unwrap();
    bed.check();
    assert_eq!(bed.mirror.bytes, before);
}

#[test]
fn files_grow_and_shrink_at_any_length() {
    let mut bed = Bed::new();
    let file = fs::File::create(bed.path("f")).unwrap();
    let mut rng = fastrand::Rng::with_seed(3);
    for _ in 0..60 {
        match rng.u8(0..5) {
            0 => file.set_len(rng.u64(0..6 * BLOCK)).unwrap(),
            1 => file.set_len(rng.u64(0..6) * BLOCK).unwrap(),
            2 => file.write_all_at(&[rng.u8(..); 9], rng.u64(0..6 * BLOCK)).unwrap(),
            3 => file.write_all_at(&vec![rng.u8(..); 2 * BLOCK as usize], rng.u64(0..6 * BLOCK)).unwrap(),
            _ => {
                let flags = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
                let _ = rustix::fs::fallocate(&file, flags, rng.u64(0..5) * BLOCK, BLOCK);
            }
        }
        if rng.bool() {
            bed.check();
        }
    }
    bed.check();
}

#[test]
fn a_hole_of_a_hundred_gigabytes_costs_nothing() {
    let mut bed = Bed::new();
    let file = fs::File::create(bed.path("sparse")).unwrap();
    file.set_len(100 << 30).unwrap();
    file.write_all_at(b"middle", 50 << 30).unwrap();
    bed.check();
    assert_eq!(bed.mirror.bytes, BLOCK);
    file.write_all_at(b"another", 70 << 30).unwrap();
    bed.check();
    assert_eq!(bed.mirror.bytes, 2 * BLOCK);
}

#[test]
fn what_was_there_before_is_hashed_behind_the_scan() {
    let mut bed = Bed::idle();
    fs::create_dir(bed.path("d")).unwrap();
    fs::write(bed.path("d/f"), vec![1; 100_000]).unwrap();
    fs::write(bed.path("g"), vec![2; 3]).unwrap();
    fs::hard_link(bed.path("g"), bed.path("d/g")).unwrap();
    fs::write(bed.path("e"), b"").unwrap();
    bed.start();
    bed.check();
    assert_eq!(bed.mirror.bytes, 0);
    let end = Instant::now() + Duration::from_secs(20);
    while bed.capture().stats().unhashed_files > 0 {
        assert!(Instant::now() < end, "not hashed");
        std::thread::sleep(Duration::from_millis(10));
    }
    // Hashed now: a change ships a block, not the file.
    let file = fs::OpenOptions::new().write(true).open(bed.path("d/f")).unwrap();
    file.write_all_at(b"x", 50_000).unwrap();
    bed.check();
    assert_eq!(bed.mirror.bytes, BLOCK);
}

#[test]
fn a_file_that_is_not_hashed_is_shipped_whole() {
    let mut bed = Bed::idle();
    bed.options.scrub_rate = 1;
    fs::write(bed.path("f"), vec![1; 100_000]).unwrap();
    bed.start();
    let file = fs::OpenOptions::new().write(true).open(bed.path("f")).unwrap();
    file.write_all_at(b"x", 50_000).unwrap();
    bed.check();
    assert_eq!(bed.mirror.bytes, 100_000);
}

#[test]
fn names_outside_are_polled() {
    let mut bed = Bed::new();
    fs::write(bed.path("in"), b"one").unwrap();
    let outside = bed.dir.path().join("outside");
    fs::hard_link(bed.path("in"), &outside).unwrap();
    std::thread::sleep(Duration::from_millis(500));
    bed.barrier();
    fs::OpenOptions::new().write(true).open(&outside).unwrap().write_all_at(b"two", 0).unwrap();
    std::thread::sleep(Duration::from_millis(1500));
    bed.follow();
    let catalog = bed.mirror.fold.read();
    let id = catalog.resolve(b"in").unwrap();
    let want = crate::catalog::block_hash(super::bed::SYSTEM, id, 0, b"two");
    assert_eq!(catalog.get(id).unwrap().content, want);
}

#[test]
fn a_large_change_set_streams_through_many_frames() {
    let mut bed = Bed::new();
    for n in 0..4 {
        let data: Vec<u8> = (0..6 << 20).map(|_| fastrand::u8(..)).collect();
        fs::write(bed.path(&format!("f{n}")), data).unwrap();
    }
    for n in 0..3000 {
        fs::write(bed.path(&format!("s{n}")), format!("{n}")).unwrap();
    }
    bed.check();
    bed.stop();
}

#[test]
fn directories_that_change_under_the_first_scan_are_as_they_are() {
    for _ in 0..4 {
        let mut bed = Bed::idle();
        for n in 0..400 {
            fs::create_dir(bed.path(&format!("d{n}"))).unwrap();
        }
        let stop = std::sync::atomic::AtomicBool::new(false);
        let dirs = bed.path("");
        std::thread::scope(|scope| {
            let stop = &stop;
            scope.spawn(move || {
                while !stop.load(std::sync::atomic::Ordering::SeqCst) {
                    let dir = dirs.join(format!("d{}", fastrand::u32(..400)));
                    fs::write(dir.join("aside"), b"").unwrap();
                    fs::rename(dir.join("aside"), dir.join("f")).unwrap();
                }
            });
            std::thread::sleep(Duration::from_millis(5));
            bed.start();
            stop.store(true, std::sync::atomic::Ordering::SeqCst);
        });
        bed.check();
        for n in 0..400 {
            let rel = format!("d{n}");
            let here = crate::sys::stat_fd(fs::File::open(bed.path(&rel)).unwrap()).unwrap();
            let catalog = bed.capture().catalog();
            let catalog = catalog.read().unwrap();
            let id = catalog.resolve(rel.as_bytes()).unwrap();
            assert_eq!(catalog.get(id).unwrap().attrs, here.attrs, "{rel}");
        }
    }
}
