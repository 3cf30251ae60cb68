//! One block at a time in plain code: the fallback, and what the vector engines are compared with.

use super::{BLOCK, State};

pub(super) fn xor_groups(state: &State, counter: u64, data: &mut [u8]) {
    let mut input = *state;
    for (number, block) in (0_u64..).zip(data.chunks_exact_mut(BLOCK)) {
        let counter = counter.wrapping_add(number);
        input[8] = counter as u32;
        input[9] = (counter >> 32) as u32;
        let stream = rounds(&input);
        for ((bytes, mixed), start) in block.chunks_exact_mut(4).zip(stream).zip(input) {
            let word = mixed.wrapping_add(start).to_le_bytes();
            for (byte, key) in bytes.iter_mut().zip(word) {
                *byte ^= key;
            }
        }
    }
}

fn rounds(input: &State) -> State {
    let mut x = *input;
    for _ in 0..10 {
        quarter(&mut x, 0, 4, 8, 12);
        quarter(&mut x, 5, 9, 13, 1);
        quarter(&mut x, 10, 14, 2, 6);
        quarter(&mut x, 15, 3, 7, 11);
        quarter(&mut x, 0, 1, 2, 3);
        quarter(&mut x, 5, 6, 7, 4);
        quarter(&mut x, 10, 11, 8, 9);
        quarter(&mut x, 15, 12, 13, 14);
    }
    x
}

fn quarter(x: &mut State, a: usize, b: usize, c: usize, d: usize) {
    x[b] ^= x[a].wrapping_add(x[d]).rotate_left(7);
    x[c] ^= x[b].wrapping_add(x[a]).rotate_left(9);
    x[d] ^= x[c].wrapping_add(x[b]).rotate_left(13);
    x[a] ^= x[d].wrapping_add(x[c]).rotate_left(18);
}
