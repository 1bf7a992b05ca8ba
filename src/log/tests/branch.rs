//! Logs across a branch.

use super::*;
use crate::history::{Beginning, History};

fn begins(at: Lsn) -> Beginning {
    Beginning::sample(at, at.0 | 1)
}

fn child(of: &History, at: Lsn) -> History {
    of.child(begins(at), TimelineId::FIRST).unwrap()
}

fn root() -> History {
    History::first(SYSTEM)
}

/// Ends lines; what was put aside, by name.
fn end(dir: &Path, history: &History) -> (LineCut, Vec<String>) {
    let lost = dir.join("lost");
    let cut = end_lines(dir, history, || {
        fs::create_dir_all(&lost).unwrap();
        Ok(lost.clone())
    });
    (cut.unwrap(), names(&lost))
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(dir)
        .into_iter()
        .flatten()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .filter(|n| n != "lost")
        .collect();
    names.sort();
    names
}

fn on(dir: &Path, history: &History) -> LogOptions {
    LogOptions { timeline: history.timeline(), ..options(dir) }
}

fn read(dir: &Path, history: &History, from: Lsn, limit: Lsn) -> Vec<Frame> {
    let mut reader = FrameReader::open(dir, SYSTEM, history.timeline(), from).unwrap();
    std::iter::from_fn(|| reader.next(limit).unwrap()).collect()
}

/// A leader's log of three change sets and, if asked for, the beginning of a fourth; where each ended.
fn old_line(dir: &Path, open: bool) -> (Log, Vec<Lsn>) {
    let log = leader(dir);
    let mut ends: Vec<Lsn> = (0..3).map(|n| add(&log, set(n, 1000, Cut::Exact))).collect();
    if open {
        ends.push(add(&log, part(9, 5000, true)));
    }
    assert!(log.wait_durable(*ends.last().unwrap(), SOON).unwrap() || open);
    (log, ends)
}

/// A restore that begins a line within the segment where another promotion ended the old one.
#[test]
fn a_copy_of_what_one_branch_has_ended_is_ended_before_that_by_another() {
    let dir = scratch();
    let (log, ends) = old_line(dir.path(), false);
    log.close().unwrap();
    end(dir.path(), &child(&root(), ends[2]));
    let other = root().child(Beginning::sample(ends[1], 77), TimelineId(2)).unwrap();
    end_copied_lines(dir.path(), &other).unwrap();
    assert_eq!(names(dir.path()), ["000000010000000000000001.00000003"]);
    let log = Log::open_leader(on(dir.path(), &other)).unwrap();
    assert_eq!((log.tail().end, log.tail().commit), (ends[1], ends[1]));
    let after = add(&log, set(30, 500, Cut::Exact));
    assert!(log.wait_durable(after, SOON).unwrap());
    assert_eq!(read(dir.path(), &other, Lsn::FIRST, after).len(), 3);
}

const ENDED: &str = "000000010000000000000001.00000002";

#[test]
fn an_open_change_set_is_aborted_by_the_new_line_and_whoever_has_a_part_of_it_goes_on() {
    let (a, b) = (scratch(), scratch());
    let (log, ends) = old_line(a.path(), true);
    log.close().unwrap();
    let branch = *ends.last().unwrap();
    let history = child(&root(), branch);
    let (cut, lost) = end(a.path(), &history);
    assert_eq!((cut, lost.len(), names(a.path())), (LineCut::default(), 0, vec![ENDED.to_owned()]));
    assert_eq!(end(a.path(), &history).0, LineCut::default(), "again");
    let log = Log::open_leader(on(a.path(), &history)).unwrap();
    let tail = log.tail();
    assert_eq!((tail.commit, tail.segment), (ends[2], SegmentNo(2)));
    let after = add(&log, set(20, 500, Cut::Exact));
    assert!(log.wait_durable(after, SOON).unwrap());
    let all = read(a.path(), &history, Lsn::FIRST, after);
    assert_eq!(all.len(), 6);
    assert!(all[4].flags & flags::ABORT != 0 && all[4].start == SegmentNo(2).start());
    assert_eq!(read(a.path(), &history, ends[2], after).len(), 3, "from before the branch");
    // A follower that had less of it than the branch takes the rest of the old line, and then the new one.
    let copy = follower(b.path());
    let bytes = fs::read(a.path().join(ENDED)).unwrap();
    let frames = bytes.len() - TRAILER_LEN;
    copy.append_stored(SegmentNo(1), 0, &bytes[..frames]).unwrap();
    assert!(copy.wait_durable(branch, SOON).unwrap());
    copy.close().unwrap();
    end(b.path(), &history);
    assert_eq!(fs::read(b.path().join(ENDED)).unwrap(), bytes, "the same bytes everywhere");
    let copy = Log::open_follower(on(b.path(), &history)).unwrap();
    assert_eq!(copy.resume_at().unwrap(), (SegmentNo(2), 0));
    assert_eq!(
        copy.prefix_hash(SegmentNo(1), bytes.len() as u64).unwrap(),
        log.prefix_hash(SegmentNo(1), bytes.len() as u64).unwrap()
    );
    // Nothing of the old line is taken any more.
    let mut stale = bytes[..HEADER_LEN].to_vec();
    stale[32..40].copy_from_slice(&2_u64.to_le_bytes());
    assert_eq!(copy.append_stored(SegmentNo(2), 0, &stale).unwrap_err().kind(), ErrorKind::Corrupt);
    copy.resume_at().unwrap();
    let mut reader = StoredReader::new(a.path(), history.timeline(), SegmentNo(2), 0);
    while let Some((segment, offset, bytes)) = piece_of(&mut reader, &log.tail(), 77) {
        copy.append_stored(segment, offset, &bytes).unwrap();
    }
    assert!(copy.wait_durable(after, SOON).unwrap());
    assert_eq!(copy.tail(), log.tail());
    assert_eq!(log.oldest().unwrap(), Lsn::FIRST);
    log.close().unwrap();
    inspect::verify(&inspect::files(&[a.path().to_owned()]).unwrap(), false, &mut Vec::new()).unwrap();
}

#[test]
fn log_past_a_branch_is_put_aside_whole_and_what_counts_stays() {
    let dir = scratch();
    let (log, ends) = old_line(dir.path(), false);
    // More segments after it.
    let mut last = ends[2];
    for n in 0..20 {
        last = add(&log, part(n, 900 << 10, true));
        last = last.max(add(&log, {
            let (raw, f) = set(n, 10, Cut::File);
            (raw, f & !flags::STARTS)
        }));
    }
    assert!(log.wait_durable(last, SOON).unwrap());
    log.close().unwrap();
    assert_eq!(names(dir.path()).len(), 2);
    let history = child(&root(), ends[1]);
    let (cut, lost) = end(dir.path(), &history);
    assert_eq!((cut.aside, cut.end), (2, last));
    assert_eq!(lost, ["000000010000000000000001", "000000010000000000000002.partial"]);
    assert_eq!(names(dir.path()), [ENDED]);
    let log = Log::open_leader(on(dir.path(), &history)).unwrap();
    assert_eq!((log.tail().end, log.tail().commit), (ends[1], ends[1]));
    assert_eq!(read(dir.path(), &history, Lsn::FIRST, ends[1]).len(), 2);
    let next = add(&log, set(9, 10, Cut::Exact));
    assert!(log.wait_durable(next, SOON).unwrap());
    assert_eq!(next.segment(), SegmentNo(2));
    // And a further branch, of a line that is one segment old.
    log.close().unwrap();
    let third = child(&history, next);
    end(dir.path(), &third);
    assert_eq!(names(dir.path()), [ENDED, "000000020000000000000002.00000003"]);
    let log = Log::open_leader(on(dir.path(), &third)).unwrap();
    assert_eq!((log.tail().end, log.remove_before(SegmentNo(9)).unwrap()), (next, 1));
    assert_eq!(names(dir.path()), ["000000020000000000000002.00000003"], "the newest sealed one stays");
}

#[test]
fn a_line_that_sealed_its_segment_at_the_branch_is_left_as_it_is() {
    let dir = scratch();
    let mut o = options(dir.path());
    o.segment_timeout = Duration::from_millis(1);
    let log = Log::open_leader(o).unwrap();
    let at = add(&log, set(1, 100, Cut::Exact));
    assert!(log.wait_durable(at, SOON).unwrap());
    let deadline = Instant::now() + SOON;
    while path(dir.path(), 1, true).exists() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
    log.close().unwrap();
    let own = ["000000010000000000000001".to_owned()];
    assert_eq!(names(dir.path()), own);
    let before = fs::read(path(dir.path(), 1, false)).unwrap();
    let history = child(&root(), at);
    assert_eq!(end(dir.path(), &history), (LineCut::default(), vec![]));
    assert_eq!(names(dir.path()), own);
    // Who has it unsealed makes the same bytes of it.
    let other = scratch();
    fs::write(path(other.path(), 1, true), &before[..before.len() - TRAILER_LEN]).unwrap();
    end(other.path(), &history);
    assert_eq!(fs::read(other.path().join(ENDED)).unwrap(), before);
}

#[test]
fn a_log_that_does_not_reach_the_branch_is_not_taken_for_one_that_does() {
    let dir = scratch();
    let (log, ends) = old_line(dir.path(), false);
    log.close().unwrap();
    let lost = || panic!("nothing is put aside");
    for at in [Lsn(ends[2].0 + 1), Lsn(ends[1].0 + 1), Lsn(ends[2].0 + (17 << 20))] {
        let e = end_lines(dir.path(), &child(&root(), at), lost).unwrap_err();
        assert!(e.kind() == ErrorKind::Diverged && e.to_string().contains(&at.to_string()), "{e}");
    }
    assert_eq!(names(dir.path()), ["000000010000000000000001.partial"]);
    // A branch that a node has no log of is nothing to it: it began later.
    let empty = scratch();
    assert_eq!(end_lines(empty.path(), &child(&root(), ends[1]), lost).unwrap(), LineCut::default());
    // Without having been ended the old line's log is not gone on with.
    let e = Log::open_leader(on(dir.path(), &child(&root(), ends[1]))).unwrap_err();
    assert!(e.kind() == ErrorKind::Corrupt && e.to_string().contains("was not ended"), "{e}");
}
