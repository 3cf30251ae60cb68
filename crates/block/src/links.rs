//! The children of a block.

use cid::Cid;

use crate::block::Block;
use crate::cbor::{self, CborError};
use crate::codec::{DAG_CBOR, DAG_PB, RAW};
use crate::pb::{Fields, PbError, Value};

/// Why the links of a block cannot be told. The blame is with whoever made the block.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LinksError {
    /// Not a protobuf message.
    #[error("not a dag-pb block: {0}")]
    Pb(#[from] PbError),
    /// Not canonical dag-cbor.
    #[error("not a dag-cbor block: {0}")]
    Cbor(#[from] CborError),
    /// A link whose bytes are no CID.
    #[error("link {0} of the dag-pb block is no CID")]
    BadLink(usize),
    /// A codec whose links nobody here can read.
    #[error("the links of codec 0x{0:x} cannot be read: gemba walks raw, dag-pb and dag-cbor")]
    UnknownCodec(u64),
}

/// The links of a raw, dag-pb or dag-cbor block, in the order in which they stand, with repetitions.
/// A 2 MiB block holds about 55,000 with sha2-256, and at most 262,144 (empty identity CIDs of 8 bytes each, made to be many):
/// 24 MiB as values of [`Cid`].
///
/// # Errors
/// See [`LinksError`].
pub fn links(block: &Block) -> Result<Vec<Cid>, LinksError> {
    match block.cid().codec() {
        RAW => Ok(Vec::new()),
        DAG_PB => pb_links(block.data()),
        DAG_CBOR => Ok(cbor::scan(block.data())?),
        other => Err(LinksError::UnknownCodec(other)),
    }
}

/// PBNode.Links = 2 { Hash = 1 }; a link without a hash is not a link (boxo refuses it as well).
fn pb_links(data: &[u8]) -> Result<Vec<Cid>, LinksError> {
    let mut links = Vec::new();
    for field in Fields::new(data) {
        let field = field?;
        if field.number != 2 {
            continue;
        }
        let Value::Bytes(link) = field.value else {
            return Err(LinksError::BadLink(links.len()));
        };
        links.push(pb_link_hash(link)?.ok_or(LinksError::BadLink(links.len()))?);
    }
    Ok(links)
}

fn pb_link_hash(link: &[u8]) -> Result<Option<Cid>, LinksError> {
    let mut cid = None;
    for field in Fields::new(link) {
        let field = field?;
        if let (1, Value::Bytes(bytes)) = (field.number, field.value) {
            // The `cid` crate reads a CID and ignores what follows; a link is the CID and nothing else, as in boxo.
            cid = Cid::try_from(bytes)
                .ok()
                .filter(|cid| cid.encoded_len() == bytes.len());
        }
    }
    Ok(cid)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MhCode;
    use data_encoding::HEXLOWER;

    /// wire/08: `hello world` cut with `size-5`.
    #[test]
    fn dag_pb_links_stand_in_order() {
        let bytes = HEXLOWER
            .decode(concat!("122a0a24015512202cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b982412001805",
                "122a0a240155122043cf897720cc5a693b2508c9e95e8711942a96ed98d772fe37123d31603ce20f12001805",
                "122a0a240155122018ac3e7343f016890c510e93f935261169d9e3f565436429830faf0934f4f8e412001801",
                "0a0a0802180b200520052001").as_bytes())
            .unwrap();
        let block = Block::dag_pb(bytes).unwrap();
        assert_eq!(
            block.cid().to_string(),
            "bafybeiby5et5f6iycdz6r5u2e7oj7izheiyowlqh6qa2l6j7pxb4m4i3fu"
        );
        let children: Vec<Cid> = ["hello", " worl", "d"]
            .map(|s| *Block::raw(s).unwrap().cid())
            .into();
        assert_eq!(links(&block).unwrap(), children);
    }

    #[test]
    fn dag_cbor_links_are_found_at_every_depth() {
        let child = *Block::raw("x").unwrap().cid();
        let mut link = vec![0xd8, 0x2a, 0x58, 37, 0x00];
        link.extend_from_slice(&child.to_bytes());
        // {"a": [link, {"b": link}]}
        let mut bytes = vec![0xa1, 0x61, b'a', 0x82];
        bytes.extend_from_slice(&link);
        bytes.extend_from_slice(&[0xa1, 0x61, b'b']);
        bytes.extend_from_slice(&link);
        let block = Block::encode(DAG_CBOR, MhCode::Sha2_256, bytes).unwrap();
        assert_eq!(links(&block).unwrap(), [child, child]);
    }

    #[test]
    fn what_cannot_be_walked_is_said() {
        let odd = Block::encode(0x1234, MhCode::Sha2_256, "x").unwrap();
        assert_eq!(links(&odd), Err(LinksError::UnknownCodec(0x1234)));
        let torn = Block::dag_pb(vec![0x12, 0x7f]).unwrap();
        assert!(matches!(links(&torn), Err(LinksError::Pb(_))));
        let empty_link = Block::dag_pb(vec![0x12, 0x00]).unwrap();
        assert_eq!(links(&empty_link), Err(LinksError::BadLink(0)));
    }
}
