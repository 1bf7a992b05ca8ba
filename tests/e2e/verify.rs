//! `towline verify`: whatever happens to a backup or to a state directory is found, in one run, and named.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use towline::manifest::{Form, Manifest};
use towline::position::{FileId, Lsn, SystemId};

use super::full::noise;
use crate::support::Bed;
use crate::support::backup::Backup;
use crate::support::bed::{copy_tree, is_root, program_in};
use crate::support::node::towline;
use crate::support::sets::{Past, compressed, edit, flip, pack, settled, sha, tarred};

fn verify<S: AsRef<std::ffi::OsStr>>(path: &Path, words: &[S]) -> Output {
    Command::new(towline()).arg("verify").arg(path).args(words).output().expect("run towline verify")
}

/// Exit code, and the problems as (path, kind).
fn problems(path: &Path, words: &[&str]) -> (Option<i32>, Vec<(String, String)>) {
    let out = verify(path, &[words, &["--json"]].concat());
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let value: Value = serde_json::from_str(&text)
        .unwrap_or_else(|e| panic!("{e}: {text}{}", String::from_utf8_lossy(&out.stderr)));
    let of = |p: &Value, key: &str| p[key].as_str().expect("a text").to_owned();
    let list = value["problems"].as_array().expect("a list");
    (out.status.code(), list.iter().map(|p| (of(p, "path"), of(p, "problem"))).collect())
}

fn good(path: &Path) {
    let found = problems(path, &[]);
    assert_eq!(found, (Some(0), vec![]), "{}", path.display());
}

fn fill(data: &Path) {
    fs::write(data.join("one"), "content").expect("write");
    fs::write(data.join("large"), noise(300_000)).expect("write");
    fs::create_dir_all(data.join("dir/empty")).expect("mkdir");
    fs::write(data.join("dir/file"), noise(50_000)).expect("write");
    fs::write(data.join("nothing"), "").expect("write");
    fs::hard_link(data.join("one"), data.join("dir/another name")).expect("link");
    symlink("../one", data.join("dir/points")).expect("symlink");
}

/// A backup in form tree, taken by the program.
fn tree(bed: &Bed) -> PathBuf {
    let spec = bed.leader("leader");
    fill(&spec.data);
    let leader = spec.start();
    let out = bed.path("tree");
    Backup::new(leader.spec.listen, &out).good();
    out
}

/// One kind of damage: what is done, and what has to be said of it, as `path kind`.
type Damage = (&'static str, fn(&Path), &'static [&'static str]);

fn all_found(whole: &Path, damages: &[Damage]) {
    good(whole);
    for (name, damage, want) in damages {
        let hurt = whole.with_file_name("hurt");
        copy_tree(whole, &hurt);
        damage(&hurt);
        let (code, found) = problems(&hurt, &[]);
        let found: Vec<String> = found.into_iter().map(|(path, kind)| format!("{path} {kind}")).collect();
        assert!(code == Some(1) && !found.is_empty(), "{name}: {code:?} {found:?}");
        for want in *want {
            assert!(found.iter().any(|f| f == want), "{name}: {want} is not in {found:?}");
        }
        assert_eq!(found.len(), want.len(), "{name}: {found:?}");
        fs::remove_dir_all(&hurt).expect("remove");
    }
}

fn append(path: &Path) {
    fs::OpenOptions::new().append(true).open(path).and_then(|mut f| f.write_all(b"x")).expect("append");
}

fn cut(path: &Path) {
    let file = fs::OpenOptions::new().write(true).open(path).expect("open");
    // A segment that is written yet has room behind what is in it.
    let bytes = fs::read(path).expect("read");
    let len = bytes.iter().rposition(|&b| b != 0).expect("something is in it");
    file.set_len(len as u64).expect("cut");
}

fn replace(path: &Path, from: &str, to: &str) {
    let text = fs::read_to_string(path).expect("read");
    assert!(text.contains(from), "{from}");
    fs::write(path, text.replacen(from, to, 1)).expect("write");
}

fn file<'m>(m: &'m mut Manifest, path: &str) -> &'m mut towline::manifest::File {
    m.files.iter_mut().find(|f| f.path == path.as_bytes()).expect("a file")
}

const TREE: &[Damage] = &[
    ("an extra file", |d| fs::write(d.join("data/extra"), "").expect("write"), &["data/extra extra"]),
    ("an extra file beside", |d| fs::write(d.join("notes"), "").expect("write"), &["notes extra"]),
    (
        "an extra directory",
        |d| fs::create_dir(d.join("data/dir/new")).expect("mkdir"),
        &["data/dir/new extra"],
    ),
    ("an extra directory beside", |d| fs::create_dir(d.join("more")).expect("mkdir"), &["more extra"]),
    ("an extra symlink", |d| symlink("one", d.join("data/link")).expect("symlink"), &["data/link extra"]),
    ("a missing file", |d| fs::remove_file(d.join("data/large")).expect("rm"), &["data/large missing"]),
    ("a missing name of a file", |d| fs::remove_file(d.join("data/one")).expect("rm"), &["data/one missing"]),
    (
        "a missing directory",
        |d| fs::remove_dir(d.join("data/dir/empty")).expect("rm"),
        &["data/dir/empty missing"],
    ),
    (
        "a missing symlink",
        |d| fs::remove_file(d.join("data/dir/points")).expect("rm"),
        &["data/dir/points missing"],
    ),
    ("an appended file", |d| append(&d.join("data/large")), &["data/large size"]),
    ("a file that was empty", |d| append(&d.join("data/nothing")), &["data/nothing size"]),
    ("a truncated file", |d| cut(&d.join("data/dir/file")), &["data/dir/file size"]),
    (
        "one bit of a file",
        |d| flip(&d.join("data/dir/file")),
        &["data/dir/file content", "data/dir/file catalog"],
    ),
    (
        "a symlink for a file",
        |d| {
            fs::rename(d.join("data/large"), d.join("../outside")).expect("rename");
            symlink("../../outside", d.join("data/large")).expect("symlink");
        },
        &["data/large kind"],
    ),
    (
        "another target",
        |d| {
            fs::remove_file(d.join("data/dir/points")).expect("rm");
            symlink("../two", d.join("data/dir/points")).expect("symlink");
        },
        &["data/dir/points kind"],
    ),
    (
        "a file for a directory",
        |d| {
            fs::remove_dir(d.join("data/dir/empty")).expect("rm");
            fs::write(d.join("data/dir/empty"), "").expect("write");
        },
        &["data/dir/empty extra", "data/dir/empty kind"],
    ),
    ("a bit of the catalog", |d| flip(&d.join("catalog")), &["catalog content", "catalog catalog"]),
    ("no catalog", |d| fs::remove_file(d.join("catalog")).expect("rm"), &["catalog missing"]),
    ("a bit of the hashes", |d| flip(&d.join("blocks")), &["blocks content", "blocks blocks"]),
    ("cut hashes", |d| cut(&d.join("blocks")), &["blocks size"]),
    ("no manifest", |d| fs::remove_file(d.join("manifest.json")).expect("rm"), &["manifest.json manifest"]),
    ("a cut manifest", |d| cut(&d.join("manifest.json")), &["manifest.json manifest"]),
    (
        "a size in the manifest",
        |d| replace(&d.join("manifest.json"), "\"size\": 300000", "\"size\": 300001"),
        &["manifest.json manifest", "data/large size", "data/large catalog"],
    ),
    (
        "a path in the manifest that leads out",
        |d| replace(&d.join("manifest.json"), "\"path\": \"large\"", "\"path\": \"../a\""),
        &["manifest.json manifest", "manifest.json manifest"],
    ),
    (
        "another system in the manifest",
        |d| edit(d, |m| m.system = SystemId(m.system.0 ^ 1)),
        &["catalog catalog", "data/large catalog", "data/dir/another name catalog", "data/dir/file catalog"],
    ),
    ("another end in the manifest", |d| edit(d, |m| m.end = Lsn(m.end.0 + 8)), &["catalog catalog"]),
    ("a sum in the manifest", |d| edit(d, |m| file(m, "large").sha256 = sha(b"")), &["data/large content"]),
    (
        "an id in the manifest",
        |d| edit(d, |m| file(m, "large").id = FileId(1 << 40)),
        &["data/large catalog"],
    ),
    (
        "a file that the manifest does not name",
        |d| edit(d, |m| m.files.retain(|f| f.path != b"large")),
        &["data/large extra", "data/large catalog"],
    ),
    (
        "hashes of a file that is not there",
        |d| {
            let mut bytes = fs::read(d.join("blocks")).expect("read");
            bytes.truncate(bytes.len() - 4);
            bytes.extend_from_slice(&(1_u64 << 40).to_le_bytes());
            bytes.extend_from_slice(&0_u32.to_le_bytes());
            let crc = crc32c::crc32c(&bytes);
            bytes.extend_from_slice(&crc.to_le_bytes());
            fs::write(d.join("blocks"), bytes).expect("write");
            edit(d, |_| ());
        },
        &["blocks blocks"],
    ),
];

#[test]
fn every_damage_to_a_tree_is_found_and_named() {
    let bed = Bed::new("verify-tree");
    let whole = tree(&bed);
    all_found(&whole, TREE);
}

/// The tree at the start, and several segments of log.
fn past(bed: &Bed) -> Past {
    Past::new(bed, fill, |data| fs::write(data.join("large"), noise(200_000)).expect("write"))
}

/// A segment of a set, counted from the first.
fn segment(dir: &Path, n: usize) -> PathBuf {
    let mut all: Vec<_> =
        fs::read_dir(dir.join("log")).expect("list").map(|e| e.expect("entry").path()).collect();
    all.sort();
    all[if n == usize::MAX { all.len() - 1 } else { n }].clone()
}

const TAR: &[Damage] = &[
    ("a bit of a file", |d| flip(&d.join("base/large")), &["base/large content"]),
    ("an extra file", |d| fs::write(d.join("base/extra"), "").expect("write"), &["base/extra extra"]),
    ("an extra directory", |d| fs::create_dir(d.join("base/extra")).expect("mkdir"), &["base/extra extra"]),
    ("an extra segment", |d| fs::write(d.join("log/x"), "").expect("write"), &["log/x extra"]),
    ("another start", |d| edit(d, |m| m.start = Lsn(m.start.0 + 8)), &["catalog catalog"]),
];

const LOG: &[Damage] = &[
    ("a bit of a segment", |d| flip(&segment(d, 1)), &["1 content", "1 log"]),
    (
        "a bit of a segment, sealed again",
        |d| {
            flip(&segment(d, 1));
            edit(d, |_| ());
        },
        &["1 log"],
    ),
    ("a missing segment", |d| fs::remove_file(segment(d, 1)).expect("rm"), &["1 missing", "2 log"]),
    (
        "a cut end, sealed again",
        |d| {
            cut(&segment(d, usize::MAX));
            edit(d, |_| ());
        },
        &["* log"],
    ),
    (
        "two segments exchanged, sealed again",
        |d| {
            let (a, b) = (segment(d, 1), segment(d, 2));
            fs::rename(&a, d.join("x")).expect("rename");
            fs::rename(&b, &a).expect("rename");
            fs::rename(d.join("x"), &b).expect("rename");
            edit(d, |_| ());
        },
        &["1 log", "2 log"],
    ),
    (
        "log that does not reach the end",
        |d| edit(d, |m| (m.end, m.log[0].end) = (Lsn(m.end.0 + 64), Lsn(m.end.0 + 64))),
        &["* log"],
    ),
];

/// Like `all_found`; a number stands for that segment, a star for any.
fn log_found(whole: &Path) {
    for (name, damage, want) in LOG {
        let names: Vec<String> = (0..3)
            .map(|n| segment(whole, n).file_name().expect("name").to_string_lossy().into_owned())
            .collect();
        let hurt = whole.with_file_name("hurt");
        copy_tree(whole, &hurt);
        damage(&hurt);
        let (code, found) = problems(&hurt, &[]);
        let mut found: Vec<String> = found.into_iter().map(|(path, kind)| format!("{path} {kind}")).collect();
        let all = found.clone();
        for want in *want {
            let at = found.iter().position(|f| match want.strip_prefix("* ") {
                Some(kind) => f.starts_with("log/") && f.ends_with(kind),
                None => {
                    let (n, kind) = want.split_once(' ').expect("two words");
                    *f == format!("log/{} {kind}", names[n.parse::<usize>().expect("a number")])
                }
            });
            found.remove(at.unwrap_or_else(|| panic!("{name}: {want} is not in {all:?}")));
        }
        assert!(code == Some(1) && found.is_empty(), "{name}: {code:?} {all:?}");
        // Whoever does not want to hear of log does not.
        let words = ["--no-log"];
        let (code, found) = problems(&hurt, &words);
        assert!(found.iter().all(|(path, _)| !path.starts_with("log/")), "{name}: {code:?} {found:?}");
        fs::remove_dir_all(&hurt).expect("remove");
    }
}

#[test]
fn every_damage_to_a_tar_and_to_its_log_is_found_and_named() {
    let bed = Bed::new("verify-tar");
    let (whole, past) = (bed.path("tar"), past(&bed));
    past.set(Form::Tar, None, &whole);
    assert!(fs::read_dir(whole.join("log")).expect("list").count() >= 4, "several segments");
    all_found(&whole, TAR);
    log_found(&whole);
    // The same as one file, plain or compressed, and from a pipe.
    let (plain, zstd) = (bed.path("b.tar"), bed.path("b.tar.zst"));
    tarred(&whole, &plain);
    compressed(&plain, &zstd);
    good(&plain);
    good(&zstd);
    let input = fs::File::open(&zstd).expect("open");
    let out = Command::new(towline()).args(["verify", "-"]).stdin(Stdio::from(input)).output().expect("run");
    assert!(out.status.success(), "{out:?}");
    flip(&whole.join("base/large"));
    fs::write(whole.join("base/extra"), "").expect("write");
    fs::remove_file(segment(&whole, 1)).expect("rm");
    tarred(&whole, &plain);
    let (code, found) = problems(&plain, &[]);
    let has = |path: &str, kind: &str| found.iter().any(|(p, k)| p.contains(path) && k == kind);
    assert_eq!(code, Some(1));
    assert!(
        has("base/large", "content") && has("base/extra", "extra") && has("log/", "missing"),
        "{found:?}"
    );
    // One that ends early has no manifest: that is its last member.
    for path in [&plain, &zstd] {
        let file = fs::OpenOptions::new().write(true).open(path).expect("open");
        file.set_len(file.metadata().expect("stat").len() * 9 / 10).expect("cut");
        let (code, found) = problems(path, &[]);
        assert_eq!(code, Some(1));
        assert!(found.iter().any(|(_, kind)| kind == "unreadable"), "{found:?}");
    }
}

const PACKS: &[Damage] = &[
    ("a bit of a pack", |d| flip(&d.join("pack-00001")), &["pack-00001 content", "pack-00001 pack"]),
    ("a missing pack", |d| fs::remove_file(d.join("pack-00002")).expect("rm"), &["pack-00002 missing"]),
    ("an extra pack", |d| fs::write(d.join("pack-00003"), "").expect("write"), &["pack-00003 extra"]),
    (
        "a cut pack, sealed again",
        |d| {
            cut(&d.join("pack-00002"));
            edit(d, |_| ());
        },
        &["pack-00002 pack"],
    ),
    (
        "a pack without its last frame, sealed again",
        |d| {
            // Without compression the frame of an end is 31 bytes.
            let bytes = fs::read(d.join("pack-00002")).expect("read");
            fs::write(d.join("pack-00002"), &bytes[..bytes.len() - 31]).expect("write");
            edit(d, |_| ());
        },
        &[" pack"],
    ),
    (
        "a pack of another system, sealed again",
        |d| {
            let mut other = None;
            edit(d, |m| other = Some(Manifest { system: SystemId(9), ..m.clone() }));
            let content = noise(10);
            let bytes = pack(&other.expect("a manifest"), [(FileId(2), &content[..])].into_iter());
            fs::write(d.join("pack-00003"), bytes).expect("write");
            let part = |m: &mut Manifest| {
                let mut part = m.parts.last().expect("a pack").clone();
                part.name = "pack-00003".to_owned();
                let bytes = fs::read(d.join("pack-00003")).expect("read");
                (part.size, part.sha256) = (bytes.len() as u64, sha(&bytes));
                m.parts.push(part);
            };
            edit(d, part);
        },
        &["pack-00003 pack"],
    ),
    (
        "a pack with a file that nobody knows, sealed again",
        |d| {
            edit(d, |m| {
                let bytes = pack(m, [(FileId(1 << 40), &b"x"[..])].into_iter());
                let mut part = m.parts.last().expect("a pack").clone();
                (part.name, part.size, part.sha256) =
                    ("pack-00003".to_owned(), bytes.len() as u64, sha(&bytes));
                fs::write(d.join("pack-00003"), bytes).expect("write");
                m.parts.push(part);
            });
        },
        &["pack-00003 pack"],
    ),
];

#[test]
fn every_damage_to_packs_is_found_and_named() {
    let bed = Bed::new("verify-packs");
    let whole = bed.path("packs");
    past(&bed).set(Form::Packs, None, &whole);
    all_found(&whole, PACKS);
    log_found(&whole);
}

#[test]
fn what_is_to_be_ignored_is_and_nothing_else_and_the_first_problem_may_be_the_last() {
    let bed = Bed::new("verify-ignore");
    let dir = tree(&bed);
    let say = |words: &[&str]| {
        let (code, found) = problems(&dir, words);
        (code, found.into_iter().map(|(path, _)| path).collect::<Vec<_>>())
    };
    fs::write(dir.join("data/large"), &noise(300_001)[1..]).expect("write");
    // Of the same size: only its content tells.
    assert_eq!(say(&["--no-content"]), (Some(0), vec![]));
    assert_eq!(say(&[]).1, ["data/large", "data/large"]);
    fs::write(dir.join("data/largest"), "").expect("write");
    fs::remove_file(dir.join("data/dir/file")).expect("rm");
    assert_eq!(say(&["--no-content"]), (Some(1), vec!["data/dir/file".into(), "data/largest".into()]));
    assert_eq!(say(&["-i", "data/large"]).1, ["data/dir/file", "data/largest"]);
    assert_eq!(say(&["-i", "./data/large/", "-i", "data/dir"]).1, ["data/largest"]);
    assert_eq!(say(&["-i", "data"]), (Some(0), vec![]));
    assert_eq!(say(&["-i", "large"]).1.len(), 4);
    assert_eq!(say(&["--exit-on-error"]).1.len(), 1);
    let out = verify(&dir, &["--quiet"]);
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(out.status.code() == Some(1) && text.lines().count() == 4, "{text}");
    assert!(text.contains("data/dir/file: the manifest names it, and it is not there"), "{text}");
    let out = verify(&dir, &[""; 0]);
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(
        text.lines().last().is_some_and(|l| l.contains("(form tree, as of ") && l.ends_with("4 problems")),
        "{text}"
    );
    let out = verify(&dir, &["--quiet", "-i", "data"]);
    assert!(out.status.success() && out.stdout.is_empty() && out.stderr.is_empty(), "{out:?}");
    for (path, words) in [
        (&bed.path("nowhere"), vec![]),
        (&bed.path("leader"), vec![]),
        (&dir, vec!["--no-such-flag"]),
        (&dir, vec!["--quiet", "--json"]),
        (&dir.join("data/large"), vec![]),
    ] {
        let out = verify(path, &words);
        assert_eq!(out.status.code(), Some(64), "{}: {out:?}", path.display());
    }
}

#[test]
fn what_cannot_be_read_is_named() {
    if !is_root() {
        println!("skipped: needs root");
        return;
    }
    let bed = Bed::new("verify-closed");
    let dir = tree(&bed);
    let program = program_in(&bed);
    let nobody = || {
        let mut setpriv = Command::new("setpriv");
        setpriv.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]).arg(&program);
        let out = setpriv.args(["verify", "--quiet"]).arg(&dir).output().expect("run");
        (out.status.code(), String::from_utf8_lossy(&out.stdout).into_owned())
    };
    let chmod = |path: &str, mode| {
        fs::set_permissions(dir.join(path), fs::Permissions::from_mode(mode)).expect("chmod");
    };
    for path in [".", "data", "data/dir", "data/dir/empty", "log"] {
        if dir.join(path).exists() {
            chmod(path, 0o755);
        }
    }
    for path in ["manifest.json", "catalog", "blocks"] {
        chmod(path, 0o644);
    }
    assert_eq!(nobody(), (Some(0), String::new()));
    chmod("data/large", 0o600);
    let (code, text) = nobody();
    assert!(code == Some(1) && text.starts_with("data/large: it can't be read: "), "{text}");
    chmod("data/large", 0o644);
    // Not to be listed, and not to be searched.
    for mode in [0o711, 0o744] {
        chmod("data/dir", mode);
        let (code, text) = nobody();
        assert!(
            code == Some(1) && text.contains("data/dir") && text.contains("it can't be read: "),
            "{mode:o}: {text}"
        );
    }
}

#[test]
fn a_state_directory_is_checked_while_a_node_runs_in_it() {
    let bed = Bed::new("verify-state");
    let spec = bed.leader("leader").set("segment_timeout", "\"100ms\"").set("keep_segments", "1000");
    fill(&spec.data);
    let mut leader = spec.start();
    settled(&leader);
    let state = leader.spec.state.clone();
    for _ in 0..3 {
        crate::support::slot::next_segment(&leader);
        good(&state);
    }
    leader.stop();
    good(&state);
    let list = |sub: &str| {
        let mut all: Vec<_> =
            fs::read_dir(state.join(sub)).expect("list").map(|e| e.expect("entry").path()).collect();
        all.sort();
        all
    };
    let name = |path: &Path| path.strip_prefix(&state).expect("below").to_string_lossy().into_owned();
    let newest = list("catalog").pop().expect("a checkpoint");
    let hashes: Vec<_> = walkdir::WalkDir::new(state.join("blocks"))
        .into_iter()
        .flatten()
        .filter(|e| e.file_name().len() == 16)
        .map(walkdir::DirEntry::into_path)
        .collect();
    let segments = list("log");
    for (path, kind) in [
        (&state.join("control"), "state"),
        (&segments[1], "log"),
        (&newest, "catalog"),
        (&hashes[0], "blocks"),
    ] {
        let whole = fs::read(path).expect("read");
        flip(path);
        let (code, found) = problems(&state, &[]);
        assert!(
            code == Some(1) && found.contains(&(name(path), kind.to_owned())),
            "{}: {found:?}",
            path.display()
        );
        fs::write(path, whole).expect("write");
    }
    // A hole, and a log that begins too late.
    let aside = bed.path("aside");
    fs::rename(&segments[1], &aside).expect("rename");
    let (code, found) = problems(&state, &[]);
    assert!(code == Some(1) && found.iter().all(|(_, kind)| kind == "log"), "{found:?}");
    fs::rename(&aside, &segments[1]).expect("rename");
    good(&state);
    for segment in &segments {
        fs::remove_file(segment).expect("rm");
    }
    let (code, _) = problems(&state, &[]);
    assert_eq!(code, Some(1), "a state directory without its log");
}

#[test]
fn an_archive_is_read_object_by_object() {
    let bed = Bed::new("verify-archive");
    let archive = bed.path("archive");
    fs::create_dir(&archive).expect("mkdir");
    let spec = bed.leader("leader").set("segment_timeout", "\"100ms\"");
    let mut leader = spec.set("archive", &format!("\"file://{}\"", archive.display())).start();
    for _ in 0..3 {
        crate::support::slot::next_segment(&leader);
    }
    let objects = || -> Vec<PathBuf> {
        let all = walkdir::WalkDir::new(archive.join("log")).sort_by_file_name().into_iter().flatten();
        all.filter(|e| e.file_type().is_file()).map(walkdir::DirEntry::into_path).collect()
    };
    crate::support::until(crate::support::within(30), "three segments are archived", || {
        if objects().len() >= 3 { Ok(()) } else { Err(format!("{:?}", objects())) }
    });
    leader.stop();
    good(&archive);
    good(Path::new(&format!("file://{}", archive.display())));
    let segments = objects();
    flip(&segments[0]);
    assert_eq!(problems(&archive, &["--no-content"]).0, Some(0));
    let log = ("log".to_owned(), "log".to_owned());
    assert_eq!(problems(&archive, &[]), (Some(1), vec![log.clone()]));
    assert_eq!(problems(&archive, &["--no-log"]).0, Some(0));
    flip(&segments[0]);
    good(&archive);
    fs::remove_file(&segments[1]).expect("rm");
    let (code, found) = problems(&archive, &["--no-content"]);
    assert_eq!((code, found), (Some(1), vec![log]));
    let out = verify(Path::new("s4://bucket"), &[""; 0]);
    assert_eq!(out.status.code(), Some(64), "{out:?}");
}

#[test]
fn a_replay_restores_and_finds_what_sums_cannot() {
    let bed = Bed::new("verify-replay");
    let scratch = bed.path("scratch");
    fs::create_dir(&scratch).expect("mkdir");
    let words = ["--replay", "--scratch", scratch.to_str().expect("UTF-8")];
    let replayed = |path: &Path| {
        let found = problems(path, &words);
        assert_eq!(fs::read_dir(&scratch).expect("list").count(), 0, "the scratch directory is removed");
        found
    };
    let tree = tree(&bed);
    assert_eq!(replayed(&tree), (Some(0), vec![]));
    let tar = bed.path("tar");
    past(&bed).set(Form::Tar, None, &tar);
    assert_eq!(replayed(&tar), (Some(0), vec![]));
    // Every sum is right: that the file was another when the backup was made shows only when it is restored.
    flip(&tar.join("base/dir/file"));
    edit(&tar, |m| {
        let bytes = fs::read(tar.join("base/dir/file")).expect("read");
        file(m, "dir/file").sha256 = sha(&bytes);
    });
    good(&tar);
    let (code, found) = replayed(&tar);
    assert!(
        code == Some(1) && found.iter().all(|(_, kind)| kind == "replay") && !found.is_empty(),
        "{found:?}"
    );
    // A damaged one is not restored.
    flip(&tree.join("data/large"));
    assert!(replayed(&tree).1.iter().all(|(_, kind)| kind != "replay"));
    let both = ["--replay", "--no-content"];
    for (path, words) in [(bed.path("leader/state"), &both[..1]), (tree.clone(), &both[..])] {
        let out = verify(&path, words);
        assert_eq!(out.status.code(), Some(64), "{out:?}");
    }
}
