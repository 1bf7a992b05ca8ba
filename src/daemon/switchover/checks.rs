//! What is looked at before a switchover begins: nothing is changed by it.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::super::{Engine, Node, not_running};
use super::{Order, call};
use crate::control::Switchover as Ask;
use crate::error::{Error, ErrorKind, Result};
use crate::position::{Lsn, NodeId};
use crate::quiesce;
use crate::send::{FollowerStatus, PeerState};
use crate::session::handover::{self, Candidate, Stopper};
use crate::state::Stage;
use crate::wire::{Handover, Stand, Step, VERSION_HANDOVER};

/// Longest wait for whether the other could lead: it may have to ask somebody.
const COULD: Duration = Duration::from_secs(30);

fn refused(text: impl Into<String>) -> Error {
    Error::new(ErrorKind::Refused, text)
}

/// What a switchover would do, and what it needs to know for that.
///
/// # Errors
/// What stands against it, by name.
pub(super) async fn look(node: &Arc<Node>, ask: &Ask, deadline: Instant) -> Result<(Order, Value)> {
    let Some(Engine::Leader(leader)) = node.engine() else { return Err(not_running(node)) };
    match node.state.handover()? {
        None => {}
        Some(note) if note.stage == Stage::Begun => {
            let text = format!(
                "the switchover to '{}' before this one is still being put back: the application is started; try again",
                note.name
            );
            return Err(Error::new(ErrorKind::Unavailable, text));
        }
        Some(note) => return Err(refused(format!("this node hands over to '{}' already", note.name))),
    }
    let config = node.config();
    let tail = leader.log().tail();
    let (heir, behind) = candidate(node, ask, tail.end, config.sync_near.0)?;
    let stopper = Stopper::choose(ask.stopped, config.on_demote.is_some(), !config.freeze.is_empty())
        .map_err(refused)?;
    if stopper == Stopper::Freeze {
        quiesce::vet(&config.freeze)?;
    }
    if let Some(hold) = leader.hold() {
        return Err(refused(format!("capture is held, so that no last pass can be made: {hold}")));
    }
    let unread = leader.unread();
    if unread > 0 {
        return Err(refused(format!(
            "{unread} files of this node's directory were not read yet: it could not follow without a copy; try again when \
             `towline status` shows no unhashed files"
        )));
    }
    let address = address(node, &ask.to, heir).await?;
    let limit = deadline.saturating_duration_since(Instant::now()).min(COULD);
    let question = Handover { step: Step::Could, at: Lsn::ZERO };
    let (answer, _) = call::ask(node, (&address, heir), question, limit).await?;
    if answer.stand != Stand::Yes {
        return Err(refused(format!("'{}' can't lead: {}", ask.to, answer.reason)));
    }
    let told = json!({
        "switched": false,
        "dry_run": true,
        "to": ask.to,
        "address": address,
        "behind_bytes": behind,
        "stops": match stopper {
            Stopper::Hook => "on_demote",
            Stopper::Freeze => "freeze",
            Stopper::Operator => "operator",
        },
    });
    Ok((Order { name: ask.to.clone(), address, heir, stopper, deadline }, told))
}

/// The id of the node that is named, if nothing that is known here stands against it, and how far it is behind.
fn candidate(node: &Node, ask: &Ask, end: Lsn, near: u64) -> Result<(NodeId, u64)> {
    let peers = node.port.peers();
    let list = peers.survey(node.port.leaders_clock());
    let names: Vec<&str> = list.iter().map(|f| f.name.as_str()).collect();
    let found = list.iter().find(|f| f.name == ask.to);
    let via = list.iter().find(|f| f.followers.iter().any(|b| b.names(&ask.to)));
    let known = found.map(|f| Candidate {
        state: word(f).to_owned(),
        halted: f.halted,
        delay: f.delay.unwrap_or(0.0),
        behind: end.since(f.apply),
    });
    handover::vet(&ask.to, &node.name(), &names, known.as_ref(), via.map(|f| f.name.as_str()), near)
        .map_err(refused)?;
    let heir = peers.node_of(&ask.to).filter(|id| *id != NodeId::NONE);
    let heir =
        heir.ok_or_else(|| refused(format!("follower '{}' is of an older program; update it", ask.to)))?;
    Ok((heir, known.map_or(0, |k| k.behind)))
}

fn word(f: &FollowerStatus) -> &'static str {
    match f.state {
        PeerState::Connecting => "connecting",
        PeerState::Filling => "filling",
        PeerState::Catchup => "catchup",
        PeerState::Streaming => "streaming",
        PeerState::Away => "away",
    }
}

/// The address of the list at which the node answers.
async fn address(node: &Arc<Node>, name: &str, heir: NodeId) -> Result<String> {
    let mut asked = tokio::task::JoinSet::new();
    for address in call::addresses(node)? {
        let node = Arc::clone(node);
        // A panic: nobody answered there.
        asked.spawn(async move {
            let looked = call::look(&node, &address).await;
            (address, looked)
        });
    }
    let mut heard = Vec::new();
    while let Some(joined) = asked.join_next().await {
        let Ok((address, looked)) = joined else { continue };
        match looked {
            Ok(welcome) if call::is(&welcome, heir) && welcome.version >= VERSION_HANDOVER => {
                return Ok(address);
            }
            Ok(welcome) if call::is(&welcome, heir) => {
                return Err(refused(format!(
                    "'{name}' speaks protocol {}, and can't take over; update it",
                    welcome.version
                )));
            }
            Ok(welcome) => heard.push(format!("at {address} there is '{}'", welcome.name.escape_debug())),
            Err(e) => heard.push(e.to_string()),
        }
    }
    heard.sort_unstable();
    Err(refused(format!(
        "'{name}' does not answer at any address of the key 'leader' of this node, which could not follow it afterwards: {}",
        heard.join("; ")
    )))
}
