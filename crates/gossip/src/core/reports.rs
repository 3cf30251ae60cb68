//! What can be asked of the core: who is there, how each topic fares, why a peer is not written to, what all of it takes.

use libp2p_identity::PeerId;

use super::link::Status;
use super::topics::TopicState;
use super::{Core, DegradedCause, Time};
use crate::message::Topic;
use crate::seen::Seen;

/// How a topic fares.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Health {
    /// Which.
    pub topic: Topic,
    /// Whether it is read here.
    pub subscribed: bool,
    /// Whether it is carried for others.
    pub relayed: bool,
    /// Neighbours that subscribe to it, relays included.
    pub neighbours: usize,
    /// Of those: with a stream of ours.
    pub reachable: usize,
    /// Of those: in the mesh.
    pub mesh: usize,
    /// When a new message came last, time since start.
    pub last_received: Option<Time>,
    /// When a message was queued for a neighbour last.
    pub last_sent: Option<Time>,
    /// New messages that came.
    pub received: u64,
    /// Messages that were dropped because the queue for verification was full.
    pub shed: u64,
    /// Messages that were dropped because they were too old.
    pub stale: u64,
    /// How long messages were remembered at least, instead of the topic's time-to-live, within the last such time: the cache of seen
    /// messages is too small for what arrives. None if all were remembered as long as they should.
    pub seen_pressure: Option<Time>,
    /// What is wrong; none if nothing is.
    pub trouble: Option<Trouble>,
}

/// What is wrong with a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize),
    serde(rename_all = "snake_case")
)]
#[non_exhaustive]
pub enum Trouble {
    /// No neighbour subscribes.
    Isolated,
    /// It works, but not as it should.
    Degraded(DegradedCause),
}

/// A connected peer.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct PeerReport {
    /// Who.
    #[cfg_attr(feature = "serde", serde(serialize_with = "crate::display"))]
    pub peer: PeerId,
    /// Topics that it subscribes to, of those that are remembered.
    pub topics: Vec<Topic>,
    /// Of those: whose mesh it is in with us.
    pub mesh: Vec<Topic>,
    /// How our stream to it fares.
    pub stream: StreamReport,
    /// Messages that wait for it.
    pub queued_messages: usize,
    /// Bytes of those.
    pub queued_bytes: usize,
    /// Frames at its connection.
    pub in_flight: usize,
    /// When a frame to it was written completely.
    pub last_written: Option<Time>,
    /// When something of it arrived.
    pub last_received: Option<Time>,
    /// Strikes that it has now; 16 are a ban.
    pub strikes: u32,
    /// Times that its stream stalled lately; the second closes the connection.
    pub stalls: u32,
}

/// How a stream fares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize),
    serde(rename_all = "snake_case")
)]
#[non_exhaustive]
pub enum StreamReport {
    /// Asked for.
    Opening,
    /// Stands.
    Open,
    /// Was lost, will be asked for again at that time.
    Paused(Time),
    /// The peer speaks no gossipsub.
    Unsupported,
    /// Banned, or about to be closed.
    Shut,
}

/// What is held in memory, by component.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Load {
    /// Connected peers.
    pub peers: usize,
    /// Topics of interest here or at a neighbour.
    pub topics: usize,
    /// Entries of the cache of seen messages.
    pub seen_entries: usize,
    /// Its bytes.
    pub seen_bytes: usize,
    /// Messages that are verified and judged.
    pub pipeline_messages: usize,
    /// Bytes of those.
    pub pipeline_bytes: usize,
    /// Messages that wait for peers, counted once a peer.
    pub lane_messages: usize,
    /// Bytes of those; shared with the history, and between lanes.
    pub lane_bytes: usize,
    /// Words and ids that wait for peers.
    pub lane_words: usize,
    /// Messages that can be asked for.
    pub history_messages: usize,
    /// Bytes of those; shared with the lanes.
    pub history_bytes: usize,
    /// Ids that were asked for.
    pub promises: usize,
    /// Ids that peers need not be sent.
    pub unneeded: usize,
    /// Own messages on their way.
    pub own_messages: usize,
    /// Bytes of those.
    pub own_bytes: usize,
    /// Authors whose numbers are remembered.
    pub authors: usize,
    /// Bytes for those, about.
    pub authors_bytes: usize,
    /// Bans that are remembered.
    pub bans: usize,
}

impl Core {
    /// Connected peers.
    pub fn peers(&self) -> impl Iterator<Item = PeerId> {
        self.peers.values().map(|peer| peer.id)
    }

    /// Topics that are subscribed to.
    pub fn subscriptions(&self) -> impl Iterator<Item = Topic> {
        let all = self.topics.iter().filter(|(_, topic)| topic.subscribed);
        all.map(|(_, topic)| topic.name.clone())
    }

    /// Neighbours that subscribe to a topic.
    #[must_use]
    pub fn subscribers(&self, topic: &Topic) -> Vec<PeerId> {
        let Some(topic) = self.topics.named(topic.as_str()) else {
            return Vec::new();
        };
        topic
            .neighbours
            .keys()
            .filter_map(|key| Some(self.peers.get(key)?.id))
            .collect()
    }

    /// Neighbours in the mesh of a topic.
    #[must_use]
    pub fn mesh(&self, topic: &Topic) -> Vec<PeerId> {
        let Some(topic) = self.topics.named(topic.as_str()) else {
            return Vec::new();
        };
        topic
            .mesh
            .iter()
            .filter_map(|key| Some(self.peers.get(key)?.id))
            .collect()
    }

    /// How a topic fares; none for one that is of no interest here.
    #[must_use]
    pub fn health(&self, topic: &Topic) -> Option<Health> {
        let state = self
            .topics
            .named(topic.as_str())
            .filter(|t| t.is_wanted())?;
        let reachable = state
            .neighbours
            .keys()
            .filter(|key| self.peers.get(key).is_some_and(|p| p.link.is_open()))
            .count();
        Some(Health {
            topic: state.name.clone(),
            subscribed: state.subscribed,
            relayed: state.relayed,
            neighbours: state.neighbours.len(),
            reachable,
            mesh: state.mesh.len(),
            last_received: state.health.last_received,
            last_sent: state.health.last_sent,
            received: state.health.received,
            shed: state.health.shed,
            stale: state.health.stale,
            seen_pressure: self.seen_pressure(state),
            trouble: state.health.trouble,
        })
    }

    fn seen_pressure(&self, state: &TopicState) -> Option<Time> {
        let ttl = state.options.seen_ttl.unwrap_or(self.config.knobs.seen_ttl);
        let (at, effective) = self.pressed?;
        (effective < ttl && self.now.saturating_sub(at) < ttl).then_some(effective)
    }

    /// What is known of a connected peer: why it is, or is not, written to.
    #[must_use]
    pub fn why(&self, peer: &PeerId) -> Option<PeerReport> {
        let key = self.by_peer.get(peer)?;
        let state = self.peers.get(key)?;
        let topics = || state.topics.iter().filter_map(|t| self.topics.get(*t));
        Some(PeerReport {
            peer: state.id,
            topics: topics().map(|t| t.name.clone()).collect(),
            mesh: topics()
                .filter(|t| t.mesh.contains(key))
                .map(|t| t.name.clone())
                .collect(),
            stream: match state.link.status() {
                Status::Opening => StreamReport::Opening,
                Status::Open(_) => StreamReport::Open,
                Status::Paused(at) => StreamReport::Paused(at),
                Status::Unsupported => StreamReport::Unsupported,
                Status::Shut => StreamReport::Shut,
            },
            queued_messages: state.lane.messages(),
            queued_bytes: state.lane.bytes(),
            in_flight: state.link.in_flight(),
            last_written: state.link.last_written,
            last_received: state.last_received,
            strikes: state.budget.strikes(),
            stalls: state.link.stalls(),
        })
    }

    /// What is held at the moment.
    #[must_use]
    pub fn load(&self, seen: &Seen) -> Load {
        let lanes = || self.peers.values().map(|peer| &peer.lane);
        Load {
            peers: self.peers.len(),
            topics: self.topics.len(),
            seen_entries: seen.len(),
            seen_bytes: seen.memory(),
            pipeline_messages: self.pipeline.len(),
            pipeline_bytes: self.pipeline.bytes(),
            lane_messages: lanes().map(super::lanes::Lane::messages).sum(),
            lane_bytes: lanes().map(super::lanes::Lane::bytes).sum(),
            lane_words: lanes().map(super::lanes::Lane::words).sum(),
            history_messages: self.history.len(),
            history_bytes: self.history.bytes(),
            promises: self.promises.len(),
            unneeded: self.peers.values().map(|p| p.unneeded.len()).sum(),
            own_messages: self.own.len(),
            own_bytes: self.own.bytes(),
            authors: self.replay.len(),
            authors_bytes: self.replay.memory(),
            bans: self.bans.len(),
        }
    }
}
