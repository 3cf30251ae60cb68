//! XSalsa20, the cipher of a private swarm, several blocks side by side.
//!
//! Salsa20 makes 64 bytes of key stream from key, nonce and a block counter; blocks do not depend on each other. So the vector
//! engines compute 4 (SSE2), 8 (AVX2) or 16 (AVX-512) of them at once, one block a lane, and [`Engine::best`] asks the processor which
//! it has. All engines give the same bytes as [`Engine::Soft`], and the published vectors bind them all.
//!
//! Sources: "Extending the Salsa20 nonce" (HSalsa20, XSalsa20), "The Salsa20 family of stream ciphers", D. J. Bernstein.

mod soft;
#[cfg(target_arch = "x86_64")]
mod x86;

use salsa20::{cipher::consts::U10, hsalsa};
use zeroize::{Zeroize, Zeroizing};

/// Bytes of one block of key stream.
pub const BLOCK: usize = 64;
/// Blocks of the widest engine.
const WIDEST: usize = 16;
/// "expand 32-byte k", the words between the key in a state of 256 bit keys.
const SIGMA: [u32; 4] = [0x6170_7865, 0x3320_646e, 0x7962_2d32, 0x6b20_6574];

/// The words of a block before its rounds. Words 8 and 9 are the counter.
type State = [u32; 16];

/// What computes the blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Engine {
    /// One block at a time, on every processor.
    Soft,
    /// Four blocks; every x86-64 processor.
    #[cfg(target_arch = "x86_64")]
    Sse2(x86::Sse2),
    /// Eight blocks.
    #[cfg(target_arch = "x86_64")]
    Avx2(x86::Avx2),
    /// Sixteen blocks.
    #[cfg(target_arch = "x86_64")]
    Avx512(x86::Avx512),
}

impl Engine {
    /// The fastest one of this processor.
    pub fn best() -> Self {
        let engines = Self::available();
        #[cfg(feature = "bench")]
        let engines = bench::no_faster_than_chosen(engines);
        engines.last().copied().unwrap_or(Self::Soft)
    }

    /// Those that this processor can run, slowest first.
    pub fn available() -> Vec<Self> {
        let mut engines = vec![Self::Soft];
        #[cfg(target_arch = "x86_64")]
        {
            engines.extend(x86::Sse2::detect().map(Self::Sse2));
            engines.extend(x86::Avx2::detect().map(Self::Avx2));
            engines.extend(x86::Avx512::detect().map(Self::Avx512));
        }
        engines
    }

    /// Blocks that are computed at once.
    pub fn blocks(self) -> usize {
        match self {
            Self::Soft => 1,
            #[cfg(target_arch = "x86_64")]
            Self::Sse2(_) => 4,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(_) => 8,
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(_) => 16,
        }
    }

    /// XORs `data`, a whole number of groups of [`Engine::blocks`], with the key stream that begins at block `counter`.
    fn xor_groups(self, state: &State, counter: u64, data: &mut [u8]) {
        match self {
            Self::Soft => soft::xor_groups(state, counter, data),
            #[cfg(target_arch = "x86_64")]
            Self::Sse2(engine) => engine.xor_groups(state, counter, data),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(engine) => engine.xor_groups(state, counter, data),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(engine) => engine.xor_groups(state, counter, data),
        }
    }

    /// The same from one slice to another of the same length.
    fn xor_groups_to(self, state: &State, counter: u64, from: &[u8], to: &mut [u8]) {
        match self {
            Self::Soft => {
                to.copy_from_slice(from);
                soft::xor_groups(state, counter, to);
            }
            #[cfg(target_arch = "x86_64")]
            Self::Sse2(engine) => engine.xor_groups_to(state, counter, from, to),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(engine) => engine.xor_groups_to(state, counter, from, to),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(engine) => engine.xor_groups_to(state, counter, from, to),
        }
    }
}

/// For benches only: what a processor without the widest registers would do.
#[cfg(feature = "bench")]
#[doc(hidden)]
pub mod bench {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::Engine;

    /// Blocks of the engine that is the fastest from now on; 0: whatever there is.
    static CHOSEN: AtomicUsize = AtomicUsize::new(0);

    /// All connections of the process that begin from now on use no faster engine. `None`: the fastest of the processor again.
    pub fn choose(engine: Option<Engine>) {
        CHOSEN.store(engine.map_or(0, Engine::blocks), Ordering::Relaxed);
    }

    pub(super) fn no_faster_than_chosen(mut engines: Vec<Engine>) -> Vec<Engine> {
        let chosen = CHOSEN.load(Ordering::Relaxed);
        engines.retain(|engine| chosen == 0 || engine.blocks() <= chosen);
        engines
    }
}

/// One direction of a connection: a key stream and how far it is used. The key is wiped when it is dropped.
pub struct XSalsa20 {
    engine: Engine,
    state: Zeroizing<State>,
    /// The next block to compute.
    counter: u64,
    /// Key stream computed and not yet used: the last `left` bytes of the first `engine.blocks()` blocks.
    spare: Zeroizing<[u8; WIDEST * BLOCK]>,
    left: usize,
}

impl XSalsa20 {
    /// The key stream of `key` and `nonce` from its beginning, by the fastest engine of this processor.
    pub fn new(key: &[u8; 32], nonce: &[u8; 24]) -> Self {
        Self::with_engine(Engine::best(), key, nonce)
    }

    /// The same by a given engine.
    pub fn with_engine(engine: Engine, key: &[u8; 32], nonce: &[u8; 24]) -> Self {
        let mut input = [0; 16];
        input.copy_from_slice(&nonce[..16]);
        let mut subkey = hsalsa::<U10>(key.into(), &input.into());
        let mut state = Zeroizing::new([0; 16]);
        for (word, from) in [1, 2, 3, 4, 11, 12, 13, 14]
            .into_iter()
            .zip(subkey.chunks_exact(4))
        {
            state[word] = word_of(from);
        }
        for (word, value) in [0, 5, 10, 15].into_iter().zip(SIGMA) {
            state[word] = value;
        }
        state[6] = word_of(&nonce[16..20]);
        state[7] = word_of(&nonce[20..24]);
        subkey.as_mut_slice().zeroize();
        Self {
            engine,
            state,
            counter: 0,
            spare: Zeroizing::new([0; WIDEST * BLOCK]),
            left: 0,
        }
    }

    /// Goes on at block number `block`, counted from 0; the stream has 2^64 of them.
    pub fn seek_to_block(&mut self, block: u64) {
        self.counter = block;
        self.left = 0;
    }

    /// XORs `data` with the next bytes of the key stream: encrypts or decrypts it in place.
    pub fn apply(&mut self, data: &mut [u8]) {
        let from_spare = data.len().min(self.left);
        let (data, rest) = data.split_at_mut(from_spare);
        self.use_spare(data);
        let group = self.group();
        let whole = rest.len() - rest.len() % group;
        let (whole, rest) = rest.split_at_mut(whole);
        self.engine.xor_groups(&self.state, self.counter, whole);
        self.counter = self.counter.wrapping_add((whole.len() / BLOCK) as u64);
        if !rest.is_empty() {
            self.make_spare();
            self.use_spare(rest);
        }
    }

    /// As [`Self::apply`], from one slice to another: a copy that encrypts or decrypts on the way.
    ///
    /// # Panics
    ///
    /// If the slices differ in length.
    pub fn apply_to(&mut self, from: &[u8], to: &mut [u8]) {
        assert_eq!(from.len(), to.len(), "as many bytes out as in");
        let group = self.group();
        let from_spare = from.len().min(self.left);
        let whole = from.len() - from_spare;
        let whole = from_spare..from_spare + whole - whole % group;
        to[..from_spare].copy_from_slice(&from[..from_spare]);
        self.use_spare(&mut to[..from_spare]);
        self.engine.xor_groups_to(
            &self.state,
            self.counter,
            &from[whole.clone()],
            &mut to[whole.clone()],
        );
        self.counter = self.counter.wrapping_add((whole.len() / BLOCK) as u64);
        let rest = &mut to[whole.end..];
        if !rest.is_empty() {
            rest.copy_from_slice(&from[whole.end..]);
            self.make_spare();
            self.use_spare(rest);
        }
    }

    fn use_spare(&mut self, data: &mut [u8]) {
        let from = self.group() - self.left;
        for (byte, key) in data.iter_mut().zip(&self.spare[from..]) {
            *byte ^= key;
        }
        self.left -= data.len();
    }

    /// One group of key stream, to be used up bit by bit.
    fn make_spare(&mut self) {
        let group = self.group();
        let spare = &mut self.spare[..group];
        spare.fill(0);
        self.engine.xor_groups(&self.state, self.counter, spare);
        self.counter = self.counter.wrapping_add((group / BLOCK) as u64);
        self.left = group;
    }

    /// Bytes that the engine computes at once.
    fn group(&self) -> usize {
        self.engine.blocks() * BLOCK
    }
}

impl std::fmt::Debug for XSalsa20 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("XSalsa20")
            .field("engine", &self.engine)
            .finish_non_exhaustive()
    }
}

/// Four bytes as a word, little endian.
fn word_of(bytes: &[u8]) -> u32 {
    bytes
        .iter()
        .rev()
        .fold(0, |word, byte| word << 8 | u32::from(*byte))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use salsa20::cipher::{KeyIvInit, StreamCipher, StreamCipherSeek};

    use super::*;

    /// What RustCrypto's implementation makes of `data`, from block `block` on.
    fn oracle(key: &[u8; 32], nonce: &[u8; 24], block: u64, data: &[u8]) -> Vec<u8> {
        let mut cipher = salsa20::XSalsa20::new(key.into(), nonce.into());
        cipher.seek(u128::from(block) * BLOCK as u128);
        let mut data = data.to_vec();
        cipher.apply_keystream(&mut data);
        data
    }

    #[test]
    #[cfg(feature = "bench")]
    fn a_bench_chooses_what_is_the_fastest() {
        for engine in Engine::available() {
            bench::choose(Some(engine));
            assert_eq!(Engine::best(), engine);
        }
        bench::choose(None);
        assert_eq!(Some(&Engine::best()), Engine::available().last());
    }

    #[test]
    fn there_is_more_than_the_fallback_on_x86() {
        let engines = Engine::available();
        assert_eq!(engines[0], Engine::Soft);
        assert!(engines.len() > 1 || !cfg!(target_arch = "x86_64"));
    }

    /// A 32-bit counter would start over here: RustCrypto's SSE2 code did, and was removed for it.
    #[test]
    fn s0_52_the_counter_carries_into_its_upper_half() {
        let (key, nonce) = ([7; 32], [9; 24]);
        let data = vec![0; 40 * BLOCK + 5];
        for engine in Engine::available() {
            for before in 0..20 {
                let block = (1 << 32) - before;
                let mut cipher = XSalsa20::with_engine(engine, &key, &nonce);
                cipher.seek_to_block(block);
                let mut ours = data.clone();
                cipher.apply(&mut ours);
                assert!(
                    ours == oracle(&key, &nonce, block, &data),
                    "{engine:?}, {before} before"
                );
            }
        }
    }

    #[test]
    fn nothing_secret_is_printed() {
        let text = format!("{:?}", XSalsa20::new(&[0xab; 32], &[0xcd; 24]));
        assert!(!text.contains("171") && !text.contains("state"), "{text}");
    }

    proptest! {
        #[test]
        fn s0_52_every_engine_gives_the_same_bytes_however_the_stream_is_cut(
            key: [u8; 32],
            nonce: [u8; 24],
            cuts in prop::collection::vec(0_usize..3000, 1..8),
        ) {
            let data: Vec<u8> = (0..cuts.iter().sum::<usize>()).map(|i| i as u8).collect();
            let expected = oracle(&key, &nonce, 0, &data);
            for engine in Engine::available() {
                let mut cipher = XSalsa20::with_engine(engine, &key, &nonce);
                let mut ours = data.clone();
                let mut rest = ours.as_mut_slice();
                for cut in &cuts {
                    let (piece, after) = rest.split_at_mut(*cut);
                    if cut % 2 == 0 {
                        cipher.apply(piece);
                    } else {
                        let plain = piece.to_vec();
                        cipher.apply_to(&plain, piece);
                    }
                    rest = after;
                }
                prop_assert!(ours == expected, "{engine:?}");
            }
        }
    }
}
