//! Where an archive is, as one writes it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::names::{PART_MAX, valid_part};

/// The address of an archive: `file:///DIRECTORY`, `s3://BUCKET/PREFIX`, `gs://BUCKET/PREFIX` or
/// `az://CONTAINER/PREFIX`. It never holds a secret: those come from the environment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Address {
    /// A directory, perhaps of a network file system.
    Dir(PathBuf),
    /// A bucket of an object store.
    Bucket {
        /// Whose protocol it speaks.
        cloud: Cloud,
        /// Bucket or container.
        bucket: String,
        /// What the names of the objects begin with: empty, or parts with `/` between them.
        prefix: String,
    },
}

/// The protocols of object stores.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cloud {
    /// Amazon S3, and what speaks like it.
    S3,
    /// Google Cloud Storage.
    Google,
    /// Azure Blob Storage.
    Azure,
}

impl Cloud {
    fn scheme(self) -> &'static str {
        match self {
            Self::S3 => "s3",
            Self::Google => "gs",
            Self::Azure => "az",
        }
    }
}

impl Address {
    /// The directory, if it is one.
    #[must_use]
    pub fn dir(&self) -> Option<&Path> {
        match self {
            Self::Dir(path) => Some(path),
            Self::Bucket { .. } => None,
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dir(path) => {
                f.write_str("file://")?;
                for &b in std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str()) {
                    if b.is_ascii_graphic() && !matches!(b, b'%' | b'?' | b'#') {
                        fmt::Write::write_char(f, char::from(b))?;
                    } else {
                        write!(f, "%{b:02X}")?;
                    }
                }
                Ok(())
            }
            Self::Bucket { cloud, bucket, prefix } if prefix.is_empty() => {
                write!(f, "{}://{bucket}", cloud.scheme())
            }
            Self::Bucket { cloud, bucket, prefix } => write!(f, "{}://{bucket}/{prefix}", cloud.scheme()),
        }
    }
}

const FORMS: &str =
    "write file:///DIRECTORY, s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or az://CONTAINER/PREFIX";

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad =
            |why: &str| format!("'{}' is no address of an archive: {why}; {FORMS}", text.escape_debug());
        let (scheme, rest) = text.split_once("://").ok_or_else(|| bad("it has no scheme"))?;
        let cloud = match scheme {
            "file" => return directory(rest).map(Self::Dir).map_err(|why| bad(&why)),
            "s3" | "s3a" => Cloud::S3,
            "gs" => Cloud::Google,
            "az" | "azure" | "abfs" => Cloud::Azure,
            _ => return Err(bad("its scheme is not known")),
        };
        if rest.contains('@') {
            // What stands there may be a password: it is not said again.
            return Err(format!(
                "an address of an archive holds no user and no password: give them by the environment; {FORMS}"
            ));
        }
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let prefix = prefix.trim_end_matches('/');
        if !valid_part(bucket) {
            return Err(bad("its bucket is none: letters, digits, '.', '_' and '-'"));
        }
        if !prefix.is_empty() && !prefix.split('/').all(valid_part) {
            return Err(bad("the parts of its prefix are letters, digits, '.', '_' and '-'"));
        }
        if prefix.len() > PART_MAX {
            return Err(bad("its prefix is longer than 255 characters"));
        }
        Ok(Self::Bucket { cloud, bucket: bucket.to_owned(), prefix: prefix.to_owned() })
    }
}

fn directory(rest: &str) -> Result<PathBuf, String> {
    let path = rest.strip_prefix("localhost").unwrap_or(rest);
    if !path.starts_with('/') {
        return Err("a directory is named by its whole path, with three slashes".to_owned());
    }
    if path.contains(['?', '#']) {
        return Err("'?' and '#' are written %3F and %23".to_owned());
    }
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path.as_bytes();
    while let Some((&b, more)) = rest.split_first() {
        rest = more;
        if b != b'%' {
            bytes.push(b);
            continue;
        }
        let hex = rest.get(..2).and_then(|h| std::str::from_utf8(h).ok());
        let byte = hex.and_then(|h| u8::from_str_radix(h, 16).ok()).filter(|b| *b != 0);
        bytes.push(byte.ok_or("'%' is followed by two hexadecimal digits")?);
        rest = &rest[2..];
    }
    let path = PathBuf::from(std::ffi::OsString::from(OsBytes(bytes)));
    if path.components().any(|c| matches!(c, std::path::Component::ParentDir)) {
        return Err("'..' is no part of it".to_owned());
    }
    if path.parent().is_none() {
        return Err("the root directory is no archive".to_owned());
    }
    Ok(path)
}

struct OsBytes(Vec<u8>);

impl From<OsBytes> for std::ffi::OsString {
    fn from(b: OsBytes) -> Self {
        std::os::unix::ffi::OsStringExt::from_vec(b.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_they_are_printed() {
        for text in ["file:///mnt/a%20b", "s3://bucket", "s3://bucket/a/b", "gs://b/x", "az://c/x-1"] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        assert_eq!("file:///a%20b".parse::<Address>().unwrap().dir(), Some(Path::new("/a b")));
        assert_eq!("s3://bucket/a/".parse::<Address>().unwrap().to_string(), "s3://bucket/a");
        assert_eq!("file://localhost/a".parse::<Address>().unwrap().dir(), Some(Path::new("/a")));
    }

    #[test]
    fn what_is_no_address_is_refused_with_the_forms() {
        for bad in [
            "",
            "/mnt/a",
            "file:/a",
            "file://a/b",
            "file:///",
            "file:///a/../b",
            "file:///a%2",
            "file:///a%zz",
            "file:///a?b",
            "ftp://x",
            "s3://",
            "s3:///a",
            "s3://b//c",
            "s3://b/..",
            "s3://b/a b",
            "s3://b?x=1",
        ] {
            let e = bad.parse::<Address>().unwrap_err();
            assert!(e.contains("s3://BUCKET/PREFIX"), "{bad}: {e}");
        }
        let e = "s3://me:secret@b/x".parse::<Address>().unwrap_err();
        assert!(!e.contains("secret") && e.contains("environment"), "{e}");
    }
}
