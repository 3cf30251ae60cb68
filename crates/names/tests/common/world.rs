//! A device in virtual time: the core, its keys, its clock, and a disk that forgets what was not flushed.

use super::{key, name};
use gemba_names::{
    Command, Config, Core, Done, Event, Input, Keypair, Name, Output, PeerId, Publish, Refused,
    ResolveError, Resolved, Source, Time, Unsigned, Verdict, Wall,
};
use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

pub struct Device {
    pub core: Core,
    config: Config,
    pub keys: BTreeMap<Name, Keypair>,
    pub now: Time,
    /// Rows that are durable.
    pub disk: BTreeMap<Vec<u8>, Vec<u8>>,
    pub marks: BTreeMap<Name, u64>,
    /// Answer `Persist`, `Verify` and `Sign` by themselves.
    pub automatic: bool,
    pub disk_fails: Option<String>,
    pub persisted: usize,
    pub verified: usize,
    /// What came out and is not answered.
    pub out: VecDeque<Output>,
    /// What waits for an answer where `automatic` is off.
    pub waiting: VecDeque<Output>,
    next_id: u64,
}

impl Device {
    pub fn new() -> Self {
        Self::with(Config::default())
    }

    pub fn with(config: Config) -> Self {
        let mut device = Self {
            core: Core::new(config.clone()),
            config,
            keys: BTreeMap::new(),
            now: Duration::from_secs(1),
            disk: BTreeMap::new(),
            marks: BTreeMap::new(),
            automatic: true,
            disk_fails: None,
            persisted: 0,
            verified: 0,
            out: VecDeque::new(),
            waiting: VecDeque::new(),
            next_id: 0,
        };
        device.clock("2026-06-01T00:00:00Z");
        device
    }

    /// The publisher: holds key 1.
    pub fn publisher() -> Self {
        let mut device = Self::new();
        device.own(1);
        device
    }

    /// A device that follows name 1.
    pub fn follower() -> Self {
        let mut device = Self::new();
        device.command(Command::Follow(name(1))).unwrap();
        device.drain();
        device
    }

    pub fn own(&mut self, number: u8) {
        self.keys.insert(name(number), key(number));
        self.command(Command::Own(name(number))).unwrap();
        self.drain();
    }

    pub fn input(&mut self, input: Input) -> Result<(), Refused> {
        let result = self.core.handle(input, self.now);
        self.run();
        result
    }

    pub fn feed(&mut self, input: Input) {
        self.input(input).unwrap();
    }

    pub fn clock(&mut self, text: &str) {
        self.feed(Input::Clock(super::wall(text)));
    }

    /// A command that is accepted; what became of it, if that is known by now.
    pub fn command(&mut self, command: Command) -> Result<Option<Done>, Refused> {
        self.next_id += 1;
        let id = self.next_id;
        self.input(Input::Command { id, command })?;
        let at = self
            .out
            .iter()
            .position(|output| matches!(output, Output::Done { id: of, .. } if *of == id));
        match at.and_then(|at| self.out.remove(at)) {
            Some(Output::Done { result, .. }) => result.map(Some),
            _ => Ok(None),
        }
    }

    /// The sequence under which the value was published.
    pub fn publish(&mut self, value: &str) -> Result<u64, Refused> {
        match self.command(Command::Publish(Publish::new(name(1), value)))? {
            Some(Done::Published { sequence }) => Ok(sequence),
            other => panic!("{other:?}"),
        }
    }

    pub fn resolve(&mut self, of: Name) -> u64 {
        self.next_id += 1;
        let id = self.next_id;
        self.feed(Input::Command {
            id,
            command: Command::Resolve(of),
        });
        id
    }

    pub fn answer_of(&mut self, id: u64) -> Option<Result<Resolved, ResolveError>> {
        let at = self
            .out
            .iter()
            .position(|output| matches!(output, Output::Resolved { id: of, .. } if *of == id))?;
        match self.out.remove(at)? {
            Output::Resolved { result, .. } => Some(result),
            _ => None,
        }
    }

    pub fn record(&mut self, bytes: &[u8], source: Source) {
        self.feed(Input::Record {
            name: name(1),
            bytes: bytes.to_vec(),
            source,
            token: None,
        });
    }

    /// The verdict that a topic is given.
    pub fn on_topic(&mut self, bytes: &[u8], from: PeerId) -> Option<Verdict> {
        self.feed(Input::Record {
            name: name(1),
            bytes: bytes.to_vec(),
            source: Source::Topic(from),
            token: Some(9),
        });
        self.verdict()
    }

    pub fn verdict(&mut self) -> Option<Verdict> {
        let at = self
            .out
            .iter()
            .position(|output| matches!(output, Output::Verdict { token: 9, .. }))?;
        match self.out.remove(at)? {
            Output::Verdict { verdict, .. } => Some(verdict),
            _ => None,
        }
    }

    /// Answers what the core wants of this device; the rest goes to `out`.
    pub fn run(&mut self) {
        while let Some(output) = self.core.poll() {
            self.on_output(output);
        }
    }

    fn on_output(&mut self, output: Output) {
        let is_work = matches!(
            output,
            Output::Persist { .. } | Output::Verify { .. } | Output::Sign { .. }
        );
        match (is_work, self.automatic) {
            (true, true) => self.answer(output),
            (true, false) => self.waiting.push_back(output),
            (false, _) => {
                if let Output::Mark { name, sequence } = output {
                    self.marks.insert(name, sequence);
                } else {
                    self.out.push_back(output);
                }
            }
        }
    }

    pub fn answer(&mut self, output: Output) {
        let input = match output {
            Output::Persist { ticket, key, value } => {
                self.persisted += 1;
                let result = match (&self.disk_fails, value) {
                    (Some(cause), _) => Err(cause.clone()),
                    (None, Some(value)) => {
                        self.disk.insert(key, value);
                        Ok(())
                    }
                    (None, None) => {
                        self.disk.remove(&key);
                        Ok(())
                    }
                };
                Input::Persisted { ticket, result }
            }
            Output::Verify { ticket, candidate } => {
                self.verified += 1;
                Input::Verified {
                    ticket,
                    result: candidate.verify(),
                }
            }
            Output::Sign {
                ticket,
                name,
                unsigned,
            } => {
                let result = match self.keys.get(&name) {
                    Some(key) => unsigned.sign(key).map_err(|e| e.to_string()),
                    None => Err("no such key".to_owned()),
                };
                Input::Signed { ticket, result }
            }
            other => panic!("{other:?}"),
        };
        self.core.handle(input, self.now).unwrap();
        self.run();
    }

    /// Answers the oldest of what waits.
    pub fn step(&mut self) -> bool {
        let next = self.waiting.pop_front();
        next.map(|output| self.answer(output)).is_some()
    }

    pub fn pass(&mut self, time: Duration) {
        let until = self.now + time;
        while let Some(due) = self.core.deadline().filter(|due| *due <= until) {
            self.now = self.now.max(due);
            self.core.expire(self.now);
            self.run();
        }
        self.now = until;
    }

    pub fn drain(&mut self) -> Vec<Output> {
        self.out.drain(..).collect()
    }

    pub fn events(&mut self) -> Vec<Event> {
        self.drain()
            .into_iter()
            .filter_map(|output| match output {
                Output::Event(event) => Some(event),
                _ => None,
            })
            .collect()
    }

    pub fn sequence(&self) -> Option<u64> {
        self.core
            .resolve(&name(1), self.now)
            .map(|resolved| resolved.version.sequence)
    }

    pub fn value(&self) -> Option<String> {
        self.core
            .resolve(&name(1), self.now)
            .map(|resolved| String::from_utf8(resolved.version.value).unwrap())
    }

    /// The power goes in the middle: of the rows that were under way, the first few are on the disk and nobody was told, the others are not.
    pub fn cut(&mut self, written: usize) {
        let mut left = written;
        while let Some(output) = self.waiting.pop_front() {
            if let Output::Persist { key, value, .. } = output {
                if left == 0 {
                    break;
                }
                left -= 1;
                match value {
                    Some(value) => self.disk.insert(key, value),
                    None => self.disk.remove(&key),
                };
            }
        }
        self.restart();
    }

    /// The power goes and comes back: what was not durable is gone.
    pub fn restart(&mut self) {
        self.restart_with(self.marks.clone(), false);
    }

    pub fn restart_with(&mut self, marks: BTreeMap<Name, u64>, restored: bool) {
        let (core, damaged) =
            Core::load(self.config.clone(), &self.disk, marks, restored, self.now).unwrap();
        assert_eq!(damaged, []);
        self.core = core;
        self.out.clear();
        self.waiting.clear();
        self.run();
        let keys: Vec<Name> = self.keys.keys().copied().collect();
        for name in keys {
            self.command(Command::Own(name)).unwrap();
        }
    }
}

/// A record of name 1.
pub fn signed(sequence: u64, value: &str, end: &str) -> Vec<u8> {
    Unsigned::new(value, sequence, super::wall(end))
        .sign(&key(1))
        .unwrap()
        .bytes()
        .to_vec()
}

pub fn version(sequence: u64) -> Vec<u8> {
    signed(
        sequence,
        &format!("/ipfs/bafkqaaa/{sequence}"),
        "2027-06-01T00:00:00Z",
    )
}

pub fn peer(number: u8) -> PeerId {
    name(number).peer_id()
}

pub fn never() -> Wall {
    super::wall("2100-01-01T00:00:00Z")
}
