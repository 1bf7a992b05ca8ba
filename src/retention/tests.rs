use proptest::prelude::*;

use super::*;

const MIB: u64 = 1 << 20;

fn limits() -> Limits {
    Limits {
        max_slot_keep: 4,
        max_slot_disk: u64::MAX,
        keep_segments: 0,
        min_free_disk: 0,
        slot_idle_timeout: 0,
        max_archive_keep: u64::MAX,
    }
}

/// A slot that needs log from the middle of a segment on, whose follower is away.
fn away(segment: u64) -> Holder {
    Holder {
        position: Lsn(segment * SEGMENT_SIZE + 100),
        attached: false,
        copying: false,
        inactive_since: 0,
        given_up: None,
        warned: None,
    }
}

fn here(segment: u64) -> Holder {
    Holder { attached: true, ..away(segment) }
}

/// Segments `from..=to` of 1 MiB each, the last one open; the node itself needs nothing but the end.
fn log(from: u64, to: u64, slots: Vec<Holder>) -> Picture {
    let file = |n| Stored { segment: SegmentNo(n), bytes: MIB, sealed: n < to };
    let end = Lsn(to * SEGMENT_SIZE + 500);
    let log = (from..=to).map(file).collect();
    Picture { slots, log, end, own: end, unarchived: None, free: 1 << 40, full: false, now: 0 }
}

fn states(limits: &Limits, picture: &Picture) -> (u64, String) {
    let plan = plan(limits, picture);
    let word = |v: &Verdict| match (v.state, v.reason) {
        (None, _) => "none".to_owned(),
        (Some(s), None) => format!("{s:?}").to_lowercase(),
        (Some(s), Some(r)) => format!("{s:?} {r:?}").to_lowercase(),
    };
    (plan.keep.0, plan.verdicts.iter().map(word).collect::<Vec<_>>().join(", "))
}

#[test]
fn the_decision_as_a_table() {
    let l = limits();
    let idle = Limits { slot_idle_timeout: 50, ..l };
    let kept = Limits { keep_segments: 7, ..l };
    let none = Limits { max_slot_keep: 0, ..l };
    let warned = |segment, at| Holder { warned: Some(SegmentNo(at)), ..away(segment) };
    let gone = |segment, r| Holder { given_up: Some(r), ..away(segment) };
    let unused = Holder { position: Lsn::ZERO, ..away(0) };
    let copy = |attached| Holder { attached, copying: true, ..away(1) };
    let table: Vec<(&str, Limits, Picture, u64, &str)> = vec![
        ("nobody needs anything", l, log(1, 9, vec![]), 8, ""),
        ("a new slot reserves nothing", l, log(1, 9, vec![unused]), 8, "none"),
        ("in step", l, log(1, 9, vec![here(9)]), 8, "reserved"),
        ("away, within the cap", l, log(1, 9, vec![away(5)]), 5, "extended"),
        ("past it: said first", l, log(1, 9, vec![away(4)]), 4, "unreserved slotkeep"),
        ("nothing was written since", l, log(1, 9, vec![warned(4, 9)]), 4, "unreserved slotkeep"),
        ("one more segment: it goes", l, log(1, 9, vec![warned(4, 8)]), 8, "lost slotkeep"),
        (
            "back before the clean-up",
            l,
            log(1, 9, vec![Holder { attached: true, ..warned(4, 8) }]),
            4,
            "extended",
        ),
        (
            "a lost one holds nothing back",
            l,
            log(6, 9, vec![gone(4, Reason::SlotKeep), away(7)]),
            7,
            "lost slotkeep, extended",
        ),
        ("its log is there again", l, log(1, 9, vec![gone(6, Reason::SlotKeep)]), 6, "extended"),
        ("taken away behind our back", l, log(6, 9, vec![away(4)]), 8, "lost removed"),
        ("connected: no cap", l, log(1, 9, vec![here(1)]), 1, "extended"),
        ("the fixed keep wins over the cap", kept, log(1, 9, vec![warned(2, 5)]), 2, "reserved"),
        ("and is kept without slots", kept, log(1, 9, vec![]), 2, ""),
        ("a cap of none", none, log(1, 9, vec![warned(8, 8), here(8)]), 8, "reserved, reserved"),
        (
            "a cap of none, further back",
            none,
            log(1, 9, vec![warned(7, 8), here(8)]),
            8,
            "lost slotkeep, reserved",
        ),
        (
            "past the cap, but another holds it",
            l,
            log(1, 9, vec![warned(3, 8), here(2)]),
            2,
            "unreserved slotkeep, extended",
        ),
        ("idle for too long", idle, Picture { now: 50, ..log(1, 9, vec![away(7)]) }, 8, "lost idle"),
        ("not yet", idle, Picture { now: 49, ..log(1, 9, vec![away(7)]) }, 7, "extended"),
        ("idle is for those away", idle, Picture { now: 999, ..log(1, 9, vec![here(7)]) }, 7, "extended"),
        ("what expired stays so", l, log(1, 9, vec![gone(7, Reason::Idle)]), 8, "lost idle"),
        (
            "until its follower is back",
            l,
            log(1, 9, vec![Holder { attached: true, ..gone(7, Reason::Idle) }]),
            7,
            "extended",
        ),
        ("a first copy under way", none, log(1, 9, vec![copy(true)]), 1, "reserved"),
        (
            "one that broke off",
            none,
            log(1, 9, vec![Holder { warned: Some(SegmentNo(8)), ..copy(false) }]),
            8,
            "lost slotkeep",
        ),
        (
            "the node itself needs it",
            none,
            Picture { own: Lsn(3 * SEGMENT_SIZE + 1), ..log(1, 9, vec![warned(3, 8)]) },
            3,
            "reserved",
        ),
        (
            "a gap",
            l,
            Picture {
                log: [log(1, 3, vec![]).log, log(5, 9, vec![]).log].concat(),
                ..log(1, 9, vec![away(3), away(6)])
            },
            6,
            "lost removed, extended",
        ),
    ];
    for (what, limits, picture, keep, want) in table {
        assert_eq!(states(&limits, &picture), (keep, want.to_owned()), "{what}");
    }
}

#[test]
fn the_disk_takes_from_the_oldest_slot_first_and_no_more_than_it_needs() {
    let slots = || vec![away(7), here(2), away(5), Holder { copying: true, ..here(8) }];
    let l = Limits { max_slot_keep: 99, ..limits() };
    // 7..8 is a MiB, 5..8 three, 2..8 six.
    for (most, keep, want) in [
        (6, 2, "extended, extended, extended, reserved"),
        (5, 5, "extended, lost disk, extended, reserved"),
        (2, 7, "extended, lost disk, lost disk, reserved"),
        (0, 8, "lost disk, lost disk, lost disk, reserved"),
    ] {
        let limits = Limits { max_slot_disk: most * MIB, ..l };
        assert_eq!(states(&limits, &log(1, 9, slots())), (keep, want.to_owned()), "at most {most} MiB");
    }
    for (free, full, keep) in [
        (10, false, 2),
        (9, false, 2),
        (8, false, 5),
        (6, false, 5),
        (5, false, 7),
        (0, false, 8),
        (10, true, 8),
    ] {
        let limits = Limits { min_free_disk: 10 * MIB, ..l };
        let picture = Picture { free: free * MIB, full, ..log(1, 9, slots()) };
        let plan = plan(&limits, &picture);
        assert_eq!(plan.keep.0, keep, "{free} MiB free");
        assert_eq!(plan.short > 0, free + (keep - 1) < 10 || full, "{free} MiB free: {}", plan.short);
    }
    // Without a floor a full disk is the operator's to free.
    let full = Picture { free: 0, full: true, ..log(1, 9, slots()) };
    assert_eq!(plan(&l, &full).keep.0, 2);
}

#[test]
fn what_the_archive_lacks_stays_within_its_limit_and_goes_before_slots_that_hold_newer_log() {
    let l = Limits { max_slot_keep: 99, ..limits() };
    let lacks = |n, slots| Picture { unarchived: Some(SegmentNo(n)), ..log(1, 9, slots) };
    for (what, limits, picture, keep, want) in [
        ("nothing waits", l, lacks(9, vec![]), 8, ""),
        ("some waits", l, lacks(3, vec![]), 3, ""),
        ("not known yet", l, lacks(0, vec![]), 1, ""),
        ("a slot holds more", l, lacks(4, vec![away(2)]), 2, "extended"),
        ("five are allowed", Limits { max_archive_keep: 5 * MIB, ..l }, lacks(1, vec![]), 3, ""),
        ("none is", Limits { max_archive_keep: 0, ..l }, lacks(1, vec![]), 8, ""),
        // What a slot holds anyway takes no room for the archive.
        ("beside a slot", Limits { max_archive_keep: 2 * MIB, ..l }, lacks(1, vec![away(4)]), 2, "extended"),
    ] {
        assert_eq!(states(&limits, &picture), (keep, want.to_owned()), "{what}");
    }
    // 1..8 is seven MiB.
    for (free, keep, want) in [
        (10, 1, "extended"),
        (8, 3, "extended"),
        (6, 5, "lost disk"),
        (4, 7, "lost disk"),
        (0, 8, "lost disk"),
    ] {
        let limits = Limits { min_free_disk: 10 * MIB, ..l };
        let picture = Picture { free: free * MIB, ..lacks(1, vec![away(4)]) };
        assert_eq!(states(&limits, &picture), (keep, want.to_owned()), "{free} MiB free");
    }
    let plan = plan(&l, &lacks(3, vec![away(6)]));
    assert_eq!((plan.held, plan.for_archive), (2 * MIB, 3 * MIB));
}

#[test]
fn bytes_left_count_down_to_below_zero() {
    let left = |slot, to| plan(&limits(), &log(1, to, vec![slot])).verdicts[0].left;
    let size = i64::try_from(SEGMENT_SIZE).unwrap();
    assert_eq!(left(away(5), 6), Some(4 * size - 500));
    assert_eq!(left(away(5), 9), Some(size - 500));
    assert_eq!(left(away(5), 10), Some(-500));
    assert_eq!(left(here(5), 10), None, "no number of segments ends one that is connected");
    // What the node itself needs is no matter of the slot's limit.
    let own = Picture { own: away(5).position, ..log(1, 20, vec![away(5), away(18)]) };
    let own = plan(&limits(), &own).verdicts;
    assert_eq!((own[0].state, own[0].held, own[0].left), (Some(State::Reserved), 0, None));
    assert!(own[1].state == Some(State::Reserved) && own[1].left > Some(0), "{own:?}");
    let held = plan(&limits(), &log(1, 9, vec![away(5), here(9)])).verdicts;
    assert_eq!((held[0].held, held[1].held), (3 * MIB, 0));
}

#[test]
fn a_position_at_the_start_of_a_segment_needs_the_one_before_as_a_proof() {
    assert_eq!(first_needed(Lsn(5 * SEGMENT_SIZE)), SegmentNo(4));
    assert_eq!(first_needed(Lsn::FIRST), SegmentNo(1), "nothing was written before");
    assert_eq!(first_needed(Lsn(5 * SEGMENT_SIZE + 1)), SegmentNo(5));
}

fn any_slot() -> impl Strategy<Value = Holder> {
    let reason = proptest::option::of(proptest::sample::select(Reason::ALL.to_vec()));
    (0..20_u64, any::<bool>(), any::<bool>(), 0..100_i64, reason, proptest::option::of(0..20_u64)).prop_map(
        |(at, attached, copying, since, given_up, warned)| Holder {
            position: Lsn(at * SEGMENT_SIZE / 2),
            attached,
            copying,
            inactive_since: since,
            given_up,
            warned: warned.map(SegmentNo),
        },
    )
}

prop_compose! {
    fn any_picture()(
        slots in proptest::collection::vec(any_slot(), 0..8),
        from in 1..8_u64, n in 0..12_u64, open in any::<bool>(), sizes in proptest::collection::vec(0..9 * MIB, 20),
        own in 0..20_u64, free in 0..64 * MIB, full in any::<bool>(), now in 0..200_i64,
        unarchived in proptest::option::of(0..20_u64),
    ) -> Picture {
        let to = from + n;
        let file = |k| Stored { segment: SegmentNo(k), bytes: sizes[usize::try_from(k).unwrap_or(0)], sealed: k < to || !open };
        let end = Lsn(to * SEGMENT_SIZE + 7);
        let log = (from..=to).map(file).collect();
        Picture { slots, log, end, own: Lsn(own * SEGMENT_SIZE), unarchived: unarchived.map(SegmentNo), free, full, now }
    }
}

prop_compose! {
    fn any_limits()(keep in 0..9_u64, disk in 0..64 * MIB, fixed in 0..9_u64, least in 0..64 * MIB, idle in 0..100_i64, archive in 0..64 * MIB) -> Limits {
        Limits { max_slot_keep: keep, max_slot_disk: disk, keep_segments: fixed, min_free_disk: least, slot_idle_timeout: idle, max_archive_keep: archive }
    }
}

proptest! {
    #[test]
    fn what_must_stay_stays_and_what_is_held_is_bounded(limits in any_limits(), picture in any_picture()) {
        let got = plan(&limits, &picture);
        let newest = picture.log.last().unwrap().segment;
        let oldest = picture.log[0].segment;
        // What the node needs, what is fixed, the newest sealed one, copies under way.
        prop_assert!(got.keep <= first_needed(picture.own).max(oldest));
        prop_assert!(got.keep.0 <= newest.0.saturating_sub(limits.keep_segments).max(oldest.0));
        if let Some(sealed) = picture.log.iter().rev().find(|s| s.sealed) {
            prop_assert!(got.keep <= sealed.segment);
        }
        for (slot, verdict) in picture.slots.iter().zip(&got.verdicts) {
            let need = first_needed(slot.position);
            let lost = verdict.state == Some(State::Lost);
            prop_assert_eq!(verdict.state.is_none(), slot.position == Lsn::ZERO);
            if slot.position == Lsn::ZERO {
                continue;
            }
            // Never log taken away from a slot that is not said to be lost, nor lost without a reason.
            prop_assert!(lost || need >= got.keep, "{slot:?} {verdict:?} {}", got.keep.0);
            prop_assert_eq!(lost || verdict.state == Some(State::Unreserved), verdict.reason.is_some());
            if slot.attached && slot.copying && need >= oldest {
                prop_assert!(!lost);
            }
            // One that is past its cap is gone once it was said and a segment was written since.
            let far = newest.0.saturating_sub(need.0) > limits.max_slot_keep;
            if !slot.attached && far && slot.warned.is_some_and(|w| w < newest) && need < got.keep {
                prop_assert!(lost);
            }
        }
        prop_assert!(got.held <= limits.max_slot_disk);
        prop_assert!(got.for_archive <= limits.max_archive_keep);
        prop_assert!(got.short == 0 || got.held + got.for_archive == 0, "log is held while room is missing");
        // With room for all, nothing goes that the archive lacks.
        let room = limits.min_free_disk <= picture.free && !picture.full;
        if let Some(lacks) = picture.unarchived.filter(|_| room && limits.max_archive_keep >= 13 * 9 * MIB) {
            prop_assert!(got.keep <= lacks.max(oldest));
        }
        // A second look after the removal frees nothing more and loses nobody else.
        let mut after = picture.clone();
        after.log.retain(|s| s.segment >= got.keep);
        after.free += got.frees;
        for (slot, verdict) in after.slots.iter_mut().zip(&got.verdicts) {
            if verdict.state == Some(State::Lost) {
                slot.given_up = verdict.reason;
            }
        }
        let again = plan(&limits, &after);
        prop_assert_eq!((again.keep.max(got.keep), again.frees), (got.keep, 0));
        for (a, b) in got.verdicts.iter().zip(&again.verdicts) {
            prop_assert_eq!(a.state == Some(State::Lost), b.state == Some(State::Lost));
        }
    }
}
