//! Handshakes in which somebody between the two sides changes something: T3 and T7, in memory and in virtual time.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll, ready},
};

use crate::common::{Link, key, lan::Socket, lan::pipe, private};
use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use gemba_pnet::{TransportConfig, transport_over};
use gemba_testkit::{Rng, rng::Replay, sim_scale};
use libp2p_core::{
    Endpoint,
    transport::{DialOpts, ListenerId, PortUse, Transport, TransportError, TransportEvent},
};
use libp2p_identity::Keypair;
use multiaddr::Multiaddr;

/// Bytes that each direction carries at least before both sides are up: nonce 24, negotiation 28, Noise the rest.
const LEAST: u64 = 180;

/// What is done to one direction, at a byte of it.
#[derive(Clone, Copy, Debug)]
enum Change {
    Flip(u8),
    Replace(u8, u8),
    Drop,
    Double,
    End,
}

/// A socket whose written bytes are changed once.
struct Mutated {
    socket: Socket,
    at: u64,
    change: Option<Change>,
    written: u64,
    /// To be written in place of what was handed in, and how much of that it stands for.
    instead: Option<(Vec<u8>, usize, usize)>,
}

impl AsyncRead for Mutated {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Mutated {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        if this.instead.is_none() {
            let end = this.written + bytes.len() as u64;
            let here = (this.written..end).contains(&this.at);
            let Some(change) = this.change.take_if(|_| here) else {
                let count = ready!(Pin::new(&mut this.socket).poll_write(cx, bytes))?;
                this.written += count as u64;
                return Poll::Ready(Ok(count));
            };
            let at = (this.at - this.written) as usize;
            let mut changed = bytes.to_vec();
            match change {
                Change::Flip(bit) => changed[at] ^= 1 << bit,
                Change::Replace(by, count) => {
                    for byte in changed.iter_mut().skip(at).take(count.into()) {
                        *byte = byte.wrapping_add(by);
                    }
                }
                Change::Drop => {
                    changed.remove(at);
                }
                Change::Double => changed.insert(at, bytes[at]),
                Change::End => changed.truncate(at),
            }
            if let Change::End = change {
                // And not a word more.
                this.at = u64::MAX;
                let _ = Pin::new(&mut this.socket).poll_write(cx, &changed);
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            }
            this.instead = Some((changed, 0, bytes.len()));
        }
        while let Some((changed, sent, stands_for)) = &mut this.instead {
            if *sent == changed.len() {
                let count = *stands_for;
                this.instead = None;
                this.written += count as u64;
                return Poll::Ready(Ok(count));
            }
            *sent += ready!(Pin::new(&mut this.socket).poll_write(cx, &changed[*sent..]))?;
        }
        Poll::Pending
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_close(cx)
    }
}

/// A carrier that hands out what was put into it, to the dialer or to the listener.
#[derive(Clone, Default)]
struct Prepared(Arc<Mutex<Option<Mutated>>>);

impl Transport for Prepared {
    type Output = Mutated;
    type Error = io::Error;
    type ListenerUpgrade = std::future::Ready<io::Result<Mutated>>;
    type Dial = std::future::Ready<io::Result<Mutated>>;

    fn listen_on(&mut self, _: ListenerId, _: Multiaddr) -> Result<(), TransportError<io::Error>> {
        Ok(())
    }

    fn remove_listener(&mut self, _: ListenerId) -> bool {
        false
    }

    fn dial(&mut self, _: Multiaddr, _: DialOpts) -> Result<Self::Dial, TransportError<io::Error>> {
        Ok(std::future::ready(Ok(self
            .0
            .lock()
            .unwrap()
            .take()
            .unwrap())))
    }

    fn poll(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<TransportEvent<Self::ListenerUpgrade, io::Error>> {
        let Some(socket) = self.0.lock().unwrap().take() else {
            return Poll::Pending;
        };
        Poll::Ready(TransportEvent::Incoming {
            listener_id: ListenerId::next(),
            upgrade: std::future::ready(Ok(socket)),
            local_addr: "/memory/1".parse().unwrap(),
            send_back_addr: "/memory/2".parse().unwrap(),
        })
    }
}

/// Two members and whoever is between them.
struct Pair {
    dialing: Prepared,
    dialer: Link,
    accepting: Prepared,
    listener: Link,
}

impl Pair {
    fn new() -> Self {
        let link = |carrier: &Prepared| {
            let (keypair, config) = (Keypair::generate_ed25519(), TransportConfig::default());
            transport_over(carrier.clone(), &keypair, &private(1), &config).unwrap()
        };
        let (dialing, accepting) = (Prepared::default(), Prepared::default());
        Self {
            dialer: link(&dialing),
            listener: link(&accepting),
            dialing,
            accepting,
        }
    }

    /// One connection with a change to what the dialer sends, or the listener. Who of them was content, and whether anything was changed.
    async fn connect(&mut self, of_dialer: bool, at: u64, change: Option<Change>) -> (bool, bool) {
        let (near, far) = pipe();
        let side = |socket, mutated: bool| Mutated {
            socket,
            at,
            change: change.filter(|_| mutated),
            written: 0,
            instead: None,
        };
        *self.dialing.0.lock().unwrap() = Some(side(near, of_dialer));
        *self.accepting.0.lock().unwrap() = Some(side(far, !of_dialer));
        let options = DialOpts {
            role: Endpoint::Dialer,
            port_use: PortUse::New,
        };
        let dial = self.dialer.dial("/memory/1".parse().unwrap(), options);
        let TransportEvent::Incoming { upgrade, .. } =
            poll_fn(|cx| Pin::new(&mut self.listener).poll(cx)).await
        else {
            panic!("something else than a connection");
        };
        let (dialed, accepted) = futures::join!(dial.unwrap(), upgrade);
        (dialed.is_ok(), accepted.is_ok())
    }
}

/// Shares the rounds between the processors; each thread has its own time.
fn on_all_processors(rounds: usize, run: impl AsyncFn(usize, &mut Rng) + Sync) {
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get().min(8));
    let seeds = gemba_testkit::rng::seeds(threads);
    std::thread::scope(|scope| {
        for seed in &seeds {
            let (run, threads) = (&run, seeds.len());
            scope.spawn(move || {
                let replay = Replay::new(env!("CARGO_PKG_NAME"), *seed);
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_time()
                    .start_paused(true)
                    .build()
                    .unwrap();
                runtime.block_on(run(rounds.div_ceil(threads), &mut replay.rng()));
            });
        }
    });
}

/// T3: connections with one change anywhere before both sides are up. None is accepted, by either side. 100,000 in full, about 40 s on two
/// cores; a million were run on 2026-11-29 (`ROUNDS`), with the same result.
#[test]
fn t3_changed_handshakes_are_never_accepted() {
    on_all_processors(sim_scale(ROUNDS), async |rounds, rng| {
        let mut pair = Pair::new();
        assert_eq!(pair.connect(true, 0, None).await, (true, true));
        for _ in 0..rounds {
            let (of_dialer, at) = (rng.coin(), rng.below(LEAST));
            let change = match rng.below(8) {
                0 => Change::Drop,
                1 => Change::Double,
                2 => Change::End,
                3 => Change::Replace(1 + rng.below(255) as u8, 1 + rng.below(8) as u8),
                _ => Change::Flip(rng.below(8) as u8),
            };
            let content = pair.connect(of_dialer, at, Some(change)).await;
            assert_eq!(content, (false, false), "{of_dialer} {at} {change:?}");
        }
        assert_eq!(pair.connect(true, 0, None).await, (true, true));
    });
}

const ROUNDS: usize = 100_000;

/// T7: frames of a member inside the real thing, key, Noise and all: the connection ends or lives on, nothing panics, and the next one is
/// made as if nothing had been.
#[test]
fn t7_frames_of_a_raving_member_through_key_and_noise() {
    on_all_processors(sim_scale(20_000), async |rounds, rng| {
        use libp2p_core::muxing::StreamMuxerExt;
        let mut pair = Pair::new();
        let keypair = Keypair::generate_ed25519();
        for _ in 0..rounds {
            let (near, far) = pipe();
            *pair.accepting.0.lock().unwrap() = Some(Mutated {
                socket: far,
                at: 0,
                change: None,
                written: 0,
                instead: None,
            });
            let TransportEvent::Incoming { upgrade, .. } =
                poll_fn(|cx| Pin::new(&mut pair.listener).poll(cx)).await
            else {
                panic!("something else than a connection");
            };
            let swarm_key = key(1);
            let member = crate::common::insider::up_to_yamux(near, &swarm_key, &keypair);
            let (member, accepted) = futures::join!(member, upgrade);
            let (mut wire, (_, mut muxer)) = (member.unwrap(), accepted.unwrap());
            let frames = frames(rng);
            let rave = async {
                let _ = wire.write_all(&frames).await;
                let _ = wire.flush().await;
                let _ = wire.close().await;
            };
            let serve = async {
                let mut streams = Vec::new();
                while let Ok(stream) = poll_fn(|cx| muxer.poll_inbound_unpin(cx)).await {
                    streams.push(stream);
                    if streams.len() > 8 {
                        streams.swap_remove(0);
                    }
                }
                for stream in &mut streams {
                    let _ = stream.read_to_end(&mut Vec::new()).await;
                }
            };
            futures::join!(rave, serve);
        }
        assert_eq!(pair.connect(true, 0, None).await, (true, true));
    });
}

/// Up to a hundred yamux frames, most of them nearly right.
fn frames(rng: &mut Rng) -> Vec<u8> {
    let mut bytes = Vec::new();
    for _ in 0..1 + rng.index(100) {
        let kind = if rng.chance(1, 30) {
            rng.next_u64() as u8
        } else {
            rng.below(4) as u8
        };
        let flags = if rng.chance(1, 30) {
            rng.next_u64() as u16
        } else {
            rng.below(4) as u16
        };
        let stream = match rng.chance(1, 30) {
            true => rng.next_u64() as u32,
            false => rng.below(20) as u32,
        };
        let length = match (kind, rng.chance(1, 50)) {
            (_, true) => rng.next_u64() as u32,
            (0, false) => rng.below(200) as u32,
            (_, false) => rng.below(70_000) as u32,
        };
        bytes.extend([u8::from(rng.chance(1, 200)), kind]);
        bytes.extend(flags.to_be_bytes());
        bytes.extend(stream.to_be_bytes());
        bytes.extend(length.to_be_bytes());
        if kind == 0 {
            bytes.extend(rng.bytes(length.min(300) as usize));
        }
    }
    bytes
}
