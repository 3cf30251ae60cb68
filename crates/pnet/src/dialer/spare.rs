//! Hosts that were tried a short while ago and must not be troubled again yet (threat T11). Generic on host (`H`) and address (`A`).
//!
//! Whoever says that peers live at a printer's address makes every node of the swarm knock there, at one port after the other. Back-off
//! looks at one address and is of no help. So a host is tried at addresses where no member was ever found only once a minute, whatever
//! the number of ports and peers that are said to be there. A member that is found costs nothing: the next address is free at once.

use std::{collections::HashMap, hash::Hash};

use super::backoff::Time;

/// How often, and how much is remembered.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct SpareConfig {
    /// From one try of a host to the next, while no member was found at the addresses. Longer than a dial may take.
    pub every: Time,
    /// Hosts that were tried within that time. Nobody loses its place: beyond it no further host is tried (counted). With about 100 bytes
    /// each and eight dials at once it is not reached by hosts that do not answer.
    pub hosts: usize,
    /// Addresses at which a member was found. The victim is the one not found again for longest, which is then tried once a minute. About
    /// 150 bytes each.
    pub reached: usize,
}

impl Default for SpareConfig {
    fn default() -> Self {
        Self {
            every: Time::from_secs(60),
            hosts: 1024,
            reached: 1024,
        }
    }
}

/// The two tables.
#[derive(Debug)]
pub struct Spare<H, A> {
    config: SpareConfig,
    hosts: HashMap<H, Tried<A>>,
    /// With the number of the last time it was found.
    reached: HashMap<A, u64>,
    found: u64,
    refused: u64,
}

#[derive(Debug)]
struct Tried<A> {
    at: A,
    until: Time,
}

impl<H: Eq + Hash + Clone, A: Eq + Hash + Clone> Spare<H, A> {
    /// Nobody tried.
    pub fn new(config: SpareConfig) -> Self {
        Self {
            config,
            hosts: HashMap::new(),
            reached: HashMap::new(),
            found: 0,
            refused: 0,
        }
    }

    /// Until when `host` is not to be tried at `address`; `None`: it may be tried now.
    pub fn spared(&self, host: &H, address: &A, now: Time) -> Option<Time> {
        if self.reached.contains_key(address) {
            return None;
        }
        let until = self.hosts.get(host).map(|tried| tried.until);
        until.filter(|until| *until > now)
    }

    /// `host` is about to be tried at `address`. `false`: not now.
    pub fn try_now(&mut self, host: &H, address: &A, now: Time) -> bool {
        if self.reached.contains_key(address) {
            return true;
        }
        if self.spared(host, address, now).is_some() {
            return false;
        }
        if self.hosts.len() >= self.config.hosts {
            self.hosts.retain(|_, tried| tried.until > now);
        }
        if self.hosts.len() >= self.config.hosts && !self.hosts.contains_key(host) {
            self.refused += 1;
            return false;
        }
        let tried = Tried {
            at: address.clone(),
            until: now.saturating_add(self.config.every),
        };
        self.hosts.insert(host.clone(), tried);
        true
    }

    /// A member was found at `address`: it may be tried at any time from now on, and its host was not troubled by it. `true`: so the
    /// host may be tried at once at another one.
    pub fn on_reached(&mut self, host: &H, address: &A) -> bool {
        let freed = self.on_untried(host, address);
        self.found += 1;
        self.reached.insert(address.clone(), self.found);
        if self.reached.len() > self.config.reached {
            let oldest = self.reached.iter().min_by_key(|(_, found)| **found);
            let victim = oldest.map(|(address, _)| address.clone());
            victim.and_then(|victim| self.reached.remove(&victim));
        }
        freed
    }

    /// The try came to nothing before anything was sent to the host. `true`: the host may be tried at once.
    pub fn on_untried(&mut self, host: &H, address: &A) -> bool {
        let here = self
            .hosts
            .get(host)
            .is_some_and(|tried| tried.at == *address);
        if here {
            self.hosts.remove(host);
        }
        here
    }

    /// The operator wants everything to be tried.
    pub fn forget_tries(&mut self) {
        self.hosts.clear();
    }

    /// Tries that found no place in the table.
    pub fn refused(&self) -> u64 {
        self.refused
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn at(seconds: u64) -> Time {
        Time::from_secs(seconds)
    }

    fn spare() -> Spare<u32, (u32, u32)> {
        Spare::new(SpareConfig::default())
    }

    #[test]
    fn t11_a_host_is_tried_once_a_minute_whatever_port_is_named() {
        let mut spare = spare();
        let tried: Vec<u64> = (0..600)
            .filter(|second| {
                let port = *second as u32;
                spare.try_now(&7, &(7, port), at(*second))
            })
            .collect();
        assert_eq!(tried, [0, 60, 120, 180, 240, 300, 360, 420, 480, 540]);
        assert!(spare.try_now(&8, &(8, 0), at(599)), "another host");
    }

    #[test]
    fn t11_a_member_that_is_found_costs_nothing_and_is_tried_at_any_time() {
        let mut spare = spare();
        for port in 0..5 {
            assert!(spare.try_now(&7, &(7, port), at(0)));
            assert!(!spare.try_now(&7, &(7, port + 1), at(0)), "under way");
            spare.on_reached(&7, &(7, port));
        }
        assert!(spare.try_now(&7, &(7, 666), at(1)));
        // A member that answers at another port takes nothing back from what was tried in vain.
        assert!(spare.try_now(&7, &(7, 0), at(2)));
        spare.on_reached(&7, &(7, 0));
        assert_eq!(spare.spared(&7, &(7, 667), at(2)), Some(at(61)));
        assert_eq!(spare.spared(&7, &(7, 0), at(2)), None);
    }

    #[test]
    fn what_was_never_sent_is_not_counted() {
        let mut spare = spare();
        assert!(spare.try_now(&7, &(7, 1), at(0)));
        spare.on_untried(&7, &(7, 2));
        assert!(!spare.try_now(&7, &(7, 2), at(0)));
        spare.on_untried(&7, &(7, 1));
        assert!(spare.try_now(&7, &(7, 2), at(0)));
        spare.forget_tries();
        assert!(spare.try_now(&7, &(7, 3), at(0)));
    }

    #[test]
    fn t11_both_tables_are_bounded_and_a_full_one_tries_nobody() {
        let mut config = SpareConfig::default();
        (config.hosts, config.reached) = (16, 16);
        let mut spare: Spare<u32, (u32, u32)> = Spare::new(config);
        let tried = (0..10_000).filter(|host| spare.try_now(host, &(*host, 0), at(1)));
        assert_eq!(tried.count(), 16);
        assert_eq!(spare.refused(), 10_000 - 16);
        assert!(spare.try_now(&99, &(99, 0), at(61)), "a minute later");
        for host in 0..10_000 {
            spare.on_reached(&1, &(1, 1));
            spare.on_reached(&host, &(host, 0));
        }
        assert_eq!(spare.reached.len(), 16);
        assert!(spare.reached.contains_key(&(1, 1)), "found again and again");
    }

    #[test]
    fn times_at_the_end_of_time_do_not_overflow() {
        assert!(spare().try_now(&1, &(1, 1), Time::MAX));
    }
}
