//! The swarm key: 32 secret bytes that make a swarm private, and the text form that Kubo reads and writes.
//!
//! Not here: where the key lies on disk ([`KeyFile`](crate::KeyFile)) and whether a node may start without one
//! ([`Policy`](crate::Policy)).

use std::{fmt, sync::LazyLock};

use data_encoding::{BASE64, Encoding, HEXLOWER, HEXLOWER_PERMISSIVE};
use salsa20::cipher::{KeyIvInit, StreamCipher};
use shake::{ExtendableOutput, Shake128, Update, XofReader};
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// Bytes of a swarm key.
pub const KEY_LEN: usize = 32;
/// The largest key file that is read, in bytes. Kubo's forms need at most 118; the rest is room for what it ignores.
pub const MAX_KEY_FILE_LEN: usize = 4096;

const FILE_TYPE: &[u8] = b"/key/swarm/psk/1.0.0/";
const HEX_LEN: usize = 2 * KEY_LEN;
/// 32 bytes are 43 base64 digits and one `=`.
const BASE64_LEN: usize = 44;
/// Go's decoder does not look at the two bits of the last digit that belong to no byte.
static LENIENT_BASE64: LazyLock<Encoding> = LazyLock::new(|| {
    let mut specification = BASE64.specification();
    specification.check_trailing_bits = false;
    specification
        .encoding()
        .expect("base64 stays valid without the check")
});

/// The secret that all members of a private swarm share.
///
/// `Debug` shows the fingerprint only, there is no `Display`, comparison takes constant time, and the bytes are wiped
/// when the value is dropped.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct SwarmKey([u8; KEY_LEN]);

impl SwarmKey {
    /// A key from its raw bytes.
    pub fn from_bytes(bytes: [u8; KEY_LEN]) -> Self {
        Self(bytes)
    }

    /// Reads the bytes of a key file in any of its three encodings, with the tolerances of Kubo (PNET-K1…K3): CR before LF
    /// on the header lines, a missing last newline, upper case hex, blanks and empty lines after the key. Anything else after
    /// it is refused: Kubo would take the first of two keys without a word.
    pub fn parse(file: &[u8]) -> Result<Self, KeyError> {
        if file.len() > MAX_KEY_FILE_LEN {
            return Err(KeyError::TooLong { len: file.len() });
        }
        if file.is_empty() {
            return Err(KeyError::Empty);
        }
        let (file_type, rest) = header_line(file);
        if file_type != FILE_TYPE {
            return Err(KeyError::of_first_line(file_type));
        }
        let (encoding, body) = header_line(rest.ok_or(KeyError::NoEncoding)?);
        let body = body.ok_or(KeyError::NoKey)?;
        match encoding {
            b"/base16/" => parse_base16(body),
            b"/base64/" => parse_base64(body),
            b"/bin/" => parse_bin(body),
            b"" => Err(KeyError::NoEncoding),
            _ => Err(KeyError::UnknownEncoding),
        }
    }

    /// The key file in base16, the form every implementation reads. It *is* the secret: write it to a 0600 file, never to a log.
    pub fn to_file_text(&self) -> Zeroizing<String> {
        let mut digits = Zeroizing::new([0u8; HEX_LEN]);
        HEXLOWER.encode_mut(&self.0, &mut digits[..]);
        let mut text = Zeroizing::new(String::with_capacity(128));
        text.push_str("/key/swarm/psk/1.0.0/\n/base16/\n");
        text.extend(digits.iter().map(|&digit| char::from(digit)));
        text.push('\n');
        text
    }

    /// Kubo's fingerprint: safe to show, equal on every member, and it tells nothing about the key (PNET-F1).
    pub fn fingerprint(&self) -> Fingerprint {
        let mut stream = Zeroizing::new([0u8; 64]);
        salsa20::Salsa20::new(&self.0.into(), b"finprint".into()).apply_keystream(&mut stream[..]);
        let mut hasher = Shake128::default();
        hasher.update(&stream[..]);
        let mut fingerprint = [0; 16];
        hasher.finalize_xof().read(&mut fingerprint);
        Fingerprint(fingerprint)
    }

    /// The secret bytes. The name is long on purpose: whoever calls this must not print, log or store the result unprotected.
    pub fn expose_secret_bytes(&self) -> &[u8; KEY_LEN] {
        &self.0
    }
}

impl PartialEq for SwarmKey {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for SwarmKey {}

impl fmt::Debug for SwarmKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SwarmKey(fingerprint {})", self.fingerprint())
    }
}

/// What identifies a swarm key without giving it away: 16 bytes, shown as 32 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Fingerprint([u8; 16]);

impl Fingerprint {
    /// The 16 bytes.
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({self})")
    }
}

/// Why a key file was not understood. No variant carries bytes of the file: they may be most of a key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// Nothing in it.
    #[error(
        "the key file is empty: make a key with `gemba swarm-key new`, or import the one of your swarm"
    )]
    Empty,
    /// More than [`MAX_KEY_FILE_LEN`] bytes.
    #[error("the file has {len} bytes, a swarm key file has about 95: this is another file")]
    TooLong {
        /// Size in bytes.
        len: usize,
    },
    /// First line is not the type of a swarm key.
    #[error("the first line must be exactly `/key/swarm/psk/1.0.0/`{hint}")]
    NotASwarmKey {
        /// What the mistake looks like; empty if it looks like nothing known.
        hint: &'static str,
    },
    /// Second line is missing.
    #[error("the second line must name the encoding: `/base16/`, `/base64/` or `/bin/`")]
    NoEncoding,
    /// Second line names no known encoding.
    #[error(
        "the encoding on the second line is unknown: `/base16/`, `/base64/` and `/bin/` are understood"
    )]
    UnknownEncoding,
    /// Nothing after the second line.
    #[error("the key itself is missing after the second line")]
    NoKey,
    /// Fewer than 32 bytes of key.
    #[error("the key is cut short: {have} of {want} {unit}; copy the whole file again")]
    TooShort {
        /// Digits or bytes present.
        have: usize,
        /// Digits or bytes needed.
        want: usize,
        /// What is counted.
        unit: &'static str,
    },
    /// A character that the encoding does not have.
    #[error("character {at} of the key is no {encoding} digit")]
    BadDigit {
        /// Counted from 1.
        at: usize,
        /// Name of the encoding.
        encoding: &'static str,
    },
    /// Another key begins where the first one ends.
    #[error(
        "the file holds a second key after the first one: a swarm has one key; keep only the three lines of the right one"
    )]
    SecondKey,
    /// Something other than blanks follows the key.
    #[error(
        "something follows the key ({bytes} bytes): a key file is three lines and nothing else; remove the rest, or copy the file again"
    )]
    Trailing {
        /// How many bytes follow, blanks at the end not counted.
        bytes: usize,
    },
}

impl KeyError {
    fn of_first_line(line: &[u8]) -> Self {
        let trimmed = line.trim_ascii();
        let hint = if line.starts_with(b"\xef\xbb\xbf") {
            "; it begins with a byte order mark: save the file as UTF-8 without BOM"
        } else if line.starts_with(b"\xff\xfe") || line.starts_with(b"\xfe\xff") {
            "; the file is UTF-16: save it as plain ASCII"
        } else if trimmed == FILE_TYPE {
            "; remove the blanks around it"
        } else if trimmed.len() == HEX_LEN && trimmed.iter().all(u8::is_ascii_hexdigit) {
            "; only the key digits are here: add the two header lines above them"
        } else if line.starts_with(b"/key/swarm/psk/") {
            "; this version of the key format is unknown"
        } else if line.starts_with(b"-----BEGIN") {
            "; this looks like a PEM file"
        } else {
            ""
        };
        Self::NotASwarmKey { hint }
    }
}

/// One header line without its line end, and what follows the line feed (`None`: there was none).
fn header_line(bytes: &[u8]) -> (&[u8], Option<&[u8]>) {
    let (line, rest) = match bytes.iter().position(|&byte| byte == b'\n') {
        Some(end) => (&bytes[..end], Some(&bytes[end + 1..])),
        None => (bytes, None),
    };
    let end = line
        .iter()
        .rposition(|&byte| byte != b'\r')
        .map_or(0, |last| last + 1);
    (&line[..end], rest)
}

fn parse_base16(body: &[u8]) -> Result<SwarmKey, KeyError> {
    let digits = body.get(..HEX_LEN).unwrap_or(body);
    if let Some(at) = digits.iter().position(|digit| !digit.is_ascii_hexdigit()) {
        return Err(short_or_bad(at, digits[at], HEX_LEN, "base16"));
    }
    if digits.len() < HEX_LEN {
        return Err(KeyError::TooShort {
            have: digits.len(),
            want: HEX_LEN,
            unit: "hex digits",
        });
    }
    let mut key = SwarmKey([0; KEY_LEN]);
    HEXLOWER_PERMISSIVE
        .decode_mut(digits, &mut key.0)
        .map_err(|partial| KeyError::BadDigit {
            at: partial.error.position + 1,
            encoding: "base16",
        })?;
    nothing_follows(&body[HEX_LEN..])?;
    Ok(key)
}

fn parse_base64(body: &[u8]) -> Result<SwarmKey, KeyError> {
    // Go's decoder skips line ends inside base64.
    let mut digits = Zeroizing::new([0u8; BASE64_LEN]);
    let (mut have, mut end) = (0, 0);
    for (at, &byte) in body
        .iter()
        .enumerate()
        .filter(|(_, byte)| !matches!(byte, b'\r' | b'\n'))
        .take(BASE64_LEN)
    {
        digits[have] = byte;
        have += 1;
        end = at + 1;
    }
    let bad = |byte: &u8| !(byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'='));
    if let Some(at) = digits[..have].iter().position(bad) {
        return Err(short_or_bad(at, digits[at], BASE64_LEN, "base64"));
    }
    // The decoder would take padded pieces one after the other; Go does not.
    if let Some(at) = digits[..have].iter().position(|digit| *digit == b'=')
        && at < BASE64_LEN - 1
    {
        return Err(KeyError::BadDigit {
            at: at + 1,
            encoding: "base64",
        });
    }
    if have < BASE64_LEN {
        return Err(KeyError::TooShort {
            have,
            want: BASE64_LEN,
            unit: "base64 digits",
        });
    }
    let mut bytes = Zeroizing::new([0u8; KEY_LEN + 1]);
    let len = LENIENT_BASE64
        .decode_mut(&digits[..], &mut bytes[..])
        .map_err(|partial| KeyError::BadDigit {
            at: partial.error.position + 1,
            encoding: "base64",
        })?;
    nothing_follows(&body[end..])?;
    parse_bin(&bytes[..len])
}

fn parse_bin(body: &[u8]) -> Result<SwarmKey, KeyError> {
    let bytes = body.first_chunk::<KEY_LEN>().ok_or(KeyError::TooShort {
        have: body.len(),
        want: KEY_LEN,
        unit: "bytes",
    })?;
    nothing_follows(&body[KEY_LEN..])?;
    Ok(SwarmKey(*bytes))
}

/// Nothing but blanks and line ends may follow a key (PNET-K3).
fn nothing_follows(rest: &[u8]) -> Result<(), KeyError> {
    let rest = rest.trim_ascii();
    if rest.is_empty() {
        return Ok(());
    }
    let is_key = rest
        .windows(FILE_TYPE.len())
        .any(|window| window == FILE_TYPE);
    Err(if is_key {
        KeyError::SecondKey
    } else {
        KeyError::Trailing { bytes: rest.len() }
    })
}

/// A line end or blank before the last digit means a key that was cut, anything else a wrong character.
fn short_or_bad(at: usize, byte: u8, want: usize, encoding: &'static str) -> KeyError {
    let unit = if encoding == "base16" {
        "hex digits"
    } else {
        "base64 digits"
    };
    match byte {
        b'\r' | b'\n' => KeyError::TooShort {
            have: at,
            want,
            unit,
        },
        _ => KeyError::BadDigit {
            at: at + 1,
            encoding,
        },
    }
}
