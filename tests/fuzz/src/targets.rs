//! The targets.

use std::io::Read;

use sha2::{Digest as _, Sha256};
use towline::catalog::Catalog;
use towline::checkpoint;
use towline::config::{Config, Size, Span, log_filter};
use towline::history::{self, History};
use towline::manifest::{self, Manifest};
use towline::pack;
use towline::position::{Cut, Lsn, SystemId};
use towline::record::{Attrs, Record, Records};
use towline::segment::{self, FRAME_LEN, HEADER_LEN, Item, Parser, Step, TRAILER_LEN};
use towline::state::Control;
use towline::wire::{self, Items, Message};

/// Targets by name.
pub const ALL: &[(&str, fn(&[u8]))] = &[
    ("wire", wire_messages),
    ("record", records),
    ("segment", segments),
    ("catalog", catalogs),
    ("checkpoint", checkpoints),
    ("control", controls),
    ("history", histories),
    ("config", configs),
    ("manifest", manifests),
    ("pack", packs),
];

/// Messages between nodes.
fn wire_messages(data: &[u8]) {
    message(data);
    // The same bytes as kind and payload of a message whose checks are right.
    let Some((&kind, body)) = data.split_first() else { return };
    let mut sound = u32::try_from(body.len()).unwrap_or(u32::MAX).to_le_bytes().to_vec();
    sound.push(kind);
    let check = crc32c::crc32c(&sound).to_le_bytes();
    sound.extend_from_slice(&check[..3]);
    sound.extend_from_slice(body);
    let crc = crc32c::crc32c(&sound).to_le_bytes();
    sound.extend_from_slice(&crc);
    message(&sound);
}

fn message(bytes: &[u8]) {
    let Ok((message, taken)) = Message::decode(bytes) else { return };
    assert!(taken <= bytes.len());
    if let Message::FillData { encoding: wire::Encoding::Raw, bytes, .. } = &message {
        for item in Items::new(bytes) {
            if item.is_err() {
                break;
            }
        }
    }
    let again = message.encode();
    let (same, len) = Message::decode(&again).expect("what was decoded is encoded soundly");
    assert!(same == message && len == again.len(), "{:?} changes when it is written again", message.kind());
}

/// Records, and the stream of them.
fn records(data: &[u8]) {
    let mut whole = Vec::new();
    for item in Records::new(data) {
        let Ok((at, record)) = item else { break };
        assert_eq!(at, whole.len(), "records follow each other");
        record.encode(&mut whole);
    }
    assert!(data.starts_with(&whole), "a record is written back as it was read");
}

/// Segments, cut anywhere, as they are and with their checksums made right.
fn segments(data: &[u8]) {
    parse(data);
    let mut sound = data.to_vec();
    seal(&mut sound);
    parse(&sound);
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// Puts the right checksums where header, frames and trailer would have them.
fn seal(bytes: &mut [u8]) {
    if bytes.len() < HEADER_LEN {
        return;
    }
    let crc = crc32c::crc32c(&bytes[..HEADER_LEN - 4]);
    bytes[HEADER_LEN - 4..HEADER_LEN].copy_from_slice(&crc.to_le_bytes());
    // Timeline, system and segment as the header has them.
    let (timeline, system, segment) =
        (bytes[20..24].to_vec(), bytes[24..32].to_vec(), bytes[32..40].to_vec());
    let seed = crc32c::crc32c_append(crc32c::crc32c(&system), &timeline);
    let mut at = HEADER_LEN;
    while let Some(magic) = number(bytes, at) {
        if magic == 0x184D_2A52 && bytes.len() >= at + TRAILER_LEN {
            let crc = crc32c::crc32c_append(crc32c::crc32c_append(seed, &segment), &bytes[at..at + 68]);
            bytes[at + 68..at + 72].copy_from_slice(&crc.to_le_bytes());
            return;
        }
        let Some(stored) = number(bytes, at + 20) else { return };
        let Some(end) = at.checked_add(FRAME_LEN + stored as usize).filter(|e| *e <= bytes.len()) else {
            return;
        };
        let crc = crc32c::crc32c_append(
            crc32c::crc32c_append(seed, &bytes[at..at + 44]),
            &bytes[at + FRAME_LEN..end],
        );
        bytes[at + 44..at + 48].copy_from_slice(&crc.to_le_bytes());
        at = end;
    }
}

fn parse(bytes: &[u8]) {
    let Ok(header) = segment::Header::decode(bytes) else { return };
    assert_eq!(segment::Header::decode(&header.encode()), Ok(header));
    let mut parser = Parser::new(header.system, header.timeline, header.segment);
    let mut at = 0;
    let mut raw = Vec::new();
    loop {
        match parser.next(&bytes[at..]) {
            Step::Item(item) => {
                assert!(item.stored() > 0 && at + item.stored() <= bytes.len());
                if let Item::Frame(frame) = item {
                    let payload = &bytes[at + FRAME_LEN..at + item.stored()];
                    raw.clear();
                    let limit = frame.raw_len as usize;
                    raw.reserve(limit);
                    if zstd::bulk::Decompressor::new()
                        .and_then(|mut d| d.decompress_to_buffer(payload, &mut raw))
                        .is_ok()
                    {
                        Records::new(&raw).take_while(Result::is_ok).for_each(drop);
                    }
                }
                at += item.stored();
            }
            Step::More(n) => {
                assert!(n > bytes.len() - at, "more is asked for than is missing");
                return;
            }
            Step::Zeros | Step::Bad(_) => return,
        }
    }
}

/// The tree as a fold over records from anywhere: each is refused, or leaves a tree that a checkpoint holds.
fn catalogs(data: &[u8]) {
    let system = SystemId(7);
    let mut catalog = Catalog::new(system, Attrs::default());
    for item in Records::new(data).take(4096) {
        let Ok((_, record)) = item else { break };
        let fitted = catalog.fold(&record).is_ok();
        if let Record::Commit(_) = record
            && fitted
            && catalog.settle().is_err()
        {
            return;
        }
    }
    if catalog.settle().is_err() {
        return;
    }
    assert!(catalog.digest() == catalog.recomputed_digest(), "the running digest is that of the tree");
    catalog.set_position(Lsn::FIRST, Cut::Exact, 1);
    let Ok(frozen) = catalog.freeze() else { return };
    let mut bytes = Vec::new();
    checkpoint::encode(&frozen, &mut bytes).expect("a vector takes everything");
    let back = checkpoint::decode(&bytes[..]).expect("a checkpoint is read back");
    assert!(back.digest() == catalog.digest(), "a checkpoint holds another tree");
    assert_eq!(
        (back.len(), back.name_count(), back.next_id()),
        (catalog.len(), catalog.name_count(), catalog.next_id())
    );
}

/// Checkpoints: compressed bytes as they are, and the bytes as what is within.
fn checkpoints(data: &[u8]) {
    tree(data);
    let mut inner = data.to_vec();
    // A decompressed seed is as good as any; what is compressed is looked at within.
    if let Ok(decoder) = zstd::stream::read::Decoder::new(data) {
        let mut out = Vec::new();
        if decoder.take(1 << 20).read_to_end(&mut out).is_ok() && out.len() > 32 {
            out.truncate(out.len() - 32);
            inner = out;
        }
    }
    let sum: [u8; 32] = Sha256::digest(&inner).into();
    inner.extend_from_slice(&sum);
    if let Ok(bytes) = zstd::bulk::compress(&inner, 1) {
        tree(&bytes);
    }
}

fn tree(bytes: &[u8]) {
    let Ok(catalog) = checkpoint::decode(bytes) else { return };
    assert!(catalog.digest() == catalog.recomputed_digest(), "a checkpoint's digest is not that of its tree");
    for id in catalog.ids().take(1000) {
        let _ = catalog.path(id);
    }
}

/// Control files.
fn controls(data: &[u8]) {
    control(data);
    if let Some((body, _)) = data.split_last_chunk::<4>() {
        let mut sound = body.to_vec();
        sound.extend_from_slice(&crc32c::crc32c(body).to_le_bytes());
        control(&sound);
    }
}

fn control(bytes: &[u8]) {
    let Ok(control) = Control::decode(bytes) else { return };
    let again = Control::decode(&control.encode());
    assert!(again.is_ok_and(|a| a == control), "a control file changes when it is written again");
}

/// Histories of timelines.
fn histories(data: &[u8]) {
    history(data);
    if let Some((body, _)) = data.split_last_chunk::<4>() {
        let mut sound = body.to_vec();
        sound.extend_from_slice(&crc32c::crc32c(body).to_le_bytes());
        history(&sound);
    }
}

fn history(bytes: &[u8]) {
    let Ok(history) = History::decode(bytes) else { return };
    assert_eq!(history.encode(), bytes, "a history changes when it is written again");
    assert_eq!(history.line_of(history.timeline()), Some(history.line()));
    for b in history.branches() {
        assert_eq!(history.end_of(b.parent), Some(b.at));
        assert!(history.timeline_of(b.first_segment()) >= b.timeline);
        let _ = history.judge(b.timeline, b.line, b.at);
    }
    let _ = history.common(&history);
}

/// Configuration files, and the words of commands.
fn configs(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(config) = Config::parse(text) {
        let shown = toml::to_string(&config).expect("a configuration is shown");
        let back = Config::parse(&shown).expect("what is shown is read back");
        assert_eq!(toml::to_string(&back).expect("shown"), shown);
    }
    if let Ok(span) = text.parse::<Span>() {
        assert_eq!(span.to_string().parse::<Span>(), Ok(span));
    }
    if let Ok(size) = text.parse::<Size>() {
        assert_eq!(size.to_string().parse::<Size>(), Ok(size));
    }
    if let Ok(lsn) = text.parse::<Lsn>() {
        assert_eq!(lsn.to_string().parse::<Lsn>().ok(), Some(lsn));
    }
    let _ = log_filter(text);
    let _ = segment::parse_name(data);
    let _ = history::parse_name(data);
}

/// Manifests of backups: what is accepted is written back, and read again as the same.
fn manifests(data: &[u8]) {
    if let Ok(sum) = manifest::seal(data) {
        assert!(data.ends_with(format!("{sum}\"}}\n").as_bytes()), "a seal is the last line");
    }
    // The rules are looked at whatever the checksum.
    let Ok(read) = Manifest::parse_unsealed(data) else { return };
    let mut again = Vec::new();
    let sum = read.write(&mut again).expect("what was read is written");
    assert_eq!(manifest::seal(&again), Ok(sum));
    assert!(Manifest::parse(&again).is_ok_and(|m| m == read), "a manifest changes when it is written again");
}

/// Packs: as they are, and with the checksums of the frames made right.
fn packs(data: &[u8]) {
    unpack(data);
    let mut sound = data.to_vec();
    let mut at = pack::HEADER_LEN;
    let seed = crc32c::crc32c(sound.get(12..20).unwrap_or_default());
    while let Some(stored) = number(&sound, at + 5) {
        let Some(end) = at.checked_add(pack::FRAME_LEN + stored as usize).filter(|e| *e <= sound.len()) else {
            break;
        };
        let head = crc32c::crc32c_append(seed, &sound[at..at + 9]);
        let crc = crc32c::crc32c_append(head, &sound[at + pack::FRAME_LEN..end]);
        sound[at + 9..at + 13].copy_from_slice(&crc.to_le_bytes());
        at = end;
    }
    unpack(&sound);
}

fn unpack(bytes: &[u8]) {
    let Ok(mut reader) = pack::Reader::new(bytes) else { return };
    let mut again = pack::Writer::new(Vec::new(), reader.system()).expect("a vector takes everything");
    let mut unpacker = pack::Unpacker::default();
    while let Ok(Some(frame)) = reader.next() {
        again.frame(frame.encoding, frame.raw_len, &frame.stored).expect("what was read is written");
        let Ok(items) = unpacker.items(&frame) else { continue };
        assert_eq!(items.len(), frame.raw_len as usize);
        Items::new(items).take_while(Result::is_ok).for_each(drop);
    }
    assert!(bytes.starts_with(&again.into_inner()), "a frame is written back as it was read");
}
