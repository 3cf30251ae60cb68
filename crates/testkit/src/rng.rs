//! Seeded random, and the one line that repeats a failing run.

use std::ops::Range;

/// xoshiro256**, seeded by splitmix64. Small, fast, the same on every machine and in every version; not for secrets.
#[derive(Debug, Clone)]
pub struct Rng {
    state: [u64; 4],
    seed: u64,
}

impl Rng {
    /// The generator of this seed.
    pub fn new(seed: u64) -> Self {
        let mut mix = seed;
        Self {
            state: std::array::from_fn(|_| splitmix(&mut mix)),
            seed,
        }
    }

    /// The generator of `GEMBA_SEED` (hexadecimal with `0x`, or decimal), or of `seed` if the variable is not set.
    ///
    /// # Panics
    /// If the variable holds anything else: a replay that silently ran another seed would prove nothing.
    pub fn from_env_or(seed: u64) -> Self {
        Self::new(env_seed("GEMBA_SEED").unwrap_or(seed))
    }

    /// The seed this generator began with.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// A generator of its own, so that what one part draws does not shift what another part draws.
    pub fn fork(&mut self) -> Self {
        Self::new(self.next_u64())
    }

    /// 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        let s = &mut self.state;
        let out = s[1].wrapping_mul(5).rotate_left(7).wrapping_mul(9);
        let t = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = s[3].rotate_left(45);
        out
    }

    /// A number below `n`, every one equally likely within 2^-64 × n.
    ///
    /// # Panics
    /// If `n` is 0.
    pub fn below(&mut self, n: u64) -> u64 {
        assert!(n > 0, "no number is below 0");
        ((u128::from(self.next_u64()) * u128::from(n)) >> 64) as u64
    }

    /// An index below `n`.
    ///
    /// # Panics
    /// If `n` is 0.
    pub fn index(&mut self, n: usize) -> usize {
        self.below(n as u64) as usize
    }

    /// A number in the range.
    ///
    /// # Panics
    /// If the range is empty.
    pub fn range(&mut self, range: Range<u64>) -> u64 {
        assert!(range.start < range.end, "empty range {range:?}");
        range.start + self.below(range.end - range.start)
    }

    /// A length up to `max` in which each order of magnitude is equally likely: many small, few large, 0 and `max` among them.
    pub fn length(&mut self, max: u64) -> u64 {
        if max == 0 || self.chance(1, 16) {
            return if self.coin() { 0 } else { max };
        }
        let bits = self.below(u64::from(max.ilog2()) + 1);
        self.range(1 << bits..max.min((2 << bits) - 1).saturating_add(1))
            .min(max)
    }

    /// True in `hits` of `of` cases.
    pub fn chance(&mut self, hits: u64, of: u64) -> bool {
        self.below(of) < hits
    }

    /// True or false.
    pub fn coin(&mut self) -> bool {
        self.next_u64() >> 63 == 1
    }

    /// One of the items.
    ///
    /// # Panics
    /// If there is none.
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.index(items.len())]
    }

    /// Puts the items in random order.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.index(i + 1));
        }
    }

    /// Fills with random bytes.
    pub fn fill(&mut self, out: &mut [u8]) {
        for chunk in out.chunks_mut(8) {
            chunk.copy_from_slice(&self.next_u64().to_le_bytes()[..chunk.len()]);
        }
    }

    /// `len` random bytes.
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut out = vec![0; len];
        self.fill(&mut out);
        out
    }

    /// An array of random bytes.
    pub fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut out = [0; N];
        self.fill(&mut out);
        out
    }
}

/// Prints, if the test panics while this is alive, the line that repeats the run.
///
/// ```
/// let replay = gemba_testkit::Replay::new("gemba-testkit", 0x5eed);
/// let mut rng = replay.rng();
/// assert!(rng.below(6) < 6);
/// ```
#[derive(Debug)]
pub struct Replay {
    package: &'static str,
    test: String,
    seed: u64,
}

impl Replay {
    /// For the package of the test (`env!("CARGO_PKG_NAME")`), with `GEMBA_SEED` or else `seed`. The test's name is that of the thread.
    pub fn new(package: &'static str, seed: u64) -> Self {
        Self::of(package, env_seed("GEMBA_SEED").unwrap_or(seed))
    }

    /// The generator of the run.
    pub fn rng(&self) -> Rng {
        Rng::new(self.seed)
    }

    /// The line.
    pub fn line(&self) -> String {
        format!(
            "GEMBA_SEED={:#x} cargo test -p {} {} -- --nocapture",
            self.seed, self.package, self.test
        )
    }

    fn of(package: &'static str, seed: u64) -> Self {
        // libtest names the thread after the test; a test run on the main thread is found by running them all.
        let test = std::thread::current()
            .name()
            .filter(|name| *name != "main")
            .unwrap_or("")
            .to_owned();
        Self {
            package,
            test,
            seed,
        }
    }
}

impl Drop for Replay {
    #[allow(
        clippy::print_stderr,
        reason = "the line is for the person who reads the failed test"
    )]
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("\nreplay: {}", self.line());
        }
    }
}

/// Runs a property for many seeds: `check!(500, |rng| { … })`.
///
/// With `GEMBA_SEED` set it runs that seed alone. `GEMBA_SEED_BASE` moves the seeds, so that every commit can try others; without it they
/// are the same in every run. A failing seed prints its replay line.
#[macro_export]
macro_rules! check {
    ($count:expr, $property:expr) => {
        $crate::rng::check(env!("CARGO_PKG_NAME"), $count, $property)
    };
}

/// What [`check!`] calls, with the package's name.
pub fn check(package: &'static str, count: usize, mut property: impl FnMut(&mut Rng)) {
    for seed in seeds(count) {
        let replay = Replay::of(package, seed);
        property(&mut replay.rng());
    }
}

/// The seeds of a run of `count`: one if `GEMBA_SEED` is set.
pub fn seeds(count: usize) -> Vec<u64> {
    if let Some(seed) = env_seed("GEMBA_SEED") {
        return vec![seed];
    }
    let mut mix = env_seed("GEMBA_SEED_BASE").unwrap_or(0x67_65_6d_62_61);
    (0..count).map(|_| splitmix(&mut mix)).collect()
}

fn env_seed(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    let seed = parse_seed(&text);
    assert!(
        seed.is_some(),
        "{name}={text} is neither 0x… nor a decimal number of 64 bits"
    );
    seed
}

fn parse_seed(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    }
}

fn splitmix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// The stream never changes: seeds written down in regression tests stay good. Checked against Vigna's reference code: splitmix64 of 0
    /// begins with e220a8397b1dcdaf, and xoshiro256** of the state (1, 2, 3, 4) with 11520, 0, 1509978240, 1215971899390074240.
    #[test]
    fn the_stream_is_the_reference_stream() {
        assert_eq!(splitmix(&mut 0), 0xe220_a839_7b1d_cdaf);
        let mut rng = Rng {
            state: [1, 2, 3, 4],
            seed: 0,
        };
        assert_eq!(
            [
                rng.next_u64(),
                rng.next_u64(),
                rng.next_u64(),
                rng.next_u64()
            ],
            [11520, 0, 1_509_978_240, 1_215_971_899_390_074_240]
        );
    }

    #[test]
    fn a_seed_is_hexadecimal_or_decimal_or_refused() {
        assert_eq!(parse_seed("0xff"), Some(255));
        assert_eq!(parse_seed("255"), Some(255));
        for wrong in ["", "0x", "ff", "0x10000000000000000", "-1"] {
            assert_eq!(parse_seed(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn the_replay_line_names_seed_package_and_test() {
        let replay = Replay::of("gemba-x", 0xabc);
        let line = replay.line();
        assert!(
            line.starts_with("GEMBA_SEED=0xabc cargo test -p gemba-x "),
            "{line}"
        );
        assert!(
            line.ends_with("the_replay_line_names_seed_package_and_test -- --nocapture")
                || line.ends_with("  -- --nocapture"),
            "{line}"
        );
    }

    #[test]
    fn lengths_reach_both_ends_and_stay_inside() {
        let mut rng = Rng::new(1);
        let drawn: Vec<_> = (0..10_000).map(|_| rng.length(1000)).collect();
        assert!(drawn.iter().all(|n| *n <= 1000));
        for want in [0, 1, 1000] {
            assert!(drawn.contains(&want), "{want}");
        }
        assert!(
            drawn.iter().filter(|n| **n < 32).count() > 2_000,
            "small ones are common"
        );
        assert!((0..100).all(|_| rng.length(0) == 0));
        assert!((0..100).all(|_| rng.length(1) <= 1));
        let _ = rng.length(u64::MAX);
    }

    #[test]
    fn below_is_even_within_three_per_cent() {
        let mut rng = Rng::new(2);
        let mut counts = [0u32; 6];
        for _ in 0..60_000 {
            counts[rng.index(6)] += 1;
        }
        assert!(
            counts.iter().all(|n| (9_700..10_300).contains(n)),
            "{counts:?}"
        );
    }
}
