use super::*;
use crate::catalog::block_hash;
use crate::checkpoint;
use crate::log::{Log, LogOptions};
use crate::net::{Ancestry, Upstream};
use crate::position::{Cut, SystemId, TimelineId};
use crate::record::{BLOCK, Record};
use crate::send::{self, Peers, ServeContext, nobody};
use crate::state::{Control, FillState, Role, StateDir};
use crate::sys;
use crate::wire::Purpose;
use std::collections::HashMap;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

const SYSTEM: SystemId = SystemId(0xABCD);

/// A source without a capture: its catalog is a scan, its barrier a number.
struct Still {
    catalog: Arc<RwLock<Catalog>>,
    root: Arc<Root>,
    blocks: Mutex<HashMap<FileId, Vec<u128>>>,
    mismatches: Mutex<HashMap<FileId, Vec<u64>>>,
    learned: Mutex<HashMap<FileId, Vec<u128>>>,
}

impl CopySource for Still {
    fn catalog(&self) -> Arc<RwLock<Catalog>> {
        Arc::clone(&self.catalog)
    }
    fn settled(&self, look: &mut dyn FnMut(&Catalog)) {
        look(&self.catalog.read().unwrap());
    }
    fn root(&self) -> Arc<Root> {
        Arc::clone(&self.root)
    }
    fn barrier(&self) -> Result<Lsn> {
        Ok(Lsn(Lsn::FIRST.0 + 500))
    }
    fn hashes(&self, id: FileId, first: u64, n: u64) -> Option<Vec<u128>> {
        let blocks = self.blocks.lock().unwrap();
        let all = blocks.get(&id)?.iter().copied().chain(std::iter::repeat(0));
        Some(all.skip(first as usize).take(n as usize).collect())
    }
    fn mismatch(&self, id: FileId, blocks: Vec<u64>) {
        self.mismatches.lock().unwrap().entry(id).or_default().extend(blocks);
    }
    fn learned(&self, id: FileId, _seen: Seen, hashes: Vec<u128>) {
        self.learned.lock().unwrap().insert(id, hashes);
    }
}

/// Scans a directory into a catalog at [`Lsn::FIRST`], with hashes.
fn still(dir: &Path) -> Still {
    let root = Arc::new(Root::open(dir).unwrap());
    let attrs = sys::stat_fd(root.open_dir(b"").unwrap()).unwrap().attrs;
    let mut catalog = Catalog::new(SYSTEM, attrs);
    let (mut blocks, mut stack, mut links) =
        (HashMap::new(), vec![(FileId::ROOT, Vec::new())], HashMap::new());
    let mut next = 2;
    let mut contents = Vec::new();
    while let Some((parent, path)) = stack.pop() {
        let fd = root.open_dir(&path).unwrap();
        let mut names = Vec::new();
        sys::list_dir(&fd, |n, _, _| names.push(n.to_bytes().to_vec())).unwrap();
        for name in names {
            let stat = sys::stat_at(&fd, &name).unwrap().unwrap();
            if let Some(&id) = links.get(&stat.local).filter(|_| stat.kind != Kind::Dir) {
                catalog.fold(&Record::Link { parent, name: &name, id }).unwrap();
                continue;
            }
            let id = FileId(next);
            next += 1;
            links.insert(stat.local, id);
            let target =
                if stat.kind == Kind::Symlink { sys::read_link_at(&fd, &name).unwrap() } else { Vec::new() };
            let record =
                Record::Create { id, kind: stat.kind, attrs: stat.attrs, rdev: stat.rdev, target: &target };
            catalog.fold(&record).unwrap();
            catalog.fold(&Record::Link { parent, name: &name, id }).unwrap();
            for (attr, value) in sys::xattrs_at(&fd, &name).unwrap() {
                catalog.fold(&Record::Xattr { id, name: &attr, value: Some(&value) }).unwrap();
            }
            let child = if path.is_empty() { name.clone() } else { [&path[..], b"/", &name].concat() };
            if stat.kind == Kind::File {
                catalog.fold(&Record::Truncate { id, size: stat.size }).unwrap();
                let mut content = vec![0; stat.size as usize];
                let file = root.open_beneath(&child, rustix::fs::OFlags::RDONLY, 0).unwrap();
                sys::read_at(file, &mut content, 0).unwrap();
                let hashes: Vec<u128> = content
                    .chunks(BLOCK as usize)
                    .zip(0..)
                    .map(|(b, i)| block_hash(SYSTEM, id, i, b))
                    .collect();
                contents.push((id, hashes.iter().fold(0, |a: u128, h| a.wrapping_add(*h)), stat));
                blocks.insert(id, hashes);
            } else {
                contents.push((id, 0, stat));
            }
            if stat.kind == Kind::Dir {
                stack.push((id, child));
            }
        }
    }
    catalog.settle().unwrap();
    for (id, sum, stat) in contents {
        catalog.set_content(id, sum, true);
        catalog.set_seen(id, Some(Seen { local: stat.local, ctime: stat.ctime, racy: false }));
    }
    catalog.set_position(Lsn::FIRST, Cut::Exact, 77);
    Still {
        catalog: Arc::new(RwLock::new(catalog)),
        root,
        blocks: Mutex::new(blocks),
        mismatches: Mutex::default(),
        learned: Mutex::default(),
    }
}

fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut rng = fastrand::Rng::with_seed(seed);
    (0..len).map(|_| rng.u8(..)).collect()
}

/// One of everything.
fn furnish(dir: &Path) {
    let write = |name: &str, bytes: &[u8]| std::fs::write(dir.join(name), bytes).unwrap();
    std::fs::create_dir_all(dir.join("a/b/c")).unwrap();
    write("empty", b"");
    write("small", b"hello");
    write("a/block", &noise(BLOCK as usize, 1));
    write("a/b/more", &noise(BLOCK as usize * 3 + 5, 2));
    write("a/b/c/large", &noise(3 << 20, 3));
    write("zeros", &vec![0; 100_000]);
    let sparse = std::fs::File::create(dir.join("sparse")).unwrap();
    sparse.set_len(96 << 20).unwrap();
    sparse.write_all_at(b"in the middle", (50 << 20) + 777).unwrap();
    std::fs::hard_link(dir.join("small"), dir.join("a/b/also small")).unwrap();
    symlink("/etc/passwd", dir.join("a/link")).unwrap();
    symlink("nowhere", dir.join("dangling")).unwrap();
    std::fs::hard_link(dir.join("dangling"), dir.join("a/dangling too")).unwrap();
    let at = std::fs::File::open(dir).unwrap();
    rustix::fs::mknodat(&at, "fifo", rustix::fs::FileType::Fifo, 0o640.into(), 0).unwrap();
    rustix::fs::mknodat(&at, "socket", rustix::fs::FileType::Socket, 0o600.into(), 0).unwrap();
    sys::set_xattr_at(&at, b"small", b"user.color", Some(b"green")).unwrap();
    for i in 0..300 {
        write(&format!("a/b/c/f{i}"), &noise(i * 7, i as u64));
    }
    use std::os::unix::ffi::OsStrExt;
    let odd = std::ffi::OsStr::from_bytes(b"odd\n\xff name");
    std::fs::write(dir.join(odd), b"odd").unwrap();
    let mode =
        |name: &str, m| std::fs::set_permissions(dir.join(name), PermissionsExt::from_mode(m)).unwrap();
    mode("a/b/more", 0o4751);
    mode("a/b/c", 0o555);
    mode("a/block", 0o000);
    let then = std::time::SystemTime::UNIX_EPOCH + Duration::new(1_000_000_000, 123_456_789);
    for name in ["a", "a/b", "small"] {
        std::fs::File::open(dir.join(name)).unwrap().set_modified(then).unwrap();
    }
}

/// Everything that a copy has to keep, by relative path.
fn tree(dir: &Path) -> Vec<(PathBuf, String)> {
    let mut out = Vec::new();
    for entry in walkdir::WalkDir::new(dir).sort_by_file_name() {
        let entry = entry.unwrap();
        let m = entry.path().symlink_metadata().unwrap();
        let t = m.file_type();
        let content = if t.is_file() {
            let bytes = std::fs::read(entry.path()).unwrap();
            format!("{:032x}", xxhash_rust::xxh3::xxh3_128(&bytes))
        } else if t.is_symlink() {
            format!("{:?}", std::fs::read_link(entry.path()).unwrap())
        } else {
            String::new()
        };
        let parent = std::fs::File::open(entry.path().parent().unwrap()).unwrap();
        let name = entry.path().file_name().unwrap();
        let xattrs = sys::xattrs_at(&parent, name.as_encoded_bytes()).unwrap();
        let nlink = if t.is_dir() { 0 } else { m.nlink() };
        let text = format!(
            "{t:?} {:o} {}:{} {}.{} size {} links {nlink} {xattrs:?} {content}",
            m.mode(),
            m.uid(),
            m.gid(),
            m.mtime(),
            m.mtime_nsec(),
            if t.is_file() { m.len() } else { 0 },
        );
        out.push((entry.path().strip_prefix(dir).unwrap().to_owned(), text));
    }
    out
}

struct Leader {
    address: String,
    cancel: CancellationToken,
    peers: Arc<Peers>,
    _log: tempfile::TempDir,
}

async fn lead(source: Arc<dyn CopySource>) -> Leader {
    let dir = tempfile::tempdir().unwrap();
    let options = LogOptions {
        dir: dir.path().to_owned(),
        system: SYSTEM,
        timeline: TimelineId::FIRST,
        segment_timeout: Duration::from_secs(60),
        level: 1,
    };
    let log = Log::open_leader(options).unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (cancel, peers) = (CancellationToken::new(), Arc::new(Peers::default()));
    let context = ServeContext {
        log,
        source,
        history: Arc::new(crate::history::History::first(SYSTEM)),
        name: "leader".to_owned(),
        peer_timeout: Duration::from_secs(2),
        max_followers: 4,
        peers: Arc::clone(&peers),
        backups: Arc::default(),
        ancestry: Ancestry::default(),
        upstream: None,
        halt: send::Halt::default(),
        slots: Arc::new(crate::slots::Slots::open(dir.path()).unwrap()),
        trust: crate::tls::Trust::default(),
        ear: Default::default(),
        recent: Arc::default(),
        heir: nobody(),
    };
    tokio::spawn(send::serve(listener, context, cancel.clone()));
    Leader { address, cancel, peers, _log: dir }
}

struct Follower {
    dir: tempfile::TempDir,
    state: Arc<StateDir>,
    status: Arc<Upstream>,
    report: Arc<Mutex<Report>>,
}

impl Follower {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("data")).unwrap();
        let state = Arc::new(StateDir::open_or_create(&dir.path().join("state")).unwrap());
        let control = Control::new(SystemId::NONE, Role::Follower, "f", &dir.path().join("data"));
        state.persist(control).unwrap();
        Self { dir, state, status: Arc::new(Upstream::default()), report: Arc::default() }
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    fn context(&self, upstream: &str) -> FillContext {
        FillContext {
            purpose: Purpose::Follow,
            sources: crate::net::Sources::one(upstream),
            name: "f".to_owned(),
            root: Arc::new(Root::open(&self.data()).unwrap()),
            state: Arc::clone(&self.state),
            peer_timeout: Duration::from_secs(2),
            status: Arc::clone(&self.status),
            order: None,
            report: Arc::clone(&self.report),
            sums: None,
        }
    }

    async fn fill(&self, upstream: &str) -> Result<()> {
        run(self.context(upstream), CancellationToken::new()).await
    }

    fn fill_state(&self) -> FillState {
        self.state.control().unwrap().fill
    }
}

fn assert_same(a: &Path, b: &Path) {
    let (a, b) = (tree(a), tree(b));
    for (x, y) in a.iter().zip(&b) {
        assert_eq!(x, y);
    }
    assert_eq!(a.len(), b.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_follower_gets_one_of_everything() {
    let dir = tempfile::tempdir().unwrap();
    furnish(dir.path());
    let source = Arc::new(still(dir.path()));
    let leader = lead(source.clone()).await;
    let f = Follower::new();
    f.fill(&leader.address).await.unwrap();
    assert_same(dir.path(), &f.data());
    assert_eq!(f.fill_state(), FillState::Filled { start: Lsn::FIRST, end: Lsn(Lsn::FIRST.0 + 500) });
    let allocated = std::fs::metadata(f.data().join("sparse")).unwrap().blocks() * 512;
    assert!(allocated < 1 << 20, "{allocated} bytes are allocated for a hole");
    let catalog = checkpoint::load_newest(&f.state.catalog(), SYSTEM).unwrap().unwrap();
    assert_eq!(catalog.digest(), source.catalog.read().unwrap().digest());
    assert_eq!((catalog.unhashed(), catalog.lsn()), (0, Lsn::FIRST));
    for inode in catalog.inodes() {
        let path = f.data().join(String::from_utf8_lossy(&catalog.path(inode.id).unwrap()).into_owned());
        let Ok(m) = path.symlink_metadata() else { continue };
        let seen = inode.seen.unwrap();
        assert_eq!(
            (seen.local.ino, seen.ctime.sec, i64::from(seen.ctime.nsec)),
            (m.ino(), m.ctime(), m.ctime_nsec())
        );
    }
    let blocks = Blocks::open(&f.state.blocks()).unwrap();
    for (id, hashes) in source.blocks.lock().unwrap().iter().filter(|(_, h)| h.len() > 1) {
        assert_eq!(&blocks.get(*id, 0, hashes.len()).unwrap(), hashes);
    }
    assert!(source.mismatches.lock().unwrap().is_empty());
    assert_eq!(std::fs::read_dir(f.state.fill()).unwrap().count(), 0);
    assert!(leader.peers.list()[0].filled_files > 300);
    leader.cancel.cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_with_foreign_files_is_refused_untouched() {
    let dir = tempfile::tempdir().unwrap();
    furnish(dir.path());
    let leader = lead(Arc::new(still(dir.path()))).await;
    let f = Follower::new();
    std::fs::write(f.data().join("mine"), b"precious").unwrap();
    let before = tree(&f.data());
    let e = f.fill(&leader.address).await.unwrap_err();
    assert_eq!(e.kind(), crate::error::ErrorKind::Refused);
    assert!(e.to_string().contains("mine"), "{e}");
    assert_eq!(tree(&f.data()), before);
    assert_eq!(f.fill_state(), FillState::None);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_changes_while_it_is_read_is_reported_and_what_is_not_hashed_is_learned() {
    let dir = tempfile::tempdir().unwrap();
    furnish(dir.path());
    let source = Arc::new(still(dir.path()));
    let id = |name: &str| source.catalog.read().unwrap().resolve(name.as_bytes()).unwrap();
    let (large, small, more, gone) = (id("a/b/c/large"), id("small"), id("a/b/more"), id("a/b/c/f9"));
    let write = |name: &str, at, bytes: &[u8]| {
        std::fs::File::options()
            .write(true)
            .open(dir.path().join(name))
            .unwrap()
            .write_all_at(bytes, at)
            .unwrap();
    };
    // After the snapshot: changed in two blocks, changed in its only block, cut, removed.
    write("a/b/c/large", 5 * BLOCK + 1, b"x");
    write("a/b/c/large", 100 * BLOCK, b"y");
    write("small", 0, b"J");
    std::fs::File::options().write(true).open(dir.path().join("a/b/more")).unwrap().set_len(BLOCK).unwrap();
    std::fs::remove_file(dir.path().join("a/b/c/f9")).unwrap();
    let unknown = id("a/block");
    source.catalog.write().unwrap().set_content(unknown, 0, false);
    let hashes = source.blocks.lock().unwrap().remove(&unknown).unwrap();
    let leader = lead(source.clone()).await;
    let f = Follower::new();
    f.fill(&leader.address).await.unwrap();
    let mut found = source.mismatches.lock().unwrap().clone();
    assert_eq!(found.remove(&large), Some(vec![5, 100]));
    assert_eq!(found.remove(&small), Some(vec![0]));
    assert_eq!(found.remove(&more), Some(vec![1, 2, 3]));
    assert_eq!(found.remove(&gone), Some(vec![0]));
    assert!(found.is_empty(), "{found:?}");
    assert_eq!(source.learned.lock().unwrap().get(&unknown), Some(&hashes));
    // Sizes are those of the snapshot: what was cut is zero until the log says so, too.
    assert_eq!(std::fs::metadata(f.data().join("a/b/more")).unwrap().len(), BLOCK * 3 + 5);
    assert_eq!(std::fs::read(f.data().join("small")).unwrap(), b"Jello");
    let catalog = checkpoint::load_newest(&f.state.catalog(), SYSTEM).unwrap().unwrap();
    assert_eq!(catalog.get(small).unwrap().content, block_hash(SYSTEM, small, 0, b"Jello"));
    assert_eq!(catalog.get(unknown).unwrap().content, hashes[0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn paths_longer_than_the_kernel_takes_are_copied() {
    let dir = tempfile::tempdir().unwrap();
    let mut at = std::os::fd::OwnedFd::from(std::fs::File::open(dir.path()).unwrap());
    let mut path = Vec::new();
    for i in 0..50 {
        let name = format!("{i:0>255}");
        rustix::fs::mkdirat(&at, &*name, 0o755.into()).unwrap();
        at = sys::open_beneath(
            std::os::fd::AsFd::as_fd(&at),
            name.as_bytes(),
            rustix::fs::OFlags::DIRECTORY,
            0,
        )
        .unwrap();
        path.extend_from_slice(name.as_bytes());
        path.push(b'/');
    }
    path.extend_from_slice(b"file");
    let flags = rustix::fs::OFlags::CREATE | rustix::fs::OFlags::WRONLY;
    let root = Root::open(dir.path()).unwrap();
    sys::write_at(root.open_beneath(&path, flags, 0o644).unwrap(), b"deep", 0).unwrap();
    let leader = lead(Arc::new(still(dir.path()))).await;
    let f = Follower::new();
    f.fill(&leader.address).await.unwrap();
    let copy = Root::open(&f.data()).unwrap().open_beneath(&path, rustix::fs::OFlags::RDONLY, 0).unwrap();
    let mut content = [0; 8];
    assert_eq!(sys::read_at(copy, &mut content, 0).unwrap(), 4);
    assert_eq!(&content[..4], b"deep");
}

/// Passes a connection on until `bytes` came from the leader, then cuts it; again for each connection.
async fn cutter(leader: String, bytes: Arc<Mutex<u64>>) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((down, _)) = listener.accept().await {
            let up = tokio::net::TcpStream::connect(&leader).await.unwrap();
            let (mut down_r, mut down_w) = down.into_split();
            let (up_r, mut up_w) = up.into_split();
            let limit = *bytes.lock().unwrap();
            let there = tokio::spawn(async move {
                let _ = tokio::io::copy(&mut down_r, &mut up_w).await;
            });
            let mut limited = tokio::io::AsyncReadExt::take(up_r, limit);
            let _ = tokio::io::copy(&mut limited, &mut down_w).await;
            there.abort();
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_breaks_off_goes_on_where_it_was() {
    let dir = tempfile::tempdir().unwrap();
    furnish(dir.path());
    for i in 0..8 {
        std::fs::write(dir.path().join(format!("big{i}")), noise(2 << 20, 50 + i)).unwrap();
    }
    let source = Arc::new(still(dir.path()));
    let leader = lead(source.clone()).await;
    let limit = Arc::new(Mutex::new(6 << 20));
    let cut = cutter(leader.address.clone(), Arc::clone(&limit)).await;
    let f = Follower::new();
    let filling = tokio::spawn(run(f.context(&cut), CancellationToken::new()));
    let began = std::time::Instant::now();
    while f.status.status().attempts == 0 {
        assert!(began.elapsed() < Duration::from_secs(20));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(f.fill_state(), FillState::Copying { start: Lsn::FIRST });
    let sent = leader.peers.list()[0].filled_bytes;
    *limit.lock().unwrap() = u64::MAX;
    filling.await.unwrap().unwrap();
    assert_same(dir.path(), &f.data());
    let again = leader.peers.list()[0].filled_bytes;
    assert!(again < (23 << 20) - (2 << 20), "{again} bytes were sent again after {sent}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unfinished_copy_knows_its_own_files_from_foreign_ones() {
    let dir = tempfile::tempdir().unwrap();
    furnish(dir.path());
    std::fs::write(dir.path().join("big"), noise(8 << 20, 50)).unwrap();
    let source = Arc::new(still(dir.path()));
    let leader = lead(source.clone()).await;
    let limit = Arc::new(Mutex::new(4 << 20));
    let cut = cutter(leader.address.clone(), limit).await;
    let f = Follower::new();
    let cancel = CancellationToken::new();
    let filling = tokio::spawn(run(f.context(&cut), cancel.clone()));
    while f.status.status().attempts == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    cancel.cancel();
    filling.await.unwrap().unwrap();
    std::fs::write(f.data().join("mine"), b"precious").unwrap();
    let e = f.fill(&leader.address).await.unwrap_err();
    assert!(e.to_string().contains("mine"), "{e}");
    assert!(f.data().join("mine").exists());
    std::fs::remove_file(f.data().join("mine")).unwrap();
    // A leader that no longer has the log since the snapshot: all begins anew.
    f.state.change(|c| c.fill = FillState::Copying { start: Lsn(5) }).unwrap();
    assert!(f.fill(&leader.address).await.is_err(), "the journal is of another copy");
    f.state.change(|c| c.fill = FillState::Copying { start: Lsn::FIRST }).unwrap();
    f.fill(&leader.address).await.unwrap();
    assert_same(dir.path(), &f.data());
}

#[test]
fn discarding_a_copy_removes_what_it_made_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    furnish(dir.path());
    let source = still(dir.path());
    let catalog = source.catalog.read().unwrap();
    let copy = tree::Tree { root: &source.root, catalog: &catalog };
    std::fs::write(dir.path().join("a/b/foreign"), b"x").unwrap();
    let before = tree(dir.path());
    assert!(copy.discard().unwrap_err().to_string().contains("a/b/foreign"));
    assert_eq!(tree(dir.path()), before);
    std::fs::remove_file(dir.path().join("a/b/foreign")).unwrap();
    copy.discard().unwrap();
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[path = "resync_tests.rs"]
mod resync_tests;
