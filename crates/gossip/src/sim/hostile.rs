//! Nodes that run no core, and what each manner of them does.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::plan::Manner;
use super::{INVENTED, peer_id, sign};
use crate::hash::Dice;
use crate::message::{MessageId, RawMessage, Topic};
use crate::seen::{Seen, SeenConfig};
use crate::wire::{Author, FrameBuilder, Received, VerifyJob};
use crate::{Time, wire};

/// A hostile node acts so often.
pub(super) const TICK: Duration = Duration::from_millis(500);
/// Messages that it remembers.
const LEARNED: usize = 64;
/// A banned one tries again after this.
pub(super) const AGAIN: Duration = Duration::from_secs(30);

pub(super) struct Hostile {
    pub(super) manner: Manner,
    number: u32,
    author: Author,
    pub(super) seen: Seen,
    dice: Dice,
    topics: Vec<Topic>,
    learned: VecDeque<RawMessage>,
    /// What an echo sends again, and when.
    echoes: BTreeMap<(Time, u64), RawMessage>,
    ttl: Duration,
    next: u64,
    pub(super) ticks: bool,
}

impl Hostile {
    pub(super) fn new(
        number: u32,
        manner: Manner,
        topics: Vec<Topic>,
        ttl: Duration,
        mut dice: Dice,
    ) -> Self {
        let config = SeenConfig {
            entries: 1 << 10,
            ..SeenConfig::default()
        };
        let mut key = [3; 32];
        key[..8].copy_from_slice(&dice.next_u64().to_le_bytes());
        Self {
            manner,
            number,
            author: Author::keyless(peer_id(number)),
            seen: Seen::new(config, key),
            dice,
            topics,
            learned: VecDeque::new(),
            echoes: BTreeMap::new(),
            ttl,
            next: 1,
            ticks: false,
        }
    }

    /// What it says first on each stream.
    pub(super) fn hello(&self) -> FrameBuilder {
        let mut frame = FrameBuilder::new();
        for topic in &self.topics {
            frame.subscription(topic, true, 0);
            frame.graft(topic);
        }
        frame
    }

    /// Something came; the answer, if there is one.
    pub(super) fn on_received(&mut self, received: Received, now: Time) -> Option<FrameBuilder> {
        for candidate in received.candidates {
            if candidate.message.is_signed() || self.manner == Manner::Echo {
                self.learn(candidate.message, now);
            }
        }
        let nonce = received.ping?;
        let mut frame = FrameBuilder::new();
        frame.pong(nonce);
        Some(frame)
    }

    fn learn(&mut self, message: RawMessage, now: Time) {
        if self.manner == Manner::Echo {
            let at = self.echo_at(&message, now);
            self.next += 1;
            self.echoes.insert((at, self.next), message);
            return;
        }
        if self.learned.len() == LEARNED {
            self.learned.pop_front();
        }
        self.learned.push_back(message);
    }

    /// Signed ones come again after half to twice the time-to-live. Of unsigned ones the specification says that after silence they are new:
    /// they come again a little earlier.
    fn echo_at(&mut self, message: &RawMessage, now: Time) -> Time {
        let percent = match message.is_signed() {
            true => 50 + self.dice.below(150),
            false => 50 + self.dice.below(40),
        };
        now + self.ttl / 100 * percent as u32
    }

    /// What it sends to one neighbour now. Called for each in turn.
    pub(super) fn act(&mut self) -> Vec<FrameBuilder> {
        let Some(topic) = self.topics.first().cloned() else {
            return Vec::new();
        };
        match self.manner {
            Manner::Silent => Vec::new(),
            Manner::Advertiser => {
                let ids: Vec<MessageId> = (0..200)
                    .map(|_| MessageId::signed(&self.some_author(), self.dice.next_u64()))
                    .collect();
                let mut frame = FrameBuilder::new();
                frame.ihave(&topic, &ids);
                vec![frame]
            }
            Manner::PromiseBreaker => {
                let real = self.learned.iter().map(RawMessage::id);
                let next = self.learned.iter().filter_map(next_id);
                let ids: Vec<MessageId> = real.chain(next).collect();
                let mut frame = FrameBuilder::new();
                frame.ihave(&topic, &ids);
                if frame.is_empty() {
                    return Vec::new();
                }
                vec![frame]
            }
            Manner::Forger => self.forge(&topic),
            Manner::Grafter => {
                let mut frame = FrameBuilder::new();
                for n in 0..50_u32 {
                    match n % 3 {
                        0 => frame.graft(&topic),
                        1 => frame.prune(&topic, Some(u64::from(n) * 100)),
                        _ => {
                            let name = format!("invented-{}-{n}", self.number);
                            if let Ok(topic) = Topic::new(name) {
                                frame.graft(&topic);
                            }
                        }
                    }
                }
                vec![frame]
            }
            Manner::Recoder => self.recode(),
            Manner::Echo => Vec::new(),
            Manner::Spammer => self.spam(&topic),
        }
    }

    /// What an echo sends to all of its neighbours now.
    pub(super) fn echo(&mut self, now: Time) -> Option<FrameBuilder> {
        let mut frame = FrameBuilder::new();
        while let Some(entry) = self.echoes.first_entry()
            && entry.key().0 <= now
        {
            let message = entry.remove();
            frame.message(message.field().clone());
            let at = self.echo_at(&message, now);
            self.next += 1;
            self.echoes.insert((at, self.next), message);
        }
        (!frame.is_empty()).then_some(frame)
    }

    fn some_author(&mut self) -> Vec<u8> {
        peer_id(self.dice.below(1000) as u32).to_bytes()
    }

    /// The next numbers of those that were heard lately, with a signature that is none.
    fn forge(&mut self, topic: &Topic) -> Vec<FrameBuilder> {
        let mut frame = FrameBuilder::new();
        let last: BTreeMap<Vec<u8>, u64> = self
            .learned
            .iter()
            .filter_map(|m| Some((m.from().to_vec(), m.seqno()?)))
            .collect();
        for (from, seqno) in last.into_iter().take(8) {
            let Ok(author) = libp2p_identity::PeerId::from_bytes(&from) else {
                continue;
            };
            let author = Author::keyless(author);
            let data = [
                &INVENTED.to_be_bytes()[..],
                &self.dice.next_u64().to_be_bytes(),
            ]
            .concat();
            let forged = wire::signed(&author, seqno + 1, &data, topic.as_str(), &[0xba; 64]);
            if let Ok(message) = forged {
                frame.message(message.field().clone());
            }
        }
        if frame.is_empty() {
            return Vec::new();
        }
        vec![frame]
    }

    /// A form that is not canonical, and other bytes under an id that is known.
    fn recode(&mut self) -> Vec<FrameBuilder> {
        let mut frame = FrameBuilder::new();
        for message in self.learned.iter().rev().take(4) {
            let body = message.bytes();
            let nonce = self.dice.next_u64().to_be_bytes();
            // An unknown field behind the others.
            let mut other = body.to_vec();
            wire::put_field(&mut other, 15, &nonce);
            let mut field = Vec::new();
            wire::put_field(&mut field, 2, &other);
            frame.message(field.into());
            // The same fields, with another payload.
            if let (Ok(author), Some(seqno)) = (
                libp2p_identity::PeerId::from_bytes(message.from()),
                message.seqno(),
            ) {
                let author = Author::keyless(author);
                let data = [&INVENTED.to_be_bytes()[..], &nonce].concat();
                let signature = message.signature();
                let variant = wire::signed(&author, seqno, &data, message.topic(), signature);
                if let Ok(variant) = variant {
                    frame.message(variant.field().clone());
                }
            }
        }
        if frame.is_empty() {
            return Vec::new();
        }
        vec![frame]
    }

    fn spam(&mut self, topic: &Topic) -> Vec<FrameBuilder> {
        let mut frame = FrameBuilder::new();
        for _ in 0..50 {
            self.next += 1;
            let data = [&INVENTED.to_be_bytes()[..], &self.next.to_be_bytes()].concat();
            let bytes = wire::to_sign(&self.author, self.next, &data, topic.as_str());
            let signature = sign(&bytes);
            let message = wire::signed(&self.author, self.next, &data, topic.as_str(), &signature);
            if let Ok(message) = message {
                frame.message(message.field().clone());
            }
        }
        vec![frame]
    }
}

fn next_id(message: &RawMessage) -> Option<MessageId> {
    Some(MessageId::signed(message.from(), message.seqno()? + 1))
}

/// Whether the author signed a message: what [`VerifyJob::run`] says where there are keys.
pub(super) fn is_signed(job: &VerifyJob) -> bool {
    job.message.signature() == sign(job.message.signed_bytes())
}
