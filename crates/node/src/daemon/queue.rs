//! A queue for threads, bounded by a count. It takes memory for what waits and not for all that could: the standard library's bounded
//! channel keeps a place for each, which are megabytes here.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;

/// The end that hands over.
#[derive(Debug)]
pub(super) struct Sender<T> {
    items: mpsc::Sender<T>,
    waiting: Arc<AtomicUsize>,
    most: usize,
}

/// The end that takes.
#[derive(Debug)]
pub(super) struct Receiver<T> {
    items: mpsc::Receiver<T>,
    waiting: Arc<AtomicUsize>,
}

/// A queue in which at most so many items wait.
#[allow(
    clippy::disallowed_methods,
    reason = "the count beside the channel bounds it"
)]
pub(super) fn bounded<T>(most: usize) -> (Sender<T>, Receiver<T>) {
    let (sender, receiver) = mpsc::channel();
    let waiting = Arc::new(AtomicUsize::new(0));
    let sender = Sender {
        items: sender,
        waiting: Arc::clone(&waiting),
        most,
    };
    let receiver = Receiver {
        items: receiver,
        waiting,
    };
    (sender, receiver)
}

impl<T> Sender<T> {
    /// False: it is full, or nobody takes any more.
    #[must_use]
    pub(super) fn offer(&self, item: T) -> bool {
        // Counted first, so that there are never more.
        if self.waiting.fetch_add(1, Ordering::Relaxed) < self.most && self.items.send(item).is_ok()
        {
            return true;
        }
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        false
    }
}

impl<T> Receiver<T> {
    /// Waits for an item; `None` when no sender is left.
    pub(super) fn wait(&self) -> Option<T> {
        let item = self.items.recv().ok()?;
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        Some(item)
    }

    /// An item, if one is there.
    pub(super) fn take(&self) -> Option<T> {
        let item = self.items.try_recv().ok()?;
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        Some(item)
    }
}

#[cfg(test)]
mod tests {
    use super::bounded;

    #[test]
    fn no_more_wait_than_may_and_what_is_taken_makes_room() {
        let (sender, receiver) = bounded(2);
        assert!(sender.offer(1) && sender.offer(2));
        assert!(!sender.offer(3) && !sender.offer(3));
        assert_eq!(receiver.take(), Some(1));
        assert!(sender.offer(4));
        assert!(!sender.offer(5));
        assert_eq!((receiver.wait(), receiver.wait()), (Some(2), Some(4)));
        assert_eq!(receiver.take(), None);
        drop(sender);
        assert_eq!(receiver.wait(), None);
    }

    #[test]
    fn nothing_is_offered_to_nobody() {
        let (sender, receiver) = bounded(2);
        drop(receiver);
        assert!((0..5).all(|n| !sender.offer(n)));
    }
}
