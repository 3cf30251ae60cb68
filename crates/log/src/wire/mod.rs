//! `/gemba/log/1`: what two nodes say to each other of their logs. Byte tables in specs/log-replication.md §6.
//!
//! Each message stands behind its length as a varint, on an ordered stream. Decoding checks every limit before it keeps anything; batches are
//! bytes here, since reading and verifying one belongs on the connection's task.

mod fields;

use crate::{
    core::reconcile::{Content, MAX_RANGES, MAX_TIPS, Range, Tip},
    feed::{Author, Epoch, FeedId, MAX_NUMBER, Seq},
    stream::{Pattern, StreamName},
};
use bytes::Bytes;
use fields::{Part, next, put_bytes_field, put_number_field};

/// The protocol's id.
pub const PROTOCOL: &str = "/gemba/log/1";
/// Most bytes of a message, without its length in front.
pub const MAX_MESSAGE_BYTES: usize = 4 << 20;
/// Most patterns of a node.
pub const MAX_PATTERNS: usize = 64;
/// Most feeds asked for in one message.
pub const MAX_WANTS: usize = 256;
/// Most batches in one message.
pub const MAX_BATCHES: usize = 16_384;

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// A step of finding what differs.
    Sync(Sync),
    /// Feeds grew.
    Announce(Announce),
    /// Asks for batches.
    Fetch(Fetch),
    /// The answer.
    Batches(Batches),
}

/// A step of finding what differs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sync {
    /// Given by who began.
    pub session: u64,
    /// Counts messages of the session; who began sends the even ones.
    pub round: u32,
    /// What the sender subscribes to.
    pub patterns: Vec<Pattern>,
    /// [`patterns_hash`] of what it takes the receiver's subscription for. Only feeds of both are compared; if this is wrong, ranges are of no use.
    pub assumed: u64,
    /// The comparison.
    pub ranges: Vec<Range>,
}

/// Feeds grew.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Announce {
    /// Their last batches.
    pub tips: Vec<Tip>,
    /// The last batch of the one feed, where it is small: it saves a round trip.
    pub batch: Option<Bytes>,
}

/// Asks for batches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetch {
    /// For the answer.
    pub id: u64,
    /// Most bytes of batches in the answer; one batch comes whatever its size.
    pub max_bytes: u64,
    /// Which.
    pub wants: Vec<Want>,
}

/// Batches of a feed, in order, from the one that holds `from` on, towards `tip`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Want {
    /// The feed.
    pub feed: FeedId,
    /// The first event that is needed.
    pub from: Seq,
    /// Where it leads: tells branches apart.
    pub tip: [u8; 32],
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batches {
    /// That of the request.
    pub id: u64,
    /// For each want that was served, in the order of wants.
    pub runs: Vec<Run<Bytes>>,
    /// Not now: ask again after so many milliseconds.
    pub busy_ms: Option<u64>,
}

/// Batches of one want. `B` is `Bytes` on the wire and [`Batch`](crate::Batch) when they are verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run<B> {
    /// Place of the want in the request.
    pub want: usize,
    /// In order.
    pub batches: Vec<B>,
    /// There is more on the way to the tip.
    pub more: bool,
    /// The first event that the sender still holds of the feed.
    pub starts: Seq,
}

/// Why bytes are no message. Always the fault of whoever sent them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a message of /gemba/log/1: {0}")]
pub struct WireError(pub &'static str);

/// Names a subscription, whatever the order of its patterns.
pub fn patterns_hash(patterns: &[Pattern]) -> u64 {
    let mut sorted: Vec<&str> = patterns.iter().map(Pattern::as_str).collect();
    sorted.sort_unstable();
    sorted.dedup();
    let hash = ring::digest::digest(&ring::digest::SHA256, sorted.join("\n").as_bytes());
    hash.as_ref()[..8]
        .iter()
        .fold(0, |sum, byte| sum << 8 | u64::from(*byte))
}

impl Message {
    /// The bytes, without the length in front.
    pub fn encode(&self) -> Vec<u8> {
        let mut body = Vec::new();
        let field = match self {
            Self::Sync(sync) => {
                put_sync(&mut body, sync);
                1
            }
            Self::Announce(announce) => {
                for tip in &announce.tips {
                    put_bytes_field(&mut body, 1, &tip_bytes(tip));
                }
                if let Some(batch) = &announce.batch {
                    put_bytes_field(&mut body, 2, batch);
                }
                2
            }
            Self::Fetch(fetch) => {
                put_fetch(&mut body, fetch);
                3
            }
            Self::Batches(batches) => {
                put_batches(&mut body, batches);
                4
            }
        };
        let mut out = Vec::with_capacity(body.len() + 8);
        put_bytes_field(&mut out, field, &body);
        out
    }

    /// Reads a message within its limits.
    ///
    /// # Errors
    /// [`WireError`].
    pub fn decode(bytes: &Bytes) -> Result<Self, WireError> {
        if bytes.len() > MAX_MESSAGE_BYTES {
            return Err(WireError("it is longer than 4 MiB"));
        }
        let mut rest: &[u8] = bytes;
        let Some((field, Part::Bytes(body))) = next(&mut rest)? else {
            return Err(WireError("it says nothing"));
        };
        if !rest.is_empty() {
            return Err(WireError("there are bytes behind it"));
        }
        match field {
            1 => sync(body).map(Self::Sync),
            2 => announce(body, bytes).map(Self::Announce),
            3 => fetch(body).map(Self::Fetch),
            4 => batches(body, bytes).map(Self::Batches),
            _ => Err(WireError("it is of a kind that is not known")),
        }
    }
}

fn put_sync(out: &mut Vec<u8>, sync: &Sync) {
    put_number_field(out, 1, sync.session);
    put_number_field(out, 2, u64::from(sync.round));
    for pattern in &sync.patterns {
        put_bytes_field(out, 3, pattern.as_str().as_bytes());
    }
    put_number_field(out, 4, sync.assumed);
    for range in &sync.ranges {
        let mut body = Vec::new();
        if let Some(feed) = &range.lower {
            put_bytes_field(&mut body, 1, &feed_bytes(feed));
        }
        if let Some(feed) = &range.upper {
            put_bytes_field(&mut body, 2, &feed_bytes(feed));
        }
        match &range.content {
            Content::Fingerprint(fingerprint) => put_bytes_field(&mut body, 3, fingerprint),
            Content::Tips { tips, answer } => {
                put_number_field(&mut body, 4, 1 + u64::from(*answer));
                for tip in tips {
                    put_bytes_field(&mut body, 5, &tip_bytes(tip));
                }
            }
        }
        put_bytes_field(out, 5, &body);
    }
}

fn put_fetch(out: &mut Vec<u8>, fetch: &Fetch) {
    put_number_field(out, 1, fetch.id);
    put_number_field(out, 2, fetch.max_bytes);
    for want in &fetch.wants {
        let mut body = Vec::new();
        put_bytes_field(&mut body, 1, &feed_bytes(&want.feed));
        put_number_field(&mut body, 2, want.from);
        put_bytes_field(&mut body, 3, &want.tip);
        put_bytes_field(out, 3, &body);
    }
}

fn put_batches(out: &mut Vec<u8>, batches: &Batches) {
    put_number_field(out, 1, batches.id);
    for run in &batches.runs {
        let mut body = Vec::new();
        put_number_field(&mut body, 1, run.want as u64);
        for batch in &run.batches {
            put_bytes_field(&mut body, 2, batch);
        }
        put_number_field(&mut body, 3, u64::from(run.more));
        put_number_field(&mut body, 4, run.starts);
        put_bytes_field(out, 2, &body);
    }
    if let Some(busy) = batches.busy_ms {
        put_number_field(out, 3, busy);
    }
}

fn sync(mut body: &[u8]) -> Result<Sync, WireError> {
    let mut sync = Sync {
        session: 0,
        round: 0,
        patterns: Vec::new(),
        assumed: 0,
        ranges: Vec::new(),
    };
    let mut tips = 0;
    while let Some((field, part)) = next(&mut body)? {
        match (field, part) {
            (1, Part::Number(number)) => sync.session = number,
            (2, Part::Number(number)) => {
                sync.round = u32::try_from(number).map_err(|_| WireError("a round beyond 2^32"))?;
            }
            (3, Part::Bytes(bytes)) => {
                let text = std::str::from_utf8(bytes).ok();
                let pattern = text.and_then(|text| Pattern::new(text).ok());
                sync.patterns
                    .push(pattern.ok_or(WireError("a pattern that is none"))?);
            }
            (4, Part::Number(number)) => sync.assumed = number,
            (5, Part::Bytes(bytes)) => sync.ranges.push(range(bytes, &mut tips)?),
            _ => {}
        }
        if sync.patterns.len() > MAX_PATTERNS || sync.ranges.len() > MAX_RANGES {
            return Err(WireError("more patterns or ranges than may be"));
        }
    }
    if sync.patterns.is_empty() {
        return Err(WireError("a subscription to nothing"));
    }
    // Ranges that overlap would make a short message a long piece of work.
    let apart =
        |pair: &[Range]| matches!((&pair[0].upper, &pair[1].lower), (Some(a), Some(b)) if a <= b);
    if !sync.ranges.windows(2).all(apart) {
        return Err(WireError("ranges are not in order"));
    }
    Ok(sync)
}

fn range(mut body: &[u8], count: &mut usize) -> Result<Range, WireError> {
    let (mut lower, mut upper, mut fingerprint, mut kind) = (None, None, None, 0);
    let mut tips: Vec<Tip> = Vec::new();
    while let Some((field, part)) = next(&mut body)? {
        match (field, part) {
            (1, Part::Bytes(bytes)) => lower = Some(feed(bytes)?),
            (2, Part::Bytes(bytes)) => upper = Some(feed(bytes)?),
            (3, Part::Bytes(bytes)) => {
                let bytes = bytes
                    .try_into()
                    .map_err(|_| WireError("a fingerprint has 16 bytes"))?;
                fingerprint = Some(bytes);
            }
            (4, Part::Number(number)) => kind = number,
            (5, Part::Bytes(bytes)) => {
                *count += 1;
                tips.push(tip(bytes)?);
            }
            _ => {}
        }
        if *count > MAX_TIPS {
            return Err(WireError("more last batches than may be"));
        }
    }
    if !tips.windows(2).all(|pair| pair[0] < pair[1]) {
        return Err(WireError("last batches are not in order"));
    }
    let content = match (fingerprint, kind) {
        (Some(fingerprint), 0) if tips.is_empty() => Content::Fingerprint(fingerprint),
        (None, 1 | 2) => Content::Tips {
            tips,
            answer: kind == 2,
        },
        _ => return Err(WireError("a range is a fingerprint or a list")),
    };
    let reversed = matches!((&lower, &upper), (Some(lower), Some(upper)) if lower > upper);
    if reversed {
        return Err(WireError("a range that ends before it begins"));
    }
    Ok(Range {
        lower,
        upper,
        content,
    })
}

fn announce(mut body: &[u8], whole: &Bytes) -> Result<Announce, WireError> {
    let mut announce = Announce::default();
    while let Some((field, part)) = next(&mut body)? {
        match (field, part) {
            (1, Part::Bytes(bytes)) => announce.tips.push(tip(bytes)?),
            (2, Part::Bytes(bytes)) => announce.batch = Some(whole.slice_ref(bytes)),
            _ => {}
        }
        if announce.tips.len() > MAX_TIPS {
            return Err(WireError("more last batches than may be"));
        }
    }
    Ok(announce)
}

fn fetch(mut body: &[u8]) -> Result<Fetch, WireError> {
    let mut fetch = Fetch {
        id: 0,
        max_bytes: 0,
        wants: Vec::new(),
    };
    while let Some((field, part)) = next(&mut body)? {
        match (field, part) {
            (1, Part::Number(number)) => fetch.id = number,
            (2, Part::Number(number)) => fetch.max_bytes = number,
            (3, Part::Bytes(bytes)) => fetch.wants.push(want(bytes)?),
            _ => {}
        }
        if fetch.wants.len() > MAX_WANTS {
            return Err(WireError("more feeds asked for than may be"));
        }
    }
    Ok(fetch)
}

fn want(mut body: &[u8]) -> Result<Want, WireError> {
    let (mut id, mut from, mut tip) = (None, 0, None);
    while let Some((field, part)) = next(&mut body)? {
        match (field, part) {
            (1, Part::Bytes(bytes)) => id = Some(feed(bytes)?),
            (2, Part::Number(number)) => from = place(number)?,
            (3, Part::Bytes(bytes)) => tip = Some(digest(bytes)?),
            _ => {}
        }
    }
    Ok(Want {
        feed: id.ok_or(WireError("a want without a feed"))?,
        from,
        tip: tip.ok_or(WireError("a want without an aim"))?,
    })
}

fn batches(mut body: &[u8], whole: &Bytes) -> Result<Batches, WireError> {
    let mut batches = Batches {
        id: 0,
        runs: Vec::new(),
        busy_ms: None,
    };
    let mut count = 0;
    while let Some((field, part)) = next(&mut body)? {
        match (field, part) {
            (1, Part::Number(number)) => batches.id = number,
            (2, Part::Bytes(bytes)) => batches.runs.push(run(bytes, whole, &mut count)?),
            (3, Part::Number(number)) => batches.busy_ms = Some(number),
            _ => {}
        }
        if batches.runs.len() > MAX_WANTS {
            return Err(WireError("more runs than may be asked for"));
        }
    }
    Ok(batches)
}

fn run(mut body: &[u8], whole: &Bytes, count: &mut usize) -> Result<Run<Bytes>, WireError> {
    let mut run = Run {
        want: 0,
        batches: Vec::new(),
        more: false,
        starts: 0,
    };
    while let Some((field, part)) = next(&mut body)? {
        match (field, part) {
            (1, Part::Number(number)) => {
                let place = usize::try_from(number)
                    .ok()
                    .filter(|place| *place < MAX_WANTS);
                run.want = place.ok_or(WireError("a run of no want"))?;
            }
            (2, Part::Bytes(bytes)) => {
                *count += 1;
                run.batches.push(whole.slice_ref(bytes));
            }
            (3, Part::Number(number)) => run.more = number != 0,
            (4, Part::Number(number)) => run.starts = place(number)?,
            _ => {}
        }
        if *count > MAX_BATCHES {
            return Err(WireError("more batches than may be"));
        }
    }
    Ok(run)
}

fn tip_bytes(tip: &Tip) -> Vec<u8> {
    let mut body = Vec::with_capacity(96);
    put_bytes_field(&mut body, 1, &feed_bytes(&tip.feed));
    put_number_field(&mut body, 2, tip.next);
    put_bytes_field(&mut body, 3, &tip.batch);
    body
}

fn tip(mut body: &[u8]) -> Result<Tip, WireError> {
    let (mut id, mut number, mut batch) = (None, None, None);
    while let Some((field, part)) = next(&mut body)? {
        match (field, part) {
            (1, Part::Bytes(bytes)) => id = Some(feed(bytes)?),
            (2, Part::Number(found)) => number = Some(place(found)?),
            (3, Part::Bytes(bytes)) => batch = Some(digest(bytes)?),
            _ => {}
        }
    }
    let missing = WireError("a last batch without feed, place or name");
    Ok(Tip {
        feed: id.ok_or(missing)?,
        next: number.filter(|next| *next > 0).ok_or(missing)?,
        batch: batch.ok_or(missing)?,
    })
}

fn feed_bytes(feed: &FeedId) -> Vec<u8> {
    let mut out = Vec::with_capacity(80);
    feed.put(&mut out);
    out
}

fn feed(bytes: &[u8]) -> Result<FeedId, WireError> {
    let wrong = WireError("a feed that is none");
    let (author, rest) = bytes.split_first_chunk::<32>().ok_or(wrong)?;
    let (epoch, stream) = rest.split_first_chunk::<8>().ok_or(wrong)?;
    let stream = std::str::from_utf8(stream).map_err(|_| wrong)?;
    Ok(FeedId {
        author: Author(*author),
        stream: StreamName::new(stream).map_err(|_| wrong)?,
        epoch: Epoch(place(u64::from_be_bytes(*epoch))?),
    })
}

fn digest(bytes: &[u8]) -> Result<[u8; 32], WireError> {
    bytes
        .try_into()
        .map_err(|_| WireError("a digest has 32 bytes"))
}

fn place(number: u64) -> Result<u64, WireError> {
    if number > MAX_NUMBER {
        return Err(WireError("a number beyond 2^53 - 1"));
    }
    Ok(number)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn a_feed(i: u8) -> FeedId {
        FeedId {
            author: Author([i; 32]),
            stream: "site/line".parse().unwrap(),
            epoch: Epoch(3),
        }
    }

    fn a_tip(i: u8) -> Tip {
        Tip {
            feed: a_feed(i),
            next: 7,
            batch: [i; 32],
        }
    }

    fn samples() -> Vec<Message> {
        let list = |lower, upper, answer| Range {
            lower,
            upper,
            content: Content::Tips {
                tips: vec![a_tip(2), a_tip(3)],
                answer,
            },
        };
        vec![
            Message::Sync(Sync {
                session: 9,
                round: 1,
                patterns: vec!["site/#".parse().unwrap(), "$dead/+/x".parse().unwrap()],
                assumed: u64::MAX,
                ranges: vec![
                    Range {
                        lower: None,
                        upper: Some(a_feed(1)),
                        content: Content::Fingerprint([4; 16]),
                    },
                    list(Some(a_feed(1)), Some(a_feed(5)), true),
                    list(Some(a_feed(5)), None, false),
                ],
            }),
            Message::Announce(Announce {
                tips: vec![a_tip(1)],
                batch: Some(Bytes::from_static(b"batch")),
            }),
            Message::Fetch(Fetch {
                id: 1,
                max_bytes: 1 << 20,
                wants: vec![Want {
                    feed: a_feed(1),
                    from: 0,
                    tip: [1; 32],
                }],
            }),
            Message::Batches(Batches {
                id: 1,
                runs: vec![Run {
                    want: 0,
                    batches: vec![Bytes::from_static(b"a"), Bytes::new()],
                    more: true,
                    starts: 12,
                }],
                busy_ms: Some(250),
            }),
        ]
    }

    #[test]
    fn messages_read_as_they_were_written() {
        for message in samples() {
            let bytes = Bytes::from(message.encode());
            assert_eq!(Message::decode(&bytes), Ok(message.clone()));
            for cut in 0..bytes.len() {
                assert!(Message::decode(&bytes.slice(..cut)).is_err());
            }
        }
    }

    #[test]
    fn l6_what_is_beyond_a_limit_is_refused() {
        let Message::Sync(mut sync) = samples().remove(0) else {
            unreachable!()
        };
        sync.ranges.swap(0, 2);
        let swapped = Bytes::from(Message::Sync(sync.clone()).encode());
        assert_eq!(
            Message::decode(&swapped),
            Err(WireError("ranges are not in order"))
        );
        sync.patterns.clear();
        let nothing = Bytes::from(Message::Sync(sync).encode());
        assert!(Message::decode(&nothing).is_err());
        let many = Announce {
            tips: vec![a_tip(1); MAX_TIPS + 1],
            batch: None,
        };
        let many = Bytes::from(Message::Announce(many).encode());
        assert!(Message::decode(&many).is_err());
        let mut far = a_tip(1);
        far.next = MAX_NUMBER + 1;
        let announce = Announce {
            tips: vec![far],
            batch: None,
        };
        let far = Bytes::from(Message::Announce(announce).encode());
        assert!(Message::decode(&far).is_err());
        assert!(Message::decode(&Bytes::from(vec![0; MAX_MESSAGE_BYTES + 1])).is_err());
    }

    #[test]
    fn a_later_field_is_passed_over() {
        let mut body = Vec::new();
        put_bytes_field(&mut body, 1, &tip_bytes(&a_tip(1)));
        put_number_field(&mut body, 14, 5);
        put_bytes_field(&mut body, 15, b"later");
        let mut out = Vec::new();
        put_bytes_field(&mut out, 2, &body);
        let expected = Announce {
            tips: vec![a_tip(1)],
            batch: None,
        };
        assert_eq!(
            Message::decode(&out.into()),
            Ok(Message::Announce(expected))
        );
    }
}
