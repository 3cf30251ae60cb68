//! `gemba pin`

mod lists;
mod ops;

use std::path::PathBuf;
use std::time::Duration;

use cid::Cid;
use clap::Subcommand;
use futures::StreamExt as _;
use gemba_pins::{Kind, Pin};
use hyper::Method;
use serde_json::json;

use super::Context;
use super::name::into_content;
use super::progress::Progress;
use super::session::{self, Daemon};
use crate::api::types::{Done, PinRequest, PinStatus};
use crate::content::parse_cid;
use crate::content::pins;
use crate::error::{Code, Fail};
use crate::meta::PinState as _;
use crate::repo::{Access, Repo};
use crate::text;

/// The daemon's own deadline ends the wait; this much later the command gives up on the daemon.
const GRACE: Duration = Duration::from_secs(2);

/// What can be done with pins.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Fetch everything below a root and keep it
    Add {
        /// The root: a `CID`, or a `NAME`, which is pinned as it is now
        cid: String,
        /// Name of the pin
        #[arg(long)]
        name: Option<String>,
        /// Only the root's own block
        #[arg(long)]
        direct: bool,
    },
    /// Keep it no longer
    Rm {
        /// The roots
        #[arg(required = true)]
        cids: Vec<String>,
    },
    /// List all pins
    Ls {
        /// Only those of this name
        #[arg(long)]
        name: Option<String>,
        /// Print CIDs only
        #[arg(short, long)]
        quiet: bool,
    },
    /// Tell how far a pin is
    Status {
        /// The root
        cid: String,
    },
    /// List what is being done: what is fetched, waits for its turn, or failed and is tried again
    Ops,
    /// Wait until pins are whole, past tries that fail
    Wait {
        /// The roots
        #[arg(required = true)]
        cids: Vec<String>,
    },
    /// End what is being done: a pin that is not whole is given up
    Cancel {
        /// The roots
        #[arg(required = true)]
        cids: Vec<String>,
    },
    /// Try again now what failed, without waiting for what comes of it
    Recover {
        /// The roots; all that failed without them
        cids: Vec<String>,
    },
    /// Compare a pin with the store now, every block of it, tell what was found, and heal it
    Sync {
        /// The roots
        #[arg(required = true)]
        cids: Vec<String>,
    },
    /// Replace a pin by a newer version: only the difference is fetched, and the older one is released when the newer is whole
    Update {
        /// The root that is pinned
        old: String,
        /// The newer root: a `CID`, or a `NAME`
        new: String,
        /// Name of the pin, if it is to have another
        #[arg(long)]
        name: Option<String>,
        /// The older one stays pinned
        #[arg(long)]
        keep: bool,
    },
    /// Write all pins as text, or make them at a Kubo
    Export {
        /// Where to; standard output without it
        #[arg(short, long, value_name = "FILE", conflicts_with = "kubo")]
        output: Option<PathBuf>,
        /// To a Kubo, by its RPC, such as http://127.0.0.1:5001: what is pinned there stays; it fetches what it lacks, so it has to be connected
        /// to somebody who has it. With `--timeout`, a pin for which it gets no block for so long is left (60s without it)
        #[arg(long, value_name = "URL")]
        kubo: Option<String>,
    },
    /// Pin what a list names. What is pinned stays
    Import {
        /// What `gemba pin export` wrote; standard input without it
        #[arg(conflicts_with = "kubo")]
        file: Option<PathBuf>,
        /// The pins of a Kubo, by its RPC, such as http://127.0.0.1:5001
        #[arg(long, value_name = "URL")]
        kubo: Option<String>,
    },
}

/// Runs one of them.
///
/// # Errors
/// [`Code::NotFound`] for what is not pinned, and for blocks that only a daemon could fetch; [`Code::Timeout`].
pub fn run(context: &Context, command: &Command) -> Result<(), Fail> {
    match command {
        Command::Add { cid, name, direct } => {
            let kind = if *direct {
                Kind::Direct
            } else {
                Kind::Recursive
            };
            let cid = into_content(context, cid)?;
            add(context, parse_cid(&cid)?, name.as_deref(), kind)
        }
        Command::Rm { cids } => remove(context, &parsed(cids)?),
        Command::Ls { name, quiet } => list(context, name.as_deref(), *quiet),
        Command::Status { cid } => status(context, parse_cid(cid)?),
        Command::Ops => ops::list(context),
        Command::Wait { cids } => ops::wait(context, &parsed(cids)?),
        Command::Cancel { cids } => ops::cancel(context, &parsed(cids)?),
        Command::Recover { cids } => ops::recover(context, &parsed(cids)?),
        Command::Sync { cids } => ops::sync(context, &parsed(cids)?),
        Command::Update {
            old,
            new,
            name,
            keep,
        } => {
            let (old, new) = (parse_cid(old)?, into_content(context, new)?);
            ops::update(context, old, parse_cid(&new)?, (name.clone(), *keep))
        }
        Command::Export {
            kubo: Some(url), ..
        } => lists::export_to_kubo(context, url),
        Command::Export { output, .. } => lists::export(context, output.as_deref()),
        Command::Import { file, kubo } => lists::import(context, file.as_deref(), kubo.as_deref()),
    }
}

fn parsed(cids: &[String]) -> Result<Vec<Cid>, Fail> {
    cids.iter().map(|cid| parse_cid(cid)).collect()
}

fn add(context: &Context, cid: Cid, name: Option<&str>, kind: Kind) -> Result<(), Fail> {
    let checked = name.map(pins::parse_name).transpose()?;
    let done = match context.daemon()? {
        Some(daemon) => add_through(context, daemon, cid, name, kind)?,
        None => {
            let repo = context.repo(Access::Write)?;
            let (pin, progress) = pins::add(&repo.store()?, &repo.meta()?, cid, kind, checked)?;
            status_of(&pin, "pinned", progress, None)
        }
    };
    context.out.result(&done, |done| {
        format!(
            "pinned {} {} ({}, {})",
            done.cid,
            done.kind,
            text::blocks(done.blocks_done),
            text::bytes(done.bytes_done)
        )
    })
}

fn add_through(
    context: &Context,
    daemon: Daemon,
    cid: Cid,
    name: Option<&str>,
    kind: Kind,
) -> Result<PinStatus, Fail> {
    let request = PinRequest {
        cid: cid.to_string(),
        name: name.map(str::to_owned),
        kind: Some(kind.as_str().to_owned()),
        timeout_s: context.timeout.map(|limit| limit.as_secs_f64()),
    };
    follow(
        context,
        daemon,
        "pinning",
        (Method::POST, "/v1/pins"),
        Some(&request),
    )
}

/// Shows the lines that follow a pin until it is whole.
fn follow<B: serde::Serialize>(
    context: &Context,
    daemon: Daemon,
    doing: &'static str,
    (method, path): (Method, &str),
    body: Option<&B>,
) -> Result<PinStatus, Fail> {
    let progress = Progress::bytes(doing, None);
    // The daemon says better than a clock here why it is not done.
    let limit = context.timeout.map(|limit| limit + GRACE);
    session::talk_within(limit, daemon, async |client| {
        let mut lines = client.lines::<B, PinStatus>(method, path, body).await?;
        let mut last = None;
        while let Some(line) = lines.next().await {
            let at = line?;
            progress.set(at.bytes_done);
            progress.say(format!(
                "{doing} {} of {} known so far{}",
                at.blocks_done,
                text::blocks(at.blocks_done + at.blocks_pending),
                at.cause
                    .as_ref()
                    .map_or(String::new(), |cause| format!("; {cause}"))
            ));
            last = Some(at);
        }
        progress.finish();
        match last {
            Some(last) if last.status == "pinned" => Ok(last),
            _ => Err(Fail::new(
                Code::NoDaemon,
                "the daemon's answer ended before the pin was whole",
            )
            .hint("the daemon was stopped in the middle: the pin stays wanted, and the fetch goes on when the daemon runs again")),
        }
    })
}

fn remove(context: &Context, cids: &[Cid]) -> Result<(), Fail> {
    // Each is told when it is done: one that is refused ends the command.
    let tell = |cid: &Cid| {
        let told = json!({ "cid": cid.to_string(), "status": "unpinned" });
        context.out.entry(&told, |_| format!("unpinned {cid}"))
    };
    match context.daemon()? {
        Some(daemon) => context.talk(daemon, async |client| {
            for cid in cids {
                let _done: Done = client.delete_json(&format!("/v1/pins/{cid}")).await?;
                tell(cid)?;
            }
            Ok(())
        }),
        None => {
            let meta = context.repo(Access::Write)?.meta()?;
            cids.iter().try_for_each(|cid| {
                pins::remove(&meta, cid)?;
                tell(cid)
            })
        }
    }
}

fn list(context: &Context, name: Option<&str>, quiet: bool) -> Result<(), Fail> {
    let Some(daemon) = context.daemon()? else {
        let meta = context.repo(Access::Read)?.meta()?;
        let pins = meta.pins()?;
        let one = |pin: &Pin| {
            let status = if pin.complete { "pinned" } else { "pin_queued" };
            let own = pin.name.as_ref().map(|name| name.as_str());
            let root = pin.cid.to_string();
            show(context, quiet, &root, (pin.kind.as_str(), own, status))
        };
        return match name {
            None => pins.iter().try_for_each(|pin| one(&pin?)),
            Some(name) => pins
                .named(name)?
                .iter()
                .filter_map(|root| pins.get(root).transpose())
                .try_for_each(|pin| one(&pin?)),
        };
    };
    let query: Vec<(&str, &str)> = name.map(|name| ("name", name)).into_iter().collect();
    let path = session::url("/v1/pins", &query);
    context.talk(daemon, async |client| {
        let mut lines = client
            .lines::<(), PinStatus>(Method::GET, &path, None)
            .await?;
        while let Some(line) = lines.next().await {
            let pin = line?;
            let told = (pin.kind.as_str(), pin.name.as_deref(), pin.status.as_str());
            show(context, quiet, &pin.cid, told)?;
        }
        Ok(())
    })
}

fn show(
    context: &Context,
    quiet: bool,
    cid: &str,
    (kind, name, status): (&str, Option<&str>, &str),
) -> Result<(), Fail> {
    if quiet && !context.out.json {
        return context.out.plain(cid);
    }
    context.out.entry(
        &json!({ "cid": cid, "kind": kind, "name": name, "status": status }),
        |_| {
            format!(
                "{cid} {kind} {}{}",
                state(status),
                name.map(|name| format!(" {}", text::shown(name)))
                    .unwrap_or_default()
            )
        },
    )
}

fn status(context: &Context, cid: Cid) -> Result<(), Fail> {
    let status = match context.daemon()? {
        Some(daemon) => context.talk(daemon, async |client| {
            client.get_json(&format!("/v1/pins/{cid}")).await
        })?,
        None => offline_status(&context.repo(Access::Read)?, &cid)?,
    };
    context.out.result(&status, |status: &PinStatus| {
        let mut text = format!(
            "{} {} {}: {}, {}",
            status.cid,
            status.kind,
            state(&status.status),
            text::blocks(status.blocks_done),
            text::bytes(status.bytes_done)
        );
        if let Some(cause) = &status.cause {
            text.push_str(&format!("\n  {cause}"));
        }
        text
    })
}

/// Derived from the desired set and the store, as every status is (S1.12).
pub(super) fn offline_status(repo: &Repo, cid: &Cid) -> Result<PinStatus, Fail> {
    let pin = repo.meta()?.pins()?.get(cid)?;
    let pin = pin.ok_or_else(|| {
        Fail::new(Code::NotFound, format!("{cid} is not pinned"))
            .hint("`gemba pin ls` lists the pins")
    })?;
    let presence = pins::presence(&repo.store()?, cid, pin.kind)?;
    let (status, cause) = match (pin.complete, presence.is_whole()) {
        (true, true) => ("pinned", None),
        (_, whole) => {
            let missing = presence.missing.len();
            let cause = if whole {
                "no daemon runs to finish it".to_owned()
            } else {
                format!(
                    "{} missing, and no daemon runs to fetch what is missing",
                    text::count(missing as u64, "block is", "blocks are")
                )
            };
            ("pin_queued", Some(cause))
        }
    };
    Ok(status_of(&pin, status, presence.progress, cause))
}

/// The status words of the JSON, which are IPFS Cluster's, in plain ones.
pub(super) fn state(status: &str) -> &str {
    match status {
        "pinning" => "fetching",
        "pin_queued" => "waiting",
        "pin_error" => "retrying",
        other => other,
    }
}

fn status_of(
    pin: &Pin,
    status: &str,
    progress: gemba_pins::Progress,
    cause: Option<String>,
) -> PinStatus {
    PinStatus {
        cid: pin.cid.to_string(),
        status: status.to_owned(),
        kind: pin.kind.as_str().to_owned(),
        name: pin.name.as_ref().map(|name| name.as_str().to_owned()),
        blocks_done: progress.blocks_done,
        bytes_done: progress.bytes_done,
        blocks_fetched: 0,
        bytes_fetched: 0,
        blocks_pending: progress.pending,
        attempts: 0,
        cause,
    }
}
