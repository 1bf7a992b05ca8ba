use super::*;
use crate::history::{History, LineId};
use crate::position::{NodeId, SystemId, TimelineId};
use proptest::prelude::*;

fn hello() -> Hello {
    Hello {
        versions: (1, 3),
        system: SystemId(0x1122_3344_5566_7788),
        timeline: TimelineId(1),
        flush: Lsn(0x0123_4567),
        segment: SegmentNo(2),
        offset: 4096,
        prefix: [7; 32],
        want: Want::ResumeFill(Lsn(99)),
        name: "follower-1".to_owned(),
        node: NodeId(0x0102_0304_0506_0708),
        wants: RoleWanted::Leader,
        purpose: Purpose::Backup,
        line: LineId(0x0A0B),
        history: None,
    }
}

fn welcome(decision: Decision) -> Message {
    let (system, timeline) = (SystemId(1), TimelineId(2));
    let lineage = Some(lineage());
    let history = Some(history(system));
    let name = "leader".to_owned();
    Message::Welcome(Welcome { version: 6, system, timeline, name, decision, lineage, history })
}

fn history(system: SystemId) -> History {
    let begins = crate::history::Beginning {
        at: Lsn(77),
        line: LineId(3),
        when: 4,
        node: NodeId(5),
        name: "f1".to_owned(),
        reason: crate::history::Reason::Promotion,
        known: Lsn(80),
    };
    History::first(system).child(begins, TimelineId::FIRST).unwrap()
}

#[test]
fn a_history_leads_to_where_the_sender_says_it_is() {
    let of = |timeline, history| Welcome {
        version: 6,
        system: SystemId(1),
        timeline: TimelineId(timeline),
        name: "n".to_owned(),
        decision: Decision::Fill,
        lineage: Some(Lineage::default()),
        history: Some(history),
    };
    let back = |w: &Welcome| Message::decode(&Message::Welcome(w.clone()).encode()).map(|(m, _)| m);
    for good in [of(1, History::first(SystemId(1))), of(2, history(SystemId(1)))] {
        assert_eq!(back(&good), Ok(Message::Welcome(good)));
    }
    for bad in [of(2, History::first(SystemId(1))), of(1, history(SystemId(1))), of(2, history(SystemId(2)))]
    {
        assert!(matches!(back(&bad), Err(DecodeError::Invalid { what: "timeline of the history", .. })));
    }
}

/// The hello of one whose log has that way.
fn branched(way: &History) -> Hello {
    let (system, timeline, line) = (way.system(), way.timeline(), way.line());
    Hello { system, timeline, line, history: Hello::way(way), ..hello() }
}

#[test]
fn a_hello_tells_the_newest_of_a_way_and_never_one_that_leads_elsewhere() {
    let mut way = History::first(SystemId(1));
    for n in 1..=100 {
        let begins = crate::history::Beginning {
            name: "x".repeat(NAME_MAX),
            ..crate::history::Beginning::sample(Lsn(n), n)
        };
        way = way.child(begins, TimelineId::FIRST).unwrap();
    }
    let hello = Hello { name: "y".repeat(NAME_MAX), ..branched(&way) };
    let bytes = Message::Hello(hello.clone()).encode();
    assert!(bytes.len() <= HEADER + HELLO_MAX + TRAILER);
    let Message::Hello(back) = Message::decode(&bytes).unwrap().0 else { panic!() };
    assert_eq!(back.history, Some(way.newest(HELLO_BRANCHES)));
    assert_eq!(Hello::way(&History::first(SystemId(1))), None);
    for bad in [
        Hello { system: SystemId(2), ..hello.clone() },
        Hello { timeline: TimelineId(2), ..hello.clone() },
        Hello { line: LineId(2), ..hello },
    ] {
        assert!(Message::decode(&Message::Hello(bad).encode()).is_err());
    }
}

fn lineage() -> Lineage {
    Lineage::of(NodeId(7), &Lineage::of(NodeId(9), &Lineage::default()))
}

fn slot(name: &str, position: u64, active: bool) -> SlotAt {
    SlotAt { name: name.to_owned(), position: Lsn(position), active }
}

fn samples(data: &[u8], n: u64) -> Vec<Message> {
    let reason = || "because".to_owned();
    let bytes = || Body::from(data.to_vec());
    let raw_len = u32::try_from(data.len()).unwrap();
    vec![
        Message::Hello(hello()),
        Message::Hello(Hello { want: Want::Stream, name: String::new(), ..hello() }),
        Message::Hello(Hello { want: Want::Judgement, ..hello() }),
        Message::Hello(branched(&history(SystemId(1)))),
        welcome(Decision::StreamFrom { segment: SegmentNo(n), offset: n }),
        welcome(Decision::Fill),
        welcome(Decision::ResumeFill),
        welcome(Decision::Resync { reason: reason() }),
        welcome(Decision::Refuse { code: Code::Diverged, reason: reason() }),
        Message::Log { segment: SegmentNo(n), offset: n, bytes: bytes() },
        Message::Keepalive(Keepalive { end: Lsn(n), commit_time: -1, now: 5, ..Keepalive::default() }),
        Message::Keepalive(Keepalive {
            origin: Some(Origin { silent: n, lineage: lineage() }),
            ..Keepalive::default()
        }),
        Message::Keepalive(Keepalive {
            origin: Some(Origin { silent: n, lineage: lineage() }),
            asks: Some(ASKS_WRITE),
            ..Keepalive::default()
        }),
        Message::Ack(Ack { write: Lsn(n), flush: Lsn(n), apply: Lsn(1), apply_time: -5, ..Ack::default() }),
        Message::Ack(Ack { write: Lsn(n), flags: Some(ACK_APPLIES), ..Ack::default() }),
        Message::Ack(Ack { flags: Some(0), delay: Some(n), ..Ack::default() }),
        Message::SnapshotData { offset: n, bytes: bytes() },
        Message::SnapshotEnd { lsn: Lsn(n), len: n, sha256: [9; 32] },
        Message::FillRequest { batch: 3, starved: 100, ids: vec![FileId(n), FileId(2)] },
        Message::FillData { batch: 4, encoding: Encoding::Raw, raw_len, bytes: bytes() },
        Message::FillData { batch: 4, encoding: Encoding::Zstd, raw_len: 77, bytes: bytes() },
        Message::BatchEnd { batch: u32::MAX },
        Message::FillDone,
        Message::FillEnd { end: Lsn(n) },
        Message::Goodbye { code: Code::Busy, reason: reason() },
        Message::Slots(Vec::new()),
        Message::Slots(vec![slot("a", n, true), slot(&"b".repeat(NAME_MAX), 0, false)]),
        Message::Below(vec![]),
        Message::Below(vec![Below {
            state: "streaming".to_owned(),
            name: "far".to_owned(),
            apply: Lsn(n),
            lag: Some(n >> 1),
            ..Below::default()
        }]),
        Message::RangeRequest {
            batch: 5,
            starved: 7,
            ranges: vec![
                Range {
                    id: FileId(n),
                    first: n >> 20,
                    blocks: 2,
                    hashes: Some(vec![u128::from(n) << 64, 0]),
                },
                Range { id: FileId(3), first: 0, blocks: 4096, hashes: None },
            ],
        },
    ]
}

/// Bodies differ in where they start, not in what they hold.
fn same(a: &Message, b: &Message) -> bool {
    a.encode() == b.encode() && a.kind() == b.kind()
}

proptest! {
    #[test]
    fn every_message_survives_the_round_trip(data in proptest::collection::vec(any::<u8>(), 0..2000), n in any::<u64>()) {
        for m in samples(&data, n) {
            let bytes = m.encode();
            let (back, taken) = Message::decode(&bytes).unwrap();
            prop_assert_eq!(taken, bytes.len());
            prop_assert!(same(&back, &m), "{:?} {:?}", back, m);
        }
    }

    #[test]
    fn garbage_is_refused_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(Message::decode(&bytes).is_err());
        for item in Items::new(&bytes) {
            if item.is_err() { break; }
        }
    }

    /// A payload whose checksum is right may still hold anything.
    #[test]
    fn a_garbage_payload_with_a_right_checksum_is_no_panic(kind in 0usize..16, data in proptest::collection::vec(any::<u8>(), 0..120)) {
        let kind = Kind::ALL[kind];
        let mut m = begin(kind, data.len());
        m.extend_from_slice(&data[..data.len().min(kind.limit())]);
        let _ = Message::decode(&finish(m));
    }

    #[test]
    fn items_survive_the_round_trip(data in proptest::collection::vec(any::<u8>(), 0..500), id in any::<u64>(), block in 0u64..1000) {
        let mut out = Vec::new();
        put_item_head(&mut out, FileId(id), block * 16384, u32::try_from(data.len()).unwrap());
        prop_assert_eq!(out.len(), ITEM_HEAD);
        out.extend_from_slice(&data);
        put_item_end(&mut out, FileId(id), Outcome::Changing, 9);
        let end = out.len();
        put_item_hole(&mut out, FileId(id), block * 16384, 16384);
        let items: Vec<_> = Items::new(&out).collect::<Result<_, _>>().unwrap();
        prop_assert_eq!(items, vec![
            Item::Data { id: FileId(id), offset: block * 16384, bytes: &data },
            Item::End { id: FileId(id), outcome: Outcome::Changing, size: 9 },
            Item::Hole { id: FileId(id), offset: block * 16384, len: 16384 },
        ]);
        for cut in 1..out.len() {
            let whole = Items::new(&out[..cut]).all(|i| i.is_ok());
            prop_assert!(!whole || cut == ITEM_HEAD + data.len() || cut == end);
        }
    }
}

#[test]
fn every_truncation_and_every_flipped_byte_is_an_error() {
    for m in samples(b"some stored bytes", 0x55_AA55) {
        let good = m.encode();
        for cut in 0..good.len() {
            assert!(Message::decode(&good[..cut]).is_err(), "{m:?} cut at {cut}");
        }
        for at in 0..good.len() {
            for flip in 1..=255_u8 {
                let mut bad = good.clone();
                bad[at] ^= flip;
                assert!(Message::decode(&bad).is_err(), "{m:?} byte {at} flipped by {flip:#x}");
            }
        }
    }
}

#[test]
fn lengths_are_bounded_by_kind_before_anything_is_read() {
    for kind in Kind::ALL {
        let mut m = finish(begin(kind, 0));
        let len = u32::try_from(kind.limit() + 1).unwrap();
        m[..4].copy_from_slice(&len.to_le_bytes());
        let check = head_check(&m[..5]);
        m[5..8].copy_from_slice(&check);
        let err = Head::decode(m[..8].try_into().unwrap()).unwrap_err();
        assert!(matches!(err, DecodeError::TooLarge { .. }), "{kind:?}: {err}");
    }
}

#[test]
fn the_hello_never_changes_its_first_bytes() {
    let bytes = Message::Hello(hello()).encode();
    assert_eq!(&bytes[..5], &[129, 0, 0, 0, 1]);
    assert_eq!(&bytes[8..24], b"towline\0\x01\x00\x03\x00\x71\x00\x00\x00");
    // What version 1 knows is where it was; it passes over what follows.
    assert_eq!(&bytes[24..115], &HELLO_V1[24..115]);
    assert_eq!(&bytes[115..125], &[8, 7, 6, 5, 4, 3, 2, 1, 1, 1]);
    assert_eq!(&bytes[125..137], &[0x0B, 0x0A, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
}

/// The hello of [`hello`] as programs wrote it that spoke version 1 only.
const HELLO_V1: &[u8] = include_bytes!("../../tests/fixtures/v1/hello");

#[test]
fn messages_of_version_1_are_read() {
    let (back, taken) = Message::decode(HELLO_V1).unwrap();
    assert_eq!(taken, HELLO_V1.len());
    assert!(same(
        &back,
        &Message::Hello(Hello {
            node: NodeId::NONE,
            wants: RoleWanted::Any,
            purpose: Purpose::Follow,
            line: LineId::FIRST,
            history: None,
            ..hello()
        })
    ));
    for bytes in [
        &include_bytes!("../../tests/fixtures/v1/welcome")[..],
        include_bytes!("../../tests/fixtures/v1/keepalive"),
    ] {
        let (back, _) = Message::decode(bytes).unwrap();
        match &back {
            Message::Welcome(w) => assert!(w.lineage.is_none() && w.name == "leader"),
            Message::Keepalive(k) => assert!(k.origin.is_none() && k.now == 5),
            other => panic!("{other:?}"),
        }
        // And what is written for such a peer is what it expects.
        assert_eq!(back.encode(), bytes);
    }
}

/// What the last programs that spoke no more than version 2, and 3, sent each other: hello, welcome, keepalive, ack, and
/// from version 3 on slots.
const RECORDED: [(u16, &[&[u8]]); 2] = [
    (
        2,
        &[
            include_bytes!("../../tests/fixtures/v2/hello"),
            include_bytes!("../../tests/fixtures/v2/welcome"),
            include_bytes!("../../tests/fixtures/v2/keepalive"),
            include_bytes!("../../tests/fixtures/v2/ack"),
        ],
    ),
    (
        3,
        &[
            include_bytes!("../../tests/fixtures/v3/hello"),
            include_bytes!("../../tests/fixtures/v3/welcome"),
            include_bytes!("../../tests/fixtures/v3/keepalive"),
            include_bytes!("../../tests/fixtures/v3/ack"),
            include_bytes!("../../tests/fixtures/v3/slots"),
        ],
    ),
];

#[test]
fn what_programs_of_versions_2_and_3_said_is_read_and_written_as_they_did() {
    for (version, messages) in RECORDED {
        for bytes in messages {
            let (back, taken) = Message::decode(bytes).unwrap();
            assert_eq!(taken, bytes.len());
            match &back {
                Message::Hello(h) => {
                    assert_eq!((h.versions, h.name.as_str(), h.want), ((1, version), "beta", Want::Stream));
                    assert!(h.node != NodeId::NONE && h.wants == RoleWanted::Any && h.flush > Lsn::ZERO);
                    assert_eq!((h.offset, h.purpose), (0, Purpose::Follow));
                    // Later fields follow those that such a program knows; the lengths before differ by them.
                    let (known, now) = (&bytes[HEADER + 16..bytes.len() - TRAILER], back.encode());
                    assert_eq!(&now[HEADER + 16..][..known.len()], known);
                    continue;
                }
                Message::Welcome(w) => {
                    assert_eq!((w.version, w.name.as_str()), (version, "vm"));
                    assert!(matches!(w.decision, Decision::StreamFrom { segment: SegmentNo(1), offset: 0 }));
                    assert!(w.lineage.is_some());
                }
                Message::Keepalive(k) => {
                    assert!(k.end > Lsn::ZERO && k.end == k.exact && k.now > k.commit_time);
                    assert_eq!((k.origin.is_some(), k.asks.is_some()), (true, version >= VERSION_SLOTS));
                }
                Message::Ack(a) => {
                    assert!(
                        a.flush == a.write && a.apply > Lsn::ZERO && a.apply_time > 0 && a.delay.is_none()
                    );
                    assert_eq!(a.flags, (version >= VERSION_SLOTS).then_some(ACK_APPLIES));
                }
                Message::Slots(slots) => assert_eq!(slots, &[slot("beta", 0x0100_003a, true)]),
                other => panic!("{other:?}"),
            }
            assert_eq!(back.encode(), *bytes, "version {version}: {back:?}");
        }
    }
}

#[test]
fn a_hello_of_a_later_version_is_read() {
    let mut m = begin(Kind::Hello, 0);
    hello_fields_of_later_version(&mut m);
    let (back, _) = Message::decode(&finish(m)).unwrap();
    assert!(matches!(back, Message::Hello(h) if h.name == "follower-1" && h.versions == (1, 3)));
}

fn hello_fields_of_later_version(m: &mut Vec<u8>) {
    put_hello(&hello(), m);
    m.extend_from_slice(b"a field of the future");
    let rest = u32::try_from(m.len() - HEADER - 16).unwrap();
    m[HEADER + 12..HEADER + 16].copy_from_slice(&rest.to_le_bytes());
}

#[test]
fn long_texts_are_cut_between_characters() {
    let reason = "\u{e9}".repeat(2000);
    let (back, _) = Message::decode(&Message::Goodbye { code: Code::Failed, reason }.encode()).unwrap();
    let Message::Goodbye { reason, .. } = back else { panic!("{back:?}") };
    assert_eq!(reason.len(), REASON_MAX);
}

#[test]
fn slots_are_bounded_and_stand_as_the_table_says() {
    let bytes = Message::Slots(vec![slot("f1", 0x0102, true)]).encode();
    let payload = [1, 0, 2, 0, 0, 0, b'f', b'1', 2, 1, 0, 0, 0, 0, 0, 0, 1];
    assert_eq!(&bytes[HEADER..bytes.len() - TRAILER], payload);
    let most = vec![slot(&"x".repeat(NAME_MAX), 1, false); SLOTS_MAX + 9];
    let encoded = Message::Slots(most).encode();
    assert_eq!(encoded.len(), HEADER + Kind::Slots.limit() + TRAILER);
    let Message::Slots(back) = Message::decode(&encoded).unwrap().0 else { panic!() };
    assert_eq!(back.len(), SLOTS_MAX);
    let claim = |payload: &[u8]| {
        let mut out = begin(Kind::Slots, payload.len());
        out.extend_from_slice(payload);
        Message::decode(&finish(out)).unwrap_err()
    };
    assert!(matches!(claim(&[1, 2]), DecodeError::TooLarge { value: 513, .. }));
    assert!(matches!(claim(&[2, 0]), DecodeError::Short(_)));
    assert!(matches!(claim(&[&payload[..16], &[7]].concat()), DecodeError::Invalid { value: 7, .. }));
}

#[test]
fn older_programs_are_refused_with_codes_that_they_know() {
    let new = [Code::Untrusted, Code::Expired, Code::NotAllowed, Code::Identity, Code::Tls];
    for code in new {
        assert_eq!((code.known_to(2), code.known_to(0)), (Code::Protocol, Code::Protocol));
        assert_eq!(code.known_to(VERSION_MAX), code);
        assert!(!code.passes(), "{code:?} is cured by an operator");
    }
    assert_eq!(Code::Name.known_to(1), Code::Name);
}
