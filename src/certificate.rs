//! What this program reads of an X.509 certificate: whose key it is, what names it says, and how long it holds.
//!
//! Signatures are not checked here: that a peer has the key is shown in the handshake, and that a CA vouches for the
//! certificate by the library that builds chains. Everything else of a certificate is skipped. The encoding is DER
//! (X.690) of the structure of RFC 5280, section 4.1:
//!
//! | field | what becomes of it |
//! | --- | --- |
//! | version, serial number, signature, issuer | skipped |
//! | validity: two times, UTCTime or GeneralizedTime in UTC | first and last second |
//! | subject | its common names (2.5.4.3) are names |
//! | subject public key info | SHA-256 of the whole element is the fingerprint |
//! | extension 2.5.29.17, subject alternative name | its DNS names are names |

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest, Sha256};

use crate::codec::DecodeError;

/// Most bytes of a certificate; those of public CAs have less than 4 KiB.
pub const CERTIFICATE_MAX: usize = 16 << 10;
/// Most names that are taken from one certificate.
const NAMES_MAX: usize = 64;
const PREFIX: &str = "sha256:";
const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];
const ALTERNATIVE_NAME: &[u8] = &[0x55, 0x1d, 0x11];

const INTEGER: u8 = 0x02;
const OCTETS: u8 = 0x04;
const OID: u8 = 0x06;
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const DNS_NAME: u8 = 0x82;
const VERSION: u8 = 0xa0;
const EXTENSIONS: u8 = 0xa3;

/// SHA-256 of a certificate's subject public key info, DER: the same for every certificate of the same key.
///
/// `openssl x509 -in node.crt -noout -pubkey | openssl pkey -pubin -outform der | sha256sum` prints it too.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Fingerprint(pub [u8; 32]);

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(PREFIX)?;
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Fingerprint {
    type Err = String;

    /// 64 hexadecimal digits, with or without `sha256:` before and colons between.
    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || {
            let shown: String = text.chars().take(100).collect();
            format!(
                "'{}' is no fingerprint; write what `towline id` prints: sha256: and 64 hexadecimal digits",
                shown.escape_debug()
            )
        };
        let lower = text.to_ascii_lowercase();
        let digits = lower.strip_prefix(PREFIX).unwrap_or(&lower);
        let digits: Vec<u8> = digits.bytes().filter(|b| *b != b':').collect();
        if digits.len() != 64 || !digits.iter().all(u8::is_ascii_hexdigit) {
            return Err(bad());
        }
        let mut out = [0; 32];
        for (byte, pair) in out.iter_mut().zip(digits.chunks_exact(2)) {
            let pair = std::str::from_utf8(pair).map_err(|_| bad())?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| bad())?;
        }
        Ok(Self(out))
    }
}

impl Serialize for Fingerprint {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Fingerprint {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

/// What is read of a certificate.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Facts {
    /// Whose key it is.
    pub fingerprint: Fingerprint,
    /// DNS names, and common names of the subject.
    pub names: Vec<String>,
    /// First second it holds, since 1970.
    pub not_before: i64,
    /// Last second it holds, since 1970.
    pub not_after: i64,
}

impl Facts {
    /// Reads the DER bytes of a certificate.
    ///
    /// # Errors
    /// Which part is not as the table of the module says.
    pub fn of(der: &[u8]) -> Result<Self, DecodeError> {
        if der.len() > CERTIFICATE_MAX {
            let (value, limit) = (der.len() as u64, CERTIFICATE_MAX as u64);
            return Err(DecodeError::TooLarge { what: "length of the certificate", value, limit });
        }
        let mut whole = Der(der);
        let mut outer = Der(whole.expect(SEQUENCE, "certificate")?);
        let mut to_be_signed = Der(outer.expect(SEQUENCE, "certificate body")?);
        to_be_signed.skip_if(VERSION, "version")?;
        to_be_signed.expect(INTEGER, "serial number")?;
        to_be_signed.expect(SEQUENCE, "signature algorithm")?;
        to_be_signed.expect(SEQUENCE, "issuer")?;
        let mut validity = Der(to_be_signed.expect(SEQUENCE, "validity")?);
        let (not_before, not_after) = (validity.time()?, validity.time()?);
        let (mut names, mut common) = (Vec::new(), Vec::new());
        common_names(to_be_signed.expect(SEQUENCE, "subject")?, &mut common)?;
        let before = to_be_signed.0;
        to_be_signed.expect(SEQUENCE, "public key")?;
        let key = &before[..before.len() - to_be_signed.0.len()];
        let fingerprint = Fingerprint(Sha256::digest(key).into());
        while !to_be_signed.0.is_empty() {
            let (tag, content) = to_be_signed.take("extensions")?;
            if tag == EXTENSIONS {
                dns_names(Der(content).expect(SEQUENCE, "extensions")?, &mut names)?;
            }
        }
        // What a certificate is for stands in its extensions first, since there are such.
        names.append(&mut common);
        names.dedup();
        names.truncate(NAMES_MAX);
        Ok(Self { fingerprint, names, not_before, not_after })
    }
}

fn common_names(subject: &[u8], names: &mut Vec<String>) -> Result<(), DecodeError> {
    let mut sets = Der(subject);
    while !sets.0.is_empty() {
        let mut set = Der(sets.expect(SET, "subject")?);
        while !set.0.is_empty() {
            let mut attribute = Der(set.expect(SEQUENCE, "subject")?);
            if attribute.expect(OID, "subject")? == COMMON_NAME {
                let (_, text) = attribute.take("common name")?;
                names.extend(std::str::from_utf8(text).ok().map(str::to_owned));
            }
        }
    }
    Ok(())
}

fn dns_names(extensions: &[u8], names: &mut Vec<String>) -> Result<(), DecodeError> {
    let mut extensions = Der(extensions);
    while !extensions.0.is_empty() {
        let mut extension = Der(extensions.expect(SEQUENCE, "extension")?);
        if extension.expect(OID, "extension")? != ALTERNATIVE_NAME {
            continue;
        }
        let (mut tag, mut content) = extension.take("alternative names")?;
        if tag != OCTETS {
            // Whether it is critical.
            (tag, content) = extension.take("alternative names")?;
        }
        if tag != OCTETS {
            return Err(DecodeError::Invalid { what: "alternative names", value: u64::from(tag) });
        }
        let mut list = Der(Der(content).expect(SEQUENCE, "alternative names")?);
        while !list.0.is_empty() && names.len() < NAMES_MAX {
            let (tag, name) = list.take("alternative name")?;
            if tag == DNS_NAME {
                names.extend(std::str::from_utf8(name).ok().map(str::to_owned));
            }
        }
    }
    Ok(())
}

/// The rest of a row of DER elements.
struct Der<'a>(&'a [u8]);

impl<'a> Der<'a> {
    /// Tag and content of the next element.
    fn take(&mut self, what: &'static str) -> Result<(u8, &'a [u8]), DecodeError> {
        let short = || DecodeError::Short(what);
        let [tag, first, rest @ ..] = self.0 else { return Err(short()) };
        let (len, rest) = if *first < 0x80 {
            (usize::from(*first), rest)
        } else {
            let bytes = usize::from(first & 0x7f);
            if bytes == 0 || bytes > 4 {
                return Err(DecodeError::Invalid { what, value: u64::from(*first) });
            }
            let (digits, rest) = rest.split_at_checked(bytes).ok_or_else(short)?;
            (digits.iter().fold(0_usize, |n, d| n << 8 | usize::from(*d)), rest)
        };
        let (content, rest) = rest.split_at_checked(len).ok_or_else(short)?;
        self.0 = rest;
        Ok((*tag, content))
    }

    fn expect(&mut self, tag: u8, what: &'static str) -> Result<&'a [u8], DecodeError> {
        match self.take(what)? {
            (t, content) if t == tag => Ok(content),
            (t, _) => Err(DecodeError::Invalid { what, value: u64::from(t) }),
        }
    }

    fn skip_if(&mut self, tag: u8, what: &'static str) -> Result<(), DecodeError> {
        if self.0.first() == Some(&tag) {
            self.take(what)?;
        }
        Ok(())
    }

    /// A time in seconds since 1970.
    fn time(&mut self) -> Result<i64, DecodeError> {
        let what = "time of validity";
        let (tag, text) = self.take(what)?;
        let bad = || DecodeError::Invalid { what, value: u64::from(tag) };
        let number = |digits: &[u8]| -> Result<i64, DecodeError> {
            digits.iter().try_fold(0, |n, d| match d {
                b'0'..=b'9' => Ok(n * 10 + i64::from(d - b'0')),
                _ => Err(bad()),
            })
        };
        let (year, rest) = match (tag, text.len()) {
            // RFC 5280, 4.1.2.5.1: 50 to 99 are of the last century.
            (UTC_TIME, 13) => {
                let year = number(&text[..2])?;
                (if year < 50 { 2000 + year } else { 1900 + year }, &text[2..])
            }
            (GENERALIZED_TIME, 15) => (number(&text[..4])?, &text[4..]),
            _ => return Err(bad()),
        };
        let part = |at: usize| number(&rest[at..at + 2]);
        let (month, day) = (part(0)?, part(2)?);
        let (hour, minute, second) = (part(4)?, part(6)?, part(8)?);
        let possible = (1..=12).contains(&month) && (1..=31).contains(&day) && hour < 24 && minute < 60;
        if !possible || second > 60 || rest[10] != b'Z' {
            return Err(bad());
        }
        Ok(days(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second)
    }
}

/// Days from 1970-01-01 to a day of the Gregorian calendar; the year counts from March, so that a leap day ends it.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let before_year = year * 365 + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    before_year + (month * 153 + 2) / 5 + day - 1 - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(names: &[&str], until: (i32, u8, u8)) -> Vec<u8> {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params =
            rcgen::CertificateParams::new(names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>()).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, "node-a");
        params.not_before = rcgen::date_time_ymd(2020, 2, 29);
        params.not_after = rcgen::date_time_ymd(until.0, until.1, until.2);
        params.self_signed(&key).unwrap().der().to_vec()
    }

    #[test]
    fn names_times_and_key_are_read() {
        let facts = Facts::of(&made(&["a.example", "b"], (2061, 3, 1))).unwrap();
        assert!(["node-a", "a.example", "b"].iter().all(|n| facts.names.iter().any(|m| m == n)), "{facts:?}");
        assert_eq!(facts.not_before, 1_582_934_400, "2020-02-29");
        assert_eq!(facts.not_after, 2_876_860_800, "2061-03-01, beyond what two digits of a year can say");
    }

    #[test]
    fn the_fingerprint_is_of_the_key_and_stays_when_the_certificate_is_renewed() {
        let key = rcgen::KeyPair::generate().unwrap();
        let der = |until: i32| {
            let mut params = rcgen::CertificateParams::new(vec![]).unwrap();
            params.not_after = rcgen::date_time_ymd(until, 1, 1);
            params.self_signed(&key).unwrap().der().to_vec()
        };
        let (old, new) = (Facts::of(&der(2030)).unwrap(), Facts::of(&der(2040)).unwrap());
        assert!(old.fingerprint == new.fingerprint && old.not_after < new.not_after);
        let text = old.fingerprint.to_string();
        assert_eq!(text.len(), 7 + 64);
        for shape in [text.clone(), text.to_uppercase(), text[7..].to_owned()] {
            assert_eq!(shape.parse::<Fingerprint>(), Ok(old.fingerprint), "{shape}");
        }
        for bad in ["", "sha256:", "sha256:zz", &text[..70], "\u{e9}"] {
            assert!(bad.parse::<Fingerprint>().unwrap_err().contains("towline id"), "{bad}");
        }
    }

    #[test]
    fn no_damaged_byte_is_a_panic() {
        let good = made(&["a"], (2040, 1, 1));
        for at in 0..good.len() {
            for value in [0, 0x7f, 0x80, 0x84, 0xff, good[at] ^ 1] {
                let mut bad = good.clone();
                bad[at] = value;
                let _ = Facts::of(&bad);
            }
            assert!(Facts::of(&good[..at]).is_err(), "cut at {at}");
        }
        assert!(Facts::of(&vec![0x30; CERTIFICATE_MAX + 1]).is_err());
    }

    #[test]
    fn days_are_counted_as_the_calendar_does() {
        for ((y, m, d), want) in
            [((1970, 1, 1), 0), ((2000, 2, 29), 11_016), ((2000, 3, 1), 11_017), ((2100, 3, 1), 47_541)]
        {
            assert_eq!(days(y, m, d), want, "{y}-{m}-{d}");
        }
    }
}
