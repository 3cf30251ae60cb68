//! The figures behind `/metrics`: a snapshot the loop hands out, rendered as OpenMetrics text.
//!
//! Names: `gemba_<noun>_<unit>`, base units, `_total` for counters; no peer or CID as label value (they are unbounded).

use crate::api::types::EventCounts;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

/// One reading of everything that is counted.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    /// Values that go up and down: name, help, unit, value.
    pub gauges: Vec<(&'static str, &'static str, Option<Unit>, i64)>,
    /// Values that only grow; the text gets `_total` behind the name.
    pub counters: Vec<(String, &'static str, Option<Unit>, u64)>,
}

impl Figures {
    /// OpenMetrics text, ending in `# EOF`.
    #[must_use]
    pub fn render(&self) -> String {
        let mut registry = Registry::with_prefix("gemba");
        for (name, help, unit, value) in &self.gauges {
            let gauge: Gauge = Gauge::default();
            gauge.set(*value);
            match unit {
                Some(unit) => registry.register_with_unit(*name, *help, unit.clone(), gauge),
                None => registry.register(*name, *help, gauge),
            }
        }
        for (name, help, unit, value) in &self.counters {
            let counter: Counter = Counter::default();
            counter.inc_by(*value);
            match unit {
                Some(unit) => registry.register_with_unit(name, *help, unit.clone(), counter),
                None => registry.register(name, *help, counter),
            }
        }
        let mut text = String::new();
        match encode(&mut text, &registry) {
            Ok(()) => text,
            Err(std::fmt::Error) => "# EOF\n".to_owned(),
        }
    }
}

impl EventCounts {
    /// What goes up and down, as [`Figures::gauges`].
    #[must_use]
    pub fn gauges(&self) -> [(&'static str, &'static str, Option<Unit>, i64); 10] {
        let gauge = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        [
            (
                "log_streams",
                "Streams of which events are here",
                None,
                gauge(self.streams),
            ),
            (
                "log_feeds",
                "Feeds of events, one an author and stream",
                None,
                gauge(self.feeds),
            ),
            (
                "log_forks",
                "Feeds whose author wrote two histories",
                None,
                gauge(self.forks),
            ),
            ("log_events", "Events held", None, gauge(self.events)),
            (
                "log_disk",
                "Disk space of the events held",
                Some(Unit::Bytes),
                gauge(self.bytes),
            ),
            (
                "log_damaged_batches",
                "Batches of events that are damaged on disk",
                None,
                gauge(self.damaged),
            ),
            (
                "log_damaged_indexes",
                "Indexes of events that were damaged on disk and made anew",
                None,
                gauge(self.damaged_indexes),
            ),
            (
                "log_stopped",
                "1 if no event is written any more, since a write failed",
                None,
                i64::from(self.stopped),
            ),
            (
                "log_consumers",
                "Consumers of this node",
                None,
                gauge(self.consumers),
            ),
            (
                "log_lag",
                "Events that open consumers have not acknowledged",
                None,
                gauge(self.lag),
            ),
        ]
    }

    /// What only grows, as [`Figures::counters`].
    #[must_use]
    pub fn counters(&self) -> [(String, &'static str, Option<Unit>, u64); 2] {
        [
            (
                "log_failures".into(),
                "Writes of events that failed",
                None,
                self.failures,
            ),
            (
                "log_fast_dropped".into(),
                "Events of the fast class that were dropped",
                None,
                self.fast_dropped,
            ),
        ]
    }
}

/// Resident memory of this process in bytes: (now, peak). Zero where the system does not tell.
#[must_use]
pub fn resident_memory() -> (u64, u64) {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let field = |name: &str| -> u64 {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|rest| {
            rest.trim()
                .trim_end_matches("kB")
                .trim()
                .parse::<u64>()
                .ok()
        })
        .map_or(0, |kib| kib * 1024)
    };
    (field("VmRSS:"), field("VmHWM:"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_render_as_openmetrics() {
        let figures = Figures {
            gauges: vec![("peers", "Connected peers", None, 3)],
            counters: vec![(
                "exchange_in".into(),
                "Block bytes received",
                Some(Unit::Bytes),
                7,
            )],
        };
        let text = figures.render();
        assert!(text.contains("gemba_peers 3\n"), "{text}");
        assert!(text.contains("gemba_exchange_in_bytes_total 7\n"), "{text}");
        assert!(text.ends_with("# EOF\n"), "{text}");
    }

    #[test]
    fn memory_is_read_where_the_system_tells() {
        let (now, peak) = resident_memory();
        assert!(cfg!(not(target_os = "linux")) || (now > 0 && peak >= now));
    }
}
