//! `gemba name`: what names point to.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::StreamExt as _;
use gemba_names::{Command as Wish, Name, Record};
use hyper::Method;

use super::key::name_of;
use super::progress::Progress;
use super::session::{Daemon, answer_fail, url};
use super::{Context, output, parse_duration};
use crate::api::types::{
    Done, FollowRequest, FollowStatus, NameEvent, NameInspected, NamePublished, NameResolved,
    PublishRequest,
};
use crate::error::{Code, Fail};
use crate::files;
use crate::keystore::Keystore;
use crate::names::{self, Book};
use crate::repo::Access;
use crate::text;

/// What can be done with names.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Make a name point to something else; works without any peer
    Publish(PublishArgs),
    /// Print what a name points to
    Resolve(ResolveArgs),
    /// Show everything that is known of a name, or of a record in a file
    Inspect(InspectArgs),
    /// Keep what names point to on this device, always the newest that is whole
    #[command(subcommand)]
    Follow(FollowCommand),
    /// Print each change of a name as it comes
    Watch(WatchArgs),
    /// List the names that this device knows
    Ls,
    /// Write the record of a name
    Get(GetArgs),
    /// Take in a record from a file
    Put(PutArgs),
}

/// What can be done with followed names.
#[derive(Debug, clap::Subcommand)]
pub enum FollowCommand {
    /// Follow a name: fetch what it points to, and each newer version, whole or not at all
    Add {
        /// The name
        name: String,
        /// Versions to keep, the present one among them [default: 2]
        #[arg(long, value_name = "N")]
        keep: Option<u64>,
        /// Wait until the newest version is whole on this device
        #[arg(long)]
        wait: bool,
    },
    /// List the names that are followed, and how far they are
    Ls,
    /// Follow a name no longer, and release what was kept of it
    Rm {
        /// The name
        name: String,
    },
    /// Go back to an earlier version; what is newer is left alone until something newer still is published
    Rollback {
        /// The name
        name: String,
        /// The version to go back to [default: the one before]
        #[arg(long, value_name = "SEQUENCE")]
        to: Option<u64>,
    },
}

/// What `name publish` takes.
#[derive(Debug, clap::Args)]
pub struct PublishArgs {
    /// A CID, a path below one, or another name
    value: String,
    /// The key: its label or its name
    #[arg(long, default_value = crate::keystore::SELF)]
    key: String,
    /// How long the record lives, such as 30d [default: the setting names.lifetime, one year]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    lifetime: Option<Duration>,
    /// How long others may answer from their memory [default: the setting names.ttl, 5m]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    ttl: Option<Duration>,
    /// The number of the version, above every one before [default: the next]
    #[arg(long)]
    sequence: Option<u64>,
    /// Publish although this repository is older than what was published: versions that others hold may lose
    #[arg(long)]
    accept_fork: bool,
}

/// What `name resolve` takes.
#[derive(Debug, clap::Args)]
pub struct ResolveArgs {
    /// The name, or the label of a key
    name: String,
    /// The newest version that is whole on this device
    #[arg(long)]
    complete: bool,
}

/// What `name inspect` takes.
#[derive(Debug, clap::Args)]
pub struct InspectArgs {
    /// The name, or the label of a key
    name: String,
    /// A record of that name in a file, such as `name get` writes; `-` reads standard input
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
}

/// What `name watch` takes.
#[derive(Debug, clap::Args)]
pub struct WatchArgs {
    /// The name, or the label of a key; without it all that this device knows
    name: Option<String>,
    /// Tell first what changed behind this revision, which `--json` prints with each line
    #[arg(long, value_name = "REVISION")]
    after: Option<u64>,
    /// End after so many lines
    #[arg(short, long, value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
}

/// What `name get` takes.
#[derive(Debug, clap::Args)]
pub struct GetArgs {
    /// The name, or the label of a key
    name: String,
    /// Where to write it; without it, to standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// What `name put` takes.
#[derive(Debug, clap::Args)]
pub struct PutArgs {
    /// The name that the record is for
    name: String,
    /// The record; `-` reads standard input
    file: PathBuf,
}

/// Runs one of them.
///
/// # Errors
/// [`Code::NotFound`] for names that nothing is known of, [`Code::Timeout`], what the book refuses.
pub fn run(context: &Context, command: &Command) -> Result<(), Fail> {
    match command {
        Command::Publish(args) => publish(context, args),
        Command::Resolve(args) => {
            let name = name_of(context, &args.name)?;
            let found = resolve(context, name, args.complete)?;
            tell_stale(&found);
            context.out.result(&found, |found| found.value.clone())
        }
        Command::Inspect(args) => inspect(context, args),
        Command::Follow(command) => follow(context, command),
        Command::Watch(args) => watch(context, args),
        Command::Ls => list(context),
        Command::Get(args) => get(context, args),
        Command::Put(args) => put(context, args),
    }
}

fn publish(context: &Context, args: &PublishArgs) -> Result<(), Fail> {
    let seconds = |time: Option<Duration>| time.map(|time| time.as_secs_f64());
    let request = PublishRequest {
        value: names::parse_value(&args.value)?,
        key: Some(args.key.clone()),
        lifetime_s: seconds(args.lifetime),
        ttl_s: seconds(args.ttl),
        sequence: args.sequence,
        accept_fork: args.accept_fork,
    };
    let published = match context.daemon()? {
        Some(daemon) => context.talk(daemon, async |client| {
            client.post_json("/v1/names/publish", &request).await
        })?,
        None => publish_offline(context, &request)?,
    };
    context.out.result(&published, |published: &NamePublished| {
        format!(
            "{} points to {} (version {})",
            published.name, published.value, published.sequence
        )
    })
}

fn publish_offline(context: &Context, request: &PublishRequest) -> Result<NamePublished, Fail> {
    let repo = context.repo(Access::Write)?;
    let label = request.key.as_deref().unwrap_or(crate::keystore::SELF);
    let (key, _) = Keystore::of(&repo.layout).find(label)?;
    let publish = crate::api::wish(request, key.name, &repo.config.names)?;
    let value = names::value_text(&publish.value);
    let sequence = Book::open(&repo)?.publish(publish, request.accept_fork)?;
    Ok(NamePublished {
        name: key.name.to_string(),
        value,
        sequence,
    })
}

/// What a name points to.
///
/// # Errors
/// [`Code::NotFound`]; without a daemon nobody is asked.
pub(super) fn resolve(context: &Context, name: Name, complete: bool) -> Result<NameResolved, Fail> {
    if let Some(daemon) = context.daemon()? {
        return context.talk(daemon, async |client| {
            let path = format!("/v1/names/{name}?complete={complete}");
            client.get_json(&path).await
        });
    }
    let book = Book::open(&context.repo(Access::Read)?)?;
    let found = if complete {
        book.core
            .resolve_complete(&name, Duration::ZERO)
            .ok_or_else(|| names::not_whole(&name))?
    } else {
        book.core
            .resolve(&name, Duration::ZERO)
            .ok_or_else(|| names::unknown(&name))?
    };
    Ok(names::resolved(&found))
}

/// A word beside the answer, for people: what is stale is better than nothing and may be old.
fn tell_stale(found: &NameResolved) {
    if found.stale {
        output::note(
            "note: the record has passed its end of life; its publisher may have published a newer one",
        );
    }
}

fn inspect(context: &Context, args: &InspectArgs) -> Result<(), Fail> {
    let name = name_of(context, &args.name)?;
    let seen = match &args.record {
        Some(file) => {
            let record = Record::open(name, &read(file)?).map_err(|e| {
                Fail::new(Code::Integrity, format!("this is no record of {name}: {e}"))
                    .hint("was it made for this name, and copied as a whole?")
            })?;
            names::inspected_record(&record)
        }
        None => inspect_book(context, name)?,
    };
    context.out.result(&seen, told)
}

fn inspect_book(context: &Context, name: Name) -> Result<NameInspected, Fail> {
    if let Some(daemon) = context.daemon()? {
        return context.talk(daemon, async |client| {
            client.get_json(&format!("/v1/names/{name}/inspect")).await
        });
    }
    let book = Book::open(&context.repo(Access::Read)?)?;
    let seen = book.core.inspect(&name, Duration::ZERO);
    let seen = seen.ok_or_else(|| names::unknown(&name))?;
    Ok(names::inspected(&seen))
}

fn told(seen: &NameInspected) -> String {
    let stale = if seen.stale { ", which has passed" } else { "" };
    let mut text = format!(
        "name       {}\nvalue      {}\nsequence   {}\nvalidity   {}{stale}\nttl        {} s\nkey        {}\nsignature  {} ({}, {} bytes)\nsource     {}",
        seen.name,
        text::shown(&seen.value),
        seen.sequence,
        seen.validity,
        seen.ttl_ns / 1_000_000_000,
        seen.key,
        seen.signature,
        seen.signature_type,
        seen.pb_size,
        seen.source,
    );
    if let Some(peer) = &seen.peer {
        text.push_str(&format!(" {peer}"));
    }
    if seen.source != "file" {
        text.push_str(&format!(", {} s ago", seen.age_s));
    }
    if let (Some(sequence), Some(value)) = (seen.complete_sequence, &seen.complete_value) {
        text.push_str(&format!(
            "\ncomplete   version {sequence}: {}",
            text::shown(value)
        ));
    }
    if let Some(other) = &seen.contradicted {
        text.push_str(&format!(
            "\nalarm      the key signed {} under the same number",
            text::shown(other)
        ));
    }
    if seen.unsure {
        text.push_str("\nalarm      this book is older than what was published");
    }
    text
}

fn watch(context: &Context, args: &WatchArgs) -> Result<(), Fail> {
    let daemon = context.require_daemon()?;
    let name = args.name.as_deref();
    let name = name.map(|name| name_of(context, name)).transpose()?;
    let (name, after) = (
        name.map(|name| name.to_string()),
        args.after.map(|after| after.to_string()),
    );
    let mut query = Vec::new();
    query.extend(name.as_deref().map(|name| ("name", name)));
    query.extend(after.as_deref().map(|after| ("after", after)));
    let path = url("/v1/names/watch", &query);
    context.talk(daemon, async |client| {
        let mut came = 0;
        let mut lines = client
            .lines::<(), NameEvent>(Method::GET, &path, None)
            .await?;
        while let Some(line) = lines.next().await {
            let event = line?;
            context.out.result(&event, |event| {
                format!(
                    "{} {} {} (version {})",
                    event.event, event.now.name, event.now.value, event.now.sequence
                )
            })?;
            came += 1;
            if args.count == Some(came) {
                return Ok(());
            }
        }
        Err(answer_fail("ended before its time"))
    })
}

fn follow(context: &Context, command: &FollowCommand) -> Result<(), Fail> {
    match command {
        FollowCommand::Add { name, keep, wait } => {
            let name = name_of(context, name)?;
            let mut told = follow_add(context, name, *keep)?;
            if *wait {
                let daemon = context.daemon()?.ok_or_else(|| nobody_fetches(&name))?;
                told = follow_to_the_end(context, daemon, name)?;
            }
            context.out.result(&told, followed)
        }
        FollowCommand::Ls => follow_list(context),
        FollowCommand::Rm { name } => {
            let name = name_of(context, name)?;
            let told: FollowStatus = match context.daemon()? {
                Some(daemon) => context.talk(daemon, async |client| {
                    client.delete_json(&format!("/v1/follows/{name}")).await
                })?,
                None => Book::open(&context.repo(Access::Write)?)?.unfollow(name)?,
            };
            context
                .out
                .result(&told, |told| format!("{} is followed no longer", told.name))
        }
        FollowCommand::Rollback { name, to } => {
            let name = name_of(context, name)?;
            let told = match context.daemon()? {
                Some(daemon) => context.talk(daemon, async |client| {
                    let to = to.map(|to| to.to_string());
                    let query: Vec<_> = to.as_deref().map(|to| ("to", to)).into_iter().collect();
                    let path = url(&format!("/v1/follows/{name}/rollback"), &query);
                    client.post_json(&path, &()).await
                })?,
                None => Book::open(&context.repo(Access::Write)?)?.roll_back(name, *to)?,
            };
            context.out.result(&told, followed)
        }
    }
}

fn follow_add(context: &Context, name: Name, keep: Option<u64>) -> Result<FollowStatus, Fail> {
    if let Some(daemon) = context.daemon()? {
        return context.talk(daemon, async |client| {
            let request = FollowRequest { keep };
            client
                .post_json(&format!("/v1/follows/{name}"), &request)
                .await
        });
    }
    let keep = crate::api::keep(keep)?;
    Book::open(&context.repo(Access::Write)?)?.follow(name, keep)
}

/// How often a followed name is looked at while somebody waits; the daemon on this device is asked, and nobody else.
const LOOK: Duration = Duration::from_millis(100);

/// What a wait says that cannot begin.
fn nobody_fetches(name: &Name) -> Fail {
    let cause = format!("{name} is followed from now on, but no daemon runs to fetch it");
    Fail::new(Code::NoDaemon, cause)
        .hint("start one with `gemba daemon`; `gemba name follow ls` tells how far it is")
}

fn follow_to_the_end(context: &Context, daemon: Daemon, name: Name) -> Result<FollowStatus, Fail> {
    let progress = Progress::bytes("following", None);
    let late = || {
        Fail::new(
            Code::Timeout,
            format!("{name} is not whole on this device yet"),
        )
        .hint("it stays followed; `gemba name follow ls` tells how far it is")
    };
    let begun = std::time::Instant::now();
    let told = context.talk_without_limit(daemon, async |client| {
        loop {
            let told: FollowStatus = client.get_json(&format!("/v1/follows/{name}")).await?;
            progress.set(told.bytes_done);
            progress.say(format!(
                "following: {} of {} known so far{}",
                told.blocks_done,
                text::blocks(told.blocks_done + told.blocks_pending),
                told.cause
                    .as_ref()
                    .map_or(String::new(), |cause| format!("; {cause}"))
            ));
            if told.status == "complete" || told.status == "held" {
                return Ok(told);
            }
            if context
                .timeout
                .is_some_and(|limit| begun.elapsed() >= limit)
            {
                let cause = match told.cause {
                    Some(cause) => format!(": {cause}"),
                    None if told.sequence.is_none() => {
                        ": nobody who is connected has told a record of it".to_owned()
                    }
                    None => String::new(),
                };
                let mut fail = late();
                fail.cause.push_str(&cause);
                return Err(fail);
            }
            tokio::time::sleep(LOOK).await;
        }
    });
    progress.finish();
    told
}

fn follow_list(context: &Context) -> Result<(), Fail> {
    let Some(daemon) = context.daemon()? else {
        let all = Book::open(&context.repo(Access::Read)?)?.follows()?;
        return all
            .iter()
            .try_for_each(|told| context.out.entry(told, followed));
    };
    context.talk(daemon, async |client| {
        let mut lines = client
            .lines::<(), FollowStatus>(Method::GET, "/v1/follows", None)
            .await?;
        while let Some(told) = lines.next().await {
            context.out.entry(&told?, followed)?;
        }
        Ok(())
    })
}

fn followed(told: &FollowStatus) -> String {
    let version = |sequence: Option<u64>, value: &Option<String>| match (sequence, value) {
        (Some(sequence), Some(value)) => format!("version {sequence} ({})", text::shown(value)),
        _ => "none".to_owned(),
    };
    let mut line = format!(
        "{} {}: newest {}, whole here {}",
        told.name,
        told.status,
        version(told.sequence, &told.value),
        version(told.complete_sequence, &told.complete_value)
    );
    if told.status == "fetching" {
        line.push_str(&format!(
            ", {} of {} known so far",
            told.blocks_done,
            text::blocks(told.blocks_done + told.blocks_pending)
        ));
    }
    if let Some(cause) = &told.cause {
        line.push_str(&format!("\n  {cause}"));
    }
    // Those that a rollback can go to.
    let whole = told.complete_sequence;
    for kept in told
        .versions
        .iter()
        .filter(|kept| Some(kept.sequence) != whole)
    {
        line.push_str(&format!(
            "\n  also here: {}",
            version(Some(kept.sequence), &Some(kept.value.clone()))
        ));
    }
    line
}

fn list(context: &Context) -> Result<(), Fail> {
    let Some(daemon) = context.daemon()? else {
        let book = Book::open(&context.repo(Access::Read)?)?;
        let known = book.core.names();
        return known
            .filter_map(|(name, ..)| book.core.inspect(&name, Duration::ZERO))
            .try_for_each(|seen| show(context, &names::inspected(&seen)));
    };
    context.talk(daemon, async |client| {
        let mut lines = client
            .lines::<(), NameInspected>(Method::GET, "/v1/names", None)
            .await?;
        while let Some(seen) = lines.next().await {
            show(context, &seen?)?;
        }
        Ok(())
    })
}

fn show(context: &Context, seen: &NameInspected) -> Result<(), Fail> {
    context.out.entry(seen, |seen| {
        let role = match (seen.own, seen.followed) {
            (true, _) => "own",
            (_, true) => "followed",
            _ => "resolved",
        };
        let stale = if seen.stale { ", stale" } else { "" };
        format!(
            "{} {} (version {}, {role}{stale})",
            seen.name,
            text::shown(&seen.value),
            seen.sequence
        )
    })
}

fn get(context: &Context, args: &GetArgs) -> Result<(), Fail> {
    let name = name_of(context, &args.name)?;
    let record = match context.daemon()? {
        Some(daemon) => context.talk(daemon, async |client| {
            let path = format!("/v1/names/{name}/record");
            client.get_bytes(&path).await.map(|bytes| bytes.to_vec())
        })?,
        None => Book::open(&context.repo(Access::Read)?)?.record(&name)?,
    };
    let Some(path) = &args.output else {
        return context.out.bytes(&record);
    };
    files::replace(path, &record)?;
    let written = serde_json::json!({ "name": name.to_string(), "path": path.display().to_string(), "bytes": record.len() });
    context
        .out
        .result(&written, |_| format!("saved {}", text::path(path)))
}

fn put(context: &Context, args: &PutArgs) -> Result<(), Fail> {
    let name = name_of(context, &args.name)?;
    let bytes = read(&args.file)?;
    match context.daemon()? {
        Some(daemon) => context.talk(daemon, async |client| {
            let path = format!("/v1/names/{name}/record");
            let _done: Done = client.put_bytes(&path, bytes.into()).await?;
            Ok(())
        })?,
        None => {
            let mut book = Book::open(&context.repo(Access::Write)?)?;
            book.run(Wish::Put { name, bytes })?;
        }
    }
    let taken = resolve(context, name, false)?;
    context.out.result(&taken, |taken| {
        format!(
            "{} points to {} (version {})",
            taken.name, taken.value, taken.sequence
        )
    })
}

/// A record in a file, or on standard input. A little more than a record may have is read, so that the book says what is wrong.
fn read(file: &Path) -> Result<Vec<u8>, Fail> {
    let most = gemba_names::MAX_RECORD_BYTES as u64 + 1;
    let mut bytes = Vec::new();
    if file == Path::new("-") {
        let input = std::io::stdin().lock();
        input
            .take(most)
            .read_to_end(&mut bytes)
            .map_err(|e| Fail::new(Code::Failure, format!("standard input cannot be read: {e}")))?;
    } else {
        let opened = std::fs::File::open(file).map_err(|e| Fail::io(file, &e))?;
        let read = opened.take(most).read_to_end(&mut bytes);
        read.map_err(|e| Fail::io(file, &e))?;
    }
    Ok(bytes)
}

/// A path that begins with a name, as one that begins with what the name points to; any other as it is.
///
/// # Errors
/// The name points to nothing that is known, or to names without an end.
pub(super) fn into_content(context: &Context, text: &str) -> Result<String, Fail> {
    let mut path = text.to_owned();
    for _ in 0..names::DEPTH {
        let Some((name, rest)) = names::split_path(&path) else {
            return Ok(path);
        };
        let found = resolve(context, name, false)?;
        tell_stale(&found);
        path = format!("{}{rest}", found.value);
    }
    Err(Fail::new(
        Code::Failure,
        format!(
            "{} leads from name to name more than {} times",
            text::shown(text),
            names::DEPTH
        ),
    )
    .hint("`gemba name resolve` shows one step: is there a circle?"))
}
