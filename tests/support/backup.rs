//! `towline basebackup` as a process, and a look at what it made that is not towline's own `verify`.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};

use sha2::{Digest, Sha256};
use towline::manifest::{Form, Manifest};

use super::node::{Node, towline};
use super::{until, within};

/// The hidden directory of one under way.
pub(crate) const WORK: &str = ".towline-backup";

/// A command to be run.
pub(crate) struct Backup {
    pub(crate) out: PathBuf,
    command: Command,
}

impl Backup {
    /// From the node that listens on `port`, into the directory `out`.
    pub(crate) fn new(port: u16, out: &Path) -> Self {
        // The kernel ends it with the test.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", &towline(), "basebackup", "--peer-timeout", "2s"]);
        command.args(["--leader", &format!("127.0.0.1:{port}"), "--out"]).arg(out);
        command.stdin(Stdio::null()).env_remove("TOWLINE_LOG");
        Self { out: out.to_owned(), command }
    }

    pub(crate) fn args<S: AsRef<std::ffi::OsStr>>(mut self, words: impl IntoIterator<Item = S>) -> Self {
        self.command.args(words);
        self
    }

    pub(crate) fn env(mut self, key: &str, value: &str) -> Self {
        self.command.env(key, value);
        self
    }

    /// Runs it to its end.
    pub(crate) fn run(&mut self) -> Output {
        self.command.output().expect("run towline basebackup")
    }

    /// The same, with its standard output going there.
    pub(crate) fn run_into(&mut self, to: Stdio) -> Output {
        let child = self.command.stdout(to).stderr(Stdio::piped()).spawn();
        child.and_then(Child::wait_with_output).expect("run towline basebackup")
    }

    /// Runs it to an end that must be good, and looks at all that it made.
    pub(crate) fn good(&mut self) -> Manifest {
        let out = self.run();
        let said = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(0), "{said}");
        checked(&self.out)
    }

    /// Runs it to an end that must be this exit code; what it said.
    pub(crate) fn fails(&mut self, code: i32) -> String {
        let out = self.run();
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!(out.status.code(), Some(code), "{said}");
        said
    }

    /// Starts it.
    pub(crate) fn start(&mut self) -> Running {
        self.start_into(Stdio::piped())
    }

    /// The same, with its standard output going there.
    pub(crate) fn start_into(&mut self, to: Stdio) -> Running {
        self.command.stdout(to).stderr(Stdio::null());
        Running(self.command.spawn().expect("start towline basebackup"))
    }
}

/// One under way; killed on drop.
pub(crate) struct Running(Child);

impl Running {
    pub(crate) fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.0.id()).expect("pid"));
        nix::sys::signal::kill(pid, signal).expect("kill");
    }

    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.0.try_wait().expect("wait")
    }

    /// Nobody reads its standard output any more.
    pub(crate) fn close_stdout(&mut self) {
        drop(self.0.stdout.take());
    }

    /// Waits for its end.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        until(within(60), "the backup ends", || self.ended().ok_or_else(|| "it runs".to_owned()))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn sha(path: &Path) -> String {
    let sum = Sha256::digest(fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display())));
    sum.iter().map(|b| format!("{b:02x}")).collect()
}

/// Reads the manifest of a backup, and compares it with everything that is there.
pub(crate) fn checked(dir: &Path) -> Manifest {
    let text = fs::read(dir.join("manifest.json")).expect("a manifest");
    let manifest = Manifest::parse(&text).unwrap_or_else(|e| panic!("{e}"));
    let mut known: BTreeSet<PathBuf> = [PathBuf::from("manifest.json")].into();
    for part in &manifest.parts {
        let path = dir.join(&part.name);
        assert_eq!(
            (fs::metadata(&path).expect("a part").len(), sha(&path)),
            (part.size, part.sha256.to_string())
        );
        known.insert(PathBuf::from(&part.name));
    }
    if let Some(base) = manifest.form.dir() {
        for file in &manifest.files {
            let rel = Path::new(base).join(Path::new(std::ffi::OsStr::from_bytes(&file.path)));
            let path = dir.join(&rel);
            let size = fs::metadata(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display())).len();
            assert_eq!((size, sha(&path)), (file.size, file.sha256.to_string()), "{}", path.display());
            known.insert(rel);
        }
    }
    for entry in walkdir::WalkDir::new(dir) {
        let entry = entry.expect("walk");
        let rel = entry.path().strip_prefix(dir).expect("below").to_owned();
        assert!(
            !entry.file_type().is_file() || known.contains(&rel),
            "not in the manifest: {}",
            rel.display()
        );
        assert_ne!(rel, Path::new(WORK), "what is not part of the backup is left behind");
    }
    assert!(manifest.form != Form::Tree || manifest.log.is_empty());
    manifest
}

/// Waits until nothing of any backup is left on a node.
pub(crate) fn forgotten(node: &Node) {
    until(within(20), "nothing is left of the backup", || {
        let status = node.status()?.0;
        let of = |key: &str| status[key].as_array().map_or(usize::MAX, Vec::len);
        if of("backups") == 0 { Ok(()) } else { Err(status["backups"].to_string()) }
    });
}
