//! Swarm key files in every encoding that Kubo reads (`/key/swarm/psk/1.0.0/`, then the encoding, then 32 bytes).

/// The encodings of the body, and the one tolerated deviation (a CR before each LF of the header).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Encoding {
    Base16,
    Base64,
    Bin,
    Crlf,
}

pub(crate) const ENCODINGS: [Encoding; 4] = [
    Encoding::Base16,
    Encoding::Base64,
    Encoding::Bin,
    Encoding::Crlf,
];

/// The bytes of a key file.
pub(crate) fn file(key: &[u8; 32], encoding: Encoding) -> Vec<u8> {
    let (name, body, end) = match encoding {
        Encoding::Base16 => ("base16", hex(key).into_bytes(), "\n"),
        Encoding::Base64 => ("base64", base64(key).into_bytes(), "\n"),
        Encoding::Bin => ("bin", key.to_vec(), "\n"),
        Encoding::Crlf => ("base16", hex(key).into_bytes(), "\r\n"),
    };
    let mut out = format!("/key/swarm/psk/1.0.0/{end}/{name}/{end}").into_bytes();
    out.extend(body);
    // After 32 raw bytes a newline would be one more byte of the body; Kubo ignores it, but it is no part of the format.
    if encoding != Encoding::Bin {
        out.extend(end.as_bytes());
    }
    out
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// RFC 4648 §4, padded.
pub(crate) fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for group in bytes.chunks(3) {
        let bits =
            group.iter().fold(0u32, |bits, &b| bits << 8 | u32::from(b)) << (8 * (3 - group.len()));
        for i in 0..4 {
            if i <= group.len() {
                out.push(char::from(ALPHABET[(bits >> (18 - 6 * i)) as usize & 63]));
            } else {
                out.push('=');
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_the_padded_standard_alphabet() {
        for (plain, coded) in [
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(plain.as_bytes()), coded, "RFC 4648 §10");
        }
        assert_eq!(base64(&[0xff, 0xef]), "/+8=");
    }

    #[test]
    fn the_raw_body_follows_its_header_at_once() {
        let text = file(&[0xab; 32], Encoding::Bin);
        assert_eq!(text.len(), "/key/swarm/psk/1.0.0/\n/bin/\n".len() + 32);
        assert!(text.ends_with(&[0xab; 32]));
    }
}
