//! The leader's part of a switchover up to the point of no return, within the generation that serves: the steps that
//! `session::handover` puts in order. Whatever ends the generation meanwhile leaves the note that it was begun, by which all is
//! put back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use super::super::{Node, blocking, lock, net};
use super::{Order, call, put_back};
use crate::capture::CaptureHandle;
use crate::error::{Error, ErrorKind, Result};
use crate::failpoint;
use crate::log::{Log, Tail};
use crate::position::Lsn;
use crate::quiesce::{self, Holder};
use crate::send::PeerState;
use crate::session::handover::{Leg, Next, Stopper, Went, next};
use crate::state::{Handover, Stage};
use crate::wire::{self, Stand, Step};

/// Longest run of the command `on_demote`.
const HOOK_MAX: Duration = Duration::from_secs(60);
/// Between looks how far the other is.
const LOOK: Duration = Duration::from_millis(2);
/// Between passes that are not exact yet.
const PASS: Duration = Duration::from_millis(20);
/// Longest wait for the last commit to be durable.
const DURABLE: Duration = Duration::from_secs(60);

/// Waits for switchovers that are wanted and conducts them. Returns once capture rests: what the note says then decides what
/// the next turn is.
///
/// # Errors
/// The note can't be put right: nothing is captured until it can.
pub(in crate::daemon) async fn conduct(node: &Arc<Node>, capture: &CaptureHandle, log: &Log) -> Result<()> {
    loop {
        let order = wanted(node).await;
        tracing::info!("switchover: this node is to hand over to '{}' at {}", order.name, order.address);
        let mut course = Course { node, capture, log, note: None, end: Lsn::ZERO, order };
        if course.run().await? {
            return Ok(());
        }
    }
}

async fn wanted(node: &Node) -> Order {
    loop {
        if let Some(order) = lock(&node.switchover.order).take() {
            return order;
        }
        node.switchover.wanted.notified().await;
    }
}

/// One switchover.
struct Course<'a> {
    node: &'a Arc<Node>,
    capture: &'a CaptureHandle,
    log: &'a Log,
    order: Order,
    /// What is noted.
    note: Option<Handover>,
    /// Where the log ends.
    end: Lsn,
}

fn pass(node: &Node, point: &'static str) -> Result<()> {
    failpoint::pass(point).map_err(|e| Error::io("change", node.state.path(), e))
}

impl Course<'_> {
    /// True: capture rests, so that this generation is over. False: nothing was changed, or all is put back.
    async fn run(&mut self) -> Result<bool> {
        let mut leg = Leg::Stopping;
        loop {
            self.node.switchover.at(leg);
            let done = tokio::time::timeout_at(self.order.deadline, self.step(leg)).await;
            let done = done.unwrap_or_else(|_| {
                let text = "the time that was given is over";
                Err(Error::new(ErrorKind::Unavailable, text))
            });
            let went = if done.is_ok() { Went::Well } else { Went::Wrong };
            match next(leg, went, self.order.stopper) {
                Next::Leg(Leg::Leading) => return Ok(true),
                Next::Leg(after) => leg = after,
                Next::Back(back) => {
                    let why =
                        done.err().unwrap_or_else(|| Error::new(ErrorKind::Cancelled, "it was broken off"));
                    self.undo(leg, why, back.note).await?;
                    if back.application {
                        put_back(self.node).await;
                    }
                    if !back.capture {
                        super::runs(self.node);
                    }
                    return Ok(back.capture);
                }
                Next::Again | Next::Over => return Ok(true),
            }
        }
    }

    /// What failed is said when the node runs as before.
    async fn undo(&self, leg: Leg, why: Error, noted: bool) -> Result<()> {
        let kind = why.kind();
        let text = format!(
            "the switchover to '{}' failed and was undone, this node leads on: {}: {why}",
            self.order.name,
            leg.word()
        );
        *lock(&self.node.switchover.undone) = Some(Error::new(kind, text));
        if let Some(note) = self.note.as_ref().filter(|_| noted) {
            // Nothing is captured, and no application started, before it is certain that it is not passed.
            let (node, note) = (Arc::clone(self.node), Handover { stage: Stage::Begun, ..note.clone() });
            blocking(move || node.state.note_handover(&note)).await?;
        }
        if self.order.stopper == Stopper::Operator {
            let node = Arc::clone(self.node);
            blocking(move || node.state.forget_handover()).await?;
        }
        Ok(())
    }

    async fn step(&mut self, leg: Leg) -> Result<()> {
        match leg {
            Leg::Stopping => self.stop_application().await,
            Leg::LastPass => self.last_pass().await,
            Leg::Resting => self.rest().await,
            Leg::Applying => self.applied().await,
            Leg::Asking => self.ready().await,
            Leg::Noting => self.passed(),
            Leg::Checks | Leg::Leading => Ok(()),
        }
    }

    async fn stop_application(&mut self) -> Result<()> {
        let history = self.node.state.history()?;
        let note = Handover {
            stage: Stage::Begun,
            stopper: self.order.stopper,
            timeline: history.timeline(),
            line: history.line(),
            at: Lsn::ZERO,
            heir: self.order.heir,
            since: net::wall_clock(),
            name: self.order.name.clone(),
            address: self.order.address.clone(),
        };
        // Not to be broken off: what is noted and what is not is known here.
        tokio::task::block_in_place(|| self.node.state.note_handover(&note))?;
        self.note = Some(note);
        pass(self.node, "switchover::begun")?;
        match self.order.stopper {
            Stopper::Operator => {}
            Stopper::Freeze => self.freeze().await?,
            Stopper::Hook => self.demote_hook().await?,
        }
        pass(self.node, "switchover::stopped")
    }

    async fn freeze(&self) -> Result<()> {
        let (freezer, config) = (Arc::clone(&self.node.freezer), self.node.config());
        let frozen = blocking(move || {
            freezer.aim(&config.freeze, config.max_freeze.0)?;
            freezer.seize(Holder::Switchover)
        });
        frozen.await.map_err(|e| e.wrap("the application can't be frozen"))
    }

    async fn demote_hook(&self) -> Result<()> {
        let Some(command) = self.node.config().on_demote else {
            let text = "on_demote was taken out of the configuration meanwhile";
            return Err(Error::new(ErrorKind::Config, text));
        };
        let env = [
            ("TOWLINE_NAME", self.node.name()),
            ("TOWLINE_TIMELINE", self.note.as_ref().map_or(0, |n| n.timeline.0).to_string()),
            ("TOWLINE_BRANCH", String::new()),
            ("TOWLINE_NEW_LEADER", self.order.address.clone()),
            ("TOWLINE_REASON", "switchover".to_owned()),
        ];
        let limit = self.order.deadline.saturating_duration_since(Instant::now()).min(HOOK_MAX);
        let (hooks, stop) = (Arc::clone(&self.node.switchover.hooks), Stop::default());
        let ends = Arc::clone(&stop.0);
        let run = blocking(move || {
            let _turn = lock(&hooks);
            quiesce::run_hook(&command, &env, limit, &ends)
        });
        run.await.map_err(|e| e.wrap("on_demote"))
    }

    /// Everything that the directory holds is committed, and the cut is exact: nothing writes.
    async fn last_pass(&self) -> Result<()> {
        loop {
            let lsn = self.capture.cover().await?;
            if exact(&self.durable(lsn).await?) {
                return Ok(());
            }
            tokio::time::sleep(PASS).await;
        }
    }

    /// The tail of the log once it reaches `lsn`.
    async fn durable(&self, lsn: Lsn) -> Result<Tail> {
        let log = self.log.clone();
        blocking(move || {
            if log.wait_durable(lsn, DURABLE)? {
                return Ok(log.tail());
            }
            Err(Error::new(ErrorKind::Io, "the last commit was not fsynced in time"))
        })
        .await
    }

    async fn rest(&mut self) -> Result<()> {
        let (capture, log) = (self.capture.clone(), self.log.clone());
        blocking(move || {
            capture.stop()?;
            let end = capture.settled(|fold| fold.read().lsn());
            log.wait_durable(end, DURABLE).map(drop)
        })
        .await?;
        let tail = self.log.tail();
        if !exact(&tail) {
            let text = "something writes to the directory although the application is stopped; see that it is, and try again";
            return Err(Error::new(ErrorKind::Refused, text));
        }
        self.end = tail.end;
        pass(self.node, "switchover::rested")
    }

    /// The other shows everything.
    async fn applied(&self) -> Result<()> {
        while !self.is_there()? {
            tokio::time::sleep(LOOK).await;
        }
        pass(self.node, "switchover::applied")
    }

    /// Whether the other, which is connected, shows everything.
    fn is_there(&self) -> Result<bool> {
        let name = &self.order.name;
        let list = self.node.port.peers().list();
        let peer = list.iter().find(|f| f.name == *name).filter(|f| f.state != PeerState::Away);
        let lost = || Error::new(ErrorKind::Unavailable, format!("the connection of '{name}' was lost"));
        let peer = peer.ok_or_else(lost)?;
        Ok(peer.state == PeerState::Streaming && peer.apply >= self.end)
    }

    async fn ready(&self) -> Result<()> {
        let question = wire::Handover { step: Step::Ready, at: self.end };
        let limit = self.order.deadline.saturating_duration_since(Instant::now());
        let heir = (self.order.address.as_str(), self.order.heir);
        let (answer, _) = call::ask(self.node, heir, question, limit).await?;
        if answer.stand != Stand::Yes {
            let text = format!("'{}' is not ready: {}", self.order.name, answer.reason);
            return Err(Error::new(ErrorKind::Refused, text));
        }
        pass(self.node, "switchover::ready")
    }

    /// The point of no return. It has no place where it could be broken off.
    fn passed(&mut self) -> Result<()> {
        if self.node.stop.is_cancelled() {
            return Err(Error::new(ErrorKind::Cancelled, "the node stops"));
        }
        if !self.is_there()? {
            let text = format!("'{}' connected anew meanwhile", self.order.name);
            return Err(Error::new(ErrorKind::Unavailable, text));
        }
        let Some(note) = self.note.clone() else { return Ok(()) };
        let note = Handover { stage: Stage::Passed, at: self.end, ..note };
        tokio::task::block_in_place(|| self.node.state.note_handover(&note))?;
        self.note = Some(note);
        tracing::info!(
            "switchover: this node ends its line at {}; '{}' is to lead",
            self.end,
            self.order.name
        );
        pass(self.node, "switchover::passed")
    }
}

/// Whether all of the log is one exact cut.
fn exact(tail: &Tail) -> bool {
    tail.exact == tail.end && tail.commit == tail.end
}

/// A command that is not waited for any more ends soon.
#[derive(Default)]
struct Stop(Arc<AtomicBool>);

impl Drop for Stop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}
