//! A follower that is ahead of a node which follows itself: only the leader knows whether the log that it holds is log.
//!
//! The node may merely be behind, and then nothing is thrown away. So it asks its own upstream, which asks its own, up to
//! the leader, whose end is the end. The answer is one that was given after the question, and none is remembered.

use std::sync::Arc;
use std::time::Duration;

use super::ServeContext;
use crate::net::{self, Traffic, Upstream};
use crate::wire::{
    Code, Decision, Hello, Purpose, RoleWanted, VERSION_JUDGEMENT, VERSION_MAX, VERSION_MIN, Want,
};

/// Longest wait for the answer; the one who is ahead waits for its own meanwhile.
const ANSWER: Duration = Duration::from_secs(5);

/// What is decided when this node decided `here` by itself, and can't know better.
pub(super) async fn ask(context: &ServeContext, hello: &Hello, here: Decision) -> Decision {
    let Some(upstream) = &context.upstream else { return here };
    if upstream.protocol() < VERSION_JUDGEMENT {
        return here;
    }
    let answer = tokio::time::timeout(ANSWER, meet(context, upstream, hello)).await;
    match answer {
        Ok(Ok(Decision::Refuse { code: Code::Diverged, reason })) => {
            let by = upstream.status().name.unwrap_or_default();
            let reason = format!("by '{by}', which this node follows: {}", net::one_line(&reason));
            Decision::Refuse { code: Code::Diverged, reason }
        }
        Ok(Ok(_)) => here,
        Ok(Err(e)) => {
            tracing::debug!("whether '{}' has log of the leader's is not known: {e}", hello.name);
            here
        }
        Err(_) => here,
    }
}

async fn meet(context: &ServeContext, upstream: &Upstream, hello: &Hello) -> crate::error::Result<Decision> {
    let asks = Hello {
        versions: (VERSION_MIN, VERSION_MAX),
        want: Want::Judgement,
        name: context.name.clone(),
        node: upstream.node(),
        wants: RoleWanted::Any,
        purpose: Purpose::Follow,
        ..hello.clone()
    };
    let (traffic, at) = (Arc::new(Traffic::default()), upstream.status().address);
    let met = net::meet(&at, upstream.trust(), context.peer_timeout, &traffic, asks).await;
    Ok(met.map_err(net::End::into_error)?.welcome.decision)
}
