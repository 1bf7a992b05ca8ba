use super::*;
use crate::catalog::{Catalog, Seen};
use crate::fill::CopySource;
use crate::history::LineId;
use crate::log::LogOptions;
use crate::position::{Cut, FileId, NodeId, SystemId, TimelineId};
use crate::record::{Attrs, Commit, Kind, Record};
use crate::segment::{self, flags};
use crate::send::{self, PeerState, Peers, ServeContext, nobody};
use crate::sys::Root;
use crate::wire::{Keepalive, Purpose, RoleWanted, Welcome};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, RwLock};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const SYSTEM: SystemId = SystemId(0x5151);

/// A source that is never asked for anything.
struct Nothing;

impl CopySource for Nothing {
    fn catalog(&self) -> Arc<RwLock<Catalog>> {
        Arc::new(RwLock::new(Catalog::new(SYSTEM, Attrs::default())))
    }
    fn settled(&self, _: &mut dyn FnMut(&Catalog)) {}
    fn root(&self) -> Arc<Root> {
        Arc::new(Root::open(Path::new("/")).unwrap())
    }
    fn barrier(&self) -> Result<Lsn> {
        Ok(Lsn::FIRST)
    }
    fn hashes(&self, _: FileId, _: u64, _: u64) -> Option<Vec<u128>> {
        None
    }
    fn mismatch(&self, _: FileId, _: Vec<u64>) {}
    fn learned(&self, _: FileId, _: Seen, _: Vec<u128>) {}
}

#[derive(Clone, Copy, Default)]
struct At(Lsn, i64);

impl Progress for At {
    fn lsn(&self) -> Lsn {
        self.0
    }
    fn time(&self) -> i64 {
        self.1
    }
    fn moves(&self) -> bool {
        true
    }
    fn delay(&self) -> Duration {
        Duration::from_secs(60)
    }
}

fn options(dir: &Path) -> LogOptions {
    LogOptions {
        dir: dir.to_owned(),
        system: SYSTEM,
        timeline: TimelineId::FIRST,
        segment_timeout: Duration::from_secs(60),
        level: 1,
    }
}

/// A change set of one file with `len` bytes of content that does not compress.
fn commit(log: &Log, id: u64, len: usize) -> Lsn {
    let mut rng = fastrand::Rng::with_seed(id);
    let data: Vec<u8> = (0..len).map(|_| rng.u8(..)).collect();
    let mut raw = Vec::new();
    let attrs = Attrs::default();
    Record::Create { id: FileId(id), kind: Kind::File, attrs, rdev: 0, target: b"" }.encode(&mut raw);
    for (piece, i) in data.chunks(crate::record::WRITE_MAX).zip(0..) {
        Record::Write { id: FileId(id), offset: i * crate::record::WRITE_MAX as u64, data: piece }
            .encode(&mut raw);
    }
    let time = net::wall_clock();
    Record::Commit(Commit { cut: Cut::Exact, partial: true, time, meta: 0, content: 0, inodes: id })
        .encode(&mut raw);
    log.append(raw, flags::STARTS | flags::ENDS | flags::EXACT).unwrap().1
}

struct Leader {
    log: Log,
    address: String,
    peers: Arc<Peers>,
    cancel: CancellationToken,
    dir: tempfile::TempDir,
}

async fn serve(log: &Log, peers: &Arc<Peers>, cancel: &CancellationToken) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let context = ServeContext {
        log: log.clone(),
        source: Arc::new(Nothing),
        history: Arc::new(History::first(SYSTEM)),
        name: "leader".to_owned(),
        peer_timeout: Duration::from_secs(1),
        max_followers: 2,
        peers: Arc::clone(peers),
        backups: Arc::default(),
        ancestry: net::Ancestry::default(),
        upstream: None,
        halt: send::Halt::default(),
        slots: Arc::new(Slots::open(log.dir()).unwrap()),
        trust: crate::tls::Trust::default(),
        ear: Default::default(),
        recent: Arc::default(),
        heir: nobody(),
    };
    tokio::spawn(send::serve(listener, context, cancel.clone()));
    address
}

async fn lead() -> Leader {
    let dir = tempfile::tempdir().unwrap();
    let log = Log::open_leader(options(dir.path())).unwrap();
    let (peers, cancel) = (Arc::new(Peers::default()), CancellationToken::new());
    let address = serve(&log, &peers, &cancel).await;
    Leader { log, address, peers, cancel, dir }
}

struct Follower {
    dir: tempfile::TempDir,
    log: Log,
    applied: watch::Sender<At>,
    status: Arc<Upstream>,
    cancel: CancellationToken,
    task: tokio::task::JoinHandle<Result<Option<History>>>,
}

fn follow_with(name: &str, dir: tempfile::TempDir, upstream: &str) -> Follower {
    follow_as(name, NodeId(1), dir, upstream)
}

fn follow_as(name: &str, node: NodeId, dir: tempfile::TempDir, upstream: &str) -> Follower {
    let log = Log::open_follower(options(dir.path())).unwrap();
    let (applied, at) = watch::channel(At::default());
    let status = Arc::new(Upstream::new(&Sources::one(upstream), node));
    let cancel = CancellationToken::new();
    let context = ReceiveContext {
        purpose: Purpose::Follow,
        sources: Sources::one(upstream),
        name: name.to_owned(),
        history: History::first(SYSTEM),
        log: log.clone(),
        start: Lsn::FIRST,
        applied: at,
        never_counts: false,
        peer_timeout: Duration::from_secs(1),
        status: Arc::clone(&status),
        below: Arc::new(Vec::new),
        slots: Arc::new(Slots::open(dir.path()).unwrap()),
    };
    let task = tokio::spawn(run(context, cancel.clone()));
    Follower { dir, log, applied, status, cancel, task }
}

fn follow(name: &str, upstream: &str) -> Follower {
    follow_with(name, tempfile::tempdir().unwrap(), upstream)
}

impl Follower {
    async fn reaches(&self, lsn: Lsn) {
        let mut tail = self.log.subscribe();
        let reached = tail.wait_for(|t| t.end >= lsn);
        let result = tokio::time::timeout(Duration::from_secs(30), reached).await;
        assert!(result.is_ok(), "{lsn} not reached: {:?} {:?}", self.log.tail(), self.status.status());
    }

    async fn stop(self) -> tempfile::TempDir {
        self.cancel.cancel();
        self.task.await.unwrap().unwrap();
        self.log.close().unwrap();
        self.dir
    }
}

async fn until(what: &str, done: impl Fn() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < Duration::from_secs(20), "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Stored bytes of all segments up to `len` of the newest, in order.
fn stored(dir: &Path, tail: &Tail) -> Vec<u8> {
    let mut out = Vec::new();
    for n in 1..=tail.segment.0 {
        let path = |partial| dir.join(segment::file_name(TimelineId::FIRST, SegmentNo(n), partial));
        let bytes = std::fs::read(path(false)).or_else(|_| std::fs::read(path(true))).unwrap();
        let len = if n == tail.segment.0 { usize::try_from(tail.offset).unwrap() } else { bytes.len() };
        out.extend_from_slice(&bytes[..len]);
    }
    out
}

#[tokio::test(flavor = "multi_thread")]
async fn log_arrives_as_stored_live_and_after_an_absence() {
    let leader = lead().await;
    let f = follow("f1", &leader.address);
    let mut end = Lsn::ZERO;
    for id in 1..50 {
        end = commit(&leader.log, id, 1000);
    }
    f.reaches(end).await;
    f.applied.send(At(end, 42)).unwrap();
    let flushed =
        || leader.peers.list().iter().any(|p| p.flush == end && p.apply == end && p.apply_time == 42);
    until("the acknowledgement comes back", flushed).await;
    let peer = leader.peers.list().remove(0);
    assert_eq!((peer.state, peer.sent, peer.name.as_str()), (PeerState::Streaming, end, "f1"));
    assert_eq!(peer.delay, Some(60.0));
    assert_eq!(f.status.lag(Duration::MAX).0, 0);
    let dir = f.stop().await;
    until("it is away", || leader.peers.list()[0].state == PeerState::Away).await;
    // Enough for several segments while nobody listens.
    for id in 50..100 {
        end = commit(&leader.log, id, 900_000);
    }
    let f = follow_with("f1", dir, &leader.address);
    f.reaches(end).await;
    assert_eq!(stored(f.dir.path(), &f.log.tail()), stored(leader.dir.path(), &leader.log.tail()));
    assert!(f.log.tail().segment.0 > 2);
    f.stop().await;
    leader.cancel.cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_serves_onward() {
    let leader = lead().await;
    let first = follow("first", &leader.address);
    let (peers, cancel) = (Arc::new(Peers::default()), CancellationToken::new());
    let onward = serve(&first.log, &peers, &cancel).await;
    let second = follow("second", &onward);
    let mut end = Lsn::ZERO;
    for id in 1..30 {
        end = commit(&leader.log, id, 700_000);
    }
    second.reaches(end).await;
    assert_eq!(stored(second.dir.path(), &second.log.tail()), stored(leader.dir.path(), &leader.log.tail()));
    second.stop().await;
    first.stop().await;
}

/// Passes bytes on; `spoil` may change what comes from the leader, and says whether to cut there.
async fn proxy(
    leader: String,
    stall: Arc<AtomicBool>,
    spoil: impl Fn(&mut [u8]) -> bool + Send + Sync + 'static,
) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let spoil = Arc::new(spoil);
    tokio::spawn(async move {
        while let Ok((down, _)) = listener.accept().await {
            let up = TcpStream::connect(&leader).await.unwrap();
            let ((mut down_r, mut down_w), (mut up_r, mut up_w)) = (down.into_split(), up.into_split());
            let there = tokio::spawn(async move {
                let _ = tokio::io::copy(&mut down_r, &mut up_w).await;
            });
            let (spoil, stall) = (Arc::clone(&spoil), Arc::clone(&stall));
            tokio::spawn(async move {
                let mut buf = vec![0; 4096];
                while let Ok(n) = up_r.read(&mut buf).await {
                    let cut = n == 0 || spoil(&mut buf[..n]);
                    while stall.load(Ordering::Relaxed) {
                        tokio::time::sleep(Duration::from_millis(10)).await;
                    }
                    if cut || down_w.write_all(&buf[..n]).await.is_err() {
                        break;
                    }
                }
                there.abort();
            });
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn flipped_bytes_and_cuts_never_reach_the_log() {
    let leader = lead().await;
    let mut end = Lsn::ZERO;
    for id in 1..40 {
        end = commit(&leader.log, id, 200_000);
    }
    let seen = Mutex::new((0_u64, fastrand::Rng::with_seed(5)));
    let address = proxy(leader.address.clone(), Arc::default(), move |bytes| {
        let mut seen = seen.lock().unwrap();
        seen.0 += bytes.len() as u64;
        // Ever further into the stream, so that it gets done at last.
        if seen.0 > 600_000 {
            seen.0 = 0;
            if seen.1.bool() {
                return true;
            }
            let at = seen.1.usize(..bytes.len());
            bytes[at] ^= 1 << seen.1.u8(..8);
        }
        false
    })
    .await;
    let f = follow("f1", &address);
    f.reaches(end).await;
    assert_eq!(stored(f.dir.path(), &f.log.tail()), stored(leader.dir.path(), &leader.log.tail()));
    f.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stalled_line_is_left_by_both_sides() {
    let leader = lead().await;
    let end = commit(&leader.log, 1, 100);
    let stall = Arc::new(AtomicBool::new(false));
    let address = proxy(leader.address.clone(), Arc::clone(&stall), |_| false).await;
    let f = follow("f1", &address);
    f.reaches(end).await;
    stall.store(true, Ordering::Relaxed);
    until("the follower gives up", || f.status.status().attempts > 0).await;
    let error = f.status.status().error.unwrap();
    assert!(error.contains("taken for dead"), "{error}");
    until("so does the leader", || leader.peers.list()[0].state == PeerState::Away).await;
    stall.store(false, Ordering::Relaxed);
    f.reaches(commit(&leader.log, 2, 100)).await;
    f.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_newest_connection_of_a_name_counts_and_places_are_limited() {
    let leader = lead().await;
    let end = commit(&leader.log, 1, 100);
    let (a, b) = (follow("a", &leader.address), follow("b", &leader.address));
    a.reaches(end).await;
    b.reaches(end).await;
    until("both stream", || {
        leader.peers.list().iter().filter(|p| p.state == PeerState::Streaming).count() == 2
    })
    .await;
    let c = follow("c", &leader.address);
    until("c is refused", || c.status.status().state == UpstreamState::Refused).await;
    assert_eq!(c.status.status().code, Some(Code::Busy));
    b.stop().await;
    c.reaches(end).await;
    c.stop().await;
    let again = follow("a", &leader.address);
    again.reaches(end).await;
    until("the old one was told", || a.status.status().code == Some(Code::Replaced)).await;
    a.stop().await;
    let other = follow_as("a", NodeId(2), tempfile::tempdir().unwrap(), &leader.address);
    until("another node is refused", || other.status.status().code == Some(Code::Name)).await;
    assert_eq!(leader.peers.list().iter().filter(|p| p.state == PeerState::Streaming).count(), 1);
    again.stop().await;
    other.reaches(end).await;
    other.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_is_not_a_prefix_is_refused_with_both_positions() {
    let (one, other) = (lead().await, lead().await);
    let end = commit(&one.log, 1, 5000);
    commit(&other.log, 2, 9000);
    let f = follow("f", &one.address);
    f.reaches(end).await;
    let dir = f.stop().await;
    let f = follow_with("f", dir, &other.address);
    until("it is refused", || f.status.status().state == UpstreamState::Refused).await;
    let status = f.status.status();
    assert_eq!(status.code, Some(Code::Diverged));
    assert!(status.error.unwrap().contains(&end.to_string()));
    assert_eq!(f.log.tail().end, end);
    f.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_whose_log_was_removed_needs_a_resync() {
    let leader = lead().await;
    let end = commit(&leader.log, 1, 5000);
    let f = follow("f", &leader.address);
    f.reaches(end).await;
    let dir = f.stop().await;
    for id in 2..40 {
        commit(&leader.log, id, 900_000);
    }
    leader.log.wait_durable(leader.log.written(), Duration::from_secs(10)).unwrap();
    until("segments are sealed", || leader.log.tail().segment.0 > 2).await;
    assert!(leader.log.remove_before(SegmentNo(2)).unwrap() > 0);
    let f = follow_with("f", dir, &leader.address);
    until("it needs a resync", || f.status.status().state == UpstreamState::Resync).await;
    f.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn random_bytes_to_the_port_harm_nobody() {
    let leader = lead().await;
    let end = commit(&leader.log, 1, 100);
    let mut rng = fastrand::Rng::with_seed(3);
    for i in 0..50 {
        let mut s = TcpStream::connect(&leader.address).await.unwrap();
        let bytes: Vec<u8> = (0..rng.usize(1..300)).map(|_| rng.u8(..)).collect();
        s.write_all(&bytes).await.unwrap();
        if i % 2 == 0 {
            drop(s);
            continue;
        }
        let _ = s.shutdown().await;
        let mut rest = Vec::new();
        let read = tokio::time::timeout(Duration::from_secs(5), s.read_to_end(&mut rest)).await;
        assert!(read.is_ok(), "the connection is closed");
    }
    let f = follow("f", &leader.address);
    f.reaches(end).await;
    assert_eq!(leader.peers.list().len(), 1, "strangers have no name");
    f.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_keepalive_alone_gives_lag_in_bytes_and_seconds() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let f = follow("f", &listener.local_addr().unwrap().to_string());
    let (stream, _) = listener.accept().await.unwrap();
    let (mut reader, mut writer) = net::over_tcp(stream, Duration::from_secs(5), &Arc::default()).unwrap();
    let Some(Message::Hello(hello)) = reader.next().await.unwrap() else { panic!() };
    assert_eq!(
        (hello.system, hello.flush, hello.segment, hello.offset),
        (SYSTEM, Lsn::FIRST, SegmentNo(1), 0)
    );
    let welcome = |segment, offset| {
        Message::Welcome(Welcome {
            version: 1,
            system: SYSTEM,
            timeline: TimelineId::FIRST,
            name: "x".to_owned(),
            decision: Decision::StreamFrom { segment, offset },
            lineage: None,
            history: None,
        })
    };
    writer.send(&welcome(hello.segment, 0)).await.unwrap();
    let Some(Message::Ack(ack)) = reader.next().await.unwrap() else { panic!() };
    assert_eq!(ack.flush, Lsn::FIRST);
    f.applied.send(At(Lsn(1000), 5)).unwrap();
    let Some(Message::Ack(ack)) = reader.next().await.unwrap() else { panic!() };
    assert_eq!((ack.apply, ack.apply_time), (Lsn(1000), 5));
    assert_eq!((ack.flags, ack.delay), (None, None), "the upstream of version 1 knows neither");
    let now = 5_000_000_000_000;
    let k = Keepalive {
        end: Lsn(3000),
        commit: Lsn(2500),
        commit_time: now - 7_000_000_000,
        now,
        ..Keepalive::default()
    };
    writer.send(&Message::Keepalive(k)).await.unwrap();
    until("the keepalive counts", || f.status.lag(Duration::MAX).0 == 2000).await;
    let seconds = f.status.lag(Duration::MAX).1.expect("known");
    assert!((7.0..8.0).contains(&seconds), "{seconds}");
    assert!(
        matches!(reader.next().await.unwrap(), Some(Message::Ack(_))),
        "a sign of life every half timeout"
    );
    // A sender that offers another place than was asked for, or a copy, gets no log appended.
    writer.goodbye(Code::Failed, "scripted").await;
    until("the goodbye is shown", || f.status.status().error.is_some_and(|e| e.contains("scripted"))).await;
    let (stream, _) = listener.accept().await.unwrap();
    let (mut reader, mut writer) = net::over_tcp(stream, Duration::from_secs(5), &Arc::default()).unwrap();
    reader.next().await.unwrap();
    writer.send(&welcome(SegmentNo(9), 3)).await.unwrap();
    until("it leaves", || f.status.status().error.is_some_and(|e| e.contains("not what was asked"))).await;
    f.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn slots_are_told_to_those_that_know_what_they_are() {
    let leader = lead().await;
    commit(&leader.log, 1, 100);
    for (versions, knows) in [((1, 2), false), ((1, 3), true)] {
        let stream = TcpStream::connect(&leader.address).await.unwrap();
        let (mut reader, mut writer) =
            net::over_tcp(stream, Duration::from_secs(5), &Arc::default()).unwrap();
        let hello = Hello {
            versions,
            system: SYSTEM,
            timeline: TimelineId::FIRST,
            flush: Lsn::FIRST,
            segment: Lsn::FIRST.segment(),
            offset: 0,
            prefix: SHA256_EMPTY,
            want: Want::Stream,
            name: format!("v{}", versions.1),
            node: NodeId(7),
            wants: RoleWanted::Any,
            purpose: Purpose::Follow,
            line: LineId::FIRST,
            history: None,
        };
        writer.send(&Message::Hello(hello)).await.unwrap();
        let (mut keepalives, mut told) = (0, None);
        while keepalives < 2 && told.is_none() {
            match reader.next().await.unwrap() {
                Some(Message::Keepalive(_)) => keepalives += 1,
                Some(Message::Slots(slots)) => told = Some(slots),
                Some(Message::Welcome(_) | Message::Log { .. }) => {}
                other => panic!("{other:?}"),
            }
        }
        let names = told.map(|t| t.into_iter().map(|s| s.name).collect::<Vec<_>>());
        assert_eq!(names, knows.then(|| vec!["v2".to_owned(), "v3".to_owned()]), "{versions:?}");
    }
}
