//! Equality of trees, by `treecheck.py`.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::until;

/// The interpreter: the distribution's where there is one.
pub(crate) fn python() -> &'static str {
    if Path::new("/usr/bin/python3").exists() { "/usr/bin/python3" } else { "python3" }
}

fn check(flags: &[&str], a: &Path, b: &Path) -> Result<String, String> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/treecheck.py");
    // Without what an interpreter looks for at its start: it is started hundreds of times.
    let out = Command::new(python())
        .args(["-I", "-S", "-B", script])
        .args(flags)
        .arg(a)
        .arg(b)
        .output()
        .expect("run python3");
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    match out.status.code() {
        Some(0) => Ok(text),
        _ => Err(format!("{text}{}", String::from_utf8_lossy(&out.stderr))),
    }
}

/// What differs between two trees; `None` when nothing does.
pub(crate) fn differences(a: &Path, b: &Path) -> Option<String> {
    check(&["--sparse"], a, b).err()
}

/// Asserts that two quiet trees are equal now.
pub(crate) fn assert_equal(a: &Path, b: &Path) {
    if let Some(diff) = differences(a, b) {
        panic!("trees differ: {} {}\n{diff}", a.display(), b.display());
    }
}

/// Waits until two trees are equal: names and attributes first, contents at the end.
pub(crate) fn assert_equal_within(limit: Duration, a: &Path, b: &Path) -> String {
    let start = std::time::Instant::now();
    until(limit, "equal names and attributes", || check(&["--quick", "--max", "8"], a, b));
    // Content that changed under an unchanged stat may still be on its way: ask until the deadline.
    let left = limit.saturating_sub(start.elapsed()).max(Duration::from_millis(500));
    until(left, "equal trees", || check(&["--sparse", "--max", "8"], a, b))
}
