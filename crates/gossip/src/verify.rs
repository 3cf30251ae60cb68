//! Workers: signatures, and the application's judgement, on threads of their own. Nothing heavy runs on the swarm's task.
//!
//! The queue has no limit of its own: the core lets out at most [`crate::Config::verify_running`] checks,
//! [`crate::Config::own_messages`] signatures and [`crate::Config::validations`] judgements at a time.
//!
//! Signatures come back in the order in which they went, whichever thread was quicker: Kubo drops a message of an author whose number is
//! not above the last, so who sends on in another order loses for others. Judgements come as they are made, a slow one holds up nobody.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;

use futures::task::AtomicWaker;

use libp2p_identity::Keypair;

use crate::core::{Input, PublishId, Ticket};
use crate::error::PublishError;
use crate::handler::lock;
use crate::sequence::{AuthorNumber, ReplayStore, SequenceStore};
use crate::wire::{Keys, Open, SignJob, Tables, VerifyJob, VerifyOutcome};

/// Threads and what they share.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    threads: usize,
    most: usize,
    /// Of the next job whose result keeps its place.
    turn: u64,
    /// Starts a thread.
    spawn: fn(Arc<Shared>) -> io::Result<()>,
}

/// A job, and what the core is told of it.
pub(crate) type Job = Box<dyn FnOnce() -> Done + Send>;

/// What a worker does.
enum Work {
    /// By far the most frequent.
    Check(Ticket, VerifyJob),
    Sign(PublishId, SignJob, Option<Arc<Keypair>>),
    Other(Job),
}

/// A result, and whose turn it has.
type Outcome = (Option<u64>, Option<Done>);

impl Work {
    fn run(self, keys: &mut Keys) -> Done {
        match self {
            Self::Check(ticket, job) => verified(ticket, job.run_with(keys)),
            Self::Sign(publish, job, key) => {
                let result = match &key {
                    Some(key) => job.run(key),
                    None => job.run_keyless(),
                };
                Done::Fact(Input::Signed { publish, result })
            }
            Self::Other(job) => job(),
        }
    }

    /// What the core is told if it panics: it waits for a word, and counts what it let out. A check found nothing out, a signature failed. A
    /// validator that panics has no opinion, its message ends at its deadline.
    fn lost(&self) -> Option<Done> {
        match self {
            Self::Check(ticket, _) => Some(verified(*ticket, VerifyOutcome::Unknown)),
            Self::Sign(publish, ..) => Some(Done::Fact(Input::Signed {
                publish: *publish,
                result: Err(PublishError::Signing("the worker panicked".into())),
            })),
            Self::Other(_) => None,
        }
    }

    fn attempt(self, keys: &mut Keys) -> Option<Done> {
        let lost = self.lost();
        run_or(lost, || self.run(keys))
    }
}

fn run_or(lost: Option<Done>, run: impl FnOnce() -> Done) -> Option<Done> {
    catch_unwind(AssertUnwindSafe(run)).ok().or(lost)
}

fn verified(ticket: Ticket, outcome: VerifyOutcome) -> Done {
    Done::Fact(Input::Verified { ticket, outcome })
}

/// What came of a job.
pub(crate) enum Done {
    /// For the core.
    Fact(Input),
    /// The store of sequence numbers comes back, with what it did.
    Sequence(Box<dyn SequenceStore>, io::Result<Input>),
    /// The store of authors' numbers comes back, with what it could not save.
    Authors(Box<dyn ReplayStore>, Vec<AuthorNumber>),
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    work: Condvar,
    done: Mutex<Finished>,
    waker: AtomicWaker,
    /// Of authors who write much.
    tables: Mutex<Tables>,
}

/// Results on their way back.
#[derive(Default)]
struct Finished {
    ready: Vec<Done>,
    /// Whose turn is next, and those that were quicker.
    turn: u64,
    early: BTreeMap<u64, Option<Done>>,
}

/// What a thread has for itself.
#[derive(Default)]
struct Worker {
    keys: Keys,
    /// Checks whose last step is done together, and where their results go.
    open: Vec<Open>,
    places: Vec<(usize, Ticket)>,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<(Option<u64>, Work)>,
    /// Threads that wait for work, and how many of them were called and have not come yet.
    idle: usize,
    called: usize,
    closed: bool,
}

/// Jobs that a thread takes at a time.
const BATCH: usize = 8;

impl Pool {
    /// At most `most` threads; each is started when there is work for it.
    pub(crate) fn new(most: usize) -> Self {
        Self {
            shared: Arc::default(),
            threads: 0,
            most: most.max(1),
            turn: 0,
            spawn,
        }
    }

    pub(crate) fn set_most(&mut self, most: usize) {
        self.most = most.max(1);
    }

    /// Checks a signature. The result comes behind those of all that were pushed in order before.
    pub(crate) fn check(&mut self, ticket: Ticket, job: VerifyJob) {
        self.enqueue_in_order(Work::Check(ticket, job));
    }

    /// Writes and signs a message. The result comes behind those of all that were pushed in order before.
    pub(crate) fn sign(&mut self, publish: PublishId, job: SignJob, key: Option<Arc<Keypair>>) {
        self.enqueue_in_order(Work::Sign(publish, job, key));
    }

    /// Runs a job whose result comes when it comes.
    pub(crate) fn push(&mut self, job: Job) {
        self.enqueue(None, Work::Other(job));
    }

    fn enqueue_in_order(&mut self, work: Work) {
        let turn = self.turn;
        self.turn += 1;
        self.enqueue(Some(turn), work);
    }

    fn enqueue(&mut self, turn: Option<u64>, work: Work) {
        let mut queue = lock(&self.shared.queue);
        queue.jobs.push_back((turn, work));
        let short = queue.idle < queue.jobs.len().div_ceil(BATCH);
        let call = queue.needs_another(turn.is_none());
        queue.called += usize::from(call);
        drop(queue);
        if short && self.threads < self.most {
            self.start();
        }
        if call {
            self.shared.work.notify_one();
        }
    }

    fn start(&mut self) {
        match (self.spawn)(self.shared.clone()) {
            Ok(()) => self.threads += 1,
            Err(error) => {
                tracing::warn!(%error, "no thread to verify messages on");
                if self.threads == 0 {
                    self.work_here();
                }
            }
        }
    }

    /// There is no thread at all: signatures are dealt with by the caller, slowly, since what is behind them would wait for ever. Judgements of
    /// the application may block, and wait for a thread or their deadline.
    fn work_here(&self) {
        let mut queue = lock(&self.shared.queue);
        let (here, later) = queue.jobs.drain(..).partition(|(turn, _)| turn.is_some());
        queue.jobs = later;
        drop(queue);
        let (here, mut keys): (VecDeque<_>, _) = (here, Keys::default());
        let attempt = |(turn, work): (_, Work)| (turn, work.attempt(&mut keys));
        self.shared
            .finish(&mut here.into_iter().map(attempt).collect());
    }

    /// Runs a job that may block for long on a thread of its own.
    pub(crate) fn run_apart(
        &self,
        job: impl FnOnce() -> Option<Done> + Send + 'static,
    ) -> io::Result<()> {
        let shared = self.shared.clone();
        thread::Builder::new()
            .name("gossip-sequence".into())
            .spawn(move || {
                if let Some(done) = job() {
                    shared.finish(&mut vec![(None, Some(done))]);
                }
            })
            .map(drop)
    }

    /// Bytes of the authors' tables.
    pub(crate) fn tables(&self) -> usize {
        lock(&self.shared.tables).memory()
    }

    /// What was done since the last call.
    pub(crate) fn take(&self) -> Vec<Done> {
        std::mem::take(&mut lock(&self.shared.done).ready)
    }

    /// Who is woken when something was done.
    pub(crate) fn register(&self, waker: &std::task::Waker) {
        self.shared.waker.register(waker);
    }
}

fn spawn(shared: Arc<Shared>) -> io::Result<()> {
    thread::Builder::new()
        .name("gossip-verify".into())
        .spawn(move || shared.run())
        .map(drop)
}

impl Drop for Pool {
    fn drop(&mut self) {
        let mut queue = lock(&self.shared.queue);
        queue.closed = true;
        queue.jobs.clear();
        drop(queue);
        self.shared.work.notify_all();
    }
}

impl Shared {
    fn run(&self) {
        let mut worker = Worker::default();
        while let Some(jobs) = self.next() {
            let mut results = self.run_batch(jobs, &mut worker);
            self.finish(&mut results);
            // What was due is told; nobody waits for this.
            self.make_table(&mut worker);
        }
    }

    fn run_batch(&self, jobs: Vec<(Option<u64>, Work)>, worker: &mut Worker) -> Vec<Outcome> {
        let mut results = Vec::with_capacity(jobs.len());
        for (turn, work) in jobs {
            let opened = match &work {
                Work::Check(ticket, job) => self.open(job, worker).map(|open| (*ticket, open)),
                _ => None,
            };
            let result = match opened {
                Some((ticket, open)) => {
                    worker.open.push(open);
                    worker.places.push((results.len(), ticket));
                    None
                }
                None => work.attempt(&mut worker.keys),
            };
            results.push((turn, result));
        }
        worker.close(&mut results);
        results
    }

    /// Begins a check by the table of its author, if there is one.
    fn open(&self, job: &VerifyJob, worker: &mut Worker) -> Option<Open> {
        let mut tables = lock(&self.tables);
        let table = tables.of(job.message.from());
        worker.keys.set_checks(tables.checks());
        drop(tables);
        let table = table?;
        catch_unwind(AssertUnwindSafe(|| job.open(&table))).ok()?
    }

    /// Makes the table of an author for whom it is worth it.
    fn make_table(&self, worker: &mut Worker) {
        let Some(due) = worker.keys.take_due() else {
            return;
        };
        let making = lock(&self.tables).reserve(due);
        if let Some(making) = making {
            let table = catch_unwind(AssertUnwindSafe(|| making.make()));
            lock(&self.tables).fill(&making, table.ok().flatten());
        }
    }

    fn next(&self) -> Option<Vec<(Option<u64>, Work)>> {
        let mut queue = lock(&self.queue);
        loop {
            if queue.closed {
                return None;
            }
            let take = queue.jobs.len().min(BATCH);
            if take > 0 {
                return Some(queue.jobs.drain(..take).collect());
            }
            queue.idle += 1;
            queue = self
                .work
                .wait(queue)
                .unwrap_or_else(PoisonError::into_inner);
            queue.idle -= 1;
            queue.called = queue.called.saturating_sub(1);
        }
    }

    fn finish(&self, results: &mut Vec<(Option<u64>, Option<Done>)>) {
        let mut done = lock(&self.done);
        let first = done.ready.is_empty();
        for (turn, result) in results.drain(..) {
            match turn {
                Some(turn) => done.in_turn(turn, result),
                None => done.ready.extend(result),
            }
        }
        let wake = first && !done.ready.is_empty();
        drop(done);
        if wake {
            self.waker.wake();
        }
    }
}

impl Queue {
    /// Whether one more thread is to be called. A call is a system call, whether one sleeps or not; and a thread that finds eight checks does them
    /// for less than two that find four. Judgements may block, so each has a thread if there is one.
    fn needs_another(&self, judgement: bool) -> bool {
        self.called < self.idle && (judgement || self.called * BATCH < self.jobs.len())
    }
}

impl Worker {
    /// Does the last step of all checks that were begun by a table.
    fn close(&mut self, results: &mut [Outcome]) {
        if self.open.is_empty() {
            return;
        }
        let open = std::mem::take(&mut self.open);
        let outcomes = catch_unwind(AssertUnwindSafe(|| Open::close(&open))).unwrap_or_default();
        for (n, (place, ticket)) in self.places.drain(..).enumerate() {
            let outcome = outcomes.get(n).copied();
            results[place].1 = Some(verified(ticket, outcome.unwrap_or(VerifyOutcome::Unknown)));
        }
    }
}

impl Finished {
    fn in_turn(&mut self, turn: u64, result: Option<Done>) {
        self.early.insert(turn, result);
        while let Some(result) = self.early.remove(&self.turn) {
            self.turn += 1;
            self.ready.extend(result);
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::message::{RawMessage, Topic};
    use crate::seen::{Seen, SeenConfig};
    use crate::wire::{Author, parse};

    /// Found by two nodes over TCP: eight at a time on two threads came back as 40, 48, 41.
    #[test]
    fn signatures_come_back_in_the_order_in_which_they_went() {
        let numbered = |n| {
            Some(Done::Fact(Input::Signed {
                publish: PublishId(n),
                result: Err(crate::PublishError::NoKey),
            }))
        };
        let shared = Shared::default();
        shared.finish(&mut vec![(Some(2), numbered(2)), (Some(1), None)]);
        assert!(lock(&shared.done).ready.is_empty());
        shared.finish(&mut vec![(None, numbered(9))]);
        shared.finish(&mut vec![(Some(3), numbered(3)), (Some(0), numbered(0))]);
        let order: Vec<_> = std::mem::take(&mut lock(&shared.done).ready)
            .into_iter()
            .map(|done| match done {
                Done::Fact(Input::Signed { publish, .. }) => publish.0,
                _ => u64::MAX,
            })
            .collect();
        assert_eq!(order, [9, 0, 2, 3]);
    }

    /// Sixty-four of them, and nothing was verified any more.
    #[test]
    fn a_check_that_panics_gives_its_slot_back() {
        let check = Work::Check(
            Ticket(7),
            VerifyJob {
                message: some_message(),
            },
        );
        let found = run_or(check.lost(), || panic!("a bug"));
        assert!(matches!(
            found,
            Some(Done::Fact(Input::Verified {
                ticket: Ticket(7),
                outcome: VerifyOutcome::Unknown
            }))
        ));
        assert!(run_or(None, || panic!("a validator's bug")).is_none());
    }

    /// It was told at its deadline only.
    #[test]
    fn a_signature_that_panics_is_told_at_once() {
        let work = Work::Sign(PublishId(7), some_job(), None);
        let told = run_or(work.lost(), || panic!("a bug"));
        assert!(matches!(
            told,
            Some(Done::Fact(Input::Signed {
                publish: PublishId(7),
                result: Err(PublishError::Signing(_))
            }))
        ));
    }

    fn some_job() -> SignJob {
        let digester = Seen::new(SeenConfig::default(), [1; 32]).digester();
        let topic = Topic::new("/gemba/t").unwrap();
        SignJob::new(None, Bytes::from_static(b"data"), topic, digester)
    }

    fn some_message() -> RawMessage {
        some_job().run_keyless().unwrap().message
    }

    fn signed_by(key: &Keypair, number: u64) -> VerifyJob {
        let digester = Seen::new(SeenConfig::default(), [1; 32]).digester();
        let author = Some((Author::new(&key.public()), number));
        let topic = Topic::new("t").unwrap();
        let job = SignJob::new(author, Bytes::from_static(b"data"), topic, digester);
        VerifyJob {
            message: job.run(key).unwrap().message,
        }
    }

    /// Through the workers: an author becomes due, has a table made, and everybody's good and bad signatures come out as they went in, in order.
    #[test]
    fn go_5_checks_by_tables_and_without_come_out_alike_and_in_order() {
        let shared = Shared::default();
        let mut worker = Worker::default();
        let (much, little) = (Keypair::generate_ed25519(), Keypair::generate_ed25519());
        let (mut ticket, mut with_table) = (0, 0);
        for round in 0..40_u64 {
            let mut wanted = Vec::new();
            let mut jobs = Vec::new();
            for n in 0..BATCH as u64 {
                let key = if n == 5 { &little } else { &much };
                let mut job = signed_by(key, round * 8 + n);
                let mut outcome = VerifyOutcome::Good;
                if (round + n) % 6 == 0 {
                    // One that another has signed.
                    let other = signed_by(if n == 5 { &much } else { &little }, 1);
                    let field = job.message.field().to_vec();
                    let at = field.len() - 64;
                    let forged = [&field[..at], other.message.signature()].concat();
                    let start = field.len() - job.message.bytes().len();
                    job.message = parse(forged.into(), start).unwrap();
                    outcome = VerifyOutcome::Bad;
                }
                ticket += 1;
                wanted.push((ticket, outcome));
                jobs.push((Some(ticket), Work::Check(Ticket(ticket), job)));
            }
            let results = shared.run_batch(jobs, &mut worker);
            with_table += usize::from(lock(&shared.tables).memory() > 0);
            shared.make_table(&mut worker);
            let found: Vec<_> = results
                .into_iter()
                .map(|(turn, done)| match done {
                    Some(Done::Fact(Input::Verified { ticket, outcome })) => {
                        assert_eq!(turn, Some(ticket.0));
                        (ticket.0, outcome)
                    }
                    _ => panic!("no verdict"),
                })
                .collect();
            assert_eq!(found, wanted);
        }
        assert!((10..35).contains(&with_table), "{with_table}");
    }

    /// Of a burst each check called a thread: 64 system calls for the work of eight.
    #[test]
    fn a_burst_calls_a_thread_for_each_eight_checks() {
        let mut queue = Queue {
            idle: 4,
            ..Queue::default()
        };
        let mut calls = Vec::new();
        for n in 0..40 {
            let work = Work::Sign(PublishId(n), some_job(), None);
            queue.jobs.push_back((Some(n), work));
            if queue.needs_another(false) {
                queue.called += 1;
                calls.push(n);
            }
        }
        assert_eq!(calls, [0, 8, 16, 24], "the fifth would sleep on");
        queue.called = 1;
        queue.jobs.truncate(2);
        assert!(!queue.needs_another(false) && queue.needs_another(true));
    }

    #[test]
    fn without_a_thread_signatures_are_dealt_with_all_the_same() {
        let mut pool = Pool::new(4);
        pool.spawn = |_| Err(io::Error::other("no more threads"));
        pool.push(Box::new(|| {
            Done::Fact(Input::Validated {
                ticket: Ticket(0),
                verdict: crate::Verdict::Accept,
            })
        }));
        pool.sign(PublishId(1), some_job(), None);
        pool.sign(PublishId(2), some_job(), None);
        assert_eq!(pool.take().len(), 2, "judgements wait for a thread");
        pool.spawn = spawn;
        pool.sign(PublishId(3), some_job(), None);
        let mut rest = 0;
        while rest < 2 {
            rest += pool.take().len();
            thread::yield_now();
        }
    }
}
