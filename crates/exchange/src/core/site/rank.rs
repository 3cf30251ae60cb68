//! Who comes first for a block: highest random weight, so that all who know of each other agree without a word, and everybody gets his share
//! (SI-6).

use gemba_block::Cid;
use libp2p_identity::PeerId;

/// What of a peer goes into its weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seed(u64);

impl Seed {
    pub(super) fn of(peer: &PeerId) -> Self {
        Self(fnv1a(&peer.to_bytes()))
    }

    /// The weight of this peer for a block; the greatest is first.
    pub(super) fn weight(self, cid: &Cid) -> u64 {
        mix(self.0 ^ fnv1a(&cid.hash().to_bytes()))
    }
}

/// FNV-1a, 64 bits.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// The finish of SplitMix64.
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use gemba_block::Block;
    use gemba_testkit::Rng;

    /// The weights are part of the protocol: all devices must come to the same.
    #[test]
    fn si_6_weights_are_those_of_the_specification() {
        assert_eq!(fnv1a(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a(b"foobar"), 0x8594_4171_f739_67e8);
        assert_eq!(mix(0), 0);
        assert_eq!(mix(0x9e37_79b9_7f4a_7c15), 0xe220_a839_7b1d_cdaf);
    }

    #[test]
    fn si_6_everybody_gets_his_share() {
        let mut rng = Rng::new(1);
        let seeds: Vec<Seed> = (0..8).map(|_| Seed(rng.next_u64())).collect();
        let mut shares = [0; 8];
        for n in 0..8000_u32 {
            let cid = *Block::raw(n.to_be_bytes().to_vec()).unwrap().cid();
            let first = (0..8).max_by_key(|at| seeds[*at].weight(&cid)).unwrap();
            shares[first] += 1;
        }
        assert!(shares.iter().all(|n| (880..1120).contains(n)), "{shares:?}");
    }
}
