//! Who waits for which confirmation, and whether the followers are there that have to give it. Whoever hears
//! followers tells the board how far they are; it answers those that wait. It decides nothing by itself: that is
//! [`quorum`](crate::quorum)'s.

use std::collections::BTreeMap;

use tokio::sync::{oneshot, watch};

use crate::error::{Error, ErrorKind, Result};
use crate::net::wall_clock;
use crate::position::Lsn;
use crate::quorum::{self, Candidate, Level, Policy};

/// Most callers that wait at once.
pub const WAITS_MAX: usize = 1024;

/// What synchronous means here.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Rules {
    /// Who has to confirm.
    pub policy: Policy,
    /// What.
    pub level: Level,
    /// Bytes of log that a newcomer may be behind to begin to count.
    pub near: u64,
    /// Bytes of log that one that counts may be behind at the level before it is passed over; 0: any.
    pub max_lag: u64,
}

/// What somebody waits for.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Wait {
    /// Everything before this has to be confirmed.
    pub lsn: Lsn,
    /// At this level instead of the one in force.
    pub level: Option<Level>,
    /// By this policy instead of the one in force.
    pub policy: Option<Policy>,
}

/// How a wait ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Confirmed {
    /// Who has it; empty where nobody had to confirm and nobody is attached.
    pub by: Vec<String>,
    /// At which level.
    pub level: Level,
    /// By which policy; `None`: by all that were attached.
    pub policy: Option<Policy>,
}

/// Whether the followers are there that have to confirm.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InForce {
    /// The rules.
    pub rules: Rules,
    /// Enough followers count. Always so where nobody has to confirm.
    pub satisfied: bool,
    /// How many count.
    pub present: usize,
    /// Since when they are not enough, ns since 1970.
    pub missing_since: Option<i64>,
}

/// Those that wait for the same confirmation, by position.
#[derive(Debug)]
struct Group {
    level: Option<Level>,
    policy: Option<Policy>,
    queue: BTreeMap<(Lsn, u64), oneshot::Sender<Confirmed>>,
}

/// The board.
#[derive(Debug)]
pub(crate) struct Board {
    rules: Rules,
    groups: Vec<Group>,
    tickets: u64,
    force: watch::Sender<InForce>,
    /// Somebody waits for `write`: it is to be said before it is durable.
    hasty: watch::Sender<bool>,
}

impl Default for Board {
    fn default() -> Self {
        let rules = Rules::default();
        let force = InForce { rules: rules.clone(), satisfied: true, present: 0, missing_since: None };
        Self {
            rules,
            groups: Vec::new(),
            tickets: 0,
            force: watch::Sender::new(force),
            hasty: watch::Sender::new(false),
        }
    }
}

impl Board {
    /// Nobody has to confirm anything, and nobody waits: news of followers make no difference.
    pub(crate) fn idle(&self) -> bool {
        self.rules.policy.is_async() && self.groups.is_empty()
    }

    pub(crate) fn rules(&self) -> &Rules {
        &self.rules
    }

    /// Takes new rules into force; [`look`](Self::look) has to follow.
    pub(crate) fn set_rules(&mut self, rules: Rules) {
        self.rules = rules;
    }

    pub(crate) fn in_force(&self) -> watch::Receiver<InForce> {
        self.force.subscribe()
    }

    pub(crate) fn hasty(&self) -> watch::Receiver<bool> {
        self.hasty.subscribe()
    }

    pub(crate) fn waiting(&self) -> usize {
        self.groups.iter().map(|g| g.queue.len()).sum()
    }

    /// Puts a caller on the board; [`look`](Self::look) has to follow. The number takes it off again.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] when too many wait.
    pub(crate) fn put(&mut self, wait: Wait) -> Result<(u64, oneshot::Receiver<Confirmed>)> {
        if self.waiting() >= WAITS_MAX {
            let text = format!("{WAITS_MAX} callers wait for confirmations, as many as may; try again");
            return Err(Error::new(ErrorKind::Unavailable, text));
        }
        self.tickets += 1;
        let (answer, answered) = oneshot::channel();
        let key = (wait.lsn, self.tickets);
        match self.groups.iter_mut().find(|g| g.level == wait.level && g.policy == wait.policy) {
            Some(group) => {
                group.queue.insert(key, answer);
            }
            None => {
                let queue = BTreeMap::from([(key, answer)]);
                self.groups.push(Group { level: wait.level, policy: wait.policy, queue });
            }
        }
        Ok((self.tickets, answered))
    }

    /// Takes a caller off.
    pub(crate) fn drop_ticket(&mut self, ticket: u64) {
        for group in &mut self.groups {
            group.queue.retain(|(_, t), _| *t != ticket);
        }
        self.tidy();
    }

    fn tidy(&mut self) {
        self.groups.retain(|g| !g.queue.is_empty());
        let level = |l: Option<Level>| l.unwrap_or(self.rules.level);
        let standing = !self.rules.policy.is_async() && self.rules.level == Level::Write;
        let hasty = standing || self.groups.iter().any(|g| level(g.level) == Level::Write);
        self.hasty.send_if_modified(|h| std::mem::replace(h, hasty) != hasty);
    }

    /// Something changed: answers those whose wait is over, and notes whether the quorum is there.
    pub(crate) fn look(&mut self, candidates: &[Candidate<'_>]) {
        let rules = &self.rules;
        for group in &mut self.groups {
            let level = group.level.unwrap_or(rules.level);
            let policy = group.policy.as_ref().or(Some(&rules.policy).filter(|p| !p.is_async()));
            let reached = match policy {
                Some(policy) => quorum::decide(policy, level, candidates).confirmed,
                // Nobody is attached: nobody is waited for.
                None => quorum::decide_all(level, candidates).or(Some(Lsn(u64::MAX))),
            };
            let Some(reached) = reached else { continue };
            while let Some(first) = group.queue.first_entry().filter(|e| e.key().0 <= reached) {
                let ((lsn, _), answer) = first.remove_entry();
                let by = quorum::confirmers(policy, level, lsn, candidates);
                // One that went away in the meantime is told nothing.
                let _ = answer.send(Confirmed { by, level, policy: policy.cloned() });
            }
        }
        let decision = quorum::decide(&rules.policy, rules.level, candidates);
        let (satisfied, present) = (decision.satisfied(), decision.present);
        self.force.send_if_modified(|force| {
            let same = force.satisfied == satisfied && force.present == present && force.rules == *rules;
            if !same {
                let since = force.missing_since.unwrap_or_else(wall_clock);
                *force = InForce {
                    rules: rules.clone(),
                    satisfied,
                    present,
                    missing_since: (!satisfied).then_some(since),
                };
            }
            !same
        });
        self.tidy();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quorum::Positions;

    fn at(name: &str, lsn: u64) -> Candidate<'_> {
        let at = Positions { write: Lsn(lsn), flush: Lsn(lsn), apply: Lsn(lsn) };
        Candidate { name, attached: true, streaming: true, near: true, eligible: true, applies: true, at }
    }

    fn board(policy: &str) -> Board {
        let mut board = Board::default();
        board.set_rules(Rules { policy: policy.parse().unwrap(), ..Rules::default() });
        board
    }

    fn wait(lsn: u64) -> Wait {
        Wait { lsn: Lsn(lsn), ..Wait::default() }
    }

    #[test]
    fn callers_are_answered_in_the_order_of_their_positions() {
        let mut board = board("ANY 1 (a, b)");
        let mut late = board.put(wait(20)).unwrap().1;
        let mut early = board.put(wait(10)).unwrap().1;
        board.look(&[at("a", 9)]);
        assert!(early.try_recv().is_err() && late.try_recv().is_err());
        board.look(&[at("a", 15), at("c", 90)]);
        assert_eq!(early.try_recv().unwrap().by, ["a"]);
        assert!(late.try_recv().is_err() && board.waiting() == 1);
        board.look(&[at("a", 15), at("b", 20)]);
        assert_eq!(late.try_recv().unwrap().by, ["b"]);
        assert_eq!(board.waiting(), 0);
    }

    #[test]
    fn new_rules_act_on_those_that_wait() {
        let mut board = board("b");
        let mut caller = board.put(wait(10)).unwrap().1;
        let mut own = board.put(Wait { policy: Some("b".parse().unwrap()), ..wait(10) }).unwrap().1;
        let here = [at("a", 10)];
        board.look(&here);
        assert!(caller.try_recv().is_err());
        board.set_rules(Rules { policy: "a".parse().unwrap(), ..Rules::default() });
        board.look(&here);
        assert_eq!(caller.try_recv().unwrap().by, ["a"]);
        assert!(own.try_recv().is_err(), "what a caller asked for itself stays");
    }

    #[test]
    fn without_rules_all_attached_confirm_or_nobody_is_waited_for() {
        let mut board = Board::default();
        assert!(board.idle());
        let mut caller = board.put(wait(10)).unwrap().1;
        board.look(&[at("a", 10), at("b", 9)]);
        assert!(caller.try_recv().is_err());
        board.look(&[at("a", 10), at("b", 11)]);
        assert_eq!(caller.try_recv().unwrap().by, ["a", "b"]);
        let mut alone = board.put(wait(10)).unwrap().1;
        board.look(&[]);
        assert!(alone.try_recv().unwrap().by.is_empty() && board.idle());
    }

    #[test]
    fn who_gives_up_leaves_nothing_behind_and_there_is_a_bound() {
        let mut board = board("a");
        let tickets: Vec<_> = (0..WAITS_MAX).map(|i| board.put(wait(i as u64)).unwrap()).collect();
        assert_eq!(board.put(wait(1)).unwrap_err().kind(), ErrorKind::Unavailable);
        for (ticket, _) in tickets {
            board.drop_ticket(ticket);
        }
        assert_eq!((board.waiting(), board.groups.len()), (0, 0));
    }

    #[test]
    fn the_quorum_is_missing_from_one_moment_on_and_write_is_asked_for_only_while_it_is_waited_for() {
        let mut board = board("ANY 2 (*)");
        let force = board.in_force();
        board.look(&[at("a", 1)]);
        let since = force.borrow().missing_since;
        assert!(since.is_some() && force.borrow().present == 1);
        board.look(&[]);
        assert_eq!(force.borrow().missing_since, since);
        board.look(&[at("a", 1), at("b", 1)]);
        assert!(force.borrow().satisfied && force.borrow().missing_since.is_none());
        assert!(!*board.hasty().borrow());
        let (ticket, _caller) = board.put(Wait { level: Some(Level::Write), ..wait(9) }).unwrap();
        board.look(&[at("a", 1)]);
        assert!(*board.hasty().borrow());
        board.drop_ticket(ticket);
        assert!(!*board.hasty().borrow());
    }
}
