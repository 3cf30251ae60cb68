//! What peers that lie, flood and come and go can do to the core and the wire, by somebody who did not write the crate.
#![allow(clippy::unwrap_used)]

use std::collections::{HashSet, VecDeque};
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

/// Peers that come, ask, cancel, send what nobody wanted, claim to have everything and go in the middle, in any order, with answers
/// of the store that come late, twice and for nobody: at the end nothing is held for any of them.
#[test]
fn x1_nothing_is_left_of_peers_that_came_and_went_in_any_order() {
    for seed in 0..40 {
        let mut rng = Rng::new(seed);
        let mut core = Core::new(&Config::default().with_loads(3).with_served_wants(8));
        let empty = core.load();
        let session = core.open_session(SessionOptions::default()).unwrap();
        let peers: Vec<_> = (0..5).map(|_| PeerId::random()).collect();
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
        assert_eq!(core.load(), empty, "seed {seed}");
    }
}

/// Threat X10: wants, cancels and closed sessions race with the blocks that arrive, through links that deliver late. Nothing is found
/// for a session that cancelled it, and nothing stays: no want, no expected byte, no entry on the server's list.
#[test]
fn x10_cancels_race_with_arrivals_and_nothing_is_left() {
    check!(sim_scale(100_000), |rng| {
        let ids = [PeerId::random(), PeerId::random()];
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
                let peer = PeerId::random();
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
