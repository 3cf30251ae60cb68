//! Proof that a fault was injected: a test of recovery that never saw the fault proves nothing.

use std::collections::BTreeMap;

/// Named counters.
///
/// ```
/// let mut faults = gemba_testkit::Faults::default();
/// faults.hit("stream reset");
/// faults.assert_fired(&["stream reset"], 1);
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Faults(BTreeMap<&'static str, u64>);

impl Faults {
    /// Counts one.
    pub fn hit(&mut self, fault: &'static str) {
        *self.0.entry(fault).or_default() += 1;
    }

    /// How often it happened.
    pub fn count(&self, fault: &str) -> u64 {
        self.0.get(fault).copied().unwrap_or_default()
    }

    /// All that happened.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.0.iter().map(|(name, n)| (*name, *n))
    }

    /// Adds the counts of another run.
    pub fn merge(&mut self, other: &Self) {
        for (name, n) in other.iter() {
            *self.0.entry(name).or_default() += n;
        }
    }

    /// # Panics
    /// If one of these happened fewer than `least` times; names them all.
    #[track_caller]
    pub fn assert_fired(&self, faults: &[&str], least: u64) {
        let rare: Vec<_> = faults.iter().filter(|f| self.count(f) < least).collect();
        assert!(
            rare.is_empty(),
            "faults that fired fewer than {least} times: {rare:?}; all: {:?}",
            self.0
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[should_panic(expected = "\"never\"")]
    fn a_fault_that_never_fired_is_named() {
        let mut faults = Faults::default();
        faults.hit("once");
        faults.assert_fired(&["once", "never"], 1);
    }

    #[test]
    fn counts_of_runs_add_up() {
        let mut a = Faults::default();
        a.hit("x");
        let mut b = a.clone();
        b.hit("y");
        a.merge(&b);
        assert_eq!((a.count("x"), a.count("y"), a.count("z")), (2, 1, 0));
    }
}
