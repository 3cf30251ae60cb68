//! Bytes and the CID that names them, checked once.

use bytes::Bytes;
use cid::Cid;

use crate::codec::{DAG_PB, MAX_BLOCK_BYTES, RAW};
use crate::hash::{self, CidError, MhCode, check_cid};

/// A block whose bytes hash to its CID. At most 2 MiB. Cloning shares the bytes.
#[derive(Clone, PartialEq, Eq)]
pub struct Block {
    cid: Cid,
    data: Bytes,
}

/// Why bytes and a CID do not make a block.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BlockError {
    /// The content is not what the CID names: damaged on the way or on disk, or forged.
    #[error("the bytes do not hash to the CID they came under")]
    WrongHash,
    /// Larger than 2 MiB.
    #[error(
        "the block has {0} bytes; a block may have 2097152 at most: split it (files are split by `gemba add`)"
    )]
    TooLarge(usize),
    /// The CID itself is not taken.
    #[error(transparent)]
    Cid(#[from] CidError),
}

impl Block {
    /// Takes bytes that came under a name: checks CID, size and hash.
    ///
    /// # Errors
    /// See [`BlockError`].
    pub fn new(cid: Cid, data: impl Into<Bytes>) -> Result<Self, BlockError> {
        let data = data.into();
        check_cid(&cid)?;
        if data.len() > MAX_BLOCK_BYTES {
            return Err(BlockError::TooLarge(data.len()));
        }
        if !hash::matches(&cid, &data) {
            return Err(BlockError::WrongHash);
        }
        Ok(Self { cid, data })
    }

    /// Hashes bytes and names them with a CIDv1.
    ///
    /// # Errors
    /// [`BlockError::TooLarge`], or a digest too long for identity.
    pub fn encode(codec: u64, code: MhCode, data: impl Into<Bytes>) -> Result<Self, BlockError> {
        let data = data.into();
        if data.len() > MAX_BLOCK_BYTES {
            return Err(BlockError::TooLarge(data.len()));
        }
        let hash = code
            .digest(&data)
            .ok_or(CidError::DigestTooLong(data.len()))?;
        Ok(Self {
            cid: Cid::new_v1(codec, hash),
            data,
        })
    }

    /// A raw CIDv1 block with sha2-256.
    ///
    /// # Errors
    /// [`BlockError::TooLarge`].
    pub fn raw(data: impl Into<Bytes>) -> Result<Self, BlockError> {
        Self::encode(RAW, MhCode::Sha2_256, data)
    }

    /// A dag-pb CIDv1 block with sha2-256. The bytes are not parsed.
    ///
    /// # Errors
    /// [`BlockError::TooLarge`].
    pub fn dag_pb(data: impl Into<Bytes>) -> Result<Self, BlockError> {
        Self::encode(DAG_PB, MhCode::Sha2_256, data)
    }

    /// A CIDv0 block: dag-pb with sha2-256. The bytes are not parsed.
    ///
    /// # Errors
    /// [`BlockError::TooLarge`].
    pub fn v0(data: impl Into<Bytes>) -> Result<Self, BlockError> {
        let block = Self::dag_pb(data)?;
        let cid = Cid::new_v0(*block.cid.hash()).map_err(|_| CidError::BadV0)?;
        Ok(Self {
            cid,
            data: block.data,
        })
    }

    /// Pairs bytes and a name without hashing. Only for bytes whose hash was checked before and that were under our
    /// own checksum since (the store), or that were hashed a line earlier.
    #[must_use]
    pub fn danger_unchecked(cid: Cid, data: impl Into<Bytes>) -> Self {
        Self {
            cid,
            data: data.into(),
        }
    }

    /// The name.
    #[must_use]
    pub fn cid(&self) -> &Cid {
        &self.cid
    }

    /// The content.
    #[must_use]
    pub fn data(&self) -> &Bytes {
        &self.data
    }

    /// Size of the content in bytes.
    #[must_use]
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.data.len()
    }

    /// Name and content.
    #[must_use]
    pub fn into_parts(self) -> (Cid, Bytes) {
        (self.cid, self.data)
    }
}

impl std::fmt::Debug for Block {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Block({}, {} bytes)", self.cid, self.data.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// wire/08: `hello world` as raw leaf.
    #[test]
    fn hello_world_has_the_cid_that_kubo_gives_it() {
        let cid: Cid = "bafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e"
            .parse()
            .unwrap();
        assert_eq!(Block::raw("hello world").unwrap().cid(), &cid);
        assert!(Block::new(cid, "hello world").is_ok());
    }

    /// wire/08: an empty directory is `0a020801` in both CID versions.
    #[test]
    fn an_empty_directory_has_kubos_cids() {
        let data = vec![0x0a, 0x02, 0x08, 0x01];
        assert_eq!(
            Block::v0(data.clone()).unwrap().cid().to_string(),
            "QmUNLLsPACCz1vLxQVkXqqLX5R1X345qqfHbsf67hvA3Nn"
        );
        assert_eq!(
            Block::dag_pb(data).unwrap().cid().to_string(),
            "bafybeiczsscdsbs7ffqz55asqdf3smv6klcw3gofszvwlyarci47bgf354"
        );
    }

    /// Row X2: wrong bytes never become a block, whatever bit is wrong.
    #[test]
    fn x2_any_flipped_bit_is_refused() {
        let good = Block::raw(vec![0x5a; 300]).unwrap();
        for bit in 0..300 * 8 {
            let mut bytes = good.data().to_vec();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Block::new(*good.cid(), bytes), Err(BlockError::WrongHash));
        }
        assert_eq!(
            Block::new(*good.cid(), vec![0x5a; 299]),
            Err(BlockError::WrongHash)
        );
    }

    /// Row X4: 2 MiB is a block, one byte more is not.
    #[test]
    fn x4_two_mebibytes_is_the_limit() {
        let largest = vec![0; MAX_BLOCK_BYTES];
        let cid = *Block::raw(largest.clone()).unwrap().cid();
        assert!(Block::new(cid, largest).is_ok());
        let over = vec![0; MAX_BLOCK_BYTES + 1];
        assert_eq!(
            Block::raw(over.clone()),
            Err(BlockError::TooLarge(MAX_BLOCK_BYTES + 1))
        );
        assert_eq!(
            Block::new(cid, over),
            Err(BlockError::TooLarge(MAX_BLOCK_BYTES + 1))
        );
    }

    #[test]
    fn identity_blocks_carry_their_content() {
        let block = Block::encode(RAW, MhCode::Identity, "abc").unwrap();
        assert_eq!(block.cid().hash().digest(), b"abc");
        assert!(Block::new(*block.cid(), "abc").is_ok());
        assert_eq!(Block::new(*block.cid(), "abd"), Err(BlockError::WrongHash));
    }

    #[test]
    fn debug_shows_no_content() {
        let shown = format!("{:?}", Block::raw("secret").unwrap());
        assert!(!shown.contains("secret") && shown.contains("6 bytes"));
    }
}
