//! Instants as text: RFC 3339, as people write them and as manifests carry them.

use std::fmt;
use std::str::FromStr;

/// Nanoseconds of a day.
const DAY_NS: i64 = 86_400_000_000_000;

/// An instant, nanoseconds since 1970 UTC. Printed in UTC, without digits that are zero at the end.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Moment(pub i64);

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (days, rest) = (self.0.div_euclid(DAY_NS), self.0.rem_euclid(DAY_NS));
        let (year, month, day) = civil(days);
        let (second, frac) = (rest / 1_000_000_000, rest % 1_000_000_000);
        let (h, m, s) = (second / 3600, second / 60 % 60, second % 60);
        write!(f, "{year:04}-{month:02}-{day:02}T{h:02}:{m:02}:{s:02}")?;
        if frac > 0 {
            write!(f, ".{}", format!("{frac:09}").trim_end_matches('0'))?;
        }
        f.write_str("Z")
    }
}

/// Why a text is no [`Moment`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no time with its zone; write one like 2026-11-25T17:30:00Z or 2026-11-25 18:30:00+01:00")]
pub struct NoMoment(String);

impl FromStr for Moment {
    type Err = NoMoment;

    fn from_str(s: &str) -> Result<Self, NoMoment> {
        let wrong = || NoMoment(s.to_owned());
        let at: toml::value::Datetime = s.parse().map_err(|_| wrong())?;
        let (Some(date), Some(time), Some(offset)) = (at.date, at.time, at.offset) else {
            return Err(wrong());
        };
        let minutes = match offset {
            toml::value::Offset::Z => 0,
            toml::value::Offset::Custom { minutes } => i64::from(minutes),
        };
        let clock =
            i64::from(time.hour) * 3600 + i64::from(time.minute) * 60 + i64::from(time.second.unwrap_or(0));
        let day = days(i64::from(date.year), i64::from(date.month), i64::from(date.day));
        let seconds = day * 86_400 + clock - minutes * 60;
        let ns = i128::from(seconds) * 1_000_000_000 + i128::from(time.nanosecond.unwrap_or(0));
        i64::try_from(ns).map(Self).map_err(|_| wrong())
    }
}

/// Days since 1970 of a date of the Gregorian calendar.
fn days(year: i64, month: i64, day: i64) -> i64 {
    // Years that begin in March have their leap day at the end; 400 of them are 146,097 days.
    let y = if month <= 2 { year - 1 } else { year };
    let (era, of_era) = (y.div_euclid(400), y.rem_euclid(400));
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

/// The date of a day since 1970.
fn civil(day: i64) -> (i64, i64, i64) {
    let z = day + 719_468;
    let (era, of_era) = (z.div_euclid(146_097), z.rem_euclid(146_097));
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let m = (5 * of_year + 2) / 153;
    let month = if m < 10 { m + 3 } else { m - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, of_year - (153 * m + 2) / 5 + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn days_and_dates_are_each_others_inverse() {
        for day in [-1_000_000, -1, 0, 59, 60, 11_016, 20_000, 1_000_000] {
            let (y, m, d) = civil(day);
            assert_eq!(days(y, m, d), day);
        }
        assert_eq!(Moment(i64::MAX).to_string(), "2262-04-11T23:47:16.854775807Z");
        assert_eq!("2262-04-11T23:47:16.854775807Z".parse(), Ok(Moment(i64::MAX)));
        assert!("2262-04-11T23:47:16.854775808Z".parse::<Moment>().is_err());
        assert!("2026-11-25T17:30:00".parse::<Moment>().unwrap_err().to_string().contains("with its zone"));
    }

    proptest! {
        #[test]
        fn what_is_shown_is_read_back(ns: i64) {
            prop_assert_eq!(Moment(ns).to_string().parse(), Ok(Moment(ns)));
        }
    }
}
