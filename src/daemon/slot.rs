//! `towline slot`: looking at slots, and changing them by hand.

use std::sync::Arc;

use serde_json::{Value, json};

use super::{Engine, Node, blocking, cleanup, not_running};
use crate::control::SlotRequest;
use crate::error::{Error, ErrorKind, Result};
use crate::log::Log;
use crate::position::Lsn;
use crate::slots::{SlotStatus, no_slot};

/// The log that is open, if one is.
fn open_log(node: &Node) -> Option<Log> {
    match node.engine()? {
        Engine::Leader(l) => Some(l.log()),
        Engine::Follower(f) => f.log(),
    }
}

/// Every slot as it stands; with the engines at rest, too.
pub(super) fn list(node: &Node) -> Result<Vec<SlotStatus>> {
    let end = open_log(node).map_or(Lsn::ZERO, |log| log.tail().end);
    node.slots.list(&cleanup::ground(node, end, false)?)
}

pub(super) async fn answer(node: Arc<Node>, request: SlotRequest) -> Result<Value> {
    blocking(move || match request {
        SlotRequest::List {} => Ok(json!({"slots": list(&node)?})),
        SlotRequest::Show { name } => show(&node, &name),
        SlotRequest::Create { name, reserve } => {
            let position = if reserve { Some(log(&node)?.tail().end.max(Lsn::FIRST)) } else { None };
            node.slots.create(&name, position)?;
            show(&node, &name)
        }
        SlotRequest::Drop { name } => {
            node.slots.remove(&name)?;
            Ok(json!({"name": name, "dropped": true}))
        }
        SlotRequest::Advance { name, lsn } => {
            let to: Lsn = lsn.parse().map_err(|e| Error::new(ErrorKind::Usage, format!("{e}")))?;
            let log = log(&node)?;
            node.slots.advance(&name, to, (log.oldest()?, log.tail().end))?;
            show(&node, &name)
        }
    })
    .await
}

fn log(node: &Node) -> Result<Log> {
    open_log(node).ok_or_else(|| not_running(node))
}

fn show(node: &Node, name: &str) -> Result<Value> {
    let slot = list(node)?.into_iter().find(|s| s.name == name).ok_or_else(|| no_slot(name))?;
    Ok(json!({"name": name, "slot": slot}))
}
