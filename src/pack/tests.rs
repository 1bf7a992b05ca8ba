use proptest::prelude::*;

use super::*;
use crate::position::FileId;
use crate::wire::{Item, Items, Outcome, put_item_end, put_item_head, put_item_hole};

const SYSTEM: SystemId = SystemId(0x0123_4567_89ab_cdef);

fn items(fill: u8, len: u32) -> Vec<u8> {
    let mut out = Vec::new();
    put_item_head(&mut out, FileId(7), 16 << 10, len);
    out.resize(out.len() + len as usize, fill);
    put_item_hole(&mut out, FileId(7), 0, 16 << 10);
    put_item_end(&mut out, FileId(7), Outcome::Whole, (16 << 10) + u64::from(len));
    out
}

fn write(frames: &[(Encoding, Vec<u8>)]) -> Vec<u8> {
    let mut w = Writer::new(Vec::new(), SYSTEM).unwrap();
    for (encoding, raw) in frames {
        let stored =
            if *encoding == Encoding::Zstd { zstd::bulk::compress(raw, 1).unwrap() } else { raw.clone() };
        w.frame(*encoding, raw.len() as u32, &stored).unwrap();
    }
    let len = w.len();
    let out = w.into_inner();
    assert_eq!(out.len() as u64, len);
    out
}

/// The bytes of the file of fixtures, and what is in it.
fn sample() -> Vec<u8> {
    write(&[(Encoding::Raw, items(b'a', 5)), (Encoding::Zstd, items(b'b', 4000))])
}

fn read(bytes: &[u8]) -> Result<Vec<Vec<u8>>, Error> {
    let mut reader = Reader::of(bytes, SYSTEM)?;
    let mut unpacker = Unpacker::default();
    let mut out = Vec::new();
    while let Some(frame) = reader.next()? {
        out.push(unpacker.items(&frame)?.to_vec());
    }
    assert_eq!(reader.position(), bytes.len() as u64);
    Ok(out)
}

#[test]
fn the_format_stays_what_it_is() {
    // For a new version of the format only.
    if std::env::var_os("TOWLINE_WRITE_GOLDEN").is_some() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/v1/pack");
        std::fs::write(path, sample()).unwrap();
    }
    let golden = include_bytes!("../../tests/fixtures/v1/pack");
    let got = read(golden).unwrap();
    assert_eq!(got, [items(b'a', 5), items(b'b', 4000)]);
    let first: Vec<_> = Items::new(&got[0]).map(Result::unwrap).collect();
    assert_eq!(first[0], Item::Data { id: FileId(7), offset: 16 << 10, bytes: b"aaaaa" });
    assert_eq!(&golden[..20], b"TWLNPACK\x01\0\0\0\xef\xcd\xab\x89\x67\x45\x23\x01");
    // What the compressor makes may change with its version; the first frame may not.
    assert_eq!(golden[..100], sample()[..100]);
}

#[test]
fn every_flipped_bit_and_every_cut_is_found() {
    let whole = sample();
    for at in 0..whole.len() {
        for bit in 0..8 {
            let mut bad = whole.clone();
            bad[at] ^= 1 << bit;
            let e = read(&bad).expect_err(&format!("bit {bit} of byte {at}"));
            let said = match (&e, at) {
                (Error::Damaged { at: 0, why: DecodeError::Magic(_) }, 0..8)
                | (Error::Damaged { at: 0, why: DecodeError::Version { .. } }, 8..12)
                | (Error::Foreign { .. }, 12..20) => true,
                (Error::Damaged { at: frame, .. }, 20..) => *frame == 20 || at as u64 >= *frame,
                _ => false,
            };
            assert!(said, "bit {bit} of byte {at}: {e}");
        }
        let ends = [20, 20 + (FRAME_LEN + items(b'a', 5).len())];
        match read(&whole[..at]) {
            Ok(_) => assert!(ends.contains(&at), "cut at {at}"),
            Err(e) => assert!(matches!(e, Error::Damaged { why: DecodeError::Short(_), .. }), "{at}: {e}"),
        }
    }
}

#[test]
fn lengths_are_bounded_before_they_are_believed() {
    let frame = |encoding: u8, raw: u32, stored: u32| {
        let mut out = Writer::new(Vec::new(), SYSTEM).unwrap().into_inner();
        out.put_u8(encoding);
        out.put_u32(raw);
        out.put_u32(stored);
        out.put_u32(0);
        out
    };
    for (bytes, want) in [
        (frame(2, 1, 1), "encoding has the invalid value 2"),
        (frame(0, 0, 0), "length of items has the invalid value 0"),
        (frame(1, 5, 0), "stored length has the invalid value 0"),
        (frame(0, 5, 6), "stored length has the invalid value 6"),
        (frame(1, u32::MAX, 5), "length of items is 4294967295, more than the limit of 1114112"),
        (frame(1, 5, u32::MAX), "stored length is 4294967295, more than the limit of 1118464"),
    ] {
        let e = read(&bytes).unwrap_err().to_string();
        assert_eq!(e, format!("at byte 20: {want}"));
    }
    let mut w = Writer::new(Vec::new(), SYSTEM).unwrap();
    assert!(w.is_empty());
    for (encoding, raw, stored) in [(Encoding::Raw, 3, 2), (Encoding::Zstd, 0, 1), (Encoding::Zstd, 1, 0)] {
        let e = w.frame(encoding, raw, &vec![0; stored]).unwrap_err();
        assert_eq!(e.kind(), io::ErrorKind::InvalidInput);
    }
    assert!(w.is_empty(), "what is refused is not written");
}

#[test]
fn what_does_not_decompress_to_its_length_is_refused() {
    let small = zstd::bulk::compress(&[0; 10], 1).unwrap();
    for (raw_len, stored) in [(9, &small[..]), (11, &small[..]), (10, &small[..4]), (4, b"junk")] {
        let mut w = Writer::new(Vec::new(), SYSTEM).unwrap();
        w.frame(Encoding::Zstd, raw_len, stored).unwrap();
        let e = error::Error::from(read(&w.into_inner()).unwrap_err());
        assert!(e.kind() == ErrorKind::Corrupt && e.to_string().starts_with("at byte 20: "), "{e}");
    }
}

proptest! {
    #[test]
    fn what_is_written_is_read_back(frames in prop::collection::vec(
        (any::<bool>(), prop::collection::vec(any::<u8>(), 1..300)), 0..10)) {
        let frames: Vec<_> = frames
            .into_iter()
            .map(|(z, raw)| (if z { Encoding::Zstd } else { Encoding::Raw }, raw))
            .collect();
        let got = read(&write(&frames)).unwrap();
        prop_assert_eq!(got, frames.into_iter().map(|(_, raw)| raw).collect::<Vec<_>>());
    }

    #[test]
    fn any_bytes_are_read_or_refused(mut bytes in prop::collection::vec(any::<u8>(), 0..200), sound: bool) {
        if sound {
            let mut whole = Writer::new(Vec::new(), SYSTEM).unwrap().into_inner();
            whole.append(&mut bytes);
            bytes = whole;
        }
        let _ = read(&bytes);
    }
}
