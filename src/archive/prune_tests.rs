//! Inventory, check and prune over an archive with backups in it.

use sha2::{Digest, Sha256};

use super::check::verify;
use super::coverage::Fault;
use super::inventory::Inventory;
use super::prune::{Rule, carry_out, log_to_remove, plan};
use super::*;
use crate::manifest::{Base, Form, Manifest, Part, Range, Sha, seal};
use crate::position::{Lsn, SEGMENT_SIZE};

const T: TimelineId = TimelineId::FIRST;
const SYSTEM: SystemId = SystemId(7);
const DAY: i64 = 86_400_000_000_000;

struct Bed {
    dir: tempfile::TempDir,
    archive: Archive,
}

fn sha(bytes: &[u8]) -> Sha {
    Sha(Sha256::digest(bytes).into())
}

impl Bed {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let archive = Archive::open_or_create(&Address::Dir(dir.path().to_owned()), SYSTEM).unwrap();
        Self { dir, archive }
    }

    /// Segments that are none but for their names.
    fn log(&self, segments: std::ops::RangeInclusive<u64>) {
        for n in segments {
            self.archive.put_segment(T, SegmentNo(n), format!("segment {n}").as_bytes()).unwrap();
        }
    }

    /// A backup of day `day`, whose log is in segment `segment`, which it carries.
    fn backup(&self, label: &str, day: i64, segment: u64, on: Option<&str>) {
        self.backup_that(label, day, segment, on, true);
    }

    fn backup_that(&self, label: &str, day: i64, segment: u64, on: Option<&str>, carries: bool) {
        self.make(T, label, (day, segment), (on, carries));
    }

    fn backup_of(&self, timeline: TimelineId, label: &str, day: i64, segment: u64) {
        self.make(timeline, label, (day, segment), (None, true));
    }

    fn make(
        &self,
        timeline: TimelineId,
        label: &str,
        (day, segment): (i64, u64),
        (on, carries): (Option<&str>, bool),
    ) {
        let at = |offset| Lsn(segment * SEGMENT_SIZE + offset);
        let base = on.map(|on| {
            let bytes = self.archive.get(&format!("backup/{on}/manifest.json"), 1 << 20).unwrap().unwrap();
            let m = Manifest::parse(&bytes).unwrap();
            Base { label: on.to_owned(), end: m.end, manifest_sha256: seal(&bytes).unwrap() }
        });
        let mut parts = Vec::new();
        let mut names = vec!["catalog".to_owned(), "blocks".to_owned()];
        if carries {
            names.push(format!(
                "log/{}.partial",
                crate::segment::file_name(timeline, SegmentNo(segment), false)
            ));
        }
        names.push("pack-00001".to_owned());
        for name in names {
            let bytes = format!("{label} {name}").into_bytes();
            self.archive.put(&format!("backup/{label}/{name}"), &bytes).unwrap();
            parts.push(Part { name, size: bytes.len() as u64, sha256: sha(&bytes) });
        }
        let m = Manifest {
            form: Form::Packs,
            label: label.to_owned(),
            system: SYSTEM,
            timeline,
            start: at(10),
            end: at(20),
            start_time: day * DAY,
            end_time: day * DAY + 1,
            exact: true,
            created: day * DAY + 2,
            program: "0".to_owned(),
            base,
            log: vec![Range { timeline, start: at(10), end: at(20) }],
            parts,
            files: Vec::new(),
        };
        let mut text = Vec::new();
        m.write(&mut text).unwrap();
        self.archive.put(&format!("backup/{label}/manifest.json"), &text).unwrap();
    }

    fn labels(&self) -> Vec<String> {
        Inventory::take(&self.archive).unwrap().backups.into_iter().map(|b| b.label).collect()
    }

    fn segments(&self) -> Vec<u64> {
        let mut all = Vec::new();
        self.archive
            .segments(T, SegmentNo(0), &mut |n, _| {
                all.push(n.segment.0);
                Ok(true)
            })
            .unwrap();
        all
    }

    /// What the plan says goes, and what is gone after it.
    fn prune(&self, rule: Rule, today: i64) -> Vec<String> {
        let inventory = Inventory::take(&self.archive).unwrap();
        let planned = plan(&inventory, rule, today * DAY);
        let plan = &planned;
        let (before, log) = (self.segments().len() as u64, log_to_remove(&self.archive, plan).unwrap());
        let said: Vec<String> = plan.backups.iter().filter(|f| !f.keep).map(|f| f.label.clone()).collect();
        carry_out(&self.archive, plan).unwrap();
        assert_eq!(before - self.segments().len() as u64, log.0, "as many segments as were said");
        for label in &said {
            assert!(!self.labels().contains(label) && !self.dir.path().join("backup").join(label).exists());
        }
        let again = prune::plan(&Inventory::take(&self.archive).unwrap(), rule, today * DAY);
        assert!(again.backups.iter().all(|f| f.keep) && log_to_remove(&self.archive, &again).unwrap().0 == 0);
        said
    }
}

fn fulls(n: u64) -> Rule {
    Rule { keep_full: Some(n), keep_days: None }
}

fn days(n: u64) -> Rule {
    Rule { keep_full: None, keep_days: Some(n) }
}

/// Three full backups, each with two that stand on each other.
fn three() -> Bed {
    let bed = Bed::new();
    bed.log(1..=40);
    for (i, f) in ["a", "b", "c"].into_iter().enumerate() {
        let (day, segment) = (10 + 10 * i as i64, 5 + 10 * i as u64);
        bed.backup(f, day, segment, None);
        bed.backup(&format!("{f}1"), day + 1, segment + 1, Some(f));
        bed.backup(&format!("{f}2"), day + 2, segment + 2, Some(&format!("{f}1")));
    }
    bed
}

#[test]
fn full_backups_are_kept_by_number_with_what_stands_on_them_and_log_from_the_oldest_on() {
    let bed = three();
    assert_eq!(bed.prune(fulls(2), 40), ["a2", "a1", "a"], "what stands on another goes first");
    assert_eq!(bed.labels(), ["b", "b1", "b2", "c", "c1", "c2"]);
    assert_eq!(bed.segments(), (15..=40).collect::<Vec<_>>());
    assert_eq!(bed.prune(fulls(1), 40), ["b2", "b1", "b"]);
    assert_eq!(bed.segments(), (25..=40).collect::<Vec<_>>());
    assert!(bed.prune(fulls(1), 40).is_empty());
}

#[test]
fn days_keep_the_backup_before_them_too() {
    for (n, today, kept) in [
        (14, 35, "b"),
        (15, 35, "a"),
        (24, 35, "a"),
        (4, 35, "c"),
        (5, 35, "b"),
        (1, 32, "c"),
        (999, 35, "a"),
    ] {
        let bed = three();
        bed.prune(days(n), today);
        assert_eq!(bed.labels()[0], kept, "{n} days on day {today}");
        // Both: whatever one of them keeps.
        let bed = three();
        bed.prune(Rule { keep_full: Some(3), keep_days: Some(n) }, today);
        assert_eq!(bed.labels().len(), 9);
    }
}

#[test]
fn pinned_ones_survive_with_what_they_stand_on_and_hold_no_log_that_they_carry() {
    let bed = three();
    bed.archive.put(&names::pin("a1"), b"pinned\n").unwrap();
    assert_eq!(bed.prune(fulls(1), 40), ["b2", "b1", "b", "a2"]);
    assert_eq!(bed.labels(), ["a", "a1", "c", "c1", "c2"]);
    assert_eq!(bed.segments(), (25..=40).collect::<Vec<_>>());
    bed.archive.delete(&names::pin("a1")).unwrap();
    assert_eq!(bed.prune(fulls(1), 40), ["a1", "a"]);
}

#[test]
fn log_that_a_kept_backup_does_not_carry_stays() {
    let bed = three();
    bed.backup_that("old", 5, 3, None, false);
    bed.archive.put(&names::pin("old"), b"pinned\n").unwrap();
    bed.prune(fulls(1), 40);
    let mut want = vec![3];
    want.extend(25..=40);
    assert_eq!(bed.segments(), want);
}

#[test]
fn the_end_of_a_line_and_its_history_go_when_no_kept_backup_is_before_it() {
    use crate::history::{Beginning, History};
    let bed = three();
    let begins = |segment: u64| Beginning::sample(Lsn(segment * SEGMENT_SIZE + 9), segment);
    let second = History::first(SYSTEM).child(begins(41), T).unwrap();
    let third = second.child(begins(43), T).unwrap();
    for history in [&second, &third] {
        bed.archive.put_history(history).unwrap();
    }
    let [two, three] = [2, 3].map(TimelineId);
    bed.archive.put_ended(T, SegmentNo(41), two, b"end of 1").unwrap();
    bed.archive.put_segment(two, SegmentNo(42), b"segment 42").unwrap();
    bed.archive.put_ended(two, SegmentNo(43), three, b"end of 2").unwrap();
    bed.archive.put_segment(three, SegmentNo(44), b"segment 44").unwrap();
    let left = || {
        let mut left = Vec::new();
        for dir in [names::LOG, names::HISTORY] {
            let each = &mut |e: Entry| {
                left.push(e.name);
                Ok(true)
            };
            bed.archive.list(dir, "", each).unwrap();
        }
        left
    };
    bed.prune(fulls(1), 40);
    assert_eq!(left().len(), 16 + 4 + 2, "from 'c' all that comes after it can be reached: {:?}", left());
    // A backup on the third timeline: of the two before nothing is needed but what its history tells.
    bed.backup_of(three, "d", 50, 44);
    let plan = plan(&Inventory::take(&bed.archive).unwrap(), fulls(1), 50 * DAY);
    assert_eq!((&plan.histories[..], log_to_remove(&bed.archive, &plan).unwrap().0), (&[two][..], 19));
    carry_out(&bed.archive, &plan).unwrap();
    let left = left();
    assert!(left.len() == 2 && left[0].starts_with("log/00000003/"), "{left:?}");
    assert_eq!(
        (left[1].as_str(), bed.archive.newest_history().unwrap()),
        ("history/00000003.history", third)
    );
}

/// Timelines that branched off from the first one: 2 behind 'b', with log 21 to 23, and 3 at the end, with log 42 to 46.
fn beside() -> (Bed, [TimelineId; 2]) {
    use crate::history::{Beginning, History};
    let bed = three();
    let [two, three] = [2, 3].map(TimelineId);
    for (line, at, log) in [(two, 20, 21..=23), (three, 41, 42..=46)] {
        let begins = Beginning::sample(Lsn(at * SEGMENT_SIZE + 9), at);
        let history = History::first(SYSTEM).child(begins, TimelineId(line.0 - 1)).unwrap();
        bed.archive.put_history(&history).unwrap();
        bed.archive.put_ended(T, SegmentNo(at), line, b"an end").unwrap();
        for n in log {
            bed.archive.put_segment(line, SegmentNo(n), format!("segment {n}").as_bytes()).unwrap();
        }
    }
    (bed, [two, three])
}

/// What there is of the log and the history of a timeline.
fn of_line(bed: &Bed, timeline: TimelineId) -> (Vec<u64>, bool) {
    let mut all = Vec::new();
    let each = &mut |n: SegmentName, _, _| {
        all.push(n.segment.0);
        Ok(true)
    };
    bed.archive.line(timeline, SegmentNo(0), each).unwrap();
    (all, bed.dir.path().join(names::history(timeline)).exists())
}

#[test]
fn a_side_line_goes_when_no_kept_backup_leads_to_it_and_the_way_of_the_newest_history_stays() {
    let (bed, [two, three]) = beside();
    let sides = |bed: &Bed, rule| {
        let plan = plan(&Inventory::take(&bed.archive).unwrap(), rule, 40 * DAY);
        plan.sides.iter().map(|s| s.timeline).collect::<Vec<_>>()
    };
    let whole = (vec![21, 22, 23], true);
    assert_eq!(sides(&bed, fulls(3)), [], "'a' and 'b' ended before the branch");
    // Without a newer line, or when that is not understood, it may be the one that counts.
    let name = names::history(three);
    let kept = bed.archive.get(&name, 9999).unwrap().unwrap();
    bed.archive.delete(&name).unwrap();
    assert_eq!(sides(&bed, fulls(1)), []);
    bed.archive.put(&name, b"no history").unwrap();
    assert_eq!(sides(&bed, fulls(1)), []);
    bed.archive.delete(&name).unwrap();
    bed.archive.put(&name, &kept).unwrap();
    // A backup on it that is kept keeps its log from there on.
    bed.backup_of(two, "side", 45, 22);
    assert_eq!(sides(&bed, fulls(1)), []);
    bed.archive.put(&names::pin("side"), b"pinned\n").unwrap();
    bed.backup("d", 46, 30, None);
    let planned = plan(&Inventory::take(&bed.archive).unwrap(), fulls(1), 46 * DAY);
    assert_eq!(
        (sides(&bed, fulls(1)), &planned.histories[..]),
        (vec![two], &[][..]),
        "its own log it carries"
    );
    assert_eq!(of_line(&bed, two), whole);
    bed.archive.delete(&names::pin("side")).unwrap();
    let planned = plan(&Inventory::take(&bed.archive).unwrap(), fulls(1), 46 * DAY);
    assert_eq!((sides(&bed, fulls(1)), &planned.histories[..]), (vec![two], &[two][..]));
    let said = &planned.sides[0];
    assert_eq!((said.parent, said.at, said.newest), (T, Lsn(20 * SEGMENT_SIZE + 9), three));
    // 29 of the first timeline, the end at its branch, and the three.
    assert_eq!(log_to_remove(&bed.archive, &planned).unwrap().0, 29 + 1 + 3);
    assert_eq!(of_line(&bed, two), whole, "a plan removes nothing");
    carry_out(&bed.archive, &planned).unwrap();
    assert_eq!((of_line(&bed, two), of_line(&bed, three)), ((vec![], false), ((42..=46).collect(), true)));
    assert_eq!(bed.segments(), (30..=40).collect::<Vec<_>>());
    let again = plan(&Inventory::take(&bed.archive).unwrap(), fulls(1), 46 * DAY);
    assert_eq!((again.sides.len(), log_to_remove(&bed.archive, &again).unwrap().0), (0, 0));
}

#[test]
fn log_between_a_branch_and_the_first_backup_behind_it_stays_for_the_backup_before_it() {
    let (bed, [_, three]) = beside();
    bed.backup_of(three, "later", 50, 45);
    // Every moment since 'c', those on the new timeline before its first backup too.
    let prune = |rule| {
        carry_out(&bed.archive, &plan(&Inventory::take(&bed.archive).unwrap(), rule, 50 * DAY)).unwrap();
    };
    prune(fulls(2));
    assert_eq!(of_line(&bed, three).0, [42, 43, 44, 45, 46]);
    prune(fulls(1));
    assert_eq!(of_line(&bed, three).0, [45, 46]);
}

#[test]
fn what_is_not_understood_stays_and_so_does_all_log() {
    let bed = three();
    bed.archive.put("backup/odd/manifest.json", b"{}").unwrap();
    bed.archive.put("backup/new/pack-00001", b"half").unwrap();
    let gone = bed.prune(fulls(1), 40);
    assert!(!gone.contains(&"odd".to_owned()), "{gone:?}");
    assert_eq!(bed.segments().len(), 40);
    let plan = plan(&Inventory::take(&bed.archive).unwrap(), fulls(1), 40 * DAY);
    assert!(plan.log_stays.unwrap().contains("'odd' is not understood"));
    let none = Bed::new();
    none.log(1..=3);
    assert!(none.prune(fulls(1), 40).is_empty());
    assert_eq!(none.segments().len(), 3, "without a backup no log goes");
}

#[test]
fn a_stray_among_log_or_backups_keeps_all_log_and_what_lies_beside_them_is_left_alone() {
    let bed = three();
    bed.archive.put("README.txt", b"of the operator").unwrap();
    for stray in ["log/00000001/foo.zst", "backup/junk"] {
        bed.archive.put(stray, b"what is this").unwrap();
        let stays = plan(&Inventory::take(&bed.archive).unwrap(), fulls(3), 40 * DAY).log_stays.unwrap();
        assert!(stays.contains(&format!("'{stray}'")) && stays.contains("move it out"), "{stays}");
        assert!(bed.prune(fulls(3), 40).is_empty());
        assert_eq!(bed.segments().len(), 40);
        assert!(bed.archive.get(stray, 99).unwrap().is_some(), "nor is it removed itself");
        bed.archive.delete(stray).unwrap();
    }
    assert!(bed.prune(fulls(3), 40).is_empty());
    assert_eq!(bed.segments(), (5..=40).collect::<Vec<_>>());
    assert!(bed.archive.get("README.txt", 99).unwrap().is_some());
}

#[test]
fn one_backup_is_verified_alone_and_a_chain_that_is_broken_is_named_from_every_link() {
    let bed = three();
    let only = |label: &str| check::verify_backup(&bed.archive, label);
    let good = only("a1").unwrap();
    assert!(good.is_good() && good.objects == 4, "its parts and no segment: {good:?}");
    std::fs::write(bed.dir.path().join("backup/a1/catalog"), b"a1 catalo").unwrap();
    assert!(only("a").unwrap().is_good() && !only("a1").unwrap().is_good());
    let e = only("none").unwrap_err();
    assert!(e.kind() == ErrorKind::Missing && e.to_string().contains("archive list"), "{e}");
    bed.archive.put("backup/half/pack-00001", b"half").unwrap();
    assert!(!only("half").unwrap().is_good(), "asked for by name, one without a manifest is none");
    let broken = |label: &str| {
        let inventory = Inventory::take(&bed.archive).unwrap();
        inventory.broken(inventory.backup(label).unwrap().manifest().unwrap())
    };
    assert_eq!((broken("a"), broken("a2")), (None, None));
    std::fs::remove_dir_all(bed.dir.path().join("backup/a")).unwrap();
    for label in ["a1", "a2"] {
        let why = broken(label).unwrap();
        assert!(why.contains("'a', on which 'a1' stands, is missing"), "{label}: {why}");
    }
    assert_eq!(broken("b2"), None);
}

#[test]
fn one_that_was_never_finished_goes_after_two_days() {
    let bed = three();
    bed.archive.put("backup/half/pack-00001", b"half").unwrap();
    let now = crate::net::wall_clock() / DAY;
    assert_eq!(bed.prune(fulls(3), now), [""; 0]);
    assert_eq!(bed.prune(fulls(3), now + 4), ["half"]);
}

#[test]
fn what_one_that_is_being_made_stands_on_stays_until_it_is_there_or_was_broken_off() {
    let bed = three();
    let now = crate::net::wall_clock() / DAY;
    making::begin(&bed.archive, "new", Some("a1")).unwrap();
    making::begin(&bed.archive, "other", None).unwrap();
    assert_eq!(bed.prune(fulls(1), now), ["b2", "b1", "b", "a2"]);
    assert_eq!(making::all(&bed.archive).unwrap().len(), 2);
    let inventory = Inventory::take(&bed.archive).unwrap();
    let why = |label: &str| {
        let plan = plan(&inventory, fulls(1), now * DAY);
        plan.backups.into_iter().find(|f| f.label == label).unwrap().why
    };
    assert_eq!(
        (why("a").as_str(), why("a1").as_str()),
        ("'new', which is being made, stands on it", why("a").as_str())
    );
    // What is old counts as broken off, unless something of it is new; and so do notes of what is there.
    let late = plan(&inventory, fulls(1), (now + 4) * DAY);
    assert_eq!((late.notes.len(), late.backups.iter().filter(|f| !f.keep).count()), (2, 2));
    // Another one begins before that is carried out: nothing goes.
    making::begin(&bed.archive, "newest", Some("a1")).unwrap();
    let e = carry_out(&bed.archive, &late).unwrap_err();
    assert!(e.kind() == ErrorKind::Refused && e.to_string().contains("'newest' has begun"), "{e}");
    assert_eq!(bed.labels(), ["a", "a1", "c", "c1", "c2"]);
    making::end(&bed.archive, "newest").unwrap();
    bed.backup("new", 40, 30, Some("a1"));
    making::begin(&bed.archive, "new", Some("a1")).unwrap();
    assert_eq!(bed.prune(fulls(1), now), ["new", "a1", "a"], "once it is there it counts like any other");
    assert_eq!(making::all(&bed.archive).unwrap().len(), 1);
    assert_eq!(bed.prune(fulls(1), now + 4), [""; 0]);
    assert!(making::all(&bed.archive).unwrap().is_empty());
}

#[test]
fn the_last_full_backup_is_kept_whatever_is_asked() {
    let bed = Bed::new();
    bed.backup("only", 1, 3, None);
    assert!(bed.prune(days(1), 999).is_empty());
}

#[test]
fn every_kind_of_damage_is_found_and_named() {
    let bed = three();
    let path = |name: &str| bed.dir.path().join(name);
    // The segments of this bed are none.
    assert_eq!(verify(&bed.archive).unwrap().inventory.coverage.problems[0].fault, Fault::Damaged);
    let bad = |label: &str, words: &str| {
        let found = verify(&bed.archive).unwrap();
        assert!(!found.is_good());
        let said = found.backups.iter().any(|(l, what)| l == label && what.contains(words));
        assert!(said, "{label} {words}: {:?}", found.backups);
    };
    assert!(verify(&bed.archive).unwrap().backups.is_empty());
    std::fs::remove_file(path("backup/a/pack-00001")).unwrap();
    bad("a", "'pack-00001' is missing");
    std::fs::write(path("backup/a1/catalog"), b"a1 catalo").unwrap();
    bad("a1", "'catalog' has 9 bytes");
    std::fs::write(path("backup/a2/blocks"), b"a2 blockS").unwrap();
    bad("a2", "SHA-256 of 'blocks'");
    std::fs::write(path("backup/b/more"), b"x").unwrap();
    bad("b", "'more' is not in its manifest");
    std::fs::rename(path("backup/c"), path("backup/d")).unwrap();
    bad("d", "its manifest is of the backup 'c'");
    bad("c1", "'c', on which 'c1' stands, is missing");
    bed.backup("c", 30, 26, None);
    bad("c1", "is another one than it was made on");
    std::fs::write(path("backup/b1/manifest.json"), b"x").unwrap();
    bad("b1", "can't be used");
    bad("b2", "is no whole backup");
}
