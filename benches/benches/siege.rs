//! What 500 hostile members of the swarm cost a node: its memory, the throughput of an honest neighbour, and what stays when they go.
//!
//! `cargo bench -p gemba-benches --bench siege` needs the release program beside it (`cargo build --release --bin gemba`) or one named
//! by `GEMBA_BIN`. Two real daemons: one has the files, the other fetches and pins them, first in quiet, then under siege. The
//! besiegers hold the swarm key, which is the worst case; each does one of these for as long as it lasts:
//!
//! - asks for a thousand blocks that nobody has, over and over, and reads no answer;
//! - asks for all blocks of a file, takes the streams that answer and never reads them;
//! - announces messages of 4 MiB and sends them by the byte;
//! - opens streams and says nothing on them;
//! - sends blocks that nobody asked for.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout)]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures::{AsyncWriteExt, StreamExt};
use gemba_block::{Block, Cid};
use gemba_exchange::wire::{self, Entry, Message, Version, WantKind};
use gemba_pnet::{Network, SwarmKey, TransportConfig};
use gemba_testkit::Rng;
use libp2p_identity::{Keypair, PeerId};
use libp2p_stream::{Behaviour, Control, IncomingStreams};
use libp2p_swarm::{Stream, StreamProtocol, Swarm, SwarmEvent};
use multiaddr::Multiaddr;
use serde_json::Value;
use tokio::sync::watch;

const BESIEGERS: usize = 500;
const FILE: usize = 256 << 20;
const ROUNDS: usize = 5;
const BITSWAP: StreamProtocol = StreamProtocol::new("/ipfs/bitswap/1.2.0");
/// How often a besieger does what it does.
const PACE: Duration = Duration::from_secs(2);

fn main() {
    let binary = binary();
    let home = tempfile::tempdir().unwrap();
    let key = SwarmKey::from_bytes([7; 32]);
    let source = Daemon::start(&binary, home.path(), "source", &key);
    let sink = Daemon::start(&binary, home.path(), "sink", &key);
    sink.gemba(&["connect", &source.address()]);
    let mut files = Files::new(home.path());

    let quiet = fetch_rounds(&source, &sink, &mut files);
    let known = source.leaves(&files.last);
    std::thread::sleep(Duration::from_secs(2));
    let idle = source.resident();
    source.reset_peak();

    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let target = Target {
        address: source.address().parse().unwrap(),
        key,
        known: Arc::new(known),
        done: Arc::default(),
    };
    let (end, ended) = watch::channel(false);
    let mut tasks = Vec::new();
    for n in 0..BESIEGERS {
        tasks.push(runtime.spawn(besiege(n, target.clone(), ended.clone())));
        std::thread::sleep(Duration::from_millis(4));
    }
    std::thread::sleep(Duration::from_secs(5));
    let connected = source.peers();
    println!("{connected} peers at the node under siege");
    let besieged = fetch_rounds(&source, &sink, &mut files);
    let peak = source.peak();
    let _ = end.send(true);
    for task in tasks {
        let _ = runtime.block_on(task);
    }
    drop(runtime);
    let lifted = Instant::now();
    let back = loop {
        let now = source.resident();
        let took = lifted.elapsed();
        if (now <= idle + idle / 20 && source.peers() <= 1) || took > Duration::from_secs(20) {
            break (now, took);
        }
        std::thread::sleep(Duration::from_millis(200));
    };

    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    println!(
        "the besiegers did {} things",
        target.done.load(Ordering::Relaxed)
    );
    println!(
        "256 MiB fetched and pinned: {quiet:.2} s in quiet, {besieged:.2} s under siege ({:.2} of the throughput)",
        quiet / besieged
    );
    println!(
        "memory of the node that serves: {:.0} MiB before, {:.0} MiB at most (+{:.0}), {:.0} MiB {:.1} s after",
        mib(idle),
        mib(peak),
        mib(peak.saturating_sub(idle)),
        mib(back.0),
        back.1.as_secs_f64()
    );
}

fn binary() -> PathBuf {
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

/// The median time to fetch and pin a new file, after one that warms up.
fn fetch_rounds(source: &Daemon, sink: &Daemon, files: &mut Files) -> f64 {
    let mut times = Vec::new();
    for round in 0..=ROUNDS {
        let cid = source.gemba(&["add", "-Q", files.next().to_str().unwrap()]);
        files.last = cid.trim().into();
        let begun = Instant::now();
        sink.gemba(&["pin", "add", cid.trim()]);
        if round > 0 {
            times.push(begun.elapsed().as_secs_f64());
        }
    }
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

struct Files {
    path: PathBuf,
    data: Vec<u8>,
    count: u8,
    last: String,
}

impl Files {
    fn new(home: &Path) -> Self {
        Self {
            path: home.join("file"),
            data: gemba_benches::bytes(FILE),
            count: 0,
            last: String::new(),
        }
    }

    /// A file whose blocks are all new.
    fn next(&mut self) -> &Path {
        self.count += 1;
        for block in self.data.chunks_mut(4096) {
            block[0] = block[0].wrapping_add(self.count);
        }
        fs::write(&self.path, &self.data).unwrap();
        &self.path
    }
}

// ---- the daemons

struct Daemon {
    binary: PathBuf,
    repo: PathBuf,
    child: Child,
}

impl Daemon {
    fn start(binary: &Path, home: &Path, name: &str, key: &SwarmKey) -> Self {
        let repo = home.join(name);
        let file = home.join(format!("{name}.key"));
        write_private(&file, key.to_file_text().as_bytes());
        let init = Command::new(binary)
            .args(["--repo", repo.to_str().unwrap(), "init", "--swarm-key"])
            .arg(&file)
            .output()
            .unwrap();
        assert!(init.status.success(), "{init:?}");
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

    fn gemba(&self, arguments: &[&str]) -> String {
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

    fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.gemba(&[&["--json"], arguments].concat())).unwrap()
    }

    fn address(&self) -> String {
        let id = self.json(&["id"]);
        id["addresses"][0].as_str().unwrap().to_string()
    }

    fn peers(&self) -> usize {
        self.gemba(&["--json", "peers"]).lines().count()
    }

    /// Blocks of a file.
    fn leaves(&self, cid: &str) -> Vec<Cid> {
        let node = self.json(&["dag", "get", cid]);
        let links = node["Links"].as_array().unwrap();
        links
            .iter()
            .map(|link| link["Hash"]["/"].as_str().unwrap().parse().unwrap())
            .collect()
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

    fn resident(&self) -> u64 {
        self.status("VmRSS:")
    }

    fn peak(&self) -> u64 {
        self.status("VmHWM:")
    }

    fn reset_peak(&self) {
        fs::write(format!("/proc/{}/clear_refs", self.child.id()), "5").unwrap();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
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

// ---- the besiegers

#[derive(Clone)]
struct Target {
    address: Multiaddr,
    key: SwarmKey,
    known: Arc<Vec<Cid>>,
    done: Arc<AtomicU64>,
}

/// One hostile peer, until the end.
async fn besiege(n: usize, target: Target, mut end: watch::Receiver<bool>) {
    let work = async {
        loop {
            // Refused or thrown out: it comes again.
            let _ = attack(n, &target).await;
            tokio::time::sleep(PACE).await;
        }
    };
    tokio::select! {
        () = work => {}
        _ = end.wait_for(|end| *end) => {}
    }
}

async fn attack(n: usize, target: &Target) -> Option<()> {
    let key = Keypair::generate_ed25519();
    let network = Network::Private(target.key.clone());
    let transport = gemba_pnet::transport(&key, &network, &TransportConfig::default()).ok()?;
    let behaviour = Behaviour::new();
    let mut control = behaviour.new_control();
    let incoming = control.accept(BITSWAP).ok()?;
    let config = libp2p_swarm::Config::with_tokio_executor()
        .with_idle_connection_timeout(Duration::from_secs(3600));
    let mut swarm = Swarm::new(transport, behaviour, key.public().to_peer_id(), config);
    swarm.dial(target.address.clone()).ok()?;
    let node = loop {
        match swarm.select_next_some().await {
            SwarmEvent::ConnectionEstablished { peer_id, .. } => break peer_id,
            SwarmEvent::OutgoingConnectionError { .. } => return None,
            _ => {}
        }
    };
    let closed = async {
        loop {
            if let SwarmEvent::ConnectionClosed { .. } = swarm.select_next_some().await {
                return None;
            }
        }
    };
    let attack = async {
        let peer = Besieger {
            node,
            control,
            done: &target.done,
        };
        match n % 5 {
            0 => peer.flood(n as u64).await,
            1 => peer.never_read(incoming, &target.known).await,
            2 => peer.trickle().await,
            3 => peer.silent_streams().await,
            _ => peer.push(n as u64).await,
        }
    };
    tokio::select! {
        end = closed => end,
        end = attack => end,
    }
}

struct Besieger<'a> {
    node: PeerId,
    control: Control,
    done: &'a AtomicU64,
}

impl Besieger<'_> {
    async fn open(&mut self) -> Option<Stream> {
        self.control.open_stream(self.node, BITSWAP).await.ok()
    }

    async fn send(&self, stream: &mut Stream, bytes: &[u8]) -> Option<()> {
        stream.write_all(bytes).await.ok()?;
        stream.flush().await.ok()?;
        self.done.fetch_add(1, Ordering::Relaxed);
        Some(())
    }

    async fn flood(mut self, salt: u64) -> Option<()> {
        let mut rng = Rng::new(salt);
        let mut stream = self.open().await?;
        loop {
            let cids = (0..1000).map(|_| *Block::raw(rng.bytes(16)).unwrap().cid());
            self.send(&mut stream, &asking(cids)).await?;
            tokio::time::sleep(PACE).await;
        }
    }

    async fn never_read(mut self, mut incoming: IncomingStreams, known: &[Cid]) -> Option<()> {
        let mut stream = self.open().await?;
        self.send(&mut stream, &asking(known.iter().copied()))
            .await?;
        let mut held = Vec::new();
        loop {
            held.push(incoming.next().await?);
        }
    }

    async fn trickle(mut self) -> Option<()> {
        let mut stream = self.open().await?;
        // A length of 4 MiB, and then a byte at a time.
        self.send(&mut stream, &[0x80, 0x80, 0x80, 0x02]).await?;
        loop {
            self.send(&mut stream, &[0x0a]).await?;
            tokio::time::sleep(PACE / 4).await;
        }
    }

    async fn silent_streams(mut self) -> Option<()> {
        let mut held = Vec::new();
        for _ in 0..64 {
            held.push(self.open().await?);
            self.done.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(PACE / 4).await;
        }
        std::future::pending().await
    }

    async fn push(mut self, salt: u64) -> Option<()> {
        let mut rng = Rng::new(salt);
        let mut stream = self.open().await?;
        loop {
            let blocks = vec![Block::raw(rng.bytes(100_000)).unwrap()];
            let message = Message {
                blocks,
                ..Message::default()
            };
            self.send(
                &mut stream,
                &wire::encode(&message, Version::V1_2).unwrap().to_vec(),
            )
            .await?;
            tokio::time::sleep(PACE).await;
        }
    }
}

fn asking(cids: impl Iterator<Item = Cid>) -> Vec<u8> {
    let entries = cids
        .map(|cid| Entry {
            cid,
            priority: 1,
            cancel: false,
            kind: WantKind::Block,
            send_dont_have: true,
        })
        .collect();
    let message = Message {
        entries,
        ..Message::default()
    };
    wire::encode(&message, Version::V1_2).unwrap().to_vec()
}
