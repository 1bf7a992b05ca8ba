//! Which test kills at which place. Every failpoint has one, and that test fails if the place is never reached.

use std::collections::BTreeSet;

use crate::backup;
use crate::fence;
use crate::notes;
use crate::trust;

/// Who passes a place while an application works.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Place {
    /// The leader, the follower, or both.
    Work { leader: bool, follower: bool },
    /// Either side of a first copy.
    Fill,
    /// A follower that is made equal to its upstream.
    Resync,
    /// Whoever writes or removes one of the small notes of a state directory.
    Note,
    /// Who makes a base backup.
    Backup,
    /// Who makes a directory of one; the end-to-end suite kills it there.
    Restore,
    /// A command, or the daemon, that changes keys or peers.
    Trust,
    /// The leader while it holds the application still; the end-to-end suite kills it there.
    Frozen,
    /// The leader while it archives; the end-to-end suite kills it there.
    Archive,
    /// A leader that becomes a follower; the end-to-end suite kills it there.
    Rewind,
    /// A leader that hands over; the end-to-end suite kills it there.
    Switchover,
    /// Who is promoted, or follows over a promotion; the end-to-end suite kills it there.
    Promote,
}

/// What kind of a place this is; `None` for one that no test would reach.
pub(crate) fn place(point: &str) -> Option<Place> {
    let (module, _) = point.split_once("::")?;
    let work = |leader, follower| Some(Place::Work { leader, follower });
    if notes::POINTS.iter().flatten().any(|p| *p == point) {
        return Some(Place::Note);
    }
    match module {
        _ if towline::failpoint::OF_A_HOLD.contains(&point) => Some(Place::Frozen),
        "tls" => trust::POINTS.contains(&point).then_some(Place::Trust),
        "archive" => Some(Place::Archive),
        "demote" | "rewind" | "lost" => Some(Place::Rewind),
        "fence" => fence::POINTS.contains(&point).then_some(Place::Note),
        "promote" | "lines" | "branch" => Some(Place::Promote),
        "switchover" => Some(Place::Switchover),
        "restore" | "combine" => Some(Place::Restore),
        "backup" => backup::kills(point).then_some(Place::Backup),
        "fill" => Some(Place::Fill),
        "resync" => Some(Place::Resync),
        "capture" => work(true, false),
        "apply" | "receive" => work(false, true),
        "log" | "disk" | "catalog" | "blocks" => work(true, true),
        // A follower that nobody follows has no slots to write, but old log.
        "slots" => work(true, point.ends_with("_remove")),
        _ => None,
    }
}

/// All places of which this is true.
pub(crate) fn places(which: impl Fn(Place) -> bool) -> Vec<&'static str> {
    towline::failpoint::ALL.iter().copied().filter(|p| place(p).is_some_and(&which)).collect()
}

/// The places that a side passes while an application works.
pub(crate) fn of_work(on_leader: bool) -> Vec<&'static str> {
    places(|p| matches!(p, Place::Work { leader, follower } if if on_leader { leader } else { follower }))
}

/// The places that a side passes while an application works.
pub(crate) fn of_any_work() -> Vec<&'static str> {
    places(|p| matches!(p, Place::Work { .. }))
}

/// String literals of the form `module::operation`.
fn named_in_sources() -> BTreeSet<String> {
    let mut out = BTreeSet::new();
    for entry in walkdir::WalkDir::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src")) {
        let path = entry.expect("walk").into_path();
        if path.extension().is_none_or(|e| e != "rs") || path.ends_with("failpoint.rs") {
            continue;
        }
        let text = std::fs::read_to_string(&path).expect("read");
        for literal in text.split('"') {
            let word = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
            if literal.split_once("::").is_some_and(|(module, what)| word(module) && word(what)) {
                out.insert(literal.to_owned());
            }
        }
    }
    out
}

#[test]
fn every_place_is_listed_passed_and_has_a_test_that_dies_there() {
    let listed: BTreeSet<String> = towline::failpoint::ALL.iter().map(|&p| p.to_owned()).collect();
    assert_eq!(listed.len(), towline::failpoint::ALL.len(), "a name is listed twice");
    let named = named_in_sources();
    let apart: Vec<&String> = named.symmetric_difference(&listed).collect();
    assert!(apart.is_empty(), "passed by the sources but not listed, or the other way round: {apart:?}");
    let homeless: Vec<&String> = listed.iter().filter(|p| place(p).is_none()).collect();
    assert!(homeless.is_empty(), "no test dies at {homeless:?}");
    for point in notes::POINTS.iter().flatten() {
        assert!(listed.contains(*point), "a test waits for {point}, which is no place");
    }
    let others = places(|p| matches!(p, Place::Frozen | Place::Archive | Place::Promote | Place::Rewind));
    let elsewhere = concat!(
        include_str!("../e2e/order.rs"),
        include_str!("../e2e/clones.rs"),
        include_str!("../e2e/archive.rs"),
        include_str!("../e2e/promote.rs"),
        include_str!("../e2e/rewind.rs")
    );
    for point in others {
        assert!(elsewhere.contains(&format!("{point}=kill")), "no end-to-end test dies at {point}");
    }
}
