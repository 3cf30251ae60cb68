//! What is asked of a Kubo by its RPC (`/api/v0`): HTTP/1.1 on one connection, answers as lines of JSON.

use std::time::Duration;

use http_body_util::{BodyExt as _, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::SendRequest;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::net::TcpStream;

use crate::error::{Code, Fail};

/// A Kubo answers on this machine at once, or is not there.
const CONNECT: Duration = Duration::from_secs(5);
/// Between two pieces of its answer, unless whoever asks has another patience.
const SILENCE: Duration = Duration::from_secs(60);
/// Longest line of its answer, in bytes.
const LINE: usize = 64 * 1024;
/// What it says of an error.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Refusal {
    #[serde(default)]
    message: String,
}

/// Why it did not do what was asked.
#[derive(Debug)]
pub enum RpcError {
    /// It says no, in its own words.
    Refused(String),
    /// The same, in the middle of its answer.
    BrokeOff(String),
    /// It is not there, or its answer is none.
    Failed(Fail),
}

impl From<Fail> for RpcError {
    fn from(fail: Fail) -> Self {
        Self::Failed(fail)
    }
}

impl RpcError {
    /// What a person is told.
    #[must_use]
    pub fn into_fail(self) -> Fail {
        match self {
            Self::Refused(message) => Fail::new(Code::Failure, format!("it refuses: {message}")),
            Self::BrokeOff(cause) => {
                Fail::new(Code::Failure, format!("it broke off: {cause}")).hint(AGAIN)
            }
            Self::Failed(fail) => fail,
        }
    }
}

/// What is done with each line of an answer.
pub type Each<'e> = dyn FnMut(&[u8]) -> Result<(), Fail> + 'e;

/// A Kubo's RPC.
pub struct Rpc {
    host: String,
    patience: Duration,
    kept: Option<SendRequest<Empty<Bytes>>>,
}

impl Rpc {
    /// The RPC at `url` (`http://127.0.0.1:5001`). Nothing is asked yet.
    ///
    /// # Errors
    /// [`Code::Usage`] for what is no such address.
    pub fn at(url: &str) -> Result<Self, Fail> {
        let host = host(url)?;
        Ok(Self {
            host,
            patience: SILENCE,
            kept: None,
        })
    }

    /// It may be silent for so long. A minute by default.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Host and port.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Asks, and hands on each line of the answer, which may take its time as long as it is not silent beyond the patience with it.
    ///
    /// # Errors
    /// [`RpcError::Refused`] for its own; [`RpcError::Failed`] if nobody answers, or the answer is cut short or none of a Kubo; the failures of `each`.
    pub async fn lines(&mut self, path: &str, each: &mut Each<'_>) -> Result<(), RpcError> {
        let mut answer = self.ask(path).await?;
        let is_good = answer.status().is_success();
        if let Some(fail) = never_its_answer(answer.status()) {
            return Err(fail.into());
        }
        let mut buffer = Vec::new();
        while let Some(data) = piece(&mut answer, self.patience).await? {
            buffer.extend_from_slice(&data);
            while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = buffer.drain(..=end).collect();
                one(&line, answer.status(), each)?;
            }
            if buffer.len() > LINE {
                return Err(no_answer("a line of it is longer than 64 KiB").into());
            }
        }
        one(&buffer, answer.status(), each)?;
        if is_good {
            return Ok(());
        }
        let status = answer.status();
        Err(Fail::new(Code::Failure, format!("it answered {status}")).into())
    }

    /// Over the connection of before, if that is still there.
    async fn ask(&mut self, path: &str) -> Result<Response<Incoming>, Fail> {
        if let Some(mut kept) = self.kept.take() {
            let request = self.request(path)?;
            let asked = tokio::time::timeout(self.patience, async {
                kept.ready().await?;
                kept.send_request(request).await
            });
            match asked.await {
                Ok(Ok(answer)) => {
                    self.kept = Some(kept);
                    return Ok(answer);
                }
                // It has ended the connection meanwhile.
                Ok(Err(_)) => {}
                Err(_) => return Err(silent(self.patience)),
            }
        }
        let mut sender = self.connect().await?;
        let request = self.request(path)?;
        let sent = tokio::time::timeout(self.patience, sender.send_request(request)).await;
        let answer = match sent {
            Ok(Ok(answer)) => answer,
            Ok(Err(e)) => return Err(away(&e)),
            Err(_) => return Err(silent(self.patience)),
        };
        self.kept = Some(sender);
        Ok(answer)
    }

    async fn connect(&self) -> Result<SendRequest<Empty<Bytes>>, Fail> {
        let limit = CONNECT.min(self.patience);
        let socket = tokio::time::timeout(limit, TcpStream::connect(&self.host)).await;
        let socket = match socket {
            Ok(Ok(socket)) => socket,
            Ok(Err(e)) => return Err(away(&e)),
            Err(e) => return Err(away(&e)),
        };
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(socket))
            .await
            .map_err(|e| away(&e))?;
        tokio::spawn(async move {
            // What breaks it off shows in the answer.
            let _ended = connection.await;
        });
        Ok(sender)
    }

    fn request(&self, path: &str) -> Result<Request<Empty<Bytes>>, Fail> {
        Request::builder()
            .method(Method::POST)
            .uri(format!("/api/v0/{path}"))
            .header(hyper::header::HOST, &self.host)
            .body(Empty::<Bytes>::new())
            .map_err(|e| Fail::internal(e.to_string()))
    }
}

/// A runtime for a thread that asks and waits.
///
/// # Errors
/// The operating system refuses.
pub fn runtime() -> Result<tokio::runtime::Runtime, Fail> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Fail::resources("threads", &e))
}

/// A text as a value in a query.
#[must_use]
pub fn quoted(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                out.push(char::from(byte));
            }
            other => out.push_str(&format!("%{other:02X}")),
        }
    }
    out
}

fn away(e: &dyn std::fmt::Display) -> Fail {
    Fail::new(Code::Failure, format!("nobody answers there: {e}"))
        .hint("is the Kubo daemon up? `ipfs config Addresses.API` tells its address")
}

fn silent(patience: Duration) -> Fail {
    let cause = format!("it sent nothing for {} s", patience.as_secs_f64());
    Fail::new(Code::Timeout, cause)
        .hint("is it stopped, or very busy? A longer --timeout waits longer")
}

/// What no Kubo answers to what is asked here: it tells its own refusals with 400 and 500.
fn never_its_answer(status: StatusCode) -> Option<Fail> {
    let cause = match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            "it wants an authorization (API.Authorizations), which gemba has not"
        }
        StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED => "that is no Kubo's RPC",
        _ => return None,
    };
    let code = if status == StatusCode::NOT_FOUND || status == StatusCode::METHOD_NOT_ALLOWED {
        Code::Failure
    } else {
        Code::Permission
    };
    Some(Fail::new(code, format!("{cause}: it answered {status}")).hint(
        "`ipfs config Addresses.API` tells the address of the RPC; where it is guarded, ask on the Kubo's own machine",
    ))
}

fn no_answer(cause: impl std::fmt::Display) -> Fail {
    Fail::new(
        Code::Failure,
        format!("its answer is none of a Kubo: {cause}"),
    )
}

/// What to do where an answer broke off.
const AGAIN: &str =
    "what it told before was taken; run the same command again, which takes nothing away";

/// The next piece of the body; none: it is over.
async fn piece(
    answer: &mut Response<Incoming>,
    patience: Duration,
) -> Result<Option<Bytes>, RpcError> {
    loop {
        let next = tokio::time::timeout(patience, answer.body_mut().frame()).await;
        let next = next.map_err(|_| silent(patience))?;
        let Some(frame) = next else { return Ok(None) };
        let frame = frame.map_err(|e| {
            Fail::new(Code::Failure, format!("its answer was cut short: {e}")).hint(AGAIN)
        })?;
        match frame.into_data() {
            Ok(data) => return Ok(Some(data)),
            Err(frame) => trailers(&frame)?,
        }
    }
}

/// Kubo tells an error in the middle behind the body.
fn trailers(frame: &hyper::body::Frame<Bytes>) -> Result<(), RpcError> {
    let told = frame
        .trailers_ref()
        .and_then(|all| all.get("x-stream-error"));
    match told.map(|told| String::from_utf8_lossy(told.as_bytes()).into_owned()) {
        Some(cause) if !cause.is_empty() => Err(RpcError::BrokeOff(cause)),
        _ => Ok(()),
    }
}

fn one(line: &[u8], status: StatusCode, each: &mut Each<'_>) -> Result<(), RpcError> {
    let line = line.trim_ascii();
    if line.is_empty() {
        return Ok(());
    }
    let refusal = serde_json::from_slice::<Refusal>(line);
    match refusal {
        Ok(Refusal { message }) if !message.is_empty() => Err(RpcError::Refused(message)),
        _ if !status.is_success() => Err(RpcError::Refused(
            String::from_utf8_lossy(&line[..line.len().min(200)]).into_owned(),
        )),
        Err(e) => Err(no_answer(e).into()),
        Ok(_) => each(line).map_err(RpcError::Failed),
    }
}

/// Host and port.
fn host(url: &str) -> Result<String, Fail> {
    let wrong = || {
        Fail::new(Code::Usage, format!("{url:?} is no address of a Kubo's RPC"))
            .hint("such as http://127.0.0.1:5001, which `ipfs config Addresses.API` tells as /ip4/127.0.0.1/tcp/5001")
    };
    let rest = url.strip_prefix("http://").ok_or_else(wrong)?;
    let host = rest.trim_end_matches('/').trim_end_matches("/api/v0");
    let is_host = !host.is_empty() && !host.contains(['/', '?', '#', '@', ' ']);
    let has_port = host
        .rsplit_once(':')
        .is_some_and(|(name, port)| !name.is_empty() && port.parse::<u16>().is_ok());
    if is_host && has_port {
        Ok(host.to_owned())
    } else {
        Err(wrong())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_told_from_what_is_none() {
        for (url, expected) in [
            ("http://127.0.0.1:5001", "127.0.0.1:5001"),
            ("http://kubo.plant:5001/", "kubo.plant:5001"),
            ("http://[::1]:5001/api/v0", "[::1]:5001"),
        ] {
            assert_eq!(host(url).ok().as_deref(), Some(expected));
        }
        for url in [
            "",
            "127.0.0.1:5001",
            "https://a:1",
            "http://",
            "http://a",
            "http://a:x",
            "http://a:1/b",
            "http://u@a:1",
        ] {
            assert_eq!(
                host(url).map_err(|fail| fail.code),
                Err(Code::Usage),
                "{url}"
            );
        }
        assert_eq!(quoted("ä b&c=1"), "%C3%A4%20b%26c%3D1");
    }
}
