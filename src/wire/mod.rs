//! The protocol between a node that sends its log and a node that receives it: messages, and how a
//! message is written on the connection. Pure: bytes in, values out.
//!
//! Integers are little-endian. A message is a header of 8 bytes, a payload and a checksum:
//!
//! | offset | size | field |
//! | --- | --- | --- |
//! | 0 | 4 | length of the payload, at most [`Kind::limit`] of its kind |
//! | 4 | 1 | kind |
//! | 5 | 3 | low 24 bits of the CRC32C of the 5 bytes before: a damaged length is found before it is waited for |
//! | 8 | n | payload |
//! | 8+n | 4 | CRC32C of header and payload |
//!
//! | kind | name | from | payload |
//! | --- | --- | --- | --- |
//! | 1 | hello | receiver | see below |
//! | 2 | welcome | sender | version u16, system id u64, timeline u32, decision u8, segment u64, offset u64, code u8, name blob, reason blob, from version 2 on lineage, from version 6 on a blob of the bytes of the sender's [`crate::history`], empty for one that never branched |
//! | 3 | log | sender | segment u64, offset u64, stored bytes of that segment's file to the end |
//! | 4 | keepalive | sender | end u64, commit u64, exact u64, commit time i64, exact time i64, sender's clock i64, from version 2 on silent u64, lineage, from version 3 on asks u8 (see [`ASKS_WRITE`], [`TELLS_COUNTS`], [`TELLS_STATE_SHIFT`]) |
//! | 5 | ack | receiver | write u64, flush u64, apply u64, commit time at apply i64, from version 3 on flags u8 (see [`ACK_APPLIES`], [`ACK_NEVER`], [`ACK_HALTED`]), from version 4 on delay u64 |
//! | 6 | snapshot data | sender | offset u64, bytes of the catalog checkpoint to the end |
//! | 7 | snapshot end | sender | commit LSN u64, length u64, SHA-256 32 bytes |
//! | 8 | fill request | receiver | batch u32, starved u8 (percent of the time since the last request that the receiver waited for bytes), count u32, count x file id u64 |
//! | 9 | fill data | sender | batch u32, encoding u8 (0 raw, 1 zstd), length of the items u32, items |
//! | 10 | batch end | sender | batch u32 |
//! | 11 | fill done | receiver | nothing |
//! | 12 | fill end | sender | end LSN u64 |
//! | 13 | goodbye | both | code u8, reason blob |
//! | 14 | slots | sender, from version 3 on | count u16, count x (name blob, position u64, active u8): all slots that the sender knows and that are not lost |
//! | 16 | handover | receiver | from version 7 on, after a hello that wants it: a leader asks the node that is to lead; see the tables of `wire::handover` |
//! | 17 | heir | sender | from version 7 on: what that node answers |
//! | 20 | below | receiver | from version 3 on: the nodes that follow the receiver; see the table of `wire::below` |
//! | 15 | range request | receiver, from version 3 on | batch u32, starved u8, count u32, count x range |
//!
//! A range of a file that the receiver holds something of; only blocks that differ are sent: file id u64, first block
//! u64, count of blocks u32, at most [`RANGE_BLOCKS`], 1 u8 and count x hash u128, or 0 u8: the blocks hold zeros.
//!
//! The hello is frozen: every version reads the first 16 bytes of its payload, and ignores what follows
//! the fields it knows.
//!
//! | offset | size | field |
//! | --- | --- | --- |
//! | 0 | 8 | magic `towline` and a NUL |
//! | 8 | 2 | lowest protocol version the receiver speaks |
//! | 10 | 2 | highest |
//! | 12 | 4 | length of the rest |
//! | 16 | 8 | system id, 0 for an empty receiver |
//! | 24 | 4 | timeline |
//! | 28 | 8 | flush LSN |
//! | 36 | 8 | segment the log is continued in |
//! | 44 | 8 | stored bytes of that segment that are durable |
//! | 52 | 32 | SHA-256 of those bytes |
//! | 84 | 1 | want: 0 stream, 1 fill, 2 resume a fill, from version 4 on 3: only what is decided about a stream, from version 7 on 4: a handover |
//! | 85 | 8 | LSN of the snapshot to resume, or 0 |
//! | 93 | 4+n | name, at most [`NAME_MAX`] bytes |
//! | 97+n | 8 | node id; not there in hellos of programs that speak version 1 only |
//! | 105+n | 1 | role wanted of the sender: 0 any, 1 leader, 2 follower; may not be there |
//! | 106+n | 1 | purpose: 0 to follow, 1 a backup, which speaks version 5 at least; may not be there |
//! | 107+n | 8 | line id of the timeline, 0 for the first; not there in hellos of programs that speak no more than version 5 |
//! | 115+n | 4+m | from version 7 on: bytes of the [`crate::history`] of the receiver's log, its newest [`HELLO_BRANCHES`] branches; empty for one that never branched |
//!
//! A lineage is the nodes that the sender's log comes through: count u8, at most [`LINEAGE_MAX`], count x node id u64,
//! the sender first.
//!
//! Items of fill data, after decompression:
//!
//! | item | fields |
//! | --- | --- |
//! | data | 1 u8, file id u64, offset u64 (a multiple of a block), length u32, bytes |
//! | end of file | 2 u8, file id u64, outcome u8 (0 whole, 1 changing, 2 gone), size u64; one for each range that was asked for |
//! | hole | 3 u8, file id u64, offset u64 (a multiple of a block), length u64 (a multiple of a block); only in ranges |

use std::fmt;
use std::ops::Deref;

use crate::codec::{DecodeError, Put, Reader};
use crate::history::HISTORY_BYTES;
use crate::position::{FileId, Lsn, SegmentNo};

mod below;
mod handover;
mod hello;
mod items;
mod lineage;
mod ranges;
mod slots;
mod stand;

pub use below::{BELOW_MAX, Below};
pub use handover::{Handover, Heir, Stand, Step};
pub use hello::{Code, Decision, Hello, Purpose, RoleWanted, Want, Welcome};
use hello::{clip, put_hello, put_welcome, take_hello, take_welcome, text};
pub use items::{ITEM_HEAD, Item, Items, Outcome, put_item_end, put_item_head, put_item_hole};
use lineage::LINEAGE_BYTES;
pub use lineage::{LINEAGE_MAX, Lineage};
pub use ranges::{RANGE_BLOCKS, RANGES_BYTES, RANGES_MAX, Range};
use ranges::{put_ranges, take_ranges};
use slots::{SLOTS_BYTES, put_slots, take_slots};
pub use slots::{SLOTS_MAX, SlotAt};
pub use stand::{Ack, Keepalive, Origin};

/// The lowest protocol version this program speaks.
pub const VERSION_MIN: u16 = 1;
/// The highest protocol version this program speaks.
pub const VERSION_MAX: u16 = 7;
/// From this version on, welcome and keepalive tell where the sender's log comes from.
pub const VERSION_ORIGIN: u16 = 2;
/// From this version on, acks say what counts, slots are told downstream, and a directory can be resynced.
pub const VERSION_SLOTS: u16 = 3;
/// From this version on, a follower may ask on behalf of one that follows it: [`Want::Judgement`].
pub const VERSION_JUDGEMENT: u16 = 4;
/// From this version on, acks say how long the receiver holds back what it shows.
pub const VERSION_DELAY: u16 = 4;
/// From this version on, a receiver can say that it takes a backup.
pub const VERSION_BACKUP: u16 = 5;
/// From this version on, the two ends tell each other which line of log they are on, and one on an older line follows a
/// sender whose way goes over it.
pub const VERSION_LINES: u16 = 6;
/// From this version on, a hello tells the way of the receiver's log: a leader that was left behind learns it from whoever
/// comes to it.
pub const VERSION_RIVALS: u16 = 7;
/// From this version on, a leader can hand over to a node that follows it.
pub const VERSION_HANDOVER: u16 = 7;
/// Bit of an ack's flags: what is applied counts. Not set by a receiver whose directory rests: paused, stopped at a
/// target, refused, or one that only receives.
pub const ACK_APPLIES: u8 = 1;
/// Bit of an ack's flags: the receiver was set up never to count for synchronous replication.
pub const ACK_NEVER: u8 = 2;
/// Bit of an ack's flags: the receiver's directory has diverged, or was changed by others, and rests until somebody helps.
/// Who does not know the bit passes it over.
pub const ACK_HALTED: u8 = 4;
/// Bit of what a keepalive asks for: an ack as soon as log is written, before it is durable.
pub const ASKS_WRITE: u8 = 1;
/// Bit of the same byte that tells the receiver: its confirmations count now.
pub const TELLS_COUNTS: u8 = 2;
/// The two bits above tell its place as in pg_stat_replication: 0 async, 1 potential, 2 sync, 3 quorum.
pub const TELLS_STATE_SHIFT: u32 = 2;
/// First bytes of every hello.
pub const MAGIC: [u8; 8] = *b"towline\0";
/// Bytes before the payload.
pub const HEADER: usize = 8;
/// Bytes after the payload.
pub const TRAILER: usize = 4;
/// Most bytes of a node's name.
pub const NAME_MAX: usize = 64;
/// Most bytes of a reason.
pub const REASON_MAX: usize = 1024;
/// Most stored bytes of log in one message: 1 MiB.
pub const LOG_MAX: usize = 1 << 20;
/// Most bytes of the catalog snapshot in one message.
pub const SNAPSHOT_PIECE: usize = 256 << 10;
/// Most file ids asked for in one request.
pub const BATCH_IDS: usize = 512;
/// Most bytes of file content in one item: 1 MiB.
pub const CHUNK_MAX: usize = 1 << 20;
/// Most bytes of the items of one fill message: one largest item, and small files around it.
pub const ITEMS_MAX: usize = CHUNK_MAX + (64 << 10);
/// Most branches of a history in a hello; of a longer one the oldest are left out.
pub const HELLO_BRANCHES: usize = 32;
/// Most bytes of a hello's payload, of any version.
pub const HELLO_MAX: usize = 4096;

/// SHA-256 of nothing: the prefix of a receiver whose log is empty.
pub const SHA256_EMPTY: [u8; 32] = [
    0xe3, 0xb0, 0xc4, 0x42, 0x98, 0xfc, 0x1c, 0x14, 0x9a, 0xfb, 0xf4, 0xc8, 0x99, 0x6f, 0xb9, 0x24, 0x27,
    0xae, 0x41, 0xe4, 0x64, 0x9b, 0x93, 0x4c, 0xa4, 0x95, 0x99, 0x1b, 0x78, 0x52, 0xb8, 0x55,
];

/// What a message is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
#[allow(missing_docs, reason = "described in the table of the module")]
pub enum Kind {
    Hello = 1,
    Welcome = 2,
    Log = 3,
    Keepalive = 4,
    Ack = 5,
    SnapshotData = 6,
    SnapshotEnd = 7,
    FillRequest = 8,
    FillData = 9,
    BatchEnd = 10,
    FillDone = 11,
    FillEnd = 12,
    Goodbye = 13,
    Slots = 14,
    Below = 20,
    RangeRequest = 15,
    Handover = 16,
    Heir = 17,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 18] = [
        Self::Hello,
        Self::Welcome,
        Self::Log,
        Self::Keepalive,
        Self::Ack,
        Self::SnapshotData,
        Self::SnapshotEnd,
        Self::FillRequest,
        Self::FillData,
        Self::BatchEnd,
        Self::FillDone,
        Self::FillEnd,
        Self::Goodbye,
        Self::Slots,
        Self::Below,
        Self::RangeRequest,
        Self::Handover,
        Self::Heir,
    ];

    fn from_u8(v: u8) -> Result<Self, DecodeError> {
        Self::ALL
            .into_iter()
            .find(|k| *k as u8 == v)
            .ok_or(DecodeError::Invalid { what: "message kind", value: u64::from(v) })
    }

    /// Most bytes of a payload of this kind, checked before anything is allocated.
    #[must_use]
    pub fn limit(self) -> usize {
        match self {
            Self::Hello => HELLO_MAX,
            Self::Welcome => 40 + 4 + NAME_MAX + 4 + REASON_MAX + LINEAGE_BYTES + 4 + HISTORY_BYTES,
            Self::Log => 16 + LOG_MAX,
            Self::Keepalive => 57 + LINEAGE_BYTES,
            Self::Ack => 41,
            Self::SnapshotData => 8 + SNAPSHOT_PIECE,
            Self::SnapshotEnd => 48,
            Self::FillRequest => 9 + 8 * BATCH_IDS,
            Self::FillData => 9 + ITEMS_MAX,
            Self::BatchEnd => 4,
            Self::FillDone => 0,
            Self::FillEnd => 8,
            Self::Goodbye => 1 + 4 + REASON_MAX,
            Self::Slots => SLOTS_BYTES,
            Self::Below => below::BELOW_BYTES,
            Self::RangeRequest => 9 + RANGES_BYTES,
            Self::Handover => handover::HANDOVER_BYTES,
            Self::Heir => handover::HEIR_BYTES,
        }
    }
}

/// Bytes at the end of a received payload, kept where they were received.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Body {
    bytes: Vec<u8>,
    start: usize,
}

impl Deref for Body {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        self.bytes.get(self.start..).unwrap_or_default()
    }
}

impl From<Vec<u8>> for Body {
    fn from(bytes: Vec<u8>) -> Self {
        Self { bytes, start: 0 }
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.len())
    }
}

/// How the items of fill data are stored in the message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Encoding {
    /// As they are.
    Raw = 0,
    /// As one zstd frame.
    Zstd = 1,
}

/// One message.
#[derive(Clone, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "the fields are described in the table of the module")]
pub enum Message {
    Hello(Hello),
    Welcome(Welcome),
    Log { segment: SegmentNo, offset: u64, bytes: Body },
    Keepalive(Keepalive),
    Ack(Ack),
    SnapshotData { offset: u64, bytes: Body },
    SnapshotEnd { lsn: Lsn, len: u64, sha256: [u8; 32] },
    FillRequest { batch: u32, starved: u8, ids: Vec<FileId> },
    FillData { batch: u32, encoding: Encoding, raw_len: u32, bytes: Body },
    BatchEnd { batch: u32 },
    FillDone,
    FillEnd { end: Lsn },
    Goodbye { code: Code, reason: String },
    Slots(Vec<SlotAt>),
    Below(Vec<Below>),
    RangeRequest { batch: u32, starved: u8, ranges: Vec<Range> },
    Handover(Handover),
    Heir(Heir),
}

/// Starts a message of `kind` in an empty buffer: the header is filled in by [`finish`].
#[must_use]
pub fn begin(kind: Kind, capacity: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER + capacity + TRAILER);
    out.extend_from_slice(&[0, 0, 0, 0, kind as u8, 0, 0, 0]);
    out
}

/// Ends a message that [`begin`] started and the caller added the payload to.
///
/// # Panics
/// When the payload is longer than its kind allows: a caller's mistake, never a peer's.
#[must_use]
pub fn finish(mut message: Vec<u8>) -> Vec<u8> {
    let kind = Kind::from_u8(message[4]).expect("begin wrote the kind");
    let len = message.len() - HEADER;
    assert!(len <= kind.limit(), "a {kind:?} message of {len} bytes is beyond its limit");
    message[..4].copy_from_slice(&u32::try_from(len).expect("limits are below 4 GiB").to_le_bytes());
    let check = head_check(&message[..5]);
    message[5..HEADER].copy_from_slice(&check);
    let crc = crc32c::crc32c(&message);
    message.put_u32(crc);
    message
}

/// Encodes a [`Message::Log`] of `len` stored bytes, which `read` fills in where they belong, in a buffer that may have
/// held another one before.
///
/// # Errors
/// Those of `read`.
pub fn log_message<E>(
    mut buffer: Vec<u8>,
    (segment, offset): (SegmentNo, u64),
    len: usize,
    read: impl FnOnce(&mut [u8]) -> Result<(), E>,
) -> Result<Vec<u8>, E> {
    const BYTES: usize = HEADER + 16;
    buffer.truncate(BYTES + len);
    buffer.reserve_exact((BYTES + len + TRAILER).saturating_sub(buffer.len()));
    buffer.resize(BYTES + len, 0);
    buffer[..HEADER].copy_from_slice(&[0, 0, 0, 0, Kind::Log as u8, 0, 0, 0]);
    buffer[HEADER..HEADER + 8].copy_from_slice(&segment.0.to_le_bytes());
    buffer[HEADER + 8..BYTES].copy_from_slice(&offset.to_le_bytes());
    read(&mut buffer[BYTES..])?;
    Ok(finish(buffer))
}

fn head_check(head: &[u8]) -> [u8; 3] {
    let [a, b, c, _] = crc32c::crc32c(head).to_le_bytes();
    [a, b, c]
}

/// A checked message header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Head {
    /// What the message is.
    pub kind: Kind,
    /// Bytes of its payload, within the limit of the kind.
    pub len: usize,
    crc: u32,
}

impl Head {
    /// Checks a header.
    ///
    /// # Errors
    /// The check bytes are wrong, the kind is unknown, or the length is beyond the limit.
    pub fn decode(bytes: &[u8; HEADER]) -> Result<Self, DecodeError> {
        if head_check(&bytes[..5]) != bytes[5..] {
            let what = "message header check (the peer does not speak towline, or bytes were damaged)";
            return Err(DecodeError::Invalid { what, value: u64::from(bytes[5]) });
        }
        let kind = Kind::from_u8(bytes[4])?;
        let len = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize;
        if len > kind.limit() {
            let (value, limit) = (len as u64, kind.limit() as u64);
            return Err(DecodeError::TooLarge { what: "message length", value, limit });
        }
        Ok(Self { kind, len, crc: crc32c::crc32c(bytes) })
    }

    /// Decodes what followed the header: the payload and the checksum.
    ///
    /// # Errors
    /// The checksum is wrong, or a field breaks its rule.
    pub fn message(self, mut body: Vec<u8>) -> Result<Message, DecodeError> {
        if body.len() != self.len + TRAILER {
            return Err(DecodeError::Short("message"));
        }
        let stored = Reader::new(&body[self.len..]).u32("message checksum")?;
        if crc32c::crc32c_append(self.crc, &body[..self.len]) != stored {
            return Err(DecodeError::Invalid { what: "message checksum", value: u64::from(stored) });
        }
        body.truncate(self.len);
        decode_payload(self.kind, body)
    }
}

impl Message {
    /// What it is.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Hello(_) => Kind::Hello,
            Self::Welcome(_) => Kind::Welcome,
            Self::Log { .. } => Kind::Log,
            Self::Keepalive(_) => Kind::Keepalive,
            Self::Ack(_) => Kind::Ack,
            Self::SnapshotData { .. } => Kind::SnapshotData,
            Self::SnapshotEnd { .. } => Kind::SnapshotEnd,
            Self::FillRequest { .. } => Kind::FillRequest,
            Self::FillData { .. } => Kind::FillData,
            Self::BatchEnd { .. } => Kind::BatchEnd,
            Self::FillDone => Kind::FillDone,
            Self::FillEnd { .. } => Kind::FillEnd,
            Self::Goodbye { .. } => Kind::Goodbye,
            Self::Slots(_) => Kind::Slots,
            Self::Below(_) => Kind::Below,
            Self::RangeRequest { .. } => Kind::RangeRequest,
            Self::Handover(_) => Kind::Handover,
            Self::Heir(_) => Kind::Heir,
        }
    }

    /// The whole message, ready to be sent.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = begin(self.kind(), self.size_hint());
        self.put(&mut out);
        finish(out)
    }

    fn size_hint(&self) -> usize {
        match self {
            Self::Log { bytes, .. } | Self::SnapshotData { bytes, .. } | Self::FillData { bytes, .. } => {
                bytes.len() + 16
            }
            Self::FillRequest { ids, .. } => ids.len() * 8 + 9,
            Self::RangeRequest { ranges, .. } => ranges.iter().map(Range::stored_len).sum::<usize>() + 9,
            _ => 128,
        }
    }

    fn put(&self, out: &mut Vec<u8>) {
        match self {
            Self::Hello(h) => put_hello(h, out),
            Self::Welcome(w) => put_welcome(w, out),
            Self::Log { segment, offset, bytes } => {
                out.put_u64(segment.0);
                out.put_u64(*offset);
                out.extend_from_slice(bytes);
            }
            Self::Keepalive(k) => {
                out.put_u64(k.end.0);
                out.put_u64(k.commit.0);
                out.put_u64(k.exact.0);
                out.put_i64(k.commit_time);
                out.put_i64(k.exact_time);
                out.put_i64(k.now);
                if let Some(origin) = &k.origin {
                    out.put_u64(origin.silent);
                    origin.lineage.put(out);
                    if let Some(asks) = k.asks {
                        out.put_u8(asks);
                    }
                }
            }
            Self::Ack(a) => {
                out.put_u64(a.write.0);
                out.put_u64(a.flush.0);
                out.put_u64(a.apply.0);
                out.put_i64(a.apply_time);
                if let Some(flags) = a.flags {
                    out.put_u8(flags);
                    if let Some(delay) = a.delay {
                        out.put_u64(delay);
                    }
                }
            }
            Self::SnapshotData { offset, bytes } => {
                out.put_u64(*offset);
                out.extend_from_slice(bytes);
            }
            Self::SnapshotEnd { lsn, len, sha256 } => {
                out.put_u64(lsn.0);
                out.put_u64(*len);
                out.extend_from_slice(sha256);
            }
            Self::FillRequest { batch, starved, ids } => {
                out.put_u32(*batch);
                out.put_u8(*starved);
                out.put_u32(u32::try_from(ids.len()).unwrap_or(u32::MAX));
                ids.iter().for_each(|id| out.put_u64(id.0));
            }
            Self::FillData { batch, encoding, raw_len, bytes } => {
                put_fill_data(out, *batch, *encoding, *raw_len);
                out.extend_from_slice(bytes);
            }
            Self::BatchEnd { batch } => out.put_u32(*batch),
            Self::FillDone => {}
            Self::FillEnd { end } => out.put_u64(end.0),
            Self::Goodbye { code, reason } => {
                out.put_u8(*code as u8);
                out.put_blob(clip(reason, REASON_MAX));
            }
            Self::Slots(slots) => put_slots(slots, out),
            Self::Below(nodes) => below::put(nodes, out),
            Self::RangeRequest { batch, starved, ranges } => put_ranges(out, *batch, *starved, ranges),
            Self::Handover(question) => handover::put_question(*question, out),
            Self::Heir(answer) => handover::put_answer(answer, out),
        }
    }

    /// Decodes one message at the front of `bytes`: the message and the bytes it took.
    ///
    /// # Errors
    /// As [`Head::decode`] and [`Head::message`]; `Short` when `bytes` ends inside.
    pub fn decode(bytes: &[u8]) -> Result<(Self, usize), DecodeError> {
        let (head, rest) = bytes.split_first_chunk().ok_or(DecodeError::Short("message header"))?;
        let head = Head::decode(head)?;
        let body = rest.get(..head.len + TRAILER).ok_or(DecodeError::Short("message"))?;
        Ok((head.message(body.to_vec())?, HEADER + body.len()))
    }
}

/// Writes the fields of fill data that stand before the items.
pub fn put_fill_data(out: &mut Vec<u8>, batch: u32, encoding: Encoding, raw_len: u32) {
    out.put_u32(batch);
    out.put_u8(encoding as u8);
    out.put_u32(raw_len);
}

fn decode_payload(kind: Kind, body: Vec<u8>) -> Result<Message, DecodeError> {
    let mut r = Reader::new(&body);
    let message = match kind {
        Kind::Hello => return take_hello(&body).map(Message::Hello),
        Kind::Welcome => Message::Welcome(take_welcome(&mut r)?),
        Kind::Log => {
            let (segment, offset) = (SegmentNo(r.u64("segment")?), r.u64("offset")?);
            return Ok(Message::Log { segment, offset, bytes: Body { bytes: body, start: 16 } });
        }
        Kind::Keepalive => Message::Keepalive(Keepalive {
            end: Lsn(r.u64("end")?),
            commit: Lsn(r.u64("commit")?),
            exact: Lsn(r.u64("exact")?),
            commit_time: r.i64("commit time")?,
            exact_time: r.i64("exact time")?,
            now: r.i64("clock")?,
            origin: if r.rest().is_empty() { None } else { Some(take_origin(&mut r)?) },
            asks: optional(&mut r, "asks")?,
        }),
        Kind::Ack => Message::Ack(Ack {
            write: Lsn(r.u64("write")?),
            flush: Lsn(r.u64("flush")?),
            apply: Lsn(r.u64("apply")?),
            apply_time: r.i64("apply time")?,
            flags: optional(&mut r, "ack flags")?,
            delay: if r.rest().is_empty() { None } else { Some(r.u64("delay")?) },
        }),
        Kind::SnapshotData => {
            let offset = r.u64("snapshot offset")?;
            return Ok(Message::SnapshotData { offset, bytes: Body { bytes: body, start: 8 } });
        }
        Kind::SnapshotEnd => Message::SnapshotEnd {
            lsn: Lsn(r.u64("snapshot LSN")?),
            len: r.u64("snapshot length")?,
            sha256: r.array("snapshot SHA-256")?,
        },
        Kind::FillRequest => take_request(&mut r)?,
        Kind::FillData => {
            let (batch, encoding, raw_len) = (r.u32("batch")?, r.u8("encoding")?, r.u32("items length")?);
            let encoding = match encoding {
                0 => Encoding::Raw,
                1 => Encoding::Zstd,
                v => return Err(DecodeError::Invalid { what: "encoding", value: u64::from(v) }),
            };
            if raw_len as usize > ITEMS_MAX {
                let (value, limit) = (u64::from(raw_len), ITEMS_MAX as u64);
                return Err(DecodeError::TooLarge { what: "items length", value, limit });
            }
            if encoding == Encoding::Raw && r.rest().len() != raw_len as usize {
                return Err(DecodeError::Invalid { what: "items length", value: u64::from(raw_len) });
            }
            let bytes = Body { bytes: body, start: 9 };
            return Ok(Message::FillData { batch, encoding, raw_len, bytes });
        }
        Kind::BatchEnd => Message::BatchEnd { batch: r.u32("batch")? },
        Kind::FillDone => Message::FillDone,
        Kind::FillEnd => Message::FillEnd { end: Lsn(r.u64("end")?) },
        Kind::Goodbye => Message::Goodbye {
            code: Code::from_u8(r.u8("reason code")?)?,
            reason: text(r.blob(REASON_MAX, "reason")?, "reason")?,
        },
        Kind::Slots => Message::Slots(take_slots(&mut r)?),
        Kind::Below => Message::Below(below::take(&mut r)?),
        Kind::RangeRequest => take_ranges(&mut r)?,
        Kind::Handover => Message::Handover(handover::take_question(&mut r)?),
        Kind::Heir => Message::Heir(handover::take_answer(&mut r)?),
    };
    r.finish()?;
    Ok(message)
}

/// A byte at the end that older versions don't have.
fn optional(r: &mut Reader<'_>, what: &'static str) -> Result<Option<u8>, DecodeError> {
    if r.rest().is_empty() { Ok(None) } else { r.u8(what).map(Some) }
}

fn take_origin(r: &mut Reader<'_>) -> Result<Origin, DecodeError> {
    Ok(Origin { silent: r.u64("silence")?, lineage: Lineage::take(r)? })
}

/// The share of its time that a receiver waited for bytes, in percent.
fn take_starved(r: &mut Reader<'_>) -> Result<u8, DecodeError> {
    match r.u8("starved")? {
        percent @ 0..=100 => Ok(percent),
        v => Err(DecodeError::TooLarge { what: "starved", value: u64::from(v), limit: 100 }),
    }
}

fn take_request(r: &mut Reader<'_>) -> Result<Message, DecodeError> {
    let (batch, starved, count) = (r.u32("batch")?, take_starved(r)?, r.u32("count of files")? as usize);
    if count > BATCH_IDS {
        let (value, limit) = (count as u64, BATCH_IDS as u64);
        return Err(DecodeError::TooLarge { what: "count of files", value, limit });
    }
    let ids = (0..count).map(|_| r.u64("file id").map(FileId)).collect::<Result<_, _>>()?;
    Ok(Message::FillRequest { batch, starved, ids })
}

#[cfg(test)]
mod tests;
