//! Contents that go bad on a disk, with no trace in the stamps of their files.

use std::fs::{self, File, FileTimes};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::support::bed::is_root;
use crate::support::{Bed, Node, Pair, assert_equal_within, until, within};

const BLOCK: usize = 16 << 10;

/// A small ext4 in a file, whose bytes can be changed beneath it; unmounted on drop.
struct Image {
    image: PathBuf,
    at: PathBuf,
}

impl Image {
    fn mount(bed: &Bed) -> Option<Self> {
        if !is_root() {
            println!("SKIPPED: an image can't be mounted without root");
            return None;
        }
        let (image, at) = (bed.path("image"), bed.path("at"));
        File::create(&image).and_then(|f| f.set_len(64 << 20)).expect("make an image");
        fs::create_dir(&at).expect("mkdir");
        let mkfs = Command::new("mkfs.ext4").args(["-q", "-O", "^has_journal"]).arg(&image).output();
        let mkfs = mkfs.unwrap_or_else(|e| panic!("mkfs.ext4: {e}"));
        assert!(mkfs.status.success(), "{mkfs:?}");
        let mount = Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&at).output().expect("mount");
        if !mount.status.success() {
            println!("SKIPPED: can't be mounted here: {}", String::from_utf8_lossy(&mount.stderr));
            return None;
        }
        Some(Self { image, at })
    }

    /// Changes the first byte of `mark`, wherever the disk holds it.
    fn rot(&self, mark: &[u8]) {
        let synced = Command::new("sync").arg("-f").arg(&self.at).status().expect("sync");
        assert!(synced.success());
        let bytes = fs::read(&self.image).expect("read the image");
        let places: Vec<usize> =
            (0..bytes.len() - mark.len()).step_by(512).filter(|&i| bytes[i..].starts_with(mark)).collect();
        assert_eq!(places.len(), 1, "the mark is on the disk once");
        let file = File::options().write(true).open(&self.image).expect("open");
        file.write_all_at(&[mark[0] ^ 0x20], places[0] as u64).expect("write");
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let umount = Command::new("umount").arg(&self.at).stderr(Stdio::null()).status();
        if !umount.is_ok_and(|s| s.success()) {
            let _ = Command::new("umount").arg("-l").arg(&self.at).status();
        }
    }
}

/// Four blocks, of which the third begins with a mark.
fn marked(mark: &[u8]) -> Vec<u8> {
    let mut out: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..)).take(4 * BLOCK).collect();
    out[2 * BLOCK..2 * BLOCK + mark.len()].copy_from_slice(mark);
    out
}

/// Takes what the page cache holds of a file away.
fn drop_cache(path: &Path) {
    use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
    let file = File::open(path).expect("open");
    file.sync_all().expect("sync");
    posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).expect("fadvise");
}

/// Waits until the follower names the damage, in its log and, unless it is repaired already, in its status.
fn named(follower: &Node, file: &str) {
    until(within(30), "the damage is named", || {
        let log = follower.log();
        let line = log.lines().find(|l| l.contains("not what was applied") && l.contains(file));
        let line = line.ok_or("nothing in the log")?;
        if line.contains("the first: 2") { Ok(()) } else { Err(line.to_owned()) }
    });
}

fn scrubbed(follower: &Node, passes: u64) {
    until(within(30), "passes of the scrub", || {
        let status = follower.status()?.0;
        let done = status.pointer("/apply/scrub/passes").and_then(serde_json::Value::as_u64);
        if done >= Some(passes) { Ok(()) } else { Err(status.to_string()) }
    });
}

#[test]
fn bytes_changed_behind_a_followers_back_are_found_and_named() {
    let mut pair = Pair::with(Bed::new("rot"), |s| s, |s| s.set("scrub_interval", "\"500ms\""));
    fs::write(pair.data().join("small"), "s").expect("write");
    fs::write(pair.data().join("f"), marked(b"#mark")).expect("write");
    pair.equal(20);
    scrubbed(&pair.follower, 2);
    let path = pair.follower.data().join("f");
    let time = fs::metadata(&path).and_then(|m| m.modified()).expect("stat");
    let file = File::options().write(true).open(&path).expect("open");
    file.write_all_at(b"!", 2 * BLOCK as u64).expect("write");
    file.set_times(FileTimes::new().set_modified(time)).expect("utimes");
    drop(file);
    named(&pair.follower, "f");
    // It is not passed for good by a restart; once the bytes are what they were, all goes on.
    pair.follower.kill();
    pair.follower.restart();
    let file = File::options().write(true).open(&path).expect("open");
    file.write_all_at(b"#", 2 * BLOCK as u64).expect("write");
    file.set_times(FileTimes::new().set_modified(time)).expect("utimes");
    drop(file);
    fs::write(pair.data().join("after"), "goes on").expect("write");
    let _ = pair.follower.ask(&["reload"]);
    pair.equal(30);
    pair.finish();
}

#[test]
fn a_block_that_a_followers_disk_lost_is_found_beneath_the_page_cache() {
    let bed = Bed::new("rot-disk");
    let Some(image) = Image::mount(&bed) else { return };
    let leader = bed.leader("leader").start();
    let mut spec = bed.follower("follower", leader.spec.listen).set("scrub_interval", "\"500ms\"");
    spec.data = image.at.join("data");
    let mut follower = spec.start();
    let mark = format!("#mark-{:016x}", fastrand::u64(..));
    fs::write(leader.data().join("f"), marked(mark.as_bytes())).expect("write");
    assert_equal_within(within(20), leader.data(), follower.data());
    scrubbed(&follower, 2);
    image.rot(mark.as_bytes());
    named(&follower, "f");
    follower.kill();
    drop(image);
}

#[test]
fn content_that_went_bad_on_a_leaders_disk_is_counted_and_shipped_as_it_is() {
    let bed = Bed::new("rot-leader");
    let Some(image) = Image::mount(&bed) else { return };
    let mut spec = bed.leader("leader");
    spec.data = image.at.join("data");
    fs::create_dir(&spec.data).expect("mkdir");
    let mut leader = spec.start();
    let mut follower = bed.follower("follower", leader.spec.listen).start();
    let mark = format!("#mark-{:016x}", fastrand::u64(..));
    fs::write(leader.data().join("f"), marked(mark.as_bytes())).expect("write");
    assert_equal_within(within(20), leader.data(), follower.data());
    leader.stop();
    image.rot(mark.as_bytes());
    drop_cache(&leader.data().join("f"));
    // A start compares stamps, which say nothing: it is the scrub behind it that finds this.
    leader.restart();
    until(within(30), "the scrub finds it", || {
        let status = leader.status()?;
        let said = leader.log().contains("changed without a trace in its stamps");
        if status.found_by_scan() > 0 && said { Ok(()) } else { Err(status.0.to_string()) }
    });
    assert_equal_within(within(20), leader.data(), follower.data());
    assert_eq!(fs::read(follower.data().join("f")).expect("read")[2 * BLOCK], b'#' ^ 0x20);
    follower.stop();
    leader.stop();
    drop(image);
}
