//! Wall-clock time as IPNS writes it: UTC, nanoseconds, RFC 3339.
//!
//! It is a value that somebody read from a clock or a record. It judges whether a record has passed its end, and orders nothing else.

use std::{fmt, str::FromStr, time::Duration};

/// A moment of the years 0 to 9999, in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Wall {
    seconds: i64,
    nanos: u32,
}

impl Wall {
    /// The earliest moment that has an RFC 3339 form.
    pub const MIN: Self = Self {
        seconds: -62_167_219_200,
        nanos: 0,
    };
    /// The latest one: `9999-12-31T23:59:59.999999999Z`.
    pub const MAX: Self = Self {
        seconds: 253_402_300_799,
        nanos: 999_999_999,
    };

    /// Seconds since 1970 and nanoseconds of that second; what lies outside of the years 0 to 9999 becomes the nearest moment inside.
    pub const fn from_unix(seconds: i64, nanos: u32) -> Self {
        if seconds < Self::MIN.seconds {
            return Self::MIN;
        }
        if seconds > Self::MAX.seconds {
            return Self::MAX;
        }
        let nanos = if nanos > 999_999_999 {
            999_999_999
        } else {
            nanos
        };
        Self { seconds, nanos }
    }

    /// Milliseconds since 1970, negative before.
    pub const fn from_unix_ms(ms: i64) -> Self {
        Self::from_unix(ms.div_euclid(1000), ms.rem_euclid(1000) as u32 * 1_000_000)
    }

    /// Whole seconds since 1970, negative before.
    pub const fn unix_seconds(self) -> i64 {
        self.seconds
    }

    /// Nanoseconds of the second.
    pub const fn nanos(self) -> u32 {
        self.nanos
    }

    /// The moment that much later, at most [`Wall::MAX`].
    #[must_use]
    pub fn plus(self, time: Duration) -> Self {
        let nanos = self.nanos + time.subsec_nanos();
        let seconds = i64::try_from(time.as_secs())
            .ok()
            .and_then(|s| self.seconds.checked_add(s))
            .and_then(|s| s.checked_add(i64::from(nanos / 1_000_000_000)));
        match seconds {
            Some(seconds) if seconds <= Self::MAX.seconds => {
                Self::from_unix(seconds, nanos % 1_000_000_000)
            }
            _ => Self::MAX,
        }
    }

    /// How much later this is than `earlier`; zero if it is not.
    pub fn since(self, earlier: Self) -> Duration {
        if self <= earlier {
            return Duration::ZERO;
        }
        let seconds = self.seconds.abs_diff(earlier.seconds);
        (Duration::from_secs(seconds) + Duration::from_nanos(u64::from(self.nanos)))
            .saturating_sub(Duration::from_nanos(u64::from(earlier.nanos)))
    }
}

impl fmt::Display for Wall {
    /// As Go writes RFC 3339 with nanoseconds: trailing zeros of the fraction are dropped.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (year, month, day) = civil(self.seconds.div_euclid(86_400));
        let of_day = self.seconds.rem_euclid(86_400);
        write!(
            f,
            "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}",
            of_day / 3600,
            of_day / 60 % 60,
            of_day % 60
        )?;
        if self.nanos != 0 {
            let fraction = format!("{:09}", self.nanos);
            write!(f, ".{}", fraction.trim_end_matches('0'))?;
        }
        f.write_str("Z")
    }
}

/// A text that is not a moment in RFC 3339.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a time in RFC 3339, such as 2030-01-31T12:00:00Z")]
pub struct NotRfc3339(pub String);

impl FromStr for Wall {
    type Err = NotRfc3339;

    /// With `Z` or an offset, a fraction of any length (what is behind nine digits is dropped), `.` or `,` before it: what Go reads.
    fn from_str(text: &str) -> Result<Self, NotRfc3339> {
        // A time that does not fit into a line of a log is none, and is not copied into an error.
        let refused = || NotRfc3339(text.chars().take(40).collect());
        parse(text.as_bytes()).ok_or_else(refused)
    }
}

fn parse(text: &[u8]) -> Option<Wall> {
    let (head, rest) = text.split_at_checked(19)?;
    let digits = |range: std::ops::Range<usize>| -> Option<i64> {
        head[range].iter().try_fold(0, |sum, c| {
            c.is_ascii_digit().then(|| sum * 10 + i64::from(c - b'0'))
        })
    };
    let (year, month, day) = (digits(0..4)?, digits(5..7)?, digits(8..10)?);
    let (hour, minute, second) = (digits(11..13)?, digits(14..16)?, digits(17..19)?);
    let punctuated = [(4, b'-'), (7, b'-'), (10, b'T'), (13, b':'), (16, b':')]
        .iter()
        .all(|&(at, mark)| head[at] == mark);
    let possible = (1..=12).contains(&month)
        && (1..=days_of(year, month)).contains(&day)
        && hour < 24
        && minute < 60
        && second < 60;
    if !punctuated || !possible {
        return None;
    }
    let (nanos, zone) = fraction(rest)?;
    let seconds =
        days(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second - offset(zone)?;
    (Wall::MIN.seconds..=Wall::MAX.seconds)
        .contains(&seconds)
        .then(|| Wall::from_unix(seconds, nanos))
}

/// Nanoseconds, and what follows the fraction.
fn fraction(rest: &[u8]) -> Option<(u32, &[u8])> {
    let (b'.' | b',', digits) = rest.split_first()? else {
        return Some((0, rest));
    };
    let end = digits
        .iter()
        .position(|c| !c.is_ascii_digit())
        .unwrap_or(digits.len());
    let (digits, zone) = digits.split_at(end);
    if digits.is_empty() {
        return None;
    }
    let nanos = (0..9).fold(0, |sum, at| {
        sum * 10 + digits.get(at).map_or(0, |c| u32::from(c - b'0'))
    });
    Some((nanos, zone))
}

/// Seconds east of UTC.
fn offset(zone: &[u8]) -> Option<i64> {
    if zone == b"Z" {
        return Some(0);
    }
    let &[sign @ (b'+' | b'-'), h1, h2, b':', m1, m2] = zone else {
        return None;
    };
    if ![h1, h2, m1, m2].iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number = |tens: u8, ones: u8| i64::from(tens - b'0') * 10 + i64::from(ones - b'0');
    let (hours, minutes) = (number(h1, h2), number(m1, m2));
    // Go's limits, 24:60 included (specs/vectors/names/verdicts.txt).
    let seconds = hours * 3600 + minutes * 60;
    (hours <= 24 && minutes <= 60).then_some(if sign == b'-' { -seconds } else { seconds })
}

fn days_of(year: i64, month: i64) -> i64 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days from 1970-01-01 to a date of the Gregorian calendar. Years are counted from March, so that the leap day is the last of its year.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = year - i64::from(month <= 2);
    let era = year.div_euclid(400);
    let of_era = year.rem_euclid(400);
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

/// The inverse of [`days`].
fn civil(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let (era, of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 {
        from_march + 3
    } else {
        from_march - 9
    };
    (era * 400 + year_of_era + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wall(text: &str) -> Wall {
        text.parse().expect(text)
    }

    #[test]
    fn what_is_written_is_what_go_writes() {
        for text in [
            "1970-01-01T00:00:00Z",
            "2100-01-01T00:00:00.123456789Z",
            "2000-02-29T23:59:59.5Z",
            "0000-01-01T00:00:00Z",
            "9999-12-31T23:59:59.999999999Z",
            "1969-12-31T23:59:59.000000001Z",
        ] {
            assert_eq!(wall(text).to_string(), text);
        }
        assert_eq!(wall("1970-01-01T00:00:00Z").unix_seconds(), 0);
        assert_eq!(wall("2026-01-01T00:00:00Z").unix_seconds(), 1_767_225_600);
    }

    #[test]
    fn offsets_and_fractions_are_read() {
        assert_eq!(
            wall("2026-01-01T01:30:00+01:30"),
            wall("2026-01-01T00:00:00Z")
        );
        assert_eq!(
            wall("2025-12-31T22:00:00,25-02:00").to_string(),
            "2026-01-01T00:00:00.25Z"
        );
        assert_eq!(
            wall("2026-01-01T00:00:00.1234567899999Z").nanos(),
            123_456_789
        );
    }

    #[test]
    fn what_is_no_moment_is_refused() {
        for text in [
            "",
            "2026-01-01",
            "2026-02-29T00:00:00Z",
            "2026-13-01T00:00:00Z",
            "2026-01-01T24:00:00Z",
            "2026-01-01T00:00:60Z",
            "2026-01-01t00:00:00Z",
            "2026-01-01T00:00:00",
            "2026-01-01T00:00:00.Z",
            "2026-01-01T00:00:00+0100",
            "2026-01-01T00:00:00Zx",
            "+026-01-01T00:00:00Z",
            "0000-01-01T00:00:00+01:00",
            "９999-01-01T00:00:00Z",
        ] {
            assert!(text.parse::<Wall>().is_err(), "{text}");
        }
    }

    #[test]
    fn every_day_of_ten_thousand_years_is_written_and_read_back() {
        let mut last = -1;
        for day in (Wall::MIN.seconds / 86_400..=Wall::MAX.seconds / 86_400).step_by(29) {
            let (y, m, d) = civil(day);
            assert_eq!(days(y, m, d), day);
            let ordinal = y * 372 + m * 31 + d;
            assert!(ordinal > last, "{y}-{m}-{d}");
            last = ordinal;
        }
    }

    #[test]
    fn sums_stay_inside_the_calendar() {
        assert_eq!(Wall::MAX.plus(Duration::from_secs(1)), Wall::MAX);
        assert_eq!(Wall::from_unix(i64::MIN, 5), Wall::MIN);
        assert_eq!(Wall::from_unix(0, 0).plus(Duration::MAX), Wall::MAX);
        let later = Wall::from_unix_ms(-1).plus(Duration::from_millis(2));
        assert_eq!(later, Wall::from_unix_ms(1));
        assert_eq!(
            later.since(Wall::from_unix_ms(-1)),
            Duration::from_millis(2)
        );
        assert_eq!(Wall::MIN.since(Wall::MAX), Duration::ZERO);
    }
}
