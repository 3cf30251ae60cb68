//! The Bitswap message: what travels, in which form, within which limits (specs/exchange.md §2).
//!
//! Bytes become types here and nowhere else. Decoding checks every limit before it allocates, rebuilds the CID of each
//! block from its prefix and its hash, and yields blocks that are slices of the receive buffer. Encoding yields pieces,
//! so that the data of a block is never copied into a message.

mod decode;
mod encode;
mod scan;
mod site;

pub use decode::{DecodeError, decode, read_length};
pub use encode::{Frame, encode};
pub use site::{
    Hello, MAX_LABEL_BYTES, MAX_SITE_MESSAGE_BYTES, SITE_PROTOCOL, SiteDecodeError, SiteMessage,
};

use gemba_block::{Block, Cid};

/// Longest message that is read or written, in bytes, without its length prefix (spec: MUST; boxo `MessageSizeMax`).
pub const MAX_MESSAGE_BYTES: usize = 4 * 1024 * 1024;

/// Most entries, blocks and presences together in one message. A wantlist message of Kubo is cut at 2 MiB, which is
/// about 45,000 entries of the shortest CIDs; more than this is an attempt to make a small message a large allocation.
pub const MAX_ITEMS: usize = 65_536;

/// One Bitswap message, decoded and checked or about to be encoded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message {
    /// The wantlist replaces what was said before.
    pub full: bool,
    /// Wants and cancels.
    pub entries: Vec<Entry>,
    /// Blocks; their CIDs were rebuilt from the bytes.
    pub blocks: Vec<Block>,
    /// What the sender says that it has or has not.
    pub presences: Vec<(Cid, Presence)>,
    /// Bytes that the sender still has in its queue for us.
    pub pending_bytes: i32,
    /// Entries and presences that were skipped: identity, unsupported hash, CID above 168 bytes.
    pub ignored: usize,
    /// Size on the wire in bytes, length prefix not counted; 0 for a message that was not received.
    pub wire_bytes: usize,
}

impl Message {
    /// Whether there is nothing in it to act on. Such messages are ignored.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.blocks.is_empty() && self.presences.is_empty() && !self.full
    }

    /// Bytes of the contained blocks.
    #[must_use]
    pub fn block_bytes(&self) -> usize {
        self.blocks.iter().map(Block::len).sum()
    }
}

/// One line of a wantlist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What is wanted.
    pub cid: Cid,
    /// Higher comes first.
    pub priority: i32,
    /// Withdraws an earlier want.
    pub cancel: bool,
    /// The block itself or only whether it is there.
    pub kind: WantKind,
    /// The sender wants to be told at once if the block is missing.
    pub send_dont_have: bool,
}

/// What a want asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum WantKind {
    /// Only whether the block is there.
    Have,
    /// The block.
    Block,
}

/// The answer to a want that is not the block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// The block is there.
    Have,
    /// The block is missing.
    DontHave,
}

/// The version that a stream negotiated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// `/ipfs/bitswap` and `/ipfs/bitswap/1.0.0`: CID version 0 only, blocks without prefix.
    V1_0,
    /// `/ipfs/bitswap/1.1.0`: blocks with prefix.
    V1_1,
    /// `/ipfs/bitswap/1.2.0`: HAVE and DONT_HAVE.
    V1_2,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use bytes::Bytes;

    fn v1() -> Cid {
        *Block::raw(&b"hello world"[..]).unwrap().cid()
    }

    fn v0() -> Cid {
        *Block::v0(Bytes::from_static(
            b"\x0a\x11\x08\x02\x12\x0bhello world\x18\x0b",
        ))
        .unwrap()
        .cid()
    }

    fn body(hex: &str) -> Bytes {
        let all = data_encoding::HEXLOWER.decode(hex.as_bytes()).unwrap();
        let (len, rest) = unsigned_varint::decode::usize(&all).unwrap();
        assert_eq!(len, rest.len(), "the vector's length prefix is right");
        Bytes::copy_from_slice(rest)
    }

    /// Decodes a vector, compares, and encodes it again to the same bytes.
    fn check(hex: &str, version: Version, want: &Message) {
        let mut got = decode(body(hex)).unwrap();
        assert_eq!(got.wire_bytes, body(hex).len());
        got.wire_bytes = 0;
        assert_eq!(&got, want);
        let frame = encode(want, version).expect("fits");
        assert_eq!(data_encoding::HEXLOWER.encode(&frame.to_vec()), hex);
    }

    const HEX_WANT: &str = "2e0a2c0a2a0a2401551220b94d27b9934d3e08a52e52d7da7dabfac484efe37a5380ee9088f7ace2efcde910012801";
    const HEX_HAVE_FULL: &str = "340a320a2e0a221220f852c7fa62f971817f54d8a80dcd63fcf7098b3cbde9ae8ec1ee449013ec5db010ffffffff07200128011001";
    const HEX_CANCEL: &str = "2c0a2a0a280a2401551220b94d27b9934d3e08a52e52d7da7dabfac484efe37a5380ee9088f7ace2efcde91801";
    const HEX_BLOCK: &str = "190a001a130a0401551220120b68656c6c6f20776f726c642805";
    const HEX_BLOCK_1_0: &str = "0f0a00120b68656c6c6f20776f726c64";
    const HEX_HAVE: &str =
        "2a0a0022260a2401551220b94d27b9934d3e08a52e52d7da7dabfac484efe37a5380ee9088f7ace2efcde9";
    const HEX_DONT_HAVE: &str =
        "2a0a0022260a221220f852c7fa62f971817f54d8a80dcd63fcf7098b3cbde9ae8ec1ee449013ec5db01001";

    #[test]
    fn kubo_vector_want_block() {
        let entry = Entry {
            cid: v1(),
            priority: 1,
            cancel: false,
            kind: WantKind::Block,
            send_dont_have: true,
        };
        let want = Message {
            entries: vec![entry],
            ..Message::default()
        };
        check(HEX_WANT, Version::V1_2, &want);
    }

    #[test]
    fn kubo_vector_full_wantlist_of_have() {
        let entry = Entry {
            cid: v0(),
            priority: i32::MAX,
            cancel: false,
            kind: WantKind::Have,
            send_dont_have: true,
        };
        let want = Message {
            full: true,
            entries: vec![entry],
            ..Message::default()
        };
        check(HEX_HAVE_FULL, Version::V1_2, &want);
    }

    #[test]
    fn kubo_vector_cancel() {
        let entry = Entry {
            cid: v1(),
            priority: 0,
            cancel: true,
            kind: WantKind::Block,
            send_dont_have: false,
        };
        let want = Message {
            entries: vec![entry],
            ..Message::default()
        };
        check(HEX_CANCEL, Version::V1_2, &want);
    }

    #[test]
    fn kubo_vector_block_with_prefix() {
        let want = Message {
            blocks: vec![Block::raw(&b"hello world"[..]).unwrap()],
            pending_bytes: 5,
            ..Message::default()
        };
        check(HEX_BLOCK, Version::V1_1, &want);
        check(HEX_BLOCK, Version::V1_2, &want);
    }

    /// Bitswap 1.0 names no codec: what comes is dag-pb with sha2-256, CID version 0.
    #[test]
    fn kubo_vector_block_of_1_0() {
        let want = Message {
            blocks: vec![Block::v0(&b"hello world"[..]).unwrap()],
            ..Message::default()
        };
        check(HEX_BLOCK_1_0, Version::V1_0, &want);
    }

    #[test]
    fn kubo_vector_have_and_dont_have() {
        let have = Message {
            presences: vec![(v1(), Presence::Have)],
            ..Message::default()
        };
        check(HEX_HAVE, Version::V1_2, &have);
        let dont = Message {
            presences: vec![(v0(), Presence::DontHave)],
            ..Message::default()
        };
        check(HEX_DONT_HAVE, Version::V1_2, &dont);
    }

    #[test]
    fn presences_are_not_sent_before_1_2() {
        let have = Message {
            presences: vec![(v1(), Presence::Have)],
            ..Message::default()
        };
        assert!(encode(&have, Version::V1_1).is_none());
        assert!(encode(&have, Version::V1_0).is_none());
    }

    #[test]
    fn a_message_without_a_wantlist_is_taken_as_well() {
        // Like `HEX_HAVE`, without the empty wantlist that Go always writes.
        let bare = body(HEX_HAVE).slice(2..);
        assert_eq!(
            decode(bare).unwrap().presences,
            vec![(v1(), Presence::Have)]
        );
        assert!(decode(Bytes::new()).unwrap().is_empty());
        assert!(decode(Bytes::from_static(b"\x0a\x00")).unwrap().is_empty());
    }

    #[test]
    fn large_block_is_a_slice_of_the_receive_buffer_and_of_the_frame() {
        let block = Block::raw(vec![7; 100_000]).unwrap();
        let message = Message {
            blocks: vec![block.clone()],
            ..Message::default()
        };
        let frame = encode(&message, Version::V1_2).unwrap();
        assert!(
            frame
                .chunks()
                .any(|c| c.as_ptr() == block.data().as_ptr() && c.len() == 100_000)
        );
        let wire = Bytes::from(frame.to_vec());
        let (_, rest) = unsigned_varint::decode::usize(&wire).unwrap();
        let received = wire.slice(wire.len() - rest.len()..);
        let got = decode(received.clone()).unwrap();
        let at = got.blocks[0].data().as_ptr() as usize;
        assert!((received.as_ptr() as usize..).contains(&at));
        assert!(at < received.as_ptr() as usize + received.len());
    }
}
