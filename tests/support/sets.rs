//! Backup sets of forms tar and packs, put together from a stopped leader by hand: so that what reads them is tested with
//! another writer than towline's own.

use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use towline::catalog::{Catalog, block_hashes};
use towline::checkpoint;
use towline::manifest::{self, Base, File, Form, Manifest, Part, Range, Sha};
use towline::pack;
use towline::position::{FileId, TimelineId};
use towline::record::{BLOCK, Kind};
use towline::wire::{Encoding, Outcome, put_item_end, put_item_head};

use super::bed::Bed;
use super::node::Node;
use super::slot::next_segment;
use super::{until, within};

pub(crate) fn sha(bytes: &[u8]) -> Sha {
    Sha(Sha256::digest(bytes).into())
}

/// A leader's past: the tree at the start, and the log from there.
pub(crate) struct Past {
    pub(crate) start: Catalog,
    pub(crate) end: Catalog,
    catalog: Vec<u8>,
    data: PathBuf,
    log: Vec<PathBuf>,
}

/// The newest checkpoint of a stopped node.
fn newest(node: &Node) -> (Catalog, Vec<u8>) {
    let dir = fs::read_dir(node.spec.state.join("catalog")).expect("list");
    let mut found: Vec<_> = dir.map(|e| e.expect("entry").path()).collect();
    found.retain(|p| p.extension().is_some_and(|x| x == "catalog"));
    found.sort();
    let path = found.last().expect("a checkpoint");
    (checkpoint::load(path).expect("load"), fs::read(path).expect("read"))
}

/// Waits until all that the directory holds is in the log, and known.
pub(crate) fn settled(leader: &Node) {
    // Nobody confirms: local only.
    let (code, said) = leader.wait_confirmed(&["--timeout", "30s"]);
    assert_eq!(code, 1, "{said}");
    until(within(30), "contents are known", || {
        match leader.status()?.0["capture"]["unhashed_files"].as_u64() {
            Some(0) => Ok(()),
            n => Err(format!("{n:?} unhashed")),
        }
    });
}

impl Past {
    /// Takes a leader with `fill`ed data through several segments of log, in which `change` happens.
    pub(crate) fn new(bed: &Bed, fill: impl FnOnce(&Path), change: impl FnOnce(&Path)) -> Self {
        let spec = bed.leader("past").set("segment_timeout", "\"100ms\"").set("keep_segments", "1000");
        fill(&spec.data);
        let mut leader = spec.start();
        settled(&leader);
        leader.stop();
        let (start, catalog) = newest(&leader);
        leader.restart();
        for _ in 0..3 {
            next_segment(&leader);
        }
        change(leader.data());
        settled(&leader);
        leader.stop();
        let (end, _) = newest(&leader);
        let log = leader.segments();
        Self { start, end, catalog, data: leader.data().to_owned(), log }
    }

    /// Regular files of the start that are still there: path, id, content.
    fn files(&self) -> Vec<(Vec<u8>, FileId, Vec<u8>)> {
        let mut found = Vec::new();
        for inode in self.start.inodes().filter(|i| i.kind == Kind::File) {
            for (dir, name) in self.start.names(inode.id) {
                let mut path = self.start.path(dir).expect("a path");
                if !path.is_empty() {
                    path.push(b'/');
                }
                path.extend_from_slice(name);
                let here = self.data.join(std::ffi::OsStr::from_bytes(&path));
                if let Ok(content) = fs::read(here) {
                    found.push((path, inode.id, content));
                }
            }
        }
        found.sort();
        found
    }

    fn hashes(&self, files: &[(Vec<u8>, FileId, Vec<u8>)]) -> Vec<u8> {
        let mut out = b"TWLNHASH\x01\0\0\0".to_vec();
        let mut by_id: Vec<_> = files.iter().filter(|f| !f.2.is_empty()).collect();
        by_id.sort_by_key(|f| f.1);
        by_id.dedup_by_key(|f| f.1);
        for (_, id, content) in by_id {
            let hashes: Vec<u128> = block_hashes(self.start.system(), *id, 0, content).collect();
            out.extend_from_slice(&id.0.to_le_bytes());
            out.extend_from_slice(&(hashes.len() as u32).to_le_bytes());
            out.extend(hashes.iter().flat_map(|h| h.to_le_bytes()));
        }
        let crc = crc32c::crc32c(&out);
        out.extend_from_slice(&crc.to_le_bytes());
        out
    }

    /// The set in `out`. Its packs are small.
    pub(crate) fn set(&self, form: Form, base: Option<Base>, out: &Path) -> Manifest {
        fs::create_dir_all(out.join("log")).expect("mkdir");
        let files = self.files();
        let mut m = Manifest {
            form,
            label: "past".to_owned(),
            system: self.start.system(),
            timeline: TimelineId(1),
            start: self.start.lsn(),
            end: self.end.lsn(),
            start_time: self.start.time(),
            end_time: self.end.time(),
            exact: true,
            created: self.end.time(),
            program: "0.0.0".to_owned(),
            base,
            log: vec![Range { timeline: TimelineId(1), start: self.start.lsn(), end: self.end.lsn() }],
            parts: Vec::new(),
            files: Vec::new(),
        };
        let part = |name: &str, bytes: &[u8]| {
            fs::write(out.join(name), bytes).expect("write");
            Part { name: name.to_owned(), size: bytes.len() as u64, sha256: sha(bytes) }
        };
        m.parts.push(part("catalog", &self.catalog));
        m.parts.push(part("blocks", &self.hashes(&files)));
        for path in &self.log {
            let name = path.file_name().and_then(|n| n.to_str()).expect("a name");
            let number = u64::from_str_radix(&name[8..24], 16).expect("a number");
            if (number + 1) << 24 > m.start.0 && number << 24 < m.end.0 {
                m.parts.push(part(&format!("log/{name}"), &fs::read(path).expect("read")));
            }
        }
        if form == Form::Packs {
            let packs = packs(&m, &files).into_iter().zip(1..);
            m.parts.extend(packs.map(|(bytes, n)| part(&manifest::pack_name(n), &bytes)));
        } else {
            for (path, id, content) in &files {
                let to = out.join("base").join(std::ffi::OsStr::from_bytes(path));
                fs::create_dir_all(to.parent().expect("a parent")).expect("mkdir");
                fs::write(&to, content).expect("write");
                let (size, mtime) = (content.len() as u64, Default::default());
                m.files.push(File { path: path.clone(), id: *id, size, mtime, sha256: sha(content) });
            }
        }
        write(&m, out);
        m
    }
}

/// Two packs.
fn packs(m: &Manifest, files: &[(Vec<u8>, FileId, Vec<u8>)]) -> Vec<Vec<u8>> {
    let mut unique = files.to_vec();
    unique.sort_by_key(|f| f.1);
    unique.dedup_by_key(|f| f.1);
    let halves = unique.split_at(unique.len() / 2);
    [halves.0, halves.1].map(|half| pack(m, half.iter().map(|(_, id, content)| (*id, &content[..])))).to_vec()
}

/// A pack of these files; frames of both encodings.
pub(crate) fn pack<'a>(m: &Manifest, files: impl Iterator<Item = (FileId, &'a [u8])>) -> Vec<u8> {
    let mut out = pack::Writer::new(Vec::new(), m.system).expect("write");
    for (i, (id, content)) in files.enumerate() {
        for (piece, at) in content.chunks(4 * BLOCK as usize).zip((0..).step_by(4 * BLOCK as usize)) {
            let mut items = Vec::new();
            put_item_head(&mut items, id, at, piece.len() as u32);
            items.extend_from_slice(piece);
            frame(&mut out, i % 2 == 0, &items);
        }
        let mut items = Vec::new();
        put_item_end(&mut items, id, Outcome::Whole, content.len() as u64);
        frame(&mut out, false, &items);
    }
    out.into_inner()
}

fn frame(out: &mut pack::Writer<Vec<u8>>, compress: bool, items: &[u8]) {
    let raw_len = items.len() as u32;
    if compress {
        let stored = zstd::bulk::compress(items, 1).expect("compress");
        out.frame(Encoding::Zstd, raw_len, &stored).expect("write");
    } else {
        out.frame(Encoding::Raw, raw_len, items).expect("write");
    }
}

/// Writes the manifest, whatever it says.
pub(crate) fn write(m: &Manifest, out: &Path) {
    let mut bytes = Vec::new();
    m.write(&mut bytes).expect("a sound manifest");
    fs::write(out.join(manifest::NAME), bytes).expect("write");
}

/// The manifest of a set, changed and sealed again, with the sums of its parts as they are now.
pub(crate) fn edit(dir: &Path, change: impl FnOnce(&mut Manifest)) {
    let mut m = Manifest::parse(&fs::read(dir.join(manifest::NAME)).expect("read")).expect("a manifest");
    for part in &mut m.parts {
        if let Ok(bytes) = fs::read(dir.join(&part.name)) {
            (part.size, part.sha256) = (bytes.len() as u64, sha(&bytes));
        }
    }
    change(&mut m);
    write(&m, dir);
}

/// Flips one bit in the middle of a file.
pub(crate) fn flip(path: &Path) {
    let mut bytes = fs::read(path).expect("read");
    let at = bytes.len() / 2;
    bytes[at] ^= 4;
    fs::write(path, bytes).expect("write");
}

/// The set as a tar, as tar(1) makes it.
pub(crate) fn tarred(dir: &Path, to: &Path) {
    let done = std::process::Command::new("tar").arg("-cf").arg(to).arg("-C").arg(dir).arg(".").status();
    assert!(done.expect("tar").success());
}

/// The same bytes, compressed.
pub(crate) fn compressed(from: &Path, to: &Path) {
    let bytes = zstd::encode_all(&fs::read(from).expect("read")[..], 3).expect("compress");
    fs::File::create(to).and_then(|mut f| f.write_all(&bytes)).expect("write");
}
