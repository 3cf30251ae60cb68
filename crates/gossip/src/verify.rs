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

use crate::core::{Input, Ticket};
use crate::handler::lock;
use crate::sequence::{AuthorNumber, ReplayStore, SequenceStore};
use crate::wire::{Keys, VerifyJob, VerifyOutcome};

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
    Other(Job),
}

impl Work {
    fn run(self, keys: &mut Keys) -> Done {
        match self {
            Self::Check(ticket, job) => {
                let outcome = job.run_with(keys);
                Done::Fact(Input::Verified { ticket, outcome })
            }
            Self::Other(job) => job(),
        }
    }

    /// Runs it. A check that panics found nothing out: the core, which lets out so many at a time, waits for its word. A validator that panics
    /// has no opinion, its message ends at its deadline.
    fn attempt(self, keys: &mut Keys) -> Option<Done> {
        let ticket = match &self {
            Self::Check(ticket, _) => Some(*ticket),
            Self::Other(_) => None,
        };
        result_or_unknown(ticket, || self.run(keys))
    }
}

fn result_or_unknown(check: Option<Ticket>, run: impl FnOnce() -> Done) -> Option<Done> {
    catch_unwind(AssertUnwindSafe(run)).ok().or_else(|| {
        let outcome = VerifyOutcome::Unknown;
        check.map(|ticket| Done::Fact(Input::Verified { ticket, outcome }))
    })
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
}

/// Results on their way back.
#[derive(Default)]
struct Finished {
    ready: Vec<Done>,
    /// Whose turn is next, and those that were quicker.
    turn: u64,
    early: BTreeMap<u64, Option<Done>>,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<(Option<u64>, Work)>,
    idle: usize,
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

    /// Runs a job whose result comes behind those of all that were pushed so before.
    pub(crate) fn push_in_order(&mut self, job: Job) {
        self.enqueue_in_order(Work::Other(job));
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
        let idle = queue.idle;
        let short = idle < queue.jobs.len().div_ceil(BATCH);
        drop(queue);
        if short && self.threads < self.most {
            self.start();
        }
        // A word to nobody is a system call all the same.
        if idle > 0 {
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
        let (mut done, mut keys) = (Vec::with_capacity(BATCH), Keys::default());
        while let Some(jobs) = self.next() {
            for (turn, work) in jobs {
                done.push((turn, work.attempt(&mut keys)));
            }
            self.finish(&mut done);
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
    use super::*;
    use crate::core::PublishId;

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
        let found = result_or_unknown(Some(Ticket(7)), || panic!("a bug"));
        assert!(matches!(
            found,
            Some(Done::Fact(Input::Verified {
                ticket: Ticket(7),
                outcome: VerifyOutcome::Unknown
            }))
        ));
        assert!(result_or_unknown(None, || panic!("a validator's bug")).is_none());
    }

    #[test]
    fn without_a_thread_signatures_are_dealt_with_all_the_same() {
        let mut pool = Pool::new(4);
        pool.spawn = |_| Err(io::Error::other("no more threads"));
        let signed = |n| -> Job {
            Box::new(move || {
                Done::Fact(Input::Signed {
                    publish: PublishId(n),
                    result: Err(crate::PublishError::NoKey),
                })
            })
        };
        pool.push(signed(0));
        pool.push_in_order(signed(1));
        pool.push_in_order(signed(2));
        assert_eq!(pool.take().len(), 2, "judgements wait for a thread");
        pool.spawn = spawn;
        pool.push_in_order(signed(3));
        let mut rest = 0;
        while rest < 2 {
            rest += pool.take().len();
            thread::yield_now();
        }
    }
}
