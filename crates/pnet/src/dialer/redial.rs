//! Whom to dial next: targets that are to be connected, a few at a time, each again when its wait is over. Generic on the target.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::backoff::Time;

/// Targets and when they are due.
#[derive(Debug)]
pub struct Redial<T> {
    parallel: usize,
    capacity: usize,
    targets: BTreeMap<T, Target>,
    /// Those in state `Due`, by time. Mirrors `targets`.
    schedule: BTreeSet<(Time, T)>,
    dialing: usize,
    refused: u64,
}

#[derive(Clone, Copy, Debug)]
struct Target {
    state: TargetState,
    /// `None`: for ever.
    lifetime: Option<Duration>,
    expires: Option<Time>,
}

/// What is being done about a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetState {
    /// To be dialed at this time, or as soon as there is room.
    Due(Time),
    /// A dial is under way.
    Dialing,
    /// Connected: nothing to do.
    Connected,
}

impl<T: Ord + Clone> Redial<T> {
    /// No targets; at most `parallel` dials at once and `capacity` targets.
    pub fn new(parallel: usize, capacity: usize) -> Self {
        Self {
            parallel,
            capacity,
            targets: BTreeMap::new(),
            schedule: BTreeSet::new(),
            dialing: 0,
            refused: 0,
        }
    }

    /// Wants `target` to be connected, for ever or until `lifetime` has passed without another word of it. A known target that is
    /// due gets `due` if that is sooner. `false`: no room (counted).
    pub fn add(&mut self, target: T, lifetime: Option<Duration>, due: Time, now: Time) -> bool {
        let expires = lifetime.map(|lifetime| now.saturating_add(lifetime));
        if let Some(known) = self.targets.get_mut(&target) {
            // Once configured, always wanted.
            if known.lifetime.is_some() {
                known.lifetime = lifetime;
                known.expires = expires;
            }
            if let TargetState::Due(at) = known.state
                && due < at
            {
                self.set(&target, TargetState::Due(due));
            }
            return true;
        }
        if self.targets.len() >= self.capacity {
            self.refused += 1;
            return false;
        }
        let state = TargetState::Due(due);
        self.targets.insert(
            target.clone(),
            Target {
                state,
                lifetime,
                expires,
            },
        );
        self.schedule.insert((due, target));
        true
    }

    /// No longer wanted.
    pub fn remove(&mut self, target: &T) {
        if let Some(Target { state, .. }) = self.targets.remove(target) {
            match state {
                TargetState::Due(at) => {
                    self.schedule.remove(&(at, target.clone()));
                }
                TargetState::Dialing => self.dialing -= 1,
                TargetState::Connected => {}
            }
        }
    }

    /// It is connected, whoever dialed.
    pub fn on_connected(&mut self, target: &T) {
        self.set(target, TargetState::Connected);
    }

    /// The dial failed, or the connection is gone: again at `retry_at`. Losing a connection renews the lifetime.
    pub fn on_down(&mut self, target: &T, retry_at: Time, now: Time) {
        if let Some(known) = self.targets.get_mut(target)
            && known.state == TargetState::Connected
        {
            known.expires = known.lifetime.map(|lifetime| now.saturating_add(lifetime));
        }
        self.set(target, TargetState::Due(retry_at));
    }

    /// The next target to dial now, if any is due and a dial is free. Drain after every call of the other methods.
    pub fn poll(&mut self, now: Time) -> Option<T> {
        while self.dialing < self.parallel {
            let (at, target) = self.schedule.first()?.clone();
            if at > now {
                return None;
            }
            let expired = self
                .targets
                .get(&target)
                .is_some_and(|known| known.expires.is_some_and(|at| at <= now));
            if expired {
                self.remove(&target);
                continue;
            }
            self.set(&target, TargetState::Dialing);
            return Some(target);
        }
        None
    }

    /// When to poll again.
    pub fn deadline(&self) -> Option<Time> {
        (self.dialing < self.parallel).then(|| self.schedule.first().map(|(at, _)| *at))?
    }

    /// What is being done about a target, if it is one.
    pub fn state(&self, target: &T) -> Option<TargetState> {
        self.targets.get(target).map(|known| known.state)
    }

    /// All targets, for `status`.
    pub fn iter(&self) -> impl Iterator<Item = (&T, TargetState)> {
        self.targets
            .iter()
            .map(|(target, known)| (target, known.state))
    }

    /// Targets that found no room.
    pub fn refused(&self) -> u64 {
        self.refused
    }

    fn set(&mut self, target: &T, state: TargetState) {
        let Some(known) = self.targets.get_mut(target) else {
            return;
        };
        match std::mem::replace(&mut known.state, state) {
            TargetState::Due(at) => {
                self.schedule.remove(&(at, target.clone()));
            }
            TargetState::Dialing => self.dialing -= 1,
            TargetState::Connected => {}
        }
        match state {
            TargetState::Due(at) => {
                self.schedule.insert((at, target.clone()));
            }
            TargetState::Dialing => self.dialing += 1,
            TargetState::Connected => {}
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn at(seconds: u64) -> Time {
        Duration::from_secs(seconds)
    }

    fn drain(redial: &mut Redial<u32>, now: Time) -> Vec<u32> {
        std::iter::from_fn(|| redial.poll(now)).collect()
    }

    #[test]
    fn never_more_than_the_given_number_of_dials() {
        let mut redial = Redial::new(3, 100);
        for target in 0..10 {
            redial.add(target, None, at(0), at(0));
        }
        assert_eq!(drain(&mut redial, at(0)), [0, 1, 2]);
        assert_eq!(redial.deadline(), None);
        redial.on_down(&1, at(5), at(0));
        redial.on_connected(&2);
        assert_eq!(drain(&mut redial, at(1)), [3, 4]);
    }

    #[test]
    fn a_failed_target_comes_back_when_due_and_a_lost_one_too() {
        let mut redial = Redial::new(8, 100);
        redial.add(1, None, at(0), at(0));
        assert_eq!(drain(&mut redial, at(0)), [1]);
        redial.on_down(&1, at(7), at(0));
        assert_eq!(redial.deadline(), Some(at(7)));
        assert_eq!(drain(&mut redial, at(6)), []);
        assert_eq!(drain(&mut redial, at(7)), [1]);
        redial.on_connected(&1);
        assert_eq!(drain(&mut redial, at(100)), []);
        redial.on_down(&1, at(101), at(100));
        assert_eq!(drain(&mut redial, at(101)), [1]);
    }

    #[test]
    fn a_discovered_target_ends_with_its_lifetime_unless_seen_again_and_a_configured_one_never() {
        let mut redial = Redial::new(8, 100);
        redial.add(1, Some(at(10)), at(0), at(0));
        redial.add(2, Some(at(10)), at(0), at(0));
        redial.add(3, Some(at(10)), at(0), at(0));
        assert_eq!(drain(&mut redial, at(0)), [1, 2, 3]);
        for target in 1..=3 {
            redial.on_down(&target, at(20), at(1));
        }
        redial.add(2, Some(at(15)), at(20), at(9));
        redial.add(3, None, at(20), at(9));
        assert_eq!(drain(&mut redial, at(20)), [2, 3]);
        redial.on_down(&2, at(1000), at(21));
        redial.on_down(&3, at(1000), at(21));
        assert_eq!(drain(&mut redial, at(1000)), [3]);
        assert_eq!(redial.iter().count(), 1);
    }

    #[test]
    fn a_full_table_refuses_and_counts() {
        let mut redial = Redial::new(1, 2);
        assert!(redial.add(1, None, at(0), at(0)));
        assert!(redial.add(2, None, at(0), at(0)));
        assert!(!redial.add(3, None, at(0), at(0)));
        assert!(redial.add(2, None, at(0), at(0)));
        assert_eq!(redial.refused(), 1);
    }

    #[test]
    fn removing_a_dialing_target_frees_its_place() {
        let mut redial = Redial::new(1, 10);
        redial.add(1, None, at(0), at(0));
        redial.add(2, None, at(0), at(0));
        assert_eq!(drain(&mut redial, at(0)), [1]);
        redial.remove(&1);
        redial.on_down(&1, at(0), at(0));
        assert_eq!(drain(&mut redial, at(0)), [2]);
    }
}
