//! A node's key and certificate.
//!
//! | file | content | mode |
//! | --- | --- | --- |
//! | `node.key` | the private key, ECDSA on P-256, PKCS 8 in PEM; made once | 0600 |
//! | `node.crt` | a certificate of it signed by itself, PEM | 0600 |
//! | `trust.lock` | held while a command or the daemon changes these, or the peers | 0600 |
//!
//! The key is durable before the certificate is made, so that a death in between costs nothing: the next start makes
//! the certificate of the key that is there. What identifies the node is the key ([`Fingerprint`]); the certificate can
//! be made anew at any time.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::crypto::ring::sign::any_supported_type;
use tokio_rustls::rustls::sign::CertifiedKey;

use crate::certificate::{Facts, Fingerprint};
use crate::disk;
use crate::error::{Error, ErrorKind, Result};
use crate::failpoint;

/// The private key in a state directory.
pub const KEY: &str = "node.key";
/// The certificate in a state directory.
pub const CERTIFICATE: &str = "node.crt";
/// Held while files of this module change.
const TURN: &str = "trust.lock";
/// Longest wait for another command that changes them.
const TURN_MAX: Duration = Duration::from_secs(10);
/// Most bytes of a file of keys or certificates.
const FILE_MAX: u64 = 1 << 20;
/// A certificate made here holds for ten years: its key is trusted by pin, and a pin is taken away by hand.
const VALID: Duration = Duration::from_secs(3650 * 86_400);
/// It holds since a time that no working clock is behind.
const SINCE: (i32, u8, u8) = (2020, 1, 1);

/// A key and its certificate, checked to belong together.
pub struct Identity {
    /// What the certificate says.
    pub facts: Facts,
    /// Where the certificate was read.
    pub file: PathBuf,
    pub(super) certified: Arc<CertifiedKey>,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity")
            .field("facts", &self.facts)
            .field("file", &self.file)
            .finish_non_exhaustive()
    }
}

/// Waits for other commands that change what is in `dir`.
pub(super) fn turn(dir: &Path) -> Result<disk::Turn> {
    disk::take_turn(dir, TURN, TURN_MAX)
}

/// The identity in the state directory `dir`; what is missing of it is made. `name` goes into a new certificate.
///
/// # Errors
/// Files that can't be read or written, or don't belong together.
pub fn ensure(dir: &Path, name: &str) -> Result<Identity> {
    let (key, certificate) = (dir.join(KEY), dir.join(CERTIFICATE));
    if !(key.exists() && certificate.exists()) {
        let _turn = turn(dir)?;
        match (key.exists(), certificate.exists()) {
            (false, false) => {
                make_key(dir)?;
                make_certificate(dir, name)?;
            }
            (true, false) => make_certificate(dir, name)?,
            (false, true) => return Err(gone(&key)),
            (true, true) => {}
        }
    }
    load(&certificate, &key)
}

/// The same, when all of it is there; what is missing of it can be made.
///
/// # Errors
/// As [`ensure`].
pub(super) fn look(dir: &Path) -> Result<Option<Identity>> {
    let (key, certificate) = (dir.join(KEY), dir.join(CERTIFICATE));
    match (key.exists(), certificate.exists()) {
        (true, true) => load(&certificate, &key).map(Some),
        (true, false) => read_key(&key).map(|_| None),
        (false, true) => Err(gone(&key)),
        (false, false) => Ok(None),
    }
}

fn gone(key: &Path) -> Error {
    let text = format!(
        "the key '{}' is gone, and its certificate is there; put the key back, or run `towline id --renew --new-key` and \
         have the peers trust the new fingerprint",
        key.display()
    );
    Error::new(ErrorKind::Missing, text)
}

/// A new certificate in the state directory `dir`: of the key that is there, so that peers go on trusting it, or of a new
/// one, which they have to be told.
///
/// # Errors
/// As [`ensure`].
pub fn renew(dir: &Path, name: &str, new_key: bool) -> Result<Identity> {
    let turn = turn(dir)?;
    if new_key || !(dir.join(KEY).exists() || dir.join(CERTIFICATE).exists()) {
        // A certificate of another key would keep the node from starting if the next step never came.
        disk::remove_durable(&dir.join(CERTIFICATE))?;
        make_key(dir)?;
    }
    if dir.join(KEY).exists() {
        make_certificate(dir, name)?;
    }
    drop(turn);
    ensure(dir, name)
}

fn make_key(dir: &Path) -> Result<()> {
    let key =
        KeyPair::generate().map_err(|e| Error::new(ErrorKind::Io, format!("cannot make a key: {e}")))?;
    failpoint::pass("tls::key").map_err(|e| Error::io("write", dir.join(KEY), e))?;
    disk::write_owned(dir, KEY, key.serialize_pem().as_bytes())?;
    failpoint::pass("tls::after_key").map_err(|e| Error::io("write", dir.join(KEY), e))
}

fn make_certificate(dir: &Path, name: &str) -> Result<()> {
    let path = dir.join(KEY);
    let pem = read_key(&path)?;
    let unusable = |_| bad_key(&path);
    let key = std::str::from_utf8(&pem).ok().and_then(|p| KeyPair::from_pem(p).ok());
    let key = key.ok_or(()).map_err(unusable)?;
    let failed = |e: rcgen::Error| Error::new(ErrorKind::Io, format!("cannot make a certificate: {e}"));
    let mut params = CertificateParams::new(Vec::new()).map_err(failed)?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = rcgen::date_time_ymd(SINCE.0, SINCE.1, SINCE.2);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    params.not_after = rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(now.as_secs()) + VALID;
    let certificate = params.self_signed(&key).map_err(failed)?;
    failpoint::pass("tls::certificate").map_err(|e| Error::io("write", dir.join(CERTIFICATE), e))?;
    disk::write_owned(dir, CERTIFICATE, certificate.pem().as_bytes())
}

/// Reads a certificate, what chains it to a CA, and its key.
///
/// # Errors
/// [`ErrorKind::Config`] for files that hold something else, are open to others, or don't belong together.
pub fn load(certificate: &Path, key: &Path) -> Result<Identity> {
    let chain = certificates(certificate)?;
    let Some(first) = chain.first() else {
        let text =
            format!("'{}' holds no certificate in PEM; name the file that does", certificate.display());
        return Err(Error::new(ErrorKind::Config, text));
    };
    let facts = Facts::of(first).map_err(|e| {
        let text = format!("the certificate '{}' can't be used: {e}", certificate.display());
        Error::new(ErrorKind::Config, text)
    })?;
    let secret = PrivateKeyDer::from_pem_slice(&read_key(key)?).map_err(|_| bad_key(key))?;
    let signing = any_supported_type(&secret).map_err(|_| bad_key(key))?;
    let certified = CertifiedKey::new(chain, signing);
    certified.keys_match().map_err(|_| {
        let text = format!(
            "the certificate '{}' is not of the key '{}'; name the two that belong together",
            certificate.display(),
            key.display()
        );
        Error::new(ErrorKind::Config, text)
    })?;
    Ok(Identity { facts, file: certificate.to_owned(), certified: Arc::new(certified) })
}

impl Identity {
    /// Whose key it is.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        self.facts.fingerprint
    }

    /// Whole days that the certificate still holds; negative once it is expired.
    #[must_use]
    pub fn days_left(&self) -> i64 {
        self.facts.not_after.saturating_sub(super::now()).div_euclid(super::DAY)
    }
}

/// All certificates of a PEM file.
pub(super) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let pem = read(path)?;
    let all: std::result::Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    all.map_err(|_| {
        let text = format!("'{}' holds no certificates in PEM, or a damaged one", path.display());
        Error::new(ErrorKind::Config, text)
    })
}

/// What is wrong with a key is never said with words of its own: they would hold pieces of it.
fn bad_key(path: &Path) -> Error {
    let text =
        format!("'{}' holds no private key in PEM that can be used (ECDSA, Ed25519 or RSA)", path.display());
    Error::new(ErrorKind::Config, text)
}

fn read_key(path: &Path) -> Result<Vec<u8>> {
    let meta = fs::metadata(path).map_err(|e| Error::io("read", path, e).with_kind(ErrorKind::Config))?;
    // As PostgreSQL has it: for the owner alone, or root's and readable by a group.
    let allowed = if meta.uid() == 0 { 0o640 } else { 0o600 };
    if meta.mode() & 0o777 & !allowed != 0 {
        let text = format!(
            "the private key '{}' has mode {:04o}, so that others can read or change it; chmod 0600 it",
            path.display(),
            meta.mode() & 0o7777
        );
        return Err(Error::new(ErrorKind::Config, text));
    }
    read(path)
}

/// A whole file that is not too large to be one of these.
pub(super) fn read(path: &Path) -> Result<Vec<u8>> {
    let failed = |e| Error::io("read", path, e).with_kind(ErrorKind::Config);
    if !fs::metadata(path).map_err(failed)?.is_file() {
        let text = format!("'{}' is no regular file", path.display());
        return Err(Error::new(ErrorKind::Config, text));
    }
    let mut bytes = Vec::new();
    File::open(path).and_then(|f| f.take(FILE_MAX + 1).read_to_end(&mut bytes)).map_err(failed)?;
    if bytes.len() as u64 > FILE_MAX {
        let text = format!("'{}' is larger than {FILE_MAX} bytes; is it the right file?", path.display());
        return Err(Error::new(ErrorKind::Config, text));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_key_is_made_once_and_a_renewed_certificate_keeps_its_fingerprint() {
        let dir = tempfile::tempdir().unwrap();
        let first = ensure(dir.path(), "a").unwrap();
        assert_eq!(first.facts.names, ["a"]);
        for name in [KEY, CERTIFICATE, TURN] {
            let mode = fs::metadata(dir.path().join(name)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
        assert_eq!(ensure(dir.path(), "b").unwrap().facts, first.facts);
        let renewed = renew(dir.path(), "b", false).unwrap();
        assert!(renewed.fingerprint() == first.fingerprint() && renewed.facts.names == ["b"]);
        assert_ne!(renew(dir.path(), "b", true).unwrap().fingerprint(), first.fingerprint());
    }

    #[test]
    fn half_an_identity_is_completed_or_named() {
        let dir = tempfile::tempdir().unwrap();
        let first = ensure(dir.path(), "a").unwrap();
        fs::remove_file(dir.path().join(CERTIFICATE)).unwrap();
        assert_eq!(ensure(dir.path(), "a").unwrap().fingerprint(), first.fingerprint());
        fs::remove_file(dir.path().join(KEY)).unwrap();
        let e = ensure(dir.path(), "a").unwrap_err();
        assert!(e.kind() == ErrorKind::Missing && e.to_string().contains("--new-key"), "{e}");
        assert!(renew(dir.path(), "a", false).is_err(), "the key that was trusted is not quietly replaced");
        renew(dir.path(), "a", true).unwrap();
    }

    #[test]
    fn bad_files_are_named_and_no_key_is_in_the_words() {
        let dir = tempfile::tempdir().unwrap();
        let other = tempfile::tempdir().unwrap();
        ensure(dir.path(), "a").unwrap();
        ensure(other.path(), "b").unwrap();
        let (certificate, key) = (dir.path().join(CERTIFICATE), dir.path().join(KEY));
        let e = load(&certificate, &other.path().join(KEY)).unwrap_err().to_string();
        assert!(e.contains("is not of the key"), "{e}");
        let e = load(&key, &key).unwrap_err().to_string();
        assert!(e.contains("no certificate"), "{e}");
        let secret = fs::read_to_string(&key).unwrap();
        for damage in [secret.replace("MIG", "M!G"), secret.replace("END", "ENF"), "-----BEGIN x".to_owned()]
        {
            fs::write(&key, &damage).unwrap();
            let e = load(&certificate, &key).unwrap_err();
            let line = secret.lines().nth(1).unwrap();
            assert!(e.kind() == ErrorKind::Config && !format!("{e} {e:?}").contains(&line[4..20]), "{e}");
        }
        fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
        let e = load(&certificate, &key).unwrap_err().to_string();
        assert!(e.contains("chmod 0600"), "{e}");
    }
}
