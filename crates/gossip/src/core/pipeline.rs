//! The way of a message of others: taken in, checked, judged, delivered and sent on, or dropped (specs/gossip.md §3).
//!
//! ```text
//! candidate → wanted? signed as it must? allowed? replayed? known id? → queue → Verify → fresh? → Validate → Seen, deliver, forward
//! ```
//! Whatever is older than its deadline is dropped where it stands: it is neither delivered nor sent on, so that a slow node loses messages
//! and never repeats what others have forgotten.

use std::collections::{BTreeMap, HashMap, VecDeque};

use libp2p_identity::PeerId;

use super::budget::STRIKE;
use super::lanes::Item;
use super::replay::Fresh;
use super::topics::TopicKey;
use super::{Core, Event, Output, PeerKey, Ticket, Time, Verdict};
use crate::config::{Config, Signing};
use crate::hash::Keyed;
use crate::message::{Message, MessageId, RawMessage};
use crate::seen::{Class, Mark, Seen, State};
use crate::wire::{Candidate, VerifyJob, VerifyOutcome};

/// A message on its way.
pub(super) struct Job {
    pub(super) mark: Mark,
    pub(super) message: RawMessage,
    pub(super) from: PeerKey,
    pub(super) topic: TopicKey,
    pub(super) id: MessageId,
    /// Keyed hash of the id.
    pub(super) hash: u64,
    /// When it is too old.
    pub(super) deadline: Time,
    /// It bears our name: is it ours?
    own: bool,
    /// The application takes it; it waits for those before it.
    pub(super) accepted: bool,
}

/// All messages on their way.
pub(super) struct Pipeline {
    queues: BTreeMap<PeerKey, VecDeque<Job>>,
    /// Peers with a queue, in the order of their turns.
    turns: VecDeque<PeerKey>,
    waiting: usize,
    waiting_bytes: usize,
    /// At the workers.
    running: BTreeMap<Ticket, Job>,
    /// How many of each peer are there.
    running_of: BTreeMap<PeerKey, usize>,
    /// At the application.
    pub(super) validating: BTreeMap<Ticket, Job>,
    /// Ids on their way and how often, so that they are not asked for meanwhile.
    ids: HashMap<u64, u32, Keyed>,
    /// Queued messages of each topic.
    of_topic: BTreeMap<TopicKey, usize>,
    next: u64,
    max_messages: usize,
    max_bytes: usize,
    max_running: usize,
}

impl Pipeline {
    pub(super) fn new(config: &Config, keyed: Keyed) -> Self {
        Self {
            queues: BTreeMap::new(),
            turns: VecDeque::new(),
            waiting: 0,
            waiting_bytes: 0,
            running: BTreeMap::new(),
            running_of: BTreeMap::new(),
            validating: BTreeMap::new(),
            ids: HashMap::with_hasher(keyed),
            of_topic: BTreeMap::new(),
            next: 0,
            max_messages: config.knobs.verify_messages,
            max_bytes: config.knobs.verify_bytes,
            max_running: config.knobs.verify_running,
        }
    }

    /// Messages that wait, run and are judged.
    pub(super) fn len(&self) -> usize {
        self.waiting + self.running.len() + self.validating.len()
    }

    pub(super) fn bytes(&self) -> usize {
        let on_way = self.running.values().chain(self.validating.values());
        self.waiting_bytes + on_way.map(|job| job.message.wire_len()).sum::<usize>()
    }

    /// Whether a message with this id is on its way.
    pub(super) fn holds(&self, hash: u64) -> bool {
        self.ids.contains_key(&hash)
    }

    /// Whether there is room for one more of this peer and topic: nobody gets more than half of what is free, so that a flood leaves room
    /// for everybody else.
    fn has_room(&self, peer: PeerKey, topic: TopicKey, len: usize) -> bool {
        let free = self.max_messages.saturating_sub(self.waiting);
        let free_bytes = self.max_bytes.saturating_sub(self.waiting_bytes);
        let queue = self.queues.get(&peer);
        let of_peer = queue.map_or(0, VecDeque::len);
        let bytes_of_peer: usize = match queue {
            // A frame holds at most a MiB: the sum is looked at only where it could matter.
            Some(queue) if self.waiting_bytes > self.max_bytes / 4 => {
                queue.iter().map(|job| job.message.wire_len()).sum()
            }
            _ => 0,
        };
        let of_topic = self.of_topic.get(&topic).copied().unwrap_or(0);
        of_peer < free
            && of_topic < free.saturating_mul(2)
            && (bytes_of_peer + len <= free_bytes || (of_peer == 0 && len <= free_bytes))
    }

    /// Whether the application may be asked about one more of this peer: nobody has more than is free.
    fn has_slot(&self, peer: PeerKey, slots: usize) -> bool {
        let taken = self.validating.len();
        let free = slots.saturating_sub(taken);
        if taken < free {
            return true;
        }
        let of_peer = self.validating.values().filter(|job| job.from == peer);
        of_peer.count() < free
    }

    fn push(&mut self, job: Job) {
        self.waiting += 1;
        self.waiting_bytes += job.message.wire_len();
        *self.of_topic.entry(job.topic).or_default() += 1;
        *self.ids.entry(job.hash).or_default() += 1;
        let queue = self.queues.entry(job.from).or_default();
        if queue.is_empty() {
            self.turns.push_back(job.from);
        }
        queue.push_back(job);
    }

    fn left_queue(&mut self, job: &Job) {
        self.waiting -= 1;
        self.waiting_bytes -= job.message.wire_len();
        if let Some(count) = self.of_topic.get_mut(&job.topic) {
            *count -= 1;
            if *count == 0 {
                self.of_topic.remove(&job.topic);
            }
        }
    }

    fn left(&mut self, job: &Job) {
        if let Some(count) = self.ids.get_mut(&job.hash) {
            *count -= 1;
            if *count == 0 {
                self.ids.remove(&job.hash);
            }
        }
    }

    /// The next message whose peer may have one more at the workers.
    fn pop(&mut self, may: impl Fn(PeerKey, usize) -> bool) -> Option<Job> {
        if self.running.len() >= self.max_running {
            return None;
        }
        for _ in 0..self.turns.len() {
            let peer = self.turns.pop_front()?;
            let Some(queue) = self.queues.get_mut(&peer) else {
                continue;
            };
            if !may(peer, self.running_of.get(&peer).copied().unwrap_or(0)) {
                self.turns.push_back(peer);
                continue;
            }
            let job = queue.pop_front();
            if queue.is_empty() {
                self.queues.remove(&peer);
            } else {
                self.turns.push_back(peer);
            }
            let job = job?;
            self.left_queue(&job);
            return Some(job);
        }
        None
    }

    fn run(&mut self, job: Job) -> Ticket {
        let ticket = self.ticket();
        *self.running_of.entry(job.from).or_default() += 1;
        self.running.insert(ticket, job);
        ticket
    }

    fn finish(&mut self, ticket: Ticket) -> Option<Job> {
        let job = self.running.remove(&ticket)?;
        if let Some(count) = self.running_of.get_mut(&job.from) {
            *count -= 1;
            if *count == 0 {
                self.running_of.remove(&job.from);
            }
        }
        Some(job)
    }

    fn ticket(&mut self) -> Ticket {
        self.next += 1;
        Ticket(self.next)
    }
}

impl Core {
    /// New messages of one RPC.
    pub(super) fn on_candidates(
        &mut self,
        seen: &mut Seen,
        from: PeerKey,
        candidates: Vec<Candidate>,
        at: Time,
    ) {
        for candidate in candidates {
            self.counters.candidates += 1;
            let at = at.min(self.now);
            match self.peers.get(&from).is_some_and(|peer| !peer.banned) {
                true => self.on_candidate(seen, from, candidate, at),
                false => self.on_heirless(seen, candidate, at),
            }
        }
    }

    /// Its sender does not stand for it any more: it is as if another had sent it first. Without one the next copy is new again.
    pub(super) fn on_heirless(&mut self, seen: &mut Seen, candidate: Candidate, at: Time) {
        if let Some(heir) = self.heir(seen, candidate.mark) {
            self.on_candidate(seen, heir, candidate, at);
        }
    }

    /// The next peer that sent the same bytes, while they waited for their verdict, and is still heard.
    fn heir(&self, seen: &mut Seen, mark: Mark) -> Option<PeerKey> {
        while let Some(source) = seen.hand_on(mark) {
            let key = self.key_of(seen, source);
            if let Some(key) = key.filter(|key| self.peers.get(key).is_some_and(|p| !p.banned)) {
                return Some(key);
            }
        }
        None
    }

    fn on_candidate(&mut self, seen: &mut Seen, from: PeerKey, candidate: Candidate, at: Time) {
        let Candidate { mark, message } = candidate;
        let key = self.topics.key(message.topic());
        let Some((key, topic)) = key
            .and_then(|key| Some((key, self.topics.get(key)?)))
            .filter(|(_, topic)| topic.is_wanted())
        else {
            seen.forget(mark);
            self.on_unwanted(seen, from);
            return;
        };
        let class = topic.class;
        if topic.relayed && self.relay_left == 0 {
            self.counters.shed_relay += 1;
            return seen.forget(mark);
        }
        let options = &topic.options;
        let deadline = at + topic.validation;
        if deadline <= self.now {
            return self.drop_stale(seen, mark, class);
        }
        if message.is_signed() != (options.signing == Signing::Strict) {
            self.counters.refused_signing += 1;
            if topic.relayed {
                // Who reads the topic knows how it is signed; here it is an assumption, and nobody's fault.
                return self.ignore(seen, mark, class);
            }
            seen.settle(mark, State::Invalid, None, class, self.now);
            return self.strike(seen, from, STRIKE);
        }
        if message.data_len() > options.max_bytes {
            self.counters.refused_size += 1;
            return self.ignore(seen, mark, class);
        }
        let mut own = false;
        if let Some(number) = message.seqno() {
            let author = PeerId::from_bytes(message.from());
            if let Some(authors) = &options.authors
                && !author.as_ref().is_ok_and(|a| authors.contains(a))
            {
                self.counters.refused_author += 1;
                return self.ignore(seen, mark, class);
            }
            own = matches!((&self.author, &author), (Some(us), Ok(a)) if us.peer() == *a);
            if own && !self.sequence.is_unused(number) {
                // Our own, back again.
                return self.ignore(seen, mark, class);
            }
        }
        let id = message.id();
        let hash = seen.digester().id(id.as_bytes());
        if seen.knows_hash(hash, self.now) {
            // The id is taken; these bytes are others.
            self.counters.variants += 1;
            let is_author = self.is_author(from, &message);
            self.ignore(seen, mark, class);
            return self.strike_passed_on(seen, from, is_author);
        }
        let replay_window = self
            .topics
            .get(key)
            .is_some_and(|topic| topic.options.replay_window);
        if let Some(number) = message.seqno()
            && replay_window
            && self.replay.check(message.from(), number) == Fresh::No
        {
            self.counters.replayed += 1;
            // It was asked for, perhaps, and came.
            self.keep_promise(hash);
            return self.ignore(seen, mark, class);
        }
        let job = Job {
            mark,
            message,
            from,
            topic: key,
            id,
            hash,
            deadline,
            own,
            accepted: false,
        };
        if !self.pipeline.has_room(from, key, job.message.wire_len()) {
            self.counters.shed += 1;
            self.note_shed(key);
            let Job { mark, message, .. } = job;
            return self.on_heirless(seen, Candidate { mark, message }, at);
        }
        #[cfg(feature = "sim")]
        if self.has(crate::sim::Planted::InsertBeforeVerify) {
            seen.name_unverified(job.mark, hash);
        }
        self.wake(deadline);
        self.pipeline.push(job);
    }

    fn ignore(&self, seen: &mut Seen, mark: Mark, class: Class) {
        seen.settle(mark, State::Ignored, None, class, self.now);
    }

    fn drop_stale(&mut self, seen: &mut Seen, mark: Mark, class: Class) {
        self.counters.stale += 1;
        self.ignore(seen, mark, class);
    }

    /// Gives work to idle workers, peer by peer.
    pub(super) fn dispatch(&mut self, seen: &mut Seen) {
        loop {
            let peers = &self.peers;
            let may = |peer: PeerKey, running: usize| {
                peers
                    .get(&peer)
                    .is_some_and(|peer| running < peer.budget.checks())
            };
            let Some(job) = self.pipeline.pop(may) else {
                return;
            };
            if job.deadline <= self.now {
                self.end_stale(seen, &job);
            } else if job.message.is_signed() {
                let check = VerifyJob {
                    message: job.message.clone(),
                };
                let ticket = self.pipeline.run(job);
                self.counters.verified += 1;
                self.out.push_back(Output::Verify { ticket, job: check });
            } else {
                self.judge(seen, job);
            }
        }
    }

    pub(super) fn on_verified(&mut self, seen: &mut Seen, ticket: Ticket, outcome: VerifyOutcome) {
        let Some(job) = self.pipeline.finish(ticket) else {
            return;
        };
        match outcome {
            VerifyOutcome::Good => {
                self.counters.verified_good += 1;
                if let Some(peer) = self.peers.get_mut(&job.from) {
                    peer.budget.good += 1;
                }
                if job.own {
                    self.on_clone(seen, &job);
                } else {
                    self.judge(seen, job);
                }
            }
            VerifyOutcome::Bad => {
                self.counters.verified_bad += 1;
                self.pipeline.left(&job);
                let class = self.class_of(job.topic);
                let others = seen.settle(job.mark, State::Invalid, None, class, self.now);
                self.strike(seen, job.from, STRIKE);
                for source in others {
                    if let Some(key) = self.key_of(seen, source) {
                        self.strike(seen, key, STRIKE);
                    }
                }
            }
            VerifyOutcome::Unknown => {
                self.counters.verified_unknown += 1;
                self.end_ignored(seen, &job);
            }
        }
    }

    /// Somebody signs with our key what we did not.
    fn on_clone(&mut self, seen: &mut Seen, job: &Job) {
        self.end_ignored(seen, job);
        if let Some(seqno) = job.message.seqno()
            && self.sequence.heard(seqno)
        {
            self.counters.clones += 1;
            self.event(Event::CloneDetected { seqno });
            self.say_again();
            self.reserve();
        }
    }

    /// The signature is good, or there need be none. What came in meanwhile may have changed the picture.
    fn judge(&mut self, seen: &mut Seen, job: Job) {
        let topic = self.topics.get(job.topic).filter(|t| t.is_wanted());
        let Some(topic) = topic else {
            self.counters.unwanted += 1;
            self.pipeline.left(&job);
            return seen.forget(job.mark);
        };
        if job.deadline <= self.now {
            return self.end_stale(seen, &job);
        }
        let known = seen.knows_hash(job.hash, self.now);
        #[cfg(feature = "sim")]
        let known = known && !self.has(crate::sim::Planted::InsertBeforeVerify);
        if known {
            self.counters.variants += 1;
            return self.end_ignored(seen, &job);
        }
        if topic.options.replay_window
            && let Some(number) = job.message.seqno()
            && self.replay.check(job.message.from(), number) == Fresh::No
        {
            self.counters.replayed += 1;
            return self.end_ignored(seen, &job);
        }
        if !topic.options.validate || !topic.subscribed {
            return self.accept(seen, job);
        }
        let Some(job) = self.find_slot(seen, job) else {
            return;
        };
        self.counters.validations += 1;
        let Some(message) = self.deliverable(&job) else {
            return;
        };
        let deadline = job.deadline;
        let ticket = self.pipeline.ticket();
        self.pipeline.validating.insert(ticket, job);
        self.wake(deadline);
        self.out.push_back(Output::Validate {
            ticket,
            message,
            deadline,
        });
    }

    /// A slot at the application: of its sender, or of another that sent the same bytes. Without one it is as if it had not come, and a later
    /// copy may find one.
    fn find_slot(&mut self, seen: &mut Seen, mut job: Job) -> Option<Job> {
        let slots = self.config.knobs.validations;
        while !self.pipeline.has_slot(job.from, slots) {
            let Some(heir) = self.heir(seen, job.mark) else {
                self.counters.shed += 1;
                self.note_shed(job.topic);
                self.pipeline.left(&job);
                // Who was asked for it sent it.
                self.keep_promise(job.hash);
                return None;
            };
            job.from = heir;
        }
        Some(job)
    }

    pub(super) fn on_validated(&mut self, seen: &mut Seen, ticket: Ticket, verdict: Verdict) {
        let Some(job) = self.pipeline.validating.get_mut(&ticket) else {
            return;
        };
        if verdict == Verdict::Accept || job.accepted {
            // The first word counts.
            job.accepted = true;
            return self.release_judged(seen);
        }
        let Some(job) = self.pipeline.validating.remove(&ticket) else {
            return;
        };
        match verdict {
            Verdict::Reject => {
                self.counters.validated_reject += 1;
                self.pipeline.left(&job);
                // Its form and signature are good: who brings a copy is no enemy.
                self.ignore(seen, job.mark, self.class_of(job.topic));
                let is_author = self.is_author(job.from, &job.message);
                self.strike_passed_on(seen, job.from, is_author);
            }
            Verdict::Accept | Verdict::Ignore => {
                self.counters.validated_ignore += 1;
                self.end_ignored(seen, &job);
            }
        }
        self.release_judged(seen);
    }

    /// The message is good, young and new: only now its id is known.
    pub(super) fn accept(&mut self, seen: &mut Seen, job: Job) {
        self.pipeline.left(&job);
        let class = self.class_of(job.topic);
        let id = job.id.as_bytes();
        let mut had: Vec<PeerKey> = seen
            .settle(job.mark, State::Accepted, Some(id), class, self.now)
            .into_iter()
            .filter_map(|source| self.key_of(seen, source))
            .collect();
        had.push(job.from);
        if let Some(number) = job.message.seqno() {
            self.replay.mark(job.message.from(), number);
        }
        self.note_useful(job.topic, job.message.from(), &had);
        self.keep_promise(job.hash);
        let field = job.message.field().clone();
        let has = self.who_has(&job.message, &had);
        if field.len() >= self.config.knobs.idontwant_bytes {
            self.refuse_copies(job.topic, &job.id, &has);
        }
        self.history
            .put(job.hash, job.id.clone(), job.topic, field, has);
        self.note_received(job.topic);
        let Some(topic) = self.topics.get(job.topic) else {
            return;
        };
        if topic.subscribed {
            if let Some(message) = self.deliverable(&job) {
                self.counters.delivered += 1;
                self.out.push_back(Output::Deliver { message });
            }
        } else {
            self.counters.relayed += 1;
        }
        self.forward(job.topic, &job.message, job.hash, &had);
    }

    fn deliverable(&self, job: &Job) -> Option<Message> {
        let source = match job.message.is_signed() {
            true => Some(PeerId::from_bytes(job.message.from()).ok()?),
            false => None,
        };
        Some(Message {
            id: job.id.clone(),
            source,
            seqno: job.message.seqno(),
            topic: self.topics.get(job.topic)?.name.clone(),
            data: job.message.data(),
            received_from: self.peers.get(&job.from).map(|peer| peer.id),
        })
    }

    /// Sends an accepted message on, to everybody who should have it and did not send it.
    fn forward(&mut self, key: TopicKey, message: &RawMessage, hash: u64, had: &[PeerKey]) {
        let Some(topic) = self.topics.get(key) else {
            return;
        };
        let expires = self.now + topic.lane;
        let author = message.from();
        let targets: Vec<PeerKey> = self
            .targets(key)
            .into_iter()
            .filter(|peer| !had.contains(peer))
            .filter(|peer| {
                self.peers.get(peer).is_some_and(|peer| {
                    !peer.unneeded.contains(hash) && (author.is_empty() || *peer.name != *author)
                })
            })
            .collect();
        for peer in targets {
            if !self.spend(key, message.wire_len()) {
                self.note_missed(peer);
                continue;
            }
            self.counters.forwarded += 1;
            self.note_sent(key);
            let item = Item {
                field: message.field().clone(),
                id: hash,
                expires,
            };
            self.push(peer, item);
        }
    }

    pub(super) fn end_ignored(&mut self, seen: &mut Seen, job: &Job) {
        self.pipeline.left(job);
        self.keep_promise(job.hash);
        self.ignore(seen, job.mark, self.class_of(job.topic));
    }

    pub(super) fn end_stale(&mut self, seen: &mut Seen, job: &Job) {
        self.counters.stale += 1;
        self.note_stale(job.topic);
        #[cfg(feature = "sim")]
        if self.has(crate::sim::Planted::ForwardLate) {
            self.forward(job.topic, &job.message, job.hash, &[job.from]);
        }
        // Too late here: asking others for it would bring it later still.
        self.promises.spurn(job.hash, self.now);
        self.end_ignored(seen, job);
    }

    fn class_of(&self, topic: TopicKey) -> Class {
        self.topics.get(topic).map_or(Class::DEFAULT, |t| t.class)
    }

    fn is_author(&self, peer: PeerKey, message: &RawMessage) -> bool {
        let peer = self.peers.get(&peer);
        peer.is_some_and(|peer| *peer.name == *message.from())
    }

    fn key_of(&self, seen: &Seen, source: crate::seen::Source) -> Option<PeerKey> {
        self.by_peer.get(&seen.peer(source)?).copied()
    }

    /// What waits for a peer that is gone waits for the next who sent the same bytes. What nobody else sent is new again when it comes.
    pub(super) fn drop_queue(&mut self, seen: &mut Seen, peer: PeerKey) {
        let queue = self.pipeline.queues.remove(&peer).unwrap_or_default();
        self.pipeline.turns.retain(|turn| *turn != peer);
        for job in queue {
            self.pipeline.left_queue(&job);
            self.pipeline.left(&job);
            self.requeue(seen, job);
        }
    }

    fn requeue(&mut self, seen: &mut Seen, mut job: Job) {
        let len = job.message.wire_len();
        while let Some(heir) = self.heir(seen, job.mark) {
            if self.pipeline.has_room(heir, job.topic, len) {
                job.from = heir;
                return self.pipeline.push(job);
            }
            self.counters.shed += 1;
            self.note_shed(job.topic);
        }
    }

    /// Drops what grew too old in the queues and at the application.
    pub(super) fn expire_jobs(&mut self, seen: &mut Seen) {
        let now = self.now;
        let late: Vec<Ticket> = self
            .pipeline
            .validating
            .iter()
            .filter(|(_, job)| job.deadline <= now)
            .map(|(ticket, _)| *ticket)
            .collect();
        for ticket in late {
            if let Some(job) = self.pipeline.validating.remove(&ticket) {
                self.counters.validated_late += 1;
                self.end_stale(seen, &job);
            }
        }
        self.press_judged(seen);
        let mut old = Vec::new();
        for queue in self.pipeline.queues.values_mut() {
            while queue.front().is_some_and(|job| job.deadline <= now) {
                old.extend(queue.pop_front());
            }
        }
        for job in old {
            self.pipeline.left_queue(&job);
            self.end_stale(seen, &job);
        }
        let queues = &mut self.pipeline.queues;
        queues.retain(|_, queue| !queue.is_empty());
        self.pipeline.turns.retain(|turn| queues.contains_key(turn));
        let waiting = self.pipeline.queues.values().filter_map(|q| q.front());
        let next = waiting
            .chain(self.pipeline.validating.values())
            .map(|job| job.deadline)
            .min();
        if let Some(at) = next {
            self.wake(at);
        }
    }
}
