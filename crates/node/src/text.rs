//! How counts, ages and names are written for people.
//!
//! Names come from folders and DAGs that others made: a name may hold anything but `/` and NUL, escape sequences of a terminal above all.
//! What is not plain text is shown as `\u{1b}`, and bytes that are no UTF-8 as `\xff`.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::path::Path;

/// A count with its noun: `1 peer`, `2 peers`.
#[must_use]
pub fn count(number: u64, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

/// `12 blocks`
#[must_use]
pub fn blocks(number: u64) -> String {
    count(number, "block", "blocks")
}

/// `12 bytes`
#[must_use]
pub fn bytes(number: u64) -> String {
    count(number, "byte", "bytes")
}

/// `1 peer`
#[must_use]
pub fn peers(number: u64) -> String {
    count(number, "peer", "peers")
}

/// That nobody of those who were asked has a block.
#[must_use]
pub fn nobody_has(cid: &cid::Cid, asked: usize) -> String {
    match asked {
        0 => format!("nobody could be asked for block {cid}"),
        1 => format!("the only peer asked does not have block {cid}"),
        _ => format!("none of the {asked} peers asked has block {cid}"),
    }
}

/// Rows with their columns one below the other, two blanks apart. The last column is not padded.
#[must_use]
pub fn columns(rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..rows.iter().map(Vec::len).max().unwrap_or(0))
        .map(width)
        .collect();
    let line = |row: &Vec<String>| {
        let cells = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// A time span as people say it: `less than 1 s`, `12 s`, `3 min`, `5 h`, `2 days`.
#[must_use]
pub fn span(milliseconds: u64) -> String {
    let seconds = milliseconds / 1000;
    match seconds {
        0 => "less than 1 s".to_owned(),
        1..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

/// A name on one line, without anything that a terminal or a reader could take for something else.
#[must_use]
pub fn shown(name: &str) -> Cow<'_, str> {
    escaped(name, |_| false)
}

/// As [`shown`], for a whole text of ours: its line ends and tabs stay.
#[must_use]
pub fn printable(text: &str) -> Cow<'_, str> {
    escaped(text, |c| matches!(c, '\n' | '\t'))
}

/// As [`shown`], for bytes that need not be UTF-8.
#[must_use]
pub fn shown_bytes(name: &[u8]) -> String {
    let mut out = String::with_capacity(name.len());
    for chunk in name.utf8_chunks() {
        out.push_str(&shown(chunk.valid()));
        for byte in chunk.invalid() {
            let _infallible = write!(out, "\\x{byte:02x}");
        }
    }
    out
}

/// As [`shown`], for a path.
#[must_use]
pub fn path(path: &Path) -> String {
    shown_bytes(path.as_os_str().as_encoded_bytes())
}

/// Base64 of a name that JSON cannot hold as it is; nothing for one that it can.
#[must_use]
pub fn name_bytes(name: &[u8]) -> Option<String> {
    match std::str::from_utf8(name) {
        Ok(_) => None,
        Err(_) => Some(data_encoding::BASE64.encode(name)),
    }
}

/// The name that came as JSON, from its bytes where there are some ([`name_bytes`]).
#[must_use]
pub fn shown_json(name: &str, bytes: Option<&str>) -> String {
    match bytes.and_then(|bytes| data_encoding::BASE64.decode(bytes.as_bytes()).ok()) {
        Some(bytes) => shown_bytes(&bytes),
        None => shown(name).into_owned(),
    }
}

fn escaped(text: &str, may_stay: impl Fn(char) -> bool) -> Cow<'_, str> {
    let is_bad = |c: char| is_deceptive(c) && !may_stay(c);
    if !text.contains(is_bad) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_bad(c) {
            out.extend(c.escape_unicode());
        } else {
            out.push(c);
        }
    }
    Cow::Owned(out)
}

/// Control characters, and the invisible ones that turn the direction of text around, end a line or hide letters. The joiners
/// (U+200C, U+200D) stay: some scripts are not written without them.
fn is_deceptive(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{061c}' | '\u{180e}' | '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_act_upon_is_escaped() {
        for (name, seen) in [
            ("plain.txt", "plain.txt"),
            ("Größe – 図面.pdf", "Größe – 図面.pdf"),
            ("\u{1b}[2Jx", "\\u{1b}[2Jx"),
            ("a\nb\rc\td\u{7f}", "a\\u{a}b\\u{d}c\\u{9}d\\u{7f}"),
            ("\u{9b}31m", "\\u{9b}31m"),
            ("exe.\u{202e}fdp", "exe.\\u{202e}fdp"),
        ] {
            assert_eq!(shown(name), seen);
            assert_eq!(shown_bytes(name.as_bytes()), seen);
        }
        assert_eq!(shown_bytes(b"a\xff\x1bb\xc3"), "a\\xff\\u{1b}b\\xc3");
        assert_eq!(printable("one\n\u{7}two\n"), "one\n\\u{7}two\n");
    }

    #[test]
    fn names_that_are_no_text_come_back_from_json() {
        assert_eq!(name_bytes("ä".as_bytes()), None);
        let bytes = name_bytes(b"\xe4.txt").unwrap();
        assert_eq!(shown_json("\u{fffd}.txt", Some(&bytes)), "\\xe4.txt");
        assert_eq!(shown_json("a\u{1b}", None), "a\\u{1b}");
    }

    #[test]
    fn columns_stand_below_each_other() {
        let rows = [["id", "rtt", "agent"], ["ä", "12 ms", ""]];
        let rows = rows.map(|row| row.map(str::to_owned).to_vec());
        assert_eq!(columns(&rows), "id  rtt    agent\nä   12 ms");
    }

    #[test]
    fn counts_and_spans_read_as_people_say_them() {
        assert_eq!((peers(1), peers(0)), ("1 peer".into(), "0 peers".into()));
        for (milliseconds, said) in [
            (0, "less than 1 s"),
            (12_900, "12 s"),
            (119_999, "119 s"),
            (200_000, "3 min"),
            (7_200_000, "2 h"),
            (400_000_000, "4 days"),
        ] {
            assert_eq!(span(milliseconds), said);
        }
    }
}
