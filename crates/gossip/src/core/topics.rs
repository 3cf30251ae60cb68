//! The topics of interest here or at a neighbour, and who subscribes to them.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::health::HealthState;
use super::{Core, Event, PeerKey, Time};
use crate::config::TopicOptions;
use crate::error::SubscribeError;
use crate::hash::Keyed;
use crate::message::Topic;
use crate::seen::{Class, MAX_CLASSES, Seen};
use crate::wire::Subscription;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct TopicKey(u32);

/// What is known of one topic.
pub(super) struct TopicState {
    pub(super) name: Topic,
    pub(super) options: TopicOptions,
    pub(super) class: Class,
    /// From reading to delivery, and in a lane.
    pub(super) validation: Time,
    pub(super) lane: Time,
    pub(super) subscribed: bool,
    /// Carried for others, not read.
    pub(super) relayed: bool,
    /// Peers that subscribe, and their hops to a real subscriber.
    pub(super) neighbours: BTreeMap<PeerKey, u8>,
    /// Of those: whom every message is sent to.
    pub(super) mesh: BTreeSet<PeerKey>,
    /// Not to be grafted before.
    pub(super) backoff: BTreeMap<PeerKey, Time>,
    /// Who gets own messages, without subscription and flood publishing.
    pub(super) fanout: BTreeSet<PeerKey>,
    pub(super) fanout_until: Time,
    /// Of the last new messages: how many members of the mesh brought, and how many others.
    brought: (u32, u32),
    pub(super) health: HealthState,
}

impl TopicState {
    /// Whether its messages are taken.
    pub(super) fn is_wanted(&self) -> bool {
        self.subscribed || self.relayed
    }

    /// Keeps a neighbour out of the mesh until then. A later word makes that longer, never shorter: else a PRUNE with no back-off would end
    /// the one that we began.
    pub(super) fn back_off(&mut self, peer: PeerKey, until: Time) {
        let end = self.backoff.entry(peer).or_insert(until);
        *end = until.max(*end);
    }

    /// A neighbour was among the first to send something new, and is not its author.
    pub(super) fn note_brought(&mut self, peer: PeerKey) {
        let (mesh, others) = self.brought;
        let (mesh, others) = match self.mesh.contains(&peer) {
            true => (mesh + 1, others),
            false => (mesh, others + 1),
        };
        // The last ones count most.
        self.brought = match mesh + others > 64 {
            true => (mesh / 2, others / 2),
            false => (mesh, others),
        };
    }

    /// Others bring more than the mesh does.
    pub(super) fn is_mesh_mute(&self) -> bool {
        self.brought.1 > self.brought.0
    }

    fn is_forgettable(&self) -> bool {
        !self.is_wanted() && self.neighbours.is_empty()
    }
}

/// All topics.
pub(super) struct Topics {
    by_name: HashMap<Topic, TopicKey, Keyed>,
    all: BTreeMap<TopicKey, TopicState>,
    next: u32,
}

impl Topics {
    pub(super) fn new(keyed: Keyed) -> Self {
        Self {
            by_name: HashMap::with_hasher(keyed),
            all: BTreeMap::new(),
            next: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    pub(super) fn key(&self, name: &str) -> Option<TopicKey> {
        self.by_name.get(name).copied()
    }

    pub(super) fn get(&self, key: TopicKey) -> Option<&TopicState> {
        self.all.get(&key)
    }

    pub(super) fn get_mut(&mut self, key: TopicKey) -> Option<&mut TopicState> {
        self.all.get_mut(&key)
    }

    pub(super) fn named_mut(&mut self, name: &str) -> Option<&mut TopicState> {
        let key = self.key(name)?;
        self.get_mut(key)
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut TopicState> {
        self.all.values_mut()
    }

    /// How many are subscribed to or relayed.
    pub(super) fn wanted(&self) -> usize {
        self.all.values().filter(|t| t.is_wanted()).count()
    }

    pub(super) fn relayed(&self) -> usize {
        self.all.values().filter(|t| t.relayed).count()
    }

    pub(super) fn named(&self, name: &str) -> Option<&TopicState> {
        self.get(self.key(name)?)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (TopicKey, &TopicState)> {
        self.all.iter().map(|(key, state)| (*key, state))
    }

    pub(super) fn subscribed(&self) -> usize {
        self.all.values().filter(|t| t.subscribed).count()
    }

    fn add(&mut self, state: TopicState) -> TopicKey {
        let key = TopicKey(self.next);
        self.next = self.next.wrapping_add(1);
        self.by_name.insert(state.name.clone(), key);
        self.all.insert(key, state);
        key
    }

    /// Forgets a topic that is of interest to nobody any more.
    pub(super) fn tidy(&mut self, key: TopicKey) {
        if self.all.get(&key).is_some_and(TopicState::is_forgettable)
            && let Some(state) = self.all.remove(&key)
        {
            self.by_name.remove(state.name.as_str());
        }
    }
}

impl Core {
    pub(super) fn on_subscribe(
        &mut self,
        seen: &mut Seen,
        topic: &Topic,
        options: TopicOptions,
    ) -> Result<(), SubscribeError> {
        options.check(topic.is_own())?;
        let known = self.topics.named(topic.as_str());
        let subscribed = known.is_some_and(|t| t.subscribed);
        if !subscribed && self.topics.subscribed() >= self.config.knobs.topics {
            return Err(SubscribeError::TooManyTopics(self.config.knobs.topics));
        }
        let ttl = options.seen_ttl.unwrap_or(self.config.knobs.seen_ttl);
        let class = seen
            .class(ttl)
            .ok_or(SubscribeError::TooManyTtls(MAX_CLASSES))?;
        let key = self.topic(topic);
        let (validation, lane) = self.config.deadlines(&options);
        if let Some(state) = self.topics.get_mut(key) {
            state.options = options;
            state.class = class;
            (state.validation, state.lane) = (validation, lane);
            state.subscribed = true;
            state.relayed = false;
            if !subscribed {
                state.health = HealthState::new(self.now);
            }
        }
        self.keep_house();
        if !subscribed {
            self.announce(key);
            self.graft(key, self.config.knobs.degree, |_| true);
        }
        Ok(())
    }

    pub(super) fn on_unsubscribe(&mut self, topic: &Topic) {
        let Some(key) = self.topics.key(topic.as_str()) else {
            return;
        };
        let Some(state) = self.topics.get_mut(key).filter(|t| t.subscribed) else {
            return;
        };
        state.subscribed = false;
        self.dissolve(key);
        self.announce(key);
        self.tend_relay(key);
        self.topics.tidy(key);
    }

    /// The state of a topic, made if there is none.
    pub(super) fn topic(&mut self, name: &Topic) -> TopicKey {
        if let Some(key) = self.topics.key(name.as_str()) {
            return key;
        }
        let options = self.config.options(name.as_str());
        let (validation, lane) = self.config.deadlines(&options);
        self.topics.add(TopicState {
            name: name.clone(),
            options,
            class: Class::DEFAULT,
            validation,
            lane,
            subscribed: false,
            relayed: false,
            neighbours: BTreeMap::new(),
            mesh: BTreeSet::new(),
            backoff: BTreeMap::new(),
            fanout: BTreeSet::new(),
            fanout_until: Time::ZERO,
            brought: (0, 0),
            health: HealthState::new(self.now),
        })
    }

    /// Tells all peers what changed about our interest in a topic.
    pub(super) fn announce(&mut self, key: TopicKey) {
        let Some(topic) = self.topics.get(key) else {
            return;
        };
        let words: Vec<_> = self
            .peers
            .keys()
            .map(|peer| (*peer, self.word(topic, *peer)))
            .collect();
        let name = topic.name.clone();
        for (peer, word) in words {
            if let Some(state) = self.peers.get_mut(&peer)
                && state.lane.announce(&name, word)
            {
                self.ready.insert(peer);
            }
        }
    }

    /// A peer said what it subscribes to. Topics of interest here are always remembered, others up to a limit.
    pub(super) fn on_subscriptions(&mut self, peer: PeerKey, subscriptions: Vec<Subscription>) {
        for subscription in last_words(subscriptions) {
            let known = self.topics.key(subscription.topic.as_str());
            if !subscription.subscribe {
                if let Some(key) = known {
                    self.leave(peer, key);
                }
                continue;
            }
            let Some(state) = self.peers.get(&peer) else {
                return;
            };
            let wanted = known
                .and_then(|key| self.topics.get(key))
                .is_some_and(TopicState::is_wanted);
            let member = known.is_some_and(|key| state.topics.contains(&key));
            let bytes = subscription.topic.as_str().len();
            let room = state.topics.len() < self.config.knobs.peer_topics
                && state.topic_bytes + bytes <= self.config.knobs.peer_topics * 256;
            if !member && !wanted && !room {
                self.counters.subscriptions_dropped += 1;
                continue;
            }
            self.join(peer, &subscription.topic, subscription.distance);
        }
    }

    pub(super) fn join(&mut self, peer: PeerKey, name: &Topic, distance: u8) {
        let key = self.topic(name);
        let (Some(state), Some(topic)) = (self.peers.get_mut(&peer), self.topics.get_mut(key))
        else {
            return;
        };
        let before = topic.neighbours.insert(peer, distance);
        if before == Some(distance) {
            return;
        }
        if before.is_none() {
            state.topics.insert(key);
            state.topic_bytes += name.as_str().len();
            if topic.is_wanted() {
                let event = Event::Joined {
                    peer: state.id,
                    topic: topic.name.clone(),
                };
                self.event(event);
            }
            self.own.stir = true;
            self.thicken(key, peer);
            self.greet(key, peer);
        }
        self.tend_relay(key);
    }

    pub(super) fn leave(&mut self, peer: PeerKey, key: TopicKey) {
        let Some(topic) = self.topics.get_mut(key) else {
            return;
        };
        if topic.neighbours.remove(&peer).is_none() {
            return;
        }
        topic.mesh.remove(&peer);
        topic.fanout.remove(&peer);
        let (wanted, name) = (topic.is_wanted(), topic.name.clone());
        if let Some(state) = self.peers.get_mut(&peer) {
            state.topics.remove(&key);
            state.told.remove(&key);
            state.topic_bytes -= name.as_str().len();
            let peer = state.id;
            if wanted {
                self.event(Event::Left { peer, topic: name });
            }
        }
        self.tend_relay(key);
        self.topics.tidy(key);
    }
}

/// The last word on each topic, in order. What was taken back in the same RPC would be told to everybody for nothing, on a relay to all its
/// peers.
fn last_words(mut subscriptions: Vec<Subscription>) -> Vec<Subscription> {
    if subscriptions.len() > 1 {
        let mut said = BTreeSet::new();
        subscriptions.reverse();
        subscriptions.retain(|subscription| said.insert(subscription.topic.clone()));
        subscriptions.reverse();
    }
    subscriptions
}
