//! One consumer on one node: what it is given, what becomes of what it refuses, and what it believes after a restart.
#![allow(clippy::unwrap_used)]

use gemba_log::{
    Author, Batch, Event, FeedId, NewEvent, StreamName,
    consume::{ConsumeError, Consumer, LogSink, LogSource, Step, Takeover, forget},
    core::{
        consumer::{
            Ack, Config, Consumer as Core, ConsumerName, Event as Told, Grant, Input, Order,
            Output, Planted, Refused, Start, Work, Worker,
        },
        dead::{Letters, Record},
    },
    sim::{Fuse, FusedLog, FusedStore, MemoryLog},
    store::{KeyValue, MemoryStore, StateStore, Transaction},
};
use std::{sync::Arc, time::Duration};

const W: Worker = Worker(1);

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn name(text: &str) -> ConsumerName {
    ConsumerName::new(text).unwrap()
}

fn config() -> Config {
    Config::new(name("counter"), vec!["line/#".parse().unwrap()])
}

/// A node: its log, the store of its consumers, and a process that may die.
struct Plant {
    log: Arc<MemoryLog>,
    store: FusedStore,
    stream: StreamName,
}

type Opened = Consumer<FusedLog, FusedStore>;

impl Plant {
    fn new() -> Self {
        Self::with(
            MemoryLog::new([3; 32]),
            FusedStore {
                fuse: Fuse::new(),
                ..FusedStore::default()
            },
        )
    }

    fn with(log: MemoryLog, store: FusedStore) -> Self {
        Self {
            log: Arc::new(log),
            store,
            stream: "line/1".parse().unwrap(),
        }
    }

    fn append(&self, payloads: impl IntoIterator<Item = Vec<u8>>) {
        let events: Vec<NewEvent> = payloads
            .into_iter()
            .map(|payload| NewEvent::new(7, payload))
            .collect();
        for events in events.chunks(100) {
            self.log.append(&self.stream, events.to_vec()).unwrap();
        }
    }

    fn pieces(&self, count: usize) {
        self.append((0..count).map(|_| b"1".to_vec()));
    }

    fn log(&self) -> FusedLog {
        FusedLog {
            log: Arc::clone(&self.log),
            fuse: self.store.fuse.clone(),
        }
    }

    fn try_open(&self, config: Config, now: Duration) -> Result<Opened, ConsumeError> {
        Consumer::open(
            self.log(),
            self.store.clone(),
            self.log.author(),
            config,
            Takeover::Continue,
            now,
        )
    }

    fn open(&self, config: Config, now: Duration) -> Opened {
        self.try_open(config, now).unwrap()
    }

    fn feed(&self) -> FeedId {
        self.log.own_feed(&self.stream)
    }

    fn count(&self) -> u64 {
        self.store.store.begin().unwrap().count(b"count").unwrap()
    }

    fn letters(&self) -> Letters {
        let mut letters = Letters::new(100_000);
        for span in self.log.spans().unwrap() {
            if span.feed.stream.as_str().starts_with("$dead/") {
                let events = self
                    .log
                    .read(&span.feed, 0, usize::MAX, usize::MAX)
                    .unwrap();
                for event in events.map(|portion| portion.events).unwrap_or_default() {
                    letters.apply(Record::decode(&event.payload).unwrap());
                }
            }
        }
        letters
    }

    fn dead(&self) -> Vec<u64> {
        self.letters()
            .list(None, usize::MAX)
            .iter()
            .map(|letter| letter.id.seq)
            .collect()
    }
}

/// One step of a consumer that counts what `judge` lets pass.
fn step(
    consumer: &Opened,
    now: Duration,
    mut judge: impl FnMut(&Event) -> Result<(), String>,
) -> Result<Step, ConsumeError> {
    consumer.step(W, now, |delivery, tx| {
        judge(&delivery.event)?;
        tx.add(b"count", 1)?;
        Ok(())
    })
}

/// Runs steps until nothing is due any more, and lets time pass as the consumer asks for it.
fn drain(
    consumer: &Opened,
    now: &mut Duration,
    mut judge: impl FnMut(&Event) -> Result<(), String>,
) -> usize {
    let mut given = 0;
    loop {
        match step(consumer, *now, &mut judge).unwrap() {
            Step::Worked(events) => given += events,
            Step::Idle(Some(until)) => *now = until,
            Step::Idle(None) => return given,
        }
    }
}

fn good(_: &Event) -> Result<(), String> {
    Ok(())
}

fn no_x(event: &Event) -> Result<(), String> {
    if event.payload == b"x"[..] {
        Err("not a number: x".into())
    } else {
        Ok(())
    }
}

/// Every hundredth is poison, if at all.
fn pieces_with_poison(count: usize, poison: bool) -> impl Iterator<Item = Vec<u8>> {
    (0..count).map(move |i| {
        if poison && i % 100 == 50 {
            b"x".to_vec()
        } else {
            b"1".to_vec()
        }
    })
}

#[test]
fn s3_27_what_was_not_acknowledged_comes_again_after_a_crash_and_only_that() {
    let plant = Plant::new();
    plant.pieces(10);
    let consumer = plant.open(config(), ms(0));
    plant.store.fuse.set(4);
    assert!(step(&consumer, ms(1), good).is_err());
    drop(consumer);
    plant.store.fuse.mend();
    assert_eq!(plant.count(), 0);
    let consumer = plant.open(config(), ms(2));
    assert_eq!(drain(&consumer, &mut ms(3), good), 10);
    assert_eq!((plant.count(), consumer.behind()), (10, 0));
    drop(consumer);
    let consumer = plant.open(config(), ms(4));
    assert_eq!(drain(&consumer, &mut ms(5), good), 0);
}

/// The running total lives where the offset lives: killed at every operation, another instance goes on with the right one.
#[test]
fn s3_22_state_and_offset_are_one_at_every_operation() {
    for kill in 1..60 {
        let plant = Plant::new();
        plant.pieces(250);
        let mut small = config();
        small.batch = 30;
        plant.store.fuse.set(kill);
        if let Ok(consumer) = plant.try_open(small.clone(), ms(0)) {
            while step(&consumer, ms(0), good).is_ok() && consumer.behind() > 0 {}
        }
        plant.store.fuse.mend();
        let consumer = plant.open(small, ms(1));
        drain(&consumer, &mut ms(1), good);
        assert_eq!(plant.count(), 250, "killed at operation {kill}");
    }
}

/// A core, and the answers of a disk that never fails; the last grant of this worker.
fn claim(core: &mut Core, worker: Worker, now: Duration) -> Option<Grant> {
    core.expire(now);
    core.handle(Input::Claim { worker }, now).unwrap();
    let mut found = None;
    while let Some(output) = core.poll() {
        match output {
            Output::Persist { ticket, .. } => {
                let result = Ok(());
                core.handle(Input::Persisted { ticket, result }, now)
                    .unwrap();
            }
            Output::Grant(grant) if grant.worker == worker => found = Some(grant),
            _ => {}
        }
    }
    found
}

#[test]
fn s3_29_reading_on_has_no_window_and_one_acknowledgement_is_for_all() {
    let plant = Plant::new();
    plant.pieces(1);
    let (feed, next) = (plant.feed(), 1_000_000);
    let mut core = Core::load(config(), 1, true, [], ms(0));
    let head = Input::Head {
        feed: feed.clone(),
        first: 0,
        next,
    };
    core.handle(head, ms(0)).unwrap();
    let (mut token, mut read) = (None, 0);
    for _ in 0..1_000 {
        let grant = claim(&mut core, W, ms(1)).unwrap();
        let Work::Main { from, most, .. } = grant.work else {
            unreachable!()
        };
        assert_eq!(from, read);
        read += u64::from(most);
        token = Some(grant.token);
    }
    assert_eq!(read, next);
    let hash = plant.log.hash(&feed, 0).unwrap().unwrap();
    let (token, ack) = (token.unwrap(), Ack::Through { next, hash });
    core.handle(Input::Ack { token, ack }, ms(2)).unwrap();
    let Some(Output::Persist { ticket, row, .. }) = core.poll() else {
        panic!("the row of the acknowledgement");
    };
    assert!(
        row.len() < 200,
        "one small row for a million events: {}",
        row.len()
    );
    core.handle(
        Input::Persisted {
            ticket,
            result: Ok(()),
        },
        ms(2),
    )
    .unwrap();
    assert_eq!(core.behind(), 0);
}

#[test]
fn s3_19_s3_47_a_consumer_that_was_away_catches_up_and_its_lag_is_a_number() {
    let plant = Plant::new();
    let consumer = plant.open(config(), ms(0));
    plant.pieces(5_000);
    consumer.refresh(ms(1)).unwrap();
    let lag = consumer.lag();
    assert_eq!((lag[0].next, lag[0].head, lag[0].worker), (0, 5_000, None));
    assert_eq!(
        consumer.needs(&plant.feed()),
        Some(0),
        "what retention has to keep"
    );
    step(&consumer, ms(2), good).unwrap();
    assert_eq!(
        (consumer.behind(), consumer.needs(&plant.feed())),
        (4_000, Some(1_000))
    );
    drain(&consumer, &mut ms(3), good);
    assert_eq!((consumer.behind(), plant.count()), (0, 5_000));
}

#[test]
fn s3_4_s3_15_s3_44_reading_begins_at_the_start_an_offset_a_time_or_the_tail() {
    let plant = Plant::new();
    for n in 0..100 {
        plant
            .log
            .append(&plant.stream, vec![NewEvent::new(n * 10, vec![n as u8])])
            .unwrap();
    }
    let seen = |consumer: &Opened, now: &mut Duration| {
        let mut seen = Vec::new();
        drain(consumer, now, |event| {
            seen.push(event.seq);
            Ok(())
        });
        seen
    };
    let mut now = ms(1);
    let all: Vec<u64> = (0..100).collect();
    let late = plant.open(config(), now);
    assert_eq!(
        seen(&late, &mut now),
        all,
        "who comes later reads from the start"
    );
    late.seek_time(955, now).unwrap();
    assert_eq!(seen(&late, &mut now), [96, 97, 98, 99]);
    late.seek(plant.feed(), 98, now).unwrap();
    assert_eq!(seen(&late, &mut now), [98, 99]);
    late.seek_start(now).unwrap();
    assert_eq!(seen(&late, &mut now), all);
    late.seek_start(now).unwrap();
    late.seek_tail(now).unwrap();
    assert_eq!(seen(&late, &mut now), [0u64; 0]);
    let mut tail = Config::new(name("tail"), vec!["line/#".parse().unwrap()]);
    tail.start = Start::Tail;
    let consumer = plant.open(tail.clone(), now);
    plant.pieces(2);
    assert_eq!(seen(&consumer, &mut now), [100, 101]);
    drop(consumer);
    // A new feed is read from its first event, also by one that began at the tail and was away meanwhile.
    let other: StreamName = "line/2".parse().unwrap();
    plant
        .log
        .append(&other, vec![NewEvent::new(0, &b"new"[..])])
        .unwrap();
    assert_eq!(seen(&plant.open(tail, now), &mut now), [0]);
}

#[test]
fn s3_8_patterns_choose_streams() {
    let plant = Plant::new();
    for stream in ["a/1/x", "a/2/x", "a/2/y", "b/1/x", "a/x"] {
        let event = NewEvent::new(0, stream.as_bytes().to_vec());
        plant
            .log
            .append(&stream.parse().unwrap(), vec![event])
            .unwrap();
    }
    let patterns = vec!["a/+/x".parse().unwrap(), "b/#".parse().unwrap()];
    let consumer = plant.open(Config::new(name("by-pattern"), patterns), ms(0));
    let mut seen = Vec::new();
    drain(&consumer, &mut ms(1), |event| {
        seen.push(String::from_utf8(event.payload.to_vec()).unwrap());
        Ok(())
    });
    seen.sort();
    assert_eq!(seen, ["a/1/x", "a/2/x", "b/1/x"]);
}

#[test]
fn l8_an_offset_that_does_not_fit_the_log_is_taken_back_and_told() {
    let plant = Plant::new();
    plant.pieces(300);
    let backup = plant.log.cloned([3; 32]);
    plant.pieces(300);
    let mut small = config();
    small.batch = 100;
    let mut now = ms(0);
    drain(&plant.open(small.clone(), now), &mut now, good);
    assert_eq!(plant.count(), 600);
    // The log comes back from a backup, and goes on otherwise.
    let restored = Plant::with(backup, plant.store.clone());
    let consumer = restored.open(small.clone(), now);
    let ahead = Told::Ahead {
        feed: restored.feed(),
        next: 600,
        log: 300,
    };
    assert!(consumer.told().contains(&ahead));
    assert_eq!(
        drain(&consumer, &mut now, good),
        0,
        "nothing is given while it is not known"
    );
    restored.append((0..400).map(|_| b"another".to_vec()));
    let mut first = None;
    drain(&consumer, &mut now, |event| {
        first = first.or(Some(event.seq));
        Ok(())
    });
    let told = consumer.told();
    let rewound = told.iter().find_map(|event| match event {
        Told::Rewound { from: 600, to, .. } => Some(*to),
        _ => None,
    });
    let to = rewound.unwrap_or_else(|| panic!("{told:?}"));
    assert!(
        (1..=300).contains(&to),
        "to the last mark in the common part, {to}"
    );
    assert_eq!((first, consumer.counters().rewound), (Some(to), 1));
    drop(consumer);
    let again = restored.open(small, now);
    assert_eq!(again.counters().rewound, 0, "once");
}

#[test]
fn l8_a_log_that_comes_back_whole_is_gone_on_with() {
    let plant = Plant::new();
    plant.pieces(100);
    let mut now = ms(0);
    drain(&plant.open(config(), now), &mut now, good);
    let short = plant.log.cloned([3; 32]);
    short.shorten(&plant.feed(), 0);
    let restored = Plant::with(short, plant.store.clone());
    let consumer = restored.open(config(), now);
    // Peers give back what is missing.
    for bytes in plant.log.load(&plant.feed(), 0, [0; 32], u64::MAX).0 {
        restored
            .log
            .append_replica(&[Batch::decode(bytes).unwrap()])
            .unwrap();
    }
    restored.pieces(5);
    assert_eq!(drain(&consumer, &mut now, good), 5);
    assert_eq!(consumer.counters().rewound, 0);
}

/// How long until all good ones are counted, in virtual time: a commit is 1 ms, an append to the log 0.5 ms, an event 10 µs.
fn cost(events: usize, poison: bool) -> (Duration, Plant) {
    let plant = Plant::new();
    plant.append(pieces_with_poison(events, poison));
    let goods = pieces_with_poison(events, poison)
        .filter(|piece| piece == b"1")
        .count() as u64;
    let mut now = ms(0);
    let consumer = plant.open(config(), now);
    let mut all_good = None;
    loop {
        let before = plant.store.fuse.writes();
        let result = step(&consumer, now, no_x).unwrap();
        let (commits, appends) = plant.store.fuse.writes();
        now += ms(commits - before.0) + Duration::from_micros(500) * (appends - before.1) as u32;
        match result {
            Step::Worked(events) => now += Duration::from_micros(10) * events as u32,
            Step::Idle(Some(until)) => now = until,
            Step::Idle(None) => break,
        }
        if all_good.is_none() && plant.count() == goods {
            all_good = Some(now);
        }
    }
    assert_eq!(consumer.behind(), 0);
    drop(consumer);
    (all_good.unwrap(), plant)
}

/// One event in a hundred is poison. The others flow with at least 95 % of the speed, and the dead letters are exactly the poison.
#[test]
fn l9_s3_53_poison_goes_aside_and_the_flow_goes_on() {
    const EVENTS: usize = 40_000;
    let (clean, _) = cost(EVENTS, false);
    let (poisoned, plant) = cost(EVENTS, true);
    assert!(
        poisoned.mul_f64(0.95) <= clean,
        "{poisoned:?} with poison, {clean:?} without"
    );
    let poison: Vec<u64> = (0..EVENTS as u64).filter(|i| i % 100 == 50).collect();
    assert_eq!(plant.dead(), poison);
    let letters = plant.letters();
    let letter = letters.list(None, 1)[0];
    assert_eq!(
        (letter.cause.as_str(), letter.payload.as_deref()),
        ("not a number: x", Some(&b"x"[..]))
    );
    assert_eq!((&letter.consumer, letter.attempts), (&name("counter"), 5));
    assert_eq!(
        Some(letter.hash),
        plant.log.hash(&plant.feed(), 50).unwrap()
    );
}

#[test]
fn l9_attempts_or_patience_end_in_a_letter_that_says_how_often_and_how_long() {
    let plant = Plant::new();
    plant.append([b"1".to_vec(), b"x".to_vec(), b"1".to_vec()]);
    let attempts_of = |config: Config| {
        let consumer = plant.open(config, ms(0));
        let (mut now, mut tries) = (ms(0), Vec::new());
        loop {
            let result = consumer.step(W, now, |delivery, _| {
                if delivery.event.payload == b"x"[..] {
                    tries.push((now.as_millis(), delivery.attempts));
                }
                Ok(no_x(&delivery.event)?)
            });
            match result.unwrap() {
                Step::Worked(_) => {}
                Step::Idle(Some(until)) => now = until,
                Step::Idle(None) => break,
            }
        }
        assert!(consumer.told().contains(&Told::Dead {
            feed: plant.feed(),
            seq: 1
        }));
        tries
    };
    assert_eq!(
        attempts_of(config()),
        [(0, 0), (200, 1), (600, 2), (1_400, 3), (3_000, 4)]
    );
    let letters = plant.letters();
    assert_eq!(
        (
            letters.list(None, 9)[0].attempts,
            letters.list(None, 9)[0].held
        ),
        (5, ms(3_000))
    );
    let mut patient = config();
    patient.name = name("patient");
    (patient.attempts, patient.patience) = (u32::MAX, ms(2_000));
    assert_eq!(
        attempts_of(patient).len(),
        5,
        "the first attempt at or after two seconds is the last"
    );
}

#[test]
fn s3_53_letters_are_listed_inspected_retried_and_dropped() {
    let plant = Plant::new();
    plant.append((0..10).map(|i| {
        if i % 3 == 0 {
            b"x".to_vec()
        } else {
            b"1".to_vec()
        }
    }));
    let mut now = ms(0);
    let mut quick = config();
    quick.attempts = 1;
    let consumer = plant.open(quick, now);
    drain(&consumer, &mut now, no_x);
    assert_eq!((plant.dead(), plant.count()), (vec![0, 3, 6, 9], 6));
    let ids: Vec<_> = plant
        .letters()
        .list(None, 9)
        .iter()
        .map(|letter| letter.id.clone())
        .collect();
    consumer.retry(ids[0].clone(), now).unwrap();
    consumer.drop_letter(ids[1].clone()).unwrap();
    drain(&consumer, &mut now, good);
    assert_eq!(plant.count(), 7);
    consumer.retry(ids[2].clone(), now).unwrap();
    drain(&consumer, &mut now, no_x);
    assert_eq!(
        plant.dead(),
        [6, 9],
        "one was done, one dropped, one failed again"
    );
    assert!(plant.letters().inspect(&ids[2]).is_some());
}

/// An event that kills its worker every time is found among those given with it, and ends as a letter; its neighbours are counted once.
#[test]
fn l9_an_event_that_kills_its_worker_is_found_and_set_aside() {
    for order in [Order::Loose, Order::Strict] {
        let plant = Plant::new();
        plant.append((0..2_000).map(|i| {
            if i == 777 {
                b"bomb".to_vec()
            } else {
                b"1".to_vec()
            }
        }));
        let mut config = config();
        config.order = order;
        let (mut now, mut deaths, mut is_done) = (ms(0), 0, false);
        while !is_done {
            let consumer = plant.open(config.clone(), now);
            loop {
                let result = step(&consumer, now, |event| {
                    if event.payload == b"bomb"[..] {
                        // From here on nothing that the process does becomes durable.
                        plant.store.fuse.set(1);
                    }
                    Ok(())
                });
                match result {
                    Ok(Step::Worked(_)) => {}
                    Ok(Step::Idle(Some(until))) => now = until,
                    Ok(Step::Idle(None)) => {
                        is_done = true;
                        break;
                    }
                    Err(_) => {
                        deaths += 1;
                        plant.store.fuse.mend();
                        break;
                    }
                }
            }
            assert!(deaths <= 24, "{order:?}: it is found in a few deaths");
        }
        assert_eq!(
            (plant.count(), plant.dead()),
            (1_999, vec![777]),
            "{order:?}"
        );
    }
}

/// A power cut is never held against an event: a hundred of them, and no letter.
#[test]
fn l9_power_cuts_bury_nothing() {
    let plant = Plant::new();
    plant.pieces(3_000);
    let mut rng = gemba_testkit::Rng::new(9);
    let mut now = ms(0);
    for _ in 0..100 {
        plant.store.fuse.set(1 + rng.below(12));
        if let Ok(consumer) = plant.try_open(config(), now) {
            while step(&consumer, now, good).is_ok() && consumer.behind() > 0 {
                now += ms(1);
            }
        }
        plant.store.fuse.mend();
        now += ms(50);
    }
    drain(&plant.open(config(), now), &mut now, good);
    assert_eq!((plant.count(), plant.dead()), (3_000, vec![]));
}

#[test]
fn strict_order_waits_with_a_refused_event_and_other_feeds_go_on() {
    let plant = Plant::new();
    plant.append([b"1".to_vec(), b"x".to_vec(), b"1".to_vec()]);
    plant
        .log
        .append(
            &"line/2".parse().unwrap(),
            vec![NewEvent::new(0, &b"2"[..])],
        )
        .unwrap();
    let mut strict = config();
    strict.order = Order::Strict;
    let mut now = ms(0);
    let consumer = plant.open(strict, now);
    let (mut seen, mut failures) = (Vec::new(), 0);
    drain(&consumer, &mut now, |event| {
        if event.payload == b"x"[..] && failures < 3 {
            failures += 1;
            return Err("not yet".into());
        }
        seen.push(event.payload[0]);
        Ok(())
    });
    let line: Vec<u8> = seen
        .iter()
        .copied()
        .filter(|payload| *payload != b'2')
        .collect();
    assert_eq!(line, b"1x1", "in order, each once");
    let at = |payload: u8| seen.iter().position(|seen| *seen == payload);
    assert!(at(b'2') < at(b'x'), "the other feed did not wait");
    assert_eq!(plant.count(), 4);
}

/// Two workers never hold one feed, and a lease that ran out proves nothing any more.
#[test]
fn leases_run_out_and_are_fenced_by_their_tokens() {
    for planted in [None, Some(Planted::IgnoresTokens)] {
        let plant = Plant::new();
        plant.pieces(10);
        let mut config = config();
        config.planted = planted;
        let mut core = Core::load(config, 1, true, [], ms(0));
        let feed = plant.feed();
        core.handle(
            Input::Head {
                feed: feed.clone(),
                first: 0,
                next: 100,
            },
            ms(0),
        )
        .unwrap();
        let first = claim(&mut core, W, ms(0)).unwrap();
        assert_eq!(
            claim(&mut core, Worker(2), ms(10)),
            None,
            "one feed, one worker"
        );
        core.expire(ms(30_001));
        let mut second = None;
        while let Some(output) = core.poll() {
            match output {
                Output::Persist { ticket, .. } => core
                    .handle(
                        Input::Persisted {
                            ticket,
                            result: Ok(()),
                        },
                        ms(30_001),
                    )
                    .unwrap(),
                Output::Grant(grant) => second = Some(grant),
                _ => {}
            }
        }
        let second = second.unwrap();
        assert_eq!(second.worker, Worker(2), "who waited has it now");
        assert!(
            matches!(
                second.work,
                Work::Main {
                    from: 0,
                    most: 31,
                    ..
                }
            ),
            "in a smaller portion: {second:?}"
        );
        let hash = plant.log.hash(&feed, 9).unwrap().unwrap();
        let late = Input::Ack {
            token: first.token,
            ack: Ack::Through { next: 10, hash },
        };
        let late = core.handle(late, ms(30_002));
        // Who checks no token counts the work of both.
        assert_eq!(
            late,
            if planted.is_none() {
                Err(Refused::Lease)
            } else {
                Ok(())
            }
        );
    }
}

/// S3.29: a worker reads on under its token and under nothing else. When its lease is over it is told so, and gets neither the same events nor another feed.
#[test]
fn s3_29_reading_on_is_refused_when_the_lease_is_over() {
    let plant = Plant::new();
    plant.pieces(3);
    let other = "line/2".parse().unwrap();
    plant
        .log
        .append(&other, vec![NewEvent::new(7, "1")])
        .unwrap();
    let mut config = config();
    config.batch = 2;
    let consumer = plant.open(config, ms(0));
    let first = consumer.take(W, ms(0)).unwrap().unwrap();
    assert_eq!(first.receipt.feed, plant.feed());
    let second = consumer
        .read_on(&first.receipt, ms(29_000))
        .unwrap()
        .unwrap();
    assert_eq!(second.deliveries[0].id.seq, 2);
    // There is nothing behind; it lives by asking.
    for at in [58_000, 87_000] {
        assert_eq!(consumer.read_on(&second.receipt, ms(at)).unwrap(), None);
        assert_eq!(consumer.look(&[W], ms(at)).unwrap(), Vec::<usize>::new());
    }
    let late = ms(117_001);
    consumer.look(&[], late).unwrap();
    let over = consumer.read_on(&second.receipt, late);
    assert!(
        matches!(over, Err(ConsumeError::Refused(Refused::Lease))),
        "{over:?}"
    );
    assert!(consumer.take(Worker(2), late).unwrap().is_some());
}

/// What is behind cannot be read: the worker is told, and what it holds stays its own.
#[test]
fn s3_29_who_cannot_read_on_keeps_what_it_has() {
    let plant = Plant::new();
    plant.pieces(3);
    let mut config = config();
    config.batch = 2;
    let consumer = plant.open(config, ms(0));
    let first = consumer.take(W, ms(0)).unwrap().unwrap();
    plant.store.fuse.set(0);
    let failed = consumer.read_on(&first.receipt, ms(1));
    assert!(matches!(failed, Err(ConsumeError::Log(_))), "{failed:?}");
    plant.store.fuse.mend();
    let second = consumer.read_on(&first.receipt, ms(2)).unwrap().unwrap();
    assert_eq!(second.deliveries[0].id.seq, 2);
    consumer.acknowledge(&second.receipt, 2, ms(3)).unwrap();
    assert_eq!(consumer.behind(), 0);
}

/// Failover is explicit: a second node is refused until it says that it replaces the first, and from then on the first commits nothing.
#[test]
fn s3_22_a_second_instance_takes_over_with_the_right_total_and_the_first_is_fenced() {
    for planted in [None, Some(Planted::IgnoresGeneration)] {
        let plant = Plant::new();
        plant.pieces(100);
        let mut config = config();
        config.batch = 10;
        config.planted = planted;
        let mut now = ms(0);
        let old = plant.open(config.clone(), now);
        step(&old, now, good).unwrap();
        let open = |takeover| {
            let elsewhere = Author([9; 32]);
            Consumer::open(
                plant.log(),
                plant.store.clone(),
                elsewhere,
                config.clone(),
                takeover,
                now,
            )
        };
        let refused = open(Takeover::Continue).map(drop);
        assert!(
            matches!(refused, Err(ConsumeError::Refused(Refused::Fenced { .. }))),
            "{refused:?}"
        );
        let new = open(Takeover::Replace).unwrap();
        assert!(new.generation() > old.generation());
        assert_eq!(step(&old, now, good).is_err(), planted.is_none());
        drain(&new, &mut now, good);
        assert_eq!(
            plant.count() == 100,
            planted.is_none(),
            "{} of 100",
            plant.count()
        );
    }
}

/// Between nodes that share no store, the claim in the log ends the older one, and a store that is empty is filled from the log.
#[test]
fn s3_22_a_claim_that_arrives_over_the_log_ends_the_older_instance() {
    let (a, b) = (
        Plant::new(),
        Plant::with(
            MemoryLog::new([4; 32]),
            FusedStore {
                fuse: Fuse::new(),
                ..FusedStore::default()
            },
        ),
    );
    let copy = |from: &Plant, to: &Plant| {
        for span in from.log.spans().unwrap() {
            for bytes in from.log.load(&span.feed, 0, [0; 32], u64::MAX).0 {
                to.log
                    .append_replica(&[Batch::decode(bytes).unwrap()])
                    .unwrap();
            }
        }
    };
    a.pieces(50);
    let mut now = ms(0);
    let old = a.open(config(), now);
    drain(&old, &mut now, good);
    copy(&a, &b);
    assert!(
        b.try_open(config(), now).is_err(),
        "it runs at the other node"
    );
    let new = Consumer::open(
        b.log(),
        b.store.clone(),
        b.log.author(),
        config(),
        Takeover::Replace,
        now,
    )
    .unwrap();
    drain(&new, &mut now, good);
    assert_eq!(b.count(), 50, "the right total");
    copy(&b, &a);
    a.pieces(10);
    assert!(matches!(
        step(&old, now, good),
        Err(ConsumeError::Refused(Refused::Fenced { .. }))
    ));
    assert_eq!(a.count(), 50);
}

/// Read, process, write back in one transaction, killed at every operation: what is emitted is in the log once, in order.
#[test]
fn s3_16_s3_7_what_a_handler_emits_is_in_the_log_exactly_once() {
    let named: StreamName = "named/1".parse().unwrap();
    for kill in 1..100 {
        let plant = Plant::new();
        plant.append((0..40).map(|i| vec![i]));
        let mut small = config();
        small.batch = 7;
        plant.store.fuse.set(kill);
        for life in 0..2 {
            if let Ok(consumer) = plant.try_open(small.clone(), ms(life)) {
                loop {
                    let result = consumer.step(W, ms(life), |delivery, tx| {
                        let event =
                            NewEvent::new(delivery.event.time, delivery.event.payload.clone());
                        tx.emit(named.clone(), event);
                        Ok(())
                    });
                    if !matches!(result, Ok(Step::Worked(_))) {
                        break;
                    }
                }
            }
            plant.store.fuse.mend();
        }
        let out = plant
            .log
            .read(&plant.log.own_feed(&named), 0, 1_000, 1 << 20)
            .unwrap()
            .unwrap();
        let out: Vec<u8> = out.events.iter().map(|event| event.payload[0]).collect();
        assert_eq!(
            out,
            (0..40).collect::<Vec<u8>>(),
            "killed at operation {kill}"
        );
    }
}

#[test]
fn s3_43_effect_once_needs_no_more_commits_than_at_least_once() {
    let commits = |effect: bool| {
        let plant = Plant::new();
        plant.pieces(20_000);
        let consumer = plant.open(config(), ms(0));
        let before = plant.store.fuse.writes().0;
        let work = || {
            consumer.step(W, ms(1), |_, tx| {
                if effect {
                    tx.add(b"count", 1)?;
                }
                Ok(())
            })
        };
        while let Step::Worked(_) = work().unwrap() {}
        plant.store.fuse.writes().0 - before
    };
    assert_eq!(commits(true), commits(false));
    assert!(
        commits(true) <= 22,
        "20 portions of 1,000, and one to say that something is given: {}",
        commits(true)
    );
}

#[test]
fn several_workers_share_the_feeds() {
    let plant = Plant::new();
    for i in 0..10 {
        let stream: StreamName = format!("line/{i}").parse().unwrap();
        plant
            .log
            .append(&stream, vec![NewEvent::new(0, &b"1"[..]); 50])
            .unwrap();
    }
    let mut small = config();
    small.batch = 5;
    let consumer = plant.open(small, ms(0));
    std::thread::scope(|scope| {
        for worker in 0..4 {
            let consumer = &consumer;
            scope.spawn(move || {
                while consumer.behind() > 0 {
                    let result = consumer.step(Worker(worker), ms(1), |_, tx| {
                        tx.add(b"count", 1)?;
                        Ok(())
                    });
                    result.unwrap();
                }
            });
        }
    });
    assert_eq!(plant.count(), 500);
}

/// A consumer that forgets what was refused, and one that believes any offset: the checks above find them.
#[test]
fn planted_bugs_of_consumers_are_found() {
    let plant = Plant::new();
    plant.append(pieces_with_poison(3_000, true));
    let mut forgetful = config();
    forgetful.planted = Some(Planted::ForgetsAside);
    let mut now = ms(0);
    drain(&plant.open(forgetful, now), &mut now, no_x);
    assert_ne!(plant.dead().len(), 30, "the letters are not exact");

    let plant = Plant::new();
    plant.pieces(100);
    let mut credulous = config();
    credulous.planted = Some(Planted::IgnoresHashes);
    drain(&plant.open(credulous.clone(), now), &mut now, good);
    let other = Plant::with(MemoryLog::new([3; 32]), plant.store.clone());
    other.append((0..200).map(|_| b"another".to_vec()));
    assert_eq!(
        drain(&other.open(credulous, now), &mut now, good),
        100,
        "half of the other history is never read"
    );
}

/// A store of the user's own needs no more than the traits.
#[test]
fn a_transaction_holds_rows_and_values_and_returns_to_its_savepoint() {
    let store = MemoryStore::new();
    let mut tx = store.begin().unwrap();
    tx.put_row(b"k1", Some(b"v")).unwrap();
    tx.put_row(b"k2", Some(b"v")).unwrap();
    tx.savepoint().unwrap();
    tx.put(b"a", b"1").unwrap();
    tx.rollback().unwrap();
    assert_eq!(tx.get(b"a").unwrap(), None);
    assert_eq!(
        tx.rows(b"k", Some(b"k1"), 9).unwrap(),
        [(b"k2".to_vec(), b"v".to_vec())]
    );
    tx.commit().unwrap();
    let mut dropped = store.begin().unwrap();
    dropped.put_row(b"k1", None).unwrap();
    drop(dropped);
    assert_eq!(
        store.begin().unwrap().row(b"k1").unwrap(),
        Some(b"v".to_vec())
    );
}

/// The log grew between the grant and the read: the worker was handed an event that was not given to it, and its acknowledgement was refused.
#[test]
fn s3_27_what_came_after_the_grant_is_not_handed_out_with_it() {
    let plant = Plant::new();
    plant.append((0..3).map(|i| vec![i]));
    let consumer = plant.try_open(config(), ms(0)).unwrap();
    plant.append((3..5).map(|i| vec![i]));
    let mut seen = Vec::new();
    while let Some(taken) = consumer.take(W, ms(0)).unwrap() {
        let seqs = taken.deliveries.iter().map(|delivery| delivery.id.seq);
        seen.extend(seqs);
        consumer
            .acknowledge(&taken.receipt, *seen.last().unwrap(), ms(0))
            .unwrap();
    }
    assert_eq!(seen, [0, 1, 2, 3, 4]);
}

/// L11: a consumer that nobody needs any more is forgotten: it needs nothing, and one of its name begins anew. While a worker holds events that takes
/// an explicit word.
#[test]
fn l11_a_consumer_is_forgotten_and_one_of_its_name_begins_anew() {
    let plant = Plant::new();
    plant.pieces(5);
    let named: StreamName = "named/1".parse().unwrap();
    let emit = |consumer: &Opened| {
        let step = consumer.step(W, ms(0), |delivery, tx| {
            let payload = delivery.event.payload.clone();
            tx.emit(named.clone(), NewEvent::new(0, payload));
            Ok(())
        });
        assert_eq!(step.unwrap(), Step::Worked(5));
    };
    let old = plant.open(config(), ms(0));
    let taken = old.take(W, ms(0)).unwrap().unwrap();
    let refused = old.forget(false, ms(0), |_, _| Ok(())).unwrap_err();
    assert!(matches!(
        refused,
        ConsumeError::Refused(Refused::Held { workers: 1 })
    ));
    // It has changed nothing.
    old.acknowledge(&taken.receipt, 0, ms(0)).unwrap();
    let held = old.forget(false, ms(0), |_, _| Ok(()));
    assert!(held.is_err(), "four of five are in its hands");
    assert_eq!(old.needs(&plant.feed()), Some(1));
    // Whoever has acknowledged all holds nothing, although its lease lasts on.
    old.acknowledge(&taken.receipt, 4, ms(0)).unwrap();
    old.forget(false, ms(0), |tx, feeds| {
        assert_eq!(feeds, [plant.feed()]);
        tx.put(b"count", &0_u64.to_be_bytes())
    })
    .unwrap();
    let over = |outcome: Result<_, ConsumeError>| {
        assert!(matches!(
            outcome.map(drop).unwrap_err(),
            ConsumeError::Refused(Refused::Forgotten)
        ));
    };
    over(old.take(W, ms(0)).map(|_| ()));
    over(old.acknowledge(&taken.receipt, 4, ms(0)));
    assert!(
        plant
            .store
            .store
            .begin()
            .unwrap()
            .rows(b"p", None, 9)
            .unwrap()
            .is_empty()
    );

    // Held, and by force.
    let new = plant.open(config(), ms(0));
    emit(&new);
    let taken = {
        plant.pieces(1);
        new.take(W, ms(0)).unwrap().unwrap()
    };
    new.forget(true, ms(0), |_, _| Ok(())).unwrap();
    over(new.acknowledge(&taken.receipt, 5, ms(0)));

    // What it emits comes once more: its numbers go on, or the log would take the events for those that are there.
    let third = plant.open(config(), ms(0));
    plant.pieces(1);
    while third.behind() > 0 {
        third
            .step(W, ms(0), |_, tx| {
                tx.emit(named.clone(), NewEvent::new(0, "again"));
                Ok(())
            })
            .unwrap();
        third.refresh(ms(0)).unwrap();
    }
    let of = plant.log.own_feed(&named);
    let events = plant.log.read(&of, 0, 99, usize::MAX).unwrap().unwrap();
    assert_eq!(events.events.len(), 5 + 7);

    // One that is not open, and one that never was.
    drop(third);
    let mut tx = plant.store.store.begin().unwrap();
    assert_eq!(forget(&mut tx, &name("counter")).unwrap(), [plant.feed()]);
    assert_eq!(forget(&mut tx, &name("nobody")).unwrap(), []);
}

/// Of many who wait those are chosen who would be given something, and nobody for what is leased, acknowledged or resting; time that passes is a deadline.
#[test]
fn s3_29_who_waits_is_told_when_there_is_something_for_him_and_only_he() {
    let plant = Plant::new();
    let mut config = config();
    (config.batch, config.lease) = (4, ms(1_000));
    config.backoff = ms(200);
    let consumer = plant.open(config, ms(0));
    let workers: Vec<Worker> = (1..=96).map(Worker).collect();
    let look = |now| consumer.look(&workers, now).unwrap();
    assert_eq!(look(ms(0)), [0; 0]);
    assert_eq!(consumer.deadline(), None);

    // One feed with work is work for one.
    plant.pieces(6);
    assert_eq!(look(ms(1)), [0]);
    let taken = consumer.take(Worker(3), ms(2)).unwrap().unwrap();
    // Who has it may read on, nobody else is given anything before the lease ends.
    assert_eq!(look(ms(3)), [2]);
    let more = consumer.take(Worker(3), ms(4)).unwrap().unwrap();
    assert_eq!(more.deliveries.len(), 2);
    assert_eq!(look(ms(5)), [0; 0]);
    assert_eq!(consumer.deadline(), Some(ms(1_004)));
    plant.pieces(1);
    assert_eq!(look(ms(6)), [2]);

    // Its lease runs out: anybody. What a dead worker had rests for a while first, if it was alone with it.
    let now = consumer.deadline().unwrap();
    let lost = consumer.acknowledge(&taken.receipt, 3, now);
    assert!(lost.is_ok() && look(now) == [2], "it acknowledged in time");
    let now = consumer.deadline().unwrap();
    assert_eq!(look(now), [0]);
    let again = consumer.take(Worker(9), now).unwrap().unwrap();
    assert_eq!(again.deliveries[0].id.seq, 4);

    // One that is refused comes again when its pause is over; what is given back at once.
    let refused = consumer.refuse_event(&again.receipt, 4, "no".into(), now);
    refused.unwrap();
    consumer.leave(Worker(9), now).unwrap();
    let (mut now, mut given) = (now, Vec::new());
    while consumer.behind() > 0 {
        match look(now)[..] {
            [] => now = consumer.deadline().unwrap(),
            [first] => {
                let taken = consumer.take(workers[first], now).unwrap().unwrap();
                let last = taken.deliveries.last().unwrap().id.seq;
                given.extend(taken.deliveries.iter().map(|delivery| delivery.id.seq));
                consumer.acknowledge(&taken.receipt, last, now).unwrap();
            }
            _ => panic!("one feed is given to one"),
        }
    }
    given.sort_unstable();
    assert_eq!(given, [4, 5, 6]);
    // Nothing is left but the lease of the last one, with nothing in it.
    assert_eq!(look(now), [0; 0]);
    assert_eq!(look(consumer.deadline().unwrap()), [0; 0]);
    assert_eq!(consumer.deadline(), None);
}

/// A thread that panics ends those that go on until all is done.
struct EndsAll<'a>(&'a std::sync::atomic::AtomicBool);

impl Drop for EndsAll<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.store(true, std::sync::atomic::Ordering::Relaxed);
        }
    }
}

/// A worker that another thread's look serves between its claim and its leave neither loses a portion nor is handed a dead one: what is given is
/// acknowledged, whoever looks meanwhile.
#[test]
fn s3_27_looks_beside_claims_leave_no_dead_grant_behind() {
    let plant = Plant::new();
    let mut config = config();
    config.batch = 3;
    let consumer = plant.open(config, ms(0));
    let over = &std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let _broken = EndsAll(over);
            for _ in 0..300 {
                plant.pieces(1);
                std::thread::yield_now();
            }
        });
        scope.spawn(|| {
            while !over.load(std::sync::atomic::Ordering::Relaxed) {
                consumer.look(&[Worker(1), Worker(2)], ms(1)).unwrap();
                std::thread::yield_now();
            }
        });
        let work = |worker: Worker| {
            let _broken = EndsAll(over);
            let mut done = 0;
            let is_over = || over.load(std::sync::atomic::Ordering::Relaxed);
            while !is_over() && consumer.lag().iter().map(|lag| lag.next).sum::<u64>() < 300 {
                let taken = match consumer.take(worker, ms(1)) {
                    Ok(Some(taken)) => taken,
                    Ok(None) | Err(ConsumeError::Refused(Refused::Busy)) => {
                        std::thread::yield_now();
                        continue;
                    }
                    Err(error) => panic!("{error}"),
                };
                let last = taken.deliveries.last().unwrap().id.seq;
                while let Err(error) = consumer.acknowledge(&taken.receipt, last, ms(1)) {
                    let is_busy = matches!(error, ConsumeError::Refused(Refused::Busy));
                    assert!(is_busy, "{error}");
                }
                done += taken.deliveries.len();
            }
            done
        };
        let one = scope.spawn(move || work(Worker(1)));
        let two = scope.spawn(move || work(Worker(2)));
        let done = one.join().unwrap() + two.join().unwrap();
        over.store(true, std::sync::atomic::Ordering::Relaxed);
        assert_eq!(done, 300);
    });
    assert_eq!(consumer.counters().lost, 0);
}
