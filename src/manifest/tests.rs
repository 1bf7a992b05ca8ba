use proptest::prelude::*;

use super::*;

const SYSTEM: SystemId = SystemId(0x0123_4567_89ab_cdef);

fn sha(n: u8) -> Sha {
    Sha([n; 32])
}

fn part(name: &str, size: u64) -> Part {
    Part { name: name.to_owned(), size, sha256: sha(1) }
}

fn file(path: &[u8], id: u64) -> File {
    let mtime = Time { sec: 1_795_627_800, nsec: 250 };
    File { path: path.to_vec(), id: FileId(id), size: 5, mtime, sha256: sha(2) }
}

/// A backup of form tar, as it is in the file of fixtures.
fn tar() -> Manifest {
    Manifest {
        form: Form::Tar,
        label: "nightly-2026.11.25".to_owned(),
        system: SYSTEM,
        timeline: TimelineId(2),
        start: Lsn(0x0100_0200),
        end: Lsn(0x0200_0300),
        start_time: 1_795_627_800_250_000_000,
        end_time: 1_795_627_801_000_000_000,
        exact: true,
        created: 1_795_627_802_000_000_001,
        program: "0.1.0".to_owned(),
        base: None,
        log: vec![
            Range { timeline: TimelineId(1), start: Lsn(0x0100_0000), end: Lsn(0x0200_0100) },
            Range { timeline: TimelineId(2), start: Lsn(0x0200_0100), end: Lsn(0x0200_0300) },
        ],
        parts: vec![
            part("catalog", 100),
            part("blocks", 20),
            part("log/000000010000000000000001", 30),
            part("log/000000020000000000000002.partial", 40),
        ],
        files: vec![
            file(b"a", 2),
            file(b"d/\"quoted\"\n", 3),
            File { mtime: Time { sec: -2, nsec: 500_000_000 }, ..file(b"d/bytes \xff", 4) },
            file(b"d/another name of a", 2),
        ],
    }
}

/// An incremental backup.
fn packs() -> Manifest {
    let base = Base { label: "full".to_owned(), end: Lsn(0x0100_0000), manifest_sha256: sha(9) };
    Manifest {
        form: Form::Packs,
        base: Some(base),
        parts: ["catalog", "pack-00001", "blocks", "pack-00002"].map(|n| part(n, 7)).to_vec(),
        files: Vec::new(),
        ..tar()
    }
}

fn text(m: &Manifest) -> String {
    let mut out = Vec::new();
    let sum = m.write(&mut out).unwrap();
    assert_eq!(seal(&out), Ok(sum));
    String::from_utf8(out).unwrap()
}

/// The text with the right last line.
fn sealed(text: &str) -> String {
    let at = text.rfind("\"manifest_sha256\": \"").unwrap();
    let sum = Sha(Sha256::digest(&text.as_bytes()[..at]).into());
    format!("{}\"manifest_sha256\": \"{sum}\"}}\n", &text[..at])
}

#[test]
fn the_format_stays_what_it_is() {
    // For a new version of the format only.
    if std::env::var_os("TOWLINE_WRITE_GOLDEN").is_some() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/v1/manifest.json");
        std::fs::write(path, text(&tar())).unwrap();
    }
    let golden = include_str!("../../tests/fixtures/v1/manifest.json");
    assert_eq!(text(&tar()), golden);
    assert_eq!(Manifest::parse(golden.as_bytes()), Ok(tar()));
    assert!(golden.lines().count() == 30 && golden.is_ascii(), "an element is a line");
}

#[test]
fn every_form_is_read_back() {
    let tree = Manifest { form: Form::Tree, log: vec![], parts: tar().parts[..2].to_vec(), ..tar() };
    let idle = Manifest { end: tar().start, log: vec![], parts: tar().parts[..2].to_vec(), ..tar() };
    for m in [tree, idle, packs(), Manifest { base: None, ..packs() }] {
        assert_eq!(Manifest::parse(text(&m).as_bytes()), Ok(m));
    }
}

#[test]
fn the_history_of_its_timeline_is_a_part_and_no_other() {
    use crate::history::{Beginning, History};
    let with = |name: &str, m: Manifest| Manifest { parts: [m.parts, vec![part(name, 9)]].concat(), ..m };
    let good = with("00000002.history", tar());
    assert_eq!(Manifest::parse(text(&good).as_bytes()), Ok(good.clone()));
    assert_eq!((good.history_part(), tar().history_part()), (good.parts.last(), None));
    let first = Manifest { timeline: TimelineId::FIRST, log: vec![], end: tar().start, ..tar() };
    let first = Manifest { parts: first.parts[..2].to_vec(), ..first };
    for (m, want) in [
        (with("00000003.history", tar()), "is no history of a backup on timeline 2"),
        (with("00000001.history", first), "is no history of a backup on timeline 1"),
        (with("00000002.history", good), "is there twice"),
    ] {
        assert!(m.check().unwrap_err().contains(want), "{:?}", m.check());
    }
    let child =
        |system, at| History::first(system).child(Beginning::sample(Lsn(at), 3), TimelineId::FIRST).unwrap();
    assert_eq!(tar().fits(&child(SYSTEM, tar().end.0)), Ok(()));
    assert!(tar().fits(&child(SYSTEM, tar().end.0 + 1)).unwrap_err().contains("ends before that"));
    assert!(tar().fits(&child(SystemId(9), 5)).unwrap_err().contains("of system 0000000000000009"));
    assert!(tar().fits(&History::first(SYSTEM)).unwrap_err().contains("of timeline 1"));
}

#[test]
fn every_flipped_bit_and_every_cut_is_found() {
    let whole = text(&tar());
    for at in 0..whole.len() {
        let mut bad = whole.clone().into_bytes();
        bad[at] ^= 1;
        Manifest::parse(&bad).expect_err(&format!("byte {at}"));
        Manifest::parse(&whole.as_bytes()[..at]).expect_err(&format!("cut at {at}"));
    }
}

/// What is wrong with a manifest whose text was changed and sealed again.
fn refused(m: &Manifest, from: &str, to: &str) -> String {
    let good = text(m);
    assert!(good.contains(from), "{from}");
    let bad = sealed(&good.replacen(from, to, 1));
    let e = Manifest::parse(bad.as_bytes()).expect_err(&format!("{from:.80} as {to:.80}"));
    assert_eq!(Manifest::parse_unsealed(bad.as_bytes()), Err(e.clone()));
    e.to_string()
}

#[test]
fn a_malformed_manifest_is_refused_by_line_and_rule() {
    let long = format!("\"program\": \"{}\"", "x".repeat(65));
    let path = format!("\"path\": \"{}\"", "x".repeat(256));
    let deep = format!("\"path\": \"{}\"", "x/".repeat(PATH_MAX));
    for (from, to, want) in [
        ("{ \"towline_backup\": 1,", "[", "line 1: it does not begin with { \"towline_backup\":"),
        ("\"towline_backup\": 1,", "\"towline_backup\": \"1\",", "line 1: it does not begin with"),
        ("\"towline_backup\": 1,", "\"towline_backup\": 2,", "line 1: its format is version 2, this program"),
        ("\"towline_backup\": 1,", "\"towline_backup\": 1 1,", "line 1: expected `,` or `}`"),
        ("\"form\": \"tar\",\n", "", "line 2: \"form\" is expected here, not \"label\""),
        ("\"tar\"", "\"zip\"", "line 2: form: \"zip\" is no form: tree, tar or packs"),
        ("\"tar\"", "3", "line 2: form: invalid type: integer `3`, expected a text"),
        ("\"nightly-2026.11.25\"", "\"../x\"", "line 3: label: \"../x\" is no label: 1 to 64 letters"),
        ("\"nightly-2026.11.25\"", "\"\"", "line 3: label: \"\" is no label"),
        ("\"nightly-2026.11.25\"", "\"a\n\"", "line 4: label: control character"),
        ("0123456789abcdef", "0123456789ABCDEF", "line 4: system: \"0123456789ABCDEF\" is no system id"),
        ("0123456789abcdef", "0000000000000000", "line 4: system: \"0000000000000000\" is no system id"),
        ("\"timeline\": 2,", "\"timeline\": 0,", "line 5: timeline: the first is 1"),
        (
            "\"timeline\": 2,",
            "\"timeline\": 4294967296,",
            "line 5: timeline: invalid value: integer `4294967296`",
        ),
        ("\"timeline\": 2,", "\"timeline\": 3,", "line 17: log: it ends on timeline 2, the backup on 3"),
        ("\"0/01000200\"", "\"01000200\"", "line 6: start: '01000200' is not an LSN"),
        ("\"end\": \"0/02000300\"", "\"end\": \"0/000001\"", "line 7: end 0/00000001 is before start"),
        ("\"end\": \"0/02000300\"", "\"end\": \"0/02000301\"", "line 17: log: it does not lead from"),
        (
            "2026-11-25T17:30:00.25Z",
            "2026-11-25T17:30:00",
            "line 8: start_time: '2026-11-25T17:30:00' is no time",
        ),
        ("\"exact\": true", "\"exact\": 1", "line 10: exact: invalid type: integer `1`, expected a boolean"),
        (
            "\"exact\": true",
            "\"exact\": true,\n\"exact\": true",
            "line 11: \"created\" is expected here, not \"exact\"",
        ),
        ("\"program\": \"0.1.0\"", &long, "line 12: program: program has 65 bytes; 1 to 64"),
        ("\"base\": null", "\"base\": []", "line 13: base: invalid type: sequence"),
        (
            "\"timeline\": 1, \"start\"",
            "\"timeline\": 2, \"start\"",
            "line 17: log: 0/02000100 on timeline 2 is not followed",
        ),
        (
            "\"start\": \"0/02000100\"",
            "\"start\": \"0/02000101\"",
            "line 17: log: 0/02000100 on timeline 1 is not",
        ),
        ("\"end\": \"0/02000100\"", "\"end\": \"0/01000000\"", "line 17: log: 0/01000000 to 0/01000000 on"),
        ("\"catalog\"", "\"catalogue\"", "line 19: parts: \"catalogue\" is no part of a backup of form tar"),
        ("\"catalog\"", "\"../catalog\"", "line 19: parts: \"../catalog\" is no part"),
        (
            "\"catalog\"",
            "\"pack-00001\"",
            "line 19: parts: \"pack-00001\" is no part of a backup of form tar",
        ),
        ("\"catalog\"", "\"blocks\"", "line 20: parts: \"blocks\" is there twice"),
        (
            "{\"name\": \"blocks\", \"size\": 20",
            "{\"name\": \"log/000000010000000000000001\", \"size\": 30",
            "line 21: parts: \"log/000000010000000000000001\" is there twice",
        ),
        (
            "000000010000000000000001",
            "000000010000000000000007",
            "line 21: parts: \"log/000000010000000000000007\" holds nothing",
        ),
        ("\"size\": 100", "\"size\": -1", "line 19: parts: size: invalid value: integer `-1`, expected u64"),
        (
            "\"size\": 100",
            "\"size\": 9223372036854775808",
            "line 19: parts: size 9223372036854775808 is more than a file has",
        ),
        ("\"size\": 100", "\"size\": 1e2", "line 19: parts: size: invalid type: floating point"),
        ("\"path\": \"a\"", "\"path\": \"/a\"", "line 25: files: path '/a' is not relative"),
        ("\"path\": \"a\"", "\"path\": \"\"", "line 25: files: path '' has an empty name"),
        ("\"path\": \"a\"", "\"path\": \"d//a\"", "line 25: files: path 'd//a' has an empty name"),
        (
            "\"path\": \"a\"",
            "\"path\": \"d/../../a\"",
            "line 25: files: path 'd/../../a' has a name '.' or '..'",
        ),
        ("\"path\": \"a\"", "\"path\": \"a\\u0000\"", "line 25: files: path 'a\\x00' has a NUL"),
        ("\"path\": \"a\"", &path, "has a name of more than 255 bytes"),
        ("\"path\": \"a\"", &deep, "has 131072 bytes, more than 65536"),
        ("\"path\": \"a\"", "\"path\": \"d\"", "line 26: files: 'd/\\\"quoted\\\"\\n' is below a file"),
        ("\"path\": \"d/another name of a\"", "\"path\": \"a\"", "line 28: files: 'a' is there twice"),
        (
            "\"path\": \"d/another name of a\"",
            "\"path\": \"d\"",
            "line 28: files: 'd' is a directory of another file",
        ),
        ("\"path\": \"a\"", "\"name\": \"a\"", "line 25: files: \"path\" or \"path_hex\" is expected first"),
        ("642f627974657320ff", "642f627974657320f", "line 27: files: path_hex is not hexadecimal"),
        ("642f627974657320ff", "642f627974657320fg", "line 27: files: path_hex is not hexadecimal"),
        ("\"id\": 3", "\"id\": 1", "line 26: files: 'd/\\\"quoted\\\"\\n' has the id 1, which no file has"),
        (
            "\"id\": 4, \"size\": 5",
            "\"id\": 2, \"size\": 6",
            "line 27: files: 'd/bytes \\xff' is another name of file #2",
        ),
        ("1795627800.000000250", "1795627800.25", "line 25: files: mtime: \"1795627800.25\" is no mtime"),
        ("1795627800.000000250", "+1795627800.000000250", "line 25: files: mtime: \"+1795627800"),
        (&"02".repeat(32), "0202", "line 25: files: sha256: \"0202\" is no SHA-256"),
        (&"02".repeat(32), &"zz".repeat(32), "line 25: files: sha256: \"zzzz"),
        ("],\n\"parts\"", "]\n\"parts\"", "line 18: expected `,` or `}`"),
        ("\"files\": [", "\"more\": [],\n\"files\": [", "line 24: \"files\" is expected here, not \"more\""),
        ("},\n", "}\n", "line 16: log: expected `,` or `]`"),
    ] {
        let got = refused(&tar(), from, to);
        assert!(got.starts_with("line ") && got.contains(want), "{from:.80} as {to:.80}:\n{got}\n{want}");
    }
}

#[test]
fn what_does_not_fit_the_form_is_refused() {
    for (m, from, to, want) in [
        (packs(), "\"packs\"", "\"tar\"", "line 13: base: a backup of form tar stands on none"),
        (
            packs(),
            "\"full\", \"end\": \"0/01000000\"",
            "\"full\", \"end\": \"0/02000301\"",
            "is behind the end",
        ),
        (packs(), "\"label\": \"full\"", "\"label\": \".\"", "line 13: base: label: \".\" is no label"),
        (packs(), "\"pack-00002\"", "\"pack-00003\"", "\"pack-00003\" stands where pack-00002 is next"),
        (packs(), "\"blocks\"", "\"log/000000010000000000000001\"", "line 23: parts: there is no \"blocks\""),
        (Manifest { base: None, ..packs() }, "\"packs\"", "\"tree\"", "log: a backup of form tree has none"),
    ] {
        let got = refused(&m, from, to);
        assert!(got.contains(want), "{from} as {to}: {got}");
    }
    let m = Manifest { files: tar().files, ..packs() };
    assert_eq!(m.check(), Err("files: a backup of form packs has none".to_owned()));
    assert_eq!(m.write(&mut Vec::new()).unwrap_err().kind(), io::ErrorKind::InvalidInput);
}

#[test]
fn the_last_line_is_looked_at_first() {
    let good = text(&tar());
    let error = |text: &str| Manifest::parse(text.as_bytes()).unwrap_err().to_string();
    let cut = &good[..good.len() - 1];
    assert_eq!(error(cut), "line 30: its last line has no line feed: the manifest is cut");
    let last = good.lines().last().unwrap();
    assert!(error(&good.replace(last, "]}")).starts_with("line 30: it is not \"manifest_sha256\""));
    let odd = good.replace(last, &last.replacen(|c: char| c.is_ascii_digit(), "", 9));
    assert!(error(&odd).starts_with("line 30: it is not \"manifest_sha256\""), "{}", error(&odd));
    let changed = good.replace("\"size\": 5", "\"size\": 6");
    assert!(error(&changed).contains("it was changed after it was written"), "{}", error(&changed));
    // What is in it can be used for looking further.
    assert_eq!(Manifest::parse_unsealed(changed.as_bytes()).unwrap().files[0].size, 6);
    assert!(error("").starts_with("line 1: "));
    let mut bytes = good.clone().into_bytes();
    let at = good.find("another").unwrap();
    bytes[at] = 0xff;
    assert_eq!(Manifest::parse_unsealed(&bytes).unwrap_err().to_string(), "line 28: it is not UTF-8");
    let newer = error::Error::from(Error::Version { found: 2 });
    assert!(newer.kind() == ErrorKind::Refused && newer.to_string().contains("run the newer program"));
}

fn names() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(prop_oneof![Just(b'a'), Just(b'/'), Just(b'.'), Just(b'"'), any::<u8>()], 1..12)
}

proptest! {
    #[test]
    fn what_is_written_is_read_back(
        paths in prop::collection::vec((names(), any::<i64>(), 0..1_000_000_000_u32, 0..i64::MAX as u64), 0..8),
        label in "[a-z0-9][a-zA-Z0-9._+-]{0,63}", times: [i64; 3], exact: bool, span in 0..1_u64 << 40,
    ) {
        let files = paths.into_iter().enumerate().map(|(i, (path, sec, nsec, size))| {
            File { mtime: Time { sec, nsec }, size, ..file(&path, i as u64 + 2) }
        });
        let start = Lsn(1 << 24);
        let end = Lsn(start.0 + span);
        let log = if span == 0 { vec![] } else { vec![Range { timeline: TimelineId(2), start, end }] };
        let [start_time, end_time, created] = times;
        let parts = tar().parts[..2].to_vec();
        let m = Manifest {
            label, exact, start, end, start_time, end_time, created, log, parts, files: files.collect(), ..tar()
        };
        let mut out = Vec::new();
        match m.write(&mut out) {
            Ok(sum) => {
                prop_assert_eq!(seal(&out), Ok(sum));
                prop_assert_eq!(Manifest::parse(&out), Ok(m));
            }
            Err(e) => {
                prop_assert_eq!(e.to_string(), m.check().unwrap_err());
                prop_assert!(out.is_empty());
            }
        }
    }

    #[test]
    fn a_changed_manifest_is_read_or_refused(at in 0..2000_usize, piece in ".{0,3}", cut in 0..4_usize) {
        let good = text(&tar());
        let at = at % good.len();
        let mut bad = good.as_bytes()[..at].to_vec();
        bad.extend_from_slice(piece.as_bytes());
        bad.extend_from_slice(good.as_bytes().get(at + cut..).unwrap_or_default());
        if let Ok(m) = Manifest::parse_unsealed(&bad) {
            prop_assert_eq!(Manifest::parse(text(&m).as_bytes()), Ok(m));
        }
    }
}
