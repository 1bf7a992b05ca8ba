//! Reading a manifest.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use serde::Deserializer as _;
use serde::de::{DeserializeSeed, Error as _, MapAccess, SeqAccess, Visitor};
use sha2::{Digest as _, Sha256};

use super::{Base, Error, File, Form, Manifest, Part, RANGES_MAX, Range, Rules, Sha, VERSION, check_label};
use crate::moment::Moment;
use crate::position::{FileId, Lsn, SystemId, TimelineId};
use crate::record::Time;

/// Most bytes of a program's version.
const PROGRAM_MAX: usize = 64;
const LAST: &[u8] = b"\"manifest_sha256\": \"";

pub(super) fn check_program(text: &str) -> Result<(), String> {
    if (1..=PROGRAM_MAX).contains(&text.len()) {
        return Ok(());
    }
    Err(format!("program has {} bytes; 1 to {PROGRAM_MAX} are allowed", text.len()))
}

/// Checks that a newer program did not write it.
pub(super) fn version(bytes: &[u8]) -> Result<(), Error> {
    let after = |rest: &'_ [u8], token: &[u8]| -> Option<usize> {
        let skip = rest.iter().take_while(|b| b.is_ascii_whitespace()).count();
        rest.get(skip..)?.starts_with(token).then_some(skip + token.len())
    };
    let mut at = 0;
    for token in [&b"{"[..], b"\"towline_backup\"", b":", b""] {
        at += after(bytes.get(at..).unwrap_or_default(), token).unwrap_or(bytes.len());
    }
    let rest = bytes.get(at..).unwrap_or_default();
    let digits = rest.iter().take_while(|b| b.is_ascii_digit()).count();
    let number = rest.get(..digits).and_then(|d| std::str::from_utf8(d).ok()).and_then(|d| d.parse().ok());
    match number {
        Some(v) if v == u64::from(VERSION) => Ok(()),
        Some(found) => Err(Error::Version { found }),
        None => {
            let rule = "it does not begin with { \"towline_backup\": and the number of its format";
            Err(Error::Line { line: 1, rule: rule.to_owned() })
        }
    }
}

/// What the last line of a manifest says, found right: the name by which an incremental backup knows its base.
///
/// # Errors
/// It is of another version, there is no such line, or the checksum is not that of the lines before.
pub fn seal(bytes: &[u8]) -> Result<Sha, Error> {
    version(bytes)?;
    let count = bytes.iter().filter(|b| **b == b'\n').count();
    let Some(whole) = bytes.strip_suffix(b"\n") else {
        let rule = "its last line has no line feed: the manifest is cut".to_owned();
        return Err(Error::Line { line: count + 1, rule });
    };
    let start = whole.iter().rposition(|b| *b == b'\n').map_or(0, |n| n + 1);
    let (before, last) = whole.split_at(start);
    let stored = last
        .strip_prefix(LAST)
        .and_then(|l| l.strip_suffix(b"\"}"))
        .and_then(|l| std::str::from_utf8(l).ok())
        .and_then(|l| sha(l).ok());
    let Some(stored) = stored else {
        let rule = "it is not \"manifest_sha256\": \"64 hexadecimal digits\"}, as the last line is: the manifest is cut";
        return Err(Error::Line { line: count, rule: rule.to_owned() });
    };
    let computed = Sha(Sha256::digest(before).into());
    if stored == computed { Ok(stored) } else { Err(Error::Checksum { line: count, stored, computed }) }
}

pub(super) fn parse(bytes: &[u8]) -> Result<Manifest, Error> {
    let text = std::str::from_utf8(bytes).map_err(|e| {
        let before = bytes.get(..e.valid_up_to()).unwrap_or_default();
        let line = before.iter().filter(|b| **b == b'\n').count() + 1;
        Error::Line { line, rule: "it is not UTF-8".to_owned() }
    })?;
    let mut json = serde_json::Deserializer::from_str(text);
    let read = json.deserialize_map(Whole).and_then(|m| json.end().map(|()| m));
    read.map_err(|e| {
        let (line, text) = (e.line(), e.to_string());
        let place = format!(" at line {line} column {}", e.column());
        Error::Line { line, rule: text.strip_suffix(&place).unwrap_or(&text).to_owned() }
    })
}

fn hex(text: &str) -> Option<Vec<u8>> {
    let digit = |b: u8| match b {
        b'0'..=b'9' => Some(b - b'0'),
        b'a'..=b'f' => Some(b - b'a' + 10),
        _ => None,
    };
    let pair = |p: &[u8]| match p {
        [a, b] => Some(digit(*a)? << 4 | digit(*b)?),
        _ => None,
    };
    text.as_bytes().chunks(2).map(pair).collect()
}

fn sha(text: &str) -> Result<Sha, String> {
    let bytes = hex(text).and_then(|b| b.try_into().ok());
    bytes.map(Sha).ok_or_else(|| format!("{text:?} is no SHA-256: 64 hexadecimal digits in lower case"))
}

fn mtime(text: &str) -> Result<Time, String> {
    let wrong = || format!("{text:?} is no mtime: seconds since 1970, a dot, and nine digits");
    let (sec, nsec) = text.split_once('.').ok_or_else(wrong)?;
    let plain = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
    if !plain(sec.strip_prefix('-').unwrap_or(sec)) || !plain(nsec) || nsec.len() != 9 {
        return Err(wrong());
    }
    match (sec.parse(), nsec.parse()) {
        (Ok(sec), Ok(nsec)) => Ok(Time { sec, nsec }),
        _ => Err(wrong()),
    }
}

fn form(text: &str) -> Result<Form, String> {
    let found = Form::ALL.into_iter().find(|f| f.word() == text);
    found.ok_or_else(|| format!("{text:?} is no form: tree, tar or packs"))
}

fn system(text: &str) -> Result<SystemId, String> {
    let bytes = hex(text).and_then(|b| b.try_into().ok()).map(u64::from_be_bytes);
    let id = bytes.filter(|v| *v != 0).map(SystemId);
    id.ok_or_else(|| {
        format!("{text:?} is no system id: 16 hexadecimal digits in lower case, not all of them 0")
    })
}

fn lsn(text: &str) -> Result<Lsn, String> {
    text.parse().map_err(|e: crate::position::ParseError| e.to_string())
}

fn moment(text: &str) -> Result<i64, String> {
    text.parse().map(|Moment(ns)| ns).map_err(|e: crate::moment::NoMoment| e.to_string())
}

fn label(text: &str) -> Result<String, String> {
    check_label(text).map(|()| text.to_owned())
}

/// A text that `read` makes a value of.
struct Text<T>(fn(&str) -> Result<T, String>);

impl<'de, T> DeserializeSeed<'de> for Text<T> {
    type Value = T;
    fn deserialize<D: serde::Deserializer<'de>>(self, d: D) -> Result<T, D::Error> {
        d.deserialize_str(self)
    }
}

impl<T> Visitor<'_> for Text<T> {
    type Value = T;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text")
    }
    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<T, E> {
        (self.0)(text).map_err(E::custom)
    }
}

/// The fields of an object, in their order.
struct Fields<A>(A);

impl<'de, A: MapAccess<'de>> Fields<A> {
    fn key(&mut self) -> Result<Option<Cow<'de, str>>, A::Error> {
        self.0.next_key()
    }

    fn expect(&mut self, name: &str) -> Result<(), A::Error> {
        match self.key()? {
            Some(key) if key == name => Ok(()),
            Some(key) => {
                let key: String = key.chars().take(40).collect();
                Err(A::Error::custom(format!("{name:?} is expected here, not {key:?}")))
            }
            None => Err(A::Error::custom(format!("there is no {name:?}"))),
        }
    }

    fn seed<S: DeserializeSeed<'de>>(&mut self, name: &str, seed: S) -> Result<S::Value, A::Error> {
        self.expect(name)?;
        // The name goes in front of what is wrong; the place stays at its end, where serde_json finds it again.
        self.0.next_value_seed(seed).map_err(|e| A::Error::custom(format!("{name}: {e}")))
    }

    fn text<T>(&mut self, name: &str, read: fn(&str) -> Result<T, String>) -> Result<T, A::Error> {
        self.seed(name, Text(read))
    }

    fn value<T: serde::Deserialize<'de>>(&mut self, name: &str) -> Result<T, A::Error> {
        self.seed(name, PhantomData::<T>)
    }

    fn end(&mut self) -> Result<(), A::Error> {
        match self.key()? {
            None => Ok(()),
            Some(key) => {
                let key: String = key.chars().take(40).collect();
                Err(A::Error::custom(format!("{key:?} is one key too many")))
            }
        }
    }
}

fn timeline<'de, A: MapAccess<'de>>(f: &mut Fields<A>) -> Result<TimelineId, A::Error> {
    match f.value("timeline")? {
        0 => Err(A::Error::custom("timeline: the first is 1")),
        v => Ok(TimelineId(v)),
    }
}

/// The whole object.
struct Whole;

impl<'de> Visitor<'de> for Whole {
    type Value = Manifest;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the object of a manifest")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Manifest, A::Error> {
        let broken = A::Error::custom::<String>;
        let mut f = Fields(map);
        if f.value::<u32>("towline_backup")? != VERSION {
            return Err(A::Error::custom("its format is another one"));
        }
        let form = f.text("form", form)?;
        let label = f.text("label", label)?;
        let system = f.text("system", system)?;
        let timeline = timeline(&mut f)?;
        let mut rules = Rules::new(form, timeline);
        let (start, end) = (f.text("start", lsn)?, f.text("end", lsn)?);
        Rules::span(start, end).map_err(broken)?;
        let (start_time, end_time) = (f.text("start_time", moment)?, f.text("end_time", moment)?);
        let exact = f.value("exact")?;
        let created = f.text("created", moment)?;
        let program = f.text("program", |p| check_program(p).map(|()| p.to_owned()))?;
        let base = f.seed("base", Stands)?;
        rules.base(base.as_ref(), end).map_err(broken)?;
        let mut ranges = 0;
        let few = |_: &Range| {
            ranges += 1;
            if ranges <= RANGES_MAX { Ok(()) } else { Err(format!("there are more than {RANGES_MAX}")) }
        };
        let log = f.seed("log", List(few, PhantomData))?;
        rules.log(&log, start, end).map_err(broken)?;
        let parts = f.seed("parts", List(|p: &Part| rules.part(p), PhantomData))?;
        rules.parts_end().map_err(broken)?;
        let files = f.seed("files", List(|f: &File| rules.file(f), PhantomData))?;
        f.text("manifest_sha256", sha)?;
        f.end()?;
        Ok(Manifest {
            form,
            label,
            system,
            timeline,
            start,
            end,
            start_time,
            end_time,
            exact,
            created,
            program,
            base,
            log,
            parts,
            files,
        })
    }
}

/// What an incremental backup stands on, or null.
struct Stands;

impl<'de> DeserializeSeed<'de> for Stands {
    type Value = Option<Base>;
    fn deserialize<D: serde::Deserializer<'de>>(self, d: D) -> Result<Option<Base>, D::Error> {
        d.deserialize_option(self)
    }
}

impl<'de> Visitor<'de> for Stands {
    type Value = Option<Base>;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("null or an object")
    }
    fn visit_none<E>(self) -> Result<Option<Base>, E> {
        Ok(None)
    }
    fn visit_some<D: serde::Deserializer<'de>>(self, d: D) -> Result<Option<Base>, D::Error> {
        d.deserialize_map(self)
    }
    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Option<Base>, A::Error> {
        let mut f = Fields(map);
        let (label, end) = (f.text("label", label)?, f.text("end", lsn)?);
        let manifest_sha256 = f.text("manifest_sha256", sha)?;
        f.end()?;
        Ok(Some(Base { label, end, manifest_sha256 }))
    }
}

/// An element of an array.
trait Element: Sized {
    fn read<'de, A: MapAccess<'de>>(f: &mut Fields<A>) -> Result<Self, A::Error>;
}

impl Element for Range {
    fn read<'de, A: MapAccess<'de>>(f: &mut Fields<A>) -> Result<Self, A::Error> {
        let timeline = timeline(f)?;
        Ok(Self { timeline, start: f.text("start", lsn)?, end: f.text("end", lsn)? })
    }
}

impl Element for Part {
    fn read<'de, A: MapAccess<'de>>(f: &mut Fields<A>) -> Result<Self, A::Error> {
        Ok(Self { name: f.value("name")?, size: f.value("size")?, sha256: f.text("sha256", sha)? })
    }
}

impl Element for File {
    fn read<'de, A: MapAccess<'de>>(f: &mut Fields<A>) -> Result<Self, A::Error> {
        let path = match f.key()?.as_deref() {
            Some("path") => f.0.next_value::<String>()?.into_bytes(),
            Some("path_hex") => {
                let read = |t: &str| hex(t).ok_or_else(|| "path_hex is not hexadecimal".to_owned());
                f.0.next_value_seed(Text(read))?
            }
            _ => return Err(A::Error::custom("\"path\" or \"path_hex\" is expected first")),
        };
        Ok(Self {
            path,
            id: FileId(f.value("id")?),
            size: f.value("size")?,
            mtime: f.text("mtime", mtime)?,
            sha256: f.text("sha256", sha)?,
        })
    }
}

/// An element and the rules for it: looked at where it ends, so that a broken one is told with this line.
struct One<'a, T, F>(&'a mut F, PhantomData<T>);

impl<'de, T: Element, F: FnMut(&T) -> Result<(), String>> DeserializeSeed<'de> for One<'_, T, F> {
    type Value = T;
    fn deserialize<D: serde::Deserializer<'de>>(self, d: D) -> Result<T, D::Error> {
        d.deserialize_map(self)
    }
}

impl<'de, T: Element, F: FnMut(&T) -> Result<(), String>> Visitor<'de> for One<'_, T, F> {
    type Value = T;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }
    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
        let mut fields = Fields(map);
        let item = T::read(&mut fields)?;
        fields.end()?;
        (self.0)(&item).map_err(A::Error::custom)?;
        Ok(item)
    }
}

/// An array and the rules for its elements.
struct List<T, F>(F, PhantomData<T>);

impl<'de, T: Element, F: FnMut(&T) -> Result<(), String>> DeserializeSeed<'de> for List<T, F> {
    type Value = Vec<T>;
    fn deserialize<D: serde::Deserializer<'de>>(self, d: D) -> Result<Vec<T>, D::Error> {
        d.deserialize_seq(self)
    }
}

impl<'de, T: Element, F: FnMut(&T) -> Result<(), String>> Visitor<'de> for List<T, F> {
    type Value = Vec<T>;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array")
    }
    fn visit_seq<A: SeqAccess<'de>>(mut self, mut seq: A) -> Result<Vec<T>, A::Error> {
        let mut all = Vec::new();
        while let Some(item) = seq.next_element_seed(One(&mut self.0, PhantomData))? {
            all.push(item);
        }
        Ok(all)
    }
}
