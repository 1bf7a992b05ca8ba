//! Pages of a follower's files that are wrong, in each of the ways that disks, file systems and hands make them wrong: found,
//! named, and made right by what differs alone.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use nix::fcntl::{FallocateFlags, fallocate};

use crate::resync::{count, noise, resynced};
use crate::support::{Bed, Pair, Spec, until, within};

const PAGE: u64 = 16 << 10;
/// Pages of a file.
const PAGES: u64 = 8;

/// A file to be damaged, and its content before the last change.
struct Page<'a> {
    file: &'a File,
    old: &'a [u8],
}

impl Page<'_> {
    fn read(&self, page: u64) -> Vec<u8> {
        let mut bytes = vec![0; PAGE as usize];
        self.file.read_exact_at(&mut bytes, page * PAGE).expect("read");
        bytes
    }

    fn write(&self, page: u64, bytes: &[u8]) {
        self.file.write_all_at(bytes, page * PAGE).expect("write");
    }

    fn old(&self, page: u64) -> &[u8] {
        &self.old[(page * PAGE) as usize..((page + 1) * PAGE) as usize]
    }
}

type Damage = fn(&Page<'_>);

fn flipped(p: &Page<'_>) {
    let mut bytes = p.read(3);
    bytes[4097] ^= 0x10;
    p.write(3, &bytes);
}

/// Only its first half was written.
fn torn(p: &Page<'_>) {
    let half = PAGE as usize / 2;
    p.file.write_all_at(&p.old(3)[half..], 3 * PAGE + half as u64).expect("write");
}

fn zeroed(p: &Page<'_>) {
    p.write(3, &[0; PAGE as usize]);
}

fn punched(p: &Page<'_>) {
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    let at = i64::try_from(3 * PAGE).expect("offset");
    fallocate(p.file, flags, at, i64::try_from(PAGE).expect("length")).expect("punch");
}

fn swapped(p: &Page<'_>) {
    let (two, five) = (p.read(2), p.read(5));
    p.write(2, &five);
    p.write(5, &two);
}

/// A write that was acknowledged and never made.
fn stale(p: &Page<'_>) {
    p.write(3, p.old(3));
}

/// A write that went to another place.
fn misplaced(p: &Page<'_>) {
    p.write(3, &p.read(6));
}

/// What another file once had there.
fn foreign(p: &Page<'_>) {
    p.write(3, &noise(99, PAGE as usize));
}

fn truncated(p: &Page<'_>) {
    p.file.set_len(5 * PAGE + 100).expect("truncate");
}

fn extended(p: &Page<'_>) {
    p.file.write_all_at(&noise(98, 5000), PAGES * PAGE).expect("write");
}

/// Damages a file so that its times say nothing.
fn spoil(path: &Path, old: &[u8], damage: Damage) {
    let file = File::options().read(true).write(true).open(path).expect("open");
    let time = file.metadata().and_then(|m| m.modified()).expect("mtime");
    damage(&Page { file: &file, old });
    file.set_modified(time).expect("set mtime");
    file.sync_all().expect("sync");
}

/// What the file named so had before, and what it has.
fn contents(seed: u64) -> (Vec<u8>, Vec<u8>) {
    let len = (PAGES * PAGE) as usize;
    (noise(seed, len), noise(seed + 50, len))
}

fn furnished(name: &str, files: &[&str], follower: impl FnOnce(Spec) -> Spec) -> Pair {
    let pair = Pair::with(Bed::new(name), |s| s, follower);
    for (file, seed) in files.iter().zip(0..) {
        let (old, new) = contents(seed);
        fs::write(pair.data().join(file), old).expect("write");
        pair.equal(20);
        fs::write(pair.data().join(file), new).expect("write");
    }
    pair.equal(20);
    pair
}

/// Damages a page of a running follower. It is found by reading, since no stamp says anything, or where the size
/// does, by that.
fn is_repaired(damage: Damage, pages: u64, by_reading: bool) {
    let edits = if by_reading { "\"refuse\"" } else { "\"overwrite\"" };
    let pair =
        furnished("rot-page", &["f"], |s| s.set("scrub_interval", "\"500ms\"").set("local_edits", edits));
    let before = pair.follower.status().expect("status").0["apply"]["commits"].as_u64();
    spoil(&pair.follower.data().join("f"), &contents(0).0, damage);
    let status = resynced(&pair.follower, 1);
    pair.equal(20);
    assert_eq!(count(&status, "received_bytes").div_ceil(PAGE), pages, "{}", status.0);
    assert_eq!(count(&status, "lost_logs"), 0, "{}", status.0);
    // What was counted before the repair, in engines that are gone by now, is not forgotten.
    let apply = &status.0["apply"];
    assert!(before > Some(0) && apply["commits"].as_u64() >= before, "{before:?} {apply}");
    if by_reading {
        let scrub = &apply["scrub"];
        assert!(scrub["mismatches"] == 1 && scrub["damaged"][0]["path"] == "f", "{scrub}");
        assert!(status.0.pointer("/resync/repaired/0").is_some_and(|p| p == "f"), "{}", status.0);
    } else {
        assert!(apply["local_edits_total"].as_u64() > Some(0), "{apply}");
    }
    fs::write(pair.data().join("f"), "goes on").expect("write");
    pair.finish();
}

#[test]
fn a_page_with_a_flipped_bit() {
    is_repaired(flipped, 1, true);
}

#[test]
fn a_torn_page() {
    is_repaired(torn, 1, true);
}

#[test]
fn a_zeroed_page() {
    is_repaired(zeroed, 1, true);
}

#[test]
fn a_page_that_became_a_hole() {
    is_repaired(punched, 1, true);
}

#[test]
fn two_swapped_pages() {
    is_repaired(swapped, 2, true);
}

#[test]
fn a_stale_page() {
    is_repaired(stale, 1, true);
}

#[test]
fn a_misplaced_page() {
    is_repaired(misplaced, 1, true);
}

#[test]
fn a_page_of_another_file() {
    is_repaired(foreign, 1, true);
}

#[test]
fn a_truncated_file() {
    is_repaired(truncated, 3, false);
}

#[test]
fn an_extended_file() {
    is_repaired(extended, 0, false);
}

#[test]
fn all_kinds_of_wrong_pages_at_once_behind_a_follower_that_is_down() {
    let kinds: [(&str, Damage); 8] = [
        ("flipped", flipped),
        ("torn", torn),
        ("zeroed", zeroed),
        ("punched", punched),
        ("swapped", swapped),
        ("stale", stale),
        ("misplaced", misplaced),
        ("foreign", foreign),
    ];
    let names = kinds.map(|k| k.0);
    let mut pair = furnished("rot-pages", &names, |s| s);
    pair.follower.stop();
    for ((name, damage), seed) in kinds.iter().zip(0..) {
        spoil(&pair.follower.data().join(name), &contents(seed).0, *damage);
    }
    pair.follower.restart();
    let status = resynced(&pair.follower, 1);
    pair.equal(20);
    assert_eq!(count(&status, "completed"), 1, "all of them by one repair: {}", status.0);
    assert_eq!(count(&status, "repaired_files"), 8, "{}", status.0);
    assert_eq!(count(&status, "repaired_bytes"), 9 * PAGE, "{}", status.0);
    pair.finish();
}

#[test]
fn counts_of_a_leader_outlive_its_engines() {
    let pair = Pair::with(Bed::new("tally"), Spec::armed, |s| s);
    fs::write(pair.data().join("a"), "1").expect("write");
    pair.equal(20);
    let counts = |pair: &Pair| pair.leader.status().map(|s| s.cuts());
    let before = counts(&pair).expect("status");
    assert!(before.0 > 0);
    pair.leader.arm("log::sync=eio");
    fs::write(pair.data().join("a"), "2").expect("write");
    until(within(30), "it stands still", || {
        let status = pair.leader.status()?;
        if status.state() == "stalled" { Ok(()) } else { Err(status.0.to_string()) }
    });
    pair.leader.arm("");
    let _ = pair.leader.ask(&["reload"]);
    pair.equal(30);
    let after = counts(&pair).expect("status");
    assert!(after.0 > before.0, "{before:?} {after:?}");
    fs::write(pair.data().join("a"), "3").expect("write");
    pair.finish();
}

/// A disk that keeps losing what was repaired on it needs somebody to look at it.
#[test]
fn the_fourth_repair_within_ten_minutes_is_left_to_the_operator() {
    let files = ["f0", "f1", "f2", "f3"];
    let pair = furnished("rot-again", &files, |s| s.set("scrub_interval", "\"500ms\""));
    for (file, seed) in files.iter().zip(0..3) {
        spoil(&pair.follower.data().join(file), &contents(seed).0, zeroed);
        resynced(&pair.follower, seed + 1);
        pair.equal(20);
    }
    spoil(&pair.follower.data().join("f3"), &contents(3).0, zeroed);
    until(within(60), "it stands still, and says why", || {
        let status = pair.follower.status()?;
        let error = status.0["error"].to_string();
        if error.contains("repaired three times")
            && error.contains("look at the disk")
            && error.contains("'f3'")
        {
            Ok(())
        } else {
            Err(status.0.to_string())
        }
    });
    assert!(pair.follower.ask(&["resync"]).status.success());
    resynced(&pair.follower, 4);
    pair.equal(20);
    pair.finish();
}
