//! The numbers of both nodes, and of iroh-blobs if asked for, side by side: the same files, the same machine, the same minute.
//!
//! - Every sample has fresh repositories. A pair is measured once a round, and every second round goes through the pairs
//!   backwards, so that a machine that gets slower in time does not favour one of them.
//! - Memory is touched once before each round and given back: fresh pages of a virtual machine halve write speed at random.
//! - The source files lie in the page cache (they were just written); dirty pages are written out before each timed step.
//! - Both import with the same profile, so blocks have the same sizes. Adding goes through the command line on both; on Kubo
//!   pinning goes through its RPC, since its command line alone takes longer to start than some of these steps take.
//! - iroh-blobs is measured where `GEMBA_IROH_BLOBS` names its program. What it downloads is not synced: its rows tell the time
//!   with the store synced as well, as `synced_ms`.
//! - Every sample is reported, with the load of the machine at the start.

mod iroh_blobs;

use crate::failure::{Context, Failure, Outcome, ensure};
use crate::rig::gemba::{self, Gemba};
use crate::rig::kubo::{self, Kubo};
use crate::rig::process::{Usage, cpu_of_finished_children, run as run_command};
use crate::rig::tree;
use crate::scenario::{Stage, key};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

const PROFILE: &str = "unixfs-v1-2025";
const BIG: u64 = 1 << 30;
const SMALL_FILES: usize = 2000;
const SMALL_SIZE: usize = 1024;
const TOUCHED_MEMORY: usize = 3 << 30;
/// How long a daemon is left alone before its idle memory is read.
const IDLE: Duration = Duration::from_secs(3);
/// For one timed step: the slowest is a 1 GiB transfer on a busy machine.
const LIMIT: Duration = Duration::from_secs(300);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Kubo,
    Gemba,
}

/// Who has it and who fetches it.
struct Pair {
    name: &'static str,
    source: Kind,
    sink: Kind,
}

const PAIRS: [Pair; 4] = [
    Pair {
        name: "kubo-from-kubo",
        source: Kind::Kubo,
        sink: Kind::Kubo,
    },
    Pair {
        name: "gemba-from-gemba",
        source: Kind::Gemba,
        sink: Kind::Gemba,
    },
    Pair {
        name: "gemba-from-kubo",
        source: Kind::Kubo,
        sink: Kind::Gemba,
    },
    Pair {
        name: "kubo-from-gemba",
        source: Kind::Gemba,
        sink: Kind::Kubo,
    },
];

/// What is measured once a round.
#[derive(Clone, Copy)]
enum Entrant<'a> {
    Pair(&'a Pair),
    /// The program of iroh-blobs.
    IrohBlobs(&'a Path),
}

impl Entrant<'_> {
    fn name(self) -> &'static str {
        match self {
            Self::Pair(pair) => pair.name,
            Self::IrohBlobs(_) => iroh_blobs::NAME,
        }
    }
}

/// Measures the pairs whose names are in `only` (comma-separated; all if none) and prints JSON on standard output and a Markdown table on
/// standard error.
pub(crate) fn run(stage: &Stage, rounds: usize, only: Option<&str>) -> Outcome {
    let chosen = |name: &str| only.is_none_or(|only| only.split(',').any(|wanted| wanted == name));
    let program = iroh_blobs::program()?;
    ensure!(
        program.is_some() || only.is_none() || !chosen(iroh_blobs::NAME),
        "{} is measured only where {} names its program",
        iroh_blobs::NAME,
        iroh_blobs::PROGRAM
    );
    let pairs = PAIRS.iter().map(Entrant::Pair);
    let entrants: Vec<Entrant<'_>> = pairs
        .chain(program.as_deref().map(Entrant::IrohBlobs))
        .filter(|entrant| chosen(entrant.name()))
        .collect();
    ensure!(
        !entrants.is_empty() && rounds > 0,
        "nothing to measure; pairs: {}, {}",
        PAIRS.map(|pair| pair.name).join(", "),
        iroh_blobs::NAME
    );
    let load = fs::read_to_string("/proc/loadavg")?.trim().to_string();
    fs::create_dir_all(&stage.dir)?;
    let files = Files::make(stage)?;
    let mut samples = Samples {
        dir: stage.dir.clone(),
        ..Samples::default()
    };
    for round in 0..rounds {
        touch_memory();
        let mut order = entrants.clone();
        if round % 2 == 1 {
            order.reverse();
        }
        for entrant in order {
            eprintln!("round {} of {rounds}: {}", round + 1, entrant.name());
            let home = stage.path(&format!("round-{round}-{}", entrant.name()));
            match entrant {
                Entrant::Pair(pair) => {
                    big(stage, &home.join("big"), pair, &files, &mut samples)?;
                    small(stage, &home.join("small"), pair, &files, &mut samples)?;
                }
                Entrant::IrohBlobs(program) => {
                    iroh_blobs::round(program, &home, &files, &mut samples)?;
                }
            }
            fs::remove_dir_all(&home)?;
        }
    }
    let report = json!({
        "machine": machine()?, "load_at_start": load, "profile": PROFILE, "rounds": rounds, "rows": samples.json(),
    });
    println!("{}", serde_json::to_string_pretty(&report)?);
    eprintln!("\n{}", samples.markdown());
    Ok(())
}

struct Files {
    big: PathBuf,
    folder: PathBuf,
    changed: PathBuf,
}

impl Files {
    fn make(stage: &Stage) -> Outcome<Self> {
        let this = Self {
            big: stage.path("big.bin"),
            folder: stage.path("first").join("folder"),
            changed: stage.path("second").join("folder"),
        };
        tree::big_file(&this.big, BIG, stage.seed)?;
        tree::many_files(&this.folder, SMALL_FILES, SMALL_SIZE, stage.seed)?;
        tree::many_files(&this.changed, SMALL_FILES, SMALL_SIZE, stage.seed)?;
        tree::change_a_byte(&this.changed.join("part-00777.bin"))?;
        Ok(this)
    }
}

// --- the sessions

fn big(stage: &Stage, home: &Path, pair: &Pair, files: &Files, samples: &mut Samples) -> Outcome {
    let (source, sink) = start_pair(stage, home, pair)?;
    sleep(IDLE);
    samples.idle(&source)?;
    samples.idle(&sink)?;
    let cid = samples.add("add 1 GiB", &source, &files.big)?;
    samples.fetch("fetch and pin 1 GiB", pair, &source, &sink, &cid)
}

fn small(stage: &Stage, home: &Path, pair: &Pair, files: &Files, samples: &mut Samples) -> Outcome {
    let (source, sink) = start_pair(stage, home, pair)?;
    let cid = samples.add("add 2000 × 1 KiB", &source, &files.folder)?;
    samples.fetch("fetch and pin 2000 × 1 KiB", pair, &source, &sink, &cid)?;
    let changed = samples.add(
        "add the folder with one file changed",
        &source,
        &files.changed,
    )?;
    ensure!(changed != cid, "the changed folder has the same CID");
    samples.fetch(
        "fetch and pin the changed folder",
        pair,
        &source,
        &sink,
        &changed,
    )
}

fn start_pair(stage: &Stage, home: &Path, pair: &Pair) -> Outcome<(Node, Node)> {
    fs::create_dir_all(home)?;
    let source = Node::start(stage, home, "source", pair.source)?;
    let sink = Node::start(stage, home, "sink", pair.sink)?;
    sink.connect(&source.address()?)?;
    Ok((source, sink))
}

/// Either node, with the few things that are measured.
enum Node {
    Kubo(Kubo),
    Gemba(Gemba),
}

impl Node {
    fn start(stage: &Stage, home: &Path, name: &str, kind: Kind) -> Outcome<Self> {
        Ok(match kind {
            Kind::Kubo => {
                let options = kubo::Options {
                    profile: Some(PROFILE),
                    ..kubo::Options::new(&key())
                };
                Self::Kubo(Kubo::start(&stage.kubo, home, name, &options)?)
            }
            Kind::Gemba => Self::Gemba(Gemba::start(
                &stage.gemba,
                home,
                name,
                &gemba::Options::new(&key()),
            )?),
        })
    }

    fn kind(&self) -> Kind {
        match self {
            Self::Kubo(_) => Kind::Kubo,
            Self::Gemba(_) => Kind::Gemba,
        }
    }

    fn address(&self) -> Outcome<String> {
        match self {
            Self::Kubo(kubo) => kubo.address(),
            Self::Gemba(gemba) => gemba.address(),
        }
    }

    fn connect(&self, address: &str) -> Outcome {
        match self {
            Self::Kubo(kubo) => kubo.connect(address),
            Self::Gemba(gemba) => gemba.connect(address),
        }
    }

    fn add(&self, path: &Path) -> Outcome<String> {
        let path = path.to_str().context(|| "path is not UTF-8".into())?;
        let text = match self {
            Self::Kubo(kubo) => kubo
                .cli_within(&["add", "-r", "-Q", "--progress=false", path], LIMIT)?
                .ok()?,
            Self::Gemba(gemba) => gemba
                .cli_within(&["add", "-Q", "--profile", PROFILE, path], LIMIT)?
                .ok()?,
        };
        text.lines()
            .last()
            .map(|line| line.trim().to_string())
            .context(|| "`add -Q` printed nothing".into())
    }

    fn pin(&self, cid: &str) -> Outcome {
        match self {
            Self::Kubo(kubo) => kubo.pin_within(cid, LIMIT),
            Self::Gemba(gemba) => gemba
                .cli_within(&["pin", "add", cid], LIMIT)?
                .ok()
                .map(drop),
        }
    }

    fn usage(&self) -> Outcome<Usage> {
        match self {
            Self::Kubo(kubo) => kubo.usage(),
            Self::Gemba(gemba) => gemba.usage(),
        }
    }

    fn reset_peak(&self) -> Outcome {
        match self {
            Self::Kubo(kubo) => kubo.reset_peak(),
            Self::Gemba(gemba) => gemba.reset_peak(),
        }
    }
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Kubo => "kubo",
            Self::Gemba => "gemba",
        }
    }
}

// --- the samples

/// One measured quantity of a row, in its unit, over all rounds.
type Series = BTreeMap<&'static str, Vec<f64>>;

/// Rows by (what, who), in the order in which they first came.
#[derive(Default)]
struct Samples {
    /// On the file system that the nodes write to.
    dir: PathBuf,
    rows: Vec<((&'static str, String), Series)>,
}

impl Samples {
    fn push(&mut self, what: &'static str, who: &str, values: &[(&'static str, f64)]) {
        let at = self
            .rows
            .iter()
            .position(|((a, b), _)| *a == what && b == who)
            .unwrap_or_else(|| {
                self.rows.push(((what, who.into()), Series::new()));
                self.rows.len() - 1
            });
        for (quantity, value) in values {
            self.rows[at].1.entry(quantity).or_default().push(*value);
        }
    }

    fn idle(&mut self, node: &Node) -> Outcome {
        let usage = node.usage()?;
        self.push(
            "idle",
            node.kind().name(),
            &[("resident_mib", mib(usage.resident))],
        );
        Ok(())
    }

    fn add(&mut self, what: &'static str, node: &Node, path: &Path) -> Outcome<String> {
        write_out(&self.dir)?;
        node.reset_peak()?;
        let (before, commands, begun) =
            (node.usage()?, cpu_of_finished_children()?, Instant::now());
        let cid = node.add(path)?;
        let wall = begun.elapsed();
        let (after, commands) = (node.usage()?, cpu_of_finished_children()? - commands);
        self.push(
            what,
            node.kind().name(),
            &[
                ("wall_ms", millis(wall)),
                ("daemon_cpu_ms", millis(after.cpu - before.cpu)),
                ("command_cpu_ms", millis(commands)),
                ("daemon_peak_mib", mib(after.peak)),
            ],
        );
        Ok(cid)
    }

    fn fetch(
        &mut self,
        what: &'static str,
        pair: &Pair,
        source: &Node,
        sink: &Node,
        cid: &str,
    ) -> Outcome {
        write_out(&self.dir)?;
        source.reset_peak()?;
        sink.reset_peak()?;
        let (source_before, sink_before) = (source.usage()?, sink.usage()?);
        let begun = Instant::now();
        sink.pin(cid)?;
        let wall = begun.elapsed();
        let (source_after, sink_after) = (source.usage()?, sink.usage()?);
        self.push(
            what,
            pair.name,
            &[
                ("wall_ms", millis(wall)),
                (
                    "source_cpu_ms",
                    millis(source_after.cpu - source_before.cpu),
                ),
                ("sink_cpu_ms", millis(sink_after.cpu - sink_before.cpu)),
                ("source_peak_mib", mib(source_after.peak)),
                ("sink_peak_mib", mib(sink_after.peak)),
            ],
        );
        Ok(())
    }

    fn json(&self) -> Value {
        let series = |series: &Series| -> serde_json::Map<String, Value> {
            series
                .iter()
                .map(|(quantity, all)| {
                    (
                        quantity.to_string(),
                        json!({"median": median(all), "all": all}),
                    )
                })
                .collect()
        };
        self.rows
            .iter()
            .map(|((what, who), of)| {
                let mut row = series(of);
                row.insert("what".into(), json!(what));
                row.insert("who".into(), json!(who));
                Value::Object(row)
            })
            .collect()
    }

    fn markdown(&self) -> String {
        let mut out = String::from(
            "| what | who | wall ms (all) | CPU ms | peak MiB |\n|---|---|---|---|---|\n",
        );
        for ((what, who), series) in &self.rows {
            let cell = |quantity: &str, label: &str| {
                series
                    .get(quantity)
                    .map_or(String::new(), |all| format!("{label}{:.0} ", median(all)))
            };
            let wall = series.get("wall_ms").map_or(String::new(), |all| {
                let each: Vec<String> = all.iter().map(|value| format!("{value:.0}")).collect();
                format!("**{:.0}** ({})", median(all), each.join(", "))
            });
            let wall = wall + cell("synced_ms", " synced ").trim_end();
            let cpu = cell("daemon_cpu_ms", "daemon ") + &cell("command_cpu_ms", "command ");
            let cpu = cpu + &cell("source_cpu_ms", "source ") + &cell("sink_cpu_ms", "sink ");
            let peak = cell("daemon_peak_mib", "") + &cell("resident_mib", "");
            let peak = peak + &cell("source_peak_mib", "source ") + &cell("sink_peak_mib", "sink ");
            out += &format!(
                "| {what} | {who} | {wall} | {} | {} |\n",
                cpu.trim(),
                peak.trim()
            );
        }
        out
    }
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[n / 2],
        n => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
    }
}

fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e5).round() / 100.0
}

fn mib(bytes: u64) -> f64 {
    (bytes as f64 / f64::from(1 << 20) * 10.0).round() / 10.0
}

// --- the machine

fn touch_memory() {
    let mut memory = vec![0u8; TOUCHED_MEMORY];
    for page in memory.chunks_mut(4096) {
        page[0] = 1;
    }
    std::hint::black_box(&memory);
}

/// Writes out the dirty pages of the file system of `path`, so that they are not a part of what is timed next.
fn write_out(path: &Path) -> Outcome {
    run_command(Command::new("sync").arg("-f").arg(path), LIMIT)?
        .ok()
        .map(drop)
}

fn machine() -> Outcome<Value> {
    let cpu = fs::read_to_string("/proc/cpuinfo")?;
    let model = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .map(|rest| rest.trim_start_matches([' ', '\t', ':']));
    let memory = fs::read_to_string("/proc/meminfo")?;
    Ok(json!({
        "cpu": model,
        "cores": std::thread::available_parallelism().map_err(Failure::from)?.get(),
        "memory": memory.lines().next().and_then(|line| line.strip_prefix("MemTotal:")).map(str::trim),
        "kernel": fs::read_to_string("/proc/sys/kernel/osrelease")?.trim(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[allow(clippy::float_cmp, reason = "both are exact")]
    fn the_median_is_the_middle_of_the_sorted_values() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 3.0, 2.0]), 2.5);
    }

    #[test]
    fn rows_keep_their_order_and_all_their_values() {
        let mut samples = Samples::default();
        samples.push("b", "x", &[("wall_ms", 5.0)]);
        samples.push("a", "x", &[("wall_ms", 1.0)]);
        samples.push("b", "x", &[("wall_ms", 7.0)]);
        assert_eq!(
            samples.json()[0]["wall_ms"],
            json!({"median": 6.0, "all": [5.0, 7.0]})
        );
        assert_eq!(samples.json()[1]["what"], "a");
        assert!(samples.markdown().contains("| b | x | **6** (5, 7) |"));
    }
}
