//! Messages by topic: how much of a device gossip may take, what is asked of it, and what is told of it.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use gemba_gossip::{
    Behaviour as Gossip, BehaviourEvent, Buffer, Config, Event, FileReplay, FileSequence, Full,
    Mode, PublishError, Publishing, StreamReport, SubscribeError, Subscription, Topic,
    TopicOptions, Trouble as Cause, WaitCause,
};
use libp2p_identity::{Keypair, PeerId};
use multiaddr::{Multiaddr, Protocol};
use prometheus_client::registry::Unit;

use crate::api::types::{PubsubCounts, PubsubHealth, PubsubPeer, PubsubTopic, PubsubWhy, Trouble};
use crate::config::Pubsub as Settings;
use crate::error::{Code, Fail};
use crate::metrics::Figures;
use crate::repo::Layout;
use crate::text;

/// Messages that wait for a reader who is slow; then the oldest go, and he is told how many.
const WAITING: usize = 1024;
/// Bytes of those.
const WAITING_BYTES: usize = 1 << 20;
/// Threads that verify: two processors keep up with what the line of a device brings.
const VERIFIERS: usize = 2;
/// Topics of which it is remembered since when they are not well; the one known longest goes.
const UNWELL: usize = 256;
/// Authors whose numbers are remembered, over a restart too: 50 KiB on the disk.
const AUTHORS: usize = 1024;
const MIB: usize = 1 << 20;

/// What the loop remembers of pubsub.
#[derive(Default)]
pub struct Pubsub {
    /// Why nothing signed can be sent: the file of sequence numbers cannot be read.
    lost: Option<String>,
    /// When somebody else was heard to publish as this node, and how often.
    clones: Option<(Duration, u64)>,
    /// Since when a topic is not well. At most [`UNWELL`].
    unwell: BTreeMap<Topic, Duration>,
}

/// Gossip with the node's identity, within what a device has to spare. Numbers are reserved in the repository.
///
/// # Errors
/// The operating system has no randomness, or the settings contradict each other.
pub fn start(keypair: &Keypair, layout: &Layout, settings: &Settings) -> Result<Gossip, Fail> {
    let config = config(settings)?;
    let new = || {
        Gossip::new(keypair.clone(), config.clone())
            .map_err(|e| Fail::new(Code::Failure, format!("no randomness: {e}")))
    };
    let authors = FileReplay::new(layout.pubsub_authors(), AUTHORS);
    let mut gossip = match new()?.with_replay(authors) {
        Ok(gossip) => gossip,
        Err(error) => {
            tracing::warn!(%error, "what neighbours still echo may be delivered once more");
            new()?
        }
    };
    for (peer, address) in direct(&settings.direct) {
        gossip.add_direct_address(peer, address);
    }
    Ok(gossip
        .with_sequence(FileSequence::new(layout.pubsub_sequence()))
        .with_threads(VERIFIERS))
}

/// Peers and where they are; what names no peer is none.
fn direct(addresses: &[Multiaddr]) -> impl Iterator<Item = (PeerId, Multiaddr)> {
    addresses
        .iter()
        .filter_map(|address| match address.iter().last() {
            Some(Protocol::P2p(peer)) => Some((peer, address.clone())),
            _ => None,
        })
}

/// A quarter of what gossip takes by itself: with it the daemon stays below 25 MiB at rest, and no flood takes more than 16 MiB.
fn config(settings: &Settings) -> Result<Config, Fail> {
    // A quarter of the time-to-live together; see [`Config::lane_age`].
    let most = settings.seen_ttl / 8;
    let mut config = Config::builder()
        .seen_ttl(settings.seen_ttl)
        .seen_entries(settings.seen_messages)
        .validation_deadline(most.min(Duration::from_secs(1)))
        .lane_age(most.min(Duration::from_secs(2)))
        .lane_bytes(2 * MIB)
        .lane_messages(2048)
        .verify_messages(2048)
        .verify_bytes(4 * MIB)
        .own_messages(256)
        .own_bytes(2 * MIB)
        .history_bytes(2 * MIB)
        .topics(256)
        .authors(AUTHORS)
        .direct(direct(&settings.direct).map(|(peer, _)| peer))
        .receive_bytes(4 * MIB)
        .relay(settings.relay.clone());
    for pattern in &settings.unsigned {
        config = config.topic(pattern, TopicOptions::unsigned().with_echo(true));
    }
    config
        // Two programs on one device hear each other, as with Kubo.
        .topic("*", TopicOptions::default().with_echo(true))
        .build()
        .map_err(|e| {
            Fail::new(
                Code::Usage,
                format!("the settings of pubsub do not fit together: {e}"),
            )
            .hint("`gemba config show --origin` tells where each comes from")
        })
}

/// A topic by its name.
///
/// # Errors
/// [`Code::Usage`]: the name is empty or too long.
pub fn topic(name: &str) -> Result<Topic, Fail> {
    Topic::new(name).map_err(|e| {
        Fail::new(Code::Usage, e)
            .hint("any text of 1 to 1024 bytes is a topic, such as line-1/alarms")
    })
}

fn on(gossip: Option<&mut Gossip>) -> Result<&mut Gossip, Fail> {
    gossip.ok_or_else(off)
}

fn off() -> Fail {
    Fail::new(
        Code::Conflict,
        "pubsub is switched off on this node (pubsub.enabled = false)",
    )
    .hint("`gemba config set pubsub.enabled true`, then start the daemon again")
}

/// Reads a topic until the result is dropped.
///
/// # Errors
/// Pubsub is off, or as many topics are read as can be.
pub fn subscribe(gossip: Option<&mut Gossip>, topic: &Topic) -> Result<Subscription, Fail> {
    let buffer = Buffer {
        messages: WAITING,
        bytes: WAITING_BYTES,
        full: Full::DropOldest,
    };
    on(gossip)?.subscribe(topic, buffer).map_err(|e| match e {
        SubscribeError::TooManyTopics(_) => Fail::new(
            Code::Conflict,
            format!("{topic} is not subscribed to: this node reads as many topics as it may"),
        )
        .hint("`gemba pubsub ls` lists them: end a subscription"),
        other => Fail::new(
            Code::Usage,
            format!("{topic} is not subscribed to: {other}"),
        )
        .hint("see `gemba config show`, section pubsub"),
    })
}

impl Pubsub {
    /// Sends a message. It waits no longer than `patience` for somebody who takes it; not at all if that is zero.
    ///
    /// # Errors
    /// What is known at once.
    pub fn publish(
        &self,
        gossip: Option<&mut Gossip>,
        topic: &Topic,
        data: Bytes,
        patience: Duration,
    ) -> Result<Publishing, Fail> {
        let gossip = on(gossip)?;
        if let Some(cause) = &self.lost {
            return Err(Fail::new(
                Code::Integrity,
                format!("nothing is published, for the numbers of messages are lost: {cause}"),
            )
            .hint("restore or delete the file as the text says, then start the daemon again"));
        }
        // Who has no patience sends it now or never; the time to sign it is not counted.
        let mode = match patience.is_zero() {
            true => Mode::Try,
            false => Mode::Wait(patience),
        };
        gossip
            .publish(topic, data, mode)
            .map_err(|e| publish_fail(topic, patience, &e))
    }

    /// What gossip says.
    pub fn on_event(&mut self, event: BehaviourEvent, now: Duration) {
        match event {
            BehaviourEvent::Report(event) => self.on_report(&event, now),
            BehaviourEvent::SequenceFailed {
                error,
                again: false,
            } => self.lost = Some(error.to_string()),
            _ => {}
        }
    }

    fn on_report(&mut self, event: &Event, now: Duration) {
        match event {
            Event::Isolated { topic } => {
                tracing::info!(%topic, "nobody who is connected subscribes to a topic that is read here");
                self.note_unwell(topic, now);
            }
            Event::Degraded { topic, cause } => {
                tracing::warn!(%topic, %cause, "a topic does not fare well");
                self.note_unwell(topic, now);
            }
            Event::Recovered { topic } => {
                tracing::info!(%topic, "a topic fares well again");
                self.unwell.remove(topic);
            }
            Event::Alarm { topic } => {
                tracing::warn!(%topic, "a topic has not fared well for long, whatever was tried");
            }
            Event::CloneDetected { seqno } => {
                tracing::error!(seqno, "another node publishes with this node's identity");
                let (_, count) = self.clones.unwrap_or_default();
                self.clones = Some((now, count + 1));
            }
            Event::Banned { peer, .. } => {
                tracing::warn!(%peer, "a peer sent forged messages and is shut out for a while");
            }
            Event::SeenPressure(pressure) => {
                tracing::warn!(
                    effective_ttl = ?pressure.effective_ttl,
                    "messages are forgotten early: raise pubsub.seen_messages"
                );
            }
            Event::PeerStalled { peer } => {
                tracing::info!(%peer, "a peer takes no messages; its stream is opened anew");
            }
            other => tracing::debug!(event = ?other, "pubsub"),
        }
    }

    fn note_unwell(&mut self, topic: &Topic, now: Duration) {
        if self.unwell.len() >= UNWELL && !self.unwell.contains_key(topic) {
            let oldest = self.unwell.iter().min_by_key(|(_, since)| **since);
            if let Some(oldest) = oldest.map(|(topic, _)| topic.clone()) {
                self.unwell.remove(&oldest);
            }
        }
        self.unwell.entry(topic.clone()).or_insert(now);
    }

    /// What an operator should look at.
    pub fn troubles(&self, gossip: Option<&Gossip>, now: Duration) -> Vec<Trouble> {
        let Some(gossip) = gossip else {
            return Vec::new();
        };
        let trouble = |what: String, kind: &str, cause: String, since: Duration, count| Trouble {
            address: what,
            peer: None,
            direction: "local".to_owned(),
            kind: kind.to_owned(),
            cause,
            age_s: now.saturating_sub(since).as_secs(),
            count,
            retry_in_s: None,
        };
        let mut troubles = Vec::new();
        if let Some(cause) = &self.lost {
            let cause = format!("nothing can be published: {cause}");
            troubles.push(trouble(
                "pubsub".to_owned(),
                "pubsub_sequence",
                cause,
                Duration::ZERO,
                1,
            ));
        }
        if let Some((last, count)) = self.clones {
            let cause = "another node publishes with this node's identity: was the repository copied, or restored from a backup? Give one of \
                         the two a new identity (`gemba init` in another folder)";
            troubles.push(trouble(
                "pubsub".to_owned(),
                "pubsub_clone",
                cause.to_owned(),
                last,
                count,
            ));
        }
        for topic in gossip.topics().into_iter().filter(is_users) {
            let Some(health) = gossip.health(&topic) else {
                continue;
            };
            // Nobody else reads a topic: that is how a node begins, and `pubsub health` tells it.
            if let Some(cause @ Cause::Degraded(_)) = health.trouble {
                let since = self.unwell.get(&topic).copied().unwrap_or(now);
                let cause = format!("{} (see `gemba pubsub health`)", words(cause));
                troubles.push(trouble(format!("topic {topic}"), "pubsub", cause, since, 1));
            }
        }
        troubles
    }
}

fn words(trouble: Cause) -> String {
    match trouble {
        Cause::Isolated => "no connected peer subscribes".to_owned(),
        Cause::Degraded(cause) => cause.to_string(),
        _ => "it does not fare well".to_owned(),
    }
}

/// The failure for a message that was not sent.
pub fn publish_fail(topic: &Topic, patience: Duration, error: &PublishError) -> Fail {
    let waited = patience.as_secs_f64();
    let late = |cause: &dyn std::fmt::Display| {
        Fail::new(
            Code::Timeout,
            format!("nobody took the message for {topic} within {waited} s: {cause}"),
        )
    };
    match error {
        PublishError::NoPeers
        | PublishError::Expired {
            cause: WaitCause::Peers,
        } => late(&WaitCause::Peers).hint(format!(
            "`gemba pubsub peers` lists who subscribes to what: start a reader (`gemba pubsub sub {topic}`) on a connected node; a longer --timeout waits for one"
        )),
        PublishError::Expired {
            cause: WaitCause::Sequence,
        } => late(&"no sequence number could be reserved on the disk")
            .hint("look at the daemon's log for what the disk said"),
        PublishError::Expired { cause } => {
            late(cause).hint("publish slower, or wait longer with --timeout")
        }
        PublishError::Backpressure { queued_bytes } => Fail::new(
            Code::Conflict,
            format!("too many messages wait to be sent ({queued_bytes} bytes)"),
        )
        .hint("publish slower: the neighbours do not take more"),
        PublishError::TooLarge { len, max } => too_large(&len.to_string(), *max),
        PublishError::Duplicate => Fail::new(
            Code::Conflict,
            format!("the same content was published on {topic} a moment ago, and messages there are not signed: it would be dropped as a copy"),
        )
        .hint("add a counter to the content"),
        PublishError::Closed => crate::daemon::ending(),
        other => Fail::new(Code::Failure, format!("the message for {topic} was not sent: {other}"))
            .hint("see the daemon's log"),
    }
}

/// The failure for a message that does not fit.
pub fn too_large(bytes: &str, max: usize) -> Fail {
    Fail::new(
        Code::Usage,
        format!("{bytes} bytes are too much for one message: at most {max} are taken"),
    )
    .hint("`gemba add` it and publish its CID")
}

/// The peers that subscribe to a topic; without one, all that speak pubsub.
///
/// # Errors
/// Pubsub is off.
pub fn peers(gossip: Option<&Gossip>, topic: Option<&Topic>) -> Result<Vec<PubsubPeer>, Fail> {
    let gossip = gossip.ok_or_else(off)?;
    let mut peers = match topic {
        Some(topic) => gossip.subscribers(topic),
        None => gossip.peers(),
    };
    peers.sort_unstable();
    Ok(peers
        .iter()
        .filter_map(|peer| known(gossip, peer))
        .collect())
}

fn known(gossip: &Gossip, peer: &PeerId) -> Option<PubsubPeer> {
    let report = gossip.why(peer)?;
    let stream = match report.stream {
        StreamReport::Opening => "opening",
        StreamReport::Open => "open",
        StreamReport::Paused(_) => "paused",
        StreamReport::Unsupported => "unsupported",
        _ => "shut",
    };
    let mut names = [report.topics, report.mesh].map(|topics| {
        let users = topics.iter().filter(|topic| is_users(topic));
        let mut names: Vec<String> = users.map(Topic::to_string).collect();
        names.sort_unstable();
        names
    });
    Some(PubsubPeer {
        id: report.peer.to_string(),
        stream: stream.to_owned(),
        topics: std::mem::take(&mut names[0]),
        mesh: std::mem::take(&mut names[1]),
        queued_messages: report.queued_messages as u64,
        queued_bytes: report.queued_bytes as u64,
        strikes: report.strikes.into(),
        stalls: report.stalls.into(),
        last_received_s: ago(gossip, report.last_received),
        last_written_s: ago(gossip, report.last_written),
    })
}

/// Seconds since a time on gossip's clock.
fn ago(gossip: &Gossip, at: Option<Duration>) -> Option<u64> {
    at.map(|at| gossip.now().saturating_sub(at).as_secs())
}

/// What the node reads for itself is none of its users' topics.
fn is_users(topic: &Topic) -> bool {
    topic.as_str() != crate::daemon::replicate::TOPIC
}

fn topics(gossip: &Gossip) -> Vec<PubsubTopic> {
    let mut topics = gossip.topics();
    topics.retain(is_users);
    topics.sort_unstable();
    let told = topics.iter().filter_map(|topic| told(gossip, topic));
    told.collect()
}

/// How a topic fares; none for one that is neither read nor carried.
fn told(gossip: &Gossip, topic: &Topic) -> Option<PubsubTopic> {
    let health = gossip.health(topic)?;
    // A trouble is told after a while of grace; that nobody is there is plain at once.
    let trouble = health
        .trouble
        .or((health.neighbours == 0).then_some(Cause::Isolated));
    let state = match trouble {
        None => "ok",
        Some(Cause::Isolated) => "isolated",
        Some(_) => "degraded",
    };
    Some(PubsubTopic {
        topic: topic.to_string(),
        state: state.to_owned(),
        cause: trouble.map(words),
        peers: health.neighbours as u64,
        reachable: health.reachable as u64,
        mesh: health.mesh as u64,
        received: health.received,
        last_received_s: ago(gossip, health.last_received),
        last_sent_s: ago(gossip, health.last_sent),
        shed: health.shed,
        stale: health.stale,
        seen_pressure_s: health.seen_pressure.map(|ttl| ttl.as_secs()),
    })
}

impl Pubsub {
    /// What becomes of a topic here, and through whom.
    ///
    /// # Errors
    /// Pubsub is off.
    pub fn why(
        &self,
        gossip: Option<&Gossip>,
        topic: &Topic,
        troubles: Vec<Trouble>,
        now: Duration,
    ) -> Result<PubsubWhy, Fail> {
        let gossip = gossip.ok_or_else(off)?;
        let health = told(gossip, topic);
        let read = gossip.topics().contains(topic);
        let subscribers = peers(Some(gossip), Some(topic))?;
        let everybody = gossip.peers();
        let silent = |peer: &&PeerId| {
            gossip
                .why(peer)
                .is_some_and(|report| report.stream == StreamReport::Unsupported)
        };
        let unwell = self.unwell.get(topic).copied();
        Ok(PubsubWhy {
            topic: topic.to_string(),
            summary: in_a_sentence(topic, read, health.as_ref(), subscribers.len()),
            read,
            relayed: health.is_some() && !read,
            unwell_s: unwell.map(|since| now.saturating_sub(since).as_secs()),
            connected: everybody.len() as u64,
            without_pubsub: everybody.iter().filter(silent).count() as u64,
            troubles: if subscribers.is_empty() {
                troubles
            } else {
                Vec::new()
            },
            health,
            subscribers,
        })
    }
}

fn in_a_sentence(
    topic: &Topic,
    read: bool,
    health: Option<&PubsubTopic>,
    subscribers: usize,
) -> String {
    let Some(health) = health else {
        return format!(
            "{topic} is not read on this device, and not carried for others: {} of it",
            match subscribers {
                0 => "nobody who is connected knows".to_owned(),
                n => format!(
                    "{} that is connected can be told messages",
                    text::peers(n as u64)
                ),
            }
        );
    };
    let how = if read {
        "is read on this device"
    } else {
        "is carried for others"
    };
    match &health.cause {
        None => format!("{topic} {how} and fares well"),
        Some(cause) => format!("{topic} {how} and is {}: {cause}", health.state),
    }
}

/// How pubsub fares.
///
/// # Errors
/// Pubsub is off.
pub fn health(gossip: Option<&Gossip>) -> Result<PubsubHealth, Fail> {
    let gossip = gossip.ok_or_else(off)?;
    let named = |(name, _, value): (&str, &str, u64)| (name.to_owned(), value);
    Ok(PubsubHealth {
        readers: 0,
        topics: topics(gossip),
        peers: peers(Some(gossip), None)?,
        counters: counters(gossip).into_iter().collect(),
        memory: memory(gossip).map(named).into_iter().collect(),
    })
}

/// The same in short, for `status`.
pub fn counts(gossip: Option<&Gossip>) -> PubsubCounts {
    let Some(gossip) = gossip else {
        return PubsubCounts::default();
    };
    let topics = topics(gossip);
    let are = |state: &str| topics.iter().filter(|topic| topic.state == state).count() as u64;
    PubsubCounts {
        enabled: true,
        topics: topics.len() as u64,
        isolated: are("isolated"),
        degraded: are("degraded"),
    }
}

fn counters(gossip: &Gossip) -> Vec<(String, u64)> {
    let seen = gossip.seen_counters();
    let of_cache = [
        ("seen_sightings", seen.sightings),
        ("seen_duplicates", seen.duplicates),
        ("seen_invalid_duplicates", seen.invalid_duplicates),
        ("seen_entered", seen.entered),
        ("seen_refused_banned", seen.refused_banned),
        ("seen_refused_pending", seen.refused_pending),
        ("seen_refused_pressure", seen.refused_pressure),
        ("seen_evicted", seen.evicted),
        ("seen_expired", seen.expired),
        ("lagged", gossip.lagged()),
    ];
    let counted = gossip.counters();
    let all = counted.iter().chain(of_cache);
    all.map(|(name, value)| (name.to_owned(), value)).collect()
}

/// Bytes by component: name, what it is, how many.
fn memory(gossip: &Gossip) -> [(&'static str, &'static str, u64); 9] {
    let load = gossip.load();
    let (_, waiting) = gossip.waiting();
    [
        (
            "pubsub_seen",
            "Cache of seen messages",
            load.seen_bytes as u64,
        ),
        (
            "pubsub_receiving",
            "Large messages that are on their way in",
            gossip.receiving() as u64,
        ),
        (
            "pubsub_tables",
            "Tables by which signatures of busy authors are checked",
            gossip.tables() as u64,
        ),
        (
            "pubsub_pipeline",
            "Messages that are being verified",
            load.pipeline_bytes as u64,
        ),
        (
            "pubsub_lanes",
            "Messages that wait for peers; shared with the history",
            load.lane_bytes as u64,
        ),
        (
            "pubsub_history",
            "Messages that peers may ask for",
            load.history_bytes as u64,
        ),
        (
            "pubsub_own",
            "Own messages on their way",
            load.own_bytes as u64,
        ),
        (
            "pubsub_authors",
            "Numbers of authors that are remembered",
            load.authors_bytes as u64,
        ),
        (
            "pubsub_waiting",
            "Messages that wait for readers on this device",
            waiting as u64,
        ),
    ]
}

/// What `/metrics` shows of it.
pub fn figures(gossip: &Gossip, figures: &mut Figures) {
    let gauge = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    let bytes =
        memory(gossip).map(|(name, help, value)| (name, help, Some(Unit::Bytes), gauge(value)));
    figures.gauges.extend(bytes);
    let topics = topics(gossip);
    let unwell = topics.iter().filter(|topic| topic.state != "ok").count();
    figures.gauges.extend([
        (
            "pubsub_topics",
            "Topics that are read on this device",
            None,
            gauge(topics.len() as u64),
        ),
        (
            "pubsub_topics_unwell",
            "Of those: isolated or degraded",
            None,
            gauge(unwell as u64),
        ),
    ]);
    let counted = counters(gossip)
        .into_iter()
        .map(|(name, value)| (format!("pubsub_{name}"), "Counted by pubsub", None, value));
    figures.counters.extend(counted);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn every_time_to_live_that_the_settings_take_makes_a_configuration() {
        let settings = crate::config::Config::resolve("", []).unwrap().pubsub;
        for seconds in [1, 2, 5, 11, 12, 13, 60, 120, 3599, 3600] {
            let settings = Settings {
                seen_ttl: Duration::from_secs(seconds),
                ..settings.clone()
            };
            let config = config(&settings).unwrap();
            assert_eq!(config.seen_ttl(), Duration::from_secs(seconds));
        }
    }

    #[test]
    fn direct_peers_are_those_whose_addresses_name_them() {
        let peer = PeerId::random();
        let text = format!("[pubsub]\ndirect = [\"/ip4/10.0.0.1/tcp/4001/p2p/{peer}\"]");
        let settings = crate::config::Config::resolve(&text, []).unwrap().pubsub;
        let config = config(&settings).unwrap();
        assert!(config.direct().iter().eq([&peer]));
    }

    #[test]
    fn unsigned_topics_are_those_that_were_said() {
        let text = "[pubsub]\nunsigned = [\"/gemba/raw/*\"]";
        let settings = crate::config::Config::resolve(text, []).unwrap().pubsub;
        let config = config(&settings).unwrap();
        use gemba_gossip::Signing;
        assert_eq!(config.options("/gemba/raw/x").signing, Signing::Unsigned);
        assert_eq!(config.options("/gemba/names").signing, Signing::Strict);
        assert!(config.options("/gemba/raw/x").echo && config.options("plant").echo);
    }
}
