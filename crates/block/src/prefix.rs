//! A CID without its digest, as Bitswap 1.1 sends it beside each block.

use bytes::Bytes;
use cid::{Cid, Version};

use crate::block::{Block, BlockError};
use crate::codec::{DAG_PB, MAX_BLOCK_BYTES};
use crate::hash::MhCode;

/// Version, codec, hash function and digest length of a CID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Prefix {
    /// CID version.
    pub version: Version,
    /// Codec of the content.
    pub codec: u64,
    /// Multihash code.
    pub mh_code: u64,
    /// Length of the digest in bytes.
    pub mh_len: usize,
}

/// Why prefix bytes are refused. The blame is with the peer that sent them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PrefixError {
    /// One of the four numbers is missing or over-long.
    #[error("the CID prefix is cut short or not a sequence of four varints")]
    Truncated,
    /// Bytes after the fourth number.
    #[error("the CID prefix has {0} bytes too many")]
    Trailing(usize),
    /// Only versions 0 and 1 exist.
    #[error("CID version {0} does not exist")]
    Version(u64),
    /// The digest length does not fit the hash function.
    #[error("a digest of {len} bytes does not fit hash function 0x{code:x}")]
    Length {
        /// Multihash code.
        code: u64,
        /// Announced length.
        len: u64,
    },
}

impl Prefix {
    /// The prefix of a CID.
    #[must_use]
    pub fn of(cid: &Cid) -> Self {
        Self {
            version: cid.version(),
            codec: cid.codec(),
            mh_code: cid.hash().code(),
            mh_len: usize::from(cid.hash().size()),
        }
    }

    /// Four varints: version, codec, hash function, digest length.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(8);
        for number in [
            u64::from(self.version),
            self.codec,
            self.mh_code,
            self.mh_len as u64,
        ] {
            out.extend_from_slice(unsigned_varint::encode::u64(
                number,
                &mut unsigned_varint::encode::u64_buffer(),
            ));
        }
        out
    }

    /// Reads four varints and nothing after them.
    ///
    /// # Errors
    /// See [`PrefixError`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, PrefixError> {
        let (version, rest) = number(bytes)?;
        let (codec, rest) = number(rest)?;
        let (mh_code, rest) = number(rest)?;
        let (len, rest) = number(rest)?;
        if !rest.is_empty() {
            return Err(PrefixError::Trailing(rest.len()));
        }
        let version = Version::try_from(version).map_err(|_| PrefixError::Version(version))?;
        let mh_len = usize::try_from(len)
            .ok()
            .filter(|l| *l <= 128)
            .ok_or(PrefixError::Length { code: mh_code, len })?;
        Ok(Self {
            version,
            codec,
            mh_code,
            mh_len,
        })
    }

    /// Hashes `data` and names it: how a receiver learns which block it was sent.
    ///
    /// # Errors
    /// [`BlockError`] if the hash is not allowed, the digest length is not one of it, or the block is too large.
    pub fn block(&self, data: impl Into<Bytes>) -> Result<Block, BlockError> {
        let data = data.into();
        if data.len() > MAX_BLOCK_BYTES {
            return Err(BlockError::TooLarge(data.len()));
        }
        let code = MhCode::from_code(self.mh_code)
            .ok_or(crate::CidError::UnsupportedHash(self.mh_code))?;
        let full = code
            .digest(&data)
            .ok_or(crate::CidError::DigestTooLong(data.len()))?;
        let digest = full
            .digest()
            .get(..self.mh_len)
            .ok_or(crate::CidError::DigestTooLong(self.mh_len))?;
        if code == MhCode::Identity && digest.len() != data.len() {
            return Err(BlockError::WrongHash);
        }
        let hash = multihash::Multihash::wrap(self.mh_code, digest)
            .map_err(|_| crate::CidError::DigestTooLong(self.mh_len))?;
        let cid = match self.version {
            Version::V0 if self.codec != DAG_PB => return Err(crate::CidError::BadV0.into()),
            Version::V0 => Cid::new_v0(hash).map_err(|_| crate::CidError::BadV0)?,
            Version::V1 => Cid::new_v1(self.codec, hash),
        };
        crate::check_cid(&cid)?;
        Ok(Block::danger_unchecked(cid, data))
    }
}

fn number(bytes: &[u8]) -> Result<(u64, &[u8]), PrefixError> {
    unsigned_varint::decode::u64(bytes).map_err(|_| PrefixError::Truncated)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// wire/05: for v1 raw sha2-256 `01551220`, for v0 `00701220`.
    #[test]
    fn bitswap_prefix_vectors() {
        let v1 = Block::raw("hello world").unwrap();
        assert_eq!(Prefix::of(v1.cid()).to_bytes(), [0x01, 0x55, 0x12, 0x20]);
        let v0 = Block::v0(vec![0x0a, 0x00]).unwrap();
        assert_eq!(Prefix::of(v0.cid()).to_bytes(), [0x00, 0x70, 0x12, 0x20]);
        for block in [v1, v0] {
            let prefix = Prefix::from_bytes(&Prefix::of(block.cid()).to_bytes()).unwrap();
            assert_eq!(prefix.block(block.data().clone()).unwrap(), block);
        }
    }

    #[test]
    fn broken_prefixes_are_refused() {
        assert_eq!(
            Prefix::from_bytes(&[1, 0x55, 0x12]),
            Err(PrefixError::Truncated)
        );
        assert_eq!(
            Prefix::from_bytes(&[1, 0x55, 0x12, 0x20, 0]),
            Err(PrefixError::Trailing(1))
        );
        assert_eq!(
            Prefix::from_bytes(&[2, 0x55, 0x12, 0x20]),
            Err(PrefixError::Version(2))
        );
        assert!(matches!(
            Prefix::from_bytes(&[1, 0x55, 0x12, 0xff, 0x01]),
            Err(PrefixError::Length { .. })
        ));
        assert!(
            Prefix {
                version: Version::V1,
                codec: 0x55,
                mh_code: 0x12,
                mh_len: 33
            }
            .block("x")
            .is_err()
        );
        assert!(
            Prefix {
                version: Version::V1,
                codec: 0x55,
                mh_code: 0x12,
                mh_len: 19
            }
            .block("x")
            .is_err()
        );
        assert!(
            Prefix {
                version: Version::V0,
                codec: 0x55,
                mh_code: 0x12,
                mh_len: 32
            }
            .block("x")
            .is_err()
        );
        assert!(
            Prefix {
                version: Version::V1,
                codec: 0x55,
                mh_code: 0x00,
                mh_len: 1
            }
            .block("xy")
            .is_err()
        );
    }
}
