//! Rules of single values: names, addresses, directories, patterns.

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::Path;

use crate::disk::settled;
use crate::error::{Error, ErrorKind, Result, distance};
use crate::session::{UPSTREAMS_MAX, valid_name};
use crate::wire::NAME_MAX;

/// A node's name goes into slots, logs and JSON: what its peers take for one.
///
/// # Errors
/// [`ErrorKind::Config`] with the rule.
pub fn check_name(name: &str) -> Result<()> {
    if valid_name(name) {
        return Ok(());
    }
    let text = format!(
        "name '{}' is not allowed; use 1 to {NAME_MAX} letters, digits, '.', '_' or '-', the first a letter or digit",
        name.escape_debug()
    );
    Err(Error::new(ErrorKind::Config, text))
}

/// A level, or a list of filters like `towline::capture=debug`, as what filters the log.
///
/// # Errors
/// [`ErrorKind::Config`] when it is neither.
pub fn log_filter(text: &str) -> Result<tracing_subscriber::EnvFilter> {
    let level = |word: &str| word == "off" || word.parse::<tracing::Level>().is_ok();
    // The library's parser takes more, and dies of some of it: only what is written here gets there.
    let target = |word: &str| {
        !word.is_empty() && word.bytes().all(|b| b.is_ascii_alphanumeric() || b"_:-".contains(&b))
    };
    let sound = text.split(',').all(|part| match part.split_once('=') {
        Some((name, word)) => target(name) && level(word),
        None => level(part),
    });
    // The watcher's library reports every watch of a removed directory; that is no news to an operator.
    let filter = sound.then(|| tracing_subscriber::EnvFilter::try_new(format!("notify=error,{text}")));
    match filter {
        Some(Ok(filter)) => Ok(filter),
        _ => {
            let text = format!(
                "log level '{}' is none; write error, warn, info, debug or trace, or a list like \
                 info,towline::capture=debug",
                text.escape_debug()
            );
            Err(Error::new(ErrorKind::Config, text))
        }
    }
}

/// The two directories must not contain each other: towline's own writes would replicate themselves.
pub fn check_apart(data: &Path, state: &Path) -> Result<()> {
    let (data, state) = (settled(data), settled(state));
    if data.starts_with(&state) || state.starts_with(&data) {
        let text = format!(
            "data directory '{}' and state directory '{}' lie within each other; give towline a state directory of its own",
            data.display(),
            state.display()
        );
        return Err(Error::new(ErrorKind::Config, text));
    }
    Ok(())
}

/// Whether the path `inner`, which need not be there yet, is `outer` or below it.
#[must_use]
pub fn is_within(inner: &Path, outer: &Path) -> bool {
    settled(inner).starts_with(settled(outer))
}

/// Checks the form `HOST:PORT` without asking anybody who HOST is.
pub fn check_address(key: &str, text: &str, lowest: u16) -> Result<()> {
    let port =
        text.rsplit_once(':').filter(|(host, _)| !host.is_empty()).and_then(|(_, p)| p.parse::<u16>().ok());
    if port.is_some_and(|p| p >= lowest) {
        return Ok(());
    }
    let text = format!(
        "{key} is '{}'; write HOST:PORT, like 127.0.0.1:7654, with a port of {lowest} to 65535",
        text.escape_debug()
    );
    Err(Error::new(ErrorKind::Config, text))
}

/// A pattern that can match no path, because paths are relative and have no empty, `.` or `..` parts.
pub(super) fn check_exclude(pattern: &str) -> Result<()> {
    globset::Glob::new(pattern).map_err(|e| {
        Error::new(ErrorKind::Config, format!("exclude pattern: {e}; write it like 'cache/*.tmp'"))
    })?;
    let below = pattern.strip_prefix('/').unwrap_or(pattern);
    if below.split('/').all(|part| !matches!(part, "" | "." | "..")) {
        return Ok(());
    }
    let text = format!(
        "exclude pattern '{}' matches nothing: patterns are of paths below the data directory, without '/' at the \
         end and without '.' or '..' between; write it like 'cache/*.tmp'",
        pattern.escape_debug()
    );
    Err(Error::new(ErrorKind::Config, text))
}

/// Resolves `HOST:PORT`.
pub fn address(text: &str) -> Result<SocketAddr> {
    let bad = |why: String| {
        Error::new(
            ErrorKind::Config,
            format!("'{text}' is not an address ({why}); write HOST:PORT, like 127.0.0.1:7654"),
        )
    };
    text.to_socket_addrs()
        .map_err(|e| bad(e.to_string()))?
        .next()
        .ok_or_else(|| bad("no address found".to_owned()))
}

/// From serde's "unknown field `x`, expected one of `a`, `b`": the expected name nearest to `x`.
pub(super) fn nearest(message: &str) -> Option<String> {
    let rest = message.strip_prefix("unknown field `")?;
    let (given, rest) = rest.split_once('`')?;
    let names = rest.split('`').skip(1).step_by(2);
    names.map(|n| (distance(given, n), n)).min().filter(|(d, _)| *d <= 4).map(|(_, n)| n.to_owned())
}

/// The addresses in a list with commas between them.
pub(super) fn upstreams(list: &str) -> impl Iterator<Item = &str> {
    list.split(',').map(str::trim)
}

/// Each must be an address, none twice, and not too many.
pub(super) fn check_upstreams(list: &str) -> Result<()> {
    let mut known = Vec::new();
    for one in upstreams(list) {
        check_address("leader", one, 1)?;
        if known.contains(&one) {
            return Err(Error::new(
                ErrorKind::Config,
                format!("leader names '{one}' twice; name each node once"),
            ));
        }
        known.push(one);
    }
    if known.len() > UPSTREAMS_MAX {
        let text = format!("leader names {} nodes; the most is {UPSTREAMS_MAX}", known.len());
        return Err(Error::new(ErrorKind::Config, text));
    }
    Ok(())
}

/// A text, or a list of texts, which is kept as one with commas between them.
pub(super) fn one_or_more<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> std::result::Result<Option<String>, D::Error> {
    struct OneOrMore;
    impl<'de> serde::de::Visitor<'de> for OneOrMore {
        type Value = Option<String>;
        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("a string HOST:PORT or a list of such strings")
        }
        fn visit_str<E>(self, one: &str) -> std::result::Result<Self::Value, E> {
            Ok(Some(one.to_owned()))
        }
        fn visit_seq<A: serde::de::SeqAccess<'de>>(
            self,
            mut seq: A,
        ) -> std::result::Result<Self::Value, A::Error> {
            let mut all = Vec::new();
            while let Some(one) = seq.next_element::<String>()? {
                all.push(one);
            }
            Ok(Some(all.join(",")))
        }
    }
    deserializer.deserialize_any(OneOrMore)
}
