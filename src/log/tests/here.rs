//! Appends that are written by whoever makes them.

use std::os::unix::fs::FileExt;

use rustix::fs::{SeekFrom, seek};

use super::*;

fn enqueue(log: &Log, (raw, flags): (Vec<u8>, u16)) -> Lsn {
    log.enqueue(raw, flags).unwrap().1
}

#[test]
fn who_waits_writes_and_syncs_without_the_thread() {
    let dir = scratch();
    let log = leader(dir.path());
    for n in 0..20 {
        let end = enqueue(&log, set(n, 300, Cut::Exact));
        assert!(log.tail().end < end, "nobody was told to write it");
        log.write_here();
        assert_eq!((log.tail().end, log.tail().exact), (end, end));
    }
    let end = enqueue(&log, set(20, 300, Cut::Exact));
    log.wake();
    assert!(log.wait_durable(end, SOON).unwrap());
    log.close().unwrap();
    assert_eq!(leader(dir.path()).tail().end, end);
}

#[test]
fn whoever_writes_the_order_is_that_of_the_appends() {
    let dir = scratch();
    // Segments end by themselves all the time: that is work of the thread.
    let log =
        Log::open_leader(LogOptions { segment_timeout: Duration::from_millis(1), ..options(dir.path()) });
    let log = log.unwrap();
    let mut sent = Vec::new();
    for n in 0..400 {
        let (raw, flags) = set(n, 50 + (n as usize * 37) % 3000, Cut::File);
        let (start, end) = if n % 3 == 0 {
            log.append(raw.clone(), flags).unwrap()
        } else {
            let placed = log.enqueue(raw.clone(), flags).unwrap();
            log.write_here();
            placed
        };
        sent.push(Frame { start, end, flags, raw });
    }
    let end = sent.last().unwrap().end;
    assert!(log.wait_durable(end, SOON).unwrap());
    assert_eq!(frames(dir.path(), Lsn::FIRST, end).unwrap(), sent);
    log.close().unwrap();
    assert_eq!(leader(dir.path()).tail().end, end);
}

#[test]
fn a_small_piece_is_written_by_who_received_it_and_synced_by_the_thread() {
    let (a, b) = (scratch(), scratch());
    let (log, copy) = (leader(a.path()), follower(b.path()));
    let end = add(&log, set(0, 100, Cut::Exact));
    assert!(log.wait_durable(end, SOON).unwrap());
    ship(&log, &copy, 1 << 20);
    let (mut segment, mut offset) = copy.resume_at().unwrap();
    for n in 1..30 {
        let end = add(&log, set(n, 500, Cut::Exact));
        assert!(log.wait_durable(end, SOON).unwrap());
        let mut reader = StoredReader::new(log.dir(), TimelineId::FIRST, segment, offset);
        let (s, o, bytes) = piece_of(&mut reader, &log.tail(), 1 << 20).unwrap();
        // The thread may be about to leave its place.
        let deadline = Instant::now() + SOON;
        while !copy.append_stored_here(s, o, &bytes).unwrap() {
            assert!(Instant::now() < deadline, "the place is never free");
        }
        assert_eq!(copy.written(), end, "the operating system has it at once");
        assert!(copy.wait_durable(end, SOON).unwrap());
        (segment, offset) = copy.resume_at().unwrap();
    }
    assert_eq!(copy.tail(), log.tail());
    // What does not continue the log is refused as ever, and a large piece is not taken here. The thread may be about to leave.
    let refused = |offset: u64, bytes: &[u8]| {
        let deadline = Instant::now() + SOON;
        loop {
            match copy.append_stored_here(segment, offset, bytes) {
                Err(e) => return e.kind(),
                Ok(taken) => assert!(!taken && Instant::now() < deadline, "it is not refused"),
            }
        }
    };
    refused(offset + 1, b"x");
    assert!(!copy.append_stored_here(segment, offset, &vec![0; PIECE_HERE + 1]).unwrap());
    assert_eq!(refused(offset, &[0xEE; 64]), ErrorKind::Corrupt);
    assert_eq!(copy.resume_at().unwrap(), (segment, offset));
}

#[test]
fn the_end_of_a_segment_is_left_to_the_thread() {
    let (a, b) = (scratch(), scratch());
    let (log, copy) = (leader(a.path()), follower(b.path()));
    let mut end = Lsn::ZERO;
    for n in 0..160 {
        end = add(&log, set(n, 250_000, Cut::Exact));
    }
    assert!(log.wait_durable(end, SOON).unwrap());
    let mut reader = StoredReader::new(log.dir(), TimelineId::FIRST, SegmentNo(1), 0);
    let (mut here, mut there) = (0, 0);
    while let Some((segment, offset, bytes)) = piece_of(&mut reader, &log.tail(), 30_000) {
        if copy.append_stored_here(segment, offset, &bytes).unwrap() {
            here += 1;
        } else {
            there += 1;
            copy.append_stored(segment, offset, &bytes).unwrap();
            // At rest again.
            let deadline = Instant::now() + SOON;
            while !lock(&copy.shared.queue).at_rest() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
    assert!(here > 0 && here + there > 1000, "{here} {there}");
    assert!(copy.wait_durable(end, SOON).unwrap());
    assert_eq!(copy.tail(), log.tail());
    for segment in 1..=log.tail().segment.0 {
        let partial = segment == log.tail().segment.0;
        let (ours, theirs) = (path(b.path(), segment, partial), path(a.path(), segment, partial));
        let len = if partial { log.tail().offset } else { fs::metadata(&theirs).unwrap().len() };
        let mut bytes = [vec![0; usize::try_from(len).unwrap()], vec![0; usize::try_from(len).unwrap()]];
        File::open(ours).unwrap().read_exact_at(&mut bytes[0], 0).unwrap();
        File::open(theirs).unwrap().read_exact_at(&mut bytes[1], 0).unwrap();
        assert!(bytes[0] == bytes[1], "segment {segment}");
    }
}

/// Where small pieces are appended a sync finds blocks that were written before: allocated ones that were not are a hole.
#[test]
fn small_appends_go_to_where_zeros_were_written_and_large_ones_write_nothing_twice() {
    let dir = tempfile::tempdir().unwrap();
    let log = leader(dir.path());
    let file = File::open(path(dir.path(), 1, true));
    assert!(file.is_err(), "it begins with the first append");
    let end = add(&log, set(0, 100, Cut::Exact));
    assert!(log.wait_durable(end, SOON).unwrap());
    let file = File::open(path(dir.path(), 1, true)).unwrap();
    let hole = || seek(&file, SeekFrom::Hole(0)).unwrap();
    let first = hole();
    assert!(first >= 128 << 10, "{first}");
    for n in 1..20 {
        add(&log, set(n, 100, Cut::Exact));
    }
    let end = add(&log, set(20, 100, Cut::Exact));
    assert!(log.wait_durable(end, SOON).unwrap());
    assert_eq!(hole(), first, "nothing new was needed");
    let end = add(&log, set(21, 250_000, Cut::Exact));
    assert!(log.wait_durable(end, SOON).unwrap());
    assert!(hole() < log.tail().offset + (64 << 10), "no zeros behind what is large");
}

#[test]
fn a_log_knows_where_its_segments_ended_after_a_restart_too() {
    let dir = scratch();
    let copy = scratch();
    let (log, follower) = (
        Log::open_leader(LogOptions { segment_timeout: Duration::ZERO, ..options(dir.path()) }).unwrap(),
        follower(copy.path()),
    );
    let ends: Vec<Lsn> = (0..3).map(|n| add(&log, set(n, 100, Cut::Exact))).collect();
    assert!(log.wait_durable(ends[2], SOON).unwrap());
    ship(&log, &follower, 1000);
    let written = ends[2].since(ends[2].segment().start());
    assert!(ends[2].since(ends[0]) > 1 << 20, "each has a segment of its own");
    for known in [log.gaps(), follower.gaps()] {
        assert_eq!(known.between(ends[0], ends[2]), 2 * written);
        assert_eq!(known.between(ends[1], ends[2]), written);
    }
    log.close().unwrap();
    follower.close().unwrap();
    for log in [leader(dir.path()), self::follower(copy.path())] {
        assert_eq!(log.gaps().between(ends[0], ends[2]), 2 * written);
    }
}
