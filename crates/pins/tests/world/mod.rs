//! An owner of a tracker as a daemon is one: wishes go to a disk in their order, walks advance block by block, everything may be slow, fail, or end in a
//! crash; and a seed decides.
#![allow(clippy::unwrap_used, dead_code, unreachable_pub)]

use gemba_pins::{
    Add, Cid, DesiredSet, Input, Kind, Operation, Outlook, Output, Phase, PinError, Progress,
    Source, Status, Target, Ticket, Time, Tracker, TrackerConfig,
};
use gemba_testkit::{Rng, dag::fake_cid};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

pub fn cid(n: u64) -> Cid {
    fake_cid(0x70, n)
}

pub fn second(n: u64) -> Time {
    Duration::from_secs(n)
}

/// What a caller gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    Done,
    /// With others, by one removal.
    DoneTogether,
    NotPinned,
    /// The disk refused; it may happen all the same, later.
    Unknown,
}

enum Record {
    Add(usize, Add),
    Complete(Ticket, u64),
    Remove(Ticket),
    Draw(Option<Cid>, usize),
}

pub struct Walking {
    pub target: Target,
    pub done: u64,
}

/// See the module's text.
pub struct World {
    pub tracker: Tracker,
    pub now: Time,
    /// What is durable.
    pub set: DesiredSet,
    /// Blocks of each root that are durable.
    pub blocks: BTreeMap<Cid, u64>,
    records: VecDeque<Record>,
    pub walks: BTreeMap<Ticket, Walking>,
    /// Blocks of each DAG.
    pub size: u64,
    /// Roots of which nobody has the last block.
    pub missing: BTreeSet<Cid>,
    /// Of a thousand records so many are refused by the disk.
    pub refused: u64,
    pub answers: Vec<(usize, Answer)>,
    removing: BTreeMap<Ticket, Vec<usize>>,
    /// How often a walk was begun for each.
    pub started: BTreeMap<Cid, u64>,
    pub ended: Vec<Operation>,
    /// The completeness of a pin was recorded too early.
    pub early: u64,
    drains: u64,
    config: TrackerConfig,
}

impl World {
    pub fn new(config: TrackerConfig) -> Self {
        let mut world = Self {
            tracker: Tracker::new(config.clone()),
            now: Time::ZERO,
            set: DesiredSet::new(),
            blocks: BTreeMap::new(),
            records: VecDeque::new(),
            walks: BTreeMap::new(),
            size: 3,
            missing: BTreeSet::new(),
            refused: 0,
            answers: Vec::new(),
            removing: BTreeMap::new(),
            started: BTreeMap::new(),
            ended: Vec::new(),
            early: 0,
            drains: 0,
            config,
        };
        world.drain();
        world
    }

    pub fn pin(&mut self, caller: usize, root: Cid) {
        self.tell(Input::Pin(root));
        let add = Add {
            cid: root,
            kind: Kind::Recursive,
            name: None,
            now_ms: 0,
        };
        self.records.push_back(Record::Add(caller, add));
    }

    pub fn unpin(&mut self, caller: usize, root: Cid) {
        match self.tracker.handle(Input::Unpin(root), self.now) {
            Ok(()) => {
                let ticket = self.tracker.operation(&root).unwrap().ticket;
                self.removing.entry(ticket).or_default().push(caller);
            }
            Err(_) => self.answers.push((caller, Answer::Unknown)),
        }
        self.drain();
    }

    /// Pins without anybody who waits, as an earlier process left them.
    pub fn left_behind(&mut self, roots: impl IntoIterator<Item = Cid>) {
        for cid in roots {
            let add = Add {
                cid,
                kind: Kind::Recursive,
                name: None,
                now_ms: 0,
            };
            if let Some(change) = self.set.add(add).unwrap() {
                self.set.apply(change).unwrap();
            }
        }
    }

    /// The process is killed: what is durable is there, and nothing else. Whoever waited gets no answer.
    pub fn crash(&mut self) {
        self.tracker = Tracker::new(self.config.clone());
        self.records.clear();
        self.walks.clear();
        self.removing.clear();
        self.drain();
    }

    pub fn tell(&mut self, input: Input) {
        let _refused = self.tracker.handle(input, self.now);
        self.drain();
    }

    pub fn pass(&mut self, time: Time) {
        self.now += time;
        self.tracker.expire(self.now);
        self.drain();
    }

    /// Records on their way to the disk.
    pub fn backlog(&self) -> usize {
        self.records.len()
    }

    fn drain(&mut self) {
        while let Some(output) = self.tracker.poll() {
            match output {
                Output::Start(ticket, target) => {
                    *self.started.entry(target.cid).or_default() += 1;
                    let walking = Walking { target, done: 0 };
                    assert!(self.walks.insert(ticket, walking).is_none());
                }
                Output::Stop(ticket) => assert!(self.walks.remove(&ticket).is_some()),
                Output::Complete(ticket, id) => {
                    self.records.push_back(Record::Complete(ticket, id));
                }
                Output::Remove(ticket) => self.records.push_back(Record::Remove(ticket)),
                Output::Draw(after, n) => self.records.push_back(Record::Draw(after, n)),
                Output::Changed(_) => {}
                Output::Ended(op) => self.ended.push(*op),
            }
        }
        self.drains += 1;
        // It costs as much as there are operations.
        if self.tracker.len() < 100 || self.drains.is_multiple_of(64) {
            self.check();
        }
    }

    /// What must hold at any moment.
    fn check(&self) {
        let walking = |op: &&Operation| op.phase == Phase::Running && !op.recording;
        let walking: BTreeSet<Ticket> = self
            .tracker
            .operations()
            .filter(walking)
            .map(|op| op.ticket)
            .collect();
        let running: BTreeSet<Ticket> = self.walks.keys().copied().collect();
        assert_eq!(running, walking);
    }

    /// The next record reaches the disk.
    pub fn persist(&mut self, rng: &mut Rng) {
        let Some(record) = self.records.pop_front() else {
            return;
        };
        let fails = rng.chance(self.refused, 1000);
        match record {
            Record::Add(caller, _) if fails => self.answers.push((caller, Answer::Unknown)),
            Record::Add(caller, add) => {
                let root = add.cid;
                if let Some(change) = self.set.add(add).unwrap() {
                    self.set.apply(change).unwrap();
                }
                let pin = self.set.get(&root).unwrap();
                if !pin.complete {
                    let target = Target {
                        cid: root,
                        id: pin.id,
                        reach: pin.kind,
                    };
                    self.tell(Input::Wanted {
                        target,
                        recent: true,
                    });
                }
                self.answers.push((caller, Answer::Done));
            }
            Record::Complete(ticket, _) | Record::Remove(ticket) if fails => {
                for caller in self.removing.remove(&ticket).unwrap_or_default() {
                    self.answers.push((caller, Answer::Unknown));
                }
                self.tell(Input::Recorded(ticket, Err("no space".into())));
            }
            Record::Complete(ticket, id) => match self.set.complete(&ticket.cid, id) {
                Ok(change) => {
                    let here = self.blocks.get(&ticket.cid).copied().unwrap_or(0);
                    self.early += u64::from(here < self.size);
                    if let Some(change) = change {
                        self.set.apply(change).unwrap();
                    }
                    self.tell(Input::Recorded(ticket, Ok(())));
                }
                Err(_) => self.gone(ticket),
            },
            Record::Remove(ticket) => {
                let callers = self.removing.remove(&ticket).unwrap_or_default();
                let removed = self.set.remove(&ticket.cid);
                let answer = match &removed {
                    Ok(_) if callers.len() > 1 => Answer::DoneTogether,
                    Ok(_) => Answer::Done,
                    Err(PinError::NotPinned(_)) => Answer::NotPinned,
                    Err(e) => panic!("{e}"),
                };
                self.answers
                    .extend(callers.into_iter().map(|caller| (caller, answer)));
                match removed {
                    Ok(change) => {
                        self.set.apply(change).unwrap();
                        self.tell(Input::Recorded(ticket, Ok(())));
                    }
                    Err(_) => self.gone(ticket),
                }
            }
            Record::Draw(..) if fails => self.tell(Input::NotDrawn),
            Record::Draw(after, at_most) => {
                let mut targets = self.set.open_after(after.as_ref(), at_most + 1);
                let more = targets.len() > at_most;
                targets.truncate(at_most);
                self.tell(Input::Drawn { targets, more });
            }
        }
    }

    fn gone(&mut self, ticket: Ticket) {
        let current = self.tracker.operation(&ticket.cid);
        if current.is_some_and(|op| op.ticket == ticket) {
            self.tell(Input::Gone(ticket.cid));
        }
    }

    /// One walk gets a block, or learns that nobody has it.
    pub fn advance(&mut self, rng: &mut Rng) {
        let tickets: Vec<Ticket> = self.walks.keys().copied().collect();
        if tickets.is_empty() {
            return;
        }
        self.advance_one(*rng.pick(&tickets));
    }

    pub fn advance_one(&mut self, ticket: Ticket) {
        let Some(walk) = self.walks.get_mut(&ticket) else {
            return;
        };
        let lacks = self.missing.contains(&ticket.cid);
        if lacks && walk.done + 1 == self.size {
            return self.tell(Input::Standing {
                ticket,
                outlook: Outlook::Denied,
                cause: "none of 3 peers has it".into(),
                lacks: Some(cid(999)),
            });
        }
        walk.done += 1;
        let done = walk.done;
        let here = self.blocks.entry(ticket.cid).or_default();
        *here = (*here).max(done);
        let progress = Progress {
            blocks_done: done,
            bytes_done: done,
            ..Progress::default()
        };
        if done == self.size {
            self.tell(Input::Whole(ticket, progress));
        } else {
            self.tell(Input::Progress(ticket, progress));
        }
    }

    /// One random thing happens.
    pub fn step(&mut self, rng: &mut Rng) {
        match rng.below(10) {
            0..=3 => self.persist(rng),
            4..=8 => self.advance(rng),
            _ => self.pass(Duration::from_millis(rng.below(2_000))),
        }
    }

    /// Until nothing happens any more by itself; false if that takes too long.
    pub fn settle(&mut self, rng: &mut Rng, limit: Time) -> bool {
        let until = self.now + limit;
        loop {
            while !self.records.is_empty() {
                self.persist(rng);
            }
            let before: Vec<(Ticket, u64)> =
                self.walks.iter().map(|(t, walk)| (*t, walk.done)).collect();
            for (ticket, _) in &before {
                self.advance_one(*ticket);
            }
            let after: Vec<(Ticket, u64)> =
                self.walks.iter().map(|(t, walk)| (*t, walk.done)).collect();
            if before != after || !self.records.is_empty() {
                continue;
            }
            if self.tracker.is_idle() {
                return true;
            }
            let next = self.tracker.deadline().unwrap_or(self.now).max(self.now);
            if next > until {
                return false;
            }
            self.pass((next - self.now).max(Duration::from_millis(1)));
        }
    }

    pub fn status(&self, root: &Cid) -> Status {
        Status::of(self.set.get(root), self.tracker.operation(root))
    }

    pub fn is_silent(&self) -> bool {
        self.walks.is_empty()
            && self.records.is_empty()
            && self.removing.is_empty()
            && self.tracker.is_empty()
    }
}
