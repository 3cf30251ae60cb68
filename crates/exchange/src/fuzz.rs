//! Entry points of the fuzz targets; replayed on stable by `tests/corpus.rs`.

use bytes::Bytes;
use gemba_block::{Block, Cid};
use libp2p_identity::PeerId;

use crate::wire::{self, Entry, Message, Presence, Version, WantKind};
use crate::{
    Config, Core, Input, Lane, Load, LoadId, Loaded, Output, SessionId, SessionOptions, Time,
};

/// Any bytes as a message with its length prefix: never panics, and what is taken means the same when it is encoded
/// and decoded again.
pub fn bitswap_message(bytes: &[u8]) {
    let Ok(Some((len, at))) = wire::read_length(bytes) else {
        return;
    };
    assert!(len <= wire::MAX_MESSAGE_BYTES);
    let Some(body) = bytes.get(at..at + len) else {
        return;
    };
    let Ok(mut message) = wire::decode(Bytes::copy_from_slice(body)) else {
        return;
    };
    assert_eq!(message.wire_bytes, len);
    assert!(message.entries.len() + message.blocks.len() <= wire::MAX_ITEMS);
    let Some(frame) = wire::encode(&message, Version::V1_2) else {
        return;
    };
    let again = frame.to_vec();
    assert_eq!(again.len(), frame.len());
    let Ok(Some((len, at))) = wire::read_length(&again) else {
        panic!("an encoded message has a length");
    };
    assert_eq!(at + len, again.len());
    let Ok(mut copy) = wire::decode(Bytes::from(again).slice(at..)) else {
        panic!("an encoded message decodes");
    };
    (message.wire_bytes, message.ignored) = (0, 0);
    (copy.wire_bytes, copy.ignored) = (0, 0);
    assert_eq!(message, copy);
}

/// Any bytes as a script of what peers, owner and time can do to a core: never panics, stays within its bounds, and
/// holds nothing when everybody has left.
pub fn bitswap_session_state(bytes: &[u8]) {
    let mut script = Script::new();
    let mut bytes = bytes.iter().copied();
    while let (Some(op), Some(what)) = (bytes.next(), bytes.next()) {
        script.step(op, what);
        script.check();
    }
    script.end();
}

/// Peers and blocks that a script can name.
const PEERS: u8 = 4;
const BLOCKS: u8 = 32;

struct Script {
    core: Core,
    config: Config,
    now: Time,
    peers: Vec<PeerId>,
    blocks: Vec<Block>,
    sessions: Vec<SessionId>,
    loads: Vec<LoadId>,
    /// Peer and block bytes of responses that were not written yet.
    responses: Vec<(PeerId, usize, usize)>,
    unreleased: usize,
}

impl Script {
    fn new() -> Self {
        let config = Config::default()
            .with_node_bytes(64 * 1024)
            .with_peer_bytes(32 * 1024)
            .with_peer_wants(8)
            .with_session_wants(24)
            .with_sessions(3)
            .with_search(6)
            .with_served_wants(8)
            .with_served_peer_bytes(8 * 1024)
            .with_loads(4)
            .with_message_bytes(4 * 1024)
            .with_ledger_peers(2);
        let peers = (0..PEERS)
            .filter_map(|n| {
                let mut bytes = vec![n; 34];
                bytes[..2].copy_from_slice(&[0x12, 0x20]);
                PeerId::from_bytes(&bytes).ok()
            })
            .collect();
        let blocks = (0..BLOCKS)
            .filter_map(|n| Block::raw(vec![n; 1 + 97 * usize::from(n)]).ok())
            .collect();
        Self {
            core: Core::new(&config),
            config,
            now: Time::ZERO,
            peers,
            blocks,
            sessions: Vec::new(),
            loads: Vec::new(),
            responses: Vec::new(),
            unreleased: 0,
        }
    }

    fn step(&mut self, op: u8, what: u8) {
        let peer = self.peers[usize::from(what % PEERS)];
        let block = self.blocks[usize::from(what / PEERS % BLOCKS)].clone();
        let cid = *block.cid();
        let lan = what & 0x80 != 0;
        match op % 22 {
            0 | 1 => self.handle(Input::Connected { peer, lan }),
            2 => self.handle(Input::Disconnected { peer }),
            3 => self
                .sessions
                .extend(self.core.open_session(SessionOptions::default()).ok()),
            4..=6 => {
                if let Some(session) = self.session(what) {
                    let _refused = self.core.want(session, [cid], self.now);
                }
            }
            7 => {
                if let Some(session) = self.session(what) {
                    self.core.cancel(session, &[cid], self.now);
                }
            }
            8 if what > 200 => {
                if let Some(session) = self.session(what) {
                    self.core.close_session(session, self.now);
                    self.sessions.retain(|s| *s != session);
                }
            }
            8 if what > 100 => self.handle(Input::SpareOpened { peer }),
            9 | 10 => self.receive_blocks(peer, vec![block]),
            11 => self.receive_presence(peer, cid, Presence::Have),
            12 => self.receive_presence(peer, cid, Presence::DontHave),
            13 | 14 => self.receive_want(peer, cid, what, false),
            15 => self.receive_want(peer, cid, what, true),
            16 => {
                self.now += Time::from_millis(u64::from(what) * 50);
                self.core.expire(self.now);
            }
            17 => {
                let half = self.unreleased / 2 + 1;
                self.unreleased -= half.min(self.unreleased);
                self.core.release(half, self.now);
            }
            18 => self.core.stored(&[cid]),
            19 => {
                if let Some(id) = self.loads.pop() {
                    let answer = match what % 3 {
                        0 => Loaded::Missing,
                        1 => Loaded::Size(u64::from(what) * 16),
                        _ => Loaded::Block(block.data().clone()),
                    };
                    self.core.loaded(id, answer);
                }
            }
            20 => {
                if let Some((peer, blocks, block_bytes)) = self.responses.pop() {
                    self.handle(Input::ResponseSent {
                        peer,
                        block_bytes,
                        blocks,
                        bytes: usize::from(what),
                    });
                }
            }
            21 => self.handle(match what % 6 {
                0 => Input::RequestsLost { peer },
                1 => Input::Malformed { peer },
                2 => Input::Progress {
                    peer,
                    at: self.now,
                    bytes: usize::from(what) << 8,
                },
                3 => Input::Unsupported { peer },
                4 => Input::TooSlow { peer },
                _ => Input::RequestSent { peer, bytes: 1 },
            }),
            _ => self.handle(Input::Lan { peer, lan }),
        }
        self.drain();
    }

    fn session(&self, what: u8) -> Option<SessionId> {
        let at = usize::from(what) % self.sessions.len().max(1);
        self.sessions.get(at).copied()
    }

    fn handle(&mut self, input: Input) {
        self.core.handle(input, self.now);
    }

    fn receive(&mut self, peer: PeerId, message: Message) {
        self.handle(Input::Received { peer, message });
    }

    fn receive_blocks(&mut self, peer: PeerId, blocks: Vec<Block>) {
        let wire_bytes = blocks.iter().map(Block::len).sum();
        let message = Message {
            blocks,
            wire_bytes,
            ..Message::default()
        };
        self.receive(peer, message);
    }

    fn receive_presence(&mut self, peer: PeerId, cid: Cid, presence: Presence) {
        let message = Message {
            presences: vec![(cid, presence)],
            ..Message::default()
        };
        self.receive(peer, message);
    }

    fn receive_want(&mut self, peer: PeerId, cid: Cid, what: u8, cancel: bool) {
        let entry = Entry {
            cid,
            priority: i32::from(what % 7),
            cancel,
            kind: if what & 1 == 0 {
                WantKind::Block
            } else {
                WantKind::Have
            },
            send_dont_have: what & 2 == 0,
        };
        let message = Message {
            full: what > 250,
            entries: vec![entry],
            ..Message::default()
        };
        self.receive(peer, message);
    }

    fn drain(&mut self) {
        while let Some(output) = self.core.poll(self.now) {
            match output {
                Output::Send {
                    peer,
                    lane,
                    message,
                } => {
                    assert!(self.peers.contains(&peer));
                    assert!(!message.is_empty(), "nothing is said for nothing");
                    match lane {
                        // Changes of a list of eight, and probes of what is on it.
                        Lane::Request => assert!(message.entries.len() <= 24),
                        Lane::Response => {
                            self.responses.push((
                                peer,
                                message.blocks.len(),
                                message.block_bytes(),
                            ));
                        }
                    }
                }
                Output::GiveUp { peer } => {
                    self.responses.retain(|(to, ..)| *to != peer);
                    self.handle(Input::ResponseSent {
                        peer,
                        block_bytes: 0,
                        blocks: 0,
                        bytes: 0,
                    });
                }
                Output::Load { id, .. } => self.loads.push(id),
                Output::Found { block, .. } => {
                    assert!(self.blocks.contains(&block));
                    self.unreleased += block.len();
                }
                _ => {}
            }
        }
    }

    fn check(&self) {
        let load = self.core.load();
        assert!(load.peers <= usize::from(PEERS));
        assert!(load.wants <= 3 * 24);
        assert!(load.served_wants <= load.peers * 8);
        assert!(load.loads <= 4);
        assert_eq!(load.found_bytes, self.unreleased);
        if load.wants == 0 {
            assert_eq!(load.expected_bytes, 0, "who wants nothing expects nothing");
        }
        // One estimate of the first block may pass the budget when nothing else is expected.
        assert!(load.expected_bytes <= self.config.node_bytes() + 256 * 1024);
        assert!(self.core.peers().len() <= usize::from(PEERS) + 2);
    }

    fn end(mut self) {
        for session in std::mem::take(&mut self.sessions) {
            self.core.close_session(session, self.now);
        }
        self.drain();
        let load = self.core.load();
        assert_eq!((load.wants, load.expected_bytes), (0, 0));
        for peer in self.peers.clone() {
            self.handle(Input::Disconnected { peer });
        }
        for id in std::mem::take(&mut self.loads) {
            self.core.loaded(id, None);
        }
        self.core.release(self.unreleased, self.now);
        self.drain();
        assert_eq!(self.core.load(), Load::default());
        assert_eq!(self.core.deadline(), None);
    }
}
