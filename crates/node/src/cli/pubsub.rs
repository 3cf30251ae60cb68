//! Commands about messages by topic: `pubsub pub`, `sub`, `ls`, `peers`, `health`.

use std::io::{BufRead as _, Read as _};
use std::time::Duration;

use bytes::Bytes;
use data_encoding::BASE64;
use futures::{StreamExt as _, TryStreamExt as _};
use hyper::Method;

use super::session::{answer_fail, blocking, talk_within, url};
use super::{Context, output};
use crate::api::types::{PubsubHealth, PubsubLine, PubsubPeer, PubsubSent, PubsubTopic};
use crate::client::Client;
use crate::error::{Code, Fail};
use crate::text;

/// What is read of one line of standard input; the daemon refuses what is too long.
const MOST_BYTES: u64 = (1 << 20) + 1;
/// How much longer than the daemon may wait for a reader its answer may take.
const GRACE: Duration = Duration::from_secs(5);
/// How long the daemon waits without `--timeout`.
const PATIENCE: Duration = Duration::from_secs(10);

/// Messages by topic.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Send a message to whoever subscribes; --timeout says how long it may wait for somebody (10 s)
    Pub(PubArgs),
    /// Print the messages of a topic as they come
    Sub(SubArgs),
    /// List the topics that are read on this device
    Ls,
    /// List the peers that subscribe
    Peers(PeersArgs),
    /// Tell how pubsub fares
    Health,
}

/// What `pubsub pub` takes.
#[derive(Debug, clap::Args)]
pub struct PubArgs {
    /// Where
    topic: String,
    /// The message; without it each line of standard input is one
    data: Option<String>,
    /// Send all of standard input as one message
    #[arg(long, conflicts_with = "data")]
    whole: bool,
}

/// What `pubsub sub` takes.
#[derive(Debug, clap::Args)]
pub struct SubArgs {
    /// What to read
    topic: String,
    /// End after so many messages
    #[arg(short, long, value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
}

/// What `pubsub peers` takes.
#[derive(Debug, clap::Args)]
pub struct PeersArgs {
    /// Those that subscribe to this one; without it, everybody who speaks pubsub
    topic: Option<String>,
}

/// Runs the command.
///
/// # Errors
/// Its own; [`Code::NoDaemon`].
pub fn run(context: &Context, command: &Command) -> Result<(), Fail> {
    match command {
        Command::Pub(args) => publish(context, args),
        Command::Sub(args) => subscribe(context, args),
        Command::Ls => ls(context),
        Command::Peers(args) => peers(context, args),
        Command::Health => health(context),
    }
}

fn publish(context: &Context, args: &PubArgs) -> Result<(), Fail> {
    let daemon = context.require_daemon()?;
    let path = url("/v1/pubsub/pub", &[("topic", &args.topic)]);
    // The daemon ends each message's wait by itself, and says why.
    talk_within(None, daemon, async |client| {
        if let Some(data) = &args.data {
            return send(context, client, &path, data.clone().into()).await;
        }
        if args.whole {
            return send(context, client, &path, blocking(whole).await?).await;
        }
        while let Some(line) = blocking(next_line).await? {
            send(context, client, &path, line).await?;
        }
        Ok(())
    })
}

async fn send(context: &Context, client: &Client, path: &str, data: Bytes) -> Result<(), Fail> {
    let limit = context.timeout.unwrap_or(PATIENCE) + GRACE;
    let sending = client.post_bytes::<PubsubSent>(path, data);
    let sent = match tokio::time::timeout(limit, sending).await {
        Ok(sent) => sent?,
        Err(_) => return Err(client.too_late(limit).await),
    };
    context.out.result(&sent, |sent| sent.id.clone())
}

fn whole() -> Result<Bytes, Fail> {
    let mut data = Vec::new();
    let input = std::io::stdin().lock();
    input
        .take(MOST_BYTES)
        .read_to_end(&mut data)
        .map_err(|e| stdin_fail(&e))?;
    Ok(data.into())
}

/// The next line, without its end; nothing at the end of the input.
fn next_line() -> Result<Option<Bytes>, Fail> {
    let mut line = Vec::new();
    let read = std::io::stdin()
        .lock()
        .take(MOST_BYTES)
        .read_until(b'\n', &mut line)
        .map_err(|e| stdin_fail(&e))?;
    if line.last() == Some(&b'\n') {
        line.pop();
    }
    Ok((read > 0).then(|| line.into()))
}

fn stdin_fail(error: &std::io::Error) -> Fail {
    Fail::new(
        Code::Failure,
        format!("standard input cannot be read: {error}"),
    )
    .hint("give the message as an argument, or name another input")
}

fn subscribe(context: &Context, args: &SubArgs) -> Result<(), Fail> {
    let daemon = context.require_daemon()?;
    let path = url("/v1/pubsub/sub", &[("topic", &args.topic)]);
    talk_within(None, daemon, async |client| {
        let mut came = 0;
        let reading = async {
            let mut lines = client
                .lines::<(), PubsubLine>(Method::GET, &path, None)
                .await?;
            while let Some(line) = lines.next().await {
                let line = line?;
                came += u64::from(matches!(line, PubsubLine::Message(_)));
                show(context, &line)?;
                if args.count == Some(came) {
                    return Ok(());
                }
            }
            Err(answer_fail("ended before its time"))
        };
        match context.timeout {
            None => reading.await,
            Some(limit) => match tokio::time::timeout(limit, reading).await {
                Ok(outcome) => outcome,
                Err(_) => Err(over(&args.topic, limit, came)),
            },
        }
    })
}

fn over(topic: &str, limit: Duration, came: u64) -> Fail {
    let came = text::count(came, "message", "messages");
    Fail::new(
        Code::Timeout,
        format!(
            "{topic} was read for {} s: {came} came",
            limit.as_secs_f64()
        ),
    )
    .hint("without --timeout it is read until Ctrl-C; `gemba pubsub health` tells how the topic fares")
}

fn show(context: &Context, line: &PubsubLine) -> Result<(), Fail> {
    if context.out.json {
        return context.out.result(line, |_| String::new());
    }
    match line {
        PubsubLine::Message(message) => {
            let data = BASE64
                .decode(message.data.as_bytes())
                .map_err(|_| answer_fail("holds a message that is not base64"))?;
            context.out.bytes(&data)?;
            context.out.bytes(b"\n")?;
            context.out.flush()
        }
        PubsubLine::Lagged { lagged } => {
            let lost = text::count(*lagged, "message was", "messages were");
            output::note(&format!(
                "{lost} dropped here: this command did not read fast enough"
            ));
            Ok(())
        }
    }
}

fn ls(context: &Context) -> Result<(), Fail> {
    let daemon = context.require_daemon()?;
    let topics: Vec<PubsubTopic> = context.talk(daemon, async |client| {
        let lines = client.lines::<(), _>(Method::GET, "/v1/pubsub/topics", None);
        lines.await?.try_collect().await
    })?;
    topics
        .iter()
        .try_for_each(|topic| context.out.entry(topic, |topic| topic.topic.clone()))
}

fn peers(context: &Context, args: &PeersArgs) -> Result<(), Fail> {
    let daemon = context.require_daemon()?;
    let path = match &args.topic {
        Some(topic) => url("/v1/pubsub/peers", &[("topic", topic)]),
        None => "/v1/pubsub/peers".to_owned(),
    };
    let peers: Vec<PubsubPeer> = context.talk(daemon, async |client| {
        let lines = client.lines::<(), _>(Method::GET, &path, None);
        lines.await?.try_collect().await
    })?;
    if context.out.json {
        return peers
            .iter()
            .try_for_each(|peer| context.out.entry(peer, |_| String::new()));
    }
    if peers.is_empty() {
        return context.out.text(match args.topic {
            Some(_) => "no connected peer subscribes to it: `gemba pubsub peers` lists who subscribes to what",
            None => "no peer is connected: `gemba status` tells what went wrong lately",
        });
    }
    context.out.text(&text::columns(&peer_rows(&peers)))
}

fn peer_rows(peers: &[PubsubPeer]) -> Vec<Vec<String>> {
    let head = ["PEER", "STREAM", "WAITING", "TOPICS"];
    let row = |peer: &PubsubPeer| {
        vec![
            peer.id.clone(),
            peer.stream.clone(),
            text::bytes(peer.queued_bytes),
            // Named by the other side.
            text::shown(&peer.topics.join(" ")).into_owned(),
        ]
    };
    std::iter::once(head.map(str::to_owned).to_vec())
        .chain(peers.iter().map(row))
        .collect()
}

fn health(context: &Context) -> Result<(), Fail> {
    let daemon = context.require_daemon()?;
    let health: PubsubHealth = context.talk(daemon, async |client| {
        client.get_json("/v1/pubsub/health").await
    })?;
    context.out.result(&health, health_text)
}

fn health_text(health: &PubsubHealth) -> String {
    let counted = |name: &str| health.counters.get(name).copied().unwrap_or_default();
    let held: u64 = health.memory.values().sum();
    let mut lines = vec![
        format!(
            "messages  {} delivered, {} sent, {} passed on, {} copies dropped",
            counted("delivered"),
            counted("published"),
            counted("forwarded"),
            counted("seen_duplicates")
        ),
        format!(
            "lost      {} shed, {} too old, {} by slow readers",
            counted("shed"),
            counted("stale"),
            counted("lagged")
        ),
        format!("memory    {}", text::bytes(held)),
        format!("cache     {}", cache(health)),
        format!("peers     {}", health.peers.len()),
        format!("readers   {}", health.readers),
    ];
    if health.topics.is_empty() {
        lines.push("topics    none is read on this device".to_owned());
    } else {
        lines.push(text::columns(&topic_rows(&health.topics)));
    }
    lines.join("\n")
}

/// How long messages are remembered, and whether that is as long as it should be.
fn cache(health: &PubsubHealth) -> String {
    let evicted = health.counters.get("seen_evicted").copied();
    let pressed = health.topics.iter().filter_map(|t| t.seen_pressure_s).min();
    match (pressed, evicted.unwrap_or_default()) {
        (Some(seconds), evicted) => format!(
            "full: messages are forgotten after {} ({evicted} so far): raise pubsub.seen_messages",
            text::span(seconds.saturating_mul(1000))
        ),
        (None, 0) => "holds all that it should".to_owned(),
        (None, evicted) => {
            format!("holds all that it should; {evicted} were forgotten early before")
        }
    }
}

fn topic_rows(topics: &[PubsubTopic]) -> Vec<Vec<String>> {
    let head = [
        "TOPIC", "STATE", "PEERS", "MESH", "RECEIVED", "LAST", "SENT", "SHED", "STALE", "CAUSE",
    ];
    let row = |topic: &PubsubTopic| {
        let ago =
            |at: Option<u64>| at.map_or("-".to_owned(), |s| text::span(s.saturating_mul(1000)));
        vec![
            text::shown(&topic.topic).into_owned(),
            topic.state.clone(),
            topic.peers.to_string(),
            topic.mesh.to_string(),
            topic.received.to_string(),
            ago(topic.last_received_s),
            ago(topic.last_sent_s),
            topic.shed.to_string(),
            topic.stale.to_string(),
            topic.cause.clone().unwrap_or_default(),
        ]
    };
    std::iter::once(head.map(str::to_owned).to_vec())
        .chain(topics.iter().map(row))
        .collect()
}
