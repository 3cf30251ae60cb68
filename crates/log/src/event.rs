//! Events: as they are handed in, as they stand in a batch, and as they are read (specs/log.md §3.3).

use bytes::Bytes;

use crate::cbor::{LIST, Malformed, Reader, put_bytes, put_head, put_integer};
use crate::feed::Seq;
use crate::headers::{self, Headers, HeadersError, Producer};

/// Most bytes of one event's payload, 512 KiB. What is larger belongs into the store, and its CID into the event.
pub const MAX_PAYLOAD: usize = 512 << 10;
/// Most bytes of the events of one batch, encoded and not compressed: 1 MiB.
pub const MAX_EVENTS_BYTES: usize = 1 << 20;
/// Most events of one batch.
pub const MAX_EVENTS: usize = 16_384;
/// Room for the head of the list of events.
const LIST_HEAD: usize = 5;

/// An event that is to be appended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NewEvent {
    /// Wall-clock time in milliseconds since 1970, for people: shown, never trusted, never used for order.
    pub time: i64,
    /// What it says about itself.
    pub headers: Headers,
    /// The content, at most [`MAX_PAYLOAD`] bytes.
    pub payload: Bytes,
}

impl NewEvent {
    /// An event with this time and content.
    #[must_use]
    pub fn new(time: i64, payload: impl Into<Bytes>) -> Self {
        Self {
            time,
            headers: Headers::default(),
            payload: payload.into(),
        }
    }

    /// With these headers.
    #[must_use]
    pub fn with(mut self, headers: Headers) -> Self {
        self.headers = headers;
        self
    }
}

/// An event that was read. Its payload is a part of the batch's bytes, not a copy: keeping one keeps the batch in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Its place in the feed.
    pub seq: Seq,
    /// Logical time, that of its batch.
    pub lamport: u64,
    /// Wall-clock time in milliseconds since 1970, as the author's device had it.
    pub time: i64,
    /// What it says about itself.
    pub headers: Headers,
    /// The content.
    pub payload: Bytes,
}

impl Event {
    /// Bytes that it takes in memory, about, headers and all: for whoever bounds how many he holds. Its author chooses where they are.
    #[must_use]
    pub fn weight(&self) -> usize {
        size_of::<Self>() + self.payload.len() + self.headers.weight()
    }
}

/// An event where it stands in its batch: nothing is copied or counted.
#[derive(Clone, Copy, Debug)]
pub struct EventRef<'a> {
    /// Its place in the feed.
    pub seq: Seq,
    /// Logical time, that of its batch.
    pub lamport: u64,
    /// Wall-clock time in milliseconds since 1970, as the author's device had it.
    pub time: i64,
    /// The content.
    pub payload: &'a [u8],
    headers: &'a [u8],
    encoded: &'a [u8],
}

impl<'a> EventRef<'a> {
    /// What it says about itself.
    #[must_use]
    pub fn headers(&self) -> Headers {
        let mut found = Headers::default();
        if !self.headers.is_empty() {
            let read = headers::read(&mut Reader::new(self.headers), Some(&mut found));
            debug_assert!(read.is_ok(), "headers were read when the batch was");
        }
        found
    }

    /// Whether it has headers at all.
    #[must_use]
    pub fn has_headers(&self) -> bool {
        !self.headers.is_empty()
    }

    /// Its one encoding, which its hash is taken of.
    #[must_use]
    pub fn encoded(&self) -> &'a [u8] {
        self.encoded
    }
}

/// Walks over the events of a list without its head. The bytes were checked when the batch was read.
#[derive(Clone, Debug)]
pub struct Events<'a> {
    reader: Reader<'a>,
    seq: Seq,
    lamport: u64,
    left: u32,
}

impl<'a> Events<'a> {
    pub(crate) fn new(items: &'a [u8], first: Seq, count: u32, lamport: u64) -> Self {
        Self {
            reader: Reader::new(items),
            seq: first,
            lamport,
            left: count,
        }
    }

    fn read(&mut self) -> Result<EventRef<'a>, Malformed> {
        let from = self.reader.at();
        let (time, payload, headers) = read_item(&mut self.reader)?;
        Ok(EventRef {
            seq: self.seq,
            lamport: self.lamport,
            time,
            payload,
            headers,
            encoded: self.reader.since(from),
        })
    }
}

impl<'a> Iterator for Events<'a> {
    type Item = EventRef<'a>;

    #[inline]
    fn next(&mut self) -> Option<EventRef<'a>> {
        self.left = self.left.checked_sub(1)?;
        let event = self.read().ok();
        debug_assert!(event.is_some(), "events were read when the batch was");
        self.seq += 1;
        event
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left as usize, Some(self.left as usize))
    }
}

impl ExactSizeIterator for Events<'_> {}

/// One event whose headers, if it has any, were checked before.
#[inline]
fn read_item<'a>(reader: &mut Reader<'a>) -> Result<(i64, &'a [u8], &'a [u8]), Malformed> {
    let fields = reader.list()?;
    let time = reader.integer()?;
    let payload = reader.bytes()?;
    if fields == 2 {
        return Ok((time, payload, &[]));
    }
    let from = reader.at();
    headers::read(reader, None)?;
    Ok((time, payload, reader.since(from)))
}

/// Checks the items of a list of `count` events: each in its one form, and nothing behind them.
pub(crate) fn check_items(items: &[u8], count: u32) -> Result<(), Malformed> {
    let mut reader = Reader::new(items);
    for _ in 0..count {
        check_item(&mut reader)?;
    }
    if reader.is_done() {
        Ok(())
    } else {
        reader.fail("more events than are counted")
    }
}

/// Checks one event and steps over it.
pub(crate) fn check_item(reader: &mut Reader<'_>) -> Result<(), Malformed> {
    let fields = reader.list()?;
    if fields != 2 && fields != 3 {
        return reader.fail("an event is time, payload, and perhaps headers");
    }
    let time = reader.integer()?;
    if time.unsigned_abs() > crate::feed::MAX_NUMBER {
        return reader.fail("a time beyond 2^53 - 1 milliseconds");
    }
    if reader.bytes()?.len() > MAX_PAYLOAD {
        return reader.fail("a payload of more than 524288 bytes");
    }
    if fields == 3 {
        headers::read(reader, None)?;
    }
    Ok(())
}

/// Why an event was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EventError {
    /// Its payload is too large.
    #[error(
        "the event has {0} bytes, and may have 524288: add the content as a file and append its CID"
    )]
    TooLarge(usize),
    /// Its time is beyond what JSON takes.
    #[error("the time of an event is milliseconds since 1970, at most 2^53 - 1")]
    Time,
    /// Its headers.
    #[error(transparent)]
    Headers(#[from] HeadersError),
    /// A list that is longer than a batch may be.
    #[error("more than 16384 events or 1 MiB at once: append them in several calls")]
    TooMany,
    /// A list of nothing.
    #[error("no event was given")]
    None,
}

/// Events in their one encoding, on their way into a batch. Encoding happens where the events come from, not in the one writer.
#[derive(Clone, Debug, Default)]
pub struct EventList {
    items: Vec<u8>,
    /// Where each item ends.
    ends: Vec<u32>,
    /// Events that have a producer, by their place in the list.
    producers: Vec<(u32, Producer)>,
    last_time: i64,
}

impl EventList {
    /// Encodes events.
    ///
    /// # Errors
    /// See [`EventError`].
    pub fn of(events: &[NewEvent]) -> Result<Self, EventError> {
        let mut list = Self::default();
        let bytes: usize = events.iter().map(|event| event.payload.len() + 16).sum();
        list.items.reserve(bytes.min(MAX_EVENTS_BYTES));
        list.ends.reserve(events.len().min(MAX_EVENTS));
        events.iter().try_for_each(|event| list.push(event))?;
        if events.is_empty() {
            return Err(EventError::None);
        }
        Ok(list)
    }

    fn push(&mut self, event: &NewEvent) -> Result<(), EventError> {
        if event.payload.len() > MAX_PAYLOAD {
            return Err(EventError::TooLarge(event.payload.len()));
        }
        if event.time.unsigned_abs() > crate::feed::MAX_NUMBER {
            return Err(EventError::Time);
        }
        let has_headers = !event.headers.is_empty();
        put_head(&mut self.items, LIST, if has_headers { 3 } else { 2 });
        put_integer(&mut self.items, event.time);
        put_bytes(&mut self.items, &event.payload);
        if has_headers {
            event.headers.put(&mut self.items)?;
        }
        if let Some(producer) = &event.headers.producer {
            self.producers
                .push((self.ends.len() as u32, producer.clone()));
        }
        self.ends.push(self.items.len() as u32);
        self.last_time = event.time;
        if self.fits(0, 0) {
            Ok(())
        } else {
            Err(EventError::TooMany)
        }
    }

    /// Whether so much more would still be one batch.
    pub(crate) fn fits(&self, more_events: usize, more_bytes: usize) -> bool {
        self.len() + more_events <= MAX_EVENTS
            && LIST_HEAD + self.items.len() + more_bytes <= MAX_EVENTS_BYTES
    }

    /// Adds the events of another list, which [fit](Self::fits).
    pub(crate) fn append(&mut self, other: &Self) {
        let (at, count) = (self.items.len() as u32, self.ends.len() as u32);
        self.items.extend_from_slice(&other.items);
        self.ends.extend(other.ends.iter().map(|end| at + end));
        let moved = other.producers.iter();
        self.producers
            .extend(moved.map(|(i, producer)| (count + i, producer.clone())));
        self.last_time = other.last_time;
    }

    /// The list without the events for which `keep` says no.
    pub(crate) fn retain(&self, keep: impl Fn(u32) -> bool) -> Self {
        let mut kept = Self {
            last_time: self.last_time,
            ..Self::default()
        };
        for i in 0..self.ends.len() as u32 {
            if keep(i) {
                kept.items.extend_from_slice(self.item(i as usize));
                kept.ends.push(kept.items.len() as u32);
                let mine = self.producers.iter().filter(|(of, _)| *of == i);
                let place = kept.ends.len() as u32 - 1;
                kept.producers
                    .extend(mine.map(|(_, producer)| (place, producer.clone())));
            }
        }
        kept
    }

    fn item(&self, i: usize) -> &[u8] {
        let from = if i == 0 { 0 } else { self.ends[i - 1] as usize };
        &self.items[from..self.ends[i] as usize]
    }

    /// How many events there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Bytes of all items.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.items.len()
    }

    pub(crate) fn items(&self) -> &[u8] {
        &self.items
    }

    pub(crate) fn producers(&self) -> &[(u32, Producer)] {
        &self.producers
    }

    /// Time of the last event.
    pub(crate) fn last_time(&self) -> i64 {
        self.last_time
    }
}
