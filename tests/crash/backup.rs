//! A base backup dies at every place of its making: nothing looks finished, nothing stays on the leader, and what is there can
//! be gone on with.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::support::backup::{Backup, WORK, checked, forgotten};
use crate::support::{Bed, assert_equal, load};

/// Where one of form tree is killed; of the modules that it works with those places that it passes for certain.
const TREE: &[&str] =
    &["backup::begun", "backup::copied", "backup::replayed", "backup::summed", "backup::cleared"];
/// Where those are killed that are not replayed.
const STORED: &[&str] = &[
    "backup::contents",
    "backup::pack",
    "backup::collected",
    "backup::parts",
    "disk::before_rename",
    "backup::summed",
    "backup::cleared",
    "archive::aside",
];

/// Whether a backup is killed there.
pub(crate) fn kills(point: &str) -> bool {
    TREE.contains(&point) || STORED.contains(&point)
}

#[test]
fn a_backup_killed_anywhere_leaves_nothing_that_looks_finished() {
    let bed = Bed::new("crash-backup");
    let spec = bed.leader("leader");
    load::burst(&spec.data.join("load"), 9, 300);
    let leader = spec.start();
    let others = ["fill::manifest", "fill::file", "fill::done", "fill::end", "disk::before_rename"];
    for point in TREE.iter().chain(&others) {
        let out = bed.path(point.replace("::", "-"));
        let killed =
            Backup::new(leader.spec.listen, &out).env("TOWLINE_FAILPOINTS", &format!("{point}=kill")).run();
        assert_eq!(killed.status.signal(), Some(9), "it never came to {point}");
        assert!(!out.join("manifest.json").exists(), "{point}");
        forgotten(&leader);
        if out.join(WORK).join("backup.json").exists() {
            Backup::new(leader.spec.listen, &out).args(["--resume"]).good();
        } else {
            // It had hardly begun, or was all but complete.
            fs::remove_dir_all(&out).expect("rm");
            Backup::new(leader.spec.listen, &out).good();
        }
        assert_equal(leader.data(), &out.join("data"));
    }
    leader.assert_no_panic();
}

/// The names in a tar stream, as far as it goes.
fn listed(tar: &Path) -> Vec<String> {
    let out = Command::new("tar").arg("-tf").arg(tar).env("LC_ALL", "C").output().expect("run tar");
    String::from_utf8_lossy(&out.stdout).lines().map(str::to_owned).collect()
}

/// Runs one that is not replayed: into the archive, as a stream, or standing on another in a directory.
fn stored(port: u16, out: &Path, label: &str, (scratch, base, tar): (&Path, &Path, &Path)) -> Backup {
    let new = Backup::new(port, out).args(["--label", label]);
    fs::File::create(tar).expect("create");
    if out.is_absolute() {
        new.args(["--incremental"]).args([base])
    } else {
        new.args(["--scratch"]).args([scratch])
    }
}

#[test]
fn a_stream_or_packs_killed_anywhere_leave_nothing_that_looks_finished() {
    let bed = Bed::new("crash-stored");
    let spec = bed.leader("leader");
    load::burst(&spec.data.join("load"), 9, 300);
    let leader = spec.start();
    let (base, archive, tar, scratch) =
        (bed.path("base"), bed.path("archive"), bed.path("out.tar"), bed.path("scratch"));
    Backup::new(leader.spec.listen, &base).args(["--label", "base"]).good();
    fs::write(leader.data().join("changed"), [7; 100_000]).expect("write");
    [&archive, &scratch].into_iter().for_each(|dir| fs::create_dir(dir).expect("mkdir"));
    let (stream, url, folder) =
        (PathBuf::from("-"), PathBuf::from(format!("file://{}", archive.display())), bed.path("out"));
    let run = |out: &Path, label: &str, fault: &str| {
        let mut command = stored(leader.spec.listen, out, label, (&scratch, &base, &tar));
        let to = if out == stream { fs::File::create(&tar).expect("create").into() } else { Stdio::null() };
        command = if fault.is_empty() { command } else { command.env("TOWLINE_FAILPOINTS", fault) };
        command.run_into(to).status
    };
    for point in STORED {
        let outs: &[&Path] = match *point {
            "backup::contents" | "backup::collected" => &[&stream, &url],
            "backup::pack" => &[&url, &folder],
            "archive::aside" => &[&url],
            "backup::parts" => &[&stream, &url, &folder],
            _ => &[&folder],
        };
        for &out in outs {
            let label = point.replace("::", "-");
            let killed = run(out, &label, &format!("{point}=kill"));
            assert_eq!(killed.signal(), Some(9), "{} never came to {point}", out.display());
            assert!(!listed(&tar).iter().any(|n| n == "manifest.json"), "{point}");
            let set = archive.join("backup").join(label);
            assert!([&folder, &set].iter().all(|dir| !dir.join("manifest.json").exists()), "{point}");
            forgotten(&leader);
            if folder.exists() {
                fs::remove_dir_all(&folder).expect("rm");
            }
        }
    }
    // What is left of them is in nobody's way.
    for out in [&url, &folder, &stream] {
        assert_eq!(run(out, "again", "").code(), Some(0), "{}", out.display());
    }
    assert_eq!(listed(&tar).last().map(String::as_str), Some("manifest.json"));
    checked(&folder);
    checked(&archive.join("backup/again"));
    leader.assert_no_panic();
}
