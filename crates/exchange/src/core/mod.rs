//! The exchange as a value that is driven: no clock, no socket, no task, no random source.
//!
//! ```text
//! handle(input, now)   one fact from the network       want, stored, loaded, release …   commands of the owner
//! poll()               what is to be done next          deadline(), expire(now)            time
//! ```
//! What it leaves out: connections and streams (`handler`), where blocks are kept (the owner answers
//! [`Output::Load`]), which blocks make a DAG (the owner wants them one by one), who to connect to.

mod client;
mod ledger;
mod pace;
mod server;
mod site;

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use gemba_block::{Block, Cid, MAX_BLOCK_BYTES};
use libp2p_identity::PeerId;

pub use client::{Answer, AskPolicy, AskTest, Asked, SessionOptions, WaitingFor, Why};
pub use ledger::PeerLedger;
#[cfg(feature = "swarm")]
pub(crate) use pace::{Grant, Turns};

use crate::config::{Config, Line, LineBudget};
use crate::error::{TooManySessions, WantError};
use crate::metrics::Counters;
use crate::wire::{Message, SiteMessage};
use client::Client;
use ledger::Ledger;
use server::Server;

/// Time since start. Never the wall clock.
pub type Time = Duration;

/// Bitswap client and server of one node.
pub struct Core {
    /// Connected peers. Keys are never used twice, so what a gone peer left behind can never be taken for another's.
    peers: HashMap<PeerId, PeerKey>,
    next_peer: u32,
    client: Client,
    server: Server,
    ledger: Ledger,
    counters: Counters,
    /// Facts for the owner. Bounded: blocks by the wants outstanding, reports by the number of wants and peers.
    out: VecDeque<Output>,
}

/// A fact from the network.
#[derive(Debug)]
#[non_exhaustive]
pub enum Input {
    /// The first connection to a peer stands.
    Connected {
        /// Who.
        peer: PeerId,
        /// Reached without the uplink: asked before others.
        lan: bool,
    },
    /// The last connection to a peer is gone.
    Disconnected {
        /// Who.
        peer: PeerId,
    },
    /// The hint was wrong or changed.
    Lan {
        /// Who.
        peer: PeerId,
        /// Reached without the uplink.
        lan: bool,
    },
    /// The peer speaks no Bitswap.
    Unsupported {
        /// Who.
        peer: PeerId,
    },
    /// A message arrived, decoded and hashed.
    Received {
        /// From whom.
        peer: PeerId,
        /// What.
        message: Message,
    },
    /// A message could not be decoded; its stream was reset.
    Malformed {
        /// From whom.
        peer: PeerId,
    },
    /// A message was not complete in time; its stream was reset.
    TooSlow {
        /// From whom.
        peer: PeerId,
    },
    /// Bytes of large messages that are or were not complete.
    Progress {
        /// From whom.
        peer: PeerId,
        /// When the last byte was read.
        at: Time,
        /// How many came since this was told last.
        bytes: usize,
    },
    /// The last [`Lane::Request`] message was written.
    RequestSent {
        /// To whom.
        peer: PeerId,
        /// Size on the wire.
        bytes: usize,
    },
    /// The request stream failed: what was said on it may be lost.
    RequestsLost {
        /// To whom.
        peer: PeerId,
    },
    /// The peer agreed to the stream that [`SpareStream::Open`] asked for, and all that was read before that was told.
    SpareOpened {
        /// Who.
        peer: PeerId,
    },
    /// The oldest [`Lane::Response`] message was written, or given up: the peer has credit for more.
    ResponseSent {
        /// To whom.
        peer: PeerId,
        /// Bytes of blocks in it, as [`Message::block_bytes`] counts.
        block_bytes: usize,
        /// Blocks in it.
        blocks: usize,
        /// Size on the wire; 0 if it was given up.
        bytes: usize,
    },
    /// We did not write the oldest [`Lane::Response`] message for so long since this was told last, though the peer would have taken it.
    Held {
        /// To whom.
        peer: PeerId,
        /// How long.
        time: Time,
    },
    /// The meter of a line was read. Once it was, it counts in place of the messages that come ([`LineBudget::down`]).
    Carried {
        /// Which.
        line: Line,
        /// All bytes that ever came over it.
        read: u64,
    },
    /// Something about the site that devices share (specs/site.md).
    Site {
        /// About or from whom.
        peer: PeerId,
        /// What.
        fact: SiteFact,
    },
}

/// A fact about a peer and the site.
#[derive(Debug)]
#[non_exhaustive]
pub enum SiteFact {
    /// It speaks `/gemba/site/1`, and what is sent from now on reaches it; or `near` changed.
    Speaks {
        /// It was reached on one of our own subnets.
        near: bool,
    },
    /// It does not speak the protocol, or our stream to it broke off.
    Silent,
    /// It sent a message.
    Said(SiteMessage),
}

/// What is to be done.
#[derive(Debug)]
#[non_exhaustive]
pub enum Output {
    /// Write a message. Of one lane and peer, messages are written in order.
    Send {
        /// To whom.
        peer: PeerId,
        /// On which stream.
        lane: Lane,
        /// What.
        message: Message,
    },
    /// Look a block up and answer with [`Core::loaded`].
    Load {
        /// To be given back.
        id: LoadId,
        /// Which block.
        cid: Cid,
        /// Whether the bytes are needed.
        kind: LoadKind,
    },
    /// A wanted block arrived, hash checked. Its bytes count against the node's budget until [`Core::release`].
    Found {
        /// Who wanted it.
        session: SessionId,
        /// The block.
        block: Block,
        /// Who sent it.
        from: PeerId,
    },
    /// Everybody connected was asked and has it not. A status, not an end: new peers are asked as they connect, all
    /// are asked again with growing pauses, and a peer that gets it later pushes it.
    Unavailable {
        /// Who wants it.
        session: SessionId,
        /// Which block.
        cid: Cid,
        /// Who was asked and what was answered. Empty: nobody is connected that may be asked.
        asked: Vec<Asked>,
    },
    /// A peer does not take its answers, and all such peers together hold too much: drop what is on its way to it on
    /// [`Lane::Response`], and tell of each message as [`Input::ResponseSent`] with 0 bytes.
    GiveUp {
        /// Who.
        peer: PeerId,
    },
    /// A peer that owes us something is silent: what to do with another [`Lane::Request`] stream to it.
    Spare {
        /// To whom.
        peer: PeerId,
        /// What.
        action: SpareStream,
    },
    /// The peer starts anew, perhaps because our answers do not reach it: write what follows on [`Lane::Response`] on a new stream.
    Renew {
        /// To whom.
        peer: PeerId,
    },
    /// A peer made no progress in time and its wants were moved.
    Stalled {
        /// Who.
        peer: PeerId,
        /// How many wants.
        moved: usize,
    },
    /// A peer sent wrong bytes and is not asked for a while.
    Distrusted {
        /// Who.
        peer: PeerId,
    },
    /// Tell a peer something about the site.
    Site {
        /// Whom.
        peer: PeerId,
        /// What.
        message: SiteMessage,
    },
    /// Stop (`true`) or go on (`false`) reading from all connections: found blocks are not released fast enough.
    Pause(bool),
}

/// The kept outbound stream on which a message travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// Our wantlist.
    Request,
    /// Our answers.
    Response,
}

/// What to do with a second [`Lane::Request`] stream, beside the kept one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpareStream {
    /// Open one, and say so with [`Input::SpareOpened`] once the peer agreed to it. One that is there already is dropped.
    Open,
    /// Reset the kept one with what is being written on it; what follows is written on this one.
    Use,
    /// It is not needed.
    Drop,
}

/// Names a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(pub(crate) u64);

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "session {}", self.0)
    }
}

/// Names a load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LoadId(pub(crate) u64);

/// What a load needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoadKind {
    /// Whether the block is there and its size: [`Loaded::Size`] is enough, the bytes are taken as well.
    Have,
    /// The bytes.
    Block,
}

/// The answer to a load.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Loaded {
    /// Not here, or not readable.
    Missing,
    /// Here, with this size in bytes.
    Size(u64),
    /// Here.
    Block(Bytes),
}

impl From<Option<Bytes>> for Loaded {
    fn from(data: Option<Bytes>) -> Self {
        data.map_or(Self::Missing, Self::Block)
    }
}

/// A connected peer, for the time of its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct PeerKey(u32);

impl Core {
    /// A node without peers.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        Self {
            peers: HashMap::new(),
            next_peer: 0,
            client: Client::new(config.clone()),
            server: Server::new(config.clone()),
            ledger: Ledger::new(config.ledger_peers),
            counters: Counters::default(),
            out: VecDeque::new(),
        }
    }

    /// Takes one fact. Facts about peers that are not connected are ignored: a connection may end while its last
    /// messages are on their way here.
    pub fn handle(&mut self, input: Input, now: Time) {
        match input {
            Input::Connected { peer, lan } => self.connected(peer, lan, now),
            Input::Disconnected { peer } => self.disconnected(peer, now),
            Input::Lan { peer, lan } => self.with_client(peer, |c, key| c.set_lan(key, lan)),
            Input::Unsupported { peer } => {
                if let Some(key) = self.peers.get(&peer) {
                    self.client
                        .unsupported(*key, now, &mut self.counters, &mut self.out);
                }
            }
            Input::Received { peer, message } => self.received(peer, message, now),
            Input::Malformed { peer } => {
                self.counters.malformed += 1;
                if let Some(key) = self.peers.get(&peer) {
                    self.client
                        .malformed(*key, now, &mut self.counters, &mut self.out);
                }
            }
            Input::TooSlow { peer } => {
                self.counters.slow_messages += 1;
                self.with_client(peer, |c, key| c.too_slow(key, now));
            }
            Input::Progress { peer, at, bytes } => {
                self.with_client(peer, |c, key| c.progress(key, at, bytes));
            }
            Input::RequestSent { peer, bytes } => {
                self.counters.bytes_out += bytes as u64;
                self.with_client(peer, Client::request_sent);
            }
            Input::RequestsLost { peer } => {
                if let Some(key) = self.peers.get(&peer) {
                    self.client.requests_lost(*key, &mut self.counters);
                }
            }
            Input::SpareOpened { peer } => {
                if let Some(key) = self.peers.get(&peer) {
                    self.client
                        .spare_opened(*key, now, &mut self.counters, &mut self.out);
                }
            }
            Input::ResponseSent {
                peer,
                block_bytes,
                blocks,
                bytes,
            } => self.response_sent(peer, block_bytes, blocks, bytes, now),
            Input::Held { peer, time } => {
                if let Some(key) = self.peers.get(&peer) {
                    self.server.held(*key, time, now);
                }
            }
            Input::Carried { line, read } => self.client.carried(line, read, now),
            Input::Site { peer, fact } => {
                if let Some(key) = self.peers.get(&peer) {
                    self.client
                        .on_site(*key, fact, now, &mut self.counters, &mut self.out);
                }
            }
        }
    }

    /// Opens a session: wants that belong together and are probably found at the same peers.
    ///
    /// # Errors
    /// [`TooManySessions`].
    pub fn open_session(&mut self, options: SessionOptions) -> Result<SessionId, TooManySessions> {
        self.client.open_session(options)
    }

    /// Wants blocks, in this order. A CID that the session wants already is not wanted twice.
    ///
    /// # Errors
    /// See [`WantError`].
    pub fn want(
        &mut self,
        session: SessionId,
        cids: impl IntoIterator<Item = Cid>,
        now: Time,
    ) -> Result<(), WantError> {
        let taken = self
            .client
            .want(session, cids, now, &mut self.counters, &mut self.out);
        if let Err(WantError::Full { .. }) = taken {
            self.counters.refused_wants += 1;
        }
        taken
    }

    /// How many more wants the session takes; 0 for one that is not open.
    #[must_use]
    pub fn room(&self, session: SessionId) -> usize {
        self.client.room(session)
    }

    /// Withdraws wants of a session.
    pub fn cancel(&mut self, session: SessionId, cids: &[Cid], now: Time) {
        self.client
            .cancel(session, cids, now, &mut self.counters, &mut self.out);
    }

    /// Changes who may be asked for the wants of a session.
    pub fn set_policy(&mut self, session: SessionId, policy: AskPolicy, now: Time) {
        self.client
            .set_policy(session, policy, now, &mut self.counters, &mut self.out);
    }

    /// Ends a session and withdraws its wants.
    pub fn close_session(&mut self, session: SessionId, now: Time) {
        self.client
            .close_session(session, now, &mut self.counters, &mut self.out);
    }

    /// Says that `bytes` of found blocks left memory (are stored).
    pub fn release(&mut self, bytes: usize, now: Time) {
        self.client
            .release(bytes, now, &mut self.counters, &mut self.out);
    }

    /// Says that blocks are now in the store: peers that wait for them are served.
    pub fn stored(&mut self, cids: &[Cid]) {
        self.server.stored(cids, &mut self.counters);
    }

    /// Answers a load. Unknown ids are ignored.
    pub fn loaded(&mut self, id: LoadId, answer: impl Into<Loaded>) {
        self.server.loaded(id, answer.into(), &mut self.counters);
    }

    /// Changes what a line may carry inwards; what it carries outwards is for the driver to pace.
    pub fn set_budget(&mut self, line: Line, budget: LineBudget, now: Time) {
        self.client
            .set_budget(line, budget, now, &mut self.counters, &mut self.out);
    }

    /// The next thing to do, until `None`.
    pub fn poll(&mut self, now: Time) -> Option<Output> {
        if let Some(output) = self.out.pop_front() {
            return Some(output);
        }
        if let Some((peer, message)) = self.client.next_request() {
            self.counters.messages_out += 1;
            return Some(Output::Send {
                peer,
                lane: Lane::Request,
                message,
            });
        }
        if let Some((peer, message)) = self.client.next_site_message() {
            return Some(Output::Site { peer, message });
        }
        if let Some(peer) = self.server.next_given_up(&mut self.counters) {
            return Some(Output::GiveUp { peer });
        }
        if let Some((peer, message)) = self.server.next_response(now, &mut self.counters) {
            self.counters.messages_out += 1;
            return Some(Output::Send {
                peer,
                lane: Lane::Response,
                message,
            });
        }
        let (id, cid, kind) = self.server.next_load(&mut self.counters)?;
        Some(Output::Load { id, cid, kind })
    }

    /// When [`expire`](Self::expire) has something to do.
    #[must_use]
    pub fn deadline(&self) -> Option<Time> {
        match (self.client.deadline(), self.server.deadline()) {
            (Some(client), Some(server)) => Some(client.min(server)),
            (client, server) => client.or(server),
        }
    }

    /// Lets time pass. Tell [`Input::Progress`] of all peers first.
    pub fn expire(&mut self, now: Time) {
        self.client.expire(now, &mut self.counters, &mut self.out);
        self.server.expire(now, &mut self.counters);
    }

    /// Who was asked for a block, what was answered, what is waited for. `None` if nobody here wants it.
    #[must_use]
    pub fn why(&self, cid: &Cid) -> Option<Why> {
        self.client.why(cid)
    }

    /// All counters.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// The counters, for the driver that counts what only it sees.
    #[cfg(feature = "swarm")]
    pub(crate) fn counters_mut(&mut self) -> &mut Counters {
        &mut self.counters
    }

    /// Bytes both ways for each peer that is or was connected (bounded by `ledger_peers`).
    #[must_use]
    pub fn peers(&self) -> Vec<PeerLedger> {
        self.ledger.list(|peer| self.peers.contains_key(peer))
    }

    /// Whether blocks or answers are expected from the peer or due to it: its connection is worth keeping.
    #[must_use]
    pub fn is_busy(&self, peer: &PeerId) -> bool {
        self.peers
            .get(peer)
            .is_some_and(|key| self.client.is_busy(*key) || self.server.is_busy(*key))
    }

    /// The most bytes that the blocks may have which the peer was asked for and is waited for. Presences that it owes do not count, nor
    /// what is due to it: anybody can cause those.
    #[must_use]
    pub fn owed_bytes(&self, peer: &PeerId) -> usize {
        let key = self.peers.get(peer);
        key.map_or(0, |key| self.client.owed_blocks(*key) * MAX_BLOCK_BYTES)
    }

    /// The connected peers that belong to the same site.
    #[must_use]
    pub fn mates(&self) -> Vec<PeerId> {
        self.client.mates()
    }

    /// What is held in memory for peers and wants, for tests of X1 and for the owner's memory report.
    #[must_use]
    pub fn load(&self) -> Load {
        Load {
            peers: self.peers.len(),
            wants: self.client.wants(),
            expected_bytes: self.client.expected_bytes(),
            found_bytes: self.client.found_bytes(),
            served_wants: self.server.wants(),
            served_bytes: self.server.bytes(),
            loads: self.server.loads(),
        }
    }

    fn connected(&mut self, peer: PeerId, lan: bool, now: Time) {
        if self.peers.contains_key(&peer) {
            return;
        }
        let key = PeerKey(self.next_peer);
        self.next_peer = self.next_peer.wrapping_add(1);
        self.peers.insert(peer, key);
        self.ledger.connected(peer);
        self.server.connected(key, peer);
        self.client
            .connected(key, peer, lan, now, &mut self.counters, &mut self.out);
    }

    fn disconnected(&mut self, peer: PeerId, now: Time) {
        let Some(key) = self.peers.remove(&peer) else {
            return;
        };
        self.ledger.disconnected(peer);
        self.server.disconnected(key);
        self.client
            .disconnected(key, now, &mut self.counters, &mut self.out);
    }

    fn received(&mut self, peer: PeerId, mut message: Message, now: Time) {
        let Some(key) = self.peers.get(&peer).copied() else {
            return;
        };
        self.counters.messages_in += 1;
        self.counters.bytes_in += message.wire_bytes as u64;
        self.counters.ignored_entries += message.ignored as u64;
        self.counters.blocks_in += message.blocks.len() as u64;
        self.counters.block_bytes_in += message.block_bytes() as u64;
        self.ledger
            .received(peer, message.blocks.len(), message.block_bytes());
        let entries = std::mem::take(&mut message.entries);
        if message.full && self.server.renews(key, now) {
            self.out.push_back(Output::Renew { peer });
        }
        self.server
            .wantlist(key, message.full, &entries, &mut self.counters);
        self.client.came(key, message.wire_bytes, now);
        self.client
            .received(key, message, now, &mut self.counters, &mut self.out);
    }

    fn response_sent(
        &mut self,
        peer: PeerId,
        block_bytes: usize,
        blocks: usize,
        bytes: usize,
        now: Time,
    ) {
        if bytes == 0 {
            self.counters.lost_responses += 1;
        } else {
            self.counters.bytes_out += bytes as u64;
            self.counters.blocks_out += blocks as u64;
            self.counters.block_bytes_out += block_bytes as u64;
            self.ledger.sent(peer, blocks, block_bytes);
        }
        if let Some(key) = self.peers.get(&peer) {
            self.server.sent(*key, bytes > 0, now);
        }
    }

    fn with_client(&mut self, peer: PeerId, act: impl FnOnce(&mut Client, PeerKey)) {
        if let Some(key) = self.peers.get(&peer) {
            act(&mut self.client, *key);
        }
    }
}

impl fmt::Debug for Core {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Core({:?})", self.load())
    }
}

/// What the core holds at the moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Load {
    /// Connected peers.
    pub peers: usize,
    /// Our wants.
    pub wants: usize,
    /// Bytes expected from peers, estimated.
    pub expected_bytes: usize,
    /// Bytes found and not released.
    pub found_bytes: usize,
    /// Wants of peers.
    pub served_wants: usize,
    /// Bytes loaded for peers or on their way.
    pub served_bytes: usize,
    /// Loads that the owner has not answered.
    pub loads: usize,
}
