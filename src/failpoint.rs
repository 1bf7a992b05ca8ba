//! Named places where a test build can fail or die: `module::operation`.
//!
//! A release build without the `failpoints` feature compiles them to nothing. With it, the
//! environment variable `TOWLINE_FAILPOINTS` holds `name=action[@N]` items separated by `;`:
//!
//! | action | effect at the N-th time the place is passed (every time without `@N`) |
//! | --- | --- |
//! | `kill` | the process ends at once, as by SIGKILL |
//! | `panic` | the thread panics |
//! | `enospc`, `eio` | the operation fails with that error |
//! | `sleep:MS` | the thread sleeps |
//!
//! If `TOWLINE_FAILPOINTS_FILE` names a file, its content is used instead and read again
//! whenever it changes, so that a test can let a fault go away. Every name is listed in [`ALL`];
//! the crash suite walks that list, and a name outside of it panics in test builds.

use std::io;

/// Every failpoint of the program. A test dies at each: `tests/crash/places.rs` says which, and fails for a name
/// that has none.
pub const ALL: &[&str] = &[
    "disk::write_aside",
    "disk::before_rename",
    "disk::after_rename",
    "log::append",
    "log::sync",
    "log::seal",
    "log::after_seal",
    "log::new_segment",
    "capture::after_examine",
    "capture::before_commit",
    "capture::after_commit",
    "capture::frozen",
    "capture::hold",
    "capture::after_hold",
    "capture::release",
    "capture::clone",
    "capture::thawed",
    "catalog::checkpoint",
    "catalog::after_checkpoint",
    "blocks::write",
    "blocks::sync",
    "blocks::suspect",
    "blocks::after_suspect",
    "blocks::acquit",
    "backup::begun",
    "backup::copied",
    "backup::replayed",
    "backup::summed",
    "backup::cleared",
    "backup::contents",
    "backup::pack",
    "backup::collected",
    "backup::parts",
    "apply::before_batch",
    "apply::after_fold",
    "apply::stage",
    "apply::write",
    "apply::rename",
    "apply::unlink",
    "apply::attributes",
    "apply::after_batch",
    "apply::before_checkpoint",
    "apply::refuse",
    "apply::after_refuse",
    "apply::forgive",
    "apply::doubt",
    "apply::after_doubt",
    "apply::acquit",
    "apply::bind",
    "apply::after_bind",
    "apply::unbind",
    "target::pass",
    "target::after_pass",
    "target::forget",
    "receive::after_write",
    "tls::key",
    "tls::after_key",
    "tls::certificate",
    "tls::peers",
    "tls::after_peers",
    "slots::write",
    "slots::after_write",
    "slots::before_remove",
    "slots::after_remove",
    "fill::manifest",
    "fill::file",
    "fill::done",
    "fill::end",
    "restore::spool",
    "restore::fetch",
    "restore::segment",
    "restore::whole",
    "restore::timeline",
    "restore::leads",
    "restore::done",
    "restore::moved",
    "combine::file",
    "combine::written",
    "combine::sealed",
    "combine::whole",
    "resync::begin",
    "resync::log",
    "resync::names",
    "resync::file",
    "resync::done",
    "resync::end",
    "demote::before_control",
    "demote::after_control",
    "rewind::note",
    "rewind::after_note",
    "rewind::done",
    "rewind::logged",
    "rewind::before_control",
    "rewind::after_control",
    "lost::gather",
    "lost::tree",
    "lost::paths",
    "lost::bundle",
    "lost::keep",
    "lines::before_history",
    "lines::before_control",
    "lines::after_control",
    "lines::first_commit",
    "fence::before_note",
    "fence::after_note",
    "fence::before_demote",
    "fence::after_demote",
    "fence::turn",
    "fence::before_remove",
    "promote::before_history",
    "promote::note",
    "promote::after_note",
    "promote::forget",
    "promote::before_control",
    "promote::after_control",
    "branch::seal",
    "branch::after_seal",
    "branch::aside",
    "archive::before_put",
    "archive::aside",
    "archive::after_put",
    "switchover::begun",
    "switchover::stopped",
    "switchover::rested",
    "switchover::applied",
    "switchover::ready",
    "switchover::passed",
    "switchover::closed",
    "switchover::asked",
    "switchover::led",
    "switchover::demoted",
];

/// Those on the way of a hold of the application; without `freeze` none is passed.
pub const OF_A_HOLD: &[&str] = &["capture::frozen", "capture::clone", "capture::thawed"];

/// Passes the failpoint `name`; an `Err` is the injected fault.
#[inline]
pub fn pass(name: &'static str) -> io::Result<()> {
    #[cfg(feature = "failpoints")]
    return armed::pass(name);
    #[cfg(not(feature = "failpoints"))]
    {
        let _ = name;
        Ok(())
    }
}

#[cfg(feature = "failpoints")]
mod armed {
    use std::collections::HashMap;
    use std::io;
    use std::sync::Mutex;
    use std::time::{Duration, SystemTime};

    #[derive(Clone, Debug)]
    enum Action {
        Kill,
        Panic,
        Errno(i32),
        Sleep(u64),
    }

    #[derive(Default)]
    struct State {
        loaded: bool,
        stamp: Option<SystemTime>,
        armed: HashMap<String, (Action, Option<u64>)>,
        passed: HashMap<&'static str, u64>,
    }

    static STATE: Mutex<Option<State>> = Mutex::new(None);

    fn parse(text: &str) -> HashMap<String, (Action, Option<u64>)> {
        let mut out = HashMap::new();
        for item in text.split([';', '\n']).map(str::trim).filter(|s| !s.is_empty()) {
            let (name, rest) = item.split_once('=').expect("failpoint: name=action[@N]");
            assert!(super::ALL.contains(&name), "unknown failpoint {name}");
            let (action, nth) = match rest.split_once('@') {
                Some((a, n)) => (a, Some(n.parse().expect("failpoint: @N is a number"))),
                None => (rest, None),
            };
            let action = match action.split_once(':') {
                Some(("sleep", ms)) => Action::Sleep(ms.parse().expect("failpoint: sleep:MS")),
                _ => match action {
                    "kill" => Action::Kill,
                    "panic" => Action::Panic,
                    "enospc" => Action::Errno(28),
                    "eio" => Action::Errno(5),
                    other => panic!("failpoint: unknown action {other}"),
                },
            };
            out.insert(name.to_owned(), (action, nth));
        }
        out
    }

    pub(super) fn pass(name: &'static str) -> io::Result<()> {
        assert!(super::ALL.contains(&name), "failpoint {name} is not listed");
        let action = {
            let mut guard = STATE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let state = guard.get_or_insert_with(State::default);
            if let Some(file) = std::env::var_os("TOWLINE_FAILPOINTS_FILE") {
                let stamp = std::fs::metadata(&file).and_then(|m| m.modified()).ok();
                if stamp != state.stamp || !state.loaded {
                    state.armed = parse(&std::fs::read_to_string(&file).unwrap_or_default());
                    state.stamp = stamp;
                }
            } else if !state.loaded {
                state.armed = parse(&std::env::var("TOWLINE_FAILPOINTS").unwrap_or_default());
            }
            state.loaded = true;
            let count = state.passed.entry(name).or_insert(0);
            *count += 1;
            match state.armed.get(name) {
                Some((action, nth)) if nth.is_none_or(|n| n == *count) => Some(action.clone()),
                _ => None,
            }
        };
        match action {
            None => Ok(()),
            Some(Action::Sleep(ms)) => {
                std::thread::sleep(Duration::from_millis(ms));
                Ok(())
            }
            Some(Action::Errno(n)) => Err(io::Error::from_raw_os_error(n)),
            Some(Action::Panic) => panic!("failpoint {name}"),
            Some(Action::Kill) => {
                let me = nix::unistd::Pid::this();
                let _ = nix::sys::signal::kill(me, nix::sys::signal::Signal::SIGKILL);
                std::thread::sleep(Duration::from_secs(60));
                Ok(())
            }
        }
    }
}
