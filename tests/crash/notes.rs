//! Small notes in the state directory: death, and a failing disk, at each step of writing and removing one.
//! After the restart what the note says still holds, and when that is settled all converges.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::kills::dies_at;
use crate::support::bed::Bed;
use crate::support::{Node, Pair, Spec, until, within};

/// Before a note is written, once it is durable, and before it is removed.
const HOLD: [&str; 3] = ["capture::hold", "capture::after_hold", "capture::release"];
const SUSPECT: [&str; 3] = ["blocks::suspect", "blocks::after_suspect", "blocks::acquit"];
const REFUSAL: [&str; 3] = ["apply::refuse", "apply::after_refuse", "apply::forgive"];
const DOUBT: [&str; 3] = ["apply::doubt", "apply::after_doubt", "apply::acquit"];
const REACH: [&str; 3] = ["apply::bind", "apply::after_bind", "apply::unbind"];
const TARGET: [&str; 3] = ["target::pass", "target::after_pass", "target::forget"];
/// All places that the tests of this file kill at.
pub(crate) const POINTS: [[&str; 3]; 6] = [HOLD, SUSPECT, REFUSAL, DOUBT, REACH, TARGET];

fn note(node: &Node, name: &str) -> PathBuf {
    node.spec.state.join(name)
}

/// Waits for the error that the status shows; its text.
fn fails_with(node: &Node, kind: &str) -> String {
    until(within(30), &format!("the status of {} says {kind}", node.spec.name), || {
        let status = node.status()?;
        if status.error_kind().as_deref() == Some(kind) {
            Ok(status.error_text().0)
        } else {
            Err(status.0.to_string())
        }
    })
}

fn held(pair: &Pair, want: bool) {
    until(within(30), if want { "the delete is held" } else { "nothing is held" }, || {
        let status = pair.leader.status()?;
        if status.hold().is_some() == want { Ok(()) } else { Err(status.0.to_string()) }
    });
}

/// Arms a place in a running node and waits for its death there.
fn dies(node: &mut Node, point: &str) {
    assert!(dies_at(node, point, within(30)), "never reached: {point}");
    node.arm("");
}

fn remove(dir: &Path, range: std::ops::Range<u32>) {
    range.for_each(|n| fs::remove_file(dir.join(n.to_string())).expect("rm"));
}

/// A pair whose leader has let a part of a delete through, so that what comes next is too much only for a guard
/// that remembers how many entries there were.
fn half_deleted(name: &str) -> Pair {
    let leader = |s: Spec| s.armed().set("max_delete_floor", "100").set("hot_interval", "\"50ms\"");
    let pair = Pair::with(Bed::new(name), leader, |s| s);
    (0..300).for_each(|n| fs::write(pair.data().join(n.to_string()), "x").expect("write"));
    pair.equal(30);
    remove(pair.data(), 0..140);
    pair.equal(30);
    pair
}

/// Lets the held delete through: no note is left that would hold the next one.
fn released(pair: Pair) {
    pair.leader.confirm();
    held(&pair, false);
    pair.equal(30);
    assert!(!note(&pair.leader, "hold").exists(), "a note is left of a delete that was let through");
    pair.finish();
}

#[test]
fn a_held_delete_stays_held_over_a_death_at_each_step() {
    for point in HOLD {
        let mut pair = half_deleted("kill-hold");
        if point == "capture::release" {
            remove(pair.data(), 140..205);
            held(&pair, true);
            pair.leader.arm(&format!("{point}=kill"));
            // Whether the command is answered before the death is left to chance.
            let _ = pair.leader.ask(&["confirm"]);
        } else {
            pair.leader.arm(&format!("{point}=kill"));
            remove(pair.data(), 140..205);
        }
        dies(&mut pair.leader, point);
        pair.leader.restart();
        if point == "capture::hold" {
            // Nobody was told yet that anything is held: it is judged anew, by what there is.
            until(within(30), "the delete is let through or held", || {
                match pair.leader.status()?.hold().is_some() || !pair.follower.data().join("200").exists() {
                    true => Ok(()),
                    false => Err("neither".into()),
                }
            });
            if pair.leader.status().expect("status").hold().is_some() {
                released(pair);
            } else {
                pair.equal(30);
                pair.finish();
            }
            continue;
        }
        for _ in 0..2 {
            held(&pair, true);
            let text = fs::read_to_string(note(&pair.leader, "hold")).expect("a note");
            assert!(text.parse::<u64>().is_ok_and(|n| n >= 300), "the names there were, in digits: {text}");
            assert!(pair.follower.data().join("200").exists(), "{point}: what is held was deleted");
            pair.leader.kill();
            pair.leader.restart();
        }
        held(&pair, true);
        released(pair);
    }
}

#[test]
fn a_delete_that_cannot_be_noted_is_not_let_through_either() {
    for fault in ["eio", "enospc"] {
        let pair = half_deleted("fault-hold");
        pair.leader.arm(&format!("capture::hold={fault}"));
        remove(pair.data(), 140..205);
        fails_with(&pair.leader, if fault == "eio" { "io" } else { "disk-full" });
        assert!(pair.follower.data().join("200").exists(), "what could not be held was deleted");
        pair.leader.arm("");
        until(within(30), "the leader goes on", || {
            let status = pair.leader.status()?;
            let hold = status.hold().is_some();
            if hold || !pair.follower.data().join("200").exists() {
                Ok(())
            } else {
                Err(status.0.to_string())
            }
        });
        if pair.leader.status().expect("status").hold().is_some() {
            pair.leader.confirm();
        }
        pair.equal(30);
        pair.finish();
    }
}

/// Changes some bytes of a file and nothing that a stat shows but its change time.
fn change_behind(path: &Path, bytes: &[u8], at: u64) {
    let times = fs::metadata(path).expect("stat").modified().expect("mtime");
    let file = File::options().write(true).open(path).expect("open");
    file.write_all_at(bytes, at).expect("write");
    file.set_modified(times).expect("utimes");
}

/// Flips a bit in every file of block hashes.
fn harm_hashes(node: &Node) {
    let mut harmed = 0;
    for sub in fs::read_dir(node.spec.state.join("blocks")).expect("list").flatten() {
        for entry in fs::read_dir(sub.path()).into_iter().flatten().flatten() {
            let mut bytes = fs::read(entry.path()).expect("read");
            bytes[33] ^= 1;
            fs::write(entry.path(), bytes).expect("flip");
            harmed += 1;
        }
    }
    assert!(harmed > 0, "a file of many blocks has a file of hashes");
}

fn overwrite(path: &Path, byte: u8) {
    File::options().write(true).open(path).expect("open").write_all_at(&[byte; 8192], 40_000).expect("write");
}

#[test]
fn a_suspect_is_not_believed_after_a_death_at_each_step() {
    const SAID: &str = "is read again after the crash";
    let busy = |s: Spec| s.armed().set("checkpoint_interval", "\"300ms\"");
    for point in SUSPECT {
        let mut pair = Pair::with(Bed::new("kill-suspect"), busy, |s| s);
        let (file, tick) = (pair.data().join("large"), pair.data().join("tick"));
        fs::write(&file, vec![7; 1 << 20]).expect("write");
        pair.equal(30);
        pair.leader.stop();
        harm_hashes(&pair.leader);
        pair.leader.restart();
        pair.leader.arm(&format!("{point}=kill"));
        overwrite(&file, 9);
        let mut n = 0;
        // What a suspect waits for is two checkpoints.
        until(within(40), &format!("death at {point}"), || {
            n += 1;
            fs::write(&tick, n.to_string()).expect("write");
            pair.leader.ended().ok_or_else(|| format!("it lives, {n} changes on"))
        });
        pair.leader.arm("");
        let (noted, before) = (note(&pair.leader, "blocks/suspects").exists(), pair.leader.log().len());
        assert_eq!(noted, point != "blocks::suspect", "{point}");
        pair.leader.restart();
        overwrite(&file, 11);
        pair.equal(30);
        let said = pair.leader.log()[before..].contains(SAID);
        assert_eq!(
            said,
            point == "blocks::after_suspect",
            "{point}: the newest checkpoint knows, or does not"
        );
        until(within(40), "the suspect is cleared", || {
            n += 1;
            fs::write(&tick, n.to_string()).expect("write");
            if note(&pair.leader, "blocks/suspects").exists() { Err("it is noted".into()) } else { Ok(()) }
        });
        pair.finish();
    }
}

#[test]
fn a_suspect_that_cannot_be_noted_stops_the_leader_until_it_can() {
    let mut pair = Pair::with(Bed::new("fault-suspect"), Spec::armed, |s| s);
    let file = pair.data().join("large");
    for (byte, fault, kind) in [(1, "eio", "io"), (2, "enospc", "disk-full")] {
        fs::write(&file, vec![byte; 1 << 20]).expect("write");
        pair.equal(30);
        pair.leader.stop();
        harm_hashes(&pair.leader);
        pair.leader.restart();
        pair.leader.arm(&format!("blocks::suspect={fault}"));
        overwrite(&file, byte + 7);
        fails_with(&pair.leader, kind);
        pair.leader.arm("");
        pair.equal(30);
    }
    pair.finish();
}

#[test]
fn a_damaged_list_of_suspects_is_named_and_what_it_says_to_do_helps() {
    let mut pair = Pair::start("bad-suspects");
    let file = pair.data().join("large");
    fs::write(&file, vec![7; 1 << 20]).expect("write");
    pair.equal(30);
    for byte in [1, 2] {
        let node = if byte == 1 { &mut pair.leader } else { &mut pair.follower };
        node.stop();
        fs::write(note(node, "blocks/suspects"), "nonsense").expect("write");
        *node = node.spec.spawn();
        let text = fails_with(node, "corrupt");
        assert!(
            text.contains("blocks/suspects' is damaged") && text.contains("remove the directory"),
            "{text}"
        );
        node.stop();
        fs::remove_dir_all(note(node, "blocks")).expect("rm");
        node.restart();
        overwrite(&file, byte);
        pair.equal(30);
    }
    pair.finish();
}

#[test]
fn what_was_refused_stays_refused_over_a_death_at_each_step() {
    let mut pair = Pair::with(Bed::new("kill-refusal"), |s| s, Spec::armed);
    let (theirs, ours) = (pair.data().join("f"), pair.follower.data().join("f"));
    fs::write(&theirs, "first").expect("write");
    pair.equal(30);
    fs::write(&ours, "an edit of the copy").expect("write");
    pair.follower.arm("apply::refuse=kill");
    fs::write(&theirs, "second, of the leader").expect("write");
    dies(&mut pair.follower, "apply::refuse");
    // It was not said yet, and recovery can't tell it from what an interrupted batch left.
    pair.follower.restart();
    pair.equal(30);
    fs::write(&ours, "another edit of the copy").expect("write");
    pair.follower.arm("apply::after_refuse=kill");
    fs::write(&theirs, "third, of the leader, is longer").expect("write");
    dies(&mut pair.follower, "apply::after_refuse");
    for _ in 0..2 {
        pair.follower.restart();
        let text = fails_with(&pair.follower, "refused");
        assert!(text.contains("'f' was changed on this follower"), "{text}");
        assert_eq!(fs::read_to_string(&ours).expect("read"), "another edit of the copy");
        pair.follower.kill();
    }
    // What is changed once more is another matter.
    fs::write(&ours, "second, of the leader").expect("write");
    pair.follower.arm("apply::forgive=kill");
    pair.follower = pair.follower.spec.spawn();
    dies(&mut pair.follower, "apply::forgive");
    assert!(note(&pair.follower, "refused-edit").exists());
    pair.follower.restart();
    pair.equal(30);
    assert!(!note(&pair.follower, "refused-edit").exists());
    pair.finish();
}

#[test]
fn a_refusal_that_cannot_be_noted_is_one_all_the_same() {
    let mut pair = Pair::with(Bed::new("fault-refusal"), |s| s, Spec::armed);
    let (theirs, ours) = (pair.data().join("f"), pair.follower.data().join("f"));
    fs::write(&theirs, "first").expect("write");
    pair.equal(30);
    pair.follower.arm("apply::refuse=enospc");
    fs::write(&ours, "an edit of the copy").expect("write");
    fs::write(&theirs, "second, of the leader").expect("write");
    let text = fails_with(&pair.follower, "refused");
    assert!(text.contains("'f' was changed on this follower"), "{text}");
    assert!(pair.follower.log().contains("a refused change is not remembered"));
    assert!(!note(&pair.follower, "refused-edit").exists());
    pair.follower.kill();
    pair.follower.arm("");
    pair.follower.restart();
    pair.equal(30);
    pair.finish();
}

#[test]
fn a_doubt_stays_over_a_death_at_each_step_until_the_content_was_compared() {
    const LEN: u64 = 64 << 10;
    let mut pair = Pair::with(Bed::new("kill-doubt"), |s| s, |s| s.armed().set("resync", "\"ask\""));
    let (theirs, ours) = (pair.data().join("f"), pair.follower.data().join("f"));
    fs::write(&theirs, vec![5; LEN as usize]).expect("write");
    pair.equal(30);
    // A clean stop leaves a checkpoint that knows the file; the next batch dies before there is another.
    pair.follower.stop();
    pair.follower.restart();
    pair.follower.arm("apply::after_batch=kill");
    File::options().write(true).open(&theirs).expect("open").write_all_at(b"changed", 0).expect("write");
    dies(&mut pair.follower, "apply::after_batch");
    // In another block, which nothing in the log gives back.
    change_behind(&ours, b"LOCAL", LEN - 5);
    pair.follower.arm("apply::doubt=eio");
    pair.follower = pair.follower.spec.spawn();
    fails_with(&pair.follower, "io");
    pair.follower.kill();
    // The last of these is past the checkpoint that takes the log behind the doubt out of reach.
    for point in ["apply::doubt", "apply::after_doubt", "catalog::after_checkpoint"] {
        pair.follower.arm(&format!("{point}=kill"));
        pair.follower = pair.follower.spec.spawn();
        dies(&mut pair.follower, point);
    }
    for _ in 0..2 {
        pair.follower.restart();
        let text = fails_with(&pair.follower, "diverged");
        assert!(text.contains("f' has another content than was applied"), "{text}");
        pair.follower.kill();
    }
    change_behind(&ours, &[5; 5], LEN - 5);
    pair.follower.arm("apply::acquit=kill");
    pair.follower = pair.follower.spec.spawn();
    dies(&mut pair.follower, "apply::acquit");
    assert!(note(&pair.follower, "doubtful-files").exists());
    pair.follower.restart();
    fs::write(pair.data().join("after"), "goes on").expect("write");
    pair.equal(30);
    until(within(30), "the doubt is settled", || {
        if note(&pair.follower, "doubtful-files").exists() { Err("it is noted".into()) } else { Ok(()) }
    });
    pair.finish();
}

#[test]
fn what_a_delay_holds_back_stays_hidden_over_a_death_at_each_step() {
    let mut pair = Pair::with(Bed::new("kill-reach"), |s| s, Spec::armed);
    fs::write(pair.data().join("a"), "seen").expect("write");
    pair.equal(30);
    pair.follower.arm("apply::bind=kill");
    // The delay comes into force, and the process dies of it before it can answer.
    let _ = pair.follower.reload("apply_delay", "\"1h\"");
    pair.follower.wait_end(within(30));
    for point in ["apply::bind", "apply::after_bind"] {
        pair.follower.arm(&format!("{point}=kill"));
        pair.follower = pair.follower.spec.spawn();
        dies(&mut pair.follower, point);
    }
    pair.follower.restart();
    fs::write(pair.data().join("hidden"), "for an hour").expect("write");
    let received = |pair: &Pair| {
        until(within(30), "the log is here", || {
            let (l, f) = (pair.leader.status()?, pair.follower.status()?);
            let sent = l.0.pointer("/log/exact") == f.0.pointer("/log/exact") && l.exact() != f.applied();
            if sent { Ok(()) } else { Err(format!("{} and {}", l.0, f.0)) }
        });
    };
    received(&pair);
    pair.follower.kill();
    pair.follower.restart();
    received(&pair);
    assert!(!pair.follower.data().join("hidden").exists(), "a death must not show it");
    pair.follower.stop();
    pair.follower.restart();
    received(&pair);
    assert!(!pair.follower.data().join("hidden").exists(), "nor a clean stop");
    assert!(pair.follower.data().join("a").exists());
    pair.follower.arm("apply::unbind=kill");
    let _ = pair.follower.reload("apply_delay", "\"0s\"");
    pair.follower.wait_end(within(30));
    pair.follower.arm("");
    pair.follower.restart();
    pair.equal(30);
    pair.finish();
}

#[test]
fn a_target_is_passed_or_it_is_not_whenever_the_word_for_it_was_cut_short() {
    let mut pair = Pair::with(Bed::new("kill-target"), |s| s, Spec::armed);
    let stopped = |node: &Node| {
        until(within(30), "it rests on the target", || {
            let status = node.status()?;
            let there = status.0.pointer("/apply/stopped").is_some_and(|s| !s.is_null());
            if there { Ok(()) } else { Err(status.0.to_string()) }
        });
    };
    fs::write(pair.data().join("a"), "seen").expect("write");
    pair.equal(30);
    let target = pair.leader.status().expect("status").exact();
    pair.follower.stop();
    pair.follower.spec = pair.follower.spec.clone().set("stop_at", &format!("\"{target}\""));
    pair.follower.restart();
    stopped(&pair.follower);
    fs::write(pair.data().join("b"), "past it").expect("write");
    pair.follower.arm("target::pass=kill");
    let _ = pair.follower.ask(&["resume"]);
    pair.follower.wait_end(within(30));
    pair.follower.arm("");
    pair.follower.restart();
    stopped(&pair.follower);
    assert!(!pair.follower.data().join("b").exists(), "the word was not heard");
    pair.follower.arm("target::after_pass=kill");
    let _ = pair.follower.ask(&["resume"]);
    pair.follower.wait_end(within(30));
    pair.follower.arm("");
    pair.follower.restart();
    pair.equal(30);
    // Another target takes the place of the one that was passed.
    pair.follower.stop();
    pair.follower.spec = pair.follower.spec.clone().set("stop_at", "\"FFFF/0\"");
    pair.follower.arm("target::forget=kill");
    pair.follower = pair.follower.spec.spawn();
    dies(&mut pair.follower, "target::forget");
    pair.follower.restart();
    until(within(30), "what was passed is forgotten", || {
        if note(&pair.follower, "passed-target").exists() { Err("it is noted".into()) } else { Ok(()) }
    });
    fs::write(pair.data().join("c"), "on").expect("write");
    pair.equal(30);
    pair.finish();
}
