//! Directories as hash array mapped tries (specs/unixfs.md §5).
//!
//! An entry's place is decided by murmur3-x64-64 of its name, bits taken from the most significant end, log2(fanout)
//! of them a level. `build` writes tries, `shard` checks and reads one node.

pub(crate) mod build;
pub(crate) mod shard;

use murmur3::murmur3_x64_128;

/// The multihash code that a shard's hashType carries: murmur3-x64-64.
pub(crate) const HASH_MURMUR3: u64 = 0x22;

/// The hash of a name: the first 8 bytes of the 128-bit murmur3, as a big-endian number.
pub(crate) fn hash(name: &[u8]) -> u64 {
    let mut reader = name;
    let full = murmur3_x64_128(&mut reader, 0).expect("reading from a slice cannot fail");
    // The crate returns h1 | h2 << 64; Go's Sum64 writes h1 big-endian.
    full as u64
}

/// The index of `hash` in the shard at `level`, `None` when the 64 bits are used up.
pub(crate) fn index_at(hash: u64, level: u32, bits: u32) -> Option<u32> {
    let used = level.checked_mul(bits)?;
    let shift = 64u32.checked_sub(used.checked_add(bits)?)?;
    Some(((hash >> shift) & ((1 << bits) - 1)) as u32)
}

/// Hexadecimal digits in front of each link name of a shard this wide.
pub(crate) fn prefix_width(fanout: u32) -> usize {
    // `%0nX` of fanout - 1
    ((fanout - 1).ilog2() / 4 + 1) as usize
}

/// Why a shard breaks the rules. The DAG's maker is to blame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HamtError {
    /// The hash function is not murmur3-x64-64.
    #[error("hash function 0x{0:x} is not murmur3-x64-64 (0x22)")]
    HashType(u64),
    /// The fanout is not a power of two from 8 to 1024.
    #[error("fanout {0} is not a power of two between 8 and 1024")]
    Fanout(u64),
    /// A shard has another fanout than the root.
    #[error("fanout {shard} below a root of fanout {root}")]
    FanoutChanged {
        /// Fanout of the shard.
        shard: u32,
        /// Fanout of the root.
        root: u32,
    },
    /// The bitfield is longer than the fanout or does not have one bit a link.
    #[error("the bitfield does not fit the links")]
    Bitfield,
    /// A link name does not begin with its index in upper-case hexadecimal digits, ascending.
    #[error("the links are not named after their places, ascending")]
    LinkName,
    /// An entry lies where a lookup of its name does not come by.
    #[error("an entry lies in the wrong place")]
    Misplaced,
    /// A shard below the root has no entry.
    #[error("a shard below the root is empty")]
    Empty,
    /// More levels than the hash has bits for.
    #[error("the shards lie deeper than a 64-bit hash reaches")]
    TooDeep,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn murmur3_equals_the_vectors_of_go() {
        assert_eq!(hash(b"00000000"), 0xb090_6381_bda6_c57a);
        assert_eq!(hash(b"file"), 0x18e6_660e_153f_63d0);
    }

    #[test]
    fn bits_are_taken_from_the_most_significant_end() {
        let hash = 0xb090_6381_bda6_c57a;
        assert_eq!(index_at(hash, 0, 8), Some(0xb0));
        assert_eq!(index_at(hash, 1, 8), Some(0x90));
        assert_eq!(index_at(hash, 7, 8), Some(0x7a));
        assert_eq!(index_at(hash, 8, 8), None);
        assert_eq!(index_at(hash, 0, 3), Some(0b101));
        assert_eq!(index_at(hash, 20, 3), Some(0b101));
        assert_eq!(index_at(hash, 21, 3), None);
    }

    #[test]
    fn prefixes_are_as_wide_as_the_largest_index() {
        assert_eq!(prefix_width(8), 1);
        assert_eq!(prefix_width(16), 1);
        assert_eq!(prefix_width(32), 2);
        assert_eq!(prefix_width(256), 2);
        assert_eq!(prefix_width(512), 3);
        assert_eq!(prefix_width(1024), 3);
    }
}
