//! Which blocks were heard of: 16 bytes each.
//!
//! A keyed digest (SipHash-2-4 with 128 bits of output) of codec and multihash. Two CIDs that differ only in their version name the same block
//! of the same DAG and count once; the same bytes under another codec have other links and count twice. With a key nobody knows, that two of
//! n blocks are taken for one has the chance n² ÷ 2^129.

use cid::Cid;
use std::{
    collections::HashSet,
    hash::{BuildHasherDefault, Hasher},
};

/// The set, in shards so that growing one copies a sixteenth.
#[derive(Debug)]
pub(super) struct Visited {
    key: (u64, u64),
    shards: [HashSet<Digest, BuildHasherDefault<FirstHalf>>; SHARDS],
    len: u64,
}

const SHARDS: usize = 16;

/// Codec, hash code, and at most 64 bytes of digest.
const MAX_INPUT: usize = 8 + 8 + 64;

type Digest = (u64, u64);

impl Visited {
    pub(super) fn new(key: [u8; 16]) -> Self {
        let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| key[at + i]));
        Self {
            key: (word(0), word(8)),
            shards: std::array::from_fn(|_| HashSet::default()),
            len: 0,
        }
    }

    /// `true`: it was not heard of before.
    pub(super) fn insert(&mut self, cid: &Cid) -> bool {
        let digest = self.digest(cid);
        let new = self.shards[digest.1 as usize % SHARDS].insert(digest);
        self.len += u64::from(new);
        new
    }

    /// It is as if it was never heard of.
    pub(super) fn remove(&mut self, cid: &Cid) {
        let digest = self.digest(cid);
        let there = self.shards[digest.1 as usize % SHARDS].remove(&digest);
        self.len -= u64::from(there);
    }

    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Bytes of the tables: a key and a control byte for each bucket, eight buckets for seven entries.
    pub(super) fn memory(&self) -> usize {
        self.shards
            .iter()
            .map(|s| s.capacity() * 8 / 7 * (size_of::<Digest>() + 1))
            .sum()
    }

    fn digest(&self, cid: &Cid) -> Digest {
        let digest = cid.hash().digest();
        let mut input = [0; MAX_INPUT];
        input[..8].copy_from_slice(&cid.codec().to_le_bytes());
        input[8..16].copy_from_slice(&cid.hash().code().to_le_bytes());
        input[16..16 + digest.len()].copy_from_slice(digest);
        sip128(self.key, &input[..16 + digest.len()])
    }
}

/// The digest is already uniform and keyed: half of it is the hash.
#[derive(Debug, Default)]
struct FirstHalf(Option<u64>);

impl Hasher for FirstHalf {
    fn finish(&self) -> u64 {
        self.0.unwrap_or_default()
    }

    fn write_u64(&mut self, half: u64) {
        self.0.get_or_insert(half);
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("a Digest hashes as two u64")
    }
}

/// SipHash-2-4 with 128-bit output, as its authors' reference implementation defines it.
fn sip128((k0, k1): (u64, u64), input: &[u8]) -> Digest {
    let mut v = [
        k0 ^ 0x736f_6d65_7073_6575,
        k1 ^ 0x646f_7261_6e64_6f6d ^ 0xee,
        k0 ^ 0x6c79_6765_6e65_7261,
        k1 ^ 0x7465_6462_7974_6573,
    ];
    let mut words = input.chunks_exact(8);
    for word in &mut words {
        absorb(&mut v, u64::from_le_bytes(std::array::from_fn(|i| word[i])));
    }
    let mut last = [0; 8];
    last[..words.remainder().len()].copy_from_slice(words.remainder());
    last[7] = input.len() as u8;
    absorb(&mut v, u64::from_le_bytes(last));
    v[2] ^= 0xee;
    let low = finish(&mut v);
    v[1] ^= 0xdd;
    (low, finish(&mut v))
}

fn absorb(v: &mut [u64; 4], word: u64) {
    v[3] ^= word;
    round(v);
    round(v);
    v[0] ^= word;
}

fn finish(v: &mut [u64; 4]) -> u64 {
    for _ in 0..4 {
        round(v);
    }
    v[0] ^ v[1] ^ v[2] ^ v[3]
}

fn round(v: &mut [u64; 4]) {
    v[0] = v[0].wrapping_add(v[1]);
    v[1] = v[1].rotate_left(13) ^ v[0];
    v[0] = v[0].rotate_left(32);
    v[2] = v[2].wrapping_add(v[3]);
    v[3] = v[3].rotate_left(16) ^ v[2];
    v[0] = v[0].wrapping_add(v[3]);
    v[3] = v[3].rotate_left(21) ^ v[0];
    v[2] = v[2].wrapping_add(v[1]);
    v[1] = v[1].rotate_left(17) ^ v[2];
    v[2] = v[2].rotate_left(32);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first vectors of the reference implementation (`vectors_sip128`): key 00…0f, inputs of 0, 1 and 2 bytes 00 01 ….
    #[test]
    fn siphash_128_vectors() {
        let key = (0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908);
        let bytes = |d: Digest| [d.0.to_le_bytes(), d.1.to_le_bytes()].concat();
        assert_eq!(
            bytes(sip128(key, &[])),
            [
                0xa3, 0x81, 0x7f, 0x04, 0xba, 0x25, 0xa8, 0xe6, 0x6d, 0xf6, 0x72, 0x14, 0xc7, 0x55,
                0x02, 0x93
            ]
        );
        assert_eq!(
            bytes(sip128(key, &[0])),
            [
                0xda, 0x87, 0xc1, 0xd8, 0x6b, 0x99, 0xaf, 0x44, 0x34, 0x76, 0x59, 0x11, 0x9b, 0x22,
                0xfc, 0x45
            ]
        );
        assert_eq!(
            bytes(sip128(key, &[0, 1])),
            [
                0x81, 0x77, 0x22, 0x8d, 0xa4, 0xa4, 0x5d, 0xc7, 0xfc, 0xa3, 0x8b, 0xde, 0xf6, 0x0a,
                0xff, 0xe4
            ]
        );
    }
}
