//! A set in one tar: where each of its files begins. A tar that is compressed, or comes through a pipe, is written down first.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::path::Path;

use super::Place;
use super::source::{NAMES_MAX, Source, What, member};
use crate::disk::AtomicFile;
use crate::error::{Error, ErrorKind, Result};
use crate::failpoint;

/// First bytes of what zstd has compressed.
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// Opens a tar; what can't be read at any place becomes the file `spool`.
pub(super) fn open(source: &Source, spool: Option<&Path>) -> Result<Place> {
    let path = match source {
        Source::Tar(path) if is_plain(path)? => path,
        _ => {
            let spool = spool.ok_or_else(|| {
                let text = format!(
                    "'{}' is compressed, or a pipe: unpack it, and name the directory",
                    source.shown()
                );
                Error::new(ErrorKind::Usage, text)
            })?;
            write_down(source, spool)?;
            spool
        }
    };
    let file = File::open(path).map_err(|e| Error::io("open", path, e))?;
    let files = index(source, &file)?;
    Ok(Place::Tar { file, path: path.to_owned(), files })
}

/// Whether it is a file, and not compressed.
fn is_plain(path: &Path) -> Result<bool> {
    if !path.is_file() {
        return Ok(false);
    }
    let file = File::open(path).map_err(|e| Error::io("open", path, e))?;
    let mut first = [0; 4];
    let n = crate::sys::read_at(&file, &mut first, 0).map_err(|e| Error::io("read", path, e))?;
    Ok(n < first.len() || first != ZSTD)
}

fn write_down(source: &Source, spool: &Path) -> Result<()> {
    let (dir, name) = (spool.parent().unwrap_or(Path::new("/")), spool.file_name().and_then(|n| n.to_str()));
    let name = name.ok_or_else(|| Error::new(ErrorKind::Usage, "the stream has no place to be kept"))?;
    let mut out = AtomicFile::create(dir, name)?;
    let mut input = source.bytes()?;
    let mut buf = vec![0; super::PIECE];
    loop {
        let n = input.read(&mut buf).map_err(|e| source.cut(&e))?;
        if n == 0 {
            break;
        }
        io::Write::write_all(&mut out, buf.get(..n).unwrap_or_default())
            .map_err(|e| Error::io("write", spool, e))?;
    }
    failpoint::pass("restore::spool").map_err(|e| Error::io("write", spool, e))?;
    out.commit()
}

/// Where its files begin, and how long they are; of several names of one file each has an entry.
fn index(source: &Source, file: &File) -> Result<HashMap<Vec<u8>, (u64, u64)>> {
    let cut = |e: io::Error| source.cut(&e);
    let all = file.metadata().map_err(|e| Error::io("stat", source.shown(), e))?.len();
    let mut archive = tar::Archive::new(file);
    let mut files: HashMap<Vec<u8>, (u64, u64)> = HashMap::new();
    for entry in archive.entries_with_seek().map_err(cut)? {
        let entry = entry.map_err(cut)?;
        let sparse = entry.header().entry_type() == tar::EntryType::GNUSparse;
        let Some(member) = member(&entry).map_err(cut)? else { continue };
        match member.what {
            What::File(_) if sparse => {
                let text = format!(
                    "'{}' was made with holes ('{}'), by tar --sparse: unpack it, and name the directory",
                    source.shown(),
                    member.name.escape_ascii()
                );
                return Err(Error::new(ErrorKind::Refused, text));
            }
            What::File(len) if entry.raw_file_position().saturating_add(len) > all => {
                return Err(cut(io::Error::other(format!("'{}' breaks off", member.name.escape_ascii()))));
            }
            What::File(len) => drop(files.insert(member.name, (entry.raw_file_position(), len))),
            What::Also(first) => {
                if let Some(known) = files.get(&first).copied() {
                    files.insert(member.name, known);
                }
            }
            _ => {}
        }
        if files.len() > NAMES_MAX {
            return Err(cut(io::Error::other("it has too many members")));
        }
    }
    Ok(files)
}
