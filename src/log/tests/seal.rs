//! Segments that are ended before they are full.

use super::*;

#[test]
fn a_segment_whose_time_has_come_is_sealed_without_further_writes() {
    let dir = scratch();
    let timeout = Duration::from_millis(50);
    let log = Log::open_leader(LogOptions { segment_timeout: timeout, ..options(dir.path()) }).unwrap();
    let end = add(&log, set(1, 10, Cut::Exact));
    assert!(log.wait_durable(end, SOON).unwrap());
    let begun = Instant::now();
    while !path(dir.path(), 1, false).exists() {
        assert!(begun.elapsed() < SOON);
        std::thread::sleep(Duration::from_millis(5));
    }
    let (start, next) = log.append(set(2, 10, Cut::Exact).0, set(2, 10, Cut::Exact).1).unwrap();
    assert_eq!(start, SegmentNo(2).start());
    assert!(log.wait_durable(next, SOON).unwrap());
    assert_eq!(frames(dir.path(), Lsn::FIRST, next).unwrap().len(), 2);
    assert_eq!(frames(dir.path(), end, next).unwrap().len(), 1);
    // A position in the jump is the beginning of the next segment.
    assert_eq!(frames(dir.path(), Lsn(end.0 + 1), next).unwrap().len(), 1);
    log.close().unwrap();
    let mut out = Vec::new();
    inspect::verify(&inspect::files(&[dir.path().to_owned()]).unwrap(), false, &mut out).unwrap();
    // Sealed since somebody listed it.
    let listed = path(dir.path(), 1, true);
    inspect::verify(std::slice::from_ref(&listed), false, &mut out).unwrap();
    assert_eq!(inspect::files(&[listed]).unwrap(), [path(dir.path(), 1, false)]);
}

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
