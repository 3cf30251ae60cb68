//! A connected peer as the site sees it: whether it is a mate, what it fetches, and what it has to be told.

use std::time::Duration;

use gemba_block::Cid;
use libp2p_identity::PeerId;

use super::rank::Seed;
use crate::core::Time;
use crate::wire::{Hello, SiteMessage};

/// Roots of one mate that are remembered; beyond them it is no candidate for the others (SI-3).
const ROOTS: usize = 64;
/// Bytes of CIDs in one message; the rest goes into the next.
const MESSAGE: usize = 48 * 1024;
/// CIDs in one message.
const CIDS: usize = 1024;
/// A mate that lied is no candidate for this long; doubles up to 32 times that (SI-10).
const DISTRUST: Duration = Duration::from_secs(8);
/// A mate that did not answer whether it has a block is not waited for so long.
const TARDY: Duration = Duration::from_secs(8);

/// Where a peer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// It may still say that it is a mate.
    Unknown {
        until: Time,
    },
    Outside,
    Mate,
}

pub(super) struct Neighbour {
    pub(super) id: PeerId,
    pub(super) seed: Seed,
    pub(super) side: Side,
    /// It is on one of our own subnets.
    pub(super) near: bool,
    /// Our messages reach it.
    pub(super) speaks: bool,
    /// It has no blocks for anybody: it speaks no Bitswap.
    pub(super) mute: bool,
    /// It is connected to somebody outside.
    pub(super) outside: bool,
    pub(super) fetches: Vec<Cid>,
    /// When it last said that bytes come to it.
    pub(super) progress: Time,
    /// When a block last came from it, and how many had come from outside by then.
    pub(super) last_block: (Time, u64),
    distrusted_until: Time,
    lies: u32,
    tardy_until: Time,
    draft: SiteMessage,
}

impl Neighbour {
    pub(super) fn new(id: PeerId, side: Side) -> Self {
        Self {
            id,
            seed: Seed::of(&id),
            side,
            near: false,
            speaks: false,
            mute: false,
            outside: false,
            fetches: Vec::new(),
            progress: Time::ZERO,
            last_block: (Time::ZERO, 0),
            distrusted_until: Time::ZERO,
            lies: 0,
            tardy_until: Time::ZERO,
            draft: SiteMessage::default(),
        }
    }

    pub(super) fn is_mate(&self) -> bool {
        self.side == Side::Mate
    }

    /// It said that bytes come to it, and others waited in vain.
    pub(super) fn is_distrusted(&self, now: Time) -> bool {
        now < self.distrusted_until
    }

    pub(super) fn distrust(&mut self, now: Time) {
        if !self.is_distrusted(now) {
            self.distrusted_until = now.saturating_add(DISTRUST * (1 << self.lies.min(5)));
            self.lies += 1;
        }
    }

    pub(super) fn is_tardy(&self, now: Time) -> bool {
        now < self.tardy_until
    }

    pub(super) fn tardy(&mut self, now: Time) {
        self.tardy_until = now.saturating_add(TARDY);
    }

    /// A block came from it.
    pub(super) fn delivered(&mut self, now: Time, outside_found: u64) {
        self.last_block = (now, outside_found);
        self.lies = self.lies.saturating_sub(1);
        self.tardy_until = Time::ZERO;
    }

    /// Says what it belongs to. Forgets what it said before as another.
    pub(super) fn place(&mut self, side: Side) {
        self.fetches.clear();
        self.outside = false;
        self.side = side;
    }

    /// Our messages do not reach it. What it says may still reach us.
    pub(super) fn silent(&mut self) {
        self.speaks = false;
        self.draft = SiteMessage::default();
        if !self.is_mate() {
            self.place(Side::Outside);
        }
    }

    /// False if it fetches too much at a time.
    pub(super) fn fetches(&mut self, root: Cid) -> bool {
        if self.fetches.contains(&root) {
            return true;
        }
        let room = self.fetches.len() < ROOTS;
        if room {
            self.fetches.push(root);
        }
        room
    }

    pub(super) fn greet(&mut self, label: Option<String>) {
        let near = self.near;
        self.draft.hello = Some(Hello { label, near });
    }

    /// What it is told with the next message.
    pub(super) fn draft(&mut self) -> Option<&mut SiteMessage> {
        self.speaks.then_some(&mut self.draft)
    }

    /// The next message, of a size that is allowed.
    pub(super) fn next_message(&mut self) -> Option<SiteMessage> {
        if self.draft.is_empty() {
            return None;
        }
        let mut room = Room {
            bytes: MESSAGE,
            cids: CIDS,
        };
        Some(SiteMessage {
            hello: self.draft.hello.take(),
            fetches: room.some_of(&mut self.draft.fetches),
            ends: room.some_of(&mut self.draft.ends),
            // Before what takes note of a root is told, so that who reads it knows what is taken.
            takes: room.some_of(&mut self.draft.takes),
            releases: room.some_of(&mut self.draft.releases),
            knows: match self.draft.takes.is_empty() {
                true => room.some_of(&mut self.draft.knows),
                false => Vec::new(),
            },
            progress: std::mem::take(&mut self.draft.progress),
            outside: self.draft.outside.take(),
        })
    }
}

/// What a message still takes.
struct Room {
    bytes: usize,
    cids: usize,
}

impl Room {
    fn some_of(&mut self, list: &mut Vec<Cid>) -> Vec<Cid> {
        let fits = |cid: &&Cid| {
            // A CID has a few bytes beside its digest.
            let size = usize::from(cid.hash().size()) + 40;
            let fits = self.cids > 0 && size <= self.bytes;
            if fits {
                self.cids -= 1;
                self.bytes -= size;
            }
            fits
        };
        let count = list.iter().take_while(fits).count();
        list.drain(..count).collect()
    }
}
