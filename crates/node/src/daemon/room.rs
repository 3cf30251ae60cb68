//! Between those who write and find no room, and the keeper, who makes some: one round of collecting serves all who wait when it begins.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use gemba_store::Store;

use super::call::{Call, Wait, ending};
use crate::content::room::{self, Made, MakeRoom, Short};
use crate::error::{Code, Fail};
use crate::text;

/// How often a writer that waits looks whether its caller still does.
const LOOK: Duration = Duration::from_millis(100);
/// A round is bounded by the size of the store. One that takes longer than this is no help to whoever waits.
const LONGEST: Duration = Duration::from_secs(600);

/// Who wants room, and how far its making is.
#[derive(Debug)]
pub struct Room {
    /// Whether the daemon may collect by itself (`store.gc`).
    collects: bool,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Most bytes that anybody lacks who waits for the next round.
    wanted: u64,
    begun: u64,
    done: u64,
    /// What the last round came to.
    made: Made,
    /// What the round that is under way does, in words.
    doing: String,
    over: bool,
}

/// What the keeper is to do next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// End.
    Over,
    /// Make room for so many bytes, then call [`Room::served`].
    Make(u64),
    /// Nobody wants anything.
    Idle,
}

impl Room {
    /// Nobody waits.
    #[must_use]
    pub fn new(collects: bool) -> Self {
        Self {
            collects,
            state: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    fn hold(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a round that begins after this; what it came to.
    fn round(&self, needed: u64, check: &dyn Fn() -> Result<(), Fail>) -> Result<Made, Fail> {
        let begun = Instant::now();
        let mut state = self.hold();
        let mine = state.begun + 1;
        state.wanted = state.wanted.max(needed);
        self.changed.notify_all();
        while state.done < mine {
            if state.over {
                return Err(ending());
            }
            check()?;
            if begun.elapsed() >= LONGEST {
                return Err(Fail::new(
                    Code::Timeout,
                    format!(
                        "no room for {} more after {} s: {}",
                        text::bytes(needed),
                        LONGEST.as_secs(),
                        state.doing
                    ),
                )
                .hint("the disk is too slow for what is asked of it, or fails: look at `gemba status` and `dmesg`"));
            }
            (state, _) = self
                .changed
                .wait_timeout(state, LOOK)
                .unwrap_or_else(PoisonError::into_inner);
        }
        Ok(state.made.clone())
    }

    /// For the keeper: what to do, at the latest after `wait`.
    pub(super) fn next(&self, wait: Duration) -> Next {
        let idle = |state: &mut State| !state.over && state.wanted == 0;
        let (mut state, _) = self
            .changed
            .wait_timeout_while(self.hold(), wait, idle)
            .unwrap_or_else(PoisonError::into_inner);
        match std::mem::take(&mut state.wanted) {
            _ if state.over => Next::Over,
            0 => Next::Idle,
            needed => {
                state.begun += 1;
                "the collection begins".clone_into(&mut state.doing);
                Next::Make(needed)
            }
        }
    }

    /// The keeper tells how far it is.
    pub(super) fn tell(&self, doing: String) {
        self.hold().doing = doing;
    }

    /// The round is over.
    pub(super) fn served(&self, made: Made) {
        let mut state = self.hold();
        state.done = state.begun;
        state.made = made;
        self.changed.notify_all();
    }

    /// The daemon ends: nobody waits any more.
    pub(super) fn end(&self) {
        self.hold().over = true;
        self.changed.notify_all();
    }

    /// What is being done, for whoever waits.
    #[must_use]
    pub fn doing(&self) -> String {
        self.hold().doing.clone()
    }
}

/// A writer's way to more room; with a call, as long as that lasts.
pub struct Waiter {
    /// Where room is wanted.
    pub room: Arc<Room>,
    /// The store it is wanted in.
    pub store: Store,
    /// For whom.
    pub call: Option<Arc<Call>>,
}

impl MakeRoom for Waiter {
    fn make_room(&self, short: Short) -> Result<(), Fail> {
        if !self.room.collects {
            return Err(room::not_collected(short));
        }
        let _waiting = self.call.as_ref().map(|call| call.waits_for(Wait::Room));
        let check = || self.call.as_ref().map_or(Ok(()), |call| call.check());
        let made = self.room.round(short.needed, &check)?;
        if room::room(&self.store) >= short.needed {
            Ok(())
        } else {
            Err(room::refused(room::now(&self.store, short), &made))
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn one_round_serves_all_who_waited_when_it_began() {
        let room = Room::new(true);
        std::thread::scope(|scope| {
            let waiting: Vec<_> = [3, 7, 5]
                .map(|needed| {
                    let room = &room;
                    scope.spawn(move || room.round(needed, &|| Ok(())))
                })
                .into_iter()
                .collect();
            while room.hold().wanted < 7 {
                std::thread::yield_now();
            }
            let mut rounds = 0;
            while waiting.iter().any(|waiter| !waiter.is_finished()) {
                if let Next::Make(needed) = room.next(Duration::from_millis(1)) {
                    rounds += 1;
                    room.served(Made {
                        freed_bytes: needed,
                        ..Made::default()
                    });
                }
            }
            assert!((1..=3).contains(&rounds), "{rounds}");
            for waiter in waiting {
                assert!(waiter.join().unwrap().unwrap().freed_bytes >= 3);
            }
        });
    }

    #[test]
    fn nobody_waits_for_a_daemon_that_ends_or_for_a_caller_who_is_gone() {
        let room = Room::new(true);
        let gone = Fail::new(Code::Interrupted, "the client went away");
        assert_eq!(room.round(1, &|| Err(gone.clone())), Err(gone));
        room.end();
        assert_eq!(room.round(1, &|| Ok(())).unwrap_err().code, Code::NoDaemon);
        assert_eq!(room.next(Duration::ZERO), Next::Over);
    }
}
