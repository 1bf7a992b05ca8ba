use std::fs;
use std::process::{Command, Stdio};

use proptest::prelude::*;

use super::*;
use crate::record::Commit;
use crate::segment::file_name;

const SYSTEM: SystemId = SystemId(0x0123_4567_89AB_CDEF);
const SOON: Duration = Duration::from_secs(20);

/// A directory in memory where there is one: these tests sync thousands of times.
fn scratch() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap()
}

fn options(dir: &Path) -> LogOptions {
    LogOptions {
        dir: dir.to_owned(),
        system: SYSTEM,
        timeline: TimelineId::FIRST,
        segment_timeout: Duration::from_secs(3600),
        level: 1,
    }
}

fn leader(dir: &Path) -> Log {
    Log::open_leader(options(dir)).unwrap()
}

fn follower(dir: &Path) -> Log {
    Log::open_follower(options(dir)).unwrap()
}

/// A write record of `len` bytes that don't compress.
fn write(out: &mut Vec<u8>, seed: u64, len: usize) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let data: Vec<u8> = (0..len).map(|_| rng.u8(..)).collect();
    Record::Write { id: crate::position::FileId(7), offset: 0, data: &data }.encode(out);
}

fn commit(out: &mut Vec<u8>, cut: Cut, time: i64) {
    Record::Commit(Commit { cut, partial: false, time, meta: 1, content: 2, inodes: 3 }).encode(out);
}

/// A change set in one frame with `len` bytes of data.
fn set(seed: u64, len: usize, cut: Cut) -> (Vec<u8>, u16) {
    let mut raw = Vec::new();
    write(&mut raw, seed, len);
    commit(&mut raw, cut, 1000 + i64::try_from(seed).unwrap());
    let exact = if cut == Cut::Exact { flags::EXACT } else { 0 };
    (raw, flags::STARTS | flags::ENDS | exact)
}

fn part(seed: u64, len: usize, first: bool) -> (Vec<u8>, u16) {
    let mut raw = Vec::new();
    for n in 0..len.div_ceil(256 << 10) as u64 {
        write(&mut raw, seed + n, (len - n as usize * (256 << 10)).min(256 << 10));
    }
    (raw, if first { flags::STARTS } else { 0 })
}

fn add(log: &Log, (raw, flags): (Vec<u8>, u16)) -> Lsn {
    log.append(raw, flags).unwrap().1
}

fn frames(dir: &Path, from: Lsn, limit: Lsn) -> Result<Vec<Frame>> {
    let mut reader = FrameReader::open(dir, SYSTEM, TimelineId::FIRST, from)?;
    let mut out = Vec::new();
    while let Some(frame) = reader.next(limit)? {
        out.push(frame);
    }
    Ok(out)
}

fn path(dir: &Path, segment: u64, partial: bool) -> PathBuf {
    dir.join(file_name(TimelineId::FIRST, SegmentNo(segment), partial))
}

/// The next durable bytes, at most `max`.
fn piece_of(reader: &mut StoredReader, tail: &Tail, max: usize) -> Option<(SegmentNo, u64, Vec<u8>)> {
    let ahead = reader.ahead(tail).unwrap()?;
    let mut bytes = vec![0; usize::try_from(ahead.len).unwrap().min(max)];
    reader.read(&mut bytes).unwrap();
    reader.advance(bytes.len() as u64);
    Some((ahead.segment, ahead.offset, bytes))
}

/// Sends everything durable in `from` to `to`, in pieces of `piece` bytes.
fn ship(from: &Log, to: &Log, piece: usize) {
    let (segment, offset) = to.resume_at().unwrap();
    let segment = segment.max(SegmentNo(1));
    let mut reader = StoredReader::new(from.dir(), TimelineId::FIRST, segment, offset);
    while let Some((segment, offset, bytes)) = piece_of(&mut reader, &from.tail(), piece) {
        to.append_stored(segment, offset, &bytes).unwrap();
    }
    assert!(to.wait_durable(from.tail().end, SOON).unwrap());
    to.resume_at().unwrap();
}

#[test]
fn what_is_appended_is_read_back_after_reopening() {
    let dir = scratch();
    let log = leader(dir.path());
    assert_eq!(log.tail().end, Lsn::FIRST);
    let mut sent = Vec::new();
    for n in 0..40 {
        let (raw, flags) = set(n, 1000 + n as usize, if n % 3 == 0 { Cut::Exact } else { Cut::File });
        let (start, end) = log.append(raw.clone(), flags).unwrap();
        sent.push(Frame { start, end, flags, raw });
        if n % 7 == 0 {
            assert!(log.wait_durable(end, SOON).unwrap());
            assert_eq!(log.tail().commit, end);
        }
    }
    let end = sent.last().unwrap().end;
    assert!(log.wait_durable(end, SOON).unwrap());
    let tail = log.tail();
    assert_eq!((tail.end, tail.commit, tail.exact), (end, end, end));
    assert_eq!((tail.commit_time, tail.exact_time), (1039, 1039));
    assert_eq!(frames(dir.path(), Lsn::FIRST, end).unwrap(), sent);
    assert_eq!(frames(dir.path(), sent[20].start, sent[30].end).unwrap(), sent[20..31]);
    log.close().unwrap();

    let log = leader(dir.path());
    assert_eq!(log.tail(), tail);
    assert_eq!(frames(dir.path(), Lsn::FIRST, end).unwrap(), sent);
    let (start, _) = log.append(set(99, 10, Cut::File).0, flags::STARTS | flags::ENDS).unwrap();
    assert_eq!(start, end);
}

#[test]
fn a_follower_has_the_same_bytes_and_goes_on_after_a_cut_connection() {
    let (a, b) = (scratch(), scratch());
    let log = leader(a.path());
    let copy = follower(b.path());
    assert_eq!(copy.resume_at().unwrap(), (SegmentNo(0), 0));
    for round in 0..5 {
        for n in 0..9 {
            add(&log, part(n, 1_000_000, n == 0));
        }
        let end = add(&log, (set(round, 100, Cut::Exact).0, flags::ENDS | flags::EXACT));
        assert!(log.wait_durable(end, SOON).unwrap());
        ship(&log, &copy, 77_777);
        assert_eq!(copy.tail(), log.tail());
        // A frame in part, then a new connection.
        let next = log.tail();
        copy.append_stored(next.segment, next.offset, b"Q*M").unwrap();
        assert_eq!(copy.resume_at().unwrap(), (next.segment, next.offset));
        let hash = log.prefix_hash(next.segment, next.offset).unwrap();
        assert!(hash.is_some());
        assert_eq!(copy.prefix_hash(next.segment, next.offset).unwrap(), hash);
    }
    assert!(log.tail().segment > SegmentNo(2));
    let tail = copy.tail();
    copy.close().unwrap();
    let copy = follower(b.path());
    assert_eq!(copy.tail(), tail);
    add(&log, set(5, 5, Cut::Exact));
    log.clone().close().unwrap();
    ship(&log, &copy, 1);
    for segment in 1..log.tail().segment.0 {
        assert_eq!(
            fs::read(path(a.path(), segment, false)).unwrap(),
            fs::read(path(b.path(), segment, false)).unwrap()
        );
    }
    assert_eq!(log.oldest().unwrap(), Lsn::FIRST);
    assert_eq!(log.remove_before(SegmentNo(99)).unwrap(), log.tail().segment.0 - 2);
    assert_eq!(log.oldest().unwrap(), SegmentNo(log.tail().segment.0 - 1).start());
    let gone = frames(a.path(), Lsn::FIRST, log.tail().end).unwrap_err();
    assert_eq!(gone.kind(), ErrorKind::Missing);
}

/// A leader's directory with one open segment: its content up to the durable offset, and the ends of
/// its frames as (offset, LSN), the first being the header's.
struct Stopped {
    dir: tempfile::TempDir,
    bytes: Vec<u8>,
    ends: Vec<(u64, Lsn)>,
}

/// Three change sets of small frames, each synced; the last one is left open.
fn stopped() -> Stopped {
    let dir = scratch();
    let log = leader(dir.path());
    let mut ends = vec![(EMPTY, Lsn::FIRST)];
    for n in 0..3 {
        let end = add(&log, set(n, 20, Cut::Exact));
        assert!(log.wait_durable(end, SOON).unwrap());
        ends.push((log.tail().offset, end));
    }
    let end = add(&log, part(9, 50, true));
    let stop = Arc::clone(&log.shared);
    log.close().unwrap();
    let tail = lock(&stop.progress).tail;
    assert_eq!(tail.end, end);
    ends.push((tail.offset, end));
    let bytes = fs::read(path(dir.path(), 1, true)).unwrap();
    assert!(bytes.len() as u64 > tail.offset, "space is allocated ahead");
    Stopped { dir, bytes: bytes[..usize::try_from(tail.offset).unwrap()].to_vec(), ends }
}

#[test]
fn whatever_length_was_written_the_log_ends_after_the_last_whole_frame() {
    let s = stopped();
    let file = path(s.dir.path(), 1, true);
    for len in 0..=s.bytes.len() {
        let mut bytes = s.bytes[..len].to_vec();
        if len % 2 == 0 {
            bytes.resize(8192, 0);
        }
        fs::write(&file, &bytes).unwrap();
        let whole = s.ends.iter().rev().find(|(at, _)| *at <= len as u64);
        let log = follower(s.dir.path());
        let tail = log.tail();
        match whole {
            None => assert_eq!(tail, Tail::default(), "at {len}"),
            Some((at, lsn)) => {
                assert_eq!((tail.segment, tail.offset, tail.end), (SegmentNo(1), *at, *lsn), "at {len}");
                assert_eq!(
                    tail.commit,
                    if *at == s.ends[4].0 {
                        s.ends[3].1
                    } else if *at == EMPTY {
                        Lsn::ZERO
                    } else {
                        *lsn
                    }
                );
                assert_eq!(log.resume_at().unwrap(), (SegmentNo(1), *at));
            }
        }
        log.close().unwrap();
    }
}

#[test]
fn a_log_that_can_not_be_written_is_read_as_far_as_it_says_it_was_synced() {
    let dir = scratch();
    let log = leader(dir.path());
    let why = Error::new(ErrorKind::DiskFull, "no room");
    let open = || {
        let names = || fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect::<Vec<_>>();
        let before = names();
        let failed = Log::open_failed(options(dir.path()), &why).unwrap();
        assert_eq!(names(), before, "nothing is written");
        assert!(failed.failure().is_some_and(|e| e.kind() == ErrorKind::DiskFull));
        assert_eq!(
            failed.append(Vec::new(), flags::STARTS | flags::ENDS).unwrap_err().kind(),
            ErrorKind::Corrupt
        );
        failed
    };
    assert_eq!(open().tail().end, Lsn::ZERO);
    let mut ends = Vec::new();
    for seed in 0..80 {
        ends.push(add(&log, set(seed, 250_000, Cut::Exact)));
        assert!(log.wait_durable(ends[ends.len() - 1], SOON).unwrap());
        // What the last frame holds is certain only once another one says so.
        let Some(sure) = usize::try_from(seed).unwrap().checked_sub(1) else { continue };
        let tail = open().tail();
        assert_eq!((tail.end, tail.commit), (ends[sure], ends[sure]), "{seed}");
        let mut reader = StoredReader::new(dir.path(), TimelineId::FIRST, SegmentNo(1), 0);
        let mut bytes = 0;
        while let Some((_, _, piece)) = piece_of(&mut reader, &tail, 1 << 20) {
            bytes += piece.len();
        }
        assert!(bytes > sure * 250_000);
    }
    assert!(log.tail().segment > SegmentNo(1));
    log.close().unwrap();
    // The open segment's own end is not vouched for even after a clean stop.
    assert_eq!(open().tail().end, ends[78]);
}

#[test]
fn a_leader_ends_an_open_change_set_by_an_abort() {
    let s = stopped();
    let log = leader(s.dir.path());
    let (last, open) = (s.ends[3].1, s.ends[4].1);
    let tail = log.tail();
    assert_eq!((tail.commit, tail.exact), (last, last));
    let found = frames(s.dir.path(), last, tail.end).unwrap();
    assert_eq!(found.len(), 2);
    assert_eq!((found[1].start, found[1].flags), (open, flags::ENDS | flags::ABORT));
    assert_eq!(Records::new(&found[1].raw).next().unwrap().unwrap().1, Record::Abort);
    let refused = log.append(part(1, 10, false).0, 0).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Usage);
    add(&log, set(1, 10, Cut::File));
    log.close().unwrap();
    assert_eq!(leader(s.dir.path()).tail().end.since(tail.end), set(1, 10, Cut::File).0.len() as u64);
}

#[test]
fn a_change_set_whose_second_segment_is_lost_is_passed_over_by_all() {
    let (ours, theirs) = (scratch(), scratch());
    let log =
        Log::open_leader(LogOptions { segment_timeout: Duration::ZERO, ..options(ours.path()) }).unwrap();
    for raw in [set(1, 300, Cut::Exact), part(2, 300, true)] {
        let end = add(&log, raw);
        assert!(log.wait_durable(end, SOON).unwrap());
    }
    let half = log.tail().end;
    ship(&log, &follower(theirs.path()), 100);
    let end = add(&log, part(3, 300, false));
    assert!(log.wait_durable(end, SOON).unwrap());
    log.close().unwrap();
    for partial in [false, true] {
        let _ = fs::remove_file(path(ours.path(), half.segment().0.max(3), partial));
    }
    let log = leader(ours.path());
    let abort = log.tail().end;
    assert!(abort > half && log.tail().commit < half);
    let end = add(&log, set(4, 300, Cut::Exact));
    assert!(log.wait_durable(end, SOON).unwrap());
    let theirs = follower(theirs.path());
    ship(&log, &theirs, 100);
    assert_eq!((theirs.tail().commit, theirs.tail().exact), (end, end));
}

#[test]
fn a_torn_end_is_cut_off_but_damage_stops_a_leader() {
    let s = stopped();
    let file = path(s.dir.path(), 1, true);
    for at in 0..s.bytes.len() {
        let mut bytes = s.bytes.clone();
        bytes[at] ^= 0x55;
        fs::write(&file, &bytes).unwrap();
        // Each frame says how much was durable before it: only the last synced frames lack a witness.
        let place = s.ends.iter().position(|(end, _)| (at as u64) < *end).unwrap();
        match Log::open_leader(options(s.dir.path())) {
            Err(e) => {
                assert!(place <= 3 && e.kind() == ErrorKind::Corrupt, "byte {at}: {e}");
                assert!(e.to_string().contains("is damaged at byte"), "{e}");
            }
            Ok(log) => {
                assert!(place > 3, "byte {at}");
                assert_eq!(log.tail().end, s.ends[place - 1].1, "byte {at}");
            }
        }
        // A follower can fetch it again: it goes back to what is good.
        fs::write(&file, &bytes).unwrap();
        if at >= usize::try_from(EMPTY).unwrap() {
            assert_eq!(follower(s.dir.path()).tail().end, s.ends[place - 1].1, "byte {at}");
        }
    }
}

/// A log of three segments, the last one open.
fn three(dir: &Path) -> Lsn {
    let log = Log::open_leader(LogOptions { segment_timeout: Duration::ZERO, ..options(dir) }).unwrap();
    add(&log, set(1, 300, Cut::Exact));
    add(&log, set(2, 300, Cut::Exact));
    log.close().unwrap();
    let log = leader(dir);
    let end = add(&log, set(3, 300, Cut::Exact));
    log.close().unwrap();
    end
}

#[test]
fn a_follower_never_ends_a_segment_by_itself() {
    let (a, b) = (scratch(), scratch());
    let log = leader(a.path());
    add(&log, set(1, 10, Cut::Exact));
    let end = add(&log, set(2, 10, Cut::Exact));
    assert!(log.wait_durable(end, SOON).unwrap());
    ship(&log, &follower(b.path()), 50);
    // Its open segment is older than the timeout when it is opened again.
    let copy =
        Log::open_follower(LogOptions { segment_timeout: Duration::ZERO, ..options(b.path()) }).unwrap();
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(copy.tail(), log.tail());
    let end = add(&log, set(3, 10, Cut::Exact));
    assert!(log.wait_durable(end, SOON).unwrap());
    ship(&log, &copy, 50);
    drop(copy);
    assert!(path(b.path(), 1, true).exists() && !path(b.path(), 1, false).exists());
    log.close().unwrap();
    let mut out = Vec::new();
    inspect::stat(&inspect::files(&[a.path().into(), b.path().into()]).unwrap(), false, &mut out).unwrap();
    let text = String::from_utf8(out).unwrap();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines[1], lines[2], "{text}");
}

#[test]
fn end_torn_corrupt_and_missing_are_told_apart() {
    let dir = scratch();
    let end = three(dir.path());
    assert_eq!(frames(dir.path(), Lsn::FIRST, end).unwrap().len(), 3);
    assert!(frames(dir.path(), end, end).unwrap().is_empty());
    let inside = frames(dir.path(), Lsn(Lsn::FIRST.0 + 1), end).unwrap_err();
    assert_eq!(inside.kind(), ErrorKind::Corrupt);
    // A limit beyond what is there is damage of the newest segment, not its end.
    assert_eq!(frames(dir.path(), Lsn::FIRST, Lsn(end.0 + 1)).unwrap_err().kind(), ErrorKind::Corrupt);
    let all = inspect::files(&[dir.path().to_owned()]).unwrap();
    assert!(inspect::verify(&all, false, &mut Vec::new()).is_ok());

    let middle = path(dir.path(), 2, false);
    let good = fs::read(&middle).unwrap();
    for at in 0..good.len() {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        fs::write(&middle, &bytes).unwrap();
        let e = inspect::verify(&all[..2], false, &mut Vec::new()).unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Corrupt, "byte {at}");
        // Readers trust the frames' checksums; what only the SHA-256 shows is the trailer's own.
        if at < good.len() - 32 {
            assert_eq!(
                frames(dir.path(), Lsn::FIRST, end).unwrap_err().kind(),
                ErrorKind::Corrupt,
                "byte {at}"
            );
        }
    }
    for len in 0..good.len() {
        fs::write(&middle, &good[..len]).unwrap();
        let e = inspect::verify(&all[1..2], false, &mut Vec::new()).unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Corrupt, "length {len}");
        assert_eq!(
            frames(dir.path(), Lsn::FIRST, end).unwrap_err().kind(),
            ErrorKind::Corrupt,
            "length {len}"
        );
    }
    fs::remove_file(&middle).unwrap();
    assert_eq!(frames(dir.path(), Lsn::FIRST, end).unwrap_err().kind(), ErrorKind::Missing);
    let rest = inspect::files(&[dir.path().to_owned()]).unwrap();
    let e = inspect::verify(&rest, false, &mut Vec::new()).unwrap_err();
    assert_eq!((e.kind(), rest.len()), (ErrorKind::Corrupt, 2));
    // What follows a hole is the log that is left.
    let log = leader(dir.path());
    assert_eq!(log.oldest().unwrap(), SegmentNo(3).start());
}

#[test]
fn a_log_of_another_system_is_refused() {
    let dir = scratch();
    three(dir.path());
    for open in [Log::open_leader, Log::open_follower] {
        let e = open(LogOptions { system: SystemId(1), ..options(dir.path()) }).unwrap_err();
        assert!(e.to_string().contains("it belongs to system"), "{e}");
    }
}

#[test]
fn a_seal_that_was_interrupted_is_finished() {
    let dir = scratch();
    three(dir.path());
    fs::remove_file(path(dir.path(), 3, true)).unwrap();
    let (open, sealed) = (path(dir.path(), 2, true), path(dir.path(), 2, false));
    let good = fs::read(&sealed).unwrap();
    let tail = leader(dir.path()).tail();
    // The trailer was written in part.
    for cut in 1..TRAILER_LEN {
        let mut short = good[..good.len() - cut].to_vec();
        short.resize(64 << 10, 0);
        fs::rename(&sealed, &open).unwrap();
        fs::write(&open, &short).unwrap();
        let log = leader(dir.path());
        assert_eq!((log.tail().end, log.tail().segment), (tail.end, tail.segment));
        assert_eq!(log.tail().offset, tail.offset - TRAILER_LEN as u64);
        log.close().unwrap();
        let _ = fs::remove_file(&open);
        fs::write(&sealed, &good).unwrap();
    }
    // The trailer was written, but the file was not cut, not synced, or not renamed.
    fs::rename(&sealed, &open).unwrap();
    let mut long = good.clone();
    long.resize(1 << 20, 0);
    fs::write(&open, &long).unwrap();
    fs::write(dir.path().join("000000010000000000000002.partial.new"), b"an interrupted start").unwrap();
    let log = leader(dir.path());
    assert_eq!(log.tail(), tail);
    assert_eq!(fs::read(&sealed).unwrap(), good);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    add(&log, set(5, 5, Cut::Exact));
    log.close().unwrap();
    inspect::verify(&inspect::files(&[dir.path().to_owned()]).unwrap(), true, &mut Vec::new()).unwrap();
}

#[test]
fn a_follower_takes_in_no_damaged_byte() {
    let (a, b) = (scratch(), scratch());
    three(a.path());
    let good = fs::read(path(a.path(), 1, false)).unwrap();
    for at in 0..good.len() {
        let _ = fs::remove_dir_all(b.path());
        let copy = follower(b.path());
        let mut bytes = good.clone();
        bytes[at] ^= 4;
        let result = copy.append_stored(SegmentNo(1), 0, &bytes);
        let rest = copy.resume_at();
        match (result, rest) {
            // Found at once; or when the segment is sealed; or a longer frame is waited for.
            (Err(e), _) | (Ok(()), Err(e)) => assert_eq!(e.kind(), ErrorKind::Corrupt, "byte {at}: {e}"),
            (Ok(()), Ok((segment, offset))) => {
                assert_eq!(segment, SegmentNo(if offset == 0 { 0 } else { 1 }), "byte {at}");
                assert!(offset <= at as u64, "byte {at}");
            }
        }
        let tail = copy.tail();
        drop(copy);
        assert!(tail.offset <= at as u64 || tail.offset < good.len() as u64, "byte {at}");
        if tail.offset > 0 {
            let stored = fs::read(path(b.path(), 1, true)).unwrap();
            let len = usize::try_from(tail.offset).unwrap();
            assert!(stored[..len] == good[..len], "byte {at}");
        }
    }
}

#[test]
fn bytes_that_do_not_continue_the_log_are_refused() {
    let (a, b) = (scratch(), scratch());
    three(a.path());
    let first = fs::read(path(a.path(), 1, false)).unwrap();
    let second = fs::read(path(a.path(), 2, false)).unwrap();
    let copy = follower(b.path());
    assert!(copy.append_stored(SegmentNo(1), 5, &first[5..]).is_err());
    copy.append_stored(SegmentNo(1), 0, &first[..200]).unwrap();
    for (segment, offset) in [(1, 0), (1, 199), (1, 201), (2, 0)] {
        let e = copy.append_stored(SegmentNo(segment), offset, &first[200..]).unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Corrupt);
    }
    copy.append_stored(SegmentNo(1), 200, &first[200..]).unwrap();
    assert!(copy.append_stored(SegmentNo(3), 0, &second).is_err());
    assert_eq!(copy.resume_at().unwrap(), (SegmentNo(2), 0));
    // A segment 2 that is intact but was written after another segment 1.
    let other = scratch();
    let log =
        Log::open_leader(LogOptions { segment_timeout: Duration::ZERO, ..options(other.path()) }).unwrap();
    for n in 0..3 {
        add(&log, set(n + 50, 300, Cut::Exact));
    }
    log.close().unwrap();
    let foreign = fs::read(path(other.path(), 2, false)).unwrap();
    let e = copy.append_stored(SegmentNo(2), 0, &foreign).unwrap_err();
    assert!(e.to_string().contains("the segment before it is not the one"), "{e}");
    copy.append_stored(SegmentNo(2), 0, &second).unwrap();
    assert_eq!(copy.resume_at().unwrap(), (SegmentNo(3), 0));
    assert!(copy.append(set(1, 1, Cut::File).0, 3).is_err());
}

#[test]
fn records_that_are_not_whole_or_flags_that_lie_are_refused() {
    let dir = scratch();
    let log = leader(dir.path());
    let (raw, flags) = set(1, 10, Cut::Exact);
    let mut more = raw.clone();
    write(&mut more, 1, 5);
    let bad = [
        (raw.clone(), flags & !flags::ENDS & !flags::EXACT),
        (raw.clone(), flags & !flags::EXACT),
        (raw[..raw.len() - 1].to_vec(), flags),
        (Vec::new(), flags::STARTS),
        (more, flags),
        (raw, flags & !flags::STARTS),
    ];
    for (n, (raw, flags)) in bad.into_iter().enumerate() {
        assert!(log.append(raw, flags).is_err(), "{n}");
    }
    assert_eq!(log.tail().end, Lsn::FIRST);
    assert!(log.failure().is_none());
}

#[test]
fn zstd_itself_reads_a_segment() {
    let dir = scratch();
    let log = leader(dir.path());
    let mut records = Vec::new();
    for n in 0..18 {
        let (raw, flags) = part(n, 900_000, n == 0);
        records.extend_from_slice(&raw);
        add(&log, (raw, flags));
    }
    add(&log, part(99, 1_000_000, false));
    log.close().unwrap();
    let sealed = path(dir.path(), 1, false);
    assert!(zstd::decode_all(File::open(&sealed).unwrap()).unwrap() == records);
    let open = |args: &[&str]| {
        Command::new("zstd").args(args).stdin(File::open(&sealed).unwrap()).stderr(Stdio::null()).output()
    };
    // Where the program is installed, it agrees with its library.
    if let Ok(tested) = open(&["-t"]) {
        assert!(tested.status.success());
        assert!(open(&["-dc"]).unwrap().stdout == records);
    }
    // Data that don't compress take less than a hundredth more.
    assert!(fs::metadata(&sealed).unwrap().len() < records.len() as u64 * 101 / 100);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    /// A power cut keeps what was durable and any part of what was written after it.
    #[test]
    fn what_was_durable_survives_any_stop(
        sets in proptest::collection::vec((1usize..3, 1usize..40_000, any::<bool>()), 1..20),
        keep in any::<prop::sample::Index>(),
        junk in proptest::collection::vec(any::<u8>(), 0..100),
        again in any::<bool>(),
    ) {
        let dir = scratch();
        let log = Log::open_leader(LogOptions { segment_timeout: Duration::from_millis(3), ..options(dir.path()) }).unwrap();
        let mut sent = Vec::new();
        for (n, (parts, len, wait)) in sets.iter().enumerate() {
            for p in 0..*parts {
                let (raw, flags) = part(n as u64, *len, p == 0);
                sent.push(log.append(raw, flags).unwrap());
            }
            let (raw, flags) = set(n as u64, *len, Cut::Exact);
            sent.push(log.append(raw, flags & !flags::STARTS).unwrap());
            if *wait {
                prop_assert!(log.wait_durable(sent.last().unwrap().1, SOON).unwrap());
            }
        }
        // The disk as a cut leaves it: durable bytes, some of the later ones, and the rest zero or old.
        let durable = log.tail();
        let crashed = scratch();
        for (segment, _) in recover::list(dir.path(), TimelineId::FIRST).unwrap() {
            if segment > durable.segment { continue; }
            let Some(reader::Opened { file, .. }) = reader::open_segment(dir.path(), TimelineId::FIRST, segment).unwrap() else { continue };
            let (sealed, len) = (segment < durable.segment, file.metadata().unwrap().len());
            let mut bytes = vec![0; usize::try_from(len).unwrap()];
            let n = sys::read_at(&file, &mut bytes, 0).unwrap();
            bytes.truncate(n);
            if !sealed {
                let least = usize::try_from(durable.offset).unwrap();
                let kept = least + keep.index(bytes.len() - least + 1);
                bytes[kept..].fill(0);
                let end = (kept + junk.len()).min(bytes.len());
                if kept > least {
                    bytes[kept..end].copy_from_slice(&junk[..end - kept]);
                }
            }
            fs::write(path(crashed.path(), segment.0, !sealed), bytes).unwrap();
        }
        log.close().unwrap();
        let reopened = leader(crashed.path());
        let end = reopened.tail().end;
        prop_assert!(end >= durable.end, "{end} {durable:?}");
        prop_assert!(reopened.tail().commit >= durable.commit);
        let found = frames(crashed.path(), Lsn::FIRST, end).unwrap();
        let whole = found.iter().filter(|f| f.flags & flags::ABORT == 0);
        for (frame, (start, end)) in whole.zip(&sent) {
            prop_assert_eq!((frame.start, frame.end), (*start, *end));
        }
        if again {
            let end = add(&reopened, set(77, 7, Cut::File));
            prop_assert!(reopened.wait_durable(end, SOON).unwrap());
        }
        if reopened.tail().offset == 0 {
            return Ok(()); // Nothing had reached the disk.
        }
        let (copies, tail) = (scratch(), reopened.tail());
        let copy = follower(copies.path());
        ship(&reopened, &copy, 999);
        prop_assert_eq!(copy.tail(), tail);
        reopened.close().unwrap();
        inspect::verify(&inspect::files(&[crashed.path().to_owned()]).unwrap(), false, &mut Vec::new()).unwrap();
    }
}

mod branch;
#[cfg(feature = "failpoints")]
mod faults;
mod here;
mod seal;
