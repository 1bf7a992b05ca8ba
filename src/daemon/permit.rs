//! Whether this node may lead: the command `may_lead` of the configuration knows, and what stands behind it (a lease in a
//! consensus system, a witness, a ping of the gateway). Exit code 0 is a yes; anything else, and no answer within
//! `may_lead_interval`, is none.
//!
//! | when | `TOWLINE_ASKS` | without a yes |
//! | --- | --- | --- |
//! | before a promotion | `promote` | it is refused |
//! | before a leader opens for business | `start` | it stands aside |
//! | once in `may_lead_interval` while it leads | `lead` | it stands aside when the last yes is `may_lead_grace` old |
//! | before it takes over from a leader that hands over | `switchover` | it is refused |
//!
//! Who stands aside runs `on_demote`, ends its log, serves nobody and asks on, with `start`. After a yes it asks its peers as
//! every leader does, and leads on on the same timeline.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::{Node, blocking, fenced, lock};
use crate::error::{Error, ErrorKind, Result};
use crate::net::wall_clock;
use crate::quiesce;
use crate::status::Failure;
use crate::wire::Code;

/// What the yes is wanted for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Asks {
    /// A promotion.
    Promote,
    /// A leader that is about to open for business.
    Start,
    /// A leader that leads.
    Lead,
    /// One that is to take over from a leader that hands over.
    Switchover,
}

impl Asks {
    fn word(self) -> &'static str {
        match self {
            Self::Promote => "promote",
            Self::Start => "start",
            Self::Lead => "lead",
            Self::Switchover => "switchover",
        }
    }
}

/// Since when, and why, the node stands aside.
#[derive(Clone, Debug)]
struct Veto {
    since: i64,
    why: String,
    attempts: u64,
}

/// Whether this node stands aside.
#[derive(Default)]
pub(crate) struct Permit {
    veto: Mutex<Option<Veto>>,
    /// `on_demote` was run for it.
    demoted: AtomicBool,
}

impl Permit {
    /// There was no yes. True: the node leads, or is about to.
    fn refused(&self, why: &Error) -> bool {
        let mut veto = lock(&self.veto);
        let first = veto.is_none();
        let (since, attempts) = veto.as_ref().map_or((wall_clock(), 0), |v| (v.since, v.attempts));
        *veto = Some(Veto { since, why: why.to_string(), attempts: attempts + 1 });
        first
    }

    /// The trouble that `status` shows while the node stands aside.
    pub(super) fn shown(&self) -> Option<Failure> {
        let veto = lock(&self.veto).clone()?;
        Some(Failure {
            kind: ErrorKind::Refused.word(),
            message: veto.why,
            remedy: "see why the command says no, or gives no answer in time; the node leads on by itself after a yes",
            needs_help: true,
            since: veto.since,
            attempts: veto.attempts,
            next_retry: None,
        })
    }
}

/// Asks whether this node may lead. Without the key it may.
///
/// # Errors
/// [`ErrorKind::Refused`]: the command says no, or nothing in time.
pub(super) async fn ask(node: &Arc<Node>, asks: Asks) -> Result<()> {
    let config = node.config();
    let Some(command) = config.may_lead else { return Ok(()) };
    let control = node.state.set_up()?;
    let env = [
        ("TOWLINE_NAME", node.name()),
        ("TOWLINE_SYSTEM", control.system.to_string()),
        ("TOWLINE_TIMELINE", control.timeline.0.to_string()),
        ("TOWLINE_ASKS", asks.word().to_owned()),
    ];
    let limit = config.may_lead_interval.0;
    let asked = blocking(move || {
        let go_on = AtomicBool::new(false);
        quiesce::run_hook(&command, &env, limit, &go_on)
    });
    asked.await.map_err(|e| {
        let text = format!("may_lead does not let this node lead ({}): {e}", asks.word());
        Error::new(ErrorKind::Refused, text)
    })
}

/// Asks again and again while this node leads; returns why it has to stand aside.
pub(super) async fn lost(node: &Arc<Node>) -> Error {
    let mut yes = Instant::now();
    loop {
        tokio::time::sleep(node.config().may_lead_interval.0).await;
        let asked = Instant::now();
        match ask(node, Asks::Lead).await {
            Ok(()) => yes = asked,
            Err(e) => {
                let grace = node.config().may_lead_grace.0;
                let Some(left) = grace.checked_sub(yes.elapsed()).filter(|left| !left.is_zero()) else {
                    return e;
                };
                tracing::warn!("{e}; without a yes within {:.1} s it stands aside", left.as_secs_f64());
            }
        }
    }
}

/// The node has to stand aside: nobody is served from now on, then the application is stopped.
pub(super) async fn begin(node: &Arc<Node>, why: &Error) {
    if node.permit.refused(why) {
        tracing::error!("VETOED: {why}; this node stands aside until it may lead");
    }
    node.port.bar(node, Code::NotReady, &why.to_string()).await;
    node.phase("vetoed");
    let timeline = node.state.control().map_or(0, |c| c.timeline.0);
    let ran = !node.permit.demoted.swap(true, Ordering::SeqCst);
    if ran && !fenced::run(node, "vetoed", vec![("TOWLINE_TIMELINE", timeline.to_string())]).await {
        node.permit.demoted.store(false, Ordering::SeqCst);
    }
}

/// One turn of a leader that stands aside: until it may lead, is told to end, or hears of a newer line.
pub(super) async fn turn(node: &Arc<Node>, stop: &CancellationToken) -> Result<()> {
    node.phase("vetoed");
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            told = node.rivals.newer() => {
                lock(&node.permit.veto).take();
                return fenced::begin(node, told).await;
            }
            () = tokio::time::sleep(node.config().may_lead_interval.0.max(Duration::from_millis(100))) => {}
        }
        node.state.check()?;
        match ask(node, Asks::Start).await {
            Ok(()) => break,
            Err(e) => {
                node.permit.refused(&e);
            }
        }
    }
    granted(node);
    Ok(())
}

/// There was a yes: the node leads, or goes on to.
pub(super) fn granted(node: &Node) {
    if lock(&node.permit.veto).take().is_some() {
        tracing::warn!("this node may lead again");
    }
    if node.permit.demoted.swap(false, Ordering::SeqCst) {
        // What was stopped is started once the node serves.
        node.promotion.allowed();
    }
}
