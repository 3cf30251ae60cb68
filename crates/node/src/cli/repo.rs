//! `gemba repo stat|verify|migrate|import-kubo`

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use cid::Cid;
use clap::Subcommand;
use futures::StreamExt as _;
use gemba_store::{FORMAT, KuboError, KuboImport, Store, VerifyReport};
use hyper::Method;
use serde::Serialize;

use super::progress::Progress;
use super::session::{self, Daemon};
use super::{Context, interrupt};
use crate::api::types::{Damage, RepoSize, Verified};
use crate::content::pins;
use crate::error::{Code, Fail};
use crate::meta::Meta;
use crate::repo::{Access, Purpose, Repo, store_fail};
use crate::text;

/// Bytes of blocks that are taken over with one flush.
const KUBO_STEP: usize = 8 << 20;
/// Files left out that are named one by one.
const SKIPPED: usize = 100;

/// What can be done with the repository as a whole.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Print how many blocks there are, and their bytes
    Stat,
    /// Read and hash every block
    Verify,
    /// Bring the block store to the newest format, and say where the old one is kept
    Migrate,
    /// Take over the blocks of a Kubo repository; it is only read, and its pins are not looked at
    ImportKubo {
        /// The repository, usually ~/.ipfs
        #[arg(value_name = "DIR")]
        dir: PathBuf,
        /// Only tell what would be taken over
        #[arg(short = 'n', long)]
        dry_run: bool,
    },
}

/// Runs one of them.
///
/// # Errors
/// [`Code::Integrity`] if a block is damaged.
pub fn run(context: &Context, command: &Command) -> Result<(), Fail> {
    match command {
        Command::Stat => stat(context),
        Command::Verify => verify(context),
        Command::Migrate => migrate(context),
        Command::ImportKubo { dir, dry_run } => import_kubo(context, dir, *dry_run),
    }
}

fn stat(context: &Context) -> Result<(), Fail> {
    let size: RepoSize = match context.daemon()? {
        Some(daemon) => context.talk(daemon, async |client| {
            client.get_json("/v1/repo/stat").await
        })?,
        None => {
            let stat = context.repo(Access::Read)?.store()?.stat();
            RepoSize {
                blocks: stat.blocks,
                bytes: stat.bytes,
                disk_bytes: stat.disk_bytes,
            }
        }
    };
    context.out.result(&size, |size| {
        format!(
            "blocks     {}\nbytes      {}\non disk    {}",
            size.blocks, size.bytes, size.disk_bytes
        )
    })
}

/// Every opening for writing brings the format up; this one says so. Beside a daemon that was done at its start.
fn migrate(context: &Context) -> Result<(), Fail> {
    let migrated = match context.daemon()? {
        Some(_) => None,
        None => {
            let repo = context.repo_for(Access::Write, Purpose::Alone)?;
            repo.store()?.open_report().migrated.clone()
        }
    };
    let report = Migration {
        migrated: migrated.is_some(),
        from: migrated.as_ref().map_or(FORMAT, |done| done.from),
        to: FORMAT,
        backup: migrated.map(|done| done.backup.display().to_string()),
    };
    context.out.result(&report, |report| match &report.backup {
        Some(backup) => format!(
            "the block store had format {} and has format {} now; the old version file is kept as {backup}",
            report.from, report.to
        ),
        None => format!("the block store has format {}, the newest: nothing to do", report.to),
    })
}

/// What `repo migrate` prints.
#[derive(Serialize)]
struct Migration {
    migrated: bool,
    from: u32,
    to: u32,
    backup: Option<String>,
}

/// What `repo import-kubo` prints.
#[derive(Default, Serialize)]
struct KuboReport {
    dry_run: bool,
    files: u64,
    /// Blocks that were new here, and their bytes.
    blocks: u64,
    bytes: u64,
    /// Blocks that were here before.
    present: u64,
    skipped: u64,
    /// The first of them.
    skipped_files: Vec<Skipped>,
    /// Always false: Kubo's pins are not taken over.
    pins_imported: bool,
}

#[derive(Serialize)]
struct Skipped {
    path: String,
    reason: String,
}

fn import_kubo(context: &Context, dir: &Path, dry_run: bool) -> Result<(), Fail> {
    interrupt::watch();
    let mut import = KuboImport::open(dir).map_err(kubo_fail)?;
    let repo = context.repo_for(Access::Write, Purpose::Alone)?;
    let store = repo.store()?;
    let progress = Progress::blocks("taking over", None);
    let mut report = KuboReport {
        dry_run,
        ..KuboReport::default()
    };
    loop {
        interrupt::check()?;
        let step = if dry_run {
            import.dry_step(&store, KUBO_STEP)
        } else {
            import.step(&store, KUBO_STEP)
        };
        let step = step.map_err(kubo_fail)?;
        report.files += step.files;
        report.blocks += step.put.new;
        report.bytes += step.put.bytes;
        report.present += step.put.present;
        report.skipped += step.skipped.len() as u64;
        let room = SKIPPED.saturating_sub(report.skipped_files.len());
        let told = step.skipped.into_iter().take(room);
        report.skipped_files.extend(told.map(|file| Skipped {
            path: text::path(&file.path).to_string(),
            reason: file.reason.to_string(),
        }));
        progress.set(report.blocks + report.present);
        if step.done {
            break;
        }
    }
    progress.finish();
    context.out.result(&report, kubo_text)
}

fn kubo_text(report: &KuboReport) -> String {
    let taken = if report.dry_run {
        "would take over"
    } else {
        "took over"
    };
    let mut lines: Vec<String> = report
        .skipped_files
        .iter()
        .map(|file| format!("left out {}: {}", file.path, file.reason))
        .collect();
    let more = report.skipped - report.skipped_files.len() as u64;
    if more > 0 {
        lines.push(format!("and {more} more were left out"));
    }
    lines.push(format!(
        "{taken} {}, {}; {} were here already, {} left out",
        text::blocks(report.blocks),
        text::bytes(report.bytes),
        report.present,
        text::count(report.skipped, "file was", "files were"),
    ));
    lines.push("Kubo's pins are not taken over: pin what is to stay (`gemba pin add CID`), for unpinned blocks are only a cache".to_owned());
    lines.join("\n")
}

fn kubo_fail(error: KuboError) -> Fail {
    match error {
        KuboError::NoFlatfs(_) => Fail::new(Code::NotFound, error),
        KuboError::Io { path, source } => Fail::io(path, &source),
        KuboError::Store(e) => store_fail(&e),
        other => Fail::new(Code::Failure, other),
    }
}

fn verify(context: &Context) -> Result<(), Fail> {
    let progress = Progress::blocks("checking", Some(0));
    let report = match context.daemon()? {
        Some(daemon) => verify_through(context, daemon, &progress),
        None => verify_offline(context, &progress),
    }?;
    progress.finish();
    context.out.result(&report, |report| {
        let mut lines: Vec<String> = report.corrupt.iter().map(damage_text).collect();
        lines.push(format!(
            "{} checked, {}, {} damaged",
            text::blocks(report.checked),
            text::bytes(report.bytes),
            report.corrupt.len()
        ));
        lines.join("\n")
    })?;
    match report.corrupt.first() {
        None if report.pins_struck > 0 => Err(Fail::new(Code::Integrity, format!("{} blocks and not whole any more", text::count(report.pins_struck, "pin is missing", "pins are missing")))
            .hint("a running daemon fetches them again; without one start it: `gemba daemon`")),
        None => Ok(()),
        Some(first) => Err(Fail::new(Code::Integrity, format!("{} damaged, the first: {}", text::count(report.corrupt.len() as u64, "place is", "places are"), damage_text(first)))
            .hint("a daemon fetches the blocks again when a pin needs them (`gemba pin add CID`); check the disk")),
    }
}

fn damage_text(damage: &Damage) -> String {
    let cid = damage.cid.as_deref().unwrap_or("a block of unknown name");
    format!(
        "{cid} (pack {}, offset {}): {}",
        damage.pack, damage.offset, damage.cause
    )
}

fn verify_offline(context: &Context, progress: &Progress) -> Result<Verified, Fail> {
    interrupt::watch();
    let repo = open_to_verify(context)?;
    let store = repo.store()?;
    let report = store.verify(|at| {
        show(progress, at.blocks, at.total_blocks);
        if interrupt::check().is_ok() {
            ControlFlow::Continue(())
        } else {
            ControlFlow::Break(())
        }
    });
    let report = report.map_err(|e| store_fail(&e))?;
    interrupt::check()?;
    let mut pins_struck = 0;
    if repo.access() == Access::Write {
        pins_struck = forget_damaged(&store, &repo.meta()?, &report)?;
    }
    Ok(Verified {
        pins_struck,
        ..Verified::from(report)
    })
}

/// A pin that misses a block is no longer whole, and a damaged block is no block: whoever adds or fetches it writes it anew.
fn forget_damaged(store: &Store, meta: &Meta, report: &VerifyReport) -> Result<u64, Fail> {
    let damaged: Vec<Cid> = report
        .corrupt
        .iter()
        .filter_map(|place| place.cid)
        .collect();
    store.delete_many(&damaged).map_err(|e| store_fail(&e))?;
    pins::strike_out(store, meta)
}

/// To write, so that pins with damaged blocks can be marked; where that is not allowed (a read-only copy), to read.
fn open_to_verify(context: &Context) -> Result<Repo, Fail> {
    match context.repo(Access::Write) {
        Err(fail) if matches!(fail.code, Code::Permission | Code::Failure) => {
            context.repo(Access::Read)
        }
        opened => opened,
    }
}

fn verify_through(
    context: &Context,
    daemon: Daemon,
    progress: &Progress,
) -> Result<Verified, Fail> {
    context.talk(daemon, async |client| {
        let mut lines = client
            .lines::<(), Verified>(Method::POST, "/v1/repo/verify", None)
            .await?;
        while let Some(line) = lines.next().await {
            let at = line?;
            if at.done {
                return Ok(at);
            }
            show(progress, at.checked, at.total);
        }
        Err(session::answer_fail("ended without a report"))
    })
}

fn show(progress: &Progress, checked: u64, total: u64) {
    progress.set_total(total);
    progress.set(checked);
}
