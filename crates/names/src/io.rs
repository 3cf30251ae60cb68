//! What goes into the core and what comes out of it.

use crate::{
    error::{RecordError, Refused, ResolveError},
    name::Name,
    record::{Candidate, Meta, Record, Unsigned},
    wall::Wall,
    wire::Message,
};
use libp2p_identity::PeerId;
use std::{collections::BTreeMap, time::Duration};

/// Where a record came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Source {
    /// It was signed here.
    Own,
    /// Somebody on this device gave it in.
    Local,
    /// A peer of this swarm sent it over `/gemba/names/1`.
    Peer(PeerId),
    /// It came by a topic; the peer is the neighbour who sent it on, not its author.
    Topic(PeerId),
    /// A peer answered it to a fetch.
    Fetch(PeerId),
    /// A peer answered it to a query of the DHT.
    Dht(PeerId),
}

/// One version of a name: what it pointed to under which number.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// Its number.
    pub sequence: u64,
    /// Its value.
    pub value: Vec<u8>,
}

/// What to publish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publish {
    /// One of this device's own names.
    pub name: Name,
    /// A path as text, or a CID in bytes.
    pub value: Vec<u8>,
    /// How long the record lives; default [`DEFAULT_LIFETIME`](crate::DEFAULT_LIFETIME).
    pub lifetime: Duration,
    /// How long a resolver may answer from its memory; default [`DEFAULT_TTL`](crate::DEFAULT_TTL).
    pub ttl: Duration,
    /// Keys of one's own.
    pub metadata: BTreeMap<String, Meta>,
    /// The number to use, which must be above every one before; `None` takes the next.
    pub sequence: Option<u64>,
    /// Whether to write the older form of the record too.
    pub v1: bool,
}

impl Publish {
    /// With the defaults.
    pub fn new(name: Name, value: impl Into<Vec<u8>>) -> Self {
        Self {
            name,
            value: value.into(),
            lifetime: crate::DEFAULT_LIFETIME,
            ttl: crate::DEFAULT_TTL,
            metadata: BTreeMap::new(),
            sequence: None,
            v1: true,
        }
    }
}

/// What somebody on this device wants. Refused at once as the error of [`handle`](crate::Core::handle), or answered by [`Output::Done`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// This device holds the key of the name.
    Own(Name),
    /// It no longer does.
    Disown(Name),
    /// Be told of the name, and help to keep it alive.
    Follow(Name),
    /// No longer.
    Unfollow(Name),
    /// Sign and spread a new version.
    Publish(Publish),
    /// Publish again although what was published since the backup is not known: versions that others hold may lose.
    AcceptFork(Name),
    /// Take in a record that somebody brought.
    Put {
        /// Its name.
        name: Name,
        /// The record.
        bytes: Vec<u8>,
    },
    /// Every block of that version is durable on this device (or again, after a rollback).
    Complete {
        /// The name.
        name: Name,
        /// The version.
        version: Version,
        /// Whether it may be an older one than the one before.
        rollback: bool,
    },
    /// What the name points to; looked for where it is not known. Answered by [`Output::Resolved`].
    Resolve(Name),
}

/// One fact or command. Wall-clock time is one of them: it may jump by decades.
#[derive(Debug, Clone)]
pub enum Input {
    /// A wish, with an id that the answer carries.
    Command {
        /// Chosen by the owner.
        id: u64,
        /// The wish.
        command: Command,
    },
    /// The answer to [`Output::Sign`].
    Signed {
        /// That of the output.
        ticket: u64,
        /// The record, or why there is none.
        result: Result<Record, String>,
    },
    /// The answer to [`Output::Verify`].
    Verified {
        /// That of the output.
        ticket: u64,
        /// What [`Candidate::verify`] said.
        result: Result<Record, RecordError>,
    },
    /// The answer to [`Output::Persist`]: the row is durable, or could not be written.
    Persisted {
        /// That of the output.
        ticket: u64,
        /// Whether it is durable.
        result: Result<(), String>,
    },
    /// After a write that failed: the disk was opened anew and takes writes, and these are all rows that it holds, key and value. Of no use while an answer to an
    /// [`Output::Persist`] is open.
    Reread(Vec<(Vec<u8>, Vec<u8>)>),
    /// What the wall clock shows now.
    Clock(Wall),
    /// A moment that has certainly passed, seen in something that was signed and does not come from this device's clock.
    Seen(Wall),
    /// A peer that speaks `/gemba/names/1` is connected.
    Connected(PeerId),
    /// It is gone.
    Disconnected(PeerId),
    /// A message of `/gemba/names/1`.
    Message {
        /// From whom.
        peer: PeerId,
        /// The message.
        message: Message,
    },
    /// A record by any other route.
    Record {
        /// The name it is for.
        name: Name,
        /// Its bytes.
        bytes: Vec<u8>,
        /// By which route and peer.
        source: Source,
        /// Where the route waits for a [`Verdict`], what it is called there.
        token: Option<u64>,
    },
    /// A peer answered that it has no record.
    NoRecord {
        /// The name.
        name: Name,
        /// By which route and peer.
        source: Source,
    },
    /// A neighbour reads the topic of a name, or no longer.
    TopicPeer {
        /// The name.
        name: Name,
        /// The neighbour.
        peer: PeerId,
        /// Came or went.
        joined: bool,
    },
    /// Whether the DHT can be asked.
    Dht(bool),
    /// The DHT has twice as many servers as when it was said last: what was put when there were few belongs to others by now.
    DhtGrew,
    /// A query of the DHT has ended; its answers came before as `Record` and `NoRecord`.
    DhtDone {
        /// The name.
        name: Name,
    },
}

/// What the core wants, tells or answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Sign this with the key of the name: some 20 µs.
    Sign {
        /// For the answer.
        ticket: u64,
        /// Whose key.
        name: Name,
        /// What.
        unsigned: Unsigned,
    },
    /// Verify this on a worker: some 30 µs.
    Verify {
        /// For the answer.
        ticket: u64,
        /// What.
        candidate: Candidate,
    },
    /// Make this row durable, in the order of the outputs; several may share a flush.
    Persist {
        /// For the answer.
        ticket: u64,
        /// Key of the row.
        key: Vec<u8>,
        /// Its value; `None` removes it.
        value: Option<Vec<u8>>,
    },
    /// Keep the number outside of the book, where a restored backup of the book does not reach. It may be lost, and must never be
    /// written before the row is durable, which it is now.
    Mark {
        /// An own name.
        name: Name,
        /// Published under it.
        sequence: u64,
    },
    /// The answer to a command other than `Resolve`.
    Done {
        /// The command's.
        id: u64,
        /// What became of it; durable.
        result: Result<Done, Refused>,
    },
    /// The answer to `Resolve`.
    Resolved {
        /// The command's.
        id: u64,
        /// What the name points to.
        result: Result<Resolved, ResolveError>,
    },
    /// Tell everybody who watches.
    Event(Event),
    /// Send this over `/gemba/names/1`.
    Send {
        /// To whom.
        peer: PeerId,
        /// What.
        message: Message,
    },
    /// Read the topic of the name.
    Join(Name),
    /// No longer.
    Leave(Name),
    /// Publish the record on the topic of its name, as a message with an id of its own.
    Announce(Record),
    /// Ask a neighbour for its record, by `/libp2p/fetch/0.0.1`.
    Fetch {
        /// The name.
        name: Name,
        /// Whom.
        peer: PeerId,
    },
    /// Ask the DHT.
    DhtGet(Name),
    /// Put the record into the DHT: to these peers, which have an older one or none, or where it belongs.
    DhtPut {
        /// The record.
        record: Record,
        /// To whom.
        peers: Option<Vec<PeerId>>,
    },
    /// Whether a topic passes a record on.
    Verdict {
        /// Of the input.
        token: u64,
        /// What to do with it.
        verdict: Verdict,
    },
    /// A peer sent what no honest program sends, several times; it is not listened to for a while.
    Misbehaved {
        /// Who.
        peer: PeerId,
        /// The last thing.
        cause: RecordError,
    },
}

/// What a topic does with a record (Kubo: validator of IPNS over pubsub).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is the newest: pass it on.
    Accept,
    /// Known, older, past its end, or not judged: do not pass it on.
    Ignore,
    /// Nobody honest sends it.
    Reject,
}

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Done {
    /// It is as wished.
    Ok,
    /// The version is durable and will be spread as peers appear.
    Published {
        /// Its number.
        sequence: u64,
    },
}

/// What a name points to, as far as this device knows. Durable here before anybody is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// The name.
    pub name: Name,
    /// The version.
    pub version: Version,
    /// Whether every block of it is on this device.
    pub complete: bool,
    /// Its record has passed its end of life, or there is none for it any more.
    pub stale: bool,
    /// How long the answer may be kept, in nanoseconds; 0 if it is stale.
    pub ttl_ns: u64,
}

/// What those who watch are told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A name points to something else. Only the newest is told where several came in between.
    Changed {
        /// What it points to.
        now: Resolved,
        /// The number it had before.
        before: Option<u64>,
        /// From where.
        source: Source,
        /// Number of this change: see [`changes_after`](crate::Core::changes_after).
        revision: u64,
    },
    /// The complete version of a name is another one.
    Complete {
        /// The name.
        name: Name,
        /// The version that is whole on this device.
        version: Version,
        /// Number of this change.
        revision: u64,
    },
    /// The record of a name passed its end of life, or is valid again after the clock was set.
    Stale {
        /// The name.
        name: Name,
        /// Which of the two.
        stale: bool,
    },
    /// Somebody must look at this.
    Alarm(Alarm),
}

/// What should not be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Alarm {
    /// One key signed two values under one number: two devices hold it, or it is stolen. Everybody takes the same one of the two.
    Equivocation {
        /// The one that is taken.
        taken: Record,
        /// The other one.
        other: Record,
    },
    /// A newer version of an own name came from elsewhere: another device holds the key.
    ForeignPublisher {
        /// What came.
        record: Record,
        /// The last number that was known here.
        known: Option<u64>,
    },
    /// An own name has nearly used up its numbers: make a new one.
    SequenceNearEnd {
        /// The name.
        name: Name,
        /// The number it has reached.
        sequence: u64,
    },
    /// The book could not be written. Nothing is accepted until [`Input::Reread`]; what was told stays true.
    Disk(String),
}

impl Source {
    /// The peer it came from.
    pub fn peer(self) -> Option<PeerId> {
        match self {
            Self::Own | Self::Local => None,
            Self::Peer(peer) | Self::Topic(peer) | Self::Fetch(peer) | Self::Dht(peer) => {
                Some(peer)
            }
        }
    }

    /// The word for people and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Own => "own",
            Self::Local => "local",
            Self::Peer(_) => "peer",
            Self::Topic(_) => "pubsub",
            Self::Fetch(_) => "fetch",
            Self::Dht(_) => "dht",
        }
    }

    pub(crate) fn code(self) -> (u8, Option<PeerId>) {
        let kind = match self {
            Self::Own => 0,
            Self::Local => 1,
            Self::Peer(_) => 2,
            Self::Topic(_) => 3,
            Self::Fetch(_) => 4,
            Self::Dht(_) => 5,
        };
        (kind, self.peer())
    }

    pub(crate) fn from_code(kind: u8, peer: Option<PeerId>) -> Option<Self> {
        Some(match (kind, peer) {
            (0, None) => Self::Own,
            (1, None) => Self::Local,
            (2, Some(peer)) => Self::Peer(peer),
            (3, Some(peer)) => Self::Topic(peer),
            (4, Some(peer)) => Self::Fetch(peer),
            (5, Some(peer)) => Self::Dht(peer),
            _ => return None,
        })
    }
}
