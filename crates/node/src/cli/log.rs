//! Commands about events: `log append`, `read`, `tail`, `ls`, `describe`, `consume`, `ack`, `dead`, `verify`, `consumers`, `export`, `import`.
//!
//! With a daemon they work through its API, without one on the log itself, by the same code.

mod transfer;

use std::cell::RefCell;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::{Command as Process, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt as _;
use gemba_log::{MAX_PAYLOAD, NewEvent};
use hyper::Method;
use serde_json::json;

use super::session::{Daemon, answer_fail, blocking, encoded, talk_leaving, talk_within, url};
use super::{Context, interrupt, output};
use crate::api::types::Done;
use crate::client::Client;
use crate::error::{Code, Fail};
use crate::log::about::About;
use crate::log::consumers::{Goal, is_letter, many_letters, no_letter, parse_event};
use crate::log::wire::{
    self, AckRequest, BranchView, ClaimRequest, Claimed, ClaimedEvent, ConsumerView, DeadLetter,
    EventAck, EventLine, LogVerified, StreamView,
};
use crate::log::{Events, PAGE, Query, no_stream, parse_author, parse_pattern, parse_stream};
use crate::names::wall_ms;
use crate::repo::Access;
use crate::text;

/// Events that one group of an append holds when no daemon runs.
const GROUP: usize = 1024;
/// How long a worker waits for events before it asks again, in milliseconds.
const WAIT_MS: u64 = 10_000;
/// How often a worker without a daemon looks for what is due again.
const LOOK: Duration = Duration::from_millis(100);
/// Events of one claim of `consume`: what is given again to nobody else meanwhile.
const BATCH: u32 = 64;
/// A handler that runs for long says so often that it lives.
const RENEW: Duration = Duration::from_secs(10);
/// Counting is quick: who is silent for so long was killed.
const COUNT_LEASE_MS: u64 = 2_000;
/// What is kept of a handler's words.
const MOST_WORDS: u64 = 4096;

/// Events.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Append an event, or one for each line of standard input; each is told when it is on disk
    Append(AppendArgs),
    /// Print the events of a stream, in the one order over all authors
    Read(ReadArgs),
    /// Print the last events of a stream, and those that come as long as a daemon runs; without one, the last
    Tail(TailArgs),
    /// List the streams: events, rates, authors, what they say of themselves
    Ls(LsArgs),
    /// Say, or show, what a stream means
    Describe(DescribeArgs),
    /// Run a command for each event; one that fails is tried again, and in the end set aside as a dead letter
    Consume(ConsumeArgs),
    /// Count the events of streams, each exactly once, whatever is killed meanwhile; the totals of what was counted ever, a line a stream
    Count(CountArgs),
    /// Move a consumer: what lies before the place counts as done
    Ack(AckArgs),
    /// List the consumers, and how far behind each is; or forget one
    Consumers(ConsumersArgs),
    /// What consumers could not do: list, show, try again, drop
    #[command(subcommand)]
    Dead(DeadCommand),
    /// Read every byte and check it
    Verify,
    /// Write events to standard output, as a file for devices that no network reaches (CAR, as Kubo's `dag import` takes it)
    Export(transfer::ExportArgs),
    /// Take the events of such a file, each batch after it was verified; what is here already stays as it is
    Import(transfer::ImportArgs),
    /// Say that this repository is a copy or came back from a backup: events go on in new epochs, so that no number is given twice
    Restored,
}

/// What `log append` takes.
#[derive(Debug, clap::Args)]
pub struct AppendArgs {
    /// Where, such as hall-1/line-3/press-7/count
    stream: String,
    /// The event; without it each line of standard input is one
    data: Option<String>,
    /// Take all of standard input as one event
    #[arg(long, conflicts_with = "data")]
    whole: bool,
    /// Do not wait for the disk: may be lost in a crash, and dropped under load; needs a daemon
    #[arg(long)]
    fast: bool,
    /// Wait for the disk, also where the stream is described as fast
    #[arg(long, conflicts_with = "fast")]
    durable: bool,
    /// Who produces them: what comes again under the same producer and number is not appended again
    #[arg(long, value_name = "ID")]
    producer: Option<String>,
    /// The producer's number of the first event; the others follow
    #[arg(long, value_name = "N", default_value_t = 0, requires = "producer")]
    producer_seq: u64,
}

/// What `log read` takes.
#[derive(Debug, clap::Args)]
pub struct ReadArgs {
    /// The stream, or a pattern: + stands for one level, # for all that follow
    stream: String,
    /// Begin with this event of each author
    #[arg(long, value_name = "N", default_value_t = 0)]
    from: u64,
    /// Only events not older than this, by the authors' clocks: RFC 3339
    #[arg(long, value_name = "TIME")]
    since: Option<jiff::Timestamp>,
    /// Only those of this author
    #[arg(long, value_name = "PEER")]
    author: Option<String>,
    /// End after so many
    #[arg(short, long, value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Go on with those that come; needs a daemon
    #[arg(short, long)]
    follow: bool,
    /// Print payloads alone, each as a line
    #[arg(long, conflicts_with = "json")]
    raw: bool,
}

/// What `log tail` takes.
#[derive(Debug, clap::Args)]
pub struct TailArgs {
    /// The stream, or a pattern
    stream: String,
    /// Begin so many before the end
    #[arg(short = 'n', long, value_name = "N", default_value_t = 10)]
    lines: u64,
    /// End after so many
    #[arg(short, long, value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Print payloads alone, each as a line
    #[arg(long, conflicts_with = "json")]
    raw: bool,
}

/// What `log ls` takes.
#[derive(Debug, clap::Args)]
pub struct LsArgs {
    /// Only these
    #[arg(default_value = "#")]
    pattern: String,
}

/// What `log describe` takes.
#[derive(Debug, clap::Args)]
pub struct DescribeArgs {
    /// The stream
    stream: String,
    /// What an event means, in a sentence
    #[arg(long, value_name = "TEXT")]
    meaning: Option<String>,
    /// The unit of its value
    #[arg(long, value_name = "TEXT")]
    unit: Option<String>,
    /// Where the payload's form is described: a URL or /ipfs/…
    #[arg(long, value_name = "LINK")]
    schema: Option<String>,
    /// How its events are kept when nobody says otherwise: durable, or fast (may be lost in a crash, dropped under load)
    #[arg(long, value_name = "CLASS")]
    class: Option<String>,
}

/// What `log consume` takes.
#[derive(Debug, clap::Args)]
pub struct ConsumeArgs {
    /// The stream, or a pattern
    stream: String,
    /// The consumer's name, under which it goes on after a restart
    #[arg(long, value_name = "NAME")]
    consumer: String,
    /// Run by the shell for each event, which it finds on standard input; exit code 0 acknowledges. At least once: a crash between
    /// the command's end and the acknowledgement runs it again
    #[arg(long, value_name = "CMD")]
    exec: String,
    /// Begin behind what is there, if the consumer is new
    #[arg(long)]
    tail: bool,
    /// Set an event aside as a dead letter after so many failures, if the consumer is new
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    attempts: Option<u32>,
    /// End after so many events are acknowledged
    #[arg(short, long, value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// End when nothing is left to do
    #[arg(long)]
    drain: bool,
    /// Take it over from the node that runs it
    #[arg(long)]
    take_over: bool,
}

/// What `log count` takes.
#[derive(Debug, clap::Args)]
pub struct CountArgs {
    /// The stream, or a pattern
    stream: String,
    /// The consumer's name, under which it goes on after a restart
    #[arg(long, value_name = "NAME")]
    consumer: String,
    /// Go on with those that come; without it, it ends when all that are here are counted
    #[arg(short, long)]
    follow: bool,
}

/// What `log ack` takes.
#[derive(Debug, clap::Args)]
#[group(skip)]
#[command(group = clap::ArgGroup::new("place").required(true).args(["to_start", "to_tail", "to_time", "event"]))]
pub struct AckArgs {
    /// The consumer
    consumer: String,
    /// Everything again from the first event that is here
    #[arg(long)]
    to_start: bool,
    /// Nothing of what is there now
    #[arg(long)]
    to_tail: bool,
    /// From the first event not before this time on
    #[arg(long, value_name = "TIME")]
    to_time: Option<jiff::Timestamp>,
    /// Through this event of one feed: AUTHOR:EPOCH:SEQ
    #[arg(long, value_name = "EVENT", requires = "stream")]
    event: Option<String>,
    /// The stream of that event; the other places are those of all streams
    #[arg(long, value_name = "STREAM", conflicts_with_all = ["to_start", "to_tail", "to_time"])]
    stream: Option<String>,
}

/// What `log consumers` takes; nothing lists them.
#[derive(Debug, clap::Args)]
pub struct ConsumersArgs {
    #[command(subcommand)]
    command: Option<ConsumersCommand>,
}

/// What is done with consumers.
#[derive(Debug, clap::Subcommand)]
pub enum ConsumersCommand {
    /// List them
    Ls,
    /// Forget one, for good: its places, and what it counted. Events that were kept for it alone may go
    Rm {
        /// The consumer
        consumer: String,
        /// Also while workers hold events of it, or wait for them
        #[arg(long)]
        force: bool,
    },
}

/// What is done about dead letters.
#[derive(Debug, clap::Subcommand)]
pub enum DeadCommand {
    /// List them, with their causes
    Ls {
        /// The consumer
        consumer: String,
    },
    /// Print what the event holds
    Show {
        /// The consumer
        consumer: String,
        /// Which one, as `ls` names it
        id: String,
        /// Its stream: letters of several streams may have one id
        #[arg(long, value_name = "STREAM")]
        stream: Option<String>,
    },
    /// Try one again, or all
    Retry {
        /// The consumer
        consumer: String,
        /// Which one; without it all of them
        id: Option<String>,
        /// Its stream: letters of several streams may have one id
        #[arg(long, value_name = "STREAM", requires = "id")]
        stream: Option<String>,
    },
    /// Drop one: nobody needs it
    Drop {
        /// The consumer
        consumer: String,
        /// Which one
        id: String,
        /// Its stream: letters of several streams may have one id
        #[arg(long, value_name = "STREAM")]
        stream: Option<String>,
    },
}

/// Runs the command.
///
/// # Errors
/// Its own.
pub fn run(context: &Context, command: &Command) -> Result<(), Fail> {
    match command {
        Command::Append(args) => append(context, args),
        Command::Read(args) => read(context, args),
        Command::Tail(args) => tail(context, args),
        Command::Ls(args) => ls(context, args),
        Command::Describe(args) => describe(context, args),
        Command::Consume(args) => consume(context, args),
        Command::Count(args) => count(context, args),
        Command::Ack(args) => ack(context, args),
        Command::Consumers(args) => match &args.command {
            None | Some(ConsumersCommand::Ls) => consumers(context),
            Some(ConsumersCommand::Rm { consumer, force }) => forget(context, consumer, *force),
        },
        Command::Dead(command) => dead(context, command),
        Command::Verify => verify(context),
        Command::Export(args) => transfer::export(context, args),
        Command::Import(args) => transfer::import(context, args),
        Command::Restored => restored(context),
    }
}

/// The log itself, for a command that found no daemon.
fn here(context: &Context) -> Result<Events, Fail> {
    Events::open(&context.repo(Access::Write)?)
}

// Append.

fn append(context: &Context, args: &AppendArgs) -> Result<(), Fail> {
    let stream = parse_stream(&args.stream)?;
    if stream.is_ours() {
        return Err(Fail::new(
            Code::Usage,
            format!("{stream} is one of gemba's own streams"),
        )
        .hint("names that begin with $ are read, not written"));
    }
    match context.daemon()? {
        Some(daemon) => append_there(context, args, daemon),
        None if args.fast => Err(Fail::new(
            Code::NoDaemon,
            "events of the fast class wait in the memory of a daemon",
        )
        .hint("start one with `gemba daemon`, or leave --fast away")),
        None => append_here(context, args),
    }
}

fn append_there(context: &Context, args: &AppendArgs, daemon: Daemon) -> Result<(), Fail> {
    let mut query = Vec::new();
    let seq = args.producer_seq.to_string();
    if args.whole || args.data.is_some() {
        query.push(("whole", "true"));
    }
    if args.fast {
        query.push(("class", "fast"));
    }
    if args.durable {
        query.push(("class", "durable"));
    }
    if let Some(producer) = &args.producer {
        query.extend([
            ("producer", producer.as_str()),
            ("producer_seq", seq.as_str()),
        ]);
    }
    let path = url(
        &format!("/v1/streams/{}/events", encoded(&args.stream)),
        &query,
    );
    let data = args.data.clone();
    context.talk(daemon, async |client| {
        let acks = client
            .upload::<serde_json::Value, _>(&path, move |out| match data {
                Some(data) => out.write_all(data.as_bytes()).map_err(sent_fail),
                None => copy_lines(out),
            })
            .await?;
        let mut acks = std::pin::pin!(acks);
        while let Some(ack) = acks.next().await {
            let ack = ack?;
            // What is fast is not acknowledged, and nothing is said of it.
            if ack.get("class").is_none() {
                let ack: EventAck = serde_json::from_value(ack)
                    .map_err(|_| answer_fail("is no acknowledgement"))?;
                show_ack(context, &ack)?;
            }
        }
        Ok(())
    })
}

fn sent_fail(error: std::io::Error) -> Fail {
    Fail::new(Code::NoDaemon, format!("the daemon took no more: {error}"))
        .hint("what was acknowledged is on disk; look at the daemon's log")
}

/// Standard input as it comes: what is there is sent at once, so that a line is not held back until more follow.
fn copy_lines(out: &mut dyn std::io::Write) -> Result<(), Fail> {
    let mut input = std::io::stdin().lock();
    loop {
        let piece = input.fill_buf().map_err(|e| stdin_fail(&e))?;
        if piece.is_empty() {
            return Ok(());
        }
        out.write_all(piece).map_err(sent_fail)?;
        let read = piece.len();
        input.consume(read);
        out.flush().map_err(sent_fail)?;
    }
}

fn stdin_fail(error: &std::io::Error) -> Fail {
    Fail::new(
        Code::Failure,
        format!("standard input cannot be read: {error}"),
    )
    .hint("give the event as an argument, or name another input")
}

fn show_ack(context: &Context, ack: &EventAck) -> Result<(), Fail> {
    context.out.result(ack, |ack| {
        format!("{} {} {}", ack.stream, ack.author, ack.seq)
    })
}

fn append_here(context: &Context, args: &AppendArgs) -> Result<(), Fail> {
    let events = here(context)?;
    let stream = parse_stream(&args.stream)?;
    interrupt::watch();
    let number = RefCell::new(args.producer_seq);
    let event = |payload: Vec<u8>| {
        let mut event = NewEvent::new(wall_ms(), payload);
        if let Some(producer) = &args.producer {
            let mut number = number.borrow_mut();
            event.headers = event.headers.produced_by(producer.clone(), *number);
            // As over HTTP: beyond the last one there is none.
            *number = number.saturating_add(1);
        }
        event
    };
    let flush = |group: &mut Vec<NewEvent>| {
        for ack in events.append(&stream, group) {
            show_ack(context, &ack?)?;
        }
        group.clear();
        interrupt::check()
    };
    let mut group = Vec::new();
    match &args.data {
        Some(data) => group.push(event(data.clone().into_bytes())),
        None if args.whole => group.push(event(whole()?)),
        None => {
            let mut input = BufReader::with_capacity(64 << 10, std::io::stdin().lock());
            let mut lines = 0;
            let end = loop {
                match next_line(&mut input, lines + 1) {
                    Ok(Some(line)) => group.push(event(line)),
                    Ok(None) => break Ok(()),
                    Err(fail) => break Err(fail),
                }
                lines += 1;
                // All that are there at once; with the last of them none waits for the next.
                if group.len() == GROUP || !input.buffer().contains(&b'\n') {
                    flush(&mut group)?;
                }
            };
            // Those before a line that is none are appended and told first.
            flush(&mut group)?;
            end?;
        }
    }
    flush(&mut group)?;
    events.close();
    Ok(())
}

fn whole() -> Result<Vec<u8>, Fail> {
    let mut data = Vec::new();
    let input = std::io::stdin().lock();
    let most = MAX_PAYLOAD as u64 + 1;
    input
        .take(most)
        .read_to_end(&mut data)
        .map_err(|e| stdin_fail(&e))?;
    match data.len() > MAX_PAYLOAD {
        true => Err(too_large("standard input")),
        false => Ok(data),
    }
}

/// What was not read to its end has a length that nobody knows.
fn too_large(what: &str) -> Fail {
    Fail::new(
        Code::Usage,
        format!("an event may have {MAX_PAYLOAD} bytes, and {what} has more"),
    )
    .hint("`gemba add` the content and append its CID; if lines are too long, is an end of line missing?")
}

fn next_line(
    input: &mut BufReader<std::io::StdinLock<'_>>,
    number: u64,
) -> Result<Option<Vec<u8>>, Fail> {
    let mut line = Vec::new();
    let most = MAX_PAYLOAD as u64 + 2;
    let read = input
        .by_ref()
        .take(most)
        .read_until(b'\n', &mut line)
        .map_err(|e| stdin_fail(&e))?;
    if line.last() == Some(&b'\n') {
        line.pop();
    }
    if line.len() > MAX_PAYLOAD {
        return Err(too_large(&format!("line {number} of standard input")));
    }
    Ok((read > 0).then_some(line))
}

// Read.

fn read(context: &Context, args: &ReadArgs) -> Result<(), Fail> {
    let from = args.from.to_string();
    let since = args.since.map(|since| since.as_millisecond());
    let since_text = since.map(|since| since.to_string());
    let count = args.count.map(|count| count.to_string());
    let mut query = vec![("from", from.as_str())];
    query.extend(since_text.as_deref().map(|since| ("since_ms", since)));
    query.extend(args.author.as_deref().map(|author| ("author", author)));
    query.extend(count.as_deref().map(|count| ("limit", count)));
    if args.follow {
        query.push(("follow", "true"));
    }
    let shown = |event: &EventLine| show(context, event, args.raw);
    if args.follow {
        return read_there(
            context,
            context.require_daemon()?,
            &args.stream,
            &query,
            shown,
        );
    }
    let came = std::cell::Cell::new(false);
    let shown = |event: &EventLine| {
        came.set(true);
        shown(event)
    };
    if let Some(daemon) = context.daemon()? {
        read_there(context, daemon, &args.stream, &query, shown)?;
    } else {
        read_all_here(context, args, since, shown)?;
    }
    // A reader that starts later, or looks for newer ones, is not told that there is no such stream.
    let is_whole = args.from == 0 && args.since.is_none() && args.author.is_none();
    if !came.get() && is_whole && !args.stream.contains(['+', '#']) {
        return Err(no_stream(&args.stream));
    }
    Ok(())
}

fn read_all_here(
    context: &Context,
    args: &ReadArgs,
    since: Option<i64>,
    shown: impl FnMut(&EventLine) -> Result<(), Fail>,
) -> Result<(), Fail> {
    let what = Query {
        pattern: parse_pattern(&args.stream)?,
        author: args.author.as_deref().map(parse_author).transpose()?,
        from: args.from,
        since,
    };
    let events = here(context)?;
    let cursor = events.begin(&what)?;
    read_here(&events, &what, cursor, args.count, shown)
}

fn tail(context: &Context, args: &TailArgs) -> Result<(), Fail> {
    let (lines, count) = (
        args.lines.to_string(),
        args.count.map(|count| count.to_string()),
    );
    let mut query = vec![("tail", lines.as_str()), ("follow", "true")];
    query.extend(count.as_deref().map(|count| ("limit", count)));
    let shown = |event: &EventLine| show(context, event, args.raw);
    if let Some(daemon) = context.daemon()? {
        return read_there(context, daemon, &args.stream, &query, shown);
    }
    // Without a daemon nothing comes: what is here is all there is.
    let what = Query {
        pattern: parse_pattern(&args.stream)?,
        author: None,
        from: 0,
        since: None,
    };
    let events = here(context)?;
    let cursor = events.tail(&what, args.lines);
    read_here(&events, &what, cursor, args.count, shown)
}

fn read_there(
    context: &Context,
    daemon: Daemon,
    stream: &str,
    query: &[(&str, &str)],
    mut shown: impl FnMut(&EventLine) -> Result<(), Fail>,
) -> Result<(), Fail> {
    let path = url(&format!("/v1/streams/{}/events", encoded(stream)), query);
    let follows = query.contains(&("follow", "true"));
    let read = talk_within(context.timeout, daemon, async |client| {
        let mut lines = client
            .lines::<(), EventLine>(Method::GET, &path, None)
            .await?;
        while let Some(line) = lines.next().await {
            shown(&line?)?;
        }
        Ok(())
    });
    read.map_err(|fail| match fail.code {
        Code::Timeout if follows => {
            let cause = format!("the time to follow {stream} ran out; what came is printed");
            Fail::new(Code::Timeout, cause).hint("without --timeout it goes on until it is ended")
        }
        _ => fail,
    })
}

fn read_here(
    events: &Events,
    what: &Query,
    mut cursor: crate::log::Cursor,
    count: Option<u64>,
    mut shown: impl FnMut(&EventLine) -> Result<(), Fail>,
) -> Result<(), Fail> {
    interrupt::watch();
    let mut left = count.unwrap_or(u64::MAX);
    while left > 0 {
        let most = PAGE.min(usize::try_from(left).unwrap_or(PAGE));
        let mut read = 0;
        let more = events.read(what, &mut cursor, most, |part, event| {
            read += 1;
            shown(&wire::line(part, event))
        })?;
        interrupt::check()?;
        left -= read;
        if !more {
            return Ok(());
        }
    }
    Ok(())
}

fn show(context: &Context, event: &EventLine, raw: bool) -> Result<(), Fail> {
    if raw {
        context.out.bytes(&event.payload())?;
        context.out.bytes(b"\n")?;
        return context.out.flush();
    }
    context.out.result(event, EventLine::people)
}

// The catalogue.

fn ls(context: &Context, args: &LsArgs) -> Result<(), Fail> {
    let pattern = parse_pattern(&args.pattern)?;
    let views = match context.daemon()? {
        Some(daemon) => {
            let path = url("/v1/streams", &[("pattern", &args.pattern)]);
            context.talk(daemon, async |client| {
                all::<StreamView>(client, &path).await
            })?
        }
        None => here(context)?.catalogue(&pattern, wall_ms()),
    };
    for view in views {
        context.out.entry(&view, |view| {
            let about = view.about.clone().unwrap_or_default();
            let unit = about
                .unit
                .map(|unit| format!(" [{unit}]"))
                .unwrap_or_default();
            let forked = match view.branches.len() {
                0 => String::new(),
                more => format!(
                    ", {} more",
                    text::count(more as u64, "history", "histories")
                ),
            };
            format!(
                "{}{unit}  {}, {:.1}/s, {}{forked}, last {}  {}",
                view.stream,
                text::count(view.events, "event", "events"),
                view.rate,
                text::count(view.authors.len() as u64, "author", "authors"),
                view.last.as_deref().unwrap_or("never"),
                about.meaning.unwrap_or_default(),
            )
        })?;
    }
    Ok(())
}

async fn all<T: serde::de::DeserializeOwned + Send + 'static>(
    client: &Client,
    path: &str,
) -> Result<Vec<T>, Fail> {
    let mut lines = client.lines::<(), T>(Method::GET, path, None).await?;
    let mut entries = Vec::new();
    while let Some(line) = lines.next().await {
        entries.push(line?);
    }
    Ok(entries)
}

fn describe(context: &Context, args: &DescribeArgs) -> Result<(), Fail> {
    let stream = parse_stream(&args.stream)?;
    let newer = About {
        meaning: args.meaning.clone(),
        unit: args.unit.clone(),
        schema: args.schema.clone(),
        class: args.class.clone(),
    };
    let path = format!("/v1/streams/{}/about", encoded(&args.stream));
    let about = match context.daemon()? {
        Some(daemon) => context.talk(daemon, async |client| {
            if newer.is_empty() {
                client.get_json::<About>(&path).await
            } else {
                client.post_json(&path, &newer).await
            }
        })?,
        None => {
            let events = here(context)?;
            if newer.is_empty() {
                events.about(&stream)?.unwrap_or_default()
            } else {
                events.describe(&stream, newer, wall_ms())?
            }
        }
    };
    if about.is_empty() {
        return Err(
            Fail::new(Code::NotFound, format!("{stream} says nothing of itself"))
                .hint("`gemba log describe STREAM --meaning TEXT --unit TEXT` says it"),
        );
    }
    context.out.result(&about, |about| {
        let rows = [
            ("meaning", &about.meaning),
            ("unit", &about.unit),
            ("schema", &about.schema),
            ("class", &about.class),
        ];
        let rows = rows
            .iter()
            .filter_map(|(what, value)| Some(format!("{what}: {}", value.as_ref()?)));
        rows.collect::<Vec<_>>().join("; ")
    })
}

fn verify(context: &Context) -> Result<(), Fail> {
    let verified: LogVerified = match context.daemon()? {
        Some(daemon) => context.talk(daemon, async |client| {
            client.post_json("/v1/log/verify", &json!({})).await
        })?,
        None => here(context)?.verify()?,
    };
    context.out.result(&verified, |verified| {
        let branches = verified.branches.iter();
        let branches = branches.map(|branch| {
            let BranchView {
                stream,
                author,
                epoch,
                branch,
                from,
                ..
            } = branch;
            format!("\n{stream}: {author} wrote a second history of epoch {epoch}, from event {from} on: {branch}")
        });
        format!(
            "{} in {} checked, {} damaged{}",
            text::count(verified.events, "event", "events"),
            text::count(verified.batches, "batch", "batches"),
            text::count(verified.damaged.len() as u64, "place", "places"),
            branches.collect::<String>(),
        )
    })?;
    if verified.ok {
        return Ok(());
    }
    let first = verified.damaged.first().cloned().unwrap_or_default();
    Err(Fail::new(
        Code::Integrity,
        format!("events are damaged on this disk: {first}"),
    )
    .hint("devices that have them are asked when they connect; look at the disk (`dmesg`)"))
}

fn restored(context: &Context) -> Result<(), Fail> {
    match context.daemon()? {
        Some(daemon) => context.talk(daemon, async |client| {
            let path = "/v1/log/restored";
            client
                .post_json::<_, Done>(path, &json!({}))
                .await
                .map(drop)
        })?,
        None => {
            let events = here(context)?;
            events.begin_epochs()?;
            events.close();
        }
    }
    context.out.result(&json!({"new_epochs": true}), |_| {
        "the next events of each stream go into a new epoch".to_owned()
    })
}

// Consumers.

/// Where a worker gets its work: a daemon, or the log itself.
enum Work {
    There(Daemon),
    Here(Events),
}

fn consume(context: &Context, args: &ConsumeArgs) -> Result<(), Fail> {
    parse_pattern(&args.stream)?;
    let request = ClaimRequest {
        worker: worker_number()?,
        streams: vec![args.stream.clone()],
        start: args.tail.then(|| "tail".to_owned()),
        attempts: args.attempts,
        batch: Some(BATCH),
        take_over: args.take_over,
        ..ClaimRequest::default()
    };
    let work = match context.daemon()? {
        Some(daemon) => Work::There(daemon),
        None => Work::Here(here(context)?),
    };
    match work {
        Work::There(daemon) => {
            let worker = json!({"worker": request.worker});
            let path = format!("/v1/consumers/{}/leave", encoded(&args.consumer));
            let work = async |client: &Client| {
                consume_there(context, args, client, &mut request.clone()).await
            };
            let leave =
                async |client: &Client| client.post_json::<_, Done>(&path, &worker).await.map(drop);
            let outcome = talk_leaving(context.timeout, daemon, work, leave);
            outcome.map_err(|fail| match fail.code {
                Code::Timeout => consumer_late(),
                _ => fail,
            })
        }
        Work::Here(events) => {
            let outcome = consume_here(context, args, &events, request);
            events.close();
            outcome
        }
    }
}

async fn consume_there(
    context: &Context,
    args: &ConsumeArgs,
    client: &Client,
    request: &mut ClaimRequest,
) -> Result<(), Fail> {
    let path = |what: &str| format!("/v1/consumers/{}/{what}", encoded(&args.consumer));
    request.wait_ms = Some(if args.drain { 0 } else { WAIT_MS });
    let mut done = 0;
    loop {
        let claimed: Claimed = client.post_json(&path("claim"), &*request).await?;
        goes_on(request);
        if claimed.events.is_empty()
            && args.drain
            && is_drained(
                &client
                    .get_json(&format!("/v1/consumers/{}", encoded(&args.consumer)))
                    .await?,
            )
        {
            return Ok(());
        }
        if claimed.events.is_empty() && args.drain {
            tokio::time::sleep(LOOK).await;
        }
        for event in claimed.events {
            let running = run_handler(args.exec.clone(), event.clone());
            let mut running = std::pin::pin!(running);
            let refused = loop {
                tokio::select! {
                    outcome = &mut running => break outcome?,
                    () = tokio::time::sleep(RENEW) => {
                        let renewed: Done = client.post_json(&path("renew"), &json!({"token": claimed.token})).await?;
                        debug_assert!(renewed.ok);
                    }
                }
            };
            let request = AckRequest {
                token: claimed.token,
                seq: event.event.seq,
                state: None,
                refused: refused.clone(),
            };
            let _acked: Done = client.post_json(&path("ack"), &request).await?;
            done += u64::from(refused.is_none());
            tell_worked(context, &event, refused.as_deref())?;
            if args.count == Some(done) {
                return Ok(());
            }
        }
    }
}

/// The consumer is there now: one that is forgotten is not made anew by its own workers, and none is taken over a second time.
fn goes_on(request: &mut ClaimRequest) {
    request.streams.clear();
    request.take_over = false;
}

// Count: the smallest consumer with effect once. What it counted is kept with its place, in one transaction.

/// How many events of a stream were counted.
#[derive(serde::Serialize)]
struct Counted {
    stream: String,
    count: u64,
}

fn count(context: &Context, args: &CountArgs) -> Result<(), Fail> {
    parse_pattern(&args.stream)?;
    let mut request = ClaimRequest {
        worker: worker_number()?,
        streams: vec![args.stream.clone()],
        wait_ms: Some(if args.follow { WAIT_MS } else { 0 }),
        lease_ms: Some(COUNT_LEASE_MS),
        ..ClaimRequest::default()
    };
    let view = match context.daemon()? {
        Some(daemon) => {
            let worker = json!({"worker": request.worker});
            let path = |what: &str| format!("/v1/consumers/{}{what}", encoded(&args.consumer));
            let work = async |client: &Client| loop {
                let claimed: Claimed = client.post_json(&path("/claim"), &request).await?;
                goes_on(&mut request);
                if let Some(ack) = counted(&claimed)? {
                    let _acked: Done = client.post_json(&path("/ack"), &ack).await?;
                } else if !args.follow {
                    let view: ConsumerView = client.get_json(&path("")).await?;
                    if is_drained(&view) {
                        return Ok(view);
                    }
                    // Another worker has them still, or had them when it was killed: then its lease has to run out.
                    tokio::time::sleep(LOOK).await;
                }
            };
            let leave = async |client: &Client| {
                let path = path("/leave");
                client.post_json::<_, Done>(&path, &worker).await.map(drop)
            };
            talk_leaving(context.timeout, daemon, work, leave)?
        }
        None => count_here(context, args, &request)?,
    };
    let mut totals = std::collections::BTreeMap::new();
    for feed in view.feeds {
        *totals.entry(feed.stream).or_insert(0) +=
            feed.state.and_then(|state| state.as_u64()).unwrap_or(0);
    }
    for (stream, count) in totals {
        context.out.entry(&Counted { stream, count }, |counted| {
            format!("{} {}", counted.count, counted.stream)
        })?;
    }
    Ok(())
}

/// The acknowledgement of all that was claimed, with the count that goes with it.
fn counted(claimed: &Claimed) -> Result<Option<AckRequest>, Fail> {
    let Some(last) = claimed.events.last() else {
        return Ok(None);
    };
    let before = match &claimed.state {
        None => 0,
        Some(state) => state.as_u64().ok_or_else(|| {
            Fail::new(
                Code::Conflict,
                "this consumer keeps something else than a count",
            )
            .hint("give the counter a name of its own")
        })?,
    };
    Ok(Some(AckRequest {
        token: claimed.token,
        seq: last.event.seq,
        state: Some(json!(before + claimed.events.len() as u64)),
        refused: None,
    }))
}

fn count_here(
    context: &Context,
    args: &CountArgs,
    request: &ClaimRequest,
) -> Result<ConsumerView, Fail> {
    interrupt::watch();
    let events = here(context)?;
    let consumers = events.consumers();
    let counting = || loop {
        interrupt::check()?;
        let claimed = consumers
            .claim(&args.consumer, request)?
            .unwrap_or_default();
        match counted(&claimed)? {
            Some(ack) => consumers.acknowledge(&args.consumer, ack)?,
            // Nobody else can write here while this command has the log.
            None => return consumers.view(&args.consumer),
        }
    };
    // A claim ends with this process: leases lie in memory.
    let view = counting();
    events.close();
    view
}

fn worker_number() -> Result<u64, Fail> {
    let mut worker = [0; 8];
    getrandom::fill(&mut worker)
        .map_err(|e| Fail::new(Code::Failure, format!("no randomness: {e}")))?;
    // Within what every JSON reader takes exactly.
    Ok(u64::from_le_bytes(worker) >> 11)
}

fn is_drained(view: &ConsumerView) -> bool {
    view.lag == 0 && view.feeds.iter().all(|feed| feed.waiting == 0)
}

fn consume_here(
    context: &Context,
    args: &ConsumeArgs,
    events: &Events,
    mut request: ClaimRequest,
) -> Result<(), Fail> {
    interrupt::watch();
    let began = Instant::now();
    let consumers = events.consumers();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Fail::resources("threads", &e))?;
    let mut done = 0;
    loop {
        interrupt::check()?;
        if context.timeout.is_some_and(|limit| began.elapsed() > limit) {
            return Err(consumer_late());
        }
        let claimed = consumers
            .claim(&args.consumer, &request)?
            .unwrap_or_default();
        goes_on(&mut request);
        if claimed.events.is_empty() {
            // Nobody else can write here while this command has the log.
            if is_drained(&consumers.view(&args.consumer)?) {
                return Ok(());
            }
            std::thread::sleep(LOOK);
        }
        for event in claimed.events {
            let refused = runtime.block_on(run_handler(args.exec.clone(), event.clone()))?;
            let request = AckRequest {
                token: claimed.token,
                seq: event.event.seq,
                state: None,
                refused: refused.clone(),
            };
            consumers.acknowledge(&args.consumer, request)?;
            done += u64::from(refused.is_none());
            tell_worked(context, &event, refused.as_deref())?;
            interrupt::check()?;
            if args.count == Some(done) {
                return Ok(());
            }
        }
    }
}

fn consumer_late() -> Fail {
    Fail::new(
        Code::Timeout,
        "the time for this consumer ran out; what was acknowledged stays so",
    )
    .hint("the same command goes on; `gemba log dead ls CONSUMER` tells what fails for good")
}

/// What `consume` says of each event.
#[derive(serde::Serialize)]
struct Worked<'a> {
    #[serde(flatten)]
    event: &'a EventLine,
    attempts: u32,
    ok: bool,
    cause: Option<&'a str>,
}

fn tell_worked(context: &Context, event: &ClaimedEvent, refused: Option<&str>) -> Result<(), Fail> {
    let worked = Worked {
        event: &event.event,
        attempts: event.attempts + 1,
        ok: refused.is_none(),
        cause: refused,
    };
    if context.out.json {
        return context.out.result(&worked, |_| String::new());
    }
    if let Some(cause) = refused {
        let EventLine { stream, seq, .. } = &event.event;
        output::note(&format!(
            "{stream} {seq} failed ({} so far): {cause}",
            text::count(u64::from(worked.attempts), "time", "times")
        ));
    }
    Ok(())
}

/// Runs the command with the event on its standard input. Nothing: it took it; else why not.
async fn run_handler(command: String, event: ClaimedEvent) -> Result<Option<String>, Fail> {
    blocking(move || {
        let line = &event.event;
        let mut child = Process::new("sh")
            .arg("-c")
            .arg(&command)
            .env("GEMBA_STREAM", &line.stream)
            .env("GEMBA_AUTHOR", &line.author)
            .env("GEMBA_SEQ", line.seq.to_string())
            .env("GEMBA_EPOCH", line.epoch.to_string())
            .env("GEMBA_TIME", &line.time)
            .env("GEMBA_ATTEMPT", (event.attempts + 1).to_string())
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|e| Fail::resources("process", &e))?;
        let payload = Bytes::from(line.payload());
        let stdin = child.stdin.take();
        // A handler may end without reading: that is its own affair.
        let feeding = std::thread::spawn(move || {
            if let Some(mut stdin) = stdin {
                let _ended_early = stdin.write_all(&payload);
            }
        });
        let mut words = Vec::new();
        if let Some(mut stderr) = child.stderr.take() {
            let _broken = (&mut stderr).take(MOST_WORDS).read_to_end(&mut words);
            let _rest = std::io::copy(&mut stderr, &mut std::io::sink());
        }
        let status = child.wait().map_err(|e| Fail::resources("process", &e))?;
        let _never_panics = feeding.join();
        if status.success() {
            return Ok(None);
        }
        let words = String::from_utf8_lossy(&words);
        let words = words.trim();
        Ok(Some(if words.is_empty() {
            format!("the command ended with {status}")
        } else {
            format!("the command ended with {status}: {words}")
        }))
    })
    .await
}

fn ack(context: &Context, args: &AckArgs) -> Result<(), Fail> {
    let through = match (&args.stream, &args.event) {
        (Some(stream), Some(event)) => {
            let mut id = parse_event(stream, event)?;
            id.seq += 1;
            Some(id)
        }
        _ => None,
    };
    let view = match context.daemon()? {
        Some(daemon) => {
            let body = match &through {
                Some(id) => json!({
                    "stream": id.feed.stream.to_string(),
                    "event": format!("{}:{}:{}", crate::log::author_text(&id.feed.author), id.feed.epoch, id.seq),
                }),
                None if args.to_start => json!({"to": "start"}),
                None if args.to_tail => json!({"to": "tail"}),
                None => json!({"time_ms": args.to_time.map(|time| time.as_millisecond())}),
            };
            let path = format!("/v1/consumers/{}/seek", encoded(&args.consumer));
            context.talk(daemon, async |client| {
                client.post_json::<_, ConsumerView>(&path, &body).await
            })?
        }
        None => {
            let events = here(context)?;
            let goal = match (through, args.to_time) {
                (Some(id), _) => Goal::Event(id),
                (None, Some(time)) => Goal::Time(time.as_millisecond()),
                (None, None) if args.to_start => Goal::Start,
                (None, None) => Goal::Tail,
            };
            events.consumers().seek(&args.consumer, goal)?;
            events.consumers().view(&args.consumer)?
        }
    };
    show_consumer(context, &view)
}

fn show_consumer(context: &Context, view: &ConsumerView) -> Result<(), Fail> {
    context.out.entry(view, |view| {
        let streams = view.streams.join(" ");
        if view.elsewhere {
            let (name, dead) = (&view.consumer, view.dead);
            let node = view.runs_on.as_deref().unwrap_or("another node");
            return format!("{name}  reads {streams}, runs on {node}, {dead} dead");
        }
        format!(
            "{}  reads {streams}, {} behind, {} dead",
            view.consumer,
            text::count(view.lag, "event", "events"),
            view.dead
        )
    })
}

fn consumers(context: &Context) -> Result<(), Fail> {
    let views = match context.daemon()? {
        Some(daemon) => context.talk(daemon, async |client| {
            all::<ConsumerView>(client, "/v1/consumers").await
        })?,
        None => here(context)?.consumers().list()?,
    };
    views
        .iter()
        .try_for_each(|view| show_consumer(context, view))
}

fn forget(context: &Context, consumer: &str, force: bool) -> Result<(), Fail> {
    match context.daemon()? {
        Some(daemon) => {
            let path = format!("/v1/consumers/{}", encoded(consumer));
            let path = match force {
                true => url(&path, &[("force", "true")]),
                false => path,
            };
            context.talk(daemon, async |client| {
                client.delete_json::<Done>(&path).await.map(drop)
            })?;
        }
        None => here(context)?.consumers().forget(consumer, force)?,
    }
    let done = json!({"consumer": consumer, "forgotten": true});
    context
        .out
        .result(&done, |_| format!("{consumer} is forgotten"))
}

fn dead(context: &Context, command: &DeadCommand) -> Result<(), Fail> {
    match command {
        DeadCommand::Ls { consumer } => {
            for letter in letters(context, consumer)? {
                context.out.entry(&letter, |letter| {
                    format!(
                        "{}  {} after {} in {:.0} s: {}",
                        letter.id,
                        letter.stream,
                        text::count(u64::from(letter.attempts), "try", "tries"),
                        letter.held_s,
                        letter.cause
                    )
                })?;
            }
            Ok(())
        }
        DeadCommand::Show {
            consumer,
            id,
            stream,
        } => {
            let letters = letters(context, consumer)?.into_iter();
            let mut found = letters
                .filter(|letter| is_letter((id, stream.as_deref()), &letter.stream, &letter.id));
            let letter = match (found.next(), found.next()) {
                (Some(letter), None) => letter,
                (Some(one), Some(other)) => {
                    return Err(many_letters(consumer, id, one.stream, other.stream));
                }
                (None, _) => return Err(no_letter(consumer, id)),
            };
            if context.out.json {
                return context.out.result(&letter, |_| String::new());
            }
            let data = letter.data.as_deref().unwrap_or_default();
            let bytes = data_encoding::BASE64
                .decode(data.as_bytes())
                .map_err(Fail::internal)?;
            context.out.bytes(&bytes)?;
            context.out.bytes(b"\n")
        }
        DeadCommand::Retry {
            consumer, id: None, ..
        } => {
            let letters = letters(context, consumer)?.into_iter();
            let all = letters.map(|letter| (letter.id, Some(letter.stream)));
            change_letters(context, consumer, &all.collect::<Vec<_>>(), "retry")
        }
        DeadCommand::Retry {
            consumer,
            id: Some(id),
            stream,
        } => change_letters(context, consumer, &[(id.clone(), stream.clone())], "retry"),
        DeadCommand::Drop {
            consumer,
            id,
            stream,
        } => change_letters(context, consumer, &[(id.clone(), stream.clone())], "drop"),
    }
}

fn letters(context: &Context, consumer: &str) -> Result<Vec<DeadLetter>, Fail> {
    match context.daemon()? {
        Some(daemon) => {
            let path = format!("/v1/consumers/{}/dead", encoded(consumer));
            context.talk(daemon, async |client| {
                all::<DeadLetter>(client, &path).await
            })
        }
        None => here(context)?.consumers().dead(consumer),
    }
}

fn change_letters(
    context: &Context,
    consumer: &str,
    which: &[(String, Option<String>)],
    what: &str,
) -> Result<(), Fail> {
    match context.daemon()? {
        Some(daemon) => {
            let path = format!("/v1/consumers/{}/dead/{what}", encoded(consumer));
            context.talk(daemon, async |client| {
                for (id, stream) in which {
                    let body = json!({"id": id, "stream": stream});
                    let _done: Done = client.post_json(&path, &body).await?;
                }
                Ok(())
            })?;
        }
        None => {
            let events = here(context)?;
            for (id, stream) in which {
                let one = (id.as_str(), stream.as_deref());
                match what {
                    "retry" => events.consumers().retry(consumer, one)?,
                    _ => events.consumers().drop_letter(consumer, one)?,
                }
            }
        }
    }
    let done = json!({"consumer": consumer, what: which.len()});
    context.out.result(&done, |_| {
        text::count(which.len() as u64, "dead letter", "dead letters")
    })
}
