//! A Kubo daemon that can reach nothing but its private swarm.

use super::process::{Daemon, Finished, Running, Usage, command, run, start};
use super::{Entry, http, until};
use crate::failure::{Context, Failure, Outcome, ensure, fail};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::Duration;

/// For one command or one answer. Generous: what is to be fast is measured by the scenario itself.
const LIMIT: Duration = Duration::from_secs(60);

/// What differs from one Kubo node to the next.
#[derive(Clone)]
pub(crate) struct Options {
    /// The bytes of `swarm.key`.
    pub(crate) key: Vec<u8>,
    pub(crate) listen: &'static str,
    pub(crate) mdns: bool,
    /// An import profile (`unixfs-v1-2025` …); Kubo's own default otherwise.
    pub(crate) profile: Option<&'static str>,
    pub(crate) netns: Option<String>,
}

impl Options {
    pub(crate) fn new(key: &[u8]) -> Self {
        Self {
            key: key.into(),
            listen: "/ip4/127.0.0.1/tcp/0",
            mdns: false,
            profile: None,
            netns: None,
        }
    }
}

/// A repository, and the daemon on it while it runs.
pub(crate) struct Kubo {
    name: String,
    binary: PathBuf,
    home: PathBuf,
    netns: Option<String>,
    daemon: Option<Daemon>,
    api: Option<SocketAddr>,
    pub(crate) id: String,
}

impl Kubo {
    /// Makes a repository by the recipe of the private swarm. Starts nothing.
    pub(crate) fn init(binary: &Path, home: &Path, name: &str, options: &Options) -> Outcome<Self> {
        let mut kubo = Self {
            name: name.into(),
            binary: binary.into(),
            home: home.join(name),
            netns: options.netns.clone(),
            daemon: None,
            api: None,
            id: String::new(),
        };
        fs::create_dir_all(&kubo.home)?;
        kubo.cli(&["init", "-e", "--profile=test"])?;
        if let Some(profile) = options.profile {
            kubo.cli(&["config", "profile", "apply", profile])?;
        }
        kubo.configure(|config| {
            set(config, "Addresses.Swarm", json!([options.listen]));
            // Not `auto` (replaced with a warning) and not `autoclient` (fatal with a swarm key).
            set(config, "Routing.Type", json!("dht"));
            for off in [
                "Swarm.Transports.Network.Websocket",
                "Swarm.RelayClient.Enabled",
                "Swarm.RelayService.Enabled",
                "Swarm.EnableHolePunching",
                "HTTPRetrieval.Enabled",
                "Version.SwarmCheckEnabled",
                "Gateway.ExposeRoutingAPI",
            ] {
                set(config, off, json!(false));
            }
            set(config, "AutoNAT.ServiceMode", json!("disabled"));
            set(config, "Gateway.NoDNSLink", json!(true));
            set(config, "Discovery.MDNS.Enabled", json!(options.mdns));
            // A swarm key does not stop telemetry; it would report `private_network`.
            set(
                config,
                "Plugins.Plugins.telemetry",
                json!({"Config": {"Mode": "off"}}),
            );
        })?;
        fs::write(kubo.home.join("swarm.key"), &options.key)?;
        let config: Value = serde_json::from_slice(&fs::read(kubo.home.join("config"))?)?;
        kubo.id = config["Identity"]["PeerID"]
            .as_str()
            .context(|| "no Identity.PeerID in Kubo's config".into())?
            .into();
        Ok(kubo)
    }

    /// Makes a repository and starts its daemon.
    pub(crate) fn start(
        binary: &Path,
        home: &Path,
        name: &str,
        options: &Options,
    ) -> Outcome<Self> {
        let mut kubo = Self::init(binary, home, name, options)?;
        kubo.up()?;
        Ok(kubo)
    }

    /// Starts the daemon and waits until it takes commands.
    pub(crate) fn up(&mut self) -> Outcome {
        // Left by a killed daemon; with it the wait below would end too early.
        let api = self.home.join("api");
        let _ = fs::remove_file(&api);
        let log = self.home.with_extension("log");
        let mut daemon = Daemon::spawn(&self.name, self.command().arg("daemon"), &log)?;
        daemon.wait_for("Daemon is ready", LIMIT)?;
        self.api = Some(parse_api(&fs::read_to_string(&api)?)?);
        self.daemon = Some(daemon);
        Ok(())
    }

    /// No time to say goodbye.
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

    /// Keeps the present port over restarts, so that whoever knows the address finds the node again.
    pub(crate) fn keep_port(&mut self) -> Outcome {
        let port = self.socket()?.port();
        self.configure(|config| {
            set(
                config,
                "Addresses.Swarm",
                json!([format!("/ip4/127.0.0.1/tcp/{port}")]),
            );
        })
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

    fn daemon(&self) -> Outcome<&Daemon> {
        self.daemon
            .as_ref()
            .context(|| format!("{} is down", self.name))
    }

    fn configure(&self, change: impl FnOnce(&mut Value)) -> Outcome {
        let file = self.home.join("config");
        let mut config = serde_json::from_slice(&fs::read(&file)?)?;
        change(&mut config);
        Ok(fs::write(&file, serde_json::to_vec_pretty(&config)?)?)
    }

    // --- commands, through the CLI

    fn command(&self) -> Command {
        let mut command = command(&self.binary, self.netns.as_deref());
        command
            .env("IPFS_PATH", &self.home)
            .env("IPFS_TELEMETRY", "off")
            .env("LIBP2P_FORCE_PNET", "1");
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

    /// Begins a command line.
    pub(crate) fn cli_start(&self, args: &[&str]) -> Outcome<Running> {
        start(self.command().args(args))
    }

    /// Adds a file or folder with the profile of the repository; every entry, the root last.
    pub(crate) fn add(&self, path: &Path, options: &[&str]) -> Outcome<Vec<Entry>> {
        let path = path.to_str().context(|| "path is not UTF-8".into())?;
        let mut args = vec!["add", "-r", "--progress=false"];
        args.extend(options);
        args.push(path);
        let entries = self
            .cli(&args)?
            .lines()
            .map(parse_added)
            .collect::<Outcome<Vec<_>>>()?;
        ensure!(
            !entries.is_empty(),
            "{} added nothing from {path}",
            self.name
        );
        Ok(entries)
    }

    /// Writes a file or folder to `to`.
    pub(crate) fn get(&self, cid: &str, to: &Path) -> Outcome {
        let to = to.to_str().context(|| "path is not UTF-8".into())?;
        self.cli(&["get", "--progress=false", "-o", to, cid])
            .map(drop)
    }

    /// The peers it is connected to, each once, sorted.
    pub(crate) fn peers(&self) -> Outcome<Vec<String>> {
        let list = self.cli(&["swarm", "peers"])?;
        let ids = list
            .lines()
            .filter_map(|line| Some(line.rsplit_once("/p2p/")?.1.to_string()));
        Ok(ids.collect::<BTreeSet<_>>().into_iter().collect())
    }

    // --- commands, through the RPC (not from another namespace)

    /// Where its RPC is.
    pub(crate) fn rpc_url(&self) -> Outcome<String> {
        let api = self.api.context(|| format!("{} is down", self.name))?;
        Ok(format!("http://{api}"))
    }

    /// One RPC call whose answer is one JSON value, or nothing.
    pub(crate) fn rpc(&self, call: &str, args: &[&str]) -> Outcome<Value> {
        self.rpc_within(call, args, LIMIT)
    }

    fn rpc_within(&self, call: &str, args: &[&str], limit: Duration) -> Outcome<Value> {
        let mut text = String::new();
        self.rpc_stream_within(call, args, limit)?
            .read_to_string(&mut text)?;
        if text.trim().is_empty() {
            Ok(Value::Null)
        } else {
            Ok(serde_json::from_str(&text)?)
        }
    }

    /// One RPC call whose answer is read as it comes. `call` may hold a query of its own.
    pub(crate) fn rpc_stream(&self, call: &str, args: &[&str]) -> Outcome<http::Body<TcpStream>> {
        self.rpc_stream_within(call, args, LIMIT)
    }

    fn rpc_stream_within(
        &self,
        call: &str,
        args: &[&str],
        limit: Duration,
    ) -> Outcome<http::Body<TcpStream>> {
        let api = self.api.context(|| format!("{} is down", self.name))?;
        let mut target = format!("/api/v0/{call}");
        for arg in args {
            let joint = if target.contains('?') { '&' } else { '?' };
            target += &format!("{joint}arg={}", http::encode(arg));
        }
        http::post(api, &target, limit).context(|| format!("{}: {call}", self.name))
    }

    /// Publishes a message, as fast as the RPC takes one.
    pub(crate) fn publish(&self, topic: &str, data: &[u8]) -> Outcome {
        let api = self.api.context(|| format!("{} is down", self.name))?;
        let target = format!("/api/v0/pubsub/pub?arg={}", http::encode(topic));
        let answer = http::post_file(api, &target, data, LIMIT);
        let mut answer = answer.context(|| format!("{}: pubsub/pub", self.name))?;
        answer.read_to_end(&mut Vec::new())?;
        Ok(())
    }

    /// Its address for others, with its peer id.
    pub(crate) fn address(&self) -> Outcome<String> {
        let id = self.rpc("id", &[])?;
        let addresses = id["Addresses"].as_array().cloned().unwrap_or_default();
        let mut tcp = addresses
            .iter()
            .filter_map(Value::as_str)
            .filter(|a| a.starts_with("/ip4/127.0.0.1/tcp/"));
        tcp.next()
            .map(String::from)
            .context(|| format!("{} has no TCP address: {addresses:?}", self.name))
    }

    /// The same as a socket address.
    pub(crate) fn socket(&self) -> Outcome<SocketAddr> {
        let address = self.address()?;
        parse_api(address.split("/p2p/").next().unwrap_or_default())
    }

    pub(crate) fn connect(&self, address: &str) -> Outcome {
        self.rpc("swarm/connect", &[address]).map(drop)
    }

    /// Waits until a peer is among the connected ones.
    pub(crate) fn wait_for_peer(&self, id: &str, limit: Duration) -> Outcome<Duration> {
        let seen = || {
            let peers = self.rpc("swarm/peers", &[])?;
            let mut peers = peers["Peers"].as_array().into_iter().flatten();
            Ok(peers.any(|peer| peer["Peer"] == id).then_some(()))
        };
        Ok(until(&format!("{} sees peer {id}", self.name), limit, seen)?.1)
    }

    /// Fetches and pins a whole DAG.
    pub(crate) fn pin(&self, cid: &str) -> Outcome {
        self.pin_within(cid, LIMIT)
    }

    /// Fetches and pins a whole DAG, which may take long.
    pub(crate) fn pin_within(&self, cid: &str, limit: Duration) -> Outcome {
        let pinned = self.rpc_within("pin/add", &[cid], limit)?;
        ensure!(
            pinned["Pins"][0] == cid,
            "{} pinned {} in place of {cid}",
            self.name,
            pinned["Pins"]
        );
        Ok(())
    }

    /// A counter of `bitswap/stat`.
    pub(crate) fn bitswap(&self, field: &str) -> Outcome<u64> {
        let stat = self.rpc("bitswap/stat", &[])?;
        stat[field]
            .as_u64()
            .context(|| format!("no {field} in bitswap/stat"))
    }
}

/// Sets a dotted key, making the objects on the way.
fn set(config: &mut Value, key: &str, value: Value) {
    let mut at = config;
    for part in key.split('.') {
        if !at.is_object() {
            *at = json!({});
        }
        at = &mut at[part];
    }
    *at = value;
}

/// `/ip4/A.B.C.D/tcp/PORT` as a socket address.
fn parse_api(text: &str) -> Outcome<SocketAddr> {
    let parts: Vec<&str> = text.trim().split('/').collect();
    let ["", "ip4", ip, "tcp", port] = parts[..] else {
        fail!("not an address: {text:?}")
    };
    format!("{ip}:{port}").parse().map_err(Failure::from)
}

/// `added CID NAME`, where a name may hold blanks.
fn parse_added(line: &str) -> Outcome<Entry> {
    let mut words = line.splitn(3, ' ').skip(1);
    let (Some(cid), Some(name)) = (words.next(), words.next()) else {
        fail!("not a line of `ipfs add`: {line:?}")
    };
    Ok(Entry {
        name: name.into(),
        cid: cid.into(),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn dotted_keys_reach_through_null_and_missing_objects() {
        let mut config = json!({"A": {"B": 1}, "N": null});
        set(&mut config, "A.C.D", json!(false));
        set(&mut config, "N.X", json!([]));
        assert_eq!(
            config,
            json!({"A": {"B": 1, "C": {"D": false}}, "N": {"X": []}})
        );
    }

    #[test]
    fn names_with_blanks_stay_whole() {
        let entry = parse_added("added Qm1 a folder/b c").unwrap();
        assert_eq!(
            (entry.cid.as_str(), entry.name.as_str()),
            ("Qm1", "a folder/b c")
        );
        assert!(parse_added("added Qm1").is_err());
    }

    #[test]
    fn api_addresses_are_ip4_tcp() {
        assert_eq!(
            parse_api("/ip4/127.0.0.1/tcp/5001\n").unwrap(),
            "127.0.0.1:5001".parse().unwrap()
        );
        assert!(parse_api("/ip6/::1/tcp/5001").is_err());
    }
}
