//! Keys and peers: death, and a failing disk, at each step of making and changing them. A key that was told to anybody
//! is never lost, and peers are the old ones or the new ones.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Output};

use crate::support::bed::Bed;
use crate::support::node::towline;

/// The places that the tests of this file kill at.
pub(crate) const POINTS: [&str; 5] =
    ["tls::key", "tls::after_key", "tls::certificate", "tls::peers", "tls::after_peers"];
/// Those of every file that is written aside.
const WRITES: [&str; 3] = ["disk::write_aside", "disk::before_rename", "disk::after_rename"];

fn ask(state: &Path, words: &[&str], fault: &str) -> Output {
    let mut command = Command::new(towline());
    command.args(words).arg("--state").arg(state).env("TOWLINE_FAILPOINTS", fault);
    command.output().expect("run towline")
}

fn id(state: &Path) -> String {
    let out = ask(state, &["id", "--json"], "");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let value: serde_json::Value = serde_json::from_slice(&out.stdout).expect("JSON");
    value["fingerprint"].as_str().expect("a fingerprint").to_owned()
}

fn peers(state: &Path) -> String {
    let out = ask(state, &["trust", "--list"], "");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).into_owned()
}

/// Every fault at the first and second passing of every place, as far as the command passes there. Returns how many
/// deaths and failures there were.
fn each_fault(words: &[&str], places: &[&str], mut run: impl FnMut(&str, &dyn Fn(&Path) -> Output)) -> usize {
    let mut seen = 0;
    for place in places {
        for (action, nth) in [("kill", 1), ("kill", 2), ("eio", 1), ("enospc", 1), ("enospc", 2)] {
            let fault = format!("{place}={action}@{nth}");
            let counted = std::cell::Cell::new(0);
            let fail = |state: &Path| {
                let out = ask(state, words, &fault);
                let text = String::from_utf8_lossy(&out.stderr).into_owned();
                match (out.status.signal(), out.status.code()) {
                    (Some(9), _) if action == "kill" => counted.set(1),
                    (None, Some(4 | 5))
                        if action != "kill" && text.contains(state.to_str().expect("path")) =>
                    {
                        counted.set(1);
                    }
                    // It does not pass there that often.
                    (None, Some(0)) if nth == 2 => {}
                    other => panic!("{fault}: {other:?}: {text}"),
                }
                out
            };
            run(&fault, &fail);
            seen += counted.get();
        }
    }
    seen
}

#[test]
fn a_key_is_whole_or_not_there_whatever_happens_when_it_is_made() {
    let bed = Bed::new("key");
    let places = [&POINTS[..3], &WRITES].concat();
    let mut round = 0;
    let seen = each_fault(&["id"], &places, |fault, fail| {
        round += 1;
        let state = bed.path(format!("s{round}"));
        fail(&state);
        let made = fs::read(state.join("node.key")).ok();
        let first = id(&state);
        assert_eq!(id(&state), first);
        if let Some(made) = made {
            assert!(
                fs::read(state.join("node.key")).expect("read") == made,
                "{fault}: the key was made twice"
            );
        }
        let left: Vec<_> = fs::read_dir(&state).expect("list").flatten().map(|e| e.file_name()).collect();
        assert!(left.len() <= 4, "{fault}: {left:?}");
        // A renewal that dies keeps the key.
        fs::remove_file(state.join("node.crt")).expect("rm");
        assert_eq!(id(&state), first, "{fault}");
    });
    assert!(seen >= 20, "only {seen} faults were met");
}

#[test]
fn a_renewal_that_fails_keeps_an_identity_that_works() {
    let bed = Bed::new("renewal");
    let places = [&POINTS[..3], &WRITES].concat();
    let mut round = 0;
    for words in [&["id", "--renew"][..], &["id", "--renew", "--new-key"]] {
        for place in &places {
            round += 1;
            let state = bed.path(format!("s{round}"));
            let before = id(&state);
            ask(&state, words, &format!("{place}=kill@1"));
            let after = id(&state);
            assert!(words.len() == 3 || after == before, "{place}: the key changed");
        }
    }
}

#[test]
fn peers_are_the_old_ones_or_the_new_ones() {
    let bed = Bed::new("peers");
    let key = |n: u8| format!("sha256:{}", format!("{n:02x}").repeat(32));
    let places = [&POINTS[3..], &WRITES].concat();
    let mut round = 0;
    let (new, old) = (key(2), key(1));
    let seen = each_fault(&["trust", "new", &new], &places, |fault, fail| {
        round += 1;
        let state = bed.path(format!("s{round}"));
        assert!(ask(&state, &["trust", "old", &old], "").status.success());
        let before = peers(&state);
        fail(&state);
        let after = peers(&state);
        assert!(after == before || after.starts_with(&before) && after.contains("new"), "{fault}: {after}");
        assert!(ask(&state, &["trust", "new", &new], "").status.success());
        assert_eq!(peers(&state).lines().count(), 2, "{fault}: once, however often it was asked for");
    });
    assert!(seen >= 15, "only {seen} faults were met");
}
