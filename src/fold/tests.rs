//! The fold against a model that keeps real bytes, with crashes in between.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::catalog::block_hash;
use crate::checkpoint;
use crate::position::{Lsn, SystemId};
use crate::record::{Attrs, Records};

const SYSTEM: SystemId = SystemId(99);
const B: usize = BLOCK as usize;

#[derive(Debug, Clone)]
enum Op {
    Create,
    /// Blocks from a block on; how many; bytes of the last one left out; fill byte (0: a block of zeros).
    Write(u8, u8, u8, u16, u8),
    Truncate(u8, u32),
    Punch(u8, u8, u8),
    Remove(u8),
    Unhash(u8),
    Learn(u8, bool),
    Commit,
    /// Writes a checkpoint; false: a crash comes before it is durable.
    Checkpoint(bool),
    Crash,
    /// A crash, and the newest checkpoint is damaged.
    CrashBack,
    Flush,
}

fn op() -> impl Strategy<Value = Op> {
    let file = 0..3_u8;
    let size = prop_oneof![
        Just(0_u32),
        1..2 * BLOCK as u32,
        (0..7_u32).prop_map(|n| n * BLOCK as u32),
        0..7 * BLOCK as u32
    ];
    prop_oneof![
        2 => Just(Op::Create),
        8 => (file.clone(), 0..6_u8, 1..4_u8, prop_oneof![Just(0), 0..BLOCK as u16], 0..4_u8)
            .prop_map(|(f, b, n, short, fill)| Op::Write(f, b, n, short, fill)),
        6 => (file.clone(), size).prop_map(|(f, s)| Op::Truncate(f, s)),
        3 => (file.clone(), 0..7_u8, 0..4_u8).prop_map(|(f, b, n)| Op::Punch(f, b, n)),
        1 => file.clone().prop_map(Op::Remove),
        1 => file.clone().prop_map(Op::Unhash),
        1 => (file, any::<bool>()).prop_map(|(f, whole)| Op::Learn(f, whole)),
        5 => Just(Op::Commit),
        2 => any::<bool>().prop_map(Op::Checkpoint),
        2 => Just(Op::Crash),
        1 => Just(Op::CrashBack),
        1 => Just(Op::Flush),
    ]
}

/// A node: its fold, the bytes its files really have, and its log.
struct Node {
    dir: tempfile::TempDir,
    fold: Fold,
    logged: bool,
    files: BTreeMap<u64, Vec<u8>>,
    /// The files as of the last commit.
    settled: BTreeMap<u64, Vec<u8>>,
    /// Encoded records of every commit so far, and where each set begins and ends.
    log: Vec<Vec<u8>>,
    open: Vec<u8>,
}

impl Node {
    fn new(logged: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let fold = Fold::new(Catalog::new(SYSTEM, Attrs::default()), &dir.path().join("blocks")).unwrap();
        fold.blocks.set_logged(logged);
        checkpoint::save(&dir.path().join("catalog"), &fold).unwrap();
        Self {
            dir,
            fold,
            logged,
            files: BTreeMap::new(),
            settled: BTreeMap::new(),
            log: Vec::new(),
            open: Vec::new(),
        }
    }

    fn emit(&mut self, record: &Record<'_>) {
        record.encode(&mut self.open);
        self.fold.record(record).unwrap();
    }

    fn pick(&self, n: u8) -> Option<u64> {
        self.files.keys().copied().nth(usize::from(n) % self.files.len().max(1))
    }

    fn expected(id: u64, bytes: &[u8]) -> u128 {
        let hash = |(i, b): (usize, &[u8])| block_hash(SYSTEM, FileId(id), i as u64, b);
        bytes.chunks(B).enumerate().map(hash).fold(0, u128::wrapping_add)
    }

    fn truncate(&mut self, id: u64, size: usize) {
        let file = self.files.get_mut(&id).unwrap();
        let shrinks = size < file.len();
        file.resize(size, 0);
        self.emit(&Record::Truncate { id: FileId(id), size: size as u64 });
        if shrinks && size % B != 0 {
            let data = self.files[&id][size / B * B..].to_vec();
            self.emit(&Record::Write { id: FileId(id), offset: (size / B * B) as u64, data: &data });
        }
    }

    fn write(&mut self, id: u64, first: usize, n: usize, short: usize, fill: u8) {
        let mut data = vec![fill; n * B];
        // Blocks differ, and some end in zeros.
        for (i, block) in data.chunks_mut(B).enumerate() {
            block[0] = fill.saturating_mul(u8::try_from(i + 1).unwrap());
            if fill == 2 {
                block[100..].fill(0);
            }
        }
        let file = self.files.get_mut(&id).unwrap();
        let at = first * B;
        if at + data.len() - short >= file.len() {
            data.truncate(data.len() - short);
        }
        if data.is_empty() {
            return;
        }
        if file.len() < at + data.len() {
            file.resize(at + data.len(), 0);
        }
        file[at..at + data.len()].copy_from_slice(&data);
        self.emit(&Record::Write { id: FileId(id), offset: at as u64, data: &data });
    }

    fn punch(&mut self, id: u64, first: usize, n: usize) {
        let file = self.files.get_mut(&id).unwrap();
        let (from, to) = ((first * B).min(file.len()), ((first + n) * B).min(file.len()));
        file[from..to].fill(0);
        self.emit(&Record::Punch { id: FileId(id), offset: (first * B) as u64, len: (n * B) as u64 });
    }

    fn commit(&mut self) {
        let commit = self.fold.seal(Cut::Exact, 5).unwrap();
        self.emit(&Record::Commit(commit));
        self.log.push(std::mem::take(&mut self.open));
        self.settled = self.files.clone();
        let lsn = Lsn(Lsn::FIRST.0 + self.log.len() as u64);
        self.fold.write().set_position(lsn, Cut::Exact, 5);
    }

    /// The process dies: what is on disk is loaded, and the log after the checkpoint folded again.
    fn crash(&mut self) {
        if self.logged && !self.open.is_empty() {
            // A follower only folds what its log holds to the commit.
            self.commit();
        }
        self.open.clear();
        self.files = self.settled.clone();
        let catalog = checkpoint::load_newest(&self.dir.path().join("catalog"), SYSTEM).unwrap().unwrap();
        let from = usize::try_from(catalog.lsn().0 - Lsn::FIRST.0).unwrap();
        self.fold = Fold::new(catalog, &self.dir.path().join("blocks")).unwrap();
        self.fold.blocks.set_logged(self.logged);
        self.fold.begin_loose();
        for (n, set) in self.log.iter().enumerate().skip(from) {
            for record in Records::new(set) {
                self.fold.record(&record.unwrap().1).unwrap();
            }
            self.fold.write().set_position(Lsn(Lsn::FIRST.0 + n as u64 + 1), Cut::Exact, 5);
        }
        self.fold.finish_loose().unwrap();
    }

    fn run(&mut self, op: &Op) {
        match *op {
            Op::Create => {
                let id = self.fold.read().next_id();
                let attrs = Attrs::default();
                self.emit(&Record::Create { id, kind: Kind::File, attrs, rdev: 0, target: b"" });
                let name = format!("f{id}");
                self.emit(&Record::Link { parent: FileId::ROOT, name: name.as_bytes(), id });
                self.files.insert(id.0, Vec::new());
            }
            Op::Commit => self.commit(),
            Op::Checkpoint(finish) => {
                self.commit();
                let prepared = checkpoint::prepare(&self.dir.path().join("catalog"), &self.fold).unwrap();
                if finish {
                    prepared.finish().unwrap();
                }
            }
            Op::Crash => self.crash(),
            Op::CrashBack => {
                let dir = self.dir.path().join("catalog");
                let mut have: Vec<_> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
                have.retain(|path| path.extension().is_some());
                have.sort();
                if have.len() > 1 {
                    std::fs::write(have.pop().unwrap(), b"damaged").unwrap();
                }
                self.crash();
            }
            Op::Flush => {
                self.commit();
                self.fold.blocks.flush().unwrap();
            }
            Op::Write(f, ..) | Op::Truncate(f, _) | Op::Punch(f, ..) => {
                let Some(id) = self.pick(f) else { return };
                match *op {
                    Op::Write(_, b, n, short, fill) => {
                        self.write(id, b.into(), n.into(), short.into(), fill);
                    }
                    Op::Truncate(_, size) => self.truncate(id, size as usize),
                    Op::Punch(_, b, n) => self.punch(id, b.into(), n.into()),
                    _ => {}
                }
            }
            Op::Remove(f) => {
                let Some(id) = self.pick(f) else { return };
                let name = format!("f{}", FileId(id));
                self.emit(&Record::Unlink { parent: FileId::ROOT, name: name.as_bytes() });
                self.files.remove(&id);
            }
            Op::Unhash(f) => {
                let Some(id) = self.pick(f).filter(|id| !self.files[id].is_empty()) else { return };
                self.fold.forget_hashes(FileId(id)).unwrap();
            }
            Op::Learn(f, whole) => self.learn(f, whole),
        }
    }

    fn learn(&mut self, f: u8, whole: bool) {
        let Some(id) = self.pick(f) else { return };
        let hash = |(i, b): (usize, &[u8])| block_hash(SYSTEM, FileId(id), i as u64, b);
        let hashes: Vec<u128> = self.files[&id].chunks(B).enumerate().map(hash).collect();
        if whole {
            self.fold.learn(FileId(id), &hashes).unwrap();
        } else if !self.fold.read().get(FileId(id)).unwrap().hashed {
            for (first, part) in (0..).step_by(2).zip(hashes.chunks(2)) {
                self.fold.set_hashes(FileId(id), first, part).unwrap();
            }
            assert!(self.fold.finish_hashes(FileId(id)).unwrap());
        }
    }

    fn check(&self) {
        let catalog = self.fold.read();
        assert_eq!(catalog.digest(), catalog.recomputed_digest());
        for (&id, bytes) in &self.files {
            let inode = catalog.get(FileId(id)).unwrap();
            assert_eq!(inode.size, bytes.len() as u64);
            if inode.hashed {
                assert_eq!(inode.content, Self::expected(id, bytes), "file {id} of {} bytes", bytes.len());
                let hash = |(i, b): (usize, &[u8])| block_hash(SYSTEM, FileId(id), i as u64, b);
                let mut hashes: Vec<u128> = bytes.chunks(B).enumerate().map(hash).collect();
                hashes.extend([0, 0]);
                assert_eq!(self.fold.hashes(FileId(id), 0, hashes.len()).unwrap(), hashes);
                if let Some((_, rest)) = hashes.split_first() {
                    assert_eq!(self.fold.hashes(FileId(id), 1, rest.len()).unwrap(), rest);
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases / 4))]

    #[test]
    fn sums_are_those_of_the_bytes_through_any_changes_and_crashes(
        ops in proptest::collection::vec(op(), 0..40), logged in any::<bool>()
    ) {
        let mut node = Node::new(logged);
        for op in [Op::Create, Op::Create].iter().chain(&ops) {
            node.run(op);
            node.check();
        }
        node.commit();
        node.crash();
        node.check();
    }
}

thread_local! {
    /// Removed when the test's thread ends.
    static DIRS: std::cell::RefCell<Vec<tempfile::TempDir>> = const { std::cell::RefCell::new(Vec::new()) };
}

fn file(size: u64) -> Fold {
    let dir = tempfile::tempdir().unwrap();
    let mut fold = Fold::new(Catalog::new(SYSTEM, Attrs::default()), dir.path()).unwrap();
    DIRS.with_borrow_mut(|dirs| dirs.push(dir));
    let id = FileId(2);
    let attrs = Attrs::default();
    for record in [
        Record::Create { id, kind: Kind::File, attrs, rdev: 0, target: b"" },
        Record::Link { parent: FileId::ROOT, name: b"f", id },
        Record::Truncate { id, size },
    ] {
        fold.record(&record).unwrap();
    }
    fold
}

#[test]
fn a_commit_with_another_digest_is_diverged_and_says_both() {
    let mut fold = file(3 * BLOCK);
    let good = fold.seal(Cut::File, 1).unwrap();
    fold.record(&Record::Commit(good)).unwrap();
    for bad in [
        Commit { meta: 7, ..good },
        Commit { content: 7, ..good },
        Commit { inodes: 7, ..good },
        Commit { meta: 7, partial: true, ..good },
    ] {
        let e = fold.record(&Record::Commit(bad)).unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Diverged);
        assert!(e.to_string().contains('7'), "{e}");
    }
    fold.record(&Record::Commit(Commit { content: 7, partial: true, ..good })).unwrap();
    fold.forget_hashes(FileId(2)).unwrap();
    fold.record(&Record::Commit(Commit { content: 7, ..good })).unwrap();
    fold.learn(FileId(2), &[]).unwrap();
    fold.begin_loose();
    fold.record(&Record::Commit(Commit { content: 7, ..good })).unwrap();
    assert_eq!(fold.finish_loose().unwrap_err().kind(), ErrorKind::Diverged);
}

#[test]
fn a_hole_of_a_terabyte_costs_nothing() {
    let mut fold = file(1 << 40);
    let id = FileId(2);
    let last = ((1 << 40) / BLOCK - 1) * BLOCK;
    fold.record(&Record::Write { id, offset: last, data: b"end" }).unwrap_err();
    fold.record(&Record::Write { id, offset: last, data: &[1; B] }).unwrap();
    fold.blocks.flush().unwrap();
    fold.record(&Record::Write { id, offset: 0, data: &[1; B] }).unwrap();
    fold.record(&Record::Punch { id, offset: BLOCK, len: (1 << 40) - BLOCK }).unwrap();
    assert_eq!(fold.read().get(id).unwrap().content, block_hash(SYSTEM, id, 0, &[1; B]));
    fold.record(&Record::Truncate { id, size: 1 << 39 }).unwrap();
    fold.record(&Record::Truncate { id, size: BLOCK }).unwrap();
    assert_eq!(fold.read().get(id).unwrap().content, block_hash(SYSTEM, id, 0, &[1; B]));
}

#[test]
fn hashes_set_piece_by_piece_are_void_when_the_file_changed_meanwhile() {
    let mut fold = file(3 * BLOCK);
    let id = FileId(2);
    fold.forget_hashes(id).unwrap();
    fold.set_hashes(id, 0, &[1, 2]).unwrap();
    fold.record(&Record::Write { id, offset: 0, data: &[1; B] }).unwrap();
    fold.set_hashes(id, 2, &[3]).unwrap();
    assert!(!fold.finish_hashes(id).unwrap());
    assert_eq!(fold.read().unhashed(), 1);
    fold.set_hashes(id, 0, &[1, 2]).unwrap();
    fold.set_hashes(id, 2, &[3, 4, 5]).unwrap();
    assert!(fold.finish_hashes(id).unwrap());
    assert_eq!(fold.read().digest().content, 6);
    assert_eq!(fold.hashes(id, 1, 4).unwrap(), [2, 3, 0, 0]);
}

#[test]
fn given_hashes_must_be_as_many_as_the_blocks() {
    let mut fold = file(BLOCK);
    let write = Record::Write { id: FileId(2), offset: 0, data: &[1; B] };
    assert!(fold.record_hashed(&write, Some(&[1, 2])).is_err());
    fold.record_hashed(&write, Some(&[9])).unwrap();
    assert_eq!(fold.read().digest().content, 9);
}

/// A file whose hashes were forgotten, and known again, between the checkpoints that are kept.
#[test]
fn going_back_to_the_older_checkpoint_does_not_believe_what_was_forgotten_since() {
    for learned in [false, true] {
        let mut node = Node::new(false);
        node.run(&Op::Create);
        node.run(&Op::Write(0, 0, 3, 0, 1));
        node.run(&Op::Checkpoint(true));
        node.run(&Op::Unhash(0));
        if learned {
            node.run(&Op::Learn(0, true));
        }
        node.run(&Op::Checkpoint(true));
        node.run(&Op::Write(0, 1, 1, 0, 3));
        node.run(&Op::Crash);
        let hashed = |node: &Node| node.fold.read().get(FileId(2)).unwrap().hashed;
        assert_eq!(hashed(&node), learned, "the newest checkpoint knows");
        node.check();
        node.run(&Op::CrashBack);
        assert!(!hashed(&node), "the older one does not");
        node.check();
    }
}

/// A fold whose file of six blocks had these bytes in its hash file when it was opened.
fn opened_with(hashes: &[u8], content: u128) -> (tempfile::TempDir, Fold) {
    let dir = tempfile::tempdir().unwrap();
    let mut catalog = Catalog::new(SYSTEM, Attrs::default());
    let (id, attrs) = (FileId(2), Attrs::default());
    for record in [
        Record::Create { id, kind: Kind::File, attrs, rdev: 0, target: b"" },
        Record::Link { parent: FileId::ROOT, name: b"f", id },
        Record::Truncate { id, size: 6 * BLOCK },
    ] {
        catalog.fold(&record).unwrap();
    }
    catalog.settle().unwrap();
    catalog.set_content(id, content, true);
    std::fs::create_dir(dir.path().join("02")).unwrap();
    std::fs::write(dir.path().join("02/0000000000000002"), hashes).unwrap();
    let fold = Fold::new(catalog, dir.path()).unwrap();
    (dir, fold)
}

#[test]
fn damaged_hash_files_are_found_before_their_first_use() {
    let id = FileId(2);
    let hashes: Vec<u128> = block_hashes(SYSTEM, id, 0, &[5; 6 * B]).collect();
    let sum = hashes.iter().fold(0, |s: u128, &h| s.wrapping_add(h));
    let good: Vec<u8> = hashes.iter().flat_map(|h| h.to_le_bytes()).collect();
    let mut flipped = good.clone();
    flipped[40] ^= 1;
    assert!(opened_with(&good, sum).1.trust(id).unwrap());
    for damage in [&flipped[..], &good[..32], &[]] {
        for change in [
            Record::Write { id, offset: BLOCK, data: &[1; B] },
            Record::Truncate { id, size: 3 * BLOCK },
            Record::Punch { id, offset: 0, len: BLOCK },
        ] {
            let (_dir, mut fold) = opened_with(damage, sum);
            fold.record(&change).unwrap();
            assert!(!fold.before(id).hashed, "the content is not known any more: {change:?}");
            assert_eq!(fold.damaged(), 1);
            assert!(fold.seal(Cut::Exact, 1).unwrap().partial, "and the commit says so");
        }
    }
}
