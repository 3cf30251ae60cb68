//! A gemba daemon, driven only through what its users have: the command line, its JSON and its exit codes.

use super::process::{Daemon, Finished, Running, Usage, command, run, start, start_with};
use super::{Entry, until};
use crate::failure::{Context, Outcome, ensure};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::Duration;

/// For one command. Generous: what is to be fast is measured by the scenario itself.
const LIMIT: Duration = Duration::from_secs(60);

/// What differs from one gemba node to the next.
#[derive(Clone)]
pub(crate) struct Options {
    /// The bytes of the key file given to `init`; without one, `init` makes a new key.
    pub(crate) key: Option<Vec<u8>>,
    pub(crate) listen: &'static str,
    pub(crate) mdns: bool,
    pub(crate) bootstrap: Vec<String>,
    pub(crate) netns: Option<String>,
    /// A library that the daemon is started with, such as one that sets its clock.
    pub(crate) preload: Option<PathBuf>,
}

impl Options {
    pub(crate) fn new(key: &[u8]) -> Self {
        Self {
            key: Some(key.into()),
            ..Self::new_key()
        }
    }

    /// With a swarm key that gemba makes itself.
    pub(crate) fn new_key() -> Self {
        Self {
            key: None,
            listen: "/ip4/127.0.0.1/tcp/0",
            mdns: false,
            bootstrap: Vec::new(),
            netns: None,
            preload: None,
        }
    }
}

/// A repository, and the daemon on it while it runs.
pub(crate) struct Gemba {
    pub(crate) name: String,
    binary: PathBuf,
    repo: PathBuf,
    options: Options,
    daemon: Option<Daemon>,
    pub(crate) id: String,
}

impl Gemba {
    /// Makes a repository with this swarm key. Starts nothing.
    pub(crate) fn init(binary: &Path, home: &Path, name: &str, options: &Options) -> Outcome<Self> {
        let mut gemba = Self {
            name: name.into(),
            binary: binary.into(),
            repo: home.join(name),
            options: options.clone(),
            daemon: None,
            id: String::new(),
        };
        if let Some(bytes) = &options.key {
            let key = home.join(format!("{name}.swarm.key"));
            write_private(&key, bytes)?;
            gemba.cli(&["init", "--swarm-key", path(&key)?])?;
        } else {
            gemba.cli(&["init", "--new-swarm-key"])?;
        }
        gemba.id = field(&gemba.json(&["id"])?, "id")?;
        Ok(gemba)
    }

    /// Makes a repository and starts its daemon.
    pub(crate) fn start(
        binary: &Path,
        home: &Path,
        name: &str,
        options: &Options,
    ) -> Outcome<Self> {
        let mut gemba = Self::init(binary, home, name, options)?;
        gemba.up()?;
        Ok(gemba)
    }

    /// Starts the daemon and waits until it says that it is ready.
    pub(crate) fn up(&mut self) -> Outcome {
        let mut daemon = self.command();
        daemon.args([
            "daemon",
            "--listen",
            self.options.listen,
            "--api",
            "127.0.0.1:0",
        ]);
        if !self.options.mdns {
            daemon.arg("--no-mdns");
        }
        if let Some(library) = &self.options.preload {
            daemon.env("LD_PRELOAD", library);
        }
        for address in &self.options.bootstrap {
            daemon.args(["--bootstrap", address]);
        }
        let mut daemon = Daemon::spawn(&self.name, &mut daemon, &self.repo.with_extension("log"))?;
        daemon.wait_for("ready", Duration::from_secs(20))?;
        self.daemon = Some(daemon);
        Ok(())
    }

    /// The daemon is started with this library from now on.
    pub(crate) fn preload(&mut self, library: PathBuf) {
        self.options.preload = Some(library);
    }

    /// No time to say goodbye (`kill -9`).
    pub(crate) fn kill(&mut self) -> Outcome {
        self.daemon
            .take()
            .map_or(Ok(()), |mut daemon| daemon.kill())
    }

    /// Orderly end, by SIGTERM.
    pub(crate) fn stop(&mut self) -> Outcome<ExitStatus> {
        let mut daemon = self
            .daemon
            .take()
            .context(|| format!("{} is down", self.name))?;
        daemon.terminate(LIMIT)
    }

    /// Everything the daemon has written since it was last started.
    pub(crate) fn log(&self) -> Outcome<String> {
        self.daemon()?.log_text()
    }

    pub(crate) fn usage(&self) -> Outcome<Usage> {
        self.daemon()?.usage()
    }

    pub(crate) fn reset_peak(&self) -> Outcome {
        self.daemon()?.reset_peak()
    }

    /// How many TCP connections were begun in the network namespace of the daemon.
    pub(crate) fn active_opens(&self) -> Outcome<u64> {
        self.daemon()?.active_opens()
    }

    fn daemon(&self) -> Outcome<&Daemon> {
        self.daemon
            .as_ref()
            .context(|| format!("{} is down", self.name))
    }

    /// The bytes of the key file in the repository.
    pub(crate) fn key_file(&self) -> Outcome<Vec<u8>> {
        Ok(fs::read(self.repo.join("swarm.key"))?)
    }

    // --- commands

    fn command(&self) -> Command {
        let mut command = command(&self.binary, self.options.netns.as_deref());
        command.arg("--repo").arg(&self.repo);
        command
    }

    /// Runs a command line; its standard output.
    pub(crate) fn cli(&self, args: &[&str]) -> Outcome<String> {
        self.cli_within(args, LIMIT)?
            .ok()
            .context(|| self.name.clone())
    }

    /// Runs a command line; its standard output as bytes.
    pub(crate) fn cli_bytes(&self, args: &[&str]) -> Outcome<Vec<u8>> {
        self.cli_within(args, LIMIT)?
            .ok_bytes()
            .context(|| self.name.clone())
    }

    /// Runs a command line that may fail.
    pub(crate) fn cli_within(&self, args: &[&str], limit: Duration) -> Outcome<Finished> {
        run(self.command().args(args), limit)
    }

    /// Runs a command line that reads this file as its standard input and may fail.
    pub(crate) fn cli_reading(&self, args: &[&str], input: &Path) -> Outcome<Finished> {
        let input = fs::File::open(input)?;
        start_with(self.command().args(args), input)?.finish(LIMIT)
    }

    /// Begins a command line.
    pub(crate) fn cli_start(&self, args: &[&str]) -> Outcome<Running> {
        start(self.command().args(args))
    }

    /// Runs a command with `--json` whose answer is one object.
    pub(crate) fn json(&self, args: &[&str]) -> Outcome<Value> {
        let lines = self.json_lines(args)?;
        ensure!(
            lines.len() == 1,
            "{}: `{}` gave {} JSON lines in place of one",
            self.name,
            args.join(" "),
            lines.len()
        );
        Ok(lines.into_iter().next().unwrap_or_default())
    }

    /// Runs a command with `--json` whose answer is one object a line.
    pub(crate) fn json_lines(&self, args: &[&str]) -> Outcome<Vec<Value>> {
        let mut with_json = args.to_vec();
        with_json.push("--json");
        let text = self.cli(&with_json)?;
        let lines = text.lines().filter(|line| !line.trim().is_empty());
        lines
            .map(serde_json::from_str)
            .collect::<Result<_, _>>()
            .context(|| format!("{}: `{}` gave {text:?}", self.name, args.join(" ")))
    }

    /// Adds a file or folder; every entry, the root last.
    pub(crate) fn add(&self, from: &Path, options: &[&str]) -> Outcome<Vec<Entry>> {
        let mut args = vec!["add", path(from)?];
        args.extend(options);
        let entries = self.json_lines(&args)?;
        ensure!(
            !entries.is_empty(),
            "{} added nothing from {}",
            self.name,
            from.display()
        );
        entries
            .iter()
            .map(|entry| {
                Ok(Entry {
                    name: field(entry, "name")?,
                    cid: field(entry, "cid")?,
                })
            })
            .collect()
    }

    /// Writes a file or folder to `to`.
    pub(crate) fn get(&self, cid: &str, to: &Path) -> Outcome {
        self.cli(&["get", cid, "-o", path(to)?]).map(drop)
    }

    /// The peers it is connected to, each once, sorted.
    pub(crate) fn peers(&self) -> Outcome<Vec<String>> {
        let peers = self.json_lines(&["peers"])?;
        let ids = peers
            .iter()
            .map(|peer| field(peer, "id"))
            .collect::<Outcome<BTreeSet<_>>>()?;
        Ok(ids.into_iter().collect())
    }

    /// Its address for others, with its peer id.
    pub(crate) fn address(&self) -> Outcome<String> {
        let id = self.json(&["id"])?;
        let addresses = id["addresses"].as_array().cloned().unwrap_or_default();
        let mut tcp = addresses
            .iter()
            .filter_map(Value::as_str)
            .filter(|a| a.contains("/tcp/") && a.contains("/p2p/"));
        tcp.next()
            .map(String::from)
            .context(|| format!("{} has no TCP address: {id}", self.name))
    }

    pub(crate) fn connect(&self, address: &str) -> Outcome {
        self.cli(&["connect", address]).map(drop)
    }

    /// Waits until a peer is among the connected ones.
    pub(crate) fn wait_for_peer(&self, id: &str, limit: Duration) -> Outcome<Duration> {
        let seen = || Ok(self.peers()?.iter().any(|peer| peer == id).then_some(()));
        Ok(until(&format!("{} sees peer {id}", self.name), limit, seen)?.1)
    }

    /// Fetches and pins a whole DAG.
    pub(crate) fn pin(&self, cid: &str) -> Outcome {
        self.cli(&["pin", "add", cid]).map(drop)
    }

    /// Whether the list of pins holds this CID as one that is whole on this device.
    pub(crate) fn is_pinned(&self, cid: &str) -> Outcome<bool> {
        Ok(self
            .json_lines(&["pin", "ls"])?
            .iter()
            .any(|pin| pin["cid"] == cid && pin["status"] == "pinned"))
    }
}

/// The error object that a failed command with `--json` writes to standard error: `{"error":{"code","cause","hint"}}`.
pub(crate) fn error_object(finished: &Finished) -> Outcome<Value> {
    let mut objects = finished
        .stderr
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok());
    objects
        .find_map(|object| object.get("error").cloned())
        .context(|| format!("no JSON error on standard error, but {:?}", finished.stderr))
}

/// A text field of an object.
pub(crate) fn field(object: &Value, name: &str) -> Outcome<String> {
    object[name]
        .as_str()
        .map(String::from)
        .context(|| format!("no text field {name:?} in {object}"))
}

fn path(path: &Path) -> Outcome<&str> {
    path.to_str()
        .context(|| format!("{} is not UTF-8", path.display()))
}

/// Keys that others can read are refused by gemba.
fn write_private(file: &Path, bytes: &[u8]) -> Outcome {
    use std::os::unix::fs::OpenOptionsExt;
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(file)?;
    Ok(std::io::Write::write_all(&mut file, bytes)?)
}
