//! iroh-blobs over loopback behind two commands, so that `interop/run --measure` can put its numbers beside the others'.
//!
//! ```text
//! gemba-interop-iroh-blobs serve FILE_OR_FOLDER --store FOLDER    until standard input ends
//! gemba-interop-iroh-blobs fetch TICKET --store FOLDER
//! ```
//!
//! - `serve` copies what it serves into its store and prints the ticket, then one line of JSON with what the import took. When
//!   standard input has ended it prints one with what it used since, while it served.
//! - `fetch` downloads from disk to disk into a store, names it by a tag (what is a pin elsewhere) and prints one line of JSON.
//!   The connection is there before the time begins.
//! - iroh-blobs is used as it comes: default options, the program built as gemba is. It does not sync what it downloads;
//!   `synced_seconds` holds the same time plus that for committing and syncing the store, to compare with a durable pin.
//! - Only 127.0.0.1 is bound; there are no relays and no discovery, and the ticket holds that one address.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "the report is what this program is for"
)]

mod failure;
mod used;

use failure::{Context, Failure, Outcome};
use iroh::endpoint::presets;
use iroh::protocol::Router;
use iroh::{Endpoint, EndpointAddr, RelayMode};
use iroh_blobs::api::TempTag;
use iroh_blobs::format::collection::Collection;
use iroh_blobs::store::fs::FsStore;
use iroh_blobs::ticket::BlobTicket;
use iroh_blobs::{ALPN, BlobsProtocol, HashAndFormat};
use serde_json::{Value, json};
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};
use tokio::io::AsyncReadExt;
use tokio::task::JoinSet;

const USAGE: &str = "\
usage: gemba-interop-iroh-blobs serve FILE_OR_FOLDER --store FOLDER    until standard input ends
       gemba-interop-iroh-blobs fetch TICKET --store FOLDER";

/// How many files are imported at once.
const IMPORTS: usize = 16;

#[tokio::main]
async fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let result = match words[..] {
        ["serve", from, "--store", store] => serve(Path::new(from), Path::new(store)).await,
        ["fetch", ticket, "--store", store] => fetch(ticket, Path::new(store)).await,
        _ => Err(Failure::new(USAGE)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("iroh-blobs: {failure}");
            ExitCode::from(2)
        }
    }
}

async fn serve(from: &Path, store_dir: &Path) -> Outcome {
    let store = open(store_dir).await?;
    let step = Step::begin()?;
    let (content, bytes) = import(&store, from).await?;
    let import = step.end(&store, store_dir, bytes).await?;

    let endpoint = endpoint().await?;
    let address = endpoint.bound_sockets().into_iter();
    let address = address.fold(EndpointAddr::new(endpoint.id()), EndpointAddr::with_ip_addr);
    let ticket = BlobTicket::new(address, content.hash, content.format);
    let router = Router::builder(endpoint)
        .accept(ALPN, BlobsProtocol::new(&store, None))
        .spawn();
    used::reset_peak()?;
    let cpu = used::cpu()?;
    say(&ticket)?;
    say(&import)?;

    tokio::io::stdin()
        .read_to_end(&mut Vec::new())
        .await
        .context(|| "waiting for the end of standard input".into())?;
    say(&json!({
        "cpu_seconds": (used::cpu()? - cpu).as_secs_f64(),
        "rss_max_bytes": used::peak()?,
    }))?;
    // Closes the store too.
    router
        .shutdown()
        .await
        .context(|| "ending the server".into())
}

async fn fetch(ticket: &str, store_dir: &Path) -> Outcome {
    let ticket: BlobTicket = ticket.parse().context(|| "reading the ticket".into())?;
    let content = ticket.hash_and_format();
    let store = open(store_dir).await?;
    let endpoint = endpoint().await?;
    let connection = endpoint
        .connect(ticket.addr().clone(), ALPN)
        .await
        .context(|| "connecting".into())?;

    let step = Step::begin()?;
    let stats = store
        .remote()
        .fetch(connection, content)
        .complete()
        .await
        .context(|| "fetching".into())?;
    store
        .tags()
        .create(content)
        .await
        .context(|| "making a tag".into())?;
    let report = step
        .end(&store, store_dir, stats.payload_bytes_read)
        .await?;

    let local = store.remote().local(content).await;
    if !local
        .context(|| "looking at what came".into())?
        .is_complete()
    {
        return Err(Failure::new("what came is not whole"));
    }
    endpoint.close().await;
    store
        .shutdown()
        .await
        .context(|| "closing the store".into())?;
    say(&report)
}

// --- parts of both

async fn open(dir: &Path) -> Outcome<FsStore> {
    fs::create_dir_all(dir).context(|| format!("making {}", dir.display()))?;
    FsStore::load(dir)
        .await
        .context(|| format!("opening the store in {}", dir.display()))
}

async fn endpoint() -> Outcome<Endpoint> {
    Endpoint::builder(presets::Minimal)
        .relay_mode(RelayMode::Disabled)
        .clear_address_lookup()
        .clear_ip_transports()
        .bind_addr((Ipv4Addr::LOCALHOST, 0))
        .context(|| "choosing 127.0.0.1".into())?
        .bind()
        .await
        .context(|| "binding 127.0.0.1".into())
}

/// Copies a file, or a folder as one collection, into the store and gives it a tag. Returns how many bytes the files have.
async fn import(store: &FsStore, from: &Path) -> Outcome<(HashAndFormat, u64)> {
    // The store takes absolute paths only.
    let from = from.canonicalize().context(|| from.display().to_string())?;
    let (tag, bytes) = if from.is_dir() {
        import_folder(store, &from).await?
    } else {
        import_file(store, &from).await?
    };
    let content = tag.hash_and_format();
    store
        .tags()
        .create(content)
        .await
        .context(|| "making a tag".into())?;
    Ok((content, bytes))
}

async fn import_file(store: &FsStore, path: &Path) -> Outcome<(TempTag, u64)> {
    let doing = || format!("importing {}", path.display());
    let bytes = fs::metadata(path).context(doing)?.len();
    let tag = store.add_path(path).temp_tag().await.context(doing)?;
    Ok((tag, bytes))
}

async fn import_folder(store: &FsStore, folder: &Path) -> Outcome<(TempTag, u64)> {
    let mut files = Vec::new();
    list(folder, &mut files)?;
    let mut running = JoinSet::new();
    // The temporary tags keep the files until the collection holds them.
    let mut imported = Vec::new();
    for path in files {
        if running.len() >= IMPORTS {
            imported.extend(one_of(&mut running).await?);
        }
        let store = store.clone();
        running.spawn(async move {
            let (tag, bytes) = import_file(&store, &path).await?;
            Ok((path, tag, bytes))
        });
    }
    while let Some(file) = one_of(&mut running).await? {
        imported.push(file);
    }
    imported.sort_by(|(a, ..), (b, ..)| a.cmp(b));
    let mut collection = Collection::default();
    for (path, tag, _) in &imported {
        let name = path.strip_prefix(folder).ok().and_then(Path::to_str);
        let name = name.context(|| format!("{} is no UTF-8 name", path.display()))?;
        collection.push(name.into(), tag.hash());
    }
    let bytes = imported.iter().map(|(.., bytes)| bytes).sum();
    let tag = collection
        .store(store)
        .await
        .context(|| "storing the collection".into())?;
    Ok((tag, bytes))
}

async fn one_of<T: 'static>(running: &mut JoinSet<Outcome<T>>) -> Outcome<Option<T>> {
    running
        .join_next()
        .await
        .transpose()
        .context(|| "importing".into())?
        .transpose()
}

/// All files below a folder.
fn list(folder: &Path, into: &mut Vec<PathBuf>) -> Outcome {
    let doing = || format!("reading {}", folder.display());
    for entry in fs::read_dir(folder).context(doing)? {
        let path = entry.context(doing)?.path();
        if path.is_dir() {
            list(&path, into)?;
        } else {
            into.push(path);
        }
    }
    Ok(())
}

/// A timed step.
struct Step {
    begun: Instant,
    cpu: Duration,
}

impl Step {
    fn begin() -> Outcome<Self> {
        Ok(Self {
            begun: Instant::now(),
            cpu: used::cpu()?,
        })
    }

    /// What the step took, as iroh-blobs leaves it and with its store synced.
    async fn end(self, store: &FsStore, dir: &Path, bytes: u64) -> Outcome<Value> {
        let (took, cpu) = (self.begun.elapsed(), used::cpu()? - self.cpu);
        sync(store, dir).await?;
        Ok(json!({
            "seconds": took.as_secs_f64(),
            "synced_seconds": self.begun.elapsed().as_secs_f64(),
            "bytes": bytes,
            "cpu_seconds": cpu.as_secs_f64(),
            "rss_max_bytes": used::peak()?,
        }))
    }
}

/// Has the database of a store commit and syncs all files of the store.
async fn sync(store: &FsStore, dir: &Path) -> Outcome {
    store
        .sync_db()
        .await
        .context(|| "committing the database".into())?;
    let mut files = Vec::new();
    list(dir, &mut files)?;
    for path in files {
        match File::open(&path).and_then(|file| file.sync_all()) {
            // The store removes files that only unfinished blobs have.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            result => result.context(|| format!("syncing {}", path.display()))?,
        }
    }
    Ok(())
}

/// Prints a line that the other side of a pipe sees at once.
fn say(line: &impl std::fmt::Display) -> Outcome {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")
        .and_then(|()| out.flush())
        .context(|| "printing".into())
}
