//! Signatures: the preimage, and the two pieces of heavy work as values (specs/gossip.md GO-5).

use std::collections::BTreeMap;

use bytes::Bytes;
use libp2p_identity::{Keypair, PeerId, PublicKey};

use super::message;
use super::pb::put_bytes;
use super::tables::{Due, WORTH};
use crate::error::PublishError;
use crate::message::{RawMessage, Topic};
use crate::seen::{Digester, Mark};

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
        if let Some(known) = keys.known.get_mut(from) {
            let outcome = self.check(&known.key);
            if outcome == VerifyOutcome::Good && known.count(keys.checks) {
                keys.due = Some(known.due(from));
            }
            return outcome;
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
    known: BTreeMap<Box<[u8]>, Known>,
    /// Checks of all workers so far, see [`super::Tables`].
    checks: u64,
    due: Option<Due>,
}

struct Known {
    key: PublicKey,
    /// Good signatures since so many checks.
    good: u32,
    since: u64,
}

const MAX_KEYS: usize = 512;

impl Keys {
    fn remember(&mut self, author: &[u8], key: PublicKey) {
        if self.known.len() >= MAX_KEYS {
            self.known.clear();
        }
        let known = Known {
            key,
            good: 1,
            since: self.checks,
        };
        self.known.insert(author.into(), known);
    }

    /// Says how many checks there were, of all workers ([`super::Tables::checks`]).
    pub fn set_checks(&mut self, checks: u64) {
        self.checks = checks;
    }

    /// The author that was the last to sign well 64 times: a table may be worth it ([`super::Tables::reserve`]).
    pub fn take_due(&mut self) -> Option<Due> {
        self.due.take()
    }
}

impl Known {
    /// Counts a good signature. Returns whether a table would be worth it, once in [`WORTH`].
    fn count(&mut self, checks: u64) -> bool {
        if self.good == 0 {
            self.since = checks;
        }
        self.good = (self.good + 1) % WORTH;
        self.good == 0
    }

    fn due(&self, author: &[u8]) -> Due {
        Due {
            author: author.into(),
            key: self.key.clone(),
            since: self.since,
        }
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

/// A message of one's own that is to be written, signed and digested: all that takes longer the longer it is. Shares the payload's memory
/// until it is run. Run it off the swarm's task; hand the result in as [`crate::Input::Signed`].
#[derive(Clone, Debug)]
pub struct SignJob {
    /// None on unsigned topics.
    author: Option<(Author, u64)>,
    data: Bytes,
    topic: Topic,
    digester: Digester,
}

/// A message of one's own, ready to leave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnMessage {
    /// As it travels.
    pub message: RawMessage,
    /// Of its bytes, for the cache: copies that come back are known.
    pub(crate) mark: Mark,
}

impl SignJob {
    pub(crate) fn new(
        author: Option<(Author, u64)>,
        data: Bytes,
        topic: Topic,
        digester: Digester,
    ) -> Self {
        Self {
            author,
            data,
            topic,
            digester,
        }
    }

    /// Writes and signs. On a topic without signatures the key is not used.
    ///
    /// # Errors
    /// [`PublishError::Signing`] if the key cannot sign.
    pub fn run(&self, keypair: &Keypair) -> Result<OwnMessage, PublishError> {
        let Some((author, seqno)) = &self.author else {
            return self.run_keyless();
        };
        let mut unsigned = put_author(SIGN_PREFIX, author, *seqno, &self.data, self.topic.as_str());
        let signature = keypair
            .sign(&unsigned)
            .map_err(|error| PublishError::Signing(error.to_string()))?;
        unsigned.drain(..SIGN_PREFIX.len());
        self.digested(finish(unsigned, author, &signature)?)
    }

    /// Writes a message of a topic without signatures.
    ///
    /// # Errors
    /// [`PublishError::NoKey`] if it is to be signed.
    pub fn run_keyless(&self) -> Result<OwnMessage, PublishError> {
        match &self.author {
            None => self.digested(unsigned(&self.data, self.topic.as_str())?),
            Some(_) => Err(PublishError::NoKey),
        }
    }

    /// What is signed, behind its prefix; empty on topics without signatures.
    #[cfg(feature = "sim")]
    pub(crate) fn unsigned(&self) -> Vec<u8> {
        self.author
            .as_ref()
            .map_or_else(Vec::new, |(author, seqno)| {
                to_sign(author, *seqno, &self.data, self.topic.as_str())
            })
    }

    /// Takes a signature that was made elsewhere; leaves it out on topics without signatures.
    ///
    /// # Errors
    /// [`PublishError::Signing`] if it is none: empty, or above 1,024 bytes.
    pub fn attach(&self, signature: &[u8]) -> Result<OwnMessage, PublishError> {
        match &self.author {
            None => self.run_keyless(),
            Some((author, seqno)) => {
                let topic = self.topic.as_str();
                self.digested(signed(author, *seqno, &self.data, topic, signature)?)
            }
        }
    }

    fn digested(&self, message: RawMessage) -> Result<OwnMessage, PublishError> {
        let mark = Mark::new(self.digester.digest(message.bytes()));
        Ok(OwnMessage { message, mark })
    }
}

/// What is signed, behind the prefix.
#[cfg(feature = "sim")]
pub(crate) fn to_sign(author: &Author, seqno: u64, data: &[u8], topic: &str) -> Vec<u8> {
    put_author(&[], author, seqno, data, topic)
}

/// A message with a signature that was made elsewhere.
pub(crate) fn signed(
    author: &Author,
    seqno: u64,
    data: &[u8],
    topic: &str,
    signature: &[u8],
) -> Result<RawMessage, PublishError> {
    finish(
        put_author(&[], author, seqno, data, topic),
        author,
        signature,
    )
}

/// A message without author.
pub(crate) fn unsigned(data: &[u8], topic: &str) -> Result<RawMessage, PublishError> {
    let mut body = Vec::with_capacity(data.len() + topic.len() + 16);
    message::put_unsigned(&mut body, None, data, topic);
    from_body(&body)
}

/// What is signed, behind `prefix`.
fn put_author(prefix: &[u8], author: &Author, seqno: u64, data: &[u8], topic: &str) -> Vec<u8> {
    let from = author.peer.to_bytes();
    let len = prefix.len() + data.len() + from.len() + topic.len();
    let mut out = Vec::with_capacity(len + author.key.len() + 24 + 80);
    out.extend_from_slice(prefix);
    message::put_unsigned(&mut out, Some((&from, seqno)), data, topic);
    out
}

fn finish(
    mut body: Vec<u8>,
    author: &Author,
    signature: &[u8],
) -> Result<RawMessage, PublishError> {
    put_bytes(&mut body, 5, signature);
    if !author.key.is_empty() {
        put_bytes(&mut body, 6, &author.key);
    }
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
    use crate::seen::{Seen, SeenConfig};

    fn job(author: &Author, signer: &Keypair, seqno: u64) -> VerifyJob {
        let digester = Seen::new(SeenConfig::default(), [1; 32]).digester();
        let (data, topic) = (Bytes::from_static(b"data"), Topic::new("t").unwrap());
        let job = SignJob::new(Some((author.clone(), seqno)), data, topic, digester);
        let message = job.run(signer).unwrap().message;
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
    fn go_5_who_signs_well_often_is_due_for_a_table_and_nobody_else() {
        let (key, other) = (Keypair::generate_ed25519(), Keypair::generate_ed25519());
        let author = Author::new(&key.public());
        let mut keys = Keys::default();
        for n in 1..=u64::from(WORTH) * 2 {
            assert_eq!(
                job(&author, &other, n).run_with(&mut keys),
                VerifyOutcome::Bad
            );
            assert!(keys.due.is_none(), "forgeries count for nobody");
            keys.checks = n * 10;
            let good = job(&author, &key, n).run_with(&mut keys);
            assert_eq!(good, VerifyOutcome::Good);
            let due = keys.due.take();
            assert_eq!(due.is_some(), n % u64::from(WORTH) == 0, "{n}");
            if let Some(due) = due {
                let first = n + 1 - u64::from(WORTH);
                assert_eq!(*due.author, *author.peer.to_bytes());
                assert_eq!(due.since, first * 10);
            }
        }
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
