//! Nodes, links, faults, and the loop that lets time pass.

use super::{Fuse, FusedLog, FusedStore, MemoryLog, Rng};
use crate::{
    batch::Batch,
    consume::{Consumer, Delivery, LogSink, Refusal, Scope, Step, Takeover},
    core::{
        Time,
        consumer::{Config as ConsumerConfig, ConsumerName, Input as ToConsumer, Planted, Worker},
        replicate::{Config, Counters, Event, Input, Output, Peer, Replicate},
    },
    event::NewEvent,
    feed::FeedId,
    store::{KeyValue, StateStore},
    stream::{Pattern, StreamName},
    wire::{Message, Run},
};
use bytes::Bytes;
use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap},
    sync::Arc,
    time::Duration,
};

/// How links are. Numbers are of 1,000.
#[derive(Debug, Clone)]
pub struct Links {
    /// One way.
    pub latency: Duration,
    /// Up to so much more; what is sent later may come earlier.
    pub jitter: Duration,
    /// Bytes a second, each way.
    pub rate: u64,
    /// Messages lost.
    pub lost: u64,
    /// Messages that come twice.
    pub doubled: u64,
}

impl Links {
    /// Good ones: 5 ms, 10 MB/s.
    pub fn good() -> Self {
        Self {
            latency: Duration::from_millis(5),
            jitter: Duration::ZERO,
            rate: 10_000_000,
            lost: 0,
            doubled: 0,
        }
    }

    /// Bad ones: a tenth lost, a tenth doubled, overtaking.
    pub fn bad() -> Self {
        Self {
            jitter: Duration::from_millis(60),
            lost: 100,
            doubled: 100,
            ..Self::good()
        }
    }
}

/// What happens to the world.
#[derive(Debug, Clone)]
pub enum Fault {
    /// The consumer of a node dies at its n-th operation from now, and is started again.
    KillConsumer(usize, u64),
    /// A node dies now, with everything but its disk, and is started again after this time.
    KillNode(usize, Duration),
    /// Nodes with another number are out of reach.
    Partition(Vec<u32>),
    /// Everybody reaches everybody again.
    Heal,
}

/// What is simulated.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The seed; the rest of the plan and this are the whole run.
    pub seed: u64,
    /// Nodes.
    pub nodes: usize,
    /// The first so many of them write.
    pub writers: usize,
    /// Events of each writer.
    pub events: usize,
    /// Most events of one append.
    pub batch: usize,
    /// The time over which they write.
    pub writing: Duration,
    /// Neighbours of each node, at least; all are connected with all if this is as large as `nodes`.
    pub neighbours: usize,
    /// The links.
    pub links: Links,
    /// When what goes wrong.
    pub faults: Vec<(Time, Fault)>,
    /// Whether each node consumes.
    pub consume: bool,
    /// A bug in the consumers.
    pub planted: Option<Planted>,
    /// Clocks that show any time between 1900 and 2100.
    pub clock_chaos: bool,
    /// Comparisons when nothing is wrong.
    pub sync_interval: Duration,
    /// Every hundredth event of a writer is poison: all consumers refuse it.
    pub poison: bool,
    /// The consumer of node 0 writes an event of `counted` for each one that it counts: takes, processes, puts back.
    pub emits: bool,
    /// The consumer of this node takes a hundred times as long.
    pub slow: Option<usize>,
    /// Node 0 collects from devices: they know it alone and keep what is their own, and it alone consumes.
    pub collects: bool,
}

impl Plan {
    /// Eight writers that count, on good links, and nothing goes wrong.
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            nodes: 8,
            writers: 8,
            events: 500,
            batch: 20,
            writing: Duration::from_secs(20),
            neighbours: 8,
            links: Links::good(),
            faults: Vec::new(),
            consume: true,
            planted: None,
            clock_chaos: false,
            sync_interval: Duration::from_secs(5),
            poison: false,
            emits: false,
            slow: None,
            collects: false,
        }
    }

    /// The light barrier: eight writers count pieces, everybody counts everything; a tenth of the messages is lost, a tenth comes twice, the swarm
    /// falls apart now and then, and there are `kills` deaths of consumers and nodes, half each.
    pub fn light_barrier(seed: u64, counts: usize, kills: usize) -> Self {
        let mut plan = Self::new(seed);
        let mut rng = Rng::new(seed ^ 0x6c69_6768_7400);
        plan.links = Links::bad();
        plan.events = counts / plan.writers;
        plan.writing = Duration::from_millis(((kills as u64) * 400).max(20_000));
        let whole = plan.writing.as_millis() as u64;
        for i in 0..kills {
            let at = Duration::from_millis(rng.below(whole));
            let node = rng.below(plan.nodes as u64) as usize;
            let fault = if i % 2 == 0 {
                Fault::KillConsumer(node, 1 + rng.below(24))
            } else {
                Fault::KillNode(node, Duration::from_millis(rng.below(1_500)))
            };
            plan.faults.push((at, fault));
        }
        for i in 0..(whole / 10_000) {
            let sides = (0..plan.nodes).map(|_| rng.below(2) as u32).collect();
            plan.faults.push((
                Duration::from_millis(i * 10_000 + 2_000),
                Fault::Partition(sides),
            ));
            plan.faults
                .push((Duration::from_millis(i * 10_000 + 6_000), Fault::Heal));
        }
        plan
    }
}

/// What came of a run.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// When all nodes had everything; none: they never did.
    pub converged: Option<Time>,
    /// What each node counted, if it consumes.
    pub counts: Vec<u64>,
    /// Events that were given twice, or not in order.
    pub breaches: u64,
    /// Deaths of consumers and nodes.
    pub kills: u64,
    /// Messages sent, lost and doubled.
    pub messages: (u64, u64, u64),
    /// Bytes sent.
    pub bytes: u64,
    /// Forks told, over all nodes.
    pub forks: u64,
    /// What the nodes did.
    pub counters: Vec<Counters>,
    /// Errors of consumers that no kill explains.
    pub errors: Vec<String>,
}

/// A world in the middle of its run.
#[derive(Debug)]
pub struct World {
    plan: Plan,
    rng: Rng,
    now: Time,
    queue: BinaryHeap<Reverse<(Time, u64, What)>>,
    planned: u64,
    nodes: Vec<Node>,
    neighbours: BTreeSet<(usize, usize)>,
    links: BTreeMap<u64, Link>,
    sides: Option<Vec<u32>>,
    /// Batches that were verified, once for all nodes.
    verified: HashMap<Bytes, Batch>,
    next_link: u64,
    report: Report,
}

#[derive(Debug)]
struct Link {
    ends: [usize; 2],
    /// Until when each direction is busy.
    busy: [Time; 2],
}

/// A node; what is on its disk is `log` and `store`.
#[derive(Debug)]
struct Node {
    log: Arc<MemoryLog>,
    store: FusedStore,
    stream: StreamName,
    /// Of its consumer: each node counts for itself, so each has its own.
    name: ConsumerName,
    replicate: Option<Replicate>,
    consumer: Option<Consumer<FusedLog, FusedStore>>,
    peers: BTreeMap<usize, u64>,
    left: usize,
    wake: Option<Time>,
    is_stepping: bool,
    idle: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum What {
    Deliver { link: u64, to: usize, bytes: Bytes },
    Wake(usize),
    Write(usize),
    Step(usize),
    Fault(usize),
    Restart(usize),
}

/// The work of a consumer that is done in one step of the world.
const STEP: Duration = Duration::from_millis(2);
/// How often an idle consumer looks again.
const IDLE: Duration = Duration::from_millis(200);

impl World {
    /// The world of a plan, at its beginning.
    pub fn new(plan: Plan) -> Self {
        let mut world = Self {
            rng: Rng::new(plan.seed),
            now: Time::ZERO,
            queue: BinaryHeap::new(),
            planned: 0,
            nodes: Vec::new(),
            neighbours: BTreeSet::new(),
            links: BTreeMap::new(),
            sides: None,
            verified: HashMap::new(),
            next_link: 0,
            report: Report::default(),
            plan,
        };
        for i in 0..world.plan.nodes {
            world.add_node(i);
        }
        world.draw_neighbours();
        for (i, (at, _)) in world.plan.faults.clone().into_iter().enumerate() {
            world.plan_at(at, What::Fault(i));
        }
        for node in 0..world.plan.nodes {
            world.boot(node);
        }
        world
    }

    fn add_node(&mut self, i: usize) {
        let mut seed = [0x5a; 32];
        seed[..8].copy_from_slice(&(i as u64).to_be_bytes());
        let node = Node {
            log: Arc::new(MemoryLog::new(seed)),
            store: FusedStore {
                fuse: Fuse::new(),
                ..FusedStore::default()
            },
            stream: stream(i),
            name: counter(i),
            replicate: None,
            consumer: None,
            peers: BTreeMap::new(),
            left: if i < self.plan.writers {
                self.plan.events
            } else {
                0
            },
            wake: None,
            is_stepping: false,
            idle: 0,
        };
        self.nodes.push(node);
        if i < self.plan.writers {
            let at = self.after(self.plan.writing / 50);
            self.plan_at(at, What::Write(i));
        }
    }

    fn draw_neighbours(&mut self) {
        let n = self.plan.nodes;
        if self.plan.collects {
            self.neighbours.extend((1..n).map(|b| (0, b)));
            return;
        }
        for a in 0..n {
            if self.plan.neighbours + 1 >= n {
                self.neighbours.extend((a + 1..n).map(|b| (a, b)));
                continue;
            }
            // A ring keeps everybody in reach; the rest is chance.
            self.neighbours
                .insert((a.min((a + 1) % n), a.max((a + 1) % n)));
            for _ in 1..self.plan.neighbours / 2 {
                let b = self.rng.below(n as u64) as usize;
                if a != b {
                    self.neighbours.insert((a.min(b), a.max(b)));
                }
            }
        }
    }

    /// The log of a node.
    pub fn log(&self, node: usize) -> &Arc<MemoryLog> {
        &self.nodes[node].log
    }

    /// The store of a node's consumer.
    pub fn store(&self, node: usize) -> &FusedStore {
        &self.nodes[node].store
    }

    /// Time since start.
    pub fn now(&self) -> Time {
        self.now
    }

    /// Appends at a node, from outside of the plan.
    pub fn append(&mut self, node: usize, stream: &StreamName, events: Vec<NewEvent>) {
        if let Err(error) = self.nodes[node].log.append(stream, events) {
            self.report.errors.push(error.to_string());
        }
        self.tell_growth(node);
        self.drain(node);
    }

    /// Gives a node another disk, as if somebody had copied one onto it.
    pub fn replace_log(&mut self, node: usize, log: MemoryLog) {
        self.kill(node);
        self.nodes[node].log = Arc::new(log);
        self.boot(node);
    }

    /// A fault now.
    pub fn fault(&mut self, fault: Fault) {
        match fault {
            Fault::KillConsumer(node, after) => self.nodes[node].store.fuse.set(after),
            Fault::KillNode(node, down) => {
                if self.nodes[node].replicate.is_some() {
                    self.report.kills += 1;
                    self.kill(node);
                    self.plan_at(self.now + down, What::Restart(node));
                }
            }
            Fault::Partition(sides) => {
                self.sides = Some(sides);
                self.reconnect();
            }
            Fault::Heal => {
                self.sides = None;
                self.reconnect();
            }
        }
    }

    /// Lets everything happen up to `time`.
    pub fn run_until(&mut self, time: Time) {
        while let Some(Reverse((at, ..))) = self.queue.peek() {
            if *at > time {
                break;
            }
            if let Some(Reverse((at, _, what))) = self.queue.pop() {
                self.now = at;
                self.happen(what);
            }
        }
        self.now = time;
    }

    /// Runs until all nodes have and have consumed the same, or until `time`. It is looked at every `every`.
    pub fn run_until_converged(&mut self, time: Time, every: Duration) -> bool {
        while self.now < time {
            self.run_until((self.now + every).min(time));
            if self.is_converged() {
                self.report.converged = Some(self.now);
                return true;
            }
        }
        false
    }

    /// Whether all is written, everybody has everything, and all of it is consumed.
    pub fn is_converged(&self) -> bool {
        let done = self
            .nodes
            .iter()
            .all(|node| node.left == 0 && node.replicate.is_some());
        done && self.disagreements().is_empty()
            && (!self.plan.consume || self.nodes.iter().all(Node::is_consumed))
    }

    /// Nodes that have not what node 0 has: other last batches, or another total order.
    pub fn disagreements(&self) -> Vec<usize> {
        let tips = self.nodes[0].log.all_tips();
        let differs = |node: &usize| self.nodes[*node].log.all_tips() != tips;
        (1..self.nodes.len()).filter(differs).collect()
    }

    /// What came of it so far.
    pub fn report(&self) -> Report {
        let mut report = self.report.clone();
        report.counters = self
            .nodes
            .iter()
            .filter_map(|node| node.replicate.as_ref())
            .map(|r| r.counters().clone())
            .collect();
        if self.plan.consume {
            report.counts = self.nodes.iter().map(Node::counted).collect();
            report.breaches = self.nodes.iter().map(|node| node.read(BREACHES)).sum();
        }
        report
    }

    fn happen(&mut self, what: What) {
        match what {
            What::Deliver { link, to, bytes } => self.deliver(link, to, &bytes),
            What::Wake(node) => {
                if self.nodes[node].wake == Some(self.now) {
                    self.nodes[node].wake = None;
                    let now = self.now;
                    if let Some(replicate) = &mut self.nodes[node].replicate {
                        replicate.expire(now);
                    }
                    self.drain(node);
                }
            }
            What::Write(node) => self.write(node),
            What::Step(node) => self.step(node),
            What::Fault(i) => self.fault(self.plan.faults[i].1.clone()),
            What::Restart(node) => self.boot(node),
        }
    }

    fn boot(&mut self, node: usize) {
        if self.nodes[node].replicate.is_some() {
            return;
        }
        let mut config = Config::new(self.kept(node));
        config.sync_interval = self.plan.sync_interval;
        config.patience = Duration::from_secs(2);
        let mut replicate = Replicate::new(config);
        let log = Arc::clone(&self.nodes[node].log);
        log.grown();
        let feeds: BTreeSet<FeedId> = log.all_tips().into_iter().map(|tip| tip.feed).collect();
        for feed in feeds {
            let tips = log.tips(&feed);
            let batch = None;
            replicate.handle(Input::Local { feed, tips, batch }, self.now);
        }
        self.nodes[node].replicate = Some(replicate);
        self.reconnect();
        self.drain(node);
        self.plan_step(node, self.now + STEP);
    }

    /// The streams that a node keeps.
    fn kept(&self, node: usize) -> Vec<Pattern> {
        match self.plan.collects && node != 0 {
            true => vec![pattern(self.nodes[node].stream.as_str())],
            false => all_streams(),
        }
    }

    fn consumes(&self, node: usize) -> bool {
        self.plan.consume && (node == 0 || !self.plan.collects)
    }

    fn kill(&mut self, node: usize) {
        for link in self.nodes[node].peers.values().copied().collect::<Vec<_>>() {
            self.disconnect(link);
        }
        self.nodes[node].replicate = None;
        self.nodes[node].consumer = None;
        self.nodes[node].store.fuse.mend();
    }

    /// Cuts links that may not be, and opens those that may.
    fn reconnect(&mut self) {
        for (a, b) in self.neighbours.clone() {
            let apart = self
                .sides
                .as_ref()
                .is_some_and(|sides| sides[a] != sides[b]);
            let up =
                self.nodes[a].replicate.is_some() && self.nodes[b].replicate.is_some() && !apart;
            match self.nodes[a].peers.get(&b).copied() {
                Some(link) if !up => self.disconnect(link),
                None if up => self.connect(a, b),
                _ => {}
            }
        }
    }

    fn connect(&mut self, a: usize, b: usize) {
        self.next_link += 1;
        let link = self.next_link;
        let ends = Link {
            ends: [a, b],
            busy: [self.now; 2],
        };
        self.links.insert(link, ends);
        for (node, other, begins) in [(b, a, false), (a, b, true)] {
            self.nodes[node].peers.insert(other, link);
            let input = Input::Connected {
                peer: Peer(link),
                begins,
            };
            self.handle(node, input);
        }
    }

    fn disconnect(&mut self, link: u64) {
        if let Some(Link { ends: [a, b], .. }) = self.links.remove(&link) {
            for (node, other) in [(a, b), (b, a)] {
                self.nodes[node].peers.remove(&other);
                self.handle(node, Input::Disconnected(Peer(link)));
            }
        }
    }

    fn handle(&mut self, node: usize, input: Input) {
        let now = self.now;
        if let Some(replicate) = &mut self.nodes[node].replicate {
            replicate.handle(input, now);
            self.drain(node);
        }
    }

    /// Does what a node wants done.
    fn drain(&mut self, node: usize) {
        while let Some(output) = self.nodes[node]
            .replicate
            .as_mut()
            .and_then(Replicate::poll)
        {
            match output {
                Output::Send { peer, message } => self.send(node, peer, &message),
                Output::Append {
                    ticket, batches, ..
                } => {
                    let result = self.nodes[node].log.append_replica(&batches);
                    // It is told by the answer.
                    self.nodes[node].log.grown();
                    self.answer(node, Input::Appended { ticket, result });
                    self.plan_step(node, self.now + STEP);
                }
                Output::Load {
                    ticket,
                    feed,
                    from,
                    tip,
                    bytes,
                } => {
                    let (batches, more, starts) =
                        self.nodes[node].log.load(&feed, from, tip, bytes);
                    self.answer(
                        node,
                        Input::Loaded {
                            ticket,
                            batches,
                            more,
                            starts,
                        },
                    );
                }
                Output::Lookup { ticket, tips } => {
                    let tips = self.nodes[node].log.unknown(tips);
                    self.answer(node, Input::Unknown { ticket, tips });
                }
                Output::Event(Event::Fork { .. }) => self.report.forks += 1,
                Output::Announce(_) | Output::Event(_) => {}
            }
        }
        self.arm(node);
    }

    fn answer(&mut self, node: usize, input: Input) {
        let now = self.now;
        if let Some(replicate) = &mut self.nodes[node].replicate {
            replicate.handle(input, now);
        }
    }

    fn arm(&mut self, node: usize) {
        let due = self.nodes[node]
            .replicate
            .as_ref()
            .and_then(Replicate::deadline);
        if let Some(due) = due.map(|due| due.max(self.now))
            && self.nodes[node].wake.is_none_or(|wake| wake > due)
        {
            self.nodes[node].wake = Some(due);
            self.plan_at(due, What::Wake(node));
        }
    }

    fn send(&mut self, from: usize, peer: Peer, message: &Message) {
        let bytes = Bytes::from(message.encode());
        self.report.messages.0 += 1;
        self.report.bytes += bytes.len() as u64;
        let Links {
            latency,
            jitter,
            rate,
            lost,
            doubled,
        } = self.plan.links.clone();
        if self.rng.chance(lost, 1_000) {
            self.report.messages.1 += 1;
            return;
        }
        let copies = 1 + usize::from(self.rng.chance(doubled, 1_000));
        self.report.messages.2 += copies as u64 - 1;
        let Some(link) = self.links.get_mut(&peer.0) else {
            return;
        };
        let way = usize::from(link.ends[0] != from);
        let to = link.ends[1 - way];
        let takes = Duration::from_nanos(bytes.len() as u64 * 1_000_000_000 / rate.max(1));
        link.busy[way] = link.busy[way].max(self.now) + takes;
        let arrives = link.busy[way] + latency;
        for _ in 0..copies {
            let late = Duration::from_nanos(self.rng.below(jitter.as_nanos() as u64 + 1));
            let bytes = bytes.clone();
            let link = peer.0;
            self.plan_at(arrives + late, What::Deliver { link, to, bytes });
        }
    }

    fn deliver(&mut self, link: u64, to: usize, bytes: &Bytes) {
        if !self.links.contains_key(&link) {
            return;
        }
        let peer = Peer(link);
        match Message::decode(bytes) {
            Ok(Message::Batches(batches)) => {
                let mut runs = Vec::new();
                for run in batches.runs {
                    let verified: Option<Vec<Batch>> =
                        run.batches.iter().map(|batch| self.verify(batch)).collect();
                    let Some(verified) = verified else {
                        return self.handle(to, Input::Misbehaved(peer));
                    };
                    runs.push(Run {
                        want: run.want,
                        batches: verified,
                        more: run.more,
                        starts: run.starts,
                    });
                }
                let (id, busy_ms) = (batches.id, batches.busy_ms);
                self.handle(
                    to,
                    Input::Batches {
                        peer,
                        id,
                        runs,
                        busy_ms,
                    },
                );
            }
            Ok(Message::Announce(announce)) => {
                if let Some(bytes) = &announce.batch {
                    match self.verify(bytes) {
                        Some(batch) => self.handle(to, Input::Pushed { peer, batch }),
                        None => return self.handle(to, Input::Misbehaved(peer)),
                    }
                }
                let message = Message::Announce(announce);
                self.handle(to, Input::Message { peer, message });
            }
            Ok(message) => self.handle(to, Input::Message { peer, message }),
            Err(_) => self.handle(to, Input::Misbehaved(peer)),
        }
    }

    fn verify(&mut self, bytes: &Bytes) -> Option<Batch> {
        if let Some(batch) = self.verified.get(bytes) {
            return Some(batch.clone());
        }
        let batch = Batch::decode(Bytes::copy_from_slice(bytes)).ok()?;
        self.verified.insert(batch.bytes().clone(), batch.clone());
        Some(batch)
    }

    fn write(&mut self, node: usize) {
        let end = self.plan.writing;
        if self.nodes[node].left > 0 {
            let events = self.plan.events.max(1) as u32;
            let next = self.after(end * (self.plan.batch as u32) / events);
            // What is left at the end is written at the end, or when the node is up again.
            let latest = end.max(self.now + Duration::from_secs(1));
            self.plan_at(next.min(latest), What::Write(node));
        }
        if self.nodes[node].replicate.is_none() {
            return;
        }
        let left = self.nodes[node].left;
        let most = self.plan.batch.min(left).max(1);
        let count = match self.now >= end {
            true => left,
            false => left.min(1 + self.rng.below(most as u64) as usize),
        };
        self.nodes[node].left -= count;
        let first = self.plan.events - left;
        let events: Vec<NewEvent> = (first..first + count)
            .map(|n| NewEvent::new(self.wall(), self.payload(n)))
            .collect();
        if !events.is_empty() {
            let stream = self.nodes[node].stream.clone();
            self.append(node, &stream, events);
            self.plan_step(node, self.now + STEP);
        }
    }

    fn payload(&self, n: usize) -> &'static [u8] {
        if self.plan.poison && is_poison(n as u64) {
            POISON
        } else {
            b"1 piece"
        }
    }

    fn wall(&mut self) -> i64 {
        const CENTURY_MS: u64 = 100 * 365 * 24 * 3600 * 1000;
        if self.plan.clock_chaos {
            return self.rng.below(2 * CENTURY_MS) as i64 - CENTURY_MS as i64;
        }
        1_767_225_600_000 + self.now.as_millis() as i64
    }

    /// Tells replication what the consumer, or anybody, appended here.
    fn tell_growth(&mut self, node: usize) {
        for feed in self.nodes[node].log.grown() {
            let log = &self.nodes[node].log;
            let tips = log.tips(&feed);
            let batch = (tips.len() == 1).then(|| log.last(&feed)).flatten();
            self.answer(node, Input::Local { feed, tips, batch });
        }
    }

    /// A step of a consumer; it may die in the middle.
    fn step(&mut self, i: usize) {
        self.nodes[i].is_stepping = false;
        if !self.consumes(i) || self.nodes[i].replicate.is_none() {
            return;
        }
        let now = self.now;
        let emits = self.plan.emits && i == 0;
        let planted = self.plan.planted;
        let node = &mut self.nodes[i];
        let result = node.consume(planted, emits, now);
        let pause = match result {
            Ok(Step::Worked(_)) => {
                node.idle = 0;
                if self.plan.slow == Some(i) {
                    STEP * 100
                } else {
                    STEP
                }
            }
            // Whoever has long had nothing to do looks less often; what arrives wakes it.
            Ok(Step::Idle(_)) => {
                node.idle += 1;
                IDLE * node.idle.min(50)
            }
            Err(error) => {
                node.consumer = None;
                if node.store.fuse.is_blown() {
                    self.report.kills += 1;
                } else {
                    self.report.errors.push(error);
                }
                node.store.fuse.mend();
                STEP * 5
            }
        };
        self.tell_growth(i);
        self.drain(i);
        self.plan_step(i, now + pause);
    }

    fn plan_step(&mut self, node: usize, at: Time) {
        if self.consumes(node) && !self.nodes[node].is_stepping {
            self.nodes[node].is_stepping = true;
            self.plan_at(at, What::Step(node));
        }
    }

    fn plan_at(&mut self, at: Time, what: What) {
        self.planned += 1;
        self.queue
            .push(Reverse((at.max(self.now), self.planned, what)));
    }

    fn after(&mut self, most: Duration) -> Time {
        let most = most.as_nanos().max(1) as u64;
        self.now + Duration::from_nanos(self.rng.below(most))
    }
}

impl Node {
    fn consume(
        &mut self,
        planted: Option<Planted>,
        emits: bool,
        now: Time,
    ) -> Result<Step, String> {
        if self.consumer.is_none() {
            let mut config = ConsumerConfig::new(self.name.clone(), line_streams());
            config.planted = planted;
            config.batch = 50;
            let log = FusedLog {
                log: Arc::clone(&self.log),
                fuse: self.store.fuse.clone(),
            };
            let author = self.log.author();
            let opened = Consumer::open(
                log,
                self.store.clone(),
                author,
                config,
                Takeover::Continue,
                now,
            );
            self.consumer = Some(opened.map_err(|error| error.to_string())?);
        }
        let Some(consumer) = &self.consumer else {
            return Ok(Step::Idle(None));
        };
        for feed in self.log.changed() {
            consumer
                .tell(ToConsumer::Changed(feed), now)
                .map_err(|error| error.to_string())?;
        }
        consumer
            .step(Worker(1), now, |delivery, tx| count(delivery, tx, emits))
            .map_err(|error| error.to_string())
    }

    fn counted(&self) -> u64 {
        self.read(COUNT)
    }

    fn read(&self, key: &[u8]) -> u64 {
        let tx = self.store.store.begin();
        tx.and_then(|mut tx| tx.count(key)).unwrap_or(u64::MAX)
    }

    /// Whether the consumer is at the end of every feed that it reads; also of one that has just come, and of which it was not told yet.
    fn is_consumed(&self) -> bool {
        let Some(consumer) = &self.consumer else {
            return false;
        };
        let places = consumer.lag();
        let is_at_end = |feed: &FeedId| {
            let tips = self.log.tips(feed);
            let mut places = places.iter().filter(|lag| lag.feed == *feed);
            places.any(|lag| tips.iter().any(|(next, _)| *next == lag.next))
        };
        let streams = line_streams();
        let all = self.log.all_tips();
        let feeds = all.iter().map(|tip| &tip.feed);
        let mut read = feeds.filter(|feed| streams.iter().any(|p| p.matches(&feed.stream)));
        consumer.behind() == 0 && read.all(is_at_end)
    }
}

/// The sum of all pieces.
const COUNT: &[u8] = b"count";
/// Events that were given twice or out of order.
const BREACHES: &[u8] = b"breaches";

/// What no consumer can work on.
const POISON: &[u8] = b"poison";

fn is_poison(n: u64) -> bool {
    n % 100 == 50
}

/// The reference consumer: it counts, and it checks that each event of a feed follows on the one before, but for poison.
fn count<Tx: KeyValue>(
    delivery: &Delivery,
    tx: &mut Scope<'_, Tx>,
    emits: bool,
) -> Result<(), Refusal> {
    if delivery.event.payload == POISON {
        return Err("nobody can work on this".into());
    }
    let mut place = Vec::new();
    delivery.id.feed.put(&mut place);
    let (expected, seq) = (tx.count(&place)?, delivery.id.seq);
    let is_next = expected <= seq && (expected..seq).all(is_poison);
    if !is_next {
        tx.add(BREACHES, 1)?;
    }
    tx.put(&place, &(seq + 1).to_be_bytes())?;
    tx.add(COUNT, 1)?;
    if emits {
        tx.emit(counted(), NewEvent::new(delivery.event.time, &b"1"[..]));
    }
    Ok(())
}

/// Where [`Plan::emits`] puts back.
fn counted() -> StreamName {
    StreamName::new("counted").unwrap_or_else(|_| unreachable!("a good name"))
}

fn counter(i: usize) -> ConsumerName {
    ConsumerName::new(&format!("counter-{i}")).unwrap_or_else(|_| unreachable!("a good name"))
}

fn stream(i: usize) -> StreamName {
    StreamName::new(&format!("line/{i}/pieces")).unwrap_or_else(|_| unreachable!("a good name"))
}

fn pattern(text: &str) -> Pattern {
    Pattern::new(text).unwrap_or_else(|_| unreachable!("a good pattern"))
}

fn line_streams() -> Vec<Pattern> {
    vec![pattern("line/+/pieces")]
}

/// Everything, dead letters and claims among it.
fn all_streams() -> Vec<Pattern> {
    vec![pattern("#"), pattern("$dead/#"), pattern("$consumer/#")]
}
