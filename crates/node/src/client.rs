//! The CLI's side of the API: finds the daemon through the `api` file and speaks HTTP/1.1 with it over loopback.
//!
//! One connection a request: a command makes one or two, and loopback connects in microseconds.

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::body::{Frame, Incoming};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use crate::api::types::Waits;
use crate::error::{Code, Fail};
use crate::handover::Giver;

/// Longest line of a NDJSON answer, in bytes; a longer one means that something else listens there. A message of 1 MiB fits in base64.
const MAX_LINE: usize = 2 * 1024 * 1024;
/// Pieces of an upload that may wait for the socket, each at most [`UPLOAD_PIECE`] bytes.
const UPLOAD_QUEUE: usize = 8;
/// Size of the pieces of an upload, in bytes.
const UPLOAD_PIECE: usize = 256 * 1024;
/// A daemon on loopback answers at once or is not there.
const CONNECT_DEADLINE: Duration = Duration::from_secs(2);
/// A daemon whose process lives may be busy, on a device that swaps; it is given so long to say that it is there.
const PROBE_DEADLINE: Duration = Duration::from_secs(5);
/// Whoever ran out of time does not wait long for the reason.
const REASON_DEADLINE: Duration = Duration::from_millis(500);
/// A wait that is no longer than this is not worth a word.
const PATIENT: Duration = Duration::from_secs(3);
/// How often what is waited for is asked after.
const ASK_AGAIN: Duration = Duration::from_secs(2);

/// How long the caller of a request waits for the network, in milliseconds. Without it the daemon's own rules end a read.
pub const PATIENCE: &str = "x-gemba-patience-ms";
/// Names a request whose answer may break off in the middle, so that the cause can be asked for.
pub const REQUEST_ID: &str = "x-request-id";

/// The failure inside an I/O error of [`Client::reader`], if that is what it is.
#[must_use]
pub fn fail_of(error: &io::Error) -> Option<Fail> {
    error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<Fail>())
        .cloned()
}

fn random_id() -> Result<String, Fail> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes)
        .map_err(|e| Fail::new(Code::Failure, format!("no randomness: {e}")))?;
    Ok(data_encoding::HEXLOWER.encode(&bytes))
}

/// What the `api` file in the repository holds. Mode 0600: whoever reads it may command the daemon.
#[derive(Clone, Serialize, Deserialize)]
pub struct ApiFile {
    /// Where the daemon listens.
    pub address: SocketAddr,
    /// 256 random bits in hex, sent as bearer token with every request.
    pub token: String,
    /// The daemon's process, for messages only.
    pub pid: u32,
    /// Where open files are handed to the daemon, if they can be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub files: Option<PathBuf>,
}

impl std::fmt::Debug for ApiFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ApiFile")
            .field("address", &self.address)
            .field("pid", &self.pid)
            .finish_non_exhaustive()
    }
}

impl ApiFile {
    /// Reads the file; `None` if there is none, or if it was cut short by a crash (a stale one, then).
    ///
    /// # Errors
    /// The file is there but may not be read.
    pub fn read(path: &Path) -> Result<Option<Self>, Fail> {
        match std::fs::read(path) {
            Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Fail::io(path, &e)),
        }
    }
}

/// A daemon that answered.
#[derive(Clone, Debug)]
pub struct Client {
    api: ApiFile,
    /// How long the caller waits for the network.
    patience: Option<Duration>,
    /// The request that was sent last, by which the daemon can be asked what it waits for.
    last: Arc<Mutex<String>>,
}

type Body = BoxBody<Bytes, io::Error>;

impl Client {
    /// A client of no daemon: every request says so. Stands where one will be.
    pub(crate) fn nowhere() -> Self {
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        Self {
            api: ApiFile {
                address,
                token: String::new(),
                pid: 0,
                files: None,
            },
            patience: None,
            last: Arc::default(),
        }
    }

    /// Looks for a daemon on the repository. `None`: no `api` file, or a stale one (nobody answers there, or somebody who
    /// does not take the token), so that commands go on without a daemon. With `patience` its caller waits no longer.
    ///
    /// # Errors
    /// The `api` file may not be read. [`Code::Timeout`] if the daemon's process is there and says nothing: without it nothing can be
    /// done on this repository either, for it holds the lock.
    pub async fn connect(
        layout: &crate::repo::Layout,
        patience: Option<Duration>,
    ) -> Result<Option<Self>, Fail> {
        let Some(api) = ApiFile::read(&layout.api())? else {
            return Ok(None);
        };
        let client = Self {
            api,
            patience,
            last: Arc::default(),
        };
        let limit = patience.unwrap_or(PROBE_DEADLINE).min(PROBE_DEADLINE);
        let probe = client.send(Method::GET, "/healthz", empty());
        match tokio::time::timeout(limit, probe).await {
            Ok(Ok(answer)) if answer.status() == StatusCode::OK => Ok(Some(client)),
            Err(_) if is_alive(client.api.pid) => Err(client.silent(limit)),
            _ => Ok(None),
        }
    }

    /// The failure for a daemon that is there and does not answer.
    fn silent(&self, waited: Duration) -> Fail {
        Fail::new(
            Code::Timeout,
            format!(
                "the daemon (process {}) does not answer: not done after {} s",
                self.api.pid,
                waited.as_secs_f64()
            ),
        )
        .hint("it may be stopped (`kill -CONT PID` wakes it), or the device is overloaded; look at its log")
    }

    /// The failure for a command that was not done in time: what it waits for, if the daemon can tell.
    pub async fn too_late(&self, limit: Duration) -> Fail {
        let asked = tokio::time::timeout(REASON_DEADLINE, self.waits()).await;
        let late = format!("not done after {} s", limit.as_secs_f64());
        match asked {
            Ok(Ok(Some(waits))) => {
                Fail::new(waits.code, format!("{late}: {}", waits.cause)).hint(waits.hint)
            }
            Ok(Ok(None)) => Fail::new(
                Code::Timeout,
                format!("{late}: the daemon is still at work on this device and waits for no peer"),
            )
            .hint("a longer --timeout waits for it"),
            Ok(Err(_)) | Err(_) => self.silent(limit),
        }
    }

    /// Runs work, and tells every few seconds what it waits for in the network, or that it waits no more.
    pub async fn while_telling<T>(
        &self,
        work: impl Future<Output = T>,
        mut tell: impl FnMut(Option<&Waits>),
    ) -> T {
        let telling = async {
            tokio::time::sleep(PATIENT).await;
            loop {
                if let Ok(Ok(waits)) = tokio::time::timeout(REASON_DEADLINE, self.waits()).await {
                    let long = |waits: &&Waits| waits.waited_s >= PATIENT.as_secs_f64();
                    tell(waits.as_ref().filter(long));
                }
                tokio::time::sleep(ASK_AGAIN).await;
            }
        };
        tokio::select! {
            biased;
            outcome = work => outcome,
            () = telling => unreachable!("it tells for ever"),
        }
    }

    /// What the request that was sent last waits for in the network.
    async fn waits(&self) -> Result<Option<Waits>, Fail> {
        let path = {
            let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
            format!("/v1/waiting/{last}")
        };
        match json(self.send_as(Method::GET, &path, empty(), "").await?).await {
            Ok(waits) => Ok(Some(waits)),
            Err(fail) if fail.code == Code::NotFound => Ok(None),
            Err(fail) => Err(fail),
        }
    }

    /// Like [`Client::connect`], for commands that make no sense without a daemon.
    ///
    /// # Errors
    /// [`Code::NoDaemon`], and as [`Client::connect`].
    pub async fn require(
        layout: &crate::repo::Layout,
        patience: Option<Duration>,
    ) -> Result<Self, Fail> {
        Self::connect(layout, patience).await?.ok_or_else(|| {
            Fail::new(
                Code::NoDaemon,
                format!("no daemon runs on {}", layout.root().display()),
            )
            .hint("start one with `gemba daemon`, or name the repository with --repo")
        })
    }

    /// Where the daemon's API listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.api.address
    }

    /// GET, answered with one JSON value.
    ///
    /// # Errors
    /// The daemon's failure, or that it went away.
    pub async fn get_json<T: DeserializeOwned>(&self, path: &str) -> Result<T, Fail> {
        json(self.send(Method::GET, path, empty()).await?).await
    }

    /// POST of one JSON value, answered with one.
    ///
    /// # Errors
    /// As [`Client::get_json`].
    pub async fn post_json<B: Serialize, T: DeserializeOwned>(
        &self,
        path: &str,
        body: &B,
    ) -> Result<T, Fail> {
        json(self.send(Method::POST, path, json_body(body)?).await?).await
    }

    /// POST of raw bytes, answered with one JSON value.
    ///
    /// # Errors
    /// As [`Client::get_json`].
    pub async fn post_bytes<T: DeserializeOwned>(
        &self,
        path: &str,
        body: Bytes,
    ) -> Result<T, Fail> {
        let body = Full::new(body).map_err(|never| match never {}).boxed();
        json(self.send(Method::POST, path, body).await?).await
    }

    /// DELETE, answered with one JSON value.
    ///
    /// # Errors
    /// As [`Client::get_json`].
    pub async fn delete_json<T: DeserializeOwned>(&self, path: &str) -> Result<T, Fail> {
        json(self.send(Method::DELETE, path, empty()).await?).await
    }

    /// PUT of raw bytes, answered with one JSON value.
    ///
    /// # Errors
    /// As [`Client::get_json`].
    pub async fn put_bytes<T: DeserializeOwned>(&self, path: &str, body: Bytes) -> Result<T, Fail> {
        json(
            self.send(
                Method::PUT,
                path,
                Full::new(body).map_err(|never| match never {}).boxed(),
            )
            .await?,
        )
        .await
    }

    /// GET, answered with bytes held in memory; for single blocks.
    ///
    /// # Errors
    /// As [`Client::get_json`], or more than 4 MiB.
    pub async fn get_bytes(&self, path: &str) -> Result<Bytes, Fail> {
        let answer = checked(self.send(Method::GET, path, empty()).await?).await?;
        collect(answer.into_body(), 4 * 1024 * 1024).await
    }

    /// A request whose answer is a line of JSON at a time. A line `{"error":…}` ends the stream with that failure.
    ///
    /// # Errors
    /// As [`Client::get_json`].
    pub async fn lines<B: Serialize, T: DeserializeOwned + Send + 'static>(
        &self,
        method: Method,
        path: &str,
        body: Option<&B>,
    ) -> Result<impl Stream<Item = Result<T, Fail>> + Unpin + use<B, T>, Fail> {
        let body = match body {
            Some(value) => json_body(value)?,
            None => empty(),
        };
        let answer = checked(self.send(method, path, body).await?).await?;
        Ok(ndjson(answer.into_body()))
    }

    /// GET, answered with a byte stream to be read on a blocking thread (`tokio::task::spawn_blocking`).
    ///
    /// # Errors
    /// As [`Client::get_json`]. An answer that breaks off shows as an error of the reader.
    pub async fn reader(&self, path: &str) -> Result<impl Read + Send + 'static + use<>, Fail> {
        let request = self.named()?;
        let answer = checked(self.send_as(Method::GET, path, empty(), &request).await?).await?;
        let client = self.clone();
        let pieces = answer.into_body().into_data_stream().then(move |piece| {
            let (client, request) = (client.clone(), request.clone());
            async move {
                match piece {
                    Ok(bytes) => Ok(bytes),
                    // The daemon breaks the answer off when it fails in the middle, and remembers why.
                    Err(e) => Err(io::Error::other(client.why_broken_off(&request, &e).await)),
                }
            }
        });
        let pieces = Box::pin(pieces);
        let reader = tokio_util::io::StreamReader::new(pieces);
        Ok(tokio_util::io::SyncIoBridge::new(reader))
    }

    /// POST whose body `write` produces on a blocking thread while the answer's lines already arrive.
    /// The body is bounded in memory; a failure of `write` breaks the request off and is what the caller gets.
    ///
    /// # Errors
    /// As [`Client::get_json`].
    pub async fn upload<T, W>(
        &self,
        path: &str,
        write: W,
    ) -> Result<impl Stream<Item = Result<T, Fail>> + Unpin + use<T, W>, Fail>
    where
        T: DeserializeOwned + Send + 'static,
        W: FnOnce(&mut dyn Write) -> Result<(), Fail> + Send + 'static,
    {
        let (sender, receiver) = mpsc::channel::<Result<Frame<Bytes>, io::Error>>(UPLOAD_QUEUE);
        let refused = Arc::new(AtomicBool::new(false));
        let writing_refused = Arc::clone(&refused);
        let writing = tokio::task::spawn_blocking(move || {
            let mut pieces = io::BufWriter::with_capacity(
                UPLOAD_PIECE,
                Pieces {
                    sender: sender.clone(),
                    refused: writing_refused,
                },
            );
            let outcome = write(&mut pieces)
                .and_then(|()| pieces.flush().map_err(|e| Fail::new(Code::Failure, e)));
            if outcome.is_err() {
                // What is left in it would be written when it is dropped, into a request that this breaks off: that would look as
                // if the daemon had taken no more.
                drop(pieces.into_parts());
                let broken = io::Error::new(io::ErrorKind::BrokenPipe, "the upload was given up");
                let _closed = sender.blocking_send(Err(broken));
            }
            outcome
        });
        let body = BodyExt::boxed(StreamBody::new(
            tokio_stream::wrappers::ReceiverStream::new(receiver),
        ));
        let sent = self.send(Method::POST, path, body).await;
        let answer = match sent {
            Ok(answer) => checked(answer).await,
            Err(fail) => Err(fail),
        };
        match answer {
            Ok(answer) => Ok(ndjson_after(answer.into_body(), writing)),
            // The writer's own failure says more than what follows from it; but if the daemon took no more, its answer says why.
            Err(fail) => match tokio::time::timeout(Duration::from_millis(200), writing).await {
                Ok(Ok(Err(own))) if !refused.load(Ordering::Relaxed) => Err(own),
                _ => Err(fail),
            },
        }
    }

    async fn why_broken_off(&self, request: &str, error: &hyper::Error) -> Fail {
        let path = format!("/v1/failures/{request}");
        let asked = async {
            let answer = self.send_as(Method::GET, &path, empty(), "").await;
            match answer {
                Ok(answer) => json::<Failed>(answer).await,
                Err(fail) => Err(fail),
            }
        };
        match tokio::time::timeout(CONNECT_DEADLINE, asked).await {
            Ok(Ok(failed)) => failed.error,
            Ok(Err(fail)) if fail.code == Code::NoDaemon => Fail::new(
                Code::NoDaemon,
                "the daemon ended before its answer was whole",
            )
            .hint("start it again with `gemba daemon`; the same command goes on from there"),
            _ => broken_off(error),
        }
    }

    /// A name for the next request, under which it can be asked after.
    fn named(&self) -> Result<String, Fail> {
        let name = random_id()?;
        self.last
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone_from(&name);
        Ok(name)
    }

    /// A way to hand open files to the daemon, and the name to claim them by; `None` where only bytes can be sent.
    #[must_use]
    pub fn giver(&self) -> Option<(Giver, String)> {
        let name = random_id().ok()?;
        let giver = Giver::connect(self.api.files.as_deref()?, &self.api.token, &name)?;
        Some((giver, name))
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Body,
    ) -> Result<Response<Incoming>, Fail> {
        let name = self.named()?;
        self.send_as(method, path, body, &name).await
    }

    async fn send_as(
        &self,
        method: Method,
        path: &str,
        body: Body,
        request: &str,
    ) -> Result<Response<Incoming>, Fail> {
        let gone = |e: &dyn std::fmt::Display| {
            Fail::new(Code::NoDaemon, format!("the daemon at {} does not answer: {e}", self.api.address))
                .hint("it may have been stopped a moment ago: look at its log, or start it with `gemba daemon`")
        };
        let stream = tokio::time::timeout(CONNECT_DEADLINE, TcpStream::connect(self.api.address))
            .await
            .map_err(|_| {
                gone(&format!(
                    "it took no connection within {} s",
                    CONNECT_DEADLINE.as_secs()
                ))
            })?
            .map_err(|e| gone(&e))?;
        stream.set_nodelay(true).map_err(|e| gone(&e))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|e| gone(&e))?;
        tokio::spawn(connection);
        let mut head = Request::builder();
        if let Some(patience) = self.patience {
            head = head.header(PATIENCE, patience.as_millis().to_string());
        }
        let request = head
            .method(method)
            .uri(path)
            .header("host", self.api.address.to_string())
            .header("authorization", format!("Bearer {}", self.api.token))
            .header("content-type", "application/json")
            .header(REQUEST_ID, request)
            .body(body)
            .map_err(|e| Fail::new(Code::Usage, e))?;
        sender.send_request(request).await.map_err(|e| gone(&e))
    }
}

/// Whether a process of that number is there. Where that cannot be told, it is taken to be.
#[cfg(unix)]
fn is_alive(pid: u32) -> bool {
    let pid = i32::try_from(pid)
        .ok()
        .and_then(rustix::process::Pid::from_raw);
    pid.is_some_and(|pid| {
        // A process of another user may not be signalled, but it is there.
        !matches!(
            rustix::process::test_kill_process(pid),
            Err(rustix::io::Errno::SRCH)
        )
    })
}

#[cfg(not(unix))]
fn is_alive(_: u32) -> bool {
    true
}

/// A `Write` that hands pieces to the request's body; blocks while the queue is full.
struct Pieces {
    sender: mpsc::Sender<Result<Frame<Bytes>, io::Error>>,
    /// Set when the daemon takes no more.
    refused: Arc<AtomicBool>,
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let piece = &bytes[..bytes.len().min(UPLOAD_PIECE)];
        let frame = Frame::data(Bytes::copy_from_slice(piece));
        let closed = |_| {
            self.refused.store(true, Ordering::Relaxed);
            io::Error::new(
                io::ErrorKind::BrokenPipe,
                "the daemon closed the connection",
            )
        };
        self.sender.blocking_send(Ok(frame)).map_err(closed)?;
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn empty() -> Body {
    Full::new(Bytes::new())
        .map_err(|never| match never {})
        .boxed()
}

fn json_body<B: Serialize>(value: &B) -> Result<Body, Fail> {
    let bytes = serde_json::to_vec(value).map_err(|e| Fail::new(Code::Failure, e))?;
    Ok(Full::new(Bytes::from(bytes))
        .map_err(|never| match never {})
        .boxed())
}

/// The shape of every failure on the wire.
#[derive(Deserialize)]
struct Failed {
    error: Fail,
}

/// Turns an answer that is not 2xx into the failure it carries.
async fn checked(answer: Response<Incoming>) -> Result<Response<Incoming>, Fail> {
    if answer.status().is_success() {
        return Ok(answer);
    }
    let status = answer.status();
    let bytes = collect(answer.into_body(), MAX_LINE).await?;
    let said = serde_json::from_slice::<Failed>(&bytes);
    Err(said.map(|f| f.error).unwrap_or_else(|_| {
        let code = if status == StatusCode::UNAUTHORIZED {
            Code::Permission
        } else {
            Code::Failure
        };
        Fail::new(code, format!("the daemon answered {status}"))
    }))
}

async fn json<T: DeserializeOwned>(answer: Response<Incoming>) -> Result<T, Fail> {
    let bytes = collect(checked(answer).await?.into_body(), 64 * MAX_LINE).await?;
    serde_json::from_slice(&bytes).map_err(|e| {
        Fail::new(
            Code::Failure,
            format!("the daemon's answer cannot be read: {e}"),
        )
    })
}

async fn collect(body: Incoming, limit: usize) -> Result<Bytes, Fail> {
    let whole = http_body_util::Limited::new(body, limit).collect().await;
    whole
        .map(http_body_util::Collected::to_bytes)
        .map_err(|e| broken_off(&e))
}

fn broken_off(e: &dyn std::fmt::Display) -> Fail {
    Fail::new(
        Code::NoDaemon,
        format!("the daemon's answer broke off: {e}"),
    )
    .hint("look at the daemon's log")
}

/// Cuts a body into lines and each line into a value.
fn ndjson<T: DeserializeOwned + Send + 'static>(
    body: Incoming,
) -> futures::stream::BoxStream<'static, Result<T, Fail>> {
    let lines = Lines {
        body: Some(body),
        held: Vec::new(),
    };
    futures::stream::unfold(lines, |mut lines| async move {
        let item = lines.next().await?;
        let item = item.and_then(|line| parse_line(&line));
        if item.is_err() {
            lines.body = None;
            lines.held.clear();
        }
        Some((item, lines))
    })
    .boxed()
}

/// As [`ndjson`], and at the end the upload's own failure, if it had one.
fn ndjson_after<T: DeserializeOwned + Send + 'static>(
    body: Incoming,
    writing: tokio::task::JoinHandle<Result<(), Fail>>,
) -> futures::stream::BoxStream<'static, Result<T, Fail>> {
    let last = futures::stream::once(async move {
        match writing.await {
            Ok(Err(fail)) => Some(Err(fail)),
            _ => None,
        }
    })
    .filter_map(std::future::ready);
    ndjson(body).chain(last).boxed()
}

fn parse_line<T: DeserializeOwned>(line: &[u8]) -> Result<T, Fail> {
    if let Ok(failed) = serde_json::from_slice::<Failed>(line) {
        return Err(failed.error);
    }
    serde_json::from_slice(line).map_err(|e| {
        Fail::new(
            Code::Failure,
            format!("the daemon's answer cannot be read: {e}"),
        )
    })
}

struct Lines {
    body: Option<Incoming>,
    held: Vec<u8>,
}

impl Lines {
    async fn next(&mut self) -> Option<Result<Vec<u8>, Fail>> {
        loop {
            if let Some(end) = self.held.iter().position(|b| *b == b'\n') {
                let mut line: Vec<u8> = self.held.drain(..=end).collect();
                line.pop();
                if line.is_empty() {
                    continue;
                }
                return Some(Ok(line));
            }
            if self.held.len() > MAX_LINE {
                self.body = None;
                return Some(Err(Fail::new(
                    Code::Failure,
                    "the daemon sent a line of more than 2 MiB",
                )));
            }
            match self.body.as_mut()?.frame().await {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.held.extend_from_slice(&data);
                    }
                }
                Some(Err(e)) => {
                    self.body = None;
                    return Some(Err(broken_off(&e)));
                }
                None => {
                    self.body = None;
                    let rest = std::mem::take(&mut self.held);
                    return (!rest.is_empty()).then_some(Ok(rest));
                }
            }
        }
    }
}
