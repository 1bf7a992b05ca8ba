//! The other nodes that may lead: whether one of them is on a line that goes on from this leader's, or on one apart from it.
//!
//! A leader asks those that its key `leader` names, before it opens for business and once in `peer_timeout` while it leads;
//! and it hears the way of everybody who comes to its port and may be there. What it hears is decided by
//! [`session::rival`]; what follows from a newer line is the matter of `fenced`.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::{Node, blocking, lock};
use crate::config::{self, Config};
use crate::error::Result;
use crate::history::History;
use crate::net::{self, HANDSHAKE, wall_clock};
use crate::position::{Lsn, TimelineId};
use crate::receive::Look;
use crate::send::Ear;
use crate::session::{self, Rival};
use crate::state::Fence;
use crate::wire::{Code, Decision, Hello, RoleWanted, Want};

/// Longest wait for the answers of the others before a leader opens for business.
pub(super) const FIRST_ROUND: Duration = Duration::from_secs(2);
/// Most leaders on lines apart that are remembered.
const APART_MAX: usize = 16;
/// One that says nothing for so many times `peer_timeout` is gone.
const GONE_AFTER: u32 = 3;

/// What was heard of a node of this system.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Told {
    /// Who said so.
    pub(super) name: String,
    /// Where it answers; not known of one that came by itself.
    pub(super) address: Option<String>,
    /// The way of its log.
    pub(super) history: History,
    /// It leads.
    pub(super) leads: bool,
}

impl Told {
    /// Where the node that leads answers.
    pub(super) fn leader(&self) -> Option<String> {
        self.address.clone().filter(|_| self.leads)
    }

    /// Whether it says more than what is known from `history` and `address`.
    pub(super) fn is_news(&self, history: &History, address: Option<&str>) -> bool {
        match session::rival(history, &self.history) {
            Some(Rival::Newer) => true,
            Some(Rival::Same) => self.leads && self.address.is_some() && self.address.as_deref() != address,
            _ => false,
        }
    }
}

/// Two nodes of one system lead apart from each other.
struct Apart {
    told: Told,
    since: i64,
    heard: Instant,
}

/// What this node knows of the others.
#[derive(Default)]
pub(crate) struct Rivals {
    inner: Mutex<Inner>,
    changed: Notify,
}

#[derive(Default)]
struct Inner {
    /// The way of this node's log, while its role is to lead; without it nothing is heard.
    own: Option<History>,
    newer: Option<Told>,
    /// By name.
    apart: BTreeMap<String, Apart>,
    /// The highest number of a line that was heard of.
    highest: Option<TimelineId>,
    fence: Option<Fence>,
    /// `on_demote` was run by this process for this fence.
    tried: bool,
}

impl Rivals {
    /// The node's role is to lead, and this is the way of its log.
    pub(super) fn lead(&self, own: History) {
        let mut inner = lock(&self.inner);
        if inner.own.as_ref() != Some(&own) {
            *inner = Inner { highest: inner.highest, own: Some(own), ..Inner::default() };
        }
    }

    /// The node's role is to follow.
    pub(super) fn follow(&self) {
        *lock(&self.inner) = Inner::default();
    }

    fn own(&self) -> Option<History> {
        lock(&self.inner).own.clone()
    }

    /// The newest line that goes on from this node's, if one was heard of.
    pub(super) fn known_newer(&self) -> Option<Told> {
        lock(&self.inner).newer.clone()
    }

    /// The highest number of a line that was heard of.
    pub(super) fn highest(&self) -> TimelineId {
        let inner = lock(&self.inner);
        let fence = inner.fence.as_ref().map(|f| f.history.timeline());
        inner.highest.max(fence).unwrap_or(TimelineId::FIRST)
    }

    /// Whether another node leads apart from this one.
    pub(super) fn is_split(&self) -> bool {
        !lock(&self.inner).apart.is_empty()
    }

    /// Keeps in mind by what the node is fenced.
    pub(super) fn fenced(&self, fence: Option<Fence>) {
        lock(&self.inner).fence = fence;
    }

    /// By what the node is fenced.
    pub(super) fn fence(&self) -> Option<Fence> {
        lock(&self.inner).fence.clone()
    }

    /// True the first time in this process for the present line.
    pub(super) fn tries(&self) -> bool {
        !std::mem::replace(&mut lock(&self.inner).tried, true)
    }

    /// Waits until more was heard of the line that goes on from this node's.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Waits for a line that goes on from this node's.
    pub(super) async fn newer(&self) -> Told {
        loop {
            let changed = self.changed.notified();
            if let Some(told) = self.known_newer() {
                return told;
            }
            changed.await;
        }
    }

    /// Takes what was heard of another node.
    pub(super) fn hear(&self, told: Told) {
        let mut inner = lock(&self.inner);
        let Some(is) = inner.own.as_ref().and_then(|own| session::rival(own, &told.history)) else { return };
        inner.highest = inner.highest.max(Some(told.history.timeline()));
        match is {
            Rival::Newer => {
                inner.apart.remove(&told.name);
                let known = inner.newer.as_ref();
                if known.is_none_or(|n| told.is_news(&n.history, n.leader().as_deref())) {
                    inner.newer = Some(told);
                    self.changed.notify_waiters();
                }
            }
            Rival::Apart if told.leads => inner.split(told),
            Rival::Apart => {}
            Rival::Older | Rival::Same => {
                if inner.apart.remove(&told.name).is_some() {
                    over(&told.name, "is on no line apart any more", inner.apart.len());
                }
            }
        }
    }

    /// Forgets those that lead apart and were not heard of for longer than `patience`.
    fn forget_gone(&self, patience: Duration) {
        let mut inner = lock(&self.inner);
        let gone: Vec<String> = inner
            .apart
            .iter()
            .filter(|(_, a)| a.heard.elapsed() > patience)
            .map(|(n, _)| n.clone())
            .collect();
        for name in gone {
            inner.apart.remove(&name);
            over(&name, "is not heard of any more", inner.apart.len());
        }
    }

    /// What hears those who come to the port.
    pub(super) fn ear(self: &Arc<Self>) -> Ear {
        let rivals = Arc::clone(self);
        Ear::new(move |hello: &Hello| {
            let Some(history) = hello.history.clone() else { return };
            // Only who leads asks for a leader to be told where it stands.
            let leads = (hello.want, hello.wants) == (Want::Judgement, RoleWanted::Leader);
            rivals.hear(Told { name: hello.name.clone(), address: None, history, leads });
        })
    }

    /// The keys of `status`: leaders apart from this one.
    pub(super) fn apart(&self) -> Vec<Value> {
        let inner = lock(&self.inner);
        let shown = inner.apart.values().map(|a| {
            json!({
                "name": a.told.name,
                "address": a.told.address,
                "timeline": a.told.history.timeline().0,
                "line": a.told.history.line().to_string(),
                "since": a.since,
            })
        });
        shown.collect()
    }
}

fn over(name: &str, what: &str, left: usize) {
    let rest = if left == 0 { "the split is over" } else { "others still lead apart" };
    tracing::warn!("'{}', which led apart from this node, {what}: {rest}", net::one_line(name));
}

impl Inner {
    /// Another node leads apart from this one: said once.
    fn split(&mut self, told: Told) {
        if let Some(known) = self.apart.get_mut(&told.name)
            && known.told.history.line() == told.history.line()
        {
            known.heard = Instant::now();
            known.told.address = told.address.or(known.told.address.take());
            return;
        }
        if self.apart.len() >= APART_MAX {
            return;
        }
        let own = self.own.as_ref().map_or(TimelineId::FIRST, History::timeline);
        let at = told.address.as_ref().map(|a| format!(" at {}", net::one_line(a))).unwrap_or_default();
        tracing::error!(
            "SPLIT: '{}'{at} leads on timeline {} (line {}), which does not go on from this node's timeline {own}, nor that from it: \
             two nodes were promoted apart from each other, and both are written to; stop the application of one of them, and \
             `towline promote --force` on the one that is to lead",
            net::one_line(&told.name),
            told.history.timeline(),
            told.history.line()
        );
        let apart = Apart { since: wall_clock(), heard: Instant::now(), told };
        self.apart.insert(apart.told.name.clone(), apart);
    }
}

/// The others that the configuration names. Where this node listens itself is left out, as far as that can be seen.
fn others(config: &Config) -> Vec<String> {
    let Some(sources) = config.sources() else { return Vec::new() };
    let own = config.listen.as_deref().and_then(|l| config::address(l).ok());
    let is_own = |a: &String| own.is_some() && config::address(a).ok() == own;
    sources.addresses.into_iter().filter(|a| !is_own(a)).collect()
}

/// Asks all others at once where they stand; how many there are, and how many answered within `limit`.
pub(super) async fn round(node: &Arc<Node>, limit: Duration) -> (usize, usize) {
    let (Some(own), config) = (node.rivals.own(), node.config()) else { return (0, 0) };
    let peer_timeout = config.peer_timeout.0;
    let others = blocking(move || Ok(others(&config))).await.unwrap_or_default();
    let flush = node.state.control().map_or(Lsn::ZERO, |c| c.applied);
    let (own, name, asked) = (Arc::new(own), node.name(), others.len());
    let mut looks = JoinSet::new();
    for address in others {
        let (node, own, name) = (Arc::clone(node), Arc::clone(&own), name.clone());
        // A panic: that one did not answer.
        looks.spawn(async move {
            let look = Look {
                history: &own,
                flush,
                name: &name,
                node: node.id,
                wants: RoleWanted::Leader,
                trust: &node.trust,
                peer_timeout,
            };
            let Some(seen) = look.at(&address, limit).await else { return false };
            if let Some(history) = seen.history {
                let leads = !matches!(
                    seen.decision,
                    Decision::Refuse { code: Code::UpstreamRole | Code::NotReady | Code::Shutdown, .. }
                );
                node.rivals.hear(Told { name: seen.name, address: Some(address), history, leads });
            }
            true
        });
    }
    let mut answered = 0;
    while let Some(done) = looks.join_next().await {
        answered += usize::from(done.unwrap_or(false));
    }
    (asked, answered)
}

/// Asks before this node opens for business. `Some`: another line goes on from this node's.
pub(super) async fn first(node: &Arc<Node>) -> Result<Option<Told>> {
    let known = async {
        let (asked, answered) = round(node, FIRST_ROUND).await;
        if asked > 0 && answered == 0 {
            tracing::warn!(
                "none of the {asked} nodes of the list answers: this node leads on, and asks them again; should one of them have been \
                 promoted, it stops as soon as it hears so"
            );
        }
    };
    tokio::select! {
        told = node.rivals.newer() => return Ok(Some(told)),
        () = known => {}
    }
    Ok(node.rivals.known_newer())
}

/// Asks again and again while this node leads.
pub(super) async fn watch(node: &Arc<Node>) -> Infallible {
    loop {
        let patience = node.config().peer_timeout.0;
        tokio::time::sleep(patience).await;
        round(node, patience.min(HANDSHAKE)).await;
        node.rivals.forget_gone(patience * GONE_AFTER);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::Beginning;
    use crate::position::SystemId;

    fn child(of: &History, line: u64) -> History {
        of.child(Beginning::sample(Lsn(99), line), TimelineId::FIRST).unwrap()
    }

    fn told(name: &str, history: &History, leads: bool) -> Told {
        let address = leads.then(|| format!("{name}:1"));
        Told { name: name.to_owned(), address, history: history.clone(), leads }
    }

    #[test]
    fn only_a_newer_line_of_this_system_counts_and_the_newest_and_who_leads_it_are_remembered() {
        let first = History::first(SystemId(7));
        let (two, foreign) = (child(&first, 2), child(&History::first(SystemId(8)), 2));
        let three = child(&two, 3);
        let rivals = Rivals::default();
        rivals.hear(told("x", &two, true));
        assert!(rivals.known_newer().is_none(), "a follower hears nothing");
        rivals.lead(first.clone());
        rivals.hear(told("x", &foreign, true));
        rivals.hear(told("x", &first, true));
        assert!(rivals.known_newer().is_none());
        rivals.hear(told("f", &two, false));
        assert_eq!(rivals.known_newer().unwrap().leader(), None);
        rivals.hear(told("b", &two, true));
        rivals.hear(told("f", &two, false));
        assert_eq!(rivals.known_newer().unwrap().leader().as_deref(), Some("b:1"));
        rivals.hear(told("c", &three, false));
        rivals.hear(told("b", &two, true));
        assert_eq!((rivals.known_newer().unwrap().history, rivals.highest()), (three, TimelineId(3)));
        rivals.lead(first);
        assert!(rivals.known_newer().is_some(), "another turn on the same line");
        rivals.lead(two);
        assert!(rivals.known_newer().is_none());
    }

    #[test]
    fn leaders_apart_are_known_until_they_are_gone_or_decided() {
        let first = History::first(SystemId(7));
        let (own, other) = (child(&first, 2), child(&first, 3));
        let rivals = Rivals::default();
        rivals.lead(own.clone());
        rivals.hear(told("f", &other, false));
        assert!(!rivals.is_split(), "one that follows is no leader");
        rivals.hear(Told { address: None, ..told("b", &other, true) });
        rivals.hear(told("b", &other, true));
        assert_eq!((rivals.apart().len(), &rivals.apart()[0]["address"]), (1, &json!("b:1")));
        rivals.forget_gone(Duration::from_secs(60));
        assert!(rivals.is_split() && rivals.known_newer().is_none());
        rivals.hear(told("b", &own, false));
        assert!(!rivals.is_split(), "it follows this node now");
        rivals.hear(told("b", &other, true));
        rivals.forget_gone(Duration::ZERO);
        assert!(!rivals.is_split());
        for n in 0..100 {
            rivals.hear(told(&format!("n{n}"), &child(&first, 9 + n), true));
        }
        assert_eq!(rivals.apart().len(), APART_MAX);
    }
}
