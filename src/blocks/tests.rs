//! Tests of the hash files.

use super::*;

const ID: FileId = FileId(0x1FF);

fn hash_files(dir: &Path) -> Vec<String> {
    let mut out = Vec::new();
    for sub in fs::read_dir(dir).unwrap().map(|e| e.unwrap()).filter(|e| e.path().is_dir()) {
        let names = fs::read_dir(sub.path()).unwrap();
        out.extend(names.map(|e| e.unwrap().file_name().into_string().unwrap()));
    }
    out.sort();
    out
}

#[test]
fn what_is_held_lies_over_what_is_stored() {
    let dir = tempfile::tempdir().unwrap();
    let blocks = Blocks::open(dir.path()).unwrap();
    blocks.set(ID, 1, &[1, 2, 3]).unwrap();
    blocks.flush().unwrap();
    blocks.sync().unwrap();
    assert_eq!(fs::metadata(dir.path().join("ff/00000000000001ff")).unwrap().len(), 64);
    blocks.set(ID, 3, &[9, 8]).unwrap();
    assert_eq!(blocks.get(ID, 0, 7).unwrap(), [0, 1, 2, 9, 8, 0, 0]);
    assert_eq!(blocks.sum(ID, 0, 100).unwrap(), 20);
    blocks.set_len(ID, 3);
    blocks.set(ID, 5, &[7]).unwrap();
    assert_eq!(blocks.get(ID, 2, 4).unwrap(), [2, 0, 0, 7]);
    assert_eq!(blocks.sum(ID, 2, 100).unwrap(), 9);
    blocks.flush().unwrap();
    let again = Blocks::open(dir.path()).unwrap();
    assert_eq!(again.get(ID, 0, 7).unwrap(), [0, 1, 2, 0, 0, 7, 0]);
    again.clear(ID, 1, 5).unwrap();
    assert_eq!(again.sum(ID, 0, 7).unwrap(), 7);
    again.remove(ID);
    assert_eq!(again.get(ID, 0, 7).unwrap(), [0; 7]);
    again.flush().unwrap();
    assert!(hash_files(dir.path()).is_empty());
}

#[test]
fn many_files_take_few_descriptors() {
    let dir = tempfile::tempdir().unwrap();
    let blocks = Blocks::open(dir.path()).unwrap();
    for id in 1..=200 {
        blocks.set(FileId(id), 0, &[id.into(), 5]).unwrap();
    }
    blocks.flush().unwrap();
    blocks.sync().unwrap();
    assert!(blocks.lock().open.len() <= OPEN_MAX);
    for id in 1..=200 {
        assert_eq!(blocks.get(FileId(id), 0, 1).unwrap(), [u128::from(id)]);
    }
    assert!(blocks.lock().open.len() <= OPEN_MAX);
}

#[test]
fn orphans_go_and_files_written_out_early_are_suspect_after_a_crash() {
    let dir = tempfile::tempdir().unwrap();
    let blocks = Blocks::open(dir.path()).unwrap();
    for id in 1..=3 {
        blocks.set(FileId(id), 0, &[1, 2]).unwrap();
    }
    blocks.flush().unwrap();
    assert!(
        blocks
            .begin(1, FileId(3), |id| if id == FileId(1) { Need::Nothing } else { Need::Many })
            .unwrap()
            .is_empty()
    );
    assert_eq!(hash_files(dir.path()), ["0000000000000002", "0000000000000003"]);
    let many: Vec<u128> = (1..=LIMIT as u128).collect();
    // New since the checkpoint: no note is needed.
    blocks.set(FileId(3), 0, &many).unwrap();
    blocks.set(FileId(3), LIMIT as u64, &[1]).unwrap();
    assert!(!dir.path().join("suspects").exists());
    blocks.set(FileId(2), 0, &many).unwrap();
    blocks.set(FileId(2), LIMIT as u64, &[1]).unwrap();
    assert!(blocks.held() <= LIMIT);
    let crashed = Blocks::open(dir.path()).unwrap();
    assert_eq!(crashed.begin(1, FileId(3), |_| Need::Many).unwrap(), [FileId(2)]);
    assert_eq!(hash_files(dir.path()), ["0000000000000003"]);
    crashed.checkpoint_begins(2, FileId(4));
    crashed.doubt(FileId(1)).unwrap();
    let doubted = |number| {
        let again = Blocks::open(dir.path()).unwrap();
        again.begin(number, FileId(3), |_| Need::Many).unwrap()
    };
    assert_eq!(doubted(1), [1, 2].map(FileId), "until a checkpoint is durable");
    crashed.checkpoint_done(1).unwrap();
    assert_eq!(doubted(2), [FileId(1)], "the newest knows of the other");
    assert_eq!(doubted(1), [1, 2].map(FileId), "the one before does not");
    crashed.checkpoint_begins(3, FileId(4));
    crashed.checkpoint_done(2).unwrap();
    assert_eq!((doubted(3), doubted(2)), (vec![], vec![FileId(1)]));
    crashed.checkpoint_begins(4, FileId(4));
    crashed.checkpoint_done(3).unwrap();
    assert!(!dir.path().join("suspects").exists());
    let whole = put_suspects(&BTreeMap::from([(1, 2), (3, NOT_YET)]));
    for damaged in (0..whole.len()).map(|n| &whole[..n]).chain([&b"123456789012"[..]]) {
        fs::write(dir.path().join("suspects"), damaged).unwrap();
        let e = Blocks::open(dir.path()).unwrap_err();
        assert!(e.kind() == ErrorKind::Corrupt && e.to_string().contains("suspects' is damaged"), "{e}");
    }
}

#[test]
fn the_format_of_suspects_stays_what_it_is() {
    let suspects = BTreeMap::from([(1, 2), (3, NOT_YET)]);
    let bytes = put_suspects(&suspects);
    let wanted = b"\x01\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff\x32\x8c\xf3\x11";
    assert_eq!(bytes, wanted, "{}", bytes.escape_ascii());
    assert_eq!(SUSPECTS.decode(&bytes).and_then(take_suspects), Ok(suspects));
}
