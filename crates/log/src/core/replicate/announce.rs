//! Announcements: who is told that a feed grew.

use super::{MAX_NEWS, Output, Peer, Replicate};
use crate::{
    core::{
        Time,
        reconcile::{MAX_TIPS, Tip},
    },
    feed::FeedId,
    wire::{Announce, Message},
};
use bytes::Bytes;
use std::collections::BTreeSet;

impl Replicate {
    /// A feed grew: everybody is told who may want it, but for the one it came from. At once if there was peace, else with the next ones.
    pub(super) fn spread(
        &mut self,
        feed: &FeedId,
        from: Option<Peer>,
        batch: Option<Bytes>,
        now: Time,
    ) {
        for (peer, remote) in &mut self.peers {
            let wants = remote
                .patterns
                .as_ref()
                .is_none_or(|patterns| patterns.iter().any(|p| p.matches(&feed.stream)));
            if Some(*peer) == from || !wants {
                continue;
            }
            if remote.news.len() >= MAX_NEWS && !remote.news.contains(feed) {
                self.counters.announcements_dropped += 1;
                continue;
            }
            remote.news.insert(feed.clone());
        }
        if now >= self.announced_until {
            self.announce(batch.map(|batch| (feed, batch)), now);
        } else {
            self.announce_at = Some(self.announced_until);
        }
    }

    pub(super) fn announce_if_due(&mut self, now: Time) {
        if self.announce_at.is_some_and(|at| at <= now) {
            self.announce(None, now);
        }
    }

    fn announce(&mut self, batch: Option<(&FeedId, Bytes)>, now: Time) {
        self.announce_at = None;
        self.announced_until = now + self.config.announce_gap;
        let small = batch.filter(|(_, bytes)| bytes.len() <= self.config.push_bytes);
        for peer in self.peers.keys().copied().collect::<Vec<_>>() {
            let Some(remote) = self.peers.get_mut(&peer) else {
                continue;
            };
            let news: Vec<FeedId> = remote.news.iter().take(MAX_TIPS / 8).cloned().collect();
            remote.news.retain(|feed| !news.contains(feed));
            let is_more = !remote.news.is_empty();
            if is_more {
                self.announce_at = Some(self.announced_until);
            }
            let tips = self.tips_of(news.iter());
            let batch = small.as_ref().filter(|(feed, _)| news.contains(feed));
            let batch = batch.map(|(_, bytes)| bytes.clone());
            if !tips.is_empty() {
                self.send(peer, Message::Announce(Announce { tips, batch }));
            }
        }
        let own: BTreeSet<FeedId> = std::mem::take(&mut self.own_news);
        let tips = self.tips_of(own.iter());
        if !tips.is_empty() {
            self.outputs.push_back(Output::Announce(tips));
        }
    }

    fn tips_of<'a>(&self, feeds: impl Iterator<Item = &'a FeedId>) -> Vec<Tip> {
        let of = |feed: &'a FeedId| {
            self.tips.of(feed).map(move |(next, batch)| Tip {
                feed: feed.clone(),
                next,
                batch,
            })
        };
        let mut tips: Vec<Tip> = feeds.flat_map(of).collect();
        tips.truncate(MAX_TIPS);
        tips
    }
}
