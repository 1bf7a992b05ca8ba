//! What an operator runs beside towline: the installer, the check for cron, the examples, the units.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::support::bed::Bed;
use crate::support::node::towline;

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts").join(name)
}

/// Runs the installer; nothing of it touches this host, because all goes below `root`.
fn install(root: &Path, words: &[&str]) -> Output {
    let mut command = Command::new("sh");
    command.arg(script("install.sh")).arg("--destdir").arg(root).args(["--program", &towline()]).args(words);
    command.output().expect("run install.sh")
}

fn said(out: &Output) -> String {
    String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr)
}

/// Every file below a directory with its mode and size.
fn tree(root: &Path) -> BTreeMap<String, (u32, u64)> {
    let mut out = BTreeMap::new();
    for entry in walkdir::WalkDir::new(root).min_depth(1) {
        let entry = entry.expect("walk");
        let meta = entry.metadata().expect("stat");
        let name = entry.path().strip_prefix(root).expect("below").display().to_string();
        if meta.is_file() {
            out.insert(name, (meta.permissions().mode() & 0o7777, meta.len()));
        }
    }
    out
}

#[test]
fn what_is_installed_is_all_that_is_removed() {
    let bed = Bed::new("install");
    let root = bed.path("root");
    fs::create_dir(&root).expect("mkdir");
    let out = install(&root, &["--systemd", "257"]);
    assert!(out.status.success(), "{}", said(&out));
    let first = tree(&root);
    for (name, mode) in [
        ("usr/local/bin/towline", 0o755),
        ("usr/local/share/man/man1/towline-status.1", 0o644),
        ("usr/local/share/man/man5/towline.toml.5", 0o644),
        ("usr/local/share/bash-completion/completions/towline", 0o644),
        ("usr/local/lib/systemd/system/towline@.service", 0o644),
        ("usr/local/lib/systemd/system/towline-check@.timer", 0o644),
        ("usr/local/lib/sysusers.d/towline.conf", 0o644),
        ("usr/local/lib/towline/check-cron.sh", 0o755),
        ("usr/local/lib/towline/basebackup.sh", 0o755),
        ("usr/local/lib/systemd/system/towline-basebackup@.service", 0o644),
    ] {
        assert_eq!(first.get(name).map(|f| f.0), Some(mode), "{name}: {first:?}");
    }
    let unit = fs::read_to_string(root.join("usr/local/lib/systemd/system/towline@.service")).expect("unit");
    assert!(unit.contains("ExecStart=/usr/local/bin/towline run "), "{unit}");
    // Once more: the same. For an older systemd: one file more, which is gone again for the newer.
    assert!(install(&root, &["--systemd", "257"]).status.success());
    assert_eq!(tree(&root), first);
    assert!(install(&root, &["--systemd", "252"]).status.success());
    let reload = "usr/local/lib/systemd/system/towline@.service.d/reload.conf";
    assert!(tree(&root).contains_key(reload));
    // What others put there, and what an operator wrote, stays.
    for mine in ["etc/towline/app.toml", "usr/local/bin/other", "usr/local/share/doc/towline/notes"] {
        let path = root.join(mine);
        fs::create_dir_all(path.parent().expect("parent")).expect("mkdir");
        fs::write(path, "mine").expect("write");
    }
    assert!(install(&root, &["--systemd", "257"]).status.success());
    assert!(!root.join(reload).exists() && !root.join(reload).parent().expect("parent").exists());
    let out = install(&root, &["--uninstall"]);
    assert!(out.status.success(), "{}", said(&out));
    let left: Vec<String> = tree(&root).into_keys().collect();
    assert_eq!(left, ["etc/towline/app.toml", "usr/local/bin/other", "usr/local/share/doc/towline/notes"]);
    // There is nothing to remove any more, and it says so.
    let out = install(&root, &["--uninstall"]);
    assert!(out.status.code() == Some(1) && said(&out).contains("nothing was installed"), "{}", said(&out));
}

#[test]
fn an_installation_that_breaks_off_can_be_removed() {
    let bed = Bed::new("install-broken");
    let root = bed.path("root");
    // A directory stands where a page belongs: the installer can't go on there.
    fs::create_dir_all(root.join("usr/local/share/man/man5/towline.toml.5")).expect("mkdir");
    fs::write(root.join("usr/local/share/man/man5/towline.toml.5/x"), "x").expect("write");
    let out = install(&root, &[]);
    assert!(out.status.code() == Some(1) && said(&out).contains("is a directory"), "{}", said(&out));
    assert!(root.join("usr/local/bin/towline").exists());
    let out = install(&root, &["--uninstall"]);
    assert!(out.status.success(), "{}", said(&out));
    let left: Vec<String> = tree(&root).into_keys().collect();
    assert_eq!(left, ["usr/local/share/man/man5/towline.toml.5/x"]);
}

#[test]
fn the_installer_refuses_what_it_cant_do_and_says_what_to_do() {
    let bed = Bed::new("install-refused");
    for (words, code, word) in [
        (&["--prefix"][..], 2, "needs a value"),
        (&["--colour"], 2, "unknown option"),
        (&["--prefix", "usr"], 2, "not absolute"),
        (&["--prefix", "/a b"], 2, "letters"),
        (&["--systemd", "new"], 2, "version"),
        (&["--program", "/nowhere/towline"], 1, "cargo build"),
    ] {
        let out = install(&bed.path("root"), words);
        assert_eq!(out.status.code(), Some(code), "{words:?}: {}", said(&out));
        assert!(said(&out).contains(word), "{words:?}: {}", said(&out));
    }
    assert!(!bed.path("root").exists());
}

#[test]
fn cron_hears_of_changes_only() {
    let bed = Bed::new("cron");
    let (program, state) = (bed.path("towline"), bed.path("state"));
    let cron = |code: i32| {
        let text = format!(
            "#!/bin/sh\n[ \"$*\" = 'check --max-lag 30s' ] || exit 9\necho 'lag is {code}'\nexit {code}\n"
        );
        fs::write(&program, text).expect("write");
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("chmod");
        let out = Command::new("sh")
            .arg(script("check-cron.sh"))
            .arg(&state)
            .args(["--max-lag", "30s"])
            .env("TOWLINE", &program)
            .output()
            .expect("run");
        assert!(out.status.success() && out.stderr.is_empty(), "{}", said(&out));
        said(&out)
    };
    assert_eq!(cron(0), "", "well from the beginning");
    let text = cron(2);
    assert!(
        text.contains("CRITICAL since") && text.contains("OK from") && text.contains("lag is 2"),
        "{text}"
    );
    assert_eq!(cron(2), "");
    assert!(cron(1).contains("WARNING since"));
    assert!(cron(3).contains("UNKNOWN since"));
    assert_eq!(cron(9), "", "every other code is unknown, too");
    assert!(cron(0).contains("OK since"));
    assert_eq!(cron(0), "");
    // A directory holds the file; alone it is the one of the node.
    let dir = bed.path("node");
    fs::create_dir(&dir).expect("mkdir");
    let asked = |words: &[&str]| {
        let text = format!(
            "#!/bin/sh\n[ \"$*\" = 'check --state {}' ] || exit 0\necho down\nexit 2\n",
            dir.display()
        );
        fs::write(&program, text).expect("write");
        let mut command = Command::new("sh");
        command.arg(script("check-cron.sh")).arg(&dir).args(words).env("TOWLINE", &program);
        let out = command.output().expect("run");
        assert!(out.status.success() && out.stderr.is_empty(), "{}", said(&out));
        said(&out)
    };
    assert!(asked(&[]).contains("CRITICAL since"));
    assert_eq!(asked(&[]), "", "only once");
    assert!(asked(&["--config", "x"]).contains("OK since"));
    // A state that can't be kept is said, and the answer with it.
    fs::write(&program, "#!/bin/sh\necho down\nexit 2\n").expect("write");
    let mut command = Command::new("sh");
    let out =
        command.arg(script("check-cron.sh")).arg(bed.path("no/where")).env("TOWLINE", &program).output();
    let out = out.expect("run");
    assert!(out.status.code() == Some(1) && said(&out).contains("cannot remember"), "{}", said(&out));
    assert!(said(&out).contains("down"), "{}", said(&out));
    let out = Command::new("sh").arg(script("check-cron.sh")).arg("--max-lag").output().expect("run");
    assert!(out.status.code() == Some(2) && said(&out).contains("usage"), "{}", said(&out));
}

#[test]
fn the_examples_are_configurations() {
    let bed = Bed::new("examples");
    let mut seen = 0;
    for entry in fs::read_dir(script("examples")).expect("list") {
        // On a host that has the directory of the application.
        let text = fs::read_to_string(entry.expect("entry").path()).expect("read");
        let path = bed.path(format!("{seen}.toml"));
        fs::write(&path, text.replace("/srv/app", bed.path("").to_str().expect("text"))).expect("write");
        let out = Command::new(towline()).args(["config", "check"]).arg(&path).output().expect("run");
        assert!(out.status.success(), "{}: {}", path.display(), said(&out));
        seen += 1;
    }
    assert!(seen >= 2);
}

/// The units as they are installed, with a program that is there.
fn units(bed: &Bed) -> PathBuf {
    let root = bed.path("root");
    assert!(install(&root, &["--systemd", "257"]).status.success());
    let dir = root.join("usr/local/lib/systemd/system");
    for entry in fs::read_dir(&dir).expect("list") {
        let path = entry.expect("entry").path();
        let text = fs::read_to_string(&path).expect("read");
        let text = text.replace("/usr/local/bin/towline", &towline());
        let lib = root.join("usr/local/lib/towline").display().to_string();
        fs::write(&path, text.replace("/usr/local/lib/towline", &lib)).expect("write");
    }
    dir
}

fn version_of_systemd() -> Option<u32> {
    let out = Command::new("systemd-analyze").arg("--version").output().ok()?;
    String::from_utf8_lossy(&out.stdout).split_whitespace().nth(1)?.parse().ok()
}

#[test]
fn systemd_finds_nothing_in_the_units() {
    let version = version_of_systemd().expect("systemd-analyze");
    let bed = Bed::new("units");
    let dir = units(&bed);
    for unit in [
        "towline@x.service",
        "towline-check@x.service",
        "towline-check@x.timer",
        "towline-basebackup@x.service",
        "towline-basebackup@x.timer",
    ] {
        let out = Command::new("systemd-analyze")
            .args(["verify", "--man=no"])
            .arg(dir.join(unit))
            .output()
            .expect("run systemd-analyze");
        let text = said(&out);
        // The one word that an older systemd doesn't know; there the installer adds a drop-in for it.
        let known =
            |l: &&str| version >= 253 || !l.contains("Failed to parse service type, ignoring: notify-reload");
        let left: Vec<&str> = text.lines().filter(known).collect();
        assert!(out.status.success() && left.is_empty(), "{unit}: {left:?}");
    }
    // Exposure, 0 to 10, times ten: a root daemon that may touch every file can't be at 0.
    for (unit, most) in [("towline@x.service", "35"), ("towline-check@x.service", "15")] {
        let out = Command::new("systemd-analyze")
            .args(["security", "--no-pager", "--offline=true", &format!("--threshold={most}")])
            .arg(dir.join(unit))
            .output()
            .expect("run systemd-analyze");
        let text = said(&out);
        let line = text.lines().find(|l| l.contains("Overall exposure")).unwrap_or_default();
        println!("{line}");
        assert!(out.status.success(), "{line}");
    }
}
