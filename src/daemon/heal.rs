//! A follower's log that is damaged or has holes is made whole from its upstream, whose segments are the
//! same bytes.

use std::sync::Arc;

use super::{Node, blocking, follower};
use crate::checkpoint;
use crate::error::{Error, ErrorKind, Result};
use crate::log::{SealedBy, repair};
use crate::position::SegmentNo;
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
    if config.leader.is_none() {
        return Ok(0);
    }
    let sources = follower::upstreams(&config)?;
    let history = node.state.history()?;
    let mut from = Fetch {
        upstream: String::new(),
        name: node.name(),
        node: node.id,
        system,
        timeline,
        line: history.line(),
        peer_timeout: config.peer_timeout.0,
        trust: node.trust.clone(),
    };
    for &segment in &bad {
        from.timeline = history.timeline_of(segment);
        from.line = history.line_of(from.timeline).unwrap_or_default();
        let timeline = from.timeline;
        let bytes = fetch_from_any(&mut from, &sources.addresses, segment).await?;
        let (state, next_is_good) = (Arc::clone(&node.state), !bad.contains(&segment.next()));
        let by = SealedBy { timeline, ended_by: None };
        blocking(move || repair::install(&state.log(), system, by, segment, &bytes, next_is_good)).await?;
        tracing::warn!(
            "segment {:X} of the log was not good; fetched again from {}",
            segment.0,
            from.upstream
        );
    }
    Ok(bad.len())
}

/// Asks one upstream after the other, the one that helped last first.
async fn fetch_from_any(from: &mut Fetch, addresses: &[String], segment: SegmentNo) -> Result<Vec<u8>> {
    let mut why: Option<Error> = None;
    let last = std::mem::take(&mut from.upstream);
    let order = addresses.iter().filter(|a| **a == last).chain(addresses.iter().filter(|a| **a != last));
    for address in order {
        address.clone_into(&mut from.upstream);
        match fetch::segment(from, segment).await {
            Ok(bytes) => return Ok(bytes),
            Err(e) => why = Some(why.map_or(e.clone(), |w| Error::new(w.kind(), format!("{w}; {e}")))),
        }
    }
    Err(why.unwrap_or_else(follower::no_leader))
}
