//! `gemba add`

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use futures::StreamExt as _;
use gemba_unixfs::Meta;
use serde::Serialize;

use super::progress::Progress;
use super::session::{self, Daemon};
use super::{Context, interrupt, output};
use crate::api::types::{AddLine, Added, ImportChoice};
use crate::client::Client;
use crate::content::add::{AddObserver, Checked, Entry, add};
use crate::content::folder::{self, LeftOut, TreeVisitor, WalkOptions};
use crate::content::pins;
use crate::content::room::Puts;
use crate::content::tree_stream::TreeWriter;
use crate::error::Fail;
use crate::repo::Access;
use crate::text;

/// What `add` takes.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Files and folders; `-` is standard input
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Print CIDs only
    #[arg(short, long)]
    quiet: bool,
    /// Print only the CID of each root
    #[arg(short = 'Q', long)]
    quieter: bool,
    /// How files become a DAG: unixfs-v1-2025 (default) or unixfs-v0-2015
    #[arg(long, value_name = "NAME")]
    profile: Option<String>,
    /// CID version, 0 or 1; 1 brings raw leaves with it
    #[arg(long, value_name = "N")]
    cid_version: Option<u8>,
    /// Leaves as raw blocks
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    raw_leaves: Option<bool>,
    /// How files are cut: size-N, in bytes
    #[arg(long, value_name = "CHUNKER")]
    chunker: Option<String>,
    /// Most links of an inner node of a file
    #[arg(long, value_name = "N")]
    max_links: Option<usize>,
    /// Put everything into one folder
    #[arg(short, long)]
    wrap: bool,
    /// Take names that begin with a dot
    #[arg(short = 'H', long)]
    hidden: bool,
    /// Keep permission bits
    #[arg(long)]
    preserve_mode: bool,
    /// Keep modification times
    #[arg(long)]
    preserve_mtime: bool,
    /// Name of the pin
    #[arg(long, value_name = "PIN")]
    name: Option<String>,
    /// Pin the root
    #[arg(long, value_name = "BOOL", default_value_t = true, num_args = 0..=1, require_equals = true, default_missing_value = "true", action = clap::ArgAction::Set)]
    pin: bool,
    /// Compute the CIDs and store nothing
    #[arg(short = 'n', long)]
    only_hash: bool,
    /// Folders are added with all that is in them in any case; taken because fingers that know Kubo type it
    #[arg(short = 'r', long = "recursive", hide = true)]
    _recursive: bool,
}

impl Args {
    fn choice(&self) -> ImportChoice {
        ImportChoice {
            profile: self.profile.clone(),
            cid_version: self.cid_version,
            raw_leaves: self.raw_leaves,
            chunker: self.chunker.clone(),
            max_links: self.max_links,
            preserve_mode: self.preserve_mode,
            preserve_mtime: self.preserve_mtime,
            pin: self.pin,
            name: self.name.clone(),
        }
    }

    /// What is added as one tree: all paths with `--wrap`, else each on its own.
    fn trees(&self) -> Vec<Vec<PathBuf>> {
        if self.wrap {
            return vec![self.paths.clone()];
        }
        self.paths.iter().map(|path| vec![path.clone()]).collect()
    }
}

/// Adds files and folders.
///
/// # Errors
/// What cannot be read, stored or pinned.
pub fn run(context: &Context, args: &Args) -> Result<(), Fail> {
    // Wrong settings are told before anything is read.
    args.choice().profile()?;
    args.name.as_deref().map(pins::parse_name).transpose()?;
    let progress = progress(args);
    if args.only_hash {
        interrupt::watch();
        return args
            .trees()
            .iter()
            .try_for_each(|paths| add_here(context, args, paths, None, &progress).map(drop));
    }
    match context.daemon()? {
        Some(daemon) => through(context, args, daemon, &progress),
        None => offline(context, args, &progress),
    }
}

/// A bar needs the sum of all sizes, which costs a walk: only for people.
fn progress(args: &Args) -> Progress {
    if !Progress::is_shown() {
        return Progress::none();
    }
    let total = args
        .paths
        .iter()
        .map(|path| folder::total_bytes(path, args.hidden))
        .sum();
    Progress::bytes("adding", Some(total))
}

fn offline(context: &Context, args: &Args, progress: &Progress) -> Result<(), Fail> {
    interrupt::watch();
    let repo = context.repo(Access::Write)?;
    let store = repo.store()?;
    let meta = Arc::new(repo.meta()?);
    let puts = session::puts(&repo, &store, &meta);
    for paths in args.trees() {
        // Nothing of it is collected before the pin holds it.
        let _guard = store.guard();
        let name = args.name.as_deref().map(pins::parse_name).transpose()?;
        let (root, left_out) = add_here(context, args, &paths, Some(&puts), progress)?;
        if args.pin {
            pins::record_whole(&meta, (root.cid, gemba_pins::Kind::Recursive), name, None)?;
        }
        show_root(context, args, (&root).into(), &left_out, progress)?;
    }
    Ok(())
}

/// Adds one tree in this process. With a store, the root is shown by the caller, once it is pinned.
fn add_here(
    context: &Context,
    args: &Args,
    paths: &[PathBuf],
    puts: Option<&Puts>,
    progress: &Progress,
) -> Result<(Entry, LeftOut), Fail> {
    let mut shown = Shown {
        context,
        args,
        progress,
        held: None,
    };
    let mut left_out = LeftOut::default();
    let root = add(puts, &args.choice().profile()?, &mut shown, |visitor| {
        walk_all(args, paths, visitor, &mut left_out)
    })?;
    if puts.is_none() {
        show_root(context, args, (&root).into(), &left_out, progress)?;
    }
    Ok((root, left_out))
}

/// Shows entries as they come, always one behind: the last one is the root.
struct Shown<'a> {
    context: &'a Context,
    args: &'a Args,
    progress: &'a Progress,
    held: Option<Added>,
}

impl AddObserver for Shown<'_> {
    fn entry(&mut self, entry: &Entry) -> Result<(), Fail> {
        match self.held.replace(entry.into()) {
            Some(entry) => show(self.context, self.args, &entry, self.progress),
            None => Ok(()),
        }
    }

    fn progress(&mut self, bytes: u64) -> Result<(), Fail> {
        self.progress.add(bytes);
        interrupt::check()
    }
}

fn through(
    context: &Context,
    args: &Args,
    daemon: Daemon,
    progress: &Progress,
) -> Result<(), Fail> {
    context.talk(daemon, async |client| {
        let mut told = None;
        let adding = through_client(context, args, client, progress);
        client
            .while_telling(adding, |waits| progress.waiting("adding", waits, &mut told))
            .await
    })
}

async fn through_client(
    context: &Context,
    args: &Args,
    client: &Client,
    progress: &Progress,
) -> Result<(), Fail> {
    for paths in args.trees() {
        let (mut url, writing, bar) = (add_url(args)?, args.clone(), progress.clone());
        let giver = client.giver().map(|(giver, name)| {
            url.push_str(&format!("&handover={name}"));
            giver
        });
        let left_out = Arc::new(Mutex::new(LeftOut::default()));
        let left = Arc::clone(&left_out);
        let mut lines = client
            .upload::<AddLine, _>(&url, move |out| {
                let mut counted = Counted { out, bar };
                let mut writer = TreeWriter::new(&mut counted)?.handing(giver);
                let mut walked = LeftOut::default();
                walk_all(&writing, &paths, &mut writer, &mut walked)?;
                // Before the end of the tree is sent: the answer's root follows upon it.
                *left.lock().unwrap_or_else(PoisonError::into_inner) = walked;
                writer.finish()
            })
            .await?;
        let mut held = None;
        while let Some(line) = lines.next().await {
            match line? {
                AddLine::Read { read } => progress.add(read),
                AddLine::Added(entry) => {
                    if let Some(entry) = held.replace(entry) {
                        show(context, args, &entry, progress)?;
                    }
                }
            }
        }
        let root = held.ok_or_else(|| session::answer_fail("ended without a root"))?;
        let left_out = left_out
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        show_root(context, args, root, &left_out, progress)?;
    }
    Ok(())
}

fn add_url(args: &Args) -> Result<String, Fail> {
    let choice = serde_json::to_value(args.choice()).map_err(Fail::internal)?;
    let fields = choice.as_object().into_iter().flatten();
    let texts: Vec<(String, String)> = fields
        .map(|(key, value)| {
            (
                key.clone(),
                value
                    .as_str()
                    .map_or_else(|| value.to_string(), str::to_owned),
            )
        })
        .collect();
    let query: Vec<(&str, &str)> = texts
        .iter()
        .map(|(key, value)| (key.as_str(), value.as_str()))
        .collect();
    Ok(session::url("/v1/add", &query))
}

/// Tells of all paths as one tree.
fn walk_all(
    args: &Args,
    paths: &[PathBuf],
    visitor: &mut dyn TreeVisitor,
    left_out: &mut LeftOut,
) -> Result<(), Fail> {
    if args.wrap {
        visitor.enter_dir(b"", &Meta::default())?;
    }
    for path in paths {
        walk_one(args, path, visitor, left_out)?;
    }
    if args.wrap {
        visitor.leave_dir()?;
    }
    Ok(())
}

fn walk_one(
    args: &Args,
    path: &Path,
    visitor: &mut dyn TreeVisitor,
    left_out: &mut LeftOut,
) -> Result<(), Fail> {
    if path == Path::new("-") {
        let name: &[u8] = if args.wrap { b"stdin" } else { b"" };
        let mut input = Checked(std::io::stdin().lock(), interrupt::check_io);
        return visitor.file(name, &Meta::default(), &mut input as &mut dyn Read);
    }
    let mut options = WalkOptions {
        hidden: args.hidden,
        check: &mut interrupt::check_io,
        left_out,
    };
    folder::walk(path, &folder::name_of(path)?, visitor, &mut options)
}

fn show(context: &Context, args: &Args, entry: &Added, progress: &Progress) -> Result<(), Fail> {
    if args.quieter {
        return Ok(());
    }
    progress.suspend(|| match (args.quiet, context.out.json) {
        (true, false) => context.out.plain(&entry.cid),
        _ => context.out.entry(entry, line),
    })
}

fn line(entry: &Added) -> String {
    let name = text::shown_json(&entry.name, entry.name_bytes.as_deref());
    format!("added {} {name}", entry.cid).trim_end().to_owned()
}

/// The root with what was left out of its tree.
#[derive(Serialize)]
struct Root {
    #[serde(flatten)]
    entry: Added,
    /// Entries whose names begin with a dot.
    hidden: u64,
    /// Sockets, named pipes and devices.
    skipped: u64,
}

/// The root is shown when it is stored and pinned, and alone with `-Q`.
fn show_root(
    context: &Context,
    args: &Args,
    mut entry: Added,
    left_out: &LeftOut,
    progress: &Progress,
) -> Result<(), Fail> {
    let quiet = args.quiet || args.quieter;
    // What has no name, as standard input, is known by its CID.
    if entry.name.is_empty() && !args.wrap {
        entry.name.clone_from(&entry.cid);
    }
    let root = Root {
        entry,
        hidden: left_out.hidden,
        skipped: left_out.special,
    };
    progress.suspend(|| {
        if quiet && !context.out.json {
            context.out.plain(&root.entry.cid)?;
        } else {
            context.out.entry(&root, |root| line(&root.entry))?;
        }
        context.out.flush()?;
        warn_of_special(left_out);
        if left_out.hidden > 0 && !quiet && !context.out.json {
            let hidden = text::count(left_out.hidden, "hidden entry", "hidden entries");
            output::note(&format!(
                "left out {hidden} (the name begins with a dot): --hidden takes them too"
            ));
        }
        Ok(())
    })
}

/// Told in every form of output: the copy lacks what the folder has.
fn warn_of_special(left_out: &LeftOut) {
    for (path, what) in &left_out.named {
        output::note(&format!(
            "warning: {} is a {what} and was skipped: it has no content to add",
            text::path(path)
        ));
    }
    let more = left_out.special.saturating_sub(left_out.named.len() as u64);
    if more > 0 {
        output::note(&format!("warning: and {more} more were skipped"));
    }
}

/// Counts what goes out for the bar.
struct Counted<'a> {
    out: &'a mut dyn Write,
    bar: Progress,
}

impl Write for Counted<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.bar.add(written as u64);
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.out.flush()
    }
}
