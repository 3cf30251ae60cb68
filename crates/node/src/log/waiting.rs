//! Workers that wait for events of a consumer sleep until it has something for them.
//!
//! One task, [`wake`], looks at the consumers that somebody waits for: when the log has changed in streams that they read, when a worker has done something with
//! them, and when something of theirs is due by itself (a lease that runs out, a pause that ends). An event costs nothing for those who read other streams. It
//! wakes as many workers as would be given something if they claimed, and nobody else. What a worker gets is decided by its claim, not here.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use gemba_log::core::consumer::Worker;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Events;
use super::consumers::Consumers;

/// A worker that was woken and got nothing, since another one was faster, rests so long before it is woken again: nobody turns in a circle.
const REST: Duration = Duration::from_millis(20);

/// Who waits for events, by consumer: as many as there are requests that wait.
#[derive(Default)]
pub(super) struct Waiters {
    waiters: Mutex<BTreeMap<String, Vec<Waiter>>>,
    /// Consumers that are to be looked at, of those that somebody waits for: a worker lay down, or has done something.
    rung: Mutex<BTreeSet<String>>,
    bell: Notify,
}

struct Waiter {
    worker: Worker,
    woken: Arc<Notify>,
    /// Whether it is to be woken: it has claimed in vain, and nobody has woken it since.
    sleeps: bool,
}

impl Waiters {
    /// Workers of a consumer may be given something that they were not given before.
    pub(super) fn ring(&self, name: &str) {
        // Whoever comes to wait rings himself when he lies down.
        if self.lock().contains_key(name) {
            self.rung().insert(name.to_owned());
            self.bell.notify_one();
        }
    }

    fn rung(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.rung.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many wait for events of a consumer, those that are about to claim among them.
    pub(super) fn count(&self, name: &str) -> usize {
        self.lock().get(name).map_or(0, Vec::len)
    }

    /// The consumers of which workers sleep.
    fn sleeping(&self) -> Vec<String> {
        let waiters = self.lock();
        let sleeping = waiters
            .iter()
            .filter(|(_, waiters)| waiters.iter().any(|waiter| waiter.sleeps));
        sleeping.map(|(name, _)| name.clone()).collect()
    }

    /// Wakes those of a consumer's workers that `which` chooses from all that sleep.
    fn wake<E>(
        &self,
        name: &str,
        which: impl FnOnce(&[Worker]) -> Result<Vec<usize>, E>,
    ) -> Result<(), E> {
        let sleeping: Vec<(Worker, Arc<Notify>)> = {
            let waiters = self.lock();
            let all = waiters.get(name).into_iter().flatten();
            let asleep = all.filter(|waiter| waiter.sleeps);
            asleep
                .map(|waiter| (waiter.worker, Arc::clone(&waiter.woken)))
                .collect()
        };
        let workers: Vec<Worker> = sleeping.iter().map(|(worker, _)| *worker).collect();
        // It may read the disk: nobody who comes or goes waits for that.
        let chosen = which(&workers)?;
        let mut waiters = self.lock();
        for at in chosen {
            let woken = &sleeping[at].1;
            let mut all = waiters.get_mut(name).into_iter().flatten();
            // Whoever has left meanwhile is no longer in the list; another look follows, and chooses another one.
            if let Some(waiter) = all.find(|waiter| Arc::ptr_eq(&waiter.woken, woken)) {
                waiter.sleeps = false;
                woken.notify_one();
            }
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Vec<Waiter>>> {
        self.waiters.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A worker waits for events of a consumer, until this is dropped.
pub struct Waiting {
    consumers: Arc<Consumers>,
    name: String,
    woken: Arc<Notify>,
    was_woken: bool,
}

impl Waiting {
    pub(super) fn new(consumers: Arc<Consumers>, name: &str, worker: Worker) -> Self {
        let woken = Arc::new(Notify::new());
        let waiter = Waiter {
            worker,
            woken: Arc::clone(&woken),
            sleeps: false,
        };
        let mut waiters = consumers.waiters().lock();
        waiters.entry(name.to_owned()).or_default().push(waiter);
        drop(waiters);
        Self {
            consumers,
            name: name.to_owned(),
            woken,
            was_woken: false,
        }
    }

    /// Returns when it is worth while to claim again. Called after a claim that gave nothing.
    pub async fn woken(&mut self) {
        if std::mem::replace(&mut self.was_woken, true) {
            tokio::time::sleep(REST).await;
        }
        self.change(|waiter| waiter.sleeps = true);
        // What came between the claim and this is seen by the look that follows.
        self.consumers.waiters().ring(&self.name);
        self.woken.notified().await;
    }

    fn change(&self, change: impl FnOnce(&mut Waiter)) {
        let mut waiters = self.consumers.waiters().lock();
        let mut all = waiters.get_mut(&self.name).into_iter().flatten();
        if let Some(waiter) = all.find(|waiter| Arc::ptr_eq(&waiter.woken, &self.woken)) {
            change(waiter);
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut waiters = self.consumers.waiters().lock();
        if let Some(all) = waiters.get_mut(&self.name) {
            all.retain(|waiter| !Arc::ptr_eq(&waiter.woken, &self.woken));
            if all.is_empty() {
                waiters.remove(&self.name);
            }
        }
        drop(waiters);
        // It may have been woken for what it does not take any more.
        self.consumers.waiters().ring(&self.name);
    }
}

/// What was seen at the last look.
#[derive(Default)]
struct Seen {
    /// Which changes of the log, as it counts them.
    mark: u64,
    /// When consumers may have something to do although nothing happens.
    due: BTreeMap<String, Instant>,
}

impl Consumers {
    /// The consumers with workers that sleep for which something may have changed since the last look.
    fn concerned(&self, seen: &mut Seen) -> Vec<String> {
        let rung = std::mem::take(&mut *self.waiters().rung());
        let (mark, changed) = self.feeds_since(seen.mark);
        seen.mark = mark;
        let mut names = self.waiters().sleeping();
        seen.due.retain(|name, _| names.binary_search(name).is_ok());
        let now = Instant::now();
        names.retain(|name| {
            let is_due = seen.due.get(name).is_some_and(|due| *due <= now);
            is_due || rung.contains(name) || self.hears(name, &changed)
        });
        names
    }

    /// Wakes the workers that would be given something now. When to look again although nothing happens.
    fn wake_workers(&self, seen: &mut Seen) -> Option<Instant> {
        for name in self.concerned(seen) {
            seen.due.remove(&name);
            let looked = self
                .waiters()
                .wake(&name, |workers| self.ready(&name, workers));
            match looked {
                Ok(()) => {
                    if let Some(due) = self.deadline(&name) {
                        seen.due.insert(name, Instant::from_std(due));
                    }
                }
                Err(error) => {
                    tracing::debug!(consumer = name, %error, "those who wait for a consumer are woken to be told why it does not go on");
                    let all = |workers: &[Worker]| Ok::<_, ()>((0..workers.len()).collect());
                    let _infallible = self.waiters().wake(&name, all);
                }
            }
        }
        seen.due.values().min().copied()
    }
}

/// Wakes workers until the daemon ends.
pub async fn wake(events: Events, ending: CancellationToken) {
    let consumers = Arc::clone(events.consumers());
    let mut changes = events.changes();
    let mut seen = Seen::default();
    loop {
        changes.borrow_and_update();
        let is_waited_for = !consumers.waiters().sleeping().is_empty();
        let due = match is_waited_for {
            true => {
                let consumers = Arc::clone(&consumers);
                let mut at = std::mem::take(&mut seen);
                let looking = tokio::task::spawn_blocking(move || {
                    let due = consumers.wake_workers(&mut at);
                    (at, due)
                });
                // After a mistake in it all are looked at.
                let (at, due) = looking.await.unwrap_or_default();
                seen = at;
                due
            }
            false => None,
        };
        let at_deadline = async {
            match due {
                Some(due) => tokio::time::sleep_until(due).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = ending.cancelled() => return,
            () = consumers.waiters().bell.notified() => {}
            Ok(()) = changes.changed(), if is_waited_for => {}
            () = at_deadline => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::tests::{append, claim_of, open};

    /// An event concerns those who read its stream, and nobody else is looked at for it; so does a call of another worker of theirs, and what is due.
    #[test]
    fn s3_29_an_event_concerns_those_who_read_its_stream() {
        let dir = tempfile::tempdir().unwrap();
        let events = open(dir.path(), gemba_log::Config::default());
        let consumers = events.consumers();
        let mut waiting = Vec::new();
        for (name, stream) in [
            ("hall", "hall/#"),
            ("other", "other/#"),
            ("third", "third/#"),
        ] {
            assert!(claim_of(&events, name, stream).events.is_empty());
            let waits = consumers.waits(name, Worker(2).0);
            waits.change(|waiter| waiter.sleeps = true);
            waiting.push(waits);
        }
        let mut seen = Seen::default();
        let mut concerned = |events: &Events| events.consumers().concerned(&mut seen);
        // The first look hears of all that is there.
        concerned(&events);
        assert!(concerned(&events).is_empty());
        append(&events, "hall/x", [b"1".to_vec()]);
        assert_eq!(concerned(&events), ["hall"]);
        assert!(concerned(&events).is_empty());
        consumers.leave("other", 1).unwrap();
        append(&events, "nobody/x", [b"1".to_vec()]);
        assert_eq!(concerned(&events), ["other"]);
        let now = Instant::now();
        seen.due.insert("third".to_owned(), now);
        assert_eq!(consumers.concerned(&mut seen), ["third"]);
    }
}
