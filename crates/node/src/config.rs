//! The settings of a node: `config.toml`, the environment, the flags; each value knows where it comes from.
//!
//! Weakest first: default, file, `GEMBA_SECTION__KEY`, flag. Unknown names are refused with the nearest known one, in the file and in the
//! environment: a misspelt setting that has no effect is worse than one that is refused (S0.55).

mod times;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use gemba_exchange::LineBudget;
use gemba_pnet::KeyFile;
use gemba_pnet::policy::{FORCE_VARIABLE, ForceSource};
use multiaddr::Multiaddr;
use toml_edit::{Array, DocumentMut, Item, Value as Toml};

use crate::error::{Code, Fail};
use crate::files;
use crate::lines::{Lan, Subnet, Uplink, budget};
use crate::repo::Layout;
use times::{PERIOD, PERIOD_OR_OFF, SEEN, Span, WAIT, period};

pub use times::{Dials, Exchange, Pins, Reads};

/// A configuration file is some KiB at most.
const MAX_FILE_BYTES: u64 = 1024 * 1024;
/// Environment variables of this form are settings.
const ENVIRONMENT_PREFIX: &str = "GEMBA_";
/// Names farther away than this many edits are not offered as what was meant.
const MAX_EDITS: usize = 4;
/// The words for how much is logged, from much to nothing.
const LEVELS: [&str; 6] = ["trace", "debug", "info", "warn", "error", "off"];

/// Most topics that a bridge carries for others.
const BRIDGED_TOPICS: usize = 256;
/// The default of `pubsub.seen_messages`: 0.9 MiB, for 136 new messages a second over two minutes.
const SEEN_MESSAGES: usize = 1 << 14;

/// The default of `events.max_size`.
const EVENTS_SIZE: u64 = 8 << 30;

/// Smallest `store.max_size`: sixteen packs of the smallest size.
const MIN_SIZE: u64 = 16 << 20;

/// All settings, resolved.
#[derive(Clone, Debug)]
pub struct Config {
    /// Whom to talk to, and where to listen.
    pub network: Network,
    /// What the lines may carry.
    pub bandwidth: Bandwidth,
    /// The control API.
    pub api: Api,
    /// The block store.
    pub store: Store,
    /// How blocks are asked for.
    pub exchange: Exchange,
    /// How pins are worked for.
    pub pins: Pins,
    /// How long reads wait.
    pub reads: Reads,
    /// Messages by topic.
    pub pubsub: Pubsub,
    /// Names.
    pub names: Names,
    /// The event log.
    pub events: Events,
    /// What is logged.
    pub log: Log,
    values: BTreeMap<&'static str, (Value, Origin)>,
}

/// `[network]`
#[derive(Clone, Debug)]
pub struct Network {
    /// Addresses to listen on.
    pub listen: Vec<Multiaddr>,
    /// Peers to dial at the start and whenever none is connected.
    pub bootstrap: Vec<Multiaddr>,
    /// Label of the site; `auto`: unlabelled nodes of one subnet are one site; `none`: belongs to none.
    pub site: String,
    /// Whether peers are looked for on the local network.
    pub mdns: bool,
    /// How the node takes part in the DHT.
    pub dht: DhtMode,
    /// Whether the node may run without a swarm key, open to anyone.
    pub public_network: bool,
    /// Whether the public network is forbidden; `None`: not set.
    pub force_private: Option<bool>,
    /// How long what takes.
    pub dials: Dials,
}

/// `[bandwidth]`
#[derive(Clone, Debug, Default)]
pub struct Bandwidth {
    /// Between this device and those of its LAN.
    pub lan: LineBudget,
    /// Over the uplink, if it costs nothing by the byte.
    pub wan: LineBudget,
    /// Over the uplink, if it does.
    pub metered: LineBudget,
    /// Which of the two the uplink is.
    pub uplink: Uplink,
    /// What counts as the LAN.
    pub near: Lan,
}

impl Bandwidth {
    /// What the uplink may carry, if it is of that kind.
    #[must_use]
    pub fn of(&self, uplink: Uplink) -> LineBudget {
        match uplink {
            Uplink::Wan => self.wan,
            Uplink::Metered => self.metered,
        }
    }
}

/// `network.dht`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DhtMode {
    /// Keeps records for others, and asks.
    Server,
    /// Only asks.
    Client,
    /// No part.
    Off,
}

/// `[api]`
#[derive(Clone, Debug)]
pub struct Api {
    /// Where the control API listens. Port 0: a free one.
    pub address: SocketAddr,
}

/// `[store]`
#[derive(Clone, Debug)]
pub struct Store {
    /// How a block is checked when it is read: `crc`, `hash` or `off`.
    pub verify_on_read: gemba_store::VerifyOnRead,
    /// Bytes that the blocks may take; `None`: 90 % of what the file system could give.
    pub max_size: Option<u64>,
    /// Whether the daemon makes room by itself.
    pub gc: bool,
    /// Unit of last use, and pause after a collection that did not help.
    pub gc_interval: Duration,
    /// How often everything is read to find damage; `None`: never.
    pub scrub: Option<Duration>,
}

/// `[pubsub]`
#[derive(Clone, Debug)]
pub struct Pubsub {
    /// Whether the node takes part at all.
    pub enabled: bool,
    /// How long a message is remembered after its last copy, 1 s to 1 h.
    pub seen_ttl: Duration,
    /// Most messages that are remembered; 56 bytes each.
    pub seen_messages: usize,
    /// What is carried for others.
    pub relay: gemba_gossip::RelayPolicy,
    /// Topics whose messages are not signed, `/gemba/…` only.
    pub unsigned: Vec<String>,
    /// Peers that get every message of what they read, mesh or not; each address names its peer.
    pub direct: Vec<Multiaddr>,
}

/// `[events]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Events {
    /// Whether events are sent to others and fetched from them.
    pub replicate: bool,
    /// Whose events are kept here besides one's own: patterns of streams.
    pub subscribe: Vec<String>,
    /// Bytes that the log may take.
    pub max_size: u64,
    /// Events older than this go, unless a consumer of this node has not had them; `None`: never.
    pub keep: Option<Duration>,
    /// Whether batches are compressed.
    pub compress: bool,
    /// How long an answer of a peer may take before another one is asked.
    pub patience: Duration,
    /// How often a node that agreed with a peer is compared with it again.
    pub compare: Duration,
}

/// `[names]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names {
    /// How long a record lives that is published without a word about it.
    pub lifetime: Duration,
    /// How long others may answer from their memory, likewise.
    pub ttl: Duration,
    /// How long a name that is not known is looked for.
    pub resolve_timeout: Duration,
    /// How often a followed name is said again on its topic, unless others did.
    pub reannounce: Duration,
    /// How often a followed name is compared with two peers.
    pub pull: Duration,
    /// How often own names are put into the DHT.
    pub dht_put: Duration,
    /// How often a follower looks whether the DHT still has a name.
    pub dht_tend: Duration,
    /// Whether connected gemba nodes are told, and listened to.
    pub push: bool,
    /// Whether topics are.
    pub pubsub: bool,
    /// Whether the DHT is.
    pub dht: bool,
}

/// `[log]`
#[derive(Clone, Debug)]
pub struct Log {
    /// `error`, `warn`, `info`, `debug`, `trace`, `off`, or a filter such as `info,gemba_node=debug`.
    pub level: String,
    /// `text` or `json`.
    pub format: String,
}

/// Where a value comes from, weakest first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Built in.
    Default,
    /// `config.toml`.
    File,
    /// An environment variable of this name.
    Environment(String),
    /// The command line.
    Flag,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File => f.write_str("config.toml"),
            Self::Environment(name) => f.write_str(name),
            Self::Flag => f.write_str("flag"),
        }
    }
}

/// The value of a setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// Not set.
    Unset,
    /// Yes or no.
    Bool(bool),
    /// One text.
    Text(String),
    /// A list of texts.
    Texts(Vec<String>),
}

impl Value {
    /// The JSON form.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        match self {
            Self::Unset => serde_json::Value::Null,
            Self::Bool(b) => (*b).into(),
            Self::Text(text) => text.as_str().into(),
            Self::Texts(texts) => texts.clone().into(),
        }
    }

    /// The TOML form; an unset value has none.
    #[must_use]
    pub fn to_toml(&self) -> Option<Toml> {
        Some(match self {
            Self::Unset => return None,
            Self::Bool(b) => (*b).into(),
            Self::Text(text) => text.as_str().into(),
            Self::Texts(texts) => texts.iter().collect::<Array>().into(),
        })
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.to_toml() {
            Some(value) => write!(f, "{value}"),
            None => f.write_str("(not set)"),
        }
    }
}

/// What a setting may hold.
#[derive(Clone, Copy)]
enum Kind {
    Bool,
    Text(fn(&str) -> Result<(), String>),
    /// Within the span; the default with its unit.
    Time(Span, &'static str),
    Texts(fn(&str) -> Result<(), String>),
}

struct Setting {
    key: &'static str,
    kind: Kind,
    default: fn() -> Value,
    about: &'static str,
}

const SETTINGS: &[Setting] = &[
    Setting {
        key: "network.listen",
        kind: Kind::Texts(is_multiaddr),
        default: || {
            Value::Texts(vec![
                "/ip4/0.0.0.0/tcp/4001".into(),
                "/ip6/::/tcp/4001".into(),
            ])
        },
        about: "addresses to listen on; port 0 takes a free one",
    },
    Setting {
        key: "network.bootstrap",
        kind: Kind::Texts(is_multiaddr),
        default: || Value::Texts(Vec::new()),
        about: "peers to dial at the start: multiaddrs, with /p2p/PEER where it is known",
    },
    Setting {
        key: "network.site",
        kind: Kind::Text(is_site),
        default: || Value::Text("auto".into()),
        about: "label of the site; \"auto\": unlabelled nodes of one subnet are one site; \"none\": belongs to none",
    },
    Setting {
        key: "network.mdns",
        kind: Kind::Bool,
        default: || Value::Bool(true),
        about: "look for peers on the local network",
    },
    Setting {
        key: "network.dht",
        kind: Kind::Text(is_dht),
        default: || Value::Text("server".into()),
        about: "how the node takes part in the DHT of its swarm: server (keeps records of names for others), client (only asks: for tablets, and devices that are often away or on a metered line), off",
    },
    Setting {
        key: "network.public_network",
        kind: Kind::Bool,
        default: || Value::Bool(false),
        about: "run without a swarm key, open to anyone",
    },
    Setting {
        key: "network.force_private",
        kind: Kind::Bool,
        default: || Value::Unset,
        about: "forbid the public network, whatever else says; the same as LIBP2P_FORCE_PNET=1",
    },
    Setting {
        key: "network.connect_timeout",
        kind: Kind::Time(WAIT, "4s"),
        default: || Value::Text("4s".into()),
        about: "how long the look-up of a name and the connect by TCP may take, each; 4s cover one lost packet",
    },
    Setting {
        key: "network.nonce_timeout",
        kind: Kind::Time(WAIT, "5s"),
        default: || Value::Text("5s".into()),
        about: "from there until the other side has shown that it speaks with a swarm key",
    },
    Setting {
        key: "network.security_timeout",
        kind: Kind::Time(WAIT, "5s"),
        default: || Value::Text("5s".into()),
        about: "from there until the connection is secured",
    },
    Setting {
        key: "network.incoming_timeout",
        kind: Kind::Time(WAIT, "5s"),
        default: || Value::Text("5s".into()),
        about: "all of that together for who comes to us and has proved nothing yet",
    },
    Setting {
        key: "network.ping_interval",
        kind: Kind::Time(PERIOD, "5s"),
        default: || Value::Text("5s".into()),
        about: "between two pings of a connection",
    },
    Setting {
        key: "network.ping_timeout",
        kind: Kind::Time(WAIT, "5s"),
        default: || Value::Text("5s".into()),
        about: "how long an answer may take: a connection is closed ping_interval and twice this after its last answer",
    },
    Setting {
        key: "network.dial_pause",
        kind: Kind::Time(WAIT, "1s"),
        default: || Value::Text("1s".into()),
        about: "the pause after a dial that failed; it doubles with each further one …",
    },
    Setting {
        key: "network.dial_pause_longest",
        kind: Kind::Time(PERIOD, "5m"),
        default: || Value::Text("5m".into()),
        about: "… up to this: a device that comes back is found within that time",
    },
    Setting {
        key: "network.foreign_pause",
        kind: Kind::Time(PERIOD, "30m"),
        default: || Value::Text("30m".into()),
        about: "the same after a dial that met another swarm …",
    },
    Setting {
        key: "network.foreign_pause_longest",
        kind: Kind::Time(PERIOD, "1d"),
        default: || Value::Text("1d".into()),
        about: "… and its longest",
    },
    Setting {
        key: "network.mdns_interval",
        kind: Kind::Time(PERIOD, "20s"),
        default: || Value::Text("20s".into()),
        about: "between two questions for peers on the local network",
    },
    Setting {
        key: "bandwidth.wan",
        kind: Kind::Text(is_budget),
        default: || Value::Text("none".into()),
        about: "what may go over the uplink: a rate as 2 Mbit/s for either way, or 1 Mbit/s up, 8 Mbit/s down; blocks are held up so that it is kept, and go after names and messages; at least 128 kbit/s; none: no limit",
    },
    Setting {
        key: "bandwidth.metered",
        kind: Kind::Text(is_budget),
        default: || Value::Text("none".into()),
        about: "the same while the uplink is metered",
    },
    Setting {
        key: "bandwidth.lan",
        kind: Kind::Text(is_budget),
        default: || Value::Text("none".into()),
        about: "the same between this device and those of its LAN",
    },
    Setting {
        key: "bandwidth.uplink",
        kind: Kind::Text(is_uplink),
        default: || Value::Text("wan".into()),
        about: "which budget holds for the uplink: wan, or metered; `gemba uplink` changes it while the daemon runs",
    },
    Setting {
        key: "bandwidth.lan_subnets",
        kind: Kind::Texts(is_subnet),
        default: || Value::Texts(Vec::new()),
        about: "networks that are reached without the uplink, as 10.1.0.0/16, where another site has private addresses too; none: all private, link-local and loopback addresses",
    },
    Setting {
        key: "api.address",
        kind: Kind::Text(is_loopback_socket),
        default: || Value::Text("127.0.0.1:4774".into()),
        about: "where the control API listens: loopback, port 0 takes a free one",
    },
    Setting {
        key: "store.verify_on_read",
        kind: Kind::Text(is_verify),
        default: || Value::Text("crc".into()),
        about: "how a block is checked when it is read: crc (finds what a disk does wrong), hash (also what somebody changed), off",
    },
    Setting {
        key: "store.max_size",
        kind: Kind::Text(is_size),
        default: || Value::Text("auto".into()),
        about: "what the blocks may take on the disk, as 20GiB, at least 16MiB: nothing is stored beyond it; auto: 90 % of what the file system could give",
    },
    Setting {
        key: "store.gc",
        kind: Kind::Bool,
        default: || Value::Bool(true),
        about: "the daemon makes room at 90 % of max_size: what no pin holds goes, least recently used first, down to 80 %",
    },
    Setting {
        key: "store.gc_interval",
        kind: Kind::Time(PERIOD, "1h"),
        default: || Value::Text("1h".into()),
        about: "how finely last use is told apart, how often dead space is looked for, and the pause after a collection that did not help",
    },
    Setting {
        key: "store.scrub",
        kind: Kind::Time(PERIOD_OR_OFF, "30d"),
        default: || Value::Text("30d".into()),
        about: "how often the daemon reads every block to find damage, slowly and in the background; off: never",
    },
    Setting {
        key: "exchange.stall",
        kind: Kind::Time(WAIT, "2s"),
        default: || Value::Text("2s".into()),
        about: "without a byte for so long a peer that was asked for a block is given up for it, and another one asked",
    },
    Setting {
        key: "exchange.retry",
        kind: Kind::Time(WAIT, "2s"),
        default: || Value::Text("2s".into()),
        about: "a block that nobody has is asked for again after this, which doubles with each round …",
    },
    Setting {
        key: "exchange.retry_longest",
        kind: Kind::Time(PERIOD, "1m"),
        default: || Value::Text("1m".into()),
        about: "… up to this",
    },
    Setting {
        key: "exchange.distrust",
        kind: Kind::Time(PERIOD, "10m"),
        default: || Value::Text("10m".into()),
        about: "how long a peer that sent bytes of another hash is not asked",
    },
    Setting {
        key: "pins.compare",
        kind: Kind::Time(PERIOD_OR_OFF, "30s"),
        default: || Value::Text("30s".into()),
        about: "how often pins that say they are whole are compared with what is here, at one percent of a core at most; what lacks a block is fetched again; off: never",
    },
    Setting {
        key: "pins.patience",
        kind: Kind::Time(WAIT, "3s"),
        default: || Value::Text("3s".into()),
        about: "a pin that gets no block for so long lets another one begin beside it",
    },
    Setting {
        key: "pins.nobody_has_it",
        kind: Kind::Time(WAIT, "15s"),
        default: || Value::Text("15s".into()),
        about: "a try ends without a block for so long if nobody who is connected has what it lacks; after pins.patience where others wait",
    },
    Setting {
        key: "pins.stall",
        kind: Kind::Time(WAIT, "1m"),
        default: || Value::Text("1m".into()),
        about: "a try ends without a block for so long if no peer sends anything at all",
    },
    Setting {
        key: "pins.busy_stall",
        kind: Kind::Time(WAIT, "5m"),
        default: || Value::Text("5m".into()),
        about: "a try ends without a block for so long though other blocks arrive",
    },
    Setting {
        key: "pins.pause",
        kind: Kind::Time(WAIT, "10s"),
        default: || Value::Text("10s".into()),
        about: "the pause before the next try; it doubles with each …",
    },
    Setting {
        key: "pins.pause_longest",
        kind: Kind::Time(PERIOD, "10m"),
        default: || Value::Text("10m".into()),
        about: "… up to this",
    },
    Setting {
        key: "pins.redraw",
        kind: Kind::Time(PERIOD, "1m"),
        default: || Value::Text("1m".into()),
        about: "how often what does not fit into memory is looked through again: more than 4096 pins that are not whole",
    },
    Setting {
        key: "reads.nobody_has_it",
        kind: Kind::Time(WAIT, "8s"),
        default: || Value::Text("8s".into()),
        about: "a read without a time limit of its own ends after this when nobody who is connected has the block",
    },
    Setting {
        key: "reads.silence",
        kind: Kind::Time(WAIT, "30s"),
        default: || Value::Text("30s".into()),
        about: "the same when no peer sends anything at all",
    },
    Setting {
        key: "reads.longest",
        kind: Kind::Time(WAIT, "5m"),
        default: || Value::Text("5m".into()),
        about: "the same though other blocks arrive",
    },
    Setting {
        key: "pubsub.enabled",
        kind: Kind::Bool,
        default: || Value::Bool(true),
        about: "take part in pubsub; what nobody subscribes to costs nothing",
    },
    Setting {
        key: "pubsub.seen_ttl",
        kind: Kind::Time(SEEN, "2m"),
        default: || Value::Text("2m".into()),
        about: "how long a message is remembered after its last copy, 1s to 1h: what comes again within it is dropped as a copy",
    },
    Setting {
        key: "pubsub.seen_messages",
        kind: Kind::Text(is_seen_messages),
        default: || Value::Text("16384".into()),
        about: "most messages that are remembered, about 56 bytes each, 1024 to 1048576: what arrives within seen_ttl should fit",
    },
    Setting {
        key: "pubsub.relay",
        kind: Kind::Text(is_relay),
        default: || Value::Text("off".into()),
        about: "topics that are carried for others though nobody on this device reads them: off, listed (those of relay_topics), or bridge (all that neighbours ask for, at most 256); at most 1 MiB a second",
    },
    Setting {
        key: "pubsub.relay_topics",
        kind: Kind::Texts(is_topic),
        default: || Value::Texts(Vec::new()),
        about: "for relay = listed: topics, or beginnings of them as plant/*",
    },
    Setting {
        key: "pubsub.unsigned",
        kind: Kind::Texts(is_own_topic),
        default: || Value::Texts(Vec::new()),
        about: "topics below /gemba/, or beginnings of them as /gemba/raw/*, whose messages are not signed: anybody in the swarm may send anything there, and the same content twice is one message; the same on every node",
    },
    Setting {
        key: "pubsub.direct",
        kind: Kind::Texts(is_peer_address),
        default: || Value::Texts(Vec::new()),
        about: "addresses with peer ids, as /ip4/192.168.1.20/tcp/4001/p2p/12D3KooW…: peers that are kept connected and get every message of what they read, whoever else is there; two anchors of a site, which set this node in turn",
    },
    Setting {
        key: "names.lifetime",
        kind: Kind::Time(PERIOD, "365d"),
        default: || Value::Text("365d".into()),
        about: "how long a record lives that is published without --lifetime; it is signed anew after half of it while the daemon runs",
    },
    Setting {
        key: "names.ttl",
        kind: Kind::Time(PERIOD, "5m"),
        default: || Value::Text("5m".into()),
        about: "how long others may answer from their memory before they ask again; those that follow a name are told at once",
    },
    Setting {
        key: "names.resolve_timeout",
        kind: Kind::Time(PERIOD, "10s"),
        default: || Value::Text("10s".into()),
        about: "how long a name that is not known is looked for",
    },
    Setting {
        key: "names.reannounce",
        kind: Kind::Time(PERIOD, "10m"),
        default: || Value::Text("10m".into()),
        about: "how often a followed name is said again on its topic unless others did; more than pubsub.seen_ttl",
    },
    Setting {
        key: "names.pull",
        kind: Kind::Time(PERIOD, "5m"),
        default: || Value::Text("5m".into()),
        about: "how often a followed name is compared with two peers, in case a message was lost; notification does not wait for it",
    },
    Setting {
        key: "names.dht_put",
        kind: Kind::Time(PERIOD, "22h"),
        default: || Value::Text("22h".into()),
        about: "how often own names are put into the DHT, whose servers forget them after 48 h",
    },
    Setting {
        key: "names.dht_tend",
        kind: Kind::Time(PERIOD, "12h"),
        default: || Value::Text("12h".into()),
        about: "how often a follower looks whether the DHT still has the name, and puts it if it has not",
    },
    Setting {
        key: "names.push",
        kind: Kind::Bool,
        default: || Value::Bool(true),
        about: "tell names to connected gemba nodes at once, and be told by them",
    },
    Setting {
        key: "names.pubsub",
        kind: Kind::Bool,
        default: || Value::Bool(true),
        about: "tell names on their topics, as Kubo with Ipns.UsePubsub, and read those of names that are followed; needs pubsub.enabled",
    },
    Setting {
        key: "names.dht",
        kind: Kind::Bool,
        default: || Value::Bool(true),
        about: "put names into the DHT and look for them there, as every Kubo does; needs network.dht",
    },
    Setting {
        key: "events.replicate",
        kind: Kind::Bool,
        default: || Value::Bool(true),
        about: "send the events of this node to connected gemba nodes, and keep theirs",
    },
    Setting {
        key: "events.subscribe",
        kind: Kind::Texts(is_pattern),
        default: || {
            Value::Texts(vec![
                "#".into(),
                "$about/#".into(),
                "$dead/#".into(),
                "$consumer/#".into(),
            ])
        },
        about: "streams that are kept here besides those this node writes: + stands for one level, # for all that follow",
    },
    Setting {
        key: "events.max_size",
        kind: Kind::Text(is_bytes),
        default: || Value::Text("8GiB".into()),
        about: "bytes that events may take; appends beyond are refused, in so many words",
    },
    Setting {
        key: "events.keep",
        kind: Kind::Time(PERIOD_OR_OFF, "off"),
        default: || Value::Text("off".into()),
        about: "events older than this go, such as 90d, unless a consumer of this node has not had them; off: all are kept",
    },
    Setting {
        key: "events.compress",
        kind: Kind::Bool,
        default: || Value::Bool(true),
        about: "compress events, on disk and on the wire",
    },
    Setting {
        key: "events.patience",
        kind: Kind::Time(WAIT, "10s"),
        default: || Value::Text("10s".into()),
        about: "how long a peer may take to answer for events before another one is asked",
    },
    Setting {
        key: "events.compare",
        kind: Kind::Time(PERIOD, "1m"),
        default: || Value::Text("1m".into()),
        about: "how often nodes that agreed compare what they have once more",
    },
    Setting {
        key: "log.level",
        kind: Kind::Text(is_level),
        default: || Value::Text("info".into()),
        about: "error, warn, info, debug, trace, off, or a filter such as info,gemba_node=debug",
    },
    Setting {
        key: "log.format",
        kind: Kind::Text(is_format),
        default: || Value::Text("text".into()),
        about: "text or json",
    },
];

impl Config {
    /// File and environment of this process over the defaults. A missing file is an empty one.
    ///
    /// # Errors
    /// [`Code::Usage`]: an unknown name, or a value that cannot be.
    pub fn load(layout: &Layout) -> Result<Self, Fail> {
        let path = layout.config();
        let text = read_file(&path)?;
        let environment = std::env::vars_os().map(|(name, value)| {
            (
                name.to_string_lossy().into_owned(),
                value.to_string_lossy().into_owned(),
            )
        });
        let values = from_file(&text).map_err(|fail| fail.during(path.display()))?;
        let mut config = Self::over_defaults(values, environment)?;
        config.note_force_variable(layout);
        Ok(config)
    }

    /// A file's text and an environment over the defaults.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn resolve(
        text: &str,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, Fail> {
        Self::over_defaults(from_file(text)?, environment)
    }

    fn over_defaults(
        file: Vec<(&'static str, Value)>,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, Fail> {
        let mut values = defaults();
        for (key, value) in file {
            values.insert(key, (value, Origin::File));
        }
        for (name, text) in environment {
            if let Some((key, value)) = from_variable(&name, &text)? {
                values.insert(key, (value, Origin::Environment(name)));
            }
        }
        Ok(Self::of(values))
    }

    /// The setting as a flag gives it.
    ///
    /// # Errors
    /// [`Code::Usage`]: the value cannot be.
    pub fn set_flag(&mut self, key: &str, value: Value) -> Result<(), Fail> {
        let setting = known(key)?;
        check(setting, &value)?;
        self.values.insert(setting.key, (value, Origin::Flag));
        *self = Self::of(std::mem::take(&mut self.values));
        Ok(())
    }

    /// Where the value of `section.key` comes from.
    #[must_use]
    pub fn origin(&self, key: &str) -> Origin {
        self.values
            .get(key)
            .map_or(Origin::Default, |(_, origin)| origin.clone())
    }

    /// Every setting with its value and origin, sorted by name.
    pub fn entries(&self) -> impl Iterator<Item = (&'static str, &Value, &Origin)> {
        self.values
            .iter()
            .map(|(key, (value, origin))| (*key, value, origin))
    }

    /// Shows in the origin that `LIBP2P_FORCE_PNET` decides. A value of it that cannot be understood is reported by the policy.
    fn note_force_variable(&mut self, layout: &Layout) {
        let policy = KeyFile::in_repo(layout.root()).policy();
        if let Ok(force) = policy.force()
            && force.source == ForceSource::Environment
        {
            let origin = Origin::Environment(FORCE_VARIABLE.to_owned());
            self.values.insert(
                "network.force_private",
                (Value::Bool(force.private), origin),
            );
            *self = Self::of(std::mem::take(&mut self.values));
        }
    }

    /// Every value was checked against its setting, so the parses below cannot fail.
    fn of(values: BTreeMap<&'static str, (Value, Origin)>) -> Self {
        let flag = |key: &str| match &values[key].0 {
            Value::Bool(value) => Some(*value),
            _ => None,
        };
        let text = |key: &str| match &values[key].0 {
            Value::Text(value) => value.clone(),
            _ => String::new(),
        };
        let addresses = |key: &str| match &values[key].0 {
            Value::Texts(texts) => texts.iter().filter_map(|text| text.parse().ok()).collect(),
            _ => Vec::new(),
        };
        let texts = |key: &str| match &values[key].0 {
            Value::Texts(texts) => texts.clone(),
            _ => Vec::new(),
        };
        let optional_time = |key: &str| match &values[key].0 {
            Value::Text(text) => period(text).ok(),
            _ => None,
        };
        let time = |key: &str| optional_time(key).expect("every time was checked to be one");
        Self {
            network: Network {
                listen: addresses("network.listen"),
                bootstrap: addresses("network.bootstrap"),
                site: text("network.site"),
                mdns: flag("network.mdns").unwrap_or(true),
                dht: dht(&text("network.dht")).unwrap_or(DhtMode::Server),
                public_network: flag("network.public_network").unwrap_or(false),
                force_private: flag("network.force_private"),
                dials: Dials {
                    connect: time("network.connect_timeout"),
                    nonce: time("network.nonce_timeout"),
                    security: time("network.security_timeout"),
                    incoming: time("network.incoming_timeout"),
                    ping: time("network.ping_interval"),
                    ping_timeout: time("network.ping_timeout"),
                    pause: (
                        time("network.dial_pause"),
                        time("network.dial_pause_longest"),
                    ),
                    foreign_pause: (
                        time("network.foreign_pause"),
                        time("network.foreign_pause_longest"),
                    ),
                    mdns: time("network.mdns_interval"),
                },
            },
            bandwidth: Bandwidth {
                lan: budget(&text("bandwidth.lan")).unwrap_or_default(),
                wan: budget(&text("bandwidth.wan")).unwrap_or_default(),
                metered: budget(&text("bandwidth.metered")).unwrap_or_default(),
                uplink: text("bandwidth.uplink").parse().unwrap_or_default(),
                near: Lan {
                    subnets: texts("bandwidth.lan_subnets")
                        .iter()
                        .filter_map(|text| text.parse().ok())
                        .collect(),
                },
            },
            api: Api {
                address: text("api.address")
                    .parse()
                    .expect("api.address was checked to be a socket address"),
            },
            store: Store {
                verify_on_read: verify(&text("store.verify_on_read")).unwrap_or_default(),
                max_size: size(&text("store.max_size")).ok().flatten(),
                gc: flag("store.gc").unwrap_or(true),
                gc_interval: time("store.gc_interval"),
                scrub: optional_time("store.scrub"),
            },
            exchange: Exchange {
                stall: time("exchange.stall"),
                retry: (time("exchange.retry"), time("exchange.retry_longest")),
                distrust: time("exchange.distrust"),
            },
            pins: Pins {
                compare: optional_time("pins.compare"),
                patience: time("pins.patience"),
                nobody_has_it: time("pins.nobody_has_it"),
                stall: time("pins.stall"),
                busy_stall: time("pins.busy_stall"),
                pause: (time("pins.pause"), time("pins.pause_longest")),
                redraw: time("pins.redraw"),
            },
            reads: Reads {
                nobody_has_it: time("reads.nobody_has_it"),
                silence: time("reads.silence"),
                longest: time("reads.longest"),
            },
            pubsub: Pubsub {
                enabled: flag("pubsub.enabled").unwrap_or(true),
                seen_ttl: time("pubsub.seen_ttl"),
                seen_messages: text("pubsub.seen_messages")
                    .parse()
                    .unwrap_or(SEEN_MESSAGES),
                relay: relay(&text("pubsub.relay"), &texts("pubsub.relay_topics"))
                    .unwrap_or_default(),
                unsigned: texts("pubsub.unsigned"),
                direct: addresses("pubsub.direct"),
            },
            names: Names {
                lifetime: time("names.lifetime"),
                ttl: time("names.ttl"),
                resolve_timeout: time("names.resolve_timeout"),
                reannounce: time("names.reannounce"),
                pull: time("names.pull"),
                dht_put: time("names.dht_put"),
                dht_tend: time("names.dht_tend"),
                push: flag("names.push").unwrap_or(true),
                pubsub: flag("names.pubsub").unwrap_or(true),
                dht: flag("names.dht").unwrap_or(true),
            },
            events: Events {
                replicate: flag("events.replicate").unwrap_or(true),
                subscribe: texts("events.subscribe"),
                max_size: size(&text("events.max_size"))
                    .ok()
                    .flatten()
                    .unwrap_or(EVENTS_SIZE),
                keep: optional_time("events.keep"),
                compress: flag("events.compress").unwrap_or(true),
                patience: time("events.patience"),
                compare: time("events.compare"),
            },
            log: Log {
                level: text("log.level"),
                format: text("log.format"),
            },
            values,
        }
    }
}

/// A time-out or an interval among the settings.
#[derive(Clone, Copy, Debug)]
pub struct TimeSetting {
    /// As `pins.stall`.
    pub key: &'static str,
    /// With its unit.
    pub default: &'static str,
    /// Whether it may be `off`.
    pub may_be_off: bool,
    /// What it is.
    pub about: &'static str,
}

/// All of them, in the order of the file that `init` writes.
pub fn times() -> impl Iterator<Item = TimeSetting> {
    SETTINGS.iter().filter_map(|setting| match setting.kind {
        Kind::Time(span, default) => Some(TimeSetting {
            key: setting.key,
            default,
            may_be_off: span.off,
            about: setting.about,
        }),
        _ => None,
    })
}

/// The text that `init` writes: every setting with its default, as comments.
#[must_use]
pub fn initial_text(public_network: bool) -> String {
    let mut text = String::from(
        "# gemba's settings. A line such as `# mdns = true` shows a default: to change it, remove the `#`.\n",
    );
    let mut section = "";
    for setting in SETTINGS {
        let (of, name) = split(setting.key);
        if of != section {
            section = of;
            text.push_str(&format!("\n[{section}]\n"));
        }
        text.push_str(&format!("# {}\n", setting.about));
        match (setting.default)().to_toml() {
            _ if setting.key == "network.public_network" && public_network => {
                text.push_str(&format!("{name} = true\n"));
            }
            Some(value) => text.push_str(&format!("# {name} = {}\n", value.to_string().trim())),
            None => text.push_str(&format!(
                "# not set by default: neither `{name} = true` nor `{name} = false`\n"
            )),
        }
    }
    text
}

/// Changes one setting in the file and leaves everything else in it as it is, comments too. Several `words` make a list.
/// The daemon reads it at its next start.
///
/// # Errors
/// [`Code::Usage`]: the name or the value cannot be; the file is untouched then.
pub fn set_in_file(layout: &Layout, key: &str, words: &[String]) -> Result<(), Fail> {
    let setting = known(key)?;
    let value = from_words(setting, words)?;
    edit_file(layout, setting, Some(value))
}

/// Takes a setting out of the file, so that its default counts again.
///
/// # Errors
/// As [`set_in_file`].
pub fn unset_in_file(layout: &Layout, key: &str) -> Result<(), Fail> {
    edit_file(layout, known(key)?, None)
}

fn edit_file(layout: &Layout, setting: &Setting, value: Option<Value>) -> Result<(), Fail> {
    let path = layout.config();
    let in_file = |fail: Fail| fail.during(path.display());
    let mut document = parse(&read_file(&path)?).map_err(in_file)?;
    let (section, name) = split(setting.key);
    let table = document.entry(section).or_insert_with(toml_edit::table);
    let Some(table) = table.as_table_like_mut() else {
        return Err(Fail::new(
            Code::Usage,
            format!("`{section}` in {} is not a section", path.display()),
        ));
    };
    match value.and_then(|value| value.to_toml()) {
        Some(value) => drop(table.insert(name, Item::Value(value))),
        None => drop(table.remove(name)),
    }
    let text = document.to_string();
    // What else is wrong in it would keep the daemon from starting all the same.
    from_file(&text).map_err(in_file)?;
    files::replace(&path, text.as_bytes())
}

/// The file's text; of a missing one, none.
fn read_file(path: &Path) -> Result<String, Fail> {
    match files::read_limited(path, MAX_FILE_BYTES) {
        Ok(bytes) => String::from_utf8(bytes).map_err(|_| {
            Fail::new(Code::Usage, format!("{} is not UTF-8", path.display()))
                .hint("save it as UTF-8, or move it away: every setting has a default")
        }),
        Err(fail) if fail.code == Code::NotFound => Ok(String::new()),
        Err(fail) => Err(fail),
    }
}

/// Checks a text from somewhere else as if it were the value of a setting.
///
/// # Errors
/// [`Code::Usage`] with what is allowed.
pub fn check_text(key: &str, text: &str) -> Result<(), Fail> {
    check(known(key)?, &Value::Text(text.to_owned()))
}

fn defaults() -> BTreeMap<&'static str, (Value, Origin)> {
    SETTINGS
        .iter()
        .map(|setting| (setting.key, ((setting.default)(), Origin::Default)))
        .collect()
}

fn parse(text: &str) -> Result<DocumentMut, Fail> {
    text.parse::<DocumentMut>().map_err(|e| {
        Fail::new(Code::Usage, e.to_string().trim_end())
            .hint("correct that line, or move the file away: every setting has a default")
    })
}

fn from_file(text: &str) -> Result<Vec<(&'static str, Value)>, Fail> {
    let document = parse(text)?;
    let mut found = Vec::new();
    for (section, item) in document.iter() {
        if !SETTINGS
            .iter()
            .any(|setting| split(setting.key).0 == section)
        {
            return Err(unknown(
                section,
                SETTINGS.iter().map(|setting| split(setting.key).0),
            ));
        }
        let Some(table) = item.as_table_like() else {
            return Err(Fail::new(
                Code::Usage,
                format!("`{section}` must be a section: [{section}]"),
            ));
        };
        for (name, item) in table.iter() {
            let setting = known(&format!("{section}.{name}"))?;
            let value =
                from_toml(item).ok_or_else(|| wrong_kind(setting, item.to_string().trim()))?;
            check(setting, &value)?;
            found.push((setting.key, value));
        }
    }
    Ok(found)
}

fn from_toml(item: &Item) -> Option<Value> {
    match item.as_value()? {
        Toml::Boolean(b) => Some(Value::Bool(*b.value())),
        Toml::String(text) => Some(Value::Text(text.value().clone())),
        Toml::Array(array) => array
            .iter()
            .map(|item| item.as_str().map(str::to_owned))
            .collect::<Option<_>>()
            .map(Value::Texts),
        _ => None,
    }
}

/// `GEMBA_NETWORK__SITE=hall-1`. A list is words apart by commas or blanks.
fn from_variable(name: &str, text: &str) -> Result<Option<(&'static str, Value)>, Fail> {
    let Some((section, key)) = name
        .strip_prefix(ENVIRONMENT_PREFIX)
        .and_then(|rest| rest.split_once("__"))
    else {
        return Ok(None);
    };
    let key = format!(
        "{}.{}",
        section.to_ascii_lowercase(),
        key.to_ascii_lowercase()
    );
    let during = |fail: Fail| fail.during(format!("environment variable {name}"));
    let setting = known(&key).map_err(during)?;
    let words: Vec<String> = match setting.kind {
        Kind::Texts(_) => text
            .split([',', ' '])
            .filter(|word| !word.is_empty())
            .map(str::to_owned)
            .collect(),
        Kind::Bool | Kind::Text(_) | Kind::Time(..) => vec![text.to_owned()],
    };
    Ok(Some((
        setting.key,
        from_words(setting, &words).map_err(during)?,
    )))
}

fn from_words(setting: &Setting, words: &[String]) -> Result<Value, Fail> {
    let value = match (setting.kind, words) {
        (Kind::Texts(_), words) => Value::Texts(words.to_vec()),
        (Kind::Text(_) | Kind::Time(..), [word]) => Value::Text(word.clone()),
        (Kind::Bool, [word]) => match word.trim().to_ascii_lowercase().as_str() {
            "1" | "true" | "yes" | "on" => Value::Bool(true),
            "0" | "false" | "no" | "off" => Value::Bool(false),
            _ => return Err(wrong_kind(setting, word)),
        },
        _ => return Err(wrong_kind(setting, &words.join(" "))),
    };
    check(setting, &value)?;
    Ok(value)
}

fn check(setting: &Setting, value: &Value) -> Result<(), Fail> {
    let said = |text: &str, cause: String| {
        Fail::new(Code::Usage, format!("{} = {text:?}: {cause}", setting.key))
            .hint(format!("{} is: {}", setting.key, setting.about))
    };
    match (setting.kind, value) {
        (Kind::Bool, Value::Bool(_)) => Ok(()),
        (Kind::Text(test), Value::Text(text)) => test(text).map_err(|cause| said(text, cause)),
        (Kind::Time(span, _), Value::Text(text)) => {
            span.check(text).map_err(|cause| said(text, cause))
        }
        (Kind::Texts(test), Value::Texts(texts)) => texts
            .iter()
            .try_for_each(|text| test(text).map_err(|cause| said(text, cause))),
        _ => Err(wrong_kind(setting, &value.to_string())),
    }
}

fn wrong_kind(setting: &Setting, given: &str) -> Fail {
    let wanted = match setting.kind {
        Kind::Bool => "true or false",
        Kind::Text(_) => "one text",
        Kind::Time(..) => "a time as \"10s\"",
        Kind::Texts(_) => "a list of texts",
    };
    let cause = if given.is_empty() {
        format!("{} has no value: {wanted} is wanted", setting.key)
    } else {
        format!("{} = {given}: {wanted} is wanted", setting.key)
    };
    Fail::new(Code::Usage, cause).hint(format!(
        "{} is: {}; `gemba config unset` brings a default back",
        setting.key, setting.about
    ))
}

/// The failure for a name that is no setting.
pub fn unknown_key(given: &str) -> Fail {
    unknown(given, SETTINGS.iter().map(|setting| setting.key))
}

fn known(key: &str) -> Result<&'static Setting, Fail> {
    SETTINGS
        .iter()
        .find(|setting| setting.key == key)
        .ok_or_else(|| unknown_key(key))
}

fn unknown(given: &str, known: impl Iterator<Item = &'static str>) -> Fail {
    let nearest = known
        .map(|key| (edits(given, key), key))
        .min()
        .filter(|(distance, _)| *distance <= MAX_EDITS);
    let fail = Fail::new(Code::Usage, format!("unknown setting `{given}`"));
    match nearest {
        Some((_, key)) => fail.hint(format!("did you mean `{key}`?")),
        None => fail.hint("`gemba config show` lists all settings"),
    }
}

/// Optimal string alignment distance: insertions, deletions, changes, swaps of neighbours.
fn edits(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().take(64).collect(), b.chars().collect());
    let mut rows: Vec<Vec<usize>> = vec![(0..=b.len()).collect()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let changed = usize::from(a[i - 1] != b[j - 1]);
            let mut best = (rows[i - 1][j] + 1)
                .min(row[j - 1] + 1)
                .min(rows[i - 1][j - 1] + changed);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            row.push(best);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

fn split(key: &'static str) -> (&'static str, &'static str) {
    key.split_once('.').unwrap_or((key, ""))
}

fn is_multiaddr(text: &str) -> Result<(), String> {
    text.parse::<Multiaddr>()
        .map(drop)
        .map_err(|e| format!("not a multiaddr ({e}); one looks like /ip4/192.0.2.7/tcp/4001"))
}

fn is_peer_address(text: &str) -> Result<(), String> {
    let address: Multiaddr = text.parse().map_err(|e| format!("no multiaddr: {e}"))?;
    match address.iter().last() {
        Some(multiaddr::Protocol::P2p(_)) => Ok(()),
        _ => Err("an address that ends with /p2p/ and the peer's id is needed".to_owned()),
    }
}

fn dht(text: &str) -> Option<DhtMode> {
    match text {
        "server" => Some(DhtMode::Server),
        "client" => Some(DhtMode::Client),
        "off" => Some(DhtMode::Off),
        _ => None,
    }
}

fn is_dht(text: &str) -> Result<(), String> {
    dht(text)
        .map(|_| ())
        .ok_or_else(|| "one of server, client, off".into())
}

fn is_budget(text: &str) -> Result<(), String> {
    budget(text).map(drop)
}

fn is_uplink(text: &str) -> Result<(), String> {
    text.parse::<Uplink>().map(drop)
}

fn is_subnet(text: &str) -> Result<(), String> {
    text.parse::<Subnet>().map(drop)
}

fn is_site(text: &str) -> Result<(), String> {
    let fits = (1..=64).contains(&text.len()) && text.chars().all(|c| c.is_ascii_graphic());
    if fits {
        Ok(())
    } else {
        Err("a site's label has 1 to 64 printable ASCII characters".into())
    }
}

fn is_loopback_socket(text: &str) -> Result<(), String> {
    match text.parse::<SocketAddr>() {
        Ok(address) if address.ip().is_loopback() => Ok(()),
        Ok(_) => Err("only loopback addresses are served, as 127.0.0.1 or [::1]".into()),
        Err(_) => Err("not an address with a port, such as 127.0.0.1:4774".into()),
    }
}

/// A level, or a filter of them. A word that is none would be taken for the name of a part of the program, and hide all others.
fn is_level(text: &str) -> Result<(), String> {
    let is_word = |word: &str| LEVELS.iter().any(|level| word.eq_ignore_ascii_case(level));
    if text.contains(char::is_whitespace) {
        return Err("no blanks: the parts of a filter are put together with commas alone".into());
    }
    for directive in text.split(',') {
        let level = directive
            .rsplit_once('=')
            .map_or(directive, |(_, level)| level);
        if !is_word(level) {
            return Err(format!(
                "`{directive}` is no level: {} are, and PART=LEVEL for a part of the program, as in info,gemba_node=debug",
                LEVELS.join(", ")
            ));
        }
    }
    text.parse::<tracing_subscriber::EnvFilter>()
        .map(drop)
        .map_err(|e| e.to_string())
}

fn verify(text: &str) -> Option<gemba_store::VerifyOnRead> {
    use gemba_store::VerifyOnRead as Verify;
    Some(match text {
        "crc" => Verify::Crc,
        "hash" => Verify::Hash,
        "off" => Verify::Off,
        _ => return None,
    })
}

fn is_verify(text: &str) -> Result<(), String> {
    verify(text)
        .map(drop)
        .ok_or_else(|| "crc, hash or off is wanted".into())
}

/// `20GiB`, `500MB`, or bytes; `auto` is none.
fn size(text: &str) -> Result<Option<u64>, String> {
    if text == "auto" {
        return Ok(None);
    }
    let wrong = || "a size such as 20GiB, 500MB or 1000000000 is wanted, or auto".to_owned();
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor: u64 = match unit.trim() {
        "" | "B" => 1,
        "kB" | "KB" => 1000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "TB" => 1_000_000_000_000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        _ => return Err(wrong()),
    };
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let bytes = number.checked_mul(factor).ok_or_else(wrong)?;
    if bytes < MIN_SIZE {
        return Err("at least 16MiB: the store needs room to work".to_owned());
    }
    Ok(Some(bytes))
}

fn is_size(text: &str) -> Result<(), String> {
    size(text).map(drop)
}

fn is_seen_messages(text: &str) -> Result<(), String> {
    match text.parse() {
        Ok(1024..=1_048_576_usize) => Ok(()),
        _ => Err("a number between 1024 and 1048576 is wanted".to_owned()),
    }
}

fn relay(text: &str, topics: &[String]) -> Option<gemba_gossip::RelayPolicy> {
    use gemba_gossip::{Pattern, RelayPolicy};
    Some(match text {
        "off" => RelayPolicy::Off,
        "listed" => RelayPolicy::Listed(topics.iter().map(|topic| Pattern::new(topic)).collect()),
        "bridge" => RelayPolicy::Bridge {
            max_topics: BRIDGED_TOPICS,
        },
        _ => return None,
    })
}

fn is_relay(text: &str) -> Result<(), String> {
    relay(text, &[])
        .map(drop)
        .ok_or_else(|| "off, listed or bridge is wanted".into())
}

fn is_topic(text: &str) -> Result<(), String> {
    gemba_gossip::Topic::new(text)
        .map(drop)
        .map_err(|e| e.to_string())
}

/// A pattern of our own topics. `/gemba/*` is one, `/gem*` would be others' topics, too.
fn is_own_topic(text: &str) -> Result<(), String> {
    is_topic(text)?;
    if text.starts_with(gemba_gossip::OWN_PREFIX) {
        Ok(())
    } else {
        Err(gemba_gossip::SubscribeError::UnsignedForeign.to_string())
    }
}

fn is_pattern(text: &str) -> Result<(), String> {
    gemba_log::Pattern::new(text)
        .map(drop)
        .map_err(|e| e.to_string())
}

/// A size that is a number.
fn is_bytes(text: &str) -> Result<(), String> {
    match size(text)? {
        Some(_) => Ok(()),
        None => Err("a size such as 8GiB is wanted".to_owned()),
    }
}

fn is_format(text: &str) -> Result<(), String> {
    if matches!(text, "text" | "json") {
        Ok(())
    } else {
        Err("text or json is wanted".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(text: &str, environment: &[(&str, &str)]) -> Result<Config, Fail> {
        Config::resolve(
            text,
            environment
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned())),
        )
    }

    #[test]
    fn s0_55_each_source_overrides_the_weaker_one_and_is_named() {
        let config = resolve("", &[]).unwrap();
        assert_eq!(
            (config.network.site.as_str(), config.origin("network.site")),
            ("auto", Origin::Default)
        );
        let file = "[network]\nsite = \"hall-1\"\nlisten = [\"/ip4/127.0.0.1/tcp/0\"]\n";
        let config = resolve(file, &[]).unwrap();
        assert_eq!(
            (config.network.site.as_str(), config.origin("network.site")),
            ("hall-1", Origin::File)
        );
        assert_eq!(config.network.listen.len(), 1);
        let mut config = resolve(
            file,
            &[("GEMBA_NETWORK__SITE", "hall-2"), ("GEMBA_PATH", "/x")],
        )
        .unwrap();
        assert_eq!(config.network.site, "hall-2");
        assert_eq!(
            config.origin("network.site"),
            Origin::Environment("GEMBA_NETWORK__SITE".into())
        );
        config
            .set_flag("network.site", Value::Text("hall-3".into()))
            .unwrap();
        assert_eq!(
            (config.network.site.as_str(), config.origin("network.site")),
            ("hall-3", Origin::Flag)
        );
    }

    #[test]
    fn unknown_names_are_refused_with_the_nearest_known_one() {
        for (text, nearest) in [
            ("[network]\nlisen = []", "network.listen"),
            ("[netwrok]\nlisten = []", "network"),
            ("[network]\nbootstraps = []", "network.bootstrap"),
            ("[pubsub]\nsen_ttl = \"1m\"", "pubsub.seen_ttl"),
            ("[api]\nadress = \"127.0.0.1:0\"", "api.address"),
        ] {
            let fail = resolve(text, &[]).unwrap_err();
            assert_eq!(
                (fail.code, fail.hint),
                (Code::Usage, format!("did you mean `{nearest}`?")),
                "{text}"
            );
        }
        let fail = resolve("", &[("GEMBA_NETWORK__MNDS", "1")]).unwrap_err();
        assert!(
            fail.hint.contains("network.mdns") && fail.cause.contains("GEMBA_NETWORK__MNDS"),
            "{fail}"
        );
        assert!(resolve("", &[("GEMBALA__X", "1"), ("OTHER__X", "1")]).is_ok());
    }

    #[test]
    fn values_that_cannot_be_are_refused_with_their_name() {
        for (text, said) in [
            ("[network]\nlisten = \"x\"", "list"),
            ("[network]\ndht = \"auto\"", "server, client, off"),
            ("[network]\nlisten = [\"x\"]", "multiaddr"),
            ("[network]\nmdns = \"yes\"", "true or false"),
            ("[bandwidth]\nwan = \"2 Mbit\"", "2 Mbit/s"),
            ("[bandwidth]\nlan = \"64 kbit/s\"", "128 kbit/s"),
            ("[bandwidth]\nuplink = \"lte\"", "metered"),
            ("[bandwidth]\nlan_subnets = [\"10.0.0.0\"]", "10.1.0.0/16"),
            ("[api]\naddress = \"0.0.0.0:1\"", "loopback"),
            ("[api]\naddress = \"127.0.0.1\"", "port"),
            ("[log]\nformat = \"xml\"", "json"),
            ("[log]\nlevel = \"trace2\"", "trace, debug, info"),
            ("[log]\nlevel = \"info,gemba_node\"", "gemba_node"),
            ("[log]\nlevel = \"gemba_node=loud\"", "loud"),
            ("[log]\nlevel = \"\"", "no level"),
            ("[network]\nsite = \"\"", "64"),
            ("[store]\nmax_size = \"1MiB\"", "16MiB"),
            ("[store]\nmax_size = \"20 GiBs\"", "20GiB"),
            ("[store]\nmax_size = \"99999999999TiB\"", "20GiB"),
            ("[store]\ngc_interval = \"0s\"", "1s"),
            ("[store]\ngc_interval = \"off\"", "30d"),
            ("[store]\nscrub = \"never\"", "off"),
            ("[pubsub]\nenabled = \"yes\"", "true or false"),
            ("[pubsub]\nseen_ttl = \"2h\"", "1h"),
            ("[pubsub]\nseen_messages = \"12\"", "1024"),
            ("[pubsub]\nrelay = \"all\"", "bridge"),
            ("[pubsub]\nrelay_topics = [\"\"]", "empty"),
            ("[pubsub]\nunsigned = [\"plant/raw\"]", "/gemba/"),
            ("[pubsub]\ndirect = [\"/ip4/10.0.0.1/tcp/4001\"]", "/p2p/"),
            ("network = 1", "section"),
            ("[network", ""),
        ] {
            let fail = resolve(text, &[]).unwrap_err();
            assert!(
                fail.code == Code::Usage && fail.cause.contains(said),
                "{text}: {fail}"
            );
        }
    }

    #[test]
    fn each_route_of_names_has_a_switch_and_the_dht_three_words() {
        let defaults = resolve("", &[]).unwrap();
        let names = &defaults.names;
        assert!(names.push && names.pubsub && names.dht);
        assert_eq!(defaults.network.dht, DhtMode::Server);
        for (word, mode) in [
            ("server", DhtMode::Server),
            ("client", DhtMode::Client),
            ("off", DhtMode::Off),
        ] {
            let config = resolve(&format!("[network]\ndht = \"{word}\""), &[]).unwrap();
            assert_eq!(config.network.dht, mode);
        }
        let config = resolve("[names]\npush = false\npubsub = false\ndht = false", &[]).unwrap();
        assert!(!config.names.push && !config.names.pubsub && !config.names.dht);
    }

    #[test]
    fn levels_and_filters_are_taken() {
        for level in [
            "error",
            "TRACE",
            "off",
            "info,gemba_node=debug",
            "warn,libp2p_swarm=off",
            "gemba_exchange::core=trace",
        ] {
            let text = format!("[log]\nlevel = \"{level}\"");
            assert_eq!(resolve(&text, &[]).unwrap().log.level, level);
        }
    }

    #[test]
    fn the_initial_file_changes_nothing_but_what_was_asked_for() {
        let config = resolve(&initial_text(false), &[]).unwrap();
        assert!(
            config
                .entries()
                .all(|(_, _, origin)| *origin == Origin::Default)
        );
        let config = resolve(&initial_text(true), &[]).unwrap();
        assert!(config.network.public_network);
        // Every line that looks like a setting is the default of one: without its `#` nothing changes.
        let uncommented: String = initial_text(false)
            .lines()
            .map(|line| match line.strip_prefix("# ") {
                Some(setting)
                    if setting
                        .split(" = ")
                        .next()
                        .is_some_and(|name| SETTINGS.iter().any(|s| split(s.key).1 == name)) =>
                {
                    format!("{setting}\n")
                }
                _ => format!("{line}\n"),
            })
            .collect();
        let all = resolve(&uncommented, &[]).unwrap();
        for (key, value, origin) in all.entries() {
            assert_eq!(*value, (known(key).unwrap().default)(), "{key}");
            assert_eq!(
                *origin == Origin::File,
                key != "network.force_private",
                "{key}"
            );
        }
    }

    #[test]
    fn setting_a_value_keeps_comments_and_order() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path());
        std::fs::write(
            layout.config(),
            "# mine\n[network]\nmdns = true # because\n",
        )
        .unwrap();
        set_in_file(&layout, "network.site", &["hall-1".into()]).unwrap();
        set_in_file(&layout, "log.level", &["debug".into()]).unwrap();
        set_in_file(
            &layout,
            "network.bootstrap",
            &["/ip4/192.0.2.1/tcp/1".into(), "/ip4/192.0.2.2/tcp/1".into()],
        )
        .unwrap();
        let text = std::fs::read_to_string(layout.config()).unwrap();
        assert!(
            text.starts_with("# mine\n[network]\nmdns = true # because\n"),
            "{text}"
        );
        let config = resolve(&text, &[]).unwrap();
        assert_eq!(
            (
                config.network.bootstrap.len(),
                config.network.site.as_str(),
                config.log.level.as_str()
            ),
            (2, "hall-1", "debug")
        );
        assert_eq!(
            set_in_file(&layout, "network.mdns", &["maybe".into()])
                .unwrap_err()
                .code,
            Code::Usage
        );
        assert_eq!(std::fs::read_to_string(layout.config()).unwrap(), text);
    }
}
