//! Signatures: the preimage, and the two pieces of heavy work as values (specs/gossip.md GO-5).

use std::collections::BTreeMap;

use bytes::Bytes;
use libp2p_identity::{Keypair, PeerId, PublicKey};

use super::message;
use super::pb::put_bytes;
use crate::error::PublishError;
use crate::message::RawMessage;

/// Stands in front of the signed bytes.
pub const SIGN_PREFIX: &[u8] = b"libp2p-pubsub:";

/// A message whose signature is to be checked. Takes about 40 µs and 5 µs a KiB on a small machine: run it off the swarm's task.
#[derive(Clone, Debug)]
pub struct VerifyJob {
    /// The message.
    pub message: RawMessage,
}

/// What a check gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum VerifyOutcome {
    /// The author signed these bytes.
    Good,
    /// The author did not.
    Bad,
    /// It cannot be told here: a kind of key that this build does not know.
    Unknown,
}

impl VerifyJob {
    /// Checks the signature.
    #[must_use]
    pub fn run(&self) -> VerifyOutcome {
        self.run_with(&mut Keys::default())
    }

    /// Checks the signature, with what is left of earlier checks.
    #[must_use]
    pub fn run_with(&self, keys: &mut Keys) -> VerifyOutcome {
        let from = self.message.from();
        if let Some(key) = keys.known.get(from) {
            return self.check(key);
        }
        let Ok(author) = PeerId::from_bytes(from) else {
            return VerifyOutcome::Bad;
        };
        let key = match key_of(&author, self.message.key()) {
            Ok(key) => key,
            Err(outcome) => return outcome,
        };
        let outcome = self.check(&key);
        // Only who signs is remembered: names that anybody can write push nobody out.
        if outcome == VerifyOutcome::Good && author.as_ref().code() == 0 {
            keys.remember(from, key);
        }
        outcome
    }

    fn check(&self, key: &PublicKey) -> VerifyOutcome {
        if key.verify(&preimage(&self.message), self.message.signature()) {
            VerifyOutcome::Good
        } else {
            VerifyOutcome::Bad
        }
    }
}

/// Keys of authors whose ids hold them, decoded: a point of the curve takes an eighth of a check to unpack. For one worker; at most 512, of
/// 300 bytes each. When it is full it begins anew.
#[derive(Default)]
pub struct Keys {
    known: BTreeMap<Box<[u8]>, PublicKey>,
}

const MAX_KEYS: usize = 512;

impl Keys {
    fn remember(&mut self, author: &[u8], key: PublicKey) {
        if self.known.len() >= MAX_KEYS {
            self.known.clear();
        }
        self.known.insert(author.into(), key);
    }
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Keys({})", self.known.len())
    }
}

fn preimage(message: &RawMessage) -> Vec<u8> {
    [SIGN_PREFIX, message.signed_bytes()].concat()
}

/// The key of an author: what its id holds, or what came along if it has that id. The key is not signed: only its one canonical form is
/// taken.
fn key_of(author: &PeerId, sent: &[u8]) -> Result<PublicKey, VerifyOutcome> {
    let bytes = author.as_ref();
    let held = (bytes.code() == 0).then(|| bytes.digest());
    let encoded = held.unwrap_or(sent);
    if encoded.is_empty() {
        return Err(VerifyOutcome::Bad);
    }
    let key = PublicKey::try_decode_protobuf(encoded).map_err(|_| match known_kind(encoded) {
        true => VerifyOutcome::Bad,
        false => VerifyOutcome::Unknown,
    })?;
    if PeerId::from_public_key(&key) != *author || key.encode_protobuf() != encoded {
        return Err(VerifyOutcome::Bad);
    }
    Ok(key)
}

/// Ed25519: the kind that every build knows. `08 01` is the field of the kind.
fn known_kind(encoded: &[u8]) -> bool {
    !matches!(encoded, [0x08, 0x00 | 0x02 | 0x03, ..])
}

/// Who publishes: the id, and the key where the id does not hold it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Author {
    peer: PeerId,
    key: Bytes,
}

impl Author {
    /// Of this key.
    #[must_use]
    pub fn new(key: &PublicKey) -> Self {
        let peer = PeerId::from_public_key(key);
        let held = peer.as_ref().code() == 0;
        Self {
            peer,
            key: if held {
                Bytes::new()
            } else {
                key.encode_protobuf().into()
            },
        }
    }

    /// The id.
    #[must_use]
    pub fn peer(&self) -> PeerId {
        self.peer
    }

    pub(crate) fn key(&self) -> &[u8] {
        &self.key
    }

    /// For tests and simulations whose peers have no keys.
    #[doc(hidden)]
    #[must_use]
    pub fn keyless(peer: PeerId) -> Self {
        Self {
            peer,
            key: Bytes::new(),
        }
    }
}

/// A message of one's own that waits for its signature. Run it off the swarm's task; hand the result in as
/// [`crate::Input::Signed`].
#[derive(Clone, Debug)]
pub struct SignJob {
    unsigned: Vec<u8>,
    key: Bytes,
}

impl SignJob {
    pub(crate) fn new(author: &Author, seqno: u64, data: &[u8], topic: &str) -> Self {
        let from = author.peer.to_bytes();
        let mut unsigned = Vec::with_capacity(data.len() + from.len() + topic.len() + 24);
        message::put_unsigned(&mut unsigned, Some((&from, seqno)), data, topic);
        Self {
            unsigned,
            key: author.key.clone(),
        }
    }

    /// Signs.
    ///
    /// # Errors
    /// [`PublishError::Signing`] if the key cannot sign.
    pub fn run(&self, keypair: &Keypair) -> Result<RawMessage, PublishError> {
        let signature = keypair
            .sign(&[SIGN_PREFIX, &self.unsigned].concat())
            .map_err(|error| PublishError::Signing(error.to_string()))?;
        self.attach(&signature)
    }

    /// What is signed, behind its prefix.
    #[cfg(feature = "sim")]
    pub(crate) fn unsigned(&self) -> &[u8] {
        &self.unsigned
    }

    /// Takes a signature that was made elsewhere.
    ///
    /// # Errors
    /// [`PublishError::Signing`] if it is none: empty, or above 1,024 bytes.
    pub fn attach(&self, signature: &[u8]) -> Result<RawMessage, PublishError> {
        let mut body = self.unsigned.clone();
        put_bytes(&mut body, 5, signature);
        if !self.key.is_empty() {
            put_bytes(&mut body, 6, &self.key);
        }
        from_body(&body)
    }
}

/// A message without author.
pub(crate) fn unsigned(data: &[u8], topic: &str) -> Result<RawMessage, PublishError> {
    let mut body = Vec::with_capacity(data.len() + topic.len() + 16);
    message::put_unsigned(&mut body, None, data, topic);
    from_body(&body)
}

fn from_body(body: &[u8]) -> Result<RawMessage, PublishError> {
    let mut field = Vec::with_capacity(body.len() + 5);
    put_bytes(&mut field, 2, body);
    let start = field.len() - body.len();
    message::parse(field.into(), start).map_err(|error| PublishError::Signing(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(author: &Author, signer: &Keypair, seqno: u64) -> VerifyJob {
        let message = SignJob::new(author, seqno, b"data", "t")
            .run(signer)
            .unwrap();
        VerifyJob { message }
    }

    #[test]
    fn go_5_a_remembered_key_counts_for_its_author_only() {
        let (key, other) = (Keypair::generate_ed25519(), Keypair::generate_ed25519());
        let (author, another) = (Author::new(&key.public()), Author::new(&other.public()));
        let mut keys = Keys::default();
        assert_eq!(
            job(&author, &other, 1).run_with(&mut keys),
            VerifyOutcome::Bad
        );
        assert!(keys.known.is_empty(), "who does not sign is not remembered");
        assert_eq!(
            job(&author, &key, 2).run_with(&mut keys),
            VerifyOutcome::Good
        );
        assert_eq!(keys.known.len(), 1);
        assert_eq!(
            job(&author, &key, 3).run_with(&mut keys),
            VerifyOutcome::Good
        );
        assert_eq!(
            job(&author, &other, 4).run_with(&mut keys),
            VerifyOutcome::Bad
        );
        assert_eq!(
            job(&another, &key, 5).run_with(&mut keys),
            VerifyOutcome::Bad
        );
        assert_eq!(
            job(&another, &other, 6).run_with(&mut keys),
            VerifyOutcome::Good
        );
    }

    #[test]
    fn remembered_keys_are_bounded() {
        let mut keys = Keys::default();
        let key = Keypair::generate_ed25519().public();
        for n in 0..MAX_KEYS as u64 * 2 + 5 {
            keys.remember(&n.to_be_bytes(), key.clone());
            assert!(keys.known.len() <= MAX_KEYS);
        }
    }
}
