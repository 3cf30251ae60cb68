//! What is simulated: who there is, how they are joined, what they publish, what breaks.

use std::time::Duration;

use super::Planted;
use crate::config::{Config, TopicOptions};

/// A swarm and its troubles. Take one of [`super::SCENARIOS`] and change it, or begin with [`Plan::new`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Plan {
    /// What it is called in the report.
    pub name: String,
    /// Decides everything that is left to chance: one seed is one run.
    pub seed: u64,
    /// Nodes that run the core, numbered from 0.
    pub honest: usize,
    /// Nodes that do not, and what they do; numbered behind the honest ones.
    pub hostile: Vec<(Manner, usize)>,
    /// How honest nodes are joined.
    pub topology: Topology,
    /// Honest nodes that each hostile one dials.
    pub hostile_dials: usize,
    /// The first so many honest nodes are joined to all honest ones, which hold them for direct peers (threat G7).
    pub anchors: usize,
    /// Every connection.
    pub links: Links,
    /// Every honest node.
    pub pace: Pace,
    /// The last honest node is so many times slower. 1: it is not.
    pub slow: u32,
    /// Configuration of every honest node.
    pub config: Config,
    /// The topics, published on in turns.
    pub topics: Vec<(String, TopicOptions)>,
    /// Who subscribes.
    pub readers: Readers,
    /// What is published.
    pub publish: Publish,
    /// Before the first message.
    pub warmup: Duration,
    /// After the last message.
    pub quiet: Duration,
    /// A message counts as delivered in time within this.
    pub in_time: Duration,
    /// Nodes that leave and come back.
    pub churn: Option<Churn>,
    /// A cut through the swarm.
    pub partition: Option<Partition>,
    /// Streams that break.
    pub breaks: Option<Breaks>,
    /// Honest nodes that ask for peers ([`crate::Event::WantPeers`]) find one.
    pub discovery: bool,
    /// Whether the run is repeated with a configuration that floods, to compare the bytes.
    pub compare_with_flooding: bool,
    /// Topics take messages of honest nodes only ([`TopicOptions::authors`]).
    pub allow_list: bool,
    #[doc(hidden)]
    pub planted: Option<Planted>,
}

/// How honest nodes are joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Topology {
    /// Everybody with everybody.
    Full,
    /// One behind the other.
    Line,
    /// Each dials so many others, chosen at random among all nodes, hostile ones included: nobody sees whom they are.
    Random {
        /// How many.
        dials: usize,
    },
}

/// What a node that runs no core does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Manner {
    /// Subscribes, wants to be in meshes, sends nothing on.
    Silent,
    /// Advertises hundreds of ids that do not exist.
    Advertiser,
    /// Advertises real ids, also those that come next, and sends nothing.
    PromiseBreaker,
    /// Sends forged messages under names and numbers of honest authors, the next ones among them.
    Forger,
    /// Sends GRAFT and PRUNE without end.
    Grafter,
    /// Sends what it hears in other forms, and with other bytes under the same id.
    Recoder,
    /// Sends what it hears again and again, after half to twice the time-to-live.
    Echo,
    /// Publishes properly signed messages that nobody wants, a hundred a second.
    Spammer,
}

/// What connections are like. Both directions are alike.
#[derive(Clone, Copy, Debug)]
pub struct Links {
    /// One way: between these, another on each link.
    pub latency: (Duration, Duration),
    /// Packets of 1,448 bytes that are lost, of a thousand. A lost one is sent again as TCP does it, and what is behind it waits.
    pub loss: u32,
    /// Bytes that a sender may have on the way and unread at the receiver before its writes wait.
    pub window: usize,
}

/// How fast a node is.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// To read one RPC and look up its messages.
    pub read: Duration,
    /// To check one signature.
    pub check: Duration,
    /// Bytes a second that it sends over all its connections together; 0 is no limit.
    pub sends: u64,
}

/// Who subscribes to the topics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readers {
    /// All honest nodes.
    All,
    /// The first and the last honest node.
    Ends,
}

/// What honest nodes publish.
#[derive(Clone, Copy, Debug)]
pub struct Publish {
    /// Messages, all nodes together.
    pub messages: u32,
    /// One after each of these.
    pub every: Duration,
    /// Bytes of each, 8 at least.
    pub bytes: usize,
}

/// Nodes that leave and come back. Node 0 stays.
#[derive(Clone, Copy, Debug)]
pub struct Churn {
    /// One leaves after each of these.
    pub every: Duration,
    /// For how long: between these.
    pub away: (Duration, Duration),
    /// How.
    pub how: Leave,
}

/// How a node leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leave {
    /// Its connections end, and it goes on.
    Disconnect,
    /// Its process ends and another begins, with what was durable.
    Restart,
    /// Its power goes: nobody is told, and another process begins later.
    PowerCut,
}

/// A cut between the honest nodes: nothing passes between the first and the second part, and nobody is told.
#[derive(Clone, Copy, Debug)]
pub struct Partition {
    /// After the first message.
    pub after: Duration,
    /// For how long.
    pub lasts: Duration,
    /// Share of the nodes in the first part, in percent.
    pub percent: usize,
}

/// Streams between honest nodes that break, one each time, at random.
#[derive(Clone, Copy, Debug)]
pub struct Breaks {
    /// How many.
    pub count: u32,
    /// One after each of these.
    pub every: Duration,
}

/// How a stream breaks. [`Breaks`] takes them in turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Break {
    /// The reader's handler lost it and said nothing: writes go nowhere, the connection lives.
    Deaf,
    /// It was reset, and the writer is told.
    Reset,
    /// Nothing passes on the whole connection any more in this direction, and nobody is told.
    HalfOpen,
    /// Nothing passes in either direction.
    Dead,
    /// The connection ends.
    Closed,
}

impl Break {
    pub(super) const ALL: [Self; 5] = [
        Self::Deaf,
        Self::Reset,
        Self::HalfOpen,
        Self::Dead,
        Self::Closed,
    ];
}

const MS: Duration = Duration::from_millis(1);

impl Plan {
    /// Honest nodes in full mesh on a good network, which publish a hundred messages.
    #[must_use]
    pub fn new(name: &str, honest: usize) -> Self {
        Self {
            name: name.into(),
            seed: 1,
            honest,
            hostile: Vec::new(),
            topology: Topology::Full,
            hostile_dials: 10,
            anchors: 0,
            links: Links {
                latency: (2 * MS, 20 * MS),
                loss: 0,
                window: 256 * 1024,
            },
            pace: Pace {
                read: Duration::ZERO,
                check: MS / 10,
                sends: 0,
            },
            slow: 1,
            config: Config::default(),
            topics: vec![("t".into(), TopicOptions::default())],
            readers: Readers::All,
            publish: Publish {
                messages: 100,
                every: 50 * MS,
                bytes: 200,
            },
            warmup: 5000 * MS,
            quiet: 12_000 * MS,
            in_time: 5000 * MS,
            churn: None,
            partition: None,
            breaks: None,
            discovery: true,
            compare_with_flooding: false,
            allow_list: false,
            planted: None,
        }
    }

    /// Nodes of all kinds.
    #[must_use]
    pub fn peers(&self) -> usize {
        self.honest + self.hostile.iter().map(|(_, count)| count).sum::<usize>()
    }

    /// Changes the number of nodes, the shares of each kind stay.
    pub fn set_peers(&mut self, peers: usize) {
        let before = self.peers().max(1);
        let share = |count: usize| (count * peers).div_ceil(before);
        for (_, count) in &mut self.hostile {
            *count = share(*count);
        }
        let hostile: usize = self.hostile.iter().map(|(_, count)| count).sum();
        self.honest = peers.saturating_sub(hostile).max(2);
        self.anchors = self.anchors.min(self.honest);
    }
}
