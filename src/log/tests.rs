use std::fs;

use super::*;

use crate::record::Commit;
use crate::segment::file_name;

const SYSTEM: SystemId = SystemId(0x0123_4567_89AB_CDEF);
const SOON: Duration = Duration::from_secs(20);

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

/// Sends everything durable in `from` to `to`, in pieces of `piece` bytes.
fn ship(from: &Log, to: &Log, piece: usize) {
    let (segment, offset) = to.resume_at().unwrap();
    let segment = segment.max(SegmentNo(1));
    let mut reader = StoredReader::open(from.dir(), TimelineId::FIRST, segment, offset).unwrap();
    while let Some((segment, offset, bytes)) = reader.read(&from.tail(), piece).unwrap() {
        to.append_stored(segment, offset, &bytes).unwrap();
    }
    assert!(to.wait_durable(from.tail().end, SOON).unwrap());
    to.resume_at().unwrap();
}

#[test]
fn what_is_appended_is_read_back_after_reopening() {
    let dir = tempfile::tempdir().unwrap();
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
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
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
