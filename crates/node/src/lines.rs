//! Lines: over which one a peer is reached, and what each may carry.
//!
//! A node knows two: the LAN, and its uplink, which is ordinary (`wan`) or costs money (`metered`).

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

use gemba_exchange::{Carried, LEAST_RATE, Line, LineBudget};
use gemba_pnet::Meter;
use multiaddr::{Multiaddr, Protocol};
use serde::{Deserialize, Serialize};

/// What the uplink is: which budget holds for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Uplink {
    /// It costs nothing by the byte.
    #[default]
    Wan,
    /// It does.
    Metered,
}

impl FromStr for Uplink {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "wan" => Ok(Self::Wan),
            "metered" => Ok(Self::Metered),
            _ => Err("one of wan, metered".to_owned()),
        }
    }
}

impl fmt::Display for Uplink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Wan => "wan",
            Self::Metered => "metered",
        })
    }
}

/// An IP network, as `10.1.0.0/16`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subnet {
    ip: IpAddr,
    bits: u8,
}

impl Subnet {
    fn contains(&self, ip: IpAddr) -> bool {
        let same = |ours: u128, theirs: u128, width: u32| {
            let rest = width.saturating_sub(u32::from(self.bits));
            ours.checked_shr(rest) == theirs.checked_shr(rest)
        };
        match (self.ip, ip) {
            (IpAddr::V4(ours), IpAddr::V4(theirs)) => {
                same(ours.to_bits().into(), theirs.to_bits().into(), 32)
            }
            (IpAddr::V6(ours), IpAddr::V6(theirs)) => same(ours.to_bits(), theirs.to_bits(), 128),
            _ => false,
        }
    }
}

impl FromStr for Subnet {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || "a network such as 10.1.0.0/16 or fd00:1::/64 is wanted".to_owned();
        let (ip, bits) = text.split_once('/').ok_or_else(wrong)?;
        let ip: IpAddr = ip.parse().map_err(|_| wrong())?;
        let bits: u8 = bits.parse().map_err(|_| wrong())?;
        let most = if ip.is_ipv4() { 32 } else { 128 };
        match bits <= most {
            true => Ok(Self { ip, bits }),
            false => Err(wrong()),
        }
    }
}

/// What counts as the LAN.
#[derive(Clone, Debug, Default)]
pub struct Lan {
    /// These networks; none: all private, link-local and loopback addresses.
    pub subnets: Vec<Subnet>,
}

impl Lan {
    /// Over which line an address is reached. Whoever is behind a relay is reached over that one's uplink at best.
    #[must_use]
    pub fn line(&self, address: &Multiaddr) -> Line {
        let relayed = address.iter().any(|part| part == Protocol::P2pCircuit);
        let ip = address.iter().find_map(|part| match part {
            Protocol::Ip4(ip) => Some(IpAddr::V4(ip)),
            Protocol::Ip6(ip) => Some(ip.to_canonical()),
            _ => None,
        });
        match ip {
            Some(ip) if !relayed && self.contains(ip) => Line::Near,
            _ => Line::Far,
        }
    }

    fn contains(&self, ip: IpAddr) -> bool {
        if !self.subnets.is_empty() {
            return self.subnets.iter().any(|subnet| subnet.contains(ip));
        }
        match ip {
            IpAddr::V4(ip) => ip.is_loopback() || ip.is_private() || ip.is_link_local(),
            IpAddr::V6(ip) => {
                ip.is_loopback() || ip.is_unique_local() || ip.is_unicast_link_local()
            }
        }
    }
}

/// `2 Mbit/s`, `1 Mbit/s up, 8 Mbit/s down`, `none`.
///
/// # Errors
/// What is wanted instead.
pub fn budget(text: &str) -> Result<LineBudget, String> {
    if text.trim() == "none" {
        return Ok(LineBudget::default());
    }
    let mut budget = LineBudget::default();
    for part in text.split(',') {
        let part = part.trim();
        let (rate, up, down) = match part.rsplit_once(' ') {
            Some((rate, "up")) => (rate, true, false),
            Some((rate, "down")) => (rate, false, true),
            _ => (part, true, true),
        };
        let rate = bytes_a_second(rate)?;
        let twice = || format!("{part}: that way has a rate already");
        for (wanted, way) in [(up, &mut budget.up), (down, &mut budget.down)] {
            if wanted && way.replace(rate).is_some() {
                return Err(twice());
            }
        }
    }
    Ok(budget)
}

fn bytes_a_second(text: &str) -> Result<u64, String> {
    let wrong = || {
        "a rate such as 2 Mbit/s is wanted (kbit/s, Mbit/s, Gbit/s, kB/s, MB/s), for both ways or as `1 Mbit/s up, 8 Mbit/s down`, or none"
            .to_owned()
    };
    let text = text.trim();
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let times: u64 = match unit.trim() {
        "kbit/s" => 125,
        "Mbit/s" => 125_000,
        "Gbit/s" => 125_000_000,
        "kB/s" => 1000,
        "MB/s" => 1_000_000,
        _ => return Err(wrong()),
    };
    let rate = number.checked_mul(times).ok_or_else(wrong)?;
    if rate < LEAST_RATE {
        return Err(
            "at least 128 kbit/s: what comes more slowly is given up by its receivers".to_owned(),
        );
    }
    Ok(rate)
}

/// A rate for people.
#[must_use]
pub fn rate_text(bytes: u64) -> String {
    let bits = bytes.saturating_mul(8);
    match bits {
        _ if bits >= 10_000_000 => format!("{} Mbit/s", bits / 1_000_000),
        _ if bits >= 1_000_000 => format!("{:.1} Mbit/s", bits as f64 / 1e6),
        _ => format!("{} kbit/s", bits / 1000),
    }
}

/// What went over both lines since the daemon started, in bytes of the sockets.
#[derive(Clone, Debug, Default)]
pub struct Meters {
    /// The LAN.
    pub near: Arc<Meter>,
    /// The uplink.
    pub far: Arc<Meter>,
}

impl Meters {
    /// The meter of a line.
    #[must_use]
    pub fn of(&self, line: Line) -> &Arc<Meter> {
        match line {
            Line::Near => &self.near,
            Line::Far => &self.far,
        }
    }

    /// What it says.
    #[must_use]
    pub fn carried(&self, line: Line) -> Carried {
        let meter = self.of(line);
        Carried {
            read: meter.read(),
            written: meter.written(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_read_for_both_ways_and_for_each() {
        let both = |rate| LineBudget {
            up: Some(rate),
            down: Some(rate),
        };
        assert_eq!(budget("2 Mbit/s"), Ok(both(250_000)));
        assert_eq!(budget("2Mbit/s"), Ok(both(250_000)));
        assert_eq!(budget("500 kB/s"), Ok(both(500_000)));
        assert_eq!(budget("none"), Ok(LineBudget::default()));
        let each = LineBudget {
            up: Some(125_000),
            down: Some(1_000_000),
        };
        assert_eq!(budget("1 Mbit/s up, 8 Mbit/s down"), Ok(each));
        let one = LineBudget {
            up: None,
            down: Some(1_000_000),
        };
        assert_eq!(budget("8 Mbit/s down"), Ok(one));
        for wrong in [
            "",
            "2",
            "2 Mbit",
            "Mbit/s",
            "fast",
            "64 kbit/s",
            "1 Mbit/s, 2 Mbit/s",
            "1 Mbit/s up, 2 Mbit/s up",
            "99999999999999999999 Mbit/s",
            "-1 Mbit/s",
        ] {
            assert!(budget(wrong).is_err(), "{wrong}");
        }
        assert_eq!(rate_text(250_000), "2.0 Mbit/s");
        assert_eq!(rate_text(16_000), "128 kbit/s");
        assert_eq!(rate_text(125_000_000), "1000 Mbit/s");
    }

    #[test]
    fn the_lan_is_what_is_private_or_what_is_said_to_be() {
        let line = |lan: &Lan, text: &str| lan.line(&text.parse().unwrap());
        let usual = Lan::default();
        for near in [
            "/ip4/192.168.1.20/tcp/4001",
            "/ip4/127.0.0.1/tcp/4001",
            "/ip6/fe80::1/tcp/4001",
            "/ip6/::ffff:10.0.0.1/tcp/4001",
        ] {
            assert_eq!(line(&usual, near), Line::Near, "{near}");
        }
        for far in [
            "/ip4/192.0.2.1/tcp/4001",
            "/ip6/2001:db8::1/tcp/4001",
            "/dns4/cloud.example/tcp/4001",
            "/ip4/10.0.0.1/tcp/4001/p2p/12D3KooWEyoppNCUx8Yx66oV9fJnriXwCcXwDDUA2kj6vnc6iDEp/p2p-circuit",
        ] {
            assert_eq!(line(&usual, far), Line::Far, "{far}");
        }
        // A plant whose other site is reached by private addresses, too.
        let said = Lan {
            subnets: vec![
                "10.1.0.0/16".parse().unwrap(),
                "fd00:1::/32".parse().unwrap(),
            ],
        };
        assert_eq!(line(&said, "/ip4/10.1.200.3/tcp/1"), Line::Near);
        assert_eq!(line(&said, "/ip4/10.2.0.3/tcp/1"), Line::Far);
        assert_eq!(line(&said, "/ip4/127.0.0.1/tcp/1"), Line::Far);
        assert_eq!(line(&said, "/ip6/fd00:1::7/tcp/1"), Line::Near);
        let all = Lan {
            subnets: vec!["0.0.0.0/0".parse().unwrap()],
        };
        assert_eq!(line(&all, "/ip4/192.0.2.1/tcp/1"), Line::Near);
        for wrong in ["10.0.0.0", "10.0.0.0/33", "10.0.0/8", "x/8", "::/129"] {
            assert!(wrong.parse::<Subnet>().is_err(), "{wrong}");
        }
    }
}
