//! Real file systems run full, a follower's and a leader's: said by name, nothing half-visible, and over when there is room.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::support::bed::is_root;
use crate::support::{Bed, Pair, assert_equal_within, until, within};

/// A small file system in memory, gone on drop.
pub(crate) struct Small(PathBuf);

impl Small {
    pub(crate) fn mount(at: &Path, size: &str) -> Option<Self> {
        fs::create_dir_all(at).expect("mkdir");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={size}"), "towline-test"]).arg(at);
        (is_root() && mount.stderr(Stdio::null()).status().is_ok_and(|s| s.success()))
            .then(|| Self(at.to_owned()))
    }

    pub(crate) fn resize(&self, size: &str) {
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

pub(crate) fn noise(bytes: usize) -> Vec<u8> {
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

#[test]
fn a_leader_with_a_full_disk_sends_what_is_durable() {
    let bed = Bed::new("full-leader");
    let spec = bed.leader("leader").set("segment_timeout", "\"1s\"");
    let Some(disk) = Small::mount(&spec.state, "40m") else {
        println!("skipped: nothing can be mounted on this host");
        return;
    };
    let mut leader = spec.start();
    let data = leader.data().to_owned();
    let mut late = bed.follower("late", leader.spec.listen).start();
    let mut later = bed.follower("later", leader.spec.listen).start();
    let here = bed.follower("here", leader.spec.listen).start();
    fs::write(data.join("old"), noise(100_000)).expect("write");
    assert_equal_within(within(30), &data, late.data());
    assert_equal_within(within(30), &data, later.data());
    late.stop();
    later.stop();
    fs::write(data.join("before"), noise(200_000)).expect("write");
    assert_equal_within(within(30), &data, here.data());
    let outside = bed.path("big");
    fs::write(&outside, noise(64 << 20)).expect("write");
    fs::rename(&outside, data.join("big")).expect("rename");
    let stalls = |leader: &crate::support::Node| {
        let status = leader.status()?;
        let full = status.error_kind().as_deref() == Some("disk-full") && status.state() == "stalled";
        if full { Ok(()) } else { Err(status.0.to_string()) }
    };
    until(within(60), "the full disk is said", || stalls(&leader));
    // One that was away gets what it missed.
    late.restart();
    until(within(20), "what is durable arrives", || {
        let known = leader.status()?;
        let streams = known.followers().iter().any(|(name, state)| name == "late" && state == "streaming");
        let came = fs::read(late.data().join("before")).is_ok_and(|b| b == noise(200_000));
        if streams && came { Ok(()) } else { Err(format!("came: {came}; {}", known.0)) }
    });
    // One without data is told what it waits for.
    let fresh = bed.follower("fresh", leader.spec.listen).start();
    until(within(20), "a first copy has to wait", || {
        let status = fresh.status()?;
        let text = status.0.to_string();
        let said = text.contains("a first copy has to wait") && text.contains("No space left");
        if said && status.health() == "cut-off" { Ok(()) } else { Err(text) }
    });
    until(within(10), "it is still full", || stalls(&leader));
    // Nor does it take more than reading to begin.
    leader.kill();
    leader = leader.spec.start();
    until(within(20), "the full disk is said again", || stalls(&leader));
    later.restart();
    until(within(20), "what is durable arrives after a restart too", || {
        let came = fs::read(later.data().join("before")).is_ok_and(|b| b == noise(200_000));
        if came { Ok(()) } else { Err(later.status()?.0.to_string()) }
    });
    until(within(10), "it is still full", || stalls(&leader));
    disk.resize("200m");
    for node in [&here, &late, &later, &fresh] {
        assert_equal_within(within(60), &data, node.data());
    }
    for node in [&leader, &here, &late, &later, &fresh] {
        until(within(30), "nothing is wrong any more", || {
            let status = node.status()?;
            if status.health() == "ok" { Ok(()) } else { Err(status.0.to_string()) }
        });
        node.assert_no_panic();
    }
    leader.stop();
    drop(disk);
}
