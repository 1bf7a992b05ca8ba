//! Checkpoints: a catalog as bytes, on disk and as the beginning of a follower's first copy.
//!
//! A checkpoint is one zstd frame (`zstd -dc` shows its content, `zstd -t` tests it) of:
//!
//! | size | field |
//! | --- | --- |
//! | 8 | magic `TWLNCTLG` |
//! | 4 | format version, 1 |
//! | 8 | system id |
//! | 8, 1, 8 | LSN of the last commit, its cut (0 exact, 1 file), its time in ns since 1970 |
//! | 8 | next file id |
//! | 8, blob | version of the exclude patterns, patterns |
//! | 16, 16 | metadata digest, content digest |
//! | 8, 8 | number of inodes, number of entries |
//! | ... | inodes: id u64, type u8, flags u8 (1 hashed, 2 seen, 4 racy, 8 extra), mode u16, uid u32, gid u32, mtime; |
//! | | of a regular file size u64 and content u128; |
//! | | with *extra* rdev u64, target blob, number of xattrs u32, of each name blob and value blob; |
//! | | with *seen* device u64, inode u64, birth time, change time |
//! | ... | entries: parent u64, id u64, length of the name u8, name |
//! | 32 | SHA-256 of everything before |
//!
//! Integers are little-endian, a blob is a u32 length and bytes, a time is i64 s and u32 ns. Reading goes
//! through the same checks as records, and compares counts and digests, so a checkpoint that is
//! read is a tree. Both directions stream: neither holds more than a buffer besides the catalog.
//!
//! On disk a checkpoint is `NNNNNNNNNNNNNNNN.catalog`, hexadecimal and counting up. The newest two are kept; a damaged
//! newest one costs a longer replay, not the node.

use std::fs::{self, File};
use std::io::{self, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use crate::blocks::Blocks;
use crate::catalog::{Catalog, Digest, Excludes, Frozen, Inode, LocalId, Seen, Xattr};
use crate::codec::{DecodeError, Put, Reader};
use crate::disk::{self, AtomicFile};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::failpoint;
use crate::fold::Fold;
use crate::position::{Cut, FileId, Lsn, SystemId};
use crate::record::{Attrs, EXCLUDES_MAX, Kind, NAME_MAX, TARGET_MAX, Time, XATTR_MAX};

const MAGIC: [u8; 8] = *b"TWLNCTLG";
const VERSION: u32 = 1;
const LEVEL: i32 = 1;
const SUFFIX: &str = ".catalog";
/// Name of the last checkpoint found damaged.
const DAMAGED: &str = "damaged";
/// Checkpoints kept.
const KEEP: usize = 2;
/// Bytes gathered before they are compressed.
const GATHER: usize = 64 << 10;
/// Most extended attributes of one inode: each takes at least two bytes of `XATTR_LIST_MAX`.
const XATTRS_MAX: u32 = 32 << 10;

const HASHED: u8 = 1;
const SEEN: u8 = 2;
const RACY: u8 = 4;
const EXTRA: u8 = 8;

/// Writes the whole catalog, with what this node knows of its local inodes.
///
/// # Errors
/// Why `out` can't be written.
pub fn encode(catalog: &Frozen, out: &mut impl Write) -> Result<()> {
    encode_with(catalog, out, true)
}

/// Writes the catalog for another node: without local inodes.
pub fn encode_snapshot(catalog: &Frozen, out: &mut impl Write) -> Result<()> {
    encode_with(catalog, out, false)
}

fn encode_with(catalog: &Frozen, out: &mut impl Write, local: bool) -> Result<()> {
    let failed = |e: io::Error| Error::from(e).wrap("cannot write the catalog");
    let zstd = zstd::stream::write::Encoder::new(out, LEVEL).map_err(failed)?;
    let mut sink = Sink { out: zstd, sha: Sha256::new(), gathered: Vec::with_capacity(GATHER * 2) };
    put_head(catalog, &mut sink.gathered);
    for inode in catalog.inodes() {
        put_inode(&inode, local, &mut sink.gathered);
        sink.pass(GATHER).map_err(failed)?;
    }
    for (parent, name, id) in catalog.entries() {
        sink.gathered.put_u64(parent.0);
        sink.gathered.put_u64(id.0);
        sink.gathered.put_u8(u8::try_from(name.len()).unwrap_or(u8::MAX));
        sink.gathered.extend_from_slice(name);
        sink.pass(GATHER).map_err(failed)?;
    }
    sink.finish().map_err(failed)
}

struct Sink<'a, W: Write> {
    out: zstd::stream::write::Encoder<'a, W>,
    sha: Sha256,
    gathered: Vec<u8>,
}

impl<W: Write> Sink<'_, W> {
    /// Passes what was gathered on, if there are at least `least` bytes.
    fn pass(&mut self, least: usize) -> io::Result<()> {
        if self.gathered.len() >= least {
            self.sha.update(&self.gathered);
            self.out.write_all(&self.gathered)?;
            self.gathered.clear();
        }
        Ok(())
    }

    fn finish(mut self) -> io::Result<()> {
        self.pass(0)?;
        let sum: [u8; 32] = self.sha.finalize().into();
        self.out.write_all(&sum)?;
        self.out.finish()?.flush()
    }
}

fn put_head(catalog: &Frozen, out: &mut Vec<u8>) {
    out.extend_from_slice(&MAGIC);
    out.put_u32(VERSION);
    out.put_u64(catalog.system.0);
    out.put_u64(catalog.lsn.0);
    out.put_u8(u8::from(catalog.cut == Cut::File));
    out.put_i64(catalog.time);
    out.put_u64(catalog.next_id.0);
    out.put_u64(catalog.excludes.version);
    out.put_blob(&catalog.excludes.patterns);
    let Digest { meta, content } = catalog.digest;
    out.put_u128(meta);
    out.put_u128(content);
    out.put_u64(catalog.len);
    out.put_u64(catalog.name_count);
}

fn put_time(out: &mut Vec<u8>, time: Time) {
    out.put_i64(time.sec);
    out.put_u32(time.nsec);
}

fn put_inode(inode: &Inode<'_>, local: bool, out: &mut Vec<u8>) {
    let seen = inode.seen.filter(|_| local);
    let extra = inode.rdev != 0 || inode.target.is_some() || !inode.xattrs.is_empty();
    let mut flags = u8::from(inode.hashed) * HASHED | u8::from(extra) * EXTRA;
    if let Some(seen) = seen {
        flags |= SEEN | u8::from(seen.racy) * RACY;
    }
    out.put_u64(inode.id.0);
    out.put_u8(inode.kind as u8);
    out.put_u8(flags);
    out.put_u16(u16::try_from(inode.attrs.mode).unwrap_or(u16::MAX));
    out.put_u32(inode.attrs.uid);
    out.put_u32(inode.attrs.gid);
    put_time(out, inode.attrs.mtime);
    if inode.kind == Kind::File {
        out.put_u64(inode.size);
        out.put_u128(inode.content);
    }
    if extra {
        out.put_u64(inode.rdev);
        out.put_blob(inode.target.unwrap_or_default());
        out.put_u32(u32::try_from(inode.xattrs.len()).unwrap_or(u32::MAX));
        for (name, value) in inode.xattrs {
            out.put_blob(name);
            out.put_blob(value);
        }
    }
    if let Some(seen) = seen {
        out.put_u64(seen.local.dev);
        out.put_u64(seen.local.ino);
        put_time(out, seen.local.btime);
        put_time(out, seen.ctime);
    }
}

/// Reads one catalog; what follows it in `input` may have been read ahead.
///
/// # Errors
/// [`ErrorKind::Corrupt`] for bytes that are no whole, sound catalog; [`ErrorKind::Refused`] for a newer format.
pub fn decode(input: impl Read) -> Result<Catalog> {
    let zstd = zstd::stream::read::Decoder::new(input).map_err(Error::from)?.single_frame();
    let mut source = Source { input: BufReader::with_capacity(GATHER, zstd), sha: Sha256::new() };
    source.catalog().context(|| "cannot read the catalog")
}

struct Source<R: Read> {
    input: R,
    sha: Sha256,
}

macro_rules! source_int {
    ($name:ident, $type:ty) => {
        fn $name(&mut self, what: &'static str) -> Result<$type> {
            Ok(<$type>::from_le_bytes(self.array(what)?))
        }
    };
}

impl<R: Read> Source<R> {
    source_int!(u16, u16);
    source_int!(u32, u32);
    source_int!(u64, u64);
    source_int!(i64, i64);
    source_int!(u128, u128);

    fn fill(&mut self, buf: &mut [u8], what: &'static str) -> Result<()> {
        self.input.read_exact(buf).map_err(|e| match e.kind() {
            io::ErrorKind::UnexpectedEof => Error::from(DecodeError::Short(what)),
            // What zstd cannot decode is damage; it says so with a kind of its own and no errno.
            _ if e.raw_os_error().is_none() && e.kind() == io::ErrorKind::Other => {
                Error::new(ErrorKind::Corrupt, e.to_string())
            }
            _ => Error::from(e),
        })?;
        self.sha.update(&*buf);
        Ok(())
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.fill(&mut bytes, what)?;
        Ok(bytes)
    }

    fn u8(&mut self, what: &'static str) -> Result<u8> {
        Ok(u8::from_le_bytes(self.array(what)?))
    }

    fn bytes(&mut self, len: usize, what: &'static str) -> Result<Box<[u8]>> {
        let mut bytes = vec![0; len].into_boxed_slice();
        self.fill(&mut bytes, what)?;
        Ok(bytes)
    }

    fn blob(&mut self, limit: usize, what: &'static str) -> Result<Box<[u8]>> {
        let len = self.u32(what)? as usize;
        if len > limit {
            return Err(DecodeError::TooLarge { what, value: len as u64, limit: limit as u64 }.into());
        }
        self.bytes(len, what)
    }

    fn time(&mut self, what: &'static str) -> Result<Time> {
        let time = Time { sec: self.i64(what)?, nsec: self.u32(what)? };
        if time.nsec >= 1_000_000_000 {
            return Err(DecodeError::Invalid { what, value: u64::from(time.nsec) }.into());
        }
        Ok(time)
    }

    fn catalog(&mut self) -> Result<Catalog> {
        if self.array("magic")? != MAGIC {
            return Err(DecodeError::Magic("checkpoint").into());
        }
        let found = self.u32("version")?;
        if found != VERSION {
            let e = Error::from(DecodeError::Version { found, known: VERSION });
            return Err(e.wrap("run the newer program that wrote it"));
        }
        let system = SystemId(self.u64("system id")?);
        let lsn = Lsn(self.u64("LSN")?);
        let cut = match self.u8("cut")? {
            0 => Cut::Exact,
            1 => Cut::File,
            v => return Err(DecodeError::Invalid { what: "cut", value: u64::from(v) }.into()),
        };
        let time = self.i64("time")?;
        let next_id = FileId(self.u64("next file id")?);
        let excludes = Excludes {
            version: self.u64("version of patterns")?,
            patterns: self.blob(EXCLUDES_MAX, "patterns")?,
        };
        let digest = Digest { meta: self.u128("digest")?, content: self.u128("digest")? };
        let (inodes, entries) = (self.u64("number of inodes")?, self.u64("number of entries")?);
        let mut catalog = Catalog::new(system, Attrs::default());
        for _ in 0..inodes {
            self.inode(&mut catalog)?;
        }
        for _ in 0..entries {
            let (parent, id) = (FileId(self.u64("parent id")?), FileId(self.u64("file id")?));
            let len = usize::from(self.u8("length of a name")?);
            let name = self.bytes(len, "name")?;
            catalog.link(parent, &name, id)?;
        }
        let sum: [u8; 32] = self.sha.clone().finalize().into();
        if self.array::<32>("SHA-256")? != sum {
            return Err(Error::new(ErrorKind::Corrupt, "its SHA-256 is not that of its content"));
        }
        let dropped = catalog.settle()?;
        let counts = (catalog.len() as u64, catalog.name_count() as u64);
        if !dropped.is_empty() || counts != (inodes, entries) || catalog.digest() != digest {
            return Err(Error::new(ErrorKind::Corrupt, "its counts or digests are not those of its tree"));
        }
        catalog.restore_rest(next_id, excludes)?;
        catalog.set_position(lsn, cut, time);
        Ok(catalog)
    }

    fn inode(&mut self, catalog: &mut Catalog) -> Result<()> {
        let id = FileId(self.u64("file id")?);
        let kind = Kind::from_u8(self.u8("inode type")?)?;
        let flags = self.u8("inode flags")?;
        let attrs = Attrs {
            mode: u32::from(self.u16("mode")?),
            uid: self.u32("uid")?,
            gid: self.u32("gid")?,
            mtime: self.time("mtime")?,
        };
        let file = kind == Kind::File;
        let sound = flags & !(HASHED | SEEN | RACY | EXTRA) == 0
            && (file || flags & HASHED != 0)
            && (flags & SEEN != 0 || flags & RACY == 0);
        if !sound {
            return Err(DecodeError::Invalid { what: "inode flags", value: u64::from(flags) }.into());
        }
        let (size, content) = if file { (self.u64("size")?, self.u128("content")?) } else { (0, 0) };
        let (mut rdev, mut target, mut xattrs) = (0, Box::default(), Vec::new());
        if flags & EXTRA != 0 {
            (rdev, target) = (self.u64("rdev")?, self.blob(TARGET_MAX, "target")?);
            xattrs = self.xattrs()?;
        }
        let seen = if flags & SEEN == 0 {
            None
        } else {
            let (dev, ino) = (self.u64("device")?, self.u64("inode number")?);
            let local = LocalId { dev, ino, btime: self.time("birth time")? };
            Some(Seen { local, ctime: self.time("change time")?, racy: flags & RACY != 0 })
        };
        catalog.restore(&Inode {
            id,
            kind,
            attrs,
            size,
            rdev,
            target: Some(&target),
            xattrs: &xattrs,
            content,
            hashed: flags & HASHED != 0,
            nlink: 0,
            seen,
        })
    }

    fn xattrs(&mut self) -> Result<Vec<Xattr>> {
        let n = self.u32("number of xattrs")?;
        if n > XATTRS_MAX {
            let (value, limit) = (u64::from(n), u64::from(XATTRS_MAX));
            return Err(DecodeError::TooLarge { what: "number of xattrs", value, limit }.into());
        }
        (0..n)
            .map(|_| Ok((self.blob(NAME_MAX, "xattr name")?, self.blob(XATTR_MAX, "xattr value")?)))
            .collect()
    }
}

/// What a checkpoint will hold; writing it is left to [`Prepared::finish`].
#[derive(Debug)]
pub struct Prepared {
    dir: PathBuf,
    number: u64,
    catalog: Frozen,
    blocks: Option<Blocks>,
}

/// Takes what a checkpoint of `fold` holds, in less than a millisecond for 100,000 files. The caller promises that
/// the log is durable up to the catalog's position and that no change set is open; it may fold on while
/// [`Prepared::finish`] runs elsewhere.
pub fn prepare(dir: &Path, fold: &Fold) -> Result<Prepared> {
    let mut prepared = prepare_catalog(dir, &fold.read())?;
    fold.blocks.flush()?;
    fold.blocks.checkpoint_begins(prepared.number, prepared.catalog.next_id);
    prepared.blocks = Some(fold.blocks.clone());
    Ok(prepared)
}

/// Takes what a checkpoint of a catalog alone holds.
pub fn prepare_catalog(dir: &Path, catalog: &Catalog) -> Result<Prepared> {
    let number = list(dir)?.last().map_or(1, |&n| n.saturating_add(1));
    Ok(Prepared { dir: dir.to_owned(), number, catalog: catalog.freeze()?, blocks: None })
}

/// Writes a checkpoint of `fold` durably: [`prepare`] and [`Prepared::finish`] in one.
pub fn save(dir: &Path, fold: &Fold) -> Result<Lsn> {
    prepare(dir, fold)?.finish()
}

impl Prepared {
    /// The position of the checkpoint.
    #[must_use]
    pub fn lsn(&self) -> Lsn {
        self.catalog.lsn
    }

    /// Writes it, makes it durable and removes all but the newest two. Returns its position.
    pub fn finish(self) -> Result<Lsn> {
        // The hashes first: a checkpoint must not name sums of hashes that a power cut takes away.
        if let Some(blocks) = &self.blocks {
            blocks.sync()?;
        }
        self.write()?.commit()?;
        failpoint::pass("catalog::after_checkpoint").map_err(|e| Error::io("write", &self.dir, e))?;
        let mut have = list(&self.dir)?;
        have.retain(|&n| n <= self.number);
        let kept = have.len().saturating_sub(KEEP);
        for old in &have[..kept] {
            let path = self.dir.join(name(*old));
            fs::remove_file(&path).map_err(|e| Error::io("remove", &path, e))?;
        }
        if let Some(blocks) = &self.blocks {
            blocks.checkpoint_done(have[kept..].first().copied().unwrap_or_default())?;
        }
        Ok(self.catalog.lsn)
    }

    /// Writes it under a name that does not count yet.
    fn write(&self) -> Result<AtomicFile> {
        disk::create_subdir_durable(&self.dir)?;
        let mut file = AtomicFile::create(&self.dir, &name(self.number))?;
        let path = file.aside().to_owned();
        failpoint::pass("catalog::checkpoint").map_err(|e| Error::io("write", &path, e))?;
        encode(&self.catalog, &mut file)
            .context(|| format!("cannot write checkpoint '{}'", path.display()))?;
        Ok(file)
    }
}

fn name(number: u64) -> String {
    format!("{number:016x}{SUFFIX}")
}

/// The numbers of the checkpoints in `dir`, ascending.
fn list(dir: &Path) -> Result<Vec<u64>> {
    let failed = |e| Error::io("list", dir, e);
    let entries = match fs::read_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(failed)?,
    };
    let mut out = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed)?.file_name();
        let number = entry.to_str().and_then(|n| n.strip_suffix(SUFFIX)).filter(|n| n.len() == 16);
        out.extend(number.and_then(|n| u64::from_str_radix(n, 16).ok()));
    }
    out.sort_unstable();
    Ok(out)
}

/// Reads the newest sound checkpoint of `system` in `dir`. `None`: there is none at all. A damaged one that
/// is newer is moved to the name `damaged`, so that it does not count as one of the two that are kept.
///
/// # Errors
/// [`ErrorKind::Corrupt`] when there are checkpoints but none is sound; [`ErrorKind::Refused`] for one of
/// another system or of a newer format.
pub fn load_newest(dir: &Path, system: SystemId) -> Result<Option<Catalog>> {
    let mut damaged: Option<Error> = None;
    let mut aside: Vec<PathBuf> = Vec::new();
    for number in list(dir)?.into_iter().rev() {
        let path = dir.join(name(number));
        match load(&path) {
            Ok(mut catalog) if catalog.system() == system => {
                catalog.set_stored_as(number);
                for path in aside {
                    disk::rename_durable(&path, &dir.join(DAMAGED))?;
                }
                return Ok(Some(catalog));
            }
            Ok(catalog) => {
                let (path, other) = (path.display(), catalog.system());
                let text = format!(
                    "checkpoint '{path}' is of system {other}, not {system}: state directories were mixed up; put back the \
                     one that is this node's"
                );
                return Err(Error::new(ErrorKind::Refused, text));
            }
            Err(e) if e.kind() == ErrorKind::Corrupt => {
                tracing::warn!(
                    "checkpoint '{}' is damaged, going back to the one before: {e}",
                    path.display()
                );
                damaged.get_or_insert(e);
                aside.push(path);
            }
            Err(e) => return Err(e),
        }
    }
    let none = "no checkpoint is sound; put the directory back from a backup, or begin with an empty state directory (a \
                follower with an empty data directory, too)";
    damaged.map_or(Ok(None), |e| Err(e.wrap(none)))
}

/// The checkpoint files in `dir`, the newest first.
pub fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    Ok(list(dir)?.into_iter().rev().map(|n| dir.join(name(n))).collect())
}

/// The oldest position that a start may have to go on from, as the kept checkpoints say; zero when none of them says
/// one, which makes all log necessary.
///
/// # Errors
/// Why the directory can't be listed.
pub fn oldest(dir: &Path) -> Result<Lsn> {
    let position = |number: u64| {
        let file = File::open(dir.join(name(number))).ok()?;
        let mut head = [0; 28];
        zstd::stream::read::Decoder::new(file).ok()?.read_exact(&mut head).ok()?;
        let mut head = head.strip_prefix(&MAGIC)?.get(12..).map(Reader::new)?;
        head.u64("LSN").ok().map(Lsn)
    };
    // One that can't be read this far can't be loaded either.
    Ok(list(dir)?.into_iter().filter_map(position).min().unwrap_or_default())
}

/// Removes all checkpoints but the newest: nothing older speaks of the same directory.
pub fn keep_newest(dir: &Path) -> Result<()> {
    let numbers = list(dir)?;
    let (_, old) = numbers.split_last().unwrap_or((&0, &[]));
    for number in old {
        disk::remove_durable(&dir.join(name(*number)))?;
    }
    Ok(())
}

/// Reads one checkpoint file.
pub fn load(path: &Path) -> Result<Catalog> {
    let file = File::open(path).map_err(|e| Error::io("open", path, e))?;
    decode(file).context(|| format!("checkpoint '{}'", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{BLOCK, Record};
    use proptest::prelude::*;

    const SYSTEM: SystemId = SystemId(3);

    /// One inode of each kind, a hard link, xattrs, a file not hashed, local inodes, and a position.
    fn sample(n: u64) -> Catalog {
        let attrs = Attrs { mode: 0o4755, uid: 7, gid: 8, mtime: Time { sec: -1, nsec: 5 } };
        let mut c = Catalog::new(SYSTEM, attrs);
        let mut fold = |record: &Record<'_>| c.fold(record).unwrap();
        for id in 2..n + 9 {
            let kind = Kind::from_u8(u8::try_from(id.min(8) - 1).unwrap()).unwrap();
            let target: &[u8] = if kind == Kind::Symlink { b"../\xff" } else { b"" };
            let rdev = u64::from(kind == Kind::CharDevice) * 259;
            let id = FileId(id);
            fold(&Record::Create { id, kind, attrs, rdev, target });
            let parent = if id.0 > 4 { FileId(3) } else { FileId::ROOT };
            fold(&Record::Link { parent, name: format!("\n{id}").as_bytes(), id });
        }
        fold(&Record::Link { parent: FileId(3), name: &[b'n'; 255], id: FileId(2) });
        fold(&Record::Truncate { id: FileId(2), size: 3 * BLOCK + 1 });
        fold(&Record::Xattr { id: FileId::ROOT, name: b"user.b", value: Some(b"") });
        fold(&Record::Xattr { id: FileId(4), name: b"user.a", value: Some(&[0; 5000]) });
        fold(&Record::Excludes { version: 4, patterns: b"*.tmp\ncore" });
        c.settle().unwrap();
        c.set_content(FileId(2), 1 << 99, n % 2 == 0);
        let local = LocalId { dev: 5, ino: 6, btime: Time { sec: 9, nsec: 1 } };
        c.set_seen(FileId(2), Some(Seen { local, ctime: Time { sec: 2, nsec: 3 }, racy: true }));
        c.set_position(Lsn(77 << 24), Cut::File, -4);
        c
    }

    fn bytes(c: &Catalog) -> Vec<u8> {
        let mut out = Vec::new();
        encode(&c.freeze().unwrap(), &mut out).unwrap();
        out
    }

    fn assert_same(a: &Catalog, b: &Catalog) {
        assert_eq!((a.system(), a.lsn(), a.cut(), a.time()), (b.system(), b.lsn(), b.cut(), b.time()));
        assert_eq!((a.digest(), a.unhashed(), a.next_id()), (b.digest(), b.unhashed(), b.next_id()));
        assert_eq!((a.excludes(), a.len()), (b.excludes(), b.len()));
        let sorted = |c: &Catalog| {
            let mut inodes: Vec<_> = c.inodes().map(|i| format!("{i:?}")).collect();
            inodes.extend(c.freeze().unwrap().entries().map(|e| format!("{e:?}")));
            inodes.sort();
            inodes
        };
        assert_eq!(sorted(a), sorted(b));
        assert_eq!(b.digest(), b.recomputed_digest());
    }

    #[test]
    fn a_catalog_survives_the_round_trip() {
        for n in [0, 1, 5000] {
            let c = sample(n);
            assert_same(&c, &decode(&bytes(&c)[..]).unwrap());
            let mut snapshot = Vec::new();
            encode_snapshot(&c.freeze().unwrap(), &mut snapshot).unwrap();
            let mut without = c;
            without.forget_locals();
            assert_same(&without, &decode(&snapshot[..]).unwrap());
        }
    }

    #[test]
    fn the_format_and_the_digests_stay_what_they_are() {
        let c = sample(0);
        let Digest { meta, content } = c.digest();
        let raw = zstd::decode_all(&bytes(&c)[..]).unwrap();
        let sum = crc32c::crc32c(&raw);
        let got = format!("{meta:032x} {content:032x} {} {sum:08x}", raw.len());
        assert_eq!(got, "0c7d6868f6e544f1e11f2e18123fc73f 00000008000000000000000000000000 5959 92563798");
        assert_eq!(
            format!("{:032x}", crate::catalog::block_hash(SYSTEM, FileId(2), 1, &[7; 5000])),
            "808b9ddf0844222f433cd0513effb0e6"
        );
    }

    #[test]
    fn a_change_set_half_folded_is_not_stored() {
        let mut c = sample(1);
        c.fold(&Record::Unlink { parent: FileId(3), name: &[b'n'; 255] }).unwrap();
        assert_eq!(c.freeze().unwrap_err().kind(), ErrorKind::Unavailable);
    }

    #[test]
    fn every_byte_counts() {
        let raw = zstd::decode_all(&bytes(&sample(1))[..]).unwrap();
        let read = |raw: &[u8]| decode(&zstd::encode_all(raw, 1).unwrap()[..]);
        read(&raw).unwrap();
        for at in 0..raw.len() - 5000 {
            let mut bad = raw.clone();
            bad[at] ^= 0x10;
            let e = read(&bad).expect_err(&format!("byte {at}"));
            assert!(matches!(e.kind(), ErrorKind::Corrupt | ErrorKind::Refused), "byte {at}: {e:?}");
            let kind = read(&raw[..at]).unwrap_err().kind();
            assert_eq!(kind, ErrorKind::Corrupt, "cut at {at}");
        }
        let stored = bytes(&sample(1));
        for at in 0..stored.len() {
            assert_eq!(decode(&stored[..at]).unwrap_err().kind(), ErrorKind::Corrupt, "cut at {at}");
        }
    }

    proptest! {
        #[test]
        fn bytes_with_a_good_sum_are_still_checked(at in 0..700_usize, value: u8, stored: bool) {
            let whole = bytes(&sample(1));
            if stored {
                let mut bad = whole.clone();
                let at = at % bad.len();
                bad[at] = value;
                // Either it is refused, or the changed bit means nothing to zstd.
                if let Ok(c) = decode(&bad[..]) {
                    assert_same(&sample(1), &c);
                }
            } else {
                let mut raw = zstd::decode_all(&whole[..]).unwrap();
                raw.truncate(raw.len() - 32);
                let at = at % raw.len();
                raw[at] = value;
                let sum: [u8; 32] = Sha256::digest(&raw).into();
                raw.extend_from_slice(&sum);
                if let Ok(c) = decode(&zstd::encode_all(&raw[..], 1).unwrap()[..]) {
                    prop_assert_eq!(c.digest(), c.recomputed_digest());
                    for id in c.ids() {
                        prop_assert!(c.path(id).is_some());
                    }
                }
            }
        }
    }

    #[test]
    fn the_newest_two_are_kept_and_the_older_serves_when_the_newest_is_damaged() {
        let dir = tempfile::tempdir().unwrap();
        assert!(load_newest(dir.path(), SYSTEM).unwrap().is_none());
        let mut c = sample(1);
        for lsn in 1..=4 {
            c.set_position(Lsn(lsn << 24), Cut::Exact, 0);
            prepare_catalog(dir.path(), &c).unwrap().finish().unwrap();
        }
        drop(prepare_catalog(dir.path(), &c).unwrap().write().unwrap());
        assert_eq!(list(dir.path()).unwrap(), [3, 4]);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
        assert_eq!(load_newest(dir.path(), SYSTEM).unwrap().unwrap().lsn(), Lsn(4 << 24));
        let e = load_newest(dir.path(), SystemId(4)).unwrap_err();
        assert!(e.kind() == ErrorKind::Refused && e.to_string().contains("put back the one"), "{e}");
        let damage = |n| {
            let path = dir.path().join(name(n));
            let mut bytes = fs::read(&path).unwrap();
            let at = bytes.len() / 2;
            bytes[at] ^= 1;
            fs::write(&path, bytes).unwrap();
        };
        damage(4);
        assert_eq!(load_newest(dir.path(), SYSTEM).unwrap().unwrap().lsn(), Lsn(3 << 24));
        assert!(dir.path().join(DAMAGED).exists());
        prepare_catalog(dir.path(), &c).unwrap().finish().unwrap();
        assert_eq!(list(dir.path()).unwrap(), [3, 4]);
        damage(3);
        damage(4);
        let e = load_newest(dir.path(), SYSTEM).unwrap_err();
        assert!(e.kind() == ErrorKind::Corrupt && e.to_string().contains("from a backup"), "{e}");
        assert!(e.to_string().contains(dir.path().to_str().unwrap()), "{e}");
    }
}
