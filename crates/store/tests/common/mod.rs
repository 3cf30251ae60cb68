//! The crash harness of the store: what was acknowledged, and what has to hold whenever a store is opened again.
#![allow(
    clippy::unwrap_used,
    dead_code,
    unreachable_pub,
    reason = "shared by several test binaries"
)]

pub mod lying;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::{Arc, Mutex};

use gemba_block::{Block, Cid};
use gemba_segment::Disk;
use gemba_store::{Aim, Config, Store};
use gemba_testkit::Rng;
use gemba_testkit::disk::{Moment, SimDisk};

pub const DIR: &str = "/repo/blocks";

/// Small packs, so that a short workload rolls over.
pub fn config() -> Config {
    Config::default().pack_bytes(16 << 10).punch_from(4 << 10)
}

/// Compacts until there is nothing left to do; what the steps did in all.
pub fn compact(store: &Store, aim: Aim) -> gemba_store::CompactStep {
    let mut total = gemba_store::CompactStep::default();
    for _ in 0..100_000 {
        let step = store.compact_step(&aim).unwrap();
        total.copied += step.copied;
        total.moved += step.moved;
        total.removed += step.removed;
        total.punched += step.punched;
        total.corrupt.extend(step.corrupt);
        if step.idle {
            return total;
        }
    }
    panic!("compaction never ends");
}

pub fn block(rng: &mut Rng) -> Block {
    let len = match rng.below(8) {
        0 => 0,
        1 => 5_000 + rng.below(4_000),
        _ => 1 + rng.below(700),
    };
    Block::raw(rng.bytes(len as usize)).unwrap()
}

/// What callers know. `Some(true)`: put was acknowledged. `Some(false)`: deletion was. Absent: under way or never seen.
#[derive(Clone, Debug, Default)]
pub struct Model {
    /// Blocks whose last acknowledged call was a put.
    pub put: BTreeMap<Cid, Block>,
    /// Blocks whose last acknowledged call was a deletion.
    pub gone: BTreeMap<Cid, Block>,
}

/// The first broken promise, if there is one.
pub fn check(disk: &SimDisk, config: &Config, model: &Model) -> Result<(), String> {
    let disk: Arc<dyn Disk> = Arc::new(disk.clone());
    let store =
        Store::open_on(disk, DIR, config.clone()).map_err(|e| format!("does not open: {e}"))?;
    check_open(&store, model)
}

pub fn check_open(store: &Store, model: &Model) -> Result<(), String> {
    for block in model.put.values() {
        match store.get(block.cid()) {
            Ok(Some(bytes)) if bytes == *block.data() => {}
            Ok(Some(_)) => return Err(format!("{block:?} has wrong bytes")),
            Ok(None) => return Err(format!("{block:?} was acknowledged and is lost")),
            Err(e) => return Err(format!("{block:?} was acknowledged: {e}")),
        }
    }
    for block in model.gone.values() {
        if store.has(block.cid()) {
            return Err(format!("{block:?} was deleted and is back"));
        }
    }
    let mut wrong = None;
    let mut count = 0;
    store
        .for_each_cid(|cid, size| {
            count += 1;
            let fault = match store.get(&cid) {
                Ok(Some(bytes)) if bytes.len() as u64 != size => Some("has another size"),
                Ok(Some(bytes)) if Block::new(cid, bytes.clone()).is_err() => {
                    Some("does not hash right")
                }
                Ok(Some(_)) => None,
                Ok(None) => Some("is listed and not there"),
                Err(_) => Some("is listed and not readable"),
            };
            if let Some(fault) = fault {
                wrong = Some(format!("{cid} {fault}"));
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        })
        .map_err(|e| format!("does not list: {e}"))?;
    if let Some(wrong) = wrong {
        return Err(wrong);
    }
    let stat = store.stat();
    if stat.blocks != count {
        return Err(format!("{} blocks counted, {count} listed", stat.blocks));
    }
    if !store.open_report().damage.is_empty() {
        return Err(format!(
            "a crash was taken for damage: {:?}",
            store.open_report()
        ));
    }
    Ok(())
}

/// A seeded run of puts, repeated puts, deletions and reopenings on `disk`; the model follows the acknowledgements.
pub fn workload(
    disk: &Arc<dyn Disk>,
    config: &Config,
    seed: u64,
    steps: usize,
    model: &Arc<Mutex<Model>>,
) {
    run_workload(disk, config, seed, steps, model, false);
}

/// As [`workload`]; `with_compaction` deletes more, and compacts in small steps all the time.
pub fn run_workload(
    disk: &Arc<dyn Disk>,
    config: &Config,
    seed: u64,
    steps: usize,
    model: &Arc<Mutex<Model>>,
    with_compaction: bool,
) {
    let mut rng = Rng::new(seed);
    let mut store = None;
    let mut known: Vec<Block> = Vec::new();
    for _ in 0..steps {
        let open = store
            .take()
            .or_else(|| Store::open_on(Arc::clone(disk), DIR, config.clone()).ok());
        let Some(open) = open else { continue };
        match rng.below(if with_compaction { 18 } else { 10 }) {
            0 => drop(open),
            10..=15 => {
                // Any part of the work, at any moment of it: also the store is closed in the middle of one.
                let aim = Aim::default()
                    .budget(1 + rng.below(9_000))
                    .below(10 + rng.below(81) as u8);
                for _ in 0..1 + rng.below(6) {
                    let _ = open.compact_step(&aim);
                }
                if rng.chance(1, 4) {
                    open.tick();
                    let _ = open.save_uses();
                }
                store = Some(open);
            }
            16..=17 => {
                collect(&open, &mut rng, model);
                store = Some(open);
            }
            1 | 2 if !known.is_empty() => {
                let count = if with_compaction && rng.coin() { 12 } else { 3 };
                let mut victims: Vec<_> = (0..count).map(|_| rng.pick(&known).clone()).collect();
                if with_compaction {
                    let large = known.iter().rev().filter(|block| block.len() > 4096);
                    victims.extend(large.take(1 + rng.below(2) as usize).cloned());
                }
                delete(&open, &victims, model);
                store = Some(open);
            }
            _ => {
                let count = 1 + rng.below(6);
                let mut batch: Vec<_> = (0..count).map(|_| block(&mut rng)).collect();
                if with_compaction {
                    // Worth a hole when it is dead.
                    let len = 5_000 + rng.below(4_000);
                    batch.push(Block::raw(rng.bytes(len as usize)).unwrap());
                }
                if !known.is_empty() && rng.coin() {
                    batch.push(rng.pick(&known).clone());
                }
                known.extend(batch.iter().cloned());
                put(&open, &batch, model);
                store = Some(open);
            }
        }
    }
}

pub fn put(store: &Store, batch: &[Block], model: &Arc<Mutex<Model>>) {
    // While the call runs either answer may be on disk for a block that was gone.
    for block in batch {
        model.lock().unwrap().gone.remove(block.cid());
    }
    if store.put_many(batch).is_ok() {
        let mut model = model.lock().unwrap();
        for block in batch {
            model.put.insert(*block.cid(), block.clone());
        }
    }
}

pub fn delete(store: &Store, victims: &[Block], model: &Arc<Mutex<Model>>) {
    let cids: Vec<_> = victims.iter().map(|block| *block.cid()).collect();
    for cid in &cids {
        model.lock().unwrap().put.remove(cid);
    }
    if store.delete_many(&cids).is_ok() {
        let mut model = model.lock().unwrap();
        for block in victims {
            model.gone.insert(*block.cid(), block.clone());
        }
    }
}

/// A collection that keeps most of what was acknowledged, and is perhaps given up in the middle.
fn collect(store: &Store, rng: &mut Rng, model: &Arc<Mutex<Model>>) {
    let collection = store.collect().unwrap();
    let all = model.lock().unwrap().put.clone();
    let (kept, victims): (Vec<_>, Vec<_>) = all.into_values().partition(|_| rng.chance(4, 5));
    for block in &kept {
        collection.mark(block.cid());
    }
    for block in &victims {
        model.lock().unwrap().put.remove(block.cid());
    }
    // A collection takes nothing out of a pack that was set aside.
    let victims = victims.into_iter();
    let victims: Vec<_> = victims.filter(|block| store.has(block.cid())).collect();
    let mut sweep = collection.sweep();
    for _ in 0..1 + rng.below(20) {
        match sweep.step(1 + rng.below(9) as usize) {
            Ok(step) if step.done => {
                let victims = victims.into_iter().map(|block| (*block.cid(), block));
                model.lock().unwrap().gone.extend(victims);
                return;
            }
            Ok(_) => {}
            Err(_) => return,
        }
    }
}

/// What a run of the harness did.
#[derive(Clone, Debug, Default)]
pub struct Score {
    pub points: u64,
    pub second_order: u64,
    pub faults: gemba_testkit::Faults,
    /// Calls after which the power was cut.
    pub calls: gemba_testkit::Faults,
    /// The first broken promise, and where.
    pub broken: Option<String>,
}

/// Runs the workload and, after every changing call, checks what `survivors` power cuts and one kill (with a power cut
/// later) would leave. `wrap` may put a lying disk between; it is used for the runs *and* for the recoveries.
pub fn crash_everywhere(
    seed: u64,
    steps: usize,
    survivors: usize,
    wrap: impl Fn(SimDisk) -> Arc<dyn Disk> + Clone + Send + 'static,
) -> Score {
    crash_workload(seed, steps, survivors, false, wrap)
}

/// As [`crash_everywhere`], with or without compaction in the workload and after each recovery.
pub fn crash_workload(
    seed: u64,
    steps: usize,
    survivors: usize,
    with_compaction: bool,
    wrap: impl Fn(SimDisk) -> Arc<dyn Disk> + Clone + Send + 'static,
) -> Score {
    let sim = SimDisk::new(seed);
    let model = Arc::new(Mutex::new(Model::default()));
    let score = Arc::new(Mutex::new(Score::default()));
    let observer = Observer {
        rng: Rng::new(seed ^ 0x5eed),
        survivors,
        model: Arc::clone(&model),
        score: Arc::clone(&score),
        wrap: wrap.clone(),
        with_compaction,
    };
    let observer = Mutex::new(observer);
    sim.observe(move |moment| observer.lock().unwrap().look(moment));
    run_workload(
        &wrap(sim.clone()),
        &config(),
        seed,
        steps,
        &model,
        with_compaction,
    );
    sim.stop_observing();
    let mut score = score.lock().unwrap();
    std::mem::take(&mut *score)
}

struct Observer<W> {
    rng: Rng,
    survivors: usize,
    model: Arc<Mutex<Model>>,
    score: Arc<Mutex<Score>>,
    wrap: W,
    with_compaction: bool,
}

impl<W: Fn(SimDisk) -> Arc<dyn Disk> + Clone + Send + 'static> Observer<W> {
    fn look(&mut self, moment: &Moment<'_>) {
        if self.score.lock().unwrap().broken.is_some() {
            return;
        }
        self.score.lock().unwrap().calls.hit(moment.name);
        let model = self.model.lock().unwrap().clone();
        for i in 0..self.survivors {
            let seed = self.rng.next_u64();
            let after = moment.power_cut(&mut Rng::new(seed));
            let deep = i == 0 && self.rng.chance(1, 5);
            self.judge(moment, "power cut", after, &model, deep);
        }
        let after = moment.kill();
        let deep = self.rng.chance(1, 5);
        self.judge(moment, "kill", after, &model, deep);
    }

    /// Recovers, checks, puts something on top, cuts the power again and checks again.
    fn judge(
        &mut self,
        moment: &Moment<'_>,
        what: &str,
        after: SimDisk,
        model: &Model,
        deep: bool,
    ) {
        let seed = self.rng.next_u64();
        if deep {
            self.observe_recovery(&after, model, seed);
        }
        let broken = self.recover_and_go_on(&after, model, seed);
        after.stop_observing();
        let mut score = self.score.lock().unwrap();
        score.points += 1;
        score.faults.merge(&after.faults());
        if let Some(broken) = broken {
            score.broken.get_or_insert(format!(
                "{what} after call {} ({}): {broken}",
                moment.op, moment.name
            ));
        }
    }

    fn recover_and_go_on(&self, after: &SimDisk, model: &Model, seed: u64) -> Option<String> {
        let disk = (self.wrap)(after.clone());
        let store = match Store::open_on(disk, DIR, config()) {
            Ok(store) => store,
            Err(e) => return Some(format!("does not open: {e}")),
        };
        if let Err(broken) = check_open(&store, model) {
            return Some(broken);
        }
        if self.with_compaction {
            compact(&store, Aim::default().below(90));
            if let Err(broken) = check_open(&store, model) {
                return Some(format!("after compaction: {broken}"));
            }
        }
        // Whatever is shown now may be told to be present, which is an acknowledgement: it has to last.
        let mut later = model.clone();
        let mut shown = Vec::new();
        let listed = store.for_each_cid(|cid, _| {
            shown.push(cid);
            ControlFlow::Continue(())
        });
        if let Err(e) = listed {
            return Some(e.to_string());
        }
        let mut batch = vec![block(&mut Rng::new(seed))];
        for cid in shown {
            if let Ok(Some(bytes)) = store.get(&cid) {
                batch.push(Block::danger_unchecked(cid, bytes));
            }
        }
        if let Err(e) = store.put_many(&batch) {
            return Some(format!("takes no blocks: {e}"));
        }
        for block in batch {
            later.gone.remove(block.cid());
            later.put.insert(*block.cid(), block);
        }
        let again = after.power_cut(&mut Rng::new(seed ^ 1));
        drop(store);
        let broken = check_wrapped(&(self.wrap)(again), &later).err();
        broken.map(|broken| format!("after recovery and a second power cut: {broken}"))
    }

    /// Second order: the power goes again at every call of the recovery itself.
    fn observe_recovery(&self, after: &SimDisk, model: &Model, seed: u64) {
        let (model, score, wrap) = (model.clone(), Arc::clone(&self.score), self.wrap.clone());
        let mut rng = Rng::new(seed ^ 2);
        // Only the recovery: the put after it changes what is acknowledged.
        let recovery = 12;
        after.observe(move |moment| {
            if moment.op > recovery {
                return;
            }
            let twice = moment.power_cut(&mut rng);
            let broken = check_wrapped(
                &wrap(twice),
                &Model {
                    gone: BTreeMap::new(),
                    ..model.clone()
                },
            )
            .err();
            let mut score = score.lock().unwrap();
            score.second_order += 1;
            if let Some(broken) = broken {
                score.broken.get_or_insert(format!(
                    "power cut in recovery, call {} ({}): {broken}",
                    moment.op, moment.name
                ));
            }
        });
    }
}

fn check_wrapped(disk: &Arc<dyn Disk>, model: &Model) -> Result<(), String> {
    let store = Store::open_on(Arc::clone(disk), DIR, config())
        .map_err(|e| format!("does not open: {e}"))?;
    check_open(&store, model)
}

pub fn pack(number: u32) -> std::path::PathBuf {
    Path::new(DIR).join(format!("{number:06}.pack"))
}
