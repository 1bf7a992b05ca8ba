//! What a node can't do without. A panic there ends the process, so that whatever supervises it starts it anew: a node
//! that says it runs, and has lost an engine, would be worse. Any instant is a good one to end at: starts recover.
//!
//! Connections are no such thing: one that panics ends, and the others go on.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::ErrorKind;

static ENDS: AtomicBool = AtomicBool::new(false);

/// From now on a panic of something vital ends the process. Only a process that is a node does so.
pub fn end_process_on_panic() {
    ENDS.store(true, Ordering::SeqCst);
}

/// What a thread runs that the node can't do without.
pub fn thread<T>(what: &'static str, work: impl FnOnce() -> T) -> impl FnOnce() -> T {
    move || {
        let _guard = Guard(what);
        work()
    }
}

/// What a task runs that the node can't do without.
pub async fn task<F: Future>(what: &'static str, work: F) -> F::Output {
    let _guard = Guard(what);
    work.await
}

struct Guard(&'static str);

impl Drop for Guard {
    fn drop(&mut self) {
        if !std::thread::panicking() || !ENDS.load(Ordering::SeqCst) {
            return;
        }
        let what = self.0;
        tracing::error!(
            "{what} has panicked: this process ends, and the next start recovers; please report it"
        );
        std::process::exit(i32::from(ErrorKind::Io.exit_code()));
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    const CHILD: &str = "TOWLINE_TEST_VITAL";

    /// Runs as a process of its own, see below.
    #[test]
    fn one_that_panics() {
        let Ok(how) = std::env::var(CHILD) else { return };
        let rt = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let broken = |how: &str| assert_eq!(how, "well", "on purpose");
        if how != "unarmed" {
            end_process_on_panic();
        }
        let name = how.clone();
        let task = rt.spawn(task("a task", async move {
            tokio::task::yield_now().await;
            broken(if name == "task" { &name } else { "well" });
        }));
        let _ = rt.block_on(task);
        let work = thread("a thread", move || broken(if how == "thread" { &how } else { "well" }));
        let _ = std::thread::spawn(work).join();
        std::process::exit(55);
    }

    #[test]
    fn a_panic_of_what_is_vital_ends_the_process_and_nothing_else_does() {
        for (how, code) in [("task", 4), ("thread", 4), ("well", 55), ("unarmed", 55)] {
            let mut child = Command::new(std::env::current_exe().unwrap());
            child.args(["--exact", "sys::vital::tests::one_that_panics", "--nocapture"]).env(CHILD, how);
            let out = child.output().unwrap();
            assert_eq!(out.status.code(), Some(code), "{how}: {}", String::from_utf8_lossy(&out.stderr));
        }
    }
}
