//! The archiver over a real log, with a store that has faults.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Mutex;
use std::time::Instant;

use super::*;
use crate::archive::{Each, Put, Upload};
use crate::history::History;
use crate::log::{Log, LogOptions};
use crate::position::{Cut, FileId};
use crate::record::{Commit, Record};
use crate::segment::flags;

const SYSTEM: SystemId = SystemId(0xA5);
const T: TimelineId = TimelineId::FIRST;

/// What a store does to the next calls that write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fault {
    None,
    /// Says no to everything.
    Refuses,
    /// Has no room.
    Full,
    /// Keeps the first half under the name, and fails.
    Half,
    /// Keeps the first half, and says that all is well.
    Lies,
    /// Does all of it, and says that it failed.
    Forgets,
    /// Takes its time.
    Slow,
}

/// Objects in memory.
#[derive(Debug)]
struct Faulty {
    objects: Mutex<BTreeMap<String, Vec<u8>>>,
    fault: Mutex<Fault>,
    writes: Mutex<u64>,
}

impl Faulty {
    fn new() -> Arc<Self> {
        Arc::new(Self { objects: Mutex::default(), fault: Mutex::new(Fault::None), writes: Mutex::default() })
    }

    fn set(&self, fault: Fault) {
        *self.fault.lock().unwrap() = fault;
    }

    fn write(&self, name: &str, bytes: &[u8], over: bool) -> Result<Put> {
        *self.writes.lock().unwrap() += 1;
        let fault = *self.fault.lock().unwrap();
        let lost = || Error::new(ErrorKind::Unavailable, "the connection is lost");
        match fault {
            Fault::Refuses => return Err(Error::new(ErrorKind::Refused, "not allowed")),
            Fault::Full => return Err(Error::new(ErrorKind::DiskFull, "no room")),
            Fault::Slow => std::thread::sleep(Duration::from_millis(50)),
            _ => {}
        }
        let mut objects = self.objects.lock().unwrap();
        if !over && objects.contains_key(name) {
            return Ok(Put::There);
        }
        let half = matches!(fault, Fault::Half | Fault::Lies);
        objects.insert(name.to_owned(), bytes[..if half { bytes.len() / 2 } else { bytes.len() }].to_vec());
        if matches!(fault, Fault::Half | Fault::Forgets) { Err(lost()) } else { Ok(Put::Made) }
    }
}

impl Store for Faulty {
    fn create(&self, name: &str, bytes: &[u8]) -> Result<Put> {
        self.write(name, bytes, false)
    }

    fn replace(&self, name: &str, bytes: &[u8]) -> Result<()> {
        self.write(name, bytes, true).map(drop)
    }

    fn upload(&self, _: &str) -> Result<Box<dyn Upload>> {
        Err(Error::new(ErrorKind::Usage, "not needed"))
    }

    fn read(&self, name: &str, range: Range<u64>) -> Result<Option<Vec<u8>>> {
        if *self.fault.lock().unwrap() == Fault::Refuses {
            return Err(Error::new(ErrorKind::Refused, "not allowed"));
        }
        let objects = self.objects.lock().unwrap();
        let whole = objects.get(name);
        Ok(whole.map(|b| b[..b.len().min(usize::try_from(range.end).unwrap())].to_vec()))
    }

    fn size(&self, name: &str) -> Result<Option<u64>> {
        Ok(self.objects.lock().unwrap().get(name).map(|b| b.len() as u64))
    }

    fn list(&self, dir: &str, after: &str, each: &mut Each<'_>) -> Result<()> {
        let all: Vec<_> =
            self.objects.lock().unwrap().iter().map(|(n, b)| (n.clone(), b.len() as u64)).collect();
        for (name, size) in all {
            if name.starts_with(&format!("{dir}/"))
                && name.as_str() > after
                && !each(crate::archive::Entry { name, size, modified: 0 })?
            {
                break;
            }
        }
        Ok(())
    }

    fn delete(&self, name: &str) -> Result<()> {
        self.objects.lock().unwrap().remove(name);
        Ok(())
    }
}

/// A leader's log whose segments are small and many.
struct Bed {
    dir: tempfile::TempDir,
    store: Arc<Faulty>,
    board: Arc<Board>,
    nudge: Arc<Notify>,
}

impl Bed {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { dir, store: Faulty::new(), board: Arc::default(), nudge: Arc::default() }
    }

    fn log(&self) -> Log {
        self.log_in("log")
    }

    fn log_in(&self, name: &str) -> Log {
        std::fs::create_dir_all(self.dir.path().join(name)).unwrap();
        Log::open_leader(LogOptions {
            dir: self.dir.path().join(name),
            system: SYSTEM,
            timeline: T,
            segment_timeout: Duration::from_millis(1),
            level: 1,
        })
        .unwrap()
    }

    fn context(&self) -> Context {
        let store = Arc::clone(&self.store);
        Context {
            address: "s3://bed".parse().unwrap(),
            log: self.dir.path().join("log"),
            state: self.dir.path().to_owned(),
            system: SYSTEM,
            timeline: T,
            history: History::first(SYSTEM),
            connect: Arc::new(move |_| Ok(Arc::clone(&store) as Arc<dyn Store>)),
        }
    }

    /// Runs the archiver until `until`.
    fn run(&self, log: &Log, until: impl Fn(&Report) -> bool) -> Report {
        self.run_as(self.context(), log, until)
    }

    fn run_as(&self, context: Context, log: &Log, until: impl Fn(&Report) -> bool) -> Report {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let cancel = CancellationToken::new();
        // What an earlier run left there is not taken for this one's.
        self.board.begin("s3://bed");
        let task = runtime.spawn(run(
            context,
            Arc::clone(&self.board),
            log.subscribe(),
            Arc::clone(&self.nudge),
            cancel.clone(),
        ));
        let deadline = Instant::now() + Duration::from_secs(60);
        let report = loop {
            let report = self.board.report().unwrap_or_default();
            if until(&report) {
                break report;
            }
            assert!(Instant::now() < deadline, "{report:?}");
            std::thread::sleep(Duration::from_millis(5));
        };
        cancel.cancel();
        runtime.block_on(task).unwrap();
        report
    }

    /// Every sealed segment is in the archive once, as it is in the log.
    fn equal(&self) {
        let archive = Archive::open_in(Arc::clone(&self.store) as Arc<dyn Store>, "s3://bed").unwrap();
        let log = self.dir.path().join("log");
        for s in log::stored(&log, T).unwrap().iter().filter(|s| s.sealed) {
            let here = log::sealed(&log, SYSTEM, T, s.segment).unwrap().map(|(_, bytes)| bytes);
            assert_eq!(archive.get_segment(T, s.segment).unwrap(), here, "{:?}", s.segment);
        }
    }
}

/// Appends `n` change sets and waits until each is sealed in a segment of its own.
fn fill(log: &Log, n: u64) {
    for seed in 0..n {
        let mut raw = Vec::new();
        Record::Write { id: FileId(7), offset: 0, data: &seed.to_le_bytes() }.encode(&mut raw);
        let commit = Commit { cut: Cut::Exact, partial: false, time: 5, meta: 1, content: 2, inodes: 3 };
        Record::Commit(commit).encode(&mut raw);
        let before = log.tail().segment;
        let (_, end) = log.append(raw, flags::STARTS | flags::ENDS | flags::EXACT).unwrap();
        assert!(log.wait_durable(end, Duration::from_secs(20)).unwrap());
        let deadline = Instant::now() + Duration::from_secs(20);
        let is_sealed = |s: SegmentNo| log.dir().join(crate::segment::file_name(T, s, false)).exists();
        while !is_sealed(log.tail().segment) || seed > 0 && log.tail().segment == before {
            assert!(Instant::now() < deadline);
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

fn idle(r: &Report) -> bool {
    r.state == "idle" && r.waiting == 0
}

#[test]
fn sealed_segments_are_archived_as_they_come() {
    let bed = Bed::new();
    let log = bed.log();
    fill(&log, 3);
    assert_eq!(bed.board.unarchived(), None, "nothing is archived before it begins");
    let report = bed.run(&log, |r| idle(r) && r.archived == 3);
    assert_eq!((report.failed, report.gaps, report.error), (0, 0, None));
    assert_eq!(report.last.as_deref(), Some("000000010000000000000003"));
    bed.equal();
    // Another start learns from the archive: nothing is put there twice.
    let writes = *bed.store.writes.lock().unwrap();
    fill(&log, 1);
    bed.run(&log, |r| idle(r) && r.archived == 4);
    assert_eq!(*bed.store.writes.lock().unwrap(), writes + 1);
    assert_eq!(bed.board.unarchived(), Some(SegmentNo(5)));
}

#[test]
fn over_a_branch_the_history_comes_first_and_the_end_of_the_old_line_has_a_name_of_its_own() {
    use crate::history::{Beginning, LineId};
    let bed = Bed::new();
    let log = bed.log();
    fill(&log, 3);
    bed.run(&log, |r| idle(r) && r.archived == 3);
    log.close().unwrap();
    // The old leader has archived the segment that the branch lies in; here less of it counts.
    let dir = bed.dir.path().join("log");
    let open = |timeline, timeout| LogOptions {
        dir: dir.clone(),
        system: SYSTEM,
        timeline: TimelineId(timeline),
        segment_timeout: Duration::from_millis(timeout),
        level: 1,
    };
    let log = Log::open_leader(open(1, 60_000)).unwrap();
    let commit = |log: &Log| {
        let mut raw = Vec::new();
        let commit = Commit { cut: Cut::Exact, partial: false, time: 6, meta: 1, content: 2, inodes: 3 };
        Record::Commit(commit).encode(&mut raw);
        let (_, end) = log.append(raw, flags::STARTS | flags::ENDS | flags::EXACT).unwrap();
        assert!(log.wait_durable(end, Duration::from_secs(20)).unwrap());
        end
    };
    let at = commit(&log);
    log.close().unwrap();
    let foreign = b"what the old leader sealed as segment 4";
    let archive = Archive::open_in(Arc::clone(&bed.store) as Arc<dyn Store>, "s3://bed").unwrap();
    archive.put_segment(T, SegmentNo(4), foreign).unwrap();
    let begins = Beginning::sample(at, 9);
    let again = begins.clone();
    let history = History::first(SYSTEM).child(begins, T).unwrap();
    log::end_lines(&dir, &history, || panic!("nothing is past the branch")).unwrap();
    let log = Log::open_leader(open(2, 1)).unwrap();
    let end = commit(&log);
    let context = Context { timeline: history.timeline(), history: history.clone(), ..bed.context() };
    bed.run_as(context, &log, |r| idle(r) && r.archived == 5);
    assert_eq!(
        (archive.history(TimelineId(2)).unwrap(), archive.newest_history().unwrap()),
        (Some(history.clone()), history.clone())
    );
    assert_eq!(archive.timelines().unwrap(), [TimelineId(2)]);
    for segment in 1..=end.segment().0 {
        let here = log::sealed(&dir, SYSTEM, history.timeline(), SegmentNo(segment)).unwrap();
        assert_eq!(archive.segment_on_way(&history, SegmentNo(segment)).unwrap(), here, "segment {segment}");
    }
    let (by, bytes) = archive.segment_on_way(&history, SegmentNo(4)).unwrap().unwrap();
    assert_eq!((by.timeline, by.ended_by), (T, Some(TimelineId(2))));
    assert!(log::whole(&bytes, SYSTEM, T, SegmentNo(4)).unwrap().1.end == at);
    assert_eq!(archive.get_segment(T, SegmentNo(4)).unwrap().unwrap(), foreign, "what was there stays");
    let inventory = crate::archive::inventory::Inventory::take(&archive).unwrap();
    assert_eq!(inventory.coverage.reaches(&history, SegmentNo(1)), Some(end.segment()));
    assert!(inventory.strays.is_empty(), "{:?}", inventory.strays);
    // The old leader comes back, and does not know of it: what it has of before the branch is there, and no more comes.
    let (old, old_dir) = (bed.log_in("old"), bed.dir.path().join("old"));
    fill(&old, 6);
    let context = Context { log: old_dir, ..bed.context() };
    let report = bed.run_as(context, &old, |r| r.needs_help);
    let said = report.error.unwrap_or_default();
    assert!(said.contains("'f' was promoted to timeline 2") && said.contains("make it a follower"), "{said}");
    assert_eq!(archive.get_segment(T, SegmentNo(5)).unwrap(), None);
    // A line of that number that another node began is refused by name.
    let other = History::first(SYSTEM).child(Beginning { line: LineId(10), ..again }, T).unwrap();
    let e = archive.put_history(&other).unwrap_err();
    assert!(e.kind() == ErrorKind::Refused && e.to_string().contains("apart from each other"), "{e}");
}

#[test]
fn a_segment_that_is_sealed_while_it_runs_is_not_left_waiting() {
    let bed = Bed::new();
    let log = bed.log();
    let filler = log.clone();
    let filling = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(50));
        fill(&filler, 5);
    });
    bed.run(&log, |r| idle(r) && r.archived == 5);
    filling.join().unwrap();
    bed.equal();
}

#[test]
fn whatever_a_store_does_there_is_no_hole_and_no_false_success() {
    for fault in [Fault::Refuses, Fault::Full, Fault::Half, Fault::Lies, Fault::Forgets, Fault::Slow] {
        let bed = Bed::new();
        let log = bed.log();
        fill(&log, 2);
        bed.run(&log, idle);
        fill(&log, 3);
        bed.store.set(fault);
        match fault {
            // These come to their end in spite of it.
            Fault::Slow | Fault::Forgets => {}
            _ => {
                let failing = bed.run(&log, |r| r.attempts >= 2);
                // What can't even be looked at may lack everything.
                let first = if fault == Fault::Refuses { 1 } else { 3 };
                assert_eq!((failing.state, failing.waiting), ("failing", 6 - first), "{fault:?}");
                assert_eq!(failing.oldest_waiting, Some(format!("{first:016X}")), "{fault:?}");
                assert!(failing.waiting_since.is_some() && failing.failing_since.is_some(), "{fault:?}");
                assert_eq!(failing.needs_help, fault == Fault::Refuses, "{fault:?}");
                let held = bed.board.unarchived().unwrap();
                assert!(held <= SegmentNo(3), "{fault:?}: {held:?} is let go");
                bed.store.set(Fault::None);
            }
        }
        let report = bed.run(&log, |r| idle(r) && r.waiting == 0);
        assert_eq!((report.gaps, report.error, report.failing_since), (0, None, None), "{fault:?}");
        bed.store.set(Fault::None);
        bed.equal();
    }
}

#[test]
fn what_the_archive_lost_in_between_is_put_there_again() {
    let bed = Bed::new();
    let log = bed.log();
    fill(&log, 4);
    bed.run(&log, |r| idle(r) && r.archived == 4);
    let names: Vec<String> =
        bed.store.objects.lock().unwrap().keys().filter(|n| n.starts_with("log/")).cloned().collect();
    bed.store.delete(&names[1]).unwrap();
    bed.store.objects.lock().unwrap().insert(names[2].clone(), Vec::new());
    let report = bed.run(&log, |r| idle(r) && r.archived == 6);
    assert_eq!(report.gaps, 0);
    bed.equal();
}

#[test]
fn log_that_was_removed_before_it_was_archived_is_a_gap_that_is_said() {
    let bed = Bed::new();
    let log = bed.log();
    fill(&log, 2);
    bed.run(&log, idle);
    fill(&log, 4);
    for n in [1, 2, 3, 4] {
        std::fs::remove_file(log.dir().join(crate::segment::file_name(T, SegmentNo(n), false))).unwrap();
    }
    let report = bed.run(&log, |r| idle(r) && r.gaps > 0);
    assert_eq!(report.gap[0].first, "0000000000000003");
    assert_eq!((report.gap[0].from.as_str(), report.gap[0].to.as_str()), ("0/03000000", "0/05000000"));
    assert_eq!(report.last.as_deref(), Some("000000010000000000000006"));
    bed.equal();
}

#[test]
fn a_damaged_segment_is_not_archived_and_keeps_no_other_out() {
    let bed = Bed::new();
    let log = bed.log();
    fill(&log, 3);
    let path = log.dir().join(crate::segment::file_name(T, SegmentNo(2), false));
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[200] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let report = bed.run(&log, idle);
    assert_eq!((report.archived, report.gaps), (2, 1));
    assert_eq!(report.gap[0].first, "0000000000000002");
    let archive = Archive::open_in(Arc::clone(&bed.store) as Arc<dyn Store>, "x").unwrap();
    assert!(archive.get_segment(T, SegmentNo(2)).unwrap().is_none());
}

#[test]
fn a_store_that_is_emptied_while_it_is_open_gets_nothing() {
    let bed = Bed::new();
    let log = bed.log();
    fill(&log, 1);
    let store = Arc::clone(&bed.store);
    let emptied = Mutex::new(None);
    bed.run(&log, |r| {
        if r.archived == 1 && emptied.lock().unwrap().is_none() {
            *emptied.lock().unwrap() = Some(std::mem::take(&mut *store.objects.lock().unwrap()));
            fill(&log, 1);
        }
        r.error.is_some()
    });
    assert!(store.objects.lock().unwrap().is_empty(), "as if it was never mounted");
    *store.objects.lock().unwrap() = emptied.lock().unwrap().take().unwrap();
    bed.run(&log, |r| idle(r) && r.archived == 2);
    bed.equal();
}

#[test]
fn a_foreign_or_vanished_archive_is_refused_until_it_is_back() {
    let bed = Bed::new();
    let log = bed.log();
    fill(&log, 1);
    let refused = |words: &str| {
        let report = bed.run(&log, |r| r.error.as_deref().is_some_and(|e| e.contains(words)));
        assert!(report.needs_help, "{report:?}");
        assert_eq!(bed.board.unarchived(), Some(SegmentNo(0)), "all log is held");
    };
    let foreign =
        Archive::open_or_create_in(Arc::clone(&bed.store) as Arc<dyn Store>, "x", SystemId(9)).unwrap();
    refused("that of system 0000000000000009");
    drop(foreign);
    bed.store.objects.lock().unwrap().clear();
    bed.run(&log, |r| idle(r) && r.archived == 1);
    let kept = std::mem::take(&mut *bed.store.objects.lock().unwrap());
    fill(&log, 1);
    refused("is empty, but this node has archived to it before");
    assert!(bed.store.objects.lock().unwrap().is_empty(), "nothing is begun anew");
    Archive::open_or_create_in(Arc::clone(&bed.store) as Arc<dyn Store>, "x", SYSTEM).unwrap();
    refused("is another one");
    *bed.store.objects.lock().unwrap() = kept;
    bed.run(&log, idle);
    bed.equal();
    assert!(Path::new(&bed.dir.path().join("archive")).exists());
}
