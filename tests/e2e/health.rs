//! What a node says of itself: lag, the cascade, `towline status`, `towline check`, and the pages over HTTP.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde_json::Value;

use crate::support::bed::Bed;
use crate::support::node::Node;
use crate::support::{Pair, assert_equal_within, holds_for, until, within};

/// What the leader says of the follower `name`.
fn seen(leader: &Node, name: &str) -> Result<Value, String> {
    let status = leader.status()?;
    let list = status.0["followers"].as_array().cloned().unwrap_or_default();
    list.into_iter().find(|f| f["name"] == name).ok_or_else(|| format!("no {name} in {}", status.0))
}

/// Bytes and seconds that both sides say.
fn lags(pair: &Pair) -> Result<[(u64, Option<f64>); 2], String> {
    let (near, far) = (pair.follower.status()?, seen(&pair.leader, "follower")?);
    let lag = |v: &Value| (v["bytes"].as_u64().unwrap_or(u64::MAX), v["seconds"].as_f64());
    Ok([lag(&near.0["lag"]), lag(&far["lag"])])
}

#[test]
fn lag_is_right_at_idle_while_paused_and_without_the_leader_on_both_sides() {
    let mut pair = Pair::start("lag");
    fs::write(pair.data().join("a"), "1").expect("write");
    pair.equal(10);
    let none = |pair: &Pair| match lags(pair)? {
        [(0, Some(0.0)), (0, Some(0.0))] => Ok(()),
        other => Err(format!("{other:?}")),
    };
    until(within(10), "nothing is behind", || none(&pair));
    holds_for(within(2), "it does not grow at idle", || none(&pair));
    pair.follower.pause();
    holds_for(within(1), "nor while paused with nothing to do", || none(&pair));
    fs::write(pair.data().join("b"), vec![1; 100_000]).expect("write");
    let mut last = 0.0;
    for more in [0.5, 1.5] {
        last = until(within(15), "the age grows on both sides", || {
            let now = lags(&pair)?;
            match now {
                [(b1, Some(s1)), (b2, Some(s2))]
                    if b1 > 0 && b1 == b2 && s1 > last + more && (s1 - s2).abs() < 1.0 =>
                {
                    Ok(s1)
                }
                _ => Err(format!("{now:?}")),
            }
        });
    }
    // The leader goes on saying how old it is after the follower is gone.
    pair.follower.kill();
    until(within(15), "it is away and further behind", || {
        let f = seen(&pair.leader, "follower")?;
        let age = f["lag"]["seconds"].as_f64().unwrap_or_default();
        if f["state"] == "away" && age > last + 0.5 { Ok(()) } else { Err(f.to_string()) }
    });
    pair.follower.restart();
    pair.equal(15);
    until(within(10), "nothing is behind", || none(&pair));
    pair.leader.stop();
    until(within(15), "an age that nobody knows is not given out as none", || {
        match pair.follower.status()? {
            s if s.health() == "cut-off" && s.0["lag"]["seconds"].is_null() => Ok(()),
            s => Err(s.0.to_string()),
        }
    });
    pair.leader.restart();
    until(within(15), "nothing is behind", || none(&pair));
    pair.finish();
}

#[test]
fn under_load_the_lag_is_small_and_both_sides_agree() {
    let pair = Pair::start("lag-load");
    let load = crate::support::Load::start(&pair.data().join("app"), 3, std::time::Duration::from_millis(5));
    let (mut least, mut apart) = (f64::MAX, 0.0_f64);
    let start = std::time::Instant::now();
    let mut looks = 0;
    while start.elapsed() < within(4) {
        let now = lags(&pair).expect("lags");
        let [(_, Some(near)), (_, Some(far))] = now else {
            // Before the first ack the leader does not know.
            assert!(start.elapsed() < within(2), "{now:?}");
            continue;
        };
        apart = apart.max((near - far).abs());
        if start.elapsed() > within(2) {
            // What grows with the time since the first write never comes down again.
            least = least.min(near.max(far));
        }
        looks += 1;
    }
    assert!(
        looks > 3 && least < 1.5 && apart < 3.0,
        "at least {least} s behind, {apart} s apart, {looks} looks"
    );
    load.finish();
    pair.finish();
}

#[test]
fn the_leader_shows_the_whole_cascade() {
    let pair = Pair::start("cascade");
    let middle = pair.bed.follower("middle", pair.follower.spec.listen).start();
    let mut far = pair.bed.follower("far", middle.spec.listen).start();
    fs::write(pair.data().join("a"), "1").expect("write");
    assert_equal_within(within(20), pair.data(), far.data());
    let end = pair.leader.status().expect("status").exact();
    let below = |path: &str| -> Result<Value, String> {
        let f = seen(&pair.leader, "follower")?;
        f.pointer(path).cloned().ok_or_else(|| f.to_string())
    };
    until(within(20), "the last one is shown where it stands", || {
        let f = below("/followers/0/followers/0")?;
        let there = f["name"] == "far" && f["state"] == "streaming" && f["apply"] == end.as_str();
        if there && f["lag"]["seconds"] == 0.0 && f["lag"]["bytes"] == 0 {
            Ok(())
        } else {
            Err(f.to_string())
        }
    });
    let page = String::from_utf8_lossy(&pair.leader.ask(&["status"]).stdout).into_owned();
    let row =
        |name: &str| page.lines().position(|l| l.contains(name)).unwrap_or_else(|| panic!("{name}: {page}"));
    assert!(row("\nfollower ".trim()) > 0 && row("`- middle") < row("   `- far"), "{page}");
    far.stop();
    until(within(15), "it is away", || {
        let f = below("/followers/0/followers/0")?;
        if f["state"] == "away" { Ok(()) } else { Err(f.to_string()) }
    });
    drop(middle);
    until(within(15), "nothing is known of those behind a node that is gone", || {
        let f = below("/followers/0")?;
        let gone = f["state"] == "away" && f["followers"].as_array().is_some_and(Vec::is_empty);
        if gone { Ok(()) } else { Err(f.to_string()) }
    });
    pair.finish();
}

/// Every key of a document, as `a.b` and `list[].c`.
fn keys(v: &Value, at: &str, out: &mut BTreeSet<String>) {
    match v {
        Value::Object(map) => {
            for (k, v) in map {
                let path = if at.is_empty() { k.clone() } else { format!("{at}.{k}") };
                out.insert(path.clone());
                keys(v, &path, out);
            }
        }
        Value::Array(list) => list.iter().for_each(|v| keys(v, &format!("{at}[]"), out)),
        _ => {}
    }
}

/// What the table of keys documents.
fn documented() -> BTreeSet<String> {
    let text =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/status/mod.rs")).expect("read");
    let rows = text.lines().filter_map(|l| l.strip_prefix("//! | `")).filter_map(|l| l.split_once(" |"));
    rows.flat_map(|(keys, _)| {
        keys.split(',').map(|k| k.trim().trim_matches('`').to_owned()).collect::<Vec<_>>()
    })
    .collect()
}

#[test]
fn every_key_is_documented_and_there() {
    let pair = Pair::start("keys");
    let middle = pair.bed.follower("middle", pair.follower.spec.listen).start();
    let edited = pair.follower.data().join("a");
    fs::write(pair.data().join("a"), "1").expect("write");
    assert_equal_within(within(20), pair.data(), middle.data());
    until(within(15), "the leader knows of both", || {
        let f = seen(&pair.leader, "follower")?;
        if f["followers"][0]["lag"].is_object() { Ok(()) } else { Err(f.to_string()) }
    });
    // An edit that is refused: an error, and a list of edits.
    fs::write(&edited, "mine").expect("write");
    fs::write(pair.data().join("a"), "2").expect("write");
    until(within(20), "the edit is refused", || {
        let s = pair.follower.status()?;
        let edits = s.0["apply"]["local_edits"].as_array().is_some_and(|l| !l.is_empty());
        if s.health() == "help" && edits { Ok(()) } else { Err(s.0.to_string()) }
    });
    let mut live = BTreeSet::new();
    for node in [&pair.leader, &pair.follower, &middle] {
        let mut status = node.status().expect("status").0;
        // A map whose keys are classes, and what the row of `followers` and of `disk` lists by itself.
        if let Some(map) = status.pointer_mut("/apply/skipped_privilege") {
            *map = Value::Null;
        }
        for path in ["/disk/state", "/disk/data"] {
            let room = status.pointer_mut(path).map(Value::take).unwrap_or_default();
            for key in ["free_bytes", "size_bytes", "free_percent"] {
                assert!(room[key].as_f64().is_some_and(|n| n > 0.0), "{path} {key}: {room}");
            }
        }
        for list in status["followers"].as_array_mut().into_iter().flatten() {
            for below in list["followers"].as_array_mut().into_iter().flatten() {
                for key in ["name", "state", "sent", "write", "flush", "apply", "heard", "lag", "followers"] {
                    assert!(below.as_object_mut().and_then(|b| b.remove(key)).is_some(), "no {key}: {below}");
                }
                assert_eq!(below.as_object().map(serde_json::Map::len), Some(0), "{below}");
            }
        }
        keys(&status, "", &mut live);
    }
    let table = documented();
    let unsaid: Vec<_> = live.difference(&table).collect();
    assert!(unsaid.is_empty(), "keys that the table of src/status/mod.rs does not have: {unsaid:?}");
    // Of a list without items, and of a part that is not there, nothing can be seen here.
    let seen_below = |key: &str| live.iter().any(|l| l.len() > key.len() && l.starts_with(key));
    let unseen = |key: &&String| {
        let cuts = key.match_indices(['.', '[']).map(|(at, _)| &key[..at]);
        cuts.into_iter().any(|part| {
            live.contains(part) && !seen_below(&format!("{part}.")) && !seen_below(&format!("{part}[]"))
        })
    };
    let gone: Vec<_> = table.difference(&live).filter(|k| !unseen(k)).collect();
    assert!(gone.is_empty(), "keys that no node prints: {gone:?}");
}

/// Name, inode, size and times of everything in a directory.
fn stamps(dir: &Path) -> Vec<String> {
    let mut out: Vec<String> = walkdir::WalkDir::new(dir)
        .into_iter()
        .flatten()
        .filter_map(|e| {
            let m = e.path().symlink_metadata().ok()?;
            let times = (m.mtime(), m.mtime_nsec(), m.ctime(), m.ctime_nsec());
            Some(format!("{} {} {} {times:?}", e.path().display(), m.ino(), m.len()))
        })
        .collect();
    out.sort();
    out
}

#[test]
fn status_changes_no_file() {
    // Nothing that goes by time falls into the test.
    let slow =
        |s: crate::support::Spec| s.set("segment_timeout", "\"1h\"").set("checkpoint_interval", "\"1h\"");
    let pair = Pair::with(Bed::new("read-only"), slow, slow);
    fs::write(pair.data().join("a"), "1").expect("write");
    pair.equal(10);
    let all = || [&pair.leader, &pair.follower].map(|n| (stamps(&n.spec.state), stamps(n.data())));
    // The marks of the event queue are written by passes; what rests since the write above is waited for.
    let mut before = all();
    until(within(20), "everything rests", || {
        std::thread::sleep(std::time::Duration::from_millis(1500));
        let now = all();
        if now == std::mem::replace(&mut before, now.clone()) { Ok(()) } else { Err("files change".into()) }
    });
    for node in [&pair.leader, &pair.follower] {
        for words in [&["status"][..], &["status", "--json"]] {
            assert!(node.ask(words).status.success());
        }
    }
    assert_eq!(all(), before);
    pair.finish();
}
