//! Rewind: the leader that was lost comes back with changes that nobody else has, and becomes a follower of the one that leads now.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use serde_json::Value;

use crate::support::bed::{Bed, copy_tree, list, soak_or};
use crate::support::node::towline;
use crate::support::{Load, Node, Spec, assert_equal_within, until, within};

/// A leader and a follower, each of which knows both.
fn two(bed: &Bed) -> (Spec, Spec) {
    let (old, new) = (bed.leader("old"), bed.follower("new", 1));
    let all = list(&[old.listen, new.listen]);
    let known = |mut s: Spec| {
        (s.leader_in_config, s.name_in_config) = (true, true);
        let name = format!("\"{}\"", s.name);
        s.set("name", &name).set("leader", &all).set("segment_timeout", "\"1h\"")
    };
    (known(old), known(new))
}

fn at(port: u16) -> String {
    format!("127.0.0.1:{port}")
}

/// `towline WORDS`; with failpoints, if there are any.
fn run(words: &[&str], armed: &str) -> Output {
    let mut command = Command::new("timeout");
    command.args(["-k", "1", "120", &towline()]).args(words).env("TOWLINE_FAILPOINTS", armed);
    command.output().expect("run towline")
}

fn state(spec: &Spec) -> &str {
    spec.state.to_str().expect("path")
}

fn rewind_words<'a>(spec: &'a Spec, leader: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["rewind", "--state", state(spec), "--leader", leader, "--json"][..], more].concat()
}

fn json(out: &Output) -> Value {
    let err = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{}: {err}", out.status);
    serde_json::from_slice(&out.stdout).unwrap_or_else(|e| panic!("{e}: {out:?}"))
}

fn refused(out: &Output, words: &str) {
    let err = String::from_utf8_lossy(&out.stderr);
    assert!(!out.status.success() && err.contains(words), "{}: {err}", out.status);
}

fn promote(node: &Node) {
    let out = node.ask(&["promote", "--wait"]);
    assert!(out.status.success(), "{}\n{}", String::from_utf8_lossy(&out.stderr), node.log());
}

/// Everything in the log so far is committed, and more than that follower has.
fn cut(node: &Node, name: &str) {
    until(within(20), "an exact cut", || {
        let out = node.ask(&["restore-point", name]);
        if out.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&out.stderr).into_owned()) }
    });
}

/// Every file of a tree: its bytes.
fn contents(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let all = walkdir::WalkDir::new(root).into_iter().map(|e| e.expect("walk"));
    all.filter(|e| e.file_type().is_file())
        .map(|e| (e.path().strip_prefix(root).expect("below").to_owned(), fs::read(e.path()).expect("read")))
        .collect()
}

fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut rng = fastrand::Rng::with_seed(seed);
    (0..len).map(|_| rng.u8(..)).collect()
}

fn write(dir: &Path, name: &str, bytes: &[u8]) {
    fs::write(dir.join(name), bytes).expect("write");
}

fn patch(dir: &Path, name: &str, at: u64, bytes: &[u8]) {
    let file = File::options().write(true).open(dir.join(name)).expect("open");
    file.write_all_at(bytes, at).expect("write");
}

fn furnish(dir: &Path) {
    fs::create_dir_all(dir.join("d/e")).expect("mkdir");
    for (n, name) in
        (0..).zip(["both", "both unlogged", "grown", "cut", "gone", "moved", "mode", "d/logged", "d/e/gone"])
    {
        write(dir, name, &noise(n, 40_000));
    }
    write(dir, "large", &noise(50, 600_000));
    write(dir, "large unlogged", &noise(51, 600_000));
    write(dir, "same", &noise(52, 300_000));
}

/// Changes that only the old leader has; some before and some after its daemon died.
fn change(dir: &Path, when: &str) {
    write(dir, &format!("new {when}"), &noise(60, 30_000));
    fs::create_dir_all(dir.join(format!("dir {when}/below"))).expect("mkdir");
    write(dir, &format!("dir {when}/below/f"), &noise(61, 100));
}

/// Compares an export with what the directory was: each thing that is another than in `base` is told of, and laid out as it was.
fn assert_exported(out: &Path, told: &Value, was: &Path, base: &Path) {
    let (was_all, base_all) = (contents(was), contents(base));
    let laid = contents(&out.join("files"));
    let changes = told["changes"].as_array().expect("changes");
    let names = |c: &'_ Value| {
        let links = c["links"].as_array().cloned().unwrap_or_default();
        [vec![c["path"].clone()], links].concat()
    };
    let by_path: BTreeMap<String, &Value> = changes
        .iter()
        .flat_map(|c| names(c).into_iter().map(move |n| (n.as_str().expect("path").to_owned(), c)))
        .collect();
    let word = |c: &Value, w: &str| c["what"].as_array().expect("what").iter().any(|v| v == w);
    for (path, bytes) in &was_all {
        let name = path.to_str().expect("UTF-8");
        if base_all.get(path) == Some(bytes) {
            let content = by_path.get(name).is_some_and(|c| word(c, "created") || word(c, "changed"));
            assert!(!content || laid.contains_key(path), "{name}");
            continue;
        }
        let Some(change) = by_path.get(name) else { panic!("{name} is not told of: {:?}", by_path.keys()) };
        if word(change, "renamed") && !word(change, "changed") {
            continue;
        }
        let is = laid.get(path).unwrap_or_else(|| panic!("{name} is not laid out: {change}"));
        assert_eq!(is.len(), bytes.len(), "{name}: {change}");
        if change["whole"] == true {
            assert!(is == bytes, "{name} is another: {change}");
            continue;
        }
        for extent in change["extents"].as_array().expect("extents") {
            let end = |n: usize| usize::try_from(extent[n].as_u64().expect("number")).expect("size");
            assert!(is[end(0)..end(1)] == bytes[end(0)..end(1)], "{name}: {extent}");
        }
    }
    for path in base_all.keys().filter(|p| !was_all.contains_key(*p)) {
        let name = path.to_str().expect("UTF-8");
        let gone = changes.iter().any(|c| c["path"] == name && word(c, "deleted") || c["was"] == name);
        assert!(gone, "nothing says that {name} was gone");
    }
    let extra: BTreeSet<_> = laid.keys().filter(|p| !was_all.contains_key(*p)).collect();
    assert!(extra.is_empty(), "{extra:?}");
}

/// An old leader that was killed under load, and changed after that, and the follower that has the state of `base`.
struct Lost {
    old: Node,
    new: Node,
    /// What the follower has.
    base: PathBuf,
    /// What the old leader's directory holds.
    was: PathBuf,
}

fn lose(bed: &Bed, spec: (Spec, Spec)) -> Lost {
    let (mut old, mut new) = (spec.0.start(), spec.1.start());
    furnish(old.data());
    assert_equal_within(within(30), old.data(), new.data());
    new.stop();
    let base = bed.path("base");
    copy_tree(new.data(), &base);
    // What only its log has.
    change(old.data(), "logged");
    write(old.data(), "both", &noise(70, 45_000));
    patch(old.data(), "large", 300_000, &noise(71, 5000));
    fs::remove_file(old.data().join("d/e/gone")).expect("remove");
    fs::rename(old.data().join("d/logged"), old.data().join("d/logged elsewhere")).expect("rename");
    cut(&old, "before-the-end");
    let load = Load::start(&old.data().join("app"), 8, Duration::from_millis(2));
    until(within(20), "some load", || if load.ops() > 150 { Ok(()) } else { Err(load.ops().to_string()) });
    old.kill();
    load.finish();
    // And what nobody has logged.
    let dir = old.data().to_owned();
    change(&dir, "unlogged");
    write(&dir, "both unlogged", &noise(72, 1000));
    patch(&dir, "large unlogged", 100_000, &noise(73, 5000));
    patch(&dir, "grown", 40_000, &noise(74, 30_000));
    File::options().write(true).open(dir.join("cut")).and_then(|f| f.set_len(10_000)).expect("truncate");
    fs::remove_file(dir.join("gone")).expect("remove");
    fs::rename(dir.join("moved"), dir.join("moved elsewhere")).expect("rename");
    fs::set_permissions(dir.join("mode"), fs::Permissions::from_mode(0o600)).expect("chmod");
    let was = bed.path("was");
    copy_tree(&dir, &was);
    Lost { old, new, base, was }
}

/// The new leader goes on.
fn take_over(new: &Node) {
    promote(new);
    write(new.data(), "both", &noise(80, 20_000));
    fs::remove_file(new.data().join("both unlogged")).expect("remove");
    write(new.data(), "newer", b"newer");
}

#[test]
fn an_old_leader_becomes_a_follower_and_nothing_that_it_held_is_lost() {
    let bed = Bed::new("rewind");
    let other = bed.leader("other").start();
    let Lost { mut old, mut new, base, was } = lose(&bed, two(&bed));
    new.restart();
    let leader = at(new.spec.listen);
    refuses(&old, &leader, &at(other.spec.listen));
    take_over(&new);
    let before = contents(&old.spec.state);
    let dry = json(&run(&rewind_words(&old.spec, &leader, &["--dry-run"]), ""));
    assert_eq!(
        (&dry["way"], &dry["rewound"], &dry["dry_run"]),
        (&"rewind".into(), &false.into(), &true.into()),
        "{dry}"
    );
    assert!(dry["changes"]["created"].as_u64() > Some(0), "{dry}");
    assert_eq!(contents(&old.spec.state), before, "a look changes nothing");

    let done = json(&run(&rewind_words(&old.spec, &leader, &[]), ""));
    assert_eq!((&done["rewound"], &done["way"]), (&true.into(), &"rewind".into()), "{done}");
    let received = done["received_bytes"].as_u64().expect("received");
    assert!(received < 700_000, "what is the same is not moved: {done}");
    let again = json(&run(&rewind_words(&old.spec, &leader, &[]), ""));
    assert_eq!((&again["rewound"], &again["way"]), (&false.into(), &"nothing".into()), "{again}");
    old.restart();
    write(new.data(), "newest", b"newest");
    assert_equal_within(within(30), new.data(), old.data());
    assert!(old.log().contains("going on as follower"), "a role on disk wins");
    assert_eq!(old.status().expect("status").0["resync"]["lost_logs"], 1);
    kept(&bed, &old, &done, (&was, &base));
    // Nobody goes back to the line that was left.
    let behind = bed.follower("behind", old.spec.listen).start();
    assert_equal_within(within(30), new.data(), behind.data());
    [&old, &new].iter().for_each(|n| n.assert_no_panic());
}

/// Directories so deep that the path of the last one is no path any more. The first of them.
fn bury(dir: &Path) -> PathBuf {
    use rustix::fs::{Mode, OFlags, mkdirat, openat};
    let name = "deep".repeat(60);
    let mut at = std::os::fd::OwnedFd::from(File::open(dir).expect("open"));
    for _ in 0..20 {
        mkdirat(&at, name.as_str(), Mode::from_raw_mode(0o755)).expect("mkdir");
        at = openat(&at, name.as_str(), OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).expect("open");
    }
    dir.join(name)
}

/// The bundle holds every change, and is laid out as the directory was.
fn kept(bed: &Bed, old: &Node, done: &Value, (was, base): (&Path, &Path)) {
    let bundle = done["bundle"].as_str().expect("a bundle").to_owned();
    let listed = json(&run(&["lost-writes", "list", "--state", state(&old.spec), "--json"], ""));
    assert_eq!(listed["bundles"].as_array().map(Vec::len), Some(1), "{listed}");
    assert_eq!(listed["bundles"][0]["path"], bundle.as_str(), "{listed}");
    for action in ["dump", "verify"] {
        let out = run(&["log", action, &bundle], "");
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    }
    let out = bed.path("out");
    let to = out.to_str().expect("path");
    let words = ["lost-writes", "export", "1", "--state", state(&old.spec), "--out", to, "--json"];
    let told = json(&run(&words, ""));
    assert_exported(&out, &told, was, base);
    let find = |path: &str| told["changes"].as_array().and_then(|all| all.iter().find(|c| c["path"] == path));
    let large = find("large unlogged").expect("large");
    let in_part = large["laid"].as_str().is_some_and(|l| l.starts_with("extents "));
    assert!(large["whole"] == false && in_part, "{large}");
    assert_eq!(find("mode").expect("mode")["what"][0], "attributes");
    let paths = fs::read_to_string(Path::new(&bundle).join("paths.txt")).expect("paths");
    assert!(paths.contains("\td/logged elsewhere\tfrom d/logged\n"), "{paths}");
    assert!(paths.lines().any(|l| l.starts_with("deleted\t") && l.ends_with("\tgone")), "{paths}");
    let meta = |p: PathBuf| fs::metadata(p).expect("stat");
    let (is, had) = (meta(out.join("files/new logged")), meta(was.join("new logged")));
    assert_eq!((is.mtime(), is.mtime_nsec(), is.mode()), (had.mtime(), had.mtime_nsec(), had.mode()));
    refused(&run(&["lost-writes", "export", &bundle, "--out", to], ""), "holds something already");
    // What is known in part is filled from another tree.
    let (over, from) = (bed.path("over"), base.to_str().expect("path"));
    let words = ["lost-writes", "export", &bundle, "--out", over.to_str().expect("path"), "--over", from];
    assert!(run(&words, "").status.success());
    let read = |p: PathBuf| fs::read(p).expect("read");
    assert!(read(over.join("files/large unlogged")) == read(was.join("large unlogged")));
}

/// What can't be done changes nothing.
fn refuses(old: &Node, leader: &str, other: &str) {
    let but_lock = |(path, _): &(PathBuf, Vec<u8>)| path != Path::new("lock");
    let all = || contents(&old.spec.state).into_iter().filter(but_lock).collect::<Vec<_>>();
    let known = all();
    let nobody = at(crate::support::bed::free_port());
    for (to, words) in [(nobody.as_str(), "does not answer"), (other, "holds system")] {
        refused(&run(&rewind_words(&old.spec, to, &["--dry-run"]), ""), words);
        assert_eq!(all(), known, "{words}");
        refused(&run(&rewind_words(&old.spec, to, &[]), ""), words);
        assert_eq!(all(), known, "{words}");
    }
    // It follows the old line still: there is nothing to go to.
    let same_line = json(&run(&rewind_words(&old.spec, leader, &[]), ""));
    assert_eq!(same_line["way"], "nothing", "{same_line}");
    let held = nix::fcntl::Flock::lock(
        File::open(&old.spec.state).expect("open"),
        nix::fcntl::FlockArg::LockExclusiveNonblock,
    );
    refused(&run(&rewind_words(&old.spec, leader, &[]), ""), "another");
    drop(held);
    assert_eq!(all(), known);
}

#[test]
fn a_leader_that_shipped_everything_is_demoted_in_place() {
    let bed = Bed::new("rewind-in-place");
    let (old, new) = two(&bed);
    let (mut old, new) = (old.start(), new.start());
    furnish(old.data());
    assert_equal_within(within(30), old.data(), new.data());
    cut(&old, "all");
    until(within(20), "all of it is there", || {
        let (a, b) = (old.status()?.end(), new.status()?.end());
        if a == b { Ok(()) } else { Err(format!("{a} {b}")) }
    });
    old.stop();
    promote(&new);
    let leader = at(new.spec.listen);
    // Another directory in the place of its own says nothing of what was written.
    let aside = bed.path("aside");
    fs::rename(old.data(), &aside).expect("rename");
    refused(&run(&rewind_words(&old.spec, &leader, &[]), ""), "can't be put into the log");
    fs::create_dir(old.data()).expect("mkdir");
    refused(
        &run(&rewind_words(&old.spec, &leader, &[]), ""),
        "is not the directory that this node replicates",
    );
    assert!(!old.spec.state.join("rewind").exists(), "it was begun");
    fs::remove_dir(old.data()).expect("rmdir");
    fs::rename(&aside, old.data()).expect("rename");
    let done = json(&run(&rewind_words(&old.spec, &leader, &[]), ""));
    assert_eq!(
        (&done["rewound"], &done["way"], &done["bundle"]),
        (&true.into(), &"in-place".into(), &Value::Null),
        "{done}"
    );
    write(new.data(), "newer", b"newer");
    old.restart();
    assert_equal_within(within(30), new.data(), old.data());
    let status = old.status().expect("status").0;
    assert_eq!(
        (&status["resync"]["completed"], &status["resync"]["lost_logs"]),
        (&0.into(), &0.into()),
        "{status}"
    );
    assert_eq!((&status["role"], &status["timeline"]), (&"follower".into(), &2.into()), "{status}");
}

/// Every place on the way of a rewind that moves something.
const PLACES: &[&str] = &[
    "rewind::note=kill",
    "rewind::after_note=kill",
    "capture::after_commit=kill",
    "rewind::logged=kill",
    "rewind::before_control=kill",
    "rewind::after_control=kill",
    "lost::gather=kill",
    "lost::tree=kill",
    "lost::paths=kill",
    "lost::bundle=kill",
    "lost::keep=kill",
    "resync::begin=kill",
    "resync::log=kill",
    "resync::done=kill",
    "resync::end=kill",
    "rewind::done=kill",
];
/// And of one in place.
const IN_PLACE: &[&str] = &[
    "demote::before_control=kill",
    "demote::after_control=kill",
    "rewind::after_note=kill",
    "rewind::done=kill",
];

/// A node as it lies on disk, to begin from again and again.
struct Kept {
    spec: Spec,
    state: PathBuf,
    data: PathBuf,
}

impl Kept {
    fn of(bed: &Bed, spec: &Spec, name: &str) -> Self {
        let kept = Self {
            spec: spec.clone(),
            state: bed.path(format!("{name}-state")),
            data: bed.path(format!("{name}-data")),
        };
        copy_tree(&spec.state, &kept.state);
        copy_tree(&spec.data, &kept.data);
        kept
    }

    /// The state directory is what it was, and so is the data directory; what is the same in it stays as it is.
    fn restore(&self) {
        fs::remove_dir_all(&self.spec.state).expect("remove");
        copy_tree(&self.state, &self.spec.state);
        let names = |dir: &Path| -> BTreeSet<PathBuf> {
            fs::read_dir(dir).expect("list").map(|e| e.expect("entry").file_name().into()).collect()
        };
        for name in &names(&self.spec.data) | &names(&self.data) {
            let (from, to) = (self.data.join(&name), self.spec.data.join(&name));
            let same = from.is_file()
                && to.is_file()
                && fs::read(&from).expect("read") == fs::read(&to).expect("read");
            if same {
                continue;
            }
            if to.is_dir() {
                fs::remove_dir_all(&to).expect("remove");
            } else if to.exists() {
                fs::remove_file(&to).expect("remove");
            }
            if from.exists() {
                copy_tree(&from, &to);
            }
        }
    }
}

/// A node that is half rewound, and can't reach the one that leads, never leads and never serves.
fn never_serves(bed: &Bed, spec: &Spec, point: &str) {
    let nobody = list(&[crate::support::bed::free_port()]);
    let begun = fs::read(spec.log_path()).expect("log").len();
    let mut half = spec.clone().set("leader", &nobody).spawn();
    let probe = bed.follower(&format!("probe-{}", fastrand::u32(..)), spec.listen).start();
    // One that died when all was done but for a note is whole when it starts, and may serve.
    let told = |half: &Node| half.log().split_off(begun.min(half.log().len()));
    until(within(20), "it is turned away, or the rewind was over", || {
        let status = probe.status()?;
        let away = status.0["upstream"]["attempts"].as_u64() > Some(2);
        if away || told(&half).contains("rewound to timeline") { Ok(()) } else { Err(status.0.to_string()) }
    });
    let log = told(&half);
    if !log.contains("rewound to timeline") {
        assert!(fs::read_dir(probe.data()).expect("list").next().is_none(), "{point}: it served");
    }
    assert!(!log.contains("serves followers"), "{point}: it led: {log}");
    half.kill();
}

#[test]
fn a_rewind_goes_on_wherever_it_dies_and_half_of_one_is_never_served() {
    let bed = Bed::new("rewind-crash");
    let spec = two(&bed);
    let Lost { old, mut new, .. } = lose(&bed, (spec.0.armed(), spec.1));
    new.restart();
    take_over(&new);
    let kept = Kept::of(&bed, &old.spec, "kept");
    let leader = at(new.spec.listen);
    let some = fastrand::choose_multiple(PLACES.iter(), soak_or(PLACES.len(), 5));
    let probed = fastrand::usize(..some.len());
    for (n, point) in some.into_iter().enumerate() {
        kept.restore();
        let by_daemon = fastrand::bool();
        if by_daemon {
            old.arm(point);
            let mut daemon = old.spec.clone().set("auto_rewind", "true").spawn();
            let end = daemon.wait_end(within(30));
            assert!(Node::was_killed(end), "{point}: {end}\n{}", daemon.log());
            old.arm("");
        } else {
            let out = run(&rewind_words(&old.spec, &leader, &[]), point);
            assert!(
                Node::was_killed(out.status),
                "{point}: {} {}",
                out.status,
                String::from_utf8_lossy(&out.stderr)
            );
        }
        if n == probed && *point != "rewind::note=kill" {
            never_serves(&bed, &old.spec, point);
        }
        // By the command, or by a start of the daemon, which may not have been left behind as far as it knows.
        if fastrand::bool() {
            json(&run(&rewind_words(&old.spec, &leader, &[]), ""));
        }
        let mut again = old.spec.clone().set("auto_rewind", "true").start();
        let name = format!("after {n}");
        write(new.data(), &name, b"x");
        assert_equal_within(within(30), new.data(), again.data());
        let status = again.status().expect("status").0;
        assert_eq!(
            (&status["role"], &status["resync"]["lost_logs"]),
            (&"follower".into(), &1.into()),
            "{point}: {status}"
        );
        until(within(10), "the note is gone", || {
            if again.spec.state.join("rewind").exists() { Err("it is there") } else { Ok(()) }
                .map_err(str::to_owned)
        });
        let bundle = again.spec.state.join("lost/1/bundle.json");
        assert!(bundle.exists() && !again.spec.state.join("lost/making").exists(), "{point}");
        again.stop();
        again.assert_no_panic();
    }
}

#[test]
fn a_demotion_in_place_is_one_or_none_wherever_it_dies() {
    let bed = Bed::new("demote-crash");
    let (old, new) = two(&bed);
    let (mut old, new) = (old.start(), new.start());
    furnish(old.data());
    assert_equal_within(within(30), old.data(), new.data());
    old.stop();
    promote(&new);
    let (kept, leader) = (bed.path("kept"), at(new.spec.listen));
    copy_tree(&old.spec.state, &kept);
    for point in IN_PLACE {
        // Its directory is not written to, or it would have something that nobody else has.
        fs::remove_dir_all(&old.spec.state).expect("remove");
        copy_tree(&kept, &old.spec.state);
        let out = run(&rewind_words(&old.spec, &leader, &[]), point);
        let err = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(Node::was_killed(out.status), "{point}: {} {err}", out.status);
        if fastrand::bool() {
            json(&run(&rewind_words(&old.spec, &leader, &[]), ""));
        }
        let mut again = old.spec.clone().set("auto_rewind", "true").start();
        until(within(30), "it follows", || {
            let status = again.status()?;
            if status.0["timeline"] == 2 && status.upstream_state() == "streaming" {
                Ok(())
            } else {
                Err(status.0.to_string())
            }
        });
        assert_equal_within(within(30), new.data(), again.data());
        let status = again.status().expect("status").0;
        assert_eq!(
            (&status["resync"]["completed"], &status["resync"]["lost_logs"]),
            (&0.into(), &0.into()),
            "{point}: {status}"
        );
        assert!(!again.spec.state.join("rewind").exists(), "{point}");
        again.stop();
    }
}

fn fenced(node: &Node) {
    until(within(20), "it is fenced", || {
        let status = node.status()?;
        if status.state() == "fenced" { Ok(()) } else { Err(status.0.to_string()) }
    });
}

#[test]
fn a_fenced_leader_is_rewound_on_request_or_by_itself_to_whoever_follows_the_new_one() {
    let bed = Bed::new("rewind-running");
    let Lost { old, mut new, base, was } = lose(&bed, two(&bed));
    new.restart();
    take_over(&new);
    let third = bed.follower("third", new.spec.listen).start();
    assert_equal_within(within(30), new.data(), third.data());
    let kept_as = Kept::of(&bed, &old.spec, "kept");
    let old = old.spec.start();
    fenced(&old);
    let before = old.status().expect("status").0["timeline"].clone();
    refused(&old.ask(&["rewind", "--leader", &at(crate::support::bed::free_port())]), "does not answer");
    let dry = json(&old.ask(&["rewind", "--dry-run", "--json"]));
    assert_eq!((&dry["way"], &dry["timeline"], &before), (&"rewind".into(), &1.into(), &1.into()), "{dry}");
    refused(&new.ask(&["rewind", "--leader", &at(old.spec.listen)]), "an older one");
    // One that follows the new leader will do.
    let done = json(&old.ask(&["rewind", "--json", "--leader", &at(third.spec.listen)]));
    assert_eq!(
        (&done["rewound"], &done["way"], &done["leader"]),
        (&true.into(), &"rewind".into(), &"third".into()),
        "{done}"
    );
    assert_equal_within(within(30), new.data(), old.data());
    kept(&bed, &old, &done, (&was, &base));
    let again = json(&old.ask(&["rewind", "--json"]));
    assert_eq!((&again["rewound"], &again["way"]), (&false.into(), &"nothing".into()), "{again}");
    // It misses none of those that followed it once.
    let slots = old.status().expect("status").0["slots"].clone();
    let lost = |s: &Value| s["origin"] == "own" && s["state"] == "lost";
    assert!(slots.as_array().is_some_and(|all| !all.iter().any(lost)), "{slots}");
    let checked = old.ask(&["check", "--max-away", "1ms", "--accept", "lost"]);
    let said = String::from_utf8_lossy(&checked.stdout).into_owned();
    assert!(!said.contains("LOST") && !said.contains("is away"), "{said}");
    drop(old);
    // By itself.
    kept_as.restore();
    let alone = kept_as.spec.clone().set("auto_rewind", "true").start();
    assert_equal_within(within(30), new.data(), alone.data());
    assert_eq!(alone.status().expect("status").0["resync"]["lost_logs"], 1);
    drop(alone);
    // What no log can have is not taken away unasked.
    kept_as.restore();
    let deep = bury(&kept_as.spec.data);
    let alone = kept_as.spec.clone().start();
    fenced(&alone);
    refused(&alone.ask(&["rewind"]), "would be gone after the rewind");
    drop(alone);
    fs::remove_dir_all(deep).expect("remove");
    // Most of its directory is gone: somebody has to say that this is as it should be.
    kept_as.restore();
    for name in ["app", "d", "both", "grown", "cut", "mode", "same", "large", "dir logged", "dir unlogged"] {
        let path = kept_as.spec.data.join(name);
        if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }.expect("remove");
    }
    let alone = kept_as.spec.clone().set("max_delete_floor", "5").start();
    fenced(&alone);
    refused(&alone.ask(&["rewind"]), "towline rewind --confirm");
    fenced(&alone);
    assert!(!alone.spec.state.join("lost").exists(), "nothing was changed");
    assert!(alone.ask(&["rewind", "--confirm"]).status.success(), "{}", alone.log());
    assert_equal_within(within(30), new.data(), alone.data());
    [&new, &third, &alone].iter().for_each(|n| n.assert_no_panic());
}

/// What the bundle of a node says, and its list of paths.
fn only_bundle(node: &Node) -> (Value, String) {
    let listed = json(&run(&["lost-writes", "list", "--state", state(&node.spec), "--json"], ""));
    assert_eq!(listed["bundles"].as_array().map(Vec::len), Some(1), "{listed}");
    let path = Path::new(listed["bundles"][0]["path"].as_str().expect("path"));
    (listed["bundles"][0]["bundle"].clone(), fs::read_to_string(path.join("paths.txt")).expect("paths"))
}

#[test]
fn a_follower_that_ran_ahead_and_one_of_two_that_lead_apart_keep_what_they_had() {
    let bed = Bed::new("rewind-apart");
    let (old, a) = two(&bed);
    let follower = |name: &str| {
        let mut spec = bed.follower(name, old.listen).set("leader", &list(&[old.listen, a.listen]));
        spec.leader_in_config = true;
        spec
    };
    let (b, rests) = (follower("b"), follower("rests"));
    let (mut old, mut a, mut b, rests) = (old.start(), a.start(), b.start(), rests.start());
    furnish(old.data());
    for node in [&a, &b, &rests] {
        assert_equal_within(within(30), old.data(), node.data());
    }
    a.stop();
    rests.pause();
    write(old.data(), "ahead", b"only b has it");
    assert_equal_within(within(30), old.data(), b.data());
    let end = old.wait_confirmed(&["--level", "flush", "--for", "rests"]);
    assert_eq!(end.0, 0, "{}", end.1);
    old.kill();
    a.restart();
    promote(&a);
    write(a.data(), "newer", b"newer");
    assert_equal_within(within(30), a.data(), b.data());
    let (told, paths) = only_bundle(&b);
    assert_eq!(
        (&told["timeline"], &told["to_timeline"], &told["tree"]),
        (&1.into(), &2.into(), &"before".into()),
        "{told}"
    );
    assert!(paths.contains("created\tfile\t13\t") && paths.contains("\tahead\n"), "{paths}");
    // Of the one that rested only the log was ahead.
    rests.resume();
    assert_equal_within(within(30), a.data(), rests.data());
    let (alike, alike_paths) = only_bundle(&rests);
    assert_eq!(
        (&alike["branch"], &alike["tree"], alike_paths),
        (&told["branch"], &told["tree"], paths),
        "{alike}"
    );
    assert_eq!(rests.status().expect("status").0["resync"]["completed"], 0);
    drop(rests);
    fs::remove_dir_all(b.spec.state.join("lost")).expect("remove");
    // Both go on from the same line, and know nothing of each other.
    let mut c = bed.follower("c", a.spec.listen).start();
    assert_equal_within(within(30), a.data(), c.data());
    a.kill();
    b.reload("leader", &list(&[a.spec.listen])).expect("reload");
    for node in [&b, &c] {
        promote(node);
        write(node.data(), &format!("of {}", node.spec.name), b"apart");
        cut(node, "apart");
    }
    b.reload("leader", &list(&[a.spec.listen, c.spec.listen])).expect("reload");
    let done = json(&b.ask(&["rewind", "--leader", &at(c.spec.listen), "--json"]));
    assert_eq!((&done["rewound"], &done["way"]), (&true.into(), &"rewind".into()), "{done}");
    write(c.data(), "newest", b"newest");
    assert_equal_within(within(30), c.data(), b.data());
    let (told, paths) = only_bundle(&b);
    assert_eq!((&told["timeline"], &told["to_timeline"]), (&3.into(), &3.into()), "{told}");
    assert!(paths.contains("\tof b\n") && !paths.contains("of c"), "{paths}");
    assert!(!b.data().join("of b").exists());
    [&b, &c].iter().for_each(|n| n.assert_no_panic());
    c.stop();
}
