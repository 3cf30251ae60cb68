//! The loop that drives sans-io nodes over a [`Net`].

use crate::{
    Faults, Net, Rng,
    net::{Event, LinkId, NoStream, NodeId, Shape},
};
use std::{collections::BTreeMap, time::Duration};

/// A core under test, with the thinnest driver: the four calls of every gemba core.
pub trait Node {
    /// Something happened.
    fn handle(&mut self, event: Event, now: Duration);
    /// What the node wants done; drained after every `handle` and `expire`.
    fn poll(&mut self) -> Option<Action>;
    /// When to call `expire` next.
    fn deadline(&self) -> Option<Duration>;
    /// That time has come.
    fn expire(&mut self, now: Duration);
}

/// What a node can do to the world.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Dial; [`Event::Open`] or [`Event::Refused`] follows.
    Connect {
        /// Whom.
        peer: NodeId,
    },
    /// Write to a stream. What does not fit waits outside the node, in order, until it does; [`Sim::backlog`] tells how much.
    Send {
        /// The stream.
        link: LinkId,
        /// The bytes.
        bytes: Vec<u8>,
    },
    /// Send no more, after what was sent.
    Close {
        /// The stream.
        link: LinkId,
    },
    /// Drop the stream.
    Reset {
        /// The stream.
        link: LinkId,
    },
    /// Send a datagram.
    Datagram {
        /// To whom.
        to: NodeId,
        /// Its bytes.
        bytes: Vec<u8>,
    },
}

impl<N: Node + ?Sized> Node for Box<N> {
    fn handle(&mut self, event: Event, now: Duration) {
        (**self).handle(event, now);
    }
    fn poll(&mut self) -> Option<Action> {
        (**self).poll()
    }
    fn deadline(&self) -> Option<Duration> {
        (**self).deadline()
    }
    fn expire(&mut self, now: Duration) {
        (**self).expire(now);
    }
}

/// A world of nodes. Time passes only here.
#[derive(Debug)]
pub struct Sim<N> {
    /// The nodes, by number. After changing one from outside call [`settle`](Self::settle).
    pub nodes: Vec<N>,
    /// The network, for faults.
    pub net: Net,
    waiting: BTreeMap<(LinkId, NodeId), Waiting>,
    trace: Trace,
    steps: u64,
}

/// What a node wrote and the stream has not taken yet.
#[derive(Debug, Default)]
struct Waiting {
    bytes: Vec<u8>,
    close: bool,
}

impl<N: Node> Sim<N> {
    /// A world in which these nodes can reach each other by paths of this shape.
    pub fn new(rng: Rng, shape: Shape, nodes: Vec<N>) -> Self {
        let mut sim = Self {
            nodes,
            net: Net::new(rng, shape),
            waiting: BTreeMap::new(),
            trace: Trace::default(),
            steps: 0,
        };
        for node in 0..sim.nodes.len() {
            sim.settle(node);
        }
        sim
    }

    /// Time since start.
    pub fn now(&self) -> Duration {
        self.net.now()
    }

    /// Lets everything happen up to `time`.
    ///
    /// # Panics
    /// If nodes keep each other busy without time passing (100,000 events at one instant).
    pub fn run_until(&mut self, time: Duration) {
        self.run_until_or(time, |_| false);
    }

    /// As [`run_until`](Self::run_until), but stops as soon as `done` says so, and returns whether it did. `done` is asked after each event.
    pub fn run_until_or(&mut self, time: Duration, mut done: impl FnMut(&Self) -> bool) -> bool {
        let mut instant = (self.now(), 0u32);
        while !done(self) {
            if !self.step(time) {
                self.net.advance_to(time.max(self.now()));
                return done(self);
            }
            instant = if instant.0 == self.now() {
                (instant.0, instant.1 + 1)
            } else {
                (self.now(), 0)
            };
            assert!(
                instant.1 < MAX_EVENTS_AT_ONE_INSTANT,
                "livelock: time stands still at {:?}",
                instant.0
            );
        }
        true
    }

    /// The next event or deadline up to `until`. `false`: there is none.
    pub fn step(&mut self, until: Duration) -> bool {
        let timer = self.timer();
        // At the same instant what arrives comes before what expires.
        let horizon = timer.map_or(until, |(due, _)| due.min(until));
        if let Some((node, event)) = self.net.next(horizon) {
            self.trace.event(self.now(), node, &event);
            self.steps += 1;
            self.arrive(node, event);
            self.settle(node);
            return true;
        }
        let Some((due, node)) = timer.filter(|(due, _)| *due <= until) else {
            return false;
        };
        self.net.advance_to(due.max(self.now()));
        self.trace.expire(self.now(), node);
        self.steps += 1;
        let now = self.now();
        self.nodes[node].expire(now);
        self.settle(node);
        true
    }

    /// Drains what a node wants done.
    ///
    /// # Panics
    /// If it never ends: more than 100,000 actions.
    pub fn settle(&mut self, node: NodeId) {
        for _ in 0..MAX_ACTIONS_AT_ONCE {
            let Some(action) = self.nodes[node].poll() else {
                return;
            };
            self.trace.action(self.now(), node, &action);
            self.act(node, action);
        }
        panic!("node {node} wants more than {MAX_ACTIONS_AT_ONCE} things at once");
    }

    /// Bytes a node wrote that its stream has not taken yet.
    pub fn backlog(&self, node: NodeId, link: LinkId) -> usize {
        self.waiting.get(&(link, node)).map_or(0, |w| w.bytes.len())
    }

    /// Events and deadlines so far.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// A digest of everything that happened, with its times: two runs of one seed are equal.
    pub fn trace_hash(&self) -> u64 {
        self.trace.0
    }

    /// What was injected so far.
    pub fn faults(&self) -> &Faults {
        self.net.faults()
    }

    fn timer(&self) -> Option<(Duration, NodeId)> {
        let running = self
            .nodes
            .iter()
            .enumerate()
            .filter(|(i, _)| !self.net.is_down(*i));
        running
            .filter_map(|(i, node)| node.deadline().map(|due| (due, i)))
            .min()
    }

    fn arrive(&mut self, node: NodeId, event: Event) {
        match event {
            Event::Writable { link } => {
                self.flush(node, link);
                if self.backlog(node, link) > 0 {
                    return;
                }
            }
            Event::Reset { link } => {
                self.waiting.remove(&(link, node));
            }
            _ => {}
        }
        let now = self.now();
        self.nodes[node].handle(event, now);
    }

    fn act(&mut self, node: NodeId, action: Action) {
        match action {
            Action::Connect { peer } => {
                self.net.connect(node, peer);
            }
            Action::Send { link, bytes } => {
                self.waiting
                    .entry((link, node))
                    .or_default()
                    .bytes
                    .extend(bytes);
                self.flush(node, link);
            }
            Action::Close { link } => {
                self.waiting.entry((link, node)).or_default().close = true;
                self.flush(node, link);
            }
            Action::Reset { link } => {
                self.waiting.remove(&(link, node));
                // A stream the other end has reset first is gone already: that event is on its way.
                let _gone = self.net.reset(node, link);
            }
            Action::Datagram { to, bytes } => self.net.datagram(node, to, &bytes),
        }
    }

    fn flush(&mut self, node: NodeId, link: LinkId) {
        let Some(waiting) = self.waiting.get_mut(&(link, node)) else {
            return;
        };
        match self.net.send(node, link, &waiting.bytes) {
            Ok(taken) => drop(waiting.bytes.drain(..taken)),
            // The stream is gone, and with it what was to go.
            Err(NoStream) => waiting.bytes.clear(),
        }
        if waiting.bytes.is_empty() {
            if waiting.close {
                let _gone = self.net.close(node, link);
            }
            self.waiting.remove(&(link, node));
        }
    }
}

/// More than any test of ours sends in an instant, fewer than a second of an endless loop.
const MAX_EVENTS_AT_ONE_INSTANT: u32 = 100_000;
const MAX_ACTIONS_AT_ONCE: u32 = 100_000;

/// FNV-1a over what happened.
#[derive(Debug)]
struct Trace(u64);

impl Default for Trace {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Trace {
    fn event(&mut self, now: Duration, node: NodeId, event: &Event) {
        self.head(now, node, 1);
        match event {
            Event::Open { link, peer, dialer } => {
                self.words(&[1, link.0, *peer as u64, u64::from(*dialer)])
            }
            Event::Refused { link, peer } => self.words(&[2, link.0, *peer as u64]),
            Event::Bytes { link, bytes } => self.words(&[3, link.0]).bytes(bytes),
            Event::Writable { link } => self.words(&[4, link.0]),
            Event::Eof { link } => self.words(&[5, link.0]),
            Event::Reset { link } => self.words(&[6, link.0]),
            Event::Datagram { from, bytes } => self.words(&[7, *from as u64]).bytes(bytes),
        };
    }

    fn action(&mut self, now: Duration, node: NodeId, action: &Action) {
        self.head(now, node, 2);
        match action {
            Action::Connect { peer } => self.words(&[1, *peer as u64]),
            Action::Send { link, bytes } => self.words(&[2, link.0]).bytes(bytes),
            Action::Close { link } => self.words(&[3, link.0]),
            Action::Reset { link } => self.words(&[4, link.0]),
            Action::Datagram { to, bytes } => self.words(&[5, *to as u64]).bytes(bytes),
        };
    }

    fn expire(&mut self, now: Duration, node: NodeId) {
        self.head(now, node, 3);
    }

    fn head(&mut self, now: Duration, node: NodeId, kind: u64) {
        self.words(&[kind, now.as_nanos() as u64, node as u64]);
    }

    fn words(&mut self, words: &[u64]) -> &mut Self {
        for word in words {
            self.mix(&word.to_le_bytes());
        }
        self
    }

    fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.words(&[bytes.len() as u64]).mix(bytes)
    }

    fn mix(&mut self, bytes: &[u8]) -> &mut Self {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
        self
    }
}
