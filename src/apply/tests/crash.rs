//! Random histories, applied with crashes at random steps.

use proptest::prelude::*;

use crate::position::{Cut, FileId};
use crate::record::{BLOCK, Kind, Record};

use super::bench::Bench;
use super::light;

/// One step of a random history; the numbers pick from what is there.
type Step = (u8, u16, u16, u8);

fn pick<T: Copy>(list: &[T], n: u16) -> Option<T> {
    (!list.is_empty()).then(|| list[n as usize % list.len()])
}

struct History {
    bench: Bench,
}

impl History {
    fn dirs(&self) -> Vec<FileId> {
        self.of(|k| k == Kind::Dir)
    }

    fn of(&self, want: impl Fn(Kind) -> bool) -> Vec<FileId> {
        let catalog = self.bench.fold.read();
        let mut ids: Vec<FileId> =
            catalog.ids().filter(|id| catalog.get(*id).is_some_and(|i| want(i.kind))).collect();
        ids.sort();
        ids
    }

    fn within(&self, inner: FileId, outer: FileId) -> bool {
        let catalog = self.bench.fold.read();
        let mut at = inner;
        while at != outer {
            match catalog.names(at).next() {
                Some((p, _)) => at = p,
                None => return false,
            }
        }
        true
    }

    /// Takes the names of a directory away, with those below it named one by one or not.
    fn remove(&mut self, dir: FileId, each: bool) {
        let (names, children) = {
            let catalog = self.bench.fold.read();
            let names: Vec<_> = catalog.names(dir).map(|(d, n)| (d, n.to_vec())).collect();
            (names, catalog.children(dir).map(|(n, id)| (n.to_vec(), id)).collect::<Vec<_>>())
        };
        if each {
            for (name, id) in children {
                let is_dir = self.bench.fold.read().get(id).is_some_and(|i| i.kind == Kind::Dir);
                if is_dir {
                    self.remove(id, true);
                } else {
                    self.bench.record(Record::Unlink { parent: dir, name: &name });
                }
            }
        }
        for (parent, name) in names {
            self.bench.record(Record::Unlink { parent, name: &name });
        }
    }

    /// More directories than files, moved about, and removed from below or as a whole.
    fn directory_step(&mut self, what: u8, dir: FileId, name: &str, (b, c): (u16, u8)) {
        let dirs = self.dirs();
        let occupant = self.bench.fold.read().lookup(dir, name.as_bytes());
        match what {
            // A directory that gets no name in this change set, unless a later step gives it one.
            12 => {
                self.bench.create(Kind::Dir, 0o755, b"");
            }
            13 => {
                self.bench.dir(dir, name);
            }
            14 => {
                if let Some(d) = pick(&dirs, b)
                    && d != FileId::ROOT
                    && !self.within(dir, d)
                    && occupant.is_none()
                {
                    self.bench.link(dir, name, d);
                }
            }
            _ => {
                if let Some(d) = pick(&dirs, b)
                    && d != FileId::ROOT
                {
                    self.remove(d, c % 2 == 0);
                }
            }
        }
    }

    fn punch(&mut self, file: Option<FileId>, block: u64) {
        if let Some(id) = file {
            self.bench.record(Record::Punch { id, offset: BLOCK * block, len: BLOCK });
            self.bench.touch(id);
        }
    }

    /// A change as a capture could have seen it.
    fn step(&mut self, (what, a, b, c): Step) {
        let name = format!("n{}", c % 7);
        let dirs = self.dirs();
        let dir = pick(&dirs, a).unwrap_or(FileId::ROOT);
        let files = self.of(|k| k == Kind::File);
        let occupant = self.bench.fold.read().lookup(dir, name.as_bytes());
        if what % 16 >= 12 {
            return self.directory_step(what % 16, dir, &name, (b, c));
        }
        match what % 16 {
            0 | 1 => {
                let len = (u64::from(b) * 7) % (4 * BLOCK);
                self.bench.file(dir, &name, &vec![c | 1; len as usize]);
            }
            2 => {
                self.bench.dir(dir, &name);
            }
            3 => {
                if let Some(f) = pick(&files, b) {
                    self.bench.block(f, u64::from(c % 4), (b >> 3) as u8 | 1);
                }
            }
            4 => {
                if let Some(f) = pick(&files, b) {
                    self.bench.content(f, &vec![b as u8; (u64::from(a) % (3 * BLOCK)) as usize]);
                }
            }
            5 => self.punch(pick(&files, b), u64::from(c % 3)),
            // Another name for a file, over whatever is there.
            6 => {
                if let Some(f) = pick(&files, b)
                    && occupant != Some(f)
                {
                    self.bench.link(dir, &name, f);
                }
            }
            // A rename of anything.
            7 | 8 => {
                let all = self.of(|_| true);
                if let Some(id) = pick(&all, b)
                    && id != FileId::ROOT
                    && !self.within(dir, id)
                    && occupant != Some(id)
                    && !occupant.is_some_and(|o| self.within(id, o) || self.within(dir, o))
                {
                    let from = self.bench.fold.read().names(id).next().map(|(d, n)| (d, n.to_vec()));
                    self.bench.link(dir, &name, id);
                    let Some((from, old)) = from else { return };
                    if self.bench.fold.read().lookup(from, &old) == Some(id) {
                        self.bench.record(Record::Unlink { parent: from, name: &old });
                    }
                    self.bench.touch(from);
                }
            }
            9 => {
                if occupant.is_some() {
                    self.bench.unlink(dir, &name);
                }
            }
            10 => {
                let id = self.bench.create(
                    if c % 2 == 0 { Kind::Symlink } else { Kind::Fifo },
                    0o600,
                    if c % 2 == 0 { b"to" } else { b"" },
                );
                self.bench.link(dir, &name, id);
            }
            _ => {
                if let Some(f) = pick(&files, b) {
                    let value = [c; 9];
                    self.bench.record(Record::Xattr { id: f, name: b"user.a", value: Some(&value) });
                    let mut attrs = self.bench.fold.read().get(f).unwrap().attrs;
                    attrs.mode = 0o600 | u32::from(b & 0o77);
                    self.bench.record(Record::Attr { id: f, attrs });
                }
            }
        }
    }
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    proptest::collection::vec((any::<u8>(), any::<u16>(), any::<u16>(), any::<u8>()), 1..200)
}

fn run(steps: &[Step], fuses: &[u16], every: usize) {
    let mut h = History { bench: Bench::new() };
    let mut handle = h.bench.start().unwrap();
    let root = crate::sys::Root::open(&h.bench.data()).unwrap().path().to_owned();
    let mut fuses = fuses.iter();
    for (i, chunk) in steps.chunks(every).enumerate() {
        for step in chunk {
            h.step(*step);
        }
        h.bench.commit(if i % 3 == 1 { Cut::File } else { Cut::Exact });
        // Several change sets become one batch.
        if i % 4 != 3 {
            let _ = handle.pause();
            continue;
        }
        handle.resume();
        // Crash somewhere in what follows, perhaps again in the recovery from it.
        if let Some(fuse) = fuses.next() {
            light(&root, Some(u64::from(fuse % 97)));
        }
        for _ in 0..3 {
            let reached = wait_end(&h.bench, &handle);
            if reached {
                break;
            }
            drop(handle);
            light(&root, fuses.next().map(|f| u64::from(f % 97)));
            handle = h.bench.start().unwrap();
        }
        light(&root, None);
        if handle.failure().is_some() {
            handle = h.bench.start().unwrap();
        }
        h.bench.wait(&handle, h.bench.exact);
        if h.bench.exact == h.bench.last {
            h.bench.compare();
        }
    }
    h.bench.commit(Cut::Exact);
    handle.resume();
    h.bench.wait(&handle, h.bench.last);
    h.bench.compare();
    assert_eq!(handle.stats().local_edits_total, 0, "{:?}", handle.stats().local_edits);
    handle.stop().unwrap();
    h.bench.replay();
}

/// Waits for the newest exact cut; false when the engine failed, which must be by the fuse.
fn wait_end(bench: &Bench, handle: &crate::apply::ApplyHandle) -> bool {
    loop {
        if let Some(e) = handle.failure() {
            assert!(e.to_string().contains("crashed"), "{e}");
            return false;
        }
        let applied = *handle.applied().borrow();
        if applied.consistent && applied.lsn >= bench.exact {
            return true;
        }
        std::thread::sleep(std::time::Duration::from_micros(200));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), max_shrink_iters: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_history_is_applied_as_it_comes(steps in steps(), every in 1usize..20) {
        run(&steps, &[], every);
    }

    #[test]
    fn any_history_survives_crashes_at_any_step(steps in steps(), fuses in proptest::collection::vec(any::<u16>(), 1..30), every in 1usize..20) {
        run(&steps, &fuses, every);
    }
}

/// How many histories: few by default, as many as `TOWLINE_CASES` says for a soak.
fn cases() -> u32 {
    std::env::var("TOWLINE_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(24)
}
