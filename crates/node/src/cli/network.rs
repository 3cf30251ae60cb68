//! Commands about the swarm: `peers`, `connect`, `ping`, `status`.

use futures::{StreamExt as _, TryStreamExt as _};
use hyper::Method;

use super::Context;
use crate::api::types::{
    ConnectRequest, Connected, LineView, Peer, PinCounts, PingRequest, Pong, Receiving, RepoSize,
    SiteView, Status, Transfer, Trouble, UplinkRequest,
};
use crate::error::{Code, Fail};
use crate::lines::{Uplink, rate_text};
use crate::meta::PinState as _;
use crate::repo::{Access, Layout};
use crate::text;

/// The kind of trouble that keeps a node from starting.
const KEY_TROUBLE: &str = "swarm_key";

/// What `connect` takes.
#[derive(Debug, clap::Args)]
pub struct ConnectArgs {
    /// As `gemba id` prints it on the other node: /ip4/192.168.1.20/tcp/4001/p2p/12D3KooW…
    address: String,
}

/// What `ping` takes.
#[derive(Debug, clap::Args)]
pub struct PingArgs {
    /// A connected peer
    peer: String,
    /// How often
    #[arg(short, long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=1000))]
    count: u32,
}

/// What `uplink` takes.
#[derive(Debug, clap::Args)]
pub struct UplinkArgs {
    /// wan, or metered: which budget of `[bandwidth]` holds from now on, until the daemon's next start
    kind: Option<Uplink>,
}

/// Lists the connected peers.
///
/// # Errors
/// [`Code::NoDaemon`].
pub fn peers(context: &Context) -> Result<(), Fail> {
    let daemon = context.require_daemon()?;
    let peers: Vec<Peer> = context.talk(daemon, async |client| {
        let lines = client
            .lines::<(), Peer>(Method::GET, "/v1/peers", None)
            .await?;
        lines.try_collect().await
    })?;
    if context.out.json {
        return peers
            .iter()
            .try_for_each(|peer| context.out.entry(peer, |_| String::new()));
    }
    if peers.is_empty() {
        return context.out.text(
            "no peer is connected: `gemba status` tells what went wrong lately, `gemba connect MULTIADDR` dials one",
        );
    }
    context.out.text(&text::columns(&peer_rows(&peers)))
}

fn peer_rows(peers: &[Peer]) -> Vec<Vec<String>> {
    let head = [
        "PEER",
        "ADDRESS",
        "SITE",
        "RTT",
        "BYTES IN",
        "BYTES OUT",
        "AGENT",
    ];
    let row = |peer: &Peer| {
        vec![
            peer.id.clone(),
            peer.address.clone(),
            if peer.same_site { "same" } else { "-" }.to_owned(),
            peer.rtt_ms
                .map_or("-".to_owned(), |rtt| format!("{rtt:.1} ms")),
            peer.bytes_in.to_string(),
            peer.bytes_out.to_string(),
            // What the other side says of itself.
            text::shown(&peer.agent).into_owned(),
        ]
    };
    std::iter::once(head.map(str::to_owned).to_vec())
        .chain(peers.iter().map(row))
        .collect()
}

/// Connects to a peer.
///
/// # Errors
/// Why it could not be reached.
pub fn connect(context: &Context, args: &ConnectArgs) -> Result<(), Fail> {
    if let Err(e) = args.address.parse::<multiaddr::Multiaddr>() {
        return Err(Fail::new(Code::Usage, format!("`{}` is no address of a node, which is written as a multiaddr: {e}", args.address))
            .hint("it looks like /ip4/192.168.1.20/tcp/4001/p2p/12D3KooW…; `gemba id` on the other node prints its own"));
    }
    let daemon = context.require_daemon()?;
    let request = ConnectRequest {
        address: args.address.clone(),
    };
    let connected: Connected = context.talk(daemon, async |client| {
        client.post_json("/v1/connect", &request).await
    })?;
    context.out.result(&connected, connected_text)
}

fn connected_text(connected: &Connected) -> String {
    let Connected {
        id,
        address,
        requested,
        already,
        ..
    } = connected;
    match (already, requested.starts_with(address.as_str())) {
        (false, _) => format!("connected to {id} at {address}"),
        (true, true) => format!("already connected to {id} at {address}"),
        (true, false) => {
            format!("already connected to {id} at {address}; {requested} was not tried")
        }
    }
}

/// Measures round trips.
///
/// # Errors
/// Why no answer came.
pub fn ping(context: &Context, args: &PingArgs) -> Result<(), Fail> {
    let daemon = context.require_daemon()?;
    let request = PingRequest {
        peer: args.peer.clone(),
        count: args.count,
    };
    context.talk(daemon, async |client| {
        let mut lines = client
            .lines::<_, Pong>(Method::POST, "/v1/ping", Some(&request))
            .await?;
        while let Some(pong) = lines.next().await {
            context
                .out
                .result(&pong?, |pong| format!("{} {:.2} ms", pong.seq, pong.rtt_ms))?;
        }
        Ok(())
    })
}

/// Says of what kind the uplink is, and shows what the lines may carry.
///
/// # Errors
/// [`Code::NoDaemon`].
pub fn uplink(context: &Context, args: &UplinkArgs) -> Result<(), Fail> {
    let daemon = context.require_daemon()?;
    let lines: Vec<LineView> = context.talk(daemon, async |client| match args.kind {
        Some(uplink) => {
            let request = UplinkRequest { uplink };
            client.post_json("/v1/uplink", &request).await
        }
        None => Ok(client.get_json::<Status>("/v1/status").await?.lines),
    })?;
    lines
        .iter()
        .try_for_each(|line| context.out.entry(line, line_text))
}

fn line_text(line: &LineView) -> String {
    let limit = |limit: Option<u64>| limit.map_or("no limit".to_owned(), rate_text);
    let limits = match (line.up_limit, line.down_limit) {
        (None, None) => "no limit".to_owned(),
        (up, down) if up == down => format!("{} either way", limit(up)),
        (up, down) => format!("{} up, {} down", limit(up), limit(down)),
    };
    format!(
        "{:<9} {limits}; {} in, {} out",
        line.line,
        text::bytes(line.bytes_in),
        text::bytes(line.bytes_out)
    )
}

/// Shows how the node is: from the daemon, else from the repository.
///
/// # Errors
/// The repository cannot be read.
pub fn status(context: &Context) -> Result<(), Fail> {
    let status = match context.daemon()? {
        Some(daemon) => context.talk(daemon, async |client| client.get_json("/v1/status").await)?,
        None => offline_status(context)?,
    };
    context.out.result(&status, status_text)
}

/// What can be told without a daemon; above all whether one would start.
fn offline_status(context: &Context) -> Result<Status, Fail> {
    let repo = context.repo(Access::Read)?;
    let store = repo.store()?;
    let stat = store.stat();
    let meta = repo.meta()?;
    let pins = meta.pins()?;
    let (all, open) = (pins.count()?, pins.open_len()?);
    let network = repo.network(false);
    Ok(Status {
        id: repo.identity()?.public().to_peer_id().to_string(),
        peers: 0,
        private: network.as_ref().is_ok_and(gemba_pnet::Network::is_private),
        fingerprint: network
            .as_ref()
            .ok()
            .and_then(|network| network.key())
            .map(|key| key.fingerprint().to_string()),
        repo: RepoSize {
            blocks: stat.blocks,
            bytes: stat.bytes,
            disk_bytes: stat.disk_bytes,
        },
        transfer: Transfer::default(),
        health: if network.is_ok() {
            "stopped"
        } else {
            "refused"
        }
        .to_owned(),
        daemon: false,
        uptime_s: 0,
        troubles: network
            .err()
            .map(|e| key_trouble(&repo.layout, &e))
            .into_iter()
            .chain(crate::repo::unreadable_packs(&store))
            .collect(),
        pins: PinCounts {
            pinned: all.saturating_sub(open),
            queued: open,
            ..PinCounts::default()
        },
        rss_bytes: 0,
        rss_max_bytes: 0,
        kept: Default::default(),
        receiving: Receiving::default(),
        site: SiteView {
            label: repo.config.network.site.clone(),
            mates: 0,
        },
        pubsub: Default::default(),
        dht: Default::default(),
        lines: Vec::new(),
        events: Default::default(),
    })
}

fn key_trouble(layout: &Layout, error: &Fail) -> Trouble {
    Trouble {
        address: layout.swarm_key().display().to_string(),
        peer: None,
        direction: "out".to_owned(),
        kind: KEY_TROUBLE.to_owned(),
        cause: error.cause.clone(),
        age_s: 0,
        count: 1,
        retry_in_s: None,
    }
}

fn site_text(site: &SiteView) -> String {
    match site.label.as_str() {
        "none" => "none: everything is fetched for this device alone".to_owned(),
        label => format!(
            "{label}, with {} connected",
            text::count(site.mates, "other device", "other devices")
        ),
    }
}

fn status_text(status: &Status) -> String {
    let swarm = match (&status.fingerprint, status.private) {
        (Some(fingerprint), _) => format!("private, key {fingerprint} (fingerprint)"),
        (None, true) => "private".to_owned(),
        (None, false) if status.health == "refused" => {
            "none: this node does not start, see below".to_owned()
        }
        (None, false) => "public, without a swarm key".to_owned(),
    };
    let daemon = if status.daemon {
        format!(
            "running for {}",
            text::span(status.uptime_s.saturating_mul(1000))
        )
    } else {
        "not running".to_owned()
    };
    let mut lines = vec![
        format!("peer id   {}", status.id),
        format!("daemon    {daemon}"),
        format!("health    {}", status.health),
        format!("swarm     {swarm}"),
        format!("peers     {}", status.peers),
        format!("site      {}", site_text(&status.site)),
        format!(
            "blocks    {} ({}, {} on disk)",
            status.repo.blocks,
            text::bytes(status.repo.bytes),
            status.repo.disk_bytes
        ),
        format!(
            "pins      {} whole, {} under way, {} waiting, {} in error",
            status.pins.pinned, status.pins.pinning, status.pins.queued, status.pins.error
        ),
        format!(
            "transfer  {} in, {} out",
            text::bytes(status.transfer.bytes_in),
            text::bytes(status.transfer.bytes_out)
        ),
    ];
    let pubsub = &status.pubsub;
    if pubsub.topics > 0 {
        let topics = text::count(pubsub.topics, "topic", "topics");
        lines.push(format!(
            "pubsub    {topics} read, {} isolated, {} degraded",
            pubsub.isolated, pubsub.degraded
        ));
    }
    let dht = &status.dht;
    if !dht.mode.is_empty() {
        let servers = text::count(dht.servers, "server", "servers");
        let records = text::count(dht.records, "record", "records");
        lines.push(format!(
            "dht       {}, {servers} known, {records} of names kept for others",
            dht.mode
        ));
    }
    lines.extend(status.lines.iter().map(line_text));
    lines.extend(status.troubles.iter().map(trouble_line));
    lines.join("\n")
}

/// What went wrong with a peer or address, on one line.
pub(super) fn trouble_line(trouble: &Trouble) -> String {
    // Not something that happened with a peer, but how this node is.
    if trouble.kind == KEY_TROUBLE {
        return format!("trouble   {}", trouble.cause);
    }
    let times = match trouble.count {
        1 => "once".to_owned(),
        count => format!("{count} times"),
    };
    let ago = text::span(trouble.age_s.saturating_mul(1000));
    let retry = trouble
        .retry_in_s
        .map(|seconds| format!(", next try in {}", text::span(seconds.saturating_mul(1000))))
        .unwrap_or_default();
    format!(
        "trouble   {} {}: {} ({times}, {ago} ago{retry})",
        trouble.direction, trouble.address, trouble.cause
    )
}
