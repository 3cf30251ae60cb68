//! The loop: what happens next, to whom, and what a driver would do with what the core wants.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use libp2p_identity::PeerId;

use super::hostile::{AGAIN, Hostile, TICK, is_signed};
use super::link::{Link, OnLine, PipeState, losses};
use super::node::{self, Honest, Joined};
use super::plan::{Break, Leave, Manner, Plan, Readers, Topology};
use super::watch::{Broken, Rule, Sent, Terms, Watch};
use super::{INVENTED, number_of, peer_id, sign};
use crate::core::{CloseCause, Event, Input, Mode, Output, Ticket, Verdict};
use crate::hash::{Dice, Keyed};
use crate::message::{Message, Topic};
use crate::seen::Source;
use crate::wire::{self, Frame, FrameBuilder, Reader, VerifyOutcome, Version, read_length};
use crate::{StreamReport, Time};

/// The wall clock at the start of each run: the year 2030.
const WALL: u64 = 1_893_456_000 * 1_000_000_000;
/// Between two looks at what every node holds.
const CHECK: Duration = Duration::from_secs(1);
/// A stream may be without success for so long while its connection stands and carries: the longest pause, and the opening.
const REOPENS: Duration = Duration::from_secs(90);
/// A dialer's pause.
const REDIAL: Duration = Duration::from_secs(1);
/// No new messages for a peer with too much that waits for its verdict, as the handler does.
const REST: Duration = Duration::from_millis(250);

pub(super) struct World {
    pub(super) plan: Plan,
    pub(super) now: Time,
    pub(super) dice: Dice,
    queue: BinaryHeap<Entry>,
    next: u64,
    pub(super) steps: u64,
    pub(super) nodes: Vec<Node>,
    ids: Vec<PeerId>,
    pub(super) links: Vec<Link>,
    /// Of each node: its links by the other end.
    pub(super) joined: Vec<Joined>,
    pub(super) topics: Vec<Topic>,
    pub(super) watch: Watch,
    /// Answers to what a core wants, in order; empty between two steps.
    todo: VecDeque<Input>,
    /// Own messages on their way, by node and number of the publication.
    publishing: HashMap<(u32, u64), u32, Keyed>,
    hushed: bool,
    /// The message that was looked at last: it goes to several peers, one after the other.
    looked_at: (Bytes, Option<u32>),
}

pub(super) enum Node {
    Honest(Box<Honest>),
    Hostile(Box<Hostile>),
}

/// What happens at a time.
#[derive(Debug)]
pub(super) enum What {
    Timer(u32),
    /// Bytes are at the reader's end of the line.
    Arrive(OnLine),
    /// They are read.
    Read(OnLine),
    Opened {
        link: u32,
        end: usize,
        epoch: u32,
    },
    Lost {
        link: u32,
        end: usize,
        epoch: u32,
    },
    /// The window has room again.
    Credit {
        link: u32,
        end: usize,
        epoch: u32,
    },
    Verified {
        node: u32,
        life: u32,
        ticket: Ticket,
        outcome: VerifyOutcome,
    },
    Dial(u32),
    Dialled(u32),
    /// The other end closed.
    Hangup {
        link: u32,
        end: usize,
        generation: u32,
    },
    Act(u32),
    Check,
}

struct Entry {
    at: Time,
    number: u64,
    what: What,
}

impl World {
    pub(super) fn new(plan: &Plan) -> Self {
        let mut dice = Dice::new(plan.seed);
        let topics: Vec<Topic> = plan
            .topics
            .iter()
            .filter_map(|(name, _)| Topic::new(name).ok())
            .collect();
        let terms = plan
            .topics
            .iter()
            .map(|(_, options)| Terms::new(&plan.config, options))
            .collect();
        let mut nodes = Vec::new();
        for number in 0..plan.honest as u32 {
            let honest = Honest::new(plan, number, dice.next_u64());
            nodes.push(Node::Honest(Box::new(honest)));
        }
        for (manner, count) in &plan.hostile {
            for _ in 0..*count {
                let number = nodes.len() as u32;
                let own = Dice::new(dice.next_u64());
                let ttl = plan.config.seen_ttl();
                let hostile = Hostile::new(number, *manner, topics.clone(), ttl, own);
                nodes.push(Node::Hostile(Box::new(hostile)));
            }
        }
        let mut world = Self {
            plan: plan.clone(),
            now: Time::ZERO,
            queue: BinaryHeap::new(),
            next: 0,
            steps: 0,
            joined: vec![Joined::new(); nodes.len()],
            ids: (0..nodes.len() as u32).map(peer_id).collect(),
            nodes,
            links: Vec::new(),
            topics,
            watch: Watch::new(terms, dice.next_u64()),
            todo: VecDeque::new(),
            publishing: HashMap::with_hasher(Keyed::new(dice.next_u64())),
            hushed: false,
            looked_at: (Bytes::new(), None),
            dice,
        };
        world.join_all();
        for n in 0..plan.honest as u32 {
            world.start(n);
        }
        world.at(CHECK, What::Check);
        world
    }

    // --- who is joined with whom

    fn join_all(&mut self) {
        let honest = self.plan.honest as u32;
        for anchor in 0..self.plan.anchors as u32 {
            for n in anchor + 1..honest {
                self.join(n, anchor);
            }
        }
        match self.plan.topology {
            Topology::Full => {
                for a in 0..honest {
                    for b in a + 1..honest {
                        // Who dials decides who counts as our own choice.
                        let (a, b) = if self.dice.below(2) == 0 {
                            (a, b)
                        } else {
                            (b, a)
                        };
                        self.join(a, b);
                    }
                }
            }
            Topology::Line => {
                for a in 1..honest {
                    self.join(a - 1, a);
                }
            }
            Topology::Random { dials } => {
                for a in 0..honest {
                    for _ in 0..dials.min(self.nodes.len() - 1) {
                        let b = self.dice.below(self.nodes.len()) as u32;
                        self.join(a, b);
                    }
                }
            }
        }
        for a in honest..self.nodes.len() as u32 {
            let mut others: Vec<u32> = (0..honest).collect();
            self.dice.choose(&mut others, self.plan.hostile_dials);
            for b in others {
                self.join(a, b);
            }
        }
        // Not all in one moment.
        for link in 0..self.links.len() as u32 {
            let at = Duration::from_micros(self.dice.below(500_000) as u64);
            self.at(at, What::Dial(link));
        }
    }

    /// `a` dials `b`, if they are not joined.
    fn join(&mut self, a: u32, b: u32) -> Option<u32> {
        if a == b || self.joined[a as usize].contains_key(&b) {
            return None;
        }
        let link = Link::new(a, b, &self.plan.links, &mut self.dice);
        let number = self.links.len() as u32;
        self.links.push(link);
        self.joined[a as usize].insert(b, number);
        self.joined[b as usize].insert(a, number);
        Some(number)
    }

    /// A process begins.
    fn start(&mut self, n: u32) {
        let wall_nanos = WALL + self.now.as_nanos() as u64;
        let stored = self.honest(n).stored;
        self.input(n, Input::SequenceLoaded { stored, wall_nanos });
        let reads = match self.plan.readers {
            Readers::All => true,
            Readers::Ends => n == 0 || n as usize + 1 == self.plan.honest,
        };
        if !reads {
            return;
        }
        for i in 0..self.topics.len() {
            let (topic, mut options) = (self.topics[i].clone(), self.plan.topics[i].1.clone());
            if self.plan.allow_list {
                options = options.with_authors((0..self.plan.honest as u32).map(peer_id));
            }
            let now = self.now;
            let node = self.honest(n);
            node.subscribes = true;
            // Refused only where the plan itself is wrong; then nothing arrives, which the report shows.
            let _refused = node
                .core
                .subscribe_with(&mut node.seen, &topic, options, now);
            self.settle(n);
        }
    }

    pub(super) fn unsubscribe(&mut self, n: u32) {
        for topic in self.topics.clone() {
            let now = self.now;
            let node = self.honest(n);
            node.core.unsubscribe(&mut node.seen, &topic, now);
            self.settle(n);
        }
    }

    fn dial(&mut self, l: u32) {
        let (up, now) = (self.both_up(l), self.now);
        let link = &mut self.links[l as usize];
        let stands = link.known[0] && link.known[1] && !link.cut[0] && !link.cut[1];
        if !link.wanted || link.dialling || stands {
            return;
        }
        // A dial goes around a connection that is half dead, not around a cut in the network.
        if !up || link.blocked {
            let again = REDIAL * 2 + Duration::from_micros(self.dice.below(500_000) as u64);
            return self.at(now + again, What::Dial(l));
        }
        link.dialling = true;
        let at = now + link.latency * 4;
        self.at(at, What::Dialled(l));
    }

    fn dialled(&mut self, l: u32) {
        self.links[l as usize].dialling = false;
        if !self.both_up(l) || self.links[l as usize].blocked {
            return self.at(self.now + REDIAL, What::Dial(l));
        }
        for end in [0, 1] {
            self.forget_end(l, end);
        }
        let now = self.now;
        let link = &mut self.links[l as usize];
        link.connect(now);
        link.known = [true, true];
        let (ends, dialer) = (link.ends, link.dialer);
        for end in [0, 1] {
            let peer = self.ids[ends[1 - end] as usize];
            let outbound = end == dialer;
            match &mut self.nodes[ends[end] as usize] {
                Node::Honest(_) => self.input(ends[end], Input::Connected { peer, outbound }),
                Node::Hostile(hostile) => {
                    hostile.seen.join(peer);
                    let first = !std::mem::replace(&mut hostile.ticks, true);
                    let start = Duration::from_micros(self.dice.below(500_000) as u64);
                    if first {
                        self.at(now + start, What::Act(ends[end]));
                    }
                    self.open(l, end);
                }
            }
        }
    }

    fn both_up(&self, l: u32) -> bool {
        let ends = self.links[l as usize].ends;
        ends.iter().all(|n| match &self.nodes[*n as usize] {
            Node::Honest(node) => node.present,
            Node::Hostile(_) => true,
        })
    }

    /// One end has no connection any more, and nothing of it.
    fn forget_end(&mut self, l: u32, end: usize) {
        let now = self.now;
        let link = &mut self.links[l as usize];
        if !std::mem::take(&mut link.known[end]) {
            return;
        }
        link.pipes[end].close(now);
        let (n, other) = (link.ends[end], link.ends[1 - end]);
        self.watch.found(|broken| broken.link == l, now);
        if let Node::Honest(_) = &self.nodes[n as usize] {
            let peer = self.ids[other as usize];
            self.input(n, Input::Disconnected { peer });
            self.check_gone(n, peer);
        }
    }

    fn check_gone(&mut self, n: u32, peer: PeerId) {
        let Node::Honest(node) = &self.nodes[n as usize] else {
            return;
        };
        let core = &node.core;
        let kept = core.why(&peer).is_some()
            || self
                .topics
                .iter()
                .any(|t| core.subscribers(t).contains(&peer) || core.mesh(t).contains(&peer));
        if kept {
            self.watch.breach(Rule::GoneIsGone, || {
                format!("node {n} keeps something of {peer}")
            });
        }
    }

    /// An end closes its connection; the other learns of it, if anything passes.
    fn close(&mut self, l: u32, end: usize, again: Option<Duration>) {
        let link = &mut self.links[l as usize];
        if !link.known[end] {
            return;
        }
        let (generation, other) = (link.generation, 1 - end);
        let what = What::Hangup {
            link: l,
            end: other,
            generation,
        };
        let at = self.now + link.latency;
        if link.blocked {
            link.limbo.push(what);
        } else if !link.cut[end] {
            self.at(at, what);
        }
        self.forget_end(l, end);
        if let Some(again) = again {
            let jitter = Duration::from_micros(self.dice.below(1_000_000) as u64);
            self.at(self.now + again + jitter, What::Dial(l));
        }
    }

    // --- what breaks

    /// Breaks a stream between two honest nodes that stands, if there is one.
    pub(super) fn break_one(&mut self, how: Break) {
        let honest = self.plan.honest as u32;
        for _ in 0..100 {
            let l = self.dice.below(self.links.len()) as u32;
            let end = self.dice.below(2);
            let link = &self.links[l as usize];
            let ours = link.ends.iter().all(|n| *n < honest);
            let stands = link.known == [true, true] && link.is_whole();
            let busy = self
                .watch
                .broken
                .iter()
                .rev()
                .take_while(|b| b.at + Duration::from_secs(70) > self.now)
                .any(|b| b.link == l);
            let pipe = &link.pipes[end];
            if ours && stands && !busy && pipe.state == PipeState::Open && !pipe.deaf {
                return self.break_stream(l, end, how);
            }
        }
    }

    fn break_stream(&mut self, l: u32, end: usize, how: Break) {
        let now = self.now;
        let link = &mut self.links[l as usize];
        let epoch = link.pipes[end].epoch;
        self.watch.broken.push(Broken {
            at: now,
            link: l,
            end,
            how,
            epoch,
            found: None,
            healed: None,
        });
        match how {
            Break::Deaf => link.pipes[end].deaf = true,
            Break::HalfOpen => link.cut[end] = true,
            Break::Dead => link.cut = [true, true],
            Break::Reset => {
                let at = now + link.latency;
                link.pipes[end].deaf = true;
                self.at(
                    at,
                    What::Lost {
                        link: l,
                        end,
                        epoch,
                    },
                );
            }
            Break::Closed => self.close(l, end, Some(REDIAL)),
        }
    }

    /// Nothing passes on these links, until [`heal`](Self::heal).
    pub(super) fn block(&mut self, apart: impl Fn(u32, u32) -> bool) {
        for link in &mut self.links {
            link.blocked |= apart(link.ends[0], link.ends[1]);
        }
    }

    pub(super) fn heal(&mut self) {
        for l in 0..self.links.len() {
            let link = &mut self.links[l];
            if !std::mem::take(&mut link.blocked) {
                continue;
            }
            let at = self.now + link.latency * 3;
            for what in std::mem::take(&mut self.links[l].limbo) {
                self.at(at, what);
            }
        }
    }

    /// A node leaves.
    pub(super) fn leave(&mut self, n: u32, how: Leave) {
        let links: Vec<u32> = self.joined[n as usize].values().copied().collect();
        for l in links {
            let end = self.links[l as usize].end_of(n);
            match how {
                Leave::Disconnect | Leave::Restart => self.close(l, end, None),
                Leave::PowerCut => {
                    self.links[l as usize].cut = [true, true];
                    let now = self.now;
                    let link = &mut self.links[l as usize];
                    link.known[end] = false;
                    link.pipes[end].close(now);
                }
            }
        }
        let now = self.now;
        let node = self.honest(n);
        node.present = false;
        node.up = how == Leave::Disconnect;
        node.away.push((now, Time::MAX));
    }

    /// It comes back.
    pub(super) fn come_back(&mut self, n: u32, how: Leave) {
        let (now, seed) = (self.now, self.dice.next_u64());
        let plan = std::mem::replace(&mut self.plan, Plan::new("", 0));
        let node = self.honest(n);
        (node.up, node.present) = (true, true);
        if let Some(last) = node.away.last_mut() {
            last.1 = now;
        }
        if how != Leave::Disconnect {
            node.restart(&plan, n, seed);
        }
        self.plan = plan;
        if how != Leave::Disconnect {
            self.start(n);
        }
        let links: Vec<u32> = self.joined[n as usize].values().copied().collect();
        for l in links {
            self.at(self.now, What::Dial(l));
        }
        self.arm(n);
    }

    /// Hostile nodes do nothing any more.
    pub(super) fn hush(&mut self) {
        self.hushed = true;
    }

    // --- what is published

    /// An honest node that subscribes, or would be asked to publish, and is there.
    pub(super) fn some_publisher(&mut self) -> Option<u32> {
        for _ in 0..100 {
            let n = self.dice.below(self.plan.honest) as u32;
            let node = self.honest(n);
            if node.present && node.subscribes {
                return Some(n);
            }
        }
        None
    }

    pub(super) fn publish(&mut self, n: u32, topic: usize, bytes: usize) {
        let message = self.watch.sent.len() as u32;
        self.watch.sent.push(Sent {
            at: self.now,
            origin: n,
            topic,
            left: None,
        });
        let mut data = vec![0; bytes.max(8)];
        data[..8].copy_from_slice(&u64::from(message).to_be_bytes());
        let (name, now) = (self.topics[topic].clone(), self.now);
        let wait = Mode::Wait(now + Duration::from_secs(5));
        let node = self.honest(n);
        let taken = node
            .core
            .publish(&mut node.seen, &name, data.into(), wait, now);
        if let Ok(publish) = taken {
            self.publishing.insert((n, publish.0), message);
        }
        self.settle(n);
    }

    // --- time

    pub(super) fn at(&mut self, at: Time, what: What) {
        let at = at.max(self.now);
        let number = self.next;
        self.next += 1;
        self.queue.push(Entry { at, number, what });
    }

    pub(super) fn run_until(&mut self, end: Time) {
        while let Some(entry) = self.queue.peek() {
            if entry.at > end {
                break;
            }
            let Some(Entry { at, what, .. }) = self.queue.pop() else {
                break;
            };
            self.now = at;
            self.steps += 1;
            self.happen(what);
        }
        self.now = end;
    }

    fn happen(&mut self, what: What) {
        match what {
            What::Timer(n) => self.on_timer(n),
            What::Arrive(line) => self.on_arrive(line),
            What::Read(line) => self.on_read(line),
            What::Opened { link, end, epoch } => self.on_opened(link, end, epoch),
            What::Lost { link, end, epoch } => {
                if self.is_current(link, end, epoch) {
                    let now = self.now;
                    self.links[link as usize].pipes[end].close(now);
                    self.watch
                        .found(|broken| broken.link == link && broken.end == end, now);
                    let ends = self.links[link as usize].ends;
                    let peer = self.ids[ends[1 - end] as usize];
                    if self.is_honest(ends[end]) {
                        self.input(ends[end], Input::StreamLost { peer });
                    }
                }
            }
            What::Credit { link, end, epoch } => {
                if self.is_current(link, end, epoch) {
                    let n = self.links[link as usize].ends[end];
                    self.push(link, end);
                    self.settle(n);
                }
            }
            What::Verified {
                node,
                life,
                ticket,
                outcome,
            } => {
                if self.honest(node).life == life && self.honest(node).up {
                    self.input(node, Input::Verified { ticket, outcome });
                }
            }
            What::Dial(l) => self.dial(l),
            What::Dialled(l) => self.dialled(l),
            What::Hangup {
                link,
                end,
                generation,
            } => {
                if self.links[link as usize].generation == generation {
                    self.forget_end(link, end);
                }
            }
            What::Act(n) => self.on_act(n),
            What::Check => self.on_check(),
        }
    }

    fn is_current(&self, l: u32, end: usize, epoch: u32) -> bool {
        let link = &self.links[l as usize];
        link.known[end] && link.pipes[end].epoch == epoch
    }

    fn on_timer(&mut self, n: u32) {
        let now = self.now;
        let node = self.honest(n);
        if node.timer != now || !node.up {
            return;
        }
        node.timer = Time::MAX;
        if node.core.deadline().is_some_and(|at| at <= now) {
            node.core.expire(&mut node.seen, now);
            self.settle(n);
        } else {
            self.arm(n);
        }
    }

    /// Sets the timer of a node, if it has to go off earlier.
    fn arm(&mut self, n: u32) {
        let node = self.honest(n);
        if let Some(at) = node.core.deadline()
            && at < node.timer
        {
            node.timer = at;
            self.at(at, What::Timer(n));
        }
    }

    fn is_honest(&self, n: u32) -> bool {
        (n as usize) < self.plan.honest
    }

    /// An honest node.
    pub(super) fn honest(&mut self, n: u32) -> &mut Honest {
        match &mut self.nodes[n as usize] {
            Node::Honest(node) => node,
            Node::Hostile(_) => unreachable!("honest nodes are the first ones"),
        }
    }

    // --- the driver of an honest node

    fn input(&mut self, n: u32, input: Input) {
        self.todo.push_back(input);
        self.settle(n);
    }

    fn settle(&mut self, n: u32) {
        if !self.is_honest(n) {
            return;
        }
        loop {
            while let Some(output) = self.honest(n).core.poll() {
                self.on_output(n, output);
            }
            let Some(input) = self.todo.pop_front() else {
                break;
            };
            let now = self.now;
            let node = self.honest(n);
            node.core.handle(&mut node.seen, input, now);
        }
        self.arm(n);
    }

    fn on_output(&mut self, n: u32, output: Output) {
        match output {
            Output::OpenStream { peer } => {
                if let Some((l, end)) = self.link_of(n, peer) {
                    self.open(l, end);
                }
            }
            Output::ResetStream { peer } => {
                if let Some((l, end)) = self.link_of(n, peer) {
                    let now = self.now;
                    self.links[l as usize].pipes[end].close(now);
                    self.watch
                        .found(|broken| broken.link == l && broken.end == end, now);
                }
            }
            Output::Close { peer, cause } => {
                if let Some((l, end)) = self.link_of(n, peer) {
                    let again = match cause {
                        CloseCause::Stalled => REDIAL,
                        CloseCause::Banned { .. } => AGAIN,
                    };
                    self.close_later(l, end, again);
                }
            }
            Output::Write { peer, frame } => self.write(n, peer, frame),
            Output::Verify { ticket, job } => {
                let good = is_signed(&job);
                let message = self.known(&job.message);
                let now = self.now;
                let Node::Honest(node) = &mut self.nodes[n as usize] else {
                    return;
                };
                if good {
                    let key = node.seen.digester().id(job.message.bytes());
                    self.watch.on_checked(n, node, key, message);
                }
                let outcome = match good {
                    true => VerifyOutcome::Good,
                    false => VerifyOutcome::Bad,
                };
                let at = Honest::spend(&mut node.check_free, node.pace.check, now);
                let life = node.life;
                if at <= now {
                    self.todo.push_back(Input::Verified { ticket, outcome });
                } else {
                    self.at(
                        at,
                        What::Verified {
                            node: n,
                            life,
                            ticket,
                            outcome,
                        },
                    );
                }
            }
            Output::Validate {
                ticket, message, ..
            } => {
                let verdict = match number_in(&message.data) {
                    Some(INVENTED) => Verdict::Reject,
                    _ => Verdict::Accept,
                };
                self.todo.push_back(Input::Validated { ticket, verdict });
            }
            Output::Sign { publish, job } => {
                let result = job.attach(&sign(&job.unsigned()));
                self.todo.push_back(Input::Signed { publish, result });
            }
            Output::Reserve { upto } => {
                self.honest(n).stored = Some(upto);
                self.todo.push_back(Input::SequenceReserved { upto });
            }
            Output::Deliver { message } => self.on_delivered(n, &message),
            Output::Published { publish, result } => {
                let message = self.publishing.remove(&(n, publish.0));
                if let (Some(message), Ok(receipt)) = (message, result) {
                    self.watch.sent[message as usize].left = Some(self.now);
                    self.watch.ids.insert(receipt.id, message);
                }
            }
            Output::Event(event) => self.on_event(n, &event),
        }
    }

    /// Closes after what the core wants now is done.
    fn close_later(&mut self, l: u32, end: usize, again: Duration) {
        let now = self.now;
        let link = &mut self.links[l as usize];
        if !std::mem::take(&mut link.known[end]) {
            return;
        }
        link.pipes[end].close(now);
        let (generation, other) = (link.generation, 1 - end);
        let at = now + link.latency;
        let what = What::Hangup {
            link: l,
            end: other,
            generation,
        };
        let peer = self.ids[link.ends[other] as usize];
        if link.blocked {
            link.limbo.push(what);
        } else if !link.cut[end] {
            self.at(at, what);
        }
        self.watch.found(|broken| broken.link == l, now);
        let jitter = Duration::from_micros(self.dice.below(1_000_000) as u64);
        self.at(now + again + jitter, What::Dial(l));
        self.todo.push_back(Input::Disconnected { peer });
    }

    fn on_event(&mut self, n: u32, event: &Event) {
        if let Event::PeerStalled { peer } = event
            && let Some((l, _)) = self.link_of(n, *peer)
        {
            self.watch.found(|broken| broken.link == l, self.now);
        }
        if let Event::Banned { peer, .. } = event
            && let Some(peer) = number_of(peer)
        {
            let now = self.now;
            self.watch.bans.entry((n, peer)).or_insert(now);
        }
        if matches!(event, Event::WantPeers { .. }) && self.plan.discovery {
            let other = self.dice.below(self.plan.honest) as u32;
            if let Some(l) = self.join(n, other) {
                self.at(self.now, What::Dial(l));
            }
        }
    }

    fn on_delivered(&mut self, n: u32, message: &Message) {
        let Some(number) = number_in(&message.data) else {
            return;
        };
        if number as usize >= self.watch.sent.len() {
            self.watch.invented += 1;
            return;
        }
        let now = self.now;
        if let Node::Honest(node) = &mut self.nodes[n as usize] {
            self.watch.on_delivered(n, node, number as u32, now);
        }
    }

    /// The link to a peer, and our end of it, while we are connected.
    fn link_of(&self, n: u32, peer: PeerId) -> Option<(u32, usize)> {
        let l = *self.joined[n as usize].get(&number_of(&peer)?)?;
        let link = &self.links[l as usize];
        let end = link.end_of(n);
        link.known[end].then_some((l, end))
    }

    // --- streams

    fn open(&mut self, l: u32, end: usize) {
        let (now, loss) = (self.now, self.plan.links.loss);
        let link = &mut self.links[l as usize];
        link.pipes[end].open(now);
        let epoch = link.pipes[end].epoch;
        let what = What::Opened {
            link: l,
            end,
            epoch,
        };
        let late = losses(200, link.latency, loss, false, &mut self.dice);
        let at = now + link.latency * 2 + late;
        if link.blocked {
            link.limbo.push(what);
        } else if !link.cut[0] && !link.cut[1] {
            self.at(at, what);
        }
    }

    fn on_opened(&mut self, l: u32, end: usize, epoch: u32) {
        if !self.is_current(l, end, epoch) {
            return;
        }
        let link = &mut self.links[l as usize];
        if !link.known[1 - end] {
            // The other end closed meanwhile; its word is on its way.
            return;
        }
        let (n, other) = (link.ends[end], link.ends[1 - end]);
        let peer = self.ids[other as usize];
        link.pipes[end].state = PipeState::Open;
        let digester = match &self.nodes[other as usize] {
            Node::Honest(node) => node.seen.digester(),
            Node::Hostile(node) => node.seen.digester(),
        };
        self.links[l as usize].pipes[end].reader = Some(Reader::new(digester));
        match &self.nodes[n as usize] {
            Node::Honest(_) => {
                let version = Version::V1_2;
                self.input(n, Input::StreamOpened { peer, version });
            }
            Node::Hostile(hostile) => {
                let hello = hostile.hello().finish(Time::MAX);
                self.line(l, end, &hello, Box::default());
            }
        }
    }

    fn write(&mut self, n: u32, peer: PeerId, frame: Frame) {
        let Some((l, end)) = self.link_of(n, peer) else {
            return;
        };
        let to = self.links[l as usize].ends[1 - end];
        let now = self.now;
        let messages: Vec<u32> = match frame.messages {
            0 => Vec::new(),
            _ => frame
                .parts
                .iter()
                .skip(1)
                .filter_map(|field| self.number_of_field(field))
                .collect(),
        };
        if let Node::Honest(node) = &mut self.nodes[n as usize] {
            for message in &messages {
                self.watch.on_sent_on(n, node, *message, to, now);
            }
            let head = frame.parts.first().map_or(0, Bytes::len);
            node.bytes_out += frame.bytes as u64;
            node.control_bytes += head as u64;
            node.message_bytes += (frame.bytes - head) as u64;
            node.messages_out += frame.messages as u64;
        }
        let pipe = &mut self.links[l as usize].pipes[end];
        if pipe.waiting.len() >= 2 {
            self.watch.breach(Rule::Bounded, || {
                format!("node {n} wrote a third frame to {to}")
            });
        }
        pipe.waiting.push_back((frame, messages.into()));
        self.push(l, end);
    }

    /// Writes what the window takes. The writer's core is told of each frame with what comes next to it.
    fn push(&mut self, l: u32, end: usize) {
        let (now, window) = (self.now, self.plan.links.window);
        loop {
            let link = &mut self.links[l as usize];
            let peer = self.ids[link.ends[1 - end] as usize];
            let pipe = &mut link.pipes[end];
            let Some((frame, _)) = pipe.waiting.front() else {
                return;
            };
            if frame.expires <= now {
                pipe.waiting.pop_front();
                self.todo.push_back(Input::Expired { peer });
                continue;
            }
            let bytes = frame.bytes;
            if !pipe.takes(bytes, window, now) {
                if let Some(at) = pipe.returns_at() {
                    let epoch = pipe.epoch;
                    self.at(
                        at,
                        What::Credit {
                            link: l,
                            end,
                            epoch,
                        },
                    );
                }
                return;
            }
            if let Some((frame, messages)) = pipe.waiting.pop_front() {
                self.line(l, end, &frame, messages);
                self.todo.push_back(Input::Written { peer });
            }
        }
    }

    /// Puts a frame on the line.
    fn line(&mut self, l: u32, end: usize, frame: &Frame, messages: Box<[u32]>) {
        let now = self.now;
        let n = self.links[l as usize].ends[end];
        let sent = match &mut self.nodes[n as usize] {
            Node::Honest(node) if node.pace.sends > 0 => {
                let cost = Duration::from_secs_f64(frame.bytes as f64 / node.pace.sends as f64);
                Honest::spend(&mut node.line_free, cost, now)
            }
            _ => now,
        };
        let link = &mut self.links[l as usize];
        let latency = link.latency;
        let pipe = &mut link.pipes[end];
        let at = pipe.send(frame.bytes, sent, latency, &self.plan.links, &mut self.dice);
        if pipe.deaf || link.cut[end] {
            return;
        }
        let arrive = What::Arrive(OnLine {
            link: l,
            end,
            epoch: pipe.epoch,
            bytes: frame.to_bytes(),
            messages,
        });
        if link.blocked {
            link.limbo.push(arrive);
        } else {
            self.at(at, arrive);
        }
    }

    fn on_arrive(&mut self, line: OnLine) {
        if !self.is_current(line.link, line.end, line.epoch) {
            return;
        }
        let now = self.now;
        let link = &self.links[line.link as usize];
        let n = link.ends[1 - line.end];
        let mut at = link.pipes[line.end].rests.max(now);
        if let Node::Honest(node) = &mut self.nodes[n as usize] {
            at = Honest::spend(&mut node.read_free, node.pace.read, at);
        }
        if at > now {
            self.at(at, What::Read(line));
        } else {
            self.on_read(line);
        }
    }

    fn on_read(&mut self, line: OnLine) {
        let OnLine {
            link: l,
            end,
            epoch,
            bytes,
            messages,
        } = line;
        let now = self.now;
        if !self.is_current(l, end, epoch) || !self.links[l as usize].known[1 - end] {
            return;
        }
        let link = &mut self.links[l as usize];
        let (n, from) = (link.ends[1 - end], link.ends[end]);
        let known = now + link.latency;
        let pipe = &mut link.pipes[end];
        pipe.read(bytes.len(), known);
        if pipe.is_blocked() {
            self.at(
                known,
                What::Credit {
                    link: l,
                    end,
                    epoch,
                },
            );
        }
        self.watch.healed(l, end, epoch, now);
        let peer = self.ids[from as usize];
        let honest = self.is_honest(from);
        let link = &mut self.links[l as usize];
        let Some(reader) = &mut link.pipes[end].reader else {
            return;
        };
        let Ok(Some((len, start))) = read_length(&bytes) else {
            return;
        };
        let frame = bytes.slice(start..start + len);
        if reader.scan(&frame).is_err() {
            if self.is_honest(n) {
                self.input(n, Input::Malformed { peer });
            }
            return self.lose(l, end, epoch);
        }
        match &mut self.nodes[n as usize] {
            Node::Honest(node) => {
                let source: Source = node.seen.join(peer);
                reader.sight(&mut node.seen, source, now);
                if !node.seen.admits(source) {
                    return self.lose(l, end, epoch);
                }
                if node.seen.room(source) == 0 {
                    link.pipes[end].rests = now + REST;
                }
                for message in &messages {
                    self.watch.on_read(node, *message, honest, now);
                }
                let Some(reader) = &mut link.pipes[end].reader else {
                    return;
                };
                let received = reader.finish(&frame);
                if received.is_empty() {
                    return;
                }
                for id in &received.control.iwant {
                    if let Some(message) = self.watch.ids.get(id) {
                        node.asked.insert((from, *message));
                    }
                }
                let received = Box::new(received);
                self.input(
                    n,
                    Input::Received {
                        peer,
                        received,
                        at: now,
                    },
                );
            }
            Node::Hostile(node) => {
                let source = node.seen.join(peer);
                reader.sight(&mut node.seen, source, now);
                let received = reader.finish(&frame);
                for candidate in &received.candidates {
                    let class = crate::Class::DEFAULT;
                    let state = crate::State::Ignored;
                    node.seen.settle(candidate.mark, state, None, class, now);
                }
                if let Some(answer) = node.on_received(received, now) {
                    let back = 1 - end;
                    if self.links[l as usize].pipes[back].state == PipeState::Open {
                        self.line(l, back, &answer.finish(Time::MAX), Box::default());
                    }
                }
            }
        }
    }

    /// The reader resets the stream.
    fn lose(&mut self, l: u32, end: usize, epoch: u32) {
        let link = &mut self.links[l as usize];
        link.pipes[end].deaf = true;
        let at = self.now + link.latency;
        let what = What::Lost {
            link: l,
            end,
            epoch,
        };
        if link.blocked {
            link.limbo.push(what);
        } else {
            self.at(at, what);
        }
    }

    fn known(&self, message: &crate::RawMessage) -> Option<u32> {
        let number = number_in(&message.data())?;
        ((number as usize) < self.watch.sent.len()).then_some(number as u32)
    }

    /// The watch's number of a message, if an honest node published it.
    fn number_of_field(&mut self, field: &Bytes) -> Option<u32> {
        let (last, number) = &self.looked_at;
        if last.as_ptr() == field.as_ptr() && last.len() == field.len() {
            return *number;
        }
        let number = self.read_number(field);
        self.looked_at = (field.clone(), number);
        number
    }

    fn read_number(&self, field: &Bytes) -> Option<u32> {
        // Behind the field's key its length, as in front of a frame.
        let (_, start) = read_length(field.get(1..)?).ok()??;
        let message = wire::parse(field.clone(), 1 + start).ok()?;
        self.known(&message)
    }

    // --- others

    fn on_act(&mut self, n: u32) {
        if self.hushed {
            return;
        }
        self.watch.hostile_since.get_or_insert(self.now);
        let links: Vec<u32> = self.joined[n as usize].values().copied().collect();
        let echo = match &mut self.nodes[n as usize] {
            Node::Hostile(node) if node.manner == Manner::Echo => {
                let frame: Option<FrameBuilder> = node.echo(self.now);
                frame.map(|frame| frame.finish(Time::MAX))
            }
            _ => None,
        };
        for l in links {
            let (now, window) = (self.now, self.plan.links.window);
            let link = &mut self.links[l as usize];
            let end = link.end_of(n);
            let open = link.known[end] && link.pipes[end].state == PipeState::Open;
            // An enemy waits for windows as well: nobody can write into a full one.
            if !open || !link.pipes[end].takes(window / 2, window, now) {
                continue;
            }
            if let Some(echo) = &echo {
                let messages: Vec<u32> = echo
                    .parts
                    .iter()
                    .skip(1)
                    .filter_map(|f| self.number_of_field(f))
                    .collect();
                self.line(l, end, echo, messages.into());
            }
            let frames = match &mut self.nodes[n as usize] {
                Node::Hostile(node) => node.act(),
                Node::Honest(_) => Vec::new(),
            };
            for frame in frames {
                self.line(l, end, &frame.finish(Time::MAX), Box::default());
            }
        }
        self.at(self.now + TICK, What::Act(n));
    }

    fn on_check(&mut self) {
        for n in 0..self.plan.honest as u32 {
            let links = self.joined[n as usize]
                .values()
                .filter(|l| {
                    let link = &self.links[**l as usize];
                    link.known[link.end_of(n)]
                })
                .count();
            let Node::Honest(node) = &mut self.nodes[n as usize] else {
                continue;
            };
            if !node.up {
                continue;
            }
            let load = node.core.load(&node.seen);
            node::most(&mut node.most, &load);
            self.watch.check_load(n, &self.plan.config, &load, links);
        }
        self.check_streams();
        self.at(self.now + CHECK, What::Check);
    }

    /// Streams between honest nodes whose connection carries.
    fn check_streams(&mut self) {
        let honest = self.plan.honest as u32;
        for l in 0..self.links.len() {
            let link = &self.links[l];
            if link.known != [true, true] || link.ends.iter().any(|n| *n >= honest) {
                continue;
            }
            for end in [0, 1] {
                let pipe = &self.links[l].pipes[end];
                let closed = pipe.state != PipeState::Open;
                if !closed || self.now < pipe.closed_since + REOPENS || self.links[l].blocked {
                    continue;
                }
                let (n, other) = (self.links[l].ends[end], self.links[l].ends[1 - end]);
                let peer = self.ids[other as usize];
                let report = self.honest(n).core.why(&peer).map(|p| p.stream);
                if report != Some(StreamReport::Unsupported) {
                    self.watch.breach(Rule::Reopened, || {
                        format!("the stream of node {n} to {other} is not opened: {report:?}")
                    });
                }
            }
        }
    }
}

/// The number that the simulator wrote in front of a payload.
fn number_in(data: &Bytes) -> Option<u64> {
    let head: [u8; 8] = data.get(..8)?.try_into().ok()?;
    Some(u64::from_be_bytes(head))
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.number) == (other.at, other.number)
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    /// The earliest is the greatest.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.number).cmp(&(self.at, self.number))
    }
}
