//! `gemba get`, `cat` and `ls`

use std::path::{Path, PathBuf};

use cid::Cid;
use futures::StreamExt as _;
use gemba_unixfs::BlockSource;
use gemba_unixfs::fs::{ExportOptions, ExportReport};
use hyper::Method;
use serde::Serialize;

use super::output::Content;
use super::progress::Progress;
use super::session::{self, Daemon};
use super::{Context, interrupt};
use crate::api::types::Listed;
use crate::content::car::OrderedSource;
use crate::content::{StoreSource, io_fail, read};
use crate::error::Fail;
use crate::repo::Access;

/// What `get` takes.
#[derive(Debug, Clone, clap::Args)]
pub struct GetArgs {
    /// `CID`, or a path below it
    path: String,
    /// Where to write it; with a slash at the end, into that folder [default: the last name of the path, or the CID]
    #[arg(short, long, value_name = "PATH")]
    output: Option<PathBuf>,
    /// Replace what is there, once the new one is whole
    #[arg(long)]
    overwrite: bool,
    /// Refuse a tree with more bytes than this
    #[arg(long, value_name = "BYTES")]
    max_bytes: Option<u64>,
}

/// What `cat` takes.
#[derive(Debug, Clone, clap::Args)]
pub struct CatArgs {
    /// `CID`, or a path below it
    path: String,
    /// First byte
    #[arg(long, value_name = "BYTES", default_value_t = 0)]
    offset: u64,
    /// Most bytes
    #[arg(long, value_name = "BYTES")]
    length: Option<u64>,
}

/// What `ls` takes.
#[derive(Debug, Clone, clap::Args)]
pub struct LsArgs {
    /// `CID`, or a path below it
    path: String,
    /// Show kind, size and mode of every entry; reads a block of each
    #[arg(short, long)]
    long: bool,
}

#[derive(Serialize)]
struct Got {
    cid: String,
    path: String,
    entries: u64,
    bytes: u64,
    resumed_files: u64,
}

/// Writes a file or folder to disk.
///
/// # Errors
/// What is not there, not sound, or cannot be written.
pub fn get(context: &Context, args: &GetArgs) -> Result<(), Fail> {
    let target = target(args)?;
    let progress = Progress::bytes("getting", None);
    let (cid, report) = match context.daemon()? {
        Some(daemon) => get_through(context, args, daemon, &target, &progress)?,
        None => {
            interrupt::watch();
            let mut source = StoreSource(context.repo(Access::Read)?.store()?);
            let root = read::resolve(&mut source, &read::parse_path(&args.path)?)?;
            (root, export(&mut source, root, args, &target, &progress)?)
        }
    };
    progress.finish();
    let got = Got {
        cid: cid.to_string(),
        path: target.display().to_string(),
        entries: report.entries,
        bytes: report.bytes,
        resumed_files: report.resumed_files,
    };
    context.out.result(&got, |got| {
        format!(
            "saved {} ({} entries, {} bytes)",
            got.path, got.entries, got.bytes
        )
    })
}

/// The daemon sends the blocks in the order in which the export asks for them.
fn get_through(
    context: &Context,
    args: &GetArgs,
    daemon: Daemon,
    target: &Path,
    progress: &Progress,
) -> Result<(Cid, ExportReport), Fail> {
    // An existing target is told before anything is fetched.
    if !args.overwrite && target.symlink_metadata().is_ok() {
        return Err(read::exists(target));
    }
    context.talk(daemon, async |client| {
        let stream = client
            .reader(&session::url("/v1/get", &[("path", &args.path)]))
            .await?;
        let (args, target, progress) = (args.clone(), target.to_owned(), progress.clone());
        session::blocking(move || {
            let (mut source, root) = OrderedSource::new(stream)?;
            export(&mut source, root, &args, &target, &progress).map(|report| (root, report))
        })
        .await
    })
}

fn export(
    source: &mut dyn BlockSource,
    root: Cid,
    args: &GetArgs,
    target: &Path,
    progress: &Progress,
) -> Result<ExportReport, Fail> {
    let mut options = ExportOptions {
        overwrite: args.overwrite,
        ..ExportOptions::default()
    };
    if let Some(limit) = args.max_bytes {
        options.max_bytes = limit;
    }
    read::export(source, root, target, &options, &mut |report| {
        progress.set(report.bytes);
        interrupt::check()
    })
}

fn target(args: &GetArgs) -> Result<PathBuf, Fail> {
    let path = read::parse_path(&args.path)?;
    let name = match path.file_name() {
        Some(name) => String::from_utf8_lossy(name).into_owned(),
        None => path.root().to_string(),
    };
    let Some(output) = &args.output else {
        return Ok(PathBuf::from(name));
    };
    if output.as_os_str().to_string_lossy().ends_with('/') {
        return Ok(output.join(name));
    }
    Ok(output.clone())
}

/// Prints a file, or a part of it.
///
/// # Errors
/// As [`get`].
pub fn cat(context: &Context, args: &CatArgs) -> Result<(), Fail> {
    let path = read::parse_path(&args.path)?;
    let Some(daemon) = context.daemon()? else {
        interrupt::watch();
        let mut store = StoreSource(context.repo(Access::Read)?.store()?);
        let mut source = read::Checked(&mut store, interrupt::check_io);
        let mut out = Content::new();
        read::cat(&mut source, &path, args.offset, args.length, &mut out)?;
        return std::io::Write::flush(&mut out).map_err(io_fail);
    };
    context.talk(daemon, async |client| {
        let (offset, length) = (
            args.offset.to_string(),
            args.length.map(|length| length.to_string()),
        );
        let mut query = vec![("path", args.path.as_str()), ("offset", &offset)];
        query.extend(length.as_deref().map(|length| ("length", length)));
        let mut stream = client.reader(&session::url("/v1/cat", &query)).await?;
        session::blocking(move || {
            let mut out = Content::new();
            std::io::copy(&mut stream, &mut out).map_err(io_fail)?;
            std::io::Write::flush(&mut out).map_err(io_fail)
        })
        .await
    })
}

/// Lists a folder.
///
/// # Errors
/// As [`get`].
pub fn ls(context: &Context, args: &LsArgs) -> Result<(), Fail> {
    let path = read::parse_path(&args.path)?;
    let Some(daemon) = context.daemon()? else {
        interrupt::watch();
        let mut store = StoreSource(context.repo(Access::Read)?.store()?);
        let mut source = read::Checked(&mut store, interrupt::check_io);
        return read::ls(&mut source, &path, args.long, &mut |entry| {
            show(context, args, &entry.into())
        });
    };
    context.talk(daemon, async |client| {
        let url = session::url(
            "/v1/ls",
            &[("path", &args.path), ("long", &args.long.to_string())],
        );
        let mut lines = client.lines::<(), Listed>(Method::GET, &url, None).await?;
        while let Some(entry) = lines.next().await {
            show(context, args, &entry?)?;
        }
        Ok(())
    })
}

fn show(context: &Context, args: &LsArgs, entry: &Listed) -> Result<(), Fail> {
    context.out.entry(entry, |entry| {
        let size = entry.size.map_or("-".to_owned(), |size| size.to_string());
        if !args.long {
            return format!("{} {size} {}", entry.cid, entry.name);
        }
        let kind = entry.kind.as_deref().unwrap_or("other");
        let mode = entry
            .mode
            .map_or("-".to_owned(), |mode| format!("{mode:04o}"));
        let target = entry
            .target
            .as_deref()
            .map(|target| format!(" -> {target}"))
            .unwrap_or_default();
        format!(
            "{kind:9} {mode:>4} {size:>12} {} {}{target}",
            entry.cid, entry.name
        )
    })
}
