//! `gemba repo stat|verify`

use std::ops::ControlFlow;

use cid::Cid;
use clap::Subcommand;
use futures::StreamExt as _;
use gemba_store::{Store, VerifyReport};
use hyper::Method;

use super::progress::Progress;
use super::session::{self, Daemon};
use super::{Context, interrupt};
use crate::api::types::{Damage, RepoSize, Verified};
use crate::content::pins;
use crate::error::{Code, Fail};
use crate::meta::Meta;
use crate::repo::{Access, Repo, store_fail};
use crate::text;

/// What can be done with the repository as a whole.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Print how many blocks there are, and their bytes
    Stat,
    /// Read and hash every block
    Verify,
}

/// Runs one of them.
///
/// # Errors
/// [`Code::Integrity`] if a block is damaged.
pub fn run(context: &Context, command: &Command) -> Result<(), Fail> {
    match command {
        Command::Stat => stat(context),
        Command::Verify => verify(context),
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
