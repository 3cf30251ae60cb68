//! What the benches share: input that is touched before it is timed, because fresh pages of a virtual machine halve the
//! speed of whoever touches them first.

pub mod daemon;

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

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

/// What was to hold, and whether it does.
pub type Bound = (bool, &'static str);

/// A part of a scenario, by name.
pub type Part<'a, P> = (&'a str, fn(&P) -> Vec<Bound>);

/// Runs the parts of a scenario that the command line names, all of them without any, in a folder of their own, and says which bounds are broken.
///
/// # Panics
/// Without a folder for temporary files.
#[must_use]
#[expect(clippy::print_stdout, reason = "a bench tells what it found")]
pub fn scenario<P>(place: impl FnOnce(&Path) -> P, parts: &[Part<'_, P>]) -> ExitCode {
    let asked: Vec<String> = std::env::args()
        .skip(1)
        .filter(|word| !word.starts_with("--"))
        .collect();
    let home = tempfile::tempdir().expect("a folder for temporary files");
    let place = place(home.path());
    let wanted = parts
        .iter()
        .filter(|(name, _)| asked.is_empty() || asked.iter().any(|word| word == name));
    let bounds: Vec<Bound> = wanted.flat_map(|(_, part)| part(&place)).collect();
    let broken: Vec<_> = bounds.iter().filter(|(holds, _)| !holds).collect();
    for (_, bound) in &broken {
        println!("BROKEN: {bound}");
    }
    match broken.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

/// The time within which so many of a hundred were done; sorts them.
///
/// # Panics
/// Where there are none.
#[must_use]
pub fn percentile(times: &mut [Duration], percent: usize) -> Duration {
    times.sort_unstable();
    times[(times.len() * percent / 100).min(times.len() - 1)]
}
