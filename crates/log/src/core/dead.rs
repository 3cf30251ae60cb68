//! Dead letters: what a consumer gave up, in a stream of its own (S3.53).
//!
//! `$dead/<consumer>/<stream>` is a stream like any other: signed, replicated, kept by its own retention. Its events are letters and what was
//! decided of them since; [`Letters`] folds them into what is open. A crash may write a letter twice: letters are counted by the event they
//! are of, so they are exact all the same. A letter holds the event whole, so that it outlives the retention of its stream.
//! Format in specs/log-replication.md §3.

use crate::{
    cbor::{BYTES, MAP, Malformed, Reader, TEXT, UNSIGNED, put_bytes, put_head, put_text},
    core::consumer::ConsumerName,
    event::{Event, MAX_PAYLOAD, NewEvent},
    feed::{Author, Epoch, EventHash, EventId, FeedId, MAX_NUMBER},
    headers::{self, Headers},
    stream::{NameError, StreamName},
};
use bytes::Bytes;
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

/// Most bytes of a cause; a longer one is cut at its end.
pub const MAX_CAUSE_BYTES: usize = 4 << 10;
/// The content type of the events of a dead-letter stream.
pub const CONTENT_TYPE: &str = "application/vnd.gemba.dead-letter+cbor";
/// The first level of dead-letter streams.
pub const LEVEL: &str = "$dead";
const VERSION: u64 = 1;

/// The stream of a consumer's letters of a stream.
///
/// # Errors
/// [`NameError`]: the stream is itself ours in a form that leaves no room.
pub fn stream_of(consumer: &ConsumerName, stream: &StreamName) -> Result<StreamName, NameError> {
    // What is ours already keeps its name without the `$`, which only a first level may have.
    let below = stream.as_str().trim_start_matches('$');
    StreamName::new(&format!("{LEVEL}/{consumer}/{below}"))
}

/// Shortens a cause to what a letter takes.
pub(crate) fn cut_cause(mut cause: String) -> String {
    let mut end = cause.len().min(MAX_CAUSE_BYTES);
    while !cause.is_char_boundary(end) {
        end -= 1;
    }
    cause.truncate(end);
    cause
}

/// An event of a dead-letter stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// An event was given up.
    Letter(Box<Letter>),
    /// It was tried again, and is done.
    Done(EventId),
    /// Somebody decided that it is not needed.
    Dropped(EventId),
}

/// What was given up, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Letter {
    /// The event.
    pub id: EventId,
    /// Its hash: which form of the event it was, should its author have written two. Zeros where the event was gone.
    pub hash: EventHash,
    /// Its logical time.
    pub lamport: u64,
    /// Its wall-clock time, as the author's device had it.
    pub time: i64,
    /// Its headers: origin and trace among them.
    pub headers: Headers,
    /// Its content; none where the letter would be larger than an event may be. The event is then read from its stream.
    pub payload: Option<Bytes>,
    /// Which consumer gave it up.
    pub consumer: ConsumerName,
    /// Why it failed last.
    pub cause: String,
    /// How often it was tried.
    pub attempts: u32,
    /// For how long, from its first failure on.
    pub held: Duration,
}

/// Why bytes are no event of a dead-letter stream.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LetterError {
    /// Not the one form.
    #[error("not a dead letter: {0}")]
    Malformed(#[from] Malformed),
    /// Written by a later version.
    #[error(
        "the dead letter has version {0}, this program reads version 1: update gemba to read it"
    )]
    Newer(u64),
    /// A name or number in it breaks a rule.
    #[error("the {0} of a dead letter is not one")]
    Field(&'static str),
}

impl Letter {
    /// The letter of an event; of one that retention took meanwhile there is only the name.
    pub fn of(
        id: EventId,
        hash: EventHash,
        event: Option<Event>,
        consumer: ConsumerName,
        cause: String,
        attempts: u32,
        held: Duration,
    ) -> Self {
        Self {
            id,
            hash,
            lamport: event.as_ref().map_or(0, |event| event.lamport),
            time: event.as_ref().map_or(0, |event| event.time),
            headers: event
                .as_ref()
                .map(|event| event.headers.clone())
                .unwrap_or_default(),
            payload: event.map(|event| event.payload),
            consumer,
            cause: cut_cause(cause),
            attempts,
            held,
        }
    }

    /// The event as it was, if its content is here.
    pub fn event(&self) -> Option<Event> {
        Some(Event {
            seq: self.id.seq,
            lamport: self.lamport,
            time: self.time,
            headers: self.headers.clone(),
            payload: self.payload.clone()?,
        })
    }
}

impl Record {
    /// Which event it is about.
    pub fn id(&self) -> &EventId {
        match self {
            Self::Letter(letter) => &letter.id,
            Self::Done(id) | Self::Dropped(id) => id,
        }
    }

    /// The event for the log. A content that does not fit stays behind, and the letter says so by its absence.
    pub fn to_event(&self, time: i64) -> NewEvent {
        let mut payload = self.encode();
        if payload.len() > MAX_PAYLOAD
            && let Self::Letter(letter) = self
        {
            let mut letter = letter.clone();
            letter.payload = None;
            payload = Self::Letter(letter).encode();
        }
        let mut headers = Headers {
            content_type: Some(CONTENT_TYPE.to_owned()),
            ..Headers::default()
        };
        if let Self::Letter(letter) = self {
            (headers.origin, headers.trace) = (letter.headers.origin.clone(), letter.headers.trace);
        }
        NewEvent::new(time, payload).with(headers)
    }

    /// The bytes: one map of dag-cbor.
    pub fn encode(&self) -> Vec<u8> {
        let mut entries: Vec<(&str, Vec<u8>)> = vec![("v", number(VERSION))];
        let id = self.id();
        entries.push(("seq", number(id.seq)));
        entries.push(("epoch", number(id.feed.epoch.0)));
        entries.push(("author", bytes_of(&id.feed.author.0)));
        entries.push(("stream", text(id.feed.stream.as_str())));
        let kind = match self {
            Self::Letter(_) => "letter",
            Self::Done(_) => "done",
            Self::Dropped(_) => "dropped",
        };
        entries.push(("kind", text(kind)));
        if let Self::Letter(letter) = self {
            entries.push(("hash", bytes_of(&letter.hash.0)));
            entries.push(("held", number(held_ms(letter.held))));
            entries.push(("wall", integer(letter.time)));
            entries.push(("cause", text(&letter.cause)));
            entries.push(("lamport", number(letter.lamport)));
            entries.push(("attempts", number(u64::from(letter.attempts))));
            entries.push(("consumer", text(letter.consumer.as_str())));
            let mut headers = Vec::new();
            if !letter.headers.is_empty() && letter.headers.put(&mut headers).is_ok() {
                entries.push(("headers", headers));
            }
            if let Some(payload) = &letter.payload {
                entries.push(("payload", bytes_of(payload)));
            }
        }
        entries.sort_by_key(|(key, _)| (key.len(), *key));
        let mut out = Vec::new();
        put_head(&mut out, MAP, entries.len() as u64);
        for (key, value) in entries {
            put_text(&mut out, key);
            out.extend(value);
        }
        out
    }

    /// Reads an event of a dead-letter stream.
    ///
    /// # Errors
    /// [`LetterError`].
    pub fn decode(payload: &Bytes) -> Result<Self, LetterError> {
        let mut reader = Reader::new(payload);
        let mut fields = Fields::default();
        let count = reader.map()?;
        let mut last: Option<&str> = None;
        for _ in 0..count {
            let key = reader.text()?;
            if last.is_some_and(|last| (last.len(), last) >= (key.len(), key)) {
                return Ok(reader.fail("keys are not in order, or one comes twice")?);
            }
            last = Some(key);
            fields.take(key, &mut reader, payload)?;
        }
        if !reader.is_done() {
            return Ok(reader.fail("there are bytes behind it")?);
        }
        fields.finish()
    }
}

#[derive(Default)]
struct Fields {
    numbers: BTreeMap<&'static str, u64>,
    texts: BTreeMap<&'static str, String>,
    author: Option<Author>,
    hash: Option<EventHash>,
    wall: i64,
    headers: Headers,
    payload: Option<Bytes>,
}

impl Fields {
    fn take(
        &mut self,
        key: &str,
        reader: &mut Reader<'_>,
        whole: &Bytes,
    ) -> Result<(), LetterError> {
        const NUMBERS: [&str; 6] = ["v", "seq", "held", "epoch", "lamport", "attempts"];
        const TEXTS: [&str; 4] = ["kind", "cause", "stream", "consumer"];
        if let Some(known) = NUMBERS.iter().find(|known| **known == key) {
            let found = reader.number()?;
            if *known == "v" && found != VERSION {
                return Err(LetterError::Newer(found));
            }
            if found > MAX_NUMBER {
                return Err(LetterError::Field(known));
            }
            self.numbers.insert(known, found);
        } else if let Some(known) = TEXTS.iter().find(|known| **known == key) {
            let found = reader.text()?;
            if found.len() > MAX_CAUSE_BYTES {
                return Err(LetterError::Field(known));
            }
            self.texts.insert(known, found.to_owned());
        } else {
            match key {
                "author" => self.author = Some(Author(digest(reader, "author")?)),
                "hash" => self.hash = Some(EventHash(digest(reader, "hash")?)),
                "wall" => self.wall = reader.integer()?,
                "headers" => headers::read(reader, Some(&mut self.headers))?,
                "payload" => self.payload = Some(whole.slice_ref(reader.bytes()?)),
                _ => return Err(LetterError::Field("set of keys")),
            }
        }
        Ok(())
    }

    fn number(&self, field: &'static str) -> Result<u64, LetterError> {
        self.numbers
            .get(field)
            .copied()
            .ok_or(LetterError::Field(field))
    }

    fn text(&self, field: &'static str) -> Result<&str, LetterError> {
        self.texts
            .get(field)
            .map(String::as_str)
            .ok_or(LetterError::Field(field))
    }

    fn finish(self) -> Result<Record, LetterError> {
        self.number("v")?;
        let id = EventId {
            feed: FeedId {
                author: self.author.ok_or(LetterError::Field("author"))?,
                stream: StreamName::new(self.text("stream")?)
                    .map_err(|_| LetterError::Field("stream"))?,
                epoch: Epoch(self.number("epoch")?),
            },
            seq: self.number("seq")?,
        };
        match self.text("kind")? {
            "done" => Ok(Record::Done(id)),
            "dropped" => Ok(Record::Dropped(id)),
            "letter" => Ok(Record::Letter(Box::new(Letter {
                id,
                hash: self.hash.ok_or(LetterError::Field("hash"))?,
                lamport: self.number("lamport")?,
                time: self.wall,
                consumer: ConsumerName::new(self.text("consumer")?)
                    .map_err(|_| LetterError::Field("consumer"))?,
                cause: self.text("cause")?.to_owned(),
                attempts: u32::try_from(self.number("attempts")?)
                    .map_err(|_| LetterError::Field("attempts"))?,
                held: Duration::from_millis(self.number("held")?),
                headers: self.headers,
                payload: self.payload,
            }))),
            _ => Err(LetterError::Field("kind")),
        }
    }
}

fn digest(reader: &mut Reader<'_>, field: &'static str) -> Result<[u8; 32], LetterError> {
    reader
        .bytes()?
        .try_into()
        .map_err(|_| LetterError::Field(field))
}

fn number(number: u64) -> Vec<u8> {
    let mut out = Vec::new();
    put_head(&mut out, UNSIGNED, number);
    out
}

fn integer(number: i64) -> Vec<u8> {
    let mut out = Vec::new();
    crate::cbor::put_integer(&mut out, number);
    out
}

fn text(text: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len() + 5);
    put_head(&mut out, TEXT, text.len() as u64);
    out.extend_from_slice(text.as_bytes());
    out
}

fn bytes_of(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len() + 5);
    put_head(&mut out, BYTES, 0);
    out.clear();
    put_bytes(&mut out, bytes);
    out
}

fn held_ms(held: Duration) -> u64 {
    u64::try_from(held.as_millis()).map_or(MAX_NUMBER, |ms| ms.min(MAX_NUMBER))
}

/// What is open of the letters of a consumer: the fold of its dead-letter streams, in any order of feeds.
///
/// A decision counts for the letters of its event that are known, and for those that come later with the same number of attempts or fewer, so the
/// fold is the same on all nodes.
#[derive(Debug)]
pub struct Letters {
    open: BTreeMap<EventId, Letter>,
    /// Decided events, so that a letter that comes after its decision does not open again.
    decided: BTreeSet<EventId>,
    decided_order: VecDeque<EventId>,
    max: usize,
    /// Letters that found no room: they are in their streams, and not in this list.
    overflow: u64,
}

impl Letters {
    /// None yet; `max` open ones at most, and as many decisions.
    pub fn new(max: usize) -> Self {
        Self {
            open: BTreeMap::new(),
            decided: BTreeSet::new(),
            decided_order: VecDeque::new(),
            max: max.max(1),
            overflow: 0,
        }
    }

    /// Takes the next event of a dead-letter stream.
    pub fn apply(&mut self, record: Record) {
        match record {
            Record::Letter(letter) => {
                if self.decided.contains(&letter.id) {
                    return;
                }
                if self.open.len() >= self.max && !self.open.contains_key(&letter.id) {
                    self.overflow += 1;
                    return;
                }
                // The one that was tried most tells most.
                let known = self.open.get(&letter.id);
                if known.is_none_or(|known| known.attempts <= letter.attempts) {
                    self.open.insert(letter.id.clone(), *letter);
                }
            }
            Record::Done(id) | Record::Dropped(id) => {
                self.open.remove(&id);
                if self.decided.insert(id.clone()) {
                    self.decided_order.push_back(id);
                }
                while self.decided_order.len() > self.max {
                    if let Some(oldest) = self.decided_order.pop_front() {
                        self.decided.remove(&oldest);
                    }
                }
            }
        }
    }

    /// Open letters in the order of their events, `limit` of those after `after`.
    pub fn list(&self, after: Option<&EventId>, limit: usize) -> Vec<&Letter> {
        let is_after = |letter: &&Letter| after.is_none_or(|after| letter.id > *after);
        self.open.values().filter(is_after).take(limit).collect()
    }

    /// The open letter of an event.
    pub fn inspect(&self, id: &EventId) -> Option<&Letter> {
        self.open.get(id)
    }

    /// How many are open.
    pub fn len(&self) -> usize {
        self.open.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// Letters that found no room in this list.
    pub fn overflow(&self) -> u64 {
        self.overflow
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::headers::Origin;

    fn id(seq: u64) -> EventId {
        EventId {
            feed: FeedId {
                author: Author([7; 32]),
                stream: "site/line/press".parse().unwrap(),
                epoch: Epoch(1),
            },
            seq,
        }
    }

    fn letter(seq: u64) -> Letter {
        Letter {
            id: id(seq),
            hash: EventHash([9; 32]),
            lamport: 44,
            time: -5,
            headers: Headers {
                origin: Some(Origin {
                    site: "north".into(),
                    device: "press-07".into(),
                    service: String::new(),
                }),
                ..Headers::default()
            },
            payload: Some(Bytes::from_static(b"payload")),
            consumer: ConsumerName::new("counter").unwrap(),
            cause: "not a number: x".into(),
            attempts: 5,
            held: Duration::from_millis(1_500),
        }
    }

    #[test]
    fn s3_53_a_letter_says_what_why_where_and_how_often() {
        for record in [
            Record::Letter(Box::new(letter(3))),
            Record::Done(id(3)),
            Record::Dropped(id(4)),
        ] {
            let event = record.to_event(12);
            assert_eq!(event.headers.content_type.as_deref(), Some(CONTENT_TYPE));
            assert_eq!(Record::decode(&event.payload), Ok(record));
        }
        let stream = stream_of(&letter(0).consumer, &id(0).feed.stream).unwrap();
        assert_eq!(stream.as_str(), "$dead/counter/site/line/press");
    }

    #[test]
    fn every_cut_and_every_wrong_key_is_refused() {
        let bytes = Record::Letter(Box::new(letter(3))).encode();
        for cut in 0..bytes.len() {
            assert!(Record::decode(&Bytes::copy_from_slice(&bytes[..cut])).is_err());
        }
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 0x20;
            // What still reads is another letter, and reads back as itself.
            let bad = Bytes::from(bad);
            if let Ok(record) = Record::decode(&bad) {
                assert_eq!(record.encode(), bad);
            }
        }
    }

    #[test]
    fn a_content_that_does_not_fit_stays_behind() {
        let mut big = letter(1);
        big.payload = Some(Bytes::from(vec![1; MAX_PAYLOAD]));
        big.cause = cut_cause("ü".repeat(MAX_CAUSE_BYTES));
        let event = Record::Letter(Box::new(big.clone())).to_event(0);
        assert!(event.payload.len() <= MAX_PAYLOAD);
        big.payload = None;
        assert_eq!(
            Record::decode(&event.payload),
            Ok(Record::Letter(Box::new(big)))
        );
    }

    #[test]
    fn letters_are_counted_by_event_and_decisions_hold() {
        let mut letters = Letters::new(10);
        for _ in 0..3 {
            letters.apply(Record::Letter(Box::new(letter(1))));
        }
        letters.apply(Record::Letter(Box::new(letter(2))));
        assert_eq!(letters.len(), 2);
        letters.apply(Record::Done(id(1)));
        letters.apply(Record::Letter(Box::new(letter(1))));
        letters.apply(Record::Dropped(id(5)));
        letters.apply(Record::Letter(Box::new(letter(5))));
        let open: Vec<u64> = letters.list(None, 9).iter().map(|l| l.id.seq).collect();
        assert_eq!(open, [2]);
        assert_eq!(letters.inspect(&id(2)), Some(&letter(2)));
        for seq in 10..30 {
            letters.apply(Record::Letter(Box::new(letter(seq))));
        }
        assert_eq!((letters.len(), letters.overflow()), (10, 11));
        assert_eq!(letters.list(Some(&id(2)), 3).len(), 3);
    }
}
