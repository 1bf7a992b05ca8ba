//! What may be removed from an archive: a plan, pure; and carrying it out.
//!
//! Kept are the newest full backups, as many as asked for; those that are younger than the days asked for, and the newest
//! one before them, from which every moment of those days can be restored; pinned ones; and whatever a kept one stands on.
//! An incremental backup goes with its full one, unless it is pinned. Log is kept from the start of the oldest backup that
//! is kept for another reason than its pin: a pinned one carries the log it needs, or keeps what it does not carry.
//!
//! A backup without a manifest is one that is being made, until two days after its newest object, and what it stands on, by the
//! note that it left in the archive, is kept meanwhile. After that its making was broken off: it goes, and so does the note.
//!
//! Of timelines before the oldest that a kept backup is of all log goes, and so does that of side lines ([`lines`]); then their
//! histories, unless a pinned backup needs them: where the others branched off is told by the histories of the later ones, too.
//!
//! What is not understood is never removed, and as long as it is there, among the log or the backups, no log is. What lies
//! beside the directories of an archive is not looked at.

use std::collections::{BTreeMap, BTreeSet};

use super::inventory::{Backup, Inventory, What};
use super::making::{self, Making};
use super::names::EndedName;
use super::{Archive, SegmentName, names};
use crate::error::{Error, ErrorKind, Result};
use crate::manifest::{self, Manifest};
use crate::position::{Lsn, SegmentNo, TimelineId};
use crate::segment;

mod lines;

use lines::Lines;
pub use lines::Side;

/// A backup without a manifest is taken for one that is being made for this long after its newest object: seconds. No part of
/// one takes so long: each has at most 256 MiB.
const UNFINISHED_AFTER: i64 = 48 * 3600;
const DAY_NS: i64 = 86_400_000_000_000;

/// What was asked for; at least one of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Rule {
    /// So many full backups, at least 1.
    pub keep_full: Option<u64>,
    /// Every moment of so many days.
    pub keep_days: Option<u64>,
}

/// What is to become of a backup.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fate {
    /// Which.
    pub label: String,
    /// Whether it stays.
    pub keep: bool,
    /// Why.
    pub why: String,
    /// What it takes.
    pub objects: u64,
    /// See `objects`.
    pub bytes: u64,
}

/// What is to be done.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Plan {
    /// Every backup, those first that go first: what stands on another before that.
    pub backups: Vec<Fate>,
    /// Segments of these timelines before these go...
    pub log: Vec<(TimelineId, SegmentNo)>,
    /// ... except those that a kept backup lacks.
    pub except: BTreeSet<(TimelineId, SegmentNo)>,
    /// Timelines beside the way of the newest one that no kept backup leads to: all their log goes, too.
    pub sides: Vec<Side>,
    /// Timelines whose histories go: all their log does.
    pub histories: Vec<TimelineId>,
    /// Why no log goes, if it is so.
    pub log_stays: Option<String>,
    /// Notes of backups that are not being made any more.
    pub notes: Vec<String>,
    /// Notes that were known.
    pub known: BTreeSet<String>,
}

fn full(b: &Backup) -> Option<&Manifest> {
    b.manifest().filter(|m| m.base.is_none())
}

/// Decides. `now` is in nanoseconds since 1970.
#[must_use]
pub fn plan(inventory: &Inventory, rule: Rule, now: i64) -> Plan {
    let mut why: BTreeMap<&str, String> = BTreeMap::new();
    let mut fulls: Vec<&Manifest> = inventory.backups.iter().filter_map(full).collect();
    fulls.sort_by_key(|m| std::cmp::Reverse((m.end_time, m.end)));
    for (i, m) in fulls.iter().enumerate() {
        if rule.keep_full.is_some_and(|n| (i as u64) < n) {
            why.insert(&m.label, format!("full backup {} of the newest", i + 1));
        }
    }
    if let Some(days) = rule.keep_days {
        let since = now.saturating_sub(i64::try_from(days).unwrap_or(i64::MAX).saturating_mul(DAY_NS));
        for m in &fulls {
            why.entry(&m.label).or_insert_with(|| format!("needed for the last {days} days"));
            // The first that is older is the last that is needed.
            if m.end_time <= since {
                break;
            }
        }
    }
    if fulls.len() == 1 {
        why.entry(&fulls[0].label).or_insert_with(|| "the only full backup".to_owned());
    }
    // What stands on one that is kept, however far up.
    let whole: BTreeMap<&str, &Manifest> =
        inventory.backups.iter().filter_map(|b| b.manifest().map(|m| (b.label.as_str(), m))).collect();
    for m in whole.values().filter(|m| m.base.is_some()) {
        if let Some(root) = chain(&whole, m).last().filter(|r| why.contains_key(r.label.as_str())) {
            why.insert(&m.label, format!("stands on '{}'", root.label));
        }
    }
    let window: Vec<&Manifest> =
        whole.values().filter(|m| why.contains_key(m.label.as_str())).copied().collect();
    for b in inventory.backups.iter().filter(|b| b.pinned) {
        why.insert(&b.label, "pinned".to_owned());
        for base in b.manifest().map(|m| chain(&whole, m)).unwrap_or_default() {
            why.entry(&base.label).or_insert_with(|| format!("pinned '{}' stands on it", b.label));
        }
    }
    let (making, over): (Vec<&Making>, Vec<&Making>) = inventory
        .making
        .iter()
        .partition(|m| !whole.contains_key(m.label.as_str()) && is_fresh(m.modified, now));
    for m in &making {
        let Some(base) = m.base.as_deref().and_then(|b| whole.get(b)) else { continue };
        for base in std::iter::once(*base).chain(chain(&whole, base)) {
            why.entry(&base.label)
                .or_insert_with(|| format!("'{}', which is being made, stands on it", m.label));
        }
    }
    let mut plan = Plan { backups: fates(inventory, &why, now), ..Plan::default() };
    plan.notes = over.iter().map(|m| m.label.clone()).collect();
    plan.known = inventory.making.iter().map(|m| m.label.clone()).collect();
    plan.log(inventory, &window, &why);
    plan
}

/// Whether something may still come of what was made then.
fn is_fresh(modified: i64, now: i64) -> bool {
    now / 1_000_000_000 - modified < UNFINISHED_AFTER
}

/// What a backup stands on, the nearest first.
fn chain<'a>(whole: &BTreeMap<&str, &'a Manifest>, of: &Manifest) -> Vec<&'a Manifest> {
    let mut out: Vec<&Manifest> = Vec::new();
    let mut base = of.base.as_ref();
    while let Some(m) = base.and_then(|b| whole.get(b.label.as_str())) {
        if out.iter().any(|o| o.label == m.label) || m.label == of.label {
            break;
        }
        out.push(m);
        base = m.base.as_ref();
    }
    out
}

fn fates(inventory: &Inventory, why: &BTreeMap<&str, String>, now: i64) -> Vec<Fate> {
    let fate = |b: &Backup| {
        let kept = match (&b.what, why.get(b.label.as_str())) {
            (_, Some(why)) => Ok(why.clone()),
            (What::Whole(m, _), None) if m.base.is_some() => Err("stands on nothing that is kept".to_owned()),
            (What::Whole(..), None) => Err("not asked for".to_owned()),
            (What::Damaged(e), None) => Ok(format!("not understood: {e}")),
            (What::Unfinished, None) if is_fresh(b.modified, now) => {
                Ok("no manifest: it may be being made".to_owned())
            }
            (What::Unfinished, None) => Err("never finished".to_owned()),
        };
        let keep = kept.is_ok();
        let why = kept.unwrap_or_else(|why| why);
        Fate { label: b.label.clone(), keep, why, objects: b.objects, bytes: b.bytes }
    };
    // Of those that are no backups any more nothing can be told: they go first.
    let age = |b: &&Backup| std::cmp::Reverse(b.manifest().map_or(i64::MAX, |m| m.end_time));
    let mut all: Vec<&Backup> = inventory.backups.iter().collect();
    all.sort_by_key(|b| (age(b), b.label.clone()));
    all.into_iter().map(fate).collect()
}

impl Plan {
    fn log(&mut self, inventory: &Inventory, window: &[&Manifest], why: &BTreeMap<&str, String>) {
        let odd = inventory.backups.iter().find(|b| matches!(b.what, What::Damaged(_)));
        if let Some(odd) = odd {
            let text = format!("backup '{}' is not understood, so what it needs is not known", odd.label);
            self.log_stays = Some(text);
            return;
        }
        if let Some(stray) = inventory.strays.first() {
            let n = inventory.strays.len();
            let more = if n > 1 { format!(", and {} more like it,", n - 1) } else { String::new() };
            let text = format!(
                "'{stray}'{more} is no object of an archive, so what it is part of is not known; move it out of the archive"
            );
            self.log_stays = Some(text);
            return;
        }
        if window.is_empty() {
            self.log_stays = Some("no backup is kept that log could be replayed on".to_owned());
            return;
        }
        let lines = Lines::of(inventory, window);
        let oldest = lines.oldest();
        let mut last: BTreeMap<TimelineId, SegmentNo> = BTreeMap::new();
        let spans = inventory.coverage.spans.iter().map(|s| (s.timeline, s.last));
        for (timeline, segment) in spans.chain(inventory.coverage.ended.iter().map(|e| (e.0, e.1))) {
            last.entry(timeline).and_modify(|l| *l = segment.max(*l)).or_insert(segment);
        }
        self.sides = inventory
            .histories
            .keys()
            .filter(|t| Some(**t) > oldest)
            .filter_map(|t| lines.side(*t))
            .collect();
        for (timeline, last) in last {
            let goes = Some(timeline) < oldest || self.sides.iter().any(|s| s.timeline == timeline);
            let first = lines.first_kept(timeline).filter(|_| !goes).or(goes.then(|| last.next()));
            self.log.extend(first.map(|first| (timeline, first)));
        }
        let mut needed = BTreeSet::new();
        for m in inventory
            .backups
            .iter()
            .filter(|b| why.contains_key(b.label.as_str()))
            .filter_map(Backup::manifest)
        {
            self.except.extend(lacks(m));
            needed.insert(m.timeline);
        }
        // The history of a later one tells of these branches, too.
        let is_needed = |t: &TimelineId| needed.contains(t) || self.except.iter().any(|(e, _)| e == t);
        let goes = |t: &TimelineId| Some(*t) < oldest || self.sides.iter().any(|s| s.timeline == *t);
        self.histories = inventory.histories.keys().filter(|t| goes(t) && !is_needed(t)).copied().collect();
    }

    /// Whether this segment goes.
    #[must_use]
    pub fn removes(&self, name: &SegmentName) -> bool {
        let before = self.log.iter().find(|(t, _)| *t == name.timeline);
        before.is_some_and(|(_, first)| name.segment < *first)
            && !self.except.contains(&(name.timeline, name.segment))
    }
}

/// Segments that a backup needs and does not carry.
fn lacks(m: &Manifest) -> Vec<(TimelineId, SegmentNo)> {
    let carried: BTreeSet<(TimelineId, SegmentNo)> = m
        .parts
        .iter()
        .filter_map(|p| p.name.strip_prefix(manifest::LOG)?.strip_prefix('/'))
        .filter_map(|n| segment::parse_name(n.as_bytes()))
        .map(|(t, s, _)| (t, s))
        .collect();
    let mut out = Vec::new();
    for r in &m.log {
        let (mut at, last) = (r.start.segment(), Lsn(r.end.0.saturating_sub(1)).segment());
        while at <= last {
            if !carried.contains(&(r.timeline, at)) {
                out.push((r.timeline, at));
            }
            at = at.next();
        }
    }
    out
}

/// Segments that go: how many, and their bytes.
///
/// # Errors
/// Why the archive can't be asked.
pub fn log_to_remove(archive: &Archive, plan: &Plan) -> Result<(u64, u64)> {
    let (mut n, mut bytes) = (0, 0_u64);
    each_segment(archive, plan, &mut |_, size| {
        (n, bytes) = (n + 1, bytes.saturating_add(size));
    })?;
    Ok((n, bytes))
}

/// By the names of their objects.
fn each_segment(archive: &Archive, plan: &Plan, each: &mut dyn FnMut(String, u64)) -> Result<()> {
    for (timeline, before) in &plan.log {
        archive.line(*timeline, SegmentNo(0), &mut |name, by, size| {
            if plan.removes(&name) {
                let ended = by.map(|by| EndedName { of: name, by }.to_string());
                each(ended.unwrap_or_else(|| name.to_string()), size);
            }
            Ok(name.segment < *before)
        })?;
    }
    Ok(())
}

/// Does it: backups first, each without its manifest before anything else of it goes, then log, the oldest first. Stopped
/// anywhere, the archive is a whole one.
///
/// # Errors
/// Why it can't be done; what was not removed yet is found by the next one.
pub fn carry_out(archive: &Archive, plan: &Plan) -> Result<()> {
    for fate in plan.backups.iter().filter(|f| !f.keep) {
        unchanged(archive, plan)?;
        let dir = names::backup_dir(&fate.label);
        archive.delete(&format!("{dir}/{}", names::MANIFEST))?;
        let mut all = Vec::new();
        archive.list(&dir, "", &mut |entry| {
            all.push(entry.name);
            Ok(true)
        })?;
        for name in all {
            archive.delete(&name)?;
        }
    }
    for label in &plan.notes {
        making::end(archive, label)?;
    }
    let mut log = Vec::new();
    each_segment(archive, plan, &mut |name, _| log.push(name))?;
    for name in log {
        archive.delete(&name)?;
    }
    // After the log that can't be read along its way without them.
    for timeline in &plan.histories {
        archive.delete(&names::history(*timeline))?;
    }
    Ok(())
}

/// A backup that began since the plan was made may stand on what goes.
fn unchanged(archive: &Archive, plan: &Plan) -> Result<()> {
    let begun =
        making::all(archive)?.into_iter().find(|m| m.base.is_some() && !plan.known.contains(&m.label));
    let Some(begun) = begun else { return Ok(()) };
    let text = format!(
        "the backup '{}' has begun since the plan was made, and may stand on what was to go; prune again",
        begun.label
    );
    Err(Error::new(ErrorKind::Refused, text))
}
