//! Consumers and replication over the log on a disk that forgets what was not flushed.
#![allow(clippy::unwrap_used)]

mod common;

use common::{DIR, config, signer, stream};
use gemba_log::{
    Batch, Log, NewEvent, Signer,
    consume::{Consumer, LogSource, Step, Takeover},
    core::{
        consumer::{Config as ConsumerConfig, ConsumerName, Worker},
        replicate::{Config as ReplicateConfig, Input, Output, Peer, Replicate},
    },
    store::{KeyValue, MemoryStore, StateStore},
    wire::{Message, Run},
};
use gemba_testkit::{Replay, disk::SimDisk, sim_scale};
use std::{path::Path, sync::Arc, time::Duration};

fn try_open(sim: &SimDisk, which: u8) -> Option<Log> {
    let opened = Log::open(
        Arc::new(sim.clone()),
        Path::new(DIR),
        config(),
        Arc::new(signer(which)),
    );
    opened.ok().map(|(log, _)| log)
}

fn counter() -> ConsumerConfig {
    let mut config = ConsumerConfig::new(
        ConsumerName::new("counter").unwrap(),
        vec!["line/#".parse().unwrap()],
    );
    config.batch = 7;
    config
}

/// The power goes at any call of the disk, life after life. What was acknowledged is in the log, and what is in the log was counted once.
#[test]
fn s3_17_s3_21_s3_42_the_count_is_exact_on_a_disk_that_forgets() {
    let replay = Replay::new(env!("CARGO_PKG_NAME"), 0x317);
    let mut rng = replay.rng();
    let mut disk = SimDisk::new(rng.next_u64());
    let store = MemoryStore::new();
    let line = stream("line/1/pieces");
    let mut now = Duration::ZERO;
    let (mut acked, mut cuts) = (0u64, 0);
    for _ in 0..sim_scale(1_200) {
        disk.crash_at(1 + rng.below(60));
        if let Some(log) = try_open(&disk, 1)
            && let Ok(consumer) = Consumer::open(
                &log,
                store.clone(),
                signer(1).author(),
                counter(),
                Takeover::Continue,
                now,
            )
        {
            for _ in 0..20 {
                let pieces = 1 + rng.below(5);
                let events = vec![NewEvent::new(0, &b"1"[..]); pieces as usize];
                match log.append(&line, &events) {
                    Ok(_) => acked += pieces,
                    Err(_) => break,
                }
                now += Duration::from_millis(10);
                let step = consumer.step(Worker(1), now, |_, tx| {
                    tx.add(b"count", 1)?;
                    Ok(())
                });
                if step.is_err() {
                    break;
                }
            }
        }
        cuts += 1;
        disk = disk.power_cut(&mut rng);
    }
    let log = try_open(&disk, 1).unwrap();
    let consumer = Consumer::open(
        &log,
        store,
        signer(1).author(),
        counter(),
        Takeover::Continue,
        now,
    )
    .unwrap();
    let work = |now| {
        consumer.step(Worker(1), now, |_, tx| {
            tx.add(b"count", 1)?;
            Ok(())
        })
    };
    while consumer.behind() > 0 {
        match work(now).unwrap() {
            Step::Idle(Some(until)) => now = until,
            Step::Idle(None) | Step::Worked(_) => {}
        }
    }
    let in_log: u64 = log
        .spans()
        .unwrap()
        .iter()
        .filter(|span| span.feed.stream == line)
        .map(|span| span.next - span.first)
        .sum();
    let count = consumer.store().begin().unwrap().count(b"count").unwrap();
    assert_eq!(count, in_log, "each event of the log once");
    assert!(
        count >= acked && acked > 20,
        "{acked} were acknowledged, {count} are counted"
    );
    assert!(cuts >= 60);
    assert_eq!(
        (consumer.counters().rewound, consumer.counters().dead),
        (0, 0)
    );
}

/// A node: its log, and replication over it.
struct Node {
    log: Log,
    replicate: Replicate,
}

impl Node {
    fn new(which: u8) -> Self {
        Self::of(try_open(&SimDisk::new(u64::from(which)), which).unwrap())
    }

    fn of(log: Log) -> Self {
        let patterns = vec!["#".parse().unwrap(), "$dead/#".parse().unwrap()];
        let mut replicate = Replicate::new(ReplicateConfig::new(patterns));
        for tip in log.all_tips() {
            let (feed, batch) = (tip.feed, None);
            let tips = log.feed_tips(&feed);
            replicate.handle(Input::Local { feed, tips, batch }, Duration::ZERO);
        }
        Self { log, replicate }
    }
}

/// Two nodes meet, and talk until neither has anything to say.
fn meet(nodes: &mut [Node; 2], now: Duration) {
    let peer = Peer(1);
    for (i, node) in nodes.iter_mut().enumerate() {
        let begins = i == 0;
        node.replicate
            .handle(Input::Connected { peer, begins }, now);
    }
    loop {
        let mut is_quiet = true;
        for i in 0..2 {
            while let Some(output) = nodes[i].replicate.poll() {
                is_quiet = false;
                let input = match output {
                    Output::Send { message, .. } => {
                        let input = received(Message::decode(&message.encode().into()).unwrap());
                        nodes[1 - i].replicate.handle(input, now);
                        continue;
                    }
                    Output::Append {
                        ticket,
                        batches,
                        begins,
                    } => {
                        let result = nodes[i].log.append_run(batches, begins);
                        Input::Appended { ticket, result }
                    }
                    Output::Load {
                        ticket,
                        feed,
                        from,
                        tip,
                        bytes,
                    } => {
                        let loaded = nodes[i].log.load_towards(&feed, from, tip, bytes).unwrap();
                        Input::Loaded {
                            ticket,
                            batches: loaded.batches,
                            more: loaded.more,
                            starts: loaded.starts,
                        }
                    }
                    Output::Lookup { ticket, tips } => {
                        let tips = nodes[i].log.unknown_tips(tips).unwrap();
                        Input::Unknown { ticket, tips }
                    }
                    Output::Announce(_) | Output::Event(_) => continue,
                };
                nodes[i].replicate.handle(input, now);
            }
        }
        if is_quiet {
            break;
        }
    }
    for node in nodes {
        node.replicate.handle(Input::Disconnected(peer), now);
    }
}

fn received(message: Message) -> Input {
    let peer = Peer(1);
    match message {
        Message::Batches(batches) => {
            let verified = |run: Run<bytes::Bytes>| Run {
                want: run.want,
                batches: run
                    .batches
                    .into_iter()
                    .map(|batch| Batch::decode(batch).unwrap())
                    .collect(),
                more: run.more,
                starts: run.starts,
            };
            Input::Batches {
                peer,
                id: batches.id,
                runs: batches.runs.into_iter().map(verified).collect(),
                busy_ms: batches.busy_ms,
            }
        }
        message => Input::Message { peer, message },
    }
}

fn pieces(node: &Node, line: &str, count: usize) {
    for i in 0..count {
        let event = NewEvent::new(0, format!("piece {i}"));
        node.log.append(&stream(line), &[event]).unwrap();
    }
}

#[test]
fn s4_5_s3_50_two_logs_on_disk_agree_after_they_met() {
    let mut nodes = [Node::new(1), Node::new(2)];
    for i in 0..20 {
        pieces(&nodes[0], &format!("line/{i}"), i);
        pieces(&nodes[1], &format!("line/{i}"), 20 - i);
    }
    nodes = nodes.map(|node| Node::of(node.log));
    meet(&mut nodes, Duration::from_secs(1));
    assert_eq!(nodes[0].log.all_tips(), nodes[1].log.all_tips());
    assert_eq!(nodes[0].log.all_tips().len(), 39);
    assert_eq!(
        nodes[0].replicate.missing() + nodes[1].replicate.missing(),
        0
    );
    let asked = nodes[0].replicate.counters().asked + nodes[1].replicate.counters().asked;
    assert!(asked <= 4, "all feeds in few requests: {asked}");
}

#[test]
fn l5_both_branches_of_a_fork_reach_the_other_disk() {
    // One key on two disks, each with a history of its own, and a third node that heard the first of them.
    let cloned = [
        Node::new(1),
        Node::of(try_open(&SimDisk::new(77), 1).unwrap()),
    ];
    pieces(&cloned[0], "line/1", 5);
    for i in 0..3 {
        let event = NewEvent::new(0, format!("other {i}"));
        cloned[1].log.append(&stream("line/1"), &[event]).unwrap();
    }
    let [first, second] = cloned;
    let mut nodes = [Node::of(first.log), Node::new(3)];
    meet(&mut nodes, Duration::from_secs(1));
    let [_, third] = nodes;
    let mut nodes = [Node::of(second.log), Node::of(third.log)];
    meet(&mut nodes, Duration::from_secs(2));
    let [_, third] = nodes;
    let heads = third.log.heads();
    assert_eq!(heads.len(), 2, "{heads:?}");
    assert!(heads.iter().all(|head| head.forked));
    // And from there to a fourth that knows nothing.
    let mut nodes = [Node::of(third.log), Node::new(4)];
    meet(&mut nodes, Duration::from_secs(3));
    assert_eq!(nodes[0].log.all_tips(), nodes[1].log.all_tips());
    assert_eq!(nodes[1].log.heads().len(), 2);
}

/// Who asks what has changed is told of each change once, of a feed as it is now, and the bell rings for every change.
#[test]
fn s3_29_changes_are_told_once_each_and_a_bell_rings_for_them() {
    let log = try_open(&SimDisk::new(3), 1).unwrap();
    let rung = Arc::new(std::sync::atomic::AtomicU64::new(0));
    let bell = Arc::clone(&rung);
    log.on_change(move || {
        bell.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    });
    let append = |name: &str| {
        let event = NewEvent::new(1, b"17".to_vec());
        log.append(&stream(name), &[event]).unwrap();
    };
    let since = |mark| {
        let (mark, spans) = log.spans_since(mark).unwrap();
        let of = |span: &gemba_log::consume::Span| (span.feed.stream.to_string(), span.next);
        (mark, spans.iter().map(of).collect::<Vec<_>>())
    };
    let named = |name: &str, next| (name.to_owned(), next);
    assert_eq!(since(0), (0, vec![]));
    for name in ["a", "b", "c", "a"] {
        append(name);
    }
    assert_eq!(rung.load(std::sync::atomic::Ordering::Relaxed), 4);
    let (mark, all) = since(0);
    assert_eq!(all, [named("b", 1), named("c", 1), named("a", 2)]);
    assert_eq!(since(mark), (mark, vec![]));
    append("b");
    let (later, changed) = since(mark);
    assert_eq!(changed, [named("b", 2)]);
    // A mark is nobody's own.
    assert_eq!(since(mark), (later, vec![named("b", 2)]));
    assert_eq!(log.spans().unwrap().len(), 3);
}
