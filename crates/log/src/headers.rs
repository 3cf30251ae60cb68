//! What an event says about itself beside its payload (specs/log.md §3.3).

use crate::cbor::{self, MAP, Malformed, Reader, put_bytes, put_head, put_text};

/// Most bytes of an event's headers, encoded.
pub const MAX_HEADERS: usize = 16 << 10;
/// Most pairs of the user's own.
pub const MAX_USER_PAIRS: usize = 64;
/// Most bytes of a producer's name, and of each text of an origin.
pub const MAX_LABEL: usize = 128;
/// Most bytes of a content type, and of a user's key.
const MAX_KEY: usize = 255;

/// Everything is optional; most events have none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Headers {
    /// What the payload is, as a media type. At most 255 bytes.
    pub content_type: Option<String>,
    /// Pairs of the user's own, sorted by key length, then key, each key once. At most 64; keys 1 to 255 bytes.
    pub user: Vec<(String, String)>,
    /// Where it was made.
    pub origin: Option<Origin>,
    /// Which request it belongs to.
    pub trace: Option<Trace>,
    /// Makes a retry harmless: an event of the same producer with the same number is appended once.
    pub producer: Option<Producer>,
}

/// Where an event was made. Texts of at most 128 bytes; empty is absent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// The site, like `Hamburg 2`.
    pub site: String,
    /// The device, like `press-07`.
    pub device: String,
    /// The program, like `plc-gateway`.
    pub service: String,
}

/// Trace context, the fields of W3C's `traceparent`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trace {
    /// The trace.
    pub trace: [u8; 16],
    /// The span that made the event.
    pub span: [u8; 8],
    /// Flags, 1 for sampled.
    pub flags: u8,
}

/// Who produced an event, and as which of its events. Numbers of one producer rise; gaps are allowed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Producer {
    /// 1 to 128 bytes, unique among producers of a stream at this node.
    pub id: String,
    /// At most 2^53 − 1.
    pub seq: u64,
}

/// Why headers were not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HeadersError {
    /// A text beyond its limit, or empty where it may not be.
    #[error("the {0} of an event is empty or longer than it may be: see MAX_LABEL and MAX_HEADERS")]
    Text(&'static str),
    /// More than 64 pairs.
    #[error("an event may have 64 user pairs, not {0}")]
    TooMany(usize),
    /// Keys out of order or twice.
    #[error(
        "user pairs must be sorted by the length of the key, then by the key, each once: use Headers::pair"
    )]
    Order,
    /// All together.
    #[error("the headers of an event have {0} bytes and may have 16384")]
    TooLarge(usize),
    /// A producer's number.
    #[error("the number of a producer may be 2^53 - 1 at most")]
    Number,
}

impl Headers {
    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.content_type.is_none()
            && self.user.is_empty()
            && self.origin.is_none()
            && self.trace.is_none()
            && self.producer.is_none()
    }

    /// Bytes that they take beside themselves, about.
    pub(crate) fn weight(&self) -> usize {
        // Two texts, each somewhere of its own.
        const PAIR: usize = 128;
        let pairs = self.user.iter();
        let pairs: usize = pairs
            .map(|(key, value)| PAIR + key.len() + value.len())
            .sum();
        let origin = self.origin.as_ref().map_or(0, |origin| {
            origin.site.len() + origin.device.len() + origin.service.len()
        });
        let content_type = self.content_type.as_ref().map_or(0, String::len);
        let producer = self
            .producer
            .as_ref()
            .map_or(0, |producer| producer.id.len());
        pairs + origin + content_type + producer
    }

    /// Sets a pair of the user's own, in its place.
    #[must_use]
    pub fn pair(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        let (key, value) = (key.into(), value.into());
        match self
            .user
            .binary_search_by(|(k, _)| order(k).cmp(&order(&key)))
        {
            Ok(at) => self.user[at].1 = value,
            Err(at) => self.user.insert(at, (key, value)),
        }
        self
    }

    /// Sets producer and number.
    #[must_use]
    pub fn produced_by(mut self, id: impl Into<String>, seq: u64) -> Self {
        self.producer = Some(Producer { id: id.into(), seq });
        self
    }

    /// The value of a user's pair.
    #[must_use]
    pub fn user(&self, key: &str) -> Option<&str> {
        let found = self.user.iter().find(|(k, _)| k == key);
        found.map(|(_, value)| value.as_str())
    }

    /// Checks all limits.
    ///
    /// # Errors
    /// The first that is broken.
    pub fn check(&self) -> Result<(), HeadersError> {
        let label = |text: &str, what| check_text(text, MAX_LABEL, what);
        if let Some(text) = &self.content_type {
            check_text(text, MAX_KEY, "content type")?;
        }
        if let Some(producer) = &self.producer {
            label(&producer.id, "producer")?;
            if producer.seq > crate::feed::MAX_NUMBER {
                return Err(HeadersError::Number);
            }
        }
        if let Some(origin) = &self.origin {
            let texts = [&origin.site, &origin.device, &origin.service];
            let mut texts = texts.into_iter().filter(|text| !text.is_empty()).peekable();
            texts.peek().ok_or(HeadersError::Text("origin"))?;
            texts.try_for_each(|text| label(text, "origin"))?;
        }
        if self.user.len() > MAX_USER_PAIRS {
            return Err(HeadersError::TooMany(self.user.len()));
        }
        for (key, _) in &self.user {
            check_text(key, MAX_KEY, "key of a user pair")?;
        }
        let sorted = |pair: &[(String, String)]| order(&pair[0].0) < order(&pair[1].0);
        if !self.user.windows(2).all(sorted) {
            return Err(HeadersError::Order);
        }
        Ok(())
    }

    /// Appends the one encoding.
    ///
    /// # Errors
    /// See [`HeadersError`].
    pub(crate) fn put(&self, out: &mut Vec<u8>) -> Result<(), HeadersError> {
        self.check()?;
        let start = out.len();
        let fields = [
            self.content_type.is_some(),
            !self.user.is_empty(),
            self.trace.is_some(),
            self.origin.is_some(),
            self.producer.is_some(),
        ];
        put_head(
            out,
            MAP,
            fields.iter().filter(|there| **there).count() as u64,
        );
        if let Some(text) = &self.content_type {
            put_text(out, "type");
            put_text(out, text);
        }
        if !self.user.is_empty() {
            put_text(out, "user");
            put_head(out, MAP, self.user.len() as u64);
            for (key, value) in &self.user {
                put_text(out, key);
                put_text(out, value);
            }
        }
        if let Some(trace) = &self.trace {
            put_text(out, "trace");
            let mut bytes = [0; 25];
            bytes[..16].copy_from_slice(&trace.trace);
            bytes[16..24].copy_from_slice(&trace.span);
            bytes[24] = trace.flags;
            put_bytes(out, &bytes);
        }
        if let Some(origin) = &self.origin {
            put_text(out, "origin");
            put_origin(out, origin);
        }
        if let Some(producer) = &self.producer {
            put_text(out, "producer");
            put_head(out, cbor::LIST, 2);
            put_text(out, &producer.id);
            put_head(out, cbor::UNSIGNED, producer.seq);
        }
        match out.len() - start {
            len if len > MAX_HEADERS => Err(HeadersError::TooLarge(len)),
            _ => Ok(()),
        }
    }
}

/// dag-cbor's order of keys.
fn order(key: &str) -> (usize, &str) {
    (key.len(), key)
}

fn check_text(text: &str, max: usize, what: &'static str) -> Result<(), HeadersError> {
    if text.is_empty() || text.len() > max {
        return Err(HeadersError::Text(what));
    }
    Ok(())
}

fn put_origin(out: &mut Vec<u8>, origin: &Origin) {
    let fields = [
        ("site", &origin.site),
        ("device", &origin.device),
        ("service", &origin.service),
    ];
    let there = fields.iter().filter(|(_, text)| !text.is_empty());
    put_head(out, MAP, there.clone().count() as u64);
    for (key, text) in there {
        put_text(out, key);
        put_text(out, text);
    }
}

/// Reads headers, in their one form; what the writer would refuse is refused. Nothing is allocated while `headers` is `None`.
pub(crate) fn read(
    reader: &mut Reader<'_>,
    headers: Option<&mut Headers>,
) -> Result<(), Malformed> {
    let mut unused = Headers::default();
    let keep = headers.is_some();
    let headers = headers.unwrap_or(&mut unused);
    let start = reader.at();
    let fields = reader.map()?;
    if fields == 0 {
        return reader.fail("headers that say nothing are left out");
    }
    let mut last = ("", 0);
    for _ in 0..fields {
        let key = reader.text()?;
        let place = match key {
            "type" => 1,
            "user" => 2,
            "trace" => 3,
            "origin" => 4,
            "producer" => 5,
            _ => return reader.fail("headers have no such key"),
        };
        if place <= last.1 {
            return reader.fail("keys are not in order, or one comes twice");
        }
        last = (key, place);
        match place {
            1 => {
                let text = label(reader, MAX_KEY)?;
                headers.content_type = keep.then(|| text.to_owned());
            }
            2 => read_user(reader, keep.then_some(&mut headers.user))?,
            3 => headers.trace = Some(read_trace(reader)?),
            4 => read_origin(reader, keep, headers)?,
            _ => read_producer(reader, keep, headers)?,
        }
    }
    if reader.at() - start > MAX_HEADERS {
        return reader.fail("headers of more than 16384 bytes");
    }
    Ok(())
}

fn label<'a>(reader: &mut Reader<'a>, max: usize) -> Result<&'a str, Malformed> {
    let text = reader.text()?;
    if text.is_empty() || text.len() > max {
        return reader.fail("a text of headers that is empty or too long");
    }
    Ok(text)
}

fn read_user(
    reader: &mut Reader<'_>,
    mut user: Option<&mut Vec<(String, String)>>,
) -> Result<(), Malformed> {
    let pairs = reader.map()?;
    if pairs == 0 || pairs > MAX_USER_PAIRS as u64 {
        return reader.fail("user pairs are 1 to 64, or left out");
    }
    let mut last = (0, "");
    for _ in 0..pairs {
        let key = label(reader, MAX_KEY)?;
        if order(key) <= last {
            return reader.fail("keys are not in order, or one comes twice");
        }
        last = order(key);
        let value = reader.text()?;
        if let Some(user) = &mut user {
            user.push((key.to_owned(), value.to_owned()));
        }
    }
    Ok(())
}

fn read_trace(reader: &mut Reader<'_>) -> Result<Trace, Malformed> {
    let bytes = reader.bytes()?;
    let Ok(bytes) = <&[u8; 25]>::try_from(bytes) else {
        return reader.fail("a trace has 25 bytes");
    };
    let mut trace = Trace {
        trace: [0; 16],
        span: [0; 8],
        flags: bytes[24],
    };
    trace.trace.copy_from_slice(&bytes[..16]);
    trace.span.copy_from_slice(&bytes[16..24]);
    Ok(trace)
}

fn read_origin(
    reader: &mut Reader<'_>,
    keep: bool,
    headers: &mut Headers,
) -> Result<(), Malformed> {
    let fields = reader.map()?;
    if fields == 0 {
        return reader.fail("an origin that says nothing is left out");
    }
    let mut origin = Origin::default();
    let mut last = 0;
    for _ in 0..fields {
        let (place, text) = match reader.text()? {
            "site" => (1, &mut origin.site),
            "device" => (2, &mut origin.device),
            "service" => (3, &mut origin.service),
            _ => return reader.fail("an origin has no such key"),
        };
        if place <= last {
            return reader.fail("keys are not in order, or one comes twice");
        }
        last = place;
        let found = label(reader, MAX_LABEL)?;
        if keep {
            found.clone_into(text);
        }
    }
    headers.origin = keep.then_some(origin);
    Ok(())
}

fn read_producer(
    reader: &mut Reader<'_>,
    keep: bool,
    headers: &mut Headers,
) -> Result<(), Malformed> {
    if reader.list()? != 2 {
        return reader.fail("a producer is a name and a number");
    }
    let id = label(reader, MAX_LABEL)?;
    let seq = reader.number()?;
    if seq > crate::feed::MAX_NUMBER {
        return reader.fail("a number beyond 2^53 - 1");
    }
    headers.producer = keep.then(|| Producer {
        id: id.to_owned(),
        seq,
    });
    Ok(())
}
