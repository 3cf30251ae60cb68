//! Bytes to [`Message`], every limit checked first.

use bytes::Bytes;
use gemba_block::{Block, BlockError, Cid, MAX_CID_BYTES, Prefix, PrefixError, check_cid};
use prost::Message as _;

use super::{Entry, MAX_MESSAGE_BYTES, Message, Presence, WantKind, scan};
use crate::generated::{self, message::BlockPresenceType, message::wantlist::WantType};

/// Why a message was refused. The stream it came on is reset.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// The length prefix announces more than 4 MiB.
    #[error("a message of {0} bytes is announced, 4194304 are allowed")]
    TooLong(u64),
    /// The length prefix is no varint of at most four bytes in its shortest form.
    #[error("the length prefix is not a varint")]
    BadLength,
    /// More entries, blocks and presences than any sender needs.
    #[error("more than {max} entries, blocks and presences in one message", max = super::MAX_ITEMS)]
    TooManyItems,
    /// A field runs over the end of the message, or a varint does not end.
    #[error("the message ends in the middle of a field")]
    Truncated,
    /// A wire type that this message does not have.
    #[error("a field has a wire type that is not used by Bitswap")]
    WireType,
    /// Not the protobuf message.
    #[error("not a Bitswap message: {0}")]
    Protobuf(#[from] prost::DecodeError),
    /// An entry or presence without a CID or with bytes that are none.
    #[error("a wantlist entry or presence has no readable CID")]
    BadCid,
    /// A block whose prefix cannot be read.
    #[error("the prefix of a block cannot be read: {0}")]
    BadPrefix(#[from] PrefixError),
    /// A block that is too large or cannot be hashed.
    #[error("a block was refused: {0}")]
    BadBlock(#[from] BlockError),
}

/// Reads the length prefix at the start of `bytes`: `None` while more bytes are needed, then length and prefix size.
///
/// # Errors
/// [`DecodeError::TooLong`] above 4 MiB, [`DecodeError::BadLength`] if no varint.
pub fn read_length(bytes: &[u8]) -> Result<Option<(usize, usize)>, DecodeError> {
    let mut value = 0_u64;
    // 4 MiB needs four bytes; five are read so that a slightly larger length is named in the error.
    for (at, byte) in bytes.iter().take(5).enumerate() {
        value |= u64::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            if at > 0 && *byte == 0 {
                return Err(DecodeError::BadLength);
            }
            return match usize::try_from(value) {
                Ok(len) if len <= MAX_MESSAGE_BYTES => Ok(Some((len, at + 1))),
                _ => Err(DecodeError::TooLong(value)),
            };
        }
    }
    if bytes.len() >= 5 {
        return Err(DecodeError::TooLong(value));
    }
    Ok(None)
}

/// Decodes the body of a message (without length prefix). Hashes every block, so this belongs on the connection's task
/// or on a worker. Blocks are slices of `body`.
///
/// # Errors
/// See [`DecodeError`]. Entries and presences with a well-formed CID that gemba does not serve are skipped and counted,
/// because older and other senders name them in good faith.
pub fn decode(body: Bytes) -> Result<Message, DecodeError> {
    if body.len() > MAX_MESSAGE_BYTES {
        return Err(DecodeError::TooLong(body.len() as u64));
    }
    scan::check(&body)?;
    let wire_bytes = body.len();
    let raw = generated::Message::decode(body)?;
    let mut message = Message {
        wire_bytes,
        pending_bytes: raw.pending_bytes,
        ..Message::default()
    };
    if let Some(list) = raw.wantlist {
        message.full = list.full;
        message.entries.reserve_exact(list.entries.len());
        for raw in &list.entries {
            match usable_cid(&raw.block)? {
                Some(cid) => message.entries.push(entry(cid, raw)),
                None => message.ignored += 1,
            }
        }
    }
    for data in raw.blocks {
        message.blocks.push(Block::v0(data)?);
    }
    for block in raw.payload {
        message
            .blocks
            .push(Prefix::from_bytes(&block.prefix)?.block(block.data)?);
    }
    for presence in &raw.block_presences {
        let kind = match BlockPresenceType::try_from(presence.r#type) {
            Ok(BlockPresenceType::Have) => Presence::Have,
            Ok(BlockPresenceType::DontHave) => Presence::DontHave,
            // A later version of the protocol: neither yes nor no.
            Err(_) => {
                message.ignored += 1;
                continue;
            }
        };
        match usable_cid(&presence.cid)? {
            Some(cid) => message.presences.push((cid, kind)),
            None => message.ignored += 1,
        }
    }
    Ok(message)
}

fn entry(cid: Cid, raw: &generated::message::wantlist::Entry) -> Entry {
    Entry {
        cid,
        priority: raw.priority,
        cancel: raw.cancel,
        kind: match WantType::try_from(raw.want_type) {
            Ok(WantType::Have) => WantKind::Have,
            // An unknown kind reads as the proto3 default, as Go does.
            Ok(WantType::Block) | Err(_) => WantKind::Block,
        },
        send_dont_have: raw.send_dont_have,
    }
}

/// A CID that gemba can serve or ask for; `None` for a well-formed one that it does not handle.
fn usable_cid(bytes: &[u8]) -> Result<Option<Cid>, DecodeError> {
    if bytes.is_empty() {
        return Err(DecodeError::BadCid);
    }
    if bytes.len() > MAX_CID_BYTES {
        return Ok(None);
    }
    match Cid::try_from(bytes) {
        Ok(cid) if cid.encoded_len() != bytes.len() => Err(DecodeError::BadCid),
        Ok(cid) if cid.hash().code() == IDENTITY || check_cid(&cid).is_err() => Ok(None),
        Ok(cid) => Ok(Some(cid)),
        Err(_) if is_well_formed(bytes) => Ok(None),
        Err(_) => Err(DecodeError::BadCid),
    }
}

/// A CIDv1 by its shape, whatever its digest length: identity CIDs of up to 128 bytes come from real senders, but do
/// not fit the 64-byte digest of our `Cid`.
fn is_well_formed(bytes: &[u8]) -> bool {
    let number = |bytes| unsigned_varint::decode::u64(bytes).ok();
    let shape = || {
        let (version, rest) = number(bytes)?;
        let (_codec, rest) = number(rest)?;
        let (_hash, rest) = number(rest)?;
        let (len, digest) = number(rest)?;
        Some(version == 1 && len == digest.len() as u64)
    };
    shape().unwrap_or(false)
}

/// Multihash code of identity: the CID holds the data, nobody needs to be asked.
const IDENTITY: u64 = 0;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn message_with(raw: &generated::Message) -> Result<Message, DecodeError> {
        decode(Bytes::from(raw.encode_to_vec()))
    }

    fn want(cid: Vec<u8>) -> generated::Message {
        generated::Message {
            wantlist: Some(generated::message::Wantlist {
                entries: vec![generated::message::wantlist::Entry {
                    block: cid.into(),
                    ..Default::default()
                }],
                full: false,
            }),
            ..Default::default()
        }
    }

    fn payload(prefix: &[u8], data: Vec<u8>) -> generated::Message {
        generated::Message {
            payload: vec![generated::message::Block {
                prefix: Bytes::copy_from_slice(prefix),
                data: data.into(),
            }],
            ..Default::default()
        }
    }

    const RAW_SHA256: &[u8] = &[0x01, 0x55, 0x12, 0x20];

    #[test]
    fn x4_length_above_4_mib_is_refused_before_anything_is_allocated() {
        assert_eq!(
            read_length(&[0x80, 0x80, 0x80, 0x02]),
            Ok(Some((MAX_MESSAGE_BYTES, 4)))
        );
        assert_eq!(
            read_length(&[0x81, 0x80, 0x80, 0x02]),
            Err(DecodeError::TooLong(MAX_MESSAGE_BYTES as u64 + 1))
        );
        assert!(matches!(
            read_length(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]),
            Err(DecodeError::TooLong(_))
        ));
        assert_eq!(read_length(&[0x81, 0x80]), Ok(None));
        assert_eq!(read_length(&[]), Ok(None));
        assert_eq!(read_length(&[0x80, 0x00]), Err(DecodeError::BadLength));
    }

    #[test]
    fn x4_block_of_2_mib_is_taken_and_one_byte_more_is_refused() {
        let max = gemba_block::MAX_BLOCK_BYTES;
        assert_eq!(
            message_with(&payload(RAW_SHA256, vec![0; max]))
                .unwrap()
                .blocks
                .len(),
            1
        );
        assert_eq!(
            message_with(&payload(RAW_SHA256, vec![0; max + 1])),
            Err(DecodeError::BadBlock(BlockError::TooLarge(max + 1)))
        );
    }

    #[test]
    fn x6_blocks_with_weak_or_unknown_hashes_are_refused() {
        // murmur3, an unknown code, sha2-256 cut to 16 bytes, a sha2-256 of 33 bytes
        for prefix in [
            &[0x01, 0x55, 0x22, 0x08][..],
            &[0x01, 0x55, 0x7e, 0x20],
            &[0x01, 0x55, 0x12, 0x10],
            &[0x01, 0x55, 0x12, 0x21],
        ] {
            assert!(
                matches!(
                    message_with(&payload(prefix, vec![1])),
                    Err(DecodeError::BadBlock(_))
                ),
                "{prefix:02x?}"
            );
        }
        assert!(matches!(
            message_with(&payload(&[0x01, 0x55], vec![1])),
            Err(DecodeError::BadPrefix(_))
        ));
    }

    #[test]
    fn x6_wants_for_identity_long_or_weak_cids_are_ignored_without_losing_the_stream() {
        let mut long_identity = vec![0x01, 0x55, 0x00, 100];
        long_identity.extend_from_slice(&[9; 100]);
        let mut too_long = vec![0x01, 0x55, 0x00, 0xa6, 0x01];
        too_long.extend_from_slice(&[9; 166]);
        let weak = [&[0x01, 0x55, 0x12, 0x08][..], &[1; 8]].concat();
        for cid in [
            vec![0x01, 0x55, 0x00, 0x02, 1, 2],
            long_identity,
            too_long,
            weak,
        ] {
            let message = message_with(&want(cid)).unwrap();
            assert_eq!((message.entries.len(), message.ignored), (0, 1));
        }
    }

    #[test]
    fn a_missing_or_broken_cid_is_an_error() {
        let good = [&[0x01, 0x55, 0x12, 0x20][..], &[1; 32]].concat();
        let trailing = [&good[..], &[0]].concat();
        for cid in [
            vec![],
            vec![0x01],
            vec![0x01, 0x55, 0x12, 0x20, 1, 2],
            trailing,
        ] {
            assert_eq!(message_with(&want(cid)), Err(DecodeError::BadCid));
        }
        assert_eq!(message_with(&want(good)).unwrap().entries.len(), 1);
    }

    #[test]
    fn x2_the_cid_is_rebuilt_from_the_bytes_never_taken_from_the_sender() {
        let message = message_with(&payload(RAW_SHA256, b"other bytes".to_vec())).unwrap();
        assert_eq!(
            message.blocks[0].cid(),
            Block::raw(&b"other bytes"[..]).unwrap().cid()
        );
    }
}
