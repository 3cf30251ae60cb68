//! The core, driven by hand: one mechanism a test.
#![allow(clippy::unwrap_used)]

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

use gemba_block::{Block, Cid};
use gemba_exchange::wire::{Entry, Message, Presence, WantKind};
use gemba_exchange::{
    Answer, AskPolicy, Config, Core, Input, Lane, LoadId, LoadKind, Loaded, Output, SessionId,
    SessionOptions, Time, WaitingFor, WantError,
};
use gemba_testkit::{check, sim_scale};
use libp2p_identity::PeerId;

/// A core and what came out of it.
struct Bench {
    core: Core,
    now: Time,
    sent: Vec<(PeerId, Lane, Message)>,
    loads: Vec<(LoadId, Cid, LoadKind)>,
    found: Vec<(SessionId, Block, PeerId)>,
    unavailable: Vec<(Cid, Vec<(PeerId, Answer)>)>,
    stalled: Vec<PeerId>,
    distrusted: Vec<PeerId>,
    given_up: Vec<PeerId>,
    pauses: Vec<bool>,
}

impl Bench {
    fn new(config: &Config) -> Self {
        Self {
            core: Core::new(config),
            now: Time::ZERO,
            sent: Vec::new(),
            loads: Vec::new(),
            found: Vec::new(),
            unavailable: Vec::new(),
            stalled: Vec::new(),
            distrusted: Vec::new(),
            given_up: Vec::new(),
            pauses: Vec::new(),
        }
    }

    fn peer(&mut self) -> PeerId {
        self.join(PeerId::random(), true)
    }

    fn join(&mut self, peer: PeerId, lan: bool) -> PeerId {
        self.handle(Input::Connected { peer, lan });
        peer
    }

    fn handle(&mut self, input: Input) {
        self.core.handle(input, self.now);
        self.drain();
    }

    fn receive(&mut self, peer: PeerId, message: Message) {
        self.handle(Input::Received { peer, message });
    }

    /// Collects all outputs; requests count as written at once.
    fn drain(&mut self) {
        while let Some(output) = self.core.poll(self.now) {
            match output {
                Output::Send {
                    peer,
                    lane,
                    message,
                } => {
                    self.sent.push((peer, lane, message));
                    if lane == Lane::Request {
                        self.core
                            .handle(Input::RequestSent { peer, bytes: 1 }, self.now);
                    }
                }
                Output::Load { id, cid, kind } => self.loads.push((id, cid, kind)),
                Output::Found {
                    session,
                    block,
                    from,
                } => self.found.push((session, block, from)),
                Output::Unavailable { cid, asked, .. } => {
                    let asked = asked.iter().map(|a| (a.peer, a.answer)).collect();
                    self.unavailable.push((cid, asked));
                }
                Output::Stalled { peer, .. } => self.stalled.push(peer),
                Output::Distrusted { peer } => self.distrusted.push(peer),
                Output::GiveUp { peer } => self.given_up.push(peer),
                Output::Pause(paused) => self.pauses.push(paused),
                _ => {}
            }
        }
    }

    fn session(&mut self, policy: AskPolicy) -> SessionId {
        self.core
            .open_session(SessionOptions::with_policy(policy))
            .unwrap()
    }

    fn want(&mut self, session: SessionId, blocks: &[Block]) {
        let cids: Vec<_> = blocks.iter().map(|b| *b.cid()).collect();
        self.core.want(session, cids, self.now).unwrap();
        self.drain();
    }

    /// The peer delivers a block that it is asked for in a session of its own.
    fn proven(&mut self, peer: PeerId) {
        let session = self.session(AskPolicy::Only([peer].into()));
        let first = Block::raw(peer.to_bytes()).unwrap();
        self.want(session, std::slice::from_ref(&first));
        self.receive(peer, with_blocks(&[first]));
        self.core.close_session(session, self.now);
        self.drain();
        self.sent.clear();
        self.found.clear();
    }

    /// Wants, and all of `peers` say that they have it.
    fn want_of(&mut self, peers: &[PeerId], content: &[Block]) {
        let session = self.session(AskPolicy::Any);
        self.want(session, content);
        for peer in peers {
            let presences = content.iter().map(|b| (*b.cid(), Presence::Have));
            let message = Message {
                presences: presences.collect(),
                ..Message::default()
            };
            self.receive(*peer, message);
        }
    }

    /// The blocks that a peer was asked for since the last call.
    fn asked_for(&mut self, peer: PeerId) -> Vec<Cid> {
        let block = |e: &Entry| !e.cancel && e.kind == WantKind::Block;
        let entries = self.entries(peer);
        entries.iter().filter(|e| block(e)).map(|e| e.cid).collect()
    }

    /// Lets time pass as the driver does.
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(deadline) = self.core.deadline().filter(|d| *d <= end) {
            self.now = deadline.max(self.now);
            self.core.expire(self.now);
            self.drain();
        }
        self.now = end;
    }

    /// Entries sent to a peer since the last call.
    fn entries(&mut self, to: PeerId) -> Vec<Entry> {
        let (mine, others) = self
            .sent
            .drain(..)
            .partition(|(peer, lane, _)| *peer == to && *lane == Lane::Request);
        self.sent = others;
        mine.into_iter().flat_map(|(_, _, m)| m.entries).collect()
    }

    /// Responses sent to a peer since the last call.
    fn responses(&mut self, to: PeerId) -> Vec<Message> {
        let (mine, others) = self
            .sent
            .drain(..)
            .partition(|(peer, lane, _)| *peer == to && *lane == Lane::Response);
        self.sent = others;
        mine.into_iter().map(|(_, _, m)| m).collect()
    }

    fn ask_for(&mut self, peer: PeerId, content: &[Block]) {
        let entry = |b: &Block| asks(b.cid(), WantKind::Block, 1);
        self.receive(peer, wantlist(content.iter().map(entry).collect()));
    }

    /// Answers all loads from `content`.
    fn load_from(&mut self, content: &[Block]) {
        while let Some((id, cid, _)) = self.loads.pop() {
            let data = content.iter().find(|b| *b.cid() == cid);
            self.core.loaded(id, data.map(|b| b.data().clone()));
            self.drain();
        }
    }

    /// A peer asks for everything and reads what it gets now. How many blocks that is.
    fn serve(&mut self, peer: PeerId, content: &[Block]) -> usize {
        self.ask_for(peer, content);
        self.take(peer, content)
    }

    /// The peer reads what it gets now. How many blocks that is.
    fn take(&mut self, peer: PeerId, content: &[Block]) -> usize {
        let mut got = 0;
        loop {
            self.load_from(content);
            let responses = self.responses(peer);
            if responses.is_empty() {
                return got;
            }
            for message in responses {
                got += message.blocks.len();
                self.written(peer, &message);
            }
        }
    }

    /// Drops the messages of peers that are to be given up, as the driver does.
    fn drop_given_up(&mut self) {
        for peer in std::mem::take(&mut self.given_up) {
            self.handle(Input::ResponseSent {
                peer,
                block_bytes: 0,
                blocks: 0,
                bytes: 0,
            });
        }
    }

    fn written(&mut self, peer: PeerId, message: &Message) {
        self.handle(Input::ResponseSent {
            peer,
            block_bytes: message.block_bytes(),
            blocks: message.blocks.len(),
            bytes: 1,
        });
    }
}

fn block(n: u64, size: usize) -> Block {
    let mut data = vec![(n % 256) as u8; size.max(8)];
    data[..8].copy_from_slice(&n.to_le_bytes());
    Block::raw(data).unwrap()
}

fn blocks(count: u64, size: usize) -> Vec<Block> {
    (0..count).map(|n| block(n, size)).collect()
}

fn presence(cid: &Cid, presence: Presence) -> Message {
    Message {
        presences: vec![(*cid, presence)],
        ..Message::default()
    }
}

fn with_blocks(blocks: &[Block]) -> Message {
    let bytes: usize = blocks.iter().map(Block::len).sum();
    Message {
        blocks: blocks.to_vec(),
        wire_bytes: bytes + 50,
        ..Message::default()
    }
}

fn asks(cid: &Cid, kind: WantKind, priority: i32) -> Entry {
    Entry {
        cid: *cid,
        priority,
        cancel: false,
        kind,
        send_dont_have: true,
    }
}

fn wantlist(entries: Vec<Entry>) -> Message {
    Message {
        entries,
        ..Message::default()
    }
}

// ---- client

#[test]
fn asks_everybody_whether_then_one_for_the_block_then_cancels() {
    let mut bench = Bench::new(&Config::default());
    let (a, b) = (bench.peer(), bench.peer());
    let session = bench.session(AskPolicy::Any);
    let wanted = block(1, 5000);
    bench.want(session, std::slice::from_ref(&wanted));
    for peer in [a, b] {
        let entries = bench.entries(peer);
        assert_eq!(entries.len(), 1);
        assert_eq!(entries[0].kind, WantKind::Have);
        assert!(entries[0].send_dont_have);
    }
    bench.receive(b, presence(wanted.cid(), Presence::Have));
    let entries = bench.entries(b);
    assert_eq!(entries.len(), 1);
    assert_eq!(entries[0].kind, WantKind::Block);
    assert!(bench.entries(a).is_empty());
    bench.receive(b, with_blocks(std::slice::from_ref(&wanted)));
    assert_eq!(bench.found.len(), 1);
    assert_eq!(bench.found[0].2, b);
    let cancels = bench.entries(a);
    assert!(cancels.len() == 1 && cancels[0].cancel);
    assert!(
        bench.entries(b).is_empty(),
        "who sent the block forgot the want itself"
    );
    assert_eq!(bench.core.load().expected_bytes, 0);
}

#[test]
fn a_peer_that_delivered_is_asked_for_the_next_block_directly() {
    let mut bench = Bench::new(&Config::default());
    let (a, b) = (bench.peer(), bench.peer());
    let session = bench.session(AskPolicy::Any);
    bench.want(session, &[block(1, 5000)]);
    bench.receive(a, with_blocks(&[block(1, 5000)]));
    bench.sent.clear();
    bench.want(session, &[block(2, 5000)]);
    assert_eq!(bench.entries(a)[0].kind, WantKind::Block);
    assert!(bench.entries(b).is_empty());
    bench.receive(a, presence(block(2, 5000).cid(), Presence::DontHave));
    assert_eq!(
        bench.entries(b)[0].kind,
        WantKind::Have,
        "not there: the others are asked"
    );
}

#[test]
fn x3_a_want_moves_on_after_two_seconds_without_a_byte() {
    let mut bench = Bench::new(&Config::default());
    let (a, b) = (bench.peer(), bench.peer());
    bench.proven(a);
    let session = bench.session(AskPolicy::Any);
    let wanted = block(1, 100_000);
    bench.want(session, std::slice::from_ref(&wanted));
    bench.receive(a, presence(wanted.cid(), Presence::Have));
    bench.receive(b, presence(wanted.cid(), Presence::Have));
    assert_eq!(bench.entries(a).len(), 2);
    bench.sent.clear();
    bench.pass(Duration::from_millis(1900));
    assert!(bench.entries(b).is_empty());
    bench.pass(Duration::from_millis(400));
    assert_eq!(bench.stalled, [a]);
    let moved = bench.entries(b);
    assert_eq!(moved[0].kind, WantKind::Block);
    let cancel = bench.entries(a);
    assert!(
        cancel[0].cancel,
        "the first must not send a second copy later"
    );
    assert_eq!(bench.core.counters().moved, 1);
}

/// EX-23: whom we owe an answer, and whom we asked whether it has a block, owes no bytes: anybody can bring that about.
#[test]
fn x1_only_blocks_that_were_asked_for_are_owed() {
    let mut bench = Bench::new(&Config::default());
    let [holder, other] = [bench.peer(), bench.peer()];
    let here = block(2, 1000);
    bench.ask_for(other, std::slice::from_ref(&here));
    let session = bench.session(AskPolicy::Any);
    let wanted = block(1, 100_000);
    bench.want(session, std::slice::from_ref(&wanted));
    for peer in [holder, other] {
        assert!(bench.core.is_busy(&peer));
        assert_eq!(bench.core.owed_bytes(&peer), 0);
    }
    bench.receive(holder, presence(wanted.cid(), Presence::Have));
    assert_eq!(bench.core.owed_bytes(&holder), 2 << 20);
    assert_eq!(bench.core.owed_bytes(&other), 0);
    bench.receive(holder, with_blocks(&[wanted]));
    assert_eq!(bench.core.owed_bytes(&holder), 0);
}

/// EX-23: a message that was announced and did not come in time counts against its sender, as a block that did not come does.
#[test]
fn x3_who_was_too_slow_is_asked_last() {
    let mut bench = Bench::new(&Config::default());
    let [slow, other] = [bench.peer(), bench.peer()];
    for peer in [slow, other] {
        bench.proven(peer);
    }
    bench.handle(Input::TooSlow { peer: slow });
    assert_eq!(bench.core.counters().slow_messages, 1);
    let content: Vec<_> = (10..14).map(|n| block(n, 1000)).collect();
    bench.want_of(&[slow, other], &content);
    assert_eq!(bench.asked_for(other).len(), 4);
    assert!(bench.asked_for(slow).is_empty());
}

/// Threat X7: on an ordered link the block comes when the link moves again; asked for twice it would come twice.
#[test]
fn x7_a_stalled_only_holder_is_waited_for_and_asked_again_late() {
    let mut bench = Bench::new(&Config::default());
    let only = bench.peer();
    let session = bench.session(AskPolicy::Any);
    let wanted = block(1, 100_000);
    bench.want(session, std::slice::from_ref(&wanted));
    bench.receive(only, presence(wanted.cid(), Presence::Have));
    bench.sent.clear();
    for _ in 0..15 {
        bench.pass(Duration::from_secs(1));
    }
    // Only whether it has it, once: it answers if it lost the want, or the block was lost.
    let asks_for_block = |e: &Entry| e.kind == WantKind::Block || e.cancel;
    assert_eq!(bench.stalled, [only]);
    let said = bench.entries(only);
    assert!(
        said.len() == 1 && !said.iter().any(asks_for_block),
        "{said:?}"
    );
    // It moves: the want counts as under way again.
    let at = bench.now;
    bench.handle(Input::Progress {
        peer: only,
        at,
        bytes: 1000,
    });
    for _ in 0..15 {
        bench.pass(Duration::from_secs(1));
    }
    let said = bench.entries(only);
    assert!(
        said.len() <= 1 && !said.iter().any(asks_for_block),
        "{said:?}"
    );
    // Silent for long: perhaps it forgot.
    for _ in 0..90 {
        bench.pass(Duration::from_secs(1));
    }
    assert!(!bench.entries(only).is_empty());
}

#[test]
fn bytes_of_an_unfinished_message_are_progress() {
    let mut bench = Bench::new(&Config::default());
    let (a, b) = (bench.peer(), bench.peer());
    let session = bench.session(AskPolicy::Any);
    let wanted = block(1, 100_000);
    bench.want(session, std::slice::from_ref(&wanted));
    bench.receive(a, presence(wanted.cid(), Presence::Have));
    bench.receive(b, presence(wanted.cid(), Presence::Have));
    bench.sent.clear();
    for _ in 0..50 {
        bench.pass(Duration::from_millis(200));
        let at = bench.now;
        bench.handle(Input::Progress {
            peer: a,
            at,
            bytes: 10_000,
        });
    }
    assert!(bench.stalled.is_empty());
    assert!(bench.entries(b).is_empty());
}

#[test]
fn x3_a_peer_that_trickles_for_ever_loses_the_want_as_well() {
    let mut bench = Bench::new(&Config::default());
    let (a, b) = (bench.peer(), bench.peer());
    let session = bench.session(AskPolicy::Any);
    let wanted = block(1, 100_000);
    bench.want(session, std::slice::from_ref(&wanted));
    bench.receive(a, presence(wanted.cid(), Presence::Have));
    bench.receive(b, presence(wanted.cid(), Presence::Have));
    bench.sent.clear();
    for _ in 0..600 {
        bench.pass(Duration::from_millis(200));
        let at = bench.now;
        bench.handle(Input::Progress {
            peer: a,
            at,
            bytes: 4_000,
        });
    }
    assert_eq!(bench.entries(b)[0].kind, WantKind::Block);
    assert_eq!(bench.stalled.first(), Some(&a));
}

#[test]
fn ex_22_who_never_delivered_is_tried_with_one_block() {
    let mut bench = Bench::new(&Config::default());
    let (a, b) = (bench.peer(), bench.peer());
    bench.proven(a);
    let many = blocks(20, 50_000);
    bench.want_of(&[a, b], &many);
    assert!(bench.asked_for(a).len() >= 2);
    let tried = bench.asked_for(b);
    assert_eq!(tried.len(), 1);
    let delivered = many.iter().find(|x| *x.cid() == tried[0]).cloned();
    bench.receive(b, with_blocks(&[delivered.unwrap()]));
    assert!(bench.asked_for(b).len() >= 2, "it proved itself");

    // Both let them down, and are tried with one each again.
    let expected = bench.core.load().expected_bytes;
    bench.pass(Duration::from_millis(2300));
    assert!(bench.stalled.contains(&a) && bench.stalled.contains(&b));
    let again = bench.core.load().expected_bytes;
    assert!(again > 0 && again * 2 <= expected, "{again} of {expected}");
}

#[test]
fn ex_22_what_an_unproven_peer_is_silent_about_goes_to_one_that_delivers_and_has_room() {
    let mut bench = Bench::new(&Config::default());
    let (liar, honest) = (bench.peer(), bench.peer());
    let wanted = block(1, 50_000);
    bench.want_of(&[liar, honest], std::slice::from_ref(&wanted));
    assert_eq!(bench.asked_for(liar), [*wanted.cid()]);
    bench.proven(honest);
    bench.pass(Duration::from_millis(200));
    assert!(bench.asked_for(honest).is_empty());
    bench.pass(Duration::from_millis(600));
    assert_eq!(bench.asked_for(honest), [*wanted.cid()]);
    assert_eq!(bench.stalled, [liar]);
    let counters = bench.core.counters();
    assert_eq!(
        (counters.relieved, counters.moved, counters.timeouts),
        (1, 1, 0)
    );
    let told = bench.sent.iter().filter(|(to, ..)| *to == liar);
    let cancels = told.flat_map(|(_, _, m)| &m.entries).filter(|e| e.cancel);
    assert_eq!(cancels.count(), 1, "it must not send a copy");
    // If it does all the same, that is a copy, and no wrong bytes.
    bench.receive(honest, with_blocks(std::slice::from_ref(&wanted)));
    bench.receive(liar, with_blocks(&[wanted]));
    let counters = bench.core.counters();
    assert_eq!((counters.duplicates, counters.wrong_bytes), (1, 0));
    assert_eq!(bench.core.load().expected_bytes, 0);
}

#[test]
fn ex_22_while_nobody_is_proven_more_are_asked_and_the_first_that_delivers_ends_it() {
    let mut bench = Bench::new(&Config::default());
    let peers: Vec<_> = (0..10).map(|_| bench.peer()).collect();
    let wanted = block(1, 50_000);
    bench.want_of(&peers, std::slice::from_ref(&wanted));
    let mut asked = Vec::new();
    for _ in 0..10 {
        asked.extend(peers.iter().filter(|p| !bench.asked_for(**p).is_empty()));
        bench.pass(Duration::from_millis(250));
    }
    assert_eq!(asked.len(), 10, "nobody had to be waited for in vain");
    assert_eq!(bench.core.counters().doubled, 9);
    bench.sent.clear();
    bench.receive(asked[9], with_blocks(std::slice::from_ref(&wanted)));
    assert_eq!(bench.found.len(), 1);
    let cancelled = |p: &&PeerId| {
        let mut to = bench.sent.iter().filter(|(to, ..)| to == *p);
        to.any(|(_, _, m)| m.entries.iter().any(|e| e.cancel))
    };
    // Those whose time was not over yet; the others were told before.
    assert!(peers.iter().filter(cancelled).count() >= 6);
    assert_eq!(bench.core.load().expected_bytes, 0);
}

#[test]
fn ex_22_of_whom_bytes_come_is_waited_for_and_a_trickle_is_silence() {
    for (bytes, waited_for) in [(10_000, true), (1_000, false)] {
        let mut bench = Bench::new(&Config::default());
        let (slow, other) = (bench.peer(), bench.peer());
        bench.want_of(&[slow, other], &[block(1, 100_000)]);
        assert_eq!(bench.asked_for(slow).len(), 1);
        for _ in 0..8 {
            bench.pass(Duration::from_millis(200));
            let (peer, at) = (slow, bench.now);
            bench.handle(Input::Progress { peer, at, bytes });
        }
        assert_eq!(bench.asked_for(other).is_empty(), waited_for, "{bytes}");
    }
}

#[test]
fn ex_22_who_delivers_takes_over_what_trickles_at_a_fraction_of_its_rate() {
    let mut bench = Bench::new(&Config::default());
    let (slow, fast) = (bench.peer(), bench.peer());
    bench.proven(slow);
    let wanted = block(1, 100_000);
    bench.want_of(&[slow], std::slice::from_ref(&wanted));
    assert_eq!(bench.asked_for(slow).len(), 1);
    bench.proven(fast);
    bench.receive(fast, presence(wanted.cid(), Presence::Have));
    let mut after = 0;
    while bench.asked_for(fast).is_empty() {
        bench.pass(Duration::from_millis(200));
        let (peer, at, bytes) = (slow, bench.now, 10_000);
        bench.handle(Input::Progress { peer, at, bytes });
        after += 1;
    }
    // Not before the stall time; without the other one it would be waited for.
    assert!((10..=12).contains(&after), "{after}");
    assert_eq!(bench.core.counters().relieved, 1);
}

#[test]
fn ex_22_a_want_that_was_let_down_waits_for_one_that_delivers() {
    let config = Config::default().with_peer_bytes(1);
    let mut bench = Bench::new(&config);
    let (liar, other, honest) = (bench.peer(), bench.peer(), bench.peer());
    bench.proven(honest);
    let many = blocks(8, 50_000);
    bench.want_of(&[honest, liar], &many);
    let of_honest = bench.asked_for(honest);
    let of_liar = bench.asked_for(liar);
    assert_eq!((of_honest.len(), of_liar.len()), (2, 1));
    let found = |cid: &Cid| many.iter().find(|b| b.cid() == cid).cloned().unwrap();
    // Another stranger says that it has what the liar does not deliver, and everybody who delivers is busy.
    bench.pass(Duration::from_millis(1900));
    bench.receive(honest, with_blocks(&[found(&of_honest[0])]));
    bench.asked_for(honest);
    bench.receive(other, presence(&of_liar[0], Presence::Have));
    bench.pass(Duration::from_millis(300));
    assert_eq!(bench.stalled.first(), Some(&liar));
    assert!(bench.asked_for(other).is_empty());
    bench.receive(honest, with_blocks(&[found(&of_honest[1])]));
    assert_eq!(bench.asked_for(honest), of_liar);
}

#[test]
fn ex_22_strangers_that_say_have_fill_half_of_the_budget_and_one_that_delivers_is_asked() {
    let config = Config::default().with_node_bytes(4 * 1024 * 1024);
    let mut bench = Bench::new(&config);
    let mut peers: Vec<_> = (0..100).map(|_| bench.peer()).collect();
    let many = blocks(100, 50_000);
    bench.want_of(&peers, &many);
    let tried = bench.core.load().expected_bytes;
    assert!(tried > 1024 * 1024 && tried <= 2 * 1024 * 1024);
    // One of those that there was no room to try is asked as well, once it delivered something.
    peers.retain(|p| bench.asked_for(*p).is_empty());
    bench.proven(peers[0]);
    assert!(bench.core.load().expected_bytes >= tried + 512 * 1024);
}

#[test]
fn x2_wrong_bytes_are_dropped_counted_and_cost_the_sender_its_place() {
    let mut bench = Bench::new(&Config::default());
    let (a, b) = (bench.peer(), bench.peer());
    let session = bench.session(AskPolicy::Any);
    let wanted = block(1, 5000);
    bench.want(session, std::slice::from_ref(&wanted));
    bench.receive(a, presence(wanted.cid(), Presence::Have));
    bench.receive(b, presence(wanted.cid(), Presence::Have));
    bench.sent.clear();
    bench.receive(a, with_blocks(&[block(99, 5000)]));
    assert!(bench.found.is_empty());
    assert_eq!(bench.core.counters().wrong_bytes, 1);
    assert_eq!(
        bench.entries(b)[0].kind,
        WantKind::Block,
        "the next is asked at once"
    );
    bench.receive(b, with_blocks(&[wanted]));
    assert_eq!(bench.found.len(), 1);

    // Twice more, and it is not asked at all.
    for n in 2..4 {
        let wanted = block(n, 5000);
        let session = bench.session(AskPolicy::Only([a].into()));
        bench.want(session, std::slice::from_ref(&wanted));
        bench.receive(a, presence(wanted.cid(), Presence::Have));
        bench.receive(a, with_blocks(&[block(100 + n, 5000)]));
    }
    assert_eq!(bench.distrusted, [a]);
    bench.sent.clear();
    let session = bench.session(AskPolicy::Any);
    bench.want(session, &[block(50, 5000)]);
    assert!(bench.entries(a).is_empty());
    assert_eq!(bench.entries(b).len(), 1);
}

#[test]
fn unasked_and_repeated_blocks_are_dropped_and_told_apart() {
    let mut bench = Bench::new(&Config::default());
    let a = bench.peer();
    bench.receive(a, with_blocks(&[block(7, 100)]));
    assert_eq!(bench.core.counters().unwanted, 1);
    assert_eq!(
        bench.core.counters().wrong_bytes,
        0,
        "nothing was owed, so nothing is wrong"
    );
    let session = bench.session(AskPolicy::Any);
    bench.want(session, &[block(8, 100)]);
    bench.receive(a, with_blocks(&[block(8, 100)]));
    bench.receive(a, with_blocks(&[block(8, 100)]));
    let counters = bench.core.counters();
    assert_eq!((counters.found, counters.duplicates), (1, 1));
    assert_eq!(bench.found.len(), 1);
}

#[test]
fn unavailable_names_everybody_and_what_they_said_and_is_not_the_end() {
    let mut bench = Bench::new(&Config::default());
    let (a, b) = (bench.peer(), bench.peer());
    let session = bench.session(AskPolicy::Any);
    let wanted = block(1, 100);
    bench.want(session, std::slice::from_ref(&wanted));
    bench.receive(a, presence(wanted.cid(), Presence::DontHave));
    assert!(bench.unavailable.is_empty());
    bench.pass(Duration::from_millis(2300));
    assert_eq!(
        bench.unavailable,
        [(
            *wanted.cid(),
            vec![(a, Answer::DontHave), (b, Answer::TimedOut)]
        )]
    );
    let why = bench.core.why(wanted.cid()).unwrap();
    assert_eq!(why.waiting_for, WaitingFor::Holder);
    assert_eq!(why.asked.len(), 2);
    assert!(why.retry_at.is_some());
    bench.sent.clear();

    // A newcomer is asked at once.
    let c = bench.peer();
    assert_eq!(bench.entries(c)[0].kind, WantKind::Have);
    bench.receive(c, presence(wanted.cid(), Presence::DontHave));
    // Everybody is asked again, with growing pauses.
    bench.pass(Duration::from_secs(30));
    let again = bench.entries(a);
    assert!(
        (2..=5).contains(&again.len()),
        "asked {} times in 30 s",
        again.len()
    );
    // A push of one that has it by now ends it.
    bench.receive(a, with_blocks(std::slice::from_ref(&wanted)));
    assert_eq!(bench.found.len(), 1);
    assert!(bench.core.why(wanted.cid()).is_none());
}

#[test]
fn without_peers_a_session_says_once_that_nobody_is_there() {
    let mut bench = Bench::new(&Config::default());
    let session = bench.session(AskPolicy::Any);
    bench.want(session, &blocks(1000, 10));
    assert_eq!(bench.unavailable.len(), 1);
    assert!(bench.unavailable[0].1.is_empty());
    let a = bench.peer();
    assert!(!bench.entries(a).is_empty());
}

#[test]
fn policy_says_who_may_be_asked_and_may_be_widened() {
    let mut bench = Bench::new(&Config::default());
    let (a, b) = (bench.peer(), bench.peer());
    let session = bench.session(AskPolicy::Only([a].into()));
    let wanted = block(1, 100);
    bench.want(session, std::slice::from_ref(&wanted));
    assert_eq!(bench.entries(a).len(), 1);
    assert!(bench.entries(b).is_empty());
    bench.receive(a, presence(wanted.cid(), Presence::DontHave));
    assert_eq!(bench.unavailable.len(), 1);
    bench
        .core
        .set_policy(session, AskPolicy::Not([a].into()), bench.now);
    bench.drain();
    assert_eq!(bench.entries(b).len(), 1);
}

#[test]
fn near_peers_are_asked_before_far_ones() {
    let mut bench = Bench::new(&Config::default());
    let far = bench.join(PeerId::random(), false);
    let near = bench.join(PeerId::random(), true);
    let session = bench.session(AskPolicy::Any);
    let first = block(1, 5000);
    bench.want(session, std::slice::from_ref(&first));
    bench.receive(near, presence(first.cid(), Presence::Have));
    bench.receive(far, presence(first.cid(), Presence::Have));
    bench.receive(near, with_blocks(&[first]));
    bench.sent.clear();
    let more: Vec<_> = (10..60).map(|n| block(n, 5000)).collect();
    bench.want(session, &more);
    assert!(bench.entries(near).len() >= 3);
    assert!(bench.entries(far).is_empty());
}

#[test]
fn what_one_peer_alone_has_is_asked_first_when_there_is_room_again() {
    let config = Config::default().with_peer_bytes(1);
    let mut bench = Bench::new(&config);
    let (a, b) = (bench.peer(), bench.peer());
    bench.proven(a);
    let session = bench.session(AskPolicy::Any);
    let many = blocks(8, 50_000);
    bench.want(session, &many);
    // Both windows of two blocks are full before anybody says more.
    for n in &many {
        bench.receive(a, presence(n.cid(), Presence::Have));
    }
    let asked = |entries: Vec<Entry>| -> Vec<Cid> {
        let block = |e: &Entry| !e.cancel && e.kind == WantKind::Block;
        entries.iter().filter(|e| block(e)).map(|e| e.cid).collect()
    };
    let of_a = asked(bench.entries(a));
    assert_eq!(of_a.len(), 2);
    let rare = *many[5].cid();
    assert!(!of_a.contains(&rare));
    for n in many.iter().filter(|n| *n.cid() != rare) {
        bench.receive(b, presence(n.cid(), Presence::Have));
    }
    let first = many.iter().find(|n| *n.cid() == of_a[0]).cloned();
    bench.receive(a, with_blocks(&[first.unwrap()]));
    assert_eq!(asked(bench.entries(a)).first(), Some(&rare));
}

#[test]
fn of_two_holders_the_one_that_answers_sooner_is_asked_and_both_share_what_is_much() {
    let mut bench = Bench::new(&Config::default());
    let (slow, quick) = (bench.peer(), bench.peer());
    let session = bench.session(AskPolicy::Any);
    let first = block(1, 5000);
    bench.want(session, std::slice::from_ref(&first));
    bench.pass(Duration::from_millis(10));
    bench.receive(quick, presence(first.cid(), Presence::Have));
    bench.pass(Duration::from_millis(400));
    bench.receive(slow, presence(first.cid(), Presence::Have));
    bench.receive(quick, with_blocks(&[first]));
    bench.sent.clear();
    let next = block(2, 5000);
    bench.want(session, std::slice::from_ref(&next));
    assert_eq!(bench.entries(quick).len(), 1);
    assert!(bench.entries(slow).is_empty());
    let many: Vec<_> = (10..500).map(|n| block(n, 5000)).collect();
    bench.want(session, &many);
    let (of_quick, of_slow) = (bench.entries(quick).len() + 1, bench.entries(slow).len());
    assert!(
        of_slow > 0 && of_slow <= of_quick,
        "{of_slow} and {of_quick}"
    );
}

#[test]
fn no_more_is_asked_than_windows_and_budget_allow() {
    let config = Config::default().with_node_bytes(3 * 1024 * 1024);
    let mut bench = Bench::new(&config);
    let (a, b) = (bench.peer(), bench.peer());
    let session = bench.session(AskPolicy::Any);
    let many = blocks(200, 100_000);
    bench.want(session, &many);
    for n in &many {
        bench.receive(a, presence(n.cid(), Presence::Have));
        bench.receive(b, presence(n.cid(), Presence::Have));
    }
    // Peers deliver what they are asked for, and the owner releases nothing: it comes to a halt.
    loop {
        let mut asked = bench.entries(a);
        asked.extend(bench.entries(b));
        asked.retain(|e| !e.cancel && e.kind == WantKind::Block);
        if asked.is_empty() {
            break;
        }
        for entry in asked {
            let sent = many.iter().find(|x| *x.cid() == entry.cid).cloned();
            bench.receive(a, with_blocks(&[sent.unwrap()]));
            let load = bench.core.load();
            assert!(load.expected_bytes + load.found_bytes <= 3 * 1024 * 1024 + 300_000);
        }
    }
    let load = bench.core.load();
    assert!(load.found_bytes >= 2 * 1024 * 1024, "{load:?}");
    assert!(load.wants > 100);
    bench.core.release(load.found_bytes, bench.now);
    bench.drain();
    assert!(!bench.sent.is_empty(), "release opens it again");
}

#[test]
fn reading_pauses_when_found_blocks_are_not_released_and_nobody_is_blamed() {
    let config = Config::default().with_node_bytes(1024 * 1024);
    let mut bench = Bench::new(&config);
    let a = bench.peer();
    let session = bench.session(AskPolicy::Any);
    // Four bytes announced, half a megabyte sent: estimates cannot know.
    let many = blocks(3, 500_000);
    bench.want(session, &many);
    for wanted in &many {
        bench.receive(a, presence(wanted.cid(), Presence::Have));
    }
    bench.receive(a, with_blocks(&many));
    assert_eq!(bench.pauses, [true]);
    bench.pass(Duration::from_secs(60));
    assert!(bench.stalled.is_empty());
    bench.core.release(1_500_000, bench.now);
    bench.drain();
    assert_eq!(bench.pauses, [true, false]);
}

#[test]
fn never_more_than_1024_wants_at_one_peer() {
    let mut bench = Bench::new(&Config::default());
    let a = bench.peer();
    let session = bench.session(AskPolicy::Any);
    let many: Vec<_> = (0..5000).map(|n| block(n, 8)).collect();
    bench.want(session, &many);
    let by_cid: HashMap<Cid, Block> = many.into_iter().map(|b| (*b.cid(), b)).collect();
    let mut held = HashSet::new();
    while bench.found.len() < 5000 {
        for entry in bench.entries(a) {
            if entry.cancel {
                held.remove(&entry.cid);
            } else {
                held.insert(entry.cid);
            }
        }
        assert!(!held.is_empty() && held.len() <= 1024, "{}", held.len());
        let some: Vec<Block> = held.iter().take(500).map(|c| by_cid[c].clone()).collect();
        for sent in &some {
            held.remove(sent.cid());
        }
        let bytes = some.iter().map(Block::len).sum();
        bench.receive(a, with_blocks(&some));
        bench.core.release(bytes, bench.now);
        bench.drain();
    }
    assert_eq!(bench.found.len(), 5000);
}

#[test]
fn a_lost_request_stream_is_followed_by_the_whole_wantlist() {
    let mut bench = Bench::new(&Config::default());
    let a = bench.peer();
    let session = bench.session(AskPolicy::Any);
    bench.want(session, &blocks(3, 100));
    assert_eq!(bench.entries(a).len(), 3);
    bench.handle(Input::RequestsLost { peer: a });
    let (_, _, message) = bench.sent.pop().unwrap();
    assert!(message.full);
    assert_eq!(message.entries.len(), 3);
    assert_eq!(bench.core.counters().resent_wantlists, 1);
}

#[test]
fn wants_of_a_lost_peer_go_to_the_others_at_once() {
    let mut bench = Bench::new(&Config::default());
    let (a, b) = (bench.peer(), bench.peer());
    let session = bench.session(AskPolicy::Any);
    let wanted = block(1, 100);
    bench.want(session, std::slice::from_ref(&wanted));
    bench.receive(a, presence(wanted.cid(), Presence::Have));
    bench.receive(b, presence(wanted.cid(), Presence::Have));
    bench.sent.clear();
    bench.handle(Input::Disconnected { peer: a });
    assert_eq!(bench.entries(b)[0].kind, WantKind::Block);
    assert_eq!(bench.core.why(wanted.cid()).unwrap().gone, [a]);
}

#[test]
fn two_sessions_share_one_want_and_each_gets_the_block() {
    let mut bench = Bench::new(&Config::default());
    let a = bench.peer();
    let (one, two) = (
        bench.session(AskPolicy::Any),
        bench.session(AskPolicy::Only([a].into())),
    );
    let wanted = block(1, 100);
    bench.want(one, std::slice::from_ref(&wanted));
    bench.want(two, std::slice::from_ref(&wanted));
    assert_eq!(bench.entries(a).len(), 1);
    // The first leaves; the want goes on for the second.
    bench.core.close_session(one, bench.now);
    bench.drain();
    assert!(bench.entries(a).is_empty());
    bench.receive(a, with_blocks(&[wanted]));
    assert_eq!(bench.found.len(), 1);
    assert_eq!(bench.found[0].0, two);
}

#[test]
fn local_mistakes_are_errors() {
    let config = Config::default().with_session_wants(2).with_sessions(1);
    let mut core = Core::new(&config);
    let session = core.open_session(SessionOptions::default()).unwrap();
    assert!(core.open_session(SessionOptions::default()).is_err());
    let cids: Vec<_> = blocks(3, 10).iter().map(|b| *b.cid()).collect();
    assert_eq!(
        core.want(session, cids.clone(), Time::ZERO),
        Err(WantError::Full { taken: 2 })
    );
    assert_eq!(core.room(session), 0);
    let identity = Cid::new_v1(0x55, multihash(0, &[1, 2, 3]));
    assert_eq!(
        core.want(session, [identity], Time::ZERO),
        Err(WantError::Identity)
    );
    let weak = Cid::new_v1(0x55, multihash(0x12, &[1; 8]));
    assert!(matches!(
        core.want(session, [weak], Time::ZERO),
        Err(WantError::Cid(_))
    ));
    core.close_session(session, Time::ZERO);
    assert_eq!(
        core.want(session, cids, Time::ZERO),
        Err(WantError::UnknownSession(session))
    );
}

fn multihash(code: u64, digest: &[u8]) -> cid::multihash::Multihash<64> {
    cid::multihash::Multihash::wrap(code, digest).unwrap()
}

// ---- server

#[test]
fn answers_have_block_and_dont_have_at_once() {
    let mut bench = Bench::new(&Config::default());
    let a = bench.peer();
    let (small, large, missing) = (block(1, 1024), block(2, 1025), block(3, 10));
    bench.receive(
        a,
        wantlist(vec![
            asks(small.cid(), WantKind::Have, 9),
            asks(large.cid(), WantKind::Have, 8),
            asks(missing.cid(), WantKind::Block, 7),
        ]),
    );
    assert_eq!(bench.loads.len(), 3);
    for (id, cid, kind) in std::mem::take(&mut bench.loads) {
        let answer = [&small, &large].iter().find(|b| *b.cid() == cid).map_or(
            Loaded::Missing,
            |b| match kind {
                LoadKind::Have => Loaded::Size(b.len() as u64),
                LoadKind::Block => Loaded::Block(b.data().clone()),
            },
        );
        bench.core.loaded(id, answer);
    }
    bench.drain();
    // The small one is worth its bytes: it is loaded and sent instead of HAVE.
    assert_eq!(bench.loads.len(), 1);
    let (id, cid, kind) = bench.loads.remove(0);
    assert_eq!((cid, kind), (*small.cid(), LoadKind::Block));
    bench.core.loaded(id, Some(small.data().clone()));
    bench.drain();
    let first = bench.responses(a);
    assert_eq!(first.len(), 1);
    assert_eq!(
        first[0].presences,
        [
            (*large.cid(), Presence::Have),
            (*missing.cid(), Presence::DontHave)
        ]
    );
    bench.written(a, &first[0]);
    let second = bench.responses(a);
    assert_eq!(second[0].blocks, [small]);
    bench.written(a, &second[0]);
    assert_eq!(bench.core.load().served_wants, 1, "the missing one is kept");
    assert_eq!(bench.core.load().served_bytes, 0);
}

#[test]
fn a_missing_want_is_remembered_and_pushed_when_the_block_arrives() {
    let mut bench = Bench::new(&Config::default());
    let a = bench.peer();
    let late = block(1, 5000);
    let mut entry = asks(late.cid(), WantKind::Block, 1);
    entry.send_dont_have = false;
    bench.receive(a, wantlist(vec![entry]));
    let (id, ..) = bench.loads.remove(0);
    bench.core.loaded(id, None);
    bench.drain();
    assert!(
        bench.responses(a).is_empty(),
        "silence without the wish for DONT_HAVE"
    );
    bench.core.stored(&[*late.cid()]);
    bench.drain();
    let (id, ..) = bench.loads.remove(0);
    bench.core.loaded(id, Some(late.data().clone()));
    bench.drain();
    assert_eq!(bench.responses(a)[0].blocks, [late]);
    assert_eq!(bench.core.counters().pushes, 1);
}

/// The store is asked, the block is stored, and only then the store's "no" arrives.
#[test]
fn a_block_stored_while_it_is_looked_up_is_not_missed() {
    let mut bench = Bench::new(&Config::default());
    let a = bench.peer();
    let late = block(1, 5000);
    bench.receive(a, wantlist(vec![asks(late.cid(), WantKind::Block, 1)]));
    let (id, ..) = bench.loads.remove(0);
    bench.core.stored(&[*late.cid()]);
    bench.core.loaded(id, None);
    bench.drain();
    assert!(
        bench.responses(a).is_empty(),
        "no DONT_HAVE for a block that is here"
    );
    let (id, ..) = bench.loads.remove(0);
    bench.core.loaded(id, Some(late.data().clone()));
    bench.drain();
    assert_eq!(bench.responses(a)[0].blocks, [late]);
}

#[test]
fn x1_a_flood_of_wants_is_bounded_and_freed_at_disconnect() {
    let mut bench = Bench::new(&Config::default());
    let before = bench.core.load();
    let peers: Vec<_> = (0..20).map(|_| bench.peer()).collect();
    for round in 0..10_u64 {
        for peer in &peers {
            let entries = (0..2000)
                .map(|n| asks(block(round * 2000 + n, 8).cid(), WantKind::Block, n as i32))
                .collect();
            bench.receive(*peer, wantlist(entries));
        }
        let load = bench.core.load();
        assert!(load.served_wants <= 20 * 1024);
        assert!(load.loads <= 64);
    }
    assert!(bench.core.counters().dropped_wants + bench.core.counters().replaced_wants > 100_000);
    for peer in peers {
        bench.handle(Input::Disconnected { peer });
    }
    for (id, ..) in std::mem::take(&mut bench.loads) {
        bench.core.loaded(id, Some(vec![0; 100].into()));
    }
    bench.drain();
    assert_eq!(bench.core.load(), before);
    assert!(bench.responses(PeerId::random()).is_empty());
}

/// X5: somebody who asks and does not read holds what one window holds.
#[test]
fn x5_a_peer_that_does_not_read_holds_one_window() {
    let mut bench = Bench::new(&Config::default());
    let (slow, quick) = (bench.peer(), bench.peer());
    let many = blocks(100, 100_000);
    for peer in [slow, quick] {
        let entries = many
            .iter()
            .map(|b| asks(b.cid(), WantKind::Block, 1))
            .collect();
        bench.receive(peer, wantlist(entries));
    }
    let mut got = 0;
    for _ in 0..1000 {
        for (id, cid, _) in std::mem::take(&mut bench.loads) {
            let data = many.iter().find(|b| *b.cid() == cid).unwrap().data();
            bench.core.loaded(id, Some(data.clone()));
        }
        bench.drain();
        for message in bench.responses(quick) {
            got += message.blocks.len();
            bench.written(quick, &message);
        }
        assert!(bench.core.load().served_bytes <= 3 * 1024 * 1024);
        if got == 100 {
            break;
        }
    }
    assert_eq!(got, 100, "the quick one has everything");
    let held: usize = bench.responses(slow).iter().map(Message::block_bytes).sum();
    assert!(
        held <= 1024 * 1024 + 200_000,
        "{held} bytes wait for the slow one"
    );
}

/// Threat X5: peers that ask and do not read fill what strangers may fill and no more; who is known to read is served as if they were
/// not there, a newcomer after some seconds, and the longest stuck are given up until the rest is within bounds.
#[test]
fn x5_peers_that_do_not_read_cannot_keep_others_from_being_served() {
    let content = blocks(200, 200_000);
    let mut bench = Bench::new(&Config::default());
    let honest = bench.peer();
    assert_eq!(bench.serve(honest, &content), content.len());
    let idle: Vec<_> = (0..200).map(|_| bench.peer()).collect();
    for peer in &idle {
        bench.ask_for(*peer, &content);
        bench.load_from(&content);
    }
    let full = bench.core.load().served_bytes;
    assert!((16 << 20..24 << 20).contains(&full), "{full}");
    assert_eq!(bench.serve(honest, &content), content.len(), "at once");

    let newcomer = bench.peer();
    let mut got = bench.serve(newcomer, &content);
    for seconds in 1..10 {
        bench.pass(Duration::from_secs(1));
        bench.drop_given_up();
        // What was not remembered is asked for again.
        got += bench.serve(newcomer, &content[got..]);
        let load = bench.core.load();
        assert!(load.served_bytes <= 48 << 20, "{load:?}");
        assert!(
            seconds < 3 || got == content.len(),
            "{got} after {seconds} s"
        );
    }
    let counters = bench.core.counters();
    assert!(counters.stuck_peers >= 100, "{counters:?}");
    assert!(counters.given_up_peers > 0, "{counters:?}");
}

/// Threat X5: while peers that do not read fill what strangers may fill, each keeps few answers; who reads keeps all of its own, also those that come
/// while a message is on its way to it. Those that were dropped it asked for again after two seconds, 64 blocks at a time.
#[test]
fn x5_peers_that_do_not_read_cost_a_reader_none_of_its_answers() {
    let content = blocks(200, 200_000);
    let mut bench = Bench::new(&Config::default());
    let honest = bench.peer();
    assert_eq!(bench.serve(honest, &content), content.len());
    for _ in 0..200 {
        let idle = bench.peer();
        bench.ask_for(idle, &content);
        bench.load_from(&content);
    }
    assert!(bench.core.load().served_bytes >= 16 << 20);
    bench.ask_for(honest, &content[..1]);
    bench.load_from(&content);
    let on_its_way = bench.responses(honest);
    let wants = content.iter().map(|b| asks(b.cid(), WantKind::Have, 1));
    bench.receive(honest, wantlist(wants.collect()));
    while let Some((id, cid, kind)) = bench.loads.pop() {
        let size = content.iter().find(|b| *b.cid() == cid).unwrap().len();
        assert_eq!(kind, LoadKind::Have);
        bench.core.loaded(id, Loaded::Size(size as u64));
        bench.drain();
    }
    for message in on_its_way {
        bench.written(honest, &message);
    }
    let said = bench.responses(honest).into_iter();
    let said: usize = said.map(|message| message.presences.len()).sum();
    assert_eq!(said, content.len());
    let counters = bench.core.counters();
    assert_eq!(counters.dropped_presences, 0, "{counters:?}");
}

/// Threat X5: strangers share the lookup of a large block, of which nobody knows beforehand how large it is. They fill what strangers may
/// fill all the same, and who is known to read is served as if they were not there.
#[test]
fn x5_strangers_that_share_the_lookup_of_a_large_block_do_not_stop_a_reader() {
    const MIB: usize = 1 << 20;
    let content = blocks(24, MIB);
    let mut bench = Bench::new(&Config::default().with_served_node_bytes(16 * MIB));
    let honest = bench.peer();
    assert_eq!(bench.serve(honest, &content[..4]), 4);
    let idle: Vec<_> = (0..200).map(|_| bench.peer()).collect();
    for peer in &idle {
        bench.ask_for(*peer, &content);
    }
    for seconds in 0..60 {
        bench.load_from(&content);
        let load = bench.core.load();
        // Half for strangers, and half for those of them that are stuck; each and one block.
        assert!(load.served_bytes <= 18 * MIB, "after {seconds} s: {load:?}");
        let got = bench.serve(honest, &content);
        assert_eq!(got, content.len(), "after {seconds} s: {load:?}");
        bench.pass(Duration::from_secs(1));
        bench.drop_given_up();
    }
    let counters = bench.core.counters();
    assert!(counters.given_up_peers > 0, "{counters:?}");
    assert!(
        counters.loads < 60 * 24 + 60 + 2 * idle.len() as u64,
        "a block that found no room is not looked up over and over: {counters:?}"
    );
}

/// Threat X5: never-readers that want large blocks each hold one for ten seconds, and whoever came behind five hundred of them was not
/// served for minutes. Whoever comes has its first block within three seconds, whenever that is and whatever size its blocks have, and the
/// rest soon after; strangers fill no more than they may.
#[test]
fn x5_a_newcomer_does_not_wait_behind_all_who_do_not_read() {
    const MIB: usize = 1 << 20;
    let (large, small) = (blocks(24, MIB), blocks(40, 100_000));
    let mut bench = Bench::new(&Config::default());
    let idle: Vec<_> = (0..500).map(|_| bench.peer()).collect();
    for peer in &idle {
        bench.ask_for(*peer, &large);
    }
    let all: Vec<Block> = large.iter().chain(&small).cloned().collect();
    for round in 0..12 {
        // In line behind those who came, at another time of their turns each round; it stays for the others.
        let newcomer = bench.peer();
        let content = if round % 2 == 0 { &large } else { &small };
        bench.ask_for(newcomer, content);
        let (mut got, mut first) = (0, None);
        for tenths in 0..107 {
            bench.load_from(&all);
            let load = bench.core.load();
            assert!(load.served_bytes <= 34 * MIB, "{load:?}");
            got += bench.take(newcomer, &all);
            if got > 0 {
                first.get_or_insert(tenths);
            }
            bench.pass(Duration::from_millis(100));
            bench.drop_given_up();
        }
        assert!(
            first.is_some_and(|tenths| tenths <= 30),
            "{round}: {first:?}"
        );
        assert_eq!(got, content.len(), "round {round}");
    }
    let counters = bench.core.counters();
    assert!(
        counters.stuck_peers >= 400,
        "the others had a turn: {counters:?}"
    );
}

/// Threat X5: never-readers that come back under other names all the time are always newer than a newcomer, which is served all the same,
/// when those who came before it and stayed had their turn: the oldest takes turns with the newest.
#[test]
fn x5_a_newcomer_is_served_while_newer_ones_keep_coming() {
    const MIB: usize = 1 << 20;
    let content = blocks(24, MIB);
    let mut bench = Bench::new(&Config::default());
    for _ in 0..100 {
        let stays = bench.peer();
        bench.ask_for(stays, &content);
    }
    bench.load_from(&content);
    let newcomer = bench.peer();
    bench.ask_for(newcomer, &content);
    let mut sybils: VecDeque<PeerId> = VecDeque::new();
    let mut tenths = 0;
    while bench.take(newcomer, &content) == 0 {
        tenths += 1;
        assert!(tenths <= 10 * 50, "two of those before it a second");
        for _ in 0..4 {
            let sybil = bench.peer();
            bench.ask_for(sybil, &content);
            bench.load_from(&content);
            sybils.push_back(sybil);
        }
        while sybils.len() > 100 {
            let peer = sybils.pop_front().unwrap();
            bench.handle(Input::Disconnected { peer });
        }
        bench.pass(Duration::from_millis(100));
        bench.drop_given_up();
    }
}

/// Threat X1: whoever floods with wants is answered for a while without reading, because windows and sockets take what it does not. That is
/// no proof that it reads, and the room that those who do have for their wants is not filled by it.
#[test]
fn x1_a_flood_that_is_answered_does_not_take_the_wants_of_a_reader() {
    let content = blocks(1500, 1000);
    let mut bench = Bench::new(&Config::default().with_served_node_wants(4096));
    let honest = bench.peer();
    assert_eq!(bench.serve(honest, &content[..1000]), 1000);
    assert_eq!(bench.serve(honest, &content[1000..]), 500);
    for stranger in 0..200 {
        let peer = bench.peer();
        for round in 0..2 {
            let absent: Vec<Block> = (0..1000)
                .map(|n| block(1_000_000 + (stranger * 2 + round) * 1000 + n, 8))
                .collect();
            bench.ask_for(peer, &absent);
            assert_eq!(bench.take(peer, &[]), 0);
        }
    }
    let wants = bench.core.load().served_wants;
    assert!(wants >= 64 * 200, "each has its few: {wants}");
    let before = bench.core.counters().dropped_wants;
    let absent: Vec<Block> = (0..1000).map(|n| block(9_000_000 + n, 8)).collect();
    bench.ask_for(honest, &absent);
    assert_eq!(bench.core.counters().dropped_wants, before);
    assert_eq!(bench.core.load().served_wants, wants + 1000);
}

#[test]
fn responses_are_packed_and_no_message_passes_the_limit() {
    let mut bench = Bench::new(&Config::default());
    let a = bench.peer();
    let mut many = blocks(300, 3000);
    many.push(block(1000, 2 * 1024 * 1024));
    let entries = many
        .iter()
        .map(|b| asks(b.cid(), WantKind::Block, 1))
        .collect();
    bench.receive(a, wantlist(entries));
    let mut messages = 0;
    let mut got = 0;
    while got < many.len() {
        for (id, cid, _) in std::mem::take(&mut bench.loads) {
            let data = many.iter().find(|b| *b.cid() == cid).unwrap().data();
            bench.core.loaded(id, Some(data.clone()));
        }
        bench.drain();
        let sent = bench.responses(a);
        assert!(!sent.is_empty() || !bench.loads.is_empty(), "no standstill");
        for message in sent {
            messages += 1;
            got += message.blocks.len();
            assert!(message.block_bytes() <= 2 * 1024 * 1024);
            bench.written(a, &message);
        }
    }
    assert!(messages <= 40, "{messages} messages for 301 blocks");
}

#[test]
fn a_cancel_stops_what_was_not_sent_and_a_full_list_replaces() {
    let mut bench = Bench::new(&Config::default());
    let a = bench.peer();
    let many = blocks(10, 200_000);
    let entries = many
        .iter()
        .map(|b| asks(b.cid(), WantKind::Block, 1))
        .collect();
    bench.receive(a, wantlist(entries));
    let loads = std::mem::take(&mut bench.loads);
    let cancels = many
        .iter()
        .map(|b| Entry {
            cancel: true,
            ..asks(b.cid(), WantKind::Block, 0)
        })
        .collect();
    bench.receive(a, wantlist(cancels));
    for (id, cid, _) in loads {
        let data = many.iter().find(|b| *b.cid() == cid).unwrap().data();
        bench.core.loaded(id, Some(data.clone()));
    }
    bench.drain();
    assert!(bench.responses(a).is_empty());
    assert_eq!(bench.core.load().served_bytes, 0);

    bench.receive(a, wantlist(vec![asks(many[0].cid(), WantKind::Block, 1)]));
    bench.receive(
        a,
        Message {
            full: true,
            entries: vec![asks(many[1].cid(), WantKind::Block, 1)],
            ..Message::default()
        },
    );
    assert_eq!(bench.core.load().served_wants, 1);
}

#[test]
fn one_load_serves_all_who_wait_for_the_block() {
    let mut bench = Bench::new(&Config::default());
    let peers: Vec<_> = (0..5).map(|_| bench.peer()).collect();
    let wanted = block(1, 5000);
    for peer in &peers {
        bench.receive(
            *peer,
            wantlist(vec![asks(wanted.cid(), WantKind::Block, 1)]),
        );
    }
    assert_eq!(bench.loads.len(), 1);
    let (id, ..) = bench.loads.remove(0);
    bench.core.loaded(id, Some(wanted.data().clone()));
    bench.drain();
    for peer in peers {
        assert_eq!(bench.responses(peer).len(), 1);
    }
}

#[test]
fn with_serving_off_everybody_is_told_dont_have() {
    let mut bench = Bench::new(&Config::default().with_serve(false));
    let a = bench.peer();
    let wanted = block(1, 10);
    bench.receive(a, wantlist(vec![asks(wanted.cid(), WantKind::Have, 1)]));
    assert!(bench.loads.is_empty());
    assert_eq!(
        bench.responses(a)[0].presences,
        [(*wanted.cid(), Presence::DontHave)]
    );
    assert_eq!(bench.core.load().served_wants, 0);
}

/// EX-6: three sessions with thousands of wants each, towards one peer that knows some, lacks some, sends some and forgets some: it never
/// holds more than 1,024 of them, even counted before the cancels of the same message (boxo takes the wants of a message first).
#[test]
fn ex_6_several_sessions_together_leave_no_more_than_1024_wants_at_a_peer() {
    check!(sim_scale(100), |rng| {
        let config = Config::default()
            .with_search(4096)
            .with_peer_bytes(64 << 20)
            .with_node_bytes(128 << 20);
        let mut bench = Bench::new(&config);
        let peer = bench.peer();
        let content = blocks(6_000, 100);
        for part in content.chunks(2_000) {
            let session = bench.session(AskPolicy::Any);
            bench.want(session, part);
        }
        let mut held: HashMap<Cid, WantKind> = HashMap::new();
        let by_cid: HashMap<Cid, &Block> = content.iter().map(|b| (*b.cid(), b)).collect();
        let mut most = 0;
        for _ in 0..40 {
            for (_, lane, message) in std::mem::take(&mut bench.sent) {
                assert_eq!(lane, Lane::Request);
                if message.full {
                    held.clear();
                }
                let (cancels, wants): (Vec<_>, Vec<_>) =
                    message.entries.into_iter().partition(|e| e.cancel);
                for entry in wants {
                    let kind = held.entry(entry.cid).or_insert(entry.kind);
                    *kind = (*kind).max(entry.kind);
                }
                most = most.max(held.len());
                for entry in cancels {
                    held.remove(&entry.cid);
                }
            }
            let mut cids: Vec<Cid> = held.keys().copied().collect();
            cids.sort();
            let mut answer = Message::default();
            for cid in cids {
                match (rng.below(8), held[&cid]) {
                    (0..=2, WantKind::Have) => {
                        held.remove(&cid);
                        answer.presences.push((cid, Presence::Have));
                    }
                    (0..=1, WantKind::Block) => {
                        held.remove(&cid);
                        answer.blocks.push(by_cid[&cid].clone());
                    }
                    (3, _) => answer.presences.push((cid, Presence::DontHave)),
                    _ => {}
                }
            }
            bench.receive(peer, answer);
            while let Some((_, block, _)) = bench.found.pop() {
                bench.core.release(block.len(), bench.now);
                bench.drain();
            }
            bench.pass(Duration::from_millis(rng.range(1..3_000)));
        }
        assert!(most <= 1024, "{most}");
        assert!(most >= 1000, "the limit was reached: {most}");
    });
}
