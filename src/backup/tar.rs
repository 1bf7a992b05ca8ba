//! Form tar: one stream. The files as they are read, in the order of the tree, then the catalog, the block hashes, the
//! log, and the manifest.
//!
//! A file has the size that the catalog says: what is missing of it is zeros, what is too much is left out; the log
//! makes both right. Batches may come side by side, and are written in the order in which they were asked for.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::{self, BufWriter, Write};
use std::mem;
use std::path::Path;
use std::sync::Arc;

use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

use super::scratch::Scratch;
use super::source::{blocking, stopped};
use super::stream::{Compression, Copied, Output, copy, history, manifest_of, pass, segments, unwritable};
use super::summed::Summed;
use super::tarball::{Tarball, What, plain};
use super::{Made, Order, Phase, Progress, hashes};
use crate::blocks::Blocks;
use crate::catalog::{Catalog, block_hashes};
use crate::checkpoint;
use crate::error::{Error, ErrorKind, Result};
use crate::fill::{Batch, Taken, Taker, Wish};
use crate::manifest::{self, File, Form, Manifest, Part, Sha};
use crate::pack::{Frame, Unpacker};
use crate::position::FileId;
use crate::record::{BLOCK, Kind};
use crate::state::StateDir;
use crate::wire::{self, BATCH_IDS, Item, Items, Message};

/// Content expected of one batch, unless a single file is larger.
const BATCH_BYTES: u64 = 8 << 20;
/// Bytes that are handed to the output at once.
const BUFFER: usize = 256 << 10;

/// Takes a backup as one stream into `out`.
///
/// # Errors
/// Whatever keeps it from being complete; [`ErrorKind::Cancelled`] when it was stopped. The stream has no manifest then.
pub async fn take<W: Write + Send + 'static>(
    order: Order,
    compression: Compression,
    out: W,
    progress: Progress,
    cancel: CancellationToken,
) -> Result<Made> {
    let scratch = order.scratch.clone().unwrap_or_else(std::env::temp_dir);
    let work = blocking(move || Scratch::begin(&scratch)).await?;
    let shown = progress.clone();
    let begin = move |state: &StateDir| {
        let out = Output::new(BufWriter::with_capacity(BUFFER, out), compression).map_err(unwritable)?;
        Stream::new(out, Blocks::open(&state.blocks())?, shown)
    };
    let copied = copy(&order, &work.work(), begin, &progress, &cancel).await?;
    if cancel.is_cancelled() {
        return Err(stopped());
    }
    let made = blocking(move || {
        let made = copied.seal(&order.label)?;
        // Gone before the end is said.
        drop(work);
        Ok(made)
    })
    .await?;
    progress.enters(Phase::Done, 0, 0);
    Ok(made)
}

/// A name of the tree.
struct Name {
    id: FileId,
    path: Box<[u8]>,
    /// The name under which its file is in the stream already.
    of: Option<usize>,
}

/// The file whose content is being written.
struct Open {
    id: FileId,
    name: usize,
    size: u64,
    at: u64,
    sha: Sha256,
    /// The block under way.
    block: Vec<u8>,
}

/// What has come of a batch that is not its turn.
#[derive(Default)]
struct Held {
    items: Vec<u8>,
    ended: bool,
}

/// The stream under way.
struct Stream<W: Write> {
    tar: Tarball<W>,
    progress: Progress,
    blocks: Blocks,
    catalog: Option<Arc<Catalog>>,
    names: Vec<Name>,
    /// The next name to be written.
    next: usize,
    open: Option<Open>,
    files: Vec<File>,
    /// Hashes of files of one block.
    single: HashMap<FileId, u128>,
    /// Sums of files of several names.
    linked: HashMap<FileId, (u64, Sha)>,
    unpacker: Unpacker,
    /// The batch whose turn it is, and those behind it.
    turn: u32,
    held: BTreeMap<u32, Held>,
}

impl<W: Write + Send + 'static> Taker for Stream<W> {
    fn begin(&mut self, catalog: &Arc<Catalog>) -> Result<Vec<Batch>> {
        self.names = names(catalog);
        self.catalog = Some(Arc::clone(catalog));
        let files = with_content(&self.names, catalog);
        self.progress.enters(Phase::Copying, files.len() as u64, files.iter().map(|f| f.1).sum());
        Ok(batches(&files))
    }

    fn data(&mut self, message: Message) -> Result<()> {
        let Message::FillData { batch, encoding, raw_len, bytes } = message else { return Ok(()) };
        pass("backup::contents")?;
        let frame = Frame { at: 0, encoding, raw_len, stored: bytes.to_vec() };
        let mut unpacker = mem::take(&mut self.unpacker);
        let taken = unpacker
            .items(&frame)
            .map_err(Error::from)
            .and_then(|items| if batch == self.turn { self.items(items) } else { self.hold(batch, items) });
        self.unpacker = unpacker;
        taken
    }

    fn batch_end(&mut self, batch: u32) -> Result<Vec<u32>> {
        self.held.entry(batch).or_default().ended = true;
        let mut done = Vec::new();
        while let Some(held) = self.held.get_mut(&self.turn) {
            let items = mem::take(&mut held.items);
            let ended = held.ended;
            self.items(&items)?;
            if !ended {
                break;
            }
            self.held.remove(&self.turn);
            done.push(self.turn);
            self.turn = self.turn.wrapping_add(1);
        }
        Ok(done)
    }
}

/// The files that have content, and how much, in the order of the names.
fn with_content(names: &[Name], catalog: &Catalog) -> Vec<(FileId, u64)> {
    let files = names.iter().filter(|n| n.of.is_none()).filter_map(|n| catalog.get(n.id));
    files.filter(|i| i.kind == Kind::File && i.size > 0).map(|i| (i.id, i.size)).collect()
}

/// The same of a whole tree.
pub(super) fn files(catalog: &Catalog) -> Vec<(FileId, u64)> {
    with_content(&names(catalog), catalog)
}

/// What is to be asked for, in the order of the stream.
pub(super) fn batches(files: &[(FileId, u64)]) -> Vec<Batch> {
    let mut batches: Vec<Batch> = Vec::new();
    let (mut ids, mut bytes) = (Vec::new(), 0);
    for &(id, size) in files {
        if !ids.is_empty() && (bytes + size > BATCH_BYTES || ids.len() >= BATCH_IDS) {
            batches.push(Batch { wish: Wish::Files(mem::take(&mut ids)), bytes: mem::take(&mut bytes) });
        }
        ids.push(id);
        bytes += size;
    }
    if !ids.is_empty() {
        batches.push(Batch { wish: Wish::Files(ids), bytes });
    }
    batches
}

/// All names of a tree, parents first.
fn names(catalog: &Catalog) -> Vec<Name> {
    let (mut names, mut first) = (Vec::with_capacity(catalog.name_count()), HashMap::new());
    let mut dirs: Vec<(FileId, Vec<u8>)> = vec![(FileId::ROOT, manifest::BASE.into())];
    while let Some((dir, path)) = dirs.pop() {
        let mut children: Vec<(&[u8], FileId)> = catalog.children(dir).collect();
        children.sort_unstable();
        let mut below = Vec::new();
        for (name, id) in children {
            let path = [&path[..], name].join(&b'/');
            let linked = catalog.nlink(id) > 1;
            let is_dir = catalog.get(id).is_some_and(|i| i.kind == Kind::Dir);
            let of = if linked && !is_dir { first.get(&id).copied() } else { None };
            if linked && of.is_none() && !is_dir {
                first.insert(id, names.len());
            }
            names.push(Name { id, path: path.clone().into(), of });
            if is_dir {
                below.push((id, path));
            }
        }
        dirs.extend(below.into_iter().rev());
    }
    names
}

fn unasked(id: FileId) -> Error {
    Error::new(ErrorKind::Corrupt, format!("the sender sent file {id}, which is not its turn"))
}

impl<W: Write> Stream<W> {
    fn new(out: W, blocks: Blocks, progress: Progress) -> Result<Self> {
        let mut tar = Tarball::new(out);
        let root = [manifest::BASE.as_bytes(), b"/"].concat();
        tar.entry(&root, What::Dir, &crate::record::Attrs { mode: 0o700, ..plain() }, &[])
            .map_err(unwritable)?;
        Ok(Self {
            tar,
            progress,
            blocks,
            catalog: None,
            names: Vec::new(),
            next: 0,
            open: None,
            files: Vec::new(),
            single: HashMap::new(),
            linked: HashMap::new(),
            unpacker: Unpacker::default(),
            turn: 0,
            held: BTreeMap::new(),
        })
    }

    fn tree(&self) -> Result<Arc<Catalog>> {
        let none = || Error::new(ErrorKind::Corrupt, "contents came before the tree");
        self.catalog.clone().ok_or_else(none)
    }

    /// Keeps what comes too early: no more of a file than the tree says it has.
    fn hold(&mut self, batch: u32, bytes: &[u8]) -> Result<()> {
        let catalog = self.tree()?;
        let held = self.held.entry(batch).or_default();
        for item in Items::new(bytes) {
            match item? {
                Item::Data { id, offset, bytes } => {
                    let bytes = &bytes[..room(&catalog, id, offset, bytes.len())];
                    let len = u32::try_from(bytes.len()).unwrap_or(0);
                    if len > 0 {
                        wire::put_item_head(&mut held.items, id, offset, len);
                        held.items.extend_from_slice(bytes);
                    }
                }
                Item::End { id, outcome, size } => wire::put_item_end(&mut held.items, id, outcome, size),
                Item::Hole { .. } => return Err(Error::new(ErrorKind::Corrupt, "a hole was not asked for")),
            }
        }
        Ok(())
    }

    fn items(&mut self, bytes: &[u8]) -> Result<()> {
        let catalog = self.tree()?;
        for item in Items::new(bytes) {
            match item? {
                Item::Data { id, offset, bytes } => {
                    self.opened(&catalog, id)?;
                    let bytes = &bytes[..room(&catalog, id, offset, bytes.len())];
                    self.zeros_to(&catalog, offset)?;
                    self.put(&catalog, bytes)?;
                }
                Item::End { id, .. } => {
                    self.opened(&catalog, id)?;
                    self.close(&catalog)?;
                }
                Item::Hole { .. } => return Err(Error::new(ErrorKind::Corrupt, "a hole was not asked for")),
            }
        }
        Ok(())
    }

    /// Makes `id` the file whose content is written.
    fn opened(&mut self, catalog: &Catalog, id: FileId) -> Result<()> {
        match &self.open {
            Some(open) if open.id == id => return Ok(()),
            Some(_) => return Err(unasked(id)),
            None => self.advance(catalog)?,
        }
        if self.open.as_ref().is_some_and(|o| o.id == id) { Ok(()) } else { Err(unasked(id)) }
    }

    /// Writes names up to the next file that has content, and its header.
    fn advance(&mut self, catalog: &Catalog) -> Result<()> {
        while let Some(name) = self.names.get(self.next) {
            let at = self.next;
            self.next += 1;
            let Some(inode) = catalog.get(name.id) else { continue };
            let path = &name.path;
            if let Some(of) = name.of {
                let of = &self.names.get(of).map(|n| n.path.clone()).unwrap_or_default();
                self.tar.entry(path, What::Hard(of), &inode.attrs, &[]).map_err(unwritable)?;
                if let Some((size, sha256)) = self.linked.get(&name.id).copied() {
                    self.note(at, inode.attrs.mtime, size, sha256);
                }
                continue;
            }
            let slashed;
            let (path, what) = match inode.kind {
                Kind::Dir => {
                    slashed = [path, &b"/"[..]].concat();
                    (&slashed[..], What::Dir)
                }
                Kind::File => (&path[..], What::File(inode.size)),
                Kind::Symlink => (&path[..], What::Symlink(inode.target.unwrap_or_default())),
                Kind::Fifo => (&path[..], What::Fifo),
                Kind::BlockDevice => (&path[..], What::Block(inode.rdev)),
                Kind::CharDevice => (&path[..], What::Char(inode.rdev)),
                // There is none in a tar stream; the catalog has it.
                Kind::Socket => continue,
            };
            self.tar.entry(path, what, &inode.attrs, inode.xattrs).map_err(unwritable)?;
            if inode.kind != Kind::File {
                continue;
            }
            let id = name.id;
            self.open =
                Some(Open { id, name: at, size: inode.size, at: 0, sha: Sha256::new(), block: Vec::new() });
            if inode.size > 0 {
                return Ok(());
            }
            self.close(catalog)?;
        }
        Ok(())
    }

    fn note(&mut self, name: usize, mtime: crate::record::Time, size: u64, sha256: Sha) {
        let Some(name) = self.names.get(name) else { return };
        let path = name.path.get(manifest::BASE.len() + 1..).unwrap_or_default().to_vec();
        self.files.push(File { path, id: name.id, size, mtime, sha256 });
    }

    fn zeros_to(&mut self, catalog: &Catalog, offset: u64) -> Result<()> {
        let zeros = [0; BLOCK as usize];
        while let Some(open) = &self.open {
            let n = offset.min(open.size).saturating_sub(open.at).min(BLOCK);
            if n == 0 {
                break;
            }
            self.put(catalog, &zeros[..usize::try_from(n).unwrap_or(0)])?;
        }
        Ok(())
    }

    /// Content of the open file, as it is stored.
    fn put(&mut self, catalog: &Catalog, mut bytes: &[u8]) -> Result<()> {
        let Some(open) = &mut self.open else { return Ok(()) };
        self.tar.write_all(bytes).map_err(unwritable)?;
        self.progress.add(0, bytes.len() as u64);
        open.sha.update(bytes);
        let block = usize::try_from(BLOCK).unwrap_or(usize::MAX);
        while !bytes.is_empty() {
            let (first, part) = (open.at / BLOCK, open.block.len());
            let whole = if part == 0 { bytes.len() / block * block } else { 0 };
            if whole > 0 {
                let (now, rest) = bytes.split_at(whole);
                let hashes: Vec<u128> = block_hashes(catalog.system(), open.id, first, now).collect();
                keep(&self.blocks, &mut self.single, open, first, &hashes)?;
                (bytes, open.at) = (rest, open.at + whole as u64);
                continue;
            }
            let (now, rest) = bytes.split_at(bytes.len().min(block - part));
            open.block.extend_from_slice(now);
            (bytes, open.at) = (rest, open.at + now.len() as u64);
            if open.block.len() == block || open.at == open.size {
                let data = mem::take(&mut open.block);
                let hashes: Vec<u128> = block_hashes(catalog.system(), open.id, first, &data).collect();
                keep(&self.blocks, &mut self.single, open, first, &hashes)?;
            }
        }
        Ok(())
    }

    /// The open file has ended: what is missing is zeros.
    fn close(&mut self, catalog: &Catalog) -> Result<()> {
        let size = self.open.as_ref().map_or(0, |o| o.size);
        self.zeros_to(catalog, size)?;
        let Some(open) = self.open.take() else { return Ok(()) };
        let sha256 = Sha(open.sha.finalize().into());
        let mtime = catalog.get(open.id).map(|i| i.attrs.mtime).unwrap_or_default();
        if catalog.nlink(open.id) > 1 {
            self.linked.insert(open.id, (size, sha256));
        }
        self.note(open.name, mtime, size, sha256);
        self.progress.add(u64::from(size > 0), 0);
        Ok(())
    }
}

fn keep(
    blocks: &Blocks,
    single: &mut HashMap<FileId, u128>,
    open: &Open,
    first: u64,
    hashes: &[u128],
) -> Result<()> {
    if open.size > BLOCK {
        return blocks.set(open.id, first, hashes);
    }
    single.extend(hashes.first().map(|h| (open.id, *h)));
    Ok(())
}

/// How much of the content of a file at `offset` is within the size that the tree says.
pub(super) fn room(catalog: &Catalog, id: FileId, offset: u64, len: usize) -> usize {
    let size = catalog.get(id).map_or(0, |i| i.size);
    usize::try_from(size.saturating_sub(offset)).unwrap_or(usize::MAX).min(len)
}

impl<W: Write> Copied<Stream<Output<W>>> {
    /// Everything behind the contents.
    fn seal(self, label: &str) -> Result<Made> {
        let Self { taken, end, state } = self;
        let mut manifest = manifest_of(Form::Tar, label, &taken, &end);
        let Taken { taker: mut stream, catalog, timeline, .. } = taken;
        stream.advance(&catalog)?;
        if stream.open.is_some() {
            return Err(Error::new(ErrorKind::Corrupt, "the sender has left a file out"));
        }
        let scratch = |name: &str| state.path().join(name);
        let tree =
            part(&scratch("catalog.part"), |out| checkpoint::encode_snapshot(&catalog.freeze()?, out))?;
        let single = mem::take(&mut stream.single);
        let sums = part(&scratch("blocks.part"), |out| {
            let one = |i: &crate::catalog::Inode<'_>| single.get(&i.id).copied().unwrap_or_default();
            hashes::write_known(out, &catalog, &stream.blocks, &one).map(drop)
        })?;
        manifest.parts.push(stream.part(manifest::CATALOG, &scratch("catalog.part"), Some(tree))?);
        manifest.parts.push(stream.part(manifest::BLOCKS, &scratch("blocks.part"), Some(sums))?);
        let log = segments(&state, timeline, &end, catalog.lsn())?;
        for (name, path) in history(&state, timeline).into_iter().chain(log) {
            manifest.parts.push(stream.part(&name, &path, None)?);
        }
        manifest.files = mem::take(&mut stream.files);
        pass("backup::parts")?;
        stream.end(&manifest)?;
        Ok(Made::of(&manifest))
    }
}

/// Writes a part aside; its size and sum.
fn part(
    path: &Path,
    write: impl FnOnce(&mut Summed<BufWriter<fs::File>>) -> Result<()>,
) -> Result<(u64, Sha)> {
    let file = fs::File::create(path).map_err(|e| Error::io("create", path, e))?;
    let mut out = Summed::new(BufWriter::with_capacity(BUFFER, file));
    write(&mut out)?;
    let (mut out, size, sum) = out.finish();
    out.flush().map_err(|e| Error::io("write", path, e))?;
    Ok((size, sum))
}

impl<W: Write> Stream<Output<W>> {
    /// Adds the file at `path`; its size and sum, if they are known.
    fn part(&mut self, name: &str, path: &Path, known: Option<(u64, Sha)>) -> Result<Part> {
        let mut file = fs::File::open(path).map_err(|e| Error::io("open", path, e))?;
        let size = file.metadata().map_err(|e| Error::io("stat", path, e))?.len();
        self.tar.entry(name.as_bytes(), What::File(size), &plain(), &[]).map_err(unwritable)?;
        let mut out = Summed::new(&mut self.tar);
        io::copy(&mut file, &mut out).map_err(unwritable)?;
        let (_, len, sha256) = out.finish();
        if len != size || known.is_some_and(|k| k != (len, sha256)) {
            let text = format!("'{}' is not what was written there", path.display());
            return Err(Error::new(ErrorKind::Diverged, text));
        }
        Ok(Part { name: name.to_owned(), size, sha256 })
    }

    /// The manifest, and the end of the stream.
    fn end(mut self, manifest: &Manifest) -> Result<()> {
        let mut text = Vec::new();
        manifest.write(&mut text).map_err(|e| Error::from(e).wrap("cannot write the manifest"))?;
        let size = text.len() as u64;
        let last = self.tar.entry(manifest::NAME.as_bytes(), What::File(size), &plain(), &[]);
        last.and_then(|()| self.tar.write_all(&text))
            .and_then(|()| self.tar.finish())
            .and_then(Output::finish)
            .map_err(unwritable)
    }
}
