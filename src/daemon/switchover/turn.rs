//! The leader's part of a switchover from the point of no return on: a turn of its own, in which nothing is captured and no log
//! served, until another node leads. This node then is its follower.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::super::demote::{self, Way};
use super::super::permit::{self, Asks};
use super::super::{Node, blocking, lock, net};
use super::{Under, call, thaw};
use crate::error::{Error, ErrorKind, Result};
use crate::failpoint;
use crate::history::History;
use crate::moment::Moment;
use crate::net::Ancestry;
use crate::session::handover::{Found, Leg, Stopper, found, goes_on};
use crate::state::{Fence, Handover, Role, Stage};
use crate::wire::{self, Stand, Step};

/// Between two questions to a node that is about to lead.
const SOON: Duration = Duration::from_millis(10);
/// Between two to one that does not answer: the first pause, the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// Longest wait for an answer.
const ANSWER: Duration = Duration::from_secs(10);
/// How long an application stays frozen while the new leader's command runs.
const SETTLE: Duration = Duration::from_secs(65);

/// Whether this node, a leader by its control file, has handed over. A note that is over is removed.
///
/// # Errors
/// The note can't be read: nothing is captured until it can.
pub(in crate::daemon) fn is_passed(node: &Node) -> Result<bool> {
    let Some(note) = node.state.handover()? else { return Ok(false) };
    let leads = node.state.set_up()?.role == Role::Leader;
    match note.stage {
        // The application is started again by the leader's generation.
        Stage::Begun if leads => return Ok(false),
        Stage::Passed
            if leads && found(&node.state.history()?, note.timeline, note.line) == Found::Passed =>
        {
            return Ok(true);
        }
        Stage::Begun | Stage::Passed => {}
    }
    node.state.forget_handover()?;
    Ok(false)
}

/// Whether the next turn is that of a leader that has handed over. One that an operator forces to lead begins a new line
/// instead.
///
/// # Errors
/// As [`is_passed`].
pub(in crate::daemon) fn leads_no_more(node: &Node) -> Result<bool> {
    Ok(is_passed(node)? && !node.promotion.wants_force())
}

/// One turn of a leader that has handed over.
///
/// # Errors
/// This node's own files failed it.
pub(in crate::daemon) async fn turn(node: &Arc<Node>, stop: &CancellationToken) -> Result<()> {
    let Some(note) = node.state.handover()? else { return Ok(()) };
    if node.force.swap(false, Ordering::SeqCst) {
        match permit::ask(node, Asks::Start).await {
            Ok(()) => {
                node.promotion.begin_force();
                return Ok(());
            }
            Err(e) => tracing::error!("this node is not forced to lead: {e}"),
        }
    }
    node.phase("handing-over");
    lock(&node.switchover.under).get_or_insert_with(|| Under {
        to: note.name.clone(),
        address: note.address.clone(),
        leg: Leg::Leading,
        since: note.since,
    });
    node.switchover.at(Leg::Leading);
    node.port.open(&node.config(), Ancestry::leader(node.id), None).await?;
    let reason = format!("this node hands over to '{}' at {}: follow that one", note.name, note.address);
    node.port.turn_away(node, &reason).await;
    pass(node, "switchover::closed")?;
    let led = tokio::select! {
        led = until_led(node, &note) => led?,
        () = stop.cancelled() => return Ok(()),
    };
    pass(node, "switchover::led")?;
    let stopped =
        Duration::from_nanos(u64::try_from(net::wall_clock().saturating_sub(note.since)).unwrap_or(0));
    settle(node, &note, &led).await?;
    let timeline = led.history.timeline();
    tracing::info!(
        "switchover: '{}' leads timeline {timeline} from {} on; writes were stopped for {:.3} s",
        led.name,
        note.at,
        stopped.as_secs_f64()
    );
    let outcome = json!({
        "switched": true,
        "to": led.name,
        "address": led.address,
        "timeline": timeline.0,
        "at": note.at.to_string(),
        "when": note.since,
        "writes_stopped_seconds": stopped.as_secs_f64(),
    });
    node.switchover.ends(Ok(outcome));
    // A follower freezes nothing for want of others.
    node.strict.look();
    Ok(())
}

fn pass(node: &Node, point: &'static str) -> Result<()> {
    failpoint::pass(point).map_err(|e| Error::io("change", node.state.path(), e))
}

/// The node that leads now.
struct Led {
    name: String,
    address: String,
    history: History,
}

/// Asks until another node leads.
async fn until_led(node: &Arc<Node>, note: &Handover) -> Result<Led> {
    let own = node.state.history()?;
    let mut pause = PAUSES.0;
    let mut asked = false;
    loop {
        let e = match ask(node, note, &own, &mut asked).await {
            Ok(Some(led)) => return Ok(led),
            Ok(None) => {
                pause = PAUSES.0;
                tokio::time::sleep(SOON).await;
                continue;
            }
            Err(e) => e,
        };
        if let Some(led) = elsewhere(node, &own, note).await {
            return Ok(led);
        }
        say(node, note, e);
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSES.1);
    }
}

/// One question to the node that is to lead. `None`: it is about to.
async fn ask(node: &Arc<Node>, note: &Handover, own: &History, asked: &mut bool) -> Result<Option<Led>> {
    let question = wire::Handover { step: Step::Lead, at: note.at };
    let (answer, theirs) = call::ask(node, (&note.address, note.heir), question, ANSWER).await?;
    if !std::mem::replace(asked, true) {
        pass(node, "switchover::asked")?;
    }
    match answer.stand {
        Stand::Leads => {
            let history = theirs.filter(|h| goes_on(own, h, note.at).is_some());
            let (name, address) = (note.name.clone(), note.address.clone());
            Ok(history.map(|history| Led { name, address, history }))
        }
        Stand::Begins | Stand::Yes => Ok(None),
        Stand::No => {
            let text = format!("'{}' at {} does not lead: {}", note.name, note.address, answer.reason);
            Err(Error::new(ErrorKind::Refused, text))
        }
    }
}

/// Whether the line goes on at another of the nodes that are known.
async fn elsewhere(node: &Arc<Node>, own: &History, note: &Handover) -> Option<Led> {
    for address in call::addresses(node).unwrap_or_default() {
        let Ok(welcome) = call::look(node, &address).await else { continue };
        let Some(history) = welcome.history.filter(|h| goes_on(own, h, note.at).is_some()) else { continue };
        return Some(Led { name: welcome.name, address, history });
    }
    None
}

/// What keeps the other from leading is shown until it does.
fn say(node: &Node, note: &Handover, e: Error) {
    let kind = e.kind();
    let text = format!(
        "this node handed over to '{}' at {}, and does not lead any more; it is asked until it leads: {e}; if it never can, \
         `towline promote --force` makes this node the leader of a new timeline",
        note.name,
        Moment(note.since)
    );
    let e = Error::new(kind, text);
    let mut phase = lock(&node.phase);
    if phase.error().is_none_or(|old| old.to_string() != e.to_string()) {
        tracing::error!(kind = kind.word(), "{e}");
    }
    phase.fail(e);
    phase.enter("handing-over");
    drop(phase);
    node.supervisor.changed();
}

/// This node becomes a follower of the one that leads; the note goes last.
async fn settle(node: &Arc<Node>, note: &Handover, led: &Led) -> Result<()> {
    let (keeper, next) = (Arc::clone(node), led.history.clone());
    let (name, address) = (led.name.clone(), led.address.clone());
    let way = blocking(move || {
        let way = demote::demote(&keeper.state, &next)?;
        if let Way::Rewind(_) = way {
            // It left off elsewhere, or its directory holds what is not known: that is the fence's matter.
            keeper.state.fence(&Fence {
                since: net::wall_clock(),
                demoted: true,
                name,
                address: Some(address),
                history: next,
            })?;
        }
        pass(&keeper, "switchover::demoted")?;
        keeper.state.forget_handover()?;
        Ok(way)
    })
    .await?;
    if way != Way::InPlace {
        tracing::error!(
            "switchover: '{}' leads a line that this node's log does not end on; it has to be rewound",
            led.name
        );
    }
    if note.stopper == Stopper::Freeze {
        // What the new leader's command does may be about this very application.
        let (node, note) = (Arc::clone(node), note.clone());
        // A panic: it is thawed when the process ends.
        tokio::spawn(async move {
            let settled = async {
                let question = wire::Handover { step: Step::Lead, at: note.at };
                while !call::ask(&node, (&note.address, note.heir), question, ANSWER)
                    .await
                    .is_ok_and(|(answer, _)| answer.settled)
                {
                    tokio::time::sleep(PAUSES.0).await;
                }
            };
            tokio::select! {
                _ = tokio::time::timeout(SETTLE, settled) => {}
                () = node.stop.cancelled() => {}
            }
            thaw(&node);
        });
    }
    Ok(())
}
