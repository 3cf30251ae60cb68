//! Names of streams, and patterns that match them (specs/log.md §1).

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// Most bytes of a name that users give.
pub const MAX_NAME: usize = 255;
/// Most levels of a name that users give.
pub const MAX_LEVELS: usize = 16;
/// Most bytes of a level.
pub const MAX_LEVEL: usize = 64;
/// A name of ours may be longer by two levels, so that what belongs to any stream has a name: `$dead/<consumer>/<stream>`.
const OURS_MORE: usize = 2 * (MAX_LEVEL + 1);

/// The name of a stream: 1 to 16 levels joined by `/`, at most 255 bytes in all, each level 1 to 64 of `A-Z a-z 0-9 . _ ~ -`.
///
/// A first level that begins with `$` is gemba's own; such a name may have two levels and 130 bytes more. Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamName(Arc<str>);

/// Why a text is no name of a stream, or no pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NameError {
    /// Nothing, or a level of nothing: `a//b`, `/a`, `a/`.
    #[error("a level of the name is empty: write `site/area/line`, without a slash at either end")]
    Empty,
    /// Too many bytes.
    #[error("the name has {0} bytes, and may have 255")]
    TooLong(usize),
    /// Too many levels.
    #[error("the name has {0} levels, and may have 16")]
    TooDeep(usize),
    /// A level with too many bytes.
    #[error("a level of the name has {0} bytes, and may have 64")]
    LevelTooLong(usize),
    /// A character that no name has.
    #[error("{0:?} is not used in names of streams: letters, digits and . _ ~ - are")]
    Character(char),
    /// `#` before the last level, or a wildcard that is not a whole level.
    #[error("+ stands for one whole level, and # for all that follow, as the last one")]
    Wildcard,
}

impl StreamName {
    /// Takes a name.
    ///
    /// # Errors
    /// The rule that the text breaks.
    pub fn new(name: &str) -> Result<Self, NameError> {
        let is_ours = name.starts_with('$');
        let mut levels = check_size(name, is_ours)?;
        levels.try_for_each(|(i, level)| check_level(level, is_ours && i == 0))?;
        Ok(Self(Arc::from(name)))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Its levels, from the left.
    pub fn levels(&self) -> impl Iterator<Item = &str> {
        self.0.split('/')
    }

    /// Whether it is one of gemba's own, like `$dead/…`.
    #[must_use]
    pub fn is_ours(&self) -> bool {
        self.0.starts_with('$')
    }

    /// The stream of this name below a first level of ours: `$about` of `a/b` is `$about/a/b`.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn below(&self, first: &str) -> Result<Self, NameError> {
        Self::new(&format!("{first}/{}", self.0))
    }
}

/// Checks bytes and levels in all; gives the levels.
fn check_size(name: &str, is_ours: bool) -> Result<impl Iterator<Item = (usize, &str)>, NameError> {
    let more = if is_ours { OURS_MORE } else { 0 };
    if name.len() > MAX_NAME + more {
        return Err(NameError::TooLong(name.len()));
    }
    let levels = name.split('/').count();
    if levels > MAX_LEVELS + if is_ours { 2 } else { 0 } {
        return Err(NameError::TooDeep(levels));
    }
    Ok(name.split('/').enumerate())
}

fn check_level(level: &str, is_ours: bool) -> Result<(), NameError> {
    let own = if is_ours { &level[1..] } else { level };
    if own.is_empty() {
        return Err(NameError::Empty);
    }
    if level.len() > MAX_LEVEL {
        return Err(NameError::LevelTooLong(level.len()));
    }
    let is_wrong = |c: &char| !(c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '~' | '-'));
    match own.chars().find(is_wrong) {
        Some(wrong) => Err(NameError::Character(wrong)),
        None => Ok(()),
    }
}

impl FromStr for StreamName {
    type Err = NameError;

    fn from_str(name: &str) -> Result<Self, NameError> {
        Self::new(name)
    }
}

impl fmt::Display for StreamName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for StreamName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &self.0)
    }
}

/// Names with wildcards, as MQTT has them: `+` stands for one level, `#` as the last level for all that follow, also for none.
/// Neither matches a first level that begins with `$` (MQTT 5, 4.7.2).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pattern(Arc<str>);

impl Pattern {
    /// Takes a pattern; limits are those of names.
    ///
    /// # Errors
    /// The rule that the text breaks.
    pub fn new(pattern: &str) -> Result<Self, NameError> {
        let is_ours = pattern.starts_with('$');
        let last = pattern.split('/').count() - 1;
        for (i, level) in check_size(pattern, is_ours)? {
            match level {
                "+" => {}
                "#" if i == last => {}
                _ if level.contains(['+', '#']) => return Err(NameError::Wildcard),
                _ => check_level(level, is_ours && i == 0)?,
            }
        }
        Ok(Self(Arc::from(pattern)))
    }

    /// The pattern as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it stands for this stream.
    #[must_use]
    pub fn matches(&self, stream: &StreamName) -> bool {
        let mut names = stream.levels();
        for (i, level) in self.0.split('/').enumerate() {
            let hidden = i == 0 && stream.is_ours();
            match level {
                "#" => return !hidden,
                "+" if hidden => return false,
                "+" if names.next().is_none() => return false,
                "+" => {}
                _ if names.next() != Some(level) => return false,
                _ => {}
            }
        }
        names.next().is_none()
    }
}

impl From<&StreamName> for Pattern {
    fn from(name: &StreamName) -> Self {
        Self(Arc::clone(&name.0))
    }
}

impl FromStr for Pattern {
    type Err = NameError;

    fn from_str(pattern: &str) -> Result<Self, NameError> {
        Self::new(pattern)
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &self.0)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Clause LOG-1.
    #[test]
    fn log_1_names_are_what_the_clause_says() {
        for good in [
            "a",
            "plant-7/Hall.2/line_3/~cell",
            "$dead/counter/plant/line",
            "A/b/0",
        ] {
            assert_eq!(StreamName::new(good).unwrap().as_str(), good);
        }
        let deep = vec!["a"; 16].join("/");
        assert!(StreamName::new(&deep).is_ok());
        assert_eq!(
            StreamName::new(&format!("{deep}/a")),
            Err(NameError::TooDeep(17))
        );
        assert!(StreamName::new(&format!("$dead/c/{deep}")).is_ok());
        let long = vec!["x".repeat(63); 4].join("/");
        assert_eq!(long.len(), 255);
        assert!(StreamName::new(&long).is_ok());
        assert_eq!(
            StreamName::new(&format!("{long}y")),
            Err(NameError::TooLong(256))
        );
        assert!(StreamName::new(&format!("$dead/{}/{long}", "c".repeat(64))).is_ok());
        for (bad, why) in [
            ("", NameError::Empty),
            ("/a", NameError::Empty),
            ("a/", NameError::Empty),
            ("a//b", NameError::Empty),
            ("$", NameError::Empty),
            ("$/a", NameError::Empty),
            ("a/$b", NameError::Character('$')),
            ("a b", NameError::Character(' ')),
            ("a/+", NameError::Character('+')),
            ("#", NameError::Character('#')),
            ("ä", NameError::Character('ä')),
            ("a\0", NameError::Character('\0')),
        ] {
            assert_eq!(StreamName::new(bad), Err(why), "{bad:?}");
        }
        assert_eq!(
            StreamName::new(&"x".repeat(65)),
            Err(NameError::LevelTooLong(65))
        );
    }

    /// S3.8: hierarchical names, and readers with wildcards.
    #[test]
    fn s3_8_patterns_match_as_mqtt_has_it() {
        for (pattern, name, want) in [
            ("a/b", "a/b", true),
            ("a/b", "a/b/c", false),
            ("a/+", "a/b", true),
            ("a/+", "a", false),
            ("a/+", "a/b/c", false),
            ("+/b/+", "a/b/c", true),
            ("#", "a/b/c", true),
            ("a/#", "a", true),
            ("a/#", "a/b/c", true),
            ("a/#", "ab", false),
            ("#", "$dead/x/a", false),
            ("+/x/a", "$dead/x/a", false),
            ("$dead/#", "$dead/x/a", true),
            ("$dead/+/a", "$dead/x/a", true),
        ] {
            let matches = Pattern::new(pattern)
                .unwrap()
                .matches(&StreamName::new(name).unwrap());
            assert_eq!(matches, want, "{pattern} on {name}");
        }
        for bad in ["a/#/b", "a+", "a/b#", "", "a//+", "$"] {
            assert!(Pattern::new(bad).is_err(), "{bad:?}");
        }
    }
}
