//! Receive memory: what one connection may hold, and what all connections together may.
//!
//! The length of a message is known before its bytes come, so its memory is taken as a whole or waited for; meanwhile the muxer's
//! window tells the sender to wait. Small messages (wantlists, presences) always pass within a connection's floor. Large ones carry
//! blocks: as much as a peer can owe of those that it was asked for draws on the pool of the node, all else on a small part of it, so
//! that nobody keeps out what was asked for (EX-23).

use std::sync::Arc;
use std::task::{Context, Waker};

use super::sync::{AtomicBool, AtomicU64, AtomicUsize, Mutex, Ordering, lock};
use super::wakers::{Place, Wakers};

/// What every connection may hold without asking the pool, in bytes: many wantlists, or a Kubo's response of 16 KiB a few times.
pub(super) const FLOOR: usize = 64 * 1024;
/// Strangers get this part of the pool.
const STRANGERS: usize = 4;

/// Receive memory of the node beyond the connections' floors.
#[derive(Debug)]
pub(crate) struct Pool {
    pub(super) asked: Part,
    pub(super) strangers: Part,
}

#[derive(Debug)]
pub(super) struct Part {
    limit: usize,
    used: AtomicUsize,
    /// Somebody waits, for [`Part::is_contended`]; what is woken does not depend on it.
    contended: AtomicBool,
    /// Streams that wait. Whoever waits looks at `used` once more after it had this lock, and whoever lowers `used` takes the lock after that:
    /// the later one of the two sees the other.
    wakers: Mutex<Wakers>,
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
    pub(super) fn is_contended(&self) -> bool {
        self.contended.load(Ordering::Relaxed)
    }

    /// One message is always let through.
    fn take(&self, bytes: usize) -> bool {
        let fits = |used| (used == 0 || used + bytes <= self.limit).then_some(used + bytes);
        self.used
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, fits)
            .is_ok()
    }

    /// To be woken when some comes back. Look once more afterwards.
    fn wait(&self, place: &mut Place, waker: &Waker) {
        let mut wakers = lock(&self.wakers);
        wakers.wait(place, waker);
        self.contended.store(true, Ordering::Relaxed);
    }

    fn leave(&self, place: &mut Place) {
        let mut wakers = lock(&self.wakers);
        wakers.leave(place);
        self.contended.store(!wakers.is_empty(), Ordering::Relaxed);
    }

    fn give_back(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Ordering::SeqCst);
        let woken = {
            let mut wakers = lock(&self.wakers);
            self.contended.store(false, Ordering::Relaxed);
            wakers.take()
        };
        woken.for_each(Waker::wake);
    }
}

/// What the receive memory of all connections to one peer knows of it.
#[derive(Debug, Default)]
pub(crate) struct Account {
    book: Mutex<Book>,
}

#[derive(Debug, Default)]
struct Book {
    /// Bytes that the blocks which it was asked for may have.
    owed: usize,
    /// Bytes that it holds on the strength of that.
    drawn: usize,
    /// Its streams that wait: every inbound stream has a waker of its own, and who is not woken waits for ever.
    wakers: Wakers,
}

impl Account {
    /// Tells how many bytes the blocks may have that the peer was asked for.
    pub(crate) fn set_owed(&self, bytes: usize) {
        let woken = {
            let mut book = lock(&self.book);
            if std::mem::replace(&mut book.owed, bytes) == bytes {
                return;
            }
            book.wakers.take()
        };
        woken.for_each(Waker::wake);
    }

    /// Draws on what is owed, and takes as much of the pool's part; what the pool lacks is not drawn. Both with the lock held: another
    /// connection to the peer that saw it drawn and gone again would wait with the strangers, where nobody wakes it.
    fn draw(&self, bytes: usize, asked: &Part) -> Draw {
        let mut book = lock(&self.book);
        // What stands in a message beside its blocks is paid with another floor.
        if book.owed == 0 || book.drawn + bytes > book.owed + FLOOR {
            return Draw::NotOwed;
        }
        if !asked.take(bytes) {
            return Draw::PoolLacks;
        }
        book.drawn += bytes;
        Draw::Drawn
    }

    /// To be woken when a share of the peer comes back, or it owes more or less. Look once more afterwards.
    fn wait(&self, place: &mut Place, waker: &Waker) {
        lock(&self.book).wakers.wait(place, waker);
    }

    fn leave(&self, place: &mut Place) {
        lock(&self.book).wakers.leave(place);
    }

    /// A share is back of which so much was drawn.
    fn give_back(&self, drawn: usize) {
        let woken = {
            let mut book = lock(&self.book);
            book.drawn -= drawn;
            book.wakers.take()
        };
        woken.for_each(Waker::wake);
    }
}

enum Draw {
    Drawn,
    NotOwed,
    PoolLacks,
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

    fn try_take(self: &Arc<Self>, bytes: usize) -> Result<Share, Lack> {
        let used = self.used.load(Ordering::SeqCst);
        if used > 0 && used + bytes > self.limit {
            return Err(Lack::Connection);
        }
        let from = match used + bytes <= FLOOR {
            true => From::Floor,
            false => self.take_of_pool(bytes).map_err(Lack::Pool)?,
        };
        // Only the connection's own task takes, so the sum cannot have grown in between.
        self.used.fetch_add(bytes, Ordering::SeqCst);
        Ok(Share {
            budget: self.clone(),
            bytes,
            from,
        })
    }

    /// Which part it was taken of, or which one lacks it.
    fn take_of_pool(&self, bytes: usize) -> Result<From, From> {
        match self.account.draw(bytes, &self.pool.asked) {
            Draw::Drawn => Ok(From::Asked),
            Draw::PoolLacks => Err(From::Asked),
            Draw::NotOwed if self.pool.strangers.take(bytes) => Ok(From::Strangers),
            Draw::NotOwed => Err(From::Strangers),
        }
    }
}

/// Where one stream takes receive memory, and waits for it. Left when it is dropped.
#[derive(Debug)]
pub(crate) struct Seat {
    budget: Arc<Budget>,
    account: Place,
    asked: Place,
    strangers: Place,
}

impl Seat {
    pub(crate) fn new(budget: Arc<Budget>) -> Self {
        Self {
            budget,
            account: Place::default(),
            asked: Place::default(),
            strangers: Place::default(),
        }
    }

    /// Takes `bytes`. One message is always let through. `None` registers to be woken when there may be room.
    pub(crate) fn take(&mut self, bytes: usize, cx: &Context<'_>) -> Option<Share> {
        let share = self.take_or_wait(bytes, cx)?;
        self.leave();
        Some(share)
    }

    fn take_or_wait(&mut self, bytes: usize, cx: &Context<'_>) -> Option<Share> {
        let Self {
            budget,
            account,
            asked,
            strangers,
        } = self;
        if let Ok(share) = budget.try_take(bytes) {
            return Some(share);
        }
        budget.account.wait(account, cx.waker());
        // A share may have come back in between.
        let from = match budget.try_take(bytes) {
            Ok(share) => return Some(share),
            Err(Lack::Connection) => return None,
            Err(Lack::Pool(from)) => from,
        };
        match from {
            From::Floor => {}
            From::Asked => budget.pool.asked.wait(asked, cx.waker()),
            From::Strangers => budget.pool.strangers.wait(strangers, cx.waker()),
        }
        budget.try_take(bytes).ok()
    }

    /// Nobody hurries others for memory that it does not want any more.
    fn leave(&mut self) {
        // Most messages find room at once and have waited nowhere.
        if self.account.is_used() {
            self.budget.account.leave(&mut self.account);
            self.budget.pool.asked.leave(&mut self.asked);
            self.budget.pool.strangers.leave(&mut self.strangers);
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.leave();
    }
}

/// A part of a [`Budget`], given back on drop.
pub(crate) struct Share {
    budget: Arc<Budget>,
    pub(super) bytes: usize,
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
        if let Some(part) = budget.pool.part(self.from) {
            part.give_back(self.bytes);
        }
        let drawn = match self.from {
            From::Asked => self.bytes,
            From::Floor | From::Strangers => 0,
        };
        budget.account.give_back(drawn);
    }
}

impl std::fmt::Debug for Share {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Share({})", self.bytes)
    }
}
