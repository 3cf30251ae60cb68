//! Receive memory: what one connection may hold, and what all connections together may.
//!
//! The length of a message is known before its bytes come, so its memory is taken as a whole or waited for; meanwhile the muxer's
//! window tells the sender to wait. Small messages (wantlists, presences) always pass within a connection's floor. Large ones carry
//! blocks: as much as a peer can owe of those that it was asked for draws on the pool of the node, all else on a small part of it, so
//! that nobody keeps out what was asked for (EX-23).

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Waker};

use super::shared::lock;

/// What every connection may hold without asking the pool, in bytes: many wantlists, or a Kubo's response of 16 KiB a few times.
const FLOOR: usize = 64 * 1024;
/// Strangers get this part of the pool.
const STRANGERS: usize = 4;

/// Receive memory of the node beyond the connections' floors.
#[derive(Debug)]
pub(crate) struct Pool {
    asked: Part,
    strangers: Part,
}

#[derive(Debug)]
struct Part {
    limit: usize,
    used: AtomicUsize,
    /// Somebody waits. Set before `used` is looked at once more, and looked at after `used` was lowered: in one total order (`SeqCst`), or
    /// each side could miss the other on a machine that lets a load pass a store.
    contended: AtomicBool,
    /// Streams that wait, each once.
    wakers: Mutex<Vec<Waker>>,
}

/// Where the bytes of a share are accounted besides their connection.
#[derive(Clone, Copy, Debug)]
enum From {
    Floor,
    Asked,
    Strangers,
}

impl Pool {
    pub(crate) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self {
            asked: Part::new(limit),
            strangers: Part::new(limit / STRANGERS),
        })
    }

    /// Bytes taken beyond the floors.
    pub(crate) fn used(&self) -> usize {
        self.asked.used() + self.strangers.used()
    }

    fn part(&self, from: From) -> Option<&Part> {
        match from {
            From::Floor => None,
            From::Asked => Some(&self.asked),
            From::Strangers => Some(&self.strangers),
        }
    }
}

impl Part {
    fn new(limit: usize) -> Self {
        Self {
            limit,
            used: AtomicUsize::new(0),
            contended: AtomicBool::new(false),
            wakers: Mutex::default(),
        }
    }

    fn used(&self) -> usize {
        self.used.load(Ordering::SeqCst)
    }

    /// Somebody waits for memory: what does not come forward should be given up.
    fn is_contended(&self) -> bool {
        self.contended.load(Ordering::SeqCst)
    }

    /// One message is always let through.
    fn take(&self, bytes: usize) -> bool {
        let fits = |used| (used == 0 || used + bytes <= self.limit).then_some(used + bytes);
        self.used
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, fits)
            .is_ok()
    }

    /// To be woken when some comes back. Look once more afterwards.
    fn wait(&self, waker: &Waker) {
        let mut wakers = lock(&self.wakers);
        self.contended.store(true, Ordering::SeqCst);
        remember(&mut wakers, waker);
    }

    fn give_back(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Ordering::SeqCst);
        if !self.is_contended() {
            return;
        }
        let woken = {
            let mut wakers = lock(&self.wakers);
            self.contended.store(false, Ordering::SeqCst);
            std::mem::take(&mut *wakers)
        };
        woken.into_iter().for_each(Waker::wake);
    }
}

/// What the receive memory of all connections to one peer knows of it.
#[derive(Debug, Default)]
pub(crate) struct Account {
    /// Bytes that the blocks which it was asked for may have.
    owed: AtomicUsize,
    /// Bytes that it holds on the strength of that.
    drawn: AtomicUsize,
    /// Its streams that wait, each once: every inbound stream has a waker of its own, and who is not woken waits for ever. At most as many as
    /// there are inbound streams: one that waits goes on only after it was woken.
    wakers: Mutex<Vec<Waker>>,
}

impl Account {
    /// Tells how many bytes the blocks may have that the peer was asked for.
    pub(crate) fn set_owed(&self, bytes: usize) {
        if self.owed.swap(bytes, Ordering::SeqCst) != bytes {
            self.wake_all();
        }
    }

    /// Draws on what is owed. What stands in a message beside its blocks is paid with another floor.
    fn draw(&self, bytes: usize) -> bool {
        let most = match self.owed.load(Ordering::SeqCst) {
            0 => return false,
            owed => owed + FLOOR,
        };
        let fits = |drawn| (drawn + bytes <= most).then_some(drawn + bytes);
        self.drawn
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, fits)
            .is_ok()
    }

    fn give_back(&self, bytes: usize) {
        self.drawn.fetch_sub(bytes, Ordering::SeqCst);
    }

    /// To be woken when a share of the peer comes back, or it owes more or less. Look once more afterwards.
    fn wait(&self, waker: &Waker) {
        remember(&mut lock(&self.wakers), waker);
    }

    fn wake_all(&self) {
        let woken = std::mem::take(&mut *lock(&self.wakers));
        woken.into_iter().for_each(Waker::wake);
    }
}

fn remember(wakers: &mut Vec<Waker>, waker: &Waker) {
    if !wakers.iter().any(|w| w.will_wake(waker)) {
        wakers.push(waker.clone());
    }
}

/// Receive memory of one connection. A share comes back when its message was processed.
#[derive(Debug)]
pub(crate) struct Budget {
    limit: usize,
    used: AtomicUsize,
    /// Bytes of messages that came on the connection.
    arrived: AtomicU64,
    pool: Arc<Pool>,
    account: Arc<Account>,
}

/// Whose memory does not suffice.
#[derive(Debug)]
enum Lack {
    Connection,
    Pool(From),
}

impl Budget {
    pub(crate) fn new(limit: usize, pool: Arc<Pool>, account: Arc<Account>) -> Arc<Self> {
        Arc::new(Self {
            limit,
            used: AtomicUsize::new(0),
            arrived: AtomicU64::new(0),
            pool,
            account,
        })
    }

    /// Takes `bytes`. One message is always let through. `None` registers to be woken when there may be room.
    pub(crate) fn take(self: &Arc<Self>, bytes: usize, cx: &Context<'_>) -> Option<Share> {
        if let Ok(share) = self.try_take(bytes) {
            return Some(share);
        }
        self.account.wait(cx.waker());
        // A share may have come back in between.
        let from = match self.try_take(bytes) {
            Ok(share) => return Some(share),
            Err(Lack::Connection) => return None,
            Err(Lack::Pool(from)) => from,
        };
        if let Some(part) = self.pool.part(from) {
            part.wait(cx.waker());
        }
        self.try_take(bytes).ok()
    }

    fn try_take(self: &Arc<Self>, bytes: usize) -> Result<Share, Lack> {
        let used = self.used.load(Ordering::SeqCst);
        if used > 0 && used + bytes > self.limit {
            return Err(Lack::Connection);
        }
        let from = match used + bytes <= FLOOR {
            true => From::Floor,
            false if self.account.draw(bytes) => From::Asked,
            false => From::Strangers,
        };
        if self.pool.part(from).is_some_and(|part| !part.take(bytes)) {
            if let From::Asked = from {
                self.account.give_back(bytes);
            }
            return Err(Lack::Pool(from));
        }
        // Only the connection's own task takes, so the sum cannot have grown in between.
        self.used.fetch_add(bytes, Ordering::SeqCst);
        Ok(Share {
            budget: self.clone(),
            bytes,
            from,
        })
    }
}

/// A part of a [`Budget`], given back on drop.
pub(crate) struct Share {
    budget: Arc<Budget>,
    bytes: usize,
    from: From,
}

impl Share {
    /// Others wait for memory of the kind that this one holds.
    pub(crate) fn is_contended(&self) -> bool {
        let part = self.budget.pool.part(self.from);
        part.is_some_and(Part::is_contended)
    }

    /// Bytes of the message came.
    pub(crate) fn arrived(&self, bytes: usize) {
        self.budget
            .arrived
            .fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Bytes of messages that came on the connection since it began.
    pub(crate) fn arrived_in_all(&self) -> u64 {
        self.budget.arrived.load(Ordering::Relaxed)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let budget = &self.budget;
        budget.used.fetch_sub(self.bytes, Ordering::SeqCst);
        if let From::Asked = self.from {
            budget.account.give_back(self.bytes);
        }
        if let Some(part) = budget.pool.part(self.from) {
            part.give_back(self.bytes);
        }
        budget.account.wake_all();
    }
}

impl std::fmt::Debug for Share {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Share({})", self.bytes)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::pin::Pin;
    use std::sync::atomic::AtomicU32;
    use std::task::{Poll, Wake};

    use futures::Stream;
    use futures::stream::{SelectAll, StreamExt};

    use super::*;

    fn cx() -> Context<'static> {
        Context::from_waker(futures::task::noop_waker_ref())
    }

    const MIB: usize = 1 << 20;

    fn budget(pool: &Arc<Pool>, owed: usize) -> Arc<Budget> {
        let account = Arc::<Account>::default();
        account.set_owed(owed);
        Budget::new(8 * MIB, pool.clone(), account)
    }

    /// Threat X1: 500 peers that each send the most they may hold together no more than pool and floors.
    #[test]
    fn x1_many_connections_share_one_pool() {
        let pool = Pool::new(32 * MIB);
        let mut shares = Vec::new();
        for peer in 0..500 {
            let budget = budget(&pool, peer % 2 * 16 * MIB);
            shares.extend(budget.take(FLOOR, &cx()));
            for _ in 0..4 {
                shares.extend(budget.take(4 * MIB, &cx()));
            }
        }
        let held: usize = shares.iter().map(|s| s.bytes).sum();
        assert!(held <= 32 * MIB + 8 * MIB + 500 * FLOOR, "{held}");
        assert_eq!(pool.used(), held - 500 * FLOOR);
        assert!(pool.asked.is_contended() && pool.strangers.is_contended());
        shares.clear();
        assert_eq!(pool.used(), 0);
        assert!(!pool.asked.is_contended() && !pool.strangers.is_contended());
    }

    #[test]
    fn x1_strangers_do_not_keep_out_what_was_asked_for() {
        let pool = Pool::new(32 * MIB);
        let strangers: Vec<_> = (0..100)
            .filter_map(|_| budget(&pool, 0).take(4 * MIB, &cx()))
            .collect();
        assert_eq!(strangers.len(), 2);
        let asked = budget(&pool, 4 * MIB).take(4 * MIB, &cx()).unwrap();
        // Nor do those of them that wait hurry it.
        assert!(strangers[0].is_contended() && !asked.is_contended());
    }

    /// EX-23: who owes a block draws on the pool with no more than a block.
    #[test]
    fn x1_a_peer_draws_on_the_pool_with_what_it_owes() {
        let pool = Pool::new(32 * MIB);
        let many: Vec<_> = (0..100)
            .filter_map(|_| budget(&pool, 2 * MIB).take(4 * MIB, &cx()))
            .collect();
        assert_eq!(many.len(), 2, "as strangers");
        let owing = budget(&pool, 2 * MIB);
        let block = owing.take(2 * MIB + 100, &cx()).unwrap();
        assert!(owing.take(2 * MIB, &cx()).is_none());
        drop(block);
        assert!(owing.take(2 * MIB, &cx()).is_some());
    }

    #[test]
    fn a_message_larger_than_the_pool_passes_alone() {
        let pool = Pool::new(MIB);
        let budget = Budget::new(MIB, pool.clone(), Arc::default());
        let first = budget.take(4 * MIB, &cx()).unwrap();
        assert!(budget.take(4 * MIB, &cx()).is_none());
        drop(first);
        assert!(budget.take(4 * MIB, &cx()).is_some());
    }

    /// An inbound stream that has a message of so many bytes, and ends with it.
    struct Waiting(Arc<Budget>, Option<usize>);

    impl Stream for Waiting {
        type Item = Share;

        fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Share>> {
            let Some(bytes) = self.1 else {
                return Poll::Ready(None);
            };
            let Some(share) = self.0.take(bytes, cx) else {
                return Poll::Pending;
            };
            self.1 = None;
            Poll::Ready(Some(share))
        }
    }

    #[derive(Default)]
    struct Count(AtomicU32);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Two streams of one connection waited for its memory, and the second one's waker took the place of the first one's: `SelectAll`
    /// polls only who was woken, so the first message was never read.
    #[test]
    fn every_stream_that_waits_is_woken() {
        let pool = Pool::new(32 * MIB);
        let budget = Budget::new(4 * MIB, pool, Arc::default());
        let held = budget.take(4 * MIB, &cx()).unwrap();
        let mut streams = SelectAll::new();
        for _ in 0..3 {
            streams.push(Waiting(budget.clone(), Some(MIB)));
        }
        let count = Arc::new(Count::default());
        let waker = count.clone().into();
        let mut cx = Context::from_waker(&waker);
        for _ in 0..3 {
            assert!(streams.poll_next_unpin(&mut cx).is_pending());
            assert_eq!(lock(&budget.account.wakers).len(), 3, "each once");
        }
        let before = count.0.load(Ordering::SeqCst);
        drop(held);
        assert!(count.0.load(Ordering::SeqCst) > before);
        let mut shares = Vec::new();
        while let Poll::Ready(Some(share)) = streams.poll_next_unpin(&mut cx) {
            shares.push(share);
        }
        assert_eq!(shares.len(), 3);
    }

    /// What waits behind strangers goes on as soon as it is asked for.
    #[test]
    fn who_waits_is_woken_when_it_owes() {
        let pool = Pool::new(8 * MIB);
        let stranger = budget(&pool, 0).take(2 * MIB, &cx()).unwrap();
        let owing = budget(&pool, 0);
        let mut streams = SelectAll::from_iter([Waiting(owing.clone(), Some(MIB))]);
        let count = Arc::new(Count::default());
        let waker = count.clone().into();
        let mut cx = Context::from_waker(&waker);
        assert!(streams.poll_next_unpin(&mut cx).is_pending());
        let before = count.0.load(Ordering::SeqCst);
        owing.account.set_owed(2 * MIB);
        assert_eq!(count.0.load(Ordering::SeqCst), before + 1);
        assert!(streams.poll_next_unpin(&mut cx).is_ready());
        drop(stranger);
    }
}
