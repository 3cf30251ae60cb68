//! Do the first bytes belong to another protocol than libp2p's? A value that is fed bytes.
//!
//! A nonce is 24 random bytes, so it may look like anything. What hardly any nonce begins with (below 2^-40) is refused at once. Text
//! without such a beginning is only suspected: it may still turn out to be a nonce, and if it does not, the suspicion is the cause that is
//! told. It matters because an operator who dialed the port of a web server must not be sent to look for a wrong swarm key (PNET-H9).

use std::fmt;

/// What the other end speaks, by its first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum OtherProtocol {
    /// A web server, or a browser.
    Http,
    /// A TLS alert or greeting.
    Tls,
    /// An SSH banner.
    Ssh,
    /// Lines of text: mail, FTP, a console.
    Text,
}

/// Openings that are long enough to be no chance: at least seven bytes.
const OPENINGS: &[(&[u8], OtherProtocol)] = &[
    (b"HTTP/1.", OtherProtocol::Http),
    (b"SSH-1.", OtherProtocol::Ssh),
    (b"SSH-2.0", OtherProtocol::Ssh),
];
/// What a request of HTTP/1 begins with; too short to count unless text follows.
const METHODS: &[&[u8]] = &[
    b"GET ",
    b"HEAD ",
    b"POST ",
    b"PUT ",
    b"DELETE ",
    b"OPTIONS ",
    b"CONNECT ",
    b"PRI * HTTP/2",
];
/// Text at least this long is suspected if its sender hung up: a whole nonce would have come at once.
const LAST_WORDS: usize = 6;

impl OtherProtocol {
    /// The verdict on the first bytes of a connection, however few. `None`: it may still be a nonce.
    pub fn of(first: &[u8]) -> Option<Self> {
        let opening = OPENINGS.iter().find(|(bytes, _)| first.starts_with(bytes));
        match opening {
            Some((_, spoken)) => Some(*spoken),
            None => is_tls(first).then_some(Self::Tls),
        }
    }

    /// What it looks like if it turns out to be no nonce.
    pub fn suspected(first: &[u8]) -> Option<Self> {
        let text = first.len() >= LAST_WORDS && is_text(first);
        Self::of(first).or_else(|| text.then(|| Self::of_text(first)))
    }

    fn of_text(text: &[u8]) -> Self {
        if METHODS.iter().any(|method| text.starts_with(method)) {
            Self::Http
        } else {
            Self::Text
        }
    }
}

/// RFC 8446 §5.1: type, version 3.1 to 3.4, length; an alert is two bytes long, and a greeting is a ClientHello.
fn is_tls(first: &[u8]) -> bool {
    matches!(
        first,
        [0x15, 0x03, 0x00..=0x04, 0x00, 0x02, 0x01 | 0x02, ..]
            | [0x16, 0x03, 0x01..=0x04, _, _, 0x01, 0x00, ..]
    )
}

fn is_text(bytes: &[u8]) -> bool {
    bytes
        .iter()
        .all(|byte| matches!(byte, b' '..=b'~' | b'\r' | b'\n' | b'\t'))
}

impl fmt::Display for OtherProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Http => "HTTP",
            Self::Tls => "TLS",
            Self::Ssh => "SSH",
            Self::Text => "a protocol of plain text",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handshake::NONCE_LEN;

    #[test]
    fn pnet_h9_what_speaks_something_else_is_named() {
        for (first, spoken) in [
            (&b"HTTP/1.1 400 Bad Request"[..], OtherProtocol::Http),
            (b"HTTP/1.0", OtherProtocol::Http),
            (b"\x15\x03\x03\x00\x02\x02\x46", OtherProtocol::Tls),
            (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc", OtherProtocol::Tls),
            (b"SSH-2.0-OpenSSH_9.6\r\n", OtherProtocol::Ssh),
        ] {
            assert_eq!(OtherProtocol::of(first), Some(spoken), "{first:?}");
            assert_eq!(OtherProtocol::suspected(first), Some(spoken), "{first:?}");
        }
        for (first, spoken) in [
            (&b"GET / HTTP/1.1\r\nHost: a\r"[..], OtherProtocol::Http),
            (b"GET / HTTP/1.0\r\n", OtherProtocol::Http),
            (b"220 (vsFTPd 3.0.5)\r\n", OtherProtocol::Text),
            (b"220 mail.example ESMTP P", OtherProtocol::Text),
            (b"-ERR\r\n", OtherProtocol::Text),
        ] {
            assert_eq!(OtherProtocol::of(first), None, "{first:?}");
            assert_eq!(OtherProtocol::suspected(first), Some(spoken), "{first:?}");
        }
    }

    /// Few bytes say nothing, and the multistream greeting is no text.
    #[test]
    fn pnet_h9_a_nonce_is_not_mistaken() {
        let greeting = crate::handshake::HEADER.as_slice();
        for first in [&b""[..], b"abc\n", b"GET ", b"SSH-", greeting] {
            assert_eq!(OtherProtocol::suspected(first), None, "{first:?}");
        }
        let mut rng = gemba_testkit::Rng::new(9);
        for _ in 0..20_000 {
            let nonce = rng.bytes(NONCE_LEN);
            for end in 0..=NONCE_LEN {
                assert_eq!(OtherProtocol::of(&nonce[..end]), None, "{nonce:?}");
            }
            assert_eq!(OtherProtocol::suspected(&nonce), None, "{nonce:?}");
        }
    }
}
