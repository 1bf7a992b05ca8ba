//! Faults are armed by the environment of a process, so each case is this test program run again.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use super::*;

const CASE: &str = "TOWLINE_TEST_LOG_FAULT_DIR";

fn command(test: &str, dir: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", &format!("log::tests::faults::{test}"), "--nocapture"]).env(CASE, dir);
    command
}

fn child(test: &str, dir: &Path, faults: &str) -> ExitStatus {
    let mut command = command(test, dir);
    command.env("TOWLINE_FAILPOINTS", faults).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().unwrap()
}

/// A segment that is sealed at once is synced by that, and not before.
fn armed(dir: &Path) -> Log {
    let syncs = std::env::var("TOWLINE_FAILPOINTS").unwrap().contains("sync");
    let segment_timeout = if syncs { Duration::from_secs(3600) } else { Duration::ZERO };
    Log::open_leader(LogOptions { segment_timeout, ..options(dir) }).unwrap()
}

/// In the child: appends until the fault, then checks that nothing goes on.
fn until_latched(dir: &Path) {
    let log = armed(dir);
    let mut updates = log.subscribe();
    let mut attempts = (0..100).map(|n| {
        let (raw, flags) = set(n, 100, Cut::Exact);
        log.append(raw, flags).and_then(|(_, end)| log.wait_durable(end, SOON))
    });
    let error = attempts.find_map(Result::err).unwrap();
    let kind = error.kind();
    assert!(kind == ErrorKind::DiskFull || kind == ErrorKind::Io, "{error}");
    let tail = log.tail();
    assert_eq!(log.failure().unwrap().kind(), kind);
    assert_eq!(log.append(set(2, 1, Cut::File).0, 3).unwrap_err().kind(), kind);
    assert_eq!(log.wait_durable(Lsn(u64::MAX), SOON).unwrap_err().kind(), kind);
    assert_eq!(log.tail(), tail);
    assert!(updates.has_changed().unwrap());
    updates.mark_unchanged();
    assert_eq!(log.close().unwrap_err().kind(), kind);
    fs::write(dir.join("durable"), tail.end.to_string()).unwrap();
    fs::write(dir.join("kind"), kind.word()).unwrap();
}

#[test]
fn a_failed_write_or_sync_is_final_until_the_log_is_opened_again() {
    if let Some(dir) = std::env::var_os(CASE) {
        return until_latched(Path::new(&dir));
    }
    for point in ["append", "sync", "seal", "after_seal", "new_segment"] {
        for (fault, word) in [("enospc", "disk-full"), ("eio", "io")] {
            let dir = scratch();
            let name = "a_failed_write_or_sync_is_final_until_the_log_is_opened_again";
            assert!(child(name, dir.path(), &format!("log::{point}={fault}@3")).success(), "{point} {fault}");
            assert_eq!(fs::read_to_string(dir.path().join("kind")).unwrap(), word);
            let durable: Lsn = fs::read_to_string(dir.path().join("durable")).unwrap().parse().unwrap();
            assert!(durable > Lsn::FIRST);
            // The fault is gone: everything durable is there, and the log goes on.
            let log = leader(dir.path());
            assert!(log.tail().end >= durable, "{point}");
            let end = add(&log, set(7, 7, Cut::Exact));
            log.close().unwrap();
            frames(dir.path(), Lsn::FIRST, end).unwrap();
            inspect::verify(&inspect::files(&[dir.path().into()]).unwrap(), false, &mut Vec::new()).unwrap();
        }
    }
}

/// In the child: a piece that this thread writes, and whose sync fails.
fn until_unsynced(dir: &Path) {
    let (a, b) = (scratch(), scratch());
    let (log, copy) = (leader(a.path()), follower(b.path()));
    let first = add(&log, set(0, 100, Cut::Exact));
    assert!(log.wait_durable(first, SOON).unwrap());
    ship(&log, &copy, 1 << 20);
    let end = add(&log, set(1, 100, Cut::Exact));
    assert!(log.wait_durable(end, SOON).unwrap());
    let (segment, offset) = copy.resume_at().unwrap();
    let mut reader = StoredReader::new(log.dir(), TimelineId::FIRST, segment, offset);
    let (segment, offset, bytes) = piece_of(&mut reader, &log.tail(), 1 << 20).unwrap();
    fs::write(dir.join("faults"), "log::sync=eio").unwrap();
    // The thread may be about to leave its place.
    let deadline = Instant::now() + SOON;
    while !copy.append_stored_here(segment, offset, &bytes).unwrap() {
        assert!(Instant::now() < deadline, "the place is never free");
    }
    assert_eq!(copy.written(), end);
    assert_eq!(copy.wait_durable(end, SOON).unwrap_err().kind(), ErrorKind::Io);
    assert_eq!(copy.tail().end, first, "what the operating system has is not durable");
}

#[test]
fn what_was_received_counts_once_its_sync_has_succeeded() {
    if let Some(dir) = std::env::var_os(CASE) {
        return until_unsynced(Path::new(&dir));
    }
    let dir = scratch();
    fs::write(dir.path().join("faults"), "").unwrap();
    let mut child = command("what_was_received_counts_once_its_sync_has_succeeded", dir.path());
    let out = child.env("TOWLINE_FAILPOINTS_FILE", dir.path().join("faults")).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
}

#[test]
fn killed_anywhere_a_log_holds_what_was_durable() {
    let name = "killed_anywhere_a_log_holds_what_was_durable";
    if let Some(dir) = std::env::var_os(CASE) {
        let dir = Path::new(&dir);
        let log = armed(dir);
        for n in 0..20 {
            let end = add(&log, set(n, 100, Cut::Exact));
            assert!(log.wait_durable(end, SOON).unwrap());
            fs::write(dir.join("durable"), end.to_string()).unwrap();
        }
        panic!("the failpoint was never passed");
    }
    for point in ["append", "sync", "seal", "after_seal", "new_segment"] {
        let dir = scratch();
        for nth in [1, 2, 3] {
            let ended = child(name, dir.path(), &format!("log::{point}=kill@{nth}"));
            assert_eq!(ended.signal(), Some(9), "{point} {nth}");
            let durable = fs::read_to_string(dir.path().join("durable")).unwrap_or("0/01000000".into());
            let log = leader(dir.path());
            assert!(log.tail().end >= durable.parse().unwrap(), "{point} {nth}");
            log.close().unwrap();
            match inspect::files(&[dir.path().into()]) {
                Err(e) if e.kind() == ErrorKind::Missing => {
                    assert_eq!(durable, "0/01000000", "{point} {nth}")
                }
                files => inspect::verify(&files.unwrap(), false, &mut Vec::new()).unwrap(),
            }
        }
    }
}

#[test]
fn looking_at_nothing_or_at_something_else_is_said() {
    let dir = scratch();
    let files = |p: &Path| inspect::files(&[p.to_owned()]);
    assert_eq!(files(dir.path()).unwrap_err().kind(), ErrorKind::Missing);
    let end = three(dir.path());
    // A pipe is not waited for, wherever it lies.
    let pipe = path(dir.path(), 9, false);
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    for what in [&*pipe, dir.path()] {
        assert_eq!(files(what).unwrap_err().kind(), ErrorKind::Usage);
    }
    fs::remove_file(pipe).unwrap();
    // One damaged segment is one, and the figures of it are no good news either.
    let middle = path(dir.path(), 2, false);
    let mut bytes = fs::read(&middle).unwrap();
    bytes[100] ^= 1;
    fs::write(&middle, bytes).unwrap();
    let all = files(dir.path()).unwrap();
    for looked in [inspect::verify(&all, false, &mut Vec::new()), inspect::stat(&all, true, &mut Vec::new())]
    {
        let e = looked.unwrap_err();
        assert!(e.kind() == ErrorKind::Corrupt && e.to_string().starts_with("1 of "), "{e} to {end}");
    }
}

/// What was read ahead of the durable end may have been half written then.
#[test]
fn a_header_that_was_read_while_it_was_written_is_read_again() {
    let dir = scratch();
    let log = leader(dir.path());
    let (raw, kind) = set(1, 100, Cut::Exact);
    let one = log.append(raw, kind).unwrap().1;
    assert!(log.wait_durable(one, SOON).unwrap());
    let mut reader = FrameReader::open(dir.path(), SYSTEM, TimelineId::FIRST, Lsn::FIRST).unwrap();
    let (raw, kind) = set(2, 100, Cut::Exact);
    let two = log.append(raw, kind).unwrap().1;
    assert!(log.wait_durable(two, SOON).unwrap());
    log.close().unwrap();
    let path = dir.path().join(file_name(TimelineId::FIRST, SegmentNo(1), true));
    let whole = fs::read(&path).unwrap();
    let magic = 0x184D_2A51_u32.to_le_bytes();
    let second = whole.windows(4).rposition(|w| w == magic).unwrap();
    let mut torn = whole.clone();
    // Its number of records, and what follows, has not arrived.
    torn[second + 28..].fill(0);
    fs::write(&path, &torn).unwrap();
    assert_eq!(reader.next_header(one).unwrap().map(|h| h.end()), Some(one));
    assert!(reader.next_header(one).unwrap().is_none());
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &whole, 0).unwrap();
    let header = reader.next_header(two).unwrap().expect("a frame");
    assert_eq!((header.end(), header.records), (two, 2));
}
