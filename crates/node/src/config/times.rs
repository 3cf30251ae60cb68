//! The time-outs and intervals among the settings, handed to the parts that keep them (S1.25). What is no setting, and why, is in docs/times.md.

use std::time::Duration;

use gemba_pins::TrackerConfig;
use gemba_pnet::{DialerConfig, DiscoveryConfig, LivenessConfig, TransportConfig};

/// A day in seconds.
const DAY: u64 = 86_400;

/// What a time may be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    least: Duration,
    most: Duration,
    /// Whether it may be `off`.
    pub(super) off: bool,
}

/// Beyond ten years nobody means it, and sums of times stay small.
const TEN_YEARS: Duration = Duration::from_secs(3650 * DAY);
/// What is counted in seconds or more.
pub(super) const PERIOD: Span = Span {
    least: Duration::from_secs(1),
    most: TEN_YEARS,
    off: false,
};
/// The same, and it may be off.
pub(super) const PERIOD_OR_OFF: Span = Span {
    off: true,
    ..PERIOD
};
/// How long a message may be remembered.
pub(super) const SEEN: Span = Span {
    least: gemba_gossip::MIN_TTL,
    most: gemba_gossip::MAX_TTL,
    off: false,
};
/// What somebody waits for on a line: shorter ends on every lost packet, longer holds what it holds for a dead peer.
pub(super) const WAIT: Span = Span {
    least: Duration::from_millis(100),
    most: Duration::from_secs(DAY),
    off: false,
};

impl Span {
    /// Whether a text is such a time.
    pub(super) fn check(&self, text: &str) -> Result<(), String> {
        if self.off && text == "off" {
            return Ok(());
        }
        let or_off = if self.off { ", or off" } else { "" };
        match period(text) {
            Ok(time) if (self.least..=self.most).contains(&time) => Ok(()),
            Ok(_) => Err(format!(
                "between {} and {}{or_off}",
                shown(self.least),
                shown(self.most)
            )),
            Err(cause) => Err(format!("{cause}{or_off}")),
        }
    }
}

/// `100ms`, `1s`, `90m`, `1h`, `30d`.
pub(super) fn period(text: &str) -> Result<Duration, String> {
    let wrong = || "a period such as 1h or 30d is wanted (ms, s, m, h, d)".to_owned();
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let millis: u64 = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" | "min" => 60_000,
        "h" => 3_600_000,
        "d" => DAY * 1000,
        _ => return Err(wrong()),
    };
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let period = number.checked_mul(millis).ok_or_else(wrong)?;
    Ok(Duration::from_millis(period))
}

/// As it is written.
fn shown(time: Duration) -> String {
    let millis = time.as_millis();
    let units = [
        (u128::from(DAY) * 1000, "d"),
        (3_600_000, "h"),
        (60_000, "m"),
        (1000, "s"),
    ];
    let unit = units
        .into_iter()
        .find(|(unit, _)| millis >= *unit && millis.is_multiple_of(*unit));
    let (unit, word) = unit.unwrap_or((1, "ms"));
    format!("{}{word}", millis / unit)
}

/// Of `[network]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dials {
    /// Name look-up and TCP connect, each.
    pub connect: Duration,
    /// From the connect to the whole nonce of the other side.
    pub nonce: Duration,
    /// From there to the secured connection.
    pub security: Duration,
    /// All stages of an incoming connection.
    pub incoming: Duration,
    /// Between two pings.
    pub ping: Duration,
    /// How long an answer to one may take.
    pub ping_timeout: Duration,
    /// The first pause after a dial that failed, and the longest.
    pub pause: (Duration, Duration),
    /// The same after one that met another swarm.
    pub foreign_pause: (Duration, Duration),
    /// Between two queries on the local network.
    pub mdns: Duration,
}

impl Dials {
    /// Into the transport.
    pub fn transport(&self, config: &mut TransportConfig) {
        config.connect = self.connect;
        config.nonce = self.nonce;
        config.security = self.security;
        config.incoming = self.incoming;
    }

    /// Into what pings.
    #[must_use]
    pub fn liveness(&self) -> LivenessConfig {
        let mut config = LivenessConfig::default();
        config.interval = self.ping;
        config.timeout = self.ping_timeout;
        config
    }

    /// Into what dials.
    pub fn dialer(&self, config: &mut DialerConfig) {
        (config.backoff.first, config.backoff.longest) = self.pause;
        (config.backoff.first_foreign, config.backoff.longest_foreign) = self.foreign_pause;
    }

    /// Into mDNS.
    pub fn discovery(&self, config: &mut DiscoveryConfig) {
        config.query_interval = self.mdns;
    }
}

/// `[exchange]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exchange {
    /// Without a byte for so long another peer is asked.
    pub stall: Duration,
    /// What nobody has is asked for again after this, which doubles, and at the latest after that.
    pub retry: (Duration, Duration),
    /// Whoever sent wrong bytes is not asked for so long.
    pub distrust: Duration,
}

impl Exchange {
    /// Into the exchange.
    #[must_use]
    pub fn apply(&self, config: gemba_exchange::Config) -> gemba_exchange::Config {
        config
            .with_stall(self.stall)
            .with_retry_first(self.retry.0)
            .with_retry_last(self.retry.1)
            .with_distrust(self.distrust)
    }
}

/// `[pins]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pins {
    /// How often pins are compared with what is here, by whoever keeps the store and by the tracker; `None`: never.
    pub compare: Option<Duration>,
    /// A walk without a block for so long gives its turn to another.
    pub patience: Duration,
    /// And ends after this: if nobody has what it lacks, …
    pub nobody_has_it: Duration,
    /// … if nobody sends anything, …
    pub stall: Duration,
    /// … or though other blocks come.
    pub busy_stall: Duration,
    /// The first pause before the next try, and the longest.
    pub pause: (Duration, Duration),
    /// Between two rounds through pins that do not fit into memory.
    pub redraw: Duration,
}

impl Pins {
    /// Into the tracker.
    #[must_use]
    pub fn tracker(&self) -> TrackerConfig {
        TrackerConfig::default()
            .compare(self.compare.unwrap_or(Duration::MAX))
            .patience(self.patience)
            .denied_stall(self.nobody_has_it)
            .stall(self.stall)
            .busy_stall(self.busy_stall)
            .first_pause(self.pause.0)
            .longest_pause(self.pause.1)
            .redraw(self.redraw)
    }
}

/// `[reads]`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reads {
    /// When nobody is connected, or every connected peer has said that it has not got the block, a read ends after this.
    pub nobody_has_it: Duration,
    /// When no peer has sent a byte of anything for so long, a read that waits ends.
    pub silence: Duration,
    /// While bytes arrive a block is waited for no longer than this.
    pub longest: Duration,
}

#[cfg(test)]
mod tests {
    use super::super::{Config, times as listed};
    use super::*;

    /// Everything that a setting can change, in words.
    fn parts(config: &Config) -> String {
        let Config {
            network,
            store,
            exchange,
            pins,
            reads,
            pubsub,
            names,
            events,
            ..
        } = config;
        format!("{network:?}{store:?}{exchange:?}{pins:?}{reads:?}{pubsub:?}{names:?}{events:?}")
    }

    fn set(key: &str, value: &str) -> Result<Config, crate::error::Fail> {
        let (section, name) = key.split_once('.').unwrap();
        Config::resolve(&format!("[{section}]\n{name} = \"{value}\"\n"), [])
    }

    /// Each is set in the file and by its variable, changes what the node is built of, and refuses what is too short, too long or no time.
    #[test]
    fn s1_25_every_time_is_set_and_checked() {
        let defaults = Config::resolve("", []).unwrap();
        let mut count = 0;
        for time in listed() {
            let key = time.key;
            assert_ne!(time.default, "77s");
            let config = set(key, "77s").unwrap();
            assert_ne!(parts(&config), parts(&defaults), "{key}");
            assert_eq!(parts(&config).matches("77s").count(), 1, "{key}");
            let variable = format!("GEMBA_{}", key.replace('.', "__").to_uppercase());
            let by_variable = Config::resolve("", [(variable, "77s".to_owned())]).unwrap();
            assert_eq!(parts(&by_variable), parts(&config), "{key}");
            // The default is a time, too, and says its unit.
            assert_eq!(
                parts(&set(key, time.default).unwrap()),
                parts(&defaults),
                "{key}"
            );
            for wrong in ["0s", "9999d", "10", "soon", "1.5s", "-1s", ""] {
                let fail = set(key, wrong).unwrap_err();
                assert!(fail.cause.contains(key), "{key} = {wrong}: {fail}");
            }
            assert_eq!(set(key, "off").is_ok(), time.may_be_off, "{key}");
            count += 1;
        }
        assert!(count > 30, "{count}");
    }

    #[test]
    fn s1_25_times_reach_the_parts_that_keep_them() {
        let text = "[network]\nconnect_timeout = \"1100ms\"\nnonce_timeout = \"1200ms\"\nsecurity_timeout = \"1300ms\"\nincoming_timeout = \"1400ms\"\n\
            ping_interval = \"15s\"\nping_timeout = \"1600ms\"\ndial_pause = \"1700ms\"\ndial_pause_longest = \"18s\"\nforeign_pause = \"19s\"\n\
            foreign_pause_longest = \"20s\"\nmdns_interval = \"21s\"\n[exchange]\nstall = \"22s\"\nretry = \"23s\"\nretry_longest = \"24s\"\ndistrust = \"25s\"\n\
            [pins]\ncompare = \"26s\"\npatience = \"27s\"\nnobody_has_it = \"28s\"\nstall = \"29s\"\nbusy_stall = \"30s\"\npause = \"31s\"\n\
            pause_longest = \"32s\"\nredraw = \"33s\"\n";
        let config = Config::resolve(text, []).unwrap();
        let (ms, s) = (Duration::from_millis, Duration::from_secs);
        let dials = &config.network.dials;
        let mut transport = TransportConfig::default();
        dials.transport(&mut transport);
        assert_eq!(
            [
                transport.connect,
                transport.nonce,
                transport.security,
                transport.incoming
            ],
            [ms(1100), ms(1200), ms(1300), ms(1400)]
        );
        let liveness = dials.liveness();
        assert_eq!((liveness.interval, liveness.timeout), (s(15), ms(1600)));
        let mut dialer = DialerConfig::default();
        dials.dialer(&mut dialer);
        let backoff = &dialer.backoff;
        assert_eq!(
            [
                backoff.first,
                backoff.longest,
                backoff.first_foreign,
                backoff.longest_foreign
            ],
            [ms(1700), s(18), s(19), s(20)]
        );
        let mut discovery = DiscoveryConfig::default();
        dials.discovery(&mut discovery);
        assert_eq!(discovery.query_interval, s(21));
        let exchange = config.exchange.apply(gemba_exchange::Config::default());
        assert_eq!(
            [
                exchange.stall(),
                exchange.retry_first(),
                exchange.retry_last(),
                exchange.distrust()
            ],
            [s(22), s(23), s(24), s(25)]
        );
        let tracker = TrackerConfig::default()
            .compare(s(26))
            .patience(s(27))
            .denied_stall(s(28))
            .stall(s(29))
            .busy_stall(s(30))
            .first_pause(s(31))
            .longest_pause(s(32))
            .redraw(s(33));
        assert_eq!(config.pins.tracker(), tracker);
        // What the crates have by default is what the node has.
        let defaults = Config::resolve("", []).unwrap();
        assert_eq!(defaults.pins.tracker(), TrackerConfig::default());
        let mut transport = TransportConfig::default();
        defaults.network.dials.transport(&mut transport);
        assert_eq!(
            (transport.connect, transport.incoming),
            (
                TransportConfig::default().connect,
                TransportConfig::default().incoming
            )
        );
        assert_eq!(
            defaults.network.dials.liveness().interval,
            LivenessConfig::default().interval
        );
    }
}
