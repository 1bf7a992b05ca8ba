//! Writing a tar stream: ustar headers, and PAX records for what those can't say; long names that are not UTF-8, of which
//! PAX knows nothing, as GNU tar writes them. Over anything that takes bytes.

use std::io::{self, Write};

use rustix::fs::{major, minor};
use tar::{EntryType, Header};

use crate::record::Attrs;

/// A tar stream is made of these.
const BLOCK: u64 = 512;
/// Most bytes of a name in a header.
const NAME_MAX: usize = 100;
/// The first numbers that do not fit into their fields.
const SIZE_END: u64 = 1 << 33;
const ID_END: u32 = 1 << 21;
/// Zeros written at once.
const ZEROS: [u8; 16 << 10] = [0; 16 << 10];

/// What an entry is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum What<'a> {
    /// So many bytes follow.
    File(u64),
    /// Another name of the file at that path.
    Hard(&'a [u8]),
    Symlink(&'a [u8]),
    Dir,
    Fifo,
    Block(u64),
    Char(u64),
}

/// Name and value of each extended attribute.
pub(super) type Xattrs = [(Box<[u8]>, Box<[u8]>)];

/// The stream. What follows the header of a file goes through [`Write`], exactly its size.
#[derive(Debug)]
pub(super) struct Tarball<W> {
    out: W,
    /// Bytes of the entry that are still to come.
    left: u64,
    /// Zeros after them.
    fill: u64,
}

impl<W: Write> Tarball<W> {
    pub(super) fn new(out: W) -> Self {
        Self { out, left: 0, fill: 0 }
    }

    /// Ends the entry before, and begins another.
    pub(super) fn entry(
        &mut self,
        path: &[u8],
        what: What<'_>,
        attrs: &Attrs,
        xattrs: &Xattrs,
    ) -> io::Result<()> {
        self.pad()?;
        let link = link_of(what);
        for (kind, name) in [(EntryType::GNULongLink, link), (EntryType::GNULongName, path)] {
            if name.len() > NAME_MAX && std::str::from_utf8(name).is_err() {
                self.extension(b"././@LongLink", kind, &[name, b"\0"].concat())?;
            }
        }
        let records = records(path, what, attrs, xattrs);
        if !records.is_empty() {
            self.extension(b"PaxHeaders/entry", EntryType::XHeader, &records)?;
        }
        let (kind, size) = match what {
            What::File(size) => (EntryType::Regular, size),
            What::Hard(_) => (EntryType::Link, 0),
            What::Symlink(_) => (EntryType::Symlink, 0),
            What::Dir => (EntryType::Directory, 0),
            What::Fifo => (EntryType::Fifo, 0),
            What::Block(_) => (EntryType::Block, 0),
            What::Char(_) => (EntryType::Char, 0),
        };
        let mut head = header(path, kind, size, attrs);
        let n = link.len().min(NAME_MAX);
        head.as_old_mut().linkname[..n].copy_from_slice(&link[..n]);
        if let What::Block(device) | What::Char(device) = what {
            head.set_device_major(major(device))?;
            head.set_device_minor(minor(device))?;
        }
        head.set_cksum();
        self.out.write_all(head.as_bytes())?;
        (self.left, self.fill) = (size, (BLOCK - size % BLOCK) % BLOCK);
        Ok(())
    }

    /// An entry that says more of the next one.
    fn extension(&mut self, name: &[u8], kind: EntryType, bytes: &[u8]) -> io::Result<()> {
        let mut head = header(name, kind, bytes.len() as u64, &plain());
        head.set_cksum();
        self.out.write_all(head.as_bytes())?;
        self.out.write_all(bytes)?;
        self.zeros((BLOCK - bytes.len() as u64 % BLOCK) % BLOCK)
    }

    fn zeros(&mut self, mut n: u64) -> io::Result<()> {
        while n > 0 {
            let now = ZEROS.len().min(usize::try_from(n).unwrap_or(usize::MAX));
            self.out.write_all(&ZEROS[..now])?;
            n -= now as u64;
        }
        Ok(())
    }

    /// Fills up what is missing of the entry.
    fn pad(&mut self) -> io::Result<()> {
        let n = std::mem::take(&mut self.left) + std::mem::take(&mut self.fill);
        self.zeros(n)
    }

    /// Ends the stream.
    pub(super) fn finish(mut self) -> io::Result<W> {
        self.pad()?;
        self.zeros(2 * BLOCK)?;
        self.out.flush()?;
        Ok(self.out)
    }
}

impl<W: Write> Write for Tarball<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buf.len());
        if most == 0 && !buf.is_empty() {
            return Err(io::Error::other("more content than the entry has room for"));
        }
        let n = self.out.write(&buf[..most])?;
        self.left -= n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// The attributes of what is not of the application.
pub(super) fn plain() -> Attrs {
    Attrs { mode: 0o600, ..Attrs::default() }
}

fn header(path: &[u8], kind: EntryType, size: u64, attrs: &Attrs) -> Header {
    let mut head = Header::new_ustar();
    let n = path.len().min(NAME_MAX);
    head.as_old_mut().name[..n].copy_from_slice(&path[..n]);
    head.set_entry_type(kind);
    head.set_mode(attrs.mode & 0o7777);
    head.set_uid(u64::from(if attrs.uid < ID_END { attrs.uid } else { 0 }));
    head.set_gid(u64::from(if attrs.gid < ID_END { attrs.gid } else { 0 }));
    let seconds = u64::try_from(attrs.mtime.sec).unwrap_or(0);
    head.set_mtime(if seconds < SIZE_END { seconds } else { 0 });
    head.set_size(if size < SIZE_END { size } else { 0 });
    head
}

/// Where a link leads.
fn link_of(what: What<'_>) -> &[u8] {
    match what {
        What::Hard(to) | What::Symlink(to) => to,
        _ => &[],
    }
}

/// The PAX records of what a header can't say.
fn records(path: &[u8], what: What<'_>, attrs: &Attrs, xattrs: &Xattrs) -> Vec<u8> {
    let mut out = Vec::new();
    for (key, name) in [(&b"path"[..], path), (b"linkpath", link_of(what))] {
        if name.len() > NAME_MAX && std::str::from_utf8(name).is_ok() {
            record(&mut out, key, name);
        }
    }
    let mtime = attrs.mtime;
    if mtime.nsec != 0 || !(0..1 << 33).contains(&mtime.sec) {
        record(&mut out, b"mtime", time(mtime.sec, mtime.nsec).as_bytes());
    }
    for (key, id) in [(b"uid", attrs.uid), (b"gid", attrs.gid)] {
        if id >= ID_END {
            record(&mut out, key, id.to_string().as_bytes());
        }
    }
    if let What::File(size @ SIZE_END..) = what {
        record(&mut out, b"size", size.to_string().as_bytes());
    }
    // Last: some readers stop at a line feed within a value.
    for (name, value) in xattrs {
        let acl = match &**name {
            b"system.posix_acl_access" => acl_text(value).map(|t| (&b"SCHILY.acl.access"[..], t)),
            b"system.posix_acl_default" => acl_text(value).map(|t| (&b"SCHILY.acl.default"[..], t)),
            _ => None,
        };
        match acl {
            Some((key, text)) => record(&mut out, key, text.as_bytes()),
            // A name with '=' can't be told from its value; it is in the catalog.
            None if name.contains(&b'=') => {}
            None => record(&mut out, &[b"SCHILY.xattr.", &name[..]].concat(), value),
        }
    }
    out
}

/// A time as PAX writes it: seconds with a fraction, which grows away from zero.
fn time(sec: i64, nsec: u32) -> String {
    if sec >= 0 || nsec == 0 {
        return format!("{sec}.{nsec:09}");
    }
    // A second too far back, and then forward again.
    match sec + 1 {
        0 => format!("-0.{:09}", 1_000_000_000 - nsec),
        sec => format!("{sec}.{:09}", 1_000_000_000 - nsec),
    }
}

/// `LENGTH KEY=VALUE`, where the length counts itself.
fn record(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut len = rest + 1;
    while len != rest + len.to_string().len() {
        len = rest + len.to_string().len();
    }
    out.extend_from_slice(format!("{len} ").as_bytes());
    out.extend_from_slice(key);
    out.push(b'=');
    out.extend_from_slice(value);
    out.push(b'\n');
}

/// A POSIX ACL as the kernel stores it, in words.
fn acl_text(value: &[u8]) -> Option<String> {
    let (version, entries) = value.split_first_chunk::<4>()?;
    if u32::from_le_bytes(*version) != 2 || entries.len() % 8 != 0 {
        return None;
    }
    let mut words = Vec::new();
    for entry in entries.chunks_exact(8) {
        let short = |at: usize| u16::from_le_bytes([entry[at], entry[at + 1]]);
        let id = u32::from_le_bytes([entry[4], entry[5], entry[6], entry[7]]);
        let who = match short(0) {
            1 => "user:".to_owned(),
            2 => format!("user:{id}"),
            4 => "group:".to_owned(),
            8 => format!("group:{id}"),
            16 => "mask:".to_owned(),
            32 => "other:".to_owned(),
            _ => return None,
        };
        let may = |bit: u16, c: char| if short(2) & bit != 0 { c } else { '-' };
        words.push(format!("{who}:{}{}{}", may(4, 'r'), may(2, 'w'), may(1, 'x')));
    }
    Some(words.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Time;
    use std::io::Read;

    #[test]
    fn records_count_themselves() {
        let mut out = Vec::new();
        record(&mut out, b"a", b"b");
        record(&mut out, b"path", &[b'x'; 91]);
        assert_eq!(&out[..6], b"6 a=b\n");
        assert_eq!(&out[6..10], b"101 ");
        assert_eq!(out.len(), 6 + 101);
    }

    #[test]
    fn times_before_the_epoch_and_acls_are_written_as_others_read_them() {
        assert_eq!((time(5, 7).as_str(), time(-1, 250_000_000).as_str()), ("5.000000007", "-0.750000000"));
        assert_eq!((time(-3, 0).as_str(), time(-3, 1).as_str()), ("-3.000000000", "-2.999999999"));
        let acl = [
            &2_u32.to_le_bytes()[..],
            &[1, 0, 7, 0, 255, 255, 255, 255],
            &[2, 0, 5, 0, 232, 3, 0, 0],
            &[32, 0, 0, 0, 255, 255, 255, 255],
        ]
        .concat();
        assert_eq!(acl_text(&acl).as_deref(), Some("user::rwx,user:1000:r-x,other::---"));
        assert_eq!(acl_text(&acl[..7]), None);
    }

    #[test]
    fn what_is_written_is_read_by_another_program() {
        let mut tar = Tarball::new(Vec::new());
        let attrs = Attrs { mode: 0o640, uid: 3, gid: u32::MAX - 1, mtime: Time { sec: 9, nsec: 5 } };
        let long = [&b"d/"[..], &[0xe9; 300]].concat();
        tar.entry(b"d/", What::Dir, &attrs, &[]).unwrap();
        let xattrs = [(b"user.k"[..].into(), b"v\0="[..].into())];
        tar.entry(&long, What::File(1000), &attrs, &xattrs).unwrap();
        tar.write_all(b"short of what was said").unwrap();
        tar.entry(b"l", What::Hard(&long), &attrs, &[]).unwrap();
        tar.entry(b"s", What::Symlink(b"d"), &attrs, &[]).unwrap();
        tar.entry(b"z", What::File(3), &attrs, &[]).unwrap();
        assert!(tar.write_all(b"four").is_err(), "no more than was said");
        let bytes = tar.finish().unwrap();
        let mut archive = tar::Archive::new(&bytes[..]);
        let mut seen = Vec::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            let path = entry.path_bytes().into_owned();
            let link = entry.link_name_bytes().map(|l| l.into_owned());
            seen.push((path, entry.header().entry_type(), content.len(), link));
            if content.len() == 1000 {
                assert!(content.starts_with(b"short of what was said\0\0"));
                let pax: Vec<_> = entry.pax_extensions().unwrap().unwrap().map(Result::unwrap).collect();
                let value = |k: &str| pax.iter().find(|e| e.key() == Ok(k)).unwrap().value_bytes();
                assert_eq!(value("SCHILY.xattr.user.k"), b"v\0=");
                assert_eq!((value("gid"), value("mtime")), (&b"4294967294"[..], &b"9.000000005"[..]));
            }
        }
        assert_eq!(
            seen,
            [
                (b"d/".to_vec(), EntryType::Directory, 0, None),
                (long.clone(), EntryType::Regular, 1000, None),
                (b"l".to_vec(), EntryType::Link, 0, Some(long)),
                (b"s".to_vec(), EntryType::Symlink, 0, Some(b"d".to_vec())),
                (b"z".to_vec(), EntryType::Regular, 3, None),
            ]
        );
    }
}
