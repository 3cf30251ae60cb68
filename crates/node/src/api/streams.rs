//! Routes about events: streams, what is in them, and those who work through them (specs/log-http.md).

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::body::{Body, HttpBody as _};
use axum::extract::State as Extract;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use gemba_log::{Class, Event, EventId, MAX_PAYLOAD, NewEvent, Part, Seq, StreamName};
use serde::Deserialize;
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::Instant;

use super::State;
use super::answer::{self, Lines, Text, line, typed};
use super::extract::{Json, Path, Query};
use super::types::Done;
use crate::daemon::{Call, Command};
use crate::error::{Code, Fail};
use crate::log::about::{About, parse_class};
use crate::log::consumers::{Consumers, Goal, parse_event};
use crate::log::wire::{
    self, AckRequest, ClaimRequest, Claimed, ConsumerView, EventRequest, LogVerified, StreamView,
};
use crate::log::{Cursor, Events, PAGE, Query as What, parse_author, parse_pattern, parse_stream};
use crate::names::wall_ms;

type Node = Extract<Arc<State>>;
type OfCall = Extension<Arc<Call>>;

/// An event stream says something this often, so that nobody in between takes it for dead.
const ALIVE: Duration = Duration::from_secs(15);
/// Events that one group of an append holds.
const GROUP: usize = 1024;
/// Their bytes.
const GROUP_BYTES: usize = 1 << 20;
/// A body that says it has no more is read before any of it is appended: its lines are one group then, and answered together.
const SHORT: u64 = 64 << 10;
/// What is read of a line before it is refused: base64 and headers take room beside the payload.
const MOST_LINE: usize = 2 * MAX_PAYLOAD;
/// The longest that a claim waits.
const MOST_WAIT: Duration = Duration::from_secs(60);
/// The lease of a worker that waits is renewed so often while it lasts.
const RENEWALS: u32 = 4;

impl State {
    /// Runs work on the log on a thread that may block.
    async fn with_log<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Events) -> Result<T, Fail> + Send + 'static,
    ) -> Result<T, Fail> {
        let thread = self.thread().await?;
        let events = self.events.clone();
        let working = tokio::task::spawn_blocking(move || {
            let _thread = thread;
            work(&events)
        });
        working.await.map_err(Fail::internal)?
    }

    /// A failure that sends to the node that runs a consumer also says where that one is, if it is connected.
    async fn with_address(&self, name: &str, mut fail: Fail) -> Fail {
        let of = name.to_owned();
        let runs_on = self.with_log(move |events| Ok(events.consumers().runs_on(&of)));
        let Ok(Some(peer)) = runs_on.await.map(|peer| peer.map(|peer| peer.to_string())) else {
            return fail;
        };
        if !fail.hint.contains(&peer) {
            return fail;
        }
        let peers = self.handle.ask(Command::Peers).await.unwrap_or_default();
        let connected = peers.into_iter().find(|one| one.id == peer);
        match connected {
            Some(one) => fail
                .hint
                .push_str(&format!("; it is connected, at {}", one.address)),
            None => fail.hint.push_str("; it is not connected now"),
        }
        fail
    }

    /// The right to read on as events come.
    fn follower(&self) -> Result<OwnedSemaphorePermit, Fail> {
        Arc::clone(&self.followers)
            .try_acquire_owned()
            .map_err(|_| {
                let cause = format!("{} readers follow events already", super::FOLLOWERS);
                Fail::new(Code::Conflict, cause)
                    .hint("end some of them; a program that works through events is a consumer (`gemba log consume`)")
            })
    }

    /// The right to wait for events of a consumer.
    fn waiter(&self) -> Result<OwnedSemaphorePermit, Fail> {
        Arc::clone(&self.waiters).try_acquire_owned().map_err(|_| {
            let cause = format!("{} workers wait for events already", super::WAITERS);
            Fail::new(Code::Conflict, cause)
                .hint("end some of them, or claim without wait_ms, now and then")
        })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ListQuery {
    pattern: Option<String>,
}

/// The catalogue.
pub(super) async fn list(
    Extract(state): Node,
    Extension(call): OfCall,
    Query(query): Query<ListQuery>,
) -> Result<Response, Fail> {
    let pattern = parse_pattern(query.pattern.as_deref().unwrap_or("#"))?;
    let views = state.with_log(move |events| Ok(events.catalogue(&pattern, wall_ms())));
    let views: Vec<StreamView> = views.await?;
    Ok(all(&call, views).await)
}

/// What a stream says of itself.
pub(super) async fn about(
    Extract(state): Node,
    Path(stream): Path<String>,
) -> Result<Json<About>, Fail> {
    let stream = parse_stream(&stream)?;
    let found = state.with_log(move |events| events.about(&stream));
    Ok(Json(found.await?.unwrap_or_default()))
}

/// Says it. What is not named stays.
pub(super) async fn describe(
    Extract(state): Node,
    Path(stream): Path<String>,
    Json(newer): Json<About>,
) -> Result<Json<About>, Fail> {
    let stream = parse_stream(&stream)?;
    let now = wall_ms();
    let described = state.with_log(move |events| events.describe(&stream, newer, now));
    Ok(Json(described.await?))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AppendQuery {
    /// The body is one event, whatever is in it.
    #[serde(default)]
    whole: bool,
    /// `fast`: not durable, dropped under load.
    class: Option<String>,
    /// A retry under the same producer and number is not appended again.
    producer: Option<String>,
    /// Number of the first event; the others follow.
    #[serde(default)]
    producer_seq: u64,
}

/// Appends what comes: each line of the body an event, answered by a line each, in order, as it becomes durable.
pub(super) async fn append(
    Extract(state): Node,
    Extension(call): OfCall,
    Path(stream): Path<String>,
    Query(query): Query<AppendQuery>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Fail> {
    let stream = own_stream(&stream)?;
    let class = query.class.as_deref().map(parse_class).transpose()?;
    let kind = headers
        .get(header::CONTENT_TYPE)
        .and_then(|kind| kind.to_str().ok());
    let form = Form {
        is_json: kind.is_some_and(|kind| kind.starts_with("application/x-ndjson")),
        producer: query.producer.map(|id| (id, query.producer_seq)),
    };
    let appending = Appending {
        events: state.events.clone(),
        stream,
        class,
    };
    if query.whole {
        let data = axum::body::to_bytes(body, MAX_PAYLOAD)
            .await
            .map_err(|_| too_large())?;
        return appending.at_once(form, &[data]).await;
    }
    if body.size_hint().exact().is_some_and(|len| len <= SHORT) {
        let data = axum::body::to_bytes(body, SHORT as usize).await;
        let data = data.map_err(broke_off)?;
        let lines: Vec<Bytes> = lines_in(&data).take(GROUP + 1).collect();
        if lines.len() <= GROUP {
            return appending.at_once(form, &lines).await;
        }
        let lines = lines_of(futures::stream::iter([Ok::<_, Infallible>(data)]));
        return appending.answer(&state, &call, form, lines.boxed()).await;
    }
    let lines = lines_of(body.into_data_stream());
    appending.answer(&state, &call, form, lines.boxed()).await
}

/// A stream of the user's own, to write to.
fn own_stream(name: &str) -> Result<StreamName, Fail> {
    let stream = parse_stream(name)?;
    if stream.is_ours() {
        return Err(
            Fail::new(Code::Usage, format!("{name} is one of gemba's own streams"))
                .hint("names that begin with $ are read, not written"),
        );
    }
    Ok(stream)
}

fn too_large() -> Fail {
    Fail::new(
        Code::Usage,
        format!("an event may have {MAX_PAYLOAD} bytes"),
    )
    .hint("`gemba add` the content and append its CID")
}

fn no_event(why: impl std::fmt::Display) -> Fail {
    Fail::new(Code::Usage, format!("a line is no event: {why}"))
        .hint("one is {\"text\":\"17\"} or {\"data\":\"MTc=\",\"time_ms\":1700000000000,\"headers\":{…}}; events before it are stored, none behind it is")
}

/// How lines become events.
struct Form {
    is_json: bool,
    producer: Option<(String, u64)>,
}

impl Form {
    fn event(&mut self, line: &[u8]) -> Result<NewEvent, Fail> {
        let now = wall_ms();
        let mut event = if self.is_json {
            let request: EventRequest = serde_json::from_slice(line).map_err(no_event)?;
            request.into_event(now).map_err(no_event)?
        } else {
            NewEvent::new(now, Bytes::copy_from_slice(line))
        };
        if let Some((id, seq)) = &mut self.producer {
            event.headers = event.headers.produced_by(id.clone(), *seq);
            // Beyond the last number there is none, and the log refuses it: it does not begin again at 0.
            *seq = seq.saturating_add(1);
        }
        Ok(event)
    }
}

/// An append that is under way.
struct Appending {
    events: Events,
    stream: StreamName,
    /// What the request says; where it says nothing, the stream does.
    class: Option<Class>,
}

impl Appending {
    /// A few lines that are all there: one group, and an answer of one piece.
    async fn at_once(self, mut form: Form, lines: &[Bytes]) -> Result<Response, Fail> {
        let mut list = Vec::with_capacity(lines.len());
        let mut wrong = Ok(());
        for line in lines {
            match form.event(line) {
                Ok(event) => list.push(event),
                // Those before it are appended and answered first.
                Err(fail) => {
                    wrong = Err(fail);
                    break;
                }
            }
        }
        let appending = here_if_possible(move || {
            let is_fast = self.is_fast(&self.events)?;
            Ok::<_, Fail>(self.append(&list, is_fast))
        });
        let (mut text, outcome) = appending.await??;
        if let Err(fail) = outcome.and(wrong) {
            if text.is_empty() {
                return Err(fail);
            }
            text.line(&fail.to_json())?;
        }
        let body = text.into_pieces().concat();
        Ok(typed("application/x-ndjson", body.into()))
    }

    /// Takes as many lines as have come into one group; the next group gathers while this one becomes durable.
    async fn answer(
        self,
        state: &State,
        call: &Arc<Call>,
        form: Form,
        lines: impl Stream<Item = Result<Bytes, Fail>> + Send + Unpin + 'static,
    ) -> Result<Response, Fail> {
        let appending = Arc::new(self);
        let is_fast = {
            let appending = Arc::clone(&appending);
            state
                .with_log(move |events| appending.is_fast(events))
                .await?
        };
        let producing = move |out: Lines| async move {
            let mut groups = groups(lines, form);
            while let Some((list, end)) = groups.recv().await {
                let appending = Arc::clone(&appending);
                let working = tokio::task::spawn_blocking(move || appending.append(&list, is_fast));
                let (text, outcome) = match working.await {
                    Ok(done) => done,
                    Err(e) => return (out, Err(Fail::internal(e))),
                };
                let sent = out.send_text(text).await;
                let outcome = sent.and(outcome).and(end.map_or(Ok(()), Err));
                if outcome.is_err() {
                    return (out, outcome);
                }
            }
            (out, Ok(()))
        };
        Ok(answer::lines_async(call, producing).await)
    }

    /// Blocks.
    fn is_fast(&self, events: &Events) -> Result<bool, Fail> {
        if let Some(class) = self.class {
            return Ok(class == Class::Fast);
        }
        let about = events.about(&self.stream)?;
        Ok(about.is_some_and(|about| about.class.as_deref() == Some("fast")))
    }

    /// Appends events and tells of each, up to one that is refused; of the fast class, how many were taken. Blocks until they are durable.
    fn append(&self, list: &[NewEvent], is_fast: bool) -> (Text, Result<(), Fail>) {
        let mut text = Text::default();
        let outcome = match list {
            [] => Ok(()),
            list if is_fast => self.events.offer(&self.stream, list).and_then(|_dropped| {
                text.line(&serde_json::json!({"stream": self.stream.to_string(), "taken": list.len(), "class": "fast"}))
            }),
            list => {
                let acks = self.events.append(&self.stream, list);
                acks.into_iter().try_for_each(|ack| text.line(&ack?))
            }
        };
        (text, outcome)
    }
}

/// Runs work that blocks on this very thread, whose other tasks go to another one: waking one for the work, and this one for its end, takes as long
/// as half a flush. One at a time, and not on the only thread: where the pool has no thread left for the other tasks, because a disk hangs, they would
/// wait for that disk. Whoever comes beside it works on a thread of the pool.
async fn here_if_possible<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Fail> {
    static HERE: Semaphore = Semaphore::const_new(1);
    let runtime = Handle::current();
    let has_others = runtime.runtime_flavor() == RuntimeFlavor::MultiThread
        && runtime.metrics().num_workers() > 1;
    match HERE.try_acquire() {
        Ok(_here) if has_others => Ok(tokio::task::block_in_place(work)),
        _ => tokio::task::spawn_blocking(work)
            .await
            .map_err(Fail::internal),
    }
}

/// A group of events, and why there are no more, if that is not the end.
type Group = (Vec<NewEvent>, Option<Fail>);

/// Gathers lines while those before are being written.
fn groups(
    lines: impl Stream<Item = Result<Bytes, Fail>> + Send + Unpin + 'static,
    mut form: Form,
) -> mpsc::Receiver<Group> {
    let (sender, receiver) = mpsc::channel(1);
    // It is asked once more after its end, where that came in the middle of a group.
    let mut lines = lines.fuse();
    tokio::spawn(async move {
        while let Some(first) = lines.next().await {
            let (mut group, mut bytes, mut next) = (Vec::new(), 0, Some(first));
            let mut end = None;
            while let Some(came) = next {
                let event = came.and_then(|line| {
                    bytes += line.len();
                    form.event(&line)
                });
                match event {
                    Ok(event) => group.push(event),
                    // Those before it are appended and answered first.
                    Err(fail) => end = Some(fail),
                }
                if end.is_some() || group.len() >= GROUP || bytes >= GROUP_BYTES {
                    break;
                }
                // Only what is there already, or comes while the writer is busy.
                next = tokio::select! {
                    biased;
                    next = lines.next() => next,
                    permit = sender.reserve() => {
                        drop(permit);
                        None
                    }
                };
            }
            let is_end = end.is_some();
            if sender.send((group, end)).await.is_err() || is_end {
                return;
            }
        }
    });
    receiver
}

fn broke_off(why: impl std::fmt::Display) -> Fail {
    Fail::new(Code::Interrupted, format!("the request broke off: {why}"))
}

/// The lines of a body that is there, each without its end.
fn lines_in(data: &Bytes) -> impl Iterator<Item = Bytes> {
    let lines = data.strip_suffix(b"\n").unwrap_or(data);
    let lines = (!data.is_empty()).then(|| lines.split(|byte| *byte == b'\n'));
    lines.into_iter().flatten().map(|line| data.slice_ref(line))
}

/// The lines of a body, each without its end, as it comes.
fn lines_of<E: std::fmt::Display>(
    body: impl Stream<Item = Result<Bytes, E>> + Send + Unpin,
) -> impl Stream<Item = Result<Bytes, Fail>> + Send {
    struct Reading<S> {
        body: S,
        rest: bytes::BytesMut,
        ended: bool,
    }
    let reading = Reading {
        body,
        rest: bytes::BytesMut::new(),
        ended: false,
    };
    futures::stream::unfold(reading, |mut reading| async move {
        let mut looked = 0;
        loop {
            if let Some(at) = reading.rest[looked..]
                .iter()
                .position(|byte| *byte == b'\n')
            {
                let mut line = reading.rest.split_to(looked + at + 1);
                line.truncate(line.len() - 1);
                return Some((Ok(line.freeze()), reading));
            }
            looked = reading.rest.len();
            if looked > MOST_LINE {
                reading.rest.clear();
                reading.ended = true;
                return Some((Err(too_large()), reading));
            }
            if reading.ended {
                let last = reading.rest.split().freeze();
                return (!last.is_empty()).then_some((Ok(last), reading));
            }
            match reading.body.next().await {
                Some(Ok(piece)) => reading.rest.extend_from_slice(&piece),
                Some(Err(e)) => {
                    reading.ended = true;
                    reading.rest.clear();
                    return Some((Err(broke_off(e)), reading));
                }
                None => reading.ended = true,
            }
        }
    })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ReadQuery {
    #[serde(default)]
    from: u64,
    author: Option<String>,
    since_ms: Option<i64>,
    limit: Option<u64>,
    #[serde(default)]
    follow: bool,
    /// The last so many events, and with `follow` what comes.
    tail: Option<u64>,
    /// The last event of each feed that was read, `STREAM AUTHOR:EPOCH:SEQ`, joined by commas: as `id` tells them.
    after: Option<String>,
}

/// Events of a stream, or of all that a pattern names, in the one order over all feeds: lines of JSON, or server-sent events to whoever asks
/// for them. A reader of one feed resumes behind `after`, or `Last-Event-ID`.
pub(super) async fn read(
    Extract(state): Node,
    Extension(call): OfCall,
    Path(stream): Path<String>,
    Query(query): Query<ReadQuery>,
    headers: HeaderMap,
) -> Result<Response, Fail> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let is_sse =
        text(header::ACCEPT.as_str()).is_some_and(|kinds| kinds.contains("text/event-stream"));
    let what = What {
        pattern: parse_pattern(&stream)?,
        author: query.author.as_deref().map(parse_author).transpose()?,
        from: query.from,
        since: query.since_ms,
    };
    let last_id = headers.get("last-event-id");
    // One that is no text was never given: whoever sends it would be told everything again.
    let last_id = last_id.map(|id| String::from_utf8_lossy(id.as_bytes()));
    let after = query.after.as_deref().or(last_id.as_deref());
    let after = after.map(parse_after).transpose()?;
    let tail = query.tail;
    let follow = query.follow || is_sse;
    let permit = follow.then(|| state.follower()).transpose()?;
    let begin = {
        let what = what.clone();
        state.with_log(move |events| match (after, tail) {
            (Some(after), _) => events.after(&what, &after),
            (None, Some(last)) => Ok(events.tail(&what, last)),
            (None, None) => events.begin(&what),
        })
    };
    let reading = Reading {
        cursor: begin.await?,
        events: state.events.clone(),
        what,
        left: query.limit.unwrap_or(u64::MAX),
        follow,
        call,
        _permit: permit,
    };
    if is_sse {
        return Ok(typed("text/event-stream", reading.events()));
    }
    let call = Arc::clone(&reading.call);
    Ok(answer::lines_async(&call, move |lines| async move {
        let outcome = reading.lines(&lines).await;
        (lines, outcome)
    })
    .await)
}

/// A resume token: places, `STREAM AUTHOR:EPOCH:SEQ`, one a feed, and `STREAM AUTHOR:EPOCH:SEQ@CID`, one a branch.
fn parse_after(text: &str) -> Result<Vec<(Part, Seq)>, Fail> {
    text.split(',')
        .map(|one| {
            let wrong = || {
                Fail::new(Code::Usage, format!("{one:?} is no place to go on from"))
                    .hint("give back the id of the last event as it came")
            };
            let (stream, event) = one.split_once(' ').ok_or_else(wrong)?;
            let (event, branch) = match event.split_once('@') {
                Some((event, branch)) => (event, Some(branch.parse().map_err(|_| wrong())?)),
                None => (event, None),
            };
            let EventId { feed, seq } = parse_event(stream, event)?;
            Ok((Part { feed, branch }, seq))
        })
        .collect()
}

/// The last event of each feed and branch.
type Places = std::collections::BTreeMap<Part, String>;

/// The place of an event.
fn place_text(part: &Part, seq: Seq) -> String {
    let Part { feed, branch } = part;
    let author = crate::log::author_text(&feed.author);
    let place = format!("{} {author}:{}:{seq}", feed.stream, feed.epoch);
    match branch {
        Some(branch) => format!("{place}@{branch}"),
        None => place,
    }
}

fn place_of((part, seq): (&Part, Seq)) -> (Part, String) {
    (part.clone(), place_text(part, seq))
}

/// Bytes of places that go with every event; longer ones go with the last of each page.
const SHORT_ID: usize = 2 << 10;
/// Bytes of places that a client can give back in a header; longer ones are not told, and it goes on at the last that was.
const MOST_ID: usize = 256 << 10;

/// The line that tells where to go on, if it is told with this event.
fn id_of(places: &Places, is_last: bool) -> String {
    let bytes: usize = places.values().map(|place| place.len() + 1).sum();
    if bytes > MOST_ID || bytes > SHORT_ID && !is_last {
        return String::new();
    }
    let places: Vec<&str> = places.values().map(String::as_str).collect();
    format!("id: {}\n", places.join(","))
}

/// Somebody who reads.
struct Reading {
    events: Events,
    what: What,
    cursor: Cursor,
    left: u64,
    follow: bool,
    call: Arc<Call>,
    /// Of those who follow; given back when they end.
    _permit: Option<OwnedSemaphorePermit>,
}

impl Reading {
    async fn lines(mut self, lines: &Lines) -> Result<(), Fail> {
        let mut changes = self.events.changes();
        loop {
            changes.borrow_and_update();
            let (text, more) = self
                .page(|text: &mut Text, part, event| text.line(&wire::line(part, event)))
                .await?;
            let is_last = !more;
            lines.send_text(text).await?;
            if self.left == 0 || is_last && !self.follow {
                return Ok(());
            }
            if is_last {
                // A reader who went away is noticed although nothing comes.
                let changed =
                    async { changes.changed().await.map_err(|_| crate::daemon::ending()) };
                self.call.within(changed).await?;
            }
        }
    }

    /// What `put` makes of the next events, and whether there may be more now.
    async fn page<T: Default + Send + 'static>(
        &mut self,
        put: impl Fn(&mut T, &Part, &Event) -> Result<(), Fail> + Send + 'static,
    ) -> Result<(T, bool), Fail> {
        let most = PAGE.min(usize::try_from(self.left).unwrap_or(PAGE));
        let (events, what) = (self.events.clone(), self.what.clone());
        let mut cursor = std::mem::take(&mut self.cursor);
        let reading = tokio::task::spawn_blocking(move || {
            let (mut page, mut count) = (T::default(), 0);
            let read = events.read(&what, &mut cursor, most, |part, event| {
                count += 1;
                put(&mut page, part, event)
            });
            (cursor, read.map(|more| (page, count, more)))
        });
        let (cursor, page) = reading.await.map_err(Fail::internal)?;
        self.cursor = cursor;
        let (page, count, more) = page?;
        self.left -= count;
        Ok((page, more))
    }

    /// The body of an event stream. A comment goes with the silence.
    fn events(mut self) -> Body {
        let (pieces, waiting) = answer::Pieces::new();
        let over = self.call.token();
        let telling = async move {
            let mut changes = self.events.changes();
            // Feeds of which nothing comes on this connection have a place, too: without it they would begin anew.
            let mut places: Places = self.cursor.places().map(place_of).collect();
            loop {
                changes.borrow_and_update();
                let page = self.page(|page: &mut Vec<_>, part, event| {
                    page.push((part.clone(), event.seq, wire::line(part, event)));
                    Ok(())
                });
                let (page, more) = match page.await {
                    Ok(read) => read,
                    // Whoever listens is told why it ends, as readers of lines are; by itself it would come again and again, and never hear it.
                    Err(fail) => {
                        let text = format!("event: fail\ndata: {}\n\n", fail.to_json());
                        pieces.put(text.into()).await;
                        return Err(fail);
                    }
                };
                let is_last = !more;
                let count = page.len();
                let mut text = Text::default();
                for ((part, seq, event), n) in page.into_iter().zip(1..) {
                    let place = place_text(&part, seq);
                    places.insert(part, place);
                    let data = line(&event)?;
                    let data = String::from_utf8_lossy(&data);
                    let id = id_of(&places, n == count);
                    text.raw(format!("{id}event: event\ndata: {data}\n").as_bytes());
                }
                for piece in text.into_pieces() {
                    if !pieces.put(piece).await {
                        return Ok::<(), Fail>(());
                    }
                }
                if self.left == 0 {
                    return Ok(());
                }
                if is_last && !more_comes(&mut changes, &pieces).await {
                    return Ok(());
                }
            }
        };
        tokio::spawn(async move {
            tokio::select! {
                _ended = telling => {}
                () = over.cancelled() => {}
            }
        });
        Body::from_stream(answer::body_of(waiting))
    }
}

/// Waits until the log has changed, with a comment now and then. False: the log is at its end, or nobody reads any more.
async fn more_comes(
    changes: &mut tokio::sync::watch::Receiver<u64>,
    pieces: &answer::Pieces,
) -> bool {
    loop {
        match tokio::time::timeout(ALIVE, changes.changed()).await {
            Ok(changed) => return changed.is_ok(),
            Err(_) => {
                if !pieces.put(": still here\n\n".into()).await {
                    return false;
                }
            }
        }
    }
}

/// Reads every byte and checks it.
pub(super) async fn verify(Extract(state): Node) -> Result<Json<LogVerified>, Fail> {
    let verified = state.with_log(Events::verify);
    Ok(Json(verified.await?))
}

/// This repository is a copy: events go on in new epochs.
pub(super) async fn restored(Extract(state): Node) -> Result<Json<Done>, Fail> {
    let begun = state.with_log(Events::begin_epochs);
    begun.await?;
    Ok(Json(Done { ok: true }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ExportQuery {
    /// Patterns, joined by commas; all streams without them.
    pattern: Option<String>,
}

/// Events as a CAR file.
pub(super) async fn export(
    Extract(state): Node,
    Extension(call): OfCall,
    Query(query): Query<ExportQuery>,
) -> Result<Response, Fail> {
    let patterns = query.pattern.as_deref().unwrap_or("#").split(',');
    let patterns = patterns.map(parse_pattern).collect::<Result<Vec<_>, _>>()?;
    let events = state.events.clone();
    let write = move |out: &mut dyn std::io::Write| events.export(&patterns, out);
    let kind = "application/vnd.ipld.car; version=1";
    Ok(answer::bytes_blocking(kind, "log export", &call, state, write).await)
}

/// Takes in the events of a CAR file.
pub(super) async fn import(Extract(state): Node, Extension(call): OfCall, body: Body) -> Response {
    let mut body = super::content::body_reader(body, Arc::clone(&call));
    let events = state.events.clone();
    answer::lines_of_upload(&state, &call, answer::status_of_upload, move |lines| {
        lines.send(&events.import(&mut body)?)
    })
    .await
}

/// All consumers of this node.
pub(super) async fn consumers(
    Extract(state): Node,
    Extension(call): OfCall,
) -> Result<Response, Fail> {
    let views = state.with_log(|events| events.consumers().list());
    Ok(all(&call, views.await?).await)
}

/// One of them.
pub(super) async fn consumer(
    Extract(state): Node,
    Path(name): Path<String>,
) -> Result<Json<ConsumerView>, Fail> {
    let view = state.with_log(move |events| events.consumers().view(&name));
    Ok(Json(view.await?))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ForgetQuery {
    /// Also while workers hold events or wait for them.
    #[serde(default)]
    force: bool,
}

/// Forgets a consumer; what waited for it alone may go.
pub(super) async fn forget(
    Extract(state): Node,
    Path(name): Path<String>,
    Query(query): Query<ForgetQuery>,
) -> Result<Json<Done>, Fail> {
    let forgotten = state.with_log(move |events| events.consumers().forget(&name, query.force));
    forgotten.await?;
    Ok(Json(Done { ok: true }))
}

/// The next portion for a worker. Waits for events as long as the worker wishes.
pub(super) async fn claim(
    Extract(state): Node,
    Extension(call): OfCall,
    Path(name): Path<String>,
    Json(request): Json<ClaimRequest>,
) -> Result<Json<Claimed>, Fail> {
    let wait = Duration::from_millis(request.wait_ms.unwrap_or(0)).min(MOST_WAIT);
    let until = Instant::now() + wait;
    let mut request = request;
    // Whoever waits is at work, from its first look on.
    let consumers = state.events.consumers();
    let mut waiting = (!wait.is_zero()).then(|| consumers.waits(&name, request.worker));
    let mut place = None;
    loop {
        let (of, wish) = (name.clone(), request.clone());
        let claimed = state.with_log(move |events| {
            let claimed = events.consumers().claim(&of, &wish)?;
            // Who reads on keeps what he has: he holds it under another token, and comes again.
            let gives_back = wish.read_on.is_none();
            Ok(claimed.map(|claimed| Untold {
                consumers: gives_back.then(|| Arc::clone(events.consumers())),
                name: of,
                claimed,
            }))
        });
        if let Some(untold) = call.within(claimed).await? {
            return Ok(Json(untold.told()));
        }
        let Some(waiting) = waiting.as_mut().filter(|_| Instant::now() < until) else {
            return Ok(Json(Claimed::default()));
        };
        if place.is_none() {
            place = Some(state.waiter()?);
            // The consumer is there now. One that is forgotten while its worker waits is not made anew, and none is taken over a second time.
            request.streams.clear();
            request.take_over = false;
        }
        // Who reads on holds something: as long as its request waits here, it lives.
        let again = match request.read_on.and_then(|_| consumers.lease(&name)) {
            Some(lease) => until.min(Instant::now() + lease / RENEWALS),
            None => until,
        };
        let more = async {
            let _in_time = tokio::time::timeout_at(again, waiting.woken()).await;
            Ok(())
        };
        call.within(more).await?;
    }
}

/// What was claimed for somebody. Who went away while the log was asked is told nothing, and what he would have held goes to others at once, not when the
/// lease is over.
struct Untold {
    consumers: Option<Arc<Consumers>>,
    name: String,
    claimed: Claimed,
}

impl Untold {
    fn told(mut self) -> Claimed {
        self.consumers = None;
        std::mem::take(&mut self.claimed)
    }
}

impl Drop for Untold {
    fn drop(&mut self) {
        if let Some(consumers) = &self.consumers {
            consumers.give_back(&self.name, self.claimed.token);
        }
    }
}

/// A worker has done something of its claim.
pub(super) async fn ack(
    Extract(state): Node,
    Path(name): Path<String>,
    Json(request): Json<AckRequest>,
) -> Result<Json<Done>, Fail> {
    let acked = state.with_log(move |events| events.consumers().acknowledge(&name, request));
    acked.await?;
    Ok(Json(Done { ok: true }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RenewRequest {
    token: u64,
}

/// A worker is alive.
pub(super) async fn renew(
    Extract(state): Node,
    Path(name): Path<String>,
    Json(request): Json<RenewRequest>,
) -> Result<Json<Done>, Fail> {
    let renewed = state.with_log(move |events| events.consumers().renew(&name, request.token));
    renewed.await?;
    Ok(Json(Done { ok: true }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LeaveRequest {
    worker: u64,
}

/// A worker ends in order.
pub(super) async fn leave(
    Extract(state): Node,
    Path(name): Path<String>,
    Json(request): Json<LeaveRequest>,
) -> Result<Json<Done>, Fail> {
    let left = state.with_log(move |events| events.consumers().leave(&name, request.worker));
    left.await?;
    Ok(Json(Done { ok: true }))
}

/// Where a consumer is to go on; exactly one of them.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SeekRequest {
    /// `start` or `tail`.
    to: Option<String>,
    time_ms: Option<i64>,
    stream: Option<String>,
    /// `AUTHOR:EPOCH:SEQ`
    event: Option<String>,
}

/// Moves a consumer.
pub(super) async fn seek(
    Extract(state): Node,
    Path(name): Path<String>,
    Json(request): Json<SeekRequest>,
) -> Result<Json<ConsumerView>, Fail> {
    let goal = goal(&request)?;
    let sought = state.with_log(move |events| {
        events.consumers().seek(&name, goal)?;
        events.consumers().view(&name)
    });
    Ok(Json(sought.await?))
}

fn goal(request: &SeekRequest) -> Result<Goal, Fail> {
    match (request.to.as_deref(), request.time_ms, &request.stream, &request.event) {
        (Some("start"), None, None, None) => Ok(Goal::Start),
        (Some("tail"), None, None, None) => Ok(Goal::Tail),
        (None, Some(ms), None, None) => Ok(Goal::Time(ms)),
        (None, None, Some(stream), Some(event)) => Ok(Goal::Event(parse_event(stream, event)?)),
        _ => Err(Fail::new(Code::Usage, "a consumer is moved to one place").hint(
            "{\"to\":\"start\"}, {\"to\":\"tail\"}, {\"time_ms\":…} or {\"stream\":…,\"event\":\"AUTHOR:EPOCH:SEQ\"}",
        )),
    }
}

/// The dead letters of a consumer.
pub(super) async fn dead(
    Extract(state): Node,
    Extension(call): OfCall,
    Path(name): Path<String>,
) -> Result<Response, Fail> {
    let letters = state.with_log(move |events| events.consumers().dead(&name));
    Ok(all(&call, letters.await?).await)
}

/// Which letter.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LetterRequest {
    id: String,
    /// Needed where letters of several streams have this id.
    stream: Option<String>,
}

/// Tries one again.
pub(super) async fn retry(
    Extract(state): Node,
    Path(name): Path<String>,
    Json(request): Json<LetterRequest>,
) -> Result<Json<Done>, Fail> {
    let of = name.clone();
    let retried = state.with_log(move |events| {
        let which = (request.id.as_str(), request.stream.as_deref());
        events.consumers().retry(&of, which)
    });
    match retried.await {
        Ok(()) => Ok(Json(Done { ok: true })),
        Err(fail) => Err(state.with_address(&name, fail).await),
    }
}

/// Closes one.
pub(super) async fn drop_letter(
    Extract(state): Node,
    Path(name): Path<String>,
    Json(request): Json<LetterRequest>,
) -> Result<Json<Done>, Fail> {
    let of = name.clone();
    let dropped = state.with_log(move |events| {
        let which = (request.id.as_str(), request.stream.as_deref());
        events.consumers().drop_letter(&of, which)
    });
    match dropped.await {
        Ok(()) => Ok(Json(Done { ok: true })),
        Err(fail) => Err(state.with_address(&name, fail).await),
    }
}

async fn all<T: serde::Serialize + Send + Sync + 'static>(
    call: &Arc<Call>,
    entries: Vec<T>,
) -> Response {
    if entries.is_empty() {
        return typed("application/x-ndjson", Body::empty()).into_response();
    }
    answer::lines_async(call, move |lines| async move {
        for entry in &entries {
            if let Err(fail) = lines.send_async(entry).await {
                return (lines, Err(fail));
            }
        }
        (lines, Ok(()))
    })
    .await
}

#[cfg(test)]
mod tests {
    use gemba_testkit::Rng;

    use super::*;

    /// A short body has the lines that it would have if it came in pieces.
    #[tokio::test]
    async fn s3_58_a_body_has_the_same_lines_whether_it_is_there_or_comes_in_pieces() {
        let mut rng = Rng::from_env_or(358);
        for _ in 0..2_000 {
            let len = rng.index(12);
            let data: Vec<u8> = (0..len).map(|_| b"a\n"[rng.index(2)]).collect();
            let data = Bytes::from(data);
            let mut pieces = Vec::new();
            let mut left = data.clone();
            while !left.is_empty() {
                pieces.push(Ok::<_, std::io::Error>(
                    left.split_to(1 + rng.index(left.len())),
                ));
            }
            let came = lines_of(futures::stream::iter(pieces));
            let came: Vec<Bytes> = came.map(Result::unwrap_or_default).collect().await;
            assert_eq!(lines_in(&data).collect::<Vec<_>>(), came, "{data:?}");
        }
    }
}
