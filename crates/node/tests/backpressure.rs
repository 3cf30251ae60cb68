//! Backpressure from end to end, with whole daemons: wherever the slowest part is, nothing in front of it fills memory. A reader that is slower
//! than swarm and disk stands in `troubles.rs`; here are a disk that is slower than the network, and a network that is slower than both disks.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod common;

use std::io::{self, IoSlice, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, Instant};

use common::{Daemon, Done, Node, address, noise, status, until};
use gemba_node::daemon::{self, Options};
use gemba_node::repo::{Access, Repo};
use gemba_segment::{Disk, DiskFile, LockError, LockGuard, Mode, RealDisk, Sharing};
use tokio::sync::oneshot;

/// What the program itself uses, since a daemon runs in this process.
#[cfg(all(feature = "jemalloc", target_os = "linux"))]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const MIB: u64 = 1 << 20;
/// More than anything may hold of it.
const CONTENT: u64 = 96 * MIB;
/// What the slowest part does in a second: the whole takes twelve.
const RATE: u64 = 8 * MIB;
/// What a transfer may cost a daemon: as for the slow reader.
const MOST: u64 = 40 * MIB;

/// One test at a time: each looks at the memory of processes, one of them this one.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A device that does so many bytes a second, for all who use it together.
#[derive(Debug)]
struct Pace {
    free_at: Mutex<Instant>,
    moved: AtomicU64,
}

impl Pace {
    fn new() -> Self {
        Self {
            free_at: Mutex::new(Instant::now()),
            moved: AtomicU64::new(0),
        }
    }

    /// Takes the time that so many bytes take.
    fn take(&self, bytes: usize) {
        let takes = Duration::from_micros(bytes as u64 * 1_000_000 / RATE);
        let until = {
            let mut free_at = self.free_at.lock().unwrap();
            *free_at = (*free_at).max(Instant::now()) + takes;
            *free_at
        };
        std::thread::sleep(until.saturating_duration_since(Instant::now()));
        self.moved.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

// ---- a slow disk

/// The operating system's disk behind a slow cable. Reads and names cost nothing.
#[derive(Debug)]
struct SlowDisk(Arc<Pace>);

#[derive(Debug)]
struct SlowFile(Arc<dyn DiskFile>, Arc<Pace>);

impl Disk for SlowDisk {
    fn open(&self, path: &Path, mode: Mode) -> io::Result<Arc<dyn DiskFile>> {
        let file = RealDisk.open(path, mode)?;
        Ok(Arc::new(SlowFile(file, self.0.clone())))
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        RealDisk.create_dir(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        RealDisk.list(dir)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        RealDisk.rename(from, to)
    }

    fn unlink(&self, path: &Path) -> io::Result<()> {
        RealDisk.unlink(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        RealDisk.sync_dir(dir)
    }

    fn lock(&self, path: &Path, sharing: Sharing) -> Result<Box<dyn LockGuard>, LockError> {
        RealDisk.lock(path, sharing)
    }
}

impl DiskFile for SlowFile {
    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<usize> {
        self.0.read_at(buf, at)
    }

    fn write_at(&self, bufs: &[IoSlice<'_>], at: u64) -> io::Result<usize> {
        let written = self.0.write_at(bufs, at)?;
        self.1.take(written);
        Ok(written)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn punch(&self, at: u64, len: u64) -> io::Result<()> {
        self.0.punch(at, len)
    }

    fn allocated(&self) -> io::Result<u64> {
        self.0.allocated()
    }
}

/// A daemon in this process, on such a disk. Ended when it is dropped.
struct Inside {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Inside {
    fn start(node: &Node, bootstrap: &str, disk: SlowDisk) -> Self {
        let repo = Repo::open(node.repo.clone(), Access::Write).unwrap();
        let repo = repo.with_disk(Arc::new(disk));
        let options = Options {
            listen: vec!["/ip4/127.0.0.1/tcp/0".parse().unwrap()],
            bootstrap: vec![bootstrap.parse().unwrap()],
            no_mdns: true,
            api: Some(SocketAddr::from(([127, 0, 0, 1], 0))),
            public_network: false,
        };
        let (stop, stopped) = oneshot::channel::<()>();
        let (tell, ready) = mpsc::sync_channel(1);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()
                .unwrap();
            let ready = |_: &daemon::Ready| {
                tell.send(()).unwrap();
                Ok(())
            };
            let stop = async {
                let _ended = stopped.await;
            };
            runtime
                .block_on(daemon::run(repo, options, ready, stop))
                .unwrap();
        });
        ready.recv().expect("the daemon is ready");
        Self {
            stop: Some(stop),
            thread: Some(thread),
        }
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking());
        }
    }
}

// ---- a slow network

/// A line to `target`, which carries so many bytes a second from there and as many as come towards it.
fn slow_line(target: u16, pace: &Arc<Pace>) -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let pace = pace.clone();
    std::thread::spawn(move || {
        // Ends with the test's process.
        for near in listener.incoming().map_while(Result::ok) {
            let far = TcpStream::connect(("127.0.0.1", target)).unwrap();
            let (near_2, far_2) = (near.try_clone().unwrap(), far.try_clone().unwrap());
            let pace = pace.clone();
            std::thread::spawn(move || carry(far, near, |bytes| pace.take(bytes)));
            std::thread::spawn(move || carry(near_2, far_2, |_| {}));
        }
    });
    port
}

/// In pieces, so that little is on the line: what it does not take stays with the sender.
fn carry(mut from: TcpStream, mut to: TcpStream, on: impl Fn(usize)) {
    let mut piece = [0; 16 * 1024];
    while let Ok(count @ 1..) = from.read(&mut piece) {
        on(count);
        if to.write_all(&piece[..count]).is_err() {
            break;
        }
    }
    let _gone = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}

// ---- what both tests do

/// A daemon that has the content, and the content's root.
fn source() -> (Node, Daemon, String) {
    let node = Node::new();
    node.ok(&["config", "set", "network.dht", "off"]);
    let daemon = Daemon::start(&node, &[]);
    let path = node.path("content");
    let mut file = std::fs::File::create(&path).unwrap();
    for seed in 0..CONTENT / (8 * MIB) {
        file.write_all(&noise(seed, 8 << 20)).unwrap();
    }
    let root = node.add(&path, &[]);
    (node, daemon, root)
}

/// A repository of the same swarm.
fn member(of: &Node) -> Node {
    let node = Node::bare();
    let key = of.repo.join("swarm.key");
    node.ok(&["init", "--swarm-key", key.to_str().unwrap()]);
    node.ok(&["config", "set", "network.dht", "off"]);
    node
}

/// The sink pins all of it, which takes as long as the slowest part wants: neither daemon has more at any time than it may.
fn pin_and_watch(source: &Node, sink: &Node, root: &str, pace: &Pace) {
    until("a connection", || status(sink)["peers"] == 1);
    let nodes = [source, sink];
    let memory = |node: &Node| status(node)["rss_bytes"].as_u64().unwrap();
    // What the adding took is given back within a second.
    std::thread::sleep(Duration::from_secs(1));
    let before = nodes.map(memory);
    let mut most = [0; 2];
    let mut looks = 0;
    let moved = pace.moved.load(Ordering::Relaxed);
    let begun = Instant::now();
    std::thread::scope(|scope| {
        // Twelve seconds where the slow part is the slowest; on a busy machine that is another one. It ends by its own limit.
        let mut command = sink.command(&["pin", "add", root, "--timeout", "3m"]);
        let pinning = scope.spawn(move || {
            let output = command.output().unwrap();
            Done::from_output("pin add", output).ok()
        });
        while !pinning.is_finished() {
            for (most, node) in most.iter_mut().zip(nodes) {
                *most = memory(node).max(*most);
            }
            looks += 1;
            std::thread::sleep(Duration::from_millis(100));
        }
        pinning.join().unwrap();
    });
    // It was this part that everything waited for, and all of it went through.
    let moved = pace.moved.load(Ordering::Relaxed) - moved;
    assert!(moved >= CONTENT, "{moved} bytes went through the slow part");
    let least = Duration::from_secs(CONTENT / RATE) * 9 / 10;
    assert!(begun.elapsed() >= least, "{:?}", begun.elapsed());
    assert!(looks >= 10, "looked at {looks} times");
    for (before, most) in before.into_iter().zip(most) {
        let (before, above) = (before / MIB, most.saturating_sub(before) / MIB);
        println!("figure: {before} MiB, at most {above} MiB more");
        assert!(above < MOST / MIB, "{before} MiB, then {above} MiB more");
    }
    assert_eq!(sink.json(&["pin", "status", root])["status"], "pinned");
}

/// The disk of the node that fetches is slower than the swarm: what comes waits with its sender.
#[test]
fn a_disk_slower_than_the_swarm_costs_neither_daemon_memory() {
    let _alone = alone();
    let (source, _daemon, root) = source();
    let sink = member(&source);
    let pace = Arc::new(Pace::new());
    let _inside = Inside::start(&sink, &address(&source), SlowDisk(pace.clone()));
    pin_and_watch(&source, &sink, &root, &pace);
}

/// The line between two daemons is slower than their disks: what does not go through it stays on the disk of the sender.
#[test]
fn a_network_slower_than_the_disks_costs_neither_daemon_memory() {
    let _alone = alone();
    let (source, _daemon, root) = source();
    let sink = member(&source);
    let pace = Arc::new(Pace::new());
    let direct = address(&source);
    let mut parts: Vec<&str> = direct.split('/').collect();
    let port = slow_line(parts[4].parse().unwrap(), &pace).to_string();
    parts[4] = &port;
    let _daemon_2 = Daemon::start(&sink, &["--bootstrap", &parts.join("/")]);
    pin_and_watch(&source, &sink, &root, &pace);
}
