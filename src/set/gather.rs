//! Contents of a backup that has no files: out of packs, and of an incremental one out of all members of its chain.
//!
//! A block that an incremental backup does not hold is what the member below was at its end, and that is: the log of that
//! member over its packs. So the places of blocks are noted from the newest to the oldest,
//!
//! ```text
//! packs of the newest, log of the next, packs of the next, log of the one below, ...
//! ```
//!
//! and of each block the first that is found counts. What a member's tree says of the size of a file bounds what is taken
//! from members below: what was cut off since does not come back.
//!
//! Contents are not kept in memory, only where they are: some 100 bytes of each MiB. The log between is written down as a pack.

use std::collections::{HashMap, VecDeque};
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use super::layers::{Layers, Origin, Run};
use super::{Content, Kept, Set};
use crate::catalog::{Catalog, blocks_of};
use crate::checkpoint;
use crate::error::{Error, ErrorKind, Result};
use crate::log::FrameReader;
use crate::manifest::{CATALOG, Form};
use crate::pack::{self, Unpacker};
use crate::position::{FileId, Lsn};
use crate::record::{BLOCK, Kind, Record, Records};
use crate::segment::flags;
use crate::wire::{Encoding, Item, Items, put_item_head};

/// Items of one frame of log that is written down.
const FRAME: usize = 256 << 10;
/// Frames held uncompressed.
const HELD: usize = 16;
/// Parts fetched or hashed at once.
const AT_ONCE: usize = 4;

/// One pack.
#[derive(Debug)]
struct Pack {
    kept: Kept,
    name: String,
}

/// Frames that were read last.
#[derive(Debug, Default)]
struct Held(VecDeque<(u32, Arc<Vec<u8>>)>);

/// Where everything is.
#[derive(Debug)]
pub struct Gathered {
    catalog: Catalog,
    files: HashMap<FileId, Layers>,
    packs: Vec<Pack>,
    /// Pack, and where in it the frame begins.
    frames: Vec<(u32, u64)>,
    /// The member at the bottom, if it holds files, and its tree.
    bottom: Option<(Arc<Set>, Catalog)>,
    held: Mutex<Held>,
}

/// Reads the tree of a set.
///
/// # Errors
/// It is damaged, or not what the manifest says.
pub fn catalog(set: &Set) -> Result<Catalog> {
    let kept = set.part(CATALOG)?;
    let catalog = checkpoint::decode(BufReader::new(kept.reader()))?;
    let (system, start) = (set.manifest().system, set.start());
    if catalog.system() != system || catalog.lsn() != start {
        let text = format!(
            "the backup '{}' is damaged: its catalog is of system {} at {}, its manifest of system {system} at {start}",
            set.shown(),
            catalog.system(),
            catalog.lsn()
        );
        return Err(Error::new(ErrorKind::Corrupt, text));
    }
    Ok(catalog)
}

/// Finds everything. The chain begins with the set that is asked for, and ends with a full one; that they belong together
/// was checked. `scratch` is a directory for what has to be written down.
///
/// # Errors
/// A member is damaged, or something of a file is nowhere.
pub fn gather(chain: &[Arc<Set>], scratch: &Path) -> Result<Gathered> {
    let newest = chain.first().ok_or_else(|| Error::new(ErrorKind::Missing, "there is no backup"))?;
    let tree = catalog(newest)?;
    let with_content = tree.inodes().filter(|i| i.kind == Kind::File && i.size > 0);
    let files = with_content.map(|i| (i.id, Layers::new(blocks_of(i.size)))).collect();
    let mut all = Gathered {
        catalog: tree,
        files,
        packs: Vec::new(),
        frames: Vec::new(),
        bottom: None,
        held: Mutex::default(),
    };
    let mut seen = HashMap::new();
    for (i, set) in chain.iter().enumerate() {
        let below = if i == 0 { None } else { Some(catalog(set)?) };
        if below.is_some() && set.start() < set.manifest().end {
            all.log(set, &scratch.join(format!("log-{i}")), &mut seen)?;
        }
        all.bound(below.as_ref());
        if set.manifest().form == Form::Packs {
            all.packs_of(set, below.as_ref(), &mut seen)?;
        } else {
            all.files_of(Arc::clone(set), below, &mut seen);
        }
    }
    let lost = all.files.keys().filter(|id| !seen.contains_key(*id)).min();
    match lost.and_then(|id| all.catalog.path(*id)) {
        None => Ok(all),
        Some(path) => {
            let text = format!(
                "the backup '{}' is damaged: it holds nothing of '{}'; take another one",
                newest.shown(),
                path.escape_ascii()
            );
            Err(Error::new(ErrorKind::Corrupt, text))
        }
    }
}

/// Files of which something was found.
type SeenFiles = HashMap<FileId, ()>;

impl Gathered {
    /// The tree.
    #[must_use]
    pub fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    /// What of older members does not count any more.
    fn bound(&mut self, below: Option<&Catalog>) {
        let Some(below) = below else { return };
        for (id, layers) in &mut self.files {
            let size = below.get(*id).filter(|n| n.kind == Kind::File).map_or(0, |n| n.size);
            layers.bound(blocks_of(size));
        }
    }

    /// All files of a set that holds files.
    fn files_of(&mut self, set: Arc<Set>, below: Option<Catalog>, seen: &mut SeenFiles) {
        let catalog = below.unwrap_or_else(|| self.catalog.clone());
        for (id, layers) in &mut self.files {
            if let Some(inode) = catalog.get(*id).filter(|n| n.kind == Kind::File) {
                seen.insert(*id, ());
                layers.under(Run { first: 0, count: blocks_of(inode.size), origin: Origin::File });
            }
        }
        self.bottom = Some((set, catalog));
    }

    fn packs_of(&mut self, set: &Set, below: Option<&Catalog>, seen: &mut SeenFiles) -> Result<()> {
        for (name, kept) in parts(set)? {
            let shown = format!("{}/{name}", set.shown());
            let named = |e: pack::Error| Error::from(e).wrap(&format!("'{shown}'"));
            let number = self.add_pack(kept, shown.clone());
            let Some(pack) = self.packs.get(number as usize) else { continue };
            let (files, frames) = (&mut self.files, &mut self.frames);
            let tree = below.unwrap_or(&self.catalog);
            let input = BufReader::with_capacity(FRAME, pack.kept.reader());
            let mut reader = pack::Reader::of(input, set.manifest().system).map_err(named)?;
            let mut unpacker = Unpacker::default();
            while let Some(frame) = reader.next().map_err(named)? {
                let index = u32::try_from(frames.len()).unwrap_or(u32::MAX);
                frames.push((number, frame.at));
                let bytes = unpacker.items(&frame).map_err(named)?;
                for item in Items::new(bytes) {
                    let item = item.map_err(|e| Error::from(e).wrap(&format!("'{shown}'")))?;
                    note(files, tree, seen, item, (index, bytes));
                }
            }
        }
        Ok(())
    }

    fn add_pack(&mut self, kept: Kept, name: String) -> u32 {
        self.packs.push(Pack { kept, name });
        u32::try_from(self.packs.len() - 1).unwrap_or(u32::MAX)
    }

    /// What the log of a member says of contents up to its end.
    fn log(&mut self, set: &Set, scratch: &Path, seen: &mut SeenFiles) -> Result<()> {
        fs::create_dir_all(scratch).map_err(|e| Error::io("make", scratch, e))?;
        let dir = set.segments(&scratch.join("segments"))?;
        let path = scratch.join("pack");
        let mut log = Written::new(&path, set, u32::try_from(self.packs.len()).unwrap_or(u32::MAX))?;
        let m = set.manifest();
        let open = || FrameReader::open(&dir, m.system, m.timeline, m.start);
        let (mut ahead, mut reader) = (open()?, open()?);
        let broken = |at: Lsn| {
            let text = format!("the log of the backup '{}' breaks off before {at}", set.shown());
            Error::new(ErrorKind::Corrupt, text)
        };
        let mut reached = m.start;
        // How a change set ends is known before its records are read.
        while let Some(header) = ahead.next_header(m.end)? {
            reached = header.end();
            if header.flags & flags::ENDS == 0 {
                continue;
            }
            let (end, aborted) = (header.end(), header.flags & flags::ABORT != 0);
            let mut at = Lsn::ZERO;
            while at < end {
                if aborted {
                    at = reader.next_header(m.end)?.map(|h| h.end()).ok_or_else(|| broken(end))?;
                    continue;
                }
                let frame = reader.next(m.end)?.ok_or_else(|| broken(end))?;
                for item in Records::new(&frame.raw) {
                    log.record(&item?.1, &self.files, &mut self.frames)?;
                }
                at = frame.end;
            }
        }
        if reached < m.end {
            return Err(broken(m.end));
        }
        let changes = log.finish(&mut self.frames)?;
        let file = File::open(&path).map_err(|e| Error::io("open", &path, e))?;
        let len = file.metadata().map_err(|e| Error::io("stat", &path, e))?.len();
        self.add_pack(Kept { file, at: 0, len }, path.display().to_string());
        for (id, change) in changes {
            let Some(layers) = self.files.get_mut(&id) else { continue };
            seen.insert(id, ());
            change.runs().iter().for_each(|r| layers.under(*r));
            layers.bound(change.limit());
        }
        Ok(())
    }

    /// The content of a file; `None`: the tree knows no such file.
    ///
    /// # Errors
    /// It can't be opened.
    pub fn content(&self, id: FileId) -> Result<Option<FileContent<'_>>> {
        let Some(inode) = self.catalog.get(id).filter(|n| n.kind == Kind::File) else { return Ok(None) };
        let runs = self.files.get(&id).map_or(&[][..], Layers::runs);
        let mut file = None;
        if let Some((set, catalog)) = &self.bottom
            && runs.iter().any(|r| r.origin == Origin::File)
        {
            let path = catalog.path(id).unwrap_or_default();
            file = set.file(&path)?;
            // Of a tree everything has to be there; a file that was gone when it was read is in the log.
            if file.is_none() && set.manifest().form == Form::Tree {
                let text = format!(
                    "the backup '{}' is damaged: it lacks '{}'; take another one",
                    set.shown(),
                    path.escape_ascii()
                );
                return Err(Error::new(ErrorKind::Corrupt, text));
            }
        }
        Ok(Some(FileContent { all: self, runs, file, size: inode.size }))
    }

    /// The items of a frame, its checksum compared again.
    fn frame(&self, index: u32) -> io::Result<Arc<Vec<u8>>> {
        {
            let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(at) = held.0.iter().position(|(i, _)| *i == index)
                && let Some(found) = held.0.remove(at)
            {
                let bytes = Arc::clone(&found.1);
                held.0.push_front(found);
                return Ok(bytes);
            }
        }
        let gone = || io::Error::other("a frame of a pack is not where it was");
        let (pack, at) = *self.frames.get(index as usize).ok_or_else(gone)?;
        let pack = self.packs.get(pack as usize).ok_or_else(gone)?;
        let rest = pack.kept.len.checked_sub(at).ok_or_else(gone)?;
        let at = pack.kept.at.saturating_add(at);
        let system = self.catalog.system();
        let bytes = read_frame(&pack.kept, (at, rest), system)
            .map_err(|e| io::Error::other(format!("'{}': {e}", pack.name)))?;
        let bytes = Arc::new(bytes);
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.0.push_front((index, Arc::clone(&bytes)));
        held.0.truncate(HELD);
        Ok(bytes)
    }
}

/// Reads one frame of a pack, which has `rest` bytes from there on.
fn read_frame(kept: &Kept, (at, rest): (u64, u64), system: crate::position::SystemId) -> Result<Vec<u8>> {
    let input = Kept { file: kept.file.try_clone().map_err(Error::from)?, at, len: rest };
    let frame = pack::Reader::within(BufReader::with_capacity(64 << 10, input.reader()), system).next()?;
    let frame = frame.ok_or_else(|| Error::new(ErrorKind::Corrupt, "it became shorter"))?;
    let mut unpacker = Unpacker::default();
    Ok(unpacker.items(&frame)?.to_vec())
}

/// The packs of a set, each found right, some at a time.
fn parts(set: &Set) -> Result<Vec<(String, Kept)>> {
    let names: Vec<&str> = set.packs().map(|p| p.name.as_str()).collect();
    let mut out = Vec::with_capacity(names.len());
    for some in names.chunks(AT_ONCE) {
        let found: Vec<Result<Kept>> = std::thread::scope(|scope| {
            // A panic: an error, below.
            let tasks: Vec<_> = some.iter().map(|name| scope.spawn(|| set.part(name))).collect();
            let panicked = || Err(Error::new(ErrorKind::Io, "a thread has panicked"));
            tasks.into_iter().map(|t| t.join().unwrap_or_else(|_| panicked())).collect()
        });
        for (name, kept) in some.iter().zip(found) {
            out.push(((*name).to_owned(), kept?));
        }
    }
    Ok(out)
}

/// Notes where an item of a pack is.
fn note(
    files: &mut HashMap<FileId, Layers>,
    tree: &Catalog,
    seen: &mut SeenFiles,
    item: Item<'_>,
    (frame, raw): (u32, &[u8]),
) {
    let (id, offset, len, data) = match item {
        Item::Data { id, offset, bytes } => (id, offset, bytes.len() as u64, Some(bytes)),
        Item::Hole { id, offset, len } => (id, offset, len, None),
        Item::End { id, .. } => (id, 0, 0, None),
    };
    let Some(layers) = files.get_mut(&id) else { return };
    seen.insert(id, ());
    // What the file grew by since the tree is in the log.
    let len = len.min(tree.get(id).map_or(0, |n| n.size).saturating_sub(offset));
    if len == 0 || offset % BLOCK != 0 {
        return;
    }
    let origin = match data {
        None => Origin::Zeros,
        Some(bytes) => Origin::Frame {
            frame,
            pos: u32::try_from(bytes.as_ptr().addr() - raw.as_ptr().addr()).unwrap_or(u32::MAX),
            len: u32::try_from(len).unwrap_or(u32::MAX),
        },
    };
    layers.under(Run { first: offset / BLOCK, count: blocks_of(len), origin });
}

/// Log that is written down as a pack, and what it changes.
struct Written<'a> {
    pack: pack::Writer<BufWriter<File>>,
    path: &'a Path,
    number: u32,
    items: Vec<u8>,
    changes: HashMap<FileId, Layers>,
}

impl<'a> Written<'a> {
    fn new(path: &'a Path, set: &Set, number: u32) -> Result<Self> {
        // Made anew by whoever goes on: nothing of it has to be durable.
        let file = File::create(path).map_err(|e| Error::io("make", path, e))?;
        let pack = pack::Writer::new(BufWriter::new(file), set.manifest().system);
        let pack = pack.map_err(|e| Error::io("write", path, e))?;
        Ok(Self { pack, path, number, items: Vec::new(), changes: HashMap::new() })
    }

    fn record(
        &mut self,
        record: &Record<'_>,
        wanted: &HashMap<FileId, Layers>,
        frames: &mut Vec<(u32, u64)>,
    ) -> Result<()> {
        let (Record::Write { id, .. }
        | Record::Truncate { id, .. }
        | Record::Punch { id, .. }
        | Record::Create { id, .. }) = *record
        else {
            return Ok(());
        };
        if !wanted.contains_key(&id) {
            return Ok(());
        }
        let change = self.changes.entry(id).or_insert_with(|| Layers::new(u64::MAX));
        match *record {
            Record::Truncate { size, .. } => change.cut(blocks_of(size)),
            Record::Create { .. } => change.cut(0),
            Record::Punch { offset, len, .. } => {
                let (first, end) = (offset / BLOCK, blocks_of(offset.saturating_add(len)));
                let count = end.saturating_sub(first);
                change.over(Run { first, count, origin: Origin::Zeros });
            }
            Record::Write { offset, data, .. } => {
                let len = u32::try_from(data.len()).unwrap_or(u32::MAX);
                put_item_head(&mut self.items, id, offset, len);
                let pos = u32::try_from(self.items.len()).unwrap_or(u32::MAX);
                self.items.extend_from_slice(data);
                let frame = u32::try_from(frames.len()).unwrap_or(u32::MAX);
                let origin = Origin::Frame { frame, pos, len };
                change.over(Run { first: offset / BLOCK, count: blocks_of(u64::from(len)), origin });
                if self.items.len() >= FRAME {
                    self.flush(frames)?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn flush(&mut self, frames: &mut Vec<(u32, u64)>) -> Result<()> {
        if self.items.is_empty() {
            return Ok(());
        }
        let failed = |e| Error::io("write", self.path, e);
        frames.push((self.number, self.pack.len()));
        let raw = u32::try_from(self.items.len()).unwrap_or(u32::MAX);
        let squeezed = zstd::bulk::compress(&self.items, 1).map_err(failed)?;
        if squeezed.len() < self.items.len() {
            self.pack.frame(Encoding::Zstd, raw, &squeezed).map_err(failed)?;
        } else {
            self.pack.frame(Encoding::Raw, raw, &self.items).map_err(failed)?;
        }
        self.items.clear();
        Ok(())
    }

    fn finish(mut self, frames: &mut Vec<(u32, u64)>) -> Result<HashMap<FileId, Layers>> {
        self.flush(frames)?;
        self.pack.into_inner().flush().map_err(|e| Error::io("write", self.path, e))?;
        Ok(self.changes)
    }
}

/// The content of one file.
#[derive(Debug)]
pub struct FileContent<'a> {
    all: &'a Gathered,
    runs: &'a [Run],
    file: Option<Kept>,
    size: u64,
}

impl FileContent<'_> {
    /// What the oldest member keeps, if the content is that and nothing else.
    #[must_use]
    pub fn untouched(&self) -> Option<&Kept> {
        let whole = match self.runs {
            [run] => (run.origin, run.first, run.count) == (Origin::File, 0, blocks_of(self.size)),
            _ => false,
        };
        self.file.as_ref().filter(|f| whole && f.len == self.size)
    }

    /// Puts into a buffer of zeros what a run has for it, which begins at byte `at`.
    fn put(&self, run: &Run, buf: &mut [u8], at: u64) -> io::Result<()> {
        let end = at.saturating_add(buf.len() as u64);
        let (from, to) = (run.first * BLOCK, run.end().saturating_mul(BLOCK));
        let (from, to) = match run.origin {
            Origin::Zeros => return Ok(()),
            Origin::Frame { len, .. } => (from, from.saturating_add(u64::from(len)).min(to)),
            Origin::File => (from, to.min(self.file.as_ref().map_or(0, |f| f.len))),
        };
        let (first, last) = (from.max(at), to.min(end));
        if first >= last {
            return Ok(());
        }
        let index = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        let room = buf.get_mut(index(first - at)..index(last - at)).unwrap_or_default();
        match run.origin {
            Origin::Frame { frame, pos, .. } => {
                let raw = self.all.frame(frame)?;
                let skip = pos as usize + index(first - from);
                let bytes = raw.get(skip..skip.saturating_add(room.len()));
                room.copy_from_slice(
                    bytes.ok_or_else(|| io::Error::other("a frame of a pack became another"))?,
                );
            }
            _ => {
                let n = room.len();
                if self.file.as_ref().map_or(Ok(0), |f| read_kept(f, room, first))? < n {
                    return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it is shorter than it was"));
                }
            }
        }
        Ok(())
    }
}

fn read_kept(kept: &Kept, buf: &mut [u8], at: u64) -> io::Result<usize> {
    crate::sys::read_at(&kept.file, buf, kept.at.saturating_add(at))
}

impl Content for FileContent<'_> {
    fn len(&self) -> u64 {
        self.size
    }

    fn next_data(&mut self, from: u64, size: u64) -> io::Result<Option<(u64, u64)>> {
        let size = size.min(self.size);
        let at = self.runs.partition_point(|r| r.end().saturating_mul(BLOCK) <= from);
        for run in self.runs.iter().skip(at) {
            let start = from.max(run.first * BLOCK);
            let end = run.end().saturating_mul(BLOCK).min(size);
            if start >= end {
                if run.first * BLOCK >= size {
                    return Ok(None);
                }
                continue;
            }
            match (run.origin, &mut self.file) {
                (Origin::Zeros, _) | (Origin::File, None) => {}
                (Origin::Frame { .. }, _) => return Ok(Some((start, end))),
                (Origin::File, Some(file)) => {
                    if let Some((a, b)) = file.next_data(start, end)? {
                        return Ok(Some((a, b.min(end))));
                    }
                }
            }
        }
        Ok(None)
    }

    fn read_at(&mut self, buf: &mut [u8], at: u64) -> io::Result<usize> {
        let n = buf.len().min(usize::try_from(self.size.saturating_sub(at)).unwrap_or(usize::MAX));
        let buf = buf.get_mut(..n).unwrap_or_default();
        buf.fill(0);
        let end = at.saturating_add(n as u64);
        let skip = self.runs.partition_point(|r| r.end().saturating_mul(BLOCK) <= at);
        for run in self.runs.iter().skip(skip) {
            if run.first * BLOCK >= end {
                break;
            }
            self.put(run, buf, at)?;
        }
        Ok(n)
    }

    fn alone(&self) -> Option<&File> {
        self.untouched().and_then(Content::alone)
    }
}
