//! Asking the node that is to lead: one connection for one question.

use std::sync::Arc;
use std::time::Duration;

use crate::config;
use crate::daemon::Node;
use crate::error::{Error, ErrorKind, Result};
use crate::history::History;
use crate::net::{self, End, Met, Traffic};
use crate::position::{Lsn, NodeId, SegmentNo};
use crate::wire::{
    Code, Decision, Handover, Heir, Hello, Message, Purpose, RoleWanted, SHA256_EMPTY, VERSION_HANDOVER,
    VERSION_MAX, VERSION_MIN, Want, Welcome,
};

/// Longest wait for a node to say who it is.
const LOOK: Duration = Duration::from_secs(5);

/// The other nodes that the key `leader` names. Without one there is nobody to follow afterwards.
///
/// # Errors
/// [`ErrorKind::Refused`]: the list is empty.
pub(super) fn addresses(node: &Node) -> Result<Vec<String>> {
    let config = node.config();
    let own = config.listen.as_deref().and_then(|l| config::address(l).ok());
    let opened = node.port.address();
    let others = config.sources().map(|s| s.addresses).unwrap_or_default().into_iter().filter(|a| {
        let resolved = config::address(a).ok();
        resolved.is_none() || resolved != own && resolved != opened
    });
    let others: Vec<String> = others.collect();
    if others.is_empty() {
        let text = "the key 'leader' of this node names no other node: it would have nobody to follow afterwards; give all nodes the \
                    same list, then `towline reload`";
        return Err(Error::new(ErrorKind::Refused, text));
    }
    Ok(others)
}

fn hello(node: &Node, want: Want, at: Lsn) -> Result<Hello> {
    let history = node.state.history()?;
    Ok(Hello {
        versions: (if want == Want::Handover { VERSION_HANDOVER } else { VERSION_MIN }, VERSION_MAX),
        system: history.system(),
        timeline: history.timeline(),
        flush: at,
        segment: SegmentNo(0),
        offset: 0,
        prefix: SHA256_EMPTY,
        want,
        name: node.name(),
        node: node.id,
        wants: RoleWanted::Any,
        purpose: Purpose::Follow,
        line: history.line(),
        history: Hello::way(&history),
    })
}

async fn meet(node: &Node, address: &str, want: Want, at: Lsn) -> Result<Met> {
    let hello = hello(node, want, at)?;
    let (silence, traffic) = (node.config().peer_timeout.0, Arc::new(Traffic::default()));
    let meeting = net::meet(address, &node.trust, silence, &traffic, hello);
    let late = |_| Error::new(ErrorKind::Unavailable, format!("{address} does not answer"));
    let met = tokio::time::timeout(LOOK, meeting).await.map_err(late)?;
    met.map_err(|e| End::into_error(e).wrap(address))
}

/// What a node says of itself.
pub(super) async fn look(node: &Node, address: &str) -> Result<Welcome> {
    Ok(meet(node, address, Want::Judgement, Lsn::ZERO).await?.welcome)
}

/// Whether the answer is that of the node `id`.
pub(super) fn is(welcome: &Welcome, id: NodeId) -> bool {
    welcome.lineage.as_ref().is_some_and(|l| l.place(id) == Some(0))
}

/// Asks the node `heir` at `address`: its answer, and the way of its log.
///
/// # Errors
/// It does not answer within `limit`, or another one does.
pub(super) async fn ask(
    node: &Node,
    (address, heir): (&str, NodeId),
    question: Handover,
    limit: Duration,
) -> Result<(Heir, Option<History>)> {
    let asked = async {
        let Met { mut reader, mut writer, welcome, .. } =
            meet(node, address, Want::Handover, question.at).await?;
        if !is(&welcome, heir) {
            let text = format!("{address}: another node answers there: '{}'", net::one_line(&welcome.name));
            return Err(Error::new(ErrorKind::Unavailable, text));
        }
        match welcome.decision {
            Decision::Handover => {}
            Decision::Refuse { reason, .. } | Decision::Resync { reason } => {
                let text = format!("{address}: {}", net::one_line(&reason));
                return Err(Error::new(ErrorKind::Unavailable, text));
            }
            other => {
                let text = format!("{address} answered {other:?}, which was not asked for");
                return Err(Error::new(ErrorKind::Corrupt, text));
            }
        }
        writer.send(&Message::Handover(question)).await?;
        let heir = match reader.next().await? {
            Some(Message::Heir(heir)) => heir,
            Some(other) => return Err(net::unexpected(&other)),
            None => {
                return Err(Error::new(ErrorKind::Unavailable, format!("{address} left without an answer")));
            }
        };
        writer.goodbye(Code::Shutdown, "that was all").await;
        Ok((Heir { reason: net::one_line(&heir.reason), ..heir }, welcome.history))
    };
    let late = |_| {
        let text = format!("{address} gave no answer in {} s", limit.as_secs_f64());
        Error::new(ErrorKind::Unavailable, text)
    };
    tokio::time::timeout(limit, asked).await.map_err(late)?
}
