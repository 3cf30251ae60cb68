//! Every knob of gossip, with what it trades and its worst case.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use libp2p_identity::PeerId;

use crate::error::{ConfigError, SubscribeError};
use crate::message::{OWN_PREFIX, Topic};
use crate::seen::{MAX_TTL, MIN_TTL, SeenConfig};

/// Limits and times of one node's gossip, checked. The defaults suit a tablet, and Kubo.
///
/// ```
/// use std::time::Duration;
/// use gemba_gossip::Config;
///
/// # fn main() -> Result<(), gemba_gossip::ConfigError> {
/// let config = Config::builder().lane_age(Duration::from_secs(5)).build()?;
/// assert_eq!(config.lane_age(), Duration::from_secs(5));
/// assert!(Config::builder().lane_age(Duration::from_secs(60)).build().is_err());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Config {
    pub(crate) knobs: Knobs,
    pub(crate) patterns: Vec<(Pattern, TopicOptions)>,
    pub(crate) direct: BTreeSet<PeerId>,
    pub(crate) relay: RelayPolicy,
    /// A bug for the simulator to find.
    #[cfg(feature = "sim")]
    pub(crate) planted: Option<crate::sim::Planted>,
}

/// Makes a [`Config`].
#[derive(Clone, Debug, Default)]
pub struct ConfigBuilder(Config);

/// How messages of a topic are signed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Signing {
    /// By the author's key, as Kubo demands.
    #[default]
    Strict,
    /// Not at all: no author, no number, the id is a hash of the content. Below [`OWN_PREFIX`] only. Whoever is in the swarm can send
    /// anything, and the same content twice within the time-to-live is one message.
    Unsigned,
}

/// What holds for one topic.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TopicOptions {
    /// Signatures. Default strict.
    pub signing: Signing,
    /// How long messages are remembered after their last copy, 1 s to 1 h; none is [`Config::seen_ttl`]. Deadlines shrink with it: what is
    /// older than a quarter of it is not sent on.
    pub seen_ttl: Option<Duration>,
    /// Whose messages are taken; none is everybody's. Those of others are ignored before they are verified.
    pub authors: Option<Arc<BTreeSet<PeerId>>>,
    /// Whether the application has a word on each message ([`crate::Output::Validate`]). Default false.
    pub validate: bool,
    /// Whether numbers of an author may not be used twice, even long after the message was forgotten. Switch it off for authors that
    /// number at random. Has no effect on unsigned topics. Default true.
    pub replay_window: bool,
    /// Largest payload that is taken, bytes. Default 1 MiB, which the largest frame does not hold.
    pub max_bytes: usize,
    /// Whether own messages are delivered to own subscriptions, as Kubo does. Default false, as rust-libp2p.
    pub echo: bool,
}

impl Default for TopicOptions {
    fn default() -> Self {
        Self {
            signing: Signing::Strict,
            seen_ttl: None,
            authors: None,
            validate: false,
            replay_window: true,
            max_bytes: 1 << 20,
            echo: false,
        }
    }
}

impl TopicOptions {
    /// Unsigned, for topics below [`OWN_PREFIX`].
    #[must_use]
    pub fn unsigned() -> Self {
        Self::default().with_signing(Signing::Unsigned)
    }

    /// Sets [`signing`](Self::signing).
    #[must_use]
    pub fn with_signing(mut self, signing: Signing) -> Self {
        self.signing = signing;
        self
    }

    /// Sets [`seen_ttl`](Self::seen_ttl).
    #[must_use]
    pub fn with_seen_ttl(mut self, ttl: Duration) -> Self {
        self.seen_ttl = Some(ttl);
        self
    }

    /// Sets [`authors`](Self::authors).
    #[must_use]
    pub fn with_authors(mut self, authors: impl IntoIterator<Item = PeerId>) -> Self {
        self.authors = Some(Arc::new(authors.into_iter().collect()));
        self
    }

    /// Sets [`validate`](Self::validate).
    #[must_use]
    pub fn with_validate(mut self, validate: bool) -> Self {
        self.validate = validate;
        self
    }

    /// Sets [`replay_window`](Self::replay_window).
    #[must_use]
    pub fn with_replay_window(mut self, on: bool) -> Self {
        self.replay_window = on;
        self
    }

    /// Sets [`max_bytes`](Self::max_bytes).
    #[must_use]
    pub fn with_max_bytes(mut self, bytes: usize) -> Self {
        self.max_bytes = bytes;
        self
    }

    /// Sets [`echo`](Self::echo).
    #[must_use]
    pub fn with_echo(mut self, echo: bool) -> Self {
        self.echo = echo;
        self
    }

    pub(crate) fn check(&self, own: bool) -> Result<(), SubscribeError> {
        if self.signing == Signing::Unsigned && !own {
            return Err(SubscribeError::UnsignedForeign);
        }
        match self.seen_ttl {
            Some(ttl) if !(MIN_TTL..=MAX_TTL).contains(&ttl) => Err(SubscribeError::SeenTtl(ttl)),
            _ => Ok(()),
        }
    }
}

/// One topic, or all that begin with a prefix: `plant/hall-1`, `plant/*`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    text: String,
    prefix: bool,
}

impl Pattern {
    /// A `*` at the end stands for any rest.
    #[must_use]
    pub fn new(text: &str) -> Self {
        match text.strip_suffix('*') {
            Some(prefix) => Self {
                text: prefix.into(),
                prefix: true,
            },
            None => Self {
                text: text.into(),
                prefix: false,
            },
        }
    }

    /// Whether the topic is meant.
    #[must_use]
    pub fn matches(&self, topic: &str) -> bool {
        if self.prefix {
            topic.starts_with(&self.text)
        } else {
            topic == self.text
        }
    }
}

/// Which topics a node carries for others that it does not read itself (specs/gossip.md §7).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum RelayPolicy {
    /// None.
    #[default]
    Off,
    /// Those that match.
    Listed(Vec<Pattern>),
    /// All that neighbours ask for, the first so many.
    Bridge {
        /// Most topics.
        max_topics: usize,
    },
}

impl Default for Config {
    fn default() -> Self {
        Self {
            knobs: Knobs::default(),
            patterns: Vec::new(),
            direct: BTreeSet::new(),
            relay: RelayPolicy::Off,
            #[cfg(feature = "sim")]
            planted: None,
        }
    }
}

impl Config {
    /// Begins with the defaults.
    #[must_use]
    pub fn builder() -> ConfigBuilder {
        ConfigBuilder::default()
    }

    /// Size and times of the cache that goes with it.
    #[must_use]
    pub fn seen(&self) -> SeenConfig {
        SeenConfig {
            entries: self.knobs.seen_entries,
            ttl: self.knobs.seen_ttl,
            hold: self.knobs.validation_deadline + self.knobs.lane_age,
        }
    }

    /// What holds for a topic that nobody said anything else about: the first pattern that matches, or the defaults.
    #[must_use]
    pub fn options(&self, topic: &str) -> TopicOptions {
        self.patterns
            .iter()
            .find(|(pattern, _)| pattern.matches(topic))
            .map(|(_, options)| options.clone())
            .unwrap_or_default()
    }

    /// Peers that are always sent to and never in a mesh.
    #[must_use]
    pub fn direct(&self) -> &BTreeSet<PeerId> {
        &self.direct
    }

    /// Which topics are relayed.
    #[must_use]
    pub fn relay(&self) -> &RelayPolicy {
        &self.relay
    }
}

impl ConfigBuilder {
    /// Sets what holds for topics that match, relayed ones included. The first pattern that matches counts.
    #[must_use]
    pub fn topic(mut self, pattern: &str, options: TopicOptions) -> Self {
        self.0.patterns.push((Pattern::new(pattern), options));
        self
    }

    /// Adds peers that are always sent to, whatever the mesh: two anchors of a site cannot be crowded out by strangers (threat G7).
    #[must_use]
    pub fn direct(mut self, peers: impl IntoIterator<Item = PeerId>) -> Self {
        self.0.direct.extend(peers);
        self
    }

    /// Sets which topics are relayed.
    #[must_use]
    pub fn relay(mut self, policy: RelayPolicy) -> Self {
        self.0.relay = policy;
        self
    }

    /// Checks that the values go together.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn build(self) -> Result<Config, ConfigError> {
        let knobs = &self.0.knobs;
        if !(MIN_TTL..=MAX_TTL).contains(&knobs.seen_ttl) {
            return Err(ConfigError::SeenTtl(knobs.seen_ttl));
        }
        // Specs/gossip.md GO-11: a slow node can lose messages, never send on what others have forgotten.
        let hold = knobs.validation_deadline.saturating_add(knobs.lane_age);
        if hold > knobs.seen_ttl / 4 {
            return Err(ConfigError::Hold {
                validation: knobs.validation_deadline,
                lane: knobs.lane_age,
                ttl: knobs.seen_ttl,
            });
        }
        let ordered = knobs.degree_out < knobs.degree_low
            && knobs.degree_low <= knobs.degree
            && knobs.degree <= knobs.degree_high
            && knobs.degree_out <= knobs.degree / 2;
        if !ordered {
            return Err(ConfigError::Degrees);
        }
        for (name, value, min, max) in [
            ("seen_entries", knobs.seen_entries, 1 << 10, 1 << 24),
            ("lane_bytes", knobs.lane_bytes, 1 << 16, usize::MAX),
            ("lane_messages", knobs.lane_messages, 16, usize::MAX),
            ("verify_messages", knobs.verify_messages, 16, usize::MAX),
            ("verify_bytes", knobs.verify_bytes, 1 << 20, usize::MAX),
            ("verify_running", knobs.verify_running, 1, 4096),
            ("validations", knobs.validations, 1, usize::MAX),
            ("own_messages", knobs.own_messages, 1, usize::MAX),
            ("own_bytes", knobs.own_bytes, 1 << 16, usize::MAX),
            ("history_bytes", knobs.history_bytes, 1 << 16, usize::MAX),
            ("topics", knobs.topics, 1, 1 << 16),
            ("peer_topics", knobs.peer_topics, 1, 1 << 16),
            ("authors", knobs.authors, 16, 1 << 20),
            ("history_length", knobs.history_length, 1, 60),
            (
                "history_gossip",
                knobs.history_gossip,
                0,
                knobs.history_length,
            ),
            ("relay_hops", knobs.relay_hops, 1, 64),
        ] {
            if value < min {
                return Err(ConfigError::TooSmall { name, value, min });
            }
            if value > max {
                return Err(ConfigError::TooLarge { name, value, max });
            }
        }
        // Below this a node does nothing else; above, times since start could overflow.
        let (moment, day) = (Duration::from_millis(10), Duration::from_secs(86_400));
        for (name, value, min) in [
            ("heartbeat", knobs.heartbeat, moment),
            ("stall", knobs.stall, moment),
            ("probe", knobs.probe, moment),
            ("iwant_followup", knobs.iwant_followup, moment),
            ("fanout_ttl", knobs.fanout_ttl, Duration::ZERO),
            ("prune_backoff", knobs.prune_backoff, Duration::ZERO),
            (
                "unsubscribe_backoff",
                knobs.unsubscribe_backoff,
                Duration::ZERO,
            ),
            ("ban", knobs.ban, Duration::ZERO),
        ] {
            if !(min..=day).contains(&value) {
                return Err(ConfigError::Time { name, value, min });
            }
        }
        for (pattern, options) in &self.0.patterns {
            let own = pattern.text.starts_with(OWN_PREFIX);
            options.check(own).map_err(|source| ConfigError::Topic {
                pattern: pattern.text.clone(),
                source,
            })?;
        }
        Ok(self.0)
    }
}

/// Writes field, default, getter and setter of a knob from one description.
macro_rules! knobs {
    ($($(#[$doc:meta])* $name:ident: $ty:ty = $default:expr;)*) => {
        #[derive(Clone, Debug)]
        pub(crate) struct Knobs {
            $(pub(crate) $name: $ty,)*
        }

        impl Default for Knobs {
            fn default() -> Self {
                Self { $($name: $default,)* }
            }
        }

        impl Config {
            $(
                $(#[$doc])*
                #[must_use]
                pub fn $name(&self) -> $ty {
                    self.knobs.$name
                }
            )*
        }

        impl ConfigBuilder {
            $(
                #[doc = concat!("Sets [`Config::", stringify!($name), "`].")]
                #[must_use]
                pub fn $name(mut self, value: $ty) -> Self {
                    self.0.knobs.$name = value;
                    self
                }
            )*
        }
    };
}

const MIB: usize = 1 << 20;

knobs! {
    /// Most entries of the cache of seen messages, see [`SeenConfig::entries`]. Everything that arrives within
    /// [`seen_ttl`](Self::seen_ttl) should fit. Default 2^16 (3.5 MiB); 2^14 for tablets.
    seen_entries: usize = 1 << 16;
    /// How long a message is remembered after its last copy, 1 s to 1 h. Longer than any echo, shorter than the interval at which the same
    /// content is meant to be announced again. Default 120 s, as Kubo.
    seen_ttl: Duration = Duration::from_secs(120);
    /// From the reading of a message until it must be delivered and sent on; what is older is dropped. Together with
    /// [`lane_age`](Self::lane_age) a quarter of [`seen_ttl`](Self::seen_ttl) at most. Longer loses less on a slow machine, and makes that
    /// machine later. Default 1 s.
    validation_deadline: Duration = Duration::from_secs(1);
    /// How long a copy may wait for a slow neighbour. Default 2 s.
    lane_age: Duration = Duration::from_secs(2);
    /// Most bytes of messages that wait for one neighbour, and at least one message; the oldest go first. They share their memory with the
    /// copies for others. Default 4 MiB.
    lane_bytes: usize = 4 * MIB;
    /// Most messages that wait for one neighbour. About 100 bytes each. Default 8,192.
    lane_messages: usize = 8192;
    /// Most messages that wait for verification; above half of it each sender has a share. About 250 bytes each. Default 8,192.
    verify_messages: usize = 8192;
    /// Most bytes of those. Default 16 MiB.
    verify_bytes: usize = 16 * MIB;
    /// Most signatures that are being checked at a time: the queue of the workers. Default 64.
    verify_running: usize = 64;
    /// Most messages that wait for the application's word; above half of it each sender has a share. Default 1,024.
    validations: usize = 1024;
    /// Most own messages that wait to be signed or sent. Default 1,024.
    own_messages: usize = 1024;
    /// Most bytes of those. Default 8 MiB.
    own_bytes: usize = 8 * MIB;
    /// Most bytes of messages that are kept to be asked for; they share their memory with what is sent. At most as many messages as
    /// [`seen_entries`](Self::seen_entries), about 250 bytes each. Default 8 MiB.
    history_bytes: usize = 8 * MIB;
    /// Heartbeats for which messages can be asked for. Default 5, as Kubo.
    history_length: usize = 5;
    /// Heartbeats whose messages are advertised. Default 3, as Kubo.
    history_gossip: usize = 3;
    /// Most topics that are subscribed to or relayed. About 1 KiB each. Default 1,024.
    topics: usize = 1024;
    /// Most topics of one peer that are remembered besides those of interest here, and a KiB for each four of them. Default 256.
    peer_topics: usize = 256;
    /// Most authors whose numbers are remembered; those heard longest ago leave first. About 250 bytes each. Default 4,096.
    authors: usize = 4096;
    /// Neighbours in the mesh of a topic: D. With so many subscribed neighbours or fewer, all are sent to. Default 6, as Kubo.
    degree: usize = 6;
    /// Below so many, others are grafted. Default 5.
    degree_low: usize = 5;
    /// Above so many, some are pruned. Default 12.
    degree_high: usize = 12;
    /// At least so many of the mesh are peers that we connected to, so that strangers who connect to us cannot fill it. Default 2.
    degree_out: usize = 2;
    /// At least so many neighbours outside the mesh are told what there is, each heartbeat. Default 6.
    degree_lazy: usize = 6;
    /// Share of the neighbours outside the mesh that are told, in percent. Default 25.
    gossip_percent: usize = 25;
    /// Between two rounds of housekeeping. Default 1 s.
    heartbeat: Duration = Duration::from_secs(1);
    /// With so many subscribed neighbours or fewer, own messages go to all of them: they arrive in one hop, and nobody in between can keep
    /// them back. With more they go to the mesh and the direct peers, which saves each receiver a copy. `usize::MAX` is always, as Kubo; 0
    /// is only where the mesh holds all. Default 12.
    flood_publish: usize = 12;
    /// For how long the same peers are chosen for a topic that is published to and not subscribed to. Default 60 s.
    fanout_ttl: Duration = Duration::from_secs(60);
    /// A pruned neighbour is not grafted for so long. Default 60 s.
    prune_backoff: Duration = Duration::from_secs(60);
    /// The same after leaving the topic. Default 10 s.
    unsubscribe_backoff: Duration = Duration::from_secs(10);
    /// Messages of so many bytes or more are refused at other neighbours once they are here (IDONTWANT). Below, the word costs more than it
    /// saves: the copies are on their way already. Default 4,096; Kubo 1,024.
    idontwant_bytes: usize = 4096;
    /// An asked-for message that did not come after this is asked of another who has it; a tenth of it for who sent nothing new lately.
    /// Default 3 s.
    iwant_followup: Duration = Duration::from_secs(3);
    /// A stream without progress for so long, with something to write, is reset; the second time its connection is closed. Default 10 s.
    stall: Duration = Duration::from_secs(10);
    /// A stream is probed so long after the last answer; the next must come within [`stall`](Self::stall). Only peers that answer are probed,
    /// Kubo does not. Default 10 s.
    probe: Duration = Duration::from_secs(10);
    /// Most bytes of RPCs above 16 KiB that are on their way in, all peers together, and one RPC at least; what does not fit waits unread.
    /// Peers that never finished one have half of it. Smaller ones take 32 KiB a connection at most. Default 8 MiB.
    receive_bytes: usize = 8 * MIB;
    /// Bytes a second that are relayed for others, all topics together. Default 1 MiB.
    relay_bytes: usize = MIB;
    /// Most hops between two relays and a subscriber. Default 8.
    relay_hops: usize = 8;
    /// How long a peer with 16 strikes is banned; doubles each time, up to a day. Default 10 min.
    ban: Duration = Duration::from_secs(600);
}

impl Config {
    /// What holds for `topic` and how long its messages may take: deadlines of a topic that is forgotten early shrink.
    pub(crate) fn deadlines(&self, options: &TopicOptions) -> (Duration, Duration) {
        let ttl = options.seen_ttl.unwrap_or(self.knobs.seen_ttl);
        let (validation, lane) = (self.knobs.validation_deadline, self.knobs.lane_age);
        let hold = validation + lane;
        if hold <= ttl / 4 {
            return (validation, lane);
        }
        let share = |part: Duration| part.mul_f64((ttl / 4).as_secs_f64() / hold.as_secs_f64());
        (share(validation), share(lane))
    }

    pub(crate) fn relays(&self, topic: &Topic, relayed: usize) -> bool {
        match &self.relay {
            RelayPolicy::Off => false,
            RelayPolicy::Listed(patterns) => {
                patterns.iter().any(|p| p.matches(topic.as_str())) && relayed < self.knobs.topics
            }
            RelayPolicy::Bridge { max_topics } => relayed < (*max_topics).min(self.knobs.topics),
        }
    }
}
