//! Routes that move content: synchronous functions of [`crate::content`] on blocking threads, with back-pressure both ways.

use std::io::{Read, Write};
use std::ops::ControlFlow;
use std::sync::Arc;

use axum::Extension;
use axum::body::Body;
use axum::extract::{Request, State as Extract};
use axum::response::Response;
use futures::StreamExt as _;
use gemba_pins::Kind;
use gemba_unixfs::BlockSource;
use http_body_util::LengthLimitError;
use serde::Deserialize;
use tokio_util::io::{StreamReader, SyncIoBridge};

use super::State;
use super::answer::{self, Lines, typed};
use super::extract::{Json, Path, Query};
use super::types::{
    AddLine, Added, Done, ImportChoice, Imported, Listed, PinStatus, RepoSize, Verified,
};
use crate::content::room::Puts;
use crate::content::{self, parse_cid};
use crate::daemon::flow::readers::FetchSource;
use crate::daemon::room::Waiter;
use crate::daemon::{Call, Command, ending};
use crate::error::{Code, Fail};

type Node = Extract<Arc<State>>;
type OfCall = Extension<Arc<Call>>;

/// Stored blocks that the loop is told of at once.
const TOLD: usize = 256;

/// A path as commands take it: `CID`, `CID/a/b.txt` or `/ipfs/CID/…`.
#[derive(Deserialize)]
pub(super) struct PathQuery {
    path: String,
}

/// Runs synchronous work on a blocking thread.
async fn blocking<T: Send + 'static>(
    state: &State,
    work: impl FnOnce() -> Result<T, Fail> + Send + 'static,
) -> Result<T, Fail> {
    let thread = state.thread().await?;
    let outcome = tokio::task::spawn_blocking(move || {
        let _thread = thread;
        work()
    });
    outcome.await.map_err(|_| {
        Fail::new(Code::Failure, "the request failed inside the daemon")
            .hint("see the daemon's log")
    })?
}

impl State {
    /// Reads from the disk, else from the swarm, while the call lasts.
    fn source(&self, call: &Arc<Call>) -> FetchSource {
        FetchSource::new(self.store.clone(), self.handle.clone(), Arc::clone(call))
    }

    /// Writes, and waits for room as long as the call lasts.
    fn puts(&self, call: &Arc<Call>) -> Puts {
        let waiter = Waiter {
            room: Arc::clone(&self.room),
            store: self.store.clone(),
            call: Some(Arc::clone(call)),
        };
        Puts::with_room(self.store.clone(), Arc::new(waiter))
    }

    /// Tells the loop of blocks that were put past it: peers, pins and readers may be waiting for them.
    fn tell_stored(&self, cids: &[cid::Cid]) -> Result<(), Fail> {
        cids.chunks(TOLD)
            .try_for_each(|cids| self.handle.tell_blocking(Command::Stored(cids.to_vec())))
    }

    /// Pins what was just stored, from a blocking thread, and waits until that is durable.
    fn pin_blocking(&self, call: &Call, cid: cid::Cid, name: Option<String>) -> Result<(), Fail> {
        let view = self.handle.ask_blocking(|reply| Command::Pin {
            cid,
            kind: Kind::Recursive,
            name,
            reply,
        })??;
        let mut view = view;
        let whole = async {
            let ended = |status: &PinStatus| {
                matches!(status.status.as_str(), "pinned" | "pin_error" | "unpinned")
            };
            let last = view.wait_for(ended).await;
            last.map(|status| status.clone()).map_err(|_| ending())
        };
        match tokio::runtime::Handle::current().block_on(call.within(whole)) {
            Ok(status) if status.status == "pinned" => Ok(()),
            Ok(status) => Err(Fail::new(
                Code::Failure,
                format!(
                    "{cid} was stored and could not be pinned: {}",
                    status.cause.as_deref().unwrap_or(&status.status)
                ),
            )),
            Err(fail) if fail.code == Code::NoDaemon => {
                Err(fail.hint("the pin stays wanted; it goes on when the daemon is back"))
            }
            Err(fail) => Err(fail),
        }
    }
}

/// The request's body as a blocking reader, until the call is over. What breaks it off is the client's doing.
pub(super) fn body_reader(body: Body, call: Arc<Call>) -> impl Read + Send {
    let broken = |e: axum::Error| {
        Fail::new(
            Code::Usage,
            format!("the upload broke off: {}", root_cause(&e)),
        )
        .hint("what came before it was kept; send it again")
    };
    let pieces = futures::stream::unfold(body.into_data_stream(), move |mut pieces| {
        let call = Arc::clone(&call);
        async move {
            let next = async { pieces.next().await.transpose().map_err(broken) };
            let piece = call.within(next).await.transpose()?;
            Some((piece.map_err(std::io::Error::other), pieces))
        }
    });
    SyncIoBridge::new(StreamReader::new(Box::pin(pieces)))
}

/// The innermost error: the layers above it only say that there is one.
fn root_cause(error: &axum::Error) -> &(dyn std::error::Error + 'static) {
    let mut cause: &(dyn std::error::Error + 'static) = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause
}

// Blocks.

pub(super) async fn block_get(
    Extract(state): Node,
    Extension(call): OfCall,
    Path(cid): Path<String>,
) -> Result<Response, Fail> {
    let cid = parse_cid(&cid)?;
    let data = match local_block(&state, cid).await? {
        Some(data) => data,
        None => {
            let mut source = state.source(&call);
            let get = move || source.get(&cid).map_err(content::source_fail);
            blocking(&state, get).await?.data().clone()
        }
    };
    Ok(typed("application/vnd.ipld.raw", Body::from(data)))
}

/// A block that is here and whole. It waits for no request but its own kind, however many wait for the network.
async fn local_block(state: &State, cid: cid::Cid) -> Result<Option<bytes::Bytes>, Fail> {
    let is_event = cid.codec() == gemba_block::codec::DAG_CBOR;
    if !state.store.has(&cid) && !is_event {
        return Ok(None);
    }
    let (thread, store) = (state.local_thread().await?, state.store.clone());
    let log = Arc::clone(state.events.log());
    let read = tokio::task::spawn_blocking(move || {
        let _thread = thread;
        // A batch of events exists once, in the log.
        match store.get(&cid)? {
            None if is_event => Ok(log
                .block(&cid)
                .ok()
                .flatten()
                .map(|block| block.data().clone())),
            data => Ok::<_, gemba_store::StoreError>(data),
        }
    });
    // What cannot be read is for the longer way, which has it repaired.
    Ok(read.await.map_or(None, |read| read.unwrap_or_default()))
}

pub(super) async fn block_stat(
    Extract(state): Node,
    Extension(call): OfCall,
    Path(cid): Path<String>,
) -> Result<Json<serde_json::Value>, Fail> {
    let cid = parse_cid(&cid)?;
    let bytes = match state.store.size(&cid) {
        Some(bytes) => bytes,
        None => {
            let mut source = state.source(&call);
            let get = move || source.get(&cid).map_err(content::source_fail);
            blocking(&state, get).await?.len() as u64
        }
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
    Extension(call): OfCall,
    Query(query): Query<BlockQuery>,
    body: Body,
) -> Result<Json<serde_json::Value>, Fail> {
    let data = axum::body::to_bytes(body, gemba_block::MAX_BLOCK_BYTES)
        .await
        .map_err(
            |e| match root_cause(&e).downcast_ref::<LengthLimitError>() {
                Some(_) => Fail::new(Code::Usage, "the block is larger than 2 MiB")
                    .hint("files are split by `gemba add`"),
                None => Fail::new(
                    Code::Usage,
                    format!("the upload broke off: {}", root_cause(&e)),
                )
                .hint("nothing of it was kept; send it again"),
            },
        )?;
    let putting = Arc::clone(&state);
    blocking(&putting, move || {
        let codec = query.codec.as_deref().unwrap_or("raw");
        let block =
            content::blocks::make(data, codec, query.mhtype.as_deref().unwrap_or("sha2-256"))?;
        // Held until the pin is recorded.
        let _guard = state.store.guard();
        content::blocks::put(&state.puts(&call), &block)?;
        state.tell_stored(&[*block.cid()])?;
        if query.pin {
            state.pin_blocking(&call, *block.cid(), None)?;
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
    // Before the pins are asked for: whoever pins the block after that touches it, and what is touched under a guard stays.
    let guard = state.store.guard();
    let pins = state.handle.ask(Command::DesiredSet).await??;
    let removing = Arc::clone(&state);
    blocking(&removing, move || {
        let removed = content::blocks::remove(&state.store, &pins, &cid);
        drop(guard);
        removed.map(|()| Json(Done { ok: true }))
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

pub(super) async fn repo_verify(Extract(state): Node, Extension(call): OfCall) -> Response {
    answer::lines_blocking(&Arc::clone(&state), &call, move |lines| {
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
    // What is repaired from now on is put under this guard and stays; what was repaired before is there again.
    let _guard = state.store.guard();
    let damaged: Vec<cid::Cid> = report
        .corrupt
        .iter()
        .filter_map(|place| place.cid)
        .filter(|cid| !state.store.has(cid))
        .collect();
    state
        .store
        .delete_many(&damaged)
        .map_err(|e| crate::repo::store_fail(&e))?;
    let pins = state.handle.ask_blocking(Command::DesiredSet)??;
    let struck = content::pins::not_whole(&state.store, &pins)?;
    let count = struck.len() as u64;
    state
        .handle
        .ask_blocking(|reply| Command::Scrubbed(struck, reply))?;
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
    Extension(call): OfCall,
    Query(query): Query<CatQuery>,
) -> Response {
    let source = state.source(&call);
    answer::bytes_blocking(
        "application/octet-stream",
        "cat",
        &call,
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

pub(super) async fn ls(
    Extract(state): Node,
    Extension(call): OfCall,
    Query(query): Query<LsQuery>,
) -> Response {
    let mut source = state.source(&call);
    answer::lines_blocking(&Arc::clone(&state), &call, move |lines| {
        let path = content::read::parse_path(&query.path)?;
        let kinds = content::read::Kinds::of(query.long, &state.store);
        content::read::ls(&mut source, &path, &kinds, &mut |entry| {
            lines.send(&Listed::from(entry))
        })
    })
    .await
}

/// What a path names as a CAR in the order in which an exporter needs the blocks.
pub(super) async fn get(
    Extract(state): Node,
    Extension(call): OfCall,
    Query(query): Query<PathQuery>,
) -> Response {
    let source = state.source(&call);
    answer::bytes_blocking(
        "application/vnd.ipld.car",
        "get",
        &call,
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
    Extension(call): OfCall,
    Query(query): Query<CidQuery>,
) -> Result<Response, Fail> {
    let cid = parse_cid(&query.cid)?;
    let source = state.source(&call);
    Ok(answer::bytes_blocking(
        "application/vnd.ipld.car; version=1; order=dfs; dups=n",
        "dag export",
        &call,
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
    Extension(call): OfCall,
    Query(query): Query<ImportQuery>,
    request: Request,
) -> Response {
    let mut body = body_reader(request.into_body(), Arc::clone(&call));
    let (of, calling) = (Arc::clone(&state), Arc::clone(&call));
    answer::lines_of_upload(&of, &calling, answer::status_of_upload, move |lines| {
        // Nothing of it is collected before the pins hold it.
        let _guard = state.store.guard();
        let imported = content::car::import_telling(
            &mut body,
            &state.puts(&call),
            &mut |_bytes| call.check(),
            &mut |cids| state.tell_stored(cids),
        )?;
        if query.pin_roots {
            for root in &imported.roots {
                state.pin_blocking(&call, *root, None)?;
            }
        }
        lines.send(&Imported::from(&imported))
    })
    .await
}

// Adding.

pub(super) async fn add(
    Extract(state): Node,
    Extension(call): OfCall,
    Query(choice): Query<ImportChoice>,
    Query(hands): Query<Hands>,
    request: Request,
) -> Response {
    let mut body = body_reader(request.into_body(), Arc::clone(&call));
    let (of, calling) = (Arc::clone(&state), Arc::clone(&call));
    answer::lines_of_upload(&of, &calling, answer::status_of_upload, move |lines| {
        let profile = choice.profile()?;
        let taker = hands.handover.and_then(|name| state.desk.claim(&name));
        let mut entries = Entries {
            lines,
            state: &state,
        };
        // Nothing of it is collected before the pin holds it.
        let _guard = state.store.guard();
        let root = content::add::add(
            Some(&state.puts(&call)),
            &profile,
            &mut entries,
            |visitor| {
                content::tree_stream::read_tree(&mut body, visitor, &mut || {
                    let taker = taker.as_ref().ok_or_else(|| {
                        Fail::new(Code::Usage, "a file that was handed over by nobody")
                            .hint("docs/api-tree-stream.md says how files are handed over")
                    })?;
                    Ok(Box::new(Handed {
                        file: taker.take()?,
                        lines: lines.clone(),
                        untold: 0,
                    }))
                })
            },
        )?;
        if choice.pin {
            state.pin_blocking(&call, root.cid, choice.name)?;
        }
        Ok(())
    })
    .await
}

#[derive(Deserialize)]
pub(super) struct Hands {
    /// The name under which open files are handed over.
    handover: Option<String>,
}

/// A file that was handed over, from where its descriptor stands: the beginning. Its caller sees no bytes pass, so he is told of them.
struct Handed {
    file: std::fs::File,
    lines: Lines,
    untold: u64,
}

/// So often, in bytes: a line costs little, and a bar moves.
const TELL: u64 = 8 << 20;

impl std::io::Read for Handed {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.file.read(buffer)?;
        self.untold += read as u64;
        if self.untold >= TELL || (read == 0 && self.untold > 0) {
            let read = std::mem::take(&mut self.untold);
            // Fails when the caller has gone, which ends the add.
            self.lines
                .send(&AddLine::Read { read })
                .map_err(std::io::Error::other)?;
        }
        Ok(read)
    }
}

struct Entries<'a> {
    lines: &'a Lines,
    state: &'a State,
}

impl content::add::AddObserver for Entries<'_> {
    fn entry(&mut self, entry: &content::add::Entry) -> Result<(), Fail> {
        debug_assert!(self.state.store.has(&entry.cid) || entry.cid.hash().code() == 0);
        self.lines.send(&Added::from(entry))
    }

    fn stored(&mut self, cids: &[cid::Cid]) -> Result<(), Fail> {
        self.state.tell_stored(cids)
    }
}
