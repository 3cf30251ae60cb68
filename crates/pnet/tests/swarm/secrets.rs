//! S0.53: the key is in no log line, no `Debug`, no error text, in none of its encodings.

use std::{
    io::{self, Write},
    sync::{Arc, Mutex},
};

use crate::common::*;
use data_encoding::{BASE64, HEXLOWER, HEXUPPER};
use gemba_pnet::{DialCause, KeyFile, Network, Policy, Replace, SwarmKey};
use libp2p_swarm::SwarmEvent;

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

const SECRET: [u8; 32] = *b"\xd3\x1cQw8\x90zzTheKeyOfHall7!!\xfe\x01\x02\x03\x04\x05\x06\x07\x08";

fn forms() -> Vec<Vec<u8>> {
    let list = format!("{:?}", SECRET);
    let hex_list = format!("{:02x?}", SECRET);
    // A quarter of the key is too much already.
    vec![
        HEXLOWER.encode(&SECRET[8..16]).into_bytes(),
        HEXUPPER.encode(&SECRET[8..16]).into_bytes(),
        BASE64.encode(&SECRET).as_bytes()[8..24].to_vec(),
        SECRET[8..16].to_vec(),
        list.as_bytes()[30..70].to_vec(),
        hex_list.as_bytes()[30..70].to_vec(),
    ]
}

fn assert_clean(what: &str, bytes: &[u8]) {
    for form in forms() {
        let found = bytes.windows(form.len()).any(|window| window == form);
        assert!(
            !found,
            "{what} shows the key: {}",
            String::from_utf8_lossy(bytes)
        );
    }
}

#[tokio::test]
async fn s0_53_no_log_line_debug_or_error_shows_the_key() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(move || writer.clone())
        .with_ansi(false)
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let network = Network::Private(SwarmKey::from_bytes(SECRET));
    let (mut a, mut b, mut foreign) = (
        swarm(Over::Tcp, &network),
        swarm(Over::Tcp, &network),
        swarm(Over::Tcp, &private(9)),
    );
    let address = listen(Over::Tcp, &mut a).await;
    b.dial(address.clone()).unwrap();
    let connected = |event: &SwarmEvent<_>| {
        matches!(event, SwarmEvent::ConnectionEstablished { .. }).then_some(())
    };
    until_both(&mut a, &mut b, connected, connected).await;
    foreign.dial(address).unwrap();
    let (cause, error) = until_both(
        &mut a,
        &mut foreign,
        |event| match event {
            SwarmEvent::IncomingConnectionError { error, .. } => Some(format!("{error:?} {error}")),
            _ => None,
        },
        |event| match event {
            SwarmEvent::OutgoingConnectionError { error, .. } => Some(DialCause::of(error)),
            _ => None,
        },
    )
    .await;
    assert_clean("cause", cause.as_bytes());
    assert_clean("cause", format!("{error:?} {error}").as_bytes());
    let log = log.0.lock().unwrap().clone();
    assert!(log.len() > 1000, "the log was captured");
    assert_clean("log", &log);
}

#[test]
fn s0_53_no_debug_output_shows_the_key() {
    let key = SwarmKey::from_bytes(SECRET);
    let network = Network::Private(key.clone());
    assert_clean(
        "key",
        format!("{key:?} {key:#?} {network:?} {network:#?}").as_bytes(),
    );
    let dir = tempfile::tempdir().unwrap();
    let file = KeyFile::in_repo(dir.path());
    file.write(&key, Replace::Never).unwrap();
    let policy = file.policy_without_environment();
    assert!(policy.decide().is_ok());
    assert_clean(
        "policy",
        format!("{policy:?} {policy:#?} {file:?}").as_bytes(),
    );
    let other = file
        .write(&SwarmKey::from_bytes([1; 32]), Replace::Never)
        .unwrap_err();
    assert_clean("error", format!("{other:?} {other}").as_bytes());
}

#[test]
fn s0_53_errors_about_damaged_key_files_show_nothing_of_them() {
    let text = SwarmKey::from_bytes(SECRET).to_file_text();
    for damaged in [
        text.replacen("/base16/", "/base16", 1),
        text.replacen("1.0.0", "1.0.1", 1),
        text.trim_end()[..text.len() - 3].to_string(),
        text.replacen("1c", "1?", 1),
        text.lines().last().unwrap().to_string(),
    ] {
        let error = SwarmKey::parse(damaged.as_bytes()).unwrap_err();
        assert_clean("error", format!("{error:?} {error}").as_bytes());
        let key = gemba_pnet::policy::KeyFound::File {
            bytes: damaged.into_bytes().into(),
            mode: Some(0o600),
        };
        let error = Policy {
            key,
            ..Policy::default()
        }
        .decide()
        .unwrap_err();
        assert_clean("error", format!("{error:?} {error}").as_bytes());
    }
}
