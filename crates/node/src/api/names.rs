//! Routes about names and the keys that they belong to.

use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::body::{Body, Bytes};
use axum::extract::State as Extract;
use axum::http::{HeaderMap, header};
use axum::response::Response;
use gemba_names::{Change, Command as Wish, Done as Outcome, Name, Publish};
use serde::Deserialize;
use tokio::sync::broadcast::error::RecvError;

use super::State;
use super::answer::{self, Lines, line, typed};
use super::extract::{Json, Path, Query};
use super::types::{
    Done, FollowRequest, FollowStatus, KeyInfo, NameEvent, NameInspected, NamePublished,
    NameResolved, PublishRequest,
};
use crate::config::Names as Settings;
use crate::daemon::flow::follow::Ask as Follow;
use crate::daemon::flow::names::{Ask, Watch};
use crate::daemon::{Call, Command, Wait};
use crate::error::{Code, Fail};
use crate::keystore::{Key, Keystore, SELF};
use crate::names::{
    self,
    follows::{KEEP, MOST_KEPT},
};

type Node = Extract<Arc<State>>;
type OfCall = Extension<Arc<Call>>;

/// An event stream says something this often, so that nobody in between takes it for dead.
const ALIVE: Duration = Duration::from_secs(15);
/// A keystore file has some hundred bytes, that of an RSA key some thousand.
const KEY_BYTES: usize = 8 * 1024;

impl State {
    /// Runs a command of the book of names.
    async fn name_run(&self, wish: Wish) -> Result<Outcome, Fail> {
        let ask = |reply| Command::Names(Ask::Run(wish, reply));
        self.handle.ask(ask).await?
    }

    /// Runs work on the keystore beside the loop.
    async fn with_keys<T: Send + 'static>(
        &self,
        work: impl FnOnce(Keystore) -> Result<T, Fail> + Send + 'static,
    ) -> Result<T, Fail> {
        let keys = self.keys.clone();
        let working = tokio::task::spawn_blocking(move || work(keys));
        working.await.map_err(Fail::internal)?
    }

    async fn key_came(
        &self,
        (key, keypair): (Key, gemba_names::Keypair),
    ) -> Result<Json<KeyInfo>, Fail> {
        self.handle
            .tell(Command::Names(Ask::KeyCame(keypair)))
            .await?;
        Ok(Json(key.info()))
    }
}

/// The keys of this device.
pub(super) async fn keys(Extract(state): Node, Extension(call): OfCall) -> Result<Response, Fail> {
    let keys = state.with_keys(|keys| keys.keys()).await?;
    let infos = keys.iter().map(|(key, _)| key.info()).collect();
    Ok(all(&call, infos).await)
}

/// Makes a key.
pub(super) async fn key_new(
    Extract(state): Node,
    Path(label): Path<String>,
) -> Result<Json<KeyInfo>, Fail> {
    let made = state.with_keys(move |keys| keys.create(&label)).await?;
    state.key_came(made).await
}

/// Takes a key over from the bytes of its file.
pub(super) async fn key_import(
    Extract(state): Node,
    Path(label): Path<String>,
    body: Body,
) -> Result<Json<KeyInfo>, Fail> {
    let bytes = axum::body::to_bytes(body, KEY_BYTES).await.map_err(|_| {
        Fail::new(
            Code::Usage,
            format!("a key has at most {KEY_BYTES} bytes, this is another file"),
        )
    })?;
    let came = state
        .with_keys(move |keys| keys.import(&label, &bytes))
        .await?;
    state.key_came(came).await
}

/// Removes a key.
pub(super) async fn key_rm(
    Extract(state): Node,
    Path(label): Path<String>,
) -> Result<Json<KeyInfo>, Fail> {
    let gone = state.with_keys(move |keys| keys.remove(&label)).await?;
    state
        .handle
        .tell(Command::Names(Ask::KeyGone(gone.name)))
        .await?;
    Ok(Json(gone.info()))
}

/// Publishes. Answered when the version is durable; whoever is connected is told by then or soon after.
pub(super) async fn publish(
    Extract(state): Node,
    Json(request): Json<PublishRequest>,
) -> Result<Json<NamePublished>, Fail> {
    let label = request.key.clone().unwrap_or_else(|| SELF.to_owned());
    let (key, _) = state.with_keys(move |keys| keys.find(&label)).await?;
    let publish = wish(&request, key.name, &state.names)?;
    let value = names::value_text(&publish.value);
    if request.accept_fork {
        state.name_run(Wish::Own(key.name)).await?;
        state.name_run(Wish::AcceptFork(key.name)).await?;
    }
    match state.name_run(Wish::Publish(publish)).await? {
        Outcome::Published { sequence } => Ok(Json(NamePublished {
            name: key.name.to_string(),
            value,
            sequence,
        })),
        Outcome::Ok => Err(Fail::internal("a publication without a number")),
    }
}

/// What a request means for the book.
///
/// # Errors
/// [`Code::Usage`] for a value that is none, or a time that is none.
pub(crate) fn wish(
    request: &PublishRequest,
    name: Name,
    settings: &Settings,
) -> Result<Publish, Fail> {
    let mut publish = Publish::new(name, names::parse_value(&request.value)?);
    let time = |seconds: f64, what: &str| {
        Duration::try_from_secs_f64(seconds)
            .ok()
            .filter(|time| !time.is_zero() && time.as_nanos() <= i64::MAX as u128)
            .ok_or_else(|| {
                Fail::new(Code::Usage, format!("a {what} of {seconds} s is none"))
                    .hint("24h and 8760h are")
            })
    };
    (publish.lifetime, publish.ttl) = (settings.lifetime, settings.ttl);
    if let Some(seconds) = request.lifetime_s {
        publish.lifetime = time(seconds, "lifetime")?;
    }
    if let Some(seconds) = request.ttl_s {
        publish.ttl = time(seconds, "time to live")?;
    }
    publish.sequence = request.sequence;
    Ok(publish)
}

/// All names of which something is known.
pub(super) async fn list(Extract(state): Node, Extension(call): OfCall) -> Result<Response, Fail> {
    let known = state
        .handle
        .ask(|reply| Command::Names(Ask::List(reply)))
        .await?;
    let known = known.iter().map(names::inspected).collect();
    Ok(all(&call, known).await)
}

#[derive(Deserialize)]
pub(super) struct ResolveQuery {
    #[serde(default)]
    complete: bool,
}

/// What a name points to; with `complete` the newest version that is whole here.
pub(super) async fn resolve(
    Extract(state): Node,
    Extension(call): OfCall,
    Path(name): Path<String>,
    Query(query): Query<ResolveQuery>,
) -> Result<Json<NameResolved>, Fail> {
    let name = names::parse_name(&name)?;
    if query.complete {
        let ask = |reply| Command::Names(Ask::Complete(name, reply));
        let whole = state.handle.ask(ask).await?;
        let whole = whole.ok_or_else(|| names::not_whole(&name))?;
        return Ok(Json(names::resolved(&whole)));
    }
    let _waiting = call.waits_for(Wait::Name(name));
    let ask = |reply| Command::Names(Ask::Resolve(name, reply));
    let found = call.within(async { state.handle.ask(ask).await? }).await?;
    Ok(Json(names::resolved(&found)))
}

/// All that is known of a name, which is looked for where nothing is.
pub(super) async fn inspect(
    Extract(state): Node,
    Extension(call): OfCall,
    Path(name): Path<String>,
) -> Result<Json<NameInspected>, Fail> {
    let name = names::parse_name(&name)?;
    find(&state, &call, name).await?;
    let ask = |reply| Command::Names(Ask::Inspect(name, reply));
    let seen = state.handle.ask(ask).await?;
    let seen = seen.ok_or_else(|| names::unknown(&name))?;
    Ok(Json(names::inspected(&seen)))
}

/// Looks for a name of which no record is here.
async fn find(state: &State, call: &Call, name: Name) -> Result<(), Fail> {
    let ask = |reply| Command::Names(Ask::Known(name, reply));
    if state.handle.ask(ask).await?.is_some() {
        return Ok(());
    }
    let _waiting = call.waits_for(Wait::Name(name));
    let ask = |reply| Command::Names(Ask::Resolve(name, reply));
    call.within(async { state.handle.ask(ask).await? })
        .await
        .map(drop)
}

/// The raw record of a name.
pub(super) async fn record(
    Extract(state): Node,
    Extension(call): OfCall,
    Path(name): Path<String>,
) -> Result<Response, Fail> {
    let name = names::parse_name(&name)?;
    find(&state, &call, name).await?;
    let ask = |reply| Command::Names(Ask::Record(name, reply));
    let bytes = state.handle.ask(ask).await?;
    let bytes = bytes.ok_or_else(|| names::unknown(&name))?;
    Ok(typed("application/vnd.ipfs.ipns-record", Body::from(bytes)))
}

/// Takes in a record that somebody brought.
pub(super) async fn put(
    Extract(state): Node,
    Path(name): Path<String>,
    body: Body,
) -> Result<Json<Done>, Fail> {
    let name = names::parse_name(&name)?;
    let most = gemba_names::MAX_RECORD_BYTES;
    let bytes = axum::body::to_bytes(body, most).await.map_err(|_| {
        Fail::new(
            Code::Usage,
            format!("a record has at most {most} bytes, this is another file"),
        )
        .hint("`gemba name get` and `ipfs name get` write records")
    })?;
    let bytes = bytes.to_vec();
    state.name_run(Wish::Put { name, bytes }).await?;
    Ok(Json(Done { ok: true }))
}

#[derive(Deserialize)]
pub(super) struct WatchQuery {
    name: Option<String>,
    after: Option<u64>,
}

/// Changes as they come: lines of JSON, or server-sent events to whoever asks for them. `after`, or the header `Last-Event-ID`, resumes behind that
/// revision; without one only what comes from now on is told.
pub(super) async fn watch(
    Extract(state): Node,
    Extension(call): OfCall,
    Query(query): Query<WatchQuery>,
    headers: HeaderMap,
) -> Result<Response, Fail> {
    let name = query.name.as_deref().map(names::parse_name).transpose()?;
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let last = text("last-event-id").and_then(|text| text.parse().ok());
    let events =
        text(header::ACCEPT.as_str()).is_some_and(|kinds| kinds.contains("text/event-stream"));
    let watching = Watching {
        state,
        name,
        after: query.after.or(last),
    };
    if events {
        return Ok(typed("text/event-stream", watching.events(&call)));
    }
    let own = Arc::clone(&call);
    Ok(answer::lines_async(&call, move |lines| async move {
        let _waiting = own.waits_for(Wait::Change(watching.name));
        let outcome = watching.lines(&lines).await;
        (lines, outcome)
    })
    .await)
}

/// Somebody who watches.
struct Watching {
    state: Arc<State>,
    name: Option<Name>,
    after: Option<u64>,
}

impl Watching {
    async fn lines(mut self, lines: &Lines) -> Result<(), Fail> {
        let mut watch = self.begin().await?;
        loop {
            for event in self.next(&mut watch).await? {
                lines.send_async(&event).await?;
            }
        }
    }

    /// The body of an event stream. A comment goes with the silence.
    fn events(mut self, call: &Arc<Call>) -> Body {
        let (sender, receiver) = tokio::sync::mpsc::channel::<Result<Bytes, std::io::Error>>(16);
        let over = call.token();
        let telling = async move {
            let mut watch = self.begin().await?;
            loop {
                let text = match tokio::time::timeout(ALIVE, self.next(&mut watch)).await {
                    Ok(events) => events?.iter().map(sse).collect::<Result<String, Fail>>()?,
                    Err(_) => ": still here\n\n".to_owned(),
                };
                if sender.send(Ok(text.into())).await.is_err() {
                    return Ok::<(), Fail>(());
                }
            }
        };
        tokio::spawn(async move {
            tokio::select! {
                _ended = telling => {}
                () = over.cancelled() => {}
            }
        });
        Body::from_stream(tokio_stream::wrappers::ReceiverStream::new(receiver))
    }

    async fn begin(&mut self) -> Result<Watch, Fail> {
        let (name, after) = (self.name, self.after);
        let ask = |reply| Command::Names(Ask::Watch(name, after, reply));
        let watch = self.state.handle.ask(ask).await?;
        self.after = Some(watch.after);
        Ok(watch)
    }

    /// The next events that concern the watched name; perhaps none.
    async fn next(&mut self, watch: &mut Watch) -> Result<Vec<NameEvent>, Fail> {
        let changes = match watch.missed.is_empty() {
            false => std::mem::take(&mut watch.missed),
            true => match watch.receiver.recv().await {
                Ok(change) => vec![change],
                Err(RecvError::Lagged(_)) => {
                    *watch = self.begin().await?;
                    std::mem::take(&mut watch.missed)
                }
                Err(RecvError::Closed) => return Err(crate::daemon::ending()),
            },
        };
        let mut events = Vec::new();
        for change in changes {
            if Some(change.revision) <= self.after {
                continue;
            }
            self.after = Some(change.revision);
            if self.name.is_none_or(|name| name == change.now.name) {
                events.push(told(&change));
            }
        }
        Ok(events)
    }
}

fn told(change: &Change) -> NameEvent {
    let event = if change.completed {
        "complete"
    } else {
        "changed"
    };
    NameEvent {
        event: event.to_owned(),
        revision: change.revision,
        now: names::resolved(&change.now),
    }
}

fn sse(event: &NameEvent) -> Result<String, Fail> {
    let data = line(event)?;
    let data = String::from_utf8_lossy(&data);
    Ok(format!(
        "id: {}\nevent: {}\ndata: {data}\n",
        event.revision, event.event
    ))
}

/// Every name that is followed, and how far it is.
pub(super) async fn follows(
    Extract(state): Node,
    Extension(call): OfCall,
) -> Result<Response, Fail> {
    let all_of_them = state
        .handle
        .ask(|reply| Command::Follow(Follow::List(reply)))
        .await?;
    Ok(all(&call, all_of_them).await)
}

/// How far one of them is.
pub(super) async fn follow_status(
    Extract(state): Node,
    Path(name): Path<String>,
) -> Result<Json<FollowStatus>, Fail> {
    let name = names::parse_name(&name)?;
    let ask = |reply| Command::Follow(Follow::Status(name, reply));
    Ok(Json(state.handle.ask(ask).await??))
}

/// Follows a name. Answered when that is durable; `GET` tells how far it is, and `/v1/names/watch` when it is whole.
pub(super) async fn follow_add(
    Extract(state): Node,
    Path(name): Path<String>,
    Json(request): Json<FollowRequest>,
) -> Result<Json<FollowStatus>, Fail> {
    let name = names::parse_name(&name)?;
    let keep = keep(request.keep)?;
    let ask = |reply| Command::Follow(Follow::Add(name, keep, reply));
    Ok(Json(state.handle.ask(ask).await??))
}

/// How many versions are kept.
///
/// # Errors
/// [`Code::Usage`].
pub(crate) fn keep(wished: Option<u64>) -> Result<usize, Fail> {
    let keep = wished
        .map_or(Ok(KEEP), usize::try_from)
        .unwrap_or(usize::MAX);
    if (1..=MOST_KEPT).contains(&keep) {
        return Ok(keep);
    }
    Err(
        Fail::new(Code::Usage, format!("{keep} versions cannot be kept"))
            .hint(format!("1 to {MOST_KEPT} can, the present one among them")),
    )
}

/// Follows a name no longer.
pub(super) async fn follow_rm(
    Extract(state): Node,
    Path(name): Path<String>,
) -> Result<Json<FollowStatus>, Fail> {
    let name = names::parse_name(&name)?;
    let ask = |reply| Command::Follow(Follow::Remove(name, reply));
    Ok(Json(state.handle.ask(ask).await??))
}

#[derive(Deserialize)]
pub(super) struct RollbackQuery {
    to: Option<u64>,
}

/// Goes back to an earlier version.
pub(super) async fn follow_rollback(
    Extract(state): Node,
    Path(name): Path<String>,
    Query(query): Query<RollbackQuery>,
) -> Result<Json<FollowStatus>, Fail> {
    let name = names::parse_name(&name)?;
    let ask = |reply| Command::Follow(Follow::RollBack(name, query.to, reply));
    Ok(Json(state.handle.ask(ask).await??))
}

async fn all<T: serde::Serialize + Send + Sync + 'static>(
    call: &Arc<Call>,
    entries: Vec<T>,
) -> Response {
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
