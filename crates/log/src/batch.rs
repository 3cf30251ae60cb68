//! Batches: the signed blocks that feeds are made of (specs/log.md §3). Pure: bytes in, bytes out.

use bytes::Bytes;
use cid::Cid;
use cid::multihash::Multihash;
use gemba_block::Block;
use ring::digest::{Context, SHA256};

use crate::cbor::{
    BYTES, LIST, MAP, Malformed, Reader, UNSIGNED, put_bytes, put_head, put_link, put_text,
};
use crate::event::{Event, EventList, EventRef, Events, MAX_EVENTS, MAX_EVENTS_BYTES, check_items};
use crate::feed::{Author, Epoch, EventHash, EventId, FeedId, MAX_NUMBER, OrderKey, Seq, Signer};
use crate::skip;
use crate::stream::StreamName;

/// Version of the format that is written (specs/log.md §3).
pub const FORMAT: u64 = 1;
/// Most bytes of a batch: 1 MiB of events and what is around them.
pub const MAX_BATCH_BYTES: usize = MAX_EVENTS_BYTES + 4096;
/// Bytes of the digest in a batch's CID.
pub(crate) const DIGEST: usize = 32;

/// What is signed begins with this, so that no signature of a batch is one of anything else.
const SIGNED: &[u8] = b"gemba log batch 1";
/// What the chain of hashes of a batch begins with.
const CHAIN: &[u8] = b"gemba log chain 1";
const SIGNATURE_KEY: &str = "signature";
/// Bytes of the last entry: key, head, signature.
const SIGNATURE_ENTRY: usize = 1 + SIGNATURE_KEY.len() + 2 + 64;
/// LZ4 cannot do better, so a larger promise is a lie.
const MAX_RATIO: u64 = 256;

/// A batch whose form, CID and signature were checked. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch(Parts);

/// A batch whose form and CID were checked, and whose signature was not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnverifiedBatch {
    parts: Parts,
    /// What the signature is of.
    signed: [u8; DIGEST],
    signature: [u8; 64],
}

/// The fields of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Parts {
    block: Bytes,
    digest: [u8; DIGEST],
    feed: FeedId,
    number: u64,
    first: Seq,
    count: u32,
    lamport: u64,
    prev: Option<[u8; DIGEST]>,
    skip: Vec<[u8; DIGEST]>,
    /// The items of the list of events, without its head, not compressed.
    items: Bytes,
    compressed: bool,
}

/// Why bytes are no batch. Always the fault of whoever gave them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BatchError {
    /// Not the one form of a batch.
    #[error("not a batch: {0}")]
    Malformed(#[from] Malformed),
    /// Written by a later version.
    #[error(
        "the batch has format {0}, newer than format 1, the newest known: update gemba to read it"
    )]
    Newer(u64),
    /// More than a batch may be.
    #[error("the batch has {0} bytes, more than a batch may have")]
    TooLarge(usize),
    /// The compressed events are not what was promised.
    #[error("the compressed events of the batch are damaged")]
    Compression,
    /// The author did not sign this.
    #[error("the signature of the batch is not its author's")]
    Signature,
    /// The bytes are not those that the CID names.
    #[error("the bytes are not those of the CID they came under")]
    WrongCid,
}

/// What a new batch is made of.
#[derive(Debug)]
pub struct Draft<'a> {
    /// The feed.
    pub feed: &'a FeedId,
    /// Its number in the feed, from 0.
    pub number: u64,
    /// Place of its first event.
    pub first: Seq,
    /// Logical time; larger than the one of the batch before.
    pub lamport: u64,
    /// The batch before; `None` for number 0 alone.
    pub prev: Option<Cid>,
    /// As [`skip::Spine::links`] gives them.
    pub skip: Vec<[u8; 32]>,
    /// One event or more.
    pub events: &'a EventList,
    /// Whether events are compressed if that makes them smaller.
    pub compress: bool,
}

/// Keeps memory of the compressor between batches.
#[derive(Debug, Default)]
pub struct Sealer {
    compressed: Vec<u8>,
}

impl Draft<'_> {
    /// Encodes and signs.
    ///
    /// # Panics
    /// If number, link and place do not belong together or the signer signs wrongly: a mistake of the caller, found in tests.
    pub fn seal(&self, signer: &dyn Signer, sealer: &mut Sealer) -> Batch {
        debug_assert_eq!(self.prev.is_none(), self.number == 0);
        debug_assert_eq!(self.skip.len(), skip::count(self.number));
        let prev = self.prev.as_ref().and_then(crate::cbor::digest_of);
        let size = list_bytes(self.events);
        let compressed = self.compress && sealer.shrinks(self.events);
        let body = if compressed {
            sealer.compressed.len()
        } else {
            size
        };
        let mut out = Vec::with_capacity(body + 512 + self.skip.len() * 41 + SIGNATURE_ENTRY);
        let fields = 10
            + u64::from(prev.is_some())
            + u64::from(!self.skip.is_empty())
            + u64::from(compressed);
        put_head(&mut out, MAP, fields);
        put_number(&mut out, "v", FORMAT);
        if compressed {
            put_text(&mut out, "lz4");
            put_bytes(&mut out, &sealer.compressed);
        }
        if let Some(prev) = &prev {
            put_text(&mut out, "prev");
            put_link(&mut out, prev);
        }
        if compressed {
            put_number(&mut out, "size", size as u64);
        }
        if !self.skip.is_empty() {
            put_text(&mut out, "skip");
            put_head(&mut out, LIST, self.skip.len() as u64);
            self.skip.iter().for_each(|link| put_link(&mut out, link));
        }
        put_number(&mut out, "time", self.lamport);
        put_number(&mut out, "batch", self.number);
        put_number(&mut out, "count", self.events.len() as u64);
        put_number(&mut out, "epoch", self.feed.epoch.0);
        put_number(&mut out, "first", self.first);
        put_text(&mut out, "author");
        put_bytes(&mut out, &self.feed.author.0);
        let mut items = None;
        if !compressed {
            put_text(&mut out, "events");
            put_head(&mut out, LIST, self.events.len() as u64);
            let from = out.len();
            out.extend_from_slice(self.events.items());
            items = Some(from..out.len());
        }
        put_text(&mut out, "stream");
        put_text(&mut out, self.feed.stream.as_str());
        let digest = sign(&mut out, signer);
        let block = Bytes::from(out);
        let items = match items {
            Some(range) => block.slice(range),
            None => Bytes::copy_from_slice(self.events.items()),
        };
        Batch(Parts {
            block,
            digest,
            feed: self.feed.clone(),
            number: self.number,
            first: self.first,
            count: self.events.len() as u32,
            lamport: self.lamport,
            prev,
            skip: self.skip.clone(),
            items,
            compressed,
        })
    }
}

fn put_number(out: &mut Vec<u8>, key: &str, number: u64) {
    put_text(out, key);
    put_head(out, UNSIGNED, number);
}

/// Appends the signature of all that stands in `out`; gives the digest of the whole.
fn sign(out: &mut Vec<u8>, signer: &dyn Signer) -> [u8; DIGEST] {
    let mut hash = Context::new(&SHA256);
    hash.update(out);
    let from = out.len();
    put_text(out, SIGNATURE_KEY);
    put_head(out, BYTES, 64);
    let signature = signer.sign(&message(&finish(hash.clone())));
    out.extend_from_slice(&signature);
    hash.update(&out[from..]);
    finish(hash)
}

fn message(signed: &[u8; DIGEST]) -> [u8; SIGNED.len() + DIGEST] {
    let mut message = [0; SIGNED.len() + DIGEST];
    message[..SIGNED.len()].copy_from_slice(SIGNED);
    message[SIGNED.len()..].copy_from_slice(signed);
    message
}

fn finish(hash: Context) -> [u8; DIGEST] {
    let mut digest = [0; DIGEST];
    digest.copy_from_slice(hash.finish().as_ref());
    digest
}

/// Bytes of the encoded list.
fn list_bytes(events: &EventList) -> usize {
    let mut head = Vec::new();
    put_head(&mut head, LIST, events.len() as u64);
    head.len() + events.items().len()
}

impl Sealer {
    /// Compresses a list; whether that is worth it.
    fn shrinks(&mut self, events: &EventList) -> bool {
        // Less has no repetition that pays for the two keys.
        const LEAST: usize = 64;
        let size = list_bytes(events);
        if size < LEAST {
            return false;
        }
        let mut list = Vec::with_capacity(size);
        put_head(&mut list, LIST, events.len() as u64);
        list.extend_from_slice(events.items());
        self.compressed
            .resize(lz4_flex::block::get_maximum_output_size(size), 0);
        match lz4_flex::block::compress_into(&list, &mut self.compressed) {
            Ok(len) => {
                self.compressed.truncate(len);
                len + 16 < size
            }
            Err(_) => false,
        }
    }
}

impl UnverifiedBatch {
    /// Reads a batch and computes its CID.
    ///
    /// # Errors
    /// See [`BatchError`]; every form but the one that a writer gives is refused.
    pub fn decode(block: Bytes) -> Result<Self, BatchError> {
        if block.len() > MAX_BATCH_BYTES {
            return Err(BatchError::TooLarge(block.len()));
        }
        let (mut parts, signature) = parse(block)?;
        let (before, entry) = parts.block.split_at(parts.block.len() - SIGNATURE_ENTRY);
        let mut hash = Context::new(&SHA256);
        hash.update(before);
        let signed = finish(hash.clone());
        hash.update(entry);
        parts.digest = finish(hash);
        Ok(Self {
            parts,
            signed,
            signature,
        })
    }

    /// Checks the signature.
    ///
    /// # Errors
    /// [`BatchError::Signature`].
    pub fn verify(self) -> Result<Batch, BatchError> {
        let author = &self.parts.feed.author;
        if author.has_signed(&message(&self.signed), &self.signature) {
            Ok(Batch(self.parts))
        } else {
            Err(BatchError::Signature)
        }
    }

    /// Whose batch this says it is.
    #[must_use]
    pub fn feed(&self) -> &FeedId {
        &self.parts.feed
    }

    /// Its CID.
    #[must_use]
    pub fn cid(&self) -> Cid {
        cid_of(&self.parts.digest)
    }

    pub(crate) fn digest(&self) -> &[u8; DIGEST] {
        &self.parts.digest
    }

    /// Takes it as it is: its signature was checked before it was stored, and its hash is known to be right since.
    pub(crate) fn trust(self) -> Batch {
        Batch(self.parts)
    }
}

impl Batch {
    /// Reads a batch from bytes of whatever source: form, CID and signature are checked.
    ///
    /// # Errors
    /// See [`BatchError`].
    pub fn decode(block: Bytes) -> Result<Self, BatchError> {
        UnverifiedBatch::decode(block)?.verify()
    }

    /// Reads a batch that came under a name.
    ///
    /// # Errors
    /// See [`BatchError`].
    pub fn from_block(block: &Block) -> Result<Self, BatchError> {
        let batch = Self::decode(block.data().clone())?;
        if batch.cid() == *block.cid() {
            Ok(batch)
        } else {
            Err(BatchError::WrongCid)
        }
    }

    /// Reads a batch from our own disk, where it was put after it had been checked and whose checksum was right.
    pub(crate) fn from_disk(block: Bytes, digest: [u8; DIGEST]) -> Result<Self, BatchError> {
        let (mut parts, _) = parse(block)?;
        parts.digest = digest;
        Ok(Self(parts))
    }

    /// Its CID: version 1, dag-cbor, sha2-256.
    #[must_use]
    pub fn cid(&self) -> Cid {
        cid_of(&self.0.digest)
    }

    pub(crate) fn digest(&self) -> &[u8; DIGEST] {
        &self.0.digest
    }

    /// Its bytes.
    #[must_use]
    pub fn bytes(&self) -> &Bytes {
        &self.0.block
    }

    /// As a block.
    #[must_use]
    pub fn block(&self) -> Block {
        Block::danger_unchecked(self.cid(), self.0.block.clone())
    }

    /// The feed.
    #[must_use]
    pub fn feed(&self) -> &FeedId {
        &self.0.feed
    }

    /// Its number in the feed, from 0.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.0.number
    }

    /// Place of its first event.
    #[must_use]
    pub fn first(&self) -> Seq {
        self.0.first
    }

    /// Place behind its last event.
    #[must_use]
    pub fn end(&self) -> Seq {
        self.0.first + u64::from(self.0.count)
    }

    /// How many events it has, at least one.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.0.count
    }

    /// Logical time of all its events.
    #[must_use]
    pub fn lamport(&self) -> u64 {
        self.0.lamport
    }

    /// The batch before; `None` for the first.
    #[must_use]
    pub fn prev(&self) -> Option<Cid> {
        self.0.prev.as_ref().map(cid_of)
    }

    pub(crate) fn prev_digest(&self) -> Option<&[u8; DIGEST]> {
        self.0.prev.as_ref()
    }

    /// Earlier batches, by [`skip::target`].
    pub fn skips(&self) -> impl ExactSizeIterator<Item = Cid> {
        self.0.skip.iter().map(cid_of)
    }

    /// Whether its events are compressed.
    #[must_use]
    pub fn is_compressed(&self) -> bool {
        self.0.compressed
    }

    /// Its events, without a copy.
    #[must_use]
    pub fn events(&self) -> Events<'_> {
        let Parts {
            items,
            first,
            count,
            lamport,
            ..
        } = &self.0;
        Events::new(items, *first, *count, *lamport)
    }

    /// An event of this batch as a value of its own, which shares the batch's bytes.
    #[must_use]
    pub fn own(&self, event: &EventRef<'_>) -> Event {
        Event {
            seq: event.seq,
            lamport: event.lamport,
            time: event.time,
            headers: event.headers(),
            payload: self.0.items.slice_ref(event.payload),
        }
    }

    /// Its events as values of their own, which share the batch's bytes.
    pub fn owned_events(&self) -> impl Iterator<Item = Event> {
        self.events().map(|event| self.own(&event))
    }

    /// The name of one of its events.
    #[must_use]
    pub fn id(&self, seq: Seq) -> EventId {
        EventId {
            feed: self.0.feed.clone(),
            seq,
        }
    }

    /// The place of one of its events in the order over all feeds.
    #[must_use]
    pub fn order(&self, seq: Seq) -> OrderKey {
        OrderKey {
            lamport: self.0.lamport,
            feed: self.0.feed.clone(),
            seq,
            batch: self.0.digest,
        }
    }

    /// The hash of one of its events and of all before it in the feed (specs/log.md §3.4); `None` if it is not in this batch. Costs
    /// hashing the events before it in the batch: use [`Self::hashes`] for many.
    #[must_use]
    pub fn event_hash(&self, seq: Seq) -> Option<EventHash> {
        let place = seq.checked_sub(self.0.first)?;
        self.hashes().nth(usize::try_from(place).ok()?)
    }

    /// The hashes of all its events, in order.
    pub fn hashes(&self) -> impl Iterator<Item = EventHash> {
        let mut start = Context::new(&SHA256);
        let mut bytes = CHAIN.to_vec();
        bytes.extend_from_slice(self.0.prev.as_ref().unwrap_or(&[0; DIGEST]));
        self.0.feed.put(&mut bytes);
        start.update(&bytes);
        let mut last = finish(start);
        self.events().map(move |event| {
            let mut hash = Context::new(&SHA256);
            hash.update(&last);
            hash.update(event.encoded());
            last = finish(hash);
            EventHash(last)
        })
    }
}

/// The CID of a batch with this digest.
pub(crate) fn cid_of(digest: &[u8; DIGEST]) -> Cid {
    match Multihash::wrap(0x12, digest) {
        Ok(hash) => Cid::new_v1(gemba_block::codec::DAG_CBOR, hash),
        Err(_) => unreachable!("a multihash has room for 32 bytes"),
    }
}

/// Reads all fields; the digest is left for the caller.
fn parse(block: Bytes) -> Result<(Parts, [u8; 64]), BatchError> {
    let mut reader = Reader::new(&block);
    let mut left = reader.map()?;
    let mut field = |reader: &mut Reader<'_>, key: &'static str| -> Result<(), Malformed> {
        left = match left.checked_sub(1) {
            Some(left) => left,
            None => return reader.fail("the map ends before all fields were there"),
        };
        if reader.text()? == key {
            Ok(())
        } else {
            reader.fail("another key should stand here")
        }
    };
    field(&mut reader, "v")?;
    match reader.number()? {
        FORMAT => {}
        0 => reader.fail("there is no format 0")?,
        newer => return Err(BatchError::Newer(newer)),
    }
    let packed = if next_key_is(reader, "lz4") {
        field(&mut reader, "lz4")?;
        Some(reader.bytes()?)
    } else {
        None
    };
    let prev = if next_key_is(reader, "prev") {
        field(&mut reader, "prev")?;
        Some(reader.link()?)
    } else {
        None
    };
    let size = match packed {
        None => 0,
        Some(_) => {
            field(&mut reader, "size")?;
            reader.number()?
        }
    };
    let mut skip = Vec::new();
    if next_key_is(reader, "skip") {
        field(&mut reader, "skip")?;
        skip = read_skips(&mut reader)?;
    }
    let mut number = |reader: &mut Reader<'_>, key| -> Result<u64, Malformed> {
        field(reader, key)?;
        match reader.number()? {
            number if number <= MAX_NUMBER => Ok(number),
            _ => reader.fail("a number beyond 2^53 - 1"),
        }
    };
    let lamport = number(&mut reader, "time")?;
    let batch = number(&mut reader, "batch")?;
    let count = number(&mut reader, "count")?;
    let epoch = number(&mut reader, "epoch")?;
    let first = number(&mut reader, "first")?;
    if prev.is_none() != (batch == 0) || skip.len() != skip::count(batch) {
        reader.fail("the links are not those of a batch with this number")?;
    }
    if batch > first || (batch == 0) != (first == 0) || first + count > MAX_NUMBER {
        reader.fail("the place of the first event is impossible for a batch with this number")?;
    }
    if count == 0 || count > MAX_EVENTS as u64 {
        reader.fail("a batch has 1 to 16384 events")?;
    }
    let count = count as u32;
    field(&mut reader, "author")?;
    let Ok(author) = <[u8; 32]>::try_from(reader.bytes()?) else {
        return Err(reader.wrong("an author has 32 bytes").into());
    };
    let compressed = packed.is_some();
    let items = match packed {
        Some(packed) => unpack(packed, size, count)?,
        None => {
            field(&mut reader, "events")?;
            read_events(&mut reader, &block, count)?
        }
    };
    field(&mut reader, "stream")?;
    let Ok(stream) = StreamName::new(reader.text()?) else {
        return Err(reader.wrong("no name of a stream").into());
    };
    field(&mut reader, SIGNATURE_KEY)?;
    let Ok(signature) = <[u8; 64]>::try_from(reader.bytes()?) else {
        return Err(reader.wrong("a signature has 64 bytes").into());
    };
    if left != 0 || !reader.is_done() {
        reader.fail("there is more than a batch has")?;
    }
    let parts = Parts {
        digest: [0; DIGEST],
        feed: FeedId {
            author: Author(author),
            stream,
            epoch: Epoch(epoch),
        },
        number: batch,
        first,
        count,
        lamport,
        prev,
        skip,
        items,
        compressed,
        block,
    };
    Ok((parts, signature))
}

/// Whether the next item is this text. A copy of the reader looks.
fn next_key_is(mut reader: Reader<'_>, key: &str) -> bool {
    reader.text() == Ok(key)
}

fn read_skips(reader: &mut Reader<'_>) -> Result<Vec<[u8; DIGEST]>, Malformed> {
    let links = reader.list()?;
    if links == 0 || links > skip::MAX_SKIPS as u64 {
        return reader.fail("skip links are 1 to 52, or left out");
    }
    (0..links).map(|_| reader.link()).collect()
}

fn read_events(reader: &mut Reader<'_>, block: &Bytes, count: u32) -> Result<Bytes, Malformed> {
    if reader.list()? != u64::from(count) {
        return reader.fail("the list of events has not the length that is given");
    }
    let from = reader.at();
    for _ in 0..count {
        crate::event::check_item(reader)?;
    }
    if reader.at() - from > MAX_EVENTS_BYTES {
        return reader.fail("more than 1 MiB of events");
    }
    Ok(block.slice(from..reader.at()))
}

/// Decompresses and checks the list. What is allocated is bounded by the limit of a batch and by 256 times the bytes that are there.
fn unpack(packed: &[u8], size: u64, count: u32) -> Result<Bytes, BatchError> {
    if size > MAX_EVENTS_BYTES as u64 || size > packed.len() as u64 * MAX_RATIO {
        return Err(BatchError::Compression);
    }
    let mut list = vec![0; size as usize];
    match lz4_flex::block::decompress_into(packed, &mut list) {
        Ok(len) if len as u64 == size => {}
        _ => return Err(BatchError::Compression),
    }
    let list = Bytes::from(list);
    let mut reader = Reader::new(&list);
    if reader.list()? != u64::from(count) {
        reader.fail("the list of events has not the length that is given")?;
    }
    let items = list.slice(reader.at()..);
    check_items(&items, count)?;
    Ok(items)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use gemba_testkit::Rng;

    use super::*;
    use crate::event::NewEvent;
    use crate::feed::MemorySigner;
    use crate::headers::{Headers, Origin, Trace};

    fn signer() -> MemorySigner {
        MemorySigner::from_seed(&[7; 32])
    }

    fn feed() -> FeedId {
        FeedId {
            author: signer().author(),
            stream: "plant/line/press".parse().unwrap(),
            epoch: Epoch(0),
        }
    }

    fn events(count: usize) -> Vec<NewEvent> {
        let headers = Headers {
            content_type: Some("application/json".into()),
            origin: Some(Origin {
                site: "Hamburg".into(),
                device: "press-07".into(),
                ..Origin::default()
            }),
            trace: Some(Trace {
                trace: [1; 16],
                span: [2; 8],
                flags: 1,
            }),
            ..Headers::default()
        }
        .produced_by("plc", 9)
        .pair("unit", "pieces")
        .pair("a", "");
        (0..count as i64)
            .map(|i| NewEvent::new(1_700_000_000_000 + i, format!("{{\"count\":{i}}}")))
            .map(|event| {
                if event.time % 3 == 0 {
                    event.with(headers.clone())
                } else {
                    event
                }
            })
            .collect()
    }

    fn seal(number: u64, events: &[NewEvent], compress: bool) -> Batch {
        let list = EventList::of(events).unwrap();
        let draft = Draft {
            feed: &feed(),
            number,
            first: number * 10,
            lamport: 5 + number,
            prev: (number > 0).then(|| cid_of(&[3; DIGEST])),
            skip: vec![[4; DIGEST]; skip::count(number)],
            events: &list,
            compress,
        };
        draft.seal(&signer(), &mut Sealer::default())
    }

    /// LOG-10 to LOG-14: what was sealed is read as it was, is canonical dag-cbor, and its links are seen by anybody.
    #[test]
    fn log_10_a_batch_is_read_as_it_was_sealed() {
        for (number, count, compress) in [
            (0, 1, true),
            (0, 40, true),
            (1, 40, false),
            (8, 1, false),
            (48, 400, true),
        ] {
            let new = events(count);
            let batch = seal(number, &new, compress);
            assert_eq!(batch.is_compressed(), compress && count > 1);
            let again = Batch::decode(batch.bytes().clone()).unwrap();
            assert_eq!(again, batch);
            assert_eq!(
                Batch::from_disk(batch.bytes().clone(), *batch.digest()).unwrap(),
                batch
            );
            let links = gemba_block::cbor::scan(batch.bytes()).unwrap();
            assert_eq!(links.len(), usize::from(number > 0) + skip::count(number));
            assert_eq!(
                Block::new(batch.cid(), batch.bytes().clone()).unwrap(),
                batch.block()
            );
            assert_eq!(Batch::from_block(&batch.block()).unwrap(), batch);
            let read: Vec<_> = again.owned_events().collect();
            assert_eq!(read.len(), count);
            for (i, (event, new)) in read.iter().zip(&new).enumerate() {
                assert_eq!(
                    (event.seq, event.lamport),
                    (number * 10 + i as u64, 5 + number)
                );
                assert_eq!(
                    (event.time, &event.payload, &event.headers),
                    (new.time, &new.payload, &new.headers)
                );
            }
        }
    }

    /// LOG-15: the hash of an event depends on every event before it and on nothing behind it, and not on compression.
    #[test]
    fn log_15_hashes_are_chained() {
        let new = events(30);
        let hashes: Vec<_> = seal(1, &new, true).hashes().collect();
        assert_eq!(seal(1, &new, false).hashes().collect::<Vec<_>>(), hashes);
        assert_eq!(
            seal(1, &new[..20], true).hashes().collect::<Vec<_>>(),
            hashes[..20]
        );
        let mut other = new.clone();
        other[4].payload = Bytes::from_static(b"x");
        let changed: Vec<_> = seal(1, &other, true).hashes().collect();
        assert_eq!(changed[..4], hashes[..4]);
        assert!(changed[4..].iter().zip(&hashes[4..]).all(|(a, b)| a != b));
        let batch = seal(1, &new, true);
        assert_eq!(batch.event_hash(10), Some(hashes[0]));
        assert_eq!(batch.event_hash(39), Some(hashes[29]));
        assert_eq!((batch.event_hash(9), batch.event_hash(40)), (None, None));
    }

    /// L3: no bit of a batch can turn without being found.
    #[test]
    fn l3_every_flipped_bit_of_a_batch_is_refused() {
        for batch in [seal(0, &events(3), false), seal(8, &events(12), true)] {
            assert!(Batch::decode(batch.bytes().clone()).is_ok());
            for bit in 0..batch.bytes().len() * 8 {
                let mut bytes = batch.bytes().to_vec();
                bytes[bit / 8] ^= 1 << (bit % 8);
                assert!(Batch::decode(bytes.into()).is_err(), "bit {bit}");
            }
        }
    }

    /// LOG-11: cut, padded and random bytes are refused, and none makes the reader allocate or panic.
    #[test]
    fn log_11_what_is_no_batch_is_refused() {
        let batch = seal(8, &events(12), false);
        for len in 0..batch.bytes().len() {
            assert!(UnverifiedBatch::decode(batch.bytes().slice(..len)).is_err());
        }
        let mut more = batch.bytes().to_vec();
        more.push(0);
        assert!(UnverifiedBatch::decode(more.into()).is_err());
        gemba_testkit::check!(2_000, |rng: &mut Rng| {
            let mut bytes = batch.bytes().to_vec();
            for _ in 0..1 + rng.below(6) {
                let at = rng.index(bytes.len());
                bytes[at] = rng.next_u64() as u8;
            }
            if let Ok(read) = UnverifiedBatch::decode(bytes.clone().into()) {
                assert!(read.clone().verify().is_err() || bytes == *batch.bytes());
                assert_eq!(
                    read.cid(),
                    *Block::encode(0x71, gemba_block::MhCode::Sha2_256, bytes)
                        .unwrap()
                        .cid()
                );
            }
        });
    }

    /// LOG-12: a later version is told apart from rubbish.
    #[test]
    fn log_12_a_newer_version_is_refused_by_name() {
        let mut bytes = seal(0, &events(1), false).bytes().to_vec();
        assert_eq!(bytes[1..4], [0x61, b'v', 1]);
        bytes[3] = 2;
        assert_eq!(Batch::decode(bytes.into()), Err(BatchError::Newer(2)));
    }

    /// LOG-13: a promise of more than LZ4 can do is no reason to allocate.
    #[test]
    fn log_13_a_bomb_is_refused() {
        assert_eq!(
            unpack(&[0; 16], 16 * 256 + 1, 1),
            Err(BatchError::Compression)
        );
        assert_eq!(unpack(&[0; 8192], 1 << 21, 1), Err(BatchError::Compression));
        // All zeros, one event of 512 KiB: compressed as far as it goes, and taken.
        let large = seal(0, &[NewEvent::new(0, vec![0; 512 << 10])], true);
        assert!(large.bytes().len() < 4096);
        assert!(Batch::decode(large.bytes().clone()).is_ok());
    }

    #[test]
    fn what_does_not_fit_is_refused_when_it_is_encoded() {
        use crate::event::EventError;
        let of = |event| EventList::of(&[event]).unwrap_err();
        assert_eq!(
            of(NewEvent::new(0, vec![0; (512 << 10) + 1])),
            EventError::TooLarge((512 << 10) + 1)
        );
        assert_eq!(of(NewEvent::new(i64::MIN, "")), EventError::Time);
        assert_eq!(EventList::of(&[]).unwrap_err(), EventError::None);
        assert_eq!(
            EventList::of(&vec![NewEvent::default(); MAX_EVENTS + 1]).unwrap_err(),
            EventError::TooMany
        );
        let large = vec![NewEvent::new(0, vec![0; 512 << 10]); 2];
        assert_eq!(EventList::of(&large).unwrap_err(), EventError::TooMany);
        let wrong = Headers::default().pair("", "x");
        assert!(matches!(
            of(NewEvent::new(0, "").with(wrong)),
            EventError::Headers(_)
        ));
    }
}
