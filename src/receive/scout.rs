//! A look around while log comes in: whether another of the nodes to follow is on a newer line. The newest line wins, also
//! over an old leader that is alive and does not know that it was left behind.

use std::sync::Arc;

use super::{Progress, ReceiveContext};
use crate::error::{Error, ErrorKind};
use crate::history::History;
use crate::net::{self, End, HANDSHAKE, Traffic};
use crate::position::SegmentNo;
use crate::wire::{Hello, Purpose, RoleWanted, SHA256_EMPTY, VERSION_MAX, VERSION_MIN, Want};

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
            let look = tokio::time::timeout(HANDSHAKE, look(context, address));
            // Who can't be asked is asked again.
            let Ok(Some(theirs)) = look.await else { continue };
            if context.history.leads_to(&theirs) {
                let timeline = theirs.timeline();
                context.status.update(|s| s.newest = Some(theirs));
                let text = format!("{address} is on timeline {timeline}, a newer one than the upstream's");
                return End::Lost(Error::new(ErrorKind::Unavailable, text));
            }
        }
    }
}

/// The way of the node at `address`.
async fn look<P: Progress>(context: &ReceiveContext<P>, address: &str) -> Option<History> {
    let hello = Hello {
        versions: (VERSION_MIN, VERSION_MAX),
        system: context.history.system(),
        timeline: context.history.timeline(),
        flush: context.log.tail().end,
        segment: SegmentNo(0),
        offset: 0,
        prefix: SHA256_EMPTY,
        want: Want::Judgement,
        name: context.name.clone(),
        node: context.status.node(),
        wants: RoleWanted::Any,
        purpose: Purpose::Follow,
        line: context.history.line(),
    };
    let traffic = Arc::new(Traffic::default());
    let met = net::meet(address, context.status.trust(), context.peer_timeout, &traffic, hello).await;
    met.ok()?.welcome.history
}
