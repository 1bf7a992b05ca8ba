//! Restores that find their backup in an archive, gather an incremental one out of its chain, or come out of a tar.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;

use super::clones::Disk;
use super::full::noise;
use super::restore::{Entry, Restore, names, note, settle};
use crate::support::archive::{archived_all, archiving};
use crate::support::backup::{Backup, checked};
use crate::support::load::{self, Load};
use crate::support::node::towline;
use crate::support::{Bed, Node, assert_equal};

/// An archive with a full backup and two incremental ones, each taken while the application writes, and states after each.
/// The node ends before the directory goes.
pub(super) struct Chain {
    pub(super) leader: Node,
    pub(super) bed: Bed,
    pub(super) url: PathBuf,
    before: Entry,
    pub(super) after: Vec<Entry>,
}

impl Chain {
    pub(super) fn new(name: &str) -> Self {
        let bed = Bed::new(name);
        let archive = bed.path("archive");
        let leader = archiving(bed.leader("leader"), &archive).set("max_delete", "100").start();
        let url = PathBuf::from(format!("file://{}", archive.display()));
        let large = leader.data().join("large");
        for name in ["shrinks", "grows", "same"] {
            fs::write(leader.data().join(name), noise(100_000)).expect("write");
        }
        fs::write(&large, noise(3 << 20)).expect("write");
        load::burst(&leader.data().join("app"), 1, 60);
        let before = note(&bed, &leader, "before");
        let mut after = Vec::new();
        for (i, label) in ["full", "mon", "tue"].into_iter().enumerate() {
            let n = i as u64;
            load::burst(&leader.data().join("app"), 2 + n, 60);
            let file = File::options().write(true).open(&large).expect("open");
            file.write_all_at(&noise(20_000), 500_000 * (n + 1)).expect("write");
            // What is cut off, and comes back as zeros, is in the oldest member still.
            let size = |name: &str, size| {
                File::options().write(true).open(leader.data().join(name)).expect("open").set_len(size)
            };
            size("shrinks", [90_000, 20_001, 80_000][i]).expect("truncate");
            size("grows", 100_000 * (n + 2)).expect("truncate");
            settle(&leader);
            let work = Load::start(&leader.data().join(format!("load-{label}")), 4, Duration::from_millis(2));
            let base = i.checked_sub(1).map(|i| archive.join("backup").join(["full", "mon"][i]));
            let words = ["--label", label].into_iter().map(PathBuf::from);
            let words = words.chain(base.into_iter().flat_map(|b| [PathBuf::from("--incremental"), b]));
            let out = Backup::new(leader.spec.listen, &url).args(words).run();
            assert_eq!(out.status.code(), Some(0), "{}", String::from_utf8_lossy(&out.stderr));
            work.finish();
            after.push(note(&bed, &leader, &format!("after-{label}")));
        }
        load::burst(&leader.data().join("app"), 9, 60);
        settle(&leader);
        // Sealed a moment later, all that was noted is in the archive.
        std::thread::sleep(Duration::from_millis(150));
        settle(&leader);
        archived_all(&leader);
        Self { leader, bed, url, before, after }
    }

    pub(super) fn set(&self, label: &str) -> PathBuf {
        self.bed.path("archive").join("backup").join(label)
    }

    fn restore(&self, target: &str, out: &Path) -> Restore {
        Restore::new(&self.url, target, out).log(&self.leader.spec.state)
    }

    fn plan(&self, target: &str, words: &[&str]) -> Value {
        let out = self.bed.path("never");
        let plan = self.restore(target, &out).args(&["--dry-run", "--json"]).args(words).good();
        serde_json::from_str(&plan).expect("JSON")
    }
}

#[test]
fn an_archive_gives_every_target_from_the_newest_backup_before_it() {
    let chain = Chain::new("restore-chain");
    let [full, mon, tue] = &chain.after[..] else { panic!("three") };
    let out = |name: &str| chain.bed.path(name);
    for (target, label, below, copy) in [
        (&full.name, "full", &[][..], full.copy.as_path()),
        (&mon.time, "mon", &["full"], &mon.copy),
        (&"latest".to_owned(), "tue", &["mon", "full"], chain.leader.data()),
    ] {
        let plan = chain.restore(target, &out(label)).args(&["--json"]).good();
        let plan: Value = serde_json::from_str(&plan).expect("JSON");
        let said: Vec<&str> =
            plan["chain"].as_array().expect("chain").iter().filter_map(Value::as_str).collect();
        assert_eq!((plan["label"].as_str(), &said[..]), (Some(label), below), "{target}: {plan}");
        assert_equal(copy, &out(label));
    }
    // What is there is made equal, out of a chain too.
    chain.restore(&tue.lsn, &out("full")).args(&["--delta"]).good();
    assert_equal(&tue.copy, &out("full"));
    let e = chain.restore(&chain.before.lsn, &out("out")).fails(1);
    assert!(e.contains("no backup in the archive") && e.contains("'full' ended at"), "{e}");
    let e = chain.restore("latest", &out("out")).args(&["--backup", "wed"]).fails(1);
    assert!(e.contains("no backup 'wed'") && e.contains("'tue' ended at"), "{e}");
    assert_eq!(chain.plan("latest", &["--backup", "mon"])["label"], "mon");
    let left = names(&out(""));
    assert!(left.iter().all(|n| !n.contains("restoring") && n != "out" && n != "never"), "{left:?}");
}

#[test]
fn a_broken_chain_is_refused_by_the_name_of_its_link() {
    let chain = Chain::new("restore-broken");
    let (tue, out) = (&chain.after[2], chain.bed.path("out"));
    let (state, sets) = (&chain.leader.spec.state, ["full", "mon", "tue"].map(|l| chain.set(l)));
    let base = |i: usize| sets[i].to_str().expect("UTF-8");
    let plain = |bases: &[&str]| {
        let words: Vec<&str> = bases.iter().flat_map(|b| ["--base", b]).collect();
        Restore::new(&sets[2], &tue.name, &out).log(state).args(&words)
    };
    // Members named one by one: in any order, and none may be missing.
    let e = plain(&[base(1)]).fails(1);
    assert!(e.contains("'full', on which 'mon' stands, is missing") && e.contains("--base"), "{e}");
    assert!(plain(&[base(0)]).fails(1).contains("'mon', on which 'tue' stands, is missing"));
    plain(&[base(0), base(1)]).good();
    assert_equal(&tue.copy, &out);
    fs::remove_dir_all(&out).expect("rm");
    // A pack of the oldest is damaged.
    let pack = sets[0].join("pack-00001");
    let whole = fs::read(&pack).expect("read");
    let mut bad = whole.clone();
    bad[whole.len() / 2] ^= 1;
    fs::write(&pack, &bad).expect("write");
    let e = chain.restore(&tue.name, &out).fails(1);
    assert!(e.contains("another SHA-256") && e.contains("full/pack-00001"), "{e}");
    assert!(e.contains("--backup mon, --backup full"), "others are named: {e}");
    let left = names(&chain.bed.path(""));
    assert!(
        left.iter().all(|n| !n.starts_with("out")),
        "nothing was laid, and nothing is in the way: {left:?}"
    );
    fs::write(&pack, &whole).expect("write");
    // The link in the middle is gone: an older backup does, and that is said.
    fs::remove_file(sets[1].join("manifest.json")).expect("rm");
    let plan = chain.plan(&tue.lsn, &[]);
    let passed = plan["passed"][0].as_str().unwrap_or_default().to_owned();
    assert!(plan["label"] == "full" && passed.contains("'mon', on which 'tue' stands"), "{plan}");
    let said = chain.restore(&tue.lsn, &out).good();
    assert!(said.contains("passed over: 'tue'"), "{said}");
    assert_equal(&tue.copy, &out);
    let e = chain.restore(&tue.lsn, &chain.bed.path("other")).args(&["--backup", "tue"]).fails(1);
    assert!(e.contains("'mon', on which 'tue' stands, is no whole backup"), "{e}");
}

#[test]
fn a_stream_is_restored_as_it_comes() {
    let bed = Bed::new("restore-stream");
    let leader = bed.leader("leader").set("keep_segments", "1000").start();
    fs::write(leader.data().join("large"), noise(2 << 20)).expect("write");
    fs::hard_link(leader.data().join("large"), leader.data().join("again")).expect("link");
    load::burst(&leader.data().join("app"), 1, 60);
    settle(&leader);
    let tar = |name: &str, words: &[&str]| {
        let path = bed.path(name);
        let to = Stdio::from(File::create(&path).expect("create"));
        let work = Load::start(&leader.data().join(name), 4, Duration::from_millis(2));
        let out = Backup::new(leader.spec.listen, Path::new("-")).args(words).run_into(to);
        work.finish();
        assert_eq!(out.status.code(), Some(0), "{}", String::from_utf8_lossy(&out.stderr));
        path
    };
    let (plain, squeezed) = (tar("plain", &[]), tar("squeezed", &["--compress", "zstd"]));
    load::burst(&leader.data().join("app"), 3, 60);
    let later = note(&bed, &leader, "later");
    let out = bed.path("out");
    let restore = |from: &Path| Restore::new(from, &later.name, &out).log(&leader.spec.state);
    let piped = |from: &Path| restore(Path::new("-")).stdin(File::open(from).expect("open"));
    let good = |mut restore: Restore| {
        restore.good();
        assert_equal(&later.copy, &out);
        fs::remove_dir_all(&out).expect("rm");
        let left = names(&bed.path(""));
        assert!(left.iter().all(|n| !n.contains("restoring")), "{left:?}");
    };
    good(restore(&plain));
    good(restore(&squeezed));
    good(piped(&plain));
    for point in ["restore::spool", "fill::file", "restore::done"] {
        let killed = piped(&squeezed).env("TOWLINE_FAILPOINTS", &format!("{point}=kill")).run();
        assert!(!killed.status.success(), "{point} was never passed");
        good(piped(&squeezed));
    }
    let text = piped(&squeezed).args(&["--dry-run"]).good();
    assert!(text.contains("(tar)"), "{text}");
    // Cut anywhere it is no backup.
    let bytes = fs::read(&plain).expect("read");
    for part in [3, 2] {
        fs::write(&plain, &bytes[..bytes.len() / part]).expect("write");
        let e = restore(&plain).fails(1);
        assert!(e.contains("no whole tar") || e.contains("manifest.json is missing"), "{e}");
        assert!(names(&bed.path("")).iter().all(|n| !n.contains("restoring")));
    }
}

/// `towline` with these words: exit code, and what it said.
pub(super) fn run(words: &[&std::ffi::OsStr], points: &str) -> (Option<i32>, String) {
    let mut command = std::process::Command::new("timeout");
    command.args(["-k", "1", "60", &towline()]).args(words).env("TOWLINE_FAILPOINTS", points);
    let out = command.output().expect("run towline");
    let text = [out.stdout, out.stderr].concat();
    (out.status.code(), String::from_utf8_lossy(&text).into_owned())
}

/// A backup as a tree of files, of which most do not change, and one that stands on it.
fn tree_and_last(chain: &Chain) -> (PathBuf, PathBuf) {
    let tree = chain.bed.path("tree");
    Backup::new(chain.leader.spec.listen, &tree).args(["--label", "tree"]).good();
    fs::write(chain.leader.data().join("tiny"), "tiny").expect("write");
    let file = File::options().write(true).open(chain.leader.data().join("large")).expect("open");
    file.write_all_at(&noise(9_000), 1 << 20).expect("write");
    settle(&chain.leader);
    let last = chain.bed.path("last");
    let words = ["--label", "last", "--incremental", tree.to_str().expect("UTF-8")];
    Backup::new(chain.leader.spec.listen, &last).args(words).good();
    (tree, last)
}

/// Combines these members, with more words and failpoints.
type Combine<'a> = &'a dyn Fn(&[&Path], &[&str], &str) -> (Option<i32>, String);

/// Members of an archive that is a directory, by address and label. `out` is removed before and after.
fn by_address(url: &Path, out: &Path, combine: Combine<'_>) {
    fs::remove_dir_all(out).expect("rm");
    let at = |label: &str| PathBuf::from(format!("{}#{label}", url.display()));
    let (full, mon, top) = (at("full"), at("mon"), at("tue"));
    let (code, said) = combine(&[&full, Path::new("s3://bucket/x#mon")], &["--dry-run"], "");
    assert!(code == Some(64) && said.contains("copy the objects of 's3://bucket/x/backup/mon'"), "{said}");
    let (code, said) = combine(&[&full, Path::new("file:///nowhere")], &["--dry-run"], "");
    assert!(code == Some(64) && said.contains("#LABEL"), "{said}");
    let (code, said) = combine(&[&full, &mon, &top], &[], "");
    assert_eq!(code, Some(0), "{said}");
    let (code, said) = run(&["verify".as_ref(), out.as_os_str()], "");
    assert_eq!(code, Some(0), "{said}");
    fs::remove_dir_all(out).expect("rm");
}

#[test]
fn a_chain_becomes_one_full_backup() {
    let chain = Chain::new("combine");
    let (bed, tue) = (&chain.bed, &chain.after[2]);
    let (tree, last) = tree_and_last(&chain);
    let sets = ["full", "mon", "tue"].map(|l| chain.set(l));
    let out = bed.path("combined");
    let combine = |members: &[&Path], more: &[&str], points: &str| {
        let words = ["combine", "--out"].map(std::ffi::OsStr::new).into_iter().chain([out.as_os_str()]);
        let members = members.iter().map(|m| m.as_os_str());
        run(&words.chain(members).chain(more.iter().map(std::ffi::OsStr::new)).collect::<Vec<_>>(), points)
    };
    let all: Vec<&Path> = sets.iter().map(PathBuf::as_path).collect();
    let verified = || {
        let (code, said) = run(&["verify".as_ref(), out.as_os_str()], "");
        assert_eq!(code, Some(0), "{said}");
    };
    // What can't be combined is refused by name, and nothing is made.
    for (members, code, word) in [
        (&all[..1], 64, "required"),
        (&[all[1], all[0]][..], 64, "is a full one"),
        (&[all[0], all[2]], 1, "'mon', on which 'tue' stands, is missing"),
        (&[all[0], all[1], &tree, all[2]], 1, "leave out those"),
    ] {
        let (got, said) = combine(members, &[], "");
        assert!(got == Some(code) && (said.contains(word) || members.len() == 1), "{said}");
    }
    let (code, said) = combine(&all, &["--dry-run"], "");
    assert!(code == Some(0) && said.contains("members   tue, mon, full"), "{said}");
    assert!(names(&bed.path("")).iter().all(|n| !n.starts_with("combined")));
    // Killed anywhere it is no backup, and the same command makes it.
    for point in ["combine::file", "combine::written", "combine::sealed"] {
        let (code, said) = combine(&all, &[], &format!("{point}=kill"));
        assert!(code != Some(0) && !out.exists(), "{point}: {said}");
    }
    assert_eq!(combine(&all, &[], "").0, Some(0));
    verified();
    Restore::new(&out, &tue.name, &bed.path("out")).log(&chain.leader.spec.state).good();
    assert_equal(&tue.copy, &bed.path("out"));
    assert!(combine(&all, &[], "").1.contains("is not an empty directory"));
    verified();
    fs::remove_dir_all(&out).expect("rm");
    let (_, said) = combine(&all, &[], "combine::whole=kill");
    assert!(!out.exists(), "{said}");
    // What only lacks its name gets it, but not for what is another backup.
    let (code, said) = combine(&all, &["--label", "other"], "");
    assert!(code == Some(1) && said.contains("another combined backup, 'tue'"), "{said}");
    let manifest = fs::read(bed.path("combined.combining/manifest.json")).expect("read");
    assert_eq!(combine(&all, &["--dry-run"], "").0, Some(0));
    assert_eq!(combine(&all, &[], "").0, Some(0));
    assert_eq!(fs::read(out.join("manifest.json")).expect("read"), manifest, "it is not made once more");
    verified();
    by_address(&chain.url, &out, &combine);
    // Links are the same file; the sources stay what they were.
    let members = [tree.as_path(), &last];
    let (code, said) = combine(&members, &["--copy-mode", "link", "--label", "linked"], "");
    assert!(code == Some(0) && said.contains("one file with it"), "{said}");
    let inode = |path: PathBuf| std::os::unix::fs::MetadataExt::ino(&fs::metadata(path).expect("stat"));
    assert_eq!(inode(out.join("base/same")), inode(tree.join("data/same")));
    assert_ne!(inode(out.join("base/large")), inode(tree.join("data/large")));
    verified();
    checked(&tree);
    // What stands on another can't be replayed by itself, which is no damage.
    let (code, said) = run(&["verify".as_ref(), "--replay".as_ref(), last.as_os_str()], "");
    assert!(code == Some(64) && said.contains("towline combine"), "{said}");
    fs::remove_dir_all(&out).expect("rm");
    let (code, said) = combine(&members, &["--copy-mode", "clone"], "");
    match code {
        Some(0) => verified(),
        _ => assert!(code == Some(1) && said.contains("--copy-mode copy"), "{said}"),
    }
    let _ = fs::remove_dir_all(&out);
    // A file of the oldest that is not what it was.
    let victim = tree.join("data/same");
    let bytes = fs::read(&victim).expect("read");
    fs::write(&victim, [&bytes[..bytes.len() - 1], b"?"].concat()).expect("write");
    let (code, said) = combine(&members, &[], "");
    assert!(code == Some(1) && said.contains("content of 'same' is not what"), "{said}");
    assert!(names(&bed.path("")).iter().all(|n| !n.starts_with("combined")));
}

#[test]
fn where_the_file_system_clones_nothing_is_written_twice() {
    let Some(disk) = Disk::mount("xfs") else { return };
    let bed = Bed::new("restore-clones");
    let leader = bed.leader("leader").set("keep_segments", "1000").start();
    fs::write(leader.data().join("large"), noise(48 << 20)).expect("write");
    settle(&leader);
    let (tree, last) = (disk.path().join("tree"), disk.path().join("last"));
    Backup::new(leader.spec.listen, &tree).args(["--label", "tree"]).good();
    fs::write(leader.data().join("small"), "small").expect("write");
    settle(&leader);
    let words = ["--label", "last", "--incremental", tree.to_str().expect("UTF-8")];
    Backup::new(leader.spec.listen, &last).args(words).good();
    let free = || {
        nix::unistd::sync();
        towline::disk::free_bytes(&disk.path()).expect("statfs")
    };
    let spent = |what: &str, work: &dyn Fn()| {
        let before = free();
        work();
        let spent = before.saturating_sub(free());
        println!("{what}: {spent} bytes");
        spent
    };
    let out = disk.path().join("out");
    let restore = |mode: &str| {
        Restore::new(&tree, "exact", &out).args(&["--copy-mode", mode]).good();
        assert_equal(&tree.join("data"), &out);
    };
    assert!(spent("restored", &|| restore("auto")) < 16 << 20);
    fs::remove_dir_all(&out).expect("rm");
    assert!(spent("restored by copying", &|| restore("copy")) > 40 << 20);
    let combined = disk.path().join("combined");
    let combine = || {
        let words = [
            "combine".as_ref(),
            tree.as_os_str(),
            last.as_os_str(),
            "--out".as_ref(),
            combined.as_os_str(),
            "--copy-mode".as_ref(),
            "clone".as_ref(),
        ];
        let (code, said) = run(&words, "");
        assert_eq!(code, Some(0), "{said}");
    };
    assert!(spent("combined", &combine) < 16 << 20);
    assert_eq!(run(&["verify".as_ref(), combined.as_os_str()], "").0, Some(0));
    // A clone changes nothing of what it was made from, and out of it can't be made elsewhere.
    fs::write(out.join("large"), "changed").expect("write");
    checked(&tree);
    let e = Restore::new(&tree, "exact", &bed.path("elsewhere")).args(&["--copy-mode", "clone"]).fails(1);
    assert!(e.contains("give --copy-mode copy"), "{e}");
}
