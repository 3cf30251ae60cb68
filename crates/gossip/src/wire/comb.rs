//! Multiples of one point, again and again: by a table of its multiples (docs/decisions/016).
//!
//! A scalar is cut into digits of `width` bits, each between half of what so many bits hold below zero and as much above. The table has a row for
//! each digit's place, with the point's multiples for it; a multiple of the point is then the sum of one entry of each row. Where rows are
//! paired there is one for two places: the sum of the odd places is doubled `width` times, then the even ones are added. Half the memory for
//! `width` doublings.
//!
//! Times depend on the scalar. Here all of it is public: what comes over the wire.

use curve25519_dalek::edwards::EdwardsPoint;
use curve25519_dalek::scalar::Scalar;
use curve25519_dalek::traits::Identity;

/// Bits of a scalar, which is below the order of the group, and one that a digit may hand on to the next.
const BITS: usize = 254;
/// Digits at a width of 4 or more.
const MAX_DIGITS: usize = 64;

/// A point's multiples.
pub(super) struct Comb {
    width: usize,
    paired: bool,
    rows: Box<[EdwardsPoint]>,
}

impl Comb {
    /// Of any point of the curve, whatever its order. `width` is 4 to 8.
    pub(super) fn new(point: EdwardsPoint, width: usize, paired: bool) -> Self {
        debug_assert!((4..=8).contains(&width), "{width}");
        let places = 1 + usize::from(paired);
        let (rows, row) = (digits_of(width).div_ceil(places), 1 << (width - 1));
        let mut all = Vec::with_capacity(rows * row);
        let mut first = point;
        for _ in 0..rows {
            let mut multiple = first;
            for _ in 0..row {
                all.push(multiple);
                multiple += first;
            }
            first = doubled(first, width * places);
        }
        Self {
            width,
            paired,
            rows: all.into(),
        }
    }

    /// The point so many times: exactly, also where its order is not that of the scalars.
    pub(super) fn times(&self, scalar: &Scalar) -> EdwardsPoint {
        let digits = self.digits(scalar);
        let digits = &digits[..digits_of(self.width)];
        let mut sum = EdwardsPoint::identity();
        if !self.paired {
            digits
                .iter()
                .enumerate()
                .for_each(|(row, digit)| self.add(&mut sum, row, *digit));
            return sum;
        }
        for (row, pair) in digits.chunks(2).enumerate() {
            self.add(&mut sum, row, pair.get(1).copied().unwrap_or(0));
        }
        sum = doubled(sum, self.width);
        for (row, pair) in digits.chunks(2).enumerate() {
            self.add(&mut sum, row, pair[0]);
        }
        sum
    }

    /// Memory that is taken, in bytes.
    pub(super) fn memory(&self) -> usize {
        size_of_val(&*self.rows)
    }

    fn add(&self, sum: &mut EdwardsPoint, row: usize, digit: i16) {
        let row = &self.rows[row << (self.width - 1)..];
        match digit {
            0 => {}
            1.. => *sum += row[digit as usize - 1],
            _ => *sum -= row[usize::from(digit.unsigned_abs()) - 1],
        }
    }

    /// The digits of a scalar, the lowest first.
    fn digits(&self, scalar: &Scalar) -> [i16; MAX_DIGITS] {
        let mut words = [0; 5];
        for (word, bytes) in words.iter_mut().zip(scalar.as_bytes().chunks_exact(8)) {
            *word = bytes.iter().rev().fold(0, |w, b| w << 8 | u64::from(*b));
        }
        let (full, mut carry) = (1_i16 << self.width, 0);
        let mut digits = [0; MAX_DIGITS];
        for (place, digit) in digits[..digits_of(self.width)].iter_mut().enumerate() {
            let at = place * self.width;
            let bits = u128::from(words[at / 64]) | u128::from(words[at / 64 + 1]) << 64;
            *digit = ((bits >> (at % 64)) as u64 & (full as u64 - 1)) as i16 + carry;
            carry = i16::from(*digit > full / 2);
            *digit -= carry * full;
        }
        debug_assert_eq!(carry, 0, "a scalar is below the order of the group");
        digits
    }
}

/// Digits of a scalar.
fn digits_of(width: usize) -> usize {
    BITS.div_ceil(width)
}

fn doubled(mut point: EdwardsPoint, times: usize) -> EdwardsPoint {
    for _ in 0..times {
        point += point;
    }
    point
}

#[cfg(test)]
mod tests {
    use curve25519_dalek::constants::{ED25519_BASEPOINT_POINT, EIGHT_TORSION};
    use gemba_testkit::{check, sim_scale};

    use super::*;

    /// The long way: bit by bit.
    fn plainly(point: EdwardsPoint, scalar: &Scalar) -> EdwardsPoint {
        let mut sum = EdwardsPoint::identity();
        for byte in scalar.as_bytes().iter().rev() {
            for bit in (0..8).rev() {
                sum += sum;
                if byte >> bit & 1 == 1 {
                    sum += point;
                }
            }
        }
        sum
    }

    #[test]
    fn a_table_gives_what_adding_up_gives() {
        check!(sim_scale(200), |rng| {
            let some = Scalar::from_bytes_mod_order_wide(&rng.array());
            let power = |rng: &mut gemba_testkit::Rng| {
                let mut bytes = [0; 32];
                bytes[rng.index(31)] = 1 << rng.below(8);
                Scalar::from_bytes_mod_order(bytes)
            };
            let scalar = match rng.below(6) {
                0 => Scalar::ZERO - Scalar::from(rng.below(3)),
                1 => power(rng),
                2 => power(rng) - Scalar::from(rng.below(300)),
                3 => power(rng) + power(rng) - power(rng),
                _ => some,
            };
            let prime = ED25519_BASEPOINT_POINT * some;
            let torsion = *rng.pick(&EIGHT_TORSION);
            let point = *rng.pick(&[prime, torsion, prime + torsion]);
            let (width, paired) = (4 + rng.index(5), rng.coin());
            let comb = Comb::new(point, width, paired);
            assert_eq!(
                comb.times(&scalar).compress(),
                plainly(point, &scalar).compress(),
                "{scalar:?} with {width} bits"
            );
        });
    }
}
