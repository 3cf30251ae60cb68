//! A session: wants that belong together, and who proved to have such blocks.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::fmt;
use std::sync::Arc;

use gemba_block::Cid;
use libp2p_identity::PeerId;

use crate::core::PeerKey;

/// How a session is opened.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct SessionOptions {
    /// Who may be asked.
    pub policy: AskPolicy,
    /// The root below which the wanted blocks are: devices of the site that fetch the same root share out who asks outside for which block
    /// (specs/site.md). Without one the session asks whomever its policy allows.
    pub root: Option<Cid>,
}

impl SessionOptions {
    /// A session that asks whom `policy` allows.
    #[must_use]
    pub fn with_policy(policy: AskPolicy) -> Self {
        Self {
            policy,
            ..Self::default()
        }
    }

    /// The session fetches what is below `root`.
    #[must_use]
    pub fn with_root(mut self, root: Cid) -> Self {
        self.root = Some(root);
        self
    }
}

/// Who may be asked for a want.
#[derive(Clone, Default)]
#[non_exhaustive]
pub enum AskPolicy {
    /// Everybody.
    #[default]
    Any,
    /// Only these.
    Only(HashSet<PeerId>),
    /// All but these.
    Not(HashSet<PeerId>),
    /// Who passes this test. It is called often and must be quick and always answer the same for the same arguments;
    /// [`Core::set_policy`](crate::Core::set_policy) says that its answers changed.
    Test(AskTest),
}

/// Whether a peer may be asked for a block.
pub type AskTest = Arc<dyn Fn(&Cid, &PeerId) -> bool + Send + Sync>;

impl AskPolicy {
    /// Whether `peer` may be asked for `cid`.
    #[must_use]
    pub fn may_ask(&self, cid: &Cid, peer: &PeerId) -> bool {
        match self {
            Self::Any => true,
            Self::Only(peers) => peers.contains(peer),
            Self::Not(peers) => !peers.contains(peer),
            Self::Test(test) => test(cid, peer),
        }
    }
}

impl fmt::Debug for AskPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("Any"),
            Self::Only(peers) => write!(f, "Only({} peers)", peers.len()),
            Self::Not(peers) => write!(f, "Not({} peers)", peers.len()),
            Self::Test(_) => f.write_str("Test"),
        }
    }
}

pub(super) struct Session {
    pub(super) policy: AskPolicy,
    /// The root that mates know of.
    pub(super) root: Option<Cid>,
    /// Mates were told of it.
    pub(super) begun: bool,
    pub(super) wants: HashSet<Cid>,
    /// Wants with nothing under way, in order.
    pub(super) pending: VecDeque<Cid>,
    /// Wants of this session that everybody was asked for and that are not answered yet.
    pub(super) searching: usize,
    /// Wants that nobody has.
    pub(super) unavailable: usize,
    /// Wants that mates fetch.
    pub(super) waiting: usize,
    /// How well asking these peers worked, 0 to 256.
    standing: BTreeMap<PeerKey, u16>,
    /// Size assumed for a block of this session. Up at once, down slowly: too low costs memory, too high only time.
    pub(super) estimate: usize,
}

/// Before the first block: Kubo's chunk size.
const FIRST_ESTIMATE: usize = 256 * 1024;
/// Peers from this standing on are asked for blocks without asking first whether they have them.
const GOOD: u16 = 128;

impl Session {
    pub(super) fn new(options: SessionOptions) -> Self {
        Self {
            policy: options.policy,
            root: options.root,
            begun: false,
            wants: HashSet::new(),
            pending: VecDeque::new(),
            searching: 0,
            unavailable: 0,
            waiting: 0,
            standing: BTreeMap::new(),
            estimate: FIRST_ESTIMATE,
        }
    }

    pub(super) fn had(&mut self, key: PeerKey) {
        let standing = self.standing.entry(key).or_insert(GOOD);
        *standing += (256 - *standing) / 4;
    }

    pub(super) fn had_not(&mut self, key: PeerKey) {
        if let Some(standing) = self.standing.get_mut(&key) {
            *standing -= *standing / 4;
        }
    }

    pub(super) fn failed(&mut self, key: PeerKey) {
        if let Some(standing) = self.standing.get_mut(&key) {
            *standing /= 2;
        }
    }

    pub(super) fn forget(&mut self, key: PeerKey) {
        self.standing.remove(&key);
    }

    /// Peers that probably have the next block as well.
    pub(super) fn good(&self) -> impl Iterator<Item = PeerKey> {
        self.standing
            .iter()
            .filter(|(_, standing)| **standing >= GOOD)
            .map(|(key, _)| *key)
    }

    /// One of the first pending wants is under way.
    pub(super) fn no_longer_pending(&mut self, cid: &Cid) {
        if let Some(at) = self.pending.iter().position(|c| c == cid) {
            self.pending.remove(at);
        }
    }

    pub(super) fn saw_size(&mut self, len: usize) {
        let len = len.max(MIN_ESTIMATE);
        self.estimate = if len > self.estimate {
            len
        } else {
            (self.estimate * 7 + len) / 8
        };
    }
}

/// A thousand of the smallest blocks fill a window of 4 MiB.
const MIN_ESTIMATE: usize = 4 * 1024;
