//! A look around while log comes in: whether another of the nodes to follow is on a newer line. The newest line wins, also
//! over an old leader that is alive and does not know that it was left behind.

use std::sync::Arc;
use std::time::Duration;

use super::{Progress, ReceiveContext};
use crate::error::{Error, ErrorKind};
use crate::history::History;
use crate::net::{self, End, HANDSHAKE, Traffic};
use crate::position::{Lsn, NodeId, SegmentNo};
use crate::tls::Trust;
use crate::wire::{
    Decision, Hello, Purpose, RoleWanted, SHA256_EMPTY, VERSION_MAX, VERSION_MIN, Want, Welcome,
};

/// Asks the others now and then; returns when one of them is on a line that goes on from this node's.
pub(super) async fn scout<P: Progress>(context: &ReceiveContext<P>, current: &str) -> End {
    let others: Vec<&str> =
        context.sources.addresses.iter().map(String::as_str).filter(|a| *a != current).collect();
    if others.is_empty() || context.purpose != Purpose::Follow {
        return std::future::pending().await;
    }
    loop {
        tokio::time::sleep(context.peer_timeout).await;
        for address in &others {
            let look = Look {
                history: &context.history,
                flush: context.log.tail().end,
                name: &context.name,
                node: context.status.node(),
                wants: RoleWanted::Any,
                trust: context.status.trust(),
                peer_timeout: context.peer_timeout,
            };
            // Who can't be asked is asked again.
            let Some(theirs) = look.at(address, HANDSHAKE).await.and_then(|seen| seen.history) else {
                continue;
            };
            if context.history.leads_to(&theirs) {
                let timeline = theirs.timeline();
                context.status.update(|s| s.newest = Some(theirs));
                let text = format!("{address} is on timeline {timeline}, a newer one than the upstream's");
                return End::Lost(Error::new(ErrorKind::Unavailable, text));
            }
        }
    }
}

/// Who asks another node which line it is on.
#[derive(Clone, Copy, Debug)]
pub struct Look<'a> {
    /// The way of its own log.
    pub history: &'a History,
    /// Where that ends.
    pub flush: Lsn,
    /// Its name.
    pub name: &'a str,
    /// Its id.
    pub node: NodeId,
    /// What the other is asked to be: who leads asks for a leader, and a follower then says that it is none.
    pub wants: RoleWanted,
    /// By which terms the other is trusted.
    pub trust: &'a Trust,
    /// One that sends nothing for this long is given up.
    pub peer_timeout: Duration,
}

/// What the other said.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Seen {
    /// Its name.
    pub name: String,
    /// The way of its log; `None`: its program is too old to say.
    pub history: Option<History>,
    /// What it would do for the one who asks.
    pub decision: Decision,
}

impl Look<'_> {
    /// What the node at `address` says, if it does so within `limit` and may be followed.
    pub async fn at(&self, address: &str, limit: Duration) -> Option<Seen> {
        let hello = Hello {
            versions: (VERSION_MIN, VERSION_MAX),
            system: self.history.system(),
            timeline: self.history.timeline(),
            flush: self.flush,
            segment: SegmentNo(0),
            offset: 0,
            prefix: SHA256_EMPTY,
            want: Want::Judgement,
            name: self.name.to_owned(),
            node: self.node,
            wants: self.wants,
            purpose: Purpose::Follow,
            line: self.history.line(),
            history: Hello::way(self.history),
        };
        let traffic = Arc::new(Traffic::default());
        let meeting = net::meet(address, self.trust, self.peer_timeout, &traffic, hello);
        let Welcome { name, history, decision, .. } =
            tokio::time::timeout(limit, meeting).await.ok()?.ok()?.welcome;
        Some(Seen { name, history, decision })
    }
}
