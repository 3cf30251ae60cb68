//! One core, driven by hand: scripted peers, signatures that are good or bad by their first byte, time that passes when it is told to.
#![allow(dead_code)]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use gemba_gossip::wire::{
    Author, Candidate, Control, Frame, FrameBuilder, Reader, Received, Subscription, VerifyJob,
    VerifyOutcome, Version,
};
use gemba_gossip::{
    CloseCause, Config, Core, Event, Input, Message, MessageId, Mode, Output, PublishError,
    PublishId, RawMessage, Receipt, Seen, SeenConfig, Ticket, Time, Topic, TopicOptions, Verdict,
};
use libp2p_identity::PeerId;

/// Signatures in tests: 64 of these.
pub(crate) const GOOD: u8 = 1;
pub(crate) const BAD: u8 = 0xba;

pub(crate) fn topic(name: &str) -> Topic {
    Topic::new(name).unwrap()
}

pub(crate) fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

pub(crate) fn millis(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// A peer id with this number.
pub(crate) fn peer_id(n: u64) -> PeerId {
    let mut bytes = vec![0x12, 0x20];
    bytes.extend_from_slice(&[7; 24]);
    bytes.extend_from_slice(&n.to_be_bytes());
    PeerId::from_bytes(&bytes).unwrap()
}

/// Protobuf by hand, for what no honest peer writes.
pub(crate) mod pb {
    pub(crate) fn varint(out: &mut Vec<u8>, mut value: u64) {
        while value >= 0x80 {
            out.push(value as u8 | 0x80);
            value >>= 7;
        }
        out.push(value as u8);
    }

    pub(crate) fn bytes(number: u64, value: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        varint(&mut out, number << 3 | 2);
        varint(&mut out, value.len() as u64);
        out.extend_from_slice(value);
        out
    }

    pub(crate) fn number(number: u64, value: u64) -> Vec<u8> {
        let mut out = Vec::new();
        varint(&mut out, number << 3);
        varint(&mut out, value);
        out
    }
}

/// The body of a signed message.
pub(crate) fn body(from: PeerId, seqno: u64, topic: &str, data: &[u8], signature: u8) -> Vec<u8> {
    [
        pb::bytes(1, &from.to_bytes()),
        pb::bytes(2, data),
        pb::bytes(3, &seqno.to_be_bytes()),
        pb::bytes(4, topic.as_bytes()),
        pb::bytes(5, &[signature; 64]),
        // The ids here are hashes, so a key comes along.
        pb::bytes(6, &[2; 36]),
    ]
    .concat()
}

/// The same as a field of an RPC.
pub(crate) fn signed(from: PeerId, seqno: u64, topic: &str, data: &[u8], signature: u8) -> Bytes {
    pb::bytes(2, &body(from, seqno, topic, data, signature)).into()
}

pub(crate) fn unsigned(topic: &str, data: &[u8]) -> Bytes {
    let body = [pb::bytes(2, data), pb::bytes(4, topic.as_bytes())].concat();
    pb::bytes(2, &body).into()
}

pub(crate) fn check(job: &VerifyJob) -> VerifyOutcome {
    if job.message.signature().first() == Some(&GOOD) {
        VerifyOutcome::Good
    } else {
        VerifyOutcome::Bad
    }
}

/// What is in a frame, as its receiver would read it if nothing was known to it.
pub(crate) fn decode(frame: &Bytes) -> Received {
    let config = SeenConfig {
        entries: 1 << 13,
        ..SeenConfig::default()
    };
    let mut seen = Seen::new(config, [9; 32]);
    let source = seen.join(peer_id(u64::MAX));
    let mut reader = Reader::new(seen.digester());
    reader.scan(frame).unwrap();
    reader.sight(&mut seen, source, Time::ZERO);
    reader.finish(frame)
}

/// The RPC of a written frame.
pub(crate) fn unframe(frame: &Frame) -> Bytes {
    let bytes = frame.to_bytes();
    assert_eq!(bytes.len(), frame.bytes);
    let (len, at) = gemba_gossip::wire::read_length(&bytes).unwrap().unwrap();
    assert_eq!(at + len, bytes.len());
    bytes.slice(at..)
}

pub(crate) struct Bench {
    pub(crate) core: Core,
    pub(crate) seen: Seen,
    pub(crate) now: Time,
    pub(crate) me: PeerId,
    /// Answers to outputs, in order.
    todo: VecDeque<Input>,
    readers: BTreeMap<PeerId, Reader>,
    next_peer: u64,
    /// Peers whose frames are not written.
    pub(crate) stuck: BTreeSet<PeerId>,
    /// Frames that wait there.
    pub(crate) held: Vec<(PeerId, Frame)>,
    /// Verifications are not done by themselves.
    pub(crate) slow: bool,
    pub(crate) jobs: Vec<(Ticket, VerifyJob)>,
    pub(crate) verified: u64,
    pub(crate) validations: Vec<(Ticket, Message)>,
    pub(crate) sent: Vec<(PeerId, Received)>,
    pub(crate) frames: Vec<(PeerId, Frame)>,
    pub(crate) delivered: Vec<Message>,
    pub(crate) published: BTreeMap<PublishId, Result<Receipt, PublishError>>,
    pub(crate) events: Vec<Event>,
    pub(crate) opened: Vec<PeerId>,
    pub(crate) reset: Vec<PeerId>,
    pub(crate) closed: Vec<(PeerId, CloseCause)>,
    /// New streams are answered so; none leaves them waiting.
    pub(crate) version: Option<Version>,
}

impl Bench {
    pub(crate) fn new(config: Config) -> Self {
        let me = peer_id(0);
        let seen = Seen::new(config.seen(), [5; 32]);
        let core = Core::new(config, Some(Author::keyless(me)), 42);
        let mut bench = Self {
            core,
            seen,
            now: Time::ZERO,
            me,
            todo: VecDeque::new(),
            readers: BTreeMap::new(),
            next_peer: 1,
            stuck: BTreeSet::new(),
            held: Vec::new(),
            slow: false,
            jobs: Vec::new(),
            verified: 0,
            validations: Vec::new(),
            sent: Vec::new(),
            frames: Vec::new(),
            delivered: Vec::new(),
            published: BTreeMap::new(),
            events: Vec::new(),
            opened: Vec::new(),
            reset: Vec::new(),
            closed: Vec::new(),
            version: Some(Version::V1_2),
        };
        bench.handle(Input::SequenceLoaded {
            stored: None,
            wall_nanos: 1_000_000,
        });
        bench
    }

    pub(crate) fn handle(&mut self, input: Input) {
        self.todo.push_back(input);
        self.drain();
    }

    pub(crate) fn drain(&mut self) {
        loop {
            while let Some(output) = self.core.poll() {
                self.on_output(output);
            }
            let Some(input) = self.todo.pop_front() else {
                return;
            };
            self.core.handle(&mut self.seen, input, self.now);
        }
    }

    fn on_output(&mut self, output: Output) {
        match output {
            Output::OpenStream { peer } => {
                self.opened.push(peer);
                if let Some(version) = self.version {
                    self.todo.push_back(Input::StreamOpened { peer, version });
                }
            }
            Output::ResetStream { peer } => {
                self.held.retain(|(to, _)| *to != peer);
                self.reset.push(peer);
            }
            Output::Close { peer, cause } => self.closed.push((peer, cause)),
            Output::Write { peer, frame } => {
                assert!(frame.bytes <= gemba_gossip::wire::MAX_FRAME_BYTES + 4);
                if self.stuck.contains(&peer) {
                    self.held.push((peer, frame));
                    let out = self.held.iter().filter(|(to, _)| *to == peer).count();
                    assert!(out <= 2, "two frames at a time");
                } else {
                    self.sent.push((peer, decode(&unframe(&frame))));
                    self.frames.push((peer, frame));
                    self.todo.push_back(Input::Written { peer });
                }
            }
            Output::Verify { ticket, job } => {
                self.verified += 1;
                if self.slow {
                    self.jobs.push((ticket, job));
                } else {
                    let outcome = check(&job);
                    self.todo.push_back(Input::Verified { ticket, outcome });
                }
            }
            Output::Validate {
                ticket, message, ..
            } => self.validations.push((ticket, message)),
            Output::Sign { publish, job } => {
                let result = job.attach(&[GOOD; 64]);
                self.todo.push_back(Input::Signed { publish, result });
            }
            Output::Reserve { upto } => self.todo.push_back(Input::SequenceReserved { upto }),
            Output::Deliver { message } => self.delivered.push(message),
            Output::Published { publish, result } => {
                assert!(self.published.insert(publish, result).is_none());
            }
            Output::Event(event) => self.events.push(event),
            other => panic!("{other:?}"),
        }
    }

    /// Lets time pass as a driver does.
    pub(crate) fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(deadline) = self.core.deadline().filter(|d| *d <= end) {
            self.now = deadline.max(self.now);
            self.core.expire(&mut self.seen, self.now);
            self.drain();
        }
        self.now = end;
    }

    pub(crate) fn connect(&mut self, outbound: bool) -> PeerId {
        let peer = peer_id(self.next_peer);
        self.next_peer += 1;
        self.reconnect(peer, outbound);
        peer
    }

    pub(crate) fn reconnect(&mut self, peer: PeerId, outbound: bool) {
        self.handle(Input::Connected { peer, outbound });
        self.readers.insert(peer, Reader::new(self.seen.digester()));
    }

    pub(crate) fn disconnect(&mut self, peer: PeerId) {
        self.held.retain(|(to, _)| *to != peer);
        self.readers.remove(&peer);
        self.handle(Input::Disconnected { peer });
    }

    /// A connected peer that subscribes.
    pub(crate) fn subscriber(&mut self, name: &str) -> PeerId {
        let peer = self.connect(false);
        self.joins(peer, name, 0);
        peer
    }

    pub(crate) fn joins(&mut self, peer: PeerId, name: &str, distance: u8) {
        let mut frame = FrameBuilder::new();
        frame.subscription(&topic(name), true, distance);
        self.say(peer, frame);
    }

    pub(crate) fn leaves(&mut self, peer: PeerId, name: &str) {
        let mut frame = FrameBuilder::new();
        frame.subscription(&topic(name), false, 0);
        self.say(peer, frame);
    }

    pub(crate) fn subscribe(&mut self, name: &str) {
        self.subscribe_with(name, TopicOptions::default());
    }

    pub(crate) fn subscribe_with(&mut self, name: &str, options: TopicOptions) {
        self.core
            .subscribe_with(&mut self.seen, &topic(name), options, self.now)
            .unwrap();
        self.drain();
    }

    pub(crate) fn unsubscribe(&mut self, name: &str) {
        self.core
            .unsubscribe(&mut self.seen, &topic(name), self.now);
        self.drain();
    }

    pub(crate) fn publish(
        &mut self,
        name: &str,
        data: impl Into<Bytes>,
        mode: Mode,
    ) -> Result<PublishId, PublishError> {
        let id = self
            .core
            .publish(&mut self.seen, &topic(name), data.into(), mode, self.now);
        self.drain();
        id
    }

    /// What a connection's task does with what a peer says.
    pub(crate) fn say(&mut self, peer: PeerId, frame: FrameBuilder) {
        self.receive(peer, unframe(&frame.finish(Time::MAX)));
    }

    pub(crate) fn receive(&mut self, peer: PeerId, frame: Bytes) {
        let read = self.read(peer, &frame);
        self.tell(peer, read);
    }

    /// What a connection's task reads, before the core hears of it.
    pub(crate) fn read(&mut self, peer: PeerId, frame: &Bytes) -> Received {
        let source = self.seen.join(peer);
        let reader = self.readers.get_mut(&peer).unwrap();
        reader.scan(frame).unwrap();
        reader.sight(&mut self.seen, source, self.now);
        reader.finish(frame)
    }

    /// Tells the core what was read.
    pub(crate) fn tell(&mut self, peer: PeerId, received: Received) {
        if !received.is_empty() {
            self.handle(Input::Received {
                peer,
                received: Box::new(received),
                at: self.now,
            });
        }
    }

    /// A peer sends a message (a `publish` field).
    pub(crate) fn send(&mut self, peer: PeerId, field: &Bytes) {
        let mut frame = FrameBuilder::new();
        frame.message(field.clone());
        self.say(peer, frame);
    }

    /// Does what waits for a worker.
    pub(crate) fn work(&mut self) {
        for (ticket, job) in std::mem::take(&mut self.jobs) {
            let outcome = check(&job);
            self.handle(Input::Verified { ticket, outcome });
        }
    }

    pub(crate) fn validate(&mut self, verdict: Verdict) {
        for (ticket, _) in std::mem::take(&mut self.validations) {
            self.handle(Input::Validated { ticket, verdict });
        }
    }

    /// Payloads delivered since the last call.
    pub(crate) fn deliveries(&mut self) -> Vec<Bytes> {
        self.delivered.drain(..).map(|m| m.data).collect()
    }

    /// Everything said to a peer since the last call.
    pub(crate) fn heard(&mut self, peer: PeerId) -> Heard {
        let mut heard = Heard::default();
        let (mine, others) = self.sent.drain(..).partition(|(to, _)| *to == peer);
        self.sent = others;
        for (_, received) in mine {
            heard.add(received);
        }
        heard
    }

    pub(crate) fn forget_sent(&mut self) {
        self.sent.clear();
        self.frames.clear();
    }
}

/// What a peer was told.
#[derive(Debug, Default)]
pub(crate) struct Heard {
    pub(crate) subscriptions: Vec<Subscription>,
    pub(crate) messages: Vec<RawMessage>,
    pub(crate) control: Control,
    pub(crate) pings: Vec<u64>,
    pub(crate) pongs: Vec<u64>,
    pub(crate) rpcs: usize,
}

impl Heard {
    fn add(&mut self, received: Received) {
        self.rpcs += 1;
        self.subscriptions.extend(received.subscriptions);
        self.messages.extend(
            received
                .candidates
                .into_iter()
                .map(|c: Candidate| c.message),
        );
        self.control.ihave.extend(received.control.ihave);
        self.control.iwant.extend(received.control.iwant);
        self.control.graft.extend(received.control.graft);
        self.control.prune.extend(received.control.prune);
        self.control.idontwant.extend(received.control.idontwant);
        self.pings.extend(received.ping);
        self.pongs.extend(received.pong);
    }

    pub(crate) fn data(&self) -> Vec<Bytes> {
        self.messages.iter().map(RawMessage::data).collect()
    }

    pub(crate) fn advertised(&self) -> Vec<MessageId> {
        self.control
            .ihave
            .iter()
            .flat_map(|h| h.ids.clone())
            .collect()
    }
}
