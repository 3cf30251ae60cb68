//! The pins of a Kubo, by its RPC: `pin/ls` of recursive and of direct pins, with their names, a line at a time.

use std::time::Duration;

use gemba_pins::Kind;
use http_body_util::{BodyExt as _, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::net::TcpStream;

use crate::error::{Code, Fail};

/// A Kubo answers on this machine at once, or is not there.
const CONNECT: Duration = Duration::from_secs(5);
/// Between two pieces of its answer.
const SILENCE: Duration = Duration::from_secs(60);
/// Longest line of its answer, in bytes.
const LINE: usize = 64 * 1024;

/// What is told of a pin, and what is told of an error.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Line {
    #[serde(default)]
    cid: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    message: String,
}

/// What is done with each pin: root, kind, name.
type Take<'t> = dyn FnMut(&str, Kind, Option<&str>) -> Result<(), Fail> + 't;

/// Hands on each pin of the Kubo whose RPC is at `url` (`http://127.0.0.1:5001`): root, kind, name.
///
/// # Errors
/// [`Code::Usage`] for what is no such address; [`Code::Failure`] if nobody answers, or the answer is none of a Kubo or is cut short.
pub fn read(url: &str, take: &mut Take<'_>) -> Result<(), Fail> {
    let host = host(url)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Fail::resources("threads", &e))?;
    runtime.block_on(async {
        for kind in [Kind::Recursive, Kind::Direct] {
            list(&host, kind, take)
                .await
                .map_err(|fail| fail.during(format!("the pins of Kubo at {host}")))?;
        }
        Ok(())
    })
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

async fn list(host: &str, kind: Kind, take: &mut Take<'_>) -> Result<(), Fail> {
    let mut answer = ask(host, kind).await?;
    let is_good = answer.status().is_success();
    let mut buffer = Vec::new();
    loop {
        let next = tokio::time::timeout(SILENCE, answer.body_mut().frame()).await;
        let next = next.map_err(|_| {
            Fail::new(
                Code::Timeout,
                format!("it sent nothing for {} s", SILENCE.as_secs()),
            )
        })?;
        let Some(frame) = next else { break };
        let frame = frame.map_err(|e| {
            Fail::new(Code::Failure, format!("its answer was cut short: {e}")).hint(AGAIN)
        })?;
        match frame.into_data() {
            Ok(data) => buffer.extend_from_slice(&data),
            Err(frame) => trailers(&frame)?,
        }
        while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = buffer.drain(..=end).collect();
            one(&line, is_good, kind, take)?;
        }
        if buffer.len() > LINE {
            return Err(Fail::new(Code::Failure, "its answer is no list of pins"));
        }
    }
    one(&buffer, is_good, kind, take)?;
    if is_good {
        return Ok(());
    }
    let status = answer.status();
    Err(Fail::new(Code::Failure, format!("it answered {status}")))
}

const AGAIN: &str =
    "what it told before was taken; run the same command again, which takes nothing away";

/// Kubo tells an error in the middle behind the body.
fn trailers(frame: &hyper::body::Frame<Bytes>) -> Result<(), Fail> {
    let told = frame
        .trailers_ref()
        .and_then(|all| all.get("x-stream-error"));
    match told.map(|told| String::from_utf8_lossy(told.as_bytes()).into_owned()) {
        Some(cause) if !cause.is_empty() => {
            Err(Fail::new(Code::Failure, format!("it broke off: {cause}")).hint(AGAIN))
        }
        _ => Ok(()),
    }
}

fn one(line: &[u8], is_good: bool, kind: Kind, take: &mut Take<'_>) -> Result<(), Fail> {
    let line = line.trim_ascii();
    if line.is_empty() {
        return Ok(());
    }
    let told: Line = serde_json::from_slice(line)
        .map_err(|e| Fail::new(Code::Failure, format!("its answer is no list of pins: {e}")))?;
    if !is_good || !told.message.is_empty() {
        return Err(Fail::new(
            Code::Failure,
            format!("it refuses: {}", told.message),
        ));
    }
    if told.cid.is_empty() {
        return Err(Fail::new(Code::Failure, "its answer is no list of pins")
            .hint("Kubo lists them one by one since 0.29"));
    }
    let name = Some(told.name.as_str()).filter(|name| !name.is_empty());
    take(&told.cid, kind, name)
}

async fn ask(host: &str, kind: Kind) -> Result<Response<Incoming>, Fail> {
    let away = |e: &dyn std::fmt::Display| {
        Fail::new(Code::Failure, format!("nobody answers there: {e}"))
            .hint("is the Kubo daemon up? `ipfs config Addresses.API` tells its address")
    };
    let socket = tokio::time::timeout(CONNECT, TcpStream::connect(host)).await;
    let socket = match socket {
        Ok(Ok(socket)) => socket,
        Ok(Err(e)) => return Err(away(&e)),
        Err(e) => return Err(away(&e)),
    };
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(socket))
        .await
        .map_err(|e| away(&e))?;
    tokio::spawn(async move {
        // What breaks it off shows in the answer.
        let _ended = connection.await;
    });
    let path = format!(
        "/api/v0/pin/ls?type={}&names=true&stream=true&quiet=false",
        kind.as_str()
    );
    let request = Request::builder()
        .method(Method::POST)
        .uri(path)
        .header(hyper::header::HOST, host)
        .body(Empty::<Bytes>::new())
        .map_err(|e| Fail::internal(e.to_string()))?;
    let sent = tokio::time::timeout(SILENCE, sender.send_request(request)).await;
    match sent {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(e)) => Err(away(&e)),
        Err(e) => Err(away(&e)),
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
    }
}
