//! [`Message`] to the pieces of a frame. Field order is Go's, so that the bytes equal Kubo's.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};
use gemba_block::{Block, Cid, Prefix};
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint};

use super::{Entry, MAX_MESSAGE_BYTES, Message, Presence, Version, WantKind};
use crate::generated::{self, message::BlockPresenceType, message::wantlist::WantType};

/// Data up to this size is copied into the piece before it: a write of its own would cost more than the copy.
const COPY_BELOW: usize = 4096;

/// A message ready to be written: length prefix and body in pieces that share memory with the blocks.
#[derive(Clone, Debug, Default)]
pub struct Frame {
    chunks: VecDeque<Bytes>,
    len: usize,
}

impl Frame {
    /// Bytes in all pieces, the length prefix included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether everything was taken.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// Bytes in the pieces that were not sent yet.
    #[must_use]
    pub fn left(&self) -> usize {
        self.chunks.iter().map(Bytes::len).sum()
    }

    /// The pieces in order.
    pub fn chunks(&self) -> impl Iterator<Item = &Bytes> {
        self.chunks.iter()
    }

    /// The piece to write next.
    #[must_use]
    pub fn front(&self) -> Option<&Bytes> {
        self.chunks.front()
    }

    /// Marks `written` bytes of the front piece as sent.
    pub fn advance(&mut self, written: usize) {
        if let Some(front) = self.chunks.front_mut() {
            let _ = front.split_to(written.min(front.len()));
            if front.is_empty() {
                self.chunks.pop_front();
            }
        }
    }

    /// All pieces in one buffer (tests and tools).
    #[must_use]
    pub fn to_vec(&self) -> Vec<u8> {
        self.chunks.iter().flat_map(|c| c.iter().copied()).collect()
    }
}

/// Encodes a message as `version` allows. `None` if nothing is left to send (presences to a peer before 1.2) or the
/// message would pass 4 MiB, which the caller's packing rules out.
#[must_use]
pub fn encode(message: &Message, version: Version) -> Option<Frame> {
    let mut pieces = Pieces::default();
    wantlist(&mut pieces.head, message);
    for block in &message.blocks {
        match version {
            Version::V1_0 => bare_block(&mut pieces, block),
            Version::V1_1 | Version::V1_2 => prefixed_block(&mut pieces, block),
        }
    }
    if version >= Version::V1_2 {
        for (cid, presence) in &message.presences {
            block_presence(&mut pieces.head, cid, *presence);
        }
    } else if message.blocks.is_empty() && message.entries.is_empty() && !message.full {
        return None;
    }
    if version >= Version::V1_1 && message.pending_bytes != 0 {
        prost::encoding::int32::encode(5, &message.pending_bytes, &mut pieces.head);
    }
    pieces.finish()
}

/// The body under construction: `head` collects small bytes until a large piece follows.
#[derive(Default)]
struct Pieces {
    done: VecDeque<Bytes>,
    head: BytesMut,
}

impl Pieces {
    fn data(&mut self, data: &Bytes) {
        if data.len() < COPY_BELOW {
            self.head.extend_from_slice(data);
            return;
        }
        let head = std::mem::take(&mut self.head).freeze();
        self.done.push_back(head);
        self.done.push_back(data.clone());
    }

    fn finish(mut self) -> Option<Frame> {
        if !self.head.is_empty() {
            self.done.push_back(self.head.freeze());
        }
        let body: usize = self.done.iter().map(Bytes::len).sum();
        if body > MAX_MESSAGE_BYTES {
            return None;
        }
        let mut prefix = BytesMut::with_capacity(4 + self.done.front().map_or(0, Bytes::len));
        encode_varint(body as u64, &mut prefix);
        let len = body + prefix.len();
        // The first piece is always small bytes (the wantlist field is always there): write it with the prefix.
        if let Some(first) = self.done.pop_front() {
            prefix.extend_from_slice(&first);
        }
        self.done.push_front(prefix.freeze());
        Some(Frame {
            chunks: self.done,
            len,
        })
    }
}

/// Field 1. Go writes it also when it is empty, and so do we.
fn wantlist(out: &mut BytesMut, message: &Message) {
    let list = generated::message::Wantlist {
        entries: message.entries.iter().map(raw_entry).collect(),
        full: message.full,
    };
    prost::encoding::message::encode(1, &list, out);
}

fn raw_entry(entry: &Entry) -> generated::message::wantlist::Entry {
    generated::message::wantlist::Entry {
        block: entry.cid.to_bytes().into(),
        priority: entry.priority,
        cancel: entry.cancel,
        want_type: match entry.kind {
            WantKind::Block => WantType::Block.into(),
            WantKind::Have => WantType::Have.into(),
        },
        send_dont_have: entry.send_dont_have,
    }
}

/// Field 2: the data alone.
fn bare_block(pieces: &mut Pieces, block: &Block) {
    encode_key(2, WireType::LengthDelimited, &mut pieces.head);
    encode_varint(block.len() as u64, &mut pieces.head);
    pieces.data(block.data());
}

/// Field 3: prefix and data.
fn prefixed_block(pieces: &mut Pieces, block: &Block) {
    let prefix = Prefix::of(block.cid()).to_bytes();
    let data_len = block.len() as u64;
    // proto3 leaves out an empty field.
    let data_field = if data_len == 0 {
        0
    } else {
        1 + encoded_len_varint(data_len) as u64 + data_len
    };
    let inner =
        1 + encoded_len_varint(prefix.len() as u64) as u64 + prefix.len() as u64 + data_field;
    let head = &mut pieces.head;
    encode_key(3, WireType::LengthDelimited, head);
    encode_varint(inner, head);
    encode_key(1, WireType::LengthDelimited, head);
    encode_varint(prefix.len() as u64, head);
    head.extend_from_slice(&prefix);
    if data_len > 0 {
        encode_key(2, WireType::LengthDelimited, head);
        encode_varint(data_len, head);
        pieces.data(block.data());
    }
}

/// Field 4.
fn block_presence(out: &mut BytesMut, cid: &Cid, presence: Presence) {
    let raw = generated::message::BlockPresence {
        cid: cid.to_bytes().into(),
        r#type: match presence {
            Presence::Have => BlockPresenceType::Have.into(),
            Presence::DontHave => BlockPresenceType::DontHave.into(),
        },
    };
    prost::encoding::message::encode(4, &raw, out);
}
