//! An application that never rests, on file systems that clone: it is held still for clones of its large files, not
//! for reading them, and every cut is an instant all the same.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::support::bed::{c_program, is_root, nap, soak_or};
use crate::support::node::Holds;
use crate::support::{Bed, Node, Pair, until, within};

/// Size of all large files of `torn.c`.
const MIB: u64 = 128;
const LARGE: u64 = MIB << 20;

/// A file system of its own in a file without a name; gone on drop, with its loop device.
pub(super) struct Disk(tempfile::TempDir);

impl Disk {
    pub(super) fn mount(fs: &str) -> Option<Self> {
        if !is_root() {
            println!("SKIPPED: {fs} can't be mounted without root");
            return None;
        }
        let base = std::env::var_os("TOWLINE_TEST_DIR").map_or_else(|| "/var/tmp".into(), PathBuf::from);
        let dir = tempfile::Builder::new().prefix("towline-disk-").tempdir_in(base).expect("mkdir");
        let (image, at) = (dir.path().join("image"), dir.path().join("at"));
        File::create(&image).and_then(|f| f.set_len(2 << 30)).expect("make an image");
        fs::create_dir(&at).expect("mkdir");
        let mkfs = Command::new(format!("mkfs.{fs}")).arg("-q").arg(&image).output();
        let mkfs = mkfs.unwrap_or_else(|e| panic!("mkfs.{fs}: {e}; scripts/test.sh installs it"));
        assert!(mkfs.status.success(), "{mkfs:?}");
        // The loop device goes with the mount, and the image, which has no name any more, with the loop device.
        let mount = Command::new("mount").args(["-t", fs, "-o", "loop"]).arg(&image).arg(&at).output();
        let mount = mount.expect("mount");
        fs::remove_file(&image).expect("unlink the image");
        if !mount.status.success() {
            println!("SKIPPED: {fs} can't be mounted here: {}", String::from_utf8_lossy(&mount.stderr));
            return None;
        }
        Some(Self(dir))
    }

    pub(super) fn path(&self) -> PathBuf {
        self.0.path().join("at")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // What is busy for a moment more goes when it is not.
        let umount = Command::new("umount").arg(self.path()).stderr(Stdio::null()).status();
        if !umount.is_ok_and(|s| s.success()) {
            let _ = Command::new("umount").arg("-l").arg(self.path()).status();
        }
    }
}

/// The writer; killed on drop.
struct Writer(Child);

impl Writer {
    /// Goes on where an earlier one was killed; its pid is in the file `pid`.
    fn start(dir: &Path, files: u64, pid: &Path) -> Self {
        let mut torn = Command::new(c_program("torn", &[]));
        let words = [files.to_string(), (MIB / files).to_string()];
        let child = torn.arg(dir).args(words).spawn().expect("start");
        fs::write(pid, child.id().to_string()).expect("write");
        Self(child)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The newest number in a directory at rest, and what is wrong with the others.
fn look(dir: &Path, files: u64) -> (u64, Option<String>) {
    let number = |file: &File, at: u64| {
        let mut text = [0; 20];
        file.read_exact_at(&mut text, at).expect("read");
        String::from_utf8_lossy(&text).trim().parse::<u64>().unwrap_or(u64::MAX)
    };
    let alone = |name: &str| number(&File::open(dir.join(name)).expect("open"), 0);
    let mut all = vec![alone("a")];
    for file in 0..files {
        let large = File::open(dir.join(format!("large{file}"))).expect("open");
        all.extend((0..MIB / files).map(|i| number(&large, i << 20)));
    }
    all.push(alone("b"));
    let instant = all.is_sorted_by(|x, y| x >= y) && all[0] - all[all.len() - 1] <= 1;
    (all[0], (!instant).then(|| format!("not an instant: {all:?}")))
}

/// A leader of which the writer changes `data` all the time, and a follower.
struct Stage {
    writer: Option<Writer>,
    files: u64,
    pid: PathBuf,
    pair: Pair,
    newest: u64,
}

impl Stage {
    /// Both directories of the leader are on the disk; `prefix`: words before its program.
    fn set(fs: &str, disk: &Disk, files: u64, prefix: &[&str]) -> Self {
        let bed = Bed::new(&format!("clones-{fs}"));
        let mut spec = bed.leader("leader").armed();
        spec.prefix = prefix.iter().map(|&w| w.to_owned()).collect();
        (spec.data, spec.state) = (disk.path().join("data"), disk.path().join("state"));
        fs::create_dir(&spec.data).expect("mkdir");
        let mut block = vec![0; 1 << 20];
        fastrand::Rng::with_seed(7).fill(&mut block);
        for file in 0..files {
            let path = spec.data.join(format!("large{file}"));
            let mut large = File::create(&path).expect("create");
            // On btrfs every other one is overwritten in place, as people have it for databases.
            if fs == "btrfs" && file % 2 == 1 {
                assert!(Command::new("chattr").arg("+C").arg(&path).status().expect("chattr").success());
            }
            for _ in 0..MIB / files {
                large.write_all(&block).expect("write");
            }
        }
        let pid = bed.path("pid");
        let writer = Writer::start(&spec.data, files, &pid);
        let b = spec.data.join("b");
        until(within(30), "the writer writes", || {
            fs::metadata(&b)
                .map_err(|e| e.to_string())
                .and_then(|m| if m.len() > 0 { Ok(()) } else { Err("b is empty".into()) })
        });
        let freeze = format!("\"pid:{}\"", pid.display());
        let spec = spec.set("freeze", &freeze).set("max_cut_delay", "\"50ms\"").set("max_freeze", "\"10s\"");
        let leader = spec.start();
        let follower = bed.follower("follower", leader.spec.listen).start();
        Self { writer: Some(writer), files, pid, pair: Pair { leader, follower, bed }, newest: 0 }
    }

    fn holds(&self) -> Holds {
        self.pair.leader.status().expect("status").holds()
    }

    /// The follower rests on newer and newer instants, until `done` says so of the leader's freezes since the start.
    fn rests(&mut self, times: u32, done: impl Fn(&Holds, &Holds) -> bool) -> (Holds, Holds) {
        let before = self.holds();
        let mut rests = 0;
        until(within(60), "exact cuts come", || {
            nap(20, 200);
            let rest = self.pair.follower.try_pause()?;
            assert_eq!(rest.cut, "exact");
            let (newest, wrong) = look(self.pair.follower.data(), self.files);
            assert_eq!(wrong, None, "at {rest:?}");
            assert!(newest >= self.newest, "it went backwards: {newest} after {}", self.newest);
            rests += u32::from(newest > self.newest);
            self.newest = newest;
            self.pair.follower.resume();
            let now = self.holds();
            if rests >= times && done(&before, &now) {
                Ok(())
            } else {
                Err(format!("{rests} rests, {before:?}, {now:?}"))
            }
        });
        (before, self.holds())
    }

    /// The writer dies at some instant: what it did last is on the follower, too. Then it goes on.
    fn stops_and_goes_on(&mut self) {
        self.writer = None;
        self.pair.equal(30);
        self.writer = Some(Writer::start(self.pair.data(), self.files, &self.pid));
    }

    fn finish(mut self) {
        let cuts = self.pair.leader.status().expect("status").cuts();
        println!("{} exact cuts, {} of files; {:?}", cuts.0, cuts.1, self.holds());
        self.writer = None;
        self.pair.leader.arm("");
        self.pair.finish();
    }
}

fn held_for_clones_only(fs: &str) {
    let Some(disk) = Disk::mount(fs) else { return };
    let mut stage = Stage::set(fs, &disk, 2, &[]);
    // Between the thaw and the reading the application writes a lot: none of that is in the cut.
    stage.pair.leader.arm("capture::thawed=sleep:200");
    let rounds = soak_or(60, 6);
    let (_, after) = stage.rests(rounds, |_, now| now.clones >= 3 || now.read_bytes >= LARGE);
    assert!(after.read_bytes < 1 << 20, "a large file was read while it was held: {after:?}");
    assert!(after.longest_ms >= after.last_ms && after.longest_ms > 0, "{after:?}");
    for _ in 0..soak_or(10, 2) {
        stage.stops_and_goes_on();
        stage.rests(1, |_, _| true);
    }
    // A clone that fails is no loss: its file is read meanwhile.
    stage.pair.leader.arm("capture::clone=enospc");
    let (_, full) = stage.rests(2, |before, now| now.read_bytes >= before.read_bytes + LARGE);
    stage.pair.leader.arm("");
    stage.rests(2, |_, now| now.clones >= full.clones + 2);
    // While the first clone is made the application is thawed: such clones make no exact cut, and reading gets its turn.
    stage.pair.leader.reload("max_freeze", "\"500ms\"").expect("reload");
    stage.pair.leader.arm("capture::clone=sleep:700");
    stage.rests(2, |before, now| {
        now.read_bytes >= before.read_bytes + LARGE && now.clones >= before.clones + 2
    });
    // Killed while it clones, and between the thaw and the reading: the application goes on, clones go with the process.
    for death in ["capture::clone=kill", "capture::thawed=kill"] {
        stage.pair.leader.arm(death);
        let status = stage.pair.leader.wait_end(within(30));
        assert!(Node::was_killed(status), "{death}: {status}");
        stage.pair.leader.arm("");
        stage.pair.leader.restart();
        stage.rests(1, |_, now| now.clones > 0);
    }
    let left: Vec<_> =
        fs::read_dir(stage.pair.data()).expect("list").flatten().map(|e| e.file_name()).collect();
    assert_eq!(left.len(), 4, "it left something in the data directory: {left:?}");
    stage.finish();
}

#[test]
fn a_freeze_lasts_for_clones_only_on_xfs() {
    held_for_clones_only("xfs");
}

#[test]
fn a_freeze_lasts_for_clones_only_on_btrfs() {
    held_for_clones_only("btrfs");
}

#[test]
fn more_files_than_descriptors_are_cloned_in_part() {
    let Some(disk) = Disk::mount("xfs") else { return };
    // A clone of each file would take more descriptors than there are.
    let mut stage = Stage::set("xfs", &disk, 128, &["prlimit", "--nofile=160"]);
    let (_, after) = stage.rests(soak_or(30, 4), |_, now| now.clones > 40 && now.read_bytes > LARGE / 2);
    assert!(after.clones <= 40 * after.freezes, "more clones at a time than there should be: {after:?}");
    let log = stage.pair.leader.log();
    assert!(!log.contains("Too many open files"), "{log}");
    stage.finish();
}

#[test]
fn where_the_file_system_does_not_clone_files_are_read_in_the_freeze() {
    let Some(disk) = Disk::mount("ext4") else { return };
    let mut stage = Stage::set("ext4", &disk, 1, &[]);
    let (_, after) = stage.rests(soak_or(30, 3), |_, now| now.read_bytes >= 2 * LARGE);
    assert_eq!(after.clones, 0, "{after:?}");
    stage.finish();
}
