//! The demo's swarm: real node processes with repositories of their own, on loopback, in one temporary folder.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::{Child, Command};
use tokio::time::Instant;

use crate::api::types::{Id, PinStatus, Status};
use crate::client::Client;
use crate::error::{Code, Fail};
use crate::repo::{Access, InitOptions, KeyChoice, Layout, Repo};

/// A node that is not ready by then does not start.
const START: Duration = Duration::from_secs(30);
/// A node that has not ended by then after SIGTERM is killed.
const STOP: Duration = Duration::from_secs(10);

/// One node process.
pub(super) struct Device {
    /// 0 is the cloud.
    pub number: usize,
    /// Its repository.
    pub layout: Layout,
    /// Its API, while it runs.
    pub client: Client,
    /// Whom it dials: the addresses of those that started before it.
    bootstrap: Vec<String>,
    log: PathBuf,
    child: Child,
}

impl Device {
    /// Makes a repository with the swarm's key and starts a daemon on it.
    pub(super) async fn start(
        folder: &Path,
        number: usize,
        key: &Path,
        bootstrap: Vec<String>,
    ) -> Result<Self, Fail> {
        let root = folder.join(name_of(number));
        let options = InitOptions {
            key: KeyChoice::Import(key.to_owned()),
            public_network: false,
        };
        drop(Repo::init(&root, &options)?);
        let layout = Layout::new(&root);
        let log = folder.join(format!("{}.log", name_of(number)));
        let child = spawn(&layout, &bootstrap, &log, number == 0)?;
        let mut device = Self {
            number,
            client: Client::nowhere(),
            layout,
            bootstrap,
            log,
            child,
        };
        device.client = device.ready().await?;
        Ok(device)
    }

    /// How people call it.
    pub(super) fn name(&self) -> String {
        name_of(self.number)
    }

    /// Waits until the daemon answers.
    async fn ready(&mut self) -> Result<Client, Fail> {
        let deadline = Instant::now() + START;
        loop {
            if let Some(client) = Client::connect(&self.layout, None).await? {
                return Ok(client);
            }
            if let Ok(Some(status)) = self.child.try_wait() {
                return Err(Fail::new(
                    Code::Failure,
                    format!(
                        "{} ended at its start ({status}): {}",
                        self.name(),
                        self.last_words()
                    ),
                ));
            }
            if Instant::now() > deadline {
                return Err(Fail::new(
                    Code::Timeout,
                    format!(
                        "{} was not ready in {} s: {}",
                        self.name(),
                        START.as_secs(),
                        self.last_words()
                    ),
                ));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn last_words(&self) -> String {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        log.lines()
            .rev()
            .take(3)
            .collect::<Vec<_>>()
            .into_iter()
            .rev()
            .collect::<Vec<_>>()
            .join(" | ")
    }

    /// Pulls the plug: SIGKILL, nothing is flushed, nothing is said.
    pub(super) async fn kill(&mut self) -> Result<(), Fail> {
        self.child
            .kill()
            .await
            .map_err(|e| Fail::new(Code::Failure, format!("cannot kill {}: {e}", self.name())))
    }

    /// Blocks on the disk of a node that does not run.
    pub(super) fn blocks_on_disk(&self) -> Result<u64, Fail> {
        let repo = Repo::open(self.layout.root(), Access::Read)?;
        Ok(repo.store()?.stat().blocks)
    }

    /// Starts the daemon again on what the disk holds.
    pub(super) async fn restart(&mut self) -> Result<(), Fail> {
        self.child = spawn(&self.layout, &self.bootstrap, &self.log, self.number == 0)?;
        self.client = self.ready().await?;
        Ok(())
    }

    /// Ends it as a service manager would.
    pub(super) async fn stop(&mut self) -> Result<(), Fail> {
        let asked: Result<crate::api::types::Done, Fail> = self
            .client
            .post_json("/v1/shutdown", &serde_json::json!({}))
            .await;
        asked?;
        match tokio::time::timeout(STOP, self.child.wait()).await {
            Ok(Ok(status)) if status.success() => Ok(()),
            Ok(Ok(status)) => Err(Fail::new(
                Code::Failure,
                format!("{} ended with {status}: {}", self.name(), self.last_words()),
            )),
            Ok(Err(e)) => Err(Fail::new(Code::Failure, format!("{}: {e}", self.name()))),
            Err(_) => Err(Fail::new(
                Code::Timeout,
                format!("{} did not end in {} s", self.name(), STOP.as_secs()),
            )),
        }
    }

    /// Its addresses.
    pub(super) async fn addresses(&self) -> Result<Vec<String>, Fail> {
        let id: Id = self.client.get_json("/v1/id").await?;
        Ok(id.addresses)
    }

    /// How a pin of it is.
    pub(super) async fn pin_status(&self, cid: &str) -> Result<PinStatus, Fail> {
        self.client.get_json(&format!("/v1/pins/{cid}")).await
    }

    /// Its figures.
    pub(super) async fn status(&self) -> Result<Status, Fail> {
        self.client.get_json("/v1/status").await
    }
}

fn name_of(number: usize) -> String {
    if number == 0 {
        "cloud".to_owned()
    } else {
        format!("device-{number}")
    }
}

fn spawn(layout: &Layout, bootstrap: &[String], log: &Path, is_cloud: bool) -> Result<Child, Fail> {
    let fail =
        |e: std::io::Error| Fail::new(Code::Failure, format!("cannot start a node process: {e}"));
    let program = std::env::current_exe().map_err(fail)?;
    let log = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(log)
        .map_err(fail)?;
    let mut command = Command::new(program);
    command.arg("--repo").arg(layout.root()).args([
        "daemon",
        "--no-mdns",
        "--listen",
        "/ip4/127.0.0.1/tcp/0",
        "--api",
        "127.0.0.1:0",
        "--until-stdin-closes",
    ]);
    for address in bootstrap {
        command.args(["--bootstrap", address]);
    }
    // The demo's nodes follow the demo's settings, not those of the shell it was started from.
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("GEMBA_") && name != "GEMBA_LOG" {
            command.env_remove(name);
        }
    }
    if is_cloud {
        // All nodes are on loopback, and the cloud is not one of the devices that fetch for each other.
        command.env("GEMBA_NETWORK__SITE", "none");
    }
    command
        .stdin(Stdio::piped())
        .stdout(log.try_clone().map_err(fail)?)
        .stderr(log)
        .kill_on_drop(true);
    command.spawn().map_err(fail)
}
