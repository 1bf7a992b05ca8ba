//! Base backups as one tar stream, read by tar(1) and by Python's tarfile.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;
use towline::manifest::Form;

use super::full::noise;
use super::restore::names;
use crate::support::backup::{Backup, checked, forgotten};
use crate::support::bed::is_root;
use crate::support::tree::python;
use crate::support::{Bed, Load, Node, assert_equal, until, within};

/// Something of everything that a tar stream may hold.
fn furnish(data: &Path) {
    let name = |bytes: &[u8]| data.join(OsStr::from_bytes(bytes));
    fs::write(name(b"not \xff UTF-8"), "x").expect("write");
    let long = data.join("d".repeat(120)).join("e".repeat(255));
    fs::create_dir_all(&long).expect("mkdir");
    let bad = long.join(OsStr::from_bytes(&[0xe9; 200]));
    fs::write(&bad, noise(70_000)).expect("write");
    fs::hard_link(&bad, name(b"a link that comes first")).expect("link");
    symlink("s".repeat(300), data.join("long symlink")).expect("symlink");
    symlink("f", data.join("symlink")).expect("symlink");
    fs::write(data.join("empty"), "").expect("write");
    fs::write(data.join("exactly"), noise(16 << 10)).expect("write");
    fs::write(data.join("big"), noise(9 << 20)).expect("write");
    (0..700).for_each(|i| fs::write(data.join(format!("n{i}")), i.to_string()).expect("write"));
    let file = data.join("attributes");
    fs::write(&file, "a").expect("write");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o4711)).expect("chmod");
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(&file, "user.k", b"v\0\n=", flags).expect("setxattr");
    let acl = [
        &2_u32.to_le_bytes()[..],
        &[1, 0, 7, 0, 255, 255, 255, 255, 2, 0, 5, 0, 232, 3, 0, 0],
        &[4, 0, 4, 0, 255, 255, 255, 255, 16, 0, 5, 0, 255, 255, 255, 255, 32, 0, 1, 0, 255, 255, 255, 255],
    ]
    .concat();
    rustix::fs::setxattr(&file, "system.posix_acl_access", &acl, flags).expect("setxattr");
    File::options()
        .write(true)
        .open(&file)
        .expect("open")
        .set_modified(std::time::UNIX_EPOCH)
        .expect("mtime");
    nix::unistd::mkfifo(&data.join("fifo"), nix::sys::stat::Mode::from_bits_truncate(0o600)).expect("mkfifo");
    if is_root() {
        use nix::sys::stat::{Mode, SFlag, makedev, mknod};
        mknod(&data.join("null"), SFlag::S_IFCHR, Mode::from_bits_truncate(0o600), makedev(1, 3))
            .expect("mknod");
        nix::unistd::chown(&file, Some(12345.into()), Some(3_000_000.into())).expect("chown");
    }
}

fn tar(words: &[&str], input: &Path, dir: &Path) -> String {
    let mut tar = Command::new("tar");
    tar.args(words).arg("-C").arg(dir).stdin(File::open(input).expect("open"));
    let out = tar.env("LC_ALL", "C").output().expect("run tar");
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success() && said.is_empty(), "tar {words:?}: {said}");
    String::from_utf8_lossy(&out.stdout).into_owned()
}

/// Runs a backup into a file.
fn stream(node: &Node, to: &Path, words: &[&str]) -> String {
    let file = File::create(to).expect("create");
    let mut command = Backup::new(node.spec.listen, Path::new("-")).args(words);
    let out = command.run_into(file.into());
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(0), "{said}");
    said
}

fn at_rest(node: &Node) {
    until(within(30), "the leader is at rest", || {
        let left = node.status()?.0["capture"]["unhashed_files"].as_u64();
        if left == Some(0) { Ok(()) } else { Err(format!("{left:?} unhashed")) }
    });
}

#[test]
fn a_stream_is_listed_and_unpacked_by_tar_and_holds_the_directory() {
    let bed = Bed::new("tar");
    let spec = bed.leader("leader");
    furnish(&spec.data);
    let leader = spec.start();
    at_rest(&leader);
    let file = bed.path("b.tar");
    let said = stream(&leader, &file, &["--label", "one", "--progress"]);
    assert!(said.contains("total (estimated): ") && said.contains("backup one: "), "{said}");
    forgotten(&leader);
    let listed = tar(&["-t"], &file, &bed.path("."));
    let lines: Vec<&str> = listed.lines().collect();
    assert_eq!((lines[0], *lines.last().expect("a line")), ("base/", "manifest.json"));
    let position = |name: &str| lines.iter().position(|l| *l == name).expect(name);
    assert!(position("base/fifo") < position("catalog") && position("catalog") < position("blocks"));
    let out = bed.path("out");
    fs::create_dir(&out).expect("mkdir");
    let attributes = [
        "-x",
        "-p",
        "--numeric-owner",
        "--acls",
        "--xattrs",
        "--xattrs-include=*",
        "--delay-directory-restore",
    ];
    tar(&attributes, &file, &out);
    let manifest = checked(&out);
    assert!(manifest.form == Form::Tar && manifest.exact && manifest.label == "one");
    // The root is the only one whose attributes are not in the stream, but in the catalog.
    for dir in [leader.data(), &out.join("base")] {
        File::open(dir).expect("open").set_modified(std::time::UNIX_EPOCH).expect("mtime");
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).expect("chmod");
    }
    assert_equal(leader.data(), &out.join("base"));
    // Another reader agrees about the names that are hard to write down.
    let script =
        "import sys, tarfile; print(len(tarfile.open(sys.argv[1], errors='surrogateescape').getmembers()))";
    let count = Command::new(python()).args(["-c", script]).arg(&file).output().expect("python3");
    assert_eq!(String::from_utf8_lossy(&count.stdout).trim(), lines.len().to_string());
}

#[test]
fn a_compressed_stream_under_load_is_whole_and_carries_its_log() {
    let bed = Bed::new("tar-load");
    let leader = bed.leader("leader").start();
    let work = Load::start(&leader.data().join("load"), 4, std::time::Duration::from_millis(1));
    fs::write(leader.data().join("holes"), "begin").expect("write");
    File::options()
        .write(true)
        .open(leader.data().join("holes"))
        .expect("open")
        .set_len(5 << 20)
        .expect("grow");
    until(within(30), "some work", || if work.ops() > 500 { Ok(()) } else { Err("too little".into()) });
    let file = bed.path("b.tar.zst");
    stream(&leader, &file, &["--compress", "zstd:1"]);
    work.finish();
    let out = bed.path("out");
    fs::create_dir(&out).expect("mkdir");
    tar(&["-x", "--zstd"], &file, &out);
    let manifest = checked(&out);
    assert!(manifest.exact && manifest.end >= manifest.start);
    let segments: Vec<_> = manifest.parts.iter().filter(|p| p.name.starts_with("log/")).collect();
    assert_eq!(segments.is_empty(), manifest.start == manifest.end);
    for segment in segments {
        let verify = crate::support::node::log_verify(&out.join(&segment.name));
        assert!(verify.status.success(), "{}", String::from_utf8_lossy(&verify.stderr));
    }
    let holes = fs::read(out.join("base/holes")).expect("read");
    assert!(holes.starts_with(b"begin\0") && holes.len() == 5 << 20);
}

#[test]
fn what_a_stream_can_not_be_is_refused_before_anything_moves() {
    let bed = Bed::new("tar-refused");
    let leader = bed.leader("leader").start();
    for (out, words, word) in [
        ("-", &["--compress", "gzip"][..], "'gzip' is no compression; write none, zstd, or zstd:LEVEL"),
        ("-", &["--compress", "zstd:99"], "'zstd:99' is no compression"),
        ("-", &["--resume"], "can't be gone on with"),
        ("-", &["--keep-partial"], "can't be gone on with"),
        ("new", &["--compress", "zstd"], "for a stream"),
    ] {
        let said = Backup::new(leader.spec.listen, Path::new(out)).args(words).fails(64);
        assert!(said.contains(word), "{words:?}: {said}");
    }
    let status = leader.status().expect("status");
    assert!(!Path::new("new").exists() && status.0["backups"].as_array().is_some_and(Vec::is_empty));
}

#[test]
fn a_stream_that_ends_early_has_no_manifest_and_leaves_nothing_behind() {
    let bed = Bed::new("tar-broken");
    let spec = bed.leader("leader");
    fs::write(spec.data.join("big"), noise(6 << 20)).expect("write");
    let leader = spec.start();
    let scratch = bed.path("scratch");
    fs::create_dir(&scratch).expect("mkdir");
    let slow = || {
        Backup::new(leader.spec.listen, Path::new("-"))
            .args(["--max-rate", "512k", "--scratch"])
            .args([&scratch])
    };
    let copying = || {
        until(within(30), "contents move", || {
            let bytes = leader.status()?.0["backups"][0]["bytes"].as_u64().unwrap_or(0);
            if bytes > 0 { Ok(()) } else { Err("not yet".to_owned()) }
        });
    };
    // Whoever reads it goes away.
    let mut command = slow();
    let mut running = command.start();
    copying();
    running.close_stdout();
    assert_eq!(running.wait().code(), Some(1));
    forgotten(&leader);
    // It is told to stop.
    let file = bed.path("part.tar");
    let mut command = slow();
    let mut running = command.start_into(Stdio::from(File::create(&file).expect("create")));
    copying();
    running.signal(Signal::SIGTERM);
    assert_eq!(running.wait().code(), Some(1));
    forgotten(&leader);
    let listed = Command::new("tar").arg("-tf").arg(&file).output().expect("tar");
    assert!(!String::from_utf8_lossy(&listed.stdout).contains("manifest.json"));
    let left = || fs::read_dir(&scratch).expect("list").count();
    assert_eq!(left(), 0, "nothing is left of its work");
    // Killed it leaves that; the next one removes it, but not that of one under way.
    let into = |name: &str| Stdio::from(File::create(bed.path(name)).expect("create"));
    let mut command = slow();
    let mut killed = command.start_into(into("killed.tar"));
    copying();
    killed.signal(Signal::SIGKILL);
    killed.wait();
    forgotten(&leader);
    let dead = names(&scratch);
    assert_eq!(dead.len(), 1);
    let mut command = slow();
    let mut running = command.start_into(into("slow.tar"));
    copying();
    let live = names(&scratch);
    assert!(live.len() == 1 && live != dead, "{live:?} after {dead:?}");
    let mut quick = Backup::new(leader.spec.listen, Path::new("-")).args([Path::new("--scratch"), &scratch]);
    let out = quick.run_into(into("quick.tar"));
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    assert_eq!(names(&scratch), live);
    running.signal(Signal::SIGTERM);
    assert_eq!((running.wait().code(), left()), (Some(1), 0));
}
