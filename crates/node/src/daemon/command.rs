//! What the API asks of the loop, and the handle it asks with.

use bytes::Bytes;
use cid::Cid;
use gemba_pins::Kind;
use multiaddr::Multiaddr;
use tokio::sync::{mpsc, oneshot};

use super::call::{Wait, ending};
use super::flow::pins::View;
use crate::api::types::{
    Connected, Id, LineView, Peer, PubsubHealth, PubsubPeer, PubsubWhy, Status, Waits,
};
use crate::error::Fail;
use crate::lines::Uplink;
use crate::meta::{Edited, PinRows};

/// Commands that may wait for the loop; callers wait beyond it.
pub(super) const QUEUE: usize = 256;

/// Most pins or operations in one answer: a million of them must not stand in memory at once.
pub const PAGE: usize = 1024;

/// How the loop answers: once.
pub(super) type Reply<T> = oneshot::Sender<T>;

/// Everything the loop can be asked. A closed list: what is not here cannot be done to a running node.
pub enum Command {
    /// Who am I and where do I listen.
    Id(Reply<Id>),
    /// Who is connected.
    Peers(Reply<Vec<Peer>>),
    /// How is it going.
    Status(Reply<Status>),
    /// The uplink is of this kind from now on. The answer is what the lines may carry.
    Uplink(Uplink, Reply<Vec<LineView>>),
    /// The figures for `/metrics`.
    Metrics(Reply<crate::metrics::Figures>),
    /// Dial now.
    Connect(Multiaddr, Reply<Result<Connected, Fail>>),
    /// A stream to a connected peer that echoes.
    Pinger(
        libp2p_identity::PeerId,
        Reply<Result<crate::daemon::ping::Pinger, Fail>>,
    ),
    /// Why is this block not here.
    Why(Cid, Reply<serde_json::Value>),
    /// Want a DAG on this device. The answer is a view that follows the operation.
    Pin {
        /// The root.
        cid: Cid,
        /// How far.
        kind: Kind,
        /// A label.
        name: Option<String>,
        /// Follows the operation.
        reply: Reply<Result<View, Fail>>,
    },
    /// Want it no longer.
    Unpin(Cid, Reply<Result<(), Fail>>),
    /// What a request waits for, in words.
    Waits(Wait, Reply<Waits>),
    /// End what is being done about a root: a pin that is not whole is given up.
    Cancel(Cid, Reply<Result<(), Fail>>),
    /// Release the first of two pins, if the second is whole.
    Replace(Cid, Cid, Reply<Result<(), Fail>>),
    /// Want what a list names, as far as it is not wanted; at most about a thousand.
    Import(Vec<gemba_pins::Add>, Reply<Vec<Result<Edited, Fail>>>),
    /// Try again what failed: one, or all. How many operations that are.
    Recover(Option<Cid>, Reply<Result<u64, Fail>>),
    /// End what is being done about a root that is not wanted. Whether anything was.
    EndUnwanted(Cid, Reply<Result<bool, Fail>>),
    /// Follow a pin, whatever it is.
    WatchPin(Cid, Reply<Result<View, Fail>>),
    /// Operations behind this one, in the order of their roots, at most [`PAGE`]; and what time it is.
    Ops(
        Option<Cid>,
        Reply<(Vec<gemba_pins::Operation>, std::time::Duration)>,
    ),
    /// A pin that is whole was counted.
    Measured(Cid, u64, gemba_pins::Size, Reply<Result<(), Fail>>),
    /// What is being done about these roots.
    OpsOf(Vec<Cid>, Reply<Vec<Option<gemba_pins::Operation>>>),
    /// Blocks of these pins are gone: they are not whole any more and are made whole again.
    Struck(Vec<Cid>, Reply<()>),
    /// As [`Command::Struck`], by a scrub, which has deleted every damaged block.
    Scrubbed(Vec<Cid>, Reply<()>),
    /// The desired set, as it is now.
    DesiredSet(Reply<Result<PinRows, Fail>>),
    /// Opens a session for a reader whose blocks may have to be fetched; with how long its caller waits, if he said so.
    OpenReader(Option<std::time::Duration>, Reply<Result<ReaderId, Fail>>),
    /// Blocks the reader will want soon.
    Prefetch(ReaderId, Vec<Cid>),
    /// The block the reader wants now.
    Fetch(ReaderId, Cid, Reply<Result<Fetched, Fail>>),
    /// The reader is done.
    CloseReader(ReaderId),
    /// Blocks that were put by other ways than the loop's: peers, pins and readers may be waiting for them. Batches of some hundred.
    Stored(Vec<Cid>),
    /// A block was read and is damaged on disk.
    Damaged(Cid, String),
    /// Read a topic.
    Subscribe(
        gemba_gossip::Topic,
        Reply<Result<gemba_gossip::Subscription, Fail>>,
    ),
    /// Send a message. The answer is what becomes of it.
    Publish {
        /// Where.
        topic: gemba_gossip::Topic,
        /// What.
        data: Bytes,
        /// How long it may wait for somebody who takes it.
        patience: std::time::Duration,
        /// Resolves when neighbours took it.
        reply: Reply<Result<gemba_gossip::Publishing, Fail>>,
    },
    /// The peers that subscribe to a topic; without one, all that speak pubsub.
    PubsubPeers(
        Option<gemba_gossip::Topic>,
        Reply<Result<Vec<PubsubPeer>, Fail>>,
    ),
    /// What becomes of a topic here.
    PubsubWhy(gemba_gossip::Topic, Reply<Result<PubsubWhy, Fail>>),
    /// How pubsub fares.
    PubsubHealth(Reply<Result<PubsubHealth, Fail>>),
    /// Something of the names that are followed.
    Follow(super::flow::follow::Ask),
    /// Something of the book of names.
    Names(super::flow::names::Ask),
    /// End the daemon.
    Shutdown,
}

/// How a block came to a reader.
#[derive(Clone, Debug)]
pub enum Fetched {
    /// From the swarm.
    Bytes(Bytes),
    /// Somebody on this device stored it meanwhile: it is in the store.
    Here,
}

/// Names a reader's session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ReaderId(pub u64);

/// A cloneable way to ask the loop.
#[derive(Clone)]
pub struct Handle(mpsc::Sender<Command>);

impl Handle {
    /// A handle and the loop's end of it.
    #[must_use]
    pub fn new() -> (Self, mpsc::Receiver<Command>) {
        let (sender, receiver) = mpsc::channel(QUEUE);
        (Self(sender), receiver)
    }

    /// Asks and waits for the answer.
    ///
    /// # Errors
    /// The daemon is ending.
    pub async fn ask<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T, Fail> {
        let (reply, answer) = oneshot::channel();
        self.tell(command(reply)).await?;
        answer.await.map_err(|_| ending())
    }

    /// Tells without an answer.
    ///
    /// # Errors
    /// The daemon is ending.
    pub async fn tell(&self, command: Command) -> Result<(), Fail> {
        self.0.send(command).await.map_err(|_| ending())
    }

    /// As [`Handle::ask`], from a blocking thread.
    ///
    /// # Errors
    /// The daemon is ending.
    pub fn ask_blocking<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T, Fail> {
        let (reply, answer) = oneshot::channel();
        self.tell_blocking(command(reply))?;
        answer.blocking_recv().map_err(|_| ending())
    }

    /// As [`Handle::tell`], from a blocking thread.
    ///
    /// # Errors
    /// The daemon is ending.
    pub fn tell_blocking(&self, command: Command) -> Result<(), Fail> {
        self.0.blocking_send(command).map_err(|_| ending())
    }
}
