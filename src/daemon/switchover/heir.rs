//! The node that is to lead: what it answers to the one that leads.

use std::sync::Arc;

use super::super::permit::{self, Asks};
use super::super::{Engine, Node, is_follower, lock, promote};
use crate::error::Result;
use crate::history::Standing;
use crate::net::UpstreamState;
use crate::position::NodeId;
use crate::send::HeirDesk;
use crate::session::handover::{self, Standpoint};
use crate::state::FillState;
use crate::wire::{Handover, Heir, Hello, Stand, Step};

/// What answers at the port of this node.
pub(in crate::daemon) fn desk(node: &Arc<Node>) -> HeirDesk {
    let node = Arc::downgrade(node);
    Arc::new(move |hello, question| {
        let node = node.upgrade();
        Box::pin(async move {
            let Some(node) = node else { return Heir::no("the node stops") };
            answer(&node, &hello, question).await.unwrap_or_else(|e| Heir::no(e.to_string()))
        })
    })
}

async fn answer(node: &Arc<Node>, hello: &Hello, question: Handover) -> Result<Heir> {
    let own = node.state.history()?;
    if !is_follower(node) {
        return Ok(leads(node, hello, question));
    }
    if promote::under_way(node) {
        return Ok(Heir::stands(Stand::Begins));
    }
    if (own.timeline(), own.line()) != (hello.timeline, hello.line) {
        let text = format!(
            "it is on timeline {} (line {}), and '{}' on {} (line {})",
            own.timeline(),
            own.line(),
            hello.name.escape_debug(),
            hello.timeline,
            hello.line
        );
        return Ok(Heir::no(text));
    }
    let Some(here) = standpoint(node, hello.node)? else {
        return Ok(Heir::no(format!("it is {}: its engines do not run", lock(&node.phase).word())));
    };
    if let Err(why) = handover::answer(question.step, question.at, &here) {
        return Ok(Heir::no(why));
    }
    if question.step == Step::Lead {
        promote::succeed(node, question.at)?;
        tracing::info!("'{}' hands over: this node leads from {} on", hello.name.escape_debug(), question.at);
        return Ok(Heir::stands(Stand::Begins));
    }
    permit::ask(node, Asks::Switchover).await?;
    Ok(Heir::stands(Stand::Yes))
}

/// It leads already: on a line that goes on from the asker's, or on another one.
fn leads(node: &Arc<Node>, hello: &Hello, question: Handover) -> Heir {
    let standing = node.state.history().map(|own| own.judge(hello.timeline, hello.line, question.at));
    // One that follows this node by now is on its line.
    let goes_on = standing.is_ok_and(|s| matches!(s, Standing::Before(_) | Standing::Same));
    if !goes_on {
        return Heir::no("it is a leader itself, on a line that does not go on from there");
    }
    if !matches!(node.engine(), Some(Engine::Leader(_))) {
        return Heir::stands(Stand::Begins);
    }
    Heir { settled: promote::settled(node), ..Heir::stands(Stand::Leads) }
}

/// How this node stands to be the next leader; `None`: its engines do not run.
fn standpoint(node: &Arc<Node>, asker: NodeId) -> Result<Option<Standpoint>> {
    let control = node.state.set_up()?;
    let Some(Engine::Follower(follower)) = node.engine() else { return Ok(None) };
    let filled = control.fill == FillState::Done;
    let Some((log, apply)) = follower.stand() else {
        let none = || Standpoint {
            filled,
            follows: None,
            failure: None,
            rests: false,
            delayed: false,
            log: Default::default(),
            applied: Default::default(),
        };
        return Ok((!filled).then(none));
    };
    let (at, tail, config) = (*apply.applied().borrow(), log.tail(), node.config());
    let streams = follower.upstream().status().state == UpstreamState::Streaming;
    let from = follower.upstream().ancestry().is_from(asker);
    let failure = apply.failure().or_else(|| log.failure()).map(|e| e.to_string());
    Ok(Some(Standpoint {
        filled,
        follows: streams.then_some(from),
        failure: failure.or_else(|| at.halted.then(|| "its directory rests until somebody helps".to_owned())),
        rests: node.paused.load(std::sync::atomic::Ordering::SeqCst) || *apply.reached().borrow(),
        delayed: !config.apply_delay.0.is_zero(),
        log: (tail.end, tail.exact.min(tail.commit)),
        applied: (at.lsn, at.consistent),
    }))
}
