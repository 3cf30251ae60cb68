//! The demo's events: every device appends some while the roll-out goes on, and the cloud counts them, with a counter that is killed
//! at random. What was acknowledged must be counted, each once.

use std::process::Stdio;
use std::time::Duration;

use bytes::Bytes;
use tokio::process::Command;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::cli::session::{encoded, url};
use crate::client::Client;
use crate::error::{Code, Fail};
use crate::log::wire::{EventAck, StreamView};
use crate::repo::Layout;

/// The streams of the demo.
pub(super) const STREAMS: &str = "demo/+/pieces";
/// The counter's name.
const COUNTER: &str = "pieces";
/// Pause between the pieces of a device.
const PACE: Duration = Duration::from_millis(5);
/// How long a device that does not answer is waited for.
const PATIENCE: Duration = Duration::from_secs(120);
/// A counter lives no longer than this before it is killed.
const LIFE_MS: u64 = 400;

/// Appends pieces on one device until told to end; each is tried until it is acknowledged, under its number, so that none is there twice. How many.
pub(super) async fn append(
    layout: Layout,
    name: String,
    over: CancellationToken,
) -> Result<u64, Fail> {
    let stream = format!("demo/{name}/pieces");
    let mut number = 0_u64;
    while !over.is_cancelled() {
        append_one(&layout, &name, &stream, number).await?;
        number += 1;
        tokio::time::sleep(PACE).await;
    }
    Ok(number)
}

/// A device may be dead just now: then the same piece is tried again when it is back.
async fn append_one(layout: &Layout, name: &str, stream: &str, number: u64) -> Result<(), Fail> {
    let text = number.to_string();
    let query = [
        ("whole", "true"),
        ("producer", name),
        ("producer_seq", text.as_str()),
    ];
    let path = url(&format!("/v1/streams/{}/events", encoded(stream)), &query);
    let deadline = Instant::now() + PATIENCE;
    loop {
        let failed = match Client::connect(layout, None).await {
            Ok(Some(client)) => {
                let piece = Bytes::from(format!("piece {number}"));
                match client.post_bytes::<EventAck>(&path, piece).await {
                    Ok(ack) if ack.stream == stream => return Ok(()),
                    Ok(ack) => {
                        return Err(Fail::new(
                            Code::Integrity,
                            format!("{name} answered for {}", ack.stream),
                        ));
                    }
                    Err(fail) => fail,
                }
            }
            Ok(None) => Fail::new(Code::NoDaemon, "it does not run"),
            Err(fail) => fail,
        };
        if Instant::now() > deadline {
            return Err(failed.during(format!("piece {number} on {name}")));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Runs a counter at the cloud and kills it, again and again, until told to end. How often.
pub(super) async fn count_and_kill(cloud: Layout, over: CancellationToken) -> Result<u64, Fail> {
    let mut kills = 0;
    while !over.is_cancelled() {
        let mut counter = counter(&cloud)?
            .arg("--follow")
            .stdout(Stdio::null())
            .spawn()
            .map_err(|e| spawn_fail(&e))?;
        let mut byte = [0];
        getrandom::fill(&mut byte)
            .map_err(|e| Fail::new(Code::Failure, format!("no randomness: {e}")))?;
        let life = Duration::from_millis(LIFE_MS * u64::from(byte[0]) / 255);
        tokio::select! {
            () = tokio::time::sleep(life) => {}
            () = over.cancelled() => {}
            // A fault that is not the demo's: the count at the end tells.
            ended = counter.wait() => tracing::debug!(?ended, "a counter ended by itself"),
        }
        if counter.start_kill().is_ok() {
            kills += 1;
        }
        let _gone = counter.wait().await;
    }
    Ok(kills)
}

fn counter(cloud: &Layout) -> Result<Command, Fail> {
    let program = std::env::current_exe().map_err(|e| spawn_fail(&e))?;
    let mut command = Command::new(program);
    command
        .arg("--repo")
        .arg(cloud.root())
        .args(["log", "count", STREAMS, "--consumer", COUNTER, "--json"])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    Ok(command)
}

fn spawn_fail(error: &std::io::Error) -> Fail {
    Fail::resources("process", error)
}

/// Waits until the cloud has so many pieces.
pub(super) async fn until_there(cloud: &Client, pieces: u64) -> Result<(), Fail> {
    let deadline = Instant::now() + PATIENCE;
    let path = url("/v1/streams", &[("pattern", STREAMS)]);
    loop {
        let mut lines = cloud
            .lines::<(), StreamView>(hyper::Method::GET, &path, None)
            .await?;
        let mut there = 0;
        while let Some(view) = futures::StreamExt::next(&mut lines).await {
            there += view?.events;
        }
        if there == pieces {
            return Ok(());
        }
        if there > pieces {
            let cause = format!("{pieces} pieces were appended, and the cloud has {there}");
            return Err(Fail::new(Code::Integrity, cause));
        }
        if Instant::now() > deadline {
            let cause = format!(
                "of {pieces} pieces {there} reached the cloud in {} s",
                PATIENCE.as_secs()
            );
            return Err(Fail::new(Code::Timeout, cause));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Lets a counter finish, and asks what was counted in all.
pub(super) async fn counted(cloud: &Layout) -> Result<u64, Fail> {
    let output = counter(cloud)?
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .output();
    let output = output.await.map_err(|e| spawn_fail(&e))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(Fail::new(
            Code::Failure,
            format!("the counter failed: {said}"),
        ));
    }
    let mut count = 0;
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let counted: serde_json::Value = serde_json::from_str(line).map_err(Fail::internal)?;
        count += counted["count"].as_u64().unwrap_or(0);
    }
    Ok(count)
}

/// What goes on beside the roll-out.
pub(super) struct Events {
    over: CancellationToken,
    devices: Vec<tokio::task::JoinHandle<Result<u64, Fail>>>,
    counting: tokio::task::JoinHandle<Result<u64, Fail>>,
    cloud: Layout,
    /// Whatever ends the demo ends them.
    _guard: DropGuard,
}

impl Events {
    /// Begins, on these devices; the first is the cloud.
    pub(super) fn begin(devices: Vec<(Layout, String)>) -> Self {
        let over = CancellationToken::new();
        let cloud = devices[0].0.clone();
        let appending = devices.into_iter().skip(1);
        let appending =
            appending.map(|(layout, name)| tokio::spawn(append(layout, name, over.clone())));
        Self {
            devices: appending.collect(),
            counting: tokio::spawn(count_and_kill(cloud.clone(), over.clone())),
            _guard: over.clone().drop_guard(),
            over,
            cloud,
        }
    }

    /// Ends, and compares what was acknowledged with what was counted: both, and how often the counter was killed.
    pub(super) async fn end(self, cloud: &Client) -> Result<(u64, u64, u64), Fail> {
        self.over.cancel();
        let mut pieces = 0;
        for device in self.devices {
            pieces += device.await.map_err(Fail::internal)??;
        }
        let kills = self.counting.await.map_err(Fail::internal)??;
        until_there(cloud, pieces).await?;
        Ok((pieces, counted(&self.cloud).await?, kills))
    }
}
