//! The length in front of an RPC, and what can be wrong with one.

use super::{MAX_FRAME_BYTES, MAX_MESSAGES, pb};

/// Why bytes are no RPC. The stream that they came on is reset; nothing is answered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// Longer than every peer takes.
    #[error("an RPC of {0} bytes: at most {MAX_FRAME_BYTES} are taken")]
    TooLarge(u64),
    /// A number with more than 64 bits.
    #[error("a number has more than 64 bits")]
    BadNumber,
    /// A field number or wire type that does not exist.
    #[error("a field number or wire type that does not exist")]
    BadField,
    /// A field is longer than what holds it.
    #[error("a field is longer than what holds it")]
    Truncated,
    /// A field has another type than the protocol says.
    #[error("field {0} has another type than the protocol says")]
    BadType(u64),
    /// More messages than [`MAX_MESSAGES`].
    #[error("more than {MAX_MESSAGES} messages in one RPC")]
    TooManyMessages,
}

/// The length prefix at the beginning of `bytes`: the length of the RPC, and where it begins. `None` if more bytes are needed.
///
/// # Errors
/// [`WireError::TooLarge`] as soon as the length is known, before anything is read; [`WireError::BadNumber`].
pub fn read_length(bytes: &[u8]) -> Result<Option<(usize, usize)>, WireError> {
    match pb::varint(bytes)? {
        None => Ok(None),
        Some((len, at)) => match usize::try_from(len) {
            Ok(len) if len <= MAX_FRAME_BYTES => Ok(Some((len, at))),
            _ => Err(WireError::TooLarge(len)),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 1,048,576 bytes exactly is what Kubo takes (measured there: more resets the stream).
    #[test]
    fn a_frame_of_one_mebibyte_is_taken_and_one_byte_more_is_refused() {
        assert_eq!(read_length(&[0x80, 0x80, 0x40]), Ok(Some((1_048_576, 3))));
        assert_eq!(
            read_length(&[0x81, 0x80, 0x40]),
            Err(WireError::TooLarge(1_048_577))
        );
        assert_eq!(read_length(&[0x80, 0x80]), Ok(None));
        assert_eq!(read_length(&[]), Ok(None));
        assert_eq!(read_length(&[0]), Ok(Some((0, 1))));
        assert!(read_length(&[0xff; 10]).is_err());
    }
}
