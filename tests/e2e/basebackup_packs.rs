//! Base backups as packs: incremental ones, and those that go into an archive.

use std::collections::HashMap;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use towline::catalog::Catalog;
use towline::checkpoint;
use towline::log::FrameReader;
use towline::manifest::{Form, Manifest};
use towline::pack;
use towline::position::FileId;
use towline::record::{Record, Records};
use towline::wire::{Item, Items};

use super::full::noise;
use crate::support::backup::{Backup, checked, forgotten};
use crate::support::{Bed, Load, Node, Pair, Proxy, assert_equal, until, within};

type Contents = HashMap<FileId, Vec<u8>>;

fn catalog(dir: &Path) -> Catalog {
    checkpoint::decode(File::open(dir.join("catalog")).expect("open")).expect("a catalog")
}

/// The contents of a backup in form tree, by file.
fn of_tree(dir: &Path, manifest: &Manifest) -> Contents {
    let path = |p: &[u8]| dir.join("data").join(std::ffi::OsStr::from_bytes(p));
    manifest.files.iter().map(|f| (f.id, fs::read(path(&f.path)).expect("read"))).collect()
}

/// Puts the packs of a backup over contents, as a restore does.
fn apply(contents: &mut Contents, dir: &Path, manifest: &Manifest) {
    let catalog = catalog(dir);
    contents.retain(|id, _| catalog.get(*id).is_some());
    let sized = |contents: &mut Contents| {
        for inode in catalog.inodes().filter(|i| i.kind == towline::record::Kind::File) {
            contents.entry(inode.id).or_default().resize(usize::try_from(inode.size).expect("size"), 0);
        }
    };
    sized(contents);
    for part in manifest.parts.iter().filter(|p| p.name.starts_with("pack-")) {
        let mut reader = pack::Reader::of(File::open(dir.join(&part.name)).expect("open"), manifest.system)
            .expect("a pack");
        let mut unpacker = pack::Unpacker::default();
        while let Some(frame) = reader.next().expect("a frame") {
            for item in Items::new(unpacker.items(&frame).expect("items")) {
                let (id, offset, bytes) = match item.expect("an item") {
                    Item::Data { id, offset, bytes } => (id, offset, bytes.to_vec()),
                    Item::Hole { id, offset, len } => {
                        (id, offset, vec![0; usize::try_from(len).expect("len")])
                    }
                    Item::End { .. } => continue,
                };
                let (to, at) = (contents.entry(id).or_default(), usize::try_from(offset).expect("offset"));
                to.resize(to.len().max(at + bytes.len()), 0);
                to[at..at + bytes.len()].copy_from_slice(&bytes);
            }
        }
    }
    sized(contents);
}

/// Replays the log of a backup over contents, as a restore does.
fn replay(contents: &mut Contents, dir: &Path, manifest: &Manifest) {
    if manifest.log.is_empty() {
        return;
    }
    let (log, system) = (dir.join("log"), manifest.system);
    let mut reader = FrameReader::open(&log, system, manifest.timeline, manifest.start).expect("log");
    let size = |n: u64| usize::try_from(n).expect("size");
    while let Some(frame) = reader.next(manifest.end).expect("a frame") {
        for record in Records::new(&frame.raw) {
            match record.expect("a record").1 {
                Record::Write { id, offset, data } => {
                    let (to, at) = (contents.entry(id).or_default(), size(offset));
                    to.resize(to.len().max(at + data.len()), 0);
                    to[at..at + data.len()].copy_from_slice(data);
                }
                Record::Truncate { id, size: n } => contents.entry(id).or_default().resize(size(n), 0),
                Record::Punch { id, offset, len } => {
                    let to = contents.entry(id).or_default();
                    let end = size(offset + len).min(to.len());
                    to[size(offset)..end].fill(0);
                }
                _ => {}
            }
        }
    }
}

/// The contents of a backup in form tar that was unpacked, by file.
fn of_tar(dir: &Path, manifest: &Manifest) -> Contents {
    let path = |p: &[u8]| dir.join("base").join(std::ffi::OsStr::from_bytes(p));
    manifest.files.iter().map(|f| (f.id, fs::read(path(&f.path)).expect("read"))).collect()
}

/// Compares contents with a directory that stands still, by the names of the catalog.
fn assert_same(contents: &Contents, dir: &Path, data: &Path) {
    let catalog = catalog(dir);
    let mut count = 0;
    for inode in catalog.inodes().filter(|i| i.kind == towline::record::Kind::File) {
        let path = catalog.path(inode.id).expect("a path");
        let there = fs::read(data.join(std::ffi::OsStr::from_bytes(&path))).expect("read");
        assert!(contents[&inode.id] == there, "{}", path.escape_ascii());
        count += 1;
    }
    assert!(count > 3, "{count} files");
}

fn rest(node: &Node) {
    until(within(30), "the leader is at rest", || {
        let status = node.status()?;
        let left = status.0["capture"]["unhashed_files"].as_u64();
        if left == Some(0) && status.exact() == status.end() { Ok(()) } else { Err(status.0.to_string()) }
    });
}

/// A backup into `out`, standing on `base`.
fn incremental(port: u16, out: &Path, base: &Path, words: &[&str]) -> Manifest {
    let mut command = Backup::new(port, out).args(["--incremental"]).args([base]).args(words);
    let manifest = command.good();
    assert!(manifest.form == Form::Packs && manifest.base.is_some());
    manifest
}

#[test]
fn only_what_has_changed_travels_and_the_chain_gives_the_directory() {
    let bed = Bed::new("incremental");
    let spec = bed.leader("leader");
    let data = spec.data.clone();
    fs::write(data.join("large"), noise(96 << 20)).expect("write");
    for name in ["same", "gone", "shrinks", "grows", "renamed", "one"] {
        fs::write(data.join(name), [name.as_bytes(), &noise(60_000)].concat()).expect("write");
    }
    fs::write(data.join("tiny"), "tiny").expect("write");
    let leader = spec.start();
    rest(&leader);
    let outs: Vec<PathBuf> = (0..3).map(|i| bed.path(format!("b{i}"))).collect();
    let first = Backup::new(leader.spec.listen, &outs[0]).args(["--label", "first"]).good();
    // 60 of 6144 blocks, and what else may happen to a file.
    let large = File::options().write(true).open(data.join("large")).expect("open");
    for i in 0..60_u64 {
        large.write_all_at(&noise(16 << 10), i * 100 * (16 << 10) + 5).expect("write");
    }
    fs::remove_file(data.join("gone")).expect("rm");
    File::options().write(true).open(data.join("shrinks")).expect("open").set_len(20_001).expect("truncate");
    File::options().write(true).open(data.join("grows")).expect("open").set_len(300_000).expect("grow");
    fs::rename(data.join("renamed"), data.join("another name")).expect("rename");
    fs::write(data.join("tiny"), noise(40_000)).expect("write");
    fs::write(data.join("one"), "one").expect("write");
    fs::write(data.join("new"), noise(50_000)).expect("write");
    until(within(30), "the changes are in the log", || {
        let status = leader.status()?;
        if status.exact() != first.end.to_string() { Ok(()) } else { Err(status.exact()) }
    });
    leader.wait_confirmed(&["--timeout", "5s"]);
    rest(&leader);
    let proxy = Proxy::to(leader.spec.listen);
    let second = incremental(proxy.port(), &outs[1], &outs[0].join("manifest.json"), &["--label", "second"]);
    let (up, down) = proxy.bytes();
    // Unaligned writes of a block touch two.
    let changed = 60 * 2 * (16 << 10) + 4 * (16 << 10) + 64 * 1024 + 48 * 1024;
    println!("changed {changed} bytes, {down} received, {up} sent");
    assert!(up + down <= changed * 6 / 5, "{changed} bytes changed: {down} down, {up} up");
    let mut contents = of_tree(&outs[0], &first);
    apply(&mut contents, &outs[1], &second);
    assert_same(&contents, &outs[1], &data);
    let base = second.base.as_ref().expect("a base");
    assert_eq!((base.label.as_str(), base.end), ("first", first.end));
    // One more on that, with nothing changed: nothing travels.
    let third = incremental(leader.spec.listen, &outs[2], &outs[1], &["--label", "third"]);
    assert!(third.parts.iter().all(|p| !p.name.starts_with("pack-")), "{:?}", third.parts);
    apply(&mut contents, &outs[2], &third);
    assert_same(&contents, &outs[2], &data);
    assert_eq!(
        fs::read(outs[1].join("blocks")).expect("read"),
        fs::read(outs[2].join("blocks")).expect("read")
    );
    forgotten(&leader);
}

/// A backup that took everything before the change, and ends after it.
fn changed_meanwhile(
    bed: &Bed,
    leader: &Node,
    (form, name): (Form, &str),
    put: &dyn Fn(&[u8]),
    (old, new): (&[u8], &[u8]),
) -> (PathBuf, Manifest) {
    for tries in 0..6 {
        let base = bed.path(format!("{name}{tries}"));
        let url = format!("file://{}", base.display());
        fs::create_dir(&base).expect("mkdir");
        let out = if form == Form::Packs { url.as_str() } else { "-" };
        // Contents that have come are held back for a while, and the copy does not end before.
        let held = format!("backup::contents=sleep:{}@1", 500 << tries);
        let backup = Backup::new(leader.spec.listen, Path::new(out)).args(["--label", name]);
        let tar = File::create(bed.path("tar")).expect("create");
        let mut running = backup.env("TOWLINE_FAILPOINTS", &held).start_into(tar.into());
        until(within(30), "everything was read", || {
            let status = leader.status()?.0;
            if status["backups"][0]["files"] == 4 { Ok(()) } else { Err(status["backups"].to_string()) }
        });
        put(new);
        leader.wait_confirmed(&["--timeout", "5s"]);
        rest(leader);
        assert_eq!(running.wait().code(), Some(0));
        let dir = if form == Form::Packs { base.join("backup").join(name) } else { base };
        if form == Form::Tar {
            let mut tar = std::process::Command::new("tar");
            tar.arg("-xf").arg(bed.path("tar")).arg("-C").arg(&dir);
            assert!(tar.status().expect("tar").success());
        }
        let manifest = checked(&dir);
        if manifest.end > manifest.start {
            return (dir, manifest);
        }
        // The host was busy: the copy had ended before the change.
        put(old);
        leader.wait_confirmed(&["--timeout", "5s"]);
        rest(leader);
    }
    panic!("the change never came before the end");
}

/// A block is what it was at the start again, and something else in between: at the end of the base.
#[test]
fn a_block_that_was_changed_back_after_the_end_of_its_base_is_not_taken_for_unchanged() {
    let bed = Bed::new("incremental-back");
    let spec = bed.leader("leader");
    let data = spec.data.clone();
    let (old, new) = ([b'a'; 64 << 10], [b'b'; 64 << 10]);
    for name in ["many", "one", "more", "most"] {
        fs::write(data.join(name), old).expect("write");
    }
    let put = |bytes: &[u8]| {
        // As a database does: in its place, without a change of size.
        let write = |name: &str, from: usize, n: usize| {
            let file = File::options().write(true).open(data.join(name)).expect("open");
            file.write_all_at(&bytes[..n], from as u64).expect("write");
        };
        write("many", 16 << 10, 16 << 10);
        write("one", 0, 100);
    };
    File::options().write(true).open(data.join("one")).expect("open").set_len(100).expect("truncate");
    let leader = spec.start();
    rest(&leader);
    let from = leader.spec.listen;
    for (form, name) in [(Form::Packs, "packs"), (Form::Tar, "tar")] {
        let (base, manifest) = changed_meanwhile(&bed, &leader, (form, name), &put, (&old, &new));
        let mut contents = if form == Form::Tar { of_tar(&base, &manifest) } else { Contents::new() };
        apply(&mut contents, &base, &manifest);
        let stored = contents.clone();
        replay(&mut contents, &base, &manifest);
        assert!(stored.values().all(|b| !b.contains(&b'b')), "what is stored is of the start");
        assert_eq!(contents.values().filter(|b| b.contains(&b'b')).count(), 2, "the end is another");
        put(&old);
        leader.wait_confirmed(&["--timeout", "5s"]);
        rest(&leader);
        let out = bed.path(format!("{name}-next"));
        let next = incremental(from, &out, &base, &[]);
        apply(&mut contents, &out, &next);
        replay(&mut contents, &out, &next);
        assert_same(&contents, &out, &data);
        let made = bed.path(format!("{name}-made"));
        let mut restore = std::process::Command::new(crate::support::node::towline());
        restore.args(["restore", "--target", "exact", "--from"]).arg(&out).arg("--base").arg(&base);
        let ended = restore.arg("--out").arg(&made).output().expect("run towline restore");
        assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
        assert_equal(&data, &made);
    }
    forgotten(&leader);
}

#[test]
fn an_archive_takes_full_and_incremental_backups_while_the_application_writes() {
    let bed = Bed::new("backup-archive");
    let leader = bed.leader("leader").start();
    let work = Load::start(&leader.data().join("load"), 8, Duration::from_millis(2));
    until(within(30), "some work", || if work.ops() > 400 { Ok(()) } else { Err("too little".into()) });
    let (archive, url) = (bed.path("archive"), format!("file://{}", bed.path("archive").display()));
    fs::create_dir(&archive).expect("mkdir");
    let into = |words: &[&str]| Backup::new(leader.spec.listen, Path::new(&url)).args(words).run();
    let set = |label: &str| archive.join("backup").join(label);
    assert_eq!(into(&["--label", "full"]).status.code(), Some(0));
    let full = checked(&set("full"));
    assert!(full.form == Form::Packs && full.base.is_none() && full.exact);
    // The base is folded over its own log: only then are its hashes what it is at its end.
    let base = set("full");
    assert_eq!(
        into(&["--label", "more", "--incremental", base.to_str().expect("path")]).status.code(),
        Some(0)
    );
    let more = checked(&set("more"));
    assert!(more.end >= full.end && more.exact);
    work.finish();
    leader.wait_confirmed(&["--timeout", "5s"]);
    rest(&leader);
    // At rest the chain without any log is the directory: start and end of the last are one.
    let base = set("more");
    assert_eq!(
        into(&["--label", "last", "--incremental", base.to_str().expect("path")]).status.code(),
        Some(0)
    );
    let last = checked(&set("last"));
    assert_eq!(last.start, last.end);
    // What is there is never written over.
    let said = String::from_utf8_lossy(&into(&["--label", "last"]).stderr).into_owned();
    assert!(said.contains("a backup 'last' in the archive"), "{said}");
    let others = bed.leader("others").start();
    let said = Backup::new(others.spec.listen, Path::new(&url)).fails(1);
    assert!(said.contains("system"), "{said}");
    assert_eq!(fs::read_dir(archive.join("backup")).expect("list").count(), 3);
    forgotten(&leader);
}

/// As if it had been made so many days earlier.
fn age(dir: &Path, days: u64) {
    for entry in walkdir::WalkDir::new(dir).into_iter().flatten().filter(|e| e.file_type().is_file()) {
        let then = std::time::SystemTime::now() - Duration::from_secs(days * 86_400);
        File::options().write(true).open(entry.path()).expect("open").set_modified(then).expect("utimes");
    }
}

/// What there is of backups and of notes in an archive.
fn in_archive(dir: &Path) -> (Vec<String>, usize) {
    let list = |name: &str| fs::read_dir(dir.join(name)).into_iter().flatten().flatten();
    let mut labels: Vec<String> =
        list("backup").map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    labels.sort();
    (labels, list("making").count())
}

/// A backup into an archive, standing on one there unless `base` is empty.
fn into(node: &Node, url: &str, label: &str, base: &str) -> Backup {
    let new = Backup::new(node.spec.listen, Path::new(url)).args(["--label", label]);
    if base.is_empty() { new } else { new.args(["--incremental", &format!("{url}#{base}")]) }
}

fn archive_in(bed: &Bed) -> (PathBuf, String) {
    let archive = bed.path("archive");
    fs::create_dir(&archive).expect("mkdir");
    (archive.clone(), format!("file://{}", archive.display()))
}

#[test]
fn a_base_in_an_archive_is_stood_on_by_a_leader_and_by_a_follower() {
    let pair = Pair::start("incremental-archive");
    for i in 0..5 {
        fs::write(pair.data().join(format!("f{i}")), noise(50_000)).expect("write");
    }
    pair.equal(30);
    rest(&pair.leader);
    let (archive, url) = archive_in(&pair.bed);
    let set = |label: &str| archive.join("backup").join(label);
    assert_eq!(into(&pair.leader, &url, "full", "").run().status.code(), Some(0));
    let mut contents = Contents::new();
    apply(&mut contents, &set("full"), &checked(&set("full")));
    for (node, label, base) in [(&pair.leader, "one", "full"), (&pair.follower, "two", "one")] {
        fs::write(pair.data().join("f1"), noise(40_000)).expect("write");
        pair.equal(30);
        rest(&pair.leader);
        let run = into(node, &url, label, base).run();
        assert_eq!(run.status.code(), Some(0), "{}", String::from_utf8_lossy(&run.stderr));
        let manifest = checked(&set(label));
        assert_eq!(manifest.base.as_ref().map(|b| b.label.as_str()), Some(base));
        let held: u64 = manifest.parts.iter().filter(|p| p.name.starts_with("pack-")).map(|p| p.size).sum();
        assert!(held < 60_000, "{held} bytes of packs");
        apply(&mut contents, &set(label), &manifest);
        replay(&mut contents, &set(label), &manifest);
    }
    assert_same(&contents, &set("two"), pair.data());
    for (base, code, word) in
        [("#none", 1, "the archive has no"), ("", 64, "#LABEL"), ("#a b", 64, "is no label")]
    {
        let mut new = Backup::new(pair.leader.spec.listen, &pair.bed.path("x"));
        new = new.args(["--incremental", &format!("{url}{base}")]);
        let said = new.fails(code);
        assert!(said.contains(word), "{base}: {said}");
    }
}

#[test]
fn what_was_broken_off_is_pruned_but_nothing_that_one_under_way_needs() {
    let bed = Bed::new("backup-pruned");
    let leader = bed.leader("leader").start();
    let (archive, url) = archive_in(&bed);
    let set = |label: &str| archive.join("backup").join(label);
    let holds = |labels: &[&str], notes: usize| {
        assert_eq!(in_archive(&archive), (labels.iter().map(|l| (*l).to_owned()).collect(), notes));
    };
    let change = |name: &str| {
        fs::write(leader.data().join(name), noise(40_000)).expect("write");
        leader.wait_confirmed(&["--timeout", "5s"]);
        rest(&leader);
    };
    let fault = |label: &str, base: &str, fault: &str| {
        into(&leader, &url, label, base).env("TOWLINE_FAILPOINTS", fault).run().status.code()
    };
    let prune = || {
        let words = ["prune", "--archive", &url, "--keep-full", "1", "--yes"];
        let out = crate::support::archive::archive(&words);
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    };
    change("f0");
    assert_eq!(into(&leader, &url, "full", "").run().status.code(), Some(0));
    // The store takes the note, and no manifest: nothing stays of it.
    assert_eq!(fault("bad", "full", "archive::aside=enospc@2"), Some(1));
    holds(&["full"], 0);
    // One that is being made holds what it stands on, though a newer full one is there.
    change("f1");
    assert_eq!(fault("bad", "full", "backup::pack=kill"), None);
    assert_eq!(into(&leader, &url, "newer", "").run().status.code(), Some(0));
    prune();
    holds(&["bad", "full", "newer"], 1);
    let said = into(&leader, &url, "bad", "").fails(1);
    assert!(said.contains("two days"), "{said}");
    age(&set("bad"), 3);
    age(&archive.join("making"), 3);
    prune();
    holds(&["newer"], 0);
    // A part that is taken away while it is made is missed before it is too late, and so is a base.
    change("f2");
    for (label, base, goes) in
        [("torn", "", set("torn").join("pack-00001")), ("late", "newer", set("newer").join("manifest.json"))]
    {
        let mut backup =
            into(&leader, &url, label, base).env("TOWLINE_FAILPOINTS", "backup::parts=sleep:1000@1");
        let mut running = backup.start();
        until(within(30), "it is being made", || match in_archive(&archive) {
            (_, 1) if set(label).join("blocks").exists() => Ok(()),
            other => Err(format!("{other:?}")),
        });
        fs::remove_file(goes).expect("rm");
        assert_eq!(running.wait().code(), Some(1), "{label}");
        holds(&["newer"], 0);
    }
    forgotten(&leader);
}

#[test]
fn a_base_that_can_not_be_stood_on_is_refused_with_the_reason() {
    let pair = Pair::start("incremental-refused");
    for i in 0..5 {
        fs::write(pair.data().join(format!("f{i}")), noise(40_000)).expect("write");
    }
    pair.equal(30);
    let (base, out) = (pair.bed.path("base"), pair.bed.path("out"));
    // The follower rests, and the base is newer.
    pair.follower.pause();
    fs::write(pair.data().join("newer"), "x").expect("write");
    pair.leader.wait_confirmed(&["--timeout", "1s"]);
    Backup::new(pair.leader.spec.listen, &base).args(["--label", "base"]).good();
    let refused = |port: u16, words: &[&str]| {
        let said = Backup::new(port, &out).args(["--incremental"]).args([&base]).fails(1);
        assert!(words.iter().all(|w| said.contains(w)), "{words:?}: {said}");
        assert!(!out.exists());
    };
    refused(pair.follower.spec.listen, &["can't stand on 'base'", "has caught up"]);
    pair.follower.resume();
    let other = pair.bed.leader("other").start();
    refused(other.spec.listen, &["can't stand on 'base'", "of system"]);
    for name in ["blocks", "catalog", "manifest.json"] {
        let path = base.join(name);
        let good = fs::read(&path).expect("read");
        let mut bad = good.clone();
        let at = bad.len() / 2;
        bad[at] ^= 1;
        fs::write(&path, bad).expect("write");
        refused(pair.leader.spec.listen, &["can't be stood on", "manifest"]);
        fs::write(&path, good).expect("write");
    }
    fs::remove_file(base.join("blocks")).expect("rm");
    refused(pair.leader.spec.listen, &["can't be stood on", "blocks"]);
}
