//! The namespace planner: from the names a directory has to the names it shall have.
//!
//! [`plan`] is a pure function. Its input is the set of slots (a name in a directory) whose
//! occupant changes, its output a list of system calls' worth of operations, each of which is
//! legal at its place in the list. What makes it small: a directory is addressed by identity,
//! wherever it stands at the moment (the staging directory included), so a slot can be filled
//! before or after its directory has reached its own place. Only three things block a move of a
//! directory: an occupant that has to leave first, a target inside the moved directory, and a
//! cycle of either kind, which is broken by parking one of its members in the staging directory.
//!
//! What readers may rely on while a plan runs: a name that held a non-directory before and holds
//! another one afterwards is never absent and never holds anything else.
//!
//! Everything in the staging directory is a slot of [`STAGE`] that wants nothing; what nobody has
//! taken from there in the end is discarded.

use std::collections::HashMap;
use std::sync::Arc;

use crate::position::FileId;

/// The staging directory as the parent of slots. No replicated file has this id.
pub(crate) const STAGE: FileId = FileId(0);

/// A name in a directory.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Slot {
    /// The directory.
    pub(crate) dir: FileId,
    /// The name.
    pub(crate) name: Arc<[u8]>,
}

impl Slot {
    /// The slot `name` of `dir`.
    pub(crate) fn new(dir: FileId, name: &[u8]) -> Self {
        Self { dir, name: name.into() }
    }
}

impl std::fmt::Debug for Slot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.dir, self.name.escape_ascii())
    }
}

/// One slot whose occupant changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Change {
    /// The slot.
    pub(crate) slot: Slot,
    /// Who is there.
    pub(crate) have: Option<FileId>,
    /// Who shall be there.
    pub(crate) want: Option<FileId>,
}

/// One step. `from` and `to` are as of the moment of the step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    /// Rename. `over` is the non-directory that is replaced, if any.
    Move { id: FileId, from: Slot, to: Slot, over: Option<FileId> },
    /// `RENAME_EXCHANGE`; `a` holds `at_a` before.
    Exchange { a: Slot, at_a: FileId, b: Slot, at_b: FileId },
    /// Another name for a non-directory; `to` is free.
    Link { id: FileId, from: Slot, to: Slot },
    /// Removes a name of a non-directory.
    Unlink { id: FileId, slot: Slot },
    /// Deletes a thing in the staging directory and all that is below it.
    Discard { id: FileId, slot: Slot },
}

/// What the planner asks about things outside of the changed slots.
pub(crate) trait World {
    /// Whether `id` is a directory.
    fn is_dir(&self, id: FileId) -> bool;
    /// The directory that holds the directory `dir`, whose own slot does not change.
    fn parent(&self, dir: FileId) -> Option<FileId>;
    /// A name of the non-directory `id` that does not change.
    fn unchanged_name(&self, id: FileId) -> Option<Slot>;
}

/// The input contradicts itself: no order of operations leads from `have` to `want`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PlanError {
    /// A wanted thing is nowhere.
    #[error("{0} shall get a name, but is nowhere in the directory")]
    Nowhere(FileId),
    /// Two slots want the same directory, or one that does not move.
    #[error("the directory {0} shall have two names")]
    TwoNames(FileId),
    /// A directory shall end up below itself.
    #[error("the directory {0} shall be below itself")]
    Loop(FileId),
}

/// Orders the changes. `prefix` starts the names made up in the staging directory; nothing there has one like it.
pub(crate) fn plan(changes: &[Change], prefix: &str, world: &impl World) -> Result<Vec<Op>, PlanError> {
    let mut p = Planner::new(changes, prefix, world)?;
    p.directories()?;
    p.files()?;
    p.removals();
    Ok(p.ops)
}

struct Planner<'w, W> {
    world: &'w W,
    have: HashMap<Slot, FileId>,
    want: HashMap<Slot, FileId>,
    /// Where each thing stands among the changed slots, now.
    at: HashMap<FileId, Vec<Slot>>,
    /// The one slot that a directory shall get.
    goal: HashMap<FileId, Slot>,
    prefix: &'w str,
    made: u64,
    ops: Vec<Op>,
}

impl<'w, W: World> Planner<'w, W> {
    fn new(changes: &[Change], prefix: &'w str, world: &'w W) -> Result<Self, PlanError> {
        let mut p = Self {
            world,
            have: HashMap::with_capacity(changes.len()),
            want: HashMap::with_capacity(changes.len()),
            at: HashMap::with_capacity(changes.len()),
            goal: HashMap::new(),
            prefix,
            made: 0,
            ops: Vec::with_capacity(changes.len()),
        };
        for c in changes.iter().filter(|c| c.have != c.want) {
            if let Some(id) = c.have {
                p.have.insert(c.slot.clone(), id);
                p.at.entry(id).or_default().push(c.slot.clone());
            }
            if let Some(id) = c.want {
                p.want.insert(c.slot.clone(), id);
                if world.is_dir(id) && p.goal.insert(id, c.slot.clone()).is_some() {
                    return Err(PlanError::TwoNames(id));
                }
            }
        }
        Ok(p)
    }

    fn stage_slot(&mut self, id: FileId) -> Slot {
        self.made += 1;
        Slot::new(STAGE, format!("{}{:x}.{}", self.prefix, self.made, id.0).as_bytes())
    }

    fn parent(&self, dir: FileId) -> Option<FileId> {
        match self.at.get(&dir).and_then(|slots| slots.first()) {
            Some(slot) => Some(slot.dir),
            None => self.world.parent(dir),
        }
    }

    /// Whether the directory `inner` stands at or below `outer`, now.
    fn within(&self, inner: FileId, outer: FileId) -> bool {
        let mut at = inner;
        loop {
            if at == outer {
                return true;
            }
            match self.parent(at) {
                Some(p) if at != FileId::ROOT && at != STAGE => at = p,
                _ => return false,
            }
        }
    }

    fn leave(&mut self, id: FileId, slot: &Slot) {
        self.have.remove(slot);
        if let Some(slots) = self.at.get_mut(&id) {
            slots.retain(|s| s != slot);
        }
    }

    fn arrive(&mut self, id: FileId, slot: &Slot) {
        self.have.insert(slot.clone(), id);
        self.at.entry(id).or_default().push(slot.clone());
    }

    fn rename(&mut self, id: FileId, from: Slot, to: Slot) {
        let over = self.have.get(&to).copied();
        if let Some(old) = over {
            self.leave(old, &to);
        }
        self.leave(id, &from);
        self.arrive(id, &to);
        self.ops.push(Op::Move { id, from, to, over });
    }

    fn exchange(&mut self, at_a: FileId, a: Slot, at_b: FileId, b: Slot) {
        self.leave(at_a, &a);
        self.leave(at_b, &b);
        self.arrive(at_a, &b);
        self.arrive(at_b, &a);
        self.ops.push(Op::Exchange { a, at_a, b, at_b });
    }

    fn link(&mut self, id: FileId, from: Slot, to: Slot) {
        self.arrive(id, &to);
        self.ops.push(Op::Link { id, from, to });
    }

    fn park(&mut self, id: FileId, from: Slot) -> Slot {
        let to = self.stage_slot(id);
        self.rename(id, from, to.clone());
        to
    }

    /// Depth of a slot in the tree that is wanted, to fill new directories before they appear.
    fn goal_depth(&self, slot: &Slot) -> usize {
        let (mut depth, mut at) = (0, slot.dir);
        // A malformed goal could loop; more levels than directories that move and exist is one.
        while at != FileId::ROOT && at != STAGE && depth < 1 << 16 {
            depth += 1;
            match self.goal.get(&at).map(|s| s.dir).or_else(|| self.world.parent(at)) {
                Some(p) => at = p,
                None => break,
            }
        }
        depth
    }

    fn directories(&mut self) -> Result<(), PlanError> {
        let mut queue: Vec<Slot> = self.goal.values().cloned().collect();
        let mut keyed: Vec<_> = queue.drain(..).map(|s| (self.goal_depth(&s), s)).collect();
        keyed.sort();
        queue.extend(keyed.into_iter().map(|(_, s)| s));
        // The deepest is taken first, from the end.
        let mut blocked: HashMap<FileId, Vec<Slot>> = HashMap::new();
        loop {
            while let Some(slot) = queue.pop() {
                let before = self.ops.len();
                match self.place_dir(&slot)? {
                    Some(blocker) => blocked.entry(blocker).or_default().push(slot),
                    None => {
                        for id in self.movers(before) {
                            queue.extend(blocked.remove(&id).unwrap_or_default());
                        }
                    }
                }
            }
            // A cycle: park a member that blocks. The least id, so that a plan is always the same.
            let Some(&blocker) = blocked.keys().min() else { return Ok(()) };
            queue.extend(blocked.remove(&blocker).unwrap_or_default());
            match self.at.get(&blocker).and_then(|s| s.first()).cloned() {
                Some(slot) if slot.dir != STAGE => {
                    self.park(blocker, slot);
                }
                _ => return Err(PlanError::Loop(blocker)),
            }
        }
    }

    fn movers(&self, since: usize) -> Vec<FileId> {
        let mut out = Vec::new();
        for op in &self.ops[since..] {
            match op {
                Op::Move { id, .. } => out.push(*id),
                Op::Exchange { at_a, at_b, .. } => out.extend([*at_a, *at_b]),
                _ => {}
            }
        }
        out
    }

    /// Brings the directory that `to` wants there, or says which directory must move first.
    fn place_dir(&mut self, to: &Slot) -> Result<Option<FileId>, PlanError> {
        let Some(&id) = self.want.get(to) else { return Ok(None) };
        let from = match self.at.get(&id).and_then(|s| s.first()) {
            Some(from) if from == to => return Ok(None),
            Some(from) => from.clone(),
            None if self.world.parent(id).is_some() => return Err(PlanError::TwoNames(id)),
            None => return Err(PlanError::Nowhere(id)),
        };
        if self.within(to.dir, id) {
            return self.blocker_between(to.dir, id).map(Some).ok_or(PlanError::Loop(id));
        }
        let Some(&occupant) = self.have.get(to) else {
            self.rename(id, from, to.clone());
            return Ok(None);
        };
        let swap = self.want.get(&from) == Some(&occupant);
        if (swap || from.dir == STAGE && !self.goal.contains_key(&occupant))
            && !(self.world.is_dir(occupant) && self.within(from.dir, occupant))
        {
            self.exchange(id, from, occupant, to.clone());
            return Ok(None);
        }
        if self.goal.contains_key(&occupant) {
            return Ok(Some(occupant));
        }
        self.park(occupant, to.clone());
        self.rename(id, from, to.clone());
        Ok(None)
    }

    /// On the way up from `inner` to `outer`: a directory that has yet to move.
    fn blocker_between(&self, inner: FileId, outer: FileId) -> Option<FileId> {
        let mut at = inner;
        while at != outer {
            if let Some(goal) = self.goal.get(&at)
                && self.at.get(&at).and_then(|s| s.first()) != Some(goal)
            {
                return Some(at);
            }
            at = self.parent(at)?;
        }
        None
    }

    fn files(&mut self) -> Result<(), PlanError> {
        let mut slots: Vec<Slot> =
            self.want.iter().filter(|(_, id)| !self.world.is_dir(**id)).map(|(s, _)| s.clone()).collect();
        slots.sort();
        let mut gains: HashMap<FileId, usize> = HashMap::new();
        for slot in &slots {
            *gains.entry(self.want[slot]).or_default() += 1;
        }
        for slot in &slots {
            let id = self.want[slot];
            if self.have.get(slot) != Some(&id) {
                self.place_file(id, slot, &gains)?;
            }
            // A slot served by an exchange counts as well.
            if let Some(n) = gains.get_mut(&id) {
                *n -= 1;
            }
        }
        Ok(())
    }

    fn place_file(&mut self, id: FileId, to: &Slot, gains: &HashMap<FileId, usize>) -> Result<(), PlanError> {
        let occupant = self.have.get(to).copied();
        if let Some(old) = occupant {
            if self.world.is_dir(old) {
                // All directories that stay are in place: this one goes. Swap it out in one step.
                let from = self.aside(id, gains)?;
                self.exchange(id, from, old, to.clone());
                return Ok(());
            }
            let here = self.at.get(&id).into_iter().flatten();
            if let Some(from) = here.clone().find(|s| self.want.get(*s) == Some(&old)).cloned() {
                self.exchange(id, from, old, to.clone());
                return Ok(());
            }
            if gains.get(&old).is_some_and(|&n| n > 0)
                && self.at.get(&old).is_none_or(|s| s.len() < 2)
                && self.world.unchanged_name(old).is_none()
            {
                let keep = self.stage_slot(old);
                self.link(old, to.clone(), keep);
            }
        }
        match self.spare(id, gains) {
            Some(from) => self.rename(id, from, to.clone()),
            None if occupant.is_none() => {
                let from = self.source(id)?;
                self.link(id, from, to.clone());
            }
            None => {
                let from = self.aside(id, gains)?;
                self.rename(id, from, to.clone());
            }
        }
        Ok(())
    }

    /// A name of `id` that is to go and that nothing but this gain needs as its source.
    fn spare(&self, id: FileId, gains: &HashMap<FileId, usize>) -> Option<Slot> {
        let mut free: Vec<&Slot> = self.at.get(&id)?.iter().filter(|s| !self.want.contains_key(*s)).collect();
        let kept = free.len() < self.at[&id].len() || self.world.unchanged_name(id).is_some();
        if !kept && free.len() < 2 && gains.get(&id).is_some_and(|&n| n > 1) {
            return None;
        }
        free.sort();
        free.first().map(|s| (*s).clone())
    }

    /// Any name of `id`.
    fn source(&self, id: FileId) -> Result<Slot, PlanError> {
        let here = self.at.get(&id).and_then(|s| s.first()).cloned();
        here.or_else(|| self.world.unchanged_name(id)).ok_or(PlanError::Nowhere(id))
    }

    /// A name of `id` in the staging directory that may be used up.
    fn aside(&mut self, id: FileId, gains: &HashMap<FileId, usize>) -> Result<Slot, PlanError> {
        if let Some(from) = self.spare(id, gains).filter(|s| s.dir == STAGE) {
            return Ok(from);
        }
        let from = self.source(id)?;
        let to = self.stage_slot(id);
        self.link(id, from, to.clone());
        Ok(to)
    }

    /// What is left at a slot that wants nothing goes: from the top, so that what is below a
    /// directory that goes needs no step of its own.
    fn removals(&mut self) {
        let mut left: Vec<(usize, Slot, FileId)> = Vec::new();
        for (slot, &id) in &self.have {
            if slot.dir != STAGE && self.want.get(slot) != Some(&id) {
                left.push((self.depth(slot.dir), slot.clone(), id));
            }
        }
        left.sort();
        for (_, slot, id) in left {
            if self.within(slot.dir, STAGE) {
                continue;
            }
            if self.world.is_dir(id) {
                self.park(id, slot);
            } else {
                self.leave(id, &slot);
                self.ops.push(Op::Unlink { id, slot });
            }
        }
        let mut rest: Vec<_> =
            self.have.iter().filter(|(s, _)| s.dir == STAGE).map(|(s, id)| (s.clone(), *id)).collect();
        rest.sort();
        self.ops.extend(rest.into_iter().map(|(slot, id)| Op::Discard { id, slot }));
    }

    fn depth(&self, dir: FileId) -> usize {
        let (mut n, mut at) = (0, dir);
        while at != FileId::ROOT && at != STAGE {
            n += 1;
            match self.parent(at) {
                Some(p) => at = p,
                None => break,
            }
        }
        n
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
