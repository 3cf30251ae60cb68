//! The bounded multiplexer on real connections, with libp2p-yamux on the other side where it matters.

use std::{future::poll_fn, pin::Pin, time::Duration};

use crate::common::{Link, Over, PATIENCE, over_each_transport, private};
use futures::{AsyncReadExt, AsyncWriteExt};
use gemba_pnet::{ReceiveBudget, TransportConfig};
use libp2p_core::{
    Endpoint,
    muxing::{StreamMuxerBox, StreamMuxerExt, SubstreamBox},
    transport::{DialOpts, ListenerId, PortUse, Transport, TransportEvent},
};
use libp2p_identity::Keypair;
use multiaddr::Multiaddr;
use tokio::sync::mpsc;

fn link(over: Over, config: &TransportConfig) -> Link {
    over.transport(&Keypair::generate_ed25519(), &private(7), config)
}

/// Accepts connections for ever; streams that remotes open come out of the channel.
async fn listen(over: Over, mut link: Link) -> (Multiaddr, mpsc::Receiver<SubstreamBox>) {
    link.listen_on(ListenerId::next(), over.anywhere()).unwrap();
    let address = loop {
        if let TransportEvent::NewAddress { listen_addr, .. } =
            poll_fn(|cx| Pin::new(&mut link).poll(cx)).await
        {
            break listen_addr;
        }
    };
    let (streams, opened) = mpsc::channel(1024);
    tokio::spawn(async move {
        loop {
            let event = poll_fn(|cx| Pin::new(&mut link).poll(cx)).await;
            if let TransportEvent::Incoming { upgrade, .. } = event {
                let streams = streams.clone();
                tokio::spawn(async move {
                    let (_, muxer) = upgrade.await.unwrap();
                    drive(muxer, streams).await;
                });
            }
        }
    });
    (address, opened)
}

/// Polls a connection until it ends.
async fn drive(mut muxer: StreamMuxerBox, streams: mpsc::Sender<SubstreamBox>) {
    while let Ok(stream) = poll_fn(|cx| muxer.poll_inbound_unpin(cx)).await {
        if streams.send(stream).await.is_err() {
            return;
        }
    }
}

/// A connection that is polled in the background, and `count` streams on it.
async fn dial(mut link: Link, address: &Multiaddr, count: usize) -> Vec<SubstreamBox> {
    let options = DialOpts {
        role: Endpoint::Dialer,
        port_use: PortUse::New,
    };
    let (_, mut muxer) = link.dial(address.clone(), options).unwrap().await.unwrap();
    let mut streams = Vec::new();
    for _ in 0..count {
        let stream = poll_fn(|cx| muxer.poll_outbound_unpin(cx)).await.unwrap();
        streams.push(stream);
    }
    let (nobody, _) = mpsc::channel(1);
    tokio::spawn(drive(muxer, nobody));
    streams
}

over_each_transport! {
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn t6_unread_streams_of_many_peers_are_bounded_and_others_are_served;
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn t6_libp2p_yamux_on_the_other_side;
}

/// Threat T6: peers that fill every window of every stream, which nobody reads, beside one honest connection.
async fn t6_unread_streams_of_many_peers_are_bounded_and_others_are_served(over: Over) {
    const HOSTILE: usize = 10;
    const STREAMS: usize = 30;
    let budget = ReceiveBudget::new(1 << 20);
    let mut config = TransportConfig::default();
    config.receive = budget.clone();
    let (address, mut opened) = listen(over, link(over, &config)).await;
    for _ in 0..HOSTILE {
        for mut stream in dial(link(over, &TransportConfig::default()), &address, STREAMS).await {
            tokio::spawn(async move {
                // More than the window: it never returns.
                let _ = stream.write_all(&vec![1; 300_000]).await;
                let _ = stream.flush().await;
                std::future::pending::<()>().await;
            });
        }
    }
    let mut unread = Vec::new();
    let full = async {
        while budget.used() <= budget.limit() || unread.len() < HOSTILE {
            let came = tokio::time::timeout(Duration::from_millis(50), opened.recv()).await;
            unread.extend(came.ok().flatten());
        }
    };
    tokio::time::timeout(PATIENCE, full).await.unwrap();
    // Everything that fits below the limit is here; a little later nothing more has come.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let most = (1 << 20) + (HOSTILE + 1) * 128 * 1024;
    assert!(budget.used() <= most, "{} of {most}", budget.used());

    let sent = vec![2; 4 << 20];
    let mut honest = dial(link(over, &TransportConfig::default()), &address, 1).await;
    let write = async {
        honest[0].write_all(&sent).await.unwrap();
        honest[0].close().await.unwrap();
    };
    let read = async {
        loop {
            let mut stream = opened.recv().await.unwrap();
            let mut first = [0];
            let wait = tokio::time::timeout(Duration::from_secs(2), stream.read_exact(&mut first));
            match wait.await {
                Ok(Ok(_)) if first == [2] => {
                    let mut all = first.to_vec();
                    stream.read_to_end(&mut all).await.unwrap();
                    return all;
                }
                _ => unread.push(stream),
            }
        }
    };
    let (_, received) = tokio::time::timeout(PATIENCE, futures::future::join(write, read))
        .await
        .unwrap();
    assert!(received == sent);
    assert!(budget.used() <= most, "{} of {most}", budget.used());

    // Whoever goes gives back what was his.
    drop(unread);
    drop(opened);
}

/// The bytes on the wire are yamux's: one of libp2p's own on the other side, both ways.
async fn t6_libp2p_yamux_on_the_other_side(over: Over) {
    let stock = || over.stock(&Keypair::generate_ed25519(), Some([7; 32]));
    for ours_listens in [true, false] {
        let ours = link(over, &TransportConfig::default());
        let (listener, dialer) = match ours_listens {
            true => (ours, stock()),
            false => (stock(), ours),
        };
        let (address, mut opened) = listen(over, listener).await;
        let sent: Vec<u8> = (0..1_500_000_u32).map(|n| n as u8).collect();
        let mut streams = dial(dialer, &address, 20).await;
        for stream in &mut streams {
            stream.write_all(b"hello").await.unwrap();
            stream.flush().await.unwrap();
        }
        let mut accepted = Vec::new();
        while accepted.len() < streams.len() {
            accepted.push(opened.recv().await.unwrap());
        }
        for (here, there) in streams.iter_mut().zip(&mut accepted) {
            let mut hello = [0; 5];
            there.read_exact(&mut hello).await.unwrap();
            assert_eq!(&hello, b"hello");
            let mut back = vec![0; sent.len()];
            let write = async {
                there.write_all(&sent).await.unwrap();
                there.flush().await.unwrap();
            };
            let (_, read) = futures::join!(write, here.read_exact(&mut back));
            read.unwrap();
            assert!(back == sent);
        }
    }
}
