//! A backup set wherever it is: a directory, or one tar, as a file or a stream; the tar may be compressed with zstd.

use std::fs;
use std::io::{self, BufReader, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use crate::error::{Error, ErrorKind, Result};
use crate::manifest::{self, Manifest, Sha};
use crate::record::Kind;
use crate::sys::{self, Root};

/// Most names of one set: what is more is no backup, and would fill the memory.
const NAMES_MAX: usize = 1 << 27;
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

    /// Goes through a tar, in its order. `each` may read a file, or leave it.
    ///
    /// # Errors
    /// It is no tar, or cut; or what `each` says. Those of a directory: it is none.
    pub fn members(&self, each: &mut dyn FnMut(Member, &mut dyn Read) -> Result<()>) -> Result<()> {
        let input: Box<dyn Read> = match self {
            Self::Tar(path) => Box::new(fs::File::open(path).map_err(|e| Error::io("open", path, e))?),
            Self::Stdin => Box::new(io::stdin()),
            Self::Dir(path) => {
                return Err(Error::new(ErrorKind::Usage, format!("'{}' is no tar", path.display())));
            }
        };
        let cut = |e: io::Error| {
            let kind = if e.raw_os_error().is_some() { ErrorKind::Io } else { ErrorKind::Corrupt };
            Error::new(kind, format!("'{}' is no whole tar: {e}", self.shown()))
        };
        let mut input = BufReader::with_capacity(256 << 10, input);
        let zstd = io::BufRead::fill_buf(&mut input).map_err(cut)?.starts_with(&ZSTD);
        let input: Box<dyn Read> = if zstd {
            Box::new(zstd::stream::read::Decoder::with_buffer(input).map_err(cut)?)
        } else {
            Box::new(input)
        };
        let mut archive = tar::Archive::new(input);
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
pub(super) fn read_manifest(input: &mut dyn Read) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    input.take(manifest::BYTES_MAX + 1).read_to_end(&mut bytes).map_err(Error::from)?;
    if bytes.len() as u64 > manifest::BYTES_MAX {
        let text = format!("{} has more than {} bytes", manifest::NAME, manifest::BYTES_MAX);
        return Err(Error::new(ErrorKind::Corrupt, text));
    }
    Ok(bytes)
}

/// A member of a tar under its plain name; `None`: the set itself.
fn member(entry: &tar::Entry<'_, impl Read>) -> io::Result<Option<Member>> {
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
pub(super) fn walk(root: &Root, unreadable: &mut dyn FnMut(&[u8], io::Error)) -> Vec<Member> {
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

/// A backup set whose manifest is sound.
#[derive(Debug)]
pub struct Set {
    source: Source,
    manifest: Manifest,
    sha256: Sha,
}

impl Set {
    /// Opens the set at `path`: a directory or the file of a tar.
    ///
    /// # Errors
    /// There is none, it is not finished, or its manifest is not what was written.
    pub fn open(path: &Path) -> Result<Self> {
        let source = Source::at(path)?;
        let bytes = source.manifest()?;
        let named =
            |e: manifest::Error| Error::from(e).wrap(&format!("{} of '{}'", manifest::NAME, source.shown()));
        let sha256 = manifest::seal(&bytes).map_err(named)?;
        let manifest = Manifest::parse(&bytes).map_err(named)?;
        Ok(Self { source, manifest, sha256 })
    }

    /// Where it is.
    #[must_use]
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// What it is.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// What the last line of the manifest says.
    #[must_use]
    pub fn sha256(&self) -> Sha {
        self.sha256
    }

    /// Hands the content of one file of the set to `read`.
    ///
    /// # Errors
    /// It is not there, or what `read` says.
    pub fn read<T>(&self, name: &str, mut read: impl FnMut(&mut dyn Read) -> Result<T>) -> Result<T> {
        let missing = || {
            let text = format!("'{}' has no '{name}', which its manifest names", self.source.shown());
            Error::new(ErrorKind::Missing, text)
        };
        if let Source::Dir(dir) = &self.source {
            let path = dir.join(name);
            let root = Root::open(dir).map_err(|e| Error::io("open", dir, e))?;
            return match root.open_beneath(name.as_bytes(), OFlags::RDONLY, 0) {
                Ok(fd) => read(&mut fs::File::from(fd)).map_err(|e| e.wrap(&path.display().to_string())),
                Err(e) if e.kind() == io::ErrorKind::NotFound => Err(missing()),
                Err(e) => Err(Error::io("open", &path, e)),
            };
        }
        let mut found = None;
        self.source.members(&mut |member, content| {
            if member.name == name.as_bytes() && found.is_none() {
                found = Some(read(content)?);
            }
            Ok(())
        })?;
        found.ok_or_else(missing)
    }

    /// The same for a part that goes to `each` in its order: the packs of a set. A tar is gone through once.
    ///
    /// # Errors
    /// A part is not there, or what `each` says.
    pub fn read_parts(
        &self,
        wanted: impl Fn(&str) -> bool,
        mut each: impl FnMut(&str, &mut dyn Read) -> Result<()>,
    ) -> Result<()> {
        let names: Vec<&str> =
            self.manifest.parts.iter().map(|p| p.name.as_str()).filter(|n| wanted(n)).collect();
        if let Source::Dir(_) = &self.source {
            return names.iter().try_for_each(|n| self.read(n, |content| each(n, content)));
        }
        let mut seen = 0;
        self.source.members(
            &mut |member, content| match names.iter().find(|n| n.as_bytes() == member.name) {
                Some(name) => {
                    seen += 1;
                    each(name, content)
                }
                None => Ok(()),
            },
        )?;
        if seen == names.len() {
            return Ok(());
        }
        let text = format!("'{}' has {seen} of {} parts that are needed", self.source.shown(), names.len());
        Err(Error::new(ErrorKind::Missing, text))
    }

    /// Where the files of form tree or tar are, of a set that is a directory.
    #[must_use]
    pub fn files_dir(&self) -> Option<PathBuf> {
        match (&self.source, self.manifest.form.dir()) {
            (Source::Dir(dir), Some(sub)) => Some(dir.join(sub)),
            _ => None,
        }
    }
}

/// A path as messages show it.
pub(super) fn shown(path: &[u8]) -> String {
    match std::str::from_utf8(path) {
        Ok(text) => text.escape_debug().to_string(),
        Err(_) => path.escape_ascii().to_string(),
    }
}

/// The name of an operator's path below a set.
pub(super) fn below(path: &Path) -> Vec<u8> {
    let bytes = path.as_os_str().as_bytes();
    let bytes = bytes.strip_prefix(b"./").unwrap_or(bytes);
    bytes.strip_suffix(b"/").unwrap_or(bytes).to_vec()
}
