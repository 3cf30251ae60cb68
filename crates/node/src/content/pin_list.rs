//! The pins of a device as text: written and read back without loss (specs/pins.md §6).
//!
//! JSON, a line a pin, behind a line that says which form it is. What is read takes nothing away: a pin that is there stays as it is, or becomes more.

use std::io::{BufRead, Write};

use cid::Cid;
use gemba_pins::{Add, Kind, Name};
use serde::{Deserialize, Serialize};

use crate::error::{Code, Fail};
use crate::meta::{Edited, PinRows};
use crate::names::follows;
use crate::text;

/// The form that is written, and the newest that is read.
const FORM: u32 = 1;
/// Longest line, in bytes: a name of 255 bytes takes at most 1,530 in JSON.
const LINE: usize = 4096;
/// Pins that are handed on at once.
const BATCH: usize = 1024;

/// The first line.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    gemba_pins: u32,
}

/// Any other line.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    cid: String,
    kind: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    since_ms: u64,
}

/// What an import came to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Pins that were not there.
    pub added: u64,
    /// That were there and stay as they are.
    pub kept: u64,
    /// That were there and got the name of the list, having none.
    pub named: u64,
    /// That were direct and are recursive now.
    pub widened: u64,
    /// Names that were left out because they belong to followed names: such a pin is anybody's own after the import.
    pub labels_dropped: u64,
}

/// A line that is none.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ListError {
    /// Not the first line of a list.
    #[error("line 1: this is no list of pins: it begins with {{\"gemba_pins\":{FORM}}}")]
    NoHeader,
    /// Of a later program.
    #[error(
        "line 1: a list of form {0}, and this program reads form {FORM}: run the newer gemba that wrote it"
    )]
    Newer(u32),
    /// More than a line can have.
    #[error("line {0}: longer than {LINE} bytes")]
    TooLong(u64),
    /// Not what it should be.
    #[error("line {line}: {cause}")]
    Line {
        /// From 1.
        line: u64,
        /// What is wrong with it.
        cause: String,
    },
    /// The source broke off.
    #[error("behind line {line}: {cause}")]
    Read {
        /// The last whole one.
        line: u64,
        /// Why.
        cause: String,
    },
}

/// Writes all pins; how many.
///
/// # Errors
/// The pins cannot be read, or `out` takes no more.
pub fn export(pins: &PinRows, out: &mut dyn Write) -> Result<u64, Fail> {
    put(out, &Header { gemba_pins: FORM })?;
    let mut count = 0;
    for pin in pins.iter() {
        let pin = pin?;
        let line = Line {
            cid: pin.cid.to_string(),
            kind: pin.kind.as_str().to_owned(),
            name: pin.name.map(|name| name.as_str().to_owned()),
            since_ms: pin.since_ms,
        };
        put(out, &line)?;
        count += 1;
    }
    Ok(count)
}

fn put<T: Serialize>(out: &mut dyn Write, line: &T) -> Result<(), Fail> {
    let mut text = serde_json::to_vec(line).map_err(|e| Fail::internal(e.to_string()))?;
    text.push(b'\n');
    out.write_all(&text).map_err(super::io_fail)
}

/// Writes a list of pins that come from elsewhere.
pub struct Writer<'w>(&'w mut dyn Write);

impl<'w> Writer<'w> {
    /// Begins it.
    ///
    /// # Errors
    /// `out` takes no more.
    pub fn new(out: &'w mut dyn Write) -> Result<Self, Fail> {
        put(out, &Header { gemba_pins: FORM })?;
        Ok(Self(out))
    }

    /// One more.
    ///
    /// # Errors
    /// `out` takes no more.
    pub fn pin(&mut self, cid: &str, kind: Kind, name: Option<&str>) -> Result<(), Fail> {
        let line = Line {
            cid: cid.to_owned(),
            kind: kind.as_str().to_owned(),
            name: name.map(str::to_owned),
            since_ms: super::pins::now_ms(),
        };
        put(self.0, &line)
    }
}

/// Reads a list and hands its pins on, some hundred at a time.
///
/// # Errors
/// [`ListError`] as [`Code::Usage`], with what came of the lines before it; the failures of `take`.
pub fn import(
    source: &mut dyn BufRead,
    take: &mut dyn FnMut(Vec<Add>) -> Result<Vec<Result<Edited, Fail>>, Fail>,
) -> Result<Report, Fail> {
    let mut report = Report::default();
    let outcome = read_all(source, &mut report, take);
    match outcome {
        Ok(()) => Ok(report),
        Err(Stop::Fail(fail)) => Err(fail),
        Err(Stop::List(error)) => {
            let before = report.added + report.kept + report.named + report.widened;
            let before = text::count(before, "pin", "pins");
            Err(Fail::new(Code::Usage, error).hint(format!(
                "what the lines before it name was taken ({before}); put the line right and import the list once more, which takes nothing away"
            )))
        }
    }
}

/// Reads a list and hands its pins on one by one.
///
/// # Errors
/// [`ListError`] as [`Code::Usage`]; the failures of `take`.
pub fn each(
    source: &mut dyn BufRead,
    take: &mut dyn FnMut(&Add) -> Result<(), Fail>,
) -> Result<(), Fail> {
    let mut lines = Lines {
        source,
        number: 0,
        text: Vec::new(),
    };
    let fail = |error: ListError| Fail::new(Code::Usage, error);
    lines.header().map_err(fail)?;
    while lines.next().map_err(fail)? {
        let add = lines.pin(&mut Report::default()).map_err(fail)?;
        take(&add)?;
    }
    Ok(())
}

enum Stop {
    Fail(Fail),
    List(ListError),
}

impl From<Fail> for Stop {
    fn from(fail: Fail) -> Self {
        Self::Fail(fail)
    }
}

impl From<ListError> for Stop {
    fn from(error: ListError) -> Self {
        Self::List(error)
    }
}

fn read_all(
    source: &mut dyn BufRead,
    report: &mut Report,
    take: &mut dyn FnMut(Vec<Add>) -> Result<Vec<Result<Edited, Fail>>, Fail>,
) -> Result<(), Stop> {
    let mut lines = Lines {
        source,
        number: 0,
        text: Vec::new(),
    };
    lines.header()?;
    loop {
        let (adds, end) = lines.batch(report);
        if !adds.is_empty() {
            for edited in take(adds)? {
                count(report, &edited?);
            }
        }
        match end {
            Some(Ok(())) => return Ok(()),
            Some(Err(error)) => return Err(error.into()),
            None => {}
        }
    }
}

fn count(report: &mut Report, edited: &Edited) {
    let (Some(before), Some(after)) = (&edited.before, &edited.after) else {
        report.added += 1;
        return;
    };
    if before.kind != after.kind {
        report.widened += 1;
    } else if before.name != after.name {
        report.named += 1;
    } else {
        report.kept += 1;
    }
}

struct Lines<'r> {
    source: &'r mut dyn BufRead,
    number: u64,
    text: Vec<u8>,
}

impl Lines<'_> {
    /// The next line that is not empty.
    fn next(&mut self) -> Result<bool, ListError> {
        loop {
            self.text.clear();
            let mut limited = std::io::Read::take(&mut *self.source, LINE as u64 + 1);
            let read = limited.read_until(b'\n', &mut self.text);
            let read = read.map_err(|e| ListError::Read {
                line: self.number,
                cause: e.to_string(),
            })?;
            if read == 0 {
                return Ok(false);
            }
            self.number += 1;
            if self.text.len() > LINE {
                return Err(ListError::TooLong(self.number));
            }
            if !self.text.trim_ascii().is_empty() {
                return Ok(true);
            }
        }
    }

    fn header(&mut self) -> Result<(), ListError> {
        if !self.next()? {
            return Err(ListError::NoHeader);
        }
        let header = serde_json::from_slice::<Header>(&self.text);
        match header.map_err(|_| ListError::NoHeader)?.gemba_pins {
            FORM => Ok(()),
            0 => Err(ListError::NoHeader),
            newer => Err(ListError::Newer(newer)),
        }
    }

    /// Pins until there are enough, and whether that was the end.
    fn batch(&mut self, report: &mut Report) -> (Vec<Add>, Option<Result<(), ListError>>) {
        let mut adds = Vec::new();
        while adds.len() < BATCH {
            let next = self.next().and_then(|more| match more {
                true => self.pin(report).map(Some),
                false => Ok(None),
            });
            match next {
                Ok(Some(add)) => adds.push(add),
                Ok(None) => return (adds, Some(Ok(()))),
                Err(error) => return (adds, Some(Err(error))),
            }
        }
        (adds, None)
    }

    fn pin(&self, report: &mut Report) -> Result<Add, ListError> {
        let wrong = |cause: String| ListError::Line {
            line: self.number,
            cause,
        };
        let line: Line = serde_json::from_slice(&self.text).map_err(|e| wrong(e.to_string()))?;
        let cid: Cid = line
            .cid
            .parse()
            .map_err(|e| wrong(format!("{:?} is no CID: {e}", line.cid)))?;
        let kind = match line.kind.as_str() {
            "recursive" => Kind::Recursive,
            "direct" => Kind::Direct,
            other => {
                return Err(wrong(format!(
                    "{other:?} is no kind of pin: recursive or direct"
                )));
            }
        };
        let own = line.name.filter(|name| {
            let is_label = follows::is_label(name);
            report.labels_dropped += u64::from(is_label);
            !is_label
        });
        let name = own.map(Name::new).transpose();
        Ok(Add {
            cid,
            kind,
            name: name.map_err(|e| wrong(e.to_string()))?,
            now_ms: line.since_ms,
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use gemba_pins::DesiredSet;

    fn set(pins: &[(&str, Kind, Option<&str>)]) -> DesiredSet {
        let mut set = DesiredSet::new();
        for (n, (text, kind, name)) in pins.iter().enumerate() {
            let add = Add {
                cid: *gemba_block::Block::raw(text.as_bytes().to_vec())
                    .unwrap()
                    .cid(),
                kind: *kind,
                name: name.map(|name| Name::new(name).unwrap()),
                now_ms: 1_700_000_000_000 + n as u64,
            };
            take(&mut set, add).unwrap();
        }
        set
    }

    fn take(set: &mut DesiredSet, add: Add) -> Result<Edited, Fail> {
        let cid = add.cid;
        let before = set.get(&cid).cloned();
        if let Some(change) = set.add(add).map_err(crate::meta::pin_fail)? {
            set.apply(change).unwrap();
        }
        Ok(Edited {
            cid,
            before,
            after: set.get(&cid).cloned(),
        })
    }

    fn text(set: &DesiredSet) -> String {
        let mut out = Vec::new();
        export(&set.clone().into(), &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    fn read(text: &str, into: &mut DesiredSet) -> Result<Report, Fail> {
        import(&mut text.as_bytes(), &mut |adds| {
            Ok(adds.into_iter().map(|add| take(into, add)).collect())
        })
    }

    #[test]
    fn s1_17_a_list_is_read_back_as_it_was_written() {
        let pins: Vec<(String, Kind, Option<String>)> = (0..1000)
            .map(|n| {
                let kind = if n % 3 == 0 {
                    Kind::Direct
                } else {
                    Kind::Recursive
                };
                (
                    format!("block {n}"),
                    kind,
                    (n % 2 == 0).then(|| format!("name \"{n}\"\n\0ü")),
                )
            })
            .collect();
        let pins: Vec<_> = pins
            .iter()
            .map(|(t, k, n)| (t.as_str(), *k, n.as_deref()))
            .collect();
        let first = text(&set(&pins));
        let mut again = DesiredSet::new();
        assert_eq!(read(&first, &mut again).unwrap().added, 1000);
        assert_eq!(text(&again), first);
        assert_eq!(read(&first, &mut again).unwrap().kept, 1000);
        assert_eq!(text(&again), first);
    }

    #[test]
    fn what_is_no_list_is_told_with_its_line() {
        let good = text(&set(&[("a", Kind::Recursive, None)]));
        let cases = [
            (String::new(), "line 1: this is no list"),
            ("{}\n".to_owned(), "line 1: this is no list"),
            (
                "{\"gemba_pins\":2}\n".to_owned(),
                "line 1: a list of form 2",
            ),
            (format!("{good}\n\nno json\n"), "line 5: "),
            (
                format!("{good}{{\"cid\":\"x\",\"kind\":\"direct\",\"since_ms\":0}}\n"),
                "line 3: \"x\" is no CID",
            ),
            (
                format!(
                    "{good}{}\n",
                    good.lines()
                        .nth(1)
                        .unwrap()
                        .replace("recursive", "indirect")
                ),
                "line 3: \"indirect\"",
            ),
            (
                format!("{good}{}\n", " ".repeat(LINE + 1)),
                "line 3: longer",
            ),
            (
                format!(
                    "{good}{}",
                    good.lines().nth(1).unwrap().replace("since_ms", "sinse")
                ),
                "line 3: unknown field",
            ),
        ];
        for (text, cause) in cases {
            let mut set = DesiredSet::new();
            let fail = read(&text, &mut set).unwrap_err();
            assert_eq!(fail.code, Code::Usage, "{text}");
            assert!(fail.cause.starts_with(cause), "{} for {text}", fail.cause);
            // What came before it is there.
            assert_eq!(set.len(), usize::from(text.starts_with(&good)));
        }
    }
}
