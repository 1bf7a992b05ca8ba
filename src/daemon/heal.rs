//! A follower's log that is damaged or has holes is made whole from its upstream, whose segments are the
//! same bytes.

use std::sync::Arc;

use super::{Node, blocking};
use crate::checkpoint;
use crate::config;
use crate::error::{Error, ErrorKind, Result};
use crate::log::repair;
use crate::receive::fetch::{self, Fetch};
use crate::state::FillState;

/// Most segments that are fetched again; more is no accident but another log.
const SEGMENTS_MAX: usize = 64;

/// Fetches the segments of this follower's log that are needed and are not good. Returns how many.
///
/// # Errors
/// When the upstream can't give them. The damaged file stays until a good copy is at hand.
pub(super) async fn log_of(node: &Arc<Node>) -> Result<usize> {
    let Some(control) = node.state.control() else { return Ok(0) };
    if !matches!(control.fill, FillState::Filled { .. } | FillState::Done) {
        return Ok(0);
    }
    let (system, timeline, state) = (control.system, control.timeline, Arc::clone(&node.state));
    let bad = blocking(move || {
        let Some(catalog) = checkpoint::load_newest(&state.catalog(), system)? else { return Ok(Vec::new()) };
        repair::damaged(&state.log(), system, timeline, catalog.lsn().segment())
    });
    let bad = bad.await?;
    if bad.len() > SEGMENTS_MAX {
        let text = format!("{} segments of this node's log are damaged or missing", bad.len());
        return Err(Error::new(ErrorKind::Corrupt, text));
    }
    let config = node.config();
    let Some(upstream) = config.leader else { return Ok(0) };
    config::loopback_only(config::address(&upstream)?)?;
    let (name, peer_timeout) = (node.name.clone(), config.peer_timeout.0);
    let from = Fetch { upstream, name, node: node.id, system, timeline, peer_timeout };
    for &segment in &bad {
        let bytes = fetch::segment(&from, segment).await?;
        let (state, next_is_good) = (Arc::clone(&node.state), !bad.contains(&segment.next()));
        blocking(move || repair::install(&state.log(), system, timeline, segment, &bytes, next_is_good))
            .await?;
        tracing::warn!(
            "segment {:X} of the log was not good; fetched again from {}",
            segment.0,
            from.upstream
        );
    }
    Ok(bad.len())
}
