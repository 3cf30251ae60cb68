//! When did each connection answer last? Generic on the connection.

use std::{
    collections::{BTreeSet, HashMap},
    hash::Hash,
    time::Duration,
};

/// Time since the start of the node.
pub type Time = Duration;

/// A check that comes this much too late means that *we* were asleep: the answers may lie unread.
const OVERSLEPT: Duration = Duration::from_secs(1);

/// The open connections and when they are overdue.
#[derive(Debug)]
pub struct Watch<C> {
    patience: Duration,
    due: HashMap<C, Time>,
    /// Mirrors `due`, by time.
    schedule: BTreeSet<(Time, C)>,
}

impl<C: Ord + Hash + Clone> Watch<C> {
    /// A connection is overdue when it has not answered for `patience`.
    pub fn new(patience: Duration) -> Self {
        Self {
            patience,
            due: HashMap::new(),
            schedule: BTreeSet::new(),
        }
    }

    /// It was opened, or has answered.
    pub fn on_alive(&mut self, connection: C, now: Time) {
        self.forget(&connection);
        let due = now.saturating_add(self.patience);
        self.due.insert(connection.clone(), due);
        self.schedule.insert((due, connection));
    }

    /// It has answered, if it is watched at all: one that is closed or does not speak ping is not taken up again.
    pub fn on_answer(&mut self, connection: &C, now: Time) {
        if self.due.contains_key(connection) {
            self.on_alive(connection.clone(), now);
        }
    }

    /// It is closed, or does not speak ping.
    pub fn forget(&mut self, connection: &C) {
        if let Some(due) = self.due.remove(connection) {
            self.schedule.remove(&(due, connection.clone()));
        }
    }

    /// The machine slept for so long that the others have given us up: all that was watched, and is not any more.
    pub fn on_wake(&mut self) -> Vec<C> {
        self.due.clear();
        let all = std::mem::take(&mut self.schedule);
        all.into_iter().map(|(_, connection)| connection).collect()
    }

    /// A connection that is overdue; drain. It is not watched any more.
    pub fn expire(&mut self, now: Time) -> Option<C> {
        let (due, connection) = self.schedule.first()?.clone();
        if due > now {
            return None;
        }
        if now - due > OVERSLEPT {
            let all: Vec<C> = self.due.keys().cloned().collect();
            for connection in all {
                self.on_alive(connection, now);
            }
            return None;
        }
        self.forget(&connection);
        Some(connection)
    }

    /// When to call [`expire`](Self::expire).
    pub fn deadline(&self) -> Option<Time> {
        self.schedule.first().map(|(due, _)| *due)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Time {
        Duration::from_secs(seconds)
    }

    #[test]
    fn overdue_after_the_patience_since_the_last_answer() {
        let mut watch = Watch::new(at(15));
        watch.on_alive(1, at(0));
        watch.on_alive(2, at(1));
        watch.on_answer(&1, at(5));
        assert_eq!(watch.deadline(), Some(at(16)));
        assert_eq!(watch.expire(at(15)), None);
        assert_eq!(
            (watch.expire(at(16)), watch.expire(at(16))),
            (Some(2), None)
        );
        assert_eq!(
            (watch.expire(at(20)), watch.expire(at(20))),
            (Some(1), None)
        );
        assert_eq!(watch.deadline(), None);
    }

    #[test]
    fn what_is_closed_or_silent_by_nature_is_not_watched() {
        let mut watch = Watch::new(at(15));
        watch.on_alive(1, at(0));
        watch.forget(&1);
        watch.on_answer(&1, at(3));
        assert_eq!((watch.deadline(), watch.expire(at(16))), (None, None));
    }

    #[test]
    fn t13_after_a_long_sleep_everybody_is_given_up_once() {
        let mut watch = Watch::new(at(15));
        watch.on_alive(1, at(0));
        watch.on_alive(2, at(1));
        assert_eq!(watch.on_wake(), [1, 2]);
        assert_eq!((watch.on_wake(), watch.deadline()), (vec![], None));
    }

    /// The process alone was stopped for an hour: its peers have answered, but nobody has read it yet.
    #[test]
    fn after_our_own_sleep_everyone_gets_another_chance() {
        let mut watch = Watch::new(at(15));
        watch.on_alive(1, at(0));
        watch.on_alive(2, at(10));
        assert_eq!(watch.expire(at(3600)), None);
        assert_eq!(watch.deadline(), Some(at(3615)));
        watch.on_answer(&2, at(3601));
        assert_eq!(
            (watch.expire(at(3615)), watch.expire(at(3615))),
            (Some(1), None)
        );
    }
}
