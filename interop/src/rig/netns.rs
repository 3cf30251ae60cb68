//! One Ethernet segment: a bridge with a network namespace behind each port, for everything that needs multicast.
//!
//! Only used inside the private network and mount namespaces that `interop/run` makes, so nothing of it is seen outside.

use super::{process::run, until};
use crate::failure::{Context, Outcome};
use std::process::Command;
use std::time::Duration;

const BRIDGE: &str = "segment0";
const PORT: &str = "port";
const PREFIX: &str = "node-";

/// A bridge `10.77.0.0/24` with `hosts` namespaces `node-1`, `node-2` …, each with `10.77.0.N` and a default route (Kubo's
/// mDNS joins no group without one).
pub(crate) struct Segment {
    hosts: Vec<String>,
}

impl Segment {
    pub(crate) fn new(hosts: usize) -> Outcome<Self> {
        clear()?;
        ip(&["link", "add", BRIDGE, "type", "bridge"])?;
        // Snooping would hold multicast back until a querier is known, which a real unmanaged switch does not do.
        ip(&[
            "link",
            "set",
            BRIDGE,
            "type",
            "bridge",
            "mcast_snooping",
            "0",
        ])?;
        ip(&["link", "set", BRIDGE, "up"])?;
        let hosts = (1..=hosts)
            .map(|n| format!("{PREFIX}{n}"))
            .collect::<Vec<_>>();
        for (n, host) in hosts.iter().enumerate() {
            let port = format!("{PORT}{}", n + 1);
            ip(&["netns", "add", host])?;
            ip(&[
                "link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", host,
            ])?;
            ip(&["link", "set", &port, "master", BRIDGE, "up"])?;
            ip(&["-n", host, "link", "set", "lo", "up"])?;
            ip(&[
                "-n",
                host,
                "addr",
                "add",
                &format!("10.77.0.{}/24", n + 1),
                "dev",
                "eth0",
            ])?;
            ip(&["-n", host, "link", "set", "eth0", "up"])?;
            ip(&["-n", host, "route", "add", "default", "dev", "eth0"])?;
        }
        let segment = Self { hosts };
        until(
            "all cables of the segment are up",
            Duration::from_secs(10),
            || segment.settled(),
        )?;
        Ok(segment)
    }

    /// Whether each port forwards and each address may be used (IPv6 looks for duplicates first). Multicast sent before is
    /// lost, and the next mDNS query comes seconds later.
    fn settled(&self) -> Outcome<Option<()>> {
        let forwarding = ip(&["-d", "link", "show", "master", BRIDGE])?
            .matches("state forwarding")
            .count();
        let mut tentative = false;
        for host in &self.hosts {
            tentative |= ip(&["-n", host, "addr", "show", "dev", "eth0"])?.contains("tentative");
        }
        Ok((forwarding == self.hosts.len() && !tentative).then_some(()))
    }

    /// The namespace of a host, counted from 0.
    pub(crate) fn host(&self, n: usize) -> &str {
        &self.hosts[n]
    }
}

/// Takes down what an earlier scenario may have left.
pub(crate) fn clear() -> Outcome {
    for host in ip(&["netns", "list"])?
        .lines()
        .filter_map(|line| line.split(' ').next())
    {
        if host.starts_with(PREFIX) {
            ip(&["netns", "del", host])?;
        }
    }
    // A deleted namespace goes some time later, and its end of a cable with it; ours is deleted here so that the names are free.
    for line in ip(&["-o", "link", "show"])?.lines() {
        let name = line
            .split([' ', ':', '@'])
            .filter(|word| !word.is_empty())
            .nth(1)
            .unwrap_or_default();
        if name == BRIDGE || name.starts_with(PORT) {
            // It may have gone meanwhile. If it has not, the next segment says so: its name is taken.
            let _ = ip(&["link", "del", name]);
        }
    }
    Ok(())
}

fn ip(args: &[&str]) -> Outcome<String> {
    run(Command::new("ip").args(args), Duration::from_secs(10))
        .and_then(|done| done.ok())
        .context(|| "network namespaces".into())
}
