//! A real process that is killed while it writes: what it said to be stored is stored, and the store opens.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

use std::io::{BufRead as _, BufReader, Write as _};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use gemba_block::{Block, Cid};
use gemba_store::{Aim, Config, OpenError, Store};
use gemba_testkit::{Rng, rng, sim_scale};

const CHILD_DIR: &str = "GEMBA_STORE_KILL_DIR";
const CHILD_SEED: &str = "GEMBA_STORE_KILL_SEED";

fn config() -> Config {
    Config::default().pack_bytes(256 << 10)
}

/// Not a test of its own: the process that is killed. It writes, collects and compacts until then, and tells what was acknowledged
/// and has to stay.
#[test]
fn child() {
    let Some(dir) = std::env::var_os(CHILD_DIR) else {
        return;
    };
    let seed: u64 = std::env::var(CHILD_SEED).unwrap().parse().unwrap();
    let store = open_when_free(&PathBuf::from(dir));
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..2)
            .map(|t| {
                let store = &store;
                scope.spawn(move || write(store, &mut Rng::new(seed + t)))
            })
            .collect();
        scope.spawn(|| {
            while !over.load(Ordering::SeqCst) {
                tidy(&store);
            }
        });
        for writer in writers {
            writer.join().unwrap();
        }
        over.store(true, Ordering::SeqCst);
    });
}

/// Whether a block is pinned, so to speak: half of them. The others are garbage as soon as they are there.
fn is_kept(cid: &Cid) -> bool {
    cid.hash().digest()[0] % 2 == 0
}

/// Collects and compacts all the time: a kill comes in the middle of it too.
fn tidy(store: &Store) {
    let collection = store.collect().unwrap();
    let mut keys = store.keys();
    while let Some(page) = keys.next_page(100).unwrap() {
        for key in page.iter().filter(|key| is_kept(&key.cid)) {
            collection.mark(&key.cid);
        }
    }
    let mut sweep = collection.sweep();
    while !sweep.step(100).unwrap().done {}
    for _ in 0..4 {
        store.compact_step(&Aim::default().below(70)).unwrap();
    }
}

/// At most 100 batches a thread: a child whose parent died ends by itself.
fn write(store: &Store, rng: &mut Rng) {
    for _ in 0..100 {
        let batch: Vec<_> = (0..8)
            .map(|_| {
                let len = 1 + rng.below(4000) as usize;
                Block::raw(rng.bytes(len)).unwrap()
            })
            .collect();
        store.put_many(&batch).unwrap();
        let kept = batch.iter().filter(|block| is_kept(block.cid()));
        let line: String = kept.map(|b| format!("acked {}\n", b.cid())).collect();
        let mut out = std::io::stdout().lock();
        out.write_all(line.as_bytes()).unwrap();
        out.flush().unwrap();
    }
}

fn open_when_free(dir: &std::path::Path) -> Store {
    for _ in 0..600 {
        match Store::open(dir, config()) {
            Err(OpenError::LockHeld { .. }) => std::thread::sleep(Duration::from_millis(50)),
            other => return other.unwrap(),
        }
    }
    panic!("the lock of a killed process was never released");
}

/// Rows S1, S4 and S9: kill -9 at random moments, again and again on the same store. 200 times in full.
#[test]
fn s1_s4_s9_a_killed_process_leaves_a_store_that_opens_with_all_it_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let mut rng = Rng::new(rng::seeds(1)[0]);
    let mut acked: Vec<Cid> = Vec::new();
    for round in 0..sim_scale(200) {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["child", "--exact", "--nocapture", "--test-threads=1"])
            .env(CHILD_DIR, dir.path())
            .env(CHILD_SEED, rng.below(1 << 40).to_string())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        // After so many acknowledgements, then a little later: mostly in the middle of a group.
        let patience = rng.below(200);
        let mut told = 0;
        while told < patience {
            let Some(line) = lines.next() else { break };
            told += read_line(&line.unwrap(), &mut acked);
        }
        std::thread::sleep(Duration::from_micros(rng.below(3000)));
        child.kill().unwrap();
        // What it had told before it died counts too; the last line may be cut off.
        for line in lines.map_while(Result::ok) {
            read_line(&line, &mut acked);
        }
        child.wait().unwrap();
        let store = open_when_free(dir.path());
        assert_eq!(store.open_report().damage, [], "round {round}");
        for cid in &acked {
            let bytes = store.get(cid).unwrap();
            let bytes = bytes.unwrap_or_else(|| panic!("round {round}: {cid} is lost"));
            Block::new(*cid, bytes).unwrap();
        }
    }
    assert!(acked.len() > 100);
    let store = open_when_free(dir.path());
    tidy(&store);
    let mut keys = store.keys();
    while let Some(page) = keys.next_page(1000).unwrap() {
        assert!(page.iter().all(|key| is_kept(&key.cid)));
    }
    let report = store.verify(|_| ControlFlow::Continue(())).unwrap();
    assert_eq!(report.corrupt, []);
    assert!(report.checked >= acked.len() as u64);
}

/// Lines without their end are not counted: a CID that is cut off does not parse.
fn read_line(line: &str, acked: &mut Vec<Cid>) -> u64 {
    // The test runner may have printed in front of the first line.
    let Some((_, cid)) = line.split_once("acked ") else {
        return 0;
    };
    match cid.parse::<Cid>() {
        Ok(cid) => {
            acked.push(cid);
            1
        }
        Err(_) => 0,
    }
}
