//! Every knob of the exchange, with what it trades and its worst case.

use std::time::Duration;

use libp2p_identity::PeerId;

/// Limits and times of one exchange. The defaults suit a tablet and a 100 Mbit/s LAN.
///
/// ```
/// let config = gemba_exchange::Config::default().with_node_bytes(16 * 1024 * 1024);
/// assert_eq!(config.node_bytes(), 16 * 1024 * 1024);
/// ```
#[derive(Clone, Debug)]
pub struct Config {
    pub(crate) stall: Duration,
    pub(crate) peer_bytes: usize,
    pub(crate) node_bytes: usize,
    pub(crate) peer_wants: usize,
    pub(crate) session_wants: usize,
    pub(crate) sessions: usize,
    pub(crate) search: usize,
    pub(crate) retry_first: Duration,
    pub(crate) retry_last: Duration,
    pub(crate) distrust: Duration,
    pub(crate) serve: bool,
    pub(crate) served_wants: usize,
    pub(crate) served_node_wants: usize,
    pub(crate) served_peer_bytes: usize,
    pub(crate) served_node_bytes: usize,
    pub(crate) loads: usize,
    pub(crate) message_bytes: usize,
    pub(crate) inbound_streams: usize,
    pub(crate) receive_bytes: usize,
    pub(crate) receive_node_bytes: usize,
    pub(crate) ledger_peers: usize,
    pub(crate) near: LineBudget,
    pub(crate) far: LineBudget,
    pub(crate) site: Option<SiteConfig>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            stall: Duration::from_secs(2),
            peer_bytes: 4 * MIB,
            node_bytes: 32 * MIB,
            peer_wants: 1024,
            session_wants: 65_536,
            sessions: 1024,
            search: 256,
            retry_first: Duration::from_secs(2),
            retry_last: Duration::from_secs(60),
            distrust: Duration::from_secs(600),
            serve: true,
            served_wants: 1024,
            served_node_wants: 32_768,
            served_peer_bytes: MIB,
            served_node_bytes: 32 * MIB,
            loads: 64,
            message_bytes: 512 * 1024,
            inbound_streams: 256,
            receive_bytes: 8 * MIB,
            receive_node_bytes: 32 * MIB,
            ledger_peers: 1024,
            near: LineBudget::default(),
            far: LineBudget::default(),
            site: None,
        }
    }
}

const MIB: usize = 1024 * 1024;

/// How a peer is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Line {
    /// Without the uplink: on the LAN.
    Near,
    /// Over the uplink.
    Far,
}

/// What a line may carry, in bytes a second; `None`, the default: no limit. Less than [`LEAST_RATE`] counts as that.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LineBudget {
    /// Outwards: blocks are sent in slices of at most 8 KiB, and in 50 ms no more than the rate and two slices (PA-2).
    pub up: Option<u64>,
    /// Inwards: blocks are asked for so that no more comes than the rate, and what it carries in a second (PA-5).
    pub down: Option<u64>,
}

/// The smallest budget, in bytes a second: 128 kbit/s. Bitswap's receivers, Kubo among them, give up what comes at less than 100 kbit/s.
pub const LEAST_RATE: u64 = 16_000;

/// Which site the node belongs to (specs/site.md).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SiteConfig {
    /// The node itself: mates compare peer ids.
    pub local: PeerId,
    /// The label; `None`: nodes without a label on one subnet are one site. At most [`MAX_LABEL_BYTES`](crate::wire::MAX_LABEL_BYTES), and not empty.
    pub label: Option<String>,
}

impl Config {
    /// The site that the node shares fetches with; without one, which is the default, every node fetches for itself.
    #[must_use]
    pub fn site(&self) -> Option<&SiteConfig> {
        self.site.as_ref()
    }

    /// Sets [`site`](Self::site). Sessions with a root are shared; the owner carries [`Event::Site`](crate::Event::Site) to the peers.
    #[must_use]
    pub fn with_site(mut self, site: SiteConfig) -> Self {
        self.site = Some(site);
        self
    }
}

/// Writes getter and setter of a knob from one description.
macro_rules! knobs {
    ($($(#[$doc:meta])* $name:ident / $with:ident: $ty:ty;)*) => {
        impl Config {
            $(
                $(#[$doc])*
                #[must_use]
                pub fn $name(&self) -> $ty {
                    self.$name
                }

                #[doc = concat!("Sets [`", stringify!($name), "`](Self::", stringify!($name), ").")]
                #[must_use]
                pub fn $with(mut self, value: $ty) -> Self {
                    self.$name = value;
                    self
                }
            )*
        }
    };
}

knobs! {
    /// A want is moved to another peer after this long without a byte of progress from the one that was asked.
    /// Shorter gives up on slow radio links too early; longer lets a dead peer hold its share. Default 2 s.
    stall / with_stall: Duration;
    /// Most bytes of blocks expected from one peer at a time. Two blocks are always allowed. Must exceed line rate
    /// times round trip to fill a line. Default 4 MiB.
    peer_bytes / with_peer_bytes: usize;
    /// Most bytes of blocks expected from all peers plus those found and not yet released by the owner; once those found alone come to it,
    /// no connection starts to read another message. Worst case in memory: what was found then and what was just being read, which is
    /// [`receive_node_bytes`](Self::receive_node_bytes) and a quarter and 64 KiB a connection, all of it twice: a found block may keep a
    /// message of twice its size. Default 32 MiB.
    node_bytes / with_node_bytes: usize;
    /// Most wants that one peer holds for us; Kubo drops what is above 1024. Default 1024.
    peer_wants / with_peer_wants: usize;
    /// Most wants of one session; `want` refuses more. About 400 bytes each. Default 65,536.
    session_wants / with_session_wants: usize;
    /// Most open sessions; `open_session` refuses more. Default 1024.
    sessions / with_sessions: usize;
    /// Most wants of a session that are looked for (asked of everybody) at a time; found ones make room. Default 256.
    search / with_search: usize;
    /// A want that nobody has is asked again after this; doubles each round. Default 2 s.
    retry_first / with_retry_first: Duration;
    /// Longest time between two rounds for a want that nobody has. Default 60 s.
    retry_last / with_retry_last: Duration;
    /// How long a peer that sent wrong bytes is not asked. Default 10 min.
    distrust / with_distrust: Duration;
    /// Whether wants of others are answered. Without it they get DONT_HAVE. Default true.
    serve / with_serve: bool;
    /// Most wants of one peer that are remembered (boxo's number); overflow replaces missing ones first, then those of
    /// lower priority. About 300 bytes each. Default 1024.
    served_wants / with_served_wants: usize;
    /// Wants of all peers that are remembered: once half of it is taken, 64 of a peer that did not prove that it reads, and once all
    /// of it is, and 64 for each peer, 64 of any other. About 300 bytes each. Default 32,768.
    served_node_wants / with_served_node_wants: usize;
    /// Most bytes loaded or on their way to one peer (boxo's number). Default 1 MiB.
    served_peer_bytes / with_served_peer_bytes: usize;
    /// Most bytes loaded or on their way to all peers. Default 32 MiB.
    served_node_bytes / with_served_node_bytes: usize;
    /// Most block loads asked of the owner at a time. Default 64.
    loads / with_loads: usize;
    /// Size at which a response is closed; a single larger block travels alone. Kubo uses 16 KiB; every receiver must
    /// take 4 MiB. Default 512 KiB.
    message_bytes / with_message_bytes: usize;
    /// Most inbound streams a connection. Kubo opens one for each response. Default 256.
    inbound_streams / with_inbound_streams: usize;
    /// Most bytes in receive buffers and decoded messages a connection; at least one message of 4 MiB is always let
    /// through. Default 8 MiB.
    receive_bytes / with_receive_bytes: usize;
    /// Most bytes in receive buffers and decoded messages of all connections beyond 64 KiB each. Another quarter of it is for
    /// large messages of peers that were not asked for anything. At least one message is always let through. Default 32 MiB.
    receive_node_bytes / with_receive_node_bytes: usize;
    /// Most peers in the ledger of transferred bytes; the longest gone leave first. Default 1024.
    ledger_peers / with_ledger_peers: usize;
    /// What may be exchanged with peers that are reached without the uplink. No limit by default.
    near / with_near: LineBudget;
    /// What may be exchanged with all others. No limit by default.
    far / with_far: LineBudget;
}
