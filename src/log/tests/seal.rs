//! A segment that is ended before its time.

use super::*;

#[test]
fn a_segment_is_sealed_when_that_is_asked_for_but_no_empty_one_and_none_amid_a_change_set() {
    let dir = scratch();
    let log = leader(dir.path());
    log.seal(SOON).unwrap();
    assert!(!path(dir.path(), 1, true).exists(), "nothing is there to be sealed");
    add(&log, set(1, 10, Cut::Exact));
    for _ in 0..2 {
        log.seal(SOON).unwrap();
        assert!(path(dir.path(), 1, false).exists() && !path(dir.path(), 2, true).exists());
    }
    let (raw, _) = set(2, 10, Cut::Exact);
    let mut records = Records::new(&raw);
    let first = records.next().unwrap().unwrap().1;
    let mut open = Vec::new();
    first.encode(&mut open);
    let (start, _) = log.append(open, flags::STARTS).unwrap();
    assert_eq!(start, SegmentNo(2).start());
    log.seal(SOON).unwrap();
    assert!(path(dir.path(), 2, true).exists(), "its change set is open");
    log.close().unwrap();
    let log = leader(dir.path());
    let end = add(&log, set(3, 10, Cut::Exact));
    log.seal(SOON).unwrap();
    assert!(frames(dir.path(), Lsn::FIRST, end).unwrap().len() >= 3);
    log.close().unwrap();
}
