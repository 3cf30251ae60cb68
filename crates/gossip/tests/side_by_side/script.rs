//! Scripts, and the normal form of what is answered: per step and peer, how often each word was said. Order within an RPC, and how words are
//! spread over RPCs, do not matter.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use gemba_gossip::wire::Version;
use libp2p_identity::Keypair;
use prost::Message as _;

use crate::rig::raw::signed;
use crate::rig::schema;

/// Topics by number.
pub const TOPICS: [&str; 3] = ["line-1/alarms", "line-1/values", "line-9/alarms"];
pub const ALARMS: usize = 0;
pub const VALUES: usize = 1;
/// Not read by the node when a script begins.
pub const FOREIGN: usize = 2;
/// Of the messages that tell when an answer is complete. Read by the node, by no peer.
pub const FENCE: &str = "fence";
/// Their numbers are above this one, those of other messages below.
pub const FENCES: u64 = 100;

/// Back-offs of both engines: longer than any script takes, so that none ends while it runs.
pub const PRUNED: u64 = 3600;
pub const LEFT: u64 = 1800;

/// Payload that is worth an IDONTWANT to both engines.
const LARGE: usize = 2000;

/// Who signs: the two peers of the script, and somebody who is not connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Who {
    A,
    B,
    C,
}

/// The peers that are connected.
pub const PEERS: [Who; 2] = [Who::A, Who::B];

impl Who {
    pub fn key(self) -> Keypair {
        Keypair::ed25519_from_bytes([10 + self as u8; 32]).unwrap()
    }
}

/// A message of the script.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Letter {
    pub author: Who,
    pub topic: usize,
    pub large: bool,
}

/// An id as the script names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Id {
    /// Of the letter with this number.
    Of(usize),
    /// Of no message.
    Unknown(u32),
    /// One of many of no message, short, so that thousands fit into an RPC. In answers they are all number 0: which of too many are asked
    /// for is left to chance.
    Bulk(u32),
    Empty,
    /// Longer than ids are.
    Long,
    /// Not of the script.
    Strange,
}

/// A part of an RPC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    Subscribe(usize),
    Unsubscribe(usize),
    Graft(usize),
    Prune(usize, Option<u64>),
    IHave(usize, Vec<Id>),
    IWant(Vec<Id>),
    IDontWant(Vec<Id>),
    Send(usize),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A peer writes one RPC.
    Rpc(Who, Vec<Act>),
    /// The node begins to read a topic, or ends.
    Read(usize),
    Leave(usize),
    /// Until the peer is told that, as an answer to the step before or later.
    Await(Who, Word),
}

/// How both engines are set up.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    pub version: Version,
    /// Sizes of the mesh: low, wanted, high.
    pub degrees: (usize, usize, usize),
    /// None is never: housekeeping does not disturb.
    pub heartbeat: Option<Duration>,
    /// Whether A is a direct peer.
    pub direct: bool,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            version: Version::V1_2,
            degrees: (5, 6, 12),
            heartbeat: None,
            direct: false,
        }
    }
}

#[derive(Clone, Debug, Default)]
pub struct Script {
    pub setup: Setup,
    pub letters: Vec<Letter>,
    pub steps: Vec<Step>,
}

/// What a peer is told, and, as the last two, how things are then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Word {
    Subscribed(usize),
    Unsubscribed(usize),
    Graft(usize),
    Prune(usize, Option<u64>),
    IHave(usize, Id),
    IWant(Id),
    IDontWant(Id),
    Message(Id),
    /// A topic that is not of the script.
    Strange,
    /// The peer is in the mesh.
    Mesh(usize),
}

/// The answers to one step: how often each peer was told each word.
pub type Seen = BTreeMap<(Who, Word), usize>;

/// Where the engines do not say the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Difference {
    /// 0 is the greeting, 1 the first step.
    pub step: usize,
    pub peer: Who,
    pub word: Word,
    pub ours: usize,
    pub stock: usize,
}

pub fn differences(ours: &[Seen], stock: &[Seen]) -> Vec<Difference> {
    assert_eq!(ours.len(), stock.len());
    let mut all = Vec::new();
    for (step, (ours, stock)) in ours.iter().zip(stock).enumerate() {
        let keys: BTreeSet<_> = ours.keys().chain(stock.keys()).copied().collect();
        for (peer, word) in keys {
            let count = |seen: &Seen| seen.get(&(peer, word)).copied().unwrap_or(0);
            let (ours, stock) = (count(ours), count(stock));
            if ours != stock {
                all.push(Difference {
                    step,
                    peer,
                    word,
                    ours,
                    stock,
                });
            }
        }
    }
    all
}

impl Script {
    pub fn new(steps: impl Into<Vec<Step>>) -> Self {
        Self {
            steps: steps.into(),
            ..Self::default()
        }
    }

    /// A message that the script may send and name.
    #[must_use]
    pub fn letter(mut self, author: Who, topic: usize, large: bool) -> Self {
        self.letters.push(Letter {
            author,
            topic,
            large,
        });
        self
    }

    #[must_use]
    pub fn with(mut self, setup: impl FnOnce(&mut Setup)) -> Self {
        setup(&mut self.setup);
        self
    }

    fn id_of(&self, letter: usize) -> Vec<u8> {
        let author = self.letters[letter].author.key().public().to_peer_id();
        [&author.to_bytes()[..], &number(letter).to_be_bytes()].concat()
    }

    fn id(&self, id: Id) -> Vec<u8> {
        match id {
            Id::Of(letter) => self.id_of(letter),
            Id::Unknown(n) => [&b"unknown"[..], &n.to_be_bytes()].concat(),
            Id::Bulk(n) => n.to_be_bytes()[1..].to_vec(),
            Id::Empty => Vec::new(),
            Id::Long => vec![7; 257],
            Id::Strange => unreachable!("scripts do not name it"),
        }
    }

    fn read_id(&self, id: &[u8]) -> Id {
        if let Some(letter) = (0..self.letters.len()).find(|n| self.id_of(*n) == id) {
            return Id::Of(letter);
        }
        match (id.len(), id.strip_prefix(b"unknown")) {
            (_, Some(n)) if n.len() == 4 => Id::Unknown(u32::from_be_bytes(n.try_into().unwrap())),
            (0, _) => Id::Empty,
            (3, _) => Id::Bulk(0),
            (257, _) => Id::Long,
            _ => Id::Strange,
        }
    }

    /// The RPC in bytes, without its length.
    pub fn rpc(&self, acts: &[Act]) -> Vec<u8> {
        let name = |topic: &usize| Some(TOPICS[*topic].to_owned());
        let ids = |ids: &[Id]| ids.iter().map(|id| self.id(*id)).collect::<Vec<_>>();
        let mut rpc = schema::Rpc::default();
        let mut control = schema::Control::default();
        let mut messages = Vec::new();
        for act in acts {
            match act {
                Act::Subscribe(topic) | Act::Unsubscribe(topic) => {
                    rpc.subscriptions.push(schema::SubOpts {
                        subscribe: Some(matches!(act, Act::Subscribe(_))),
                        topic: name(topic),
                    });
                }
                Act::Graft(topic) => control.graft.push(schema::Graft { topic: name(topic) }),
                Act::Prune(topic, backoff) => control.prune.push(schema::Prune {
                    topic: name(topic),
                    peers: Vec::new(),
                    backoff: *backoff,
                }),
                Act::IHave(topic, have) => control.ihave.push(schema::IHave {
                    topic: name(topic),
                    ids: ids(have),
                }),
                Act::IWant(want) => control.iwant.push(schema::Ids { ids: ids(want) }),
                Act::IDontWant(have) => control.idontwant.push(schema::Ids { ids: ids(have) }),
                Act::Send(letter) => messages.extend(self.message(*letter)),
            }
        }
        if control != schema::Control::default() {
            rpc.control = Some(control);
        }
        [rpc.encode_to_vec(), messages].concat()
    }

    fn message(&self, letter: usize) -> Vec<u8> {
        let Letter {
            author,
            topic,
            large,
        } = self.letters[letter];
        let data = vec![b'.'; if large { LARGE } else { 10 }];
        signed(&author.key(), number(letter), TOPICS[topic], &data)
    }

    /// The words of an RPC. What is only said to know where the answer ends is not among them.
    pub fn words(&self, rpc: &schema::Rpc) -> Vec<Word> {
        let topic = |name: &Option<String>| {
            let name = name.as_deref().unwrap_or_default();
            TOPICS.iter().position(|topic| *topic == name)
        };
        let of = |name: &Option<String>, word: &dyn Fn(usize) -> Word| match topic(name) {
            Some(topic) => Some(word(topic)),
            None if name.as_deref() == Some(FENCE) => None,
            None => Some(Word::Strange),
        };
        let mut words = Vec::new();
        for announced in &rpc.subscriptions {
            words.extend(of(&announced.topic, &|topic| match announced.subscribe {
                Some(true) => Word::Subscribed(topic),
                _ => Word::Unsubscribed(topic),
            }));
        }
        for message in &rpc.publish {
            let id = [&message.from, &message.seqno].map(|part| part.as_deref().unwrap_or(&[]));
            let id = self.read_id(&id.concat());
            words.extend(of(&message.topic, &|_| Word::Message(id)));
        }
        let control = rpc.control.clone().unwrap_or_default();
        for ihave in &control.ihave {
            for id in &ihave.ids {
                let id = self.read_id(id);
                words.extend(of(&ihave.topic, &|topic| Word::IHave(topic, id)));
            }
        }
        let ids = |all: &[schema::Ids]| -> Vec<Id> {
            let ids = all.iter().flat_map(|ids| &ids.ids);
            ids.map(|id| self.read_id(id)).collect()
        };
        words.extend(ids(&control.iwant).into_iter().map(Word::IWant));
        words.extend(ids(&control.idontwant).into_iter().map(Word::IDontWant));
        for graft in &control.graft {
            words.extend(of(&graft.topic, &Word::Graft));
        }
        for prune in &control.prune {
            words.extend(of(&prune.topic, &|t| Word::Prune(t, prune.backoff)));
        }
        words
    }
}

/// Of a letter. An author's numbers all lie within one replay window, those of fences too.
fn number(letter: usize) -> u64 {
    1 + letter as u64
}
