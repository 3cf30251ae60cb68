//! specs/log-semantics.md, clause by clause, against every way into the log: the crate in this process, the HTTP form and the commands of a real daemon.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use common::{Daemon, Node, until};
use data_encoding::BASE64;
use gemba_log::consume::{Consumer, Receipt, Step, Takeover};
use gemba_log::core::consumer::{Config as ConsumerConfig, ConsumerName, Worker};
use gemba_log::core::dead::{Letters, Record};
use gemba_log::store::{KeyValue as _, MemoryStore, StateStore as _};
use gemba_log::{Config, Headers, Log, MemorySigner, NewEvent, Pattern, StreamName};
use gemba_testkit::Rng;
use gemba_testkit::disk::SimDisk;
use serde_json::{Value, json};

const PRESS: &str = "hall-1/press-7/count";
const OVEN: &str = "hall-1/oven-2/count";
const HALL: &str = "hall-1/#";
/// Longer than a slow disk takes for all acknowledgements of a portion.
const LONG_LEASE_MS: u64 = 60_000;
/// The consumer of most clauses.
const WORK: &str = "work";

/// A way into the log, with whatever holds the log behind it. Payloads are texts without line ends.
trait Binding {
    /// Ends whatever holds the log, without a word, and starts it again.
    fn kill(&mut self);

    /// Appends, one acknowledgement an event; with the number of the first, if the producer numbers them. Or the refusal.
    fn append(
        &mut self,
        stream: &str,
        payloads: &[&str],
        number: Option<u64>,
    ) -> Result<Vec<Place>, String>;

    /// All events that a pattern names, in their order.
    fn read(&mut self, pattern: &str) -> Vec<(Place, String)>;

    /// Works until nothing is left to do, or the worker dies; what it was given, in this order.
    fn work(&mut self, consumer: &str, how: &Work<'_>) -> Vec<String>;

    /// Acknowledges only the event with this payload, the last one that it was given; what it was given. None: there is no form for that.
    fn acknowledge_one(&mut self, consumer: &str, payload: &str) -> Option<Vec<String>>;

    /// Whether a worker could acknowledge what was given to another one meanwhile. None: there is no form for that.
    fn acknowledge_late(&mut self, consumer: &str) -> Option<bool>;

    /// Counts with effect once, and dies in the middle.
    fn count_and_die(&mut self, consumer: &str, moment: usize);

    /// Counts to the end: how many events were counted ever.
    fn count(&mut self, consumer: &str) -> u64;

    fn to_start(&mut self, consumer: &str);

    /// Payload, cause, attempts.
    fn letters(&mut self, consumer: &str) -> Vec<(String, String, u64)>;

    fn retry_letters(&mut self, consumer: &str);
}

/// Epoch, place, stream, and whether it was there before.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    stream: String,
    author: String,
    epoch: u64,
    seq: u64,
    repeated: bool,
}

impl Place {
    /// From an acknowledgement or an event of the API.
    fn of(line: &Value) -> Self {
        let text = |name: &str| line[name].as_str().unwrap().to_owned();
        Self {
            stream: text("stream"),
            author: text("author"),
            epoch: line["epoch"].as_u64().unwrap(),
            seq: line["seq"].as_u64().unwrap(),
            repeated: line["repeated"] == true,
        }
    }

    /// As it is where the event is read.
    fn plain(&self) -> Self {
        Self {
            repeated: false,
            ..self.clone()
        }
    }
}

/// What a worker does.
struct Work<'a> {
    /// It refuses these, with "no good".
    refuses: &'a [&'a str],
    /// It dies when it has this one in its hands, and what holds the log dies with it.
    dies_at: &'a str,
    /// After so many an event is a dead letter. Counts when the consumer is new.
    attempts: u32,
}

const GOOD: Work<'_> = Work {
    refuses: &[],
    dies_at: "-",
    attempts: 5,
};

// The crate, in this process, on a disk that forgets what was not flushed: its death is a power cut.

type Worked = Consumer<Arc<Log>, MemoryStore>;

struct InProcess {
    disk: SimDisk,
    rng: Rng,
    log: Arc<Log>,
    store: MemoryStore,
    consumers: BTreeMap<String, Worked>,
    now: Duration,
}

impl InProcess {
    fn start() -> Self {
        let disk = SimDisk::new(1);
        Self {
            log: Self::open(&disk),
            disk,
            rng: Rng::new(2),
            store: MemoryStore::new(),
            consumers: BTreeMap::new(),
            now: Duration::ZERO,
        }
    }

    fn open(disk: &SimDisk) -> Arc<Log> {
        let config = Config::default().segment_bytes(16 << 10).reserve(0);
        let signer = Arc::new(MemorySigner::from_seed(&[7; 32]));
        let opened = Log::open(Arc::new(disk.clone()), Path::new("/log"), config, signer);
        Arc::new(opened.unwrap().0)
    }

    fn open_consumer(&self, name: &str, attempts: u32, takeover: Takeover) -> Worked {
        let patterns = vec![HALL.parse().unwrap()];
        let mut config = ConsumerConfig::new(ConsumerName::new(name).unwrap(), patterns);
        (config.attempts, config.batch) = (attempts, 8);
        let (log, store) = (Arc::clone(&self.log), self.store.clone());
        let author = log.author();
        Consumer::open(log, store, author, config, takeover, self.now).unwrap()
    }

    fn consumer(&mut self, name: &str, attempts: u32) -> &Worked {
        if !self.consumers.contains_key(name) {
            let opened = self.open_consumer(name, attempts, Takeover::Continue);
            self.consumers.insert(name.to_owned(), opened);
        }
        &self.consumers[name]
    }

    fn dead(&self, consumer: &str) -> Letters {
        let mut letters = Letters::new(1_000);
        let pattern = Pattern::new(&format!("$dead/{consumer}/#")).unwrap();
        for feed in self.log.feeds(&pattern) {
            for event in self.log.read(&feed, 0, 1_000).unwrap() {
                letters.apply(Record::decode(&event.payload).unwrap());
            }
        }
        letters
    }

    /// Takes the next portion; texts and what is kept of it.
    fn take(&mut self, consumer: &str) -> (Vec<(u64, String)>, Receipt) {
        let now = self.now;
        let taken = self.consumer(consumer, 5).take(Worker(1), now).unwrap();
        let taken = taken.expect("something to do");
        let texts = taken.deliveries.iter().map(|delivery| {
            let payload = delivery.event.payload.to_vec();
            (delivery.id.seq, String::from_utf8(payload).unwrap())
        });
        (texts.collect(), taken.receipt)
    }
}

impl Binding for InProcess {
    fn kill(&mut self) {
        self.consumers.clear();
        let after = self.disk.power_cut(&mut self.rng);
        self.log = Self::open(&after);
        self.disk = after;
    }

    fn append(
        &mut self,
        stream: &str,
        payloads: &[&str],
        number: Option<u64>,
    ) -> Result<Vec<Place>, String> {
        let event = |(payload, i): (&&str, u64)| {
            let event = NewEvent::new(0, (*payload).to_owned());
            match number {
                Some(first) => event.with(Headers::default().produced_by("plc", first + i)),
                None => event,
            }
        };
        let events: Vec<NewEvent> = payloads.iter().zip(0..).map(event).collect();
        let name = StreamName::new(stream).map_err(|e| e.to_string())?;
        let done = self.log.append(&name, &events).map_err(|e| e.to_string())?;
        let place = |i: u32| {
            let (epoch, seq) = done.place(i);
            Place {
                stream: stream.to_owned(),
                author: done.feed.author.to_string(),
                epoch: epoch.0,
                seq,
                repeated: done.repeated.iter().any(|one| one.index == i),
            }
        };
        Ok((0..payloads.len() as u32).map(place).collect())
    }

    fn read(&mut self, pattern: &str) -> Vec<(Place, String)> {
        let feeds = self.log.feeds(&Pattern::new(pattern).unwrap());
        let starts: Vec<_> = feeds.into_iter().map(|feed| (feed, 0)).collect();
        let mut merge = self.log.merge(&starts).unwrap();
        let mut found = Vec::new();
        while let Some(batch) = merge.next_batch().unwrap() {
            for event in batch.events() {
                let place = Place {
                    stream: batch.feed().stream.to_string(),
                    author: batch.feed().author.to_string(),
                    epoch: batch.feed().epoch.0,
                    seq: event.seq,
                    repeated: false,
                };
                let text = String::from_utf8(event.payload.to_vec()).unwrap();
                found.push((place, text));
            }
        }
        found
    }

    fn work(&mut self, consumer: &str, how: &Work<'_>) -> Vec<String> {
        let mut given = Vec::new();
        loop {
            let now = self.now;
            let worked = self.consumer(consumer, how.attempts);
            let Some(taken) = worked.take(Worker(1), now).unwrap() else {
                if worked.behind() == 0 && worked.lag().iter().all(|lag| lag.aside == 0) {
                    return given;
                }
                self.now += Duration::from_millis(100);
                continue;
            };
            for delivery in taken.deliveries {
                let text = String::from_utf8(delivery.event.payload.to_vec()).unwrap();
                given.push(text.clone());
                let (worked, seq) = (&self.consumers[consumer], delivery.id.seq);
                if text == how.dies_at {
                    self.kill();
                    return given;
                }
                match how.refuses.contains(&text.as_str()) {
                    true => worked.refuse_event(&taken.receipt, seq, "no good".to_owned(), now),
                    false => worked.acknowledge(&taken.receipt, seq, now),
                }
                .unwrap();
            }
        }
    }

    fn acknowledge_one(&mut self, consumer: &str, payload: &str) -> Option<Vec<String>> {
        let (events, receipt) = self.take(consumer);
        let (seq, _) = events.iter().find(|(_, text)| text == payload).unwrap();
        let consumer = &self.consumers[consumer];
        consumer.acknowledge(&receipt, *seq, self.now).unwrap();
        consumer.leave(Worker(1), self.now).unwrap();
        Some(events.into_iter().map(|(_, text)| text).collect())
    }

    fn acknowledge_late(&mut self, consumer: &str) -> Option<bool> {
        let (events, receipt) = self.take(consumer);
        let other = self.open_consumer(consumer, 5, Takeover::Replace);
        let taken = other.take(Worker(2), self.now).unwrap().unwrap();
        let late = self.consumers[consumer].acknowledge(&receipt, events[0].0, self.now);
        let last = taken.deliveries.last().unwrap().id.seq;
        other.acknowledge(&taken.receipt, last, self.now).unwrap();
        self.consumers.insert(consumer.to_owned(), other);
        Some(late.is_ok())
    }

    fn count_and_die(&mut self, consumer: &str, moment: usize) {
        let (mut left, now) = (moment, self.now);
        let worked = self.consumer(consumer, 5);
        // It dies in the middle of a portion's transaction.
        let died = catch_unwind(AssertUnwindSafe(|| {
            while worked.behind() > 0 {
                let step = worked.step(Worker(1), now, |_, tx| {
                    tx.add(b"count", 1)?;
                    assert!(left > 0, "it dies here, as the test wants it");
                    left -= 1;
                    Ok(())
                });
                step.unwrap();
            }
        }));
        assert!(died.is_err() || worked.behind() == 0);
        self.kill();
    }

    fn count(&mut self, consumer: &str) -> u64 {
        let now = self.now;
        let worked = self.consumer(consumer, 5);
        let step = || {
            worked.step(Worker(1), now, |_, tx| {
                tx.add(b"count", 1)?;
                Ok(())
            })
        };
        while let Step::Worked(_) = step().unwrap() {}
        assert_eq!(worked.behind(), 0);
        worked.store().begin().unwrap().count(b"count").unwrap()
    }

    fn to_start(&mut self, consumer: &str) {
        let now = self.now;
        self.consumer(consumer, 5).seek_start(now).unwrap();
    }

    fn letters(&mut self, consumer: &str) -> Vec<(String, String, u64)> {
        let letters = self.dead(consumer);
        let letter = |letter: &&gemba_log::core::dead::Letter| {
            let payload = letter.payload.as_ref().unwrap().to_vec();
            let text = String::from_utf8(payload).unwrap();
            (text, letter.cause.clone(), u64::from(letter.attempts))
        };
        letters.list(None, 1_000).iter().map(letter).collect()
    }

    fn retry_letters(&mut self, consumer: &str) {
        let letters = self.dead(consumer);
        let now = self.now;
        for letter in letters.list(None, 1_000) {
            let id = letter.id.clone();
            self.consumer(consumer, 5).retry(id, now).unwrap();
        }
    }
}

// The HTTP form: bytes over a socket.

/// A node whose daemon is killed and started again.
struct Running {
    node: Node,
    daemon: Daemon,
}

impl Running {
    fn start() -> Self {
        let node = Node::new();
        let daemon = Daemon::start(&node, &[]);
        Self { node, daemon }
    }

    fn kill(&mut self) {
        self.daemon.child.kill().unwrap();
        self.daemon.child.wait().unwrap();
        self.daemon = Daemon::start(&self.node, &[]);
    }
}

struct Http {
    running: Running,
    /// Each worker is another one, as after a restart.
    workers: u64,
}

fn encoded(name: &str) -> String {
    let of = |byte: u8| match byte {
        b'/' | b'#' | b'+' | b' ' => format!("%{byte:02X}"),
        _ => char::from(byte).to_string(),
    };
    name.bytes().map(of).collect()
}

fn text(event: &Value) -> String {
    let data = BASE64.decode(event["data"].as_str().unwrap().as_bytes());
    String::from_utf8(data.unwrap()).unwrap()
}

impl Http {
    fn start() -> Self {
        Self {
            running: Running::start(),
            workers: 0,
        }
    }

    /// The status, and the lines of the answer.
    fn call(&self, method: &str, path: &str, kind: &str, body: &[u8]) -> (u16, Vec<Value>) {
        let api = std::fs::read(self.running.node.repo.join("api")).unwrap();
        let api: Value = serde_json::from_slice(&api).unwrap();
        let address = api["address"].as_str().unwrap();
        let mut stream = TcpStream::connect(address).unwrap();
        // HTTP/1.0: the body is what comes until the end.
        let head = format!(
            "{method} {path} HTTP/1.0\r\nHost: {address}\r\nAuthorization: Bearer {}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n",
            api["token"].as_str().unwrap(),
            body.len()
        );
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(body).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
        let (_, body) = answer.split_once("\r\n\r\n").unwrap();
        let objects = body.lines().map(|line| serde_json::from_str(line).unwrap());
        (status, objects.collect())
    }

    fn get(&self, path: &str) -> Vec<Value> {
        let (status, lines) = self.call("GET", path, "text/plain", b"");
        assert_eq!(status, 200, "{path}: {lines:?}");
        lines
    }

    fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        let body = body.to_string();
        let (status, mut lines) = self.call("POST", path, "application/json", body.as_bytes());
        (status, lines.remove(0))
    }

    fn to(consumer: &str, what: &str) -> String {
        format!("/v1/consumers/{consumer}/{what}")
    }

    fn claim(&self, consumer: &str, worker: u64, attempts: u32) -> (Value, Vec<Value>) {
        self.claim_for(consumer, worker, attempts, LONG_LEASE_MS)
    }

    fn claim_for(
        &self,
        consumer: &str,
        worker: u64,
        attempts: u32,
        lease_ms: u64,
    ) -> (Value, Vec<Value>) {
        let request = json!({
            "worker": worker, "streams": [HALL], "attempts": attempts, "batch": 8, "lease_ms": lease_ms,
        });
        let (status, claimed) = self.post(&Self::to(consumer, "claim"), &request);
        assert_eq!(status, 200, "{claimed}");
        let events = claimed["events"].as_array().unwrap().clone();
        (claimed, events)
    }

    /// A claim of a worker of its own that gets something.
    fn claim_some(&mut self, consumer: &str, lease_ms: u64) -> (u64, Value, Vec<Value>) {
        self.workers += 1;
        let worker = self.workers;
        let mut claimed = (Value::Null, Vec::new());
        until("there is something to do", || {
            claimed = self.claim_for(consumer, worker, 5, lease_ms);
            !claimed.1.is_empty()
        });
        (worker, claimed.0, claimed.1)
    }

    fn ack(&self, consumer: &str, request: &Value) -> u16 {
        self.post(&Self::to(consumer, "ack"), request).0
    }

    fn leave(&self, consumer: &str, worker: u64) {
        let left = self.post(&Self::to(consumer, "leave"), &json!({"worker": worker}));
        assert_eq!(left.0, 200);
    }

    fn view(&self, consumer: &str) -> Value {
        self.get(&format!("/v1/consumers/{consumer}")).remove(0)
    }

    fn is_drained(&self, consumer: &str) -> bool {
        let view = self.view(consumer);
        let feeds = view["feeds"].as_array().unwrap();
        view["lag"] == 0 && feeds.iter().all(|feed| feed["waiting"] == 0)
    }

    /// Claims, counts into the state, and acknowledges with it; whether there was something.
    fn count_some(&self, consumer: &str, acknowledges: bool) -> bool {
        let (claimed, events) = self.claim(consumer, self.workers, 5);
        let Some(last) = events.last() else {
            return false;
        };
        let total = claimed["state"].as_u64().unwrap_or(0) + events.len() as u64;
        let request = json!({"token": claimed["token"], "seq": last["seq"], "state": total});
        assert!(!acknowledges || self.ack(consumer, &request) == 200);
        true
    }
}

impl Binding for Http {
    fn kill(&mut self) {
        self.running.kill();
    }

    fn append(
        &mut self,
        stream: &str,
        payloads: &[&str],
        number: Option<u64>,
    ) -> Result<Vec<Place>, String> {
        let query = number.map(|n| format!("?producer=plc&producer_seq={n}"));
        let path = format!(
            "/v1/streams/{}/events{}",
            encoded(stream),
            query.unwrap_or_default()
        );
        let body = payloads.join("\n");
        let (status, lines) = self.call("POST", &path, "text/plain", body.as_bytes());
        match lines.iter().find(|line| line["error"].is_object()) {
            Some(failure) => Err(failure["error"]["cause"].as_str().unwrap().to_owned()),
            None => {
                assert_eq!(status, 200);
                Ok(lines.iter().map(Place::of).collect())
            }
        }
    }

    fn read(&mut self, pattern: &str) -> Vec<(Place, String)> {
        let events = self.get(&format!("/v1/streams/{}/events", encoded(pattern)));
        let of = |event: &Value| (Place::of(event), text(event));
        events.iter().map(of).collect()
    }

    fn work(&mut self, consumer: &str, how: &Work<'_>) -> Vec<String> {
        self.workers += 1;
        let worker = self.workers;
        let mut given = Vec::new();
        let mut dies = false;
        until("nothing is left to do", || {
            let (claimed, events) = self.claim(consumer, worker, how.attempts);
            for event in &events {
                let text = text(event);
                given.push(text.clone());
                dies = text == how.dies_at;
                if dies {
                    return true;
                }
                let mut request = json!({"token": claimed["token"], "seq": event["seq"]});
                if how.refuses.contains(&text.as_str()) {
                    request["refused"] = json!("no good");
                }
                assert_eq!(self.ack(consumer, &request), 200);
            }
            events.is_empty() && self.is_drained(consumer)
        });
        match dies {
            true => self.kill(),
            false => self.leave(consumer, worker),
        }
        given
    }

    fn acknowledge_one(&mut self, consumer: &str, payload: &str) -> Option<Vec<String>> {
        let (worker, claimed, events) = self.claim_some(consumer, LONG_LEASE_MS);
        let event = events.iter().find(|event| text(event) == payload).unwrap();
        let request = json!({"token": claimed["token"], "seq": event["seq"]});
        assert_eq!(self.ack(consumer, &request), 200);
        self.leave(consumer, worker);
        Some(events.iter().map(text).collect())
    }

    fn acknowledge_late(&mut self, consumer: &str) -> Option<bool> {
        const SHORT_LEASE_MS: u64 = 500;
        let (_, old, events) = self.claim_some(consumer, SHORT_LEASE_MS);
        // The first one's lease runs out.
        let (worker, mut new, _) = self.claim_some(consumer, SHORT_LEASE_MS);
        let first = events[0]["seq"].clone();
        let late = self.ack(
            consumer,
            &json!({"token": old["token"], "seq": first.clone()}),
        );
        until("the second one acknowledges in time", || {
            let events = new["events"].as_array().unwrap();
            let Some(last) = events.last() else {
                new = self.claim(consumer, worker, 5).0;
                return false;
            };
            let request = json!({"token": new["token"], "seq": last["seq"]});
            let acked = self.ack(consumer, &request) == 200;
            if !acked {
                // On a machine that is busy its lease may have run out, too.
                new = self.claim(consumer, worker, 5).0;
            }
            acked
        });
        self.leave(consumer, worker);
        Some(late == 200)
    }

    fn count_and_die(&mut self, consumer: &str, moment: usize) {
        self.workers += 1;
        for _ in 0..moment / 2 {
            self.count_some(consumer, true);
        }
        // Either between work and acknowledgement or right behind that.
        self.count_some(consumer, moment % 2 == 1);
        self.kill();
    }

    fn count(&mut self, consumer: &str) -> u64 {
        self.workers += 1;
        until("all are counted", || {
            !self.count_some(consumer, true) && self.is_drained(consumer)
        });
        let view = self.view(consumer);
        let feeds = view["feeds"].as_array().unwrap().iter();
        feeds.map(|feed| feed["state"].as_u64().unwrap_or(0)).sum()
    }

    fn to_start(&mut self, consumer: &str) {
        let (status, _) = self.post(&Self::to(consumer, "seek"), &json!({"to": "start"}));
        assert_eq!(status, 200);
    }

    fn letters(&mut self, consumer: &str) -> Vec<(String, String, u64)> {
        let letters = self.get(&Self::to(consumer, "dead"));
        let of = |letter: &Value| {
            let cause = letter["cause"].as_str().unwrap().to_owned();
            (text(letter), cause, letter["attempts"].as_u64().unwrap())
        };
        letters.iter().map(of).collect()
    }

    fn retry_letters(&mut self, consumer: &str) {
        for letter in self.get(&Self::to(consumer, "dead")) {
            let request = json!({"id": letter["id"]});
            let (status, _) = self.post(&Self::to(consumer, "dead/retry"), &request);
            assert_eq!(status, 200);
        }
    }
}

// The commands, with a daemon.

struct Commands(Running);

impl Binding for Commands {
    fn kill(&mut self) {
        self.0.kill();
    }

    fn append(
        &mut self,
        stream: &str,
        payloads: &[&str],
        number: Option<u64>,
    ) -> Result<Vec<Place>, String> {
        let number = number.map(|n| n.to_string());
        let mut args = vec!["log", "append", stream, "--json"];
        if let Some(number) = &number {
            args.extend(["--producer", "plc", "--producer-seq", number]);
        }
        let done = self
            .0
            .node
            .run_with_input(&args, payloads.join("\n").as_bytes());
        if !done.status.success() {
            return Err(done.stderr);
        }
        let lines = done.ok();
        let acks = lines
            .lines()
            .map(|line| Place::of(&serde_json::from_str(line).unwrap()));
        Ok(acks.collect())
    }

    fn read(&mut self, pattern: &str) -> Vec<(Place, String)> {
        let events = self.0.node.lines(&["log", "read", pattern]);
        let of = |event: &Value| (Place::of(event), text(event));
        events.iter().map(of).collect()
    }

    fn work(&mut self, consumer: &str, how: &Work<'_>) -> Vec<String> {
        let given = self.0.node.path("given");
        let _ = std::fs::remove_file(&given);
        let refuses = how.refuses.join("|");
        let script = format!(
            "line=$(cat); echo \"$line\" >> {}; case \"$line\" in {}) kill -9 $PPID; exit 1;; {}) echo no good >&2; exit 3;; esac",
            given.display(),
            how.dies_at,
            if refuses.is_empty() { "--" } else { &refuses },
        );
        let attempts = how.attempts.to_string();
        let args = [
            "log",
            "consume",
            HALL,
            "--consumer",
            consumer,
            "--exec",
            &script,
            "--attempts",
            &attempts,
            "--drain",
        ];
        let done = self.0.node.run(&args);
        let given = std::fs::read_to_string(&given).unwrap_or_default();
        let given: Vec<String> = given.lines().map(str::to_owned).collect();
        match given.iter().any(|text| text == how.dies_at) {
            true => self.kill(),
            false => drop(done.ok()),
        }
        given
    }

    fn acknowledge_one(&mut self, _: &str, _: &str) -> Option<Vec<String>> {
        None
    }

    fn acknowledge_late(&mut self, _: &str) -> Option<bool> {
        None
    }

    fn count_and_die(&mut self, consumer: &str, moment: usize) {
        let args = ["log", "count", HALL, "--consumer", consumer, "--follow"];
        let mut counter = self
            .0
            .node
            .command(&args)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        // Any moment will do: nothing is asserted of it.
        std::thread::sleep(Duration::from_millis(7 * moment as u64));
        counter.kill().unwrap();
        counter.wait().unwrap();
        self.kill();
    }

    fn count(&mut self, consumer: &str) -> u64 {
        let counted = self
            .0
            .node
            .lines(&["log", "count", HALL, "--consumer", consumer]);
        let counts = counted.iter().map(|line| line["count"].as_u64().unwrap());
        counts.sum()
    }

    fn to_start(&mut self, consumer: &str) {
        self.0.node.ok(&["log", "ack", consumer, "--to-start"]);
    }

    fn letters(&mut self, consumer: &str) -> Vec<(String, String, u64)> {
        let letters = self.0.node.lines(&["log", "dead", "ls", consumer]);
        let of = |letter: &Value| {
            let cause = letter["cause"].as_str().unwrap().to_owned();
            (text(letter), cause, letter["attempts"].as_u64().unwrap())
        };
        letters.iter().map(of).collect()
    }

    fn retry_letters(&mut self, consumer: &str) {
        self.0.node.ok(&["log", "dead", "retry", consumer]);
    }
}

// The clauses.

/// Holds a clause against every way in.
fn on_each(clause: impl Fn(&mut dyn Binding)) {
    // What is printed is shown only where the test fails.
    println!("-- the crate");
    clause(&mut InProcess::start());
    println!("-- HTTP");
    clause(&mut Http::start());
    println!("-- the commands");
    clause(&mut Commands(Running::start()));
}

fn texts(events: Vec<(Place, String)>) -> Vec<String> {
    events.into_iter().map(|(_, text)| text).collect()
}

fn sorted(mut texts: Vec<String>) -> Vec<String> {
    texts.sort();
    texts
}

#[test]
fn s3_28_s3_30_ls_1_places_rise_by_one_in_the_order_of_acknowledgements() {
    on_each(|log| {
        let mut expected = Vec::new();
        for round in 0..3 {
            for list in [&["a", "b", "c"][..], &["d"], &["e", "f"]] {
                let acks = log.append(PRESS, list, None).unwrap();
                let texts = list.iter().map(|text| (*text).to_owned());
                expected.extend(acks.into_iter().zip(texts));
            }
            assert_eq!(log.read(PRESS), expected, "round {round}");
            let mut next = BTreeMap::new();
            for (place, _) in &expected {
                let next: &mut u64 = next.entry(place.epoch).or_default();
                assert_eq!(place.seq, *next, "a gap in epoch {}", place.epoch);
                *next += 1;
            }
            log.kill();
        }
    });
}

#[test]
fn s3_28_s3_30_ls_2_many_streams_have_one_order_that_is_the_same_every_time() {
    on_each(|log| {
        for n in 0..6 {
            let (stream, text) = ([PRESS, OVEN][n % 2], n.to_string());
            log.append(stream, &[&text], None).unwrap();
        }
        let order = log.read(HALL);
        // One writer had seen what it wrote before.
        assert_eq!(texts(order.clone()), ["0", "1", "2", "3", "4", "5"]);
        log.kill();
        assert_eq!(log.read(HALL), order);
    });
}

#[test]
fn s3_28_s3_30_ls_3_an_event_has_one_name_for_ever() {
    on_each(|log| {
        let mut named = BTreeMap::new();
        for round in 0..4 {
            for stream in [PRESS, OVEN] {
                let text = format!("{stream} {round}");
                for place in log.append(stream, &[&text, &text], None).unwrap() {
                    let before = named.insert(place, text.clone());
                    assert_eq!(before, None, "a name is given twice");
                }
            }
            log.kill();
        }
        let read: BTreeMap<Place, String> = log.read(HALL).into_iter().collect();
        assert_eq!(read, named);
    });
}

#[test]
fn s3_28_s3_30_ls_4_what_is_sent_again_is_answered_with_its_first_place() {
    on_each(|log| {
        let first = log.append(PRESS, &["a", "b", "c"], Some(10)).unwrap();
        assert!(first.iter().all(|place| !place.repeated));
        for _ in 0..2 {
            let again = log.append(PRESS, &["a", "b", "c"], Some(10)).unwrap();
            let plain: Vec<Place> = again.iter().map(Place::plain).collect();
            assert_eq!(plain, first);
            assert!(again.iter().all(|place| place.repeated));
            log.kill();
        }
        // What is new among them is appended.
        let mixed = log.append(PRESS, &["c", "d"], Some(12)).unwrap();
        assert_eq!((mixed[0].repeated, mixed[1].repeated), (true, false));
        assert_eq!(texts(log.read(PRESS)), ["a", "b", "c", "d"]);
    });
}

#[test]
fn s3_28_s3_30_ls_5_what_was_acknowledged_outlives_every_kill() {
    on_each(|log| {
        let mut acked = BTreeSet::new();
        for round in 0..4 {
            let texts: Vec<String> = (0..20).map(|n| format!("{round} {n}")).collect();
            let list: Vec<&str> = texts.iter().map(String::as_str).collect();
            acked.extend(
                log.append(PRESS, &list, None)
                    .unwrap()
                    .into_iter()
                    .zip(texts),
            );
            log.kill();
        }
        let read: BTreeSet<(Place, String)> = log.read(PRESS).into_iter().collect();
        assert_eq!(read, acked);
    });
}

#[test]
fn s3_28_s3_30_ls_6_a_refused_append_leaves_nothing_and_the_next_goes_on() {
    on_each(|log| {
        log.append(PRESS, &["a"], None).unwrap();
        let large = "x".repeat((512 << 10) + 1);
        for (stream, list) in [(PRESS, &[large.as_str()][..]), ("no name", &["b"])] {
            let refused = log.append(stream, list, None).unwrap_err();
            assert!(!refused.is_empty());
        }
        let next = log.append(PRESS, &["b"], None).unwrap();
        assert_eq!((next[0].epoch, next[0].seq), (0, 1));
        assert_eq!(texts(log.read("#")), ["a", "b"]);
    });
}

#[test]
fn s3_28_s3_30_ls_7_ls_8_what_was_not_acknowledged_comes_again_and_only_that() {
    on_each(|log| {
        log.append(PRESS, &["a", "b", "c", "d"], None).unwrap();
        let dies = Work {
            dies_at: "c",
            ..GOOD
        };
        assert_eq!(log.work(WORK, &dies), ["a", "b", "c"]);
        assert_eq!(log.work(WORK, &GOOD), ["c", "d"]);
        log.kill();
        assert!(log.work(WORK, &GOOD).is_empty());
        log.append(PRESS, &["e"], None).unwrap();
        assert_eq!(log.work(WORK, &GOOD), ["e"]);
    });
}

#[test]
fn s3_28_s3_30_ls_9_one_acknowledgement_is_for_all_before_it() {
    on_each(|log| {
        log.append(PRESS, &["a", "b", "c", "d"], None).unwrap();
        let Some(given) = log.acknowledge_one(WORK, "c") else {
            return;
        };
        assert_eq!(given[..3], ["a", "b", "c"]);
        assert_eq!(log.work(WORK, &GOOD), ["d"]);
    });
}

#[test]
fn s3_28_s3_30_ls_10_an_effect_kept_with_the_acknowledgement_is_there_once() {
    on_each(|log| {
        let mut all = 0;
        for moment in [1, 12, 4, 7, 2] {
            let texts: Vec<String> = (0..20).map(|n| n.to_string()).collect();
            let list: Vec<&str> = texts.iter().map(String::as_str).collect();
            for stream in [PRESS, OVEN] {
                all += log.append(stream, &list, None).unwrap().len() as u64;
            }
            log.count_and_die("total", moment);
        }
        assert_eq!(log.count("total"), all);
        log.kill();
        assert_eq!(log.count("total"), all);
    });
}

#[test]
fn s3_28_s3_30_ls_11_a_later_consumer_begins_with_the_first_event() {
    on_each(|log| {
        log.append(PRESS, &["a", "b"], None).unwrap();
        assert_eq!(log.work("early", &GOOD), ["a", "b"]);
        log.append(PRESS, &["c"], None).unwrap();
        assert_eq!(log.work("late", &GOOD), ["a", "b", "c"]);
        assert_eq!(log.work("early", &GOOD), ["c"]);
    });
}

#[test]
fn s3_28_s3_30_ls_12_a_consumer_that_is_moved_is_given_what_follows() {
    on_each(|log| {
        log.append(PRESS, &["a", "b"], None).unwrap();
        assert_eq!(log.work(WORK, &GOOD), ["a", "b"]);
        assert!(log.work(WORK, &GOOD).is_empty());
        log.to_start(WORK);
        assert_eq!(log.work(WORK, &GOOD), ["a", "b"]);
    });
}

#[test]
fn s3_28_s3_30_ls_13_a_claim_that_is_over_acknowledges_nothing() {
    on_each(|log| {
        log.append(PRESS, &["a", "b"], None).unwrap();
        let Some(could) = log.acknowledge_late(WORK) else {
            return;
        };
        assert!(!could, "two workers acknowledged the same event");
        // The second one did it, and it stays done.
        assert!(!log.work(WORK, &GOOD).contains(&"a".to_owned()));
    });
}

#[test]
fn s3_28_s3_30_ls_14_ls_15_what_is_refused_comes_again_is_set_aside_and_can_be_retried() {
    on_each(|log| {
        log.append(PRESS, &["a", "bad", "b"], None).unwrap();
        let refuses = Work {
            refuses: &["bad"],
            attempts: 2,
            ..GOOD
        };
        let given = log.work(WORK, &refuses);
        assert_eq!(sorted(given.clone()), ["a", "b", "bad", "bad"]);
        let at = |text: &str| given.iter().rposition(|given| given == text);
        assert!(at("b") < at("bad"), "the others go on meanwhile: {given:?}");
        let letters = log.letters(WORK);
        assert_eq!(letters.len(), 1, "{letters:?}");
        let (text, cause, attempts) = &letters[0];
        assert_eq!((text.as_str(), *attempts), ("bad", 2));
        assert!(cause.contains("no good"), "{cause}");
        log.kill();
        log.retry_letters(WORK);
        assert_eq!(log.work(WORK, &GOOD), ["bad"]);
        assert!(log.letters(WORK).is_empty());
    });
}

/// The page and this suite have the same clauses.
#[test]
fn s3_28_s3_30_every_clause_of_the_page_is_held_by_a_test() {
    let page = include_str!("../../../specs/log-semantics.md");
    let clauses: Vec<u32> = page
        .split("**LS-")
        .skip(1)
        .map(|rest| rest.split("**").next().unwrap().parse().unwrap())
        .collect();
    assert_eq!(clauses, (1..=15).collect::<Vec<u32>>());
    let tests = include_str!("log_conformance.rs");
    for clause in clauses {
        let is_held =
            |line: &str| line.starts_with("fn s3_28") && line.contains(&format!("ls_{clause}_"));
        assert!(tests.lines().any(is_held), "LS-{clause} is held by no test");
    }
}
