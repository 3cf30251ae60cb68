//! The HTTP API of the daemon, `/v1`: what the command line uses and what integrators may.
//!
//! Loopback only; every request is checked for token, `Host` and `Origin`. Bodies of JSON are bounded, streams have back-pressure. Handlers hold
//! no state of their own: they ask the loop through its [`Handle`], or read the store on a blocking thread.

mod answer;
mod auth;
mod content;
mod node;
mod server;
pub mod types;

use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State as Extract};
use axum::http::HeaderMap;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use gemba_store::Store;

pub use auth::Token;
pub use server::{Published, bind, serve};

use crate::client::REQUEST_ID;
use crate::daemon::Handle;
use crate::error::{Code, Fail};

/// Largest JSON body in bytes (row H7).
const JSON_BYTES: usize = 1024 * 1024;

/// What every handler can reach.
pub struct State {
    /// The loop.
    pub handle: Handle,
    /// The blocks.
    pub store: Store,
    token: Token,
    failures: answer::Failures,
}

impl State {
    /// For one daemon.
    #[must_use]
    pub fn new(handle: Handle, store: Store, token: Token) -> Arc<Self> {
        Arc::new(Self {
            handle,
            store,
            token,
            failures: answer::Failures::default(),
        })
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
        .route("/v1/connect", post(node::connect))
        .route("/v1/ping", post(node::ping))
        .route("/v1/why/{cid}", get(node::why))
        .route("/v1/shutdown", post(node::shutdown))
        .route("/v1/failures/{request}", get(node::failure))
        .route("/v1/pins", get(node::pins).post(node::pin))
        .route("/v1/pins/{cid}", get(node::pin_status).delete(node::unpin))
        .route("/v1/block", axum::routing::put(content::block_put))
        .route(
            "/v1/block/{cid}",
            get(content::block_get).delete(content::block_rm),
        )
        .route("/v1/block/{cid}/stat", get(content::block_stat))
        .route("/v1/repo/stat", get(content::repo_stat))
        .route("/v1/repo/verify", post(content::repo_verify))
        .route("/v1/cat", get(content::cat))
        .route("/v1/ls", get(content::ls))
        .route("/v1/get", get(content::get))
        .route("/v1/dag/export", get(content::dag_export))
        .layer(DefaultBodyLimit::max(JSON_BYTES))
        // Streams: bounded in memory by back-pressure, not in length.
        .route(
            "/v1/add",
            post(content::add).layer(DefaultBodyLimit::disable()),
        )
        .route(
            "/v1/dag/import",
            post(content::dag_import).layer(DefaultBodyLimit::disable()),
        )
        .fallback(unknown)
        .layer(middleware::from_fn_with_state(Arc::clone(&state), guard))
        .with_state(state)
}

async fn guard(Extract(state): Extract<Arc<State>>, request: Request, next: Next) -> Response {
    match auth::check(request.headers(), &state.token) {
        Ok(()) => next.run(request).await,
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

/// The id under which a failure in the middle of the answer is remembered.
fn request_id(headers: &HeaderMap) -> String {
    let id = headers
        .get(REQUEST_ID)
        .and_then(|v| v.to_str().ok())
        .unwrap_or_default();
    if id.len() <= 64 {
        id.to_owned()
    } else {
        String::new()
    }
}
