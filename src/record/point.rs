//! Names of restore points.

use std::fmt;
use std::str::FromStr;

/// Most bytes of a restore point's name, as with PostgreSQL.
pub const POINT_NAME_MAX: usize = 63;

/// Words that mean another target, or are taken for a time elsewhere.
const TAKEN: [&str; 9] =
    ["exact", "latest", "now", "today", "tomorrow", "yesterday", "epoch", "infinity", "allballs"];

/// The name of a restore point: 1 to 63 ASCII letters, digits, `.`, `_` and `-`, the first one a letter. So none can be
/// taken for a position or a time.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PointName {
    bytes: [u8; POINT_NAME_MAX],
    len: u8,
}

impl PointName {
    /// The name as it stands in the record.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.len)).unwrap_or_default()
    }
}

impl FromStr for PointName {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let fits = s.len() <= POINT_NAME_MAX
            && s.starts_with(|c: char| c.is_ascii_alphabetic())
            && s.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
        if !fits {
            return Err(format!(
                "'{}' can't name a restore point: write 1 to {POINT_NAME_MAX} letters, digits, '.', '_' or '-', a letter \
                 first",
                s.escape_debug()
            ));
        }
        if TAKEN.iter().any(|t| t.eq_ignore_ascii_case(s)) {
            return Err(format!(
                "'{s}' can't name a restore point: the word means another target; choose another"
            ));
        }
        let mut bytes = [0; POINT_NAME_MAX];
        bytes[..s.len()].copy_from_slice(s.as_bytes());
        Ok(Self { bytes, len: u8::try_from(s.len()).unwrap_or(0) })
    }
}

impl fmt::Display for PointName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.as_bytes().escape_ascii(), f)
    }
}

impl fmt::Debug for PointName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_word_that_is_no_other_target() {
        let longest = "a".repeat(POINT_NAME_MAX);
        for good in ["a", "before-upgrade", "V16.2_final", "exactly", &longest] {
            let name: PointName = good.parse().unwrap();
            assert_eq!((name.to_string().as_str(), name.as_bytes()), (good, good.as_bytes()));
        }
        let long = "a".repeat(POINT_NAME_MAX + 1);
        for bad in ["", "1st", "-a", ".a", "a b", "a/b", "a:b", "a\n", "\u{e9}", "latest", "NOW", &long] {
            let e = bad.parse::<PointName>().unwrap_err();
            assert!(e.contains(&bad.escape_debug().to_string()), "{e}");
        }
    }
}
