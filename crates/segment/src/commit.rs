//! Group commit: callers on many threads share one write and one flush. No thread of its own: whoever comes first while nobody
//! flushes does it for all who wait; the others sleep. Who can wait waits a moment for others, so that these have one flush to wait for
//! and not two.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How long a patient item waits for others to share its flush: about as long as a flush of a good disk takes.
const PATIENCE: Duration = Duration::from_micros(300);

/// A queue in front of one resource that is used by one caller at a time, in groups.
///
/// `T` is what a caller brings, `R` what it gets back. Order of groups is order of arrival, and within a group too.
/// The queue holds one item for each thread that waits in [`GroupCommit::submit`], so it is bounded by their number.
#[derive(Debug)]
pub struct GroupCommit<T, R> {
    queue: Mutex<Queue<T, R>>,
    /// Somebody came who is in a hurry.
    hurry: Condvar,
    limit: usize,
}

/// The caller that flushed this group died (panicked) in the middle. What became of the item is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the thread that wrote for this group died in the middle of it")]
pub struct LeaderDied;

#[derive(Debug)]
struct Queue<T, R> {
    waiting: VecDeque<Waiting<T, R>>,
    /// How many of them are in a hurry.
    hurried: usize,
    /// One in a hurry had to wait for a flush since a patient one last waited in vain: only then is it worth waiting.
    contended: bool,
    /// Somebody leads: flushes, or was told to and is about to.
    led: bool,
}

#[derive(Debug)]
struct Waiting<T, R> {
    item: T,
    waiter: Arc<Waiter<R>>,
    patient: bool,
}

#[derive(Debug)]
struct Waiter<R> {
    state: Mutex<State<R>>,
    wake: Condvar,
}

#[derive(Debug)]
enum State<R> {
    Waiting,
    Lead,
    Done(Result<R, LeaderDied>),
}

impl<T, R> GroupCommit<T, R> {
    /// A queue whose groups have at most `limit` items (at least one): bounds the memory of a flush.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        let queue = Queue {
            waiting: VecDeque::new(),
            hurried: 0,
            contended: false,
            led: false,
        };
        Self {
            queue: Mutex::new(queue),
            hurry: Condvar::new(),
            limit: limit.max(1),
        }
    }

    /// Hands in `item` and blocks until a group with it was flushed, by this caller's `flush` or by another one's.
    ///
    /// `flush` gets the items of a group in order and returns one result for each. It runs without any lock of this queue,
    /// and never twice at once.
    ///
    /// # Errors
    /// [`LeaderDied`] if the caller that flushed this item panicked.
    ///
    /// # Panics
    /// If `flush` returns another number of results than it got items.
    pub fn submit(&self, item: T, flush: impl FnOnce(Vec<T>) -> Vec<R>) -> Result<R, LeaderDied> {
        self.hand_in(item, false, flush)
    }

    /// As [`Self::submit`], for work that nobody waits for. While others have to wait for flushes, it waits up to 0.3 ms to share the flush of
    /// the next one, so that this one has not two to wait for.
    ///
    /// # Errors
    /// As [`Self::submit`].
    ///
    /// # Panics
    /// As [`Self::submit`].
    pub fn submit_patiently(
        &self,
        item: T,
        flush: impl FnOnce(Vec<T>) -> Vec<R>,
    ) -> Result<R, LeaderDied> {
        self.hand_in(item, true, flush)
    }

    fn hand_in(
        &self,
        item: T,
        patient: bool,
        flush: impl FnOnce(Vec<T>) -> Vec<R>,
    ) -> Result<R, LeaderDied> {
        let waiter = Arc::new(Waiter {
            state: Mutex::new(State::Waiting),
            wake: Condvar::new(),
        });
        let mut queue = self.lock();
        queue.waiting.push_back(Waiting {
            item,
            waiter: Arc::clone(&waiter),
            patient,
        });
        if !patient {
            queue.hurried += 1;
            queue.contended |= queue.led;
            self.hurry.notify_one();
        }
        let lead = !queue.led;
        queue.led = true;
        drop(queue);
        if !lead && let Some(done) = waiter.wait() {
            return done;
        }
        self.lead(flush);
        match waiter.wait() {
            Some(done) => done,
            // The leader's own item stands first in the queue, so it was in the group that it flushed.
            None => unreachable!("a leader is not told to lead again"),
        }
    }

    /// Items that wait for the next group, for gauges.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.lock().waiting.len()
    }

    fn lead(&self, flush: impl FnOnce(Vec<T>) -> Vec<R>) {
        let mut items = Vec::new();
        let mut group = Vec::new();
        let mut queue = self.lock();
        if queue.hurried == 0 && queue.contended {
            queue = self
                .hurry
                .wait_timeout_while(queue, PATIENCE, |queue| queue.hurried == 0)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
            queue.contended = queue.hurried > 0;
        }
        let count = queue.waiting.len().min(self.limit);
        let taken: Vec<_> = queue.waiting.drain(..count).collect();
        queue.hurried -= taken.iter().filter(|one| !one.patient).count();
        drop(queue);
        for one in taken {
            items.push(one.item);
            group.push(one.waiter);
        }
        let mut led = Led { of: self, group };
        let results = flush(items);
        assert_eq!(results.len(), led.group.len(), "one result for each item");
        for (waiter, result) in led.group.drain(..).zip(results) {
            waiter.tell(State::Done(Ok(result)));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue<T, R>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends a leadership however it ends: nobody is left asleep.
struct Led<'a, T, R> {
    of: &'a GroupCommit<T, R>,
    group: Vec<Arc<Waiter<R>>>,
}

impl<T, R> Drop for Led<'_, T, R> {
    fn drop(&mut self) {
        for waiter in self.group.drain(..) {
            waiter.tell(State::Done(Err(LeaderDied)));
        }
        let mut queue = self.of.lock();
        match queue.waiting.front() {
            Some(next) => next.waiter.tell(State::Lead),
            None => queue.led = false,
        }
    }
}

impl<R> Waiter<R> {
    fn tell(&self, state: State<R>) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = state;
        self.wake.notify_one();
    }

    /// The result, or `None` if this waiter is to lead.
    fn wait(&self) -> Option<Result<R, LeaderDied>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match std::mem::replace(&mut *state, State::Waiting) {
                State::Done(result) => return Some(result),
                State::Lead => return None,
                State::Waiting => {
                    state = self
                        .wake
                        .wait(state)
                        .unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::disallowed_methods)]

    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    use std::sync::{Arc, Barrier};

    use super::*;

    /// Everybody gets the answer to what they brought, flushes never overlap, and there are fewer of them than items.
    #[test]
    fn groups_are_shared_and_never_overlap() {
        let commit = Arc::new(GroupCommit::new(64));
        let busy = Arc::new(AtomicBool::new(false));
        let flushes = Arc::new(AtomicUsize::new(0));
        let start = Arc::new(Barrier::new(8));
        let threads: Vec<_> = (0..8_u64)
            .map(|t| {
                let (commit, busy, flushes, start) = (
                    Arc::clone(&commit),
                    Arc::clone(&busy),
                    Arc::clone(&flushes),
                    Arc::clone(&start),
                );
                std::thread::spawn(move || {
                    start.wait();
                    for i in 0..200 {
                        let item = t << 32 | i;
                        let flush = |items: Vec<u64>| {
                            assert!(!busy.swap(true, Ordering::SeqCst));
                            flushes.fetch_add(1, Ordering::SeqCst);
                            // Long enough for others to queue up behind.
                            std::thread::yield_now();
                            let out = items.iter().map(|i| i + 1).collect();
                            assert!(busy.swap(false, Ordering::SeqCst));
                            out
                        };
                        assert_eq!(commit.submit(item, flush), Ok(item + 1));
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        assert!(flushes.load(Ordering::SeqCst) <= 1600);
        assert_eq!(commit.waiting(), 0);
    }

    /// A group is bounded; what is over waits for the next one, whose leader is woken.
    #[test]
    fn a_group_has_a_limit() {
        let commit = Arc::new(GroupCommit::<u32, usize>::new(2));
        let all_in = Arc::new(Barrier::new(2));
        let (first, gate) = (Arc::clone(&commit), Arc::clone(&all_in));
        let leader = std::thread::spawn(move || {
            first.submit(0, |items| {
                gate.wait();
                vec![items.len(); items.len()]
            })
        });
        while !commit.lock().led || commit.waiting() > 0 {
            std::thread::yield_now();
        }
        let rest: Vec<_> = (1..=4)
            .map(|i| {
                let commit = Arc::clone(&commit);
                std::thread::spawn(move || commit.submit(i, |items| vec![items.len(); items.len()]))
            })
            .collect();
        while commit.waiting() < 4 {
            std::thread::yield_now();
        }
        all_in.wait();
        assert_eq!(leader.join().unwrap(), Ok(1));
        for thread in rest {
            assert_eq!(thread.join().unwrap(), Ok(2));
        }
    }

    /// Who is patient goes with the next one who is not, and alone if nobody comes.
    #[test]
    fn who_is_patient_shares_the_flush_of_who_is_not() {
        let commit = Arc::new(GroupCommit::<u32, usize>::new(8));
        let sizes = |items: Vec<u32>| vec![items.len(); items.len()];
        assert_eq!(commit.submit_patiently(0, sizes), Ok(1));
        // The group of a leader that is held up, then both kinds behind it, the patient one first.
        let gate = Arc::new(Barrier::new(2));
        let (first, held) = (Arc::clone(&commit), Arc::clone(&gate));
        let leader = std::thread::spawn(move || {
            first.submit(0, |items| {
                held.wait();
                vec![items.len(); items.len()]
            })
        });
        while !commit.lock().led || commit.waiting() > 0 {
            std::thread::yield_now();
        }
        let (one, other) = (Arc::clone(&commit), Arc::clone(&commit));
        let patient = std::thread::spawn(move || one.submit_patiently(1, sizes));
        while commit.waiting() < 1 {
            std::thread::yield_now();
        }
        let hurried = std::thread::spawn(move || other.submit(2, sizes));
        while commit.waiting() < 2 {
            std::thread::yield_now();
        }
        gate.wait();
        assert_eq!(leader.join().unwrap(), Ok(1));
        assert_eq!(patient.join().unwrap(), Ok(2));
        assert_eq!(hurried.join().unwrap(), Ok(2));
        assert_eq!((commit.waiting(), commit.lock().hurried), (0, 0));
    }

    /// A leader that panics takes nobody with it: its group is told, later groups go on.
    #[test]
    fn a_dead_leader_leaves_nobody_asleep() {
        let commit = Arc::new(GroupCommit::<u32, u32>::new(8));
        let dying = Arc::clone(&commit);
        let died = std::thread::spawn(move || {
            let _ = dying.submit(1, |_| panic!("planted"));
        })
        .join();
        assert!(died.is_err());
        assert_eq!(commit.submit(2, |items| items), Ok(2));
    }
}
