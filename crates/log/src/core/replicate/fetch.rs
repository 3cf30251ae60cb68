//! What is missing, whom it is asked of, and what comes of the answer.

use super::{Config, Event, Peer, Replicate};
use crate::{
    batch::Batch,
    core::{
        Time,
        reconcile::{Tip, Tips, first_of},
    },
    feed::{Author, FeedId, Seq},
    wire::{Fetch, MAX_WANTS, Message, Run, Want as Asking},
};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

/// Branches of one feed that are wanted at once; with more, the author forks for sport, and the shortest waits.
const MAX_TARGETS: usize = 4;
/// Peers that are remembered to have a feed.
const MAX_SOURCES: usize = 4;
/// Requests to one peer at once: the next answer is on its way while one is being appended.
const MAX_ASKED: usize = 2;
/// Wants that are looked at in one go; the others have their turn a little later.
const MAX_LOOKS: usize = 1_024;
/// That little.
const LOOK_ON: Duration = Duration::from_millis(5);
/// Authors that are looked at for a want that gives way.
const MAX_GREEDY: usize = 256;
/// Fruitless requests before a want is dropped; the next comparison brings it again.
const MAX_TRIES: u32 = 6;

/// A request that is out.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) wants: Vec<(FeedId, [u8; 32])>,
    pub(super) until: Time,
}

/// Feeds that are longer elsewhere.
#[derive(Debug, Default)]
pub(super) struct Wants {
    feeds: BTreeMap<FeedId, Want>,
    by_author: BTreeMap<Author, usize>,
    by_peer: BTreeMap<Peer, usize>,
    /// Feeds that can be asked for, each once, here or in `fresh`.
    ready: VecDeque<FeedId>,
    /// Those that were not looked at yet: they are first, so that nobody waits behind a crowd of what is nowhere to be had.
    fresh: VecDeque<FeedId>,
    pauses: BTreeSet<(Time, FeedId)>,
}

#[derive(Debug)]
struct Want {
    targets: Vec<Target>,
    /// Who introduced it.
    by: Option<Peer>,
    is_asked: bool,
    is_appending: bool,
    is_ready: bool,
    paused: Option<Time>,
    tries: u32,
}

#[derive(Debug)]
struct Target {
    next: Seq,
    batch: [u8; 32],
    sources: Vec<Peer>,
    /// Where to begin, if not behind what is here: on a branch.
    from: Option<Seq>,
    /// How far the last step back was.
    step: Seq,
}

impl Wants {
    pub(super) fn len(&self) -> usize {
        self.feeds.len()
    }

    pub(super) fn has_ready(&self) -> bool {
        !self.ready.is_empty() || !self.fresh.is_empty()
    }

    pub(super) fn of_author(&self, author: Author) -> usize {
        self.by_author.get(&author).copied().unwrap_or(0)
    }

    /// Notes that a peer has a batch that is not here. False: there is no room.
    pub(super) fn add(
        &mut self,
        peer: Option<Peer>,
        tip: Tip,
        from: Option<Seq>,
        config: &Config,
    ) -> bool {
        let Tip { feed, next, batch } = tip;
        if !self.feeds.contains_key(&feed) {
            let of_peer = peer.map_or(0, |peer| self.by_peer.get(&peer).copied().unwrap_or(0));
            if self.of_author(feed.author) >= config.max_wants_per_author
                || of_peer >= (config.max_wants / 4).max(1)
            {
                return false;
            }
            // An author of whom nothing is wanted yet takes a place from the one that has most.
            if self.feeds.len() >= config.max_wants
                && (self.of_author(feed.author) > 0 || !self.make_room())
            {
                return false;
            }
            *self.by_author.entry(feed.author).or_default() += 1;
            if let Some(peer) = peer {
                *self.by_peer.entry(peer).or_default() += 1;
            }
            let want = Want {
                targets: Vec::new(),
                by: peer,
                is_asked: false,
                is_appending: false,
                is_ready: false,
                paused: None,
                tries: 0,
            };
            self.feeds.insert(feed.clone(), want);
        }
        if let Some(want) = self.feeds.get_mut(&feed) {
            want.add(peer, next, batch, from);
        }
        self.offer(&feed);
        true
    }

    /// Drops a want of an author that has many; not the last one of anybody, and none that is being answered. Whole authors may be: so it looks at
    /// those that have most, one after the other.
    fn make_room(&mut self) -> bool {
        let counts = self
            .by_author
            .iter()
            .map(|(author, count)| (*count, *author));
        let mut greedy: Vec<(usize, Author)> = counts.filter(|(count, _)| *count > 1).collect();
        if greedy.len() > MAX_GREEDY {
            greedy.select_nth_unstable_by(MAX_GREEDY, |a, b| b.cmp(a));
            greedy.truncate(MAX_GREEDY);
        }
        greedy.sort_unstable_by(|a, b| b.cmp(a));
        match greedy
            .into_iter()
            .find_map(|(_, author)| self.idle_of(author))
        {
            Some(victim) => {
                self.forget(&victim);
                true
            }
            None => false,
        }
    }

    /// A want of an author of which nothing is under way.
    fn idle_of(&self, author: Author) -> Option<FeedId> {
        let of_author = self
            .feeds
            .range(first_of(author)..)
            .take_while(|(feed, _)| feed.author == author);
        let mut idle = of_author.filter(|(_, want)| !want.is_asked && !want.is_appending);
        idle.next().map(|(feed, _)| feed.clone())
    }

    /// Puts a feed into the queue if it can be asked for.
    fn offer(&mut self, feed: &FeedId) {
        if let Some(want) = self.feeds.get_mut(feed)
            && !want.is_asked
            && !want.is_appending
            && !want.is_ready
            && want.paused.is_none()
        {
            want.is_ready = true;
            self.fresh.push_back(feed.clone());
        }
    }

    pub(super) fn forget(&mut self, feed: &FeedId) {
        if let Some(want) = self.feeds.remove(feed) {
            less(&mut self.by_author, &feed.author);
            if let Some(peer) = want.by {
                less(&mut self.by_peer, &peer);
            }
            if let Some(time) = want.paused {
                self.pauses.remove(&(time, feed.clone()));
            }
            // Its place in a queue stays, and is passed over; there are never more such places than wants.
            if self.fresh.len() + self.ready.len() > 2 * self.feeds.len() + MAX_LOOKS {
                self.tidy();
            }
        }
    }

    /// Drops places of feeds that are not wanted any more.
    fn tidy(&mut self) {
        let mut seen = BTreeSet::new();
        for queue in [&mut self.fresh, &mut self.ready] {
            queue.retain(|feed| {
                let is_ready = self.feeds.get(feed).is_some_and(|want| want.is_ready);
                is_ready && seen.insert(feed.clone())
            });
        }
    }

    /// What is here now is not wanted any more. A target that is shorter than what is here may still be another branch: it stays until it is
    /// here, or until nobody gives it.
    pub(super) fn settle(&mut self, feed: &FeedId, tips: &Tips) {
        let Some(want) = self.feeds.get_mut(feed) else {
            return;
        };
        let longest = tips.of(feed).next_back().map_or(0, |(next, _)| next);
        want.targets.retain(|target| {
            let is_here = tips.of(feed).any(|tip| tip == (target.next, target.batch));
            let is_passed = target.from.is_none() && target.next <= longest;
            !is_here && !is_passed
        });
        want.tries = 0;
        if want.targets.is_empty() && !want.is_asked {
            self.forget(feed);
        } else {
            self.offer(feed);
        }
    }

    pub(super) fn appending(&mut self, feed: &FeedId, is: bool) {
        if let Some(want) = self.feeds.get_mut(feed) {
            want.is_appending = is;
        }
        if !is {
            self.offer(feed);
        }
    }

    /// Something was appended: branches are followed from where they were asked for.
    pub(super) fn progress(&mut self, feed: &FeedId) {
        self.offer(feed);
    }

    /// The batch before the first one that came is not here either.
    pub(super) fn step_back(&mut self, feed: &FeedId, aim: [u8; 32], first: Seq) {
        let Some(want) = self.feeds.get_mut(feed) else {
            return;
        };
        want.tries += 1;
        for target in want.targets.iter_mut().filter(|target| target.batch == aim) {
            target.step = target.step.saturating_mul(2).max(1);
            target.from = Some(first.saturating_sub(target.step));
        }
        // Doubling steps reach the beginning in 53 of them; whoever still does not fit is no history of this feed.
        if want.tries > 64 || first == 0 {
            self.forget(feed);
        } else {
            self.offer(feed);
        }
    }

    pub(super) fn pause(&mut self, feed: &FeedId, until: Time) {
        if let Some(want) = self.feeds.get_mut(feed)
            && want.paused.is_none()
        {
            want.paused = Some(until);
            self.pauses.insert((until, feed.clone()));
        }
    }

    pub(super) fn next_pause(&self) -> Option<Time> {
        self.pauses.first().map(|(time, _)| *time)
    }

    pub(super) fn wake(&mut self, now: Time) {
        while let Some((time, feed)) = self.pauses.first().cloned() {
            if time > now {
                return;
            }
            self.pauses.pop_first();
            if let Some(want) = self.feeds.get_mut(&feed) {
                want.paused = None;
            }
            self.offer(&feed);
        }
    }

    /// A request was not answered.
    pub(super) fn take_back(&mut self, wants: &[(FeedId, [u8; 32])], now: Time) {
        for (feed, _) in wants {
            let Some(want) = self.feeds.get_mut(feed) else {
                continue;
            };
            want.is_asked = false;
            want.tries += 1;
            if want.tries > MAX_TRIES || want.targets.is_empty() {
                self.forget(feed);
            } else if want.tries > 1 {
                let pause = Duration::from_millis(250) * (1 << want.tries.min(6));
                self.pause(feed, now + pause);
            } else {
                self.offer(feed);
            }
        }
    }

    /// This peer does not have it after all.
    pub(super) fn forget_source(&mut self, feed: &FeedId, peer: Peer) {
        let Some(want) = self.feeds.get_mut(feed) else {
            return;
        };
        for target in &mut want.targets {
            target.sources.retain(|source| *source != peer);
        }
        want.targets.retain(|target| !target.sources.is_empty());
        if want.targets.is_empty() && !want.is_asked {
            self.forget(feed);
        }
    }

    pub(super) fn forget_peer(&mut self, peer: Peer) {
        for feed in self.feeds.keys().cloned().collect::<Vec<_>>() {
            self.forget_source(&feed, peer);
            if let Some(want) = self.feeds.get_mut(&feed)
                && want.by == Some(peer)
            {
                want.by = None;
            }
        }
        self.by_peer.remove(&peer);
    }
}

impl Want {
    fn add(&mut self, peer: Option<Peer>, next: Seq, batch: [u8; 32], from: Option<Seq>) {
        let known = self.targets.iter_mut().find(|target| target.batch == batch);
        let target = match known {
            Some(target) => target,
            None => {
                // The same history at an earlier moment needs no place of its own.
                if from.is_none() {
                    self.targets
                        .retain(|target| target.from.is_some() || target.next >= next);
                }
                if self.targets.len() >= MAX_TARGETS {
                    let shortest = self.targets.iter().enumerate().min_by_key(|(_, t)| t.next);
                    if let Some(at) = shortest.map(|(at, _)| at) {
                        self.targets.remove(at);
                    }
                }
                self.targets.push(Target {
                    next,
                    batch,
                    sources: Vec::new(),
                    from,
                    step: 0,
                });
                let last = self.targets.len() - 1;
                &mut self.targets[last]
            }
        };
        if let Some(peer) = peer
            && !target.sources.contains(&peer)
        {
            if target.sources.len() >= MAX_SOURCES {
                target.sources.remove(0);
            }
            target.sources.push(peer);
        }
    }
}

fn less<K: Ord>(counts: &mut BTreeMap<K, usize>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

impl Replicate {
    /// Asks for what can be asked for: many feeds in one request, at most two requests a peer.
    pub(super) fn pump(&mut self, now: Time) {
        let mut requests: BTreeMap<Peer, Vec<(Asking, [u8; 32])>> = BTreeMap::new();
        let mut later = VecDeque::new();
        self.pump_at = None;
        let has_room =
            |remote: &super::Remote| remote.asked.len() < MAX_ASKED && remote.quiet_until <= now;
        if !self.peers.values().any(has_room) {
            return;
        }
        let waiting = self.wants.fresh.len() + self.wants.ready.len();
        let looks = waiting.min(MAX_LOOKS);
        if waiting > looks {
            self.pump_at = Some(now + LOOK_ON);
        }
        for _ in 0..looks {
            let next = self
                .wants
                .fresh
                .pop_front()
                .or_else(|| self.wants.ready.pop_front());
            let Some(feed) = next else {
                break;
            };
            if !self
                .wants
                .feeds
                .get(&feed)
                .is_some_and(|want| want.is_ready)
            {
                continue;
            }
            match self.choose(&feed, &requests, now) {
                Choice::Ask(peer, asking) => {
                    if let Some(want) = self.wants.feeds.get_mut(&feed) {
                        (want.is_ready, want.is_asked) = (false, true);
                    }
                    let tip = asking.tip;
                    requests.entry(peer).or_default().push((asking, tip));
                }
                Choice::Later => later.push_back(feed),
                Choice::Nobody => {
                    if let Some(want) = self.wants.feeds.get_mut(&feed) {
                        want.is_ready = false;
                    }
                    self.wants.forget(&feed);
                }
            }
        }
        self.wants.ready.extend(later);
        for (peer, wants) in requests {
            self.ask(peer, wants, now);
        }
    }

    fn choose(
        &self,
        feed: &FeedId,
        requests: &BTreeMap<Peer, Vec<(Asking, [u8; 32])>>,
        now: Time,
    ) -> Choice {
        let Some(want) = self.wants.feeds.get(feed) else {
            return Choice::Nobody;
        };
        let mut later = false;
        let mut targets: Vec<&Target> = want.targets.iter().collect();
        // The longest first, and a branch when there is nothing longer.
        targets.sort_by_key(|target| std::cmp::Reverse((target.from.is_none(), target.next)));
        for target in targets {
            let free = target.sources.iter().filter_map(|peer| {
                let remote = self.peers.get(peer)?;
                later = true;
                let begun = requests.get(peer).map_or(0, Vec::len);
                let out = remote.asked.len();
                let has_room = out < MAX_ASKED && begun < MAX_WANTS && remote.quiet_until <= now;
                has_room.then_some((out, begun, *peer))
            });
            if let Some((.., peer)) = free.min() {
                let here = self.tips.of(feed).next_back().map_or(0, |(next, _)| next);
                let asking = Asking {
                    feed: feed.clone(),
                    from: target.from.unwrap_or(here),
                    tip: target.batch,
                };
                return Choice::Ask(peer, asking);
            }
        }
        if later { Choice::Later } else { Choice::Nobody }
    }

    fn ask(&mut self, peer: Peer, wants: Vec<(Asking, [u8; 32])>, now: Time) {
        let id = self.number();
        let until = now + self.config.patience;
        let Some(remote) = self.peers.get_mut(&peer) else {
            return;
        };
        let (wants, tips): (Vec<Asking>, Vec<[u8; 32]>) = wants.into_iter().unzip();
        let asked = Asked {
            wants: wants
                .iter()
                .map(|want| want.feed.clone())
                .zip(tips)
                .collect(),
            until,
        };
        remote.asked.insert(id, asked);
        self.counters.asked += 1;
        let fetch = Fetch {
            id,
            max_bytes: self.config.answer_bytes,
            wants,
        };
        self.send(peer, Message::Fetch(fetch));
    }

    pub(super) fn give_up_requests(&mut self, peer: Peer, now: Time) {
        let Some(remote) = self.peers.get_mut(&peer) else {
            return;
        };
        let late: Vec<u64> = remote
            .asked
            .iter()
            .filter(|(_, asked)| asked.until <= now)
            .map(|(id, _)| *id)
            .collect();
        for id in late {
            let asked = self
                .peers
                .get_mut(&peer)
                .and_then(|remote| remote.asked.remove(&id));
            if let Some(asked) = asked {
                self.counters.unanswered += 1;
                self.wants.take_back(&asked.wants, now);
                self.strike(peer, now);
            }
        }
    }

    pub(super) fn on_batches(
        &mut self,
        peer: Peer,
        id: u64,
        runs: Vec<Run<Batch>>,
        busy_ms: Option<u64>,
        now: Time,
    ) {
        let Some(remote) = self.peers.get_mut(&peer) else {
            return;
        };
        // Of a request that was given up: what came is of use all the same.
        let Some(asked) = remote.asked.remove(&id) else {
            for batch in runs.into_iter().flat_map(|run| run.batches) {
                self.on_pushed(peer, batch, now);
            }
            return;
        };
        if let Some(busy) = busy_ms {
            remote.quiet_until = now + Duration::from_millis(busy.min(60_000));
        }
        remote.strikes = 0;
        for (feed, _) in &asked.wants {
            if let Some(want) = self.wants.feeds.get_mut(feed) {
                want.is_asked = false;
            }
        }
        let mut served = BTreeSet::new();
        let mut any = false;
        for run in runs {
            if let Some((feed, tip)) = asked.wants.get(run.want)
                && served.insert(run.want)
            {
                any |= !run.batches.is_empty();
                self.on_run(peer, feed, *tip, run, now);
            } else {
                self.strike(peer, now);
            }
        }
        for (i, (feed, _)) in asked.wants.iter().enumerate() {
            // What found no room in a full answer is asked for again; an answer without anything has nothing.
            if !served.contains(&i) && !any && busy_ms.is_none() {
                self.wants.forget_source(feed, peer);
            }
            let tips = &self.tips;
            self.wants.settle_quietly(feed, tips);
        }
    }

    /// The batches of one want.
    fn on_run(&mut self, peer: Peer, feed: &FeedId, tip: [u8; 32], run: Run<Batch>, now: Time) {
        let is_chain = |pair: &[Batch]| pair[1].prev_digest() == Some(pair[0].digest());
        let fits = run.batches.iter().all(|batch| batch.feed() == feed)
            && run.batches.windows(2).all(is_chain);
        if !fits {
            self.strike(peer, now);
            return self.wants.forget_source(feed, peer);
        }
        let Some((first, last)) = run.batches.first().zip(run.batches.last()) else {
            return self.wants.forget_source(feed, peer);
        };
        let here = self.tips.of(feed).next_back().map_or(0, |(next, _)| next);
        let follows = first.prev_digest().is_none_or(|prev| {
            self.tips.of(feed).any(|(_, tip)| tip == *prev) || self.tails.get(feed) == Some(prev)
        });
        // The sender has less than was asked for: it is gone by retention. Where nothing is here yet the feed begins there; a hole is not made.
        let is_trimmed =
            !follows && first.first() > here && run.starts > here && run.starts >= first.first();
        let begins = is_trimmed && here == 0;
        if is_trimmed {
            self.tell(Event::Trimmed {
                feed: feed.clone(),
                from: here,
                to: run.starts,
            });
        }
        if is_trimmed && !begins {
            return self.wants.forget_source(feed, peer);
        }
        // On a branch the next request goes on from here.
        let (next, digest) = (last.end(), *last.digest());
        if let Some(want) = self.wants.feeds.get_mut(feed)
            && let Some(target) = want.targets.iter_mut().find(|target| target.batch == tip)
            && target.from.is_some()
        {
            target.from = Some(next);
        }
        // A peer that said it had this and does not lead there will be found out by the number of tries.
        if digest != tip
            && !run.more
            && let Some(want) = self.wants.feeds.get_mut(feed)
        {
            want.tries += 1;
            if want.tries > MAX_TRIES {
                self.wants.forget_source(feed, peer);
            }
        }
        self.append(peer, run.batches, Some(tip), begins);
    }

    /// A batch that nobody asked for: appended where it follows, kept a while where it does not.
    pub(super) fn on_pushed(&mut self, peer: Peer, batch: Batch, now: Time) {
        let feed = batch.feed().clone();
        if !self.is_ours(&feed) {
            self.counters.unasked += 1;
            return;
        }
        let here: Vec<_> = self.tips.of(&feed).collect();
        let is_known = here.iter().any(|(_, tip)| tip == batch.digest())
            || self.tails.get(&feed) == Some(batch.digest());
        let is_old = here.last().is_some_and(|(next, _)| batch.end() <= *next);
        if is_known || is_old {
            // An older one is a copy or a branch; a branch comes with a comparison.
            self.counters.duplicates += 1;
            return;
        }
        if here.is_empty() && !self.may_have_feed(&feed) {
            self.counters.feeds_refused += 1;
            return;
        }
        let follows = match batch.prev_digest() {
            None => here.is_empty() && !self.tails.contains_key(&feed),
            Some(prev) => match self.tails.get(&feed) {
                Some(tail) => tail == prev,
                None => here.iter().any(|(_, tip)| tip == prev),
            },
        };
        if follows {
            self.append(peer, vec![batch], None, false);
        } else {
            let tip = Tip {
                feed,
                next: batch.end(),
                batch: *batch.digest(),
            };
            self.counters.early_dropped += self.early.keep(peer, batch, &self.config);
            self.on_tips(Some(peer), vec![tip], now);
        }
    }

    /// What waited for the last batch of this feed follows now.
    pub(super) fn append_early(&mut self, feed: &FeedId, _now: Time) {
        let tips: Vec<[u8; 32]> = self.tips.of(feed).map(|(_, tip)| tip).collect();
        for mut tip in tips {
            let mut run = Vec::new();
            let mut from = None;
            while let Some((peer, batch)) = self.early.take(&tip) {
                tip = *batch.digest();
                from = from.or(Some(peer));
                run.push(batch);
            }
            if let Some(peer) = from {
                self.append(peer, run, None, false);
            }
        }
    }
}

impl Wants {
    /// After an answer: what is here is not wanted, the rest may be asked for again. Fruitless tries stay counted.
    fn settle_quietly(&mut self, feed: &FeedId, tips: &Tips) {
        let tries = self.feeds.get(feed).map(|want| want.tries);
        self.settle(feed, tips);
        if let (Some(want), Some(tries)) = (self.feeds.get_mut(feed), tries) {
            want.tries = tries;
        }
    }
}

enum Choice {
    Ask(Peer, Asking),
    Later,
    Nobody,
}
