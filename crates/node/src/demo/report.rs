//! What the demo measured: the object of `--json` and the table for people.

use comfy_table::{Table, presets};
use serde::Serialize;

/// The figures. Those of parts that do not exist yet are null.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Everything held.
    pub ok: bool,
    /// Nodes, the cloud included.
    pub devices: usize,
    /// Content of the folder in bytes.
    pub asset_bytes: u64,
    /// Files in the folder.
    pub asset_files: u64,
    /// Block bytes the cloud sent until version 1 was whole everywhere.
    pub origin_bytes_out: u64,
    /// The same, divided by the content's size.
    pub origin_ratio: f64,
    /// From the first command to version 1 whole everywhere, the killed device included.
    pub seconds: f64,
    /// The most any device fetched for version 2, in bytes.
    pub update_bytes: u64,
    /// Blocks of version 1 that the device which kept fewest did not fetch again.
    pub update_blocks_kept: u64,
    /// From the change to version 2 whole everywhere.
    pub update_seconds: f64,
    /// Blocks that the killed device still had when it came back.
    pub recovered_blocks_kept: u64,
    /// Events appended by devices.
    pub events_in: Option<u64>,
    /// Events counted by the consumer.
    pub events_counted: Option<u64>,
    /// How often the consumer was killed.
    pub counter_kills: u64,
    /// Largest resident memory of any node, in bytes.
    pub rss_max_bytes: u64,
    /// Largest resident memory of each node, in bytes.
    #[serde(serialize_with = "as_map")]
    pub rss: Vec<(String, u64)>,
}

fn as_map<S: serde::Serializer>(rss: &[(String, u64)], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(rss.iter().map(|(name, bytes)| (name, bytes)))
}

impl Report {
    /// The table that ends the demo.
    #[must_use]
    pub fn table(&self) -> String {
        let size = |bytes: u64| indicatif::HumanBytes(bytes).to_string();
        let mut table = Table::new();
        table.load_style(presets::UTF8_HORIZONTAL_ONLY);
        let mut row = |what: &str, value: String| {
            table.add_row([what.to_owned(), value]);
        };
        row("nodes", self.devices.to_string());
        row(
            "asset",
            format!("{} files, {}", self.asset_files, size(self.asset_bytes)),
        );
        row(
            "whole on every device after",
            format!("{:.2} s", self.seconds),
        );
        row(
            "bytes out of the origin ÷ asset size",
            format!("{:.2} ({})", self.origin_ratio, size(self.origin_bytes_out)),
        );
        row(
            "killed device came back with",
            format!("{} blocks", self.recovered_blocks_kept),
        );
        row(
            "update: fetched by a device at most",
            size(self.update_bytes),
        );
        row(
            "update: blocks not fetched again",
            self.update_blocks_kept.to_string(),
        );
        row(
            "update whole on every device after",
            format!("{:.2} s", self.update_seconds),
        );
        row(
            "events appended = events counted",
            format!(
                "{} = {}, the counter killed {} times",
                self.events_in.unwrap_or_default(),
                self.events_counted.unwrap_or_default(),
                self.counter_kills
            ),
        );
        let nodes: Vec<String> = self
            .rss
            .iter()
            .map(|(name, bytes)| format!("{name} {}", size(*bytes)))
            .collect();
        row("memory a node, at most", nodes.join("\n"));
        table.to_string()
    }
}
