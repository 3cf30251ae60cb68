//! Routes that move content: synchronous functions of [`crate::content`] on blocking threads, with back-pressure both ways.

use std::io::{Read, Write};
use std::ops::ControlFlow;
use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, Query, Request, State as Extract};
use axum::http::HeaderMap;
use axum::response::Response;
use futures::TryStreamExt as _;
use gemba_pins::Kind;
use gemba_store::Store;
use gemba_unixfs::BlockSource;
use serde::Deserialize;
use tokio_util::io::{StreamReader, SyncIoBridge};

use super::answer::{self, Lines, typed};
use super::types::{Added, Done, ImportChoice, Imported, Listed, RepoSize, Verified};
use super::{State, request_id};
use crate::content::{self, parse_cid};
use crate::daemon::Command;
use crate::daemon::flow::readers::FetchSource;
use crate::error::{Code, Fail};

type Node = Extract<Arc<State>>;

/// A path as commands take it: `CID`, `CID/a/b.txt` or `/ipfs/CID/…`.
#[derive(Deserialize)]
pub(super) struct PathQuery {
    path: String,
}

/// Runs synchronous work on a blocking thread.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Fail> + Send + 'static,
) -> Result<T, Fail> {
    let outcome = tokio::task::spawn_blocking(work).await;
    outcome.map_err(|_| {
        Fail::new(Code::Failure, "the request failed inside the daemon")
            .hint("see the daemon's log")
    })?
}

impl State {
    /// Reads from the disk, else from the swarm.
    fn source(&self) -> FetchSource {
        FetchSource::new(self.store.clone(), self.handle.clone())
    }

    /// Tells the loop of blocks that were put past it: peers may be waiting for them.
    fn tell_stored(&self, cid: cid::Cid) -> Result<(), Fail> {
        self.handle.tell_blocking(Command::Stored(vec![cid]))
    }

    /// Pins what was just stored, from a blocking thread, and waits until that is durable.
    fn pin_blocking(&self, cid: cid::Cid, name: Option<String>) -> Result<(), Fail> {
        let view = self.handle.ask_blocking(|reply| Command::Pin {
            cid,
            kind: Kind::Recursive,
            name,
            reply,
        })??;
        let mut view = view;
        let whole = tokio::runtime::Handle::current().block_on(view.wait_for(|status| {
            matches!(status.status.as_str(), "pinned" | "pin_error" | "unpinned")
        }));
        match whole {
            Ok(status) if status.status == "pinned" => Ok(()),
            Ok(status) => Err(Fail::new(
                Code::Failure,
                format!(
                    "{cid} was stored and could not be pinned: {}",
                    status.cause.as_deref().unwrap_or(&status.status)
                ),
            )),
            Err(_) => Err(Fail::new(Code::NoDaemon, "the daemon is ending")
                .hint("the pin stays wanted; it goes on when the daemon is back")),
        }
    }
}

/// The request's body as a blocking reader.
fn body_reader(body: Body) -> impl Read + Send {
    let pieces = body.into_data_stream().map_err(std::io::Error::other);
    SyncIoBridge::new(StreamReader::new(Box::pin(pieces)))
}

// Blocks.

pub(super) async fn block_get(
    Extract(state): Node,
    Path(cid): Path<String>,
) -> Result<Response, Fail> {
    let cid = parse_cid(&cid)?;
    let block = blocking(move || state.source().get(&cid).map_err(content::source_fail)).await?;
    Ok(typed(
        "application/vnd.ipld.raw",
        Body::from(block.data().clone()),
    ))
}

pub(super) async fn block_stat(
    Extract(state): Node,
    Path(cid): Path<String>,
) -> Result<Json<serde_json::Value>, Fail> {
    let cid = parse_cid(&cid)?;
    let bytes = match state.store.size(&cid) {
        Some(bytes) => bytes,
        None => blocking(move || state.source().get(&cid).map_err(content::source_fail))
            .await?
            .len() as u64,
    };
    Ok(Json(
        serde_json::json!({ "cid": cid.to_string(), "size": bytes }),
    ))
}

#[derive(Deserialize)]
pub(super) struct BlockQuery {
    #[serde(default)]
    codec: Option<String>,
    #[serde(default)]
    mhtype: Option<String>,
    #[serde(default)]
    pin: bool,
}

pub(super) async fn block_put(
    Extract(state): Node,
    Query(query): Query<BlockQuery>,
    body: Body,
) -> Result<Json<serde_json::Value>, Fail> {
    let data = axum::body::to_bytes(body, gemba_block::MAX_BLOCK_BYTES)
        .await
        .map_err(|_| {
            Fail::new(Code::Usage, "the block is larger than 2 MiB")
                .hint("files are split by `gemba add`")
        })?;
    blocking(move || {
        let codec = query.codec.as_deref().unwrap_or("raw");
        let block =
            content::blocks::make(data, codec, query.mhtype.as_deref().unwrap_or("sha2-256"))?;
        content::blocks::put(&state.store, &block)?;
        state.tell_stored(*block.cid())?;
        if query.pin {
            state.pin_blocking(*block.cid(), None)?;
        }
        Ok(Json(
            serde_json::json!({ "cid": block.cid().to_string(), "size": block.len() }),
        ))
    })
    .await
}

pub(super) async fn block_rm(
    Extract(state): Node,
    Path(cid): Path<String>,
) -> Result<Json<Done>, Fail> {
    let cid = parse_cid(&cid)?;
    let pins = state.handle.ask(Command::DesiredSet).await?;
    blocking(move || {
        content::blocks::remove(&state.store, &pins, &cid).map(|()| Json(Done { ok: true }))
    })
    .await
}

// The repository.

pub(super) async fn repo_stat(Extract(state): Node) -> Result<Json<RepoSize>, Fail> {
    let stat = state.store.stat();
    Ok(Json(RepoSize {
        blocks: stat.blocks,
        bytes: stat.bytes,
        disk_bytes: stat.disk_bytes,
    }))
}

pub(super) async fn repo_verify(Extract(state): Node) -> Response {
    answer::lines_blocking(move |lines| {
        let report = state
            .store
            .verify(|progress| match lines.send(&Verified::from(progress)) {
                Ok(()) => ControlFlow::Continue(()),
                Err(_) => ControlFlow::Break(()),
            });
        let report = report.map_err(|e| crate::repo::store_fail(&e))?;
        let struck = forget_damaged(&state, &report)?;
        lines.send(&Verified {
            pins_struck: struck,
            ..Verified::from(report)
        })
    })
    .await
}

/// A damaged block is no block, and a pin that misses one is not whole: it is fetched anew. How many pins were struck out.
fn forget_damaged(state: &State, report: &gemba_store::VerifyReport) -> Result<u64, Fail> {
    let damaged: Vec<cid::Cid> = report
        .corrupt
        .iter()
        .filter_map(|place| place.cid)
        .collect();
    state
        .store
        .delete_many(&damaged)
        .map_err(|e| crate::repo::store_fail(&e))?;
    let pins = state.handle.ask_blocking(Command::DesiredSet)?;
    let struck = content::pins::not_whole(&state.store, &pins);
    let count = struck.len() as u64;
    state
        .handle
        .ask_blocking(|reply| Command::Struck(struck, reply))?;
    Ok(count)
}

// Files.

#[derive(Deserialize)]
pub(super) struct CatQuery {
    path: String,
    #[serde(default)]
    offset: u64,
    #[serde(default)]
    length: Option<u64>,
}

pub(super) async fn cat(
    Extract(state): Node,
    headers: HeaderMap,
    Query(query): Query<CatQuery>,
) -> Response {
    let source = state.source();
    answer::bytes_blocking(
        "application/octet-stream",
        "cat",
        request_id(&headers),
        Arc::clone(&state),
        move |out| {
            let mut source = source;
            let path = content::read::parse_path(&query.path)?;
            content::read::cat(&mut source, &path, query.offset, query.length, out).map(drop)
        },
    )
    .await
}

#[derive(Deserialize)]
pub(super) struct LsQuery {
    path: String,
    #[serde(default)]
    long: bool,
}

pub(super) async fn ls(Extract(state): Node, Query(query): Query<LsQuery>) -> Response {
    answer::lines_blocking(move |lines| {
        let path = content::read::parse_path(&query.path)?;
        let kinds = content::read::Kinds::of(query.long, &state.store);
        content::read::ls(&mut state.source(), &path, &kinds, &mut |entry| {
            lines.send(&Listed::from(entry))
        })
    })
    .await
}

/// What a path names as a CAR in the order in which an exporter needs the blocks.
pub(super) async fn get(
    Extract(state): Node,
    headers: HeaderMap,
    Query(query): Query<PathQuery>,
) -> Response {
    let source = state.source();
    answer::bytes_blocking(
        "application/vnd.ipld.car",
        "get",
        request_id(&headers),
        Arc::clone(&state),
        move |out| {
            let mut source = source;
            let path = content::read::parse_path(&query.path)?;
            let root = content::read::resolve(&mut source, &path)?;
            content::car::export_in_order(&mut source, root, out).map(drop)
        },
    )
    .await
}

// DAGs.

#[derive(Deserialize)]
pub(super) struct CidQuery {
    cid: String,
}

pub(super) async fn dag_export(
    Extract(state): Node,
    headers: HeaderMap,
    Query(query): Query<CidQuery>,
) -> Result<Response, Fail> {
    let cid = parse_cid(&query.cid)?;
    let source = state.source();
    Ok(answer::bytes_blocking(
        "application/vnd.ipld.car; version=1; order=dfs; dups=n",
        "dag export",
        request_id(&headers),
        Arc::clone(&state),
        move |out: &mut dyn Write| {
            let mut source = source;
            content::car::export(&mut source, cid, out).map(drop)
        },
    )
    .await)
}

#[derive(Deserialize)]
pub(super) struct ImportQuery {
    #[serde(default = "yes")]
    pin_roots: bool,
}

fn yes() -> bool {
    true
}

pub(super) async fn dag_import(
    Extract(state): Node,
    Query(query): Query<ImportQuery>,
    request: Request,
) -> Response {
    let mut body = body_reader(request.into_body());
    answer::lines_blocking(move |lines| {
        let _guard = state.store.guard();
        let imported = content::car::import(&mut body, &state.store, &mut |_bytes| Ok(()))?;
        for root in &imported.roots {
            if query.pin_roots {
                state.pin_blocking(*root, None)?;
            }
            state.tell_stored(*root)?;
        }
        lines.send(&Imported::from(&imported))
    })
    .await
}

// Adding.

pub(super) async fn add(
    Extract(state): Node,
    Query(choice): Query<ImportChoice>,
    request: Request,
) -> Response {
    let mut body = body_reader(request.into_body());
    answer::lines_blocking(move |lines| {
        let profile = choice.profile()?;
        let mut entries = Entries {
            lines,
            store: &state.store,
        };
        // Nothing of it is collected before the pin holds it.
        let _guard = state.store.guard();
        let root = content::add::add(Some(&state.store), &profile, &mut entries, |visitor| {
            content::tree_stream::read_tree(&mut body, visitor)
        })?;
        if choice.pin {
            state.pin_blocking(root.cid, choice.name)?;
        }
        state.tell_stored(root.cid)
    })
    .await
}

struct Entries<'a> {
    lines: &'a Lines,
    store: &'a Store,
}

impl content::add::AddObserver for Entries<'_> {
    fn entry(&mut self, entry: &content::add::Entry) -> Result<(), Fail> {
        debug_assert!(self.store.has(&entry.cid) || entry.cid.hash().code() == 0);
        self.lines.send(&Added::from(entry))
    }
}
