//! Nodes in virtual time, joined by links that take their time: the world that simulations run in. A seed gives a run.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use gemba_block::{Block, Bytes, Cid};
use gemba_exchange::wire::{Message, Presence, SiteMessage, WantKind};
use gemba_exchange::{
    Config, Core, Counters, Input, Lane, LoadId, LoadKind, Loaded, Output, SessionId,
    SessionOptions, SiteConfig, SiteFact, SpareStream, Time,
};
use gemba_testkit::Rng;
use libp2p_identity::PeerId;

pub const HOUR: Duration = Duration::from_secs(3600);

/// How a node treats those who ask it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    Honest,
    /// Says HAVE to everything and sends nothing.
    Liar,
    /// Says HAVE to everything and sends other bytes.
    Corrupter,
    /// Says nothing.
    Mute,
    /// Says HAVE to everything, sends the first block that it is asked for, and nothing after that.
    Turncoat,
    /// Anything of the above and worse, another each time.
    Chaos,
}

/// How a node's disk and reader take what was found.
#[derive(Clone, Copy, Debug, Default)]
pub struct Taking {
    /// Bytes a second that the disk writes; 0: at once.
    pub disk: u64,
    /// Bytes a second that whoever reads the blocks takes, in the order in which they were written; 0: at once.
    pub reader: u64,
}

pub struct Node {
    pub id: PeerId,
    /// It speaks of sites.
    pub site: bool,
    pub manner: Manner,
    /// A turncoat that delivered.
    pub turned: bool,
    pub core: Core,
    pub session: Option<SessionId>,
    pub blocks: HashMap<Cid, Bytes>,
    pub wanted: HashSet<Cid>,
    pub found: usize,
    /// Time that a look into the store takes.
    pub load_time: Duration,
    pub expires: Option<Time>,
    pub unavailable: usize,
    pub taking: Taking,
    /// When disk and reader are through with what they have.
    pub disk_free_at: Time,
    pub reader_free_at: Time,
    /// Bytes found, or on the way here, and not yet taken; and the most there ever were.
    pub in_memory: usize,
    pub on_the_way: usize,
    pub most: usize,
    /// The most that was loaded for others or on its way to them, by the links' own account.
    pub most_served: usize,
    /// When anything was found, asked or reported last.
    pub alive: Time,
    /// When the last wanted block came.
    pub done: Time,
}

/// One direction between two nodes.
#[derive(Clone)]
pub struct Link {
    pub up: bool,
    pub epoch: u64,
    pub latency: Duration,
    /// Bytes a second.
    pub rate: u64,
    pub free_at: Time,
    /// Nothing moves before this.
    pub stalled_until: Time,
    /// Packets lost of a hundred.
    pub loss: u64,
    /// Arrival of the first and of the last byte of each large message on its way.
    pub flights: Vec<(Time, Time)>,
    /// Until when bytes of those were told.
    pub told: Time,
}

impl Link {
    /// Whether bytes of a large message come in.
    pub fn arrives(&self, now: Time) -> bool {
        let comes = |(begins, ends): &(Time, Time)| *begins <= now && now < *ends;
        self.stalled_until <= now && self.flights.iter().any(comes)
    }

    /// Bytes of large messages that came since the last call and are not complete.
    pub fn arrived(&mut self, now: Time) -> usize {
        let since = std::mem::replace(&mut self.told, now).max(self.stalled_until);
        let bytes = |(begins, ends): &(Time, Time)| {
            let from = since.max(*begins);
            let time = now.min(*ends).saturating_sub(from);
            time.as_micros() as usize * self.rate as usize / 1_000_000
        };
        self.flights.iter().map(bytes).sum()
    }
}

pub enum Event {
    Deliver {
        from: usize,
        to: usize,
        epoch: u64,
        message: Message,
    },
    Written {
        from: usize,
        to: usize,
        epoch: u64,
        lane: Lane,
        blocks: usize,
        block_bytes: usize,
        bytes: usize,
    },
    /// A word of the negotiation of a second request stream from one to the other; `back` when it comes from there.
    Spare {
        from: usize,
        to: usize,
        epoch: u64,
        back: bool,
    },
    Looked {
        node: usize,
        id: LoadId,
        answer: Loaded,
    },
    Expire {
        node: usize,
    },
    /// A word about the site, or that one speaks of it.
    Site {
        from: usize,
        to: usize,
        epoch: u64,
        fact: SiteFact,
    },
    Taken {
        node: usize,
        block: Block,
    },
    Break {
        a: usize,
        b: usize,
    },
    Join {
        a: usize,
        b: usize,
    },
}

pub struct World {
    pub now: Time,
    pub queue: BTreeMap<(Time, u64), Event>,
    pub next: u64,
    pub nodes: Vec<Node>,
    pub index: HashMap<PeerId, usize>,
    pub links: BTreeMap<(usize, usize), Link>,
    /// The next message from one to the other on this lane is written and never arrives.
    pub lose: HashSet<(usize, usize, bool)>,
    /// The stream of this lane from one to the other is half-open: whatever is written on it is written and never arrives, until another
    /// stream takes its place.
    pub swallow: HashSet<(usize, usize, bool)>,
    /// How often each kind of fault did its work.
    pub faults: BTreeMap<&'static str, u64>,
    pub rng: Rng,
    pub config: Config,
    /// What is wanted is below this root.
    pub root: Option<Cid>,
    /// Blocks that each node said to mates it takes.
    pub takes_said: BTreeMap<usize, usize>,
}

pub const MS: Duration = Duration::from_millis(1);

impl World {
    pub fn new(rng: &mut Rng, manners: &[Manner]) -> Self {
        Self::with(rng, manners, Config::default())
    }

    pub fn with(rng: &mut Rng, manners: &[Manner], config: Config) -> Self {
        Self::of_sites(rng, manners, config, &[])
    }

    /// With the site of each node: none, without a label, or labelled.
    pub fn of_sites(
        rng: &mut Rng,
        manners: &[Manner],
        config: Config,
        sites: &[Option<Option<&str>>],
    ) -> Self {
        let mut rng = rng.fork();
        let ids: Vec<PeerId> = manners.iter().map(|_| peer_id(&mut rng)).collect();
        let core = |node: usize| {
            let site = sites.get(node).copied().flatten();
            match site {
                None => Core::new(&config),
                Some(label) => Core::new(&config.clone().with_site(SiteConfig {
                    local: ids[node],
                    label: label.map(str::to_owned),
                })),
            }
        };
        let nodes: Vec<Node> = manners
            .iter()
            .enumerate()
            .map(|(node, manner)| Node {
                id: ids[node],
                site: sites.get(node).is_some_and(Option::is_some),
                manner: *manner,
                turned: false,
                core: core(node),
                session: None,
                blocks: HashMap::new(),
                wanted: HashSet::new(),
                found: 0,
                load_time: MS,
                expires: None,
                unavailable: 0,
                taking: Taking::default(),
                disk_free_at: Time::ZERO,
                reader_free_at: Time::ZERO,
                in_memory: 0,
                on_the_way: 0,
                most: 0,
                most_served: 0,
                alive: Time::ZERO,
                done: Time::ZERO,
            })
            .collect();
        let index = nodes.iter().enumerate().map(|(n, x)| (x.id, n)).collect();
        Self {
            now: Time::ZERO,
            queue: BTreeMap::new(),
            next: 0,
            nodes,
            index,
            links: BTreeMap::new(),
            lose: HashSet::new(),
            swallow: HashSet::new(),
            faults: BTreeMap::new(),
            rng,
            config,
            root: None,
            takes_said: BTreeMap::new(),
        }
    }

    /// A LAN: 1 ms, 10 MB/s each way.
    pub fn join(&mut self, a: usize, b: usize) {
        self.join_with(a, b, MS, 10_000_000);
    }

    pub fn join_with(&mut self, a: usize, b: usize, latency: Duration, rate: u64) {
        if self.links.get(&(a, b)).is_some_and(|l| l.up) {
            return;
        }
        for (from, to) in [(a, b), (b, a)] {
            let epoch = self.links.get(&(from, to)).map_or(0, |l| l.epoch + 1);
            self.fired("join", u64::from(epoch > 0 && from == a));
            self.links.insert(
                (from, to),
                Link {
                    up: true,
                    epoch,
                    latency,
                    rate,
                    free_at: self.now,
                    stalled_until: Time::ZERO,
                    loss: 0,
                    flights: Vec::new(),
                    told: Time::ZERO,
                },
            );
            let peer = self.nodes[to].id;
            let lan = true;
            self.nodes[from]
                .core
                .handle(Input::Connected { peer, lan }, self.now);
        }
        self.greet(a, b);
        self.greet(b, a);
        self.settle(a);
        self.settle(b);
    }

    /// A round trip later it is known whether the other one speaks of sites.
    fn greet(&mut self, node: usize, peer: usize) {
        if !self.nodes[node].site {
            return;
        }
        let fact = match self.nodes[peer].site {
            true => SiteFact::Speaks { near: true },
            false => SiteFact::Silent,
        };
        let link = &self.links[&(node, peer)];
        let (epoch, at) = (link.epoch, self.now + 2 * link.latency);
        let (from, to) = (peer, node);
        let event = Event::Site {
            from,
            to,
            epoch,
            fact,
        };
        self.at(at, event);
    }

    pub fn part(&mut self, a: usize, b: usize) {
        for (from, to) in [(a, b), (b, a)] {
            let Some(link) = self.links.get_mut(&(from, to)) else {
                return;
            };
            if !std::mem::take(&mut link.up) {
                return;
            }
            self.fired("break", u64::from(from == a));
            self.swallow.remove(&(from, to, true));
            self.swallow.remove(&(from, to, false));
            let peer = self.nodes[to].id;
            self.nodes[from]
                .core
                .handle(Input::Disconnected { peer }, self.now);
        }
        self.settle(a);
        self.settle(b);
    }

    pub fn give(&mut self, node: usize, blocks: &[Block]) {
        let mut cids = Vec::new();
        for block in blocks {
            self.nodes[node]
                .blocks
                .insert(*block.cid(), block.data().clone());
            cids.push(*block.cid());
        }
        self.nodes[node].core.stored(&cids);
        self.settle(node);
    }

    pub fn want(&mut self, node: usize, blocks: &[Block]) {
        let it = &mut self.nodes[node];
        let session = match it.session {
            Some(session) => session,
            None => {
                let mut options = SessionOptions::default();
                options.root = self.root;
                it.core.open_session(options).unwrap()
            }
        };
        it.session = Some(session);
        let cids: Vec<Cid> = blocks.iter().map(|b| *b.cid()).collect();
        it.wanted.extend(&cids);
        it.core.want(session, cids, self.now).unwrap();
        self.settle(node);
    }

    pub fn has_all(&self, node: usize) -> bool {
        let node = &self.nodes[node];
        node.wanted.iter().all(|cid| node.blocks.contains_key(cid))
    }

    pub fn counters(&self, node: usize) -> Counters {
        self.nodes[node].core.counters()
    }

    /// Runs until `done` or `until`; true if done.
    pub fn run(&mut self, until: Time, done: impl Fn(&Self) -> bool) -> bool {
        while !done(self) {
            let Some(next) = self.queue.first_entry() else {
                return false;
            };
            if next.key().0 > until {
                self.now = until;
                return false;
            }
            let ((at, _), event) = next.remove_entry();
            self.now = at;
            self.on_event(event);
        }
        true
    }

    pub fn at(&mut self, at: Time, event: Event) {
        self.next += 1;
        self.queue.insert((at, self.next), event);
    }

    pub fn on_event(&mut self, event: Event) {
        match event {
            Event::Deliver {
                from,
                to,
                epoch,
                message,
            } => {
                self.nodes[to].on_the_way -= message.block_bytes();
                if self.is_up(from, to, epoch) {
                    self.deliver(from, to, message);
                }
            }
            Event::Written {
                from,
                to,
                epoch,
                lane,
                blocks,
                block_bytes,
                bytes,
            } => {
                if self.is_up(from, to, epoch) {
                    let peer = self.nodes[to].id;
                    let input = match lane {
                        Lane::Request => Input::RequestSent { peer, bytes },
                        Lane::Response => Input::ResponseSent {
                            peer,
                            block_bytes,
                            blocks,
                            bytes,
                        },
                    };
                    self.nodes[from].core.handle(input, self.now);
                    self.settle(from);
                }
            }
            Event::Spare {
                from,
                to,
                epoch,
                back,
            } => {
                if self.is_up(from, to, epoch) {
                    self.negotiated(from, to, back);
                }
            }
            Event::Looked { node, id, answer } => {
                self.nodes[node].core.loaded(id, answer);
                self.settle(node);
            }
            Event::Expire { node } => self.expire(node),
            Event::Site {
                from,
                to,
                epoch,
                fact,
            } => {
                if self.is_up(from, to, epoch) {
                    let peer = self.nodes[from].id;
                    self.nodes[to]
                        .core
                        .handle(Input::Site { peer, fact }, self.now);
                    self.settle(to);
                }
            }
            Event::Taken { node, block } => self.taken(node, block),
            Event::Break { a, b } => self.part(a, b),
            Event::Join { a, b } => self.join(a, b),
        }
    }

    pub fn is_up(&self, from: usize, to: usize, epoch: u64) -> bool {
        self.links
            .get(&(from, to))
            .is_some_and(|l| l.up && l.epoch == epoch)
    }

    pub fn fired(&mut self, fault: &'static str, times: u64) {
        if times > 0 {
            *self.faults.entry(fault).or_insert(0) += times;
        }
    }

    /// The line from one to the other stands still for this long, with all that is on its way.
    pub fn stall(&mut self, from: usize, to: usize, pause: Duration) {
        let now = self.now;
        let Some(link) = self.links.get_mut(&(from, to)).filter(|l| l.up) else {
            return;
        };
        link.stalled_until = link.stalled_until.max(now) + pause;
        link.free_at = link.free_at.max(now) + pause;
        for (begins, ends) in &mut link.flights {
            if *begins > now {
                *begins += pause;
            }
            if *ends > now {
                *ends += pause;
            }
        }
        let line = (from, to);
        let moves = |event: &Event| match event {
            Event::Deliver { from, to, .. }
            | Event::Written { from, to, .. }
            | Event::Spare { from, to, .. }
            | Event::Site { from, to, .. } => (*from, *to) == line,
            _ => false,
        };
        let queue = std::mem::take(&mut self.queue);
        self.queue = queue
            .into_iter()
            .map(|((at, n), event)| match moves(&event) {
                true => ((at + pause, n), event),
                false => ((at, n), event),
            })
            .collect();
        self.fired("stall", 1);
    }

    /// What TCP makes of lost packets, in time that the line stands idle: a packet that was lost and of which later ones tell is sent again at once
    /// and the window is halved, which leaves the line idle for half a round trip (more than Reno loses where the line holds less than ten
    /// packets); a packet that is lost again, or is one of the last, is sent again after a second, two, four (RFC 6298).
    pub fn losses(&mut self, bytes: usize, loss: u64, latency: Duration) -> Duration {
        let mut idle = Duration::ZERO;
        let packets = bytes / 1448 + 1;
        for packet in 0..packets {
            if loss == 0 || !self.rng.chance(loss, 100) {
                continue;
            }
            self.fired("packet loss", 1);
            idle += latency;
            let mut again = packet + 3 >= packets || self.rng.chance(loss, 100);
            let mut timer = Duration::from_secs(1);
            while again {
                self.fired("retransmission time-out", 1);
                idle += timer;
                timer *= 2;
                again = self.rng.chance(loss, 100);
            }
        }
        idle
    }

    /// A word of a negotiation takes the time of the way, from when the line moves. It waits behind the wantlists that were written before, and
    /// behind no large message, whose frames it passes.
    pub fn negotiate(&mut self, from: usize, to: usize, back: bool) {
        if let Some(link) = self.links.get(&(from, to)).filter(|l| l.up) {
            let written = if back { Time::ZERO } else { link.free_at };
            let begins = link.stalled_until.max(written);
            let (epoch, at) = (link.epoch, self.now.max(begins) + link.latency);
            self.at(
                at,
                Event::Spare {
                    from,
                    to,
                    epoch,
                    back,
                },
            );
        }
    }

    /// The peer agrees, whatever it does with what is said there; what came before that is told before.
    pub fn negotiated(&mut self, from: usize, to: usize, back: bool) {
        if !back {
            self.negotiate(to, from, true);
            return;
        }
        self.tell_progress(to);
        let peer = self.nodes[from].id;
        self.nodes[to]
            .core
            .handle(Input::SpareOpened { peer }, self.now);
        self.settle(to);
    }

    /// What the driver does before time passes: tells of bytes of unfinished messages.
    pub fn expire(&mut self, node: usize) {
        self.nodes[node].expires = None;
        self.tell_progress(node);
        if self.nodes[node]
            .core
            .deadline()
            .is_some_and(|d| d <= self.now)
        {
            self.nodes[node].core.expire(self.now);
        }
        self.settle(node);
    }

    pub fn tell_progress(&mut self, node: usize) {
        let now = self.now;
        let arriving: Vec<(usize, usize)> = self
            .links
            .iter_mut()
            .filter(|((_, to), l)| *to == node && l.up && l.arrives(now))
            .map(|((from, _), l)| (*from, l.arrived(now)))
            .collect();
        for (from, bytes) in arriving {
            let peer = self.nodes[from].id;
            self.nodes[node].core.handle(
                Input::Progress {
                    peer,
                    at: now,
                    bytes,
                },
                now,
            );
        }
    }

    pub fn deliver(&mut self, from: usize, to: usize, message: Message) {
        let peer = self.nodes[from].id;
        if self.nodes[to].manner == Manner::Chaos {
            self.rave(to, from, &message);
            return;
        }
        if self.nodes[to].manner != Manner::Honest && !message.entries.is_empty() {
            self.misbehave(to, from, &message);
            return;
        }
        self.nodes[to]
            .core
            .handle(Input::Received { peer, message }, self.now);
        self.settle(to);
    }

    pub fn misbehave(&mut self, node: usize, asker: usize, message: &Message) {
        let mut answer = Message::default();
        for entry in message.entries.iter().filter(|e| !e.cancel) {
            match (self.nodes[node].manner, entry.kind) {
                (Manner::Liar | Manner::Corrupter | Manner::Turncoat, WantKind::Have) => {
                    answer.presences.push((entry.cid, Presence::Have));
                }
                (Manner::Corrupter, WantKind::Block) => {
                    answer.blocks.push(Block::raw(self.rng.bytes(500)).unwrap());
                    self.fired("wrong bytes", 1);
                }
                (Manner::Turncoat, WantKind::Block) if !self.nodes[node].turned => {
                    let data = self.nodes[node].blocks[&entry.cid].clone();
                    answer.blocks.push(Block::raw(data).unwrap());
                    self.nodes[node].turned = true;
                }
                (Manner::Liar | Manner::Turncoat, WantKind::Block) => {
                    self.fired("have and nothing", 1);
                }
                _ => self.fired("silence", 1),
            }
        }
        if !answer.is_empty() {
            self.transmit(node, asker, Lane::Response, answer);
        }
    }

    /// Lies, silence, wrong bytes, floods, the right thing for once, and goings.
    pub fn rave(&mut self, node: usize, asker: usize, message: &Message) {
        let mut answer = Message::default();
        let asked: Vec<_> = message.entries.iter().filter(|e| !e.cancel).collect();
        for entry in &asked {
            match self.rng.below(8) {
                0 | 1 => answer.presences.push((entry.cid, Presence::Have)),
                2 => answer.presences.push((entry.cid, Presence::DontHave)),
                3 => {
                    let size = self.rng.length(20_000) as usize;
                    answer
                        .blocks
                        .push(Block::raw(self.rng.bytes(size)).unwrap());
                }
                4 => {
                    let data = self.nodes[node].blocks.get(&entry.cid).cloned();
                    answer
                        .blocks
                        .extend(data.map(|data| Block::raw(data).unwrap()));
                }
                5 => {
                    let both = [Presence::Have, Presence::DontHave];
                    answer.presences.extend(both.map(|p| (entry.cid, p)));
                }
                _ => {}
            }
            if answer.block_bytes() > 1 << 20 {
                break;
            }
        }
        // A flood of wants, some of which the asker has; cancels of what was never asked; an empty list that replaces all.
        if self.rng.chance(1, 4) {
            let mut known: Vec<Cid> = self.nodes[asker].blocks.keys().copied().collect();
            known.sort_unstable_by_key(Cid::to_bytes);
            let count = self.rng.index(1500);
            for _ in 0..count {
                let cid = match known.is_empty() || self.rng.coin() {
                    true => *Block::raw(self.rng.bytes(8)).unwrap().cid(),
                    false => *self.rng.pick(&known),
                };
                answer.entries.push(gemba_exchange::wire::Entry {
                    cid,
                    priority: self.rng.next_u64() as i32,
                    cancel: self.rng.chance(1, 3),
                    kind: if self.rng.coin() {
                        WantKind::Block
                    } else {
                        WantKind::Have
                    },
                    send_dont_have: self.rng.coin(),
                });
            }
            answer.full = self.rng.coin();
        }
        if self.rng.chance(1, 20) {
            let at = self.now + MS * self.rng.below(50) as u32;
            let (a, b) = (asker, node);
            self.at(at, Event::Break { a, b });
            let back = at + MS * self.rng.range(1..3_000) as u32;
            self.at(back, Event::Join { a, b });
        }
        if !answer.is_empty() {
            self.transmit(node, asker, Lane::Response, answer);
        }
    }

    /// Does everything that the core wants done, and checks its bounds.
    pub fn settle(&mut self, node: usize) {
        while let Some(output) = self.nodes[node].core.poll(self.now) {
            match output {
                Output::Send {
                    peer,
                    lane,
                    message,
                } => {
                    let to = self.index[&peer];
                    if lane == Lane::Request {
                        self.nodes[node].alive = self.now;
                    }
                    self.transmit(node, to, lane, message);
                }
                Output::Load { id, cid, kind } => {
                    let it = &self.nodes[node];
                    let answer = match (kind, it.blocks.get(&cid)) {
                        (LoadKind::Have, Some(data)) => Loaded::Size(data.len() as u64),
                        (_, data) => data.cloned().into(),
                    };
                    let at = self.now + it.load_time;
                    self.at(at, Event::Looked { node, id, answer });
                }
                Output::Found { block, .. } => self.found(node, block),
                Output::Spare { peer, action } => {
                    let to = self.index[&peer];
                    match action {
                        SpareStream::Open => self.negotiate(node, to, false),
                        SpareStream::Use => drop(self.swallow.remove(&(node, to, true))),
                        SpareStream::Drop => {}
                    }
                }
                Output::Renew { peer } => {
                    let to = self.index[&peer];
                    self.swallow.remove(&(node, to, false));
                }
                Output::Site { peer, message } => self.say(node, self.index[&peer], &message),
                Output::Unavailable { .. } => {
                    self.nodes[node].unavailable += 1;
                    self.nodes[node].alive = self.now;
                }
                _ => {}
            }
        }
        self.check_bounds(node);
        let it = &mut self.nodes[node];
        if let Some(deadline) = it.core.deadline()
            && it.expires.is_none_or(|at| deadline < at)
        {
            it.expires = Some(deadline);
            let at = deadline.max(self.now);
            self.at(at, Event::Expire { node });
        }
    }

    /// A word about the site: as it is on the wire, after the time of the way. It is small and does not wait behind blocks.
    fn say(&mut self, from: usize, to: usize, message: &SiteMessage) {
        *self.takes_said.entry(from).or_default() += message.takes.len();
        let Some(link) = self.links.get(&(from, to)).filter(|l| l.up) else {
            return;
        };
        let (epoch, at) = (link.epoch, self.now.max(link.stalled_until) + link.latency);
        let said = SiteMessage::decode(&message.encode()).unwrap();
        let fact = SiteFact::Said(said);
        let event = Event::Site {
            from,
            to,
            epoch,
            fact,
        };
        self.at(at, event);
    }

    /// Written to disk, then read by whoever wanted it; only then does it leave memory.
    pub fn found(&mut self, node: usize, block: Block) {
        let now = self.now;
        let it = &mut self.nodes[node];
        assert!(it.wanted.contains(block.cid()), "X2: only what was wanted");
        assert_eq!(
            Block::raw(block.data().clone()).unwrap(),
            block,
            "X2: right bytes"
        );
        it.found += 1;
        (it.done, it.alive) = (now, now);
        it.in_memory += block.len();
        it.most = it.most.max(it.in_memory + it.on_the_way);
        if it.taking.disk == 0 && it.taking.reader == 0 {
            self.taken(node, block);
            return;
        }
        it.disk_free_at = it.disk_free_at.max(now) + takes(block.len(), it.taking.disk);
        let written = it.disk_free_at;
        it.reader_free_at = it.reader_free_at.max(written) + takes(block.len(), it.taking.reader);
        let at = it.reader_free_at;
        self.at(at, Event::Taken { node, block });
    }

    pub fn taken(&mut self, node: usize, block: Block) {
        let now = self.now;
        let it = &mut self.nodes[node];
        it.done = now;
        it.in_memory -= block.len();
        it.core.stored(&[*block.cid()]);
        it.core.release(block.len(), now);
        let (cid, data) = block.into_parts();
        assert!(it.blocks.insert(cid, data).is_none(), "found once");
        if it.taking.disk > 0 || it.taking.reader > 0 {
            self.settle(node);
        }
    }

    pub fn check_bounds(&mut self, node: usize) {
        let load = self.nodes[node].core.load();
        let it = &mut self.nodes[node];
        it.most_served = it.most_served.max(load.served_bytes);
        let config = &self.config;
        assert!(load.expected_bytes + load.found_bytes <= config.node_bytes() + 2 * 1024 * 1024);
        assert!(load.served_wants <= load.peers * config.served_wants());
        assert!(load.loads <= config.loads());
        // A load whose size is not known yet may pass the limit by one block a peer.
        assert!(load.served_bytes <= load.peers * (config.served_peer_bytes() + (4 << 20)));
    }

    pub fn transmit(&mut self, from: usize, to: usize, lane: Lane, mut message: Message) {
        let now = self.now;
        let Some(link) = self.links.get_mut(&(from, to)).filter(|l| l.up) else {
            return;
        };
        let (loss, latency) = (link.loss, link.latency);
        let block_bytes = message.block_bytes();
        let bytes = block_bytes + 40 * (message.entries.len() + message.presences.len()) + 16;
        message.wire_bytes = bytes;
        let idle = self.losses(bytes, loss, latency);
        let Some(link) = self.links.get_mut(&(from, to)) else {
            return;
        };
        let start = link.free_at.max(now).max(link.stalled_until);
        let written = start + takes(bytes, link.rate) + idle;
        let arrives = written + link.latency;
        link.free_at = written;
        let stream = (from, to, lane == Lane::Request);
        let swallowed = self.swallow.contains(&stream);
        if block_bytes > 16 * 1024 && !swallowed {
            link.flights.retain(|(_, ends)| *ends > now);
            link.flights.push((start + link.latency, arrives));
        }
        let epoch = link.epoch;
        let blocks = message.blocks.len();
        let receiver = &mut self.nodes[to];
        receiver.on_the_way += block_bytes;
        receiver.most = receiver.most.max(receiver.in_memory + receiver.on_the_way);
        self.at(
            written,
            Event::Written {
                from,
                to,
                epoch,
                lane,
                blocks,
                block_bytes,
                bytes,
            },
        );
        let lost = self.lose.remove(&stream);
        self.fired("swallow", u64::from(swallowed));
        self.fired("loss", u64::from(lost && !swallowed));
        if lost || swallowed {
            self.nodes[to].on_the_way -= block_bytes;
            return;
        }
        self.at(
            arrives,
            Event::Deliver {
                from,
                to,
                epoch,
                message,
            },
        );
    }
}

/// How long `bytes` take at `rate`; no time at all at 0.
pub fn takes(bytes: usize, rate: u64) -> Duration {
    Duration::from_micros((bytes as u64 * 1_000_000).checked_div(rate).unwrap_or(0))
}

pub fn peer_id(rng: &mut Rng) -> PeerId {
    let mut bytes = vec![0x12, 0x20];
    bytes.extend(rng.bytes(32));
    PeerId::from_bytes(&bytes).unwrap()
}

pub fn blocks(rng: &mut Rng, count: usize, size: usize) -> Vec<Block> {
    (0..count)
        .map(|_| Block::raw(rng.bytes(size)).unwrap())
        .collect()
}
