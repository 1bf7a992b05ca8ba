use std::fs;

use super::*;
use crate::position::SEGMENT_SIZE;
use crate::segment::file_name;

const T: TimelineId = TimelineId(1);

struct Bed {
    dir: tempfile::TempDir,
    slots: Arc<Slots>,
}

impl Bed {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("log")).unwrap();
        let slots = Arc::new(Slots::open(dir.path()).unwrap());
        Self { dir, slots }
    }

    /// As after a crash: what is on disk counts.
    fn crash(&mut self) {
        self.slots = Arc::new(Slots::open(self.dir.path()).unwrap());
    }

    fn write(&self, segments: std::ops::RangeInclusive<u64>) {
        for n in segments {
            fs::write(self.dir.path().join("log").join(file_name(T, SegmentNo(n), false)), [7; 5000])
                .unwrap();
        }
    }

    fn ground(&self) -> Ground {
        let limits = Limits {
            max_slot_keep: 3,
            max_slot_disk: u64::MAX,
            keep_segments: 0,
            min_free_disk: 0,
            slot_idle_timeout: 0,
            max_archive_keep: u64::MAX,
        };
        let (free, full) = (1 << 40, false);
        let log = self.dir.path().join("log");
        let stored = log::stored(&log, T).unwrap();
        let end = stored.last().map_or(Lsn::FIRST, |s| Lsn(s.segment.start().0 + 9));
        Ground { log, timeline: T, end, own: end, unarchived: None, free, full, limits }
    }

    fn oldest(&self) -> u64 {
        log::stored(&self.dir.path().join("log"), T).unwrap()[0].segment.0
    }

    fn show(&self, name: &str) -> SlotStatus {
        let list = self.slots.list(&self.ground()).unwrap();
        list.into_iter().find(|s| s.name == name).unwrap()
    }
}

fn at(segment: u64) -> Lsn {
    Lsn(segment * SEGMENT_SIZE + 5)
}

fn told(name: &str, segment: u64, active: bool) -> SlotAt {
    SlotAt { name: name.to_owned(), position: at(segment), active }
}

#[test]
fn the_file_stands_as_the_table_says() {
    let mut slots = BTreeMap::new();
    slots.insert("f1".to_owned(), Slot::new(Kind::Follower, Origin::Own, Lsn(0x0102), 77));
    let mut lost = Slot::new(Kind::Copy, Origin::Mirrored, Lsn(5), 78);
    lost.given_up = Some(Reason::Disk);
    slots.insert("g".to_owned(), lost);
    let mut active = Slot::new(Kind::Manual, Origin::Own, Lsn::ZERO, 79);
    active.connection = Some(4);
    slots.insert("h".to_owned(), active);
    let golden = [
        &b"TWLNSLOT\x01\0\0\0\x03\0\0\0"[..],
        b"\x02\0\0\0f1\x01\x01\x02\x01\0\0\0\0\0\0\0\x4d\0\0\0\0\0\0\0",
        b"\x01\0\0\0g\x02\x02\x05\0\0\0\0\0\0\0\x02\x4e\0\0\0\0\0\0\0",
        b"\x01\0\0\0h\x03\x01\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
    ]
    .concat();
    let bytes = file::encode(&slots);
    assert_eq!(bytes[..bytes.len() - 4], golden);
    assert_eq!(bytes[bytes.len() - 4..], crc32c::crc32c(&golden).to_le_bytes());
    let back = file::decode(&bytes, 1000).unwrap();
    assert_eq!((back["f1"].position, back["f1"].inactive_since), (Lsn(0x0102), 77));
    assert_eq!(
        (back["g"].given_up, back["g"].origin, back["g"].kind),
        (Some(Reason::Disk), Origin::Mirrored, Kind::Copy)
    );
    assert_eq!(back["h"].inactive_since, 1000, "it was connected until the end");
    // The largest there can be is within the bound, and damage never panics.
    let most: BTreeMap<_, _> = (0..SLOTS_MAX)
        .map(|n| (format!("{n:064}"), Slot::new(Kind::Follower, Origin::Own, Lsn(1), 1)))
        .collect();
    let bytes = file::encode(&most);
    assert!(bytes.len() as u64 <= file::SEAL.most);
    assert_eq!(file::decode(&bytes, 2).unwrap().len(), SLOTS_MAX);
    for cut in 0..golden.len() {
        assert!(file::decode(&golden[..cut], 0).is_err());
        let sealed = [&golden[..cut], &crc32c::crc32c(&golden[..cut]).to_le_bytes()[..]].concat();
        assert!(cut == golden.len() || file::decode(&sealed, 0).is_err(), "{cut}");
    }
}

#[test]
fn a_damaged_file_names_its_remedy() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("slots"), "TWLNSLOT").unwrap();
    let e = Slots::open(dir.path()).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Corrupt);
    assert!(e.to_string().contains("remove it and start again"), "{e}");
}

#[test]
fn a_follower_that_is_away_holds_log_within_its_cap_and_is_good_again_when_it_streams() {
    let mut bed = Bed::new();
    bed.write(1..=4);
    let hold = bed.slots.attach("f", at(2), Kind::Follower).unwrap();
    assert!(bed.show("f").active);
    hold.confirmed(at(4));
    hold.confirmed(at(3));
    drop(hold);
    assert_eq!(bed.slots.clean_up(&bed.ground()).unwrap().removed, 3, "all before what it confirmed");
    bed.crash();
    assert_eq!(bed.show("f").position, Some(at(4)), "it was written before log went");
    bed.write(5..=7);
    assert_eq!(bed.slots.clean_up(&bed.ground()).unwrap(), Cleaned::default());
    assert_eq!(bed.show("f").state, Some(State::Extended));
    bed.write(8..=8);
    let cleaned = bed.slots.clean_up(&bed.ground()).unwrap();
    assert_eq!(cleaned.changed, [("f".to_owned(), State::Unreserved, Reason::SlotKeep)]);
    assert!(bed.show("f").bytes_left.is_some_and(|n| n < 0));
    // Nothing more was written: it may still come. And it is said once.
    assert_eq!(bed.slots.clean_up(&bed.ground()).unwrap(), Cleaned::default());
    let hold = bed.slots.attach("f", at(4), Kind::Follower).unwrap();
    bed.write(9..=9);
    assert_eq!(bed.slots.clean_up(&bed.ground()).unwrap().removed, 0);
    assert_eq!((bed.show("f").state, bed.show("f").bytes_left), (Some(State::Extended), None));
    drop(hold);
    bed.slots.clean_up(&bed.ground()).unwrap();
    bed.write(10..=10);
    let cleaned = bed.slots.clean_up(&bed.ground()).unwrap();
    assert_eq!((cleaned.removed, cleaned.changed[0].1), (6, State::Lost));
    assert!(cleaned.bytes >= 6 * 5000 && bed.oldest() == 10);
    bed.crash();
    let lost = bed.show("f");
    assert_eq!(
        (lost.state, lost.reason, lost.retained_bytes),
        (Some(State::Lost), Some(Reason::SlotKeep), 0)
    );
    assert!(bed.slots.told().1.is_empty(), "nobody is told to hold log for it");
    let _hold = bed.slots.attach("f", at(10), Kind::Follower).unwrap();
    assert_eq!((bed.show("f").state, bed.show("f").reason), (Some(State::Reserved), None));
}

#[test]
fn a_slot_set_back_is_written_at_once() {
    let mut bed = Bed::new();
    bed.write(1..=5);
    drop(bed.slots.attach("f", at(4), Kind::Follower).unwrap());
    bed.crash();
    drop(bed.slots.attach("f", at(2), Kind::Copy).unwrap());
    bed.crash();
    let slot = bed.show("f");
    assert_eq!((slot.position, slot.kind), (Some(at(2)), Kind::Copy));
    assert_eq!(bed.slots.clean_up(&bed.ground()).unwrap().removed, 1);
}

#[test]
fn what_is_done_by_hand_is_durable_or_refused_with_a_reason() {
    let mut bed = Bed::new();
    bed.write(1..=4);
    let ends = (SegmentNo(1).start(), at(4));
    bed.slots.create("later", None).unwrap();
    bed.slots.create("now", Some(at(4))).unwrap();
    assert_eq!((bed.show("later").state, bed.show("later").position), (None, None));
    assert_eq!(bed.show("now").state, Some(State::Reserved));
    let kind = |r: Result<()>| r.unwrap_err().kind();
    assert_eq!(kind(bed.slots.create("now", None)), ErrorKind::Refused);
    assert_eq!(kind(bed.slots.create("../x", None)), ErrorKind::Usage);
    assert_eq!(kind(bed.slots.remove("nobody")), ErrorKind::Missing);
    assert_eq!(kind(bed.slots.advance("nobody", at(2), ends)), ErrorKind::Missing);
    bed.slots.advance("later", at(2), ends).unwrap();
    for (to, why) in [(at(1), "forward only"), (at(5), "the log ends")] {
        let e = bed.slots.advance("later", to, ends).unwrap_err();
        assert!(e.kind() == ErrorKind::Refused && e.to_string().contains(why), "{e}");
    }
    let e = bed.slots.advance("now", at(4), (SegmentNo(9).start(), at(10))).unwrap_err();
    assert!(e.to_string().contains("the oldest log here begins"), "{e}");
    bed.crash();
    assert_eq!(bed.show("later").position, Some(at(2)));
    bed.slots.clean_up(&bed.ground()).unwrap();
    assert_eq!(bed.oldest(), 2);
    bed.slots.advance("later", at(3), ends).unwrap();
    bed.crash();
    bed.slots.clean_up(&bed.ground()).unwrap();
    assert_eq!(bed.oldest(), 3);
    let hold = bed.slots.attach("later", at(3), Kind::Follower).unwrap();
    assert_eq!(kind(bed.slots.remove("later")), ErrorKind::Refused);
    assert_eq!(kind(bed.slots.advance("later", at(4), ends)), ErrorKind::Refused);
    drop(hold);
    bed.slots.remove("later").unwrap();
    bed.crash();
    assert_eq!(bed.slots.list(&bed.ground()).unwrap().len(), 1);
}

#[test]
fn slots_are_bounded() {
    let bed = Bed::new();
    let holds: Vec<_> =
        (0..SLOTS_MAX).map(|n| bed.slots.attach(&format!("f{n}"), at(1), Kind::Follower).unwrap()).collect();
    for e in [
        bed.slots.attach("more", at(1), Kind::Follower).unwrap_err(),
        bed.slots.create("more", None).unwrap_err(),
    ] {
        assert!(e.kind() == ErrorKind::Refused && e.to_string().contains("slot drop"), "{e}");
    }
    bed.slots.mirror("me", ("up", at(9)), &[told("more", 1, true)]);
    assert_eq!(bed.slots.told().1.len(), SLOTS_MAX);
    drop(holds);
    bed.slots.attach("f9", at(1), Kind::Follower).unwrap();
}

#[test]
fn what_the_upstream_has_is_held_here_too_and_goes_with_it() {
    let mut bed = Bed::new();
    bed.write(1..=9);
    bed.slots.create("mine", Some(at(8))).unwrap();
    let version = bed.slots.told().0;
    bed.slots.mirror("me", ("up", at(9)), &[told("a", 3, false), told("b", 9, true), told("me", 1, true)]);
    assert_ne!(bed.slots.told().0, version);
    let again = bed.slots.told().0;
    bed.slots.mirror("me", ("up", at(9)), &[told("a", 3, false), told("b", 9, true), told("me", 1, true)]);
    assert_eq!(bed.slots.told().0, again, "the same again is no news");
    let names = |bed: &Bed| -> Vec<String> { bed.slots.told().1.into_iter().map(|s| s.name).collect() };
    assert_eq!(names(&bed), ["a", "b", "mine"]);
    assert_eq!((bed.show("b").origin, bed.show("b").active), (Origin::Mirrored, true));
    let e = bed.slots.remove("a").unwrap_err();
    assert!(e.kind() == ErrorKind::Refused && e.to_string().contains("the upstream's"), "{e}");
    bed.slots
        .clean_up(&Ground { limits: Limits { max_slot_keep: 9, ..bed.ground().limits }, ..bed.ground() })
        .unwrap();
    assert_eq!(bed.oldest(), 3);
    bed.slots.mirror("me", ("up", at(9)), &[told("a", 7, true)]);
    assert_eq!(names(&bed), ["a", "mine"], "dropped there, dropped here; one made here stays");
    bed.slots.clean_up(&bed.ground()).unwrap();
    assert_eq!(bed.oldest(), 7);
    bed.crash();
    assert_eq!((bed.show("a").position, bed.show("a").active), (Some(at(7)), false));
    // Its follower comes here: it is this node's, and what the upstream says of it no longer counts.
    let hold = bed.slots.attach("a", at(8), Kind::Follower).unwrap();
    bed.slots.mirror("me", ("up", at(9)), &[told("a", 5, false)]);
    assert_eq!((bed.show("a").position, bed.show("a").origin), (Some(at(8)), Origin::Own));
    drop(hold);
    bed.slots.mirror("me", ("up", at(9)), &[told("a", 9, true), told("c", 8, true)]);
    assert_eq!(bed.show("a").position, Some(at(9)), "it went elsewhere, and got on there");
    bed.slots.lead();
    bed.slots.mirror("me", ("up", at(9)), &[]);
    assert_eq!((names(&bed).len(), bed.show("c").origin, bed.show("c").active), (3, Origin::Own, false));
}

#[test]
fn a_leader_that_follows_one_of_its_followers_misses_none_of_them() {
    let mut bed = Bed::new();
    bed.write(1..=2);
    for name in ["leads", "follows", "away"] {
        drop(bed.slots.attach(name, at(1), Kind::Follower).unwrap());
    }
    bed.slots.flush().unwrap();
    // It was rewound: the log that they were sent is gone.
    for old in 1..=2 {
        fs::remove_file(bed.dir.path().join("log").join(file_name(T, SegmentNo(old), false))).unwrap();
    }
    bed.crash();
    bed.write(8..=9);
    bed.slots.mirror("me", ("leads", at(9)), &[told("me", 8, true), told("follows", 9, true)]);
    bed.slots.clean_up(&bed.ground()).unwrap();
    for name in ["leads", "follows"] {
        let slot = bed.show(name);
        assert_eq!(
            (slot.state, slot.active, slot.inactive_since),
            (Some(State::Reserved), true, None),
            "{name}"
        );
    }
    let away = bed.show("away");
    assert_eq!((away.state, away.active), (Some(State::Lost), false), "nobody knows of it");
    // The upstream that it goes to after that one does not know of them.
    bed.slots.mirror("me", ("another", at(9)), &[]);
    assert!(!bed.show("leads").active && !bed.show("follows").active);
    bed.slots.mirror("me", ("leads", at(9)), &[]);
    bed.slots.lead();
    assert!(!bed.show("leads").active, "a node that leads has its followers itself");
    // What its own line held for them is gone for good.
    bed.slots.create("made", None).unwrap();
    let _here = bed.slots.attach("here", at(9), Kind::Follower).unwrap();
    bed.slots.leave_behind().unwrap();
    bed.crash();
    let left: Vec<String> = bed.slots.list(&bed.ground()).unwrap().into_iter().map(|s| s.name).collect();
    assert_eq!(left, ["here", "made"]);
}

#[test]
fn a_connection_that_was_replaced_says_nothing_any_more() {
    let bed = Bed::new();
    bed.write(1..=9);
    let first = bed.slots.attach("f", at(2), Kind::Follower).unwrap();
    let second = bed.slots.attach("f", at(3), Kind::Follower).unwrap();
    first.confirmed(at(9));
    drop(first);
    assert_eq!((bed.show("f").position, bed.show("f").active), (Some(at(3)), true));
    drop(second);
    assert!(bed.show("f").inactive_since.is_some());
}

#[test]
fn a_follower_that_follows_another_node_below_is_not_away() {
    let bed = Bed::new();
    bed.write(1..=9);
    drop(bed.slots.attach("f", at(2), Kind::Follower).unwrap());
    bed.slots.create("made", None).unwrap();
    let middle = bed.slots.attach("middle", at(9), Kind::Follower).unwrap();
    let below = |segment, state: &str| Below {
        name: "f".to_owned(),
        state: state.to_owned(),
        flush: at(segment),
        ..Below::default()
    };
    let since = bed.show("f").inactive_since;
    middle.below(&[below(8, "away")]);
    assert_eq!((bed.show("f").position, bed.show("f").inactive_since), (Some(at(2)), since));
    middle.below(&[below(8, "streaming"), Below { name: "nobody".to_owned(), ..below(9, "streaming") }]);
    middle.below(&[below(7, "catchup")]);
    assert_eq!(bed.show("f").position, Some(at(8)));
    assert!(bed.show("f").inactive_since > since && bed.slots.list(&bed.ground()).unwrap().len() == 3);
    let here = bed.slots.attach("f", at(4), Kind::Follower).unwrap();
    middle.below(&[below(9, "streaming")]);
    assert_eq!(bed.show("f").position, Some(at(4)), "what it says itself counts");
    drop(here);
}

#[test]
fn a_copy_that_is_not_begun_leaves_nothing() {
    let bed = Bed::new();
    let there = |name: &str| bed.slots.told().1.iter().any(|s| s.name == name);
    let hold = bed.slots.attach("f", at(2), Kind::Copy).unwrap();
    assert!(there("f"), "it holds log while it lasts");
    // Another connection of the same node takes it over as it is.
    let again = bed.slots.attach("f", at(3), Kind::Copy).unwrap();
    drop(hold);
    assert!(there("f"));
    drop(again);
    assert!(!there("f"));
    let hold = bed.slots.attach("f", at(2), Kind::Copy).unwrap();
    hold.stays();
    drop(hold);
    assert!(there("f"), "what was begun can go on");
    // A slot that was there before is not this copy's.
    drop(bed.slots.attach("f", at(2), Kind::Copy).unwrap());
    bed.slots.create("made", None).unwrap();
    drop(bed.slots.attach("made", at(2), Kind::Copy).unwrap());
    assert!(there("f") && there("made"));
}

#[test]
fn who_is_absent_is_known_after_a_restart() {
    let mut bed = Bed::new();
    bed.slots.create("by-hand", Some(at(1))).unwrap();
    bed.slots.mirror("own", ("up", at(9)), &[told("of-the-upstream", 1, false)]);
    let hold = bed.slots.attach("f", at(2), Kind::Follower).unwrap();
    assert_eq!(bed.slots.absent(), [], "it is here");
    bed.slots.flush().unwrap();
    bed.crash();
    let absent = bed.slots.absent();
    assert_eq!(absent.len(), 1, "{absent:?}");
    assert_eq!((absent[0].name.as_str(), absent[0].position), ("f", at(2)));
    assert!(absent[0].since > 0);
    drop(hold);
}
