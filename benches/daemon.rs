//! Real daemons on loopback, for benches that measure whole programs.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use gemba_pnet::SwarmKey;
use serde_json::Value;

/// The program that is measured: `GEMBA_BIN`, or the release build beside the bench.
///
/// # Panics
/// If there is none.
#[must_use]
pub fn binary() -> PathBuf {
    if let Some(file) = std::env::var_os("GEMBA_BIN") {
        return file.into();
    }
    let own = std::env::current_exe().unwrap();
    let found = own.ancestors().nth(2).unwrap().join("gemba");
    assert!(
        found.exists(),
        "there is no {}: run cargo build --release --bin gemba, or set GEMBA_BIN",
        found.display()
    );
    found
}

/// A daemon of the release program; killed when dropped.
#[derive(Debug)]
pub struct Daemon {
    binary: PathBuf,
    repo: PathBuf,
    child: Child,
}

impl Daemon {
    /// The process.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// A command on its repository, to be started.
    #[must_use]
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command.arg("--repo").arg(&self.repo).args(arguments);
        command
    }

    /// Makes a repository under `home` and starts a daemon on it.
    ///
    /// # Panics
    /// If it does not come up.
    #[must_use]
    pub fn start(binary: &Path, home: &Path, name: &str, key: &SwarmKey) -> Self {
        let repo = home.join(name);
        let file = home.join(format!("{name}.key"));
        write_private(&file, key.to_file_text().as_bytes());
        let init = Command::new(binary)
            .args(["--repo", repo.to_str().unwrap(), "init", "--swarm-key"])
            .arg(&file)
            .output()
            .unwrap();
        assert!(init.status.success(), "{init:?}");
        Self::again(binary, home, name)
    }

    /// Starts a daemon on a repository that is there.
    ///
    /// # Panics
    /// If it does not come up.
    #[must_use]
    pub fn again(binary: &Path, home: &Path, name: &str) -> Self {
        let repo = home.join(name);
        let mut child = Command::new(binary)
            .args(["--repo", repo.to_str().unwrap(), "daemon", "--no-mdns"])
            .args(["--listen", "/ip4/127.0.0.1/tcp/0", "--api", "127.0.0.1:0"])
            .stdout(Stdio::piped())
            .stderr(fs::File::create(home.join(format!("{name}.log"))).unwrap())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        while !lines
            .next()
            .expect("the daemon is ready")
            .unwrap()
            .contains("ready")
        {}
        // Nobody reads on, and what it says must not stop it.
        std::thread::spawn(move || lines.for_each(drop));
        Self {
            binary: binary.into(),
            repo,
            child,
        }
    }

    /// Runs a command on its repository; what it prints.
    ///
    /// # Panics
    /// If that fails.
    pub fn gemba(&self, arguments: &[&str]) -> String {
        let output = Command::new(&self.binary)
            .arg("--repo")
            .arg(&self.repo)
            .args(arguments)
            .stderr(Stdio::piped())
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    /// The same with `--json`: one object.
    ///
    /// # Panics
    /// If that fails.
    #[must_use]
    pub fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.gemba(&[&["--json"], arguments].concat())).unwrap()
    }

    /// Where it listens.
    ///
    /// # Panics
    /// If that fails.
    #[must_use]
    pub fn address(&self) -> String {
        let id = self.json(&["id"]);
        id["addresses"][0].as_str().unwrap().to_string()
    }

    /// How many peers are connected.
    ///
    /// # Panics
    /// If that fails.
    #[must_use]
    pub fn peers(&self) -> usize {
        self.gemba(&["--json", "peers"]).lines().count()
    }

    /// Talks to its API, also from another thread.
    #[must_use]
    pub fn client(&self) -> Client {
        Client {
            repo: self.repo.clone(),
        }
    }

    /// As [`Client::http`].
    ///
    /// # Panics
    /// If the daemon is gone.
    #[must_use]
    pub fn http(&self, path: &str, patience: u32) -> Vec<u8> {
        self.client().http(path, patience)
    }

    /// As [`Client::post`].
    ///
    /// # Panics
    /// If the daemon is gone.
    #[must_use]
    pub fn post(&self, path: &str, json: &str) -> Vec<u8> {
        self.client().post(path, json)
    }

    fn status(&self, field: &str) -> u64 {
        let text = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(field))
            .unwrap();
        let kib: u64 = line
            .trim_matches(|c: char| !c.is_ascii_digit())
            .parse()
            .unwrap();
        kib * 1024
    }

    /// Resident memory, bytes.
    ///
    /// # Panics
    /// If that fails.
    #[must_use]
    pub fn resident(&self) -> u64 {
        self.status("VmRSS:")
    }

    /// The most it was since the last [`Daemon::reset_peak`].
    ///
    /// # Panics
    /// If that fails.
    #[must_use]
    pub fn peak(&self) -> u64 {
        self.status("VmHWM:")
    }

    /// Begins to measure the peak anew.
    ///
    /// # Panics
    /// If that fails.
    pub fn reset_peak(&self) {
        fs::write(format!("/proc/{}/clear_refs", self.child.id()), "5").unwrap();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Talks to the API of a daemon, a connection a request.
#[derive(Debug, Clone)]
pub struct Client {
    repo: PathBuf,
}

impl Client {
    /// A request to the API with so many milliseconds of patience; the whole answer.
    ///
    /// # Panics
    /// If the daemon is gone.
    #[must_use]
    pub fn http(&self, path: &str, patience: u32) -> Vec<u8> {
        self.ask(
            "GET",
            path,
            &format!("X-Gemba-Patience-Ms: {patience}\r\n"),
            "",
        )
    }

    /// Posts JSON to the API; the whole answer.
    ///
    /// # Panics
    /// If the daemon is gone.
    #[must_use]
    pub fn post(&self, path: &str, json: &str) -> Vec<u8> {
        let headers = format!(
            "Content-Type: application/json\r\nContent-Length: {}\r\n",
            json.len()
        );
        self.ask("POST", path, &headers, json)
    }

    fn ask(&self, method: &str, path: &str, headers: &str, body: &str) -> Vec<u8> {
        let api: Value = serde_json::from_slice(&fs::read(self.repo.join("api")).unwrap()).unwrap();
        let (address, token) = (api["address"].as_str().unwrap(), &api["token"]);
        let mut stream = TcpStream::connect(address).unwrap();
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {}\r\n{headers}Connection: close\r\n\r\n{body}",
            token.as_str().unwrap()
        )
        .unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        answer
    }
}

/// A key that others may read is refused.
fn write_private(path: &Path, bytes: &[u8]) {
    use std::os::unix::fs::OpenOptionsExt;
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .unwrap();
    file.write_all(bytes).unwrap();
}

/// Processor time of a process so far.
///
/// # Panics
/// If it is gone.
#[must_use]
pub fn cpu(process: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    // What follows the name in brackets; a tick is a hundredth of a second.
    let (_, rest) = stat.rsplit_once(')').unwrap();
    let ticks = rest.split_whitespace().skip(11).take(2);
    let ticks: u64 = ticks.map(|n| n.parse::<u64>().unwrap()).sum();
    Duration::from_millis(ticks * 10)
}
