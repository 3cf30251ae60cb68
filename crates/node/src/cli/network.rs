//! Commands about the swarm: `peers`, `connect`, `ping`, `status`, `why`.

use futures::StreamExt as _;
use hyper::Method;

use super::Context;
use crate::api::types::{
    ConnectRequest, Connected, Peer, PinCounts, PingRequest, Pong, RepoSize, Status, Transfer,
    Trouble,
};
use crate::content::parse_cid;
use crate::error::{Code, Fail};
use crate::repo::{Access, Layout};

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

/// What `why` takes.
#[derive(Debug, clap::Args)]
pub struct WhyArgs {
    /// The block
    cid: String,
}

/// Lists the connected peers.
///
/// # Errors
/// [`Code::NoDaemon`].
pub fn peers(context: &Context) -> Result<(), Fail> {
    let daemon = context.require_daemon()?;
    context.talk(daemon, async |client| {
        let mut lines = client
            .lines::<(), Peer>(Method::GET, "/v1/peers", None)
            .await?;
        while let Some(peer) = lines.next().await {
            context.out.entry(&peer?, |peer| {
                let rtt = peer
                    .rtt_ms
                    .map_or("-".to_owned(), |rtt| format!("{rtt:.1} ms"));
                format!(
                    "{} {} {rtt} in {} out {} {}",
                    peer.id, peer.address, peer.bytes_in, peer.bytes_out, peer.agent
                )
            })?;
        }
        Ok(())
    })
}

/// Connects to a peer.
///
/// # Errors
/// Why it could not be reached.
pub fn connect(context: &Context, args: &ConnectArgs) -> Result<(), Fail> {
    if let Err(e) = args.address.parse::<multiaddr::Multiaddr>() {
        return Err(Fail::new(Code::Usage, format!("`{}` is no multiaddr: {e}", args.address))
            .hint("it looks like /ip4/192.168.1.20/tcp/4001/p2p/12D3KooW…; `gemba id` on the other node prints its own"));
    }
    let daemon = context.require_daemon()?;
    let request = ConnectRequest {
        address: args.address.clone(),
    };
    let connected: Connected = context.talk(daemon, async |client| {
        client.post_json("/v1/connect", &request).await
    })?;
    context.out.result(&connected, |connected| {
        format!("connected to {} at {}", connected.id, connected.address)
    })
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

/// Tells why a block is or is not here.
///
/// # Errors
/// [`Code::NoDaemon`].
pub fn why(context: &Context, args: &WhyArgs) -> Result<(), Fail> {
    let cid = parse_cid(&args.cid)?;
    let daemon = context.require_daemon()?;
    let answer: serde_json::Value = context.talk(daemon, async |client| {
        client.get_json(&format!("/v1/why/{cid}")).await
    })?;
    context.out.result(&answer, |answer| {
        let mut text = answer["summary"].as_str().unwrap_or_default().to_owned();
        for part in ["why", "pin", "troubles"] {
            let told = &answer[part];
            let is_empty = told.is_null() || told.as_array().is_some_and(Vec::is_empty);
            if !is_empty {
                text.push_str(&format!(
                    "\n{part}: {}",
                    serde_json::to_string_pretty(told).unwrap_or_default()
                ));
            }
        }
        text
    })
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
    let stat = repo.store()?.stat();
    let pins = repo.meta()?.pins()?;
    let whole = pins.iter().filter(|pin| pin.complete).count() as u64;
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
            .collect(),
        pins: PinCounts {
            pinned: whole,
            queued: pins.len() as u64 - whole,
            ..PinCounts::default()
        },
        rss_bytes: 0,
        rss_max_bytes: 0,
    })
}

fn key_trouble(layout: &Layout, error: &Fail) -> Trouble {
    Trouble {
        address: layout.swarm_key().display().to_string(),
        peer: None,
        direction: "out".to_owned(),
        kind: "swarm_key".to_owned(),
        cause: error.cause.clone(),
        age_s: 0,
        count: 1,
        retry_in_s: None,
    }
}

fn status_text(status: &Status) -> String {
    let swarm = match (&status.fingerprint, status.private) {
        (Some(fingerprint), _) => format!("private, key {fingerprint} (fingerprint)"),
        (None, true) => "private".to_owned(),
        (None, false) => "no swarm key".to_owned(),
    };
    let daemon = if status.daemon {
        format!("running for {} s", status.uptime_s)
    } else {
        "not running".to_owned()
    };
    let mut lines = vec![
        format!("peer id   {}", status.id),
        format!("daemon    {daemon}"),
        format!("health    {}", status.health),
        format!("swarm     {swarm}"),
        format!("peers     {}", status.peers),
        format!(
            "blocks    {} ({} bytes, {} on disk)",
            status.repo.blocks, status.repo.bytes, status.repo.disk_bytes
        ),
        format!(
            "pins      {} whole, {} under way, {} waiting, {} in error",
            status.pins.pinned, status.pins.pinning, status.pins.queued, status.pins.error
        ),
        format!(
            "transfer  {} bytes in, {} bytes out",
            status.transfer.bytes_in, status.transfer.bytes_out
        ),
    ];
    for trouble in &status.troubles {
        let retry = trouble
            .retry_in_s
            .map(|seconds| format!(", next try in {seconds} s"))
            .unwrap_or_default();
        lines.push(format!(
            "trouble   {} {}: {} ({} times, {} s ago{retry})",
            trouble.direction, trouble.address, trouble.cause, trouble.count, trouble.age_s
        ));
    }
    lines.join("\n")
}
