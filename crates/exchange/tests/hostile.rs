//! What peers that lie, flood and come and go can do to the core and the wire, by somebody who did not write the crate.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

use gemba_block::{Block, Cid};
use gemba_exchange::wire::{self, Entry, Message, Presence, Version, WantKind};
use gemba_exchange::{Config, Core, Input, Lane, LoadId, Output, SessionId, SessionOptions, Time};
use gemba_testkit::alloc::{CountingAlloc, measure};
use gemba_testkit::{Rng, check, sim_scale};
use libp2p_identity::PeerId;

#[global_allocator]
static ALLOC: CountingAlloc = CountingAlloc;

/// What "never" may be written as.
const NEVER: Duration = Duration::MAX;

fn peer_id(rng: &mut Rng) -> PeerId {
    let mut bytes = vec![0x12, 0x20];
    bytes.extend(rng.bytes(32));
    PeerId::from_bytes(&bytes).unwrap()
}

fn block(n: u64) -> Block {
    Block::raw(n.to_le_bytes().repeat(8)).unwrap()
}

fn asks(cid: &Cid, priority: i32, cancel: bool) -> Entry {
    Entry {
        cid: *cid,
        priority,
        cancel,
        kind: WantKind::Block,
        send_dont_have: true,
    }
}

/// Everything the core asks for, with requests and responses counted as written at once.
fn drain(core: &mut Core, now: Time, loads: &mut Vec<LoadId>, found: &mut Vec<Block>) {
    while let Some(output) = core.poll(now) {
        match output {
            Output::Send {
                peer,
                lane,
                message,
            } => {
                let sent = match lane {
                    Lane::Request => Input::RequestSent { peer, bytes: 1 },
                    Lane::Response => Input::ResponseSent {
                        peer,
                        block_bytes: message.block_bytes(),
                        blocks: message.blocks.len(),
                        bytes: 1,
                    },
                };
                core.handle(sent, now);
            }
            Output::Load { id, .. } => loads.push(id),
            Output::Found { block, .. } => found.push(block),
            _ => {}
        }
    }
}

/// Messages cut at every byte and with every byte changed, and lengths at the ends of their type: an error or a message that, written
/// again, is read as the same; never more memory than a small multiple of what came.
#[test]
fn x4_every_cut_and_every_changed_byte_is_refused_or_read_the_same_again() {
    let message = Message {
        entries: vec![
            asks(block(1).cid(), i32::MIN, false),
            asks(block(2).cid(), i32::MAX, true),
        ],
        blocks: vec![block(3), block(4)],
        presences: vec![
            (*block(5).cid(), Presence::Have),
            (*block(6).cid(), Presence::DontHave),
        ],
        ..Message::default()
    };
    let bytes = wire::encode(&message, Version::V1_2).unwrap().to_vec();
    let (_, prefix) = wire::read_length(&bytes).unwrap().unwrap();
    let body = &bytes[prefix..];
    let mut odd: Vec<Vec<u8>> = (0..body.len()).map(|cut| body[..cut].to_vec()).collect();
    for at in 0..body.len() {
        for byte in [0x00, 0x01, 0x7f, 0x80, 0xff, body[at] ^ 1, body[at] ^ 8] {
            let mut changed = body.to_vec();
            changed[at] = byte;
            odd.push(changed);
        }
    }
    for bytes in odd {
        let len = bytes.len() as u64;
        let (read, used) = measure(|| wire::decode(bytes.into()));
        assert!(used.peak <= 4096 + 32 * len, "{used:?}");
        let Ok(read) = read else { continue };
        let Some(again) = wire::encode(&read, Version::V1_2) else {
            continue;
        };
        let again = again.to_vec();
        let (_, prefix) = wire::read_length(&again).unwrap().unwrap();
        let twice = wire::decode(again[prefix..].to_vec().into()).unwrap();
        assert_eq!(twice.entries, read.entries);
        assert_eq!(twice.blocks, read.blocks);
        assert_eq!(twice.presences, read.presences);
    }
    for length in [
        &[0xff; 9][..],
        &[0xff; 10],
        &[0xff; 11],
        &[0x80, 0x80, 0x80, 0x80, 0x10],
    ] {
        assert!(wire::read_length(length).is_err(), "{length:x?}");
    }
}

/// Four mebibytes of the smallest parts there are: wants, answers and blocks of nothing. What is decoded is bounded by what came.
#[test]
fn x4_a_message_of_nothing_but_tiny_parts_costs_a_bounded_multiple_of_itself() {
    // An entry with an empty block, an empty payload with the shortest prefix (identity), a presence of a short CID.
    let parts: [(&str, &[u8]); 5] = [
        ("empty wantlist", &[0x0a, 0x00]),
        ("empty block of 1.0", &[0x12, 0x00]),
        (
            "empty identity block",
            &[0x1a, 0x06, 0x0a, 0x04, 0x01, 0x55, 0x00, 0x00],
        ),
        (
            "identity presence",
            &[0x22, 0x06, 0x0a, 0x04, 0x01, 0x55, 0x00, 0x00],
        ),
        (
            "identity want",
            &[0x0a, 0x08, 0x0a, 0x06, 0x0a, 0x04, 0x01, 0x55, 0x00, 0x00],
        ),
    ];
    for (name, part) in parts {
        let bytes = part.repeat((1 << 20) / part.len());
        let (_, used) = measure(|| drop(wire::decode(bytes.into())));
        assert!(used.peak <= 48 << 20, "{name}: {used:?}");
    }
}

/// Threat X4: ten million frames that no honest peer sends (in the full run), each with a bound on the memory that it costs.
#[test]
fn x4_ten_million_malformed_frames_cost_a_bounded_multiple_of_themselves() {
    const LENGTHS: [&[u8]; 5] = [
        &[0xff, 0xff, 0xff, 0xff, 0x0f],
        &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01],
        &[0x80, 0x80, 0x80, 0x01],
        &[0x81, 0x80, 0x80, 0x02],
        &[0xff; 10],
    ];
    let mut rng = Rng::from_env_or(4);
    let plain = Message {
        entries: vec![asks(block(1).cid(), 5, false)],
        presences: vec![(*block(2).cid(), Presence::Have)],
        ..Message::default()
    };
    let with_block = Message {
        blocks: vec![block(3)],
        ..plain.clone()
    };
    let good: Vec<Vec<u8>> = [plain, with_block]
        .iter()
        .map(|message| {
            let framed = wire::encode(message, Version::V1_2).unwrap().to_vec();
            let (_, prefix) = wire::read_length(&framed).unwrap().unwrap();
            framed[prefix..].to_vec()
        })
        .collect();
    let target = sim_scale(10_000_000);
    let (mut refused, mut read) = (0, 0);
    while refused < target {
        let mut frame = rng.pick(&good).clone();
        let random = rng.next_u64();
        let at = (random >> 8) as usize % frame.len();
        match random % 8 {
            0 | 1 => frame.truncate(at),
            2 => frame[at] |= 0x80,
            3 => frame[at] ^= (random >> 32) as u8 | 1,
            // A length that runs over everything, in the middle and in front.
            4 => drop(frame.splice(at..at + 1, rng.pick(&LENGTHS).iter().copied())),
            5 => {
                frame.truncate(1);
                frame.extend(*rng.pick(&LENGTHS));
            }
            6 => frame.insert(at, (random >> 32) as u8),
            _ => frame.fill((random >> 32) as u8),
        }
        let len = frame.len() as u64;
        let (result, used) = measure(|| wire::decode(frame.into()).map(drop));
        assert!(used.peak <= 4096 + 32 * len, "{used:?} of {len} bytes");
        match result {
            Ok(()) => read += 1,
            Err(_) => refused += 1,
        }
    }
    assert!(read < target, "most of them are malformed: {read}");
    println!("figure: x4 {refused} malformed frames refused, {read} that can be read");
}

fn written(peer: PeerId, lane: Lane, message: &Message, bytes: usize) -> Input {
    match lane {
        Lane::Request => Input::RequestSent { peer, bytes },
        Lane::Response => Input::ResponseSent {
            peer,
            block_bytes: message.block_bytes(),
            blocks: message.blocks.len(),
            bytes,
        },
    }
}

/// 500 peers at one core. The first half reads what it is answered.
struct Crowd {
    core: Core,
    now: Time,
    ids: Vec<PeerId>,
    index: HashMap<PeerId, usize>,
    /// What the driver holds of answers that are not read.
    unread: Vec<VecDeque<Message>>,
    all_read: bool,
}

impl Crowd {
    const PEERS: usize = 500;

    fn new(rng: &mut Rng, config: &Config) -> Self {
        let ids: Vec<PeerId> = (0..Self::PEERS).map(|_| peer_id(rng)).collect();
        let mut core = Core::new(config);
        for peer in &ids {
            let peer = *peer;
            core.handle(Input::Connected { peer, lan: true }, Time::ZERO);
        }
        Self {
            core,
            now: Time::ZERO,
            index: ids.iter().enumerate().map(|(n, id)| (*id, n)).collect(),
            unread: vec![VecDeque::new(); ids.len()],
            ids,
            all_read: false,
        }
    }

    fn say(&mut self, n: usize, message: Message) {
        let peer = self.ids[n];
        self.core
            .handle(Input::Received { peer, message }, self.now);
        self.settle();
    }

    fn settle(&mut self) {
        while let Some(output) = self.core.poll(self.now) {
            match output {
                Output::Send {
                    peer,
                    lane,
                    message,
                } => {
                    let n = self.index[&peer];
                    if self.all_read || n < Self::PEERS / 2 {
                        self.core.handle(written(peer, lane, &message, 1), self.now);
                    } else {
                        self.unread[n].push_back(message);
                    }
                }
                Output::GiveUp { peer } => self.land(self.index[&peer], 0),
                Output::Load { id, .. } => self.core.loaded(id, None),
                _ => {}
            }
        }
    }

    /// What the driver holds for a peer is written, or given up.
    fn land(&mut self, n: usize, bytes: usize) {
        for message in std::mem::take(&mut self.unread[n]) {
            let written = written(self.ids[n], Lane::Response, &message, bytes);
            self.core.handle(written, self.now);
        }
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        if self.core.deadline().is_some_and(|at| at <= self.now) {
            self.core.expire(self.now);
        }
        self.settle();
    }

    /// Each peer wants so many different blocks that are not here, no two the same.
    fn flood(&mut self, digests: &[Cid], wants: usize) {
        const MESSAGE: usize = 250;
        for round in 0..wants.div_ceil(MESSAGE) {
            for n in 0..Self::PEERS {
                let first = (round * Self::PEERS + n) * MESSAGE;
                let entry = |number: usize| {
                    // Names cost a hash each: those of a few blocks, under many codecs, are as good.
                    let hash = *digests[number % digests.len()].hash();
                    let cid = Cid::new_v1((number / digests.len()) as u64 + 0x100, hash);
                    asks(&cid, (number % 5) as i32, false)
                };
                let message = Message {
                    entries: (first..first + MESSAGE).map(entry).collect(),
                    ..Message::default()
                };
                self.say(n, message);
            }
            self.pass(Duration::from_millis(50));
        }
    }

    /// Every second one goes, the others withdraw everything and read from now on.
    fn calm(&mut self) {
        self.all_read = true;
        for n in 0..Self::PEERS {
            if n % 2 == 0 {
                let peer = self.ids[n];
                self.core.handle(Input::Disconnected { peer }, self.now);
                self.unread[n] = VecDeque::new();
            } else {
                let full = true;
                let nothing = Message {
                    full,
                    ..Message::default()
                };
                self.say(n, nothing);
                self.land(n, 1);
            }
        }
        for _ in 0..40 {
            self.pass(Duration::from_millis(250));
        }
    }
}

/// Threat X1: 500 peers ask without end for what is not here, half of them do not read the answers; then half of them go and the others
/// withdraw what they asked. By the allocator's count 64 MiB at the most, and ten seconds later what was held before, and a twentieth.
#[test]
fn x1_a_flood_of_wants_of_500_peers_costs_a_bound_and_leaves_nothing() {
    let mut rng = Rng::from_env_or(5);
    let digests: Vec<Cid> = (0..1024).map(|n| *block(n).cid()).collect();
    for serve in [true, false] {
        let config = Config::default().with_serve(serve);
        let (mut crowd, empty) = measure(|| Crowd::new(&mut rng, &config));
        let (_, used) = measure(|| crowd.flood(&digests, sim_scale(10_000)));
        let most = empty.left + i64::try_from(used.peak).unwrap();
        let held = crowd.core.load();
        let (_, calm) = measure(|| crowd.calm());
        let left = empty.left + used.left + calm.left;
        println!(
            "figure: x1 500 peers x {} wants, serving: {serve}: {} KiB at most, {} KiB before, {} KiB ten seconds after",
            sim_scale(10_000),
            most >> 10,
            empty.left >> 10,
            left >> 10
        );
        assert!(most <= 64 << 20, "{most} bytes, {held:?}");
        assert!(
            left <= empty.left + empty.left / 20,
            "{left} of {most} bytes"
        );
        let load = crowd.core.load();
        assert_eq!((load.served_wants, load.served_bytes), (0, 0));
        assert_eq!((load.loads, load.peers), (0, Crowd::PEERS / 2));
    }
}

/// Peers that come, ask, cancel, send what nobody wanted, claim to have everything and go in the middle, in any order, with answers
/// of the store that come late, twice and for nobody: at the end nothing is held for any of them.
#[test]
fn x1_nothing_is_left_of_peers_that_came_and_went_in_any_order() {
    check!(sim_scale(800), |rng| {
        let mut core = Core::new(&Config::default().with_loads(3).with_served_wants(8));
        let empty = core.load();
        let session = core.open_session(SessionOptions::default()).unwrap();
        let peers: Vec<_> = (0..5).map(|_| peer_id(rng)).collect();
        let (mut loads, mut found, mut now) = (Vec::new(), Vec::new(), Time::ZERO);
        for _ in 0..600 {
            let peer = *rng.pick(&peers);
            let some = block(rng.below(20));
            let message = match rng.below(5) {
                0 => Message {
                    entries: vec![asks(some.cid(), rng.below(9) as i32 - 4, rng.chance(1, 3))],
                    full: rng.chance(1, 4),
                    ..Message::default()
                },
                1 => Message {
                    blocks: vec![some.clone(), some.clone()],
                    wire_bytes: 0,
                    ..Message::default()
                },
                2 => Message {
                    presences: (0..20).map(|n| (*block(n).cid(), Presence::Have)).collect(),
                    ..Message::default()
                },
                3 => Message {
                    presences: vec![
                        (*some.cid(), Presence::Have),
                        (*some.cid(), Presence::DontHave),
                    ],
                    wire_bytes: wire::MAX_MESSAGE_BYTES,
                    ..Message::default()
                },
                _ => Message::default(),
            };
            match rng.below(8) {
                0 => core.handle(
                    Input::Connected {
                        peer,
                        lan: rng.coin(),
                    },
                    now,
                ),
                1 => core.handle(Input::Disconnected { peer }, now),
                2 => drop(core.want(session, [*some.cid()], now)),
                3 => core.cancel(session, &[*some.cid(), *some.cid()], now),
                4 if !loads.is_empty() => {
                    let id = *rng.pick(&loads);
                    core.loaded(id, rng.coin().then(|| some.data().clone()));
                }
                5 => {
                    now += Duration::from_millis(rng.below(9_000));
                    core.expire(now);
                }
                _ => core.handle(Input::Received { peer, message }, now),
            }
            drain(&mut core, now, &mut loads, &mut found);
            for block in found.drain(..) {
                assert!(Block::new(*block.cid(), block.data().clone()).is_ok());
                // Released twice: the second time is the owner's mistake and must not make room that is not there.
                core.release(block.len(), now);
            }
        }
        core.close_session(session, now);
        for peer in peers {
            core.handle(Input::Disconnected { peer }, now);
            core.handle(Input::Disconnected { peer }, now);
        }
        drain(&mut core, now, &mut loads, &mut found);
        for id in loads.drain(..) {
            core.loaded(id, None);
        }
        drain(&mut core, now, &mut loads, &mut found);
        assert_eq!(core.load(), empty);
    });
}

/// Threat X10: wants, cancels and closed sessions race with the blocks that arrive, through links that deliver late. Nothing is found
/// for a session that cancelled it, and nothing stays: no want, no expected byte, no entry on the server's list.
#[test]
fn x10_cancels_race_with_arrivals_and_nothing_is_left() {
    check!(sim_scale(100_000), |rng| {
        let ids = [peer_id(rng), peer_id(rng)];
        let mut cores = [(); 2].map(|()| Core::new(&Config::default()));
        let mut now = Time::ZERO;
        for side in 0..2 {
            let peer = ids[1 - side];
            cores[side].handle(Input::Connected { peer, lan: true }, now);
        }
        let mut mail: [VecDeque<Message>; 2] = Default::default();
        let mut sessions: Vec<(SessionId, HashSet<u64>)> = Vec::new();
        for _ in 0..rng.index(24) {
            let n = rng.below(4);
            match rng.below(6) {
                0 if sessions.len() < 3 => {
                    let session = cores[0].open_session(SessionOptions::default()).unwrap();
                    sessions.push((session, HashSet::new()));
                }
                1 | 2 if !sessions.is_empty() => {
                    let at = rng.index(sessions.len());
                    let (session, wants) = &mut sessions[at];
                    wants.insert(n);
                    cores[0].want(*session, [*block(n).cid()], now).unwrap();
                }
                3 if !sessions.is_empty() => {
                    let at = rng.index(sessions.len());
                    let (session, wants) = &mut sessions[at];
                    wants.remove(&n);
                    cores[0].cancel(*session, &[*block(n).cid()], now);
                }
                4 if !sessions.is_empty() => {
                    let at = rng.index(sessions.len());
                    let (session, _) = sessions.swap_remove(at);
                    cores[0].close_session(session, now);
                }
                _ => {
                    now += Duration::from_millis(rng.below(3_000));
                    cores.iter_mut().for_each(|core| core.expire(now));
                }
            }
            exchange(&mut cores, &ids, &mut mail, &mut sessions, now);
            let to = rng.index(2);
            if let Some(message) = mail[to].pop_front() {
                let peer = ids[1 - to];
                cores[to].handle(Input::Received { peer, message }, now);
            }
            exchange(&mut cores, &ids, &mut mail, &mut sessions, now);
        }
        // Cancels that came too late meet blocks that came too late.
        for (session, _) in std::mem::take(&mut sessions) {
            cores[0].close_session(session, now);
        }
        loop {
            exchange(&mut cores, &ids, &mut mail, &mut sessions, now);
            let Some(to) = (0..2).find(|to| !mail[*to].is_empty()) else {
                break;
            };
            if let Some(message) = mail[to].pop_front() {
                let peer = ids[1 - to];
                cores[to].handle(Input::Received { peer, message }, now);
            }
        }
        let (fetching, serving) = (cores[0].load(), cores[1].load());
        assert_eq!((fetching.wants, fetching.expected_bytes), (0, 0));
        assert_eq!(fetching.found_bytes, 0);
        assert_eq!(
            (serving.served_wants, serving.loads, serving.served_bytes),
            (0, 0, 0)
        );
    });
}

/// Moves what the two cores want to say into the mail; the second one has every block.
fn exchange(
    cores: &mut [Core; 2],
    ids: &[PeerId; 2],
    mail: &mut [VecDeque<Message>; 2],
    sessions: &mut [(SessionId, HashSet<u64>)],
    now: Time,
) {
    for side in 0..2 {
        let peer = ids[1 - side];
        while let Some(output) = cores[side].poll(now) {
            match output {
                Output::Send { lane, message, .. } => {
                    let (blocks, block_bytes) = (message.blocks.len(), message.block_bytes());
                    mail[1 - side].push_back(message);
                    let written = match lane {
                        Lane::Request => Input::RequestSent { peer, bytes: 1 },
                        Lane::Response => Input::ResponseSent {
                            peer,
                            block_bytes,
                            blocks,
                            bytes: 1,
                        },
                    };
                    cores[side].handle(written, now);
                }
                Output::Load { id, cid, .. } => {
                    let data = (0..4).map(block).find(|b| *b.cid() == cid);
                    cores[side].loaded(id, data.map(|b| b.data().clone()));
                }
                Output::Found {
                    session,
                    block: found,
                    ..
                } => {
                    let wants = sessions.iter_mut().find(|(id, _)| *id == session);
                    let n = (0..4).find(|n| block(*n).cid() == found.cid()).unwrap();
                    assert!(wants.unwrap().1.remove(&n), "found, but cancelled");
                    cores[side].release(found.len(), now);
                }
                _ => {}
            }
        }
    }
}

/// Limits of nothing and of everything, times of nothing and of a century, and a clock that has run for one: the core answers, and asks for no time that has passed for ever.
#[test]
fn every_knob_at_its_ends_leaves_a_core_that_comes_to_rest() {
    let mut rng = Rng::from_env_or(1);
    for size in [0, 1, usize::MAX] {
        for time in [Duration::ZERO, Duration::from_nanos(1), NEVER] {
            for start in [Time::ZERO, NEVER] {
                let config = Config::default()
                    .with_stall(time)
                    .with_retry_first(time)
                    .with_retry_last(time)
                    .with_distrust(time)
                    .with_peer_bytes(size)
                    .with_node_bytes(size)
                    .with_peer_wants(size)
                    .with_session_wants(size)
                    .with_search(size)
                    .with_served_wants(size)
                    .with_served_peer_bytes(size)
                    .with_served_node_bytes(size)
                    .with_loads(size)
                    .with_message_bytes(size)
                    .with_ledger_peers(size);
                let mut core = Core::new(&config);
                let (mut loads, mut found) = (Vec::new(), Vec::new());
                let peer = peer_id(&mut rng);
                core.handle(Input::Connected { peer, lan: true }, start);
                let session = core.open_session(SessionOptions::default()).unwrap();
                let _ = core.want(session, [*block(1).cid()], start);
                let message = Message {
                    entries: vec![asks(block(2).cid(), 1, false)],
                    presences: vec![(*block(1).cid(), Presence::DontHave)],
                    blocks: vec![block(3)],
                    ..Message::default()
                };
                core.handle(Input::Received { peer, message }, start);
                drain(&mut core, start, &mut loads, &mut found);
                for id in loads.drain(..) {
                    core.loaded(id, Some(block(2).data().clone()));
                }
                let mut now = start;
                for _ in 0..200 {
                    drain(&mut core, now, &mut loads, &mut found);
                    let Some(deadline) = core.deadline() else {
                        break;
                    };
                    now = now.max(deadline);
                    core.expire(now);
                }
                core.handle(Input::Disconnected { peer }, now);
                core.close_session(session, now);
                drain(&mut core, now, &mut loads, &mut found);
                assert_eq!(core.deadline(), None, "{size} {time:?} {start:?}");
            }
        }
    }
}

fn length(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

/// A block on the wire as a sender may write it: any prefix, any bytes.
fn payload(prefix: [u64; 4], data: &[u8]) -> Vec<u8> {
    let (mut inner, mut varints, mut message) = (Vec::new(), Vec::new(), Vec::new());
    prefix.iter().for_each(|part| length(&mut varints, *part));
    for (field, bytes) in [(0x0a, &varints[..]), (0x12, data)] {
        inner.push(field);
        length(&mut inner, bytes.len() as u64);
        inner.extend(bytes);
    }
    message.push(0x1a);
    length(&mut message, inner.len() as u64);
    message.extend(inner);
    message
}

/// Threat X2: bytes that are not the block, from peers who come again under new names: none is ever found, and the right ones are.
#[test]
fn x2_of_a_million_corrupt_blocks_none_is_found() {
    const V1_RAW_SHA256: [u64; 4] = [1, 0x55, 0x12, 32];
    let mut rng = Rng::from_env_or(2);
    let wanted: Vec<Block> = (0..64)
        .map(|n| Block::raw(rng.bytes(20 + 7 * n)).unwrap())
        .collect();
    let mut core = Core::new(&Config::default());
    let session = core.open_session(SessionOptions::default()).unwrap();
    let now = Time::ZERO;
    core.want(session, wanted.iter().map(|b| *b.cid()), now)
        .unwrap();
    let (mut loads, mut found) = (Vec::new(), Vec::new());
    let corrupt = sim_scale(1_000_000);
    let (mut decoded, mut refused) = (0, 0);
    let mut peer = peer_id(&mut rng);
    for round in 0..corrupt {
        if round % 8 == 0 {
            core.handle(Input::Disconnected { peer }, now);
            peer = peer_id(&mut rng);
            core.handle(Input::Connected { peer, lan: true }, now);
            drain(&mut core, now, &mut loads, &mut found);
        }
        let block = rng.pick(&wanted);
        let mut data = block.data().to_vec();
        let mut prefix = V1_RAW_SHA256;
        match round % 7 {
            0 => {
                let bit = rng.index(data.len() * 8);
                data[bit / 8] ^= 1 << (bit % 8);
            }
            // The right bytes under another codec, version, hash or length of the digest.
            1 => prefix[1] = *rng.pick(&[0x70, 0x71, 0x0129, 0]),
            2 => prefix[2] = *rng.pick(&[0x13, 0x1b, 0xb220, 0x00, 0x11, 0x1e, 0x12 | 1 << 20]),
            3 => prefix[3] = *rng.pick(&[0, 1, 16, 20, 31, 33, 64, 1 << 40, u64::MAX]),
            4 => data.truncate(rng.index(data.len())),
            5 => data.extend_from_slice(&rng.bytes(1 + round % 3)),
            // Two blocks in one, which is the answer to neither.
            _ => data = [&data[..], rng.pick(&wanted).data()].concat(),
        }
        if rng.chance(1, 5) {
            prefix[0] = *rng.pick(&[0, 1, 2]);
        }
        match wire::decode(payload(prefix, &data).into()) {
            Ok(message) => {
                decoded += 1;
                core.handle(Input::Received { peer, message }, now);
            }
            Err(_) => {
                refused += 1;
                core.handle(Input::Malformed { peer }, now);
            }
        }
        drain(&mut core, now, &mut loads, &mut found);
        assert!(found.is_empty(), "{prefix:?} {data:?}");
    }
    assert!(decoded > corrupt / 2 && refused > corrupt / 20);
    assert_eq!(core.load().wants, wanted.len());
    assert_eq!(core.counters().found, 0);
    // The same hand writes them right.
    let peer = peer_id(&mut rng);
    core.handle(Input::Connected { peer, lan: true }, now);
    for block in &wanted {
        let message = wire::decode(payload(V1_RAW_SHA256, block.data()).into()).unwrap();
        core.handle(Input::Received { peer, message }, now);
        drain(&mut core, now, &mut loads, &mut found);
    }
    assert_eq!(found, wanted);
}

/// Who says HAVE, is asked, and then says a word now and then about something else, keeps the block from nobody.
#[test]
fn x3_a_word_now_and_then_is_no_progress() {
    let mut rng = Rng::from_env_or(3);
    for word in 0..3 {
        let mut core = Core::new(&Config::default());
        let session = core.open_session(SessionOptions::default()).unwrap();
        let wanted: Vec<Block> = (0..200).map(block).collect();
        let cids: Vec<Cid> = wanted.iter().map(|b| *b.cid()).collect();
        let [talker, honest] = [peer_id(&mut rng), peer_id(&mut rng)];
        let mut now = Time::ZERO;
        core.handle(
            Input::Connected {
                peer: talker,
                lan: true,
            },
            now,
        );
        core.want(session, cids.iter().copied(), now).unwrap();
        let have = |cids: &[Cid], presence| Message {
            presences: cids.iter().map(|cid| (*cid, presence)).collect(),
            ..Message::default()
        };
        let all = have(&cids, Presence::Have);
        let mut asked_elsewhere = None;
        for step in 0..80 {
            now += Duration::from_millis(100);
            let message = match (step, step % 10) {
                (0, _) => Some((talker, all.clone())),
                (1, _) => {
                    core.handle(
                        Input::Connected {
                            peer: honest,
                            lan: true,
                        },
                        now,
                    );
                    None
                }
                (_, 0) => Some((
                    talker,
                    match word {
                        0 => all.clone(),
                        1 => have(&[*block(100_000 + step).cid()], Presence::DontHave),
                        _ => have(&cids[199..], Presence::DontHave),
                    },
                )),
                _ => None,
            };
            if let Some((peer, message)) = message {
                core.handle(Input::Received { peer, message }, now);
            }
            if core.deadline().is_some_and(|at| at <= now) {
                core.expire(now);
            }
            while let Some(output) = core.poll(now) {
                let Output::Send { peer, message, .. } = output else {
                    continue;
                };
                core.handle(Input::RequestSent { peer, bytes: 1 }, now);
                let first = |e: &Entry| e.cid == cids[0] && e.kind == WantKind::Block && !e.cancel;
                if peer != honest {
                    continue;
                }
                if message.entries.iter().any(first) {
                    asked_elsewhere.get_or_insert(now);
                }
                // It says what it has and sends what it is asked for.
                let asked = message.entries.iter().filter(|e| !e.cancel);
                let (blocks, haves): (Vec<_>, Vec<_>) =
                    asked.partition(|e| e.kind == WantKind::Block);
                let sent = |e: &Entry| wanted.iter().find(|b| *b.cid() == e.cid).cloned();
                let message = Message {
                    blocks: blocks.into_iter().filter_map(sent).collect(),
                    presences: haves.iter().map(|e| (e.cid, Presence::Have)).collect(),
                    ..Message::default()
                };
                core.handle(Input::Received { peer, message }, now);
            }
        }
        let at = asked_elsewhere.unwrap_or(now);
        assert!(
            at <= Duration::from_millis(2_600),
            "word {word}: asked elsewhere after {at:?}"
        );
    }
}
