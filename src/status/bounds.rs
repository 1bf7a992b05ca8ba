//! Limits of `towline check`: where a figure becomes a warning, and where it becomes critical.

use std::cmp::Ordering;
use std::fmt::Display;
use std::str::FromStr;

use super::Severity;

/// Where a figure becomes a warning and where it becomes critical.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bounds<T> {
    /// From here on a warning.
    pub warning: Option<T>,
    /// From here on critical.
    pub critical: Option<T>,
}

impl<T> Default for Bounds<T> {
    fn default() -> Self {
        Self { warning: None, critical: None }
    }
}

impl<T: FromStr<Err: Display> + PartialOrd> Bounds<T> {
    /// Reads the bounds of a figure that is a problem above them: `WARNING,CRITICAL`; one value is the critical one;
    /// `off` is none.
    ///
    /// # Errors
    /// In words: what is no value, or a warning that would come after what is critical.
    pub fn most(text: &str) -> Result<Self, String> {
        Self::read(text, Ordering::Greater, "smaller")
    }

    /// The same for a figure that is a problem below them.
    ///
    /// # Errors
    /// As [`Self::most`].
    pub fn least(text: &str) -> Result<Self, String> {
        Self::read(text, Ordering::Less, "larger")
    }

    fn read(text: &str, wrong: Ordering, first: &str) -> Result<Self, String> {
        let one = |t: &str| t.trim().parse::<T>().map_err(|e| e.to_string());
        let Some((before, after)) = text.split_once(',') else {
            let critical = if text == "off" { None } else { Some(one(text)?) };
            return Ok(Self { warning: None, critical });
        };
        let (warning, critical) = (one(before)?, one(after)?);
        let (before, after) = (before.trim(), after.trim());
        match warning.partial_cmp(&critical) {
            None => Err(format!(
                "'{before}' and '{after}' can't be compared; give the warning and the critical value in one unit"
            )),
            Some(order) if order == wrong => Err(format!(
                "the warning at '{before}' would never come before the critical '{after}'; write \
                 WARNING,CRITICAL, here the {first} one first"
            )),
            Some(_) => Ok(Self { warning: Some(warning), critical: Some(critical) }),
        }
    }
}

impl<T: Copy> Bounds<T> {
    /// The same bounds in another unit.
    #[must_use]
    pub fn map<U>(self, f: impl Fn(T) -> U) -> Bounds<U> {
        Bounds { warning: self.warning.map(&f), critical: self.critical.map(&f) }
    }

    pub(super) fn judge(&self, beyond: impl Fn(T) -> bool) -> Severity {
        match (self.critical.is_some_and(&beyond), self.warning.is_some_and(&beyond)) {
            (true, _) => Severity::Critical,
            (_, true) => Severity::Warning,
            _ => Severity::Ok,
        }
    }
}

/// Room that has to be left on a file system.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Free {
    /// Bytes.
    Bytes(u64),
    /// A share of the file system.
    Percent(f64),
}

/// Bytes and a share have no order before there is a file system.
impl PartialOrd for Free {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        match (self, other) {
            (Self::Bytes(a), Self::Bytes(b)) => a.partial_cmp(b),
            (Self::Percent(a), Self::Percent(b)) => a.partial_cmp(b),
            _ => None,
        }
    }
}

impl FromStr for Free {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("'{text}' is not room on a disk; write a size like 10G, or a share like 5%");
        match text.strip_suffix('%') {
            Some(share) => {
                let share: f64 = share.parse().map_err(|_| bad())?;
                if (0.0..=100.0).contains(&share) { Ok(Self::Percent(share)) } else { Err(bad()) }
            }
            None => {
                let at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
                let shift = match &text[at..] {
                    "" => 0,
                    "k" => 10,
                    "M" => 20,
                    "G" => 30,
                    "T" => 40,
                    _ => return Err(bad()),
                };
                let number: u64 = text[..at].parse().map_err(|_| bad())?;
                number.checked_mul(1 << shift).map(Self::Bytes).ok_or_else(bad)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Size, Span};

    #[test]
    fn bounds_are_read_as_written() {
        let b = Bounds::<u64>::most;
        assert_eq!(b("5,9"), Ok(Bounds { warning: Some(5), critical: Some(9) }));
        assert_eq!(b("5, 5"), Ok(Bounds { warning: Some(5), critical: Some(5) }));
        assert_eq!(b("9"), Ok(Bounds { warning: None, critical: Some(9) }));
        assert_eq!(b("off"), Ok(Bounds::default()));
        for bad in ["", "5,", "x", "1,2,3", "off,9"] {
            assert!(b(bad).is_err(), "{bad}");
        }
        let f = |t: &str| t.parse::<Free>();
        assert_eq!((f("10G"), f("2.5%")), (Ok(Free::Bytes(10 << 30)), Ok(Free::Percent(2.5))));
        for bad in ["101%", "-1", "1X", "", "%", "NaN%", "99999999T"] {
            assert!(f(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_warning_that_never_comes_first_is_refused() {
        let refused = |e: Result<(), String>, words: &str| {
            let e = e.unwrap_err();
            assert!(e.contains(words), "{words}: {e}");
        };
        refused(Bounds::<Span>::most("60s,30s").map(drop), "here the smaller one first");
        refused(Bounds::<Span>::most("2m,90s").map(drop), "'2m' would never come before the critical '90s'");
        refused(Bounds::<Size>::most("1M,1000k").map(drop), "smaller");
        refused(Bounds::<u64>::least("1,2").map(drop), "here the larger one first");
        refused(Bounds::<Free>::least("2%,5%").map(drop), "larger");
        refused(Bounds::<Free>::least("5%,2G").map(drop), "'5%' and '2G' can't be compared");
        assert!(Bounds::<Free>::least("5G,2G").is_ok() && Bounds::<u64>::least("2,1").is_ok());
        assert!(Bounds::<Span>::most("90s,2m").is_ok());
    }
}
