//! Listening: what is looked at before the first socket, and what became of an address that is not listened on.

use std::time::Duration;

use gemba_pnet::ListenCause;
use libp2p_core::transport::TransportError;
use multiaddr::{Multiaddr, Protocol};

use crate::error::{Code, Fail};

/// libp2p's sockets share their port with any other that does, so a second daemon would quietly take half of the first one's
/// connections. A plain socket is refused where another one listens.
pub(super) fn refuse_taken_port(address: &Multiaddr) -> Result<(), Fail> {
    let mut parts = address.iter();
    let ip: std::net::IpAddr = match parts.next() {
        Some(Protocol::Ip4(ip)) => ip.into(),
        Some(Protocol::Ip6(ip)) => ip.into(),
        _ => return Ok(()),
    };
    let Some(Protocol::Tcp(port)) = parts.next().filter(|part| *part != Protocol::Tcp(0)) else {
        return Ok(());
    };
    match std::net::TcpListener::bind((ip, port)) {
        Ok(_free) => Ok(()),
        Err(e) => Err(fail(
            address,
            &ListenCause::of(address, &TransportError::Other(e)),
        )),
    }
}

/// Whether an address stands for all of its kind that the machine has.
pub(super) fn is_wildcard(address: &Multiaddr) -> bool {
    match address.iter().next() {
        Some(Protocol::Ip4(ip)) => ip.is_unspecified(),
        Some(Protocol::Ip6(ip)) => ip.is_unspecified(),
        _ => false,
    }
}

pub(super) fn never(address: &Multiaddr, patience: Duration) -> Fail {
    Fail::new(
        Code::Timeout,
        format!(
            "listening on {address} did not come about in {} s",
            patience.as_secs()
        ),
    )
    .hint("does this machine have such an address? Another one is given with --listen, as /ip4/0.0.0.0/tcp/4001")
}

/// Why the node does not listen on an address.
#[must_use]
pub fn fail(address: &Multiaddr, cause: &ListenCause) -> Fail {
    let failed = Fail::new(
        Code::Conflict,
        format!("cannot listen on {address}: {cause}"),
    );
    failed.hint("give another address with --listen, or port 0 for any free one")
}
