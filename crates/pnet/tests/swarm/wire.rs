//! The bytes on the wire (S0.52), checked against published vectors, a recorded handshake, and libp2p-pnet as oracle.

use std::{io, time::Duration};

use crate::common::*;
use data_encoding::HEXLOWER;
use futures::{AsyncReadExt, AsyncWriteExt};
use gemba_pnet::{
    OtherProtocol, PskError, PskStream, Side, Silence,
    cipher::{Engine, XSalsa20},
    handshake::{HEADER, NONCE_LEN},
};
use libp2p_pnet::{PnetConfig, PreSharedKey};
use salsa20::cipher::{KeyIvInit, StreamCipher};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::compat::{Compat, TokioAsyncReadCompatExt};

const SOON: Duration = Duration::from_secs(10);

type Socket = Compat<TcpStream>;

async fn pair() -> (Socket, Socket) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let dialed = TcpStream::connect(listener.local_addr().unwrap())
        .await
        .unwrap();
    (dialed.compat(), listener.accept().await.unwrap().0.compat())
}

/// Lines `name = hex` of a vector file.
fn vectors(file: &str) -> Vec<std::collections::HashMap<String, Vec<u8>>> {
    let path = format!(
        "{}/../../specs/vectors/pnet/{file}",
        env!("CARGO_MANIFEST_DIR")
    );
    let text = std::fs::read_to_string(path).unwrap();
    text.split("\n\n")
        .map(|block| {
            let lines = block.lines().filter(|line| !line.starts_with('#'));
            lines
                .filter_map(|line| line.split_once(" = "))
                .map(|(name, hex)| (name.to_string(), HEXLOWER.decode(hex.as_bytes()).unwrap()))
                .collect()
        })
        .filter(|vector: &std::collections::HashMap<_, _>| !vector.is_empty())
        .collect()
}

/// The oracle: an implementation that is not ours.
fn xsalsa20(key: &[u8], nonce: &[u8], bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    salsa20::XSalsa20::new_from_slices(key, nonce)
        .unwrap()
        .apply_keystream(&mut bytes);
    bytes
}

#[test]
fn s0_52_xsalsa20_as_published() {
    let vectors = vectors("xsalsa20.txt");
    assert_eq!(vectors.len(), 2);
    for vector in vectors {
        let (key, nonce) = (&vector["key"][..], &vector["nonce"][..]);
        for engine in Engine::available() {
            let mut cipher =
                XSalsa20::with_engine(engine, key.try_into().unwrap(), nonce.try_into().unwrap());
            let mut bytes = vector["plain"].clone();
            cipher.apply(&mut bytes);
            assert_eq!(bytes, vector["cipher"], "{engine:?}");
        }
    }
}

#[tokio::test]
async fn s0_52_a_recorded_stream_is_read() {
    let [vector] = vectors("stream.txt").try_into().unwrap();
    let key = gemba_pnet::SwarmKey::from_bytes(vector["key"].clone().try_into().unwrap());
    let (mut raw, ours) = pair().await;
    raw.write_all(&vector["wire"]).await.unwrap();
    let mut stream = PskStream::handshake(ours, &key, Side::Listener, SOON)
        .await
        .unwrap();
    let mut plain = vec![0; vector["plain"].len()];
    stream.read_exact(&mut plain).await.unwrap();
    assert_eq!(plain, vector["plain"]);
    assert_eq!(stream.outcome().get(), Some(Ok(())));
}

#[tokio::test]
async fn s0_52_what_we_send_is_a_nonce_and_then_xsalsa20_under_it() {
    let (mut raw, ours) = pair().await;
    raw.write_all(&[0x99; NONCE_LEN]).await.unwrap();
    let mut stream = PskStream::handshake(ours, &key(3), Side::Dialer, SOON)
        .await
        .unwrap();
    let plain: Vec<u8> = (0..100_000u32).map(|n| n as u8).collect();
    let write = async {
        for part in plain.chunks(7001) {
            stream.write_all(part).await.unwrap();
        }
        stream.close().await.unwrap();
    };
    let mut wire = Vec::new();
    let (_, read) = futures::join!(write, raw.read_to_end(&mut wire));
    read.unwrap();
    let (nonce, cipher) = wire.split_at(NONCE_LEN);
    assert_eq!(xsalsa20(&[3; 32], nonce, cipher), plain);
}

#[tokio::test]
async fn s0_52_libp2p_pnet_on_the_other_side_both_ways() {
    for side in [Side::Dialer, Side::Listener] {
        let (a, b) = pair().await;
        let psk = PnetConfig::new(PreSharedKey::new([5; 32]));
        let five = key(5);
        let (ours, theirs) =
            futures::join!(PskStream::handshake(a, &five, side, SOON), psk.handshake(b));
        let (mut ours, mut theirs) = (ours.unwrap(), theirs.unwrap());
        let talk = [&HEADER[..], &[0xEE; 5000][..]].concat();
        let (mut heard_here, mut heard_there) = (vec![0; talk.len()], vec![0; talk.len()]);
        let here = async {
            ours.write_all(&talk).await?;
            ours.flush().await?;
            ours.read_exact(&mut heard_here).await
        };
        let there = async {
            theirs.write_all(&talk).await?;
            theirs.flush().await?;
            theirs.read_exact(&mut heard_there).await
        };
        futures::future::try_join(here, there).await.unwrap();
        assert!(heard_here == talk && heard_there == talk);
    }
}

/// The remote may send its header in any portions; nothing is handed up before the 20th byte.
#[tokio::test]
async fn pnet_h3_nothing_passes_before_the_key_is_known() {
    let (mut raw, ours) = pair().await;
    let nonce = [0x99; NONCE_LEN];
    raw.write_all(&nonce).await.unwrap();
    let mut stream = PskStream::handshake(ours, &key(3), Side::Listener, SOON)
        .await
        .unwrap();
    let cipher = xsalsa20(&[3; 32], &nonce, &[&HEADER[..], b"\x07/noise\n"].concat());
    let mut first = [0; 1];
    for byte in &cipher[..19] {
        raw.write_all(&[*byte]).await.unwrap();
        raw.flush().await.unwrap();
        tokio::task::yield_now().await;
        let early = futures::poll!(std::pin::pin!(stream.read(&mut first)));
        assert!(early.is_pending());
    }
    assert_eq!(stream.outcome().get(), None);
    raw.write_all(&cipher[19..]).await.unwrap();
    let mut plain = [0; 28];
    stream.read_exact(&mut plain).await.unwrap();
    assert_eq!(plain[..20], HEADER);
    assert_eq!(&plain[20..], b"\x07/noise\n");
}

/// Hands `wire` to a stream of ours and returns how its set-up or its first read ends, and everything it sent.
async fn answer_to(wire: &[u8], side: Side, hang_up: bool) -> (Result<(), PskError>, Vec<u8>) {
    let (mut raw, ours) = pair().await;
    let us = async {
        let mut stream =
            PskStream::handshake(ours, &key(3), side, Duration::from_millis(500)).await?;
        let mut byte = [0; 1];
        match stream.read(&mut byte).await {
            Ok(_) => Ok(()),
            Err(error) => Err(typed(&error)),
        }
    };
    let them = async {
        raw.write_all(wire).await.unwrap();
        if hang_up {
            raw.close().await.unwrap();
        }
        let mut sent = Vec::new();
        // A reset is an end like any other.
        let _ = raw.read_to_end(&mut sent).await;
        sent
    };
    tokio::time::timeout(PATIENCE, futures::future::join(us, them))
        .await
        .unwrap()
}

fn typed(error: &io::Error) -> PskError {
    *error.get_ref().unwrap().downcast_ref::<PskError>().unwrap()
}

#[tokio::test]
async fn pnet_h2_h3_h4_each_ending_has_its_own_type() {
    let wrong = PskError::WrongSwarmKey {
        ours: key(3).fingerprint(),
    };
    let nonce = [0x99; NONCE_LEN];
    let foreign = [&nonce[..], &xsalsa20(&[4; 32], &nonce, &HEADER)].concat();
    let plain = [&HEADER[..], b"\x07/noise\n"].concat();
    let hung_up = PskError::ProbablyWrongSwarmKey {
        ours: key(3).fingerprint(),
        how: Silence::HungUp,
    };
    let silent = PskError::NoNonce {
        how: Silence::Timeout(Duration::from_millis(500)),
    };
    let speaks = |spoken| PskError::NotLibp2p { spoken };
    for side in [Side::Dialer, Side::Listener] {
        for (wire, hang_up, expected) in [
            (&foreign[..], false, wrong),
            (&plain[..], false, PskError::NotPrivate),
            (&HEADER[..], false, PskError::NotPrivate),
            (b"".as_slice(), false, silent),
            (b"SSH-2".as_slice(), false, silent),
            (
                b"220 mail\r\n".as_slice(),
                false,
                speaks(OtherProtocol::Text),
            ),
            (
                b"GET / HTTP/1.1\r\nHost: gemba.invalid\r\nAccept: */*\r\n\r\n".as_slice(),
                false,
                speaks(OtherProtocol::Http),
            ),
            (
                b"SSH-2.0-x\r\n".as_slice(),
                false,
                speaks(OtherProtocol::Ssh),
            ),
            (
                b"HTTP/1.1 400 Bad Request\r\n\r\n".as_slice(),
                false,
                speaks(OtherProtocol::Http),
            ),
            (b"-ERR\r\n".as_slice(), true, speaks(OtherProtocol::Text)),
            (
                b"\x15\x03\x03\x00\x02\x02\x46".as_slice(),
                true,
                speaks(OtherProtocol::Tls),
            ),
            (
                b"HTTP".as_slice(),
                true,
                PskError::NoNonce {
                    how: Silence::HungUp,
                },
            ),
            (&nonce[..], true, hung_up),
            (&foreign[..40], true, hung_up),
        ] {
            let (outcome, _) = answer_to(wire, side, hang_up).await;
            assert_eq!(outcome, Err(expected), "{side:?} {}", HEXLOWER.encode(wire));
        }
    }
}

/// Only the listener owes a header (PNET-H6), and an outsider gets nothing else: no peer id, no protocol (S2.7).
#[tokio::test]
async fn s2_7_an_outsider_learns_nothing_but_that_the_port_is_open() {
    let foreign = [&[0x99; NONCE_LEN][..], &[0xCC; 200]].concat();
    let (outcome, sent) = answer_to(&foreign, Side::Listener, false).await;
    assert!(matches!(outcome, Err(PskError::WrongSwarmKey { .. })));
    assert_eq!(sent.len(), NONCE_LEN + HEADER.len());
    assert_eq!(
        xsalsa20(&[3; 32], &sent[..NONCE_LEN], &sent[NONCE_LEN..]),
        HEADER
    );
    let (_, sent) = answer_to(&foreign, Side::Dialer, false).await;
    assert_eq!(sent.len(), NONCE_LEN);
    let (_, sent) = answer_to(
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n padding padding padding",
        Side::Listener,
        false,
    )
    .await;
    assert!(!sent.windows(12).any(|window| window == &HEADER[1..13]));
}

/// T3: equal nonces would mean equal key streams in both directions.
#[tokio::test]
async fn t3_our_own_nonce_sent_back_is_refused() {
    let (mut raw, ours) = pair().await;
    let reflect = async {
        let mut nonce = [0; NONCE_LEN];
        raw.read_exact(&mut nonce).await.unwrap();
        raw.write_all(&nonce).await.unwrap();
    };
    let three = key(3);
    let (outcome, ()) = futures::join!(
        PskStream::handshake(ours, &three, Side::Listener, SOON),
        reflect
    );
    assert_eq!(outcome.unwrap_err(), PskError::Reflected);
}
