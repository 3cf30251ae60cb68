//! Comparisons: when they begin, and what each message leads to. The one that is asked keeps nothing of it.

use super::{Event, Peer, Remote, Replicate};
use crate::{
    core::{Time, reconcile::Range},
    feed::FeedId,
    stream::Pattern,
    wire::{Message, Sync, patterns_hash},
};
use std::time::Duration;

/// A comparison that this side began.
#[derive(Debug)]
pub(super) struct Session {
    id: u64,
    round: u32,
    until: Time,
}

/// More messages than any comparison needs: 65,536 feeds listed in full are some 70.
const MAX_ROUNDS: u32 = 1_024;
/// After a comparison that was not answered.
const RETRY: Duration = Duration::from_secs(2);

impl Remote {
    pub(super) fn sync_due(&self) -> Option<Time> {
        match &self.session {
            Some(session) => Some(session.until),
            None => self.begins.then_some(self.next_sync),
        }
    }
}

impl Replicate {
    pub(super) fn sync_if_due(&mut self, peer: Peer, now: Time) {
        let Some(remote) = self.peers.get_mut(&peer) else {
            return;
        };
        if remote.sync_due().is_none_or(|due| due > now) {
            return;
        }
        if remote.session.take().is_some() {
            self.counters.comparisons_lost += 1;
            remote.next_sync = now + RETRY;
            return;
        }
        self.begin_sync(peer, now);
    }

    fn begin_sync(&mut self, peer: Peer, now: Time) {
        self.counters.comparisons += 1;
        let id = self.number();
        let until = now + self.config.patience;
        let Some(remote) = self.peers.get_mut(&peer) else {
            return;
        };
        remote.session = Some(Session {
            id,
            round: 0,
            until,
        });
        let theirs = remote.patterns.clone();
        let ranges = self.tips.begin(&self.common(theirs.as_deref()));
        let assumed = theirs.map_or_else(|| self.own_hash(), |theirs| patterns_hash(&theirs));
        self.say(peer, id, 0, assumed, ranges);
    }

    pub(super) fn on_sync(&mut self, peer: Peer, sync: Sync, now: Time) {
        let (burst, patience) = (self.config.sync_burst, self.config.patience);
        let Some(remote) = self.peers.get_mut(&peer) else {
            return;
        };
        let is_answer = sync.round % 2 == 1;
        if is_answer {
            // Of a session that is over, or never was.
            let Some(session) = remote.session.as_mut() else {
                return;
            };
            if session.id != sync.session || sync.round != session.round + 1 {
                return;
            }
            session.round = sync.round + 1;
            session.until = now + patience;
        } else if !take_credit(&mut remote.sync_credit, burst, now) {
            self.counters.syncs_refused += 1;
            return;
        }
        let theirs = sync.patterns;
        remote.patterns = Some(theirs.clone());
        let common = self.common(Some(&theirs));
        // What was compared under a wrong idea of our subscription says nothing: begin anew under the right one.
        let (ranges, news) = if sync.assumed == self.own_hash() || is_answer {
            self.tips.answer(&sync.ranges, &common)
        } else {
            (self.tips.begin(&common), Vec::new())
        };
        self.on_tips(Some(peer), news, now);
        let round = sync.round + 1;
        let is_over = is_answer && ranges.is_empty() || round >= MAX_ROUNDS;
        if is_over {
            return self.end_sync(peer, round, now);
        }
        if is_answer || !ranges.is_empty() || sync.ranges.iter().any(is_question) {
            self.say(peer, sync.session, round, patterns_hash(&theirs), ranges);
        }
        if is_answer && !self.awaits_answer(peer) {
            self.end_sync(peer, round, now);
        }
    }

    /// Whether what was just said has a question in it.
    fn awaits_answer(&self, peer: Peer) -> bool {
        match self.outputs.back() {
            Some(super::Output::Send {
                peer: to,
                message: Message::Sync(sync),
            }) => *to == peer && sync.ranges.iter().any(is_question),
            _ => false,
        }
    }

    fn end_sync(&mut self, peer: Peer, rounds: u32, now: Time) {
        let interval = self.config.sync_interval;
        if let Some(remote) = self.peers.get_mut(&peer) {
            remote.session = None;
            remote.next_sync = now + interval;
            self.tell(Event::Compared { peer, rounds });
        }
    }

    fn say(&mut self, peer: Peer, session: u64, round: u32, assumed: u64, ranges: Vec<Range>) {
        let sync = Sync {
            session,
            round,
            patterns: self.config.patterns.clone(),
            assumed,
            ranges,
        };
        self.send(peer, Message::Sync(sync));
    }

    /// Feeds that both sides subscribe to; without the other's subscription, ours.
    fn common(&self, theirs: Option<&[Pattern]>) -> impl Fn(&FeedId) -> bool + use<> {
        let ours = self.config.patterns.clone();
        let theirs = theirs.map(<[Pattern]>::to_vec);
        move |feed: &FeedId| {
            let within = |patterns: &[Pattern]| patterns.iter().any(|p| p.matches(&feed.stream));
            within(&ours) && theirs.as_deref().is_none_or(within)
        }
    }
}

fn is_question(range: &Range) -> bool {
    !matches!(
        range.content,
        crate::core::reconcile::Content::Tips { answer: false, .. }
    )
}

/// One more each second, up to `burst`.
fn take_credit(credit: &mut (u32, Time), burst: u32, now: Time) -> bool {
    let earned = now.saturating_sub(credit.1).as_secs();
    if earned > 0 {
        credit.0 = credit
            .0
            .saturating_add(u32::try_from(earned).unwrap_or(u32::MAX))
            .min(burst);
        credit.1 += Duration::from_secs(earned);
    }
    credit.0 > 0 && {
        credit.0 -= 1;
        true
    }
}
