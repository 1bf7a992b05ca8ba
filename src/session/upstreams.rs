//! Which of several upstreams is asked, in which order, and what their answers amount to. Values only.

use crate::wire::{Code, RoleWanted};

/// Most addresses of upstreams.
pub const UPSTREAMS_MAX: usize = 16;

/// Which nodes a follower follows, of those that it is told: `target_session_attrs` of libpq.
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize, serde::Deserialize, clap::ValueEnum,
)]
#[serde(rename_all = "kebab-case")]
pub enum UpstreamRole {
    /// Whichever answers first.
    #[default]
    Any,
    /// The leader only.
    Leader,
    /// Followers only.
    Follower,
    /// A follower; the leader where none of them can be had.
    PreferFollower,
}

impl std::fmt::Display for UpstreamRole {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Any => "any",
            Self::Leader => "leader",
            Self::Follower => "follower",
            Self::PreferFollower => "prefer-follower",
        })
    }
}

/// Whose turn it is. A round asks each upstream once; with [`UpstreamRole::PreferFollower`] it asks for a
/// follower first, and then once more for any. After each round there is a pause, and it is the next one's turn
/// whenever one is lost.
#[derive(Clone, Debug)]
pub struct Turns {
    role: UpstreamRole,
    count: usize,
    at: usize,
    /// How far the round is.
    step: usize,
    /// Attempts since the last pause.
    burst: usize,
}

impl Turns {
    /// Among `count` upstreams, at least one; the first begins.
    #[must_use]
    pub fn new(role: UpstreamRole, count: usize) -> Self {
        Self { role, count: count.max(1), at: 0, step: 0, burst: 0 }
    }

    /// Which one it is.
    #[must_use]
    pub fn at(&self) -> usize {
        self.at
    }

    /// What it is asked to be.
    #[must_use]
    pub fn wants(&self) -> RoleWanted {
        match self.role {
            UpstreamRole::Any => RoleWanted::Any,
            UpstreamRole::Leader => RoleWanted::Leader,
            UpstreamRole::Follower => RoleWanted::Follower,
            UpstreamRole::PreferFollower if self.step < self.count => RoleWanted::Follower,
            UpstreamRole::PreferFollower => RoleWanted::Any,
        }
    }

    /// The attempt ended, and was a `good` connection until then or was not. True: pause before the next.
    pub fn ended(&mut self, good: bool) -> bool {
        let round = if self.role == UpstreamRole::PreferFollower { 2 * self.count } else { self.count };
        self.at = (self.at + 1) % self.count;
        self.step = if good { 0 } else { (self.step + 1) % round };
        self.burst += 1;
        // However good they look: no more attempts in a row than there are in a round.
        let pause = self.burst >= round || (!good && self.step == 0);
        if pause {
            self.burst = 0;
        }
        pause
    }
}

/// How the last attempt with one upstream ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Answer {
    /// Its refusal, if it answered.
    pub code: Option<Code>,
    /// In words.
    pub reason: String,
}

/// What the answers of all upstreams amount to; `None` stands for one that was not asked yet. A refusal that
/// only the choice of this upstream explains (it is of another role, follows this node, or was left behind by a promotion)
/// counts when no other upstream is left to hope for.
#[must_use]
pub fn verdict(answers: &[Option<Answer>]) -> Option<Code> {
    let choice = |c: Code| matches!(c, Code::Circle | Code::UpstreamRole | Code::WrongTimeline);
    let codes = || answers.iter().flatten().filter_map(|a| a.code);
    let refused = |a: &Option<Answer>| a.as_ref().and_then(|a| a.code).filter(|c| !c.passes());
    if !answers.is_empty() && answers.iter().all(|a| refused(a).is_some()) {
        let weigh = |c: &Code| match c {
            Code::Circle => 0,
            Code::UpstreamRole => 1,
            Code::WrongTimeline => 2,
            _ => 3,
        };
        return codes().max_by_key(weigh);
    }
    // What is wrong with this node stays wrong, whoever else answers.
    codes()
        .find(|c| !c.passes() && !choice(*c) && *c != Code::Resync)
        .or_else(|| codes().find(|c| c.passes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn walk(role: UpstreamRole, count: usize, steps: usize) -> String {
        let mut turns = Turns::new(role, count);
        let mut out = String::new();
        for _ in 0..steps {
            let wants = match turns.wants() {
                RoleWanted::Any => 'a',
                RoleWanted::Leader => 'l',
                RoleWanted::Follower => 'f',
            };
            out += &format!("{}{wants}", turns.at());
            out.push(if turns.ended(false) { '|' } else { ' ' });
        }
        out
    }

    #[test]
    fn a_round_asks_everybody_once_and_then_there_is_a_pause() {
        assert_eq!(walk(UpstreamRole::Any, 1, 2), "0a|0a|");
        assert_eq!(walk(UpstreamRole::Leader, 3, 4), "0l 1l 2l|0l ");
        assert_eq!(walk(UpstreamRole::Follower, 2, 2), "0f 1f|");
        assert_eq!(walk(UpstreamRole::PreferFollower, 2, 5), "0f 1f 0a 1a|0f ");
    }

    #[test]
    fn a_lost_one_is_followed_by_the_next_and_good_ones_do_not_go_round_without_a_pause() {
        let mut turns = Turns::new(UpstreamRole::PreferFollower, 2);
        assert!(!turns.ended(false) && !turns.ended(false), "no follower");
        assert_eq!((turns.at(), turns.wants()), (0, RoleWanted::Any));
        assert!(!turns.ended(true), "it was good until it was lost");
        assert_eq!((turns.at(), turns.wants()), (1, RoleWanted::Follower), "a new round");
        assert!(turns.ended(true), "the fourth in a row");
        let mut one = Turns::new(UpstreamRole::Any, 1);
        assert!((0..5).all(|_| one.ended(true)));
    }

    #[test]
    fn the_verdict_as_a_table() {
        let answer = |c: &str| match c {
            "-" => None,
            "lost" => Some(Answer { code: None, reason: String::new() }),
            "role" => Some(Answer { code: Some(Code::UpstreamRole), reason: String::new() }),
            "circle" => Some(Answer { code: Some(Code::Circle), reason: String::new() }),
            "busy" => Some(Answer { code: Some(Code::Busy), reason: String::new() }),
            "older" => Some(Answer { code: Some(Code::WrongTimeline), reason: String::new() }),
            "resync" => Some(Answer { code: Some(Code::Resync), reason: String::new() }),
            "diverged" => Some(Answer { code: Some(Code::Diverged), reason: String::new() }),
            other => panic!("{other}"),
        };
        for (answers, want) in [
            ("lost", None),
            ("role", Some(Code::UpstreamRole)),
            ("role role", Some(Code::UpstreamRole)),
            ("role circle", Some(Code::UpstreamRole)),
            ("circle", Some(Code::Circle)),
            ("role lost", None),
            ("role -", None),
            ("circle lost", None),
            ("busy lost", Some(Code::Busy)),
            ("older lost", None),
            ("older older", Some(Code::WrongTimeline)),
            ("older role", Some(Code::WrongTimeline)),
            ("diverged lost", Some(Code::Diverged)),
            ("role diverged", Some(Code::Diverged)),
            // Whoever was not asked yet may have the log.
            ("resync -", None),
            ("resync lost", None),
            ("resync resync", Some(Code::Resync)),
            ("resync role", Some(Code::Resync)),
        ] {
            let answers: Vec<_> = answers.split(' ').map(answer).collect();
            assert_eq!(verdict(&answers), want, "{answers:?}");
        }
    }
}
