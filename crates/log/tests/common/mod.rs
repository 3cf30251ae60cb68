//! The crash harness of the log: what was acknowledged, and what has to hold whenever a log is opened again.
#![allow(
    clippy::unwrap_used,
    dead_code,
    unreachable_pub,
    reason = "shared by several test binaries"
)]

pub mod lying;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex};

use gemba_log::{
    Appended, Batch, Config, Draft, Epoch, EventList, FeedId, Headers, Log, MemorySigner, NewEvent,
    Sealer, Seq, Signer, StreamName, skip,
};
use gemba_segment::Disk;
use gemba_testkit::Rng;
use gemba_testkit::disk::{Moment, SimDisk};

pub const DIR: &str = "/repo/log";

/// Small segments, so that a short workload rolls over.
pub fn config() -> Config {
    Config::default().segment_bytes(8 << 10).reserve(0)
}

pub fn signer(which: u8) -> MemorySigner {
    MemorySigner::from_seed(&[which; 32])
}

pub fn stream(name: &str) -> StreamName {
    name.parse().unwrap()
}

pub fn open(sim: &SimDisk, config: Config) -> Log {
    open_on(Arc::new(sim.clone()), config).unwrap()
}

pub fn open_on(disk: Arc<dyn Disk>, config: Config) -> Result<Log, gemba_log::OpenError> {
    Log::open(disk, Path::new(DIR), config, Arc::new(signer(1))).map(|(log, _)| log)
}

/// Another author's feed, batch by batch.
#[derive(Debug)]
pub struct Other {
    pub signer: MemorySigner,
    pub feed: FeedId,
    spine: skip::Spine,
    number: u64,
    next: Seq,
    lamport: u64,
    prev: Option<gemba_log::Cid>,
}

impl Other {
    pub fn new(which: u8, name: &str) -> Self {
        let signer = signer(which);
        let feed = FeedId {
            author: signer.author(),
            stream: stream(name),
            epoch: Epoch(0),
        };
        Self {
            signer,
            feed,
            spine: skip::Spine::default(),
            number: 0,
            next: 0,
            lamport: 0,
            prev: None,
        }
    }

    /// The same feed up to here, from where it goes another way.
    pub fn fork(&self) -> Self {
        let seed = self.signer.author();
        let which = (1..=255)
            .find(|which| signer(*which).author() == seed)
            .unwrap();
        Self {
            signer: signer(which),
            feed: self.feed.clone(),
            spine: self.spine.clone(),
            ..*self
        }
    }

    pub fn next(&mut self, events: &[NewEvent]) -> Batch {
        self.next_at(events, self.lamport + 1)
    }

    pub fn next_at(&mut self, events: &[NewEvent], lamport: u64) -> Batch {
        let list = EventList::of(events).unwrap();
        let draft = Draft {
            feed: &self.feed,
            number: self.number,
            first: self.next,
            lamport,
            prev: self.prev,
            skip: self.spine.links(self.number),
            events: &list,
            compress: true,
        };
        let batch = draft.seal(&self.signer, &mut Sealer::default());
        let digest = batch.cid().hash().digest().try_into().unwrap();
        self.spine.push(self.number, digest);
        self.number += 1;
        self.next = batch.end();
        self.lamport = lamport;
        self.prev = Some(batch.cid());
        batch
    }
}

/// What callers know.
#[derive(Clone, Debug, Default)]
pub struct Model {
    /// Payloads of events whose append was acknowledged, by their place.
    pub acked: BTreeMap<(FeedId, Seq), Vec<u8>>,
    /// Every payload that was ever handed in, with its stream.
    pub known: BTreeSet<(StreamName, Vec<u8>)>,
    /// Producer numbers that were acknowledged, with their places.
    pub produced: BTreeMap<(StreamName, u64), (Epoch, Seq)>,
}

impl Model {
    pub fn submit(&mut self, stream: &StreamName, events: &[NewEvent]) {
        for event in events {
            self.known.insert((stream.clone(), event.payload.to_vec()));
        }
    }

    pub fn ack(&mut self, done: &Appended, events: &[NewEvent]) {
        for (i, event) in events.iter().enumerate() {
            let (epoch, seq) = done.place(i as u32);
            let feed = FeedId {
                epoch,
                ..done.feed.clone()
            };
            let stream = feed.stream.clone();
            self.acked.insert((feed, seq), event.payload.to_vec());
            if let Some(producer) = &event.headers.producer {
                self.produced.insert((stream, producer.seq), (epoch, seq));
            }
        }
    }
}

/// Every event that a log serves, by place; an error where one cannot be read, or where a head tells of other places than are served.
pub fn served(log: &Log) -> Result<BTreeMap<(FeedId, Seq), Vec<u8>>, String> {
    let mut all = BTreeMap::new();
    for head in log.heads().into_iter().filter(|head| head.branch.is_none()) {
        let mut cursor = log.cursor(&head.feed, head.low);
        while let Some(batch) = cursor.next_batch().map_err(|e| e.to_string())? {
            for event in batch.events() {
                all.insert((head.feed.clone(), event.seq), event.payload.to_vec());
            }
        }
        let of_feed = all.keys().filter(|(feed, _)| *feed == head.feed);
        let places: Vec<Seq> = of_feed.map(|(_, seq)| *seq).collect();
        if places.iter().copied().ne(head.low..head.next) {
            return Err(format!("{places:?} are served, and the head is {head:?}"));
        }
    }
    Ok(all)
}

/// The first broken promise, if there is one.
pub fn check(disk: &Arc<dyn Disk>, config: &Config, model: &Model) -> Result<(), String> {
    let log =
        open_on(Arc::clone(disk), config.clone()).map_err(|e| format!("does not open: {e}"))?;
    check_open(&log, model)
}

pub fn check_open(log: &Log, model: &Model) -> Result<(), String> {
    let served = served(log).map_err(|e| format!("does not read: {e}"))?;
    for ((feed, seq), payload) in &model.acked {
        match served.get(&(feed.clone(), *seq)) {
            Some(found) if found == payload => {}
            Some(_) => {
                return Err(format!(
                    "{feed:?} {seq} was acknowledged and is another event"
                ));
            }
            None => return Err(format!("{feed:?} {seq} was acknowledged and is lost")),
        }
    }
    for ((feed, seq), payload) in &served {
        if !model
            .known
            .contains(&(feed.stream.clone(), payload.clone()))
        {
            return Err(format!("{feed:?} {seq} was never handed in"));
        }
    }
    if !log.open_report().damage.is_empty() {
        return Err(format!(
            "a crash was taken for damage: {:?}",
            log.open_report()
        ));
    }
    Ok(())
}

fn event(rng: &mut Rng, unique: u64) -> NewEvent {
    let len = match rng.below(8) {
        0 => 0,
        1 => 700 + rng.below(2_000),
        _ => rng.below(200),
    };
    let mut payload = unique.to_be_bytes().to_vec();
    payload.extend(rng.bytes(len as usize));
    NewEvent::new(unique as i64, payload)
}

const STREAMS: [&str; 3] = ["plant/a", "plant/b/c", "d"];

/// A seeded run of appends, replicas, retries and reopenings on `disk`; the model follows the acknowledgements.
pub fn workload(
    disk: &Arc<dyn Disk>,
    config: &Config,
    seed: u64,
    steps: usize,
    model: &Arc<Mutex<Model>>,
) {
    let mut rng = Rng::new(seed);
    let mut log = None;
    let mut others = [Other::new(2, "plant/a"), Other::new(3, "e")];
    let mut pending: [Vec<Batch>; 2] = Default::default();
    let mut unique = 0;
    let mut number = 0;
    for _ in 0..steps {
        let opened = log
            .take()
            .or_else(|| open_on(Arc::clone(disk), config.clone()).ok());
        let Some(open) = opened else { continue };
        let mut new = |rng: &mut Rng, count: u64| -> Vec<NewEvent> {
            (0..count)
                .map(|_| {
                    unique += 1;
                    event(rng, unique)
                })
                .collect()
        };
        match rng.below(12) {
            0 => drop(open),
            1 => {
                let which = rng.index(2);
                let events = {
                    let count = 1 + rng.below(3);
                    new(&mut rng, count)
                };
                pending[which].push(others[which].next(&events));
                let stream = others[which].feed.stream.clone();
                model.lock().unwrap().submit(&stream, &events);
                let batches = pending[which].clone();
                for (batch, done) in batches.iter().zip(open.append_replicas(batches.clone())) {
                    if let Ok(done) = done {
                        let events: Vec<_> = batch
                            .events()
                            .map(|e| NewEvent::new(0, e.payload.to_vec()))
                            .collect();
                        model.lock().unwrap().ack(&done, &events);
                        pending[which].retain(|other| other.cid() != batch.cid());
                    }
                }
                log = Some(open);
            }
            2 | 3 => {
                // Several streams at once.
                let lists: Vec<_> = (0..1 + rng.below(4))
                    .map(|_| {
                        (stream(STREAMS[rng.index(3)]), {
                            let count = 1 + rng.below(4);
                            new(&mut rng, count)
                        })
                    })
                    .collect();
                for (stream, events) in &lists {
                    model.lock().unwrap().submit(stream, events);
                }
                let encoded = lists
                    .iter()
                    .map(|(stream, events)| (stream.clone(), EventList::of(events).unwrap()));
                let results = open.append_many(encoded.collect());
                for ((_, events), done) in lists.iter().zip(results) {
                    if let Ok(done) = done {
                        model.lock().unwrap().ack(&done, events);
                    }
                }
                log = Some(open);
            }
            4..=6 => {
                // A producer that tries until it is told, also after a restart of the log.
                number += 1;
                let stream = stream("plant/a");
                let headers = Headers::default().produced_by("plc", number);
                let event = new(&mut rng, 1).remove(0).with(headers);
                let event = [event];
                model.lock().unwrap().submit(&stream, &event);
                if let Ok(done) = open.append(&stream, &event) {
                    model.lock().unwrap().ack(&done, &event);
                }
                log = Some(open);
            }
            7 => {
                let stream = stream("d");
                let events = new(&mut rng, 1);
                model.lock().unwrap().submit(&stream, &events);
                let _ = open.offer(&stream, &events[0]);
                log = Some(open);
            }
            _ => {
                let stream = stream(STREAMS[rng.index(3)]);
                let events = {
                    let count = 1 + rng.below(4);
                    new(&mut rng, count)
                };
                model.lock().unwrap().submit(&stream, &events);
                if let Ok(done) = open.append(&stream, &events) {
                    model.lock().unwrap().ack(&done, &events);
                }
                log = Some(open);
            }
        }
    }
}

/// What a run of the harness did.
#[derive(Clone, Debug, Default)]
pub struct Score {
    pub points: u64,
    pub second_order: u64,
    pub new_epochs: u64,
    pub faults: gemba_testkit::Faults,
    /// The first broken promise, and where.
    pub broken: Option<String>,
}

impl Score {
    pub fn add(&mut self, other: &Self) {
        self.points += other.points;
        self.second_order += other.second_order;
        self.new_epochs += other.new_epochs;
        self.faults.merge(&other.faults);
    }
}

/// Runs the workload and, after every changing call, checks what `survivors` power cuts and one kill would leave. `wrap` may put a lying
/// disk between; it is used for the run and for the recoveries.
pub fn crash_everywhere(
    seed: u64,
    steps: usize,
    survivors: usize,
    wrap: impl Fn(SimDisk) -> Arc<dyn Disk> + Clone + Send + 'static,
) -> Score {
    let sim = SimDisk::new(seed);
    let model = Arc::new(Mutex::new(Model::default()));
    let score = Arc::new(Mutex::new(Score::default()));
    let observer = Observer {
        rng: Rng::new(seed ^ 0x5eed),
        survivors,
        model: Arc::clone(&model),
        score: Arc::clone(&score),
        wrap: wrap.clone(),
    };
    let observer = Mutex::new(observer);
    sim.observe(move |moment| observer.lock().unwrap().look(moment));
    workload(&wrap(sim.clone()), &config(), seed, steps, &model);
    sim.stop_observing();
    let mut score = score.lock().unwrap();
    std::mem::take(&mut *score)
}

struct Observer<W> {
    rng: Rng,
    survivors: usize,
    model: Arc<Mutex<Model>>,
    score: Arc<Mutex<Score>>,
    wrap: W,
}

impl<W: Fn(SimDisk) -> Arc<dyn Disk> + Clone + Send + 'static> Observer<W> {
    fn look(&mut self, moment: &Moment<'_>) {
        if self.score.lock().unwrap().broken.is_some() {
            return;
        }
        let model = self.model.lock().unwrap().clone();
        for i in 0..self.survivors {
            let seed = self.rng.next_u64();
            let after = moment.power_cut(&mut Rng::new(seed));
            let deep = i == 0 && self.rng.chance(1, 5);
            self.judge(moment, "power cut", &after, &model, deep);
        }
        let deep = self.rng.chance(1, 5);
        self.judge(moment, "kill", &moment.kill(), &model, deep);
    }

    /// Recovers, checks, appends something on top, cuts the power again and checks again.
    fn judge(
        &mut self,
        moment: &Moment<'_>,
        what: &str,
        after: &SimDisk,
        model: &Model,
        deep: bool,
    ) {
        let seed = self.rng.next_u64();
        if deep {
            self.observe_recovery(after, model, seed);
        }
        let broken = self.recover_and_go_on(after, model, seed).err();
        after.stop_observing();
        let mut score = self.score.lock().unwrap();
        score.points += 1;
        score.faults.merge(&after.faults());
        if let Some(broken) = broken {
            score.broken.get_or_insert(format!(
                "{what} after call {} ({}): {broken}",
                moment.op, moment.name
            ));
        }
    }

    fn recover_and_go_on(&self, after: &SimDisk, model: &Model, seed: u64) -> Result<(), String> {
        let mut model = model.clone();
        let disk = (self.wrap)(after.clone());
        let log =
            open_on(Arc::clone(&disk), config()).map_err(|e| format!("does not open: {e}"))?;
        check_open(&log, &model)?;
        self.score.lock().unwrap().new_epochs += u64::from(log.open_report().new_epochs);
        // A retry of what was acknowledged is answered with the first result.
        if let Some(((stream, number), (epoch, seq))) = model.produced.iter().next_back() {
            let again =
                NewEvent::new(0, "again").with(Headers::default().produced_by("plc", *number));
            let done = log
                .append(stream, &[again])
                .map_err(|e| format!("a retry fails: {e}"))?;
            if done.place(0) != (*epoch, *seq) || !done.present {
                return Err(format!("a retry of {number} was appended twice: {done:?}"));
            }
        }
        let stream = stream("plant/a");
        let events = [NewEvent::new(1, format!("after {seed}"))];
        model.submit(&stream, &events);
        let done = log
            .append(&stream, &events)
            .map_err(|e| format!("does not append: {e}"))?;
        model.ack(&done, &events);
        check_open(&log, &model)?;
        let again = after.power_cut(&mut Rng::new(seed));
        drop(log);
        check(&(self.wrap)(again), &config(), &model)
            .map_err(|e| format!("after a second power cut: {e}"))
    }

    /// Cuts the power at every call of the recovery too.
    fn observe_recovery(&self, after: &SimDisk, model: &Model, seed: u64) {
        let (score, wrap, model) = (Arc::clone(&self.score), self.wrap.clone(), model.clone());
        let mut rng = Rng::new(seed);
        let twin = after.kill();
        let wrapped = wrap.clone();
        twin.observe(move |moment| {
            let cut = moment.power_cut(&mut Rng::new(rng.next_u64()));
            let result = check(&wrapped(cut), &config(), &model);
            let mut score = score.lock().unwrap();
            score.second_order += 1;
            if let Err(broken) = result {
                score.broken.get_or_insert(format!(
                    "power cut during recovery, call {} ({}): {broken}",
                    moment.op, moment.name
                ));
            }
        });
        drop(open_on(wrap(twin.clone()), config()));
        twin.stop_observing();
    }
}
