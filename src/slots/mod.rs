//! Slots: a node's durable memory of each follower, by name: how far it has confirmed, and so which log it
//! still needs. A slot is made when its follower first connects, or by hand; it is kept in step with what the
//! follower confirms, and holds log while the follower is away. Which slots may hold how much, and which log
//! may go, is decided by [`retention`](crate::retention) and carried out by [`Slots::clean_up`].
//!
//! A follower keeps the slots of its upstream, too: they are *mirrored*, come, move and go as the upstream says, and
//! let this node serve the others should it lead one day.
//!
//! In memory a slot moves with every acknowledgement. On disk it follows from time to time, and always before log
//! goes that the file would still claim: after a crash no slot claims log that is gone, unless it says that it
//! is lost; and one that says so though its log is still there is good again by itself.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::sync::Notify;

use crate::error::{Error, ErrorKind, Result};
use crate::net::wall_clock;
use crate::position::{Lsn, SegmentNo, TimelineId};
use crate::retention::{self, Holder, Limits, Picture, Plan, Reason, State, first_needed};
use crate::session::valid_name;
use crate::wire::{Below, SLOTS_MAX, SlotAt};
use crate::{failpoint, log};

mod absent;
mod file;
mod pins;

pub use absent::Absent;
pub use pins::Pin;

/// Positions that moved are written so often at most, as long as no log goes because of them.
const SAVE_EVERY: Duration = Duration::from_secs(10);

/// What a slot is for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum Kind {
    /// A follower that takes log: it is held from what the follower has confirmed.
    Follower = 1,
    /// A first copy or a resync: log is held from its snapshot on.
    Copy = 2,
    /// It was made by hand, and nobody has come yet.
    Manual = 3,
}

impl Kind {
    const ALL: [Self; 3] = [Self::Follower, Self::Copy, Self::Manual];
}

/// Whose slot it is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum Origin {
    /// Made here.
    Own = 1,
    /// The upstream's.
    Mirrored = 2,
}

/// One slot in memory.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Slot {
    kind: Kind,
    origin: Origin,
    position: Lsn,
    given_up: Option<Reason>,
    inactive_since: i64,
    /// The connection that holds it.
    connection: Option<u64>,
    /// Its follower is connected to the upstream, or is the upstream.
    active_above: bool,
    warned: Option<SegmentNo>,
    /// Made for a copy that its follower has not begun: it goes with the connection.
    tentative: bool,
}

impl Slot {
    fn new(kind: Kind, origin: Origin, position: Lsn, inactive_since: i64) -> Self {
        Self {
            kind,
            origin,
            position,
            given_up: None,
            inactive_since,
            connection: None,
            active_above: false,
            warned: None,
            tentative: false,
        }
    }

    fn is_active(&self) -> bool {
        self.connection.is_some() || self.active_above
    }

    fn holder(&self) -> Holder {
        Holder {
            position: self.position,
            attached: self.is_active(),
            copying: self.kind == Kind::Copy && self.connection.is_some(),
            inactive_since: self.inactive_since,
            given_up: self.given_up,
            warned: self.warned,
        }
    }
}

#[derive(Debug, Default)]
struct Inner {
    slots: BTreeMap<String, Slot>,
    connections: u64,
    /// The file does not say what memory does.
    dirty: bool,
    saved: Option<Instant>,
    /// Counts what is told downstream.
    version: u64,
}

/// A slot as `status` and `towline slot` show it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct SlotStatus {
    /// Name of the follower.
    pub name: String,
    /// What it is for.
    pub kind: Kind,
    /// Whose it is.
    pub origin: Origin,
    /// Reserved, extended, unreserved or lost; null while it reserves nothing.
    pub state: Option<State>,
    /// Why it is lost or unreserved.
    pub reason: Option<Reason>,
    /// Log from here on is needed; null while it reserves nothing.
    #[serde(serialize_with = "text")]
    pub position: Option<Lsn>,
    /// Bytes on disk, from its position on, that would go without slots.
    pub retained_bytes: u64,
    /// Bytes of log that can be written before it is lost; null when no number ends it.
    pub bytes_left: Option<i64>,
    /// Its follower is connected.
    pub active: bool,
    /// Since when it is away, ns since 1970; null while it is connected.
    pub inactive_since: Option<i64>,
}

fn text<S: serde::Serializer>(lsn: &Option<Lsn>, s: S) -> std::result::Result<S::Ok, S::Error> {
    match lsn {
        Some(lsn) => s.collect_str(lsn),
        None => s.serialize_none(),
    }
}

/// What a clean-up works on.
#[derive(Clone, Debug)]
pub struct Ground {
    /// The directory of the segments.
    pub log: PathBuf,
    /// Their timeline.
    pub timeline: TimelineId,
    /// End of the log; the start of the newest segment counts when that is later.
    pub end: Lsn,
    /// The node itself needs log from here on.
    pub own: Lsn,
    /// The archive has confirmed every segment before this one; `None`: nothing is archived here.
    pub unarchived: Option<SegmentNo>,
    /// Bytes that may still be written to the disk.
    pub free: u64,
    /// A write has just failed for want of room.
    pub full: bool,
    /// The limits in force.
    pub limits: Limits,
}

/// What a clean-up did.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Cleaned {
    /// Segments removed, and what they took on disk.
    pub removed: u64,
    /// See `removed`.
    pub bytes: u64,
    /// Still missing from `min_free_disk`.
    pub short: u64,
    /// Slots that are unreserved or lost since.
    pub changed: Vec<(String, State, Reason)>,
}

/// The slots of a node.
#[derive(Debug)]
pub struct Slots {
    dir: PathBuf,
    inner: Mutex<Inner>,
    /// Held while log is removed, and while a slot is made or set back: neither sees the other half done.
    gate: Mutex<()>,
    /// A slot has left a segment behind.
    moved: Notify,
    /// What backups need. Taken after the gate, never together with `inner`.
    pins: Mutex<pins::Pins>,
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic elsewhere does not make plain values wrong.
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Slots {
    /// Reads the slots that the state directory `dir` records. Nobody is connected yet.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] when the file is damaged, naming the remedy.
    pub fn open(dir: &Path) -> Result<Self> {
        let inner = Inner { slots: file::load(dir, wall_clock())?, ..Inner::default() };
        Ok(Self {
            dir: dir.to_owned(),
            inner: Mutex::new(inner),
            gate: Mutex::new(()),
            moved: Notify::new(),
            pins: Mutex::default(),
        })
    }

    /// A follower connects: log from `position` on is held for as long as the hold lives, and after that within
    /// the limits. Blocks while log is removed; what was needed may be gone by then, so look again.
    ///
    /// # Errors
    /// [`ErrorKind::Refused`] when there are [`SLOTS_MAX`] slots already. That the file can't be written is no error:
    /// it is tried again.
    pub fn attach(self: &Arc<Self>, name: &str, position: Lsn, kind: Kind) -> Result<Hold> {
        let _gate = lock(&self.gate);
        let mut inner = lock(&self.inner);
        if !inner.slots.contains_key(name) && inner.slots.len() >= SLOTS_MAX {
            return Err(too_many());
        }
        inner.connections += 1;
        let connection = inner.connections;
        let mut fresh = Slot::new(kind, Origin::Own, Lsn::ZERO, wall_clock());
        fresh.tentative = kind == Kind::Copy;
        let slot = inner.slots.entry(name.to_owned()).or_insert(fresh);
        // What the file claims must not be later than what the follower needs.
        let back = slot.position == Lsn::ZERO || position < slot.position;
        (slot.kind, slot.origin, slot.position) = (kind, Origin::Own, position);
        (slot.given_up, slot.warned, slot.connection) = (None, None, Some(connection));
        slot.active_above = false;
        slot.tentative &= kind == Kind::Copy;
        inner.touch();
        drop(inner);
        if back && let Err(e) = self.save() {
            tracing::warn!("the slot of follower '{name}' can't be written yet: {e}");
        }
        Ok(Hold { slots: Arc::clone(self), name: name.to_owned(), connection })
    }

    /// Makes a slot by hand. It reserves nothing until its follower comes, or all from `position` on.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] for a name that no node can have, [`ErrorKind::Refused`] when it exists or there are too
    /// many, or why it can't be written.
    pub fn create(&self, name: &str, position: Option<Lsn>) -> Result<()> {
        if !valid_name(name) {
            let text = format!(
                "slot name '{}' is not allowed: it is that of a node, 1 to 63 letters, digits, '.', '_' or '-', the first \
                 a letter or digit",
                name.escape_debug()
            );
            return Err(Error::new(ErrorKind::Usage, text));
        }
        let _gate = lock(&self.gate);
        let mut inner = lock(&self.inner);
        if inner.slots.contains_key(name) {
            let text = format!("slot '{name}' exists already; `towline slot show {name}` says what it is");
            return Err(Error::new(ErrorKind::Refused, text));
        }
        if inner.slots.len() >= SLOTS_MAX {
            return Err(too_many());
        }
        let slot = Slot::new(Kind::Manual, Origin::Own, position.unwrap_or_default(), wall_clock());
        inner.slots.insert(name.to_owned(), slot);
        self.command(inner, name, None)
    }

    /// Takes a slot away; what it held may go.
    ///
    /// # Errors
    /// [`ErrorKind::Missing`] when there is none, [`ErrorKind::Refused`] for one that is in use or mirrored, or why
    /// the file can't be written.
    pub fn remove(&self, name: &str) -> Result<()> {
        let _gate = lock(&self.gate);
        let mut inner = lock(&self.inner);
        let old = inner.free(name)?.clone();
        inner.slots.remove(name);
        self.command(inner, name, Some(old))
    }

    /// Moves a slot forward by hand, to at most `end`; log from `oldest` on is here.
    ///
    /// # Errors
    /// As [`Self::remove`]; [`ErrorKind::Refused`] for a position that is behind the slot or not in the log.
    pub fn advance(&self, name: &str, to: Lsn, (oldest, end): (Lsn, Lsn)) -> Result<()> {
        let _gate = lock(&self.gate);
        let mut inner = lock(&self.inner);
        let old = inner.free(name)?.clone();
        let refused = |why: String| {
            Err(Error::new(ErrorKind::Refused, format!("slot '{name}' can't be moved to {to}: {why}")))
        };
        if to < old.position {
            return refused(format!("it is at {} and moves forward only", old.position));
        }
        if to > end {
            return refused(format!("the log ends at {end}"));
        }
        if to < oldest {
            return refused(format!("the oldest log here begins at {oldest}"));
        }
        if let Some(slot) = inner.slots.get_mut(name) {
            (slot.position, slot.given_up, slot.warned) = (to, None, None);
        }
        self.command(inner, name, Some(old))
    }

    /// Makes a change by hand durable, or takes it back.
    fn command(&self, mut inner: MutexGuard<'_, Inner>, name: &str, old: Option<Slot>) -> Result<()> {
        inner.touch();
        drop(inner);
        if let Err(e) = self.save() {
            let mut inner = lock(&self.inner);
            match old {
                Some(old) => drop(inner.slots.insert(name.to_owned(), old)),
                None => drop(inner.slots.remove(name)),
            }
            return Err(e);
        }
        self.moved.notify_one();
        Ok(())
    }

    /// The upstream has these slots; `own` is this node's name, whose slot is for what it holds already. `upstream` is the
    /// upstream's name, and the end of the log here: should it have followed this node once, it has all of that.
    pub fn mirror(&self, own: &str, upstream: (&str, Lsn), told: &[SlotAt]) {
        let now = wall_clock();
        let mut inner = lock(&self.inner);
        let known = |name: &str| told.iter().any(|t| t.name == name && name != own);
        let before = inner.slots.len();
        inner.slots.retain(|name, s| s.origin == Origin::Own || known(name));
        let mut touched = inner.slots.len() != before;
        for (_, slot) in
            inner.slots.iter_mut().filter(|(n, s)| s.active_above && !known(n) && *n != upstream.0)
        {
            (slot.active_above, slot.inactive_since, touched) = (false, now, true);
        }
        if let Some(slot) = inner.slots.get_mut(upstream.0).filter(|s| s.origin == Origin::Own) {
            let (name, position, active) = (upstream.0.to_owned(), upstream.1, true);
            touched |= slot.follow(&SlotAt { name, position, active }, now);
        }
        let others = told.iter().filter(|t| t.name != own && t.name != upstream.0);
        for at in others.filter(|t| valid_name(&t.name)) {
            if !inner.slots.contains_key(&at.name) {
                if inner.slots.len() >= SLOTS_MAX {
                    tracing::debug!("slot '{}' of the upstream is one too many here", at.name);
                    continue;
                }
                let fresh = Slot::new(Kind::Follower, Origin::Mirrored, Lsn::ZERO, now);
                inner.slots.insert(at.name.clone(), fresh);
            }
            if let Some(slot) = inner.slots.get_mut(&at.name) {
                touched |= slot.follow(at, now);
            }
        }
        if touched {
            inner.touch();
        }
    }

    /// These nodes follow this one through others. One that has a slot here, from a time when it came itself, is not
    /// away: the slot goes on with it, so that it may come back.
    fn below(&self, nodes: &[Below]) {
        let now = wall_clock();
        let mut inner = lock(&self.inner);
        let mut touched = false;
        for node in nodes.iter().filter(|n| n.flush != Lsn::ZERO && n.state != "away") {
            let own =
                |s: &&mut Slot| s.origin == Origin::Own && s.connection.is_none() && s.position != Lsn::ZERO;
            if let Some(slot) = inner.slots.get_mut(&node.name).filter(own) {
                touched |= slot.lives_elsewhere(node.flush, true, now);
            }
        }
        if touched {
            inner.touch();
        }
    }

    /// This node leads: what it mirrored is its own from now on.
    pub fn lead(&self) {
        let mut inner = lock(&self.inner);
        let now = wall_clock();
        for slot in inner.slots.values_mut().filter(|s| s.origin == Origin::Mirrored || s.active_above) {
            (slot.origin, slot.active_above, slot.inactive_since) = (Origin::Own, false, now);
        }
        inner.touch();
    }

    /// What to tell those that follow this node, and a number that changes when it does.
    #[must_use]
    pub fn told(&self) -> (u64, Vec<SlotAt>) {
        let inner = lock(&self.inner);
        let held = inner.slots.iter().filter(|(_, s)| s.given_up.is_none());
        let at = |(name, s): (&String, &Slot)| SlotAt {
            name: name.clone(),
            position: s.position,
            active: s.is_active(),
        };
        (inner.version, held.map(at).collect())
    }

    /// Waits until a slot has left a segment behind since the last call.
    pub async fn moved(&self) {
        self.moved.notified().await;
    }

    /// Writes what has moved, if anything has.
    pub fn flush(&self) -> Result<()> {
        let _gate = lock(&self.gate);
        if lock(&self.inner).dirty { self.save() } else { Ok(()) }
    }

    /// The gate is held.
    fn save(&self) -> Result<()> {
        let bytes = {
            let mut inner = lock(&self.inner);
            // What moves from here on makes it dirty again.
            inner.dirty = false;
            file::encode(&inner.slots)
        };
        let saved = file::save(&self.dir, &bytes);
        let mut inner = lock(&self.inner);
        match &saved {
            Ok(()) => inner.saved = Some(Instant::now()),
            Err(_) => inner.dirty = true,
        }
        saved
    }

    fn plan(&self, ground: &Ground) -> Result<(Vec<String>, Picture, Plan)> {
        let stored = log::stored(&ground.log, ground.timeline)?;
        let pinned = lock(&self.pins).least(Instant::now());
        let newest = stored.last().map_or(Lsn::ZERO, |s| s.segment.start());
        let (names, slots) = {
            let inner = lock(&self.inner);
            inner.slots.iter().map(|(n, s)| (n.clone(), s.holder())).unzip()
        };
        let picture = Picture {
            slots,
            log: stored,
            end: ground.end.max(newest),
            own: pinned.map_or(ground.own, |p| p.min(ground.own)),
            unarchived: ground.unarchived,
            free: ground.free,
            full: ground.full,
            now: wall_clock(),
        };
        let plan = retention::plan(&ground.limits, &picture);
        Ok((names, picture, plan))
    }

    /// All slots as they stand, by name.
    ///
    /// # Errors
    /// Why the log can't be looked at.
    pub fn list(&self, ground: &Ground) -> Result<Vec<SlotStatus>> {
        let (names, _, plan) = self.plan(ground)?;
        let inner = lock(&self.inner);
        let each = names.into_iter().zip(plan.verdicts);
        let shown = each.filter_map(|(name, v)| inner.slots.get(&name).map(|s| s.show(&name, v)));
        Ok(shown.collect())
    }

    /// Removes the log that may go, in this order: what becomes of the slots is made durable, then files go.
    ///
    /// # Errors
    /// Why it can't be done; what was not done is left for the next time.
    pub fn clean_up(&self, ground: &Ground) -> Result<Cleaned> {
        let _gate = lock(&self.gate);
        let (names, picture, plan) = self.plan(ground)?;
        let newest = picture.log.last().map_or(SegmentNo(0), |s| s.segment);
        let changed = lock(&self.inner).settle(&names, &plan, newest);
        let frees = plan.keep > picture.log.first().map_or(plan.keep, |s| s.segment);
        let due = {
            let inner = lock(&self.inner);
            inner.dirty && (frees || inner.saved.is_none_or(|at| at.elapsed() >= SAVE_EVERY))
        };
        let mut removed = 0;
        if due && let Err(e) = self.save() {
            if !(frees && e.kind() == ErrorKind::DiskFull) {
                return Err(e);
            }
            // Room for the file itself: one segment goes first. A slot that claims it is seen to be lost.
            removed += self.take(ground, picture.log.first().map_or(plan.keep, |s| s.segment.next()))?;
            self.save()?;
        }
        if frees {
            removed += self.take(ground, plan.keep)?;
        }
        Ok(Cleaned { removed, bytes: if removed > 0 { plan.frees } else { 0 }, short: plan.short, changed })
    }

    fn take(&self, ground: &Ground, keep: SegmentNo) -> Result<u64> {
        let pass = |point| failpoint::pass(point).map_err(|e| Error::io("remove log in", &ground.log, e));
        pass("slots::before_remove")?;
        let removed = log::remove_before(&ground.log, ground.timeline, keep)?;
        pass("slots::after_remove")?;
        Ok(removed)
    }
}

/// There is none of that name.
pub fn no_slot(name: &str) -> Error {
    let text = format!("there is no slot '{}'; `towline slot list` shows all", name.escape_debug());
    Error::new(ErrorKind::Missing, text)
}

fn too_many() -> Error {
    let text = format!(
        "there are {SLOTS_MAX} slots, as many as a node may have; `towline slot list` shows them, `towline slot drop NAME` \
         takes one away that is not needed any more"
    );
    Error::new(ErrorKind::Refused, text)
}

impl Inner {
    /// Something of what is told and written has changed.
    fn touch(&mut self) {
        self.dirty = true;
        self.version += 1;
    }

    /// A slot that may be changed by hand.
    fn free(&self, name: &str) -> Result<&Slot> {
        let Some(slot) = self.slots.get(name) else {
            return Err(no_slot(name));
        };
        if slot.origin == Origin::Mirrored {
            let text = format!("slot '{name}' is the upstream's; change it there, and it changes here");
            return Err(Error::new(ErrorKind::Refused, text));
        }
        if slot.connection.is_some() {
            let text = format!("slot '{name}' is in use: its follower is connected; stop the follower first");
            return Err(Error::new(ErrorKind::Refused, text));
        }
        Ok(slot)
    }

    /// Takes over what was decided; what of it is news.
    fn settle(&mut self, names: &[String], plan: &Plan, newest: SegmentNo) -> Vec<(String, State, Reason)> {
        let mut news = Vec::new();
        let mut touched = false;
        for (name, verdict) in names.iter().zip(&plan.verdicts) {
            let Some(slot) = self.slots.get_mut(name) else { continue };
            let lost = verdict.reason.filter(|_| verdict.state == Some(State::Lost));
            let warned = verdict.reason.filter(|_| verdict.state == Some(State::Unreserved));
            if let Some(reason) = lost.filter(|_| slot.given_up.is_none()) {
                news.push((name.clone(), State::Lost, reason));
            } else if let Some(reason) = warned.filter(|_| slot.warned.is_none()) {
                news.push((name.clone(), State::Unreserved, reason));
            }
            slot.warned = warned.map(|_| slot.warned.unwrap_or(newest));
            touched |= slot.given_up != lost;
            slot.given_up = lost;
        }
        if touched {
            self.touch();
        }
        news
    }
}

impl Slot {
    /// The upstream says where it is. Whether anything changed.
    fn follow(&mut self, at: &SlotAt, now: i64) -> bool {
        let before = (self.position, self.given_up, self.is_active());
        if self.origin == Origin::Mirrored {
            self.position = at.position;
            if self.active_above || at.active {
                self.inactive_since = now;
            }
            self.active_above = at.active;
        } else if self.connection.is_none() {
            if self.active_above {
                self.inactive_since = now;
            }
            self.active_above = at.active;
            self.lives_elsewhere(at.position, at.active, now);
        }
        before != (self.position, self.given_up, self.is_active())
    }

    /// Its follower was here once, and is at another node now. Whether anything changed.
    fn lives_elsewhere(&mut self, position: Lsn, active: bool, now: i64) -> bool {
        let before = (self.position, self.given_up);
        self.position = self.position.max(position);
        if active {
            self.inactive_since = now;
            self.given_up = self.given_up.filter(|r| *r != Reason::Idle);
        }
        before != (self.position, self.given_up)
    }

    fn show(&self, name: &str, verdict: retention::Verdict) -> SlotStatus {
        SlotStatus {
            name: name.to_owned(),
            kind: self.kind,
            origin: self.origin,
            state: verdict.state,
            reason: verdict.reason,
            position: Some(self.position).filter(|p| *p != Lsn::ZERO),
            retained_bytes: verdict.held,
            bytes_left: verdict.left,
            active: self.is_active(),
            inactive_since: (!self.is_active()).then_some(self.inactive_since),
        }
    }
}

/// A connected follower's hold on its slot. Dropped, the follower is away, and a slot that was made for a copy that it
/// never began is gone.
#[derive(Debug)]
pub struct Hold {
    slots: Arc<Slots>,
    name: String,
    connection: u64,
}

impl Hold {
    /// These nodes follow the follower, directly or through others.
    pub fn below(&self, nodes: &[Below]) {
        self.slots.below(nodes);
    }

    /// The follower has begun what it came for: the slot, if it was made for it, outlives the connection.
    pub fn stays(&self) {
        let mut inner = lock(&self.slots.inner);
        if let Some(slot) = inner.slots.get_mut(&self.name).filter(|s| s.connection == Some(self.connection))
        {
            slot.tentative = false;
        }
    }

    /// The follower has everything before `flush` durably.
    pub fn confirmed(&self, flush: Lsn) {
        let mut inner = lock(&self.slots.inner);
        let Some(slot) = inner.slots.get_mut(&self.name).filter(|s| s.connection == Some(self.connection))
        else {
            return;
        };
        if flush <= slot.position {
            return;
        }
        let left = first_needed(flush) > first_needed(slot.position);
        slot.position = flush;
        inner.touch();
        drop(inner);
        if left {
            self.slots.moved.notify_one();
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut inner = lock(&self.slots.inner);
        if let Some(slot) = inner.slots.get_mut(&self.name).filter(|s| s.connection == Some(self.connection))
        {
            slot.connection = None;
            slot.inactive_since = wall_clock();
            // One who was refused by his own directory has nothing that he could go on with.
            let gone = slot.tentative;
            if gone {
                inner.slots.remove(&self.name);
                // The next look writes that, however short a time ago it wrote.
                inner.saved = None;
            }
            inner.touch();
            drop(inner);
            if gone {
                self.slots.moved.notify_one();
            }
        }
    }
}

#[cfg(test)]
mod tests;
