//! A slow line: a TCP proxy on loopback that limits and counts what the target sends, so that "in the middle of a transfer"
//! is a place one can hit on every machine.

use crate::failure::Outcome;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A running proxy. Its threads end with the process: a scenario is a process of its own.
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    sent: Arc<AtomicU64>,
}

impl Proxy {
    /// Listens on a free port and joins every connection to a new one to `target`; `rate` is in bytes a second for each
    /// connection, in the direction away from the target.
    pub(crate) fn start(target: SocketAddr, rate: u64) -> Outcome<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let sent = Arc::new(AtomicU64::new(0));
        let counter = sent.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                // A target that is down looks to the client as it would without a proxy: the connection closes.
                let Ok(server) = TcpStream::connect(target) else {
                    continue;
                };
                if let Err(error) = join(client, server, rate, counter.clone()) {
                    eprintln!("proxy: {error}");
                }
            }
        });
        Ok(Self { address, sent })
    }

    /// Bytes that came from the target so far.
    pub(crate) fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }
}

fn join(client: TcpStream, server: TcpStream, rate: u64, counter: Arc<AtomicU64>) -> Outcome {
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (client_in, server_out) = (client.try_clone()?, server.try_clone()?);
    std::thread::spawn(move || copy(client_in, server_out, u64::MAX, &AtomicU64::new(0)));
    std::thread::spawn(move || copy(server, client, rate, &counter));
    Ok(())
}

fn copy(mut from: TcpStream, mut to: TcpStream, rate: u64, counter: &AtomicU64) {
    let start = Instant::now();
    let mut bytes = [0u8; 16 * 1024];
    let mut total = 0u64;
    while let Ok(n @ 1..) = from.read(&mut bytes) {
        if to.write_all(&bytes[..n]).is_err() {
            break;
        }
        total += n as u64;
        counter.fetch_add(n as u64, Ordering::Relaxed);
        let due = Duration::from_secs_f64(total as f64 / rate as f64);
        std::thread::sleep(due.saturating_sub(start.elapsed()));
    }
    let _ = to.shutdown(Shutdown::Both);
    let _ = from.shutdown(Shutdown::Both);
}
