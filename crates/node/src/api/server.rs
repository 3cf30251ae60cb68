//! The listener: bounded connections, bounded headers, a deadline for both, and a clean end.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::api::auth::Token;
use crate::client::ApiFile;
use crate::error::{Code, Fail};

/// Connections at the same time; further ones wait in the kernel's queue.
const CONNECTIONS: usize = 256;
/// A client that has not sent its headers by then is cut off (row H7).
const HEADER_DEADLINE: Duration = Duration::from_secs(10);
/// Headers of one request together, in bytes.
const HEADER_BYTES: usize = 32 * 1024;
/// When the daemon ends, every open request ends by itself, with its cause; who has not read that by then is cut off.
const DRAIN: Duration = Duration::from_millis(500);

/// Binds the API's address: loopback only (S2.6, S2.8).
///
/// # Errors
/// Another address than loopback, or one that is in use.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, Fail> {
    if !address.ip().is_loopback() {
        return Err(Fail::new(
            Code::Usage,
            format!("the API would listen on {address}, where other machines reach it"),
        )
        .hint("use a loopback address such as 127.0.0.1:0; from other machines go through ssh"));
    }
    TcpListener::bind(address)
        .await
        .map_err(|e| match e.kind() {
            std::io::ErrorKind::AddrInUse => Fail::new(
                Code::Conflict,
                format!("the API address {address} is in use by another process"),
            )
            .hint("give another one with --api, or port 0 for any free one"),
            _ => Fail::new(
                Code::Failure,
                format!("the API cannot listen on {address}: {e}"),
            ),
        })
}

/// The `api` file: written when the API listens, removed when the daemon ends.
#[derive(Debug)]
pub struct Published(PathBuf);

impl Published {
    /// Writes address and token, and where open files are handed over, readable by the owner only, in one step.
    ///
    /// # Errors
    /// The repository cannot be written.
    pub fn write(
        path: &Path,
        address: SocketAddr,
        token: &Token,
        files: Option<PathBuf>,
    ) -> Result<Self, Fail> {
        let file = ApiFile {
            address,
            token: token.reveal().to_owned(),
            pid: std::process::id(),
            files,
        };
        let text = serde_json::to_vec(&file).map_err(|e| Fail::new(Code::Failure, e))?;
        crate::files::replace(path, &text)?;
        Ok(Self(path.to_owned()))
    }
}

impl Drop for Published {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.0) {
            tracing::warn!(%error, path = %self.0.display(), "the api file could not be removed; commands will find it stale");
        }
    }
}

/// Serves until the daemon ends, then lets open requests finish within a deadline.
pub async fn serve(listener: TcpListener, router: Router, ending: CancellationToken) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let slot = tokio::select! {
            slot = Arc::clone(&slots).acquire_owned() => slot,
            () = ending.cancelled() => break,
        };
        let Ok(slot) = slot else { return };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = ending.cancelled() => break,
        };
        match accepted {
            Ok((stream, _)) => {
                let (router, ending) = (router.clone(), ending.clone());
                tokio::spawn(async move {
                    connection(stream, router, ending).await;
                    drop(slot);
                });
            }
            Err(error) => {
                // Out of file descriptors, mostly: give the others time to end.
                tracing::warn!(%error, "the API could not accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    let all = u32::try_from(CONNECTIONS).unwrap_or(u32::MAX);
    if tokio::time::timeout(2 * DRAIN, slots.acquire_many(all))
        .await
        .is_err()
    {
        tracing::warn!("some API requests were still open and are cut off");
    }
}

async fn connection(stream: TcpStream, router: Router, ending: CancellationToken) {
    let _best_effort = stream.set_nodelay(true);
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_DEADLINE)
        .max_buf_size(HEADER_BYTES.max(8192))
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => {
            if let Err(error) = ended {
                tracing::debug!(%error, "an API connection ended early");
            }
        }
        () = ending.cancelled() => {
            connection.as_mut().graceful_shutdown();
            let _cut_off = tokio::time::timeout(DRAIN, connection).await;
        }
    }
}
