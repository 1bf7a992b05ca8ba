//! A leader made of a fold and a log, and a follower's directory to apply to.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::apply::{Applied, Apply, ApplyHandle, ApplyOptions, ApplyPaths};
use crate::catalog::{Catalog, Seen, block_hashes, blocks_of};
use crate::checkpoint;
use crate::error::Result;
use crate::fold::Fold;
use crate::log::{Log, LogOptions};
use crate::position::{Cut, FileId, Lsn, SystemId, TimelineId};
use crate::record::{Attrs, BLOCK, Kind, Record, Time, WRITE_MAX};
use crate::segment::flags;
use crate::sys::{self, Root};

const SYSTEM: SystemId = SystemId(77);

pub(super) struct Bench {
    pub(super) tmp: tempfile::TempDir,
    /// The leader's side.
    pub(super) fold: Fold,
    pub(super) log: Log,
    open: Vec<u8>,
    started: bool,
    tick: i64,
    pub(super) last: Lsn,
    pub(super) exact: Lsn,
    pub(super) options: ApplyOptions,
}

pub(super) fn attrs(mode: u32, tick: i64) -> Attrs {
    let me = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    Attrs { mode, uid: me.0, gid: me.1, mtime: Time { sec: 1_600_000_000 + tick, nsec: 123_456_789 } }
}

impl Bench {
    pub(super) fn new() -> Self {
        let tmp = tempfile::tempdir().unwrap();
        for dir in ["data", "catalog", "blocks", "leader", "log"] {
            std::fs::create_dir(tmp.path().join(dir)).unwrap();
        }
        let data = Root::open(&tmp.path().join("data")).unwrap();
        let root = attrs(0o755, 0);
        let mut catalog = Catalog::new(SYSTEM, root);
        let stat = sys::stat_fd(data.fd()).unwrap();
        let fold = Fold::new(catalog.clone(), &tmp.path().join("leader")).unwrap();
        catalog.set_seen(FileId::ROOT, Some(Seen { local: stat.local, ctime: stat.ctime, racy: false }));
        let follower = Fold::new(catalog, &tmp.path().join("blocks")).unwrap();
        checkpoint::save(&tmp.path().join("catalog"), &follower).unwrap();
        let log = Log::open_leader(LogOptions {
            dir: tmp.path().join("log"),
            system: SYSTEM,
            timeline: TimelineId::FIRST,
            segment_timeout: Duration::from_secs(3600),
            level: 1,
        })
        .unwrap();
        Self {
            tmp,
            fold,
            log,
            open: Vec::new(),
            started: false,
            tick: 0,
            last: Lsn::FIRST,
            exact: Lsn::FIRST,
            options: ApplyOptions {
                checkpoint_interval: Duration::from_secs(3600),
                ..ApplyOptions::default()
            },
        }
    }

    pub(super) fn data(&self) -> PathBuf {
        self.tmp.path().join("data")
    }

    pub(super) fn start(&self) -> Result<ApplyHandle> {
        self.start_filled(None)
    }

    pub(super) fn start_filled(&self, filled: Option<(Lsn, Lsn)>) -> Result<ApplyHandle> {
        let paths = ApplyPaths {
            catalog: self.tmp.path().join("catalog"),
            blocks: self.tmp.path().join("blocks"),
            system: SYSTEM,
            timeline: TimelineId::FIRST,
        };
        let root = Arc::new(Root::open(&self.data()).unwrap());
        Apply::start(root, paths, self.log.clone(), filled, self.options.clone())
    }

    /// One record of the open change set.
    pub(super) fn record(&mut self, record: Record<'_>) {
        self.fold.record(&record).unwrap();
        let mut bytes = Vec::new();
        record.encode(&mut bytes);
        if self.open.len() + bytes.len() > 1 << 20 {
            self.flush(0);
        }
        self.open.extend_from_slice(&bytes);
    }

    fn flush(&mut self, more: u16) -> Lsn {
        let first = if self.started { 0 } else { flags::STARTS };
        self.started = more & flags::ENDS == 0;
        self.log.append(std::mem::take(&mut self.open), first | more).unwrap().1
    }

    /// Ends the change set.
    pub(super) fn commit(&mut self, cut: Cut) -> Lsn {
        let commit = self.fold.seal(cut, 1_000_000_000 + self.tick).unwrap();
        let mut bytes = Vec::new();
        Record::Commit(commit).encode(&mut bytes);
        if self.open.len() + bytes.len() > 1 << 20 {
            self.flush(0);
        }
        self.open.extend_from_slice(&bytes);
        let exact = if cut == Cut::Exact { flags::EXACT } else { 0 };
        let end = self.flush(flags::ENDS | exact);
        self.fold.write().set_position(end, cut, 0);
        assert!(self.log.wait_durable(end, Duration::from_secs(20)).unwrap());
        self.last = end;
        if cut == Cut::Exact {
            self.exact = end;
        }
        end
    }

    /// Appends a change set that is aborted; the leader's fold does not see it.
    pub(super) fn abort(&mut self, records: &[Record<'_>]) {
        let mut raw = Vec::new();
        for r in records {
            r.encode(&mut raw);
        }
        self.log.append(raw, flags::STARTS).unwrap();
        let mut raw = Vec::new();
        Record::Abort.encode(&mut raw);
        let (_, end) = self.log.append(raw, flags::ENDS | flags::ABORT).unwrap();
        assert!(self.log.wait_durable(end, Duration::from_secs(20)).unwrap());
    }

    pub(super) fn tick(&mut self) -> i64 {
        self.tick += 1;
        self.tick
    }

    pub(super) fn next_id(&self) -> FileId {
        self.fold.read().next_id()
    }

    pub(super) fn create(&mut self, kind: Kind, mode: u32, target: &[u8]) -> FileId {
        let (id, tick) = (self.next_id(), self.tick());
        let mode = if kind == Kind::Symlink { 0o777 } else { mode };
        self.record(Record::Create { id, kind, attrs: attrs(mode, tick), rdev: 0, target });
        id
    }

    pub(super) fn link(&mut self, dir: FileId, name: &str, id: FileId) {
        self.record(Record::Link { parent: dir, name: name.as_bytes(), id });
        self.touch(dir);
    }

    pub(super) fn unlink(&mut self, dir: FileId, name: &str) {
        self.record(Record::Unlink { parent: dir, name: name.as_bytes() });
        self.touch(dir);
    }

    pub(super) fn touch(&mut self, id: FileId) {
        let tick = self.tick();
        let old = self.fold.read().get(id).unwrap().attrs;
        self.record(Record::Attr { id, attrs: Attrs { mtime: attrs(0, tick).mtime, ..old } });
    }

    /// An extended attribute.
    pub(super) fn label(&mut self, id: FileId, name: &str, value: &str) {
        self.record(Record::Xattr { id, name: name.as_bytes(), value: Some(value.as_bytes()) });
    }

    /// The whole content of a file.
    pub(super) fn content(&mut self, id: FileId, data: &[u8]) {
        if self.fold.read().get(id).unwrap().size > 0 {
            self.record(Record::Truncate { id, size: 0 });
        }
        for (i, part) in data.chunks(WRITE_MAX).enumerate() {
            if part.iter().any(|&b| b != 0) {
                self.record(Record::Write { id, offset: (i * WRITE_MAX) as u64, data: part });
            }
        }
        self.record(Record::Truncate { id, size: data.len() as u64 });
        self.touch(id);
    }

    /// One block of a file, as far as the file reaches.
    pub(super) fn block(&mut self, id: FileId, block: u64, byte: u8) {
        let size = self.fold.read().get(id).unwrap().size;
        let len = BLOCK.min(size.saturating_sub(block * BLOCK));
        if len > 0 {
            let data = vec![byte; len as usize];
            self.record(Record::Write { id, offset: block * BLOCK, data: &data });
            self.touch(id);
        }
    }

    pub(super) fn file(&mut self, dir: FileId, name: &str, data: &[u8]) -> FileId {
        let id = self.create(Kind::File, 0o644, b"");
        self.content(id, data);
        self.link(dir, name, id);
        id
    }

    pub(super) fn dir(&mut self, dir: FileId, name: &str) -> FileId {
        let id = self.create(Kind::Dir, 0o755, b"");
        self.link(dir, name, id);
        id
    }

    /// Waits until the follower stands at `lsn`.
    pub(super) fn wait(&self, handle: &ApplyHandle, lsn: Lsn) -> Applied {
        let applied = handle.applied();
        for _ in 0..20_000 {
            if let Some(e) = handle.failure() {
                panic!("apply failed: {e}");
            }
            let now = *applied.borrow();
            if now.consistent && now.lsn >= lsn {
                return now;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        panic!("apply did not reach {lsn}: {:?} {:?}", *applied.borrow(), handle.stats());
    }

    /// Starts, applies everything, stops cleanly and compares.
    pub(super) fn replay(&self) {
        let handle = self.start().unwrap();
        self.wait(&handle, self.exact);
        self.compare();
        handle.stop().unwrap();
        self.compare();
    }

    /// The directory is what the leader's catalog says: names, kinds, attributes, link counts, contents.
    pub(super) fn compare(&self) {
        let catalog = self.fold.read();
        let mut inodes: HashMap<FileId, u64> = HashMap::new();
        let mut names = 0;
        let root = self.data();
        for entry in walkdir::WalkDir::new(&root) {
            let entry = entry.unwrap();
            let rel = entry.path().strip_prefix(&root).unwrap();
            if rel.starts_with(".towline-stage") {
                assert_eq!(rel, Path::new(".towline-stage"), "staging is not empty");
                continue;
            }
            use std::os::unix::ffi::OsStrExt;
            let id = catalog.resolve(rel.as_os_str().as_bytes());
            let id = id.unwrap_or_else(|| panic!("{} is not in the catalog", rel.display()));
            let ino = std::fs::symlink_metadata(entry.path()).unwrap().ino();
            assert_eq!(*inodes.entry(id).or_insert(ino), ino, "{} is another inode", rel.display());
            names += usize::from(id != FileId::ROOT);
            self.compare_one(&catalog, id, entry.path());
        }
        assert_eq!(names, catalog.name_count(), "names are missing on disk");
    }

    fn compare_one(&self, catalog: &Catalog, id: FileId, path: &Path) {
        let inode = catalog.get(id).unwrap();
        let parent = std::fs::File::open(path.parent().unwrap()).unwrap();
        use std::os::unix::ffi::OsStrExt;
        let name = path.file_name().unwrap().as_bytes();
        let stat = sys::stat_at(&parent, name).unwrap().unwrap();
        let shown = path.display();
        assert_eq!(stat.kind, inode.kind, "{shown}");
        assert_eq!(stat.attrs, inode.attrs, "{shown}");
        let have = sys::xattrs_at(&parent, name).unwrap();
        let have: Vec<(&[u8], &[u8])> = have.iter().map(|(a, b)| (&a[..], &b[..])).collect();
        let want: Vec<(&[u8], &[u8])> = inode.xattrs.iter().map(|(a, b)| (&a[..], &b[..])).collect();
        assert_eq!(have, want, "{shown}");
        match inode.kind {
            Kind::File => {
                assert_eq!(stat.size, inode.size, "{shown}");
                assert_eq!(stat.nlink, inode.nlink, "{shown}");
                let data = std::fs::read(path).unwrap();
                let known = self.fold.hashes(id, 0, blocks_of(inode.size) as usize).unwrap();
                let now: Vec<u128> = block_hashes(catalog.system(), id, 0, &data).collect();
                assert!(now == known, "{shown} ({id}) has another content");
            }
            Kind::Symlink => {
                let target = std::fs::read_link(path).unwrap();
                assert_eq!(target.as_os_str().as_bytes(), inode.target.unwrap());
            }
            _ => {}
        }
    }
}
