//! Bodies behind their length as an unsigned varint, read and written within limits.

use std::io;

use futures::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// A length of five bytes is beyond every limit.
const MAX_PREFIX: usize = 4;
/// Memory for a body grows with what came, not with what was said to come.
const STEP: usize = 8 << 10;

/// The next body; `None` where the other end has ended the stream between two.
///
/// # Errors
/// The stream's; [`io::ErrorKind::InvalidData`] for a length beyond `limit`, or a stream that ends within a body.
pub(super) async fn read(
    stream: &mut (impl AsyncRead + Unpin),
    limit: usize,
) -> io::Result<Option<Vec<u8>>> {
    let Some(length) = read_length(stream).await? else {
        return Ok(None);
    };
    if length > limit {
        return Err(malformed("a body that is too long"));
    }
    let mut body = Vec::new();
    while body.len() < length {
        let from = body.len();
        body.resize(length.min(from + STEP), 0);
        stream.read_exact(&mut body[from..]).await.map_err(cut)?;
    }
    Ok(Some(body))
}

async fn read_length(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<usize>> {
    let mut length = 0;
    for place in 0..MAX_PREFIX {
        let mut byte = [0];
        if stream.read(&mut byte).await? == 0 {
            return if place == 0 {
                Ok(None)
            } else {
                Err(malformed("a stream that ends within a length"))
            };
        }
        length |= usize::from(byte[0] & 0x7f) << (7 * place);
        if byte[0] & 0x80 == 0 {
            return Ok(Some(length));
        }
    }
    Err(malformed("a length beyond every limit"))
}

/// Writes a body behind its length.
///
/// # Errors
/// The stream's.
pub(super) async fn write(stream: &mut (impl AsyncWrite + Unpin), body: &[u8]) -> io::Result<()> {
    let mut frame = Vec::with_capacity(body.len() + MAX_PREFIX);
    let mut rest = body.len();
    while rest >= 0x80 {
        frame.push((rest & 0x7f) as u8 | 0x80);
        rest >>= 7;
    }
    frame.push(rest as u8);
    frame.extend_from_slice(body);
    stream.write_all(&frame).await?;
    stream.flush().await
}

fn cut(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => malformed("a stream that ends within a body"),
        _ => error,
    }
}

pub(super) fn malformed(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use futures::FutureExt as _;
    use futures::io::Cursor;

    fn read_all(bytes: &[u8], limit: usize) -> io::Result<Option<Vec<u8>>> {
        read(&mut Cursor::new(bytes), limit).now_or_never().unwrap()
    }

    #[test]
    fn bodies_come_as_they_went_and_none_beyond_the_limit() {
        for length in [0, 1, 127, 128, 20_000, 65_536] {
            let body = vec![7; length];
            let mut wire = Cursor::new(Vec::new());
            write(&mut wire, &body).now_or_never().unwrap().unwrap();
            let wire = wire.into_inner();
            assert_eq!(read_all(&wire, 65_536).unwrap(), Some(body));
            assert!(length == 0 || read_all(&wire, length - 1).is_err());
            assert!(length == 0 || read_all(&wire[..wire.len() - 1], 65_536).is_err());
        }
        assert!(read_all(&[], 10).unwrap().is_none());
        assert!(read_all(&[0x80], 10).is_err());
        assert!(read_all(&[0xff; 9], usize::MAX).is_err());
    }
}
