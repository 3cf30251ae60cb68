//! Workers that wait for events of a consumer sleep until it has something for them.
//!
//! One task, [`wake`], looks at the consumers that somebody waits for: when the log has changed, when a worker has done something with a consumer, and when
//! something is due by itself (a lease that runs out, a pause that ends). It wakes as many workers as would be given something if they claimed, and
//! nobody else. What a worker gets is decided by its claim, not here.

use std::collections::BTreeMap;
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
    /// Somebody is to look: a worker lay down, or has done something.
    bell: Notify,
}

struct Waiter {
    worker: Worker,
    woken: Arc<Notify>,
    /// Whether it is to be woken: it has claimed in vain, and nobody has woken it since.
    sleeps: bool,
}

impl Waiters {
    /// Workers may be given something that they were not given before.
    pub(super) fn ring(&self) {
        self.bell.notify_one();
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
        self.consumers.waiters().ring();
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
        self.consumers.waiters().ring();
    }
}

impl Consumers {
    /// Wakes the workers that would be given something now. When to look again although nothing happens.
    fn wake_workers(&self) -> Option<Instant> {
        let mut next = None;
        for name in self.waiters().sleeping() {
            let looked = self
                .waiters()
                .wake(&name, |workers| self.ready(&name, workers));
            match looked {
                Ok(()) => {
                    let due = self.deadline(&name);
                    next = next.into_iter().chain(due).min();
                }
                Err(error) => {
                    tracing::debug!(consumer = name, %error, "those who wait for a consumer are woken to be told why it does not go on");
                    let all = |workers: &[Worker]| Ok::<_, ()>((0..workers.len()).collect());
                    let _infallible = self.waiters().wake(&name, all);
                }
            }
        }
        next.map(Instant::from_std)
    }
}

/// Wakes workers until the daemon ends.
pub async fn wake(events: Events, ending: CancellationToken) {
    let consumers = Arc::clone(events.consumers());
    let mut changes = events.changes();
    loop {
        changes.borrow_and_update();
        let is_waited_for = !consumers.waiters().sleeping().is_empty();
        let due = match is_waited_for {
            true => {
                let consumers = Arc::clone(&consumers);
                let looking = tokio::task::spawn_blocking(move || consumers.wake_workers());
                looking.await.ok().flatten()
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
