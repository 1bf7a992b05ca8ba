//! The test bed: a directory, a state directory, a running capture, and a mirror that follows its log.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::capture::{Capture, CaptureHandle, CaptureOptions};
use crate::catalog::Catalog;
use crate::checkpoint;
use crate::fold::Fold;
use crate::log::{FrameReader, Log, LogOptions};
use crate::position::{Cut, FileId, Lsn, SystemId, TimelineId};
use crate::record::{Attrs, BLOCK, Kind, Record, Records};
use crate::segment::flags;
use crate::sys::Root;

pub(super) const SYSTEM: SystemId = SystemId(77);

/// Captures are timed: they don't run beside each other.
static ONE: Mutex<()> = Mutex::new(());

pub(super) struct Bed {
    pub(super) dir: tempfile::TempDir,
    pub(super) options: CaptureOptions,
    pub(super) capture: Option<CaptureHandle>,
    pub(super) log: Option<Log>,
    pub(super) mirror: Mirror,
    _one: MutexGuard<'static, ()>,
}

pub(super) fn options() -> CaptureOptions {
    CaptureOptions {
        rescan_interval: Duration::from_secs(3600),
        max_cut_delay: Duration::from_secs(1),
        max_delete_percent: 50,
        max_delete_min: 1000,
        excludes: Vec::new(),
        hot_interval: Duration::from_millis(200),
        freeze: String::new(),
        freezer: None,
        max_freeze: Duration::from_millis(500),
        before_cut: None,
        after_cut: None,
        scrub_rate: 1 << 30,
        checkpoint_bytes: 64 << 20,
        checkpoint_interval: Duration::from_secs(300),
    }
}

impl Bed {
    /// An empty directory under capture.
    pub(super) fn new() -> Self {
        let mut bed = Self::idle();
        bed.start();
        bed
    }

    /// A bed whose capture has not begun.
    pub(super) fn idle() -> Self {
        let one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("data")).unwrap();
        fs::create_dir(dir.path().join("state")).unwrap();
        fs::create_dir(dir.path().join("mirror")).unwrap();
        let mirror = Mirror::new(dir.path().join("mirror"));
        Self { dir, options: options(), capture: None, log: None, mirror, _one: one }
    }

    pub(super) fn path(&self, rel: &str) -> PathBuf {
        self.dir.path().join("data").join(rel)
    }

    pub(super) fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// Starts capture as a daemon does: newest checkpoint, then the log after it.
    pub(super) fn start(&mut self) {
        let log = Log::open_leader(LogOptions {
            dir: self.state().join("log"),
            system: SYSTEM,
            timeline: TimelineId::FIRST,
            segment_timeout: Duration::from_secs(600),
            level: 1,
        })
        .unwrap();
        let loaded = checkpoint::load_newest(&self.state().join("catalog"), SYSTEM).unwrap();
        let new = loaded.is_none();
        let catalog = loaded.unwrap_or_else(|| Catalog::new(SYSTEM, Attrs::default()));
        let mut fold = Fold::new(catalog, &self.state().join("blocks")).unwrap();
        let from = fold.read().lsn();
        fold.begin_loose();
        let tail = log.tail();
        if tail.commit > from {
            each_set(&log, from, tail.commit, |records, end, cut, time| {
                for raw in records {
                    for record in Records::new(raw) {
                        fold.record(&record.unwrap().1).unwrap();
                    }
                }
                fold.write().set_position(end, cut, time);
            });
        }
        fold.finish_loose().unwrap();
        let root = Arc::new(Root::open(&self.path("")).unwrap());
        let capture = Capture::start(root, fold, log.clone(), &self.state(), self.options.clone()).unwrap();
        if new {
            capture.settled(|fold| self.mirror.take_base(fold, &self.dir.path().join("data")));
        }
        (self.capture, self.log) = (Some(capture), Some(log));
    }

    pub(super) fn capture(&self) -> &CaptureHandle {
        self.capture.as_ref().unwrap()
    }

    pub(super) fn barrier(&self) -> Lsn {
        self.capture().barrier(Duration::from_secs(60)).unwrap()
    }

    /// Everything up to now is in the log, and the log says what the directory holds.
    pub(super) fn check(&mut self) {
        self.barrier();
        self.follow();
        let (want, have) = (listing(&self.path("")), self.mirror.listing());
        for (path, what) in &want {
            assert_eq!(have.get(path), Some(what), "{}", path.escape_ascii());
        }
        for path in have.keys() {
            assert!(want.contains_key(path), "{} is not there", path.escape_ascii());
        }
    }

    /// The same for what no event tells of: the polls find it in time.
    pub(super) fn check_within(&mut self, limit: Duration) {
        let deadline = std::time::Instant::now() + limit;
        while listing(&self.path("")) != self.mirror.listing() && std::time::Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
            self.follow();
        }
        self.check();
    }

    /// Takes the log up to its end into the mirror.
    pub(super) fn follow(&mut self) {
        let log = self.log.as_ref().unwrap();
        self.mirror.follow(log);
    }

    /// Stops cleanly.
    pub(super) fn stop(&mut self) {
        self.capture.take().unwrap().stop().unwrap();
        self.follow();
        self.log.take().unwrap().close().unwrap();
    }

    /// Stops as if the process had been killed: what is on disk is what it was before the stop.
    pub(super) fn crash(&mut self) {
        self.follow();
        let saved = self.dir.path().join("saved");
        copy_dir(&self.state(), &saved);
        let _ = self.capture.take().unwrap().stop();
        self.log.take().unwrap().close().unwrap();
        fs::remove_dir_all(self.state()).unwrap();
        fs::rename(saved, self.state()).unwrap();
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        if let Some(capture) = self.capture.take() {
            let _ = capture.stop();
        }
    }
}

fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap().flatten() {
        let (path, target) = (entry.path(), to.join(entry.file_name()));
        if path.is_dir() {
            copy_dir(&path, &target);
        } else {
            fs::copy(&path, &target).unwrap();
        }
    }
}

/// Calls `each` with every committed change set from `from` to `to`.
fn each_set(log: &Log, from: Lsn, to: Lsn, mut each: impl FnMut(&[Vec<u8>], Lsn, Cut, i64)) {
    let mut reader = FrameReader::open(log.dir(), SYSTEM, TimelineId::FIRST, from).unwrap();
    let mut set = Vec::new();
    while let Some(frame) = reader.next(to).unwrap() {
        set.push(frame.raw);
        if frame.flags & flags::ENDS == 0 {
            continue;
        }
        if frame.flags & flags::ABORT == 0 {
            let cut = if frame.flags & flags::EXACT != 0 { Cut::Exact } else { Cut::File };
            each(&set, frame.end, cut, 0);
        }
        set.clear();
    }
}

/// One thing of a tree.
#[derive(PartialEq, Eq, Debug, Clone)]
pub(super) struct Thing {
    kind: Kind,
    mode: u32,
    mtime: (i64, i64),
    size: u64,
    /// Number of names within the tree, only meaningful for files.
    names: usize,
    target: Vec<u8>,
    /// Blocks that are not zero.
    blocks: BTreeMap<u64, Vec<u8>>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

type OnCommit = Box<dyn FnMut(&Mirrored<'_>) + Send + Sync>;

/// What the log makes of the tree.
pub(super) struct Mirror {
    dir: PathBuf,
    pub(super) fold: Fold,
    data: HashMap<FileId, BTreeMap<u64, Vec<u8>>>,
    at: Lsn,
    /// Bytes of file data taken so far.
    pub(super) bytes: u64,
    /// Records taken so far.
    pub(super) records: u64,
    pub(super) gaps: Vec<(bool, crate::record::GapReason)>,
    pub(super) cuts: Vec<Cut>,
    /// Called with every commit.
    pub(super) on_commit: Option<OnCommit>,
}

/// The mirror at a commit.
pub(super) struct Mirrored<'a> {
    catalog: &'a Catalog,
    data: &'a HashMap<FileId, BTreeMap<u64, Vec<u8>>>,
    pub(super) cut: Cut,
}

impl Mirrored<'_> {
    /// The content of a small file.
    pub(super) fn read(&self, path: &str) -> Option<Vec<u8>> {
        let id = self.catalog.resolve(path.as_bytes())?;
        let size = usize::try_from(self.catalog.get(id)?.size).unwrap();
        let mut out = self.data.get(&id).and_then(|b| b.get(&0)).cloned().unwrap_or_default();
        out.resize(size, 0);
        Some(out)
    }

    pub(super) fn exists(&self, path: &str) -> bool {
        self.catalog.resolve(path.as_bytes()).is_some()
    }
}

impl Mirror {
    fn new(dir: PathBuf) -> Self {
        let fold = Fold::new(Catalog::new(SYSTEM, Attrs::default()), &dir.join("blocks")).unwrap();
        Self {
            dir,
            fold,
            data: HashMap::new(),
            at: Lsn::FIRST,
            bytes: 0,
            records: 0,
            gaps: Vec::new(),
            cuts: Vec::new(),
            on_commit: None,
        }
    }

    /// Begins with the base that the first scan made.
    fn take_base(&mut self, fold: &Fold, root: &Path) {
        let mut bytes = Vec::new();
        checkpoint::encode(&fold.read().freeze().unwrap(), &mut bytes).unwrap();
        let mut catalog = checkpoint::decode(&bytes[..]).unwrap();
        // Also those that were hashed in the moment since the scan.
        let files: Vec<FileId> =
            catalog.inodes().filter(|n| n.kind == Kind::File && n.size > 0).map(|n| n.id).collect();
        catalog.forget_locals();
        for id in &files {
            let path = root.join(std::ffi::OsStr::from_bytes(&catalog.path(*id).unwrap()));
            self.data.insert(*id, blocks_of_file(&path));
        }
        self.at = catalog.lsn();
        self.fold = Fold::new(catalog, &self.dir.join("blocks")).unwrap();
    }

    fn follow(&mut self, log: &Log) {
        let to = log.tail().commit;
        let mut sets = Vec::new();
        if to > self.at {
            each_set(log, self.at, to, |records, end, cut, _| sets.push((records.to_vec(), end, cut)));
        }
        for (raws, end, cut) in sets {
            for raw in &raws {
                for record in Records::new(raw) {
                    self.take(&record.unwrap().1);
                }
            }
            self.fold.write().set_position(end, cut, 0);
            self.at = end;
            self.cuts.push(cut);
            if let Some(mut call) = self.on_commit.take() {
                call(&Mirrored { catalog: &self.fold.read(), data: &self.data, cut });
                self.on_commit = Some(call);
            }
        }
    }

    fn take(&mut self, record: &Record<'_>) {
        self.records += 1;
        self.fold.record(record).unwrap();
        match *record {
            Record::Write { id, offset, data } => {
                self.bytes += data.len() as u64;
                let file = self.data.entry(id).or_default();
                for (i, block) in data.chunks(BLOCK as usize).enumerate() {
                    file.insert(offset / BLOCK + i as u64, trimmed(block));
                }
            }
            Record::Truncate { id, size } => {
                let file = self.data.entry(id).or_default();
                file.split_off(&size.div_ceil(BLOCK));
                if let Some(last) = file.get_mut(&(size / BLOCK)) {
                    last.truncate((size % BLOCK) as usize);
                }
            }
            Record::Punch { id, offset, len } => {
                let file = self.data.entry(id).or_default();
                file.retain(|&b, _| b < offset / BLOCK || b >= (offset + len).div_ceil(BLOCK));
            }
            Record::Gap { end, reason, .. } => self.gaps.push((end, reason)),
            _ => {}
        }
    }

    fn listing(&self) -> BTreeMap<Vec<u8>, Thing> {
        let catalog = self.fold.read();
        let mut out = BTreeMap::new();
        let mut todo = vec![(Vec::new(), FileId::ROOT)];
        while let Some((path, id)) = todo.pop() {
            let n = catalog.get(id).unwrap();
            for (name, child) in catalog.children(id) {
                let below = if path.is_empty() { name.to_vec() } else { [&path, &b"/"[..], name].concat() };
                todo.push((below, child));
            }
            let mut blocks = self.data.get(&id).cloned().unwrap_or_default();
            blocks.retain(|_, b| {
                *b = trimmed(b);
                !b.is_empty()
            });
            let thing = Thing {
                kind: n.kind,
                mode: n.attrs.mode,
                mtime: (n.attrs.mtime.sec, i64::from(n.attrs.mtime.nsec)),
                size: n.size,
                names: if n.kind == Kind::Dir { 1 } else { catalog.nlink(id) },
                target: n.target.unwrap_or_default().to_vec(),
                blocks,
                xattrs: n.xattrs.iter().map(|(k, v)| (k.to_vec(), v.to_vec())).collect(),
            };
            out.insert(path, thing);
        }
        out
    }
}

fn trimmed(block: &[u8]) -> Vec<u8> {
    let len = block.iter().rposition(|&b| b != 0).map_or(0, |p| p + 1);
    block[..len].to_vec()
}

/// The blocks of a file that are not zero; holes are skipped.
fn blocks_of_file(path: &Path) -> BTreeMap<u64, Vec<u8>> {
    let mut out = BTreeMap::new();
    let Ok(file) = fs::File::open(path) else { return out };
    let size = file.metadata().unwrap().len();
    let mut at = 0;
    while let Ok(start) = rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(at)) {
        let end = rustix::fs::seek(&file, rustix::fs::SeekFrom::Hole(start)).unwrap_or(size);
        for block in start / BLOCK..end.div_ceil(BLOCK) {
            let mut data = vec![0; BLOCK as usize];
            let mut got = 0;
            while let Ok(n) = file.read_at(&mut data[got..], block * BLOCK + got as u64) {
                if n == 0 {
                    break;
                }
                got += n;
            }
            let data = trimmed(&data[..got]);
            if !data.is_empty() {
                out.insert(block, data);
            }
        }
        at = end;
        if at >= size {
            break;
        }
    }
    out
}

/// The tree as it is.
fn listing(root: &Path) -> BTreeMap<Vec<u8>, Thing> {
    let mut names: HashMap<u64, usize> = HashMap::new();
    let mut out = BTreeMap::new();
    let mut inodes = HashMap::new();
    for entry in walkdir::WalkDir::new(root) {
        let entry = entry.unwrap();
        let path = entry.path();
        let meta = fs::symlink_metadata(path).unwrap();
        let rel = path.strip_prefix(root).unwrap().as_os_str().as_bytes().to_vec();
        let kind = match meta.file_type() {
            t if t.is_file() => Kind::File,
            t if t.is_dir() => Kind::Dir,
            t if t.is_symlink() => Kind::Symlink,
            t => {
                use std::os::unix::fs::FileTypeExt;
                if t.is_fifo() { Kind::Fifo } else { Kind::Socket }
            }
        };
        *names.entry(meta.ino()).or_default() += 1;
        inodes.insert(rel.clone(), meta.ino());
        let target = if kind == Kind::Symlink {
            fs::read_link(path).unwrap().as_os_str().as_bytes().to_vec()
        } else {
            Vec::new()
        };
        let thing = Thing {
            kind,
            mode: meta.mode() & 0o7777,
            mtime: (meta.mtime(), meta.mtime_nsec()),
            size: if kind == Kind::File { meta.len() } else { 0 },
            names: 1,
            target,
            blocks: if kind == Kind::File { blocks_of_file(path) } else { BTreeMap::new() },
            xattrs: xattrs(path),
        };
        out.insert(rel, thing);
    }
    for (path, thing) in &mut out {
        if thing.kind != Kind::Dir {
            thing.names = names[&inodes[path]];
        }
    }
    out
}

fn xattrs(path: &Path) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut buffer = vec![0; 4096];
    let n = rustix::fs::llistxattr(path, &mut buffer[..]).unwrap_or(0);
    let mut out: Vec<_> = buffer[..n]
        .split(|&b| b == 0)
        .filter(|name| name.starts_with(b"user."))
        .map(|name| {
            let mut value = vec![0; 4096];
            let n = rustix::fs::lgetxattr(path, name, &mut value[..]).unwrap();
            value.truncate(n);
            (name.to_vec(), value)
        })
        .collect();
    out.sort();
    out
}
