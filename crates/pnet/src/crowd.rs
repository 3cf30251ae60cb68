//! Driver: who is being set up, and who gives way when they are many.
//!
//! Incoming connections that say nothing hold their places until their time ends, about five seconds, and a host with eight addresses
//! can hold all places there are. So where they are many, whoever takes longer than honest devices do leaves first (T2).

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

/// How often those who stay long look around.
const LOOK: Duration = Duration::from_millis(250);

/// Incoming connections in set-up. Clones count together.
#[derive(Clone, Debug)]
pub struct Crowd {
    most: usize,
    grace: Duration,
    here: Arc<AtomicUsize>,
}

impl Crowd {
    /// While more than `most` are being set up, those who take longer than `grace` are let go. `most` should be about three quarters of
    /// [`Limits::pending_incoming`](crate::Limits), so that some places become free every `grace`; `grace` longer than the handshake
    /// of the slowest device on the worst line.
    pub fn new(most: usize, grace: Duration) -> Self {
        Self {
            most,
            grace,
            here: Arc::default(),
        }
    }

    /// How many are being set up.
    pub fn here(&self) -> usize {
        self.here.load(Ordering::Relaxed)
    }

    pub(crate) fn enter(&self) -> Place {
        self.here.fetch_add(1, Ordering::Relaxed);
        Place(self.clone())
    }
}

impl Default for Crowd {
    /// Fits [`Limits::tablet`](crate::Limits::tablet): twelve, and a second.
    fn default() -> Self {
        Self::new(12, Duration::from_secs(1))
    }
}

/// One of them; gone when it is dropped.
#[derive(Debug)]
pub(crate) struct Place(Crowd);

impl Place {
    /// Ends when this one has to leave.
    pub(crate) async fn gives_way(&self) {
        tokio::time::sleep(self.0.grace).await;
        while self.0.here() <= self.0.most {
            tokio::time::sleep(LOOK).await;
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.here.fetch_sub(1, Ordering::Relaxed);
    }
}
