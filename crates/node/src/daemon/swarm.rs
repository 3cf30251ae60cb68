//! The swarm: which behaviours the node has, in the order in which they are asked, and how they are set up.

use std::sync::Arc;
use std::time::Duration;

use gemba_exchange::{Behaviour as Exchange, Line, LineBudget, SiteCarrier, SiteConfig};
use gemba_gossip::Behaviour as Gossip;
use gemba_names::Behaviour as Names;
use gemba_names::kad::Dht;
use gemba_pnet::{
    Crowd, Dialer, DialerConfig, Discovery, DiscoveryConfig, Limits, Lines, Liveness, Network,
    ReceiveBudget, Stages, TransportConfig,
};
use libp2p_identity::{Keypair, PeerId};
use libp2p_swarm::behaviour::toggle::Toggle;
use libp2p_swarm::{NetworkBehaviour, Swarm};

use super::{Options, hashers};
use crate::config::{self, Bandwidth, Config};
use crate::daemon::flow::{dht, pubsub};
use crate::error::{Code, Fail};
use crate::lines::Meters;
use crate::repo::Layout;

/// What peers see. Never pretends to be another implementation.
pub(super) const AGENT: &str = concat!("gemba/", env!("CARGO_PKG_VERSION"));
/// Connections of a swarm's members stay; libp2p's 10 s would close and redial all day.
const IDLE: Duration = Duration::from_secs(24 * 3600);
/// Identify's protocol version as the whole field says it.
const IDENTIFY: &str = "ipfs/0.1.0";

/// All behaviours. The dialer comes first, so that nothing dials past its back-off; the limits second, so that nothing is set
/// up for a connection that is refused.
#[derive(NetworkBehaviour)]
#[behaviour(prelude = "libp2p_swarm::derive_prelude")]
pub(super) struct Behaviour {
    /// Whom to connect, and whom to leave alone for a while.
    pub dialer: Dialer,
    /// How many connections.
    pub limits: gemba_pnet::limits::Behaviour,
    /// mDNS.
    pub mdns: Toggle<Discovery>,
    /// Ping that closes dead connections.
    pub liveness: Liveness,
    /// Who the others are.
    pub identify: libp2p_identify::Behaviour,
    /// Streams of `gemba ping`.
    pub streams: libp2p_stream::Behaviour,
    /// Blocks.
    pub exchange: Exchange,
    /// What devices of one site tell each other about blocks.
    pub site: Toggle<SiteCarrier>,
    /// Messages by topic.
    pub gossip: Toggle<Gossip>,
    /// Records of names.
    pub names: Names,
    /// The DHT, which carries records of names too.
    pub dht: Toggle<Dht>,
}

/// What the transport shows of itself while the swarm owns it.
pub(super) struct Views {
    /// The dials under way.
    pub stages: Stages,
    /// What lies received and unread.
    pub receive: ReceiveBudget,
    /// What went over the lines.
    pub meters: Meters,
}

/// Builds the swarm, and views of its transport. Without a decided [`Network`] there is no transport.
///
/// # Errors
/// The identity cannot be used.
pub(super) fn build(
    keypair: &Keypair,
    network: &Network,
    (layout, config): (&Layout, &Config),
    options: &Options,
) -> Result<(Swarm<Behaviour>, Views), Fail> {
    let mut settings = TransportConfig::default();
    // Three quarters of the places that `Limits::pc` has for those who are being set up.
    settings.crowd = Crowd::new(48, Duration::from_secs(1));
    let dials = &config.network.dials;
    dials.transport(&mut settings);
    let views = Views {
        stages: settings.stages.clone(),
        receive: settings.receive.clone(),
        meters: Meters::default(),
    };
    settings.lines = lines(&config.bandwidth, &views.meters);
    let transport = gemba_pnet::transport(keypair, network, &settings)
        .map_err(|e| Fail::new(Code::Failure, format!("the transport cannot be built: {e}")))?;
    let local = keypair.public().to_peer_id();
    let mut known = config.network.bootstrap.clone();
    known.extend(options.bootstrap.iter().cloned());
    if config.pubsub.enabled {
        known.extend(config.pubsub.direct.iter().cloned());
    }
    let mut dialer = DialerConfig::default();
    dialer.known = known;
    dials.dialer(&mut dialer);
    let mut discovery = DiscoveryConfig::default();
    dials.discovery(&mut discovery);
    let mdns = (config.network.mdns && !options.no_mdns).then(|| Discovery::new(discovery, local));
    let identify = libp2p_identify::Config::new(IDENTIFY.to_owned(), keypair.public())
        .with_agent_version(AGENT.to_owned());
    let gossip = config
        .pubsub
        .enabled
        .then(|| pubsub::start(keypair, layout, &config.pubsub))
        .transpose()?;
    let site = site_of(local, &config.network.site);
    let behaviour = Behaviour {
        dialer: Dialer::new(dialer),
        limits: gemba_pnet::limits::Behaviour::new(Limits::pc()),
        mdns: mdns.into(),
        liveness: Liveness::new(&dials.liveness()),
        identify: libp2p_identify::Behaviour::new(identify),
        streams: libp2p_stream::Behaviour::new(),
        exchange: exchange(
            (site.clone(), &config.exchange),
            &config.bandwidth,
            &views.meters,
        )?,
        site: site.map(|_| SiteCarrier::new()).into(),
        gossip: gossip.into(),
        names: Names::new(),
        dht: dht::start(local, config.network.dht).into(),
    };
    let settings = libp2p_swarm::Config::with_tokio_executor().with_idle_connection_timeout(IDLE);
    Ok((Swarm::new(transport, behaviour, local, settings), views))
}

/// Which connections are slow, and what is counted of each. The uplink is taken for slow, budget or not: a fast one loses little by it, and on a slow
/// one names and messages would wait behind blocks.
fn lines(bandwidth: &Bandwidth, meters: &Meters) -> Lines {
    let (near, meters) = (bandwidth.near.clone(), meters.clone());
    let slow_lan = bandwidth.lan != LineBudget::default();
    Lines::new(move |address| {
        let line = near.line(address);
        gemba_pnet::Line {
            slow: line == Line::Far || slow_lan,
            meter: Some(Arc::clone(meters.of(line))),
        }
    })
}

fn exchange(
    (site, times): (Option<SiteConfig>, &config::Exchange),
    bandwidth: &Bandwidth,
    meters: &Meters,
) -> Result<Exchange, Fail> {
    let config = times
        .apply(exchange_config(site))
        .with_near(bandwidth.lan)
        .with_far(bandwidth.of(bandwidth.uplink));
    let meters = meters.clone();
    Ok(Exchange::new(config)
        .with_worker(hashers::start()?)
        .with_meter(Arc::new(move |line| meters.carried(line))))
}

/// Less than the exchange would take: with the rest of the node, a transfer stays below 40 MiB, also where the disk is what it waits
/// for, and windows of 4 MiB still fill every line that a disk of a device can follow (docs/LIMITS.md).
fn exchange_config(site: Option<SiteConfig>) -> gemba_exchange::Config {
    const MIB: usize = 1024 * 1024;
    let config = gemba_exchange::Config::default();
    let config = match site {
        Some(site) => config.with_site(site),
        None => config,
    };
    config
        .with_node_bytes(8 * MIB)
        .with_served_node_bytes(16 * MIB)
        .with_receive_node_bytes(16 * MIB)
}

/// What `[network] site` means (DESIGN §5).
fn site_of(local: PeerId, setting: &str) -> Option<SiteConfig> {
    let label = match setting {
        "none" => return None,
        "auto" => None,
        label => Some(label.to_owned()),
    };
    Some(SiteConfig { local, label })
}
