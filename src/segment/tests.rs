use proptest::prelude::*;
use sha2::{Digest, Sha256};

use super::*;
use crate::position::{Cut, FileId};
use crate::record::{Attrs, BLOCK, Commit, GapReason, Kind, Record, Records, Time};

const SYSTEM: SystemId = SystemId(0x0123_4567_89AB_CDEF);
const TIMELINE: TimelineId = TimelineId(3);
const SEGMENT: SegmentNo = SegmentNo(0x2A);

/// Builds a segment's file of frames with these payloads and flags.
struct Builder {
    bytes: Vec<u8>,
    lsn: Lsn,
    marks: Marks,
    records: u64,
    commits: u64,
    /// Records and commit time of the next frame.
    says: (u32, i64),
    /// Offset of each item.
    at: Vec<usize>,
}

impl Builder {
    fn new(marks: Marks) -> Self {
        let header = Header {
            system: SYSTEM,
            timeline: TIMELINE,
            segment: SEGMENT,
            start: SEGMENT.start(),
            marks,
            prev_sha: [7; 32],
            created_ns: 1_700_000_000_000_000_001,
        };
        Self {
            bytes: header.encode(),
            lsn: header.start,
            marks,
            records: 0,
            commits: 0,
            says: (2, 5),
            at: vec![0],
        }
    }

    fn frame(&mut self, raw: &[u8], flags: u16, synced: u32) {
        let payload = zstd::bulk::compress(raw, 1).unwrap();
        self.frame_of(raw.len(), &payload, flags, synced);
    }

    fn frame_of(&mut self, raw_len: usize, payload: &[u8], flags: u16, synced: u32) {
        let at = self.bytes.len();
        self.at.push(at);
        self.bytes.resize(at + FRAME_LEN, 0);
        self.bytes.extend_from_slice(payload);
        let header = FrameHeader {
            start: self.lsn,
            raw_len: u32::try_from(raw_len).unwrap(),
            stored_len: 0,
            flags,
            records: self.says.0,
            time: self.says.1,
            synced,
            crc: 0,
        };
        let header = header.seal(SYSTEM, TIMELINE, &mut self.bytes[at..]);
        assert_eq!(header.stored_len as usize, payload.len());
        self.lsn = header.end();
        self.marks.advance(&header);
        self.records += u64::from(self.says.0);
        self.commits += u64::from(header.commits());
    }

    fn seal(&mut self) {
        self.at.push(self.bytes.len());
        let t = Trailer {
            end: self.lsn,
            records: self.records,
            commits: self.commits,
            marks: self.marks,
            sha: [0; 32],
        };
        self.bytes.extend_from_slice(&t.encode_head(SYSTEM, TIMELINE, SEGMENT));
        let sha = Sha256::digest(&self.bytes);
        self.bytes.extend_from_slice(&sha);
    }
}

fn small() -> Builder {
    let mut b = Builder::new(Marks::default());
    b.frame(b"first records", flags::STARTS, 0);
    b.frame(&[b'x'; 5000], flags::ENDS | flags::EXACT, 100);
    b.frame(b"another change set", flags::STARTS | flags::ENDS, 250);
    b.seal();
    b
}

fn start() -> Parser {
    Parser::new(SYSTEM, TIMELINE, SEGMENT)
}

/// Parses to the first thing that is not an item, as if `bytes` were the whole file.
fn parse(bytes: &[u8]) -> (Vec<Item>, Step, Parser) {
    let (mut parser, mut items) = (start(), Vec::new());
    loop {
        let at = usize::try_from(parser.offset()).unwrap();
        match parser.next(&bytes[at..]) {
            Step::Item(item) => items.push(item),
            step => return (items, step, parser),
        }
    }
}

#[test]
fn names_are_hexadecimal_and_sort_like_positions() {
    let name = file_name(TimelineId(1), SegmentNo(0xAB), true);
    assert_eq!(name, "0000000100000000000000AB.partial");
    assert_eq!(parse_name(name.as_bytes()), Some((TimelineId(1), SegmentNo(0xAB), true)));
    let sealed = file_name(TimelineId(u32::MAX), SegmentNo(u64::MAX), false);
    assert_eq!(parse_name(sealed.as_bytes()), Some((TimelineId(u32::MAX), SegmentNo(u64::MAX), false)));
    for bad in [
        "",
        ".partial",
        "0000000100000000000000ab",
        "0000000100000000000000A",
        "0000000100000000000000AB.new",
    ] {
        assert_eq!(parse_name(bad.as_bytes()), None, "{bad}");
    }
}

#[test]
fn the_bound_of_a_payload_is_zstds_own() {
    for raw in [1, 8, 1000, 100_000, 128 << 10, RAW_MAX - 1, RAW_MAX] {
        assert_eq!(stored_bound(raw), zstd::zstd_safe::compress_bound(raw));
    }
}

#[test]
fn flags_that_contradict_each_other_are_refused() {
    let good: Vec<u16> = (0..64).filter(|f| flags::valid(*f)).collect();
    assert_eq!(good, [0, 1, 2, 3, 6, 7, 10, 11]);
}

#[test]
fn a_segment_is_parsed_to_its_end() {
    let b = small();
    let (items, step, parser) = parse(&b.bytes);
    assert_eq!((items.len(), step, parser.done()), (5, Step::More(4), true));
    let marks = parser.marks();
    assert_eq!((marks.commit, marks.exact, marks.open), (b.lsn, Lsn(SEGMENT.start().0 + 5013), false));
    assert_eq!((parser.records(), parser.commits()), (6, 2));
    let Item::Trailer(t) = items[4] else { panic!("{items:?}") };
    let sha: [u8; 32] = Sha256::digest(&b.bytes[..b.bytes.len() - 32]).into();
    assert_eq!(t.sha, sha);
    assert_eq!(
        b.at,
        items.iter().scan(0, |at, i| Some(std::mem::replace(at, *at + i.stored()))).collect::<Vec<_>>()
    );
}

#[test]
fn every_truncation_is_told_from_damage() {
    let b = small();
    for len in 0..b.bytes.len() {
        let (items, step, parser) = parse(&b.bytes[..len]);
        let whole = b.at.iter().filter(|at| **at <= len).count() - 1;
        assert_eq!(items.len(), whole, "at {len}");
        assert!(matches!(step, Step::More(n) if n <= FRAME_LEN + STORED_MAX), "at {len}: {step:?}");
        assert_eq!(parser.offset(), b.at[whole] as u64);
        // The rest of the file never reached the disk.
        let mut zeros = b.bytes[..len].to_vec();
        zeros.resize(b.bytes.len() + 100, 0);
        let (found, step, _) = parse(&zeros);
        assert_eq!(found[..items.len()], items);
        assert!(matches!(step, Step::Zeros | Step::Bad(_)), "at {len}: {step:?}");
    }
}

#[test]
fn every_damaged_byte_is_found() {
    let b = small();
    let (good, _, _) = parse(&b.bytes);
    for at in 0..b.bytes.len() - 32 {
        for flip in [1, 0x80, 0xFF] {
            let mut bytes = b.bytes.clone();
            bytes[at] ^= flip;
            let (items, step, parser) = parse(&bytes);
            let place = b.at.iter().rposition(|start| *start <= at).unwrap();
            assert_eq!(items, good[..place], "byte {at}");
            assert_eq!(parser.offset(), b.at[place] as u64);
            match step {
                Step::Bad(fault) => assert!(!fault.to_string().is_empty()),
                // A longer payload than there is; bounded, and no payload is believed without its checksum.
                Step::More(n) => assert!(n <= FRAME_LEN + STORED_MAX, "byte {at}"),
                other => panic!("byte {at}: {other:?}"),
            }
        }
    }
}

#[test]
fn bytes_of_another_log_do_not_pass() {
    let b = small();
    let step = |system, timeline, segment| Parser::new(system, timeline, segment).next(&b.bytes);
    assert_eq!(step(SystemId(1), TIMELINE, SEGMENT), Step::Bad(Fault::System(SYSTEM)));
    assert_eq!(step(SYSTEM, TimelineId(9), SEGMENT), Step::Bad(Fault::Timeline(TIMELINE)));
    assert_eq!(step(SYSTEM, TIMELINE, SegmentNo(1)), Step::Bad(Fault::Segment(SEGMENT)));
    // The same frame, intact, but of another system or timeline.
    let frame = &b.bytes[b.at[1]..];
    let resume = |system, timeline| {
        let at = (b.at[1] as u64, SEGMENT.start());
        Parser::resume((system, timeline, SEGMENT), at, Marks::default(), (0, 0)).next(frame)
    };
    assert!(matches!(resume(SYSTEM, TIMELINE), Step::Item(Item::Frame(_))));
    assert_eq!(resume(SystemId(1), TIMELINE), Step::Bad(Fault::FrameCrc));
    assert_eq!(resume(SYSTEM, TimelineId(1)), Step::Bad(Fault::FrameCrc));
    let mut newer = b.bytes.clone();
    newer[16] = 2;
    let crc = crc32c::crc32c(&newer[..124]);
    newer[124..128].copy_from_slice(&crc.to_le_bytes());
    assert_eq!(start().next(&newer), Step::Bad(Fault::Version(2)));
    assert!(Fault::Version(2).foreign() && !Fault::FrameCrc.foreign());
}

#[test]
fn frames_out_of_order_are_refused() {
    let b = small();
    let mut p = start();
    let _ = p.next(&b.bytes);
    let second = p.next(&b.bytes[b.at[2]..]);
    assert!(matches!(second, Step::Bad(Fault::Position { .. })), "{second:?}");
    let mut mixed = Builder::new(Marks::default());
    mixed.frame(b"goes on without having begun", 0, 0);
    assert_eq!(parse(&mixed.bytes).1, Step::Bad(Fault::Sets));
    let mut mixed = Builder::new(Marks { open: true, ..Marks::default() });
    mixed.frame(b"begins inside another", flags::STARTS, 0);
    assert_eq!(parse(&mixed.bytes).1, Step::Bad(Fault::Sets));
    let mut beyond = Builder::new(Marks::default());
    beyond.lsn = Lsn(SEGMENT.end().0 - 10);
    beyond.frame(b"more than ten bytes", flags::STARTS, 0);
    let at = (0, Lsn(SEGMENT.end().0 - 10));
    let mut p = Parser::resume((SYSTEM, TIMELINE, SEGMENT), at, Marks::default(), (0, 0));
    assert_eq!(p.next(&beyond.bytes[HEADER_LEN..]), Step::Bad(Fault::Beyond));
}

#[test]
fn lengths_are_checked_before_they_are_used() {
    for (offset, value, what) in [
        (16, RAW_MAX as u32 + 1, "uncompressed"),
        (20, STORED_MAX as u32 + 1, "stored"),
        (16, 0, "zero"),
        (20, 0, "zero"),
    ] {
        let mut b = small();
        let at = b.at[1] + offset;
        b.bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        let (items, step, _) = parse(&b.bytes);
        assert!(items.len() == 1 && matches!(step, Step::Bad(Fault::Field(_))), "{what}: {step:?}");
    }
}

#[test]
fn a_trailer_must_be_that_of_the_frames() {
    let sealed = |change: fn(&mut Builder)| {
        let mut b = Builder::new(Marks::default());
        b.frame(b"records", flags::STARTS | flags::ENDS, 0);
        change(&mut b);
        b.seal();
        parse(&b.bytes).1
    };
    assert_eq!(sealed(|_| ()), Step::More(4));
    assert!(matches!(sealed(|b| b.records = 9), Step::Bad(Fault::Summary(_))));
    assert!(matches!(sealed(|b| b.commits = 9), Step::Bad(Fault::Summary(_))));
    assert!(matches!(sealed(|b| b.marks.open = true), Step::Bad(Fault::Summary(_))));
    assert!(matches!(sealed(|b| b.lsn.0 += 1), Step::Bad(Fault::Position { .. })));
    let mut b = small();
    b.bytes.push(b'x');
    b.bytes.extend_from_slice(b"yz!");
    assert_eq!(parse(&b.bytes).1, Step::Bad(Fault::AfterTrailer));
}

#[test]
fn a_later_sync_is_a_witness_of_damage() {
    let b = small();
    // The second frame is bad. The third was written when 250 bytes of the file were durable.
    for (bad, witness) in [(b.at[1], true), (b.at[2], true), (b.at[3], false)] {
        let mut bytes = b.bytes.clone();
        bytes[bad + 9] ^= 1;
        let (_, step, parser) = parse(&bytes);
        assert!(matches!(step, Step::Bad(_)));
        assert_eq!(parser.offset(), bad as u64);
        let found = durable_after(&bytes[bad..], SYSTEM, TIMELINE, SEGMENT, bad as u64);
        assert_eq!(found.is_some(), witness, "at {bad}");
    }
    let rest = &b.bytes[b.at[1]..];
    assert_eq!(durable_after(rest, SystemId(1), TIMELINE, SEGMENT, 128), None);
    assert_eq!(durable_after(&[], SYSTEM, TIMELINE, SEGMENT, 128), None);
}

proptest! {
    #[test]
    fn any_frames_survive_the_round_trip(
        raws in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..3000), 1..8),
        cut in any::<prop::sample::Index>(),
        open in any::<bool>(),
    ) {
        let mut b = Builder::new(Marks { open, ..Marks::default() });
        for (n, raw) in raws.iter().enumerate() {
            let starts = if b.marks.open { 0 } else { flags::STARTS };
            let ends = [0, flags::ENDS, flags::ENDS | flags::EXACT, flags::ENDS | flags::ABORT][(raw[0] % 4) as usize];
            b.frame(raw, starts | ends, n as u32);
        }
        b.seal();
        let (items, step, parser) = parse(&b.bytes);
        prop_assert_eq!(step, Step::More(4));
        prop_assert_eq!(parser.marks(), b.marks);
        prop_assert_eq!(items.len(), raws.len() + 2);
        for ((item, at), raw) in items[1..].iter().zip(&b.at[1..]).zip(&raws) {
            let Item::Frame(f) = item else { panic!() };
            let payload = &b.bytes[at + FRAME_LEN..at + f.stored()];
            prop_assert_eq!(&zstd::bulk::decompress(payload, f.raw_len as usize).unwrap(), raw);
        }
        // Fed in two pieces, the parser asks for more and then goes on.
        let cut = cut.index(b.bytes.len());
        let (first, step, mut parser) = parse(&b.bytes[..cut]);
        prop_assert!(matches!(step, Step::More(_)));
        let mut n = first.len();
        while let Step::Item(item) = parser.next(&b.bytes[usize::try_from(parser.offset()).unwrap()..]) {
            prop_assert_eq!(item, items[n]);
            n += 1;
        }
        prop_assert_eq!(n, items.len());
        // Headers alone lead to the same places.
        let mut skipper = start();
        for item in &items {
            let at = usize::try_from(skipper.offset()).unwrap();
            let head = &b.bytes[at..(at + item.stored()).min(at + HEADER_LEN)];
            prop_assert_eq!(skipper.skip(head), Step::Item(*item));
        }
    }

    #[test]
    fn garbage_is_refused_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600), at in 0usize..200) {
        let (items, _, _) = parse(&bytes);
        prop_assert!(items.is_empty());
        let _ = Header::decode(&bytes);
        let _ = FrameHeader::decode(&bytes);
        let _ = Trailer::decode(&bytes, SYSTEM, TIMELINE, SEGMENT);
        let mut mixed = small().bytes;
        let n = bytes.len().min(mixed.len() - at);
        mixed[at..at + n].copy_from_slice(&bytes[..n]);
        parse(&mixed);
        let _ = durable_after(&mixed, SYSTEM, TIMELINE, SEGMENT, 0);
    }
}

/// One record of every kind, in two frames: a file set and an exact one, with an abort between.
fn golden_records() -> [(Vec<Record<'static>>, u16); 3] {
    let attrs = Attrs { mode: 0o4755, uid: 1000, gid: 100, mtime: Time { sec: -3, nsec: 999_999_999 } };
    let (id, root) = (FileId(2), FileId::ROOT);
    let commit = |cut, time| {
        Record::Commit(Commit { cut, partial: cut == Cut::File, time, meta: 1 << 100, content: 7, inodes: 2 })
    };
    [
        (
            vec![
                Record::Excludes { version: 1, patterns: b"*.tmp\n" },
                Record::Create { id, kind: Kind::File, attrs, rdev: 0, target: b"" },
                Record::Create { id: FileId(3), kind: Kind::Symlink, attrs, rdev: 0, target: b"../x" },
                Record::Link { parent: root, name: b"a \xFF\n", id },
                Record::Write { id, offset: BLOCK * 3, data: &[b'x'; 5000] },
                commit(Cut::File, 1_700_000_000_000_000_002),
            ],
            flags::STARTS | flags::ENDS,
        ),
        (
            vec![Record::Truncate { id, size: 1 << 40 }, Record::Abort],
            flags::STARTS | flags::ENDS | flags::ABORT,
        ),
        (
            vec![
                Record::Gap { end: false, reason: GapReason::Overflow, time: 4 },
                Record::Unlink { parent: root, name: b"gone" },
                Record::Punch { id, offset: BLOCK, len: BLOCK },
                Record::Attr { id, attrs },
                Record::Xattr { id, name: b"user.x", value: Some(b"v") },
                Record::Xattr { id, name: b"user.y", value: None },
                Record::RestorePoint { time: 5, name: b"before" },
                Record::Gap { end: true, reason: GapReason::Down, time: 6 },
                commit(Cut::Exact, 1_700_000_000_000_000_003),
            ],
            flags::STARTS | flags::ENDS | flags::EXACT,
        ),
    ]
}

/// What was written once must be read for ever, and written again byte for byte. Payloads are taken
/// as the file has them: another version of zstd may compress otherwise.
#[test]
fn the_golden_segment_of_format_1_is_read_and_written_byte_for_byte() {
    let golden = include_bytes!("../../tests/fixtures/v1/00000003000000000000002A");
    let mut b = Builder::new(Marks::default());
    for (records, flags) in golden_records() {
        let mut raw = Vec::new();
        records.iter().for_each(|r| r.encode(&mut raw));
        let time = match records.last() {
            Some(Record::Commit(c)) => c.time,
            _ => 0,
        };
        b.says = (u32::try_from(records.len()).unwrap(), time);
        let head = golden.get(b.bytes.len()..).unwrap_or(&[]);
        match FrameHeader::decode(head) {
            Ok(f) => {
                let payload = &head[FRAME_LEN..f.stored()];
                let stored = zstd::bulk::decompress(payload, RAW_MAX).unwrap();
                assert!(Records::new(&stored).map(|r| r.unwrap().1).eq(records));
                assert!(stored == raw);
                b.frame_of(raw.len(), payload, flags, 0);
            }
            Err(_) => b.frame(&raw, flags, 0),
        }
    }
    b.seal();
    if std::env::var_os("TOWLINE_WRITE_GOLDEN").is_some() && golden.is_empty() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/v1/00000003000000000000002A");
        std::fs::write(path, &b.bytes).unwrap();
    }
    assert!(b.bytes == golden);
    let (items, step, parser) = parse(golden);
    assert_eq!((items.len(), step, parser.done()), (5, Step::More(4), true));
}

#[test]
fn an_ended_segment_has_a_name_that_no_other_has() {
    let name = ended_name(TimelineId(1), SegmentNo(0xAB), TimelineId(0x1F));
    assert_eq!(name, "0000000100000000000000AB.0000001F");
    assert_eq!(parse_ended(name.as_bytes()), Some((TimelineId(1), SegmentNo(0xAB), TimelineId(0x1F))));
    assert_eq!(parse_name(name.as_bytes()), None);
    for bad in [
        "0000000100000000000000AB",
        "0000000100000000000000AB.partial",
        "0000000100000000000000AB.0000001f",
        "0000000100000000000000AB.00000001",
        "0000000100000000000000AB.2",
        "0000000100000000000000AB-00000002",
    ] {
        assert_eq!(parse_ended(bad.as_bytes()), None, "{bad}");
    }
}
