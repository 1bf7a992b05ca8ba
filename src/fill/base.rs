//! What a node knows of its directory before that is made equal to a tree.
//!
//! The newest checkpoint tells which inode is which file, and what it held when it was last seen. That is believed of
//! a file that looks as it did then, unless
//!
//! - the log behind the checkpoint writes it: a power cut may have left the new content under the old times;
//! - its content was found damaged, or is in doubt;
//! - its block hashes do not add up to the sum that the checkpoint has.
//!
//! Everything else is read. Once the directory was touched nothing of this is believed any more but what the journal
//! says to be whole; who is who is still known.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use super::journal::Finished;
use crate::apply::same_inode;
use crate::blocks::Blocks;
use crate::catalog::{Catalog, Inode, LocalId, blocks_of};
use crate::error::{Error, Result};
use crate::log::{FrameReader, Log, LogOptions};
use crate::position::{FileId, Lsn, SystemId, TimelineId};
use crate::record::{Kind, Record, Records};
use crate::state::{Control, StateDir};
use crate::sys::{self, Root, Stat};
use crate::{apply, checkpoint};

/// What is known.
pub(super) struct Base {
    catalog: Option<Catalog>,
    /// Contents that are not believed; `None`: all of them.
    doubted: Option<HashSet<FileId>>,
    /// Whole files by the journal of a resync that was broken off.
    pub(super) done: HashMap<FileId, Finished>,
    pub(super) blocks: Blocks,
}

impl Base {
    /// What the state directory of a node says. Whatever can't be read is not known.
    pub(super) fn load(state: &StateDir, root: &Root) -> Result<Self> {
        let mut base = Self::of_names(state, root)?;
        let Some(catalog) = &base.catalog else { return Ok(base) };
        let control = state.set_up()?;
        let doubted = doubted(state, &control, catalog.lsn(), &base.blocks);
        base.doubted = doubted.inspect_err(|e| tracing::warn!("every file is read: {e}")).ok();
        Ok(base)
    }

    /// Only which inode is which file.
    pub(super) fn of_names(state: &StateDir, root: &Root) -> Result<Self> {
        let control = state.set_up()?;
        let blocks = Blocks::open(&state.blocks())?;
        let none = control.system == SystemId::NONE;
        let catalog = if none { Ok(None) } else { checkpoint::load_newest(&state.catalog(), control.system) };
        let mut catalog = catalog.unwrap_or_else(|e| {
            tracing::warn!("what this directory held is not known: {e}");
            None
        });
        if let Some(catalog) = &mut catalog {
            renumber(catalog, root)?;
        }
        Ok(Self { catalog, doubted: None, done: HashMap::new(), blocks })
    }

    /// Which file an inode is.
    pub(super) fn known(&self, stat: &Stat) -> Option<FileId> {
        let catalog = self.catalog.as_ref()?;
        let id = catalog.by_local(stat.local.dev, stat.local.ino)?;
        let inode = catalog.get(id)?;
        let same = inode.kind == stat.kind && inode.seen.is_some_and(|s| same_inode(&s.local, &stat.local));
        same.then_some(id)
    }

    fn believed(&self, id: FileId, stat: &Stat) -> Option<Inode<'_>> {
        let inode = self.catalog.as_ref()?.get(id)?;
        let seen = inode.seen?;
        let untouched = same_inode(&seen.local, &stat.local)
            && seen.ctime == stat.ctime
            && inode.kind == stat.kind
            && inode.attrs.mtime == stat.attrs.mtime;
        (untouched && self.doubted.is_some()).then_some(inode)
    }

    /// The sum of the block hashes of what the file `id` holds here, if that is known without reading it. The
    /// hashes of a file of many blocks are then in [`blocks`](Self::blocks).
    pub(super) fn content(&self, id: FileId, stat: &Stat) -> Result<Option<u128>> {
        let Some(inode) = self.believed(id, stat) else { return Ok(None) };
        let doubted = self.doubted.as_ref().is_none_or(|d| d.contains(&id));
        if inode.kind != Kind::File || !inode.hashed || inode.size != stat.size || doubted {
            return Ok(None);
        }
        let count = blocks_of(inode.size);
        let sound = count <= 1 || self.blocks.sum(id, 0, count)? == inode.content;
        Ok(sound.then_some(inode.content))
    }

    /// Whether the content of `want` is what was applied here. If the file has another one, somebody else changed it.
    pub(super) fn had(&self, want: &Inode<'_>) -> bool {
        let sure = self.doubted.as_ref().is_some_and(|d| !d.contains(&want.id));
        let was = self.catalog.as_ref().and_then(|c| c.get(want.id)).filter(|i| i.kind == Kind::File);
        let same = |i: Inode<'_>| i.hashed && want.hashed && (i.size, i.content) == (want.size, want.content);
        sure && was.is_some_and(same)
    }

    /// Whether an inode has all the attributes of `want` already.
    pub(super) fn is_dressed(&self, want: &Inode<'_>, stat: &Stat) -> bool {
        self.believed(want.id, stat).is_some_and(|i| i.attrs == want.attrs && i.xattrs == want.xattrs)
    }
}

/// The device of the root is numbered anew by a mount or a boot.
fn renumber(catalog: &mut Catalog, root: &Root) -> Result<()> {
    let here = sys::stat_fd(root.fd()).map_err(|e| Error::io("stat", root.path(), e))?.local;
    let known = catalog.get(FileId::ROOT).and_then(|n| n.seen).map(|s| s.local);
    if let Some(known) = known
        && known.dev != here.dev
        && same_inode(&LocalId { dev: here.dev, ..known }, &here)
    {
        catalog.renumber_device(known.dev, here.dev);
    }
    Ok(())
}

fn doubted(state: &StateDir, control: &Control, from: Lsn, blocks: &Blocks) -> Result<HashSet<FileId>> {
    let mut out: HashSet<FileId> = blocks.suspects().into_iter().collect();
    out.extend(apply::doubtful(state.path())?);
    out.extend(written_since(&state.log(), control.system, control.timeline, from)?);
    Ok(out)
}

/// The files whose content the log from `from` on changes.
fn written_since(dir: &Path, system: SystemId, timeline: TimelineId, from: Lsn) -> Result<HashSet<FileId>> {
    let mut out = HashSet::new();
    let options = LogOptions {
        dir: dir.to_owned(),
        system,
        timeline,
        segment_timeout: std::time::Duration::from_secs(60),
        level: 1,
    };
    let log = Log::open_follower(options)?;
    let end = log.tail().end;
    log.close()?;
    let mut reader = FrameReader::open(dir, system, timeline, from)?;
    while let Some(frame) = reader.next(end)? {
        for record in Records::new(&frame.raw) {
            match record?.1 {
                Record::Write { id, .. } | Record::Truncate { id, .. } | Record::Punch { id, .. } => {
                    out.insert(id);
                }
                _ => {}
            }
        }
    }
    Ok(out)
}
