//! `towline wait`: a pass that covers everything the directory held at the call, the commit durable here, then the
//! confirmations. Every call ends as exactly one of these, and says which:
//!
//! | result | what is certain |
//! | --- | --- |
//! | `replicated` | durable in this node's log, and confirmed by those that had to |
//! | `local-only` | durable in this node's log, and not confirmed when the time was over or the caller cancelled |
//! | `unknown` | nothing: the pass did not end, or the log did not become durable |
//! | `reached`, `not-reached` | on a follower: its own position is there, or was not when the time was over |

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::follower::Follower;
use super::leader::Leader;
use super::{Engine, Node, not_running};
use crate::control::{self, WAIT_MAX, WAIT_TIMEOUT};
use crate::error::{Error, ErrorKind, Result};
use crate::position::Lsn;
use crate::quorum::{Level, Policy};
use crate::status::SyncPart;
use crate::sync::{Confirmed, WAITS_MAX, Wait};

/// Between looks whether the engines of a node that is starting are there.
const STARTING: Duration = Duration::from_millis(20);

/// The waits of this process.
pub(crate) struct Waits {
    places: Semaphore,
    replicated: AtomicU64,
    local_only: AtomicU64,
    unknown: AtomicU64,
}

impl Default for Waits {
    fn default() -> Self {
        Self {
            places: Semaphore::new(WAITS_MAX),
            replicated: AtomicU64::new(0),
            local_only: AtomicU64::new(0),
            unknown: AtomicU64::new(0),
        }
    }
}

impl Waits {
    /// How they ended.
    pub(super) fn fill(&self, part: &mut SyncPart) {
        part.replicated = self.replicated.load(Ordering::Relaxed);
        part.local_only = self.local_only.load(Ordering::Relaxed);
        part.unknown = self.unknown.load(Ordering::Relaxed);
    }
}

/// A call, checked.
struct Call {
    level: Option<Level>,
    policy: Option<Policy>,
    lsn: Option<Lsn>,
    began: Instant,
    timeout: Duration,
}

impl Call {
    fn check(ask: &control::Wait) -> Result<Self> {
        let usage = |text: String| Error::new(ErrorKind::Usage, text);
        let timeout = ask.timeout.map_or(WAIT_TIMEOUT, |t| t.0);
        if timeout.is_zero() || timeout > WAIT_MAX {
            let text =
                format!("a wait lasts 1ms to {} hours; give a timeout like 5s", WAIT_MAX.as_secs() / 3600);
            return Err(usage(text));
        }
        let policy = ask.policy.as_deref().map(str::parse::<Policy>).transpose();
        let policy = policy.map_err(|e| usage(format!("who has to confirm: {e}")))?;
        if policy.as_ref().is_some_and(Policy::is_async) {
            let text = "an empty policy waits for nobody; name followers, or leave 'for' out".to_owned();
            return Err(usage(text));
        }
        let lsn = ask.lsn.as_deref().map(str::parse::<Lsn>).transpose().map_err(|e| usage(e.to_string()))?;
        Ok(Self { level: ask.level, policy, lsn, began: Instant::now(), timeout })
    }

    fn elapsed_ms(&self) -> f64 {
        ms(self.began.elapsed())
    }

    /// The time is over, or the caller cancelled: which, in words.
    async fn over(&self, cancel: &CancellationToken) -> String {
        tokio::select! {
            () = cancel.cancelled() => "cancelled".to_owned(),
            () = tokio::time::sleep(self.timeout.saturating_sub(self.began.elapsed())) => {
                format!("not confirmed within {}", crate::config::Span(self.timeout))
            }
        }
    }
}

fn ms(span: Duration) -> f64 {
    (span.as_secs_f64() * 1e6).round() / 1e3
}

/// Answers one call.
pub(super) async fn answer(
    node: &Arc<Node>,
    ask: &control::Wait,
    cancel: CancellationToken,
) -> Result<Value> {
    let call = Call::check(ask)?;
    let Ok(_place) = node.waits.places.try_acquire() else {
        let text = format!("{WAITS_MAX} callers wait for confirmations, as many as may; try again");
        return Err(Error::new(ErrorKind::Unavailable, text));
    };
    let engine = tokio::select! {
        biased;
        engine = running(node) => engine,
        _ = call.over(&cancel) => return Ok(unknown(node, &call, &not_running(node).to_string())),
    };
    match engine {
        Engine::Leader(leader) => Ok(on_leader(node, &leader, &call, &cancel).await),
        Engine::Follower(follower) => on_follower(&follower, &call, &cancel).await,
    }
}

/// The engines; a node that is starting is waited for.
async fn running(node: &Node) -> Engine {
    loop {
        if let Some(engine) = node.engine() {
            return engine;
        }
        tokio::time::sleep(STARTING).await;
    }
}

fn unknown(node: &Node, call: &Call, reason: &str) -> Value {
    node.waits.unknown.fetch_add(1, Ordering::Relaxed);
    json!({"result": "unknown", "reason": reason, "elapsed_ms": call.elapsed_ms()})
}

async fn on_leader(node: &Arc<Node>, leader: &Leader, call: &Call, cancel: &CancellationToken) -> Value {
    let local = async {
        let lsn = match call.lsn {
            Some(lsn) => lsn,
            None => leader.cover().await?,
        };
        leader.durable(lsn).await?;
        Ok::<_, Error>(lsn)
    };
    let lsn = tokio::select! {
        biased;
        lsn = local => lsn,
        why = call.over(cancel) => {
            let what = if call.lsn.is_some() { "the log has not reached that position" } else { "no pass over the directory ended" };
            return unknown(node, call, &format!("{what} ({why})"));
        }
    };
    let lsn = match lsn {
        Ok(lsn) => lsn,
        Err(e) => return unknown(node, call, &e.to_string()),
    };
    let captured = call.began.elapsed();
    let wait = Wait { lsn, level: call.level, policy: call.policy.clone() };
    let confirmed = confirmation(node, wait, call, cancel).await;
    let mut value = json!({
        "lsn": lsn.to_string(),
        "capture_ms": ms(captured),
        "confirm_ms": ms(call.began.elapsed().saturating_sub(captured)),
        "elapsed_ms": call.elapsed_ms(),
    });
    let mut set = |key: &str, v: Value| value[key] = v;
    match confirmed {
        Ok(Confirmed { by, level, policy }) => {
            // Where nobody had to confirm and nobody is there, it is in this log only.
            let alone = by.is_empty();
            let count = if alone { &node.waits.local_only } else { &node.waits.replicated };
            count.fetch_add(1, Ordering::Relaxed);
            set("result", json!(if alone { "local-only" } else { "replicated" }));
            if alone {
                set("reason", json!("no follower is attached"));
            }
            set("level", json!(level.word()));
            set("policy", json!(policy.map(|p| p.to_string())));
            set("confirmed_by", json!(by));
        }
        Err(reason) => {
            node.waits.local_only.fetch_add(1, Ordering::Relaxed);
            let force = node.port.peers().in_force().borrow().clone();
            set("result", json!("local-only"));
            set("reason", json!(reason));
            set("level", json!(call.level.unwrap_or(force.rules.level).word()));
            let policy = call.policy.as_ref().or(Some(&force.rules.policy).filter(|p| !p.is_async()));
            set("policy", json!(policy.map(ToString::to_string)));
            set("confirmed_by", json!([]));
            if let Some(hint) = policy.and_then(|p| node.port.peers().obstacle(p)) {
                set("hint", json!(hint));
            }
        }
    }
    value
}

/// Waits for the confirmation of what is durable here. `Err`: why there is none.
async fn confirmation(
    node: &Arc<Node>,
    wait: Wait,
    call: &Call,
    cancel: &CancellationToken,
) -> std::result::Result<Confirmed, String> {
    let mut ticket = node.port.peers().wait_for(wait).map_err(|e| e.to_string())?;
    tokio::select! {
        biased;
        confirmed = ticket.confirmed() => confirmed.map_err(|e| e.to_string()),
        why = call.over(cancel) => Err(why),
    }
}

async fn on_follower(follower: &Follower, call: &Call, cancel: &CancellationToken) -> Result<Value> {
    let Some(lsn) = call.lsn else {
        let text = "this node is a follower: its directory is written by towline alone; ask the leader, or give a \
                    position with --lsn to wait for this node to reach it";
        return Err(Error::new(ErrorKind::Refused, text));
    };
    if call.policy.is_some() {
        let text = "a follower waits for itself only; leave out who has to confirm, or ask the leader";
        return Err(Error::new(ErrorKind::Usage, text));
    }
    let level = call.level.unwrap_or(Level::Apply);
    let reached = tokio::select! {
        biased;
        reached = follower.reaches(lsn, level) => reached.map(|()| None),
        why = call.over(cancel) => Ok(Some(why)),
    };
    let mut value = json!({"lsn": lsn.to_string(), "level": level.word(), "elapsed_ms": call.elapsed_ms()});
    match reached {
        Ok(None) => value["result"] = json!("reached"),
        Ok(Some(why)) => {
            value["result"] = json!("not-reached");
            value["reason"] = json!(why.replace("confirmed", "reached"));
        }
        Err(e) => {
            value["result"] = json!("unknown");
            value["reason"] = json!(e.to_string());
        }
    }
    Ok(value)
}
