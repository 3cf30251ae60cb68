//! Where the work is done that grows with a payload: by workers and by the tasks of connections, never by the core, which runs on the swarm's task.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::Duration;

use bytes::Bytes;
use common::{GOOD, peer_id, secs, topic, unframe};
use gemba_gossip::wire::{Author, FrameBuilder, OwnMessage, Reader, VerifyOutcome, Version};
use gemba_gossip::{
    Config, Core, Input, Message, Mode, Output, PublishError, PublishId, Seen, Time, Topic,
    TopicOptions, hashed,
};
use gemba_testkit::alloc::{CountingAlloc, measure};

#[global_allocator]
static ALLOC: CountingAlloc = CountingAlloc;

const LEN: usize = 1 << 19;
/// What a call of the core may take and hash, whatever the payload: ids, a frame's list of pieces, room in tables.
const SMALL: usize = 32 << 10;

/// A core that is watched at every call.
struct Node {
    core: Core,
    seen: Seen,
}

/// What a core wanted, the heavy work with it.
#[derive(Default)]
struct Wanted {
    sign: Vec<(PublishId, gemba_gossip::wire::SignJob)>,
    verify: Vec<gemba_gossip::Ticket>,
    frames: Vec<gemba_gossip::wire::Frame>,
    delivered: Vec<Message>,
    published: Vec<Result<gemba_gossip::Receipt, PublishError>>,
}

impl Node {
    fn new(number: u64, name: &Topic) -> Self {
        let config = Config::default();
        let mut node = Self {
            seen: Seen::new(config.seen(), [number as u8; 32]),
            core: Core::new(config, Some(Author::keyless(peer_id(number))), number),
        };
        let options = match name.is_own() {
            true => TopicOptions::unsigned(),
            false => TopicOptions::default(),
        };
        node.core
            .subscribe_with(&mut node.seen, name, options, Time::ZERO)
            .unwrap();
        let (stored, wall_nanos) = (None, 1);
        node.handle(Input::SequenceLoaded { stored, wall_nanos });
        node
    }

    fn meet(&mut self, other: u64, name: &Topic) {
        let (peer, version) = (peer_id(other), Version::V1_2);
        let outbound = true;
        self.handle(Input::Connected { peer, outbound });
        self.handle(Input::StreamOpened { peer, version });
        let mut frame = FrameBuilder::new();
        frame.subscription(name, true, 0);
        let received = self.read(other, &unframe(&frame.finish(Duration::MAX)));
        self.handle(received);
        self.poll(other);
    }

    /// What the task of a connection does.
    fn read(&mut self, from: u64, rpc: &Bytes) -> Input {
        let peer = peer_id(from);
        let mut reader = Reader::new(self.seen.digester());
        reader.scan(rpc).unwrap();
        let source = self.seen.join(peer);
        reader.sight(&mut self.seen, source, Time::ZERO);
        let received = Box::new(reader.finish(rpc));
        let at = Time::ZERO;
        Input::Received { peer, received, at }
    }

    fn handle(&mut self, input: Input) {
        light(|| self.core.handle(&mut self.seen, input, Time::ZERO));
    }

    fn publish(&mut self, name: &Topic, data: Bytes) {
        let wait = Mode::Hold(secs(9));
        let (core, seen) = (&mut self.core, &mut self.seen);
        light(|| core.publish(seen, name, data, wait, Time::ZERO)).unwrap();
    }

    fn poll(&mut self, other: u64) -> Wanted {
        let mut wanted = Wanted::default();
        while let Some(output) = light(|| self.core.poll()) {
            match output {
                Output::Sign { publish, job } => wanted.sign.push((publish, job)),
                Output::Verify { ticket, .. } => wanted.verify.push(ticket),
                Output::Reserve { upto } => self.handle(Input::SequenceReserved { upto }),
                Output::Write { frame, .. } => {
                    wanted.frames.push(frame);
                    let peer = peer_id(other);
                    self.handle(Input::Written { peer });
                }
                Output::Deliver { message } => wanted.delivered.push(message),
                Output::Published { result, .. } => wanted.published.push(result),
                _ => {}
            }
        }
        wanted
    }
}

/// A call of the core: it takes little memory and hashes little.
fn light<T>(call: impl FnOnce() -> T) -> T {
    let before = hashed();
    let (result, used) = measure(call);
    assert!(used.peak <= SMALL as u64, "{} bytes are taken", used.peak);
    let hashed = hashed() - before;
    assert!(hashed <= SMALL, "{hashed} bytes are hashed");
    result
}

/// What a worker or the task of a connection does: here the work is.
fn heavy<T>(call: impl FnOnce() -> T) -> T {
    let before = hashed();
    let result = call();
    assert!(hashed() - before >= LEN, "somebody else hashed it");
    result
}

fn whole_way(name: &str) {
    let name = topic(name);
    let (mut author, mut reader) = (Node::new(1, &name), Node::new(2, &name));
    author.meet(2, &name);
    reader.meet(1, &name);
    let data = Bytes::from(vec![7; LEN]);
    author.publish(&name, data.clone());
    let wanted = author.poll(2);
    let [(publish, job)] = &wanted.sign[..] else {
        panic!("{} jobs", wanted.sign.len());
    };
    let (made, used) = measure(|| heavy(|| job.attach(&[GOOD; 64])));
    assert!(used.peak >= LEN as u64, "the copy is the worker's");
    let OwnMessage { message, .. } = made.as_ref().unwrap();
    let written = message.field().as_ptr_range();
    author.handle(Input::Signed {
        publish: *publish,
        result: made.clone(),
    });
    let wanted = author.poll(2);
    assert!(wanted.published[0].is_ok());
    let frame = wanted.frames.last().unwrap();
    let rpc = unframe(frame);
    let input = heavy(|| reader.read(1, &rpc));
    reader.handle(input);
    let mut wanted = reader.poll(1);
    for ticket in std::mem::take(&mut wanted.verify) {
        let outcome = VerifyOutcome::Good;
        reader.handle(Input::Verified { ticket, outcome });
        wanted.delivered.extend(reader.poll(1).delivered);
    }
    let [delivered] = &wanted.delivered[..] else {
        panic!("{} deliveries", wanted.delivered.len());
    };
    assert_eq!(delivered.data, data);
    assert!(rpc.as_ptr_range().contains(&delivered.data.as_ptr()));
    assert!(!written.contains(&delivered.data.as_ptr()));
    // The same again: a copy, and what an author says twice.
    author.publish(&name, data);
    let (publish, job) = author.poll(2).sign.remove(0);
    let result = heavy(|| job.attach(&[GOOD; 64]));
    author.handle(Input::Signed { publish, result });
    let again = author.poll(2).published.remove(0);
    match name.is_own() {
        true => assert_eq!(again, Err(PublishError::Duplicate)),
        false => assert!(again.is_ok()),
    }
}

#[test]
fn the_core_neither_copies_nor_hashes_the_payload_of_a_signed_message() {
    whole_way("line-1/images");
}

#[test]
fn the_core_neither_copies_nor_hashes_the_payload_of_an_unsigned_message() {
    whole_way("/gemba/images");
}
