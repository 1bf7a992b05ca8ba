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

/// What a clock on the wall shows: a time without its zone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Wall {
    /// Year, month and day.
    pub date: (u16, u8, u8),
    /// Hour, minute and second.
    pub clock: (u8, u8, u8),
    /// Of the second.
    pub nanosecond: u32,
}

impl Wall {
    /// Reads a time without zone, like 2026-11-24 14:05; `None`: it is none.
    #[must_use]
    pub fn parse(s: &str) -> Option<Self> {
        let at: toml::value::Datetime = s.parse().ok()?;
        let (date, time) = at.date.zip(at.time).filter(|_| at.offset.is_none())?;
        Some(Self {
            date: (date.year, date.month, date.day),
            clock: (time.hour, time.minute, time.second.unwrap_or(0)),
            nanosecond: time.nanosecond.unwrap_or(0),
        })
    }

    /// The instant, by what the clock of a place makes of it: seconds since 1970 in winter and in summer, if it shows this
    /// then.
    ///
    /// # Errors
    /// It never shows this, or twice.
    pub fn instant(&self, s: &str, winter: Option<i64>, summer: Option<i64>) -> Result<Moment, String> {
        let seconds = match (winter, summer) {
            (Some(a), Some(b)) if a != b => {
                let (a, b) =
                    (Moment(b.saturating_mul(1_000_000_000)), Moment(a.saturating_mul(1_000_000_000)));
                return Err(format!("the clock of this machine shows '{s}' twice: write {a} or {b}"));
            }
            (Some(at), _) | (None, Some(at)) => at,
            (None, None) => {
                return Err(format!("the clock of this machine never shows '{s}': write it with its zone"));
            }
        };
        let ns = i128::from(seconds) * 1_000_000_000 + i128::from(self.nanosecond);
        i64::try_from(ns).map(Moment).map_err(|_| NoMoment(s.to_owned()).to_string())
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

    #[test]
    fn a_time_without_zone_is_what_the_wall_clock_shows() {
        let wall = Wall::parse("2026-10-25 02:30:05.5").unwrap();
        assert_eq!((wall.date, wall.clock), ((2026, 10, 25), (2, 30, 5)));
        assert_eq!(Wall::parse("2026-11-24 14:05").map(|w| w.clock), Some((14, 5, 0)));
        assert_eq!(Wall::parse("2026-11-24T14:05:00").map(|w| w.clock), Some((14, 5, 0)));
        for none in [
            "2026-11-24",
            "14:05",
            "2026-11-24 14:05Z",
            "2026-11-24 14:05:00+01:00",
            "v1",
            "2026-13-24 14:05",
        ] {
            assert_eq!(Wall::parse(none), None, "{none}");
        }
        assert_eq!(wall.instant("T", Some(5), None), Ok(Moment(5_500_000_000)));
        assert_eq!(wall.instant("T", None, Some(7)), Ok(Moment(7_500_000_000)));
        assert!(wall.instant("T", None, None).unwrap_err().contains("never shows 'T'"));
        let twice = wall.instant("T", Some(3600), Some(0)).unwrap_err();
        assert!(twice.contains("write 1970-01-01T00:00:00Z or 1970-01-01T01:00:00Z"), "{twice}");
    }

    proptest! {
        #[test]
        fn what_is_shown_is_read_back(ns: i64) {
            prop_assert_eq!(Moment(ns).to_string().parse(), Ok(Moment(ns)));
        }
    }
}
