//! Where a backup set is that lies outside of archives: a directory, or one tar, as a file or a stream; the tar may be
//! compressed with zstd. Its members, in the order of the tar.

use std::fs;
use std::io::{self, BufReader, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, ErrorKind, Result};
use crate::manifest;
use crate::record::Kind;
use crate::sys::{self, Root};

/// Most names of one set: what is more is no backup, and would fill the memory.
pub(super) const NAMES_MAX: usize = 1 << 27;
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// What a name in a set is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum What {
    /// A regular file of so many bytes.
    File(u64),
    /// A directory.
    Dir,
    /// A symlink, and where it points.
    Symlink(Vec<u8>),
    /// In a tar: another name of a file that came before.
    Also(Vec<u8>),
    /// Anything else.
    Other(Kind),
}

/// A name in a set.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Member {
    /// Relative to the set, without a slash at its end.
    pub name: Vec<u8>,
    /// What it is.
    pub what: What,
}

/// Where a set is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Source {
    /// The directory.
    Dir(PathBuf),
    /// The file that is a tar.
    Tar(PathBuf),
    /// A tar on standard input.
    Stdin,
}

impl Source {
    /// What `path` means; `-` is standard input.
    ///
    /// # Errors
    /// There is nothing, or nothing that could hold a set.
    pub fn at(path: &Path) -> Result<Self> {
        if path.as_os_str() == "-" {
            return Ok(Self::Stdin);
        }
        let meta = fs::metadata(path).map_err(|e| Error::io("open", path, e))?;
        if meta.is_dir() {
            return Ok(Self::Dir(path.to_owned()));
        }
        if path.file_name().is_some_and(|n| n == manifest::NAME) {
            let dir = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
            let (path, dir) = (path.display(), dir.display());
            let text =
                format!("'{path}' is the manifest of a backup: name the directory that holds it, '{dir}'");
            return Err(Error::new(ErrorKind::Usage, text));
        }
        if meta.is_file() || meta.file_type().is_fifo() {
            return Ok(Self::Tar(path.to_owned()));
        }
        let text = format!("'{}' is neither a directory nor a tar", path.display());
        Err(Error::new(ErrorKind::Usage, text))
    }

    /// How messages call it.
    #[must_use]
    pub fn shown(&self) -> String {
        match self {
            Self::Dir(path) | Self::Tar(path) => path.display().to_string(),
            Self::Stdin => "standard input".to_owned(),
        }
    }

    /// The bytes of a tar, uncompressed.
    ///
    /// # Errors
    /// It can't be opened; of a directory: it is no tar.
    pub fn bytes(&self) -> Result<Box<dyn Read>> {
        let input: Box<dyn Read> = match self {
            Self::Tar(path) => Box::new(fs::File::open(path).map_err(|e| Error::io("open", path, e))?),
            Self::Stdin => Box::new(io::stdin()),
            Self::Dir(path) => {
                return Err(Error::new(ErrorKind::Usage, format!("'{}' is no tar", path.display())));
            }
        };
        let mut input = BufReader::with_capacity(256 << 10, input);
        let zstd = io::BufRead::fill_buf(&mut input).map_err(|e| self.cut(&e))?.starts_with(&ZSTD);
        if !zstd {
            return Ok(Box::new(input));
        }
        let decoder = zstd::stream::read::Decoder::with_buffer(input).map_err(|e| self.cut(&e))?;
        Ok(Box::new(decoder))
    }

    /// What an error while a tar is read says of it.
    pub(super) fn cut(&self, e: &io::Error) -> Error {
        let kind = if e.raw_os_error().is_some() { ErrorKind::Io } else { ErrorKind::Corrupt };
        Error::new(kind, format!("'{}' is no whole tar: {e}", self.shown()))
    }

    /// Goes through a tar, in its order. `each` may read a file, or leave it.
    ///
    /// # Errors
    /// It is no tar, or cut; or what `each` says. Those of a directory: it is none.
    pub fn members(&self, each: &mut dyn FnMut(Member, &mut dyn Read) -> Result<()>) -> Result<()> {
        let cut = |e: io::Error| self.cut(&e);
        let mut archive = tar::Archive::new(self.bytes()?);
        for (count, entry) in archive.entries().map_err(cut)?.enumerate() {
            if count >= NAMES_MAX {
                return Err(cut(io::Error::other("it has too many members")));
            }
            let mut entry = entry.map_err(cut)?;
            if let Some(member) = member(&entry).map_err(cut)? {
                each(member, &mut entry)?;
            }
        }
        // To the end of the stream: a checksum of the compression is looked at there.
        io::copy(&mut archive.into_inner(), &mut io::sink()).map_err(cut)?;
        Ok(())
    }

    /// The manifest as it is. A tar is read for it, standard input is used up.
    ///
    /// # Errors
    /// `Missing`: there is none, so that this is no finished backup.
    pub fn manifest(&self) -> Result<Vec<u8>> {
        let missing = || {
            let text = format!("'{}' has no {}: it is no finished backup", self.shown(), manifest::NAME);
            Error::new(ErrorKind::Missing, text)
        };
        let Self::Dir(dir) = self else {
            let mut found = None;
            self.members(&mut |member, content| {
                if member.name == manifest::NAME.as_bytes() {
                    found = Some(read_manifest(content).map_err(|e| e.wrap(&self.shown()))?);
                }
                Ok(())
            })?;
            return found.ok_or_else(missing);
        };
        let path = dir.join(manifest::NAME);
        match fs::File::open(&path) {
            Ok(mut file) => read_manifest(&mut file).map_err(|e| e.wrap(&path.display().to_string())),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Err(missing()),
            Err(e) => Err(Error::io("open", &path, e)),
        }
    }
}

/// Reads all of a manifest, as far as one may go.
///
/// # Errors
/// It is larger than any, or can't be read.
pub fn read_manifest(input: &mut dyn Read) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    input.take(manifest::BYTES_MAX + 1).read_to_end(&mut bytes).map_err(Error::from)?;
    if bytes.len() as u64 > manifest::BYTES_MAX {
        let text = format!("{} has more than {} bytes", manifest::NAME, manifest::BYTES_MAX);
        return Err(Error::new(ErrorKind::Corrupt, text));
    }
    Ok(bytes)
}

/// A member of a tar under its plain name; `None`: the set itself.
pub(super) fn member(entry: &tar::Entry<'_, impl Read>) -> io::Result<Option<Member>> {
    let Some(name) = plain(&entry.path_bytes())? else { return Ok(None) };
    let target = || Ok::<_, io::Error>(entry.link_name_bytes().unwrap_or_default().into_owned());
    let what = match entry.header().entry_type() {
        tar::EntryType::Regular | tar::EntryType::Continuous | tar::EntryType::GNUSparse => {
            What::File(entry.size())
        }
        tar::EntryType::Directory => What::Dir,
        tar::EntryType::Symlink => What::Symlink(target()?),
        tar::EntryType::Link => What::Also(plain(&target()?)?.unwrap_or_default()),
        tar::EntryType::Fifo => What::Other(Kind::Fifo),
        tar::EntryType::Char => What::Other(Kind::CharDevice),
        tar::EntryType::Block => What::Other(Kind::BlockDevice),
        other => return Err(io::Error::other(format!("a member of type {:?}", char::from(other.as_byte())))),
    };
    Ok(Some(Member { name, what }))
}

/// A path of a tar without `./` and without slashes at its ends.
fn plain(path: &[u8]) -> io::Result<Option<Vec<u8>>> {
    let names: Vec<&[u8]> = path.split(|b| *b == b'/').filter(|n| !n.is_empty() && *n != b".").collect();
    if names.contains(&&b".."[..]) {
        return Err(io::Error::other(format!("a path leads out of it: '{}'", path.escape_ascii())));
    }
    Ok((!names.is_empty()).then(|| names.join(&b'/')))
}

/// All names below a directory, sorted, without following symlinks. What can't be looked at goes to `unreadable`.
pub fn walk(root: &Root, unreadable: &mut dyn FnMut(&[u8], io::Error)) -> Vec<Member> {
    let (mut all, mut open) = (Vec::new(), vec![Vec::new()]);
    while let Some(dir) = open.pop() {
        if let Err(e) = list(root, &dir, &mut all, &mut open, unreadable) {
            unreadable(&dir, e);
        }
    }
    all.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    all
}

fn list(
    root: &Root,
    dir: &[u8],
    all: &mut Vec<Member>,
    open: &mut Vec<Vec<u8>>,
    unreadable: &mut dyn FnMut(&[u8], io::Error),
) -> io::Result<()> {
    let fd = root.open_dir(dir)?;
    let mut names = Vec::new();
    sys::list_dir(&fd, |name, _, _| names.push(name.to_bytes().to_vec()))?;
    for name in names {
        let mut path = dir.to_vec();
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(&name);
        let stat = match sys::stat_at(&fd, &name) {
            Ok(Some(stat)) => stat,
            Ok(None) => continue,
            Err(e) => {
                unreadable(&path, e);
                continue;
            }
        };
        let what = match stat.kind {
            Kind::File => What::File(stat.size),
            Kind::Dir => {
                open.push(path.clone());
                What::Dir
            }
            Kind::Symlink => match sys::read_link_at(&fd, &name) {
                Ok(target) => What::Symlink(target),
                Err(e) => {
                    unreadable(&path, e);
                    continue;
                }
            },
            other => What::Other(other),
        };
        all.push(Member { name: path, what });
        if all.len() > NAMES_MAX {
            return Err(io::Error::other("it has too many names"));
        }
    }
    Ok(())
}

/// A path as messages show it.
pub fn shown(path: &[u8]) -> String {
    match std::str::from_utf8(path) {
        Ok(text) => text.escape_debug().to_string(),
        Err(_) => path.escape_ascii().to_string(),
    }
}

/// The name of an operator's path below a set.
pub fn below(path: &Path) -> Vec<u8> {
    let bytes = path.as_os_str().as_bytes();
    let bytes = bytes.strip_prefix(b"./").unwrap_or(bytes);
    bytes.strip_suffix(b"/").unwrap_or(bytes).to_vec()
}
