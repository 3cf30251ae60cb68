//! Sources whose members were turned away: a handshake costs this node a millisecond, and a banned member that dials again at once would
//! have it make some hundred a second. So such a source gets a few at once, and then two a second.

use std::{collections::HashMap, net::IpAddr, time::Duration};

/// Members that a source may have turned away before its connections are refused unheard.
pub(super) const AT_ONCE: usize = 4;
/// One of them is forgotten in this time.
const FORGOTTEN: Duration = Duration::from_millis(500);
/// Sources that are remembered. The victim is the one turned away longest ago.
const SOURCES: usize = 1024;

/// How often members from each source were turned away of late.
#[derive(Debug, Default)]
pub(super) struct TurnedAway {
    sources: HashMap<IpAddr, Level>,
}

/// A bucket that leaks.
#[derive(Clone, Copy, Debug)]
struct Level {
    /// When it is empty.
    empty_at: Duration,
}

impl TurnedAway {
    /// A member from there was refused after its handshake.
    pub(super) fn note(&mut self, source: IpAddr, now: Duration) {
        self.sources.retain(|_, level| level.empty_at > now);
        if !self.sources.contains_key(&source)
            && self.sources.len() >= SOURCES
            && let Some(victim) = self.longest_ago()
        {
            self.sources.remove(&victim);
        }
        let level = self
            .sources
            .entry(source)
            .or_insert(Level { empty_at: now });
        level.empty_at = level.empty_at.max(now) + FORGOTTEN;
    }

    /// Whether a connection from there is refused unheard.
    pub(super) fn bars(&self, source: &IpAddr, now: Duration) -> bool {
        let full = FORGOTTEN * (AT_ONCE as u32 - 1);
        self.sources
            .get(source)
            .is_some_and(|level| level.empty_at > now + full)
    }

    fn longest_ago(&self) -> Option<IpAddr> {
        let oldest = self.sources.iter().min_by_key(|(_, level)| level.empty_at);
        oldest.map(|(source, _)| *source)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn a_source_that_is_turned_away_again_and_again_costs_two_handshakes_a_second() {
        let mut turned_away = TurnedAway::default();
        let source = IpAddr::from([10, 0, 0, 66]);
        let mut handshakes = 0;
        for millis in 0..10_000 {
            if !turned_away.bars(&source, at(millis)) {
                handshakes += 1;
                turned_away.note(source, at(millis));
            }
        }
        assert!((23..=25).contains(&handshakes), "{handshakes}");
        assert!(!turned_away.bars(&IpAddr::from([10, 0, 0, 7]), at(10_000)));
        assert!(!turned_away.bars(&source, at(11_000)));
    }

    #[test]
    fn what_is_remembered_is_bounded_and_forgotten() {
        let mut turned_away = TurnedAway::default();
        for n in 0..10_000_u32 {
            turned_away.note(IpAddr::from(n.to_be_bytes()), at(u64::from(n) / 100));
            assert!(turned_away.sources.len() <= SOURCES);
        }
        turned_away.note(IpAddr::from([10, 0, 0, 1]), at(60_000));
        assert_eq!(turned_away.sources.len(), 1);
    }
}
