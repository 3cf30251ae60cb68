//! `gemba demo`: the main job on this machine, with real node processes, and the proof that it was done.
//!
//! A cloud node and its devices share one fresh swarm key on loopback. The cloud adds a real folder and publishes it under a name; every device
//! follows the name, one is killed in the middle and recovers; each device's copy is exported and compared byte for byte. Then a file
//! changes and is published under the same name: no device is told anything else, and the update is proved the same way. All the while the
//! devices append events, and a counter at the cloud, killed again and again, counts each of them once.

mod events;
mod input;
mod report;
mod swarm;

use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use gemba_pnet::{KeyFile, Replace, SwarmKey};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::time::Instant;

use crate::api::types::{FollowRequest, FollowStatus, NamePublished, RepoSize};
use crate::error::{Code, Fail};
use events::Events;
use input::Input;
pub use report::Report;
use swarm::Device;

/// Nobody waits longer than this for one version to be whole on every device.
const PATIENCE: Duration = Duration::from_secs(600);
/// How often a device is looked at.
const LOOK: Duration = Duration::from_millis(20);
/// The label of the cloud's key.
const KEY: &str = "app-stable";
/// Beyond it a laptop's ports and memory are the subject, not the swarm.
const DEVICES: std::ops::RangeInclusive<usize> = 2..=64;

/// What `gemba demo` is told.
#[derive(Clone, Debug)]
pub struct Options {
    /// The folder to distribute; `None`: gemba's own sources.
    pub input: Option<PathBuf>,
    /// Nodes, the cloud included.
    pub devices: usize,
    /// Print nothing but the result.
    pub quiet: bool,
}

/// Runs the demo.
///
/// # Errors
/// Whatever did not hold, with its cause. The nodes are ended and the temporary folder is removed either way.
pub async fn run(options: &Options) -> Result<Report, Fail> {
    if !DEVICES.contains(&options.devices) {
        return Err(Fail::new(
            Code::Usage,
            format!(
                "the demo runs {} to {} nodes",
                DEVICES.start(),
                DEVICES.end()
            ),
        ));
    }
    let folder = tempfile::Builder::new().prefix("gemba-demo-").tempdir();
    let folder =
        folder.map_err(|e| Fail::new(Code::Failure, format!("no temporary folder: {e}")))?;
    let outcome = Demo::start(options, folder.path()).await;
    let outcome = match outcome {
        Ok(mut demo) => demo.play().await,
        Err(fail) => Err(fail),
    };
    if outcome.is_err() && std::env::var_os("GEMBA_DEMO_KEEP").is_some() {
        let kept = folder.keep();
        say(options, &format!("kept for a look: {}", kept.display()));
    }
    outcome
}

struct Demo<'a> {
    options: &'a Options,
    folder: PathBuf,
    input: Input,
    devices: Vec<Device>,
}

impl<'a> Demo<'a> {
    /// Copies the input and starts the swarm.
    async fn start(options: &'a Options, folder: &Path) -> Result<Self, Fail> {
        let input = Input::copy(options.input.as_deref(), folder.join("asset"))?;
        say(
            options,
            &format!("asset: {} files, {}", input.files, human(input.bytes)),
        );
        let key = SwarmKey::generate().map_err(|e| {
            Fail::new(
                Code::Failure,
                format!("no randomness for the swarm key: {e}"),
            )
        })?;
        let key_dir = folder.join("key");
        crate::files::create_private_dir(&key_dir)?;
        let key_file = KeyFile::in_repo(&key_dir);
        key_file
            .write(&key, Replace::Never)
            .map_err(crate::repo::key_file_fail)?;
        say(
            options,
            &format!(
                "private swarm {} with {} nodes on loopback",
                key.fingerprint(),
                options.devices
            ),
        );
        let mut demo = Self {
            options,
            folder: folder.to_owned(),
            input,
            devices: Vec::new(),
        };
        let mut known: Vec<String> = Vec::new();
        for number in 0..options.devices {
            let device = Device::start(folder, number, &key_file.path(), known.clone()).await?;
            known.extend(device.addresses().await?.into_iter().take(1));
            demo.devices.push(device);
        }
        demo.wait_for_peers().await?;
        Ok(demo)
    }

    /// Until every node sees at least one other.
    async fn wait_for_peers(&self) -> Result<(), Fail> {
        let deadline = Instant::now() + Duration::from_secs(20);
        for device in &self.devices {
            loop {
                let status = device.status().await?;
                if status.peers > 0 {
                    break;
                }
                if Instant::now() > deadline {
                    let cause = status
                        .troubles
                        .first()
                        .map_or("nothing was tried", |t| t.cause.as_str())
                        .to_owned();
                    return Err(Fail::new(
                        Code::Timeout,
                        format!("{} found no peer: {cause}", device.name()),
                    ));
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        Ok(())
    }

    async fn play(&mut self) -> Result<Report, Fail> {
        let began = Instant::now();
        let first = self.add().await?;
        let name = self.publish(&first).await?.name;
        say(
            self.options,
            &format!(
                "version 1 is {first}, published as {name}; every device follows the name, one is killed in the middle"
            ),
        );
        let first = Published {
            name,
            cid: first,
            sequence: 0,
        };
        let devices = self.devices.iter();
        let devices = devices
            .map(|device| (device.layout.clone(), device.name()))
            .collect();
        let events = Events::begin(devices);
        let recovered = self.distribute(&first, true).await?.kept_after_kill;
        let seconds = began.elapsed().as_secs_f64();
        self.prove(&first, "out-1").await?;
        let origin = self.devices[0].status().await?.transfer.bytes_out;

        let changed = self.input.change()?;
        let began = Instant::now();
        let second = self.add().await?;
        let published = self.publish(&second).await?;
        say(
            self.options,
            &format!("version 2 is {second}, published under the same name: {changed} changed"),
        );
        let second = Published {
            name: published.name,
            cid: second,
            sequence: published.sequence,
        };
        let update = self.distribute(&second, false).await?;
        let update_seconds = began.elapsed().as_secs_f64();
        say(
            self.options,
            &format!(
                "the update cost a device {} at most",
                human(update.fetched_at_most)
            ),
        );
        self.prove(&second, "out-2").await?;

        let (events_in, events_counted, kills) = events.end(&self.devices[0].client).await?;
        if events_in != events_counted {
            let cause =
                format!("{events_in} events were acknowledged, and {events_counted} counted");
            return Err(Fail::new(Code::Integrity, cause));
        }
        say(
            self.options,
            &format!(
                "the devices appended {events_in} events meanwhile, and the cloud counted {events_counted}, with a counter that was killed {}",
                crate::text::count(kills, "time", "times")
            ),
        );
        let mut rss_max = 0;
        let mut rss = Vec::new();
        for device in &self.devices {
            let status = device.status().await?;
            rss_max = rss_max.max(status.rss_max_bytes);
            rss.push((device.name(), status.rss_max_bytes));
        }
        for device in &mut self.devices {
            device.stop().await?;
        }
        Ok(Report {
            ok: true,
            devices: self.options.devices,
            asset_bytes: self.input.bytes,
            asset_files: self.input.files,
            origin_bytes_out: origin,
            origin_ratio: origin as f64 / self.input.bytes.max(1) as f64,
            seconds,
            update_bytes: update.fetched_at_most,
            update_blocks_kept: update.kept_at_least,
            update_seconds,
            recovered_blocks_kept: recovered,
            events_in: Some(events_in),
            events_counted: Some(events_counted),
            counter_kills: kills,
            rss_max_bytes: rss_max,
            rss,
        })
    }

    /// Adds the folder at the cloud, as a user would: through the command line.
    async fn add(&self) -> Result<String, Fail> {
        let cloud = &self.devices[0];
        let printed = self
            .gemba(
                cloud,
                &["add", "-Q", &self.input.folder.display().to_string()],
            )
            .await?;
        Ok(printed.trim().to_owned())
    }

    /// Publishes a version at the cloud, as a user would. The first time the name is made, too.
    async fn publish(&self, cid: &str) -> Result<NamePublished, Fail> {
        let cloud = &self.devices[0];
        let keys = self.gemba(cloud, &["key", "ls"]).await?;
        if !keys.lines().any(|line| line.ends_with(&format!(" {KEY}"))) {
            self.gemba(cloud, &["key", "new", KEY]).await?;
        }
        let published = self
            .gemba(cloud, &["name", "publish", "--key", KEY, cid, "--json"])
            .await?;
        serde_json::from_str(&published).map_err(Fail::internal)
    }

    /// Every device follows the name until the version is whole, and if told so one is killed in the middle and restarted.
    async fn distribute(
        &mut self,
        version: &Published,
        kill_one: bool,
    ) -> Result<Distributed, Fail> {
        let bars = Bars::new(self.options.quiet);
        let total = self.pin_total(&version.cid).await?;
        let began = Instant::now();
        let mut result = Distributed {
            fetched_at_most: 0,
            kept_at_least: u64::MAX,
            kept_after_kill: 0,
        };
        // The last device is the victim; the others fetch meanwhile.
        let last = self.devices.len() - 1;
        let (others, victim) = if kill_one {
            self.devices.split_at_mut(last)
        } else {
            (&mut self.devices[..], &mut [][..])
        };
        let mut fetching: FuturesUnordered<_> = others
            .iter()
            .skip(1)
            .map(|device| follow(device, version, bars.bar(&device.name(), total)))
            .collect();
        let pull_the_plug = async {
            let Some(device) = victim.first_mut() else {
                return Ok(None);
            };
            interrupted_follow(device, &version.name).await?;
            device.kill().await?;
            let kept = device.blocks_on_disk()?;
            bars.say(&format!(
                "{} was killed with {kept} blocks durable",
                device.name()
            ));
            Ok(Some(kept))
        };
        let announce = async {
            while let Some(done) = fetching.next().await {
                let (name, status) = done?;
                result.fetched_at_most = result.fetched_at_most.max(status.bytes_fetched);
                result.kept_at_least = result
                    .kept_at_least
                    .min(status.blocks_done - status.blocks_fetched);
                bars.say(&format!(
                    "complete on {name} after {:.2} s ({} fetched)",
                    began.elapsed().as_secs_f64(),
                    human(status.bytes_fetched)
                ));
            }
            Ok::<(), Fail>(())
        };
        let (killed, announced) = tokio::join!(pull_the_plug, announce);
        announced?;
        drop(fetching);
        if result.fetched_at_most == 0 {
            let cause = "every device is whole, and none says that it fetched anything";
            return Err(Fail::new(Code::Integrity, cause));
        }
        if let Some(kept) = killed? {
            let device = &mut self.devices[last];
            device.restart().await?;
            // It follows the name still: nobody has to tell it again.
            let bar = bars.bar(&device.name(), total);
            let (name, status) = until_whole(device, version, bar).await?;
            bars.say(&format!(
                "{name} came back with its {kept} blocks and is complete after {:.2} s",
                began.elapsed().as_secs_f64(),
            ));
            // Several peers may send a small block before the cancel reaches them; that is counted apart.
            let transfer = device.status().await?.transfer;
            let fetched = transfer.blocks_in.saturating_sub(transfer.duplicates);
            if fetched + kept > status.blocks_done {
                let cause = format!(
                    "{name} had {kept} of {} blocks and fetched {fetched} after its restart",
                    status.blocks_done
                );
                return Err(Fail::new(Code::Integrity, cause));
            }
            result.kept_after_kill = kept;
        }
        bars.clear();
        Ok(result)
    }

    async fn pin_total(&self, cid: &str) -> Result<u64, Fail> {
        let status = self.devices[0].pin_status(cid).await?;
        let here: RepoSize = self.devices[0].client.get_json("/v1/repo/stat").await?;
        Ok(status.bytes_done.max(here.bytes))
    }

    /// Exports the version on every device and compares it with the folder, byte for byte.
    async fn prove(&self, version: &Published, name: &str) -> Result<(), Fail> {
        for device in self.devices.iter().skip(1) {
            let words = ["name", "resolve", "--complete", version.name.as_str()];
            let value = self.gemba(device, &words).await?;
            let cid = value.trim();
            if cid != format!("/ipfs/{}", version.cid) {
                let cause = format!(
                    "{} says that {cid} is whole, not {}",
                    device.name(),
                    version.cid
                );
                return Err(Fail::new(Code::Integrity, cause));
            }
            let target = self.folder.join(format!("{}-{name}", device.name()));
            self.gemba(device, &["get", cid, "-o", &target.display().to_string()])
                .await?;
            let (expected, got) = (self.input.folder.clone(), target.clone());
            let different =
                tokio::task::spawn_blocking(move || input::difference(&expected, &got)).await;
            let different = different.map_err(|e| Fail::new(Code::Failure, e))??;
            if let Some(path) = different {
                return Err(Fail::new(
                    Code::Integrity,
                    format!(
                        "what {} exported differs at {}",
                        device.name(),
                        path.display()
                    ),
                ));
            }
            std::fs::remove_dir_all(&target).map_err(|e| Fail::io(&target, &e))?;
        }
        say(
            self.options,
            "every device's copy was exported and is equal, byte for byte",
        );
        Ok(())
    }

    /// Runs a command of this very program against a node.
    async fn gemba(&self, device: &Device, words: &[&str]) -> Result<String, Fail> {
        let program = std::env::current_exe().map_err(|e| Fail::new(Code::Failure, e))?;
        let mut command = tokio::process::Command::new(program);
        command
            .arg("--repo")
            .arg(device.layout.root())
            .args(words)
            .kill_on_drop(true);
        let output = command
            .output()
            .await
            .map_err(|e| Fail::new(Code::Failure, e))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(Fail::new(
                Code::Failure,
                format!(
                    "`gemba {}` on {} failed: {}",
                    words.join(" "),
                    device.name(),
                    said.trim()
                ),
            ));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// What it took to bring a version to every device.
struct Distributed {
    /// The most any device fetched, in bytes.
    fetched_at_most: u64,
    /// The fewest blocks of it that a device had already.
    kept_at_least: u64,
    /// Blocks of the killed device after its restart.
    kept_after_kill: u64,
}

/// A version as the cloud published it.
struct Published {
    name: String,
    cid: String,
    sequence: u64,
}

/// Follows the name on a device, unless it does already, until the version is whole.
async fn follow(
    device: &Device,
    version: &Published,
    bar: ProgressBar,
) -> Result<(String, FollowStatus), Fail> {
    let _following: FollowStatus = device
        .client
        .post_json(&follow_path(&version.name), &FollowRequest::default())
        .await
        .map_err(|fail| fail.during(device.name()))?;
    until_whole(device, version, bar).await
}

fn follow_path(name: &str) -> String {
    format!("/v1/follows/{name}")
}

/// Looks at a device until the version is whole there.
async fn until_whole(
    device: &Device,
    version: &Published,
    bar: ProgressBar,
) -> Result<(String, FollowStatus), Fail> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let status: FollowStatus = device
            .client
            .get_json(&follow_path(&version.name))
            .await
            .map_err(|fail| fail.during(device.name()))?;
        if status.complete_sequence == Some(version.sequence) {
            bar.finish_and_clear();
            return Ok((device.name(), status));
        }
        bar.set_position(status.bytes_done);
        if Instant::now() > deadline {
            let cause = status.cause.unwrap_or(status.status);
            let fail = Fail::new(Code::Timeout, format!("{}: {cause}", device.name()));
            return Err(fail.hint("GEMBA_DEMO_KEEP=1 keeps the logs of the nodes for a look"));
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Begins to follow on a device and returns at the first moment that blocks are durable: then the plug is pulled.
async fn interrupted_follow(device: &Device, name: &str) -> Result<(), Fail> {
    let _following: FollowStatus = device
        .client
        .post_json(&follow_path(name), &FollowRequest::default())
        .await?;
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        let stat: RepoSize = device.client.get_json("/v1/repo/stat").await?;
        if stat.blocks > 0 {
            return Ok(());
        }
    }
    Err(Fail::new(
        Code::Timeout,
        format!("{} received no block", device.name()),
    ))
}

/// Live bars, one a device, on a terminal only.
struct Bars {
    all: MultiProgress,
    quiet: bool,
}

impl Bars {
    fn new(quiet: bool) -> Self {
        let target = if quiet {
            ProgressDrawTarget::hidden()
        } else {
            ProgressDrawTarget::stderr_with_hz(10)
        };
        Self {
            all: MultiProgress::with_draw_target(target),
            quiet,
        }
    }

    fn bar(&self, name: &str, total: u64) -> ProgressBar {
        let bar = self.all.add(ProgressBar::new(total));
        if let Ok(style) =
            ProgressStyle::with_template("{msg:>10} {bytes:>10} [{wide_bar}] {bytes_per_sec:>12}")
        {
            bar.set_style(style);
        }
        bar.set_message(name.to_owned());
        bar
    }

    fn say(&self, text: &str) {
        if !self.quiet {
            self.all.suspend(|| crate::cli::output::note(text));
        }
    }

    fn clear(&self) {
        let _terminal_gone = self.all.clear();
    }
}

fn say(options: &Options, text: &str) {
    if !options.quiet {
        crate::cli::output::note(text);
    }
}

/// Bytes for people.
fn human(bytes: u64) -> String {
    indicatif::HumanBytes(bytes).to_string()
}
