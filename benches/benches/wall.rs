//! What a private swarm costs: the cipher by itself, and one stream through TCP, key, Noise and yamux on loopback, beside the same
//! stream without a key and the same with libp2p-pnet.
//!
//! `cargo bench -p gemba-benches --bench wall` prints bytes a second. The streams take turns within a round, so that a noisy machine
//! disturbs all of them alike; the ratio is the median over the rounds. On a processor with AVX-512 the stream is measured with AVX2 as
//! well, which is what most others have.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout)]

use std::future::poll_fn;
use std::hint::black_box;
use std::pin::Pin;
use std::time::{Duration, Instant};

use futures::{AsyncReadExt, AsyncWriteExt};
use gemba_pnet::cipher::{Engine, XSalsa20, bench};
use gemba_pnet::{Network, Policy, PublicNetwork, SwarmKey, TransportConfig};
use libp2p_core::muxing::{StreamMuxerBox, StreamMuxerExt};
use libp2p_core::transport::{Boxed, DialOpts, ListenerId, PortUse, TransportEvent};
use libp2p_core::{Endpoint, Transport, upgrade};
use libp2p_identity::{Keypair, PeerId};
use salsa20::cipher::{KeyIvInit, StreamCipher};

const MIB: usize = 1024 * 1024;
/// Bytes of one transfer.
const STREAM: usize = 512 * MIB;
const ROUNDS: usize = 9;

type Link = Boxed<(PeerId, StreamMuxerBox)>;

fn main() {
    ciphers();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(streams());
}

// ---- the cipher

fn ciphers() {
    println!("XSalsa20, MiB/s by length of the pieces");
    for piece in [64, 1024, 64 * 1024] {
        let mut theirs = salsa20::XSalsa20::new(&[1; 32].into(), &[2; 24].into());
        report_cipher("salsa20 crate", piece, |data| theirs.apply_keystream(data));
        for engine in Engine::available() {
            let mut ours = XSalsa20::with_engine(engine, &[1; 32], &[2; 24]);
            report_cipher(&name(engine), piece, |data| ours.apply(data));
        }
    }
}

/// `Avx2` of `Avx2(Avx2(()))`.
fn name(engine: Engine) -> String {
    let name = format!("{engine:?}");
    name.split('(').next().unwrap().to_owned()
}

fn report_cipher(name: &str, piece: usize, mut apply: impl FnMut(&mut [u8])) {
    let mut data = vec![0; piece];
    let rounds = 64 * MIB / piece;
    let best = (0..5)
        .map(|_| {
            let begun = Instant::now();
            for _ in 0..rounds {
                apply(black_box(&mut data));
            }
            begun.elapsed()
        })
        .min()
        .unwrap();
    println!(
        "  {piece:>6} B  {name:<16} {:>8.0}",
        rate(rounds * piece, best)
    );
}

fn rate(bytes: usize, time: Duration) -> f64 {
    bytes as f64 / MIB as f64 / time.as_secs_f64()
}

// ---- the stream

/// A stream that is measured: its name, how one end of it is made, and what computes its key if that is not for the processor to say.
type Kind = (String, fn() -> Link, Option<Engine>);

fn kinds() -> Vec<Kind> {
    let mut kinds: Vec<Kind> = vec![
        ("no key".into(), plain, None),
        ("libp2p-pnet".into(), stock, None),
        (format!("gemba-pnet, {}", name(Engine::best())), ours, None),
    ];
    let slower = Engine::available()
        .into_iter()
        .filter(|engine| engine.blocks() == AVX2 && *engine != Engine::best());
    kinds.extend(slower.map(|engine| {
        let name = format!("gemba-pnet, {}", name(engine));
        (name, ours as fn() -> Link, Some(engine))
    }));
    kinds
}

/// How many blocks the engine for AVX2 computes at once.
const AVX2: usize = 8;

async fn streams() {
    let kinds = kinds();
    let mut rates = vec![Vec::new(); kinds.len()];
    for round in 0..=ROUNDS {
        for ((_, link, engine), rates) in kinds.iter().zip(&mut rates) {
            bench::choose(*engine);
            let time = transfer(link(), link()).await;
            // The first round warms up.
            if round > 0 {
                rates.push(rate(STREAM, time));
            }
        }
    }
    println!("one stream over loopback, median of {ROUNDS} rounds");
    let base = rates[0].clone();
    for ((name, _, _), rates) in kinds.iter().zip(rates) {
        let ratio = median(rates.iter().zip(&base).map(|(a, b)| a / b).collect());
        println!(
            "  {name:<26} {:>6.0} MiB/s  {ratio:.2} of no key",
            median(rates)
        );
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn plain() -> Link {
    let force = Policy::default().force().unwrap();
    through(&Network::Public(PublicNetwork::asked_for(&force).unwrap()))
}

fn ours() -> Link {
    through(&Network::Private(SwarmKey::from_bytes([5; 32])))
}

fn through(network: &Network) -> Link {
    gemba_pnet::transport(
        &Keypair::generate_ed25519(),
        network,
        &TransportConfig::default(),
    )
    .unwrap()
}

fn stock() -> Link {
    let key = libp2p_pnet::PnetConfig::new(libp2p_pnet::PreSharedKey::new([5; 32]));
    libp2p_tcp::tokio::Transport::new(libp2p_tcp::Config::new().nodelay(true))
        .and_then(move |socket, _| key.handshake(socket))
        .upgrade(upgrade::Version::V1)
        .authenticate(libp2p_noise::Config::new(&Keypair::generate_ed25519()).unwrap())
        .multiplex(libp2p_yamux::Config::default())
        .boxed()
}

/// Time for [`STREAM`] bytes from one to the other, in writes of 64 KiB.
async fn transfer(mut listener: Link, mut dialer: Link) -> Duration {
    listener
        .listen_on(ListenerId::next(), "/ip4/127.0.0.1/tcp/0".parse().unwrap())
        .unwrap();
    let address = loop {
        if let TransportEvent::NewAddress { listen_addr, .. } = next(&mut listener).await {
            break listen_addr;
        }
    };
    let options = DialOpts {
        role: Endpoint::Dialer,
        port_use: PortUse::New,
    };
    let dial = dialer.dial(address, options).unwrap();
    let accept = tokio::spawn(async move {
        loop {
            if let TransportEvent::Incoming { upgrade, .. } = next(&mut listener).await {
                let (_, mut muxer) = upgrade.await.unwrap();
                let stream = poll_fn(|cx| {
                    let _ = muxer.poll_unpin(cx);
                    muxer.poll_inbound_unpin(cx)
                });
                let mut stream = stream.await.unwrap();
                let read = async {
                    let mut buffer = vec![0; 64 * 1024];
                    let mut left = STREAM;
                    while left > 0 {
                        left -= stream.read(&mut buffer).await.unwrap();
                    }
                    stream.write_all(b"!").await.unwrap();
                    stream.flush().await.unwrap();
                };
                drive(&mut muxer, read).await;
                // The other side hangs up when it has the last byte.
                drive_to_end(&mut muxer).await;
                return;
            }
        }
    });
    let (_, mut muxer) = dial.await.unwrap();
    let mut stream = poll_fn(|cx| {
        let _ = muxer.poll_unpin(cx);
        muxer.poll_outbound_unpin(cx)
    })
    .await
    .unwrap();
    let begun = Instant::now();
    let write = async {
        let data = vec![7; 64 * 1024];
        for _ in 0..STREAM / data.len() {
            stream.write_all(&data).await.unwrap();
        }
        stream.flush().await.unwrap();
        stream.read_exact(&mut [0]).await.unwrap();
    };
    drive(&mut muxer, write).await;
    let time = begun.elapsed();
    drop(stream);
    poll_fn(|cx| muxer.poll_close_unpin(cx)).await.unwrap();
    drop(muxer);
    accept.await.unwrap();
    time
}

async fn next(
    transport: &mut Link,
) -> TransportEvent<<Link as Transport>::ListenerUpgrade, std::io::Error> {
    poll_fn(|cx| Pin::new(&mut *transport).poll(cx)).await
}

/// Runs `work` while the muxer is polled beside it, as a swarm does.
async fn drive(muxer: &mut StreamMuxerBox, work: impl Future<Output = ()>) {
    let mut work = std::pin::pin!(work);
    poll_fn(|cx| {
        let _ = muxer.poll_unpin(cx);
        let _ = muxer.poll_inbound_unpin(cx);
        work.as_mut().poll(cx)
    })
    .await;
}

async fn drive_to_end(muxer: &mut StreamMuxerBox) {
    let end = poll_fn(|cx| muxer.poll_inbound_unpin(cx));
    let _ = tokio::time::timeout(Duration::from_secs(5), end).await;
}
