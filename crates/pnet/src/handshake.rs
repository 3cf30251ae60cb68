//! What the first bytes of a private connection must look like, as values that are fed bytes.
//!
//! PSK v1 has neither a version nor a check of the key: each side sends 24 random bytes, then a stream that is XORed with
//! XSalsa20. A wrong key shows only as garbage one layer above. But the first 20 bytes of that layer are always the
//! same, so comparing them tells a wrong key at once (PNET-H3). The driver is [`PskStream`](crate::PskStream).

use crate::foreign::OtherProtocol;

/// Bytes that each side sends first, in the clear.
pub const NONCE_LEN: usize = 24;
/// Length of [`HEADER`].
pub const HEADER_LEN: usize = 20;
/// What both sides send first above the cipher: the multistream-select header with its length prefix.
pub const HEADER: [u8; HEADER_LEN] = *b"\x13/multistream/1.0.0\n";

/// Watches the nonces of both directions go by (PNET-H1, H2, H4, H5, H9).
#[derive(Debug, Default)]
pub struct NonceCheck {
    own: Prefix<NONCE_LEN>,
    remote: Prefix<NONCE_LEN>,
}

/// Why the remote's nonce is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NonceRefusal {
    /// It is the beginning of a plain multistream greeting: the remote has no swarm key at all.
    PlainText,
    /// It is what another protocol says: nothing there speaks libp2p (PNET-H9).
    Foreign(OtherProtocol),
    /// It is our own nonce sent back, which would make both key streams equal.
    Reflected,
}

impl NonceCheck {
    /// Bytes written to the socket. Only the first [`NONCE_LEN`] matter.
    pub fn on_sent(&mut self, bytes: &[u8]) {
        self.own.extend(bytes);
    }

    /// Bytes read from the socket. Only the first [`NONCE_LEN`] matter.
    pub fn on_received(&mut self, bytes: &[u8]) -> Result<(), NonceRefusal> {
        self.remote.extend(bytes);
        if self.remote.bytes().starts_with(&HEADER) {
            return Err(NonceRefusal::PlainText);
        }
        if let Some(spoken) = OtherProtocol::of(self.remote.bytes()) {
            return Err(NonceRefusal::Foreign(spoken));
        }
        if self.remote.is_full() && self.own.is_full() && self.own.bytes() == self.remote.bytes() {
            return Err(NonceRefusal::Reflected);
        }
        Ok(())
    }

    /// What the remote speaks if these bytes turn out to be no nonce.
    pub fn suspected(&self) -> Option<OtherProtocol> {
        OtherProtocol::suspected(self.remote.bytes())
    }

    /// How many bytes of the remote's nonce have arrived.
    pub fn received(&self) -> usize {
        self.remote.len
    }
}

/// Compares the first decrypted bytes with [`HEADER`] (PNET-H3).
#[derive(Debug, Default)]
pub struct HeaderCheck {
    seen: Prefix<HEADER_LEN>,
}

/// What is known about the remote's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyVerdict {
    /// Fewer than [`HEADER_LEN`] bytes so far.
    Unknown,
    /// The remote has our key. A false verdict has a chance of 2^-160.
    Same,
    /// The remote has another key or none.
    Different,
}

impl HeaderCheck {
    /// Feeds decrypted bytes; what lies beyond the header is not looked at.
    ///
    /// The verdict falls only when all 20 bytes are there, so that its time tells nothing about which byte differed.
    pub fn on_decrypted(&mut self, bytes: &[u8]) -> KeyVerdict {
        self.seen.extend(bytes);
        match (self.seen.is_full(), self.seen.bytes() == HEADER) {
            (false, _) => KeyVerdict::Unknown,
            (true, true) => KeyVerdict::Same,
            (true, false) => KeyVerdict::Different,
        }
    }
}

/// The first `N` bytes of a stream.
#[derive(Debug)]
struct Prefix<const N: usize> {
    bytes: [u8; N],
    len: usize,
}

impl<const N: usize> Prefix<N> {
    fn extend(&mut self, bytes: &[u8]) {
        let take = bytes.len().min(N - self.len);
        self.bytes[self.len..self.len + take].copy_from_slice(&bytes[..take]);
        self.len += take;
    }

    fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    fn is_full(&self) -> bool {
        self.len == N
    }
}

impl<const N: usize> Default for Prefix<N> {
    fn default() -> Self {
        Self {
            bytes: [0; N],
            len: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn pnet_h3_header_is_recognised_in_any_split() {
        for split in 0..=HEADER_LEN {
            let mut check = HeaderCheck::default();
            let early = check.on_decrypted(&HEADER[..split]);
            assert_eq!(early == KeyVerdict::Same, split == HEADER_LEN);
            assert_eq!(
                check.on_decrypted(&[&HEADER[split..], b"\x07/noise\n"].concat()),
                KeyVerdict::Same
            );
        }
    }

    #[test]
    fn pnet_h3_each_flipped_bit_is_a_different_key_and_never_earlier_than_byte_20() {
        for bit in 0..HEADER_LEN * 8 {
            let mut bytes = HEADER;
            bytes[bit / 8] ^= 1 << (bit % 8);
            let mut check = HeaderCheck::default();
            assert_eq!(
                check.on_decrypted(&bytes[..HEADER_LEN - 1]),
                KeyVerdict::Unknown
            );
            assert_eq!(
                check.on_decrypted(&bytes[HEADER_LEN - 1..]),
                KeyVerdict::Different
            );
        }
    }

    #[test]
    fn pnet_h5_reflected_nonce_is_refused_in_any_split() {
        let nonce: [u8; NONCE_LEN] = std::array::from_fn(|i| 0xA0 ^ i as u8);
        for split in 0..NONCE_LEN {
            let mut check = NonceCheck::default();
            check.on_sent(&nonce);
            assert_eq!(check.on_received(&nonce[..split]), Ok(()));
            assert_eq!(
                check.on_received(&nonce[split..]),
                Err(NonceRefusal::Reflected)
            );
        }
    }

    #[test]
    fn pnet_h4_plain_greeting_is_no_nonce() {
        let mut check = NonceCheck::default();
        check.on_sent(&[7; NONCE_LEN]);
        assert_eq!(check.on_received(&HEADER[..19]), Ok(()));
        assert_eq!(
            check.on_received(&HEADER[19..]),
            Err(NonceRefusal::PlainText)
        );
    }

    /// Incident: dialing the port of a web server was told as a wrong swarm key.
    #[test]
    fn pnet_h9_another_protocol_is_no_nonce() {
        let answer = b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n";
        for split in 0..answer.len() {
            let mut check = NonceCheck::default();
            let first = check.on_received(&answer[..split]);
            let refused = first.and_then(|()| check.on_received(&answer[split..]));
            assert_eq!(refused, Err(NonceRefusal::Foreign(OtherProtocol::Http)));
        }
        let mut check = NonceCheck::default();
        assert_eq!(check.on_received(b"ERR 1\r\n"), Ok(()));
        assert_eq!(check.suspected(), Some(OtherProtocol::Text));
    }

    #[test]
    fn later_bytes_are_not_part_of_the_nonce() {
        let mut check = NonceCheck::default();
        check.on_sent(&[7; NONCE_LEN]);
        assert_eq!(check.on_received(&[8; NONCE_LEN]), Ok(()));
        assert_eq!(check.on_received(&[7; 3 * NONCE_LEN]), Ok(()));
        assert_eq!(check.received(), NONCE_LEN);
    }
}
