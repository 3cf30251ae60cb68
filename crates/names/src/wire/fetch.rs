//! `/libp2p/fetch/0.0.1`: one request, one answer, each behind its length as a varint (wire clause 06). Kubo asks a neighbour that joins the
//! topic of a name.

use crate::{
    error::RecordError,
    name::Name,
    record::proto::{length_delimited, put_bytes, put_number, skip, varint},
};

/// The protocol's id.
pub const PROTOCOL: &str = "/libp2p/fetch/0.0.1";
/// Most bytes of a request or answer that anybody needs to read, without its length: a record and what is around it. Kubo's limit is 1 MiB.
pub const MAX_BYTES: usize = crate::MAX_RECORD_BYTES + 64;

/// What a neighbour answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Its record.
    Record(Vec<u8>),
    /// It has none.
    NotFound,
    /// It could not look.
    Error,
}

/// The body of a request. The key is binary although the schema calls it a string.
pub fn encode_request(name: &Name) -> Vec<u8> {
    let mut out = Vec::new();
    put_bytes(&mut out, 1, Some(&name.routing_key()));
    out
}

/// The name that is asked for.
///
/// # Errors
/// [`RecordError::Protobuf`]: no request, or not for a name.
pub fn decode_request(body: &[u8]) -> Result<Name, RecordError> {
    let (_, key) = fields(body, 1)?;
    Name::from_routing_key(key.unwrap_or_default())
        .map_err(|_| RecordError::Protobuf("the key that is asked for is no name"))
}

/// The body of an answer. `OK` is the default and is not written.
pub fn encode_answer(answer: &Answer) -> Vec<u8> {
    let mut out = Vec::new();
    match answer {
        Answer::Record(bytes) => put_bytes(&mut out, 2, Some(bytes)),
        Answer::NotFound => put_number(&mut out, 1, Some(1)),
        Answer::Error => put_number(&mut out, 1, Some(2)),
    }
    out
}

/// What an answer says.
///
/// # Errors
/// [`RecordError::Protobuf`]: none.
pub fn decode_answer(body: &[u8]) -> Result<Answer, RecordError> {
    let (status, data) = fields(body, 2)?;
    Ok(match status {
        0 => Answer::Record(data.unwrap_or_default().to_vec()),
        1 => Answer::NotFound,
        _ => Answer::Error,
    })
}

/// The number in field 1 and the bytes in field `wanted`.
fn fields(mut rest: &[u8], wanted: u64) -> Result<(u64, Option<&[u8]>), RecordError> {
    let (mut number, mut bytes) = (0, None);
    while !rest.is_empty() {
        let tag = varint(&mut rest)?;
        match tag & 7 {
            0 => {
                let value = varint(&mut rest)?;
                if tag >> 3 == 1 {
                    number = value;
                }
            }
            1 => skip(&mut rest, 8)?,
            2 => {
                let value = length_delimited(&mut rest)?;
                if tag >> 3 == wanted {
                    bytes = Some(value);
                }
            }
            5 => skip(&mut rest, 4)?,
            _ => return Err(RecordError::Protobuf("a wire type that nobody sends")),
        }
    }
    Ok((number, bytes))
}
