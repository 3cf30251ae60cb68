//! Who is connected, and what keeps the others away.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use gemba_pnet::DialCause;
use libp2p_identity::PeerId;
use libp2p_swarm::ConnectionId;
use multiaddr::{Multiaddr, Protocol};

use crate::api::types::{Peer, Trouble};

/// Troubles that are remembered; the oldest goes first.
const TROUBLES: usize = 64;
/// Longest agent string that is kept, in bytes (row H8: peer-supplied text is cut and stripped).
const AGENT_BYTES: usize = 128;

/// The table of connected peers and the list of what went wrong lately.
#[derive(Default)]
pub struct Peers {
    connected: BTreeMap<PeerId, Known>,
    troubles: VecDeque<Noted>,
}

#[derive(Default)]
struct Known {
    connections: BTreeMap<ConnectionId, Link>,
    rtt: Option<Duration>,
    agent: String,
}

struct Link {
    address: Multiaddr,
    dialed: bool,
    since: Duration,
}

struct Noted {
    address: String,
    peer: Option<PeerId>,
    inbound: bool,
    kind: &'static str,
    cause: String,
    last: Duration,
    count: u64,
    retry_at: Option<Duration>,
}

impl Peers {
    /// A connection is there. True if it is the first one to that peer.
    pub fn on_connected(
        &mut self,
        peer: PeerId,
        connection: ConnectionId,
        address: Multiaddr,
        dialed: bool,
        now: Duration,
    ) -> bool {
        let known = self.connected.entry(peer).or_default();
        known.connections.insert(
            connection,
            Link {
                address,
                dialed,
                since: now,
            },
        );
        self.troubles.retain(|noted| noted.peer != Some(peer));
        known.connections.len() == 1
    }

    /// A connection is gone. True if it was the last one to that peer.
    pub fn on_closed(&mut self, peer: &PeerId, connection: ConnectionId) -> bool {
        let Some(known) = self.connected.get_mut(peer) else {
            return false;
        };
        known.connections.remove(&connection);
        let last = known.connections.is_empty();
        if last {
            self.connected.remove(peer);
        }
        last
    }

    /// A ping came back.
    pub fn on_rtt(&mut self, peer: &PeerId, rtt: Duration) {
        if let Some(known) = self.connected.get_mut(peer) {
            known.rtt = Some(rtt);
        }
    }

    /// Identify told the agent string.
    pub fn on_agent(&mut self, peer: &PeerId, agent: &str) {
        if let Some(known) = self.connected.get_mut(peer) {
            let mut clean: String = agent.chars().filter(|c| !c.is_control()).collect();
            while clean.len() > AGENT_BYTES {
                clean.pop();
            }
            known.agent = clean;
        }
    }

    /// Something kept a peer away, in either direction.
    pub fn note(
        &mut self,
        address: &Multiaddr,
        peer: Option<PeerId>,
        inbound: bool,
        cause: &DialCause,
        now: Duration,
    ) {
        let retry_in = match cause {
            DialCause::BackingOff { retry_in, .. } => Some(*retry_in),
            _ => None,
        };
        // Inbound dials come from ever new ports: one entry a host.
        let address = if inbound {
            host_of(address)
        } else {
            address.to_string()
        };
        let kind = cause.code();
        let same = |n: &Noted| {
            n.address == address
                && n.inbound == inbound
                && (n.kind == kind || kind == "backing_off")
        };
        if let Some(at) = self.troubles.iter().position(same) {
            let Some(mut noted) = self.troubles.remove(at) else {
                return;
            };
            noted.last = now;
            noted.retry_at = retry_in.map(|after| now + after);
            if kind != "backing_off" {
                noted.count += 1;
                noted.cause = cause.to_string();
            }
            self.troubles.push_front(noted);
            return;
        }
        let retry_at = retry_in.map(|after| now + after);
        self.troubles.push_front(Noted {
            address,
            peer,
            inbound,
            kind,
            cause: cause.to_string(),
            last: now,
            count: 1,
            retry_at,
        });
        self.troubles.truncate(TROUBLES);
    }

    /// When an address that failed is dialed again; `None`: not by itself.
    pub fn on_next_try(&mut self, address: &Multiaddr, at: Option<Duration>) {
        let address = address.to_string();
        for noted in &mut self.troubles {
            if !noted.inbound && noted.address == address {
                noted.retry_at = at;
            }
        }
    }

    /// What went wrong lately, newest first.
    pub fn troubles(&self, now: Duration) -> Vec<Trouble> {
        let view = |noted: &Noted| Trouble {
            address: noted.address.clone(),
            peer: noted.peer.map(|peer| peer.to_string()),
            direction: if noted.inbound { "in" } else { "out" }.to_owned(),
            kind: noted.kind.to_owned(),
            cause: noted.cause.clone(),
            age_s: now.saturating_sub(noted.last).as_secs(),
            count: noted.count,
            retry_in_s: noted
                .retry_at
                .and_then(|at| at.checked_sub(now))
                .map(|left| left.as_secs()),
        };
        self.troubles.iter().map(view).collect()
    }

    /// Connected peers.
    pub fn connected(&self) -> usize {
        self.connected.len()
    }

    /// Whether a peer is connected.
    pub fn contains(&self, peer: &PeerId) -> bool {
        self.connected.contains_key(peer)
    }

    /// The peer that was dialed at this very address and is connected there.
    pub fn at(&self, address: &Multiaddr) -> Option<&PeerId> {
        let same = |known: &Known| {
            known
                .connections
                .values()
                .any(|link| link.dialed && bare(&link.address) == bare(address))
        };
        self.connected
            .iter()
            .find(|(_, known)| same(known))
            .map(|(peer, _)| peer)
    }

    /// The address at which a peer is connected: the wished one if it is among them, else that of its oldest connection.
    pub fn address_of(&self, peer: &PeerId, wished: &Multiaddr) -> Option<&Multiaddr> {
        let known = self.connected.get(peer)?;
        let wished = bare(wished);
        known
            .connections
            .values()
            .min_by_key(|link| (bare(&link.address) != wished, link.since))
            .map(|link| &link.address)
    }

    /// How a peer is connected, in words.
    pub fn described(&self, peer: &PeerId) -> Option<String> {
        let known = self.connected.get(peer)?;
        let link = known.connections.values().min_by_key(|link| link.since)?;
        let last = known.rtt.map_or(String::new(), |rtt| {
            format!(
                ", its last round trip took {:.1} ms",
                rtt.as_secs_f64() * 1e3
            )
        });
        Some(format!("is connected at {}{last}", link.address))
    }

    /// One line a peer; `bytes` gives what the exchange moved: (in, out); `is_mate` who belongs to the same site.
    pub fn list(
        &self,
        now: Duration,
        bytes: impl Fn(&PeerId) -> (u64, u64),
        is_mate: impl Fn(&PeerId) -> bool,
    ) -> Vec<Peer> {
        let view = |(peer, known): (&PeerId, &Known)| {
            let link = known.connections.values().min_by_key(|link| link.since)?;
            let (bytes_in, bytes_out) = bytes(peer);
            Some(Peer {
                id: peer.to_string(),
                address: link.address.to_string(),
                transport: transport_of(&link.address).to_owned(),
                rtt_ms: known.rtt.map(|rtt| (rtt.as_secs_f64() * 1e6).round() / 1e3),
                agent: known.agent.clone(),
                bytes_in,
                bytes_out,
                direction: if link.dialed { "out" } else { "in" }.to_owned(),
                same_site: is_mate(peer),
                connected_s: now.saturating_sub(link.since).as_secs(),
            })
        };
        self.connected.iter().filter_map(view).collect()
    }
}

fn transport_of(address: &Multiaddr) -> &'static str {
    let mut name = "unknown";
    for part in address {
        name = match part {
            Protocol::Tcp(_) => "tcp",
            Protocol::QuicV1 | Protocol::Quic => "quic",
            Protocol::Ws(_) | Protocol::Wss(_) => "ws",
            Protocol::P2pCircuit => return "relay",
            _ => name,
        };
    }
    name
}

/// Without the peer id at its end.
pub fn bare(address: &Multiaddr) -> Multiaddr {
    address
        .iter()
        .filter(|part| !matches!(part, Protocol::P2p(_)))
        .collect()
}

fn host_of(address: &Multiaddr) -> String {
    address.iter().take(1).collect::<Multiaddr>().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Multiaddr {
        text.parse().unwrap()
    }

    #[test]
    fn troubles_are_counted_a_host_and_bounded() {
        let mut peers = Peers::default();
        for port in 1000..1100 {
            peers.note(
                &address(&format!("/ip4/10.0.0.9/tcp/{port}")),
                None,
                true,
                &DialCause::Refused,
                Duration::from_secs(1),
            );
        }
        let seen = peers.troubles(Duration::from_secs(3));
        assert_eq!((seen.len(), seen[0].count, seen[0].age_s), (1, 100, 2));
        for port in 1000..1200 {
            peers.note(
                &address(&format!("/ip4/10.0.0.9/tcp/{port}")),
                None,
                false,
                &DialCause::Refused,
                Duration::from_secs(1),
            );
        }
        assert_eq!(peers.troubles(Duration::ZERO).len(), TROUBLES);
    }

    #[test]
    fn a_back_off_keeps_the_cause_it_stands_for() {
        let mut peers = Peers::default();
        let at = address("/ip4/10.0.0.9/tcp/4001");
        peers.note(&at, None, false, &DialCause::Unreachable, Duration::ZERO);
        let waiting = DialCause::BackingOff {
            retry_in: Duration::from_secs(9),
            because: Box::new(DialCause::Unreachable),
        };
        peers.note(&at, None, false, &waiting, Duration::from_secs(1));
        let seen = peers.troubles(Duration::from_secs(2));
        assert_eq!(
            (seen.len(), seen[0].kind.as_str(), seen[0].retry_in_s),
            (1, "unreachable", Some(8))
        );
    }

    /// Row H8: what a peer calls itself neither breaks lines nor fills memory.
    #[test]
    fn h8_agent_strings_are_cut_and_stripped() {
        let (mut peers, peer) = (Peers::default(), PeerId::random());
        peers.on_connected(
            peer,
            ConnectionId::new_unchecked(1),
            address("/ip4/10.0.0.1/tcp/1"),
            true,
            Duration::ZERO,
        );
        peers.on_agent(&peer, &format!("evil\r\n\u{1b}[31m{}", "ü".repeat(4000)));
        let agent = &peers.list(Duration::ZERO, |_| (0, 0), |_| false)[0].agent;
        assert!(agent.starts_with("evil[31m") && agent.len() <= AGENT_BYTES);
    }
}
