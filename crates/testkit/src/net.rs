//! A network of values: byte streams and datagrams between numbered nodes.
//!
//! Streams are what TCP gives: ordered, cut into other pieces than were written, with a bounded send buffer. What happens to them is a [`Fault`], now
//! or at a planned time. Events leave in the order of (time, number), so one seed gives one run.

use crate::{Faults, Rng};
use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap, VecDeque},
    time::Duration,
};

/// Number of a node.
pub type NodeId = usize;

/// Number of a stream; never given twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkId(pub u64);

/// How long a dialer waits for a node that says nothing.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// What a node sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A stream to `peer` is up.
    Open {
        /// The stream.
        link: LinkId,
        /// The other end.
        peer: NodeId,
        /// Whether this node asked for it.
        dialer: bool,
    },
    /// The node dialled is down, or the stream was lost before it was up. If the node has vanished this takes [`CONNECT_TIMEOUT`].
    Refused {
        /// The stream that never was.
        link: LinkId,
        /// The node dialled.
        peer: NodeId,
    },
    /// Bytes of a stream, the next in order; never empty.
    Bytes {
        /// The stream.
        link: LinkId,
        /// The bytes.
        bytes: Vec<u8>,
    },
    /// A send buffer that was full has room.
    Writable {
        /// The stream.
        link: LinkId,
    },
    /// The other end will send no more.
    Eof {
        /// The stream.
        link: LinkId,
    },
    /// The stream is gone in both directions; bytes in flight are lost.
    Reset {
        /// The stream.
        link: LinkId,
    },
    /// A datagram.
    Datagram {
        /// Who sent it.
        from: NodeId,
        /// Its bytes.
        bytes: Vec<u8>,
    },
}

/// What may happen to a stream. Directions are named by the node that sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// Nothing of what `from` sends arrives for this long; then everything does.
    Stall {
        /// The sending node.
        from: NodeId,
        /// How long.
        time: Duration,
    },
    /// From now on `from` sends at most this many bytes a second.
    Slow {
        /// The sending node.
        from: NodeId,
        /// Bytes a second.
        rate: u64,
    },
    /// The stream is reset as soon as exactly this many bytes of `from` have arrived (now, if they have).
    ResetAt {
        /// The sending node.
        from: NodeId,
        /// Bytes since the stream was opened.
        byte: u64,
    },
    /// What `from` sends vanishes, and nobody is told. The other direction works.
    HalfOpen {
        /// The sending node.
        from: NodeId,
    },
}

/// The quality of a path between two nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shape {
    /// One way.
    pub latency: Duration,
    /// Up to this much more, at random. Streams stay ordered.
    pub jitter: Duration,
    /// Bytes a second in each direction.
    pub rate: u64,
    /// Bytes a stream accepts in each direction before they have arrived.
    pub buffer: usize,
    /// The longest piece of a stream that arrives at once, in bytes.
    pub piece: usize,
    /// Datagrams lost, of 1,000.
    pub lost: u64,
    /// Datagrams that arrive twice, of 1,000.
    pub doubled: u64,
    /// Datagrams that arrive late enough to be overtaken, of 1,000.
    pub reordered: u64,
}

impl Shape {
    /// A factory's wired network: 1 ms, 100 MB/s, no loss.
    pub fn lan() -> Self {
        Self {
            latency: Duration::from_millis(1),
            jitter: Duration::from_micros(200),
            rate: 100_000_000,
            buffer: 256 << 10,
            piece: 16 << 10,
            lost: 0,
            doubled: 0,
            reordered: 0,
        }
    }

    /// A site's uplink: 60 ms, 1 Mbit/s.
    pub fn site_line() -> Self {
        Self {
            latency: Duration::from_millis(60),
            jitter: Duration::from_millis(10),
            rate: 125_000,
            ..Self::lan()
        }
    }

    /// A tablet on a bad wireless network: 8 ± 40 ms, 2 MB/s; datagrams suffer.
    pub fn wifi() -> Self {
        Self {
            latency: Duration::from_millis(8),
            jitter: Duration::from_millis(40),
            rate: 2_000_000,
            lost: 100,
            doubled: 20,
            reordered: 100,
            ..Self::lan()
        }
    }
}

/// The network.
#[derive(Debug)]
pub struct Net {
    rng: Rng,
    shape: Shape,
    shapes: BTreeMap<(NodeId, NodeId), Shape>,
    links: BTreeMap<LinkId, Link>,
    down: BTreeMap<NodeId, Down>,
    queue: BinaryHeap<Reverse<Planned>>,
    now: Duration,
    next_event: u64,
    next_link: u64,
    faults: Faults,
}

/// A fault or a closing was asked of a stream that is not there, or bytes were sent on one that is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoStream;

impl Net {
    /// A network whose paths are all of this shape, until [`set_shape`](Self::set_shape).
    pub fn new(rng: Rng, shape: Shape) -> Self {
        Self {
            rng,
            shape,
            shapes: BTreeMap::new(),
            links: BTreeMap::new(),
            down: BTreeMap::new(),
            queue: BinaryHeap::new(),
            now: Duration::ZERO,
            next_event: 0,
            next_link: 0,
            faults: Faults::default(),
        }
    }

    /// Gives the path between two nodes a shape of its own. Streams that are open keep theirs.
    pub fn set_shape(&mut self, a: NodeId, b: NodeId, shape: Shape) {
        self.shapes.insert((a.min(b), a.max(b)), shape);
    }

    /// Time of the last event, or of [`advance_to`](Self::advance_to).
    pub fn now(&self) -> Duration {
        self.now
    }

    /// Lets time pass up to `time`. Events due before must have been taken with [`next`](Self::next).
    ///
    /// # Panics
    /// If an event is due earlier, or the time is past.
    pub fn advance_to(&mut self, time: Duration) {
        assert!(time >= self.now, "time never goes back");
        assert!(
            self.deadline().is_none_or(|due| due >= time),
            "an event is due before {time:?}"
        );
        self.now = time;
    }

    /// Dials. Both ends get [`Event::Open`], the listener first; a node that is down answers with [`Event::Refused`].
    pub fn connect(&mut self, dialer: NodeId, listener: NodeId) -> LinkId {
        assert_ne!(dialer, listener, "a node does not dial itself");
        let link = LinkId(self.next_link);
        self.next_link += 1;
        let shape = self.shape_of(dialer, listener).clone();
        let there = self.now + shape.latency;
        let back = there + shape.latency;
        let ends = [dialer, listener];
        let link_state = Link {
            ends,
            shape,
            ways: Default::default(),
            open: [false; 2],
        };
        self.links.insert(link, link_state);
        self.plan(there, What::Arrived { link });
        self.plan(back, What::Answered { link });
        link
    }

    /// Writes to a stream, as a socket does: returns how many of the bytes fit into the buffer. 0 or fewer than given: [`Event::Writable`] follows.
    ///
    /// # Errors
    /// [`NoStream`] if it is reset, closed by this end, or not of this node.
    pub fn send(&mut self, from: NodeId, link: LinkId, bytes: &[u8]) -> Result<usize, NoStream> {
        let now = self.now;
        let (l, way) = self.way(from, link)?;
        if l.ways[way].closed {
            return Err(NoStream);
        }
        let room = l.shape.buffer.saturating_sub(l.ways[way].in_flight);
        let accepted = bytes.len().min(room);
        l.ways[way].waits_for_room |= accepted < bytes.len();
        l.ways[way].in_flight += accepted;
        if l.ways[way].dead {
            if accepted > 0 {
                self.faults.hit("bytes lost half-open");
            }
            return Ok(accepted);
        }
        let mut rest = &bytes[..accepted];
        while !rest.is_empty() {
            let longest = rest.len().min(self.links[&link].shape.piece);
            // Half of the pieces are as long as may be, half are cut anywhere: a reader that takes a piece for a message is found out.
            let len = if self.rng.coin() {
                longest
            } else {
                1 + self.rng.index(longest)
            };
            let (piece, tail) = rest.split_at(len);
            self.put(now, link, way, Piece::Bytes(piece.to_vec()));
            rest = tail;
        }
        Ok(accepted)
    }

    /// This end will send no more; what it sent still arrives, then [`Event::Eof`].
    ///
    /// # Errors
    /// [`NoStream`] if there is nothing to close.
    pub fn close(&mut self, from: NodeId, link: LinkId) -> Result<(), NoStream> {
        let now = self.now;
        let (l, way) = self.way(from, link)?;
        if std::mem::replace(&mut l.ways[way].closed, true) {
            return Err(NoStream);
        }
        if !l.ways[way].dead {
            self.put(now, link, way, Piece::Fin);
        }
        Ok(())
    }

    /// This end drops the stream; the other one sees [`Event::Reset`], unless the way to it is dead.
    ///
    /// # Errors
    /// [`NoStream`] if there is nothing to drop.
    pub fn reset(&mut self, from: NodeId, link: LinkId) -> Result<(), NoStream> {
        let (_, way) = self.way(from, link)?;
        let l = self.links.remove(&link).ok_or(NoStream)?;
        self.tell_ended(&l, link, 1 - way, l.shape.latency);
        Ok(())
    }

    /// Sends a datagram, which may be lost, doubled or late.
    pub fn datagram(&mut self, from: NodeId, to: NodeId, bytes: &[u8]) {
        let shape = self.shape_of(from, to).clone();
        if self.rng.chance(shape.lost, 1_000) {
            return self.faults.hit("datagram lost");
        }
        let twice = self.rng.chance(shape.doubled, 1_000);
        if twice {
            self.faults.hit("datagram doubled");
        }
        for _ in 0..1 + u8::from(twice) {
            let mut at = self.now + shape.latency + self.jitter(shape.jitter);
            if self.rng.chance(shape.reordered, 1_000) {
                self.faults.hit("datagram reordered");
                at += (shape.latency + shape.jitter) * 2 + self.jitter(shape.latency * 8);
            }
            self.plan(
                at,
                What::Seen {
                    node: to,
                    event: Event::Datagram {
                        from,
                        bytes: bytes.to_vec(),
                    },
                },
            );
        }
    }

    /// Injects a fault now. On a stream that is not there it does nothing.
    ///
    /// # Panics
    /// If the fault names a node that is not an end of the stream.
    pub fn fault(&mut self, link: LinkId, fault: Fault) {
        let Some(l) = self.links.get_mut(&link) else {
            return;
        };
        let from = match fault {
            Fault::Stall { from, .. }
            | Fault::Slow { from, .. }
            | Fault::ResetAt { from, .. }
            | Fault::HalfOpen { from } => from,
        };
        let way = &mut l.ways[l
            .ends
            .iter()
            .position(|end| *end == from)
            .expect("the fault names an end of the stream")];
        match fault {
            Fault::Stall { time, .. } => {
                way.stalled_until = way.stalled_until.max(self.now + time);
                self.faults.hit("stream stalled");
            }
            Fault::Slow { rate, .. } => {
                way.rate = Some(rate.max(1));
                self.faults.hit("stream slowed");
            }
            Fault::ResetAt { byte, .. } => {
                way.reset_at = Some(byte);
                if way.arrived >= byte {
                    self.tear(link);
                }
            }
            Fault::HalfOpen { .. } => {
                way.dead = true;
                // What is under way is lost too, and stays in the buffer of the sender, who waits for an acknowledgement.
                way.pieces.clear();
                self.faults.hit("stream half-open");
            }
        }
    }

    /// Injects a fault at a later time, if the stream is there then.
    pub fn fault_at(&mut self, time: Duration, link: LinkId, fault: Fault) {
        self.plan(time.max(self.now), What::Fault { link, fault });
    }

    /// The process of a node ends: its streams are reset, it accepts none until [`start`](Self::start).
    pub fn kill(&mut self, node: NodeId) {
        self.faults.hit("node killed");
        self.down.insert(node, Down::Refuses);
        for link in self.links_of(node) {
            // An end with nothing to reset any more is as good as reset.
            let _gone = self.reset(node, link);
        }
    }

    /// A node loses power or its cable: its streams die silently both ways.
    pub fn vanish(&mut self, node: NodeId) {
        self.faults.hit("node vanished");
        self.down.insert(node, Down::Silent);
        for link in self.links_of(node) {
            let ends = self.links[&link].ends;
            for from in ends {
                self.fault(link, Fault::HalfOpen { from });
            }
        }
    }

    /// A node that was killed or has vanished accepts streams again. Streams from before stay dead.
    pub fn start(&mut self, node: NodeId) {
        self.down.remove(&node);
    }

    /// Whether a node is down.
    pub fn is_down(&self, node: NodeId) -> bool {
        self.down.contains_key(&node)
    }

    /// The streams of a node, in the order of their opening.
    pub fn links_of(&self, node: NodeId) -> Vec<LinkId> {
        self.links
            .iter()
            .filter(|(_, l)| l.ends.contains(&node))
            .map(|(id, _)| *id)
            .collect()
    }

    /// The streams that are there, with their ends: dialer, listener.
    pub fn links(&self) -> impl Iterator<Item = (LinkId, [NodeId; 2])> {
        self.links.iter().map(|(id, l)| (*id, l.ends))
    }

    /// When the next thing happens inside the network. It need not be one that a node sees.
    pub fn deadline(&self) -> Option<Duration> {
        self.queue.peek().map(|Reverse(planned)| planned.at)
    }

    /// The next event a node sees, up to `until`; time passes to it. `None`: nothing more happens until then, and time has passed to the last
    /// thing that did.
    pub fn next(&mut self, until: Duration) -> Option<(NodeId, Event)> {
        while self.deadline().is_some_and(|due| due <= until) {
            let Reverse(planned) = self.queue.pop()?;
            self.now = self.now.max(planned.at);
            if let Some((node, event)) = self.happen(planned.what)
                && !self.down.contains_key(&node)
            {
                return Some((node, event));
            }
        }
        None
    }

    /// What was injected so far.
    pub fn faults(&self) -> &Faults {
        &self.faults
    }

    fn happen(&mut self, what: What) -> Option<(NodeId, Event)> {
        match what {
            What::Seen { node, event } => Some((node, event)),
            What::Fault { link, fault } => {
                self.fault(link, fault);
                None
            }
            What::Arrived { link } => {
                let l = self.links.get_mut(&link)?;
                let [dialer, listener] = l.ends;
                if l.ways[0].dead || self.down.contains_key(&listener) {
                    return None;
                }
                l.open[1] = true;
                Some((
                    listener,
                    Event::Open {
                        link,
                        peer: dialer,
                        dialer: false,
                    },
                ))
            }
            What::Answered { link } => {
                let l = self.links.get_mut(&link)?;
                let [dialer, listener] = l.ends;
                let silent = l.ways.iter().any(|way| way.dead)
                    || self.down.get(&listener) == Some(&Down::Silent);
                if silent {
                    let at = self.now + CONNECT_TIMEOUT;
                    self.plan(at, What::GivenUp { link });
                    return None;
                }
                if !l.open[1] {
                    self.links.remove(&link);
                    return Some((
                        dialer,
                        Event::Refused {
                            link,
                            peer: listener,
                        },
                    ));
                }
                l.open[0] = true;
                Some((
                    dialer,
                    Event::Open {
                        link,
                        peer: listener,
                        dialer: true,
                    },
                ))
            }
            What::GivenUp { link } => {
                let [dialer, listener] = self.links.remove(&link)?.ends;
                Some((
                    dialer,
                    Event::Refused {
                        link,
                        peer: listener,
                    },
                ))
            }
            What::Piece { link, way } => self.deliver(link, way),
        }
    }

    fn deliver(&mut self, link: LinkId, way: usize) -> Option<(NodeId, Event)> {
        let now = self.now;
        let l = self.links.get_mut(&link)?;
        let (from, to) = (l.ends[way], l.ends[1 - way]);
        let w = &mut l.ways[way];
        if w.dead {
            return None;
        }
        if w.stalled_until > now {
            // Whichever of the waiting pieces is first then goes first: the queue keeps the order.
            let at = w.stalled_until;
            self.plan(at, What::Piece { link, way });
            return None;
        }
        let mut bytes = match w.pieces.pop_front()? {
            Piece::Bytes(bytes) => bytes,
            Piece::Fin => {
                w.fin = true;
                if l.ways.iter().all(|w| w.fin) {
                    self.links.remove(&link);
                }
                return Some((to, Event::Eof { link }));
            }
        };
        w.in_flight -= bytes.len();
        let cut = w
            .reset_at
            .filter(|at| *at <= w.arrived + bytes.len() as u64);
        if let Some(at) = cut {
            bytes.truncate((at - w.arrived) as usize);
        }
        w.arrived += bytes.len() as u64;
        let writable = std::mem::take(&mut w.waits_for_room);
        if cut.is_some() {
            self.tear(link);
        } else if writable {
            self.plan(
                now,
                What::Seen {
                    node: from,
                    event: Event::Writable { link },
                },
            );
        }
        (!bytes.is_empty()).then_some((to, Event::Bytes { link, bytes }))
    }

    /// Something between the ends resets the stream: both see it.
    fn tear(&mut self, link: LinkId) {
        let Some(l) = self.links.remove(&link) else {
            return;
        };
        self.faults.hit("stream reset");
        for end in 0..2 {
            self.tell_ended(&l, link, end, Duration::ZERO);
        }
    }

    /// Lets an end see that the stream has ended before its time, if it can.
    fn tell_ended(&mut self, l: &Link, link: LinkId, end: usize, after: Duration) {
        let node = l.ends[end];
        let deaf = l.ways[1 - end].dead;
        let (at, event) = match (l.open[end], end) {
            (true, _) if deaf => return,
            (true, _) => (after, Event::Reset { link }),
            (false, 0) if deaf => (
                CONNECT_TIMEOUT,
                Event::Refused {
                    link,
                    peer: l.ends[1],
                },
            ),
            (false, 0) => (
                after,
                Event::Refused {
                    link,
                    peer: l.ends[1],
                },
            ),
            // The listener never knew of it.
            (false, _) => return,
        };
        self.plan(self.now + at, What::Seen { node, event });
    }

    fn put(&mut self, now: Duration, link: LinkId, way: usize, piece: Piece) {
        let jitter = self.links[&link].shape.jitter;
        let jitter = self.jitter(jitter);
        let l = self
            .links
            .get_mut(&link)
            .expect("the caller has looked it up");
        let w = &mut l.ways[way];
        let len = match &piece {
            Piece::Bytes(bytes) => bytes.len() as u64,
            Piece::Fin => 0,
        };
        let rate = w.rate.unwrap_or(l.shape.rate).max(1);
        w.sent_at =
            w.sent_at.max(now) + Duration::from_nanos(len.saturating_mul(1_000_000_000) / rate);
        w.arrives_at = w.arrives_at.max(w.sent_at + l.shape.latency + jitter);
        w.pieces.push_back(piece);
        let at = w.arrives_at;
        self.plan(at, What::Piece { link, way });
    }

    fn plan(&mut self, at: Duration, what: What) {
        self.queue.push(Reverse(Planned {
            at,
            number: self.next_event,
            what,
        }));
        self.next_event += 1;
    }

    fn jitter(&mut self, most: Duration) -> Duration {
        Duration::from_nanos(
            self.rng.below(
                u64::try_from(most.as_nanos())
                    .unwrap_or(u64::MAX)
                    .saturating_add(1)
                    .max(1),
            ),
        )
    }

    fn shape_of(&self, a: NodeId, b: NodeId) -> &Shape {
        self.shapes
            .get(&(a.min(b), a.max(b)))
            .unwrap_or(&self.shape)
    }

    fn way(&mut self, from: NodeId, link: LinkId) -> Result<(&mut Link, usize), NoStream> {
        let l = self.links.get_mut(&link).ok_or(NoStream)?;
        let way = l.ends.iter().position(|end| *end == from).ok_or(NoStream)?;
        Ok((l, way))
    }
}

#[derive(Debug)]
struct Link {
    /// Dialer, listener.
    ends: [NodeId; 2],
    shape: Shape,
    /// What `ends[i]` sends.
    ways: [Way; 2],
    /// Which ends have seen it open.
    open: [bool; 2],
}

/// How a node that is down meets a dialer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Down {
    Refuses,
    Silent,
}

#[derive(Debug, Default)]
struct Way {
    pieces: VecDeque<Piece>,
    in_flight: usize,
    arrived: u64,
    /// When the last byte so far has left, and when it arrives.
    sent_at: Duration,
    arrives_at: Duration,
    stalled_until: Duration,
    rate: Option<u64>,
    reset_at: Option<u64>,
    dead: bool,
    closed: bool,
    fin: bool,
    waits_for_room: bool,
}

#[derive(Debug)]
enum Piece {
    Bytes(Vec<u8>),
    Fin,
}

#[derive(Debug)]
enum What {
    Seen { node: NodeId, event: Event },
    Arrived { link: LinkId },
    Answered { link: LinkId },
    GivenUp { link: LinkId },
    Piece { link: LinkId, way: usize },
    Fault { link: LinkId, fault: Fault },
}

#[derive(Debug)]
struct Planned {
    at: Duration,
    number: u64,
    what: What,
}

impl PartialEq for Planned {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}

impl Eq for Planned {}

impl PartialOrd for Planned {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Planned {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}
