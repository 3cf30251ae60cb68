//! Entry points of the fuzz targets, replayed on stable by this crate's tests. Not part of the API.

use super::{
    consumer::{
        Ack, Config as ConsumerConfig, Consumer, ConsumerName, Input as ToConsumer,
        Output as FromConsumer, Position, Token, Worker,
    },
    dead::{Letters, Record},
    reconcile::{Tip, Tips},
    replicate::{Config, Input, NotAppended, Output, Peer, Replicate},
};
use crate::{
    consume::Claim,
    feed::{Author, Epoch, EventHash, FeedId},
    stream::{Pattern, StreamName},
    wire::Message,
};
use bytes::Bytes;
use std::{collections::VecDeque, time::Duration};

/// `data`: a message of `/gemba/log/1`. What is read is written back and reads as the same; a node that gets it stays within its bounds.
pub fn wire(data: &[u8]) {
    let Ok(message) = Message::decode(&Bytes::copy_from_slice(data)) else {
        return;
    };
    let again = Bytes::from(message.encode());
    assert_eq!(Message::decode(&again).as_ref(), Ok(&message));
    let mut node = Replicate::new(Config::new(vec![everything()]));
    let peer = Peer(1);
    node.handle(Input::Connected { peer, begins: true }, Duration::ZERO);
    for n in 0..40 {
        let (feed, tips, batch) = (a_feed(n), vec![(1, [n; 32])], None);
        node.handle(Input::Local { feed, tips, batch }, Duration::ZERO);
    }
    for second in 1..4 {
        let (message, now) = (message.clone(), Duration::from_secs(second));
        node.handle(Input::Message { peer, message }, now);
        for _ in 0..1_000 {
            match node.poll() {
                Some(Output::Send { message, .. }) => drop(message.encode()),
                Some(Output::Load { ticket, .. }) => {
                    let (batches, more, starts) = (Vec::new(), false, 0);
                    node.handle(
                        Input::Loaded {
                            ticket,
                            batches,
                            more,
                            starts,
                        },
                        now,
                    );
                }
                Some(Output::Lookup { ticket, tips }) => {
                    node.handle(Input::Unknown { ticket, tips }, now);
                }
                Some(Output::Append { ticket, .. }) => {
                    let result = Err(NotAppended::Gap);
                    node.handle(Input::Appended { ticket, result }, now);
                }
                Some(_) => {}
                None => break,
            }
        }
        node.expire(now);
    }
}

/// `data`: one byte that says what the rest is: a row of an offset, a claim, an event of a dead-letter stream.
pub fn rows(data: &[u8]) {
    let Some((&kind, bytes)) = data.split_first() else {
        return;
    };
    match kind % 4 {
        0 => {
            if let Ok(position) = Position::decode(bytes) {
                assert_eq!(position.encode(), bytes);
            }
        }
        1 => {
            // With its checksum made good, so that what is behind it is reached.
            let sum = crc32c::crc32c(bytes).to_be_bytes();
            let row = [bytes, &sum].concat();
            if let Ok(position) = Position::decode(&row) {
                assert_eq!(position.encode(), row);
                let rows = [(a_feed(1), row)];
                drop(Consumer::load(a_consumer(), 1, true, rows, Duration::ZERO));
            }
        }
        2 => {
            if let Some(claim) = Claim::decode(bytes) {
                assert_eq!(claim.encode(), bytes);
            }
        }
        _ => {
            let payload = Bytes::copy_from_slice(bytes);
            if let Ok(record) = Record::decode(&payload) {
                assert_eq!(record.encode(), bytes);
                let mut letters = Letters::new(1);
                letters.apply(record.clone());
                letters.apply(record);
                assert!(letters.len() <= 1);
            }
        }
    }
}

/// `data`: two sets of feeds, four bytes an entry. Playing both sides of a comparison ends, and each side knows what it lacks.
pub fn reconcile(data: &[u8]) {
    let (mut a, mut b) = (Tips::default(), Tips::default());
    for entry in data.chunks_exact(4).take(4_096) {
        let feed = FeedId {
            author: Author([entry[0]; 32]),
            stream: name(&format!("s/{}", entry[1])),
            epoch: Epoch(0),
        };
        let tips = [(u64::from(entry[2]) + 1, [entry[2]; 32])];
        if entry[3] & 1 != 0 {
            a.set(&feed, &tips);
        }
        if entry[3] & 2 != 0 {
            b.set(&feed, &tips);
        }
    }
    let all = |_: &FeedId| true;
    let mut ranges = a.begin(&all);
    let mut learned: [Vec<Tip>; 2] = Default::default();
    for round in 1.. {
        assert!(round < 200);
        let (answer, news) = [&a, &b][round % 2].answer(&ranges, &all);
        learned[round % 2].extend(news);
        ranges = answer;
        if ranges.is_empty() {
            break;
        }
    }
    for (learned, ours, theirs) in [(&learned[0], &a, &b), (&learned[1], &b, &a)] {
        assert!(
            theirs
                .iter()
                .filter(|tip| !ours.contains(tip))
                .all(|tip| learned.contains(&tip))
        );
    }
}

/// `data`: a script against a consumer, three bytes a step: claims, acknowledgements, refusals, silence, deaths. No event is passed over that was
/// neither acknowledged, nor set aside, nor buried.
pub fn consumer(data: &[u8]) {
    const HEAD: u64 = 40;
    let feed = a_feed(1);
    let mut config = a_consumer();
    (config.batch, config.attempts, config.max_aside) = (8, 3, 4);
    let mut disk: Option<Vec<u8>> = None;
    let mut settled = [false; HEAD as usize];
    let mut now = Duration::ZERO;
    let boot = |disk: &Option<Vec<u8>>, now| {
        let rows = disk.iter().map(|row| (feed.clone(), row.clone()));
        let mut core = Consumer::load(config.clone(), 1, true, rows.collect::<Vec<_>>(), now);
        let (feed, first, next) = (feed.clone(), 0, HEAD);
        let told = core.handle(ToConsumer::Head { feed, first, next }, now);
        assert!(told.is_ok());
        core
    };
    let mut core = boot(&disk, now);
    let mut tokens: VecDeque<Token> = VecDeque::new();
    for step in data.chunks_exact(3).take(512) {
        let (kind, a, b) = (step[0], u64::from(step[1]), u64::from(step[2]));
        now += Duration::from_millis(b);
        let token = tokens
            .get(a as usize % tokens.len().max(1))
            .copied()
            .unwrap_or(Token(0));
        let mut acked = None;
        let input = match kind % 7 {
            0 | 1 => ToConsumer::Claim {
                worker: Worker(a % 3),
            },
            2 => {
                let next = b % (HEAD + 2);
                acked = Some(next);
                let hash = EventHash([next as u8; 32]);
                ToConsumer::Ack {
                    token,
                    ack: Ack::Through { next, hash },
                }
            }
            3 => ToConsumer::Ack {
                token,
                ack: Ack::Asides(vec![b % HEAD]),
            },
            4 => ToConsumer::Nack {
                token,
                seq: b % HEAD,
                cause: "x".to_owned(),
            },
            5 => {
                now += Duration::from_secs(a);
                core.expire(now);
                ToConsumer::Renew { token }
            }
            _ => {
                core = boot(&disk, now);
                tokens.clear();
                ToConsumer::Listed
            }
        };
        let is_taken = core.handle(input, now).is_ok();
        let mut acked = acked.filter(|_| is_taken);
        while let Some(output) = core.poll() {
            let answer = match output {
                FromConsumer::Persist {
                    ticket, row, token, ..
                } => {
                    let before = disk.as_deref().map(Position::decode);
                    let before =
                        before.map_or(0, |position| position.map_or(0, |position| position.next));
                    if let Ok(position) = Position::decode(&row) {
                        for seq in 0..position.next {
                            let is_aside = position.aside.iter().any(|aside| aside.seq == seq);
                            // Acknowledged under a lease: by the worker's word.
                            let is_acked = token.is_some()
                                && acked.is_some_and(|next| seq < next && seq >= before);
                            settled[seq as usize] |= is_acked && !is_aside;
                        }
                        if token.is_some() && acked.take().is_none() {
                            // Of those set aside.
                            let is_left =
                                |seq: u64| position.aside.iter().any(|aside| aside.seq == seq);
                            (0..position.next)
                                .filter(|seq| !is_left(*seq))
                                .for_each(|seq| settled[seq as usize] = true);
                        }
                        let passed = (0..position.next).all(|seq| {
                            settled[seq as usize]
                                || position.aside.iter().any(|aside| aside.seq == seq)
                        });
                        assert!(passed, "{position:?}");
                    }
                    disk = Some(row);
                    ToConsumer::Persisted {
                        ticket,
                        result: Ok(()),
                    }
                }
                FromConsumer::Bury { ticket, seq, .. } => {
                    settled[seq as usize] = true;
                    ToConsumer::Buried {
                        ticket,
                        result: Ok(EventHash([seq as u8 + 1; 32])),
                    }
                }
                FromConsumer::Check { feed, seqs } => {
                    let found = seqs
                        .into_iter()
                        .map(|seq| (seq, Some(EventHash([seq as u8 + 1; 32]))))
                        .collect();
                    ToConsumer::Hashes { feed, found }
                }
                FromConsumer::Grant(grant) => {
                    tokens.push_back(grant.token);
                    if tokens.len() > 8 {
                        tokens.pop_front();
                    }
                    continue;
                }
                FromConsumer::Event(_) => continue,
            };
            assert!(core.handle(answer, now).is_ok());
        }
    }
}

fn a_consumer() -> ConsumerConfig {
    let name = ConsumerName::new("fuzz").expect("four letters are a name");
    ConsumerConfig::new(name, vec![everything()])
}

fn everything() -> Pattern {
    Pattern::new("#").expect("it matches everything")
}

fn name(text: &str) -> StreamName {
    StreamName::new(text).expect("it is made of letters and digits")
}

fn a_feed(n: u8) -> FeedId {
    FeedId {
        author: Author([n; 32]),
        stream: name("s/1"),
        epoch: Epoch(0),
    }
}
