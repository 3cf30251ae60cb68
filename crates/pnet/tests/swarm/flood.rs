//! T8: what honest devices feel while an insider floods with identities. In virtual time, with a processor that takes its time.
//!
//! The runtime's timers count milliseconds, so everything here is ten times as slow as what it stands for.

use std::{
    future::poll_fn,
    io,
    net::{Ipv4Addr, SocketAddr},
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use crate::common::lan::Lan;
use crate::common::multiaddr;
use futures::{AsyncReadExt, AsyncWriteExt, FutureExt, StreamExt};
use gemba_pnet::{Limits, TransportConfig, limits};
use gemba_testkit::Rng;
use libp2p_core::muxing::{StreamMuxerBox, StreamMuxerExt, SubstreamBox};
use libp2p_swarm::{Config, NetworkBehaviour};
use multistream_select::{Negotiated, Version, dialer_select_proto};
use tokio::{
    task::JoinSet,
    time::{Instant, Sleep, sleep, sleep_until},
};

/// What a turn of a task costs on the one processor of the node; it stands for 100 µs, so that a handshake of about ten turns takes a
/// millisecond, as on a PC that is a few years old.
const TURN: Duration = Duration::from_millis(1);
/// One way on a wireless line; it stands for 5 ms.
const LINE: Duration = Duration::from_millis(50);

/// The node's only one: when it will have done all that waits for it, and how many turns that were.
struct Processor {
    free_at: Mutex<Instant>,
    turns: AtomicUsize,
}

/// A task that waits for the processor before each turn, behind all others that want it.
struct OnProcessor<F> {
    task: Pin<Box<F>>,
    processor: Arc<Processor>,
    turn: Option<Pin<Box<Sleep>>>,
}

impl<F: Future> Future for OnProcessor<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = &mut *self;
        let processor = &this.processor;
        let turn = this.turn.get_or_insert_with(|| {
            processor.turns.fetch_add(1, Ordering::Relaxed);
            let mut free_at = processor.free_at.lock().unwrap();
            *free_at = (*free_at).max(Instant::now()) + TURN;
            Box::pin(sleep_until(*free_at))
        });
        ready!(turn.as_mut().poll(cx));
        this.turn = None;
        this.task.as_mut().poll(cx)
    }
}

#[derive(NetworkBehaviour)]
#[behaviour(prelude = "libp2p_swarm::derive_prelude")]
struct App {
    limits: limits::Behaviour,
    ping: libp2p_ping::Behaviour,
}

/// A stream on which the node gives back what it is given; the connection goes with it.
struct Echo {
    stream: Negotiated<SubstreamBox>,
    _driver: JoinSet<()>,
}

async fn echo(mut muxer: StreamMuxerBox) -> io::Result<Echo> {
    let stream = poll_fn(|cx| muxer.poll_outbound_unpin(cx)).await?;
    let mut driver = JoinSet::new();
    driver.spawn(async move {
        // The node's own streams are neither answered nor refused.
        let mut held = Vec::new();
        while let Ok(stream) = poll_fn(|cx| muxer.poll_inbound_unpin(cx)).await {
            held.push(stream);
        }
    });
    let agreed = dialer_select_proto(stream, ["/ipfs/ping/1.0.0"], Version::V1).await;
    Ok(Echo {
        stream: agreed.map_err(io::Error::other)?.1,
        _driver: driver,
    })
}

async fn round_trip(echo: &mut Echo) -> io::Result<Duration> {
    let stream = &mut echo.stream;
    let begun = Instant::now();
    sleep(LINE).await;
    stream.write_all(&[7; 32]).await?;
    stream.flush().await?;
    stream.read_exact(&mut [0; 32]).await?;
    sleep(LINE).await;
    Ok(begun.elapsed())
}

/// Takes another name every second (that is, ten), and asks for answers in between.
async fn sybil(lan: Lan, number: usize, node: SocketAddr, mut rng: Rng, met: Arc<AtomicUsize>) {
    let ip = Ipv4Addr::new(10, 0, 66, (number % 10) as u8);
    loop {
        sleep(Duration::from_millis(rng.below(10_000))).await;
        let Ok((_, muxer)) = lan.link(ip, node).await else {
            continue;
        };
        let Ok(mut stream) = echo(muxer).await else {
            continue;
        };
        met.fetch_add(1, Ordering::Relaxed);
        for _ in 0..4 {
            sleep(Duration::from_millis(2_000)).await;
            if round_trip(&mut stream).await.is_err() {
                break;
            }
        }
    }
}

fn p99(mut all: Vec<Duration>) -> Duration {
    all.sort_unstable();
    all[all.len() * 99 / 100]
}

/// 500 identities of ten hosts, each another one every second: the round trips of an honest device take at most twice as long as in
/// quiet times (p99).
#[tokio::test(start_paused = true)]
async fn t8_five_hundred_identities_at_most_double_an_honest_round_trip() {
    let lan = Lan::new(|_| async { Err(io::ErrorKind::ConnectionRefused.into()) }.boxed());
    let us = SocketAddr::from(([10, 0, 0, 1], 4001));
    let processor = Arc::new(Processor {
        free_at: Mutex::new(Instant::now()),
        turns: AtomicUsize::new(0),
    });
    let executor = processor.clone();
    let executor = Config::with_executor(move |task| {
        tokio::spawn(OnProcessor {
            task: Box::pin(task),
            processor: executor.clone(),
            turn: None,
        });
    });
    let mut node = lan.swarm_on(executor, us.ip(), &TransportConfig::default(), |_| App {
        limits: limits::Behaviour::new(Limits::pc()),
        ping: libp2p_ping::Behaviour::default(),
    });
    node.listen_on(multiaddr(us)).unwrap();
    let drive = async move {
        loop {
            node.select_next_some().await;
        }
    };
    let node: tokio::task::JoinHandle<()> = tokio::spawn(OnProcessor {
        task: Box::pin(drive),
        processor: processor.clone(),
        turn: None,
    });
    let (_, muxer) = lan.link([10, 0, 0, 2], us).await.unwrap();
    let mut honest = echo(muxer).await.unwrap();
    let mut rng = Rng::from_env_or(8);
    let mut trips = async |honest: &mut Echo, count: usize| {
        let mut trips = Vec::new();
        for _ in 0..count {
            sleep(Duration::from_millis(rng.below(200))).await;
            trips.push(round_trip(honest).await.unwrap());
        }
        p99(trips)
    };
    let quiet = trips(&mut honest, 200).await;
    let met = Arc::new(AtomicUsize::new(0));
    let mut seeds = Rng::from_env_or(9);
    for number in 0..500 {
        tokio::spawn(sybil(lan.clone(), number, us, seeds.fork(), met.clone()));
    }
    sleep(Duration::from_secs(10)).await;
    let (begun, before) = (Instant::now(), processor.turns.load(Ordering::Relaxed));
    let flooded = trips(&mut honest, gemba_testkit::sim_scale(1_000).max(250)).await;
    let met = met.load(Ordering::Relaxed);
    let turns = processor.turns.load(Ordering::Relaxed) - before;
    let busy = turns as u128 * TURN.as_millis() * 100 / begun.elapsed().as_millis();
    println!(
        "T8: round trip {quiet:?} quiet, {flooded:?} beside {met} connections of sybils; processor {busy} % busy"
    );
    assert!(met >= 500, "{met} got in");
    assert!(flooded <= 2 * quiet, "{flooded:?}, quiet {quiet:?}");
    assert!(busy >= 20, "the processor had something to do: {busy} %");
    assert!(!node.is_finished());
}
