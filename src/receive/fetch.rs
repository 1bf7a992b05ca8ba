//! One sealed segment once more: for a follower whose own copy was damaged.
//!
//! To the sender this is a follower whose log ends where the segment begins.

use std::sync::Arc;
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use crate::history::LineId;
use crate::net::{self, End, Met, Traffic};
use crate::position::{NodeId, SegmentNo, SystemId, TimelineId};
use crate::segment::{FILE_MAX, TRAILER_LEN, Trailer};
use crate::tls::Trust;
use crate::wire::{
    Code, Decision, Hello, Message, Purpose, RoleWanted, SHA256_EMPTY, VERSION_MAX, VERSION_MIN, Want,
};

/// A segment that takes longer is given up.
const FETCH_MAX: Duration = Duration::from_secs(120);

/// From where, and as whom.
#[derive(Clone, Debug)]
pub struct Fetch {
    /// `host:port` of the node to ask.
    pub upstream: String,
    /// This node's name.
    pub name: String,
    /// Its identity beyond the name.
    pub node: NodeId,
    /// The system it holds.
    pub system: SystemId,
    /// The timeline of the segment on this node's way.
    pub timeline: TimelineId,
    /// Which line that is.
    pub line: LineId,
    /// An upstream that sends nothing for this long is given up.
    pub peer_timeout: Duration,
    /// By which terms the node is trusted.
    pub trust: Trust,
}

/// The stored bytes of a sealed segment, as the upstream has them. They are not checked here.
///
/// # Errors
/// [`ErrorKind::Unavailable`] when there is no connection, [`ErrorKind::Refused`] when the upstream says no or
/// does not have the segment.
pub async fn segment(from: &Fetch, segment: SegmentNo) -> Result<Vec<u8>> {
    let what = format!("cannot fetch segment {:X} from {}", segment.0, from.upstream);
    let late = |_| Error::new(ErrorKind::Unavailable, format!("not within {} s", FETCH_MAX.as_secs()));
    let fetched = tokio::time::timeout(FETCH_MAX, take(from, segment)).await.map_err(late);
    fetched.and_then(|r| r).map_err(|e| e.wrap(&what))
}

async fn take(from: &Fetch, segment: SegmentNo) -> Result<Vec<u8>> {
    let hello = Hello {
        versions: (VERSION_MIN, VERSION_MAX),
        system: from.system,
        timeline: from.timeline,
        flush: segment.start(),
        segment,
        offset: 0,
        prefix: SHA256_EMPTY,
        want: Want::Stream,
        name: from.name.clone(),
        node: from.node,
        wants: RoleWanted::Any,
        purpose: Purpose::Follow,
        line: from.line,
        history: None,
    };
    let traffic = Arc::new(Traffic::default());
    let met = net::meet(&from.upstream, &from.trust, from.peer_timeout, &traffic, hello).await;
    let Met { mut reader, mut writer, welcome, .. } = met.map_err(End::into_error)?;
    match welcome.decision {
        Decision::StreamFrom { segment: s, offset: 0 } if s == segment => {}
        Decision::Refuse { reason, .. } | Decision::Resync { reason } => {
            return Err(Error::new(ErrorKind::Refused, net::one_line(&reason)));
        }
        other => {
            let text = format!("the upstream answered {other:?}, which was not asked for");
            return Err(Error::new(ErrorKind::Corrupt, text));
        }
    }
    let mut bytes: Vec<u8> = Vec::new();
    let ends = |bytes: &[u8]| {
        let tail = bytes.len().checked_sub(TRAILER_LEN).and_then(|at| bytes.get(at..));
        tail.is_some_and(|t| Trailer::decode(t, from.system, from.timeline, segment).is_ok())
    };
    while !ends(&bytes) {
        match reader.next().await? {
            Some(Message::Log { segment: s, offset, bytes: more })
                if s == segment && offset == bytes.len() as u64 && offset + more.len() as u64 <= FILE_MAX =>
            {
                bytes.extend_from_slice(&more);
            }
            Some(Message::Keepalive(_) | Message::Slots(_)) => {}
            Some(Message::Goodbye { reason, .. }) => {
                return Err(Error::new(ErrorKind::Refused, net::one_line(&reason)));
            }
            Some(Message::Log { .. }) => {
                return Err(Error::new(ErrorKind::Corrupt, "what came is not that segment"));
            }
            Some(other) => return Err(net::unexpected(&other)),
            None => return Err(Error::new(ErrorKind::Unavailable, "the upstream closed the connection")),
        }
    }
    writer.goodbye(Code::Shutdown, "the segment is here").await;
    Ok(bytes)
}
