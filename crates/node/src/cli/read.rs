//! `gemba get`, `cat` and `ls`

use std::io::Write;
use std::path::{Path, PathBuf};

use cid::Cid;
use futures::StreamExt as _;
use gemba_unixfs::BlockSource;
use gemba_unixfs::fs::{ExportOptions, ExportReport};
use hyper::Method;
use serde::Serialize;

use super::name::into_content;
use super::output::Content;
use super::progress::Progress;
use super::session::{self, Daemon};
use super::{Context, interrupt};
use crate::api::types::Listed;
use crate::content::car::OrderedSource;
use crate::content::read::Kinds;
use crate::content::{StoreSource, io_fail, read};
use crate::error::{Code, Fail};
use crate::repo::Access;
use crate::text;

/// What `get` takes.
#[derive(Debug, Clone, clap::Args)]
pub struct GetArgs {
    /// `CID` or `NAME`, or a path below it
    path: String,
    /// Where to write it; with a slash at the end, into that folder; `-` prints a file [default: the last name of the path, or the CID]
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
    /// `CID` or `NAME`, or a path below it
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
    /// `CID` or `NAME`, or a path below it
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
    let args = &GetArgs {
        path: into_content(context, &args.path)?,
        ..args.clone()
    };
    if args.output.as_deref() == Some(Path::new("-")) {
        return get_to_stdout(context, args);
    }
    let target = target(args)?;
    let progress = Progress::bytes("getting", None);
    let outcome = get_to(context, args, &target, &progress);
    progress.finish();
    let (cid, report) = outcome.map_err(|fail| read::with_partial(fail, &target))?;
    let got = Got {
        cid: cid.to_string(),
        path: target.display().to_string(),
        entries: report.entries,
        bytes: report.bytes,
        resumed_files: report.resumed_files,
    };
    context.out.result(&got, |got| {
        format!(
            "saved {} ({}, {})",
            text::path(&target),
            text::count(got.entries, "entry", "entries"),
            text::bytes(got.bytes)
        )
    })
}

fn get_to(
    context: &Context,
    args: &GetArgs,
    target: &Path,
    progress: &Progress,
) -> Result<(Cid, ExportReport), Fail> {
    if let Some(daemon) = context.daemon()? {
        return get_through(context, args, daemon, target, progress);
    }
    interrupt::watch();
    let mut source = StoreSource(context.repo(Access::Read)?.store()?);
    let root = read::resolve(&mut source, &read::parse_path(&args.path)?)?;
    export(&mut source, root, args, target, progress).map(|report| (root, report))
}

/// `-o -`: a file's bytes, as `cat` prints them.
fn get_to_stdout(context: &Context, args: &GetArgs) -> Result<(), Fail> {
    let whole = CatArgs {
        path: args.path.clone(),
        offset: 0,
        length: None,
    };
    let out = AtMost {
        out: Content::new(),
        left: args.max_bytes.unwrap_or(u64::MAX),
    };
    print(context, &whole, out).map_err(|fail| {
        if fail.code == Code::Usage && fail.cause.ends_with("is a folder") {
            return fail.hint("only a file can be written to standard output: name a place with -o PATH, or make an archive with `gemba dag export`");
        }
        fail
    })
}

/// Refuses more bytes than were allowed.
struct AtMost {
    out: Content,
    left: u64,
}

impl Write for AtMost {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let Some(left) = self.left.checked_sub(bytes.len() as u64) else {
            let fail = Fail::new(
                Code::Usage,
                "the file has more bytes than --max-bytes allows",
            );
            return Err(std::io::Error::other(fail));
        };
        let written = self.out.write(bytes)?;
        self.left = left + (bytes.len() - written) as u64;
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.out.flush()
    }
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
        let getting = async {
            let stream = client
                .reader(&session::url("/v1/get", &[("path", &args.path)]))
                .await?;
            let (args, target, progress) = (args.clone(), target.to_owned(), progress.clone());
            session::blocking(move || {
                let (mut source, root) = OrderedSource::new(stream)?;
                export(&mut source, root, &args, &target, &progress).map(|report| (root, report))
            })
            .await
        };
        let mut told = None;
        client
            .while_telling(getting, |waits| {
                progress.waiting("getting", waits, &mut told);
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
    let args = &CatArgs {
        path: into_content(context, &args.path)?,
        ..args.clone()
    };
    print(context, args, Content::new())
}

fn print(context: &Context, args: &CatArgs, out: impl Write + Send + 'static) -> Result<(), Fail> {
    let path = read::parse_path(&args.path)?;
    let Some(daemon) = context.daemon()? else {
        interrupt::watch();
        let mut store = StoreSource(context.repo(Access::Read)?.store()?);
        let mut source = read::Checked(&mut store, interrupt::check_io);
        let mut out = Progress::beside_output("reading").counted(out);
        read::cat(&mut source, &path, args.offset, args.length, &mut out)?;
        return out.flush().map_err(io_fail);
    };
    context.talk(daemon, async |client| {
        let (offset, length) = (
            args.offset.to_string(),
            args.length.map(|length| length.to_string()),
        );
        let mut query = vec![("path", args.path.as_str()), ("offset", &offset)];
        query.extend(length.as_deref().map(|length| ("length", length)));
        let progress = Progress::beside_output("reading");
        let printing = async {
            let mut stream = client.reader(&session::url("/v1/cat", &query)).await?;
            let mut out = progress.counted(out);
            session::blocking(move || {
                std::io::copy(&mut stream, &mut out).map_err(io_fail)?;
                out.flush().map_err(io_fail)
            })
            .await
        };
        let mut told = None;
        client
            .while_telling(printing, |waits| {
                progress.waiting("reading", waits, &mut told);
            })
            .await
    })
}

/// Lists a folder.
///
/// # Errors
/// As [`get`].
pub fn ls(context: &Context, args: &LsArgs) -> Result<(), Fail> {
    let args = &LsArgs {
        path: into_content(context, &args.path)?,
        ..args.clone()
    };
    let path = read::parse_path(&args.path)?;
    let Some(daemon) = context.daemon()? else {
        interrupt::watch();
        let store = context.repo(Access::Read)?.store()?;
        let mut blocks = StoreSource(store.clone());
        let mut source = read::Checked(&mut blocks, interrupt::check_io);
        let kinds = Kinds::of(args.long, &store);
        return read::ls(&mut source, &path, &kinds, &mut |entry| {
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
        let mut name = text::shown_json(&entry.name, entry.name_bytes.as_deref());
        // As `ls -F`: it can be told from a file, and be typed on.
        if entry.kind.as_deref() == Some("directory") {
            name.push('/');
        }
        if !args.long {
            return format!("{} {size} {name}", entry.cid);
        }
        let kind = entry.kind.as_deref().unwrap_or("other");
        let mode = entry
            .mode
            .map_or("-".to_owned(), |mode| format!("{mode:04o}"));
        let target = entry
            .target
            .as_deref()
            .map(|target| {
                format!(
                    " -> {}",
                    text::shown_json(target, entry.target_bytes.as_deref())
                )
            })
            .unwrap_or_default();
        format!("{kind:9} {mode:>4} {size:>12} {} {name}{target}", entry.cid)
    })
}
