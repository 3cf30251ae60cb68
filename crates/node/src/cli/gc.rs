//! `gemba gc`

use futures::StreamExt as _;
use hyper::Method;

use super::progress::Progress;
use super::session::{self, Daemon};
use super::{Context, interrupt};
use crate::api::types::{CollectPhase, CollectRequest, Collected};
use crate::content::collect::{Extent, Stop, collect, compact, thorough};
use crate::error::Fail;
use crate::meta::PinState as _;
use crate::repo::Access;
use crate::text;

/// What `gc` takes.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Only tell what would be removed
    #[arg(short = 'n', long)]
    dry_run: bool,
}

/// Removes every block that no pin holds, and gives the space back to the disk.
///
/// # Errors
/// [`crate::error::Code::Integrity`] if a block of a pin is missing or damaged; nothing is removed then.
pub fn run(context: &Context, args: &Args) -> Result<(), Fail> {
    let progress = Progress::blocks("looking for what pins hold:", None);
    let report = match context.daemon()? {
        Some(daemon) => through(context, daemon, args, &progress)?,
        None => offline(context, args, &progress)?,
    };
    progress.finish();
    context.out.result(&report, people)
}

fn through(
    context: &Context,
    daemon: Daemon,
    args: &Args,
    progress: &Progress,
) -> Result<Collected, Fail> {
    let request = CollectRequest {
        dry_run: args.dry_run,
    };
    context.talk(daemon, async |client| {
        let mut lines = client
            .lines::<_, Collected>(Method::POST, "/v1/gc", Some(&request))
            .await?;
        while let Some(line) = lines.next().await {
            let at = line?;
            if at.done {
                return Ok(at);
            }
            show(progress, &at);
        }
        Err(session::answer_fail("ended without a report"))
    })
}

/// Ctrl-C ends it between two steps; SIGTERM at once, which costs no more: every step is whole on the disk or not there.
fn offline(context: &Context, args: &Args, progress: &Progress) -> Result<Collected, Fail> {
    interrupt::watch();
    let repo = context.repo(Access::Write)?;
    let (store, meta) = (repo.store()?, repo.meta()?);
    let mut between = |report: &Collected, _bytes: u64| {
        show(progress, report);
        interrupt::check()
    };
    let extent = if args.dry_run {
        Extent::Nothing
    } else {
        Extent::All
    };
    let mut report =
        collect(&store, || meta.pins(), extent, &mut between).map_err(Stop::into_fail)?;
    if !args.dry_run {
        let compacted = compact(&store, &thorough(), &mut report, |_| false, &mut between);
        // Also after an interruption: packs that were removed are not lost.
        meta.note_packs(crate::repo::packs_to_note(&store))?;
        compacted?;
    }
    report.done = true;
    Ok(report)
}

fn show(progress: &Progress, at: &Collected) {
    let (doing, blocks) = match at.phase {
        CollectPhase::Mark => ("looking for what pins hold:", at.kept_blocks),
        CollectPhase::Sweep => ("removing the rest:", at.blocks),
        CollectPhase::Compact => ("giving the space back:", at.blocks),
    };
    progress.say(doing.to_owned());
    progress.set(blocks);
}

fn people(report: &Collected) -> String {
    let (done, freed) = if report.dry_run {
        ("would remove", String::new())
    } else {
        let freed = text::bytes(report.freed_bytes);
        ("removed", format!("; {freed} given back to the disk"))
    };
    let mut lines = vec![
        format!(
            "{done} {}, {}{freed}",
            text::blocks(report.blocks),
            text::bytes(report.bytes)
        ),
        format!(
            "kept {}, {}, of {}",
            text::blocks(report.kept_blocks),
            text::bytes(report.kept_bytes),
            text::count(report.pins, "pin", "pins")
        ),
    ];
    if report.guarded_blocks > 0 {
        lines.push(format!(
            "kept {}, {}, because something is being added, read or fetched at the moment",
            text::blocks(report.guarded_blocks),
            text::bytes(report.guarded_bytes)
        ));
    }
    if let Some(cause) = &report.cause {
        lines.push(format!("not all space came back: {cause}"));
    }
    lines.join("\n")
}
