//! A test bed: one temporary directory per test, free ports, and shared host settings.

use std::fs::{self, File};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::node::{Spec, towline};
use super::tree::python;

/// Whether the long variants were asked for.
pub(crate) fn soak() -> bool {
    std::env::var_os("TOWLINE_SOAK").is_some_and(|v| v != "0" && !v.is_empty())
}

/// `long` in a soak run, else `short`.
pub(crate) fn soak_or<T>(long: T, short: T) -> T {
    if soak() { long } else { short }
}

/// Whether owners, devices and mounts can be tested.
pub(crate) fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// A directory that is removed unless the test failed or `TOWLINE_KEEP` is set.
pub(crate) struct Bed {
    dir: Option<tempfile::TempDir>,
    path: PathBuf,
}

impl Bed {
    /// A new directory on a real disk file system (`TOWLINE_TEST_DIR`, else /var/tmp): stores through
    /// mappings are invisible on tmpfs, and an fsync there costs nothing.
    pub(crate) fn new(name: &str) -> Self {
        let base = std::env::var_os("TOWLINE_TEST_DIR").map_or_else(|| "/var/tmp".into(), PathBuf::from);
        let dir = tempfile::Builder::new().prefix(&format!("towline-{name}-")).tempdir_in(base);
        let dir = dir.expect("make a temporary directory");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
        let path = dir.path().to_owned();
        Self { dir: Some(dir), path }
    }

    /// A path inside.
    pub(crate) fn path(&self, rel: impl AsRef<Path>) -> PathBuf {
        self.path.join(rel)
    }

    /// A leader named `name` on the data directory `NAME/data`, which is made.
    pub(crate) fn leader(&self, name: &str) -> Spec {
        self.spec(name, None)
    }

    /// A follower of the node on `upstream`.
    pub(crate) fn follower(&self, name: &str, upstream: u16) -> Spec {
        self.spec(name, Some(upstream))
    }

    fn spec(&self, name: &str, upstream: Option<u16>) -> Spec {
        let home = self.path(name);
        fs::create_dir_all(home.join("data")).expect("mkdir");
        Spec::new(name, &home, upstream, free_port())
    }

    /// Runs one of the Python programs beside the tests to its end; panics when it fails.
    pub(crate) fn python(script: &str, args: &[&str]) -> String {
        let out = Command::new(python()).arg(py(script)).args(args).output().expect("run python3");
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        let err = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success(), "{script} {args:?}: {}\n{text}{err}", out.status);
        text
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        let keep = std::thread::panicking() || std::env::var_os("TOWLINE_KEEP").is_some();
        if let Some(dir) = self.dir.take_if(|_| keep) {
            eprintln!("kept for a look: {}", dir.keep().display());
        }
    }
}

/// The path of a Python program of the suites.
pub(crate) fn py(script: &str) -> String {
    format!("{}/tests/e2e/py/{script}", env!("CARGO_MANIFEST_DIR"))
}

/// Copies a tree with everything that is in it.
pub(crate) fn copy_tree(from: &Path, to: &Path) {
    let ok = Command::new("cp").args(["-a", "--reflink=auto"]).arg(from).arg(to).status().expect("cp");
    assert!(ok.success(), "cp -a {} {}", from.display(), to.display());
}

/// A copy of the program that any user may run. Another process copies it: one that this process starts meanwhile
/// would inherit the open file, and a program open for writing can't be run.
pub(crate) fn program_in(bed: &Bed) -> PathBuf {
    let program = bed.path("towline");
    if !program.exists() {
        copy_tree(Path::new(&towline()), &program);
    }
    program
}

/// A port below the ephemeral range that nobody holds, so that no outgoing connection takes it meanwhile.
pub(crate) fn free_port() -> u16 {
    loop {
        let port = fastrand::u16(15_000..32_000);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// The path of a C program of the suites, compiled when it is older than its source.
pub(crate) fn c_program(name: &str, libs: &[&str]) -> PathBuf {
    let source = PathBuf::from(format!("{}/tests/e2e/c/{name}.c", env!("CARGO_MANIFEST_DIR")));
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let time = |p: &Path| fs::metadata(p).and_then(|m| m.modified()).ok();
    if time(&out).is_some_and(|t| Some(t) > time(&source)) {
        return out;
    }
    let aside = out.with_extension(format!("{}-{}", std::process::id(), fastrand::u32(..)));
    let mut gcc = Command::new("gcc");
    gcc.args(["-O2", "-Wall", "-D_GNU_SOURCE", "-o"]).arg(&aside).arg(&source).args(libs);
    let done = gcc.output().expect("run gcc");
    assert!(done.status.success(), "gcc {name}.c: {}", String::from_utf8_lossy(&done.stderr));
    fs::rename(&aside, &out).expect("rename");
    out
}

/// Runs a program to its end and panics when it fails. Exit 77 is "this host can't": `false`.
pub(crate) fn run(program: &Path, args: &[&str]) -> bool {
    let out = Command::new(program).args(args).output();
    let out = out.unwrap_or_else(|e| panic!("{}: {e}", program.display()));
    if out.status.code() == Some(77) {
        println!("skipped on this host: {} {args:?}", program.display());
        return false;
    }
    let err = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{} {args:?}: {}\n{err}", program.display(), out.status);
    true
}

/// Starts of nodes take this shared; a test that changes a setting of the whole host while it starts a
/// node takes it alone.
pub(crate) fn host_lock(alone: bool) -> nix::fcntl::Flock<File> {
    use nix::fcntl::{Flock, FlockArg};
    let path = std::env::temp_dir().join("towline-test-host.lock");
    let file = File::options().create(true).truncate(false).write(true).open(path).expect("lock file");
    let how = if alone { FlockArg::LockExclusive } else { FlockArg::LockShared };
    Flock::lock(file, how).map_err(|(_, e)| e).expect("flock")
}

/// A setting under /proc/sys, put back on drop.
pub(crate) struct Sysctl {
    path: PathBuf,
    old: String,
}

impl Sysctl {
    /// Writes `value`; hold [`host_lock`] alone around its life.
    pub(crate) fn set(path: &str, value: u64) -> Self {
        let path = PathBuf::from(path);
        let old = fs::read_to_string(&path).expect("read sysctl");
        fs::write(&path, value.to_string()).expect("write sysctl");
        Self { path, old }
    }
}

impl Drop for Sysctl {
    fn drop(&mut self) {
        let _ = fs::write(&self.path, self.old.trim());
    }
}

/// Sleeps a random time between two numbers of milliseconds.
pub(crate) fn nap(min: u64, max: u64) {
    std::thread::sleep(Duration::from_millis(fastrand::u64(min..=max)));
}

/// These ports of this machine as the value of the key `leader`.
pub(crate) fn list(ports: &[u16]) -> String {
    let all: Vec<String> = ports.iter().map(|p| format!("127.0.0.1:{p}")).collect();
    format!("\"{}\"", all.join(","))
}
