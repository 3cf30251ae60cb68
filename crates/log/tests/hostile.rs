//! What others can make replication do: how much memory, how many requests, and whom it keeps from whom.
#![allow(clippy::unwrap_used)]

use bytes::Bytes;
use gemba_log::{
    Author, Batch, Cid, Draft, Epoch, EventList, FeedId, MemorySigner, NewEvent, Sealer, Signer,
    core::{
        reconcile::Tip,
        replicate::{Config, Input, NotAppended, Output, Peer, Replicate},
    },
    skip,
    wire::{Announce, Batches, Fetch, MAX_WANTS, Message, Run, Want},
};
use gemba_testkit::{
    Rng,
    alloc::{CountingAlloc, measure},
};
use std::time::Duration;

#[global_allocator]
static ALLOC: CountingAlloc = CountingAlloc;

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn feed(author: Author, n: u64) -> FeedId {
    FeedId {
        author,
        stream: format!("x/{n}").parse().unwrap(),
        epoch: Epoch(0),
    }
}

fn node() -> Replicate {
    let mut node = Replicate::new(Config::new(vec!["#".parse().unwrap()]));
    for peer in 0..20 {
        let peer = Peer(peer);
        node.handle(Input::Connected { peer, begins: true }, secs(0));
    }
    drain(&mut node);
    node
}

fn drain(node: &mut Replicate) -> Vec<Output> {
    std::iter::from_fn(|| node.poll()).collect()
}

fn announce(node: &mut Replicate, peer: u64, tips: Vec<Tip>, now: Duration) {
    let message = Message::Announce(Announce { tips, batch: None });
    let peer = Peer(peer);
    node.handle(Input::Message { peer, message }, now);
}

/// A chain of batches of one author, each of about `size` bytes.
fn chain(signer: &MemorySigner, stream: u64, count: u64, size: usize, rng: &mut Rng) -> Vec<Batch> {
    let feed = feed(signer.author(), stream);
    let (mut spine, mut prev, mut chain): (skip::Spine, Option<Cid>, Vec<Batch>) =
        Default::default();
    for number in 0..count {
        let events = EventList::of(&[NewEvent::new(0, rng.bytes(size))]).unwrap();
        let draft = Draft {
            feed: &feed,
            number,
            first: number,
            lamport: number + 1,
            prev,
            skip: spine.links(number),
            events: &events,
            compress: false,
        };
        let batch = draft.seal(signer, &mut Sealer::default());
        prev = Some(batch.cid());
        spine.push(number, batch.cid().hash().digest().try_into().unwrap());
        chain.push(batch);
    }
    chain
}

fn digest(batch: &Batch) -> [u8; 32] {
    batch.cid().hash().digest().try_into().unwrap()
}

/// 500 authors invent two thousand feeds each, through twenty peers, and push batches that follow on nothing: memory stays bounded, and an honest
/// author's feed is still fetched.
#[test]
fn l6_five_hundred_hostile_authors_are_bounded() {
    let mut rng = Rng::new(6);
    let (mut node, used) = measure(|| {
        let mut node = node();
        for _ in 0..500 {
            let author = Author(rng.array());
            for page in 0..10 {
                let tip = |n| Tip {
                    feed: feed(author, page * 200 + n),
                    next: 1 << 50,
                    batch: [n as u8; 32],
                };
                announce(&mut node, page % 20, (0..200).map(tip).collect(), secs(1));
                drain(&mut node);
            }
        }
        for i in 0..500u64 {
            let signer = MemorySigner::from_seed(&rng.array());
            for batch in chain(&signer, 1, 4, 150_000, &mut rng).into_iter().skip(1) {
                let peer = Peer(i % 20);
                node.handle(Input::Pushed { peer, batch }, secs(2));
                drain(&mut node);
            }
        }
        node
    });
    assert!(used.peak <= 64 << 20, "{} MiB", used.peak >> 20);
    assert!(node.missing() <= 65_536 && node.early_bytes() <= 8 << 20);
    let counters = node.counters();
    assert!(
        counters.wants_dropped + counters.feeds_refused > 800_000,
        "{counters:?}"
    );
    assert!(counters.early_dropped > 1_000, "{counters:?}");

    // Nobody answers for what was invented; peers that gave nothing are not asked for a while, and one that is honest is.
    let signer = MemorySigner::from_seed(&[1; 32]);
    let honest = chain(&signer, 1, 3, 100, &mut rng);
    let peer = Peer(100);
    node.handle(
        Input::Connected {
            peer,
            begins: false,
        },
        secs(3),
    );
    let tip = Tip {
        feed: honest[0].feed().clone(),
        next: 3,
        batch: digest(&honest[2]),
    };
    announce(&mut node, 100, vec![tip], secs(3));
    // What waits is looked at in portions: it is asked for within seconds, however much was invented.
    let (mut asked, mut now) = (None, secs(3));
    while asked.is_none() && now < secs(8) {
        asked = drain(&mut node)
            .into_iter()
            .find_map(|output| match output {
                Output::Send {
                    peer: Peer(100),
                    message: Message::Fetch(fetch),
                } => Some(fetch),
                _ => None,
            });
        now = node.deadline().unwrap().max(now);
        node.expire(now);
    }
    assert_eq!(asked.unwrap().wants[0].feed, *honest[0].feed());
}

#[test]
fn l6_what_a_peer_caused_is_gone_when_the_peer_is() {
    let mut rng = Rng::new(7);
    let mut node = node();
    for n in 0..1_000u64 {
        let tip = Tip {
            feed: feed(Author(rng.array()), n),
            next: 5,
            batch: rng.array(),
        };
        announce(&mut node, 3, vec![tip], secs(1));
    }
    assert!(node.missing() >= 1_000);
    node.handle(Input::Disconnected(Peer(3)), secs(2));
    assert_eq!(node.missing(), 0);
}

/// A peer that announces and never delivers is asked a few times, then left alone for a while.
#[test]
fn l6_a_peer_that_lies_costs_a_few_requests() {
    let mut rng = Rng::new(8);
    let mut node = node();
    let mut asked = 0;
    let mut now = secs(1);
    let tip = Tip {
        feed: feed(Author(rng.array()), 1),
        next: 5,
        batch: rng.array(),
    };
    announce(&mut node, 3, vec![tip], now);
    for _ in 0..10_000 {
        for output in drain(&mut node) {
            if let Output::Send {
                message: Message::Fetch(fetch),
                ..
            } = output
            {
                asked += 1;
                let run = Run {
                    want: 0,
                    batches: Vec::new(),
                    more: false,
                    starts: 0,
                };
                let (peer, id, runs) = (Peer(3), fetch.id, vec![run]);
                node.handle(
                    Input::Batches {
                        peer,
                        id,
                        runs,
                        busy_ms: None,
                    },
                    now,
                );
            }
        }
        let Some(due) = node.deadline() else { break };
        now = due.max(now);
        if now > secs(600) {
            break;
        }
        node.expire(now);
    }
    assert!(asked <= 8, "{asked} requests");
    assert_eq!(node.missing(), 0);
}

/// Batches of another feed, or that do not follow on each other, are the sender's fault and reach no disk.
#[test]
fn l6_runs_that_are_no_chain_are_not_appended() {
    let mut rng = Rng::new(9);
    let signer = MemorySigner::from_seed(&[1; 32]);
    let batches = chain(&signer, 1, 4, 50, &mut rng);
    let other = chain(&signer, 2, 1, 50, &mut rng);
    let holed = vec![batches[0].clone(), batches[2].clone()];
    for wrong in [holed, other] {
        let mut node = node();
        let tip = Tip {
            feed: batches[0].feed().clone(),
            next: 4,
            batch: digest(&batches[3]),
        };
        announce(&mut node, 3, vec![tip], secs(1));
        let id = drain(&mut node)
            .into_iter()
            .find_map(|output| match output {
                Output::Send {
                    message: Message::Fetch(fetch),
                    ..
                } => Some(fetch.id),
                _ => None,
            });
        let run = Run {
            want: 0,
            batches: wrong,
            more: false,
            starts: 0,
        };
        let (peer, id, runs) = (Peer(3), id.unwrap(), vec![run]);
        node.handle(
            Input::Batches {
                peer,
                id,
                runs,
                busy_ms: None,
            },
            secs(2),
        );
        assert!(
            !drain(&mut node)
                .iter()
                .any(|output| matches!(output, Output::Append { .. }))
        );
        assert_eq!(node.counters().misbehaved, 1);
    }
}

/// Batches that come before their turn are appended in one go when the one before them is there.
#[test]
fn batches_that_came_early_follow_on() {
    let mut rng = Rng::new(10);
    let signer = MemorySigner::from_seed(&[1; 32]);
    let batches = chain(&signer, 1, 5, 50, &mut rng);
    let mut node = node();
    let peer = Peer(1);
    for batch in [3, 1, 4, 2].map(|i: usize| batches[i].clone()) {
        node.handle(Input::Pushed { peer, batch }, secs(1));
    }
    drain(&mut node);
    let batch = batches[0].clone();
    node.handle(Input::Pushed { peer, batch }, secs(1));
    let mut appended = Vec::new();
    for _ in 0..4 {
        for output in drain(&mut node) {
            if let Output::Append {
                ticket, batches, ..
            } = output
            {
                appended.push(batches.len());
                let last = batches.last().unwrap();
                let result = Ok(vec![(last.end(), digest(last))]);
                node.handle(Input::Appended { ticket, result }, secs(1));
            }
        }
    }
    assert_eq!(appended, [1, 4]);
    assert_eq!(node.early_bytes(), 0);
    // The request that was sent meanwhile is not answered: nothing is wanted any more.
    node.expire(secs(12));
    assert_eq!(node.missing(), 0);
}

/// An author that used up its share is told of once, and not fetched on and on.
#[test]
fn l6_a_quota_ends_the_fetching() {
    let mut rng = Rng::new(11);
    let signer = MemorySigner::from_seed(&[1; 32]);
    let batches = chain(&signer, 1, 2, 50, &mut rng);
    let mut node = node();
    let (peer, batch) = (Peer(1), batches[0].clone());
    node.handle(Input::Pushed { peer, batch }, secs(1));
    for output in drain(&mut node) {
        if let Output::Append { ticket, .. } = output {
            let result = Err(NotAppended::Quota);
            node.handle(Input::Appended { ticket, result }, secs(1));
        }
    }
    assert_eq!(node.missing(), 0);
}

/// One peer asks for much and often, another for little: the second is answered in its turn, and what waits is bounded.
#[test]
fn serving_is_fair_and_within_budgets() {
    let mut rng = Rng::new(12);
    let mut node = node();
    let wants = |n: usize, rng: &mut Rng| -> Vec<Want> {
        let want = |_| Want {
            feed: feed(Author(rng.array()), 1),
            from: 0,
            tip: [0; 32],
        };
        (0..n).map(want).collect()
    };
    for id in 0..50 {
        let fetch = Fetch {
            id,
            max_bytes: u64::MAX,
            wants: wants(MAX_WANTS, &mut rng),
        };
        let (peer, message) = (Peer(1), Message::Fetch(fetch));
        node.handle(Input::Message { peer, message }, secs(1));
    }
    assert_eq!(
        node.counters().busy,
        46,
        "four wait, the others are told to come again"
    );
    let small = Fetch {
        id: 1,
        max_bytes: 100,
        wants: wants(1, &mut rng),
    };
    let (peer, message) = (Peer(2), Message::Fetch(small));
    node.handle(Input::Message { peer, message }, secs(1));
    let mut loads = 0;
    let mut answered = None;
    while answered.is_none() {
        for output in drain(&mut node) {
            match output {
                Output::Load { ticket, bytes, .. } => {
                    loads += 1;
                    let batches = vec![Bytes::from(vec![0; bytes.min(40_000) as usize])];
                    let (more, starts) = (true, 0);
                    node.handle(
                        Input::Loaded {
                            ticket,
                            batches,
                            more,
                            starts,
                        },
                        secs(1),
                    );
                }
                Output::Send {
                    peer: Peer(2),
                    message: Message::Batches(Batches { runs, .. }),
                } => answered = Some((loads, runs.len())),
                Output::Send {
                    message: Message::Batches(Batches { runs, .. }),
                    ..
                } => {
                    let bytes: usize = runs
                        .iter()
                        .flat_map(|run| &run.batches)
                        .map(Bytes::len)
                        .sum();
                    assert!(bytes <= (1 << 20) + 40_000, "{bytes}");
                }
                _ => {}
            }
        }
    }
    let (loads, runs) = answered.unwrap();
    assert!(
        loads <= 4 && runs == 1,
        "after {loads} reads, not after a thousand"
    );
}
