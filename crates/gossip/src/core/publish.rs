//! One's own messages: numbered, signed, handed to everybody who subscribes (specs/gossip.md §5).
//!
//! A message gets its number only when somebody is there to take it and no earlier, so that what waits holds up nobody else, and numbers
//! leave in their order: Kubo drops a number that comes after a higher one.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;

use super::lanes::Item;
use super::{Core, Mode, Output, PublishId, Receipt, Time};
use crate::config::Signing;
use crate::error::{PublishError, WaitCause};
use crate::message::{Message, Topic};
use crate::seen::{Digester, Seen, State as SeenState};
use crate::wire::{MAX_FRAME_BYTES, OwnMessage, SignJob, bytes_field_len, parse_again};

/// An Ed25519 signature. Where a key must come along it is another kind of key, and its signature is longer.
const SIGNATURE: usize = 64;
const LONG_SIGNATURE: usize = 1024;
/// What is said again waits so long for somebody who reads it.
const SAY_AGAIN: Duration = Duration::from_secs(60);

enum State {
    /// For a subscriber, room, a number.
    Waiting(WaitCause),
    /// Numbered, at a worker.
    Signing,
    /// Ready to leave, in its turn.
    Signed(OwnMessage),
}

struct Entry {
    topic: Topic,
    data: Bytes,
    /// Gives up then.
    until: Time,
    /// May wait for subscribers and room.
    patient: bool,
    /// Was sent before under a number that others know already. Nobody waits for what becomes of it.
    again: bool,
    state: State,
}

/// Own messages on their way.
#[derive(Default)]
pub(super) struct Own {
    all: BTreeMap<PublishId, Entry>,
    /// Those that wait, by topic and in order; some may have ended meanwhile.
    waiting: BTreeMap<Topic, VecDeque<PublishId>>,
    /// Those that were at a worker or are there, in the order in which they leave, which is that of their numbers.
    order: VecDeque<PublishId>,
    bytes: usize,
    next: u64,
    /// Something changed that may let one of them go.
    pub(super) stir: bool,
    /// What was sent under used numbers was sent again.
    said_again: bool,
}

impl Own {
    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    fn remove(&mut self, id: PublishId) -> Option<Entry> {
        let entry = self.all.remove(&id)?;
        self.bytes -= entry.data.len();
        if !matches!(entry.state, State::Waiting(_)) {
            self.order.retain(|other| *other != id);
        } else if let Some(waiting) = self.waiting.get_mut(&entry.topic) {
            waiting.retain(|other| *other != id);
            if waiting.is_empty() {
                self.waiting.remove(&entry.topic);
            }
        }
        Some(entry)
    }
}

impl Core {
    pub(super) fn on_publish(
        &mut self,
        topic: &Topic,
        data: Bytes,
        mode: Mode,
    ) -> Result<PublishId, PublishError> {
        let max = MAX_FRAME_BYTES - self.overhead(topic);
        if data.len() > max {
            let len = data.len();
            return Err(PublishError::TooLarge { len, max });
        }
        if self.signing(topic) == Signing::Strict && self.author.is_none() {
            return Err(PublishError::NoKey);
        }
        let knobs = &self.config.knobs;
        let full = self.own.len() >= knobs.own_messages
            || (self.own.bytes + data.len() > knobs.own_bytes && !self.own.is_empty());
        if full {
            let queued_bytes = self.own.bytes;
            return Err(PublishError::Backpressure { queued_bytes });
        }
        let (until, patient) = match mode {
            // The signature still takes a moment.
            Mode::Try => (self.now + knobs.validation_deadline, false),
            Mode::Wait(until) => (until, true),
            Mode::Hold(time) => (self.now.saturating_add(time), true),
        };
        if !patient {
            self.way_out(topic, data.len())?;
        }
        self.own.next += 1;
        let id = PublishId(self.own.next);
        self.own.bytes += data.len();
        let entry = Entry {
            topic: topic.clone(),
            data,
            until,
            patient,
            again: false,
            state: State::Waiting(WaitCause::Peers),
        };
        self.own.all.insert(id, entry);
        let waiting = self.own.waiting.entry(topic.clone()).or_default();
        waiting.push_back(id);
        self.own.stir = true;
        self.keep_house();
        self.wake_at(until);
        Ok(id)
    }

    /// Numbers that this node used were used before, by a clone or by itself before it was restored from a backup: who remembers them dropped what
    /// it said. So what is kept of that is said again, once, under numbers that nobody knows. Whoever took it the first time has it twice.
    pub(super) fn say_again(&mut self) {
        if std::mem::replace(&mut self.own.said_again, true) {
            return;
        }
        let Some(author) = self.author.as_ref().map(|author| author.peer().to_bytes()) else {
            return;
        };
        let hold = Mode::Hold(SAY_AGAIN);
        for message in self
            .history
            .of_author(&author)
            .into_iter()
            .filter_map(parse_again)
        {
            let Ok(topic) = Topic::new(message.topic()) else {
                continue;
            };
            // There is room, or newer ones have it.
            if let Ok(id) = self.on_publish(&topic, message.data(), hold)
                && let Some(entry) = self.own.all.get_mut(&id)
            {
                entry.again = true;
                self.counters.said_again += 1;
            }
        }
    }

    pub(super) fn on_withdraw(&mut self, id: PublishId) -> bool {
        let waits = matches!(
            self.own.all.get(&id),
            Some(Entry {
                state: State::Waiting(_),
                ..
            })
        );
        waits && self.own.remove(id).is_some()
    }

    fn signing(&self, topic: &Topic) -> Signing {
        match self.topics.named(topic.as_str()) {
            Some(state) => state.options.signing,
            None => self.config.options(topic.as_str()).signing,
        }
    }

    /// What an RPC of the largest message has besides the payload: with an Ed25519 key that RPC has 1,048,576 bytes exactly.
    fn overhead(&self, topic: &Topic) -> usize {
        // Of the message and of its payload: the field, and three bytes for a length below 2 MiB.
        const HEADERS: usize = 2 * (1 + 3);
        let of_author = match &self.author {
            Some(author) if self.signing(topic) == Signing::Strict => {
                let from = bytes_field_len(1, author.peer().to_bytes().len());
                let signed = match author.key() {
                    b"" => bytes_field_len(5, SIGNATURE),
                    key => bytes_field_len(5, LONG_SIGNATURE) + bytes_field_len(6, key.len()),
                };
                from + bytes_field_len(3, 8) + signed
            }
            _ => 0,
        };
        HEADERS + of_author + bytes_field_len(4, topic.as_str().len())
    }

    /// Whether somebody would take a message now.
    fn way_out(&mut self, topic: &Topic, len: usize) -> Result<(), PublishError> {
        let targets = self.publish_targets(topic);
        if targets.is_empty() {
            return Err(PublishError::NoPeers);
        }
        let len = len + self.overhead(topic);
        let knobs = &self.config.knobs;
        let mut queued_bytes = 0;
        for key in targets {
            if let Some(peer) = self.peers.get(&key) {
                if peer
                    .lane
                    .has_room(len, knobs.lane_bytes, knobs.lane_messages)
                {
                    return Ok(());
                }
                queued_bytes += peer.lane.bytes();
            }
        }
        Err(PublishError::Backpressure { queued_bytes })
    }

    /// Lets own messages go that have a way out now.
    pub(super) fn pump_own(&mut self, seen: &mut Seen) {
        if !std::mem::take(&mut self.own.stir) {
            return;
        }
        let topics: Vec<Topic> = self.own.waiting.keys().cloned().collect();
        for topic in topics {
            let count = self.own.waiting.get(&topic).map_or(0, VecDeque::len);
            for _ in 0..count {
                let waiting = self.own.waiting.get(&topic);
                let Some(id) = waiting.and_then(|w| w.front().copied()) else {
                    break;
                };
                // What is behind it waits for the same.
                if let Err(cause) = self.start(seen.digester(), &topic, id) {
                    self.wait_for(&topic, cause);
                    break;
                }
            }
        }
        self.send_signed(seen);
    }

    /// Numbers a waiting message and has it written and signed, or says what it waits for.
    fn start(&mut self, digester: Digester, topic: &Topic, id: PublishId) -> Result<(), WaitCause> {
        let Some(entry) = self.own.all.get(&id) else {
            self.not_waiting(topic, id);
            return Ok(());
        };
        let data = entry.data.clone();
        self.way_out(topic, data.len())
            .map_err(|error| match error {
                PublishError::NoPeers => WaitCause::Peers,
                _ => WaitCause::Room,
            })?;
        let author = match (self.signing(topic), &self.author) {
            (Signing::Unsigned, _) => None,
            (Signing::Strict, Some(author)) => {
                let seqno = self.sequence.take().ok_or(WaitCause::Sequence)?;
                Some((author.clone(), seqno))
            }
            (Signing::Strict, None) => {
                self.end_own(id, Err(PublishError::NoKey));
                return Ok(());
            }
        };
        let job = SignJob::new(author, data, topic.clone(), digester);
        self.not_waiting(topic, id);
        if let Some(entry) = self.own.all.get_mut(&id) {
            entry.state = State::Signing;
        }
        self.own.order.push_back(id);
        self.out.push_back(Output::Sign { publish: id, job });
        self.reserve();
        Ok(())
    }

    fn not_waiting(&mut self, topic: &Topic, id: PublishId) {
        if let Some(waiting) = self.own.waiting.get_mut(topic) {
            waiting.retain(|other| *other != id);
            if waiting.is_empty() {
                self.own.waiting.remove(topic);
            }
        }
    }

    /// Notes what the first of a topic waits for; the others wait for it.
    fn wait_for(&mut self, topic: &Topic, cause: WaitCause) {
        let waiting = self.own.waiting.get(topic).into_iter().flatten();
        for id in waiting {
            if let Some(entry) = self.own.all.get_mut(id) {
                if matches!(entry.state, State::Waiting(before) if before == cause) {
                    break;
                }
                entry.state = State::Waiting(cause);
            }
        }
    }

    pub(super) fn on_signed(&mut self, id: PublishId, result: Result<OwnMessage, PublishError>) {
        self.own.stir = true;
        match result {
            Ok(message) => {
                if let Some(entry) = self.own.all.get_mut(&id) {
                    entry.state = State::Signed(message);
                }
            }
            Err(error) => self.end_own(id, Err(error)),
        }
    }

    /// Sends signed messages in the order of their numbers.
    fn send_signed(&mut self, seen: &mut Seen) {
        while let Some(id) = self.own.order.front().copied() {
            let message = match self.own.all.get(&id).map(|entry| &entry.state) {
                Some(State::Signed(message)) => message.clone(),
                Some(_) => return,
                None => {
                    self.own.order.pop_front();
                    continue;
                }
            };
            self.own.order.pop_front();
            self.send_own(seen, id, &message);
        }
    }

    fn send_own(&mut self, seen: &mut Seen, id: PublishId, own: &OwnMessage) {
        let message = &own.message;
        let Some(entry) = self.own.all.get(&id) else {
            return;
        };
        let topic = entry.topic.clone();
        let (patient, again) = (entry.patient, entry.again);
        let lane = self
            .topics
            .named(topic.as_str())
            .map_or(self.config.knobs.lane_age, |t| t.lane);
        let message_id = message.id();
        let hash = seen.digester().id(message_id.as_bytes());
        if !message.is_signed() && seen.knows_hash(hash, self.now) {
            self.counters.publish_refused += 1;
            return self.end_own(id, Err(PublishError::Duplicate));
        }
        let (mut queued_to, mut refused_by) = (0, 0);
        let (bytes, messages) = (
            self.config.knobs.lane_bytes,
            self.config.knobs.lane_messages,
        );
        let expires = self.now + lane;
        for key in self.publish_targets(&topic) {
            let Some(peer) = self.peers.get_mut(&key) else {
                continue;
            };
            let item = Item {
                field: message.field().clone(),
                id: hash,
                expires,
            };
            match peer.lane.push_own(item, bytes, messages) {
                Ok(()) => queued_to += 1,
                Err(_) => refused_by += 1,
            }
            self.ready.insert(key);
        }
        if queued_to == 0 {
            // Everybody left, or filled up, while it was signed.
            if patient {
                // A number was used up; the next one will be higher.
                return self.wait_again(id);
            }
            let error = match refused_by {
                0 => PublishError::NoPeers,
                _ => PublishError::Backpressure {
                    queued_bytes: self.own.bytes,
                },
            };
            self.counters.publish_refused += 1;
            return self.end_own(id, Err(error));
        }
        self.wake(expires);
        self.counters.published += 1;
        self.on_own_sent(seen, &topic, own, &message_id, again);
        let receipt = Receipt {
            id: message_id,
            seqno: message.seqno(),
            queued_to,
            refused_by,
        };
        self.end_own(id, Ok(receipt));
    }

    /// It is on its way: copies that come back are known, and can be asked for.
    fn on_own_sent(
        &mut self,
        seen: &mut Seen,
        topic: &Topic,
        OwnMessage { message, mark }: &OwnMessage,
        id: &crate::MessageId,
        again: bool,
    ) {
        let state = self.topics.named(topic.as_str());
        let class = state.map_or(crate::seen::Class::DEFAULT, |t| t.class);
        seen.settle(
            *mark,
            SeenState::Accepted,
            Some(id.as_bytes()),
            class,
            self.now,
        );
        let echo = state.is_some_and(|t| t.subscribed && t.options.echo) && !again;
        if let Some(key) = self.topics.key(topic.as_str()) {
            let hash = seen.digester().id(id.as_bytes());
            self.history
                .put(hash, id.clone(), key, message.field().clone(), Vec::new());
            self.note_sent(key);
        }
        if echo {
            let source = self.author.as_ref().map(crate::wire::Author::peer);
            self.counters.delivered += 1;
            self.out.push_back(Output::Deliver {
                message: Message {
                    id: id.clone(),
                    source: source.filter(|_| message.is_signed()),
                    seqno: message.seqno(),
                    topic: topic.clone(),
                    data: message.data(),
                    received_from: None,
                },
            });
        }
    }

    /// Puts a message in front of those that wait.
    fn wait_again(&mut self, id: PublishId) {
        if let Some(entry) = self.own.all.get_mut(&id) {
            entry.state = State::Waiting(WaitCause::Peers);
            let waiting = self.own.waiting.entry(entry.topic.clone()).or_default();
            waiting.push_front(id);
        }
    }

    fn end_own(&mut self, id: PublishId, result: Result<Receipt, PublishError>) {
        if self.own.remove(id).is_some_and(|entry| !entry.again) {
            self.out.push_back(Output::Published {
                publish: id,
                result,
            });
        }
    }

    /// Gives up what found nobody in time.
    pub(super) fn expire_own(&mut self) {
        let now = self.now;
        let over: Vec<(PublishId, WaitCause)> = self
            .own
            .all
            .iter()
            .filter(|(_, entry)| entry.until <= now)
            .map(|(id, entry)| {
                let cause = match entry.state {
                    State::Waiting(cause) => cause,
                    State::Signing | State::Signed(_) => WaitCause::Signature,
                };
                (*id, cause)
            })
            .collect();
        for (id, cause) in over {
            self.counters.publish_expired += 1;
            self.end_own(id, Err(PublishError::Expired { cause }));
        }
        if let Some(at) = self.own.all.values().map(|entry| entry.until).min() {
            self.wake_at(at);
        }
    }

    /// Has numbers reserved when few are left.
    pub(super) fn reserve(&mut self) {
        if self.author.is_some()
            && let Some(upto) = self.sequence.wants()
        {
            self.out.push_back(Output::Reserve { upto });
        }
    }
}
