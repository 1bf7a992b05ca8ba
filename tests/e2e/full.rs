//! A follower's real file systems run full: said by name, nothing half-visible, and over when there is room.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::support::bed::is_root;
use crate::support::{Bed, Pair, until, within};

/// A small file system in memory, gone on drop.
struct Small(PathBuf);

impl Small {
    fn mount(at: &Path, size: &str) -> Option<Self> {
        fs::create_dir_all(at).expect("mkdir");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={size}"), "towline-test"]).arg(at);
        (is_root() && mount.stderr(Stdio::null()).status().is_ok_and(|s| s.success()))
            .then(|| Self(at.to_owned()))
    }

    fn resize(&self, size: &str) {
        let mut mount = Command::new("mount");
        let ok = mount.args(["-o", &format!("remount,size={size}")]).arg(&self.0).status().expect("mount");
        assert!(ok.success());
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).stderr(Stdio::null()).status();
    }
}

fn noise(bytes: usize) -> Vec<u8> {
    let mut data = vec![0; bytes];
    fastrand::Rng::with_seed(7).fill(&mut data);
    data
}

fn runs_full(name: &str, of: fn(&crate::support::Spec) -> &PathBuf, small: &str, enough: &str, bytes: usize) {
    let bed = Bed::new(name);
    let leader = bed.leader("leader").start();
    let spec = bed.follower("follower", leader.spec.listen).set("segment_timeout", "\"1s\"");
    let Some(disk) = Small::mount(of(&spec), small) else {
        println!("skipped: nothing can be mounted on this host");
        return;
    };
    let follower = spec.start();
    let mut pair = Pair { leader, follower, bed };
    let (data, copy) = (pair.data().to_owned(), pair.follower.data().to_owned());
    fs::write(data.join("old"), noise(100_000)).expect("write");
    pair.equal(30);
    fs::create_dir(data.join("new")).expect("mkdir");
    // It is there at once, so that no cut holds a part of it.
    let outside = pair.bed.path("big");
    fs::write(&outside, noise(bytes)).expect("write");
    fs::rename(&outside, data.join("new/big")).expect("rename");
    until(within(60), "the full disk is said", || {
        let status = pair.follower.status()?;
        match status.error_kind() {
            Some(kind) if kind == "disk-full" => Ok(()),
            _ => Err(status.0.to_string()),
        }
    });
    // The application goes on, and what is here is what was.
    fs::write(data.join("more"), "more").expect("write");
    std::thread::sleep(within(2));
    assert!(!copy.join("new/big").exists(), "half of it is visible");
    assert_eq!(fs::read(copy.join("old")).expect("read"), noise(100_000));
    assert_eq!(pair.leader.status().expect("status").error_kind(), None);
    disk.resize(enough);
    pair.equal(60);
    until(within(30), "nothing is wrong any more", || {
        let status = pair.follower.status()?;
        status.error_kind().map_or(Ok(()), Err)
    });
    pair.follower.stop();
    pair.leader.stop();
    pair.follower.assert_no_panic();
    drop(disk);
}

#[test]
fn a_full_data_directory_of_a_follower() {
    // With less room than two copies: what the first attempts left must go before the last.
    runs_full("full-data", |s| &s.data, "12m", "24m", 16 << 20);
}

#[test]
fn a_full_state_directory_of_a_follower() {
    runs_full("full-state", |s| &s.state, "40m", "160m", 64 << 20);
}
