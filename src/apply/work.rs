//! One batch at work: where everything stands at the moment, and the checks before it is changed.

use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::catalog::{Catalog, LocalId};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::position::FileId;
use crate::record::Kind;
use crate::sys::{self, STAGE_DIR, Stat};

use super::labels::LABELS_CHANGED;
use super::notes::{Before, Notes, is_unknown};
use super::patrol::mode_or_owner;
use super::plan::{Change, Op, STAGE, Slot, plan};
use super::site::{Site, diverged, remove_tree, same_inode};

/// Something on disk that no catalog knows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Unknown {
    pub(crate) local: LocalId,
    pub(crate) dir: bool,
    pub(crate) parent: FileId,
}

/// A batch after its records were folded: the catalog is ahead, the directory follows.
pub(crate) struct Work<'s> {
    pub(crate) site: &'s mut Site,
    pub(crate) notes: Notes,
    /// Directories that stand elsewhere than the catalog says.
    pub(crate) dir_at: HashMap<FileId, Slot>,
    /// What the batch creates, and the slot where it is made.
    pub(crate) made: HashMap<FileId, Slot>,
    /// Those of it that hold content and exist by now.
    pub(crate) created: HashSet<FileId>,
    pub(crate) unknown: HashMap<FileId, Unknown>,
    /// Devices and the like that could not be made.
    pub(crate) absent: HashSet<FileId>,
    /// What was compared with its last known state in this batch.
    checked: HashSet<FileId>,
    /// Inodes whose change time this batch moved.
    pub(crate) stirred: HashSet<FileId>,
    /// The same as inode numbers.
    stirred_inodes: HashSet<u64>,
    /// Change times from before the batch, by inode number; made when the first directory is removed.
    known_inodes: HashMap<u64, crate::record::Time>,
    /// Directories whose entries this batch changed.
    pub(crate) dirty: HashSet<FileId>,
    /// Inodes whose attributes are set whether or not a record did.
    pub(crate) restore: HashSet<FileId>,
    /// Copies of programs that run, while their content is written.
    pub(crate) copies: HashMap<FileId, Slot>,
    /// Files that are another inode by now.
    pub(crate) swapped: HashSet<FileId>,
    /// Things of others in the staging directory, to be removed.
    trash: Vec<Vec<u8>>,
    /// The directory was scanned and may be in any state between the checkpoint and now: what was
    /// touched since cannot be told from a local edit by its times.
    pub(crate) recovering: bool,
}

impl<'s> Work<'s> {
    pub(crate) fn new(site: &'s mut Site, notes: Notes, recovering: bool) -> Self {
        Self {
            site,
            notes,
            dir_at: HashMap::new(),
            made: HashMap::new(),
            created: HashSet::new(),
            unknown: HashMap::new(),
            absent: HashSet::new(),
            checked: HashSet::new(),
            stirred: HashSet::new(),
            stirred_inodes: HashSet::new(),
            known_inodes: HashMap::new(),
            dirty: HashSet::new(),
            restore: HashSet::new(),
            copies: HashMap::new(),
            swapped: HashSet::new(),
            trash: Vec::new(),
            recovering,
        }
    }

    /// Where the directory `id` stands now.
    fn dir_slot(&self, catalog: &Catalog, id: FileId) -> Option<Slot> {
        if let Some(slot) = self.dir_at.get(&id) {
            return Some(slot.clone());
        }
        if catalog.contains(id) {
            return catalog.names(id).next().map(|(dir, name)| Slot::new(dir, name));
        }
        self.notes.stood(catalog, id)
    }

    /// The path of a slot as it is now, for messages.
    pub(crate) fn path(&self, catalog: &Catalog, slot: &Slot) -> Vec<u8> {
        let mut parts: Vec<Arc<[u8]>> = vec![Arc::clone(&slot.name)];
        let mut at = slot.dir;
        while at != FileId::ROOT && parts.len() < 1 << 12 {
            if at == STAGE {
                parts.push(STAGE_DIR.into());
                break;
            }
            match self.dir_slot(catalog, at) {
                Some(slot) => {
                    parts.push(slot.name);
                    at = slot.dir;
                }
                None => {
                    parts.push(Arc::from(at.to_string().into_bytes()));
                    break;
                }
            }
        }
        parts.reverse();
        parts.join(&b'/')
    }

    pub(crate) fn error(
        &self,
        catalog: &Catalog,
        verb: &str,
        slot: &Slot,
        e: impl Into<std::io::Error>,
    ) -> Error {
        self.site.error(verb, &self.path(catalog, slot), e)
    }

    /// The directory `id`, open. It is reached from the root or from a directory already held, one
    /// name at a time, beneath and through no symlink, and must be the inode it is known to be.
    pub(crate) fn dir(&mut self, catalog: &Catalog, id: FileId) -> Result<Arc<OwnedFd>> {
        let mut chain: Vec<(FileId, Slot)> = Vec::new();
        let mut at = id;
        let mut fd = loop {
            if let Some(fd) = self.site.dirs.get(at) {
                break fd;
            }
            let slot = self.dir_slot(catalog, at).filter(|_| chain.len() < 1 << 16);
            let Some(slot) = slot else {
                let text = format!(
                    "directory {at} stands nowhere; stop the node and empty its data and state directories: it is \
                     filled anew"
                );
                return Err(Error::new(ErrorKind::Diverged, text));
            };
            chain.push((at, slot.clone()));
            at = slot.dir;
        };
        while let Some((id, slot)) = chain.pop() {
            let flags = OFlags::PATH | OFlags::DIRECTORY;
            let next = match sys::open_beneath(fd.as_fd(), &slot.name, flags, 0) {
                Ok(next) => next,
                Err(e) => match e.raw_os_error().map(Errno::from_raw_os_error) {
                    Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {
                        return Err(self.vanished(catalog, &slot, "the directory is not there any more"));
                    }
                    _ => return Err(self.error(catalog, "open", &slot, e)),
                },
            };
            let stat = sys::stat_fd(&next).map_err(|e| self.error(catalog, "stat", &slot, e))?;
            if self.local(catalog, id).is_some_and(|l| !same_inode(&l, &stat.local)) {
                return Err(self.vanished(catalog, &slot, "the directory was replaced by another one"));
            }
            fd = self.site.dirs.put(id, next);
        }
        Ok(fd)
    }

    fn vanished(&mut self, catalog: &Catalog, slot: &Slot, what: &str) -> Error {
        let path = self.path(catalog, slot);
        match self.site.edited(&path, what) {
            Err(e) => e,
            Ok(()) => diverged(&path, "is not the directory that was applied"),
        }
    }

    /// What is known of an inode from before the batch.
    fn before(&self, catalog: &Catalog, id: FileId) -> Option<Before> {
        self.notes.before(id).or_else(|| {
            let i = catalog.get(id)?;
            Some(Before { seen: i.seen, size: i.size, attrs: i.attrs })
        })
    }

    fn local(&self, catalog: &Catalog, id: FileId) -> Option<LocalId> {
        if let Some(u) = self.unknown.get(&id) {
            return Some(u.local);
        }
        if self.made.contains_key(&id) {
            return None;
        }
        Some(self.before(catalog, id)?.seen?.local)
    }

    /// Stats what stands at `slot` and compares it with what is known of `id`: before its first
    /// change in a batch, nothing but towline may have touched it.
    pub(crate) fn check(&mut self, catalog: &Catalog, id: FileId, slot: &Slot) -> Result<()> {
        if self.made.contains_key(&id) {
            return Ok(());
        }
        let dir = self.dir(catalog, slot.dir)?;
        let stat = sys::stat_at(&*dir, &slot.name).map_err(|e| self.error(catalog, "stat", slot, e))?;
        match stat {
            Some(stat) => self.compare(catalog, id, slot, &stat),
            None => {
                let path = self.path(catalog, slot);
                self.site.edited(&path, "it was removed")?;
                Err(diverged(&path, "was removed on this follower"))
            }
        }
    }

    /// Compares an inode at hand with what is known of `id`.
    pub(crate) fn compare(&mut self, catalog: &Catalog, id: FileId, slot: &Slot, stat: &Stat) -> Result<()> {
        if self.swapped.contains(&id) {
            return Ok(());
        }
        if self.local(catalog, id).is_some_and(|l| !same_inode(&l, &stat.local)) {
            let path = self.path(catalog, slot);
            self.site.edited(&path, "it was replaced by something else")?;
            if catalog.contains(id) {
                return Err(diverged(&path, "was replaced on this follower"));
            }
            return Ok(());
        }
        if self.recovering || !self.checked.insert(id) || stat.kind == Kind::Dir {
            return Ok(());
        }
        let Some(before) = self.before(catalog, id) else { return Ok(()) };
        let Some(seen) = before.seen else { return Ok(()) };
        let same =
            stat.attrs.mtime == before.attrs.mtime && (stat.kind != Kind::File || stat.size == before.size);
        if seen.ctime == stat.ctime && same {
            return Ok(());
        }
        if !same {
            let path = self.path(catalog, slot);
            self.site.edited(&path, "its size or modification time changed")?;
        } else if mode_or_owner(self.site, stat, &before.attrs) {
            let path = self.path(catalog, slot);
            self.site.repaired(&path, "its mode or owner changed");
        } else if self.labels_changed(catalog, id, slot)? {
            let path = self.path(catalog, slot);
            self.site.repaired(&path, LABELS_CHANGED);
        }
        // Times alone don't clear it: the content is compared once the batch has written its part.
        self.restore.insert(id);
        if stat.kind == Kind::File && catalog.contains(id) {
            self.site.suspects.push(id);
        }
        Ok(())
    }

    /// Whether somebody changed what this batch does not set, and the catalog therefore tells.
    fn labels_changed(&mut self, catalog: &Catalog, id: FileId, slot: &Slot) -> Result<bool> {
        let set = self.notes.touched.get(&id).is_some_and(|t| t.xattrs);
        let Some(inode) = catalog.get(id).filter(|_| !set) else { return Ok(false) };
        let dir = self.dir(catalog, slot.dir)?;
        Ok(self.site.labels.changed(&*dir, &slot.name, &inode))
    }

    /// Something unknown occupies a name that the leader gave to something else.
    pub(crate) fn evict(&mut self, catalog: &Catalog, slot: &Slot) -> Result<()> {
        let path = self.path(catalog, slot);
        self.site.edited(&path, "it was created here")?;
        let (dir, stage) = (self.dir(catalog, slot.dir)?, self.dir(catalog, STAGE)?);
        let aside = self.site.stage_name(FileId(0));
        rustix::fs::renameat(&*dir, &*slot.name, &*stage, &*aside)
            .map_err(|e| self.error(catalog, "move aside", slot, e))?;
        self.trash.push(aside);
        Ok(())
    }

    /// Decides where everything new is made: in the staging directory, or at its place within a
    /// directory that is itself new, which then appears whole.
    pub(crate) fn assign(&mut self, catalog: &Catalog) {
        let mut new: Vec<FileId> = Vec::new();
        for (id, touch) in &self.notes.touched {
            if touch.is_new() && catalog.contains(*id) {
                new.push(*id);
            }
        }
        new.sort();
        for id in new {
            let mut names = catalog.names(id);
            let slot = match (names.next(), names.next()) {
                (Some((dir, name)), None)
                    if self.notes.touched.get(&dir).is_some_and(super::notes::Touch::is_new) =>
                {
                    Slot::new(dir, name)
                }
                _ => Slot::new(STAGE, &self.site.stage_name(id)),
            };
            self.made.insert(id, slot);
        }
    }

    /// Where `id`, which is no directory, can be found before names change.
    pub(crate) fn file_at(&self, catalog: &Catalog, id: FileId) -> Option<Slot> {
        self.made.get(&id).cloned().or_else(|| self.notes.stood(catalog, id))
    }

    /// All slots that change, those of new things included.
    pub(crate) fn changes(&mut self, catalog: &Catalog) -> Vec<Change> {
        let present = |id: FileId| {
            if self.absent.contains(&id) {
                return false;
            }
            let device = |k: Kind| matches!(k, Kind::CharDevice | Kind::BlockDevice);
            let kept_back = |seen: bool, kind: Kind| device(kind) && !seen;
            match self.notes.touched.get(&id) {
                Some(t) => t.before.is_none_or(|b| !kept_back(b.seen.is_some(), t.kind)),
                None => catalog.get(id).is_none_or(|i| !kept_back(i.seen.is_some(), i.kind)),
            }
        };
        let mut changes = self.notes.changes(catalog, present);
        changes.retain(|c| match c.want {
            Some(id) => c.have.is_some() || self.made.get(&id) != Some(&c.slot),
            None => true,
        });
        for (id, slot) in &self.made {
            if slot.dir == STAGE && !self.absent.contains(id) {
                changes.push(Change { slot: slot.clone(), have: Some(*id), want: None });
            }
        }
        changes
    }

    /// Notes where directories stand whose names the batch touches, before the first of them moves.
    pub(crate) fn stand(&mut self, catalog: &Catalog) {
        for (slot, have) in &self.notes.slots {
            let Some(id) = *have else { continue };
            let dir = self.notes.is_dir(catalog, id) || self.unknown.get(&id).is_some_and(|u| u.dir);
            if dir {
                self.dir_at.insert(id, slot.clone());
            }
        }
        for (id, slot) in &self.made {
            if slot.dir == STAGE && self.notes.is_dir(catalog, *id) {
                self.dir_at.insert(*id, slot.clone());
            }
        }
    }

    /// Gives everything its name, and removes what has none.
    pub(crate) fn names(&mut self, catalog: &Catalog) -> Result<()> {
        let changes = self.changes(catalog);
        let unknown = self.unknown.iter().map(|(id, u)| (*id, (u.dir, u.parent))).collect();
        let ops = {
            let world = super::notes::Noted { notes: &self.notes, catalog, unknown: &unknown };
            plan(&changes, &self.site.epoch, &world)
        };
        let ops = ops
            .map_err(|e| Error::new(ErrorKind::Diverged, e.to_string()))
            .context(|| "the names of the log cannot be given in this directory; fill the follower again")?;
        for op in &ops {
            self.run(catalog, op)?;
        }
        self.empty_trash(catalog)
    }

    fn run(&mut self, catalog: &Catalog, op: &Op) -> Result<()> {
        match op {
            Op::Move { id, from, to, over } => self.rename(catalog, *id, from, to, *over),
            Op::Exchange { a, at_a, b, at_b } => self.exchange(catalog, (a, *at_a), (b, *at_b)),
            Op::Link { id, from, to } => self.link(catalog, *id, from, to),
            Op::Unlink { id, slot } => {
                self.check(catalog, *id, slot)?;
                self.site.point("apply::unlink").map_err(|e| self.error(catalog, "remove", slot, e))?;
                let dir = self.dir(catalog, slot.dir)?;
                rustix::fs::unlinkat(&*dir, &*slot.name, rustix::fs::AtFlags::empty())
                    .map_err(|e| self.error(catalog, "remove", slot, e))?;
                self.stir(*id, &[slot.dir]);
                Ok(())
            }
            Op::Discard { id, slot } => self.discard(catalog, *id, slot),
        }
    }

    /// Notes that this batch moved the change time of `id`, and changed entries of `dirs`.
    pub(super) fn stir(&mut self, id: FileId, dirs: &[FileId]) {
        if !is_unknown(id) && self.stirred.insert(id) {
            let seen = self.notes.before(id).and_then(|b| b.seen);
            self.stirred_inodes.extend(seen.map(|s| s.local.ino));
        }
        self.dirty.extend(dirs.iter().filter(|d| **d != STAGE));
    }

    fn stands(&mut self, id: FileId, slot: &Slot) {
        if let Some(at) = self.made.get_mut(&id) {
            *at = slot.clone();
        }
        if let Some(at) = self.dir_at.get_mut(&id) {
            *at = slot.clone();
        }
    }

    fn rename(
        &mut self,
        catalog: &Catalog,
        id: FileId,
        from: &Slot,
        to: &Slot,
        over: Option<FileId>,
    ) -> Result<()> {
        use rustix::fs::{RenameFlags, renameat_with};
        self.check(catalog, id, from)?;
        if let Some(over) = over {
            self.check(catalog, over, to)?;
        }
        self.site.point("apply::rename").map_err(|e| self.error(catalog, "rename", from, e))?;
        let (a, b) = (self.dir(catalog, from.dir)?, self.dir(catalog, to.dir)?);
        let mut flags = if over.is_some() { RenameFlags::empty() } else { RenameFlags::NOREPLACE };
        loop {
            match renameat_with(&*a, &*from.name, &*b, &*to.name, flags) {
                Ok(()) => break,
                Err(Errno::EXIST) if flags == RenameFlags::NOREPLACE => self.evict(catalog, to)?,
                // A file system without the flag: look first.
                Err(Errno::INVAL | Errno::NOSYS) if flags == RenameFlags::NOREPLACE => {
                    let there =
                        sys::stat_at(&*b, &to.name).map_err(|e| self.error(catalog, "stat", to, e))?;
                    if there.is_some() {
                        self.evict(catalog, to)?;
                    }
                    flags = RenameFlags::empty();
                }
                Err(e) => return Err(self.error(catalog, "rename", from, e)),
            }
        }
        self.stands(id, to);
        self.stir(id, &[from.dir, to.dir]);
        if let Some(over) = over {
            self.stir(over, &[]);
        }
        Ok(())
    }

    fn exchange(&mut self, catalog: &Catalog, a: (&Slot, FileId), b: (&Slot, FileId)) -> Result<()> {
        use rustix::fs::{RenameFlags, renameat, renameat_with};
        self.check(catalog, a.1, a.0)?;
        self.check(catalog, b.1, b.0)?;
        self.site.point("apply::rename").map_err(|e| self.error(catalog, "exchange", a.0, e))?;
        let (dir_a, dir_b) = (self.dir(catalog, a.0.dir)?, self.dir(catalog, b.0.dir)?);
        let swapped = renameat_with(&*dir_a, &*a.0.name, &*dir_b, &*b.0.name, RenameFlags::EXCHANGE);
        match swapped {
            Ok(()) => {}
            // A file system without the flag: three steps, with moments in between.
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                let (stage, aside) = (self.dir(catalog, STAGE)?, self.site.stage_name(a.1));
                renameat(&*dir_b, &*b.0.name, &*stage, &*aside)
                    .and_then(|()| renameat(&*dir_a, &*a.0.name, &*dir_b, &*b.0.name))
                    .and_then(|()| renameat(&*stage, &*aside, &*dir_a, &*a.0.name))
                    .map_err(|e| self.error(catalog, "exchange", a.0, e))?;
            }
            Err(e) => return Err(self.error(catalog, "exchange", a.0, e)),
        }
        self.stands(a.1, b.0);
        self.stands(b.1, a.0);
        self.stir(a.1, &[a.0.dir, b.0.dir]);
        self.stir(b.1, &[]);
        Ok(())
    }

    fn link(&mut self, catalog: &Catalog, id: FileId, from: &Slot, to: &Slot) -> Result<()> {
        use rustix::fs::{AtFlags, linkat};
        self.check(catalog, id, from)?;
        self.site.point("apply::rename").map_err(|e| self.error(catalog, "link", from, e))?;
        let (a, b) = (self.dir(catalog, from.dir)?, self.dir(catalog, to.dir)?);
        loop {
            match linkat(&*a, &*from.name, &*b, &*to.name, AtFlags::empty()) {
                Ok(()) => break,
                Err(Errno::EXIST) => self.evict(catalog, to)?,
                Err(e) => return Err(self.error(catalog, "link", from, e)),
            }
        }
        self.stir(id, &[to.dir]);
        Ok(())
    }

    fn discard(&mut self, catalog: &Catalog, id: FileId, slot: &Slot) -> Result<()> {
        self.site.point("apply::unlink").map_err(|e| self.error(catalog, "remove", slot, e))?;
        let stage = self.dir(catalog, STAGE)?;
        let is_dir = self.dir_at.contains_key(&id) || self.unknown.get(&id).is_some_and(|u| u.dir);
        if !is_dir {
            self.stir(id, &[]);
            return rustix::fs::unlinkat(&*stage, &*slot.name, rustix::fs::AtFlags::empty())
                .map_err(|e| self.error(catalog, "remove", slot, e));
        }
        self.site.dirs.forget(id);
        if self.known_inodes.is_empty() {
            let touched = self.notes.touched.values().filter_map(|t| t.before?.seen);
            let gone = std::mem::take(&mut self.notes.gone_files);
            self.known_inodes = touched.map(|s| (s.local.ino, s.ctime)).chain(gone).collect();
        }
        let path = self.path(catalog, slot);
        let (recovering, site) = (self.recovering, &mut *self.site);
        let moved = &mut self.stirred_inodes;
        let (known, stirred) = (&self.known_inodes, &mut self.stirred);
        remove_tree(&stage, &slot.name, &mut |stat, below| {
            let known = known.get(&stat.local.ino);
            let ours = recovering
                || stat.kind == Kind::Dir
                || moved.contains(&stat.local.ino)
                || known.is_some_and(|ctime| *ctime == stat.ctime);
            if ours {
                // Of a file with more names, removing one moves the change time of the inode.
                moved.insert(stat.local.ino);
                if stat.nlink > 1 && stat.kind != Kind::Dir {
                    stirred.extend(catalog.by_local(stat.local.dev, stat.local.ino));
                }
                return Ok(());
            }
            let what = if known.is_some() { "it was changed" } else { "it was created here" };
            let path = [STAGE_DIR, below].join(&b'/');
            site.edited(&path, &format!("{what}, and the leader removed the directory that holds it"))
        })
        .context(|| format!("cannot remove '{}'", path.escape_ascii()))
    }

    fn empty_trash(&mut self, catalog: &Catalog) -> Result<()> {
        let stage = self.dir(catalog, STAGE)?;
        for name in std::mem::take(&mut self.trash) {
            let slot = Slot::new(STAGE, &name);
            match rustix::fs::unlinkat(&*stage, &*name, rustix::fs::AtFlags::empty()) {
                Ok(()) => {}
                Err(Errno::ISDIR) => remove_tree(&stage, &name, &mut |_, _| Ok(()))?,
                Err(e) => return Err(self.error(catalog, "remove", &slot, e)),
            }
        }
        Ok(())
    }
}
