//! Entry points of the fuzz targets; replayed on stable by `tests/corpus.rs`.

use crate::{Block, Cid, MhCode, cbor, codec, links, pb};

/// Any bytes as dag-cbor: never panics, and what is taken holds no more links than bytes.
pub fn dag_cbor(bytes: &[u8]) {
    if let Ok(found) = cbor::scan(bytes) {
        assert!(found.len() <= bytes.len());
    }
}

/// Any bytes as CID, prefix, dag-pb: never panics; a CID that is taken encodes to bytes that give it again.
pub fn cid(bytes: &[u8]) {
    if let Ok(cid) = Cid::try_from(bytes) {
        assert_eq!(Cid::try_from(cid.to_bytes()).ok(), Some(cid));
        let _verdict = crate::check_cid(&cid);
    }
    if let Ok(prefix) = crate::Prefix::from_bytes(bytes) {
        assert_eq!(crate::Prefix::from_bytes(&prefix.to_bytes()), Ok(prefix));
        let _block = prefix.block(bytes.to_vec());
    }
    let _count = pb::Fields::new(bytes).count();
    if let Ok(block) = Block::encode(codec::DAG_PB, MhCode::Sha2_256, bytes.to_vec()) {
        let _links = links(&block);
    }
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _parsed = text.parse::<Cid>();
    }
}
