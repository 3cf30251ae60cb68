//! Writes RPCs as lists of pieces.

use bytes::Bytes;

use super::pb::{bytes_field_len, put_bytes, put_number, put_varint, varint_len};
use super::{MAX_CONTROL_BYTES, MAX_FRAME_BYTES, RPC_PING, RPC_PONG, SUB_DISTANCE};
use crate::Time;
use crate::message::{MessageId, Topic};

/// An RPC ready to be written: its length prefix and control, then one piece a message. The pieces are shared between peers.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Frame {
    /// To be written one behind the other.
    pub parts: Vec<Bytes>,
    /// Sum of their lengths.
    pub bytes: usize,
    /// Messages among them.
    pub messages: usize,
    /// If its first byte is not written before, it is not to be written at all. `Time::MAX` for frames without messages.
    pub expires: Time,
}

/// Gathers what goes into one RPC.
#[derive(Debug, Default)]
pub struct FrameBuilder {
    subscriptions: Vec<u8>,
    ihave: Vec<u8>,
    iwant: Vec<u8>,
    others: Vec<u8>,
    probes: Vec<u8>,
    messages: Vec<Bytes>,
    message_bytes: usize,
}

impl FrameBuilder {
    /// An empty RPC.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Bytes of control and subscriptions so far, as rust-libp2p counts them.
    #[must_use]
    pub fn control_bytes(&self) -> usize {
        self.subscriptions.len() + self.control_len() + self.probes.len()
    }

    /// Bytes so far, without the length prefix.
    #[must_use]
    pub fn len(&self) -> usize {
        let control = match self.control_len() {
            0 => 0,
            len => bytes_field_len(3, len),
        };
        self.subscriptions.len() + control + self.probes.len() + self.message_bytes
    }

    /// Whether there is nothing in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn control_len(&self) -> usize {
        let ids = |len| match len {
            0 => 0,
            len => bytes_field_len(2, len),
        };
        self.ihave.len() + ids(self.iwant.len()) + self.others.len()
    }

    /// Announces a topic; `distance` 0 is a real subscription.
    pub fn subscription(&mut self, topic: &Topic, subscribe: bool, distance: u8) {
        let mut entry = Vec::with_capacity(topic.as_str().len() + 10);
        put_number(&mut entry, 1, u64::from(subscribe));
        put_bytes(&mut entry, 2, topic.as_str().as_bytes());
        if distance > 0 {
            put_number(&mut entry, SUB_DISTANCE, u64::from(distance));
        }
        put_bytes(&mut self.subscriptions, 1, &entry);
    }

    /// Joins a mesh.
    pub fn graft(&mut self, topic: &Topic) {
        let mut entry = Vec::with_capacity(topic.as_str().len() + 3);
        put_bytes(&mut entry, 1, topic.as_str().as_bytes());
        put_bytes(&mut self.others, 3, &entry);
    }

    /// Leaves a mesh, for `backoff` seconds (none to 1.0).
    pub fn prune(&mut self, topic: &Topic, backoff: Option<u64>) {
        let mut entry = Vec::with_capacity(topic.as_str().len() + 8);
        put_bytes(&mut entry, 1, topic.as_str().as_bytes());
        if let Some(backoff) = backoff {
            put_number(&mut entry, 3, backoff);
        }
        put_bytes(&mut self.others, 4, &entry);
    }

    /// Advertises ids, as many as the control part has room for; returns how many.
    pub fn ihave(&mut self, topic: &Topic, ids: &[MessageId]) -> usize {
        let mut entry = Vec::new();
        put_bytes(&mut entry, 1, topic.as_str().as_bytes());
        let taken = self.fill(&mut entry, 2, ids);
        if taken > 0 {
            put_bytes(&mut self.ihave, 1, &entry);
        }
        taken
    }

    /// Asks for ids, as many as the control part has room for; returns how many.
    pub fn iwant(&mut self, ids: &[MessageId]) -> usize {
        let mut entry = std::mem::take(&mut self.iwant);
        let taken = self.fill(&mut entry, 1, ids);
        self.iwant = entry;
        taken
    }

    /// Says that ids need not be sent, as many as the control part has room for; returns how many.
    pub fn idontwant(&mut self, ids: &[MessageId]) -> usize {
        let mut entry = Vec::new();
        let taken = self.fill(&mut entry, 1, ids);
        if taken > 0 {
            put_bytes(&mut self.others, 5, &entry);
        }
        taken
    }

    fn fill(&self, entry: &mut Vec<u8>, number: u64, ids: &[MessageId]) -> usize {
        // Headers of the entry and of the control field.
        const HEADERS: usize = 16;
        let room = MAX_CONTROL_BYTES.saturating_sub(self.control_bytes() + HEADERS);
        let mut taken = 0;
        for id in ids {
            if entry.len() + bytes_field_len(number, id.len()) > room {
                break;
            }
            put_bytes(entry, number, id.as_bytes());
            taken += 1;
        }
        taken
    }

    /// Private: asks whether the stream is read.
    pub fn ping(&mut self, nonce: u64) {
        put_number(&mut self.probes, RPC_PING, nonce);
    }

    /// Private: answers.
    pub fn pong(&mut self, nonce: u64) {
        put_number(&mut self.probes, RPC_PONG, nonce);
    }

    /// Whether a message of so many bytes (field header included) still fits into an RPC that every peer takes.
    #[must_use]
    pub fn fits(&self, field_len: usize) -> bool {
        self.len() + field_len <= MAX_FRAME_BYTES
    }

    /// Adds a message: the whole field with its header ([`crate::RawMessage::field`]).
    pub fn message(&mut self, field: Bytes) {
        self.message_bytes += field.len();
        self.messages.push(field);
    }

    /// The frame. With `expires`, see [`Frame::expires`].
    #[must_use]
    pub fn finish(self, expires: Time) -> Frame {
        let len = self.len();
        let mut head = Vec::with_capacity(len - self.message_bytes + 4);
        put_varint(&mut head, len as u64);
        head.extend_from_slice(&self.subscriptions);
        let control = self.control_len();
        if control > 0 {
            put_varint(&mut head, 3 << 3 | 2);
            put_varint(&mut head, control as u64);
            head.extend_from_slice(&self.ihave);
            if !self.iwant.is_empty() {
                put_bytes(&mut head, 2, &self.iwant);
            }
            head.extend_from_slice(&self.others);
        }
        head.extend_from_slice(&self.probes);
        debug_assert_eq!(
            head.len() + self.message_bytes,
            len + varint_len(len as u64)
        );
        let bytes = head.len() + self.message_bytes;
        let messages = self.messages.len();
        let mut parts = Vec::with_capacity(messages + 1);
        parts.push(Bytes::from(head));
        parts.extend(self.messages);
        Frame {
            parts,
            bytes,
            messages,
            expires,
        }
    }
}

impl Frame {
    /// All parts in one piece, for tests and simulations.
    #[must_use]
    pub fn to_bytes(&self) -> Bytes {
        self.parts.concat().into()
    }
}
