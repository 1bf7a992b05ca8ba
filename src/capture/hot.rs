//! Files whose changes cause no event: stores through a mapping, libaio writes, writes through a name
//! outside of the tree. They are compared by their stamps in an interval.
//!
//! A store through a mapping moves the stamps only when it dirties a clean page. So a mapped file is cleaned
//! (fdatasync through a descriptor of our own) before it is looked at; what is stored later shows again.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::engine::read;
use super::examine::split;
use super::hints::{Hints, flag};
use super::holders::{Found, Look, Processes};
use super::roster::Roster;
use super::watch::earlier;
use crate::catalog::Catalog;
use crate::position::FileId;
use crate::record::Kind;
use crate::sys::{self, Stat};

/// A file that showed no change for this long is polled no more, unless it is open for writing.
const COOL: Duration = Duration::from_secs(60);
/// A written file that showed no change for this long is compared once more, if it is no larger than this.
const SETTLED: Duration = Duration::from_secs(1);
const SETTLED_MAX: u64 = 16 << 20;
/// Most files polled of each kind; the full scan finds what is beyond.
pub(super) const HOT_MAX: usize = 10_000;
/// Looking through /proc may take one part in this many of the time, while the tree changes and while it rests.
const PROC_SHARE: u32 = 500;
const PROC_SHARE_QUIET: u32 = 4000;
/// Between looks through /proc.
const PROC_MIN: Duration = Duration::from_secs(1);
const PROC_MAX: Duration = Duration::from_secs(60);
/// After this time a direct write that was under way when the file was read is over.
const DIRECT_DONE: Duration = Duration::from_secs(3);

/// A file that was written.
#[derive(Debug)]
struct Written {
    /// When it was last found changed.
    at: Instant,
    /// Its content was ordered to be compared since.
    compared: bool,
}

/// The hot list.
#[derive(Debug, Default)]
pub(super) struct Hot {
    written: HashMap<Box<[u8]>, Written>,
    /// Names of files that have more links than names.
    linked: HashSet<Box<[u8]>>,
    /// To be looked at once more when their stamps can't hide a change.
    racy: HashSet<Box<[u8]>>,
    /// Files that some process holds open for writing; true: for direct writes.
    open: HashMap<FileId, bool>,
    mapped: HashMap<FileId, u64>,
    inodes: HashSet<u64>,
    /// Files whose content should be compared soon.
    pub(super) scrub: VecDeque<FileId>,
    next_proc: Option<Instant>,
    /// A look through /proc under way.
    looking: Option<JoinHandle<Found>>,
    /// Those that somebody waits for.
    prober: Option<Prober>,
    /// What the last look found, process by process.
    processes: Arc<Processes>,
    /// Something became a hint that is no event.
    news: bool,
    /// Processes whose open files may not be seen.
    pub(super) hidden: u64,
    /// Files that found no place on the list.
    pub(super) dropped: u64,
}

impl Hot {
    /// A file was written.
    pub(super) fn add_written(&mut self, rel: &[u8]) {
        let now = Written { at: Instant::now(), compared: false };
        if let Some(written) = self.written.get_mut(rel) {
            *written = now;
        } else if self.written.len() < HOT_MAX {
            self.written.insert(rel.into(), now);
        } else {
            self.dropped += 1;
        }
    }

    /// A file has names outside of the tree.
    pub(super) fn add_linked(&mut self, rel: &[u8]) {
        if self.linked.len() >= HOT_MAX {
            self.dropped += 1;
        } else if self.linked.insert(rel.into()) && self.linked.len() == 1 {
            tracing::warn!(
                "'{}' and perhaps other files have names outside of the data directory; writes through \
                 those make no events and are found by polling",
                rel.escape_ascii()
            );
        }
    }

    /// A file was looked at too soon after a change.
    pub(super) fn add_racy(&mut self, rel: &[u8]) {
        if self.racy.len() < HOT_MAX {
            self.racy.insert(rel.into());
        } else {
            self.dropped += 1;
        }
    }

    /// The content of a file is compared soon.
    pub(super) fn scrub_soon(&mut self, id: FileId) {
        if self.scrub.len() < HOT_MAX {
            self.scrub.push_back(id);
        }
    }

    /// Whether the inode is mapped writable by some process.
    pub(super) fn is_mapped(&self, ino: u64) -> bool {
        self.inodes.contains(&ino)
    }

    /// Number of files polled.
    pub(super) fn len(&self) -> usize {
        self.written.len() + self.linked.len() + self.open.len() + self.mapped.len()
    }

    /// Begins a look through /proc that is taken over by [`finish`](Self::finish).
    pub(super) fn begin(&mut self, at: &Look) {
        if self.prober.is_none() {
            self.prober = Prober::start();
        }
        if let Some(prober) = &mut self.prober {
            prober.begin(at, &self.processes);
        }
    }

    /// Waits for the look that was begun, and compares what is on the list with it. True: something is to be looked at
    /// that no event has named.
    pub(super) fn finish(&mut self, at: &Look, hints: &Hints) -> bool {
        let found = match self.prober.as_mut().map(Prober::finish) {
            Some(Some(found)) => found,
            _ => {
                self.prober = None;
                at.look()
            }
        };
        let before: HashSet<FileId> = self.open.keys().chain(self.mapped.keys()).copied().collect();
        self.news = false;
        // The look at everything keeps its own time.
        let next = self.next_proc;
        self.take_over(found, &at.catalog, hints);
        self.next_proc = next;
        if self.open.keys().chain(self.mapped.keys()).any(|id| !before.contains(id)) {
            self.poll(at, hints, false);
        }
        self.news
    }

    /// Compares the stamps of every file on the list; what differs becomes a hint.
    pub(super) fn poll(&mut self, at: &Look, hints: &Hints, now_too: bool) {
        let now = Instant::now();
        // A tree that just began to change is looked at as one that changes.
        if !self.written.is_empty() && self.next_proc.is_some_and(|t| t > now + PROC_MIN * 3) {
            self.next_proc = None;
        }
        self.look(at, hints, now_too);
        let catalog = read(&at.catalog);
        for path in self.racy.drain() {
            hints.add(&path, flag::SCAN);
        }
        let mut paths: BTreeMap<Vec<u8>, bool> = BTreeMap::new();
        paths.extend(self.written.keys().chain(&self.linked).map(|path| (path.to_vec(), false)));
        let held = self.open.iter().map(|(id, direct)| (*id, *direct));
        let mapped = self.mapped.keys().map(|id| (*id, false));
        for (id, direct) in held.chain(mapped) {
            if let Some(path) = catalog.path(id) {
                *paths.entry(path).or_default() |= direct;
            }
        }
        let mut dir: Option<(Vec<u8>, OwnedFd)> = None;
        for (path, direct) in paths {
            let (parent, name) = split(&path);
            if dir.as_ref().is_none_or(|(rel, _)| rel != parent) {
                dir = at.root.open_dir_path(parent).ok().map(|fd| (parent.to_vec(), fd));
            }
            let stat = dir.as_ref().and_then(|(_, fd)| sys::stat_at(fd, name).ok().flatten());
            let Some(stat) = stat.filter(|s| s.kind == Kind::File) else {
                self.written.remove(&path[..]);
                self.linked.remove(&path[..]);
                continue;
            };
            self.compare(&path, &stat, direct, &catalog, hints);
        }
    }

    fn compare(&mut self, path: &[u8], stat: &Stat, direct: bool, catalog: &Catalog, hints: &Hints) {
        let known = catalog.by_local(stat.local.dev, stat.local.ino).and_then(|id| catalog.get(id));
        let changed = known.is_none_or(|n| {
            n.size != stat.size || n.attrs != stat.attrs || n.seen.is_none_or(|s| s.ctime != stat.ctime)
        });
        if known.is_none_or(|n| stat.nlink <= n.nlink) {
            self.linked.remove(path);
        }
        if direct && stat.ctime > earlier(super::now(), DIRECT_DONE) {
            // The stamps moved when the write began; the data may have come later than we looked.
            hints.add(path, flag::MODIFIED);
            self.news = true;
        }
        if changed {
            hints.add(path, flag::SCAN);
            self.news = true;
            self.add_written(path);
        } else if self.written.get(path).is_some_and(|w| w.at.elapsed() > COOL) {
            self.written.remove(path);
        } else if let Some(known) = known.filter(|n| n.size <= SETTLED_MAX && n.seen.is_some_and(|s| !s.racy))
        {
            self.settled(path, known.id);
        }
    }

    /// A file that rests since it was written is compared once more. If somebody mapped it in the meantime, stores into
    /// pages that the writing had left dirty may have come after the content was read, and moved no stamp; and the
    /// mapping may be gone before a look through /proc finds it.
    fn settled(&mut self, path: &[u8], id: FileId) {
        let Some(written) = self.written.get_mut(path) else { return };
        if !written.compared && written.at.elapsed() >= SETTLED && self.scrub.len() < HOT_MAX {
            written.compared = true;
            self.scrub.push_back(id);
        }
    }

    /// Starts a look through /proc when one is due, and takes over what the last one found. With `now_too` it is
    /// made here; else on a thread of its own, since it may take many times as long as a pass.
    fn look(&mut self, look: &Look, hints: &Hints, now_too: bool) {
        if now_too {
            // One that is under way began before this call, and is older than what is found here.
            self.looking = None;
        }
        let done = self.looking.as_ref().is_some_and(JoinHandle::is_finished);
        if let Some(thread) = self.looking.take_if(|_| done)
            && let Ok(found) = thread.join()
        {
            self.take_over(found, &look.catalog, hints);
        }
        if now_too {
            let found = look.look();
            self.take_over(found, &look.catalog, hints);
        } else if self.looking.is_none() && self.next_proc.is_none_or(|t| Instant::now() >= t) {
            let look = look.clone();
            // A panic: it is looked again.
            let thread = std::thread::Builder::new().name("capture-proc".to_owned());
            self.looking = thread.spawn(move || look.look()).ok();
        }
    }

    fn take_over(&mut self, found: Found, catalog: &RwLock<Catalog>, hints: &Hints) {
        let share = if self.written.is_empty() { PROC_SHARE_QUIET } else { PROC_SHARE };
        self.next_proc = Some(Instant::now() + (found.took * share).clamp(PROC_MIN, PROC_MAX));
        (self.open, self.hidden) = (found.open, found.hidden);
        self.processes = Arc::new(found.processes);
        self.dropped += found.dropped;
        let before = std::mem::replace(&mut self.mapped, found.mapped);
        self.inodes = self.mapped.values().copied().collect();
        // A file just mapped may have been looked at without cleaning it; one not mapped any more may have had last stores.
        let catalog = read(catalog);
        let changed = self.mapped.keys().filter(|id| !before.contains_key(id));
        for id in changed.chain(before.keys().filter(|id| !self.mapped.contains_key(id))) {
            if let Some(path) = catalog.path(*id) {
                hints.add(&path, flag::MODIFIED);
                self.news = true;
            }
        }
    }
}

/// A thread that looks when somebody waits for what it finds, and keeps between its looks what makes the next one cheap.
#[derive(Debug)]
struct Prober {
    orders: SyncSender<(Look, Arc<Processes>)>,
    found: Receiver<Found>,
    /// Looks that were begun and not taken over.
    under_way: usize,
}

impl Prober {
    fn start() -> Option<Self> {
        let (orders, rx) = sync_channel::<(Look, Arc<Processes>)>(1);
        let (tx, found) = sync_channel(1);
        let probe = move || {
            let mut roster = Roster::default();
            while let Ok((look, before)) = rx.recv() {
                if tx.send(look.look_since(&before, &mut roster)).is_err() {
                    return;
                }
            }
        };
        // A panic: who waits for it looks himself.
        std::thread::Builder::new().name("capture-proc".to_owned()).spawn(probe).ok()?;
        Some(Self { orders, found, under_way: 0 })
    }

    fn begin(&mut self, at: &Look, before: &Arc<Processes>) {
        // One that nobody came for is older than this order.
        while self.under_way > 0 && self.take().is_some() {}
        if self.orders.try_send((at.clone(), Arc::clone(before))).is_ok() {
            self.under_way += 1;
        }
    }

    fn take(&mut self) -> Option<Found> {
        self.under_way = self.under_way.saturating_sub(1);
        self.found.recv().ok()
    }

    /// `None`: none was begun, or the thread is gone.
    fn finish(&mut self) -> Option<Found> {
        if self.under_way == 0 { None } else { self.take() }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::process::{Command, Stdio};
    use std::sync::Arc;

    use super::*;
    use crate::catalog::Seen;
    use crate::position::SystemId;
    use crate::record::{Attrs, Record};
    use crate::sys::Root;

    #[test]
    fn who_holds_a_file_is_found_beside_the_poll_or_at_once_when_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let file = File::create(dir.path().join("f")).unwrap();
        let stat = sys::stat_fd(&file).unwrap();
        let mut catalog = Catalog::new(SystemId(1), Attrs::default());
        let (id, target) = (catalog.next_id(), &b""[..]);
        catalog.fold(&Record::Create { id, kind: Kind::File, attrs: stat.attrs, rdev: 0, target }).unwrap();
        catalog.fold(&Record::Link { parent: FileId::ROOT, name: b"f", id }).unwrap();
        catalog.set_seen(id, Some(Seen { local: stat.local, ctime: stat.ctime, racy: false }));
        let root = Arc::new(Root::open(dir.path()).unwrap());
        let look = Look { root, device: stat.local.dev, catalog: Arc::new(RwLock::new(catalog)) };
        let hints = Hints::new(dir.path());
        let mut holder = Command::new("sleep").arg("60").stdout(Stdio::from(file)).spawn().unwrap();

        let mut hot = Hot::default();
        hot.poll(&look, &hints, false);
        assert!(hot.looking.is_some() && hot.open.is_empty(), "the poll itself looked");
        let deadline = Instant::now() + Duration::from_secs(60);
        while hot.open.is_empty() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
            hot.poll(&look, &hints, false);
        }
        assert_eq!(hot.open.get(&id), Some(&false));

        let mut hot = Hot::default();
        hot.poll(&look, &hints, true);
        assert_eq!(hot.open.get(&id), Some(&false));
        holder.kill().unwrap();
        holder.wait().unwrap();

        // Beside a pass: who went and who came since the last look; a change that no event named is news.
        hot.begin(&look);
        hot.finish(&look, &hints);
        assert!(hot.open.is_empty());
        let file = File::options().write(true).open(dir.path().join("f")).unwrap();
        std::fs::write(dir.path().join("f"), "changed").unwrap();
        let mut holder = Command::new("sleep").arg("60").stdout(Stdio::from(file)).spawn().unwrap();
        hot.begin(&look);
        assert!(hot.finish(&look, &hints), "a file that changed is held open anew");
        assert_eq!(hot.open.get(&id), Some(&false));
        holder.kill().unwrap();
        holder.wait().unwrap();
    }
}
