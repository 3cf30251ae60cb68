//! Memory for frames on their way in: what all connections together may hold (specs/gossip.md GO-23).
//!
//! Small frames lie in the buffer of their connection, 32 KiB at most. The memory of a larger one is taken as a whole when its length is
//! read, or waited for; meanwhile the muxer's window tells the sender to wait. So nobody who has begun waits for another who has begun, and
//! all of them end: in time, or by being given up. Who never finished a large frame shares half of it with all others of that kind: any
//! number of peers that begin and stop do not keep out those that are known to finish.
//!
//! Who waits stands in line. A peer that holds memory already, over another connection, lets those pass that hold none.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::task::{Context, Waker};

use super::shared::lock;
use crate::seen::Source;

/// What all large frames on their way in may take.
#[derive(Debug)]
pub(crate) struct Pool {
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    proven: Part,
    newcomers: Part,
    /// Numbers everything in the order in which it came.
    next: u64,
}

#[derive(Debug)]
struct Part {
    limit: usize,
    used: usize,
    /// Whose the memory is, the eldest first.
    holders: BTreeMap<u64, Source>,
    /// Connections that wait for it.
    line: BTreeMap<u64, (Source, Waker)>,
}

/// The place of one connection, before the pool and in its line. It leaves the line on drop.
pub(crate) struct Place {
    pool: Arc<Pool>,
    source: Source,
    /// Where it stands, if it waits.
    waits: Option<Stand>,
}

/// In which part, and which number.
#[derive(Clone, Copy, Debug)]
struct Stand {
    proven: bool,
    number: u64,
}

/// Memory of one frame, given back on drop.
#[derive(Debug)]
pub struct Share {
    pool: Arc<Pool>,
    bytes: usize,
    stand: Stand,
}

impl Pool {
    pub(crate) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self {
            inner: Mutex::new(Inner {
                proven: Part::new(limit - limit / 2),
                newcomers: Part::new(limit / 2),
                next: 0,
            }),
        })
    }

    /// For a connection of this peer.
    pub(crate) fn place(self: &Arc<Self>, source: Source) -> Place {
        Place {
            pool: self.clone(),
            source,
            waits: None,
        }
    }

    /// Bytes that are taken.
    pub(crate) fn used(&self) -> usize {
        let inner = lock(&self.inner);
        inner.proven.used + inner.newcomers.used
    }
}

impl Inner {
    fn part(&mut self, proven: bool) -> &mut Part {
        match proven {
            true => &mut self.proven,
            false => &mut self.newcomers,
        }
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
}

impl Part {
    fn new(limit: usize) -> Self {
        Self {
            limit,
            used: 0,
            holders: BTreeMap::new(),
            line: BTreeMap::new(),
        }
    }

    /// Whether it is the turn of who stands here.
    fn is_next(&self, number: u64, source: Source) -> bool {
        let holds = |source| self.holders.values().any(|other| *other == source);
        let mut poor = self.line.iter().filter(|(_, (other, _))| !holds(*other));
        match holds(source) {
            true => poor.all(|(_, (other, _))| *other == source),
            false => poor.next().is_none_or(|(first, _)| *first >= number),
        }
    }

    fn fits(&self, bytes: usize) -> bool {
        self.used == 0 || self.used + bytes <= self.limit
    }

    /// Something changed: whose turn it is looks again.
    fn wake(&self) {
        for (_, waker) in self.line.values() {
            waker.wake_by_ref();
        }
    }
}

impl Place {
    /// Takes memory for a frame; none registers to be woken when some comes back. One frame is always let through.
    pub(crate) fn take(&mut self, bytes: usize, proven: bool, cx: &Context<'_>) -> Option<Share> {
        let mut inner = lock(&self.pool.inner);
        let stand = match self.waits {
            Some(stand) => stand,
            None => Stand {
                proven,
                number: inner.number(),
            },
        };
        let part = inner.part(stand.proven);
        if !part.fits(bytes) || !part.is_next(stand.number, self.source) {
            let waker = cx.waker().clone();
            part.line.insert(stand.number, (self.source, waker));
            self.waits = Some(stand);
            return None;
        }
        part.line.remove(&stand.number);
        self.waits = None;
        part.used += bytes;
        part.holders.insert(stand.number, self.source);
        // There may be room for the next one too.
        part.wake();
        drop(inner);
        Some(Share {
            pool: self.pool.clone(),
            bytes,
            stand,
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(stand) = self.waits {
            let mut inner = lock(&self.pool.inner);
            let part = inner.part(stand.proven);
            part.line.remove(&stand.number);
            part.wake();
        }
    }
}

impl Share {
    /// Others wait for memory of this kind.
    pub(crate) fn is_contended(&self) -> bool {
        !lock(&self.pool.inner)
            .part(self.stand.proven)
            .line
            .is_empty()
    }

    /// Nobody holds memory of this kind for longer.
    pub(crate) fn is_eldest(&self) -> bool {
        let mut inner = lock(&self.pool.inner);
        let eldest = inner.part(self.stand.proven).holders.first_key_value();
        eldest.is_some_and(|(number, _)| *number == self.stand.number)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut inner = lock(&self.pool.inner);
        let part = inner.part(self.stand.proven);
        part.used -= self.bytes;
        part.holders.remove(&self.stand.number);
        part.wake();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Config;
    use crate::seen::Seen;

    const MIB: usize = 1 << 20;

    fn cx() -> Context<'static> {
        Context::from_waker(Waker::noop())
    }

    fn sources(count: u8) -> Vec<Source> {
        let mut seen = Seen::new(Config::default().seen(), [3; 32]);
        let id =
            |n: u8| libp2p_identity::PeerId::from_bytes(&[&[0x12, 0x20][..], &[n; 32]].concat());
        (0..count)
            .map(|n| seen.join(id(n).expect("an id")))
            .collect()
    }

    #[test]
    fn go_23_newcomers_take_half_and_leave_the_rest_to_those_who_finish() {
        let pool = Pool::new(8 * MIB);
        let mut places: Vec<_> = sources(200).into_iter().map(|s| pool.place(s)).collect();
        let take = |proven, places: &mut [Place]| -> Vec<Share> {
            places
                .iter_mut()
                .filter_map(|place| place.take(MIB, proven, &cx()))
                .collect()
        };
        let newcomers = take(false, &mut places[..100]);
        assert_eq!((newcomers.len(), pool.used()), (4, 4 * MIB));
        assert!(newcomers[0].is_contended());
        let known = take(true, &mut places[100..]);
        assert_eq!((known.len(), pool.used()), (4, 8 * MIB));
        drop(newcomers);
        assert!(places[4].take(MIB, false, &cx()).is_some());
        drop(known);
        assert_eq!(pool.used(), 0);
    }

    #[test]
    fn a_frame_larger_than_the_pool_passes_alone() {
        let pool = Pool::new(MIB / 4);
        let [one, two] = sources(2)[..] else {
            unreachable!()
        };
        let (mut one, mut two) = (pool.place(one), pool.place(two));
        let first = one.take(MIB, false, &cx()).unwrap();
        assert!(!first.is_contended());
        assert!(two.take(MIB, false, &cx()).is_none());
        assert!(first.is_contended());
        drop(first);
        assert!(two.take(MIB, false, &cx()).is_some());
    }

    #[test]
    fn go_23_who_waits_longest_is_next_and_who_holds_memory_lets_others_pass() {
        let pool = Pool::new(4 * MIB);
        let [hog, a, b] = sources(3)[..] else {
            unreachable!()
        };
        let (mut hogs, mut a, mut b) = (
            [0; 3].map(|_| pool.place(hog)),
            pool.place(a),
            pool.place(b),
        );
        let first = hogs[0].take(MIB, true, &cx()).unwrap();
        let second = hogs[1].take(MIB, true, &cx()).unwrap();
        assert!(first.is_eldest() && !second.is_eldest());
        assert!(hogs[2].take(MIB, true, &cx()).is_none());
        assert!(a.take(MIB, true, &cx()).is_none());
        assert!(b.take(MIB, true, &cx()).is_none());
        drop(first);
        assert!(hogs[2].take(MIB, true, &cx()).is_none(), "it has some");
        assert!(b.take(MIB, true, &cx()).is_none(), "another came before");
        // Who stood first is gone.
        drop(a);
        assert!(b.take(MIB, true, &cx()).is_some());
        assert!(hogs[2].take(MIB, true, &cx()).is_some());
    }
}
