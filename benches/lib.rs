//! What the benches share: input that is touched before it is timed, because fresh pages of a virtual machine halve the
//! speed of whoever touches them first.

pub mod daemon;

use gemba_block::Block;
use gemba_testkit::Rng;

/// `len` bytes that do not repeat, already in memory.
#[must_use]
pub fn bytes(len: usize) -> Vec<u8> {
    Rng::new(0x67656d62).bytes(len)
}

/// `count` different raw blocks of `len` bytes.
///
/// # Panics
/// If `len` is more than a block may have.
#[must_use]
pub fn blocks(count: usize, len: usize, salt: u64) -> Vec<Block> {
    let mut rng = Rng::new(0x626c_6f63_6b73 ^ salt);
    (0..count)
        .map(|_| Block::raw(rng.bytes(len)).expect("a bench's block is below 2 MiB"))
        .collect()
}
