//! The daemon: repository, swarm and API around one loop.
//!
//! `start` opens everything in the order in which it may be refused (lock, swarm key, store, sockets), `run` is the loop,
//! and the end takes it all down in the opposite order, with a deadline.

mod call;
mod command;
pub mod dial;
pub mod flow;
mod hashers;
pub(crate) mod keeper;
pub mod listen;
pub(crate) mod ping;
mod queue;
pub(crate) mod replicate;
pub mod room;
mod run;
mod swarm;
mod turn;
mod work;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use gemba_store::Store;
use multiaddr::Multiaddr;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

pub(crate) use call::ending;
pub use call::{Call, Wait};
pub use command::{Command, Fetched, Handle, PAGE, ReaderId};
pub use turn::{Turn, Turns};

use crate::api::{self, Published, State, Token};
use crate::error::{Code, Fail};
use crate::handover::{self, Desk};
use crate::log::{Events, waiting};
use crate::meta::{Meta, PinState as _};
use crate::repo::{AWAY, Access, Repo, packs_to_note};
use keeper::{Figures, Keeper};
use replicate::{Connections, Replicator};
use room::Room;
use run::Node;

/// What ends after this is cut off.
const END: Duration = Duration::from_secs(10);

/// What `gemba daemon` is told, over the configuration.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Listen addresses instead of the configured ones.
    pub listen: Vec<Multiaddr>,
    /// Bootstrap addresses beside the configured ones.
    pub bootstrap: Vec<Multiaddr>,
    /// Do not look for peers by mDNS.
    pub no_mdns: bool,
    /// Where the API listens, instead of the configured address.
    pub api: Option<SocketAddr>,
    /// Join the public network, if there is no swarm key.
    pub public_network: bool,
}

/// What a started daemon says of itself.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Ready {
    /// Always `ready`.
    pub event: &'static str,
    /// The peer id.
    pub id: String,
    /// Listen addresses, each with `/p2p/…`.
    pub addresses: Vec<String>,
    /// Where the API listens.
    pub api: String,
    /// The fingerprint of the swarm key.
    pub fingerprint: Option<String>,
}

/// Runs a daemon until it is told to end: by `stop`, or through the API. `ready` is called once everything listens.
///
/// # Errors
/// Whatever keeps it from starting, or made it end.
pub async fn run(
    repo: Repo,
    options: Options,
    ready: impl FnOnce(&Ready) -> Result<(), Fail>,
    stop: impl Future<Output = ()>,
) -> Result<(), Fail> {
    debug_assert_eq!(repo.access(), Access::Write);
    let network = repo.network(options.public_network)?;
    let fingerprint = network.key().map(|key| key.fingerprint().to_string());
    let keypair = repo.identity()?;
    let store = repo.store()?;
    let meta = Arc::new(repo.meta()?);
    let events = Events::open(&repo)?;
    strike_out_after_damage(&store, &meta)?;

    let token = Token::generate()?;
    let listener = api::bind(options.api.unwrap_or(repo.config.api.address)).await?;
    let api_address = listener
        .local_addr()
        .map_err(|e| Fail::new(Code::Failure, format!("the API's address: {e}")))?;

    let (handle, commands) = Handle::new();
    let swarm = swarm::build(&keypair, &network, (&repo.layout, &repo.config), &options)?;
    let kept = Arc::new(Figures::default());
    let room = Arc::new(Room::new(repo.config.store.gc));
    let control = swarm.0.behaviour().streams.new_control();
    let connections = Connections::default();
    let mut node = Node::new(
        (swarm, connections.clone()),
        (store.clone(), Arc::clone(events.log())),
        (&repo.layout, &repo.config, Arc::clone(&meta)),
        fingerprint.clone(),
        (Arc::clone(&kept), Arc::clone(&room)),
        commands,
    )?;
    let addresses = node.listen(&listen_addresses(&repo, &options)).await?;

    let ending = CancellationToken::new();
    let turns = Arc::new(Turns::default());
    let desk = Arc::new(Desk::default());
    let socket = repo.layout.files_socket();
    let hands = handover::open(&socket, &token, &desk, &ending);
    let state = State::new(
        handle.clone(),
        store.clone(),
        (Arc::clone(&turns), Arc::clone(&kept), Arc::clone(&room)),
        (desk, events.clone()),
        (
            repo.layout.clone(),
            repo.config.names.clone(),
            token.clone(),
        ),
        ending.clone(),
    );
    let waking = tokio::spawn(waiting::wake(events.clone(), ending.clone()));
    let serving = tokio::spawn(api::serve(listener, api::router(state), ending.clone()));
    let published = Published::write(
        &repo.layout.api(),
        api_address,
        &token,
        hands.then(|| socket.clone()),
    )?;

    let parts = replicate::Parts {
        events: events.clone(),
        handle: handle.clone(),
        local: keypair.public().to_peer_id(),
        control,
        connections,
        settings: repo.config.events.clone(),
    };
    let replicating = tokio::spawn(Replicator::run(parts, ending.clone()));
    let settings = (repo.config.store.clone(), repo.config.pins.compare);
    let keeper = Keeper::start(store, meta, handle.clone(), (turns, room), settings, kept)?;

    ready(&Ready {
        event: "ready",
        id: keypair.public().to_peer_id().to_string(),
        addresses,
        api: format!("http://{api_address}"),
        fingerprint,
    })?;
    let (tell_stop, stopped) = oneshot::channel();
    let outcome = tokio::select! {
        outcome = node.run(stopped) => outcome,
        outcome = async { stop.await; let _ending = tell_stop.send(()); std::future::pending::<Result<(), Fail>>().await } => outcome,
    };

    drop(published);
    if hands {
        let _gone_already = std::fs::remove_file(&socket);
    }
    // Who waits for an answer is told first, then what he waits for ends.
    ending.cancel();
    let rest = node.end();
    let drained = tokio::time::timeout(END, async {
        let _panicked = serving.await;
        let _panicked = replicating.await;
        let _panicked = waking.await;
        let _panicked = tokio::task::spawn_blocking(move || events.close()).await;
        let finished = tokio::task::spawn_blocking(move || keeper.finish());
        rest.finish().await;
        let _joined = finished.await;
    });
    if drained.await.is_err() {
        tracing::warn!(
            "the daemon did not drain in {} s and ends now; what was acknowledged is on disk",
            END.as_secs()
        );
    }
    outcome
}

/// A pin is whole because the disk once said so. When the disk lost something since, the pins are compared with what is there.
fn strike_out_after_damage(store: &Store, meta: &Meta) -> Result<(), Fail> {
    let report = store.open_report();
    let lost = report.damage.len() + report.ambiguous.len() + report.unreadable.len();
    let pins = meta.pins()?;
    let mut rootless = 0_u64;
    for pin in pins.iter() {
        let pin = pin?;
        rootless += u64::from(pin.complete && !store.has(&pin.cid));
    }
    let noted = meta.packs()?;
    let were_away = noted >= AWAY;
    let lost_packs = (noted % AWAY).saturating_sub(store.stat().packs);
    if lost == 0 && rootless == 0 && lost_packs == 0 && !were_away {
        return Ok(());
    }
    let struck = crate::content::pins::strike_out(store, meta)?;
    meta.note_packs(packs_to_note(store))?;
    if were_away && lost == 0 && lost_packs == 0 {
        tracing::info!(
            pins_struck = struck,
            "a pack that was away is back: pins were compared with what is there"
        );
        return Ok(());
    }
    tracing::error!(
        damaged_places = lost,
        lost_packs,
        pins_struck = struck,
        "the disk lost blocks: pins that miss some are fetched again; run `gemba repo verify` and look at the disk"
    );
    Ok(())
}

fn listen_addresses(repo: &Repo, options: &Options) -> Vec<Multiaddr> {
    if options.listen.is_empty() {
        repo.config.network.listen.clone()
    } else {
        options.listen.clone()
    }
}

#[cfg(test)]
mod tests {
    use gemba_block::Block;
    use gemba_pins::{Add, Edit, Kind};
    use gemba_testkit::disk::{Call, SimDisk};

    use super::*;
    use crate::meta::PinEdit;

    /// A leaf was deleted, the pack with its tombstone was away, and a pin that needs the leaf was whole by an older copy. When the pack is back
    /// the leaf is gone, and the pin is not called whole any more.
    #[test]
    fn what_a_pack_buries_that_comes_back_is_struck_out() {
        let sim = SimDisk::new(1);
        let config = || gemba_store::Config::default().pack_bytes(4096);
        let open = || Store::open_on(Arc::new(sim.clone()), "/blocks", config());
        let store = open().unwrap();
        let leaf = Block::raw(vec![7; 900]).unwrap();
        store.put_many(std::slice::from_ref(&leaf)).unwrap();
        for n in 0..12_u8 {
            store
                .put_many(&[Block::raw(vec![n + 100; 900]).unwrap()])
                .unwrap();
        }
        store.delete_many(&[*leaf.cid()]).unwrap();
        assert!(!store.has(leaf.cid()));
        drop(store);
        let store = (1..100)
            .find_map(|nth| {
                sim.fail(Call::Read, nth, 1);
                let store = open();
                sim.heal();
                store.ok().filter(|store| store.has(leaf.cid()))
            })
            .unwrap();
        assert_eq!(store.stat().unreadable_packs, 1);

        let dir = tempfile::tempdir().unwrap();
        Meta::create(dir.path()).unwrap();
        let meta = Meta::open(dir.path(), Access::Write).unwrap();
        strike_out_after_damage(&store, &meta).unwrap();
        let link = gemba_unixfs::dagpb::Link::new(*leaf.cid(), b"", 900);
        let root = Block::dag_pb(gemba_unixfs::dagpb::encode([link].into_iter(), None)).unwrap();
        store.put_many(std::slice::from_ref(&root)).unwrap();
        meta.edit_one(PinEdit::Own(Add {
            cid: *root.cid(),
            kind: Kind::Recursive,
            name: None,
            now_ms: 5,
        }))
        .unwrap();
        let pin = || meta.pins().unwrap().get(root.cid()).unwrap().unwrap();
        let (id, size) = (pin().id, None);
        let whole = Edit::Complete { id, size };
        meta.edit(&[PinEdit::Plain(*root.cid(), whole)]).unwrap();
        drop(store);

        let store = open().unwrap();
        assert!(!store.has(leaf.cid()) && store.has(root.cid()));
        assert!(pin().complete);
        strike_out_after_damage(&store, &meta).unwrap();
        assert!(!pin().complete);
        // Nothing is away: it is not compared for ever.
        assert_eq!(meta.packs().unwrap(), store.stat().packs);
    }
}
