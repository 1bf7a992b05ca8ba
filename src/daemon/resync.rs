//! When a follower's directory is made equal to its upstream's anew, and what is said about it.
//!
//! | cause | the log | held back by a guard | by itself |
//! | --- | --- | --- | --- |
//! | the upstream has removed log that is needed, and the archive has not got it either | removed | mass delete | with `resync = "auto"` |
//! | the log is not a prefix of the upstream's | put aside in `lost/` | mass delete | with `resync = "auto"` |
//! | the directory is not what was applied | kept | mass delete | with `resync = "auto"` |
//! | `towline resync` | as the upstream sees it | no | |
//! | `--adopt` at the first start | none yet | mass delete | |
//!
//! What is wrong with the directory is repaired by itself only so often: a directory that never stays what it was
//! made needs somebody to look at its disk.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{Node, lock};
use crate::apply;
use crate::config::{Config, LocalEdits};
use crate::error::{Error, ErrorKind, Result};
use crate::fill::{Order, Report};
use crate::position::FileId;
use crate::state::{FillState, LogFate, Role};
use crate::wire::Code;

/// So many repairs of a directory are made by themselves, each within [`AGAIN`] of the one before.
const REPAIRS_MAX: u32 = 3;
const AGAIN: Duration = Duration::from_secs(600);
/// What is said when it is too often.
pub(super) const TOO_OFTEN: &str = "repaired three times, each within ten minutes of the one before, and wrong again: look at the disk of this directory";

/// Why a resync is wanted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Cause {
    /// What becomes of the log.
    log: LogFate,
    /// An operator asked for it.
    asked: bool,
    /// Files known to be damaged.
    files: Vec<FileId>,
    words: String,
}

impl Cause {
    /// The upstream answered a hello with this.
    pub(crate) fn of_refusal(code: Code, words: &str) -> Option<Self> {
        let log = match code {
            Code::Resync => LogFate::Removed,
            Code::Diverged => LogFate::Aside,
            _ => return None,
        };
        Some(Self { log, asked: false, files: Vec::new(), words: words.to_owned() })
    }

    /// Nothing is wrong but that the upstream has removed log.
    pub(crate) fn log_is_gone(&self) -> bool {
        self.log == LogFate::Removed
    }

    /// The directory is not what was applied.
    pub(crate) fn of_damage(files: Vec<FileId>, words: &str) -> Self {
        Self { log: LogFate::Kept, asked: false, files, words: words.to_owned() }
    }
}

/// What a node knows of its resyncs.
#[derive(Default)]
pub(crate) struct Resyncs {
    wish: Mutex<Option<Cause>>,
    confirmed: AtomicBool,
    pub(super) report: Arc<Mutex<Report>>,
    /// Repairs that followed each other closely, and when the last one was wanted.
    repairs: Mutex<(u32, Option<Instant>)>,
}

impl Resyncs {
    /// A resync is wanted; it begins with the next generation.
    pub(crate) fn want(&self, cause: Cause) {
        tracing::warn!("this node is resynced: {}", cause.words);
        let mut wish = lock(&self.wish);
        // An operator's wish is not taken back.
        if wish.as_ref().is_none_or(|w| !w.asked) {
            *wish = Some(cause);
        }
    }

    /// Whether a repair may begin by itself once more.
    pub(crate) fn may_repair(&self, now: Instant) -> bool {
        let (n, last) = &mut *lock(&self.repairs);
        *n = if last.is_some_and(|l| now.duration_since(l) < AGAIN) { *n + 1 } else { 1 };
        *last = Some(now);
        *n <= REPAIRS_MAX
    }

    /// The order for the next generation, if there is one.
    pub(super) fn order(&self, config: &Config, fill: FillState) -> Option<Order> {
        let wish = lock(&self.wish).clone();
        let adopt = fill == FillState::None && config.adopt;
        if wish.is_none() && !adopt {
            return None;
        }
        let asked = wish.as_ref().is_some_and(|w| w.asked) || self.confirmed.load(Ordering::SeqCst);
        Some(Order {
            log: wish.as_ref().map_or(LogFate::Kept, |w| w.log),
            guard: (!asked).then_some((config.max_delete, config.max_delete_floor)),
            tangled: asked || config.local_edits == LocalEdits::Overwrite,
            adopt,
            damaged: wish.map(|w| w.files).unwrap_or_default(),
        })
    }

    /// It is done; whatever was wanted is over.
    pub(super) fn done(&self) {
        *lock(&self.wish) = None;
        self.confirmed.store(false, Ordering::SeqCst);
    }

    /// What `status` shows.
    pub(super) fn part(&self, node: &Node) -> Value {
        let report = lock(&self.report).clone();
        let cause = lock(&self.wish).as_ref().map(|w| w.words.clone());
        let (lost, lost_bytes) = put_aside(node);
        let mut part = serde_json::to_value(report).unwrap_or_default();
        if let Some(map) = part.as_object_mut() {
            map.insert("cause".to_owned(), json!(cause));
            map.insert("lost_logs".to_owned(), json!(lost));
            map.insert("lost_bytes".to_owned(), json!(lost_bytes));
        }
        part
    }
}

/// How many logs were put aside, and how large they are.
fn put_aside(node: &Node) -> (u64, u64) {
    let list = |path: &std::path::Path| std::fs::read_dir(path).into_iter().flatten().flatten();
    let logs = list(&node.state.lost());
    let sizes =
        logs.map(|log| list(&log.path()).filter_map(|f| f.metadata().ok()).map(|m| m.len()).sum::<u64>());
    sizes.fold((0, 0), |(n, bytes), size| (n + 1, bytes + size))
}

/// Makes the damage durable before anything is compared with it.
pub(super) fn note_damage(node: &Node, order: &Order) -> Result<()> {
    if order.damaged.is_empty() { Ok(()) } else { apply::damaged(node.state.path(), &order.damaged) }
}

/// `towline resync`: the answer to an operator.
pub(super) fn asked(node: &Arc<Node>) -> Result<Value> {
    let control = node.state.set_up()?;
    if control.role == Role::Leader {
        let text =
            "this node is the leader: its directory is what the others are made equal to; resync a follower";
        return Err(Error::new(ErrorKind::Refused, text));
    }
    match control.fill {
        FillState::None | FillState::Copying { .. } => {
            let text =
                "this node takes its first copy; there is nothing to be made equal yet: see `towline status`";
            return Err(Error::new(ErrorKind::Refused, text));
        }
        FillState::Resyncing { .. } => return Ok(json!({"resync": "under way"})),
        FillState::Filled { .. } | FillState::Done => {}
    }
    let code = match node.engine() {
        Some(super::Engine::Follower(f)) => f.refused_with(),
        _ => None,
    };
    let refused = code.and_then(|c| Cause::of_refusal(c, ""));
    let words = "an operator asked for it".to_owned();
    let log = refused.map_or(LogFate::Kept, |c| c.log);
    node.resyncs.want(Cause { log, asked: true, files: Vec::new(), words });
    lock(&node.turn).cancel();
    node.retry.notify_waiters();
    Ok(json!({"resync": "begins"}))
}

/// `towline confirm` on a follower: lets a resync through that is held.
pub(super) fn confirm(node: &Arc<Node>) -> Value {
    let held = lock(&node.phase).error().is_some_and(|e| e.kind() == ErrorKind::Held);
    if held {
        node.resyncs.confirmed.store(true, Ordering::SeqCst);
        node.retry.notify_waiters();
    }
    json!({"confirmed": held})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repairs_that_do_not_help_end_and_seldom_ones_go_on() {
        let (r, start) = (Resyncs::default(), Instant::now());
        let at = |s| start + Duration::from_secs(s);
        assert!(r.may_repair(at(0)) && r.may_repair(at(10)) && r.may_repair(at(20)));
        assert!(!r.may_repair(at(30)));
        assert!(r.may_repair(at(30 + AGAIN.as_secs())));
    }

    #[test]
    fn who_is_asked_for_is_not_held_and_what_is_lost_is_put_aside() {
        let (r, config) = (Resyncs::default(), Config::default());
        assert!(r.order(&config, FillState::Done).is_none());
        r.want(Cause::of_refusal(Code::Diverged, "x").unwrap());
        let order = r.order(&config, FillState::Done).unwrap();
        assert_eq!((order.log, order.guard, order.tangled), (LogFate::Aside, Some((50, 1000)), false));
        r.confirmed.store(true, Ordering::SeqCst);
        assert_eq!(r.order(&config, FillState::Done).unwrap().guard, None);
        r.done();
        let asked = Cause { log: LogFate::Kept, asked: true, files: Vec::new(), words: String::new() };
        r.want(asked);
        r.want(Cause::of_damage(vec![FileId(3)], "y"));
        assert_eq!(r.order(&config, FillState::Done).unwrap().guard, None, "a wish is not taken back");
        r.done();
        let adopting = Config { adopt: true, ..config };
        assert!(r.order(&adopting, FillState::None).unwrap().adopt);
        assert!(r.order(&adopting, FillState::Done).is_none());
        assert!(Cause::of_refusal(Code::WrongSystem, "z").is_none());
    }
}
