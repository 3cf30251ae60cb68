//! What an insider with the key, an odd file system and numbers at their ends can do, by somebody who did not write the crate.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::mpsc;
use std::time::Duration;

use crate::common::*;
use futures::{AsyncReadExt, AsyncWriteExt, StreamExt};
use gemba_pnet::dialer::{
    backoff::{Backoff, BackoffConfig, Class},
    book::Book,
    redial::Redial,
};
use gemba_pnet::discovery::table::{Offer, Table, TableConfig};
use gemba_pnet::{
    KeyFile, Limits, PskStream, Replace, Side, SwarmKey, TransportConfig, limits, watch::Watch,
};
use gemba_testkit::Rng;
use libp2p_swarm::SwarmEvent;
use multiaddr::Multiaddr;

over_each_transport! {
    #[tokio::test]
    async fn members_that_stall_or_rave_during_set_up_keep_nobody_out;
}

/// A stream of the private network to `address`, and nothing said on it yet.
async fn insider(over: Over, address: &Multiaddr) -> PskStream<RawSocket> {
    let socket = over.connect(address).await.unwrap();
    PskStream::handshake(socket, &key(1), Side::Dialer, PATIENCE)
        .await
        .unwrap()
}

/// Members that have gone mad: they pass the key check and then never finish what they begin. Each is let go, none gets in, their
/// places become free, and an honest member is taken in while they are at it.
async fn members_that_stall_or_rave_during_set_up_keep_nobody_out(over: Over) {
    const HEADER: &[u8] = b"\x13/multistream/1.0.0\n";
    let mut config = TransportConfig::default();
    (config.security, config.nonce) = (Duration::from_millis(600), Duration::from_millis(600));
    let mut node = swarm_with(over, &private(1), &config, |_| {
        limits::Behaviour::new(Limits::tablet())
    });
    let address = listen(over, &mut node).await;
    let noise = [HEADER, b"\x07/noise\n"].concat();
    let acts: Vec<Vec<u8>> = vec![
        HEADER[..19].to_vec(),
        HEADER.to_vec(),
        noise.clone(),
        // A Noise frame of 65,535 bytes, of which one comes; one of no bytes; one of noise.
        [&noise[..], &[0xff, 0xff, 0x00]].concat(),
        [&noise[..], &[0x00, 0x00]].concat(),
        [&noise[..], &[0x00, 0x20], &[0xaa; 32]].concat(),
        // Lines without end, and lines whose length has no end.
        [HEADER, &b"\x07/nonse\n".repeat(2000)[..]].concat(),
        [HEADER, &[0x80; 4000][..]].concat(),
        [HEADER, &b"\x03ls\n".repeat(2000)[..]].concat(),
    ];
    let count = acts.len();
    let mad: Vec<_> = acts
        .into_iter()
        .map(|act| {
            let address = address.clone();
            tokio::spawn(async move {
                let mut stream = insider(over, &address).await;
                let _ = stream.write_all(&act).await;
                let _ = stream.flush().await;
                // It stays until it is let go.
                let mut sink = [0; 256];
                while stream.read(&mut sink).await.is_ok_and(|read| read > 0) {}
            })
        })
        .collect();
    let mut honest = swarm(over, &private(1));
    let me = *honest.local_peer_id();
    honest.dial(address.clone()).unwrap();
    tokio::spawn(async move {
        loop {
            honest.select_next_some().await;
        }
    });
    let (mut refused, mut taken) = (0, 0);
    until(&mut node, |event| {
        match event {
            SwarmEvent::ConnectionEstablished { peer_id, .. } => {
                assert_eq!(*peer_id, me);
                taken += 1;
            }
            SwarmEvent::IncomingConnectionError { .. } => refused += 1,
            _ => {}
        }
        (refused == count && taken == 1).then_some(())
    })
    .await;
    assert_eq!(node.behaviour().count().pending_incoming(), 0);
    assert_eq!(node.behaviour().count().established(), 1);
    let keep = tokio::spawn(async move {
        loop {
            node.select_next_some().await;
        }
    });
    for one in mad {
        tokio::time::timeout(PATIENCE, one).await.unwrap().unwrap();
    }
    keep.abort();
}

/// A key file that is a pipe, a device, a folder, a link to itself or gigabytes long: an answer, at once, and nothing written.
#[test]
#[cfg(unix)]
fn a_key_file_that_is_no_file_is_refused_and_never_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    type Make = fn(&std::path::Path);
    let make: [(&str, Make); 5] = [
        ("pipe", |at| {
            let made = std::process::Command::new("mkfifo").arg(at).status();
            assert!(made.unwrap().success());
        }),
        ("zeros without end", |at| {
            std::os::unix::fs::symlink("/dev/zero", at).unwrap();
        }),
        ("folder", |at| std::fs::create_dir(at).unwrap()),
        ("loop", |at| std::os::unix::fs::symlink(at, at).unwrap()),
        ("huge", |at| {
            std::fs::File::create(at).unwrap().set_len(1 << 40).unwrap();
        }),
    ];
    for (name, make) in make {
        let repo = dir.path().join(name);
        std::fs::create_dir(&repo).unwrap();
        make(&repo.join("swarm.key"));
        let (done, wait) = mpsc::channel();
        std::thread::spawn(move || {
            let file = KeyFile::in_repo(&repo);
            let decided = file.policy_without_environment().decide().is_err();
            let imported = KeyFile::read_for_import(&repo.join("swarm.key")).is_err();
            let written = file.write(&key(1), Replace::Never).is_err();
            let left = std::fs::read_dir(&repo).unwrap().count();
            done.send((decided, imported, written, left)).unwrap();
        });
        let answer = wait.recv_timeout(Duration::from_secs(30));
        assert_eq!(answer, Ok((true, true, true, 1)), "{name}");
    }
}

/// Sixteen processes make the first key at once: one of them wins, all the others are told, and the file is that one's.
#[test]
fn of_many_first_keys_one_is_written_and_the_others_hear_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let start = std::sync::Barrier::new(16);
    let won: Vec<u8> = std::thread::scope(|scope| {
        let (dir, start) = (dir.path(), &start);
        let threads: Vec<_> = (1..=16)
            .map(|byte| {
                scope.spawn(move || {
                    start.wait();
                    let wrote = KeyFile::in_repo(dir).write(&key(byte), Replace::Never);
                    wrote.is_ok().then_some(byte)
                })
            })
            .collect();
        threads
            .into_iter()
            .filter_map(|t| t.join().unwrap())
            .collect()
    });
    assert_eq!(won.len(), 1);
    let file = std::fs::read(dir.path().join("swarm.key")).unwrap();
    assert!(SwarmKey::parse(&file) == Ok(key(won[0])));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}

/// The cores with limits of nothing and of everything, at the first and the last moment there is, and with clocks that jump.
#[test]
fn cores_hold_their_limits_at_the_ends_of_every_number() {
    let ip = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let times = [
        Duration::ZERO,
        Duration::MAX,
        Duration::from_nanos(1),
        Duration::MAX,
    ];
    for limit in [0, 1, usize::MAX] {
        let mut config = TableConfig::default();
        config.max_sightings = limit;
        config.max_addresses_per_peer = limit;
        config.max_sightings_per_ip = limit;
        config.max_new_per_second = u32::try_from(limit).unwrap_or(u32::MAX);
        config.lifetime = Duration::MAX;
        let mut table = Table::new(config);
        let mut book = Book::new(limit, limit);
        let mut redial = Redial::new(limit, limit);
        let mut config = BackoffConfig::default();
        (config.first, config.longest) = (Duration::MAX, Duration::MAX);
        (config.first_foreign, config.longest_foreign) = (Duration::ZERO, Duration::ZERO);
        config.capacity = limit;
        let mut backoff = Backoff::new(config);
        let mut watch = Watch::new(Duration::MAX);
        for (at, now) in times.into_iter().enumerate() {
            for i in 0..3 {
                let offer = table.offer(at, i, ip, now);
                assert!(limit > 0 || offer != Offer::New);
                book.add(at, i, false, now);
                redial.add((at, i), Some(Duration::MAX), now, now);
                backoff.on_failure((at, i), Class::Transient, (), now, u64::MAX);
                backoff.on_failure((at, i), Class::Foreign, (), now, 0);
                watch.on_alive(i, now);
                assert_eq!(watch.expire(Duration::ZERO), None);
            }
            table.expire(now);
            while redial.poll(now).is_some() {}
        }
        assert!(table.len() <= limit && book.len() <= limit.max(1));
        assert!(redial.iter().count() <= limit && backoff.iter().count() <= limit.max(1));
    }
}

/// A segment full of liars, each with many names and addresses, for an hour: what the table holds and what it lets through stays
/// within the limits, and a device that was there before them is still believed.
#[test]
fn a_segment_full_of_liars_fills_no_more_than_its_share() {
    let config = TableConfig::default();
    let (max, rate) = (config.max_sightings, u64::from(config.max_new_per_second));
    let mut table = Table::new(config);
    let honest = IpAddr::V4(Ipv4Addr::new(192, 168, 1, 1));
    assert_eq!(table.offer(u64::MAX, 0, honest, Duration::ZERO), Offer::New);
    let (mut rng, mut new) = (Rng::new(7), 0);
    for second in 0..600 {
        let now = Duration::from_secs(second);
        for _ in 0..100 {
            let ip = IpAddr::V4(Ipv4Addr::new(10, 0, 0, rng.below(40) as u8));
            let offer = table.offer(rng.below(5_000), rng.below(50) as u32, ip, now);
            new += u64::from(offer == Offer::New);
        }
        assert_eq!(table.offer(u64::MAX, 0, honest, now), Offer::Renewed);
        table.expire(now);
        assert!(table.len() <= max);
    }
    assert!(new <= 600 * rate + rate, "{new}");
}
