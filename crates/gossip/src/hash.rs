//! Hashing with a key, so that nobody outside can choose what collides.

use std::hash::BuildHasher;

use siphasher::sip::SipHasher13;

/// Builds hashers for maps whose keys others choose. Two nodes, or two runs with other seeds, hash differently; one seed hashes always
/// the same, so that a simulation repeats.
#[derive(Clone, Copy)]
pub(crate) struct Keyed(u64, u64);

impl Keyed {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed, seed.rotate_left(32) ^ 0x9e37_79b9_7f4a_7c15)
    }
}

impl BuildHasher for Keyed {
    type Hasher = SipHasher13;

    fn build_hasher(&self) -> SipHasher13 {
        SipHasher13::new_with_keys(self.0, self.1)
    }
}

#[cfg(feature = "sim")]
thread_local! {
    static HASHED: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

/// Notes bytes of a payload that are hashed, for the test that asks where.
#[inline]
pub(crate) fn note(bytes: usize) {
    #[cfg(feature = "sim")]
    HASHED.set(HASHED.get() + bytes);
    #[cfg(not(feature = "sim"))]
    let _ = bytes;
}

/// Bytes that this thread hashed so far.
#[cfg(feature = "sim")]
#[must_use]
pub fn hashed() -> usize {
    HASHED.get()
}

/// A seeded generator for choices that need no secrecy (splitmix64).
#[derive(Clone, Debug)]
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.next_u64()) * n as u128) >> 64) as usize
    }

    /// Leaves `n` of the items, chosen at random.
    pub(crate) fn choose<T>(&mut self, items: &mut Vec<T>, n: usize) {
        for i in 0..n.min(items.len()) {
            let other = i + self.below(items.len() - i);
            items.swap(i, other);
        }
        items.truncate(n);
    }
}
