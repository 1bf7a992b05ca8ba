use proptest::prelude::*;

use super::*;

fn begins(at: u64, line: u64) -> Beginning {
    Beginning {
        at: Lsn(at),
        line: LineId(line),
        when: 1_700_000_000_000_000_000,
        node: NodeId(5),
        name: "f1".to_owned(),
        reason: Reason::Promotion,
        known: Lsn::ZERO,
    }
}

fn root() -> History {
    History::first(SystemId(7))
}

fn child(of: &History, at: u64, line: u64) -> History {
    of.child(begins(at, line), TimelineId::FIRST).unwrap()
}

/// Lines 1, 2 (from 100), 4 (from 300), as the file of fixtures holds them.
fn sample() -> History {
    let second = child(&root(), 100, 0xA1);
    let last =
        Beginning { name: "f2".to_owned(), reason: Reason::Restore, known: Lsn(340), ..begins(300, 0xA2) };
    second.child(last, TimelineId(3)).unwrap()
}

#[test]
fn the_bytes_are_those_of_the_file_of_fixtures() {
    let golden = include_bytes!("../../tests/fixtures/v1/history");
    if std::env::var_os("TOWLINE_REWRITE_FIXTURES").is_some() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/v1/history");
        std::fs::write(path, sample().encode()).unwrap();
    }
    assert_eq!(sample().encode(), golden);
    assert_eq!(History::decode(golden), Ok(sample()));
    for i in 0..golden.len() {
        let mut bad = golden.to_vec();
        bad[i] ^= 0x10;
        assert!(History::decode(&bad).is_err(), "byte {i}");
        assert!(History::decode(&golden[..i]).is_err(), "cut at {i}");
    }
}

#[test]
fn what_is_no_chain_is_refused() {
    let good = sample();
    let broken = |edit: &dyn Fn(&mut Vec<Branch>)| {
        let mut h = good.clone();
        edit(&mut h.branches);
        History::decode(&h.encode()).unwrap_err().to_string()
    };
    assert!(broken(&|b| b[0].parent = TimelineId(2)).contains("timeline that ends"));
    assert!(broken(&|b| b[0].parent = TimelineId(0)).contains("timeline that ends"));
    assert!(broken(&|b| b[1].parent = TimelineId(1)).contains("timeline that ends"));
    assert!(broken(&|b| b[1].at = Lsn(99)).contains("LSN of a branch"));
    assert!(broken(&|b| b[0].at = Lsn(0)).contains("LSN of a branch"));
    assert!(broken(&|b| b[1].line = LineId(0)).contains("line id"));
    assert!(broken(&|b| b.extend_from_within(..)).contains("timeline that ends"));
    let many = broken(&|b| {
        let one = b[0].clone();
        b.resize(BRANCHES_MAX + 1, one);
    });
    assert!(many.contains("more than the limit of 256"), "{many}");
    assert!(root().child(begins(0, 1), TimelineId::FIRST).is_err());
    assert!(good.child(begins(299, 1), TimelineId::FIRST).is_err(), "before the branch that it began at");
    assert!(good.child(begins(300, 1), TimelineId(u32::MAX)).is_err(), "no number is left");
}

#[test]
fn a_position_stands_on_the_way_past_it_or_apart() {
    let h = sample();
    assert_eq!((h.timeline(), h.line()), (TimelineId(4), LineId(0xA2)));
    let judge = |t, line, lsn| h.judge(TimelineId(t), LineId(line), Lsn(lsn));
    for (t, line, lsn, want) in [
        (1, 0, 0, Standing::Before(Lsn(100))),
        (1, 0, 100, Standing::Before(Lsn(100))),
        (1, 0, 101, Standing::Past(Lsn(100))),
        (2, 0xA1, 300, Standing::Before(Lsn(300))),
        (2, 0xA1, 301, Standing::Past(Lsn(300))),
        (4, 0xA2, 5, Standing::Same),
        (4, 0xA2, 9999, Standing::Same),
        // Of a promotion that took the same number, and of one that this way passed over.
        (2, 0xB1, 150, Standing::Apart),
        (4, 0xA1, 350, Standing::Apart),
        (3, 0xB2, 150, Standing::Apart),
        (5, 0xA3, 150, Standing::Newer),
    ] {
        assert_eq!(judge(t, line, lsn), want, "line {t}/{line:x} at {lsn}");
    }
    assert_eq!(root().judge(TimelineId(1), LineId::FIRST, Lsn(9)), Standing::Same);
    assert_eq!(root().judge(TimelineId(2), LineId(1), Lsn(9)), Standing::Newer);
    let second = h.upto(TimelineId(2)).unwrap();
    assert_eq!(
        (second.branches().len(), h.upto(TimelineId(3)), h.upto(TimelineId(1))),
        (1, None, Some(root()))
    );
    assert_eq!(
        second.leads_to(&h).then_some(h.branch_off(TimelineId(2)).unwrap().timeline),
        Some(TimelineId(4))
    );
    assert_eq!(h.branches()[1].lost(), Some(40));
    assert_eq!(h.branches()[0].lost(), None);
}

#[test]
fn segments_and_positions_know_their_timeline() {
    let at = SegmentNo(3).start().0 + 5;
    let h = child(&child(&root(), at, 1), at, 2);
    assert_eq!(h.branches()[0].last_segment(), SegmentNo(3));
    for (segment, timeline) in [(1, 1), (3, 1), (4, 3), (5, 3)] {
        assert_eq!(h.timeline_of(SegmentNo(segment)), TimelineId(timeline), "segment {segment}");
    }
    assert_eq!((h.timeline_at(Lsn(at)), h.timeline_at(Lsn(at + 1))), (TimelineId(1), TimelineId(3)));
    // A branch at the very end of a segment.
    let h = child(&root(), SegmentNo(3).end().0, 1);
    assert_eq!(
        (h.branches()[0].last_segment(), h.branches()[0].first_segment()),
        (SegmentNo(3), SegmentNo(4))
    );
    // Nothing was ever written.
    assert_eq!(child(&root(), Lsn::FIRST.0, 1).branches()[0].first_segment(), SegmentNo(1));
}

#[test]
fn two_histories_part_where_the_first_of_them_left_the_common_line() {
    let base = child(&root(), 100, 1);
    let (a, b) = (child(&base, 200, 2), child(&base, 150, 3));
    assert_eq!(a.common(&b), Some((TimelineId(2), Lsn(150))));
    assert_eq!(a.common(&base), Some((TimelineId(2), Lsn(200))));
    assert_eq!(base.common(&base), Some((TimelineId(2), Lsn(u64::MAX))));
    assert_eq!(a.common(&root()), Some((TimelineId(1), Lsn(100))));
    // The same number by two promotions.
    assert_eq!(base.common(&child(&root(), 90, 9)), Some((TimelineId(1), Lsn(90))));
    assert_eq!(a.common(&History::first(SystemId(8))), None);
    assert!(base.leads_to(&a) && root().leads_to(&a) && !a.leads_to(&base) && !a.leads_to(&b));
    assert!(!child(&root(), 90, 9).leads_to(&a) && !a.leads_to(&a));
}

#[test]
fn a_long_chain_forgets_its_beginning_and_says_so() {
    let mut h = root();
    for n in 1..=300 {
        h = child(&h, 1000 + n, n);
    }
    assert_eq!(h.branches().len(), BRANCHES_MAX);
    let bytes = h.encode();
    assert!(bytes.len() <= HISTORY_BYTES);
    assert_eq!(History::decode(&bytes), Ok(h.clone()));
    assert_eq!(h.judge(TimelineId(1), LineId::FIRST, Lsn(1)), Standing::Forgotten);
    assert_eq!(h.judge(TimelineId(44), LineId(43), Lsn(1)), Standing::Forgotten);
    assert_eq!(h.judge(TimelineId(300), LineId(299), Lsn(1)), Standing::Before(Lsn(1300)));
    assert_eq!(h.common(&root()), None);
    assert!(!root().leads_to(&h));
}

#[test]
fn names_of_files_are_read_back() {
    assert_eq!(file_name(TimelineId(0x2A)), "0000002A.history");
    assert_eq!(parse_name(b"0000002A.history"), Some(TimelineId(0x2A)));
    for bad in [&b"0000002a.history"[..], b"2A.history", b"0000002A", b"0000002A.history.new", b".history"] {
        assert_eq!(parse_name(bad), None);
    }
}

/// A chain of branches from the root: distances, and what the line ids are taken from.
fn chains() -> impl Strategy<Value = History> {
    proptest::collection::vec((1_u64..50, 1_u64..4), 0..6).prop_map(|steps| {
        steps.iter().fold(root(), |h, (step, line)| {
            let from = h.branches().last().map_or(0, |b| b.at.0);
            child(&h, from + step, (h.timeline().0 as u64) << 8 | line)
        })
    })
}

proptest! {
    #[test]
    fn any_chain_is_read_as_it_was_written(h in chains()) {
        prop_assert_eq!(History::decode(&h.encode()), Ok(h));
    }

    #[test]
    fn the_common_point_is_on_both_ways_and_nothing_after_it(a in chains(), b in chains()) {
        let (timeline, end) = a.common(&b).unwrap();
        prop_assert_eq!(b.common(&a), Some((timeline, end)));
        let line = a.line_of(timeline).unwrap();
        prop_assert_eq!(b.line_of(timeline), Some(line));
        for h in [&a, &b] {
            let on = matches!(h.judge(timeline, line, end.min(Lsn(1000))), Standing::Same | Standing::Before(_));
            prop_assert!(on);
        }
        if end < Lsn(u64::MAX) {
            // The next byte of that line is missing on at least one of the two.
            let past = |h: &History| matches!(h.judge(timeline, line, Lsn(end.0 + 1)), Standing::Past(_));
            prop_assert!(past(&a) || past(&b));
        } else {
            prop_assert_eq!(&a.branches().len(), &b.branches().len());
        }
        // Whoever leads to the other parts from it only where its own line ends.
        if a.leads_to(&b) {
            prop_assert_eq!(timeline, a.timeline());
            prop_assert_eq!(Some(end), b.end_of(timeline));
        }
    }

    #[test]
    fn every_position_of_a_way_is_on_it(h in chains(), lsn in 1_u64..400) {
        let timeline = h.timeline_at(Lsn(lsn));
        let line = h.line_of(timeline).unwrap();
        let on = matches!(h.judge(timeline, line, Lsn(lsn)), Standing::Same | Standing::Before(_));
        prop_assert!(on, "{} of {} in {:?}", lsn, timeline, h);
        prop_assert!(h.timeline_at(Lsn(lsn + 1)) >= timeline);
    }
}
