//! Form packs: contents as they were sent, in a directory or below one prefix of an archive. Full ones, and incremental ones
//! of a base: those ask for the files that are not what the base has, by the hashes of its blocks.

use std::collections::HashMap;
use std::io;
use std::mem;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::base::{Base, Origin};
use super::place::{Begun, Place};
use super::scratch::Scratch;
use super::shelf::{Folder, Prefix, Shelf, copy_part, write_part};
use super::source::{blocking, stopped};
use super::stream::{Copied, copy, history, manifest_of, pass, segments};
use super::summed::Summed;
use super::{Made, Order, Phase, Progress, hashes, tar, tree};
use crate::archive::Address;
use crate::blocks::Blocks;
use crate::catalog::{Catalog, Inode, block_hashes, blocks_of};
use crate::checkpoint;
use crate::error::{Error, ErrorKind, Result};
use crate::fill::{Batch, Taken, Taker, Wish};
use crate::manifest::{self, Form, Manifest, Part, pack_name};
use crate::pack::{self, Frame, Unpacker};
use crate::position::{FileId, SystemId};
use crate::record::{BLOCK, Kind};
use crate::state::StateDir;
use crate::wire::{self, Encoding, Item, Items, Message, RANGE_BLOCKS, RANGES_BYTES, RANGES_MAX, Range};

/// A pack is ended once it has so many bytes.
const PACK: u64 = 256 << 20;
/// Items gathered for one frame of an incremental backup.
const FRAME: usize = 256 << 10;
/// Of content whose hashes are sent so much is expected to differ.
const DIFFERS: u64 = 16;
/// Content that counts as on its way for one batch: packs take what comes in any order.
const AT_ONCE: u64 = 8 << 20;

/// Where packs go.
#[derive(Clone, Debug)]
pub enum Target {
    /// A directory, new or empty.
    Dir(PathBuf),
    /// An archive.
    Archive(Address),
}

/// Takes a backup as packs; of an incremental one `base` is what it stands on.
///
/// # Errors
/// Whatever keeps it from being complete, what is wrong with the base, or [`ErrorKind::Cancelled`] when it was stopped. What
/// was made is removed then.
pub async fn take(
    order: Order,
    target: Target,
    base: Option<Origin>,
    progress: Progress,
    cancel: CancellationToken,
) -> Result<Made> {
    let (label, scratch) = (order.label.clone(), order.scratch.clone());
    let (at, work) = blocking(move || Ground::begin(target, &label, scratch)).await?;
    let at = Arc::new(at);
    let made = make(&order, &at, &work.1, base, &progress, &cancel).await;
    let made = match made {
        Ok(_) if cancel.is_cancelled() => Err(stopped()),
        other => other,
    };
    blocking(move || {
        let made = made.and_then(|(manifest, made)| at.seal(&manifest).map(|()| made));
        if made.is_err() {
            at.discard();
        }
        // Gone before the end is said.
        drop(work);
        progress.enters(Phase::Done, 0, 0);
        made
    })
    .await
}

/// The directory, or the prefix.
enum Ground {
    Folder(Place),
    Prefix(Prefix),
}

type Work = (Option<Scratch>, PathBuf);

impl Ground {
    fn begin(target: Target, label: &str, scratch: Option<PathBuf>) -> Result<(Self, Work)> {
        match target {
            Target::Dir(dir) => {
                let begun = Begun { label: label.to_owned(), start: None };
                let place = Place::begin(&dir, &begun)?;
                let work = place.work();
                Ok((Self::Folder(place), (None, work)))
            }
            Target::Archive(address) => {
                let scratch = scratch.unwrap_or_else(std::env::temp_dir);
                let made = Scratch::begin(&scratch)?;
                let path = made.work();
                Ok((Self::Prefix(Prefix::new(address, label)), (Some(made), path)))
            }
        }
    }

    /// Where the parts go, of a backup of this system.
    fn shelf(&self, system: SystemId, base: Option<&Base>) -> Result<Arc<dyn Shelf>> {
        match self {
            Self::Folder(place) => Ok(Arc::new(Folder(place.dir().to_owned()))),
            Self::Prefix(prefix) => prefix.open(system, base.map(|b| (b.manifest.label.as_str(), b.sha256))),
        }
    }

    fn seal(&self, manifest: &Manifest) -> Result<()> {
        match self {
            Self::Folder(place) => tree::finish(place, manifest),
            Self::Prefix(prefix) => prefix.seal(manifest),
        }
    }

    fn discard(&self) {
        match self {
            Self::Folder(place) => place.discard(),
            Self::Prefix(prefix) => prefix.discard(),
        }
    }
}

async fn make(
    order: &Order,
    at: &Arc<Ground>,
    work: &Path,
    base: Option<Origin>,
    progress: &Progress,
    cancel: &CancellationToken,
) -> Result<(Manifest, Made)> {
    let (shown, ground) = (progress.clone(), Arc::clone(at));
    let begin = move |state: &StateDir| {
        let dir = state.path().join("base");
        let base = base.map(|origin| Base::open(&origin, &dir)).transpose()?;
        let blocks = match &base {
            Some(base) => base.blocks.clone(),
            None => Blocks::open(&state.blocks())?,
        };
        Ok(Packs::new(ground, base, blocks, shown))
    };
    let copied = copy(order, work, begin, progress, cancel).await?;
    let label = order.label.clone();
    blocking(move || copied.parts(&label)).await
}

/// Packs under way.
struct Packs {
    ground: Arc<Ground>,
    shelf: Option<Arc<dyn Shelf>>,
    base: Option<Base>,
    progress: Progress,
    catalog: Option<Arc<Catalog>>,
    blocks: Blocks,
    /// Hashes of files of one block.
    single: HashMap<FileId, u128>,
    pack: Option<pack::Writer<Summed<Box<dyn super::shelf::PartFile>>>>,
    parts: Vec<Part>,
    unpacker: Unpacker,
    /// Ranges asked for of each file, as far as they have not come.
    ranges: HashMap<FileId, u32>,
    /// Items of an incremental backup for the next frame.
    items: Vec<u8>,
}

fn failed(e: io::Error) -> Error {
    Error::from(e).wrap("cannot write a pack")
}

impl Packs {
    fn new(ground: Arc<Ground>, base: Option<Base>, blocks: Blocks, progress: Progress) -> Self {
        Self {
            ground,
            shelf: None,
            base,
            progress,
            catalog: None,
            blocks,
            single: HashMap::new(),
            pack: None,
            parts: Vec::new(),
            unpacker: Unpacker::default(),
            ranges: HashMap::new(),
            items: Vec::new(),
        }
    }

    fn shelf(&self) -> Result<&Arc<dyn Shelf>> {
        self.shelf.as_ref().ok_or_else(|| Error::new(ErrorKind::Corrupt, "contents came before the tree"))
    }

    fn frame(&mut self, encoding: Encoding, raw_len: u32, stored: &[u8]) -> Result<()> {
        if self.pack.as_ref().is_some_and(|p| p.len() >= PACK) {
            self.end_pack()?;
        }
        let mut pack = match self.pack.take() {
            Some(pack) => pack,
            None => {
                let name = pack_name(self.parts.len() as u64 + 1);
                let out = Summed::new(self.shelf()?.create(&name)?);
                let system = self.catalog.as_ref().map_or(SystemId::NONE, |c| c.system());
                pack::Writer::new(out, system).map_err(failed)?
            }
        };
        pack.frame(encoding, raw_len, stored).map_err(failed)?;
        self.pack = Some(pack);
        Ok(())
    }

    fn end_pack(&mut self) -> Result<()> {
        let Some(pack) = self.pack.take() else { return Ok(()) };
        let (out, size, sha256) = pack.into_inner().finish();
        out.commit()?;
        pass("backup::pack")?;
        self.parts.push(Part { name: pack_name(self.parts.len() as u64 + 1), size, sha256 });
        Ok(())
    }

    /// Ends the frame of an incremental backup.
    fn flush(&mut self) -> Result<()> {
        let items = mem::take(&mut self.items);
        if items.is_empty() {
            return Ok(());
        }
        let raw = u32::try_from(items.len()).unwrap_or(u32::MAX);
        let squeezed = zstd::bulk::compress(&items, 1).map_err(failed)?;
        if squeezed.len() < items.len() {
            self.frame(Encoding::Zstd, raw, &squeezed)
        } else {
            self.frame(Encoding::Raw, raw, &items)
        }
    }

    /// Notes what comes, and gathers it for a frame where the messages are not stored as they are.
    fn items(&mut self, bytes: &[u8]) -> Result<()> {
        let Some(catalog) = self.catalog.clone() else { return Ok(()) };
        let gathers = self.base.is_some();
        for item in Items::new(bytes) {
            let item = item?;
            self.learn(&catalog, &item)?;
            if !gathers {
                continue;
            }
            if self.items.len() + 64 + item_len(&item) > wire::ITEMS_MAX || self.items.len() >= FRAME {
                self.flush()?;
            }
            match item {
                Item::Data { id, offset, bytes } => {
                    wire::put_item_head(&mut self.items, id, offset, u32::try_from(bytes.len()).unwrap_or(0));
                    self.items.extend_from_slice(bytes);
                }
                Item::Hole { id, offset, len } => wire::put_item_hole(&mut self.items, id, offset, len),
                Item::End { id, outcome, size } => {
                    // Of several ranges the last one ends the file.
                    let left = self.ranges.get_mut(&id).map_or(0, |n| {
                        *n = n.saturating_sub(1);
                        *n
                    });
                    if left == 0 {
                        wire::put_item_end(&mut self.items, id, outcome, size);
                    }
                }
            }
        }
        Ok(())
    }

    fn learn(&mut self, catalog: &Catalog, item: &Item<'_>) -> Result<()> {
        match *item {
            Item::Data { id, offset, bytes } => {
                let bytes = &bytes[..tar::room(catalog, id, offset, bytes.len())];
                self.progress.add(0, bytes.len() as u64);
                let first = offset / BLOCK;
                let hashes: Vec<u128> = block_hashes(catalog.system(), id, first, bytes).collect();
                if blocks_of(catalog.get(id).map_or(0, |i| i.size)) > 1 {
                    return self.blocks.set(id, first, &hashes);
                }
                self.single.extend(hashes.first().map(|h| (id, *h)));
            }
            Item::Hole { id, offset, len } => {
                if blocks_of(catalog.get(id).map_or(0, |i| i.size)) > 1 {
                    return self.blocks.clear(id, offset / BLOCK, blocks_of(offset.saturating_add(len)));
                }
                self.single.insert(id, 0);
            }
            Item::End { .. } => self.progress.add(1, 0),
        }
        Ok(())
    }
}

fn item_len(item: &Item<'_>) -> usize {
    if let Item::Data { bytes, .. } = item { bytes.len() } else { 0 }
}

impl Taker for Packs {
    fn begin(&mut self, catalog: &Arc<Catalog>) -> Result<Vec<Batch>> {
        self.catalog = Some(Arc::clone(catalog));
        if let Some(base) = &self.base {
            fits(base, catalog)?;
        }
        self.shelf = Some(self.ground.shelf(catalog.system(), self.base.as_ref())?);
        let files = tar::files(catalog);
        let Some(base) = self.base.take() else {
            self.progress.enters(Phase::Copying, files.len() as u64, files.iter().map(|f| f.1).sum());
            let mut batches = tar::batches(&files);
            batches.iter_mut().for_each(|b| b.bytes = b.bytes.min(AT_ONCE));
            return Ok(batches);
        };
        let (mut whole, mut ranges, mut bytes) = (Vec::new(), Vec::new(), 0);
        for (id, size) in files {
            let Some(inode) = catalog.get(id) else { continue };
            let old = base.catalog.get(id).filter(|i| i.kind == Kind::File && i.size > 0);
            let (count, had) = (blocks_of(size), old.as_ref().map_or(0, |i| blocks_of(i.size)));
            // Files of one block and of several keep their hashes in different places.
            match (had, count) {
                (0, _) => {}
                (_, 1) => drop(self.single.insert(id, base.first(id)?)),
                (1, _) => self.blocks.set(id, 0, &[base.first(id)?])?,
                _ => {}
            }
            match old {
                None => whole.push((id, size)),
                Some(old) if same(&old, &inode) => continue,
                Some(_) => {
                    self.blocks.set_len(id, count.max(2));
                    let asked = self.ranges_of(id, count)?;
                    self.ranges.insert(id, u32::try_from(asked.len()).unwrap_or(u32::MAX));
                    ranges.extend(asked);
                }
            }
            bytes += size;
        }
        let count = (whole.len() + self.ranges.len()) as u64;
        self.progress.enters(Phase::Copying, count, bytes);
        let mut batches = tar::batches(&whole);
        batches.extend(grouped(ranges));
        batches.iter_mut().for_each(|b| b.bytes = b.bytes.min(AT_ONCE));
        self.base = Some(base);
        Ok(batches)
    }

    fn data(&mut self, message: Message) -> Result<()> {
        let Message::FillData { encoding, raw_len, bytes, .. } = message else { return Ok(()) };
        pass("backup::contents")?;
        let frame = Frame { at: 0, encoding, raw_len, stored: bytes.to_vec() };
        let mut unpacker = mem::take(&mut self.unpacker);
        let taken = unpacker.items(&frame).map_err(Error::from).and_then(|items| self.items(items));
        self.unpacker = unpacker;
        taken?;
        if self.base.is_some() {
            return Ok(());
        }
        self.frame(encoding, raw_len, &frame.stored)
    }

    fn batch_end(&mut self, batch: u32) -> Result<Vec<u32>> {
        Ok(vec![batch])
    }
}

impl Packs {
    /// All of a file, by what the base has of it.
    fn ranges_of(&self, id: FileId, count: u64) -> Result<Vec<Range>> {
        let (mut ranges, mut at) = (Vec::new(), 0);
        while at < count {
            let n = (count - at).min(RANGE_BLOCKS as u64);
            let blocks = u32::try_from(n).unwrap_or(u32::MAX);
            let hashes = match count {
                1 => vec![self.single.get(&id).copied().unwrap_or_default()],
                _ => self.blocks.get(id, at, blocks as usize)?,
            };
            let hashes = Some(hashes).filter(|h| h.iter().any(|h| *h != 0));
            ranges.push(Range { id, first: at, blocks, hashes });
            at += n;
        }
        Ok(ranges)
    }
}

/// Whether the base has the content of a file, as far as both trees know it.
fn same(old: &Inode<'_>, new: &Inode<'_>) -> bool {
    old.hashed && new.hashed && old.size == new.size && old.content == new.content
}

/// Ranges in requests.
fn grouped(ranges: Vec<Range>) -> Vec<Batch> {
    let mut batches = Vec::new();
    let (mut group, mut stored, mut bytes) = (Vec::new(), 0, 0);
    for range in ranges {
        if !group.is_empty() && (group.len() >= RANGES_MAX || stored + range.stored_len() > RANGES_BYTES) {
            batches.push(Batch { wish: Wish::Ranges(mem::take(&mut group)), bytes });
            (stored, bytes) = (0, 0);
        }
        stored += range.stored_len();
        bytes += u64::from(range.blocks) * BLOCK / DIFFERS;
        group.push(range);
    }
    if !group.is_empty() {
        batches.push(Batch { wish: Wish::Ranges(group), bytes });
    }
    batches
}

/// Whether the node's tree is a later one of the base's.
fn fits(base: &Base, catalog: &Catalog) -> Result<()> {
    let manifest = &base.manifest;
    let refused = |why: String| {
        let label = &manifest.label;
        Err(Error::new(ErrorKind::Refused, format!("the backup can't stand on '{label}': {why}")))
    };
    if manifest.system != catalog.system() {
        return refused(format!("it is of system {}, the node is of {}", manifest.system, catalog.system()));
    }
    if manifest.end > catalog.lsn() {
        return refused(format!(
            "it ends at {}, and the node is at {} only; take the backup from one that has caught up",
            manifest.end,
            catalog.lsn()
        ));
    }
    Ok(())
}

impl Copied<Packs> {
    /// Everything behind the contents, but the manifest.
    fn parts(self, label: &str) -> Result<(Manifest, Made)> {
        let Self { taken, end, state } = self;
        let mut manifest = manifest_of(Form::Packs, label, &taken, &end);
        let Taken { taker: mut packs, catalog, timeline, .. } = taken;
        packs.flush()?;
        packs.end_pack()?;
        let shelf = Arc::clone(packs.shelf()?);
        manifest.base = packs.base.as_ref().map(|b| manifest::Base {
            label: b.manifest.label.clone(),
            end: b.manifest.end,
            manifest_sha256: b.sha256,
        });
        manifest.parts.push(write_part(&*shelf, manifest::CATALOG, |out| {
            checkpoint::encode_snapshot(&catalog.freeze()?, out)
        })?);
        let one = |i: &Inode<'_>| packs.single.get(&i.id).copied().unwrap_or_default();
        manifest.parts.push(write_part(&*shelf, manifest::BLOCKS, |out| {
            hashes::write_known(out, &catalog, &packs.blocks, &one).map(drop)
        })?);
        let log = segments(&state, timeline, &end, catalog.lsn())?;
        for (name, path) in history(&state, timeline).into_iter().chain(log) {
            manifest.parts.push(copy_part(&*shelf, &name, &path)?);
        }
        manifest.parts.append(&mut packs.parts);
        pass("backup::parts")?;
        let made = Made::packed(&manifest, &catalog);
        Ok((manifest, made))
    }
}
