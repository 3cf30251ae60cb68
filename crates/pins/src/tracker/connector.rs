//! What stands between the tracker and a store: it begins and ends the work for a pin, and tells what comes of it (S1.3).

use super::{Input, Output, Target, Ticket, Time, Tracker};

/// Whether work could begin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Begun {
    /// It did.
    Yes,
    /// Not now; with a cause it is told so. Not an attempt.
    NotNow(Option<String>),
}

/// A store, and whatever brings blocks to it. It decides nothing: what is begun, tried again and given up, and when, is the tracker's.
///
/// An owner has [`Tracker::poll_through`] carry out what concerns the connector, gives what [`advance`](Self::advance) and [`standing`](Self::standing) tell to
/// [`Tracker::handle`], and does the rest of the outputs himself: what is recorded, and where, is not the store's.
pub trait Connector {
    /// What it may touch while it is called: a network, a disk. `()` for one that has its own.
    type Around<'a>;

    /// Begins to make a pin whole. Blocks that are there already count, whoever brought them.
    fn begin(&mut self, ticket: Ticket, target: &Target, around: &mut Self::Around<'_>) -> Begun;

    /// Ends that. Nothing is told of this ticket any more, and whatever was open for it is closed.
    fn end(&mut self, ticket: Ticket, around: &mut Self::Around<'_>);

    /// Goes on with what was begun, and tells what came of it: [`Input::Progress`], [`Input::Whole`] when the last block is durable and not before,
    /// [`Input::Refused`], [`Input::Failed`], and [`Input::Standing`] for what is known at once. True: there is more to do, call again soon. Never waits.
    fn advance(&mut self, tracker: &Tracker, around: &mut Self::Around<'_>) -> (Vec<Input>, bool);

    /// What keeps those that do not move: [`Input::Standing`] of each. Called about once a second.
    fn standing(&mut self, around: &mut Self::Around<'_>) -> Vec<Input>;
}

impl Tracker {
    /// As [`poll`](Self::poll), with what a connector does handed to it: [`Output::Start`] and [`Output::Stop`] never come out of here.
    pub fn poll_through<C: Connector>(
        &mut self,
        connector: &mut C,
        around: &mut C::Around<'_>,
        now: Time,
    ) -> Option<Output> {
        loop {
            match self.poll()? {
                Output::Start(ticket, target) => {
                    if let Begun::NotNow(cause) = connector.begin(ticket, &target, around) {
                        let refused = self.handle(Input::NotNow(ticket, cause), now);
                        debug_assert!(refused.is_ok(), "facts are never refused");
                    }
                }
                Output::Stop(ticket) => connector.end(ticket, around),
                other => return Some(other),
            }
        }
    }
}
