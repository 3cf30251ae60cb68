//! What a scenario is, and the stage it plays on.

use crate::failure::Outcome;
use crate::rig::gemba::{self, Gemba};
use crate::rig::key::{Encoding, file};
use crate::rig::kubo::{self, Kubo};
use crate::rig::process::{Running, command, start};
use crate::rig::rng::Rng;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// One thing that has to hold between gemba and Kubo. It runs as a process of its own.
pub(crate) struct Scenario {
    /// The name it is called by, and what it proves.
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    /// After this it is killed with everything it started, and has failed.
    pub(crate) limit: Duration,
    /// Returns what was measured, in a few words.
    pub(crate) play: fn(&Stage) -> Outcome<String>,
}

/// Where a scenario finds its programs and puts its files.
pub(crate) struct Stage {
    pub(crate) dir: PathBuf,
    pub(crate) kubo: PathBuf,
    pub(crate) gemba: PathBuf,
    pub(crate) seed: u64,
    begun: Instant,
}

/// The key of the swarm, and of the swarm next door.
pub(crate) const KEY: [u8; 32] = [0xab; 32];
pub(crate) const OTHER_KEY: [u8; 32] = [0x17; 32];

impl Stage {
    pub(crate) fn new(dir: &Path, kubo: &Path, gemba: &Path, seed: u64) -> Self {
        Self {
            dir: dir.into(),
            kubo: kubo.into(),
            gemba: gemba.into(),
            seed,
            begun: Instant::now(),
        }
    }

    /// Says what begins now; the last one said is shown when the scenario fails.
    pub(crate) fn step(&self, what: &str) {
        println!(
            "{}{:8.3} {what}",
            crate::runner::STEP,
            self.begun.elapsed().as_secs_f64()
        );
    }

    pub(crate) fn rng(&self) -> Rng {
        Rng::new(self.seed)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// A running Kubo in the swarm.
    pub(crate) fn kubo(&self, name: &str) -> Outcome<Kubo> {
        self.kubo_with(name, &kubo::Options::new(&key()))
    }

    /// A running Kubo with pubsub.
    pub(crate) fn kubo_with_pubsub(&self) -> Outcome<Kubo> {
        let options = kubo::Options::new(&key());
        let mut kubo = Kubo::init(&self.kubo, &self.dir, "kubo", &options)?;
        kubo.cli(&["config", "--json", "Pubsub.Enabled", "true"])?;
        self.step("starting kubo with pubsub");
        kubo.up()?;
        Ok(kubo)
    }

    pub(crate) fn kubo_with(&self, name: &str, options: &kubo::Options) -> Outcome<Kubo> {
        self.step(&format!("starting {name}"));
        Kubo::start(&self.kubo, &self.dir, name, options)
    }

    /// A running gemba in the swarm.
    pub(crate) fn gemba(&self, name: &str) -> Outcome<Gemba> {
        self.gemba_with(name, &gemba::Options::new(&key()))
    }

    pub(crate) fn gemba_with(&self, name: &str, options: &gemba::Options) -> Outcome<Gemba> {
        self.step(&format!("starting {name}"));
        Gemba::start(&self.gemba, &self.dir, name, options)
    }

    /// Has the peer that speaks bytes (`src/peer.rs`) do one thing to the node at `to`; what it tells.
    pub(crate) fn peer(
        &self,
        verb: &str,
        (to, topic): (&str, &str),
        count: usize,
        limit: Duration,
    ) -> Outcome<Value> {
        self.peer_start(verb, (to, topic), count, &[])?
            .finish(limit)?
            .ok()
            .and_then(|told| Ok(serde_json::from_str(&told)?))
    }

    /// Begins the same.
    pub(crate) fn peer_start(
        &self,
        verb: &str,
        (to, topic): (&str, &str),
        count: usize,
        more: &[&str],
    ) -> Outcome<Running> {
        let key_file = self.path("peer.swarm.key");
        std::fs::write(&key_file, key())?;
        let program = std::env::current_exe()?.with_file_name("gemba-interop-peer");
        let mut command = command(&program, None);
        command.arg(verb).arg("--key").arg(key_file);
        command.args(["--to", to, "--topic", topic, "--count", &count.to_string()]);
        command.args(more);
        start(&mut command)
    }

    /// A running gemba and a running Kubo, connected.
    pub(crate) fn pair(&self) -> Outcome<(Gemba, Kubo)> {
        let kubo = self.kubo("kubo")?;
        let gemba = self.gemba("gemba")?;
        self.step("connecting");
        gemba.connect(&kubo.address()?)?;
        kubo.wait_for_peer(&gemba.id, Duration::from_secs(5))?;
        Ok((gemba, kubo))
    }
}

/// The key file of the swarm.
pub(crate) fn key() -> Vec<u8> {
    file(&KEY, Encoding::Base16)
}

/// The key file of the swarm next door.
pub(crate) fn other_key() -> Vec<u8> {
    file(&OTHER_KEY, Encoding::Base16)
}
