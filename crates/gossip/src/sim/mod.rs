//! A simulator: hundreds to thousands of peers in virtual time, which run the core that the real nodes run.
//!
//! Connections have latency, loss as TCP makes it (bytes come late, never not at all), windows that fill, and half-open ends; nodes are
//! slow, leave, come back, lose power, or are hostile. Frames are encoded and decoded as on the wire. Signatures are the one thing that
//! is pretended: a keyed hash that only the author can make, which takes the time that a check takes.
//!
//! A [`Plan`] says what is simulated and [`Plan::run`] gives a [`Report`]; the [`SCENARIOS`] are plans with names. One seed is one run.
//! While it runs, [`Rule`]s are checked at every delivery, every frame, and once a second in every node: a report lists their
//! [`Breach`]es.
//!
//! ```
//! let mut plan = gemba_gossip::sim::Plan::new("a small one", 8);
//! plan.publish.messages = 10;
//! let report = plan.run();
//! assert_eq!(report.in_time, 10 * 7);
//! assert!(report.breaches.is_empty());
//! ```
//!
//! It does not simulate the libp2p handler and its threads, TCP's congestion, nor application time.

mod hostile;
mod link;
mod node;
mod plan;
mod planted;
mod report;
mod run;
mod scenarios;
mod watch;
mod world;

pub use plan::{
    Break, Breaks, Churn, Leave, Links, Manner, Pace, Partition, Plan, Publish, Readers, Topology,
};
pub use planted::Planted;
pub use report::{BreakFigures, Bytes, Latency, Report};
pub use scenarios::{SCENARIOS, Scenario, scenario};
pub use watch::{Breach, Rule};

use libp2p_identity::PeerId;
use siphasher::sip128::SipHasher13;

/// In front of payloads that no honest node published.
const INVENTED: u64 = u64::MAX;

/// A node's id: as long as that of an Ed25519 key, which it holds; here it holds the number.
fn peer_id(number: u32) -> PeerId {
    let mut bytes = [0x67; 38];
    bytes[..6].copy_from_slice(&[0x00, 0x24, 0x08, 0x01, 0x12, 0x20]);
    bytes[34..].copy_from_slice(&number.to_be_bytes());
    match PeerId::from_bytes(&bytes) {
        Ok(id) => id,
        Err(_) => unreachable!("an identity multihash of 36 bytes is a peer id"),
    }
}

fn number_of(peer: &PeerId) -> Option<u32> {
    let digest = peer.as_ref().digest();
    let last: [u8; 4] = digest.get(32..36)?.try_into().ok()?;
    Some(u32::from_be_bytes(last))
}

/// The signature of a message whose signed bytes these are; they name the author. Only honest code calls it for honest authors.
fn sign(signed: &[u8]) -> [u8; 64] {
    let hash = SipHasher13::new_with_keys(0x6765_6d62, 0x615f_7369_6d00).hash(signed);
    let mut signature = [0; 64];
    for (i, chunk) in signature.chunks_mut(16).enumerate() {
        chunk[..8].copy_from_slice(&hash.h1.wrapping_add(i as u64).to_be_bytes());
        chunk[8..].copy_from_slice(&hash.h2.to_be_bytes());
    }
    signature
}
