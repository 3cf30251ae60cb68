//! One message: canonical form only (specs/gossip.md GO-4).
//!
//! A signature covers what lies in front of it, but not how a field is written: reordered or repeated fields, unknown ones, numbers
//! longer than needed or a key that the peer id holds already would make another byte string of the same message, and each would cost
//! a verification everywhere. So there is one form, the one that Go and Rust write.

use bytes::Bytes;

use super::WireError;
use super::pb::{self, Fields, Value};
use crate::message::{MAX_TOPIC_BYTES, MessageId, RawMessage, Span};

/// Longest author id that is taken. A peer id has 34 to 42 bytes.
const MAX_FROM_BYTES: usize = 128;
/// Longest signature and key that are taken: RSA with 8,192 bits.
const MAX_SIGNATURE_BYTES: usize = 1024;
const MAX_KEY_BYTES: usize = 2048;

/// Why a message is not taken, though its frame is well formed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refused {
    /// No protobuf.
    #[error("it is no protobuf message")]
    Malformed,
    /// Fields out of order, repeated or unknown, or numbers longer than needed.
    #[error("it is not in canonical form")]
    NotCanonical,
    /// Some of author, number and signature are there, but not all.
    #[error("author, number or signature is missing")]
    Incomplete,
    /// A key without need for it.
    #[error("it carries a key that its author's id holds already")]
    RedundantKey,
    /// No topic, one that is too long, or one that is no text.
    #[error("its topic is missing, too long or no text")]
    Topic,
    /// A field is longer than anything honest.
    #[error("a field is longer than any honest one")]
    TooLong,
}

impl From<WireError> for Refused {
    fn from(_: WireError) -> Self {
        Self::Malformed
    }
}

/// Reads a message. `field` is the `publish` field of an RPC with its header, the message begins at `start`.
///
/// # Errors
/// [`Refused`].
pub fn parse(field: Bytes, start: usize) -> Result<RawMessage, Refused> {
    let body = field.get(start..).ok_or(Refused::Malformed)?;
    let mut found = Found::default();
    let mut last = 0;
    for item in Fields::new(body) {
        let item = item?;
        let Value::Bytes(value) = item.value else {
            return Err(Refused::NotCanonical);
        };
        if !item.minimal || item.number <= last || item.number > 6 {
            return Err(Refused::NotCanonical);
        }
        last = item.number;
        let from = start + item.start;
        let span = Span {
            from: from as u32,
            to: (from + value.len()) as u32,
        };
        match item.number {
            1 => found.from = Some(span),
            2 => found.data = span,
            3 => found.seqno = Some(seqno(value)?),
            4 => found.topic = Some(topic(value, span)?),
            5 => {
                found.signature = Some(span);
                found.unsigned_end.get_or_insert(start + item.at);
            }
            _ => {
                found.key = Some(span);
                found.unsigned_end.get_or_insert(start + item.at);
            }
        }
    }
    found.check(&field)?;
    let topic = found.topic.ok_or(Refused::Topic)?;
    let id = match found.seqno {
        Some(seqno) => MessageId::signed(&field[found.from.unwrap_or_default().range()], seqno),
        None => {
            // It was checked above.
            let name = std::str::from_utf8(&field[topic.range()]).unwrap_or_default();
            MessageId::unsigned(name, &field[found.data.range()])
        }
    };
    Ok(RawMessage {
        start: start as u32,
        from: found.from.unwrap_or_default(),
        data: found.data,
        topic,
        unsigned_end: found.unsigned_end.unwrap_or(field.len()) as u32,
        signature: found.signature.unwrap_or_default(),
        key: found.key.unwrap_or_default(),
        seqno: found.seqno,
        id,
        field,
    })
}

/// Reads a message from a field that was read or written here before.
pub(crate) fn parse_again(field: Bytes) -> Option<RawMessage> {
    let header = field.iter().skip(1).position(|byte| *byte < 0x80)?;
    parse(field, header + 2).ok()
}

#[derive(Default)]
struct Found {
    from: Option<Span>,
    data: Span,
    seqno: Option<u64>,
    topic: Option<Span>,
    signature: Option<Span>,
    key: Option<Span>,
    unsigned_end: Option<usize>,
}

impl Found {
    fn check(&self, field: &Bytes) -> Result<(), Refused> {
        let long = |span: Option<Span>, max| span.is_some_and(|s| s.range().len() > max);
        if long(self.from, MAX_FROM_BYTES)
            || long(self.signature, MAX_SIGNATURE_BYTES)
            || long(self.key, MAX_KEY_BYTES)
        {
            return Err(Refused::TooLong);
        }
        match (self.from, self.seqno, self.signature) {
            (None, None, None) if self.key.is_none() => Ok(()),
            (Some(from), Some(_), Some(signature))
                if !from.range().is_empty() && !signature.range().is_empty() =>
            {
                match self.key {
                    Some(key) if key.range().is_empty() => Err(Refused::NotCanonical),
                    Some(_) if holds_key(&field[from.range()]) => Err(Refused::RedundantKey),
                    _ => Ok(()),
                }
            }
            _ => Err(Refused::Incomplete),
        }
    }
}

fn seqno(value: &[u8]) -> Result<u64, Refused> {
    let bytes = value.try_into().map_err(|_| Refused::Incomplete)?;
    Ok(u64::from_be_bytes(bytes))
}

fn topic(value: &[u8], span: Span) -> Result<Span, Refused> {
    if value.is_empty() || value.len() > MAX_TOPIC_BYTES || std::str::from_utf8(value).is_err() {
        return Err(Refused::Topic);
    }
    Ok(span)
}

/// Whether a peer id is a key itself (identity hash) and not a hash of one.
fn holds_key(from: &[u8]) -> bool {
    from.first() == Some(&0)
}

/// Writes the fields that are signed, in canonical order.
pub(super) fn put_unsigned(
    out: &mut Vec<u8>,
    author: Option<(&[u8], u64)>,
    data: &[u8],
    topic: &str,
) {
    if let Some((from, _)) = author {
        pb::put_bytes(out, 1, from);
    }
    pb::put_bytes(out, 2, data);
    if let Some((_, seqno)) = author {
        pb::put_bytes(out, 3, &seqno.to_be_bytes());
    }
    pb::put_bytes(out, 4, topic.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(fields: &[(u64, &[u8])]) -> Result<RawMessage, Refused> {
        let mut bytes = Vec::new();
        for (number, value) in fields {
            pb::put_bytes(&mut bytes, *number, value);
        }
        parse(bytes.into(), 0)
    }

    const FROM: (u64, &[u8]) = (1, &[0, 2, 8, 1]);
    const HASHED: (u64, &[u8]) = (1, &[0x12, 0x20, 8, 1]);
    const DATA: (u64, &[u8]) = (2, b"hi");
    const SEQNO: (u64, &[u8]) = (3, &[0, 0, 0, 0, 0, 0, 1, 2]);
    const TOPIC: (u64, &[u8]) = (4, b"t1");
    const SIGNATURE: (u64, &[u8]) = (5, &[7; 64]);
    const KEY: (u64, &[u8]) = (6, &[9; 36]);

    #[test]
    fn a_signed_message_is_read_field_by_field() {
        let message = read(&[HASHED, DATA, SEQNO, TOPIC, SIGNATURE, KEY]).unwrap();
        assert_eq!(message.from(), HASHED.1);
        assert_eq!(&message.data()[..], DATA.1);
        assert_eq!(message.seqno(), Some(0x0102));
        assert_eq!(message.topic(), "t1");
        assert_eq!(message.signature(), SIGNATURE.1);
        assert_eq!(message.key(), KEY.1);
        assert_eq!(
            message.signed_bytes().len() + 66 + 38,
            message.bytes().len()
        );
        assert_eq!(
            message.id().as_bytes(),
            [HASHED.1, SEQNO.1].concat().as_slice()
        );
        assert!(message.is_signed());
        for len in [1, 200, 70_000] {
            let mut body = Vec::new();
            pb::put_bytes(&mut body, 2, &vec![7; len]);
            pb::put_bytes(&mut body, 4, b"t");
            let mut field = Vec::new();
            pb::put_bytes(&mut field, 2, &body);
            let again = parse_again(field.into()).unwrap();
            assert_eq!((again.data_len(), again.bytes().len()), (len, body.len()));
        }
    }

    #[test]
    fn an_unsigned_message_has_topic_and_data_only() {
        let message = read(&[DATA, TOPIC]).unwrap();
        assert!(!message.is_signed());
        assert_eq!(message.id(), MessageId::unsigned("t1", b"hi"));
        assert_ne!(message.id(), MessageId::unsigned("t", b"1hi"));
        assert_eq!(read(&[TOPIC]).unwrap().data_len(), 0);
    }

    #[test]
    fn other_forms_of_the_same_message_are_refused() {
        let canonical = [FROM, DATA, SEQNO, TOPIC, SIGNATURE];
        assert!(read(&canonical).is_ok());
        for (i, j) in [(0, 1), (1, 2), (2, 3), (3, 4), (0, 4)] {
            let mut fields = canonical;
            fields.swap(i, j);
            assert_eq!(read(&fields), Err(Refused::NotCanonical), "{i} {j}");
        }
        for i in 0..canonical.len() {
            let mut fields = canonical.to_vec();
            fields.insert(i, canonical[i]);
            assert_eq!(read(&fields), Err(Refused::NotCanonical), "{i} twice");
        }
        let mut fields = canonical.to_vec();
        fields.push((7, b"x"));
        assert_eq!(read(&fields), Err(Refused::NotCanonical));
        fields.pop();
        fields.push(KEY);
        assert_eq!(read(&fields), Err(Refused::RedundantKey));
        // The length of the topic in two bytes.
        let mut bytes = Vec::new();
        for (number, value) in [FROM, DATA, SEQNO] {
            pb::put_bytes(&mut bytes, number, value);
        }
        bytes.extend_from_slice(&[0x22, 0x82, 0x00, b't', b'1']);
        pb::put_bytes(&mut bytes, 5, SIGNATURE.1);
        assert_eq!(parse(bytes.into(), 0), Err(Refused::NotCanonical));
    }

    #[test]
    fn what_is_half_signed_is_refused() {
        for fields in [
            &[FROM, DATA, TOPIC][..],
            &[DATA, SEQNO, TOPIC],
            &[DATA, TOPIC, SIGNATURE],
            &[DATA, TOPIC, KEY],
            &[FROM, DATA, SEQNO, TOPIC],
            &[FROM, DATA, TOPIC, SIGNATURE],
            &[DATA, SEQNO, TOPIC, SIGNATURE],
            &[FROM, DATA, (3, &[1, 2, 3]), TOPIC, SIGNATURE],
            &[(1, &[]), DATA, SEQNO, TOPIC, SIGNATURE],
        ] {
            assert_eq!(read(fields), Err(Refused::Incomplete), "{fields:?}");
        }
        for topic in [&[][..], &[b'x'; MAX_TOPIC_BYTES + 1], &[0xff]] {
            assert_eq!(read(&[DATA, (4, topic)]), Err(Refused::Topic));
        }
        assert_eq!(read(&[DATA]), Err(Refused::Topic));
        assert_eq!(
            read(&[FROM, DATA, SEQNO, TOPIC, (5, &[1; 1025])]),
            Err(Refused::TooLong)
        );
        assert_eq!(read(&[(1, &[1; 129])]), Err(Refused::TooLong));
        assert_eq!(
            parse(Bytes::from_static(&[0x0a]), 0),
            Err(Refused::Malformed)
        );
        assert_eq!(parse(Bytes::new(), 1), Err(Refused::Malformed));
    }
}
