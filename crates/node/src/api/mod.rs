//! The HTTP API of the daemon, `/v1`: what the command line uses and what integrators may.
//!
//! Loopback only; every request is checked for token, `Host` and `Origin`. Bodies of JSON are bounded, streams have back-pressure. Handlers hold
//! no state of their own: they ask the loop through its [`Handle`], or read the store on a blocking thread.

mod answer;
mod auth;
mod calls;
mod content;
mod extract;
mod names;
mod node;
mod pins;
mod pubsub;
mod server;
mod space;
mod streams;
pub mod types;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State as Extract};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use gemba_store::Store;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

pub use auth::Token;
pub(crate) use names::{keep, wish};
pub use server::{Published, bind, serve};

use crate::config::Names;
use crate::daemon::keeper::Figures;
use crate::daemon::room::Room;
use crate::daemon::{Handle, Turns};
use crate::error::{Code, Fail};
use crate::handover::Desk;
use crate::keystore::Keystore;
use crate::log::Events;
use crate::repo::Layout;

/// Largest JSON body in bytes (row H7).
const JSON_BYTES: usize = 1024 * 1024;
/// Requests that hold a blocking thread at a time. Fewer than there are threads: a client that never reads on keeps his thread, and
/// pins must be written all the same.
const THREADS: usize = 40;
/// Requests for one block that is here, beside those: a disk read each, so that they wait for nobody who waits for others.
const LOCAL: usize = 4;
/// Topics that are read at a time, each by its own request; what waits for a reader who is slow is at most 1 MiB each.
const SUBSCRIPTIONS: usize = 64;
/// Readers of events that go on with what comes. Each holds a page, as lines: 2 MiB at most, whatever its events are made of.
const FOLLOWERS: usize = 64;
/// Workers that wait for events of consumers. With all readers and subscriptions they leave some of the connections that the API has to others.
const WAITERS: usize = 96;
/// A request that finds all of them taken is refused after so long.
const THREAD_DEADLINE: Duration = Duration::from_secs(5);

/// What every handler can reach.
pub struct State {
    /// The loop.
    pub handle: Handle,
    /// The blocks.
    pub store: Store,
    turns: Arc<Turns>,
    kept: Arc<Figures>,
    desk: Arc<Desk>,
    room: Arc<Room>,
    keys: Keystore,
    events: Events,
    names: Names,
    token: Token,
    failures: answer::Failures,
    calls: calls::Calls,
    threads: Arc<Semaphore>,
    local: Arc<Semaphore>,
    subscriptions: Arc<Semaphore>,
    followers: Arc<Semaphore>,
    waiters: Arc<Semaphore>,
    ending: CancellationToken,
}

impl State {
    /// For one daemon; `ending` is cancelled when it ends.
    #[must_use]
    pub fn new(
        handle: Handle,
        store: Store,
        (turns, kept, room): (Arc<Turns>, Arc<Figures>, Arc<Room>),
        (desk, events): (Arc<Desk>, Events),
        (layout, names, token): (Layout, Names, Token),
        ending: CancellationToken,
    ) -> Arc<Self> {
        Arc::new(Self {
            handle,
            store,
            turns,
            kept,
            desk,
            room,
            keys: Keystore::of(&layout),
            events,
            names,
            token,
            failures: answer::Failures::default(),
            calls: calls::Calls::default(),
            threads: Arc::new(Semaphore::new(THREADS)),
            local: Arc::new(Semaphore::new(LOCAL)),
            subscriptions: Arc::new(Semaphore::new(SUBSCRIPTIONS)),
            followers: Arc::new(Semaphore::new(FOLLOWERS)),
            waiters: Arc::new(Semaphore::new(WAITERS)),
            ending,
        })
    }

    /// The right to a blocking thread.
    async fn thread(&self) -> Result<OwnedSemaphorePermit, Fail> {
        self.permit(&self.threads).await
    }

    /// The same to read one block that is here.
    async fn local_thread(&self) -> Result<OwnedSemaphorePermit, Fail> {
        self.permit(&self.local).await
    }

    async fn permit(&self, of: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit, Fail> {
        let permit = Arc::clone(of).acquire_owned();
        match tokio::time::timeout(THREAD_DEADLINE, permit).await {
            Ok(Ok(permit)) => Ok(permit),
            _ => Err(Fail::new(
                Code::Conflict,
                format!("{THREADS} requests that read or write content are open already"),
            )
            .hint("end some of them; one whose reader has stopped counts, too")),
        }
    }
}

/// All routes, each behind the check of token, `Host` and `Origin`.
pub fn router(state: Arc<State>) -> Router {
    Router::new()
        .route("/healthz", get(node::healthz))
        .route("/readyz", get(node::readyz))
        .route("/metrics", get(node::metrics))
        .route("/v1/id", get(node::id))
        .route("/v1/peers", get(node::peers))
        .route("/v1/status", get(node::status))
        .route("/v1/uplink", post(node::uplink))
        .route("/v1/connect", post(node::connect))
        .route("/v1/ping", post(node::ping))
        .route("/v1/why/{cid}", get(node::why))
        .route("/v1/shutdown", post(node::shutdown))
        .route("/v1/failures/{request}", get(node::failure))
        .route("/v1/waiting/{request}", get(node::waiting))
        .route("/v1/pins", get(pins::list).post(pins::pin))
        .route("/v1/pins/ops", get(pins::ops))
        .route("/v1/pins/export", get(pins::export))
        .route("/v1/pins/recover", post(pins::recover_all))
        .route("/v1/pins/{cid}", get(pins::status).delete(pins::unpin))
        .route("/v1/pins/{cid}/wait", get(pins::wait))
        .route("/v1/pins/{cid}/cancel", post(pins::cancel))
        .route("/v1/pins/{cid}/recover", post(pins::recover_one))
        .route("/v1/pins/{cid}/sync", post(pins::sync))
        .route("/v1/pins/{cid}/update", post(pins::update))
        .route("/v1/block", axum::routing::put(content::block_put))
        .route(
            "/v1/block/{cid}",
            get(content::block_get).delete(content::block_rm),
        )
        .route("/v1/block/{cid}/stat", get(content::block_stat))
        .route("/v1/repo/stat", get(content::repo_stat))
        .route("/v1/repo/verify", post(content::repo_verify))
        .route("/v1/gc", post(space::gc))
        .route("/v1/pubsub/sub", get(pubsub::subscribe))
        .route("/v1/pubsub/topics", get(pubsub::topics))
        .route("/v1/pubsub/peers", get(pubsub::peers))
        .route("/v1/pubsub/why", get(pubsub::why))
        .route("/v1/pubsub/health", get(pubsub::health))
        .route("/v1/keys", get(names::keys))
        .route(
            "/v1/keys/{label}",
            post(names::key_new)
                .put(names::key_import)
                .delete(names::key_rm),
        )
        .route("/v1/follows", get(names::follows))
        .route(
            "/v1/follows/{name}",
            get(names::follow_status)
                .post(names::follow_add)
                .delete(names::follow_rm),
        )
        .route("/v1/follows/{name}/rollback", post(names::follow_rollback))
        .route("/v1/names", get(names::list))
        .route("/v1/names/publish", post(names::publish))
        .route("/v1/names/watch", get(names::watch))
        .route("/v1/names/{name}", get(names::resolve))
        .route("/v1/names/{name}/inspect", get(names::inspect))
        .route(
            "/v1/names/{name}/record",
            get(names::record).put(names::put),
        )
        .route("/v1/streams", get(streams::list))
        .route(
            "/v1/streams/{stream}/about",
            get(streams::about).post(streams::describe),
        )
        .route("/v1/log/verify", post(streams::verify))
        .route("/v1/log/restored", post(streams::restored))
        .route("/v1/log/export", get(streams::export))
        .route("/v1/consumers", get(streams::consumers))
        .route(
            "/v1/consumers/{name}",
            get(streams::consumer).delete(streams::forget),
        )
        .route("/v1/consumers/{name}/claim", post(streams::claim))
        .route("/v1/consumers/{name}/ack", post(streams::ack))
        .route("/v1/consumers/{name}/renew", post(streams::renew))
        .route("/v1/consumers/{name}/leave", post(streams::leave))
        .route("/v1/consumers/{name}/seek", post(streams::seek))
        .route("/v1/consumers/{name}/dead", get(streams::dead))
        .route("/v1/consumers/{name}/dead/retry", post(streams::retry))
        .route("/v1/consumers/{name}/dead/drop", post(streams::drop_letter))
        .route("/v1/cat", get(content::cat))
        .route("/v1/ls", get(content::ls))
        .route("/v1/get", get(content::get))
        .route("/v1/dag/export", get(content::dag_export))
        .layer(DefaultBodyLimit::max(JSON_BYTES))
        // Bounded by the handler, which says how much a message may have.
        .route(
            "/v1/pubsub/pub",
            post(pubsub::publish).layer(DefaultBodyLimit::disable()),
        )
        // Streams: bounded in memory by back-pressure, not in length.
        .route(
            "/v1/streams/{stream}/events",
            get(streams::read)
                .post(streams::append)
                .layer(DefaultBodyLimit::disable()),
        )
        .route(
            "/v1/log/import",
            post(streams::import).layer(DefaultBodyLimit::disable()),
        )
        .route(
            "/v1/add",
            post(content::add).layer(DefaultBodyLimit::disable()),
        )
        .route(
            "/v1/pins/import",
            post(pins::import).layer(DefaultBodyLimit::disable()),
        )
        .route(
            "/v1/dag/import",
            post(content::dag_import).layer(DefaultBodyLimit::disable()),
        )
        .fallback(unknown)
        .method_not_allowed_fallback(unknown)
        .layer(middleware::from_fn_with_state(Arc::clone(&state), guard))
        .with_state(state)
}

async fn guard(Extract(state): Extract<Arc<State>>, mut request: Request, next: Next) -> Response {
    match auth::check(request.headers(), &state.token) {
        Ok(()) => {
            let call = state.calls.begin(request.headers(), &state.ending);
            // Dropped with the answer, or with this future if the client goes away before.
            let guard = call.token().drop_guard();
            request.extensions_mut().insert(call);
            calls::ends_with(next.run(request).await, guard)
        }
        Err((status, fail)) => {
            tracing::warn!(path = request.uri().path(), cause = %fail.cause, "an API request was refused");
            (status, fail).into_response()
        }
    }
}

async fn unknown(request: Request) -> Fail {
    Fail::new(Code::NotFound, format!("the API has no {} {}", request.method(), request.uri().path()))
        .hint("daemon and command line may be of different versions: compare `gemba --version` with the agent in `gemba id`")
}
