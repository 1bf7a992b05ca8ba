//! Nodes that run without privilege: what they can't set is kept in the catalog, skipped on disk, said once
//! and shown, and everything else is replicated as ever.

use std::fs::{self, Permissions};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;
use std::process::Command;

use nix::sys::stat::{Mode, SFlag, makedev, mknod};

use crate::support::bed::{is_root, program_in};
use crate::support::{Bed, Node, Spec, until, within};

/// The user and group that own nothing.
const NOBODY: u32 = 65_534;

/// Starts the node as nobody, from a copy of the program that nobody can reach.
fn unprivileged(bed: &Bed, spec: Spec) -> Spec {
    let program = program_in(bed);
    let home = spec.state.parent().expect("parent").to_owned();
    for dir in [&home, &spec.data] {
        chown(dir, Some(NOBODY), Some(NOBODY)).expect("chown");
    }
    let mut spec = spec;
    let words = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"];
    spec.prefix = words.map(str::to_owned).to_vec();
    let script = format!("shift; exec '{}' \"$@\"", program.display());
    spec.prefix.extend(["sh".to_owned(), "-c".into(), script, "sh".into()]);
    spec
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).expect("chmod");
}

fn device(path: &Path) {
    mknod(path, SFlag::S_IFCHR, Mode::from_bits_truncate(0o600), makedev(1, 3)).expect("mknod");
}

/// Objects that nobody can't have as they are. `n` keeps two sets apart.
fn make(dir: &Path, n: u32) {
    let path = |name: &str| dir.join(format!("{name}{n}"));
    let file = |name: &str, owner: u32, mode: u32| {
        fs::write(path(name), format!("{name}{n}")).expect("write");
        chown(path(name), Some(owner), Some(owner)).expect("chown");
        set_mode(&path(name), mode);
    };
    file("secret", 0, 0o600);
    file("setuid", 1000, 0o6755);
    file("closed", 33, 0o000);
    file("readonly", 34, 0o444);
    file("plain", NOBODY, 0o640);
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(path("readonly"), "user.a", b"1", flags).expect("setxattr");
    rustix::fs::setxattr(path("plain"), "trusted.a", b"1", flags).expect("setxattr");
    fs::hard_link(path("closed"), path("closed-too")).expect("link");
    device(&path("device"));
    fs::hard_link(path("device"), path("device-too")).expect("link");
    symlink("nowhere", path("link")).expect("symlink");
    std::os::unix::fs::lchown(path("link"), Some(44), Some(44)).expect("lchown");
    let dir = path("shut");
    fs::create_dir(&dir).expect("mkdir");
    fs::write(dir.join("in"), "in").expect("write");
    chown(&dir, Some(45), Some(45)).expect("chown");
    set_mode(&dir, 0o500);
    let dir = path("tmp");
    fs::create_dir(&dir).expect("mkdir");
    set_mode(&dir, 0o3777);
}

/// Everything of the leader's tree is here: names, kinds, contents, modes but for what needs privilege, times.
fn same(leader: &Path, follower: &Path) -> Result<(), String> {
    let mut wanted = Vec::new();
    for entry in walkdir::WalkDir::new(leader).min_depth(1) {
        let entry = entry.map_err(|e| e.to_string())?;
        let rel = entry.path().strip_prefix(leader).map_err(|e| e.to_string())?.to_owned();
        let here = follower.join(&rel);
        let want = entry.path().symlink_metadata().map_err(|e| e.to_string())?;
        if want.file_type().is_char_device() {
            if here.symlink_metadata().is_ok() {
                return Err(format!("{} was made", rel.display()));
            }
            continue;
        }
        let have = here.symlink_metadata().map_err(|e| format!("{}: {e}", rel.display()))?;
        let time = |m: &fs::Metadata| (m.mtime(), m.mtime_nsec());
        if have.uid() != NOBODY || time(&have) != time(&want) || have.nlink() != want.nlink() {
            return Err(format!("{}: owner, time or links", rel.display()));
        }
        let mut mode = want.mode();
        if want.is_dir() {
            mode |= 0o700;
        } else if want.is_file() {
            mode = mode & !if want.uid() == NOBODY { 0 } else { 0o6000 } | 0o400;
        }
        if mode != have.mode() {
            return Err(format!("{}: mode {:o} instead of {mode:o}", rel.display(), have.mode()));
        }
        if want.is_file() && fs::read(entry.path()).ok() != fs::read(&here).ok() {
            return Err(format!("{}: content", rel.display()));
        }
        wanted.push(rel);
    }
    let all = walkdir::WalkDir::new(follower).min_depth(1).into_iter().flatten();
    let more = all.filter(|e| !e.path().starts_with(follower.join(".towline-stage"))).count();
    if more == wanted.len() { Ok(()) } else { Err(format!("{more} entries instead of {}", wanted.len())) }
}

fn settled(leader: &Node, follower: &Node, what: &str) {
    until(within(30), what, || {
        let (l, f) = (leader.status()?, follower.status()?);
        if let Some(kind) = f.error_kind() {
            return Err(format!("{kind}: {}", f.0));
        }
        if l.exact() != f.applied() {
            return Err(format!("{} against {}", l.exact(), f.applied()));
        }
        same(leader.data(), follower.data())
    });
}

fn skipped(node: &Node, class: &str) -> u64 {
    let status = node.status().expect("status");
    status
        .0
        .pointer(&format!("/apply/skipped_privilege/{class}"))
        .and_then(|v| v.as_u64())
        .unwrap_or_default()
}

#[test]
fn a_follower_without_privilege_keeps_what_it_cannot_set_in_its_catalog() {
    if !is_root() {
        println!("skipped: needs root to make files of other owners and to give privilege up");
        return;
    }
    let bed = Bed::new("privilege-follower");
    let spec = bed.leader("leader");
    make(&spec.data, 1);
    let leader = spec.start();
    let spec = bed.follower("follower", leader.spec.listen).set("checkpoint_interval", "\"300ms\"");
    let mut follower = unprivileged(&bed, spec).start();
    settled(&leader, &follower, "the first copy");
    for class in ["owner", "device", "mode", "xattr"] {
        assert!(skipped(&follower, class) > 0, "{class}: {}", follower.status().expect("status").0);
    }

    let data = leader.data().to_owned();
    let change = |n: u32| {
        make(&data, n);
        let path = |name: &str| data.join(format!("{name}{n}"));
        // The way back to a name, an owner, a mode; contents of what may not be written, or entered.
        fs::rename(path("device"), path("renamed")).expect("rename");
        fs::rename(path("plain"), path("shut").join("moved")).expect("rename");
        fs::write(path("closed"), "other content").expect("write");
        fs::write(path("readonly"), vec![7; 100_000]).expect("write");
        rustix::fs::setxattr(path("readonly"), "user.a", b"2", rustix::fs::XattrFlags::empty())
            .expect("setxattr");
        fs::remove_file(path("shut").join("in")).expect("remove");
        chown(path("secret"), Some(77), Some(78)).expect("chown");
        set_mode(&path("secret"), 0o4711);
        chown(path("shut"), Some(1), Some(1)).expect("chown");
        set_mode(&path("shut"), 0o000);
    };
    change(2);
    settled(&leader, &follower, "changes of what is skipped");
    follower.stop();
    change(3);
    follower.restart();
    settled(&leader, &follower, "a restart");
    assert!(skipped(&follower, "owner") > 10, "counted again at the start");
    follower.kill();
    change(4);
    follower.restart();
    settled(&leader, &follower, "a restart after a kill");
    let log = follower.log();
    let starts = log.matches("--- start:").count();
    let said = log.matches("an owner cannot be set without privilege").count();
    assert!(said >= 1 && said <= starts, "said {said} times in {starts} starts");

    let status = Command::new("rm").arg("-rf").args((1..=4).map(|n| data.join(format!("shut{n}")))).status();
    assert!(status.expect("rm").success());
    fs::remove_file(data.join("renamed2")).expect("remove");
    fs::remove_file(data.join("device-too2")).expect("remove");
    settled(&leader, &follower, "removals");
    follower.stop();
    follower.assert_no_panic();
}

#[test]
fn a_leader_without_privilege_says_what_it_cannot_read() {
    if !is_root() {
        println!("skipped: needs root to make files of other owners and to give privilege up");
        return;
    }
    let bed = Bed::new("privilege-leader");
    let spec = unprivileged(&bed, bed.leader("leader").set("rescan_interval", "\"2s\""));
    fs::write(spec.data.join("before"), "before").expect("write");
    set_mode(&spec.data.join("before"), 0o600);
    let leader = spec.start();
    let follower = bed.follower("follower", leader.spec.listen);
    let mut follower = unprivileged(&bed, follower).start();
    let names = |dir: &Path| fs::read_dir(dir).expect("list").flatten().count();
    let said = |what: &str| {
        until(within(30), what, || {
            let status = leader.status()?;
            match status.0.pointer("/capture/unreadable").and_then(|v| v.as_str()) {
                Some(text) if text.contains(what) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
    };
    said("before");
    fs::write(leader.data().join("open"), "open").expect("write");
    fs::write(leader.data().join("later"), "later").expect("write");
    set_mode(&leader.data().join("later"), 0o600);
    said("and 1 more");
    let read = |name: &str, want: &str| {
        until(within(30), name, || match fs::read_to_string(follower.data().join(name)) {
            Ok(text) if text == want => Ok(()),
            other => Err(format!("{other:?}")),
        });
    };
    read("open", "open");
    for name in ["before", "later"] {
        set_mode(&leader.data().join(name), 0o644);
        read(name, name);
    }
    assert!(names(follower.data()) >= 3);
    until(within(20), "nothing is wrong any more", || {
        let status = leader.status()?;
        match status.0.pointer("/capture/unreadable") {
            None | Some(serde_json::Value::Null) if status.error_kind().is_none() => Ok(()),
            _ => Err(status.0.to_string()),
        }
    });
    follower.stop();
    follower.assert_no_panic();
}
