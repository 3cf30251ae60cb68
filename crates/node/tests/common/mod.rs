//! A repository in a temporary folder, and the binary run on it as its users run it.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// No command of these tests waits for anything; one that does hangs, and is ended.
const LIMIT: Duration = Duration::from_secs(60);

/// A folder with a repository in it.
pub struct Node {
    pub dir: tempfile::TempDir,
    pub repo: PathBuf,
}

impl Node {
    /// A folder without a repository.
    pub fn bare() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let repo = dir.path().join("repo");
        Self { dir, repo }
    }

    /// A repository with a fresh swarm key.
    pub fn new() -> Self {
        let node = Self::bare();
        node.ok(&["init", "--new-swarm-key"]);
        node
    }

    /// A path beside the repository.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes a file beside the repository; folders on the way are made.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, content).unwrap();
        path
    }

    /// The binary on this repository, without what the tester's own environment says.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gemba"));
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if ["GEMBA_", "LIBP2P_", "RUST_LOG"]
                .iter()
                .any(|prefix| text.starts_with(prefix))
            {
                command.env_remove(&name);
            }
        }
        command
            .arg("--repo")
            .arg(&self.repo)
            .args(args)
            .current_dir(self.dir.path())
            .stdin(Stdio::null());
        command
    }

    pub fn run(&self, args: &[&str]) -> Done {
        Done::of(self.command(args), &[])
    }

    pub fn run_with_input(&self, args: &[&str], input: &[u8]) -> Done {
        Done::of(self.command(args), input)
    }

    /// Standard output of a command that must succeed.
    pub fn ok(&self, args: &[&str]) -> String {
        self.run(args).ok()
    }

    /// The one object of a command with `--json`.
    pub fn json(&self, args: &[&str]) -> Value {
        let lines = self.lines(args);
        assert_eq!(lines.len(), 1, "{args:?} gave {lines:?}");
        lines.into_iter().next().unwrap()
    }

    /// The objects of a command with `--json`.
    pub fn lines(&self, args: &[&str]) -> Vec<Value> {
        let args: Vec<&str> = args.iter().copied().chain(["--json"]).collect();
        self.ok(&args)
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    /// Adds a path; the CID of its root.
    pub fn add(&self, path: &Path, options: &[&str]) -> String {
        let mut args = vec!["add", "-Q", path.to_str().unwrap()];
        args.extend(options);
        self.ok(&args).trim().to_owned()
    }

    /// Stores a block; its CID.
    pub fn put(&self, codec: &str, data: &[u8]) -> String {
        self.run_with_input(&["block", "put", "--codec", codec], data)
            .ok()
            .trim()
            .to_owned()
    }

    pub fn fails(&self, args: &[&str], code: i32) -> Failure {
        self.run(args).fails(code)
    }

    /// The failure of a command whose time runs out. The daemon is given half a second to say why; one that is too busy for that is asked
    /// again, twice at most.
    pub fn fails_in_time(&self, args: &[&str]) -> Failure {
        for _ in 0..2 {
            let failure = self.fails(args, 4);
            if !failure.cause.contains("does not answer") {
                return failure;
            }
        }
        self.fails(args, 4)
    }
}

/// A command that ended.
#[derive(Debug)]
pub struct Done {
    args: String,
    pub status: ExitStatus,
    pub stdout: Vec<u8>,
    pub stderr: String,
}

/// What a failed command said, in both forms.
#[derive(Debug)]
pub struct Failure {
    pub cause: String,
    pub hint: String,
    pub code: String,
}

impl Done {
    pub fn of(mut command: Command, input: &[u8]) -> Self {
        let args = format!("{command:?}");
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let input = input.to_owned();
        let writer = std::thread::spawn(move || drop(stdin.write_all(&input)));
        let output = wait(child);
        writer.join().unwrap();
        Self::from_output(&args, output)
    }

    pub fn from_output(args: &str, output: Output) -> Self {
        Self {
            args: args.to_owned(),
            status: output.status,
            stdout: output.stdout,
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    pub fn text(&self) -> String {
        String::from_utf8(self.stdout.clone()).unwrap()
    }

    pub fn ok(self) -> String {
        assert!(
            self.status.success(),
            "{} ended with {:?}: {}",
            self.args,
            self.status,
            self.stderr
        );
        self.text()
    }

    /// The failure with this exit code. Works on text and on `--json`.
    pub fn fails(&self, code: i32) -> Failure {
        assert_eq!(
            self.status.code(),
            Some(code),
            "{}\nstdout: {}\nstderr: {}",
            self.args,
            String::from_utf8_lossy(&self.stdout[..self.stdout.len().min(500)]),
            self.stderr
        );
        if let Some(object) = self
            .stderr
            .lines()
            .find_map(|line| serde_json::from_str::<Value>(line).ok())
        {
            let error = &object["error"];
            let text = |name: &str| {
                error[name]
                    .as_str()
                    .unwrap_or_else(|| panic!("no {name} in {object}"))
                    .to_owned()
            };
            return Failure {
                cause: text("cause"),
                hint: text("hint"),
                code: text("code"),
            };
        }
        let after = |word: &str| {
            let lines = self
                .stderr
                .lines()
                .skip_while(|line| !line.starts_with(word));
            lines
                .take_while(|line| line.starts_with(word) || !line.starts_with("hint: "))
                .collect::<Vec<_>>()
                .join("\n")
        };
        let cause = after("error: ");
        assert!(
            !cause.is_empty(),
            "{} said no cause: {}",
            self.args,
            self.stderr
        );
        Failure {
            cause,
            hint: after("hint: "),
            code: String::new(),
        }
    }
}

/// Waits with a limit, so that a hanging command fails the test instead of stopping it.
pub fn wait(child: Child) -> Output {
    let id = child.id();
    let (done, watched) = std::sync::mpsc::sync_channel::<()>(1);
    let watchdog = std::thread::spawn(move || {
        if watched.recv_timeout(LIMIT).is_err() {
            signal(id, rustix::process::Signal::KILL);
        }
    });
    let output = child.wait_with_output().unwrap();
    let _ = done.send(());
    watchdog.join().unwrap();
    output
}

pub fn signal(id: u32, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(id as i32).unwrap();
    let _ = rustix::process::kill_process(pid, signal);
}

/// Waits until something is so.
pub fn until(what: &str, is_so: impl FnMut() -> bool) {
    assert!(within(LIMIT, is_so), "{what} did not happen");
}

/// Waits until something is so; whether it became so in time.
pub fn within(limit: Duration, mut is_so: impl FnMut() -> bool) -> bool {
    let begun = Instant::now();
    while !is_so() {
        if begun.elapsed() > limit {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    true
}

/// Bytes that look random and repeat for a seed.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    gemba_testkit::Rng::new(seed).bytes(len)
}

/// Turns a byte of this block in its pack, behind the back of whoever has it open.
pub fn damage(node: &Node, cid: &str) {
    let data = node.run(&["block", "get", cid]).stdout;
    for pack in packs(&node.repo) {
        let bytes = std::fs::read(&pack).unwrap();
        let Some(at) = bytes.windows(data.len()).position(|window| window == data) else {
            continue;
        };
        let at = (at + data.len() / 2) as u64;
        let file = std::fs::OpenOptions::new().write(true).open(&pack).unwrap();
        file.write_all_at(&[!bytes[at as usize]], at).unwrap();
        return;
    }
    panic!("{cid} is in no pack");
}

pub fn packs(repo: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(repo.join("blocks"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|end| end == "pack"))
        .collect()
}

/// Every file and symlink below a folder with its content. What is gone between listing and reading was never there: a running daemon writes a
/// small file beside the old one and renames it.
pub fn tree(root: &Path) -> std::collections::BTreeMap<PathBuf, Vec<u8>> {
    let mut found = std::collections::BTreeMap::new();
    let mut open = vec![root.to_owned()];
    while let Some(path) = open.pop() {
        let metadata = match path.symlink_metadata() {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
            metadata => metadata.unwrap(),
        };
        let name = path.strip_prefix(root).unwrap().to_owned();
        if metadata.is_dir() {
            found.insert(name, b"<folder>".to_vec());
            open.extend(
                std::fs::read_dir(&path)
                    .unwrap()
                    .map(|entry| entry.unwrap().path()),
            );
        } else if metadata.is_symlink() {
            found.insert(
                name,
                std::fs::read_link(&path)
                    .unwrap()
                    .into_os_string()
                    .into_encoded_bytes(),
            );
        } else if !metadata.is_file() {
            found.insert(name, b"<socket>".to_vec());
        } else {
            match std::fs::read(&path) {
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                content => drop(found.insert(name, content.unwrap())),
            }
        }
    }
    found
}

/// A running daemon, killed when it is dropped.
pub struct Daemon {
    pub child: Child,
}

impl Daemon {
    /// Starts one on loopback and waits until it says that it is ready.
    pub fn start(node: &Node, args: &[&str]) -> Self {
        let mut all = vec![
            "daemon",
            "--listen",
            "/ip4/127.0.0.1/tcp/0",
            "--api",
            "127.0.0.1:0",
            "--no-mdns",
        ];
        all.extend(args);
        Self::of(node.command(&all))
    }

    /// Starts this command and waits until it says that it is ready.
    pub fn of(mut command: Command) -> Self {
        use std::io::BufRead as _;
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = std::io::BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(
            lines.any(|line| line.is_ok_and(|line| line == "ready")),
            "the daemon ended before it was ready"
        );
        Self { child }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Nodes with one swarm key, each with its daemon; those after the first know the first.
pub struct Swarm {
    pub nodes: Vec<(Node, Option<Daemon>)>,
}

impl Swarm {
    pub fn of(count: usize) -> Self {
        let mut swarm = Self { nodes: Vec::new() };
        for n in 0..count {
            swarm.join(n > 0);
        }
        swarm
    }

    /// One more member; it knows the first one if told so, and meets nobody else: by the DHT it would.
    pub fn join(&mut self, knows: bool) {
        self.join_with(knows, &|node| {
            node.ok(&["config", "set", "network.dht", "off"]);
        });
    }

    /// The same, with something done to its repository before the daemon starts.
    pub fn join_with(&mut self, knows: bool, prepare: &dyn Fn(&Node)) {
        let node = Node::bare();
        match self.nodes.first() {
            None => drop(node.ok(&["init", "--new-swarm-key"])),
            Some((first, _)) => drop(node.ok(&[
                "init",
                "--swarm-key",
                first.repo.join("swarm.key").to_str().unwrap(),
            ])),
        }
        prepare(&node);
        let bootstrap = if knows {
            address(&self.nodes[0].0)
        } else {
            String::new()
        };
        let args: Vec<&str> = if knows {
            vec!["--bootstrap", &bootstrap]
        } else {
            Vec::new()
        };
        let daemon = Daemon::start(&node, &args);
        if knows {
            until("a connection", || {
                status(&node)["peers"].as_u64().unwrap() > 0
            });
        }
        self.nodes.push((node, Some(daemon)));
    }

    pub fn node(&self, n: usize) -> &Node {
        &self.nodes[n].0
    }
}

pub fn status(node: &Node) -> Value {
    node.json(&["status"])
}

/// The first address of a running node, with `/p2p/…`.
pub fn address(node: &Node) -> String {
    node.json(&["id"])["addresses"][0]
        .as_str()
        .unwrap()
        .to_owned()
}

pub fn id(node: &Node) -> String {
    node.json(&["id"])["id"].as_str().unwrap().to_owned()
}

/// A raw request to the API; status line and body.
pub fn http(node: &Node, method: &str, path: &str, headers: &str) -> (u16, String) {
    http_with_body(node, method, path, headers, b"")
}

/// The same with a body.
pub fn http_with_body(
    node: &Node,
    method: &str,
    path: &str,
    headers: &str,
    body: &[u8],
) -> (u16, String) {
    let api: Value =
        serde_json::from_slice(&std::fs::read(node.repo.join("api")).unwrap()).unwrap();
    let address = api["address"].as_str().unwrap();
    let headers = headers
        .replace("TOKEN", api["token"].as_str().unwrap())
        .replace("ADDRESS", address);
    let mut stream = TcpStream::connect(address).unwrap();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\n{headers}Connection: close\r\nContent-Length: {}\r\n\r\n",
        body.len()
    )
    .unwrap();
    stream.write_all(body).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let code = answer.split(' ').nth(1).unwrap().parse().unwrap();
    (code, answer)
}
