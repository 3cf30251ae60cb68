//! Entry points of the fuzz targets; replayed on stable by `tests/corpus.rs`.

use std::time::Duration;

use bytes::Bytes;
use libp2p_identity::PeerId;

use crate::wire::{
    Author, FrameBuilder, MAX_CONTROL_BYTES, MAX_FRAME_BYTES, Reader, Received, VerifyOutcome,
    Version, parse, read_length,
};
use crate::{
    Config, Core, Input, Mode, Output, PublishError, PublishId, RelayPolicy, Seen, SeenConfig,
    Ticket, Time, Topic, TopicOptions, Verdict,
};

/// Any bytes as an RPC with its length prefix: never panics, stays within the limits, and what is taken means the same when it is written
/// and read again.
pub fn gossip_rpc(bytes: &[u8]) {
    let Ok(Some((len, at))) = read_length(bytes) else {
        return;
    };
    assert!(len <= MAX_FRAME_BYTES);
    let Some(body) = bytes.get(at..at + len) else {
        return;
    };
    let frame = Bytes::copy_from_slice(body);
    let Some(received) = read(&frame) else {
        return;
    };
    assert_eq!(received.bytes, len);
    for candidate in &received.candidates {
        let message = &candidate.message;
        let again = parse(Bytes::copy_from_slice(message.bytes()), 0);
        assert!(
            again.is_ok_and(|again| again.bytes() == message.bytes() && again.id() == message.id())
        );
        assert!(!message.topic().is_empty());
        assert!(
            message.is_signed() || (message.from().is_empty() && message.signature().is_empty())
        );
        let signed = message.signed_bytes();
        assert!(message.bytes().starts_with(signed));
    }
    let Some(written) = write(&received) else {
        return;
    };
    let Some(again) = read(&written) else {
        panic!("what is written is read");
    };
    assert_eq!(again.subscriptions, received.subscriptions);
    assert_eq!((again.ping, again.pong), (received.ping, received.pong));
    assert_eq!(again.control.graft, received.control.graft);
    assert_eq!(again.control.prune, received.control.prune);
    assert_eq!(again.control.iwant, received.control.iwant);
    assert_eq!(again.control.idontwant, received.control.idontwant);
    assert_eq!(again.control.ihave, received.control.ihave);
    assert_eq!(again.candidates.len(), received.candidates.len());
}

fn read(frame: &Bytes) -> Option<Received> {
    let config = SeenConfig {
        entries: 1 << 16,
        ..SeenConfig::default()
    };
    let mut seen = Seen::new(config, [1; 32]);
    let source = seen.join(peer(1)?);
    let mut reader = Reader::new(seen.digester());
    reader.scan(frame).ok()?;
    reader.sight(&mut seen, source, Time::ZERO);
    Some(reader.finish(frame))
}

/// The same RPC in our form, if it is small enough for one.
fn write(received: &Received) -> Option<Bytes> {
    let mut frame = FrameBuilder::new();
    for subscription in &received.subscriptions {
        let distance = subscription.distance;
        frame.subscription(&subscription.topic, subscription.subscribe, distance);
    }
    for topic in &received.control.graft {
        frame.graft(topic);
    }
    for prune in &received.control.prune {
        frame.prune(&prune.topic, prune.backoff);
    }
    for ihave in &received.control.ihave {
        if frame.ihave(&ihave.topic, &ihave.ids) < ihave.ids.len() {
            return None;
        }
    }
    if frame.iwant(&received.control.iwant) < received.control.iwant.len() {
        return None;
    }
    if frame.idontwant(&received.control.idontwant) < received.control.idontwant.len() {
        return None;
    }
    if let Some(nonce) = received.ping {
        frame.ping(nonce);
    }
    if let Some(nonce) = received.pong {
        frame.pong(nonce);
    }
    if frame.control_bytes() > MAX_CONTROL_BYTES {
        return None;
    }
    for candidate in &received.candidates {
        frame.message(candidate.message.field().clone());
    }
    if frame.len() > MAX_FRAME_BYTES {
        return None;
    }
    let bytes = frame.finish(Time::MAX).to_bytes();
    match read_length(&bytes) {
        Ok(Some((len, at))) if at + len == bytes.len() => Some(bytes.slice(at..)),
        _ => panic!("a written frame has its length in front"),
    }
}

/// Any bytes as a script of what peers, owner, workers and time can do to a core: never panics, stays within its bounds, and holds
/// nothing when everybody has left.
pub fn gossip_control_state(bytes: &[u8]) {
    let Some(mut script) = Script::new() else {
        return;
    };
    let mut bytes = bytes.iter().copied();
    while let (Some(op), Some(what)) = (bytes.next(), bytes.next()) {
        script.step(op, what);
        script.check();
    }
    script.end();
}

/// Peers and topics that a script can name.
const PEERS: u8 = 6;
const TOPICS: [&str; 4] = ["a", "b", "/gemba/u", "relayed"];
const GOOD: u8 = 1;

fn peer(n: u8) -> Option<PeerId> {
    let mut bytes = vec![n; 34];
    bytes[..2].copy_from_slice(&[0x12, 0x20]);
    PeerId::from_bytes(&bytes).ok()
}

struct Script {
    core: Core,
    seen: Seen,
    now: Time,
    peers: Vec<PeerId>,
    topics: Vec<Topic>,
    readers: Vec<Reader>,
    connected: [bool; PEERS as usize],
    /// Frames at the driver, for each peer.
    frames: [u8; PEERS as usize],
    jobs: Vec<(Ticket, bool)>,
    validations: Vec<Ticket>,
    signing: Vec<(PublishId, crate::wire::SignJob)>,
    own: Vec<PublishId>,
    reserve: Option<u64>,
    number: u64,
}

impl Script {
    fn new() -> Option<Self> {
        let config = Config::builder()
            .seen_entries(1 << 10)
            .seen_ttl(Duration::from_secs(20))
            .lane_bytes(1 << 16)
            .lane_messages(16)
            .verify_messages(16)
            .verify_running(4)
            .validations(2)
            .own_messages(4)
            .history_bytes(1 << 16)
            .topics(3)
            .peer_topics(3)
            .degree(2)
            .degree_low(2)
            .degree_high(3)
            .degree_out(1)
            .degree_lazy(2)
            .authors(16)
            .relay_bytes(4096)
            .relay(RelayPolicy::Bridge { max_topics: 2 })
            .topic("/gemba/u", TopicOptions::unsigned())
            .topic("b", TopicOptions::default().with_validate(true))
            .direct(peer(PEERS - 1))
            .build()
            .ok()?;
        let seen = Seen::new(config.seen(), [2; 32]);
        let peers: Vec<PeerId> = (0..PEERS).filter_map(peer).collect();
        let me = peer(200)?;
        Some(Self {
            core: Core::new(config, Some(Author::keyless(me)), 7),
            readers: peers.iter().map(|_| Reader::new(seen.digester())).collect(),
            seen,
            now: Time::ZERO,
            peers,
            topics: TOPICS.iter().filter_map(|t| Topic::new(t).ok()).collect(),
            connected: [false; PEERS as usize],
            frames: [0; PEERS as usize],
            jobs: Vec::new(),
            validations: Vec::new(),
            signing: Vec::new(),
            own: Vec::new(),
            reserve: None,
            number: 0,
        })
    }

    fn step(&mut self, op: u8, what: u8) {
        let n = usize::from(what % PEERS);
        let peer = self.peers[n];
        let topic = self.topics[usize::from(what / PEERS) % self.topics.len()].clone();
        match op % 26 {
            0 | 1 if !self.connected[n] => {
                self.connected[n] = true;
                let outbound = what & 0x80 != 0;
                self.handle(Input::Connected { peer, outbound });
            }
            2 if what > 128 => {
                self.connected[n] = false;
                self.frames[n] = 0;
                self.handle(Input::Disconnected { peer });
            }
            3 => {
                let _refused = self.core.subscribe(&mut self.seen, &topic, self.now);
            }
            4 => self.core.unsubscribe(&mut self.seen, &topic, self.now),
            5..=7 => {
                let mode = match op % 26 {
                    5 => Mode::Try,
                    6 => Mode::Wait(self.now + Duration::from_secs(u64::from(what))),
                    _ => Mode::Hold(Duration::from_secs(u64::from(what))),
                };
                let data = vec![what; 1 + usize::from(what) * 20];
                let taken = self
                    .core
                    .publish(&mut self.seen, &topic, data.into(), mode, self.now);
                self.own.extend(taken);
            }
            8 | 9 => self.say(n, |frame| frame.subscription(&topic, true, what / 64)),
            10 => self.say(n, |frame| frame.subscription(&topic, false, 0)),
            11 => self.say(n, |frame| frame.graft(&topic)),
            12 => self.say(n, |frame| {
                let seconds = [None, Some(0), Some(1), Some(u64::MAX)][usize::from(what / 64)];
                frame.prune(&topic, seconds);
            }),
            13 => {
                let id = self.id(what);
                self.say(n, |frame| {
                    frame.ihave(&topic, &[id]);
                });
            }
            14 => {
                let id = self.id(what);
                self.say(n, |frame| {
                    frame.iwant(&[id]);
                });
            }
            15 => {
                let id = self.id(what);
                self.say(n, |frame| {
                    frame.idontwant(&[id]);
                });
            }
            16 | 17 => self.send(n, &topic, what, GOOD),
            18 => self.send(n, &topic, what, 0),
            19 => {
                if let Some((ticket, good)) = self.jobs.pop() {
                    let outcome = match (good, what) {
                        (_, 255) => VerifyOutcome::Unknown,
                        (true, _) => VerifyOutcome::Good,
                        (false, _) => VerifyOutcome::Bad,
                    };
                    self.handle(Input::Verified { ticket, outcome });
                }
            }
            20 => {
                if let Some(ticket) = self.validations.pop() {
                    let verdict = match what % 3 {
                        0 => Verdict::Accept,
                        1 => Verdict::Ignore,
                        _ => Verdict::Reject,
                    };
                    self.handle(Input::Validated { ticket, verdict });
                }
            }
            21 => self.sign(what),
            22 => self.written(n, what),
            23 => {
                self.now += Duration::from_millis(u64::from(what) * 60);
                self.core.expire(&mut self.seen, self.now);
            }
            24 => self.stream(n, what),
            _ => self.sequence(what),
        }
        self.drain();
    }

    fn sign(&mut self, what: u8) {
        if self.signing.is_empty() {
            return;
        }
        let at = usize::from(what) % self.signing.len();
        let (publish, job) = self.signing.swap_remove(at);
        let result = match what {
            255 => Err(PublishError::Signing("no".into())),
            _ => job.attach(&[GOOD; 64]),
        };
        self.handle(Input::Signed { publish, result });
    }

    fn written(&mut self, n: usize, what: u8) {
        let peer = self.peers[n];
        if self.frames[n] > 0 {
            self.frames[n] -= 1;
            self.handle(match what {
                0..200 => Input::Written { peer },
                _ => Input::Expired { peer },
            });
        } else {
            self.handle(Input::Progress { peer });
        }
    }

    fn stream(&mut self, n: usize, what: u8) {
        let peer = self.peers[n];
        let version = Version::ALL[usize::from(what / 64) % 3];
        match what % 16 {
            0..10 => self.handle(Input::StreamOpened { peer, version }),
            10..14 => self.handle(Input::StreamLost { peer }),
            14 => self.handle(Input::Malformed { peer }),
            _ => self.handle(Input::Unsupported { peer }),
        }
        self.frames[n] = 0;
    }

    fn sequence(&mut self, what: u8) {
        match (what % 4, self.reserve.take()) {
            (0, _) => self.handle(Input::SequenceLoaded {
                stored: Some(u64::from(what)),
                wall_nanos: 0,
            }),
            (1, Some(_)) => self.handle(Input::SequenceFailed),
            (_, Some(upto)) => self.handle(Input::SequenceReserved { upto }),
            _ => {}
        }
    }

    fn handle(&mut self, input: Input) {
        self.core.handle(&mut self.seen, input, self.now);
    }

    fn id(&self, what: u8) -> crate::MessageId {
        let from = self.peers[usize::from(what / 8) % self.peers.len()].to_bytes();
        crate::MessageId::signed(&from, u64::from(what % 16))
    }

    fn say(&mut self, n: usize, write: impl FnOnce(&mut FrameBuilder)) {
        if !self.connected[n] {
            return;
        }
        let mut frame = FrameBuilder::new();
        write(&mut frame);
        let bytes = frame.finish(Time::MAX).to_bytes();
        let Ok(Some((_, at))) = read_length(&bytes) else {
            return;
        };
        let bytes = bytes.slice(at..);
        let source = self.seen.join(self.peers[n]);
        let reader = &mut self.readers[n];
        if reader.scan(&bytes).is_err() {
            return;
        }
        reader.sight(&mut self.seen, source, self.now);
        let received = reader.finish(&bytes);
        if !received.is_empty() {
            let peer = self.peers[n];
            let at = self.now;
            let received = Box::new(received);
            self.handle(Input::Received { peer, received, at });
        }
    }

    fn send(&mut self, n: usize, topic: &Topic, what: u8, signature: u8) {
        self.number += u64::from(what % 3);
        let author = self.peers[usize::from(what / 8) % self.peers.len()];
        let data = vec![what; usize::from(what) * 8];
        let message = if topic.is_own() {
            crate::wire::unsigned(&data, topic.as_str())
        } else {
            let author = Author::keyless(author);
            let signature = [signature; 64];
            crate::wire::signed(&author, self.number, &data, topic.as_str(), &signature)
        };
        if let Ok(message) = message {
            let field = message.field().clone();
            self.say(n, |frame| frame.message(field));
        }
    }

    fn drain(&mut self) {
        while let Some(output) = self.core.poll() {
            match output {
                Output::Write { peer, frame } => {
                    let Some(n) = self.peers.iter().position(|p| *p == peer) else {
                        panic!("a frame for nobody");
                    };
                    assert!(self.connected[n]);
                    self.frames[n] += 1;
                    assert!(self.frames[n] <= 2, "two frames at a time");
                    assert!(frame.bytes > 1, "nothing is said for nothing");
                    assert!(frame.messages == 0 || frame.expires > self.now);
                }
                Output::ResetStream { peer } => {
                    if let Some(n) = self.peers.iter().position(|p| *p == peer) {
                        self.frames[n] = 0;
                    }
                }
                Output::Verify { ticket, job } => {
                    let good = job.message.signature().first() == Some(&GOOD);
                    self.jobs.push((ticket, good));
                    assert!(self.jobs.len() <= 4);
                }
                Output::Validate { ticket, .. } => self.validations.push(ticket),
                Output::Sign { publish, job } => self.signing.push((publish, job)),
                Output::Reserve { upto } => self.reserve = Some(upto),
                Output::Published { publish, .. } => {
                    let before = self.own.len();
                    self.own.retain(|own| *own != publish);
                    // Those that end within `publish` itself are not listed yet.
                    assert!(self.own.len() + 1 >= before);
                }
                _ => {}
            }
        }
    }

    fn check(&self) {
        let load = self.core.load(&self.seen);
        assert!(load.peers <= usize::from(PEERS));
        assert!(load.topics <= self.topics.len());
        assert!(load.pipeline_messages <= 16 + 4 + 2);
        assert!(load.lane_messages <= load.peers * 16);
        assert!(load.lane_bytes <= load.peers << 16);
        assert!(load.history_bytes <= 1 << 16);
        assert!(load.own_messages <= 4);
        assert!(load.authors <= 16);
        assert!(load.seen_entries <= 1 << 10);
        assert!(load.unneeded <= load.peers * 3000);
    }

    fn end(mut self) {
        for n in 0..self.peers.len() {
            let peer = self.peers[n];
            self.handle(Input::Disconnected { peer });
        }
        for topic in self.topics.clone() {
            self.core.unsubscribe(&mut self.seen, &topic, self.now);
        }
        for (ticket, _) in std::mem::take(&mut self.jobs) {
            let outcome = VerifyOutcome::Bad;
            self.handle(Input::Verified { ticket, outcome });
        }
        self.drain();
        // What is held ends in four minutes; who stalled is asked for a while longer.
        let end = self.now + Duration::from_secs(1200);
        while let Some(deadline) = self.core.deadline() {
            if !self.core.config().direct().is_empty() && deadline > end {
                // It looks for its direct peers for ever.
                break;
            }
            assert!(deadline <= end, "a core that nobody needs sleeps");
            self.now = self.now.max(deadline);
            self.core.expire(&mut self.seen, self.now);
            self.drain();
        }
        self.seen.expire(self.now + Duration::from_secs(20));
        let load = self.core.load(&self.seen);
        assert_eq!((load.peers, load.topics, load.seen_entries), (0, 0, 0));
        assert_eq!((load.pipeline_messages, load.pipeline_bytes), (0, 0));
        assert_eq!((load.own_messages, load.own_bytes), (0, 0));
        assert_eq!((load.history_messages, load.promises), (0, 0));
    }
}
