//! The DHT: how the node takes part, and what it tells of it. What travels by it are records of names; the book decides about those (`names`).

use gemba_names::kad::{Config as Limits, Dht, Mode};
use libp2p_identity::PeerId;

use crate::api::types::DhtView;
use crate::config::DhtMode;
use crate::metrics::Figures;
use crate::names;

/// The route as `network.dht` has it; nothing if it is off.
#[must_use]
pub fn start(local: PeerId, setting: DhtMode) -> Option<Dht> {
    let mode = match setting {
        DhtMode::Server => Mode::Server,
        DhtMode::Client => Mode::Client,
        DhtMode::Off => return None,
    };
    let limits = Limits {
        mode,
        ..Limits::default()
    };
    let mut dht = Dht::new(local, limits);
    // Until the book says more.
    dht.set_wall(names::wall_clock());
    Some(dht)
}

/// What `status` shows.
#[must_use]
pub fn view(dht: Option<&Dht>) -> DhtView {
    let Some(dht) = dht else {
        return DhtView::default();
    };
    let mode = match dht.mode() {
        Mode::Server => "server",
        Mode::Client => "client",
    };
    DhtView {
        mode: mode.to_owned(),
        servers: dht.servers() as u64,
        records: dht.kept().records as u64,
    }
}

/// What `/metrics` shows.
pub fn figures(dht: &Dht, figures: &mut Figures) {
    let (asked, stored) = dht.counters();
    let (running, waiting) = dht.queries();
    let kept = dht.kept();
    let gauges = [
        (
            "dht_servers",
            "Servers of the DHT in the tables",
            dht.servers(),
        ),
        ("dht_queries", "Queries of the DHT under way", running),
        (
            "dht_queries_waiting",
            "Queries of the DHT that wait",
            waiting,
        ),
        (
            "dht_records",
            "Records of names kept for others",
            kept.records,
        ),
        ("dht_record_bytes", "Their bytes", kept.bytes),
        (
            "dht_providers",
            "Provider records kept for others",
            kept.providers,
        ),
    ];
    figures.gauges.extend(
        gauges.map(|(name, help, value)| {
            (name, help, None, i64::try_from(value).unwrap_or(i64::MAX))
        }),
    );
    let counted = [
        ("gets", "Queries for names", asked.gets),
        ("puts", "Records put", asked.puts),
        (
            "failed",
            "Queries and puts that brought nothing",
            asked.failed,
        ),
        (
            "overflow",
            "Queries and puts for which there was no room to wait",
            asked.overflow,
        ),
        ("requests", "Requests of others", asked.requests),
        (
            "peers_refused",
            "Servers for which there was no room in the tables",
            asked.peers_refused,
        ),
        (
            "stored",
            "Records of others that were stored",
            stored.stored,
        ),
        (
            "renewed",
            "Records of others that were stored already",
            stored.renewed,
        ),
        (
            "foreign",
            "Records of others under keys that are no names, refused",
            stored.foreign,
        ),
        (
            "invalid",
            "Records of others that are none or badly signed, refused",
            stored.invalid,
        ),
        (
            "expired",
            "Records of others past their end of life, refused",
            stored.expired,
        ),
        (
            "older",
            "Records of others older than what is stored, refused",
            stored.older,
        ),
        (
            "over_budget",
            "Records beyond what a peer may have checked, refused",
            stored.over_budget,
        ),
        ("evicted", "Records that gave way to others", stored.evicted),
        (
            "providers_dropped",
            "Provider records refused or given up",
            stored.providers_dropped,
        ),
    ];
    let counted = counted.map(|(name, help, value)| (format!("dht_{name}"), help, None, value));
    figures.counters.extend(counted);
}
