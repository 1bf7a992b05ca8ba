//! The archive over a directory.

use std::fs;
use std::io::Read;
use std::path::Path;

use super::*;

fn bed() -> (tempfile::TempDir, Address, Archive) {
    let dir = tempfile::tempdir().unwrap();
    let address = Address::Dir(dir.path().to_owned());
    let archive = Archive::open_or_create(&address, SystemId(7)).unwrap();
    (dir, address, archive)
}

const T: TimelineId = TimelineId::FIRST;

fn names_in(archive: &Archive, dir: &str, after: &str) -> Vec<String> {
    let mut all = Vec::new();
    archive
        .list(dir, after, &mut |e| {
            all.push(e.name);
            Ok(true)
        })
        .unwrap();
    all
}

#[test]
fn an_archive_belongs_to_one_system() {
    let (_dir, address, archive) = bed();
    let again = Archive::open_or_create(&address, SystemId(7)).unwrap();
    assert_eq!((again.id(), again.system()), (archive.id(), SystemId(7)));
    let e = Archive::open_or_create(&address, SystemId(8)).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Refused);
    assert!(e.to_string().contains("0000000000000007") && e.to_string().contains("0000000000000008"), "{e}");
    let absent = tempfile::tempdir().unwrap();
    assert_eq!(
        Archive::open(&Address::Dir(absent.path().to_owned())).unwrap_err().kind(),
        ErrorKind::Missing
    );
    let gone = Address::Dir(absent.path().join("not-mounted"));
    let e = Archive::open_or_create(&gone, SystemId(7)).unwrap_err();
    assert!(e.kind().retries() && e.to_string().contains("mount"), "{e}");
    assert!(!absent.path().join("not-mounted").exists());
}

#[test]
fn an_identity_that_is_not_understood_is_refused_by_name() {
    let (dir, address, _) = bed();
    let file = dir.path().join(names::IDENTITY);
    for (text, kind) in [
        ("{\"towline_archive\":2,\"system\":\"0000000000000007\",\"id\":\"x\"}", ErrorKind::Refused),
        ("{\"towline_archive\":1,\"system\":\"7\",\"id\":\"x\"}", ErrorKind::Corrupt),
        ("{\"towline_archive\":1", ErrorKind::Corrupt),
        ("", ErrorKind::Corrupt),
    ] {
        fs::write(&file, text).unwrap();
        let e = Archive::open_or_create(&address, SystemId(7)).unwrap_err();
        assert_eq!(e.kind(), kind, "{text}: {e}");
        assert_eq!(fs::read_to_string(&file).unwrap(), text, "it is left as it is");
    }
}

#[test]
fn the_same_bytes_again_are_fine_and_others_are_refused() {
    let (_dir, _, archive) = bed();
    assert_eq!(archive.put("backup/a/catalog", b"12").unwrap(), Put::Made);
    assert_eq!(archive.put("backup/a/catalog", b"12").unwrap(), Put::There);
    for other in [&b"13"[..], b"1", b"123", b""] {
        let e = archive.put("backup/a/catalog", other).unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Refused);
        assert!(e.to_string().contains("backup/a/catalog"), "{e}");
    }
    assert_eq!(archive.get("backup/a/catalog", 9).unwrap().unwrap(), b"12");
    assert_eq!(archive.get("backup/a/catalog", 1).unwrap_err().kind(), ErrorKind::Corrupt);
    assert!(archive.get("backup/b", 9).unwrap().is_none());
    assert_eq!(archive.put("../x", b"").unwrap_err().kind(), ErrorKind::Usage);
    archive.delete("backup/a/catalog").unwrap();
    archive.delete("backup/a/catalog").unwrap();
    assert_eq!(names_in(&archive, "", ""), [names::IDENTITY]);
}

#[test]
fn a_segment_is_put_once_and_another_of_its_number_is_refused() {
    let (_dir, _, archive) = bed();
    let n = SegmentNo(3);
    assert_eq!(archive.put_segment(T, n, b"one").unwrap(), Kept::Made);
    assert_eq!(archive.put_segment(T, n, b"one").unwrap(), Kept::There);
    let e = archive.put_segment(T, n, b"two").unwrap_err();
    assert!(e.kind() == ErrorKind::Refused && e.to_string().contains("another segment 3"), "{e}");
    assert_eq!(archive.put_segment(TimelineId(2), n, b"two").unwrap(), Kept::Made);
    assert_eq!(archive.get_segment(T, n).unwrap().unwrap(), b"one");
    assert!(archive.get_segment(T, SegmentNo(4)).unwrap().is_none());
}

#[test]
fn a_half_written_segment_is_found_and_replaced() {
    let (dir, _, archive) = bed();
    for (i, half) in [&b"seg"[..], b"", b"segmenT", b"segment and more"].into_iter().enumerate() {
        let n = SegmentNo(1 + i as u64);
        let name = SegmentName::of(T, n, b"segment").to_string();
        fs::create_dir_all(dir.path().join("log/00000001")).unwrap();
        fs::write(dir.path().join(&name), half).unwrap();
        assert_eq!(archive.get_segment(T, n).unwrap_err().kind(), ErrorKind::Corrupt);
        assert_eq!(archive.put_segment(T, n, b"segment").unwrap(), Kept::Mended);
        assert_eq!(archive.get_segment(T, n).unwrap().unwrap(), b"segment");
    }
    // One that was to be another segment, and never was one, is in nobody's way.
    let torn = SegmentName::of(T, SegmentNo(9), b"other").to_string();
    fs::write(dir.path().join(torn), b"oth").unwrap();
    assert_eq!(archive.put_segment(T, SegmentNo(9), b"segment").unwrap(), Kept::Made);
    assert_eq!(archive.get_segment(T, SegmentNo(9)).unwrap().unwrap(), b"segment");
}

#[test]
fn two_good_segments_of_one_number_are_not_chosen_from() {
    let (dir, _, archive) = bed();
    archive.put_segment(T, SegmentNo(1), b"one").unwrap();
    let two = SegmentName::of(T, SegmentNo(1), b"two").to_string();
    fs::write(dir.path().join(two), b"two").unwrap();
    let e = archive.get_segment(T, SegmentNo(1)).unwrap_err();
    assert!(e.kind() == ErrorKind::Corrupt && e.to_string().contains("two different"), "{e}");
}

#[test]
fn objects_are_listed_in_the_order_of_their_names_from_any_on() {
    let (dir, _, archive) = bed();
    for name in ["backup/a/z", "backup/a-b/x", "backup/a.b", "backup/b", "log/00000001/x"] {
        archive.put(name, b"1").unwrap();
    }
    fs::write(dir.path().join("tmp/left"), b"half").unwrap();
    let all = names_in(&archive, "", "");
    let mut sorted = all.clone();
    sorted.sort();
    assert_eq!(all, sorted);
    assert_eq!(all.len(), 6, "{all:?}");
    for (i, name) in all.iter().enumerate() {
        assert_eq!(names_in(&archive, "", name), all[i + 1..], "after {name}");
    }
    assert_eq!(names_in(&archive, "backup/a", ""), ["backup/a/z"]);
    assert!(names_in(&archive, "nothing", "").is_empty());
    let mut seen = 0;
    archive
        .list("", "", &mut |_| {
            seen += 1;
            Ok(seen < 2)
        })
        .unwrap();
    assert_eq!(seen, 2);
}

#[test]
fn segments_are_listed_from_a_number_on() {
    let (_dir, _, archive) = bed();
    for n in [1, 2, 5, 0x1_0000] {
        archive.put_segment(T, SegmentNo(n), &n.to_le_bytes()).unwrap();
    }
    let from = |n| {
        let mut all = Vec::new();
        archive
            .segments(T, SegmentNo(n), &mut |s, size| {
                assert_eq!(s.size, size);
                all.push(s.segment.0);
                Ok(true)
            })
            .unwrap();
        all
    };
    assert_eq!(from(0), [1, 2, 5, 0x1_0000]);
    assert_eq!((from(2), from(3)), (vec![2, 5, 0x1_0000], vec![5, 0x1_0000]));
}

#[test]
fn a_large_object_is_there_when_it_is_finished_and_read_in_pieces() {
    let (dir, _, archive) = bed();
    let name = "backup/a/pack-00001";
    let mut dropped = archive.upload(name).unwrap();
    dropped.write(b"half").unwrap();
    drop(dropped);
    assert!(archive.reader(name).unwrap().is_none());
    assert_eq!(fs::read_dir(dir.path().join("tmp")).unwrap().count(), 0);
    let block: Vec<u8> = (0..=255).cycle().take(3 << 20).collect();
    let mut upload = archive.upload(name).unwrap();
    upload.write(&block).unwrap();
    upload.write(&block).unwrap();
    assert!(!Path::new(&dir.path().join(name)).exists());
    upload.finish().unwrap();
    assert_eq!(archive.upload(name).err().unwrap().kind(), ErrorKind::Refused);
    let mut reader = archive.reader(name).unwrap().unwrap();
    let mut all = Vec::new();
    reader.read_to_end(&mut all).unwrap();
    assert_eq!((reader.size(), all), (6 << 20, [block.clone(), block].concat()));
}
