//! The tracker of `gemba-pins` in front of a real Kubo: its suite of connectors, with that Kubo's RPC behind it and a gemba beside it that has the blocks.
//!
//! ```text
//! gemba-interop-connector --kubo URL --gemba PROGRAM --repo DIR --there CID
//! ```
//! The scenario `pins_in_front_of_kubo` starts it, and judges what that Kubo holds in the end by the roots that it prints.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "one line of JSON is what this program is for"
)]

use std::collections::BTreeMap;
use std::error::Error;
use std::io::Write as _;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use gemba_block::{Block, MhCode, codec};
use gemba_node::content::kubo_connector::KuboConnector;
use gemba_pins::suite::{Rig, connector};
use gemba_pins::{
    Begun, Cid, Connector as _, Input, Kind, OpId, Target, Ticket, Time, Tracker, TrackerConfig,
};
use serde_json::json;

/// Time goes so much slower than the clock: the suite gives a try 0.8 s, a Kubo tells its progress each half second, and other things run here.
const SLOWER: u32 = 6;

fn main() -> ExitCode {
    match Remote::begin(std::env::args().skip(1)) {
        Ok(mut remote) => {
            // What does not hold is a panic that says so.
            connector(&mut remote);
            remote.pin_what_is_there();
            let roots: Vec<String> = (0..10).map(|n| remote.root(n).to_string()).collect();
            println!("{}", json!({ "roots": roots }));
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("gemba-interop-connector: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The connector, and the gemba that has what is provided.
struct Remote {
    connector: KuboConnector,
    gemba: String,
    repo: String,
    /// A root that the Kubo has pinned already.
    there: Cid,
    begun: Instant,
}

impl Remote {
    fn begin(mut from: impl Iterator<Item = String>) -> Result<Self, Box<dyn Error>> {
        let mut given = BTreeMap::new();
        while let Some(name) = from.next() {
            given.insert(name, from.next().ok_or("an option needs a value")?);
        }
        let mut option = |name: &str| given.remove(name).ok_or(format!("{name} is missing"));
        let connector = KuboConnector::to(&option("--kubo")?).map_err(|fail| fail.cause)?;
        Ok(Self {
            connector: connector.patience(Duration::from_millis(200) * SLOWER),
            gemba: option("--gemba")?,
            repo: option("--repo")?,
            there: option("--there")?.parse()?,
            begun: Instant::now(),
        })
    }

    /// Nothing may change by it.
    fn pin_what_is_there(&mut self) {
        let (cid, op) = (self.there, OpId(u64::MAX));
        let target = Target {
            cid,
            id: 1,
            reach: Kind::Recursive,
        };
        let begun = self.connector.begin(Ticket { cid, op }, &target, &mut ());
        assert_eq!(begun, Begun::Yes);
        let tracker = Tracker::new(TrackerConfig::default());
        let is_end = |fact: &Input| !matches!(fact, Input::Progress(..));
        let end = loop {
            let (facts, _) = self.connector.advance(&tracker, &mut ());
            if let Some(end) = facts.into_iter().find(is_end) {
                break end;
            }
            self.pass();
        };
        assert!(matches!(end, Input::Whole(..)), "{end:?}");
    }

    fn put(&self, block: &Block) -> Result<(), Box<dyn Error>> {
        let name = codec::name(block.cid().codec()).ok_or("a codec without a name")?;
        let mut put = Command::new(&self.gemba);
        put.args(["--repo", &self.repo, "block", "put", "--codec", name]);
        let mut put = put.stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
        put.stdin.take().ok_or("no pipe")?.write_all(block.data())?;
        match put.wait()?.success() {
            true => Ok(()),
            false => Err("gemba does not take the block".into()),
        }
    }
}

/// A root in dag-cbor with three leaves below it.
fn dag(n: u64) -> Vec<Block> {
    let leaves = [0, 1, 2].map(|at| made(codec::RAW, format!("leaf {at} of {n}").into_bytes()));
    let mut list = vec![0x83];
    for leaf in &leaves {
        // A link: tag 42, a string of bytes, a zero byte and the CID.
        let cid = leaf.cid().to_bytes();
        list.extend([0xd8, 42, 0x58, cid.len() as u8 + 1, 0]);
        list.extend(cid);
    }
    let root = made(codec::DAG_CBOR, list);
    std::iter::once(root).chain(leaves).collect()
}

fn made(codec: u64, data: Vec<u8>) -> Block {
    Block::encode(codec, MhCode::Sha2_256, data)
        .unwrap_or_else(|error| panic!("a small block is none: {error}"))
}

impl Rig for Remote {
    type Connector = KuboConnector;

    fn with<T>(&mut self, run: impl FnOnce(&mut KuboConnector, &mut ()) -> T) -> T {
        run(&mut self.connector, &mut ())
    }

    fn root(&mut self, n: u64) -> Cid {
        *dag(n)[0].cid()
    }

    fn provide_part(&mut self, n: u64) {
        for block in &dag(n)[..2] {
            let put = self.put(block);
            put.unwrap_or_else(|error| panic!("{error}"));
        }
    }

    fn provide(&mut self, n: u64) {
        for block in &dag(n) {
            let put = self.put(block);
            put.unwrap_or_else(|error| panic!("{error}"));
        }
    }

    fn now(&self) -> Time {
        self.begun.elapsed() / SLOWER
    }

    fn pass(&mut self) {
        std::thread::sleep(Duration::from_millis(20));
    }
}
