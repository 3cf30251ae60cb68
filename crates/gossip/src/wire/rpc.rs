//! Reads one RPC: control and subscriptions within limits, and of the messages only those that are new.

use bytes::Bytes;

use super::frame::WireError;
use super::message::{self, Refused};
use super::pb::{self, Fields, Value};
use super::{
    MAX_GRAFTS, MAX_IDS, MAX_MESSAGES, MAX_SUBSCRIPTIONS, RPC_PING, RPC_PONG, SUB_DISTANCE,
};
use crate::message::{MessageId, RawMessage, Topic};
use crate::seen::{Digest, Digester, Mark, Seen, Sight, Source, State};

/// A message that nobody sent before: entered into [`Seen`] as pending, in canonical form, not verified.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// Its entry.
    pub mark: Mark,
    /// The message.
    pub message: RawMessage,
}

/// What of an RPC goes to the core. Copies of known messages do not: they were counted and refreshed in [`Seen`].
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Received {
    /// Announced changes of subscriptions, in order.
    pub subscriptions: Vec<Subscription>,
    /// Messages to be verified.
    pub candidates: Vec<Candidate>,
    /// Messages that are not in canonical form.
    pub refused: Vec<(Mark, Refused)>,
    /// Control of the mesh and of the gossip.
    pub control: Control,
    /// What was recognised.
    pub known: Known,
    /// Private: the peer asks whether its stream is read.
    pub ping: Option<u64>,
    /// Private: the answer to our own question.
    pub pong: Option<u64>,
    /// Subscriptions, ids and entries above the limits of one RPC, or unreadable: dropped.
    pub ignored: u32,
    /// Bytes of the RPC.
    pub bytes: usize,
}

/// Messages of an RPC that go nowhere, by what became of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// Copies of messages that are pending, accepted or ignored.
    pub duplicates: u32,
    /// Copies of bytes that were found to be bad.
    pub invalid: u32,
    /// Refused by [`Seen`]: sender banned, over its share, or cache under pressure.
    pub shed: u32,
}

/// One announced change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subscription {
    /// Of which topic.
    pub topic: Topic,
    /// Joined or left.
    pub subscribe: bool,
    /// Hops to a real subscriber; 0 is one, more is a relay (private field of ours).
    pub distance: u8,
}

/// Control of the mesh and of the gossip. Ids are slices of the frame: copy what is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Control {
    /// Advertised ids.
    pub ihave: Vec<IHave>,
    /// Requested ids.
    pub iwant: Vec<MessageId>,
    /// Topics whose mesh the peer joins with us.
    pub graft: Vec<Topic>,
    /// Topics whose mesh the peer leaves.
    pub prune: Vec<Prune>,
    /// Ids that need not be sent to the peer.
    pub idontwant: Vec<MessageId>,
}

/// Ids that a peer can send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IHave {
    /// Their topic.
    pub topic: Topic,
    /// The ids.
    pub ids: Vec<MessageId>,
}

/// A peer leaves a mesh. The peers that it suggests instead are not read: they come without addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prune {
    /// Of which topic.
    pub topic: Topic,
    /// Seconds for which it does not want to be asked again; none from 1.0.
    pub backoff: Option<u64>,
}

impl Control {
    /// Whether there is nothing in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ihave.is_empty()
            && self.iwant.is_empty()
            && self.graft.is_empty()
            && self.prune.is_empty()
            && self.idontwant.is_empty()
    }
}

impl Received {
    /// Entries of the cache that wait for a verdict because of it. Whoever drops it answers for them: else they wait for their whole
    /// time-to-live, and nobody else can use their room.
    #[cfg(feature = "swarm")]
    pub(crate) fn marks(&self) -> impl Iterator<Item = Mark> {
        let candidates = self.candidates.iter().map(|candidate| candidate.mark);
        candidates.chain(self.refused.iter().map(|(mark, _)| *mark))
    }

    /// Whether the core need not hear of it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.subscriptions.is_empty()
            && self.candidates.is_empty()
            && self.refused.is_empty()
            && self.control.is_empty()
            && self.known.invalid == 0
            && self.ping.is_none()
            && self.pong.is_none()
    }
}

/// Reads RPCs of one connection, in three steps, so that the cache is locked once a frame and for lookups only:
///
/// ```
/// # use std::{sync::Mutex, time::Duration};
/// # use gemba_gossip::{Seen, SeenConfig, wire::{Reader, WireError, Received}};
/// # use bytes::Bytes;
/// # fn on_frame(reader: &mut Reader, seen: &Mutex<Seen>, peer: gemba_gossip::Source, frame: Bytes, now: Duration) -> Result<Received, WireError> {
/// reader.scan(&frame)?;                                        // walk, digest
/// if let Ok(mut seen) = seen.lock() {
///     reader.sight(&mut seen, peer, now);                      // look up, refresh, enter
/// }
/// Ok(reader.finish(&frame))                                    // parse what is new
/// # }
/// ```
#[derive(Debug)]
pub struct Reader {
    pub(super) digester: Digester,
    /// Kept between frames, so that copies cost no allocation.
    pub(super) pieces: Vec<Piece>,
    pub(super) received: Received,
}

/// A message in the frame.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    /// Where its field begins, where the message, where it ends.
    pub(super) at: u32,
    pub(super) start: u32,
    pub(super) end: u32,
    pub(super) minimal: bool,
    /// In a run: its frame ends with it.
    pub(super) last: bool,
    pub(super) digest: Digest,
}

impl Reader {
    /// For one connection.
    #[must_use]
    pub fn new(digester: Digester) -> Self {
        Self {
            digester,
            pieces: Vec::new(),
            received: Received::default(),
        }
    }

    /// Walks the RPC (without its length prefix), reads control and digests the messages. Forgets what an earlier call left.
    ///
    /// # Errors
    /// [`WireError`]: the stream is to be reset.
    pub fn scan(&mut self, frame: &Bytes) -> Result<(), WireError> {
        self.pieces.clear();
        self.received = Received {
            bytes: frame.len(),
            ..Received::default()
        };
        for field in Fields::new(frame) {
            let field = field?;
            match (field.number, field.value) {
                (1, Value::Bytes(value)) => self.on_subscription(value)?,
                (2, Value::Bytes(value)) => {
                    if self.pieces.len() == MAX_MESSAGES {
                        return Err(WireError::TooManyMessages);
                    }
                    self.pieces.push(Piece {
                        at: field.at as u32,
                        start: field.start as u32,
                        end: (field.start + value.len()) as u32,
                        minimal: field.minimal,
                        last: false,
                        digest: self.digester.digest(value),
                    });
                }
                (3, Value::Bytes(value)) => self.on_control(frame, field.start, value)?,
                (RPC_PING, Value::Varint(nonce)) => self.received.ping = Some(nonce),
                (RPC_PONG, Value::Varint(nonce)) => self.received.pong = Some(nonce),
                (number @ 1..=3, _) => return Err(WireError::BadType(number)),
                _ => {}
            }
        }
        Ok(())
    }

    /// Looks each message up. Known ones are refreshed and counted there, new ones entered as pending.
    pub fn sight(&mut self, seen: &mut Seen, from: Source, now: crate::Time) {
        let known = &mut self.received.known;
        self.pieces
            .retain(|piece| match seen.sight(piece.digest, from, now) {
                Sight::New(_) => true,
                Sight::Known(State::Invalid) => {
                    known.invalid += 1;
                    false
                }
                Sight::Known(_) => {
                    known.duplicates += 1;
                    false
                }
                Sight::Refused(_) => {
                    known.shed += 1;
                    false
                }
            });
    }

    /// Parses what is new and hands everything over.
    pub fn finish(&mut self, frame: &Bytes) -> Received {
        let mut received = std::mem::take(&mut self.received);
        for piece in self.pieces.drain(..) {
            let mark = Mark::new(piece.digest);
            match piece.cut(frame) {
                Ok(message) => received.candidates.push(Candidate { mark, message }),
                Err(refused) => received.refused.push((mark, refused)),
            }
        }
        self.shrink();
        received
    }

    /// What a frame of very many messages took is not kept for ever.
    pub(super) fn shrink(&mut self) {
        if self.pieces.capacity() > 1024 {
            self.pieces.shrink_to(1024);
        }
    }

    fn on_subscription(&mut self, value: &[u8]) -> Result<(), WireError> {
        let (mut subscribe, mut topic, mut distance) = (false, None, 0);
        for field in Fields::new(value) {
            let field = field?;
            match (field.number, field.value) {
                (1, Value::Varint(flag)) => subscribe = flag != 0,
                (2, Value::Bytes(name)) => topic = Some(name),
                (SUB_DISTANCE, Value::Varint(hops)) => distance = hops.min(255) as u8,
                (number @ 1..=2, _) => return Err(WireError::BadType(number)),
                _ => {}
            }
        }
        let room = self.received.subscriptions.len() < MAX_SUBSCRIPTIONS;
        match topic.filter(|_| room).and_then(read_topic) {
            Some(topic) => self.received.subscriptions.push(Subscription {
                topic,
                subscribe,
                distance,
            }),
            None => self.received.ignored += 1,
        }
        Ok(())
    }

    fn on_control(&mut self, frame: &Bytes, at: usize, value: &[u8]) -> Result<(), WireError> {
        for field in Fields::new(value) {
            let field = field?;
            let Value::Bytes(value) = field.value else {
                match field.number {
                    number @ 1..=5 => return Err(WireError::BadType(number)),
                    _ => continue,
                }
            };
            let at = at + field.start;
            let received = &mut self.received;
            match field.number {
                1 => self.on_ihave(frame, at, value)?,
                2 => {
                    let ids = &mut received.control.iwant;
                    received.ignored += read_ids(frame, at, value, 1, ids)?;
                }
                3 => self.on_graft(value)?,
                4 => self.on_prune(value)?,
                5 => {
                    let ids = &mut received.control.idontwant;
                    received.ignored += read_ids(frame, at, value, 1, ids)?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn on_ihave(&mut self, frame: &Bytes, at: usize, value: &[u8]) -> Result<(), WireError> {
        let topic = read_topic_field(value)?;
        let control = &mut self.received.control;
        let before: usize = control.ihave.iter().map(|h| h.ids.len()).sum();
        let Some(topic) = topic.filter(|_| before < MAX_IDS) else {
            self.received.ignored += 1;
            return Ok(());
        };
        let mut ids = Vec::new();
        self.received.ignored += read_ids(frame, at, value, 2, &mut ids)?;
        let over = (before + ids.len()).saturating_sub(MAX_IDS);
        ids.truncate(ids.len() - over);
        self.received.ignored += over as u32;
        if !ids.is_empty() {
            control.ihave.push(IHave { topic, ids });
        }
        Ok(())
    }

    fn on_graft(&mut self, value: &[u8]) -> Result<(), WireError> {
        let topic = read_topic_field(value)?;
        let graft = &mut self.received.control.graft;
        match topic.filter(|_| graft.len() < MAX_GRAFTS) {
            Some(topic) => graft.push(topic),
            None => self.received.ignored += 1,
        }
        Ok(())
    }

    fn on_prune(&mut self, value: &[u8]) -> Result<(), WireError> {
        let (mut topic, mut backoff) = (None, None);
        for field in Fields::new(value) {
            let field = field?;
            match (field.number, field.value) {
                (1, Value::Bytes(name)) => topic = Some(name),
                (3, Value::Varint(seconds)) => backoff = Some(seconds),
                (number @ (1 | 3), _) => return Err(WireError::BadType(number)),
                _ => {}
            }
        }
        let prune = &mut self.received.control.prune;
        let room = prune.len() < MAX_GRAFTS;
        match topic.filter(|_| room).and_then(read_topic) {
            Some(topic) => prune.push(Prune { topic, backoff }),
            None => self.received.ignored += 1,
        }
        Ok(())
    }
}

impl Piece {
    /// The message, by itself where the frame would be held for little, else as a slice of the frame.
    fn cut(self, frame: &Bytes) -> Result<RawMessage, Refused> {
        let (at, start, end) = (self.at as usize, self.start as usize, self.end as usize);
        let header = start - at;
        if !self.minimal {
            let mut field = Vec::with_capacity(end - at);
            pb::put_bytes(&mut field, 2, &frame[start..end]);
            let header = field.len() - (end - start);
            return message::parse(field.into(), header);
        }
        let field = if (end - at) * 2 < frame.len() {
            Bytes::copy_from_slice(&frame[at..end])
        } else {
            frame.slice(at..end)
        };
        message::parse(field, header)
    }
}

fn read_topic(name: &[u8]) -> Option<Topic> {
    Topic::new(std::str::from_utf8(name).ok()?).ok()
}

/// The topic of IHAVE and GRAFT: field 1. `None` if it is missing or unreadable.
fn read_topic_field(value: &[u8]) -> Result<Option<Topic>, WireError> {
    let mut topic = None;
    for field in Fields::new(value) {
        let field = field?;
        match (field.number, field.value) {
            (1, Value::Bytes(name)) => topic = Some(name),
            (1, _) => return Err(WireError::BadType(1)),
            _ => {}
        }
    }
    Ok(topic.and_then(read_topic))
}

/// Takes the ids in field `number` of `value`, which lies at `at` in the frame; returns how many were ignored.
fn read_ids(
    frame: &Bytes,
    at: usize,
    value: &[u8],
    number: u64,
    ids: &mut Vec<MessageId>,
) -> Result<u32, WireError> {
    let mut ignored = 0;
    for field in Fields::new(value) {
        let field = field?;
        match (field.number, field.value) {
            (n, Value::Bytes(id)) if n == number => {
                if ids.len() < MAX_IDS && !id.is_empty() && id.len() <= MessageId::MAX_BYTES {
                    let from = at + field.start;
                    ids.push(MessageId::new(frame.slice(from..from + id.len())));
                } else {
                    ignored += 1;
                }
            }
            (n, _) if n == number => return Err(WireError::BadType(n)),
            _ => {}
        }
    }
    Ok(ignored)
}
