//! Salsa20 in vector registers, one block a lane: the one module of this crate with `unsafe`.
//!
//! A value of [`Sse2`], [`Avx2`] or [`Avx512`] exists only after the processor was asked, so having one is the proof that its
//! instructions may be used. Word *n* of all blocks lies in vector *n*; rounds need no shuffles, and a transposition at the end
//! brings the words of each block together. Counters are 64 bits a lane, carried before the rounds.
#![allow(unsafe_code)]

use std::arch::x86_64::*;

use super::{BLOCK, State};

/// Declares an engine: its proof of the processor's features, and the way into its kernel.
macro_rules! engine {
    ($(#[$doc:meta])* $name:ident, $blocks:literal, $kernel:ident, $($feature:tt),+) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct $name(());

        impl $name {
            /// `None` on a processor without these instructions.
            pub(super) fn detect() -> Option<Self> {
                ($(is_x86_feature_detected!($feature))&&+).then_some(Self(()))
            }

            /// In place.
            pub(super) fn xor_groups(self, state: &State, counter: u64, data: &mut [u8]) {
                for (number, group) in (0_u64..).zip(data.chunks_exact_mut($blocks * BLOCK)) {
                    let counter = counter.wrapping_add(number * $blocks);
                    let to = group.as_mut_ptr();
                    // SAFETY: `self` exists, so `detect` has found every feature that the kernel is compiled with; `to` is
                    // valid for a group of bytes, and the kernel reads each byte before it writes it.
                    unsafe { $kernel(state, counter, to, to) }
                }
            }

            /// From one slice to another of the same length.
            pub(super) fn xor_groups_to(
                self,
                state: &State,
                counter: u64,
                from: &[u8],
                to: &mut [u8],
            ) {
                let from = from.chunks_exact($blocks * BLOCK);
                let to = to.chunks_exact_mut($blocks * BLOCK);
                for (number, (from, to)) in (0_u64..).zip(from.zip(to)) {
                    let counter = counter.wrapping_add(number * $blocks);
                    // SAFETY: as above, with `from` valid for a group of bytes as well.
                    unsafe { $kernel(state, counter, from.as_ptr(), to.as_mut_ptr()) }
                }
            }
        }
    };
}

engine!(
    /// The processor has SSE2.
    Sse2, 4, xor_sse2, "sse2"
);
engine!(
    /// The processor has AVX2.
    Avx2, 8, xor_avx2, "avx2"
);
engine!(
    /// The processor has AVX-512 F.
    Avx512, 16, xor_avx512, "avx512f"
);

// The kernels read and write one group of blocks at `from` and `to`, which must be valid for so many bytes, and equal or apart.

/// The ten double rounds on sixteen vectors. `$rotate` is a macro, because the count must be a constant.
macro_rules! rounds {
    ($x:ident, $add:ident, $xor:ident, $rotate:ident) => {
        macro_rules! quarter {
            ($a:literal, $b:literal, $c:literal, $d:literal) => {
                $x[$b] = $xor($x[$b], $rotate!($add($x[$a], $x[$d]), 7, 25));
                $x[$c] = $xor($x[$c], $rotate!($add($x[$b], $x[$a]), 9, 23));
                $x[$d] = $xor($x[$d], $rotate!($add($x[$c], $x[$b]), 13, 19));
                $x[$a] = $xor($x[$a], $rotate!($add($x[$d], $x[$c]), 18, 14));
            };
        }
        for _ in 0..10 {
            quarter!(0, 4, 8, 12);
            quarter!(5, 9, 13, 1);
            quarter!(10, 14, 2, 6);
            quarter!(15, 3, 7, 11);
            quarter!(0, 1, 2, 3);
            quarter!(5, 6, 7, 4);
            quarter!(10, 11, 8, 9);
            quarter!(15, 12, 13, 14);
        }
    };
}

/// Both halves of the counters of `N` blocks in a row.
fn counters<const N: usize>(counter: u64) -> ([u32; N], [u32; N]) {
    let of = |lane: usize| counter.wrapping_add(lane as u64);
    (
        std::array::from_fn(|lane| of(lane) as u32),
        std::array::from_fn(|lane| (of(lane) >> 32) as u32),
    )
}

// ---- SSE2: 4 blocks

#[target_feature(enable = "sse2")]
unsafe fn xor_sse2(state: &State, counter: u64, from: *const u8, to: *mut u8) {
    macro_rules! rotate {
        ($v:expr, $left:literal, $right:literal) => {{
            let v = $v;
            _mm_or_si128(_mm_slli_epi32::<$left>(v), _mm_srli_epi32::<$right>(v))
        }};
    }
    let (low, high) = counters::<4>(counter);
    let mut start: [__m128i; 16] = [_mm_setzero_si128(); 16];
    for (vector, word) in start.iter_mut().zip(state) {
        *vector = _mm_set1_epi32(*word as i32);
    }
    start[8] = load_words_128(&low);
    start[9] = load_words_128(&high);
    let mut x = start;
    rounds!(x, _mm_add_epi32, _mm_xor_si128, rotate);
    for (mixed, first) in x.iter_mut().zip(start) {
        *mixed = _mm_add_epi32(*mixed, first);
    }
    for (quarter, words) in x.chunks_exact(4).enumerate() {
        for (block, stream) in transpose_128(words).into_iter().enumerate() {
            // SAFETY: within the group for which the caller vouches.
            unsafe { xor_128(from, to, block * BLOCK + quarter * 16, stream) };
        }
    }
}

#[target_feature(enable = "sse2")]
fn transpose_128(words: &[__m128i]) -> [__m128i; 4] {
    let (ab_low, ab_high) = (
        _mm_unpacklo_epi32(words[0], words[1]),
        _mm_unpackhi_epi32(words[0], words[1]),
    );
    let (cd_low, cd_high) = (
        _mm_unpacklo_epi32(words[2], words[3]),
        _mm_unpackhi_epi32(words[2], words[3]),
    );
    [
        _mm_unpacklo_epi64(ab_low, cd_low),
        _mm_unpackhi_epi64(ab_low, cd_low),
        _mm_unpacklo_epi64(ab_high, cd_high),
        _mm_unpackhi_epi64(ab_high, cd_high),
    ]
}

#[target_feature(enable = "sse2")]
fn load_words_128(words: &[u32; 4]) -> __m128i {
    // SAFETY: 16 bytes are read from an array of 16 bytes; the instruction needs no alignment.
    unsafe { _mm_loadu_si128(words.as_ptr().cast()) }
}

#[target_feature(enable = "sse2")]
unsafe fn xor_128(from: *const u8, to: *mut u8, at: usize, stream: __m128i) {
    // SAFETY: the caller's pointers are valid for 16 bytes at `at`; the instructions need no alignment.
    unsafe {
        let bytes = _mm_loadu_si128(from.add(at).cast());
        _mm_storeu_si128(to.add(at).cast(), _mm_xor_si128(bytes, stream));
    }
}

// ---- AVX2: 8 blocks

#[target_feature(enable = "avx2")]
unsafe fn xor_avx2(state: &State, counter: u64, from: *const u8, to: *mut u8) {
    macro_rules! rotate {
        ($v:expr, $left:literal, $right:literal) => {{
            let v = $v;
            _mm256_or_si256(
                _mm256_slli_epi32::<$left>(v),
                _mm256_srli_epi32::<$right>(v),
            )
        }};
    }
    let (low, high) = counters::<8>(counter);
    let mut start: [__m256i; 16] = [_mm256_setzero_si256(); 16];
    for (vector, word) in start.iter_mut().zip(state) {
        *vector = _mm256_set1_epi32(*word as i32);
    }
    start[8] = load_words_256(&low);
    start[9] = load_words_256(&high);
    let mut x = start;
    rounds!(x, _mm256_add_epi32, _mm256_xor_si256, rotate);
    for (mixed, first) in x.iter_mut().zip(start) {
        *mixed = _mm256_add_epi32(*mixed, first);
    }
    // Transposed vector n of a quarter holds 16 bytes of block n and 16 bytes of block n + 4.
    for (half, words) in x.chunks_exact(8).enumerate() {
        let (left, right) = (transpose_256(&words[..4]), transpose_256(&words[4..]));
        for (block, (left, right)) in left.into_iter().zip(right).enumerate() {
            let near = _mm256_permute2x128_si256::<0x20>(left, right);
            let far = _mm256_permute2x128_si256::<0x31>(left, right);
            // SAFETY: within the group for which the caller vouches.
            unsafe { xor_256(from, to, block * BLOCK + half * 32, near) };
            // SAFETY: within the group for which the caller vouches.
            unsafe { xor_256(from, to, (block + 4) * BLOCK + half * 32, far) };
        }
    }
}

#[target_feature(enable = "avx2")]
fn transpose_256(words: &[__m256i]) -> [__m256i; 4] {
    let (ab_low, ab_high) = (
        _mm256_unpacklo_epi32(words[0], words[1]),
        _mm256_unpackhi_epi32(words[0], words[1]),
    );
    let (cd_low, cd_high) = (
        _mm256_unpacklo_epi32(words[2], words[3]),
        _mm256_unpackhi_epi32(words[2], words[3]),
    );
    [
        _mm256_unpacklo_epi64(ab_low, cd_low),
        _mm256_unpackhi_epi64(ab_low, cd_low),
        _mm256_unpacklo_epi64(ab_high, cd_high),
        _mm256_unpackhi_epi64(ab_high, cd_high),
    ]
}

#[target_feature(enable = "avx2")]
fn load_words_256(words: &[u32; 8]) -> __m256i {
    // SAFETY: 32 bytes are read from an array of 32 bytes; the instruction needs no alignment.
    unsafe { _mm256_loadu_si256(words.as_ptr().cast()) }
}

#[target_feature(enable = "avx2")]
unsafe fn xor_256(from: *const u8, to: *mut u8, at: usize, stream: __m256i) {
    // SAFETY: the caller's pointers are valid for 32 bytes at `at`; the instructions need no alignment.
    unsafe {
        let bytes = _mm256_loadu_si256(from.add(at).cast());
        _mm256_storeu_si256(to.add(at).cast(), _mm256_xor_si256(bytes, stream));
    }
}

// ---- AVX-512: 16 blocks

#[target_feature(enable = "avx512f")]
unsafe fn xor_avx512(state: &State, counter: u64, from: *const u8, to: *mut u8) {
    macro_rules! rotate {
        ($v:expr, $left:literal, $right:literal) => {
            _mm512_rol_epi32::<$left>($v)
        };
    }
    let (low, high) = counters::<16>(counter);
    let mut start: [__m512i; 16] = [_mm512_setzero_si512(); 16];
    for (vector, word) in start.iter_mut().zip(state) {
        *vector = _mm512_set1_epi32(*word as i32);
    }
    start[8] = load_words_512(&low);
    start[9] = load_words_512(&high);
    let mut x = start;
    rounds!(x, _mm512_add_epi32, _mm512_xor_si512, rotate);
    for (mixed, first) in x.iter_mut().zip(start) {
        *mixed = _mm512_add_epi32(*mixed, first);
    }
    // Transposed vector n of a quarter holds 16 bytes of each of the blocks n, n + 4, n + 8 and n + 12.
    let [first, second, third, fourth] = [
        transpose_512(&x[..4]),
        transpose_512(&x[4..8]),
        transpose_512(&x[8..12]),
        transpose_512(&x[12..]),
    ];
    for n in 0..4 {
        // Lanes of 16 bytes: 0x44 takes 0 and 1 of each side, 0xee takes 2 and 3; then the even or the odd ones.
        let near_left = _mm512_shuffle_i32x4::<0x44>(first[n], second[n]);
        let near_right = _mm512_shuffle_i32x4::<0x44>(third[n], fourth[n]);
        let far_left = _mm512_shuffle_i32x4::<0xee>(first[n], second[n]);
        let far_right = _mm512_shuffle_i32x4::<0xee>(third[n], fourth[n]);
        let whole = [
            _mm512_shuffle_i32x4::<0x88>(near_left, near_right),
            _mm512_shuffle_i32x4::<0xdd>(near_left, near_right),
            _mm512_shuffle_i32x4::<0x88>(far_left, far_right),
            _mm512_shuffle_i32x4::<0xdd>(far_left, far_right),
        ];
        for (step, stream) in whole.into_iter().enumerate() {
            // SAFETY: within the group for which the caller vouches.
            unsafe { xor_512(from, to, (n + 4 * step) * BLOCK, stream) };
        }
    }
}

#[target_feature(enable = "avx512f")]
fn transpose_512(words: &[__m512i]) -> [__m512i; 4] {
    let (ab_low, ab_high) = (
        _mm512_unpacklo_epi32(words[0], words[1]),
        _mm512_unpackhi_epi32(words[0], words[1]),
    );
    let (cd_low, cd_high) = (
        _mm512_unpacklo_epi32(words[2], words[3]),
        _mm512_unpackhi_epi32(words[2], words[3]),
    );
    [
        _mm512_unpacklo_epi64(ab_low, cd_low),
        _mm512_unpackhi_epi64(ab_low, cd_low),
        _mm512_unpacklo_epi64(ab_high, cd_high),
        _mm512_unpackhi_epi64(ab_high, cd_high),
    ]
}

#[target_feature(enable = "avx512f")]
fn load_words_512(words: &[u32; 16]) -> __m512i {
    // SAFETY: 64 bytes are read from an array of 64 bytes; the instruction needs no alignment.
    unsafe { _mm512_loadu_si512(words.as_ptr().cast()) }
}

#[target_feature(enable = "avx512f")]
unsafe fn xor_512(from: *const u8, to: *mut u8, at: usize, stream: __m512i) {
    // SAFETY: the caller's pointers are valid for 64 bytes at `at`; the instructions need no alignment.
    unsafe {
        let bytes = _mm512_loadu_si512(from.add(at).cast());
        _mm512_storeu_si512(to.add(at).cast(), _mm512_xor_si512(bytes, stream));
    }
}
