//! Who the two sides are and what is agreed between them: hello, welcome, reasons.

use super::{
    HELLO_BRANCHES, HELLO_MAX, Lineage, MAGIC, NAME_MAX, REASON_MAX, VERSION_BACKUP, VERSION_MAX,
    VERSION_MIN, VERSION_SLOTS,
};
use crate::codec::{DecodeError, Put, Reader};
use crate::history::{HISTORY_BYTES, History, LineId};
use crate::position::{Lsn, NodeId, SegmentNo, SystemId, TimelineId};

/// What a receiver asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Want {
    /// Log from where it stands.
    Stream,
    /// The whole directory.
    Fill,
    /// The rest of the directory, of which it holds a part from the snapshot at this commit.
    ResumeFill(Lsn),
    /// Nothing but the decision about [`Self::Stream`]: the receiver asks for another that follows it and is ahead of it.
    Judgement,
    /// A word with the node that is to lead after the one that asks: [`super::Handover`].
    Handover,
}

/// What a receiver asks its upstream to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(u8)]
pub enum RoleWanted {
    /// Either.
    #[default]
    Any = 0,
    /// The leader.
    Leader = 1,
    /// A follower.
    Follower = 2,
}

impl RoleWanted {
    fn from_u8(v: u8) -> Result<Self, DecodeError> {
        match v {
            0 => Ok(Self::Any),
            1 => Ok(Self::Leader),
            2 => Ok(Self::Follower),
            v => Err(DecodeError::Invalid { what: "role wanted", value: u64::from(v) }),
        }
    }
}

/// What a receiver does with what it is sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(u8)]
pub enum Purpose {
    /// It follows the sender.
    #[default]
    Follow = 0,
    /// It takes a backup: it has no slot, and is no follower.
    Backup = 1,
}

impl Purpose {
    fn from_u8(v: u8) -> Result<Self, DecodeError> {
        match v {
            0 => Ok(Self::Follow),
            1 => Ok(Self::Backup),
            v => Err(DecodeError::Invalid { what: "purpose", value: u64::from(v) }),
        }
    }

    /// The versions to offer for it: a sender that does not know backups would take one for a follower.
    #[must_use]
    pub fn versions(self) -> (u16, u16) {
        match self {
            Self::Follow => (VERSION_MIN, VERSION_MAX),
            Self::Backup => (VERSION_BACKUP, VERSION_MAX),
        }
    }
}

/// Who a receiver is and where it stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hello {
    /// Lowest and highest protocol version it speaks.
    pub versions: (u16, u16),
    /// Its system, [`SystemId::NONE`] when it is empty.
    pub system: SystemId,
    /// Its timeline.
    pub timeline: TimelineId,
    /// End of its durable log.
    pub flush: Lsn,
    /// The segment its log is to be continued in.
    pub segment: SegmentNo,
    /// How many stored bytes of that segment it holds.
    pub offset: u64,
    /// SHA-256 of those bytes.
    pub prefix: [u8; 32],
    /// What it asks for.
    pub want: Want,
    /// Its name.
    pub name: String,
    /// Its identity beyond the name; none when it is of an older version.
    pub node: NodeId,
    /// What it asks the sender to be; older versions ask for nothing.
    pub wants: RoleWanted,
    /// What for; older versions follow.
    pub purpose: Purpose,
    /// Which line its timeline is; older versions know of the first only.
    pub line: LineId,
    /// The way of its log, at most the newest [`HELLO_BRANCHES`] of it; `None`: it never branched, or an older version.
    pub history: Option<History>,
}

impl Hello {
    /// What a hello tells of the way of a log.
    #[must_use]
    pub fn way(history: &History) -> Option<History> {
        (!history.branches().is_empty()).then(|| history.newest(HELLO_BRANCHES))
    }
}

/// What a sender does for a receiver.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Decision {
    /// Log follows, from this stored byte on.
    StreamFrom {
        /// Segment.
        segment: SegmentNo,
        /// Stored offset in it.
        offset: u64,
    },
    /// A snapshot follows; the receiver then asks for contents.
    Fill,
    /// The receiver asks for contents of the snapshot it holds.
    ResumeFill,
    /// The log that the receiver needs is gone.
    Resync {
        /// In words.
        reason: String,
    },
    /// It may ask about a handover.
    Handover,
    /// The sender will not serve it.
    Refuse {
        /// Which rule.
        code: Code,
        /// In words.
        reason: String,
    },
}

/// Why a peer refuses or leaves.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u8)]
pub enum Code {
    /// No protocol version in common.
    Version = 1,
    /// The nodes hold different systems.
    WrongSystem = 2,
    /// The receiver is on another timeline.
    WrongTimeline = 3,
    /// The receiver's log is not a prefix of the sender's.
    Diverged = 4,
    /// The name is not allowed, or another node has it.
    Name = 5,
    /// Too many connections.
    Busy = 6,
    /// The sender can't serve yet.
    NotReady = 7,
    /// Another connection of the same name took the place.
    Replaced = 8,
    /// The node stops.
    Shutdown = 9,
    /// The peer sent what the protocol does not allow.
    Protocol = 10,
    /// Log that is needed was removed.
    Resync = 11,
    /// The sender failed to read its own files.
    Failed = 12,
    /// The receiver's log would come from itself.
    Circle = 13,
    /// The sender is not what the receiver asked for: a leader, or a follower.
    UpstreamRole = 14,
    /// The peer's certificate is not trusted.
    Untrusted = 20,
    /// The peer's certificate is expired, or not yet valid.
    Expired = 21,
    /// What is asked for needs another role.
    NotAllowed = 22,
    /// The peer's certificate is not for the name it gives itself.
    Identity = 23,
    /// One side speaks TLS, the other plain TCP.
    Tls = 24,
}

impl Code {
    const ALL: &[Self] = &[
        Self::Version,
        Self::WrongSystem,
        Self::WrongTimeline,
        Self::Diverged,
        Self::Name,
        Self::Busy,
        Self::NotReady,
        Self::Replaced,
        Self::Shutdown,
        Self::Protocol,
        Self::Resync,
        Self::Failed,
        Self::Circle,
        Self::UpstreamRole,
        Self::Untrusted,
        Self::Expired,
        Self::NotAllowed,
        Self::Identity,
        Self::Tls,
    ];

    pub(super) fn from_u8(v: u8) -> Result<Self, DecodeError> {
        Self::ALL
            .iter()
            .copied()
            .find(|c| *c as u8 == v)
            .ok_or(DecodeError::Invalid { what: "reason code", value: u64::from(v) })
    }

    /// The nearest code that programs which speak this version know.
    #[must_use]
    pub fn known_to(self, version: u16) -> Self {
        let new =
            matches!(self, Self::Untrusted | Self::Expired | Self::NotAllowed | Self::Identity | Self::Tls);
        if new && version < VERSION_SLOTS { Self::Protocol } else { self }
    }

    /// Whether it belongs to every start and stop: nobody has to look, unless it lasts.
    #[must_use]
    pub fn is_usual(self) -> bool {
        matches!(self, Self::NotReady | Self::Shutdown)
    }

    /// Whether time alone may cure it.
    #[must_use]
    pub fn passes(self) -> bool {
        matches!(self, Self::Busy | Self::NotReady | Self::Replaced | Self::Shutdown | Self::Failed)
    }
}

/// A sender's answer to a hello.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Welcome {
    /// The version that both speak from now on; 0 in a refusal for lack of one.
    pub version: u16,
    /// The sender's system.
    pub system: SystemId,
    /// The sender's timeline.
    pub timeline: TimelineId,
    /// The sender's name.
    pub name: String,
    /// What happens next.
    pub decision: Decision,
    /// The nodes that the sender's log comes through, itself first; `None` for a receiver that does not know it.
    pub lineage: Option<Lineage>,
    /// The way of the sender's log; `None` for a receiver that does not know it. Not without a lineage.
    pub history: Option<History>,
}

/// The longest prefix of `text` that has at most `limit` bytes and ends between characters.
pub(super) fn clip(text: &str, limit: usize) -> &[u8] {
    let mut end = text.len().min(limit);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text.as_bytes()[..end]
}

pub(super) fn put_hello(h: &Hello, out: &mut Vec<u8>) {
    out.extend_from_slice(&MAGIC);
    out.put_u16(h.versions.0);
    out.put_u16(h.versions.1);
    let name = clip(&h.name, NAME_MAX);
    let way = h.history.as_ref().map(|way| way.newest(HELLO_BRANCHES).encode()).unwrap_or_default();
    out.put_u32(103 + u32::try_from(name.len() + way.len()).unwrap_or(0));
    out.put_u64(h.system.0);
    out.put_u32(h.timeline.0);
    out.put_u64(h.flush.0);
    out.put_u64(h.segment.0);
    out.put_u64(h.offset);
    out.extend_from_slice(&h.prefix);
    let (want, snapshot) = match h.want {
        Want::Stream => (0, Lsn::ZERO),
        Want::Fill => (1, Lsn::ZERO),
        Want::ResumeFill(lsn) => (2, lsn),
        Want::Judgement => (3, Lsn::ZERO),
        Want::Handover => (4, Lsn::ZERO),
    };
    out.put_u8(want);
    out.put_u64(snapshot.0);
    out.put_blob(name);
    out.put_u64(h.node.0);
    out.put_u8(h.wants as u8);
    out.put_u8(h.purpose as u8);
    out.put_u64(h.line.0);
    out.put_blob(&way);
}

pub(super) fn put_welcome(w: &Welcome, out: &mut Vec<u8>) {
    out.put_u16(w.version);
    out.put_u64(w.system.0);
    out.put_u32(w.timeline.0);
    let (tag, segment, offset, code, reason) = match &w.decision {
        Decision::StreamFrom { segment, offset } => (0, segment.0, *offset, 0, ""),
        Decision::Fill => (1, 0, 0, 0, ""),
        Decision::ResumeFill => (2, 0, 0, 0, ""),
        Decision::Resync { reason } => (3, 0, 0, 0, reason.as_str()),
        Decision::Refuse { code, reason } => (4, 0, 0, *code as u8, reason.as_str()),
        Decision::Handover => (5, 0, 0, 0, ""),
    };
    out.put_u8(tag);
    out.put_u64(segment);
    out.put_u64(offset);
    out.put_u8(code);
    out.put_blob(clip(&w.name, NAME_MAX));
    out.put_blob(clip(reason, REASON_MAX));
    if let Some(lineage) = &w.lineage {
        lineage.put(out);
        match &w.history {
            Some(history) if history.branches().is_empty() => out.put_blob(&[]),
            Some(history) => out.put_blob(&history.encode()),
            None => {}
        }
    }
}

pub(super) fn text(bytes: &[u8], what: &'static str) -> Result<String, DecodeError> {
    let invalid = |_| DecodeError::Invalid { what, value: bytes.len() as u64 };
    std::str::from_utf8(bytes).map(str::to_owned).map_err(invalid)
}

pub(super) fn take_hello(body: &[u8]) -> Result<Hello, DecodeError> {
    let mut r = Reader::new(body);
    let magic: [u8; 8] = r.array("hello")?;
    if magic != MAGIC {
        return Err(DecodeError::Invalid { what: "magic of the hello", value: u64::from_le_bytes(magic) });
    }
    let versions = (r.u16("lowest version")?, r.u16("highest version")?);
    let rest = r.blob(HELLO_MAX, "hello length")?;
    r.finish()?;
    let mut r = Reader::new(rest);
    let (system, timeline) = (SystemId(r.u64("system id")?), TimelineId(r.u32("timeline")?));
    let (flush, segment) = (Lsn(r.u64("flush")?), SegmentNo(r.u64("segment")?));
    let (offset, prefix) = (r.u64("offset")?, r.array("prefix SHA-256")?);
    let (want, snapshot) = (r.u8("want")?, Lsn(r.u64("snapshot LSN")?));
    let want = match want {
        0 => Want::Stream,
        1 => Want::Fill,
        2 => Want::ResumeFill(snapshot),
        3 => Want::Judgement,
        4 => Want::Handover,
        v => return Err(DecodeError::Invalid { what: "want", value: u64::from(v) }),
    };
    // Fields of later versions may follow; they are not ours to judge.
    let name = text(r.blob(NAME_MAX, "name")?, "name")?;
    let node = if r.rest().is_empty() { NodeId::NONE } else { NodeId(r.u64("node id")?) };
    let wants =
        if r.rest().is_empty() { RoleWanted::Any } else { RoleWanted::from_u8(r.u8("role wanted")?)? };
    let purpose = if r.rest().is_empty() { Purpose::Follow } else { Purpose::from_u8(r.u8("purpose")?)? };
    let line = if r.rest().is_empty() { LineId::FIRST } else { LineId(r.u64("line id")?) };
    let history = if r.rest().is_empty() { None } else { take_way(&mut r, (system, timeline, line))? };
    Ok(Hello {
        versions,
        system,
        timeline,
        flush,
        segment,
        offset,
        prefix,
        want,
        name,
        node,
        wants,
        purpose,
        line,
        history,
    })
}

/// The receiver's way, which has to lead to where it says that it is.
fn take_way(
    r: &mut Reader<'_>,
    (system, timeline, line): (SystemId, TimelineId, LineId),
) -> Result<Option<History>, DecodeError> {
    let bytes = r.blob(HELLO_MAX, "history")?;
    if bytes.is_empty() {
        return Ok(None);
    }
    let way = History::decode(bytes)?;
    if (way.system(), way.timeline(), way.line()) == (system, timeline, line) {
        return Ok(Some(way));
    }
    Err(DecodeError::Invalid { what: "timeline of the history", value: u64::from(way.timeline().0) })
}

/// The sender's way, which has to lead to where it says that it is.
fn take_history(r: &mut Reader<'_>, system: SystemId, timeline: TimelineId) -> Result<History, DecodeError> {
    let history = match r.blob(HISTORY_BYTES, "history")? {
        [] => History::first(system),
        bytes => History::decode(bytes)?,
    };
    if (history.system(), history.timeline()) == (system, timeline) {
        return Ok(history);
    }
    Err(DecodeError::Invalid { what: "timeline of the history", value: u64::from(history.timeline().0) })
}

pub(super) fn take_welcome(r: &mut Reader<'_>) -> Result<Welcome, DecodeError> {
    let (version, system) = (r.u16("version")?, SystemId(r.u64("system id")?));
    let (timeline, tag) = (TimelineId(r.u32("timeline")?), r.u8("decision")?);
    let (segment, offset) = (SegmentNo(r.u64("segment")?), r.u64("offset")?);
    let code = r.u8("reason code")?;
    let name = text(r.blob(NAME_MAX, "name")?, "name")?;
    let reason = text(r.blob(REASON_MAX, "reason")?, "reason")?;
    let decision = match tag {
        0 => Decision::StreamFrom { segment, offset },
        1 => Decision::Fill,
        2 => Decision::ResumeFill,
        3 => Decision::Resync { reason },
        4 => Decision::Refuse { code: Code::from_u8(code)?, reason },
        5 => Decision::Handover,
        v => return Err(DecodeError::Invalid { what: "decision", value: u64::from(v) }),
    };
    let lineage = if r.rest().is_empty() { None } else { Some(Lineage::take(r)?) };
    let history = if r.rest().is_empty() { None } else { Some(take_history(r, system, timeline)?) };
    Ok(Welcome { version, system, timeline, name, decision, lineage, history })
}
