//! The vocabulary: topics, ids, a message as it lies in a frame, a message as it is delivered.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use libp2p_identity::PeerId;

use crate::error::TopicError;

/// Longest topic in bytes. Kubo has no limit; its own topics (IPNS) are below 100.
pub const MAX_TOPIC_BYTES: usize = 1024;

/// Topics with this prefix are our own; only they may carry unsigned messages (specs/gossip.md GO-6).
pub const OWN_PREFIX: &str = "/gemba/";

/// The name of a channel: text of 1 to [`MAX_TOPIC_BYTES`] bytes. A copy costs no memory.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Topic(Arc<str>);

impl Topic {
    /// Checks the length.
    ///
    /// # Errors
    /// [`TopicError`] if the name is empty or too long.
    pub fn new(name: impl AsRef<str>) -> Result<Self, TopicError> {
        let name = name.as_ref();
        match name.len() {
            0 => Err(TopicError::Empty),
            len if len > MAX_TOPIC_BYTES => Err(TopicError::TooLong(len)),
            _ => Ok(Self(name.into())),
        }
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the topic may carry unsigned messages.
    #[must_use]
    pub fn is_own(&self) -> bool {
        self.0.starts_with(OWN_PREFIX)
    }
}

impl std::borrow::Borrow<str> for Topic {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

#[cfg(feature = "serde")]
impl serde::Serialize for Topic {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&self.0)
    }
}

/// Names a message: the bytes of its author and of its sequence number, as Kubo has it; of an unsigned message a hash
/// of topic and data. At most [`MessageId::MAX_BYTES`] bytes.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MessageId(Bytes);

impl MessageId {
    /// Ids of others are not taken above this. Ours have 46 bytes (Ed25519) or 20 (unsigned).
    pub const MAX_BYTES: usize = 256;

    /// Takes bytes as they are.
    #[must_use]
    pub fn new(bytes: impl Into<Bytes>) -> Self {
        Self(bytes.into())
    }

    /// Of a signed message.
    #[must_use]
    pub fn signed(from: &[u8], seqno: u64) -> Self {
        let mut id = Vec::with_capacity(from.len() + 8);
        id.extend_from_slice(from);
        id.extend_from_slice(&seqno.to_be_bytes());
        Self(id.into())
    }

    /// Of an unsigned message: the same for the same content, whoever sends it.
    #[must_use]
    pub fn unsigned(topic: &str, data: &[u8]) -> Self {
        let mut hash =
            blake3::Hasher::new_derive_key("gemba-gossip 2026 id of an unsigned message");
        hash.update(&(topic.len() as u64).to_be_bytes());
        hash.update(topic.as_bytes());
        hash.update(data);
        crate::hash::note(data.len());
        Self(Bytes::copy_from_slice(&hash.finalize().as_bytes()[..20]))
    }

    /// The bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MessageId({self})")
    }
}

#[cfg(feature = "serde")]
impl serde::Serialize for MessageId {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

/// A message as it travels, in canonical form, not verified: the whole `publish` field of an RPC, header included, so
/// that it is forwarded as it came without a copy. Made by [`crate::wire`] only.
#[derive(Clone, PartialEq, Eq)]
pub struct RawMessage {
    pub(crate) field: Bytes,
    /// Where the message begins behind the header of the field.
    pub(crate) start: u32,
    pub(crate) from: Span,
    pub(crate) data: Span,
    pub(crate) topic: Span,
    /// The message without signature and key ends here.
    pub(crate) unsigned_end: u32,
    pub(crate) signature: Span,
    pub(crate) key: Span,
    pub(crate) seqno: Option<u64>,
    /// Made where the message is read or written: that of an unsigned one takes longer the longer it is.
    pub(crate) id: MessageId,
}

/// A piece of [`RawMessage::field`]; empty where the field is absent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) from: u32,
    pub(crate) to: u32,
}

impl Span {
    pub(crate) fn range(self) -> Range<usize> {
        self.from as usize..self.to as usize
    }
}

impl RawMessage {
    /// The message, byte for byte: what the digest is of.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.field[self.start as usize..]
    }

    /// The message as a field of an RPC, header included.
    #[must_use]
    pub fn field(&self) -> &Bytes {
        &self.field
    }

    /// Author as bytes of a peer id; empty if unsigned.
    #[must_use]
    pub fn from(&self) -> &[u8] {
        &self.field[self.from.range()]
    }

    /// The payload.
    #[must_use]
    pub fn data(&self) -> Bytes {
        self.field.slice(self.data.range())
    }

    /// Length of the payload.
    #[must_use]
    pub fn data_len(&self) -> usize {
        self.data.range().len()
    }

    /// Name of the topic, 1 to [`MAX_TOPIC_BYTES`] bytes.
    #[must_use]
    pub fn topic(&self) -> &str {
        // Checked when the message was read; there is no way to make one otherwise.
        std::str::from_utf8(&self.field[self.topic.range()]).unwrap_or_default()
    }

    /// Sequence number; none if unsigned.
    #[must_use]
    pub fn seqno(&self) -> Option<u64> {
        self.seqno
    }

    /// The signature; empty if unsigned.
    #[must_use]
    pub fn signature(&self) -> &[u8] {
        &self.field[self.signature.range()]
    }

    /// The author's public key, where the peer id does not hold it; else empty.
    #[must_use]
    pub fn key(&self) -> &[u8] {
        &self.field[self.key.range()]
    }

    /// What the signature is of, behind its prefix.
    #[must_use]
    pub fn signed_bytes(&self) -> &[u8] {
        &self.field[self.start as usize..self.unsigned_end as usize]
    }

    /// Whether author, number and signature are there (or all of them are absent).
    #[must_use]
    pub fn is_signed(&self) -> bool {
        self.seqno.is_some()
    }

    /// The id. A copy costs no memory.
    #[must_use]
    pub fn id(&self) -> MessageId {
        self.id.clone()
    }

    /// Bytes on the wire.
    #[must_use]
    pub fn wire_len(&self) -> usize {
        self.field.len()
    }
}

impl fmt::Debug for RawMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "RawMessage({:?}, {} bytes, number {:?})",
            self.topic(),
            self.data_len(),
            self.seqno
        )
    }
}

/// A delivered message: verified, seen for the first time.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Message {
    /// Its id.
    pub id: MessageId,
    /// Who signed it; none on unsigned topics.
    pub source: Option<PeerId>,
    /// The author's number; none on unsigned topics.
    pub seqno: Option<u64>,
    /// Where it was published.
    pub topic: Topic,
    /// The payload. Shares memory with what is forwarded.
    pub data: Bytes,
    /// The neighbour that was first to send it; none for one's own.
    pub received_from: Option<PeerId>,
}
