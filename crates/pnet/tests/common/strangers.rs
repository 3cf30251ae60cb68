//! Who has no key, and what he tries.

use futures::{AsyncReadExt, AsyncWriteExt};
use gemba_pnet::handshake::{HEADER, NONCE_LEN};
use gemba_testkit::Rng;
use multiaddr::Multiaddr;
use tokio::task::JoinSet;

use super::Over;

/// What strangers do to a listener, `at_once` of them: nothing, garbage, plain libp2p, HTTP, another key.
pub async fn strangers(over: Over, target: Multiaddr, count: usize, at_once: usize, seed: u64) {
    let mut rng = Rng::new(seed);
    let mut visits = JoinSet::new();
    for visit in 0..count {
        let junk = rng.length(300) as usize;
        let opening = match visit % 5 {
            0 => [&HEADER[..], b"\x07/noise\n"].concat(),
            1 => b"GET / HTTP/1.1\r\nHost: gemba.invalid\r\nAccept: */*\r\n\r\n".to_vec(),
            2 => rng.bytes(NONCE_LEN + HEADER.len() + junk),
            3 => rng.bytes(junk % (NONCE_LEN + HEADER.len())),
            _ => [rng.bytes(NONCE_LEN), HEADER.to_vec()].concat(),
        };
        let stays = rng.coin();
        while visits.len() >= at_once {
            visits.join_next().await.unwrap().unwrap();
        }
        let target = target.clone();
        visits.spawn(async move {
            let Ok(mut socket) = over.connect(&target).await else {
                return;
            };
            let said = socket.write_all(&opening).await.is_ok() && socket.flush().await.is_ok();
            if said && stays {
                let mut answer = Vec::new();
                let _ = socket.read_to_end(&mut answer).await;
                assert!(answer.len() <= NONCE_LEN + HEADER.len());
            }
        });
    }
    while let Some(visit) = visits.join_next().await {
        visit.unwrap();
    }
}
