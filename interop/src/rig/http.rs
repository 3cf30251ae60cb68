//! The little of HTTP/1.1 that Kubo's RPC needs: one POST, one answer, chunked or not, read as a stream.

use crate::failure::{Context, Failure, Outcome, fail};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// The body of an answer with status 200.
pub(crate) struct Body<R> {
    from: BufReader<R>,
    framing: Framing,
}

enum Framing {
    /// The sender closes at the end.
    Close,
    /// This many bytes are left.
    Length(u64),
    /// This many bytes are left of the present chunk; `None` once the last one was read.
    Chunked(Option<u64>),
}

/// Posts without a body. `target` is the path with its query; `limit` bounds every single read, not the sum.
pub(crate) fn post(to: SocketAddr, target: &str, limit: Duration) -> Outcome<Body<TcpStream>> {
    send(to, target, "", &[], limit)
}

/// Posts a file, as Kubo takes it.
pub(crate) fn post_file(
    to: SocketAddr,
    target: &str,
    content: &[u8],
    limit: Duration,
) -> Outcome<Body<TcpStream>> {
    const BOUNDARY: &str = "gemba-interop-d1f0c3a5";
    let mut body = format!(
        "--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"file\"; filename=\"data\"\r\nContent-Type: application/octet-stream\r\n\r\n"
    )
    .into_bytes();
    body.extend_from_slice(content);
    body.extend_from_slice(format!("\r\n--{BOUNDARY}--\r\n").as_bytes());
    let kind = format!("Content-Type: multipart/form-data; boundary={BOUNDARY}\r\n");
    send(to, target, &kind, &body, limit)
}

fn send(
    to: SocketAddr,
    target: &str,
    header: &str,
    body: &[u8],
    limit: Duration,
) -> Outcome<Body<TcpStream>> {
    let mut stream = TcpStream::connect_timeout(&to, limit)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(limit))?;
    stream.set_write_timeout(Some(limit))?;
    let length = body.len();
    let mut request = format!(
        "POST {target} HTTP/1.1\r\nHost: {to}\r\n{header}Content-Length: {length}\r\nConnection: close\r\n\r\n"
    )
    .into_bytes();
    request.extend_from_slice(body);
    stream.write_all(&request)?;
    answer(stream)
}

/// Reads status and headers. An answer other than 200 becomes a failure with Kubo's `Message`, or with the body itself.
fn answer<R: Read>(stream: R) -> Outcome<Body<R>> {
    let mut from = BufReader::with_capacity(256 * 1024, stream);
    let mut line = String::new();
    from.read_line(&mut line)?;
    let status = line
        .split(' ')
        .nth(1)
        .and_then(|s| s.parse::<u16>().ok())
        .context(|| format!("no HTTP status: {line:?}"))?;
    let mut framing = Framing::Close;
    loop {
        line.clear();
        if from.read_line(&mut line)? == 0 {
            fail!("the answer ends within its headers");
        }
        let header = line.trim_end();
        if header.is_empty() {
            break;
        }
        let (name, value) = header.split_once(':').unwrap_or((header, ""));
        match name.to_ascii_lowercase().as_str() {
            "content-length" => framing = Framing::Length(value.trim().parse()?),
            "transfer-encoding" if value.contains("chunked") => framing = Framing::Chunked(Some(0)),
            _ => {}
        }
    }
    let mut body = Body { from, framing };
    if status != 200 {
        let mut text = String::new();
        body.read_to_string(&mut text)?;
        let message = serde_json::from_str::<serde_json::Value>(&text)
            .ok()
            .and_then(|v| v["Message"].as_str().map(String::from));
        return Err(Failure::new(format!(
            "HTTP {status}: {}",
            message.unwrap_or(text).trim()
        )));
    }
    Ok(body)
}

impl<R: Read> Read for Body<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if let Framing::Chunked(Some(0)) = self.framing {
            self.framing = Framing::Chunked(self.next_chunk()?);
        }
        let left = match &mut self.framing {
            Framing::Close => return self.from.read(out),
            Framing::Chunked(None) => return Ok(0),
            Framing::Length(left) | Framing::Chunked(Some(left)) => left,
        };
        let room = usize::try_from(*left).unwrap_or(usize::MAX).min(out.len());
        let n = self.from.read(&mut out[..room])?;
        if n == 0 && room > 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the answer is cut short",
            ));
        }
        *left -= n as u64;
        // The line end behind a chunk's data belongs to the chunk.
        if *left == 0 && matches!(self.framing, Framing::Chunked(_)) {
            self.from.read_line(&mut String::new())?;
        }
        Ok(n)
    }
}

impl<R: Read> Body<R> {
    /// The size of the next chunk; `None` behind the last one, with its trailers read.
    fn next_chunk(&mut self) -> io::Result<Option<u64>> {
        let bad = || io::Error::new(io::ErrorKind::InvalidData, "not a chunk size");
        let mut line = String::new();
        self.from.read_line(&mut line)?;
        let size = u64::from_str_radix(line.trim_end().split(';').next().unwrap_or_default(), 16)
            .map_err(|_| bad())?;
        if size > 0 {
            return Ok(Some(size));
        }
        let mut trailer = String::new();
        while self.from.read_line(&mut trailer)? > 2 {
            // Kubo reports an error that came up after the status line in this trailer.
            if let Some(error) = trailer.strip_prefix("X-Stream-Error:") {
                return Err(io::Error::other(error.trim().to_owned()));
            }
            trailer.clear();
        }
        Ok(None)
    }
}

/// Percent-encodes everything but the unreserved characters (RFC 3986 §2.3).
pub(crate) fn encode(value: &str) -> String {
    value
        .bytes()
        .map(|b| match b {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                char::from(b).to_string()
            }
            _ => format!("%{b:02X}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn read(text: &str) -> io::Result<String> {
        let mut body = answer(text.as_bytes()).map_err(|e| io::Error::other(e.to_string()))?;
        let mut out = String::new();
        body.read_to_string(&mut out)?;
        Ok(out)
    }

    #[test]
    fn bodies_are_read_in_all_three_framings() {
        assert_eq!(
            read("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabcJUNK").unwrap(),
            "abc"
        );
        assert_eq!(read("HTTP/1.1 200 OK\r\n\r\nabc").unwrap(), "abc");
        let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nA\r\n0123456789\r\n0\r\n\r\n";
        assert_eq!(read(chunked).unwrap(), "abc0123456789");
    }

    #[test]
    fn a_cut_or_failed_answer_is_an_error() {
        assert!(read("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc").is_err());
        assert!(read("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabc").is_err());
        let late = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nX-Stream-Error: gone\r\n\r\n";
        assert_eq!(read(late).unwrap_err().to_string(), "gone");
        let refused = "HTTP/1.1 500 x\r\nContent-Length: 20\r\n\r\n{\"Message\":\"no key\"}";
        assert_eq!(read(refused).unwrap_err().to_string(), "HTTP 500: no key");
    }

    #[test]
    fn arguments_are_percent_encoded() {
        assert_eq!(encode("/ip4/1.2 é"), "%2Fip4%2F1.2%20%C3%A9");
    }
}
