//! Whose turn it is to collect: one at a time, and a person goes before the daemon itself, which gives way between two small steps.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use crate::error::{Code, Fail};

/// How long a person waits for the daemon to give way. It looks after every small step, so this is never used up.
const GIVE_WAY: Duration = Duration::from_secs(10);

/// Who may collect.
#[derive(Debug, Default)]
pub struct Turns {
    held: Mutex<Held>,
    freed: Condvar,
}

#[derive(Debug, Default)]
struct Held {
    by: Option<Who>,
    /// A person waits.
    wanted: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    Person,
    Daemon,
}

/// The right to collect, until it is dropped.
#[derive(Debug)]
pub struct Turn(Arc<Turns>);

impl Turns {
    /// For somebody who asked for it. Blocks until the daemon has given way.
    ///
    /// # Errors
    /// [`Code::Conflict`] if somebody else is at it.
    pub fn take(self: &Arc<Self>) -> Result<Turn, Fail> {
        let taken = || {
            Fail::new(Code::Conflict, "a collection is under way already")
                .hint("wait for the end of it: two would not be faster")
        };
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if held.wanted || held.by == Some(Who::Person) {
            return Err(taken());
        }
        held.wanted = true;
        let (mut held, _) = self
            .freed
            .wait_timeout_while(held, GIVE_WAY, |held| held.by.is_some())
            .unwrap_or_else(PoisonError::into_inner);
        held.wanted = false;
        if held.by.is_some() {
            return Err(taken());
        }
        held.by = Some(Who::Person);
        Ok(Turn(Arc::clone(self)))
    }

    /// For the daemon itself, if nobody else wants it.
    pub fn try_take(self: &Arc<Self>) -> Option<Turn> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if held.wanted || held.by.is_some() {
            return None;
        }
        held.by = Some(Who::Daemon);
        Some(Turn(Arc::clone(self)))
    }

    /// Whether a person waits for the daemon to give way.
    pub fn is_wanted(&self) -> bool {
        self.held
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .wanted
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut held = self.0.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.by = None;
        drop(held);
        self.0.freed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_person_goes_before_the_daemon_and_after_nobody() {
        let turns = Arc::new(Turns::default());
        let daemon = turns.try_take().unwrap();
        assert!(turns.try_take().is_none() && !turns.is_wanted());
        let person = std::thread::scope(|scope| {
            let person = scope.spawn(|| turns.take());
            while !turns.is_wanted() {
                std::thread::yield_now();
            }
            assert_eq!(turns.take().unwrap_err().code, Code::Conflict);
            drop(daemon);
            person.join().unwrap().unwrap()
        });
        assert_eq!(turns.take().unwrap_err().code, Code::Conflict);
        assert!(turns.try_take().is_none() && !turns.is_wanted());
        drop(person);
        assert!(turns.try_take().is_some());
    }
}
