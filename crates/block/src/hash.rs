//! Which multihashes are taken, and how they are computed.

use cid::{Cid, Version};
use multihash::Multihash;
use sha3::Digest as _;

use crate::codec::DAG_PB;

/// Shortest digest that is taken, in bytes (boxo: verifcid). Shorter ones can be forged.
const MIN_DIGEST: usize = 20;
/// Longest digest that is taken, in bytes (boxo: verifcid); for identity it is the longest inlined content.
const MAX_DIGEST: usize = 128;
/// A CID of the `cid` crate holds digests up to this length.
const CID_DIGEST: usize = 64;

/// The hash functions that gemba computes, with their multihash codes.
///
/// This is boxo's allow-list without the functions that nobody was seen to use for blocks
/// (murmur3 is none, and keccak's and blake2's families are left out: [`CidError::UnsupportedHash`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum MhCode {
    /// No hash: the digest is the content, at most 128 bytes in Kubo, 64 here.
    Identity,
    /// Git's hash. Taken because boxo takes it; never made by default.
    Sha1,
    /// The default of the whole field.
    Sha2_256,
    /// SHA-2 with 512 bits.
    Sha2_512,
    /// SHA-3 with 256 bits.
    Sha3_256,
    /// SHA-3 with 512 bits.
    Sha3_512,
    /// BLAKE3 with 256 bits.
    Blake3,
}

impl MhCode {
    /// The function behind a multihash code, if gemba computes it.
    #[must_use]
    pub fn from_code(code: u64) -> Option<Self> {
        Some(match code {
            0x00 => Self::Identity,
            0x11 => Self::Sha1,
            0x12 => Self::Sha2_256,
            0x13 => Self::Sha2_512,
            0x16 => Self::Sha3_256,
            0x14 => Self::Sha3_512,
            0x1e => Self::Blake3,
            _ => return None,
        })
    }

    /// The function of a name as people type it (`sha2-256`, `blake3` …).
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "identity" => Self::Identity,
            "sha1" => Self::Sha1,
            "sha2-256" => Self::Sha2_256,
            "sha2-512" => Self::Sha2_512,
            "sha3-256" => Self::Sha3_256,
            "sha3-512" => Self::Sha3_512,
            "blake3" => Self::Blake3,
            _ => return None,
        })
    }

    /// The multihash code.
    #[must_use]
    pub fn code(self) -> u64 {
        match self {
            Self::Identity => 0x00,
            Self::Sha1 => 0x11,
            Self::Sha2_256 => 0x12,
            Self::Sha2_512 => 0x13,
            Self::Sha3_256 => 0x16,
            Self::Sha3_512 => 0x14,
            Self::Blake3 => 0x1e,
        }
    }

    /// Length of the full digest in bytes; `None` for identity, whose digest is as long as the content.
    #[must_use]
    pub fn digest_len(self) -> Option<usize> {
        Some(match self {
            Self::Identity => return None,
            Self::Sha1 => 20,
            Self::Sha2_256 | Self::Sha3_256 | Self::Blake3 => 32,
            Self::Sha2_512 | Self::Sha3_512 => 64,
        })
    }

    /// Hashes `data` in one go. `None` only for identity content longer than 64 bytes.
    #[must_use]
    pub fn digest(self, data: &[u8]) -> Option<Multihash<64>> {
        let mut hasher = Hasher::new(self);
        hasher.update(data);
        hasher.finish()
    }
}

/// An incremental hash, for content that arrives in pieces.
#[derive(Clone)]
pub struct Hasher(State);

impl std::fmt::Debug for Hasher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hasher")
    }
}

#[derive(Clone)]
enum State {
    Identity(Vec<u8>),
    Sha1(sha1::Sha1),
    /// ring's assembly: twice the speed of portable code on processors without SHA instructions (docs/decisions).
    Sha2(ring::digest::Context),
    Sha3_256(sha3::Sha3_256),
    Sha3_512(sha3::Sha3_512),
    Blake3(Box<blake3::Hasher>),
}

impl Hasher {
    /// Starts a hash of `code`.
    #[must_use]
    pub fn new(code: MhCode) -> Self {
        Self(match code {
            MhCode::Identity => State::Identity(Vec::new()),
            MhCode::Sha1 => State::Sha1(sha1::Sha1::new()),
            MhCode::Sha2_256 => State::Sha2(ring::digest::Context::new(&ring::digest::SHA256)),
            MhCode::Sha2_512 => State::Sha2(ring::digest::Context::new(&ring::digest::SHA512)),
            MhCode::Sha3_256 => State::Sha3_256(sha3::Sha3_256::new()),
            MhCode::Sha3_512 => State::Sha3_512(sha3::Sha3_512::new()),
            MhCode::Blake3 => State::Blake3(Box::new(blake3::Hasher::new())),
        })
    }

    /// Feeds the next piece. Identity keeps at most one byte more than fits, so that memory stays bounded.
    pub fn update(&mut self, piece: &[u8]) {
        match &mut self.0 {
            State::Identity(held) => {
                let room = (CID_DIGEST + 1).saturating_sub(held.len());
                held.extend_from_slice(&piece[..piece.len().min(room)]);
            }
            State::Sha1(h) => h.update(piece),
            State::Sha2(h) => h.update(piece),
            State::Sha3_256(h) => h.update(piece),
            State::Sha3_512(h) => h.update(piece),
            State::Blake3(h) => {
                h.update(piece);
            }
        }
    }

    /// The multihash of all pieces; `None` only for identity content longer than 64 bytes.
    #[must_use]
    pub fn finish(self) -> Option<Multihash<64>> {
        match self.0 {
            State::Identity(held) => Multihash::wrap(0x00, &held),
            State::Sha1(h) => Multihash::wrap(0x11, &h.finalize()),
            State::Sha2(h) => {
                let digest = h.finish();
                let code = if digest.algorithm() == &ring::digest::SHA256 {
                    0x12
                } else {
                    0x13
                };
                Multihash::wrap(code, digest.as_ref())
            }
            State::Sha3_256(h) => Multihash::wrap(0x16, &h.finalize()),
            State::Sha3_512(h) => Multihash::wrap(0x14, &h.finalize()),
            State::Blake3(h) => Multihash::wrap(0x1e, h.finalize().as_bytes()),
        }
        .ok()
    }
}

/// Why a CID is not taken. The blame is with whoever made the CID.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CidError {
    /// The hash function is not on the allow-list.
    #[error(
        "hash function 0x{0:x} is not supported: use sha2-256, sha2-512, sha3, blake3, sha1 or identity"
    )]
    UnsupportedHash(u64),
    /// Fewer than 20 bytes of digest can be forged.
    #[error("the digest has {0} bytes, fewer than 20 can be forged and are refused")]
    DigestTooShort(usize),
    /// More than 128 bytes, or more than the function yields.
    #[error("the digest has {0} bytes, which is more than this hash function may carry")]
    DigestTooLong(usize),
    /// CIDv0 is dag-pb with sha2-256 and nothing else.
    #[error("a CIDv0 must be dag-pb with a 32-byte sha2-256 digest")]
    BadV0,
}

/// Accepts the CIDs whose content gemba can check, refuses the others. Rules of boxo's `verifcid`: allowed functions,
/// digest of 20 to 128 bytes, identity up to 128 bytes.
///
/// # Errors
/// The rule that the CID breaks, see [`CidError`].
pub fn check_cid(cid: &Cid) -> Result<(), CidError> {
    let hash = cid.hash();
    let len = usize::from(hash.size());
    let code = MhCode::from_code(hash.code()).ok_or(CidError::UnsupportedHash(hash.code()))?;
    if cid.version() == Version::V0
        && (cid.codec() != DAG_PB || code != MhCode::Sha2_256 || len != 32)
    {
        return Err(CidError::BadV0);
    }
    match code.digest_len() {
        None if len > MAX_DIGEST => Err(CidError::DigestTooLong(len)),
        None => Ok(()),
        Some(_) if len < MIN_DIGEST => Err(CidError::DigestTooShort(len)),
        Some(full) if len > full => Err(CidError::DigestTooLong(len)),
        Some(_) => Ok(()),
    }
}

/// Whether `data` hashes to `cid`; a shortened digest (20 bytes or more) is compared with the beginning of the full one.
pub(crate) fn matches(cid: &Cid, data: &[u8]) -> bool {
    let want = cid.hash();
    let Some(code) = MhCode::from_code(want.code()) else {
        return false;
    };
    if code == MhCode::Identity {
        return want.digest() == data;
    }
    code.digest(data)
        .is_some_and(|got| !want.digest().is_empty() && got.digest().starts_with(want.digest()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cid_of(code: u64, digest: &[u8]) -> Cid {
        Cid::new_v1(crate::codec::RAW, Multihash::wrap(code, digest).unwrap())
    }

    /// Row X6 of the threat table: every combination of function and digest length. Of the functions that are here boxo judges as this
    /// does; those of boxo's list that are not here (blake2, keccak, shake, sha3-224 and -384, double sha2) are refused.
    #[test]
    fn x6_only_listed_hashes_of_sound_length_are_taken() {
        let known = [
            (0x11, 20),
            (0x12, 32),
            (0x13, 64),
            (0x14, 64),
            (0x16, 32),
            (0x1e, 32),
        ];
        for code in 0..0x200_u64 {
            for len in 0..=64_usize {
                let got = check_cid(&cid_of(code, &vec![7; len]));
                let want = match known.iter().find(|(c, _)| *c == code) {
                    _ if code == 0 => Ok(()),
                    None => Err(CidError::UnsupportedHash(code)),
                    Some(_) if len < 20 => Err(CidError::DigestTooShort(len)),
                    Some((_, full)) if len > *full => Err(CidError::DigestTooLong(len)),
                    Some(_) => Ok(()),
                };
                assert_eq!(got, want, "function 0x{code:x}, {len} bytes");
            }
        }
    }

    #[test]
    fn pieces_hash_as_the_whole() {
        let data: Vec<u8> = (0..10_000_u32).flat_map(u32::to_be_bytes).collect();
        for code in [
            MhCode::Sha1,
            MhCode::Sha2_256,
            MhCode::Sha2_512,
            MhCode::Sha3_256,
            MhCode::Sha3_512,
            MhCode::Blake3,
        ] {
            let mut hasher = Hasher::new(code);
            for piece in data.chunks(77) {
                hasher.update(piece);
            }
            assert_eq!(hasher.finish(), code.digest(&data));
            assert_eq!(
                usize::from(code.digest(&data).unwrap().size()),
                code.digest_len().unwrap()
            );
        }
    }

    #[test]
    fn identity_never_holds_more_than_fits() {
        assert!(MhCode::Identity.digest(&[0; 64]).is_some());
        assert!(MhCode::Identity.digest(&[0; 65]).is_none());
        let mut hasher = Hasher::new(MhCode::Identity);
        for _ in 0..1000 {
            hasher.update(&[0; 1000]);
        }
        assert!(matches!(&hasher.0, State::Identity(held) if held.len() == 65));
    }

    #[test]
    fn a_shortened_digest_is_compared_with_the_beginning() {
        let full = MhCode::Sha2_256.digest(b"x").unwrap();
        assert!(matches(&cid_of(0x12, &full.digest()[..20]), b"x"));
        assert!(!matches(&cid_of(0x12, &full.digest()[..20]), b"y"));
    }
}
