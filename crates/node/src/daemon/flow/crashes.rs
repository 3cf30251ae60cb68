//! A device follows a name on a disk that forgets, and the power goes at every call (N11, P10): the book, the pins, the rows of the follow and the
//! blocks lie on one virtual disk, the flows are those of the daemon. Only walks are done by hand: one block after the other is put.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, IoSlice};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use gemba_block::{Block, MhCode, codec};
use gemba_names::wire::fetch::Answer;
use gemba_names::{
    Behaviour as Carrier, BehaviourEvent, Core, Event, Keypair, Name, PeerId, Unsigned, Wall,
};
use gemba_pins::{OpId, Ticket};
use gemba_segment::{Disk as _, DiskFile, Mode};
use gemba_store::Store;
use gemba_testkit::disk::{Call, Moment, SimDisk};
use gemba_testkit::{Rng, rng, sim_scale};
use ipld_core::ipld::Ipld;
use tokio::sync::{mpsc, oneshot};

use super::follow::{Ask, Follows, Planted};
use super::names::{Fact, Names, Routes};
use super::pins::{Persisted, Pins};
use crate::api::types::FollowStatus;
use crate::config::Config;
use crate::content::collect::{Extent, collect};
use crate::daemon::command::Reply;
use crate::error::{Code, Fail};
use crate::meta::{Meta, PinEdit, PinState as _, Table};
use crate::names::follows;
use crate::repo::{Layout, Repo};

const BLOCKS: &str = "/repo/blocks";
const META: &str = "/repo/meta/meta.redb";
const SECOND: Duration = Duration::from_secs(1);

/// redb's file on the virtual disk.
#[derive(Debug)]
struct File(Arc<dyn DiskFile>);

impl redb::StorageBackend for File {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        match self.0.read_at(out, offset)? == out.len() {
            true => Ok(()),
            false => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut done = 0;
        while done < data.len() {
            let rest = IoSlice::new(&data[done..]);
            done += self.0.write_at(&[rest], offset + done as u64)?;
        }
        Ok(())
    }
}

fn open(disk: &SimDisk) -> (Meta, Store) {
    let file = disk.clone();
    let meta = Meta::over(move || File(file.open(Path::new(META), Mode::Create).unwrap()));
    let config = gemba_store::Config::default().pack_bytes(64 << 10);
    let store = Store::open_on(Arc::new(disk.clone()), BLOCKS, config);
    (meta.unwrap(), store.unwrap())
}

/// A version as the cloud has it. Half of its blocks are those of the version before.
#[derive(Clone)]
struct Version {
    value: Vec<u8>,
    blocks: Vec<Block>,
}

/// The publisher, who knows everything.
struct Cloud {
    key: Keypair,
    name: Name,
    versions: Vec<Version>,
}

impl Cloud {
    fn new(rng: &mut Rng, versions: usize, blocks: usize) -> Self {
        let mut seed = rng.bytes(32);
        let key = Keypair::ed25519_from_bytes(&mut seed).unwrap();
        let mut body: Vec<Block> = Vec::new();
        let versions = (0..versions)
            .map(|_| {
                body.truncate(blocks / 2);
                while body.len() < blocks {
                    let len = 1 + rng.index(3000);
                    body.push(Block::raw(rng.bytes(len)).unwrap());
                }
                let links = body.iter().map(|block| Ipld::Link(*block.cid())).collect();
                let links = serde_ipld_dagcbor::to_vec(&Ipld::List(links)).unwrap();
                let root = Block::encode(codec::DAG_CBOR, MhCode::Sha2_256, links).unwrap();
                let value = format!("/ipfs/{}", root.cid()).into_bytes();
                let blocks = std::iter::once(root).chain(body.clone()).collect();
                Version { value, blocks }
            })
            .collect();
        Self {
            name: Name::of(&key.public()),
            key,
            versions,
        }
    }

    fn record(&self, sequence: usize) -> Vec<u8> {
        let validity = Wall::from_unix(4_000_000_000, 0);
        let unsigned = Unsigned::new(
            self.versions[sequence].value.clone(),
            sequence as u64,
            validity,
        );
        unsigned.sign(&self.key).unwrap().bytes().to_vec()
    }

    fn version_of(&self, root: &cid::Cid) -> &Version {
        let mut versions = self.versions.iter();
        versions.find(|v| v.blocks[0].cid() == root).unwrap()
    }
}

/// What the device said, to whoever asks: all of it must hold after a power cut.
#[derive(Clone, Copy, Debug, Default)]
struct Told {
    followed: bool,
    newest: Option<u64>,
    complete: Option<u64>,
    /// The number of the last change: a cursor.
    revision: u64,
}

/// The device: its flows, on a disk.
struct Device {
    cloud: Arc<Cloud>,
    now: Duration,
    runtime: tokio::runtime::Runtime,
    store: Arc<Store>,
    names: Names,
    follows: Follows,
    pins: Pins,
    facts: mpsc::Receiver<Fact>,
    persisted: mpsc::Receiver<Persisted>,
    carrier: Carrier,
    walks: BTreeMap<OpId, Ticket>,
    told: Arc<Mutex<Told>>,
    /// Walks say they are whole one block too early.
    is_hasty: bool,
    /// Bytes of blocks that were fetched.
    fetched: usize,
    most_walks: usize,
    _keys: tempfile::TempDir,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Device {
    fn start(disk: &SimDisk, cloud: &Arc<Cloud>, told: Arc<Mutex<Told>>) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let (meta, store) = open(disk);
        let meta = Arc::new(meta);
        // Only the node's own keys, which have no part in this.
        let keys = tempfile::tempdir().unwrap();
        let layout = Layout::new(keys.path().join("repo"));
        drop(Repo::init(layout.root(), &Default::default()).unwrap());
        let (facts_in, facts) = mpsc::channel(64);
        let (persisted_in, persisted) = mpsc::channel(64);
        let follows = Follows::new(follows::load(&meta).unwrap());
        let config = Config::resolve("", []).unwrap();
        let settings = config.names;
        let followed: Vec<Name> = follows.names().collect();
        let names = Names::new((&layout, &settings), meta.clone(), followed, facts_in).unwrap();
        Self {
            cloud: cloud.clone(),
            now: Duration::ZERO,
            runtime,
            store: Arc::new(store),
            names,
            follows,
            pins: Pins::new(meta, persisted_in, [7; 16], config.pins.tracker()),
            facts,
            persisted,
            carrier: Carrier::new(),
            walks: BTreeMap::new(),
            told,
            is_hasty: false,
            fetched: 0,
            most_walks: 0,
            _keys: keys,
        }
    }

    fn plant(&mut self, wrong: Option<Wrong>) {
        match wrong {
            Some(Wrong::Order(bug)) => self.follows.plant(Some(bug)),
            Some(Wrong::WholeBeforeDurable) => self.is_hasty = true,
            None => {}
        }
    }

    fn follow(&mut self) {
        self.follow_keeping(2);
        lock(&self.told).followed = true;
    }

    fn follow_keeping(&mut self, versions: usize) {
        let name = self.cloud.name;
        self.ask(|reply| Ask::Add(name, versions, reply));
    }

    /// Asks, and steps until the answer is there.
    fn ask(&mut self, ask: impl FnOnce(Reply<Result<FollowStatus, Fail>>) -> Ask) -> FollowStatus {
        let (reply, mut done) = oneshot::channel();
        self.follows.on_ask(ask(reply), &mut self.names, self.now);
        let mut answer = None;
        self.run(|_| {
            answer = done.try_recv().ok();
            answer.is_some()
        });
        answer.unwrap().unwrap()
    }

    /// A peer tells that version.
    fn hear(&mut self, sequence: usize) {
        self.hear_record(self.cloud.record(sequence));
    }

    fn hear_record(&mut self, record: Vec<u8>) {
        let answer = Answer::Record(record);
        let event = BehaviourEvent::Fetched {
            peer: PeerId::random(),
            name: self.cloud.name,
            answer,
        };
        self.names.on_carried(event, self.now);
    }

    fn complete(&self) -> Option<u64> {
        let complete = self.names.complete(&self.cloud.name, self.now);
        complete.map(|complete| complete.version.sequence)
    }

    fn run_until_complete(&mut self, sequence: usize) {
        self.run(|device| device.complete() == Some(sequence as u64));
    }

    /// Steps, until it is so. Time passes while nothing else does.
    fn run(&mut self, mut is_so: impl FnMut(&Self) -> bool) {
        for _ in 0..20_000 {
            self.step();
            if is_so(self) {
                return;
            }
        }
        panic!("never: {:?} at {:?}", self.told, self.now);
    }

    fn step(&mut self) {
        // Flows begin their threads here.
        let handle = self.runtime.handle().clone();
        let _inside = handle.enter();
        self.settle();
        let walked = self.walk();
        let wait = match walked {
            true => Duration::ZERO,
            false => Duration::from_millis(5),
        };
        let (facts, persisted) = (&mut self.facts, &mut self.persisted);
        let came = self.runtime.block_on(async {
            let next = async {
                tokio::select! {
                    fact = facts.recv() => (fact, None),
                    persisted = persisted.recv() => (None, persisted),
                }
            };
            // Threads bring what comes; that they take their time costs some, and proves nothing.
            match wait.is_zero() {
                true => {
                    tokio::task::yield_now().await;
                    futures::FutureExt::now_or_never(next)
                }
                false => timeout(wait, next).await,
            }
        });
        match came {
            Some((Some(fact), _)) => self.names.on_fact(fact, self.now),
            Some((_, Some(persisted))) => self.pins.on_persisted(persisted, self.now),
            _ if walked => {}
            _ => {
                self.now += SECOND;
                self.names.tick(self.now);
                self.pins.expire_by_hand(self.now);
            }
        }
    }

    fn settle(&mut self) {
        loop {
            let mut routes = Routes {
                carrier: &mut self.carrier,
                gossip: None,
                dht: None,
            };
            for event in self.names.settle(&mut routes, self.now) {
                self.follows.on_event(&event);
                self.tell(&event);
            }
            let moved = self
                .follows
                .settle(&mut self.names, &mut self.pins, self.now);
            self.pins.settle_by_hand(&mut self.walks, self.now);
            if !moved {
                return;
            }
        }
    }

    fn tell(&self, event: &Event) {
        let mut told = lock(&self.told);
        match event {
            Event::Changed { now, revision, .. } => {
                told.newest = Some(now.version.sequence);
                told.revision = *revision;
            }
            Event::Complete {
                version, revision, ..
            } => {
                assert_ne!(told.complete, Some(version.sequence), "told twice");
                told.complete = Some(version.sequence);
                told.revision = *revision;
            }
            _ => {}
        }
    }

    /// One block further. False: nothing is on its way.
    fn walk(&mut self) -> bool {
        self.most_walks = self.most_walks.max(self.walks.len());
        let Some(ticket) = self.walks.values().next().copied() else {
            return false;
        };
        let cloud = self.cloud.clone();
        let blocks = cloud.version_of(&ticket.cid).blocks.iter();
        // As a walk does: what it meets stays, however long it is unused.
        let mut missing = blocks.filter(|block| !self.store.touch(block.cid()));
        let next = missing.next();
        let is_last = missing.next().is_none();
        if next.is_none() || (self.is_hasty && is_last) {
            self.walks.remove(&ticket.op);
            self.pins.whole_by_hand(ticket, self.now);
        } else if let Some(block) = next {
            self.fetched += block.len();
            // Refused after the power went.
            let _put = self.store.put_many(std::slice::from_ref(block));
        }
        true
    }
}

async fn timeout<T>(wait: Duration, next: impl Future<Output = T>) -> Option<T> {
    let pause = futures_timer(wait);
    tokio::select! {
        came = next => Some(came),
        () = pause => None,
    }
}

/// The runtime of a device has no timer: virtual time is its own.
async fn futures_timer(wait: Duration) {
    let slept = tokio::task::spawn_blocking(move || std::thread::sleep(wait));
    let _ended = slept.await;
}

/// What must hold of a disk after a power cut, given what was told before. The error says what does not.
fn check(disk: &SimDisk, cloud: &Cloud, told: Told) -> Result<(), String> {
    let (meta, store) = open(disk);
    let rows = meta.rows(Table::Names).unwrap();
    let marks = BTreeMap::new();
    let config = gemba_names::Config::default();
    let (core, damaged) = Core::load(config, rows, marks, false, Duration::ZERO).unwrap();
    ensure(damaged.is_empty(), || "a damaged row".to_owned())?;
    let newest = core.resolve(&cloud.name, Duration::ZERO);
    let complete = core.resolve_complete(&cloud.name, Duration::ZERO);
    let (newest, complete) = (
        newest.map(|of| of.version.sequence),
        complete.map(|of| of.version),
    );
    // Never lost: neither a version nor the pointer goes back behind what was told.
    ensure(newest >= told.newest, || {
        format!("newest {newest:?} after {told:?}")
    })?;
    let sequence = complete.as_ref().map(|of| of.sequence);
    ensure(sequence >= told.complete, || {
        format!("complete {sequence:?} after {told:?}")
    })?;
    let follows = follows::load(&meta).unwrap();
    ensure(!follows.is_empty() || !told.followed, || {
        format!("nothing is followed after {told:?}")
    })?;
    if let Some(complete) = complete {
        // Never early, never a mix: every block of that version, and of no other, is meant and here.
        let version = &cloud.versions[complete.sequence as usize];
        ensure(complete.value == version.value, || format!("{complete:?}"))?;
        for block in &version.blocks {
            let data = store.get(block.cid()).unwrap();
            ensure(data.as_ref() == Some(block.data()), || {
                format!("{} of {complete:?} is not here", block.cid())
            })?;
        }
        let pin = meta.pins().unwrap().get(version.blocks[0].cid()).unwrap();
        ensure(pin.is_some_and(|pin| pin.complete), || {
            format!("no whole pin of {complete:?}")
        })?;
    }
    // Exactly once a cursor: whoever saw a version become whole is not told of it again.
    for change in core.changes_after(told.revision, Duration::ZERO) {
        let again = change.completed && Some(change.now.version.sequence) == told.complete;
        ensure(!again, || format!("{change:?} after {told:?}"))?;
    }
    Ok(())
}

fn ensure(holds: bool, what: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(what()) }
}

/// Goes on from what a power cut left, to the newest version of all, with the cursor of before.
fn go_on(disk: &SimDisk, cloud: &Arc<Cloud>, told: Told) {
    let last = cloud.versions.len() - 1;
    let mut device = Device::start(disk, cloud, Arc::new(Mutex::new(told)));
    if !device.follows.contains(&cloud.name) {
        device.follow();
    }
    device.hear(last);
    device.run_until_complete(last);
    let told = *lock(&device.told);
    drop(device);
    check(disk, cloud, told).unwrap();
}

/// A device that begins, and who publishes for it.
fn life(seed: u64, versions: usize, blocks: usize) -> (SimDisk, Arc<Cloud>, Device) {
    let disk = SimDisk::new(seed);
    disk.create_dir(Path::new("/repo/meta")).unwrap();
    disk.create_dir(Path::new(BLOCKS)).unwrap();
    let cloud = Arc::new(Cloud::new(&mut Rng::new(seed), versions, blocks));
    let device = Device::start(&disk, &cloud, Arc::default());
    for dir in ["/repo/meta", "/repo", "/"] {
        disk.sync_dir(Path::new(dir)).unwrap();
    }
    (disk, cloud, device)
}

/// What is wrong with a device on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wrong {
    /// The order of the steps of a follow.
    Order(Planted),
    /// The walk of a pin says it is whole before its last block is on the disk.
    WholeBeforeDurable,
}

/// What came of a life.
#[derive(Debug, Default)]
struct Seen {
    /// Power cuts that were looked at.
    points: u64,
    /// What did not hold at the first of them at which something did not.
    found: Option<String>,
}

/// One life of a device: it follows a name, versions come, some in the middle of the one before. It ends early when something does not hold.
fn every_power_cut(seed: u64, wrong: Option<Wrong>) -> Seen {
    let mut rng = Rng::new(seed);
    let (disk, cloud, mut device) = life(seed, 4, 6);
    device.plant(wrong);
    let told = device.told.clone();
    let seen = Arc::new(Mutex::new(Seen::default()));
    disk.observe({
        let (cloud, told, seen) = (cloud.clone(), told.clone(), seen.clone());
        let mut rng = rng.fork();
        move |moment: &Moment<'_>| {
            // What is told while this call returns was durable before it.
            let told = *lock(&told);
            let left = moment.power_cut(&mut rng);
            let mut seen = lock(&seen);
            seen.points += 1;
            if let Err(what) = check(&left, &cloud, told) {
                seen.found.get_or_insert(what);
            } else if wrong.is_none() && rng.below(64) == 0 {
                drop(seen);
                go_on(&left, &cloud, told);
            }
        }
    });
    device.follow();
    for sequence in 0..cloud.versions.len() {
        if lock(&seen).found.is_some() {
            break;
        }
        device.hear(sequence);
        match rng.coin() && sequence + 1 < cloud.versions.len() {
            // The next one comes before this one is whole.
            true => (0..rng.index(20)).for_each(|_| device.step()),
            false => device.run_until_complete(sequence),
        }
    }
    disk.stop_observing();
    drop(device);
    let seen = std::mem::take(&mut *lock(&seen));
    if seen.found.is_none() && wrong.is_none() {
        go_on(&disk.kill(), &cloud, *lock(&told));
    }
    seen
}

/// N11, P10, S0.25, S0.26: 10,000 virtual power cuts in full.
#[test]
fn n11_p10_s0_26_no_power_cut_makes_the_pointer_early_mixed_or_lost() {
    let most = sim_scale(10_000) as u64;
    let mut points = 0;
    for seed in rng::seeds(10_000) {
        let seen = every_power_cut(seed, None);
        assert_eq!(seen.found, None, "seed {seed:#x}");
        points += seen.points;
        if points >= most {
            break;
        }
    }
    assert!(points >= most, "{points}");
}

/// The power cuts find each wrong order that is planted, within a few lives; without one they find nothing (the test above).
#[test]
fn planted_bugs_of_a_follow_are_found() {
    for wrong in [
        Wrong::Order(Planted::PointerBeforeWhole),
        Wrong::Order(Planted::OldReleasedFirst),
        Wrong::WholeBeforeDurable,
    ] {
        let mut lives = (1..=10).map(|seed| every_power_cut(seed, Some(wrong)).found);
        let found = lives.find_map(|found| found);
        assert!(found.is_some(), "{wrong:?} was not found");
    }
}

/// P4: the disk is full for three writes, at whatever write of an update (every twentieth in cargo test): the version before stays pinned, whole
/// and pointed to until the newer one is, and the newer one is whole when there is room: without a restart, and after one.
#[test]
fn p4_a_full_disk_at_any_write_of_an_update_leaves_the_version_before() {
    let stride = if sim_scale(20) == 20 { 1 } else { 20 };
    let mut looked_at = 0;
    for nth in (1..).step_by(stride) {
        let (disk, cloud, mut device) = life(nth, 2, 6);
        device.follow();
        device.hear(0);
        device.run_until_complete(0);
        let before = disk.calls(Call::WriteFull);
        disk.fail(Call::WriteFull, nth, 3);
        device.hear(1);
        for _ in 0..100 {
            device.step();
            let complete = device.complete();
            assert!(complete >= Some(0), "write {nth}: {complete:?}");
            if complete == Some(1) {
                break;
            }
        }
        let made = disk.calls(Call::WriteFull) - before;
        let told = *lock(&device.told);
        disk.heal();
        let left = disk.kill();
        // What was refused meanwhile comes again, as by a pull.
        for _ in 0..30 {
            device.hear(1);
            (0..5).for_each(|_| device.step());
        }
        device.run_until_complete(1);
        drop(device);
        check(&left, &cloud, told).unwrap();
        go_on(&disk.kill(), &cloud, told);
        if made < nth {
            break;
        }
        looked_at += 1;
    }
    assert!(looked_at > 2, "{looked_at}");
}

/// P5: a name that changes a hundred times while one version could be fetched costs at most twice the newest.
#[test]
fn p5_a_name_that_flaps_costs_at_most_twice_the_newest() {
    for seed in rng::seeds(sim_scale(20)) {
        let (_disk, cloud, mut device) = life(seed, 100, 150);
        device.follow();
        let newest = &cloud.versions[99];
        let size: usize = newest.blocks.iter().map(Block::len).sum();
        for sequence in 0..100 {
            device.hear(sequence);
            device.step();
        }
        device.run_until_complete(99);
        assert!(
            device.fetched <= 2 * size,
            "{} for {size}, seed {seed:#x}",
            device.fetched
        );
        // The older one until the newer is wanted.
        assert!(device.most_walks <= 2, "{}", device.most_walks);
    }
}

impl Device {
    /// Somebody who has a will of his own.
    fn pin_or_unpin(&mut self, version: usize, own: &mut BTreeSet<usize>) {
        let handle = self.runtime.handle().clone();
        let _inside = handle.enter();
        let cid = *self.cloud.versions[version].blocks[0].cid();
        if own.insert(version) {
            let (reply, _nobody) = oneshot::channel();
            let root = (cid, gemba_pins::Kind::Recursive);
            return self.pins.pin(root, None, reply, self.now);
        }
        own.remove(&version);
        let (reply, _nobody) = oneshot::channel();
        match self.follows.holder(&cid) {
            None => self.pins.unpin(cid, reply, self.now),
            Some(name) => {
                let release = PinEdit::Release(cid, Some(follows::label(&name)));
                self.pins.change(release, reply, self.now);
            }
        }
    }

    /// Until the row of the follow names so many versions.
    fn rest_with(&mut self, versions: usize) {
        let name = self.cloud.name;
        for _ in 0..1_000 {
            let told = self.ask(|reply| Ask::Status(name, reply));
            if told.versions.len() == versions {
                return (0..5).for_each(|_| self.step());
            }
        }
        panic!("never {versions} versions");
    }

    /// Nothing of what is whole is missing, and the pointer points to such.
    fn lacks_nothing(&self) -> Result<(), String> {
        let rows = self.pins.rows().unwrap();
        for pin in rows.iter().map(Result::unwrap).filter(|pin| pin.complete) {
            for block in &self.cloud.version_of(&pin.cid).blocks {
                ensure(self.store.has(block.cid()), || {
                    format!("{} of {} is gone", block.cid(), pin.cid)
                })?;
            }
        }
        let pointed = self
            .complete()
            .map(|sequence| &self.cloud.versions[sequence as usize]);
        pointed.map_or(Ok(()), |version| {
            let pin = rows.get(version.blocks[0].cid()).unwrap();
            ensure(pin.as_ref().is_some_and(|pin| pin.complete), || {
                format!("the pointer leads to {pin:?}")
            })
        })
    }

    /// Blocks that are here and that some pin wants.
    fn wanted_here(&self) -> usize {
        let rows = self.pins.rows().unwrap();
        let roots = rows.iter().map(|pin| pin.unwrap().cid);
        let blocks = roots.flat_map(|root| &self.cloud.version_of(&root).blocks);
        let here = blocks.map(Block::cid).filter(|cid| self.store.has(cid));
        here.collect::<BTreeSet<_>>().len()
    }
}

/// P3, S4.49: collections of the node, one after the other, beside a follow whose versions come and go, and beside somebody who pins and unpins them himself.
/// Between any two steps of a collection the device takes some of its own. No block of a pin that is whole is ever missing, the version that is pointed to is
/// such a pin, and in the end nothing is left but what is wanted.
#[test]
fn p3_s4_49_collections_beside_a_follow_and_pins_take_nothing_that_is_whole() {
    let (mut collected, mut beside) = (0, 0);
    for seed in rng::seeds(sim_scale(100)) {
        let (_disk, cloud, mut device) = life(seed, 6, 12);
        device.follow();
        let store = device.store.clone();
        let all = RefCell::new((device, Rng::new(seed), BTreeSet::new()));
        for sequence in 0..cloud.versions.len() {
            all.borrow_mut().0.hear(sequence);
            let go_on = RefCell::new(|| {
                let (device, rng, own) = &mut *all.borrow_mut();
                for _ in 0..rng.index(12) {
                    if rng.below(8) == 0 {
                        device.pin_or_unpin(rng.index(sequence + 1), own);
                    }
                    device.step();
                    beside += 1;
                    let whole = device.lacks_nothing();
                    assert_eq!(whole, Ok(()), "seed {seed:#x}, version {sequence}");
                }
            });
            for nth in 0..3 {
                // What nobody wants, as a cache has it.
                let noise = Block::raw(format!("{sequence} {nth}").into_bytes());
                store.put_many(&[noise.unwrap()]).unwrap();
                go_on.borrow_mut()();
                let rows = || {
                    let rows = all.borrow().0.pins.rows();
                    go_on.borrow_mut()();
                    rows
                };
                let done = collect(&store, rows, Extent::All, &mut |_, _| {
                    go_on.borrow_mut()();
                    Ok(())
                });
                collected += done.unwrap().blocks;
            }
        }
        let (mut device, ..) = all.into_inner();
        device.run_until_complete(cloud.versions.len() - 1);
        let rows = || device.pins.rows();
        collect(&store, rows, Extent::All, &mut |_, _| Ok(())).unwrap();
        assert_eq!(store.stat().blocks, device.wanted_here() as u64);
    }
    assert!(collected > beside / 100, "{collected} in {beside}");
}

/// N11, S0.26: the power goes at every call of a rollback. Whatever is left points to a whole version, also when fewer are kept from then on, and comes to rest
/// with the pointer where the row says it is.
#[test]
fn n11_s0_26_a_rollback_that_is_cut_off_points_to_a_whole_version() {
    for seed in rng::seeds(sim_scale(40)) {
        let (disk, cloud, mut device) = life(seed, 2, 6);
        device.follow();
        for sequence in 0..2 {
            device.hear(sequence);
            device.run_until_complete(sequence);
        }
        device.rest_with(2);
        let left = Arc::new(Mutex::new(Vec::new()));
        disk.observe({
            let (left, mut rng) = (left.clone(), Rng::new(seed));
            move |moment: &Moment<'_>| lock(&left).push(moment.power_cut(&mut rng))
        });
        device.ask(|reply| Ask::RollBack(cloud.name, None, reply));
        assert_eq!(device.complete(), Some(0));
        disk.stop_observing();
        drop(device);
        let left = std::mem::take(&mut *lock(&left));
        assert!(left.len() > 3, "{}", left.len());
        for (nth, disk) in left.iter().enumerate() {
            let mut device = Device::start(disk, &cloud, Arc::default());
            device.follow_keeping(1);
            for _ in 0..15 {
                device.step();
                let whole = device.lacks_nothing();
                assert_eq!(whole, Ok(()), "seed {seed:#x}, call {nth}");
            }
            let told = device.ask(|reply| Ask::Status(cloud.name, reply));
            let kept: Vec<u64> = told.versions.iter().map(|kept| kept.sequence).collect();
            assert_eq!(told.complete_sequence, kept.last().copied(), "call {nth}");
        }
    }
}

impl Device {
    /// Asks for a pin of one's own, and takes no step.
    fn pin_own(&mut self, version: usize) -> oneshot::Receiver<Result<super::pins::View, Fail>> {
        let handle = self.runtime.handle().clone();
        let _inside = handle.enter();
        let root = *self.cloud.versions[version].blocks[0].cid();
        let (reply, done) = oneshot::channel();
        let kind = gemba_pins::Kind::Recursive;
        self.pins.pin((root, kind), None, reply, self.now);
        done
    }
}

/// Somebody pins the older version at any step of the way to the newer one: whatever the follow lets go of then, his pin stays.
#[test]
fn p3_what_somebody_pins_while_a_follow_lets_go_of_it_stays() {
    let mut steps = 0;
    loop {
        let (_disk, cloud, mut device) = life(7, 2, 4);
        device.follow_keeping(1);
        device.hear(0);
        device.run_until_complete(0);
        device.rest_with(1);
        device.hear(1);
        (0..steps).for_each(|_| device.step());
        let root = cloud.versions[0].blocks[0].cid();
        // It was let go of before: nobody pins it then.
        let row = |device: &Device| device.pins.rows().unwrap().get(root).unwrap();
        if row(&device).is_none() {
            break;
        }
        let mut asked = device.pin_own(0);
        device.run(|_| asked.try_recv().is_ok());
        device.run_until_complete(1);
        device.rest_with(1);
        let pin = row(&device);
        assert!(
            pin.is_some_and(|pin| pin.name.is_none()),
            "after {steps} steps"
        );
        // Where the removal was on its way already, it is made whole again.
        device.run(|device| row(device).is_some_and(|pin| pin.complete));
        steps += 1;
    }
    assert!(steps > 5, "{steps}");
}

/// A name that points to what cannot be kept holds up nothing of the version before, which was on its way when the device ended.
#[test]
fn a_value_that_cannot_be_kept_holds_up_no_version_that_is_on_its_way() {
    let (disk, cloud, mut device) = life(3, 1, 6);
    device.follow();
    device.hear(0);
    device.run(|device| !device.walks.is_empty());
    // No block comes any more.
    device.walks.clear();
    let value = format!("/ipns/{}", cloud.name).into_bytes();
    let record = Unsigned::new(value, 1, Wall::from_unix(4_000_000_000, 0));
    device.hear_record(record.sign(&cloud.key).unwrap().bytes().to_vec());
    device.run(|device| lock(&device.told).newest == Some(1));
    assert_eq!(device.complete(), None);
    drop(device);
    let mut device = Device::start(&disk, &cloud, Arc::default());
    device.run_until_complete(0);
}

/// A version that somebody goes back to while the name is being given up: it is given up.
#[test]
fn a_rollback_behind_a_removal_brings_nothing_back() {
    let (disk, cloud, mut device) = life(4, 2, 4);
    device.follow();
    for sequence in 0..2 {
        device.hear(sequence);
        device.run_until_complete(sequence);
    }
    device.rest_with(2);
    let (removal, mut removed) = oneshot::channel();
    let (back, mut refused) = oneshot::channel();
    {
        let handle = device.runtime.handle().clone();
        let _inside = handle.enter();
        let asks = [
            Ask::Remove(cloud.name, removal),
            Ask::RollBack(cloud.name, None, back),
        ];
        for ask in asks {
            device.follows.on_ask(ask, &mut device.names, device.now);
        }
    }
    assert_eq!(
        refused.try_recv().unwrap().unwrap_err().code,
        Code::NotFound
    );
    device.run(|_| removed.try_recv().is_ok());
    assert!(!device.follows.contains(&cloud.name));
    drop(device);
    assert!(follows::load(&open(&disk).0).unwrap().is_empty());
}

/// A pin that was taken away from under a follow while its blocks were on their way is wanted again, and the version becomes whole.
#[test]
fn a_version_whose_pin_was_taken_away_on_its_way_is_wanted_again() {
    let (_disk, cloud, mut device) = life(1, 1, 6);
    device.follow();
    device.hear(0);
    device.run(|device| !device.walks.is_empty());
    device.step();
    let (reply, mut removed) = oneshot::channel();
    let root = *cloud.versions[0].blocks[0].cid();
    let handle = device.runtime.handle().clone();
    {
        let _inside = handle.enter();
        device.pins.unpin(root, reply, device.now);
    }
    device.run(|_| removed.try_recv().is_ok());
    device.run_until_complete(0);
    assert_eq!(device.lacks_nothing(), Ok(()));
}

/// A pin that was taken away behind the daemon's back is wanted again when it starts: the row of the follow tells what has to be here.
#[test]
fn a_version_that_is_kept_and_not_pinned_is_pinned_again() {
    let (disk, cloud, mut device) = life(1, 1, 6);
    device.follow();
    device.hear(0);
    device.run_until_complete(0);
    device.rest_with(1);
    drop(device);
    let root = *cloud.versions[0].blocks[0].cid();
    let (meta, store) = open(&disk);
    meta.edit_one(PinEdit::Release(root, None)).unwrap();
    collect(&store, || meta.pins(), Extent::All, &mut |_, _| Ok(())).unwrap();
    assert_eq!(store.stat().blocks, 0);
    drop((meta, store));
    let mut device = Device::start(&disk, &cloud, Arc::default());
    device.run(|device| {
        let pin = device.pins.rows().unwrap().get(&root).unwrap();
        pin.is_some_and(|pin| pin.complete)
    });
    assert_eq!(device.lacks_nothing(), Ok(()));
    assert_eq!(device.wanted_here(), cloud.versions[0].blocks.len());
}
