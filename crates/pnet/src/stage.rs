//! Where each dial that is under way stands, so that somebody who does not want to wait for its end is told what it waits for.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use multiaddr::Multiaddr;

/// What a dial waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// The name's addresses, or TCP's connect.
    Connect,
    /// The remote's nonce.
    Nonce,
    /// The key check, Noise and yamux.
    Secure,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connect => "no answer so far: check address, firewall, cable and Wi-Fi client isolation",
            Self::Nonce => {
                "connected, but nothing was said so far: something else may listen there, a node without swarm key, or an overloaded one"
            }
            Self::Secure => {
                "reachable, but not secured so far: it may have another swarm key, or be overloaded"
            }
        })
    }
}

/// The dials under way by address, shared between a transport and whoever wants to know. As many entries as there are dials, which
/// the swarm's limits bound; an entry goes with its dial.
#[derive(Clone, Debug, Default)]
pub struct Stages(Arc<Mutex<BTreeMap<Multiaddr, Vec<Stage>>>>);

impl Stages {
    /// Where the dial of `address` stands, with or without `/p2p/…` as it was dialed; of several the one that is furthest.
    pub fn of(&self, address: &Multiaddr) -> Option<Stage> {
        self.lock().get(&bare(address))?.iter().max().copied()
    }

    /// A dial has come to `stage`; it leaves it when the result is dropped.
    pub(crate) fn enter(&self, address: &Multiaddr, stage: Stage) -> Entered {
        let address = bare(address);
        self.lock().entry(address.clone()).or_default().push(stage);
        Entered {
            stages: self.clone(),
            address,
            stage,
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Multiaddr, Vec<Stage>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Holds a place in [`Stages`].
#[derive(Debug)]
pub(crate) struct Entered {
    stages: Stages,
    address: Multiaddr,
    stage: Stage,
}

impl Drop for Entered {
    fn drop(&mut self) {
        let mut stages = self.stages.lock();
        let Some(of_address) = stages.get_mut(&self.address) else {
            return;
        };
        if let Some(at) = of_address.iter().position(|stage| *stage == self.stage) {
            of_address.swap_remove(at);
        }
        if of_address.is_empty() {
            stages.remove(&self.address);
        }
    }
}

fn bare(address: &Multiaddr) -> Multiaddr {
    let is_peer = |part: &multiaddr::Protocol<'_>| matches!(part, multiaddr::Protocol::P2p(_));
    address.iter().filter(|part| !is_peer(part)).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn the_furthest_dial_counts_and_nothing_is_left_behind() {
        let stages = Stages::default();
        let address: Multiaddr = "/ip4/10.0.0.1/tcp/4001".parse().unwrap();
        let first = stages.enter(&address, Stage::Connect);
        let second = stages.enter(&address, Stage::Nonce);
        assert_eq!(stages.of(&address), Some(Stage::Nonce));
        drop(second);
        assert_eq!(stages.of(&address), Some(Stage::Connect));
        drop(first);
        assert_eq!(stages.of(&address), None);
        assert!(stages.lock().is_empty());
    }
}
