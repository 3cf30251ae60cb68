//! Who wrote what: authors, feeds, places in them, and the order of events over all feeds (specs/log.md §2).

use std::fmt;

use ring::digest::{SHA256, digest};
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};

use crate::stream::StreamName;

/// Place of an event in its feed. The first event has 0.
pub type Seq = u64;

/// Largest sequence number, epoch, batch number and Lamport time: what every JSON reader takes exactly, 2^53 − 1.
pub const MAX_NUMBER: u64 = (1 << 53) - 1;

/// Who writes: an Ed25519 public key. A node's author and its peer id are the same key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Author(pub [u8; 32]);

impl Author {
    /// Whether this author signed `message`.
    #[must_use]
    pub fn has_signed(&self, message: &[u8], signature: &[u8; 64]) -> bool {
        UnparsedPublicKey::new(&ED25519, &self.0)
            .verify(message, signature)
            .is_ok()
    }
}

impl fmt::Display for Author {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(&self.0, f)
    }
}

impl fmt::Debug for Author {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(&self.0[..6], f)
    }
}

fn write_hex(bytes: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

/// The life of a feed. One that was shortened or restored from a copy goes on in a new epoch, so that a place is never given twice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub u64);

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What one author writes into one stream in one epoch. Cheap to clone. Ordered by author, stream, epoch.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FeedId {
    /// Who writes.
    pub author: Author,
    /// Where to.
    pub stream: StreamName,
    /// Which life of it.
    pub epoch: Epoch,
}

impl FeedId {
    /// A short name of fixed length: 16 bytes of a hash.
    #[must_use]
    pub(crate) fn key(&self) -> FeedKey {
        let mut bytes = b"gemba log feed 1".to_vec();
        self.put(&mut bytes);
        let hash = digest(&SHA256, &bytes);
        let mut key = [0; 16];
        key.copy_from_slice(&hash.as_ref()[..16]);
        FeedKey(key)
    }

    /// Author, epoch (8 bytes, big-endian), stream.
    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.author.0);
        out.extend_from_slice(&self.epoch.0.to_be_bytes());
        out.extend_from_slice(self.stream.as_str().as_bytes());
    }
}

impl fmt::Debug for FeedId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}:{}:{}", self.author, self.stream, self.epoch)
    }
}

/// A feed by a name of fixed length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct FeedKey(pub(crate) [u8; 16]);

/// An event by name: the same on every node, for ever.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventId {
    /// The feed.
    pub feed: FeedId,
    /// The place in it.
    pub seq: Seq,
}

/// The hash of an event and of all before it in its feed: an offset that carries it proves what it was taken from.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventHash(pub [u8; 32]);

impl fmt::Display for EventHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(&self.0, f)
    }
}

impl fmt::Debug for EventHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(&self.0[..6], f)
    }
}

/// The place of an event in the one order over all feeds, which is the same on all nodes (specs/log.md LOG-7). Wall clocks have no part in it.
///
/// Logical time rises along a feed from batch to batch, so the batch decides only where an author forked its feed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct OrderKey {
    /// Logical time of the batch.
    pub lamport: u64,
    /// The feed.
    pub feed: FeedId,
    /// Digest of the batch.
    pub batch: [u8; 32],
    /// Place in the feed.
    pub seq: Seq,
}

/// Signs batches. The key stays where it is: the log never sees or stores it.
pub trait Signer: Send + Sync {
    /// Whose key it is.
    fn author(&self) -> Author;

    /// The Ed25519 signature (RFC 8032, without prehash) of `message`.
    fn sign(&self, message: &[u8]) -> [u8; 64];
}

/// A signer whose key is in memory.
pub struct MemorySigner(Ed25519KeyPair);

impl MemorySigner {
    /// From the 32 secret bytes of RFC 8032.
    #[must_use]
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        match Ed25519KeyPair::from_seed_unchecked(seed) {
            Ok(pair) => Self(pair),
            // The one thing that is checked is the length.
            Err(_) => unreachable!("any 32 bytes are a seed"),
        }
    }
}

impl fmt::Debug for MemorySigner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MemorySigner({:?})", self.author())
    }
}

impl Signer for MemorySigner {
    fn author(&self) -> Author {
        let mut author = [0; 32];
        author.copy_from_slice(self.0.public_key().as_ref());
        Author(author)
    }

    fn sign(&self, message: &[u8]) -> [u8; 64] {
        let mut signature = [0; 64];
        signature.copy_from_slice(self.0.sign(message).as_ref());
        signature
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn feed(author: u8, stream: &str, epoch: u64) -> FeedId {
        FeedId {
            author: Author([author; 32]),
            stream: stream.parse().unwrap(),
            epoch: Epoch(epoch),
        }
    }

    /// LOG-7: Lamport time, author, stream, epoch, the batch where an author forked, place.
    #[test]
    fn log_7_the_order_has_one_form() {
        let key = |lamport, feed: FeedId, seq, batch| OrderKey {
            lamport,
            feed,
            seq,
            batch: [batch; 32],
        };
        let sorted = [
            key(1, feed(9, "z", 9), 9, 9),
            key(2, feed(1, "z", 9), 9, 9),
            key(2, feed(2, "a", 9), 9, 9),
            key(2, feed(2, "b", 0), 9, 9),
            key(2, feed(2, "b", 1), 1, 0),
            key(2, feed(2, "b", 1), 0, 1),
            key(2, feed(2, "b", 1), 1, 1),
        ];
        assert!(sorted.windows(2).all(|pair| pair[0] < pair[1]));
    }

    /// RFC 8032, test 1.
    #[test]
    fn signatures_are_those_of_the_rfc() {
        let seed = [
            0x9d, 0x61, 0xb1, 0x9d, 0xef, 0xfd, 0x5a, 0x60, 0xba, 0x84, 0x4a, 0xf4, 0x92, 0xec,
            0x2c, 0xc4, 0x44, 0x49, 0xc5, 0x69, 0x7b, 0x32, 0x69, 0x19, 0x70, 0x3b, 0xac, 0x03,
            0x1c, 0xae, 0x7f, 0x60,
        ];
        let signer = MemorySigner::from_seed(&seed);
        let signature = signer.sign(b"");
        assert_eq!(
            signer.author().to_string(),
            "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
        );
        assert_eq!(signature[..4], [0xe5, 0x56, 0x43, 0x00]);
        assert!(signer.author().has_signed(b"", &signature));
        assert!(!signer.author().has_signed(b"x", &signature));
        assert!(!format!("{signer:?}").contains("9d61"));
    }

    #[test]
    fn keys_of_feeds_differ() {
        let key = feed(1, "a", 0).key();
        assert_eq!(key, feed(1, "a", 0).key());
        for other in [feed(2, "a", 0), feed(1, "b", 0), feed(1, "a", 1)] {
            assert_ne!(key, other.key());
        }
    }
}
