//! What became of a dial that an operator ordered: the exit code, the address, the cause and what to do about it.

use gemba_pnet::DialCause;
use multiaddr::Multiaddr;

use crate::error::{Code, Fail};

/// The failure of a dial to `address`.
#[must_use]
pub fn fail(address: &Multiaddr, cause: &DialCause) -> Fail {
    Fail::new(code(cause), format!("cannot connect to {address}: {cause}")).hint(hint(cause))
}

fn code(cause: &DialCause) -> Code {
    match cause {
        DialCause::WrongSwarmKey { .. }
        | DialCause::ProbablyWrongSwarmKey { .. }
        | DialCause::NotPrivate => Code::Permission,
        DialCause::Unreachable
        | DialCause::NoNonce(_)
        | DialCause::BackingOff { .. }
        | DialCause::HostSpared => Code::Timeout,
        DialCause::WrongPeer { .. } => Code::Conflict,
        DialCause::Malformed(_) | DialCause::Ourselves => Code::Usage,
        DialCause::NoSuchHost(_) | DialCause::NoAddress => Code::NotFound,
        _ => Code::Failure,
    }
}

fn hint(cause: &DialCause) -> &'static str {
    match cause {
        DialCause::Refused => {
            "start `gemba daemon` there, and compare the port with what `gemba id` prints there"
        }
        DialCause::Unreachable => {
            "`ping` the device from here; open its port in the firewalls on the way; `gemba id` there prints its addresses"
        }
        DialCause::NoNonce(_) => {
            "compare address and port with what `gemba id` prints on the other node; if they are right, look whether that device is overloaded"
        }
        DialCause::WrongSwarmKey { .. } | DialCause::ProbablyWrongSwarmKey { .. } => {
            "compare `gemba swarm-key show` on both; `gemba swarm-key import --replace FILE` takes the right key from the `swarm.key` of a member"
        }
        DialCause::NotPrivate => {
            "give that node the swarm key (`gemba swarm-key import FILE`, or for Kubo its `swarm.key`), and start it again"
        }
        DialCause::NotLibp2p(_) => {
            "`gemba id` on the other node prints the addresses at which it listens"
        }
        DialCause::SecurityFailed(_) => {
            "try again; if it stays, compare the versions of both nodes and look at the other node's log"
        }
        DialCause::WrongPeer { .. } => {
            "if the device was set up anew use the id that `gemba id` prints there; else the address now belongs to another device"
        }
        DialCause::Ourselves => "`gemba id` on the other node prints its addresses",
        DialCause::BackingOff { .. } | DialCause::HostSpared => {
            "`gemba connect` tries at once what waits for its next attempt"
        }
        DialCause::Limit(_) => {
            "`gemba peers` lists who is connected; it is tried again when some of them are gone"
        }
        DialCause::Malformed(_) => "it looks like /ip4/192.168.1.20/tcp/4001/p2p/12D3KooW…",
        DialCause::NoSuchHost(_) => {
            "check the name and this machine's name server, or give the IP address: /ip4/192.168.1.20/tcp/4001"
        }
        DialCause::NoAddress => "give its address: `gemba id` on the other node prints it",
        _ => "try again; `gemba -v daemon` logs each step of a connection, here and there",
    }
}
