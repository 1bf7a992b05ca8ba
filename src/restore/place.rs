//! The directories of a restore: made aside, and moved to where they belong when they are whole.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Order, Origin, Source, guard};
use crate::disk;
use crate::error::{Error, ErrorKind, Result};
use crate::failpoint;
use crate::manifest::Manifest;
use crate::position::{SystemId, TimelineId};
use crate::state::{Control, Role, StateDir};

/// Says in the state directory which restore it belongs to.
const NOTE: &str = "restore.json";
/// What was fetched, in the state directory.
const FETCHED: &str = "fetched";

/// Which restore it is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Begun {
    label: String,
    system: String,
    end: String,
    target: String,
    /// `out` held something, which is made equal.
    delta: bool,
    /// A leader is made.
    #[serde(default)]
    leads: bool,
    /// The timeline that is asked for, and the one that this is.
    #[serde(default)]
    line: String,
    #[serde(default)]
    timeline: u32,
    /// Only the move is left.
    whole: bool,
}

/// Where it is made.
#[derive(Debug)]
pub(super) struct Place {
    out: PathBuf,
    work: PathBuf,
    state: Arc<StateDir>,
    /// Where the state directory belongs.
    kept: Option<PathBuf>,
    begun: Begun,
    /// Nothing was there before.
    new: bool,
}

fn refused(text: String) -> Error {
    Error::new(ErrorKind::Refused, text)
}

/// `path` with something behind its name.
fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name: OsString = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// The nearest directory above that is there.
pub(super) fn existing(path: &Path) -> &Path {
    path.ancestors().find(|p| p.is_dir()).unwrap_or(Path::new("/"))
}

fn absolute(path: &Path) -> Result<PathBuf> {
    let path = std::path::absolute(path).map_err(|e| Error::io("find", path, e))?;
    // Without a slash at its end, behind which nothing can be written.
    Ok(path.components().collect())
}

/// Whether nothing is at `path`, or an empty directory.
fn is_free(path: &Path) -> Result<bool> {
    if path.symlink_metadata().is_ok_and(|m| m.is_symlink()) {
        return Ok(false);
    }
    match fs::read_dir(path) {
        Ok(mut entries) => Ok(entries.next().is_none()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::NotADirectory => Ok(false),
        Err(e) => Err(Error::io("list", path, e)),
    }
}

fn paths(order: &Order) -> Result<(PathBuf, PathBuf, PathBuf)> {
    let out = absolute(&order.out)?;
    if out.file_name().is_none() {
        return Err(Error::new(ErrorKind::Usage, format!("'{}' can't be made anew", out.display())));
    }
    let state = match &order.state {
        Some(state) => beside(&absolute(state)?, ".restoring"),
        None => beside(&out, ".restoring.state"),
    };
    let work = beside(&out, ".restoring");
    Ok((out, work, state))
}

/// The directory that is about to be made equal, if there is one that no restore has begun with.
pub(super) fn standing(order: &Order) -> Result<Option<PathBuf>> {
    let (out, work, _) = paths(order)?;
    let there = order.delta && is_dir(&out) && work.symlink_metadata().is_err();
    Ok(there.then_some(out))
}

fn is_dir(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|m| m.is_dir())
}

/// What is read for a restore, and by which flag; standard input and buckets are nowhere.
fn read_places(order: &Order) -> Vec<(String, PathBuf)> {
    let from = match &order.from {
        Origin::Path(path) => Some(path.clone()).filter(|p| p.as_os_str() != "-"),
        Origin::Archive(address) => address.dir().map(Path::to_owned),
    };
    let logs = order.logs.iter().filter_map(|log| match log {
        Source::Dir(dir) => Some(dir.clone()),
        Source::Archive(address) => address.dir().map(Path::to_owned),
    });
    let named = |flag: &str, path| (flag.to_owned(), path);
    from.into_iter()
        .map(|p| named("--from", p))
        .chain(logs.map(|p| named("--log", p)))
        .chain(order.bases.iter().map(|p| named("--base", p.clone())))
        .collect()
}

/// Nothing that is read, kept, or in use is written over.
fn check_harmless(order: &Order, out: &Path) -> Result<()> {
    let read = read_places(order);
    for path in [Some(out), order.state.as_deref()].into_iter().flatten() {
        guard::apart(path, &read)?;
    }
    guard::no_store(out)?;
    if let Some(parent) = order.state.as_deref().and_then(Path::parent) {
        guard::no_store(parent)?;
    }
    guard::unused(out)
}

/// Where a tar is written down, and where parts are fetched to.
pub(super) fn aside(order: &Order) -> Result<(PathBuf, PathBuf)> {
    let (out, _, state) = paths(order)?;
    Ok((beside(&out, ".restoring.tar"), state.join(FETCHED)))
}

/// The label of the backup with which this restore began, and the timeline that it follows, if it broke off.
pub(super) fn begun_with(order: &Order) -> Result<(Option<String>, Option<TimelineId>)> {
    let archive = match &order.from {
        Origin::Archive(_) => true,
        Origin::Path(path) => path.join(crate::archive::names::IDENTITY).is_file(),
    };
    let (_, _, state) = paths(order)?;
    let same = |n: &Begun| n.target == order.target.to_string() && n.delta == order.delta;
    let Some(note) = read_note(&state)?.filter(same) else { return Ok((None, None)) };
    let timeline = Some(TimelineId(note.timeline)).filter(|t| t.0 > 0 && note.line == order.line.to_string());
    Ok((Some(note.label).filter(|_| archive), timeline))
}

/// Removes a tar that was written down.
pub(super) fn forget(spool: &Path) {
    match fs::remove_file(spool) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            tracing::warn!("'{}' can't be removed: {e}", spool.display());
        }
        _ => {}
    }
}

fn read_note(state: &Path) -> Result<Option<Begun>> {
    let path = state.join(NOTE);
    let bytes = match fs::read(&path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        read => read.map_err(|e| Error::io("read", &path, e))?,
    };
    serde_json::from_slice(&bytes).map(Some).map_err(|e| {
        let text =
            format!("'{}' is damaged ({e}): remove '{}' and begin anew", path.display(), state.display());
        Error::new(ErrorKind::Corrupt, text)
    })
}

fn note(state: &Path, begun: &Begun) -> Result<()> {
    let text = serde_json::to_vec(begun).map_err(|e| Error::new(ErrorKind::Io, e.to_string()))?;
    disk::write_atomic(state, NOTE, &text)
}

/// Whether a state directory is there at most with a note that was not finished.
fn holds_note_only(path: &Path) -> Result<bool> {
    let mut entries = match fs::read_dir(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(true),
        read => read.map_err(|e| Error::io("list", path, e))?,
    };
    let ours =
        |e: io::Result<fs::DirEntry>| e.is_ok_and(|e| e.file_name().as_bytes().starts_with(NOTE.as_bytes()));
    Ok(entries.all(ours))
}

fn check_free(order: &Order, out: &Path) -> Result<()> {
    let delta = order.delta && is_dir(out);
    let out = Some(out).filter(|_| !delta);
    for path in out.into_iter().chain(order.state.as_deref()) {
        let shown = path.display();
        // A link would be replaced, and what is made beside it would lie on another file system.
        if let Ok(target) = fs::read_link(path) {
            let target = target.display();
            return Err(refused(format!(
                "'{shown}' is a symlink to '{target}': name the directory itself, or take the symlink away"
            )));
        }
        if is_free(path)? {
            continue;
        }
        let why = match () {
            () if !is_dir(path) => "is no directory; name a new or an empty one",
            () if out == Some(path) => {
                "is not an empty directory; name a new or an empty one, or make it equal with --delta"
            }
            () => "is not an empty directory; name a new or an empty one",
        };
        return Err(refused(format!("'{shown}' {why}")));
    }
    Ok(())
}

/// Why another restore than the one that has begun is refused, and the way out.
fn broken_off(known: &Begun, (out, work, state): (&Path, &Path, &Path)) -> Error {
    let there = work.symlink_metadata().is_ok();
    let (out, work, state) = (out.display(), work.display(), state.display());
    let what = format!("a restore of backup '{}' to {}", known.label, known.target);
    refused(if known.delta && there {
        format!(
            "'{work}' is the directory '{out}' itself, which {what} with --delta was making equal when it broke off; files \
             that no backup has may be in it, so it must not be removed: give the same command again, or rename it back to \
             '{out}', in part as it was and in part as it was to be, and remove '{state}'"
        )
    } else {
        let made = if there { format!(" and '{work}', which it made") } else { String::new() };
        format!("'{state}' belongs to {what} that broke off: give the same command again, or remove it{made}")
    })
}

/// Takes away the state directory of a restore that has laid nothing.
fn clear(state: &Path) -> Result<()> {
    let _held = disk::lock_dir(state)?;
    // The note last: without it nobody knows what the rest is.
    remove_but(state, NOTE)?;
    fs::remove_dir_all(state).map_err(|e| Error::io("remove", state, e))
}

impl Place {
    /// Whether a restore could begin, or go on.
    pub(super) fn look(order: &Order) -> Result<()> {
        let (out, _, state) = paths(order)?;
        check_harmless(order, &out)?;
        if read_note(&state)?.is_some_and(|n| n.whole) { Ok(()) } else { check_free(order, &out) }
    }

    /// Begins a restore, or goes on with the one that is there.
    ///
    /// # Errors
    /// Something else is there.
    pub(super) fn open(order: &Order, manifest: &Manifest, timeline: TimelineId) -> Result<Self> {
        let (out, work, at) = paths(order)?;
        let new = Begun {
            label: manifest.label.clone(),
            system: manifest.system.to_string(),
            end: manifest.end.to_string(),
            target: order.target.to_string(),
            delta: order.delta,
            leads: order.leader().is_some(),
            line: order.line.to_string(),
            timeline: timeline.0,
            whole: false,
        };
        let known = read_note(&at)?;
        let whole = known.as_ref().is_some_and(|k| k.whole);
        if !whole {
            check_free(order, &out)?;
        }
        let known = match known {
            Some(known) if (Begun { whole: false, ..known.clone() }) != new => {
                // With delta the directory itself is there once it was begun with.
                let begun = if known.delta { work.symlink_metadata().is_ok() } else { !is_free(&work)? };
                if begun || whole {
                    return Err(broken_off(&known, (&out, &work, &at)));
                }
                clear(&at)?;
                None
            }
            known => known,
        };
        if known.is_none() && (!is_free(&work)? || !holds_note_only(&at)?) {
            return Err(refused(format!(
                "'{}' or '{}' holds something that is of no restore; move it away",
                work.display(),
                at.display()
            )));
        }
        let is_new = known.is_none();
        let begun = known.unwrap_or(new);
        // The note before all else: what is there without one is not ours.
        disk::create_dir_durable(&at)?;
        if !whole {
            note(&at, &begun)?;
        }
        let state = Arc::new(StateDir::open_or_create(&at)?);
        let place = Self { out, work, state, kept: order.state.clone(), begun, new: is_new };
        if !whole {
            if place.state.control().is_none() {
                let name = order.leader().unwrap_or("restore");
                let control = Control::new(SystemId::NONE, Role::Follower, name, &place.out);
                place.state.persist(control)?;
            }
        }
        Ok(place)
    }

    /// From here on the directory is in the making, and under no name that anybody uses.
    pub(super) fn enter(&self) -> Result<()> {
        let there = |path: &Path| path.symlink_metadata().is_ok();
        if self.begun.delta && !there(&self.work) && there(&self.out) {
            return disk::rename_durable(&self.out, &self.work)
                .map_err(|e| e.wrap("the directory can't be set aside while it is made equal"));
        }
        disk::create_dir_durable(&self.work)
    }

    /// What an operator has to know when it breaks off in the middle.
    pub(super) fn broken(&self, e: Error) -> Error {
        if !self.begun.delta || self.work.symlink_metadata().is_err() {
            return e;
        }
        let (out, work) = (self.out.display(), self.work.display());
        let text = format!(
            "{e}; '{out}' is called '{work}' until it is made equal: give the same command again, and do not remove it"
        );
        Error::new(e.kind(), text)
    }

    /// Whether what is there is made equal.
    pub(super) fn is_delta(&self) -> bool {
        self.begun.delta
    }

    /// The directory in the making.
    pub(super) fn work(&self) -> &Path {
        &self.work
    }

    /// Its state directory.
    pub(super) fn state(&self) -> &Arc<StateDir> {
        &self.state
    }

    /// Whether the new timeline has begun: then its log is not to be touched any more.
    pub(super) fn leads(&self) -> bool {
        self.state.control().is_some_and(|c| c.role == Role::Leader)
    }

    /// Where the log is fetched to.
    pub(super) fn log(&self) -> Result<PathBuf> {
        if !self.leads() {
            return Ok(self.state.log());
        }
        let again = self.state.path().join(FETCHED).join("again");
        fs::create_dir_all(&again).map_err(|e| Error::io("make", &again, e))?;
        Ok(again)
    }

    /// Whether only the move is left.
    pub(super) fn is_whole(&self) -> bool {
        self.begun.whole
    }

    /// Nothing comes of a restore that has just begun.
    pub(super) fn discard(self) {
        forget(&beside(&self.out, ".restoring.tar"));
        if !self.new {
            return;
        }
        if let Err(e) = fs::remove_dir_all(self.state.path()) {
            tracing::warn!("what was made for it can't be removed: {e}");
        }
    }

    /// Moves everything to where it belongs.
    pub(super) fn finish(mut self) -> Result<()> {
        if !self.begun.whole {
            self.begun.whole = true;
            note(self.state.path(), &self.begun)?;
        }
        let pass = |point: &'static str, path: &Path| {
            failpoint::pass(point).map_err(|e| Error::io("complete", path, e))
        };
        pass("restore::done", &self.out)?;
        if self.work.symlink_metadata().is_ok() {
            disk::rename_durable(&self.work, &self.out).map_err(|e| {
                e.wrap("the directory is whole, but can't take its name; a mount point can't be replaced, so name a directory below it")
            })?;
        }
        pass("restore::moved", &self.out)?;
        forget(&beside(&self.out, ".restoring.tar"));
        let fetched = self.state.path().join(FETCHED);
        match fs::remove_dir_all(&fetched) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(Error::io("remove", &fetched, e)),
            _ => {}
        }
        let state = self.state.path().to_owned();
        match &self.kept {
            Some(kept) => {
                disk::rename_durable(&state, kept)?;
                disk::remove_durable(&kept.join(NOTE))
            }
            None => {
                // The note last: without it nobody knows what the rest is.
                remove_but(&state, NOTE)?;
                fs::remove_dir_all(&state).map_err(|e| Error::io("remove", &state, e))?;
                disk::sync_dir(state.parent().unwrap_or(Path::new("/")))
            }
        }
    }
}

fn remove_but(dir: &Path, name: &str) -> Result<()> {
    for entry in fs::read_dir(dir).map_err(|e| Error::io("list", dir, e))? {
        let entry = entry.map_err(|e| Error::io("list", dir, e))?;
        let path = entry.path();
        let kind = entry.file_type().map_err(|e| Error::io("look at", &path, e))?;
        let gone = match kind.is_dir() {
            _ if entry.file_name() == name => Ok(()),
            true => fs::remove_dir_all(&path),
            false => fs::remove_file(&path),
        };
        gone.map_err(|e| Error::io("remove", &path, e))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_beside_a_directory_are_beside_it_however_it_is_written() {
        for written in ["/srv/pg", "/srv/pg/", "/srv//pg/."] {
            let order = Order {
                from: Origin::Path(PathBuf::new()),
                backup: None,
                bases: Vec::new(),
                logs: Vec::new(),
                target: crate::restore::Target::Latest,
                out: PathBuf::from(written),
                state: None,
                node: None,
                line: crate::restore::Line::Latest,
                delta: false,
                cloning: crate::restore::Cloning::Auto,
                allow_gap: false,
            };
            let (out, work, state) = paths(&order).unwrap();
            let want = ["/srv/pg", "/srv/pg.restoring", "/srv/pg.restoring.state"].map(PathBuf::from);
            assert_eq!([out, work, state], want);
            assert!(paths(&Order { out: PathBuf::from("/"), ..order }).is_err());
        }
    }
}
