//! What the API and the command line say of events: names that only grow.

use data_encoding::BASE64;
use gemba_log::{Appended, Event, Head, Headers, NewEvent, Part};
use serde::{Deserialize, Serialize};

use super::author_text;
use crate::text;

/// An event is on this disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventAck {
    /// The stream.
    pub stream: String,
    /// Who wrote it: the peer id of this node.
    pub author: String,
    /// Place in the author's feed, from 0.
    pub seq: u64,
    /// Which life of the feed.
    pub epoch: u64,
    /// The batch that holds it, a dag-cbor block that others can ask for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cid: Option<String>,
    /// It was there before: the same number of the same producer.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub repeated: bool,
}

/// An event as it is read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventLine {
    /// The stream.
    pub stream: String,
    /// Who wrote it.
    pub author: String,
    /// Place in the author's feed.
    pub seq: u64,
    /// When, by the author's clock, RFC 3339. For people: order is not by it.
    pub time: String,
    /// The payload in base64.
    pub data: String,
    /// Which life of the feed.
    pub epoch: u64,
    /// `time` in milliseconds since 1970.
    pub time_ms: i64,
    /// Logical time: order over all authors.
    pub lamport: u64,
    /// What it says about itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub headers: Option<EventHeaders>,
    /// Its author wrote two histories of the feed, and this event is of the one that came here second: the first batch of that one. Stream, author,
    /// epoch and `seq` may be those of another event, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub branch: Option<String>,
}

/// What an event says about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EventHeaders {
    /// Media type of the payload.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content_type: Option<String>,
    /// The user's own pairs.
    #[serde(skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    pub user: std::collections::BTreeMap<String, String>,
    /// The site it was made at.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub site: Option<String>,
    /// The device.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// The program.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// W3C trace context, `00-…-…-01`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
    /// Who produced it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub producer: Option<String>,
    /// As which of its events.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub producer_seq: Option<u64>,
}

/// What became of an append of one event.
#[must_use]
pub fn ack(appended: &Appended) -> EventAck {
    let (epoch, seq) = appended.place(0);
    EventAck {
        stream: appended.feed.stream.to_string(),
        author: author_text(&appended.feed.author),
        seq,
        epoch: epoch.0,
        cid: appended.cid.map(|cid| cid.to_string()),
        repeated: !appended.repeated.is_empty(),
    }
}

/// An event of a feed, or of a branch of one.
#[must_use]
pub fn line(part: &Part, event: &Event) -> EventLine {
    EventLine {
        branch: part.branch.map(|branch| branch.to_string()),
        ..line_of(&part.feed, event)
    }
}

/// An event of a feed.
#[must_use]
pub fn line_of(feed: &gemba_log::FeedId, event: &Event) -> EventLine {
    EventLine {
        stream: feed.stream.to_string(),
        author: author_text(&feed.author),
        seq: event.seq,
        time: time_text(event.time),
        data: BASE64.encode(&event.payload),
        epoch: feed.epoch.0,
        time_ms: event.time,
        lamport: event.lamport,
        headers: (!event.headers.is_empty()).then(|| headers(&event.headers)),
        branch: None,
    }
}

/// The second history of a feed, if this is the end of one.
#[must_use]
pub fn branch(head: &Head) -> Option<BranchView> {
    Some(BranchView {
        stream: head.feed.stream.to_string(),
        author: author_text(&head.feed.author),
        epoch: head.feed.epoch.0,
        branch: head.branch?.to_string(),
        from: head.low,
        next: head.next,
    })
}

impl EventLine {
    /// The payload.
    #[must_use]
    pub fn payload(&self) -> Vec<u8> {
        BASE64.decode(self.data.as_bytes()).unwrap_or_default()
    }

    /// For people: when, who, which, what. The number of an event in a second history has the end of that one's name.
    #[must_use]
    pub fn people(&self) -> String {
        let payload = self.payload();
        let data = String::from_utf8_lossy(&payload);
        let end = |text: &str| {
            let end = text.get(text.len().saturating_sub(6)..);
            end.unwrap_or_default().to_owned()
        };
        let branch = self.branch.as_deref();
        let branch = branch.map(|branch| format!("~{}", end(branch)));
        format!(
            "{} {} …{} {}{} {}",
            self.time,
            self.stream,
            end(&self.author),
            self.seq,
            branch.unwrap_or_default(),
            text::printable(&data)
        )
    }
}

/// RFC 3339 with milliseconds, in UTC. What no calendar has is its number.
#[must_use]
pub fn time_text(ms: i64) -> String {
    match jiff::Timestamp::from_millisecond(ms) {
        Ok(time) => format!("{time:.3}"),
        Err(_) => ms.to_string(),
    }
}

fn headers(headers: &Headers) -> EventHeaders {
    let origin = headers.origin.clone().unwrap_or_default();
    let some = |text: String| (!text.is_empty()).then_some(text);
    EventHeaders {
        content_type: headers.content_type.clone(),
        user: headers.user.iter().cloned().collect(),
        site: some(origin.site),
        device: some(origin.device),
        service: some(origin.service),
        traceparent: headers.trace.map(|trace| {
            let hex = |bytes: &[u8]| data_encoding::HEXLOWER.encode(bytes);
            format!(
                "00-{}-{}-{:02x}",
                hex(&trace.trace),
                hex(&trace.span),
                trace.flags
            )
        }),
        producer: headers
            .producer
            .as_ref()
            .map(|producer| producer.id.clone()),
        producer_seq: headers.producer.as_ref().map(|producer| producer.seq),
    }
}

impl EventHeaders {
    /// As the log has them.
    ///
    /// # Errors
    /// A trace context that is none, or half a producer.
    pub fn into_headers(self) -> Result<Headers, String> {
        let mut out = Headers {
            content_type: self.content_type,
            ..Headers::default()
        };
        for (key, value) in self.user {
            out = out.pair(key, value);
        }
        let origin = gemba_log::Origin {
            site: self.site.unwrap_or_default(),
            device: self.device.unwrap_or_default(),
            service: self.service.unwrap_or_default(),
        };
        if origin != gemba_log::Origin::default() {
            out.origin = Some(origin);
        }
        out.trace = self.traceparent.as_deref().map(trace).transpose()?;
        match (self.producer, self.producer_seq) {
            (Some(id), Some(seq)) => out = out.produced_by(id, seq),
            (None, None) => {}
            _ => return Err("producer and producer_seq go together".to_owned()),
        }
        Ok(out)
    }
}

fn trace(text: &str) -> Result<gemba_log::Trace, String> {
    let wrong = || format!("{text:?} is no trace context: 00-<32 hex>-<16 hex>-<2 hex> is");
    let parts: Vec<&str> = text.split('-').collect();
    let ["00", trace, span, flags] = parts.as_slice() else {
        return Err(wrong());
    };
    let hex = |part: &str| {
        data_encoding::HEXLOWER_PERMISSIVE
            .decode(part.as_bytes())
            .map_err(|_| wrong())
    };
    let [flags] = hex(flags)?[..] else {
        return Err(wrong());
    };
    Ok(gemba_log::Trace {
        trace: hex(trace)?.try_into().map_err(|_| wrong())?,
        span: hex(span)?.try_into().map_err(|_| wrong())?,
        flags,
    })
}

/// An event as a client hands it in, a line of `application/x-ndjson`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EventRequest {
    /// The payload as text; this or `data`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// The payload in base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<String>,
    /// Milliseconds since 1970; without it the time it arrives here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time_ms: Option<i64>,
    /// What it says about itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub headers: Option<EventHeaders>,
}

impl EventRequest {
    /// The event.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub fn into_event(self, now_ms: i64) -> Result<NewEvent, String> {
        let payload = match (self.text, self.data) {
            (Some(text), None) => text.into_bytes(),
            (None, Some(data)) => BASE64
                .decode(data.as_bytes())
                .map_err(|e| format!("data is no base64: {e}"))?,
            (None, None) => Vec::new(),
            _ => return Err("text and data exclude each other".to_owned()),
        };
        let event = NewEvent::new(self.time_ms.unwrap_or(now_ms), payload);
        match self.headers {
            Some(headers) => Ok(event.with(headers.into_headers()?)),
            None => Ok(event),
        }
    }
}

/// A stream in the catalogue.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StreamView {
    /// Its name.
    pub stream: String,
    /// Who writes to it.
    pub authors: Vec<String>,
    /// Events that are here.
    pub events: u64,
    /// Their bytes on this disk.
    pub bytes: u64,
    /// Events a second over the last minute, by the authors' clocks.
    pub rate: f64,
    /// When the last event was made, by its author's clock.
    pub last: Option<String>,
    /// An author wrote two histories.
    pub forked: bool,
    /// Those that came here second.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub branches: Vec<BranchView>,
    /// What it says of itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub about: Option<super::about::About>,
}

/// A second history of a feed, which its author wrote with the same numbers as the first: on a cloned device, or after a backup came back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BranchView {
    /// The stream.
    pub stream: String,
    /// Who wrote it.
    pub author: String,
    /// Of which life of the feed.
    pub epoch: u64,
    /// Its first batch, which names it.
    pub branch: String,
    /// Its first event that is here.
    pub from: u64,
    /// One behind its last.
    pub next: u64,
}

/// What a walk over every byte found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogVerified {
    /// Nothing is damaged.
    pub ok: bool,
    /// Batches whose checksum, hash, signature and links were checked.
    pub batches: u64,
    /// Their events.
    pub events: u64,
    /// Damaged places, in words.
    pub damaged: Vec<String>,
    /// Second histories, which are no damage.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub branches: Vec<BranchView>,
}

/// How far a consumer is in one feed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsumerFeed {
    /// The stream.
    pub stream: String,
    /// Whose feed.
    pub author: String,
    /// Which life of it.
    pub epoch: u64,
    /// The first event that is not acknowledged.
    pub next: u64,
    /// Events that are not acknowledged.
    pub lag: u64,
    /// Refused ones that wait for their next attempt.
    pub waiting: u64,
    /// What workers keep with their acknowledgements.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<serde_json::Value>,
}

/// A consumer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsumerView {
    /// Its name.
    pub consumer: String,
    /// What it reads.
    pub streams: Vec<String>,
    /// Which of its owners this is.
    pub generation: u64,
    /// Events that are not acknowledged.
    pub lag: u64,
    /// Its dead letters that are neither done nor dropped.
    pub dead: u64,
    /// How far it is in each feed.
    pub feeds: Vec<ConsumerFeed>,
    /// It was taken over by another node, which alone knows how far it is; `generation`, `lag` and `feeds` say nothing here.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub elsewhere: bool,
    /// The peer id of that node, if this one has heard which it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runs_on: Option<String>,
}

/// What a worker asks for.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClaimRequest {
    /// A number of the worker's own, the same in all its requests.
    pub worker: u64,
    /// What the consumer reads; needed the first time.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub streams: Vec<String>,
    /// Where it begins the first time: `beginning` (the default) or `tail`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<String>,
    /// After how many failures an event becomes a dead letter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempts: Option<u32>,
    /// How long a worker may be silent before its events are given to others, in milliseconds, if the consumer is new; 30 s without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease_ms: Option<u64>,
    /// Most events at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch: Option<u32>,
    /// How long to wait for events, in milliseconds; at most a minute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait_ms: Option<u64>,
    /// The token of this worker's last claim: what it holds stays its own, and events behind it come, before anything is acknowledged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_on: Option<u64>,
    /// Take it over from another node that runs it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub take_over: bool,
}

/// Work for a worker; without events there is none now.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Claimed {
    /// To acknowledge with.
    pub token: u64,
    /// What the worker kept with its last acknowledgement of this feed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<serde_json::Value>,
    /// The events, of one feed, in order.
    pub events: Vec<ClaimedEvent>,
}

/// An event to work on.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ClaimedEvent {
    /// How often it failed before.
    pub attempts: u32,
    /// The event.
    #[serde(flatten)]
    pub event: EventLine,
}

/// What a worker has done.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AckRequest {
    /// Of the claim.
    pub token: u64,
    /// The last event that is done; with it all of the claim before it that were not refused.
    pub seq: u64,
    /// Kept for the feed in the same transaction as the acknowledgement, and given with its next claim: what is kept there has every event's effect
    /// once. At most 64 KiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<serde_json::Value>,
    /// It is refused instead, for this cause, it alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
}

/// A dead letter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeadLetter {
    /// `AUTHOR:EPOCH:SEQ` of the event, by which, with its stream, it is retried or dropped.
    pub id: String,
    /// Its stream.
    pub stream: String,
    /// Who wrote it.
    pub author: String,
    /// Its place.
    pub seq: u64,
    /// Why it failed the last time.
    pub cause: String,
    /// How often it failed.
    pub attempts: u32,
    /// For how long it was tried, in seconds.
    pub held_s: f64,
    /// The event's own time, RFC 3339; null if the log no longer had it.
    pub time: Option<String>,
    /// Its payload in base64; null if the log no longer had it.
    pub data: Option<String>,
}
